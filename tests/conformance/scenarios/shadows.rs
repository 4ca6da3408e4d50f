//! Shadows kept in step: what it costs, in which slices, and what the guest may rely on meanwhile.

use std::cell::Cell;
use std::rc::Rc;

use vtd_nest::arch::address::{Gpa, PageSize};
use vtd_nest::arch::descriptor::{Descriptor, IotlbGranularity};
use vtd_nest::arch::id::DomainId;
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::paging::Rights;
use vtd_nest::viommu::Poll;

use crate::bench::Hold;
use crate::harness::{Scenario, scenario};
use crate::lab::{D0, D1, IOVA, Place};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S42 R30 G39",
        "a range of a shadow costs what the range is, and no other page follows",
        range_of_a_shadow,
    ),
    scenario(
        "S4 R27",
        "a device that joins a shadow has the table as it reads now, and the others too",
        joins_a_shadow,
    ),
    scenario(
        "S18 R21",
        "a large page is one leaf of the shadow; its unchanged pages are never blocked while it is split",
        large_page,
    ),
    scenario(
        "S5 R12 R20",
        "a table is shadowed once for a replacement, however late hardware confirms",
        replaced_late,
    ),
    scenario(
        "S37 R12 R25",
        "a shadow that nobody asks for any more while it is built is given back",
        build_given_up,
    ),
];

fn domain_flush() -> IotlbGranularity {
    IotlbGranularity::Domain(DomainId::new(7))
}

fn range_of_a_shadow(place: Place<'_>) {
    let mut guest = place.shadow_guest();
    let (root, page) = guest.bound();
    let (tag, other) = (guest.tag, guest.data_page());
    let first = IOVA & !0x1f_ffff;
    for target in [page, other] {
        for index in 0..512 {
            guest.map(root, first + 0x1000 * index, Some(target));
        }
        if target == page {
            guest.invalidate_iotlb(domain_flush());
            guest.expect_reaches(D0, tag, first + 0x3000, page);
        }
    }
    // A page: the guest's four table levels, the descriptors, nothing else.
    let flush = guest.page_invalidation(7, first + 0x2000, 0);
    let before = guest.lab.hypervisor.counts();
    guest.submit(&[flush]);
    let cost = guest.lab.hypervisor.counts().since(before);
    assert!(cost.guest_reads <= 4 + 2, "{cost:?}");
    assert!(cost.guest_bytes <= 4 * 8 + 2 * 32, "{cost:?}");
    assert_eq!((cost.submissions, cost.descriptors, cost.waits), (1, 1, 1));
    guest.expect_reaches(D0, tag, first + 0x2000, other);
    // What was not named did not follow.
    guest.expect_reaches(D0, tag, first + 0x1000, page);
    guest.expect_reaches(D0, tag, first + 0x3000, page);
    // The whole table page: each entry is read once, and stored once if it changes.
    let flush = guest.page_invalidation(7, first, 9);
    let before = guest.lab.hypervisor.counts();
    guest.submit(&[flush]);
    let cost = guest.lab.hypervisor.counts().since(before);
    let upper_levels = 16 * 3 * 8;
    assert!(
        cost.guest_bytes <= 512 * 8 + upper_levels + 2 * 32,
        "{cost:?}"
    );
    assert!(cost.stores <= 511 + 16, "{cost:?}");
    assert_eq!((cost.submissions, cost.waits), (1, 1));
    guest.expect_reaches(D0, tag, first + 0x1f_f000, other);
    guest.finish();
}

fn joins_a_shadow(place: Place<'_>) {
    let mut guest = place.shadow_guest();
    let (root, page) = guest.bound();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let entry = guest.entry(root, 7);
    guest.set_entry(D1, pasid, &entry);
    guest.invalidate_pasid(7, pasid);
    guest.expect_reaches(D1, tag, IOVA, page);
    guest.set_entry(D1, pasid, &PasidEntry::default());
    guest.invalidate_pasid(7, pasid);
    // The table changes while D1 has let go of it; only its PASID entry is invalidated after.
    let other = guest.data_page();
    guest.map(root, IOVA, Some(other));
    guest.set_entry(D1, pasid, &entry);
    guest.invalidate_pasid(7, pasid);
    guest.expect_reaches(D1, tag, IOVA, other);
    guest.expect_reaches(D0, tag, IOVA, other);
    guest.finish();
}

/// Where the machine gets a second view of 2 MiB of its memory that lie side by side on the host.
const WINDOW: u64 = 0x4000_0000;

fn large_page(place: Place<'_>) {
    let mut guest = place.shadow_guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let capability = guest.vm.offer().features.capability;
    let is_large = capability.second_stage_large_page(PageSize::Size2MiB);
    let (neighbour, changed) = (guest.data_page(), guest.data_page());
    let other = guest.data_page();
    let len = PageSize::Size2MiB.len_bytes();
    let host = |page: u64| guest.host_of(Gpa::new(page)).as_u64();
    let block = host(neighbour) & !(len - 1);
    let within = [host(neighbour) - block, host(changed) - block];
    assert!(within[1] < len, "both lie in the block");
    let lab = guest.lab.clone();
    let h = &*lab.hypervisor;
    let (window, block) = (Gpa::new(WINDOW), vtd_nest::arch::address::Hpa::new(block));
    guest
        .vm
        .map_memory(h, &lab.units, window, block, len, Rights::READ_WRITE)
        .expect("a second view of the machine's memory");
    let first = IOVA & !(len - 1);
    let root = guest.page();
    if !is_large {
        // The guest has no such leaves: nothing to see.
        guest.finish();
        return;
    }
    let leaf = guest.leaf(WINDOW, PageSize::Size2MiB, Rights::READ_WRITE);
    guest.set_leaf(root, first, 2, leaf);
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, pasid, &entry);
    let pages = guest.vm.statistics().shadow_pages;
    guest.invalidate_pasid(7, pasid);
    assert_eq!(guest.vm.statistics().shadow_pages - pages, 1, "one leaf");
    guest.expect_reaches(D0, tag, first + within[0], neighbour);
    guest.expect_reaches(D0, tag, first + within[1], changed);
    // The guest splits it, and changes one page.
    let table = guest.page();
    for index in 0..512 {
        let at = 0x1000 * index;
        let target = if at == within[1] { other } else { WINDOW + at };
        let leaf = guest.leaf(target, PageSize::Size4KiB, Rights::READ_WRITE);
        guest.write_u64(table + 8 * index, leaf);
    }
    let entry = guest.table_entry(table);
    guest.set_leaf(root, first, 2, entry);
    // The device looks at an unchanged page after every store.
    let requester = guest.requester(D0, tag);
    let expected = guest.read_u64(neighbour);
    let looks = Rc::new(Cell::new((0, 0)));
    let seen = looks.clone();
    let at = vtd_nest::arch::address::Iova::new(first + within[0]);
    lab.hypervisor.on_step(move |interposer| {
        let mut bytes = [0; 8];
        interposer.dma_read(requester, at, &mut bytes);
        let (all, blocked) = seen.get();
        let is_blocked = u64::from_le_bytes(bytes) != expected;
        seen.set((all + 1, blocked + u32::from(is_blocked)));
    });
    let flush = Descriptor::Iotlb {
        granularity: IotlbGranularity::Page {
            domain_id: DomainId::new(7),
            address: first,
            address_mask: 9,
            leaf_hint: false,
        },
        drain_reads: true,
        drain_writes: true,
    };
    guest.submit(&[flush]);
    lab.hypervisor.clear_hooks();
    let (all, blocked) = looks.get();
    assert!(all > 1 && blocked == 0, "{blocked} of {all} looks");
    guest.expect_reaches(D0, tag, first + within[0], neighbour);
    guest.expect_reaches(D0, tag, first + within[1], other);
    guest.finish();
}

fn replaced_late(place: Place<'_>) {
    let mut guest = place.shadow_guest();
    let (_, page) = guest.bound();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let (root, other) = guest.other_table();
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, pasid, &entry);
    let lab = guest.lab.clone();
    lab.hypervisor.hold(Hold::For(50_000));
    let before = guest.vm.statistics();
    guest.invalidate_pasid(7, pasid);
    lab.hypervisor.hold(Hold::Nothing);
    let after = guest.vm.statistics();
    assert_eq!(after.shadow_pages - before.shadow_pages, 1, "built once");
    assert_ne!(page, other);
    guest.expect_reaches(D0, tag, IOVA, other);
    guest.finish();
}

fn build_given_up(place: Place<'_>) {
    for resets in [false, true] {
        let mut empty = place.shadow_guest();
        if resets {
            empty.vm.reset();
        }
        empty.unassign(D0).expect("it leaves");
        empty.settle();
        let expected = empty.holdings();
        drop(empty);

        let mut guest = place.shadow_guest();
        let (pasid, page) = (guest.pasid, guest.data_page());
        let root = guest.page();
        for index in 0..2_000 {
            guest.map(root, IOVA + 0x1000 * index, Some(page));
        }
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, pasid, &entry);
        guest.push(guest.entry_invalidation(7, pasid));
        guest.push_wait();
        guest.ring_only();
        let lab = guest.lab.clone();
        let shadowed = guest.vm.statistics().shadow_pages;
        let mut polls = 0;
        while guest.vm.statistics().shadow_pages == shadowed {
            polls += 1;
            assert!(polls < 1_000, "the shadow is never begun");
            assert_eq!(guest.vm.poll(&*lab.hypervisor, &lab.units, 1), Poll::Again);
        }
        // Hardware has seen nothing of it.
        assert_eq!(guest.hardware_entry(D0, pasid), None);
        if resets {
            guest.vm.reset();
        }
        guest.unassign(D0).expect("it leaves");
        guest.settle();
        assert_eq!(guest.holdings(), expected, "resets: {resets}");
        guest.finish();
    }
}
