//! The invalidation queue: order, waits, errors.

use vtd_model::{EventKind, ModelConfig, Pace, Violation};
use vtd_nest::arch::capability::ExtendedCapabilityField as Ecap;
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::{Platform, Registers};

use crate::support::*;

const IQE: u32 = 1 << 4;
const ITE: u32 = 1 << 6;

fn scalable() -> Bench {
    Bench::new(ModelConfig::nesting_server(), Mode::Scalable)
}

fn head(bench: &Bench) -> u64 {
    bench
        .machine
        .unit
        .read64(Register64::INVALIDATION_QUEUE_HEAD)
}

fn fault_status(bench: &Bench) -> u32 {
    bench.machine.unit.read32(Register32::FAULT_STATUS)
}

fn error_code(bench: &Bench) -> u64 {
    bench
        .machine
        .unit
        .read64(Register64::INVALIDATION_QUEUE_ERROR_RECORD)
        & 0xf
}

#[test]
fn waits_write_their_status_and_the_queue_wraps() {
    let bench = scalable();
    for _ in 0..100 {
        assert!(bench.submit(&[IOTLB_GLOBAL, PASID_CACHE_GLOBAL]));
    }
    assert_eq!(head(&bench), u64::from(bench.tail.get()));
    assert_eq!(bench.machine.unit.counters().waits, 100);
    let seen = bench.machine.unit.take_descriptors();
    assert_eq!(seen.len(), 300);
    assert_eq!(
        seen.iter().take(3).map(|d| d.kind()).collect::<Vec<_>>(),
        [2, 7, 5]
    );
    bench.machine.unit.assert_no_violations();
}

#[test]
fn a_wait_may_store_interrupt_do_both_or_neither() {
    let bench = scalable();
    let mut unit = bench.machine.unit.clone();
    unit.write32(Register32::INVALIDATION_EVENT_DATA, 0x41);
    unit.write32(Register32::INVALIDATION_EVENT_ADDRESS, 0xfee0_2000);
    unit.write32(Register32::INVALIDATION_EVENT_CONTROL, 0);
    let [low, status] = bench.wait_descriptor(0x77);
    bench.post(&[[0x45, status]]);
    assert!(bench.is_done(0), "a pure barrier stores nothing");
    bench.post(&[[low & !0x20 | 0x10, status]]);
    assert!(!bench.is_done(0x77), "no store asked for");
    let messages = unit.take_messages();
    assert_eq!(
        (messages.len(), messages[0].kind),
        (1, EventKind::InvalidationCompletion)
    );
    bench.post(&[[low | 0x50, status]]);
    assert!(bench.is_done(0x77));
    assert!(unit.take_messages().is_empty(), "IWC is still set");
    assert_eq!(unit.read32(Register32::INVALIDATION_COMPLETION_STATUS), 1);
    unit.write32(Register32::INVALIDATION_COMPLETION_STATUS, 1);
    bench.post(&[[low | 0x10, status]]);
    assert_eq!(unit.take_messages().len(), 1);
    unit.assert_no_violations();
}

#[test]
fn bad_descriptors_stop_the_queue_at_the_descriptor() {
    let device_tlb = |config: ModelConfig| config.with_extended(Ecap::DEVICE_TLB, 1);
    type Adjust = fn(ModelConfig) -> ModelConfig;
    let plain: Adjust = |config| config;
    let rows: &[(&str, Mode, Adjust, [u64; 2], u64)] = &[
        ("type 0", Mode::Scalable, plain, [0, 0], 3),
        ("type B", Mode::Scalable, plain, [0xb, 0], 3),
        ("type in bits 11:9", Mode::Scalable, plain, [0x211, 0], 3),
        ("type 3 without DT", Mode::Scalable, plain, [3, 0], 3),
        ("type 8 without DT", Mode::Scalable, plain, [8, 0], 3),
        ("type 9 without PRS", Mode::Scalable, plain, [9, 0], 3),
        ("type 6 in legacy mode", Mode::Legacy, plain, [0x26, 0], 3),
        ("type 7 in legacy mode", Mode::Legacy, plain, [0x37, 0], 3),
        (
            "type 1 reserved",
            Mode::Scalable,
            plain,
            [0x11 | 1 << 50, 0],
            4,
        ),
        ("type 1 q1", Mode::Scalable, plain, [0x11, 1], 4),
        ("type 1 granularity 0", Mode::Scalable, plain, [1, 0], 4),
        (
            "type 2 reserved",
            Mode::Scalable,
            plain,
            [0x12 | 1 << 32, 0],
            4,
        ),
        ("type 2 q1", Mode::Scalable, plain, [0x12, 1 << 7], 4),
        ("type 2 granularity 0", Mode::Scalable, plain, [2, 0], 4),
        (
            "type 2 AM beyond MAMV",
            Mode::Scalable,
            plain,
            [0x32, 19],
            4,
        ),
        (
            "type 2 page without PSI",
            Mode::Scalable,
            |config| {
                config.with_capability(
                    vtd_nest::arch::capability::CapabilityField::PAGE_SELECTIVE_INVALIDATION,
                    0,
                )
            },
            [0x32, 0],
            4,
        ),
        ("type 4 IM", Mode::Scalable, plain, [0x14 | 1 << 27, 0], 4),
        ("type 5 PD without PDS", Mode::Scalable, plain, [0xa5, 0], 4),
        ("type 5 address", Mode::Scalable, plain, [0x25, 2], 4),
        ("type 6 granularity 1", Mode::Scalable, plain, [0x16, 0], 4),
        (
            "type 6 reserved",
            Mode::Scalable,
            plain,
            [0x26 | 1 << 52, 0],
            4,
        ),
        ("type 7 granularity 2", Mode::Scalable, plain, [0x27, 0], 4),
        ("type 7 q1", Mode::Scalable, plain, [0x37, 1], 4),
        (
            "type 3 reserved",
            Mode::Scalable,
            device_tlb,
            [3 | 1 << 48, 0],
            4,
        ),
        ("type 8 reserved", Mode::Scalable, device_tlb, [8, 2], 4),
    ];
    for (name, mode, adjust, bad, code) in rows {
        let bench = Bench::new(adjust(ModelConfig::nesting_server()), *mode);
        assert!(bench.submit(&[IOTLB_GLOBAL]), "{name}");
        let at = u64::from(bench.tail.get());
        assert!(!bench.submit(&[IOTLB_GLOBAL, *bad, IOTLB_GLOBAL]), "{name}");
        assert_eq!(fault_status(&bench) & IQE, IQE, "{name}");
        assert_eq!(error_code(&bench), *code, "{name}");
        let step = u64::from(bench.descriptor_bytes());
        assert_eq!(head(&bench), at + step, "{name}: the head stays");
        bench.machine.unit.assert_no_violations();
    }
}

#[test]
fn the_queue_goes_on_at_the_head_when_the_error_is_cleared() {
    let bench = scalable();
    assert!(!bench.submit(&[[0, 0]]));
    let mut unit = bench.machine.unit.clone();
    bench.post(&[IOTLB_GLOBAL]);
    assert_eq!(head(&bench), 0, "not processed while IQE is set");
    // Still bad: the error comes back.
    unit.write32(Register32::FAULT_STATUS, IQE);
    assert_eq!(fault_status(&bench) & IQE, IQE);
    let queue = unit.read64(Register64::INVALIDATION_QUEUE_ADDRESS) & !0xfff;
    bench.put(queue, IOTLB_GLOBAL[0]);
    unit.write32(Register32::FAULT_STATUS, IQE);
    assert_eq!(fault_status(&bench), 0);
    assert_eq!(head(&bench), 96);
    assert!(bench.is_done(1));
    unit.assert_no_violations();
}

#[test]
fn bad_tails_widths_and_modes_have_their_codes() {
    // DW and TTM do not fit, or the tail is bad.
    type Row = (&'static str, u64, u64, u64, u64);
    let rows: &[Row] = &[
        ("tail beyond the queue", 1 << 11, 1 << 10, 0x1000, 1),
        ("tail misaligned", 1 << 11, 1 << 10, 0x10, 6),
        ("narrow in scalable mode", 0, 1 << 10, 0x20, 5),
        ("reserved mode", 1 << 11, 2 << 10, 0x20, 7),
        ("abort mode without ADMS", 1 << 11, 3 << 10, 0x20, 7),
        ("no memory", 1 << 11 | 0x2000_0000_0000, 1 << 10, 0x20, 2),
    ];
    for (name, width, mode, tail, code) in rows {
        let bench = Bench::off(ModelConfig::nesting_server(), Mode::Scalable);
        let mut unit = bench.machine.unit.clone();
        let page = if *width >> 12 == 0 { bench.page() } else { 0 };
        unit.write64(Register64::INVALIDATION_QUEUE_ADDRESS, page | width);
        unit.write64(Register64::ROOT_TABLE_ADDRESS, bench.root | mode);
        bench.command(SRTP, true);
        bench.command(QIE, true);
        unit.write64(Register64::INVALIDATION_QUEUE_TAIL, *tail);
        assert_eq!(fault_status(&bench) & IQE, IQE, "{name}");
        assert_eq!(error_code(&bench), *code, "{name}");
    }
    let bench = Bench::off(ModelConfig::legacy_server(), Mode::Legacy);
    let mut unit = bench.machine.unit.clone();
    unit.write64(
        Register64::INVALIDATION_QUEUE_ADDRESS,
        bench.page() | 1 << 11,
    );
    bench.command(QIE, true);
    unit.write64(Register64::INVALIDATION_QUEUE_TAIL, 0x20);
    assert_eq!(error_code(&bench), 5, "wide without scalable mode");
}

#[test]
fn delayed_descriptors_advance_the_head_but_do_nothing_yet() {
    let config = ModelConfig::nesting_server().with_queue_pace(Pace::Manual);
    let bench = Bench::new(config, Mode::Scalable);
    let root = bench.page();
    bench.map_first(root, 0x5000, bench.data_page(1));
    bench.set_pasid(DEVICE, 0, bench.first_entry(7, root));
    assert_eq!(bench.outcome(DEVICE, None, 0x5000), Ok(1));
    bench.map_first(root, 0x5000, bench.data_page(2));
    assert!(!bench.submit(&[pasid_iotlb_all(7, 0)]));
    assert_eq!(
        head(&bench),
        u64::from(bench.tail.get()),
        "fetched, not done"
    );
    assert_eq!(bench.outcome(DEVICE, None, 0x5000), Ok(1));
    bench.machine.unit.run();
    assert!(bench.is_done(1));
    assert_eq!(bench.outcome(DEVICE, None, 0x5000), Ok(2));
    // By the clock.
    bench.machine.unit.set_queue_pace(Pace::After(10_000));
    assert!(!bench.submit(&[]));
    bench.machine.hypervisor.set_steps(0, 4_000);
    for done in [false, false, true] {
        bench.machine.hypervisor.pause();
        assert_eq!(bench.is_done(2), done);
    }
    // Never.
    bench.machine.unit.set_queue_pace(Pace::Never);
    assert!(!bench.submit(&[]));
    bench.machine.unit.run();
    assert!(!bench.is_done(3));
    bench.machine.unit.assert_no_violations();
}

#[test]
fn a_device_that_does_not_answer_times_out_and_aborts_the_waits() {
    let mut config = ModelConfig::nesting_server().with_extended(Ecap::DEVICE_TLB, 1);
    config.device_tlb_timeout = 1_000_000;
    let bench = Bench::new(config, Mode::Scalable);
    let unit = bench.machine.unit.clone();
    unit.set_device_silent(DEVICE, true);
    let flush = |device: vtd_nest::arch::id::SourceId| {
        [3 | u64::from(device.as_u16()) << 32, 0x7fff_ffff_ffff_f001]
    };
    assert!(bench.submit(&[flush(OTHER)]));
    assert!(!bench.submit(&[flush(DEVICE)]));
    assert_eq!(head(&bench), u64::from(bench.tail.get()));
    assert_eq!(fault_status(&bench) & ITE, 0);
    bench.machine.hypervisor.clock().advance(1_000_000);
    assert_eq!(fault_status(&bench) & ITE, ITE);
    let record = unit.read64(Register64::INVALIDATION_QUEUE_ERROR_RECORD);
    assert_eq!(record >> 32 & 0xffff, u64::from(DEVICE.as_u16()));
    let mut writer = unit.clone();
    bench.post(&[IOTLB_GLOBAL]);
    assert_ne!(head(&bench), u64::from(bench.tail.get()), "stopped");
    writer.write32(Register32::FAULT_STATUS, ITE);
    assert_eq!(head(&bench), u64::from(bench.tail.get()));
    assert!(!bench.is_done(2), "the wait was aborted");
    unit.set_device_silent(DEVICE, false);
    assert!(bench.submit(&[flush(DEVICE)]));
    unit.assert_no_violations();
    bench.command(TE, false);
    assert!(bench.submit(&[flush(DEVICE)]));
    assert_eq!(
        unit.violations(),
        [Violation::DeviceTlbWhileDisabled { source_id: DEVICE }]
    );
}

#[test]
fn queue_misuse_is_reported() {
    // The tail moves back behind what was submitted.
    let bench = Bench::new(
        ModelConfig::nesting_server().with_queue_pace(Pace::Manual),
        Mode::Scalable,
    );
    let mut unit = bench.machine.unit.clone();
    bench.post(&[IOTLB_GLOBAL]);
    // Switched off while a descriptor is in flight, and not behind a wait.
    bench.command(QIE, false);
    assert!(matches!(
        unit.take_violations()[..],
        [Violation::QueueDisabledBusy { .. }]
    ));
    assert_eq!(head(&bench), 0);
    // Switched on with a tail.
    bench.command(QIE, true);
    assert!(matches!(
        unit.take_violations()[..],
        [Violation::QueueEnabledWithTail { tail: 32 }]
    ));
    unit.write64(
        Register64::INVALIDATION_QUEUE_ADDRESS,
        bench.queue_address(),
    );
    assert!(matches!(
        unit.take_violations()[0],
        Violation::QueueAddressWhileEnabled { .. }
    ));
    // A status address where there is no memory.
    unit.set_queue_pace(Pace::Immediate);
    bench.post(&[[0x25, 0xffff_0000]]);
    unit.run();
    assert_eq!(
        unit.violations(),
        [Violation::WaitStatusAddress {
            address: 0xffff_0000
        }]
    );
}

#[test]
fn switching_the_queue_off_behind_a_wait_is_clean() {
    let bench = scalable();
    assert!(bench.submit(&[IOTLB_GLOBAL]));
    bench.command(QIE, false);
    assert_eq!(head(&bench), 0);
    bench.machine.unit.assert_no_violations();
}

#[test]
fn an_invalid_completion_is_recorded_and_the_queue_goes_on() {
    const ICE: u32 = 1 << 5;
    let bench = Bench::new(
        ModelConfig::nesting_server().with_extended(Ecap::DEVICE_TLB, 1),
        Mode::Scalable,
    );
    let mut unit = bench.machine.unit.clone();
    unit.write32(Register32::FAULT_EVENT_ADDRESS, 0xfee0_2000);
    unit.write32(Register32::FAULT_EVENT_CONTROL, 0);
    let record = || {
        let record = unit.read64(Register64::INVALIDATION_QUEUE_ERROR_RECORD);
        // ICESID, ITESID, IQEI.
        ((record >> 48) as u16, (record >> 32) as u16, record & 0xf)
    };
    unit.send_invalid_completion(DEVICE);
    assert_eq!(fault_status(&bench), ICE);
    assert_eq!(record(), (DEVICE.as_u16(), 0, 0));
    assert_eq!(unit.take_messages().len(), 1);
    assert!(bench.submit(&[IOTLB_GLOBAL]), "ICE stops nothing");
    // The record keeps the first, and a cause that joins another sends nothing.
    unit.send_invalid_completion(OTHER);
    assert_eq!(record().0, DEVICE.as_u16());
    assert!(!bench.submit(&[[0, 0]]));
    assert_eq!(fault_status(&bench), ICE | IQE);
    assert_eq!(record(), (DEVICE.as_u16(), 0, 3));
    assert!(unit.take_messages().is_empty());
    // Each cause is cleared by itself.
    let mut writer = unit.clone();
    writer.write32(Register32::FAULT_STATUS, ICE);
    assert_eq!(fault_status(&bench), IQE);
    unit.send_invalid_completion(OTHER);
    assert_eq!(record(), (OTHER.as_u16(), 0, 3));
    assert!(unit.take_messages().is_empty());
    unit.assert_no_violations();
}

#[test]
fn registers_of_an_absent_queue_are_reserved() {
    let bench = Bench::off(
        ModelConfig::nesting_server().with_extended(Ecap::QUEUED_INVALIDATION, 0),
        Mode::Legacy,
    );
    let mut unit = bench.machine.unit.clone();
    unit.write64(Register64::INVALIDATION_QUEUE_TAIL, 0x20);
    unit.write64(Register64::INVALIDATION_QUEUE_ADDRESS, 0x5000);
    unit.write32(Register32::INVALIDATION_EVENT_CONTROL, 0);
    let reserved = |offset, bits| Violation::ReservedRegisterBits { offset, bits };
    assert_eq!(
        unit.take_violations(),
        [reserved(0x88, 0x20), reserved(0x90, 0x5000)]
    );
    assert_eq!(unit.read64(Register64::INVALIDATION_QUEUE_TAIL), 0);
    assert_eq!(unit.read64(Register64::INVALIDATION_QUEUE_ADDRESS), 0);
    assert_eq!(unit.read32(Register32::INVALIDATION_EVENT_CONTROL), 0);
    unit.assert_no_violations();
}
