//! Tables as firmware writes them, well and badly.

use super::*;
use crate::arch::address::Hpa;
use crate::arch::id::SourceId;
use crate::arch::pci::PciTopology;

extern crate std;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

/// A table with these structures, its length and checksum right.
fn table(width: u8, flags: u8, structures: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..4].copy_from_slice(b"DMAR");
    bytes[8] = 1; // Revision.
    bytes[10..16].copy_from_slice(b"VTDNST");
    bytes[36] = width - 1;
    bytes[37] = flags;
    for structure in structures {
        bytes.extend_from_slice(structure);
    }
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    seal(&mut bytes);
    bytes
}

/// Makes the checksum of the whole right.
fn seal(bytes: &mut [u8]) {
    bytes[9] = 0;
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[9] = sum.wrapping_neg();
}

/// A structure: its type, what follows the length, its device scopes.
fn structure(kind: u16, body: &[u8], scopes: &[&[u8]]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(body);
    for scope in scopes {
        bytes.extend_from_slice(scope);
    }
    let length = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

fn scope(kind: u8, flags: u8, id: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    let mut bytes = vec![kind, 6 + 2 * path.len() as u8, flags, 0, id, bus];
    for (device, function) in path {
        bytes.extend_from_slice(&[*device, *function]);
    }
    bytes
}

fn drhd(flags: u8, size: u8, segment: u16, base: u64, scopes: &[&[u8]]) -> Vec<u8> {
    let mut body = vec![flags, size];
    body.extend_from_slice(&segment.to_le_bytes());
    body.extend_from_slice(&base.to_le_bytes());
    structure(0, &body, scopes)
}

/// What QEMU describes for its unit: explicit scopes, and one I/O APIC behind a pseudo bus.
fn emulated() -> Vec<u8> {
    table(
        39,
        1,
        &[
            &drhd(
                0,
                0,
                0,
                0xfed9_0000,
                &[
                    &scope(3, 0, 0, 0xff, &[(0, 0)]),
                    &scope(1, 0, 0, 0, &[(0, 0)]),
                    &scope(1, 0, 0, 0, &[(2, 0)]),
                    &scope(2, 0, 0, 0, &[(3, 0)]),
                    &scope(1, 0, 0, 0, &[(0x1f, 3)]),
                ],
            ),
            &structure(2, &[1, 0, 0, 0], &[]),
        ],
    )
}

/// A server: two segments, a bridge with a unit of its own and another below, all types.
fn server() -> Vec<u8> {
    let rmrr_body = [
        &[0, 0, 0, 0][..],
        &0x7b80_0000_u64.to_le_bytes(),
        &0x7bff_ffff_u64.to_le_bytes(),
    ]
    .concat();
    let rhsa_body = [
        &[0, 0, 0, 0][..],
        &0xd0ff_c000_u64.to_le_bytes(),
        &1_u32.to_le_bytes(),
    ]
    .concat();
    table(
        52,
        0b101,
        &[
            // Below root port 00:1c.0, buses 1 to 15.
            &drhd(0, 0, 0, 0xd0ff_c000, &[&scope(2, 0, 0, 0, &[(0x1c, 0)])]),
            // The switch port 01:00.0, buses 2 to 4, named through the root port.
            &drhd(
                0,
                1,
                0,
                0xd0fe_0000,
                &[&scope(2, 0, 0, 0, &[(0x1c, 0), (0, 0)])],
            ),
            // The endpoint 02:00.1, named through two bridges.
            &drhd(
                0,
                0xf0,
                0,
                0xd0fd_0000,
                &[&scope(1, 0, 0, 0, &[(0x1c, 0), (0, 0), (0, 1)])],
            ),
            &drhd(
                1,
                0,
                0,
                0xd0fc_0000,
                &[
                    &scope(3, 0, 8, 0xf0, &[(0x1f, 7)]),
                    &scope(4, 0, 0, 0xf0, &[(0x0f, 0)]),
                    &scope(5, 0, 1, 0xf1, &[(2, 0)]),
                ],
            ),
            &drhd(1, 0, 1, 0xe0fc_0000, &[]),
            &structure(1, &rmrr_body, &[&scope(1, 0, 0, 0, &[(0x14, 0)])]),
            &structure(2, &[0, 0, 0, 0], &[&scope(2, 0, 0, 0, &[(0x1c, 0)])]),
            &structure(3, &rhsa_body, &[]),
            &structure(4, b"\0\0\0\x01\\_SB.I2C0\0", &[]),
            &structure(5, &[1, 0, 0, 0], &[&scope(1, 0, 0, 0x6a, &[(1, 0)])]),
            &structure(6, &[0, 0, 1, 0], &[&scope(1, 0b110, 0, 0x6a, &[(2, 0)])]),
            &structure(0x77, &[1, 2, 3], &[]),
        ],
    )
}

struct Bridges;
/// Bridge, secondary, subordinate.
const BRIDGES: [(&str, u8, u8); 4] = [
    ("00:1c.0", 1, 15),
    ("01:00.0", 2, 4),
    ("00:03.0", 5, 5),
    // Not set up.
    ("00:1d.0", 0, 0),
];

impl Bridges {
    fn find(bridge: SourceId) -> Option<(u8, u8)> {
        BRIDGES
            .into_iter()
            .find(|(name, ..)| *name == bridge.to_string())
            .map(|(_, secondary, subordinate)| (secondary, subordinate))
    }
}

impl PciTopology for Bridges {
    fn secondary_bus(&self, bridge: SourceId) -> Option<u8> {
        Self::find(bridge).map(|(secondary, _)| secondary)
    }
    fn subordinate_bus(&self, bridge: SourceId) -> Option<u8> {
        Self::find(bridge).map(|(_, subordinate)| subordinate)
    }
}

fn source_id(bus: u8, device: u8, function: u8) -> SourceId {
    SourceId::new(bus, device, function).unwrap()
}

#[test]
fn an_emulated_machines_table_is_read() {
    let bytes = emulated();
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!(dmar.host_address_width(), 39);
    assert!(dmar.supports_interrupt_remapping());
    assert!(!dmar.opts_out_of_x2apic() && !dmar.opts_in_to_dma_control());
    let structures: Vec<_> = dmar.structures().map(Result::unwrap).collect();
    let [Structure::Drhd(unit), Structure::Atsr(atsr)] = structures[..] else {
        panic!("{structures:?}");
    };
    assert_eq!((unit.segment, unit.base), (0, Hpa::new(0xfed9_0000)));
    assert_eq!(unit.register_window_bytes, 4096);
    assert!(unit.has_valid_base() && !unit.include_all);
    assert!(atsr.all_ports && atsr.scopes().next().is_none());
    let scopes: Vec<_> = unit.scopes().map(Result::unwrap).collect();
    assert_eq!(
        scopes
            .iter()
            .map(|scope| (scope.kind, scope.resolve(|_| None).unwrap()))
            .collect::<Vec<_>>(),
        [
            (ScopeKind::IoApic, source_id(0xff, 0, 0)),
            (ScopeKind::PciEndpoint, source_id(0, 0, 0)),
            (ScopeKind::PciEndpoint, source_id(0, 2, 0)),
            (ScopeKind::PciSubHierarchy, source_id(0, 3, 0)),
            (ScopeKind::PciEndpoint, source_id(0, 0x1f, 3)),
        ]
    );
    for (device, covered) in [
        (source_id(0, 2, 0), true),
        (source_id(0, 3, 0), true),
        (source_id(5, 9, 1), true),
        (source_id(6, 0, 0), false),
        (source_id(0, 2, 1), false),
    ] {
        let found = dmar.unit_for(0, device, &Bridges).unwrap();
        assert_eq!(found, covered.then_some(unit), "{device}");
    }
}

#[test]
fn a_servers_table_is_read() {
    let bytes = server();
    let dmar = Dmar::parse(&bytes).unwrap();
    assert_eq!((dmar.host_address_width(), dmar.flags()), (52, 0b101));
    assert!(dmar.opts_in_to_dma_control());
    let structures: Vec<_> = dmar.structures().map(Result::unwrap).collect();
    let [
        Structure::Drhd(_),
        Structure::Drhd(second),
        Structure::Drhd(third),
        Structure::Drhd(rest),
        Structure::Drhd(other_segment),
        Structure::Rmrr(rmrr),
        Structure::Atsr(atsr),
        Structure::Rhsa(rhsa),
        Structure::Andd(andd),
        Structure::Satc(satc),
        Structure::Sidp(sidp),
        Structure::Unknown {
            kind: 0x77,
            length: 7,
        },
    ] = structures[..]
    else {
        panic!("{structures:?}");
    };
    assert_eq!(second.register_window_bytes, 8192);
    assert_eq!(third.register_window_bytes, 4096, "bits 7:4 are reserved");
    assert_eq!(
        (other_segment.segment, other_segment.include_all),
        (1, true)
    );
    assert_eq!(
        (rmrr.base, rmrr.limit, rmrr.len_bytes()),
        (
            Hpa::new(0x7b80_0000),
            Hpa::new(0x7bff_ffff),
            Some(0x80_0000)
        )
    );
    assert_eq!(
        rmrr.scopes().next().unwrap().unwrap().resolve(|_| None),
        Ok(source_id(0, 0x14, 0))
    );
    assert!(!atsr.all_ports && atsr.scopes().count() == 1);
    assert_eq!(
        (rhsa.base, rhsa.proximity_domain),
        (Hpa::new(0xd0ff_c000), 1)
    );
    assert_eq!((andd.device_number, andd.object_name), (1, c"\\_SB.I2C0"));
    assert!(satc.cache_required && satc.scopes().count() == 1);
    assert_eq!(sidp.segment, 1);
    assert_eq!(sidp.scopes().next().unwrap().unwrap().flags, 0b110);
    // HPETs and namespace devices: start bus and path are the source-id.
    let direct: Vec<_> = rest
        .scopes()
        .map(|scope| {
            let scope = scope.unwrap();
            (
                scope.kind,
                scope.enumeration_id,
                scope.resolve(|_| None).unwrap(),
            )
        })
        .collect();
    assert_eq!(
        direct,
        [
            (ScopeKind::IoApic, 8, source_id(0xf0, 0x1f, 7)),
            (ScopeKind::MsiHpet, 0, source_id(0xf0, 0x0f, 0)),
            (ScopeKind::AcpiNamespaceDevice, 1, source_id(0xf1, 2, 0)),
        ]
    );
}

#[test]
fn the_closest_unit_covers_a_device() {
    let bytes = server();
    let dmar = Dmar::parse(&bytes).unwrap();
    for (segment, device, base) in [
        (0, source_id(0, 0x1c, 0), Some(0xd0ff_c000)),
        (0, source_id(9, 0, 0), Some(0xd0ff_c000)),
        (0, source_id(15, 31, 7), Some(0xd0ff_c000)),
        (0, source_id(1, 0, 0), Some(0xd0fe_0000)),
        (0, source_id(1, 1, 0), Some(0xd0ff_c000)),
        (0, source_id(2, 0, 0), Some(0xd0fe_0000)),
        (0, source_id(4, 0, 0), Some(0xd0fe_0000)),
        (0, source_id(2, 0, 1), Some(0xd0fd_0000)),
        (0, source_id(0, 2, 0), Some(0xd0fc_0000)),
        (0, source_id(16, 0, 0), Some(0xd0fc_0000)),
        (1, source_id(2, 0, 1), Some(0xe0fc_0000)),
        (2, source_id(0, 0, 0), None),
    ] {
        let found = dmar.unit_for(segment, device, &Bridges).unwrap();
        assert_eq!(
            found.map(|unit| unit.base.as_u64()),
            base,
            "{segment} {device}"
        );
    }
}

#[test]
fn units_are_found_whatever_their_order() {
    // Firmware may list the INCLUDE_PCI_ALL unit first.
    let bytes = table(
        46,
        0,
        &[
            &drhd(1, 0, 0, 0x1000, &[]),
            &drhd(0, 0, 0, 0x2000, &[&scope(2, 0, 0, 0, &[(0x1c, 0)])]),
            &drhd(0, 0, 0, 0x3000, &[&scope(1, 0, 0, 7, &[(0, 0)])]),
            // A device that is absent, and a bridge that is not set up.
            &drhd(0, 0, 0, 0x4000, &[&scope(1, 0, 0, 0, &[(9, 0), (0, 0)])]),
            &drhd(0, 0, 0, 0x5000, &[&scope(2, 0, 0, 0, &[(0x1d, 0)])]),
        ],
    );
    let dmar = Dmar::parse(&bytes).unwrap();
    for (device, base) in [
        (source_id(7, 0, 0), 0x3000),
        (source_id(7, 0, 1), 0x2000),
        (source_id(0, 0, 0), 0x1000),
        (source_id(0x30, 0, 0), 0x1000),
    ] {
        let found = dmar.unit_for(0, device, &Bridges).unwrap().unwrap();
        assert_eq!(found.base, Hpa::new(base), "{device}");
    }
}

#[test]
fn a_path_is_walked_over_secondary_buses() {
    type Case = (u8, &'static [(u8, u8)], Result<SourceId, ScopeError>);
    let cases: [Case; 9] = [
        (1, &[(2, 3)], Ok(source_id(0, 2, 3))),
        (1, &[(0x1c, 0), (5, 1)], Ok(source_id(1, 5, 1))),
        (3, &[(0x1c, 0), (0, 0), (6, 2)], Ok(source_id(2, 6, 2))),
        (
            1,
            &[(9, 0), (0, 0)],
            Err(ScopeError::NotABridge(source_id(0, 9, 0))),
        ),
        (
            1,
            &[(0x1d, 0), (0, 0)],
            Err(ScopeError::NotABridge(source_id(0, 0x1d, 0))),
        ),
        (
            1,
            &[(32, 0)],
            Err(ScopeError::PathEntry(PathEntry {
                device: 32,
                function: 0,
            })),
        ),
        (
            2,
            &[(0x1c, 8), (0, 0)],
            Err(ScopeError::PathEntry(PathEntry {
                device: 0x1c,
                function: 8,
            })),
        ),
        (4, &[(0x1c, 0), (0, 0)], Err(ScopeError::PathLength(2))),
        (5, &[(0x1c, 0), (0, 0)], Err(ScopeError::PathLength(2))),
    ];
    for (kind, path, expected) in cases {
        let bytes = scope(kind, 0, 0, 0, path);
        let (scope, rest) = DeviceScope::split(&bytes, bytes[1]).unwrap();
        assert!(rest.is_empty());
        assert_eq!(scope.path().len(), path.len());
        assert_eq!(
            scope.resolve(|bridge| Bridges.secondary_bus(bridge)),
            expected,
            "{path:?}"
        );
    }
}

#[test]
fn headers_are_checked() {
    let good = emulated();
    assert!(Dmar::parse(&good).is_ok());
    let change = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        edit(&mut bytes);
        Dmar::parse(&bytes).err()
    };
    assert_eq!(
        change(&|b| b[0] = b'X'),
        Some(DmarError::Signature(*b"XMAR"))
    );
    assert_eq!(
        change(&|b| b[20] = b[20].wrapping_add(3)),
        Some(DmarError::Checksum(3))
    );
    assert_eq!(
        change(&|b| b[4..8].fill(0)),
        Some(DmarError::TableLength(0))
    );
    assert_eq!(
        change(&|b| b[4..8].fill(0xff)),
        Some(DmarError::Truncated {
            needed: 0xffff_ffff,
            available: good.len()
        })
    );
    // Bytes behind the table are somebody else's.
    assert_eq!(change(&|b| b.push(0xee)), None);
    // §8.1: the field is the width minus 1.
    for (field, fault) in [
        (10, Some(DmarError::HostAddressWidth(11))),
        (11, None),
        (51, None),
        (63, None),
        (64, Some(DmarError::HostAddressWidth(65))),
        (255, Some(DmarError::HostAddressWidth(256))),
    ] {
        let result = change(&|b| {
            b[36] = field;
            seal(b);
        });
        assert_eq!(result, fault, "{field}");
    }
}

#[test]
fn flags_are_read_bit_by_bit() {
    for flags in 0..=7 {
        let bytes = table(46, flags, &[]);
        let dmar = Dmar::parse(&bytes).unwrap();
        assert_eq!(dmar.supports_interrupt_remapping(), flags & 1 != 0);
        assert_eq!(dmar.opts_out_of_x2apic(), flags & 3 == 3);
        assert_eq!(dmar.opts_in_to_dma_control(), flags & 4 != 0);
        assert_eq!(dmar.structures().next(), None);
    }
}

#[test]
fn a_malformed_structure_ends_the_iteration_with_its_offset() {
    let unit = drhd(1, 0, 0, 0x1000, &[]);
    let bad_offset = HEADER_BYTES + unit.len();
    let short = |kind: u16, len: u16| {
        let mut bytes = vec![0; len.into()];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    let cases = [
        // Length 0, shorter than its head, past the end; no room for a length.
        (vec![0, 0, 0, 0], 0),
        (vec![0, 0, 3, 0], 3),
        (vec![9, 0, 0xff, 0xff], 0xffff),
        (vec![0, 0, 0], 0),
        // One byte less than the type's fixed part.
        (short(0, 15), 15),
        (short(1, 23), 23),
        (short(2, 7), 7),
        (short(3, 19), 19),
        (short(4, 7), 7),
        (short(5, 7), 7),
        (short(6, 7), 7),
    ];
    for (bad, length) in cases {
        let bytes = table(46, 0, &[&unit, &bad, &unit]);
        // Without room for a length the bad structure has to be last.
        let bytes = if bad.len() == 3 {
            table(46, 0, &[&unit, &bad])
        } else {
            bytes
        };
        let dmar = Dmar::parse(&bytes).unwrap();
        let fault = DmarError::StructureLength {
            offset: bad_offset,
            length,
        };
        let mut structures = dmar.structures();
        assert!(matches!(structures.next(), Some(Ok(Structure::Drhd(_)))));
        assert_eq!(structures.next(), Some(Err(fault)), "{bad:?}");
        assert_eq!(structures.next(), None);
        assert_eq!(dmar.unit_for(0, source_id(0, 0, 0), &Bridges), Err(fault));
    }
    let unterminated = structure(4, b"\0\0\0\x01\\_SB", &[]);
    let bytes = table(46, 0, &[&unterminated]);
    assert_eq!(
        Dmar::parse(&bytes).unwrap().structures().next(),
        Some(Err(DmarError::ObjectName {
            offset: HEADER_BYTES
        }))
    );
}

#[test]
fn a_malformed_scope_ends_the_iteration_with_its_offset() {
    let good = scope(1, 0, 0, 0, &[(1, 0)]);
    for (bad, length) in [
        (vec![1], 0),
        (vec![1, 0, 0, 0, 0, 0, 0, 0], 0),
        (vec![1, 5, 0, 0, 0, 0, 0, 0], 5),
        // No path, half a path entry, past the end.
        (vec![1, 6, 0, 0, 0, 0], 6),
        (vec![1, 7, 0, 0, 0, 0, 0, 0], 7),
        (vec![1, 9, 0, 0, 0, 0, 0, 0, 0], 9),
        (vec![1, 10, 0, 0, 0, 0, 0, 0], 10),
        (vec![1, 255, 0, 0, 0, 0, 0, 0], 255),
    ] {
        let bytes = table(46, 0, &[&drhd(1, 0, 0, 0x1000, &[&good, &bad])]);
        let dmar = Dmar::parse(&bytes).unwrap();
        let unit = dmar.remapping_units().next().unwrap().unwrap();
        let mut scopes = unit.scopes();
        assert!(scopes.next().unwrap().is_ok());
        let fault = DmarError::ScopeLength {
            offset: HEADER_BYTES + 16 + good.len(),
            length,
        };
        assert_eq!(scopes.next(), Some(Err(fault)), "{bad:?}");
        assert_eq!(scopes.next(), None);
        assert_eq!(dmar.unit_for(0, source_id(0, 0, 0), &Bridges), Err(fault));
    }
}

#[test]
fn memory_regions_and_register_bases_are_judged() {
    // base, limit (inclusive), size.
    for (base, limit, len) in [
        (0x1000, 0x1fff, Some(0x1000)),
        (0x1000, 0x1000, None),
        (0x1000, 0xfff, None),
        (0x1001, 0x2000, None),
        (0x2000, 0x1fff, None),
        (0, u64::MAX, None),
        (0x1000, u64::MAX, Some(0u64.wrapping_sub(0x1000))),
        (u64::MAX, 0, None),
    ] {
        let body = [
            &[0; 4][..],
            &u64::to_le_bytes(base),
            &u64::to_le_bytes(limit),
        ]
        .concat();
        let bytes = table(46, 0, &[&structure(1, &body, &[])]);
        let Some(Ok(Structure::Rmrr(rmrr))) = Dmar::parse(&bytes).unwrap().structures().next()
        else {
            panic!("no region");
        };
        assert_eq!(rmrr.len_bytes(), len, "{base:#x} {limit:#x}");
    }
    for (base, size, valid) in [
        (0, 0, false),
        (0x1000, 0, true),
        (0x1800, 0, false),
        (0x1000, 1, false),
        (0x2000, 1, true),
        (0x0800_0000, 15, true),
        (0x0400_0000, 15, false),
    ] {
        let bytes = table(46, 0, &[&drhd(0, size, 0, base, &[])]);
        let unit = Dmar::parse(&bytes).unwrap().remapping_units().next();
        assert_eq!(unit.unwrap().unwrap().has_valid_base(), valid, "{base:#x}");
    }
}

/// Looks at everything there is, and returns how many items that were.
fn visit(dmar: &Dmar<'_>) -> usize {
    let visit_scopes = |scopes: DeviceScopes<'_>| {
        scopes
            .map(|scope| match scope {
                Ok(scope) => {
                    let _ = scope.resolve(|bridge| Bridges.secondary_bus(bridge));
                    let _ = scope.resolve(|bridge| bridge.bus().checked_add(1));
                    1 + scope.path().count()
                }
                Err(error) => error.to_string().len().min(1),
            })
            .sum::<usize>()
    };
    let mut count = 0;
    for structure in dmar.structures() {
        count += 1 + match structure {
            Ok(Structure::Drhd(unit)) => {
                let _ = unit.has_valid_base();
                visit_scopes(unit.scopes())
            }
            Ok(Structure::Rmrr(rmrr)) => {
                let _ = rmrr.len_bytes();
                visit_scopes(rmrr.scopes())
            }
            Ok(Structure::Atsr(atsr)) => visit_scopes(atsr.scopes()),
            Ok(Structure::Satc(satc)) => visit_scopes(satc.scopes()),
            Ok(Structure::Sidp(sidp)) => visit_scopes(sidp.scopes()),
            Ok(Structure::Rhsa(_) | Structure::Andd(_) | Structure::Unknown { .. }) => 0,
            Err(error) => error.to_string().len().min(1),
        };
    }
    for device in [source_id(0, 2, 0), source_id(2, 0, 1)] {
        let _ = dmar.unit_for(0, device, &Bridges);
    }
    count
}

#[test]
fn mutated_tables_are_parsed_or_refused() {
    for good in [emulated(), server()] {
        // Every byte takes several values, once with a wrong and once with a right checksum.
        for index in 0..good.len() {
            for value in [0, 1, 2, 3, 5, 6, 7, 8, 0x10, 0x20, 0x7f, 0x80, 0xfe, 0xff] {
                let mut bytes = good.clone();
                bytes[index] = value;
                if let Ok(dmar) = Dmar::parse(&bytes) {
                    assert!(visit(&dmar) <= good.len());
                }
                seal(&mut bytes);
                if let Ok(dmar) = Dmar::parse(&bytes) {
                    assert!(visit(&dmar) <= good.len());
                }
            }
        }
        // Every truncation: as such, and with a length that matches.
        for len in 0..good.len() {
            assert!(matches!(
                Dmar::parse(&good[..len]),
                Err(DmarError::Truncated { .. })
            ));
            let mut bytes = good[..len].to_vec();
            if len >= HEADER_BYTES {
                bytes[4..8].copy_from_slice(&(len as u32).to_le_bytes());
                seal(&mut bytes);
                let dmar = Dmar::parse(&bytes).unwrap();
                assert!(visit(&dmar) <= len);
            }
        }
    }
}

#[test]
fn errors_say_what_is_wrong() {
    for (text, part) in [
        (DmarError::Signature(*b"\0MAR").to_string(), "\\x00MAR"),
        (DmarError::Checksum(7).to_string(), "0x07"),
        (
            DmarError::StructureLength {
                offset: 0x40,
                length: 3,
            }
            .to_string(),
            "0x40",
        ),
        (
            ScopeError::NotABridge(source_id(1, 2, 3)).to_string(),
            "01:02.3",
        ),
    ] {
        assert!(text.contains(part), "{text}");
    }
}
