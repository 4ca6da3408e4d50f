//! Ranges that begin or end inside a large page.

use heapless::Vec;

use super::{InputAddress, MapError, SecondStage, StaleMappings, span_of};
use crate::arch::address::{Hpa, PageSize};
use crate::arch::second_stage::SecondStageEntry;
use crate::mem::{FrameChain, Frames, HostMemory};

/// What an edit does with a large page of which the range has a part only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnPartialLeaf {
    /// The edit is refused with [`MapError::PartialLeaf`].
    Refuse,
    /// The large page is split, and the part in the range is changed.
    Split,
    /// The whole page is changed.
    Widen,
}

/// Tables that splitting at both ends of a range takes at most: two a large page.
const EDGE_TABLES: usize = 4;

/// A large page that an address lies inside of.
#[derive(Clone, Copy, Debug)]
struct CutLeaf {
    level: u8,
    start: u64,
}

impl CutLeaf {
    fn error(self) -> MapError {
        MapError::PartialLeaf {
            address: self.start,
            size: PageSize::of_level(self.level).unwrap_or(PageSize::Size4KiB),
        }
    }
}

impl<I: InputAddress> SecondStage<I> {
    /// Checks a range to edit and sees to it that it cuts no leaf. Gives the first and last address
    /// (exclusive) to edit, and a token that owes what this changed.
    ///
    /// # Errors
    ///
    /// [`MapError`].
    pub(super) fn prepare<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        len_bytes: u64,
        on_partial: OnPartialLeaf,
    ) -> Result<(u64, u64, StaleMappings<I>), MapError> {
        self.check_input(input, len_bytes)?;
        let (input, len_bytes) = self.edited_range(h, input, len_bytes, on_partial);
        let first = input.to_u64();
        let end = first.saturating_add(len_bytes);
        let mut stale = StaleMappings::new(input, len_bytes, self.owner);
        let cut = [first, end].map(|edge| self.leaf_cut_at(h, edge));
        if let Some(leaf) = cut.into_iter().flatten().next() {
            // A range that was widened cuts none.
            if on_partial == OnPartialLeaf::Refuse {
                return Err(leaf.error());
            }
            self.split_at(h, [first, end], cut, &mut stale)?;
        }
        Ok((first, end, stale))
    }

    /// First address and length of what an edit of a range changes.
    pub(crate) fn edited_range<H: HostMemory>(
        &self,
        h: &H,
        input: I,
        len_bytes: u64,
        on_partial: OnPartialLeaf,
    ) -> (I, u64) {
        let (mut first, mut end) = (input.to_u64(), input.to_u64().saturating_add(len_bytes));
        if on_partial == OnPartialLeaf::Widen {
            let cut = [first, end].map(|edge| self.leaf_cut_at(h, edge));
            for leaf in cut.into_iter().flatten() {
                first = first.min(leaf.start);
                end = end.max(leaf.start.saturating_add(span_of(leaf.level)));
            }
        }
        (I::from_u64(first), end.saturating_sub(first))
    }

    /// The large page that an address lies inside of, not at its start.
    fn leaf_cut_at<H: HostMemory>(&self, h: &H, edge: u64) -> Option<CutLeaf> {
        // The end of the address space cuts nothing, and has no entry.
        if edge.is_multiple_of(PageSize::Size1GiB.len_bytes()) {
            return None;
        }
        let mapping = self.look_up(h, I::from_u64(edge)).ok()?;
        let start = edge & !(mapping.size.len_bytes() - 1);
        (start != edge).then_some(CutLeaf {
            level: mapping.size.level(),
            start,
        })
    }

    /// Splits the leaves that these addresses cut, so far that they do not any more. All frames are
    /// taken before the first store.
    fn split_at<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        edges: [u64; 2],
        cut: [Option<CutLeaf>; 2],
        stale: &mut StaleMappings<I>,
    ) -> Result<(), MapError> {
        // The entries that are to point to tables, by level and first address.
        let mut tables: Vec<(u8, u64), EDGE_TABLES> = Vec::new();
        for (edge, leaf) in edges.into_iter().zip(cut) {
            let Some(leaf) = leaf else { continue };
            for level in (2..=leaf.level).rev() {
                let start = edge & !(span_of(level) - 1);
                if start != edge && !tables.contains(&(level, start)) {
                    // Two levels, two edges: there is room.
                    _ = tables.push((level, start));
                }
            }
        }
        let mut reserve = FrameChain::allocate(h, self.owner, tables.len() as u32)?;
        for (level, start) in tables {
            if let Some(page) = reserve.pop(h) {
                self.split_leaf_of(h, level, start, page, stale);
            }
        }
        reserve.free(h);
        h.fence();
        Ok(())
    }

    /// Splits the leaf of a level that begins at an address. It is known to be there.
    fn split_leaf_of<H: HostMemory>(
        &self,
        h: &H,
        level: u8,
        start: u64,
        page: Hpa,
        stale: &mut StaleMappings<I>,
    ) {
        let mut cursor = self.cursor(start, start.saturating_add(span_of(level)));
        while cursor.level() > level {
            let entry = SecondStageEntry::from_u64(h.read64(cursor.slot()));
            cursor.descend(entry.address());
        }
        let at = cursor.slot();
        let leaf = SecondStageEntry::from_u64(h.read64(at));
        self.replace_by_table(h, at, leaf, level, page);
        stale.change_table(start, span_of(level));
    }
}
