//! Storms of faults: bounded work, nothing lost, nobody else disturbed (G32).

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::SourceId;
use vtd_nest::nest::{FaultOutcome, Policy};
use vtd_nest::unit::{FaultStorms, StormLimit, StormVerdict};

use crate::bench::{Access, Requester};
use crate::harness::{Scenario, scenario};
use crate::lab::{D0, D1, Guest, GuestOptions, IOVA, LogEvents, Place};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "G32 R29",
        "a device that storms is silenced in hardware, and heard again later",
        storm_is_silenced,
    ),
    scenario(
        "G32 R8",
        "a device that storms takes nothing from another machine's",
        storm_beside_another_machine,
    ),
    scenario(
        "G32 R26",
        "a silenced device can leave, come back and is heard at once",
        silenced_device_leaves,
    ),
    scenario(
        "G32",
        "a device that no machine has loses bus mastering when it storms",
        unassigned_storm,
    ),
];

/// Explained to the guest in one window.
const FAULTS: u32 = 20;
const WINDOW_NANOSECONDS: u64 = 1_000_000_000_000;

fn policy() -> Policy {
    Policy {
        storm_limit: StormLimit {
            faults: FAULTS,
            window_nanoseconds: WINDOW_NANOSECONDS,
        },
        ..Policy::default()
    }
}

fn options(number: u16, devices: Vec<(SourceId, usize, u8)>) -> GuestOptions {
    GuestOptions {
        number,
        devices,
        policy: policy(),
        ..GuestOptions::default()
    }
}

/// Blocked requests of a device, each record routed before the next.
fn storm(guest: &mut Guest, device: SourceId, requests: u64) {
    for index in 0..requests {
        let absent = IOVA + 0x1_0000 + 0x1000 * (index % 64);
        assert!(!guest.gets_through(device, guest.tag, absent, Access::Read));
        guest.route_faults();
        // Hardware comes to what was submitted.
        guest.lab.hypervisor.pass(1_000_000);
    }
}

/// Why a guest's own table without an entry blocks.
fn not_mapped(guest: &Guest) -> FaultReason {
    if guest.is_first_stage() {
        FaultReason::FirstStageNotPresent
    } else {
        FaultReason::SecondStageNotPresent
    }
}

fn ignored(guest: &Guest) -> usize {
    let outcomes = guest.outcomes.iter();
    outcomes
        .filter(|outcome| **outcome == FaultOutcome::Ignored)
        .count()
}

fn storm_is_silenced(place: Place<'_>) {
    let mut guest = place.guest_with(options(0, GuestOptions::default().devices));
    let tag = guest.tag;
    let (_, page) = guest.bound();
    let (_, other) = guest.bind(D1, guest.pasid, 9);
    let events = LogEvents::collect();
    guest.outcomes.clear();
    storm(&mut guest, D0, 4 * u64::from(FAULTS));
    events.expect(&["faults without end", &guest.physical(D0).to_string()]);
    let statistics = guest.vm.statistics();
    assert_eq!(statistics.storms, 1);
    assert_eq!(statistics.faults_to_guest, u64::from(FAULTS));
    assert_eq!(statistics.faults_ignored, ignored(&guest) as u64);
    // The one too many, and none that hardware did not have in hand already.
    let recorded = guest.outcomes.len();
    assert_eq!(recorded, FAULTS as usize + 1, "hardware still records");
    assert_eq!(guest.lab.units[0].statistics().silenced, 1);
    // The first fault of the storm was told, and what is allowed is allowed still.
    let taken = guest.take_faults();
    assert!(taken.faults.iter().any(|fault| fault.source_id == D0));
    guest.expect_reaches(D0, tag, IOVA, page);
    // The other device is heard as ever.
    let reason = not_mapped(&guest);
    guest.expect_blocked(D1, tag, IOVA + 0x1000, reason);
    guest.expect_reaches(D1, tag, IOVA, other);
    // Once the window is over so is the silence.
    guest.lab.hypervisor.pass(WINDOW_NANOSECONDS);
    guest.settle();
    guest.lab.hypervisor.pass(1_000_000);
    events.expect(&["count again", &guest.physical(D0).to_string()]);
    guest.expect_blocked(D0, tag, IOVA + 0x1000, reason);
    guest.expect_reaches(D0, tag, IOVA, page);
    drop(events);
    guest.finish();
}

fn storm_beside_another_machine(place: Place<'_>) {
    let lab = place.lab();
    let mut a = Guest::start(&lab, options(0, vec![(D0, 0, 0)]));
    let mut b = Guest::start(&lab, options(1, vec![(D1, 1, 0)]));
    let tag = b.tag;
    let (_, page_a) = a.bound();
    let (_, page_b) = b.bind(D1, b.pasid, 7);
    storm(&mut a, D0, 4 * u64::from(FAULTS));
    assert!(ignored(&a) > 0);
    let reason = not_mapped(&b);
    b.expect_blocked(D1, tag, IOVA + 0x1000, reason);
    b.expect_reaches(D1, tag, IOVA, page_b);
    assert_eq!((ignored(&b), b.vm.statistics().storms), (0, 0));
    a.expect_reaches(D0, tag, IOVA, page_a);
    a.take_faults();
    a.finish();
    b.finish();
}

fn silenced_device_leaves(place: Place<'_>) {
    let mut guest = place.guest_with(options(0, vec![(D0, 0, 0)]));
    guest.bound();
    storm(&mut guest, D0, 2 * u64::from(FAULTS));
    assert_eq!(guest.vm.statistics().storms, 1);
    guest.take_faults();
    guest.unassign(D0).expect("hardware confirms");
    guest.lab.take_unclaimed_faults();
    guest.assign(D0, 0, 0);
    guest.settle();
    let reason = not_mapped(&guest);
    guest.expect_blocked(D0, guest.tag, IOVA + 0x1000, reason);
    guest.finish();
}

fn unassigned_storm(place: Place<'_>) {
    let mut guest = place.guest_with(options(0, vec![(D0, 0, 0)]));
    let lab = guest.lab.clone();
    let device = lab.hypervisor.bench().device(1);
    let mut storms = FaultStorms::<8>::new(policy().storm_limit);
    let requester = Requester {
        source_id: device,
        pasid: None,
        privileged: false,
        execute: false,
    };
    let mut handled = 0;
    for _ in 0..3 * FAULTS {
        let at = Iova::new(IOVA);
        lab.hypervisor.dma_read(requester, at, &mut [0; 8]);
        // The handler of the fault event: bounded, whatever is there.
        lab.units[0].drain_faults(4, |record| {
            assert_eq!(record.source_id(), device);
            if storms.count(&*lab.hypervisor, record) == StormVerdict::Handle {
                handled += 1;
            }
        });
    }
    assert_eq!(handled, FAULTS);
    let [counted] = storms.devices() else {
        panic!("{storms:?}");
    };
    assert_eq!((counted.source_id, counted.silenced), (device, 1));
    assert_eq!(lab.hypervisor.take_bus_master_changes(), [(device, false)]);
    let (_, page) = guest.bound();
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.finish();
}
