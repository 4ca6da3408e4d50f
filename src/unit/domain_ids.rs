//! The allocator of a unit's domain-ids.

use crate::arch::id::DomainId;

const WORDS: usize = 1024;

/// The domain-ids of one unit, 8 KiB for the 65536 there can be.
///
/// Id 0 is never given: caching mode tags not-present entries with it (§6.2.3.1). Ids are given in
/// rising order and reused as late as possible, so that a use after free shows.
#[derive(Debug)]
pub(super) struct DomainIds {
    used: [u64; WORDS],
    /// Number of ids, 0 included.
    count: u32,
    free: u32,
    next: u32,
}

impl DomainIds {
    /// The ids of `bits` bits (`CAP.ND`); more than 16 count as 16.
    pub(super) fn new(bits: u8) -> Self {
        let count = 1u32 << bits.min(16);
        let mut used = [0; WORDS];
        if let Some(first) = used.first_mut() {
            *first = 1;
        }
        Self {
            used,
            count,
            free: count - 1,
            next: 1,
        }
    }

    /// Number of ids that can still be had.
    pub(super) const fn free(&self) -> u32 {
        self.free
    }

    /// Takes an id.
    pub(super) fn allocate(&mut self) -> Option<DomainId> {
        if self.free == 0 {
            return None;
        }
        let id = self
            .find(self.next, self.count)
            .or_else(|| self.find(1, self.next))?;
        let word = self.used.get_mut(id as usize / 64)?;
        *word |= 1 << (id % 64);
        self.free = self.free.saturating_sub(1);
        self.next = id.saturating_add(1);
        Some(DomainId::new(id as u16))
    }

    /// Gives an id back. One that is not out is ignored.
    pub(super) fn release(&mut self, id: DomainId) {
        let id = u32::from(id.as_u16());
        if id == 0 || id >= self.count {
            return;
        }
        let bit = 1u64 << (id % 64);
        if let Some(word) = self.used.get_mut(id as usize / 64)
            && *word & bit != 0
        {
            *word &= !bit;
            self.free = self.free.saturating_add(1);
        }
    }

    /// The lowest free id in `from..to`.
    fn find(&self, from: u32, to: u32) -> Option<u32> {
        let mut start = from;
        while start < to {
            let word = *self.used.get(start as usize / 64)?;
            let below = (1u64 << (start % 64)) - 1;
            let base = start & !63;
            let taken = word | below;
            if taken != u64::MAX {
                let id = base.saturating_add(taken.trailing_ones());
                return (id < to).then_some(id);
            }
            start = base.saturating_add(64);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_but_zero_is_given_once_and_then_none() {
        // §11.4.2: ND = 0 means 4 bits, ND = 6 means 16.
        for bits in [4, 6, 8, 16] {
            let mut ids = DomainIds::new(bits);
            assert_eq!(ids.free(), (1 << bits) - 1);
            for expected in 1..1u32 << bits {
                assert_eq!(
                    ids.allocate(),
                    Some(DomainId::new(expected as u16)),
                    "{bits}"
                );
            }
            assert_eq!((ids.allocate(), ids.free()), (None, 0));
        }
    }

    #[test]
    fn released_ids_come_back_last_and_a_second_release_does_nothing() {
        let mut ids = DomainIds::new(4);
        let first = ids.allocate().unwrap();
        let second = ids.allocate().unwrap();
        ids.release(first);
        ids.release(first);
        ids.release(DomainId::ZERO);
        ids.release(DomainId::new(16));
        ids.release(DomainId::new(9));
        assert_eq!(ids.free(), 14);
        for expected in 3..16 {
            assert_eq!(ids.allocate(), Some(DomainId::new(expected)));
        }
        assert_eq!(ids.allocate(), Some(first));
        assert_eq!(ids.allocate(), None);
        ids.release(second);
        assert_eq!(ids.allocate(), Some(second));
    }
}
