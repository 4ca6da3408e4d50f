//! Unmapping: leaves removed, empty tables detached, and the token that owns what hardware may
//! still use.

use super::{
    ENTRIES, InputAddress, MAX_LEVELS, MapError, SecondStage, Unmapped, slot_address, span_of,
};
use crate::arch::address::{PAGE_SIZE_BYTES, PageSize};
use crate::arch::second_stage::SecondStageEntry;
use crate::mem::{FrameChain, Frames, HostMemory};

impl<I: InputAddress> SecondStage<I> {
    /// Removes every mapping in `len_bytes` from `input` on. Pages that are not mapped are no
    /// error.
    ///
    /// # Errors
    ///
    /// [`MapError`]: misaligned, beyond the width, or the range ends inside a large page.
    pub fn unmap<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        len_bytes: u64,
    ) -> Result<Unmapped<I>, MapError> {
        self.check_input(input, len_bytes)?;
        let (first, widened) = self.widen_to_leaves(h, input, len_bytes);
        if first != input {
            return Err(self.partial_leaf(h, first.to_u64()));
        }
        if widened != len_bytes {
            return Err(self.partial_leaf(h, input.to_u64().saturating_add(len_bytes)));
        }
        Ok(self.remove(h, input, len_bytes))
    }

    /// Removes every leaf that overlaps the range, whole. The range is 4-KiB aligned and within
    /// the width; the token says what went.
    ///
    /// # Errors
    ///
    /// [`MapError`]: misaligned or beyond the width.
    pub fn unmap_covering<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        len_bytes: u64,
    ) -> Result<Unmapped<I>, MapError> {
        self.check_input(input, len_bytes)?;
        let (first, len_bytes) = self.widen_to_leaves(h, input, len_bytes);
        Ok(self.remove(h, first, len_bytes))
    }

    /// Takes the whole table apart. Nothing may point to it any more; the frames are free once
    /// the token is settled.
    pub fn destroy<H: HostMemory + Frames>(mut self, h: &H) -> Unmapped<I> {
        let mut unmapped = self.remove(h, I::from_u64(0), self.input_end());
        unmapped.tables.push(h, self.root);
        unmapped
    }

    /// The range widened so that it covers every leaf it touches.
    fn widen_to_leaves<H: HostMemory>(&self, h: &H, input: I, len_bytes: u64) -> (I, u64) {
        let first = input.to_u64();
        let end = first.saturating_add(len_bytes);
        let leaf_start = |address: u64| {
            self.translate(h, I::from_u64(address)).map(|mapping| {
                let start = address & !(mapping.size.len_bytes() - 1);
                (start, start.saturating_add(mapping.size.len_bytes()))
            })
        };
        let widened_first = leaf_start(first).map_or(first, |(start, _)| start);
        let widened_end =
            leaf_start(end.saturating_sub(PAGE_SIZE_BYTES)).map_or(end, |(_, leaf_end)| leaf_end);
        (
            I::from_u64(widened_first),
            widened_end.saturating_sub(widened_first),
        )
    }

    fn partial_leaf<H: HostMemory>(&self, h: &H, address: u64) -> MapError {
        let size = self
            .translate(h, I::from_u64(address))
            .map_or(PageSize::Size4KiB, |mapping| mapping.size);
        MapError::PartialLeaf {
            address: address & !(size.len_bytes() - 1),
            size,
        }
    }

    /// Removes all leaves of a range that cuts no leaf, and detaches the table pages that the
    /// range covers whole.
    fn remove<H: HostMemory>(&mut self, h: &H, input: I, len_bytes: u64) -> Unmapped<I> {
        let first = input.to_u64();
        let end = first.saturating_add(len_bytes);
        self.remove_some(h, first, first, end, u64::MAX).0
    }

    /// Goes on with the removal of everything: `next` is where it stands, 0 at first. Looks at about
    /// as many entries as a table page has. `next` reaches [`input_end`](Self::input_end) with the
    /// last slice.
    pub(crate) fn remove_slice<H: HostMemory>(&mut self, h: &H, next: &mut u64) -> Unmapped<I> {
        let (unmapped, reached) = self.remove_some(h, 0, *next, self.input_end(), ENTRIES);
        *next = reached;
        unmapped
    }

    /// First address beyond what hardware accepts as input.
    pub(crate) const fn input_end(&self) -> u64 {
        1 << (self.config.input_bits & 63)
    }

    /// Removes the leaves of a range that cuts no leaf, from `start` on; what lies between `first` and
    /// `start` has been removed before. Detaches the table pages that the range from `first` on
    /// covers whole. Stops after `budget` entries, and gives the address of the next one.
    ///
    /// Depth-first, without recursion: at most one position a level.
    fn remove_some<H: HostMemory>(
        &mut self,
        h: &H,
        first: u64,
        start: u64,
        end: u64,
        budget: u64,
    ) -> (Unmapped<I>, u64) {
        let mut budget = budget;
        let mut tables = FrameChain::new(self.owner);
        let mut leaves = 0u64;
        let mut pages = [self.root; MAX_LEVELS + 1];
        let top = self.config.width.levels();
        let mut level = top;
        let mut address = start;
        // Every step either goes down one level or moves on by one entry's span, so the walk
        // visits each entry of each table page in the range at most twice.
        while address < end && budget > 0 {
            let Some(&page) = pages.get(usize::from(level)) else {
                break;
            };
            let span = span_of(level);
            let at = slot_address(page, address, level);
            let entry = SecondStageEntry::from_u64(h.read64(at));
            if entry.is_present() && level > 1 && !entry.is_leaf(level) {
                level -= 1;
                if let Some(below) = pages.get_mut(usize::from(level)) {
                    *below = entry.address();
                }
                continue;
            }
            budget = budget.saturating_sub(1);
            if entry.is_present() {
                h.write64(at, 0);
                self.flush_entry(h, at);
                leaves = leaves.saturating_add(1);
            }
            address = (address & !(span - 1)).saturating_add(span);
            // Leave every table page whose last entry has been passed; detach it if the range
            // covers all that it maps.
            while level < top {
                let parent_span = span_of(level + 1);
                if address < end && !address.is_multiple_of(parent_span) {
                    break;
                }
                let covered_start = address.saturating_sub(1) & !(parent_span - 1);
                let child = pages.get(usize::from(level)).copied();
                level += 1;
                if covered_start >= first
                    && address == covered_start.saturating_add(parent_span)
                    && let (Some(child), Some(&parent)) = (child, pages.get(usize::from(level)))
                {
                    let parent_slot = slot_address(parent, covered_start, level);
                    h.write64(parent_slot, 0);
                    self.flush_entry(h, parent_slot);
                    tables.push(h, child);
                    self.flush_entry(h, child);
                }
            }
        }
        h.fence();
        let unmapped = Unmapped {
            first: I::from_u64(start),
            len_bytes: address.min(end).saturating_sub(start),
            leaves,
            tables,
        };
        (unmapped, address.min(end))
    }
}
