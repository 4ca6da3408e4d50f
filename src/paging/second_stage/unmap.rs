//! Unmapping: leaves removed, and table pages that the range covers whole detached.

use super::cursor::Cursor;
use super::edit::Edit;
use super::{ENTRIES, InputAddress, MapError, OnPartialLeaf, SecondStage, StaleMappings};
use crate::mem::{Frames, HostMemory};

impl<I: InputAddress> SecondStage<I> {
    /// Removes every mapping in `len_bytes` from `input` on. Pages that are not mapped are no
    /// error.
    ///
    /// # Errors
    ///
    /// [`MapError`]: misaligned, beyond the width, or the range cuts a large page and that is refused,
    /// or there are no frames to split it.
    pub fn unmap<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        len_bytes: u64,
        on_partial: OnPartialLeaf,
    ) -> Result<StaleMappings<I>, MapError> {
        let (first, end, mut stale) = self.prepare(h, input, len_bytes, on_partial)?;
        self.remove(h, first, end, &mut stale);
        Ok(stale)
    }

    /// Takes the whole table apart. Nothing may point to it any more; the frames are free once
    /// the token is settled.
    pub fn destroy<H: HostMemory + Frames>(mut self, h: &H) -> StaleMappings<I> {
        let end = self.end();
        let mut stale = StaleMappings::new(I::from_u64(0), end, self.owner);
        self.remove(h, 0, end, &mut stale);
        stale.take_table(h, self.root);
        stale
    }

    /// Removes all leaves of a range that cuts no leaf, and detaches the table pages that the
    /// range covers whole.
    fn remove<H: HostMemory>(&mut self, h: &H, first: u64, end: u64, stale: &mut StaleMappings<I>) {
        let mut cursor = self.cursor(first, end);
        self.remove_some(h, first, &mut cursor, u64::MAX, stale);
    }

    /// Goes on with the removal of everything: `next` is where it stands, 0 at first. Looks at no more
    /// entries than about two table pages have. `next` reaches [`end`](Self::end) with the last slice.
    pub(crate) fn remove_slice<H: HostMemory>(
        &mut self,
        h: &H,
        next: &mut u64,
    ) -> StaleMappings<I> {
        let (first, end) = (*next, self.end());
        let mut cursor = self.cursor(first, end);
        let mut stale = StaleMappings::new(I::from_u64(first), 0, self.owner);
        self.remove_some(h, 0, &mut cursor, ENTRIES, &mut stale);
        *next = cursor.address().min(end);
        stale.widen(first, next.saturating_sub(first));
        stale
    }

    /// Removes leaves from the cursor on; what lies between `first` and it has been removed before.
    /// Detaches the table pages that the range from `first` on covers whole. Stops after `budget`
    /// entries at a place between two table pages.
    fn remove_some<H: HostMemory>(
        &mut self,
        h: &H,
        first: u64,
        cursor: &mut Cursor,
        budget: u64,
        stale: &mut StaleMappings<I>,
    ) {
        let end = cursor.end();
        let mut leaves = 0u32;
        self.edit_some_leaves(
            h,
            cursor,
            budget,
            |leaf| {
                h.write64(leaf.slot, 0);
                leaves = leaves.saturating_add(1);
                Edit::Changed
            },
            |table| {
                if table.is_within(first, end) {
                    h.write64(table.slot, 0);
                    self.flush_entry(h, table.slot);
                    stale.take_table(h, table.page);
                    self.flush_entry(h, table.page);
                }
            },
        );
        stale.count_leaves(leaves);
        h.fence();
    }
}
