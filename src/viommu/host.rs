//! What a virtual unit asks of the host: the one seam between the guest side and hardware.
//!
//! `viommu` knows no hardware. It computes what each device and PASID should be bound to and says
//! so through [`Host::bind`], always as a desired state, never as an edit; it collects guest
//! invalidations and asks for their completion. The `nest` layer implements the trait; a test may
//! use a null one.

use core::fmt;

use crate::arch::address::{Gpa, Iova};
use crate::arch::fault::FaultReason;
use crate::arch::id::{DomainId, Pasid, SourceId};
use crate::arch::interrupt::{Interrupt, InterruptIndex, SourceValidation};
use crate::arch::pasid::PasidTranslation;
use crate::mem::{FrameError, GuestMemory};

/// A device of a virtual machine: its index in the machine's device table.
///
/// Stable while the device is assigned, whatever the guest does to bus numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceHandle(u16);

impl DeviceHandle {
    /// The device at this index of the device table.
    pub const fn new(index: u16) -> Self {
        Self(index)
    }

    /// The index in the device table.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for DeviceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What of a guest's PASID entry reaches hardware: everything else in it has no effect there.
///
/// Two entries with equal bindings are the same to hardware, so a change between them needs none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestBinding {
    /// The guest's domain-id: the name under which the guest invalidates.
    pub domain_id: DomainId,
    /// The guest's translation, validated against what the guest was offered.
    pub translation: PasidTranslation<Gpa>,
    /// `SRE`: supervisor requests are allowed.
    pub supervisor_requests: bool,
}

/// What a device's requests under one PASID should be bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Desired {
    /// To nothing: every request faults and reaches no memory.
    Blocked,
    /// To the virtual machine's memory by guest-physical address: the guest's translation is off.
    MachineMemory,
    /// To what the guest's entry says.
    Guest(GuestBinding),
}

/// How far a host operation has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Progress {
    /// It is complete.
    Done,
    /// Hardware has not confirmed yet. Nothing is lost: the same call again continues it.
    Wait,
    /// A slice of it is done and nothing has to be waited for: the same call again continues it.
    Again,
}

/// Why a binding could not be made as desired. The binding is blocked then, never the old one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindError {
    /// A fixed store is full.
    StoreFull {
        /// Which one.
        store: &'static str,
        /// Its capacity in entries.
        capacity: usize,
    },
    /// No host domain-id is left, on the unit or in the machine's quota.
    DomainIdsExhausted,
    /// No frames are left, in the pool or in the machine's quota.
    Frames(FrameError),
    /// The guest uses one first-stage root with two paging modes or `EAFE` settings, which the
    /// architecture forbids (§6.2.3.1).
    FirstStageRootConflict {
        /// The root in question.
        root: Gpa,
    },
    /// The translation type is not offered to this guest.
    NotOffered {
        /// `PGTT` of the guest's entry.
        translation_type: u8,
        /// The physical source-id.
        source_id: SourceId,
        /// The PASID; 0 for requests without one.
        pasid: Pasid,
    },
    /// The guest's tables cannot be followed: a table page is not the guest's memory, or there are
    /// more of them than the machine's quota allows to shadow.
    GuestTables {
        /// I/O virtual address where it ended.
        address: Iova,
    },
    /// Hardware did not confirm an invalidation in time; the device is quarantined.
    Quarantined {
        /// The physical source-id.
        source_id: SourceId,
    },
    /// The physical unit refused; the details are in the log.
    Unit,
    /// The handle names no device of the host side.
    UnknownDevice(DeviceHandle),
}

impl BindError {
    /// The fault that the guest sees for this error: recorded at once for what the host could not
    /// do, and by the blocked DMA itself for what the guest did wrong (`None`).
    pub const fn immediate_guest_fault(&self) -> Option<FaultReason> {
        match self {
            Self::FirstStageRootConflict { .. }
            | Self::NotOffered { .. }
            | Self::GuestTables { .. } => None,
            Self::StoreFull { .. }
            | Self::DomainIdsExhausted
            | Self::Frames(_)
            | Self::Quarantined { .. }
            | Self::Unit
            | Self::UnknownDevice(_) => Some(FaultReason::PasidTableUnreadable),
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoreFull { store, capacity } => {
                write!(f, "all {capacity} in use: ")?;
                f.write_str(store)
            }
            Self::DomainIdsExhausted => f.write_str("no host domain-id is left"),
            Self::Frames(error) => write!(f, "no frames: {error}"),
            Self::FirstStageRootConflict { root } => {
                write!(
                    f,
                    "first-stage root {root} is in use with another paging mode"
                )
            }
            Self::NotOffered {
                translation_type,
                source_id,
                pasid,
            } => {
                write!(
                    f,
                    "translation type {translation_type} of {source_id} PASID {pasid} is not offered"
                )
            }
            Self::GuestTables { address } => write!(f, "the guest's tables end at {address}"),
            Self::Quarantined { source_id } => write!(f, "{source_id} is quarantined"),
            Self::Unit => f.write_str("the physical unit refused"),
            Self::UnknownDevice(handle) => write!(f, "no device {handle:?}"),
        }
    }
}

impl core::error::Error for BindError {}

/// A guest's invalidation of cached translations, to be carried out for every binding it covers.
///
/// Domain-ids and PASIDs are the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestInvalidation {
    /// Everything of this guest (IOTLB global).
    All,
    /// Everything under a domain-id (IOTLB domain-selective).
    Domain(DomainId),
    /// A range under a domain-id (IOTLB page-selective; second-stage addresses, §6.5.2.3).
    DomainPages {
        /// The guest's domain-id.
        domain_id: DomainId,
        /// The range.
        pages: PageRange,
    },
    /// Everything under a domain-id and PASID (PASID-based IOTLB).
    Pasid {
        /// The guest's domain-id.
        domain_id: DomainId,
        /// The PASID.
        pasid: Pasid,
    },
    /// A range under a domain-id and PASID (PASID-based IOTLB page-selective; first-stage
    /// addresses, §6.5.2.4).
    PasidPages {
        /// The guest's domain-id.
        domain_id: DomainId,
        /// The PASID.
        pasid: Pasid,
        /// The range.
        pages: PageRange,
    },
    /// A range of what a device has cached itself (device-TLB, §6.5.2.5 and §6.5.2.6). The host has
    /// devices forget whatever the other forms cover, without being told.
    DeviceTlb {
        /// The device.
        device: DeviceHandle,
        /// Of which of its requests.
        requests: DeviceRequests,
        /// The range.
        pages: PageRange,
    },
}

/// Requests of one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceRequests {
    /// Those without PASID.
    WithoutPasid,
    /// Those with this PASID.
    Pasid(Pasid),
    /// Those with any PASID.
    EveryPasid,
}

/// 2^order pages from an aligned address on, as invalidation descriptors name them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRange {
    /// First address, aligned to the range's size.
    pub address: Iova,
    /// The range has 2^order 4-KiB pages; 52 or more means the whole space.
    pub order: u8,
    /// Only leaf entries have changed (`IH`).
    pub leaf_only: bool,
}

/// What a guest's interrupt entry asks of the host: valid by the architecture, and no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestInterrupt {
    /// Which of the guest's devices may use it, by their guest source-ids.
    pub source: SourceValidation,
    /// The interrupt, for the guest's processors.
    pub interrupt: Interrupt,
}

/// Why a guest's interrupt entry is not carried out. The host's entry is absent then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptError {
    /// No device of this machine may raise the interrupt: its delivery mode, its vector, or a
    /// destination that the platform has no route to.
    Refused(Interrupt),
    /// It does not name one of the machine's devices: messages of several could not be told apart.
    Source(SourceValidation),
    /// The index is beyond the entries that the machine was given.
    Index {
        /// The guest's index.
        index: InterruptIndex,
        /// The number of entries.
        capacity: u32,
    },
    /// The physical unit refused; the details are in the log.
    Unit,
}

impl fmt::Display for InterruptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(interrupt) => write!(f, "{interrupt} is refused"),
            Self::Source(SourceValidation::None) => f.write_str("it is for any device"),
            Self::Source(SourceValidation::SourceId { source_id, .. }) => {
                write!(f, "it is for {source_id} and others")
            }
            Self::Source(SourceValidation::Buses { first, last }) => {
                write!(f, "it is for buses {first:#x} to {last:#x}")
            }
            Self::Index { index, capacity } => write!(f, "index {index} of {capacity}"),
            Self::Unit => f.write_str("the physical unit refused"),
        }
    }
}

impl core::error::Error for InterruptError {}

/// What the host side keeps for each cached binding.
pub trait HostState: fmt::Debug {
    /// *Blocked, nothing held*: what a binding starts with.
    const BLOCKED: Self;
}

/// The host side of one virtual unit.
///
/// No method blocks or waits for hardware, and a call does about as much as one table page is work. Any of them may be called while another is unfinished
/// ([`Progress::Wait`]) for a different binding.
pub trait Host {
    /// What the host side keeps for each cached binding.
    type Binding: HostState;
    /// The guest's memory.
    type Memory: GuestMemory;

    /// The guest's memory.
    fn memory(&self) -> &Self::Memory;

    /// Makes the actual state of (device, PASID) equal to the desired one.
    ///
    /// Idempotent: called again after [`Progress::Wait`] or [`Progress::Again`] it continues, in the
    /// desired state it changes nothing and sends nothing. An observer sees the binding old, new or
    /// blocked. After `Done` the old translation is no longer used by hardware.
    ///
    /// # Errors
    ///
    /// [`BindError`]; the binding is blocked, and a later call tries again.
    fn bind(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        binding: &mut Self::Binding,
        desired: &Desired,
    ) -> Result<Progress, BindError>;

    /// Carries a guest's invalidation to everything it covers. May be collected until
    /// [`flush`](Self::flush), which then completes it.
    ///
    /// # Errors
    ///
    /// [`BindError`] if it cannot be carried out; what it covers is blocked.
    fn invalidate(&mut self, what: &GuestInvalidation) -> Result<Progress, BindError>;

    /// Completes every invalidation and change of an interrupt entry handed over so far: `Done` once hardware has confirmed them.
    ///
    /// # Errors
    ///
    /// [`BindError::Quarantined`] once, if hardware did not: what it covered is blocked. Another
    /// [`BindError`] once, if a shadow could not be kept in step; it is empty then.
    fn flush(&mut self) -> Result<Progress, BindError>;

    /// The number of guest interrupt indices, from 0 on, that the host has entries for.
    fn interrupt_entries(&self) -> u32;

    /// Makes the host's entry for a guest's interrupt index as desired; `None` is absent. As with
    /// [`invalidate`](Self::invalidate), hardware has forgotten the old one once
    /// [`flush`](Self::flush) is done.
    ///
    /// # Errors
    ///
    /// [`InterruptError`]; the host's entry is absent.
    fn set_interrupt_entry(
        &mut self,
        index: InterruptIndex,
        desired: Option<&GuestInterrupt>,
    ) -> Result<(), InterruptError>;

    /// Sends an interrupt message of the virtual unit to the guest: the address and data that the
    /// guest programmed.
    fn deliver_interrupt(&mut self, address: u64, data: u32);
}
