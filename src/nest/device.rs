//! One assigned device: its names on both sides and its tables on the physical unit.

use crate::arch::id::SourceId;
use crate::unit::{DeviceTables, Ticket, UnitError};
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

/// What to assign.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// The source-id that the physical unit sees.
    pub source_id: SourceId,
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
}

/// Why a device was not assigned. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AssignError {
    /// The machine's device table is full.
    Full {
        /// Its capacity.
        capacity: usize,
    },
    /// There is no unit of this index.
    UnknownUnit(u8),
    /// The source-id is assigned already, on the host's or the guest's side.
    InUse(SourceId),
    /// The unit does not remap interrupts and the embedder did not waive it.
    InterruptRemappingMissing(SourceId),
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
}

impl AssignedDevice {
    pub(super) const fn is_quarantined(&self) -> bool {
        !matches!(self.quarantine, Quarantine::None)
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

    /// A handle that is free.
    pub(super) fn free_handle(&self) -> Result<DeviceHandle, AssignError> {
        let free = self.slots.iter().position(Option::is_none);
        free.map(|index| DeviceHandle::new(index as u16))
            .ok_or(AssignError::Full { capacity: N })
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
