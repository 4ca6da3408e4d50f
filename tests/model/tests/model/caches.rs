//! Stale entries stay until an invalidation that covers them, and only such.

use vtd_model::{CacheMode, ModelConfig, Violation};
use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::id::DomainId;
use vtd_nest::arch::register::Register64;
use vtd_nest::mem::Registers;

use crate::support::*;

const AT: u64 = 0x40_0000_0000;

fn scalable() -> Bench {
    Bench::new(ModelConfig::nesting_server(), Mode::Scalable)
}

/// A first-stage table that maps [`AT`] to a page with this word.
fn first_root(bench: &Bench, value: u64) -> u64 {
    let root = bench.page();
    bench.map_first(root, AT, bench.data_page(value));
    root
}

fn second_root(bench: &Bench, value: u64) -> u64 {
    let root = bench.page();
    bench.map_second(root, AT, bench.data_page(value));
    root
}

/// Each step is one descriptor and what the device reads afterwards.
fn check_steps(bench: &Bench, steps: &[([u64; 2], u64)]) {
    for (number, (descriptor, expected)) in steps.iter().enumerate() {
        assert!(bench.submit(&[*descriptor]));
        assert_eq!(
            bench.outcome(DEVICE, pasid(5), AT),
            Ok(*expected),
            "step {number}"
        );
    }
}

#[test]
fn a_changed_leaf_is_seen_after_an_invalidation_that_covers_it() {
    let bench = scalable();
    let root = first_root(&bench, 1);
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, root));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(1));
    bench.map_first(root, AT, bench.data_page(2));
    check_steps(
        &bench,
        &[
            (CONTEXT_GLOBAL, 1),
            (PASID_CACHE_GLOBAL, 1),
            (iotlb_domain(8), 1),
            (pasid_iotlb_all(7, 6), 1),
            (pasid_iotlb_all(8, 5), 1),
            (pasid_iotlb_page(7, 5, AT + 0x1000, 0, true), 1),
            (pasid_iotlb_page(7, 5, AT, 0, true), 2),
        ],
    );
    bench.map_first(root, AT, bench.data_page(3));
    // The page form of type 2 drops first-stage entries whatever the address.
    check_steps(&bench, &[(iotlb_page(7, 0, 0, true), 3)]);
    bench.map_first(root, AT, bench.data_page(4));
    check_steps(
        &bench,
        &[(pasid_iotlb_page(7, 5, AT & !0x1_ffff, 5, true), 4)],
    );
    bench.machine.unit.assert_no_violations();
}

#[test]
fn second_stage_pages_go_by_their_address_and_domain() {
    let bench = scalable();
    let root = second_root(&bench, 1);
    bench.set_pasid(DEVICE, 5, bench.second_entry(7, root));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(1));
    bench.map_second(root, AT, bench.data_page(2));
    check_steps(
        &bench,
        &[
            (pasid_iotlb_page(7, 5, AT, 0, false), 1),
            (iotlb_page(7, AT + 0x1000, 0, false), 1),
            (iotlb_page(8, AT, 9, false), 1),
            (iotlb_page(7, AT, 0, true), 2),
        ],
    );
    bench.map_second(root, AT, bench.data_page(3));
    // Type 6 for the whole PASID drops second-stage IOTLB entries too (Table 24).
    check_steps(&bench, &[(pasid_iotlb_all(7, 5), 3)]);
}

#[test]
fn table_pages_are_cached_until_an_invalidation_without_the_leaf_hint() {
    let bench = scalable();
    let root = first_root(&bench, 1);
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, root));
    bench.outcome(DEVICE, pasid(5), AT).unwrap();
    // A new lowest table: the entry above is a non-leaf one.
    let replaced = bench.page();
    let other = first_root(&bench, 2);
    let entry_of_level_2 = |root: u64| {
        let third = bench.get(root + 8 * (AT >> 39 & 0x1ff)) & !0xfff;
        let second = bench.get(third + 8 * (AT >> 30 & 0x1ff)) & !0xfff;
        second + 8 * (AT >> 21 & 0x1ff)
    };
    bench.put(replaced, 0);
    bench.put(entry_of_level_2(root), bench.get(entry_of_level_2(other)));
    check_steps(
        &bench,
        &[
            (pasid_iotlb_page(7, 5, AT, 0, true), 1),
            (pasid_iotlb_page(7, 5, AT + (1 << 21), 0, false), 1),
            (pasid_iotlb_page(7, 5, AT, 0, false), 2),
        ],
    );
    // Second stage: type 6 never reaches the tables.
    let root = second_root(&bench, 3);
    bench.set_pasid(DEVICE, 6, bench.second_entry(9, root));
    assert_eq!(bench.outcome(DEVICE, pasid(6), AT), Ok(3));
    let other = second_root(&bench, 4);
    bench.put(entry_of_level_2(root), bench.get(entry_of_level_2(other)));
    for (descriptor, expected) in [
        (pasid_iotlb_all(9, 6), 3),
        (iotlb_page(9, AT, 0, true), 3),
        (iotlb_page(9, AT, 0, false), 4),
    ] {
        assert!(bench.submit(&[descriptor]));
        assert_eq!(bench.outcome(DEVICE, pasid(6), AT), Ok(expected));
    }
}

#[test]
fn tables_above_an_absent_page_are_cached_too() {
    let bench = scalable();
    let root = first_root(&bench, 1);
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, root));
    let absent = AT + 0x5000;
    assert_eq!(bench.outcome(DEVICE, pasid(5), absent), Err(0x71));
    // The table is replaced, though nothing was mapped at the address.
    let other = bench.page();
    bench.map_first(other, absent, bench.data_page(2));
    let third = |root: u64| root + 8 * (AT >> 39 & 0x1ff);
    bench.put(third(root), bench.get(third(other)));
    assert_eq!(bench.outcome(DEVICE, pasid(5), absent), Err(0x71));
    assert!(bench.submit(&[pasid_iotlb_page(7, 5, absent, 0, false)]));
    assert_eq!(bench.outcome(DEVICE, pasid(5), absent), Ok(2));
}

#[test]
fn a_changed_pasid_entry_needs_pasid_cache_then_iotlb() {
    let bench = scalable();
    let (old, new) = (first_root(&bench, 1), first_root(&bench, 2));
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, old));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(1));
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, new));
    check_steps(
        &bench,
        &[
            (IOTLB_GLOBAL, 1),
            (CONTEXT_GLOBAL, 1),
            (pasid_cache(8, 5), 1),
            (pasid_cache(7, 6), 1),
            (pasid_cache_domain(7), 1),
            (pasid_iotlb_all(7, 5), 2),
        ],
    );
    // The other order leaves the IOTLB filled from the stale entry.
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, old));
    check_steps(
        &bench,
        &[(pasid_iotlb_all(7, 5), 2), (pasid_cache(7, 5), 2)],
    );
    check_steps(&bench, &[(pasid_iotlb_all(7, 5), 1)]);
}

#[test]
fn stale_entries_carry_the_domain_they_were_cached_with() {
    let bench = scalable();
    let (old, new) = (first_root(&bench, 1), first_root(&bench, 2));
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, old));
    bench.outcome(DEVICE, pasid(5), AT).unwrap();
    bench.set_pasid(DEVICE, 5, bench.first_entry(9, new));
    check_steps(
        &bench,
        &[
            (pasid_cache(9, 5), 1),
            (pasid_iotlb_all(9, 5), 1),
            (pasid_cache(7, 5), 1),
            (pasid_iotlb_all(7, 5), 2),
        ],
    );
}

#[test]
fn a_cleared_context_entry_is_used_until_context_cache_and_iotlb_are_invalidated() {
    let bench = scalable();
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, first_root(&bench, 1)));
    bench.outcome(DEVICE, pasid(5), AT).unwrap();
    let context = bench.context_at(DEVICE);
    bench.put(context, bench.get(context) & !1);
    check_steps(
        &bench,
        &[
            (IOTLB_GLOBAL, 1),
            (context_device(OTHER, 0), 1),
            (context_device(DEVICE, 0x55), 1),
        ],
    );
    assert!(bench.submit(&[IOTLB_GLOBAL]));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x41));
}

#[test]
fn legacy_context_entries_go_with_their_domain_only() {
    let bench = Bench::new(ModelConfig::legacy_server(), Mode::Legacy);
    let (old, new) = (second_root(&bench, 1), second_root(&bench, 2));
    bench.set_legacy_context(DEVICE, old | 1, 2 | 7 << 8);
    assert_eq!(bench.outcome(DEVICE, None, AT), Ok(1));
    bench.set_legacy_context(DEVICE, new | 1, 2 | 9 << 8);
    for (descriptor, expected) in [
        (context_device(DEVICE, 9), 1),
        (iotlb_domain(9), 1),
        (context_device(DEVICE, 7), 1),
        (iotlb_domain(7), 2),
    ] {
        assert!(bench.submit(&[descriptor]));
        assert_eq!(bench.outcome(DEVICE, None, AT), Ok(expected));
    }
    bench.machine.unit.assert_no_violations();
}

#[test]
fn nested_entries_hold_second_stage_results_until_a_domain_or_page_invalidation() {
    let bench = scalable();
    let second = bench.page();
    bench.map(Map {
        leaf_level: 3,
        ..Map::second(second, GUEST_OFFSET, 0)
    });
    let first = bench.page() + GUEST_OFFSET;
    let guest_page = 0x20_0000_0000;
    bench.map(Map::guest_first(first, AT, guest_page));
    bench.map_second(second, guest_page, bench.data_page(1));
    bench.set_pasid(DEVICE, 5, bench.nested_entry(7, first, second));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(1));
    bench.map_second(second, guest_page, bench.data_page(2));
    check_steps(
        &bench,
        &[
            (iotlb_page(8, guest_page, 0, false), 1),
            (pasid_iotlb_page(7, 5, guest_page, 0, false), 1),
            (iotlb_page(7, guest_page, 0, true), 2),
        ],
    );
    // The guest's table page moves in the second stage: its host address is cached with the
    // first-stage entry, and type 6 with the leaf hint does not reach it.
    let moved = bench.page();
    let table = |level: u32, from: u64| {
        let at = from - GUEST_OFFSET + 8 * (AT >> (12 + 9 * (level - 1)) & 0x1ff);
        bench.get(at) & 0x000f_ffff_ffff_f000
    };
    let lowest = table(2, table(3, table(4, first)));
    bench.put(moved + 8 * (AT >> 12 & 0x1ff), 0x21_0000_0067);
    bench.map_second(second, 0x21_0000_0000, bench.data_page(3));
    let entry = table(3, table(4, first)) - GUEST_OFFSET + 8 * (AT >> 21 & 0x1ff);
    bench.put(entry, bench.get(entry) & 0xfff | 0x22_0000_0000);
    bench.map_second(second, 0x22_0000_0000, moved);
    assert_ne!(lowest, 0);
    check_steps(
        &bench,
        &[
            (pasid_iotlb_page(7, 5, AT, 0, true), 2),
            (pasid_iotlb_page(7, 5, AT, 0, false), 3),
        ],
    );
    bench.machine.unit.assert_no_violations();
}

#[test]
fn devices_are_told_apart_and_pasids_from_requests_without() {
    let bench = scalable();
    bench.set_pasid(DEVICE, 0, bench.first_entry(7, first_root(&bench, 1)));
    bench.set_pasid(DEVICE, 5, bench.first_entry(8, first_root(&bench, 2)));
    bench.set_pasid(OTHER, 0, bench.first_entry(9, first_root(&bench, 3)));
    for _ in 0..2 {
        assert_eq!(bench.outcome(DEVICE, None, AT), Ok(1));
        assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(2));
        assert_eq!(bench.outcome(OTHER, None, AT), Ok(3));
    }
    // One entry set each for IOTLB and paging structures: five of the six were walks or hits.
    let counters = bench.machine.unit.counters();
    assert_eq!((counters.iotlb_misses, counters.iotlb_hits), (3, 3));
    bench.machine.unit.assert_no_violations();
}

#[test]
fn without_caches_changes_show_at_once() {
    let config = ModelConfig::nesting_server().with_cache_mode(CacheMode::None);
    let bench = Bench::new(config, Mode::Scalable);
    let root = first_root(&bench, 1);
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, root));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(1));
    bench.map_first(root, AT, bench.data_page(2));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(2));
}

#[test]
fn translation_off_and_set_root_pointer_drop_what_the_capabilities_say() {
    for (esrtps, after_set_root) in [(1, 2), (0, 1)] {
        let config = ModelConfig::nesting_server()
            .with_capability(Cap::ENHANCED_SET_ROOT_TABLE_POINTER, esrtps);
        let bench = Bench::new(config, Mode::Scalable);
        let root = first_root(&bench, 1);
        bench.set_pasid(DEVICE, 5, bench.first_entry(7, root));
        bench.outcome(DEVICE, pasid(5), AT).unwrap();
        bench.map_first(root, AT, bench.data_page(2));
        bench.command(SRTP, true);
        assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(after_set_root));
        bench.command(TE, false);
        bench.command(SRTP, true);
        bench.command(TE, true);
        assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(2));
        bench.machine.unit.assert_no_violations();
    }
}

#[test]
fn caching_mode_keeps_what_is_not_present() {
    let bench = Bench::new(ModelConfig::caching_mode(), Mode::Scalable);
    // Context entry.
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x39));
    let root = bench.page();
    bench.set_pasid(DEVICE, 5, bench.second_entry(7, root));
    let at = bench.pasid_at(DEVICE, 5);
    bench.put(at, bench.get(at) & !1);
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x39), "cached");
    assert!(bench.submit(&[context_device(DEVICE, 0)]));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x59));
    // PASID entry.
    bench.put(at, bench.get(at) | 1);
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x59), "cached");
    assert!(bench.submit(&[pasid_cache(0, 5)]));
    // Second-stage tables and pages.
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x79));
    bench.map_second(root, AT, bench.data_page(1));
    for (descriptor, expected) in [
        (pasid_iotlb_page(7, 5, AT, 0, false), Err(0x79)),
        (iotlb_page(7, AT, 0, true), Err(0x79)),
        (iotlb_page(7, AT, 0, false), Ok(1)),
    ] {
        assert!(bench.submit(&[descriptor]));
        assert_eq!(bench.outcome(DEVICE, pasid(5), AT), expected);
    }
    // First-stage tables never.
    assert_eq!(bench.outcome(DEVICE, pasid(6), AT), Err(0x59));
    let root = bench.page();
    bench.set_pasid(DEVICE, 6, bench.first_entry(8, root));
    assert_eq!(
        bench.outcome(DEVICE, pasid(6), AT),
        Err(0x59),
        "present, but not invalidated"
    );
    assert!(bench.submit(&[pasid_cache(8, 6)]));
    assert_eq!(bench.outcome(DEVICE, pasid(6), AT), Err(0x71));
    bench.map_first(root, AT, bench.data_page(2));
    assert_eq!(bench.outcome(DEVICE, pasid(6), AT), Ok(2));
    bench.machine.unit.assert_no_violations();
}

#[test]
fn caching_mode_off_keeps_no_fault() {
    let bench = scalable();
    for (step, code) in [(0, 0x39), (1, 0x41), (2, 0x51), (3, 0x59), (4, 0x79)] {
        match step {
            1 => {
                bench.context_at(DEVICE);
            }
            2 => {
                bench.directory_at(DEVICE, 5);
            }
            3 => {
                bench.pasid_at(DEVICE, 5);
            }
            4 => bench.set_pasid(DEVICE, 5, bench.second_entry(7, bench.page())),
            _ => {}
        }
        assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(code));
    }
    let root = bench.get(bench.pasid_at(DEVICE, 5)) & !0xfff;
    bench.map_second(root, AT, bench.data_page(1));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(1));
}

#[test]
fn entries_that_share_a_domain_must_agree() {
    let id = DomainId::new(7);
    type Row = (&'static str, fn(&Bench), Option<Violation>);
    let rows: &[Row] = &[
        (
            "first-stage roots of different PASIDs",
            |b| {
                b.set_pasid(DEVICE, 5, b.first_entry(7, first_root(b, 1)));
                b.set_pasid(OTHER, 6, b.first_entry(7, first_root(b, 1)));
            },
            None,
        ),
        (
            "first-stage roots of one PASID",
            |b| {
                b.set_pasid(DEVICE, 5, b.first_entry(7, first_root(b, 1)));
                b.set_pasid(OTHER, 5, b.first_entry(7, first_root(b, 1)));
            },
            Some(Violation::DomainFirstStageDiffers {
                domain_id: id,
                pasid: 5,
                first: DEVICE,
                second: OTHER,
            }),
        ),
        (
            "second-stage roots",
            |b| {
                b.set_pasid(DEVICE, 5, b.second_entry(7, second_root(b, 1)));
                b.set_pasid(OTHER, 6, b.second_entry(7, second_root(b, 1)));
            },
            Some(Violation::DomainSecondStageDiffers {
                domain_id: id,
                first: DEVICE,
                second: OTHER,
            }),
        ),
        (
            "one second-stage root",
            |b| {
                let root = second_root(b, 1);
                b.set_pasid(DEVICE, 5, b.second_entry(7, root));
                b.set_pasid(OTHER, 5, b.second_entry(7, root));
            },
            None,
        ),
    ];
    for (name, set, expected) in rows {
        // Whatever is cached, the rules are watched.
        for cache in [CacheMode::Hoarder, CacheMode::None] {
            let config = ModelConfig::nesting_server().with_cache_mode(cache);
            let bench = Bench::new(config, Mode::Scalable);
            set(&bench);
            for device in [DEVICE, OTHER] {
                for number in [5, 6] {
                    let _ = bench.outcome(device, pasid(number), AT);
                }
            }
            let found = bench.machine.unit.violations();
            assert_eq!(found, Vec::from_iter(*expected), "{name}, {cache:?}");
        }
    }
}

#[test]
fn domain_types_and_root_attributes_are_watched() {
    let bench = scalable();
    bench.set_pasid(DEVICE, 5, bench.pass_through_entry(7));
    let mut entry = bench.second_entry(7, 0);
    entry[0] |= second_root(&bench, 1);
    bench.set_pasid(OTHER, 6, entry);
    let _ = (
        bench.outcome(DEVICE, pasid(5), AT),
        bench.outcome(OTHER, pasid(6), AT),
    );
    let found = bench.machine.unit.take_violations();
    assert!(found.contains(&Violation::DomainTypesMixed {
        domain_id: DomainId::new(7)
    }));
    // Removed and invalidated, the domain-id is free for the other type.
    bench.put(bench.pasid_at(DEVICE, 5), 0);
    bench.put(bench.pasid_at(OTHER, 6), 0);
    assert!(bench.submit(&[pasid_cache_domain(7), iotlb_domain(7)]));
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, first_root(&bench, 1)));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(1));
    bench.machine.unit.assert_no_violations();

    let config = ModelConfig::nesting_server()
        .with_extended(Ecap::EXTENDED_ACCESSED, 1)
        .with_extended(Ecap::SECOND_STAGE_ACCESSED_DIRTY, 1);
    let bench = Bench::new(config, Mode::Scalable);
    let root = first_root(&bench, 1);
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, root));
    let mut entry = bench.first_entry(8, root);
    entry[2] |= 1 << 7;
    bench.set_pasid(DEVICE, 6, entry);
    let second = second_root(&bench, 2);
    bench.set_pasid(DEVICE, 7, bench.second_entry(9, second));
    let mut entry = bench.second_entry(10, second);
    entry[0] |= 1 << 9;
    bench.set_pasid(DEVICE, 8, entry);
    for number in 5..9 {
        bench.outcome(DEVICE, pasid(number), AT).unwrap();
    }
    assert_eq!(
        bench.machine.unit.violations(),
        [
            Violation::FirstStageRootDiffers { root },
            Violation::SecondStageRootDiffers { root: second },
        ]
    );
    // Legacy entries, and domain-id 0 in caching mode.
    let bench = Bench::new(ModelConfig::caching_mode(), Mode::Legacy);
    bench.set_legacy_context(DEVICE, second_root(&bench, 1) | 1, 2);
    bench.set_legacy_context(OTHER, second_root(&bench, 1) | 1, 2);
    for device in [DEVICE, OTHER] {
        bench.outcome(device, None, AT).unwrap();
    }
    let found = bench.machine.unit.violations();
    assert!(found.contains(&Violation::DomainZeroInCachingMode { source_id: DEVICE }));
    assert!(found.contains(&Violation::DomainSecondStageDiffers {
        domain_id: DomainId::new(0),
        first: DEVICE,
        second: OTHER
    }));
}

#[test]
fn register_based_invalidation_works_in_legacy_mode_without_queue() {
    let bench = Bench::off(ModelConfig::legacy_server(), Mode::Legacy);
    let mut unit = bench.machine.unit.clone();
    unit.write64(Register64::ROOT_TABLE_ADDRESS, bench.root);
    bench.command(SRTP, true);
    bench.command(TE, true);
    let (old, new) = (second_root(&bench, 1), second_root(&bench, 2));
    bench.set_legacy_context(DEVICE, old | 1, 2 | 7 << 8);
    assert_eq!(bench.outcome(DEVICE, None, AT), Ok(1));
    bench.set_legacy_context(DEVICE, new | 1, 2 | 7 << 8);
    let context = 1 << 63 | 3 << 61 | u64::from(DEVICE.as_u16()) << 16 | 7;
    unit.write64(Register64::CONTEXT_COMMAND, context);
    let answer = unit.read64(Register64::CONTEXT_COMMAND);
    assert_eq!((answer >> 63, answer >> 59 & 3), (0, 3));
    assert_eq!(
        bench.outcome(DEVICE, None, AT),
        Ok(1),
        "the IOTLB has it still"
    );
    let iotlb = Register64::iotlb_invalidate(0xf0).unwrap();
    let address = Register64::invalidate_address(0xf0).unwrap();
    unit.write64(address, AT | 19);
    unit.write64(iotlb, 1 << 63 | 3 << 60 | 7 << 32);
    assert_eq!(unit.read64(iotlb) >> 57 & 3, 0, "AM beyond MAMV");
    assert_eq!(bench.outcome(DEVICE, None, AT), Ok(1));
    unit.write64(address, AT);
    unit.write64(iotlb, 1 << 63 | 3 << 60 | 7 << 32);
    assert_eq!(unit.read64(iotlb) >> 57 & 3, 3);
    assert_eq!(bench.outcome(DEVICE, None, AT), Ok(2));
    bench.machine.unit.assert_no_violations();
}

/// A change of tables that a mode must show once everything is invalidated.
fn random_step(bench: &Bench, roots: [u64; 3], random: u64) {
    let pick = |shift: u64, count: u64| (random >> shift) % count;
    let at = AT + (pick(0, 4) << 12) + (pick(8, 3) << 21);
    let root = roots[pick(16, 3) as usize];
    match pick(24, 6) {
        0 | 1 => {
            let leaf = bench.map_first(root, at, bench.data_page(random));
            if pick(32, 3) == 0 {
                bench.put(leaf, bench.get(leaf) & !(1 << pick(40, 3)));
            }
        }
        2 => {
            bench.map_second(root, at, bench.data_page(random));
        }
        3 => bench.set_pasid(DEVICE, 5, bench.first_entry(7, root)),
        4 => bench.set_pasid(DEVICE, 5, bench.second_entry(9, root)),
        _ => {
            let entry = bench.pasid_at(DEVICE, 5);
            bench.put(entry, bench.get(entry) ^ 1);
        }
    }
}

#[test]
fn after_full_invalidation_every_cache_mode_agrees() {
    for caching in [0, 1] {
        let benches = [CacheMode::Hoarder, CacheMode::Tiny, CacheMode::None].map(|mode| {
            let config = ModelConfig::nesting_server()
                .with_cache_mode(mode)
                .with_capability(Cap::CACHING_MODE, caching);
            Bench::new(config, Mode::Scalable)
        });
        let roots = benches
            .each_ref()
            .map(|bench| std::array::from_fn::<u64, 3, _>(|_| bench.page()));
        assert!(roots.iter().all(|these| *these == roots[0]));
        let mut random = 0x0123_4567_89ab_cdefu64;
        let mut reached = 0;
        for _ in 0..400 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let results = benches.each_ref().map(|bench| {
                random_step(bench, roots[0], random);
                assert!(bench.submit(&[CONTEXT_GLOBAL, PASID_CACHE_GLOBAL, IOTLB_GLOBAL]));
                let mut results = Vec::new();
                for page in 0..12 {
                    let at = AT + ((page % 4) << 12) + ((page / 4) << 21);
                    results.push(bench.outcome(DEVICE, pasid(5), at));
                    results.push(bench.write_outcome(DEVICE, pasid(5), at).map(|()| 0));
                }
                results
            });
            reached += results[0].iter().filter(|result| result.is_ok()).count();
            assert_eq!(results[0], results[1]);
            assert_eq!(results[0], results[2]);
        }
        assert!(reached > 100, "{reached}");
    }
}
