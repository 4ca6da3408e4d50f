//! The machine's memory changed below what is bound above it (S50, G15): rights, large pages split
//! and merged, dirty pages taken.

use std::cell::Cell;
use std::rc::Rc;

use vtd_nest::arch::address::{Gpa, Hpa, Iova, PageSize};
use vtd_nest::arch::capability::{CapabilityField, ExtendedCapabilityField};
use vtd_nest::nest::{MachineError, Policy};
use vtd_nest::paging::{OnPartialLeaf, Rights};

use crate::bench::{Access, Hold, Interposer, host_offset};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, GUEST_LEN_BYTES, Guest, GuestOptions, IOVA, Place, Submitted, kind};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S50 G23 R30",
        "rights of the machine's memory change below every kind of binding",
        rights_below_bindings,
    ),
    scenario(
        "S50 G15 G6",
        "pages beside a change are reached between any two stores",
        pages_beside_a_change,
    ),
    scenario(
        "S50 G23 G39",
        "a change costs hardware the translations of what it changed, and few descriptors",
        changes_by_range,
    ),
    scenario(
        "S50 G5 S45",
        "a change that hardware does not confirm is told, and its table pages wait",
        unconfirmed_change,
    ),
    scenario(
        "S50 S69",
        "pages that devices write are told, once and for all kinds of binding",
        dirty_pages,
    )
    .needs(&[Need::Extended(
        ExtendedCapabilityField::SECOND_STAGE_ACCESSED_DIRTY,
        "SSADS",
    )]),
];

/// A guest whose devices are bound in one way.
const BACK_ENDS: [fn(Place<'_>, Policy) -> Guest; 2] = [
    |place, policy| place.guest_with(with_policy(policy)),
    |place, policy| {
        place.guest_with(with_policy(Policy {
            forbid_nesting: true,
            ..policy
        }))
    },
];

fn with_policy(policy: Policy) -> GuestOptions {
    GuestOptions {
        policy,
        ..GuestOptions::default()
    }
}

fn rights_below_bindings(place: Place<'_>) {
    for start in BACK_ENDS {
        for hold in [Hold::Nothing, Hold::For(50_000)] {
            let mut guest = start(place, Policy::default());
            let tag = guest.tag;
            let lab = guest.lab.clone();
            let (root, page) = guest.bound();
            let neighbour = guest.data_page();
            guest.map(root, IOVA + 0x1000, Some(neighbour));
            guest.invalidate_pages(7, IOVA + 0x1000, 0);
            guest.expect_writes_reach(D0, tag, IOVA, page);
            lab.hypervisor.hold(hold);
            for (rights, reads, writes) in [
                (Rights::READ, true, false),
                (Rights::READ_WRITE, true, true),
                (Rights::WRITE, false, true),
                (Rights::READ, true, false),
                (Rights::READ_WRITE, true, true),
            ] {
                let split = OnPartialLeaf::Split;
                let at = Gpa::new(page);
                let left_out = guest.vm.statistics().read_only_left_out;
                guest
                    .vm
                    .protect_memory(&*lab.hypervisor, &lab.units, at, 0x1000, rights, split)
                    .expect("the rights change");
                // Where nested updates ignore read-only there is no such memory.
                let is_there = guest.vm.statistics().read_only_left_out == left_out;
                // At once: without the guest, and without its unit.
                guest.write_u64(page + 16, 0);
                for (access, expected) in [(Access::Read, reads), (Access::Write, writes)] {
                    let through = guest.gets_through(D0, tag, IOVA, access);
                    let expected = expected && is_there;
                    assert_eq!(through, expected, "{access:?} with {rights:?}, {hold:?}");
                }
                if !is_there {
                    let (host, both) = (guest.host_of(at), Rights::READ_WRITE);
                    guest
                        .vm
                        .map_memory(&*lab.hypervisor, &lab.units, at, host, 0x1000, both)
                        .expect("it is there again");
                }
                guest.take_faults();
                guest.expect_reaches(D0, tag, IOVA + 0x1000, neighbour);
                guest.expect_writes_reach(D0, tag, IOVA + 0x1000, neighbour);
            }
            lab.hypervisor.hold(Hold::Nothing);
            lab.host_faults.take();
            guest.finish();
        }
    }
}

/// 2 MiB of nobody's memory, given to a machine behind its own: one large page where hardware has
/// such. Some pages of it hold values.
struct LargePage {
    guest: Gpa,
    host: Hpa,
}

impl LargePage {
    const LEN_BYTES: u64 = 2 << 20;
    /// Offset of the page that changes.
    const CHANGED: u64 = 0x12_3000;
    /// Offsets of pages that do not.
    const OTHERS: [u64; 4] = [0, 0x12_2000, 0x12_4000, 0x1f_f000];

    fn given_to(guest: &mut Guest) -> Self {
        let lab = guest.lab.clone();
        let nobodys = lab.hypervisor.bench().layout().nobodys.start.as_u64();
        let page = Self {
            guest: Gpa::new(GUEST_LEN_BYTES.next_multiple_of(Self::LEN_BYTES)),
            host: Hpa::new(nobodys.next_multiple_of(Self::LEN_BYTES)),
        };
        for offset in Self::OTHERS.into_iter().chain([Self::CHANGED]) {
            let value = Self::value(offset).to_le_bytes();
            lab.hypervisor
                .guest_write(host_offset(page.host, offset), &value);
        }
        let (hypervisor, units, rights) = (&*lab.hypervisor, &lab.units, Rights::READ_WRITE);
        guest
            .vm
            .map_memory(
                hypervisor,
                units,
                page.guest,
                page.host,
                Self::LEN_BYTES,
                rights,
            )
            .expect("memory");
        page
    }

    fn at(&self, offset: u64) -> Gpa {
        Gpa::new(self.guest.as_u64() + offset)
    }

    fn value(offset: u64) -> u64 {
        0x1a26_e000_0000 | offset
    }
}

fn pages_beside_a_change(place: Place<'_>) {
    for start in BACK_ENDS {
        let mut guest = start(place, Policy::default());
        let (pasid, tag) = (guest.pasid, guest.tag);
        let lab = guest.lab.clone();
        let (hypervisor, units) = (&*lab.hypervisor, &lab.units);
        let page = LargePage::given_to(&mut guest);
        // Each page of it through a table, the changed one first.
        let offsets = [LargePage::CHANGED].into_iter().chain(LargePage::OTHERS);
        let mappings: Vec<(u64, u64)> = (0u64..)
            .zip(offsets)
            .map(|(index, offset)| (IOVA + 0x1000 * index, page.at(offset).as_u64()))
            .collect();
        let root = guest.table(&mappings);
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, pasid, &entry);
        guest.invalidate_pasid(7, pasid);

        let requester = guest.requester(D0, tag);
        let read = move |hypervisor: &Interposer, index: u64| {
            let mut bytes = [0; 8];
            hypervisor.dma_read(requester, Iova::new(IOVA + 0x1000 * index), &mut bytes);
            u64::from_le_bytes(bytes)
        };
        for (index, offset) in (1..).zip(LargePage::OTHERS) {
            assert_eq!(read(hypervisor, index), LargePage::value(offset));
        }
        let looks = Rc::new(Cell::new(0u64));
        let watched = looks.clone();
        hypervisor.on_step(move |hypervisor| {
            let look = watched.get();
            watched.set(look + 1);
            if look < 8 || look.is_multiple_of(32) {
                for (index, offset) in (1..).zip(LargePage::OTHERS) {
                    let found = read(hypervisor, index);
                    assert_eq!(
                        found,
                        LargePage::value(offset),
                        "{offset:#x} at look {look}"
                    );
                }
            }
        });
        let (changed, whole) = (page.at(LargePage::CHANGED), page.guest);
        let split = OnPartialLeaf::Split;
        let small = PageSize::Size4KiB;
        let len = LargePage::LEN_BYTES;
        let (both, less) = (Rights::READ_WRITE, Rights::WRITE);
        let host = host_offset(page.host, LargePage::CHANGED);
        type Edit<'a> = (
            &'a str,
            u64,
            Box<dyn Fn(&mut Guest) -> Result<(), MachineError> + 'a>,
        );
        let present = LargePage::value(LargePage::CHANGED);
        let edits: [Edit<'_>; 8] = [
            (
                "protect a part",
                0,
                Box::new(|guest| {
                    let vm = &mut guest.vm;
                    vm.protect_memory(hypervisor, units, changed, 0x1000, less, split)
                }),
            ),
            (
                "and back",
                present,
                Box::new(|guest| {
                    let vm = &mut guest.vm;
                    vm.protect_memory(hypervisor, units, changed, 0x1000, both, split)
                }),
            ),
            (
                "merge",
                present,
                Box::new(|guest| guest.vm.merge_memory(hypervisor, units, whole, len)),
            ),
            (
                "unmap a part",
                0,
                Box::new(|guest| {
                    let vm = &mut guest.vm;
                    vm.unmap_memory_with(hypervisor, units, changed, 0x1000, split)
                }),
            ),
            (
                "nothing to merge",
                0,
                Box::new(|guest| guest.vm.merge_memory(hypervisor, units, whole, len)),
            ),
            (
                "map it again",
                present,
                Box::new(|guest| {
                    let vm = &mut guest.vm;
                    vm.map_memory(hypervisor, units, changed, host, 0x1000, both)
                }),
            ),
            (
                "merge again",
                present,
                Box::new(|guest| guest.vm.merge_memory(hypervisor, units, whole, len)),
            ),
            (
                "split",
                present,
                Box::new(|guest| {
                    let vm = &mut guest.vm;
                    vm.split_memory(hypervisor, units, whole, len, small)
                }),
            ),
        ];
        for (name, expected, edit) in edits {
            assert_eq!(edit(&mut guest), Ok(()), "{name}");
            assert_eq!(read(hypervisor, 0), expected, "{name}");
        }
        assert!(looks.get() > 8);
        hypervisor.clear_hooks();
        let refused = guest.vm.unmap_memory(hypervisor, units, changed, 0x1000);
        assert_eq!(refused, Ok(()), "its pages are small");
        guest.take_faults();
        lab.host_faults.take();
        guest.finish();
    }
}

/// Translation is off, so that devices use the second stage alone and its addresses are theirs.
fn changes_by_range(place: Place<'_>) {
    let mut guest = place.guest();
    let lab = guest.lab.clone();
    let (hypervisor, units) = (&*lab.hypervisor, &lab.units);
    let (small, len) = (PageSize::Size4KiB, LargePage::LEN_BYTES);
    let large = LargePage::given_to(&mut guest);
    let first = guest.pages(5);
    let pages = [0, 1, 2, 3, 4].map(|index| first + 0x1000 * index);
    for (at, len) in [(Gpa::new(0), GUEST_LEN_BYTES), (large.guest, len)] {
        let vm = &mut guest.vm;
        vm.split_memory(hypervisor, units, at, len, small)
            .expect("small pages");
    }
    guest.set_translation(false);
    let id = guest.host_domain_id(D0, 0);
    let capability = units[0].features().capability;
    let owes_added =
        units[0].needs_invalidation_after_set_up() || capability.requires_write_buffer_flush();
    let refuse = OnPartialLeaf::Refuse;
    let (both, less) = (Rights::READ_WRITE, Rights::WRITE);
    type Edit<'a> = &'a dyn Fn(&mut Guest) -> Result<(), MachineError>;
    let check = |guest: &mut Guest, name: &str, range: (u64, u64, bool), edit: Edit<'_>| {
        let (at, count, leaf_hint) = range;
        // What may be cached is.
        for page in pages {
            guest.gets_through(D0, None, page, Access::Read);
        }
        guest.gets_through(D0, None, at, Access::Read);
        lab.take_submitted();
        let before = hypervisor.counts();
        assert_eq!(edit(guest), Ok(()), "{name}");
        let cost = hypervisor.counts().since(before);
        assert!(cost.submissions <= 1 && cost.waits <= 1, "{name}: {cost:?}");
        let submitted = lab.take_submitted();
        assert!(submitted.len() <= 2, "{name}: {submitted:?}");
        let order = count.next_power_of_two().ilog2() as u8;
        let is_named = capability.has(CapabilityField::PAGE_SELECTIVE_INVALIDATION)
            && order <= capability.maximum_address_mask();
        for one in &submitted {
            assert_eq!((one.kind, one.domain_id), (kind::IOTLB, id), "{name}");
            assert_eq!(one.granularity, if is_named { 3 } else { 2 }, "{name}");
            if is_named {
                assert_eq!((one.order, one.leaf_hint), (order, leaf_hint), "{name}");
            }
        }
        for page in (0..count).map(|index| at + 0x1000 * index) {
            let covers = |one: &Submitted| one.covers(id, page, 1);
            let is_covered = submitted.iter().any(covers);
            assert!(is_covered || submitted.is_empty(), "{name}: {page:#x}");
        }
        submitted.is_empty()
    };
    let protect = |guest: &mut Guest, at, len, rights| {
        let vm = &mut guest.vm;
        vm.protect_memory(hypervisor, units, Gpa::new(at), len, rights, refuse)
    };
    let one = (pages[1], 1, true);
    let none = check(&mut guest, "fewer rights", one, &|guest| {
        protect(guest, pages[1], 0x1000, less)
    });
    assert!(!none && !guest.gets_through(D0, None, pages[1], Access::Read));
    check(&mut guest, "more rights", one, &|guest| {
        protect(guest, pages[1], 0x1000, both)
    });
    guest.expect_writes_reach(D0, None, pages[1], pages[1]);
    let three = (pages[1], 3, true);
    let none = check(&mut guest, "unmap", three, &|guest| {
        let (vm, at) = (&mut guest.vm, Gpa::new(pages[1]));
        vm.unmap_memory(hypervisor, units, at, 0x3000)
    });
    assert!(!none);
    for page in &pages[1..4] {
        guest.expect_no_data(D0, None, *page);
    }
    for page in [pages[0], pages[4]] {
        guest.expect_writes_reach(D0, None, page, page);
    }
    for page in &pages[1..4] {
        let (at, host) = (Gpa::new(*page), guest.host_of(Gpa::new(*page)));
        let none = check(&mut guest, "map", (*page, 1, false), &|guest| {
            let vm = &mut guest.vm;
            vm.map_memory(hypervisor, units, at, host, 0x1000, both)
        });
        assert_eq!(none, !owes_added);
    }
    for page in pages {
        guest.expect_writes_reach(D0, None, page, page);
    }
    // A table page goes: hardware must not walk it any more.
    let whole = (large.guest.as_u64(), len / 0x1000, false);
    let none = check(&mut guest, "unmap with its table page", whole, &|guest| {
        let vm = &mut guest.vm;
        vm.unmap_memory(hypervisor, units, large.guest, len)
    });
    assert!(!none);
    guest.expect_no_data(D0, None, large.guest.as_u64());
    guest.take_faults();
    lab.host_faults.take();
    guest.finish();
}

fn unconfirmed_change(place: Place<'_>) {
    let mut guest = place.guest();
    guest.bound();
    // Hardware uses the second stage itself, whatever the back end.
    guest.set_translation(false);
    let lab = guest.lab.clone();
    let (hypervisor, units) = (&*lab.hypervisor, &lab.units);
    let page = LargePage::given_to(&mut guest);
    let (at, len) = (page.guest, LargePage::LEN_BYTES);
    guest
        .vm
        .split_memory(hypervisor, units, at, len, PageSize::Size4KiB)
        .expect("split");
    // Beside it, pages that are no block of a large one: they have a table page everywhere.
    let (small, scattered) = (page.at(len), host_offset(page.host, 0x1000));
    guest
        .vm
        .map_memory(hypervisor, units, small, scattered, len, Rights::READ)
        .expect("memory");
    let large = units
        .iter()
        .all(|unit| unit.table_features().second_stage_2mib);
    let free = hypervisor.pool().free_frames();
    hypervisor.hold(Hold::Forever);
    hypervisor.set_steps(10_000_000, 10_000_000);
    let merged = guest.vm.merge_memory(hypervisor, units, at, len);
    if large {
        assert!(
            matches!(merged, Err(MachineError::NotConfirmed(_))),
            "{merged:?}"
        );
    } else {
        assert_eq!(merged, Ok(()), "there is nothing to merge");
    }
    let protected = guest.vm.protect_memory(
        hypervisor,
        units,
        at,
        len,
        Rights::READ,
        OnPartialLeaf::Refuse,
    );
    let unconfirmed = matches!(protected, Err(MachineError::NotConfirmed(_)));
    assert!(unconfirmed, "{protected:?}");
    let unmapped = guest.vm.unmap_memory(hypervisor, units, small, len);
    let unconfirmed = matches!(unmapped, Err(MachineError::NotConfirmed(_)));
    assert!(unconfirmed, "{unmapped:?}");
    assert_eq!(hypervisor.pool().free_frames(), free);
    hypervisor.hold(Hold::Nothing);
    let confirmed = (0..100).any(|_| {
        hypervisor.pass(1_000_000);
        guest.settle();
        let confirmed = guest.vm.confirm_unmapped(hypervisor, units);
        let retry = guest.unassign(D0).is_ok();
        confirmed.is_ok() && retry
    });
    assert!(confirmed, "the retry succeeds");
    assert_eq!(guest.vm.confirm_unmapped(hypervisor, units), Ok(()));
    assert!(hypervisor.pool().free_frames() > free);
    guest.take_faults();
    lab.host_faults.take();
    guest.finish();
}

fn dirty_pages(place: Place<'_>) {
    {
        let mut guest = place.guest();
        let lab = guest.lab.clone();
        let (hypervisor, at) = (&*lab.hypervisor, Gpa::new(0));
        let untracked =
            guest
                .vm
                .take_dirty_pages(hypervisor, &lab.units, at, GUEST_LEN_BYTES, |_| {});
        assert_eq!(untracked, Err(MachineError::DirtyPagesNotTracked));
    }
    let tracking = Policy {
        track_dirty_pages: true,
        ..Policy::default()
    };
    for (start, is_shadow) in BACK_ENDS.into_iter().zip([false, true]) {
        let mut guest = start(place, tracking);
        let tag = guest.tag;
        let lab = guest.lab.clone();
        let (hypervisor, units) = (&*lab.hypervisor, &lab.units);
        let (_, page) = guest.bound();
        let untouched = guest.data_page();
        guest
            .vm
            .split_memory(
                hypervisor,
                units,
                Gpa::new(0),
                GUEST_LEN_BYTES,
                PageSize::Size4KiB,
            )
            .expect("small pages");
        let take = |guest: &mut Guest| {
            let mut pages = Vec::new();
            guest
                .vm
                .take_dirty_pages(hypervisor, units, Gpa::new(0), GUEST_LEN_BYTES, |leaf| {
                    pages.push(leaf.input.as_u64());
                })
                .expect("the pages");
            pages
        };
        take(&mut guest);
        for round in 0..3 {
            guest.expect_reaches(D0, tag, IOVA, page);
            let pages = take(&mut guest);
            // What a shadow lets a device write counts as written.
            assert_eq!(pages.contains(&page), is_shadow, "read, round {round}");
            guest.expect_writes_reach(D0, tag, IOVA, page);
            let pages = take(&mut guest);
            assert!(pages.contains(&page), "written, round {round}");
            assert!(!pages.contains(&untouched), "round {round}");
        }
        // The virtual unit writes too: the status of a guest's wait.
        take(&mut guest);
        guest.invalidate_pages(7, IOVA, 0);
        assert!(!take(&mut guest).is_empty(), "the wait's status");
        // A device that writes while the bits are taken: told now or with the next call.
        let requester = guest.requester(D0, tag);
        let written = Rc::new(Cell::new(0u32));
        let count = written.clone();
        hypervisor.on_step(move |hypervisor| {
            count.set(count.get() + 1);
            let value = u64::from(count.get()).to_le_bytes();
            hypervisor.dma_write(requester, Iova::new(IOVA + 0x20), &value);
        });
        guest.expect_writes_reach(D0, tag, IOVA, page);
        let first = take(&mut guest);
        hypervisor.clear_hooks();
        assert!(written.get() > 0);
        let second = take(&mut guest);
        assert!(first.contains(&page) && (is_shadow || second.contains(&page)));
        // Translation off: pass-through is noted as well.
        guest.set_translation(false);
        take(&mut guest);
        guest.expect_writes_reach(D0, None, page, page);
        assert!(take(&mut guest).contains(&page));
        guest.finish();
    }
}
