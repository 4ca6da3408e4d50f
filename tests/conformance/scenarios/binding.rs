//! PASID cache and binding: which of a guest's entries hardware gets, and when (S1 to S4, S9 to
//! S12, S25, S26).

use vtd_nest::arch::address::{Gpa, Hpa, PageSize};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::DomainId;
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::paging::Rights;

use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, Guest, GuestOptions, IOVA, Place};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S1 R18 R19 R28",
        "a present entry is bound, and nothing else",
        s1,
    ),
    scenario(
        "S1 R18 R19",
        "root and flags of a first-stage entry are copied, and nothing else",
        s1_nested,
    )
    .needs(&[Need::Nesting, Need::PASID]),
    scenario(
        "S2 R8 R10",
        "an invalidation of another domain-id or PASID binds nothing and leaves no trace",
        s2,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S3 R6 R10",
        "an entry passed over is bound by the invalidation that covers it",
        s3,
    )
    .needs(&[Need::ScalableMode]),
    scenario("S4 R4 G39", "an unchanged entry costs hardware nothing", s4),
    scenario(
        "S9 R4 R9",
        "an entry whose present bit is cleared is unbound",
        s9,
    ),
    scenario(
        "S10 R4 R9 R12",
        "a domain's absent entries are unbound, its others are not touched",
        s10,
    ),
    scenario(
        "S11 R1",
        "two devices with one PASID table are both bound, and one invalidation serves both",
        s11,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S12 R1 R8",
        "of two devices with tables of their own only the matching one changes",
        s12,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S25 R17 R28",
        "a PASID works without PASID 0, requests without PASID need their own entry",
        s25,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S26 R3",
        "an entry for a device that the machine does not have costs hardware nothing",
        s26_foreign,
    ),
    scenario(
        "S26 R3 R33",
        "an emulated device's entry costs hardware nothing, and leads its requests",
        s26,
    ),
];

fn s1(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let pasid = guest.pasid;
        guest.expect_no_data(D0, guest.tag, IOVA);
        let (_, page) = guest.bind(D0, pasid, 7);
        guest.expect_reaches(D0, guest.tag, IOVA, page);
        guest.expect_writes_reach(D0, guest.tag, IOVA, page);
        guest.expect_no_data(D0, guest.tag, IOVA + 0x1000);
        for (device, other) in [(D0, 0), (D0, 4), (D0, 6), (D0, 69), (D1, 0), (D1, pasid)] {
            if (device, other) != (D0, pasid) {
                assert_eq!(guest.hardware_entry(device, other), None);
            }
        }
        guest.expect_no_data(D1, guest.tag, IOVA);
        guest.finish();
    }
}

fn s1_nested(place: Place<'_>) {
    let mut guest = place.guest();
    let page = guest.data_page();
    let root = guest.table(&[(IOVA, page)]);
    // What a guest may not pass on: its domain-id and second-stage fields, FPD.
    let mut quadwords = *guest.entry(root, 7).quadwords();
    quadwords[0] |= 2 | 2 << 2;
    guest.set_entry(D0, 5, &PasidEntry::from_quadwords(quadwords));
    guest.set_entry(D1, 9, &Guest::pass_through(7));
    guest.invalidate_pasid_domain(7);
    let hardware = guest.hardware_entry(D0, 5).expect("an entry");
    assert_eq!(hardware.translation_type_field(), 3);
    assert_eq!(hardware.first_stage_root::<Gpa>(), Gpa::new(root));
    assert_eq!(hardware.paging_mode_field(), 0);
    assert!(!hardware.is_supervisor_request_enabled());
    assert!(!hardware.is_write_protect_enabled());
    assert!(!hardware.is_extended_accessed_enabled());
    assert!(!hardware.is_fault_processing_disabled());
    assert_ne!(hardware.domain_id(), DomainId::new(7));
    assert_ne!(hardware.domain_id(), DomainId::ZERO);
    let bit_133 = hardware.quadwords()[2] >> 5 & 1;
    assert_eq!(bit_133, 1, "bit 133 is always set");
    let machine = guest.hardware_entry(D1, 9).expect("an entry");
    assert_eq!(
        (
            hardware.second_stage_root::<Hpa>(),
            hardware.address_width_field()
        ),
        (
            machine.second_stage_root::<Hpa>(),
            machine.address_width_field()
        ),
        "over the machine's own second stage"
    );
    guest.expect_reaches(D0, Some(5), IOVA, page);
    guest.finish();
}

/// An entry that no invalidation has named yet: its PASID's page.
fn unnamed_entry(guest: &mut Guest) -> u64 {
    let (root, page) = guest.other_table();
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, guest.pasid, &entry);
    page
}

fn s2(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let pasid = guest.pasid;
        unnamed_entry(&mut guest);
        guest.expect_no_operation(|guest| {
            guest.invalidate_pasid(8, pasid);
            guest.invalidate_pasid(7, pasid + 1);
            guest.invalidate_pasid(7, pasid + 64);
            guest.invalidate_pasid_domain(8);
        });
        assert_eq!(guest.hardware_entry(D0, pasid), None);
        guest.expect_no_data(D0, guest.tag, IOVA);
        // No entry is left behind that would be looked at again.
        guest.set_entry(D0, pasid, &PasidEntry::default());
        guest.expect_no_operation(|guest| guest.invalidate_pasid_global());
        guest.expect_blocked(D0, guest.tag, IOVA, FaultReason::PasidEntryNotPresent);
        guest.finish();
    }
}

fn s3(place: Place<'_>) {
    let covering: [fn(&mut Guest); 3] = [
        |guest| guest.invalidate_pasid_domain(7),
        |guest| guest.invalidate_pasid(7, guest.pasid),
        |guest| guest.invalidate_pasid_global(),
    ];
    for invalidate in covering {
        for mut guest in place.each_guest() {
            let page = unnamed_entry(&mut guest);
            guest.invalidate_pasid(8, guest.pasid);
            assert_eq!(guest.hardware_entry(D0, guest.pasid), None);
            invalidate(&mut guest);
            guest.expect_reaches(D0, guest.tag, IOVA, page);
            guest.finish();
        }
    }
}

fn s4(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (_, page) = guest.bound();
        guest.expect_no_operation(|guest| {
            for _ in 0..2 {
                guest.invalidate_pasid(7, guest.pasid);
                guest.invalidate_pasid_domain(7);
                guest.invalidate_pasid_global();
            }
        });
        assert_eq!(guest.lab.hypervisor.take_descriptors(), [[0; 4]; 0]);
        guest.expect_reaches(D0, guest.tag, IOVA, page);
        guest.finish();
    }
}

fn s9(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let pasid = guest.pasid;
        let before = guest.holdings();
        let (root, page) = guest.bound();
        let mut quadwords = *guest.entry(root, 7).quadwords();
        quadwords[0] &= !1;
        guest.set_entry(D0, pasid, &PasidEntry::from_quadwords(quadwords));
        let watch = guest.watch(D0, guest.tag, IOVA);
        guest.invalidate_pasid(7, pasid);
        watch.expect_only(&[page]);
        assert_eq!(guest.hardware_entry(D0, pasid), None);
        guest.expect_blocked(D0, guest.tag, IOVA, FaultReason::PasidEntryNotPresent);
        assert_eq!(guest.holdings(), before, "what it held is given back");
        // Its other bits are as they were: it is bound again as soon as it is present.
        quadwords[0] |= 1;
        guest.set_entry(D0, pasid, &PasidEntry::from_quadwords(quadwords));
        guest.invalidate_pasid(7, pasid);
        guest.expect_reaches(D0, guest.tag, IOVA, page);
        guest.finish();
    }
}

fn s10(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (root, page) = guest.bound();
        let (other_root, other_page) = guest.other_table();
        let (pasid, tag) = (guest.pasid, guest.tag);
        let mut gone = vec![(D0, pasid)];
        let mut kept = vec![(D1, pasid, page)];
        if tag.is_some() {
            gone.extend([(D0, 6), (D1, 900)]);
            kept.extend([(D0, 70, page), (D0, 8, other_page), (D1, 0, page)]);
        }
        for (device, pasid) in gone.iter().copied() {
            let entry = guest.entry(root, 7);
            guest.set_entry(device, pasid, &entry);
        }
        for (device, pasid, reached) in kept.iter().copied() {
            let entry = match reached == page {
                true => guest.entry(root, 7),
                false => guest.entry(other_root, 9),
            };
            guest.set_entry(device, pasid, &entry);
        }
        guest.invalidate_pasid_global();
        let tag_of = |pasid: u32| (pasid != 0).then_some(pasid);
        for (device, pasid) in gone.iter().copied() {
            guest.expect_reaches(device, tag_of(pasid), IOVA, page);
        }
        let entries = |guest: &Guest| -> Vec<_> {
            let entry = |(device, pasid, _): &(_, _, _)| guest.hardware_entry(*device, *pasid);
            kept.iter().map(entry).collect()
        };
        let before = entries(&guest);
        assert!(before.iter().all(Option::is_some));
        for (device, pasid) in gone.iter().copied() {
            guest.set_entry(device, pasid, &PasidEntry::default());
        }
        // Absent as well, but of a domain that is not named.
        if tag.is_some() {
            guest.set_entry(D0, 8, &PasidEntry::default());
        }
        let watch = guest.watch(D1, tag, IOVA);
        guest.invalidate_pasid_domain(7);
        assert!(!watch.end().contains(&None), "never blocked meanwhile");
        for (device, pasid) in gone.iter().copied() {
            assert_eq!(guest.hardware_entry(device, pasid), None);
            guest.expect_blocked(
                device,
                tag_of(pasid),
                IOVA,
                FaultReason::PasidEntryNotPresent,
            );
        }
        assert_eq!(entries(&guest), before);
        for (device, pasid, page) in kept.iter().copied() {
            guest.expect_reaches(device, tag_of(pasid), IOVA, page);
        }
        guest.finish();
    }
}

fn s11(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (pasid, tag) = (guest.pasid, guest.tag);
        let mut context = [0; 32];
        guest.read(guest.context_at(D0), &mut context);
        guest.write(guest.context_at(D1), &context);
        guest.invalidate_context(D1);
        let (root, page) = guest.bind(D0, pasid, 7);
        guest.expect_reaches(D0, tag, IOVA, page);
        guest.expect_reaches(D1, tag, IOVA, page);
        let domain_id = |device| guest.hardware_entry(device, pasid).unwrap().domain_id();
        assert_eq!(domain_id(D0), domain_id(D1), "one host domain-id");
        // The guest names its page once, and so does hardware's invalidation.
        let other = guest.data_page();
        guest.map(root, IOVA, Some(other));
        guest.lab.hypervisor.take_descriptors();
        guest.invalidate_pages(7, IOVA, 0);
        let descriptors = guest.lab.hypervisor.take_descriptors();
        assert_eq!(descriptors.len(), 1, "{descriptors:x?}");
        guest.expect_reaches(D0, tag, IOVA, other);
        guest.expect_reaches(D1, tag, IOVA, other);
        // And both go together.
        guest.set_entry(D0, pasid, &PasidEntry::default());
        guest.invalidate_pasid(7, pasid);
        for device in [D0, D1] {
            guest.expect_blocked(device, tag, IOVA, FaultReason::PasidEntryNotPresent);
        }
        guest.finish();
    }
}

fn s12(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (pasid, tag) = (guest.pasid, guest.tag);
        let (_, first) = guest.bind(D0, pasid, 7);
        let (_, second) = guest.bind(D1, pasid, 9);
        guest.expect_reaches(D0, tag, IOVA, first);
        guest.expect_reaches(D1, tag, IOVA, second);
        // Both change; the invalidation is for one of them.
        let (first_root, _) = guest.other_table();
        let (second_root, new) = guest.other_table();
        let entries = [guest.entry(first_root, 7), guest.entry(second_root, 9)];
        guest.set_entry(D0, pasid, &entries[0]);
        guest.set_entry(D1, pasid, &entries[1]);
        let before = guest.hardware_entry(D0, pasid);
        let watch = guest.watch(D0, tag, IOVA);
        guest.invalidate_pasid(9, pasid);
        assert_eq!(watch.end().into_iter().find(|at| *at != Some(first)), None);
        assert_eq!(guest.hardware_entry(D0, pasid), before);
        guest.expect_reaches(D0, tag, IOVA, first);
        guest.expect_reaches(D1, tag, IOVA, new);
        guest.finish();
    }
}

fn s25(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (_, page) = guest.bound();
        guest.expect_blocked(D0, None, IOVA, FaultReason::PasidEntryNotPresent);
        guest.expect_reaches(D0, Some(5), IOVA, page);
        // And the other way around.
        let (root, other) = guest.other_table();
        let entry = guest.entry(root, 9);
        guest.set_entry(D0, 0, &entry);
        guest.set_entry(D0, 5, &PasidEntry::default());
        guest.invalidate_pasid_global();
        guest.expect_reaches(D0, None, IOVA, other);
        guest.expect_blocked(D0, Some(5), IOVA, FaultReason::PasidEntryNotPresent);
        guest.finish();
    }
}

/// A guest that names a device which is not assigned to it: an entry for it, the table and page that
/// the entry leads to.
fn guest_with_another_device(place: Place<'_>) -> (Guest, PasidEntry, u64, u64) {
    let mut guest = place.guest_with(GuestOptions {
        devices: vec![(D0, 0, 0)],
        ..GuestOptions::default()
    });
    let (root, page) = guest.bound();
    guest.install_tables(D1);
    let entry = guest.entry(root, 7);
    (guest, entry, root, page)
}

/// Invalidations of every kind that cover an entry of D1 and cost hardware nothing.
fn expect_d1_costs_nothing(guest: &mut Guest, entry: &PasidEntry) {
    let pasid = guest.pasid;
    for entry in [entry, &Guest::pass_through(7), &PasidEntry::default()] {
        guest.set_entry(D1, pasid, entry);
        guest.expect_no_operation(|guest| {
            guest.invalidate_context(D1);
            guest.invalidate_pasid(7, pasid);
            guest.invalidate_pasid_domain(7);
            guest.invalidate_pasid_global();
        });
    }
    assert_eq!(guest.lab.hypervisor.take_descriptors(), [[0; 4]; 0]);
}

fn s26_foreign(place: Place<'_>) {
    let (mut guest, entry, ..) = guest_with_another_device(place);
    expect_d1_costs_nothing(&mut guest, &entry);
    guest.finish();
}

fn s26(place: Place<'_>) {
    let (mut guest, entry, root, page) = guest_with_another_device(place);
    guest
        .vm
        .add_emulated_device(D1)
        .expect("room for the device");
    expect_d1_costs_nothing(&mut guest, &entry);

    // Translated in software, as hardware translates for D0 by the same table.
    let (pasid, tag) = (guest.pasid, guest.tag);
    let leaf = guest.slot(root, IOVA);
    let other = guest.data_page();
    let not_mapped = if guest.is_first_stage() {
        FaultReason::FirstStageNotPresent
    } else {
        guest.shown(FaultReason::SecondStageNotPresent, false)
    };
    guest.expect_no_operation(|guest| {
        guest.set_entry(D1, pasid, &entry);
        guest.invalidate_pasid(7, pasid);
        for offset in [0, 8, 0xff8] {
            assert_eq!(guest.translated(D1, IOVA + offset), Ok(page + offset));
        }
        let statistics = guest.vm.virtual_unit_statistics();
        assert_eq!(
            (statistics.translation_walks, statistics.translation_hits),
            (1, 2)
        );
    });
    // What the guest changes counts from its invalidation on, for both devices.
    let new = guest.leaf(other, PageSize::Size4KiB, Rights::READ_WRITE);
    guest.write_u64(leaf, new);
    assert_eq!(guest.translated(D1, IOVA), Ok(page), "not invalidated");
    guest.invalidate_pages(7, IOVA, 0);
    assert_eq!(guest.translated(D1, IOVA), Ok(other));
    guest.expect_reaches(D0, tag, IOVA, other);
    // A fault is the emulated device's own.
    let absent = IOVA + 0x1000;
    assert_eq!(guest.translated(D1, absent), Err(not_mapped));
    let taken = guest.take_faults();
    let [fault] = taken.faults.as_slice() else {
        panic!("{taken:?}");
    };
    assert_eq!((fault.source_id, fault.reason), (D1, not_mapped));
    assert_eq!(fault.address.as_u64(), absent);
    guest.finish();
}
