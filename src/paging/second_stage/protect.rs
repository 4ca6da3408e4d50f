//! Rights of mapped pages changed in place.

use super::edit::Edit;
use super::{InputAddress, MapError, OnPartialLeaf, SecondStage, StaleMappings};
use crate::arch::second_stage::{Rights, SecondStageEntry};
use crate::mem::{Frames, HostMemory};

impl<I: InputAddress> SecondStage<I> {
    /// Gives every mapped page in `len_bytes` from `input` on these rights, by one store a leaf:
    /// hardware sees the old rights or the new ones, never none. Pages that are not mapped stay so.
    ///
    /// More rights owe an invalidation too: devices without page requests do not ask again
    /// (§6.5.3.5).
    ///
    /// # Errors
    ///
    /// [`MapError`]: as of [`unmap`](Self::unmap), and [`MapError::NoRights`]: to take all rights is
    /// to unmap.
    pub fn protect<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        len_bytes: u64,
        rights: Rights,
        on_partial: OnPartialLeaf,
    ) -> Result<StaleMappings<I>, MapError> {
        if rights.is_none() {
            return Err(MapError::NoRights);
        }
        let (first, end, mut stale) = self.prepare(h, input, len_bytes, on_partial)?;
        let mut leaves = 0u32;
        self.edit_leaves(h, first, end, |leaf| {
            if leaf.entry.rights() == rights {
                return Edit::Kept;
            }
            let wanted = leaf.entry.with_rights(rights);
            let taken = leaf.entry.as_u64() & !wanted.as_u64();
            if wanted.as_u64() | taken == leaf.entry.as_u64() {
                // Hardware may be setting accessed and dirty bits.
                h.fetch_and64(leaf.slot, !taken);
            } else {
                h.write64(leaf.slot, self.touched(wanted, leaf.entry).as_u64());
            }
            leaves = leaves.saturating_add(1);
            Edit::Changed
        });
        stale.count_leaves(leaves);
        h.fence();
        Ok(stale)
    }

    /// An entry that replaces another by a plain store: what hardware may have set in the old one
    /// meanwhile counts as set.
    pub(super) fn touched(
        &self,
        entry: SecondStageEntry,
        replaced: SecondStageEntry,
    ) -> SecondStageEntry {
        if !self.config.tracks_access() {
            return entry;
        }
        let dirty = replaced.is_dirty() || replaced.is_writable();
        let dirty = if dirty { SecondStageEntry::DIRTY } else { 0 };
        entry.with(SecondStageEntry::ACCESSED | dirty)
    }
}
