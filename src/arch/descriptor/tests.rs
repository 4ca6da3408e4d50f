use super::decode::reserved_bits;
use super::*;
use crate::arch::capability::{
    Capability, CapabilityField, ExtendedCapability, ExtendedCapabilityField,
};
use DescriptorWidth::{Bits128, Bits256};
use TranslationTableMode::{AbortDma, Legacy, Scalable};

const DEVICE: SourceId = SourceId::from_u16(0x0310);
const FUNCTION: SourceId = SourceId::from_u16(0xabcd);
const DOMAIN: DomainId = DomainId::new(0x1234);

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).unwrap()
}

/// A unit with everything that descriptors depend on.
fn full() -> Features {
    Features {
        capability: Capability::default()
            .with(CapabilityField::DOMAIN_ID_WIDTH, 6)
            .with(CapabilityField::PAGE_SELECTIVE_INVALIDATION, 1)
            .with(CapabilityField::MAXIMUM_ADDRESS_MASK, 63),
        extended: ExtendedCapability::from_bits(ExtendedCapability::DEFINED),
        host_address_width: 64,
    }
}

fn without(field: ExtendedCapabilityField) -> Features {
    let features = full();
    Features {
        extended: features.extended.with(field, 0),
        ..features
    }
}

fn raw(q0: u64, q1: u64) -> RawDescriptor {
    RawDescriptor::from_words([q0, q1, 0, 0])
}

fn decode(q0: u64, q1: u64) -> Result<Descriptor, DescriptorError> {
    raw(q0, q1).decode(Bits256, Scalable, &full())
}

fn wait(status: Option<WaitStatus>, flags: [bool; 3]) -> Descriptor {
    let [interrupt, fence, page_request_drain] = flags;
    Descriptor::Wait {
        status,
        interrupt,
        fence,
        page_request_drain,
    }
}

/// Descriptors with the two quadwords that §6.5.2 and §7.6.1 give them.
fn golden() -> [(Descriptor, u64, u64); 34] {
    let context = |granularity| Descriptor::ContextCache { granularity };
    let iotlb = |granularity, drain_reads, drain_writes| Descriptor::Iotlb {
        granularity,
        drain_reads,
        drain_writes,
    };
    let entry = |granularity| Descriptor::InterruptEntryCache { granularity };
    let pasid_cache = |granularity| Descriptor::PasidCache { granularity };
    let pasid_iotlb = |granularity| Descriptor::PasidIotlb {
        domain_id: DOMAIN,
        pasid: pasid(0xf_edcb),
        granularity,
    };
    let page = |address, address_mask, leaf_hint| IotlbGranularity::Page {
        domain_id: DOMAIN,
        address,
        address_mask,
        leaf_hint,
    };
    let device_tlb = |range, physical_function, max_pending| Descriptor::DeviceTlb {
        source_id: DEVICE,
        range,
        physical_function,
        max_pending,
    };
    let pasid_device_tlb =
        |range, all_pasids, physical_function, max_pending| Descriptor::PasidDeviceTlb {
            source_id: DEVICE,
            pasid: pasid(0xf_edcb),
            all_pasids,
            range,
            physical_function,
            max_pending,
        };
    let response = |pasid, response, group_index| Descriptor::PageGroupResponse {
        source_id: DEVICE,
        pasid,
        response,
        group_index,
    };
    let none = SourceId::from_u16(0);
    let status = Some(WaitStatus {
        address: 0xffff_ffff_ffff_fffc,
        data: 2,
    });
    let word = 0xffff_ffff_ffff_fffc;
    let all = 0x7fff_ffff_ffff_f000;
    [
        (context(ContextGranularity::Global), 0x11, 0),
        (context(ContextGranularity::Domain(DOMAIN)), 0x1234_0021, 0),
        (
            context(ContextGranularity::Device {
                source_id: DEVICE,
                function_mask: 3,
                domain_id: DOMAIN,
            }),
            0x0003_0310_1234_0031,
            0,
        ),
        (iotlb(IotlbGranularity::Global, false, false), 0x12, 0),
        (iotlb(IotlbGranularity::Global, true, true), 0xd2, 0),
        (iotlb(IotlbGranularity::Global, true, false), 0x92, 0),
        (iotlb(IotlbGranularity::Global, false, true), 0x52, 0),
        (
            iotlb(IotlbGranularity::Domain(DOMAIN), true, true),
            0x1234_00e2,
            0,
        ),
        (
            iotlb(page(0x7fff_ffff_f000, 18, false), true, true),
            0x1234_00f2,
            0x7fff_ffff_f012,
        ),
        (
            iotlb(page(0x1000, 63, true), false, false),
            0x1234_0032,
            0x107f,
        ),
        (
            device_tlb(DeviceTlbRange::ALL, none, 0),
            0x0310_0000_0003,
            all | 1,
        ),
        (
            device_tlb(DeviceTlbRange::page(0x1_2345_6789), FUNCTION, 31),
            0xabc0_0310_001f_d003,
            0x1_2345_6000,
        ),
        (
            device_tlb(DeviceTlbRange::block(0x0020_0000, 9), none, 16),
            0x0310_0010_0003,
            0x002f_f001,
        ),
        (entry(InterruptEntryGranularity::Global), 0x04, 0),
        (
            entry(InterruptEntryGranularity::Index {
                index: 0xbeef,
                mask: 15,
            }),
            0xbeef_7800_0014,
            0,
        ),
        (wait(status, [false; 3]), 0x2_0000_0025, word),
        (wait(None, [true, false, false]), 0x15, 0),
        (wait(status, [true, false, false]), 0x2_0000_0035, word),
        (wait(status, [false, true, false]), 0x2_0000_0065, word),
        (wait(status, [false, false, true]), 0x2_0000_00a5, word),
        (wait(None, [false, true, false]), 0x45, 0),
        (wait(None, [false; 3]), 0x05, 0),
        (
            pasid_iotlb(PasidIotlbGranularity::All),
            0x000f_edcb_1234_0026,
            0,
        ),
        (
            pasid_iotlb(PasidIotlbGranularity::Page {
                address: 0xffff_8000_0000_0000,
                address_mask: 9,
                leaf_hint: true,
            }),
            0x000f_edcb_1234_0036,
            0xffff_8000_0000_0049,
        ),
        (
            pasid_cache(PasidCacheGranularity::Domain(DOMAIN)),
            0x1234_0007,
            0,
        ),
        (
            pasid_cache(PasidCacheGranularity::Pasid {
                domain_id: DOMAIN,
                pasid: pasid(0xf_edcb),
            }),
            0x000f_edcb_1234_0017,
            0,
        ),
        (pasid_cache(PasidCacheGranularity::Global), 0x37, 0),
        (
            pasid_device_tlb(DeviceTlbRange::ALL, false, none, 0),
            0x000f_edcb_0310_0008,
            all | 1 << 11,
        ),
        (
            pasid_device_tlb(DeviceTlbRange::ALL, true, none, 0),
            0x000f_edcb_0310_0008,
            all | 1 << 11 | 1,
        ),
        (
            pasid_device_tlb(DeviceTlbRange::page(0x5000), false, FUNCTION, 31),
            0xabcf_edcb_0310_d1f8,
            0x5000,
        ),
        (
            response(Some(pasid(0xf_edcb)), ResponseCode::INVALID_REQUEST, 0x1ff),
            0x000f_edcb_0310_1019,
            0xff8,
        ),
        (response(None, ResponseCode::SUCCESS, 1), 0x0310_0009, 0x8),
        (
            response(Some(Pasid::ZERO), ResponseCode::SUCCESS, 0),
            0x0310_0019,
            0,
        ),
        (response(None, ResponseCode::FAILURE, 0), 0x0310_f009, 0),
    ]
}

#[test]
fn descriptors_match_golden_values_both_ways() {
    for (descriptor, q0, q1) in golden() {
        assert_eq!(descriptor.encode(), raw(q0, q1), "{descriptor:x?}");
        assert_eq!(decode(q0, q1), Ok(descriptor), "{q0:#x} {q1:#x}");
        let in_abort = raw(q0, q1).decode(Bits256, AbortDma, &full());
        assert_eq!(in_abort, Ok(descriptor));
    }
}

/// What Table 26 says of each defined type, with the reserved bits of its two quadwords.
struct Row {
    kind: u64,
    /// A granularity that is valid, in place.
    granularity: u64,
    features: Features,
    q0: u64,
    q1: u64,
}

fn reserved_rows() -> [Row; 12] {
    use ExtendedCapabilityField as E;
    let row = |kind, granularity, features, q0, q1| Row {
        kind,
        granularity,
        features,
        q0,
        q1,
    };
    let all = u64::MAX;
    [
        row(1, 0x10, full(), 0xfffc_0000_0000_f1c0, all),
        row(2, 0x10, full(), 0xffff_ffff_0000_f100, 0xf80),
        row(3, 0, full(), 0x000f_0000_ffe0_01f0, 0xffe),
        row(
            3,
            0,
            without(E::DEVICE_TLB_THROTTLING),
            0xffff_0000_ffe0_f1f0,
            0xffe,
        ),
        row(4, 0, full(), 0xffff_0000_07ff_f1e0, all),
        row(5, 0, full(), 0x0000_0000_ffff_f100, 0x3),
        row(
            5,
            0,
            without(E::PAGE_REQUEST_DRAIN),
            0x0000_0000_ffff_f180,
            0x3,
        ),
        row(6, 0x20, full(), 0xfff0_0000_0000_f1c0, 0xf80),
        row(7, 0, full(), 0xfff0_0000_0000_f1c0, all),
        row(8, 0, full(), 0, 0x7fe),
        row(
            8,
            0,
            without(E::DEVICE_TLB_THROTTLING),
            0xfff0_0000_0000_f000,
            0x7fe,
        ),
        row(9, 0, full(), 0xfff0_0000_0000_01e0, 0xffff_ffff_ffff_f003),
    ]
}

#[test]
fn every_reserved_bit_is_refused_and_no_other() {
    for row in reserved_rows() {
        let q0 = row.kind | row.granularity;
        let decode =
            |words| RawDescriptor::from_words(words).decode(Bits256, Scalable, &row.features);
        assert!(decode([q0, 0, 0, 0]).is_ok(), "type {}", row.kind);
        for bit in 0..64 {
            let mask = 1 << bit;
            let refused = |word| Err(DescriptorError::Reserved { word, bits: mask });
            let place = (row.kind, bit);
            assert_eq!(decode([q0, 0, mask, 0]), refused(2), "{place:?}");
            assert_eq!(decode([q0, 0, 0, mask]), refused(3), "{place:?}");
            let result = decode([q0, mask, 0, 0]);
            if row.q1 & mask != 0 {
                assert_eq!(result, refused(1), "{place:?}");
            } else {
                assert!(result.is_ok(), "{place:?}");
            }
            let is_type = 0xe0f & mask != 0;
            let is_granularity = row.granularity != 0 && 0x30 & mask != 0;
            if is_type || is_granularity {
                continue;
            }
            let result = decode([q0 | mask, 0, 0, 0]);
            if row.q0 & mask != 0 {
                assert_eq!(result, refused(0), "{place:?}");
            } else if row.kind == 7 && bit == 5 {
                // Granularity 2 of type 7 is undefined.
                assert!(result.is_err());
            } else {
                assert!(result.is_ok(), "{place:?}");
            }
        }
    }
}

#[test]
fn types_are_valid_where_table_26_says_so() {
    use ExtendedCapabilityField as E;
    let granularity = [0, 0x10, 0x10, 0, 0, 0, 0x20, 0, 0, 0];
    for kind in 0..0x80_u64 {
        let q0 =
            kind & 0xf | (kind >> 4) << 9 | granularity.get(kind as usize).copied().unwrap_or(0);
        assert_eq!(u64::from(raw(q0, 0).kind()), kind);
        for (width, mode, valid) in [
            (Bits128, Legacy, 1..=5),
            (Bits256, Legacy, 1..=5),
            (Bits256, Scalable, 1..=9),
            (Bits256, AbortDma, 1..=9),
        ] {
            let decode = |features: &Features| raw(q0, 0).decode(width, mode, features);
            let refused = Err(DescriptorError::Type(kind as u8));
            if !valid.contains(&kind) {
                assert_eq!(decode(&full()), refused, "{kind:#x} {width:?} {mode:?}");
                continue;
            }
            assert!(decode(&full()).is_ok(), "{kind:#x} {width:?} {mode:?}");
            let has_no_device_tlb = decode(&without(E::DEVICE_TLB));
            assert_eq!(has_no_device_tlb == refused, kind == 3 || kind == 8);
            let has_no_page_requests = decode(&without(E::PAGE_REQUESTS));
            assert_eq!(has_no_page_requests == refused, kind == 9);
        }
    }
}

#[test]
fn width_must_go_with_mode_and_unit() {
    use ExtendedCapabilityField as E;
    let legacy_only = {
        let features = without(E::SCALABLE_MODE);
        Features {
            extended: features.extended.with(E::ABORT_DMA_MODE, 0),
            ..features
        }
    };
    let table_mode = |mode| Err(DescriptorError::TableMode(mode));
    let width = |width| Err(DescriptorError::Width(width));
    let reserved = TranslationTableMode::Reserved;
    for (features, w, mode, expected) in [
        (full(), Bits128, Legacy, Ok(())),
        (full(), Bits256, Legacy, Ok(())),
        (full(), Bits128, Scalable, width(Bits128)),
        (full(), Bits128, AbortDma, width(Bits128)),
        (full(), Bits256, Scalable, Ok(())),
        (full(), Bits256, AbortDma, Ok(())),
        (full(), Bits128, reserved, table_mode(reserved)),
        (full(), Bits256, reserved, table_mode(reserved)),
        (legacy_only, Bits128, Legacy, Ok(())),
        (legacy_only, Bits256, Legacy, width(Bits256)),
        (legacy_only, Bits128, Scalable, table_mode(Scalable)),
        (legacy_only, Bits256, AbortDma, table_mode(AbortDma)),
        (without(E::SCALABLE_MODE), Bits256, Legacy, Ok(())),
        (without(E::ABORT_DMA_MODE), Bits256, Legacy, Ok(())),
        (
            without(E::ABORT_DMA_MODE),
            Bits256,
            AbortDma,
            table_mode(AbortDma),
        ),
        (
            without(E::SCALABLE_MODE),
            Bits256,
            Scalable,
            table_mode(Scalable),
        ),
    ] {
        assert_eq!(validate_queue(w, mode, &features), expected);
        assert_eq!(
            raw(0x05, 0).decode(w, mode, &features).err(),
            expected.err()
        );
    }
}

#[test]
fn a_128_bit_descriptor_ends_after_two_quadwords() {
    let descriptor = RawDescriptor::from_words([0x11, 0, 1, u64::MAX]);
    assert!(descriptor.decode(Bits128, Legacy, &full()).is_ok());
    assert!(descriptor.decode(Bits256, Legacy, &full()).is_err());
}

#[test]
fn undefined_granularities_are_refused() {
    for (kind, defined) in [
        (1, [false, true, true, true]),
        (2, [false, true, true, true]),
        (6, [false, false, true, true]),
        (7, [true, true, false, true]),
    ] {
        for (granularity, is_defined) in (0..4_u8).zip(defined) {
            let result = decode(kind | u64::from(granularity) << 4, 0);
            let error = DescriptorError::Granularity {
                kind: kind as u8,
                granularity,
            };
            assert_eq!(result.err(), (!is_defined).then_some(error));
        }
    }
    let mut features = full();
    features.capability = features
        .capability
        .with(CapabilityField::PAGE_SELECTIVE_INVALIDATION, 0);
    for (kind, is_refused) in [(0x32, true), (0x36, false)] {
        let result = raw(kind, 0).decode(Bits256, Scalable, &features);
        assert_eq!(result.is_err(), is_refused);
    }
}

#[test]
fn masks_beyond_the_units_limits_are_refused() {
    let mut features = full();
    features.capability = features
        .capability
        .with(CapabilityField::MAXIMUM_ADDRESS_MASK, 18);
    features.extended = features
        .extended
        .with(ExtendedCapabilityField::MAXIMUM_HANDLE_MASK, 4);
    let decode = |q0, q1| raw(q0, q1).decode(Bits256, Scalable, &features).err();
    for mask in 0..64 {
        let address = DescriptorError::AddressMask { mask, maximum: 18 };
        assert_eq!(
            decode(0x32, u64::from(mask)),
            (mask > 18).then_some(address)
        );
        // PASID-based invalidation knows no limit, nor does any other granularity.
        assert_eq!(decode(0x36, u64::from(mask)), None);
        assert_eq!(decode(0x22, u64::from(mask)), None);
    }
    for mask in 0..32 {
        let q0 = 0x14 | u64::from(mask) << 27;
        let index = DescriptorError::InterruptIndexMask { mask, maximum: 4 };
        assert_eq!(decode(q0, 0), (mask > 4).then_some(index));
        assert_eq!(decode(q0 & !0x10, 0), None);
    }
}

#[test]
fn unused_and_ignored_fields_do_not_matter() {
    let mut features = full();
    features.capability = features
        .capability
        .with(CapabilityField::DOMAIN_ID_WIDTH, 2);
    features.host_address_width = 46;
    let decode = |q0, q1| raw(q0, q1).decode(Bits256, Scalable, &features);
    let same = |a: (u64, u64), b: (u64, u64)| {
        assert_eq!(decode(a.0, a.1), decode(b.0, b.1));
        assert!(decode(a.0, a.1).is_ok());
    };
    // Unused: domain-id with global, address with domain granularity, PASID with a domain.
    same((0x12, 0), (0xffff_0012, 0xffff_ffff_ffff_f07f));
    same((0x1_0022, 0), (0x1_0022, 0xffff_ffff_ffff_f07f));
    same((0x37, 0), (0x000f_ffff_ffff_0037, 0));
    same((0x1_0007, 0), (0x000f_ffff_0001_0007, 0));
    same((0x11, 0), (0x0003_ffff_ffff_0011, 0));
    same((0x04, 0), (0xffff_f800_0004, 0));
    // A page group response without PASID; its bit 66.
    same((0x09, 0), (0x000f_ffff_0000_0009, 4));
    // Domain-id bits beyond ND (8 bits here).
    same((0x0012_0022, 0), (0xff12_0022, 0));
    same((0x0012_0036, 0), (0xff12_0036, 0));
    same((0x0012_0017, 0), (0xff12_0017, 0));
    same((0x0012_0031, 0), (0xff12_0031, 0));
    // Status address bits at and above the host address width, and all of it without `SW`.
    same((0x25, 0x3fff_ffff_fffc), (0x25, 0xffff_ffff_ffff_fffc));
    same((0x15, 0), (0xffff_ffff_0000_0015, 0xffff_ffff_ffff_fffc));
}

#[test]
fn errors_are_reported_by_the_codes_of_the_queue() {
    // §11.4.9.9
    for (error, code) in [
        (DescriptorError::Type(0xa), 3),
        (DescriptorError::Reserved { word: 0, bits: 1 }, 4),
        (
            DescriptorError::Granularity {
                kind: 1,
                granularity: 0,
            },
            4,
        ),
        (
            DescriptorError::AddressMask {
                mask: 2,
                maximum: 1,
            },
            4,
        ),
        (
            DescriptorError::InterruptIndexMask {
                mask: 2,
                maximum: 1,
            },
            4,
        ),
        (DescriptorError::Width(Bits128), 5),
        (
            DescriptorError::TableMode(TranslationTableMode::Reserved),
            7,
        ),
    ] {
        assert_eq!(error.queue_error().code(), code, "{error:?}");
    }
}

#[test]
fn what_decodes_encodes_to_the_same_meaning() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let features = full();
    let mut decoded = 0;
    for _ in 0..20_000 {
        let kind = random() % 9 + 1;
        let q0 = random() & !0xe0f | kind;
        let words = (q0, random());
        // Without reserved bits nearly all is accepted.
        let Some(reserved) = reserved_bits(kind as u8, Bits256, Scalable, &features) else {
            panic!("type {kind}");
        };
        let descriptor = raw(words.0 & !reserved.0, words.1 & !reserved.1);
        if let Ok(meaning) = descriptor.decode(Bits256, Scalable, &features) {
            let again = meaning.encode().decode(Bits256, Scalable, &features);
            assert_eq!(again, Ok(meaning));
            decoded += 1;
        }
    }
    assert!(decoded > 10_000, "{decoded}");
}

#[test]
fn fields_without_room_are_cut_off() {
    let cut = Descriptor::Iotlb {
        granularity: IotlbGranularity::Page {
            domain_id: DomainId::ZERO,
            address: 0x1fff,
            address_mask: 0xff,
            leaf_hint: false,
        },
        drain_reads: false,
        drain_writes: false,
    };
    assert_eq!(cut.encode(), raw(0x32, 0x103f));
    let cut = Descriptor::ContextCache {
        granularity: ContextGranularity::Device {
            source_id: DEVICE,
            function_mask: 0xff,
            domain_id: DomainId::ZERO,
        },
    };
    assert_eq!(cut.encode(), raw(0x0003_0310_0000_0031, 0));
    let cut = Descriptor::InterruptEntryCache {
        granularity: InterruptEntryGranularity::Index {
            index: 0,
            mask: 0xff,
        },
    };
    assert_eq!(cut.encode(), raw(0xf800_0014, 0));
    let cut = Descriptor::PageGroupResponse {
        source_id: SourceId::from_u16(0),
        pasid: None,
        response: ResponseCode::from_field(0xf1),
        group_index: 0xffff,
    };
    assert_eq!(cut.encode(), raw(0x1009, 0xff8));
    let cut = wait(
        Some(WaitStatus {
            address: 0x1003,
            data: 0,
        }),
        [false; 3],
    );
    assert_eq!(cut.encode(), raw(0x25, 0x1000));
}

#[test]
fn device_tlb_ranges_code_their_size_in_the_address() {
    let page = DeviceTlbRange::page(0x1234_5fff);
    assert_eq!(
        (page.start(), page.last(), page.order()),
        (0x1234_5000, 0x1234_5fff, 0)
    );
    for order in 1..=51 {
        let range = DeviceTlbRange::block(0xaaaa_aaaa_aaaa_aaaa, order);
        let len_bytes = 4096_u64 << order;
        assert_eq!(range.order(), order);
        assert_eq!(range.start(), 0xaaaa_aaaa_aaaa_aaaa / len_bytes * len_bytes);
        assert_eq!(range.last() - range.start(), len_bytes - 1);
    }
    for order in [52, 53, 64, 255] {
        assert_eq!(DeviceTlbRange::block(0x1000, order), DeviceTlbRange::ALL);
    }
    assert_eq!(
        DeviceTlbRange::block(u64::MAX, 0),
        DeviceTlbRange::page(u64::MAX)
    );
    // §6.5.2.5: one row of 1s more than ALL has is still everything.
    for everything in [
        DeviceTlbRange::ALL,
        DeviceTlbRange::from_fields(u64::MAX, true),
    ] {
        assert_eq!(everything.order(), 52);
        assert_eq!((everything.start(), everything.last()), (0, u64::MAX));
    }
    // 2 pages with bit 12 clear, 4 with bits 13:12 = 01.
    assert_eq!(DeviceTlbRange::from_fields(0x8000, true).last(), 0x9fff);
    assert_eq!(DeviceTlbRange::from_fields(0x9000, true).last(), 0xbfff);
}

#[test]
fn page_blocks_are_aligned_and_never_overflow() {
    for (address, mask, block) in [
        (0x1234, 0, (0x1000, 0x1fff)),
        (0x5000, 1, (0x4000, 0x5fff)),
        (0x7fff_ffff, 9, (0x7fe0_0000, 0x7fff_ffff)),
        (u64::MAX, 0, (0xffff_ffff_ffff_f000, u64::MAX)),
        (u64::MAX, 51, (0x8000_0000_0000_0000, u64::MAX)),
        (0x1000, 52, (0, u64::MAX)),
        (0x1000, 63, (0, u64::MAX)),
        (0x1000, 255, (0, u64::MAX)),
    ] {
        assert_eq!(page_block(address, mask), block, "{address:#x} {mask}");
    }
}

#[test]
fn a_function_mask_ignores_the_bits_that_it_names() {
    for (mask, ignored) in [(0, 0b000), (1, 0b100), (2, 0b110), (3, 0b111), (4, 0b000)] {
        for bit in 0..16 {
            let other = SourceId::from_u16(DEVICE.as_u16() ^ 1 << bit);
            let is_covered = ignored >> bit & 1 == 1;
            assert_eq!(function_mask_covers(mask, DEVICE, other), is_covered);
        }
        assert!(function_mask_covers(mask, DEVICE, DEVICE));
    }
}
