//! Keeping bindings in step with the guest's tables.
//!
//! A [`Pass`] makes every binding in its scope equal to what the guest's tables say now. It first
//! walks the tables of each device in scope, reading them page by page, and binds what is present.
//! Then it looks at what is bound, was in scope by the domain-id it was bound with, and was not met
//! by the walk: that is gone or has changed, and is read again by itself. A pass stops anywhere and
//! goes on from there; every step costs about one page read or one host operation.

use crate::arch::address::Gpa;
use crate::arch::context::ScalableContext;
use crate::arch::descriptor::function_mask_covers;
use crate::arch::id::{DomainId, Pasid, SourceId};
use crate::arch::pasid::{PasidDirectoryEntry, PasidEntry};
use crate::mem::GuestMemory;

use super::fault::GuestFault;
use super::host::{BindError, Desired, DeviceHandle, Host, Progress};
use super::pasid_cache::BindingState;
use super::statistics::count;
use super::tables::{
    GuestContext, TableError, TableFault, domain_id_of, guest_binding, legacy_binding, pasid_limit,
};
use super::unit::{CachedContext, VirtualUnit};

/// Entries of a 4-KiB piece of a PASID directory.
const DIRECTORY_PIECE: u32 = 512;
/// Entries of a PASID table.
const TABLE_ENTRIES: u32 = 64;
/// Slots of the store that one step looks at.
const SLOTS_PER_STEP: usize = 128;

/// Which devices a pass is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DeviceFilter {
    /// All assigned ones.
    All,
    /// The one with this index.
    Handle(usize),
    /// Those that a source-id names under a function mask (§6.5.2.1).
    Source {
        source_id: SourceId,
        function_mask: u8,
    },
}

/// Which entries of these devices a pass is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EntryFilter {
    /// All.
    Everything,
    /// Those with the domain-id, in memory or as bound; all for domain-id 0, the tag of entries
    /// cached as not present (§6.2.3).
    Domain(DomainId),
    /// As for a domain-id, those of one PASID.
    Pasid { domain_id: DomainId, pasid: Pasid },
}

impl EntryFilter {
    #[inline]
    fn covers(self, domain_id: DomainId) -> bool {
        match self {
            Self::Everything => true,
            Self::Domain(named)
            | Self::Pasid {
                domain_id: named, ..
            } => named == DomainId::ZERO || named == domain_id,
        }
    }
}

/// How far a pass has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Position {
    /// Before the device with this index.
    Device(usize),
    /// Before the piece of the device's directory that starts at this entry.
    Directory(u32),
    /// In the copied piece that starts at `first`, before entry `next` of the directory.
    Table { first: u32, next: u32 },
    /// In the copied table of directory entry `index`, before its entry `next`.
    Entries { first: u32, index: u32, next: u32 },
    /// Before the binding of requests without PASID of the device with this index.
    Default(usize),
    /// Before this slot of the store.
    Slot(usize),
    /// At its end.
    Done,
}

/// A binding that is to be made as desired; kept while the host has not finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Change {
    device: usize,
    pasid: Pasid,
    raw: [u64; 8],
    desired: Desired,
    /// Something else was bound before.
    replaces: bool,
    /// It could not be bound: what the host may hold of it is being released, with this outcome.
    releasing: Option<Settled>,
}

/// One synchronisation in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    devices: DeviceFilter,
    entries: EntryFilter,
    generation: u32,
    position: Position,
    /// The device being walked, its directory, and the number of PASIDs it reaches.
    device: usize,
    directory: Gpa,
    limit: u32,
    change: Option<Change>,
    /// Something was not bound for lack of room. The walk is made once more, after the rest of the
    /// pass has freed what it could.
    short: bool,
    is_last_walk: bool,
}

impl Pass {
    /// Whether what fails for lack of room is tried again by this pass.
    fn may_walk_again(&self) -> bool {
        !self.is_last_walk && !matches!(self.entries, EntryFilter::Pasid { .. })
    }
}

/// The outcome of one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stepped {
    /// There is more to do.
    More,
    /// The host waits for hardware.
    Wait,
    /// All is done.
    Done,
}

/// The outcome of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Settled {
    Done,
    Wait,
    /// Not done for lack of room.
    Short,
}

/// Copies of the guest's table pages that a pass works on.
#[derive(Clone, Debug)]
pub(super) struct PageCopies {
    directory: [u8; 4096],
    table: [u8; 4096],
}

impl PageCopies {
    pub(super) const fn new() -> Self {
        Self {
            directory: [0; 4096],
            table: [0; 4096],
        }
    }

    fn directory_entry(&self, index: u32) -> PasidDirectoryEntry {
        let bytes = self.directory.as_chunks::<8>().0.get(index as usize);
        PasidDirectoryEntry::from_u64(bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes)))
    }

    fn entry(&self, index: u32) -> PasidEntry {
        let bytes = self.table.as_chunks::<64>().0.get(index as usize);
        bytes.map_or(PasidEntry::from_quadwords([0; 8]), PasidEntry::from_bytes)
    }
}

const fn is_shortage(error: &BindError) -> bool {
    matches!(
        error,
        BindError::StoreFull { .. } | BindError::DomainIdsExhausted | BindError::Frames(_)
    )
}

impl<B: Default, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// A pass that has not begun.
    pub(super) fn new_pass(&mut self, devices: DeviceFilter, entries: EntryFilter) -> Pass {
        count(&mut self.statistics.synchronisations);
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            // After 2^32 passes a stamp could be taken for that of this pass.
            self.cache.clear_generations();
            for slot in &mut self.devices {
                slot.default.generation = 0;
            }
            self.generation = 1;
        }
        Pass {
            devices,
            entries,
            generation: self.generation,
            position: Position::Device(0),
            device: 0,
            directory: Gpa::new(0),
            limit: 0,
            change: None,
            short: false,
            is_last_walk: false,
        }
    }

    /// Does a little of a pass.
    pub(super) fn step_pass<Ho: Host<Binding = B>>(
        &mut self,
        host: &mut Ho,
        pass: &mut Pass,
    ) -> Stepped {
        if let Some(mut change) = pass.change.take() {
            match self.settle(host, pass, &mut change) {
                Settled::Done => {}
                Settled::Short => pass.short = true,
                Settled::Wait => {
                    pass.change = Some(change);
                    return Stepped::Wait;
                }
            }
            return Stepped::More;
        }
        match pass.position {
            Position::Device(index) => self.enter_device(host.memory(), pass, index),
            Position::Directory(first) => self.read_directory(host.memory(), pass, first),
            Position::Table { first, next } => self.read_table(host.memory(), pass, first, next),
            Position::Entries { first, index, next } => {
                self.scan_entries(pass, first, index, next);
            }
            Position::Default(index) => self.check_default(host.memory(), pass, index),
            Position::Slot(index) => self.check_slots(host.memory(), pass, index),
            Position::Done => return Stepped::Done,
        }
        Stepped::More
    }

    pub(super) fn is_selected(&self, filter: DeviceFilter, index: usize) -> bool {
        let Some(slot) = self.devices.get(index).filter(|slot| slot.is_assigned()) else {
            return false;
        };
        match filter {
            DeviceFilter::All => true,
            DeviceFilter::Handle(named) => named == index,
            DeviceFilter::Source {
                source_id,
                function_mask,
            } => function_mask_covers(function_mask, source_id, slot.source_id),
        }
    }

    fn next_selected(&self, filter: DeviceFilter, from: usize) -> Option<usize> {
        (from..DEVICES).find(|index| self.is_selected(filter, *index))
    }

    /// The device's context entry, from the cache of context entries or from memory.
    fn context_of(&mut self, memory: &impl GuestMemory, index: usize) -> Option<GuestContext> {
        let slot = self.devices.get(index)?;
        if let CachedContext::Read(context) = slot.context {
            return context;
        }
        let source_id = slot.source_id;
        let tables = self.tables;
        let context = match self.reader(memory, &tables).context(source_id) {
            Ok(context) => Some(context),
            Err((fault, fault_processing_disabled)) => {
                self.skip_table(TableError {
                    source_id,
                    pasid: Pasid::ZERO,
                    fault,
                    fault_processing_disabled,
                });
                None
            }
        };
        if let Some(slot) = self.devices.get_mut(index) {
            slot.context = CachedContext::Read(context);
        }
        context
    }

    fn skip_table(&mut self, error: TableError) {
        count(&mut self.statistics.tables_skipped);
        log::debug!(
            "guest device {} PASID {}: not bound: {:?}",
            error.source_id,
            error.pasid,
            error.fault
        );
    }

    fn enter_device(&mut self, memory: &impl GuestMemory, pass: &mut Pass, from: usize) {
        let Some(index) = self.next_selected(pass.devices, from) else {
            pass.position = match pass.entries {
                EntryFilter::Pasid { .. } => Position::Done,
                _ => Position::Default(0),
            };
            return;
        };
        pass.position = Position::Device(index.saturating_add(1));
        if let EntryFilter::Pasid { domain_id, pasid } = pass.entries {
            pass.change = self.check_pasid(memory, pass, index, domain_id, pasid);
            return;
        }
        if !self.translating {
            return;
        }
        if let Some(GuestContext::Scalable(context)) = self.context_of(memory, index) {
            pass.device = index;
            pass.directory = context.pasid_directory;
            pass.limit = pasid_limit(&context, self.pasid_bits());
            pass.position = Position::Directory(0);
        }
    }

    fn leave_device(pass: &mut Pass) {
        pass.position = Position::Device(pass.device.saturating_add(1));
    }

    /// Reads one piece of the directory, never past the part that counts.
    fn read_directory(&mut self, memory: &impl GuestMemory, pass: &mut Pass, first: u32) {
        let entries = pass.limit.div_ceil(TABLE_ENTRIES);
        if first >= entries || !self.is_selected(pass.devices, pass.device) {
            return Self::leave_device(pass);
        }
        let len = entries.saturating_sub(first).min(DIRECTORY_PIECE) as usize * 8;
        self.pages.directory = [0; 4096];
        let read = match (
            pass.directory.checked_add(u64::from(first) * 8),
            self.pages.directory.get_mut(..len),
        ) {
            (Some(at), Some(into)) => memory.read(at, into).is_ok(),
            _ => false,
        };
        if read {
            pass.position = Position::Table { first, next: first };
        } else {
            self.skip_page(pass, first.saturating_mul(TABLE_ENTRIES), |at| {
                TableFault::DirectoryUnreadable(at)
            });
            pass.position = Position::Directory(first.saturating_add(DIRECTORY_PIECE));
        }
    }

    fn skip_page(&mut self, pass: &Pass, pasid: u32, fault: impl Fn(Gpa) -> TableFault) {
        if let Some(slot) = self.devices.get(pass.device) {
            self.skip_table(TableError {
                source_id: slot.source_id,
                pasid: Pasid::from_field(u64::from(pasid)),
                fault: fault(pass.directory),
                fault_processing_disabled: false,
            });
        }
    }

    /// Finds the next present directory entry of the piece and reads its table.
    fn read_table(&mut self, memory: &impl GuestMemory, pass: &mut Pass, first: u32, next: u32) {
        let end = pass
            .limit
            .div_ceil(TABLE_ENTRIES)
            .min(first.saturating_add(DIRECTORY_PIECE));
        for index in next..end {
            let entry = self.pages.directory_entry(index.saturating_sub(first));
            if !entry.is_present() {
                continue;
            }
            pass.position = Position::Table {
                first,
                next: index.saturating_add(1),
            };
            let pasid = index.saturating_mul(TABLE_ENTRIES);
            match entry.decode::<Gpa>(&self.tables) {
                Err(fault) => self.skip_page(pass, pasid, |_| TableFault::Directory(fault)),
                Ok(at) if memory.read(at, &mut self.pages.table).is_err() => {
                    self.skip_page(pass, pasid, |_| TableFault::EntryUnreadable(at));
                }
                Ok(_) => {
                    pass.position = Position::Entries {
                        first,
                        index,
                        next: 0,
                    };
                }
            }
            return;
        }
        pass.position = Position::Directory(first.saturating_add(DIRECTORY_PIECE));
    }

    /// Finds the next entry of the copied table that is in scope and not bound as it reads.
    fn scan_entries(&mut self, pass: &mut Pass, first: u32, index: u32, next: u32) {
        for within in next..TABLE_ENTRIES {
            let pasid = index.saturating_mul(TABLE_ENTRIES).saturating_add(within);
            if pasid >= pass.limit || !self.is_selected(pass.devices, pass.device) {
                break;
            }
            let entry = self.pages.entry(within);
            if !entry.is_present() || !pass.entries.covers(entry.domain_id()) {
                continue;
            }
            let pasid = Pasid::from_field(u64::from(pasid));
            let binding = match guest_binding(&entry, &self.tables) {
                Ok(binding) => binding,
                Err(fault) => {
                    self.skip_page(pass, pasid.as_u32(), |_| TableFault::Entry(fault));
                    continue;
                }
            };
            pass.change = self.difference(
                pass.generation,
                pass.device,
                pasid,
                *entry.quadwords(),
                Desired::Guest(binding),
            );
            if pass.change.is_some() {
                pass.position = Position::Entries {
                    first,
                    index,
                    next: within.saturating_add(1),
                };
                return;
            }
        }
        pass.position = Position::Table {
            first,
            next: index.saturating_add(1),
        };
    }

    /// The bindings of requests without PASID that the walk has not met.
    fn check_default(&mut self, memory: &impl GuestMemory, pass: &mut Pass, from: usize) {
        let Some(index) = self.next_selected(pass.devices, from) else {
            pass.position = Position::Slot(0);
            return;
        };
        pass.position = Position::Default(index.saturating_add(1));
        let Some(slot) = self.devices.get(index) else {
            return;
        };
        let is_in_scope = match slot.default.actual {
            _ if pass.entries == EntryFilter::Everything => true,
            Some(Desired::Guest(binding)) => pass.entries.covers(binding.domain_id),
            Some(_) => pass.entries.covers(DomainId::ZERO),
            None => true,
        };
        if is_in_scope && slot.default.generation != pass.generation {
            let (raw, desired) = self.desired_now(memory, index, Pasid::ZERO);
            pass.change = self.difference(pass.generation, index, Pasid::ZERO, raw, desired);
        }
    }

    /// The bindings of the store that the walk has not met.
    fn check_slots(&mut self, memory: &impl GuestMemory, pass: &mut Pass, from: usize) {
        let end = self.cache.end();
        for at in from..end.min(from.saturating_add(SLOTS_PER_STEP)) {
            let Some(entry) = self.cache.get(at) else {
                continue;
            };
            let is_in_scope = entry.state == BindingState::Unsettled
                || pass.entries.covers(domain_id_of(&entry.raw));
            if !is_in_scope
                || entry.generation == pass.generation
                || !self.is_selected(pass.devices, entry.device())
            {
                continue;
            }
            let (device, pasid) = (entry.device(), entry.pasid());
            let (raw, desired) = self.desired_now(memory, device, pasid);
            pass.change = self.difference(pass.generation, device, pasid, raw, desired);
            pass.position = Position::Slot(at.saturating_add(1));
            return;
        }
        let next = from.saturating_add(SLOTS_PER_STEP);
        pass.position = if next < end {
            Position::Slot(next)
        } else if pass.short && !pass.is_last_walk {
            pass.is_last_walk = true;
            Position::Device(0)
        } else {
            Position::Done
        };
    }

    /// What one PASID of one device should be bound to now, and the guest's entry that says so.
    fn desired_now(
        &mut self,
        memory: &impl GuestMemory,
        device: usize,
        pasid: Pasid,
    ) -> ([u64; 8], Desired) {
        const ABSENT: [u64; 8] = [0; 8];
        let is_default = pasid == Pasid::ZERO;
        if !self.translating {
            return match is_default {
                true => (ABSENT, Desired::MachineMemory),
                false => (ABSENT, Desired::Blocked),
            };
        }
        match self.context_of(memory, device) {
            Some(GuestContext::Scalable(context)) => {
                match self.entry_now(memory, device, &context, pasid) {
                    Some((entry, desired)) => (*entry.quadwords(), desired),
                    None => (ABSENT, Desired::Blocked),
                }
            }
            Some(GuestContext::Legacy(context)) if is_default => {
                (ABSENT, Desired::Guest(legacy_binding(&context)))
            }
            _ => (ABSENT, Desired::Blocked),
        }
    }

    fn entry_now(
        &mut self,
        memory: &impl GuestMemory,
        device: usize,
        context: &ScalableContext<Gpa>,
        pasid: Pasid,
    ) -> Option<(PasidEntry, Desired)> {
        if pasid.as_u32() >= pasid_limit(context, self.pasid_bits()) {
            return None;
        }
        let tables = self.tables;
        let read = self.reader(memory, &tables).pasid_entry(context, pasid);
        let (fault, entry) = match read {
            Ok((entry, _)) => match guest_binding(&entry, &tables) {
                Ok(binding) => return Some((entry, Desired::Guest(binding))),
                Err(fault) => (TableFault::Entry(fault), Some((entry, Desired::Blocked))),
            },
            Err((fault, _)) => (fault, None),
        };
        if let Some(slot) = self.devices.get(device) {
            self.skip_table(TableError {
                source_id: slot.source_id,
                pasid,
                fault,
                fault_processing_disabled: false,
            });
        }
        entry
    }

    /// PASID-selective invalidation, for one device.
    fn check_pasid(
        &mut self,
        memory: &impl GuestMemory,
        pass: &Pass,
        device: usize,
        domain_id: DomainId,
        pasid: Pasid,
    ) -> Option<Change> {
        let is_bound_in_scope = if pasid == Pasid::ZERO {
            match self.devices.get(device)?.default.actual {
                Some(Desired::Guest(binding)) => pass.entries.covers(binding.domain_id),
                Some(_) => domain_id == DomainId::ZERO,
                None => true,
            }
        } else {
            match self
                .slot_of(device, pasid)
                .and_then(|at| self.cache.get(at))
            {
                Some(entry) => {
                    entry.state == BindingState::Unsettled
                        || pass.entries.covers(domain_id_of(&entry.raw))
                }
                None => false,
            }
        };
        let (raw, desired) = self.desired_now(memory, device, pasid);
        let is_present_in_scope =
            matches!(desired, Desired::Guest(_)) && pass.entries.covers(domain_id_of(&raw));
        if is_bound_in_scope || is_present_in_scope {
            self.difference(pass.generation, device, pasid, raw, desired)
        } else {
            None
        }
    }

    fn slot_of(&self, device: usize, pasid: Pasid) -> Option<usize> {
        self.cache.find(u16::try_from(device).ok()?, pasid)
    }

    /// The change that makes a binding as desired, or `None` if it is so already: then nothing but
    /// the copy of the guest's entry is refreshed.
    fn difference(
        &mut self,
        generation: u32,
        device: usize,
        pasid: Pasid,
        raw: [u64; 8],
        desired: Desired,
    ) -> Option<Change> {
        let mut replaces = false;
        if pasid == Pasid::ZERO {
            let default = &mut self.devices.get_mut(device)?.default;
            if default.actual == Some(desired) {
                default.raw = raw;
                default.generation = generation;
                count(&mut self.statistics.unchanged);
                return None;
            }
            replaces = matches!(default.actual, Some(Desired::Guest(_)));
        } else if let Some(at) = self.slot_of(device, pasid) {
            let tables = self.tables;
            let entry = self.cache.get_mut(at)?;
            if entry.state == BindingState::Bound {
                replaces = true;
                let is_same = match desired {
                    Desired::Guest(binding) => {
                        entry.raw == raw
                            || guest_binding(&PasidEntry::from_quadwords(entry.raw), &tables)
                                == Ok(binding)
                    }
                    _ => false,
                };
                if is_same {
                    entry.raw = raw;
                    entry.generation = generation;
                    count(&mut self.statistics.unchanged);
                    return None;
                }
            }
        } else if desired == Desired::Blocked {
            return None;
        }
        Some(Change {
            device,
            pasid,
            raw,
            desired,
            replaces,
            releasing: None,
        })
    }

    /// Has the host make a binding as desired. The binding counts as bound only when it is.
    fn settle<Ho: Host<Binding = B>>(
        &mut self,
        host: &mut Ho,
        pass: &Pass,
        change: &mut Change,
    ) -> Settled {
        if !self.is_selected(DeviceFilter::All, change.device) {
            // Removed meanwhile, and with it all its bindings.
            return Settled::Done;
        }
        if change.pasid == Pasid::ZERO {
            self.settle_default(host, pass, change)
        } else {
            self.settle_slot(host, pass, change)
        }
    }

    fn settle_default<Ho: Host<Binding = B>>(
        &mut self,
        host: &mut Ho,
        pass: &Pass,
        change: &Change,
    ) -> Settled {
        let Some(slot) = self.devices.get_mut(change.device) else {
            return Settled::Done;
        };
        let default = &mut slot.default;
        default.actual = None;
        let handle = DeviceHandle::new(change.device as u16);
        match host.bind(handle, Pasid::ZERO, &mut default.host, &change.desired) {
            Ok(Progress::Wait) => Settled::Wait,
            Ok(Progress::Done) => {
                default.actual = Some(change.desired);
                default.raw = change.raw;
                default.generation = pass.generation;
                self.settled(change);
                Settled::Done
            }
            Err(error) if is_shortage(&error) && pass.may_walk_again() => Settled::Short,
            Err(error) => {
                default.generation = pass.generation;
                self.failed(change.device, change.pasid, &change.desired, &error);
                Settled::Done
            }
        }
    }

    fn settle_slot<Ho: Host<Binding = B>>(
        &mut self,
        host: &mut Ho,
        pass: &Pass,
        change: &mut Change,
    ) -> Settled {
        let handle = DeviceHandle::new(change.device as u16);
        let at = match self.slot_of(change.device, change.pasid) {
            Some(at) => at,
            None => match self.cache.insert(change.device as u16, change.pasid) {
                Some(at) => at,
                None if pass.may_walk_again() => return Settled::Short,
                None => {
                    let error = BindError::StoreFull {
                        store: "PASID cache entries",
                        capacity: BINDINGS,
                    };
                    self.failed(change.device, change.pasid, &change.desired, &error);
                    return Settled::Done;
                }
            },
        };
        let Some(entry) = self.cache.get_mut(at) else {
            return Settled::Done;
        };
        entry.state = BindingState::Unsettled;
        if change.releasing.is_none() {
            match host.bind(handle, change.pasid, &mut entry.host, &change.desired) {
                Ok(Progress::Wait) => return Settled::Wait,
                Ok(Progress::Done) => {
                    if change.desired == Desired::Blocked {
                        self.cache.remove(at);
                    } else {
                        entry.state = BindingState::Bound;
                        entry.raw = change.raw;
                        entry.generation = pass.generation;
                    }
                    self.settled(change);
                    return Settled::Done;
                }
                Err(error) => {
                    entry.generation = pass.generation;
                    change.releasing = Some(if is_shortage(&error) && pass.may_walk_again() {
                        // Told only if the second walk fails as well.
                        Settled::Short
                    } else {
                        self.failed(change.device, change.pasid, &change.desired, &error);
                        Settled::Done
                    });
                    if change.desired == Desired::Blocked {
                        // Kept, unsettled: every later pass tries again.
                        return Settled::Done;
                    }
                }
            }
        }
        // It is blocked now (R20). What the host holds of it is given back.
        let Some(entry) = self.cache.get_mut(at) else {
            return Settled::Done;
        };
        match host.bind(handle, change.pasid, &mut entry.host, &Desired::Blocked) {
            Ok(Progress::Wait) => return Settled::Wait,
            Ok(Progress::Done) => self.cache.remove(at),
            Err(error) => self.failed(change.device, change.pasid, &Desired::Blocked, &error),
        }
        change.releasing.unwrap_or(Settled::Done)
    }

    fn settled(&mut self, change: &Change) {
        let statistics = &mut self.statistics;
        let Some(slot) = self.devices.get(change.device) else {
            return;
        };
        match change.desired {
            Desired::Guest(binding) => {
                count(if change.replaces {
                    &mut statistics.replacements
                } else {
                    &mut statistics.binds
                });
                log::info!(
                    "guest device {} PASID {}: bound, type {}, guest domain-id {}",
                    slot.source_id,
                    change.pasid,
                    binding.translation.translation_type().field(),
                    binding.domain_id
                );
            }
            Desired::Blocked => {
                count(&mut statistics.unbinds);
                log::info!(
                    "guest device {} PASID {}: unbound",
                    slot.source_id,
                    change.pasid
                );
            }
            Desired::MachineMemory => {
                count(&mut statistics.machine_memory_binds);
                log::info!("guest device {}: translation off", slot.source_id);
            }
        }
    }

    /// Counts, logs and, where the guest is not to blame, tells the guest of a binding that could
    /// not be made as desired.
    pub(super) fn failed(
        &mut self,
        device: usize,
        pasid: Pasid,
        desired: &Desired,
        error: &BindError,
    ) {
        let Some(slot) = self.devices.get(device) else {
            return;
        };
        let source_id = slot.source_id;
        log::warn!("guest device {source_id} PASID {pasid}: blocked: {error}");
        if *desired == Desired::Blocked {
            count(&mut self.statistics.unbind_failures);
        } else {
            count(&mut self.statistics.bind_failures);
        }
        if let (true, Some(reason)) = (self.translating, error.immediate_guest_fault()) {
            self.record(&GuestFault {
                source_id,
                pasid: (pasid != Pasid::ZERO).then_some(pasid),
                reason: self.reason_in_mode(reason),
                address: crate::arch::address::Iova::new(0),
                request: crate::arch::register::RequestType::Read,
                privileged: false,
                execute: false,
            });
        }
    }
}
