//! What a message comes to by the guest's interrupt remapping table, in software (§5.1.4).
//!
//! For devices that the hypervisor emulates, and to tell a guest why hardware blocked a message of a
//! device that it was assigned.

use crate::arch::address::{Gpa, Iova};
use crate::arch::fault::FaultReason;
use crate::arch::id::SourceId;
use crate::arch::interrupt::{
    Interrupt, InterruptAction, InterruptEntry, InterruptEntryFault, InterruptMessage, MessageError,
};
use crate::arch::register::RequestType;
use crate::mem::GuestMemory;
use crate::viommu::fault::GuestFault;
use crate::viommu::host::HostState;
use crate::viommu::unit::VirtualUnit;

impl GuestFault {
    /// The fault of an interrupt message, by the index that it names; 0 where it names none.
    pub const fn interrupt(
        source_id: SourceId,
        reason: FaultReason,
        index: u16,
        fault_processing_disabled: bool,
    ) -> Self {
        Self {
            source_id,
            pasid: None,
            reason,
            // Bits 63:48 of `FI` (§11.4.7.6).
            address: Iova::new((index as u64) << 48),
            request: RequestType::Write,
            privileged: false,
            execute: false,
            fault_processing_disabled,
        }
    }
}

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// What a device's message comes to by the guest's table as it reads now; `None` if it means
    /// nothing to processors: a reserved delivery mode while remapping is off.
    ///
    /// # Errors
    ///
    /// The fault as hardware would record it (§5.1.4, Table 15); one for a write that is no
    /// interrupt message, too. Nothing is recorded.
    pub fn remap_interrupt<M: GuestMemory>(
        &self,
        memory: &M,
        source_id: SourceId,
        message: InterruptMessage,
    ) -> Result<Option<Interrupt>, GuestFault> {
        let refuse = |reason| Err(GuestFault::interrupt(source_id, reason, 0, false));
        if !self.is_remapping_interrupts() {
            return match message.decode_compatibility() {
                Ok(interrupt) => Ok(Some(interrupt)),
                Err(MessageError::Address(_)) => refuse(FaultReason::InterruptAddressMisused),
                Err(_) => Ok(None),
            };
        }
        let index = match message.decode() {
            Ok(format) => format.index(),
            Err(MessageError::Address(_)) => return refuse(FaultReason::InterruptAddressMisused),
            Err(MessageError::ReservedData(_)) => {
                return refuse(FaultReason::InterruptRequestReserved);
            }
            Err(MessageError::DeliveryMode(_)) => None,
        };
        match index {
            // Whatever `CFI` says.
            None => refuse(FaultReason::InterruptCompatibilityFormatBlocked),
            Some(index) => self.walk_interrupt(memory, source_id, index).0.map(Some),
        }
    }

    /// What the guest's entry for an index makes of a device's message, and whether it disables fault
    /// processing (`FPD`). The index may be beyond any table.
    pub fn walk_interrupt<M: GuestMemory>(
        &self,
        memory: &M,
        source_id: SourceId,
        index: u32,
    ) -> (Result<Interrupt, GuestFault>, bool) {
        let mut disabled = false;
        let found = self.look_up(memory, source_id, index, &mut disabled);
        let found = found
            .map_err(|reason| GuestFault::interrupt(source_id, reason, index as u16, disabled));
        (found, disabled)
    }

    fn look_up<M: GuestMemory>(
        &self,
        memory: &M,
        source_id: SourceId,
        index: u32,
        disabled: &mut bool,
    ) -> Result<Interrupt, FaultReason> {
        let table = self.interrupts.table;
        if index >= table.entry_count() {
            return Err(FaultReason::InterruptIndexTooLarge);
        }
        let offset = u64::from(index).saturating_mul(InterruptEntry::LEN_BYTES as u64);
        let quadwords = table
            .table::<Gpa>()
            .checked_add(offset)
            .and_then(|at| memory.read_quadwords(at).ok())
            .ok_or(FaultReason::InterruptTableUnreadable)?;
        let entry = InterruptEntry::from_quadwords(quadwords);
        *disabled = entry.is_fault_processing_disabled();
        match entry.process::<Gpa>(source_id, &self.interrupt_features()) {
            Ok(InterruptAction::Remap(interrupt)) => Ok(interrupt),
            // Not where posting is not shown.
            Ok(InterruptAction::Post(_)) => Err(FaultReason::InterruptEntryReserved),
            Err(fault) => Err(InterruptEntryFault::reason(fault)),
        }
    }
}
