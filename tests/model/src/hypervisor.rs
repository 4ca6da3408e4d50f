//! The hypervisor that the library calls, and a machine of memory, hypervisor and one unit.

use std::cell::{Cell, RefCell};

use vtd_nest::arch::address::Hpa;
use vtd_nest::arch::id::SourceId;
use vtd_nest::mem::frames::zero_run;
use vtd_nest::mem::{FrameError, FramePool, FrameRun, Frames, HostMemory, Owner, Platform};

use crate::clock::Clock;
use crate::config::ModelConfig;
use crate::memory::Memory;
use crate::unit::ModelUnit;

/// An interrupt that the library delivered to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeliveredInterrupt {
    /// The virtual unit.
    pub unit: u32,
    /// The message's address.
    pub address: u64,
    /// The message's data.
    pub data: u32,
}

/// A change of bus mastering that the library asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusMasterChange {
    /// The function.
    pub source_id: SourceId,
    /// On or off.
    pub enabled: bool,
}

/// Host memory, frames and platform for tests.
///
/// Time moves by itself: a little with each look at the clock, more with each pause. Units that
/// are [attached](Self::attach) do what is due then.
pub struct ModelHypervisor {
    memory: Memory,
    pool: FramePool<1024, 256>,
    clock: Clock,
    now_step: Cell<u64>,
    pause_step: Cell<u64>,
    /// Allocations that still succeed.
    allocations_left: Cell<Option<u32>>,
    units: RefCell<Vec<ModelUnit>>,
    interrupts: RefCell<Vec<DeliveredInterrupt>>,
    bus_master: RefCell<Vec<BusMasterChange>>,
}

impl ModelHypervisor {
    /// A hypervisor whose frames are the `len_bytes` from `frames` on. Every owner may have all
    /// of them; see [`pool`](Self::pool) for quotas.
    pub fn new(memory: &Memory, clock: &Clock, frames: Hpa, len_bytes: u64) -> Self {
        let pool = FramePool::new(frames, len_bytes);
        for owner in 0..256 {
            // Every number below 256 has a quota.
            let _ = pool.set_quota(Owner::new(owner), pool.capacity());
        }
        Self {
            memory: memory.clone(),
            pool,
            clock: clock.clone(),
            now_step: Cell::new(100),
            pause_step: Cell::new(1_000),
            allocations_left: Cell::new(None),
            units: RefCell::default(),
            interrupts: RefCell::default(),
            bus_master: RefCell::default(),
        }
    }

    /// Lets a unit do what is due whenever time moves.
    pub fn attach(&self, unit: &ModelUnit) {
        self.units.borrow_mut().push(unit.clone());
    }

    /// The memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The frame pool, for quotas and counts.
    pub fn pool(&self) -> &FramePool<1024, 256> {
        &self.pool
    }

    /// How far the clock moves with each look at it and with each pause, in nanoseconds.
    pub fn set_steps(&self, now: u64, pause: u64) {
        self.now_step.set(now);
        self.pause_step.set(pause);
    }

    /// Lets only this many allocations succeed from now on; `None` lifts that.
    pub fn fail_allocations_after(&self, count: Option<u32>) {
        self.allocations_left.set(count);
    }

    /// The interrupts delivered since the last call.
    pub fn take_interrupts(&self) -> Vec<DeliveredInterrupt> {
        self.interrupts.take()
    }

    /// The changes of bus mastering since the last call.
    pub fn take_bus_master_changes(&self) -> Vec<BusMasterChange> {
        self.bus_master.take()
    }

    fn pass(&self, nanoseconds: u64) {
        self.clock.advance(nanoseconds);
        for unit in self.units.borrow().iter() {
            unit.advance();
        }
    }
}

impl HostMemory for ModelHypervisor {
    fn read64(&self, at: Hpa) -> u64 {
        self.memory.read64(at)
    }
    fn write64(&self, at: Hpa, value: u64) {
        self.memory.write64(at, value);
    }
    fn write32(&self, at: Hpa, value: u32) {
        self.memory.write32(at, value);
    }
    fn write128(&self, at: Hpa, value: u128) {
        self.memory.write128(at, value);
    }
    fn fetch_and64(&self, at: Hpa, mask: u64) -> u64 {
        self.memory.fetch_and64(at, mask)
    }
    fn compare_exchange64(&self, at: Hpa, current: u64, new: u64) -> u64 {
        self.memory.compare_exchange64(at, current, new)
    }
    fn copy_from(&self, at: Hpa, into: &mut [u8]) {
        self.memory.copy_from(at, into);
    }
    fn copy_to(&self, at: Hpa, from: &[u8]) {
        self.memory.copy_to(at, from);
    }
    fn flush_line(&self, at: Hpa) {
        self.memory.flush_line(at);
    }
    fn fence(&self) {
        self.memory.fence();
    }
}

impl Frames for ModelHypervisor {
    fn allocate(&self, owner: Owner, order: u8) -> Result<FrameRun, FrameError> {
        if let Some(left) = self.allocations_left.get() {
            let capacity = self.pool.capacity();
            let left = left
                .checked_sub(1)
                .ok_or(FrameError::PoolExhausted { capacity, order })?;
            self.allocations_left.set(Some(left));
        }
        let run = self.pool.take(owner, order)?;
        zero_run(&self.memory, &run);
        Ok(run)
    }

    fn free(&self, run: FrameRun) {
        self.pool.give_back(run);
    }
}

impl Platform for ModelHypervisor {
    fn now_nanoseconds(&self) -> u64 {
        self.pass(self.now_step.get());
        self.clock.now()
    }

    fn pause(&self) {
        self.pass(self.pause_step.get());
    }

    fn deliver_interrupt(&self, unit: u32, address: u64, data: u32) {
        self.interrupts.borrow_mut().push(DeliveredInterrupt {
            unit,
            address,
            data,
        });
    }

    fn set_bus_master(&self, source_id: SourceId, enabled: bool) {
        self.bus_master
            .borrow_mut()
            .push(BusMasterChange { source_id, enabled });
    }
}

/// Memory, a hypervisor and one unit on one clock.
///
/// 4 GiB of sparse memory; the hypervisor's frames are the 256 MiB from 0x1000_0000 on.
pub struct Machine {
    /// The memory.
    pub memory: Memory,
    /// The hypervisor; the unit is attached.
    pub hypervisor: ModelHypervisor,
    /// The unit.
    pub unit: ModelUnit,
}

impl Machine {
    /// A machine after reset.
    pub fn new(config: ModelConfig) -> Self {
        let memory = Memory::new(0xfee0_0000);
        let clock = Clock::new();
        let hypervisor = ModelHypervisor::new(&memory, &clock, Hpa::new(0x1000_0000), 256 << 20);
        let unit = ModelUnit::new(config, &memory, &clock);
        hypervisor.attach(&unit);
        Self {
            memory,
            hypervisor,
            unit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_fail_on_demand_and_frames_come_back_zero() {
        let machine = Machine::new(ModelConfig::nesting_server());
        let h = &machine.hypervisor;
        let run = h.allocate(Owner::new(3), 0).unwrap();
        h.write64(run.address(), 7);
        let address = run.address();
        h.free(run);
        let free = h.pool().free_frames();
        h.fail_allocations_after(Some(0));
        assert!(h.allocate(Owner::HYPERVISOR, 0).is_err());
        assert_eq!(h.pool().free_frames(), free);
        h.fail_allocations_after(None);
        let again = h.allocate(Owner::new(3), 0).unwrap();
        assert_eq!(again.address(), address);
        assert_eq!(h.read64(address), 0);
    }

    #[test]
    fn what_the_library_asks_of_the_platform_is_recorded() {
        let machine = Machine::new(ModelConfig::nesting_server());
        let h = &machine.hypervisor;
        h.set_steps(5, 50);
        let start = h.now_nanoseconds();
        h.pause();
        assert_eq!(h.now_nanoseconds(), start + 55);
        let source_id = SourceId::from_u16(8);
        h.deliver_interrupt(2, 0xfee0_0000, 0x41);
        h.set_bus_master(source_id, false);
        assert_eq!(h.take_interrupts().len(), 1);
        assert_eq!(
            h.take_bus_master_changes(),
            [BusMasterChange {
                source_id,
                enabled: false
            }]
        );
        assert!(h.take_interrupts().is_empty());
    }
}
