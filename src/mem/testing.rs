//! A hypervisor in a test's own memory.

extern crate std;

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

use super::frames::zero_run;
use super::{FrameError, FramePool, FrameRun, Frames, HostMemory, Owner, Platform};
use crate::arch::address::Hpa;
use crate::arch::id::SourceId;

/// Where the pool starts. Memory elsewhere reads as what was stored there, or all ones.
pub(crate) const POOL: Hpa = Hpa::new(0x4000_0000);

type StoreHook = Box<dyn FnMut(&TestHypervisor)>;

/// Sparse memory, a frame pool, and a clock that moves with each look at it.
pub(crate) struct TestHypervisor {
    memory: RefCell<BTreeMap<u64, u64>>,
    /// What hardware sees that does not snoop: lines as they were when they were last flushed.
    flushed_memory: RefCell<BTreeMap<u64, u64>>,
    on_store: RefCell<Option<StoreHook>>,
    allocations_left: Cell<Option<u32>>,
    pub(crate) pool: FramePool<64, 2>,
    clock: Cell<u64>,
    pub(crate) flushed: RefCell<Vec<u64>>,
    pub(crate) stores: Cell<u64>,
    pub(crate) loads: Cell<u64>,
    pub(crate) fences: Cell<u64>,
}

impl TestHypervisor {
    /// A pool of `frames` frames, all of which owner 1 may use.
    pub(crate) fn new(frames: u32) -> Self {
        let pool = FramePool::new(POOL, u64::from(frames) * 4096);
        pool.set_quota(Owner::new(1), frames).unwrap();
        Self {
            memory: RefCell::default(),
            flushed_memory: RefCell::default(),
            on_store: RefCell::default(),
            allocations_left: Cell::new(None),
            fences: Cell::new(0),
            pool,
            clock: Cell::new(0),
            flushed: RefCell::default(),
            stores: Cell::new(0),
            loads: Cell::new(0),
        }
    }

    /// Lets only this many allocations succeed from now on; `None` lifts that.
    pub(crate) fn fail_allocations_after(&self, count: Option<u32>) {
        self.allocations_left.set(count);
    }

    /// Calls this after each 64-bit store and each flush: hardware that walks tables in between.
    pub(crate) fn on_store(&self, hook: impl FnMut(&Self) + 'static) {
        *self.on_store.borrow_mut() = Some(Box::new(hook));
    }

    /// Ends [`on_store`](Self::on_store).
    pub(crate) fn clear_hook(&self) {
        self.on_store.take();
    }

    /// What hardware reads that does not snoop, all ones where nothing was ever flushed.
    pub(crate) fn read_flushed(&self, at: Hpa) -> u64 {
        let memory = self.flushed_memory.borrow();
        memory.get(&at.as_u64()).copied().unwrap_or(u64::MAX)
    }

    /// What hardware reads that snoops.
    pub(crate) fn peek(&self, at: Hpa) -> u64 {
        let memory = self.memory.borrow();
        memory.get(&at.as_u64()).copied().unwrap_or(u64::MAX)
    }

    /// Hardware sets bits of a quadword.
    pub(crate) fn hardware_sets(&self, at: Hpa, bits: u64) {
        *self.memory.borrow_mut().entry(at.as_u64()).or_default() |= bits;
    }

    fn observe(&self) {
        let hook = self.on_store.take();
        if let Some(mut hook) = hook {
            hook(self);
            *self.on_store.borrow_mut() = Some(hook);
        }
    }
}

impl HostMemory for TestHypervisor {
    fn read64(&self, at: Hpa) -> u64 {
        self.loads.set(self.loads.get() + 1);
        self.memory
            .borrow()
            .get(&at.as_u64())
            .copied()
            .unwrap_or(u64::MAX)
    }
    fn write64(&self, at: Hpa, value: u64) {
        self.stores.set(self.stores.get() + 1);
        self.memory.borrow_mut().insert(at.as_u64(), value);
        self.observe();
    }
    fn write32(&self, at: Hpa, value: u32) {
        let aligned = at.as_u64() & !7;
        let shift = (at.as_u64() & 4) * 8;
        let old = self.read64(Hpa::new(aligned)) & !(0xffff_ffff << shift);
        self.write64(Hpa::new(aligned), old | (u64::from(value) << shift));
    }
    fn write128(&self, at: Hpa, value: u128) {
        self.write64(at, value as u64);
        self.write64(Hpa::new(at.as_u64() + 8), (value >> 64) as u64);
    }
    fn fetch_and64(&self, at: Hpa, mask: u64) -> u64 {
        let old = self.read64(at);
        self.write64(at, old & mask);
        old
    }
    fn compare_exchange64(&self, at: Hpa, current: u64, new: u64) -> u64 {
        let old = self.read64(at);
        if old == current {
            self.write64(at, new);
        }
        old
    }
    fn copy_from(&self, at: Hpa, into: &mut [u8]) {
        let mut last = (None, 0);
        for (address, byte) in (at.as_u64()..).zip(into) {
            if last.0 != Some(address & !7) {
                last = (Some(address & !7), self.read64(Hpa::new(address & !7)));
            }
            let word = last.1;
            *byte = word.to_le_bytes()[(address & 7) as usize];
        }
    }
    fn copy_to(&self, at: Hpa, from: &[u8]) {
        for (address, byte) in (at.as_u64()..).zip(from) {
            let aligned = Hpa::new(address & !7);
            let mut word = self.read64(aligned).to_le_bytes();
            word[(address & 7) as usize] = *byte;
            self.write64(aligned, u64::from_le_bytes(word));
        }
    }
    fn flush_line(&self, at: Hpa) {
        let line = at.as_u64() & !63;
        self.flushed.borrow_mut().push(line);
        for word in (line..line + 64).step_by(8) {
            if let Some(value) = self.memory.borrow().get(&word) {
                self.flushed_memory.borrow_mut().insert(word, *value);
            }
        }
        self.observe();
    }
    fn fence(&self) {
        self.fences.set(self.fences.get() + 1);
    }
}

impl Frames for TestHypervisor {
    fn allocate(&self, owner: Owner, order: u8) -> Result<FrameRun, FrameError> {
        if let Some(left) = self.allocations_left.get() {
            let capacity = self.pool.capacity();
            let left = left
                .checked_sub(1)
                .ok_or(FrameError::PoolExhausted { capacity, order })?;
            self.allocations_left.set(Some(left));
        }
        let run = self.pool.take(owner, order)?;
        zero_run(self, &run);
        Ok(run)
    }
    fn free(&self, run: FrameRun) {
        self.pool.give_back(run);
    }
}

impl Platform for TestHypervisor {
    fn now_nanoseconds(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }
    fn pause(&self) {}
    fn deliver_interrupt(&self, _: u32, _: u64, _: u32) {}
    fn set_bus_master(&self, _: SourceId, _: bool) {}
}
