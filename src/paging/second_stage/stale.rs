//! What hardware may still use after an edit of a table.

use heapless::Vec;

use super::InputAddress;
use crate::arch::address::Hpa;
use crate::mem::frames::count_lost;
use crate::mem::{FrameChain, Frames, HostMemory, Owner};

/// What hardware may still use after present entries were changed: it owes an invalidation, and owns
/// the table pages that were detached.
///
/// Owed: an IOTLB invalidation of the range for every domain-id that uses the table (§6.5.3.3),
/// unless nothing [is owed](Self::owes_invalidation). The frames of the table pages are free only
/// after it. Dropped, they are lost to the pool, counted, and never reused.
///
/// Nobody else can free them, and a token cannot be made up or ignored:
///
/// ```compile_fail,E0451
/// # use vtd_nest::arch::address::Gpa;
/// # use vtd_nest::mem::{FrameChain, Owner};
/// # use vtd_nest::paging::StaleMappings;
/// fn made_up(tables: FrameChain) -> StaleMappings<Gpa> {
///     StaleMappings { first: Gpa::new(0), len_bytes: 0, leaves: 0, tables_changed: true, tables }
/// }
/// ```
///
/// ```compile_fail,E0624
/// # use vtd_nest::arch::address::Gpa;
/// # use vtd_nest::mem::{Frames, HostMemory};
/// # use vtd_nest::paging::StaleMappings;
/// fn too_early<H: HostMemory + Frames>(h: &H, stale: StaleMappings<Gpa>) {
///     stale.settle(h);
/// }
/// ```
///
/// ```compile_fail,E0616
/// # use vtd_nest::arch::address::Gpa;
/// # use vtd_nest::paging::StaleMappings;
/// fn take_out(stale: StaleMappings<Gpa>) -> vtd_nest::mem::FrameChain {
///     stale.tables
/// }
/// ```
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # use vtd_nest::arch::address::Gpa;
/// # use vtd_nest::mem::{Frames, HostMemory};
/// # use vtd_nest::paging::{MapError, OnPartialLeaf, SecondStage};
/// fn ignored<H: HostMemory + Frames>(h: &H, table: &mut SecondStage<Gpa>) -> Result<(), MapError> {
///     table.unmap(h, Gpa::new(0), 0x1000, OnPartialLeaf::Refuse)?;
///     Ok(())
/// }
/// ```
///
/// Kept, it is a value like any other:
///
/// ```
/// # use vtd_nest::arch::address::Gpa;
/// # use vtd_nest::mem::{Frames, HostMemory};
/// # use vtd_nest::paging::{MapError, OnPartialLeaf, SecondStage, StaleMappings};
/// fn kept<H: HostMemory + Frames>(
///     h: &H,
///     table: &mut SecondStage<Gpa>,
/// ) -> Result<StaleMappings<Gpa>, MapError> {
///     table.unmap(h, Gpa::new(0), 0x1000, OnPartialLeaf::Refuse)
/// }
/// ```
#[must_use = "hardware may use the old mappings until they are invalidated"]
#[derive(Debug)]
pub struct StaleMappings<I> {
    /// First input address to invalidate.
    pub first: I,
    /// Length in bytes of the range to invalidate, whole leaves.
    pub len_bytes: u64,
    /// Number of leaves that changed, or the largest there is.
    pub leaves: u32,
    tables_changed: bool,
    tables: FrameChain,
}

impl<I: InputAddress> StaleMappings<I> {
    /// A range in which nothing has changed yet.
    pub(super) const fn new(first: I, len_bytes: u64, owner: Owner) -> Self {
        Self {
            first,
            len_bytes,
            leaves: 0,
            tables_changed: false,
            tables: FrameChain::new(owner),
        }
    }

    /// Leaves of the range have changed.
    pub(super) const fn count_leaves(&mut self, leaves: u32) {
        self.leaves = self.leaves.saturating_add(leaves);
    }

    /// An entry that points to a table has changed: the range includes what it covers.
    pub(super) fn change_table(&mut self, start: u64, len_bytes: u64) {
        self.tables_changed = true;
        self.widen(start, len_bytes);
    }

    /// A table page that no entry points to any more. Its frame becomes a link of the token's chain,
    /// which hardware that still walks it reads as not present.
    pub(super) fn take_table<H: HostMemory>(&mut self, h: &H, page: Hpa) {
        self.tables_changed = true;
        self.tables.push(h, page);
    }

    /// The range includes this one.
    pub(super) fn widen(&mut self, start: u64, len_bytes: u64) {
        if self.len_bytes == 0 {
            (self.first, self.len_bytes) = (I::from_u64(start), len_bytes);
            return;
        }
        let first = self.first.to_u64();
        let end = first.saturating_add(self.len_bytes);
        let end = end.max(start.saturating_add(len_bytes));
        let first = first.min(start);
        self.first = I::from_u64(first);
        self.len_bytes = end.saturating_sub(first);
    }

    /// Whether anything has changed that hardware could know of.
    pub const fn owes_invalidation(&self) -> bool {
        self.leaves != 0 || self.tables_changed
    }

    /// Whether only leaf entries changed, so that the invalidation may carry the leaf hint
    /// (`IH`, §6.5.2.3).
    pub const fn is_leaf_only(&self) -> bool {
        !self.tables_changed
    }

    /// Adds what another edit of the same table left behind; the ranges are joined.
    pub fn merge<H: HostMemory>(&mut self, h: &H, other: Self) {
        if other.len_bytes > 0 {
            self.widen(other.first.to_u64(), other.len_bytes);
        }
        self.leaves = self.leaves.saturating_add(other.leaves);
        self.tables_changed |= other.tables_changed;
        self.tables.append(h, other.tables);
    }

    /// The table pages, for one who returns them in slices once the invalidation has completed.
    pub(crate) fn into_tables(self) -> FrameChain {
        self.tables
    }

    /// Returns the table pages to the pool, once the invalidation of the range has completed on
    /// every unit that uses the table. The crate's `nest` layer calls it with that knowledge.
    pub(crate) fn settle<H: HostMemory + Frames>(self, h: &H) {
        self.tables.free(h);
    }
}

/// Most table pages that one call of [`SecondStage::merge`](super::SecondStage::merge) replaces.
pub const MERGED_TABLES: usize = 16;

/// What [`SecondStage::merge`](super::SecondStage::merge) left behind.
///
/// As [`StaleMappings`], but hardware may go on through the table pages: they lead where the new
/// leaves do, and stay as they are until the invalidation has completed. Dropped, they are lost to
/// the pool, counted, and never reused.
#[must_use = "hardware may use the old table pages until they are invalidated"]
#[derive(Debug)]
pub struct MergedLeaves<I> {
    stale: StaleMappings<I>,
    tables: HeldTables,
    resume_at: Option<I>,
}

/// Table pages that must not be written to yet.
#[derive(Debug, Default)]
struct HeldTables(Vec<Hpa, MERGED_TABLES>);

impl Drop for HeldTables {
    fn drop(&mut self) {
        count_lost(self.0.len() as u64);
    }
}

impl<I: InputAddress> MergedLeaves<I> {
    pub(super) fn new(first: I, owner: Owner) -> Self {
        Self {
            stale: StaleMappings::new(first, 0, owner),
            tables: HeldTables::default(),
            resume_at: None,
        }
    }

    /// Whether no further table page can be taken.
    pub(super) fn is_full(&self) -> bool {
        self.tables.0.is_full()
    }

    /// A leaf has replaced the entry that pointed to a table page, and covers this range.
    pub(super) fn take_table(&mut self, page: Hpa, start: u64, len_bytes: u64) {
        self.stale.change_table(start, len_bytes);
        self.stale.count_leaves(1);
        if self.tables.0.push(page).is_err() {
            count_lost(1);
        }
    }

    /// The call ends here, because there is no room.
    pub(super) fn stop_at(&mut self, address: u64) {
        self.resume_at = Some(I::from_u64(address));
    }

    /// Number of leaves that replaced a table page.
    pub const fn leaves(&self) -> u32 {
        self.stale.leaves
    }

    /// Where to go on, because a call replaces [`MERGED_TABLES`] table pages at most; `None` once the
    /// range is done.
    pub const fn resume_at(&self) -> Option<I>
    where
        I: Copy,
    {
        self.resume_at
    }

    /// What is owed, but for the table pages.
    pub(crate) const fn owed(&self) -> &StaleMappings<I> {
        &self.stale
    }

    /// The table pages that were replaced.
    pub fn tables(&self) -> impl Iterator<Item = Hpa> {
        self.tables.0.iter().copied()
    }

    /// What is owed, and owns the table pages. From now on they read as not present: that is for
    /// after the invalidation, or where requests may be blocked until it.
    pub fn into_stale<H: HostMemory>(self, h: &H) -> StaleMappings<I> {
        let Self {
            mut stale,
            mut tables,
            ..
        } = self;
        while let Some(page) = tables.0.pop() {
            stale.take_table(h, page);
        }
        stale
    }
}
