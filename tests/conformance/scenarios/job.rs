//! The image's whole job on every bench: the same guest driver, every step of it.

use vtd_nest::arch::address::Gpa;
use vtd_nest::nest::{Backend, Policy};

use crate::bench::Hold;
use crate::driver::{BlockedTarget, Job, Layout, STEPS};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, GUEST_LEN_BYTES, Guest, GuestOptions, Place};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S1 S5 S17 S18 S31 S32 S41 S83 R18 R19 R21 R30 G6 G31",
        "the guest driver's whole job with the stages that hardware offers",
        job,
    ),
    scenario(
        "S1 S5 S17 S18 S31 S32 S83 R21",
        "the guest driver's whole job in shadows on hardware that nests",
        job_in_shadows,
    )
    .needs(&[Need::Nesting]),
    scenario(
        "S5 S41 G7 G23 R30",
        "late completion changes nothing but time",
        late_job,
    ),
];

const LAYOUT: Layout = Layout {
    device: D0,
    tables: (Gpa::new(0x10_0000), Gpa::new(0x40_0000)),
    data: (Gpa::new(0x40_0000), Gpa::new(GUEST_LEN_BYTES)),
    content: 0,
};

fn start(place: Place<'_>, forbid_nesting: bool) -> Guest {
    place.guest_with(GuestOptions {
        policy: Policy {
            forbid_nesting,
            ..Policy::default()
        },
        brought_up: false,
        ..GuestOptions::default()
    })
}

fn run(mut guest: Guest) {
    let outside = guest.lab.hypervisor.bench().layout().nobodys.start;
    let lab = guest.lab.clone();
    let secret = 0x5ec3_e75e;
    lab.hypervisor.bench().memory().write64(outside, secret);
    let mut job = Job::bring_up(&mut guest, LAYOUT).expect("the driver comes up");
    for step in &STEPS[1..] {
        if *step == "blocked" {
            for target in [
                BlockedTarget::Unmapped,
                BlockedTarget::NotOfMachine(Gpa::new(outside.as_u64())),
                BlockedTarget::NotOfMachine(Gpa::new(0xfed9_0000)), // the unit's registers
                BlockedTarget::NotOfMachine(Gpa::new(0xfec0_0000)), // the IOAPIC
                BlockedTarget::NotOfMachine(Gpa::new(0xb000_0000)), // ECAM
            ] {
                let blocked = job.check_blocked(&mut guest, target);
                let blocked = blocked.unwrap_or_else(|error| panic!("{target:x?}: {error:x?}"));
                assert_ne!(blocked.write, blocked.read);
                assert_eq!(lab.host_read64(outside), secret);
            }
            assert!(job.figures().faults >= 10, "a write and a read for each");
        } else {
            let figures = job.run(&mut guest, step);
            let figures = figures.unwrap_or_else(|error| panic!("{step}: {error:x?}"));
            assert!(figures.bytes > 0 && figures.pages > 0, "{step}");
        }
    }
    let shadowed = guest.vm.statistics().shadow_pages;
    let backend = guest.vm.offer().backend;
    assert_eq!(
        shadowed == 0,
        backend == Backend::Nested,
        "{shadowed} pages"
    );
    guest.finish();
}

fn job(place: Place<'_>) {
    run(start(place, false));
}

fn job_in_shadows(place: Place<'_>) {
    run(start(place, true));
}

fn late_job(place: Place<'_>) {
    for delay in [500, 20_000] {
        let guest = start(place, false);
        guest.lab.hypervisor.hold(Hold::For(delay));
        run(guest);
    }
}
