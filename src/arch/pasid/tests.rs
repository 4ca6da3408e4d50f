use super::super::address::Hpa;
use super::*;
use crate::arch::features::AddressWidths;

const FEATURES: TableFeatures = TableFeatures {
    host_address_width: 46,
    domain_id_bits: 12,
    ..TableFeatures::EVERYTHING
};

const OPTIONS: PasidEntryOptions = PasidEntryOptions {
    supervisor_requests: true,
    page_walk_snoop: true,
    page_snoop: true,
    second_stage_accessed_dirty: true,
};

fn valid(translation_type: TranslationType) -> PasidEntry {
    let width = AddressWidth::Bits48;
    let (domain_id, options) = (DomainId::new(0), PasidEntryOptions::default());
    let (paging, flags) = (FirstStagePaging::Level4, FirstStageFlags::default());
    match translation_type {
        TranslationType::FirstStage => {
            PasidEntry::first_stage(Hpa::new(0), paging, flags, domain_id, options)
        }
        TranslationType::SecondStage => PasidEntry::second_stage(
            SecondStagePointer::new(Hpa::new(0), width),
            domain_id,
            options,
        ),
        TranslationType::Nested => PasidEntry::nested(
            Gpa::new(0),
            paging,
            flags,
            SecondStagePointer::new(Hpa::new(0), width),
            domain_id,
            options,
        ),
        TranslationType::PassThrough => PasidEntry::pass_through(domain_id, options),
    }
}

fn with_bit(entry: PasidEntry, bit: usize) -> PasidEntry {
    let mut quadwords = entry.0;
    quadwords[bit / 64] |= 1 << (bit % 64);
    PasidEntry(quadwords)
}

fn reserved(bit: usize) -> PasidEntryFault {
    PasidEntryFault::ReservedNonZero {
        quadword: (bit / 64) as u8,
        bits: 1 << (bit % 64),
    }
}

#[test]
fn each_getter_reads_its_own_bits_and_no_others() {
    type Get = fn(&PasidEntry) -> u64;
    let fields: [(&str, usize, usize, Get); 21] = [
        // §9.6
        ("P", 0, 0, |e| e.is_present().into()),
        ("FPD", 1, 1, |e| e.is_fault_processing_disabled().into()),
        ("AW", 4, 2, |e| e.address_width_field().into()),
        ("PGTT", 8, 6, |e| e.translation_type_field().into()),
        ("SSADE", 9, 9, |e| {
            e.is_second_stage_accessed_dirty_enabled().into()
        }),
        ("SSPTPTR", 63, 12, |e| {
            e.second_stage_root::<Hpa>().as_u64() >> 12
        }),
        ("DID", 79, 64, |e| e.domain_id().as_u16().into()),
        ("PWSNP", 87, 87, |e| e.is_page_walk_snooped().into()),
        ("PGSNP", 88, 88, |e| e.is_page_snooped().into()),
        ("CD", 89, 89, |e| e.is_cache_disabled().into()),
        ("EMTE", 90, 90, |e| {
            e.is_extended_memory_type_enabled().into()
        }),
        ("PAT", 127, 96, |e| e.page_attribute_table().into()),
        ("SRE", 128, 128, |e| {
            e.is_supervisor_request_enabled().into()
        }),
        ("FSPM", 131, 130, |e| e.paging_mode_field().into()),
        ("WPE", 132, 132, |e| e.is_write_protect_enabled().into()),
        ("EAFE", 135, 135, |e| {
            e.is_extended_accessed_enabled().into()
        }),
        ("FSPTPTR", 191, 140, |e| {
            e.first_stage_root::<Gpa>().as_u64() >> 12
        }),
        ("HPTSZ", 257, 256, |e| {
            e.host_permission_table_size_field().into()
        }),
        ("HPTPFD", 258, 258, |e| {
            e.is_host_permission_prefetch_disabled().into()
        }),
        ("HPTPTR", 319, 268, |e| {
            e.host_permission_table::<Hpa>().as_u64() >> 12
        }),
        ("HPTDID", 335, 320, |e| {
            e.host_permission_domain_id().as_u16().into()
        }),
    ];
    for (name, hi, lo, get) in fields {
        for bit in 0..512 {
            let expected = if (lo..=hi).contains(&bit) {
                1 << (bit - lo)
            } else {
                0
            };
            assert_eq!(
                get(&PasidEntry::with_only(bit)),
                expected,
                "{name}, bit {bit}"
            );
        }
    }
}

#[test]
fn built_entries_have_the_documented_bits() {
    let id = DomainId::new(0x123);
    let flags = FirstStageFlags {
        write_protect: true,
        extended_accessed: true,
    };
    let nested = PasidEntry::nested(
        Gpa::new(0x5_6789_afff),
        FirstStagePaging::Level5,
        flags,
        SecondStagePointer::new(Hpa::new(0x12_3456_7fff), AddressWidth::Bits57),
        id,
        OPTIONS,
    );
    // AW 57: 0c, nested: 0c0, SSADE 200; PWSNP 0080_0000, PGSNP 0100_0000; SRE 1, FSPM5 4,
    // WPE 10, NXE 20, EAFE 80.
    assert_eq!(
        nested.quadwords(),
        &[0x12_3456_72cd, 0x0180_0123, 0x5_6789_a0b5, 0, 0, 0, 0, 0]
    );
    let second = PasidEntry::second_stage(
        SecondStagePointer::new(Hpa::new(0x1_2345_6000), AddressWidth::Bits39),
        id,
        PasidEntryOptions::default(),
    );
    assert_eq!(
        second.quadwords(),
        &[0x1_2345_6085, 0x123, 0, 0, 0, 0, 0, 0]
    );
    let same = PasidEntry::guest_second_stage(
        Gpa::new(0x1_2345_6000),
        AddressWidth::Bits39,
        id,
        PasidEntryOptions::default(),
    );
    assert_eq!(same, second);
    assert_eq!(
        PasidEntry::first_stage(
            Hpa::new(0x7000),
            FirstStagePaging::Level4,
            FirstStageFlags::default(),
            id,
            PasidEntryOptions {
                page_walk_snoop: true,
                second_stage_accessed_dirty: true,
                ..PasidEntryOptions::default()
            },
        )
        .quadwords(),
        &[0x41, 0x0080_0123, 0x7020, 0, 0, 0, 0, 0]
    );
    assert_eq!(
        PasidEntry::pass_through(id, OPTIONS).quadwords(),
        &[0x101, 0x0100_0123, 1, 0, 0, 0, 0, 0]
    );
}

#[test]
fn built_entries_decode_to_what_was_built() {
    let domain_id = DomainId::new(0xfff);
    let flags = FirstStageFlags {
        write_protect: true,
        extended_accessed: false,
    };
    let (paging, width) = (FirstStagePaging::Level5, AddressWidth::Bits48);
    let meaning = |translation: PasidTranslation<Hpa>| ValidPasidEntry {
        second_stage_accessed_dirty: translation.translation_type().uses_second_stage(),
        page_walk_snoop: translation.translation_type() != TranslationType::PassThrough,
        translation,
        domain_id,
        fault_processing_disabled: false,
        supervisor_requests: true,
        page_snoop: true,
    };
    for (entry, translation) in [
        (
            PasidEntry::first_stage(Hpa::new(0x9000), paging, flags, domain_id, OPTIONS),
            PasidTranslation::FirstStage {
                root: Hpa::new(0x9000),
                paging,
                write_protect: true,
                extended_accessed: false,
            },
        ),
        (
            PasidEntry::second_stage(
                SecondStagePointer::new(Hpa::new(0xa000), width),
                domain_id,
                OPTIONS,
            ),
            PasidTranslation::SecondStage {
                root: Hpa::new(0xa000),
                width,
            },
        ),
        (
            PasidEntry::nested(
                Gpa::new(0xb000),
                paging,
                flags,
                SecondStagePointer::new(Hpa::new(0xc000), width),
                domain_id,
                OPTIONS,
            ),
            PasidTranslation::Nested {
                first_stage_root: Gpa::new(0xb000),
                paging,
                write_protect: true,
                extended_accessed: false,
                second_stage_root: Hpa::new(0xc000),
                width,
            },
        ),
        (
            PasidEntry::pass_through(domain_id, OPTIONS),
            PasidTranslation::PassThrough,
        ),
    ] {
        assert_eq!(entry.decode(&FEATURES), Ok(meaning(translation)));
        assert_eq!(PasidEntry::from_bytes(&entry.to_bytes()), entry);
        let silent = with_bit(entry, 1).decode::<Hpa>(&FEATURES).unwrap();
        assert!(silent.fault_processing_disabled);
    }
}

/// What §9.6 says of a bit on a unit with all features, 46-bit addresses and 12-bit domain-ids.
fn is_reserved(bit: usize, translation_type: TranslationType) -> bool {
    use TranslationType::*;
    match bit {
        5 | 10..=11 | 80..=86 | 91..=95 | 129 | 136..=139 => true,
        192..=255 | 259..=267 | 336..=511 => true,
        // The fourth bit of each PAT field.
        99 | 103 | 107 | 111 | 115 | 119 | 123 | 127 => true,
        // Beyond the domain-id width, also of the host-permission domain-id.
        76..=79 | 332..=335 => true,
        // Beyond the host address width; ignored with the pointer.
        46..=63 => matches!(translation_type, SecondStage | Nested),
        174..=191 => matches!(translation_type, FirstStage | Nested),
        302..=319 => true,
        _ => false,
    }
}

#[test]
fn reserved_bits_are_refused_one_by_one() {
    for translation_type in TranslationType::ALL {
        let base = valid(translation_type);
        assert!(
            base.decode::<Hpa>(&FEATURES).is_ok(),
            "{translation_type:?}"
        );
        for bit in 1..512 {
            // PGTT makes another type; AW and FSPM have tests of their own.
            if matches!(bit, 2..=4 | 6..=8 | 130..=131) {
                continue;
            }
            let result = with_bit(base, bit).decode::<Hpa>(&FEATURES);
            let fault = is_reserved(bit, translation_type).then(|| reserved(bit));
            assert_eq!(result.err(), fault, "{translation_type:?}, bit {bit}");
        }
    }
}

#[test]
fn fields_of_absent_features_are_reserved_for_every_type() {
    type Remove = fn(&mut TableFeatures);
    type Bits = core::ops::RangeInclusive<usize>;
    let rows: [(Remove, &[Bits]); 9] = [
        (|f| f.second_stage_accessed_dirty = false, &[9..=9]),
        (|f| f.second_stage = false, &[2..=4, 9..=9, 12..=63]),
        (|f| f.page_walk_coherency = false, &[87..=87]),
        (|f| f.snoop_control = false, &[88..=88]),
        (|f| f.memory_types = false, &[89..=90, 96..=127]),
        (|f| f.supervisor_requests = false, &[128..=128]),
        (|f| f.first_stage = false, &[130..=132, 140..=191]),
        (|f| f.extended_accessed = false, &[135..=135]),
        (|f| f.host_permission_tables = false, &[256..=335]),
    ];
    for (remove, ranges) in rows {
        let mut features = FEATURES;
        remove(&mut features);
        for bit in ranges.iter().cloned().flatten() {
            for translation_type in TranslationType::ALL {
                let only_this =
                    PasidEntry([1 | translation_type.field() << 6, 0, 0, 0, 0, 0, 0, 0]);
                assert_eq!(
                    with_bit(only_this, bit).decode::<Hpa>(&features),
                    Err(reserved(bit)),
                    "{translation_type:?}, bit {bit}"
                );
            }
        }
    }
}

#[test]
fn types_ignore_the_fields_that_they_do_not_use() {
    // §9.6: AW, SSADE and SSPTPTR for first-stage and pass-through; FSPM, WPE, EAFE and FSPTPTR
    // for second-stage and pass-through; 133 and 134 for all.
    for (translation_type, ignored) in [
        (TranslationType::FirstStage, &[2..=4, 9..=9, 12..=63][..]),
        (
            TranslationType::SecondStage,
            &[130..=132, 135..=135, 140..=191],
        ),
        (
            TranslationType::PassThrough,
            &[2..=4, 9..=9, 12..=63, 130..=132, 135..=135, 140..=191],
        ),
        (TranslationType::Nested, &[]),
    ] {
        let base = valid(translation_type);
        let meaning = base.decode::<Hpa>(&FEATURES).unwrap();
        for bit in ignored.iter().cloned().flatten().chain([133, 134]) {
            let with = with_bit(base, bit);
            let mut without = base.0;
            without[bit / 64] &= !(1 << (bit % 64));
            for entry in [with, PasidEntry(without)] {
                assert_eq!(
                    entry.decode(&FEATURES),
                    Ok(meaning),
                    "{translation_type:?}, bit {bit}"
                );
            }
        }
    }
}

#[test]
fn address_width_is_tolerated_only_where_documented() {
    // Linux writes AW into every entry, although it is reserved without second stage.
    let strict = TableFeatures {
        second_stage: false,
        nested: false,
        second_stage_accessed_dirty: false,
        ..FEATURES
    };
    let tolerant = TableFeatures {
        tolerate_address_width: true,
        ..strict
    };
    for width in 1..8 {
        for translation_type in 0..8 {
            let entry = PasidEntry([1 | translation_type << 6 | width << 2, 0, 0, 0, 0, 0, 0, 0]);
            let fault = PasidEntryFault::ReservedNonZero {
                quadword: 0,
                bits: width << 2,
            };
            assert_eq!(entry.decode::<Hpa>(&strict), Err(fault));
            let result = entry.decode::<Hpa>(&tolerant);
            if matches!(translation_type, 1 | 4) {
                assert!(result.is_ok(), "AW {width} PGTT {translation_type}");
            } else {
                assert_eq!(result, Err(fault), "AW {width} PGTT {translation_type}");
            }
        }
    }
    // It tolerates nothing else.
    let entry = with_bit(valid(TranslationType::FirstStage), 12);
    assert_eq!(entry.decode::<Hpa>(&tolerant), Err(reserved(12)));
}

#[test]
fn not_present_comes_before_everything() {
    let mut quadwords = [u64::MAX; 8];
    quadwords[0] = !1;
    let entry = PasidEntry(quadwords);
    assert_eq!(
        entry.decode::<Hpa>(&FEATURES),
        Err(PasidEntryFault::NotPresent)
    );
    assert!(entry.is_fault_processing_disabled());
}

#[test]
fn reserved_bits_come_before_type_width_and_mode() {
    // PGTT 7, AW 7 and FSPM 3, first with reserved bit 136.
    let entry = PasidEntry([0x1dd, 0, 0x10c, 0, 0, 0, 0, 0]);
    assert_eq!(entry.decode::<Hpa>(&FEATURES), Err(reserved(136)));
    for (q0, q2, fault) in [
        (0x1dd, 0xc, PasidEntryFault::UnsupportedTranslationType(7)),
        (0x0dd, 0xc, PasidEntryFault::UnsupportedAddressWidth(7)),
        (0x0c9, 0xc, PasidEntryFault::UnsupportedPagingMode(3)),
    ] {
        let entry = PasidEntry([q0, 0, q2, 0, 0, 0, 0, 0]);
        assert_eq!(entry.decode::<Hpa>(&FEATURES), Err(fault));
    }
}

#[test]
fn translation_types_need_the_unit_to_have_them() {
    type Remove = fn(&mut TableFeatures);
    let removals: [Remove; 4] = [
        |f| f.first_stage = false,
        |f| f.second_stage = false,
        |f| f.nested = false,
        |f| f.pass_through = false,
    ];
    for field in 0..8 {
        // AW is left out for the check of the type alone: it is reserved without second stage.
        let entry = PasidEntry([1 | field << 6, 0, 0, 0, 0, 0, 0, 0]);
        let fault = PasidEntryFault::UnsupportedTranslationType(field as u8);
        for (index, remove) in (1..).zip(removals) {
            let mut features = FEATURES;
            remove(&mut features);
            let result = entry.decode::<Hpa>(&features);
            let lacking = field == index || !(1..=4).contains(&field);
            assert_eq!(
                result == Err(fault),
                lacking,
                "PGTT {field} without {index}"
            );
        }
    }
}

#[test]
fn widths_and_modes_need_the_unit_to_have_them() {
    let narrow = TableFeatures {
        widths: AddressWidths::from_field(0b0010),
        first_stage_five_level: false,
        ..FEATURES
    };
    for field in 0..8 {
        for translation_type in [TranslationType::SecondStage, TranslationType::Nested] {
            let q0 = 1 | translation_type.field() << 6 | field << 2;
            let entry = PasidEntry([q0, 0, 0, 0, 0, 0, 0, 0]);
            let fault = Some(PasidEntryFault::UnsupportedAddressWidth(field as u8));
            assert_eq!(
                entry.decode::<Hpa>(&FEATURES).err(),
                fault.filter(|_| !(1..=3).contains(&field))
            );
            assert_eq!(
                entry.decode::<Hpa>(&narrow).err(),
                fault.filter(|_| field != 1)
            );
        }
    }
    for field in 0..4 {
        for translation_type in [TranslationType::FirstStage, TranslationType::Nested] {
            let q0 = 1 | translation_type.field() << 6 | 1 << 2;
            let entry = PasidEntry([q0, 0, field << 2, 0, 0, 0, 0, 0]);
            let fault = Some(PasidEntryFault::UnsupportedPagingMode(field as u8));
            assert_eq!(
                entry.decode::<Hpa>(&FEATURES).err(),
                fault.filter(|_| field > 1)
            );
            assert_eq!(
                entry.decode::<Hpa>(&narrow).err(),
                fault.filter(|_| field > 0)
            );
        }
    }
}

#[test]
fn a_nested_root_lies_below_the_smaller_of_both_widths() {
    // SPT.4.4: 2^min(MGAW, AW).
    for (mgaw, width, limit) in [
        (57, AddressWidth::Bits39, 39),
        (57, AddressWidth::Bits48, 48),
        (40, AddressWidth::Bits48, 40),
        (48, AddressWidth::Bits57, 48),
    ] {
        let features = TableFeatures {
            host_address_width: 52,
            maximum_guest_address_width: mgaw,
            ..FEATURES
        };
        let entry = |root| {
            PasidEntry::nested(
                Gpa::new(root),
                FirstStagePaging::Level4,
                FirstStageFlags::default(),
                SecondStagePointer::new(Hpa::new(0), width),
                DomainId::new(1),
                PasidEntryOptions::default(),
            )
            .decode::<Hpa>(&features)
        };
        assert!(entry((1 << limit) - 0x1000).is_ok());
        assert_eq!(
            entry(1 << limit),
            Err(PasidEntryFault::FirstStageRootBeyondWidth(1 << limit))
        );
    }
}

#[test]
fn directory_entries_check_present_then_reserved_bits() {
    // §9.5: 11:2 and 63:HAW are reserved.
    let base = PasidDirectoryEntry::new(Gpa::new(0x7fff));
    assert_eq!(base.as_u64(), 0x7001);
    assert_eq!(base.decode(&FEATURES), Ok(Gpa::new(0x7000)));
    for bit in 1..64 {
        let entry = PasidDirectoryEntry::from_u64(base.as_u64() | 1 << bit);
        let fault = (matches!(bit, 2..12 | 46..64))
            .then_some(PasidDirectoryEntryFault::ReservedNonZero(1 << bit));
        assert_eq!(entry.decode::<Gpa>(&FEATURES).err(), fault, "bit {bit}");
        let only = PasidDirectoryEntry::from_u64(1 << bit);
        assert_eq!(only.is_fault_processing_disabled(), bit == 1);
        assert_eq!(
            only.pasid_table::<Hpa>(),
            Hpa::new(if bit >= 12 { 1 << bit } else { 0 })
        );
    }
    assert_eq!(
        PasidDirectoryEntry::from_u64(!1).decode::<Hpa>(&FEATURES),
        Err(PasidDirectoryEntryFault::NotPresent)
    );
}
