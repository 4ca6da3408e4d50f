//! Page frames for tables and queues: a fixed pool, an owner and a quota for each frame.
//!
//! A [`FrameRun`] is the only right to a run of frames and cannot be copied. Runs that hardware
//! may still walk travel in a [`FrameChain`], which can only be freed with the proof that the
//! invalidation completed.

use core::mem;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use super::host_memory::HostMemory;
use crate::arch::address::{Hpa, PAGE_SIZE_BYTES};
use crate::arch::told::{Told, display_as_told};

/// Who a frame is charged to: the hypervisor (0) or a virtual machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner(u16);

impl Owner {
    /// The hypervisor itself: root tables, queues.
    pub const HYPERVISOR: Self = Self(0);

    /// An owner by number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The owner's number, which indexes the quota table.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// Why no frames were given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// The pool has no free run of this order (2^order frames) left.
    PoolExhausted {
        /// Capacity of the pool in frames.
        capacity: u32,
        /// Order of the run asked for.
        order: u8,
    },
    /// The owner would exceed its quota.
    QuotaExceeded {
        /// The owner that asked.
        owner: Owner,
        /// Its quota in frames.
        quota: u32,
    },
    /// The owner has no quota: its number is beyond the table.
    UnknownOwner(Owner),
}

impl FrameError {
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::PoolExhausted { capacity, order } => {
                Told::two("no run left in a pool of", capacity as u64, order as u64)
            }
            Self::QuotaExceeded { owner, quota } => Told::two(
                "quota exceeded of owner",
                owner.number() as u64,
                quota as u64,
            ),
            Self::UnknownOwner(owner) => Told::one("no quota for owner", owner.number() as u64),
        }
    }
}

display_as_told!(FrameError);

impl core::error::Error for FrameError {}

/// A run of 2^order zeroed, naturally aligned frames: the only right to use them.
#[must_use = "a dropped run is lost to the pool"]
#[derive(Debug)]
pub struct FrameRun {
    address: Hpa,
    order: u8,
    owner: Owner,
}

impl FrameRun {
    /// The right to a run. Only an implementation of [`Frames`] makes new ones.
    pub const fn new(address: Hpa, order: u8, owner: Owner) -> Self {
        Self {
            address,
            order,
            owner,
        }
    }

    /// Address of the first byte.
    pub const fn address(&self) -> Hpa {
        self.address
    }

    /// The run has 2^order frames.
    pub const fn order(&self) -> u8 {
        self.order
    }

    /// Who the run is charged to.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// Length in bytes.
    pub const fn len_bytes(&self) -> u64 {
        PAGE_SIZE_BYTES << (self.order & 31)
    }
}

/// A source of frames.
pub trait Frames {
    /// Gives a zeroed run of 2^order frames, aligned to its size, charged to `owner`.
    ///
    /// # Errors
    ///
    /// [`FrameError`]; nothing has changed then.
    fn allocate(&self, owner: Owner, order: u8) -> Result<FrameRun, FrameError>;

    /// Takes a run back. Nothing may use it any more, hardware included.
    fn free(&self, run: FrameRun);
}

/// Frames lost because a chain was dropped instead of being freed or put aside. Stays 0 in a
/// correct program.
static LOST_FRAMES: AtomicU64 = AtomicU64::new(0);

/// Number of frames lost by dropped chains since the start.
pub fn lost_frames() -> u64 {
    LOST_FRAMES.load(Ordering::Relaxed)
}

/// Single frames linked through their own first quadword.
///
/// The link has its low 12 bits clear, so hardware that still walks a frame of the chain as a
/// paging table reads it as not present. Dropping a chain that is not empty loses its frames:
/// they are counted and never reused.
#[must_use = "a dropped chain is lost to the pool"]
#[derive(Debug)]
pub struct FrameChain {
    head: Option<Hpa>,
    /// The frame that leads to no other, if there is a head.
    last: Hpa,
    len: u32,
    owner: Owner,
}

impl FrameChain {
    /// An empty chain of frames charged to `owner`.
    pub const fn new(owner: Owner) -> Self {
        Self {
            head: None,
            last: Hpa::new(0),
            len: 0,
            owner,
        }
    }

    /// A chain of `count` fresh, zeroed frames.
    ///
    /// # Errors
    ///
    /// As [`Frames::allocate`]; what had been allocated is free again.
    pub fn allocate<H: HostMemory + Frames>(
        h: &H,
        owner: Owner,
        count: u32,
    ) -> Result<Self, FrameError> {
        let mut chain = Self::new(owner);
        while chain.len < count {
            match h.allocate(owner, 0) {
                Ok(run) => chain.push(h, run.address()),
                Err(error) => {
                    chain.free(h);
                    return Err(error);
                }
            }
        }
        Ok(chain)
    }

    /// Number of frames.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether the chain has no frames.
    pub const fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// Adds a frame that belongs to the chain's owner.
    pub(crate) fn push<H: HostMemory>(&mut self, h: &H, frame: Hpa) {
        h.write64(frame, self.head.map_or(0, Hpa::as_u64));
        if self.head.is_none() {
            self.last = frame;
        }
        self.head = Some(frame);
        self.len = self.len.saturating_add(1);
    }

    /// Takes a frame out, its first quadword zeroed again.
    pub(crate) fn pop<H: HostMemory>(&mut self, h: &H) -> Option<Hpa> {
        let frame = self.head?;
        let next = h.read64(frame);
        h.write64(frame, 0);
        self.len = self.len.saturating_sub(1);
        self.head = (self.len != 0).then_some(Hpa::new(next));
        Some(frame)
    }

    /// Returns all frames to the pool. Nothing may use them any more, hardware included.
    pub(crate) fn free<H: HostMemory + Frames>(mut self, h: &H) {
        self.free_some(h, self.len);
    }

    /// Returns `most` frames to the pool, as [`free`](Self::free) does.
    pub(crate) fn free_some<H: HostMemory + Frames>(&mut self, h: &H, most: u32) {
        for _ in 0..most {
            let Some(frame) = self.pop(h) else {
                return;
            };
            h.free(FrameRun::new(frame, 0, self.owner));
        }
    }

    /// Moves all frames of `other` to this chain, by one store.
    pub(crate) fn append<H: HostMemory>(&mut self, h: &H, other: Self) {
        if let Some(head) = other.head {
            match self.head {
                Some(next) => h.write64(other.last, next.as_u64()),
                None => self.last = other.last,
            }
            self.head = Some(head);
            self.len = self.len.saturating_add(other.len);
        }
        mem::forget(other);
    }
}

impl Drop for FrameChain {
    fn drop(&mut self) {
        LOST_FRAMES.fetch_add(u64::from(self.len), Ordering::Relaxed);
    }
}

/// A fixed pool over one contiguous range of host memory.
///
/// `WORDS` × 64 frames at most, quotas for `OWNERS` owners; owner 0 is the hypervisor. Frames are
/// found by first fit from a moving cursor, so an allocation's cost does not grow with what is in
/// use as long as the pool is not nearly full; it never exceeds one pass over the bitmap.
///
/// Locking: one internal lock, held for a bitmap pass; the frames are zeroed outside it.
pub struct FramePool<const WORDS: usize, const OWNERS: usize> {
    base: Hpa,
    count: u32,
    state: Mutex<PoolState<WORDS, OWNERS>>,
}

struct PoolState<const WORDS: usize, const OWNERS: usize> {
    /// One bit a frame, set while in use.
    used: [u64; WORDS],
    cursor: usize,
    free: u32,
    quota: [u32; OWNERS],
    charged: [u32; OWNERS],
}

impl<const WORDS: usize, const OWNERS: usize> FramePool<WORDS, OWNERS> {
    /// A pool of the whole 4-KiB frames in `len_bytes` from `base` on, as far as the capacity
    /// reaches. The range is memory that nothing else uses. Every owner's quota starts at 0;
    /// the hypervisor's is unlimited.
    pub fn new(base: Hpa, len_bytes: u64) -> Self {
        let start = base.as_u64().saturating_add(PAGE_SIZE_BYTES - 1) & !(PAGE_SIZE_BYTES - 1);
        let end = base.as_u64().saturating_add(len_bytes);
        let frames = end.saturating_sub(start) / PAGE_SIZE_BYTES;
        let count = frames.min(WORDS as u64 * 64).min(u64::from(u32::MAX)) as u32;
        let mut quota = [0; OWNERS];
        if let Some(first) = quota.first_mut() {
            *first = u32::MAX;
        }
        Self {
            base: Hpa::new(start),
            count,
            state: Mutex::new(PoolState {
                used: [0; WORDS],
                cursor: 0,
                free: count,
                quota,
                charged: [0; OWNERS],
            }),
        }
    }

    /// Number of frames in the pool.
    pub const fn capacity(&self) -> u32 {
        self.count
    }

    /// Number of frames not in use.
    pub fn free_frames(&self) -> u32 {
        self.state.lock().free
    }

    /// Number of frames charged to an owner; 0 for one beyond the table.
    pub fn charged_frames(&self, owner: Owner) -> u32 {
        self.state
            .lock()
            .charged
            .get(usize::from(owner.number()))
            .copied()
            .unwrap_or(0)
    }

    /// Sets an owner's quota in frames. Frames already charged stay.
    ///
    /// # Errors
    ///
    /// [`FrameError::UnknownOwner`] beyond the table.
    pub fn set_quota(&self, owner: Owner, frames: u32) -> Result<(), FrameError> {
        match self.state.lock().quota.get_mut(usize::from(owner.number())) {
            Some(quota) => {
                *quota = frames;
                Ok(())
            }
            None => Err(FrameError::UnknownOwner(owner)),
        }
    }

    /// Takes a run of 2^order frames, not yet zeroed.
    ///
    /// # Errors
    ///
    /// [`FrameError`]; nothing has changed then.
    pub fn take(&self, owner: Owner, order: u8) -> Result<FrameRun, FrameError> {
        let index = usize::from(owner.number());
        let mut state = self.state.lock();
        let exhausted = FrameError::PoolExhausted {
            capacity: self.count,
            order,
        };
        let frames = 1u32.checked_shl(u32::from(order)).ok_or(exhausted)?;
        let (Some(&quota), Some(&charged)) = (state.quota.get(index), state.charged.get(index))
        else {
            return Err(FrameError::UnknownOwner(owner));
        };
        let wanted = charged.saturating_add(frames);
        if wanted > quota {
            return Err(FrameError::QuotaExceeded { owner, quota });
        }
        // Alignment is that of the address, not of the index in the pool.
        let first_page = self.base.page_number();
        let frame = state
            .find_run(first_page, self.count, frames)
            .ok_or(exhausted)?;
        state.mark(frame, frames, true);
        state.free = state.free.saturating_sub(frames);
        if let Some(charged) = state.charged.get_mut(index) {
            *charged = wanted;
        }
        let address = Hpa::new(
            self.base
                .as_u64()
                .wrapping_add(u64::from(frame) * PAGE_SIZE_BYTES),
        );
        Ok(FrameRun::new(address, order, owner))
    }

    /// Takes a run back. A run that is not of this pool is ignored.
    pub fn give_back(&self, run: FrameRun) {
        let Some(offset) = run.address().as_u64().checked_sub(self.base.as_u64()) else {
            return;
        };
        let frame = offset / PAGE_SIZE_BYTES;
        let frames = 1u32 << (run.order() & 31);
        if frame.saturating_add(u64::from(frames)) > u64::from(self.count) {
            return;
        }
        let mut state = self.state.lock();
        state.mark(frame as u32, frames, false);
        state.free = state.free.saturating_add(frames);
        if let Some(charged) = state.charged.get_mut(usize::from(run.owner().number())) {
            *charged = charged.saturating_sub(frames);
        }
    }
}

impl<const WORDS: usize, const OWNERS: usize> PoolState<WORDS, OWNERS> {
    fn is_used(&self, frame: u32) -> bool {
        self.used
            .get(frame as usize / 64)
            .is_none_or(|word| word >> (frame % 64) & 1 == 1)
    }

    fn mark(&mut self, first: u32, frames: u32, used: bool) {
        for frame in first..first.saturating_add(frames) {
            if let Some(word) = self.used.get_mut(frame as usize / 64) {
                let bit = 1u64 << (frame % 64);
                if used {
                    *word |= bit;
                } else {
                    *word &= !bit;
                }
            }
        }
    }

    /// Finds `frames` free frames whose page number is a multiple of `frames`.
    fn find_run(&mut self, first_page: u64, count: u32, frames: u32) -> Option<u32> {
        if frames == 1 {
            return self.find_single(count);
        }
        let misalignment = (first_page % u64::from(frames)) as u32;
        let mut frame = (frames - misalignment) % frames;
        while frame.checked_add(frames).is_some_and(|end| end <= count) {
            if (frame..frame + frames).all(|frame| !self.is_used(frame)) {
                return Some(frame);
            }
            frame = frame.saturating_add(frames);
        }
        None
    }

    fn find_single(&mut self, count: u32) -> Option<u32> {
        let words = (count as usize).div_ceil(64).min(WORDS);
        for step in 0..words {
            let index = self.cursor.wrapping_add(step).checked_rem(words)?;
            let word = *self.used.get(index)?;
            if word != u64::MAX {
                let frame = (index as u32)
                    .saturating_mul(64)
                    .saturating_add(word.trailing_ones());
                if frame < count {
                    self.cursor = index;
                    return Some(frame);
                }
            }
        }
        None
    }
}

/// Zeroes a run: the part of [`Frames::allocate`] that every implementation over a
/// [`FramePool`] shares.
pub fn zero_run<M: HostMemory + ?Sized>(memory: &M, run: &FrameRun) {
    let mut offset = 0;
    while offset < run.len_bytes() {
        if let Some(at) = run.address().checked_add(offset) {
            memory.write64(at, 0);
        }
        offset += 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::testing::TestHypervisor;

    // G5: the count is one for all tests, so others may add to it.
    #[test]
    fn a_dropped_chain_is_lost_and_counted_and_a_freed_one_is_neither() {
        let h = TestHypervisor::new(8);
        let vm = Owner::new(1);
        let before = lost_frames();
        drop(FrameChain::allocate(&h, vm, 3).unwrap());
        assert!(lost_frames() >= before + 3);
        assert_eq!(h.pool.charged_frames(vm), 3);
        FrameChain::allocate(&h, vm, 5).unwrap().free(&h);
        assert_eq!(h.pool.charged_frames(vm), 3);
    }

    #[test]
    fn pool_gives_aligned_disjoint_runs_and_takes_them_back() {
        let pool = FramePool::<4, 2>::new(Hpa::new(0x1_3000), 200 * PAGE_SIZE_BYTES);
        assert_eq!(pool.capacity(), 200);
        let single = pool.take(Owner::HYPERVISOR, 0).unwrap();
        let run = pool.take(Owner::HYPERVISOR, 5).unwrap();
        assert_eq!(run.address().as_u64() % run.len_bytes(), 0);
        assert!(
            single.address() < run.address()
                || single.address().as_u64() >= run.address().as_u64() + run.len_bytes()
        );
        assert_eq!(pool.free_frames(), 200 - 33);
        let again = run.address();
        pool.give_back(run);
        assert_eq!(pool.take(Owner::HYPERVISOR, 5).unwrap().address(), again);
    }

    #[test]
    fn quota_and_exhaustion_are_typed_and_change_nothing() {
        let pool = FramePool::<1, 2>::new(Hpa::new(0), 64 * PAGE_SIZE_BYTES);
        let vm = Owner::new(1);
        assert_eq!(
            pool.take(vm, 0).unwrap_err(),
            FrameError::QuotaExceeded {
                owner: vm,
                quota: 0
            }
        );
        pool.set_quota(vm, 2).unwrap();
        let first = pool.take(vm, 1).unwrap();
        assert_eq!(
            pool.take(vm, 0).unwrap_err(),
            FrameError::QuotaExceeded {
                owner: vm,
                quota: 2
            }
        );
        assert_eq!(pool.charged_frames(vm), 2);
        pool.give_back(first);
        assert_eq!(pool.charged_frames(vm), 0);
        assert_eq!(
            pool.take(Owner::new(2), 0).unwrap_err(),
            FrameError::UnknownOwner(Owner::new(2))
        );
        for _ in 0..64 {
            let _ = pool.take(Owner::HYPERVISOR, 0).unwrap();
        }
        assert_eq!(
            pool.take(Owner::HYPERVISOR, 0).unwrap_err(),
            FrameError::PoolExhausted {
                capacity: 64,
                order: 0
            }
        );
        assert_eq!(
            pool.take(Owner::HYPERVISOR, 60).unwrap_err(),
            FrameError::PoolExhausted {
                capacity: 64,
                order: 60
            }
        );
    }
}
