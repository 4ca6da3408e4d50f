//! Changes that meet failing allocations, slow or dead hardware and hostile tables: a binding is
//! the old one, the new one or blocked, and nothing is freed early or lost.

use vtd_model::{Access, ModelConfig, ModelUnit, Pace, Request};
use vtd_nest::arch::address::{Gpa, Iova, PageSize};
use vtd_nest::arch::descriptor::IotlbGranularity;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::{DomainId, Pasid};
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::arch::second_stage::SecondStageEntry;
use vtd_nest::mem::Owner;
use vtd_nest::nest::{DeviceConfig, InterruptIsolation, MachineError, Policy};
use vtd_nest::paging::Rights;
use vtd_nest::unit::{Unit, UnitConfig};
use vtd_nest::viommu::host::{BindError, DeviceHandle, Progress};

use crate::bench::{Bench, D0, D1, GUEST_LEN_BYTES, Guest};

const IOVA: u64 = 0x7000_0000_5000;

fn guest(shadow: bool) -> Guest {
    let policy = Policy {
        forbid_nesting: shadow,
        ..Policy::default()
    };
    Guest::new(Bench::with_policy(ModelConfig::nesting_server(), policy))
}

/// (D0, `pasid`) bound under domain-id 7 to a table that maps [`IOVA`] to the page.
fn bound(shadow: bool, pasid: u32) -> (Guest, u64, u64) {
    let mut guest = guest(shadow);
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, pasid, &entry);
    guest.invalidate_pasid(7, pasid);
    guest.expect_reaches(D0, Some(pasid), IOVA, page);
    (guest, root, page)
}

fn unassign(guest: &mut Guest, device: u16) -> Result<(), BindError> {
    let bench = &mut guest.bench;
    for _ in 0..1_000 {
        let h = &bench.model.hypervisor;
        match bench
            .vm
            .unassign(h, &bench.units, DeviceHandle::new(device))?
        {
            Progress::Done => return Ok(()),
            Progress::Again => {}
            Progress::Wait => bench.model.hypervisor.clock().advance(1_000_000),
        }
        bench.model.unit.advance();
    }
    panic!("the device never leaves");
}

/// Frames charged to the machine and free domain-ids of the unit.
fn holdings(guest: &Guest) -> (u32, u32) {
    let pool = guest.bench.model.hypervisor.pool();
    (
        pool.charged_frames(Owner::new(1)),
        guest.bench.units[0].free_domain_ids(),
    )
}

fn invalidate_pages(guest: &mut Guest, domain: u16, address: u64, order: u8) {
    guest.invalidate_iotlb(IotlbGranularity::Page {
        domain_id: DomainId::new(domain),
        address,
        address_mask: order,
        leaf_hint: false,
    });
}

fn large_leaf(page: u64, size: PageSize) -> u64 {
    SecondStageEntry::leaf(Gpa::new(page), size, Rights::READ_WRITE, false).as_u64()
}

#[test]
fn any_failing_allocation_leaves_new_or_blocked_and_no_frame_or_id_behind() {
    for shadow in [false, true] {
        let mut empty = guest(shadow);
        unassign(&mut empty, 0).unwrap();
        unassign(&mut empty, 1).unwrap();
        let expected = holdings(&empty);
        for allocations in 0..8 {
            let (mut guest, _, old) = bound(shadow, 5);
            let page = guest.page();
            let root = guest.table(&[(IOVA, page)]);
            let entry = guest.entry(root, 9);
            guest.set_entry(D0, 5, &entry);
            guest.set_entry(D0, 70, &entry);
            let h = &guest.bench.model.hypervisor;
            h.fail_allocations_after(Some(allocations));
            guest.invalidate_pasid_domain(0);
            guest.invalidate_pasid_domain(9);
            for pasid in [5, 70] {
                let reached = guest
                    .bench
                    .translate(D0, Some(pasid), IOVA, Access::Read)
                    .ok();
                assert_ne!(reached, Some(Bench::host_of(Gpa::new(old))));
                assert!(reached.is_none() || reached == Some(Bench::host_of(Gpa::new(page))));
            }
            guest.bench.settle();
            let h = &guest.bench.model.hypervisor;
            h.fail_allocations_after(None);
            guest.invalidate_pasid_global();
            guest.expect_reaches(D0, Some(5), IOVA, page);
            guest.expect_reaches(D0, Some(70), IOVA, page);
            unassign(&mut guest, 0).unwrap();
            unassign(&mut guest, 1).unwrap();
            assert_eq!(holdings(&guest), expected, "{allocations} {shadow}");
            guest.bench.model.unit.assert_no_violations();
        }
    }
}

#[test]
fn hardware_that_never_confirms_is_cut_off_and_keeps_all_that_it_may_use() {
    for shadow in [false, true] {
        let (mut guest, _, _) = bound(shadow, 5);
        let before = holdings(&guest);
        guest.bench.model.hypervisor.take_bus_master_changes();
        guest.bench.model.unit.set_queue_pace(Pace::Never);
        let h = &guest.bench.model.hypervisor;
        h.set_steps(10_000_000, 10_000_000);
        guest.set_entry(D0, 5, &PasidEntry::default());
        guest.invalidate_pasid(7, 5);
        assert_eq!(guest.bench.hardware_entry(D0, 5), None);
        let changes = guest.bench.model.hypervisor.take_bus_master_changes();
        assert_eq!(changes.len(), 1);
        assert!(changes[0].source_id == D0 && !changes[0].enabled);
        assert_eq!(holdings(&guest), before);
        for _ in 0..2 {
            assert_eq!(
                unassign(&mut guest, 0),
                Err(BindError::Quarantined { source_id: D0 })
            );
        }
        let bench = &mut guest.bench;
        let h = &bench.model.hypervisor;
        for page in 0..2 {
            let unmapped = bench
                .vm
                .unmap_memory(h, &bench.units, Gpa::new(page << 12), 0x1000);
            assert!(matches!(unmapped, Err(MachineError::NotConfirmed(_))));
        }
        assert_eq!(holdings(&guest), before);
    }
}

#[test]
fn guest_waits_once_for_hardware_that_never_confirms() {
    let (mut guest, root, _) = bound(true, 5);
    guest.bench.model.unit.set_queue_pace(Pace::Never);
    let h = &guest.bench.model.hypervisor;
    h.set_steps(10_000_000, 10_000_000);
    guest.map(root, IOVA, None);
    invalidate_pages(&mut guest, 7, IOVA, 0);
    assert_eq!(guest.bench.vm.statistics().quarantines, 2);
    let submissions = guest.bench.units[0].statistics().submissions;
    for _ in 0..4 {
        invalidate_pages(&mut guest, 7, IOVA, 0);
    }
    assert_eq!(
        guest.bench.units[0].statistics().submissions,
        submissions,
        "every device is cut off: there is nobody to invalidate for"
    );
}

#[test]
fn late_confirmations_end_in_the_last_state_asked_for() {
    for shadow in [false, true] {
        let (mut guest, first, _) = bound(shadow, 5);
        let page = guest.page();
        let second = guest.table(&[(IOVA, page)]);
        let pace = Pace::After(50_000);
        guest.bench.model.unit.set_queue_pace(pace);
        for round in 0..6u16 {
            let root = if round % 2 == 0 { second } else { first };
            let entry = guest.entry(root, 7 + round % 3);
            guest.set_entry(D0, 5, &entry);
            guest.invalidate_pasid_domain(0);
            guest.set_entry(D0, 5, &PasidEntry::default());
            guest.invalidate_pasid_global();
            assert_eq!(guest.bench.hardware_entry(D0, 5), None);
        }
        let entry = guest.entry(second, 9);
        guest.set_entry(D0, 5, &entry);
        guest.invalidate_pasid_global();
        guest.expect_reaches(D0, Some(5), IOVA, page);
        assert_eq!(guest.bench.vm.statistics().quarantines, 0);
        guest.bench.model.unit.assert_no_violations();
    }
}

#[test]
fn large_guest_pages_are_shadowed_as_far_as_there_is_memory() {
    let (mut guest, root, page) = bound(true, 5);
    // The table of IOVA's 2 MiB: replace it by a leaf, then take that away, page-selectively.
    let level3 = guest.read_u64(root + (IOVA >> 39 & 0x1ff) * 8) & !0xfff;
    let slot3 = level3 + (IOVA >> 30 & 0x1ff) * 8;
    let level2 = guest.read_u64(slot3) & !0xfff;
    let slot2 = level2 + (IOVA >> 21 & 0x1ff) * 8;
    let base = IOVA & !0x1f_ffff;
    let small = guest.read_u64(slot2);
    guest.write(
        slot2,
        &large_leaf(0x20_0000, PageSize::Size2MiB).to_le_bytes(),
    );
    invalidate_pages(&mut guest, 7, base, 9);
    guest.expect_reaches(D0, Some(5), IOVA, 0x20_5000);
    guest.expect_reaches(D0, Some(5), base + 0x1f_f000, 0x3f_f000);
    guest.write(slot2, &small.to_le_bytes());
    invalidate_pages(&mut guest, 7, base, 9);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    // 1 GiB, of which the machine has the first 16 MiB.
    let middle = guest.read_u64(slot3);
    guest.write(slot3, &large_leaf(0, PageSize::Size1GiB).to_le_bytes());
    invalidate_pages(&mut guest, 7, IOVA & !0x3fff_ffff, 18);
    let giant = IOVA & !0x3fff_ffff;
    guest.expect_reaches(
        D0,
        Some(5),
        giant + GUEST_LEN_BYTES - 0x1000,
        GUEST_LEN_BYTES - 0x1000,
    );
    let beyond = guest
        .bench
        .translate(D0, Some(5), giant + GUEST_LEN_BYTES, Access::Read);
    assert!(beyond.is_err());
    guest.write(slot3, &middle.to_le_bytes());
    invalidate_pages(&mut guest, 7, giant, 18);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    let gone = guest.bench.translate(D0, Some(5), giant, Access::Read);
    assert!(gone.is_err());
    guest.bench.model.unit.assert_no_violations();
}

#[test]
fn emptied_shadow_is_whole_again_after_the_next_invalidation() {
    let (mut guest, root, page) = bound(true, 5);
    let far = 0x1000_0000_0000;
    guest.map(root, far, Some(page));
    let h = &guest.bench.model.hypervisor;
    h.fail_allocations_after(Some(0));
    invalidate_pages(&mut guest, 7, far, 0);
    let h = &guest.bench.model.hypervisor;
    h.fail_allocations_after(None);
    assert_eq!(guest.bench.vm.statistics().shadows_dropped, 1);
    let emptied = guest.bench.translate(D0, Some(5), IOVA, Access::Read);
    assert!(emptied.is_err());
    invalidate_pages(&mut guest, 7, far, 0);
    guest.expect_reaches(D0, Some(5), far, page);
    guest.expect_reaches(D0, Some(5), IOVA, page);
}

#[test]
fn guest_table_in_no_memory_blocks_its_own_range_only() {
    let (mut guest, root, page) = bound(true, 5);
    let level3 = guest.read_u64(root + (IOVA >> 39 & 0x1ff) * 8) & !0xfff;
    let level2 = guest.read_u64(level3 + (IOVA >> 30 & 0x1ff) * 8) & !0xfff;
    let slot2 = level2 + (IOVA >> 21 & 0x1ff) * 8;
    let nowhere = SecondStageEntry::table(Gpa::new(0x7fff_f000)).as_u64();
    for next in 1..4 {
        guest.write(slot2 + 8 * next, &nowhere.to_le_bytes());
    }
    guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7)));
    guest.expect_reaches(D0, Some(5), IOVA, page);
    guest.expect_blocked(
        D0,
        Some(5),
        IOVA + (1 << 21),
        FaultReason::SecondStageUnreadable,
    );
    assert_eq!(guest.bench.vm.statistics().shadows_dropped, 0);
}

#[test]
fn table_that_names_itself_is_given_up_after_bounded_work() {
    let (mut guest, root, page) = bound(true, 5);
    let itself = SecondStageEntry::table(Gpa::new(root)).as_u64();
    let kept = guest.read_u64(root);
    for slot in 0..8 {
        guest.write(root + 8 * slot, &itself.to_le_bytes());
    }
    guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7)));
    assert_eq!(guest.bench.vm.statistics().shadows_dropped, 1);
    for slot in 0..8 {
        guest.write(root + 8 * slot, &kept.to_le_bytes());
    }
    guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7)));
    guest.expect_reaches(D0, Some(5), IOVA, page);
    guest.bench.model.unit.assert_no_violations();
}

#[test]
fn memory_added_later_is_reached_through_a_table_that_already_names_it() {
    let (mut guest, root, _) = bound(true, 5);
    let iova = IOVA + 0x1000;
    guest.map(root, iova, Some(GUEST_LEN_BYTES));
    invalidate_pages(&mut guest, 7, iova, 0);
    let absent = guest.bench.translate(D0, Some(5), iova, Access::Read);
    assert!(absent.is_err());
    let bench = &mut guest.bench;
    let h = &bench.model.hypervisor;
    let host = vtd_nest::arch::address::Hpa::new(0x8000_0000);
    let at = Gpa::new(GUEST_LEN_BYTES);
    bench
        .vm
        .map_memory(h, &bench.units, at, host, 0x1000, Rights::READ_WRITE)
        .unwrap();
    let reached = bench.translate(D0, Some(5), iova, Access::Read);
    assert_eq!(reached.map_err(|fault| fault.reason), Ok(host));
    let h = &bench.model.hypervisor;
    bench.vm.unmap_memory(h, &bench.units, at, 0x1000).unwrap();
    assert!(bench.translate(D0, Some(5), iova, Access::Read).is_err());
    bench.model.unit.assert_no_violations();
}

#[test]
fn shared_shadow_outlives_the_device_that_leaves() {
    let (mut guest, root, page) = bound(true, 5);
    let entry = guest.entry(root, 7);
    guest.set_entry(D1, 5, &entry);
    guest.invalidate_pasid(7, 5);
    unassign(&mut guest, 0).unwrap();
    guest.expect_reaches(D1, Some(5), IOVA, page);
    let other = guest.page();
    guest.map(root, IOVA, Some(other));
    invalidate_pages(&mut guest, 7, IOVA, 0);
    guest.expect_reaches(D1, Some(5), IOVA, other);
    guest.map(root, IOVA, None);
    invalidate_pages(&mut guest, 7, IOVA, 0);
    guest.expect_blocked(D1, Some(5), IOVA, FaultReason::SecondStageNotPresent);
    guest.bench.model.unit.assert_no_violations();
}

#[test]
fn one_dead_unit_does_not_hide_what_another_has_not_confirmed() {
    let policy = Policy {
        forbid_nesting: true,
        ..Policy::default()
    };
    let config = ModelConfig::nesting_server();
    let mut bench = Bench::with_policy(config.clone(), policy);
    // D1 moves behind a second, slow unit.
    let h = &bench.model.hypervisor;
    let timeout = bench.units[0].config().timeout_nanoseconds;
    let slow = ModelUnit::new(config.clone(), &bench.model.memory, h.clock());
    h.attach(&slow);
    let mut unit_config = UnitConfig::new(1, config.host_address_width);
    unit_config.timeout_nanoseconds = 1_000 * timeout;
    let unit = Unit::probe(slow.clone(), unit_config).unwrap();
    unit.bring_up(h).unwrap();
    bench.units.push(unit);
    let handle = DeviceHandle::new(1);
    let left = bench.vm.unassign(h, &bench.units, handle);
    assert_eq!(left, Ok(Progress::Done));
    let device = DeviceConfig {
        source_id: D1,
        guest_source_id: D1,
        unit: 1,
        interrupts: InterruptIsolation::WaivedByEmbedder,
    };
    bench.vm.assign(h, &bench.units, device).unwrap();
    let mut guest = Guest::new(bench);
    let (old, new) = (guest.page(), guest.page());
    let root = guest.table(&[(IOVA, old)]);
    let entry = guest.entry(root, 7);
    for source_id in [D0, D1] {
        guest.set_entry(source_id, 5, &entry);
    }
    guest.invalidate_pasid(7, 5);
    let request = Request::new(D1, Pasid::new(5), Iova::new(IOVA), Access::Read);
    let reached = |slow: &ModelUnit| slow.translate(&request).map(|found| found.host).ok();
    assert_eq!(reached(&slow), Some(Bench::host_of(Gpa::new(old))));

    guest.bench.model.unit.set_queue_pace(Pace::Never);
    slow.set_queue_pace(Pace::After(100 * timeout));
    let h = &guest.bench.model.hypervisor;
    h.set_steps(timeout / 8, timeout / 8);
    guest.map(root, IOVA, Some(new));
    invalidate_pages(&mut guest, 7, IOVA, 0);
    // The guest's wait has completed.
    assert_eq!(reached(&slow), Some(Bench::host_of(Gpa::new(new))));
    let statistics = guest.bench.vm.statistics();
    assert_eq!(statistics.quarantines, 1, "only the dead unit's device");
    guest.map(root, IOVA, None);
    invalidate_pages(&mut guest, 7, IOVA, 0);
    assert_eq!(reached(&slow), None);
}

// G31: with caching mode hardware may hold that an upper table is absent, so the invalidation for a
// page in a new table must not spare paging-structure entries.
#[test]
fn page_in_a_new_table_is_reached_on_a_unit_that_caches_what_is_absent() {
    let policy = Policy {
        forbid_nesting: true,
        ..Policy::default()
    };
    let mut guest = Guest::new(Bench::with_policy(ModelConfig::caching_mode(), policy));
    let page = guest.page();
    let root = guest.table(&[(0x5000, page)]);
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, 5, &entry);
    guest.invalidate_pasid(7, 5);
    for iova in [0x6000, 0x40_0000, 0x1_4000_0000, 0x7000_0000_0000] {
        guest
            .bench
            .translate(D0, Some(5), iova, Access::Read)
            .unwrap_err();
        guest.map(root, iova, Some(page));
        invalidate_pages(&mut guest, 7, iova, 0);
        guest.expect_reaches(D0, Some(5), iova, page);
    }
    guest.bench.model.unit.assert_no_violations();
}
