//! The leaves of a range, one after the other.

use core::marker::PhantomData;

use super::accessed::AccessedDirty;
use super::cursor::Cursor;
use super::{InputAddress, MapError, SecondStage};
use crate::arch::address::{Hpa, PageSize};
use crate::arch::second_stage::{Rights, SecondStageEntry};
use crate::mem::HostMemory;

/// One leaf of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf<I> {
    /// First input address.
    pub input: I,
    /// Where that leads.
    pub output: Hpa,
    /// Size of the page.
    pub size: PageSize,
    /// What it permits.
    pub rights: Rights,
    /// What hardware has noted, if the table [tracks access](super::SecondStageConfig::tracks_access).
    pub touched: AccessedDirty,
}

impl<I: InputAddress> Leaf<I> {
    /// The leaf that an entry of a level is, whose first input address is `start`.
    pub(super) fn of(entry: SecondStageEntry, level: u8, start: u64) -> Self {
        let size = PageSize::of_level(level).unwrap_or(PageSize::Size4KiB);
        Self {
            input: I::from_u64(start),
            output: entry.address::<Hpa>().align_down(size),
            size,
            rights: entry.rights(),
            touched: AccessedDirty::of(entry),
        }
    }
}

/// The leaves that overlap a range, by rising address; [`SecondStage::leaves`] makes it.
///
/// It reads a limited number of entries, then ends; [`resume_at`](Self::resume_at) says where the next
/// one is to begin.
#[derive(Debug)]
pub struct Leaves<'a, H, I> {
    h: &'a H,
    cursor: Cursor,
    reads_left: u32,
    /// Nothing may change meanwhile.
    table: PhantomData<&'a SecondStage<I>>,
}

impl<I: InputAddress> SecondStage<I> {
    /// The leaves that overlap `len_bytes` from `input` on, reading no more than `most_reads`
    /// entries.
    ///
    /// # Errors
    ///
    /// [`MapError`]: misaligned or beyond the width.
    pub fn leaves<'a, H: HostMemory>(
        &'a self,
        h: &'a H,
        input: I,
        len_bytes: u64,
        most_reads: u32,
    ) -> Result<Leaves<'a, H, I>, MapError> {
        self.check_input(input, len_bytes)?;
        let first = input.to_u64();
        Ok(Leaves {
            h,
            cursor: self.cursor(first, first.saturating_add(len_bytes)),
            reads_left: most_reads,
            table: PhantomData,
        })
    }
}

impl<H, I: InputAddress> Leaves<'_, H, I> {
    /// The first address that has not been looked at; `None` once the range is done. The next one is to
    /// read at least as many entries as the table has levels, or it does not get on.
    pub fn resume_at(&self) -> Option<I> {
        (!self.cursor.is_done()).then(|| I::from_u64(self.cursor.address()))
    }
}

impl<H: HostMemory, I: InputAddress> Iterator for Leaves<'_, H, I> {
    type Item = Leaf<I>;

    fn next(&mut self) -> Option<Leaf<I>> {
        while !self.cursor.is_done() {
            self.reads_left = self.reads_left.checked_sub(1)?;
            let level = self.cursor.level();
            let entry = SecondStageEntry::from_u64(self.h.read64(self.cursor.slot()));
            if entry.is_present() && !entry.is_leaf(level) {
                self.cursor.descend(entry.address());
                continue;
            }
            let leaf = entry
                .is_present()
                .then(|| Leaf::of(entry, level, self.cursor.entry_start()));
            self.cursor.advance(1);
            while self.cursor.leave().is_some() {}
            if leaf.is_some() {
                return leaf;
            }
        }
        None
    }
}
