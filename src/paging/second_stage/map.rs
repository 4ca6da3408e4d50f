//! Mapping: what is missing is counted and what overlaps is found first, then all is written in one
//! walk, each new table page before the entry that leads to it.

use super::cursor::Cursor;
use super::{ENTRY_BYTES, InputAddress, MAX_LEVELS, MapError, SecondStage, shift_of, span_of};
use crate::arch::address::{Hpa, PAGE_SIZE_BYTES, PageSize};
use crate::arch::second_stage::{Rights, SecondStageEntry};
use crate::mem::{FrameChain, Frames, HostMemory};

/// What a mapping needs before it can be written.
struct Plan {
    /// Table pages that are missing.
    tables: u32,
    /// The first entry, if the whole range is 4-KiB pages of one table page that exists.
    single_run: Option<Hpa>,
}

/// What is to be mapped.
#[derive(Clone, Copy)]
struct Request {
    first: u64,
    end: u64,
    output: u64,
}

impl Request {
    /// Where an address of the range is to lead.
    fn target(&self, address: u64) -> u64 {
        address.wrapping_sub(self.first).wrapping_add(self.output)
    }
}

impl<I: InputAddress> SecondStage<I> {
    /// Maps `len_bytes` from `input` on to `output`, in the largest pages that fit.
    ///
    /// No invalidation is owed on a unit without caching mode and write-buffer flushing; with
    /// either, the caller invalidates the range (§6.5.3.5).
    ///
    /// # Errors
    ///
    /// [`MapError`]: ranges and overlaps are checked and all table pages reserved before the
    /// first entry is written.
    pub fn map<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        output: Hpa,
        len_bytes: u64,
        rights: Rights,
    ) -> Result<(), MapError> {
        self.check_mapping(input, output, len_bytes, rights)?;
        let first = input.to_u64();
        let request = Request {
            first,
            end: first.saturating_add(len_bytes),
            output: output.as_u64(),
        };
        let plan = self.plan(h, &request)?;
        if let Some(at) = plan.single_run {
            let size = PageSize::Size4KiB;
            let leaf = self.leaf(output, size, rights);
            let count = len_bytes / PAGE_SIZE_BYTES;
            self.fill(h, at, leaf, size, count);
            self.flush_entries(h, at, count);
        } else {
            let mut reserve = FrameChain::allocate(h, self.owner, plan.tables)?;
            self.write(h, &request, rights, &mut reserve);
            reserve.free(h);
        }
        h.fence();
        Ok(())
    }

    /// Whether ranges and rights can be those of a mapping; what is mapped already is not looked at.
    ///
    /// # Errors
    ///
    /// [`MapError`].
    pub fn check_mapping(
        &self,
        input: I,
        output: Hpa,
        len_bytes: u64,
        rights: Rights,
    ) -> Result<(), MapError> {
        self.check_input(input, len_bytes)?;
        self.check_output(output, len_bytes)?;
        if rights.is_none() {
            return Err(MapError::NoRights);
        }
        Ok(())
    }

    /// Counts the table pages that are missing, and looks for pages that are mapped already: each
    /// entry in the range is read once.
    ///
    /// # Errors
    ///
    /// [`MapError::Overlap`] for the first of those.
    fn plan<H: HostMemory>(&self, h: &H, request: &Request) -> Result<Plan, MapError> {
        let mut plan = Plan {
            tables: 0,
            single_run: None,
        };
        let mut cursor = self.cursor(request.first, request.end);
        while !cursor.is_done() {
            let (address, level) = (cursor.address(), cursor.level());
            if level == 1 {
                let (at, count) = (cursor.slot(), cursor.run());
                self.check_free(h, at, address, count)?;
                cursor.advance(count);
                if address == request.first && cursor.is_done() {
                    plan.single_run = Some(at);
                }
            } else {
                let entry = SecondStageEntry::from_u64(h.read64(cursor.slot()));
                if entry.is_present() {
                    if entry.is_leaf(level) {
                        return Err(MapError::Overlap { address });
                    }
                    cursor.descend(entry.address());
                    continue;
                }
                let end = address.saturating_add(cursor.rest_of_entry());
                let missing = self.missing_tables(request, address, end, level);
                plan.tables = plan.tables.saturating_add(missing);
                cursor.advance(1);
            }
            while cursor.leave().is_some() {}
        }
        Ok(plan)
    }

    /// Looks for mapped pages in a run of entries of level 1.
    fn check_free<H: HostMemory>(
        &self,
        h: &H,
        at: Hpa,
        address: u64,
        count: u64,
    ) -> Result<(), MapError> {
        let mut slot = at.as_u64();
        for index in 0..count {
            if SecondStageEntry::from_u64(h.read64(Hpa::new(slot))).is_present() {
                let offset = index.saturating_mul(PAGE_SIZE_BYTES);
                let address = address.saturating_add(offset);
                return Err(MapError::Overlap { address });
            }
            slot = slot.wrapping_add(ENTRY_BYTES);
        }
        Ok(())
    }

    /// Table pages that a range takes inside one entry of a level that is not present.
    fn missing_tables(&self, request: &Request, first: u64, end: u64, level: u8) -> u32 {
        let mut missing = 0u64;
        // Size of the smallest leaves that cover the middle of the range; tables are for its ends.
        let mut leaves = None;
        for level in (2..=level).rev() {
            let span = span_of(level);
            let is_leaf_possible = self.may_be_leaf(level, first ^ request.target(first));
            if is_leaf_possible
                && (leaves.is_some() || round_up(first, span) < round_down(end, span))
            {
                leaves = Some(span);
            }
            let touched = |first: u64, end: u64| {
                let len = round_up(end, span).saturating_sub(round_down(first, span));
                if first < end {
                    len >> shift_of(level)
                } else {
                    0
                }
            };
            let tables = match leaves {
                None => touched(first, end),
                Some(leaf) => {
                    let (head, tail) = (round_up(first, leaf), round_down(end, leaf));
                    touched(first, head).saturating_add(touched(tail, end))
                }
            };
            missing = missing.saturating_add(tables);
        }
        u32::try_from(missing).unwrap_or(u32::MAX)
    }

    /// Whether entries of a level may be leaves, as far as the sizes that hardware has go and the low
    /// bits in which input and output differ.
    fn may_be_leaf(&self, level: u8, difference: u64) -> bool {
        PageSize::of_level(level).is_some_and(|size| {
            self.config.has_leaves_of(size) && difference & (size.len_bytes() - 1) == 0
        })
    }

    /// Writes a mapping that has been planned. A missing table page is filled before the entry that
    /// points to it is stored, lowest level first: until then hardware does not see it.
    fn write<H: HostMemory>(
        &self,
        h: &H,
        request: &Request,
        rights: Rights,
        reserve: &mut FrameChain,
    ) {
        let mut cursor = self.cursor(request.first, request.end);
        // Whether the table page of a level is not linked yet.
        let mut is_fresh = [false; MAX_LEVELS + 2];
        while !cursor.is_done() {
            let level = cursor.level();
            let fresh = is_fresh.get(usize::from(level)) == Some(&true);
            let count = self.leaves_that_fit(h, request, &cursor, fresh);
            if let Some(size) = PageSize::of_level(level).filter(|_| count > 0) {
                let (at, target) = (cursor.slot(), request.target(cursor.address()));
                let leaf = self.leaf(Hpa::new(target), size, rights);
                self.fill(h, at, leaf, size, count);
                if !fresh {
                    self.flush_entries(h, at, count);
                }
                cursor.advance(count);
            } else {
                let entry = SecondStageEntry::from_u64(h.read64(cursor.slot()));
                let page = if entry.is_present() {
                    Some(entry.address())
                } else {
                    reserve.pop(h)
                };
                // As many as were counted.
                let Some(page) = page else { return };
                cursor.descend(page);
                if let Some(fresh) = is_fresh.get_mut(usize::from(cursor.level())) {
                    *fresh = !entry.is_present();
                }
                continue;
            }
            while let Some(table) = cursor.leave() {
                let below = usize::from(table.level).saturating_sub(1);
                if is_fresh.get(below) == Some(&true) {
                    let parent_is_fresh = is_fresh.get(usize::from(table.level)) == Some(&true);
                    self.link(h, table.slot, table.page, parent_is_fresh);
                }
            }
        }
    }

    /// Makes an entry point to a table page that is complete. If the entry lies in a page that is not
    /// linked itself, that page is flushed later.
    pub(super) fn link<H: HostMemory>(&self, h: &H, slot: Hpa, page: Hpa, parent_is_fresh: bool) {
        self.publish_page(h, page);
        h.write64(slot, SecondStageEntry::table(page).as_u64());
        if !parent_is_fresh {
            self.flush_entry(h, slot);
        }
    }

    /// Number of entries from the cursor's on that are to be leaves: those in this table page that
    /// are free and whole in the range. 0 if the first one has to be a table.
    ///
    /// Where a lower table exists, even an empty one, it is used, because replacing it by a leaf
    /// would owe an invalidation.
    fn leaves_that_fit<H: HostMemory>(
        &self,
        h: &H,
        request: &Request,
        cursor: &Cursor,
        fresh: bool,
    ) -> u64 {
        let (level, address) = (cursor.level(), cursor.address());
        if level == 1 {
            return cursor.run();
        }
        let span = span_of(level);
        let target = request.target(address);
        if !self.may_be_leaf(level, address ^ target) || round_down(address, span) != address {
            return 0;
        }
        let whole = request.end.saturating_sub(address) >> shift_of(level);
        let most = cursor.run().min(whole);
        let mut slot = cursor.slot().as_u64();
        if fresh {
            return most;
        }
        for count in 0..most {
            if SecondStageEntry::from_u64(h.read64(Hpa::new(slot))).is_present() {
                return count;
            }
            slot = slot.wrapping_add(ENTRY_BYTES);
        }
        most
    }
}

const fn round_down(address: u64, span: u64) -> u64 {
    address & !span.wrapping_sub(1)
}

/// Addresses have 57 bits at most, so this does not wrap.
const fn round_up(address: u64, span: u64) -> u64 {
    round_down(address.wrapping_add(span.wrapping_sub(1)), span)
}
