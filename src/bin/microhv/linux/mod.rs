//! The second job of the image: an unmodified Linux as the guest, when the loader brought one.
//!
//! The guest has the whole machine but two things: the hypervisor's memory, and the remapping unit,
//! in whose place it finds a virtual one. Its addresses are the machine's; interrupts, timers, ports
//! and devices are its own.
//!
//! | module | job |
//! |---|---|
//! | `container` | the boot module that holds the guest's files |
//! | `boot_protocol`, `load` | kernel, initial RAM file system and zero page, put where they belong |
//! | `acpi` | what is needed of the tables, and the processors that are not the guest's |
//! | `machine` | memory, devices, virtual unit |
//! | `exits` | what the guest's exits do |
//! | `page_walk` | the guest's page tables, to fetch an instruction |
//! | `pci_guard`, `apic_filter`, `ioapic_filter` | what the guest may not write |
//! | `refusals` | what it was refused |
//! | `apic` | the APICs behind the filters, and interrupt messages of the virtual unit |
//! | `statistics` | exits by kind |

mod acpi;
mod apic;
mod apic_filter;
mod boot_protocol;
mod container;
mod exits;
mod ioapic_filter;
mod load;
mod machine;
mod page_walk;
mod pci_guard;
mod refusals;
mod statistics;

use heapless::Vec;
use vtd_nest::arch::address::{Hpa, PAGE_SIZE_BYTES};
use vtd_nest::arch::id::SourceId;
use vtd_nest::unit::{InterruptRemapping, Unit};

use crate::boot::Module;
use crate::console::println;
use crate::cpu::{Access, Cpu, MapError, Pages, Processor, ProcessorError};
use crate::environment::{Environment, POOL_LEN_BYTES};
use crate::firmware::{self, FirmwareError};
use crate::local_apic::LocalApic;
use crate::memory::MemoryError;
use crate::pci::{Bar, Function, Pci};
use crate::platform::Platform;
use crate::port;
use crate::ram::Ram;
use crate::report::{self, Explained};
use crate::units::{self, DescribedUnits, UnitsError};

use apic::IoApic;
use exits::{Guest, Stop};
use load::{GuestFiles, LoadError};
use machine::{Machine, SetUpError};
use pci_guard::{Guarded, PciGuard};
use refusals::Refusals;
use statistics::Exits;

/// Why the guest does not run.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum LinuxError {
    Cpu(ProcessorError),
    Units(UnitsError),
    /// The guest's one unit takes the place of one physical unit; there are this many.
    SeveralUnits(usize),
    /// The function is behind no unit.
    NotCovered(SourceId),
    Firmware(FirmwareError),
    Memory(MemoryError),
    /// A module lies between what belongs to the hypervisor.
    ModuleInTheWay(Hpa),
    Load(LoadError),
    Machine(SetUpError),
    Map(MapError),
    /// A fixed list is full.
    Full(&'static str),
}

macro_rules! from {
    ($($variant:ident($error:ty),)*) => {$(
        impl From<$error> for LinuxError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}

from! {
    Cpu(ProcessorError),
    Units(UnitsError),
    Firmware(FirmwareError),
    Memory(MemoryError),
    Load(LoadError),
    Machine(SetUpError),
    Map(MapError),
}

/// Boots the guest in the module and runs it to its end; whether that was a clean one.
//
// A frame of its own, so that the other job has all of the stack.
#[inline(never)]
pub(crate) fn run(platform: Platform, module: Module) -> Result<bool, LinuxError> {
    let mut guest = set_up(platform, module)?;
    let Some(features) = guest.machine.units.first().map(|unit| *unit.features()) else {
        return Ok(false);
    };
    let offer = *guest.machine.hardware.offer();
    report::capabilities("unit", &features);
    report::capabilities("shown", &offer.features);
    report::backend(offer.backend.name());
    println!("entering the guest");
    let stop = guest.run();
    summary(&guest, stop);
    if let Stop::PowerOff { port, size, value } = stop {
        crate::exit::report_success();
        port::write_power_management(port, size, value);
        return Ok(true);
    }
    Ok(false)
}

/// Everything up to the guest's first instruction.
fn set_up(platform: Platform, module: Module) -> Result<Guest<Processor>, LinuxError> {
    Processor::check()?;
    let Platform {
        information,
        mut memory,
        dmar,
        mut pci,
        functions,
    } = platform;
    let files = GuestFiles::find(&memory, module)?;
    let described = DescribedUnits::find(dmar)?;
    let [description] = described.list() else {
        return Err(LinuxError::SeveralUnits(described.list().len()));
    };
    let unit_registers = description.base;
    let interrupt_sources = described.interrupt_sources(&functions)?;
    for function in &functions {
        described.covering(function.source_id, &functions)?;
    }
    let fadt = firmware::find_table(&mut memory, information.rsdp, b"FACP")?;
    let power_ports: Vec<u16, 2> = acpi::power_management_ports(fadt)
        .into_iter()
        .flatten()
        .collect();
    let mut madt = firmware::locate_table(&memory, information.rsdp, b"APIC")?;
    let hidden = acpi::hide_other_processors(&mut madt);
    if hidden > 0 {
        println!("{hidden} more processors, which the guest does not get");
    }

    let apic = LocalApic::open(&memory)?;
    let mut io_apics = Vec::new();
    for start in acpi::io_apics(&madt).ok_or(LinuxError::Full("I/O APICs"))? {
        io_apics
            .push(IoApic::open(&memory, start)?)
            .map_err(|_| LinuxError::Full("I/O APICs"))?;
    }
    let cpu_pages = Pages::allocate(&mut memory)?;
    let pool = memory.allocate(POOL_LEN_BYTES, 2 << 20)?;
    let pool_start = pool.start();
    let own = memory.hypervisor_range();
    if module.start < own.end && own.start < module.end {
        return Err(LinuxError::ModuleInTheWay(module.start));
    }
    let protected = described.protected_ranges(&pci, &[(own.start, own.len_bytes())])?;
    let windows = described.windows(&memory)?;
    let map = load::memory_map(&information, own);
    let pci_window = pci
        .window()
        .map(|window| (window.start(), after(window.start(), window.len_bytes())));
    let mut guard = guard(&mut pci, &functions)?;
    for (start, end) in [
        (own.start, own.end),
        (
            unit_registers,
            after(unit_registers, description.register_window_bytes),
        ),
        (Hpa::new(0xfee0_0000), Hpa::new(0xfef0_0000)),
    ]
    .into_iter()
    .chain(io_apics.iter().map(IoApic::start).map(page))
    .chain(pci_window)
    {
        guard
            .protect(start.as_u64(), end.as_u64())
            .ok_or(LinuxError::Full("protected ranges"))?;
    }

    let mut ram = Ram::new();
    ram.add(pool).ok_or(LinuxError::Full("RAM"))?;
    let mut guest_ram: Vec<(Hpa, Hpa), 64> = Vec::new();
    for region in memory.into_guest_ram(&information)? {
        let range = (region.start(), after(region.start(), region.len_bytes()));
        guest_ram.push(range).map_err(|_| LinuxError::Full("RAM"))?;
        ram.add(region).ok_or(LinuxError::Full("RAM"))?;
    }
    // Firmware's drivers may have left devices active. The guest's turn them on again.
    for function in functions
        .iter()
        .filter(|function| function.bridge.is_none())
    {
        pci.set_bus_master(function.source_id, false);
    }
    let environment = Environment::new(ram, pool_start, pci);
    let remapping = remapping_of(information.command_line());
    let units = units::bring_up(&environment, windows, remapping)?;
    described.reserve(units, &functions)?;
    let machine = Machine::new(
        environment,
        units,
        protected,
        &guest_ram,
        &functions,
        &interrupt_sources,
    )?;
    let start = load::load(&machine, &files, &map, &information)?;

    let mut cpu = Processor::new(cpu_pages, (own.start, own.end), start)?;
    let unit_end = after(unit_registers, description.register_window_bytes);
    cpu.set_access(unit_registers, unit_end, Access::None)?;
    let read_only = io_apics
        .iter()
        .map(IoApic::start)
        .map(page)
        .chain(pci_window);
    for (start, end) in read_only.chain([page(Hpa::new(apic_filter::BASE))]) {
        cpu.set_access(start, end, Access::ReadOnly)?;
    }
    for port in (0xcfc..=0xcff).chain(power_ports.iter().flat_map(|port| [*port, port + 1])) {
        cpu.trap_port(port);
    }
    for index in exits::trapped_msrs() {
        cpu.trap_msr_write(index);
    }
    cpu.flush();
    Ok(Guest {
        cpu,
        machine,
        pci_guard: guard,
        apic,
        io_apics,
        unit_registers,
        pci_window,
        power_ports,
        exits: Exits::new(),
        refusals: Refusals::default(),
    })
}

/// Whether units are to remap interrupts: not if the guest is told not to, because one that remaps
/// lets nothing else pass.
fn remapping_of(command_line: &str) -> InterruptRemapping {
    let is_off = |word| matches!(word, "intremap=off" | "nointremap");
    if command_line.split_ascii_whitespace().any(is_off) {
        InterruptRemapping::Forbidden
    } else {
        InterruptRemapping::WhereAvailable
    }
}

/// Start and end of the page at `start`.
fn page(start: Hpa) -> (Hpa, Hpa) {
    (start, after(start, PAGE_SIZE_BYTES))
}

fn after(start: Hpa, len_bytes: u64) -> Hpa {
    Hpa::new(start.as_u64().saturating_add(len_bytes))
}

/// The guard of configuration space, with every function as it is now.
fn guard(pci: &mut Pci, functions: &[Function]) -> Result<PciGuard, LinuxError> {
    let mut guard = PciGuard::default();
    for function in functions {
        let rom_len_bytes = pci.measure_rom(function);
        let bars = function.bars.map(|bar| match bar {
            Some(Bar::Memory { len_bytes, .. }) => len_bytes,
            _ => 0,
        });
        let guarded = Guarded::new(
            function.source_id,
            function.class,
            function.bridge.is_some(),
            bars,
            rom_len_bytes,
            |offset| pci.read(function.source_id, offset),
        );
        guard
            .add(guarded)
            .ok_or(LinuxError::Full("PCI functions"))?;
    }
    Ok(guard)
}

/// What the run showed, for people and machines.
fn summary(guest: &Guest<Processor>, stop: Stop) {
    println!();
    match stop {
        Stop::PowerOff { .. } => println!("the guest powered off"),
        _ => {
            log::error!("the guest stopped: {stop:x?}");
            log::error!("{:x?}", guest.cpu.registers());
        }
    }
    let machine = &guest.machine;
    for (record, outcome) in &machine.faults {
        println!("{}", Explained(record, outcome));
    }
    for refused in guest.refusals.last() {
        println!("{refused}");
    }
    report::exits(&guest.exits.figures());
    let unit = machine
        .units
        .first()
        .map(Unit::statistics)
        .unwrap_or_default();
    let host = machine.hardware.statistics();
    let shown = machine.hardware.virtual_unit_statistics();
    report::totals(&[
        ("bindings", host.binds),
        ("unbindings", host.unbinds),
        ("in-place-replacements", host.replaced_in_place),
        ("bind-errors", host.bind_errors),
        ("guest-descriptors", shown.descriptors),
        ("guest-invalidations", shown.invalidations),
        ("guest-waits", shown.waits),
        ("guest-queue-errors", shown.queue_errors),
        ("shadow-pages", host.shadow_pages),
        ("shadow-table-reads", host.shadow_table_reads),
        ("shadows-dropped", host.shadows_dropped),
        ("submissions", unit.submissions),
        ("descriptors", unit.descriptors),
        ("faults-to-guest", host.faults_to_guest),
        ("faults-to-host", host.faults_to_host),
        ("quarantines", host.quarantines),
        ("interrupts", machine.environment.delivered_interrupts()),
        ("refused-pci-writes", guest.refusals.pci),
        ("refused-interrupts", guest.refusals.interrupts),
    ]);
}
