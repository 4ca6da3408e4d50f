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

use crate::arch::address::{AddressWidth, Gpa, Hpa, Iova, PAGE_SIZE_BYTES, PageSize};
use crate::arch::features::TableFeatures;
use crate::arch::id::DomainId;
use crate::arch::second_stage::{Rights, SecondStageEntry, SecondStageEntryMeaning};
use crate::mem::{FrameChain, Frames, GuestMemory, HostMemory, Hypervisor};
use crate::nest::coalesce::{Keyed, Span, Spans, SpansFull};
use crate::nest::memory::MachineMemory;
use crate::nest::statistics::MachineStatistics;
use crate::paging::second_stage::{Mapping, PagesChanged};
use crate::paging::walk::is_interrupt_address;
use crate::paging::{MapError, SecondStage, Unmapped};
use crate::viommu::host::BindError;

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
    pub(in crate::nest) detached: Option<Unmapped<Iova>>,
    /// Table pages that are free once the flush under way is confirmed.
    pub(in crate::nest) flushing: Option<Unmapped<Iova>>,
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

/// What a slice changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::nest) struct Changes {
    /// Pages that led nowhere before.
    pub(in crate::nest) added: u64,
    /// Pages that lead elsewhere, or nowhere any more.
    pub(in crate::nest) replaced: u64,
    /// The first and the last of them, and what lies between.
    pub(in crate::nest) span: Option<Span>,
    /// Nothing but last-level entries that led somewhere has changed.
    pub(in crate::nest) is_leaf_only: bool,
}

impl Changes {
    fn add(&mut self, first: Iova, len_bytes: u64, added: u64, replaced: u64) {
        if added == 0 && replaced == 0 {
            return;
        }
        self.is_leaf_only = added == 0 && (self.is_leaf_only || self.span.is_none());
        self.added = self.added.wrapping_add(added);
        self.replaced = self.replaced.wrapping_add(replaced);
        let last = first.as_u64().saturating_add(len_bytes.saturating_sub(1));
        let span = Span {
            first: first.as_u64() / PAGE_SIZE_BYTES,
            last: last / PAGE_SIZE_BYTES,
        };
        self.span = Some(self.span.map_or(span, |old| old.joined(&span)));
    }

    /// A large leaf was split: all of it is owed, upper levels included.
    fn add_split(&mut self, split: Option<(Iova, u64)>) {
        if let Some((first, len_bytes)) = split {
            self.add(first, len_bytes, 0, 1);
            self.is_leaf_only = false;
        }
    }
}

/// What a synchronisation works with.
pub(in crate::nest) struct Synchronisation<'a, H> {
    /// The guest's memory, where its table lies and leads to.
    pub(in crate::nest) memory: MachineMemory<'a, H>,
    /// What the guest was shown: which bits of its entries are reserved.
    pub(in crate::nest) features: &'a TableFeatures,
}

/// Entries of a guest table page that lie side by side, read in one copy.
struct Piece {
    bytes: [u8; PIECE * 8],
    len: usize,
}

impl Piece {
    fn entries(&self) -> impl Iterator<Item = SecondStageEntry> {
        let entries = self.bytes.as_chunks::<8>().0.iter().take(self.len);
        entries.map(|bytes| SecondStageEntry::from_u64(u64::from_le_bytes(*bytes)))
    }
}

/// What the guest's table says of an address.
enum GuestWalk {
    /// A table page of last-level entries, with the rights of all levels above it.
    LastTable { page: Gpa, rights: Rights },
    /// A large leaf: where the address leads, the rights of all levels, bytes to the leaf's end.
    Leaf {
        output: Gpa,
        rights: Rights,
        rest: u64,
    },
    /// Nothing, for this many bytes.
    Nothing { rest: u64 },
}

/// Host pages that a run of shadow entries is to lead to.
type Wanted = heapless::Vec<Option<(Hpa, Rights)>, PIECE>;

impl<H: Hypervisor> Synchronisation<'_, H> {
    /// Does a slice of what is pending: at most one piece of a guest table page is read, and as
    /// many pages of the shadow change, or those below one of its table pages go.
    ///
    /// # Errors
    ///
    /// [`BindError::GuestTables`] beyond the limit, [`BindError::Frames`] beyond the quota. The
    /// shadow then holds some old and some new pages; the caller empties it.
    pub(in crate::nest) fn run_slice(
        &self,
        shadow: &mut Shadow,
        statistics: &mut MachineStatistics,
    ) -> Result<Changes, BindError> {
        let mut changes = Changes::default();
        let Some(span) = shadow.pending.first().map(|entry| entry.span) else {
            return Ok(changes);
        };
        let limit = shadow.input_end();
        let start = span.first.saturating_mul(PAGE_SIZE_BYTES);
        let end = span.last.saturating_add(1).saturating_mul(PAGE_SIZE_BYTES);
        let end = end.min(limit);
        if start >= end {
            shadow.pending.advance_first(u64::MAX);
            return Ok(changes);
        }
        // Hardware that drops a page of a large leaf drops the leaf: so all of it is looked at.
        if let Some((first, len)) = shadow.large_leaf(self.memory.h, start)
            && (first < start || first.saturating_add(len) > end)
        {
            let leaf = Span {
                first: first / PAGE_SIZE_BYTES,
                last: first.saturating_add(len - 1) / PAGE_SIZE_BYTES,
            };
            shadow.pending.widen_first(&leaf);
            return Ok(changes);
        }
        let exhausted = BindError::GuestTables {
            address: Iova::new(start),
        };
        let allowance = &mut shadow.allowance;
        allowance.slices = allowance.slices.checked_sub(1).ok_or(exhausted)?;
        let here = Iova::new(start);
        let done = match self.walk(shadow, start) {
            GuestWalk::Nothing { rest } => {
                self.clear(shadow, here, rest.min(end - start), &mut changes)?
            }
            GuestWalk::Leaf {
                output,
                rights,
                rest,
            } => {
                let rest = rest.min(end - start);
                match self.memory.second_stage.look_up(self.memory.h, output) {
                    Err(absent) => {
                        let len = rest.min(absent).max(PAGE_SIZE_BYTES) & !(PAGE_SIZE_BYTES - 1);
                        self.clear(shadow, here, len, &mut changes)?
                    }
                    Ok(mapping) => {
                        let large = self.largest_leaf(shadow, here, output, &mapping, rest);
                        let leads = mapping.rights.intersection(rights);
                        match large {
                            Some(size)
                                if self.set_large(
                                    shadow,
                                    here,
                                    size,
                                    mapping.output,
                                    leads,
                                    &mut changes,
                                )? =>
                            {
                                size.len_bytes()
                            }
                            _ => {
                                let pages = self.pages_of_leaf(output, rights, rest);
                                self.set(shadow, here, &pages, &mut changes)?
                            }
                        }
                    }
                }
            }
            GuestWalk::LastTable { page, rights } => {
                if shadow.allowance.table != Some(page) {
                    let tables = &mut shadow.allowance.tables;
                    *tables = tables.checked_sub(1).ok_or(exhausted)?;
                    shadow.allowance.table = Some(page);
                    statistics.shadow_table_reads = statistics.shadow_table_reads.wrapping_add(1);
                }
                let most = (end - start) / PAGE_SIZE_BYTES;
                match self.read_piece(page, start, 1, most) {
                    Some(piece) => {
                        let pages = self.pages_of_table(&piece, rights);
                        self.set(shadow, here, &pages, &mut changes)?
                    }
                    // No entry of the page can be read: one look is enough for all of them.
                    None => {
                        let table_span = PAGE_SIZE_BYTES * ENTRIES;
                        let rest = table_span - (start & (table_span - 1));
                        self.clear(shadow, here, rest.min(end - start), &mut changes)?
                    }
                }
            }
        };
        let next = start.saturating_add(done.max(PAGE_SIZE_BYTES));
        shadow.pending.advance_first(if next >= end {
            u64::MAX
        } else {
            next / PAGE_SIZE_BYTES
        });
        statistics.shadow_pages = statistics
            .shadow_pages
            .wrapping_add(changes.added.wrapping_add(changes.replaced));
        Ok(changes)
    }

    /// Reads entries of a guest table page of `level` from the one for `address` on: as many as a
    /// piece has room for, the page has left, and `most` allows. `None` where there is no memory.
    fn read_piece(&self, page: Gpa, address: u64, level: u8, most: u64) -> Option<Piece> {
        let index = address >> shift_of(level) & (ENTRIES - 1);
        let len = (PIECE as u64).min(ENTRIES - index).min(most) as usize;
        let mut piece = Piece {
            bytes: [0; PIECE * 8],
            len,
        };
        let at = page.checked_add(8 * index)?;
        self.memory
            .read(at, piece.bytes.get_mut(..len * 8)?)
            .ok()
            .map(|()| piece)
    }

    /// Where the machine's memory has the pages that last-level entries of the guest lead to.
    fn pages_of_table(&self, piece: &Piece, rights: Rights) -> Wanted {
        let mut pages = Wanted::new();
        for entry in piece.entries() {
            let wanted = match entry.classify::<Gpa>(1, self.features) {
                Ok(SecondStageEntryMeaning::Leaf { address, .. }) => {
                    self.host_page(address, rights.intersection(entry.rights()))
                }
                // Absent or invalid alike: the address leads nowhere, and a fault there is explained
                // by walking the guest's table again.
                _ => None,
            };
            // As many as the piece has.
            _ = pages.push(wanted);
        }
        pages
    }

    /// Where the machine's memory has the pages of a guest's large leaf from `output` on, as many
    /// as a piece has room for.
    fn pages_of_leaf(&self, output: Gpa, rights: Rights, rest: u64) -> Wanted {
        let mut pages = Wanted::new();
        for index in 0..(rest / PAGE_SIZE_BYTES).min(PIECE as u64) {
            let wanted = output
                .checked_add(index * PAGE_SIZE_BYTES)
                .and_then(|page| self.host_page(page, rights));
            _ = pages.push(wanted);
        }
        pages
    }

    /// Where the machine's memory has a guest page, with the rights that both grant.
    fn host_page(&self, page: Gpa, guest_rights: Rights) -> Option<(Hpa, Rights)> {
        // A guest page in the interrupt range is an error to hardware (§3.15): it leads nowhere.
        if is_interrupt_address(page.as_u64()) {
            return None;
        }
        let mapping = self.memory.second_stage.translate(self.memory.h, page)?;
        let rights = mapping.rights.intersection(guest_rights);
        (!rights.is_none()).then_some((mapping.output, rights))
    }

    /// The largest leaf, beyond a page, by which the shadow may lead from `here` to where the
    /// machine's memory has the guest page `output`: as large as the guest's leaf, the machine's,
    /// the table and the alignment of all allow.
    fn largest_leaf(
        &self,
        shadow: &Shadow,
        here: Iova,
        output: Gpa,
        mapping: &Mapping,
        rest: u64,
    ) -> Option<PageSize> {
        let config = shadow.table.config();
        let sizes = [
            (PageSize::Size1GiB, config.leaves_1gib),
            (PageSize::Size2MiB, config.leaves_2mib),
        ];
        let fits = |size: PageSize| {
            let len = size.len_bytes();
            let addresses = here.as_u64() | output.as_u64() | mapping.output.as_u64();
            // A part of the block in the interrupt range must lead nowhere (§3.15).
            let meets_interrupts = (output.as_u64() ^ INTERRUPT_RANGE) & !(len - 1) == 0;
            len <= rest && mapping.size >= size && addresses & (len - 1) == 0 && !meets_interrupts
        };
        let found = sizes.into_iter().find(|(size, has)| *has && fits(*size));
        found.map(|(size, _)| size)
    }

    /// Sets a large leaf of the shadow; `false` if small pages have to do, because a table is in
    /// its place: replacing it would leave hardware with neither for a while.
    fn set_large(
        &self,
        shadow: &mut Shadow,
        here: Iova,
        size: PageSize,
        output: Hpa,
        rights: Rights,
        changes: &mut Changes,
    ) -> Result<bool, BindError> {
        let set = shadow
            .table
            .set_leaf(self.memory.h, here, size, output, rights)
            .map_err(|error| refused(error, here))?;
        let Some(changed) = set else {
            return Ok(false);
        };
        changes.add(here, size.len_bytes(), changed.added, changed.replaced);
        changes.add_split(changed.split);
        Ok(true)
    }

    /// Sets pages of the shadow from `here` on; gives the length dealt with. They lie in one
    /// table page, or only the first ones are set.
    fn set(
        &self,
        shadow: &mut Shadow,
        here: Iova,
        pages: &[Option<(Hpa, Rights)>],
        changes: &mut Changes,
    ) -> Result<u64, BindError> {
        let PagesChanged {
            done,
            added,
            replaced,
            split,
        } = shadow
            .table
            .set_pages(self.memory.h, here, pages)
            .map_err(|error| refused(error, here))?;
        let len_bytes = done.saturating_mul(PAGE_SIZE_BYTES);
        changes.add(here, len_bytes, added, replaced);
        changes.add_split(split);
        Ok(len_bytes)
    }

    /// Clears the start of a range of the shadow: all of it where nothing is mapped, or else at
    /// most what one table page maps. Gives the length dealt with. What that detaches waits for the
    /// next confirmed flush.
    fn clear(
        &self,
        shadow: &mut Shadow,
        first: Iova,
        len_bytes: u64,
        changes: &mut Changes,
    ) -> Result<u64, BindError> {
        let h = self.memory.h;
        let end = first.as_u64().saturating_add(len_bytes);
        let mut address = first.as_u64();
        for _ in 0..PIECE {
            match shadow.table.look_up(h, Iova::new(address)) {
                // Up to the end of a missing table; a page that is missing in a table says little.
                Err(absent) if absent > PAGE_SIZE_BYTES || absent >= end - address => {
                    address = address.saturating_add(absent);
                }
                _ => break,
            }
            if address >= end {
                return Ok(len_bytes);
            }
        }
        if address > first.as_u64() {
            return Ok(address - first.as_u64());
        }
        let table_span = PAGE_SIZE_BYTES * ENTRIES;
        let large = shadow.large_leaf(h, first.as_u64());
        let len_bytes = match large {
            None => len_bytes.min(table_span - (first.as_u64() & (table_span - 1))),
            Some((start, len)) if start == first.as_u64() && len <= len_bytes => len,
            // A part of it goes: it is split.
            Some(_) => {
                let mut nothing = Wanted::new();
                for _ in 0..(len_bytes / PAGE_SIZE_BYTES).min(PIECE as u64) {
                    _ = nothing.push(None);
                }
                return self.set(shadow, first, &nothing, changes);
            }
        };
        if let Ok(unmapped) = shadow.table.unmap_covering(h, first, len_bytes) {
            if unmapped.leaves > 0 || !unmapped.is_leaf_only() {
                let (first, len) = (unmapped.first, unmapped.len_bytes);
                changes.add(first, len, 0, unmapped.leaves.max(1));
            }
            if !unmapped.is_leaf_only() {
                shadow.detach(h, unmapped);
            }
        }
        Ok(len_bytes)
    }

    /// Walks the guest's table for an address, down to a page of last-level entries.
    fn walk(&self, shadow: &Shadow, address: u64) -> GuestWalk {
        let mut page = shadow.guest_root;
        let mut level = shadow.width.levels();
        let mut rights = Rights::READ_WRITE;
        while level > 1 {
            let span = 1u64 << shift_of(level);
            let rest = span - (address & (span - 1));
            let Some(piece) = self.read_piece(page, address, level, 1) else {
                // No entry of the page can be read.
                let table_span = span.saturating_mul(ENTRIES);
                let within = address & table_span.wrapping_sub(1);
                return GuestWalk::Nothing {
                    rest: table_span.saturating_sub(within),
                };
            };
            let entry = piece.entries().next().unwrap_or_default();
            rights = rights.intersection(entry.rights());
            match entry.classify::<Gpa>(level, self.features) {
                Ok(SecondStageEntryMeaning::Table { address: below }) if !rights.is_none() => {
                    page = below;
                }
                Ok(SecondStageEntryMeaning::Leaf {
                    address: output, ..
                }) if !rights.is_none() => {
                    let Some(output) = output.checked_add(address & (span - 1)) else {
                        return GuestWalk::Nothing { rest };
                    };
                    return GuestWalk::Leaf {
                        output,
                        rights,
                        rest,
                    };
                }
                _ => {
                    let rest = self.nothing_from(page, address, level, rest);
                    return GuestWalk::Nothing { rest };
                }
            }
            level = level.saturating_sub(1);
        }
        GuestWalk::LastTable { page, rights }
    }

    /// How far nothing reaches from an entry that leads nowhere: over the entries beside it that
    /// lead nowhere either. `rest` is what the entry itself has left.
    fn nothing_from(&self, page: Gpa, address: u64, level: u8, rest: u64) -> u64 {
        let span = 1u64 << shift_of(level);
        let Some(piece) = self.read_piece(page, address, level, ENTRIES) else {
            return rest;
        };
        let more = piece.entries().skip(1).take_while(|entry| {
            entry.rights().is_none() || entry.classify::<Gpa>(level, self.features).is_err()
        });
        rest.saturating_add(span.saturating_mul(more.count() as u64))
    }
}

/// What a refusal of the shadow's own table means to the guest.
const fn refused(error: MapError, address: Iova) -> BindError {
    match error {
        MapError::Frames(error) => BindError::Frames(error),
        _ => BindError::GuestTables { address },
    }
}

/// Bits of an address below those that select an entry of a level, 1 to 5.
const fn shift_of(level: u8) -> u32 {
    12 + 9 * ((level as u32).saturating_sub(1) % 5)
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
        let bits = self.table.config().input_bits.min(self.width.bits());
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
        if !self.table.config().leaves_2mib {
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
        self.emptied = (next < self.table.input_end()).then_some(next);
        true
    }

    /// What was taken out waits for the next flush.
    fn detach<H: HostMemory>(&mut self, h: &H, unmapped: Unmapped<Iova>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::testing::TestHypervisor;
    use crate::mem::{HostMemory, Owner};
    use crate::paging::SecondStageConfig;
    use crate::paging::second_stage::Dismantling;

    const VM: Owner = Owner::new(1);
    /// Guest-physical 0 to 15 pages are here on the host, and may be read and written.
    const HOST: u64 = 0x10_0000;
    /// Guest-physical address of a page that the machine may only read.
    const READ_ONLY: u64 = 0x2_0000;
    /// The guest's table pages, from the root down to level 1.
    const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
    const LIMIT: u32 = 16;
    const READ: u64 = 1;
    const WRITE: u64 = 2;
    const BOTH: u64 = READ | WRITE;

    const CONFIG: SecondStageConfig = SecondStageConfig {
        width: AddressWidth::Bits48,
        input_bits: 48,
        output_bits: 46,
        leaves_2mib: false,
        leaves_1gib: false,
        flush: false,
    };

    fn machine_memory(h: &TestHypervisor) -> SecondStage<Gpa> {
        let mut memory = SecondStage::new(h, VM, CONFIG).unwrap();
        for (guest, host, len, rights) in [
            (0, HOST, 0x1_0000, Rights::READ_WRITE),
            (READ_ONLY, 0x50_0000, 0x1000, Rights::READ),
        ] {
            memory
                .map(h, Gpa::new(guest), Hpa::new(host), len, rights)
                .unwrap();
        }
        for page in 0..0x1_0000 / 8 {
            h.write64(Hpa::new(HOST + page * 8), 0);
        }
        memory
    }

    /// Makes address 0 lead to `page` in the guest's table, with these rights from the root down.
    fn set_guest_table(h: &TestHypervisor, page: u64, rights: [u64; 4]) {
        let below = [TABLES[1], TABLES[2], TABLES[3], page];
        for ((table, below), rights) in TABLES.into_iter().zip(below).zip(rights) {
            h.write64(Hpa::new(HOST + table), below | rights);
        }
    }

    fn new_shadow(h: &TestHypervisor) -> Shadow {
        let table = SecondStage::new(h, VM, CONFIG).unwrap();
        let mut shadow = Shadow::new(
            DomainId::new(7),
            Gpa::new(TABLES[0]),
            CONFIG.width,
            table,
            LIMIT,
        );
        shadow.pending.clear();
        shadow
    }

    /// Takes a shadow apart that hardware has never seen.
    fn destroy(h: &TestHypervisor, shadow: Shadow) {
        let (mut table, detached) = shadow.into_tables(h);
        let mut state = Dismantling::new(detached);
        while !table.dismantle(h, &mut state) {}
    }

    /// Brings a range of pages in step: what that changed, and in how many slices.
    fn synchronise_range(
        h: &TestHypervisor,
        memory: &SecondStage<Gpa>,
        shadow: &mut Shadow,
        span: Span,
    ) -> Result<(Changes, u32), BindError> {
        let synchronisation = Synchronisation {
            memory: MachineMemory::new(h, memory),
            features: &TableFeatures::EVERYTHING,
        };
        shadow.mark(span, LIMIT).unwrap();
        let mut all = Changes::default();
        let mut slices = 0;
        while !shadow.is_in_step() {
            let changes = synchronisation.run_slice(shadow, &mut MachineStatistics::default())?;
            all.added += changes.added;
            all.replaced += changes.replaced;
            slices += 1;
        }
        Ok((all, slices))
    }

    fn synchronise(h: &TestHypervisor, memory: &SecondStage<Gpa>, shadow: &mut Shadow) {
        let page = Span { first: 0, last: 0 };
        synchronise_range(h, memory, shadow, page).unwrap();
    }

    // S68, G14: a right counts if every level of both tables grants it (§3.7).
    #[test]
    fn a_page_has_the_rights_that_all_levels_of_both_tables_grant() {
        let h = TestHypervisor::new(32);
        let memory = machine_memory(&h);
        let mut shadow = new_shadow(&h);
        for (page, rights, expected) in [
            (0x8000, [BOTH; 4], Some(Rights::READ_WRITE)),
            (0x8000, [READ, BOTH, BOTH, BOTH], Some(Rights::READ)),
            (0x8000, [BOTH, BOTH, WRITE, BOTH], Some(Rights::WRITE)),
            (0x8000, [BOTH, BOTH, BOTH, READ], Some(Rights::READ)),
            (0x8000, [READ, BOTH, BOTH, WRITE], None),
            (READ_ONLY, [BOTH; 4], Some(Rights::READ)),
            (READ_ONLY, [BOTH, BOTH, BOTH, WRITE], None),
            (0x3_0000, [BOTH; 4], None),
        ] {
            set_guest_table(&h, page, rights);
            synchronise(&h, &memory, &mut shadow);
            let mapping = shadow.table.translate(&h, Iova::new(0));
            let found = mapping.map(|mapping| mapping.rights);
            assert_eq!(found, expected, "{page:#x} {rights:?}");
        }
    }

    // G5, R22
    #[test]
    fn table_pages_are_free_once_the_flush_that_covers_them_is_confirmed() {
        let h = TestHypervisor::new(32);
        let memory = machine_memory(&h);
        let mut shadow = new_shadow(&h);
        let charged = || h.pool.charged_frames(VM);
        let empty = charged();
        set_guest_table(&h, 0x8000, [BOTH; 4]);
        synchronise(&h, &memory, &mut shadow);
        let full = charged();
        assert_eq!(full, empty + 3);
        shadow.empty();
        while shadow.empty_slice(&h) {}
        // Not submitted yet: a confirmation now is that of an older flush.
        shadow.flush_confirmed(&h);
        assert_eq!(charged(), full);
        shadow.flush_submitted(&h);
        shadow.flush_failed(&h);
        shadow.flush_confirmed(&h);
        assert_eq!(charged(), full, "never confirmed");
        shadow.flush_submitted(&h);
        assert_eq!(charged(), full);
        shadow.flush_confirmed(&h);
        assert!(shadow.give_back_tables(&h));
        assert_eq!(charged(), empty);
    }

    /// Makes the last-level entries lead to `page`, all 512.
    fn fill_last_table(h: &TestHypervisor, page: u64) {
        set_guest_table(h, page, [BOTH; 4]);
        for index in 0..ENTRIES {
            h.write64(Hpa::new(HOST + TABLES[3] + 8 * index), page | BOTH);
        }
    }

    // C: two second-stage walks' reads and one store a page.
    #[test]
    fn a_run_of_pages_costs_two_walks_and_one_store_a_page() {
        let h = TestHypervisor::new(32);
        let memory = machine_memory(&h);
        let mut shadow = new_shadow(&h);
        let run = Span {
            first: 0,
            last: ENTRIES - 1,
        };
        for (page, expected) in [(0x8000, (ENTRIES, 0)), (0x9000, (0, ENTRIES))] {
            fill_last_table(&h, page);
            let (loads, stores) = (h.loads.get(), h.stores.get());
            let (changes, slices) = synchronise_range(&h, &memory, &mut shadow, run).unwrap();
            assert_eq!((changes.added, changes.replaced), expected);
            assert_eq!(slices, 16);
            let loads = h.loads.get() - loads;
            assert!(loads <= 2 * 4 * ENTRIES, "{loads} loads");
            if changes.added == 0 {
                assert_eq!(h.stores.get() - stores, ENTRIES);
            }
        }
        // Nothing has changed: no store at all.
        let stores = h.stores.get();
        let (changes, _) = synchronise_range(&h, &memory, &mut shadow, run).unwrap();
        assert_eq!((changes.span, h.stores.get()), (None, stores));
    }

    #[test]
    fn a_range_is_all_that_is_looked_at() {
        let h = TestHypervisor::new(32);
        let memory = machine_memory(&h);
        let mut shadow = new_shadow(&h);
        let all = Span::EVERYTHING;
        fill_last_table(&h, 0x8000);
        synchronise_range(&h, &memory, &mut shadow, all).unwrap();
        fill_last_table(&h, 0x9000);
        let named = Span { first: 5, last: 6 };
        let loads = h.loads.get();
        let (changes, slices) = synchronise_range(&h, &memory, &mut shadow, named).unwrap();
        assert_eq!((changes.replaced, slices), (2, 1));
        assert!(h.loads.get() - loads <= 64, "{}", h.loads.get() - loads);
        for (page, expected) in [(4, 0x8000), (5, 0x9000), (6, 0x9000), (7, 0x8000)] {
            let at = Iova::new(page << 12);
            let mapping = shadow.table.translate(&h, at).unwrap();
            assert_eq!(mapping.output, Hpa::new(HOST + expected), "page {page}");
        }
    }

    // S78: each level's table is the root, all its entries lead to itself.
    #[test]
    fn a_table_that_is_its_own_lower_tables_ends_at_the_limit() {
        let h = TestHypervisor::new(64);
        let memory = machine_memory(&h);
        let mut shadow = new_shadow(&h);
        for index in 0..ENTRIES {
            h.write64(Hpa::new(HOST + TABLES[0] + 8 * index), TABLES[0] | BOTH);
        }
        let loads = h.loads.get();
        let result = synchronise_range(&h, &memory, &mut shadow, Span::EVERYTHING);
        assert!(
            matches!(
                result,
                Err(BindError::GuestTables { .. } | BindError::Frames(_))
            ),
            "{result:?}"
        );
        let most = u64::from(LIMIT * SLICES_PER_TABLE) * 512;
        assert!(h.loads.get() - loads < most);
        destroy(&h, shadow);
    }

    /// Host memory that a large leaf of the machine leads to.
    const LARGE: u64 = 0x8000_0000;

    // S18: a large leaf where the guest, the machine and hardware have one.
    #[test]
    fn large_leaves_are_large_and_are_split_when_a_page_of_them_changes() {
        let config = SecondStageConfig {
            leaves_2mib: true,
            ..CONFIG
        };
        let h = TestHypervisor::new(64);
        let mut memory = SecondStage::new(&h, VM, config).unwrap();
        let (low, large) = (Gpa::new(0), Gpa::new(LARGE));
        let both = Rights::READ_WRITE;
        memory.map(&h, low, Hpa::new(HOST), 0x1_0000, both).unwrap();
        memory
            .map(&h, large, Hpa::new(LARGE), 0x20_0000, both)
            .unwrap();
        for page in 0..0x1_0000 / 8 {
            h.write64(Hpa::new(HOST + page * 8), 0);
        }
        let mut shadow = new_shadow(&h);
        shadow.table = SecondStage::new(&h, VM, config).unwrap();
        let page_size = 1 << 7;
        let entry = Hpa::new(HOST + TABLES[2]);
        set_guest_table(&h, 0x8000, [BOTH; 4]);
        h.write64(entry, LARGE | page_size | BOTH);
        let all = Span::EVERYTHING;
        let (changes, _) = synchronise_range(&h, &memory, &mut shadow, all).unwrap();
        assert_eq!((changes.added, changes.replaced), (1, 0));
        let leaf = |shadow: &Shadow, address| {
            let mapping = shadow.table.translate(&h, Iova::new(address))?;
            Some((mapping.output.as_u64(), mapping.size))
        };
        let size = PageSize::Size2MiB;
        assert_eq!(leaf(&shadow, 0x5000), Some((LARGE + 0x5000, size)));
        // A page of it is named, and nothing has changed.
        let named = Span { first: 5, last: 5 };
        let (changes, _) = synchronise_range(&h, &memory, &mut shadow, named).unwrap();
        assert_eq!(changes.span, None);
        // The guest splits it: one page leads elsewhere, one nowhere. All of it is owed.
        for index in 0..ENTRIES {
            let page = LARGE + 0x1000 * index;
            let page = if index == 9 { 0x8000 } else { page };
            let leaf = if index == 11 { 0 } else { page | BOTH };
            h.write64(Hpa::new(HOST + TABLES[3] + 8 * index), leaf);
        }
        h.write64(entry, TABLES[3] | BOTH);
        shadow.mark(named, LIMIT).unwrap();
        let synchronisation = Synchronisation {
            memory: MachineMemory::new(&h, &memory),
            features: &TableFeatures::EVERYTHING,
        };
        let mut span: Option<Span> = None;
        while !shadow.is_in_step() {
            let changes = synchronisation
                .run_slice(&mut shadow, &mut MachineStatistics::default())
                .unwrap();
            assert!(changes.span.is_none() || !changes.is_leaf_only || span.is_some());
            span = span.or(changes.span);
        }
        assert_eq!(
            span,
            Some(Span {
                first: 0,
                last: 511
            })
        );
        let size = PageSize::Size4KiB;
        for (address, expected) in [
            (0x5000, Some(LARGE + 0x5000)),
            (0x9000, Some(HOST + 0x8000)),
            (0xb000, None),
            (0x1f_f000, Some(LARGE + 0x1f_f000)),
        ] {
            let expected = expected.map(|output| (output, size));
            assert_eq!(leaf(&shadow, address), expected, "{address:#x}");
        }
        // Through not-present it is large again.
        for value in [0, LARGE | page_size | BOTH] {
            h.write64(entry, value);
            synchronise_range(&h, &memory, &mut shadow, all).unwrap();
        }
        let size = PageSize::Size2MiB;
        assert_eq!(leaf(&shadow, 0x5000), Some((LARGE + 0x5000, size)));
        destroy(&h, shadow);
    }
}
