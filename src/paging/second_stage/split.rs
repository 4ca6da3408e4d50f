//! Large pages split: the table is built aside, and one store publishes it.

use super::{
    ENTRIES, ENTRY_BYTES, InputAddress, MapError, SecondStage, StaleMappings, shift_of, span_of,
};
use crate::arch::address::{Hpa, PageSize};
use crate::arch::second_stage::SecondStageEntry;
use crate::mem::{FrameChain, Frames, HostMemory};

impl<I: InputAddress> SecondStage<I> {
    /// Splits every larger leaf in `len_bytes` from `input` on into leaves of this size. Each page
    /// leads where it did at any time.
    ///
    /// Until the invalidation hardware may use the old leaf and the new ones side by side
    /// (§6.5.3.3), so they must not be changed before it.
    ///
    /// # Errors
    ///
    /// [`MapError`]: misaligned, beyond the width, or too few frames for all tables.
    pub fn split<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        len_bytes: u64,
        size: PageSize,
    ) -> Result<StaleMappings<I>, MapError> {
        self.check_input(input, len_bytes)?;
        let first = input.to_u64();
        let end = first.saturating_add(len_bytes);
        let tables = self.count_split_tables(h, first, end, size);
        let mut reserve = FrameChain::allocate(h, self.owner, tables)?;
        let mut stale = StaleMappings::new(input, 0, self.owner);
        let mut cursor = self.cursor(first, end);
        while !cursor.is_done() {
            let level = cursor.level();
            if level <= size.level() {
                cursor.advance(cursor.run());
            } else {
                let at = cursor.slot();
                let entry = SecondStageEntry::from_u64(h.read64(at));
                if entry.is_present() {
                    if !entry.is_leaf(level) {
                        cursor.descend(entry.address());
                        continue;
                    }
                    // As many as were counted.
                    if let Some(page) = reserve.pop(h) {
                        self.replace_by_table(h, at, entry, level, page);
                        stale.change_table(cursor.entry_start(), span_of(level));
                        cursor.descend(page);
                        continue;
                    }
                }
                cursor.advance(1);
            }
            while cursor.leave().is_some() {}
        }
        h.fence();
        reserve.free(h);
        Ok(stale)
    }

    /// Table pages that splitting every leaf of a range takes.
    fn count_split_tables<H: HostMemory>(
        &self,
        h: &H,
        first: u64,
        end: u64,
        size: PageSize,
    ) -> u32 {
        let mut tables = 0u64;
        let mut cursor = self.cursor(first, end);
        while !cursor.is_done() {
            let level = cursor.level();
            if level <= size.level() {
                cursor.advance(cursor.run());
            } else {
                let entry = SecondStageEntry::from_u64(h.read64(cursor.slot()));
                if entry.is_present() && !entry.is_leaf(level) {
                    cursor.descend(entry.address());
                    continue;
                }
                if entry.is_present() {
                    // One for the leaf, and one for each smaller leaf that is split in turn.
                    tables = tables.saturating_add(1);
                    for below in size.level().saturating_add(1)..level {
                        let (address, span) = (cursor.address(), span_of(below));
                        let first = address & !(span - 1);
                        let end = address.saturating_add(cursor.rest_of_entry());
                        let last_partial = u64::from(end & (span - 1) != 0);
                        let whole = end.saturating_sub(first) >> shift_of(below);
                        tables = tables.saturating_add(whole).saturating_add(last_partial);
                    }
                }
                cursor.advance(1);
            }
            while cursor.leave().is_some() {}
        }
        u32::try_from(tables).unwrap_or(u32::MAX)
    }

    /// Replaces a leaf of a level above 1 by a fresh table page that leads to the same pages, with
    /// one store.
    pub(super) fn replace_by_table<H: HostMemory>(
        &self,
        h: &H,
        at: Hpa,
        leaf: SecondStageEntry,
        level: u8,
        page: Hpa,
    ) {
        let below = level.saturating_sub(1);
        let size = PageSize::of_level(below).unwrap_or(PageSize::Size4KiB);
        let output = leaf.address::<Hpa>().as_u64() & !(span_of(level) - 1);
        let first =
            SecondStageEntry::leaf(Hpa::new(output), size, leaf.rights(), leaf.is_snooped());
        self.fill(h, page, self.touched(first, leaf), size, ENTRIES);
        self.link(h, at, page, false);
    }

    /// Stores a run of leaves from `at` on, each leading one page further.
    #[inline]
    pub(super) fn fill<H: HostMemory>(
        &self,
        h: &H,
        at: Hpa,
        first: SecondStageEntry,
        size: PageSize,
        count: u64,
    ) {
        let mut entry = first.as_u64();
        let mut slot = at.as_u64();
        for _ in 0..count {
            h.write64(Hpa::new(slot), entry);
            entry = entry.wrapping_add(size.len_bytes());
            slot = slot.wrapping_add(ENTRY_BYTES);
        }
    }
}
