//! What each operation costs hardware, exactly: submissions and the descriptors in them. README's
//! table quotes these figures.

use vtd_model::ModelConfig;
use vtd_nest::arch::pasid::PasidEntry;

use crate::bench::{Bench, D0, Guest};

const IOVA: u64 = 0x5000;

/// Types of the descriptors beside waits, and submissions, that `change` and its PASID-cache
/// invalidation cause.
fn cost(guest: &mut Guest, domain: u16, change: impl FnOnce(&mut Guest)) -> (u64, Vec<u8>) {
    guest.bench.take_descriptors();
    let before = guest.bench.units[0].statistics().submissions;
    change(guest);
    guest.invalidate_pasid(domain, 5);
    (
        guest.bench.units[0].statistics().submissions - before,
        guest.bench.take_descriptors(),
    )
}

// Cost targets: bind, replace, unbind, unchanged. 7 is a PASID-cache, 2 an IOTLB invalidation.
#[test]
fn each_change_of_a_binding_costs_at_most_one_submission() {
    let caching = [
        ("bind", 1, vec![7, 7, 2]),
        ("unchanged", 0, vec![]),
        ("new root", 1, vec![7, 7, 2]),
        ("pass-through", 2, vec![7, 7, 2, 7, 7, 2]),
        ("unbind", 1, vec![7, 7, 2]),
    ];
    let plain = [
        ("bind", 0, vec![]),
        ("unchanged", 0, vec![]),
        ("new root", 1, vec![7, 2]),
        ("pass-through", 1, vec![7, 2]),
        ("unbind", 1, vec![7, 2]),
    ];
    for (config, expected) in [
        (ModelConfig::nesting_server(), plain),
        (ModelConfig::caching_mode(), caching),
    ] {
        let mut guest = Guest::new(Bench::new(config));
        let page = guest.page();
        let (root, other) = (guest.table(&[(IOVA, page)]), guest.table(&[(IOVA, page)]));
        let (entry, new_root) = (guest.entry(root, 7), guest.entry(other, 7));
        let changes = [
            entry,
            entry,
            new_root,
            Guest::pass_through(7),
            PasidEntry::default(),
        ];
        for (change, (name, submissions, descriptors)) in changes.into_iter().zip(expected) {
            let found = cost(&mut guest, 7, |guest| guest.set_entry(D0, 5, &change));
            assert_eq!(found, (submissions, descriptors), "{name}");
        }
        guest.bench.model.unit.assert_no_violations();
    }
}

// R4, S13: what did not change costs hardware nothing, however much of it there is.
#[test]
fn repeated_global_synchronisation_costs_hardware_nothing() {
    let mut guest = Guest::new(Bench::new(ModelConfig::nesting_server()));
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    let entry = guest.entry(root, 7);
    for pasid in 1..60 {
        guest.set_entry(D0, pasid, &entry);
    }
    guest.invalidate_pasid_global();
    guest.expect_reaches(D0, Some(59), IOVA, page);
    let before = guest.bench.vm.statistics();
    let submissions = guest.bench.units[0].statistics().submissions;
    guest.invalidate_pasid_global();
    assert_eq!(guest.bench.vm.statistics(), before, "nothing changed");
    assert_eq!(guest.bench.units[0].statistics().submissions, submissions);
}
