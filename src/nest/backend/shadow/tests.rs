use super::*;
use crate::arch::address::Hpa;
use crate::arch::features::TableFeatures;
use crate::arch::second_stage::Rights;
use crate::mem::testing::TestHypervisor;
use crate::mem::{HostMemory, Owner};
use crate::nest::memory::MachineMemory;
use crate::nest::statistics::MachineStatistics;
use crate::paging::SecondStageConfig;
use crate::paging::second_stage::Dismantling;
use crate::viommu::host::BindError;

const VM: Owner = Owner::new(1);
/// Guest-physical 0 to 15 pages are here on the host, and may be read and written.
const HOST: u64 = 0x10_0000;
/// Guest-physical address of a page that the machine may only read.
const READ_ONLY: u64 = 0x2_0000;
/// The guest's table pages, from the root down to level 1.
const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
const LIMIT: u32 = 16;
const READ: u64 = 1;
const WRITE: u64 = 2;
const BOTH: u64 = READ | WRITE;

const CONFIG: SecondStageConfig = SecondStageConfig::EXAMPLE.with_leaves_up_to(PageSize::Size4KiB);

fn machine_memory(h: &TestHypervisor) -> SecondStage<Gpa> {
    let mut memory = SecondStage::new(h, VM, CONFIG).unwrap();
    for (guest, host, len, rights) in [
        (0, HOST, 0x1_0000, Rights::READ_WRITE),
        (READ_ONLY, 0x50_0000, 0x1000, Rights::READ),
    ] {
        memory
            .map(h, Gpa::new(guest), Hpa::new(host), len, rights)
            .unwrap();
    }
    for page in 0..0x1_0000 / 8 {
        h.write64(Hpa::new(HOST + page * 8), 0);
    }
    memory
}

/// Makes address 0 lead to `page` in the guest's table, with these rights from the root down.
fn set_guest_table(h: &TestHypervisor, page: u64, rights: [u64; 4]) {
    let below = [TABLES[1], TABLES[2], TABLES[3], page];
    for ((table, below), rights) in TABLES.into_iter().zip(below).zip(rights) {
        h.write64(Hpa::new(HOST + table), below | rights);
    }
}

fn new_shadow(h: &TestHypervisor) -> Shadow {
    let table = SecondStage::new(h, VM, CONFIG).unwrap();
    let mut shadow = Shadow::new(
        DomainId::new(7),
        Gpa::new(TABLES[0]),
        CONFIG.width(),
        table,
        LIMIT,
    );
    shadow.pending.clear();
    shadow
}

/// Takes a shadow apart that hardware has never seen.
fn destroy(h: &TestHypervisor, shadow: Shadow) {
    let (mut table, detached) = shadow.into_tables(h);
    let mut state = Dismantling::new(detached);
    while !table.dismantle(h, &mut state) {}
}

/// Brings a range of pages in step: what that changed, and in how many slices.
fn synchronise_range(
    h: &TestHypervisor,
    memory: &SecondStage<Gpa>,
    shadow: &mut Shadow,
    span: Span,
) -> Result<(Changes, u32), BindError> {
    let synchronisation = Synchronisation {
        memory: MachineMemory::new(h, memory),
        features: &TableFeatures::EVERYTHING,
    };
    shadow.mark(span, LIMIT).unwrap();
    let mut all = Changes::default();
    let mut slices = 0;
    while !shadow.is_in_step() {
        let changes = synchronisation.run_slice(shadow, &mut MachineStatistics::default())?;
        all.added += changes.added;
        all.replaced += changes.replaced;
        slices += 1;
    }
    Ok((all, slices))
}

fn synchronise(h: &TestHypervisor, memory: &SecondStage<Gpa>, shadow: &mut Shadow) {
    let page = Span { first: 0, last: 0 };
    synchronise_range(h, memory, shadow, page).unwrap();
}

// S68, G14: a right counts if every level of both tables grants it (§3.7).
#[test]
fn a_page_has_the_rights_that_all_levels_of_both_tables_grant() {
    let h = TestHypervisor::new(32);
    let memory = machine_memory(&h);
    let mut shadow = new_shadow(&h);
    for (page, rights, expected) in [
        (0x8000, [BOTH; 4], Some(Rights::READ_WRITE)),
        (0x8000, [READ, BOTH, BOTH, BOTH], Some(Rights::READ)),
        (0x8000, [BOTH, BOTH, WRITE, BOTH], Some(Rights::WRITE)),
        (0x8000, [BOTH, BOTH, BOTH, READ], Some(Rights::READ)),
        (0x8000, [READ, BOTH, BOTH, WRITE], None),
        (READ_ONLY, [BOTH; 4], Some(Rights::READ)),
        (READ_ONLY, [BOTH, BOTH, BOTH, WRITE], None),
        (0x3_0000, [BOTH; 4], None),
    ] {
        set_guest_table(&h, page, rights);
        synchronise(&h, &memory, &mut shadow);
        let mapping = shadow.table.translate(&h, Iova::new(0));
        let found = mapping.map(|mapping| mapping.rights);
        assert_eq!(found, expected, "{page:#x} {rights:?}");
    }
}

// G5, R22
#[test]
fn table_pages_are_free_once_the_flush_that_covers_them_is_confirmed() {
    let h = TestHypervisor::new(32);
    let memory = machine_memory(&h);
    let mut shadow = new_shadow(&h);
    let charged = || h.pool.charged_frames(VM);
    let empty = charged();
    set_guest_table(&h, 0x8000, [BOTH; 4]);
    synchronise(&h, &memory, &mut shadow);
    let full = charged();
    assert_eq!(full, empty + 3);
    shadow.empty();
    while shadow.empty_slice(&h) {}
    // Not submitted yet: a confirmation now is that of an older flush.
    shadow.flush_confirmed(&h);
    assert_eq!(charged(), full);
    shadow.flush_submitted(&h);
    shadow.flush_failed(&h);
    shadow.flush_confirmed(&h);
    assert_eq!(charged(), full, "never confirmed");
    shadow.flush_submitted(&h);
    assert_eq!(charged(), full);
    shadow.flush_confirmed(&h);
    assert!(shadow.give_back_tables(&h));
    assert_eq!(charged(), empty);
}

/// Makes the last-level entries lead to `page`, all 512.
fn fill_last_table(h: &TestHypervisor, page: u64) {
    set_guest_table(h, page, [BOTH; 4]);
    for index in 0..ENTRIES {
        h.write64(Hpa::new(HOST + TABLES[3] + 8 * index), page | BOTH);
    }
}

// C: two second-stage walks' reads and one store a page.
#[test]
fn a_run_of_pages_costs_two_walks_and_one_store_a_page() {
    let h = TestHypervisor::new(32);
    let memory = machine_memory(&h);
    let mut shadow = new_shadow(&h);
    let run = Span {
        first: 0,
        last: ENTRIES - 1,
    };
    for (page, expected) in [(0x8000, (ENTRIES, 0)), (0x9000, (0, ENTRIES))] {
        fill_last_table(&h, page);
        let (loads, stores) = (h.loads.get(), h.stores.get());
        let (changes, slices) = synchronise_range(&h, &memory, &mut shadow, run).unwrap();
        assert_eq!((changes.added, changes.replaced), expected);
        assert_eq!(slices, 16);
        let loads = h.loads.get() - loads;
        assert!(loads <= 2 * 4 * ENTRIES, "{loads} loads");
        if changes.added == 0 {
            assert_eq!(h.stores.get() - stores, ENTRIES);
        }
    }
    // Nothing has changed: no store at all.
    let stores = h.stores.get();
    let (changes, _) = synchronise_range(&h, &memory, &mut shadow, run).unwrap();
    assert_eq!((changes.span, h.stores.get()), (None, stores));
}

#[test]
fn a_range_is_all_that_is_looked_at() {
    let h = TestHypervisor::new(32);
    let memory = machine_memory(&h);
    let mut shadow = new_shadow(&h);
    let all = Span::EVERYTHING;
    fill_last_table(&h, 0x8000);
    synchronise_range(&h, &memory, &mut shadow, all).unwrap();
    fill_last_table(&h, 0x9000);
    let named = Span { first: 5, last: 6 };
    let loads = h.loads.get();
    let (changes, slices) = synchronise_range(&h, &memory, &mut shadow, named).unwrap();
    assert_eq!((changes.replaced, slices), (2, 1));
    assert!(h.loads.get() - loads <= 64, "{}", h.loads.get() - loads);
    for (page, expected) in [(4, 0x8000), (5, 0x9000), (6, 0x9000), (7, 0x8000)] {
        let at = Iova::new(page << 12);
        let mapping = shadow.table.translate(&h, at).unwrap();
        assert_eq!(mapping.output, Hpa::new(HOST + expected), "page {page}");
    }
}

// S78: each level's table is the root, all its entries lead to itself.
#[test]
fn a_table_that_is_its_own_lower_tables_ends_at_the_limit() {
    let h = TestHypervisor::new(64);
    let memory = machine_memory(&h);
    let mut shadow = new_shadow(&h);
    for index in 0..ENTRIES {
        h.write64(Hpa::new(HOST + TABLES[0] + 8 * index), TABLES[0] | BOTH);
    }
    let loads = h.loads.get();
    let result = synchronise_range(&h, &memory, &mut shadow, Span::EVERYTHING);
    assert!(
        matches!(
            result,
            Err(BindError::GuestTables { .. } | BindError::Frames(_))
        ),
        "{result:?}"
    );
    let most = u64::from(LIMIT * SLICES_PER_TABLE) * 512;
    assert!(h.loads.get() - loads < most);
    destroy(&h, shadow);
}

/// Host memory that a large leaf of the machine leads to.
const LARGE: u64 = 0x8000_0000;

// S18: a large leaf where the guest, the machine and hardware have one.
#[test]
fn large_leaves_are_large_and_are_split_when_a_page_of_them_changes() {
    let config = SecondStageConfig::EXAMPLE.with_leaves_up_to(PageSize::Size2MiB);
    let h = TestHypervisor::new(64);
    let mut memory = SecondStage::new(&h, VM, config).unwrap();
    let (low, large) = (Gpa::new(0), Gpa::new(LARGE));
    let both = Rights::READ_WRITE;
    memory.map(&h, low, Hpa::new(HOST), 0x1_0000, both).unwrap();
    memory
        .map(&h, large, Hpa::new(LARGE), 0x20_0000, both)
        .unwrap();
    for page in 0..0x1_0000 / 8 {
        h.write64(Hpa::new(HOST + page * 8), 0);
    }
    let mut shadow = new_shadow(&h);
    shadow.table = SecondStage::new(&h, VM, config).unwrap();
    let page_size = 1 << 7;
    let entry = Hpa::new(HOST + TABLES[2]);
    set_guest_table(&h, 0x8000, [BOTH; 4]);
    h.write64(entry, LARGE | page_size | BOTH);
    let all = Span::EVERYTHING;
    let (changes, _) = synchronise_range(&h, &memory, &mut shadow, all).unwrap();
    assert_eq!((changes.added, changes.replaced), (1, 0));
    let leaf = |shadow: &Shadow, address| {
        let mapping = shadow.table.translate(&h, Iova::new(address))?;
        Some((mapping.output.as_u64(), mapping.size))
    };
    let size = PageSize::Size2MiB;
    assert_eq!(leaf(&shadow, 0x5000), Some((LARGE + 0x5000, size)));
    // A page of it is named, and nothing has changed.
    let named = Span { first: 5, last: 5 };
    let (changes, _) = synchronise_range(&h, &memory, &mut shadow, named).unwrap();
    assert_eq!(changes.span, None);
    // The guest splits it: one page leads elsewhere, one nowhere. All of it is owed.
    for index in 0..ENTRIES {
        let page = LARGE + 0x1000 * index;
        let page = if index == 9 { 0x8000 } else { page };
        let leaf = if index == 11 { 0 } else { page | BOTH };
        h.write64(Hpa::new(HOST + TABLES[3] + 8 * index), leaf);
    }
    h.write64(entry, TABLES[3] | BOTH);
    shadow.mark(named, LIMIT).unwrap();
    let synchronisation = Synchronisation {
        memory: MachineMemory::new(&h, &memory),
        features: &TableFeatures::EVERYTHING,
    };
    let mut span: Option<Span> = None;
    while !shadow.is_in_step() {
        let changes = synchronisation
            .run_slice(&mut shadow, &mut MachineStatistics::default())
            .unwrap();
        assert!(changes.span.is_none() || !changes.is_leaf_only || span.is_some());
        span = span.or(changes.span);
    }
    assert_eq!(
        span,
        Some(Span {
            first: 0,
            last: 511
        })
    );
    let size = PageSize::Size4KiB;
    for (address, expected) in [
        (0x5000, Some(LARGE + 0x5000)),
        (0x9000, Some(HOST + 0x8000)),
        (0xb000, None),
        (0x1f_f000, Some(LARGE + 0x1f_f000)),
    ] {
        let expected = expected.map(|output| (output, size));
        assert_eq!(leaf(&shadow, address), expected, "{address:#x}");
    }
    // Through not-present it is large again.
    for value in [0, LARGE | page_size | BOTH] {
        h.write64(entry, value);
        synchronise_range(&h, &memory, &mut shadow, all).unwrap();
    }
    let size = PageSize::Size2MiB;
    assert_eq!(leaf(&shadow, 0x5000), Some((LARGE + 0x5000, size)));
    destroy(&h, shadow);
}
