extern crate std;
use super::*;
use crate::arch::address::Iova;
use crate::arch::address::{Gpa, Hpa};
use crate::arch::id::Pasid;
use crate::arch::id::SourceId;
use std::vec::Vec;

/// One row per field: mnemonic, highest and lowest bit, getter.
type Field<T> = (&'static str, u32, u32, fn(T) -> u64);

/// Sets one bit at a time: a getter shows it at its place in the field, or not at all.
fn assert_fields<T>(fields: &[Field<T>], bits: u32, with_only: fn(u32) -> T) {
    for &(name, high, low, get) in fields {
        for bit in 0..bits {
            let expected = if (low..=high).contains(&bit) {
                1 << (bit - low)
            } else {
                0
            };
            assert_eq!(get(with_only(bit)), expected, "{name}, bit {bit}");
        }
    }
}

#[test]
fn registers_lie_where_the_register_map_puts_them() {
    // §11.4
    for (register, offset) in [
        (Register32::VERSION, 0x000),
        (Register32::GLOBAL_COMMAND, 0x018),
        (Register32::GLOBAL_STATUS, 0x01c),
        (Register32::FAULT_STATUS, 0x034),
        (Register32::FAULT_EVENT_CONTROL, 0x038),
        (Register32::FAULT_EVENT_DATA, 0x03c),
        (Register32::FAULT_EVENT_ADDRESS, 0x040),
        (Register32::FAULT_EVENT_UPPER_ADDRESS, 0x044),
        (Register32::PROTECTED_MEMORY_ENABLE, 0x064),
        (Register32::PROTECTED_LOW_MEMORY_BASE, 0x068),
        (Register32::PROTECTED_LOW_MEMORY_LIMIT, 0x06c),
        (Register32::INVALIDATION_COMPLETION_STATUS, 0x09c),
        (Register32::INVALIDATION_EVENT_CONTROL, 0x0a0),
        (Register32::INVALIDATION_EVENT_DATA, 0x0a4),
        (Register32::INVALIDATION_EVENT_ADDRESS, 0x0a8),
        (Register32::INVALIDATION_EVENT_UPPER_ADDRESS, 0x0ac),
        (Register32::PAGE_REQUEST_STATUS, 0x0dc),
        (Register32::PAGE_REQUEST_EVENT_CONTROL, 0x0e0),
        (Register32::PAGE_REQUEST_EVENT_DATA, 0x0e4),
        (Register32::PAGE_REQUEST_EVENT_ADDRESS, 0x0e8),
        (Register32::PAGE_REQUEST_EVENT_UPPER_ADDRESS, 0x0ec),
    ] {
        assert_eq!(register.offset(), offset);
        assert_eq!(offset % 4, 0);
    }
    for (register, offset) in [
        (Register64::CAPABILITY, 0x008),
        (Register64::EXTENDED_CAPABILITY, 0x010),
        (Register64::ROOT_TABLE_ADDRESS, 0x020),
        (Register64::CONTEXT_COMMAND, 0x028),
        (Register64::PROTECTED_HIGH_MEMORY_BASE, 0x070),
        (Register64::PROTECTED_HIGH_MEMORY_LIMIT, 0x078),
        (Register64::INVALIDATION_QUEUE_HEAD, 0x080),
        (Register64::INVALIDATION_QUEUE_TAIL, 0x088),
        (Register64::INVALIDATION_QUEUE_ADDRESS, 0x090),
        (Register64::INVALIDATION_QUEUE_ERROR_RECORD, 0x0b0),
        (Register64::INTERRUPT_REMAPPING_TABLE_ADDRESS, 0x0b8),
        (Register64::PAGE_REQUEST_QUEUE_HEAD, 0x0c0),
        (Register64::PAGE_REQUEST_QUEUE_TAIL, 0x0c8),
        (Register64::PAGE_REQUEST_QUEUE_ADDRESS, 0x0d0),
    ] {
        assert_eq!(register.offset(), offset);
        assert_eq!(register.low_dword().offset(), offset);
        assert_eq!(register.high_dword().offset(), offset + 4);
        assert_eq!(offset % 8, 0);
    }
}

#[test]
fn run_time_offsets_are_aligned_and_end_within_the_window_or_are_refused() {
    for base in 0..=u16::MAX {
        for index in [0, 1, 7, 0xfe, 0xff] {
            let start = u32::from(base) + 16 * u32::from(index);
            let is_legal = base % 16 == 0 && start + 16 <= REGISTER_WINDOW_MAX_BYTES;
            let expected = |within: u32| is_legal.then_some(start + within);
            let low = Register64::fault_record_low(base, index);
            let high = Register64::fault_record_high(base, index);
            let last = Register32::fault_record_dword3(base, index);
            assert_eq!(low.map(|r| u32::from(r.offset())), expected(0));
            assert_eq!(high.map(|r| u32::from(r.offset())), expected(8));
            assert_eq!(last.map(|r| u32::from(r.offset())), expected(12));
        }
        let expected = |within: u16| (base % 16 == 0).then_some(base | within);
        let address = Register64::invalidate_address(base).map(Register64::offset);
        let command = Register64::iotlb_invalidate(base).map(Register64::offset);
        assert_eq!(address, expected(0));
        assert_eq!(command, expected(8));
    }
}

#[test]
fn flags_have_the_bits_of_the_specification() {
    type Rows<'a> = &'a [(u32, u32)];
    let command: Rows = &[
        (GlobalCommand::TRANSLATION_ENABLE.bits(), 31),
        (GlobalCommand::SET_ROOT_TABLE_POINTER.bits(), 30),
        (GlobalCommand::WRITE_BUFFER_FLUSH.bits(), 27),
        (GlobalCommand::QUEUED_INVALIDATION_ENABLE.bits(), 26),
        (GlobalCommand::INTERRUPT_REMAPPING_ENABLE.bits(), 25),
        (
            GlobalCommand::SET_INTERRUPT_REMAPPING_TABLE_POINTER.bits(),
            24,
        ),
        (GlobalCommand::COMPATIBILITY_FORMAT_INTERRUPT.bits(), 23),
    ];
    let status: Rows = &[
        (GlobalStatus::TRANSLATION_ENABLED.bits(), 31),
        (GlobalStatus::ROOT_TABLE_POINTER_SET.bits(), 30),
        (GlobalStatus::WRITE_BUFFER_FLUSH_BUSY.bits(), 27),
        (GlobalStatus::QUEUED_INVALIDATION_ENABLED.bits(), 26),
        (GlobalStatus::INTERRUPT_REMAPPING_ENABLED.bits(), 25),
        (
            GlobalStatus::INTERRUPT_REMAPPING_TABLE_POINTER_SET.bits(),
            24,
        ),
        (
            GlobalStatus::COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED.bits(),
            23,
        ),
    ];
    let fault: Rows = &[
        (FaultStatus::FAULT_OVERFLOW.bits(), 0),
        (FaultStatus::PRIMARY_PENDING_FAULT.bits(), 1),
        (FaultStatus::INVALIDATION_QUEUE_ERROR.bits(), 4),
        (FaultStatus::INVALIDATION_COMPLETION_ERROR.bits(), 5),
        (FaultStatus::INVALIDATION_TIMEOUT_ERROR.bits(), 6),
    ];
    let others: Rows = &[
        (EventControl::INTERRUPT_MASK.bits(), 31),
        (EventControl::INTERRUPT_PENDING.bits(), 30),
        (InvalidationCompletionStatus::WAIT_COMPLETE.bits(), 0),
        (PageRequestStatus::PENDING.bits(), 0),
        (PageRequestStatus::OVERFLOW.bits(), 1),
        (ProtectedMemoryEnable::ENABLE.bits(), 31),
        (ProtectedMemoryEnable::STATUS.bits(), 0),
    ];
    for &(bits, bit) in [command, status, fault, others].concat().iter() {
        assert_eq!(bits, 1 << bit);
    }
    let union = |rows: Rows| rows.iter().fold(0, |all, row| all | row.0);
    assert_eq!(GlobalCommand::all().bits(), union(command));
    assert_eq!(GlobalStatus::all().bits(), union(status));
    assert_eq!(FaultStatus::all().bits(), union(fault));
}

#[test]
fn only_persistent_commands_are_repeated_from_the_status() {
    // §11.4.4.1: software keeps status bits under this mask.
    for bit in 0..32 {
        let status = GlobalStatus::from_bits_retain(1 << bit);
        let expected = if [31, 26, 25, 23].contains(&bit) {
            1 << bit
        } else {
            0
        };
        assert_eq!(status.persistent().bits(), expected, "bit {bit}");
        assert_eq!(expected & 0x96ff_ffff, expected);
    }
    assert!(!GlobalCommand::ONE_SHOT.intersects(GlobalCommand::PERSISTENT));
    assert_eq!(
        GlobalCommand::ONE_SHOT | GlobalCommand::PERSISTENT,
        GlobalCommand::all()
    );
}

#[test]
fn fault_status_carries_the_record_index_in_bits_15_to_8() {
    for bit in 0..32 {
        let expected = if (8..16).contains(&bit) {
            1 << (bit - 8)
        } else {
            0
        };
        assert_eq!(FaultStatus::fault_record_index(1 << bit), expected);
    }
    let raw = FaultStatus::PRIMARY_PENDING_FAULT.with_fault_record_index(0xa5);
    assert_eq!(raw, 0xa502);
    assert_eq!(
        FaultStatus::from_bits_retain(u32::MAX).with_fault_record_index(0),
        0x73
    );
}

#[test]
fn each_getter_reads_its_own_bits_and_no_others() {
    assert_fields::<RootTableAddress>(
        &[
            ("RTA", 63, 12, |r| r.root::<Hpa>().as_u64() >> 12),
            ("TTM", 11, 10, |r| r.mode().field()),
            ("SSIRWE", 7, 7, |r| {
                r.has_second_stage_io_permissions().into()
            }),
        ],
        64,
        |bit| RootTableAddress::from_bits(1 << bit),
    );
    assert_fields::<InterruptRemappingTableAddress>(
        &[
            ("IRTA", 63, 12, |r| r.table::<Hpa>().as_u64() >> 12),
            ("EIME", 11, 11, |r| r.has_extended_interrupt_mode().into()),
            ("S", 3, 0, |r| r.entry_count().trailing_zeros() as u64 - 1),
        ],
        64,
        |bit| InterruptRemappingTableAddress::from_bits(1 << bit),
    );
    assert_fields::<InvalidationQueueAddress>(
        &[
            ("IQA", 63, 12, |r| r.base::<Gpa>().as_u64() >> 12),
            ("DW", 11, 11, |r| {
                (r.descriptor_width() == DescriptorWidth::Bits256).into()
            }),
            ("QS", 2, 0, |r| {
                (r.size_bytes() / 4096).trailing_zeros().into()
            }),
        ],
        64,
        |bit| InvalidationQueueAddress::from_bits(1 << bit),
    );
    assert_fields::<QueueErrorRecord>(
        &[
            ("ITESID", 47, 32, |r| {
                r.timed_out_source_id().map_or(0, |id| id.as_u16().into())
            }),
            ("ICESID", 63, 48, |r| {
                r.bad_completion_source_id()
                    .map_or(0, |id| id.as_u16().into())
            }),
        ],
        64,
        |bit| QueueErrorRecord::from_bits(1 << bit),
    );
    assert_fields::<ContextCommand>(
        &[
            ("ICC", 63, 63, |r| r.is_requested().into()),
            ("CIRG", 62, 61, |r| r.requested_granularity().into()),
            ("CAIG", 60, 59, |r| r.actual_granularity().into()),
            ("FM", 33, 32, |r| r.function_mask().into()),
            ("SID", 31, 16, |r| r.source_id().as_u16().into()),
            ("DID", 15, 0, |r| r.domain_id().as_u16().into()),
        ],
        64,
        |bit| ContextCommand::from_bits(1 << bit),
    );
    assert_fields::<IotlbCommand>(
        &[
            ("IVT", 63, 63, |r| r.is_requested().into()),
            ("IIRG", 61, 60, |r| r.requested_granularity().into()),
            ("IAIG", 58, 57, |r| r.actual_granularity().into()),
            ("DR", 49, 49, |r| r.drains_reads().into()),
            ("DW", 48, 48, |r| r.drains_writes().into()),
            ("DID", 47, 32, |r| r.domain_id().as_u16().into()),
        ],
        64,
        |bit| IotlbCommand::from_bits(1 << bit),
    );
    assert_fields::<InvalidateAddress>(
        &[
            ("ADDR", 63, 12, |r| r.address() >> 12),
            ("IH", 6, 6, |r| r.leaf_hint().into()),
            ("AM", 5, 0, |r| r.address_mask().into()),
        ],
        64,
        |bit| InvalidateAddress::from_bits(1 << bit),
    );
    // Head and tail: bits 18:4 hold the offset in units of 16 bytes.
    assert_fields::<u64>(
        &[("QH, QT", 18, 4, |raw| u64::from(queue_offset(raw)) / 16)],
        64,
        |bit| 1 << bit,
    );
}

#[test]
fn each_fault_record_getter_reads_its_own_bits_and_no_others() {
    let with_only = |bit: u32| {
        let bits = 1_u128 << bit;
        FaultRecord {
            low: bits as u64,
            high: (bits >> 64) as u64,
        }
    };
    assert_fields::<FaultRecord>(
        &[
            // §11.4.7.6
            ("FI", 63, 12, |r| r.address().as_u64() >> 12),
            ("FI, interrupt", 63, 48, |r| r.interrupt_index().into()),
            ("SID", 79, 64, |r| r.source_id().as_u16().into()),
            ("T2", 92, 92, |r| {
                matches!(r.request(), RequestType::PageRequest).into()
            }),
            ("PRIV", 93, 93, |r| r.is_privileged().into()),
            ("EXE", 94, 94, |r| r.is_execute().into()),
            ("PP", 95, 95, |r| r.pasid().is_some().into()),
            ("FR", 103, 96, |r| r.reason_code().into()),
            ("AT", 125, 124, |r| r.address_type().field()),
            ("T1", 126, 126, |r| {
                matches!(r.request(), RequestType::Read).into()
            }),
            ("F", 127, 127, |r| r.is_valid().into()),
        ],
        128,
        with_only,
    );
    // PV counts together with PP only.
    for bit in (0..128).filter(|&bit| bit != 95) {
        let mut record = with_only(bit);
        record.high |= 1 << (95 - 64);
        let expected = if (104..=123).contains(&bit) {
            1 << (bit - 104)
        } else {
            0
        };
        assert_eq!(record.pasid().map(Pasid::as_u32), Some(expected));
        assert_eq!(with_only(bit).pasid(), None);
    }
}

#[test]
fn fault_records_match_golden_values_and_give_back_what_was_recorded() {
    let read = FaultInfo {
        source_id: SourceId::from_u16(0x0310),
        pasid: Pasid::new(0x12345),
        reason: 0x71,
        address: Iova::new(0x7fff_1234_5678),
        request: RequestType::Read,
        privileged: true,
        execute: true,
        address_type: AddressType::Translated,
    };
    let plain = FaultInfo {
        source_id: SourceId::from_u16(0xffff),
        pasid: None,
        reason: 0x05,
        request: RequestType::Write,
        privileged: false,
        execute: false,
        address_type: AddressType::Untranslated,
        ..read
    };
    // High quadword: F 63, T1 62, AT 61:60, PV 59:40, FR 39:32, PP 31, EXE 30, PRIV 29, T2 28.
    for (info, high) in [
        (read, 0xe123_4571_e000_0310_u64),
        (plain, 0x8000_0005_0000_ffff),
        (
            FaultInfo {
                request: RequestType::PageRequest,
                ..plain
            },
            0x8000_0005_1000_ffff,
        ),
        (
            FaultInfo {
                request: RequestType::Atomic,
                ..plain
            },
            0xc000_0005_1000_ffff,
        ),
        (
            FaultInfo {
                address_type: AddressType::TranslationRequest,
                ..plain
            },
            0x9000_0005_0000_ffff,
        ),
    ] {
        let record = FaultRecord::new(info);
        assert_eq!(record.high, high, "{info:?}");
        assert_eq!(record.low, 0x7fff_1234_5000);
        assert!(record.is_valid() && !record.cleared().is_valid());
        assert_eq!(record.cleared().info(), record.info());
        let page = Iova::new(record.low);
        assert_eq!(
            record.info(),
            FaultInfo {
                address: page,
                ..info
            }
        );
    }
}

#[test]
fn a_fault_record_holds_privilege_and_execute_only_where_they_are_valid() {
    let info = FaultInfo {
        privileged: true,
        execute: true,
        ..FaultInfo::interrupt(SourceId::from_u16(8), 0x22, 0xbeef)
    };
    let record = FaultRecord::new(info);
    assert_eq!(record.interrupt_index(), 0xbeef);
    assert_eq!(record.low, 0xbeef_0000_0000_0000);
    assert!(!record.is_privileged() && !record.is_execute());

    let write = FaultInfo {
        pasid: Some(Pasid::ZERO),
        ..info
    };
    let record = FaultRecord::new(write);
    assert!(record.is_privileged() && !record.is_execute());
    assert_eq!(record.pasid(), Some(Pasid::ZERO));
}

#[test]
fn table_modes_and_queue_errors_are_coded_as_specified() {
    for (mode, field) in [
        (TranslationTableMode::Legacy, 0b00),
        (TranslationTableMode::Scalable, 0b01),
        (TranslationTableMode::Reserved, 0b10),
        (TranslationTableMode::AbortDma, 0b11),
    ] {
        assert_eq!(mode.field(), field);
        assert_eq!(TranslationTableMode::from_field(field | 4), mode);
        let register = RootTableAddress::new(Gpa::new(0x1234_5fff), mode);
        assert_eq!(register.bits(), 0x1234_5000 | field << 10);
        assert_eq!(register.bits() & RootTableAddress::RESERVED, 0);
    }
    for code in 0..=u8::MAX {
        let error = QueueErrorInfo::from_code(code);
        assert_eq!(error.is_some(), (1..=7).contains(&code));
        assert!(error.is_none_or(|error| error.code() == code));
        let record = QueueErrorRecord::from_bits(0xffff_ffff_ffff_fff0 | u64::from(code & 0xf));
        assert_eq!(record.error(), QueueErrorInfo::from_code(code & 0xf));
    }
    let codes: Vec<u8> = QueueErrorInfo::ALL.iter().map(|e| e.code()).collect();
    assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7]);
    let record = QueueErrorRecord::new(
        Some(QueueErrorInfo::ReservedBit),
        Some(SourceId::from_u16(0x1234)),
        Some(SourceId::from_u16(0x5678)),
    );
    assert_eq!(record.bits(), 0x5678_1234_0000_0004);
    assert_eq!(QueueErrorRecord::new(None, None, None).bits(), 0);
}

#[test]
fn queue_size_follows_from_order_and_width() {
    for order in 0..=7 {
        for (width, count, dw) in [
            (DescriptorWidth::Bits128, 1 << (order + 8), 0),
            (DescriptorWidth::Bits256, 1 << (order + 7), 0x800),
        ] {
            let register =
                InvalidationQueueAddress::new(Hpa::new(0xabc_d000), order, width).unwrap();
            assert_eq!(register.bits(), 0xabc_d000 | dw | u64::from(order));
            assert_eq!(register.bits() & InvalidationQueueAddress::RESERVED, 0);
            assert_eq!(register.descriptor_width(), width);
            assert_eq!(register.descriptor_count(), count);
            assert_eq!(register.size_bytes(), 4096 << order);
            assert_eq!(count * width.len_bytes(), register.size_bytes());
        }
    }
    for (base, order) in [(0x1000, 8), (0x1000, 0xff), (0x1800, 0), (0x1001, 0)] {
        let width = DescriptorWidth::Bits256;
        assert_eq!(
            InvalidationQueueAddress::new(Hpa::new(base), order, width),
            None
        );
    }
}

#[test]
fn interrupt_table_size_follows_from_order() {
    for order in 0..=15 {
        let register = InterruptRemappingTableAddress::new(Hpa::new(0x7000), order, true).unwrap();
        assert_eq!(register.bits(), 0x7800 | u64::from(order));
        assert_eq!(register.entry_count(), 1 << (order + 1));
    }
    for (table, order) in [(0x7000, 16), (0x7010, 0)] {
        assert_eq!(
            InterruptRemappingTableAddress::new(Hpa::new(table), order, false),
            None
        );
    }
}

#[test]
fn register_based_invalidation_completes_with_the_granularity_done() {
    let context = ContextCommand::from_bits(u64::MAX).completed(1);
    assert!(!context.is_requested());
    assert_eq!(context.actual_granularity(), 1);
    assert_eq!(context.bits(), 0x6fff_ffff_ffff_ffff);
    let iotlb = IotlbCommand::from_bits(u64::MAX).completed(0);
    assert_eq!(iotlb.bits(), 0x79ff_ffff_ffff_ffff);
    assert_eq!(iotlb.actual_granularity(), 0);
}
