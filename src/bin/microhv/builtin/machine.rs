//! One machine: its store, its memory on the host, and the one device that its guest has.

use spin::{Mutex, MutexGuard};
use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::arch::id::SourceId;
use vtd_nest::mem::{HostMemory, MmioRegisters, Owner};
use vtd_nest::nest::{
    DeviceConfig, InterruptIsolation, Isolation, MachineConfig, MachineError, MachineStore, Policy,
    ProtectedRanges, VirtualMachine,
};
use vtd_nest::paging::Rights;
use vtd_nest::unit::Unit;
use vtd_nest::viommu::Poll;
use vtd_nest::viommu::host::{BindError, Progress};

use crate::environment::Environment;
use crate::memory::Window;
use crate::pci::Function;

use super::hypervisor::SetUpError;

/// Machines that there are.
pub(crate) const MACHINES: usize = 2;
/// Bytes of memory of each guest.
pub(crate) const GUEST_LEN_BYTES: u64 = 16 << 20;
/// The source-id under which each guest knows its device: the same in both.
pub(crate) const GUEST_DEVICE: SourceId = SourceId::from_u16(0x0008);

/// Guest memory is laid out in pieces of this size, in another order than on the host.
const PIECE_LEN_BYTES: u64 = 64 << 10;
/// Frames a machine may use for tables and shadows.
const QUOTA_FRAMES: u32 = 1536;
/// Steps of one slice of a machine's work.
const SLICE: u32 = 256;
/// Slices after one exit before the work counts as endless.
const MAXIMUM_SLICES: u32 = 1 << 20;
/// Bytes between two places that [`Vm::sum_of_memory`] looks at; a DMA writes whole pages.
const SUM_STRIDE: u64 = 64;

type Store = MachineStore<4, 64, 16, 4>;
/// What is in a store.
pub(crate) type GuestMachine = VirtualMachine<4, 64, 16, 4>;

/// The machines, made where they stay.
static STORES: [Mutex<Store>; MACHINES] = [const { Mutex::new(Store::new()) }; MACHINES];

/// A device that waits for its machine.
pub(crate) struct Device {
    pub(crate) function: Function,
    pub(crate) registers: Window,
    /// Number of the unit that it is behind.
    pub(crate) unit: u8,
}

/// A machine.
pub(crate) struct Vm {
    store: &'static mut Store,
    pub(crate) owner: Owner,
    pub(crate) device: Device,
    /// Where its memory is on the host.
    pub(crate) memory: Hpa,
}

impl Vm {
    /// Makes the machine with this index, with [`GUEST_LEN_BYTES`] of host memory from `memory` on,
    /// and gives it its device.
    pub(crate) fn make(
        environment: &Environment,
        units: &[Unit<MmioRegisters>],
        index: usize,
        (policy, protected): (Policy, ProtectedRanges),
        memory: Hpa,
        device: Device,
    ) -> Result<Self, SetUpError> {
        // The hypervisor itself is owner 0.
        let owner = Owner::new(index as u16 + 1);
        let quota = environment.pool().set_quota(owner, QUOTA_FRAMES);
        quota.map_err(|error| SetUpError::Machine(MachineError::Frames(error)))?;
        let config = MachineConfig {
            number: owner.number().into(),
            owner,
            policy,
            protected,
            hash_seed: crate::clock::read_ticks(),
            shadow_table_limit: 4096,
        };
        let store = STORES.get(index).ok_or(SetUpError::Arena)?;
        let store = MutexGuard::leak(store.lock());
        let machine = store
            .start(environment, units, config)
            .map_err(SetUpError::Machine)?;
        map_memory(environment, units, machine, index, memory)?;
        let source_id = device.function.source_id;
        let remaps = (units.get(usize::from(device.unit))).is_some_and(Unit::remaps_interrupts);
        let config = DeviceConfig {
            pasid_bits: 20,
            ..DeviceConfig::new(
                source_id,
                GUEST_DEVICE,
                device.unit,
                if remaps {
                    InterruptIsolation::Required
                } else {
                    // The guests are part of the image, and take no interrupts.
                    InterruptIsolation::WaivedByEmbedder
                },
                // The emulator has no way from one device of the root bus to another.
                Isolation::AssertedByEmbedder,
            )
        };
        machine
            .assign(environment, units, config)
            .map_err(SetUpError::Assign)?;
        environment.pci().lock().set_bus_master(source_id, true);
        Ok(Self {
            store,
            owner,
            device,
            memory,
        })
    }

    /// The machine, unless it is destroyed.
    pub(crate) fn machine(&self) -> Option<&GuestMachine> {
        self.store.get()
    }

    /// The machine, unless it is destroyed, to work on.
    pub(crate) fn machine_mut(&mut self) -> Option<&mut GuestMachine> {
        self.store.get_mut()
    }

    /// Does the work that an exit left.
    pub(crate) fn work(&mut self, environment: &Environment, units: &[Unit<MmioRegisters>]) {
        let Some(machine) = self.store.get_mut() else {
            return;
        };
        for _ in 0..MAXIMUM_SLICES {
            match machine.poll(environment, units, SLICE) {
                Poll::Idle => break,
                Poll::Again => {}
                Poll::Wait => core::hint::spin_loop(),
            }
        }
    }

    /// Destroys the machine; whether it is gone.
    pub(crate) fn destroy(
        &mut self,
        environment: &Environment,
        units: &[Unit<MmioRegisters>],
    ) -> Result<bool, BindError> {
        for _ in 0..MAXIMUM_SLICES {
            if self.store.destroy(environment, units)? == Progress::Done {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A sum over the machine's memory on the host, which any DMA to it changes.
    pub(crate) fn sum_of_memory(&self, environment: &Environment) -> u64 {
        (0..GUEST_LEN_BYTES / SUM_STRIDE).fold(0, |sum: u64, index| {
            let at = Hpa::new(self.memory.as_u64() + index * SUM_STRIDE);
            sum.rotate_left(5)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(environment.read64(at))
        })
    }

    /// Whether a host-physical address is the machine's memory.
    pub(crate) fn has(&self, at: Hpa) -> bool {
        (at.as_u64().wrapping_sub(self.memory.as_u64())) < GUEST_LEN_BYTES
    }
}

/// Maps the memory of the machine with this index: each in an order of its own.
fn map_memory(
    environment: &Environment,
    units: &[Unit<MmioRegisters>],
    machine: &mut GuestMachine,
    index: usize,
    memory: Hpa,
) -> Result<(), SetUpError> {
    let pieces = GUEST_LEN_BYTES / PIECE_LEN_BYTES;
    for piece in 0..pieces {
        // 37 is odd, so it meets every piece.
        let place = (piece * 37 + 11 * index as u64) % pieces;
        let host = Hpa::new(memory.as_u64() + place * PIECE_LEN_BYTES);
        let guest = Gpa::new(piece * PIECE_LEN_BYTES);
        let rights = Rights::READ_WRITE;
        machine
            .map_memory(environment, units, guest, host, PIECE_LEN_BYTES, rights)
            .map_err(SetUpError::Machine)?;
    }
    Ok(())
}
