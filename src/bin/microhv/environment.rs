//! What the hypervisor provides to the library: memory, frames, time and interrupts.

use core::sync::atomic::{AtomicU64, Ordering};

use heapless::Deque;
use spin::Mutex;
use vtd_nest::arch::address::Hpa;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::interrupt::Interrupt;
use vtd_nest::mem::frames::zero_run;
use vtd_nest::mem::{FrameError, FramePool, FrameRun, Frames, HostMemory, Owner, Platform};

use crate::clock;
use crate::pci::Pci;
use crate::ram::Ram;

/// Words of the frame pool's bitmap: 64 frames each.
const POOL_WORDS: usize = 64;
/// Interrupt messages on their way to the guest; a unit has three events.
const MESSAGES: usize = 4;
/// Owners of frames: the hypervisor and two machines.
const OWNERS: usize = 3;

/// Bytes of memory that the frame pool takes.
pub(crate) const POOL_LEN_BYTES: u64 = POOL_WORDS as u64 * 64 * 4096;

/// The hypervisor, as the library sees it.
pub(crate) struct Environment {
    memory: Ram,
    pool: FramePool<POOL_WORDS, OWNERS>,
    pci: Mutex<Pci>,
    interrupts: AtomicU64,
    /// Messages on their way to the guest.
    messages: Mutex<Deque<(u64, u32), MESSAGES>>,
}

impl Environment {
    /// `memory` holds the pool, from `pool` on, and the guest's memory.
    pub(crate) fn new(memory: Ram, pool: Hpa, pci: Pci) -> Self {
        Self {
            memory,
            pool: FramePool::new(pool, POOL_LEN_BYTES),
            pci: Mutex::new(pci),
            interrupts: AtomicU64::new(0),
            messages: Mutex::new(Deque::new()),
        }
    }

    /// The pool, to set quotas.
    pub(crate) fn pool(&self) -> &FramePool<POOL_WORDS, OWNERS> {
        &self.pool
    }

    /// The PCI devices.
    pub(crate) fn pci(&self) -> &Mutex<Pci> {
        &self.pci
    }

    /// Takes the next interrupt message of the guest's unit, address and data, to deliver it.
    pub(crate) fn next_interrupt(&self) -> Option<(u64, u32)> {
        self.messages.lock().pop_front()
    }

    /// Interrupt messages that the guest's unit has sent.
    pub(crate) fn delivered_interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }
}

impl HostMemory for Environment {
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

impl Frames for Environment {
    fn allocate(&self, owner: Owner, order: u8) -> Result<FrameRun, FrameError> {
        let run = self.pool.take(owner, order)?;
        zero_run(&self.memory, &run);
        Ok(run)
    }

    fn free(&self, run: FrameRun) {
        self.pool.give_back(run);
    }
}

impl Platform for Environment {
    /// Ticks of the time-stamp counter stand for nanoseconds: bounds need no more.
    fn now_nanoseconds(&self) -> u64 {
        clock::read_ticks()
    }

    fn pause(&self) {
        core::hint::spin_loop();
    }

    fn deliver_interrupt(&self, unit: u32, address: u64, data: u32) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        // What has no room is of no use: the same message is on its way.
        let _ = self.messages.lock().push_back((address, data));
        log::debug!("machine {unit}: interrupt {address:#x}, {data:#x}");
    }

    /// The one guest owns every processor that there is for it, and all of their vectors.
    fn route_interrupt(&self, _unit: u32, interrupt: &Interrupt) -> Option<Interrupt> {
        Some(*interrupt)
    }

    fn set_bus_master(&self, source_id: SourceId, enabled: bool) {
        self.pci.lock().set_bus_master(source_id, enabled);
    }
}
