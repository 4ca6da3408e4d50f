//! Shadow: a guest's second-stage table composed with the machine's own (§3.7).
//!
//! A shadow maps each I/O virtual address of the guest's table to the host page behind it, with
//! the rights that both tables grant. It is built when the first binding needs it, and kept in
//! step by the guest's invalidations, which caching mode makes it send for new mappings too
//! (§6.1). What they name is collected, and brought in step in slices once the guest waits.
//!
//! The guest's table is hostile: it may be large, overlap itself or point anywhere. Each slice
//! reads one piece of a table page and changes a bounded number of entries; a range that needs
//! more table pages than the machine's limit fails, and the shadow's own pages are charged to the
//! machine's quota.

mod changes;
mod synchronise;
#[cfg(test)]
mod tests;

use crate::arch::address::{AddressWidth, Gpa, Iova, PageSize};
use crate::arch::id::DomainId;
use crate::mem::{FrameChain, Frames, HostMemory, Hypervisor};
use crate::nest::coalesce::{Keyed, Span, Spans, SpansFull};
use crate::paging::{SecondStage, StaleMappings};

pub(in crate::nest) use changes::Changes;
pub(in crate::nest) use synchronise::Synchronisation;

/// Entries of a table page.
const ENTRIES: u64 = 512;
/// Entries of a guest table page that a slice reads, and so pages that it changes.
const PIECE: usize = 32;
/// Pieces of a table page, times two for those that begin elsewhere: the slices that a range may
/// take for each guest table page that it may read.
const SLICES_PER_TABLE: u32 = 2 * (ENTRIES as u32 / PIECE as u32);
/// An address in the interrupt range.
const INTERRUPT_RANGE: u64 = 0xfee0_0000;
/// Ranges that are kept apart until they are brought in step.
const PENDING: usize = 8;
/// Frames that a slice returns to the pool.
const FRAMES_PER_SLICE: u32 = 64;

/// One shadow table.
#[derive(Debug)]
pub(in crate::nest) struct Shadow {
    /// The guest's domain-id that it serves.
    pub(in crate::nest) domain_id: DomainId,
    /// Root of the guest's table.
    pub(in crate::nest) guest_root: Gpa,
    /// Levels of the guest's table, and of the shadow.
    pub(in crate::nest) width: AddressWidth,
    /// The shadow itself.
    pub(in crate::nest) table: SecondStage<Iova>,
    /// It could not be brought in step and is emptied: the next synchronisation is a whole one.
    pub(in crate::nest) is_dropped: bool,
    /// While it is emptied: below this address nothing is mapped any more.
    emptied: Option<u64>,
    /// Host domains that use it; 0 while it is built.
    pub(in crate::nest) users: u32,
    /// Table pages taken out since the last flush was submitted.
    pub(in crate::nest) detached: Option<StaleMappings<Iova>>,
    /// Table pages that are free once the flush under way is confirmed.
    pub(in crate::nest) flushing: Option<StaleMappings<Iova>>,
    /// Table pages that are free, on their way back to the pool.
    returned: FrameChain,
    /// What is to be brought in step with the guest's table.
    pending: Spans<(), PENDING>,
    /// What the work on it may still cost.
    allowance: Allowance,
}

/// What the work on the pending ranges of a shadow may still cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Allowance {
    tables: u32,
    slices: u32,
    /// The guest table page read last: going on with it costs no other.
    table: Option<Gpa>,
}

impl Shadow {
    /// A shadow that has yet to be brought in step.
    pub(in crate::nest) fn new(
        domain_id: DomainId,
        guest_root: Gpa,
        width: AddressWidth,
        table: SecondStage<Iova>,
        table_limit: u32,
    ) -> Self {
        let owner = table.owner();
        let mut shadow = Self {
            domain_id,
            guest_root,
            width,
            table,
            is_dropped: false,
            emptied: None,
            users: 0,
            detached: None,
            flushing: None,
            returned: FrameChain::new(owner),
            pending: Spans::new(),
            allowance: Allowance::default(),
        };
        shadow.restart(table_limit);
        shadow
    }

    /// Whether it is the shadow of this table under this domain-id.
    pub(in crate::nest) fn serves(
        &self,
        domain_id: DomainId,
        guest_root: Gpa,
        width: AddressWidth,
    ) -> bool {
        self.domain_id == domain_id && self.guest_root == guest_root && self.width == width
    }

    /// First address that neither the guest's table nor the shadow can have.
    fn input_end(&self) -> u64 {
        let bits = self.table.config().input_bits();
        1 << bits.min(57)
    }

    /// Has a range brought in step; all of a shadow that was dropped.
    ///
    /// # Errors
    ///
    /// [`SpansFull`]: some of what is pending has to be done first.
    pub(in crate::nest) fn mark(&mut self, span: Span, table_limit: u32) -> Result<(), SpansFull> {
        let span = if self.is_dropped {
            Span::EVERYTHING
        } else {
            span
        };
        self.pending.add(Keyed {
            key: (),
            span,
            leaf_only: false,
        })?;
        self.is_dropped = false;
        self.allowance = Allowance {
            tables: table_limit,
            slices: table_limit.saturating_mul(SLICES_PER_TABLE),
            table: None,
        };
        Ok(())
    }

    /// Start and length in bytes of the shadow's large leaf that holds an address, if one does.
    fn large_leaf<H: Hypervisor>(&self, h: &H, address: u64) -> Option<(u64, u64)> {
        if !self.table.config().has_leaves_of(PageSize::Size2MiB) {
            return None;
        }
        let mapping = self.table.translate(h, Iova::new(address))?;
        let len = mapping.size.len_bytes();
        (mapping.size != PageSize::Size4KiB).then_some((address & !(len - 1), len))
    }

    /// Begins anew with all of it.
    pub(in crate::nest) fn restart(&mut self, table_limit: u32) {
        self.pending.clear();
        // There is room for one.
        _ = self.mark(Span::EVERYTHING, table_limit);
    }

    /// Whether nothing is left to be brought in step.
    pub(in crate::nest) fn is_in_step(&self) -> bool {
        self.pending.is_empty() && self.emptied.is_none()
    }

    /// Has the shadow emptied, by [`empty_slice`](Self::empty_slice): every request through it faults
    /// from the flush after that on.
    pub(in crate::nest) fn empty(&mut self) {
        self.pending.clear();
        self.is_dropped = true;
        self.emptied = Some(0);
    }

    /// Does a slice of emptying the shadow, of about one table page; `false` if that is not asked for.
    pub(in crate::nest) fn empty_slice<H: HostMemory>(&mut self, h: &H) -> bool {
        let Some(mut next) = self.emptied else {
            return false;
        };
        let unmapped = self.table.remove_slice(h, &mut next);
        self.detach(h, unmapped);
        self.emptied = (next < self.table.end()).then_some(next);
        true
    }

    /// What was taken out waits for the next flush.
    fn detach<H: HostMemory>(&mut self, h: &H, unmapped: StaleMappings<Iova>) {
        match self.detached.as_mut() {
            Some(detached) => detached.merge(h, unmapped),
            None => self.detached = Some(unmapped),
        }
    }

    /// A flush that covers everything detached so far has been submitted.
    pub(in crate::nest) fn flush_submitted<H: HostMemory>(&mut self, h: &H) {
        if let Some(detached) = self.detached.take() {
            match self.flushing.as_mut() {
                Some(flushing) => flushing.merge(h, detached),
                None => self.flushing = Some(detached),
            }
        }
    }

    /// That flush was not confirmed: what it covers waits for the next one.
    pub(in crate::nest) fn flush_failed<H: HostMemory>(&mut self, h: &H) {
        if let Some(flushing) = self.flushing.take() {
            self.detach(h, flushing);
        }
    }

    /// That flush is confirmed: [`give_back_tables`](Self::give_back_tables) does the rest.
    pub(in crate::nest) fn flush_confirmed<H: HostMemory>(&mut self, h: &H) {
        if let Some(flushing) = self.flushing.take() {
            self.returned.append(h, flushing.into_tables());
        }
    }

    /// Whether table pages are free and not yet back in the pool.
    pub(in crate::nest) const fn has_tables_to_give_back(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Returns some of the table pages that are free to the pool; `false` if there are none.
    pub(in crate::nest) fn give_back_tables<H: HostMemory + Frames>(&mut self, h: &H) -> bool {
        let has_some = self.has_tables_to_give_back();
        self.returned.free_some(h, FRAMES_PER_SLICE);
        has_some
    }

    /// The table, and what was taken out of it, once no entry names it and its domain is
    /// invalidated.
    pub(in crate::nest) fn into_tables<H: HostMemory>(
        mut self,
        h: &H,
    ) -> (SecondStage<Iova>, FrameChain) {
        self.flush_submitted(h);
        self.flush_confirmed(h);
        (self.table, self.returned)
    }
}
