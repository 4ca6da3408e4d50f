//! Bringing a shadow in step with the guest's tables.

use crate::arch::address::{Gpa, Hpa, Iova, PAGE_SIZE_BYTES, PageSize};
use crate::arch::features::TableFeatures;
use crate::arch::second_stage::{Rights, SecondStageEntry, SecondStageEntryMeaning};
use crate::mem::{GuestMemory, Hypervisor};
use crate::nest::coalesce::Span;
use crate::nest::memory::MachineMemory;
use crate::nest::statistics::MachineStatistics;
use crate::paging::second_stage::{Mapping, PagesChanged};
use crate::paging::walk::is_interrupt_address;
use crate::paging::{MapError, OnPartialLeaf};
use crate::viommu::host::BindError;

use super::{Changes, ENTRIES, INTERRUPT_RANGE, PIECE, Shadow};

/// What a synchronisation works with.
pub(in crate::nest) struct Synchronisation<'a, H> {
    /// The guest's memory, where its table lies and leads to.
    pub(in crate::nest) memory: MachineMemory<'a, H>,
    /// What the guest was shown: which bits of its entries are reserved.
    pub(in crate::nest) features: &'a TableFeatures,
}

/// Entries of a guest table page that lie side by side, read in one copy.
pub(super) struct Piece {
    bytes: [u8; PIECE * 8],
    len: usize,
}

impl Piece {
    pub(super) fn entries(&self) -> impl Iterator<Item = SecondStageEntry> {
        let entries = self.bytes.as_chunks::<8>().0.iter().take(self.len);
        entries.map(|bytes| SecondStageEntry::from_u64(u64::from_le_bytes(*bytes)))
    }
}

/// What the guest's table says of an address.
pub(super) enum GuestWalk {
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
pub(super) type Wanted = heapless::Vec<Option<(Hpa, Rights)>, PIECE>;

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
                        self.note_writable(&mapping, leads);
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
    pub(super) fn read_piece(
        &self,
        page: Gpa,
        address: u64,
        level: u8,
        most: u64,
    ) -> Option<Piece> {
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
    pub(super) fn pages_of_table(&self, piece: &Piece, rights: Rights) -> Wanted {
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
    pub(super) fn pages_of_leaf(&self, output: Gpa, rights: Rights, rest: u64) -> Wanted {
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
    pub(super) fn host_page(&self, page: Gpa, guest_rights: Rights) -> Option<(Hpa, Rights)> {
        // A guest page in the interrupt range is an error to hardware (§3.15): it leads nowhere.
        if is_interrupt_address(page.as_u64()) {
            return None;
        }
        let mapping = self.memory.second_stage.translate(self.memory.h, page)?;
        let rights = mapping.rights.intersection(guest_rights);
        self.note_writable(&mapping, rights);
        (!rights.is_none()).then_some((mapping.output, rights))
    }

    /// Writes through a shadow set no bit in the machine's second stage: what it lets devices write
    /// counts as written, as long as it does.
    pub(super) fn note_writable(&self, mapping: &Mapping, rights: Rights) {
        if rights.write {
            self.memory
                .second_stage
                .note_written(self.memory.h, mapping);
        }
    }

    /// The largest leaf, beyond a page, by which the shadow may lead from `here` to where the
    /// machine's memory has the guest page `output`: as large as the guest's leaf, the machine's,
    /// the table and the alignment of all allow.
    pub(super) fn largest_leaf(
        &self,
        shadow: &Shadow,
        here: Iova,
        output: Gpa,
        mapping: &Mapping,
        rest: u64,
    ) -> Option<PageSize> {
        let config = shadow.table.config();
        let sizes = [PageSize::Size1GiB, PageSize::Size2MiB];
        let fits = |size: PageSize| {
            let len = size.len_bytes();
            let addresses = here.as_u64() | output.as_u64() | mapping.output.as_u64();
            // A part of the block in the interrupt range must lead nowhere (§3.15).
            let meets_interrupts = (output.as_u64() ^ INTERRUPT_RANGE) & !(len - 1) == 0;
            len <= rest && mapping.size >= size && addresses & (len - 1) == 0 && !meets_interrupts
        };
        let mut sizes = sizes.into_iter();
        sizes.find(|size| config.has_leaves_of(*size) && fits(*size))
    }

    /// Sets a large leaf of the shadow; `false` if small pages have to do, because a table is in
    /// its place: replacing it would leave hardware with neither for a while.
    pub(super) fn set_large(
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
    pub(super) fn set(
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
    pub(super) fn clear(
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
        if let Ok(unmapped) = shadow
            .table
            .unmap(h, first, len_bytes, OnPartialLeaf::Widen)
        {
            if unmapped.leaves > 0 || !unmapped.is_leaf_only() {
                let (first, len) = (unmapped.first, unmapped.len_bytes);
                changes.add(first, len, 0, unmapped.leaves.max(1).into());
            }
            if !unmapped.is_leaf_only() {
                shadow.detach(h, unmapped);
            }
        }
        Ok(len_bytes)
    }

    /// Walks the guest's table for an address, down to a page of last-level entries.
    pub(super) fn walk(&self, shadow: &Shadow, address: u64) -> GuestWalk {
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
    pub(super) fn nothing_from(&self, page: Gpa, address: u64, level: u8, rest: u64) -> u64 {
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
pub(super) const fn refused(error: MapError, address: Iova) -> BindError {
    match error {
        MapError::Frames(error) => BindError::Frames(error),
        _ => BindError::GuestTables { address },
    }
}

/// Bits of an address below those that select an entry of a level, 1 to 5.
pub(super) const fn shift_of(level: u8) -> u32 {
    12 + 9 * ((level as u32).saturating_sub(1) % 5)
}
