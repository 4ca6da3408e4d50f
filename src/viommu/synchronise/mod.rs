//! Keeping bindings in step with the guest's tables.
//!
//! A [`Pass`] makes every binding in its scope equal to what the guest's tables say now. It first
//! walks the tables of each device in scope, reading them page by page, and binds what is present.
//! Then it looks at what is bound, was in scope by the domain-id it was bound with, and was not met
//! by the walk: that is gone or has changed, and is read again by itself. A pass stops anywhere and
//! goes on from there; every step costs about one page read or one host operation.

mod compare;
mod settle;
#[cfg(test)]
mod tests;
mod walk;

use crate::arch::address::Gpa;
use crate::arch::descriptor::function_mask_covers;
use crate::arch::id::{DomainId, Pasid, SourceId};
use crate::arch::pasid::{PasidDirectoryEntry, PasidEntry};

use super::host::{BindError, Desired, Host, HostState};
use super::pasid_cache::GENERATIONS;
use super::statistics::count;
use super::unit::{DeviceSlot, VirtualUnit};

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

impl DeviceFilter {
    /// Whether it may be about a device with this source-id.
    pub(super) fn names(self, named: SourceId) -> bool {
        match self {
            Self::All | Self::Handle(_) => true,
            Self::Source {
                source_id,
                function_mask,
            } => function_mask_covers(function_mask, source_id, named),
        }
    }
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
    pub(super) fn covers(self, domain_id: DomainId) -> bool {
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
    /// In the walk over the bindings with the domain-id.
    OfDomain(DomainId),
    /// In the walk over the unsettled bindings.
    Unsettled,
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
    /// Something was not bound for lack of room, or for a root that another binding used
    /// differently. The walk is made once more, after the rest of the pass has freed what it could.
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
    /// A slice is done.
    Again,
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

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// A pass that has not begun.
    pub(super) fn new_pass(&mut self, devices: DeviceFilter, entries: EntryFilter) -> Pass {
        count(&mut self.statistics.synchronisations);
        self.generation = self.generation.wrapping_add(1);
        if self.generation >= GENERATIONS {
            // From now on a stamp could be taken for that of this pass.
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
                Settled::Again => pass.change = Some(change),
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
            Position::OfDomain(_) | Position::Unsettled => self.check_chain(host.memory(), pass),
            Position::Done => return Stepped::Done,
        }
        Stepped::More
    }

    pub(super) fn is_selected(&self, filter: DeviceFilter, index: usize) -> bool {
        let Some(slot) = self.devices.get(index).filter(|slot| slot.is_assigned()) else {
            return false;
        };
        match filter {
            DeviceFilter::Handle(named) => named == index,
            _ => filter.names(slot.source_id),
        }
    }

    fn next_selected(&self, filter: DeviceFilter, from: usize) -> Option<usize> {
        (from..DEVICES).find(|index| self.is_selected(filter, *index))
    }

    /// The next device for which a PASID-selective invalidation may mean something. One whose cached
    /// context entry does not reach the PASID costs a compare: nothing can be bound for it, because what
    /// is bound follows the context entry that is cached.
    fn next_reaching(&self, filter: DeviceFilter, pasid: Pasid, from: usize) -> Option<usize> {
        // A binding that hardware has not let go of is tried again, wherever it is.
        if pasid == Pasid::ZERO || self.cache.has_unsettled() || filter != DeviceFilter::All {
            return self.next_selected(filter, from);
        }
        let reaches = |slot: &DeviceSlot<B>| pasid.as_u32() < slot.pasid_end && slot.is_assigned();
        let rest = self.devices.get(from..)?;
        rest.iter().position(reaches)?.checked_add(from)
    }
}
