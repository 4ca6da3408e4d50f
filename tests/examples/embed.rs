//! A whole embedder on a unit in software: environment, unit, machine, device, and a guest's first
//! look at its virtual unit. A real hypervisor replaces the model by `MmioRegisters`,
//! `DirectMemory` and its own `Platform`.
//!
//! `cargo run --example embed`

use std::sync::Mutex;

use vtd_model::{Machine, ModelConfig};
use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::Register64;
use vtd_nest::mem::Owner;
use vtd_nest::nest::{
    DeviceConfig, InterruptIsolation, Isolation, MachineConfig, MachineStore, PhysicalRange,
    Policy, ProtectedRanges,
};
use vtd_nest::paging::Rights;
use vtd_nest::unit::discovery::IsolationGroup;
use vtd_nest::unit::{Unit, UnitConfig};
use vtd_nest::viommu::{Poll, Progress};

/// At most 4 devices, 65,536 cached PASID entries, 256 host domain-ids, 16 shadow tables: 8 MiB that
/// the machine is made in, without a detour over the stack.
static MACHINE: Mutex<MachineStore<4, 65_536, 256, 16>> = Mutex::new(MachineStore::new());

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The machine: what `Hypervisor` and `Registers` are implemented for.
    let Machine {
        hypervisor,
        unit: registers,
        ..
    } = Machine::new(ModelConfig::nesting_server());

    // The physical unit: from here on all DMA behind it is blocked.
    let unit = Unit::probe(registers.clone(), UnitConfig::new(0, 46))?;
    unit.bring_up(&hypervisor)?;
    assert!(unit.is_protecting());
    let units = [unit];

    // A virtual machine with 64 MiB, and what its devices may never reach.
    let mut protected = ProtectedRanges::new();
    let unit_registers = PhysicalRange::new(Hpa::new(0xfed9_0000), 0x1000);
    protected
        .add(unit_registers)
        .map_err(|full| format!("{full:?}"))?;
    let config = MachineConfig {
        number: 0,
        owner: Owner::new(1),
        policy: Policy::default(),
        protected,
        hash_seed: 0x5eed_5eed_5eed_5eed,
        shadow_table_limit: 4096,
    };
    let mut place = MACHINE.lock().map_err(|error| error.to_string())?;
    let machine = place.start(&hypervisor, &units, config)?;
    machine.map_memory(
        &hypervisor,
        &units,
        Gpa::new(0),
        Hpa::new(0x4000_0000),
        64 << 20,
        Rights::READ_WRITE,
    )?;

    // A device. Its DMA goes to the machine's memory until the guest turns translation on.
    let source_id = SourceId::new(0, 2, 0).ok_or("no such function")?;
    let device = DeviceConfig::new(
        source_id,
        source_id,
        0,
        InterruptIsolation::WaivedByEmbedder,
        Isolation::Group(IsolationGroup::of(source_id)),
    );
    machine
        .assign(&hypervisor, &units, device)
        .map_err(|error| format!("{error:?}"))?;
    while machine.poll(&hypervisor, &units, 64) != Poll::Idle {}
    registers
        .dma_write(
            source_id,
            None,
            vtd_nest::arch::address::Iova::new(0x1000),
            b"by guest-physical address",
        )
        .map_err(|fault| format!("{fault:?}"))?;

    // VM exits on the virtual unit's page become these calls.
    let extended = machine.read_register(Register64::EXTENDED_CAPABILITY.offset().into(), 8);
    println!(
        "the guest sees ECAP {extended:#x}; its tables run {}",
        machine.offer().backend.name()
    );

    // The machine goes, and its memory is free to use.
    while place.destroy(&hypervisor, &units)? != Progress::Done {}
    registers.assert_no_violations();
    Ok(())
}
