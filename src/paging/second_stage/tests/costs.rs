//! What an edit of a run costs: loads, stores, flushed lines, fences, frames.

use super::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cost {
    loads: u64,
    stores: u64,
    lines: u64,
    fences: u64,
}

/// What a call costs, allocations apart: they are the pool's.
fn cost<T>(h: &TestHypervisor, call: impl FnOnce() -> T) -> (T, Cost) {
    let now = || {
        let lines = h.flushed.borrow().len() as u64;
        [h.loads.get(), h.stores.get(), lines, h.fences.get()]
    };
    let before = now();
    let result = call();
    let after = now();
    let [loads, stores, lines, fences] = core::array::from_fn(|index| after[index] - before[index]);
    let cost = Cost {
        loads,
        stores,
        lines,
        fences,
    };
    (result, cost)
}

const RUN: u64 = 512;
const LEN: u64 = RUN << 12;
const LEVELS: u64 = 4;
const AT: Gpa = Gpa::new(0x4000_0000);
const TO: Hpa = Hpa::new(0x8000_1000);

#[test]
fn a_run_of_512_pages_costs_one_walk_and_one_store_and_at_most_one_flush_a_line() {
    for config in [CONFIG, CONFIG.unsnooped()] {
        let lines = if config.needs_flush() { RUN / 8 } else { 0 };
        let h = TestHypervisor::new(16);
        let mut table = SecondStage::<Gpa>::new(&h, OWNER, config).unwrap();
        // The table pages are there, and empty.
        table.map(&h, AT, TO, 0x1000, Rights::READ_WRITE).unwrap();
        let gone = table.unmap(&h, AT, 0x1000, OnPartialLeaf::Refuse);
        gone.unwrap().settle(&h);

        let (mapped, mapping) = cost(&h, || table.map(&h, AT, TO, LEN, Rights::READ_WRITE));
        mapped.unwrap();
        let expected = Cost {
            // The overlap check reads each entry once.
            loads: LEVELS - 1 + RUN,
            stores: RUN,
            lines,
            fences: 1,
        };
        assert_eq!(mapping, expected, "map");

        let protect = |table: &mut SecondStage<Gpa>, rights| {
            table
                .protect(&h, AT, LEN, rights, OnPartialLeaf::Refuse)
                .unwrap()
        };
        // The two ends of the range are looked up, for large pages that it could cut.
        let ends = |range_end_is_gib: bool| if range_end_is_gib { 0 } else { LEVELS };
        for (rights, atomic) in [(Rights::READ, RUN), (Rights::READ_WRITE, 0)] {
            let (stale, protection) = cost(&h, || protect(&mut table, rights));
            stale.settle(&h);
            assert!(protection.loads <= LEVELS - 1 + RUN + 2 * ends(false) + atomic);
            assert_eq!(
                (protection.stores, protection.lines, protection.fences),
                (RUN, lines, 1),
                "{rights:?}"
            );
        }

        // All but one page, so that the table page stays.
        let len = LEN - 0x1000;
        let (stale, unmapping) = cost(&h, || table.unmap(&h, AT, len, OnPartialLeaf::Refuse));
        stale.unwrap().settle(&h);
        assert!(unmapping.loads <= LEVELS - 1 + RUN + 2 * ends(false));
        assert_eq!(
            (unmapping.stores, unmapping.lines, unmapping.fences),
            (RUN - 1, lines, 1),
            "unmap"
        );
    }
}

#[test]
fn a_missing_table_page_is_filled_before_it_is_linked_and_flushed_once() {
    let h = TestHypervisor::new(16);
    let mut table = SecondStage::<Gpa>::new(&h, OWNER, CONFIG.unsnooped()).unwrap();
    // The pages of level 3 and 2 are there.
    let beside = Gpa::new(AT.as_u64() + LEN);
    table
        .map(&h, beside, TO, 0x1000, Rights::READ_WRITE)
        .unwrap();
    let (mapped, cost) = cost(&h, || table.map(&h, AT, TO, LEN, Rights::READ_WRITE));
    mapped.unwrap();
    // Zeroing by the pool, the link of the reserve and its removal apart: leaves and one entry above.
    assert_eq!(cost.stores - 512 - 2, RUN + 1);
    assert_eq!(cost.lines, RUN / 8 + 1);
    // Before the entry that links it, and at the end.
    assert_eq!(cost.fences, 2);
}

#[test]
fn counting_what_is_missing_does_not_depend_on_the_length() {
    let h = TestHypervisor::new(16);
    let config = CONFIG.with_leaves_up_to(PageSize::Size4KiB);
    let mut table = SecondStage::<Gpa>::new(&h, OWNER, config).unwrap();
    let whole = 1u64 << 45;
    let (mapped, cost) = cost(&h, || {
        let (at, to) = (Gpa::new(0), Hpa::new(1 << 45));
        table.map(&h, at, to, whole, Rights::READ_WRITE)
    });
    assert!(matches!(mapped, Err(MapError::Frames(_))), "{mapped:?}");
    assert!(cost.loads <= 512, "{cost:?}");
    assert_eq!(h.pool.free_frames(), 15);
}
