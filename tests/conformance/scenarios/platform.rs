//! What a hypervisor has to do on its platform: interrupt routing.

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::capability::ExtendedCapabilityField as Ecap;

use crate::bench::Requester;
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{Lab, Place, kind, later};

const HOST_SIDE: &str = "host side, complete";
const REMAPS: &[Need] = &[Need::Extended(Ecap::INTERRUPT_REMAPPING, "IR")];

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "G2",
        "every present interrupt entry of the host validates its source",
        sources_are_validated,
    )
    .needs(REMAPS)
    .pending(HOST_SIDE),
    scenario(
        "G30",
        "a changed interrupt entry of the host is invalidated before its old target is reused",
        changed_entry_is_invalidated,
    )
    .needs(REMAPS)
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

fn sources_are_validated(place: Place<'_>) {
    let lab = place.lab();
    let (first, second) = (device(&lab, 0), device(&lab, 1));
    let (address, data) = later::route_interrupt(&lab, first.source_id, 0x51);
    let present = super::interrupts::hardware_entries(&lab);
    assert!(!present.is_empty());
    for entry in present {
        // SVT 01 and SQ 00: the whole source-id is compared (§9.9).
        assert_eq!((entry[1] >> 18 & 3, entry[1] >> 16 & 3), (1, 0));
        assert_eq!(entry[1] & 0xffff, u64::from(first.source_id.as_u16()));
    }
    // Another device that sends the same message is told apart.
    lab.hypervisor
        .dma_write(second, Iova::new(address), &data.to_le_bytes());
    let faults = lab.take_unclaimed_faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].reason_code(), 0x26);
    lab.expect_no_violations();
}

fn changed_entry_is_invalidated(place: Place<'_>) {
    let lab = place.lab();
    let requester = device(&lab, 0);
    let (address, data) = later::route_interrupt(&lab, requester.source_id, 0x51);
    // Hardware may cache the entry now.
    lab.hypervisor
        .dma_write(requester, Iova::new(address), &data.to_le_bytes());
    lab.take_submitted();
    let again = later::route_interrupt(&lab, requester.source_id, 0x52);
    assert_eq!(again, (address, data), "the same entry, changed");
    let submitted = lab.take_submitted();
    let invalidated = |one: &crate::lab::Submitted| one.kind == kind::INTERRUPT_ENTRY_CACHE;
    assert!(submitted.iter().any(invalidated), "{submitted:x?}");
    lab.expect_no_violations();
}
