extern crate std;
use std::vec::Vec;

use super::super::fault::{GuestFault, MAX_FAULT_RECORDS};
use super::super::testing::*;
use super::*;
use crate::arch::address::Iova;
use crate::arch::fault::FaultReason;
use crate::arch::register::RequestType;

/// Of each byte of the window: its value after a reset, the bits that keep what is written, the
/// bits that can be read.
fn expected_bytes(features: &Features) -> Vec<(u8, u8, u8)> {
    let mut bytes = std::vec![(0, 0, 0); REGISTER_WINDOW_BYTES as usize];
    for register in REGISTERS {
        if register.name == "IRTA_REG" && !features.extended.has_interrupt_remapping() {
            continue;
        }
        let start = match register.place {
            Place::At(start) => start,
            Place::Iotlb(within) => features.extended.iotlb_register_offset() + within,
            // Clear after a reset, and nothing in them keeps what is written.
            Place::FaultRecords => continue,
        };
        let reset = match register.name {
            "CAP_REG" => features.capability.bits(),
            "ECAP_REG" => features.extended.bits(),
            _ => register.reset,
        };
        let parts = [reset, register.writable, register.readable].map(u64::to_le_bytes);
        for index in 0..usize::from(register.len_bytes) {
            let [reset, writable, readable] = parts.map(|bytes| bytes[index]);
            let place = &mut bytes[usize::from(start) + index];
            assert_eq!(*place, (0, 0, 0), "{}: taken", register.name);
            *place = (reset & readable, writable, readable);
        }
    }
    bytes
}

#[test]
fn a_write_of_any_width_at_any_offset_changes_what_the_table_says_and_no_more() {
    // S56, G37: every offset, 1, 2, 4 and 8 bytes, all ones and a pattern.
    let mut t = Bench::new();
    let features = *t.unit.features();
    let table = expected_bytes(&features);
    // What a command register holds after a command is the command's business.
    let iotlb = features.extended.iotlb_register_offset() + 8;
    let commands = [0x28..0x30, iotlb..iotlb + 8];
    let is_command = |at: usize| commands.iter().any(|range| range.contains(&(at as u16)));
    for len in [1u8, 2, 4, 8] {
        for value in [u64::MAX, 0x0123_4567_89ab_cdef] {
            for offset in 0..table.len() {
                t.unit.reset();
                t.unit.write(offset as u64, len, value);
                let covered = offset..offset + usize::from(len);
                // A few quadwords around the write, and now and then all of them.
                let all = offset % 512 == 0;
                let near = (offset & !7).saturating_sub(8)..(offset + 24).min(table.len());
                let seen = if all { 0..table.len() } else { near };
                for at in seen.filter(|at| !is_command(*at)) {
                    let (reset, writable, readable) = table[at];
                    let expected = if covered.contains(&at) {
                        let byte = value.to_le_bytes()[at - offset];
                        (reset & !writable | byte & writable) & readable
                    } else {
                        reset
                    };
                    assert_eq!(
                        t.unit.read(at as u64, 1),
                        u64::from(expected),
                        "{at:#x} after {len} bytes at {offset:#x}"
                    );
                }
            }
        }
    }
}

fn fault(source_id: u16) -> GuestFault {
    GuestFault {
        source_id: sid(source_id),
        pasid: None,
        reason: FaultReason::PasidEntryNotPresent,
        address: Iova::new(0x7000),
        request: RequestType::Read,
        privileged: false,
        execute: false,
        fault_processing_disabled: false,
    }
}

#[test]
fn there_are_as_many_fault_records_as_configured() {
    // §11.4.2 `NFR`, §7.2.1.
    for count in 1..=MAX_FAULT_RECORDS {
        let mut t = Bench::with(Setup {
            fault_records: count,
            ..Setup::default()
        });
        for index in 0..u16::from(count) {
            t.record(fault(index));
            let at = FRCD + u64::from(index) * 16;
            assert_eq!(t.unit.read(at + 8, 2), u64::from(index));
            assert_eq!(t.unit.read(at + 15, 1) >> 7, 1, "F");
            assert_eq!(t.unit.read(FSTS, 4), 2, "PPF, and FRI 0");
        }
        t.record(fault(0x100));
        assert_eq!(t.unit.read(FSTS, 4), 3, "PFO with it");
        let behind = FRCD + u64::from(count) * 16;
        assert_eq!((t.unit.read(behind, 8), t.unit.read(behind + 8, 8)), (0, 0));
        // Cleared in any order; the last one takes PPF along, not PFO.
        for index in (0..u64::from(count)).rev() {
            assert_eq!(t.unit.read(FSTS, 4), 3);
            t.unit.write(FRCD + index * 16 + 15, 1, 0x80);
        }
        assert_eq!(t.unit.read(FSTS, 4), 1);
        t.unit.write(FSTS, 1, 1);
        assert_eq!(t.unit.read(FSTS, 4), 0);
    }
}

/// One of the two events: its control register, its message, how it comes about and how its
/// cause goes.
struct EventCase {
    control: u64,
    message: (u64, u32),
    raise: fn(&mut Bench),
    clear: fn(&mut Bench),
}

const EVENTS: [EventCase; 2] = [
    EventCase {
        control: FECTL,
        message: FAULT_MESSAGE,
        raise: |t| t.record(fault(0x10)),
        clear: |t| {
            for index in 0..4 {
                t.unit.write(FRCD + index * 16 + 12, 4, 1 << 31);
            }
        },
    },
    EventCase {
        control: IECTL,
        message: COMPLETION_MESSAGE,
        raise: |t| t.submit_raw(wait(STATUS, 1, true)),
        clear: |t| t.unit.write(ICS, 4, 1),
    },
];

const IM: u64 = 1 << 31;
const IP: u64 = 1 << 30;

fn event_bench(case: &EventCase, is_masked: bool) -> Bench {
    let mut t = Bench::scalable();
    t.program_events();
    if !is_masked {
        t.unit.write(case.control, 4, 0);
    }
    t.forget();
    t
}

#[test]
fn both_events_are_sent_once_for_a_cause_and_again_after_it_was_cleared() {
    // §7.3, §6.5.2.10.
    for case in &EVENTS {
        let mut t = event_bench(case, false);
        for round in 1..4 {
            (case.raise)(&mut t);
            (case.raise)(&mut t);
            assert_eq!(t.host.interrupts, [case.message].repeat(round));
            assert_eq!(t.unit.read(case.control, 4), 0, "not pending");
            (case.clear)(&mut t);
        }
    }
}

#[test]
fn both_events_are_held_back_while_masked_and_sent_when_unmasked() {
    for case in &EVENTS {
        let mut t = event_bench(case, true);
        (case.raise)(&mut t);
        assert_eq!(t.unit.read(case.control, 4), IM | IP);
        // `IP` is read only, and so is everything but `IM`.
        t.unit.write(case.control, 4, IM);
        t.unit.write(case.control, 2, 0xffff);
        t.run();
        assert_eq!(t.unit.read(case.control, 4), IM | IP);
        assert_eq!(t.host.interrupts, []);
        t.unit.write(case.control + 3, 1, 0);
        assert_eq!(t.unit.read(case.control, 4), 0);
        t.run();
        assert_eq!(t.host.interrupts, [case.message]);
        // Masked and unmasked again: it was sent.
        t.unit.write(case.control, 4, IM);
        t.unit.write(case.control, 4, 0);
        t.run();
        assert_eq!(t.host.interrupts, [case.message]);
    }
}

#[test]
fn both_events_are_dropped_when_their_cause_is_cleared_while_masked() {
    for case in &EVENTS {
        let mut t = event_bench(case, true);
        (case.raise)(&mut t);
        (case.clear)(&mut t);
        assert_eq!(t.unit.read(case.control, 4), IM);
        t.unit.write(case.control, 4, 0);
        t.run();
        assert_eq!(t.host.interrupts, []);
        (case.raise)(&mut t);
        assert_eq!(t.host.interrupts, [case.message]);
    }
}

#[test]
fn a_message_is_the_one_programmed_when_it_is_sent() {
    for case in &EVENTS {
        let mut t = event_bench(case, true);
        (case.raise)(&mut t);
        t.unit.write(case.control + 4, 4, 0xffff_1234);
        t.unit.write(case.control, 4, 0);
        t.run();
        assert_eq!(
            t.host.interrupts,
            [(case.message.0, 0x1234)],
            "16 bits of data"
        );
    }
}
