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
    /// Calls `edit` for each present leaf that overlaps the range. What it changed is flushed if the
    /// units need it, each line once; the caller fences.
    pub(super) fn edit_leaves<H: HostMemory>(
        &self,
        h: &H,
        first: u64,
        end: u64,
        edit: impl FnMut(VisitedLeaf) -> Edit,
    ) {
        let mut cursor = self.cursor(first, end);
        self.edit_some_leaves(h, &mut cursor, u64::MAX, edit, |_| {});
    }

    /// As [`edit_leaves`](Self::edit_leaves), from a cursor on until about `budget` entries have been
    /// looked at; calls `left` for each table page once its last entry in the range has been passed.
    pub(super) fn edit_some_leaves<H: HostMemory>(
        &self,
        h: &H,
        cursor: &mut Cursor,
        mut budget: u64,
        mut edit: impl FnMut(VisitedLeaf) -> Edit,
        mut left: impl FnMut(LeftTable),
    ) {
        while !cursor.is_done() && budget > 0 {
            let (passed, table) = self.edit_run(h, cursor, &mut edit);
            budget = budget.saturating_sub(passed);
            if let Some(page) = table {
                cursor.descend(page);
                continue;
            }
            while let Some(table) = cursor.leave() {
                left(table);
            }
        }
    }

    /// Visits the leaves side by side from the cursor on, and passes them; stops at an entry that
    /// points to a table. Gives the number of entries passed, and that table.
    fn edit_run<H: HostMemory>(
        &self,
        h: &H,
        cursor: &mut Cursor,
        edit: &mut impl FnMut(VisitedLeaf) -> Edit,
    ) -> (u64, Option<Hpa>) {
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
        (passed, table)
    }
}
