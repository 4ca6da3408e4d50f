//! PASID cache and bindings: what a guest's entries become on hardware (S1 to S35).

use vtd_model::{Access, ModelConfig};
use vtd_nest::arch::address::Gpa;
use vtd_nest::arch::descriptor::IotlbGranularity;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::DomainId;
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::arch::register::TranslationTableMode;
use vtd_nest::nest::Policy;

use crate::bench::{Bench, D0, D1, Guest};

const IOVA: u64 = 0x7000_0000_5000;

fn nested() -> Guest {
    Guest::new(Bench::new(ModelConfig::nesting_server()))
}

/// A guest with (D0, PASID 5) bound under domain-id 7 to a table that maps [`IOVA`] to the page.
fn bound() -> (Guest, u64, u64) {
    let mut guest = nested();
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, 5, &entry);
    guest.invalidate_pasid(7, 5);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    guest.bench.take_descriptors();
    (guest, root, page)
}

/// A second table, for another page.
fn other_table(guest: &mut Guest) -> (u64, u64) {
    let page = guest.page();
    (guest.table(&[(IOVA, page)]), page)
}

fn finish(guest: Guest) {
    guest.bench.model.unit.assert_no_violations();
}

// S1, R19, R28
#[test]
fn present_entry_is_bound_nested_with_root_and_flags_copied_and_nothing_else() {
    let mut guest = nested();
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    // What a guest may not pass on: its domain-id and second-stage fields, FPD.
    let mut quadwords = *guest.entry(root, 7).quadwords();
    quadwords[0] |= 2 | 2 << 2;
    guest.set_entry(D0, 5, &PasidEntry::from_quadwords(quadwords));
    guest.invalidate_pasid(7, 5);
    let hardware = guest.bench.hardware_entry(D0, 5).unwrap();
    assert_eq!(hardware.translation_type_field(), 3);
    assert_eq!(hardware.first_stage_root::<Gpa>(), Gpa::new(root));
    assert!(!hardware.is_fault_processing_disabled());
    assert_ne!(hardware.domain_id(), DomainId::new(7));
    assert_ne!(hardware.domain_id(), DomainId::ZERO);
    assert_eq!(
        hardware.quadwords()[2] & 1 << 5,
        1 << 5,
        "bit 133 is always set"
    );
    assert_eq!(guest.bench.hardware_entry(D1, 5), None);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    finish(guest);
}

// S2, S3, S95
#[test]
fn only_an_invalidation_in_scope_binds() {
    for (wrong, right) in [(8, 7), (8, 0)] {
        let mut guest = nested();
        let page = guest.page();
        let root = guest.table(&[(IOVA, page)]);
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, 5, &entry);
        guest.invalidate_pasid(wrong, 5);
        assert_eq!(guest.bench.hardware_entry(D0, 5), None);
        guest.invalidate_pasid(7, 6);
        assert_eq!(guest.bench.hardware_entry(D0, 5), None);
        if right == 0 {
            guest.invalidate_pasid(0, 5);
        } else {
            guest.invalidate_pasid_domain(right);
        }
        guest.expect_reaches(D0, Some(5), IOVA, page);
        finish(guest);
    }
}

// S4, S6, R4
#[test]
fn unchanged_entry_sends_nothing_to_hardware() {
    let (mut guest, root, _) = bound();
    let before = guest.bench.vm.statistics();
    guest.invalidate_pasid(7, 5);
    guest.invalidate_pasid_domain(7);
    guest.invalidate_pasid_global();
    // Ignored bits of a first-stage entry: 133 and 134.
    let mut quadwords = *guest.entry(root, 7).quadwords();
    quadwords[2] ^= 3 << 5;
    guest.set_entry(D0, 5, &PasidEntry::from_quadwords(quadwords));
    guest.invalidate_pasid(7, 5);
    assert_eq!(guest.bench.take_descriptors(), []);
    assert_eq!(guest.bench.vm.statistics(), before);
    finish(guest);
}

// S5, S91
#[test]
fn new_first_stage_root_is_one_store_and_one_submission_without_a_blocked_window() {
    let (mut guest, _, _) = bound();
    let (root, page) = other_table(&mut guest);
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, 5, &entry);
    let submissions = guest.bench.units[0].statistics().submissions;
    guest.invalidate_pasid(7, 5);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    let statistics = guest.bench.vm.statistics();
    assert_eq!(
        (statistics.replaced_in_place, statistics.binds),
        (1, 3),
        "two devices without PASID, and this one"
    );
    assert_eq!(
        guest.bench.units[0].statistics().submissions - submissions,
        1
    );
    finish(guest);
}

// S7, S8
#[test]
fn change_of_domain_id_rebinds_whichever_id_is_named() {
    for named in [7, 9] {
        let (mut guest, _, _) = bound();
        let (root, page) = other_table(&mut guest);
        let entry = guest.entry(root, 9);
        guest.set_entry(D0, 5, &entry);
        guest.invalidate_pasid(named, 5);
        guest.expect_reaches(D0, Some(5), IOVA, page);
        finish(guest);
    }
}

// S9, S10
#[test]
fn cleared_entry_is_unbound_and_its_neighbours_are_not() {
    for zeroed in [false, true] {
        let (mut guest, root, page) = bound();
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, 6, &entry);
        guest.invalidate_pasid(7, 6);
        let mut quadwords = *entry.quadwords();
        quadwords[0] &= !1;
        let gone = if zeroed {
            PasidEntry::default()
        } else {
            PasidEntry::from_quadwords(quadwords)
        };
        guest.set_entry(D0, 5, &gone);
        guest.invalidate_pasid_domain(7);
        guest.expect_blocked(D0, Some(5), IOVA, FaultReason::PasidEntryNotPresent);
        guest.expect_reaches(D0, Some(6), IOVA, page);
        finish(guest);
    }
}

// S11, S12
#[test]
fn devices_are_bound_by_their_own_tables() {
    let (mut guest, root, page) = bound();
    let entry = guest.entry(root, 7);
    guest.set_entry(D1, 5, &entry);
    guest.invalidate_pasid(7, 5);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    guest.expect_reaches(D1, Some(5), IOVA, page);
    assert_eq!(
        guest.bench.hardware_entry(D0, 5).unwrap().domain_id(),
        guest.bench.hardware_entry(D1, 5).unwrap().domain_id(),
        "equal entries share a host domain-id"
    );
    // D1 changes under another domain-id; D0 stays as it is.
    let (root, other) = other_table(&mut guest);
    let entry = guest.entry(root, 9);
    guest.set_entry(D1, 5, &entry);
    let before = guest.bench.hardware_entry(D0, 5);
    guest.invalidate_pasid(9, 5);
    assert_eq!(guest.bench.hardware_entry(D0, 5), before);
    guest.expect_reaches(D1, Some(5), IOVA, other);
    finish(guest);
}

// S89, S97
#[test]
fn one_domain_id_and_pasid_with_two_roots_gets_two_host_ids() {
    let (mut guest, _, page) = bound();
    let (root, other) = other_table(&mut guest);
    let entry = guest.entry(root, 7);
    guest.set_entry(D1, 5, &entry);
    guest.invalidate_pasid(7, 5);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    guest.expect_reaches(D1, Some(5), IOVA, other);
    let id = |source_id| {
        guest
            .bench
            .hardware_entry(source_id, 5)
            .unwrap()
            .domain_id()
    };
    assert_ne!(id(D0), id(D1));
    finish(guest);
}

// S17, S18, S88
#[test]
fn pass_through_is_the_machines_memory_and_leaves_nothing_behind() {
    let (mut guest, root, page) = bound();
    for _ in 0..3 {
        guest.set_entry(D0, 5, &Guest::pass_through(7));
        guest.invalidate_pasid(7, 5);
        assert_eq!(
            guest
                .bench
                .hardware_entry(D0, 5)
                .unwrap()
                .translation_type_field(),
            2
        );
        guest.expect_reaches(D0, Some(5), page, page);
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, 5, &entry);
        guest.invalidate_pasid(7, 5);
        guest.expect_reaches(D0, Some(5), IOVA, page);
        guest.expect_blocked(D0, Some(5), page, FaultReason::FirstStageNotPresent);
    }
    finish(guest);
}

// S19
#[test]
fn types_that_were_not_offered_are_blocked_and_told_as_5b() {
    for field in [2, 3, 5, 7] {
        let (mut guest, root, _) = bound();
        let mut quadwords = *guest.entry(root, 7).quadwords();
        quadwords[0] = quadwords[0] & !(7 << 6) | field << 6;
        guest.set_entry(D0, 5, &PasidEntry::from_quadwords(quadwords));
        guest.invalidate_pasid(7, 5);
        assert_eq!(guest.bench.hardware_entry(D0, 5), None);
        guest.expect_blocked(D0, Some(5), IOVA, FaultReason::PasidEntryInvalid);
        finish(guest);
    }
}

// S22, R20, G38
#[test]
fn bind_that_fails_on_the_host_is_blocked_recorded_and_retried() {
    let mut guest = nested();
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    let entry = guest.entry(root, 7);
    // PASID 70 needs a PASID table page that the host does not have yet.
    guest.set_entry(D0, 70, &entry);
    guest.bench.model.hypervisor.fail_allocations_after(Some(0));
    guest.invalidate_pasid(7, 70);
    assert_eq!(guest.bench.hardware_entry(D0, 70), None);
    assert_eq!(guest.bench.vm.statistics().bind_errors, 1);
    let status = guest.bench.vm.read_register(0x34, 4);
    assert_eq!(status & 2, 2, "a fault is pending in the guest's unit");
    let record = guest
        .bench
        .vm
        .offer()
        .features
        .capability
        .fault_record_offset();
    let high = guest.bench.vm.read_register(u64::from(record) + 8, 8);
    assert_eq!((high >> 32 & 0xff, high & 0xffff), (0x58, 0x0010));
    guest.bench.model.hypervisor.fail_allocations_after(None);
    guest.invalidate_pasid(7, 70);
    guest.expect_reaches(D0, Some(70), IOVA, page);
    finish(guest);
}

// S25
#[test]
fn requests_without_pasid_need_their_own_entry() {
    let (mut guest, _, _) = bound();
    guest.expect_blocked(D0, None, IOVA, FaultReason::PasidEntryNotPresent);
    finish(guest);
}

// S30, S33, R25
#[test]
fn context_and_root_changes_reconcile_without_a_pasid_invalidation() {
    let (mut guest, _, _) = bound();
    let context = guest.context_at(D0);
    let present = guest.read_u64(context);
    guest.write(context, &(present & !1).to_le_bytes());
    guest.invalidate_context(D0);
    assert_eq!(guest.bench.hardware_entry(D0, 5), None);
    guest.expect_blocked(
        D0,
        Some(5),
        IOVA,
        FaultReason::ScalableContextEntryNotPresent,
    );
    guest.write(context, &present.to_le_bytes());
    guest.invalidate_context(D0);
    assert!(guest.bench.hardware_entry(D0, 5).is_some());
    let empty = guest.page();
    guest.set_root(empty, TranslationTableMode::Scalable);
    assert_eq!(guest.bench.hardware_entry(D0, 5), None);
    guest.expect_blocked(D0, Some(5), IOVA, FaultReason::ScalableRootEntryNotPresent);
    finish(guest);
}

// S31, S32
#[test]
fn translation_off_gives_guest_physical_dma_and_on_brings_the_bindings_back() {
    let (mut guest, root, page) = bound();
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, 6, &entry);
    guest.set_entry(D1, 5, &entry);
    guest.invalidate_pasid_global();
    guest.set_translation(false);
    for (device, pasid) in [(D0, 5), (D0, 6), (D1, 5)] {
        assert_eq!(guest.bench.hardware_entry(device, pasid), None);
    }
    guest.expect_reaches(D0, None, page, page);
    guest.expect_reaches(D1, None, page, page);
    guest.set_translation(true);
    for (device, pasid) in [(D0, 5), (D0, 6), (D1, 5)] {
        guest.expect_reaches(device, Some(pasid), IOVA, page);
    }
    guest.expect_blocked(D0, None, page, FaultReason::PasidEntryNotPresent);
    finish(guest);
}

// S35: a legacy root is never open and never nested.
#[test]
fn legacy_root_is_shadowed_even_on_hardware_that_nests() {
    use vtd_nest::arch::context::LegacyContextEntry;
    use vtd_nest::arch::root::LegacyRootEntry;
    let policy = Policy {
        forbid_nesting: true,
        ..Policy::default()
    };
    // The second-stage table of the legacy context is written by a guest that was offered one.
    let mut guest = Guest::new(Bench::with_policy(ModelConfig::nesting_server(), policy));
    let page = guest.page();
    let table = guest.table(&[(IOVA, page)]);
    let (root, contexts) = (guest.page(), guest.page());
    guest.write(root, &LegacyRootEntry::new(Gpa::new(contexts)).to_bytes());
    let width = vtd_nest::arch::address::AddressWidth::Bits48;
    let context = LegacyContextEntry::second_stage(Gpa::new(table), width, DomainId::new(7), false);
    let at = contexts + 16 * u64::from(LegacyContextEntry::index(D0));
    guest.write(at, &context.to_bytes());
    guest.set_root(root, TranslationTableMode::Legacy);
    guest.expect_reaches(D0, None, IOVA, page);
    guest.expect_blocked(D0, None, IOVA + 0x1000, FaultReason::LegacyReadDenied);
    guest.expect_blocked(D1, None, IOVA, FaultReason::LegacyRootEntryNotPresent);
    finish(guest);
}

// S41, S44, S45, S46
#[test]
fn invalidations_reach_hardware_for_what_they_cover_and_for_nothing_else() {
    use vtd_nest::arch::descriptor::{Descriptor, PasidIotlbGranularity};
    use vtd_nest::arch::id::Pasid;
    let (mut guest, root, _) = bound();
    let pasid_iotlb = |domain, pasid| Descriptor::PasidIotlb {
        domain_id: DomainId::new(domain),
        pasid: Pasid::new(pasid).unwrap(),
        granularity: PasidIotlbGranularity::All,
    };
    for (domain, pasid, expected) in [(7, 5, vec![6]), (7, 9, vec![]), (8, 5, vec![])] {
        guest.submit(&[pasid_iotlb(domain, pasid)]);
        assert_eq!(
            guest.bench.take_descriptors(),
            expected,
            "({domain}, {pasid})"
        );
    }
    for (granularity, expected) in [
        (IotlbGranularity::Domain(DomainId::new(7)), vec![2]),
        (IotlbGranularity::Domain(DomainId::new(8)), vec![]),
        (IotlbGranularity::Global, vec![2]),
    ] {
        guest.invalidate_iotlb(granularity);
        assert_eq!(guest.bench.take_descriptors(), expected, "{granularity:?}");
    }
    // And they do what they are for.
    let page = guest.page();
    guest.map(root, IOVA, Some(page));
    guest.submit(&[pasid_iotlb(7, 5)]);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    finish(guest);
}

// S16, S15, R16
#[test]
fn bad_directory_is_skipped_and_its_neighbours_are_bound() {
    let (mut guest, root, page) = bound();
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, 70, &entry);
    // The first directory entry now points outside of guest memory.
    let directory = Guest::entry_at(D0, 0) - 0x1000;
    guest.write(directory, &(0x7fff_f000_u64 | 1).to_le_bytes());
    guest.invalidate_pasid_global();
    guest.expect_reaches(D0, Some(70), IOVA, page);
    assert_eq!(guest.bench.hardware_entry(D0, 5), None);
    guest.expect_blocked(D0, Some(5), IOVA, FaultReason::PasidTableUnreadable);
    finish(guest);
}

// S37, R5
#[test]
fn unassigned_device_leaves_nothing_behind() {
    use vtd_nest::viommu::host::{DeviceHandle, Progress};
    let (mut guest, root, page) = bound();
    let entry = guest.entry(root, 7);
    for pasid in 6..40 {
        guest.set_entry(D0, pasid, &entry);
    }
    guest.invalidate_pasid_global();
    let free_ids = guest.bench.units[0].free_domain_ids();
    let bench = &mut guest.bench;
    let mut rounds = 0;
    while bench
        .vm
        .unassign(&bench.model.hypervisor, &bench.units, DeviceHandle::new(0))
        .unwrap()
        == Progress::Wait
    {
        rounds += 1;
        assert!(rounds < 1000);
        bench.model.unit.advance();
    }
    assert_eq!(guest.bench.hardware_entry(D0, 5), None);
    // The nested domain went with its last user.
    assert_eq!(guest.bench.units[0].free_domain_ids(), free_ids + 1);
    guest
        .bench
        .translate(D0, Some(5), IOVA, Access::Read)
        .unwrap_err();
    guest
        .bench
        .translate(D0, None, page, Access::Read)
        .unwrap_err();
    finish(guest);
}
