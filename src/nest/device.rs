//! One assigned device: its names on both sides and its tables on the physical unit.

use crate::arch::id::SourceId;
use crate::unit::discovery::{
    Aliases, IsolationGroup, RequesterIds, ReservedRegion, VouchedDevice,
};
use crate::unit::{DeviceCapabilityError, DeviceTables, DeviceTlb, FaultRate, Ticket, UnitError};
use crate::viommu::host::{BindError, DeviceHandle};

/// Whether assignment may go on without interrupt remapping (G1).
///
/// A device without it can write any interrupt message and so inject any vector into any
/// processor. There is no default: the embedder says which it wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptIsolation {
    /// Assignment is refused unless the unit remaps interrupts.
    Required,
    /// The embedder takes responsibility: the device cannot send messages that matter, or its
    /// owner is trusted with every interrupt of the machine.
    WaivedByEmbedder,
}

/// Whether a device may use Address Translation Services: ask for translations, keep them in a TLB of
/// its own, and send requests with addresses that it takes to be translated (§4, G22).
///
/// Hardware does not check the address of a translated request: such a device can reach all of
/// the host's memory if it lies, and keep what it was told to forget. The guest has no say in this,
/// whatever its tables say; it is shown device-TLBs by [`Policy::device_tlbs`](crate::nest::Policy).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AddressTranslation {
    /// It may not: its translation requests and translated requests are blocked.
    #[default]
    Off,
    /// It may, because firmware vouches for it: a device of the SoC that `SATC` or `SIDP` lists (§8.8,
    /// §8.9), as [`vouched_device`](crate::unit::discovery::vouched_device) finds it.
    FirmwareListed(VouchedDevice, DeviceTlb),
    /// It may, because the embedder trusts it for reasons of its own, and with it whoever can program
    /// or replace its firmware. The root port above has to support it, as
    /// [`address_translation`](crate::unit::discovery::address_translation) says.
    TrustedByEmbedder(DeviceTlb),
}

impl AddressTranslation {
    /// The device's TLB, if it may use one.
    pub const fn device_tlb(&self) -> Option<DeviceTlb> {
        match *self {
            Self::Off => None,
            Self::FirmwareListed(_, device_tlb) | Self::TrustedByEmbedder(device_tlb) => {
                Some(device_tlb)
            }
        }
    }
}

/// Who moves a device's own switches for PASIDs and ATS, which have to be on no longer than its context
/// entry allows what they make it try (§4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DeviceSwitches {
    /// The embedder: on after the device is assigned, ATS last; off before it is taken away, ATS
    /// first. The device sends nothing meanwhile.
    #[default]
    ByEmbedder,
    /// The machine, by [`Platform::write_configuration`](crate::mem::Platform::write_configuration): on at
    /// the end of the assignment, off when the device is taken away or cut off. The device sends
    /// nothing meanwhile. One that does not switch on is not assigned; one that does not switch off is
    /// cut off. The embedder does not reset a device while it is assigned: that switches it off.
    /// Behind a unit in legacy mode the context entry lets device-TLBs in with the guest's first
    /// entry only; a device that tries before is refused.
    ByMachine,
}

/// How the embedder knows that hardware keeps the device apart from those of others (R36).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// By its [group](crate::unit::discovery::isolation_group): assignment is refused while another
    /// member of it is attached that is not this machine's.
    Group(IsolationGroup),
    /// The embedder answers for it: other members of the group, if it is split, may reach what this
    /// device reaches, and this device what they reach.
    AssertedByEmbedder,
}

/// What becomes of a device for which firmware reserves memory (§8.4), as its unit
/// [knows](crate::unit::ReservedDevice::track).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReservedMemoryUse {
    /// It is not assigned.
    #[default]
    Refused,
    /// It is assigned, if the machine's memory has each region at its own address, readable and
    /// writable. It stays there until the device has left; the guest has to be told of it.
    MappedInMachine,
}

/// What to assign.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// The source-id that the physical unit sees.
    pub source_id: SourceId,
    /// Other source-ids under which the device's requests may arrive, as
    /// [`requester_ids`](crate::unit::discovery::requester_ids) finds them.
    pub aliases: Aliases,
    /// See [`Isolation`].
    pub isolation: Isolation,
    /// See [`ReservedMemoryUse`].
    pub reserved_memory: ReservedMemoryUse,
    /// The source-id under which the guest knows the device.
    pub guest_source_id: SourceId,
    /// Index of the physical unit that covers the device.
    pub unit: u8,
    /// The width of the PASIDs that the device can send, in bits, as its PASID capability says; 0
    /// if it has none or the guest is not shown it. Such a device has its requests without PASID
    /// only; any other must carry every PASID that the guest's unit shows
    /// ([`Policy::pasid_bits`](crate::nest::Policy::pasid_bits)).
    pub pasid_bits: u8,
    /// See [`InterruptIsolation`].
    pub interrupts: InterruptIsolation,
    /// See [`AddressTranslation`].
    pub address_translation: AddressTranslation,
    /// See [`DeviceSwitches`].
    pub switches: DeviceSwitches,
}

impl DeviceConfig {
    /// A device without aliases, PASIDs, a TLB of its own and reserved memory. What cannot be left to a
    /// default is asked for.
    pub const fn new(
        source_id: SourceId,
        guest_source_id: SourceId,
        unit: u8,
        interrupts: InterruptIsolation,
        isolation: Isolation,
    ) -> Self {
        Self {
            source_id,
            aliases: Aliases::NONE,
            isolation,
            reserved_memory: ReservedMemoryUse::Refused,
            guest_source_id,
            unit,
            pasid_bits: 0,
            interrupts,
            address_translation: AddressTranslation::Off,
            switches: DeviceSwitches::ByEmbedder,
        }
    }

    /// All source-ids of the device.
    pub fn requesters(&self) -> RequesterIds {
        RequesterIds::with_aliases(self.source_id, &self.aliases)
    }
}

/// Why a device was not assigned. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AssignError {
    /// The machine's device table is full.
    Full {
        /// Its capacity.
        capacity: usize,
    },
    /// The machine's devices are behind as many other units as it can use.
    TooManyUnits {
        /// Index of the unit that the device is behind.
        unit: u8,
        /// How many units the machine can use.
        capacity: usize,
    },
    /// There is no unit of this index.
    UnknownUnit(u8),
    /// The source-id is assigned already, on the host's or the guest's side.
    InUse(SourceId),
    /// Hardware does not keep the device apart from another that is not this machine's.
    SplitGroup {
        /// The physical source-id of the device.
        source_id: SourceId,
        /// The other.
        member: SourceId,
    },
    /// Firmware reserves memory for the device, and the embedder did not ask for it all the same.
    ReservedMemory {
        /// The physical source-id.
        source_id: SourceId,
        /// The memory.
        region: ReservedRegion,
    },
    /// The machine's memory has not all of a region that firmware reserves for the device at its own
    /// address, readable and writable.
    ReservedMemoryNotMapped {
        /// The physical source-id.
        source_id: SourceId,
        /// The memory.
        region: ReservedRegion,
    },
    /// The device, of this physical source-id, may have reserved memory that its unit does not know of:
    /// telling it of some device's failed.
    ReservedMemoryUntracked(SourceId),
    /// The unit does not remap interrupts and the embedder did not waive it.
    InterruptRemappingMissing(SourceId),
    /// The unit of this index has no device-TLBs (`ECAP.DT`), which the device is to use.
    NoDeviceTlbs(u8),
    /// Firmware vouches for another device, not for this one.
    NotVouchedFor(SourceId),
    /// The unit of this index cannot nest, which the machine's bindings are made by.
    UnitCannotNest(u8),
    /// The unit or the device carries fewer bits of a PASID than the machine's guest was shown.
    PasidBits {
        /// The physical source-id.
        source_id: SourceId,
        /// Bits that the guest was shown (`ECAP.PSS`).
        shown: u8,
        /// Bits that the unit and the device both carry.
        carried: u8,
    },
    /// The unit could not make the device's tables.
    Unit(UnitError),
    /// The device's own switches cannot be moved as asked
    /// ([`DeviceSwitches::ByMachine`]).
    Switches(DeviceCapabilityError),
    /// The virtual unit refused the device.
    VirtualUnit,
    /// The first binding failed.
    Bind(BindError),
    /// The machine is being destroyed.
    BeingDestroyed,
}

/// The host side of one assigned device.
#[derive(Debug)]
pub(super) struct AssignedDevice {
    pub(super) config: DeviceConfig,
    pub(super) tables: DeviceTables,
    pub(super) quarantine: Quarantine,
    /// It has to forget everything that its own TLB holds, with the next submission.
    pub(super) owes_device_tlb: bool,
    pub(super) storm: Storm,
}

impl AssignedDevice {
    pub(super) const fn is_quarantined(&self) -> bool {
        !matches!(self.quarantine, Quarantine::None)
    }

    /// Whether it has a TLB of its own and is expected to answer.
    pub(super) const fn is_tlb_in_use(&self) -> bool {
        self.tables.device_tlb().is_some() && !self.is_quarantined()
    }
}

/// How often a device faults, and what was done about it.
#[derive(Debug)]
pub(super) struct Storm {
    pub(super) rate: FaultRate,
    /// Hardware records no faults of it.
    pub(super) is_silenced: bool,
}

impl Storm {
    pub(super) const fn new() -> Self {
        Self {
            rate: FaultRate::new(),
            is_silenced: false,
        }
    }
}

/// How far a device is cut off. From [`Unconfirmed`](Self::Unconfirmed) on its context entry is not
/// present, it reaches nothing new, and it keeps what it holds.
#[derive(Debug)]
pub(super) enum Quarantine {
    /// It is not.
    None,
    /// Hardware did not confirm an invalidation, and may use what it has cached.
    Unconfirmed,
    /// The invalidation of everything that is cached of the device is on its way.
    Confirming(Ticket),
    /// Hardware has forgotten the device: what it holds can be given back.
    Confirmed,
}

/// The devices of one machine, by handle.
#[derive(Debug)]
pub(super) struct DeviceList<const N: usize> {
    slots: [Option<AssignedDevice>; N],
}

impl<const N: usize> DeviceList<N> {
    pub(super) const fn new() -> Self {
        Self {
            slots: [const { None }; N],
        }
    }

    pub(super) fn get(&self, handle: DeviceHandle) -> Result<&AssignedDevice, BindError> {
        self.slots
            .get(handle.index())
            .and_then(Option::as_ref)
            .ok_or(BindError::UnknownDevice(handle))
    }

    pub(super) fn get_mut(
        &mut self,
        handle: DeviceHandle,
    ) -> Result<&mut AssignedDevice, BindError> {
        self.slots
            .get_mut(handle.index())
            .and_then(Option::as_mut)
            .ok_or(BindError::UnknownDevice(handle))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (DeviceHandle, &AssignedDevice)> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter_map(|(index, device)| Some((DeviceHandle::new(index as u16), device.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut AssignedDevice> {
        self.slots.iter_mut().flatten()
    }

    pub(super) fn insert(&mut self, handle: DeviceHandle, device: AssignedDevice) {
        if let Some(slot) = self.slots.get_mut(handle.index()) {
            *slot = Some(device);
        }
    }

    pub(super) fn remove(&mut self, handle: DeviceHandle) -> Option<AssignedDevice> {
        self.slots.get_mut(handle.index())?.take()
    }
}
