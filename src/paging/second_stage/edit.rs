//! Leaves of a range visited in order and changed in place, in one walk.

use super::cursor::{Cursor, LeftTable};
use super::{ENTRY_BYTES, InputAddress, SecondStage, span_of};
use crate::arch::address::Hpa;
use crate::arch::second_stage::SecondStageEntry;
use crate::mem::HostMemory;

/// A present leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct VisitedLeaf {
    /// Where its entry lies.
    pub(super) slot: Hpa,
    /// What was read there.
    pub(super) entry: SecondStageEntry,
    /// Level of the entry.
    pub(super) level: u8,
    /// First input address of the leaf.
    pub(super) start: u64,
}

/// What was done with a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Edit {
    /// It is as it was.
    Kept,
    /// Its entry was stored to.
    Changed,
}

impl<I: InputAddress> SecondStage<I> {
    /// Calls `edit` for each present leaf that overlaps the range, and `left` for each table page
    /// once its last entry in the range has been passed. What `edit` changed is flushed if the units
    /// need it, each line once; the caller fences.
    pub(super) fn edit_leaves<H: HostMemory>(
        &self,
        h: &H,
        first: u64,
        end: u64,
        mut edit: impl FnMut(VisitedLeaf) -> Edit,
        mut left: impl FnMut(LeftTable),
    ) {
        let mut cursor = self.cursor(first, end);
        while !cursor.is_done() {
            if let Some(page) = self.edit_run(h, &mut cursor, &mut edit) {
                cursor.descend(page);
                continue;
            }
            while let Some(table) = cursor.leave() {
                left(table);
            }
        }
    }

    /// Visits the leaves side by side from the cursor on; stops at an entry that points to a table
    /// and gives that table.
    fn edit_run<H: HostMemory>(
        &self,
        h: &H,
        cursor: &mut Cursor,
        edit: &mut impl FnMut(VisitedLeaf) -> Edit,
    ) -> Option<Hpa> {
        let level = cursor.level();
        let span = span_of(level);
        let run = cursor.run();
        let mut start = cursor.entry_start();
        let mut slot = cursor.slot().as_u64();
        let mut changed = (u64::MAX, 0);
        let mut table = None;
        let mut passed = 0;
        while passed < run {
            let at = Hpa::new(slot);
            let entry = SecondStageEntry::from_u64(h.read64(at));
            if entry.is_present() {
                if !entry.is_leaf(level) {
                    table = Some(entry.address());
                    break;
                }
                let visited = VisitedLeaf {
                    slot: at,
                    entry,
                    level,
                    start,
                };
                if edit(visited) == Edit::Changed {
                    changed = (changed.0.min(slot), slot.saturating_add(ENTRY_BYTES));
                }
            }
            slot = slot.saturating_add(ENTRY_BYTES);
            start = start.saturating_add(span);
            passed += 1;
        }
        if changed.1 != 0 {
            self.flush_span(h, Hpa::new(changed.0), changed.1);
        }
        cursor.advance(passed);
        table
    }
}
