extern crate std;
use std::string::{String, ToString};
use std::vec::Vec;

use super::*;
use crate::arch::address::Gpa;
use crate::arch::address::{AddressWidth, FirstStagePaging};
use crate::arch::capability::{
    Capability, CapabilityField as C, ExtendedCapability, ExtendedCapabilityField as E,
};
use crate::arch::context::ScalableContextEntry;
use crate::arch::context::{ContextAttributes, DirectoryOrder};
use crate::arch::first_stage::FirstStageEntry;
use crate::arch::id::DomainId;
use crate::arch::pasid::PasidEntry;
use crate::arch::pasid::{FirstStageFlags, PasidEntryOptions};
use crate::arch::register::TranslationTableMode;
use crate::arch::second_stage::{SecondStageEntry, SecondStagePointer};
use crate::mem::testing::TestHypervisor;

const ROOT: u64 = 0x1000;
const CONTEXT: u64 = 0x2000 + 0x10 * 32;
const DIRECTORY: u64 = 0x3000;
const ENTRY: u64 = 0x4000 + 5 * 64;
/// Second-stage tables, from level 4 down.
const SECOND: [u64; 4] = [0x2_0000, 0x2_1000, 0x2_2000, 0x2_3000];
/// Guest-physical pages of the first-stage tables, from level 4 down.
const FIRST: [u64; 4] = [0x1_0000, 0x1_1000, 0x1_2000, 0x1_3000];
/// Guest-physical memory is here on the host.
const GUEST: u64 = 0x10_0000;
/// Where requests to [`IOVA`] are led, guest-physical.
const PAGE: u64 = 0x5000;
const IOVA: u64 = 0x7000;
const FPD: u64 = 2;

fn features() -> Features {
    let capability = Capability::from_bits(0)
        .with(C::ADJUSTED_GUEST_ADDRESS_WIDTHS, 0b0100)
        .with(C::MAXIMUM_GUEST_ADDRESS_WIDTH, 38)
        .with(C::DOMAIN_ID_WIDTH, 6);
    let mut extended = ExtendedCapability::from_bits(0)
        .with(E::REQUESTS_WITH_PASID, 1)
        .with(E::PASID_SIZE, 19);
    for ability in [
        E::QUEUED_INVALIDATION,
        E::SCALABLE_MODE,
        E::FIRST_STAGE,
        E::SECOND_STAGE,
        E::NESTED,
        E::PASS_THROUGH,
        E::PAGE_WALK_COHERENCY,
    ] {
        extended = extended.with(ability, 1);
    }
    Features::new(capability, extended, 46)
}

fn nested() -> PasidEntry {
    PasidEntry::nested(
        Gpa::new(FIRST[0]),
        FirstStagePaging::Level4,
        FirstStageFlags::default(),
        SecondStagePointer::new(Hpa::new(SECOND[0]), AddressWidth::Bits48),
        DomainId::new(3),
        PasidEntryOptions {
            page_walk_snoop: true,
            ..PasidEntryOptions::default()
        },
    )
}

fn second_stage_slot(address: u64) -> u64 {
    SECOND[3] + (address >> 12) * 8
}

/// Device 00:02.0, PASID 5, nested: [`IOVA`] leads to [`PAGE`].
fn memory() -> TestHypervisor {
    let h = TestHypervisor::new(1);
    let put = |at: u64, quadwords: &[u64]| {
        for (index, quadword) in quadwords.iter().enumerate() {
            h.write64(Hpa::new(at + index as u64 * 8), *quadword);
        }
    };
    put(ROOT, &[0x2000 | 1, 0]);
    let attributes = ContextAttributes {
        pasid_enabled: true,
        ..ContextAttributes::default()
    };
    let context =
        ScalableContextEntry::new(Hpa::new(DIRECTORY), DirectoryOrder::SMALLEST, attributes);
    put(CONTEXT, context.quadwords());
    put(DIRECTORY, &[0x4000 | 1]);
    put(ENTRY, nested().quadwords());
    for pair in SECOND.windows(2) {
        put(
            pair[0],
            &[SecondStageEntry::table(Hpa::new(pair[1])).as_u64()],
        );
    }
    for page in FIRST.into_iter().chain([PAGE]) {
        put(second_stage_slot(page), &[(GUEST + page) | 3]);
    }
    let accessed = FirstStageEntry::ACCESSED | 7;
    for pair in FIRST.windows(2) {
        put(GUEST + pair[0], &[pair[1] | accessed]);
    }
    put(
        GUEST + FIRST[3] + (IOVA >> 12) * 8,
        &[PAGE | accessed | FirstStageEntry::DIRTY],
    );
    h
}

fn request(access: Access) -> ExplainRequest {
    ExplainRequest {
        source_id: SourceId::from_u16(0x10),
        pasid: Pasid::new(5),
        address: Iova::new(IOVA | 0x123),
        access,
        execute: false,
    }
}

fn explained(h: &TestHypervisor, request: &ExplainRequest) -> (Explanation, Vec<Step>) {
    let root = RootTableAddress::new(Hpa::new(ROOT), TranslationTableMode::Scalable);
    let mut steps = Vec::new();
    let explanation = explain(h, root, &features(), request, |step| steps.push(*step));
    (explanation, steps)
}

#[test]
fn each_entry_that_hardware_reads_is_a_step_with_its_value() {
    let h = memory();
    let (explanation, steps) = explained(&h, &request(Access::WRITE));
    let translation = explanation.result.unwrap();
    assert_eq!(translation.address, Hpa::new(GUEST + PAGE + 0x123));
    assert_eq!(explanation.to_string(), "allowed: leads to 0x105123");
    // 4 of the tables above; 4 first-stage entries and the page, each behind 4 of the second.
    assert_eq!(steps.len(), 4 + 4 * 5 + 4);
    let lines: Vec<String> = steps.iter().map(Step::to_string).collect();
    let slot = format_slot(second_stage_slot(FIRST[0]));
    for (index, line) in [
        (0, "root entry at 0x1000: 0000000000000000 0000000000002001"),
        (2, "PASID 5 directory entry at 0x3000: 0000000000004001"),
        (
            4,
            "level 4 second-stage entry at 0x20000: 0000000000021003 for 0x10000",
        ),
        (7, slot.as_str()),
        (8, "level 4 first-stage entry at 0x110000: 0000000000011027"),
        (
            27,
            "level 1 second-stage entry at 0x23028: 0000000000105003 for 0x5123",
        ),
    ] {
        assert_eq!(lines[index], line);
    }
    assert!(lines[1].starts_with("context entry at 0x2200: 0000000000000000 0000000000000000"));
    assert!(lines[3].starts_with("PASID 5 entry at 0x4140: "));
}

fn format_slot(at: u64) -> String {
    std::format!("level 1 second-stage entry at {at:#x}: 0000000000110003 for 0x10000")
}

#[test]
fn the_last_step_is_the_one_that_blocks_and_the_reason_is_hardware_s() {
    // §7.1.3, Table 30: place and value of one quadword; the reason of a read and of a write, 0
    // for none; FPD was met; the number of steps.
    let first =
        |level: usize| GUEST + FIRST[4 - level] + [0, IOVA >> 12 << 3][(level == 1) as usize];
    let leaf = PAGE | 7 | FirstStageEntry::ACCESSED | FirstStageEntry::DIRTY;
    let slot = second_stage_slot;
    let [entry, ..] = *nested().quadwords();
    for (name, at, value, [read, write], disabled, steps) in [
        ("root entry absent", ROOT, 0, [0x39; 2], false, 1),
        ("root entry reserved", ROOT, 0x2003, [0x3a; 2], false, 1),
        ("context absent", CONTEXT, 0, [0x41; 2], false, 2),
        ("context absent, FPD", CONTEXT, FPD, [0x41; 2], true, 2),
        ("context reserved", CONTEXT, 0x3081, [0x42; 2], false, 2),
        ("PASIDs off", CONTEXT, 0x3001, [0x45; 2], false, 2),
        ("directory entry absent", DIRECTORY, 0, [0x51; 2], false, 3),
        (
            "directory entry reserved",
            DIRECTORY,
            0x4005,
            [0x52; 2],
            false,
            3,
        ),
        ("entry absent", ENTRY, 0, [0x59; 2], false, 4),
        ("entry absent, FPD", ENTRY, FPD, [0x59; 2], true, 4),
        (
            "entry reserved",
            ENTRY,
            entry | 1 << 10,
            [0x5a; 2],
            false,
            4,
        ),
        (
            "entry of a bad type",
            ENTRY,
            entry & !0x1c0,
            [0x5b; 2],
            false,
            4,
        ),
        ("no snoop, all flags set", ENTRY + 8, 3, [0; 2], false, 28),
        (
            "root table not mapped",
            slot(FIRST[0]),
            0,
            [0x79; 2],
            false,
            8,
        ),
        (
            "root table not readable",
            slot(FIRST[0]),
            (GUEST + FIRST[0]) | 2,
            [0x75; 2],
            false,
            8,
        ),
        (
            "table not readable",
            slot(FIRST[1]),
            (GUEST + FIRST[1]) | 2,
            [0x76; 2],
            false,
            13,
        ),
        ("table not mapped", slot(FIRST[2]), 0, [0x79; 2], false, 18),
        (
            "table too far",
            first(4),
            1 << 40 | 0x27,
            [0x74; 2],
            false,
            9,
        ),
        ("first stage absent", first(2), 0, [0x71; 2], false, 19),
        (
            "first stage reserved",
            first(3),
            FIRST[2] | 0x27 | 1 << 51,
            [0x72; 2],
            false,
            14,
        ),
        (
            "first stage supervisor",
            first(1),
            leaf & !4,
            [0x81; 2],
            false,
            24,
        ),
        (
            "first stage read-only",
            first(1),
            leaf & !2,
            [0, 0x85],
            false,
            0,
        ),
        (
            "page too far",
            first(1),
            1 << 40 | leaf,
            [0x74; 2],
            false,
            24,
        ),
        ("page not mapped", slot(PAGE), 0, [0x79; 2], false, 28),
        (
            "page read-only",
            slot(PAGE),
            (GUEST + PAGE) | 1,
            [0, 0x85],
            false,
            28,
        ),
        (
            "page write-only",
            slot(PAGE),
            (GUEST + PAGE) | 2,
            [0x86, 0],
            false,
            28,
        ),
        (
            "page reserved",
            slot(PAGE),
            (GUEST + PAGE) | 3 | 1 << 11,
            [0x7a; 2],
            false,
            28,
        ),
        (
            "accessed flag clear",
            first(1),
            leaf & !0x20,
            [0; 2],
            false,
            28,
        ),
        (
            "interrupt range",
            first(1),
            0xfee0_0067,
            [0x87; 2],
            false,
            24,
        ),
    ] {
        let h = memory();
        h.write64(Hpa::new(at), value);
        for (access, code) in [(Access::READ, read), (Access::WRITE, write)] {
            let (explanation, shown) = explained(&h, &request(access));
            let found = explanation.result.map_or_else(FaultReason::code, |_| 0);
            assert_eq!(found, code, "{name}: {explanation}");
            assert_eq!(explanation.fault_processing_disabled, disabled, "{name}");
            if steps > 0 {
                assert_eq!(shown.len(), steps, "{name}: {shown:#x?}");
            }
        }
    }
}

#[test]
fn flags_that_cannot_be_set_block() {
    // S69: 90 without snooping, 77 where the second stage does not allow the write.
    let leaf = GUEST + FIRST[3] + (IOVA >> 12) * 8;
    let slot = second_stage_slot(FIRST[3]);
    let all = PAGE | 0x67;
    for (flags, snooped, writable, [read, write]) in [
        (0x60, false, false, [0, 0]),
        (0x20, true, true, [0, 0]),
        (0x20, false, true, [0, 0x90]),
        (0x20, true, false, [0, 0x77]),
        (0x40, true, true, [0, 0]),
        (0x40, false, true, [0x90, 0x90]),
        (0x40, true, false, [0x77, 0x77]),
        (0x00, false, false, [0x90, 0x90]),
    ] {
        let h = memory();
        h.write64(Hpa::new(leaf), all & !0x60 | flags);
        if !snooped {
            h.write64(Hpa::new(ENTRY + 8), 3);
        }
        if !writable {
            h.write64(Hpa::new(slot), (GUEST + FIRST[3]) | 1);
        }
        for (access, code) in [(Access::READ, read), (Access::WRITE, write)] {
            let (explanation, _) = explained(&h, &request(access));
            let found = explanation.result.map_or_else(FaultReason::code, |_| 0);
            assert_eq!(found, code, "{flags:x} {snooped} {writable} {access:?}");
        }
    }
}

#[test]
fn requests_are_checked_as_hardware_does_before_any_table() {
    let h = memory();
    let asked = request(Access::READ);
    let reason = |request: &ExplainRequest, mode| {
        let root = RootTableAddress::new(Hpa::new(ROOT), mode);
        let explanation = explain(&h, root, &features(), request, |_| {});
        explanation.result.map_or_else(FaultReason::code, |_| 0)
    };
    use TranslationTableMode::{AbortDma, Legacy, Scalable};
    let without = ExplainRequest {
        pasid: None,
        ..asked
    };
    let interrupt = ExplainRequest {
        address: Iova::new(0xfee0_1000),
        ..without
    };
    let with = |value| ExplainRequest {
        pasid: Pasid::new(value),
        ..asked
    };
    let execute = ExplainRequest {
        execute: true,
        ..asked
    };
    let supervisor = ExplainRequest {
        access: Access {
            privileged: true,
            ..Access::READ
        },
        ..asked
    };
    let not_canonical = ExplainRequest {
        address: Iova::new(1 << 47),
        ..asked
    };
    for (request, mode, code) in [
        (asked, Legacy, 0x31),
        (asked, AbortDma, 0x30),
        (interrupt, Scalable, 0x29),
        (with(0), Scalable, 0x48),
        (with(8192), Scalable, 0x46),
        (execute, Scalable, 0x5c),
        (supervisor, Scalable, 0x5d),
        (not_canonical, Scalable, 0x80),
        // The root entry is a legacy one as well; its context entry is the first half of
        // another device's here, which is absent: all ones.
        (without, Legacy, 0x0b),
    ] {
        assert_eq!(reason(&request, mode), code, "{request:?} {mode:?}");
    }
}
