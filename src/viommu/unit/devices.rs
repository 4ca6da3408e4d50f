//! The devices behind the virtual unit: added, renamed, removed.

use crate::arch::features::TableFeatures;
use crate::arch::id::{Pasid, SourceId};
use crate::viommu::first_stage_roots::RootUse;
use crate::viommu::host::{BindError, Desired, DeviceHandle, Host, HostState, Progress};
use crate::viommu::pasid_cache::root_of;
use crate::viommu::statistics::count;
use crate::viommu::tables::GuestContext;
use core::fmt;

use super::VirtualUnit;

/// What a device is to the virtual unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// A physical device assigned to the machine: its bindings are made by the host, as soon as
    /// the guest announces them.
    Assigned {
        /// The width of the PASIDs that it can send, in bits; 0 if it sends none.
        pasid_bits: u8,
    },
    /// A device that the hypervisor emulates: it asks [`VirtualUnit::translate`], and the host has
    /// nothing to do for it.
    Emulated,
}

/// Why a device cannot be added, changed or removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceError {
    /// The handle is beyond the device table.
    BeyondTable {
        /// The handle.
        handle: DeviceHandle,
        /// The capacity of the table.
        capacity: usize,
    },
    /// The handle is in use.
    InUse(DeviceHandle),
    /// The handle names no device.
    Unknown(DeviceHandle),
    /// Another device has the source-id.
    SourceIdInUse(SourceId),
    /// A binding could not be taken away; it is kept, and a later call tries again.
    Bind(BindError),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeyondTable { handle, capacity } => {
                write!(f, "device {handle:?} is beyond a table of {capacity}")
            }
            Self::InUse(handle) => write!(f, "device {handle:?} is in use"),
            Self::Unknown(handle) => write!(f, "no device {handle:?}"),
            Self::SourceIdInUse(source_id) => write!(f, "{source_id} is in use"),
            Self::Bind(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl core::error::Error for DeviceError {}

/// The context entry of a device, as last read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::viommu) enum CachedContext {
    /// To be read when it is needed.
    Unknown,
    /// Read; `None` if there was no valid one.
    Read(Option<GuestContext>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SlotState {
    Free,
    Active,
    Removing,
}

/// The binding of a device's requests without PASID. It always has a place, so that turning
/// translation off never fails for lack of one.
#[derive(Debug)]
pub(in crate::viommu) struct DefaultBinding<B> {
    pub(in crate::viommu) host: B,
    /// The guest's PASID entry as last honoured, or as the host is honouring it.
    pub(in crate::viommu) raw: [u64; 8],
    /// What it is bound to; `None` while the host is changing it, or if the host failed to.
    pub(in crate::viommu) actual: Option<Desired>,
    /// The pass that last looked at it.
    pub(in crate::viommu) generation: u32,
}

/// One line of the device table.
#[derive(Debug)]
pub(in crate::viommu) struct DeviceSlot<B> {
    pub(in crate::viommu) source_id: SourceId,
    kind: DeviceKind,
    pub(super) state: SlotState,
    pub(super) needs_reconcile: bool,
    /// While it is removed: slots of the store below this hold nothing of it.
    cleared: u32,
    pub(in crate::viommu) context: CachedContext,
    /// PASIDs below this may be bound by that context entry.
    pub(in crate::viommu) pasid_end: u32,
    pub(in crate::viommu) default: DefaultBinding<B>,
}

impl<B> DefaultBinding<B> {
    /// The use of a first-stage root that it stands for.
    pub(in crate::viommu) fn root(&self, features: &TableFeatures) -> Option<RootUse> {
        match &self.actual {
            Some(Desired::Guest(binding)) => RootUse::of(binding),
            Some(_) => None,
            None => root_of(&self.raw, features),
        }
    }
}

impl<B: HostState> DeviceSlot<B> {
    pub(super) const FREE: Self = Self {
        source_id: SourceId::from_u16(0),
        kind: DeviceKind::Emulated,
        state: SlotState::Free,
        needs_reconcile: false,
        cleared: 0,
        context: CachedContext::Unknown,
        pasid_end: u32::MAX,
        default: DefaultBinding {
            host: B::BLOCKED,
            raw: [0; 8],
            actual: Some(Desired::Blocked),
            generation: 0,
        },
    };
}

impl<B> DeviceSlot<B> {
    /// Has the context entry read when it is needed.
    pub(in crate::viommu) const fn forget_context(&mut self) {
        self.context = CachedContext::Unknown;
        self.pasid_end = u32::MAX;
    }

    /// Whether the host binds it.
    pub(in crate::viommu) const fn is_assigned(&self) -> bool {
        matches!(
            (self.state, self.kind),
            (SlotState::Active, DeviceKind::Assigned { .. })
        )
    }

    pub(in crate::viommu) const fn pasid_bits(&self) -> u8 {
        match self.kind {
            DeviceKind::Assigned { pasid_bits } => pasid_bits,
            DeviceKind::Emulated => 0,
        }
    }
}

/// Host operations of one [`VirtualUnit::remove_device`] call.
pub(super) const REMOVALS_PER_CALL: u32 = 64;

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// Adds a device. The next [`poll`](Self::poll) binds it as the guest's tables say now: to the
    /// machine's memory while translation is off. Until then it is blocked.
    ///
    /// # Errors
    ///
    /// [`DeviceError`]; nothing has changed then.
    pub fn add_device(
        &mut self,
        handle: DeviceHandle,
        source_id: SourceId,
        kind: DeviceKind,
    ) -> Result<(), DeviceError> {
        self.refuse_duplicate(handle, source_id)?;
        let slot = self
            .devices
            .get_mut(handle.index())
            .ok_or(DeviceError::BeyondTable {
                handle,
                capacity: DEVICES,
            })?;
        if slot.state != SlotState::Free {
            return Err(DeviceError::InUse(handle));
        }
        *slot = DeviceSlot {
            source_id,
            kind,
            state: SlotState::Active,
            needs_reconcile: true,
            ..DeviceSlot::FREE
        };
        self.commands.reconcile_devices = true;
        self.reconcile_interrupts();
        Ok(())
    }

    pub(super) fn refuse_duplicate(
        &self,
        handle: DeviceHandle,
        source_id: SourceId,
    ) -> Result<(), DeviceError> {
        let is_used = self.devices.iter().enumerate().any(|(index, slot)| {
            index != handle.index()
                && slot.state == SlotState::Active
                && slot.source_id == source_id
        });
        if is_used {
            return Err(DeviceError::SourceIdInUse(source_id));
        }
        Ok(())
    }

    pub(super) fn active(
        &mut self,
        handle: DeviceHandle,
    ) -> Result<&mut DeviceSlot<B>, DeviceError> {
        self.devices
            .get_mut(handle.index())
            .filter(|slot| slot.state == SlotState::Active)
            .ok_or(DeviceError::Unknown(handle))
    }

    /// The first free handle that `is_usable`.
    pub fn free_handle(&self, is_usable: impl Fn(DeviceHandle) -> bool) -> Option<DeviceHandle> {
        let slots = self.devices.iter().enumerate();
        slots
            .filter(|(_, slot)| slot.state == SlotState::Free)
            .map(|(index, _)| DeviceHandle::new(index as u16))
            .find(|handle| is_usable(*handle))
    }

    /// Whether a device has the source-id.
    pub fn has_device(&self, source_id: SourceId) -> bool {
        let mut slots = self.devices.iter();
        slots.any(|slot| slot.state == SlotState::Active && slot.source_id == source_id)
    }

    /// Whether an emulated device has the source-id.
    pub(in crate::viommu) fn is_emulated(&self, source_id: SourceId) -> bool {
        let mut slots = self.devices.iter();
        slots.any(|slot| {
            matches!(
                (slot.state, slot.kind),
                (SlotState::Active, DeviceKind::Emulated)
            ) && slot.source_id == source_id
        })
    }

    /// Frees the slot of an emulated device: the source-id that it had.
    pub(in crate::viommu) fn free_emulated(
        &mut self,
        handle: DeviceHandle,
    ) -> Result<SourceId, DeviceError> {
        let slot = self.active(handle)?;
        if slot.kind != DeviceKind::Emulated {
            return Err(DeviceError::Unknown(handle));
        }
        let source_id = slot.source_id;
        *slot = DeviceSlot::FREE;
        Ok(source_id)
    }

    /// Gives a device another source-id, as when the guest renumbers its buses. The next
    /// [`poll`](Self::poll) binds it as the guest's tables say under the new one.
    ///
    /// # Errors
    ///
    /// [`DeviceError`]; nothing has changed then.
    pub fn set_source_id(
        &mut self,
        handle: DeviceHandle,
        source_id: SourceId,
    ) -> Result<(), DeviceError> {
        self.refuse_duplicate(handle, source_id)?;
        let slot = self.active(handle)?;
        let before = core::mem::replace(&mut slot.source_id, source_id);
        self.translations.drop_devices(|named| named == before);
        self.reconcile_device(handle)
    }

    /// Has the next [`poll`](Self::poll) look at all bindings of a device again: for instance once
    /// the reason of a host-side failure is gone.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unknown`].
    pub fn reconcile_device(&mut self, handle: DeviceHandle) -> Result<(), DeviceError> {
        let slot = self.active(handle)?;
        slot.forget_context();
        slot.needs_reconcile = true;
        self.commands.reconcile_devices = true;
        self.reconcile_interrupts();
        Ok(())
    }

    /// Takes all bindings of a device away and forgets it. From the first call on nothing is bound
    /// for it any more. Unless it is [`Progress::Done`], call again; a call does a bounded amount of work.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unknown`], or [`DeviceError::Bind`] for the first binding that the host could
    /// not take away: a later call tries again.
    pub fn remove_device<Ho: Host<Binding = B>>(
        &mut self,
        handle: DeviceHandle,
        host: &mut Ho,
    ) -> Result<Progress, DeviceError> {
        let index = handle.index();
        let slot = self
            .devices
            .get_mut(index)
            .filter(|slot| slot.state != SlotState::Free)
            .ok_or(DeviceError::Unknown(handle))?;
        if let DeviceKind::Emulated = slot.kind {
            self.remove_emulated_device(handle)?;
            return Ok(Progress::Done);
        }
        slot.state = SlotState::Removing;
        let default = &mut slot.default;
        if default.actual != Some(Desired::Blocked) {
            default.actual = None;
            match host.bind(handle, Pasid::ZERO, &mut default.host, &Desired::Blocked) {
                Ok(Progress::Done) => default.actual = Some(Desired::Blocked),
                Ok(unfinished) => return Ok(unfinished),
                Err(error) => return Err(self.removal_failed(index, Pasid::ZERO, error)),
            }
            count(&mut self.statistics.unbinds);
        }
        let mut left = REMOVALS_PER_CALL;
        let from = slot.cleared;
        for at in from as usize..self.cache.end() {
            if self
                .cache
                .get(at)
                .is_none_or(|entry| entry.device() != index)
            {
                continue;
            }
            // Where the next call goes on. Nothing is added for a device that is removed.
            if let Some(slot) = self.devices.get_mut(index) {
                slot.cleared = at as u32;
            }
            if left == 0 {
                return Ok(Progress::Wait);
            }
            left = left.saturating_sub(1);
            self.cache.unsettle(at, None, &self.tables);
            let Some(entry) = self.cache.get_mut(at) else {
                continue;
            };
            let pasid = entry.pasid();
            match host.bind(handle, pasid, &mut entry.host, &Desired::Blocked) {
                Ok(Progress::Done) => self.cache.remove(at, &self.tables),
                Ok(unfinished) => return Ok(unfinished),
                Err(error) => return Err(self.removal_failed(index, pasid, error)),
            }
            count(&mut self.statistics.unbinds);
        }
        if let Some(slot) = self.devices.get_mut(index) {
            log::info!("guest device {}: removed", slot.source_id);
            *slot = DeviceSlot::FREE;
        }
        Ok(Progress::Done)
    }

    pub(super) fn removal_failed(
        &mut self,
        index: usize,
        pasid: Pasid,
        error: BindError,
    ) -> DeviceError {
        self.failed(index, pasid, &Desired::Blocked, &error);
        DeviceError::Bind(error)
    }

    // Registers.
}
