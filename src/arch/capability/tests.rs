extern crate std;
use super::*;
use std::vec::Vec;

type Flag<T> = (&'static str, u32, fn(T) -> bool);

fn assert_flags<T: Copy>(flags: &[Flag<T>], from_bits: fn(u64) -> T) {
    for &(name, own, get) in flags {
        for bit in 0..64 {
            assert_eq!(get(from_bits(1 << bit)), bit == own, "{name}, bit {bit}");
        }
    }
}

#[test]
fn each_flag_reads_its_own_bit_and_no_other() {
    // §11.4.2
    assert_flags::<Capability>(
        &[
            ("RWBF", 4, |c| c.requires_write_buffer_flush()),
            ("PLMR", 5, |c| c.has_protected_low_memory()),
            ("PHMR", 6, |c| c.has_protected_high_memory()),
            ("CM", 7, |c| c.has_caching_mode()),
            ("ZLR", 22, |c| c.has_zero_length_read()),
            ("PSI", 39, |c| c.has_page_selective_invalidation()),
            ("DWD", 54, |c| c.has_write_draining()),
            ("DRD", 55, |c| c.has_read_draining()),
            ("FS1GP", 56, |c| c.has_first_stage_1gib_pages()),
            ("PI", 59, |c| c.has_posted_interrupts()),
            ("FS5LP", 60, |c| c.has_first_stage_5_level()),
            ("ECMDS", 61, |c| c.has_enhanced_commands()),
            ("ESIRTPS", 62, |c| {
                c.has_enhanced_set_interrupt_table_pointer()
            }),
            ("ESRTPS", 63, |c| c.has_enhanced_set_root_table_pointer()),
            ("SAGAW 39", 9, |c| c.supports_width(AddressWidth::Bits39)),
            ("SAGAW 48", 10, |c| c.supports_width(AddressWidth::Bits48)),
            ("SAGAW 57", 11, |c| c.supports_width(AddressWidth::Bits57)),
            ("SSLPS 2 MiB", 34, |c| {
                c.second_stage_large_page(PageSize::Size2MiB)
            }),
            ("SSLPS 1 GiB", 35, |c| {
                c.second_stage_large_page(PageSize::Size1GiB)
            }),
        ],
        Capability::from_bits,
    );
    // §11.4.3
    assert_flags::<ExtendedCapability>(
        &[
            ("C", 0, |e| e.is_coherent()),
            ("QI", 1, |e| e.has_queued_invalidation()),
            ("DT", 2, |e| e.has_device_tlb()),
            ("IR", 3, |e| e.has_interrupt_remapping()),
            ("EIM", 4, |e| e.has_extended_interrupt_mode()),
            ("PT", 6, |e| e.has_pass_through()),
            ("SC", 7, |e| e.has_snoop_control()),
            ("MTS", 25, |e| e.has_memory_types()),
            ("NEST", 26, |e| e.has_nested()),
            ("PRS", 29, |e| e.has_page_requests()),
            ("ERS", 30, |e| e.has_execute_requests()),
            ("SRS", 31, |e| e.has_supervisor_requests()),
            ("NWFS", 33, |e| e.has_no_write_flag()),
            ("EAFS", 34, |e| e.has_extended_accessed()),
            ("PASID", 40, |e| e.has_pasid()),
            ("DIT", 41, |e| e.has_device_tlb_throttling()),
            ("PDS", 42, |e| e.has_page_request_drain()),
            ("SMTS", 43, |e| e.has_scalable_mode()),
            ("VCS", 44, |e| e.has_virtual_commands()),
            ("SSADS", 45, |e| e.has_second_stage_accessed_dirty()),
            ("SSTS", 46, |e| e.has_second_stage()),
            ("FSTS", 47, |e| e.has_first_stage()),
            ("SMPWCS", 48, |e| e.has_page_walk_coherency()),
            ("RPS", 49, |e| e.has_rid_pasid()),
            ("TDXCS", 50, |e| e.has_tdx_connect()),
            ("PMS", 51, |e| e.has_performance_monitoring()),
            ("ADMS", 52, |e| e.has_abort_dma_mode()),
            ("RPRIVS", 53, |e| e.has_rid_priv()),
            ("HPTS", 55, |e| e.has_host_permission_tables()),
            ("PTRS", 56, |e| e.has_pasid_in_translated_requests()),
            ("SSIRWS", 57, |e| e.has_second_stage_io_permissions()),
            ("SMS", 58, |e| e.has_stop_markers()),
            ("HPT1GPS", 59, |e| e.has_host_permission_1gib()),
            ("RDTS", 60, |e| e.has_resource_director()),
            ("EIMER", 61, |e| e.requires_extended_interrupt_mode()),
            ("IRREQ", 62, |e| e.requires_interrupt_remapping()),
        ],
        ExtendedCapability::from_bits,
    );
}

#[test]
fn each_number_reads_its_own_bits_and_no_others() {
    type Number<T> = (&'static str, u32, u32, fn(T) -> u64);
    let capability: [Number<Capability>; 5] = [
        ("MGAW", 21, 16, |c| {
            u64::from(c.maximum_guest_address_width()) - 1
        }),
        ("FRO", 33, 24, |c| u64::from(c.fault_record_offset()) / 16),
        ("NFR", 47, 40, |c| u64::from(c.fault_record_count()) - 1),
        ("MAMV", 53, 48, |c| c.maximum_address_mask().into()),
        ("ND", 2, 0, |c| (u64::from(c.domain_id_bits()) - 4) / 2),
    ];
    let extended: [Number<ExtendedCapability>; 3] = [
        ("IRO", 17, 8, |e| u64::from(e.iotlb_register_offset()) / 16),
        ("MHMV", 23, 20, |e| e.maximum_handle_mask().into()),
        ("PSS", 39, 35, |e| u64::from(e.pasid_bits()) - 1),
    ];
    for bit in 0..64 {
        let expected = |high, low| {
            if (low..=high).contains(&bit) {
                1_u64 << (bit - low)
            } else {
                0
            }
        };
        for (name, high, low, get) in capability {
            let value = get(Capability::from_bits(1 << bit));
            assert_eq!(value, expected(high, low), "{name}, bit {bit}");
        }
        for (name, high, low, get) in extended {
            let value = get(ExtendedCapability::from_bits(1 << bit));
            assert_eq!(value, expected(high, low), "{name}, bit {bit}");
        }
    }
    let all_ones = Capability::from_bits(u64::MAX);
    assert_eq!(all_ones.maximum_guest_address_width(), 64);
    assert_eq!(all_ones.fault_record_count(), 256);
    assert_eq!(all_ones.fault_record_offset(), 0x3ff0);
    assert_eq!(all_ones.domain_id_bits(), 16);
    assert_eq!(ExtendedCapability::from_bits(u64::MAX).pasid_bits(), 20);
}

#[test]
fn fields_are_disjoint_and_leave_the_reserved_bits_alone() {
    // Reserved or withdrawn, §11.4.2: 3, 15:13, 23, 38, 58:57.
    assert_eq!(!Capability::DEFINED, 0x0600_0040_0080_e008);
    // Reserved or withdrawn, §11.4.3: 5, 19:18, 24, 27, 28, 32, 54, 63.
    assert_eq!(!ExtendedCapability::DEFINED, 0x8040_0001_190c_0020);
    let capability: u32 = CapabilityField::ALL
        .iter()
        .map(|field| field.mask().count_ones())
        .sum();
    assert_eq!(capability, Capability::DEFINED.count_ones());
    let extended: u32 = ExtendedCapabilityField::ALL
        .iter()
        .map(|field| field.mask().count_ones())
        .sum();
    assert_eq!(extended, ExtendedCapability::DEFINED.count_ones());
}

#[test]
fn setting_a_field_changes_nothing_else() {
    for &field in CapabilityField::ALL {
        for before in [0, u64::MAX, 0x5a5a_a5a5_5a5a_a5a5] {
            for value in [0, 1, 5, u64::MAX] {
                let before = Capability::from_bits(before);
                let after = before.with(field, value);
                assert_eq!(after.bits() & !field.mask(), before.bits() & !field.mask());
                let room = u64::MAX >> (64 - field.mask().count_ones());
                assert_eq!(after.field(field), value & room, "{}", field.mnemonic());
            }
        }
    }
}

#[test]
fn records_keep_no_address_bits_above_the_largest_width() {
    // §11.4.7.6.
    let sent = Iova::new(0xfedc_ba98_7654_3210);
    for (widths, kept) in [
        (0b0000, 0xfedc_ba98_7654_3000),
        (0b0010, 0x0000_0018_7654_3000),
        (0b0110, 0x0000_ba98_7654_3000),
        (0b1110, 0x00dc_ba98_7654_3000),
    ] {
        let field = CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS;
        let capability = Capability::from_bits(0).with(field, widths);
        assert_eq!(
            capability.recorded_page(sent),
            Iova::new(kept),
            "{widths:b}"
        );
    }
}

#[test]
fn registers_of_real_units_read_as_published() {
    // A desktop unit of 2015 and, in front of its graphics, one of the old extended mode.
    let system = (
        Capability::from_bits(0x00d2_008c_4066_0462),
        ExtendedCapability::from_bits(0x00f0_50da),
    );
    assert_eq!(system.0.domain_id_bits(), 8);
    assert_eq!(system.0.maximum_guest_address_width(), 39);
    assert_eq!(system.0.largest_address_width(), Some(AddressWidth::Bits48));
    assert!(!system.0.supports_width(AddressWidth::Bits39));
    assert_eq!(system.0.fault_record_offset(), 0x400);
    assert_eq!(system.0.fault_record_count(), 1);
    assert_eq!(system.0.maximum_address_mask(), 18);
    assert!(system.0.has_page_selective_invalidation() && system.0.has_protected_low_memory());
    assert_eq!(system.1.iotlb_register_offset(), 0x500);
    assert_eq!(system.1.maximum_handle_mask(), 15);
    assert!(!system.1.is_coherent() && system.1.has_interrupt_remapping());
    assert_eq!(validate(system.0, system.1, 0x10, 0x1000), Ok(()));

    let graphics = (
        Capability::from_bits(0x01c0_000c_4066_0462),
        ExtendedCapability::from_bits(0x019e_2ff0_505e),
    );
    assert!(graphics.1.has_nested() && graphics.1.has_pasid() && graphics.1.has_page_requests());
    assert_eq!(graphics.1.pasid_bits(), 20);
    assert_eq!(validate(graphics.0, graphics.1, 0x10, 0x1000), Ok(()));
    let features = Features::new(graphics.0, graphics.1, 39);
    for is_left in [
        features.extended.has_nested(),
        features.extended.has_pasid(),
        features.extended.has_page_requests(),
        features.extended.has_extended_accessed(),
        features.extended.has_memory_types(),
        features.capability.has_first_stage_1gib_pages(),
    ] {
        assert!(!is_left);
    }
    assert!(features.extended.has_device_tlb() && features.extended.has_no_write_flag());
}

#[test]
fn widths_follow_from_both_registers_and_the_host() {
    let mut features = Features::new(
        Capability::default()
            .with(CapabilityField::MAXIMUM_GUEST_ADDRESS_WIDTH, 45)
            .with(CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS, 0b00110),
        ExtendedCapability::default(),
        46,
    );
    assert_eq!(features.reserved_address_bits(), 0xffff_c000_0000_0000);
    assert_eq!(features.largest_address_width(), Some(AddressWidth::Bits48));
    assert_eq!(features.second_stage_address_bits(AddressWidth::Bits39), 39);
    assert_eq!(features.second_stage_address_bits(AddressWidth::Bits48), 46);
    features.capability = Capability::default();
    assert_eq!(features.largest_address_width(), None);
    for (width, reserved) in [
        (0, 0xffff_ffff_ffff_f000),
        (12, 0xffff_ffff_ffff_f000),
        (52, 0xfff0_0000_0000_0000),
        (63, 0x8000_0000_0000_0000),
        (64, 0),
        (255, 0),
    ] {
        features.host_address_width = width;
        assert_eq!(features.reserved_address_bits(), reserved, "HAW {width}");
    }
}

/// A unit that has every feature, each with all that it needs.
fn full() -> (Capability, ExtendedCapability) {
    let capability = Capability::from_bits(Capability::DEFINED)
        .with(CapabilityField::DOMAIN_ID_WIDTH, 6)
        .with(CapabilityField::SECOND_STAGE_LARGE_PAGES, 0b0011)
        .with(CapabilityField::FAULT_RECORD_OFFSET, 0x40)
        .with(CapabilityField::FAULT_RECORD_COUNT, 7);
    let extended = ExtendedCapability::from_bits(ExtendedCapability::DEFINED)
        .with(ExtendedCapabilityField::IOTLB_REGISTER_OFFSET, 0x50)
        .with(ExtendedCapabilityField::PASID_SIZE, 19);
    (capability, extended)
}

#[test]
fn nonsense_is_refused_with_its_value() {
    let (capability, extended) = full();
    assert_eq!(validate(capability, extended, 0x60, 0x1000), Ok(()));
    let ones = Capability::from_bits(u64::MAX);
    let extended_ones = ExtendedCapability::from_bits(u64::MAX);
    use CapabilityError as Error;
    use CapabilityField as C;
    use ExtendedCapabilityField as E;
    for (capability, extended, version, error) in [
        (ones, extended, 0x10, Error::AllOnes),
        (capability, extended_ones, 0x10, Error::AllOnes),
        (capability, extended, u32::MAX, Error::AllOnes),
        (capability, extended, 0x0, Error::Version(0)),
        (capability, extended, 0x0f, Error::Version(0x0f)),
        (
            capability.with(C::DOMAIN_ID_WIDTH, 7),
            extended,
            0x10,
            Error::DomainIdWidth { field: 7 },
        ),
        (
            capability.with(C::SECOND_STAGE_LARGE_PAGES, 2),
            extended,
            0x10,
            Error::SecondStageLargePages { field: 2 },
        ),
        (
            capability.with(C::SECOND_STAGE_LARGE_PAGES, 7),
            extended,
            0x10,
            Error::SecondStageLargePages { field: 7 },
        ),
        (
            capability,
            extended.with(E::PASID_SIZE, 20),
            0x10,
            Error::PasidWidth { bits: 21 },
        ),
    ] {
        assert_eq!(validate(capability, extended, version, 0x1000), Err(error));
    }
}

#[test]
fn register_blocks_lie_in_the_window_and_over_nothing_else() {
    let (capability, extended) = full();
    // Offset in bytes, number of records, size of the window, whether that is fine.
    for (offset, count, window_bytes, is_fine) in [
        (0x400, 8, 0x1000, true),
        (0xff0, 1, 0x1000, true),
        (0xff0, 2, 0x1000, false),
        (0x1000, 1, 0x1000, false),
        (0x1000, 1, 0x2000, true),
        (0x3ff0, 256, 0x1_0000, true),
        (0x3ff0, 256, 0x4000, false),
        (0x000, 1, 0x1000, false),
        (0x040, 1, 0x1000, false),
        (0x050, 1, 0x1000, true),
        (0x050, 2, 0x1000, false),
        (0x0e0, 1, 0x1000, false),
        (0x0f0, 1, 0x1000, true),
        // The IOTLB registers are at 0x500.
        (0x4f0, 1, 0x1000, true),
    ] {
        let capability = capability
            .with(CapabilityField::FAULT_RECORD_OFFSET, offset / 16)
            .with(CapabilityField::FAULT_RECORD_COUNT, count - 1);
        let error = CapabilityError::FaultRecords {
            offset: offset as u16,
            count: count as u16,
        };
        let expected = if is_fine { Ok(()) } else { Err(error) };
        let result = validate(capability, extended, 0x10, window_bytes);
        assert_eq!(result, expected, "{offset:#x} {count} {window_bytes:#x}");
    }
    for (offset, window_bytes, is_fine) in [
        (0xf0, 0x1000, true),
        (0xff0, 0x1000, true),
        (0x1000, 0x1000, false),
        (0x3ff0, 0x4000, true),
        (0x20, 0x1000, false),
        // The fault records are from 0x400 to 0x47f.
        (0x3f0, 0x1000, true),
        (0x400, 0x1000, false),
        (0x470, 0x1000, false),
        (0x480, 0x1000, true),
    ] {
        let extended = extended.with(ExtendedCapabilityField::IOTLB_REGISTER_OFFSET, offset / 16);
        let error = CapabilityError::IotlbRegisters {
            offset: offset as u16,
        };
        let expected = if is_fine { Ok(()) } else { Err(error) };
        let result = validate(capability, extended, 0x10, window_bytes);
        assert_eq!(result, expected, "{offset:#x} {window_bytes:#x}");
    }
}

/// "Needs" of §11.4.2 and §11.4.3.
const NEEDS: [(&str, &[&str]); 30] = [
    ("DT", &["QI"]),
    ("IR", &["QI"]),
    ("SMTS", &["QI"]),
    ("EIM", &["IR"]),
    ("EIMER", &["EIM"]),
    ("IRREQ", &["IR"]),
    ("NWFS", &["DT"]),
    ("DIT", &["DT"]),
    ("PDS", &["DT"]),
    ("FSTS", &["SMTS"]),
    ("SSTS", &["SMTS"]),
    ("SMPWCS", &["SMTS"]),
    ("MTS", &["SMTS"]),
    ("PASID", &["SMTS"]),
    ("SRS", &["SMTS"]),
    ("RPS", &["SMTS"]),
    ("RPRIVS", &["SRS"]),
    ("PRS", &["DT", "SMTS"]),
    ("SMS", &["PRS"]),
    ("NEST", &["SMTS", "FSTS", "SSTS"]),
    ("EAFS", &["FSTS", "SMPWCS"]),
    ("SSADS", &["SMPWCS"]),
    ("SSIRWS", &["SSTS"]),
    ("HPTS", &["SMTS", "DT"]),
    ("HPT1GPS", &["HPTS"]),
    ("PTRS", &["DT", "PASID"]),
    ("FS1GP", &["FSTS"]),
    ("FS5LP", &["FSTS"]),
    ("PI", &["IR"]),
    ("PMS", &["ECMDS"]),
];

fn is_reported(mnemonic: &str, capability: Capability, extended: ExtendedCapability) -> bool {
    CapabilityField::ALL
        .iter()
        .any(|field| field.mnemonic() == mnemonic && capability.has(*field))
        || ExtendedCapabilityField::ALL
            .iter()
            .any(|field| field.mnemonic() == mnemonic && extended.has(*field))
}

#[test]
fn a_feature_without_what_it_needs_is_named_and_taken_as_absent() {
    let (capability, extended) = full();
    assert_eq!(
        Features::new(capability, extended, 46),
        Features {
            capability,
            extended,
            host_address_width: 46
        }
    );
    let without = |mnemonic: &str| {
        let mut registers = (capability, extended);
        for field in CapabilityField::ALL {
            if field.mnemonic() == mnemonic {
                registers.0 = capability.with(*field, 0);
            }
        }
        for field in ExtendedCapabilityField::ALL {
            if field.mnemonic() == mnemonic {
                registers.1 = extended.with(*field, 0);
            }
        }
        registers
    };
    let needed: Vec<&str> = NEEDS.iter().flat_map(|row| row.1).copied().collect();
    for missing in needed {
        let (capability, extended) = without(missing);
        match validate(capability, extended, 0x10, 0x1000) {
            Err(CapabilityError::MissingPrerequisite { feature, requires }) => {
                assert_eq!(requires, missing);
                let row = NEEDS.iter().find(|row| row.0 == feature).unwrap();
                assert!(row.1.contains(&missing), "{feature} {missing}");
            }
            // Without scalable mode its features are left over, not wrong.
            result => assert!(missing == "SMTS" && result == Ok(()), "{missing}"),
        }
        let features = Features::new(capability, extended, 46);
        assert_needs_are_met(&features);
    }
}

fn assert_needs_are_met(features: &Features) {
    let has = |mnemonic| is_reported(mnemonic, features.capability, features.extended);
    for (feature, requires) in NEEDS {
        let is_met = requires.iter().all(|needed| has(needed));
        assert!(!has(feature) || is_met, "{feature} in {features:x?}");
    }
}

#[test]
fn random_registers_give_consistent_features_and_bounded_offsets() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..20_000 {
        let capability = Capability::from_bits(random());
        let extended = ExtendedCapability::from_bits(random() | random());
        let version = random() as u32;
        let window_bytes = (random() as u32 & 0xf_0000) | 0x1000;
        let features = Features::new(capability, extended, random() as u8);
        assert_needs_are_met(&features);
        let again = Features::new(
            features.capability,
            features.extended,
            features.host_address_width,
        );
        assert_eq!(again, features);
        if matches!(
            validate(capability, extended, version, window_bytes),
            Ok(()) | Err(CapabilityError::MissingPrerequisite { .. })
        ) {
            let end = u32::from(capability.fault_record_offset())
                + 16 * u32::from(capability.fault_record_count());
            assert!(end <= window_bytes);
            let end = u32::from(extended.iotlb_register_offset()) + 16;
            assert!(end <= window_bytes);
        }
    }
}
