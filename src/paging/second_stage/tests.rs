//! Second-stage tables against a flat map, and what they owe.

extern crate std;

use std::vec::Vec;

mod costs;
mod edits;
mod programs;

use super::*;
use crate::mem::testing::TestHypervisor;

const OWNER: Owner = Owner::new(1);

const CONFIG: SecondStageConfig = SecondStageConfig::EXAMPLE;

fn entry_at(h: &TestHypervisor, page: Hpa, address: u64, level: u8) -> SecondStageEntry {
    SecondStageEntry::from_u64(h.read64(slot_address(page, address, level)))
}

fn table(h: &TestHypervisor) -> SecondStage<Gpa> {
    SecondStage::new(h, OWNER, CONFIG).unwrap()
}

fn output_of(h: &TestHypervisor, table: &SecondStage<Gpa>, at: u64) -> Option<(u64, PageSize)> {
    table
        .translate(h, Gpa::new(at))
        .map(|mapping| (mapping.output.as_u64(), mapping.size))
}

#[test]
fn map_uses_the_largest_pages_that_alignment_length_and_ability_allow() {
    use PageSize::{Size1GiB, Size2MiB, Size4KiB};
    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;
    // input, output, length, probe, size at the probe
    for (input, output, len, probe, size) in [
        (0, 0, 4096, 0, Size4KiB),
        (0, 0, 2 * MIB, 0x1234, Size2MiB),
        (GIB, 5 * GIB, GIB, GIB + 0x12_3456, Size1GiB),
        (GIB, 5 * GIB, GIB - 4096, GIB, Size2MiB),
        (GIB, 5 * GIB, GIB - 4096, 2 * GIB - 8192, Size4KiB),
        (GIB, 5 * GIB + 4096, 4 * MIB, GIB, Size4KiB),
        (
            2 * MIB - 4096,
            4 * MIB - 4096,
            2 * MIB + 8192,
            2 * MIB,
            Size2MiB,
        ),
    ] {
        let h = TestHypervisor::new(600);
        let mut table = table(&h);
        table
            .map(
                &h,
                Gpa::new(input),
                Hpa::new(output),
                len,
                Rights::READ_WRITE,
            )
            .unwrap();
        assert_eq!(
            output_of(&h, &table, probe),
            Some((probe - input + output, size)),
            "{input:#x}+{len:#x}"
        );
        assert_eq!(output_of(&h, &table, input + len), None);
    }
}

#[test]
fn refused_calls_change_nothing() {
    let h = TestHypervisor::new(8);
    let mut table = table(&h);
    let (at, page) = (Gpa::new(0x20_0000), Hpa::new(0x40_0000));
    table.map(&h, at, page, 0x20_0000, Rights::READ).unwrap();
    let (stores, free) = (h.stores.get(), h.pool.free_frames());
    let rw = Rights::READ_WRITE;
    let cases: Vec<(Result<(), MapError>, MapError)> = Vec::from([
        (
            table.map(&h, Gpa::new(1), page, 4096, rw),
            MapError::Misaligned { value: 1 },
        ),
        (
            table.map(&h, at, Hpa::new(2), 4096, rw),
            MapError::Misaligned { value: 2 },
        ),
        (
            table.map(&h, at, page, 0, rw),
            MapError::Misaligned { value: 0 },
        ),
        (
            table.map(&h, at, page, 4095, rw),
            MapError::Misaligned { value: 4095 },
        ),
        (
            table.map(&h, Gpa::new((1 << 48) - 4096), page, 8192, rw),
            MapError::InputBeyondWidth {
                address: (1 << 48) - 4096,
                len_bytes: 8192,
                bits: 48,
            },
        ),
        (
            table.map(&h, Gpa::new(0), Hpa::new((1 << 46) - 4096), 8192, rw),
            MapError::OutputBeyondWidth {
                address: Hpa::new((1 << 46) - 4096),
                bits: 46,
            },
        ),
        (
            table.map(&h, Gpa::new(0), Hpa::new(0xfedf_f000), 8192, rw),
            MapError::InterruptRange {
                address: Hpa::new(0xfedf_f000),
            },
        ),
        (
            table.map(&h, Gpa::new(0), page, 4096, Rights::NONE),
            MapError::NoRights,
        ),
        (
            table.map(&h, at, page, 4096, rw),
            MapError::Overlap { address: 0x20_0000 },
        ),
        (
            table.map(&h, Gpa::new(0x1f_f000), page, 8192, rw),
            MapError::Overlap { address: 0x20_0000 },
        ),
        (
            table
                .unmap(&h, at, 4096, OnPartialLeaf::Refuse)
                .map(core::mem::forget),
            MapError::PartialLeaf {
                address: 0x20_0000,
                size: PageSize::Size2MiB,
            },
        ),
        (
            table
                .unmap(&h, Gpa::new(0x1f_f000), 0x2000, OnPartialLeaf::Refuse)
                .map(core::mem::forget),
            MapError::PartialLeaf {
                address: 0x20_0000,
                size: PageSize::Size2MiB,
            },
        ),
        (
            // Nine table pages are missing, and there are not that many frames.
            table.map(&h, Gpa::new(1 << 40), Hpa::new(0x1000), 16 << 20, rw),
            MapError::Frames(FrameError::QuotaExceeded {
                owner: OWNER,
                quota: 8,
            }),
        ),
    ]);
    for (result, expected) in cases {
        assert_eq!(result, Err(expected));
    }
    assert_eq!(h.pool.free_frames(), free);
    assert_eq!(
        output_of(&h, &table, 0x20_1000),
        Some((0x40_1000, PageSize::Size2MiB))
    );
    // Only the frames that were reserved and given back were written.
    assert!(h.stores.get() - stores < 8 * 520);
    assert_eq!(output_of(&h, &table, 0x1f_f000), None);
}

#[test]
fn empty_tables_are_used_again_and_whole_ones_are_detached() {
    let h = TestHypervisor::new(16);
    let mut table = table(&h);
    let page = Hpa::new(0x8000_0000);
    table
        .map(&h, Gpa::new(0), page, 0x1000, Rights::READ_WRITE)
        .unwrap();
    let leaf = table
        .unmap(&h, Gpa::new(0), 0x1000, OnPartialLeaf::Refuse)
        .unwrap();
    assert!(leaf.is_leaf_only() && leaf.leaves == 1);
    leaf.settle(&h);
    // The level-1 table is still there, so the 2-MiB range is mapped below it, without an overlap.
    table
        .map(&h, Gpa::new(0), page, 0x20_0000, Rights::READ_WRITE)
        .unwrap();
    assert_eq!(
        output_of(&h, &table, 0x5000),
        Some((0x8000_5000, PageSize::Size4KiB))
    );
    let before = h.pool.free_frames();
    let whole = table
        .unmap(&h, Gpa::new(0), 0x20_0000, OnPartialLeaf::Refuse)
        .unwrap();
    assert!(!whole.is_leaf_only());
    assert_eq!(
        (whole.leaves, h.pool.free_frames()),
        (512, before),
        "frames wait for the invalidation"
    );
    whole.settle(&h);
    assert_eq!(h.pool.free_frames(), before + 1);
    let rest = table.destroy(&h);
    rest.settle(&h);
    assert_eq!(h.pool.free_frames(), 16);
}

#[test]
fn detached_tables_read_as_not_present_to_hardware_that_still_walks_them() {
    let h = TestHypervisor::new(16);
    let mut table = table(&h);
    table
        .map(
            &h,
            Gpa::new(0),
            Hpa::new(0x1000),
            0x1000,
            Rights::READ_WRITE,
        )
        .unwrap();
    let mut pages = Vec::from([table.root().address()]);
    for level in [4, 3, 2] {
        let above = *pages.last().unwrap();
        pages.push(entry_at(&h, above, 0, level).address());
    }
    let token = table.destroy(&h);
    for page in pages {
        for offset in (0..4096).step_by(8) {
            let entry = SecondStageEntry::from_u64(h.read64(Hpa::new(page.as_u64() + offset)));
            assert!(!entry.is_present(), "{page}+{offset:#x}");
        }
    }
    token.settle(&h);
}

#[test]
fn units_that_do_not_snoop_get_every_changed_line_flushed() {
    let h = TestHypervisor::new(16);
    let mut table = SecondStage::<Gpa>::new(&h, OWNER, CONFIG.unsnooped()).unwrap();
    let root = table.root().address();
    h.flushed.borrow_mut().clear();
    table
        .map(
            &h,
            Gpa::new(0x7000),
            Hpa::new(0x1000),
            0x2000,
            Rights::READ_WRITE,
        )
        .unwrap();
    let level1: Hpa = {
        let level3: Hpa = entry_at(&h, root, 0x7000, 4).address();
        let level2: Hpa = entry_at(&h, level3, 0x7000, 3).address();
        entry_at(&h, level2, 0x7000, 2).address()
    };
    let flushed = h.flushed.borrow().clone();
    assert!(
        flushed.contains(&root.as_u64()),
        "the entry that links the new tables"
    );
    for line in [level1.as_u64(), level1.as_u64() + 64] {
        assert!(flushed.contains(&line), "entries 7 and 8 lie in two lines");
    }
    // Each of the three new pages is written back once, whole, before it is linked.
    assert_eq!(flushed.len(), 3 * 64 + 1);
    h.flushed.borrow_mut().clear();
    let token = table
        .unmap(&h, Gpa::new(0x7000), 0x2000, OnPartialLeaf::Refuse)
        .unwrap();
    assert!(h.flushed.borrow().contains(&level1.as_u64()));
    assert!(h.flushed.borrow().contains(&(level1.as_u64() + 64)));
    token.settle(&h);
}

#[test]
fn set_page_changes_one_page_by_one_store() {
    let h = TestHypervisor::new(8);
    let mut table =
        SecondStage::<Iova>::new(&h, OWNER, CONFIG.with_leaves_up_to(PageSize::Size4KiB)).unwrap();
    let at = Iova::new(0x1234_5000);
    let page = |number: u64| Some((Hpa::new(number << 12), Rights::READ_WRITE));
    assert_eq!(table.set_page(&h, at, None), Ok(PageChange::None));
    assert_eq!(h.pool.free_frames(), 7, "clearing takes no frame");
    assert_eq!(table.set_page(&h, at, page(5)), Ok(PageChange::Added));
    for (wanted, change) in [
        (page(5), PageChange::None),
        (page(6), PageChange::Replaced),
        (None, PageChange::Replaced),
        (None, PageChange::None),
    ] {
        let before = h.stores.get();
        assert_eq!(table.set_page(&h, at, wanted), Ok(change));
        assert_eq!(
            h.stores.get() - before,
            u64::from(change != PageChange::None)
        );
        assert_eq!(
            table.translate(&h, at).map(|mapping| mapping.output),
            wanted.map(|(output, _)| output)
        );
    }
    table.destroy(&h).settle(&h);
    assert_eq!(h.pool.free_frames(), 8);
}

fn shadow_table(h: &TestHypervisor) -> SecondStage<Iova> {
    SecondStage::new(h, OWNER, CONFIG).unwrap()
}

fn page(number: u64) -> Option<(Hpa, Rights)> {
    Some((Hpa::new(number << 12), Rights::READ_WRITE))
}

#[test]
fn set_pages_costs_one_walk_and_one_store_a_page() {
    let h = TestHypervisor::new(8);
    let mut table = shadow_table(&h);
    let first = Iova::new(0x1234_0000);
    let old: [_; 32] = core::array::from_fn(|index| page(0x100 + index as u64));
    let changed = table.set_pages(&h, first, &old).unwrap();
    assert_eq!((changed.done, changed.added, changed.replaced), (32, 32, 0));
    let mut new = old;
    for number in [3, 7, 30] {
        new[number] = page(0x900 + number as u64);
    }
    new[9] = None;
    let before = h.stores.get();
    let changed = table.set_pages(&h, first, &new).unwrap();
    assert_eq!((changed.done, changed.added, changed.replaced), (32, 0, 4));
    assert_eq!(h.stores.get() - before, 4);
    for (index, wanted) in new.iter().enumerate() {
        let at = Iova::new(first.as_u64() + 0x1000 * index as u64);
        let found = table.translate(&h, at).map(|mapping| mapping.output);
        assert_eq!(found, wanted.map(|(output, _)| output), "page {index}");
    }
    // What lies in the next table page is the next call's.
    let last = Iova::new(0x125f_e000);
    let changed = table.set_pages(&h, last, &old).unwrap();
    assert_eq!((changed.done, changed.added), (2, 2));
    assert_eq!(table.translate(&h, Iova::new(0x1260_0000)), None);
    table.destroy(&h).settle(&h);
    assert_eq!(h.pool.free_frames(), 8);
}

#[test]
fn refused_pages_change_nothing() {
    let h = TestHypervisor::new(8);
    let mut table = shadow_table(&h);
    let at = Iova::new(0x1000);
    table.set_pages(&h, at, &[page(5), page(6)]).unwrap();
    let before = h.stores.get();
    for wrong in [Hpa::new(0xfee0_0000), Hpa::new(0x123), Hpa::new(1 << 51)] {
        let wanted = [page(7), Some((wrong, Rights::READ_WRITE))];
        assert!(table.set_pages(&h, at, &wanted).is_err(), "{wrong}");
    }
    assert!(table.set_pages(&h, Iova::new(0x1001), &[page(7)]).is_err());
    assert_eq!(h.stores.get(), before);
    table.destroy(&h).settle(&h);
}

#[test]
fn a_large_leaf_is_split_by_one_store_and_its_other_pages_never_lead_elsewhere() {
    for size in [PageSize::Size2MiB, PageSize::Size1GiB] {
        let h = TestHypervisor::new(8);
        let mut table = shadow_table(&h);
        let (input, output) = (Iova::new(0x4000_0000), Hpa::new(0x8000_0000));
        let set = table.set_leaf(&h, input, size, output, Rights::READ);
        assert_eq!(set.unwrap().map(|changed| changed.added), Some(1));
        let same = table.set_leaf(&h, input, size, output, Rights::READ);
        let same = same.unwrap().unwrap();
        assert_eq!((same.added, same.replaced), (0, 0));
        let at = Iova::new(input.as_u64() + 0x5000);
        let changed = table.set_pages(&h, at, &[page(9)]).unwrap();
        assert_eq!(changed.split, Some((input, size.len_bytes())));
        assert_eq!((changed.added, changed.replaced), (0, 1));
        for (offset, expected) in [
            (0, 0x8000_0000),
            (0x4000, 0x8000_4000),
            (0x5000, 0x9000),
            (0x6000, 0x8000_6000),
            (
                size.len_bytes() - 0x1000,
                0x8000_0000 + size.len_bytes() - 0x1000,
            ),
        ] {
            let mapping = table.translate(&h, Iova::new(input.as_u64() + offset));
            let mapping = mapping.unwrap();
            assert_eq!(mapping.output, Hpa::new(expected), "{offset:#x}");
            if expected != 0x9000 {
                assert_eq!(mapping.rights, Rights::READ, "{offset:#x}");
            }
        }
        // Small pages stay small: a leaf in the place of a table would leave hardware with neither.
        let merged = table.set_leaf(&h, input, size, output, Rights::READ);
        assert_eq!(merged, Ok(None));
        table.destroy(&h).settle(&h);
        assert_eq!(h.pool.free_frames(), 8);
    }
}

#[test]
fn leaves_are_refused_where_the_table_has_none_of_the_size() {
    let h = TestHypervisor::new(8);
    let small = CONFIG.with_leaves_up_to(PageSize::Size4KiB);
    let mut table = SecondStage::<Iova>::new(&h, OWNER, small).unwrap();
    let (at, size) = (Iova::new(0x20_0000), PageSize::Size2MiB);
    let output = Hpa::new(0x40_0000);
    let set = table.set_leaf(&h, at, size, output, Rights::READ);
    assert_eq!(set, Ok(None));
    for (at, output) in [(0x20_1000, 0x40_0000), (0x20_0000, 0x40_1000)] {
        let set = table.set_leaf(&h, Iova::new(at), size, Hpa::new(output), Rights::READ);
        assert!(matches!(set, Err(MapError::Misaligned { .. })), "{set:?}");
    }
    table.destroy(&h).settle(&h);
    assert_eq!(h.pool.free_frames(), 8);
}

// Bit 11 of each leaf and of no reference to a table, where it is reserved.
#[test]
fn every_leaf_forces_snooping_where_the_table_does_so() {
    let h = TestHypervisor::new(8);
    let config = CONFIG.forcing_snoop().unwrap();
    let mut table = SecondStage::<Iova>::new(&h, OWNER, config).unwrap();
    let root = table.root().address();
    let snoops = |at: u64| {
        let mut page = root;
        for level in (1..=4).rev() {
            let entry = entry_at(&h, page, at, level);
            assert!(entry.is_present(), "{at:#x}");
            if entry.is_leaf(level) {
                return entry.as_u64() >> 11 & 1 == 1;
            }
            assert_eq!(entry.as_u64() >> 11 & 1, 0, "a table");
            page = entry.address();
        }
        false
    };
    let at = Iova::new(0x1000);
    table
        .map(&h, at, Hpa::new(0x5000), 0x1000, Rights::READ)
        .unwrap();
    let large = Iova::new(0x20_0000);
    table
        .map(&h, large, Hpa::new(0x40_0000), 0x40_0000, Rights::READ)
        .unwrap();
    table
        .set_pages(&h, Iova::new(0x2000), &[page(7), page(8)])
        .unwrap();
    let leaf = PageSize::Size2MiB;
    let set = table.set_leaf(
        &h,
        Iova::new(0x60_0000),
        leaf,
        Hpa::new(0x80_0000),
        Rights::READ,
    );
    assert!(set.unwrap().is_some());
    for at in [0x1000, 0x2000, 0x3000, 0x20_0000, 0x40_0000, 0x60_0000] {
        assert!(snoops(at), "{at:#x}");
    }
    // Splits the large page.
    table
        .set_pages(&h, Iova::new(0x20_3000), &[page(9)])
        .unwrap();
    for at in [0x20_0000, 0x20_3000, 0x3f_f000] {
        assert!(snoops(at), "{at:#x}");
    }
    table.destroy(&h).settle(&h);
}
