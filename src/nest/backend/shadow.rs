//! Shadow: a guest's second-stage table composed with the machine's own (§3.7).
//!
//! A shadow maps each I/O virtual address of the guest's table to the host page behind it, with
//! the rights that both tables grant. It is built when the first binding needs it, and kept in
//! step by the guest's invalidations, which caching mode makes it send for new mappings too
//! (§6.1). All leaves are 4-KiB pages: a change then never mixes page sizes, so each is one store.
//!
//! The guest's table is hostile: it may be large, overlap itself or point anywhere. Each
//! synchronisation reads a bounded number of table pages and takes a bounded number of steps; the
//! shadow's own pages are charged to the machine's quota.

use crate::arch::address::{AddressWidth, Gpa, Iova, PAGE_SIZE_BYTES};
use crate::arch::features::TableFeatures;
use crate::arch::id::DomainId;
use crate::arch::second_stage::{Rights, SecondStageEntry, SecondStageEntryMeaning};
use crate::mem::{GuestMemory, Hypervisor};
use crate::nest::memory::MachineMemory;
use crate::nest::statistics::MachineStatistics;
use crate::paging::second_stage::PageChange;
use crate::paging::walk::is_interrupt_address;
use crate::paging::{MapError, SecondStage, Unmapped};
use crate::viommu::host::{BindError, PageRange};

/// Entries of a table page.
const ENTRIES: usize = 512;
/// Steps a synchronisation may take for each guest table page it may read: an entry each, and as
/// many again for the pages of large leaves.
const STEPS_PER_TABLE: u64 = 2 * ENTRIES as u64;

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
    /// It could not be brought in step and was emptied: the next synchronisation is a whole one.
    pub(in crate::nest) is_dropped: bool,
    /// Host domains that use it.
    pub(in crate::nest) users: u32,
    /// Table pages taken out since the last flush was submitted.
    pub(in crate::nest) detached: Option<Unmapped<Iova>>,
    /// Table pages that are free once the flush under way is confirmed.
    pub(in crate::nest) flushing: Option<Unmapped<Iova>>,
}

/// What a synchronisation changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::nest) struct Changes {
    /// Pages that led nowhere before.
    pub(in crate::nest) added: u64,
    /// Pages that lead elsewhere, or nowhere any more.
    pub(in crate::nest) replaced: u64,
}

/// What a synchronisation works with.
pub(in crate::nest) struct Synchronisation<'a, H> {
    /// The guest's memory, where its table lies and leads to.
    pub(in crate::nest) memory: MachineMemory<'a, H>,
    /// What the guest was shown: which bits of its entries are reserved.
    pub(in crate::nest) features: &'a TableFeatures,
    /// Guest table pages that may be read.
    pub(in crate::nest) table_limit: u32,
}

/// A guest table page, read in one copy.
struct TableCopy {
    at: Gpa,
    bytes: [u8; PAGE_SIZE_BYTES as usize],
}

impl TableCopy {
    fn entry(&self, index: usize) -> SecondStageEntry {
        let entry = self
            .bytes
            .as_chunks::<8>()
            .0
            .get(index)
            .copied()
            .unwrap_or_default();
        SecondStageEntry::from_u64(u64::from_le_bytes(entry))
    }
}

/// What the guest's table says of an address.
enum GuestLeaf {
    /// A leaf: where the address leads, the rights of all levels, bytes to the end of the leaf.
    Page {
        output: Gpa,
        rights: Rights,
        rest: u64,
    },
    /// Nothing, for this many bytes.
    Nothing { rest: u64 },
}

impl<H: Hypervisor> Synchronisation<'_, H> {
    /// Makes the shadow agree with the guest's table in a range.
    ///
    /// # Errors
    ///
    /// [`BindError::GuestTables`] beyond the limit, [`BindError::Frames`] beyond the quota. The
    /// shadow then holds some old and some new pages; the caller empties it.
    pub(in crate::nest) fn run(
        &self,
        shadow: &mut Shadow,
        range: &PageRange,
        statistics: &mut MachineStatistics,
    ) -> Result<Changes, BindError> {
        let mut changes = Changes::default();
        let limit = 1u64
            << shadow
                .table
                .config()
                .input_bits
                .min(shadow.width.bits())
                .min(57);
        let len_bytes = PAGE_SIZE_BYTES
            .checked_shl(u32::from(range.order))
            .filter(|len| *len != 0);
        let start = range.address.as_u64() & !(PAGE_SIZE_BYTES - 1);
        let (start, end) = match len_bytes {
            Some(len) => (start, start.saturating_add(len).min(limit)),
            None => (0, limit),
        };
        let mut address = start;
        let mut lowest: Option<TableCopy> = None;
        let mut tables_left = self.table_limit;
        let mut steps_left = u64::from(self.table_limit).saturating_mul(STEPS_PER_TABLE);
        while address < end {
            let here = Iova::new(address);
            let exhausted = BindError::GuestTables { address: here };
            steps_left = steps_left.checked_sub(1).ok_or(exhausted)?;
            let leaf = self
                .guest_leaf(shadow, address, &mut lowest, &mut tables_left)
                .ok_or(exhausted)?;
            let step = match leaf {
                GuestLeaf::Nothing { rest } => {
                    let len = rest.min(end - address);
                    self.clear(shadow, here, len, &mut changes);
                    len
                }
                GuestLeaf::Page {
                    output,
                    rights,
                    rest,
                } => self.set(
                    shadow,
                    here,
                    output,
                    rights,
                    rest.min(end - address),
                    &mut changes,
                )?,
            };
            address = address.saturating_add(step.max(PAGE_SIZE_BYTES));
        }
        statistics.shadow_pages = statistics
            .shadow_pages
            .wrapping_add(changes.added.wrapping_add(changes.replaced));
        let tables_read = u64::from(self.table_limit.saturating_sub(tables_left));
        statistics.shadow_table_reads = statistics.shadow_table_reads.wrapping_add(tables_read);
        Ok(changes)
    }

    /// Sets the page at `here`, or clears as much as the machine's memory has no page for; gives
    /// the length dealt with.
    fn set(
        &self,
        shadow: &mut Shadow,
        here: Iova,
        output: Gpa,
        guest_rights: Rights,
        rest: u64,
        changes: &mut Changes,
    ) -> Result<u64, BindError> {
        let wanted = match self.memory.second_stage.look_up(self.memory.h, output) {
            Err(absent) => {
                let len = rest.min(absent).max(PAGE_SIZE_BYTES) & !(PAGE_SIZE_BYTES - 1);
                self.clear(shadow, here, len, changes);
                return Ok(len);
            }
            Ok(mapping) => Some((mapping.output, mapping.rights.intersection(guest_rights))),
        };
        // A guest page in the interrupt range is an error to hardware (§3.15): it leads nowhere.
        let wanted = wanted.filter(|_| !is_interrupt_address(output.as_u64()));
        let change =
            shadow
                .table
                .set_page(self.memory.h, here, wanted)
                .map_err(|error| match error {
                    MapError::Frames(error) => BindError::Frames(error),
                    _ => BindError::GuestTables { address: here },
                })?;
        match change {
            PageChange::None => {}
            PageChange::Added => changes.added += 1,
            PageChange::Replaced => changes.replaced += 1,
        }
        Ok(PAGE_SIZE_BYTES)
    }

    /// Clears a range of the shadow; what that detaches waits for the next confirmed flush.
    fn clear(&self, shadow: &mut Shadow, first: Iova, len_bytes: u64, changes: &mut Changes) {
        let h = self.memory.h;
        if let Err(absent) = shadow.table.look_up(h, first)
            && absent >= len_bytes
        {
            return;
        }
        if let Ok(unmapped) = shadow.table.unmap_covering(h, first, len_bytes) {
            changes.replaced = changes.replaced.wrapping_add(unmapped.leaves);
            match shadow.detached.as_mut() {
                Some(detached) => detached.merge(h, unmapped),
                None => shadow.detached = Some(unmapped),
            }
        }
    }

    /// Walks the guest's table for an address. `lowest` keeps the last level-1 page read, so a
    /// run of pages costs one read. `None` if the limit of table reads is used up.
    fn guest_leaf(
        &self,
        shadow: &Shadow,
        address: u64,
        lowest: &mut Option<TableCopy>,
        tables_left: &mut u32,
    ) -> Option<GuestLeaf> {
        let mut page = shadow.guest_root;
        let mut level = shadow.width.levels();
        let mut rights = Rights::READ_WRITE;
        loop {
            let shift = 12 + 9 * (u32::from(level).saturating_sub(1) % 5);
            let span = 1u64 << shift;
            let rest = span - (address & (span - 1));
            let index = (address >> shift) as usize % ENTRIES;
            let entry = if level == 1 {
                if lowest.as_ref().is_none_or(|copy| copy.at != page) {
                    *tables_left = tables_left.checked_sub(1)?;
                    let mut copy = TableCopy {
                        at: page,
                        bytes: [0; PAGE_SIZE_BYTES as usize],
                    };
                    *lowest = self
                        .memory
                        .read(page, &mut copy.bytes)
                        .is_ok()
                        .then_some(copy);
                }
                if lowest.is_none() {
                    // No entry of the page can be read: one look is enough for all of them.
                    let table_span = span * ENTRIES as u64;
                    let rest = table_span - (address & (table_span - 1));
                    return Some(GuestLeaf::Nothing { rest });
                }
                lowest.as_ref().map(|copy| copy.entry(index))
            } else {
                let at = page.checked_add(8 * index as u64)?;
                self.memory
                    .read_u64(at)
                    .ok()
                    .map(SecondStageEntry::from_u64)
            };
            // Unreadable, absent or invalid alike: the address leads nowhere, and a fault there is
            // explained by walking the guest's table again.
            let Some(entry) = entry else {
                return Some(GuestLeaf::Nothing { rest });
            };
            rights = rights.intersection(entry.rights());
            match entry.classify::<Gpa>(level, self.features) {
                Err(_) => return Some(GuestLeaf::Nothing { rest }),
                _ if rights.is_none() => return Some(GuestLeaf::Nothing { rest }),
                Ok(SecondStageEntryMeaning::Leaf {
                    address: output, ..
                }) => {
                    let output = output.checked_add(address & (span - 1))?;
                    return Some(GuestLeaf::Page {
                        output,
                        rights,
                        rest,
                    });
                }
                Ok(SecondStageEntryMeaning::Table { address: below }) => page = below,
            }
            level = level.saturating_sub(1);
        }
    }
}

impl Shadow {
    /// Whether it shadows this table of the guest, under this domain-id of the guest.
    pub(in crate::nest) fn is_of(
        &self,
        domain_id: DomainId,
        root: Gpa,
        width: AddressWidth,
    ) -> bool {
        self.domain_id == domain_id && self.guest_root == root && self.width == width
    }

    /// Empties the shadow: every request through it faults from the next flush on.
    pub(in crate::nest) fn empty<H: Hypervisor>(&mut self, h: &H) {
        let len = 1u64
            << self
                .table
                .config()
                .input_bits
                .min(self.width.bits())
                .min(57);
        if let Ok(unmapped) = self.table.unmap_covering(h, Iova::new(0), len) {
            match self.detached.as_mut() {
                Some(detached) => detached.merge(h, unmapped),
                None => self.detached = Some(unmapped),
            }
        }
    }

    /// A flush that covers everything detached so far has been submitted.
    pub(in crate::nest) fn flush_submitted<H: Hypervisor>(&mut self, h: &H) {
        if let Some(detached) = self.detached.take() {
            match self.flushing.as_mut() {
                Some(flushing) => flushing.merge(h, detached),
                None => self.flushing = Some(detached),
            }
        }
    }

    /// That flush was not confirmed: what it covers waits for the next one.
    pub(in crate::nest) fn flush_failed<H: Hypervisor>(&mut self, h: &H) {
        if let Some(flushing) = self.flushing.take() {
            match self.detached.as_mut() {
                Some(detached) => detached.merge(h, flushing),
                None => self.detached = Some(flushing),
            }
        }
    }

    /// That flush is confirmed.
    pub(in crate::nest) fn flush_confirmed<H: Hypervisor>(&mut self, h: &H) {
        if let Some(flushing) = self.flushing.take() {
            flushing.settle(h);
        }
    }

    /// Takes the shadow apart, once no entry names it and its domain is invalidated.
    pub(in crate::nest) fn destroy<H: Hypervisor>(mut self, h: &H) {
        self.flush_submitted(h);
        self.flush_confirmed(h);
        self.table.destroy(h).settle(h);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::address::Hpa;
    use crate::mem::testing::TestHypervisor;
    use crate::mem::{HostMemory, Owner};
    use crate::paging::SecondStageConfig;

    const VM: Owner = Owner::new(1);
    /// Guest-physical 0 to 15 pages are here on the host, and may be read and written.
    const HOST: u64 = 0x10_0000;
    /// Guest-physical address of a page that the machine may only read.
    const READ_ONLY: u64 = 0x2_0000;
    /// The guest's table pages, from the root down to level 1.
    const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
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
        Shadow {
            domain_id: DomainId::new(7),
            guest_root: Gpa::new(TABLES[0]),
            width: CONFIG.width,
            table: SecondStage::new(h, VM, CONFIG).unwrap(),
            is_dropped: false,
            users: 0,
            detached: None,
            flushing: None,
        }
    }

    fn synchronise(h: &TestHypervisor, memory: &SecondStage<Gpa>, shadow: &mut Shadow) {
        let synchronisation = Synchronisation {
            memory: MachineMemory::new(h, memory),
            features: &TableFeatures::EVERYTHING,
            table_limit: 16,
        };
        let range = PageRange {
            address: Iova::new(0),
            order: 0,
            leaf_only: false,
        };
        synchronisation
            .run(shadow, &range, &mut MachineStatistics::default())
            .unwrap();
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
        shadow.empty(&h);
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
        assert_eq!(charged(), empty);
    }
}
