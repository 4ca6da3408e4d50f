//! Root, context and PASID tables, and the order of stores to them (§9, §6.2.3.1).
//!
//! Hardware may read an entry in 16-byte pieces at any moment. So an entry is set up from its end,
//! with the quadword that holds Present last, and taken down by zeroing that quadword first; the
//! rest changes only when hardware is known to have forgotten it. Where the unit does not snoop
//! (`ECAP.C` clear), each step is written back to memory before the next.

use heapless::Vec;

use super::context::forget_contexts;
use super::device_tlb::{DeviceTlb, DeviceTlbScope};
use super::discovery::RequesterIds;
use super::error::{QueueError, UnitError};
use super::legacy;
use super::queue::{EVERYTHING, Ticket};
use super::statistics::add_lost_table_frames;
use super::unit::Unit;
use crate::arch::address::{Hpa, PAGE_SIZE_BYTES};
use crate::arch::context::{
    ContextAttributes, DirectoryOrder, LegacyContextFault, ScalableContextEntry,
};
use crate::arch::descriptor::Descriptor;
use crate::arch::id::SourceId;
use crate::arch::pasid::PasidDirectoryEntry;
use crate::mem::{FrameRun, Frames, HostMemory, Hypervisor, Owner, Registers};

/// The unit's own tables. Context tables are charged to the hypervisor and never freed; the root
/// table itself is the record of them.
#[derive(Debug)]
pub(super) struct Tables {
    root: Option<FrameRun>,
    /// Hardware may know of the root table.
    is_exposed: bool,
    /// Devices that have context entries, present or not.
    pub(super) attached: u32,
}

impl Tables {
    pub(super) const fn new() -> Self {
        Self {
            root: None,
            is_exposed: false,
            attached: 0,
        }
    }

    pub(super) fn root(&self) -> Option<Hpa> {
        self.root.as_ref().map(FrameRun::address)
    }

    pub(super) fn set_root(&mut self, root: FrameRun) {
        self.root = Some(root);
    }

    /// The root table's address, to tell hardware: it stays with the unit from now on.
    pub(super) fn expose_root(&mut self) -> Option<Hpa> {
        let root = self.root()?;
        self.is_exposed = true;
        Some(root)
    }

    pub(super) fn take_unexposed_root(&mut self) -> Option<FrameRun> {
        if self.is_exposed {
            None
        } else {
            self.root.take()
        }
    }
}

/// The frames of one device: its PASID directory and the PASID tables that it names. Dropped, they
/// are lost and counted.
#[derive(Debug)]
pub(super) struct TableFrames {
    directory: Option<FrameRun>,
    pub(super) tables: u32,
}

impl TableFrames {
    fn free<H: HostMemory + Frames>(mut self, h: &H) {
        let Some(directory) = self.directory.take() else {
            return;
        };
        let mut left = self.tables;
        let mut offset = 0;
        while left > 0 && offset < directory.len_bytes() {
            let entry = directory
                .address()
                .checked_add(offset)
                .map_or(0, |at| h.read64(at));
            let entry = PasidDirectoryEntry::from_u64(entry);
            if entry.is_present() {
                h.free(FrameRun::new(entry.pasid_table(), 0, directory.owner()));
                left = left.saturating_sub(1);
            }
            offset = offset.saturating_add(8);
        }
        h.free(directory);
    }
}

impl Drop for TableFrames {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            add_lost_table_frames((1u64 << (directory.order() & 31)) + u64::from(self.tables));
        }
    }
}

/// What a device's entries lie in.
#[derive(Debug)]
pub(super) enum Form {
    /// A PASID directory and its tables.
    Scalable { directory: Hpa, frames: TableFrames },
    /// The context entries alone: the unit is driven in legacy mode.
    Legacy,
}

/// The tables of one attached device.
///
/// Owns their frames: dropped, they are lost, counted by
/// [`lost_table_frames`](super::lost_table_frames), and the device stays attached.
#[must_use = "dropped tables are lost, and the device stays attached"]
#[derive(Debug)]
pub struct DeviceTables {
    pub(super) requesters: RequesterIds,
    pub(super) owner: Owner,
    /// PASIDs are below this.
    pub(super) limit: u32,
    device_tlb: Option<DeviceTlb>,
    pub(super) form: Form,
}

impl DeviceTables {
    /// The device, by its own source-id.
    pub const fn source_id(&self) -> SourceId {
        self.requesters.own()
    }

    /// All source-ids under which the device's requests arrive.
    pub const fn requesters(&self) -> &RequesterIds {
        &self.requesters
    }

    /// Whom the frames are charged to.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// The number of PASIDs that the device may use: all below this.
    pub const fn pasid_limit(&self) -> u32 {
        self.limit
    }

    /// The device's own TLB, if it may use one.
    pub const fn device_tlb(&self) -> Option<&DeviceTlb> {
        self.device_tlb.as_ref()
    }

    /// Number of PASID tables there are, each for 64 PASIDs and one frame long; none in legacy
    /// mode.
    pub const fn table_count(&self) -> u32 {
        match &self.form {
            Form::Scalable { frames, .. } => frames.tables,
            Form::Legacy => 0,
        }
    }
}

/// A device that was detached, with the tables that hardware may use until its caches are
/// invalidated. Give it to [`Unit::release`].
#[must_use = "dropped tables are lost, and the device cannot be attached again"]
#[derive(Debug)]
pub struct DetachedDevice {
    tables: DeviceTables,
    ticket: Option<Ticket>,
}

impl DetachedDevice {
    /// The device.
    pub const fn source_id(&self) -> SourceId {
        self.tables.source_id()
    }

    /// The outstanding invalidation, to poll; `None` after one that failed: releasing then submits
    /// another.
    pub const fn ticket(&self) -> Option<&Ticket> {
        self.ticket.as_ref()
    }

    /// The tables again, for a later [`Unit::detach_device`]: what a caller keeps who cannot go on
    /// with [`Unit::release`] now.
    pub fn into_tables(self) -> DeviceTables {
        self.tables
    }
}

impl<R: Registers> Unit<R> {
    /// Writes a range of a table back to memory if the unit does not snoop accesses to it. A range
    /// within a line writes that whole line.
    pub(super) fn flush_table<H: HostMemory>(&self, h: &H, at: Hpa, len_bytes: u64) {
        if !self.features.extended.is_coherent() {
            h.flush_range(at, len_bytes);
        }
    }

    /// Stores one quadword of a table so that hardware sees it after all that was stored before.
    pub(super) fn publish_quadword<H: HostMemory>(&self, h: &H, at: Hpa, value: u64) {
        h.fence();
        h.write64(at, value);
        self.flush_table(h, at, 8);
        h.fence();
    }

    /// Stores an entry that is not present in memory yet: its end first, Present last.
    pub(super) fn publish_entry_at<H: HostMemory>(&self, h: &H, at: Hpa, quadwords: &[u64]) {
        let Some((first, rest)) = quadwords.split_first() else {
            return;
        };
        let mut next = at;
        for quadword in rest {
            next = Hpa::new(next.as_u64().saturating_add(8));
            h.write64(next, *quadword);
        }
        self.flush_table(h, at, quadwords.len() as u64 * 8);
        self.publish_quadword(h, at, *first);
    }

    /// Zeroes an entry whose first quadword is not present.
    pub(super) fn clear_entry_at<H: HostMemory>(&self, h: &H, at: Hpa, quadwords: u64) {
        for quadword in 0..quadwords {
            h.write64(Hpa::new(at.as_u64().saturating_add(quadword * 8)), 0);
        }
        self.flush_table(h, at, quadwords * 8);
        h.fence();
    }

    /// Gives a device a context entry and an empty PASID directory with the table of PASID 0:
    /// every request of it still faults, but entries can be published. In legacy mode the context
    /// entry itself is that of PASID 0, and there are no frames.
    ///
    /// `pasid_bits` is the width of the PASIDs that the device may use in requests; with 0
    /// requests-with-PASID are refused and PASID 0, that of all other requests, is the only one.
    /// Device-TLB and page requests are not enabled: the device's translation requests and translated
    /// requests are blocked.
    ///
    /// # Errors
    ///
    /// [`UnitError::NotUp`], [`UnitError::PasidBits`], [`UnitError::Frames`],
    /// [`UnitError::Attached`], [`UnitError::ContextEntry`]; nothing has changed then.
    /// [`UnitError::Queue`] if the unit caches absent entries (`CAP.CM`) and does not confirm to
    /// have forgotten this one: the device is blocked then, and its frames are lost, for they
    /// cannot be shown to be unused.
    pub fn attach_device<H: Hypervisor>(
        &self,
        h: &H,
        owner: Owner,
        source_id: SourceId,
        pasid_bits: u8,
    ) -> Result<DeviceTables, UnitError> {
        self.attach_requesters(h, owner, &RequesterIds::of(source_id), pasid_bits, None)
    }

    /// As [`attach_device`](Self::attach_device), for a device whose requests arrive under any of
    /// several source-ids: a context entry for each leads to the same directory (§3.12). All of
    /// them are written, or none.
    ///
    /// With `device_tlb` the device may use a TLB of its own (`DTE`; in legacy mode `TT` 01b, while
    /// PASID 0 has an entry). Such a device reaches any host
    /// address by translated requests, which hardware does not check against the tables (§4.2.5): it
    /// has to be trusted not to make addresses up. Whoever changes an entry or a mapping of it owes
    /// [`device_tlb_invalidation`](Self::device_tlb_invalidation), too.
    ///
    /// # Errors
    ///
    /// As [`attach_device`](Self::attach_device), [`UnitError::Attached`] with the source-id;
    /// [`UnitError::ContextEntry`] if the unit has no device-TLBs (`ECAP.DT`),
    /// in legacy mode [`UnitError::LegacyContextEntry`].
    pub fn attach_requesters<H: Hypervisor>(
        &self,
        h: &H,
        owner: Owner,
        requesters: &RequesterIds,
        pasid_bits: u8,
        device_tlb: Option<DeviceTlb>,
    ) -> Result<DeviceTables, UnitError> {
        self.check_is_up()?;
        let has_pasid = self.is_scalable() && self.features.extended.has_pasid();
        let maximum = if has_pasid {
            self.features.extended.pasid_bits()
        } else {
            0
        };
        let bits_error = UnitError::PasidBits {
            bits: pasid_bits,
            maximum,
        };
        if pasid_bits > maximum {
            return Err(bits_error);
        }
        let order = DirectoryOrder::for_pasid_bits(pasid_bits).ok_or(bits_error)?;
        let attributes = ContextAttributes {
            pasid_enabled: pasid_bits > 0,
            device_tlb: device_tlb.is_some(),
            ..ContextAttributes::default()
        };
        let form = if self.is_scalable() {
            self.install_directory(h, owner, requesters, order, attributes)?
        } else if device_tlb.is_some() && !self.has_device_tlbs() {
            // TT = 01b, found here rather than with the first entry.
            let fault = LegacyContextFault::UnsupportedTranslationType(1);
            return Err(UnitError::LegacyContextEntry(fault));
        } else {
            // Not present, so nothing is owed for it.
            self.install_contexts(h, requesters, legacy::ATTACHED.quadwords())?;
            Form::Legacy
        };
        let tables = DeviceTables {
            requesters: *requesters,
            owner,
            limit: 1 << pasid_bits.min(20),
            device_tlb,
            form,
        };
        if self.is_scalable()
            && let Err(error) = self.announce_contexts(h, &tables)
        {
            self.withdraw_contexts(h, requesters);
            log::error!("attaching {}: {error}", requesters.own());
            return Err(error);
        }
        self.counters.attached.add(1);
        Ok(tables)
    }

    /// Makes a directory with the table of PASID 0, and has the context entries lead to it.
    fn install_directory<H: Hypervisor>(
        &self,
        h: &H,
        owner: Owner,
        requesters: &RequesterIds,
        order: DirectoryOrder,
        attributes: ContextAttributes,
    ) -> Result<Form, UnitError> {
        let directory = h.allocate(owner, frame_order(order.len_bytes()))?;
        let table = match h.allocate(owner, 0) {
            Ok(table) => table,
            Err(error) => {
                h.free(directory);
                return Err(error.into());
            }
        };
        let entry = ScalableContextEntry::new(directory.address(), order, attributes);
        let installed = match entry.decode::<Hpa>(&self.table_features) {
            Ok(_) => {
                self.flush_table(h, table.address(), table.len_bytes());
                self.flush_table(h, directory.address(), directory.len_bytes());
                let first = PasidDirectoryEntry::new(table.address());
                self.publish_quadword(h, directory.address(), first.as_u64());
                self.install_contexts(h, requesters, entry.quadwords())
            }
            Err(fault) => Err(UnitError::ContextEntry(fault)),
        };
        if let Err(error) = installed {
            h.free(table);
            h.free(directory);
            return Err(error);
        }
        Ok(Form::Scalable {
            directory: directory.address(),
            frames: TableFrames {
                directory: Some(directory),
                tables: 1,
            },
        })
    }

    /// Has hardware and the device forget everything that is cached of a device whose context entry
    /// was withdrawn: by [`block_device`](Self::block_device), or by a
    /// [`detach_device`](Self::detach_device) that failed. Does not wait.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn forget_device<H: Hypervisor>(
        &self,
        h: &H,
        tables: &DeviceTables,
    ) -> Result<Ticket, QueueError> {
        let device_tlb = self.device_tlb_invalidation(tables, DeviceTlbScope::Everything);
        if !self.is_scalable() {
            // Its context entries may be cached under any domain-id.
            let mut all = Vec::<Descriptor, 3>::new();
            for descriptor in self.everything().iter().copied().chain(device_tlb) {
                // There is room for three.
                _ = all.push(descriptor);
            }
            return self.submit(h, &all);
        }
        // The domains in its PASID table are not known here, hence all of them.
        let [_, pasid_cache, iotlb] = EVERYTHING;
        self.submit(
            h,
            &forget_contexts(&tables.requesters, &[pasid_cache, iotlb], device_tlb),
        )
    }

    /// Has hardware read a device's context and PASID entries anew; translations stay.
    pub(super) fn forget_entries_of<H: Hypervisor>(
        &self,
        h: &H,
        tables: &DeviceTables,
    ) -> Result<Ticket, QueueError> {
        if !self.is_scalable() {
            // Translations that fault are cached with `FPD` as it was (`CAP.CM`).
            return self.submit(h, self.everything());
        }
        let [_, pasid_cache, _] = EVERYTHING;
        self.submit(
            h,
            &forget_contexts(&tables.requesters, &[pasid_cache], None),
        )
    }

    /// Blocks a device at once: its context entry becomes not present by one store, and what the
    /// unit has cached of it is queued to be forgotten. Does not wait.
    ///
    /// Once that is done, no request of it is let through, a translated one neither. Its own TLB is
    /// left alone, for it may be blocked because it does not answer: see
    /// [`forget_device`](Self::forget_device). Its tables stay. The way back is to detach it.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit). The entry is withdrawn all the same, but hardware may go on
    /// using what it has cached: turn off the device's bus mastering.
    pub fn block_device<H: Hypervisor>(
        &self,
        h: &H,
        tables: &DeviceTables,
    ) -> Result<Ticket, QueueError> {
        self.withdraw_contexts(h, &tables.requesters);
        self.counters.blocked.add(1);
        if !self.is_scalable() {
            return self.submit(h, self.everything());
        }
        let [_, pasid_cache, iotlb] = EVERYTHING;
        self.submit(
            h,
            &forget_contexts(&tables.requesters, &[pasid_cache, iotlb], None),
        )
    }

    /// Takes a device's context entry away and queues the invalidation of everything that is
    /// cached of it. Does not wait: [`release`](Self::release) does.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit), with the tables, to try again. The entry is withdrawn all the
    /// same.
    pub fn detach_device<H: Hypervisor>(
        &self,
        h: &H,
        tables: DeviceTables,
    ) -> Result<DetachedDevice, (DeviceTables, QueueError)> {
        self.withdraw_contexts(h, &tables.requesters);
        match self.forget_device(h, &tables) {
            Ok(ticket) => Ok(DetachedDevice {
                tables,
                ticket: Some(ticket),
            }),
            Err(error) => Err((tables, error)),
        }
    }

    /// Waits until hardware has forgotten a detached device, and frees its tables. The device may
    /// then be attached again.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit) and [`poll`](Self::poll), with the device, to try again:
    /// that submits a new invalidation.
    #[allow(clippy::result_large_err, reason = "the token is not to be lost")]
    pub fn release<H: Hypervisor>(
        &self,
        h: &H,
        mut device: DetachedDevice,
    ) -> Result<(), (DetachedDevice, QueueError)> {
        let ticket = match device.ticket.take() {
            Some(ticket) => Ok(ticket),
            None => self.forget_device(h, &device.tables),
        };
        if let Err(error) = ticket.and_then(|ticket| self.wait(h, ticket)) {
            return Err((device, error));
        }
        let DeviceTables {
            requesters, form, ..
        } = device.tables;
        self.clear_contexts(h, &requesters);
        if let Form::Scalable { frames, .. } = form {
            frames.free(h);
        }
        self.counters.released.add(1);
        Ok(())
    }
}

/// The order of the smallest run of frames with so many bytes.
const fn frame_order(len_bytes: u64) -> u8 {
    let frames = len_bytes.div_ceil(PAGE_SIZE_BYTES);
    frames.next_power_of_two().trailing_zeros() as u8
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::context::forget_context;
    use super::super::statistics::lost_table_frames;
    use super::super::testing::{
        Bench, CACHING_MODE, CAPABILITY, COHERENT, Completion, EXTENDED, Event, OWNER, up,
    };
    use super::*;
    use crate::arch::address::{AddressWidth, FirstStagePaging, Gpa};
    use crate::arch::id::{DomainId, Pasid};
    use crate::arch::pasid::PasidEntry;
    use crate::arch::pasid::{FirstStageFlags, PasidEntryFault, PasidEntryOptions};
    use crate::arch::second_stage::SecondStagePointer;
    use crate::mem::FrameError;
    use std::sync::Mutex;
    use std::vec::Vec;

    /// `ECAP` with FSTS (47) and NEST (26).
    const NESTING: u64 = EXTENDED | 1 << 47 | 1 << 26;
    /// The count of lost frames is one for all tests.
    static LOST: Mutex<()> = Mutex::new(());

    fn device() -> SourceId {
        SourceId::new(3, 17, 2).unwrap()
    }

    fn pasid(value: u32) -> Pasid {
        Pasid::new(value).unwrap()
    }

    fn second_stage(domain_id: u16) -> PasidEntry {
        PasidEntry::second_stage(
            SecondStagePointer::new(Hpa::new(0x1234_5000), AddressWidth::Bits48),
            DomainId::new(domain_id),
            PasidEntryOptions::default(),
        )
    }

    fn nested(first_stage_root: u64) -> PasidEntry {
        PasidEntry::nested(
            Gpa::new(first_stage_root),
            FirstStagePaging::Level4,
            FirstStageFlags::default(),
            SecondStagePointer::new(Hpa::new(0x1234_5000), AddressWidth::Bits48),
            DomainId::new(9),
            PasidEntryOptions::default(),
        )
    }

    /// What the unit finds for a PASID of a device, by its own walk.
    fn walk(bench: &Bench, source_id: SourceId, pasid: Pasid) -> Option<[u64; 8]> {
        let world = bench.world();
        let root = world.latched_root.unwrap() & !0xfff;
        let half = u64::from(source_id.device() >= 16) * 8;
        let root_entry = world.table_quadword(root + u64::from(source_id.bus()) * 16 + half);
        if root_entry & 1 == 0 {
            return None;
        }
        assert_eq!(root_entry & 0xffe, 0);
        let index = u64::from(source_id.device_function() & 0x7f);
        let context = (root_entry & !0xfff) + index * 32;
        let entry = world.table_quadword(context);
        if entry & 1 == 0 {
            return None;
        }
        for offset in [8, 16, 24] {
            assert_eq!(world.table_quadword(context + offset), 0);
        }
        let limit = 1u64 << ((entry >> 9 & 7) + 13);
        if u64::from(pasid.as_u32()) >= limit {
            return None;
        }
        let directory = (entry & !0xfff) + u64::from(pasid.as_u32() >> 6) * 8;
        let directory_entry = world.table_quadword(directory);
        if directory_entry & 1 == 0 {
            return None;
        }
        let at = (directory_entry & !0xfff) + u64::from(pasid.as_u32() & 63) * 64;
        Some([0, 8, 16, 24, 32, 40, 48, 56].map(|offset| world.table_quadword(at + offset)))
    }

    fn attach(bench: &Bench, pasid_bits: u8) -> DeviceTables {
        bench
            .unit
            .attach_device(&bench.h, OWNER, device(), pasid_bits)
            .unwrap()
    }

    fn detach(bench: &Bench, tables: DeviceTables) {
        let detached = bench.unit.detach_device(&bench.h, tables).unwrap();
        bench.unit.release(&bench.h, detached).unwrap();
    }

    #[test]
    fn an_attached_device_has_an_empty_directory_that_hardware_can_see() {
        for extended in [EXTENDED, EXTENDED | COHERENT] {
            // §9.4: PDTS n reaches 2^(n+13) PASIDs; the directory has 2^(n+10) bytes.
            for (bits, order, frames) in
                [(0, 0, 1), (13, 0, 1), (15, 2, 1), (16, 3, 2), (20, 7, 32)]
            {
                let bench = up(|options| options.extended = extended);
                let tables = attach(&bench, bits);
                assert_eq!(walk(&bench, device(), pasid(0)), Some([0; 8]));
                let beyond = pasid((1 << bits.max(13)) - 1);
                assert_eq!(walk(&bench, device(), beyond), None);
                assert_eq!(bench.h.pool.charged_frames(OWNER), frames + 1);
                assert_eq!(tables.pasid_limit(), 1 << bits);
                let Form::Scalable { directory, .. } = tables.form else {
                    panic!("{:?}", tables.form);
                };
                let directory = directory.as_u64();
                let log = bench.take_log();
                let context = log.iter().rev().find_map(|event| match event {
                    Event::Store(_, value) => Some(*value),
                    _ => None,
                });
                // P, PASIDE (bit 3) and PDTS (bits 11:9) in the last store of all.
                let paside = u64::from(bits > 0) << 3;
                assert_eq!(context, Some(directory | order << 9 | paside | 1));
                let flushes = log.iter().any(|event| matches!(event, Event::Flush(_)));
                assert_eq!(flushes, extended & COHERENT == 0);
                detach(&bench, tables);
                assert_eq!(walk(&bench, device(), pasid(0)), None);
                assert_eq!(bench.h.pool.charged_frames(OWNER), 0);
            }
        }
    }

    #[test]
    fn stores_of_set_up_and_teardown_come_in_the_order_that_hardware_needs() {
        for extended in [EXTENDED, EXTENDED | COHERENT] {
            let bench = up(|options| options.extended = extended);
            let mut tables = attach(&bench, 20);
            bench
                .unit
                .prepare_entry(&bench.h, &mut tables, pasid(70))
                .unwrap();
            let entry = second_stage(5);
            bench.take_log();
            bench
                .unit
                .publish_entry(&bench.h, &tables, pasid(70), &entry)
                .unwrap();
            let log = bench.take_log();
            let Event::Store(first_store, _) = log[0] else {
                panic!("{log:?}");
            };
            let at = first_store - 8;
            assert_eq!(at % 64, 0);
            let flush: &[Event] = if extended & COHERENT == 0 {
                &[Event::Flush(at)]
            } else {
                &[]
            };
            let q = *entry.quadwords();
            let mut expected: Vec<Event> = (1..8)
                .map(|word| Event::Store(at + word * 8, q[word as usize]))
                .collect();
            expected.extend(flush);
            expected.extend([Event::Fence, Event::Store(at, q[0])]);
            expected.extend(flush);
            expected.push(Event::Fence);
            assert_eq!(log, expected);
            assert_eq!(walk(&bench, device(), pasid(70)), Some(q));
            assert_eq!(
                bench.unit.read_entry(&bench.h, &tables, pasid(70)),
                Some(entry)
            );

            bench.unit.withdraw_entry(&bench.h, &tables, pasid(70));
            let mut expected = std::vec![Event::Fence, Event::Store(at, 0)];
            expected.extend(flush);
            expected.push(Event::Fence);
            assert_eq!(bench.take_log(), expected);
            // The domain-id stays readable, and the slot taken.
            assert_eq!(walk(&bench, device(), pasid(70)).unwrap()[1], q[1]);
            assert_eq!(
                bench
                    .unit
                    .publish_entry(&bench.h, &tables, pasid(70), &entry),
                Err(UnitError::EntryInUse(pasid(70)))
            );
            bench.unit.clear_entry(&bench.h, &tables, pasid(70));
            assert_eq!(walk(&bench, device(), pasid(70)), Some([0; 8]));
            bench
                .unit
                .publish_entry(&bench.h, &tables, pasid(70), &entry)
                .unwrap();
            // A present entry is not cleared.
            bench.unit.clear_entry(&bench.h, &tables, pasid(70));
            assert_eq!(walk(&bench, device(), pasid(70)), Some(q));
            detach(&bench, tables);
        }
    }

    #[test]
    fn one_quadword_is_replaced_by_one_store() {
        let bench = up(|options| options.extended = NESTING);
        let tables = attach(&bench, 20);
        let [old, new] = [nested(0x5000), nested(0x7000)];
        assert_eq!(
            bench
                .unit
                .replace_quadword(&bench.h, &tables, pasid(1), new.quadwords()[2]),
            Err(UnitError::EntryAbsent(pasid(1)))
        );
        bench
            .unit
            .publish_entry(&bench.h, &tables, pasid(1), &old)
            .unwrap();
        bench.take_log();
        bench
            .unit
            .replace_quadword(&bench.h, &tables, pasid(1), new.quadwords()[2])
            .unwrap();
        let log = bench.take_log();
        let stores = log.iter().filter(|event| matches!(event, Event::Store(..)));
        assert_eq!(stores.count(), 1);
        assert_eq!(walk(&bench, device(), pasid(1)), Some(*new.quadwords()));
        // FSPM (bits 3:2 of the quadword) 10b is reserved (§9.6).
        assert!(matches!(
            bench
                .unit
                .replace_quadword(&bench.h, &tables, pasid(1), 0x7000 | 2 << 2),
            Err(UnitError::PasidEntry(
                PasidEntryFault::UnsupportedPagingMode(2)
            ))
        ));
        assert_eq!(walk(&bench, device(), pasid(1)), Some(*new.quadwords()));
        detach(&bench, tables);
    }

    #[test]
    fn entries_that_hardware_would_refuse_are_not_published() {
        let bench = up(|options| options.capability = CAPABILITY & !7); // 4-bit domain-ids.
        let tables = attach(&bench, 7);
        bench.take_log();
        let publish =
            |pasid, entry: &PasidEntry| bench.unit.publish_entry(&bench.h, &tables, pasid, entry);
        assert_eq!(
            publish(pasid(1), &PasidEntry::default()),
            Err(UnitError::PasidEntry(PasidEntryFault::NotPresent))
        );
        assert!(matches!(
            publish(pasid(1), &nested(0x5000)),
            Err(UnitError::PasidEntry(_))
        ));
        assert!(matches!(
            publish(pasid(1), &second_stage(16)),
            Err(UnitError::PasidEntry(PasidEntryFault::ReservedNonZero {
                quadword: 1,
                ..
            }))
        ));
        assert_eq!(
            publish(pasid(1), &second_stage(0)),
            Err(UnitError::ReservedDomainId)
        );
        assert_eq!(
            publish(pasid(64), &second_stage(1)),
            Err(UnitError::NotPrepared(pasid(64)))
        );
        assert_eq!(
            publish(pasid(128), &second_stage(1)),
            Err(UnitError::PasidBeyondLimit {
                pasid: pasid(128),
                limit: 128
            })
        );
        bench.unit.withdraw_entry(&bench.h, &tables, pasid(64));
        bench.unit.clear_entry(&bench.h, &tables, pasid(128));
        assert_eq!(bench.unit.read_entry(&bench.h, &tables, pasid(64)), None);
        assert!(bench.take_log().is_empty());
        detach(&bench, tables);
    }

    #[test]
    fn pasid_tables_grow_on_demand_and_are_freed_with_the_device() {
        let bench = up(|_| {});
        let mut tables = attach(&bench, 20);
        let before = bench.h.pool.charged_frames(OWNER);
        for value in [0, 63, 64, 127, 0xf_ffff, 70] {
            bench
                .unit
                .prepare_entry(&bench.h, &mut tables, pasid(value))
                .unwrap();
            assert_eq!(walk(&bench, device(), pasid(value)), Some([0; 8]));
        }
        assert_eq!(tables.table_count(), 3);
        assert_eq!(bench.h.pool.charged_frames(OWNER), before + 2);
        bench.world().fail_allocation = Some(0);
        assert!(matches!(
            bench.unit.prepare_entry(&bench.h, &mut tables, pasid(640)),
            Err(UnitError::Frames(FrameError::PoolExhausted { .. }))
        ));
        assert_eq!(walk(&bench, device(), pasid(640)), None);
        bench.world().fail_allocation = None;
        detach(&bench, tables);
        assert_eq!(bench.h.pool.charged_frames(OWNER), 0);
    }

    #[test]
    fn attaching_fails_without_a_trace() {
        let bench = up(|_| {});
        for allowed in 0..3 {
            let free = bench.h.pool.free_frames();
            bench.world().fail_allocation = Some(allowed);
            assert!(matches!(
                bench.unit.attach_device(&bench.h, OWNER, device(), 20),
                Err(UnitError::Frames(_))
            ));
            assert_eq!(bench.h.pool.free_frames(), free);
            assert_eq!(walk(&bench, device(), pasid(0)), None);
        }
        bench.world().fail_allocation = None;
        let tables = attach(&bench, 20);
        let free = bench.h.pool.free_frames();
        assert_eq!(
            bench
                .unit
                .attach_device(&bench.h, OWNER, device(), 0)
                .unwrap_err(),
            UnitError::Attached(device())
        );
        assert_eq!(bench.h.pool.free_frames(), free);
        assert_eq!(
            bench
                .unit
                .attach_device(&bench.h, OWNER, device(), 21)
                .unwrap_err(),
            UnitError::PasidBits {
                bits: 21,
                maximum: 20
            }
        );
        detach(&bench, tables);
        let down = super::super::testing::bench(|_| {});
        assert_eq!(
            down.unit
                .attach_device(&down.h, OWNER, device(), 0)
                .unwrap_err(),
            UnitError::NotUp
        );
        // Without requests-with-PASID (ECAP bit 40) PASID 0 is the only one.
        let bench = up(|options| options.extended = EXTENDED & !(1 << 40));
        assert_eq!(
            bench
                .unit
                .attach_device(&bench.h, OWNER, device(), 1)
                .unwrap_err(),
            UnitError::PasidBits {
                bits: 1,
                maximum: 0
            }
        );
        let tables = attach(&bench, 0);
        detach(&bench, tables);
    }

    #[test]
    fn devices_of_one_bus_share_context_tables_by_halves() {
        let bench = up(|_| {});
        let ids = [(3, 0, 0), (3, 15, 7), (3, 16, 0), (3, 31, 7), (255, 31, 7)];
        let mut attached = Vec::new();
        let before = bench.h.pool.charged_frames(Owner::HYPERVISOR);
        for (bus, number, function) in ids {
            let source_id = SourceId::new(bus, number, function).unwrap();
            let tables = bench
                .unit
                .attach_device(&bench.h, OWNER, source_id, 0)
                .unwrap();
            assert_eq!(walk(&bench, source_id, pasid(0)), Some([0; 8]));
            attached.push(tables);
        }
        assert_eq!(bench.h.pool.charged_frames(Owner::HYPERVISOR), before + 3);
        for tables in attached {
            let source_id = tables.source_id();
            detach(&bench, tables);
            assert_eq!(walk(&bench, source_id, pasid(0)), None);
        }
    }

    #[test]
    fn caching_mode_decides_whether_attaching_invalidates() {
        for (capability, executed) in [(CAPABILITY, 0), (CAPABILITY | CACHING_MODE, 4)] {
            let bench = up(|options| options.capability = capability);
            assert_eq!(bench.unit.needs_invalidation_after_set_up(), executed != 0);
            let tables = attach(&bench, 20);
            let descriptors = bench.take_executed();
            assert_eq!(descriptors.len(), executed);
            if let Some(first) = descriptors.first() {
                assert_eq!(*first, forget_context(device(), DomainId::ZERO));
            }
            detach(&bench, tables);
        }
    }

    #[test]
    fn frames_of_a_detached_device_are_free_only_after_the_invalidation() {
        let bench = up(|_| {});
        let mut tables = attach(&bench, 20);
        bench
            .unit
            .prepare_entry(&bench.h, &mut tables, pasid(64))
            .unwrap();
        bench
            .unit
            .publish_entry(&bench.h, &tables, pasid(64), &second_stage(5))
            .unwrap();
        let charged = bench.h.pool.charged_frames(OWNER);
        bench.world().completion = Completion::Never;
        bench.take_log();
        let detached = bench.unit.detach_device(&bench.h, tables).unwrap();
        // One store takes the context entry away.
        let log = bench.take_log();
        assert!(matches!(log[..2], [Event::Fence, Event::Store(_, value)] if value & 1 == 0));
        assert_eq!(walk(&bench, device(), pasid(0)), None);
        let executed = bench.take_executed();
        assert_eq!(
            executed[..3],
            [
                forget_context(device(), DomainId::ZERO),
                EVERYTHING[1],
                EVERYTHING[2]
            ]
        );
        assert_eq!(
            detached
                .ticket()
                .map(|ticket| bench.unit.poll(&bench.h, ticket)),
            Some(Ok(false))
        );
        let (detached, error) = bench.unit.release(&bench.h, detached).unwrap_err();
        assert!(matches!(error, QueueError::TimedOut { .. }));
        assert!(detached.ticket().is_none());
        assert_eq!(bench.h.pool.charged_frames(OWNER), charged);
        assert_eq!(
            bench
                .unit
                .attach_device(&bench.h, OWNER, device(), 0)
                .unwrap_err(),
            UnitError::Attached(device())
        );
        // A retry submits again.
        bench.world().completion = Completion::Now;
        bench.unit.release(&bench.h, detached).unwrap();
        assert_eq!(bench.h.pool.charged_frames(OWNER), 0);
        let tables = attach(&bench, 0);
        detach(&bench, tables);
        let statistics = bench.unit.statistics();
        assert_eq!((statistics.attached, statistics.released), (2, 2));
    }

    #[test]
    fn a_full_queue_gives_the_tables_back_and_the_device_is_blocked_all_the_same() {
        let bench = up(|_| {});
        let tables = attach(&bench, 0);
        bench.world().is_frozen = true;
        drop(bench.unit.submit(&bench.h, &[EVERYTHING[1]; 125]).unwrap());
        let (tables, error) = bench.unit.detach_device(&bench.h, tables).unwrap_err();
        assert!(matches!(error, QueueError::Full { .. }));
        assert_eq!(walk(&bench, device(), pasid(0)), None);
        assert!(bench.unit.block_device(&bench.h, &tables).is_err());
        bench.world().is_frozen = false;
        let fault_status = crate::arch::register::Register32::FAULT_STATUS;
        bench.unit.registers.lock().write32(fault_status, 0);
        detach(&bench, tables);
        assert_eq!(bench.h.pool.charged_frames(OWNER), 0);
    }

    #[test]
    fn a_blocked_device_faults_at_once_and_keeps_its_tables() {
        let bench = up(|_| {});
        let tables = attach(&bench, 0);
        let charged = bench.h.pool.charged_frames(OWNER);
        bench.world().completion = Completion::Never;
        let ticket = bench.unit.block_device(&bench.h, &tables).unwrap();
        assert_eq!(walk(&bench, device(), pasid(0)), None);
        assert_eq!(bench.unit.poll(&bench.h, &ticket), Ok(false));
        assert_eq!(bench.h.pool.charged_frames(OWNER), charged);
        bench.world().completion = Completion::Now;
        detach(&bench, tables);
    }

    #[test]
    fn dropped_tables_are_lost_counted_and_never_reused() {
        let _lost = LOST.lock();
        let bench = up(|_| {});
        let before = lost_table_frames();
        let mut tables = attach(&bench, 16);
        bench
            .unit
            .prepare_entry(&bench.h, &mut tables, pasid(64))
            .unwrap();
        drop(tables);
        // A directory of 8 KiB and two tables.
        assert_eq!(lost_table_frames() - before, 4);
        assert_eq!(bench.h.pool.charged_frames(OWNER), 4);
    }

    #[test]
    fn an_unconfirmed_attach_leaves_the_device_blocked_and_its_frames_lost() {
        let _lost = LOST.lock();
        let bench = up(|options| options.capability |= CACHING_MODE);
        bench.world().completion = Completion::Never;
        let before = lost_table_frames();
        assert!(matches!(
            bench.unit.attach_device(&bench.h, OWNER, device(), 0),
            Err(UnitError::Queue(QueueError::TimedOut { .. }))
        ));
        assert_eq!(walk(&bench, device(), pasid(0)), None);
        assert_eq!(lost_table_frames() - before, 2);
    }

    #[test]
    fn an_old_unit_with_write_buffers_gets_them_flushed() {
        // CAP bit 4.
        let bench = up(|options| options.capability |= 1 << 4);
        let tables = attach(&bench, 0);
        let flushes = bench.take_log();
        assert!(flushes.iter().any(|event| {
            matches!(event, Event::Register(0x18, value) if value & 1 << 27 != 0)
        }));
        detach(&bench, tables);
    }
}
