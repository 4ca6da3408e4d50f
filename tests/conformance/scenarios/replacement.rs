//! What becomes of a binding whose entry changes (S5 to S8, S17, S18, S27).

use std::cell::Cell;
use std::rc::Rc;

use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::arch::context::DirectoryOrder;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::DomainId;
use vtd_nest::arch::pasid::PasidEntry;

use crate::bench::{Access, Hold};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, GUEST_LEN_BYTES, Guest, IOVA, Place, changed};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S5 R4 R20 R12",
        "a new root replaces the old one, which is never used again",
        s5,
    ),
    scenario(
        "S5 R20",
        "changes come true in their order, however late hardware confirms",
        s5_slow_hardware,
    ),
    scenario(
        "S6 R4 R19",
        "a change of what hardware ignores changes nothing and is no error",
        s6,
    ),
    scenario(
        "S7 R9",
        "a changed domain-id is followed when the old one is invalidated",
        |place| changed_domain_id(place, 7),
    ),
    scenario(
        "S8 R9",
        "a changed domain-id is followed when the new one is invalidated",
        |place| changed_domain_id(place, 9),
    ),
    scenario(
        "S17 R18",
        "a pass-through entry is the machine's memory and no more",
        s17,
    ),
    scenario(
        "S18 R18 R20",
        "translated, passed through and back: each a replacement, one object at the end",
        s18,
    ),
    scenario(
        "S27 G36",
        "an entry that changes while it is read is one of its versions or nothing",
        s27,
    )
    .needs(&[Need::ScalableMode]),
];

/// What of an entry in hardware's tables decides where a request goes.
fn effect(entry: &PasidEntry) -> (u8, Hpa, Gpa) {
    (
        entry.translation_type_field(),
        entry.second_stage_root(),
        entry.first_stage_root(),
    )
}

fn s5(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (pasid, tag) = (guest.pasid, guest.tag);
        let (first_root, first) = guest.bound();
        let (second_root, second) = guest.other_table();
        let before = guest.holdings();
        let (mut old, mut new) = ((first_root, first), (second_root, second));
        for _ in 0..6 {
            let entry = guest.entry(new.0, 7);
            guest.set_entry(D0, pasid, &entry);
            let watch = guest.watch(D0, tag, IOVA);
            guest.invalidate_pasid(7, pasid);
            watch.expect_only(&[old.1, new.1]);
            guest.expect_reaches(D0, tag, IOVA, new.1);
            guest.expect_writes_reach(D0, tag, IOVA, new.1);
            assert_eq!(guest.holdings(), before, "nothing more is held");
            (old, new) = (new, old);
        }
        // The table left behind is the guest's again: what it does with it matters to nobody.
        let page = guest.data_page();
        guest.map(new.0, IOVA, Some(page));
        guest.expect_reaches(D0, tag, IOVA, old.1);
        guest.finish();
    }
}

fn s5_slow_hardware(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (pasid, tag) = (guest.pasid, guest.tag);
        let (first, _) = guest.bound();
        let (second, page) = guest.other_table();
        guest.lab.hypervisor.hold(Hold::For(50_000));
        for round in 0..6u16 {
            let root = if round % 2 == 0 { second } else { first };
            let entry = guest.entry(root, 7 + round % 3);
            guest.set_entry(D0, pasid, &entry);
            guest.invalidate_pasid_domain(0);
            guest.set_entry(D0, pasid, &PasidEntry::default());
            guest.invalidate_pasid_global();
            assert_eq!(guest.hardware_entry(D0, pasid), None);
            guest.expect_no_data(D0, tag, IOVA);
        }
        let entry = guest.entry(second, 9);
        guest.set_entry(D0, pasid, &entry);
        guest.invalidate_pasid_global();
        guest.expect_reaches(D0, tag, IOVA, page);
        guest.finish();
    }
}

fn s6(place: Place<'_>) {
    // Bits 133 and 134 are ignored; FPD says what is recorded, not where a request goes; drivers
    // write AW into first-stage entries.
    for (quadword, bit) in [(2, 1 << 5), (2, 1 << 6), (0, 1 << 1), (0, 2 << 2)] {
        for mut guest in place.each_guest() {
            if bit == 2 << 2 && !guest.is_first_stage() {
                continue;
            }
            let pasid = guest.pasid;
            let (root, page) = guest.bound();
            let entry = guest.entry(root, 7);
            let before = guest.hardware_entry(D0, pasid);
            for set in [true, false] {
                let entry = changed(&entry, |quadwords| {
                    quadwords[quadword] ^= if set { bit } else { 0 };
                });
                guest.set_entry(D0, pasid, &entry);
                guest.expect_no_operation(|guest| {
                    guest.invalidate_pasid(7, pasid);
                    guest.invalidate_pasid_global();
                });
            }
            assert_eq!(guest.hardware_entry(D0, pasid), before);
            assert_eq!(guest.take_faults().faults, []);
            guest.expect_reaches(D0, guest.tag, IOVA, page);
            guest.finish();
        }
    }
}

/// The domain-id of a bound entry changes from 7 to 9, and one of the two is invalidated.
fn changed_domain_id(place: Place<'_>, named: u16) {
    for same_root in [false, true] {
        for mut guest in place.each_guest() {
            let (pasid, tag) = (guest.pasid, guest.tag);
            let (first_root, first) = guest.bound();
            let before = guest.holdings();
            let (root, page) = match same_root {
                true => (first_root, first),
                false => guest.other_table(),
            };
            let entry = guest.entry(root, 9);
            guest.set_entry(D0, pasid, &entry);
            let watch = guest.watch(D0, tag, IOVA);
            guest.invalidate_pasid(named, pasid);
            watch.expect_only(&[first, page]);
            guest.expect_reaches(D0, tag, IOVA, page);
            assert_eq!(guest.holdings(), before, "nothing more is held");
            // It is of domain 9 now: invalidations of 7 are none of its business.
            let other = guest.data_page();
            guest.map(root, IOVA, Some(other));
            guest.lab.hypervisor.take_descriptors();
            guest.invalidate_pages(7, IOVA, 0);
            assert_eq!(guest.lab.hypervisor.take_descriptors(), [[0; 4]; 0]);
            guest.invalidate_pages(9, IOVA, 0);
            guest.expect_reaches(D0, tag, IOVA, other);
            // And goes with domain 9.
            guest.set_entry(D0, pasid, &PasidEntry::default());
            guest.invalidate_pasid(9, pasid);
            guest.expect_blocked(D0, tag, IOVA, FaultReason::PasidEntryNotPresent);
            guest.finish();
        }
    }
}

fn s17(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (pasid, tag) = (guest.pasid, guest.tag);
        let page = guest.data_page();
        guest.set_entry(D0, pasid, &Guest::pass_through(7));
        guest.set_entry(D1, pasid, &Guest::pass_through(9));
        guest.invalidate_pasid(7, pasid);
        if !guest.is_legacy() {
            // In legacy mode the invalidation names all contexts.
            assert_eq!(guest.hardware_entry(D1, pasid), None);
        }
        guest.invalidate_pasid(9, pasid);
        let hardware = guest.hardware_entry(D0, pasid).expect("an entry");
        let other = guest.hardware_entry(D1, pasid).expect("an entry");
        assert_eq!(hardware.translation_type_field(), 2, "second stage only");
        assert_eq!(effect(&hardware), effect(&other), "the machine's memory");
        assert_ne!(hardware.domain_id(), DomainId::ZERO);
        for device in [D0, D1] {
            guest.expect_reaches(device, tag, page, page);
            guest.expect_writes_reach(device, tag, page, page);
            for address in [GUEST_LEN_BYTES, 0x7fff_f000] {
                guest.expect_blocked(device, tag, address, FaultReason::ReadDenied);
                guest.expect_access_blocked(
                    device,
                    tag,
                    address,
                    Access::Write,
                    FaultReason::WriteDenied,
                );
            }
        }
        guest.finish();
    }
}

fn s18(place: Place<'_>) {
    for mut guest in place.each_guest() {
        // PASID 0 here, whatever devices can do.
        let (root, page) = guest.bind(D0, 0, 7);
        guest.expect_reaches(D0, None, IOVA, page);
        let before = guest.holdings();
        let translated = guest.entry(root, 7);
        for _ in 0..3 {
            for (entry, address) in [(Guest::pass_through(7), page), (translated, IOVA)] {
                guest.set_entry(D0, 0, &entry);
                let counted = guest.vm.virtual_unit_statistics();
                let watch = guest.watch(D0, None, IOVA);
                guest.invalidate_pasid(7, 0);
                watch.expect_only(&[page]);
                let now = guest.vm.virtual_unit_statistics();
                assert_eq!(now.replacements, counted.replacements + 1);
                assert_eq!((now.binds, now.unbinds), (counted.binds, counted.unbinds));
                guest.expect_reaches(D0, None, address, page);
                let elsewhere = if address == page { IOVA } else { page };
                guest.expect_no_data(D0, None, elsewhere);
            }
        }
        assert_eq!(guest.holdings(), before, "one object at the end");
        guest.finish();
    }
}

/// The entry of a PASID changes before a given read that touches it, or before each one. Gives the
/// number of such reads.
fn change_at_read(
    guest: &mut Guest,
    versions: [PasidEntry; 2],
    which: Option<u32>,
) -> Rc<Cell<u32>> {
    let at = guest.entry_at(D0, guest.pasid);
    let host = guest.host_of(Gpa::new(at));
    let reads = Rc::new(Cell::new(0));
    let counter = reads.clone();
    guest
        .lab
        .hypervisor
        .on_guest_read(move |hypervisor, from, len| {
            let (from, end) = (from.as_u64(), from.as_u64() + len as u64);
            if from >= host.as_u64() + 64 || host.as_u64() >= end {
                return;
            }
            let read = counter.get();
            counter.set(read + 1);
            if which.is_none_or(|which| which == read) {
                let version = versions[if which.is_some() {
                    1
                } else {
                    read as usize & 1
                }];
                hypervisor.guest_write(host, &version.to_bytes());
            }
        });
    reads
}

fn s27(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (pasid, tag) = (guest.pasid, guest.tag);
        // Small directories keep the many global invalidations short.
        for device in [D0, D1] {
            guest.install_context(device, DirectoryOrder::SMALLEST);
            guest.invalidate_context(device);
        }
        let (first_root, first) = guest.other_table();
        let (second_root, second) = guest.other_table();
        // Mixtures of these pass for valid entries: a root of one with the domain-id of another, a
        // type without its root.
        let entries = [
            guest.entry(first_root, 7),
            guest.entry(second_root, 9),
            Guest::pass_through(8),
            PasidEntry::default(),
            changed(&guest.entry(first_root, 7), |quadwords| {
                quadwords[0] |= 7 << 6
            }),
        ];
        let pages = [first, second];
        // What each becomes when nobody interferes.
        let mut effects = Vec::new();
        for entry in &entries {
            guest.set_entry(D0, pasid, entry);
            guest.invalidate_pasid_global();
            let hardware = guest.hardware_entry(D0, pasid);
            effects.push((
                hardware.map(|entry| {
                    (
                        entry.translation_type_field(),
                        entry.first_stage_root::<Gpa>(),
                    )
                }),
                guest.reached(D0, tag, IOVA),
            ));
        }
        for (before, after) in [
            (0, 1),
            (1, 0),
            (0, 2),
            (2, 1),
            (0, 3),
            (3, 1),
            (1, 4),
            (4, 2),
        ] {
            for global in [false, true] {
                let invalidate = |guest: &mut Guest| match global {
                    true => guest.invalidate_pasid_global(),
                    false => guest.invalidate_pasid(0, pasid),
                };
                let mut which = Some(0);
                loop {
                    guest.set_entry(D0, pasid, &PasidEntry::default());
                    guest.invalidate_pasid_global();
                    guest.set_entry(D0, pasid, &entries[before]);
                    let versions = [entries[before], entries[after]];
                    let reads = change_at_read(&mut guest, versions, which);
                    invalidate(&mut guest);
                    guest.lab.hypervisor.clear_hooks();
                    let reads = reads.get();
                    assert!(reads > 0, "the entry is read");
                    let hardware = guest.hardware_entry(D0, pasid);
                    let effect = (
                        hardware.map(|entry| {
                            (entry.translation_type_field(), entry.first_stage_root())
                        }),
                        guest.reached(D0, tag, IOVA),
                    );
                    let allowed = [effects[before], effects[after], (None, None)];
                    assert!(
                        allowed.contains(&effect),
                        "{effect:x?} is none of {allowed:x?}"
                    );
                    // Whichever it is, it has its own domain-id.
                    if let Some(index) = pages.iter().position(|page| effect.1 == Some(*page)) {
                        expect_domain(&mut guest, [first_root, second_root][index], [7, 9][index]);
                    }
                    which = match which {
                        Some(read) if read + 1 < reads.min(8) => Some(read + 1),
                        Some(_) => None,
                        None => break,
                    };
                }
                // And the next invalidation finds what is there by then.
                let at = guest.entry_at(D0, pasid);
                let mut now = [0; 64];
                guest.read(at, &mut now);
                let now = entries.iter().position(|entry| entry.to_bytes() == now);
                guest.invalidate_pasid_global();
                let reached = guest.reached(D0, tag, IOVA);
                assert_eq!(Some(reached), now.map(|now| effects[now].1));
            }
        }
        guest.take_faults();
        guest.finish();
    }
}

/// A binding to a table is covered by invalidations of its domain-id and no other.
#[track_caller]
fn expect_domain(guest: &mut Guest, root: u64, domain: u16) {
    let slot = guest.slot(root, IOVA);
    let page = guest.read_u64(slot) & 0x000f_ffff_ffff_f000;
    let other = guest.data_page();
    guest.map(root, IOVA, Some(other));
    guest.lab.hypervisor.take_descriptors();
    guest.invalidate_pages(16 - domain, IOVA, 0);
    assert_eq!(guest.lab.hypervisor.take_descriptors(), [[0; 4]; 0]);
    guest.invalidate_pages(domain, IOVA, 0);
    guest.expect_reaches(D0, guest.tag, IOVA, other);
    guest.map(root, IOVA, Some(page));
    guest.invalidate_pages(domain, IOVA, 0);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
}
