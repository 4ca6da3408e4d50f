//! Hostile guests and full stores (S78 to S83, S93, S94): bounded work, clean refusals, nobody else
//! concerned.

use vtd_nest::arch::address::{Gpa, Hpa, Iova, PageSize};
use vtd_nest::arch::descriptor::{
    ContextGranularity, Descriptor, IotlbGranularity, PasidCacheGranularity,
};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::pasid::{PasidDirectoryEntry, PasidEntry};
use vtd_nest::arch::register::{GlobalCommand, Register32, Register64};
use vtd_nest::mem::Registers;
use vtd_nest::nest::{MachineError, PhysicalRange, Policy, ProtectedRanges};
use vtd_nest::paging::Rights;
use vtd_nest::viommu::Poll;

use crate::bench::{Access, Hold};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, GUEST_LEN_BYTES, Guest, GuestOptions, IOVA, Place, ROOT, Random};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S78 G9 R15",
        "tables that are each other: work ends, and is bounded",
        aliased_tables,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S79 R20",
        "a full cache of bindings refuses the next one only",
        cache_full,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S79 G17 R20",
        "no host domain-id left: the next domain only is refused",
        domain_ids_used_up,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S79 R20",
        "no shadow left: the next table only is refused",
        shadows_used_up,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S79 R20 G38",
        "a quota of frames is used up: nothing is kept of what was refused, others keep theirs",
        frames_used_up,
    ),
    scenario(
        "S79",
        "a quota of frames is used up: more memory is refused, and nothing has changed",
        frames_for_memory_used_up,
    ),
    scenario(
        "S80 R12 R15",
        "a flood of global invalidations of a full table: bounded work a call, others go on",
        flood_of_a_full_table,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S80 R12 R15",
        "a flood of global invalidations of a sparse table: bounded work a call, others go on",
        flood_of_a_sparse_table,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S80 S47",
        "a ring full of invalidations: bounded work a call, others go on",
        flood_of_invalidations,
    ),
    scenario(
        "S80 R12",
        "a large table is shadowed in slices: bounded work a call, others go on",
        large_shadow,
    ),
    scenario(
        "S81 R12 G21",
        "tail writes, translation on and off, and unplugging between any two steps",
        interleaved_actions,
    ),
    scenario(
        "S82 R21",
        "random table programs: bindings and faults are those of the guest's tables",
        random_programs,
    ),
    scenario(
        "S82 S83 R21 G9",
        "random garbage in tables never leads out of the machine",
        random_garbage,
    ),
    scenario(
        "S83 R21",
        "no DMA reaches what is not the machine's, through any kind of translation",
        protected_targets,
    ),
    scenario(
        "S83",
        "protected ranges cannot be given to a machine",
        protected_ranges,
    ),
    scenario(
        "S93 G39",
        "chosen PASIDs and domain-ids cost no more than random ones",
        chosen_keys,
    )
    .needs(&[Need::PASID]),
];

/// A guest that nests, if the hardware does, and one whose tables are shadowed.
const BACK_ENDS: [fn(Place<'_>) -> Guest; 2] = [
    |place| place.guest_with(small_shadows(false)),
    |place| place.guest_with(small_shadows(true)),
];

/// Guest table pages that a synchronisation of a shadow may read in these scenarios.
const SHADOW_TABLES: u32 = 24;

fn small_shadows(forbid_nesting: bool) -> GuestOptions {
    GuestOptions {
        policy: Policy {
            forbid_nesting,
            ..Policy::default()
        },
        shadow_table_limit: SHADOW_TABLES,
        ..GuestOptions::default()
    }
}

/// Everything that the guest may have cached is announced as changed.
fn invalidate_all(guest: &mut Guest) {
    guest.submit(&all_invalidations(guest));
}

fn all_invalidations(guest: &Guest) -> [Descriptor; 3] {
    let contexts = Descriptor::ContextCache {
        granularity: ContextGranularity::Global,
    };
    let entries = Descriptor::PasidCache {
        granularity: PasidCacheGranularity::Global,
    };
    [
        contexts,
        if guest.is_legacy() { contexts } else { entries },
        Descriptor::Iotlb {
            granularity: IotlbGranularity::Global,
            drain_reads: true,
            drain_writes: true,
        },
    ]
}

// ---- S78 ----

fn aliased_tables(place: Place<'_>) {
    const PRESENT: u64 = 1;
    type Alias = fn(&mut Guest, u64);
    let aliases: [(&str, Alias); 7] = [
        ("the directory is its own PASID table", |guest, _| {
            let directory = guest.directory_entry_at(D0, 0);
            for pasid in [0, guest.pasid] {
                let at = guest.directory_entry_at(D0, pasid);
                guest.write_u64(at, directory | PRESENT);
            }
        }),
        ("every directory entry is one table", |guest, _| {
            let table = guest.entry_at(D0, 0) & !0xfff;
            for block in 0..512 {
                let at = guest.directory_entry_at(D0, block * 64);
                guest.write_u64(at, table | PRESENT);
            }
        }),
        ("the PASID table is the page table", |guest, root| {
            let at = guest.directory_entry_at(D0, guest.pasid);
            guest.write_u64(at, root | PRESENT);
        }),
        ("the PASID table is the queue", |guest, _| {
            let at = guest.directory_entry_at(D0, guest.pasid);
            guest.write_u64(at, Guest::queue_base() | PRESENT);
        }),
        (
            "the context table and the directory are the root table",
            |guest, _| {
                let at = guest.root_entry_at(D0);
                guest.write_u64(at, ROOT | PRESENT);
                let context = ROOT + guest.context_at(D0) % 0x1000;
                guest.write_u64(context, ROOT | PRESENT);
            },
        ),
        ("every entry of the page table is itself", |guest, root| {
            for slot in 0..512 {
                let entry = guest.table_entry(root);
                guest.write_u64(root + 8 * slot, entry);
            }
        }),
        (
            "the page table maps all tables and the queue",
            |guest, root| {
                let pages = [
                    ROOT,
                    Guest::queue_base(),
                    root,
                    guest.directory_entry_at(D0, 0),
                ];
                for (index, page) in (1u64..).zip(pages) {
                    guest.map(root, IOVA + 0x1000 * index, Some(page));
                }
            },
        ),
    ];
    /// Of guest memory: the directories of both devices, one page a present directory entry, the
    /// queue; for a shadow, twice, each page that it may read, and for each step that it may take
    /// with them the entries above the last level.
    const MOST_BYTES: u64 =
        2 * (128 << 10) + 2 * 512 * 4096 + 4096 + 2 * SHADOW_TABLES as u64 * (4096 + 1024 * 3 * 8);
    for start in BACK_ENDS {
        let mut guest = start(place);
        for (name, alias) in aliases {
            guest.install_tables(D0);
            invalidate_all(&mut guest);
            let (root, page) = guest.bound();
            alias(&mut guest, root);
            let before = guest.lab.hypervisor.counts();
            invalidate_all(&mut guest);
            let read = guest.lab.hypervisor.counts().since(before);
            assert!(read.guest_bytes <= MOST_BYTES, "{name}: {read:?}");
            for iova in [0, IOVA, IOVA + 0x1000, IOVA + 0x4000, page] {
                for tag in [None, guest.tag] {
                    // Whatever it comes to: it comes to something.
                    let _ = guest.reached(D0, tag, iova);
                }
            }
            guest.take_faults();
            // The other device was no part of it.
            let (_, other) = guest.bind(D1, guest.pasid, 9);
            guest.expect_reaches(D1, guest.tag, IOVA, other);
        }
        guest.finish();
    }
}

// ---- S79 ----

/// Gives PASIDs 1 to `room` + 1 of a device an entry each: the first `room` are bound, the next is
/// not, and the guest is told; once one of them goes, it can be.
fn expect_room(guest: &mut Guest, room: u32, page: u64, entry: impl Fn(&Guest, u32) -> PasidEntry) {
    let announce = |guest: &mut Guest, pasid: u32| {
        let domain = entry(guest, pasid).domain_id().as_u16();
        guest.invalidate_pasid(domain, pasid);
    };
    let mut ids = 0;
    for pasid in 1..=room + 1 {
        let bits = entry(guest, pasid);
        guest.set_entry(D0, pasid, &bits);
        ids = guest.holdings().free_domain_ids;
        announce(guest, pasid);
    }
    assert_eq!(
        guest.holdings().free_domain_ids,
        ids,
        "what is refused keeps no id"
    );
    let taken = guest.take_faults();
    match taken.faults.as_slice() {
        [fault] => {
            assert_eq!(fault.reason, FaultReason::PasidTableUnreadable);
            assert_eq!((fault.source_id, fault.pasid), (D0, Some(room + 1)));
            assert_eq!(fault.address, Iova::new(0));
        }
        other => panic!("one record for the refused binding, not {other:x?}"),
    }
    assert_eq!(guest.hardware_entry(D0, room + 1), None);
    guest.expect_no_data(D0, Some(room + 1), IOVA);
    for pasid in 1..=room {
        guest.expect_reaches(D0, Some(pasid), IOVA, page);
    }
    guest.set_entry(D0, 1, &PasidEntry::default());
    announce(guest, 1);
    announce(guest, room + 1);
    guest.expect_reaches(D0, Some(room + 1), IOVA, page);
    guest.expect_no_data(D0, Some(1), IOVA);
}

/// A machine next to `guest` on its lab, with the second device.
fn neighbour(guest: &Guest) -> Guest {
    let options = GuestOptions {
        number: 1,
        devices: vec![(D0, 1, 0)],
        ..GuestOptions::default()
    };
    Guest::start(&guest.lab, options)
}

/// Options of a machine that leaves the second device to a neighbour.
fn first_of_two() -> GuestOptions {
    GuestOptions {
        devices: vec![(D0, 0, 0)],
        ..GuestOptions::default()
    }
}

/// The neighbour can bind, and is told of nothing.
fn expect_undisturbed(mut neighbour: Guest) {
    for round in 0..3 {
        let (_, page) = neighbour.bind(D0, neighbour.pasid, 7 + round);
        neighbour.expect_reaches(D0, neighbour.tag, IOVA, page);
    }
    assert_eq!(neighbour.take_faults().faults, []);
    neighbour.finish();
}

fn cache_full(place: Place<'_>) {
    let mut guest = place.guest_with(first_of_two());
    let neighbour = neighbour(&guest);
    let (root, page) = guest.other_table();
    expect_room(&mut guest, 1200, page, |guest, _| guest.entry(root, 7));
    expect_undisturbed(neighbour);
}

fn domain_ids_used_up(place: Place<'_>) {
    let mut guest = place.guest_with(first_of_two());
    let neighbour = neighbour(&guest);
    let (root, page) = guest.other_table();
    // Shadows are fewer than domain-ids.
    let room = if guest.is_first_stage() { 64 } else { 16 };
    expect_room(&mut guest, room, page, |guest, pasid| {
        guest.entry(root, 100 + pasid as u16)
    });
    expect_undisturbed(neighbour);
}

fn shadows_used_up(place: Place<'_>) {
    let mut options = first_of_two();
    options.policy.forbid_nesting = true;
    let mut guest = place.guest_with(options);
    let neighbour = neighbour(&guest);
    let (root, page) = guest.other_table();
    expect_room(&mut guest, 16, page, |guest, pasid| {
        guest.entry(root, 100 + pasid as u16)
    });
    expect_undisturbed(neighbour);
}

fn frames_used_up(place: Place<'_>) {
    let mut options = first_of_two();
    options.policy.forbid_nesting = true;
    let mut guest = place.guest_with(options);
    let neighbour = neighbour(&guest);
    let (pasid, tag) = (guest.pasid, guest.tag);
    // A table of which each page needs a table page of its own, and one that is small.
    let page = guest.data_page();
    let spread: Vec<_> = (0..40).map(|index| (IOVA + (index << 21), page)).collect();
    let (large, small) = (guest.table(&spread), guest.table(&spread[..1]));
    let owner = guest.owner();
    let hypervisor = guest.lab.hypervisor.clone();
    let charged = hypervisor.pool().charged_frames(owner);
    hypervisor.pool().set_quota(owner, charged + 20).unwrap();
    let entry = guest.entry(large, 7);
    guest.set_entry(D0, pasid, &entry);
    guest.invalidate_pasid(7, pasid);
    let after = hypervisor.pool().charged_frames(owner);
    // The table of the PASID's entries may stay.
    assert!(
        after <= charged + 1,
        "nothing is kept: {after} of {charged}"
    );
    let taken = guest.take_faults();
    let told = guest.shown(FaultReason::PasidTableUnreadable, false);
    assert!(
        matches!(taken.faults.as_slice(), [fault] if fault.reason == told),
        "{taken:x?}"
    );
    guest.expect_no_data(D0, tag, IOVA);
    expect_undisturbed(neighbour);
    // A smaller table fits; with a larger quota the large one does, too.
    let entry = guest.entry(small, 8);
    guest.set_entry(D0, pasid, &entry);
    guest.invalidate_pasid(8, pasid);
    guest.expect_reaches(D0, tag, IOVA, page);
    hypervisor.pool().set_quota(owner, charged + 80).unwrap();
    let entry = guest.entry(large, 7);
    guest.set_entry(D0, pasid, &entry);
    guest.invalidate_pasid(7, pasid);
    guest.expect_reaches(D0, tag, IOVA + (39 << 21), page);
    guest.finish();
}

fn frames_for_memory_used_up(place: Place<'_>) {
    use vtd_nest::mem::FrameError;
    use vtd_nest::paging::MapError;
    let mut guest = place.guest();
    let (_, page) = guest.bound();
    let owner = guest.owner();
    let lab = guest.lab.clone();
    let hypervisor = &*lab.hypervisor;
    let charged = hypervisor.pool().charged_frames(owner);
    let quota = charged + 1;
    hypervisor.pool().set_quota(owner, quota).unwrap();
    // A place far enough to need two new table pages at least.
    let far = Gpa::new(3 << 30);
    let host = guest.host_of(Gpa::new(0x1000));
    let refused = guest.vm.map_memory(
        hypervisor,
        &lab.units,
        far,
        host,
        0x1000,
        Rights::READ_WRITE,
    );
    let expected = MachineError::Map(MapError::Frames(FrameError::QuotaExceeded { owner, quota }));
    assert_eq!(refused, Err(expected));
    assert_eq!(hypervisor.pool().charged_frames(owner), charged);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.finish();
}

// ---- S80 ----

/// One call does no more than this for a step of its budget.
const BYTES_A_STEP: u64 = 4096 + 256;
const STORES_A_STEP: u64 = 64;
const BUDGET: u32 = 64;

/// Runs `busy` in slices next to `other`, for as many slices as asked or until it is idle; each
/// is bounded, and the other machine gets done between any two. Gives the slices and whether it
/// became idle.
fn run_in_slices(busy: &mut Guest, other: &mut Guest, slices: u32) -> (u32, bool) {
    let lab = busy.lab.clone();
    let (_, page) = other.bind(D0, other.pasid, 7);
    for slice in 1..=slices {
        let before = lab.hypervisor.counts();
        let polled = busy.vm.poll(&*lab.hypervisor, &lab.units, BUDGET);
        let done = lab.hypervisor.counts().since(before);
        assert!(
            done.guest_bytes <= u64::from(BUDGET) * BYTES_A_STEP
                && done.stores <= u64::from(BUDGET) * STORES_A_STEP,
            "slice {slice} does {done:?}"
        );
        if slice % 64 == 1 {
            // Its wait must complete: `submit` sees to that.
            other.invalidate_pasid(7, other.pasid);
            other.expect_reaches(D0, other.tag, IOVA, page);
        }
        match polled {
            Poll::Idle => return (slice, true),
            Poll::Again => {}
            Poll::Wait => lab.hypervisor.pass(1_000),
        }
    }
    (slices, false)
}

fn flood_of_a_full_table(place: Place<'_>) {
    flood_of_global_invalidations(place, 1);
}

fn flood_of_a_sparse_table(place: Place<'_>) {
    flood_of_global_invalidations(place, 1 << 10);
}

/// A directory of which every `distance`-th entry names one table of 64 present entries.
fn flood_of_global_invalidations(place: Place<'_>, distance: usize) {
    let mut guest = place.guest_with(first_of_two());
    let mut neighbour = neighbour(&guest);
    let (root, page) = guest.other_table();
    let entry = guest.entry(root, 7);
    // Up to 2^20 present entries.
    for pasid in 0..64 {
        guest.set_entry(D0, pasid, &entry);
    }
    let table = PasidDirectoryEntry::new(Gpa::new(guest.entry_at(D0, 0) & !0xfff));
    let directory: Vec<u8> = (0..1 << 14)
        .map(|index| {
            if index % distance == 0 {
                table.as_u64()
            } else {
                0
            }
        })
        .flat_map(u64::to_le_bytes)
        .collect();
    let at = guest.directory_entry_at(D0, 0);
    guest.write(at, &directory);
    let global = Descriptor::PasidCache {
        granularity: PasidCacheGranularity::Global,
    };
    for _ in 0..4 {
        guest.push(global);
    }
    guest.push_wait();
    guest.ring_only();
    // The flood itself lasts: what counts is that each slice ends and others go on.
    run_in_slices(&mut guest, &mut neighbour, 500);
    // The guest takes its table away, and is well again in bounded time.
    guest.write(at, &vec![0; directory.len()]);
    let mut slices = 0;
    while !run_in_slices(&mut guest, &mut neighbour, 256).1 {
        slices += 1;
        assert!(slices < 1_000, "the flood never ends");
    }
    guest.take_faults();
    guest.set_entry(D0, 5, &entry);
    guest.invalidate_pasid(7, 5);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    guest.finish();
}

fn flood_of_invalidations(place: Place<'_>) {
    let mut guest = place.guest_with(first_of_two());
    let mut neighbour = neighbour(&guest);
    let (_, page) = guest.bound();
    let [context, pasids, pages] = all_invalidations(&guest);
    for round in 0..90 {
        guest.push([context, pasids, pages][round % 3]);
    }
    let wait = guest.push_wait();
    guest.ring_only();
    let (_, done) = run_in_slices(&mut guest, &mut neighbour, 20_000);
    assert!(done, "the ring is done in the end");
    assert_eq!(guest.wait_status(), wait);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.finish();
}

fn large_shadow(place: Place<'_>) {
    let mut options = first_of_two();
    options.policy.forbid_nesting = true;
    let mut guest = place.guest_with(options);
    let mut neighbour = neighbour(&guest);
    let (root, page) = guest.bound();
    // One table page of 512 mappings, used 200 times.
    let first = IOVA & !0x1f_ffff;
    for index in 0..512 {
        guest.map(root, first + 0x1000 * index, Some(page));
    }
    let table = guest.slot_at(root, first, 2);
    let table = guest.read_u64(table);
    for index in 0..200 {
        guest.set_leaf(root, first + (index << 21), 2, table);
    }
    guest.push(all_invalidations(&guest)[2]);
    let wait = guest.push_wait();
    guest.ring_only();
    let (slices, done) = run_in_slices(&mut guest, &mut neighbour, 100_000);
    assert!(done && slices > 200 * 512 / (BUDGET * STORES_A_STEP as u32));
    assert_eq!(guest.wait_status(), wait);
    guest.expect_reaches(D0, guest.tag, first + (199 << 21), page);
    guest.finish();
}

// ---- S81 ----

fn interleaved_actions(place: Place<'_>) {
    for seed in 0..2 {
        let mut random = Random::new(seed);
        let mut guest = place.guest();
        let (pasid, tag) = (guest.pasid, guest.tag);
        let lab = guest.lab.clone();
        let hypervisor = &*lab.hypervisor;
        let tables = [guest.other_table(), guest.other_table()];
        let mut unplugged = false;
        let mut last = None;
        hypervisor.hold(Hold::For(random.below(20_000)));
        let command = u64::from(Register32::GLOBAL_COMMAND.offset());
        let status = u64::from(Register32::GLOBAL_STATUS.offset());
        for _ in 0..150 {
            match random.below(8) {
                0 | 1 => {
                    let (root, page) = random.pick(&tables);
                    let entry = guest.entry(root, 7);
                    guest.set_entry(D0, pasid, &entry);
                    guest.push(guest.entry_invalidation(0, pasid));
                    guest.push(all_invalidations(&guest)[2]);
                    last = Some((guest.push_wait(), page));
                    guest.ring_only();
                }
                2 => guest.ring_only(),
                3 => {
                    let persistent = GlobalCommand::PERSISTENT.bits();
                    let now = guest.vm.read_register(status, 4) as u32 & persistent;
                    let toggled = now ^ GlobalCommand::TRANSLATION_ENABLE.bits();
                    guest.vm.write_register(command, 4, toggled.into());
                }
                4 if !unplugged && random.below(10) == 0 => {
                    guest.unassign(D1).expect("it leaves");
                    unplugged = true;
                }
                5 => hypervisor.pass(random.below(30_000)),
                _ => {}
            }
            let _ = guest
                .vm
                .poll(hypervisor, &lab.units, 1 + random.below(3) as u32);
            // Whatever is half done, the device sees one of the tables, memory, or nothing.
            let reached = guest.reached(D0, tag, IOVA);
            let pages = tables.map(|(_, page)| Some(page));
            assert!(
                reached.is_none() || pages.contains(&reached),
                "{reached:x?}"
            );
        }
        guest.settle();
        if let Some((wait, page)) = last {
            assert_eq!(guest.wait_status(), wait, "every wait completes");
            guest.set_translation(true);
            guest.expect_reaches(D0, tag, IOVA, page);
        }
        assert!(!guest.gets_through(D1, tag, IOVA, Access::Read));
        guest.take_faults();
        hypervisor.hold(Hold::Nothing);
        guest.finish();
    }
}

// ---- S82 ----

/// Two devices with their PASIDs and page tables of known shape, changed at random.
struct Program {
    guest: Guest,
    random: Random,
    keys: Vec<(SourceId, u32, Option<u32>)>,
    roots: Vec<u64>,
    pages: Vec<u64>,
    /// A 2-MiB region of which the pages at the addresses' offsets have stamps.
    region: u64,
}

/// Addresses that the tables of a [`Program`] tell apart, at every level.
const ADDRESSES: [u64; 4] = [
    IOVA,
    IOVA + 0x1000,
    IOVA + (1 << 21),
    IOVA + (1 << 30) + 0x2000,
];
/// A guest-physical page that no machine has.
const NOWHERE: u64 = 0x7fff_f000;

impl Program {
    fn new(mut guest: Guest, seed: u64) -> Self {
        let pasids: &[u32] = if guest.tag.is_some() {
            &[0, 5, 70]
        } else {
            &[0]
        };
        let mut keys = Vec::new();
        for device in [D0, D1] {
            for &pasid in pasids {
                let tag = guest.tag.map(|_| pasid).filter(|pasid| *pasid != 0);
                keys.push((device, pasid, tag));
            }
        }
        let pages: Vec<_> = (0..6).map(|_| guest.data_page()).collect();
        let region = guest.pages(512);
        for address in ADDRESSES {
            guest.stamp(region + (address & 0x1f_f000));
        }
        let mut random = Random::new(seed);
        let roots = (0..4).map(|_| {
            let mappings = ADDRESSES.map(|address| (address, random.pick(&pages)));
            guest.table(&mappings)
        });
        let roots = roots.collect();
        Self {
            guest,
            random,
            keys,
            roots,
            pages,
            region,
        }
    }

    /// Changes one thing in the guest's tables.
    fn change(&mut self) {
        let (random, guest) = (&mut self.random, &mut self.guest);
        let (device, pasid, _) = random.pick(&self.keys);
        let root = random.pick(&self.roots);
        let address = random.pick(&ADDRESSES);
        match random.below(12) {
            0..=3 => {
                let entry = guest.entry(root, 1 + random.below(3) as u16);
                let mut quadwords = *entry.quadwords();
                match random.below(8) {
                    0 => quadwords[0] &= !1,
                    1 => quadwords = [0; 8],
                    2 => quadwords[3] |= 1,
                    3 => quadwords[0] = quadwords[0] & !(7 << 6) | random.pick(&[0, 3, 5]) << 6,
                    4 => quadwords = *guest.entry(NOWHERE, 2).quadwords(),
                    _ => {}
                }
                guest.set_entry(device, pasid, &PasidEntry::from_quadwords(quadwords));
            }
            4..=6 => {
                let page = random.pick(&self.pages);
                let leaf = guest.leaf(page, PageSize::Size4KiB, Rights::READ_WRITE);
                let leaf = match random.below(6) {
                    0 => 0,
                    1 => guest.leaf(NOWHERE, PageSize::Size4KiB, Rights::READ_WRITE),
                    2 => leaf & !2,
                    3 if guest.is_first_stage() => leaf & !4,
                    3 => leaf & !1,
                    _ => leaf,
                };
                guest.set_leaf(root, address, 1, leaf);
            }
            7 | 8 => {
                let level = 2 + random.below(u64::from(guest.levels()) - 1) as u32;
                let below = guest.page();
                let entry = match random.below(4) {
                    0 => 0,
                    1 => guest.table_entry(NOWHERE),
                    2 if level == 2 => {
                        guest.leaf(self.region, PageSize::Size2MiB, Rights::READ_WRITE)
                    }
                    _ => guest.table_entry(below),
                };
                // The tables above are made whole first, so that `slot_at` stays in memory.
                let slot = root_slot(guest, root, address, level);
                guest.write_u64(slot, entry);
            }
            9 if !guest.is_legacy() => {
                let at = guest.directory_entry_at(device, pasid);
                let table = guest.read_u64(at) & !0xfff;
                let changed = match random.below(4) {
                    0 => 0,
                    1 => NOWHERE | 1,
                    2 => table | 5,
                    _ => guest.page() | 1,
                };
                guest.write_u64(at, changed);
            }
            9 => {}
            10 if guest.is_legacy() => {
                // Present, or a reserved bit (§9.3).
                let at = guest.context_at(device);
                let flipped = random.pick(&[1, 1 << 5]);
                guest.write_u64(at, guest.read_u64(at) ^ flipped);
            }
            10 => {
                let at = guest.context_at(device);
                let (first, last) = (guest.read_u64(at), at + 24);
                match random.below(3) {
                    0 => guest.write_u64(at, first ^ 1),
                    1 => guest.write_u64(last, 1 << 40),
                    _ => {
                        guest.write_u64(at, first | 1);
                        guest.write_u64(last, 0);
                    }
                }
            }
            _ => {
                let at = guest.root_entry_at(device);
                let contexts = guest.context_at(device) & !0xfff;
                let changed = match random.below(4) {
                    0 => 0,
                    1 => NOWHERE | 1,
                    2 => contexts | 3,
                    _ => contexts | 1,
                };
                guest.write_u64(at, changed);
            }
        }
    }

    /// Undoes what hides most of the tables.
    fn mend(&mut self) {
        for (device, pasid, _) in self.keys.clone() {
            let guest = &mut self.guest;
            let contexts = guest.context_at(device) & !0xfff;
            guest.write_u64(guest.root_entry_at(device), contexts | 1);
            if !guest.is_legacy() {
                let at = guest.context_at(device);
                guest.write_u64(at, guest.read_u64(at) | 1);
                guest.write_u64(at + 24, 0);
                let at = guest.directory_entry_at(device, pasid);
                let table = guest.read_u64(at);
                if table & 0xffd != 1 || table >= GUEST_LEN_BYTES {
                    let table = guest.page() | 1;
                    guest.write_u64(at, table);
                }
            }
            let root = self.random.pick(&self.roots);
            let entry = guest.entry(root, 1 + self.random.below(3) as u16);
            guest.set_entry(device, pasid, &entry);
        }
        for root in self.roots.clone() {
            for address in ADDRESSES {
                let page = self.random.pick(&self.pages);
                root_slot(&mut self.guest, root, address, 1);
                self.guest.map(root, address, Some(page));
            }
        }
    }

    /// Every device, PASID and address is served as the guest's tables say; how many reached
    /// memory.
    fn compare(&mut self) -> u32 {
        let mut reached = 0;
        for (device, _, tag) in self.keys.clone() {
            for address in ADDRESSES {
                let expected = [Access::Read, Access::Write].map(|access| {
                    let write = access == Access::Write;
                    let expected = self.guest.expected(device, tag, address, write);
                    (access, expected)
                });
                // What is denied first: a unit may record nothing of what it denies by a cached
                // translation.
                for (access, expected) in expected {
                    if let Err(reason) = expected {
                        self.guest
                            .expect_access_blocked(device, tag, address, access, reason);
                    }
                }
                for (access, expected) in expected {
                    match (access, expected) {
                        (Access::Read, Ok(at)) => {
                            reached += 1;
                            self.guest.expect_reaches(device, tag, address, at);
                        }
                        (Access::Write, Ok(at)) => {
                            self.guest.expect_writes_reach(device, tag, address, at);
                        }
                        (_, Err(_)) => {}
                    }
                }
            }
        }
        reached
    }
}

/// Where the entry of an address is at a level; tables above that are missing, large or nowhere
/// are made anew.
fn root_slot(guest: &mut Guest, root: u64, iova: u64, level: u32) -> u64 {
    for above in (level + 1..=guest.levels()).rev() {
        let slot = guest.slot_at(root, iova, above);
        let entry = guest.read_u64(slot);
        let is_whole = entry & 0x83 == 3 && entry & 0x000f_ffff_ffff_f000 < GUEST_LEN_BYTES;
        if !is_whole {
            let below = guest.page();
            let entry = guest.table_entry(below);
            guest.write_u64(slot, entry);
        }
    }
    guest.slot_at(root, iova, level)
}

fn random_programs(place: Place<'_>) {
    for seed in 0..1 {
        for start in BACK_ENDS {
            let mut program = Program::new(start(place), seed);
            program.mend();
            let mut reached = 0;
            for round in 0..6 {
                if round % 4 == 3 {
                    program.mend();
                }
                for _ in 0..=program.random.below(3) {
                    program.change();
                }
                invalidate_all(&mut program.guest);
                reached += program.compare();
                // What did not change costs hardware nothing.
                program.guest.lab.take_submitted();
                let keys = program.keys.clone();
                let entries = |guest: &Guest| -> Vec<_> {
                    let entry = |(device, pasid, _): &(SourceId, u32, Option<u32>)| {
                        guest.hardware_entry(*device, *pasid)
                    };
                    keys.iter().map(entry).collect()
                };
                let before = entries(&program.guest);
                program.guest.invalidate_pasid_global();
                assert_eq!(entries(&program.guest), before);
            }
            assert!(reached > 0, "nothing was reached, so nothing was shown");
            program.guest.finish();
        }
    }
}

fn random_garbage(place: Place<'_>) {
    /// Where in each page the stamp is, so that entries written into a table miss it.
    const OFFSET: u64 = 0x800;
    const STAMP: u64 = 0x57a3_9000_0000_0000;
    for start in BACK_ENDS {
        let mut random = Random::new(7);
        let mut guest = start(place);
        let lab = guest.lab.clone();
        let tables = guest.pages(64);
        // The rest of guest memory: no tables of the guest's own in it.
        let first_data = tables + 64 * 0x1000;
        for page in (first_data..GUEST_LEN_BYTES).step_by(0x1000) {
            let host = guest.host_of(Gpa::new(page + OFFSET));
            lab.hypervisor
                .guest_write(host, &(STAMP | page).to_le_bytes());
        }
        // What the device must never see: memory that is nobody's.
        let nobodys = lab.hypervisor.bench().layout().nobodys;
        let secret = 0x5ec3_e75e_c3e7_5ec3u64;
        for page in 0..64 {
            let at = Hpa::new(nobodys.start.as_u64() + page * 0x1000 + OFFSET);
            lab.hypervisor.guest_write(at, &secret.to_le_bytes());
        }
        let mut reached = 0;
        for _ in 0..100 {
            match random.below(6) {
                0 | 1 => {
                    let at = tables + random.below(64) * 0x1000 + random.below(255) * 8;
                    let flags = random.next() & 0xfff | 7;
                    let target = match random.below(5) {
                        0 => random.next() & 0x000f_ffff_ffff_f000,
                        1 => nobodys.start.as_u64() + random.below(64) * 0x1000,
                        2 => first_data + random.below(512) * 0x1000,
                        _ => tables + random.below(64) * 0x1000,
                    };
                    guest.write_u64(at, target | flags);
                }
                2 => {
                    let root = tables + random.below(64) * 0x1000;
                    let mut entry = guest.entry(root, 1 + random.below(4) as u16).to_bytes();
                    match random.below(6) {
                        0 => entry[random.below(24) as usize] ^= 1 << random.below(8),
                        1 => entry = Guest::pass_through(3).to_bytes(),
                        _ => {}
                    }
                    let pasid = random.pick(&[0, guest.pasid]);
                    guest.set_entry(D0, pasid, &PasidEntry::from_bytes(&entry));
                }
                3 => {
                    let pasid = random.pick(&[0, guest.pasid]);
                    guest.invalidate_pasid(random.below(5) as u16, pasid);
                }
                4 => invalidate_all(&mut guest),
                _ => guest.set_translation(random.below(4) != 0),
            }
            for _ in 0..8 {
                let page = match random.below(4) {
                    0 => random.below(1 << 18),
                    1 => random.next() >> 28 & 0x7ff_ffff,
                    2 => random.below(GUEST_LEN_BYTES >> 12),
                    _ => (nobodys.start.as_u64() >> 12) + random.below(64),
                };
                let address = Iova::new(page << 12 | OFFSET);
                let requester = guest.requester(D0, random.pick(&[None, guest.tag]));
                let mut bytes = [0; 8];
                lab.hypervisor.dma_read(requester, address, &mut bytes);
                let value = u64::from_le_bytes(bytes);
                assert_ne!(value, secret, "{address:?} leads out of the machine");
                let is_stamp = value & !(GUEST_LEN_BYTES - 1) == STAMP;
                assert!(
                    value == 0 || is_stamp,
                    "{address:?} leads to {value:#x}, which is not the guest's"
                );
                reached += u32::from(is_stamp);
            }
            guest.settle();
        }
        guest.take_faults();
        assert!(reached > 0, "nothing was reached, so nothing was shown");
        guest.finish();
    }
}

// ---- S83 ----

/// What a device may not reach: 0xfed9_0000 stands for the unit's registers (where it does on the
/// image's machine), then IOAPIC, local APIC and its next page, ECAM.
const DEVICE_PAGES: [u64; 5] = [
    0xfed9_0000,
    0xfec0_0000,
    0xfee0_0000,
    0xfee0_1000,
    0xb000_0000,
];

fn protected_targets(place: Place<'_>) {
    for start in BACK_ENDS {
        let mut guest = start(place);
        let (pasid, tag) = (guest.pasid, guest.tag);
        let lab = guest.lab.clone();
        let layout = lab.hypervisor.bench().layout();
        let memory = [
            layout.nobodys.start,
            layout.frames.start,
            lab.context_place(0, guest.physical(D0)).expect("a table"),
        ];
        let memory = memory.map(|at| at.as_u64() & !0xfff);
        let targets: Vec<u64> = DEVICE_PAGES.into_iter().chain(memory).collect();
        let words = |page: u64| [0, 16].map(|offset| lab.host_read64(Hpa::new(page + offset)));
        let before = memory.map(words);
        let unit = || {
            let registers = lab.hypervisor.registers(0).expect("a unit");
            (
                registers.read64(Register64::ROOT_TABLE_ADDRESS),
                registers.read64(Register64::INVALIDATION_QUEUE_ADDRESS),
                registers.read32(Register32::GLOBAL_STATUS),
            )
        };
        let unit_before = unit();
        let no_way = |guest: &mut Guest, tag: Option<u32>, iova: u64, how: &str| {
            let requester = guest.requester(D0, tag);
            let mut bytes = [0; 8];
            lab.hypervisor
                .dma_read(requester, Iova::new(iova), &mut bytes);
            assert_eq!(bytes, [0; 8], "read of {iova:#x}, {how}");
            for (len, offset) in [(8, 0), (4, 0), (4, 16), (8, 16)] {
                let at = Iova::new(iova + offset);
                lab.hypervisor.dma_write(requester, at, &[0xbd; 8][..len]);
            }
            guest.take_faults();
            assert_eq!(unit(), unit_before, "{iova:#x}, {how}");
            assert_eq!(memory.map(words), before, "{iova:#x}, {how}");
        };
        // By a table that leads there.
        let mappings = (0u64..).zip(&targets);
        let mappings: Vec<_> = mappings
            .map(|(n, page)| (IOVA + 0x1000 * n, *page))
            .collect();
        let own = guest.data_page();
        let root = guest.table(&mappings);
        let last = IOVA + 0x1000 * targets.len() as u64;
        guest.map(root, last, Some(own));
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, pasid, &entry);
        guest.invalidate_pasid(7, pasid);
        guest.expect_reaches(D0, tag, last, own);
        for (iova, page) in &mappings {
            no_way(
                &mut guest,
                tag,
                *iova,
                &format!("{page:#x} through a table"),
            );
        }
        // By the address itself.
        if guest.vm.offer().features.extended.has_pass_through() {
            guest.set_entry(D0, pasid, &Guest::pass_through(7));
            guest.invalidate_pasid(7, pasid);
            guest.expect_reaches(D0, tag, own, own);
            for page in &targets {
                no_way(&mut guest, tag, *page, "pass-through");
            }
        }
        guest.set_translation(false);
        guest.expect_reaches(D0, None, own, own);
        for page in &targets {
            no_way(&mut guest, None, *page, "translation off");
        }
        lab.host_faults.take();
        guest.finish();
    }
}

fn protected_ranges(place: Place<'_>) {
    let mut protected = ProtectedRanges::new();
    let nobodys = {
        let hypervisor = place.unprogrammed();
        hypervisor.bench().layout().nobodys
    };
    let start = nobodys.start.as_u64();
    let range = PhysicalRange::new(Hpa::new(start + 0x1_0000), 0x1000);
    protected.add(range).expect("room");
    let mut guest = place.guest_with(GuestOptions {
        protected,
        ..GuestOptions::default()
    });
    let lab = guest.lab.clone();
    let at = Gpa::new(GUEST_LEN_BYTES);
    let mut map = |host: u64, len: u64| {
        guest.vm.map_memory(
            &*lab.hypervisor,
            &lab.units,
            at,
            Hpa::new(host),
            len,
            Rights::READ_WRITE,
        )
    };
    for (host, len) in [
        (start, 0x2_0000),
        (start + 0x1_0000, 0x1000),
        (start, 0x1_1000),
        (start + 0x1_0000, 0x10_0000),
    ] {
        assert_eq!(map(host, len), Err(MachineError::Protected { range }));
    }
    assert_eq!(map(start, 0x1_0000), Ok(()), "up to it");
    // Nothing of a refused call is there, whatever the guest's translation.
    guest.set_translation(false);
    let requester = guest.requester(D0, None);
    let lost = Iova::new(GUEST_LEN_BYTES + 0x1_0000);
    lab.hypervisor.dma_write(requester, lost, &[0xbd; 8]);
    assert_eq!(lab.host_read64(range.start), 0);
    guest.settle();
    lab.host_faults.take();
    guest.finish();
}

// ---- S93 ----

fn chosen_keys(place: Place<'_>) {
    const COUNT: usize = 60;
    type Choice = fn(&mut Random, usize) -> (u32, u16);
    let choices: [(&str, Choice); 5] = [
        ("random", |random, _| {
            (random.below(1 << 20) as u32, random.below(8) as u16)
        }),
        ("in a row", |_, index| (index as u32, 1)),
        ("low bits alike", |_, index| ((index as u32) << 12 | 1, 1)),
        ("high bits alike", |_, index| (0xf_0000 | index as u32, 1)),
        ("PASID and domain-id together", |_, index| {
            (
                (index as u32) << 8 | index as u32 & 0xff,
                (index % 8) as u16,
            )
        }),
    ];
    let mut costs = Vec::new();
    for (name, choice) in choices {
        let mut guest = place.guest();
        let mut random = Random::new(3);
        let (root, page) = guest.other_table();
        let mut keys: Vec<(u32, u16)> = Vec::new();
        for index in 1.. {
            if keys.len() == COUNT {
                break;
            }
            let (pasid, domain) = choice(&mut random, index);
            if pasid != 0 && !keys.iter().any(|key| key.0 == pasid) {
                keys.push((pasid, 1 + domain));
                let entry = guest.entry(root, 1 + domain);
                guest.set_entry(D0, pasid, &entry);
            }
        }
        guest.invalidate_pasid_global();
        let before = guest.lab.hypervisor.counts();
        for (pasid, domain) in &keys {
            // Unchanged, then bound anew, then changed by its own domain-id.
            guest.invalidate_pasid(*domain, *pasid);
            guest.set_entry(D0, *pasid, &PasidEntry::default());
            guest.invalidate_pasid(*domain, *pasid);
            let entry = guest.entry(root, *domain);
            guest.set_entry(D0, *pasid, &entry);
            guest.invalidate_pasid(*domain, *pasid);
        }
        let cost = guest.lab.hypervisor.counts().since(before);
        let (pasid, _) = keys[COUNT / 2];
        guest.expect_reaches(D0, Some(pasid), IOVA, page);
        guest.finish();
        costs.push((name, [cost.guest_reads, cost.submissions, cost.stores]));
    }
    let (_, random) = costs[0];
    for (name, cost) in costs {
        for (chosen, random) in cost.into_iter().zip(random) {
            assert!(chosen * 10 <= random * 11, "{name}: {cost:?}, {random:?}");
        }
    }
}
