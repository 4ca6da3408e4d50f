//! The hypervisor that the library calls.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vtd_nest::arch::address::Hpa;
use vtd_nest::arch::id::SourceId;
use vtd_nest::mem::frames::zero_run;
use vtd_nest::mem::{FrameError, FramePool, FrameRun, Frames, HostMemory, Owner, Platform};

use crate::pci::Pci;
use crate::ram::{Ram, RamLayout};

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

/// Host memory, frames and platform of one machine.
///
/// Memory is the emulated machine's. Time is this process's: nothing here waits for virtual time.
/// Bus mastering is switched in the machine, and recorded.
pub struct QtestHypervisor {
    ram: Arc<Ram>,
    pci: Pci,
    pool: FramePool<1024, 256>,
    start: Instant,
    records: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    /// Allocations that still succeed.
    allocations_left: Option<u32>,
    interrupts: Vec<DeliveredInterrupt>,
    bus_master: Vec<BusMasterChange>,
}

impl QtestHypervisor {
    /// A hypervisor with all frames free. Every owner may have all of them; see
    /// [`pool`](Self::pool) for quotas.
    pub(crate) fn new(ram: &Arc<Ram>, pci: Pci) -> Self {
        let frames = ram.layout().frames;
        let pool = FramePool::new(frames.start, frames.len_bytes);
        for owner in 0..256 {
            // Every number below 256 has a quota.
            let _ = pool.set_quota(Owner::new(owner), pool.capacity());
        }
        Self {
            ram: Arc::clone(ram),
            pci,
            pool,
            start: Instant::now(),
            records: Mutex::default(),
        }
    }

    /// The machine's memory.
    pub fn ram(&self) -> RamLayout {
        self.ram.layout()
    }

    /// The frame pool, for quotas and counts.
    pub fn pool(&self) -> &FramePool<1024, 256> {
        &self.pool
    }

    /// Lets only this many allocations succeed from now on; `None` lifts that.
    pub fn fail_allocations_after(&self, count: Option<u32>) {
        self.records().allocations_left = count;
    }

    /// The interrupts delivered since the last call.
    pub fn take_interrupts(&self) -> Vec<DeliveredInterrupt> {
        std::mem::take(&mut self.records().interrupts)
    }

    /// The changes of bus mastering since the last call.
    pub fn take_bus_master_changes(&self) -> Vec<BusMasterChange> {
        std::mem::take(&mut self.records().bus_master)
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostMemory for QtestHypervisor {
    fn read64(&self, at: Hpa) -> u64 {
        self.ram.memory().read64(at)
    }
    fn write64(&self, at: Hpa, value: u64) {
        self.ram.memory().write64(at, value);
    }
    fn write32(&self, at: Hpa, value: u32) {
        self.ram.memory().write32(at, value);
    }
    fn write128(&self, at: Hpa, value: u128) {
        self.ram.memory().write128(at, value);
    }
    fn fetch_and64(&self, at: Hpa, mask: u64) -> u64 {
        self.ram.memory().fetch_and64(at, mask)
    }
    fn compare_exchange64(&self, at: Hpa, current: u64, new: u64) -> u64 {
        self.ram.memory().compare_exchange64(at, current, new)
    }
    fn copy_from(&self, at: Hpa, into: &mut [u8]) {
        self.ram.memory().copy_from(at, into);
    }
    fn copy_to(&self, at: Hpa, from: &[u8]) {
        self.ram.memory().copy_to(at, from);
    }
    fn flush_line(&self, at: Hpa) {
        self.ram.memory().flush_line(at);
    }
    fn fence(&self) {
        self.ram.memory().fence();
    }
}

impl Frames for QtestHypervisor {
    fn allocate(&self, owner: Owner, order: u8) -> Result<FrameRun, FrameError> {
        if let Some(left) = &mut self.records().allocations_left {
            let capacity = self.pool.capacity();
            *left = left
                .checked_sub(1)
                .ok_or(FrameError::PoolExhausted { capacity, order })?;
        }
        let run = self.pool.take(owner, order)?;
        zero_run(self.ram.memory(), &run);
        Ok(run)
    }

    fn free(&self, run: FrameRun) {
        self.pool.give_back(run);
    }
}

impl Platform for QtestHypervisor {
    fn now_nanoseconds(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn pause(&self) {
        std::thread::yield_now();
    }

    fn deliver_interrupt(&self, unit: u32, address: u64, data: u32) {
        self.records().interrupts.push(DeliveredInterrupt {
            unit,
            address,
            data,
        });
    }

    fn set_bus_master(&self, source_id: SourceId, enabled: bool) {
        self.pci.set_bus_master(source_id, enabled);
        self.records()
            .bus_master
            .push(BusMasterChange { source_id, enabled });
    }
}
