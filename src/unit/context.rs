//! The context entries of a device: one for each of its source-ids, all with the same directory (§9.4,
//! §3.12) or, in legacy mode, with the same second-stage table (§9.3).

use heapless::Vec;

use super::device_tlb::DeviceTlbScope;
use super::discovery::requesters::MAXIMUM_ALIASES;
use super::discovery::{RequesterIds, SourceIdRange};
use super::error::UnitError;
use super::tables::DeviceTables;
use super::unit::Unit;
use crate::arch::address::Hpa;
use crate::arch::context::{LegacyContextEntry, ScalableContextEntry};
use crate::arch::descriptor::{
    ContextGranularity, Descriptor, IotlbGranularity, PasidCacheGranularity,
};
use crate::arch::id::{DomainId, SourceId};
use crate::arch::root::{RootHalf, ScalableRootEntry};
use crate::mem::{Frames, HostMemory, Hypervisor, Owner, Registers};

/// Every source-id of a device, PASID cache, IOTLB and device-TLB.
const LONGEST_BATCH: usize = MAXIMUM_ALIASES + 4;

impl<R: Registers> Unit<R> {
    /// Writes the context entries of a device: all, or none if one is in use.
    pub(super) fn install_contexts<H: Hypervisor>(
        &self,
        h: &H,
        requesters: &RequesterIds,
        entry: &[u64],
    ) -> Result<(), UnitError> {
        // Context tables stay with the unit, whatever becomes of this device.
        for source_id in requesters.iter() {
            self.make_context_table(h, source_id)?;
        }
        let mut guard = self.tables.lock();
        // Looked at under the lock: shutting down counts the devices under it.
        self.check_is_up()?;
        let root = guard.root().ok_or(UnitError::NotUp)?;
        let unused = |source_id| {
            self.context_entry_in(h, root, source_id)
                .filter(|at| self.is_unused(h, *at))
                .ok_or(UnitError::Attached(source_id))
        };
        for source_id in requesters.iter() {
            unused(source_id)?;
        }
        for source_id in requesters.iter() {
            self.publish_entry_at(h, unused(source_id)?, entry);
        }
        guard.attached = guard.attached.saturating_add(1);
        Ok(())
    }

    /// Whether a context entry is nobody's: all zero.
    fn is_unused<H: HostMemory>(&self, h: &H, at: Hpa) -> bool {
        (0..self.context_entry_bytes())
            .step_by(8)
            .all(|offset| h.read64(Hpa::new(at.as_u64().saturating_add(offset))) == 0)
    }

    const fn context_entry_bytes(&self) -> u64 {
        if self.is_scalable() {
            ScalableContextEntry::LEN_BYTES as u64
        } else {
            LegacyContextEntry::LEN_BYTES as u64
        }
    }

    /// Makes sure that there is a context table for a source-id.
    fn make_context_table<H: Hypervisor>(
        &self,
        h: &H,
        source_id: SourceId,
    ) -> Result<(), UnitError> {
        if self.context_entry_at(h, source_id).is_some() {
            return Ok(());
        }
        // Allocated before the lock is taken; given back if another processor was faster.
        let table = h.allocate(Owner::HYPERVISOR, 0)?;
        self.flush_table(h, table.address(), table.len_bytes());
        let guard = self.tables.lock();
        let Some(root) = guard.root().filter(|_| self.is_up()) else {
            drop(guard);
            h.free(table);
            return Err(UnitError::NotUp);
        };
        let half_at = self.root_quadword_at(root, source_id);
        if h.read64(half_at) != 0 {
            drop(guard);
            h.free(table);
            return Ok(());
        }
        // From now on the root entry stands for the frame.
        let root_entry = ScalableRootEntry::new(Some(table.address()), None);
        self.publish_quadword(h, half_at, root_entry.half(RootHalf::Lower));
        Ok(())
    }

    /// What is owed after context entries became present (§6.5.3, Table 28).
    pub(super) fn announce_contexts<H: Hypervisor>(
        &self,
        h: &H,
        tables: &DeviceTables,
    ) -> Result<(), UnitError> {
        if !self.needs_invalidation_after_set_up() {
            return self.write_buffer_flush(h);
        }
        // Entries that are not present are cached under domain-id 0.
        let domain_id = DomainId::ZERO;
        let caches = [
            Descriptor::PasidCache {
                granularity: PasidCacheGranularity::Domain(domain_id),
            },
            Descriptor::Iotlb {
                granularity: IotlbGranularity::Domain(domain_id),
                drain_reads: true,
                drain_writes: true,
            },
        ];
        let device_tlb = self.device_tlb_invalidation(tables, DeviceTlbScope::Everything);
        let ticket = self.submit(
            h,
            &forget_contexts(tables.requesters(), &caches, device_tlb),
        )?;
        Ok(self.wait(h, ticket)?)
    }

    pub(super) fn context_entry_at<H: HostMemory>(
        &self,
        h: &H,
        source_id: SourceId,
    ) -> Option<Hpa> {
        let root = self.tables.lock().root()?;
        self.context_entry_in(h, root, source_id)
    }

    /// Where the quadword of the root entry is that leads to a device's context table.
    fn root_quadword_at(&self, root: Hpa, source_id: SourceId) -> Hpa {
        let entry = u64::from(source_id.bus()) * ScalableRootEntry::LEN_BYTES as u64;
        let half = if self.is_scalable() {
            u64::from(RootHalf::of(source_id).quadword()) * 8
        } else {
            0
        };
        Hpa::new(root.as_u64().saturating_add(entry + half))
    }

    /// Where a device's context entry is, if there is a context table for it.
    fn context_entry_in<H: HostMemory>(
        &self,
        h: &H,
        root: Hpa,
        source_id: SourceId,
    ) -> Option<Hpa> {
        // Legacy entries and halves of scalable-mode ones have the same form.
        let half = h.read64(self.root_quadword_at(root, source_id));
        let root_entry = ScalableRootEntry::from_quadwords([half, 0]);
        if !root_entry.is_present(RootHalf::Lower) {
            return None;
        }
        let table: Hpa = root_entry.lower_context_table();
        let index = if self.is_scalable() {
            ScalableContextEntry::index(source_id)
        } else {
            LegacyContextEntry::index(source_id)
        };
        table.checked_add(u64::from(index) * self.context_entry_bytes())
    }

    /// Clears Present in a device's context entries. What else their first quadwords hold stays, so
    /// that the device counts as attached until its tables are released.
    pub(super) fn withdraw_contexts<H: HostMemory>(&self, h: &H, requesters: &RequesterIds) {
        for source_id in requesters.iter() {
            if let Some(at) = self.context_entry_at(h, source_id) {
                self.publish_quadword(h, at, h.read64(at) & !1);
            }
        }
    }

    /// Sets or clears `FPD` in a device's context entries, present or withdrawn.
    pub(super) fn store_fault_processing<H: HostMemory>(
        &self,
        h: &H,
        requesters: &RequesterIds,
        enabled: bool,
    ) {
        let disable = ScalableContextEntry::FAULT_PROCESSING_DISABLE;
        for source_id in requesters.iter() {
            let Some(at) = self.context_entry_at(h, source_id) else {
                continue;
            };
            match h.read64(at) {
                // Nobody's: it stays free to be used.
                _ if self.is_unused(h, at) => {}
                entry if enabled => self.publish_quadword(h, at, entry & !disable),
                entry => self.publish_quadword(h, at, entry | disable),
            }
        }
    }

    /// Zeroes withdrawn context entries that hardware has forgotten: their source-ids can be
    /// attached again.
    pub(super) fn clear_contexts<H: HostMemory + Frames>(&self, h: &H, requesters: &RequesterIds) {
        for source_id in requesters.iter() {
            if let Some(at) = self.context_entry_at(h, source_id) {
                self.clear_entry_at(h, at, self.context_entry_bytes() / 8);
            }
        }
        let mut tables = self.tables.lock();
        tables.attached = tables.attached.saturating_sub(1);
    }

    /// The first attached source-id of a range for which `is_other` holds. One whose detaching is
    /// not confirmed counts.
    pub fn find_attached<H: HostMemory>(
        &self,
        h: &H,
        range: SourceIdRange,
        is_other: impl Fn(SourceId) -> bool,
    ) -> Option<SourceId> {
        let root = self.tables.lock().root()?;
        let (mut next, last) = (u32::from(range.first.as_u16()), range.last.as_u16().into());
        // Each round passes a source-id, or half of a bus.
        while next <= last {
            let source_id = SourceId::from_u16(next as u16);
            match self.context_entry_in(h, root, source_id) {
                Some(at) if !self.is_unused(h, at) && is_other(source_id) => {
                    return Some(source_id);
                }
                Some(_) => next = next.saturating_add(1),
                None => next = (next | 0x7f).saturating_add(1),
            }
        }
        None
    }
}

/// The descriptors that make hardware forget a device's context entries, then what follows from
/// them.
pub(super) fn forget_contexts(
    requesters: &RequesterIds,
    caches: &[Descriptor],
    device_tlb: Option<Descriptor>,
) -> Vec<Descriptor, LONGEST_BATCH> {
    let forget = |source_id| forget_context(source_id, DomainId::ZERO);
    let contexts = requesters.iter().map(forget);
    let mut batch = Vec::new();
    for descriptor in contexts.chain(caches.iter().copied()).chain(device_tlb) {
        // There is room for all of them.
        _ = batch.push(descriptor);
    }
    batch
}

/// The context-cache invalidation of a source-id. The domain-id counts in legacy mode only.
pub(super) const fn forget_context(source_id: SourceId, domain_id: DomainId) -> Descriptor {
    Descriptor::ContextCache {
        granularity: ContextGranularity::Device {
            source_id,
            function_mask: 0,
            domain_id,
        },
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::testing::{Bench, CACHING_MODE, Completion, OWNER, up};
    use super::*;
    use crate::unit::{QueueError, Unit};
    use std::vec::Vec;

    /// Source-ids on both halves of one bus, and on another.
    const IDS: [u16; 4] = [0x0010, 0x0011, 0x00f8, 0x0300];

    fn requesters() -> RequesterIds {
        let mut ids = RequesterIds::of(SourceId::from_u16(IDS[0]));
        for alias in &IDS[1..] {
            ids.add(SourceId::from_u16(*alias)).unwrap();
        }
        ids
    }

    /// The first quadword of each of the context entries as hardware sees them.
    fn contexts(bench: &Bench) -> Vec<u64> {
        let world = bench.world();
        let root = world.latched_root.unwrap() & !0xfff;
        let entry = |id: &u16| {
            let id = u64::from(*id);
            let root_entry = world.table_quadword(root + (id >> 8) * 16 + (id >> 7 & 1) * 8);
            if root_entry & 1 == 0 {
                return 0;
            }
            world.table_quadword((root_entry & !0xfff) + (id & 0x7f) * 32)
        };
        IDS.iter().map(entry).collect()
    }

    fn attach(bench: &Bench) -> Result<DeviceTables, UnitError> {
        let unit = &bench.unit;
        unit.attach_requesters(&bench.h, OWNER, &requesters(), 4, None)
    }

    fn forgotten(batch: &[Descriptor]) -> Vec<u16> {
        let source_id = |descriptor: &Descriptor| match descriptor {
            Descriptor::ContextCache {
                granularity: ContextGranularity::Device { source_id, .. },
            } => Some(source_id.as_u16()),
            _ => None,
        };
        batch.iter().filter_map(source_id).collect()
    }

    // G20, §3.12
    #[test]
    fn all_source_ids_have_the_same_directory_from_attaching_to_release() {
        let bench = up(|options| options.capability |= CACHING_MODE);
        let tables = attach(&bench).unwrap();
        let entries = contexts(&bench);
        assert!(
            entries
                .iter()
                .all(|entry| *entry == entries[0] && entry & 1 == 1)
        );
        assert_eq!(forgotten(&bench.take_executed()), IDS);

        drop(bench.unit.block_device(&bench.h, &tables).unwrap());
        assert!(contexts(&bench).iter().all(|entry| entry & 1 == 0));
        assert_eq!(forgotten(&bench.take_executed()), IDS);

        bench.world().completion = Completion::Never;
        let detached = bench.unit.detach_device(&bench.h, tables).unwrap();
        assert_eq!(forgotten(&bench.take_executed()), IDS);
        let (detached, error) = bench.unit.release(&bench.h, detached).unwrap_err();
        assert!(matches!(error, QueueError::TimedOut { .. }));
        // Each of them is in use until hardware has forgotten all.
        assert!(contexts(&bench).iter().all(|entry| *entry != 0));
        bench.world().completion = Completion::Now;
        bench.unit.release(&bench.h, detached).unwrap();
        assert_eq!(contexts(&bench), [0; 4]);
        assert_eq!(bench.h.pool.charged_frames(OWNER), 0);
    }

    // G20: all or nothing.
    #[test]
    fn one_source_id_in_use_keeps_all_of_them_out() {
        for taken in IDS {
            let bench = up(|_| {});
            let taken = SourceId::from_u16(taken);
            let other = bench.unit.attach_device(&bench.h, OWNER, taken, 0).unwrap();
            let (before, charged) = (contexts(&bench), bench.h.pool.charged_frames(OWNER));
            assert_eq!(attach(&bench).map(drop), Err(UnitError::Attached(taken)));
            assert_eq!(contexts(&bench), before);
            assert_eq!(bench.h.pool.charged_frames(OWNER), charged);
            let detached = bench.unit.detach_device(&bench.h, other).unwrap();
            bench.unit.release(&bench.h, detached).unwrap();
        }
    }

    // G20: failing the n-th.
    #[test]
    fn the_nth_allocation_fails() {
        let bench = up(|_| {});
        // The directory, its first table, three context tables: those stay, so that each round gets
        // one further.
        for allowed in [0, 1, 2, 3, 3] {
            bench.world().fail_allocation = Some(allowed);
            assert!(matches!(attach(&bench), Err(UnitError::Frames(_))));
            assert_eq!(contexts(&bench), [0; 4]);
            assert_eq!(bench.h.pool.charged_frames(OWNER), 0);
        }
        bench.world().fail_allocation = None;
        let tables = attach(&bench).unwrap();
        let detached = bench.unit.detach_device(&bench.h, tables).unwrap();
        bench.unit.release(&bench.h, detached).unwrap();
    }

    #[test]
    fn attached_source_ids_are_found_in_their_range() {
        let bench = up(|_| {});
        let find = |unit: &Unit<_>, first, last, skipped: &[u16]| {
            let range = SourceIdRange {
                first: SourceId::from_u16(first),
                last: SourceId::from_u16(last),
            };
            let is_other = |source_id: SourceId| !skipped.contains(&source_id.as_u16());
            let found = unit.find_attached(&bench.h, range, is_other);
            found.map(SourceId::as_u16)
        };
        assert_eq!(find(&bench.unit, 0, u16::MAX, &[]), None);
        let tables = attach(&bench).unwrap();
        for (first, last, skipped, found) in [
            (0, u16::MAX, &[][..], Some(IDS[0])),
            (0, u16::MAX, &IDS[..1], Some(IDS[1])),
            (0, u16::MAX, &IDS[..3], Some(IDS[3])),
            (0, u16::MAX, &IDS[..], None),
            (0x0011, 0x0011, &[], Some(0x0011)),
            (0x0012, 0x00f7, &[], None),
            (0x0012, 0x00f8, &[], Some(0x00f8)),
            (0x0100, 0x02ff, &[], None),
            (0x0301, u16::MAX, &[], None),
            (0x0300, 0x0010, &[], None),
        ] {
            assert_eq!(
                find(&bench.unit, first, last, skipped),
                found,
                "{first:x} {last:x}"
            );
        }
        let detached = bench.unit.detach_device(&bench.h, tables).unwrap();
        bench.unit.release(&bench.h, detached).unwrap();
    }
}
