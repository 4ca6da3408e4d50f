//! Small pages merged into large ones, on request.

use super::{ENTRIES, ENTRY_BYTES, InputAddress, MapError, MergedLeaves, SecondStage, span_of};
use crate::arch::address::{Hpa, PageSize};
use crate::arch::second_stage::SecondStageEntry;
use crate::mem::HostMemory;

impl<I: InputAddress> SecondStage<I> {
    /// Replaces table pages by large leaves, by one store each, wherever `len_bytes` from `input` on
    /// cover all that a table page maps and its leaves are one contiguous, aligned block with the
    /// same rights. Each page leads where it did at any time.
    ///
    /// A call replaces [`MERGED_TABLES`](super::MERGED_TABLES) table pages at most, and says where to
    /// go on. Until the invalidation hardware may use the old leaves and the new one side by side
    /// (§6.5.3.3), so they must not be changed before it.
    ///
    /// # Errors
    ///
    /// [`MapError`]: misaligned or beyond the width.
    pub fn merge<H: HostMemory>(
        &mut self,
        h: &H,
        input: I,
        len_bytes: u64,
    ) -> Result<MergedLeaves<I>, MapError> {
        self.check_input(input, len_bytes)?;
        let first = input.to_u64();
        let end = first.saturating_add(len_bytes);
        let mut merged = MergedLeaves::new(input, self.owner);
        let mut cursor = self.cursor(first, end);
        while !cursor.is_done() {
            let (level, start) = (cursor.level(), cursor.address());
            let at = cursor.slot();
            let entry = SecondStageEntry::from_u64(h.read64(at));
            let is_table = entry.is_present() && !entry.is_leaf(level);
            if is_table && level > 2 {
                cursor.descend(entry.address());
                continue;
            }
            let mut has_room = true;
            if is_table && level == 2 && cursor.rest_of_entry() == span_of(level) {
                has_room = self.merge_table(h, at, entry.address(), level, start, &mut merged);
            }
            cursor.advance(1);
            while let Some(table) = cursor.leave() {
                if has_room && table.level == 3 && table.is_within(first, end) {
                    let (at, page, start) = (table.slot, table.page, table.start);
                    has_room = self.merge_table(h, at, page, table.level, start, &mut merged);
                }
            }
            if !has_room {
                // From the start of the largest leaf on, because its table is looked at once all
                // tables below it are.
                let block = start & !(PageSize::Size1GiB.len_bytes() - 1);
                merged.stop_at(block.max(first));
                break;
            }
        }
        h.fence();
        Ok(merged)
    }

    /// Replaces a table page by one leaf of `level`, if its leaves are what one such leaf leads to.
    /// `false`, and nothing changed, if that has no room in the token.
    fn merge_table<H: HostMemory>(
        &self,
        h: &H,
        at: Hpa,
        page: Hpa,
        level: u8,
        start: u64,
        merged: &mut MergedLeaves<I>,
    ) -> bool {
        let Some(leaf) = self.leaf_like(h, page, level) else {
            return true;
        };
        if merged.is_full() {
            return false;
        }
        h.write64(at, leaf.as_u64());
        self.flush_entry(h, at);
        merged.take_table(page, start, span_of(level));
        true
    }

    /// The leaf of `level` that leads where all leaves of a table page below do.
    fn leaf_like<H: HostMemory>(&self, h: &H, page: Hpa, level: u8) -> Option<SecondStageEntry> {
        let size = PageSize::of_level(level)?;
        let below = PageSize::of_level(level.checked_sub(1)?)?;
        if !self.config.has_leaves_of(size) {
            return None;
        }
        // Hardware may change these at any time.
        let bits = |entry: u64| entry & !(SecondStageEntry::ACCESSED | SecondStageEntry::DIRTY);
        let first = SecondStageEntry::from_u64(h.read64(page));
        let output: Hpa = first.address();
        let is_leaf = first.is_present() && first.is_leaf(below.level());
        if !is_leaf || !output.is_aligned(size) {
            return None;
        }
        let mut expected = bits(first.as_u64());
        let mut slot = page.as_u64();
        for _ in 0..ENTRIES {
            if bits(h.read64(Hpa::new(slot))) != expected {
                return None;
            }
            expected = expected.wrapping_add(below.len_bytes());
            slot = slot.wrapping_add(ENTRY_BYTES);
        }
        let leaf = SecondStageEntry::leaf(output, size, first.rights(), first.is_snooped());
        Some(self.touched(leaf, first))
    }
}
