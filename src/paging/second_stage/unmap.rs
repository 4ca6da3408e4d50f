//! Unmapping: leaves removed, and table pages that the range covers whole detached.

use super::edit::Edit;
use super::{InputAddress, MapError, OnPartialLeaf, SecondStage, StaleMappings};
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
        self.take_apart(h)
    }

    /// As [`destroy`](Self::destroy), where the table is part of something that goes next: it must
    /// not be used again.
    pub(crate) fn take_apart<H: HostMemory + Frames>(&mut self, h: &H) -> StaleMappings<I> {
        // Not only what hardware accepts: a table page goes once all of it is in the range.
        let end = 1 << self.config.width().bits().min(63);
        let mut stale = StaleMappings::new(I::from_u64(0), end, self.owner);
        self.remove(h, 0, end, &mut stale);
        stale.take_table(h, self.root);
        stale
    }

    /// Removes all leaves of a range that cuts no leaf, and detaches the table pages that the
    /// range covers whole.
    fn remove<H: HostMemory>(&mut self, h: &H, first: u64, end: u64, stale: &mut StaleMappings<I>) {
        let mut leaves = 0u32;
        self.edit_leaves(
            h,
            first,
            end,
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
