//! Pages changed in place: what keeps a shadow in step.

use super::{ENTRIES, ENTRY_BYTES, InputAddress, MapError, SecondStage, slot_address, span_of};
use crate::arch::address::{Hpa, PAGE_SIZE_BYTES, PageSize};
use crate::arch::second_stage::{Rights, SecondStageEntry};
use crate::mem::{Frames, HostMemory};

/// What [`SecondStage::set_page`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageChange {
    /// Nothing: the page already was as wanted.
    None,
    /// A page that led nowhere leads somewhere. Hardware may only know the difference with
    /// caching mode.
    Added,
    /// A page that led somewhere leads elsewhere or nowhere: an invalidation is owed.
    Replaced,
}

/// What [`SecondStage::set_pages`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagesChanged<I> {
    /// Pages dealt with, from the first one on: those in one table page.
    pub done: u64,
    /// Pages that led nowhere and lead somewhere.
    pub added: u64,
    /// Pages that led somewhere and lead elsewhere or nowhere: an invalidation is owed.
    pub replaced: u64,
    /// A large leaf that was split on the way: its first address and length in bytes. All of it is
    /// to be invalidated, upper levels included (§6.5.3.3).
    pub split: Option<(I, u64)>,
}

impl<I: InputAddress> SecondStage<I> {
    /// Makes one 4-KiB page lead to `wanted`, or nowhere: [`set_pages`](Self::set_pages) of one.
    ///
    /// # Errors
    ///
    /// [`MapError`]; the page is unchanged.
    pub fn set_page<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        wanted: Option<(Hpa, Rights)>,
    ) -> Result<PageChange, MapError> {
        let changed = self.set_pages(h, input, &[wanted])?;
        Ok(match (changed.added, changed.replaced) {
            (0, 0) => PageChange::None,
            (_, 0) => PageChange::Added,
            _ => PageChange::Replaced,
        })
    }

    /// Makes 4-KiB pages from `first` on lead to what is `wanted` of each, or nowhere, by one store
    /// each, whatever they led to before: as many as lie in one table page.
    ///
    /// A leaf changes into another leaf of the same size, so hardware sees the old one or the new
    /// one. A large leaf on the way is split by one store: until the invalidation hardware may use
    /// the old leaf and the new ones side by side (§6.5.3.3), which agree for every page that does
    /// not change. What hardware has noted of a page goes with its old entry.
    ///
    /// # Errors
    ///
    /// [`MapError`]; every page leads where it did, though a large leaf may have been split.
    pub fn set_pages<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        first: I,
        wanted: &[Option<(Hpa, Rights)>],
    ) -> Result<PagesChanged<I>, MapError> {
        let address = first.to_u64();
        let index = address / PAGE_SIZE_BYTES % ENTRIES;
        let done = (wanted.len() as u64).min(ENTRIES - index);
        self.check_input(first, done.saturating_mul(PAGE_SIZE_BYTES))?;
        let wanted = || {
            let within = wanted.iter().take(done as usize);
            within.map(|wanted| wanted.filter(|(_, rights)| !rights.is_none()))
        };
        for (output, _) in wanted().flatten() {
            self.check_output(output, PAGE_SIZE_BYTES)?;
        }
        let mut changed = PagesChanged {
            done,
            added: 0,
            replaced: 0,
            split: None,
        };
        let any = wanted().any(|wanted| wanted.is_some());
        let Some(page) = self.table_of(h, address, 1, any, &mut changed)? else {
            return Ok(changed);
        };
        let start = slot_address(page, address, 1);
        let mut at = start;
        for wanted in wanted() {
            let entry = wanted.map_or(SecondStageEntry::default(), |(output, rights)| {
                self.leaf(output, PageSize::Size4KiB, rights)
            });
            let current = SecondStageEntry::from_u64(h.read64(at));
            if !is_same(current, entry) {
                h.write64(at, entry.as_u64());
                *if current.is_present() {
                    &mut changed.replaced
                } else {
                    &mut changed.added
                } += 1;
            }
            at = Hpa::new(at.as_u64().saturating_add(ENTRY_BYTES));
        }
        if changed.added != 0 || changed.replaced != 0 {
            self.flush_span(h, start, at.as_u64());
            h.fence();
        }
        Ok(changed)
    }

    /// Makes the block of `size` at `input` lead to `output` by one store, as one leaf, whatever leaf
    /// of that size was there before. `None`, and nothing changed, if a table is in its place or the
    /// table holds no leaves of the size.
    ///
    /// # Errors
    ///
    /// [`MapError`]; as for [`set_pages`](Self::set_pages).
    pub fn set_leaf<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        size: PageSize,
        output: Hpa,
        rights: Rights,
    ) -> Result<Option<PagesChanged<I>>, MapError> {
        let len = size.len_bytes();
        self.check_input(input, len)?;
        self.check_output(output, len)?;
        if rights.is_none() {
            return Err(MapError::NoRights);
        }
        for value in [input.to_u64(), output.as_u64()] {
            if value & (len - 1) != 0 {
                return Err(MapError::Misaligned { value });
            }
        }
        if !self.config.has_leaves_of(size) {
            return Ok(None);
        }
        let mut changed = PagesChanged {
            done: len / PAGE_SIZE_BYTES,
            added: 0,
            replaced: 0,
            split: None,
        };
        let address = input.to_u64();
        let Some(page) = self.table_of(h, address, size.level(), true, &mut changed)? else {
            return Ok(None);
        };
        let at = slot_address(page, address, size.level());
        let current = SecondStageEntry::from_u64(h.read64(at));
        if current.is_present() && !current.is_leaf(size.level()) {
            return Ok(None);
        }
        let entry = self.leaf(output, size, rights);
        if !is_same(current, entry) {
            h.write64(at, entry.as_u64());
            self.flush_entry(h, at);
            h.fence();
            *if current.is_present() {
                &mut changed.replaced
            } else {
                &mut changed.added
            } += 1;
        }
        Ok(Some(changed))
    }

    /// The table page with the entry of a level for an address: made if it is missing and `make`
    /// says so, `None` if not. A larger leaf in its place is split.
    fn table_of<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        address: u64,
        last: u8,
        make: bool,
        changed: &mut PagesChanged<I>,
    ) -> Result<Option<Hpa>, MapError> {
        let mut page = self.root;
        let mut level = self.config.width().levels();
        while level > last {
            let at = slot_address(page, address, level);
            let current = SecondStageEntry::from_u64(h.read64(at));
            if current.is_present() && !current.is_leaf(level) {
                page = current.address();
                level -= 1;
                continue;
            }
            if !current.is_present() && !make {
                return Ok(None);
            }
            page = h.allocate(self.owner, 0)?.address();
            if current.is_present() {
                self.replace_by_table(h, at, current, level, page);
                let span = span_of(level);
                let first = address & !(span - 1);
                changed.split = changed.split.or(Some((I::from_u64(first), span)));
            } else {
                self.link(h, at, page, false);
            }
            level -= 1;
        }
        Ok(Some(page))
    }
}

/// Whether two entries differ at most in what hardware has noted.
fn is_same(one: SecondStageEntry, other: SecondStageEntry) -> bool {
    let noted = SecondStageEntry::ACCESSED | SecondStageEntry::DIRTY;
    one.with(noted) == other.with(noted)
}
