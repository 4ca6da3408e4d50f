//! Faults as a guest sees them: through the registers of its virtual unit.

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::{FaultRecord, FaultStatus, Register32, RequestType};

use super::Guest;

/// One record of the virtual unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GuestFault {
    pub(crate) reason: FaultReason,
    pub(crate) source_id: SourceId,
    /// PASID, if the record has one.
    pub(crate) pasid: Option<u32>,
    /// Page address.
    pub(crate) address: Iova,
    /// The request was a write.
    pub(crate) write: bool,
}

/// What was recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TakenFaults {
    /// In the order of the records.
    pub(crate) faults: Vec<GuestFault>,
    /// PFO.
    pub(crate) overflow: bool,
}

impl Guest {
    /// The raw record of this index: low and high quadword.
    pub(crate) fn fault_record(&self, index: u64) -> (u64, u64) {
        let capability = self.vm.offer().features.capability;
        let at = u64::from(capability.fault_record_offset()) + 16 * index;
        (
            self.vm.read_register(at, 8),
            self.vm.read_register(at + 8, 8),
        )
    }

    /// How many records the virtual unit has.
    pub(crate) fn fault_record_count(&self) -> u64 {
        self.vm
            .offer()
            .features
            .capability
            .fault_record_count()
            .into()
    }

    /// Reads and clears every record as a driver does: from FRI on, around once, then PFO.
    pub(crate) fn take_faults(&mut self) -> TakenFaults {
        self.settle();
        let offset = u64::from(Register32::FAULT_STATUS.offset());
        let status = self.vm.read_register(offset, 4) as u32;
        let count = self.fault_record_count();
        let first = u64::from(FaultStatus::fault_record_index(status));
        let mut faults = Vec::new();
        for index in (0..count).map(|step| (first + step) % count) {
            let (low, high) = self.fault_record(index);
            let record = FaultRecord { low, high };
            if !record.is_valid() {
                break;
            }
            let code = record.reason_code();
            faults.push(GuestFault {
                reason: FaultReason::from_code(code).expect("a defined reason"),
                source_id: record.source_id(),
                pasid: record.pasid().map(|pasid| pasid.as_u32()),
                address: record.address(),
                write: record.request() == RequestType::Write,
            });
            let capability = self.vm.offer().features.capability;
            let at = u64::from(capability.fault_record_offset()) + 16 * index;
            self.write_register(at + 12, 4, 1 << 31);
        }
        let overflow = status & FaultStatus::FAULT_OVERFLOW.bits() != 0;
        self.write_register(offset, 4, FaultStatus::FAULT_OVERFLOW.bits().into());
        TakenFaults { faults, overflow }
    }

    /// The reason that the guest finds: in legacy mode, the one that stands there for one of
    /// scalable mode.
    pub(crate) fn shown(&self, reason: FaultReason, write: bool) -> FaultReason {
        if self.is_legacy() {
            reason_in_legacy_mode(reason, write)
        } else {
            reason
        }
    }
}

/// The reason that legacy mode has for what scalable mode tells otherwise (§7.1.3, Table 30).
fn reason_in_legacy_mode(reason: FaultReason, write: bool) -> FaultReason {
    use FaultReason::*;
    match reason {
        ScalableRootEntryNotPresent => LegacyRootEntryNotPresent,
        ScalableContextEntryNotPresent | PasidEntryNotPresent => LegacyContextEntryNotPresent,
        PasidEntryReserved => LegacyContextEntryReserved,
        PasidTableUnreadable => LegacyContextTableUnreadable,
        PasidEntryInvalid => LegacyContextEntryInvalid,
        SecondStageNotPresent if write => LegacyWriteDenied,
        SecondStageNotPresent => LegacyReadDenied,
        WriteDenied => LegacyWriteDenied,
        ReadDenied => LegacyReadDenied,
        SecondStageReserved => LegacySecondStageReserved,
        SecondStageUnreadable => LegacySecondStageUnreadable,
        SecondStageRootUnreadable => LegacyContextEntryInvalid,
        AddressBeyondSecondStage => LegacyAddressTooLarge,
        InterruptAddress => LegacyInterruptAddress,
        other => other,
    }
}
