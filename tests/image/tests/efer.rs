//! `EFER` as a guest without SVM sees it.

use crate::efer::{LONG_MODE_ACTIVE, at_start, shown, written};

const SCE: u64 = 1 << 0;
const LME: u64 = 1 << 8;
const NXE: u64 = 1 << 11;
const SVME: u64 = 1 << 12;

#[test]
fn the_guest_never_sees_nor_sets_svm() {
    assert_eq!(shown(at_start()), LME | LONG_MODE_ACTIVE);
    assert_eq!(written(at_start(), SVME | LME, true), None);
    for value in [0, SCE, NXE, SCE | NXE] {
        let new = written(at_start(), value | LME, true).unwrap();
        assert_eq!(new & SVME, SVME, "{value:#x}");
        assert_eq!(shown(new), value | LME | LONG_MODE_ACTIVE);
    }
}

#[test]
fn long_mode_changes_only_without_paging() {
    let active = at_start();
    assert_eq!(written(active, 0, true), None);
    assert_eq!(written(SVME, LME, true), None);
    assert_eq!(written(SVME, LME, false), Some(SVME | LME));
    // What is written to the active bit does not count.
    assert_eq!(
        written(SVME, LME | LONG_MODE_ACTIVE, false),
        Some(SVME | LME)
    );
}

#[test]
fn reserved_bits_are_a_fault() {
    for bit in (1..8).chain([9, 13, 15, 16]).chain(22..64) {
        assert_eq!(written(at_start(), LME | 1 << bit, true), None, "{bit}");
    }
}
