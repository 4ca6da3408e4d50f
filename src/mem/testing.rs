//! A hypervisor in a test's own memory.

extern crate std;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

use super::frames::zero_run;
use super::{FrameError, FramePool, FrameRun, Frames, HostMemory, Owner, Platform};
use crate::arch::address::Hpa;
use crate::arch::id::SourceId;

/// Where the pool starts. Memory elsewhere reads as what was stored there, or all ones.
pub(crate) const POOL: Hpa = Hpa::new(0x4000_0000);

/// Sparse memory, a frame pool, and a clock that moves with each look at it.
pub(crate) struct TestHypervisor {
    memory: RefCell<BTreeMap<u64, u64>>,
    pub(crate) pool: FramePool<64, 2>,
    clock: Cell<u64>,
    pub(crate) flushed: RefCell<Vec<u64>>,
    pub(crate) stores: Cell<u64>,
    pub(crate) loads: Cell<u64>,
}

impl TestHypervisor {
    /// A pool of `frames` frames, all of which owner 1 may use.
    pub(crate) fn new(frames: u32) -> Self {
        let pool = FramePool::new(POOL, u64::from(frames) * 4096);
        pool.set_quota(Owner::new(1), frames).unwrap();
        Self {
            memory: RefCell::default(),
            pool,
            clock: Cell::new(0),
            flushed: RefCell::default(),
            stores: Cell::new(0),
            loads: Cell::new(0),
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
        self.flushed.borrow_mut().push(at.as_u64() & !63);
    }
    fn fence(&self) {}
}

impl Frames for TestHypervisor {
    fn allocate(&self, owner: Owner, order: u8) -> Result<FrameRun, FrameError> {
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
