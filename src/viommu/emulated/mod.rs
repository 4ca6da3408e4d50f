//! Devices that the hypervisor emulates: their requests are translated in software (R3, R33).
//!
//! Nothing is made for them before they ask: a translation is kept when the first request has found
//! it, and dropped by the guest's invalidations alone. The host is not involved.

#[cfg(test)]
mod tests;

use core::fmt;

use crate::arch::address::Gpa;
use crate::arch::fault::FaultReason;
use crate::arch::id::SourceId;
use crate::arch::register::GlobalStatus;
use crate::mem::GuestMemory;
use crate::paging::walk::Translation;

use super::fault::GuestFault;
use super::flags::FlagError;
use super::host::{DeviceHandle, Host, HostState};
use super::statistics::count;
use super::translate::{DmaRequest, untranslated};
use super::unit::{DeviceError, DeviceKind, VirtualUnit};

/// Translations that a virtual unit keeps for all its emulated devices together. Beyond that, older
/// ones make room.
pub const CACHED_TRANSLATIONS: usize = 4 * TRANSLATION_SETS;

/// Walks of one request before a guest that keeps changing its entries gets a fault.
const UPDATE_ATTEMPTS: u32 = 8;

/// Sets of the cache, 4 translations each.
pub(super) const TRANSLATION_SETS: usize = 32;

/// Why a request of an emulated device gets nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TranslateError {
    /// No emulated device has the source-id.
    NotEmulated(SourceId),
    /// The guest's tables do not allow it. The fault is recorded in the guest's unit, unless the
    /// guest asked not to be told.
    Fault(GuestFault),
}

impl fmt::Display for TranslateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEmulated(source_id) => write!(f, "{source_id} is no emulated device"),
            Self::Fault(fault) => fmt::Display::fmt(fault, f),
        }
    }
}

impl core::error::Error for TranslateError {}

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// Translates a request of an emulated device by the guest's tables, and records the fault if
    /// they do not allow it (§3, §7.2).
    ///
    /// What an earlier request found is used until the guest invalidates it, as hardware would do;
    /// such a hit reads no memory of the guest. The result holds until the next call of
    /// [`poll`](Self::poll), and is not checked against the guest's memory: a device that finds none
    /// there has an unsupported request, which is no fault of the unit. Requests without PASID to
    /// 0xFEEx_xxxx are interrupts, which the caller sorts out first (§3.15).
    ///
    /// # Errors
    ///
    /// [`TranslateError`].
    pub fn translate<Ho: Host<Binding = B>>(
        &mut self,
        host: &mut Ho,
        request: &DmaRequest,
    ) -> Result<Translation<Gpa>, TranslateError> {
        let is_translating = self
            .registers
            .status()
            .contains(GlobalStatus::TRANSLATION_ENABLED);
        if is_translating && let Some(translation) = self.translations.look_up(request) {
            count(&mut self.statistics.translation_hits);
            return Ok(translation);
        }
        if !self.is_emulated(request.source_id) {
            return Err(TranslateError::NotEmulated(request.source_id));
        }
        if !is_translating {
            return Ok(untranslated(request.address));
        }
        let result = self.walk_and_mark(host.memory(), request);
        if let Err(fault) = &result {
            self.record_fault(fault, host);
        }
        result.map_err(TranslateError::Fault)
    }

    /// Walks the guest's tables, sets accessed and dirty flags as hardware does, and keeps what was
    /// found.
    fn walk_and_mark(
        &mut self,
        memory: &impl GuestMemory,
        request: &DmaRequest,
    ) -> Result<Translation<Gpa>, GuestFault> {
        for _ in 0..UPDATE_ATTEMPTS {
            count(&mut self.statistics.translation_walks);
            let walked = self.walk(memory, request);
            let translation = walked.result?;
            let mut kept = translation;
            if let Some(used) = walked.first_stage {
                // What reaches memory is the processor's access, which is snooped; whether the
                // guest counts on it is what its unit shows.
                let is_snooped = self.tables.page_walk_coherency;
                match used.update(memory, request.access, is_snooped) {
                    Ok(()) => {}
                    Err(FlagError::Changed) => continue,
                    Err(FlagError::Fault(reason)) => {
                        return Err(request.fault(reason, walked.fault_processing_disabled));
                    }
                }
                // The first write to a clean page has to come here again.
                kept.rights.write &= request.access.rights.write || used.is_dirty();
            }
            if let Some(domain_id) = walked.domain_id {
                self.translations.insert(request, domain_id, &kept);
            }
            return Ok(translation);
        }
        Err(request.fault(FaultReason::FirstStageUpdateFailed, false))
    }

    /// The number of translations kept for emulated devices: at most [`CACHED_TRANSLATIONS`].
    pub const fn cached_translations(&self) -> usize {
        self.translations.len()
    }

    /// Adds a device that the hypervisor emulates, at a place of the device table that is free.
    ///
    /// # Errors
    ///
    /// [`DeviceError`]; nothing has changed then.
    pub fn add_emulated_device(
        &mut self,
        handle: DeviceHandle,
        source_id: SourceId,
    ) -> Result<(), DeviceError> {
        self.add_device(handle, source_id, DeviceKind::Emulated)?;
        log::info!("guest device {source_id}: emulated");
        Ok(())
    }

    /// Takes an emulated device away, and drops what is kept for it.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unknown`] if the handle names no emulated device.
    pub fn remove_emulated_device(&mut self, handle: DeviceHandle) -> Result<(), DeviceError> {
        let source_id = self.free_emulated(handle)?;
        self.translations.drop_devices(|named| named == source_id);
        log::info!("guest device {source_id}: emulated no more");
        Ok(())
    }
}
