//! What a guest may write to PCI configuration space (S94).

use std::collections::BTreeMap;

use crate::pci_guard::{Guarded, PciGuard, Refusal};
use vtd_nest::arch::id::SourceId;

const UNIT: (u64, u64) = (0xfed9_0000, 0xfed9_1000);
const HIGH: (u64, u64) = (0x1_0000_0000, 0x1_0000_1000);

/// Configuration space of one function, in doublewords.
struct Space(BTreeMap<u16, u32>);

impl Space {
    fn new(registers: &[(u16, u32)]) -> Self {
        Self(registers.iter().copied().collect())
    }

    fn read(&self, offset: u16) -> u32 {
        self.0.get(&(offset & !3)).copied().unwrap_or(0)
    }
}

fn function() -> SourceId {
    SourceId::from_u16(0x0108)
}

fn guard(guarded: Guarded) -> PciGuard {
    let mut guard = PciGuard::default();
    guard.protect(UNIT.0, UNIT.1).unwrap();
    guard.protect(HIGH.0, HIGH.1).unwrap();
    guard.add(guarded).unwrap();
    guard
}

/// An endpoint with a 32-bit register of 64 KiB, a 64-bit one of 4 KiB, and a ROM of 64 KiB.
fn endpoint(space: &Space) -> PciGuard {
    let bars = [0x1_0000, 0, 0x1000, 0, 0, 0];
    guard(Guarded::new(
        function(),
        0x01_0802,
        false,
        bars,
        0x1_0000,
        |at| space.read(at),
    ))
}

/// Registers of that endpoint with memory accesses on or off.
fn registers(command: u32) -> Space {
    Space::new(&[
        (0x04, command),
        (0x10, 0xfea0_0000),
        (0x18, 0xfeb0_0004),
        (0x30, 0xfec1_0000),
    ])
}

#[test]
fn no_register_is_placed_over_a_protected_page() {
    let covers = |start, end| Err(Refusal::Covers { start, end });
    for (command, offset, size, value, expected) in [
        (2, 0x10, 4, 0xfeb1_0000, Ok(())),
        (2, 0x10, 4, 0xfed9_0000, covers(0xfed9_0000, 0xfeda_0000)),
        // The page is not the first one behind the register.
        (2, 0x10, 4, 0xfed9_8000, covers(0xfed9_0000, 0xfeda_0000)),
        // As bytes and words, of which each gives an address.
        (2, 0x12, 2, 0xfed9, covers(0xfed9_0000, 0xfeda_0000)),
        (2, 0x13, 1, 0xfd, Ok(())),
        // The 64-bit register, half by half.
        (2, 0x18, 4, 0xfed9_0000, covers(0xfed9_0000, 0xfed9_1000)),
        (2, 0x1c, 4, 1, Ok(())),
        // The ROM answers only where its own bit is set.
        (2, 0x30, 4, 0xfed9_0000, Ok(())),
        (2, 0x30, 4, 0xfed9_0001, covers(0xfed9_0000, 0xfeda_0000)),
        // A function that answers nothing may be measured, and hold any address.
        (0, 0x10, 4, 0xfed9_0000, Ok(())),
        (0, 0x10, 4, 0xffff_ffff, Ok(())),
        (2, 0x10, 4, 0xffff_ffff, Ok(())),
        // Ordinary registers.
        (2, 0x3c, 1, 11, Ok(())),
        (2, 0x44, 4, 0xfed9_0000, Ok(())),
        (2, 0x10, 3, 0, Err(Refusal::Access)),
        (2, 0x12, 4, 0, Err(Refusal::Access)),
        (2, 0x10, 8, 0, Err(Refusal::Access)),
    ] {
        let space = registers(command);
        let found = endpoint(&space).check(function(), offset, size, value, |at| space.read(at));
        assert_eq!(found, expected, "{offset:#x} {size} {value:#x}");
    }
}

#[test]
fn a_register_that_was_placed_there_is_not_turned_on() {
    let mut space = registers(0);
    space.0.insert(0x10, 0xfed9_0000);
    let guard = endpoint(&space);
    let check = |size, value| guard.check(function(), 4, size, value, |at| space.read(at));
    let covered = Err(Refusal::Covers {
        start: 0xfed9_0000,
        end: 0xfeda_0000,
    });
    assert_eq!((check(2, 2), check(1, 7)), (covered, covered));
    // Bus mastering and ports, without memory.
    assert_eq!(check(2, 5), Ok(()));
}

#[test]
fn both_halves_of_an_address_count() {
    let mut space = registers(2);
    space.0.insert(0x18, 0x0000_0004);
    space.0.insert(0x1c, 2);
    let guard = endpoint(&space);
    let found = guard.check(function(), 0x1c, 4, 1, |at| space.read(at));
    assert_eq!(
        found,
        Err(Refusal::Covers {
            start: HIGH.0,
            end: HIGH.1
        })
    );
}

#[test]
fn a_bridge_forwards_no_protected_page_and_keeps_its_buses() {
    let space = |command| {
        Space::new(&[
            (0x04, command),
            (0x18, 0x0002_0100),
            (0x20, 0xfe80_fe60),
            (0x24, 0x0001_fff1), // empty, 64 bits wide
        ])
    };
    let forwards = |start, end| Err(Refusal::Forwards { start, end });
    for (command, offset, size, value, expected) in [
        (2, 0x20, 4, 0xfe90_fe60, Ok(())),
        (2, 0x20, 4, 0xfed0_fe60, forwards(0xfe60_0000, 0xfee0_0000)),
        (2, 0x22, 2, 0xfed0, forwards(0xfe60_0000, 0xfee0_0000)),
        (2, 0x20, 4, 0x0000_fff0, Ok(())),
        (0, 0x20, 4, 0xfed0_fe60, Ok(())),
        // 0 to 0xfffff and upwards: the upper halves decide.
        (
            2,
            0x24,
            4,
            0xfff1_fed1,
            forwards(0xfed0_0000, 0x1_0000_0000),
        ),
        (2, 0x2c, 4, 1, forwards(0xfff0_0000, 0x1_0010_0000)),
        (2, 0x18, 4, 0x0002_0100, Ok(())),
        (2, 0x18, 4, 0x4002_0100, Ok(())), // the latency timer
        (2, 0x19, 1, 2, Err(Refusal::Buses)),
        (0, 0x1a, 1, 0xff, Err(Refusal::Buses)),
        (0, 0x18, 1, 1, Err(Refusal::Buses)),
        (
            2,
            0x38,
            4,
            0xfed9_0001,
            Err(Refusal::Covers {
                start: 0xfed9_0000,
                end: 0xfeda_0000,
            }),
        ),
    ] {
        let space = space(command);
        let guarded = Guarded::new(function(), 0x06_0400, true, [0; 6], 0x1_0000, |at| {
            space.read(at)
        });
        let found = guard(guarded).check(function(), offset, size, value, |at| space.read(at));
        assert_eq!(found, expected, "{offset:#x} {size} {value:#x}");
    }
}

#[test]
fn registers_that_place_memory_in_other_ways_are_frozen() {
    // Capabilities: a harmless one, then enhanced allocation; extended: SR-IOV at 0x140, resizable
    // registers at 0x200.
    let space = Space::new(&[
        (0x34, 0x40),
        (0x40, 0x0000_5005),
        (0x50, 0x0000_0014),
        (0x100, 0x1401_0001),
        (0x140, 0x2001_0010),
        (0x200, 0x0001_0015),
    ]);
    let check = |class, offset| {
        let guarded = Guarded::new(function(), class, false, [0; 6], 0, |at| space.read(at));
        guard(guarded).check(function(), offset, 4, 0, |at| space.read(at))
    };
    for (class, offset, expected) in [
        (0x02_0000, 0x44, Ok(())),
        (0x02_0000, 0x54, Err(Refusal::Frozen(0x52))),
        (0x02_0000, 0x104, Ok(())),
        (0x02_0000, 0x148, Err(Refusal::Frozen(0x148))),
        (0x02_0000, 0x164, Err(Refusal::Frozen(0x148))),
        (0x02_0000, 0x208, Err(Refusal::Frozen(0x204))),
        (0x06_0000, 0x60, Err(Refusal::Frozen(0x40))),
        (0x06_0100, 0xf0, Err(Refusal::Frozen(0xf0))),
    ] {
        assert_eq!(check(class, offset), expected, "{class:#x} {offset:#x}");
    }
}

#[test]
fn lists_that_lead_in_circles_end() {
    let space = Space::new(&[(0x34, 0x40), (0x40, 0x0000_4005), (0x100, 0x1001_0001)]);
    let guarded = Guarded::new(function(), 0, false, [0; 6], 0, |at| space.read(at));
    assert!(guarded.frozen.is_empty());
}

#[test]
fn a_function_that_was_not_there_is_not_written() {
    let space = registers(0);
    let other = SourceId::from_u16(0x0110);
    let found = endpoint(&space).check(other, 0x40, 4, 0, |at| space.read(at));
    assert_eq!(found, Err(Refusal::UnknownFunction));
}
