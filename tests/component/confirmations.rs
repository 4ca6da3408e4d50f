//! What is owed to hardware, and what is kept until hardware has confirmed: on units that make it
//! hard, by a small mask, a full queue, a write buffer, no answer.

use vtd_model::{Access, ModelConfig, Pace, Violation};
use vtd_nest::arch::address::{Gpa, Hpa, Iova};
use vtd_nest::arch::capability::CapabilityField;
use vtd_nest::arch::descriptor::{
    Descriptor, IotlbGranularity, PasidCacheGranularity, PasidIotlbGranularity,
};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::{DomainId, Pasid};
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::arch::register::{AddressType, FaultInfo, FaultRecord, RequestType};
use vtd_nest::mem::Owner;
use vtd_nest::nest::{FaultOutcome, MachineError, Policy};
use vtd_nest::paging::Rights;
use vtd_nest::unit::QueueError;

use crate::bench::{Bench, D0, D1, Guest};

const IOVA: u64 = 0x7000_0000_0000;

fn guest(config: ModelConfig, shadow: bool) -> Guest {
    let policy = Policy {
        forbid_nesting: shadow,
        ..Policy::default()
    };
    Guest::new(Bench::with_policy(config, policy))
}

/// PASID 5 of [`D0`] bound under domain-id 7 to a table that maps [`IOVA`] to the page; both come
/// back with the guest.
fn bound(config: ModelConfig, shadow: bool) -> (Guest, u64, u64) {
    let mut guest = guest(config, shadow);
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, 5, &entry);
    guest.invalidate_pasid(7, 5);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    (guest, root, page)
}

fn charged(bench: &Bench) -> u32 {
    let pool = bench.model.hypervisor.pool();
    pool.charged_frames(Owner::new(1))
}

/// Hardware does nothing any more; time passes with each look.
fn die(bench: &Bench) {
    bench.model.unit.set_queue_pace(Pace::Never);
    bench.model.hypervisor.set_steps(10_000_000, 10_000_000);
}

fn page_of_pasid(address: u64) -> Descriptor {
    Descriptor::PasidIotlb {
        domain_id: DomainId::new(7),
        pasid: Pasid::new(5).unwrap(),
        granularity: PasidIotlbGranularity::Page {
            address,
            address_mask: 0,
            leaf_hint: false,
        },
    }
}

fn pages_of_domain(address: u64, address_mask: u8) -> IotlbGranularity {
    IotlbGranularity::Page {
        domain_id: DomainId::new(7),
        address,
        address_mask,
        leaf_hint: false,
    }
}

// S47: many more than the library collects.
#[test]
fn more_ranges_than_are_collected_all_reach_hardware() {
    let (mut guest, root, page) = bound(ModelConfig::nesting_server(), false);
    let addresses: Vec<_> = (0..100).map(|index| IOVA + (index << 13)).collect();
    for &address in &addresses {
        guest.map(root, address, Some(page));
        guest.expect_reaches(D0, Some(5), address, page);
    }
    let other = guest.page();
    for &address in &addresses {
        guest.map(root, address, Some(other));
    }
    let batch: Vec<_> = addresses.iter().copied().map(page_of_pasid).collect();
    guest.submit(&batch);
    for &address in &addresses {
        guest.expect_reaches(D0, Some(5), address, other);
    }
}

// S42, `CAP.MAMV`: the virtual unit shows 18.
#[test]
fn a_range_beyond_the_units_mask_becomes_what_the_unit_accepts() {
    let config =
        ModelConfig::nesting_server().with_capability(CapabilityField::MAXIMUM_ADDRESS_MASK, 3);
    let (mut guest, root, _) = bound(config, true);
    let other = guest.page();
    guest.map(root, IOVA, Some(other));
    guest.invalidate_iotlb(pages_of_domain(IOVA, 9));
    guest.expect_reaches(D0, Some(5), IOVA, other);
    assert_eq!(guest.bench.units[0].statistics().queue_errors, 0);
    assert_eq!(guest.bench.vm.statistics().quarantines, 0);
}

// R30
#[test]
fn what_the_queue_has_no_room_for_is_submitted_once_it_has() {
    let (mut guest, root, _) = bound(ModelConfig::nesting_server(), false);
    let other = guest.page();
    guest.map(root, IOVA, Some(other));
    guest.bench.model.unit.set_queue_pace(Pace::After(20_000_000));
    let foreign = Descriptor::PasidCache {
        granularity: PasidCacheGranularity::Domain(DomainId::new(999)),
    };
    let h = &guest.bench.model.hypervisor;
    let is_full = (0..1_000).any(|_| {
        let submitted = guest.bench.units[0].submit(h, &[foreign]);
        matches!(
            submitted,
            Err(QueueError::Full { .. } | QueueError::StatusWordsExhausted { .. })
        )
    });
    assert!(is_full);
    let refused = guest.bench.units[0].statistics().full;
    guest.submit(&[page_of_pasid(IOVA)]);
    assert!(guest.bench.units[0].statistics().full > refused);
    guest.expect_reaches(D0, Some(5), IOVA, other);
    assert_eq!(guest.bench.vm.statistics().quarantines, 0);
}

// §6.8: with `CAP.RWBF` an invalidation stands for the flush of the write buffer.
#[test]
fn a_unit_with_a_write_buffer_is_told_of_new_entries() {
    for buffers in [0, 1] {
        let config = ModelConfig::nesting_server()
            .with_capability(CapabilityField::WRITE_BUFFER_FLUSH, buffers);
        let mut guest = guest(config, false);
        let page = guest.page();
        let root = guest.table(&[(IOVA, page)]);
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, 5, &entry);
        guest.bench.take_descriptors();
        guest.invalidate_pasid(7, 5);
        let is_told = !guest.bench.take_descriptors().is_empty();
        assert_eq!(is_told, buffers == 1);
        guest.expect_reaches(D0, Some(5), IOVA, page);
    }
}

// S97: entries that share domain-id and PASID agree at every moment (§6.2.3.1).
#[test]
fn devices_that_share_a_domain_id_and_pasid_never_disagree_about_the_root() {
    let (mut guest, root, page) = bound(ModelConfig::nesting_server(), false);
    let entry = guest.entry(root, 7);
    guest.set_entry(D1, 5, &entry);
    guest.invalidate_pasid(7, 5);
    guest.expect_reaches(D1, Some(5), IOVA, page);
    let other = guest.page();
    let second = guest.table(&[(IOVA, other)]);
    let entry = guest.entry(second, 7);
    guest.set_entry(D0, 5, &entry);
    guest.invalidate_pasid(7, 5);
    let hardware = [D0, D1].map(|device| guest.bench.hardware_entry(device, 5).unwrap());
    assert_ne!(hardware[0].domain_id(), hardware[1].domain_id());
    guest.expect_reaches(D0, Some(5), IOVA, other);
    guest.expect_reaches(D1, Some(5), IOVA, page);
    let violations: Vec<Violation> = guest.bench.model.unit.violations();
    assert!(violations.is_empty(), "{violations:?}");
}

// R22: nothing of a device in quarantine is left to hardware.
#[test]
fn a_device_that_is_cut_off_has_no_context_entry() {
    let (mut guest, root, _) = bound(ModelConfig::nesting_server(), false);
    let entry = guest.entry(root, 8);
    guest.set_entry(D0, 6, &entry);
    guest.invalidate_pasid(8, 6);
    assert!(guest.bench.hardware_entry(D0, 6).is_some());
    die(&guest.bench);
    guest.set_entry(D0, 5, &PasidEntry::default());
    guest.invalidate_pasid(7, 5);
    assert_eq!(guest.bench.vm.statistics().quarantines, 1);
    assert_eq!(guest.bench.hardware_entry(D0, 6), None, "no way to it");
}

// G5, R22
#[test]
fn table_pages_of_memory_that_is_not_confirmed_to_be_gone_are_kept() {
    let mut bench = Bench::new(ModelConfig::nesting_server());
    let (far, large_page) = (Gpa::new(1 << 30), 2 << 20);
    let before = charged(&bench);
    let (h, units) = (&bench.model.hypervisor, &bench.units);
    bench
        .vm
        .map_memory(h, units, far, Hpa::new(0x7000_0000), 0x1000, Rights::READ)
        .unwrap();
    let mapped = charged(&bench);
    assert!(mapped > before);
    die(&bench);
    let (h, units) = (&bench.model.hypervisor, &bench.units);
    assert!(matches!(
        bench.vm.unmap_memory(h, units, far, large_page),
        Err(MachineError::NotConfirmed(_))
    ));
    assert_eq!(charged(&bench), mapped);
}

// G5, R22
#[test]
fn table_pages_of_a_shadow_are_kept_until_hardware_has_confirmed() {
    let (mut guest, root, _) = bound(ModelConfig::nesting_server(), true);
    let before = charged(&guest.bench);
    guest.map(root, IOVA, None);
    die(&guest.bench);
    guest.invalidate_iotlb(pages_of_domain(IOVA, 9));
    assert!(guest.bench.vm.statistics().quarantines > 0);
    assert_eq!(charged(&guest.bench), before);
}

// R20, G17
#[test]
fn a_refused_domain_keeps_no_host_domain_id() {
    let mut guest = guest(ModelConfig::nesting_server(), false);
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    let bind = |guest: &mut Guest, number: u32| {
        let entry = guest.entry(root, number as u16);
        guest.set_entry(D0, number, &entry);
        guest.invalidate_pasid(number as u16, number);
        guest.bench.hardware_entry(D0, number).is_some()
    };
    let first = (1..).find(|number| !bind(&mut guest, *number)).unwrap();
    let free = guest.bench.units[0].free_domain_ids();
    assert!(!bind(&mut guest, first + 1));
    assert_eq!(guest.bench.units[0].free_domain_ids(), free);
}

// R20
#[test]
fn a_shadow_without_a_domain_id_is_not_kept() {
    let mut guest = guest(ModelConfig::nesting_server(), true);
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    let entry = guest.entry(root, 7);
    let taken: Vec<_> = std::iter::from_fn(|| guest.bench.units[0].allocate_domain_id()).collect();
    let before = charged(&guest.bench);
    guest.set_entry(D0, 5, &entry);
    guest.invalidate_pasid(7, 5);
    assert_eq!(guest.bench.hardware_entry(D0, 5), None);
    assert_eq!(charged(&guest.bench), before);
    for id in taken {
        guest.bench.units[0].free_domain_id(id);
    }
    guest.invalidate_pasid(7, 5);
    guest.expect_reaches(D0, Some(5), IOVA, page);
}

fn record(source_id: vtd_nest::arch::id::SourceId, reason: FaultReason) -> FaultRecord {
    FaultRecord::new(FaultInfo {
        source_id,
        pasid: Pasid::new(5),
        reason: reason.code(),
        address: Iova::new(IOVA),
        request: RequestType::Read,
        privileged: false,
        execute: false,
        address_type: AddressType::Untranslated,
    })
}

// S69: the second stage denied the update of an entry in which the guest allows it.
#[test]
fn a_denied_update_of_accessed_bits_is_told_as_one_that_failed() {
    let (mut guest, _, _) = bound(ModelConfig::nesting_server(), false);
    for (hardware, told) in [
        (
            FaultReason::FirstStageUpdateDenied,
            FaultReason::FirstStageUpdateFailed,
        ),
        (
            FaultReason::FirstStageUpdateUnsnooped,
            FaultReason::FirstStageUpdateUnsnooped,
        ),
    ] {
        let bench = &mut guest.bench;
        let (h, units) = (&bench.model.hypervisor, &bench.units);
        let outcome = bench.vm.handle_fault(h, units, 0, &record(D0, hardware));
        assert!(
            matches!(outcome, FaultOutcome::Guest { reason, .. } if reason == told),
            "{outcome:?}"
        );
    }
}

// S70: source-ids belong to a unit's segment; another unit's device may have the same.
#[test]
fn a_fault_of_another_unit_is_not_this_machines() {
    let (mut guest, _, _) = bound(ModelConfig::nesting_server(), false);
    guest
        .bench
        .translate(D0, Some(5), IOVA + 0x1000, Access::Read)
        .unwrap_err();
    let record = guest.bench.units[0].next_fault().unwrap();
    let bench = &mut guest.bench;
    let (h, units) = (&bench.model.hypervisor, &bench.units);
    let elsewhere = bench.vm.handle_fault(h, units, 1, &record);
    assert_eq!(elsewhere, FaultOutcome::NotOfThisMachine);
    let here = bench.vm.handle_fault(h, units, 0, &record);
    assert!(matches!(here, FaultOutcome::Guest { .. }), "{here:?}");
}
