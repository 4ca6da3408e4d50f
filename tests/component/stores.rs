//! Every fixed store, full: a typed error, a fault for the guest, and everybody else as before.

use vtd_model::ModelConfig;
use vtd_nest::arch::address::Gpa;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::mem::{FrameError, Owner};
use vtd_nest::nest::{AssignError, DeviceConfig, InterruptIsolation, MachineError, Policy};
use vtd_nest::paging::{MapError, Rights};

use crate::bench::{Bench, D0, Guest};

const IOVA: u64 = 0x5000;

fn shadow() -> Guest {
    let policy = Policy {
        forbid_nesting: true,
        ..Policy::default()
    };
    Guest::new(Bench::with_policy(ModelConfig::nesting_server(), policy))
}

fn nested() -> Guest {
    Guest::new(Bench::new(ModelConfig::nesting_server()))
}

/// Gives PASIDs 1 to `count` an entry each, and announces them one by one.
fn bind_each(guest: &mut Guest, count: u32, entry: impl Fn(&Guest, u32) -> PasidEntry) {
    for pasid in 1..=count {
        let entry = entry(guest, pasid);
        guest.set_entry(D0, pasid, &entry);
        let domain = entry.domain_id().as_u16();
        guest.invalidate_pasid(domain, pasid);
    }
}

/// The first `room` PASIDs are bound and the next is not; once one of them goes, it can be.
fn expect_room(guest: &mut Guest, room: u32, page: u64, entry: impl Fn(&Guest, u32) -> PasidEntry) {
    bind_each(guest, room + 1, &entry);
    for pasid in 1..=room {
        guest.expect_reaches(D0, Some(pasid), IOVA, page);
    }
    assert_eq!(guest.bench.hardware_entry(D0, room + 1), None);
    assert!(
        guest.bench.vm.statistics().bind_errors
            + guest.bench.vm.virtual_unit_statistics().bind_failures
            > 0
    );
    // Reason 58, source-id and PASID, in the guest's unit.
    let at = u64::from(
        guest
            .bench
            .vm
            .offer()
            .features
            .capability
            .fault_record_offset(),
    );
    let high = guest.bench.vm.read_register(at + 8, 8);
    assert_eq!(high >> 63, 1, "a fault is recorded");
    assert_eq!(high >> 32 & 0xff, 0x58);
    assert_eq!(high & 0xffff, u64::from(D0.as_u16()));
    assert_eq!(high >> 40 & 0xf_ffff, u64::from(room + 1));

    let gone = entry(guest, 1).domain_id().as_u16();
    guest.set_entry(D0, 1, &PasidEntry::default());
    guest.invalidate_pasid(gone, 1);
    let retried = entry(guest, room + 1).domain_id().as_u16();
    guest.invalidate_pasid(retried, room + 1);
    guest.expect_reaches(D0, Some(room + 1), IOVA, page);
    guest.bench.model.unit.assert_no_violations();
}

// S79, R20
#[test]
fn full_pasid_cache_blocks_the_next_binding_only() {
    let mut guest = nested();
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    expect_room(&mut guest, 64, page, |guest, _| guest.entry(root, 7));
}

// S79, G17
#[test]
fn used_up_host_domain_ids_block_the_next_domain_only() {
    let mut guest = nested();
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    expect_room(&mut guest, 16, page, |guest, pasid| {
        guest.entry(root, 100 + pasid as u16)
    });
}

// S79
#[test]
fn used_up_shadows_block_the_next_table_only() {
    let mut guest = shadow();
    let page = guest.page();
    let root = guest.table(&[(IOVA, page)]);
    expect_room(&mut guest, 4, page, |guest, pasid| {
        guest.entry(root, 100 + pasid as u16)
    });
}

// S79: a machine's quota of frames bounds its shadows, and nobody else's.
#[test]
fn used_up_quota_of_frames_blocks_the_next_shadow_only() {
    let mut guest = shadow();
    let page = guest.page();
    let small = guest.table(&[(IOVA, page)]);
    let entry = guest.entry(small, 7);
    guest.set_entry(D0, 1, &entry);
    guest.invalidate_pasid(7, 1);
    guest.expect_reaches(D0, Some(1), IOVA, page);
    let large: Vec<_> = (0..40).map(|index| (IOVA + (index << 21), page)).collect();
    let large = guest.table(&large);
    let pool = guest.bench.model.hypervisor.pool();
    let charged = pool.charged_frames(Owner::new(1));
    pool.set_quota(Owner::new(1), charged + 20).unwrap();
    let entry = guest.entry(large, 8);
    guest.set_entry(D0, 2, &entry);
    guest.invalidate_pasid(8, 2);
    assert_eq!(guest.bench.hardware_entry(D0, 2), None);
    assert_eq!(
        guest
            .bench
            .model
            .hypervisor
            .pool()
            .charged_frames(Owner::new(1)),
        charged,
        "nothing is kept"
    );
    guest.expect_reaches(D0, Some(1), IOVA, page);
    guest
        .bench
        .model
        .hypervisor
        .pool()
        .set_quota(Owner::new(1), charged + 60)
        .unwrap();
    guest.invalidate_pasid(8, 2);
    guest.expect_reaches(D0, Some(2), IOVA, page);
}

#[test]
fn full_device_table_and_missing_interrupt_remapping_refuse_assignment() {
    let mut bench = Bench::new(ModelConfig::nesting_server());
    let mut config = DeviceConfig {
        source_id: SourceId::from_u16(0x500),
        guest_source_id: SourceId::from_u16(0x500),
        unit: 0,
        pasid_bits: 20,
        interrupts: InterruptIsolation::Required,
    };
    let (h, units) = (&bench.model.hypervisor, &bench.units);
    // G1
    assert_eq!(
        bench.vm.assign(h, units, config),
        Err(AssignError::InterruptRemappingMissing(config.source_id))
    );
    config.interrupts = InterruptIsolation::WaivedByEmbedder;
    assert_eq!(
        bench
            .vm
            .assign(h, units, DeviceConfig { unit: 9, ..config }),
        Err(AssignError::UnknownUnit(9))
    );
    assert_eq!(
        bench.vm.assign(
            h,
            units,
            DeviceConfig {
                source_id: D0,
                ..config
            }
        ),
        Err(AssignError::InUse(D0))
    );
    for number in 0..6 {
        let id = SourceId::from_u16(0x500 + number);
        bench
            .vm
            .assign(
                h,
                units,
                DeviceConfig {
                    source_id: id,
                    guest_source_id: id,
                    ..config
                },
            )
            .unwrap();
    }
    let id = SourceId::from_u16(0x600);
    let free = h.pool().free_frames();
    let ninth = bench.vm.assign(
        h,
        units,
        DeviceConfig {
            source_id: id,
            guest_source_id: id,
            ..config
        },
    );
    assert_eq!(ninth, Err(AssignError::Full { capacity: 8 }));
    assert_eq!(h.pool().free_frames(), free);
}

#[test]
fn used_up_quota_refuses_a_mapping_and_changes_nothing() {
    let mut bench = Bench::new(ModelConfig::nesting_server());
    let owner = Owner::new(1);
    let (h, units) = (&bench.model.hypervisor, &bench.units);
    let charged = h.pool().charged_frames(owner);
    h.pool().set_quota(owner, charged + 1).unwrap();
    let (guest, host) = (
        Gpa::new(1 << 40),
        vtd_nest::arch::address::Hpa::new(0x8000_1000),
    );
    let refused = bench
        .vm
        .map_memory(h, units, guest, host, 0x1000, Rights::READ_WRITE);
    let quota = charged + 1;
    let expected = MachineError::Map(MapError::Frames(FrameError::QuotaExceeded { owner, quota }));
    assert_eq!(refused, Err(expected));
    assert_eq!(h.pool().charged_frames(owner), charged);
}
