//! PASID cache and binding: what a guest's entries become on hardware (S1 to S30).

use vtd_nest::arch::address::Gpa;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::DomainId;
use vtd_nest::arch::pasid::PasidEntry;

use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, Guest, IOVA, Place};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S1 R18 R19 R28",
        "a present entry is bound, and nothing else",
        s1,
    ),
    scenario(
        "S1 R19",
        "root and flags of a first-stage entry are copied, and nothing else",
        s1_nested,
    )
    .needs(&[Need::Nesting, Need::PASID]),
    scenario(
        "S2 R8 R10",
        "an invalidation of another domain-id binds nothing",
        s2,
    ),
    scenario(
        "S9 R4",
        "an entry whose present bit is cleared is unbound",
        s9,
    ),
];

fn s1(place: Place<'_>) {
    let mut guest = place.guest();
    let pasid = guest.pasid;
    guest.expect_no_data(D0, guest.tag, IOVA);
    let (_, page) = guest.bind(D0, pasid, 7);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.expect_writes_reach(D0, guest.tag, IOVA, page);
    assert_eq!(guest.hardware_entry(D1, pasid), None);
    guest.expect_no_data(D1, guest.tag, IOVA);
    guest.finish();
}

fn s1_nested(place: Place<'_>) {
    let mut guest = place.guest();
    let page = guest.data_page();
    let root = guest.table(&[(IOVA, page)]);
    // What a guest may not pass on: its domain-id and second-stage fields, FPD.
    let mut quadwords = *guest.entry(root, 7).quadwords();
    quadwords[0] |= 2 | 2 << 2;
    guest.set_entry(D0, 5, &PasidEntry::from_quadwords(quadwords));
    guest.invalidate_pasid(7, 5);
    let hardware = guest.hardware_entry(D0, 5).expect("an entry");
    assert_eq!(hardware.translation_type_field(), 3);
    assert_eq!(hardware.first_stage_root::<Gpa>(), Gpa::new(root));
    assert!(!hardware.is_fault_processing_disabled());
    assert_ne!(hardware.domain_id(), DomainId::new(7));
    assert_ne!(hardware.domain_id(), DomainId::ZERO);
    let bit_133 = hardware.quadwords()[2] >> 5 & 1;
    assert_eq!(bit_133, 1, "bit 133 is always set");
    guest.expect_reaches(D0, Some(5), IOVA, page);
    guest.finish();
}

fn s2(place: Place<'_>) {
    let mut guest = place.guest();
    let pasid = guest.pasid;
    let (root, _) = guest.other_table();
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, pasid, &entry);
    guest.invalidate_pasid(8, pasid);
    assert_eq!(guest.hardware_entry(D0, pasid), None);
    assert_eq!(guest.lab.hypervisor.take_descriptors(), [[0; 4]; 0]);
    guest.expect_no_data(D0, guest.tag, IOVA);
    guest.finish();
}

fn s9(place: Place<'_>) {
    let mut guest: Guest = place.guest();
    let pasid = guest.pasid;
    let (root, _) = guest.bound();
    let mut quadwords = *guest.entry(root, 7).quadwords();
    quadwords[0] &= !1;
    guest.set_entry(D0, pasid, &PasidEntry::from_quadwords(quadwords));
    guest.invalidate_pasid(7, pasid);
    assert_eq!(guest.hardware_entry(D0, pasid), None);
    guest.expect_blocked(D0, guest.tag, IOVA, FaultReason::PasidEntryNotPresent);
    guest.finish();
}
