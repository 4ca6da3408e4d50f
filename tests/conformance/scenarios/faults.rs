//! What a guest is told of its devices' blocked requests (S59 to S70): the reason that its own
//! tables give, whatever the hardware below found.

use vtd_nest::arch::address::{Gpa, Iova, PageSize};
use vtd_nest::arch::capability::{CapabilityField, ExtendedCapabilityField};
use vtd_nest::arch::context::DirectoryOrder;
use vtd_nest::arch::fault::FaultReason as R;
use vtd_nest::arch::first_stage::FirstStageEntry;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::arch::register::{AddressType, FaultInfo, FaultRecord, RequestType};
use vtd_nest::nest::fault::HostFaultCause;
use vtd_nest::nest::{FaultOutcome, MachineError, OnReadOnlyMemory, Policy};
use vtd_nest::paging::{OnPartialLeaf, Rights};
use vtd_nest::unit::Erratum;

use crate::bench::{Ability, Access};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, Event, Guest, GuestOptions, IOVA, OUTSIDE, Place, Structures};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S59 R29",
        "a broken root table is told by its own reason",
        s59,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S60 R29",
        "a broken context entry is told by its own reason",
        s60,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S61 R29",
        "a broken PASID directory is told by its own reason",
        s61,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S62 S28 R29",
        "a broken PASID entry is told by its own reason",
        s62,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S62 R11",
        "the address width of an entry without a second stage takes any value",
        s62_address_width,
    ),
    scenario(
        "S63 S14",
        "a PASID beyond the directory is told as such",
        s63,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S64 S28",
        "what a first-stage table denies is told by its own reason",
        s64,
    )
    .needs(&[Need::Nesting]),
    scenario(
        "S64 S29",
        "execute and supervisor requests are told by their own reason",
        s64_kinds,
    )
    .needs(&[Need::PASID, Need::Ability(Ability::PrivilegedRequests)]),
    scenario("S65", "first-stage addresses have to be canonical", s65).needs(&[Need::Nesting]),
    scenario(
        "S66",
        "a translation into the interrupt range is blocked",
        s66,
    ),
    scenario(
        "S66",
        "pass-through with PASID into the interrupt range is blocked",
        s66_pass_through,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S67",
        "a first-stage leaf of 1 GiB is reserved where it is not shown",
        s67,
    )
    .needs(&[Need::Nesting]),
    scenario(
        "S68 S28",
        "what a second-stage table denies is told by its own reason",
        s68,
    ),
    scenario(
        "S68",
        "what a legacy root's table denies is told by its own reason",
        s68_legacy,
    ),
    scenario(
        "S69",
        "an update that the machine's memory denies has failed",
        s69_denied,
    )
    .needs(&[
        Need::Nesting,
        Need::Extended(ExtendedCapabilityField::PAGE_WALK_COHERENCY, "SMPWCS"),
        Need::Ability(Ability::UpdatesObeyReadOnly),
    ]),
    scenario(
        "S69 G6",
        "an update needs walks that are snooped",
        s69_snoop,
    )
    .needs(&[Need::Nesting]),
    scenario(
        "S69 G14",
        "an affected part gets no read-only page under nesting",
        s69_erratum,
    )
    .needs(&[Need::Nesting]),
    scenario(
        "S70 R29",
        "a record of another unit is not this machine's, whatever its source-id",
        s70_other_unit,
    ),
    scenario(
        "S70 R29",
        "a fault is recorded in its own machine's unit only",
        s70,
    ),
    scenario(
        "S70 R29",
        "faults that the guest did not cause are the hypervisor's",
        s70_host,
    )
    .needs(&[Need::Ability(Ability::UpdatesObeyReadOnly)]),
];

/// Address bits of a table entry.
const POINTER: u64 = 0x000f_ffff_ffff_f000;
/// Present.
const P: u64 = 1;

/// The guest as the bench shows it, and as one that is shown the second stage.
fn both(place: Place<'_>) -> Vec<Guest> {
    let guest = place.guest();
    let mut guests = Vec::new();
    if guest.is_first_stage() {
        guests.push(place.shadow_guest());
    }
    guests.push(guest);
    for guest in &mut guests {
        guest.use_small_directories();
    }
    guests
}

/// An access is blocked, and the guest finds one record, which says what the request was.
#[track_caller]
fn expect(
    name: &str,
    guest: &mut Guest,
    (device, tag): (SourceId, Option<u32>),
    iova: u64,
    access: Access,
    reason: R,
) {
    let reason = guest.shown(reason, access == Access::Write);
    guest.take_faults();
    assert!(
        !guest.gets_through(device, tag, iova, access),
        "{name}: {access:?} at {iova:#x} is not blocked"
    );
    let taken = guest.take_faults();
    let [fault] = taken.faults.as_slice() else {
        panic!("{name}: the guest finds {taken:x?}, not {reason:?}");
    };
    assert_eq!(fault.reason, reason, "{name}: {access:?}");
    assert_eq!(fault.source_id, device, "{name}");
    assert_eq!(fault.write, access == Access::Write, "{name}");
    // A record has no bits above the largest width that the unit shows.
    let capability = guest.vm.offer().features.capability;
    let largest = capability.largest_address_width().expect("a width").bits();
    let kept = iova & !0xfff & !(u64::MAX << largest);
    assert_eq!(fault.address.as_u64(), kept, "{name}");
    if tag.is_some() {
        assert_eq!(fault.pasid, tag, "{name}");
    }
}

/// A name, changes of guest memory (place, mask, bits), the reason that a guest is told.
type Broken = (String, Vec<(u64, u64, u64)>, R);

/// Breaks one structure of D0 after the other: both accesses are blocked for the reason, D1 is as
/// it was, and so is D0 once the structure is mended.
fn expect_broken(guest: &mut Guest, cases: Vec<Broken>) {
    let (pasid, tag) = (guest.pasid, guest.tag);
    let (_, other) = guest.bind(D1, pasid, 8);
    let structures = guest.structures(D0, pasid);
    let page = guest.reached(D0, tag, IOVA).expect("D0 works");
    for (name, changes, reason) in cases {
        for (at, clear, set) in changes {
            guest.change(at, clear, set);
        }
        guest.invalidate_everything();
        for access in [Access::Read, Access::Write] {
            expect(&name, guest, (D0, tag), IOVA, access, reason);
        }
        guest.expect_reaches(D1, tag, IOVA, other);
        guest.restore(&structures);
        guest.expect_reaches(D0, tag, IOVA, page);
    }
}

/// One change of one quadword, named.
fn change(
    name: &str,
    at: u64,
    clear: u64,
    set: u64,
    reason: R,
) -> (String, Vec<(u64, u64, u64)>, R) {
    (name.into(), vec![(at, clear, set)], reason)
}

/// (D0, the scenario's PASID) bound under domain-id 7: page, structures.
fn bound(guest: &mut Guest) -> (u64, Structures) {
    let (_, page) = guest.bound();
    (page, guest.structures(D0, guest.pasid))
}

fn s59(place: Place<'_>) {
    for mut guest in both(place) {
        let (page, at) = bound(&mut guest);
        let beyond = guest.beyond_width();
        // The low or high half that covers D0; the other one has nothing to say.
        let other_half = at.root ^ 8;
        let reserved = R::ScalableRootEntryReserved;
        expect_broken(
            &mut guest,
            vec![
                change("not present", at.root, P, 0, R::ScalableRootEntryNotPresent),
                change(
                    "all but present",
                    at.root,
                    P,
                    0xffe,
                    R::ScalableRootEntryNotPresent,
                ),
                change("bit 1", at.root, 0, 1 << 1, reserved),
                change("bit 11", at.root, 0, 1 << 11, reserved),
                change("beyond the width", at.root, 0, beyond, reserved),
            ],
        );
        guest.change(other_half, 0, 0xffe | P);
        guest.invalidate_everything();
        guest.expect_reaches(D0, guest.tag, IOVA, page);
        // The root table itself is in no memory of the machine.
        let mode = vtd_nest::arch::register::TranslationTableMode::Scalable;
        guest.set_root(OUTSIDE, mode);
        for device in [D0, D1] {
            let request = (device, guest.tag);
            for access in [Access::Read, Access::Write] {
                let reason = R::ScalableRootTableUnreadable;
                expect(
                    "root table outside",
                    &mut guest,
                    request,
                    IOVA,
                    access,
                    reason,
                );
            }
        }
        guest.use_usual_root();
        guest.restore(&at);
        guest.expect_reaches(D0, guest.tag, IOVA, page);
        guest.finish();
    }
}

fn s60(place: Place<'_>) {
    for mut guest in both(place) {
        let (_, at) = bound(&mut guest);
        let beyond = guest.beyond_width();
        let extended = guest.vm.offer().features.extended;
        let has = |field| extended.field(field) != 0;
        let context = at.context;
        let reserved = R::ScalableContextEntryReserved;
        let mut cases = vec![
            change(
                "not present",
                context,
                P,
                0,
                R::ScalableContextEntryNotPresent,
            ),
            change(
                "all but present",
                context,
                P,
                0x1e0,
                R::ScalableContextEntryNotPresent,
            ),
            change(
                "table outside",
                at.root,
                POINTER,
                OUTSIDE,
                R::ScalableContextTableUnreadable,
            ),
            change("bit 7", context, 0, 1 << 7, reserved),
            change("bit 8", context, 0, 1 << 8, reserved),
            change("beyond the width", context, 0, beyond, reserved),
            change("bit 21 of 1", context + 8, 0, 1 << 21, reserved),
            change("bit 63 of 1", context + 8, 0, 1 << 63, reserved),
            change("bit 0 of 2", context + 16, 0, 1, reserved),
            change("bit 63 of 3", context + 24, 0, 1 << 63, reserved),
        ];
        // Fields of what is not shown are reserved.
        for (name, field, at, bit) in [
            ("DTE", ExtendedCapabilityField::DEVICE_TLB, context, 2),
            ("PRE", ExtendedCapabilityField::PAGE_REQUESTS, context, 4),
            (
                "HPTE",
                ExtendedCapabilityField::HOST_PERMISSION_TABLES,
                context,
                5,
            ),
            (
                "EPTR",
                ExtendedCapabilityField::PASID_IN_TRANSLATED_REQUESTS,
                context,
                6,
            ),
            (
                "RID_PASID",
                ExtendedCapabilityField::RID_PASID,
                context + 8,
                0,
            ),
            (
                "RID_PRIV",
                ExtendedCapabilityField::RID_PRIV,
                context + 8,
                20,
            ),
        ] {
            if !has(field) {
                cases.push(change(name, at, 0, 1 << bit, reserved));
            }
        }
        expect_broken(&mut guest, cases);
        guest.finish();
    }
}

fn s61(place: Place<'_>) {
    for mut guest in both(place) {
        let (_, at) = bound(&mut guest);
        let beyond = guest.beyond_width();
        let reserved = R::PasidDirectoryEntryReserved;
        expect_broken(
            &mut guest,
            vec![
                change(
                    "not present",
                    at.directory,
                    P,
                    0,
                    R::PasidDirectoryEntryNotPresent,
                ),
                change(
                    "all but present",
                    at.directory,
                    P,
                    0xffc,
                    R::PasidDirectoryEntryNotPresent,
                ),
                change(
                    "directory outside",
                    at.context,
                    POINTER,
                    OUTSIDE,
                    R::PasidDirectoryUnreadable,
                ),
                change("bit 2", at.directory, 0, 1 << 2, reserved),
                change("bit 11", at.directory, 0, 1 << 11, reserved),
                change("beyond the width", at.directory, 0, beyond, reserved),
            ],
        );
        guest.finish();
    }
}

fn s62(place: Place<'_>) {
    for mut guest in both(place) {
        let (_, at) = bound(&mut guest);
        let beyond = guest.beyond_width();
        let features = guest.vm.offer().features;
        let has = |field| features.extended.field(field) != 0;
        let first_stage = guest.is_first_stage();
        let quadword = |index: u64| at.entry + 8 * index;
        let invalid = R::PasidEntryInvalid;
        let mut cases = vec![
            change("not present", at.entry, P, 0, R::PasidEntryNotPresent),
            change(
                "all but present",
                at.entry,
                P,
                0xc20,
                R::PasidEntryNotPresent,
            ),
            change(
                "table outside",
                at.directory,
                POINTER,
                OUTSIDE,
                R::PasidTableUnreadable,
            ),
        ];
        // Reserved for every unit: the ends of each field.
        let mut reserved = vec![
            (0, 5),
            (0, 10),
            (0, 11),
            (1, 16),
            (1, 22),
            (1, 27),
            (1, 31),
            (1, 35),
            (1, 63),
            (2, 1),
            (2, 8),
            (2, 11),
            (3, 0),
            (3, 63),
            (4, 3),
            (4, 11),
            (5, 16),
            (5, 63),
            (6, 0),
            (6, 63),
            (7, 0),
            (7, 63),
        ];
        // And the fields of what is not shown.
        for (field, index, bit) in [
            (ExtendedCapabilityField::PAGE_WALK_COHERENCY, 1, 23),
            (ExtendedCapabilityField::SNOOP_CONTROL, 1, 24),
            (ExtendedCapabilityField::MEMORY_TYPES, 1, 25),
            (ExtendedCapabilityField::MEMORY_TYPES, 1, 26),
            (ExtendedCapabilityField::MEMORY_TYPES, 1, 32),
            (ExtendedCapabilityField::SUPERVISOR_REQUESTS, 2, 0),
            (ExtendedCapabilityField::EXTENDED_ACCESSED, 2, 7),
            (ExtendedCapabilityField::SECOND_STAGE_ACCESSED_DIRTY, 0, 9),
            (ExtendedCapabilityField::SECOND_STAGE, 0, 12),
            (ExtendedCapabilityField::FIRST_STAGE, 2, 2),
            (ExtendedCapabilityField::FIRST_STAGE, 2, 4),
            (ExtendedCapabilityField::FIRST_STAGE, 2, 12),
            (ExtendedCapabilityField::HOST_PERMISSION_TABLES, 4, 0),
            (ExtendedCapabilityField::HOST_PERMISSION_TABLES, 5, 0),
        ] {
            if !has(field) {
                reserved.push((index, bit));
            }
        }
        for (index, bit) in reserved {
            let name = format!("bit {bit} of {index}");
            cases.push(change(
                &name,
                quadword(index),
                0,
                1 << bit,
                R::PasidEntryReserved,
            ));
        }
        let pointer = quadword(if first_stage { 2 } else { 0 });
        cases.push(change(
            "root beyond the width",
            pointer,
            0,
            beyond,
            R::PasidEntryReserved,
        ));
        // Types: first-stage or second-stage, and pass-through, are shown.
        let shown = [if first_stage { 1 } else { 2 }, 4];
        for kind in (0..8).filter(|kind| !shown.contains(kind)) {
            let name = format!("type {kind}");
            cases.push(change(&name, at.entry, 7 << 6, kind << 6, invalid));
        }
        if first_stage {
            let first = if features.capability.has_first_stage_5_level() {
                2
            } else {
                1
            };
            for mode in first..4 {
                let name = format!("paging mode {mode}");
                cases.push(change(&name, quadword(2), 3 << 2, mode << 2, invalid));
            }
        } else {
            let widths = CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS;
            let widths = features.capability.field(widths);
            for width in (0..8).filter(|width| *width > 4 || widths >> width & 1 == 0) {
                let name = format!("address width {width}");
                cases.push(change(&name, at.entry, 7 << 2, width << 2, invalid));
            }
        }
        // S28: a page table that is in no memory of the machine.
        let root = if first_stage {
            R::FirstStageRootUnreadable
        } else {
            R::SecondStageRootUnreadable
        };
        cases.push(change(
            "page table outside",
            pointer,
            POINTER,
            OUTSIDE,
            root,
        ));
        expect_broken(&mut guest, cases);
        guest.finish();
    }

    // Domain-ids are as wide as the unit shows.
    let mut guest = place.guest_with(GuestOptions {
        policy: Policy {
            domain_id_bits: 8,
            ..Policy::default()
        },
        ..GuestOptions::default()
    });
    guest.use_small_directories();
    let (_, at) = bound(&mut guest);
    let domain_id = change("domain-id", at.entry + 8, 0, 1 << 8, R::PasidEntryReserved);
    expect_broken(&mut guest, vec![domain_id]);
    guest.finish();
}

fn s62_address_width(place: Place<'_>) {
    let mut guest = place.guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let page = guest.data_page();
    let root = guest.table(&[(IOVA, page)]);
    let mut entries = vec![(Guest::pass_through(7), page)];
    if guest.is_first_stage() {
        entries.push((guest.entry(root, 7), IOVA));
    }
    for (entry, iova) in entries {
        for width in 0..8 {
            let mut quadwords = *entry.quadwords();
            quadwords[0] = quadwords[0] & !(7 << 2) | width << 2;
            guest.set_entry(D0, pasid, &PasidEntry::from_quadwords([0; 8]));
            guest.invalidate_pasid(7, pasid);
            guest.expect_no_data(D0, tag, iova);
            guest.set_entry(D0, pasid, &PasidEntry::from_quadwords(quadwords));
            guest.invalidate_pasid(7, pasid);
            guest.expect_reaches(D0, tag, iova, page);
        }
    }
    guest.finish();
}

fn s63(place: Place<'_>) {
    let mut guest = place.guest();
    let page = guest.data_page();
    let root = guest.table(&[(IOVA, page)]);
    let entry = guest.entry(root, 7);
    for order in [0, 1, 3, 6].map(DirectoryOrder::from_field) {
        guest.install_context(D0, order);
        guest.invalidate_context(D0);
        let limit = order.pasid_limit();
        // What lies behind the directory looks like more of it.
        for pasid in [limit - 1, limit] {
            guest.set_entry(D0, pasid, &entry);
            guest.invalidate_pasid(7, pasid);
        }
        guest.expect_reaches(D0, Some(limit - 1), IOVA, page);
        assert_eq!(guest.hardware_entry(D0, limit), None);
        for pasid in [limit, 0xf_ffff] {
            for access in [Access::Read, Access::Write] {
                let name = format!("PASID {pasid:#x} of {limit:#x}");
                let reason = R::PasidBeyondDirectory;
                expect(&name, &mut guest, (D0, Some(pasid)), IOVA, access, reason);
            }
        }
    }
    // All of them.
    guest.install_context(D0, DirectoryOrder::LARGEST);
    guest.invalidate_context(D0);
    guest.set_entry(D0, 0xf_ffff, &entry);
    guest.invalidate_pasid(7, 0xf_ffff);
    guest.expect_reaches(D0, Some(0xf_ffff), IOVA, page);
    guest.finish();
}

/// What a table denies: name, level of the entry, bits cleared and set in it, accesses and why
/// they are blocked. An access that is not named gets through.
type Denial = (&'static str, u32, u64, u64, Vec<(Access, R)>);

/// Changes one entry of D0's table after the other.
fn expect_denials(guest: &mut Guest, tag: Option<u32>, root: u64, page: u64, denials: Vec<Denial>) {
    for (name, level, clear, set, blocked) in denials {
        let slot = guest.slot_at(root, IOVA, level);
        let before = guest.read_u64(slot);
        guest.change(slot, clear, set);
        guest.invalidate_pages(7, IOVA, 0);
        for &(access, reason) in &blocked {
            expect(name, guest, (D0, tag), IOVA, access, reason);
        }
        let is_blocked = |access| blocked.iter().any(|(blocked, _)| *blocked == access);
        if !is_blocked(Access::Read) {
            guest.expect_reaches(D0, tag, IOVA, page);
        }
        if !is_blocked(Access::Write) {
            guest.expect_writes_reach(D0, tag, IOVA, page);
        }
        guest.write_u64(slot, before);
        guest.invalidate_pages(7, IOVA, 0);
        guest.expect_reaches(D0, tag, IOVA, page);
    }
}

/// Both accesses, for one reason.
fn any(reason: R) -> Vec<(Access, R)> {
    vec![(Access::Read, reason), (Access::Write, reason)]
}

fn s64(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, page) = guest.bound();
    let beyond = guest.beyond_width();
    let (writable, user, large) = (1 << 1, 1 << 2, 1 << 7);
    let write = |reason| vec![(Access::Write, reason)];
    let mut denials: Vec<Denial> = vec![
        (
            "reserved in a leaf",
            1,
            0,
            beyond,
            any(R::FirstStageReserved),
        ),
        (
            "highest address bit",
            1,
            0,
            1 << 51,
            any(R::FirstStageReserved),
        ),
        (
            "PS of the highest level",
            4,
            0,
            large,
            any(R::FirstStageReserved),
        ),
        (
            "2 MiB, not aligned",
            2,
            POINTER,
            large | 1 << 13,
            any(R::FirstStageReserved),
        ),
        (
            "2 MiB, not aligned",
            2,
            POINTER,
            large | 1 << 20,
            any(R::FirstStageReserved),
        ),
        (
            "table beyond the width",
            3,
            0,
            beyond,
            any(R::FirstStageReserved),
        ),
        // Reserved bits are told before rights.
        (
            "reserved, supervisor",
            1,
            user,
            beyond,
            any(R::FirstStageReserved),
        ),
        (
            "not present, reserved",
            1,
            P,
            beyond,
            any(R::FirstStageNotPresent),
        ),
        // An entry with every right whose page is not the machine's, and a table there.
        (
            "page outside",
            1,
            POINTER,
            OUTSIDE,
            vec![
                (Access::Read, R::ReadDenied),
                (Access::Write, R::WriteDenied),
            ],
        ),
    ];
    for level in 1..=4 {
        denials.push(("not present", level, P, 0, any(R::FirstStageNotPresent)));
        denials.push(("supervisor", level, user, 0, any(R::UserRequestDenied)));
        denials.push(("read-only", level, writable, 0, write(R::WriteDenied)));
        denials.push((
            "supervisor, read-only",
            level,
            writable | user,
            0,
            any(R::UserRequestDenied),
        ));
        if level > 1 {
            denials.push((
                "table outside",
                level,
                POINTER,
                OUTSIDE,
                any(R::FirstStageUnreadable),
            ));
        }
    }
    let tag = guest.tag;
    expect_denials(&mut guest, tag, root, page, denials);
    guest.finish();
}

fn s64_kinds(place: Place<'_>) {
    for mut guest in both(place) {
        let (pasid, tag) = (guest.pasid, guest.tag);
        let (_, page) = guest.bound();
        let extended = guest.vm.offer().features.extended;
        assert_eq!(extended.field(ExtendedCapabilityField::EXECUTE_REQUESTS), 0);
        for (name, privileged, execute, reason) in [
            ("execute", false, true, R::ExecuteRequestUnsupported),
            ("supervisor", true, false, R::SupervisorRequestDisabled),
            ("both", true, true, R::ExecuteRequestUnsupported),
        ] {
            assert!(
                !guest.reads_as(D0, tag, IOVA, privileged, execute),
                "{name}"
            );
            guest.settle();
            let (low, high) = guest.fault_record(0);
            assert_eq!(low, IOVA, "{name}");
            assert_eq!(high & 0xffff, u64::from(D0.as_u16()), "{name}");
            assert_eq!(high >> 29 & 1 == 1, privileged, "{name}: PRIV");
            assert_eq!(high >> 30 & 1 == 1, execute, "{name}: EXE");
            assert_eq!(high >> 31 & 1, 1, "{name}: PP");
            assert_eq!(high >> 32 & 0xff, u64::from(reason.code()), "{name}: FR");
            assert_eq!(high >> 40 & 0xf_ffff, u64::from(pasid), "{name}: PV");
            assert_eq!(guest.take_faults().faults.len(), 1, "{name}");
            // The next record is the first one again.
            guest.set_translation(false);
            guest.set_translation(true);
        }
        guest.expect_reaches(D0, tag, IOVA, page);
        guest.finish();
    }
}

fn s65(place: Place<'_>) {
    let mut guest = place.guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let high = 0xffff_8000_0000_0000 | IOVA;
    let (low_page, high_page) = (guest.data_page(), guest.data_page());
    let root = guest.table(&[(IOVA, low_page), (high, high_page)]);
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, pasid, &entry);
    guest.invalidate_pasid(7, pasid);
    guest.expect_reaches(D0, tag, IOVA, low_page);
    guest.expect_reaches(D0, tag, high, high_page);
    guest.expect_writes_reach(D0, tag, high, high_page);
    for address in [
        1 << 47 | IOVA,
        1 << 48 | IOVA,
        0x8000_0000_0000_0000 | IOVA,
        0xfffe_8000_0000_0000 | IOVA,
        0xffff_0000_0000_0000 | IOVA,
        0x7fff_8000_0000_0000 | IOVA,
    ] {
        for access in [Access::Read, Access::Write] {
            let name = format!("{address:#x}");
            let reason = R::AddressNotCanonical;
            expect(&name, &mut guest, (D0, tag), address, access, reason);
        }
    }
    // The ends of both halves are canonical: their tables have nothing there.
    for address in [
        0x7fff_ffff_f000,
        0xffff_8000_0000_0000,
        0xffff_ffff_ffff_f000,
    ] {
        let reason = R::FirstStageNotPresent;
        expect(
            "the end",
            &mut guest,
            (D0, tag),
            address,
            Access::Read,
            reason,
        );
    }
    guest.finish();
}

/// The interrupt range, first and last page.
const INTERRUPT_PAGES: [u64; 2] = [0xfee0_0000, 0xfeef_f000];
/// The pages around it, which no machine of these scenarios has.
const NEIGHBOURS: [u64; 2] = [0xfedf_f000, 0xfef0_0000];

fn s66(place: Place<'_>) {
    for mut guest in both(place) {
        let (root, page) = guest.bound();
        let tag = guest.tag;
        let outside = vec![
            (Access::Read, R::ReadDenied),
            (Access::Write, R::WriteDenied),
        ];
        let mut denials: Vec<Denial> = Vec::new();
        for target in INTERRUPT_PAGES {
            denials.push(("in the range", 1, POINTER, target, any(R::InterruptAddress)));
        }
        for target in NEIGHBOURS {
            denials.push(("beside the range", 1, POINTER, target, outside.clone()));
        }
        expect_denials(&mut guest, tag, root, page, denials);
        // A large page whose first half is the range.
        let large = guest.leaf(0xfee0_0000, PageSize::Size2MiB, Rights::READ_WRITE);
        let block = IOVA & !0x1f_ffff;
        guest.set_leaf(root, IOVA, 2, large);
        guest.invalidate_pages(7, IOVA, 0);
        for (offset, reasons) in [
            (0, any(R::InterruptAddress)),
            (0xf_f000, any(R::InterruptAddress)),
            (0x10_0000, outside),
        ] {
            for (access, reason) in reasons {
                let at = block + offset;
                expect("large page", &mut guest, (D0, tag), at, access, reason);
            }
        }
        guest.finish();
    }
    // With a legacy root it has a reason of its own.
    let mut guest = place.shadow_guest();
    let page = guest.data_page();
    let table = guest.table(&[(IOVA, page)]);
    guest.use_legacy_table(D0, table);
    guest.expect_reaches(D0, None, IOVA, page);
    let denials = INTERRUPT_PAGES
        .map(|target| -> Denial { ("legacy", 1, POINTER, target, any(R::LegacyInterruptAddress)) });
    expect_denials(&mut guest, None, table, page, denials.into());
    guest.finish();
}

fn s66_pass_through(place: Place<'_>) {
    for mut guest in both(place) {
        let (pasid, tag) = (guest.pasid, guest.tag);
        let page = guest.data_page();
        guest.set_entry(D0, pasid, &Guest::pass_through(7));
        guest.invalidate_pasid(7, pasid);
        guest.expect_reaches(D0, tag, page, page);
        guest.expect_writes_reach(D0, tag, page, page);
        for address in INTERRUPT_PAGES {
            for access in [Access::Read, Access::Write] {
                let reason = R::InterruptAddress;
                expect(
                    "in the range",
                    &mut guest,
                    (D0, tag),
                    address,
                    access,
                    reason,
                );
            }
        }
        for address in NEIGHBOURS {
            for (access, reason) in [
                (Access::Read, R::ReadDenied),
                (Access::Write, R::WriteDenied),
            ] {
                expect("beside it", &mut guest, (D0, tag), address, access, reason);
            }
        }
        guest.finish();
    }
}

fn s67(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, page) = guest.bound();
    let tag = guest.tag;
    // The machine's memory lies in the first GiB.
    let leaf = guest.leaf(0, PageSize::Size1GiB, Rights::READ_WRITE);
    guest.set_leaf(root, IOVA, 3, leaf);
    guest.invalidate_pages(7, IOVA, 0);
    let at = IOVA & !0x3fff_ffff | page;
    if guest
        .vm
        .offer()
        .features
        .capability
        .has_first_stage_1gib_pages()
    {
        guest.expect_reaches(D0, tag, at, page);
        guest.expect_writes_reach(D0, tag, at, page);
    } else {
        for access in [Access::Read, Access::Write] {
            expect(
                "1 GiB",
                &mut guest,
                (D0, tag),
                at,
                access,
                R::FirstStageReserved,
            );
        }
    }
    // 2 MiB are always there; a bit below the size is reserved.
    let block = page & !0x1f_ffff;
    guest.set_leaf(root, IOVA, 3, 0);
    let leaf = guest.leaf(block, PageSize::Size2MiB, Rights::READ_WRITE);
    guest.set_leaf(root, IOVA, 2, leaf);
    guest.invalidate_pages(7, IOVA, 0);
    guest.expect_reaches(D0, tag, IOVA & !0x1f_ffff | (page - block), page);
    guest.finish();
}

/// What a second-stage table denies, in scalable and in legacy mode.
fn second_stage_denials(guest: &Guest, legacy: bool) -> Vec<Denial> {
    let beyond = guest.beyond_width();
    let choose = |scalable, of_legacy| if legacy { of_legacy } else { scalable };
    let (read, write) = (
        choose(R::ReadDenied, R::LegacyReadDenied),
        choose(R::WriteDenied, R::LegacyWriteDenied),
    );
    // R=W=0 has a reason of its own in scalable mode only.
    let nothing = vec![
        (
            Access::Read,
            choose(R::SecondStageNotPresent, R::LegacyReadDenied),
        ),
        (
            Access::Write,
            choose(R::SecondStageNotPresent, R::LegacyWriteDenied),
        ),
    ];
    let reserved = choose(R::SecondStageReserved, R::LegacySecondStageReserved);
    let unreadable = choose(R::SecondStageUnreadable, R::LegacySecondStageUnreadable);
    let (readable, writable, large) = (1, 1 << 1, 1 << 7);
    let mut denials: Vec<Denial> = vec![
        ("reserved in a leaf", 1, 0, beyond, any(reserved)),
        ("highest address bit", 1, 0, 1 << 51, any(reserved)),
        ("bit 62", 1, 0, 1 << 62, any(reserved)),
        (
            "PS of the highest level",
            guest.levels(),
            0,
            large | u64::from(guest.levels() < 4) << 13,
            any(reserved),
        ),
        (
            "2 MiB, not aligned",
            2,
            POINTER,
            large | 1 << 13,
            any(reserved),
        ),
        ("SNP of a table", 2, 0, 1 << 11, any(reserved)),
        ("table beyond the width", 2, 0, beyond, any(reserved)),
        // Reserved bits do not count without any right, and come before a missing one.
        (
            "no right, reserved",
            1,
            readable | writable,
            beyond,
            nothing.clone(),
        ),
        ("read-only, reserved", 1, writable, beyond, any(reserved)),
        (
            "page outside",
            1,
            POINTER,
            OUTSIDE,
            vec![(Access::Read, read), (Access::Write, write)],
        ),
    ];
    if guest
        .vm
        .offer()
        .features
        .extended
        .field(ExtendedCapabilityField::SNOOP_CONTROL)
        == 0
    {
        denials.push(("SNP of a leaf", 1, 0, 1 << 11, any(reserved)));
    }
    for level in 1..=guest.levels() {
        denials.push(("no right", level, readable | writable, 0, nothing.clone()));
        denials.push((
            "read-only",
            level,
            writable,
            0,
            vec![(Access::Write, write)],
        ));
        denials.push(("write-only", level, readable, 0, vec![(Access::Read, read)]));
        if level > 1 {
            denials.push(("table outside", level, POINTER, OUTSIDE, any(unreadable)));
        }
    }
    denials
}

/// Addresses beyond the width of the guest's table, and a leaf that has rights but not those of
/// its table.
fn expect_more_second_stage(
    guest: &mut Guest,
    tag: Option<u32>,
    root: u64,
    page: u64,
    legacy: bool,
) {
    let bits = guest.width().bits();
    let beyond = if legacy {
        R::LegacyAddressTooLarge
    } else {
        R::AddressBeyondSecondStage
    };
    for address in [1 << bits, 1 << bits | IOVA, 1 << 56 | IOVA] {
        for access in [Access::Read, Access::Write] {
            expect(
                "beyond the width",
                guest,
                (D0, tag),
                address,
                access,
                beyond,
            );
        }
    }
    let (leaf, table) = (guest.slot_at(root, IOVA, 1), guest.slot_at(root, IOVA, 2));
    let before = (guest.read_u64(leaf), guest.read_u64(table));
    guest.change(leaf, 1 << 1, 0);
    guest.change(table, 1, 0);
    guest.invalidate_pages(7, IOVA, 0);
    let none = if legacy {
        [
            (Access::Read, R::LegacyReadDenied),
            (Access::Write, R::LegacyWriteDenied),
        ]
    } else {
        [
            (Access::Read, R::SecondStageNotPresent),
            (Access::Write, R::SecondStageNotPresent),
        ]
    };
    for (access, reason) in none {
        expect("no right in common", guest, (D0, tag), IOVA, access, reason);
    }
    guest.write_u64(leaf, before.0);
    guest.write_u64(table, before.1);
    guest.invalidate_pages(7, IOVA, 0);
    guest.expect_reaches(D0, tag, IOVA, page);
}

fn s68(place: Place<'_>) {
    let mut guest = place.shadow_guest();
    let (root, page) = guest.bound();
    let tag = guest.tag;
    let denials = second_stage_denials(&guest, false);
    expect_denials(&mut guest, tag, root, page, denials);
    expect_more_second_stage(&mut guest, tag, root, page, false);
    guest.finish();
}

fn s68_legacy(place: Place<'_>) {
    let mut guest = place.shadow_guest();
    let page = guest.data_page();
    let root = guest.table(&[(IOVA, page)]);
    let context = guest.use_legacy_table(D0, root);
    guest.expect_reaches(D0, None, IOVA, page);
    let denials = second_stage_denials(&guest, true);
    expect_denials(&mut guest, None, root, page, denials);
    expect_more_second_stage(&mut guest, None, root, page, true);
    // The table itself is in no memory of the machine.
    guest.change(context, POINTER, OUTSIDE);
    guest.invalidate_context(D0);
    let reason = R::LegacyContextEntryInvalid;
    expect(
        "table outside",
        &mut guest,
        (D0, None),
        IOVA,
        Access::Read,
        reason,
    );
    guest.finish();
}

/// Accessed and dirty flags of a first-stage entry.
const ACCESSED_AND_DIRTY: u64 = FirstStageEntry::ACCESSED | FirstStageEntry::DIRTY;

fn s69_denied(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, page) = guest.bound();
    let tag = guest.tag;
    let slot = guest.slot(root, IOVA);
    // The guest may fill its lowest table, hardware may only read it.
    guest.host_makes_read_only(slot & !0xfff);
    guest.expect_reaches(D0, tag, IOVA, page);
    guest.expect_writes_reach(D0, tag, IOVA, page);
    for (name, cleared, access) in [
        ("accessed, for a read", ACCESSED_AND_DIRTY, Access::Read),
        ("accessed, for a write", ACCESSED_AND_DIRTY, Access::Write),
        ("dirty", FirstStageEntry::DIRTY, Access::Write),
    ] {
        guest.change(slot, cleared, 0);
        guest.invalidate_pages(7, IOVA, 0);
        expect(
            name,
            &mut guest,
            (D0, tag),
            IOVA,
            access,
            R::FirstStageUpdateFailed,
        );
        assert_eq!(guest.read_u64(slot) & cleared, 0, "{name}: still clear");
        // What needs no update works.
        guest.change(slot, 0, cleared);
        guest.invalidate_pages(7, IOVA, 0);
        guest.expect_reaches(D0, tag, IOVA, page);
        guest.expect_writes_reach(D0, tag, IOVA, page);
    }
    assert!(guest.lab.host_faults.borrow().is_empty());
    guest.finish();
}

fn s69_snoop(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, page) = guest.bound();
    let tag = guest.tag;
    let coherent = guest.vm.offer().features.extended.has_page_walk_coherency();
    let slots = [1, 2, 3, 4].map(|level| guest.slot_at(root, IOVA, level));
    for (index, slot) in slots.into_iter().enumerate() {
        let leaf = index == 0;
        for (cleared, access) in [
            (ACCESSED_AND_DIRTY, Access::Read),
            (ACCESSED_AND_DIRTY, Access::Write),
            (FirstStageEntry::DIRTY, Access::Write),
            (FirstStageEntry::DIRTY, Access::Read),
        ] {
            let name = format!("level {}, {cleared:#x}, {access:?}", index + 1);
            let before = guest.read_u64(slot);
            guest.change(slot, cleared, 0);
            guest.invalidate_pages(7, IOVA, 0);
            let mut needed = cleared & FirstStageEntry::ACCESSED;
            if leaf && access == Access::Write {
                needed |= FirstStageEntry::DIRTY;
            }
            if needed == 0 || coherent {
                match access {
                    Access::Read => guest.expect_reaches(D0, tag, IOVA, page),
                    Access::Write => guest.expect_writes_reach(D0, tag, IOVA, page),
                }
                assert_eq!(guest.read_u64(slot) & needed, needed, "{name}: set");
            } else {
                let reason = R::FirstStageUpdateUnsnooped;
                expect(&name, &mut guest, (D0, tag), IOVA, access, reason);
                assert_eq!(guest.read_u64(slot) & cleared, 0, "{name}: still clear");
            }
            guest.write_u64(slot, before);
            guest.invalidate_pages(7, IOVA, 0);
        }
    }
    guest.expect_reaches(D0, tag, IOVA, page);
    guest.expect_writes_reach(D0, tag, IOVA, page);
    guest.finish();
}

fn s69_erratum(place: Place<'_>) {
    // Erratum 772415 SPR17: with snooped walks, updates reach read-only pages.
    let lab = place.lab_with_erratum(Erratum::NestedUpdatesIgnoreReadOnly);
    let mut guest = Guest::start(&lab, GuestOptions::default());
    let (root, page) = guest.bound();
    let tag = guest.tag;
    let slot = guest.slot(root, IOVA);
    let before = guest.read_u64(slot);
    // A data page: not there for devices at all.
    guest.host_makes_read_only(page);
    for (access, reason) in [
        (Access::Read, R::ReadDenied),
        (Access::Write, R::WriteDenied),
    ] {
        expect(
            "read-only data",
            &mut guest,
            (D0, tag),
            IOVA,
            access,
            reason,
        );
    }
    // A table: nothing in it is changed, whatever it lacks.
    let other = guest.data_page();
    let leaf = guest.leaf(other, PageSize::Size4KiB, Rights::READ_WRITE) & !ACCESSED_AND_DIRTY;
    guest.write_u64(slot, leaf);
    guest.host_makes_read_only(slot & !0xfff);
    guest.invalidate_pages(7, IOVA, 0);
    guest.expect_no_data(D0, tag, IOVA);
    assert_eq!(guest.read_u64(slot), leaf);
    assert_ne!(before, leaf);
    assert_eq!(guest.vm.statistics().read_only_left_out, 2);
    guest.finish();

    // A hypervisor that cannot do without its read-only memory is told instead.
    let policy = Policy {
        on_read_only_memory: OnReadOnlyMemory::Refuse,
        ..Policy::default()
    };
    let options = GuestOptions {
        number: 1,
        policy,
        devices: Vec::new(),
        ..GuestOptions::default()
    };
    let mut guest = Guest::start(&lab, options);
    let at = Gpa::new(OUTSIDE);
    let host = lab.hypervisor.bench().layout().nobodys.start;
    let mut map = |rights| {
        let vm = &mut guest.vm;
        vm.map_memory(&*lab.hypervisor, &lab.units, at, host, 0x1000, rights)
    };
    let refused = MachineError::ReadOnlyUnderErratum { guest: at };
    assert_eq!(map(Rights::READ), Err(refused));
    assert_eq!(map(Rights::READ_WRITE), Ok(()));
    let (vm, partial) = (&mut guest.vm, OnPartialLeaf::Refuse);
    let protected = vm.protect_memory(
        &*lab.hypervisor,
        &lab.units,
        at,
        0x1000,
        Rights::READ,
        partial,
    );
    assert_eq!(protected, Err(refused));
    guest.finish();
}

/// Where the second machine's device is on its guest's bus: not where it is on the host's.
const ELSEWHERE: SourceId = SourceId::from_u16(0x0123);

fn s70_other_unit(place: Place<'_>) {
    let mut guest = place.guest();
    guest.bound();
    let record = FaultRecord::new(FaultInfo {
        source_id: guest.physical(D0),
        pasid: None,
        reason: R::PasidEntryNotPresent.code(),
        address: Iova::new(IOVA),
        request: RequestType::Read,
        privileged: false,
        execute: false,
        address_type: AddressType::Untranslated,
    });
    let lab = guest.lab.clone();
    for (unit, is_its_own) in [(1, false), (0, true)] {
        let outcome = guest
            .vm
            .handle_fault(&*lab.hypervisor, &lab.units, unit, &record);
        assert_eq!(outcome != FaultOutcome::NotOfThisMachine, is_its_own);
        assert_eq!(guest.take_faults().faults.len(), usize::from(is_its_own));
    }
    guest.finish();
}

fn s70(place: Place<'_>) {
    let lab = place.lab();
    let start = |number, source_id, device| {
        let devices = vec![(source_id, device, 0)];
        let options = GuestOptions {
            number,
            devices,
            ..GuestOptions::default()
        };
        Guest::start(&lab, options)
    };
    let mut a = start(0, ELSEWHERE, 0);
    let mut b = start(1, D1, 1);
    let (pasid, tag) = (a.pasid, a.tag);
    assert_ne!(a.physical(ELSEWHERE), ELSEWHERE);
    let (_, page_a) = a.bind(ELSEWHERE, pasid, 7);
    let (_, page_b) = b.bind(D1, pasid, 7);
    a.program_events();
    let not_mapped = if a.is_first_stage() {
        R::FirstStageNotPresent
    } else {
        R::SecondStageNotPresent
    };

    let address = IOVA + 0x1000;
    for access in [Access::Write, Access::Read] {
        assert!(!a.gets_through(ELSEWHERE, tag, address, access));
        // B looks first: the record is none of its own.
        assert_eq!(b.take_faults().faults, []);
        a.settle();
        assert_eq!(a.take_events(), [Event::Fault]);
        let index = u64::from(access == Access::Read);
        let (low, high) = a.fault_record(index);
        assert_eq!(low, address, "FI");
        assert_eq!(
            high & 0xffff,
            u64::from(ELSEWHERE.as_u16()),
            "SID: the guest's"
        );
        assert_eq!(
            high >> 32 & 0xff,
            u64::from(a.shown(not_mapped, access == Access::Write).code()),
            "FR: the guest's"
        );
        assert_eq!(high >> 62 & 1 == 1, access == Access::Read, "T1");
        assert_eq!(high >> 63, 1, "F");
        if let Some(tag) = tag {
            assert_eq!(high >> 31 & 1, 1, "PP");
            assert_eq!(high >> 40 & 0xf_ffff, u64::from(tag), "PV");
        }
        let taken = a.take_faults();
        assert_eq!((taken.faults.len(), taken.overflow), (1, false));
    }
    // The guest names a page that its machine does not have: another machine's, or nobody's.
    let outside = [
        crate::lab::GUEST_LEN_BYTES,
        a.lab.hypervisor.bench().layout().nobodys.start.as_u64(),
        OUTSIDE,
    ];
    for page in outside {
        let root = a.table(&[(IOVA, page)]);
        let entry = a.entry(root, 7);
        a.set_entry(ELSEWHERE, pasid, &entry);
        a.invalidate_pasid(7, pasid);
        for (access, reason) in [
            (Access::Read, R::ReadDenied),
            (Access::Write, R::WriteDenied),
        ] {
            expect("outside", &mut a, (ELSEWHERE, tag), IOVA, access, reason);
        }
    }
    a.take_events();
    assert_eq!(b.take_faults().faults, []);
    assert_eq!(b.outcomes, [], "nothing of B's was touched");
    b.expect_reaches(D1, tag, IOVA, page_b);
    // The same the other way round.
    expect(
        "of B",
        &mut b,
        (D1, tag),
        address,
        Access::Write,
        not_mapped,
    );
    assert_eq!(a.take_faults().faults, []);
    assert_eq!(a.take_events(), []);
    let root = a.table(&[(IOVA, page_a)]);
    let entry = a.entry(root, 7);
    a.set_entry(ELSEWHERE, pasid, &entry);
    a.invalidate_pasid(7, pasid);
    a.expect_reaches(ELSEWHERE, tag, IOVA, page_a);
    assert!(lab.host_faults.borrow().is_empty());
    assert!(lab.take_unclaimed_faults().is_empty());
    a.finish();
    b.finish();
}

fn s70_host(place: Place<'_>) {
    for mut guest in both(place) {
        let (_, page) = guest.bound();
        let tag = guest.tag;
        guest.program_events();
        let untold = |guest: &mut Guest, name: &str| {
            assert!(guest.fault_status().is_empty(), "{name}");
            assert_eq!(guest.take_faults().faults, [], "{name}");
            assert_eq!(guest.take_events(), [], "{name}");
        };
        // The guest may write the page, by its tables; the host lets devices read it only.
        guest.host_makes_read_only(page);
        guest.outcomes.clear();
        // Before any read: QEMU records nothing where its IOTLB already lacks the right.
        assert!(!guest.gets_through(D0, tag, IOVA, Access::Write));
        guest.settle();
        untold(&mut guest, "read-only for devices");
        let [FaultOutcome::Host(fault)] = guest.outcomes.as_slice() else {
            panic!("{:?}", guest.outcomes);
        };
        assert_eq!(fault.record.source_id(), guest.physical(D0));
        assert_eq!(fault.record.address().as_u64(), IOVA);
        assert_eq!(
            fault.cause,
            HostFaultCause::MachineMemory {
                address: Gpa::new(page)
            }
        );
        guest.expect_reaches(D0, tag, IOVA, page);
        // With the guest's translation off its devices use the machine's memory as it is.
        guest.set_translation(false);
        guest.outcomes.clear();
        assert!(!guest.gets_through(D0, None, OUTSIDE, Access::Read));
        guest.settle();
        untold(&mut guest, "translation off");
        let [FaultOutcome::Host(fault)] = guest.outcomes.as_slice() else {
            panic!("{:?}", guest.outcomes);
        };
        assert_eq!(fault.cause, HostFaultCause::TranslationOff);
        assert_eq!(guest.lab.host_faults.borrow().len(), 2);
        guest.finish();
    }
}
