//! The one machine: all of the RAM but the hypervisor's, every PCI function, one virtual unit in the
//! place of the physical one.

use heapless::Deque;
use spin::{Mutex, MutexGuard};
use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::FaultRecord;
use vtd_nest::mem::{GuestMemory, MmioRegisters, Owner};
use vtd_nest::nest::{
    AssignError, DeviceConfig, FaultOutcome, InterruptIsolation, Isolation, MachineConfig,
    MachineError, MachineStore, Policy, ProtectedRanges, VirtualMachine,
};
use vtd_nest::paging::Rights;
use vtd_nest::unit::discovery::{IsolationGroup, TopologyError};
use vtd_nest::unit::{FaultStorms, InterruptConfig, StormLimit, StormVerdict, Unit};
use vtd_nest::viommu::Poll;

use crate::environment::Environment;
use crate::pci::Function;
use crate::topology::Topology;

/// Frames the machine may use for tables and shadows.
const QUOTA_FRAMES: u32 = 3584;
/// The number and owner of the machine.
const MACHINE: u16 = 1;
/// Steps of one slice of the machine's work.
const SLICE: u32 = 256;
/// Slices after one exit before the work counts as endless.
const MAXIMUM_SLICES: u32 = 1 << 20;
/// Hardware faults handled after one exit; the rest waits for the next.
const FAULTS_PER_EXIT: u32 = 8;
/// Faults that are told at the end.
const FAULTS_KEPT: usize = 16;

type VirtualHardware = VirtualMachine<64, 256, 128, 64>;

/// Where the machine is: too large for the stack.
static STORE: Mutex<MachineStore<64, 256, 128, 64>> = Mutex::new(MachineStore::new());

/// What became of hardware faults.
pub(crate) type Fault = (FaultRecord, FaultOutcome);

/// The machine.
pub(crate) struct Machine {
    pub(crate) environment: Environment,
    pub(crate) units: &'static [Unit<MmioRegisters>],
    pub(crate) hardware: &'static mut VirtualHardware,
    /// The last faults.
    pub(crate) faults: Deque<Fault, FAULTS_KEPT>,
    /// Faults of what the machine does not have.
    storms: FaultStorms<16>,
}

/// Why the machine is not there.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum SetUpError {
    Machine(MachineError),
    Assign(AssignError),
    /// Which functions hardware keeps apart cannot be told.
    Topology(TopologyError),
}

impl From<MachineError> for SetUpError {
    fn from(error: MachineError) -> Self {
        Self::Machine(error)
    }
}

impl Machine {
    /// A machine with the memory of `ram` and all `functions`, all behind the one unit, which the
    /// `interrupt_sources` are behind too.
    pub(crate) fn new(
        environment: Environment,
        units: &'static [Unit<MmioRegisters>],
        protected: ProtectedRanges,
        ram: &[(Hpa, Hpa)],
        functions: &[Function],
        interrupt_sources: &[SourceId],
    ) -> Result<Self, SetUpError> {
        let owner = Owner::new(MACHINE);
        let quota = environment.pool().set_quota(owner, QUOTA_FRAMES);
        quota.map_err(MachineError::Frames)?;
        let config = MachineConfig {
            number: MACHINE.into(),
            owner,
            policy: Policy {
                // The whole table, so that the guest's indices are the unit's.
                interrupt_entries_order: InterruptConfig::new().table_order + 1,
                non_maskable_interrupts: true,
                ..Policy::default()
            },
            protected,
            hash_seed: crate::clock::read_ticks(),
            shadow_table_limit: 1 << 16,
        };
        // There is one machine as long as the image runs.
        let store = MutexGuard::leak(STORE.lock());
        let hardware = store.start(&environment, units, config)?;
        for (start, end) in ram {
            hardware.map_memory(
                &environment,
                units,
                Gpa::new(start.as_u64()),
                *start,
                end.as_u64().saturating_sub(start.as_u64()),
                Rights::READ_WRITE,
            )?;
        }
        let remaps = units.first().is_some_and(Unit::remaps_interrupts);
        let isolation = if remaps {
            InterruptIsolation::Required
        } else {
            // The one guest owns every interrupt of the machine.
            InterruptIsolation::WaivedByEmbedder
        };
        let topology = Topology(functions);
        for function in functions {
            let config = topology
                .device_config(function.source_id, 0, isolation)
                .map_err(SetUpError::Topology)?;
            match hardware.assign(&environment, units, config) {
                Ok(_) => {}
                // It stays blocked; the guest has all the others.
                Err(refused @ AssignError::ReservedMemory { .. }) => {
                    log::warn!("{}: {refused:?}", function.source_id);
                }
                Err(error) => return Err(SetUpError::Assign(error)),
            }
        }
        for &source_id in interrupt_sources.iter().filter(|_| remaps) {
            // An I/O APIC or a HPET, which shares its source-id with no other.
            let alone = Isolation::Group(IsolationGroup::of(source_id));
            let config = DeviceConfig::new(source_id, source_id, 0, isolation, alone);
            hardware
                .assign(&environment, units, config)
                .map_err(SetUpError::Assign)?;
        }
        let mut machine = Self {
            environment,
            units,
            hardware,
            faults: Deque::new(),
            storms: FaultStorms::new(StormLimit::DEFAULT),
        };
        machine.work();
        Ok(machine)
    }

    /// Reads guest memory; `None` where the guest's devices have none.
    pub(crate) fn read_memory(&self, at: u64, into: &mut [u8]) -> Option<()> {
        let memory = self.hardware.memory(&self.environment);
        memory.read(Gpa::new(at), into).ok()
    }

    /// Reads a quadword of guest memory.
    pub(crate) fn read_quadword(&self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read_memory(at, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Writes guest memory.
    pub(crate) fn write_memory(&self, at: u64, from: &[u8]) -> Option<()> {
        let memory = self.hardware.memory(&self.environment);
        memory.write(Gpa::new(at), from).ok()
    }

    /// Does what the last exit left: the virtual unit's work, and the faults of hardware.
    pub(crate) fn work(&mut self) {
        self.finish();
        for _ in 0..FAULTS_PER_EXIT {
            let Some(record) = self.units.first().and_then(Unit::next_fault) else {
                return;
            };
            let outcome = self
                .hardware
                .handle_fault(&self.environment, self.units, 0, &record);
            if matches!(outcome, FaultOutcome::NotOfThisMachine)
                && self.storms.count(&self.environment, &record) != StormVerdict::Handle
            {
                continue;
            }
            if self.faults.is_full() {
                let _ = self.faults.pop_front();
            }
            let _ = self.faults.push_back((record, outcome));
            self.finish();
        }
    }

    fn finish(&mut self) {
        for _ in 0..MAXIMUM_SLICES {
            match self.hardware.poll(&self.environment, self.units, SLICE) {
                Poll::Idle => return,
                Poll::Again => {}
                Poll::Wait => core::hint::spin_loop(),
            }
        }
        log::error!("the virtual unit's work does not end");
    }
}
