//! Tables of machines that work.

use vtd_nest::arch::address::Hpa;
use vtd_nest::arch::dmar::Dmar;
use vtd_nest::arch::pci::PciKind::{DownstreamPort, ExpressToPciBridge, RootPort, UpstreamPort};
use vtd_nest::unit::discovery::{
    self, AddressTranslationAdvice, InterruptSource, RequesterIds, ReservedRegionError,
    address_translation, device_properties, reserved_regions,
};

use super::Case;
use super::builder::{Segment, Table, bridge, endpoint, hpet, id, io_apic, scope};

/// The unit of the graphics device, that of all others, and reserved memory for USB and graphics.
fn laptop() -> Table {
    Table::new(39)
        .unit(0, 0xfed9_0000, &[endpoint(0, &[(2, 0)])])
        .last_unit(
            0,
            0xfed9_1000,
            &[io_apic(2, 0xf0, &[(0x1f, 0)]), hpet(0, 0, &[(0x1f, 0)])],
        )
        .reserved(0, 0x7b80_0000, 0x7fff_ffff, &[endpoint(0, &[(2, 0)])])
        .reserved(0, 0x7a00_0000, 0x7a01_ffff, &[endpoint(0, &[(0x14, 0)])])
        .with(4, b"\0\0\0\x01\\_SB.PCI0.I2C0\0", &[])
}

/// Two sockets of four units each, with affinities and root ports that support ATS.
fn two_sockets() -> Table {
    let mut table = Table::new(46);
    for unit in 0..7_u8 {
        let ports = [
            bridge(0x17 + 0x10 * unit, &[(0, 0)]),
            bridge(0x17 + 0x10 * unit, &[(2, 0)]),
        ];
        table = table.unit(0, 0xe000_0000 + 0x0100_0000 * u64::from(unit), &ports);
    }
    table = table
        .last_unit(
            0,
            0xd000_0000,
            &[io_apic(8, 0, &[(0x1e, 7)]), io_apic(9, 0, &[(5, 4)])],
        )
        .flagged(
            2,
            false,
            0,
            &[bridge(0x17, &[(0, 0)]), bridge(0x27, &[(0, 0)])],
        );
    for unit in 0..7_u64 {
        let base = (0xe000_0000 + 0x0100_0000 * unit).to_le_bytes();
        table = table.with(
            3,
            &[&[0; 4][..], &base, &[unit as u8 / 4, 0, 0, 0]].concat(),
            &[],
        );
    }
    table
}

/// Eight sockets on eight segments, five units each.
fn eight_sockets() -> (Table, Vec<(u16, u64, bool)>) {
    let mut table = Table::new(52);
    let mut units = Vec::new();
    for segment in 0..8_u16 {
        for unit in 0..5_u8 {
            let base = 0x2000_0000_0000 + u64::from(segment) * 0x10_0000 + u64::from(unit) * 0x1000;
            let is_last = unit == 4;
            table = if is_last {
                table.last_unit(segment, base, &[])
            } else {
                table.unit(segment, base, &[bridge(0x20 * (1 + unit), &[(1, 0)])])
            };
            units.push((segment, base, is_last));
        }
    }
    (table, units)
}

/// A switch whose ports have units of their own, and an endpoint below it with another.
fn nested_scopes() -> (Table, Segment) {
    let table = Table::new(46)
        .unit(
            0,
            0x1000,
            &[endpoint(0, &[(0x1c, 0), (0, 0), (1, 0), (0, 1)])],
        )
        .unit(0, 0x2000, &[bridge(0, &[(0x1c, 0)])])
        .unit(0, 0x3000, &[bridge(0, &[(0x1c, 0), (0, 0)])])
        .unit(0, 0x4000, &[bridge(1, &[(0, 0), (1, 0)])]);
    let segment = Segment::new(
        &[
            (RootPort, "00:1c.0", 1, 8),
            (UpstreamPort, "01:00.0", 2, 6),
            (DownstreamPort, "02:00.0", 3, 3),
            (DownstreamPort, "02:01.0", 4, 4),
        ],
        &["03:00.0", "04:00.0", "04:00.1", "07:00.0"],
    );
    (table, segment)
}

pub(super) fn cases() -> Vec<Case> {
    let (eight, eight_units) = eight_sockets();
    let (nested, nested_segment) = nested_scopes();
    vec![
        Case::new("laptop", laptop().finish())
            .has_units(&[(0, 0xfed9_0000, false), (0, 0xfed9_1000, true)])
            .covers(&[
                (0, "00:02.0", Some(0xfed9_0000)),
                (0, "00:02.1", Some(0xfed9_1000)),
                (0, "00:14.0", Some(0xfed9_1000)),
                (0, "3a:00.0", Some(0xfed9_1000)),
                (1, "00:02.0", None),
            ]),
        Case::new("two sockets", two_sockets().finish())
            .in_segment(Segment::new(
                &[
                    (RootPort, "17:00.0", 0x18, 0x1f),
                    (RootPort, "27:02.0", 0x28, 0x2f),
                ],
                &[],
            ))
            .has_units(&[
                (0, 0xe000_0000, false),
                (0, 0xe100_0000, false),
                (0, 0xe200_0000, false),
                (0, 0xe300_0000, false),
                (0, 0xe400_0000, false),
                (0, 0xe500_0000, false),
                (0, 0xe600_0000, false),
                (0, 0xd000_0000, true),
            ])
            .covers(&[
                (0, "18:00.0", Some(0xe000_0000)),
                (0, "1f:1f.7", Some(0xe000_0000)),
                (0, "20:00.0", Some(0xd000_0000)),
                (0, "28:00.0", Some(0xe100_0000)),
            ]),
        Case::new("eight sockets, 40 units", eight.finish())
            .in_segment(Segment::new(&[(RootPort, "20:01.0", 0x21, 0x2f)], &[]))
            .has_units(&eight_units)
            .covers(&[
                (0, "21:00.0", Some(0x2000_0000_0000)),
                (7, "21:00.0", Some(0x2000_0070_0000)),
                (7, "00:00.0", Some(0x2000_0070_4000)),
                (8, "00:00.0", None),
            ]),
        Case::new("nested scopes", nested.finish())
            .in_segment(nested_segment)
            .has_units(&[
                (0, 0x1000, false),
                (0, 0x2000, false),
                (0, 0x3000, false),
                (0, 0x4000, false),
            ])
            .covers(&[
                (0, "04:00.1", Some(0x1000)),
                (0, "07:00.0", Some(0x2000)),
                (0, "03:00.0", Some(0x3000)),
                (0, "04:00.0", Some(0x4000)),
                (0, "09:00.0", None),
            ]),
        Case::new(
            "emulated",
            Table::new(39)
                .unit(
                    0,
                    0xfed9_0000,
                    &[
                        io_apic(0, 0xff, &[(0, 0)]),
                        endpoint(0, &[(2, 0)]),
                        bridge(0, &[(3, 0)]),
                    ],
                )
                .flagged(2, true, 0, &[])
                .finish(),
        )
        .in_segment(Segment::new(&[(RootPort, "00:03.0", 1, 1)], &[]))
        .has_units(&[(0, 0xfed9_0000, false)])
        .covers(&[(0, "01:00.0", Some(0xfed9_0000)), (0, "00:04.0", None)]),
        Case::new(
            "64-bit addresses",
            Table::new(64).last_unit(0, 1 << 63, &[]).finish(),
        )
        .has_units(&[(0, 1 << 63, true)]),
    ]
}

#[test]
fn interrupts_of_no_pci_function_have_source_ids_of_their_own() {
    let bytes = laptop().finish();
    let dmar = Dmar::parse(&bytes).unwrap();
    let none = Segment::default();
    let source = |name| InterruptSource {
        segment: 0,
        unit: Hpa::new(0xfed9_1000),
        source_id: id(name),
    };
    let io_apic = |number| discovery::io_apic(&dmar, number, &none);
    let hpet = |number| discovery::hpet(&dmar, number, &none);
    assert_eq!(io_apic(2), Ok(Some(source("f0:1f.0"))));
    assert_eq!(hpet(0), Ok(Some(source("00:1f.0"))));
    assert_eq!((io_apic(0), hpet(2)), (Ok(None), Ok(None)));
}

#[test]
fn an_io_apic_behind_bridges_is_found_by_its_path() {
    let bytes = Table::new(46)
        .last_unit(
            0,
            0x1000,
            &[
                io_apic(7, 0, &[(9, 0), (1, 2)]),
                io_apic(8, 0, &[(3, 0), (1, 1)]),
            ],
        )
        .finish();
    let segment = Segment::new(&[(RootPort, "00:03.0", 5, 5)], &[]);
    let dmar = Dmar::parse(&bytes).unwrap();
    let found = discovery::io_apic(&dmar, 8, &segment).unwrap();
    assert_eq!(found.unwrap().source_id, id("05:01.1"));
    // Its way leads nowhere.
    assert_eq!(discovery::io_apic(&dmar, 7, &segment), Ok(None));
}

// G18
#[test]
fn reserved_memory_is_that_of_all_of_a_devices_source_ids() {
    let bytes = laptop()
        .reserved(
            0,
            0x7a02_0000,
            0x7a02_0fff,
            &[endpoint(0, &[(0x1d, 0)]), endpoint(0, &[(0x14, 0)])],
        )
        .reserved(1, 0x1000, 0x1fff, &[endpoint(0, &[(0x14, 0)])])
        .reserved(0, 0x8000, 0x8800, &[endpoint(0, &[(0x15, 0)])])
        .finish();
    let dmar = Dmar::parse(&bytes).unwrap();
    let regions = |device: &RequesterIds| {
        let regions = reserved_regions(&dmar, 0, device, &Segment::default())?;
        let regions = regions
            .iter()
            .map(|region| (region.base().as_u64(), region.len_bytes()));
        Ok(regions.collect::<Vec<_>>())
    };
    for (device, expected) in [
        ("00:02.0", vec![(0x7b80_0000, 0x480_0000)]),
        // Regions that touch are one.
        ("00:14.0", vec![(0x7a00_0000, 0x2_1000)]),
        ("00:1d.0", vec![(0x7a02_0000, 0x1000)]),
        ("00:1f.0", vec![]),
    ] {
        assert_eq!(
            regions(&RequesterIds::of(id(device))),
            Ok(expected),
            "{device}"
        );
    }
    let mut both = RequesterIds::of(id("00:1f.0"));
    both.add(id("00:02.0")).unwrap();
    assert_eq!(regions(&both), Ok(vec![(0x7b80_0000, 0x480_0000)]));
    let broken = ReservedRegionError::Region {
        base: Hpa::new(0x8000),
        limit: Hpa::new(0x8800),
    };
    assert_eq!(regions(&RequesterIds::of(id("00:15.0"))), Err(broken));
}

// §8.5, §8.8, §8.9
#[test]
fn devices_may_use_ats_where_firmware_vouches_for_them() {
    use AddressTranslationAdvice::{Advised, Forbidden, Possible, Required};
    let segment = Segment::new(
        &[
            (RootPort, "17:00.0", 0x18, 0x1b),
            (UpstreamPort, "18:00.0", 0x19, 0x1a),
            (DownstreamPort, "19:00.0", 0x1a, 0x1a),
            (RootPort, "17:02.0", 0x1c, 0x1c),
            (RootPort, "27:00.0", 0x28, 0x29),
            (ExpressToPciBridge, "28:00.0", 0x29, 0x29),
        ],
        &[
            "18:01.0", "1a:00.0", "1c:00.0", "29:00.0", "6a:01.0", "6a:02.0", "6a:03.0",
        ],
    );
    let caches = two_sockets()
        .flagged(5, true, 0, &[endpoint(0x6a, &[(1, 0)])])
        .flagged(5, false, 0, &[endpoint(0x6a, &[(2, 0)])])
        .flagged(5, false, 3, &[endpoint(0x6a, &[(3, 0)])]);
    // Software that knows the properties ignores the cache structures.
    let properties = caches.clone().properties(
        0,
        &[
            scope(1, 0b0_1000, 0, 0x6a, &[(1, 0)]),
            scope(1, 0b1_0111, 0, 0x6a, &[(3, 0)]),
        ],
    );
    let all_ports = Table::new(46)
        .last_unit(0, 0x1000, &[])
        .flagged(2, true, 0, &[]);
    for (table, device, expected) in [
        (&caches, "18:01.0", Possible),
        (&caches, "1a:00.0", Possible),
        (&caches, "1c:00.0", Forbidden),
        (&caches, "29:00.0", Forbidden),
        (&caches, "6a:01.0", Required),
        (&caches, "6a:02.0", Advised),
        (&caches, "6a:03.0", Forbidden),
        (&properties, "6a:01.0", Advised),
        (&properties, "6a:02.0", Forbidden),
        (&properties, "6a:03.0", Required),
        (&all_ports, "1c:00.0", Possible),
        (&all_ports, "29:00.0", Forbidden),
        (&all_ports, "6a:01.0", Forbidden),
    ] {
        let bytes = table.clone().finish();
        let dmar = Dmar::parse(&bytes).unwrap();
        let found = address_translation(&dmar, 0, id(device), &segment);
        assert_eq!(found, Ok(expected), "{device}");
        assert_eq!(
            address_translation(&dmar, 9, id(device), &segment),
            Ok(Forbidden)
        );
    }
    let bytes = properties.finish();
    let dmar = Dmar::parse(&bytes).unwrap();
    let found = device_properties(&dmar, 0, id("6a:03.0"), &segment).unwrap();
    assert!(found.avoids_nesting() && found.forbids_walk_snoop() && found.forbids_page_snoop());
    assert!(found.requires_cache() && !found.has_hardened_cache());
    let found = device_properties(&dmar, 0, id("6a:02.0"), &segment).unwrap();
    assert_eq!(found, Default::default());
}
