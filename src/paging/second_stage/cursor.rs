//! A position in a table on its way through a range of input addresses.

use super::{ENTRIES, MAX_LEVELS, shift_of, slot_address, span_of};
use crate::arch::address::Hpa;

/// Goes through the entries of a range from the lowest address to the highest, and remembers the
/// table page of each level, so that a run of entries costs one walk.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    /// Pages by level; those from `level` to `top` count.
    pages: [Hpa; MAX_LEVELS + 1],
    top: u8,
    level: u8,
    address: u64,
    end: u64,
}

/// A table page whose last entry has been passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeftTable {
    /// The page.
    pub(super) page: Hpa,
    /// Place of the entry above that points to it, or is to point to it.
    pub(super) slot: Hpa,
    /// Level of that entry.
    pub(super) level: u8,
    /// First input address that the page maps.
    pub(super) start: u64,
}

impl LeftTable {
    /// Whether a range covers everything that the page maps.
    pub(super) fn is_within(&self, first: u64, end: u64) -> bool {
        self.start >= first && self.start.saturating_add(span_of(self.level)) <= end
    }
}

impl Cursor {
    /// At the first entry of a range, in the top-level page of a table with this many levels.
    pub(super) fn new(root: Hpa, levels: u8, first: u64, end: u64) -> Self {
        Self {
            pages: [root; MAX_LEVELS + 1],
            top: levels,
            level: levels,
            address: first,
            end,
        }
    }

    /// Whether the whole range has been passed.
    #[inline]
    pub(super) const fn is_done(&self) -> bool {
        self.address >= self.end
    }

    /// First input address beyond the range.
    #[inline]
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// Level of the table page, 1 to 5.
    #[inline]
    pub(super) const fn level(&self) -> u8 {
        self.level
    }

    /// First input address of the range that has not been passed.
    #[inline]
    pub(super) const fn address(&self) -> u64 {
        self.address
    }

    /// First input address that the current entry covers, which the range may begin behind.
    #[inline]
    pub(super) const fn entry_start(&self) -> u64 {
        self.address & !(span_of(self.level) - 1)
    }

    /// Place of the current entry.
    #[inline]
    pub(super) fn slot(&self) -> Hpa {
        let page = self.pages.get(usize::from(self.level)).copied();
        slot_address(page.unwrap_or_default(), self.address, self.level)
    }

    /// Bytes of the range that the current entry still covers.
    #[inline]
    pub(super) fn rest_of_entry(&self) -> u64 {
        let entry_end = self.entry_start().saturating_add(span_of(self.level));
        entry_end.min(self.end).saturating_sub(self.address)
    }

    /// Entries from the current one on, in this table page and, whole or in part, in the range.
    #[inline]
    pub(super) fn run(&self) -> u64 {
        let len_bytes = self.end.saturating_sub(self.entry_start());
        let last_partial = u64::from(len_bytes & (span_of(self.level) - 1) != 0);
        let left = (len_bytes >> shift_of(self.level)).saturating_add(last_partial);
        left.min(ENTRIES - (self.address >> shift_of(self.level)) % ENTRIES)
    }

    /// Goes to the first entry of the range in a table page that the current entry points to.
    pub(super) fn descend(&mut self, page: Hpa) {
        let below = self.level.saturating_sub(1).max(1);
        if let Some(place) = self.pages.get_mut(usize::from(below)) {
            *place = page;
            self.level = below;
        }
    }

    /// Passes entries, no more than [`run`](Self::run) of them.
    #[inline]
    pub(super) fn advance(&mut self, entries: u64) {
        if entries > 0 {
            let passed = entries << shift_of(self.level);
            self.address = self.entry_start().saturating_add(passed);
        }
    }

    /// After entries were passed: leaves the table page if that was its last one, or the last of the
    /// range. To be repeated until `None`.
    pub(super) fn leave(&mut self) -> Option<LeftTable> {
        let above = self.level.saturating_add(1);
        let span = span_of(above);
        if self.level >= self.top || !(self.is_done() || self.address & (span - 1) == 0) {
            return None;
        }
        let page = *self.pages.get(usize::from(self.level))?;
        let start = self.address.saturating_sub(1) & !(span - 1);
        let parent = *self.pages.get(usize::from(above))?;
        self.level = above;
        Some(LeftTable {
            page,
            slot: slot_address(parent, start, above),
            level: above,
            start,
        })
    }
}
