//! Draining the unit's fault records (§7.2, §11.4.7).

use super::unit::Unit;
use crate::arch::fault::FaultReason;
use crate::arch::id::Pasid;
use crate::arch::register::{FaultRecord, FaultStatus, Register32, Register64, RequestType};
use crate::mem::Registers;
use crate::paging::Rights;
use crate::paging::walk::Access;

/// The access that a fault record describes.
pub fn access_of(record: &FaultRecord) -> Access {
    let rights = match record.request() {
        RequestType::Write => Rights::WRITE,
        RequestType::Read => Rights::READ,
        RequestType::Atomic | RequestType::PageRequest => Rights::READ_WRITE,
    };
    Access {
        rights,
        privileged: record.is_privileged(),
    }
}

/// The PASID that the request carried.
///
/// `has_pasid` is `ECAP.PASID`. `PP` is reserved without it, yet emulated units set it, with `RID_PASID` as the PASID,
/// for requests without one. Entries of this library have `RID_PASID` 0, and a request that does
/// carry that value gets no further than SCT.9.
pub fn pasid_of(record: &FaultRecord, has_pasid: bool) -> Option<Pasid> {
    let is_carried = |pasid: &Pasid| {
        *pasid != Pasid::ZERO || record.reason_code() == FaultReason::PasidEqualsRidPasid.code()
    };
    record
        .pasid()
        .filter(|pasid| has_pasid && is_carried(pasid))
}

/// The F bit in the last dword of a record; writing it clears it.
const FAULT_DWORD3: u32 = 1 << 31;

/// Where draining goes on: behind the record that was taken last.
#[derive(Debug, Default)]
pub(super) struct FaultCursor(Option<u8>);

impl<R: Registers> Unit<R> {
    /// Takes the oldest fault record out of the unit, or `None` if there is none.
    ///
    /// One call reads each record at most once. A device can fault as fast as records are taken, so
    /// a caller must bound the number of calls in a row itself. Once the last record is
    /// taken an overflow is cleared too: hardware records nothing while that is set (§7.2.1).
    pub fn next_fault(&self) -> Option<FaultRecord> {
        let mut cursor = self.faults.lock();
        let mut registers = self.registers.lock();
        let status = registers.read32(Register32::FAULT_STATUS);
        if status == u32::MAX {
            return None;
        }
        let flags = FaultStatus::from_bits_truncate(status);
        let record = if flags.contains(FaultStatus::PRIMARY_PENDING_FAULT) {
            let first = cursor.0.unwrap_or(FaultStatus::fault_record_index(status));
            self.take_record(&mut *registers, first)
        } else {
            None
        };
        cursor.0 = record.map(|(_, next)| next);
        let status = registers.read32(Register32::FAULT_STATUS);
        let flags = FaultStatus::from_bits_truncate(status);
        if status != u32::MAX && !flags.contains(FaultStatus::PRIMARY_PENDING_FAULT) {
            cursor.0 = None;
            if flags.contains(FaultStatus::FAULT_OVERFLOW) {
                // Only this flag: the others belong to the queue.
                let overflow = FaultStatus::FAULT_OVERFLOW.bits();
                registers.write32(Register32::FAULT_STATUS, overflow);
                self.counters.fault_overflows.add(1);
            }
        }
        record.map(|(record, _)| {
            self.counters.faults.add(1);
            record
        })
    }

    /// The first record that holds a fault, from record `first` on around to it again, cleared in
    /// the unit; and the index of the one behind it.
    fn take_record(&self, registers: &mut R, first: u8) -> Option<(FaultRecord, u8)> {
        let capability = self.features.capability;
        let count = capability.fault_record_count();
        let offset = capability.fault_record_offset();
        // An index that hardware has no record for means nothing: begin with record 0.
        let first = if u16::from(first) < count {
            u16::from(first)
        } else {
            0
        };
        for step in 0..count {
            let index = u8::try_from((first + step).checked_rem(count)?).ok()?;
            // F is set last, so it is looked at before the rest is read.
            let dword3 = Register32::fault_record_dword3(offset, index)?;
            if registers.read32(dword3) & FAULT_DWORD3 == 0 {
                continue;
            }
            let record = FaultRecord {
                low: registers.read64(Register64::fault_record_low(offset, index)?),
                high: registers.read64(Register64::fault_record_high(offset, index)?),
            };
            registers.write32(dword3, FAULT_DWORD3);
            let next = (u16::from(index) + 1).checked_rem(count)?;
            return Some((record, u8::try_from(next).ok()?));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::testing::{Bench, FaultAt, IQE, bench, records};
    use super::*;
    use std::vec::Vec;

    fn drain(bench: &Bench) -> Vec<u16> {
        let mut found = Vec::new();
        while let Some(record) = bench.unit.next_fault() {
            assert!(record.is_valid());
            found.push(record.source_id().as_u16());
            assert!(found.len() < 600, "endless");
        }
        found
    }

    #[test]
    fn records_come_out_in_the_order_of_the_faults_and_their_f_bits_are_cleared() {
        let bench = bench(|options| options.capability = records(4));
        bench.world().faults = FaultAt { next: 2, first: 2 };
        for source_id in [0x10, 0x20, 0x30] {
            bench.world().record_fault(source_id);
        }
        assert_eq!(drain(&bench), [0x10, 0x20, 0x30]);
        assert_eq!(bench.world().pending_records(), 0);
        assert_eq!(bench.unit.statistics().faults, 3);
    }

    #[test]
    fn faults_that_arrive_while_draining_keep_their_order() {
        let bench = bench(|options| options.capability = records(4));
        for source_id in [1, 2, 3, 4] {
            bench.world().record_fault(source_id);
        }
        let mut found = Vec::new();
        found.push(bench.unit.next_fault().unwrap().source_id().as_u16());
        bench.world().record_fault(5); // Into the record that was just freed.
        found.extend(drain(&bench));
        assert_eq!(found, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn overflow_is_cleared_with_the_last_record_only() {
        let bench = bench(|options| options.capability = records(2));
        for source_id in [1, 2, 3] {
            bench.world().record_fault(source_id);
        }
        let overflow = FaultStatus::FAULT_OVERFLOW.bits();
        assert_eq!(bench.world().fault_status() & overflow, overflow);
        assert!(bench.unit.next_fault().is_some());
        assert_eq!(bench.world().fault_status() & overflow, overflow);
        assert!(bench.unit.next_fault().is_some());
        assert_eq!(bench.world().fault_status() & overflow, 0);
        assert_eq!(bench.unit.statistics().fault_overflows, 1);
        assert_eq!(bench.unit.next_fault(), None);
    }

    #[test]
    fn clearing_the_overflow_leaves_the_errors_of_the_queue() {
        // All of them are cleared by writing 1 (§11.4.7.1).
        let bench = bench(|options| options.capability = records(1));
        for source_id in [1, 2] {
            bench.world().record_fault(source_id);
        }
        bench.world().errors |= IQE;
        assert!(bench.unit.next_fault().is_some());
        assert_eq!(bench.world().fault_status(), IQE);
    }

    #[test]
    fn one_call_reads_a_bounded_number_of_registers_whatever_the_unit_says() {
        // PPF set and a record index beyond the records, but no record holds a fault.
        let bench = bench(|options| options.capability = records(4));
        bench.world().forced_fault_status = Some(0xff02);
        let before = bench.world().register_reads;
        assert_eq!(bench.unit.next_fault(), None);
        assert!(bench.world().register_reads - before <= 2 + 4);
        // A unit that is gone.
        bench.world().forced_fault_status = None;
        bench.world().gone = true;
        assert_eq!(bench.unit.next_fault(), None);
    }

    #[test]
    fn a_wrong_record_index_loses_no_fault() {
        let bench = bench(|options| options.capability = records(4));
        bench.world().record_fault(7);
        bench.world().forced_fault_status = Some(0xff02);
        let record = bench.unit.next_fault().unwrap();
        assert_eq!(record.source_id().as_u16(), 7);
    }
}
