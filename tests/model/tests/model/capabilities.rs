//! What each field of the capability registers changes, by probes that see it from outside.

use vtd_model::{Access, ModelConfig, ModelUnit, Request, Violation};
use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::{HostMemory, Registers};

use crate::support::*;

const AT: u64 = 0x1234_5000;
const DATA: u64 = 0xda7a;

/// What a probe saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    /// The request passed.
    Data,
    /// It was blocked with this code.
    Fault(u8),
    /// The queue took the descriptor.
    Accepted,
    /// The queue stopped with this IQEI code.
    QueueError(u8),
    /// No breach.
    Clean,
    /// A breach.
    Breach,
}

use Seen::*;

fn read(bench: &Bench, at: u64) -> Seen {
    match bench.outcome(DEVICE, pasid(5), at) {
        Ok(_) => Data,
        Err(code) => Fault(code),
    }
}

/// PASID 5 bound by second stage, with a data page at [`AT`]. The leaf entry.
fn second(bench: &Bench) -> u64 {
    let root = bench.page();
    bench.set_pasid(DEVICE, 5, bench.second_entry(7, root));
    bench.map_second(root, AT, bench.data_page(DATA))
}

/// The same by first stage.
fn first(bench: &Bench) -> u64 {
    let root = bench.page();
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, root));
    bench.map_first(root, AT, bench.data_page(DATA))
}

/// Sets bits of PASID 5's entry and reads.
fn with_entry_bits(bench: &Bench, quadword: u64, bits: u64) -> Seen {
    let at = bench.pasid_at(DEVICE, 5) + 8 * quadword;
    bench.put(at, bench.get(at) | bits);
    read(bench, AT)
}

/// Sets bits of the device's context entry and reads without PASID, by an entry of PASID 0.
fn with_context_bits(bench: &Bench, quadword: u64, bits: u64) -> Seen {
    bench.set_pasid(DEVICE, 0, bench.pass_through_entry(7));
    let at = bench.context_at(DEVICE) + 8 * quadword;
    bench.put(at, bench.get(at) | bits);
    match bench.outcome(DEVICE, None, 0x10_0000) {
        Ok(_) => Data,
        Err(code) => Fault(code),
    }
}

fn queue(bench: &Bench, descriptor: [u64; 2]) -> Seen {
    bench.submit(&[descriptor]);
    let unit = &bench.machine.unit;
    if unit.read32(Register32::FAULT_STATUS) & 1 << 4 == 0 {
        return Accepted;
    }
    QueueError(unit.read64(Register64::INVALIDATION_QUEUE_ERROR_RECORD) as u8 & 0xf)
}

fn breach(bench: &Bench, act: impl FnOnce(&mut ModelUnit)) -> Seen {
    act(&mut bench.machine.unit.clone());
    if bench.machine.unit.violations().is_empty() {
        Clean
    } else {
        Breach
    }
}

/// A leaf of `level` in a second-stage table.
fn large_second(bench: &Bench, leaf_level: u8) -> Seen {
    let root = bench.page();
    bench.set_pasid(DEVICE, 5, bench.second_entry(7, root));
    bench.map(Map {
        leaf_level,
        ..Map::second(root, AT, 0)
    });
    read(bench, AT)
}

type Probe = fn(&Bench) -> Seen;

/// Field, two values, what is seen with each.
type Row<F> = (F, (u64, Seen), (u64, Seen), Probe);

fn check<F: Copy + std::fmt::Debug>(
    rows: &[Row<F>],
    apply: fn(ModelConfig, F, u64) -> ModelConfig,
) {
    for (field, one, other, probe) in rows {
        for (value, expected) in [one, other] {
            let config = apply(ModelConfig::nesting_server(), *field, *value);
            let bench = Bench::new(config, Mode::Scalable);
            let seen = probe(&bench);
            assert_eq!(seen, *expected, "{field:?} = {value:#x}");
        }
    }
}

#[test]
fn each_field_of_the_capability_register_does_what_it_says() {
    let rows: &[Row<Cap>] = &[
        // 4 and 16 bits.
        (Cap::DOMAIN_ID_WIDTH, (0, Fault(0x5a)), (6, Data), |b| {
            second(b);
            with_entry_bits(b, 1, 0x10)
        }),
        (Cap::WRITE_BUFFER_FLUSH, (0, Breach), (1, Clean), |b| {
            breach(b, |_| b.command(1 << 27, true))
        }),
        (Cap::CACHING_MODE, (0, Data), (1, Fault(0x59)), |b| {
            b.pasid_at(DEVICE, 5);
            assert_eq!(read(b, AT), Fault(0x59));
            second(b);
            read(b, AT)
        }),
        // 39 bits only; 48 bits too.
        (
            Cap::ADJUSTED_GUEST_ADDRESS_WIDTHS,
            (0b0010, Fault(0x5b)),
            (0b0110, Data),
            |b| {
                second(b);
                read(b, AT)
            },
        ),
        // 39 bits, 48 bits.
        (
            Cap::MAXIMUM_GUEST_ADDRESS_WIDTH,
            (38, Fault(0x84)),
            (47, Fault(0x79)),
            |b| {
                second(b);
                read(b, 1 << 39)
            },
        ),
        (Cap::ZERO_LENGTH_READ, (0, Fault(0x86)), (1, Data), |b| {
            let leaf = second(b);
            b.put(leaf, b.get(leaf) & !1);
            let unit = &b.machine.unit;
            match unit.dma_read(DEVICE, pasid(5), Iova::new(AT), &mut []) {
                Ok(()) => Data,
                Err(fault) => Fault(fault.reason.code()),
            }
        }),
        (
            Cap::SECOND_STAGE_LARGE_PAGES,
            (0, Fault(0x7a)),
            (1, Data),
            |b| large_second(b, 2),
        ),
        (
            Cap::SECOND_STAGE_LARGE_PAGES,
            (1, Fault(0x7a)),
            (3, Data),
            |b| large_second(b, 3),
        ),
        (
            Cap::PAGE_SELECTIVE_INVALIDATION,
            (0, QueueError(4)),
            (1, Accepted),
            |b| queue(b, iotlb_page(7, 0, 0, false)),
        ),
        (
            Cap::MAXIMUM_ADDRESS_MASK,
            (9, QueueError(4)),
            (18, Accepted),
            |b| queue(b, iotlb_page(7, 0, 18, false)),
        ),
        (
            Cap::FIRST_STAGE_1GIB_PAGES,
            (0, Fault(0x72)),
            (1, Data),
            |b| {
                let root = b.page();
                b.set_pasid(DEVICE, 5, b.first_entry(7, root));
                b.map(Map {
                    leaf_level: 3,
                    ..Map::first(root, AT, 0)
                });
                read(b, AT)
            },
        ),
        (Cap::FIRST_STAGE_5_LEVEL, (0, Fault(0x5b)), (1, Data), |b| {
            let root = b.page();
            b.set_pasid(DEVICE, 5, b.first_entry(7, root));
            b.map(Map {
                levels: 5,
                ..Map::first(root, AT, b.data_page(DATA))
            });
            with_entry_bits(b, 2, 1 << 2)
        }),
        (
            Cap::ENHANCED_SET_ROOT_TABLE_POINTER,
            (0, Data),
            (1, Fault(0x59)),
            |b| {
                second(b);
                assert_eq!(read(b, AT), Data);
                b.put(b.pasid_at(DEVICE, 5), 0);
                b.command(SRTP, true);
                read(b, AT)
            },
        ),
    ];
    check(rows, ModelConfig::with_capability);
}

// Its bit is in a register that only a unit with interrupt remapping has.
#[test]
fn extended_interrupt_mode_has_its_bit() {
    for (value, expected) in [(0, Breach), (1, Clean)] {
        let config = ModelConfig::nesting_server()
            .with_extended(Ecap::INTERRUPT_REMAPPING, 1)
            .with_extended(Ecap::EXTENDED_INTERRUPT_MODE, value);
        let bench = Bench::new(config, Mode::Scalable);
        let seen = breach(&bench, |unit| {
            unit.write64(Register64::INTERRUPT_REMAPPING_TABLE_ADDRESS, 1 << 11)
        });
        assert_eq!(seen, expected, "EIM = {value}");
    }
}

#[test]
fn each_field_of_the_extended_capability_register_does_what_it_says() {
    let rows: &[Row<Ecap>] = &[
        // An entry that is cleared and not flushed.
        (Ecap::COHERENCY, (0, Data), (1, Fault(0x59)), |b| {
            second(b);
            let at = b.pasid_at(DEVICE, 5);
            b.machine.memory.write64(Hpa::new(at), 0);
            read(b, AT)
        }),
        (
            Ecap::PAGE_WALK_COHERENCY,
            (0, Data),
            (1, Fault(0x79)),
            |b| {
                let leaf = second(b);
                b.machine.memory.write64(Hpa::new(leaf), 0);
                read(b, AT)
            },
        ),
        (
            Ecap::PAGE_WALK_COHERENCY,
            (0, Fault(0x5a)),
            (1, Data),
            |b| {
                second(b);
                with_entry_bits(b, 1, 1 << 23)
            },
        ),
        (Ecap::DEVICE_TLB, (0, QueueError(3)), (1, Accepted), |b| {
            queue(b, [3 | 0x10 << 32, 0])
        }),
        (Ecap::DEVICE_TLB, (0, Fault(0x42)), (1, Data), |b| {
            with_context_bits(b, 0, 1 << 2)
        }),
        (Ecap::INTERRUPT_REMAPPING, (0, Breach), (1, Clean), |b| {
            breach(b, |_| b.command(1 << 24, true))
        }),
        (
            Ecap::MAXIMUM_HANDLE_MASK,
            (2, QueueError(4)),
            (3, Accepted),
            |b| queue(b, [0x14 | 3 << 27, 0]),
        ),
        (Ecap::PASS_THROUGH, (0, Fault(0x5b)), (1, Data), |b| {
            b.set_pasid(DEVICE, 5, b.pass_through_entry(7));
            read(b, 0x10_0000)
        }),
        // PGSNP, and SNP of a leaf.
        (Ecap::SNOOP_CONTROL, (0, Fault(0x5a)), (1, Data), |b| {
            second(b);
            with_entry_bits(b, 1, 1 << 24)
        }),
        (Ecap::SNOOP_CONTROL, (0, Fault(0x7a)), (1, Data), |b| {
            let leaf = second(b);
            b.put(leaf, b.get(leaf) | 1 << 11);
            read(b, AT)
        }),
        // CD, EMTE, and PA7 of PAT.
        (Ecap::MEMORY_TYPES, (0, Fault(0x5a)), (1, Data), |b| {
            second(b);
            with_entry_bits(b, 1, 1 << 25)
        }),
        (Ecap::MEMORY_TYPES, (0, Fault(0x5a)), (1, Data), |b| {
            second(b);
            with_entry_bits(b, 1, 1 << 26)
        }),
        (Ecap::MEMORY_TYPES, (0, Fault(0x5a)), (1, Data), |b| {
            first(b);
            with_entry_bits(b, 1, 6 << 60)
        }),
        // EMT 2 does not exist.
        (
            Ecap::MEMORY_TYPES,
            (0, Fault(0x5a)),
            (1, Fault(0x7a)),
            |b| {
                let leaf = second(b);
                b.put(leaf, b.get(leaf) | 2 << 3);
                with_entry_bits(b, 1, 1 << 26)
            },
        ),
        (Ecap::NESTED, (0, Fault(0x5b)), (1, Fault(0x79)), |b| {
            b.set_pasid(DEVICE, 5, b.nested_entry(7, b.page(), b.page()));
            read(b, AT)
        }),
        (
            Ecap::SUPERVISOR_REQUESTS,
            (0, Fault(0x5a)),
            (1, Data),
            |b| {
                second(b);
                with_entry_bits(b, 2, 1)
            },
        ),
        (Ecap::EXTENDED_ACCESSED, (0, Fault(0x5a)), (1, Data), |b| {
            first(b);
            with_entry_bits(b, 2, 1 << 7)
        }),
        // PASID 5 has 3 bits.
        (Ecap::PASID_SIZE, (1, Fault(0x89)), (2, Data), |b| {
            second(b);
            read(b, AT)
        }),
        (
            Ecap::REQUESTS_WITH_PASID,
            (0, Fault(0x42)),
            (1, Data),
            |b| with_context_bits(b, 0, 1 << 3),
        ),
        (
            Ecap::PAGE_REQUEST_DRAIN,
            (0, QueueError(4)),
            (1, Accepted),
            |b| queue(b, [0x45 | 1 << 7, 0]),
        ),
        (
            Ecap::SECOND_STAGE_ACCESSED_DIRTY,
            (0, Fault(0x5a)),
            (1, Data),
            |b| {
                second(b);
                with_entry_bits(b, 0, 1 << 9)
            },
        ),
        (Ecap::SECOND_STAGE, (0, Fault(0x5b)), (1, Data), |b| {
            b.set_pasid(DEVICE, 5, [0x81, 7, 0, 0, 0, 0, 0, 0]);
            // AW and SSPTPTR would be reserved without second stage.
            if b.has(Ecap::SECOND_STAGE) {
                second(b);
            }
            read(b, AT)
        }),
        (Ecap::FIRST_STAGE, (0, Fault(0x5b)), (1, Data), |b| {
            b.set_pasid(DEVICE, 5, [0x41, 7, 0, 0, 0, 0, 0, 0]);
            if b.has(Ecap::FIRST_STAGE) {
                first(b);
            }
            read(b, AT)
        }),
        // RID_PASID 1, whose entry is absent.
        (Ecap::RID_PASID, (0, Fault(0x42)), (1, Fault(0x59)), |b| {
            with_context_bits(b, 1, 1)
        }),
        (
            Ecap::ABORT_DMA_MODE,
            (0, Fault(0x30)),
            (1, Fault(0x33)),
            |b| {
                let mut unit = b.machine.unit.clone();
                unit.write64(Register64::ROOT_TABLE_ADDRESS, b.root | 3 << 10);
                b.command(SRTP, true);
                read(b, AT)
            },
        ),
        // SRE is clear: requests without PASID are supervisor ones now.
        (Ecap::RID_PRIV, (0, Fault(0x42)), (1, Fault(0x5d)), |b| {
            with_context_bits(b, 1, 1 << 20)
        }),
        (
            Ecap::HOST_PERMISSION_TABLES,
            (0, Fault(0x5a)),
            (1, Data),
            |b| {
                second(b);
                with_entry_bits(b, 4, 1 << 20 | 7)
            },
        ),
        (
            Ecap::HOST_PERMISSION_TABLES,
            (0, QueueError(3)),
            (1, Accepted),
            |b| queue(b, [0x1a, 0]),
        ),
        (
            Ecap::PASID_IN_TRANSLATED_REQUESTS,
            (0, Fault(0x42)),
            (1, Data),
            |b| with_context_bits(b, 0, 1 << 6 | 1 << 3),
        ),
        (
            Ecap::SECOND_STAGE_IO_PERMISSIONS,
            (0, Breach),
            (1, Clean),
            |b| {
                breach(b, |unit| {
                    unit.write64(Register64::ROOT_TABLE_ADDRESS, b.root_address() | 1 << 7)
                })
            },
        ),
    ];
    check(rows, ModelConfig::with_extended);
}

#[test]
fn fields_that_need_others_are_used_only_with_them() {
    // PRE needs DTE, and PFSID and MIP of a device-TLB descriptor need DIT.
    let with_device_tlbs = ModelConfig::nesting_server().with_extended(Ecap::DEVICE_TLB, 1);
    for (page_requests, expected) in [(0, Fault(0x42)), (1, Data)] {
        let config = with_device_tlbs
            .clone()
            .with_extended(Ecap::PAGE_REQUESTS, page_requests);
        let bench = Bench::new(config, Mode::Scalable);
        assert_eq!(with_context_bits(&bench, 0, 0b101 << 2), expected);
    }
    for (throttling, expected) in [(0, QueueError(4)), (1, Accepted)] {
        let config = with_device_tlbs
            .clone()
            .with_extended(Ecap::DEVICE_TLB_THROTTLING, throttling);
        let bench = Bench::new(config, Mode::Scalable);
        // PFSID 0x10.
        assert_eq!(queue(&bench, [3 | 0x10 << 32 | 1 << 52, 0]), expected);
    }
    // Without scalable mode there is no such root table.
    for (scalable, expected) in [(0, Fault(0x30)), (1, Fault(0x39))] {
        let config = ModelConfig::nesting_server().with_extended(Ecap::SCALABLE_MODE, scalable);
        let bench = Bench::new(config, Mode::Scalable);
        assert_eq!(read(&bench, AT), expected);
    }
    // Without a queue it cannot be switched on.
    let config = ModelConfig::legacy_server().with_extended(Ecap::QUEUED_INVALIDATION, 0);
    let bench = Bench::off(config, Mode::Legacy);
    assert_eq!(breach(&bench, |_| bench.command(QIE, true)), Breach);
}

#[test]
fn reserved_bits_of_a_pasid_entry_fault_whatever_its_type() {
    // §9.6: bit positions of a unit with every feature, 52-bit host addresses and 16-bit
    // domain-ids; all others are fields or ignored.
    let config = ModelConfig::everything_on();
    let bench = Bench::new(config, Mode::Scalable);
    let (root, table) = (bench.page(), bench.page());
    let entries = [
        bench.first_entry(7, root),
        bench.second_entry(8, table),
        bench.nested_entry(9, root, table),
        bench.pass_through_entry(10),
    ];
    let reserved = |bit: u32| match bit {
        5 | 10..=11 | 52..=63 | 80..=86 | 91..=95 => true,
        96..=127 => bit % 4 == 3,
        129 | 136..=139 | 180..=191 | 192..=255 => true,
        259..=267 | 308..=319 | 336.. => true,
        _ => false,
    };
    for entry in entries {
        for bit in 0..512 {
            // Fields that change whether there is an entry, and of which type and width.
            if matches!(bit, 0 | 2..=4 | 6..=8 | 130..=131) {
                continue;
            }
            let mut changed = entry;
            changed[bit as usize / 64] ^= 1 << (bit % 64);
            bench.set_pasid(DEVICE, 5, changed);
            let request = Request::new(DEVICE, pasid(5), Iova::new(AT), Access::Read);
            let code = bench
                .machine
                .unit
                .translate(&request)
                .map_err(|fault| fault.reason.code());
            let is_reserved = code == Err(0x5a);
            assert_eq!(
                is_reserved,
                reserved(bit),
                "bit {bit} of {entry:x?}: {code:x?}"
            );
            bench.submit(&[PASID_CACHE_GLOBAL, IOTLB_GLOBAL]);
        }
    }
}

#[test]
fn memory_types_that_do_not_exist_are_a_breach() {
    for (attributes, is_breach) in [
        (0x0007_0406, false),
        (0x0700_0652, true),
        (0x3000_0000, true),
    ] {
        let bench = Bench::new(ModelConfig::everything_on(), Mode::Scalable);
        first(&bench);
        let at = bench.pasid_at(DEVICE, 5) + 8;
        bench.put(at, bench.get(at) | attributes << 32);
        assert_eq!(read(&bench, AT), Data);
        let expected = Violation::ReservedPageAttribute {
            source_id: DEVICE,
            value: attributes as u32,
        };
        let violations = bench.machine.unit.violations();
        assert_eq!(violations == [expected], is_breach, "{attributes:x}");
        assert_eq!(violations.is_empty(), !is_breach);
    }
}

#[test]
fn profiles_start_clean_and_differ_as_they_say() {
    let bench = Bench::new(ModelConfig::everything_on(), Mode::Scalable);
    second(&bench);
    assert_eq!(read(&bench, AT), Data);
    bench.machine.unit.assert_no_violations();
    // Records 0 and 255, in the second page.
    assert_eq!(bench.machine.unit.window_bytes(), 0x2000);
    let (server, erratum) = (
        ModelConfig::nesting_server(),
        ModelConfig::nesting_server_erratum(),
    );
    assert!(erratum.erratum_772415 && !server.erratum_772415);
    assert_eq!(server.capability, erratum.capability);
    assert_eq!(server.extended, erratum.extended);
}
