//! Page requests, their queue and event, and page group responses (§7.4 to §7.10).

use vtd_model::{
    DmaError, EventKind, ModelConfig, Pace, PageRequest, PageRequestOutcome, PageResponse,
    ResponseCode, Violation,
};
use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::ExtendedCapabilityField as Ecap;
use vtd_nest::arch::id::Pasid;
use vtd_nest::arch::register::{FaultRecord, Register32, Register64, RequestType};
use vtd_nest::mem::{HostMemory, Registers};

use crate::support::*;
use crate::walks::{AT, Binding, bind, clear, scalable_faults, set};

/// DTE and PRE of a context entry.
const DTE_PRE: u64 = 1 << 2 | 1 << 4;
/// PRS.
const PENDING: u32 = 1;
const OVERFLOW: u32 = 2;
/// Requests that a queue of one page holds: all entries but one.
const CAPACITY: u16 = 127;

/// A bench with PASIDs 5 and 0 bound, page requests allowed, and a queue of one page: its address.
fn bound(config: ModelConfig, binding: Binding) -> (Bench, crate::walks::Tables, u64) {
    let bench = Bench::new(config, Mode::Scalable);
    let queue = set_up(&bench);
    let tables = bind(&bench, binding);
    set(&bench, tables.context, DTE_PRE);
    (bench, tables, queue)
}

fn server(binding: Binding) -> (Bench, crate::walks::Tables, u64) {
    bound(ModelConfig::device_tlb_server(), binding)
}

fn set_up(bench: &Bench) -> u64 {
    let queue = bench.page();
    let mut unit = bench.machine.unit.clone();
    unit.write64(Register64::PAGE_REQUEST_QUEUE_HEAD, 0);
    unit.write64(Register64::PAGE_REQUEST_QUEUE_TAIL, 0);
    unit.write64(Register64::PAGE_REQUEST_QUEUE_ADDRESS, queue);
    queue
}

fn request(pasid: Option<Pasid>, at: u64, group: u16) -> PageRequest {
    PageRequest::new(DEVICE, pasid, Iova::new(at), true, group)
}

fn tail(bench: &Bench) -> u64 {
    bench
        .machine
        .unit
        .read64(Register64::PAGE_REQUEST_QUEUE_TAIL)
}

fn set_head(bench: &Bench, head: u64) {
    let mut unit = bench.machine.unit.clone();
    unit.write64(Register64::PAGE_REQUEST_QUEUE_HEAD, head);
}

fn status(bench: &Bench) -> u32 {
    bench.machine.unit.read32(Register32::PAGE_REQUEST_STATUS)
}

fn clear_status(bench: &Bench, bits: u32) {
    let mut unit = bench.machine.unit.clone();
    unit.write32(Register32::PAGE_REQUEST_STATUS, bits);
}

fn set_mask(bench: &Bench, masked: bool) {
    let mut unit = bench.machine.unit.clone();
    let control = Register32::PAGE_REQUEST_EVENT_CONTROL;
    unit.write32(control, u32::from(masked) << 31);
}

fn response(pasid: Option<u32>, group: u16, code: u64) -> [u64; 2] {
    let number = u64::from(DEVICE.as_u16());
    let with_pasid = pasid.map_or(0, |pasid| 1 << 4 | u64::from(pasid) << 32);
    [
        9 | with_pasid | code << 12 | number << 16,
        u64::from(group) << 3,
    ]
}

fn sent(pasid: Option<Pasid>, group: u16, code: ResponseCode, automatic: bool) -> PageResponse {
    PageResponse {
        source_id: DEVICE,
        pasid,
        group,
        code,
        automatic,
    }
}

fn take_record(bench: &Bench) -> Option<FaultRecord> {
    let mut unit = bench.machine.unit.clone();
    let record = FaultRecord {
        low: unit.read64(Register64::fault_record_low(0x220, 0).unwrap()),
        high: unit.read64(Register64::fault_record_high(0x220, 0).unwrap()),
    };
    unit.write32(Register32::fault_record_dword3(0x220, 0).unwrap(), 1 << 31);
    record.is_valid().then_some(record)
}

#[test]
fn requests_are_written_to_the_queue_and_answered_by_software() {
    let (bench, _, queue) = server(Binding::First);
    let unit = &bench.machine.unit;
    let first = PageRequest {
        last: false,
        ..request(pasid(5), AT, 3)
    };
    let second = request(pasid(5), AT + 0x1000, 3);
    let without = PageRequest {
        write: false,
        ..request(None, AT, 0x1ff)
    };
    for asked in [first, second, without] {
        assert_eq!(unit.page_request(&asked), PageRequestOutcome::Queued);
    }
    assert_eq!((tail(&bench), status(&bench)), (96, PENDING));
    let id = u64::from(DEVICE.as_u16());
    for (index, low, high) in [
        (0, 0x101 | id << 16 | 5 << 32, AT | 3 << 3 | 3),
        (1, 0x101 | id << 16 | 5 << 32, (AT + 0x1000) | 3 << 3 | 7),
        (2, 1 | id << 16 | 0xf_ffff << 32, AT | 0x1ff << 3 | 5),
    ] {
        let at = queue + 32 * index;
        let words = [0, 8, 16, 24].map(|offset| bench.get(at + offset));
        assert_eq!(words, [low, high, 0, 0], "{index}");
    }
    assert_eq!(unit.unanswered_page_requests(), [second, without]);
    assert_eq!(unit.pending_page_requests(DEVICE).len(), 3);
    // The two groups are answered.
    assert!(bench.submit(&[response(Some(5), 3, 0), response(None, 0x1ff, 1)]));
    assert_eq!(
        unit.take_page_responses(),
        [
            sent(pasid(5), 3, ResponseCode::Success, false),
            sent(None, 0x1ff, ResponseCode::InvalidRequest, false),
        ]
    );
    assert!(unit.unanswered_page_requests().is_empty());
    assert!(unit.pending_page_requests(DEVICE).is_empty());
    unit.assert_no_violations();
}

#[test]
fn faults_are_recorded_and_answered_invalid_request() {
    let config = ModelConfig::nesting_server()
        .with_extended(Ecap::DEVICE_TLB, 1)
        .with_extended(Ecap::PAGE_REQUESTS, 1);
    for (code, name, binding, change) in scalable_faults() {
        if *name == "DTE without DT" {
            continue;
        }
        for last in [false, true] {
            let (bench, tables, _) = bound(config.clone(), *binding);
            change(&bench, &tables);
            let unit = &bench.machine.unit;
            let asked = PageRequest {
                last,
                ..request(pasid(5), AT, 9)
            };
            let outcome = unit.page_request(&asked);
            let record = take_record(&bench);
            // Page tables are not looked at.
            let is_fault = *code <= 0x5b;
            assert_eq!(record.is_some(), is_fault, "{name}");
            if !is_fault {
                assert_eq!(outcome, PageRequestOutcome::Queued, "{name}");
                continue;
            }
            let PageRequestOutcome::Fault(fault) = outcome else {
                panic!("{name}: {outcome:?}");
            };
            assert_eq!(fault.reason.code(), *code, "{name}");
            let info = record.unwrap().info();
            assert_eq!(
                (info.reason, info.request, info.pasid, info.address.as_u64()),
                (*code, RequestType::PageRequest, pasid(5), AT),
                "{name}"
            );
            let answers = unit.take_page_responses();
            if last {
                let invalid = sent(pasid(5), 9, ResponseCode::InvalidRequest, true);
                assert_eq!(answers, [invalid], "{name}");
            } else {
                assert!(answers.is_empty(), "{name}");
            }
            assert_eq!((tail(&bench), status(&bench)), (0, 0), "{name}");
            unit.assert_no_violations();
        }
    }
}

#[test]
fn the_context_entry_has_to_allow_page_requests() {
    const DTE: u64 = 1 << 2;
    const PRE: u64 = 1 << 4;
    for (number, flags, code) in [
        (pasid(5), DTE | PRE, None),
        (None, DTE | PRE, None),
        (pasid(5), DTE, Some(0x47)),
        (None, DTE, Some(0x47)),
        (None, 0, Some(0x47)),
        // DTE=0 with PRE=1 contradicts itself.
        (None, PRE, Some(0x43)),
        (pasid(0), DTE | PRE, Some(0x48)),
        (pasid(0x1_0000), DTE | PRE, Some(0x46)),
        // PRE comes before RID_PASID, and behind the directory's size.
        (pasid(0), DTE, Some(0x47)),
        (pasid(0x1_0000), DTE, Some(0x46)),
    ] {
        let (bench, tables, _) = server(Binding::Second);
        clear(&bench, tables.context, DTE_PRE);
        set(&bench, tables.context, flags);
        let unit = &bench.machine.unit;
        let outcome = unit.page_request(&request(number, AT, 1));
        let found = match outcome {
            PageRequestOutcome::Fault(fault) => Some(fault.reason.code()),
            _ => None,
        };
        assert_eq!(found, code, "{number:?} {flags:#x}");
        assert_eq!(
            unit.take_page_responses().len(),
            usize::from(code.is_some())
        );
    }
    // Silenced, the request is answered all the same.
    let (bench, tables, _) = server(Binding::Second);
    clear(&bench, tables.context, PRE);
    set(&bench, tables.context, 2);
    let unit = &bench.machine.unit;
    unit.page_request(&request(None, AT, 1));
    assert!(take_record(&bench).is_none());
    assert_eq!(unit.take_page_responses().len(), 1);
}

#[test]
fn page_requests_need_scalable_mode_and_the_capability() {
    let config = ModelConfig::device_tlb_server();
    let bench = Bench::new(config.clone(), Mode::Legacy);
    let unit = &bench.machine.unit;
    let outcome = unit.page_request(&request(None, AT, 2));
    assert!(matches!(outcome, PageRequestOutcome::Fault(fault) if fault.reason.code() == 0x32));
    let invalid = sent(None, 2, ResponseCode::InvalidRequest, true);
    assert_eq!(unit.take_page_responses(), [invalid]);

    let without = config.clone().with_extended(Ecap::PAGE_REQUESTS, 0);
    for bench in [
        Bench::new(without, Mode::Scalable),
        Bench::off(config, Mode::Scalable),
    ] {
        let unit = &bench.machine.unit;
        let outcome = unit.page_request(&request(None, AT, 2));
        assert_eq!(outcome, PageRequestOutcome::Unsupported);
        assert!(unit.take_page_responses().is_empty());
    }
}

#[test]
fn a_full_queue_overflows_and_the_unit_answers_success() {
    let (bench, _, _) = server(Binding::First);
    let unit = &bench.machine.unit;
    for group in 0..CAPACITY {
        let outcome = unit.page_request(&request(pasid(5), AT, group));
        assert_eq!(outcome, PageRequestOutcome::Queued);
    }
    assert_eq!((tail(&bench), status(&bench)), (32 * 127, PENDING));
    let late = request(pasid(5), AT, 0x100);
    let in_between = PageRequest {
        last: false,
        ..late
    };
    assert_eq!(unit.page_request(&in_between), PageRequestOutcome::Overflow);
    assert!(unit.take_page_responses().is_empty());
    assert_eq!(unit.page_request(&late), PageRequestOutcome::Overflow);
    let success = sent(pasid(5), 0x100, ResponseCode::Success, true);
    assert_eq!(unit.take_page_responses(), [success]);
    assert_eq!(
        (tail(&bench), status(&bench)),
        (32 * 127, PENDING | OVERFLOW)
    );
    assert!(take_record(&bench).is_none());
    // Room alone does not end it.
    set_head(&bench, 32 * 127);
    clear_status(&bench, PENDING);
    assert_eq!(unit.page_request(&late), PageRequestOutcome::Overflow);
    assert_eq!(status(&bench), OVERFLOW);
    clear_status(&bench, OVERFLOW);
    // The queue wraps.
    assert_eq!(unit.page_request(&late), PageRequestOutcome::Queued);
    assert_eq!((tail(&bench), status(&bench)), (0, PENDING));
    unit.take_page_responses();
    // A fault is one still while the queue is full.
    clear(&bench, bench.pasid_at(DEVICE, 5), 1);
    assert!(bench.submit(&[pasid_cache(7, 5)]));
    let outcome = unit.page_request(&late);
    assert!(matches!(outcome, PageRequestOutcome::Fault(fault) if fault.reason.code() == 0x59));
    unit.assert_no_violations();
}

#[test]
fn larger_queues_hold_more() {
    let (bench, _, queue) = server(Binding::First);
    let mut unit = bench.machine.unit.clone();
    for _ in 0..3 {
        bench.page();
    }
    unit.write64(Register64::PAGE_REQUEST_QUEUE_ADDRESS, queue | 2);
    let queued = (0..600)
        .take_while(|_| unit.page_request(&request(pasid(5), AT, 1)) == PageRequestOutcome::Queued)
        .count();
    assert_eq!(queued, 511);
    assert_eq!(bench.get(queue + 32 * 510), bench.get(queue));
}

#[test]
fn one_event_is_sent_until_its_causes_are_cleared() {
    let (bench, _, _) = server(Binding::First);
    let mut unit = bench.machine.unit.clone();
    unit.write32(Register32::PAGE_REQUEST_EVENT_DATA, 0x52);
    unit.write32(Register32::PAGE_REQUEST_EVENT_ADDRESS, 0xfee0_3000);
    unit.write32(Register32::PAGE_REQUEST_EVENT_UPPER_ADDRESS, 1);
    let ask = || {
        bench.machine.unit.page_request(&request(pasid(5), AT, 1));
    };
    let control = || {
        bench
            .machine
            .unit
            .read32(Register32::PAGE_REQUEST_EVENT_CONTROL)
    };
    ask();
    assert!(unit.take_messages().is_empty(), "masked after reset");
    assert_eq!(control(), 3 << 30);
    set_mask(&bench, false);
    let messages = unit.take_messages();
    assert_eq!(messages.len(), 1);
    let message = messages[0];
    assert_eq!(
        (message.kind, message.address, message.data),
        (EventKind::PageRequest, 0x1_fee0_3000, 0x52)
    );
    assert_eq!(control(), 0);
    ask();
    assert!(unit.take_messages().is_empty(), "PPR is still set");
    clear_status(&bench, PENDING);
    ask();
    assert_eq!(unit.take_messages().len(), 1);
    // What pends goes with its last cause.
    clear_status(&bench, PENDING);
    set_mask(&bench, true);
    ask();
    assert_eq!(control(), 3 << 30);
    clear_status(&bench, PENDING);
    assert_eq!(control(), 1 << 31);
    set_mask(&bench, false);
    assert!(unit.take_messages().is_empty());
    // An overflow is a cause too, and one more while the other is set is none.
    while unit.page_request(&request(pasid(5), AT, 1)) == PageRequestOutcome::Queued {
        clear_status(&bench, PENDING);
    }
    let count = unit.take_messages().len();
    assert_eq!(count, usize::from(CAPACITY) - 4 + 1);
    assert_eq!(status(&bench), OVERFLOW);
    set_head(&bench, tail(&bench));
    ask();
    assert!(unit.take_messages().is_empty());
    // With PPR set, an overflow sends nothing more.
    clear_status(&bench, OVERFLOW);
    while unit.page_request(&request(pasid(5), AT, 1)) == PageRequestOutcome::Queued {}
    assert_eq!(status(&bench), PENDING | OVERFLOW);
    assert_eq!(unit.take_messages().len(), 1);
    unit.assert_no_violations();
}

#[test]
fn a_request_empties_the_units_own_caches_of_its_page() {
    // Table 27: whether a neighbouring page stays cached too.
    for (binding, neighbour_stays) in [
        (Binding::First, true),
        (Binding::Second, true),
        (Binding::Nested, false),
    ] {
        let (bench, tables, _) = server(binding);
        let unit = &bench.machine.unit;
        let leaf = match binding {
            Binding::Second => tables.second[3],
            _ => tables.first[3],
        };
        // The next page too.
        bench.put(leaf + 8, bench.get(leaf));
        for at in [AT, AT + 0x1000] {
            bench.outcome(DEVICE, pasid(5), at).unwrap();
        }
        bench.put(leaf, 0);
        bench.put(leaf + 8, 0);
        assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a), "cached");
        assert_eq!(
            unit.page_request(&request(pasid(5), AT, 1)),
            PageRequestOutcome::Queued
        );
        let absent = if binding == Binding::Second {
            0x79
        } else {
            0x71
        };
        assert_eq!(
            bench.outcome(DEVICE, pasid(5), AT),
            Err(absent),
            "{binding:?}"
        );
        let neighbour = bench.outcome(DEVICE, pasid(5), AT + 0x1000);
        assert_eq!(neighbour.is_ok(), neighbour_stays, "{binding:?}");
    }
}

#[test]
fn a_nested_request_empties_the_second_stage_too() {
    let (bench, tables, _) = server(Binding::Nested);
    bench.outcome(DEVICE, pasid(5), AT).unwrap();
    // The table that holds the page's second-stage entry is gone.
    bench.put(tables.second[2], 0);
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a), "cached");
    bench.machine.unit.page_request(&request(pasid(5), AT, 1));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x79));
}

#[test]
fn a_device_recovers_from_a_missing_page() {
    let (bench, tables, _) = server(Binding::First);
    let unit = &bench.machine.unit;
    let device = unit.initiator(DEVICE).with_pasid(Pasid::new(5).unwrap());
    let device = device.through_device_tlb();
    let at = Iova::new(AT);
    // Read-only: the device holds the page so, and what the tables say later does not help it.
    clear(&bench, tables.first[3], 2);
    assert_eq!(device.write(at, &[1; 8]), Err(DmaError::Recoverable));
    set(&bench, tables.first[3], 2);
    assert_eq!(device.write(at, &[1; 8]), Err(DmaError::Recoverable));
    unit.page_request(&request(pasid(5), AT, 8));
    assert_eq!(device.write(at, &[1; 8]), Err(DmaError::Recoverable));
    assert!(bench.submit(&[response(Some(5), 8, 0)]));
    device.write(at, &[1; 8]).unwrap();
    unit.assert_no_violations();
}

#[test]
fn responses_have_to_fit_a_request_and_have_a_code() {
    let (bench, _, _) = server(Binding::First);
    let unit = &bench.machine.unit;
    unit.page_request(&request(pasid(5), AT, 8));
    let unexpected = |pasid, group| Violation::PageResponseUnexpected {
        source_id: DEVICE,
        pasid,
        group,
    };
    for (descriptor, expected) in [
        (response(Some(6), 8, 0), vec![unexpected(Some(6), 8)]),
        (response(None, 8, 0), vec![unexpected(None, 8)]),
        (response(Some(5), 9, 0), vec![unexpected(Some(5), 9)]),
        (
            response(Some(5), 8, 2),
            vec![Violation::PageResponseCode { code: 2 }],
        ),
        (response(Some(5), 8, 0), vec![unexpected(Some(5), 8)]),
    ] {
        assert!(bench.submit(&[descriptor]));
        assert_eq!(unit.take_violations(), expected, "{descriptor:x?}");
    }
    // Bit 66 is ignored, and a PASID without PP too.
    unit.page_request(&request(None, AT, 8));
    let [low, high] = response(None, 8, 15);
    assert!(bench.submit(&[[low | 7 << 32, high | 4]]));
    let responses = unit.take_page_responses();
    assert_eq!(
        responses.last(),
        Some(&sent(None, 8, ResponseCode::Failure, false))
    );
    unit.assert_no_violations();
}

#[test]
fn only_the_last_request_of_a_group_is_answered() {
    let (bench, _, _) = server(Binding::First);
    let unit = &bench.machine.unit;
    unit.page_request(&PageRequest {
        last: false,
        ..request(pasid(5), AT, 8)
    });
    assert!(bench.submit(&[response(Some(5), 8, 0)]));
    assert_eq!(unit.take_violations().len(), 1);
    unit.page_request(&request(pasid(5), AT, 8));
    assert!(bench.submit(&[response(Some(5), 8, 0)]));
    unit.assert_no_violations();
}

#[test]
fn stop_markers_are_queued_and_never_answered() {
    let marker = PageRequest::stop_marker(DEVICE, Pasid::new(5).unwrap());
    for (supported, lost) in [(1, false), (0, true)] {
        let config = ModelConfig::device_tlb_server().with_extended(Ecap::STOP_MARKERS, supported);
        let (bench, tables, queue) = bound(config, Binding::First);
        let unit = &bench.machine.unit;
        assert_eq!(unit.page_request(&marker), PageRequestOutcome::Queued);
        assert_eq!(bench.get(queue + 8) & 7, 4);
        assert!(unit.unanswered_page_requests().is_empty());
        unit.assert_no_violations();
        // One that cannot be queued.
        clear(&bench, tables.context, DTE_PRE);
        assert!(bench.submit(&[context_device(DEVICE, 0)]));
        assert!(matches!(
            unit.page_request(&marker),
            PageRequestOutcome::Fault(_)
        ));
        assert!(unit.take_page_responses().is_empty());
        let violation = Violation::StopMarkerLost { source_id: DEVICE };
        assert_eq!(unit.take_violations().contains(&violation), lost);
    }
}

#[test]
fn a_draining_wait_completes_behind_what_came_before_the_devices_completion() {
    // Whether the wait asks for it, whether a device-TLB invalidation is in the batch, whether the
    // request is in the queue when the wait has completed.
    for (drains, invalidates, delivered) in [
        (true, true, true),
        (false, true, false),
        (true, false, false),
    ] {
        let mut config = ModelConfig::device_tlb_server();
        config.page_request_pace = Pace::Manual;
        let (bench, _, queue) = bound(config, Binding::First);
        let unit = &bench.machine.unit;
        let outcome = unit.page_request(&request(pasid(5), AT, 1));
        assert_eq!(outcome, PageRequestOutcome::Received);
        let number = u64::from(DEVICE.as_u16());
        let function = (number & 0xf) << 12 | number >> 4 << 52;
        let device_tlb = [3 | number << 32 | function, 0x7fff_ffff_ffff_f001];
        let [wait, at] = bench.wait_descriptor(0x99);
        let wait = [wait | u64::from(drains) << 7, at];
        // §7.10: fence, invalidations, wait.
        let mut batch = vec![[0x45, 0], pasid_iotlb_all(7, 5)];
        if invalidates {
            batch.push(device_tlb);
        }
        batch.push(wait);
        bench.post(&batch);
        assert!(bench.is_done(0x99));
        assert_eq!(bench.get(queue) != 0, delivered, "{drains} {invalidates}");
        assert_eq!(tail(&bench), if delivered { 32 } else { 0 });
        unit.run();
        assert_eq!(tail(&bench), 32);
        unit.assert_no_violations();
    }
}

#[test]
fn requests_arrive_late_in_order() {
    let mut config = ModelConfig::device_tlb_server();
    config.page_request_pace = Pace::After(100);
    let (bench, _, queue) = bound(config, Binding::First);
    let unit = &bench.machine.unit;
    for group in [1, 2] {
        unit.page_request(&request(pasid(5), AT, group));
    }
    assert_eq!(tail(&bench), 0);
    bench.machine.hypervisor.clock().advance(100);
    assert_eq!(tail(&bench), 64);
    let groups = [0, 1].map(|index| bench.get(queue + 32 * index + 8) >> 3 & 0x1ff);
    assert_eq!(groups, [1, 2]);
}

#[test]
fn the_queue_has_to_be_memory_and_set_up_first() {
    let config = ModelConfig::device_tlb_server();
    let bench = Bench::new(config, Mode::Scalable);
    let tables = bind(&bench, Binding::First);
    set(&bench, tables.context, DTE_PRE);
    let mut unit = bench.machine.unit.clone();
    let asked = request(pasid(5), AT, 1);
    assert_eq!(unit.page_request(&asked), PageRequestOutcome::Lost);
    assert_eq!(unit.take_violations(), [Violation::PageRequestQueueNotSet]);
    unit.write64(Register64::PAGE_REQUEST_QUEUE_ADDRESS, 0x2000_0000_0000);
    assert_eq!(unit.page_request(&asked), PageRequestOutcome::Lost);
    let address = 0x2000_0000_0000;
    assert_eq!(
        unit.take_violations(),
        [Violation::PageRequestQueueAddress { address }]
    );
}

#[test]
fn heads_move_over_requests_and_the_tail_is_hardwares() {
    let (bench, _, _) = server(Binding::First);
    let mut unit = bench.machine.unit.clone();
    for group in 0..3 {
        unit.page_request(&request(pasid(5), AT, group));
    }
    let misplaced = |old, new| Violation::PageRequestHeadMisplaced { old, new, tail: 96 };
    for (new, expected) in [
        (32, vec![]),
        (96, vec![]),
        (64, vec![misplaced(96, 64)]),
        (128, vec![misplaced(64, 128)]),
        (4096, vec![misplaced(128, 4096)]),
    ] {
        set_head(&bench, new);
        assert_eq!(unit.take_violations(), expected, "{new}");
    }
    unit.write64(Register64::PAGE_REQUEST_QUEUE_TAIL, 32);
    assert_eq!(
        unit.take_violations(),
        [Violation::PageRequestTailWritten { value: 32 }]
    );
    unit.write32(Register32::PAGE_REQUEST_STATUS, 4);
    assert_eq!(unit.take_violations().len(), 1, "reserved");
    // To begin anew is allowed.
    set_up(&bench);
    unit.assert_no_violations();
}

#[test]
fn descriptors_are_visible_without_flushing() {
    let mut config = ModelConfig::device_tlb_server();
    config.extended = config
        .extended
        .with(Ecap::COHERENCY, 0)
        .with(Ecap::PAGE_WALK_COHERENCY, 0);
    let (bench, _, queue) = bound(config, Binding::First);
    // The processor has the line.
    bench.machine.memory.write64(Hpa::new(queue), 0x1234);
    bench.machine.unit.page_request(&request(pasid(5), AT, 1));
    assert_eq!(bench.get(queue) & 0xff, 1);
    bench.machine.unit.assert_no_violations();
}
