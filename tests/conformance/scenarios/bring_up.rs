//! A unit's way up, down, and through a suspension (requirements, section 2), with a device that is
//! active all the while.

use std::cell::RefCell;
use std::rc::Rc;

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::CapabilityField as Cap;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::{GlobalCommand, TranslationTableMode};
use vtd_nest::unit::{
    Leave, OnFirmwareState, QueueError, Unit, UnitConfig, UnitError, table_mode_for,
};

use crate::bench::{Ability, Interposer, Observed, Requester};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::direct::{attach_direct, device_reads, stamped_page};
use crate::lab::firmware::Firmware;
use crate::lab::{D0, D1, IOVA, Lab, Place};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "G24 G25",
        "firmware's translation gives way to a unit that blocks, without a gap between them",
        firmware_translates,
    ),
    scenario(
        "G24",
        "a root table of another mode is taken over without a gap, or not by default",
        firmware_translates_in_another_mode,
    )
    .needs(&[Need::Extended(
        vtd_nest::arch::capability::ExtendedCapabilityField::SCALABLE_MODE,
        "SMTS",
    )]),
    scenario(
        "G24 G25",
        "memory that firmware protects stays protected until the unit blocks",
        firmware_protects_memory,
    )
    .needs(&[Need::Capability(Cap::PROTECTED_LOW_MEMORY, "PLMR")]),
    scenario(
        "G7 G25",
        "a queue that firmware left on is replaced",
        firmware_queue,
    ),
    scenario(
        "G7 G25",
        "a queue that firmware left standing at an error is replaced",
        firmware_queue_at_error,
    )
    .needs(&[Need::Ability(Ability::QueueOffAtError)]),
    scenario(
        "G32 G25",
        "fault records from before bring-up are nobody's",
        firmware_faults,
    ),
    scenario(
        "G19 G25",
        "a unit is shut down without devices only, and blocks or passes as asked for",
        shut_down,
    ),
    scenario(
        "G17 G19 G25",
        "bindings survive a suspension in which the unit was somebody else's",
        suspension,
    ),
];

/// What a device sees at [`IOVA`] and at an address of host memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    translated: u64,
    untranslated: u64,
}

fn reads_at(hypervisor: &Interposer, source_id: SourceId, at: u64) -> u64 {
    let requester = Requester {
        source_id,
        pasid: None,
        privileged: false,
        execute: false,
    };
    let mut bytes = [0; 8];
    hypervisor.dma_read(requester, Iova::new(at), &mut bytes);
    u64::from_le_bytes(bytes)
}

fn look(hypervisor: &Interposer, source_id: SourceId, host: Hpa) -> Seen {
    Seen {
        translated: device_reads(hypervisor, source_id),
        untranslated: reads_at(hypervisor, source_id, host.as_u64()),
    }
}

/// What a device sees after each store, submission and register write from now on, and now.
fn watch(hypervisor: &Interposer, source_id: SourceId, host: Hpa) -> Rc<RefCell<Vec<Seen>>> {
    let seen = Rc::new(RefCell::new(vec![look(hypervisor, source_id, host)]));
    let into = seen.clone();
    hypervisor.on_step(move |hypervisor| {
        into.borrow_mut().push(look(hypervisor, source_id, host));
    });
    seen
}

const BLOCKED: Seen = Seen {
    translated: 0,
    untranslated: 0,
};

fn probe(hypervisor: &Rc<Interposer>, state: OnFirmwareState) -> Unit<Observed> {
    let registers = hypervisor.registers(0).expect("a unit");
    let width = hypervisor.bench().host_address_width();
    let config = UnitConfig {
        on_firmware_state: state,
        ..UnitConfig::new(0, width)
    };
    Unit::probe(registers, config).expect("a usable unit")
}

/// What was done that the architecture forbids, but for what the device does while nothing is
/// translated: there is no memory at [`IOVA`].
fn violations(hypervisor: &Interposer) -> Vec<String> {
    let mut all = hypervisor.bench().violations();
    all.retain(|violation| !violation.starts_with("DmaOutsideMemory"));
    all
}

fn expect_no_violations(hypervisor: &Interposer) {
    let violations = violations(hypervisor);
    assert!(violations.is_empty(), "{violations:#?}");
}

/// The mode in which the library drives the bench's unit.
fn driven_mode(unit: &Unit<Observed>) -> TranslationTableMode {
    table_mode_for(unit.features())
}

/// From firmware's translation on there is firmware's page, then nothing; never what lies at the
/// address itself.
fn expect_no_gap(seen: &[Seen], value: u64) {
    let blocked = seen.iter().position(|seen| *seen == BLOCKED);
    let blocked = blocked.expect("it is blocked in the end");
    assert!(blocked > 0, "firmware's translation is seen before");
    for (step, seen) in seen.iter().enumerate() {
        let translated = if step < blocked { value } else { 0 };
        let expected = Seen {
            translated,
            untranslated: 0,
        };
        assert_eq!(*seen, expected, "step {step}, blocked from {blocked} on");
    }
}

fn firmware_translates(place: Place<'_>) {
    let hypervisor = place.unprogrammed();
    let source_id = hypervisor.bench().device(0);
    let mut firmware = Firmware::new(&hypervisor);
    let (page, value) = firmware.stamped_page();
    let (other, _) = firmware.stamped_page();
    let unit = probe(&hypervisor, OnFirmwareState::default());
    firmware.translate(driven_mode(&unit), source_id, page);
    let seen = watch(&hypervisor, source_id, other);
    unit.bring_up(&*hypervisor).expect("it comes up");
    hypervisor.clear_hooks();
    let mut seen = seen.take();
    // What hardware has cached of firmware's may be used until it is invalidated, which is before
    // the end.
    assert_eq!(look(&hypervisor, source_id, other), BLOCKED);
    seen.push(BLOCKED);
    expect_no_gap(&seen, value);
    expect_no_violations(&hypervisor);
}

fn firmware_translates_in_another_mode(place: Place<'_>) {
    let mode_of_another = |unit: &Unit<Observed>| match driven_mode(unit) {
        TranslationTableMode::Legacy => TranslationTableMode::Scalable,
        _ => TranslationTableMode::Legacy,
    };
    for state in [OnFirmwareState::TakeOver, OnFirmwareState::TakeOverWithGap] {
        let hypervisor = place.unprogrammed();
        let source_id = hypervisor.bench().device(0);
        let mut firmware = Firmware::new(&hypervisor);
        let (page, value) = firmware.stamped_page();
        let (other, _) = firmware.stamped_page();
        let unit = probe(&hypervisor, state);
        if mode_of_another(&unit) == TranslationTableMode::Scalable {
            // Its firmware has no such table either.
            return;
        }
        firmware.translate(mode_of_another(&unit), source_id, page);
        let root = firmware.root();
        let seen = watch(&hypervisor, source_id, other);
        let result = unit.bring_up(&*hypervisor);
        hypervisor.clear_hooks();
        let seen = seen.take();
        let capability = unit.features().capability;
        match (state, capability.has_enhanced_set_root_table_pointer()) {
            (_, true) => {
                result.expect("it comes up");
                expect_no_gap(&seen, value);
            }
            (OnFirmwareState::TakeOverWithGap, false) => {
                // The gap is what was asked for.
                result.expect("it comes up");
            }
            (_, false) => {
                assert_eq!(result, Err(UnitError::TranslationGap { root }));
                assert!(seen.iter().all(|seen| seen.untranslated == 0));
                assert_eq!(device_reads(&hypervisor, source_id), value, "as before");
                continue;
            }
        }
        assert!(unit.is_protecting());
        assert_eq!(look(&hypervisor, source_id, other), BLOCKED);
        expect_no_violations(&hypervisor);
    }
}

fn firmware_protects_memory(place: Place<'_>) {
    let hypervisor = place.unprogrammed();
    let source_id = hypervisor.bench().device(0);
    let mut firmware = Firmware::new(&hypervisor);
    let (page, value) = firmware.stamped_page();
    assert_eq!(look(&hypervisor, source_id, page).untranslated, value);
    // The library's frames, too.
    let layout = hypervisor.bench().layout();
    let lowest = layout.frames.start.min(layout.nobodys.start);
    firmware.protect_low_memory(lowest);
    let unit = probe(&hypervisor, OnFirmwareState::default());
    let seen = watch(&hypervisor, source_id, page);
    unit.bring_up(&*hypervisor).expect("it comes up");
    hypervisor.clear_hooks();
    assert!(seen.take().iter().all(|seen| seen.untranslated != value));
    assert!(!firmware.protects_memory(), "translation does it now");
    assert_eq!(look(&hypervisor, source_id, page), BLOCKED);
    let (page, value) = stamped_page(&hypervisor, 0);
    let _attached = attach_direct(&hypervisor, &unit, source_id, page).expect("attached");
    assert_eq!(device_reads(&hypervisor, source_id), value);
    expect_no_violations(&hypervisor);
}

fn firmware_queue(place: Place<'_>) {
    take_queue_over(place, false);
}

fn firmware_queue_at_error(place: Place<'_>) {
    take_queue_over(place, true);
}

fn take_queue_over(place: Place<'_>, stands_at_error: bool) {
    let hypervisor = place.unprogrammed();
    let source_id = hypervisor.bench().device(0);
    Firmware::new(&hypervisor).enable_queue(stands_at_error);
    let before = violations(&hypervisor);
    let unit = probe(&hypervisor, OnFirmwareState::default());
    unit.bring_up(&*hypervisor).expect("it comes up");
    let (page, value) = stamped_page(&hypervisor, 0);
    let (tables, _) = attach_direct(&hypervisor, &unit, source_id, page).expect("attached");
    assert_eq!(device_reads(&hypervisor, source_id), value);
    let detached = unit.detach_device(&*hypervisor, tables).expect("queued");
    unit.release(&*hypervisor, detached).expect("confirmed");
    assert_eq!(device_reads(&hypervisor, source_id), 0);
    assert_eq!(violations(&hypervisor), before);
}

fn firmware_faults(place: Place<'_>) {
    let hypervisor = place.unprogrammed();
    let [source_id, other] = [0, 1].map(|index| hypervisor.bench().device(index));
    let mut firmware = Firmware::new(&hypervisor);
    let (page, value) = firmware.stamped_page();
    let unit = probe(&hypervisor, OnFirmwareState::default());
    firmware.translate(driven_mode(&unit), source_id, page);
    assert_eq!(device_reads(&hypervisor, source_id), value);
    // More than there are records of.
    for _ in 0..300 {
        assert_eq!(device_reads(&hypervisor, other), 0);
    }
    unit.bring_up(&*hypervisor).expect("it comes up");
    assert_eq!(unit.next_fault(), None, "firmware's");
    assert_eq!(device_reads(&hypervisor, source_id), 0);
    let record = unit.next_fault().expect("a new one");
    assert_eq!(record.source_id(), source_id);
    assert_eq!(unit.next_fault(), None);
    expect_no_violations(&hypervisor);
}

fn shut_down(place: Place<'_>) {
    for leave in [Leave::Blocking, Leave::Passing] {
        let lab = place.lab();
        let (hypervisor, unit) = (&lab.hypervisor, &lab.units[0]);
        let source_id = hypervisor.bench().device(0);
        let free = hypervisor.pool().free_frames();
        let (page, value) = stamped_page(hypervisor, 0);
        let (tables, _) = attach_direct(hypervisor, unit, source_id, page).expect("attached");
        assert_eq!(
            unit.shut_down(&**hypervisor, leave),
            Err(UnitError::DevicesAttached(1))
        );
        assert_eq!(device_reads(hypervisor, source_id), value, "untouched");
        let detached = unit.detach_device(&**hypervisor, tables).expect("queued");
        unit.release(&**hypervisor, detached).expect("confirmed");
        let table_frames = hypervisor
            .pool()
            .charged_frames(crate::lab::direct::DIRECT_OWNER);

        // Blocked until the very end, whatever is left.
        let seen = watch(hypervisor, source_id, page);
        unit.shut_down(&**hypervisor, leave).expect("it goes down");
        hypervisor.clear_hooks();
        let seen = seen.take();
        let passes = leave == Leave::Passing;
        // Translation goes last of what concerns DMA; interrupts after it.
        let opened = seen.iter().position(|seen| *seen != BLOCKED);
        let opened = opened.unwrap_or(seen.len());
        let after = seen[opened..].iter();
        assert!(after.clone().all(|seen| seen.untranslated == value));
        assert_eq!(after.len() > 0, passes, "{seen:x?}");
        let untranslated = if passes { value } else { 0 };
        assert_eq!(look(hypervisor, source_id, page).untranslated, untranslated);
        assert_eq!(unit.is_protecting(), !passes);
        let free_now = hypervisor.pool().free_frames();
        assert_eq!(free_now, free - table_frames, "context tables are back");
        assert!(matches!(
            unit.submit(&**hypervisor, &[]),
            Err(QueueError::NotRunning)
        ));

        // The next owner finds nothing of it.
        let next = probe(hypervisor, OnFirmwareState::default());
        next.bring_up(&**hypervisor).expect("it comes up");
        assert_eq!(look(hypervisor, source_id, page), BLOCKED);
        let _attached = attach_direct(hypervisor, &next, source_id, page).expect("attached");
        assert_eq!(device_reads(hypervisor, source_id), value);
        expect_no_violations(hypervisor);
    }
}

/// The unit as somebody else used it while it was suspended: another translation for a device, on
/// and off again, a queue that stands at an error where that can be helped.
fn use_otherwise(lab: &Lab, source_id: SourceId) -> u64 {
    let mut firmware = Firmware::new(&lab.hypervisor);
    firmware.command(GlobalCommand::TRANSLATION_ENABLE, false);
    let (page, value) = firmware.stamped_page();
    let mode = lab.units[0].table_mode();
    firmware.translate(mode, source_id, page);
    assert_eq!(device_reads(&lab.hypervisor, source_id), value);
    firmware.command(GlobalCommand::TRANSLATION_ENABLE, false);
    let stands_at_error = lab.hypervisor.bench().has(Ability::QueueOffAtError);
    firmware.enable_queue(stands_at_error);
    value
}

fn suspension(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, page) = guest.bound();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let (_, other) = guest.bind(D1, pasid, 9);
    let lab = guest.lab.clone();
    let hypervisor = &lab.hypervisor;
    let unit = &lab.units[0];
    for _ in 0..2 {
        unit.suspend(&**hypervisor).expect("suspended");
        // D1 goes on until power goes.
        guest.expect_reaches(D1, tag, IOVA, other);
        let theirs = use_otherwise(&lab, guest.physical(D0));
        let before = violations(hypervisor);
        let seen = watch(hypervisor, guest.physical(D0), Hpa::new(0));
        unit.resume(&**hypervisor).expect("resumed");
        hypervisor.clear_hooks();
        assert!(seen.take().iter().all(|seen| seen.translated != theirs));
        guest.take_faults();
        assert_eq!(violations(hypervisor), before);
        for (device, page) in [(D0, page), (D1, other)] {
            guest.expect_reaches(device, tag, IOVA, page);
            guest.expect_writes_reach(device, tag, IOVA, page);
        }
    }
    // And the guest goes on: a page, an entry, a device.
    let new = guest.data_page();
    guest.map(root, IOVA, Some(new));
    guest.invalidate_pages(7, IOVA, 0);
    guest.expect_reaches(D0, tag, IOVA, new);
    guest.set_entry(D0, pasid, &Default::default());
    guest.invalidate_pasid(7, pasid);
    guest.expect_no_data(D0, tag, IOVA);
    guest.unassign(D1).expect("it leaves");
    guest.expect_no_data(D1, tag, IOVA);
}
