//! Context entries of scalable mode (§9.4).

use crate::arch::address::PhysicalAddress;
use crate::arch::features::TableFeatures;
use crate::arch::id::{Pasid, SourceId};
use crate::arch::quadwords::{beyond, bits, first_reserved, mask_if, table_entry};
use crate::arch::told::{Told, display_as_told};

use super::{POINTER, PRESENT};

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

    /// The smallest directory that reaches all PASIDs of `pasid_bits` bits, or `None` above 20
    /// bits.
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

    /// The index into the context table of the requester's bus and
    /// [half](crate::arch::root::RootHalf).
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
