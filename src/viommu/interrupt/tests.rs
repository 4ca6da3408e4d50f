extern crate std;
use super::super::host::Host;
use super::super::testing::*;
use super::super::unit::Poll;
use super::*;
use crate::arch::descriptor::Descriptor;
use crate::arch::interrupt::{DeliveryMode, Interrupt};

/// `IR` and `EIM`, and a largest mask of 15.
const ECAP: u64 = 1 << 3 | 1 << 4 | 0xf << 20;
const TABLE: u64 = 0x10_0000;

/// A unit with a queue and a table of 2^(`order` + 1) entries in force, remapping on.
fn remapping(order: u64) -> Bench {
    let mut t = Bench::scalable_with(Setup {
        extended: ECAP,
        ..Setup::default()
    });
    t.unit.write(IRTA, 8, TABLE | order);
    t.command(SIRTP);
    t.command(IRE);
    t.forget();
    t
}

/// Present, fixed, edge, to processor 3, for `source_id` alone (§9.9).
fn entry(vector: u64, source_id: u16) -> [u64; 2] {
    [1 | vector << 16 | 3 << 40, u64::from(source_id) | 1 << 18]
}

fn wanted(vector: u8, source_id: u16) -> GuestInterrupt {
    GuestInterrupt {
        source: SourceValidation::exactly(sid(source_id)),
        interrupt: Interrupt::fixed(3, vector),
    }
}

fn set(t: &Bench, index: u64, entry: [u64; 2]) {
    t.store(TABLE + 16 * index, &entry);
}

fn invalidate(t: &mut Bench, index: u16, mask: u8) {
    let granularity = InterruptEntryGranularity::Index { index, mask };
    t.submit(Descriptor::InterruptEntryCache { granularity });
}

fn indices(t: &Bench) -> std::vec::Vec<u16> {
    t.host.entries.keys().copied().collect()
}

#[test]
fn an_entry_is_followed_when_it_is_invalidated_and_not_before() {
    // S86, G30.
    let mut t = remapping(7);
    set(&t, 5, entry(0x41, D0));
    t.run();
    assert_eq!(indices(&t), []);
    invalidate(&mut t, 5, 0);
    assert_eq!(t.host.entries[&5], wanted(0x41, D0));
    set(&t, 5, entry(0x42, D1));
    t.run();
    assert_eq!(t.host.entries[&5], wanted(0x41, D0));
    invalidate(&mut t, 5, 0);
    assert_eq!(t.host.entries[&5], wanted(0x42, D1));
    set(&t, 5, [0; 2]);
    invalidate(&mut t, 5, 0);
    assert_eq!(indices(&t), []);
    assert_eq!(t.unit.statistics().interrupt_entries_refused, 0);
}

#[test]
fn an_invalidation_reaches_an_aligned_block_within_table_and_host() {
    // §6.5.2.8. The table has 256 entries, the host 200.
    for (index, mask, expected) in [
        (70u16, 0u8, 70..71u16),
        (70, 3, 64..72),
        (190, 6, 128..192),
        (199, 4, 192..200),
        (200, 0, 0..0),
        (255, 15, 0..200),
    ] {
        let mut t = remapping(7);
        for at in 0..256 {
            set(&t, at, entry(0x41, D0));
        }
        invalidate(&mut t, index, mask);
        assert_eq!(
            indices(&t),
            expected.collect::<std::vec::Vec<_>>(),
            "{index}"
        );
    }
    // What lies behind the table in memory is no entry of it.
    let mut t = remapping(3);
    for at in 0..64 {
        set(&t, at, entry(0x41, D0));
    }
    t.submit(Descriptor::InterruptEntryCache {
        granularity: InterruptEntryGranularity::Global,
    });
    assert_eq!(indices(&t), (0..16).collect::<std::vec::Vec<_>>());
}

#[test]
fn what_an_entry_must_not_be_is_absent_on_the_host() {
    // §9.9: reserved bits, delivery modes and SVT; without EIME destinations have 8 bits.
    for (low, high) in [
        (1 << 12, 0),
        (1 << 15, 0),
        (1 << 32, 0),
        (3 << 5, 0),
        (0, 2 << 18),
        (0, 1 << 20),
    ] {
        let mut t = remapping(7);
        set(&t, 1, entry(0x41, D0));
        invalidate(&mut t, 1, 0);
        assert_eq!(indices(&t), [1]);
        let [valid_low, valid_high] = entry(0x41, D0);
        set(&t, 1, [valid_low | low, valid_high | high]);
        invalidate(&mut t, 1, 0);
        assert_eq!(indices(&t), [], "{low:#x} {high:#x}");
        assert_eq!(t.unit.statistics().interrupt_entries_refused, 1);
        assert_eq!(t.take_fault(), None, "the interrupt itself will tell");
    }
}

#[test]
fn extended_mode_widens_destinations() {
    let mut t = Bench::scalable_with(Setup {
        extended: ECAP,
        ..Setup::default()
    });
    t.unit.write(IRTA, 8, TABLE | 1 << 11);
    t.command(SIRTP);
    t.command(IRE);
    set(&t, 1, [1 | 0x41 << 16 | 0x8000_0001 << 32, 1 << 18]);
    invalidate(&mut t, 1, 0);
    assert_eq!(t.host.entries[&1].interrupt.destination, 0x8000_0001);
}

#[test]
fn commands_take_the_table_over_and_turn_remapping_on_and_off() {
    // §6.7, §11.4.4.1: status follows once hardware has forgotten what was before.
    let mut t = Bench::scalable_with(Setup {
        extended: ECAP,
        ..Setup::default()
    });
    set(&t, 1, entry(0x41, D0));
    t.unit.write(IRTA, 8, TABLE | 7);
    t.command(SIRTP);
    assert_eq!(t.unit.read(GSTS, 4) & (SIRTP | IRE), SIRTP);
    assert_eq!(indices(&t), [], "it is off");
    t.host.waits = 3;
    t.command_later(IRE);
    for _ in 0..3 {
        assert_eq!(t.unit.poll(&mut t.host, 100), Poll::Wait);
        assert_eq!(t.unit.read(GSTS, 4) & IRE, 0);
    }
    t.run();
    assert!(t.unit.is_remapping_interrupts());
    assert_eq!(indices(&t), [1]);
    // Another table.
    t.store(TABLE + 0x2000 + 32, &entry(0x42, D0));
    t.unit.write(IRTA, 8, (TABLE + 0x2000) | 7);
    t.command_later(SIRTP);
    assert_eq!(t.unit.poll(&mut t.host, 100), Poll::Wait);
    assert_eq!(t.unit.read(GSTS, 4) & SIRTP, 0);
    t.run();
    assert_eq!(
        (t.unit.read(GSTS, 4) & SIRTP, indices(&t)),
        (SIRTP, [2].into())
    );
    t.unit
        .write(GCMD, 4, t.unit.read(GSTS, 4) & !(IRE | SIRTP | SRTP));
    t.run();
    assert!(!t.unit.is_remapping_interrupts());
    assert_eq!(indices(&t), []);
    // While it is off an invalidation is nothing.
    let before = t.host.entry_calls;
    invalidate(&mut t, 2, 0);
    assert_eq!((indices(&t), t.host.entry_calls), ([].into(), before));
}

#[test]
fn compatibility_format_reads_back_and_is_blocked() {
    // S87, G1.
    let mut t = remapping(7);
    t.command(CFI);
    assert_eq!(t.unit.read(GSTS, 4) & CFI, CFI);
    let message = crate::arch::interrupt::InterruptMessage {
        address: 0xfee0_0000,
        data: 0x41,
    };
    let fault = t.unit.remap_interrupt(t.host.memory(), sid(D0), message);
    assert_eq!(fault.unwrap_err().reason.code(), 0x25);
}

#[test]
fn without_the_capability_there_is_nothing_of_it() {
    let mut t = Bench::scalable();
    t.unit.write(IRTA, 8, TABLE | 7);
    t.command(SIRTP);
    t.command(IRE);
    t.command(CFI);
    assert_eq!(t.unit.read(IRTA, 8), 0);
    assert_eq!(t.unit.read(GSTS, 4) & (SIRTP | IRE | CFI), 0);
    assert_eq!(t.host.entry_calls, 0);
}

#[test]
fn a_device_that_comes_and_a_reset_have_all_entries_looked_at() {
    let mut t = remapping(7);
    set(&t, 1, entry(0x41, D1));
    t.assign(1, D1);
    assert_eq!(indices(&t), [1]);
    t.unit.reset();
    assert!(!t.unit.is_remapping_interrupts());
    t.run();
    assert_eq!(indices(&t), []);
}

#[test]
fn a_reset_while_remapping_is_turned_off_leaves_no_entry() {
    let mut t = remapping(7);
    for index in 0..150 {
        set(&t, index, entry(0x41, D0));
    }
    invalidate(&mut t, 0, 15);
    t.unit
        .write(GCMD, 4, t.unit.read(GSTS, 4) & !(IRE | SIRTP | SRTP));
    // The job, and the first slice of it.
    assert_eq!(t.unit.poll(&mut t.host, 2), Poll::Again);
    assert!(!indices(&t).is_empty());
    t.unit.reset();
    t.run();
    assert_eq!(indices(&t), []);
}

#[test]
fn a_table_in_no_memory_has_no_entries() {
    let mut t = remapping(7);
    set(&t, 1, entry(0x41, D0));
    invalidate(&mut t, 1, 0);
    t.unit.write(IRTA, 8, MEMORY_BYTES as u64 | 7);
    t.command(SIRTP);
    assert_eq!(indices(&t), []);
    assert!(t.unit.statistics().tables_skipped > 0);
    let (found, _) = t.unit.walk_interrupt(t.host.memory(), sid(D0), 1);
    assert_eq!(found.unwrap_err().reason.code(), 0x23);
}

#[test]
fn what_the_host_cannot_do_is_told_by_index_and_what_it_refuses_is_not() {
    let refused = InterruptError::Refused(Interrupt::fixed(3, 0x41));
    for (error, fault) in [
        (refused, None),
        (InterruptError::Unit, Some((D0, None, 0x23))),
    ] {
        let mut t = remapping(7);
        t.host.refused_entries.insert(9, error);
        set(&t, 9, entry(0x41, D0));
        invalidate(&mut t, 9, 0);
        assert_eq!(t.take_fault(), fault);
        if fault.is_some() {
            assert_eq!(t.unit.read(FRCD, 8) >> 48, 9, "FI has the index");
        }
    }
}

#[test]
fn a_full_table_is_followed_in_slices() {
    // G9: one read of the table a step, whatever the guest asks for.
    let mut t = remapping(7);
    let calls = t.host.entry_calls;
    let granularity = InterruptEntryGranularity::Global;
    t.enqueue(&[Descriptor::InterruptEntryCache { granularity }
        .encode()
        .words()]);
    let reads = t.host.memory().reads.get();
    // The descriptor and the first slice.
    assert_eq!(t.unit.poll(&mut t.host, 2), Poll::Again);
    assert_eq!(t.host.entry_calls - calls, 64);
    assert_eq!(t.host.memory().reads.get() - reads, 2);
    t.run();
    assert_eq!(t.host.entry_calls - calls, 200);
}

#[test]
fn messages_are_remapped_in_the_order_of_the_specification() {
    // §5.1.4, Table 15.
    let mut t = remapping(3);
    set(&t, 1, entry(0x41, D0));
    set(&t, 2, [2 | 1 << 12, 0]);
    set(&t, 3, [1 | 1 << 12, u64::from(D1) | 1 << 18]);
    set(&t, 4, [1 | 1 << 12 | 2, u64::from(D0) | 1 << 18]);
    let remappable = |index: u64| 0xfee0_0010 | (index & 0x7fff) << 5 | index >> 15 << 2;
    for (address, data, expected) in [
        (remappable(1), 0xffff_ffff, Ok(0x41)),
        (remappable(0) | 8, 1, Ok(0x41)),
        (remappable(0) | 8, 0x1_0001, Err((0x20, 0))),
        (remappable(16), 0, Err((0x21, 16))),
        (remappable(0xffff) | 8, 1, Err((0x21, 0))),
        (remappable(2), 0, Err((0x22, 2))),
        (remappable(3), 0, Err((0x26, 3))),
        (remappable(4), 0, Err((0x24, 4))),
        (0xfee0_0000, 0x41, Err((0x25, 0))),
        (0xfee0_0000, 0x600, Err((0x25, 0))),
        (0xfed0_0010, 0, Err((0x29, 0))),
    ] {
        let message = crate::arch::interrupt::InterruptMessage { address, data };
        let found = t.unit.remap_interrupt(t.host.memory(), sid(D0), message);
        let found = found
            .map(|interrupt| interrupt.unwrap().vector)
            .map_err(|fault| (fault.reason.code(), fault.address.as_u64() >> 48));
        assert_eq!(found, expected, "{address:#x} {data:#x}");
    }
    let disabled = |index| t.unit.walk_interrupt(t.host.memory(), sid(D0), index).1;
    assert_eq!([1, 2, 4].map(disabled), [false, true, true]);
    // Off: as processors read it.
    t.unit
        .write(GCMD, 4, t.unit.read(GSTS, 4) & !(IRE | SIRTP | SRTP));
    t.run();
    let interrupt = |address, data| {
        let message = crate::arch::interrupt::InterruptMessage { address, data };
        t.unit.remap_interrupt(t.host.memory(), sid(D0), message)
    };
    let smi = interrupt(0xfee0_0010, 0x241).unwrap().unwrap();
    assert_eq!(smi.delivery, DeliveryMode::SystemManagement);
    assert_eq!(interrupt(0xfee0_0010, 0x641), Ok(None));
    assert_eq!(interrupt(0, 0).unwrap_err().reason.code(), 0x29);
}
