//! What is recorded of faults, and the fault event.

use vtd_model::{EventKind, ModelConfig};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::{FaultRecord, FaultStatus, Register32, Register64, RequestType};
use vtd_nest::mem::Registers;

use crate::support::*;

const AT: u64 = 0x7f_1234_5678;

fn bench() -> Bench {
    Bench::new(ModelConfig::nesting_server(), Mode::Scalable)
}

fn record(bench: &Bench, index: u8) -> FaultRecord {
    let unit = &bench.machine.unit;
    FaultRecord {
        low: unit.read64(Register64::fault_record_low(0x220, index).unwrap()),
        high: unit.read64(Register64::fault_record_high(0x220, index).unwrap()),
    }
}

fn clear_record(bench: &Bench, index: u8) {
    let mut unit = bench.machine.unit.clone();
    let register = Register32::fault_record_dword3(0x220, index).unwrap();
    unit.write32(register, 1 << 31);
}

fn status(bench: &Bench) -> u32 {
    bench.machine.unit.read32(Register32::FAULT_STATUS)
}

fn unmask(bench: &Bench) {
    let mut unit = bench.machine.unit.clone();
    unit.write32(Register32::FAULT_EVENT_DATA, 0x30);
    unit.write32(Register32::FAULT_EVENT_ADDRESS, 0xfee0_1000);
    unit.write32(Register32::FAULT_EVENT_UPPER_ADDRESS, 0);
    unit.write32(Register32::FAULT_EVENT_CONTROL, 0);
}

#[test]
fn a_record_tells_the_request_as_the_device_sent_it() {
    let bench = bench();
    bench.set_context(DEVICE);
    let rows = [
        (pasid(0x12345 & 0xffff), false, 0x51),
        (None, true, 0x51),
        (pasid(0x2345), true, 0x51),
    ];
    for (index, (number, is_write, code)) in rows.into_iter().enumerate() {
        let outcome = if is_write {
            bench.write_outcome(DEVICE, number, AT)
        } else {
            bench.outcome(DEVICE, number, AT).map(|_| ())
        };
        assert_eq!(outcome, Err(code));
        let record = record(&bench, index as u8);
        assert!(record.is_valid());
        let info = record.info();
        assert_eq!(info.source_id, DEVICE);
        assert_eq!(info.pasid, number, "PP and PV, never for RID_PASID");
        assert_eq!(info.address.as_u64(), AT & !0xfff);
        assert_eq!(info.reason, code);
        let expected = if is_write {
            RequestType::Write
        } else {
            RequestType::Read
        };
        assert_eq!(info.request, expected);
    }
    assert_eq!(status(&bench), FaultStatus::PRIMARY_PENDING_FAULT.bits());
    bench.machine.unit.assert_no_violations();
}

#[test]
fn records_overflow_and_recover() {
    let bench = bench();
    unmask(&bench);
    for number in 0..10u16 {
        bench
            .outcome(SourceId::from_u16(number), None, AT)
            .unwrap_err();
    }
    // 8 records: one message for the first fault, none for the overflow on top of it.
    assert_eq!(bench.machine.unit.take_messages().len(), 1);
    assert_eq!(status(&bench) & 3, 3);
    assert_eq!(record(&bench, 7).source_id().as_u16(), 7);
    for index in 0..8 {
        assert_eq!(record(&bench, index).source_id().as_u16(), u16::from(index));
        clear_record(&bench, index);
    }
    assert_eq!(status(&bench) & 3, 1, "PPF goes with the last F, PFO stays");
    bench.outcome(DEVICE, None, AT).unwrap_err();
    assert!(!record(&bench, 0).is_valid(), "not recorded while PFO");
    let mut unit = bench.machine.unit.clone();
    unit.write32(Register32::FAULT_STATUS, 1);
    assert_eq!(status(&bench), 0);
    bench.outcome(DEVICE, None, AT).unwrap_err();
    assert!(record(&bench, 0).is_valid());
    assert_eq!(bench.machine.unit.take_messages().len(), 1);
    bench.machine.unit.assert_no_violations();
}

#[test]
fn one_record_compresses_then_overflows() {
    use vtd_nest::arch::capability::CapabilityField;
    let mut config =
        ModelConfig::nesting_server().with_capability(CapabilityField::FAULT_RECORD_COUNT, 0);
    config.fault_compression = true;
    let bench = Bench::new(config, Mode::Scalable);
    bench.outcome(DEVICE, None, AT).unwrap_err();
    bench.outcome(DEVICE, None, AT + 0x1000).unwrap_err();
    assert_eq!(status(&bench) & 3, 2, "same source-id");
    bench.outcome(OTHER, None, AT).unwrap_err();
    assert_eq!(status(&bench) & 3, 3);
    assert_eq!(record(&bench, 0).source_id(), DEVICE);
}

#[test]
fn any_fpd_on_the_way_silences_qualified_faults_only() {
    // Where FPD is set, and how deep the fault lies.
    type Change = fn(&Bench);
    let rows: &[(&str, Change, u8, bool)] = &[
        ("none", |_| {}, 0x71, true),
        (
            "entry",
            |b| b.put(b.pasid_at(DEVICE, 5), b.get(b.pasid_at(DEVICE, 5)) | 2),
            0x71,
            false,
        ),
        (
            "absent entry",
            |b| b.put(b.pasid_at(DEVICE, 5), 2),
            0x59,
            false,
        ),
        (
            "directory",
            |b| {
                let at = b.directory_at(DEVICE, 5);
                b.put(at, b.get(at) | 2);
            },
            0x71,
            false,
        ),
        (
            "absent directory",
            |b| b.put(b.directory_at(DEVICE, 5), 2),
            0x51,
            false,
        ),
        (
            "context",
            |b| {
                let at = b.context_at(DEVICE);
                b.put(at, b.get(at) | 2);
            },
            0x71,
            false,
        ),
        (
            "absent context",
            |b| b.put(b.context_at(DEVICE), 2),
            0x41,
            false,
        ),
        (
            "context, unqualified fault",
            |b| {
                b.put(b.context_at(DEVICE), 0x2000_0000_0000 | 8 | 3);
            },
            0x50,
            true,
        ),
    ];
    for (name, change, code, recorded) in rows {
        let bench = bench();
        bench.set_pasid(DEVICE, 5, bench.first_entry(7, bench.page()));
        change(&bench);
        for round in 0..2 {
            assert_eq!(
                bench.outcome(DEVICE, pasid(5), AT),
                Err(*code),
                "{name} {round}"
            );
        }
        assert_eq!(record(&bench, 0).is_valid(), *recorded, "{name}");
    }
}

#[test]
fn the_fault_event_is_held_back_by_the_mask_and_sent_once() {
    let bench = bench();
    let mut unit = bench.machine.unit.clone();
    unit.write32(Register32::FAULT_EVENT_DATA, 0x30);
    unit.write32(Register32::FAULT_EVENT_ADDRESS, 0xfee0_1000);
    bench.outcome(DEVICE, None, AT).unwrap_err();
    assert!(unit.take_messages().is_empty());
    assert_eq!(unit.read32(Register32::FAULT_EVENT_CONTROL), 0xc000_0000);
    unit.write32(Register32::FAULT_EVENT_CONTROL, 0);
    let messages = unit.take_messages();
    assert_eq!(messages.len(), 1);
    assert_eq!(
        (messages[0].kind, messages[0].address, messages[0].data),
        (EventKind::Fault, 0xfee0_1000, 0x30)
    );
    assert_eq!(unit.read32(Register32::FAULT_EVENT_CONTROL), 0);
    bench.outcome(OTHER, None, AT).unwrap_err();
    assert!(unit.take_messages().is_empty(), "PPF was set");
    // Masked, pending, and the causes cleared: nothing is left to send.
    clear_record(&bench, 0);
    clear_record(&bench, 1);
    unit.write32(Register32::FAULT_EVENT_CONTROL, 1 << 31);
    bench.outcome(OTHER, None, AT).unwrap_err();
    clear_record(&bench, 2);
    assert_eq!(unit.read32(Register32::FAULT_EVENT_CONTROL), 1 << 31);
    unit.write32(Register32::FAULT_EVENT_CONTROL, 0);
    assert!(unit.take_messages().is_empty());
    unit.assert_no_violations();
}

#[test]
fn blocked_requests_move_nothing() {
    use vtd_nest::arch::address::Iova;
    let bench = bench();
    let root = bench.page();
    let page = bench.data_page(0x1111);
    let behind = bench.page();
    bench.map_first(root, 0x5000, page);
    bench.set_pasid(DEVICE, 0, bench.first_entry(7, root));
    let unit = &bench.machine.unit;
    let mut bytes = [0xee; 16];
    let fault = unit
        .dma_read(DEVICE, None, Iova::new(0x5ff8), &mut bytes)
        .unwrap_err();
    assert_eq!(
        (fault.reason.code(), fault.address.as_u64()),
        (0x71, 0x6000)
    );
    assert_eq!(bytes[8..], [0xee; 8]);
    unit.dma_write(DEVICE, None, Iova::new(0x5ff8), &[9; 16])
        .unwrap_err();
    assert_eq!(bench.get(page + 0xff8), 0x0909_0909_0909_0909);
    assert_eq!(bench.get(behind), 0, "the page behind it in memory");
}
