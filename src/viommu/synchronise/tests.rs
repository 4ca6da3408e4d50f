extern crate std;
use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

use super::super::testing::*;
use super::super::unit::Poll;
use super::*;
use crate::arch::capability::{
    Capability, CapabilityField, ExtendedCapability, ExtendedCapabilityField,
};
use crate::arch::context::{DirectoryOrder, LegacyContextEntry};
use crate::arch::descriptor::{ContextGranularity, Descriptor, PasidCacheGranularity};
use crate::arch::register::TranslationTableMode;

/// The setup of S1: PASID 5 bound under domain-id 7.
fn with_pasid_5() -> Bench {
    let mut t = Bench::scalable();
    t.entry(D0, 5, first_stage(7, 0x20_0000));
    t.invalidate_pasid(7, 5);
    assert_eq!(t.bound(0, 5), first_stage_binding(7, 0x20_0000));
    t.forget();
    t
}

#[test]
fn a_present_entry_is_bound_when_its_domain_id_and_pasid_are_invalidated() {
    // S1, R4: absent to present.
    let mut t = Bench::scalable();
    t.entry(D0, 5, first_stage(7, 0x20_0000));
    t.invalidate_pasid(7, 5);
    let bind = (0, 5, first_stage_binding(7, 0x20_0000));
    assert_eq!(t.binds(), [bind]);
    assert_eq!(t.unit.statistics().binds, 1);
}

#[test]
fn an_invalidation_with_another_domain_id_leaves_no_trace_until_one_names_it() {
    // S2, S3, R8, R10.
    let mut t = Bench::scalable();
    t.entry(D0, 5, first_stage(7, 0x20_0000));
    t.invalidate_pasid(8, 5);
    t.invalidate_domain(8);
    assert_eq!((t.binds(), t.unit.bindings()), (vec![], 0));
    t.invalidate_domain(7);
    assert_eq!(t.binds(), [(0, 5, first_stage_binding(7, 0x20_0000))]);
}

#[test]
fn domain_id_0_names_entries_that_were_not_present() {
    // S95, R9.
    let mut t = Bench::scalable();
    t.entry(D0, 5, first_stage(7, 0x20_0000));
    t.invalidate_pasid(0, 5);
    assert_eq!(t.binds(), [(0, 5, first_stage_binding(7, 0x20_0000))]);
}

#[test]
fn an_unchanged_entry_costs_two_reads_and_no_host_operation() {
    // S4, cost target: PASID-selective invalidation.
    let mut t = with_pasid_5();
    t.invalidate_pasid(7, 5);
    assert_eq!(t.host.operations(), 0);
    assert_eq!(t.host.memory.reads.get(), 3, "descriptor, directory, entry");
    for _ in 0..3 {
        t.invalidate_all();
        t.invalidate_domain(7);
    }
    assert_eq!(t.host.operations(), 0);
}

/// Beyond a directory of the smallest size, which reaches 2^13 PASIDs.
const FAR: u32 = 9000;

/// Beside D0 with this PASID, as many devices whose directory does not reach it, and one without a
/// context entry.
fn beside_narrow_devices(count: u16) -> Bench {
    let mut t = Bench::scalable();
    t.entry(D0, FAR, first_stage(7, 0x20_0000));
    for index in 1..=count {
        t.context(D0 + index, DirectoryOrder::SMALLEST);
        t.assign(index, D0 + index);
    }
    t.invalidate_pasid(7, FAR);
    t.forget();
    t
}

#[test]
fn a_device_whose_context_entry_does_not_reach_the_pasid_is_not_read_for() {
    // Cost target: PASID-selective invalidation.
    let mut t = beside_narrow_devices(2);
    t.invalidate_pasid(7, FAR);
    assert_eq!(t.host.memory.reads.get(), 3, "descriptor, directory, entry");
    // The guest gives one of them a larger directory, with the PASID in it.
    t.context(D0 + 1, DirectoryOrder::LARGEST);
    t.entry(D0 + 1, FAR, first_stage(7, 0x30_0000));
    t.invalidate_pasid(7, FAR);
    assert_eq!(t.binds(), [], "the context entry is cached");
    t.submit(Descriptor::ContextCache {
        granularity: ContextGranularity::Global,
    });
    let bound = (1, FAR, first_stage_binding(7, 0x30_0000));
    assert_eq!(t.binds(), [bound]);
    t.entry(D0 + 1, FAR, PasidEntry::default());
    t.invalidate_pasid(7, FAR);
    assert_eq!(t.binds(), [bound, (1, FAR, Desired::Blocked)]);
}

/// A bench whose guest may use 5 levels and `EAFE`, and an entry with them.
fn with_settings() -> Bench {
    Bench::scalable_with(Setup {
        capability: Capability::from_bits(0)
            .with(CapabilityField::FIRST_STAGE_5_LEVEL, 1)
            .bits(),
        extended: ExtendedCapability::from_bits(0)
            .with(ExtendedCapabilityField::EXTENDED_ACCESSED, 1)
            .with(ExtendedCapabilityField::PAGE_WALK_COHERENCY, 1)
            .bits(),
        ..Setup::default()
    })
}

fn with_setting(domain_id: u16, root: u64, setting: u64) -> PasidEntry {
    let mut quadwords = *first_stage(domain_id, root).quadwords();
    quadwords[2] |= setting;
    PasidEntry::from_quadwords(quadwords)
}

const LEVEL_5: u64 = 1 << 2;
const EXTENDED_ACCESSED: u64 = 1 << 7;

#[test]
fn bindings_of_one_first_stage_root_agree_in_their_settings() {
    // S96, whatever the domain-ids, PASIDs and devices, requests without PASID included.
    for setting in [LEVEL_5, EXTENDED_ACCESSED, LEVEL_5 | EXTENDED_ACCESSED] {
        for (first, second) in [
            ((0, 5), (0, 6)),
            ((0, 0), (0, 6)),
            ((0, 6), (0, 0)),
            ((0, 5), (1, 5)),
        ] {
            let mut t = with_settings();
            t.context(D1, DirectoryOrder::LARGEST);
            t.assign(1, D1);
            let device = |index: u16| [D0, D1][usize::from(index)];
            let place = |pasid: u32| (pasid != 0).then_some(pasid);
            t.entry(device(first.0), first.1, with_setting(7, 0x20_0000, 0));
            t.invalidate_pasid(7, first.1);
            t.entry(
                device(second.0),
                second.1,
                with_setting(8, 0x20_0000, setting),
            );
            t.invalidate_pasid(8, second.1);
            assert_eq!(t.bound(first.0, first.1), first_stage_binding(7, 0x20_0000));
            assert_eq!(t.bound(second.0, second.1), Desired::Blocked);
            assert_eq!(t.unit.statistics().root_conflicts, 1);
            assert_eq!(t.take_fault(), None, "told by the blocked request itself");
            let explained = t.translate(device(second.0), place(second.1), 0, READ);
            assert_eq!(explained, Err(0x5b));
            assert_ne!(
                t.translate(device(first.0), place(first.1), 0, READ),
                Err(0x5b)
            );
            // Nor does anything wider bind it.
            t.invalidate_all();
            assert_eq!(t.bound(second.0, second.1), Desired::Blocked);
            // The same setting agrees.
            t.entry(device(second.0), second.1, with_setting(8, 0x20_0000, 0));
            t.invalidate_pasid(8, second.1);
            assert_eq!(
                t.bound(second.0, second.1),
                first_stage_binding(8, 0x20_0000)
            );
            // Gone is gone, and then the other setting is good.
            t.entry(
                device(second.0),
                second.1,
                with_setting(8, 0x20_0000, setting),
            );
            t.entry(device(first.0), first.1, PasidEntry::default());
            t.invalidate_all();
            assert_eq!(t.bound(first.0, first.1), Desired::Blocked);
            assert_ne!(t.bound(second.0, second.1), Desired::Blocked);
        }
    }
}

#[test]
fn a_binding_may_change_the_setting_of_a_root_that_is_its_own() {
    // S96.
    let mut t = with_settings();
    t.entry(D0, 5, with_setting(7, 0x20_0000, 0));
    t.invalidate_pasid(7, 5);
    t.entry(D0, 5, with_setting(7, 0x20_0000, LEVEL_5));
    t.invalidate_pasid(7, 5);
    assert_ne!(t.bound(0, 5), Desired::Blocked);
    assert_ne!(t.bound(0, 5), first_stage_binding(7, 0x20_0000));
    // With another user of the root it loses what it has: it is blocked, never the old one.
    t.entry(D0, 6, with_setting(9, 0x20_0000, LEVEL_5));
    t.invalidate_pasid(9, 6);
    t.entry(D0, 5, with_setting(7, 0x20_0000, 0));
    t.invalidate_pasid(7, 5);
    assert_eq!(t.bound(0, 5), Desired::Blocked);
    assert_ne!(t.bound(0, 6), Desired::Blocked);
    assert_eq!(
        (t.unit.bindings(), t.unit.statistics().root_conflicts),
        (1, 1)
    );
}

#[test]
fn all_bindings_of_a_root_can_change_their_setting_by_one_invalidation() {
    // S96: each of them contradicts the others until the last has changed.
    for is_pasid_selective in [false, true] {
        let mut t = with_settings();
        t.context(D1, DirectoryOrder::LARGEST);
        t.assign(1, D1);
        let places: &[(u16, u32)] = match is_pasid_selective {
            true => &[(0, 5), (1, 5)],
            false => &[(0, 0), (0, 5), (0, 6), (1, 5)],
        };
        for setting in [0, LEVEL_5, EXTENDED_ACCESSED] {
            for (device, pasid) in places {
                let device = [D0, D1][usize::from(*device)];
                t.entry(device, *pasid, with_setting(7, 0x20_0000, setting));
            }
            match is_pasid_selective {
                true => t.invalidate_pasid(7, 5),
                false => t.invalidate_domain(7),
            }
            let bound = t.bound(places[0].0, places[0].1);
            assert_ne!(bound, Desired::Blocked);
            for (device, pasid) in places {
                assert_eq!(
                    t.bound(*device, *pasid),
                    bound,
                    "{setting:x} {device} {pasid}"
                );
            }
        }
        assert_eq!(t.unit.statistics().root_conflicts, 0);
    }
}

#[test]
fn a_domain_invalidation_takes_no_more_steps_for_what_other_domains_have_bound() {
    // Cost target: domain-selective. The directory is empty, so the walk costs nothing.
    let steps = |others: u32| {
        let mut t = Bench::scalable();
        for n in 0..others {
            t.entry(D0, 64 + n, first_stage(7, 0x20_0000));
        }
        t.entry(D0, 5, first_stage(8, 0x30_0000));
        t.invalidate_all();
        assert_eq!(t.unit.bindings(), others + 1);
        let directory = t.directories[&D0];
        for index in 1..1 + others.div_ceil(64) {
            t.store(directory + u64::from(index) * 8, &[0]);
        }
        let granularity = PasidCacheGranularity::Domain(did(8));
        t.enqueue(&[Descriptor::PasidCache { granularity }.encode().words()]);
        (0..)
            .take_while(|_| t.unit.poll(&mut t.host, 1) != Poll::Idle)
            .count()
    };
    let alone = steps(0);
    assert_eq!(steps(1100), alone);
}

#[test]
fn a_changed_root_is_a_replacement() {
    // S5.
    let mut t = with_pasid_5();
    t.entry(D0, 5, first_stage(7, 0x30_0000));
    t.invalidate_pasid(7, 5);
    assert_eq!(t.binds(), [(0, 5, first_stage_binding(7, 0x30_0000))]);
    assert_eq!(t.unit.statistics().replacements, 1);
}

#[test]
fn what_hardware_ignores_changes_nothing() {
    // S6: bits 133 and 134 are ignored (§9.6); so is WPE without SRE.
    let mut t = with_pasid_5();
    let mut raw = *first_stage(7, 0x20_0000).quadwords();
    raw[2] = raw[2] & !(1 << 5) | 1 << 6 | 1 << 4;
    t.entry(D0, 5, PasidEntry::from_quadwords(raw));
    t.invalidate_pasid(7, 5);
    t.invalidate_all();
    assert_eq!(t.host.operations(), 0);
}

#[test]
fn a_changed_domain_id_is_followed_whichever_of_the_two_is_invalidated() {
    // S7, S8, R9: by PASID, and by domain.
    for named in [7, 9] {
        for by_domain in [false, true] {
            let mut t = with_pasid_5();
            t.entry(D0, 5, first_stage(9, 0x20_0000));
            if by_domain {
                t.invalidate_domain(named);
            } else {
                t.invalidate_pasid(named, 5);
            }
            assert_eq!(t.binds(), [(0, 5, first_stage_binding(9, 0x20_0000))]);
            // It now goes by the new one only.
            t.forget();
            t.entry(D0, 5, first_stage(11, 0x20_0000));
            t.invalidate_domain(7);
            assert_eq!(t.host.operations(), 0);
        }
    }
}

#[test]
fn clearing_present_unbinds() {
    // S9.
    let mut t = with_pasid_5();
    let mut raw = *first_stage(7, 0x20_0000).quadwords();
    raw[0] &= !1;
    t.entry(D0, 5, PasidEntry::from_quadwords(raw));
    t.invalidate_pasid(7, 5);
    assert_eq!(t.binds(), [(0, 5, Desired::Blocked)]);
    assert_eq!(t.unit.bindings(), 0);
    assert_eq!(t.translate(D0, Some(5), 0, READ), Err(0x59));
}

const READ: crate::paging::walk::Access = crate::paging::walk::Access::READ;

#[test]
fn a_domain_invalidation_unbinds_what_is_gone_and_keeps_the_rest() {
    // S10: also across a directory entry that is gone.
    let mut t = Bench::scalable();
    for (pasid, domain_id) in [(5, 7), (6, 7), (70, 7), (7, 8)] {
        t.entry(D0, pasid, first_stage(domain_id, 0x20_0000));
    }
    t.invalidate_all();
    t.forget();
    t.entry(D0, 5, PasidEntry::from_quadwords([0; 8]));
    t.entry(D0, 7, PasidEntry::from_quadwords([0; 8]));
    let directory = t.directories[&D0];
    t.store(directory + 8, &[0]);
    t.invalidate_domain(7);
    let changed: BTreeSet<_> = t.binds().iter().map(|bind| bind.1).collect();
    assert_eq!(changed, BTreeSet::from([5, 70]));
    assert_eq!(
        (t.bound(0, 5), t.bound(0, 70)),
        (Desired::Blocked, Desired::Blocked)
    );
    assert_ne!(t.bound(0, 6), Desired::Blocked);
    assert_ne!(t.bound(0, 7), Desired::Blocked, "domain-id 8");
    t.invalidate_domain(8);
    assert_eq!(t.bound(0, 7), Desired::Blocked);
}

#[test]
fn devices_that_share_a_table_are_both_bound_and_devices_with_their_own_are_not_mixed() {
    // S11, S12, R1.
    let mut t = Bench::scalable();
    let directory = t.directories[&D0];
    t.share(D1, DirectoryOrder::LARGEST, directory);
    t.assign(1, D1);
    t.entry(D0, 5, first_stage(7, 0x20_0000));
    t.invalidate_pasid(7, 5);
    assert_eq!(t.bound(0, 5), first_stage_binding(7, 0x20_0000));
    assert_eq!(t.bound(1, 5), first_stage_binding(7, 0x20_0000));

    let mut t = Bench::scalable();
    t.context(D1, DirectoryOrder::LARGEST);
    t.assign(1, D1);
    t.entry(D0, 5, first_stage(7, 0x20_0000));
    t.entry(D1, 5, first_stage(8, 0x30_0000));
    t.invalidate_pasid(8, 5);
    assert_eq!(t.binds(), [(1, 5, first_stage_binding(8, 0x30_0000))]);
}

#[test]
fn a_global_invalidation_reads_the_directory_and_the_present_tables_once() {
    // S13, G39, cost target: 1000 entries, tables sparse over the whole PASID space, three
    // devices.
    let mut t = Bench::scalable();
    for (index, source_id) in [(1, D1), (2, 0x00a0)] {
        t.context(source_id, DirectoryOrder::LARGEST);
        t.assign(index, source_id);
    }
    let mut tables = BTreeSet::new();
    for n in 0..1000u32 {
        let source_id = [D0, D1, 0x00a0][n as usize % 3];
        let pasid = (n * 1048 + 1) & 0xf_ffff & !0x3c0 | 1;
        tables.insert((source_id, pasid >> 6));
        t.entry(source_id, pasid + (n & 31), first_stage(7, 0x20_0000));
    }
    t.invalidate_all();
    assert!(t.unit.bindings() > 900, "{}", t.unit.bindings());
    t.forget();
    t.invalidate_all();
    assert_eq!(t.host.operations(), 0);
    // 32 pieces of each directory, the present tables, the descriptor; then, with nothing bound
    // for them, the entries of requests without PASID by themselves: at most 2 reads a device.
    let expected = 3 * 32 + tables.len() + 1;
    let reads = t.host.memory.reads.get();
    assert!(
        (expected..=expected + 6).contains(&reads),
        "{reads}, {expected}"
    );
}

#[test]
fn nothing_is_read_beyond_the_directory_that_the_context_declares() {
    // S14, R15: PDTS 0 reaches 8192 PASIDs with 1 KiB.
    let mut t = Bench::new();
    let directory = t.context(D0, DirectoryOrder::SMALLEST);
    t.assign(0, D0);
    t.set_root(TranslationTableMode::Scalable);
    t.enable_queue();
    t.enable_translation();
    // Beyond its end, still in the same page, a table full of entries.
    t.entry(D0, 8192, first_stage(7, 0x20_0000));
    t.entry(D0, 8191, first_stage(7, 0x20_0000));
    t.forget();
    t.invalidate_pasid(7, 8192);
    assert_eq!(t.host.operations(), 0);
    t.invalidate_all();
    assert_eq!(t.binds(), [(0, 8191, first_stage_binding(7, 0x20_0000))]);
    for (at, len) in t.host.memory.log.borrow().iter() {
        let end = at + *len as u64;
        assert!(
            end <= directory + 1024 || *at >= directory + 4096,
            "{at:x} {len}"
        );
    }
    assert_eq!(t.translate(D0, Some(8192), 0, READ), Err(0x46));
}

#[test]
fn what_cannot_be_read_or_is_not_valid_is_skipped_and_its_neighbours_are_not() {
    // S15, S16, R16.
    let mut t = Bench::scalable();
    let directory = t.directories[&D0];
    for pasid in [1, 64, 128, 192, 256] {
        t.entry(D0, pasid, first_stage(7, 0x20_0000));
    }
    t.store(directory + 8, &[0]);
    t.store(directory + 16, &[(MEMORY_BYTES as u64) << 4 | 1]);
    // Reserved bits of a directory entry; an address at the guest's width.
    t.store(directory + 24, &[t.host.memory.load(directory + 24) | 4]);
    t.store(directory + 40, &[1 << 46 | 1]);
    let at = t.entry_at(D0, 2);
    t.store(at, &[1, 0, 0, 1]);
    t.invalidate_all();
    let bound: Vec<_> = t.binds().iter().map(|bind| bind.1).collect();
    assert_eq!(bound, [1, 256]);
    assert!(t.unit.statistics().tables_skipped >= 3);
    for pasid in [64, 128, 192, 320, 2] {
        t.invalidate_pasid(7, pasid);
    }
    assert_eq!(t.binds().len(), 2);
}

#[test]
fn an_unreadable_directory_piece_does_not_hide_the_next() {
    // S16, R16.
    let mut t = Bench::scalable();
    let directory = t.directories[&D0];
    t.entry(D0, 5, first_stage(7, 0x20_0000));
    t.entry(D0, 512 * 64, first_stage(7, 0x20_0000));
    t.host.memory.holes.borrow_mut().insert(directory / 4096);
    t.invalidate_all();
    assert_eq!(
        t.binds(),
        [(0, 512 * 64, first_stage_binding(7, 0x20_0000))]
    );
}

#[test]
fn the_translation_type_is_followed_both_ways() {
    // S17, S18, on PASID 0 and 5.
    for (source, pasid) in [(D0, 0), (D0, 5)] {
        let mut t = Bench::scalable();
        let fst = first_stage(7, 0x20_0000);
        for (entry, binding) in [
            (fst, first_stage_binding(7, 0x20_0000)),
            (pass_through(7), pass_through_binding(7)),
            (fst, first_stage_binding(7, 0x20_0000)),
        ] {
            t.forget();
            t.entry(source, pasid, entry);
            t.invalidate_pasid(7, pasid);
            assert_eq!(t.binds(), [(0, pasid, binding)]);
        }
        assert_eq!(t.host.actual.len(), 1);
    }
}

#[test]
fn entries_that_were_not_offered_are_not_bound_and_end_what_was() {
    // S19, S20, S21, S28, §9.6: field by field, with the fault of the request.
    let raw = *first_stage(7, 0x20_0000).quadwords();
    let with = |word: usize, clear: u64, set: u64| {
        let mut raw = raw;
        raw[word] = raw[word] & !clear | set;
        PasidEntry::from_quadwords(raw)
    };
    for (name, entry, fault) in [
        ("second-stage", with(0, 7 << 6, 2 << 6), 0x5b),
        ("nested", with(0, 7 << 6, 3 << 6), 0x5b),
        ("reserved type", with(0, 7 << 6, 7 << 6), 0x5b),
        ("5-level", with(2, 0, 1 << 2), 0x5b),
        ("SRE", with(2, 0, 1), 0x5a),
        ("EAFE", with(2, 0, 1 << 7), 0x5a),
        ("root at 2^HAW", with(2, !0xfff, 1 << 46), 0x5a),
        ("SNP", with(1, 0, 1 << 24), 0x5a),
    ] {
        let mut t = with_pasid_5();
        t.entry(D0, 5, entry);
        t.invalidate_pasid(7, 5);
        assert_eq!(t.binds(), [(0, 5, Desired::Blocked)], "{name}");
        assert_eq!(t.translate(D0, Some(5), 0, READ), Err(fault), "{name}");
        t.entry(D0, 6, entry);
        t.invalidate_pasid(7, 6);
        t.invalidate_all();
        assert_eq!(t.binds().len(), 1, "{name}");
    }
    // Below the limit, though not the guest's memory: hardware and the DMA will tell.
    let mut t = with_pasid_5();
    t.entry(D0, 5, first_stage(7, 1 << 45));
    t.invalidate_pasid(7, 5);
    assert_eq!(t.bound(0, 5), first_stage_binding(7, 1 << 45));
}

#[test]
fn offered_features_reach_the_binding() {
    // S20, R19.
    let mut t = Bench::scalable_with(Setup {
        capability: 1 << 60,
        extended: 1 << 31 | 1 << 34 | 1 << 48,
        ..Setup::default()
    });
    let mut raw = *first_stage(7, 0x20_0000).quadwords();
    raw[2] |= 1 | 1 << 2 | 1 << 4 | 1 << 7;
    t.entry(D0, 5, PasidEntry::from_quadwords(raw));
    t.invalidate_pasid(7, 5);
    let Desired::Guest(binding) = t.bound(0, 5) else {
        panic!("not bound");
    };
    assert!(binding.supervisor_requests);
    let expected = crate::arch::pasid::PasidTranslation::FirstStage {
        root: Gpa::new(0x20_0000),
        paging: crate::arch::address::FirstStagePaging::Level5,
        write_protect: true,
        extended_accessed: true,
    };
    assert_eq!(binding.translation, expected);
}

#[test]
fn a_refused_bind_is_blocked_told_once_and_retried() {
    // S22, R20, G38.
    let error = BindError::Quarantined {
        source_id: SourceId::from_u16(0x99),
    };
    let mut t = with_pasid_5();
    t.entry(D0, 5, first_stage(7, 0x30_0000));
    t.host.fail.insert(0, error);
    t.invalidate_pasid(7, 5);
    assert_eq!(t.bound(0, 5), Desired::Blocked, "never on the old table");
    assert_eq!(t.unit.bindings(), 0);
    assert_eq!(t.take_fault(), Some((D0, Some(5), 0x58)));
    assert_eq!(t.take_fault(), None);
    assert_eq!(t.unit.statistics().bind_failures, 1);
    t.host.fail.clear();
    t.invalidate_domain(7);
    assert_eq!(t.bound(0, 5), first_stage_binding(7, 0x30_0000));
    // What the guest did wrong is told by the blocked DMA.
    let mut t = with_pasid_5();
    t.entry(D0, 5, first_stage(7, 0x30_0000));
    t.host.fail.insert(
        0,
        BindError::NotOffered {
            translation_type: 1,
            source_id: SourceId::from_u16(0x1234),
            pasid: Pasid::ZERO,
        },
    );
    t.invalidate_pasid(7, 5);
    assert_eq!((t.bound(0, 5), t.take_fault()), (Desired::Blocked, None));
}

#[test]
fn a_refused_bind_of_requests_without_pasid_is_retried_at_the_next_invalidation() {
    // S22.
    let mut t = Bench::scalable();
    t.entry(D0, 0, first_stage(7, 0x20_0000));
    t.host.fail.insert(0, BindError::Unit);
    t.invalidate_pasid(7, 0);
    assert_eq!(t.bound(0, 0), Desired::Blocked);
    assert_eq!(t.unit.default_binding(handle(0)), None);
    assert_eq!(t.take_fault(), Some((D0, None, 0x58)));
    t.invalidate_all();
    assert_eq!(t.bound(0, 0), first_stage_binding(7, 0x20_0000));
}

#[test]
fn a_refused_unbind_is_kept_and_retried_until_it_succeeds() {
    // S23, R22.
    let mut t = with_pasid_5();
    t.host.stuck.insert((0, 5));
    t.entry(D0, 5, PasidEntry::from_quadwords([0; 8]));
    t.invalidate_pasid(7, 5);
    assert_eq!(
        (t.unit.bindings(), t.unit.statistics().unbind_failures),
        (1, 1)
    );
    // Whatever the next pass names, it tries again.
    t.invalidate_domain(99);
    assert_eq!(t.unit.statistics().unbind_failures, 2);
    t.host.stuck.clear();
    t.invalidate_domain(99);
    assert_eq!((t.unit.bindings(), t.bound(0, 5)), (0, Desired::Blocked));
}

#[test]
fn what_lacks_room_is_bound_once_the_same_pass_has_freed_some() {
    // R9, R10: the store is full of what has gone.
    let mut t = Bench::scalable();
    t.host.capacity = 4;
    for pasid in 1..=4 {
        t.entry(D0, pasid + 1000, first_stage(7, 0x20_0000));
    }
    t.invalidate_all();
    assert_eq!(t.unit.bindings(), 4);
    for pasid in 1..=4 {
        t.entry(D0, pasid + 1000, PasidEntry::from_quadwords([0; 8]));
        t.entry(D0, pasid, first_stage(7, 0x20_0000));
    }
    t.invalidate_all();
    assert_eq!((t.unit.bindings(), t.take_fault()), (4, None));
    for pasid in 1..=4 {
        assert_ne!(t.bound(0, pasid), Desired::Blocked);
    }
    // One more does not fit: told, and nothing else suffers.
    t.entry(D0, 9, first_stage(7, 0x20_0000));
    t.invalidate_all();
    assert_eq!((t.unit.bindings(), t.bound(0, 9)), (4, Desired::Blocked));
    assert_eq!(t.take_fault(), Some((D0, Some(9), 0x58)));
}

#[test]
fn a_full_store_refuses_the_rest_and_keeps_the_others() {
    // S79: the bench's unit has room for 1200 bindings.
    let mut t = Bench::scalable();
    for pasid in 1..=1203 {
        t.entry(D0, pasid, first_stage(7, 0x20_0000));
    }
    t.invalidate_all();
    assert_eq!(t.unit.bindings(), 1200);
    assert_eq!(t.unit.statistics().bind_failures, 3);
    assert_eq!(t.take_fault().map(|fault| fault.2), Some(0x58));
    t.invalidate_pasid(7, 1203);
    assert_eq!(t.unit.statistics().bind_failures, 4);
}

#[test]
fn pasids_that_the_unit_or_the_context_lacks_are_never_bound() {
    // S24, S29, R14.
    let mut t = Bench::scalable_with(Setup {
        pasid_bits: 3,
        ..Setup::default()
    });
    for pasid in [7, 8, 70] {
        t.entry(D0, pasid, first_stage(7, 0x20_0000));
        t.invalidate_pasid(7, pasid);
    }
    t.invalidate_all();
    assert_eq!(t.binds(), [(0, 7, first_stage_binding(7, 0x20_0000))]);

    let mut t = with_pasid_5();
    let at = t.context_at(D0);
    t.store(at, &[t.host.memory.load(at) & !(1 << 3)]);
    t.entry(D0, 0, first_stage(7, 0x20_0000));
    t.submit(Descriptor::ContextCache {
        granularity: ContextGranularity::Global,
    });
    assert_eq!(t.bound(0, 5), Desired::Blocked);
    assert_eq!(t.bound(0, 0), first_stage_binding(7, 0x20_0000));
    assert_eq!(t.translate(D0, Some(5), 0, READ), Err(0x45));
}

#[test]
fn a_pasid_works_without_pasid_0() {
    // S25, R17.
    let t = with_pasid_5();
    assert_ne!(t.bound(0, 5), Desired::Blocked);
    assert_eq!(t.bound(0, 0), Desired::Blocked);
    assert_eq!(t.translate(D0, None, 0, READ), Err(0x59));
}

#[test]
fn emulated_devices_cost_no_host_operation() {
    // S26, R3.
    let mut t = Bench::scalable();
    let directory = t.directories[&D0];
    t.share(D1, DirectoryOrder::LARGEST, directory);
    let kind = super::super::unit::DeviceKind::Emulated;
    t.unit.add_device(handle(1), sid(D1), kind).unwrap();
    t.entry(D0, 5, first_stage(7, 0x20_0000));
    t.invalidate_pasid(7, 5);
    t.invalidate_all();
    assert_eq!(t.binds(), [(0, 5, first_stage_binding(7, 0x20_0000))]);
}

#[test]
fn every_structure_is_read_once() {
    // S27, G36: no read of a pass overlaps another, whatever the scope.
    for entries in [
        PasidCacheGranularity::Global,
        PasidCacheGranularity::Domain(did(7)),
        PasidCacheGranularity::Pasid {
            domain_id: did(7),
            pasid: pasid(5),
        },
    ] {
        let mut t = Bench::scalable();
        for pasid in [0, 5, 6, 100, 70_000] {
            t.entry(D0, pasid, first_stage(7, 0x20_0000));
        }
        t.submit(Descriptor::PasidCache {
            granularity: entries,
        });
        let mut reads = t.host.memory.log.borrow().clone();
        reads.sort();
        for pair in reads.windows(2) {
            assert!(pair[0].0 + pair[0].1 as u64 <= pair[1].0, "{pair:x?}");
        }
    }
}

#[test]
fn a_context_invalidation_reconciles_the_devices_that_it_names() {
    // S30, R25: no PASID-cache invalidation; function masks as in §6.5.2.1.
    let mut t = with_pasid_5();
    t.context(D1, DirectoryOrder::LARGEST);
    t.entry(D1, 5, first_stage(7, 0x20_0000));
    t.assign(1, D1);
    t.forget();
    for source_id in [D0, D1] {
        let at = t.context_at(source_id);
        t.store(at, &[0]);
    }
    let device = |source_id: u16, function_mask| Descriptor::ContextCache {
        granularity: ContextGranularity::Device {
            source_id: sid(source_id),
            function_mask,
            domain_id: did(0),
        },
    };
    t.submit(device(D0 | 1, 0));
    assert_eq!(t.binds(), []);
    t.submit(device(D0 | 7, 3));
    assert_eq!(t.binds(), [(0, 5, Desired::Blocked)]);
    t.invalidate_all();
    assert_eq!(
        t.binds().len(),
        1,
        "the context of the other is still cached"
    );
    t.submit(Descriptor::ContextCache {
        granularity: ContextGranularity::Domain(did(3)),
    });
    assert_eq!(t.bound(1, 5), Desired::Blocked);
}

/// A device with PASIDs 0, 5 and 70 bound.
fn with_three() -> Bench {
    let mut t = Bench::scalable();
    for pasid in [0, 5, 70] {
        t.entry(D0, pasid, first_stage(7, 0x20_0000));
    }
    t.invalidate_all();
    assert_eq!(t.host.actual.len(), 3);
    t.forget();
    t
}

#[test]
fn translation_off_opens_requests_without_pasid_only_and_on_brings_all_back() {
    // S31, S32, R21, R25.
    let mut t = with_three();
    let before = t.host.actual.clone();
    t.disable_translation();
    assert_eq!(
        t.host.actual.iter().collect::<Vec<_>>(),
        [(&(0, 0), &Desired::MachineMemory)]
    );
    assert_eq!(t.unit.bindings(), 0);
    // R13: no PASID entry matters now.
    t.invalidate_all();
    assert_eq!(t.host.actual.len(), 1);
    t.enable_translation();
    assert_eq!(t.host.actual, before);
}

#[test]
fn the_status_bits_follow_the_work() {
    // Design: RTPS and TES change only when the reconciliation is done.
    let mut t = with_three();
    t.host.waits = 3;
    t.budget = 1;
    t.unit.write(GCMD, 4, QIE);
    while t.unit.poll(&mut t.host, 1) != super::super::unit::Poll::Idle {
        if t.unit.is_translating() {
            continue;
        }
        assert_eq!(t.bound(0, 5), Desired::Blocked);
        assert_eq!(t.bound(0, 0), Desired::MachineMemory);
    }
    t.unit.write(GCMD, 4, QIE | TE);
    while t.unit.poll(&mut t.host, 1) != super::super::unit::Poll::Idle {
        if t.unit.is_translating() {
            assert_eq!(t.host.actual.len(), 3);
        }
    }
    t.store(ROOT, &[0, 0]);
    t.unit.write(GCMD, 4, QIE | TE | SRTP);
    while t.unit.poll(&mut t.host, 1) != super::super::unit::Poll::Idle {
        if t.unit.read(GSTS, 4) & SRTP != 0 {
            assert_eq!(t.host.actual.len(), 0);
            assert_eq!(t.host.calls.last(), Some(&Call::Flush));
        }
    }
    assert_eq!(t.unit.read(GSTS, 4) & SRTP, SRTP);
}

#[test]
fn a_new_root_changes_what_follows_from_it_and_nothing_else() {
    // S33, S34, R25. All caches are dropped with it (§11.4.4.1, ESRTPS).
    let mut t = with_three();
    let (old_root, new_root) = (t.page(), t.page());
    for offset in (0..4096).step_by(8) {
        t.store(old_root + offset, &[t.host.memory.load(ROOT + offset)]);
    }
    t.set_root_at(new_root, TranslationTableMode::Scalable);
    assert_eq!(
        t.host.actual.len(),
        0,
        "S33: blocked, the guest believes translation is on"
    );
    assert!(
        t.host
            .calls
            .contains(&Call::Invalidate(super::super::GuestInvalidation::All))
    );
    t.entry(D0, 5, first_stage(8, 0x30_0000));
    t.set_root_at(old_root, TranslationTableMode::Scalable);
    t.entry(D0, 5, first_stage(8, 0x40_0000));
    t.forget();
    t.set_root_at(ROOT, TranslationTableMode::Scalable);
    assert_eq!(t.binds(), [(0, 5, first_stage_binding(8, 0x40_0000))]);
}

#[test]
fn a_legacy_root_binds_the_context_entry_and_is_never_open() {
    // S35, R21.
    let mut t = with_three();
    let (root, table) = (t.page(), t.page());
    t.set_root_at(root, TranslationTableMode::Legacy);
    assert_eq!(t.host.actual.len(), 0);
    t.store(root, &[table | 1]);
    let at = table + u64::from(D0) * 16;
    let width = crate::arch::address::AddressWidth::Bits48;
    let second_stage = LegacyContextEntry::second_stage(Gpa::new(0x50_0000), width, did(3), false);
    t.store(at, second_stage.quadwords());
    let global = Descriptor::ContextCache {
        granularity: ContextGranularity::Global,
    };
    t.submit(global);
    let binding = Desired::Guest(super::super::GuestBinding {
        domain_id: did(3),
        translation: crate::arch::pasid::PasidTranslation::SecondStage {
            root: Gpa::new(0x50_0000),
            width,
        },
        supervisor_requests: false,
    });
    assert_eq!(
        t.host.actual.iter().collect::<Vec<_>>(),
        [(&(0, 0), &binding)]
    );
    t.store(
        at,
        LegacyContextEntry::pass_through(width, did(4)).quadwords(),
    );
    t.submit(global);
    assert_eq!(t.bound(0, 0), pass_through_binding(4));
    t.store(at, &[3 << 2 | 1, 2]);
    t.submit(global);
    assert_eq!(t.bound(0, 0), Desired::Blocked);
    // Back to scalable mode.
    t.set_root(TranslationTableMode::Scalable);
    assert_eq!(t.host.actual.len(), 3);
}

#[test]
fn tables_that_alias_each_other_end_the_pass() {
    // S78: the directory is its own table, the root, and lies over the queue.
    let mut t = Bench::scalable();
    let at = t.context_at(D0);
    t.store(at, &[QUEUE | 7 << 9 | 1 << 3 | 1]);
    for offset in (0..4096).step_by(8) {
        t.store(QUEUE + offset, &[QUEUE | 1]);
    }
    t.invalidate_all();
    t.submit(Descriptor::ContextCache {
        granularity: ContextGranularity::Global,
    });
    t.invalidate_all();
    assert!(t.host.memory.reads.get() < 3 * 1200);
}

/// Every kind of change in one life of a unit.
fn scenario(t: &mut Bench) {
    t.context(D1, DirectoryOrder::SMALLEST);
    t.assign(1, D1);
    for (source_id, value, domain_id) in
        [(D0, 0, 7), (D0, 5, 7), (D0, 70, 8), (D1, 3, 7), (D1, 4, 9)]
    {
        t.entry(source_id, value, first_stage(domain_id, 0x20_0000));
    }
    t.invalidate_domain(7);
    t.invalidate_all();
    t.entry(D0, 5, first_stage(8, 0x30_0000));
    t.entry(D0, 70, pass_through(8));
    t.entry(D1, 4, PasidEntry::from_quadwords([0; 8]));
    t.entry(D1, 9, first_stage(8, 0x30_0000));
    t.invalidate_domain(8);
    t.invalidate_pasid(9, 4);
    t.disable_translation();
    t.enable_translation();
    t.set_root(TranslationTableMode::Scalable);
    t.enqueue(&[wait(STATUS, 0x77, true)]);
    t.run();
    assert_eq!(t.host.memory.load(STATUS), 0x77);
}

fn scenario_result(setup: Setup, prepare: impl Fn(&mut Bench)) -> Bench {
    let mut t = Bench::scalable_with(Setup {
        budget: 1000,
        ..setup
    });
    t.budget = setup.budget;
    prepare(&mut t);
    scenario(&mut t);
    t
}

#[test]
fn waiting_for_hardware_anywhere_and_any_budget_give_the_same_end() {
    // R12; requirement on `poll`: Wait and resume at every point, budget of 1.
    let expected = scenario_result(Setup::default(), |_| {});
    assert_eq!(expected.host.actual.len(), 5);
    let same = |t: &Bench, what: &str| {
        assert_eq!(t.host.actual, expected.host.actual, "{what}");
        assert_eq!(t.host.calls, expected.host.calls, "{what}");
        assert_eq!(t.unit.statistics(), expected.unit.statistics(), "{what}");
    };
    for budget in [1, 2, 3, 7] {
        let t = scenario_result(
            Setup {
                budget,
                ..Setup::default()
            },
            |_| {},
        );
        same(&t, "budget");
    }
    for waits in [1, 3] {
        let t = scenario_result(Setup::default(), |t| t.host.waits = waits);
        same(&t, "every operation waits");
    }
    for number in 0..expected.host.operations() {
        let t = scenario_result(
            Setup {
                budget: 1,
                ..Setup::default()
            },
            |t| {
                t.host.waits = 2;
                t.host.wait_only = Some(number);
            },
        );
        same(&t, "one operation waits");
    }
}

#[test]
fn any_one_failing_operation_is_made_good_by_the_next_invalidation() {
    // S22, G38: fail the n-th host operation, for every n.
    let expected = scenario_result(Setup::default(), |_| {});
    for error in [BindError::Unit, BindError::DomainIdsExhausted] {
        for number in 0..expected.host.operations() {
            let mut t = scenario_result(Setup::default(), |t| {
                t.host.fail.insert(number, error);
            });
            t.invalidate_all();
            assert_eq!(t.host.actual, expected.host.actual, "{number}");
            let failures = t.unit.statistics().bind_failures
                + t.unit.statistics().unbind_failures
                + t.unit.statistics().invalidation_failures;
            assert!(
                failures == 1 || is_shortage(&error) && failures == 0,
                "{number}"
            );
        }
    }
}
