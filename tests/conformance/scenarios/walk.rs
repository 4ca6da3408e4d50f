//! The walk of a guest's contexts, directories and tables: what is read, what is passed over (S13 to
//! S16, S24, S29, S30).

use std::cell::Cell;
use std::rc::Rc;

use vtd_nest::arch::address::Gpa;
use vtd_nest::arch::context::{ContextAttributes, DirectoryOrder, ScalableContextEntry};
use vtd_nest::arch::descriptor::{ContextGranularity, Descriptor};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::{DomainId, SourceId};
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::arch::register::{FaultStatus, Register32};
use vtd_nest::nest::Policy;

use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, GUEST_LEN_BYTES, Guest, GuestOptions, IOVA, Place};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S13 R14 R15 G39",
        "1,000 entries in three sparse directories cost what is present, once",
        s13,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S14 R15",
        "nothing beyond the declared directory is read or bound",
        s14,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S15 R15 R16",
        "an absent directory entry skips its PASIDs, its neighbours are bound",
        s15,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S16 R16",
        "a directory outside the machine is skipped, others are bound",
        s16,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S24 R14",
        "a PASID wider than the unit shows is never bound",
        s24,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S29 R17",
        "a context entry without PASIDs binds PASID 0 only",
        s29,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S30 R25",
        "a cleared context entry unbinds its device without a PASID-cache invalidation",
        s30,
    ),
];

/// Where nothing of the machine is.
const OUTSIDE: u64 = 0x7fff_f000;

fn s13(place: Place<'_>) {
    const DEVICES: [SourceId; 3] = [D0, D1, SourceId::from_u16(0x0300)];
    let devices = DEVICES.into_iter().enumerate();
    let mut guest = place.guest_with(GuestOptions {
        devices: devices.map(|(index, id)| (id, index, 0)).collect(),
        ..GuestOptions::default()
    });
    let (root, page) = guest.other_table();
    let entry = guest.entry(root, 7);
    // 16 entries in each table, the tables far apart in all 20 bits.
    let place_of = |number: u32| {
        let (device, index) = (number as usize % 3, number / 3);
        let table = index / 16 * 769 % (1 << 14);
        (DEVICES[device], table * 64 + index % 16 * 4 + 1)
    };
    let mut tables = std::collections::BTreeSet::new();
    let mut costs = Vec::new();
    let mut present = 0;
    for count in [500, 1000] {
        for number in present..count {
            let (device, pasid) = place_of(number);
            guest.set_entry(device, pasid, &entry);
            tables.insert((device, pasid >> 6));
        }
        present = count;
        let before = guest.lab.hypervisor.counts();
        guest.invalidate_pasid_global();
        let cost = guest.lab.hypervisor.counts().since(before);
        // Beside directories and tables: two descriptors, and for each device the root entry, the
        // context entry, and the directory entry and entry of PASID 0.
        let bytes = 3 * (128 << 10) + tables.len() as u64 * 4096 + 3 * (16 + 32 + 8 + 64) + 64;
        assert!(cost.guest_bytes <= bytes, "{cost:?}, {bytes} bytes allowed");
        let reads = 3 * (32 + 4) + tables.len() as u64 + 2;
        assert!(cost.guest_reads <= reads, "{cost:?}, {reads} reads allowed");
        costs.push((cost.guest_bytes, tables.len() as u64));
    }
    for number in 0..present {
        let (device, pasid) = place_of(number);
        guest.expect_reaches(device, Some(pasid), IOVA, page);
    }
    let (bytes, more) = (costs[1].0 - costs[0].0, costs[1].1 - costs[0].1);
    assert!(bytes <= more * 4096, "{bytes} bytes more for {more} tables");
    // Once more: the same reads at most, and nothing else.
    let before = guest.lab.hypervisor.counts();
    guest.expect_no_operation(|guest| guest.invalidate_pasid_global());
    let again = guest.lab.hypervisor.counts().since(before);
    assert!(again.guest_bytes <= costs[1].0, "{again:?}");
    guest.finish();
}

/// What the library reads from one part of guest memory.
fn count_reads(guest: &Guest, from: u64, len_bytes: u64) -> Rc<Cell<u32>> {
    let count = Rc::new(Cell::new(0));
    let counter = count.clone();
    // Pages lie anywhere on the host.
    let pages = (from & !0xfff..from + len_bytes).step_by(4096);
    let parts: Vec<_> = pages
        .map(|page| {
            let (first, end) = (page.max(from), (page + 4096).min(from + len_bytes));
            let host = guest.host_of(Gpa::new(first)).as_u64();
            host..host + (end - first)
        })
        .collect();
    guest.lab.hypervisor.on_guest_read(move |_, at, len| {
        let (at, end) = (at.as_u64(), at.as_u64() + len as u64);
        if parts.iter().any(|part| at < part.end && part.start < end) {
            counter.set(counter.get() + 1);
        }
    });
    count
}

fn s14(place: Place<'_>) {
    const LIMIT: u32 = 8192;
    for mut guest in place.each_guest() {
        guest.install_context(D0, DirectoryOrder::SMALLEST);
        guest.invalidate_context(D0);
        let (root, page) = guest.other_table();
        let entry = guest.entry(root, 7);
        // What lies behind the directory looks like more of it.
        for pasid in [LIMIT - 1, LIMIT, LIMIT + 64, (1 << 20) - 1] {
            guest.set_entry(D0, pasid, &entry);
        }
        let end = guest.directory_entry_at(D0, LIMIT);
        let reads = count_reads(&guest, end, (128 << 10) - 1024);
        guest.expect_no_operation(|guest| {
            guest.invalidate_pasid(7, LIMIT);
            guest.invalidate_pasid(7, (1 << 20) - 1);
        });
        guest.invalidate_pasid_domain(7);
        guest.invalidate_pasid_global();
        assert_eq!(reads.get(), 0, "reads beyond the directory");
        guest.expect_reaches(D0, Some(LIMIT - 1), IOVA, page);
        for pasid in [LIMIT, LIMIT + 64, (1 << 20) - 1] {
            assert_eq!(guest.hardware_entry(D0, pasid), None);
            guest.expect_blocked(D0, Some(pasid), IOVA, FaultReason::PasidBeyondDirectory);
        }
        assert_eq!(reads.get(), 0, "reads beyond the directory");
        guest.lab.hypervisor.clear_hooks();
        guest.finish();
    }
}

fn s15(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (root, page) = guest.other_table();
        let entry = guest.entry(root, 7);
        for pasid in [63, 64, 70, 127, 128] {
            guest.set_entry(D0, pasid, &entry);
        }
        let slot = guest.directory_entry_at(D0, 64);
        let table = guest.read_u64(slot);
        guest.write_u64(slot, table & !1);
        let reads = count_reads(&guest, table & !0xfff, 4096);
        guest.invalidate_pasid_global();
        assert_eq!(reads.get(), 0, "the table behind it is not looked at");
        guest.lab.hypervisor.clear_hooks();
        for pasid in [63, 128] {
            guest.expect_reaches(D0, Some(pasid), IOVA, page);
        }
        for pasid in [64, 70, 127] {
            assert_eq!(guest.hardware_entry(D0, pasid), None);
            guest.expect_blocked(
                D0,
                Some(pasid),
                IOVA,
                FaultReason::PasidDirectoryEntryNotPresent,
            );
        }
        guest.finish();
    }
}

fn s16(place: Place<'_>) {
    for outside in [GUEST_LEN_BYTES, OUTSIDE] {
        for mut guest in place.each_guest() {
            let (pasid, tag) = (guest.pasid, guest.tag);
            let (root, page) = guest.bound();
            let entry = guest.entry(root, 7);
            let mut neighbours = vec![(D1, tag, pasid)];
            if tag.is_some() {
                neighbours.push((D0, Some(70), 70));
            }
            for (device, _, pasid) in neighbours.iter().copied() {
                guest.set_entry(device, pasid, &entry);
            }
            // A PASID table of the device is nowhere.
            let slot = guest.directory_entry_at(D0, pasid);
            let table = guest.read_u64(slot);
            guest.write_u64(slot, outside | 1);
            guest.invalidate_pasid_global();
            assert_eq!(guest.hardware_entry(D0, pasid), None);
            for (device, tag, _) in neighbours.iter().copied() {
                guest.expect_reaches(device, tag, IOVA, page);
            }
            guest.expect_blocked(D0, tag, IOVA, FaultReason::PasidTableUnreadable);
            guest.write_u64(slot, table);
            guest.invalidate_pasid_global();
            guest.expect_reaches(D0, tag, IOVA, page);
            // Its whole directory is nowhere.
            let context = guest.context_at(D0);
            let kept = guest.read_u64(context);
            guest.write_u64(context, kept & 0xfff | outside);
            guest.set_entry(D1, pasid, &PasidEntry::default());
            guest.invalidate_context(D0);
            guest.invalidate_pasid_global();
            guest.set_entry(D1, pasid, &entry);
            guest.invalidate_pasid_global();
            for pasid in [pasid, 70] {
                assert_eq!(guest.hardware_entry(D0, pasid), None);
            }
            guest.expect_reaches(D1, tag, IOVA, page);
            guest.expect_blocked(D0, tag, IOVA, FaultReason::PasidDirectoryUnreadable);
            let faults = guest.lab.host_faults.take();
            assert_eq!(faults, [], "faults of the hypervisor's");
            guest.finish();
        }
    }
}

fn s24(place: Place<'_>) {
    let options = GuestOptions {
        policy: Policy {
            pasid_bits: 10,
            ..Policy::default()
        },
        ..GuestOptions::default()
    };
    for pasid in [1 << 10, 1 << 15, (1 << 20) - 1] {
        for mut guest in place.each_guest_with(options.clone()) {
            let (root, page) = guest.other_table();
            let entry = guest.entry(root, 7);
            guest.set_entry(D0, 1023, &entry);
            guest.set_entry(D0, pasid, &entry);
            // Ignored, or an error of the queue: a driver clears that and goes on.
            guest.push(crate::lab::pasid_cache(7, pasid));
            guest.ring();
            guest.write32(
                Register32::FAULT_STATUS,
                FaultStatus::INVALIDATION_QUEUE_ERROR.bits(),
            );
            assert_eq!(guest.hardware_entry(D0, pasid), None);
            guest.invalidate_pasid_global();
            assert_eq!(guest.hardware_entry(D0, pasid), None);
            assert_eq!(guest.vm.statistics().bind_errors, 0, "nobody tried");
            assert_eq!(guest.take_faults().faults, []);
            guest.expect_reaches(D0, Some(1023), IOVA, page);
            guest.expect_blocked(D0, Some(pasid), IOVA, FaultReason::PasidTooLarge);
            guest.finish();
        }
    }
}

fn s29(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (root, page) = guest.bound();
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, 0, &entry);
        guest.set_entry(D1, 5, &entry);
        guest.invalidate_pasid_global();
        guest.expect_reaches(D0, None, IOVA, page);
        let at = guest.context_at(D0);
        let directory = Gpa::new(guest.read_u64(at) & !0xfff);
        let context = |pasid_enabled| {
            let attributes = ContextAttributes {
                pasid_enabled,
                ..ContextAttributes::default()
            };
            ScalableContextEntry::new(directory, DirectoryOrder::LARGEST, attributes).to_bytes()
        };
        guest.write(at, &context(false));
        guest.invalidate_context(D0);
        assert_eq!(guest.hardware_entry(D0, 5), None);
        guest.set_entry(D0, 6, &entry);
        guest.invalidate_pasid(7, 6);
        guest.invalidate_pasid_global();
        for pasid in [5, 6] {
            assert_eq!(guest.hardware_entry(D0, pasid), None);
            guest.expect_blocked(D0, Some(pasid), IOVA, FaultReason::PasidDisabled);
        }
        guest.expect_reaches(D0, None, IOVA, page);
        guest.expect_reaches(D1, Some(5), IOVA, page);
        guest.write(at, &context(true));
        guest.invalidate_context(D0);
        for pasid in [5, 6] {
            guest.expect_reaches(D0, Some(pasid), IOVA, page);
        }
        guest.finish();
    }
}

fn s30(place: Place<'_>) {
    let device = |source_id, function_mask| Descriptor::ContextCache {
        granularity: ContextGranularity::Device {
            source_id,
            function_mask,
            domain_id: DomainId::ZERO,
        },
    };
    let global = Descriptor::ContextCache {
        granularity: ContextGranularity::Global,
    };
    let another_function = SourceId::from_u16(D0.as_u16() | 7);
    for invalidation in [device(D0, 0), device(another_function, 3), global] {
        for mut guest in place.each_guest() {
            let (pasid, tag) = (guest.pasid, guest.tag);
            let (root, page) = guest.bound();
            let entry = guest.entry(root, 7);
            guest.set_entry(D0, 0, &entry);
            guest.set_entry(D1, pasid, &entry);
            guest.invalidate_pasid_global();
            let context = guest.context_at(D0);
            let present = guest.read_u64(context);
            guest.write_u64(context, present & !1);
            guest.submit(&[invalidation]);
            for (tag, pasid) in [(tag, pasid), (None, 0)] {
                assert_eq!(guest.hardware_entry(D0, pasid), None);
                guest.expect_blocked(D0, tag, IOVA, FaultReason::ScalableContextEntryNotPresent);
            }
            guest.expect_reaches(D1, tag, IOVA, page);
            guest.write_u64(context, present);
            guest.submit(&[invalidation]);
            guest.expect_reaches(D0, tag, IOVA, page);
            guest.expect_reaches(D0, None, IOVA, page);
            guest.finish();
        }
    }
}
