use super::super::testing::*;
use super::*;
use crate::arch::address::AddressWidth;
use crate::arch::context::{DirectoryOrder, LegacyContextEntry};
use crate::arch::first_stage::FirstStageEntry;
use crate::arch::pasid::{PasidEntry, PasidEntryOptions};
use crate::arch::second_stage::SecondStageEntry;

const OUTSIDE: u64 = MEMORY_BYTES as u64;
const FPD: u64 = 2;

fn read(t: &Bench, address: u64) -> Result<u64, u8> {
    t.translate(D0, Some(5), address, Access::READ)
}

/// The fault reason, and whether it is to be suppressed.
fn fault(t: &Bench, value: Option<u32>) -> (u8, bool) {
    let request = DmaRequest {
        source_id: sid(D0),
        pasid: value.map(pasid),
        address: Iova::new(0),
        access: Access::READ,
        execute: false,
    };
    let walked = t.unit.walk(&t.host.memory, &request);
    let fault = walked.result.unwrap_err();
    (
        fault.reason.code(),
        fault.fault_processing_disabled || walked.fault_processing_disabled,
    )
}

/// PASID 5 with a first-stage table: addresses of its tables, top level first.
fn first_stage_tables() -> (Bench, [u64; 4]) {
    let mut t = Bench::scalable_with(Setup {
        capability: 1 << 56,
        ..Setup::default()
    });
    let tables = [t.page(), t.page(), t.page(), t.page()];
    for pair in tables.windows(2) {
        t.store(
            pair[0],
            &[FirstStageEntry::table(Gpa::new(pair[1])).as_u64()],
        );
    }
    t.store(tables[3], &[0x12_3000 | 7]);
    t.entry(D0, 5, first_stage(7, tables[0]));
    (t, tables)
}

#[test]
fn requests_pass_while_translation_is_off() {
    let t = Bench::new();
    assert_eq!(read(&t, 0xdead_beef), Ok(0xdead_beef));
    assert_eq!(t.translate(D0, None, OUTSIDE, Access::WRITE), Ok(OUTSIDE));
}

#[test]
fn faults_of_root_and_context_entries() {
    // S59, S60, §7.1.3. FPD counts from the context entry on (§7.1.1).
    let mut t = Bench::scalable();
    let context = t.context_at(D0);
    let good = t.host.memory.load(context);
    for (at, value, code, suppressed) in [
        (ROOT, 0, 0x39, false),
        (ROOT, FPD, 0x39, false),
        (ROOT, context & !0xfff | 3, 0x3a, false),
        (ROOT, 1 << 46 | 1, 0x3a, false),
        (ROOT, OUTSIDE | 1, 0x40, false),
        (context, 0, 0x41, false),
        (context, FPD, 0x41, true),
        (context, good | 1 << 7, 0x42, false),
        (context, good | 1 << 7 | FPD, 0x42, true),
        (context, good | 1 << 2, 0x42, false),
        (context + 8, 5, 0x42, false),
        (context + 16, 1, 0x42, false),
    ] {
        let before = t.host.memory.load(at);
        t.store(at, &[value]);
        assert_eq!(fault(&t, Some(5)), (code, suppressed), "{at:x} {value:x}");
        t.store(at, &[before]);
    }
    t.host.memory.holes.borrow_mut().insert(ROOT / 4096);
    assert_eq!(fault(&t, Some(5)), (0x38, false));
}

#[test]
fn contradictions_of_a_context_entry_are_invalid() {
    // SCT.4: PRE without DTE needs PRS, which is never shown; RID_PASID needs RPS. Neither
    // field exists, so both are reserved.
    let mut t = Bench::scalable();
    let context = t.context_at(D0);
    t.store(context, &[t.host.memory.load(context) | 1 << 4]);
    assert_eq!(fault(&t, Some(5)), (0x42, false));
}

#[test]
fn faults_of_directory_and_pasid_entries() {
    // S61, S62, S63.
    let mut t = Bench::scalable();
    let entry = t.entry_at(D0, 5);
    let directory = t.directories[&D0];
    let good = *first_stage(7, 0x20_0000).quadwords();
    t.store(entry, &good);
    for (at, value, code, suppressed) in [
        (directory, 0, 0x51, false),
        (directory, FPD, 0x51, true),
        (directory, entry & !0xfff | 5, 0x52, false),
        (directory, OUTSIDE | 1, 0x58, false),
        (directory, OUTSIDE | FPD | 1, 0x58, true),
        (entry, good[0] & !1, 0x59, false),
        (entry, good[0] & !1 | FPD, 0x59, true),
        (entry, good[0] | 1 << 5, 0x5a, false),
        (entry + 24, 1, 0x5a, false),
        (entry + 56, 1 << 63, 0x5a, false),
        (entry, good[0] & !0x1c0, 0x5b, false),
        (entry, good[0] | 0x1c0, 0x5b, false),
    ] {
        let before = t.host.memory.load(at);
        t.store(at, &[value]);
        assert_eq!(fault(&t, Some(5)), (code, suppressed), "{at:x} {value:x}");
        t.store(at, &[before]);
    }
    // S62: AW of an entry without a second stage is tolerated.
    t.store(entry, &[good[0] | 2 << 2]);
    assert_ne!(fault(&t, Some(5)).0, 0x5a);
    t.host.memory.holes.borrow_mut().insert(directory / 4096);
    assert_eq!(fault(&t, Some(5)), (0x50, false));
    // S63, S29.
    let mut t = Bench::scalable();
    t.context(D0, DirectoryOrder::SMALLEST);
    assert_eq!(fault(&t, Some(8192)), (0x46, false));
    let mut t = Bench::scalable_with(Setup {
        pasid_bits: 14,
        ..Setup::default()
    });
    assert_eq!(fault(&t, Some(1 << 14)), (0x89, false));
    let context = t.context_at(D0);
    t.store(context, &[t.host.memory.load(context) & !8 | FPD]);
    assert_eq!(fault(&t, Some(5)), (0x45, true));
    // §12 of the open points: PASID 0 is that of requests without PASID.
    assert_eq!(fault(&Bench::scalable(), Some(0)), (0x48, false));
}

#[test]
fn faults_of_first_stage_tables() {
    // S64, S67: entry by entry.
    let (t, tables) = first_stage_tables();
    assert_eq!(read(&t, 0xabc), Ok(0x12_3abc));
    let leaf = tables[3];
    for (at, value, access, code) in [
        (leaf, 0, Access::READ, 0x71),
        (tables[1], 0, Access::READ, 0x71),
        (leaf, 1 << 46 | 7, Access::READ, 0x72),
        (tables[0], tables[1] | 0x80 | 7, Access::READ, 0x72),
        (tables[2], 0x20_0000 | 1 << 13 | 0x87, Access::READ, 0x72),
        (leaf, 0x12_3000 | 3, Access::READ, 0x81),
        (tables[2], tables[3] | 3, Access::READ, 0x81),
        (leaf, 0x12_3000 | 5, Access::WRITE, 0x85),
        (tables[1], tables[2] | 5, Access::WRITE, 0x85),
        (tables[2], OUTSIDE | 7, Access::READ, 0x70),
        (leaf, 0xfee0_0000 | 7, Access::READ, 0x87),
    ] {
        let before = t.host.memory.load(at);
        t.store(at, &[value]);
        let result = t.translate(D0, Some(5), 0, access);
        assert_eq!(result, Err(code), "{at:x} {value:x}");
        t.store(at, &[before]);
    }
    t.store(leaf, &[0x12_3000 | 5]);
    assert_eq!(read(&t, 0), Ok(0x12_3000));
    // S67: a 1-GiB page, where it is offered.
    t.store(tables[1], &[0x4000_0087]);
    assert_eq!(read(&t, 0x123_4567), Ok(0x4123_4567));
    let mut strict = Bench::scalable();
    let (top, third) = (strict.page(), strict.page());
    strict.store(top, &[third | 7]);
    strict.store(third, &[0x4000_0087]);
    strict.entry(D0, 5, first_stage(7, top));
    assert_eq!(read(&strict, 0), Err(0x72));
    strict.entry(D0, 5, first_stage(7, OUTSIDE));
    assert_eq!(read(&strict, 0), Err(0x73));
}

#[test]
fn requests_the_unit_does_not_support() {
    // S64: execute; supervisor requests while SRE is clear (SPT.6).
    let (t, _) = first_stage_tables();
    let request = DmaRequest {
        source_id: sid(D0),
        pasid: Some(pasid(5)),
        address: Iova::new(0),
        access: Access::READ,
        execute: true,
    };
    let reason = |request: &DmaRequest| {
        let walked = t.unit.walk(&t.host.memory, request);
        walked.result.unwrap_err().reason.code()
    };
    assert_eq!(reason(&request), 0x5c);
    let access = Access {
        privileged: true,
        ..Access::READ
    };
    assert_eq!(
        reason(&DmaRequest {
            access,
            execute: false,
            ..request
        }),
        0x5d
    );
}

#[test]
fn first_stage_addresses_are_canonical() {
    // S65: 48 bits, sign-extended.
    let (t, tables) = first_stage_tables();
    assert_eq!(read(&t, 0x8000_0000_0000), Err(0x80));
    assert_eq!(read(&t, 0xffff_7fff_ffff_ffff), Err(0x80));
    t.store(tables[0] + 0x100 * 8, &[tables[1] | 7]);
    assert_eq!(read(&t, 0xffff_8000_0000_0123), Ok(0x12_3123));
}

#[test]
fn pass_through_stays_below_the_host_width_and_out_of_the_interrupt_range() {
    // S66, SGN.4.
    let mut t = Bench::scalable();
    for pasid in [0, 5] {
        t.entry(D0, pasid, pass_through(7));
    }
    assert_eq!(read(&t, 0x1234), Ok(0x1234));
    assert_eq!(read(&t, 1 << 46), Err(0x83));
    assert_eq!(read(&t, 0xfee1_2344), Err(0x87));
    assert_eq!(t.translate(D0, None, 0x1234, Access::WRITE), Ok(0x1234));
    assert_eq!(t.translate(D0, None, 0xfee1_2344, Access::READ), Err(0x29));
}

/// Entries of a second-stage leaf under test, and what becomes of a request.
const SECOND_STAGE: [(u64, bool, [u8; 2]); 6] = [
    // leaf, write, reason in scalable and legacy mode
    (0x12_3000, false, [0x79, 0x06]),
    (0x12_3000, true, [0x79, 0x05]),
    (0x12_3000 | 1, true, [0x85, 0x05]),
    (0x12_3000 | 2, false, [0x86, 0x06]),
    (0x12_3000 | 3 | 1 << 11, false, [0x7a, 0x0c]),
    (0xfee0_0000 | 3, false, [0x87, 0x0e]),
];

fn second_stage_tables(t: &mut Bench) -> [u64; 4] {
    let tables = [t.page(), t.page(), t.page(), t.page()];
    for pair in tables.windows(2) {
        t.store(
            pair[0],
            &[SecondStageEntry::table(Gpa::new(pair[1])).as_u64()],
        );
    }
    tables
}

#[test]
fn faults_of_second_stage_tables_in_both_modes() {
    // S68.
    for legacy in [false, true] {
        let mut t = Bench::scalable_with(Setup {
            first_stage: false,
            ..Setup::default()
        });
        let tables = second_stage_tables(&mut t);
        let width = AddressWidth::Bits48;
        let value = if legacy {
            let (root, table) = (t.page(), t.page());
            t.store(root, &[table | 1]);
            let entry = LegacyContextEntry::second_stage(Gpa::new(tables[0]), width, did(3), false);
            t.store(table + u64::from(D0) * 16, entry.quadwords());
            t.set_root_at(root, TranslationTableMode::Legacy);
            None
        } else {
            let entry = PasidEntry::guest_second_stage(
                Gpa::new(tables[0]),
                width,
                did(3),
                PasidEntryOptions::default(),
            );
            t.entry(D0, 5, entry);
            Some(5)
        };
        let mode = usize::from(legacy);
        for (leaf, write, codes) in SECOND_STAGE {
            t.store(tables[3], &[leaf]);
            let access = if write { Access::WRITE } else { Access::READ };
            let result = t.translate(D0, value, 0, access);
            assert_eq!(result, Err(codes[mode]), "{leaf:x} {write} {legacy}");
        }
        t.store(tables[3], &[0x12_3003]);
        assert_eq!(t.translate(D0, value, 0xabc, Access::WRITE), Ok(0x12_3abc));
        assert_eq!(
            t.translate(D0, value, 1 << 48, Access::READ),
            Err([0x84, 0x04][mode])
        );
        t.store(tables[1], &[OUTSIDE | 3]);
        assert_eq!(
            t.translate(D0, value, 0, Access::READ),
            Err([0x78, 0x07][mode])
        );
        t.host.memory.holes.borrow_mut().insert(tables[0] / 4096);
        assert_eq!(
            t.translate(D0, value, 0, Access::READ),
            Err([0x7b, 0x03][mode])
        );
    }
}

#[test]
fn faults_of_a_legacy_root() {
    // §7.1.3, Table 30: LRT, LCT; a request with PASID is RTA.2.
    let mut t = Bench::scalable();
    let (root, table) = (t.page(), t.page());
    t.set_root_at(root, TranslationTableMode::Legacy);
    assert_eq!(fault(&t, Some(5)), (0x31, false));
    let context = table + u64::from(D0) * 16;
    for (entry, words, expected) in [
        (0, [0, 0], (0x01, false)),
        (table | 3, [0, 0], (0x0a, false)),
        (OUTSIDE | 1, [0, 0], (0x09, false)),
        (table | 1, [FPD, 0], (0x02, true)),
        (table | 1, [1 | 1 << 4, 2], (0x0b, false)),
        (table | 1, [1 | FPD, 7], (0x03, true)),
        (table | 1, [1 | 3 << 2, 2], (0x03, false)),
    ] {
        t.store(root, &[entry]);
        t.store(context, &words);
        assert_eq!(fault(&t, None), expected, "{entry:x} {words:x?}");
    }
    t.host.memory.holes.borrow_mut().insert(root / 4096);
    assert_eq!(fault(&t, None), (0x08, false));
    let mut t = Bench::scalable();
    t.set_root(TranslationTableMode::AbortDma);
    assert_eq!(fault(&t, None), (0x30, false));
}
