//! Runs of entries, each with one owner.

use super::super::error::UnitError;
use super::super::unit::Unit;
use crate::arch::interrupt::InterruptIndex;
use crate::mem::{Hypervisor, Owner, Registers};

/// Entries are handed out in runs of this many at least.
const GRANULE: u32 = 16;
/// Granules of the largest table.
const GRANULES: u32 = 0x1_0000 / GRANULE;
const WORDS: usize = GRANULES as usize / 64;

/// A run of entries of a unit's interrupt remapping table: the only right to set them.
///
/// Dropped, its entries stay as they are and are never handed out again.
#[must_use = "a dropped slice is lost to the table"]
#[derive(Debug)]
pub struct InterruptSlice {
    first: u16,
    count: u32,
    owner: Owner,
    /// Some entry was set, so that hardware may know of it.
    pub(super) is_used: bool,
}

impl InterruptSlice {
    /// The first entry. It is aligned to the length, rounded up to a power of two.
    pub const fn first(&self) -> InterruptIndex {
        InterruptIndex::new(self.first)
    }

    /// The number of entries.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Who it was handed out to.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// The entry that is this far into the slice; `None` beyond its end.
    pub const fn index(&self, offset: u32) -> Option<InterruptIndex> {
        if offset >= self.count {
            return None;
        }
        let index = (self.first as u32).saturating_add(offset);
        Some(InterruptIndex::new(index as u16))
    }

    /// How far into the slice an entry is; `None` if it is not in it.
    pub const fn offset(&self, index: InterruptIndex) -> Option<u32> {
        match (index.as_u16() as u32).checked_sub(self.first as u32) {
            Some(offset) if offset < self.count => Some(offset),
            _ => None,
        }
    }
}

/// Which entries are handed out.
#[derive(Debug)]
pub(super) struct SliceMap {
    /// The number of entries that there are.
    entries: u32,
    /// One bit a granule, set while it is handed out.
    used: [u64; WORDS],
}

impl SliceMap {
    pub(super) const fn new(entries: u32) -> Self {
        Self {
            entries,
            used: [0; WORDS],
        }
    }

    /// Number of granules that hold `count` entries, as a power of two.
    fn granules(count: u32) -> Option<u32> {
        count.div_ceil(GRANULE).max(1).checked_next_power_of_two()
    }

    fn is_used(&self, granule: u32) -> bool {
        let word = self.used.get(granule as usize / 64);
        word.is_none_or(|word| word >> (granule % 64) & 1 == 1)
    }

    fn mark(&mut self, first: u32, granules: u32, used: bool) {
        for granule in first..first.saturating_add(granules) {
            if let Some(word) = self.used.get_mut(granule as usize / 64) {
                let bit = 1 << (granule % 64);
                *word = if used { *word | bit } else { *word & !bit };
            }
        }
    }

    /// Takes the lowest free run of `count` entries, aligned to its length.
    fn allocate(&mut self, count: u32) -> Option<u16> {
        let granules = Self::granules(count)?;
        if count == 0 || count > self.entries {
            return None;
        }
        let limit = self.entries.div_ceil(GRANULE);
        let mut first = 0u32;
        while first.saturating_add(granules) <= limit {
            let mut run = first..first.saturating_add(granules);
            if !run.any(|granule| self.is_used(granule)) {
                self.mark(first, granules, true);
                return u16::try_from(first.saturating_mul(GRANULE)).ok();
            }
            first = first.saturating_add(granules);
        }
        None
    }

    fn release(&mut self, slice: &InterruptSlice) {
        if let Some(granules) = Self::granules(slice.count) {
            self.mark(u32::from(slice.first) / GRANULE, granules, false);
        }
    }
}

impl<R: Registers> Unit<R> {
    /// Number of entries of the unit's table, in use or not; 0 if it cannot remap interrupts.
    pub fn interrupt_entries(&self) -> u32 {
        if self.features.extended.has_interrupt_remapping() {
            self.interrupts.lock().slices.entries
        } else {
            0
        }
    }

    /// Hands out a run of absent entries, aligned to its length: 1 to 65536.
    ///
    /// # Errors
    ///
    /// [`UnitError::InterruptEntries`] if there is no such run.
    pub fn allocate_interrupt_entries(
        &self,
        owner: Owner,
        count: u32,
    ) -> Result<InterruptSlice, UnitError> {
        let capacity = self.interrupt_entries();
        let first = match capacity {
            0 => None,
            _ => self.interrupts.lock().slices.allocate(count),
        };
        let first = first.ok_or(UnitError::InterruptEntries {
            wanted: count,
            capacity,
        })?;
        Ok(InterruptSlice {
            first,
            count,
            owner,
            is_used: false,
        })
    }

    /// Takes a run of entries back: all of them are made absent, and hardware has confirmed it when
    /// this returns. Waits for that.
    ///
    /// # Errors
    ///
    /// [`UnitError::Queue`] if hardware does not confirm: the slice is given back. Its entries are
    /// absent in memory.
    pub fn release_interrupt_entries<H: Hypervisor>(
        &self,
        h: &H,
        mut slice: InterruptSlice,
    ) -> Result<(), (InterruptSlice, UnitError)> {
        if slice.is_used
            && let Err(error) = self.withdraw_slice(h, &mut slice)
        {
            return Err((slice, error));
        }
        self.interrupts.lock().slices.release(&slice);
        Ok(())
    }

    fn withdraw_slice<H: Hypervisor>(
        &self,
        h: &H,
        slice: &mut InterruptSlice,
    ) -> Result<(), UnitError> {
        for offset in 0..slice.count {
            _ = self.clear_interrupt_entry(h, slice, offset)?;
        }
        // Of what was cleared before, too: its invalidation may not have been confirmed.
        let stale = super::StaleInterruptEntries::of(slice);
        self.invalidate_interrupt_entries(h, stale)
            .map_err(|(_, error)| UnitError::Queue(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_aligned_apart_and_reused() {
        let mut map = SliceMap::new(256);
        for (count, first) in [
            (1, Some(0)),
            (64, Some(64)),
            (17, Some(32)),
            (16, Some(16)),
            (65, Some(128)),
            (16, None),
            (0, None),
            (257, None),
            (u32::MAX, None),
        ] {
            assert_eq!(map.allocate(count), first, "{count}");
        }
        map.release(&InterruptSlice {
            first: 64,
            count: 64,
            owner: Owner::HYPERVISOR,
            is_used: false,
        });
        assert_eq!(map.allocate(33), Some(64));
        let mut whole = SliceMap::new(0x1_0000);
        assert_eq!(whole.allocate(0x1_0000), Some(0));
        assert_eq!(whole.allocate(1), None);
        let mut tiny = SliceMap::new(2);
        assert_eq!((tiny.allocate(2), tiny.allocate(1)), (Some(0), None));
    }

    #[test]
    fn a_slice_knows_its_own_entries_only() {
        let slice = InterruptSlice {
            first: 32,
            count: 17,
            owner: Owner::HYPERVISOR,
            is_used: false,
        };
        for (offset, index) in [(0, Some(32)), (16, Some(48)), (17, None), (u32::MAX, None)] {
            assert_eq!(slice.index(offset).map(InterruptIndex::as_u16), index);
        }
        for (index, offset) in [(31, None), (32, Some(0)), (48, Some(16)), (49, None)] {
            assert_eq!(slice.offset(InterruptIndex::new(index)), offset);
        }
    }
}
