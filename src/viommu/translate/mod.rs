//! Translation in software, by the guest's own tables (§3).
//!
//! For devices that the hypervisor emulates, and to tell a guest why hardware blocked a request of
//! a device that it was assigned.

#[cfg(test)]
mod tests;

use crate::arch::address::{Gpa, Iova, PageSize};
use crate::arch::fault::FaultReason;
use crate::arch::id::{DomainId, Pasid, SourceId};
use crate::arch::pasid::PasidTranslation;
use crate::arch::register::{GlobalStatus, RequestType, TranslationTableMode};
use crate::mem::GuestMemory;
use crate::paging::Rights;
use crate::paging::walk::{
    Access, FirstStageRoot, GuestTables, SecondStageRoot, Translation, is_interrupt_address,
    walk_first_stage, walk_second_stage,
};

use super::fault::GuestFault;
use super::flags::{RememberedTables, UsedEntries};
use super::host::{Desired, GuestBinding, HostState};
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
    pub const fn fault(&self, reason: FaultReason, fault_processing_disabled: bool) -> GuestFault {
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
            fault_processing_disabled,
        }
    }
}

/// What a walk meets on its way.
#[derive(Default)]
struct Met {
    fault_processing_disabled: bool,
    domain_id: Option<DomainId>,
    first_stage: Option<UsedEntries>,
}

/// Where the guest's tables lead a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walked {
    /// The translation, or the fault as hardware would record it, in the mode of the guest's root
    /// table (§7.1.3).
    pub result: Result<Translation<Gpa>, GuestFault>,
    /// An entry on the way disables fault processing (`FPD`): for faults that are found behind the
    /// guest's tables.
    pub fault_processing_disabled: bool,
    /// The guest's domain-id in the last entry met; `None` while translation is off, and if the
    /// walk ended before.
    pub domain_id: Option<DomainId>,
    /// The entries of a first stage that it used.
    pub(super) first_stage: Option<UsedEntries>,
}

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// Where the guest's tables lead a request, as they read now.
    ///
    /// The address is not checked against the guest's memory. Requests without PASID to
    /// 0xFEEx_xxxx are interrupts, which the caller sorts out first (§3.15). Accessed and dirty
    /// flags stay as they are, and nothing is recorded.
    pub fn walk<M: GuestMemory>(&self, memory: &M, request: &DmaRequest) -> Walked {
        let mut met = Met::default();
        let result = self.walk_tables(memory, request, &mut met);
        Walked {
            result,
            fault_processing_disabled: met.fault_processing_disabled,
            domain_id: met.domain_id,
            first_stage: met.first_stage,
        }
    }

    fn walk_tables<M: GuestMemory>(
        &self,
        memory: &M,
        request: &DmaRequest,
        met: &mut Met,
    ) -> Result<Translation<Gpa>, GuestFault> {
        let status = self.registers.status();
        if !status.contains(GlobalStatus::TRANSLATION_ENABLED) {
            return Ok(untranslated(request.address));
        }
        let fault = |reason, disabled| request.fault(reason, disabled);
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
        let disabled = &mut met.fault_processing_disabled;
        *disabled = context.is_fault_processing_disabled();
        let (translation, access, is_legacy) = match context {
            GuestContext::Legacy(context) => {
                let binding = legacy_binding(&context);
                met.domain_id = Some(binding.domain_id);
                (binding.translation, request.access, true)
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
                        return refuse(TableFault::PasidDisabled, *disabled);
                    }
                    Some(pasid) if pasid.as_u32() >> self.pasid_bits().min(20) != 0 => {
                        let bits = self.pasid_bits();
                        return refuse(TableFault::PasidTooLarge { bits }, *disabled);
                    }
                    Some(pasid) if pasid == context.rid_pasid => {
                        return refuse(TableFault::PasidEqualsRidPasid, *disabled);
                    }
                    Some(pasid) => pasid,
                };
                let (entry, directory_disables) = reader
                    .pasid_entry(&context, pasid)
                    .map_err(|(table, more)| fault(table.reason(), *disabled || more))?;
                *disabled |= directory_disables || entry.is_fault_processing_disabled();
                let binding = guest_binding(&entry, &self.tables)
                    .map_err(|entry| fault(TableFault::Entry(entry).reason(), *disabled))?;
                if self.is_refused_for_its_root(request.source_id, pasid, &binding) {
                    return Err(fault(FaultReason::PasidEntryInvalid, *disabled));
                }
                if request.execute {
                    return refuse(TableFault::ExecuteRequest, *disabled);
                }
                if access.privileged && !binding.supervisor_requests {
                    return refuse(TableFault::SupervisorRequest, *disabled);
                }
                met.domain_id = Some(binding.domain_id);
                (binding.translation, access, false)
            }
        };
        let disabled = *disabled;
        let fault = |reason| request.fault(reason, disabled);
        match translation {
            PasidTranslation::FirstStage {
                root,
                paging,
                write_protect,
                extended_accessed,
            } => {
                let table = FirstStageRoot {
                    root,
                    paging,
                    write_protect,
                };
                let tables = RememberedTables::new(memory, extended_accessed);
                let walked =
                    walk_first_stage(&tables, table, &self.tables, request.address, access);
                met.first_stage = Some(tables.used());
                walked.map_err(|walk| fault(walk.reason_for(access, is_legacy)))
            }
            PasidTranslation::SecondStage { root, width } => walk_second_stage(
                &GuestTables(memory),
                SecondStageRoot { root, width },
                &self.tables,
                request.address.as_u64(),
                access,
            )
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
                Ok(untranslated(request.address))
            }
            // Nesting is never shown, so no entry decodes to it.
            PasidTranslation::Nested { .. } => Err(fault(FaultReason::PasidEntryInvalid)),
        }
    }
}

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// Whether an assigned device's entry contradicts others about its first-stage root, and is
    /// therefore blocked on hardware.
    fn is_refused_for_its_root(
        &self,
        source_id: SourceId,
        pasid: Pasid,
        binding: &GuestBinding,
    ) -> bool {
        self.devices
            .iter()
            .position(|slot| slot.is_assigned() && slot.source_id == source_id)
            .is_some_and(|device| {
                self.root_conflict(device, pasid, &Desired::Guest(*binding))
                    .is_some()
            })
    }
}

/// The address itself, with all rights.
pub(super) const fn untranslated(address: Iova) -> Translation<Gpa> {
    Translation {
        address: Gpa::new(address.as_u64()),
        rights: Rights::READ_WRITE,
        size: PageSize::Size4KiB,
    }
}
