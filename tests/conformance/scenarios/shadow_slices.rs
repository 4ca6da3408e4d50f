//! Large shadows that go: emptied, given up, replaced, taken away. Each call is the work of about one
//! table page, whatever has to go.

use vtd_nest::arch::descriptor::{Descriptor, IotlbGranularity};
use vtd_nest::arch::id::DomainId;
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::viommu::{BindError, Poll, Progress};

use crate::harness::{Scenario, scenario};
use crate::lab::{D0, Guest, GuestOptions, IOVA, Lab, Place, Vm};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S78 S79 R12 R20",
        "a shadow of a table that is its own lower tables, up to the quota, goes in slices",
        self_referencing,
    ),
    scenario(
        "S5 S37 S38 R12 R20",
        "a large shadow is replaced, unbound and reset in slices",
        leaves_in_slices,
    ),
    scenario(
        "S37 R12",
        "a device with a large shadow is unassigned in slices",
        unassigned_in_slices,
    ),
    scenario(
        "R12",
        "a machine with a large shadow is destroyed in slices",
        destroyed_in_slices,
    ),
];

/// Stores of a call: the entries of a table page, each freed table's entry and link, and frames that
/// go back to the pool.
const MOST_STORES: u64 = 512 + 128;
/// Table pages of last-level entries that a large shadow has.
const TABLES: u64 = 40;

fn options() -> GuestOptions {
    let mut options = GuestOptions {
        devices: vec![(D0, 0, 0)],
        shadow_table_limit: 100_000,
        ..GuestOptions::default()
    };
    options.policy.forbid_nesting = true;
    options
}

/// Has a call made until it has done everything; no call may cost more than a slice.
fn in_slices(lab: &Lab, mut call: impl FnMut() -> bool) -> u64 {
    for calls in 1..100_000 {
        let before = lab.hypervisor.counts();
        let is_done = call();
        let stores = lab.hypervisor.counts().since(before).stores;
        assert!(stores <= MOST_STORES, "{stores} stores in call {calls}");
        if is_done {
            return calls;
        }
    }
    panic!("it never ends");
}

/// Hands the guest's descriptors over and polls, a step a call, until its wait is complete.
fn submit_in_slices(guest: &mut Guest, descriptors: &[Descriptor]) -> u64 {
    for descriptor in descriptors {
        guest.push(*descriptor);
    }
    let wait = guest.push_wait();
    guest.ring_only();
    poll_in_slices(guest, |guest, _| guest.wait_status() == wait)
}

fn poll_in_slices(guest: &mut Guest, is_done: impl Fn(&Guest, Poll) -> bool) -> u64 {
    let lab = guest.lab.clone();
    in_slices(&lab, || {
        let poll = guest.vm.poll(&*lab.hypervisor, &lab.units, 1);
        if poll == Poll::Wait {
            lab.hypervisor.pass(1_000);
        }
        is_done(guest, poll)
    })
}

fn flush() -> Descriptor {
    Descriptor::Iotlb {
        granularity: IotlbGranularity::Domain(DomainId::new(7)),
        drain_reads: true,
        drain_writes: true,
    }
}

/// Makes every entry of a table page the page itself.
fn refer_to_itself(guest: &mut Guest, root: u64) {
    for slot in 0..512 {
        let entry = guest.table_entry(root);
        guest.write_u64(root + 8 * slot, entry);
    }
}

fn self_referencing(place: Place<'_>) {
    for is_bound_before in [true, false] {
        let mut guest = place.guest_with(options());
        let (pasid, tag) = (guest.pasid, guest.tag);
        let (root, entry) = if is_bound_before {
            let (root, _) = guest.bound();
            (root, None)
        } else {
            let root = guest.page();
            (root, Some(guest.entry(root, 7)))
        };
        refer_to_itself(&mut guest, root);
        let (lab, owner) = (guest.lab.clone(), guest.owner());
        let charged = guest.holdings().charged_frames;
        let quota = charged + TABLES as u32;
        lab.hypervisor.pool().set_quota(owner, quota).unwrap();
        let calls = match entry {
            None => submit_in_slices(&mut guest, &[flush()]),
            Some(entry) => {
                guest.set_entry(D0, pasid, &entry);
                let entry = guest.entry_invalidation(7, pasid);
                submit_in_slices(&mut guest, &[entry, flush()])
            }
        };
        // Each table page took 16 slices, and takes one to go.
        let least = (TABLES - 8) * 16 + TABLES - 8;
        assert!(calls > least, "{calls} calls: the quota was not reached");
        // A page of the PASID table, the root, and the path that led to nothing.
        let left = guest.holdings().charged_frames;
        assert!(left <= charged + 2, "{left} of {charged} frames");
        guest.expect_no_data(D0, tag, IOVA);
        guest.take_faults();
        // It is whole again with a table that fits.
        let (root, page) = guest.other_table();
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, pasid, &entry);
        let entry = guest.entry_invalidation(7, pasid);
        submit_in_slices(&mut guest, &[entry, flush()]);
        guest.expect_reaches(D0, tag, IOVA, page);
        guest.finish();
    }
}

/// A guest whose table has many table pages; its first address, and what it held before.
fn with_large_shadow(place: Place<'_>) -> (Guest, u64, u32) {
    let mut guest = place.guest_with(options());
    let before = guest.holdings().charged_frames;
    let (root, page) = guest.bound();
    let first = IOVA & !0x1f_ffff;
    for index in 0..512 {
        guest.map(root, first + 0x1000 * index, Some(page));
    }
    let slot = guest.slot_at(root, first, 2);
    let table = guest.read_u64(slot);
    for index in 0..TABLES {
        guest.set_leaf(root, first + (index << 21), 2, table);
    }
    guest.submit(&[flush()]);
    let last = first + ((TABLES - 1) << 21);
    guest.expect_reaches(D0, guest.tag, last, page);
    let charged = guest.holdings().charged_frames;
    assert!(charged >= before + TABLES as u32);
    (guest, last, before)
}

fn leaves_in_slices(place: Place<'_>) {
    type Leave = fn(&mut Guest) -> u64;
    let ways: [(&str, Leave); 3] = [
        ("replaced", |guest| {
            let (pasid, tag) = (guest.pasid, guest.tag);
            let (root, page) = guest.other_table();
            let entry = guest.entry(root, 7);
            guest.set_entry(D0, pasid, &entry);
            let entry = guest.entry_invalidation(7, pasid);
            let calls = submit_in_slices(guest, &[entry]);
            guest.expect_reaches(D0, tag, IOVA, page);
            calls
        }),
        ("unbound", |guest| {
            let pasid = guest.pasid;
            guest.set_entry(D0, pasid, &PasidEntry::default());
            let entry = guest.entry_invalidation(7, pasid);
            submit_in_slices(guest, &[entry])
        }),
        ("reset", |guest| {
            guest.vm.reset();
            poll_in_slices(guest, |_, poll| poll == Poll::Idle)
        }),
    ];
    for (way, leave) in ways {
        let (mut guest, last, before) = with_large_shadow(place);
        let calls = leave(&mut guest);
        assert!(calls > TABLES, "{way}: {calls} calls");
        let left = guest.holdings().charged_frames;
        // A table of a few pages, or a page of the PASID table.
        assert!(left <= before + 5, "{way}: {left} of {before} frames");
        if way != "reset" {
            guest.expect_no_data(D0, guest.tag, last);
            guest.take_faults();
        }
        guest.finish();
    }
}

/// Makes a call of the machine until it is done; no call may cost more than a slice.
fn call_in_slices(lab: &Lab, mut call: impl FnMut() -> Result<Progress, BindError>) -> u64 {
    in_slices(lab, || {
        let progress = call().expect("hardware confirms");
        if progress == Progress::Wait {
            lab.hypervisor.pass(1_000);
        }
        progress == Progress::Done
    })
}

fn unassigned_in_slices(place: Place<'_>) {
    let (mut guest, _, before) = with_large_shadow(place);
    let lab = guest.lab.clone();
    let (h, units) = (&*lab.hypervisor, &lab.units);
    let device = guest.handle(D0);
    let calls = call_in_slices(&lab, || guest.vm.unassign(h, units, device));
    assert!(calls > TABLES, "{calls} calls");
    // The device's own tables went, too; in legacy mode it has none.
    let left = guest.holdings().charged_frames;
    assert!(left < before || guest.is_legacy() && left == before);
    guest.finish();
}

fn destroyed_in_slices(place: Place<'_>) {
    let (guest, ..) = with_large_shadow(place);
    let (lab, owner) = (guest.lab.clone(), guest.owner());
    let (h, units) = (&*lab.hypervisor, &lab.units);
    let mut machine = Some(*guest.vm);
    let calls = call_in_slices(&lab, || Vm::destroy(&mut machine, h, units));
    assert!(calls > TABLES, "{calls} calls");
    assert!(machine.is_none());
    assert_eq!(lab.hypervisor.pool().charged_frames(owner), 0);
    lab.expect_no_violations();
}
