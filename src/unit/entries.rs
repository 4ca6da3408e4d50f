//! What requests of an attached device translate to: one entry for each PASID, or the one context
//! entry of a device behind a unit in legacy mode.
//!
//! Order of stores: as in [`tables`](super::tables).

use heapless::Vec;

use super::context::forget_context;
use super::error::UnitError;
use super::legacy;
use super::tables::{DeviceTables, Form};
use super::unit::Unit;
use crate::arch::address::{Hpa, PAGE_SIZE_BYTES};
use crate::arch::context::LegacyContextEntry;
use crate::arch::descriptor::{
    ContextGranularity, Descriptor, IotlbGranularity, PasidCacheGranularity,
};
use crate::arch::id::{DomainId, Pasid};
use crate::arch::pasid::{PasidDirectoryEntry, PasidEntry};
use crate::mem::{HostMemory, Hypervisor, Registers};

impl<R: Registers> Unit<R> {
    /// Makes sure that there is a table for a PASID's entry: what
    /// [`publish_entry`](Self::publish_entry) needs, reserved ahead.
    ///
    /// # Errors
    ///
    /// [`UnitError::PasidBeyondLimit`] or [`UnitError::Frames`]; nothing has changed then.
    pub fn prepare_entry<H: Hypervisor>(
        &self,
        h: &H,
        tables: &mut DeviceTables,
        pasid: Pasid,
    ) -> Result<(), UnitError> {
        tables.check_pasid(pasid)?;
        let Form::Scalable { directory, frames } = &mut tables.form else {
            return Ok(());
        };
        let at = directory_entry_at(*directory, pasid);
        if PasidDirectoryEntry::from_u64(h.read64(at)).is_present() {
            return Ok(());
        }
        let table = h.allocate(tables.owner, 0)?;
        self.flush_table(h, table.address(), PAGE_SIZE_BYTES);
        let entry = PasidDirectoryEntry::new(table.address());
        // The directory stands for the frame from now on.
        self.publish_quadword(h, at, entry.as_u64());
        frames.tables = frames.tables.saturating_add(1);
        Ok(())
    }

    /// Publishes a PASID entry in an empty slot, Present last. In legacy mode it becomes the
    /// device's context entry.
    ///
    /// If [`needs_invalidation_after_set_up`](Self::needs_invalidation_after_set_up), the caller
    /// owes [`entry_invalidation`](Self::entry_invalidation); otherwise a [`write_buffer_flush`](Self::write_buffer_flush), which
    /// does nothing on most units.
    ///
    /// # Errors
    ///
    /// [`UnitError::PasidEntry`] and [`UnitError::ReservedDomainId`] for an entry that hardware
    /// would not accept, in legacy mode [`UnitError::LegacyContextEntry`] and
    /// [`UnitError::NotInLegacyMode`], [`UnitError::PasidBeyondLimit`],
    /// [`UnitError::NotPrepared`], and [`UnitError::EntryInUse`] if the slot is not all clear;
    /// nothing has changed then.
    pub fn publish_entry<H: Hypervisor>(
        &self,
        h: &H,
        tables: &DeviceTables,
        pasid: Pasid,
        entry: &PasidEntry,
    ) -> Result<(), UnitError> {
        match tables.place_of(h, pasid)? {
            Place::PasidEntry(at) => {
                self.check_entry(entry)?;
                if read_pasid_entry(h, at) != PasidEntry::default() {
                    return Err(UnitError::EntryInUse(pasid));
                }
                self.publish_entry_at(h, at, entry.quadwords());
            }
            Place::ContextEntries => {
                let context = legacy::context_entry(
                    entry,
                    &self.table_features,
                    tables.device_tlb().is_some(),
                )?;
                let is_free = |at| legacy::is_without_translation(&read_context_entry(h, at));
                if !self.contexts_of(h, tables).all(is_free) {
                    return Err(UnitError::EntryInUse(pasid));
                }
                for at in self.contexts_of(h, tables) {
                    let silence = legacy::fault_processing_bit(h.read64(at));
                    let [low, high] = *context.quadwords();
                    self.publish_entry_at(h, at, &[low | silence, high]);
                }
            }
        }
        Ok(())
    }

    /// Where the context entries of an attached device are, one for each of its source-ids.
    fn contexts_of<H: HostMemory>(
        &self,
        h: &H,
        tables: &DeviceTables,
    ) -> impl Iterator<Item = Hpa> {
        tables
            .requesters
            .iter()
            .filter_map(move |source_id| self.context_entry_at(h, source_id))
    }

    fn check_entry(&self, entry: &PasidEntry) -> Result<(), UnitError> {
        let valid = entry
            .decode::<Hpa>(&self.table_features)
            .map_err(UnitError::PasidEntry)?;
        if valid.domain_id == DomainId::ZERO {
            return Err(UnitError::ReservedDomainId);
        }
        Ok(())
    }

    /// Zeroes the first quadword of a PASID entry by one store. The rest, with the domain-id,
    /// stays for the invalidation that is owed, and keeps the slot from being used before
    /// [`clear_entry`](Self::clear_entry). Nothing happens if the PASID has no table.
    pub fn withdraw_entry<H: Hypervisor>(&self, h: &H, tables: &DeviceTables, pasid: Pasid) {
        match tables.place_of(h, pasid) {
            Ok(Place::PasidEntry(at)) => self.publish_quadword(h, at, 0),
            Ok(Place::ContextEntries) => {
                for at in self.contexts_of(h, tables) {
                    let silence = legacy::fault_processing_bit(h.read64(at));
                    self.publish_quadword(h, at, silence);
                }
            }
            Err(_) => {}
        }
    }

    /// Zeroes what is left of a withdrawn PASID entry. The caller has seen its invalidation
    /// complete. Nothing happens if the entry is present, or the PASID has no table.
    pub fn clear_entry<H: Hypervisor>(&self, h: &H, tables: &DeviceTables, pasid: Pasid) {
        match tables.place_of(h, pasid) {
            Ok(Place::PasidEntry(at)) if h.read64(at) == 0 => {
                self.clear_entry_at(h, at, PasidEntry::LEN_BYTES as u64 / 8);
            }
            Ok(Place::ContextEntries) => {
                for at in self.contexts_of(h, tables) {
                    let first = h.read64(at);
                    let silence = legacy::fault_processing_bit(first);
                    if first == silence {
                        let [_, high] = *legacy::ATTACHED.quadwords();
                        self.publish_entry_at(h, at, &[silence, high]);
                    }
                }
            }
            _ => {}
        }
    }

    /// What the change of an entry owes, whether it was set up, changed within one quadword or
    /// withdrawn (§6.5.3, Table 28): it is forgotten, and all that is cached of its domain, because
    /// only the domain-wide form drops second-stage paging structures. A device with a TLB is owed
    /// more, behind these.
    pub fn entry_invalidation(
        &self,
        tables: &DeviceTables,
        pasid: Pasid,
        domain_id: DomainId,
    ) -> Vec<Descriptor, 3> {
        let has_aliases = tables.requesters.iter().nth(1).is_some();
        let forget = |domain_id| match tables.form {
            Form::Scalable { .. } => Descriptor::PasidCache {
                granularity: PasidCacheGranularity::Pasid { domain_id, pasid },
            },
            // Each of its context entries is cached by itself.
            Form::Legacy if has_aliases => Descriptor::ContextCache {
                granularity: ContextGranularity::Global,
            },
            // Entries of legacy mode are cached under their domain-id, too.
            Form::Legacy => forget_context(tables.source_id(), domain_id),
        };
        // With caching mode an entry that is not present is cached under domain-id 0 (§6.2.2.1,
        // §6.2.3.1).
        let absent = self
            .needs_invalidation_after_set_up()
            .then(|| forget(DomainId::ZERO));
        let domain = Descriptor::Iotlb {
            granularity: IotlbGranularity::Domain(domain_id),
            drain_reads: true,
            drain_writes: true,
        };
        let mut owed = Vec::new();
        for descriptor in absent.into_iter().chain([forget(domain_id), domain]) {
            // There is room for three.
            _ = owed.push(descriptor);
        }
        owed
    }

    /// Replaces the quadword of a present PASID entry that holds first-stage root, paging mode,
    /// `SRE`, `WPE` and `EAFE` (bits 191:128), by one store. The caller owes an invalidation.
    ///
    /// # Errors
    ///
    /// [`UnitError::PasidEntry`] if hardware would not accept the result,
    /// [`UnitError::EntryAbsent`], [`UnitError::PasidBeyondLimit`] or [`UnitError::NotPrepared`];
    /// nothing has changed then.
    pub fn replace_quadword<H: Hypervisor>(
        &self,
        h: &H,
        tables: &DeviceTables,
        pasid: Pasid,
        quadword2: u64,
    ) -> Result<(), UnitError> {
        let Place::PasidEntry(at) = tables.place_of(h, pasid)? else {
            return Err(UnitError::NotPrepared(pasid));
        };
        let entry = read_pasid_entry(h, at);
        if !entry.is_present() {
            return Err(UnitError::EntryAbsent(pasid));
        }
        let [q0, q1, _, q3, q4, q5, q6, q7] = *entry.quadwords();
        let changed = PasidEntry::from_quadwords([q0, q1, quadword2, q3, q4, q5, q6, q7]);
        self.check_entry(&changed)?;
        self.publish_quadword(h, Hpa::new(at.as_u64().saturating_add(16)), quadword2);
        Ok(())
    }

    /// The PASID's entry as it is in memory, or `None` if the PASID has no table.
    pub fn read_entry<H: Hypervisor>(
        &self,
        h: &H,
        tables: &DeviceTables,
        pasid: Pasid,
    ) -> Option<PasidEntry> {
        Some(match tables.place_of(h, pasid).ok()? {
            Place::PasidEntry(at) => read_pasid_entry(h, at),
            Place::ContextEntries => {
                let at = self.context_entry_at(h, tables.source_id())?;
                legacy::pasid_entry(&read_context_entry(h, at))
            }
        })
    }
}

/// Where what is said of a PASID lies.
enum Place {
    PasidEntry(Hpa),
    ContextEntries,
}

impl DeviceTables {
    fn check_pasid(&self, pasid: Pasid) -> Result<(), UnitError> {
        if pasid.as_u32() < self.limit {
            return Ok(());
        }
        Err(UnitError::PasidBeyondLimit {
            pasid,
            limit: self.limit,
        })
    }

    fn place_of<H: HostMemory>(&self, h: &H, pasid: Pasid) -> Result<Place, UnitError> {
        self.check_pasid(pasid)?;
        let directory = match self.form {
            Form::Scalable { directory, .. } => directory,
            Form::Legacy => return Ok(Place::ContextEntries),
        };
        let entry = h.read64(directory_entry_at(directory, pasid));
        let entry = PasidDirectoryEntry::from_u64(entry);
        if !entry.is_present() {
            return Err(UnitError::NotPrepared(pasid));
        }
        let offset = u64::from(pasid.table_index()) * PasidEntry::LEN_BYTES as u64;
        let table: Hpa = entry.pasid_table();
        let at = table.checked_add(offset);
        at.map(Place::PasidEntry)
            .ok_or(UnitError::NotPrepared(pasid))
    }
}

/// Where the entry of a directory is that leads to a PASID's table.
const fn directory_entry_at(directory: Hpa, pasid: Pasid) -> Hpa {
    let offset = pasid.directory_index() as u64 * PasidDirectoryEntry::LEN_BYTES as u64;
    Hpa::new(directory.as_u64().saturating_add(offset))
}

fn read_context_entry<H: HostMemory>(h: &H, at: Hpa) -> LegacyContextEntry {
    let high = Hpa::new(at.as_u64().saturating_add(8));
    LegacyContextEntry::from_quadwords([h.read64(at), h.read64(high)])
}

fn read_pasid_entry<H: HostMemory>(h: &H, at: Hpa) -> PasidEntry {
    let mut quadwords = [0; 8];
    let mut next = at;
    for quadword in &mut quadwords {
        *quadword = h.read64(next);
        next = Hpa::new(next.as_u64().saturating_add(8));
    }
    PasidEntry::from_quadwords(quadwords)
}
