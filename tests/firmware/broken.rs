//! Tables as broken firmware writes them.

use vtd_nest::arch::address::Hpa;
use vtd_nest::arch::dmar::{Dmar, DmarError, PathEntry, ScopeError};
use vtd_nest::arch::pci::PciKind::RootPort;
use vtd_nest::unit::DiscoveryError;

use super::builder::{Segment, Table, bridge, endpoint, id, scope};
use super::{Case, resolve_first};

const BASE: u64 = 0xfed9_0000;
/// Where the first structure is, and the second, behind a unit without scopes.
const FIRST: usize = 48;
const SECOND: usize = 64;

fn one_unit() -> Table {
    Table::new(46).last_unit(0, BASE, &[])
}

/// A change of the finished bytes.
fn changed(table: Table, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = table.finish();
    change(&mut bytes);
    bytes
}

/// A change of the finished bytes, with the checksum put right again.
fn resealed(table: Table, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    changed(table, |bytes| {
        change(bytes);
        bytes[9] = 0;
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[9] = sum.wrapping_neg();
    })
}

fn structure_length(offset: usize, length: u16) -> DmarError {
    DmarError::StructureLength { offset, length }
}

pub(super) fn cases() -> Vec<Case> {
    headers()
        .into_iter()
        .chain(structures())
        .chain(units())
        .chain(scopes())
        .collect()
}

fn headers() -> Vec<Case> {
    vec![
        Case::new("empty", Vec::new()).no_table(DmarError::Truncated {
            needed: 48,
            available: 0,
        }),
        Case::new(
            "another signature",
            changed(one_unit(), |bytes| bytes[0] = b'd'),
        )
        .no_table(DmarError::Signature(*b"dMAR")),
        Case::new(
            "wrong checksum",
            changed(one_unit(), |bytes| bytes[60] ^= 1),
        )
        .no_table(DmarError::Checksum(1)),
        Case::new("length 0", resealed(one_unit(), |bytes| bytes[4] = 0))
            .no_table(DmarError::TableLength(0)),
        Case::new(
            "longer than it is",
            resealed(one_unit(), |bytes| bytes[5] = 1),
        )
        .no_table(DmarError::Truncated {
            needed: 64 + 256,
            available: 64,
        }),
        Case::new("11-bit addresses", Table::new(11).finish())
            .no_table(DmarError::HostAddressWidth(11)),
        Case::new("no units", Table::new(46).finish()).refused(DiscoveryError::NoUnits),
        // Bytes behind the table are no part of it.
        Case::new(
            "rubbish behind the end",
            changed(one_unit(), |bytes| bytes.extend([0xff; 9])),
        )
        .has_units(&[(0, BASE, true)]),
    ]
}

fn structures() -> Vec<Case> {
    vec![
        Case::new("structure of length 0", one_unit().raw(&[0; 16]).finish())
            .malformed(structure_length(SECOND, 0)),
        Case::new(
            "structure of length 3",
            one_unit().raw(&[0, 0, 3, 0]).finish(),
        )
        .malformed(structure_length(SECOND, 3)),
        Case::new(
            "structure beyond the table",
            one_unit().raw(&[0, 0, 24, 0]).finish(),
        )
        .malformed(structure_length(SECOND, 24)),
        Case::new(
            "structure without length",
            one_unit().raw(&[0, 0, 4]).finish(),
        )
        .malformed(structure_length(SECOND, 0)),
        Case::new(
            "unit too short",
            Table::new(46).raw(&[0, 0, 8, 0, 1, 0, 0, 0]).finish(),
        )
        .malformed(structure_length(FIRST, 8)),
        Case::new(
            "region too short",
            one_unit().with(1, &[0; 8], &[]).finish(),
        )
        .malformed(structure_length(SECOND, 12)),
        Case::new(
            "affinity too short",
            one_unit().with(3, &[0; 8], &[]).finish(),
        )
        .malformed(structure_length(SECOND, 12)),
        Case::new(
            "name without end",
            one_unit().with(4, b"\0\0\0\x01\\_SB", &[]).finish(),
        )
        .malformed(DmarError::ObjectName { offset: SECOND }),
        Case::new(
            "namespace device too short",
            one_unit().with(4, b"\0\0", &[]).finish(),
        )
        .malformed(structure_length(SECOND, 6)),
        Case::new(
            "unknown types",
            Table::new(46)
                .with(7, &[], &[])
                .with(0x7fff, &[1; 60], &[])
                .last_unit(0, BASE, &[])
                .with(0xffff, &[0xff; 3], &[])
                .finish(),
        )
        .has_units(&[(0, BASE, true)]),
        Case::new(
            "in no order",
            Table::new(46)
                .with(4, b"\0\0\0\x01\\_SB\0", &[])
                .reserved(0, 0x1000, 0x1fff, &[endpoint(0, &[(2, 0)])])
                .last_unit(0, BASE, &[])
                .flagged(5, false, 0, &[])
                .unit(0, BASE + 0x1000, &[endpoint(0, &[(2, 0)])])
                .finish(),
        )
        .has_units(&[(0, BASE, true), (0, BASE + 0x1000, false)])
        .covers(&[
            (0, "00:02.0", Some(BASE + 0x1000)),
            (0, "00:03.0", Some(BASE)),
        ]),
    ]
}

fn units() -> Vec<Case> {
    let at = |base| Table::new(46).last_unit(0, base, &[]).finish();
    let base_error = |base| DiscoveryError::RegisterBase(Hpa::new(base));
    vec![
        Case::new("unit at 0", at(0)).refused(base_error(0)),
        Case::new("unit at all ones", at(u64::MAX)).refused(base_error(u64::MAX)),
        Case::new("unit at the last page", at(!0xfff)).refused(base_error(!0xfff)),
        Case::new("unit beyond the address width", at(1 << 46)).refused(base_error(1 << 46)),
        Case::new(
            "unit at the end of the address width",
            at((1 << 46) - 0x1000),
        )
        .has_units(&[(0, (1 << 46) - 0x1000, true)]),
        Case::new("unit off its page", at(BASE + 0x800)).refused(base_error(BASE + 0x800)),
        Case::new(
            "window of 8 KiB at an odd page",
            resealed(Table::new(46).last_unit(0, BASE + 0x1000, &[]), |bytes| {
                bytes[53] = 1
            }),
        )
        .refused(base_error(BASE + 0x1000)),
        Case::new(
            "reserved bits in the window size",
            resealed(one_unit(), |bytes| bytes[53] = 0xf0),
        )
        .has_units(&[(0, BASE, true)]),
        Case::new(
            "the same unit twice",
            Table::new(46)
                .unit(0, BASE, &[endpoint(0, &[(2, 0)])])
                .last_unit(0, BASE, &[])
                .finish(),
        )
        .has_units(&[(0, BASE, true)])
        .covers(&[(0, "00:02.0", Some(BASE)), (0, "00:03.0", Some(BASE))]),
        Case::new(
            "one unit for two segments",
            Table::new(46)
                .last_unit(0, BASE, &[])
                .last_unit(1, BASE, &[])
                .finish(),
        )
        .refused(DiscoveryError::Overlap(Hpa::new(BASE))),
        Case::new(
            "windows that overlap",
            resealed(
                Table::new(46)
                    .last_unit(0, BASE, &[])
                    .last_unit(1, BASE + 0x1000, &[]),
                |bytes| bytes[53] = 1,
            ),
        )
        .refused(DiscoveryError::Overlap(Hpa::new(BASE + 0x1000))),
        Case::new(
            "two units for all others",
            Table::new(46)
                .last_unit(0, BASE, &[])
                .last_unit(0, BASE + 0x1000, &[])
                .finish(),
        )
        .has_units(&[(0, BASE, true), (0, BASE + 0x1000, true)])
        .covers(&[(0, "00:02.0", Some(BASE))]),
        Case::new(
            "the unit for all others first, and with scopes",
            Table::new(46)
                .last_unit(0, BASE, &[endpoint(0, &[(3, 0)])])
                .unit(
                    0,
                    BASE + 0x1000,
                    &[endpoint(0, &[(2, 0)]), endpoint(0, &[(3, 0)])],
                )
                .finish(),
        )
        .has_units(&[(0, BASE, true), (0, BASE + 0x1000, false)])
        .covers(&[
            (0, "00:02.0", Some(BASE + 0x1000)),
            (0, "00:03.0", Some(BASE)),
        ]),
        Case::new("65 units", {
            let units = 0..65_u64;
            let table = units.fold(Table::new(46), |table, unit| {
                table.unit(0, BASE + 0x1000 * unit, &[])
            });
            table.finish()
        })
        .refused(DiscoveryError::TooMany { capacity: 64 }),
    ]
}

fn scopes() -> Vec<Case> {
    let with = |scopes: &[Vec<u8>]| {
        let table = Table::new(46).unit(0, BASE, scopes);
        table.last_unit(0, BASE + 0x1000, &[]).finish()
    };
    let units = [(0, BASE, false), (0, BASE + 0x1000, true)];
    vec![
        Case::new("absent device", with(&[endpoint(0, &[(9, 0), (0, 0)])]))
            .has_units(&units)
            .covers(&[(0, "00:00.0", Some(BASE + 0x1000))]),
        Case::new("device 32", with(&[endpoint(0, &[(32, 0)])]))
            .has_units(&units)
            .covers(&[(0, "00:00.0", Some(BASE + 0x1000))]),
        Case::new(
            "scope of an unknown type",
            with(&[scope(9, 0, 0, 0, &[(2, 0)])]),
        )
        .has_units(&units)
        .covers(&[(0, "00:02.0", Some(BASE + 0x1000))]),
        Case::new("overlapping scopes", {
            let table = Table::new(46)
                .unit(0, BASE, &[bridge(0, &[(1, 0)]), endpoint(0, &[(2, 0)])])
                .unit(
                    0,
                    BASE + 0x1000,
                    &[bridge(0, &[(1, 0)]), endpoint(0, &[(2, 0)])],
                );
            table.finish()
        })
        .in_segment(Segment::new(&[(RootPort, "00:01.0", 1, 2)], &[]))
        .has_units(&[(0, BASE, false), (0, BASE + 0x1000, false)])
        .covers(&[(0, "00:02.0", Some(BASE)), (0, "01:00.0", Some(BASE))]),
        Case::new(
            "bridge whose buses are not set up",
            with(&[bridge(0, &[(1, 0)])]),
        )
        .in_segment(Segment::new(&[(RootPort, "00:01.0", 0, 0)], &[]))
        .has_units(&units)
        .covers(&[
            (0, "00:01.0", Some(BASE)),
            (0, "00:02.0", Some(BASE + 0x1000)),
        ]),
        Case::new(
            "bridge whose buses run backwards",
            with(&[bridge(0, &[(1, 0)])]),
        )
        .in_segment(Segment::new(&[(RootPort, "00:01.0", 5, 2)], &[]))
        .has_units(&units)
        .covers(&[
            (0, "03:00.0", Some(BASE + 0x1000)),
            (0, "05:00.0", Some(BASE + 0x1000)),
        ]),
    ]
}

/// A table whose unit has a broken scope is still a list of units, but says of no device which is
/// its unit: it may be the broken one.
#[test]
fn broken_scopes_leave_no_device_to_a_wrong_unit() {
    for (scope, length) in [
        (&[1, 0, 0, 0, 0, 0][..], 0),
        (&[1, 6, 0, 0, 0, 0], 6),
        (&[1, 7, 0, 0, 0, 0, 2], 7),
        (&[1, 12, 0, 0, 0, 0, 2, 0], 12),
        (&[1], 0),
    ] {
        let bytes = Table::new(46)
            .unit(0, BASE, &[scope.to_vec()])
            .last_unit(0, BASE + 0x1000, &[])
            .finish();
        let dmar = Dmar::parse(&bytes).unwrap();
        let error = DmarError::ScopeLength {
            offset: SECOND,
            length,
        };
        let found = dmar.unit_for(0, id("00:02.0"), &Segment::default());
        assert_eq!(found, Err(error), "{scope:?}");
    }
}

#[test]
fn paths_that_lead_nowhere_say_why() {
    let segment = Segment::new(&[(RootPort, "00:01.0", 0, 0)], &[]);
    let table = |scope| Table::new(46).unit(0, BASE, &[scope]).finish();
    for (path, error) in [
        (&[(1, 0), (0, 0)][..], ScopeError::NotABridge(id("00:01.0"))),
        (&[(2, 0), (0, 0)], ScopeError::NotABridge(id("00:02.0"))),
        (
            &[(2, 8)],
            ScopeError::PathEntry(PathEntry {
                device: 2,
                function: 8,
            }),
        ),
    ] {
        let found = resolve_first(&table(endpoint(0, path)), &segment);
        assert_eq!(found, Err(error), "{path:?}");
    }
    // An HPET's path is its source-id.
    let hpet = scope(4, 0, 0, 0, &[(1, 0), (0, 0)]);
    let found = resolve_first(&table(hpet), &segment);
    assert_eq!(found, Err(ScopeError::PathLength(2)));
}
