extern crate std;
use std::vec::Vec;

use super::super::host::{Desired, Progress};
use super::super::testing::*;
use super::*;
use crate::arch::address::Iova;
use crate::arch::context::DirectoryOrder;
use crate::arch::descriptor::{
    ContextGranularity, Descriptor, IotlbGranularity, PasidCacheGranularity, PasidIotlbGranularity,
};
use crate::arch::first_stage::FirstStageEntry;
use crate::arch::register::TranslationTableMode;
use crate::paging::walk::Access;

const FPD: u64 = 2;
const PAGE: u64 = 0x12_3000;
/// What one walk of a first-stage table reads: root, context, directory and PASID entry, and an
/// entry of each of 4 levels.
const WALK: usize = 8;

/// D1 emulated, its PASID 5 led to [`PAGE`] by a first-stage table under domain-id 7, beside
/// D0, assigned. The address of the leaf.
fn bench() -> (Bench, u64) {
    bench_with(1)
}

/// As [`bench`], with snooped walks shown or not (`SMPWCS`).
fn bench_with(coherent: u64) -> (Bench, u64) {
    let mut t = Bench::scalable_with(Setup {
        extended: coherent << 48,
        ..Setup::default()
    });
    t.context(D1, DirectoryOrder::SMALLEST);
    t.emulate(1, D1);
    let tables = [t.page(), t.page(), t.page(), t.page()];
    for pair in tables.windows(2) {
        let table = FirstStageEntry::table(Gpa::new(pair[1]));
        t.store(pair[0], &[table.as_u64()]);
    }
    t.store(tables[3], &[PAGE | 7, (PAGE + 0x1000) | 5]);
    t.entry(D1, 5, first_stage(7, tables[0]));
    t.forget();
    (t, tables[3])
}

fn request(value: Option<u32>, address: u64, access: Access) -> DmaRequest {
    DmaRequest {
        source_id: sid(D1),
        pasid: value.map(pasid),
        address: Iova::new(address),
        access,
        execute: false,
    }
}

fn translate(t: &mut Bench, request: &DmaRequest) -> Result<u64, u8> {
    match t.unit.translate(&mut t.host, request) {
        Ok(translation) => Ok(translation.address.as_u64()),
        Err(TranslateError::Fault(fault)) => Err(fault.reason.code()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn entries_and_their_invalidations_cost_the_host_nothing() {
    // S26, R3: present, changed, gone.
    let (mut t, _) = bench();
    for entry in [first_stage(7, 0x20_0000), pass_through(7)] {
        t.entry(D1, 6, entry);
        t.invalidate_pasid(7, 6);
        t.invalidate_domain(7);
        t.invalidate_all();
        assert_eq!(t.host.operations(), 0, "{entry:?}");
    }
    assert_eq!(t.bound(1, 5), Desired::Blocked);
    assert_eq!((t.unit.bindings(), t.unit.cached_translations()), (0, 0));
}

#[test]
fn the_first_request_walks_and_those_after_it_read_nothing() {
    // R33: 1 walk, 99 hits.
    let (mut t, _) = bench();
    for offset in 0..100 {
        let asked = request(Some(5), offset, Access::READ);
        assert_eq!(translate(&mut t, &asked), Ok(PAGE | offset));
        assert_eq!(t.host.memory.reads.get(), WALK);
    }
    let statistics = t.unit.statistics();
    assert_eq!(
        (statistics.translation_walks, statistics.translation_hits),
        (1, 99)
    );
    assert_eq!(t.unit.cached_translations(), 1);
    assert_eq!(t.host.operations(), 0);
}

#[test]
fn what_the_guest_changes_counts_once_it_is_invalidated() {
    // Each way to invalidate (§6.5), and those that name something else.
    type Submit = fn(&mut Bench);
    fn iotlb(t: &mut Bench, granularity: IotlbGranularity) {
        t.submit(Descriptor::Iotlb {
            granularity,
            drain_reads: true,
            drain_writes: true,
        });
    }
    fn pasid_iotlb(t: &mut Bench, value: u32, granularity: PasidIotlbGranularity) {
        t.submit(Descriptor::PasidIotlb {
            domain_id: did(7),
            pasid: pasid(value),
            granularity,
        });
    }
    fn device(t: &mut Bench, source_id: u16) {
        t.submit(Descriptor::ContextCache {
            granularity: ContextGranularity::Device {
                domain_id: did(0),
                source_id: sid(source_id),
                function_mask: 0,
            },
        });
    }
    fn page(address: u64) -> PasidIotlbGranularity {
        PasidIotlbGranularity::Page {
            address,
            address_mask: 0,
            leaf_hint: true,
        }
    }
    let cases: [(&str, bool, Submit); 18] = [
        ("nothing", false, |_| {}),
        ("a wait", false, |t| t.submit_raw(wait(STATUS, 1, false))),
        ("context, global", true, |t| {
            t.submit(Descriptor::ContextCache {
                granularity: ContextGranularity::Global,
            });
        }),
        ("context, device", true, |t| device(t, D1)),
        ("context, other device", false, |t| device(t, D0)),
        ("PASID cache, global", true, Bench::invalidate_all),
        ("PASID cache, domain", true, |t| t.invalidate_domain(7)),
        ("PASID cache, other domain", false, |t| {
            t.invalidate_domain(8)
        }),
        ("PASID cache, PASID", true, |t| t.invalidate_pasid(7, 5)),
        ("PASID cache, other PASID", false, |t| {
            t.invalidate_pasid(7, 6)
        }),
        ("IOTLB, global", true, |t| {
            iotlb(t, IotlbGranularity::Global)
        }),
        ("IOTLB, domain", true, |t| {
            iotlb(t, IotlbGranularity::Domain(did(7)));
        }),
        ("IOTLB, other domain", false, |t| {
            iotlb(t, IotlbGranularity::Domain(did(8)));
        }),
        ("PASID IOTLB, PASID", true, |t| {
            pasid_iotlb(t, 5, PasidIotlbGranularity::All);
        }),
        ("PASID IOTLB, other PASID", false, |t| {
            pasid_iotlb(t, 6, PasidIotlbGranularity::All);
        }),
        ("PASID IOTLB, page", true, |t| pasid_iotlb(t, 5, page(0))),
        ("PASID IOTLB, other page", false, |t| {
            pasid_iotlb(t, 5, page(0x1000));
        }),
        ("new root", true, |t| {
            t.set_root(TranslationTableMode::Scalable)
        }),
    ];
    for (name, is_dropped, invalidate) in cases {
        let (mut t, leaf) = bench();
        let asked = request(Some(5), 0, Access::WRITE);
        assert_eq!(translate(&mut t, &asked), Ok(PAGE));
        t.store(leaf, &[0x45_6000 | 7]);
        assert_eq!(
            translate(&mut t, &asked),
            Ok(PAGE),
            "{name}: kept until then"
        );
        invalidate(&mut t);
        let expected = if is_dropped { 0x45_6000 } else { PAGE };
        assert_eq!(translate(&mut t, &asked), Ok(expected), "{name}");
        assert_eq!(
            t.unit.cached_translations(),
            1,
            "{name}: found again or still there"
        );
    }
}

#[test]
fn translation_off_and_on_forgets_everything() {
    let (mut t, leaf) = bench();
    let asked = request(Some(5), 0x123, Access::READ);
    assert_eq!(translate(&mut t, &asked), Ok(PAGE | 0x123));
    t.disable_translation();
    assert_eq!(t.unit.cached_translations(), 0);
    assert_eq!(translate(&mut t, &asked), Ok(0x123), "its own address");
    assert_eq!(t.unit.cached_translations(), 0);
    t.store(leaf, &[0]);
    t.enable_translation();
    assert_eq!(translate(&mut t, &asked), Err(0x71));
    t.store(leaf, &[PAGE | 7]);
    assert_eq!(
        translate(&mut t, &asked),
        Ok(PAGE | 0x123),
        "faults are not kept"
    );
    t.unit.reset();
    assert_eq!(t.unit.cached_translations(), 0);
}

#[test]
fn a_kept_read_does_not_allow_a_write() {
    let (mut t, leaf) = bench();
    let [read, write] =
        [Access::READ, Access::WRITE].map(|access| request(Some(5), 0x1000, access));
    assert_eq!(translate(&mut t, &read), Ok(PAGE + 0x1000));
    assert_eq!(translate(&mut t, &write), Err(0x85));
    // A guest that adds a right need not invalidate: the tables are asked again.
    t.store(leaf + 8, &[(PAGE + 0x1000) | 7]);
    assert_eq!(translate(&mut t, &write), Ok(PAGE + 0x1000));
}

#[test]
fn a_fault_is_recorded_and_told_unless_an_entry_disables_it() {
    // S58, R33.
    let (mut t, _) = bench();
    t.unmask_events();
    let asked = request(Some(6), 0x5678_9abc, Access::WRITE);
    let places = [t.context_at(D1), t.directories[&D1], t.entry_at(D1, 6)];
    for (index, at) in places.into_iter().enumerate() {
        let before = t.host.memory.load(at);
        t.store(at, &[before | FPD]);
        assert_eq!(translate(&mut t, &asked), Err(0x59));
        assert_eq!(t.take_fault(), None);
        assert_eq!(t.unit.statistics().faults_disabled, index as u64 + 1);
        t.store(at, &[before]);
    }
    assert_eq!(t.host.interrupts, []);
    assert_eq!(translate(&mut t, &asked), Err(0x59));
    assert_eq!(t.unit.read(FRCD, 8), 0x5678_9000);
    assert_eq!(t.take_fault(), Some((D1, Some(6), 0x59)));
    assert_eq!(t.host.interrupts, [FAULT_MESSAGE]);
}

const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

#[test]
fn accessed_and_dirty_flags_are_set_as_hardware_sets_them() {
    // §3.6.2: accessed in every entry used, dirty in the page's for a write.
    let (mut t, leaf) = bench();
    let entry = t.entry_at(D1, 5);
    let top = t.host.memory.load(entry + 16) & !0xfff;
    let [read, write] = [Access::READ, Access::WRITE].map(|access| request(Some(5), 0, access));
    assert_eq!(translate(&mut t, &read), Ok(PAGE));
    assert_eq!(t.host.memory.load(leaf), PAGE | 7 | ACCESSED);
    assert_eq!(t.host.memory.load(top) & 0x7f, 7 | ACCESSED);
    let reads = t.host.memory.reads.get();
    assert_eq!(translate(&mut t, &read), Ok(PAGE));
    assert_eq!(t.host.memory.reads.get(), reads, "kept");
    // A clean page is walked for at the first write, and only then.
    assert_eq!(translate(&mut t, &write), Ok(PAGE));
    assert_eq!(t.host.memory.reads.get(), reads + WALK);
    assert_eq!(t.host.memory.load(leaf), PAGE | 7 | ACCESSED | DIRTY);
    assert_eq!(t.host.memory.load(top) & 0x7f, 7 | ACCESSED);
    assert_eq!(translate(&mut t, &write), Ok(PAGE));
    assert_eq!(t.host.memory.reads.get(), reads + WALK);
    // A refused write marks nothing.
    let refused = request(Some(5), 0x1000, Access::WRITE);
    assert_eq!(translate(&mut t, &refused), Err(0x85));
    assert_eq!(t.host.memory.load(leaf + 8), (PAGE + 0x1000) | 5);
}

#[test]
fn flags_that_cannot_be_set_are_told_by_their_own_reason() {
    // S69: 90 where walks are not snooped, 91 where the table cannot be written to.
    for (coherent, read_only, preset, [read, write]) in [
        (0, false, 0, [0x90, 0x90]),
        (0, false, ACCESSED, [0, 0x90]),
        (0, false, ACCESSED | DIRTY, [0, 0]),
        (1, true, 0, [0x91, 0x91]),
        (1, true, ACCESSED, [0, 0x91]),
        (1, true, ACCESSED | DIRTY, [0, 0]),
        (1, false, 0, [0, 0]),
    ] {
        for (access, code) in [(Access::READ, read), (Access::WRITE, write)] {
            let (mut t, leaf) = bench_with(coherent);
            let entry = t.entry_at(D1, 5);
            let mut at = t.host.memory.load(entry + 16) & !0xfff;
            while at != leaf {
                t.store(at, &[t.host.memory.load(at) | ACCESSED]);
                at = t.host.memory.load(at) & !0xfff;
            }
            t.store(leaf, &[PAGE | 7 | preset]);
            if read_only {
                t.host.memory.read_only.borrow_mut().insert(leaf / 4096);
            }
            let result = translate(&mut t, &request(Some(5), 0, access));
            let expected = if code == 0 { Ok(PAGE) } else { Err(code) };
            assert_eq!(
                result, expected,
                "{coherent} {read_only} {preset:x} {access:?}"
            );
            if code != 0 {
                assert_eq!(t.take_fault(), Some((D1, Some(5), code)));
                assert_eq!(t.host.memory.load(leaf), PAGE | 7 | preset, "untouched");
            }
        }
    }
}

#[test]
fn an_entry_that_changes_meanwhile_is_read_again_and_never_brought_back() {
    let (mut t, leaf) = bench();
    // The tables above are marked already, so that the next one is the page's.
    assert_eq!(
        translate(&mut t, &request(Some(5), 0, Access::READ)),
        Ok(PAGE)
    );
    let asked = request(Some(5), 0, Access::WRITE);
    t.host
        .memory
        .changes
        .borrow_mut()
        .push((leaf, 0x45_6000 | 7));
    assert_eq!(translate(&mut t, &asked), Ok(0x45_6000));
    assert_eq!(t.host.memory.load(leaf), 0x45_6000 | 7 | ACCESSED | DIRTY);
    t.store(leaf, &[PAGE | 7]);
    t.invalidate_all();
    t.host.memory.changes.borrow_mut().push((leaf, 0));
    assert_eq!(translate(&mut t, &asked), Err(0x71));
    assert_eq!(t.host.memory.load(leaf), 0, "it stays gone");
    // A guest that does nothing else gets a fault in the end.
    t.take_fault();
    t.store(leaf, &[PAGE | 7]);
    let endless = (0..64).map(|index| (leaf, (PAGE + (index << 12)) | 7));
    t.host.memory.changes.borrow_mut().extend(endless);
    t.host.memory.reads.set(0);
    assert_eq!(translate(&mut t, &asked), Err(0x91));
    assert_eq!(t.host.memory.reads.get(), 8 * WALK, "bounded");
}

#[test]
fn only_emulated_devices_are_translated_for() {
    let (mut t, _) = bench();
    for source_id in [D0, 0x7777] {
        let asked = DmaRequest {
            source_id: sid(source_id),
            ..request(Some(5), 0, Access::READ)
        };
        let refused = t.unit.translate(&mut t.host, &asked);
        assert_eq!(refused, Err(TranslateError::NotEmulated(sid(source_id))));
    }
    assert_eq!(t.take_fault(), None);
}

#[test]
fn a_device_that_leaves_or_moves_takes_its_translations_along() {
    let (mut t, _) = bench();
    let asked = request(Some(5), 0, Access::READ);
    assert_eq!(translate(&mut t, &asked), Ok(PAGE));
    t.unit.set_source_id(handle(1), sid(0x55)).unwrap();
    assert_eq!(t.unit.cached_translations(), 0);
    t.unit.set_source_id(handle(1), sid(D1)).unwrap();
    assert_eq!(translate(&mut t, &asked), Ok(PAGE));
    assert_eq!(
        t.unit.remove_emulated_device(handle(0)),
        Err(DeviceError::Unknown(handle(0))),
        "an assigned one"
    );
    assert_eq!(
        t.unit.remove_device(handle(1), &mut t.host),
        Ok(Progress::Done)
    );
    assert_eq!(t.unit.cached_translations(), 0);
    let refused = t.unit.translate(&mut t.host, &asked);
    assert_eq!(refused, Err(TranslateError::NotEmulated(sid(D1))));
    t.emulate(1, D1);
    assert_eq!(translate(&mut t, &asked), Ok(PAGE));
}

#[test]
fn a_device_that_reaches_far_keeps_within_the_capacity() {
    let (mut t, leaf) = bench();
    let entries: Vec<u64> = (0..512).map(|index| index << 12 | 7).collect();
    t.store(leaf, &entries);
    for round in 0..2 {
        for index in 0..512u64 {
            let asked = request(Some(5), index << 12, Access::READ);
            assert_eq!(translate(&mut t, &asked), Ok(index << 12), "{round}");
        }
    }
    assert!(t.unit.cached_translations() <= CACHED_TRANSLATIONS);
    t.submit(Descriptor::PasidCache {
        granularity: PasidCacheGranularity::Global,
    });
    assert_eq!(t.unit.cached_translations(), 0);
}
