//! Invalidations of the guest's translations reach hardware for what they cover (S41 to S50).

use vtd_nest::arch::address::Gpa;
use vtd_nest::arch::descriptor::{ContextGranularity, Descriptor, IotlbGranularity};
use vtd_nest::arch::id::{DomainId, Pasid};
use vtd_nest::arch::register::{FaultStatus, Register32, Register64};

use crate::harness::{Scenario, scenario};
use crate::lab::{D0, D1, Guest, GuestOptions, IOVA, Place, kind};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S41 R30 G32",
        "what a flush covers is forgotten by every device, and it reaches nothing else",
        flush_of_one_pasid,
    ),
    scenario(
        "S42 R30",
        "a flush of a range reaches hardware for at least that range",
        flush_of_a_range,
    ),
    scenario(
        "S42 R7",
        "an address mask beyond MAMV is a queue error for the IOTLB only",
        mask_beyond_maximum,
    ),
    scenario(
        "S43",
        "any address mask and any address: no overflow, everything named is forgotten",
        any_mask_and_address,
    ),
    scenario(
        "S44",
        "a flush for what is not bound reaches no hardware",
        flush_of_nothing,
    ),
    scenario(
        "S45",
        "a flush of a domain covers each of its bindings",
        flush_of_a_domain,
    ),
    scenario(
        "S46",
        "a global flush covers this guest's bindings, and never another's",
        flush_of_everything,
    ),
    scenario(
        "S47 R30 G39",
        "1,000 page flushes and a wait are one submission and one wait of hardware",
        thousand_flushes,
    ),
    scenario(
        "S47 R30",
        "flushes of more ranges than are kept apart are one flush of the domain",
        scattered_flushes,
    ),
    scenario(
        "S47 R12 R30",
        "the guest's wait is written after hardware's, in budgeted slices",
        wait_after_hardware,
    ),
    scenario(
        "S42 R30",
        "neighbours joined beyond the mask that hardware has are all forgotten",
        joined_beyond_the_mask,
    ),
    scenario(
        "S49 R30 G7",
        "an invalidation that a full queue refuses is made up for",
        refused_by_a_full_queue,
    ),
    scenario(
        "S45 G5",
        "tables that a shadow no longer needs are kept until hardware has confirmed",
        shadow_tables_kept_until_confirmed,
    ),
    scenario(
        "S22 G17 G38",
        "a shadow without a domain-id is not kept",
        shadow_without_domain_id,
    ),
    scenario(
        "S50 R30",
        "memory taken from the machine is forgotten by every binding above it",
        unmap_below_bindings,
    ),
];

/// Binds D0 and D1 under domain-id 7 to one table: root and page.
fn bind_both(guest: &mut Guest) -> (u64, u64) {
    let (root, page) = guest.bound();
    let entry = guest.entry(root, 7);
    let pasid = guest.pasid;
    guest.set_entry(D1, pasid, &entry);
    guest.invalidate_pasid(7, pasid);
    guest.expect_reaches(D1, guest.tag, IOVA, page);
    guest.lab.take_submitted();
    (root, page)
}

fn flush_of_one_pasid(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, page) = bind_both(&mut guest);
    let (pasid, tag) = (guest.pasid, guest.tag);
    let domain_id = guest.host_domain_id(D0, pasid);
    let other = guest.data_page();
    guest.map(root, IOVA, Some(other));
    // Hardware may go on with what it has until it is told.
    for device in [D0, D1] {
        let reached = guest.reached(device, tag, IOVA);
        assert!(reached == Some(page) || reached == Some(other));
    }
    guest.invalidate_pages(7, IOVA, 0);
    guest.expect_reaches(D0, tag, IOVA, other);
    guest.expect_reaches(D1, tag, IOVA, other);
    let submitted = guest.lab.take_submitted();
    assert!(
        submitted.iter().any(|one| one.covers(domain_id, IOVA, 1)),
        "{submitted:x?}"
    );
    for one in &submitted {
        assert_eq!(one.domain_id, domain_id, "another domain's: {one:x?}");
        assert!(
            one.granularity != 1 || one.kind != kind::IOTLB,
            "global: {one:x?}"
        );
        assert!(
            one.kind != kind::PASID_IOTLB || one.pasid == pasid,
            "{one:x?}"
        );
    }
    guest.finish();
}

fn flush_of_a_range(place: Place<'_>) {
    for leaf_hint in [false, true] {
        let mut guest = place.guest();
        let (root, _) = guest.bound();
        let base = IOVA & !0x7fff;
        let pages: Vec<_> = (0..8).map(|_| guest.data_page()).collect();
        for round in 0..2 {
            for (index, page) in pages.iter().enumerate() {
                let page = if round == 0 { *page } else { pages[7 - index] };
                guest.map(root, base + 0x1000 * index as u64, Some(page));
            }
            let domain_id = guest.host_domain_id(D0, guest.pasid);
            guest.lab.take_submitted();
            let mut flush = guest.page_invalidation(7, base, 3);
            set_leaf_hint(&mut flush, leaf_hint && round == 1);
            guest.submit(&[flush]);
            let submitted = guest.lab.take_submitted();
            if guest.is_first_stage() {
                let covers = |one: &&crate::lab::Submitted| one.covers(domain_id, base, 8);
                let found = submitted.iter().find(covers);
                let found = found.unwrap_or_else(|| panic!("not covered: {submitted:x?}"));
                assert!(
                    leaf_hint || !found.leaf_hint,
                    "a hint that the guest did not give"
                );
            }
            for (index, page) in pages.iter().enumerate() {
                let page = if round == 0 { *page } else { pages[7 - index] };
                guest.expect_reaches(D0, guest.tag, base + 0x1000 * index as u64, page);
            }
        }
        guest.finish();
    }
}

fn set_leaf_hint(descriptor: &mut Descriptor, hint: bool) {
    use vtd_nest::arch::descriptor::PasidIotlbGranularity;
    match descriptor {
        Descriptor::Iotlb {
            granularity: IotlbGranularity::Page { leaf_hint, .. },
            ..
        }
        | Descriptor::PasidIotlb {
            granularity: PasidIotlbGranularity::Page { leaf_hint, .. },
            ..
        } => *leaf_hint = hint,
        _ => {}
    }
}

fn mask_beyond_maximum(place: Place<'_>) {
    let mut guest = place.guest();
    guest.bound();
    let maximum = guest.vm.offer().features.capability.maximum_address_mask();
    for (order, is_error) in [(maximum, false), (maximum + 1, true), (63, true)] {
        let head = guest.tail();
        let flush = Descriptor::Iotlb {
            granularity: IotlbGranularity::Page {
                domain_id: DomainId::new(7),
                address: 0,
                address_mask: order,
                leaf_hint: false,
            },
            drain_reads: false,
            drain_writes: false,
        };
        guest.push(flush);
        guest.ring();
        let status = guest.read32(Register32::FAULT_STATUS);
        let error = status & FaultStatus::INVALIDATION_QUEUE_ERROR.bits() != 0;
        assert_eq!(error, is_error, "mask {order}");
        if is_error {
            assert_eq!(guest.read64(Register64::INVALIDATION_QUEUE_HEAD), head);
            // Correct it and go on.
            guest.set_tail(head);
            guest.push(Descriptor::Iotlb {
                granularity: IotlbGranularity::Global,
                drain_reads: false,
                drain_writes: false,
            });
            let clear = FaultStatus::INVALIDATION_QUEUE_ERROR.bits();
            guest.write32(Register32::FAULT_STATUS, clear);
        }
    }
    guest.finish();
}

fn any_mask_and_address(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, _) = guest.bound();
    let maximum = guest.vm.offer().features.capability.maximum_address_mask();
    let orders: Vec<u8> = if guest.is_first_stage() {
        vec![0, 1, 9, 18, 35, 51, 52, 63]
    } else {
        (0..=maximum).step_by(3).collect()
    };
    for order in orders {
        // An address inside the block, not at its start.
        for address in [IOVA, !0xfff] {
            let page = guest.data_page();
            guest.map(root, IOVA, Some(page));
            let flush = guest.page_invalidation(7, address, order);
            guest.submit(&[flush]);
            if address == IOVA || order >= 52 {
                guest.expect_reaches(D0, guest.tag, IOVA, page);
            }
        }
    }
    guest.finish();
}

fn flush_of_nothing(place: Place<'_>) {
    let mut guest = place.guest();
    guest.bound();
    let counts = guest.lab.hypervisor.counts();
    let flush = guest.page_invalidation(8, IOVA, 0);
    guest.submit(&[flush]);
    guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(8)));
    if guest.is_first_stage() {
        for (domain, pasid) in [(7, 9), (8, 5)] {
            guest.submit(&[Descriptor::PasidIotlb {
                domain_id: DomainId::new(domain),
                pasid: Pasid::new(pasid).unwrap(),
                granularity: vtd_nest::arch::descriptor::PasidIotlbGranularity::All,
            }]);
        }
    }
    let counts = guest.lab.hypervisor.counts().since(counts);
    assert_eq!((counts.submissions, counts.descriptors), (0, 0));
    guest.finish();
}

fn flush_of_a_domain(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, _) = bind_both(&mut guest);
    let other = guest.data_page();
    guest.map(root, IOVA, Some(other));
    guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7)));
    for device in [D0, D1] {
        guest.expect_reaches(device, guest.tag, IOVA, other);
    }
    guest.finish();
}

fn flush_of_everything(place: Place<'_>) {
    let lab = place.lab();
    let alone = |number, device| GuestOptions {
        number,
        devices: vec![(D0, device, 0)],
        ..GuestOptions::default()
    };
    let mut first = Guest::start(&lab, alone(0, 0));
    let mut second = Guest::start(&lab, alone(1, 1));
    let (root, _) = first.bound();
    let (_, page) = second.bound();
    let foreign = second.host_domain_id(D0, second.pasid);
    let other = first.data_page();
    first.map(root, IOVA, Some(other));
    lab.take_submitted();
    first.invalidate_iotlb(IotlbGranularity::Global);
    first.expect_reaches(D0, first.tag, IOVA, other);
    for one in lab.take_submitted() {
        assert!(
            one.kind != kind::IOTLB || one.granularity != 1,
            "global on hardware"
        );
        assert_ne!(one.domain_id, foreign, "the other guest pays for it");
    }
    second.expect_reaches(D0, second.tag, IOVA, page);
    first.finish();
}

/// Queues `count` flushes of single pages and a wait; hardware is not told.
fn queue_flushes(guest: &mut Guest, count: u64) -> u32 {
    for index in 0..count {
        let flush = guest.page_invalidation(7, IOVA + 0x1000 * index, 0);
        guest.push(flush);
    }
    guest.push_wait()
}

fn thousand_flushes(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, page) = bind_both(&mut guest);
    let (tag, other) = (guest.tag, guest.data_page());
    for target in [page, other] {
        for index in 0..1_000 {
            guest.map(root, IOVA + 0x1000 * index, Some(target));
        }
        if target == page {
            // A shadow leads there from now on, so the next change owes hardware something.
            guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7)));
            guest.expect_reaches(D1, tag, IOVA + 0x1000 * 499, page);
        }
    }
    let domain_id = guest.host_domain_id(D0, guest.pasid);
    let wait = queue_flushes(&mut guest, 1_000);
    guest.lab.take_submitted();
    let counts = guest.lab.hypervisor.counts();
    guest.ring();
    assert_eq!(guest.wait_status(), wait);
    let counts = guest.lab.hypervisor.counts().since(counts);
    assert_eq!((counts.submissions, counts.waits), (1, 1), "{counts:?}");
    // Neighbours were joined: a descriptor for the range, or two where it is not aligned.
    assert!(counts.descriptors <= 2, "{counts:?}");
    let submitted = guest.lab.take_submitted();
    for index in [0, 499, 999] {
        let at = IOVA + 0x1000 * index;
        let covered = submitted.iter().any(|one| one.covers(domain_id, at, 1));
        assert!(covered, "{at:x} of {submitted:x?}");
        for device in [D0, D1] {
            guest.expect_reaches(device, tag, at, other);
        }
    }
    guest.finish();
}

fn scattered_flushes(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, page) = bind_both(&mut guest);
    let (tag, other) = (guest.tag, guest.data_page());
    let pages: Vec<u64> = (0..100).map(|index| IOVA + 0x4000 * index).collect();
    for target in [page, other] {
        for at in &pages {
            guest.map(root, *at, Some(target));
        }
        if target == page {
            guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7)));
            guest.expect_reaches(D0, tag, pages[50], page);
        }
    }
    let flushes: Vec<Descriptor> = pages
        .iter()
        .map(|at| guest.page_invalidation(7, *at, 0))
        .collect();
    let counts = guest.lab.hypervisor.counts();
    guest.submit(&flushes);
    let counts = guest.lab.hypervisor.counts().since(counts);
    assert_eq!(
        (counts.submissions, counts.descriptors, counts.waits),
        (1, 1, 1),
        "{counts:?}"
    );
    for at in [pages[0], pages[50], pages[99]] {
        guest.expect_reaches(D0, tag, at, other);
    }
    guest.finish();
}

fn wait_after_hardware(place: Place<'_>) {
    use crate::bench::Hold;
    use vtd_nest::viommu::Poll;
    let mut guest = place.guest();
    let (root, _) = bind_both(&mut guest);
    let other = guest.data_page();
    guest.map(root, IOVA, Some(other));
    guest.lab.hypervisor.hold(Hold::For(100_000));
    let before = guest.wait_status();
    let wait = queue_flushes(&mut guest, 30);
    guest.ring_only();
    let lab = guest.lab.clone();
    let mut slices = 0;
    loop {
        slices += 1;
        assert!(slices < 10_000);
        let submitted = lab.hypervisor.counts().submissions;
        let polled = guest.vm.poll(&*lab.hypervisor, &lab.units, 8);
        // What one slice sends is bounded by its budget.
        assert!(lab.hypervisor.counts().submissions - submitted <= 8);
        if guest.wait_status() == wait {
            break;
        }
        assert_eq!(guest.wait_status(), before);
        if polled == Poll::Wait {
            lab.hypervisor.pass(1_000);
        }
    }
    lab.hypervisor.hold(Hold::Nothing);
    for device in [D0, D1] {
        guest.expect_reaches(device, guest.tag, IOVA, other);
    }
    guest.finish();
}

fn unmap_below_bindings(place: Place<'_>) {
    let mut guest = place.guest();
    let neighbour = guest.data_page();
    // Several children above one second stage: other domain-ids, other tables, both devices.
    let (_, page) = bind_both(&mut guest);
    let mut children = vec![(D0, guest.tag), (D1, guest.tag)];
    if guest.tag.is_some() {
        for pasid in 6..12 {
            let root = guest.table(&[(IOVA, page)]);
            let entry = guest.entry(root, pasid as u16 + 10);
            guest.set_entry(D0, pasid, &entry);
            children.push((D0, Some(pasid)));
        }
        guest.invalidate_pasid_global();
    }
    for (device, tag) in &children {
        guest.expect_reaches(*device, *tag, IOVA, page);
    }
    let counts = guest.lab.hypervisor.counts();
    let lab = guest.lab.clone();
    let unmapped = guest
        .vm
        .unmap_memory(&*lab.hypervisor, &lab.units, Gpa::new(page), 0x1000);
    unmapped.expect("the page is taken away");
    let counts = lab.hypervisor.counts().since(counts);
    for (device, tag) in &children {
        assert!(
            guest.reached(*device, *tag, IOVA).is_none(),
            "{device} {tag:?} reaches it"
        );
    }
    guest.take_faults();
    // Its cost: a few descriptors for each host domain-id in use, one wait for each batch.
    assert!(
        counts.waits <= 2 && counts.descriptors <= 2 * children.len() as u64 + 2,
        "{counts:?} for {} children",
        children.len()
    );
    // Its neighbours stay the machine's.
    guest.set_translation(false);
    guest.expect_reaches(D0, None, neighbour, neighbour);
    assert!(guest.reached(D0, None, page).is_none());
    guest.finish();
}

fn joined_beyond_the_mask(place: Place<'_>) {
    const PAGES: u64 = 64;
    let mut guest = place.shadow_guest();
    let (root, _) = guest.bound();
    let base = IOVA & !0x3f_ffff;
    let pages = [guest.data_page(), guest.data_page()];
    for page in pages {
        for index in 0..PAGES {
            guest.map(root, base + 0x1000 * index, Some(page));
            let flush = guest.page_invalidation(7, base + 0x1000 * index, 0);
            guest.push(flush);
        }
        let wait = guest.push_wait();
        guest.ring();
        assert_eq!(guest.wait_status(), wait);
        for index in 0..PAGES {
            guest.expect_reaches(D0, guest.tag, base + 0x1000 * index, page);
        }
    }
    guest.finish();
}

fn refused_by_a_full_queue(place: Place<'_>) {
    use crate::bench::Hold;
    for mut guest in place.each_guest() {
        let (root, _) = bind_both(&mut guest);
        let other = guest.data_page();
        let lab = guest.lab.clone();
        lab.hypervisor.hold(Hold::Forever);
        // Others fill the queue while hardware does nothing.
        let batch = [Descriptor::ContextCache {
            granularity: ContextGranularity::Global,
        }];
        let mut tickets = Vec::new();
        while let Ok(ticket) = lab.units[0].submit(&*lab.hypervisor, &batch) {
            tickets.push(ticket);
            assert!(tickets.len() < 10_000, "the queue is never full");
        }
        guest.map(root, IOVA, Some(other));
        let flush = guest.page_invalidation(7, IOVA, 0);
        guest.push(flush);
        let wait = guest.push_wait();
        guest.ring_only();
        for _ in 0..20 {
            let _ = guest.vm.poll(&*lab.hypervisor, &lab.units, 8);
            assert_ne!(guest.wait_status(), wait, "hardware knows nothing of it");
        }
        lab.hypervisor.hold(Hold::Nothing);
        for ticket in tickets {
            let _ = lab.units[0].poll(&*lab.hypervisor, &ticket);
        }
        guest.settle();
        assert_eq!(guest.wait_status(), wait);
        for device in [D0, D1] {
            guest.expect_reaches(device, guest.tag, IOVA, other);
        }
        guest.finish();
    }
}

fn shadow_tables_kept_until_confirmed(place: Place<'_>) {
    use crate::bench::Hold;
    let mut guest = place.shadow_guest();
    let (root, page) = guest.bound();
    let far = IOVA + (1 << 30);
    guest.map(root, far, Some(page));
    guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7)));
    guest.expect_reaches(D0, guest.tag, far, page);
    let before = guest.holdings().charged_frames;
    guest.set_leaf(root, far, 3, 0);
    let lab = guest.lab.clone();
    lab.hypervisor.hold(Hold::Forever);
    guest.push(Descriptor::Iotlb {
        granularity: IotlbGranularity::Domain(DomainId::new(7)),
        drain_reads: true,
        drain_writes: true,
    });
    guest.push_wait();
    guest.ring_only();
    for _ in 0..50 {
        let _ = guest.vm.poll(&*lab.hypervisor, &lab.units, 8);
        assert!(
            guest.holdings().charged_frames >= before,
            "hardware may still walk them"
        );
    }
    lab.hypervisor.hold(Hold::Nothing);
    guest.settle();
    assert!(
        guest.holdings().charged_frames < before,
        "they are given back"
    );
    guest.expect_no_data(D0, guest.tag, far);
    guest.finish();
}

fn shadow_without_domain_id(place: Place<'_>) {
    let mut guest = place.shadow_guest();
    let (root, page) = guest.other_table();
    // D1's table is there for the entry; only the shadow would be new.
    let pasid = guest.pasid;
    guest.bind(D0, pasid, 9);
    let unit = &guest.lab.clone().units[0];
    let ids: Vec<_> = std::iter::from_fn(|| unit.allocate_domain_id()).collect();
    let before = guest.holdings();
    let entry = guest.entry(root, 7);
    guest.set_entry(D1, pasid, &entry);
    guest.invalidate_pasid(7, pasid);
    let after = guest.holdings();
    // A page of the PASID table at most.
    assert!(
        after.charged_frames <= before.charged_frames + 1,
        "{after:?}, {before:?}"
    );
    guest.take_faults();
    for id in ids {
        unit.free_domain_id(id);
    }
    guest.invalidate_pasid(7, pasid);
    guest.expect_reaches(D1, guest.tag, IOVA, page);
    guest.finish();
}
