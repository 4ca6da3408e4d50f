//! Context-table entries of legacy and scalable mode (§9.3, §9.4).

use super::address::{AddressWidth, PhysicalAddress};
use super::features::TableFeatures;
use super::id::{DomainId, Pasid, SourceId};
use super::quadwords::{beyond, bits, first_reserved, mask_if, table_entry};
use super::told::{Told, display_as_told};

const PRESENT: u64 = 1;
const POINTER: u64 = bits(63, 12);

table_entry! {
    /// One 16-byte context entry of legacy mode, as it lies in memory (§9.3).
    ///
    /// Any bit pattern is a value of this type; [`decode`](Self::decode) tells what it means. A
    /// legacy context table has 256 entries, indexed by device and function.
    LegacyContextEntry, quadwords: 2, bytes: 16
}

/// What a legacy-mode context entry does with untranslated requests (§9.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LegacyTranslation<A> {
    /// Second-stage translation (`TT` = 00b or 01b).
    SecondStage {
        /// The top-level table.
        root: A,
        /// The input width of the tables.
        width: AddressWidth,
        /// Whether translation requests and translated requests are allowed too (`TT` = 01b).
        device_tlb: bool,
    },
    /// No translation (`TT` = 10b).
    PassThrough {
        /// The width in the entry: the unit's largest.
        width: AddressWidth,
    },
}

/// A legacy-mode context entry that a unit accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LegacyContext<A> {
    /// How requests are translated.
    pub translation: LegacyTranslation<A>,
    /// The tag of cached translations.
    pub domain_id: DomainId,
    /// Whether qualified faults are not recorded (`FPD`).
    pub fault_processing_disabled: bool,
}

/// Why a unit refuses a legacy-mode context entry (§7.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LegacyContextFault {
    /// The Present bit is clear (LCT.2).
    NotPresent,
    /// A reserved bit is set (LCT.3).
    ReservedNonZero {
        /// The quadword of the entry, 0 or 1.
        quadword: u8,
        /// The offending bits of that quadword.
        bits: u64,
    },
    /// `AW` names no width of the unit, or in a pass-through entry not its largest (LCT.4.1).
    UnsupportedWidth(u8),
    /// `TT` is reserved, or needs an ability that the unit lacks (LCT.4.2).
    UnsupportedTranslationType(u8),
}

impl LegacyContextFault {
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::NotPresent => Told::words("not present"),
            Self::ReservedNonZero { quadword, bits } => {
                Told::two("reserved bits of quadword", quadword as u64, bits)
            }
            Self::UnsupportedWidth(field) => Told::one("address width", field as u64),
            Self::UnsupportedTranslationType(field) => Told::one("translation type", field as u64),
        }
    }
}

display_as_told!(LegacyContextFault);

impl LegacyContextEntry {
    /// Bit 1 of the first quadword (`FPD`).
    pub const FAULT_PROCESSING_DISABLE: u64 = 1 << 1;
    const TRANSLATION_TYPE_DEVICE_TLB: u64 = 1;
    const TRANSLATION_TYPE_PASS_THROUGH: u64 = 2;

    /// The index into the context table of the requester's bus.
    #[inline]
    pub const fn index(source_id: SourceId) -> u8 {
        source_id.device_function()
    }

    /// A present second-stage entry; the low 12 bits of the root are dropped.
    pub fn second_stage<A: PhysicalAddress>(
        root: A,
        width: AddressWidth,
        domain_id: DomainId,
        device_tlb: bool,
    ) -> Self {
        let translation_type = mask_if(device_tlb, Self::TRANSLATION_TYPE_DEVICE_TLB);
        Self([
            root.to_u64() & POINTER | translation_type << 2 | PRESENT,
            u64::from(domain_id.as_u16()) << 8 | width.field(),
        ])
    }

    /// A present pass-through entry; `width` must be the unit's largest.
    pub fn pass_through(width: AddressWidth, domain_id: DomainId) -> Self {
        Self([
            Self::TRANSLATION_TYPE_PASS_THROUGH << 2 | PRESENT,
            u64::from(domain_id.as_u16()) << 8 | width.field(),
        ])
    }

    /// The Present bit (`P`).
    #[doc(alias = "P")]
    #[inline]
    pub const fn is_present(&self) -> bool {
        self.field::<0, 0>() == 1
    }

    /// Fault Processing Disable (`FPD`), which counts even while `P` is clear.
    #[doc(alias = "FPD")]
    #[inline]
    pub const fn is_fault_processing_disabled(&self) -> bool {
        self.field::<1, 1>() == 1
    }

    /// The translation type (`TT`), 2 bits.
    #[doc(alias = "TT")]
    #[inline]
    pub const fn translation_type_field(&self) -> u8 {
        self.field::<3, 2>() as u8
    }

    /// The root of the second-stage tables (`SSPTPTR`), 4-KiB aligned.
    #[doc(alias = "SSPTPTR")]
    #[inline]
    pub fn second_stage_root<A: PhysicalAddress>(&self) -> A {
        A::from_u64(self.field::<63, 12>() << 12)
    }

    /// The address width (`AW`), 3 bits.
    #[doc(alias = "AW")]
    #[inline]
    pub const fn address_width_field(&self) -> u8 {
        self.field::<66, 64>() as u8
    }

    /// The domain-id (`DID`).
    #[doc(alias = "DID")]
    #[inline]
    pub const fn domain_id(&self) -> DomainId {
        DomainId::new(self.field::<87, 72>() as u16)
    }

    /// The meaning of the entry, if a unit with these features accepts it.
    ///
    /// Checks Present, then reserved bits, then translation type and width.
    pub fn decode<A: PhysicalAddress>(
        &self,
        features: &TableFeatures,
    ) -> Result<LegacyContext<A>, LegacyContextFault> {
        if !self.is_present() {
            return Err(LegacyContextFault::NotPresent);
        }
        let translation_type = self.field::<3, 2>();
        let pass_through = translation_type == Self::TRANSLATION_TYPE_PASS_THROUGH;
        let reserved = [
            // Pass-through ignores the pointer as a whole.
            bits(11, 4) | mask_if(!pass_through, beyond(features.host_address_width) & POINTER),
            bits(63, 24) | bits(7, 7) | (beyond(features.domain_id_bits) << 8) & bits(23, 8),
        ];
        if let Some((quadword, bits)) = first_reserved(&self.0, &reserved) {
            return Err(LegacyContextFault::ReservedNonZero { quadword, bits });
        }
        let type_supported = match translation_type {
            0 => true,
            Self::TRANSLATION_TYPE_DEVICE_TLB => features.device_tlb,
            Self::TRANSLATION_TYPE_PASS_THROUGH => features.pass_through,
            _ => false,
        };
        if !type_supported {
            return Err(LegacyContextFault::UnsupportedTranslationType(
                self.translation_type_field(),
            ));
        }
        let width = AddressWidth::from_field(self.field::<66, 64>())
            .filter(|width| features.widths.contains(*width))
            .filter(|width| !pass_through || features.widths.largest() == Some(*width))
            .ok_or(LegacyContextFault::UnsupportedWidth(
                self.address_width_field(),
            ))?;
        Ok(LegacyContext {
            translation: if pass_through {
                LegacyTranslation::PassThrough { width }
            } else {
                LegacyTranslation::SecondStage {
                    root: self.second_stage_root(),
                    width,
                    device_tlb: translation_type == Self::TRANSLATION_TYPE_DEVICE_TLB,
                }
            },
            domain_id: self.domain_id(),
            fault_processing_disabled: self.is_fault_processing_disabled(),
        })
    }
}

/// The size of a PASID directory, as `PDTS` encodes it (§9.4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[doc(alias = "PDTS")]
pub struct DirectoryOrder(u8);

impl DirectoryOrder {
    /// The smallest directory: 128 entries, 1 KiB, 2^13 PASIDs.
    pub const SMALLEST: Self = Self(0);
    /// The largest directory: 16384 entries, 128 KiB, all 2^20 PASIDs.
    pub const LARGEST: Self = Self(7);

    /// The size with this `PDTS` field; bits above 2:0 are dropped.
    #[inline]
    pub const fn from_field(field: u64) -> Self {
        Self(field as u8 & 7)
    }

    /// The smallest directory that reaches all PASIDs of `pasid_bits` bits, or `None` above 20 bits.
    pub const fn for_pasid_bits(pasid_bits: u8) -> Option<Self> {
        match pasid_bits {
            0..=13 => Some(Self::SMALLEST),
            14..=20 => Some(Self(pasid_bits - 13)),
            _ => None,
        }
    }

    /// The value of the `PDTS` field, 0 to 7.
    #[inline]
    pub const fn field(self) -> u64 {
        self.0 as u64 & 7
    }

    /// The number of directory entries: 2^(`PDTS` + 7).
    #[inline]
    pub const fn directory_entry_count(self) -> u32 {
        128 << (self.0 & 7)
    }

    /// The size of the directory in bytes: 1 KiB to 128 KiB.
    #[inline]
    pub const fn len_bytes(self) -> u64 {
        self.directory_entry_count() as u64 * 8
    }

    /// The number of PASIDs that the directory reaches: 2^(`PDTS` + 13).
    #[inline]
    pub const fn pasid_limit(self) -> u32 {
        self.directory_entry_count() << 6
    }

    /// Whether the directory reaches `pasid`.
    #[inline]
    pub const fn contains(self, pasid: Pasid) -> bool {
        pasid.as_u32() < self.pasid_limit()
    }
}

table_entry! {
    /// One 32-byte context entry of scalable mode, as it lies in memory (§9.4).
    ///
    /// Any bit pattern is a value of this type; [`decode`](Self::decode) tells what it means. A
    /// scalable-mode context table has 128 entries, for half the devices of a bus.
    ScalableContextEntry, quadwords: 4, bytes: 32
}

/// What a function may do, in a scalable-mode context entry (§9.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ContextAttributes {
    /// Translation requests and translated requests are allowed (`DTE`).
    pub device_tlb: bool,
    /// Requests-with-PASID are allowed (`PASIDE`).
    pub pasid_enabled: bool,
    /// Page requests are allowed (`PRE`); needs `device_tlb`.
    pub page_requests: bool,
    /// The PASID of requests without PASID (`RID_PASID`).
    pub rid_pasid: Pasid,
    /// Requests without PASID have supervisor privilege (`RID_PRIV`).
    pub rid_privilege: bool,
}

/// A scalable-mode context entry that a unit accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScalableContext<A> {
    /// The PASID directory (`PASIDDIRPTR`).
    pub pasid_directory: A,
    /// The size of the directory (`PDTS`), which also limits the PASIDs.
    pub directory_order: DirectoryOrder,
    /// Translation requests and translated requests are allowed (`DTE`).
    pub device_tlb: bool,
    /// Requests-with-PASID are allowed (`PASIDE`).
    pub pasid_enabled: bool,
    /// Page requests are allowed (`PRE`).
    pub page_requests: bool,
    /// Translated requests are checked against host permission tables (`HPTE`).
    pub host_permission_tables: bool,
    /// Translated requests with PASID are accepted (`EPTR`).
    pub translated_requests_with_pasid: bool,
    /// The PASID of requests without PASID; 0 if the unit lacks `RPS`.
    pub rid_pasid: Pasid,
    /// Requests without PASID have supervisor privilege (`RID_PRIV`).
    pub rid_privilege: bool,
    /// Whether qualified faults are not recorded (`FPD`).
    pub fault_processing_disabled: bool,
}

/// Settings of a scalable-mode context entry that exclude each other (SCT.4, §7.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IllegalCombination {
    /// Page requests (`PRE`) without a device-TLB (`DTE`) (SCT.4.1).
    PageRequestsWithoutDeviceTlb,
    /// `RID_PASID` is beyond what the directory reaches (SCT.4.2).
    RidPasidBeyondDirectory(Pasid),
    /// PASIDs in translated requests (`EPTR`) without requests-with-PASID (`PASIDE`) (SCT.4.3).
    TranslatedPasidWithoutPasid,
}

/// Why a unit refuses a scalable-mode context entry (§7.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScalableContextFault {
    /// The Present bit is clear (SCT.2).
    NotPresent,
    /// A reserved bit is set (SCT.3).
    ReservedNonZero {
        /// The quadword of the entry, 0 to 3.
        quadword: u8,
        /// The offending bits of that quadword.
        bits: u64,
    },
    /// Settings exclude each other (SCT.4).
    IllegalCombination(IllegalCombination),
}

impl ScalableContextFault {
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::NotPresent => Told::words("not present"),
            Self::ReservedNonZero { quadword, bits } => {
                Told::two("reserved bits of quadword", quadword as u64, bits)
            }
            Self::IllegalCombination(combination) => match combination {
                IllegalCombination::PageRequestsWithoutDeviceTlb => Told::words("PRE without DTE"),
                IllegalCombination::RidPasidBeyondDirectory(pasid) => {
                    Told::one("RID_PASID beyond the directory", pasid.as_u32() as u64)
                }
                IllegalCombination::TranslatedPasidWithoutPasid => {
                    Told::words("EPTR without PASIDE")
                }
            },
        }
    }
}

display_as_told!(ScalableContextFault);

impl ScalableContextEntry {
    /// Fault Processing Disable (`FPD`) in the first quadword.
    pub const FAULT_PROCESSING_DISABLE: u64 = 1 << 1;

    /// The index into the context table of the requester's bus and [half](super::root::RootHalf).
    #[inline]
    pub const fn index(source_id: SourceId) -> u8 {
        source_id.device_function() & 0x7f
    }

    /// A present entry; the low 12 bits of the directory's address are dropped.
    pub fn new<A: PhysicalAddress>(
        directory: A,
        order: DirectoryOrder,
        attributes: ContextAttributes,
    ) -> Self {
        Self([
            directory.to_u64() & POINTER
                | order.field() << 9
                | u64::from(attributes.page_requests) << 4
                | u64::from(attributes.pasid_enabled) << 3
                | u64::from(attributes.device_tlb) << 2
                | PRESENT,
            u64::from(attributes.rid_pasid.as_u32()) | u64::from(attributes.rid_privilege) << 20,
            0,
            0,
        ])
    }

    /// The Present bit (`P`).
    #[doc(alias = "P")]
    #[inline]
    pub const fn is_present(&self) -> bool {
        self.field::<0, 0>() == 1
    }

    /// Fault Processing Disable (`FPD`), which counts even while `P` is clear.
    #[doc(alias = "FPD")]
    #[inline]
    pub const fn is_fault_processing_disabled(&self) -> bool {
        self.field::<1, 1>() == 1
    }

    /// Device-TLB Enable (`DTE`).
    #[doc(alias = "DTE")]
    #[inline]
    pub const fn is_device_tlb_enabled(&self) -> bool {
        self.field::<2, 2>() == 1
    }

    /// PASID Enable (`PASIDE`).
    #[doc(alias = "PASIDE")]
    #[inline]
    pub const fn is_pasid_enabled(&self) -> bool {
        self.field::<3, 3>() == 1
    }

    /// Page Request Enable (`PRE`).
    #[doc(alias = "PRE")]
    #[inline]
    pub const fn is_page_request_enabled(&self) -> bool {
        self.field::<4, 4>() == 1
    }

    /// Host Permission Table Enable (`HPTE`).
    #[doc(alias = "HPTE")]
    #[inline]
    pub const fn is_host_permission_table_enabled(&self) -> bool {
        self.field::<5, 5>() == 1
    }

    /// Enable PASID in Translated Requests (`EPTR`).
    #[doc(alias = "EPTR")]
    #[inline]
    pub const fn is_pasid_in_translated_requests_enabled(&self) -> bool {
        self.field::<6, 6>() == 1
    }

    /// The size of the PASID directory (`PDTS`).
    #[doc(alias = "PDTS")]
    #[inline]
    pub const fn directory_order(&self) -> DirectoryOrder {
        DirectoryOrder::from_field(self.field::<11, 9>())
    }

    /// The PASID directory (`PASIDDIRPTR`), 4-KiB aligned.
    #[doc(alias = "PASIDDIRPTR")]
    #[inline]
    pub fn pasid_directory<A: PhysicalAddress>(&self) -> A {
        A::from_u64(self.field::<63, 12>() << 12)
    }

    /// The PASID of requests without PASID (`RID_PASID`).
    #[doc(alias = "RID_PASID")]
    #[inline]
    pub const fn rid_pasid(&self) -> Pasid {
        Pasid::from_field(self.field::<83, 64>())
    }

    /// Supervisor privilege of requests without PASID (`RID_PRIV`).
    #[doc(alias = "RID_PRIV")]
    #[inline]
    pub const fn is_rid_privileged(&self) -> bool {
        self.field::<84, 84>() == 1
    }

    /// The meaning of the entry, if a unit with these features accepts it.
    ///
    /// Checks Present, then reserved bits, then combinations.
    pub fn decode<A: PhysicalAddress>(
        &self,
        features: &TableFeatures,
    ) -> Result<ScalableContext<A>, ScalableContextFault> {
        if !self.is_present() {
            return Err(ScalableContextFault::NotPresent);
        }
        let reserved = [
            bits(8, 7)
                | mask_if(!features.device_tlb, bits(2, 2))
                | mask_if(!features.pasid, bits(3, 3))
                | mask_if(!features.page_requests, bits(4, 4))
                | mask_if(!features.host_permission_tables, bits(5, 5))
                | mask_if(!features.translated_requests_with_pasid, bits(6, 6))
                | beyond(features.host_address_width) & POINTER,
            bits(63, 21)
                | mask_if(!features.rid_pasid, bits(19, 0))
                | mask_if(!features.rid_privilege, bits(20, 20)),
            u64::MAX,
            u64::MAX,
        ];
        if let Some((quadword, bits)) = first_reserved(&self.0, &reserved) {
            return Err(ScalableContextFault::ReservedNonZero { quadword, bits });
        }
        let illegal = |combination| Err(ScalableContextFault::IllegalCombination(combination));
        if self.is_page_request_enabled() && !self.is_device_tlb_enabled() {
            return illegal(IllegalCombination::PageRequestsWithoutDeviceTlb);
        }
        if !self.directory_order().contains(self.rid_pasid()) {
            return illegal(IllegalCombination::RidPasidBeyondDirectory(
                self.rid_pasid(),
            ));
        }
        if self.is_pasid_in_translated_requests_enabled() && !self.is_pasid_enabled() {
            return illegal(IllegalCombination::TranslatedPasidWithoutPasid);
        }
        Ok(ScalableContext {
            pasid_directory: self.pasid_directory(),
            directory_order: self.directory_order(),
            device_tlb: self.is_device_tlb_enabled(),
            pasid_enabled: self.is_pasid_enabled(),
            page_requests: self.is_page_request_enabled(),
            host_permission_tables: self.is_host_permission_table_enabled(),
            translated_requests_with_pasid: self.is_pasid_in_translated_requests_enabled(),
            rid_pasid: self.rid_pasid(),
            rid_privilege: self.is_rid_privileged(),
            fault_processing_disabled: self.is_fault_processing_disabled(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::address::{Gpa, Hpa};
    use crate::arch::features::AddressWidths;

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
                let entry = LegacyContextEntry(with_bit(base.0, bit));
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
        let all = LegacyContextEntry([!1, u64::MAX]);
        assert_eq!(
            all.decode::<Hpa>(&FEATURES),
            Err(LegacyContextFault::NotPresent)
        );
        assert!(all.is_fault_processing_disabled());
        // Reserved bit 4, reserved TT and AW at once.
        assert_eq!(
            LegacyContextEntry([0x1d, 7]).decode::<Hpa>(&FEATURES),
            Err(LegacyContextFault::ReservedNonZero {
                quadword: 0,
                bits: 0x10
            })
        );
        assert_eq!(
            LegacyContextEntry([0xd, 7]).decode::<Hpa>(&FEATURES),
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
            let entry = LegacyContextEntry([0x1001 | translation_type << 2, width]);
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
        let silent = ScalableContextEntry([0x1003, 0, 0, 0]).decode::<Hpa>(&FEATURES);
        assert!(silent.unwrap().fault_processing_disabled);
    }

    #[test]
    fn scalable_reserved_bits_are_refused_one_by_one() {
        // §9.4. DTE and PASIDE are set so that no combination is illegal.
        let base = [0x0e0d, 0, 0, 0];
        for bit in 1..256 {
            let reserved = matches!(bit, 7..=8 | 46..64 | 85..);
            let entry = ScalableContextEntry(with_bit(base, bit));
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
                let entry = ScalableContextEntry(with_bit([0x0e01, 0, 0, 0], bit));
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
        let all = ScalableContextEntry([!1, u64::MAX, u64::MAX, u64::MAX]);
        assert_eq!(
            all.decode::<Hpa>(&FEATURES),
            Err(ScalableContextFault::NotPresent)
        );
        assert!(all.is_fault_processing_disabled());
        // PRE without DTE, and reserved bit 7.
        assert_eq!(
            ScalableContextEntry([0x91, 0, 0, 0]).decode::<Hpa>(&FEATURES),
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
                ScalableContextEntry([q0, rid_pasid, 0, 0])
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
}
