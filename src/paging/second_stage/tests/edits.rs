//! Each edit by itself: what it changes, what it owes, what it refuses.

use std::vec::Vec;

use super::*;
use crate::arch::address::AddressWidth;
use crate::mem::frames::lost_frames;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const RW: Rights = Rights::READ_WRITE;

fn gpa(at: u64) -> Gpa {
    Gpa::new(at)
}

/// Start, output, size and rights of all leaves of a range.
fn leaves(
    h: &TestHypervisor,
    table: &SecondStage<Gpa>,
    first: u64,
    len: u64,
) -> Vec<(u64, u64, PageSize, Rights)> {
    let leaves = table.leaves(h, gpa(first), len, u32::MAX).unwrap();
    let each = leaves.map(|leaf| {
        let (input, output) = (leaf.input.as_u64(), leaf.output.as_u64());
        (input, output, leaf.size, leaf.rights)
    });
    each.collect()
}

fn mapped(h: &TestHypervisor, config: SecondStageConfig, len: u64) -> SecondStage<Gpa> {
    let mut table = SecondStage::new(h, OWNER, config).unwrap();
    table.map(h, gpa(0), Hpa::new(8 * GIB), len, RW).unwrap();
    table
}

#[test]
fn protect_gives_mapped_pages_their_rights_by_one_store_each() {
    let h = TestHypervisor::new(16);
    let mut table = mapped(&h, CONFIG.with_leaves_up_to(PageSize::Size4KiB), 0x8000);
    for (rights, changed) in [
        (Rights::READ, 3),
        (Rights::READ, 0),
        (RW, 3),
        (Rights::WRITE, 3),
        (Rights::READ, 3),
    ] {
        let before = h.stores.get();
        // Five pages, of which the last two are not mapped.
        let stale = table
            .protect(&h, gpa(0x5000), 0x5000, rights, OnPartialLeaf::Refuse)
            .unwrap();
        assert_eq!(
            (stale.leaves, h.stores.get() - before),
            (changed, changed.into())
        );
        assert_eq!((stale.first, stale.len_bytes), (gpa(0x5000), 0x5000));
        assert!(stale.is_leaf_only());
        assert_eq!(stale.owes_invalidation(), changed > 0);
        stale.settle(&h);
        for page in 0..10 {
            let found = table
                .translate(&h, gpa(page << 12))
                .map(|found| found.rights);
            let expected = match page {
                0..5 => Some(RW),
                5..8 => Some(rights),
                _ => None,
            };
            assert_eq!(found, expected, "page {page}");
        }
    }
    let none = table.protect(&h, gpa(0), 0x1000, Rights::NONE, OnPartialLeaf::Refuse);
    assert_eq!(none.map(core::mem::forget), Err(MapError::NoRights));
}

#[test]
fn a_range_that_cuts_a_large_page_is_refused_split_or_widened_as_asked() {
    // The range, and the leaves by size (1 GiB, 2 MiB, 4 KiB) below 2 GiB after a split.
    for (first, len, sizes) in [
        (0x1000, 0x1000, (1, 511, 512)),
        (0, 0x1000, (1, 511, 512)),
        (0, 2 * MIB, (1, 512, 0)),
        (GIB - 0x1000, 0x2000, (0, 2 * 511, 2 * 512)),
        (2 * MIB - 0x1000, 0x2000, (1, 510, 1024)),
        (0x1000, 2 * GIB - 0x2000, (0, 2 * 511, 2 * 512)),
        (GIB, GIB, (2, 0, 0)),
    ] {
        let what = std::format!("{first:#x}+{len:#x}");
        let h = TestHypervisor::new(16);
        let mut table = mapped(&h, CONFIG, 2 * GIB);
        let cuts = sizes.0 != 2;
        let (stores, free) = (h.stores.get(), h.pool.free_frames());
        let rights = Rights::READ;
        let refused = table.protect(&h, gpa(first), len, rights, OnPartialLeaf::Refuse);
        match refused {
            Err(MapError::PartialLeaf { size, .. }) => {
                assert!(cuts && size == PageSize::Size1GiB, "{what}");
                assert_eq!(
                    (h.stores.get(), h.pool.free_frames()),
                    (stores, free),
                    "{what}"
                );
            }
            Ok(stale) => {
                assert!(!cuts, "{what}");
                stale.settle(&h);
            }
            Err(other) => panic!("{what}: {other}"),
        }
        let stale = table
            .protect(&h, gpa(first), len, rights, OnPartialLeaf::Split)
            .unwrap();
        assert_eq!(stale.is_leaf_only(), !cuts, "{what}");
        if cuts {
            // All of the leaves that were split, because they stay in use side by side (§6.5.3.3).
            let (start, end) = (first / GIB * GIB, (first + len).div_ceil(GIB) * GIB);
            let start = if first % GIB == 0 { first } else { start };
            assert_eq!(
                (stale.first, stale.len_bytes),
                (gpa(start), end - start),
                "{what}"
            );
        }
        stale.settle(&h);
        let all = leaves(&h, &table, 0, 2 * GIB);
        let of = |size| all.iter().filter(|leaf| leaf.2 == size).count();
        let found = PageSize::ALL.map(of);
        assert_eq!((found[2], found[1], found[0]), sizes, "{what}");
        for (input, output, size, rights) in all {
            let inside = first <= input && input + size.len_bytes() <= first + len;
            assert_eq!(output, input + 8 * GIB, "{what}");
            assert_eq!(
                rights,
                if inside { Rights::READ } else { RW },
                "{what} {input:#x}"
            );
        }
        // The rest of the table goes as a whole: no frame is lost.
        table.destroy(&h).settle(&h);
        assert_eq!(h.pool.free_frames(), 16, "{what}");

        let mut table = mapped(&h, CONFIG, 2 * GIB);
        let stale = table
            .unmap(&h, gpa(first), len, OnPartialLeaf::Widen)
            .unwrap();
        let (start, end) = (first / GIB * GIB, (first + len).div_ceil(GIB) * GIB);
        assert_eq!(
            (stale.first, stale.len_bytes),
            (gpa(start), end - start),
            "{what}"
        );
        assert_eq!(
            leaves(&h, &table, 0, 2 * GIB).len() as u64,
            2 - (end - start) / GIB
        );
        stale.settle(&h);
        table.destroy(&h).settle(&h);
    }
}

#[test]
fn split_leaves_no_larger_page_in_the_range() {
    for (first, len, size, sizes, tables) in [
        (0, GIB, PageSize::Size2MiB, (1, 512, 0), 1),
        (
            GIB + 5 * MIB,
            2 * MIB,
            PageSize::Size4KiB,
            (1, 510, 1024),
            3,
        ),
        (0x1000, 0x1000, PageSize::Size2MiB, (1, 512, 0), 1),
        (0, 2 * GIB, PageSize::Size1GiB, (2, 0, 0), 0),
        (GIB - 0x1000, 0x2000, PageSize::Size4KiB, (0, 1022, 1024), 4),
    ] {
        let h = TestHypervisor::new(16);
        let mut table = mapped(&h, CONFIG, 2 * GIB);
        let before = h.pool.free_frames();
        let stale = table.split(&h, gpa(first), len, size).unwrap();
        assert_eq!(before - h.pool.free_frames(), tables);
        assert_eq!(stale.owes_invalidation(), tables > 0);
        assert_eq!(stale.is_leaf_only(), tables == 0);
        if tables > 0 {
            let (start, end) = (first / GIB * GIB, (first + len).div_ceil(GIB) * GIB);
            assert_eq!((stale.first, stale.len_bytes), (gpa(start), end - start));
        }
        stale.settle(&h);
        let all = leaves(&h, &table, 0, 2 * GIB);
        let of = |size| all.iter().filter(|leaf| leaf.2 == size).count();
        let found = PageSize::ALL.map(of);
        assert_eq!((found[2], found[1], found[0]), sizes, "{first:#x}+{len:#x}");
        for (input, output, ..) in all {
            assert_eq!(output, input + 8 * GIB);
        }
    }
}

#[test]
fn merge_restores_large_pages_and_hardware_may_use_the_tables_until_the_invalidation() {
    let h = TestHypervisor::new(520);
    let mut table = mapped(&h, CONFIG, 2 * GIB);
    let free = h.pool.free_frames();
    let split = table.split(&h, gpa(0), GIB, PageSize::Size4KiB).unwrap();
    split.settle(&h);
    assert_eq!(free - h.pool.free_frames(), 513);
    let mut calls = 0u64;
    let mut from = 0;
    let mut done = 0;
    loop {
        let merged = table.merge(&h, gpa(from), 2 * GIB - from).unwrap();
        assert!(merged.leaves() as usize <= MERGED_TABLES);
        done += merged.leaves();
        calls += 1;
        let resume_at = merged.resume_at();
        // What hardware still has cached of the old tables leads where it did.
        for offset in [0, 511] {
            for page in merged.tables() {
                let entry = h.read64(Hpa::new(page.as_u64() + 8 * offset));
                assert!(SecondStageEntry::from_u64(entry).is_present());
            }
        }
        let stale = merged.into_stale(&h);
        assert_eq!(stale.is_leaf_only(), stale.leaves == 0);
        stale.settle(&h);
        match resume_at {
            Some(at) => from = at.as_u64(),
            None => break,
        }
        assert!(calls < 100);
    }
    assert_eq!((done, h.pool.free_frames()), (513, free));
    assert_eq!(
        leaves(&h, &table, 0, 2 * GIB),
        [
            (0, 8 * GIB, PageSize::Size1GiB, RW),
            (GIB, 9 * GIB, PageSize::Size1GiB, RW)
        ]
    );
}

#[test]
fn merge_leaves_alone_what_no_large_page_is() {
    type Change = fn(&TestHypervisor, &mut SecondStage<Gpa>);
    let changes: [(&str, Change, usize); 6] = [
        ("unchanged", |_, _| {}, 1),
        (
            "a hole",
            |h, table| {
                let gone = table.unmap(h, gpa(0x5000), 0x1000, OnPartialLeaf::Refuse);
                gone.unwrap().settle(h);
            },
            511,
        ),
        (
            "other rights",
            |h, table| {
                let at = gpa(0x1f_f000);
                let less = table.protect(h, at, 0x1000, Rights::READ, OnPartialLeaf::Refuse);
                less.unwrap().settle(h);
            },
            512,
        ),
        (
            "another page",
            |h, table| {
                let gone = table.unmap(h, gpa(0x5000), 0x1000, OnPartialLeaf::Refuse);
                gone.unwrap().settle(h);
                table
                    .map(h, gpa(0x5000), Hpa::new(0x5000), 0x1000, RW)
                    .unwrap();
            },
            512,
        ),
        (
            "a part of the range",
            |h, table| {
                let merged = table.merge(h, gpa(0x1000), 0x1f_f000).unwrap();
                assert_eq!(merged.leaves(), 0);
            },
            1,
        ),
        (
            "used pages",
            |h, table| {
                let leaf = table.look_up(h, gpa(0x5000)).unwrap();
                assert_eq!(leaf.size, PageSize::Size4KiB);
                let page = level_1_page(h, table, 0);
                h.hardware_sets(Hpa::new(page.as_u64() + 40), 3 << 8);
            },
            1,
        ),
    ];
    for (name, change, expected) in changes {
        let h = TestHypervisor::new(16);
        let mut table = mapped(&h, CONFIG, 2 * MIB);
        let split = table.split(&h, gpa(0), 0x1000, PageSize::Size4KiB);
        split.unwrap().settle(&h);
        change(&h, &mut table);
        let merged = table.merge(&h, gpa(0), 2 * MIB).unwrap();
        merged.into_stale(&h).settle(&h);
        assert_eq!(leaves(&h, &table, 0, 2 * MIB).len(), expected, "{name}");
    }
    // Misaligned on the host, or beyond what hardware has.
    for (config, output) in [
        (CONFIG, 8 * GIB + 0x1000),
        (CONFIG.with_leaves_up_to(PageSize::Size4KiB), 8 * GIB),
    ] {
        let h = TestHypervisor::new(16);
        let mut table = SecondStage::<Gpa>::new(&h, OWNER, config).unwrap();
        table
            .map(&h, gpa(0), Hpa::new(output), 2 * MIB, RW)
            .unwrap();
        let merged = table.merge(&h, gpa(0), 2 * MIB).unwrap();
        assert_eq!(merged.leaves(), 0);
        assert!(!merged.into_stale(&h).owes_invalidation());
    }
}

/// The page of level 1 for an address, which is there.
fn level_1_page(h: &TestHypervisor, table: &SecondStage<Gpa>, address: u64) -> Hpa {
    let mut page = table.root().address();
    for level in (2..=4).rev() {
        page = entry_at(h, page, address, level).address();
    }
    page
}

#[test]
fn taken_bits_are_reported_once_and_owe_an_invalidation() {
    let h = TestHypervisor::new(16);
    let config = CONFIG.tracking_access().unwrap();
    let mut table = SecondStage::<Gpa>::new(&h, OWNER, config).unwrap();
    table
        .map(&h, gpa(0), Hpa::new(8 * GIB), 2 * MIB + 0x8000, RW)
        .unwrap();
    let root = table.root().address();
    let large = {
        let page: Hpa = entry_at(&h, root, 0, 4).address();
        let page: Hpa = entry_at(&h, page, 0, 3).address();
        slot_address(page, 0, 2)
    };
    let small = |index: u64| {
        let page = level_1_page(&h, &table, 2 * MIB);
        Hpa::new(page.as_u64() + 8 * index)
    };
    let (accessed, dirty) = (SecondStageEntry::ACCESSED, SecondStageEntry::DIRTY);
    h.hardware_sets(large, accessed | dirty);
    h.hardware_sets(small(1), accessed);
    h.hardware_sets(small(3), accessed | dirty);
    h.hardware_sets(small(7), accessed | dirty);
    let take = |table: &mut SecondStage<Gpa>, first, len, take| {
        let mut found = Vec::new();
        let stale = table
            .take_accessed_dirty(&h, gpa(first), len, take, |leaf| {
                found.push((leaf.input.as_u64(), leaf.touched));
            })
            .unwrap();
        assert_eq!(stale.leaves as usize, found.len());
        assert!(stale.is_leaf_only());
        let range = (stale.first.as_u64(), stale.len_bytes);
        stale.settle(&h);
        (found, range)
    };
    let both = AccessedDirty::BOTH;
    // Not the last page: it is beyond the range. A part of the large one stands for all of it.
    let (found, range) = take(&mut table, 0x1000, 2 * MIB + 0x5000, AccessedDirty::DIRTY);
    assert_eq!(found, [(0, both), (2 * MIB + 0x3000, both)]);
    assert_eq!(range, (0, 2 * MIB + 0x4000));
    assert_eq!(
        take(&mut table, 0, 2 * MIB + 0x7000, AccessedDirty::DIRTY).0,
        []
    );
    let (found, _) = take(&mut table, 0, 2 * MIB + 0x8000, both);
    let page = |index: u64| 2 * MIB + 0x1000 * index;
    let only = AccessedDirty::ACCESSED;
    assert_eq!(
        found,
        [(0, only), (page(1), only), (page(3), only), (page(7), both)]
    );
    assert_eq!(take(&mut table, 0, 2 * MIB + 0x8000, both).0, []);
    // The mapping is untouched.
    assert_eq!(leaves(&h, &table, 0, 4 * MIB).len(), 9);
    assert_eq!(
        output_of(&h, &table, 2 * MIB + 0x3123).map(|found| found.0),
        Some(8 * GIB + 2 * MIB + 0x3123)
    );
}

// Hardware may set a bit between the library's read and its store.
#[test]
fn what_hardware_may_have_set_meanwhile_counts_as_set() {
    let config = CONFIG.tracking_access().unwrap();
    let touched = |h: &TestHypervisor, table: &SecondStage<Gpa>, at| {
        let leaf = table.leaves(h, gpa(at), 0x1000, 100).unwrap().next();
        leaf.unwrap().touched
    };
    let h = TestHypervisor::new(16);
    let mut table = mapped(&h, config, 2 * MIB);
    let both = AccessedDirty::BOTH;
    assert_eq!(touched(&h, &table, 0), AccessedDirty::default());
    table
        .split(&h, gpa(0), 0x1000, PageSize::Size4KiB)
        .unwrap()
        .settle(&h);
    assert_eq!(touched(&h, &table, 0x9000), both);
    let taken = table.take_accessed_dirty(&h, gpa(0), 2 * MIB, both, |_| {});
    taken.unwrap().settle(&h);
    // Fewer rights are one atomic operation, so nothing has to be assumed.
    let refuse = OnPartialLeaf::Refuse;
    table
        .protect(&h, gpa(0), 2 * MIB, Rights::READ, refuse)
        .unwrap()
        .settle(&h);
    assert_eq!(touched(&h, &table, 0x9000), AccessedDirty::default());
    let mapping = table.translate(&h, gpa(0x9000)).unwrap();
    table.note_written(&h, &mapping);
    assert_eq!(touched(&h, &table, 0x9000), both);
    let taken = table.take_accessed_dirty(&h, gpa(0), 2 * MIB, both, |_| {});
    taken.unwrap().settle(&h);
    // It was not writable, so it was not written.
    table
        .protect(&h, gpa(0), 2 * MIB, RW, refuse)
        .unwrap()
        .settle(&h);
    assert_eq!(touched(&h, &table, 0x9000), AccessedDirty::ACCESSED);
    table
        .merge(&h, gpa(0), 2 * MIB)
        .unwrap()
        .into_stale(&h)
        .settle(&h);
    assert_eq!(touched(&h, &table, 0), both);
}

#[test]
fn leaves_come_in_order_and_the_iteration_can_be_resumed() {
    let h = TestHypervisor::new(32);
    let mut table = table(&h);
    for (at, len) in [
        (0x3000, 0x2000),
        (2 * MIB, 2 * MIB),
        (GIB, GIB),
        (1 << 40, 0x1000),
    ] {
        table.map(&h, gpa(at), Hpa::new(at), len, RW).unwrap();
    }
    let expected = [0x3000, 0x4000, 2 * MIB, GIB, 1 << 40];
    for most_reads in [4, 5, 7, 100, u32::MAX] {
        let (mut from, end) = (0, 1 << 41);
        let mut found = Vec::new();
        loop {
            let before = h.loads.get();
            let mut each = table.leaves(&h, gpa(from), end - from, most_reads).unwrap();
            found.extend(each.by_ref().map(|leaf| leaf.input.as_u64()));
            assert!(h.loads.get() - before <= most_reads.into());
            match each.resume_at() {
                Some(at) => {
                    assert!(at.as_u64() > from, "it gets on");
                    from = at.as_u64();
                }
                None => break,
            }
        }
        assert_eq!(found, expected, "{most_reads} reads");
    }
    let within = table.leaves(&h, gpa(GIB + 0x5000), 0x1000, 10).unwrap();
    assert_eq!(
        within.map(|leaf| leaf.input.as_u64()).collect::<Vec<_>>(),
        [GIB]
    );
    assert!(table.leaves(&h, gpa(1), 0x1000, 10).is_err());
}

#[test]
fn every_edit_that_runs_out_of_frames_has_changed_nothing() {
    type Try = fn(&TestHypervisor, &mut SecondStage<Gpa>) -> Result<(), MapError>;
    fn settle(
        h: &TestHypervisor,
        stale: Result<StaleMappings<Gpa>, MapError>,
    ) -> Result<(), MapError> {
        stale.map(|stale| stale.settle(h))
    }
    let edits: [(Try, u32); 4] = [
        (
            |h, table| {
                let at = gpa(2 * GIB - 3 * MIB);
                table.map(h, at, Hpa::new(0x1000), 8 * MIB, RW)
            },
            // 1 GiB + 1021 MiB to 2 GiB + 5 MiB by 4-KiB pages: five of level 1, two of level 2.
            7,
        ),
        (
            |h, table| {
                settle(
                    h,
                    table.split(h, gpa(GIB - 0x1000), 0x1000, PageSize::Size4KiB),
                )
            },
            2,
        ),
        (
            |h, table| {
                let split = OnPartialLeaf::Split;
                settle(
                    h,
                    table.protect(h, gpa(0x1000), GIB - 0x2000, Rights::READ, split),
                )
            },
            3,
        ),
        (
            |h, table| settle(h, table.unmap(h, gpa(0x1000), 0x1000, OnPartialLeaf::Split)),
            2,
        ),
    ];
    for (edit, frames) in edits {
        for allowed in 0..=frames {
            let h = TestHypervisor::new(64);
            let mut table = mapped(&h, CONFIG, GIB);
            let free = h.pool.free_frames();
            h.fail_allocations_after(Some(allowed));
            let result = edit(&h, &mut table);
            h.fail_allocations_after(None);
            if allowed < frames {
                let exhausted = matches!(result, Err(MapError::Frames(_)));
                assert!(exhausted, "{allowed} of {frames}: {result:?}");
                assert_eq!(h.pool.free_frames(), free);
                assert_eq!(
                    leaves(&h, &table, 0, 1 << 40),
                    [(0, 8 * GIB, PageSize::Size1GiB, RW)]
                );
            } else {
                assert_eq!(result, Ok(()));
                assert_eq!(free - h.pool.free_frames(), frames);
            }
        }
    }
}

// G5
#[test]
fn dropped_merges_lose_their_table_pages_and_are_counted() {
    let h = TestHypervisor::new(16);
    let mut table = mapped(&h, CONFIG, 2 * MIB);
    table
        .split(&h, gpa(0), 0x1000, PageSize::Size4KiB)
        .unwrap()
        .settle(&h);
    let (lost, free) = (lost_frames(), h.pool.free_frames());
    drop(table.merge(&h, gpa(0), 2 * MIB).unwrap());
    assert!(lost_frames() > lost);
    assert_eq!(h.pool.free_frames(), free);
}

#[test]
fn tables_of_every_width_map_up_to_their_end() {
    for width in AddressWidth::ALL {
        let h = TestHypervisor::new(16);
        let config = CONFIG.with_width(width).unwrap();
        let mut table = SecondStage::<Gpa>::new(&h, OWNER, config).unwrap();
        let bits = width.bits().min(48);
        let end = 1u64 << bits;
        assert_eq!(table.root().width(), width);
        for (at, len) in [(0, 0x1000), (end - 0x1000, 0x1000)] {
            table.map(&h, gpa(at), Hpa::new(0x7000), len, RW).unwrap();
            assert_eq!(
                output_of(&h, &table, at + 5).map(|found| found.0),
                Some(0x7005)
            );
        }
        let beyond = table.map(&h, gpa(end), Hpa::new(0x7000), 0x1000, RW);
        let (address, len_bytes) = (end, 0x1000);
        let error = MapError::InputBeyondWidth {
            address,
            len_bytes,
            bits,
        };
        assert_eq!(beyond, Err(error));
        table.destroy(&h).settle(&h);
        assert_eq!(h.pool.free_frames(), 16, "{width:?}");
    }
}
