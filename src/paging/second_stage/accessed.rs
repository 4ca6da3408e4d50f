//! Accessed and dirty bits read and cleared (§3.7.2).

use super::edit::Edit;
use super::leaves::Leaf;
use super::{InputAddress, MapError, Mapping, SecondStage, StaleMappings};
use crate::arch::second_stage::SecondStageEntry;
use crate::mem::HostMemory;

/// Which of the bits that hardware sets in a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AccessedDirty {
    /// The page was used, or hardware expected that (`A`).
    pub accessed: bool,
    /// The page was written, or a device-TLB was given a writable translation (`D`, §4.2.3).
    pub dirty: bool,
}

impl AccessedDirty {
    /// The Accessed bit alone.
    pub const ACCESSED: Self = Self {
        accessed: true,
        dirty: false,
    };
    /// The Dirty bit alone.
    pub const DIRTY: Self = Self {
        accessed: false,
        dirty: true,
    };

    /// Both bits.
    pub const BOTH: Self = Self {
        accessed: true,
        dirty: true,
    };

    /// What an entry says.
    pub(super) const fn of(entry: SecondStageEntry) -> Self {
        Self {
            accessed: entry.is_accessed(),
            dirty: entry.is_dirty(),
        }
    }

    /// The bits of an entry.
    const fn bits(self) -> u64 {
        let accessed = if self.accessed {
            SecondStageEntry::ACCESSED
        } else {
            0
        };
        let dirty = if self.dirty {
            SecondStageEntry::DIRTY
        } else {
            0
        };
        accessed | dirty
    }
}

impl<I: InputAddress> SecondStage<I> {
    /// Notes that a page is written, or may be from now on, in another way than through this table.
    /// Does nothing if the table does not track access.
    pub(crate) fn note_written<H: HostMemory>(&self, h: &H, mapping: &Mapping) {
        if !self.config.tracks_access() {
            return;
        }
        let entry = SecondStageEntry::from_u64(h.read64(mapping.slot));
        if !entry.is_dirty() {
            // Hardware sets no other bits meanwhile.
            let noted = entry.with(AccessedDirty::BOTH.bits());
            h.write64(mapping.slot, noted.as_u64());
        }
    }

    /// Clears bits that hardware has set in the leaves of `len_bytes` from `input` on, each by one
    /// atomic operation, and calls `report` with every leaf that had any of them. A large leaf is
    /// reported and cleared whole.
    ///
    /// Hardware sets a bit again only once its cached translations are gone. So what is written up
    /// to the end of the invalidation belongs to this call: look at the pages after it.
    ///
    /// # Errors
    ///
    /// [`MapError`]: misaligned or beyond the width.
    pub fn take_accessed_dirty<H: HostMemory>(
        &mut self,
        h: &H,
        input: I,
        len_bytes: u64,
        take: AccessedDirty,
        mut report: impl FnMut(Leaf<I>),
    ) -> Result<StaleMappings<I>, MapError> {
        self.check_input(input, len_bytes)?;
        let first = input.to_u64();
        let end = first.saturating_add(len_bytes);
        let mut stale = StaleMappings::new(input, 0, self.owner);
        self.edit_leaves(h, first, end, |visited| {
            if visited.entry.as_u64() & take.bits() == 0 {
                return Edit::Kept;
            }
            let old = h.fetch_and64(visited.slot, !take.bits());
            let old = SecondStageEntry::from_u64(old);
            let leaf = Leaf::of(old, visited.level, visited.start);
            stale.widen(visited.start, leaf.size.len_bytes());
            stale.count_leaves(1);
            report(leaf);
            Edit::Changed
        });
        h.fence();
        Ok(stale)
    }
}
