//! Page walks: first stage (§3.6), second stage (§3.7), nested (§3.8).

use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::fault::FaultReason;

use crate::bits::{self, bit, field, page};
use crate::cache::{Block, FirstTable, Rights, SecondFault, SecondTable, level_shift};
use crate::dma::Access;
use crate::translate::{Asker, Mapping, denied};
use crate::unit::Unit;

/// How often an update starts over because memory changed under it.
const UPDATE_TRIES: usize = 64;

/// A walk that found no page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct WalkStop {
    pub(crate) reason: FaultReason,
    /// With CM=1 the IOTLB may keep it: a second-stage entry is absent or has reserved bits.
    pub(crate) may_cache: bool,
}

impl From<FaultReason> for WalkStop {
    fn from(reason: FaultReason) -> Self {
        Self {
            reason,
            may_cache: false,
        }
    }
}

/// A second-stage table, as a context or PASID-table entry describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SecondStage {
    pub(crate) root: u64,
    pub(crate) levels: u8,
    /// Input addresses lie below 2^this.
    pub(crate) limit_bits: u32,
    pub(crate) domain: u16,
    pub(crate) snooped: bool,
    /// SSADE.
    pub(crate) accessed_dirty: bool,
    /// SSIRWE.
    pub(crate) io_permissions: bool,
    /// EMTE.
    pub(crate) memory_types: bool,
}

/// A first-stage table, as a PASID-table entry describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstStage {
    pub(crate) root: u64,
    pub(crate) levels: u8,
    pub(crate) domain: u16,
    pub(crate) pasid: u32,
    pub(crate) snooped: bool,
    /// EAFE.
    pub(crate) extended_accessed: bool,
    /// WPE.
    pub(crate) write_protect: bool,
    /// The second stage that every address in the tables goes through.
    pub(crate) nested: Option<SecondStage>,
}

/// A second-stage leaf.
#[derive(Clone, Copy, Debug)]
struct SecondLeaf {
    /// Host address of the page.
    host: u64,
    /// log2 of its length.
    order: u32,
    read: bool,
    write: bool,
    snoop: bool,
    /// No dirty bit would have to be set for a write.
    dirty: bool,
}

impl SecondLeaf {
    fn at(&self, address: u64) -> u64 {
        self.host + (address & !bits::from_bit(self.order))
    }
}

/// What a second-stage walk is for: which bits it sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    Look,
    /// Sets D, if the rights allow the access.
    Write {
        reads: bool,
    },
}

const FIRST_ACCESSED: u64 = 1 << 5;
const FIRST_DIRTY: u64 = 1 << 6;
const FIRST_EXTENDED_ACCESSED: u64 = 1 << 10;
const SECOND_ACCESSED: u64 = 1 << 8;
const SECOND_DIRTY: u64 = 1 << 9;
const PAGE_SIZE: u64 = 1 << 7;
const SNOOP: u64 = 1 << 11;

impl Unit {
    // ---- second stage ----

    /// R and W of a second-stage entry.
    fn second_rights(stage: &SecondStage, entry: u64) -> (bool, bool) {
        if stage.io_permissions {
            (bit(entry, 61), bit(entry, 62))
        } else {
            (bit(entry, 0), bit(entry, 1))
        }
    }

    /// Reserved bits of a second-stage entry that is present.
    fn reserved_second_bits(&self, stage: &SecondStage, entry: u64, level: u8) -> u64 {
        let mut reserved = self.beyond_host() & !bits::from_bit(52);
        if !stage.io_permissions {
            reserved |= 1 << 62;
        }
        let large_pages = self.config.cap(Cap::SECOND_STAGE_LARGE_PAGES);
        let allows_large = match level {
            2 => bit(large_pages, 0),
            3 => bit(large_pages, 1),
            _ => false,
        };
        if level > 1 && !allows_large {
            reserved |= PAGE_SIZE;
        }
        if level == 1 || entry & PAGE_SIZE != 0 {
            reserved |= !bits::from_bit(level_shift(level)) & !0xfff;
            if !self.config.has(Ecap::SNOOP_CONTROL) {
                reserved |= SNOOP;
            }
        } else {
            reserved |= SNOOP;
        }
        reserved
    }

    /// EMT values 2, 3 and 7 are reserved where EMT is used.
    fn has_reserved_memory_type(stage: &SecondStage, entry: u64, is_leaf: bool) -> bool {
        stage.memory_types && is_leaf && matches!(field(entry, 5, 3), 2 | 3 | 7)
    }

    fn walk_second(
        &mut self,
        stage: &SecondStage,
        address: u64,
        purpose: Purpose,
    ) -> Result<SecondLeaf, SecondFault> {
        let caching = self.config.has_cap(Cap::CACHING_MODE);
        let (mut level, mut table, mut read, mut write) = (stage.levels, stage.root, true, true);
        match self
            .caches
            .second_table(stage.domain, address, stage.levels)
        {
            Some((_, SecondTable::Faulting(fault))) => return Err(fault),
            Some((
                named_by,
                SecondTable::Table {
                    host,
                    read: table_read,
                    write: table_write,
                },
            )) => (level, table, read, write) = (named_by - 1, host, table_read, table_write),
            None => {}
        }
        loop {
            let shift = level_shift(level);
            let at = table + 8 * (address >> shift & 0x1ff);
            let (entry, is_leaf) =
                match self.take_second_entry(stage, at, level, (read, write), purpose) {
                    Ok(found) => found,
                    Err(fault) => {
                        let cacheable =
                            matches!(fault, SecondFault::Absent | SecondFault::Reserved);
                        if caching && cacheable && level > 1 {
                            self.caches.insert_second_table(
                                stage.domain,
                                level,
                                address,
                                SecondTable::Faulting(fault),
                            );
                        }
                        return Err(fault);
                    }
                };
            let (entry_read, entry_write) = Self::second_rights(stage, entry);
            read &= entry_read;
            write &= entry_write;
            let pointer = page(entry) & !bits::from_bit(52);
            if is_leaf {
                if !read && !write {
                    return Err(SecondFault::Absent);
                }
                return Ok(SecondLeaf {
                    host: pointer & bits::from_bit(shift),
                    order: shift,
                    read,
                    write,
                    snoop: entry & SNOOP != 0,
                    dirty: !stage.accessed_dirty || entry & SECOND_DIRTY != 0,
                });
            }
            self.caches.insert_second_table(
                stage.domain,
                level,
                address,
                SecondTable::Table {
                    host: pointer,
                    read,
                    write,
                },
            );
            table = pointer;
            level -= 1;
        }
    }

    /// Reads one entry, checks it and sets A, and D if the purpose says so; the entry as it is in
    /// memory then, and whether it is a leaf. `above`: R and W of the levels above.
    fn take_second_entry(
        &mut self,
        stage: &SecondStage,
        at: u64,
        level: u8,
        above: (bool, bool),
        purpose: Purpose,
    ) -> Result<(u64, bool), SecondFault> {
        for _ in 0..UPDATE_TRIES {
            let [entry] = self
                .fetch(at, stage.snooped)
                .ok_or(if level == stage.levels {
                    SecondFault::RootUnreadable
                } else {
                    SecondFault::Unreadable
                })?;
            let (entry_read, entry_write) = Self::second_rights(stage, entry);
            if !entry_read && !entry_write {
                return Err(SecondFault::Absent);
            }
            let is_leaf = level == 1 || entry & PAGE_SIZE != 0;
            if entry & self.reserved_second_bits(stage, entry, level) != 0
                || Self::has_reserved_memory_type(stage, entry, is_leaf)
            {
                return Err(SecondFault::Reserved);
            }
            if !stage.accessed_dirty {
                return Ok((entry, is_leaf));
            }
            let mut wanted = entry | SECOND_ACCESSED;
            if let Purpose::Write { reads } = purpose
                && is_leaf
                && above.1
                && entry_write
                && (!reads || above.0 && entry_read)
            {
                wanted |= SECOND_DIRTY;
            }
            if wanted == entry {
                return Ok((entry, is_leaf));
            }
            if !stage.snooped {
                return Err(SecondFault::UpdateUnsnooped);
            }
            match self.memory.compare_exchange(at, entry, wanted) {
                Some(true) => return Ok((wanted, is_leaf)),
                Some(false) => {}
                None => return Err(SecondFault::UpdateFailed),
            }
        }
        Err(SecondFault::UpdateFailed)
    }

    /// A whole translation by second stage. The rights are those of the page: the caller checks.
    pub(crate) fn walk_second_only(
        &mut self,
        stage: &SecondStage,
        address: u64,
        asker: &Asker,
        legacy: bool,
    ) -> Result<Mapping, WalkStop> {
        match self.walk_second(stage, address, purpose_of(asker)) {
            Ok(leaf) => Ok(Mapping {
                block: Block::around(address, leaf.order),
                host: leaf.host,
                rights: Rights {
                    second_read: leaf.read,
                    second_write: leaf.write,
                    second_snoop: leaf.snoop,
                    ..Rights::ALL
                },
                dirty: leaf.dirty,
            }),
            Err(fault) if legacy => Err(WalkStop {
                reason: match fault {
                    SecondFault::RootUnreadable => FaultReason::LegacyContextEntryInvalid,
                    SecondFault::Unreadable => FaultReason::LegacySecondStageUnreadable,
                    SecondFault::Reserved => FaultReason::LegacySecondStageReserved,
                    _ => denied(asker.writes(), true),
                },
                may_cache: may_cache(fault),
            }),
            Err(fault) => Err(second_stop(fault)),
        }
    }

    // ---- first stage ----

    /// The host address of a first-stage table page.
    fn table_page(
        &mut self,
        stage: &FirstStage,
        table: u64,
        is_top: bool,
    ) -> Result<u64, WalkStop> {
        let Some(second) = &stage.nested else {
            return Ok(table);
        };
        let leaf = self
            .walk_second(second, table, Purpose::Look)
            .map_err(second_stop)?;
        if !leaf.read {
            return Err(if is_top {
                FaultReason::FirstStageRootDenied.into()
            } else {
                FaultReason::FirstStageTableDenied.into()
            });
        }
        // §3.8.1: with SSADE=1 reads of first-stage tables need W too.
        if second.accessed_dirty && !leaf.write {
            return Err(FaultReason::FirstStageUpdateDenied.into());
        }
        Ok(leaf.at(table))
    }

    /// Reserved bits of a present first-stage entry.
    fn reserved_first_bits(&self, entry: u64, level: u8) -> u64 {
        let beyond = self.beyond_host() & !bits::from_bit(52);
        let allows_large = match level {
            2 => true,
            3 => self.config.has_cap(Cap::FIRST_STAGE_1GIB_PAGES),
            _ => false,
        };
        let size = if level > 1 && !allows_large {
            PAGE_SIZE
        } else {
            0
        };
        // Bit 12 of a large leaf is PAT.
        let below = if level > 1 && entry & PAGE_SIZE != 0 {
            !bits::from_bit(level_shift(level)) & !0x1fff
        } else {
            0
        };
        beyond | size | below
    }

    /// Translates by first stage, nested on a second stage or not.
    pub(crate) fn walk_first(
        &mut self,
        stage: &FirstStage,
        address: u64,
        asker: &Asker,
    ) -> Result<Mapping, WalkStop> {
        use FaultReason::*;
        let cached = self
            .caches
            .first_table(stage.domain, stage.pasid, address, stage.levels);
        let (mut level, mut above) = match cached {
            Some((named_by, table)) => (named_by - 1, table),
            None => {
                let host = self.table_page(stage, stage.root, true)?;
                let root = FirstTable {
                    table: stage.root,
                    host,
                    user: true,
                    write: true,
                };
                (stage.levels, root)
            }
        };
        loop {
            let offset = 8 * (address >> level_shift(level) & 0x1ff);
            let (at, guest_at) = (above.host + offset, above.table + offset);
            let mut tries = 0;
            // An update that finds the entry changed takes the entry anew.
            let stepped = loop {
                tries += 1;
                if tries > UPDATE_TRIES {
                    return Err(FirstStageUpdateFailed.into());
                }
                let unreadable = if level == stage.levels {
                    FirstStageRootUnreadable
                } else {
                    FirstStageUnreadable
                };
                let [entry] = self.fetch(at, stage.snooped).ok_or(unreadable)?;
                if !bit(entry, 0) {
                    return Err(FirstStageNotPresent.into());
                }
                if entry & self.reserved_first_bits(entry, level) != 0 {
                    return Err(FirstStageReserved.into());
                }
                let is_leaf = level == 1 || entry & PAGE_SIZE != 0;
                let shift = if is_leaf { level_shift(level) } else { 12 };
                let target = entry & bits::from_bit(shift) & !bits::from_bit(52);
                if let Some(second) = &stage.nested
                    && target & bits::from_bit(second.limit_bits) != 0
                {
                    return Err(FirstStageAddressTooLarge.into());
                }
                let user = above.user && bit(entry, 2);
                let write = above.write && bit(entry, 1);
                let step = FirstStep {
                    stage,
                    entry,
                    at,
                    guest_at,
                };
                if is_leaf {
                    let rights = Rights {
                        user,
                        first_write: write,
                        write_protect: stage.write_protect,
                        ..Rights::ALL
                    };
                    if let Some(mapping) =
                        self.finish_first(&step, target, shift, rights, address, asker)?
                    {
                        return Ok(mapping);
                    }
                    continue;
                }
                let Some(_) = self.update_first(&step, 0)? else {
                    continue;
                };
                let host = self.table_page(stage, target, false)?;
                break FirstTable {
                    table: target,
                    host,
                    user,
                    write,
                };
            };
            self.caches
                .insert_first_table(stage.domain, stage.pasid, level, address, stepped);
            above = stepped;
            level -= 1;
        }
    }

    /// The leaf: rights, the final second stage, accessed and dirty bits. `None` if the entry
    /// changed meanwhile.
    fn finish_first(
        &mut self,
        step: &FirstStep<'_>,
        target: u64,
        shift: u32,
        mut rights: Rights,
        address: u64,
        asker: &Asker,
    ) -> Result<Option<Mapping>, WalkStop> {
        self.check_rights(&rights, asker, false)?;
        let final_address = target + (address & !bits::from_bit(shift));
        if let Some(second) = &step.stage.nested {
            let leaf = self
                .walk_second(second, final_address, Purpose::Look)
                .map_err(second_stop)?;
            rights.second_read = leaf.read;
            rights.second_write = leaf.write;
            self.check_rights(&rights, asker, false)?;
        }
        let dirty = if asker.writes() { FIRST_DIRTY } else { 0 };
        let Some(entry) = self.update_first(step, dirty)? else {
            return Ok(None);
        };
        let first_dirty = entry & FIRST_DIRTY != 0;
        let Some(second) = &step.stage.nested else {
            return Ok(Some(Mapping {
                block: Block::around(address, shift),
                host: target,
                rights,
                dirty: first_dirty,
            }));
        };
        let leaf = self
            .walk_second(second, final_address, purpose_of(asker))
            .map_err(second_stop)?;
        rights.second_read = leaf.read;
        rights.second_write = leaf.write;
        rights.second_snoop = leaf.snoop;
        let order = shift.min(leaf.order);
        let block = Block::around(address, order);
        Ok(Some(Mapping {
            block,
            host: leaf.at(final_address) & bits::from_bit(order),
            rights,
            dirty: first_dirty && leaf.dirty,
        }))
    }

    /// Sets A (EA), and `dirty`, in a first-stage entry: the entry then, or `None` if it is not
    /// what was read any more.
    fn update_first(&mut self, step: &FirstStep<'_>, dirty: u64) -> Result<Option<u64>, WalkStop> {
        let stage = step.stage;
        let extended = if stage.extended_accessed {
            FIRST_EXTENDED_ACCESSED
        } else {
            0
        };
        let wanted = step.entry | FIRST_ACCESSED | extended | dirty;
        if wanted == step.entry {
            return Ok(Some(wanted));
        }
        if !stage.snooped {
            return Err(FaultReason::FirstStageUpdateUnsnooped.into());
        }
        if let Some(second) = &stage.nested {
            let leaf = self
                .walk_second(second, step.guest_at, Purpose::Write { reads: true })
                .map_err(second_stop)?;
            if !leaf.write && !self.config.erratum_772415 {
                return Err(FaultReason::FirstStageUpdateDenied.into());
            }
        }
        match self.memory.compare_exchange(step.at, step.entry, wanted) {
            Some(true) => Ok(Some(wanted)),
            Some(false) => Ok(None),
            None => Err(FaultReason::FirstStageUpdateFailed.into()),
        }
    }
}

/// A first-stage entry on the way.
struct FirstStep<'a> {
    stage: &'a FirstStage,
    entry: u64,
    /// Where hardware reads and updates it.
    at: u64,
    /// Its address as the tables say it: nested, a guest-physical one.
    guest_at: u64,
}

fn purpose_of(asker: &Asker) -> Purpose {
    if asker.writes() {
        Purpose::Write {
            reads: asker.access == Access::Atomic,
        }
    } else {
        Purpose::Look
    }
}

fn may_cache(fault: SecondFault) -> bool {
    matches!(fault, SecondFault::Absent | SecondFault::Reserved)
}

fn second_stop(fault: SecondFault) -> WalkStop {
    WalkStop {
        reason: match fault {
            SecondFault::RootUnreadable => FaultReason::SecondStageRootUnreadable,
            SecondFault::Unreadable => FaultReason::SecondStageUnreadable,
            SecondFault::Absent => FaultReason::SecondStageNotPresent,
            SecondFault::Reserved => FaultReason::SecondStageReserved,
            SecondFault::UpdateUnsnooped => FaultReason::SecondStageUpdateUnsnooped,
            SecondFault::UpdateFailed => FaultReason::SecondStageUpdateFailed,
        },
        may_cache: may_cache(fault),
    }
}
