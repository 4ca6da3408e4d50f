//! The hypervisor: units brought up, one machine with one device, and the exits of its guest.

use heapless::Vec;
use spin::{Mutex, MutexGuard};
use vtd_nest::arch::address::{Gpa, Hpa, PAGE_SIZE_BYTES};
use vtd_nest::arch::register::FaultRecord;
use vtd_nest::mem::{GuestMemory, MmioRegisters, Owner};
use vtd_nest::nest::{
    AssignError, DeviceConfig, FaultOutcome, InterruptIsolation, Isolation, MachineConfig,
    MachineError, MachineStore, Policy, VirtualMachine,
};
use vtd_nest::paging::Rights;
use vtd_nest::unit::{InterruptRemapping, Step, Unit};
use vtd_nest::viommu::Poll;

use crate::console::println;
use crate::environment::{Environment, POOL_LEN_BYTES};
use crate::host::HostDevices;
use crate::memory::{MemoryError, Window};
use crate::pci::Function;
use crate::platform::Platform;
use crate::ram::Ram;
use crate::units::{self, DescribedUnits, UnitsError};

use super::edu::{self, EduError};
use super::guest::Machine;

/// Bytes of guest memory.
pub(crate) const GUEST_LEN_BYTES: u64 = 16 << 20;
/// Guest memory is laid out in pieces of this size, in another order than on the host.
const PIECE_LEN_BYTES: u64 = 64 << 10;
/// Frames the machine may use for tables and shadows.
const QUOTA_FRAMES: u32 = 2048;
/// The number and owner of the one machine.
const MACHINE: u16 = 1;
/// Steps of one slice of the machine's work.
const SLICE: u32 = 256;
/// Slices after one exit before the work counts as endless.
const MAXIMUM_SLICES: u32 = 1 << 20;
/// Hardware faults handled after one exit; the rest waits for the next.
const FAULTS_PER_EXIT: u32 = 8;

/// The one machine, made where it stays.
static MACHINE_STORE: Mutex<MachineStore<4, 64, 16, 4>> = Mutex::new(MachineStore::new());
/// What is in it.
pub(crate) type GuestMachine = VirtualMachine<4, 64, 16, 4>;

/// Why the hypervisor is not up. The hardware is left blocking what it can block.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum SetUpError {
    Units(UnitsError),
    Memory(MemoryError),
    /// There is no `edu` device.
    NoDevice,
    Device(EduError),
    /// The RAM for pool and guest cannot be used.
    Arena,
    Machine(MachineError),
    Assign(AssignError),
    /// A step with the hypervisor's own devices did not hold.
    OwnDevices,
}

/// All of it.
pub(crate) struct Hypervisor {
    pub(crate) environment: Environment,
    pub(crate) units: &'static [Unit<MmioRegisters>],
    pub(crate) machine: &'static mut GuestMachine,
    pub(crate) device: Function,
    registers: Window,
    unit: u8,
    /// Register page of the unit that the device is behind.
    pub(crate) unit_registers: Hpa,
    /// A page of RAM that is nobody's.
    pub(crate) canary: Hpa,
    /// What became of the hardware faults since it was last asked.
    pub(crate) faults: Vec<(FaultRecord, FaultOutcome), 16>,
}

impl Hypervisor {
    /// Owns every unit, so that all DMA is blocked; then makes the machine and gives it the device.
    pub(crate) fn set_up(platform: Platform, policy: Policy) -> Result<Self, SetUpError> {
        let Platform {
            mut memory,
            dmar,
            mut pci,
            functions,
            ..
        } = platform;
        let described = DescribedUnits::find(dmar).map_err(SetUpError::Units)?;

        let arena = memory
            .allocate(POOL_LEN_BYTES + GUEST_LEN_BYTES + PAGE_SIZE_BYTES, 2 << 20)
            .map_err(SetUpError::Memory)?;
        let pool = arena.start();
        let after = |offset| Hpa::new(pool.as_u64() + offset);
        let (guest_memory, canary) = (
            after(POOL_LEN_BYTES),
            after(POOL_LEN_BYTES + GUEST_LEN_BYTES),
        );
        let mut ram = Ram::new();
        ram.add(arena).ok_or(SetUpError::Arena)?;
        let protected = described
            .protected_ranges(&pci, &[(pool, POOL_LEN_BYTES)])
            .map_err(SetUpError::Units)?;

        let device = functions
            .iter()
            .find(|function| edu::is_edu(function))
            .ok_or(SetUpError::NoDevice)?
            .clone();
        let (unit, covering) = described
            .covering(device.source_id, &functions)
            .map_err(SetUpError::Units)?;
        let unit_registers = covering.base;
        let windows = described.windows(&memory).map_err(SetUpError::Units)?;
        // Bus masters stay off until every unit blocks.
        let registers = edu::open(&memory, &mut pci, &device).map_err(SetUpError::Device)?;
        pci.set_bus_master(device.source_id, false);
        let own = HostDevices::open(&memory, &mut pci, &functions, &described);
        let environment = Environment::new(ram, pool, pci);
        let units = units::bring_up(&environment, windows, InterruptRemapping::WhereAvailable)
            .map_err(SetUpError::Units)?;
        if !own.prove(&environment, units) {
            return Err(SetUpError::OwnDevices);
        }

        let owner = Owner::new(MACHINE);
        let quota = environment.pool().set_quota(owner, QUOTA_FRAMES);
        quota.map_err(|error| SetUpError::Machine(MachineError::Frames(error)))?;
        let config = MachineConfig {
            number: MACHINE.into(),
            owner,
            policy,
            protected,
            hash_seed: crate::clock::read_ticks(),
            shadow_table_limit: 4096,
        };
        let machine = MutexGuard::leak(MACHINE_STORE.lock())
            .start(&environment, units, config)
            .map_err(SetUpError::Machine)?;
        for piece in 0..GUEST_LEN_BYTES / PIECE_LEN_BYTES {
            // 37 is odd, so it meets every piece.
            let place = piece * 37 % (GUEST_LEN_BYTES / PIECE_LEN_BYTES);
            let host = Hpa::new(guest_memory.as_u64() + place * PIECE_LEN_BYTES);
            let guest = Gpa::new(piece * PIECE_LEN_BYTES);
            machine
                .map_memory(
                    &environment,
                    units,
                    guest,
                    host,
                    PIECE_LEN_BYTES,
                    Rights::READ_WRITE,
                )
                .map_err(SetUpError::Machine)?;
        }
        let config = DeviceConfig {
            pasid_bits: 20,
            ..DeviceConfig::new(
                device.source_id,
                device.source_id,
                unit,
                // The image takes no interrupts, and its one guest is part of it.
                InterruptIsolation::WaivedByEmbedder,
                // There is no other guest.
                Isolation::AssertedByEmbedder,
            )
        };
        machine
            .assign(&environment, units, config)
            .map_err(SetUpError::Assign)?;
        environment
            .pci()
            .lock()
            .set_bus_master(device.source_id, true);
        let mut hypervisor = Self {
            environment,
            units,
            machine,
            device,
            registers,
            unit,
            unit_registers,
            canary,
            faults: Vec::new(),
        };
        hypervisor.after_exit();
        Ok(hypervisor)
    }

    /// The unit that the device is behind.
    pub(crate) fn unit(&self) -> Option<&Unit<MmioRegisters>> {
        self.units.get(usize::from(self.unit))
    }

    /// Prints what the unit's tables say now of a request that was blocked, entry by entry.
    pub(crate) fn explain(&self, record: &FaultRecord) {
        let Some(unit) = self.unit() else {
            return;
        };
        let print_step = |step: &Step| println!("                    {step}");
        let request = unit.request_of(record);
        let explanation = unit.explain(&self.environment, &request, print_step);
        println!("                    {explanation}");
    }

    /// What the hypervisor does before it enters the guest again: the work that the exit left, and
    /// the faults of hardware.
    fn after_exit(&mut self) {
        for _ in 0..MAXIMUM_SLICES {
            match self.machine.poll(&self.environment, self.units, SLICE) {
                Poll::Idle => break,
                Poll::Again => {}
                Poll::Wait => core::hint::spin_loop(),
            }
        }
        for _ in 0..FAULTS_PER_EXIT {
            let Some(record) = self.unit().and_then(Unit::next_fault) else {
                return;
            };
            let outcome =
                self.machine
                    .handle_fault(&self.environment, self.units, self.unit, &record);
            // Enough room for a step; what does not fit was still handled.
            let _ = self.faults.push((record, outcome));
        }
    }
}

impl Machine for Hypervisor {
    fn read_memory(&mut self, at: Gpa, into: &mut [u8]) {
        if let Err(error) = self.machine.memory(&self.environment).read(at, into) {
            log::error!("guest load: {error:?}");
        }
    }

    fn write_memory(&mut self, at: Gpa, from: &[u8]) {
        if let Err(error) = self.machine.memory(&self.environment).write(at, from) {
            log::error!("guest store: {error:?}");
        }
    }

    fn read_unit(&mut self, offset: u64, len: u8) -> u64 {
        self.machine.read_register(offset, len)
    }

    fn write_unit(&mut self, offset: u64, len: u8, value: u64) {
        self.machine.write_register(offset, len, value);
        self.after_exit();
    }

    fn read_device(&mut self, offset: u64) -> u64 {
        // Read first: the faults of a DMA that has ended are recorded by then.
        let value = self.registers.read_u64(offset).unwrap_or(u64::MAX);
        self.after_exit();
        value
    }

    fn write_device(&mut self, offset: u64, value: u64) {
        let _ = self.registers.write_u64(offset, value);
    }

    fn pass_time(&mut self) {
        crate::clock::pass_time();
        self.after_exit();
    }
}
