//! Faults as the guest sees them: recording registers, overflow, compression, event (§7.2, §7.3).

use core::fmt;

use crate::arch::address::Iova;
use crate::arch::fault::FaultReason;
use crate::arch::id::{Pasid, SourceId};
use crate::arch::register::{
    AddressType, FAULT_RECORD_BYTES, FaultInfo, FaultRecord, FaultStatus, RequestType,
};

use super::registers::{Register, RegisterFile};
use super::statistics::{VirtualUnitStatistics, count};

/// The largest number of fault records of a virtual unit.
pub const MAX_FAULT_RECORDS: u8 = 32;

/// A fault of a guest's device, in the guest's terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestFault {
    /// The guest's source-id of the device.
    pub source_id: SourceId,
    /// The PASID, if the request carried one.
    pub pasid: Option<Pasid>,
    /// Why the request was blocked, by the mode of the guest's root table.
    pub reason: FaultReason,
    /// The address as the device sent it.
    pub address: Iova,
    /// What the request wanted.
    pub request: RequestType,
    /// Supervisor privilege was asked for.
    pub privileged: bool,
    /// Execution was asked for.
    pub execute: bool,
    /// An entry that the guest's tables led to disables fault processing (`FPD`), which silences
    /// qualified faults (§7.1.1).
    pub fault_processing_disabled: bool,
}

impl fmt::Display for GuestFault {
    /// One line: what was blocked and why.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.record(), f)
    }
}

impl GuestFault {
    const fn record(&self) -> FaultRecord {
        FaultRecord::new(FaultInfo {
            source_id: self.source_id,
            pasid: self.pasid,
            reason: self.reason.code(),
            address: self.address,
            request: self.request,
            privileged: self.privileged,
            execute: self.execute,
            address_type: AddressType::Untranslated,
        })
    }
}

/// The fault recording registers (§11.4.7.6) and the internal index (§7.2.1).
#[derive(Clone, Debug)]
pub(super) struct FaultRecorder {
    records: [FaultRecord; MAX_FAULT_RECORDS as usize],
    count: u8,
    next: u8,
    /// Offset of the first record, in bytes.
    offset: u16,
}

impl FaultRecorder {
    /// That of a unit that has yet to be started.
    pub(super) const VACANT: Self = Self {
        records: [FaultRecord { low: 0, high: 0 }; MAX_FAULT_RECORDS as usize],
        count: 1,
        next: 0,
        offset: 0,
    };

    /// A recorder with `count` records, 1 to [`MAX_FAULT_RECORDS`].
    pub(super) fn new(count: u8, offset: u16) -> Self {
        Self {
            count: count.clamp(1, MAX_FAULT_RECORDS),
            offset,
            ..Self::VACANT
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.count, self.offset);
    }

    /// The number of records that there are.
    pub(super) const fn count(&self) -> u8 {
        self.count
    }

    /// The index of the record that the next fault takes.
    pub(super) const fn next_index(&self) -> u8 {
        self.next
    }

    /// All records; those beyond the last are clear.
    pub(super) const fn records(&self) -> &[FaultRecord; MAX_FAULT_RECORDS as usize] {
        &self.records
    }

    /// Whether a fault is recorded that the guest has not cleared.
    pub(super) fn has_valid_record(&self) -> bool {
        self.records.iter().any(|record| record.is_valid())
    }

    /// Takes over records and the index of the next, below the number of records.
    pub(super) const fn restore(
        &mut self,
        next: u8,
        records: [FaultRecord; MAX_FAULT_RECORDS as usize],
    ) {
        self.next = next;
        self.records = records;
    }

    /// The internal index starts over while all remapping is off (§7.2.1).
    pub(super) fn restart(&mut self) {
        self.next = 0;
    }

    /// Records a fault, or counts why not.
    pub(super) fn record(
        &mut self,
        fault: &GuestFault,
        registers: &mut RegisterFile,
        statistics: &mut VirtualUnitStatistics,
    ) {
        if fault.fault_processing_disabled && fault.reason.is_qualified() {
            count(&mut statistics.faults_disabled);
            return;
        }
        let status = registers.fault_status();
        if status.contains(FaultStatus::FAULT_OVERFLOW) {
            count(&mut statistics.faults_overflowed);
            return;
        }
        let in_use = self.records.iter().take(usize::from(self.count));
        if in_use
            .filter(|record| record.is_valid())
            .any(|record| record.source_id() == fault.source_id)
        {
            count(&mut statistics.faults_compressed);
            return;
        }
        let index = self.next;
        let Some(record) = self.records.get_mut(usize::from(index)) else {
            return;
        };
        if record.is_valid() {
            count(&mut statistics.faults_overflowed);
            log::warn!("guest fault records are full: not recorded: {fault}");
            registers.set_fault_causes(FaultStatus::FAULT_OVERFLOW);
            return;
        }
        *record = fault.record();
        log::info!("guest fault {index}: {fault}");
        let next = index.saturating_add(1);
        self.next = if next < self.count { next } else { 0 };
        count(&mut statistics.faults_recorded);
        if !status.contains(FaultStatus::PRIMARY_PENDING_FAULT) {
            registers.set(
                Register::FaultStatus,
                u64::from(status.with_fault_record_index(index)),
            );
            registers.set_fault_causes(FaultStatus::PRIMARY_PENDING_FAULT);
        }
    }

    /// Which dword of which record lies at a multiple of 4.
    fn locate(&self, offset: u16) -> Option<(usize, u16)> {
        let within = offset.checked_sub(self.offset)?;
        let index = within / FAULT_RECORD_BYTES;
        (index < u16::from(self.count)).then_some((usize::from(index), within / 4 % 4))
    }

    /// Reads the dword at a multiple of 4, if it is part of a record.
    pub(super) fn read_dword(&self, offset: u16) -> Option<u32> {
        let (index, dword) = self.locate(offset)?;
        let record = self.records.get(index)?;
        Some(match dword {
            0 => record.low as u32,
            1 => (record.low >> 32) as u32,
            2 => record.high as u32,
            _ => (record.high >> 32) as u32,
        })
    }

    /// Writes to the dword at a multiple of 4: `true` if it is part of a record. Writing 1 to `F`
    /// clears it; the last one takes `PPF` with it.
    pub(super) fn write_dword(
        &mut self,
        offset: u16,
        value: u32,
        registers: &mut RegisterFile,
    ) -> bool {
        let Some((index, dword)) = self.locate(offset) else {
            return false;
        };
        if dword == 3 && value >> 31 == 1 {
            if let Some(record) = self.records.get_mut(index) {
                *record = record.cleared();
            }
            if !self.has_valid_record() {
                // The record index only counts while `PPF` is set.
                let status = registers
                    .fault_status()
                    .difference(FaultStatus::PRIMARY_PENDING_FAULT);
                registers.set(Register::FaultStatus, u64::from(status.bits()));
                registers.drop_fault_event_without_cause();
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn fault(source_id: u16, reason: FaultReason) -> GuestFault {
        GuestFault {
            source_id: SourceId::from_u16(source_id),
            pasid: Pasid::new(5),
            reason,
            address: Iova::new(0x1234_5678),
            request: RequestType::Read,
            privileged: false,
            execute: false,
            fault_processing_disabled: false,
        }
    }

    const PPF: u32 = 2;
    const PFO: u32 = 1;

    #[test]
    fn a_second_fault_of_one_device_is_compressed_and_one_of_another_overflows() {
        // S57, §7.2.1: one record.
        let mut t = Bench::with(Setup {
            fault_records: 1,
            ..Setup::default()
        });
        t.unmask_events();
        t.record(fault(0x10, FaultReason::PasidEntryNotPresent));
        assert_eq!(t.unit.read(FSTS, 4) as u32, PPF);
        assert_eq!(t.host.interrupts, [FAULT_MESSAGE]);
        t.record(fault(0x10, FaultReason::PasidEntryNotPresent));
        assert_eq!(t.unit.statistics().faults_compressed, 1);
        assert_eq!(t.unit.read(FSTS, 4) as u32, PPF);
        t.record(fault(0x18, FaultReason::PasidEntryNotPresent));
        assert_eq!(t.unit.read(FSTS, 4) as u32, PPF | PFO);
        assert_eq!(t.host.interrupts.len(), 1, "one event for all");
        // Clearing the record alone does not end the overflow; clearing both lets faults in again.
        t.unit.write(FRCD + 12, 4, 1 << 31);
        assert_eq!(t.unit.read(FSTS, 4) as u32, PFO);
        t.record(fault(0x20, FaultReason::PasidEntryNotPresent));
        assert_eq!(t.unit.read(FRCD + 12, 4) >> 31, 0);
        t.unit.write(FSTS, 4, u64::from(PFO));
        assert_eq!(t.unit.read(FSTS, 4), 0);
        t.record(fault(0x20, FaultReason::PasidEntryNotPresent));
        assert_eq!(t.host.interrupts.len(), 2);
        assert_eq!(t.unit.read(FRCD + 8, 2), 0x20);
    }

    #[test]
    fn a_record_holds_what_the_fault_was() {
        // §11.4.7.6.
        let mut t = Bench::new();
        t.record(fault(0x1234, FaultReason::FirstStageNotPresent));
        assert_eq!(t.unit.read(FRCD, 8), 0x1234_5000);
        let high = t.unit.read(FRCD + 8, 8);
        assert_eq!(high & 0xffff, 0x1234, "SID");
        assert_eq!(high >> 31 & 1, 1, "PP");
        assert_eq!(high >> 32 & 0xff, 0x71, "FR");
        assert_eq!(high >> 40 & 0xf_ffff, 5, "PV");
        assert_eq!(high >> 62, 0b11, "F and T1 of a read");
    }

    #[test]
    fn records_are_filled_in_turn_and_the_index_names_the_first() {
        // §7.2.1, §11.4.7.1.
        let mut t = Bench::new();
        for source_id in [0x10, 0x18] {
            t.record(fault(source_id, FaultReason::PasidEntryNotPresent));
        }
        assert_eq!(t.unit.read(FSTS, 4), 2);
        assert_eq!(t.unit.read(FRCD + 16 + 8, 2), 0x18);
        t.unit.write(FRCD + 12, 4, 1 << 31);
        assert_eq!(t.unit.read(FSTS, 4) & 2, 2, "one is left");
        t.unit.write(FRCD + 16 + 12, 4, 1 << 31);
        assert_eq!(t.unit.read(FSTS, 4), 0);
        t.record(fault(0x20, FaultReason::PasidEntryNotPresent));
        assert_eq!(t.unit.read(FSTS, 4), 0x202, "FRI is 2");
    }

    #[test]
    fn a_masked_event_is_pending_and_sent_when_unmasked_or_dropped_without_cause() {
        // §7.3: FECTL.IM is set after reset.
        let mut t = Bench::new();
        t.program_events();
        t.record(fault(0x10, FaultReason::PasidEntryNotPresent));
        assert_eq!(t.unit.read(FECTL, 4), 0xc000_0000);
        assert_eq!(t.host.interrupts, []);
        t.unit.write(FECTL, 4, 0);
        assert_eq!(t.unit.read(FECTL, 4), 0);
        t.run();
        assert_eq!(t.host.interrupts, [FAULT_MESSAGE]);
        // Masked again, and the cause cleared before it is unmasked.
        t.unit.write(FECTL, 4, 1 << 31);
        t.unit.write(FRCD + 12, 4, 1 << 31);
        t.record(fault(0x10, FaultReason::PasidEntryNotPresent));
        assert_eq!(t.unit.read(FECTL, 4), 0xc000_0000);
        t.unit.write(FRCD + 16 + 12, 4, 1 << 31);
        assert_eq!(t.unit.read(FECTL, 4), 0x8000_0000);
    }

    #[test]
    fn only_qualified_faults_are_silenced() {
        // S58, §7.1.1.
        let mut t = Bench::new();
        let mut silenced = fault(0x10, FaultReason::PasidEntryNotPresent);
        silenced.fault_processing_disabled = true;
        t.record(silenced);
        assert_eq!(
            (t.unit.read(FSTS, 4), t.unit.statistics().faults_disabled),
            (0, 1)
        );
        silenced.reason = FaultReason::PasidTableUnreadable;
        t.record(silenced);
        assert_eq!(t.unit.read(FSTS, 4), 2);
    }
}
