use super::*;
use crate::arch::address::AddressWidth;
use crate::arch::address::{Gpa, Hpa};
use crate::arch::features::AddressWidths;
use crate::arch::features::TableFeatures;
use crate::arch::id::DomainId;
use crate::arch::id::Pasid;
use crate::arch::id::SourceId;

const FEATURES: TableFeatures = TableFeatures {
    host_address_width: 46,
    domain_id_bits: 10,
    ..TableFeatures::EVERYTHING
};

fn expected(bit: usize, hi: usize, lo: usize) -> u64 {
    if (lo..=hi).contains(&bit) {
        1 << (bit - lo)
    } else {
        0
    }
}

fn with_bit<const N: usize>(mut quadwords: [u64; N], bit: usize) -> [u64; N] {
    quadwords[bit / 64] |= 1 << (bit % 64);
    quadwords
}

#[test]
fn each_legacy_getter_reads_its_own_bits_and_no_others() {
    type Get = fn(&LegacyContextEntry) -> u64;
    let fields: [(&str, usize, usize, Get); 6] = [
        ("P", 0, 0, |e| e.is_present().into()),
        ("FPD", 1, 1, |e| e.is_fault_processing_disabled().into()),
        ("TT", 3, 2, |e| e.translation_type_field().into()),
        ("SSPTPTR", 63, 12, |e| {
            e.second_stage_root::<Hpa>().as_u64() >> 12
        }),
        ("AW", 66, 64, |e| e.address_width_field().into()),
        ("DID", 87, 72, |e| e.domain_id().as_u16().into()),
    ];
    for (name, hi, lo, get) in fields {
        for bit in 0..128 {
            let entry = LegacyContextEntry::with_only(bit);
            assert_eq!(get(&entry), expected(bit, hi, lo), "{name}, bit {bit}");
        }
    }
}

#[test]
fn each_scalable_getter_reads_its_own_bits_and_no_others() {
    type Get = fn(&ScalableContextEntry) -> u64;
    let fields: [(&str, usize, usize, Get); 11] = [
        ("P", 0, 0, |e| e.is_present().into()),
        ("FPD", 1, 1, |e| e.is_fault_processing_disabled().into()),
        ("DTE", 2, 2, |e| e.is_device_tlb_enabled().into()),
        ("PASIDE", 3, 3, |e| e.is_pasid_enabled().into()),
        ("PRE", 4, 4, |e| e.is_page_request_enabled().into()),
        ("HPTE", 5, 5, |e| {
            e.is_host_permission_table_enabled().into()
        }),
        ("EPTR", 6, 6, |e| {
            e.is_pasid_in_translated_requests_enabled().into()
        }),
        ("PDTS", 11, 9, |e| e.directory_order().field()),
        ("PASIDDIRPTR", 63, 12, |e| {
            e.pasid_directory::<Hpa>().as_u64() >> 12
        }),
        ("RID_PASID", 83, 64, |e| e.rid_pasid().as_u32().into()),
        ("RID_PRIV", 84, 84, |e| e.is_rid_privileged().into()),
    ];
    for (name, hi, lo, get) in fields {
        for bit in 0..256 {
            let entry = ScalableContextEntry::with_only(bit);
            assert_eq!(get(&entry), expected(bit, hi, lo), "{name}, bit {bit}");
        }
    }
}

#[test]
fn legacy_entries_decode_to_what_was_built() {
    let entry = LegacyContextEntry::second_stage(
        Gpa::new(0x1234_5fff),
        AddressWidth::Bits48,
        DomainId::new(0x3ff),
        true,
    );
    assert_eq!(entry.quadwords(), &[0x1234_5005, 0x3_ff02]);
    assert_eq!(
        entry.decode(&FEATURES),
        Ok(LegacyContext {
            translation: LegacyTranslation::SecondStage {
                root: Gpa::new(0x1234_5000),
                width: AddressWidth::Bits48,
                device_tlb: true,
            },
            domain_id: DomainId::new(0x3ff),
            fault_processing_disabled: false,
        })
    );
    let entry = LegacyContextEntry::pass_through(AddressWidth::Bits57, DomainId::new(1));
    assert_eq!(entry.quadwords(), &[0x9, 0x103]);
    assert_eq!(
        entry.decode::<Hpa>(&FEATURES),
        Ok(LegacyContext {
            translation: LegacyTranslation::PassThrough {
                width: AddressWidth::Bits57
            },
            domain_id: DomainId::new(1),
            fault_processing_disabled: false,
        })
    );
}

#[test]
fn legacy_reserved_bits_are_refused_one_by_one() {
    // §9.3: 11:4, 63:HAW (unless pass-through), 71, 95:88 and above, domain-id beyond ND.
    for pass_through in [false, true] {
        let base = if pass_through {
            LegacyContextEntry::pass_through(AddressWidth::Bits57, DomainId::new(1))
        } else {
            LegacyContextEntry::second_stage(
                Hpa::new(0x1000),
                AddressWidth::Bits57,
                DomainId::new(1),
                false,
            )
        };
        for bit in (4..64).chain(67..128) {
            let reserved = match bit {
                4..12 => true,
                12..46 => false,
                46..64 => !pass_through,
                67..71 => false,
                71 => true,
                72..82 => false,
                _ => true,
            };
            let entry = LegacyContextEntry::from_quadwords(with_bit(*base.quadwords(), bit));
            match entry.decode::<Hpa>(&FEATURES) {
                Ok(_) => assert!(!reserved, "bit {bit} must be reserved"),
                Err(fault) => {
                    assert!(reserved, "bit {bit} must not be reserved");
                    assert_eq!(
                        fault,
                        LegacyContextFault::ReservedNonZero {
                            quadword: (bit / 64) as u8,
                            bits: 1 << (bit % 64),
                        }
                    );
                }
            }
        }
    }
}

#[test]
fn legacy_faults_have_the_documented_priority() {
    let all = LegacyContextEntry::from_quadwords([!1, u64::MAX]);
    assert_eq!(
        all.decode::<Hpa>(&FEATURES),
        Err(LegacyContextFault::NotPresent)
    );
    assert!(all.is_fault_processing_disabled());
    // Reserved bit 4, reserved TT and AW at once.
    assert_eq!(
        LegacyContextEntry::from_quadwords([0x1d, 7]).decode::<Hpa>(&FEATURES),
        Err(LegacyContextFault::ReservedNonZero {
            quadword: 0,
            bits: 0x10
        })
    );
    assert_eq!(
        LegacyContextEntry::from_quadwords([0xd, 7]).decode::<Hpa>(&FEATURES),
        Err(LegacyContextFault::UnsupportedTranslationType(3))
    );
}

#[test]
fn legacy_types_and_widths_need_the_unit_to_have_them() {
    let plain = TableFeatures {
        device_tlb: false,
        pass_through: false,
        widths: AddressWidths::from_field(0b0110),
        ..FEATURES
    };
    for (translation_type, width, features, fault) in [
        (0, 1, plain, None),
        (0, 2, plain, None),
        (0, 3, plain, Some(LegacyContextFault::UnsupportedWidth(3))),
        (0, 0, plain, Some(LegacyContextFault::UnsupportedWidth(0))),
        (
            0,
            5,
            FEATURES,
            Some(LegacyContextFault::UnsupportedWidth(5)),
        ),
        (
            1,
            2,
            plain,
            Some(LegacyContextFault::UnsupportedTranslationType(1)),
        ),
        (
            2,
            2,
            plain,
            Some(LegacyContextFault::UnsupportedTranslationType(2)),
        ),
        (1, 2, FEATURES, None),
        (2, 3, FEATURES, None),
        // §9.3: pass-through must name the largest width.
        (
            2,
            2,
            FEATURES,
            Some(LegacyContextFault::UnsupportedWidth(2)),
        ),
    ] {
        let entry = LegacyContextEntry::from_quadwords([0x1001 | translation_type << 2, width]);
        assert_eq!(
            entry.decode::<Hpa>(&features).err(),
            fault,
            "TT {translation_type} AW {width}"
        );
    }
}

#[test]
fn directory_order_gives_the_documented_sizes() {
    // §9.4: 2^(PDTS + 7) entries of 8 bytes, PASIDs below 2^(PDTS + 13).
    for field in 0..8_u32 {
        let order = DirectoryOrder::from_field(field.into());
        assert_eq!(order.field(), field.into());
        assert_eq!(order.directory_entry_count(), 1 << (field + 7));
        assert_eq!(order.len_bytes(), 1024 << field);
        assert_eq!(order.pasid_limit(), 1 << (field + 13));
        let last = Pasid::new(order.pasid_limit() - 1).unwrap();
        assert!(order.contains(last));
        if let Some(beyond) = Pasid::new(order.pasid_limit()) {
            assert!(!order.contains(beyond));
        }
        assert_eq!(
            DirectoryOrder::for_pasid_bits(field as u8 + 13),
            Some(order)
        );
    }
    assert_eq!(
        DirectoryOrder::for_pasid_bits(0),
        Some(DirectoryOrder::SMALLEST)
    );
    assert_eq!(DirectoryOrder::for_pasid_bits(21), None);
}

#[test]
fn scalable_entries_decode_to_what_was_built() {
    let attributes = ContextAttributes {
        device_tlb: true,
        pasid_enabled: true,
        page_requests: true,
        rid_pasid: Pasid::new(0x1234).unwrap(),
        rid_privilege: true,
    };
    let order = DirectoryOrder::LARGEST;
    let entry = ScalableContextEntry::new(Hpa::new(0x8_0000_0fff), order, attributes);
    // P 1, DTE 4, PASIDE 8, PRE 10, PDTS shift 9; RID_PRIV 10_0000.
    assert_eq!(entry.quadwords(), &[0x8_0000_0e1d, 0x10_1234, 0, 0]);
    assert_eq!(
        entry.decode(&FEATURES),
        Ok(ScalableContext {
            pasid_directory: Hpa::new(0x8_0000_0000),
            directory_order: order,
            device_tlb: true,
            pasid_enabled: true,
            page_requests: true,
            host_permission_tables: false,
            translated_requests_with_pasid: false,
            rid_pasid: Pasid::new(0x1234).unwrap(),
            rid_privilege: true,
            fault_processing_disabled: false,
        })
    );
    let plain = ScalableContextEntry::new(
        Hpa::new(0x1000),
        DirectoryOrder::SMALLEST,
        ContextAttributes::default(),
    );
    assert_eq!(plain.quadwords(), &[0x1001, 0, 0, 0]);
    let silent = ScalableContextEntry::from_quadwords([0x1003, 0, 0, 0]).decode::<Hpa>(&FEATURES);
    assert!(silent.unwrap().fault_processing_disabled);
}

#[test]
fn scalable_reserved_bits_are_refused_one_by_one() {
    // §9.4. DTE and PASIDE are set so that no combination is illegal.
    let base = [0x0e0d, 0, 0, 0];
    for bit in 1..256 {
        let reserved = matches!(bit, 7..=8 | 46..64 | 85..);
        let entry = ScalableContextEntry::from_quadwords(with_bit(base, bit));
        let fault = reserved.then_some(ScalableContextFault::ReservedNonZero {
            quadword: (bit / 64) as u8,
            bits: 1 << (bit % 64),
        });
        assert_eq!(entry.decode::<Hpa>(&FEATURES).err(), fault, "bit {bit}");
    }
}

#[test]
fn scalable_fields_of_absent_features_are_reserved() {
    type Remove = fn(&mut TableFeatures);
    let rows: [(Remove, &[usize]); 7] = [
        (|f| f.device_tlb = false, &[2]),
        (|f| f.pasid = false, &[3]),
        (|f| f.page_requests = false, &[4]),
        (|f| f.host_permission_tables = false, &[5]),
        (|f| f.translated_requests_with_pasid = false, &[6]),
        (|f| f.rid_pasid = false, &[64, 70, 83]),
        (|f| f.rid_privilege = false, &[84]),
    ];
    for (remove, bits) in rows {
        let mut features = FEATURES;
        remove(&mut features);
        for &bit in bits {
            let entry = ScalableContextEntry::from_quadwords(with_bit([0x0e01, 0, 0, 0], bit));
            assert_eq!(
                entry.decode::<Hpa>(&features),
                Err(ScalableContextFault::ReservedNonZero {
                    quadword: (bit / 64) as u8,
                    bits: 1 << (bit % 64),
                }),
                "bit {bit}"
            );
        }
    }
}

#[test]
fn scalable_faults_have_the_documented_priority() {
    use IllegalCombination::*;
    let all = ScalableContextEntry::from_quadwords([!1, u64::MAX, u64::MAX, u64::MAX]);
    assert_eq!(
        all.decode::<Hpa>(&FEATURES),
        Err(ScalableContextFault::NotPresent)
    );
    assert!(all.is_fault_processing_disabled());
    // PRE without DTE, and reserved bit 7.
    assert_eq!(
        ScalableContextEntry::from_quadwords([0x91, 0, 0, 0]).decode::<Hpa>(&FEATURES),
        Err(ScalableContextFault::ReservedNonZero {
            quadword: 0,
            bits: 0x80
        })
    );
    for (q0, rid_pasid, illegal) in [
        (0x11, 0, Some(PageRequestsWithoutDeviceTlb)),
        (0x15, 0, None),
        (0x01, 0x1fff, None),
        (
            0x01,
            0x2000,
            Some(RidPasidBeyondDirectory(Pasid::from_field(0x2000))),
        ),
        (0x201, 0x2000, None),
        (0xe01, 0xf_ffff, None),
        (0x41, 0, Some(TranslatedPasidWithoutPasid)),
        (0x49, 0, None),
    ] {
        assert_eq!(
            ScalableContextEntry::from_quadwords([q0, rid_pasid, 0, 0])
                .decode::<Hpa>(&FEATURES)
                .err(),
            illegal.map(ScalableContextFault::IllegalCombination),
            "{q0:#x} {rid_pasid:#x}"
        );
    }
}

#[test]
fn context_indexes_follow_device_and_function() {
    let source_id = SourceId::new(3, 17, 2).unwrap();
    assert_eq!(LegacyContextEntry::index(source_id), 0x8a);
    assert_eq!(ScalableContextEntry::index(source_id), 0x0a);
}
