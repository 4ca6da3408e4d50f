//! What a hypervisor has to do on its platform: interrupt routing, configuration space.

use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::interrupt::{Interrupt, InterruptAction, InterruptMessage, PostedInterrupt};
use vtd_nest::mem::{Frames, Owner};
use vtd_nest::unit::DeviceInterrupt;

use crate::bench::{Ability, Requester, host_offset};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, Lab, Place, kind, later};

const HOST_SIDE: &str = "host side, complete";
const REMAPS: &[Need] = &[Need::Extended(Ecap::INTERRUPT_REMAPPING, "IR")];

const POSTS: &[Need] = &[
    REMAPS[0],
    Need::Capability(Cap::POSTED_INTERRUPTS, "PI"),
    Need::Ability(Ability::SeesInterrupts),
];

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "G2",
        "every present interrupt entry of the host validates its source",
        sources_are_validated,
    )
    .needs(REMAPS),
    scenario(
        "G2 R35",
        "a posted interrupt sets its bit and notifies; another device's is denied",
        posted_interrupts,
    )
    .needs(POSTS),
    scenario(
        "G30",
        "a changed interrupt entry of the host is invalidated before its old target is reused",
        changed_entry_is_invalidated,
    )
    .needs(REMAPS),
    scenario(
        "S94",
        "a BAR or bridge window over a protected page is refused",
        windows_over_protected_pages,
    )
    .pending(HOST_SIDE),
];

fn device(lab: &Lab, index: usize) -> Requester {
    Requester {
        source_id: lab.hypervisor.bench().device(index),
        pasid: None,
        privileged: false,
        execute: false,
    }
}

/// A device writes a message.
fn send(lab: &Lab, requester: Requester, message: InterruptMessage) {
    lab.hypervisor.send_message(requester.source_id, message);
}

/// A device has raised a vector on processor 0, and nothing else has come, where that is seen.
#[track_caller]
fn raised(lab: &Lab, source_id: SourceId, vector: u8) {
    let bench = lab.hypervisor.bench();
    if bench.has(Ability::SeesInterrupts) {
        let expected = [(source_id, Interrupt::fixed(0, vector))];
        assert_eq!(bench.take_interrupts(), expected);
    }
}

fn sources_are_validated(place: Place<'_>) {
    let lab = place.lab();
    let (first, second) = (device(&lab, 0), device(&lab, 1));
    let message = lab.route_interrupt(first.source_id, 0x51);
    let present = super::interrupts::hardware_entries(&lab);
    assert!(!present.is_empty());
    for entry in present {
        // SVT 01 and SQ 00: the whole source-id is compared (§9.9).
        assert_eq!((entry[1] >> 18 & 3, entry[1] >> 16 & 3), (1, 0));
        assert_eq!(entry[1] & 0xffff, u64::from(first.source_id.as_u16()));
    }
    // Another device that sends the same message is told apart.
    send(&lab, second, message);
    let faults = lab.take_unclaimed_faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].reason_code(), 0x26);
    lab.expect_no_violations();
}

fn posted_interrupts(place: Place<'_>) {
    let lab = place.lab();
    let (first, second) = (device(&lab, 0), device(&lab, 1));
    let run = lab.hypervisor.allocate(Owner::HYPERVISOR, 0);
    let descriptor = run.expect("a frame").address();
    let quadword = |at: u64| lab.host_read64(host_offset(descriptor, 8 * at));
    // NV is bits 279:272 (§9.11); processor 0.
    let memory = lab.hypervisor.bench().memory();
    memory.write64(host_offset(descriptor, 32), 0xf2 << 16);
    let message = lab.set_interrupt(&DeviceInterrupt {
        source_id: first.source_id,
        action: InterruptAction::Post(PostedInterrupt {
            descriptor,
            vector: 0x45,
            urgent: false,
        }),
    });
    send(&lab, first, message);
    raised(&lab, first.source_id, 0xf2);
    assert_eq!((quadword(0), quadword(1)), (0, 1 << 5));
    assert_eq!(quadword(4) & 1, 1, "ON");
    send(&lab, second, message);
    let faults = lab.take_unclaimed_faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].reason_code(), 0x26);
    // Back to remapped format.
    assert_eq!(lab.route_interrupt(first.source_id, 0x51), message);
    send(&lab, first, message);
    raised(&lab, first.source_id, 0x51);
    lab.expect_no_violations();
}

fn changed_entry_is_invalidated(place: Place<'_>) {
    let lab = place.lab();
    let requester = device(&lab, 0);
    let message = lab.route_interrupt(requester.source_id, 0x51);
    // Hardware may cache the entry now.
    send(&lab, requester, message);
    raised(&lab, requester.source_id, 0x51);
    lab.take_submitted();
    let again = lab.route_interrupt(requester.source_id, 0x52);
    assert_eq!(again, message, "the same entry, changed");
    let submitted = lab.take_submitted();
    let invalidated = |one: &crate::lab::Submitted| one.kind == kind::INTERRUPT_ENTRY_CACHE;
    assert!(submitted.iter().any(invalidated), "{submitted:x?}");
    send(&lab, requester, message);
    raised(&lab, requester.source_id, 0x52);
    lab.expect_no_violations();
}

fn windows_over_protected_pages(place: Place<'_>) {
    let mut guest = place.guest();
    const BAR0: u16 = 0x10;
    const BRIDGE_WINDOW: u16 = 0x20;
    let bridge = SourceId::from_u16(0x0008);
    let unit = 0xfed9_0000_u32;
    assert!(!later::write_configuration(&mut guest, D0, BAR0, unit));
    let window = unit & 0xfff0_0000 | unit >> 16 & 0xfff0;
    assert!(!later::write_configuration(
        &mut guest,
        bridge,
        BRIDGE_WINDOW,
        window
    ));
    // Elsewhere it is the guest's own business.
    assert!(later::write_configuration(
        &mut guest,
        D0,
        BAR0,
        0xfe00_0000
    ));
    guest.finish();
}
