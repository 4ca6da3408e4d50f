//! Walks of every kind: data, permissions, sizes, accessed and dirty bits, faults.

use vtd_model::{Access, CacheMode, ModelConfig, Request};
use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::mem::HostMemory;

use crate::support::*;

pub(crate) const AT: u64 = 0x12_3456_7000;

/// A nested binding: 8 GiB of guest memory at [`GUEST_OFFSET`] mapped by 1-GiB pages, a guest
/// first-stage table; both roots and the PASID entry.
fn nested(bench: &Bench) -> (u64, u64, [u64; 8]) {
    let second = bench.page();
    for gigabyte in 0..4 {
        bench.map(Map {
            leaf_level: 3,
            ..Map::second(second, GUEST_OFFSET + (gigabyte << 30), gigabyte << 30)
        });
    }
    let first = bench.page() + GUEST_OFFSET;
    (first, second, bench.nested_entry(9, first, second))
}

#[test]
fn every_mode_moves_data_across_pages() {
    type Set = fn(&Bench, [u64; 2]);
    let rows: &[(&str, Mode, u64, Set)] = &[
        ("legacy, 4 levels", Mode::Legacy, AT, |b, pages| {
            let root = b.page();
            b.map_second(root, AT, pages[0]);
            b.map_second(root, AT + 4096, pages[1]);
            b.set_legacy_context(DEVICE, root | 1, 2 | 7 << 8);
        }),
        (
            "legacy, 3 levels",
            Mode::Legacy,
            AT & 0x3f_ffff_ffff,
            |b, pages| {
                let root = b.page();
                for (index, page) in pages.into_iter().enumerate() {
                    b.map(Map {
                        levels: 3,
                        ..Map::second(root, (AT & 0x3f_ffff_ffff) + 4096 * index as u64, page)
                    });
                }
                b.set_legacy_context(DEVICE, root | 1, 1 | 7 << 8);
            },
        ),
        ("second stage", Mode::Scalable, AT, |b, pages| {
            let root = b.page();
            b.map_second(root, AT, pages[0]);
            b.map_second(root, AT + 4096, pages[1]);
            b.set_pasid(DEVICE, 0, b.second_entry(7, root));
        }),
        ("first stage", Mode::Scalable, AT, |b, pages| {
            let root = b.page();
            b.map_first(root, AT, pages[0]);
            b.map_first(root, AT + 4096, pages[1]);
            b.set_pasid(DEVICE, 0, b.first_entry(7, root));
        }),
        (
            "first stage, upper half",
            Mode::Scalable,
            0xffff_ffff_ffff_e000,
            |b, pages| {
                let root = b.page();
                b.map_first(root, 0xffff_ffff_ffff_e000, pages[0]);
                b.map_first(root, 0xffff_ffff_ffff_f000, pages[1]);
                b.set_pasid(DEVICE, 0, b.first_entry(7, root));
            },
        ),
        ("nested", Mode::Scalable, AT, |b, pages| {
            let (first, _, entry) = nested(b);
            b.map(Map::guest_first(first, AT, pages[0] + GUEST_OFFSET));
            b.map(Map::guest_first(first, AT + 4096, pages[1] + GUEST_OFFSET));
            b.set_pasid(DEVICE, 0, entry);
        }),
    ];
    for cache in [CacheMode::Hoarder, CacheMode::Tiny, CacheMode::None] {
        for (name, mode, at, set) in rows {
            let config = ModelConfig::nesting_server().with_cache_mode(cache);
            let bench = Bench::new(config, *mode);
            // Not adjacent, not in order.
            let second = bench.page();
            let first = bench.page();
            set(&bench, [first, second]);
            let sent: Vec<u8> = (0..5000u32).map(|n| ((n * 7) >> 3) as u8).collect();
            for round in 0..2 {
                let at = Iova::new(at + 0x300);
                let unit = &bench.machine.unit;
                unit.dma_write(DEVICE, None, at, &sent)
                    .unwrap_or_else(|fault| panic!("{name}: {fault:?}"));
                let mut back = vec![0; sent.len()];
                unit.dma_read(DEVICE, None, at, &mut back).unwrap();
                assert!(back == sent, "{name}, round {round}");
            }
            let mut direct = vec![0; 5000 - 0xd00];
            bench
                .machine
                .memory
                .copy_from(Hpa::new(second), &mut direct);
            assert!(direct == sent[0xd00..], "{name}: second page");
            bench.machine.unit.assert_no_violations();
        }
    }
}

#[test]
fn pass_through_is_identity_below_the_host_width() {
    let legacy = Bench::new(ModelConfig::nesting_server(), Mode::Legacy);
    legacy.set_legacy_context(DEVICE, 2 << 2 | 1, 2 | 7 << 8);
    let scalable = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    scalable.set_pasid(DEVICE, 0, scalable.pass_through_entry(7));
    scalable.set_pasid(DEVICE, 5, scalable.pass_through_entry(7));
    for (bench, too_large, interrupt) in [(legacy, 4, 0x0e), (scalable, 0x83, 0x87)] {
        let page = bench.data_page(0x77);
        assert_eq!(bench.outcome(DEVICE, None, page), Ok(0x77));
        assert_eq!(bench.outcome(DEVICE, None, 1 << 46), Err(too_large));
        if bench.mode == Mode::Scalable {
            assert_eq!(bench.outcome(DEVICE, pasid(5), 0xfee0_0000), Err(interrupt));
        }
        bench.machine.unit.assert_no_violations();
    }
}

#[test]
fn large_pages_of_both_stages_translate_their_low_bits() {
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let memory = &bench.machine.memory;
    memory.write64(Hpa::new(0x4023_4568), 0x1234);
    // (first-stage level, second-stage level); 0: no such stage.
    for (number, (first_level, second_level)) in [
        (1, 0),
        (2, 0),
        (3, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (2, 3),
        (3, 2),
        (3, 1),
        (1, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let number = number as u32 + 1;
        let at = 0x20_0023_4000u64;
        let domain = number as u16;
        let second = bench.page();
        let guest = 0x30_4000_0000u64;
        let align = |address: u64, level: u8| {
            address >> (3 + 9 * u32::from(level)) << (3 + 9 * u32::from(level))
        };
        let entry = match (first_level, second_level) {
            (level, 0) => {
                bench.map(Map {
                    leaf_level: level,
                    ..Map::first(second, at, align(0x4023_4000, level))
                });
                bench.first_entry(domain, second)
            }
            (0, level) => {
                bench.map(Map {
                    leaf_level: level,
                    ..Map::second(second, at, align(0x4023_4000, level))
                });
                bench.second_entry(domain, second)
            }
            (first_level, second_level) => {
                let root = bench.page();
                // Tables: host memory as it is; data: one large page elsewhere.
                bench.map(Map {
                    leaf_level: 3,
                    ..Map::second(second, 0, 0)
                });
                bench.map(Map {
                    leaf_level: second_level,
                    ..Map::second(
                        second,
                        align(guest + 0x23_4000, second_level),
                        align(0x4023_4000, second_level),
                    )
                });
                bench.map(Map {
                    leaf_level: first_level,
                    ..Map::first(root, at, align(guest + 0x23_4000, first_level))
                });
                bench.nested_entry(domain, root, second)
            }
        };
        bench.set_pasid(DEVICE, number, entry);
        assert_eq!(
            bench.outcome(DEVICE, pasid(number), at + 0x568),
            Ok(0x1234),
            "levels {first_level}/{second_level}"
        );
        // Where the smaller page ends, unless both are 1 GiB.
        let order = match (first_level, second_level) {
            (0, level) | (level, 0) => level,
            (first, second) => first.min(second),
        };
        let translation = bench
            .machine
            .unit
            .translate(&Request::new(
                DEVICE,
                pasid(number),
                Iova::new(at + 0x568),
                Access::Read,
            ))
            .unwrap();
        let length = 1u64 << (3 + 9 * u32::from(order));
        assert_eq!(translation.last.as_u64(), (0x4023_4568 | (length - 1)));
    }
    bench.machine.unit.assert_no_violations();
}

#[test]
fn five_level_tables_use_the_upper_index() {
    let config = ModelConfig::nesting_server()
        .with_capability(Cap::FIRST_STAGE_5_LEVEL, 1)
        .with_capability(Cap::ADJUSTED_GUEST_ADDRESS_WIDTHS, 0b1110)
        .with_capability(Cap::MAXIMUM_GUEST_ADDRESS_WIDTH, 56);
    let bench = Bench::new(config, Mode::Scalable);
    let page = bench.data_page(0x99);
    let at = 0x00a1_2345_6789_a000u64;
    let root = bench.page();
    bench.map(Map {
        levels: 5,
        ..Map::first(root, at, page)
    });
    let mut entry = bench.first_entry(7, root);
    entry[2] |= 1 << 2;
    bench.set_pasid(DEVICE, 1, entry);
    assert_eq!(bench.outcome(DEVICE, pasid(1), at), Ok(0x99));
    assert_eq!(bench.outcome(DEVICE, pasid(1), at | 1 << 57), Err(0x80));
    let root = bench.page();
    bench.map(Map {
        levels: 5,
        ..Map::second(root, at, page)
    });
    let mut entry = bench.second_entry(8, root);
    entry[0] = entry[0] & !0x1c | 3 << 2;
    bench.set_pasid(DEVICE, 2, entry);
    assert_eq!(bench.outcome(DEVICE, pasid(2), at), Ok(0x99));
    assert_eq!(bench.outcome(DEVICE, pasid(2), at | 1 << 57), Err(0x84));
    bench.machine.unit.assert_no_violations();
}

/// What a row of a fault table changes before its request.
pub(crate) type Change = fn(&Bench, &Tables);

/// Where the entries of a standard binding of PASID 5 are.
pub(crate) struct Tables {
    pub(crate) root_half: u64,
    pub(crate) context: u64,
    pub(crate) directory: u64,
    pub(crate) pasid: u64,
    /// Entries of levels 4 to 1 for [`AT`]; nested, of the guest's first stage.
    pub(crate) first: [u64; 4],
    pub(crate) second: [u64; 4],
}

/// The entries on the way to an address, levels 4 to 1; 0 behind a leaf or an absent entry.
fn path(bench: &Bench, root: u64, address: u64, offset: u64) -> [u64; 4] {
    let mut found = [0; 4];
    let mut table = root;
    for (place, level) in found.iter_mut().zip([4u32, 3, 2, 1]) {
        let at = table - offset + 8 * (address >> (12 + 9 * (level - 1)) & 0x1ff);
        *place = at;
        let entry = bench.get(at);
        if entry & 7 == 0 || entry & 0x80 != 0 {
            break;
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    found
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Binding {
    First,
    Second,
    Nested,
    PassThrough,
}

pub(crate) fn bind(bench: &Bench, binding: Binding) -> Tables {
    let page = bench.data_page(0xda7a);
    let (mut first, mut second) = ([0; 4], [0; 4]);
    let entry = match binding {
        Binding::First => {
            let root = bench.page();
            bench.map_first(root, AT, page);
            first = path(bench, root, AT, 0);
            bench.first_entry(7, root)
        }
        Binding::Second => {
            let root = bench.page();
            bench.map_second(root, AT, page);
            second = path(bench, root, AT, 0);
            bench.second_entry(7, root)
        }
        Binding::Nested => {
            let (root, second_root, entry) = nested(bench);
            // The data by a page of its own, the tables by the large ones.
            let guest_data = 0x20_0000_0000;
            bench.map_second(second_root, guest_data, page);
            bench.map(Map::guest_first(root, AT, guest_data));
            first = path(bench, root, AT, GUEST_OFFSET);
            second = path(bench, second_root, guest_data, 0);
            entry
        }
        Binding::PassThrough => bench.pass_through_entry(7),
    };
    bench.set_pasid(DEVICE, 5, entry);
    bench.set_pasid(DEVICE, 0, entry);
    Tables {
        root_half: bench.root,
        context: bench.context_at(DEVICE),
        directory: bench.directory_at(DEVICE, 5),
        pasid: bench.pasid_at(DEVICE, 5),
        first,
        second,
    }
}

pub(crate) fn set(bench: &Bench, at: u64, bits: u64) {
    bench.put(at, bench.get(at) | bits);
}

pub(crate) fn clear(bench: &Bench, at: u64, bits: u64) {
    bench.put(at, bench.get(at) & !bits);
}

/// Puts a pointer field to where there is no memory, below HAW.
fn nowhere(bench: &Bench, at: u64) {
    bench.put(at, bench.get(at) & 0xfff | 0x2000_0000_0000);
}

/// What stops a request with PASID 5 for [`AT`] in a bound unit of
/// [`ModelConfig::nesting_server`], and by which code.
pub(crate) fn scalable_faults() -> &'static [(u8, &'static str, Binding, Change)] {
    use Binding::*;
    &[
        (0x38, "root unreadable", First, |b, t| {
            b.machine.memory.poison(Hpa::new(t.root_half), 16)
        }),
        (0x39, "root absent", First, |b, t| b.put(t.root_half, 0)),
        (0x3a, "root reserved", First, |b, t| set(b, t.root_half, 2)),
        (0x3a, "root beyond HAW", First, |b, t| {
            set(b, t.root_half, 1 << 46)
        }),
        (0x40, "context unreadable", First, |b, t| {
            nowhere(b, t.root_half)
        }),
        (0x41, "context absent", First, |b, t| clear(b, t.context, 1)),
        (0x42, "context reserved", First, |b, t| {
            set(b, t.context, 1 << 7)
        }),
        (0x42, "DTE without DT", First, |b, t| {
            set(b, t.context, 1 << 2)
        }),
        (0x42, "context q1 reserved", First, |b, t| {
            set(b, t.context + 8, 1 << 21)
        }),
        (0x42, "context q3", First, |b, t| set(b, t.context + 24, 1)),
        (0x42, "RID_PRIV without RPRIVS", First, |b, t| {
            set(b, t.context + 8, 1 << 20)
        }),
        (0x43, "RID_PASID beyond PDTS", First, |b, t| {
            set(b, t.context + 8, 1 << 16)
        }),
        (0x45, "PASIDE clear", First, |b, t| clear(b, t.context, 8)),
        (0x48, "PASID is RID_PASID", First, |b, t| {
            set(b, t.context + 8, 5)
        }),
        (0x50, "directory unreadable", First, |b, t| {
            nowhere(b, t.context)
        }),
        (0x51, "directory absent", First, |b, t| {
            b.put(t.directory, 0)
        }),
        (0x52, "directory reserved", First, |b, t| {
            set(b, t.directory, 4)
        }),
        (0x58, "table unreadable", First, |b, t| {
            nowhere(b, t.directory)
        }),
        (0x59, "entry absent", First, |b, t| clear(b, t.pasid, 1)),
        (0x5a, "entry bit 5", First, |b, t| set(b, t.pasid, 1 << 5)),
        (0x5a, "entry q1 bit 16", First, |b, t| {
            set(b, t.pasid + 8, 1 << 16)
        }),
        (0x5a, "entry SSADE without SSADS", Second, |b, t| {
            set(b, t.pasid, 1 << 9)
        }),
        (0x5a, "entry CD without MTS", First, |b, t| {
            set(b, t.pasid + 8, 1 << 25)
        }),
        (0x5a, "entry SRE without SRS", First, |b, t| {
            set(b, t.pasid + 16, 1)
        }),
        (0x5a, "entry EAFE without EAFS", First, |b, t| {
            set(b, t.pasid + 16, 1 << 7)
        }),
        (0x5a, "entry bit 129", First, |b, t| set(b, t.pasid + 16, 2)),
        (0x5a, "entry q3", First, |b, t| set(b, t.pasid + 24, 1)),
        (0x5a, "entry q7", First, |b, t| {
            set(b, t.pasid + 56, 1 << 63)
        }),
        (0x5a, "FSPTPTR beyond HAW", First, |b, t| {
            set(b, t.pasid + 16, 1 << 46)
        }),
        (0x5a, "SSPTPTR beyond HAW", Second, |b, t| {
            set(b, t.pasid, 1 << 46)
        }),
        (0x5b, "PGTT 0", First, |b, t| clear(b, t.pasid, 0x1c0)),
        (0x5b, "PGTT 5", First, |b, t| set(b, t.pasid, 0x100)),
        (0x5b, "AW 3 unsupported", Second, |b, t| {
            set(b, t.pasid, 0xc)
        }),
        (0x5b, "AW 0", Second, |b, t| clear(b, t.pasid, 0x1c)),
        (0x5b, "FSPM 1 without FS5LP", First, |b, t| {
            set(b, t.pasid + 16, 4)
        }),
        (0x5b, "FSPM 2", First, |b, t| set(b, t.pasid + 16, 8)),
        (0x70, "first-stage table unreadable", First, |b, t| {
            nowhere(b, t.first[0])
        }),
        (0x71, "first stage absent, top", First, |b, t| {
            b.put(t.first[0], 0)
        }),
        (0x71, "first stage absent, leaf", First, |b, t| {
            clear(b, t.first[3], 1)
        }),
        (0x72, "first stage beyond HAW", First, |b, t| {
            set(b, t.first[3], 1 << 46)
        }),
        (0x72, "first stage PS in level 4", First, |b, t| {
            set(b, t.first[0], 0x80)
        }),
        (0x72, "first stage 2M misaligned", First, |b, t| {
            set(b, t.first[2], 0x80 | 1 << 13)
        }),
        (0x73, "first-stage root unreadable", First, |b, t| {
            nowhere(b, t.pasid + 16)
        }),
        (0x78, "second-stage table unreadable", Second, |b, t| {
            nowhere(b, t.second[1])
        }),
        (0x79, "second stage absent, top", Second, |b, t| {
            b.put(t.second[0], 0)
        }),
        (0x79, "second stage absent, leaf", Second, |b, t| {
            clear(b, t.second[3], 3)
        }),
        (0x79, "no right left", Second, |b, t| {
            clear(b, t.second[1], 1);
            clear(b, t.second[3], 2);
        }),
        (0x7a, "second stage bit 62", Second, |b, t| {
            set(b, t.second[3], 1 << 62)
        }),
        (0x7a, "second stage SNP above the leaf", Second, |b, t| {
            set(b, t.second[2], 1 << 11)
        }),
        (0x7a, "second stage PS in level 4", Second, |b, t| {
            set(b, t.second[0], 0x80)
        }),
        (0x7a, "second stage 2M misaligned", Second, |b, t| {
            set(b, t.second[2], 0x80 | 1 << 12)
        }),
        (0x7b, "second-stage root unreadable", Second, |b, t| {
            nowhere(b, t.pasid)
        }),
        (0x81, "supervisor page", First, |b, t| {
            clear(b, t.first[1], 4)
        }),
        (0x86, "no R", Second, |b, t| clear(b, t.second[2], 1)),
        (0x87, "into the interrupt range", First, |b, t| {
            b.put(t.first[3], 0xfee0_0067);
        }),
        (
            0x87,
            "second stage into the interrupt range",
            Second,
            |b, t| {
                b.put(t.second[3], 0xfeef_f003);
            },
        ),
        // Nested.
        (
            0x5b,
            "guest root beyond the second stage",
            Nested,
            |b, t| {
                b.put(t.pasid, b.get(t.pasid) & !0x1c | 1 << 2);
                b.put(t.pasid + 16, 1 << 40);
            },
        ),
        (0x5a, "guest root beyond HAW", Nested, |b, t| {
            b.put(t.pasid + 16, 1 << 46)
        }),
        (
            0x74,
            "guest table beyond the second stage",
            Nested,
            |b, t| {
                // AW 39 below a 40-bit address; the root is moved below 2^39.
                let root = b.page();
                b.put(t.pasid, b.get(t.pasid) & !0x1c & 0xfff | 1 << 2 | root);
                b.map(Map {
                    levels: 3,
                    leaf_level: 3,
                    ..Map::second(root, 0, 0)
                });
                b.put(t.pasid + 16, (b.get(t.pasid + 16) & !0xfff) - GUEST_OFFSET);
                b.put(t.first[0], 1 << 40 | 0x27);
            },
        ),
        (0x75, "guest root not readable", Nested, |b, t| {
            let at = path(b, b.get(t.pasid) & !0xfff, b.get(t.pasid + 16), 0);
            clear(b, at[1], 1);
        }),
        (0x76, "guest table not readable", Nested, |b, t| {
            let page = b.page();
            b.put(page, b.get(t.first[1]));
            let leaf = b.map_second(b.get(t.pasid) & !0xfff, 0x21_0000_0000, page);
            clear(b, leaf, 1);
            b.put(t.first[0], 0x21_0000_0027);
        }),
        (0x79, "guest table not mapped", Nested, |b, t| {
            b.put(t.first[0], 0x33_0000_0027)
        }),
        (0x79, "guest page not mapped", Nested, |b, t| {
            b.put(t.first[3], 0x33_0000_0067)
        }),
        (0x7a, "second stage reserved", Nested, |b, t| {
            set(b, t.second[3], 1 << 62)
        }),
        (0x77, "A update without W", Nested, |b, t| {
            let at = path(b, b.get(t.pasid) & !0xfff, b.get(t.pasid + 16), 0);
            clear(b, at[1], 2);
            clear(b, t.first[2], 1 << 5);
        }),
        (0x86, "guest page not readable", Nested, |b, t| {
            clear(b, t.second[3], 1)
        }),
        (0x87, "nested into the interrupt range", Nested, |b, t| {
            b.put(t.second[3], 0xfee0_0003)
        }),
        (0x71, "nested absent", Nested, |b, t| b.put(t.first[3], 0)),
    ]
}

#[test]
fn scalable_mode_faults_have_their_codes() {
    use Binding::*;
    for (code, name, binding, change) in scalable_faults() {
        let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
        let tables = bind(&bench, *binding);
        // Nothing may have been cached before the change: the first request comes after it.
        change(&bench, &tables);
        let outcome = bench.outcome(DEVICE, pasid(5), AT);
        assert_eq!(
            outcome,
            Err(*code),
            "{name}: {outcome:02x?}, expected {code:02x}"
        );
        bench.machine.unit.assert_no_violations();
    }
    // Unchanged, all of them work.
    for binding in [First, Second, Nested] {
        let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
        bind(&bench, binding);
        assert_eq!(
            bench.outcome(DEVICE, pasid(5), AT),
            Ok(0xda7a),
            "{binding:?}"
        );
        assert_eq!(bench.outcome(DEVICE, None, AT), Ok(0xda7a), "{binding:?}");
    }
}

#[test]
fn ignored_fields_do_not_fault() {
    use Binding::*;
    let rows: &[(&str, Binding, Change)] = &[
        ("AW of a first-stage entry", First, |b, t| {
            set(b, t.pasid, 7 << 2)
        }),
        ("SSPTPTR of a first-stage entry", First, |b, t| {
            set(b, t.pasid, 1 << 40)
        }),
        (
            "FSPTPTR and FSPM of a second-stage entry",
            Second,
            |b, t| {
                set(b, t.pasid + 16, 1 << 40 | 3 << 2);
            },
        ),
        ("bits 133 and 134", First, |b, t| {
            set(b, t.pasid + 16, 3 << 5)
        }),
        ("first-stage bits 52 to 63, 9, 11", First, |b, t| {
            set(b, t.first[3], 0xfff << 52 | 1 << 9 | 1 << 11);
        }),
        ("EA without EAFE", First, |b, t| set(b, t.first[3], 1 << 10)),
        (
            "second-stage bits 2, EMT, 8 to 10, 61, 63",
            Second,
            |b, t| {
                set(b, t.second[3], 1 << 2 | 7 << 3 | 7 << 8 | 1 << 61 | 1 << 63);
            },
        ),
        ("SNP of a leaf with SC", Second, |b, t| {
            set(b, t.second[3], 1 << 11)
        }),
        ("PGSNP with SC", First, |b, t| set(b, t.pasid + 8, 1 << 24)),
        ("FPD", First, |b, t| set(b, t.pasid, 2)),
        ("reserved bits of absent entries", First, |b, t| {
            set(b, t.root_half + 8, 0xffe)
        }),
    ];
    for (name, binding, change) in rows {
        let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
        let tables = bind(&bench, *binding);
        change(&bench, &tables);
        assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a), "{name}");
    }
}

#[test]
fn absent_features_make_their_fields_reserved_or_unsupported() {
    use Binding::*;
    let rows: &[(u8, Binding, Ecap)] = &[
        (0x5b, First, Ecap::FIRST_STAGE),
        (0x5b, Second, Ecap::SECOND_STAGE),
        (0x5b, Nested, Ecap::NESTED),
        (0x5b, PassThrough, Ecap::PASS_THROUGH),
        (0x5a, First, Ecap::PAGE_WALK_COHERENCY),
        (0x42, First, Ecap::REQUESTS_WITH_PASID),
    ];
    for (code, binding, feature) in rows {
        let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
        // The tables are those of a unit that has the feature.
        let without = bench.config().with_extended(*feature, 0);
        let without = Bench::off(without, Mode::Scalable);
        let tables = bind(&without, *binding);
        let mut entry = match binding {
            First => bench.first_entry(7, 0),
            Second => bench.second_entry(7, 0),
            Nested => bench.nested_entry(9, 0, 0),
            PassThrough => bench.pass_through_entry(7),
        };
        entry[0] &= 0xfff;
        // Keep the roots, take the flags; a unit without second stage reserves all of q0's rest.
        let root_bits = if *feature == Ecap::SECOND_STAGE {
            0
        } else {
            !0xfff
        };
        let first_bits = if *feature == Ecap::FIRST_STAGE {
            0
        } else {
            u64::MAX
        };
        without.put(
            tables.pasid,
            without.get(tables.pasid) & root_bits | entry[0],
        );
        without.put(tables.pasid + 8, entry[1]);
        without.put(
            tables.pasid + 16,
            without.get(tables.pasid + 16) & first_bits,
        );
        if *feature == Ecap::SECOND_STAGE {
            without.put(tables.pasid, entry[0] & !0x1c);
        }
        without.put(tables.context, without.get(tables.context) | 8);
        without.enable();
        assert_eq!(
            without.outcome(DEVICE, pasid(5), AT),
            Err(*code),
            "{binding:?} without {}",
            feature.mnemonic()
        );
    }
}

#[test]
fn writes_need_write_permission_in_every_stage() {
    use Binding::*;
    let rows: &[(&str, Binding, Change)] = &[
        ("first stage, leaf", First, |b, t| clear(b, t.first[3], 2)),
        ("first stage, above", First, |b, t| clear(b, t.first[1], 2)),
        ("second stage, leaf", Second, |b, t| {
            clear(b, t.second[3], 2)
        }),
        ("second stage, above", Second, |b, t| {
            clear(b, t.second[0], 2)
        }),
        ("nested, first stage", Nested, |b, t| {
            clear(b, t.first[3], 2)
        }),
        ("nested, second stage", Nested, |b, t| {
            clear(b, t.second[3], 2)
        }),
    ];
    for (name, binding, change) in rows {
        for cached in [false, true] {
            let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
            let tables = bind(&bench, *binding);
            change(&bench, &tables);
            if cached {
                assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a), "{name}");
            }
            assert_eq!(
                bench.write_outcome(DEVICE, pasid(5), AT),
                Err(0x85),
                "{name}"
            );
            let atomic = bench
                .machine
                .unit
                .dma_fetch_add(DEVICE, pasid(5), Iova::new(AT), 1);
            assert_eq!(atomic.unwrap_err().reason.code(), 0x85, "{name}");
            assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a), "{name}");
        }
    }
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    bind(&bench, Nested);
    let old = bench
        .machine
        .unit
        .dma_fetch_add(DEVICE, pasid(5), Iova::new(AT), 1);
    assert_eq!(old, Ok(0xda7a));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7b));
}

#[test]
fn zero_length_reads_pass_on_write_only_pages() {
    for (zlr, expected) in [(1, Ok(())), (0, Err(0x86))] {
        let config = ModelConfig::nesting_server().with_capability(Cap::ZERO_LENGTH_READ, zlr);
        let bench = Bench::new(config, Mode::Scalable);
        let tables = bind(&bench, Binding::Second);
        clear(&bench, tables.second[3], 1);
        let outcome = bench
            .machine
            .unit
            .dma_read(DEVICE, pasid(5), Iova::new(AT), &mut [])
            .map_err(|fault| fault.reason.code());
        assert_eq!(outcome, expected);
    }
}

#[test]
fn supervisor_requests_need_sre_and_obey_wpe() {
    let config = ModelConfig::nesting_server().with_extended(Ecap::SUPERVISOR_REQUESTS, 1);
    // (SRE, WPE, R/W, access) -> fault.
    for (sre, wpe, writable, access, expected) in [
        (0, 0, true, Access::Read, Some(0x5d)),
        (1, 0, true, Access::Read, None),
        (1, 0, false, Access::Write, None),
        (1, 1, false, Access::Write, Some(0x85)),
        (1, 1, true, Access::Write, None),
    ] {
        let bench = Bench::new(config.clone(), Mode::Scalable);
        let tables = bind(&bench, Binding::First);
        set(&bench, tables.pasid + 16, sre | wpe << 4);
        // A supervisor page.
        clear(&bench, tables.first[2], 4);
        if !writable {
            clear(&bench, tables.first[3], 2);
        }
        let request = Request {
            privileged: true,
            ..Request::new(DEVICE, pasid(5), Iova::new(AT), access)
        };
        for round in 0..2 {
            let outcome = bench.machine.unit.translate(&request);
            let code = outcome.err().map(|fault| fault.reason.code());
            assert_eq!(
                code, expected,
                "SRE {sre} WPE {wpe} {access:?} round {round}"
            );
        }
        assert_eq!(
            bench.outcome(DEVICE, pasid(5), AT),
            Err(0x81),
            "user request"
        );
    }
}

#[test]
fn execute_requests_fault_by_major_version() {
    for (version, code) in [(0x50, 0x5c), (0x80, 0x34)] {
        let mut config = ModelConfig::nesting_server();
        config.version = version;
        let bench = Bench::new(config, Mode::Scalable);
        bind(&bench, Binding::First);
        assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a));
        let request = Request {
            execute: true,
            ..Request::new(DEVICE, pasid(5), Iova::new(AT), Access::Read)
        };
        let fault = bench.machine.unit.translate(&request).unwrap_err();
        assert_eq!(fault.reason.code(), code);
    }
}

#[test]
fn input_addresses_have_their_limits() {
    use Binding::*;
    for (binding, at, code) in [
        (First, 0x0000_8000_0000_0000, 0x80),
        (First, 0xfffe_8000_0000_0000, 0x80),
        (Nested, 0x0000_8000_0000_0000, 0x80),
        (Second, 1 << 48, 0x84),
        (PassThrough, 1 << 46, 0x83),
    ] {
        let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
        bind(&bench, binding);
        assert_eq!(
            bench.outcome(DEVICE, pasid(5), at),
            Err(code),
            "{binding:?} {at:#x}"
        );
    }
}

#[test]
fn pasids_are_limited_by_the_unit_and_the_directory() {
    let config = ModelConfig::nesting_server().with_extended(Ecap::PASID_SIZE, 16);
    let bench = Bench::new(config, Mode::Scalable);
    bind(&bench, Binding::First);
    assert_eq!(bench.outcome(DEVICE, pasid(1 << 17), AT), Err(0x89));
    assert_eq!(bench.outcome(DEVICE, pasid(1 << 16), AT), Err(0x46));
    assert_eq!(bench.outcome(DEVICE, pasid(0), AT), Err(0x48));
    assert_eq!(bench.outcome(DEVICE, pasid(6), AT), Err(0x59));
    assert_eq!(bench.outcome(DEVICE, pasid(64), AT), Err(0x51));
    assert_eq!(bench.outcome(OTHER, None, AT), Err(0x39));
}

#[test]
fn legacy_mode_faults_have_their_codes() {
    /// Root entry, context entry, second-stage entries.
    type LegacyChange = fn(&Bench, u64, u64, [u64; 4]);
    let rows: &[(u8, u8, &str, LegacyChange)] = &[
        (1, 1, "root absent", |b, r, _, _| b.put(r, 0)),
        (2, 2, "context absent", |b, _, c, _| clear(b, c, 1)),
        (3, 3, "AW 0", |b, _, c, _| clear(b, c + 8, 7)),
        (3, 3, "AW 3", |b, _, c, _| set(b, c + 8, 3)),
        (3, 3, "TT 3", |b, _, c, _| set(b, c, 3 << 2)),
        (3, 3, "TT 1 without DT", |b, _, c, _| set(b, c, 1 << 2)),
        (3, 3, "second-stage root unreadable", |b, _, c, _| {
            nowhere(b, c)
        }),
        (5, 6, "absent", |b, _, _, s| b.put(s[3], 0)),
        (5, 6, "absent above", |b, _, _, s| b.put(s[1], 0)),
        (7, 7, "table unreadable", |b, _, _, s| nowhere(b, s[1])),
        (8, 8, "root unreadable", |b, r, _, _| {
            b.machine.memory.poison(Hpa::new(r), 16)
        }),
        (9, 9, "context unreadable", |b, r, _, _| nowhere(b, r)),
        (0xa, 0xa, "root reserved", |b, r, _, _| set(b, r, 1 << 11)),
        (0xa, 0xa, "root high", |b, r, _, _| set(b, r + 8, 1)),
        (0xb, 0xb, "context reserved", |b, _, c, _| set(b, c, 1 << 4)),
        (0xb, 0xb, "context high", |b, _, c, _| set(b, c + 8, 1 << 7)),
        (0xc, 0xc, "second stage reserved", |b, _, _, s| {
            set(b, s[3], 1 << 62)
        }),
        (0xe, 0xe, "interrupt range", |b, _, _, s| {
            b.put(s[3], 0xfee0_0003)
        }),
    ];
    for (write_code, read_code, name, change) in rows {
        for is_write in [false, true] {
            let bench = Bench::new(ModelConfig::nesting_server(), Mode::Legacy);
            let second = bench.page();
            bench.map_second(second, AT, bench.page());
            bench.set_legacy_context(DEVICE, second | 1, 2 | 7 << 8);
            let entries = path(&bench, second, AT, 0);
            change(&bench, bench.root, bench.context_at(DEVICE), entries);
            let (outcome, code) = if is_write {
                (bench.write_outcome(DEVICE, None, AT), *write_code)
            } else {
                (bench.outcome(DEVICE, None, AT).map(|_| ()), *read_code)
            };
            assert_eq!(outcome, Err(code), "{name}, write {is_write}");
        }
    }
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Legacy);
    let second = bench.page();
    let leaf = bench.map_second(second, AT, bench.data_page(3));
    bench.set_legacy_context(DEVICE, second | 1, 2 | 7 << 8);
    assert_eq!(bench.outcome(DEVICE, None, 1 << 48), Err(4));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x31));
    bench.put(leaf, bench.get(leaf) & !2);
    assert_eq!(bench.write_outcome(DEVICE, None, AT), Err(5));
    assert_eq!(bench.outcome(DEVICE, None, AT), Ok(3));
    bench.machine.unit.assert_no_violations();
}

#[test]
fn root_table_modes_that_do_not_exist_fault() {
    for (address_bits, feature, code) in [
        (2 << 10, None, 0x30),
        (3 << 10, None, 0x30),
        (3 << 10, Some(Ecap::ABORT_DMA_MODE), 0x33),
        (1 << 7, Some(Ecap::SECOND_STAGE_IO_PERMISSIONS), 0x30),
    ] {
        let mut config = ModelConfig::nesting_server();
        if let Some(feature) = feature {
            config = config.with_extended(feature, 1);
        }
        let bench = Bench::new(config, Mode::Scalable);
        bind(&bench, Binding::First);
        let mut unit = bench.machine.unit.clone();
        use vtd_nest::arch::register::Register64;
        use vtd_nest::mem::Registers;
        unit.write64(Register64::ROOT_TABLE_ADDRESS, bench.root | address_bits);
        bench.command(SRTP, true);
        assert_eq!(bench.outcome(DEVICE, None, AT), Err(code));
    }
}

#[test]
fn second_stage_io_permissions_replace_read_and_write() {
    let config = ModelConfig::nesting_server().with_extended(Ecap::SECOND_STAGE_IO_PERMISSIONS, 1);
    let bench = Bench::off(config, Mode::Scalable);
    let tables = bind(&bench, Binding::Second);
    bench.root_address();
    bench.enable();
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a));
    let mut unit = bench.machine.unit.clone();
    use vtd_nest::arch::register::Register64;
    use vtd_nest::mem::Registers;
    unit.write64(
        Register64::ROOT_TABLE_ADDRESS,
        bench.root_address() | 1 << 7,
    );
    bench.command(SRTP, true);
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x79));
    for entry in tables.second {
        bench.put(entry, bench.get(entry) & !3 | 1 << 61);
    }
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a));
    assert_eq!(bench.write_outcome(DEVICE, pasid(5), AT), Err(0x85));
    bench.machine.unit.assert_no_violations();
}

#[test]
fn translation_off_passes_everything() {
    let bench = Bench::off(ModelConfig::nesting_server(), Mode::Scalable);
    let page = bench.data_page(0x42);
    assert_eq!(bench.outcome(DEVICE, None, page), Ok(0x42));
    bench.machine.unit.assert_no_violations();
    assert_eq!(bench.outcome(DEVICE, None, 1 << 45), Ok(u64::MAX));
    assert_eq!(bench.machine.unit.violations().len(), 1, "no memory there");
}

#[test]
fn accessed_and_dirty_bits_of_the_first_stage_are_set_as_used() {
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let tables = bind(&bench, Binding::First);
    let [above @ .., leaf] = tables.first;
    for entry in tables.first {
        clear(&bench, entry, 0x60);
    }
    let bits = |at| bench.get(at) & 0x460;
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a));
    assert!(above.iter().all(|at| bits(*at) == 0x20));
    assert_eq!(bits(leaf), 0x20);
    assert_eq!(bench.write_outcome(DEVICE, pasid(5), AT), Ok(()));
    assert_eq!(
        bits(leaf),
        0x60,
        "the cached read does not stand in for the write"
    );
    // Cleared by software, and cached: nothing sets it again before the invalidation.
    clear(&bench, leaf, 0x40);
    bench.write_outcome(DEVICE, pasid(5), AT).unwrap();
    assert_eq!(bits(leaf), 0x20);
    assert!(bench.submit(&[pasid_iotlb_page(7, 5, AT, 0, true)]));
    bench.write_outcome(DEVICE, pasid(5), AT).unwrap();
    assert_eq!(bits(leaf), 0x60);
    // A write that faults sets no D.
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let tables = bind(&bench, Binding::First);
    clear(&bench, tables.first[3], 0x62);
    assert_eq!(bench.write_outcome(DEVICE, pasid(5), AT), Err(0x85));
    assert_eq!(bench.get(tables.first[3]) & 0x40, 0);
}

#[test]
fn extended_accessed_is_set_with_eafe() {
    let config = ModelConfig::nesting_server().with_extended(Ecap::EXTENDED_ACCESSED, 1);
    let bench = Bench::new(config, Mode::Scalable);
    let tables = bind(&bench, Binding::First);
    set(&bench, tables.pasid + 16, 1 << 7);
    clear(&bench, tables.first[3], 0x60);
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a));
    assert!(
        tables
            .first
            .iter()
            .all(|at| bench.get(*at) & 0x420 == 0x420)
    );
}

#[test]
fn updates_without_snooping_fault() {
    let bench = Bench::new(ModelConfig::nesting_client_noncoherent(), Mode::Scalable);
    let tables = bind(&bench, Binding::First);
    clear(&bench, tables.first[3], 0x40);
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a));
    assert_eq!(bench.write_outcome(DEVICE, pasid(5), AT), Err(0x90));
    let bench = Bench::new(ModelConfig::nesting_client_noncoherent(), Mode::Scalable);
    let tables = bind(&bench, Binding::First);
    clear(&bench, tables.first[1], 0x20);
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x90));
    // PWSNP=0 on a unit that could snoop; second stage.
    let config = ModelConfig::nesting_server().with_extended(Ecap::SECOND_STAGE_ACCESSED_DIRTY, 1);
    let bench = Bench::new(config, Mode::Scalable);
    let tables = bind(&bench, Binding::Second);
    set(&bench, tables.pasid, 1 << 9);
    clear(&bench, tables.pasid + 8, 1 << 23);
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x7c));
}

#[test]
fn second_stage_accessed_and_dirty_bits_follow_ssade() {
    let config = ModelConfig::nesting_server().with_extended(Ecap::SECOND_STAGE_ACCESSED_DIRTY, 1);
    let bench = Bench::new(config.clone(), Mode::Scalable);
    let tables = bind(&bench, Binding::Second);
    let bits = |at| bench.get(at) & 0x300;
    bench.write_outcome(DEVICE, None, AT).unwrap();
    assert!(tables.second.iter().all(|at| bits(*at) == 0), "SSADE=0");
    bench.submit(&[PASID_CACHE_GLOBAL, IOTLB_GLOBAL]);
    for pasid in [0, 5] {
        set(&bench, bench.pasid_at(DEVICE, pasid), 1 << 9);
    }
    bench.outcome(DEVICE, pasid(5), AT).unwrap();
    assert!(tables.second.iter().all(|at| bits(*at) == 0x100));
    bench.write_outcome(DEVICE, pasid(5), AT).unwrap();
    assert_eq!(bits(tables.second[3]), 0x300);
    assert_eq!(bits(tables.second[2]), 0x100);
    // An atomic that may not read sets no D.
    let bench = Bench::new(config, Mode::Scalable);
    let tables = bind(&bench, Binding::Second);
    set(&bench, tables.pasid, 1 << 9);
    clear(&bench, tables.second[3], 1);
    let atomic = bench
        .machine
        .unit
        .dma_fetch_add(DEVICE, pasid(5), Iova::new(AT), 1);
    assert_eq!(atomic.unwrap_err().reason.code(), 0x86);
    assert_eq!(bench.get(tables.second[3]) & 0x200, 0);
}

#[test]
fn nested_updates_dirty_the_guest_tables_pages() {
    let config = ModelConfig::nesting_server().with_extended(Ecap::SECOND_STAGE_ACCESSED_DIRTY, 1);
    let bench = Bench::new(config, Mode::Scalable);
    let tables = bind(&bench, Binding::Nested);
    for pasid in [0, 5] {
        set(&bench, bench.pasid_at(DEVICE, pasid), 1 << 9);
    }
    let second_root = bench.get(tables.pasid) & !0xfff;
    // The gigabyte that holds the guest's tables.
    let table_leaf = path(&bench, second_root, bench.get(tables.pasid + 16), 0)[1];
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(0xda7a));
    assert_eq!(
        bench.get(table_leaf) & 0x300,
        0x100,
        "A and D preset in the guest's tables"
    );
    bench.submit(&[IOTLB_GLOBAL]);
    clear(&bench, tables.first[3], 0x40);
    bench.write_outcome(DEVICE, pasid(5), AT).unwrap();
    assert_eq!(bench.get(tables.first[3]) & 0x60, 0x60);
    assert_eq!(
        bench.get(table_leaf) & 0x300,
        0x300,
        "the guest's table was written"
    );
    assert_eq!(bench.get(tables.second[3]) & 0x300, 0x300);
    // With SSADE, a table that is not writable cannot even be read.
    bench.submit(&[IOTLB_GLOBAL]);
    clear(&bench, table_leaf, 2);
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x77));
    bench.machine.unit.assert_no_violations();
}

#[test]
fn erratum_772415_updates_read_only_guest_tables() {
    for (erratum, expected) in [(false, Err(0x77)), (true, Ok(()))] {
        let mut config = ModelConfig::nesting_server();
        config.erratum_772415 = erratum;
        let bench = Bench::new(config, Mode::Scalable);
        let tables = bind(&bench, Binding::Nested);
        let second_root = bench.get(tables.pasid) & !0xfff;
        let table_leaf = path(&bench, second_root, bench.get(tables.pasid + 16), 0)[1];
        clear(&bench, table_leaf, 2);
        assert_eq!(
            bench.outcome(DEVICE, pasid(5), AT),
            Ok(0xda7a),
            "nothing to update"
        );
        bench.submit(&[IOTLB_GLOBAL]);
        clear(&bench, tables.first[3], 0x40);
        assert_eq!(bench.write_outcome(DEVICE, pasid(5), AT), expected);
        let dirty = bench.get(tables.first[3]) & 0x40 != 0;
        assert_eq!(dirty, erratum);
    }
}

#[test]
fn interrupt_writes_do_not_reach_translation() {
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let unit = &bench.machine.unit;
    let at = Iova::new(0xfee0_1000);
    unit.dma_write(DEVICE, None, at, &0x4031u32.to_le_bytes())
        .unwrap();
    let sent = unit.take_interrupts();
    assert_eq!(sent.len(), 1);
    assert_eq!(
        (sent[0].source_id, sent[0].address, sent[0].data),
        (DEVICE, 0xfee0_1000, 0x4031)
    );
    let code = |result: Result<(), vtd_model::Fault>| result.unwrap_err().reason.code();
    assert_eq!(code(unit.dma_write(DEVICE, None, at, &[0; 8])), 0x29);
    assert_eq!(
        code(unit.dma_write(DEVICE, None, Iova::new(0xfee0_1002), &[0; 4])),
        0x29
    );
    assert_eq!(code(unit.dma_read(DEVICE, None, at, &mut [0; 4])), 0x29);
    assert_eq!(unit.dma_read(DEVICE, None, at, &mut []), Ok(()));
    assert!(unit.take_interrupts().is_empty());
    // With a PASID the address is translated like any other.
    let tables = bind(&bench, Binding::First);
    let page = bench.page();
    bench.map_first(bench.get(tables.pasid + 16), 0xfee0_1000, page);
    unit.dma_write(DEVICE, pasid(5), at, &[7; 4]).unwrap();
    assert_eq!(bench.get(page), 0x0707_0707);
}
