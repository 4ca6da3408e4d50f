//! Translation in software, by the guest's own tables (§3).
//!
//! For devices that the hypervisor emulates, and to tell a guest why hardware blocked a request of
//! a device that it was assigned.

use crate::arch::address::{Gpa, Iova, PageSize};
use crate::arch::fault::FaultReason;
use crate::arch::id::{Pasid, SourceId};
use crate::arch::pasid::PasidTranslation;
use crate::arch::register::{GlobalStatus, RequestType, TranslationTableMode};
use crate::mem::GuestMemory;
use crate::paging::Rights;
use crate::paging::walk::{
    Access, FirstStageRoot, GuestTables, SecondStageRoot, Translation, is_interrupt_address,
    walk_first_stage, walk_second_stage,
};

use super::fault::GuestFault;
use super::host::Host;
use super::statistics::count;
use super::tables::{GuestContext, TableFault, guest_binding, legacy_binding};
use super::unit::VirtualUnit;

/// An untranslated request of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaRequest {
    /// The guest's source-id of the device.
    pub source_id: SourceId,
    /// The PASID, if the request carries one.
    pub pasid: Option<Pasid>,
    /// The address.
    pub address: Iova,
    /// What it wants: both rights for an atomic operation.
    pub access: Access,
    /// It asks for execution.
    pub execute: bool,
}

impl DmaRequest {
    /// The fault of this request for a reason.
    pub const fn fault(&self, reason: FaultReason) -> GuestFault {
        GuestFault {
            source_id: self.source_id,
            pasid: self.pasid,
            reason,
            address: self.address,
            request: match (self.access.rights.read, self.access.rights.write) {
                (true, true) => RequestType::Atomic,
                (_, true) => RequestType::Write,
                _ => RequestType::Read,
            },
            privileged: self.access.privileged,
            execute: self.execute,
        }
    }
}

/// Where the guest's tables lead a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestTranslation {
    /// The guest-physical address, offset included. It may be outside the guest's memory.
    pub address: Gpa,
    /// The rights that the guest's tables grant.
    pub rights: Rights,
    /// Size of the guest's page.
    pub size: PageSize,
    /// Whether an entry on the way disables fault processing (`FPD`, §7.1.1).
    pub fault_processing_disabled: bool,
}

/// Why the guest's tables lead a request nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TranslationFault {
    /// The reason as hardware would record it, in the mode of the guest's root table (§7.1.3).
    pub reason: FaultReason,
    /// Whether an entry on the way, the faulty one included, disables fault processing (`FPD`):
    /// then a qualified fault is not recorded (§7.1.1).
    pub suppressed: bool,
}

impl<B: Default, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// Where the guest's tables lead a request that asks for no execution; see
    /// [`translate_request`](Self::translate_request).
    ///
    /// # Errors
    ///
    /// [`TranslationFault`].
    pub fn translate<M: GuestMemory>(
        &self,
        memory: &M,
        source_id: SourceId,
        pasid: Option<Pasid>,
        address: Iova,
        access: Access,
    ) -> Result<GuestTranslation, TranslationFault> {
        self.translate_request(
            memory,
            &DmaRequest {
                source_id,
                pasid,
                address,
                access,
                execute: false,
            },
        )
    }

    /// As [`translate_request`](Self::translate_request), for an emulated device: the fault is
    /// recorded for the guest, unless its tables say that it is not.
    ///
    /// # Errors
    ///
    /// [`TranslationFault`]; the request is to be aborted.
    pub fn translate_and_record<Ho: Host<Binding = B>>(
        &mut self,
        host: &mut Ho,
        request: &DmaRequest,
    ) -> Result<GuestTranslation, TranslationFault> {
        let result = self.translate_request(host.memory(), request);
        if let Err(fault) = result {
            if fault.suppressed && fault.reason.is_qualified() {
                count(&mut self.statistics.faults_disabled);
            } else {
                self.record_fault(&request.fault(fault.reason), host);
            }
        }
        result
    }

    /// Where the guest's tables lead a request, as they read now.
    ///
    /// The address is not checked against the guest's memory. Requests without PASID to
    /// 0xFEEx_xxxx are interrupts, which the caller sorts out first (§3.15). Accessed and dirty
    /// flags stay as they are.
    ///
    /// # Errors
    ///
    /// [`TranslationFault`].
    pub fn translate_request<M: GuestMemory>(
        &self,
        memory: &M,
        request: &DmaRequest,
    ) -> Result<GuestTranslation, TranslationFault> {
        let status = self.registers.status();
        if !status.contains(GlobalStatus::TRANSLATION_ENABLED) {
            return Ok(untranslated(request.address, false));
        }
        let fault = |reason, suppressed| TranslationFault { reason, suppressed };
        let mode = self.root.mode();
        if request.pasid.is_some() && matches!(mode, TranslationTableMode::Legacy) {
            return Err(fault(TableFault::PasidInLegacyMode.reason(), false));
        }
        if request.pasid.is_none() && is_interrupt_address(request.address.as_u64()) {
            return Err(fault(FaultReason::InterruptAddressMisused, false));
        }
        let reader = self.reader(memory, &self.tables);
        let context = reader
            .context(request.source_id)
            .map_err(|(table, disabled)| fault(table.reason(), disabled))?;
        let mut disabled = context.is_fault_processing_disabled();
        let (translation, access, is_legacy) = match context {
            GuestContext::Legacy(context) => {
                (legacy_binding(&context).translation, request.access, true)
            }
            GuestContext::Scalable(context) => {
                let refuse = |table: TableFault, disabled| Err(fault(table.reason(), disabled));
                let mut access = request.access;
                let pasid = match request.pasid {
                    None => {
                        access.privileged = context.rid_privilege;
                        context.rid_pasid
                    }
                    Some(_) if !context.pasid_enabled => {
                        return refuse(TableFault::PasidDisabled, disabled);
                    }
                    Some(pasid) if pasid.as_u32() >> self.pasid_bits().min(20) != 0 => {
                        let bits = self.pasid_bits();
                        return refuse(TableFault::PasidTooLarge { bits }, disabled);
                    }
                    Some(pasid) if pasid == context.rid_pasid => {
                        return refuse(TableFault::PasidEqualsRidPasid, disabled);
                    }
                    Some(pasid) => pasid,
                };
                let (entry, directory_disables) = reader
                    .pasid_entry(&context, pasid)
                    .map_err(|(table, more)| fault(table.reason(), disabled || more))?;
                disabled |= directory_disables || entry.is_fault_processing_disabled();
                let binding = guest_binding(&entry, &self.tables)
                    .map_err(|entry| fault(TableFault::Entry(entry).reason(), disabled))?;
                if request.execute {
                    return refuse(TableFault::ExecuteRequest, disabled);
                }
                if access.privileged && !binding.supervisor_requests {
                    return refuse(TableFault::SupervisorRequest, disabled);
                }
                (binding.translation, access, false)
            }
        };
        let fault = |reason| TranslationFault {
            reason,
            suppressed: disabled,
        };
        let found = |translation: Translation<Gpa>| GuestTranslation {
            address: translation.address,
            rights: translation.rights,
            size: translation.size,
            fault_processing_disabled: disabled,
        };
        let tables = GuestTables(memory);
        match translation {
            PasidTranslation::FirstStage {
                root,
                paging,
                write_protect,
                ..
            } => {
                let table = FirstStageRoot {
                    root,
                    paging,
                    write_protect,
                };
                walk_first_stage(&tables, table, &self.tables, request.address, access)
                    .map(found)
                    .map_err(|walk| fault(walk.reason_for(access, is_legacy)))
            }
            PasidTranslation::SecondStage { root, width } => walk_second_stage(
                &tables,
                SecondStageRoot { root, width },
                &self.tables,
                request.address.as_u64(),
                access,
            )
            .map(found)
            .map_err(|walk| fault(walk.reason_for(access, is_legacy))),
            PasidTranslation::PassThrough => {
                if !request.address.fits(self.features.host_address_width) {
                    return Err(fault(if is_legacy {
                        FaultReason::LegacyAddressTooLarge
                    } else {
                        FaultReason::AddressBeyondHostWidth
                    }));
                }
                if is_interrupt_address(request.address.as_u64()) {
                    return Err(fault(FaultReason::InterruptAddress));
                }
                Ok(untranslated(request.address, disabled))
            }
            // Nesting is never shown, so no entry decodes to it.
            PasidTranslation::Nested { .. } => Err(fault(FaultReason::PasidEntryInvalid)),
        }
    }
}

/// The address itself, with all rights.
const fn untranslated(address: Iova, fault_processing_disabled: bool) -> GuestTranslation {
    GuestTranslation {
        address: Gpa::new(address.as_u64()),
        rights: Rights::READ_WRITE,
        size: PageSize::Size4KiB,
        fault_processing_disabled,
    }
}
