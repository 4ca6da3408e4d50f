//! Fault recording (§7.2).

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::{Pasid, SourceId};

use crate::cache::Blocked;
use crate::dma::{Access, Request};
use crate::unit::Unit;

/// Why a request of a device was blocked. Whether it was also recorded, the registers tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The reason.
    pub reason: FaultReason,
    /// The requester.
    pub source_id: SourceId,
    /// The PASID of the request, if it had one.
    pub pasid: Option<Pasid>,
    /// The address as the device sent it.
    pub address: Iova,
    /// What was asked for.
    pub access: Access,
}

/// How a request reached the unit: by its AT field (§4.1), or as a message (§7.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    Untranslated,
    TranslationRequest,
    Translated,
    PageRequest,
}

/// Table 30 and 15: whether FPD silences a reason. What is found before an entry with FPD was
/// read, and errors reading the PASID tables, are always recorded.
fn is_qualified(reason: FaultReason) -> bool {
    !matches!(
        reason.code(),
        0x01 | 0x08
            | 0x09
            | 0x0a
            | 0x20
            | 0x21
            | 0x23
            | 0x25
            | 0x29..=0x34
            | 0x38..=0x3a
            | 0x40
            | 0x50
            | 0x58
    )
}

/// The fault recording registers, PFO, PPF and FRI.
pub(crate) struct FaultRecords {
    records: Vec<[u32; 4]>,
    next: usize,
    overflow: bool,
    /// The record that set PPF.
    first: usize,
}

/// F, in the last dword.
const VALID: u32 = 1 << 31;

impl FaultRecords {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            records: vec![[0; 4]; count],
            next: 0,
            overflow: false,
            first: 0,
        }
    }

    fn is_any_valid(&self) -> bool {
        self.records.iter().any(|record| record[3] & VALID != 0)
    }

    /// PFO, PPF and FRI as they read in FSTS; FRI is 0 while PPF is.
    pub(crate) fn status(&self) -> u32 {
        let pending = if self.is_any_valid() {
            1 << 1 | (self.first as u32) << 8
        } else {
            0
        };
        u32::from(self.overflow) | pending
    }

    pub(crate) fn read(&self, record: usize, dword: u16) -> u32 {
        self.records
            .get(record)
            .map_or(0, |words| words[usize::from(dword & 3)])
    }

    pub(crate) fn clear(&mut self, record: usize) {
        if let Some(words) = self.records.get_mut(record) {
            words[3] &= !VALID;
        }
    }

    pub(crate) fn clear_overflow(&mut self) {
        self.overflow = false;
    }

    /// TES and IRES are both 0.
    pub(crate) fn restart(&mut self) {
        self.next = 0;
    }

    /// Records; whether PPF or PFO became set.
    fn record(&mut self, record: [u32; 4], compress: bool) -> bool {
        if self.overflow {
            return false;
        }
        let same_source =
            |old: &[u32; 4]| old[3] & VALID != 0 && old[2] & 0xffff == record[2] & 0xffff;
        if compress && self.records.iter().any(same_source) {
            return false;
        }
        if self.records[self.next][3] & VALID != 0 {
            self.overflow = true;
            return true;
        }
        let was_pending = self.is_any_valid();
        self.records[self.next] = record;
        if !was_pending {
            self.first = self.next;
        }
        self.next = (self.next + 1) % self.records.len();
        !was_pending
    }
}

impl Unit {
    /// A cause for a fault event: sent only if no other was pending before.
    pub(crate) fn raise_fault_event(&mut self, was_quiet: bool) {
        if was_quiet {
            self.messages.extend(self.registers.fault_event.raise());
        }
    }

    /// Whether no cause of a fault event is set.
    pub(crate) fn is_fault_event_quiet(&self) -> bool {
        (self.registers.fault_status | self.registers.records.status()) & 0xff == 0
    }

    /// Blocks an untranslated request: records the fault, unless it is silenced.
    pub(crate) fn block(&mut self, request: &Request, blocked: Blocked) -> Fault {
        self.block_from(Origin::Untranslated, request, blocked)
    }

    /// Blocks a request of any origin.
    pub(crate) fn block_from(
        &mut self,
        origin: Origin,
        request: &Request,
        blocked: Blocked,
    ) -> Fault {
        // FI has no bits above the largest width.
        let width = match self.widths() {
            0 => 64,
            widths => 30 + 9 * widths.ilog2(),
        };
        let information = request.address.as_u64() & !0xfff & !crate::bits::from_bit(width);
        self.block_with(origin, request, blocked, information)
    }

    /// [`block_from`](Self::block_from) with what the record is to hold as FI, in bits 63:12.
    pub(crate) fn block_with(
        &mut self,
        origin: Origin,
        request: &Request,
        blocked: Blocked,
        information: u64,
    ) -> Fault {
        self.counters.faults += 1;
        if !(blocked.fault_disable && is_qualified(blocked.reason)) {
            self.record(origin, request, blocked.reason, information);
        }
        Fault {
            reason: blocked.reason,
            source_id: request.source_id,
            pasid: request.pasid,
            address: request.address,
            access: request.access,
        }
    }

    fn record(&mut self, origin: Origin, request: &Request, reason: FaultReason, information: u64) {
        let (t1, t2) = match (origin, request.access) {
            (Origin::PageRequest, _) => (0, 1),
            (Origin::TranslationRequest, _) | (_, Access::Read) => (1, 0),
            (_, Access::Write) => (0, 0),
            (_, Access::Atomic) => (1, 1),
        };
        let address_type = match origin {
            Origin::Untranslated | Origin::PageRequest => 0,
            Origin::TranslationRequest => 1,
            Origin::Translated => 2,
        };
        let mut third = u32::from(request.source_id.as_u16()) | t2 << 28;
        let mut fourth = VALID | t1 << 30 | address_type << 28 | u32::from(reason.code());
        if let Some(pasid) = request.pasid {
            third |= 1 << 31 | u32::from(request.privileged) << 29;
            if (t1, t2) == (1, 0) {
                third |= u32::from(request.execute) << 30;
            }
            fourth |= pasid.as_u32() << 8;
        }
        let record = [
            information as u32,
            (information >> 32) as u32,
            third,
            fourth,
        ];
        let was_quiet = self.is_fault_event_quiet();
        if self
            .registers
            .records
            .record(record, self.config.fault_compression)
        {
            self.raise_fault_event(was_quiet);
        }
    }

    /// The AW encodings that some table of the unit may have, as a bit set.
    fn widths(&self) -> u64 {
        let mut widths = self.config.cap(Cap::ADJUSTED_GUEST_ADDRESS_WIDTHS) & 0b1110;
        if self.config.has(Ecap::FIRST_STAGE) {
            widths |= 1 << 2;
            if self.config.has_cap(Cap::FIRST_STAGE_5_LEVEL) {
                widths |= 1 << 3;
            }
        }
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(source_id: u32) -> [u32; 4] {
        [0x1000, 0, source_id, VALID | 0x71]
    }

    #[test]
    fn records_fill_in_order_and_overflow_until_cleared() {
        let mut records = FaultRecords::new(2);
        assert!(records.record(record(1), false));
        assert_eq!(records.status(), 0b10);
        assert!(!records.record(record(1), false), "PPF was set already");
        assert!(records.record(record(3), false), "overflow is an event");
        assert_eq!(records.status(), 0b11);
        records.clear(0);
        assert!(!records.record(record(4), false), "PFO blocks recording");
        records.clear_overflow();
        records.clear(1);
        assert_eq!(records.status(), 0);
        assert!(records.record(record(5), false));
        assert_eq!(records.status(), 0b10, "index went on at 0");
        assert!(!records.record(record(6), false));
        records.clear(0);
        assert_eq!(records.status() & 2, 2, "one is still valid");
    }

    #[test]
    fn the_first_index_names_the_record_that_set_pending() {
        let mut records = FaultRecords::new(4);
        records.record(record(1), false);
        records.clear(0);
        assert!(records.record(record(2), false));
        assert_eq!(records.status(), 1 << 8 | 2);
        records.clear(1);
        records.restart();
        records.record(record(3), false);
        assert_eq!(records.status(), 2);
    }

    #[test]
    fn compression_drops_a_second_fault_of_one_source() {
        let mut records = FaultRecords::new(4);
        assert!(records.record(record(1), true));
        assert!(!records.record(record(1), true));
        records.record(record(2), true);
        assert_eq!(records.read(1, 2), 2);
        assert_eq!(records.read(2, 3), 0);
        records.clear(0);
        records.record(record(1), true);
        assert_eq!(records.read(2, 2), 1);
    }

    #[test]
    fn qualified_reasons_are_those_behind_an_entry_with_fpd() {
        let always: Vec<u8> = FaultReason::ALL
            .iter()
            .filter(|reason| !is_qualified(**reason))
            .map(|reason| reason.code())
            .collect();
        assert_eq!(
            always,
            [
                0x01, 0x08, 0x09, 0x0a, 0x20, 0x21, 0x23, 0x25, 0x29, 0x2a, 0x2b, 0x30, 0x31, 0x32,
                0x33, 0x34, 0x38, 0x39, 0x3a, 0x40, 0x50, 0x58
            ]
        );
    }
}
