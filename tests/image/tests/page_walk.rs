//! The guest's page tables, walked to fetch an instruction.

use std::collections::BTreeMap;

use crate::page_walk::translate;

const LA57: u64 = 1 << 12;

/// Tables from (address of an entry, entry).
fn walk(entries: &[(u64, u64)], cr4: u64, linear: u64) -> Option<u64> {
    let memory: BTreeMap<u64, u64> = entries.iter().copied().collect();
    translate(0x1fff, cr4, linear, |at| memory.get(&at).copied())
}

#[test]
fn pages_of_every_size_are_found() {
    // Indices 1, 2, 3, 4 of the four levels; flags and bit 63 do not matter.
    let linear = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x567;
    let upper = [(0x1008, 0x2067), (0x2010, 0x3067)];
    let [level4, level3] = upper;
    for (entries, expected) in [
        (
            vec![
                level4,
                level3,
                (0x3018, 0x4067),
                (0x4020, 1 << 63 | 0x5000 | 0x67),
            ],
            0x5567,
        ),
        // 2 MiB: bit 12 of the entry belongs to its attributes.
        (
            vec![level4, level3, (0x3018, 0x60_0000 | 0x1000 | 0xe7)],
            0x60_4567,
        ),
        (vec![level4, (0x2010, 0x8000_0000 | 0xe7)], 0x8060_4567),
    ] {
        assert_eq!(walk(&entries, 0, linear), Some(expected));
    }
    let five = [
        (0x1000 + 5 * 8, 0x6067),
        (0x6008, 0x2067),
        level3,
        (0x3018, 0x60_00e7),
    ];
    assert_eq!(walk(&five, LA57, 5 << 48 | linear), Some(0x60_4567));
}

#[test]
fn what_is_not_there_is_not_fetched() {
    let complete = [
        (0x1000, 0x2001),
        (0x2000, 0x3001),
        (0x3000, 0x4001),
        (0x4000, 0x5001),
    ];
    assert_eq!(walk(&complete, 0, 0), Some(0x5000));
    for index in 0..complete.len() {
        let mut not_present = complete;
        not_present[index].1 &= !1;
        assert_eq!(walk(&not_present, 0, 0), None, "{index}");
        let mut outside = complete.to_vec();
        outside.remove(index);
        assert_eq!(walk(&outside, 0, 0), None, "{index}");
    }
}
