//! PASID-directory and PASID-table entries (§9.5, §9.6).

use super::address::{AddressWidth, FirstStagePaging, Gpa, Hpa, PhysicalAddress};
use super::features::TableFeatures;
use super::id::DomainId;
use super::quadwords::{beyond, bits, first_reserved, mask_if, table_entry};
use super::told::{Told, display_as_told};

const PRESENT: u64 = 1;
const POINTER: u64 = bits(63, 12);

/// One 8-byte PASID-directory entry, as it lies in memory (§9.5).
///
/// Any value is allowed; [`decode`](Self::decode) tells what it means.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct PasidDirectoryEntry(u64);

/// Why a unit refuses a PASID-directory entry (§7.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidDirectoryEntryFault {
    /// The Present bit is clear (SPD.2).
    NotPresent,
    /// These reserved bits are set (SPD.3).
    ReservedNonZero(u64),
}

impl PasidDirectoryEntryFault {
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::NotPresent => Told::words("not present"),
            Self::ReservedNonZero(bits) => Told::one("reserved bits", bits),
        }
    }
}

display_as_told!(PasidDirectoryEntryFault);

impl PasidDirectoryEntry {
    /// The size of an entry in bytes.
    pub const LEN_BYTES: usize = 8;

    /// A present entry; the low 12 bits of the PASID table's address are dropped.
    pub fn new<A: PhysicalAddress>(pasid_table: A) -> Self {
        Self(pasid_table.to_u64() & POINTER | PRESENT)
    }

    /// The entry with this value.
    #[inline]
    pub const fn from_u64(value: u64) -> Self {
        Self(value)
    }

    /// The entry's value.
    #[inline]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The Present bit (`P`).
    #[doc(alias = "P")]
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Fault Processing Disable (`FPD`), which counts even while `P` is clear.
    #[doc(alias = "FPD")]
    #[inline]
    pub const fn is_fault_processing_disabled(self) -> bool {
        self.0 & 2 != 0
    }

    /// The PASID table (`SMPTBLPTR`), one page of 64 entries.
    #[doc(alias = "SMPTBLPTR")]
    #[inline]
    pub fn pasid_table<A: PhysicalAddress>(self) -> A {
        A::from_u64(self.0 & POINTER)
    }

    /// The PASID table, if a unit with these features accepts the entry.
    pub fn decode<A: PhysicalAddress>(
        self,
        features: &TableFeatures,
    ) -> Result<A, PasidDirectoryEntryFault> {
        if !self.is_present() {
            return Err(PasidDirectoryEntryFault::NotPresent);
        }
        let reserved = self.0 & (bits(11, 2) | beyond(features.host_address_width) & POINTER);
        if reserved != 0 {
            return Err(PasidDirectoryEntryFault::ReservedNonZero(reserved));
        }
        Ok(self.pasid_table())
    }
}

impl core::fmt::Debug for PasidDirectoryEntry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "PasidDirectoryEntry({:#x})", self.0)
    }
}

/// The translation types of PASID entries (`PGTT`, §9.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[doc(alias = "PGTT")]
pub enum TranslationType {
    /// First-stage only (001b).
    FirstStage,
    /// Second-stage only (010b).
    SecondStage,
    /// First-stage over second-stage (011b).
    Nested,
    /// No translation (100b).
    PassThrough,
}

impl TranslationType {
    /// All types.
    pub const ALL: [Self; 4] = [
        Self::FirstStage,
        Self::SecondStage,
        Self::Nested,
        Self::PassThrough,
    ];

    /// The value of the `PGTT` field.
    #[inline]
    pub const fn field(self) -> u64 {
        match self {
            Self::FirstStage => 1,
            Self::SecondStage => 2,
            Self::Nested => 3,
            Self::PassThrough => 4,
        }
    }

    /// The type that a `PGTT` field names, or `None` for a reserved encoding.
    #[inline]
    pub const fn from_field(field: u64) -> Option<Self> {
        match field {
            1 => Some(Self::FirstStage),
            2 => Some(Self::SecondStage),
            3 => Some(Self::Nested),
            4 => Some(Self::PassThrough),
            _ => None,
        }
    }

    /// Whether a unit with these features offers the type.
    #[inline]
    pub const fn is_supported(self, features: &TableFeatures) -> bool {
        match self {
            Self::FirstStage => features.first_stage,
            Self::SecondStage => features.second_stage,
            Self::Nested => features.nested,
            Self::PassThrough => features.pass_through,
        }
    }

    /// Whether the first stage takes part.
    #[inline]
    pub const fn uses_first_stage(self) -> bool {
        matches!(self, Self::FirstStage | Self::Nested)
    }

    /// Whether the second stage takes part.
    #[inline]
    pub const fn uses_second_stage(self) -> bool {
        matches!(self, Self::SecondStage | Self::Nested)
    }
}

/// How a PASID entry translates, with the fields that the unit uses for that type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidTranslation<A> {
    /// First-stage only (`PGTT` = 001b).
    FirstStage {
        /// The top-level table (`FSPTPTR`).
        root: A,
        /// The number of levels (`FSPM`).
        paging: FirstStagePaging,
        /// Supervisor writes respect the `R/W` bits (`WPE`).
        write_protect: bool,
        /// The unit maintains the `EA` bits (`EAFE`).
        extended_accessed: bool,
    },
    /// Second-stage only (`PGTT` = 010b).
    SecondStage {
        /// The top-level table (`SSPTPTR`).
        root: A,
        /// The input width of the tables (`AW`).
        width: AddressWidth,
    },
    /// First-stage over second-stage (`PGTT` = 011b).
    Nested {
        /// The top-level first-stage table (`FSPTPTR`): an address that the second stage translates.
        first_stage_root: Gpa,
        /// The number of first-stage levels (`FSPM`).
        paging: FirstStagePaging,
        /// Supervisor writes respect the `R/W` bits (`WPE`).
        write_protect: bool,
        /// The unit maintains the `EA` bits (`EAFE`).
        extended_accessed: bool,
        /// The top-level second-stage table (`SSPTPTR`).
        second_stage_root: A,
        /// The input width of the second-stage tables (`AW`).
        width: AddressWidth,
    },
    /// No translation (`PGTT` = 100b).
    PassThrough,
}

impl<A> PasidTranslation<A> {
    /// The type of the translation.
    pub const fn translation_type(&self) -> TranslationType {
        match self {
            Self::FirstStage { .. } => TranslationType::FirstStage,
            Self::SecondStage { .. } => TranslationType::SecondStage,
            Self::Nested { .. } => TranslationType::Nested,
            Self::PassThrough => TranslationType::PassThrough,
        }
    }
}

/// A PASID entry that a unit accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ValidPasidEntry<A> {
    /// How requests are translated.
    pub translation: PasidTranslation<A>,
    /// The tag of cached translations, for every type (`DID`).
    pub domain_id: DomainId,
    /// Whether qualified faults are not recorded (`FPD`).
    pub fault_processing_disabled: bool,
    /// Whether requests with supervisor privilege are allowed (`SRE`).
    pub supervisor_requests: bool,
    /// Whether the unit's accesses to the paging structures are snooped (`PWSNP`).
    pub page_walk_snoop: bool,
    /// Whether accesses to the final page are snooped whatever the request says (`PGSNP`).
    pub page_snoop: bool,
    /// Whether the unit maintains second-stage accessed and dirty bits (`SSADE`); false for the
    /// types that ignore it.
    pub second_stage_accessed_dirty: bool,
}

/// Why a unit refuses a PASID entry (§7.1.3, Table 30).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidEntryFault {
    /// The Present bit is clear (SPT.2).
    NotPresent,
    /// A reserved bit is set (SPT.3).
    ReservedNonZero {
        /// The quadword of the entry, 0 to 7.
        quadword: u8,
        /// The offending bits of that quadword.
        bits: u64,
    },
    /// `AW` names no width of the unit (SPT.4.1).
    UnsupportedAddressWidth(u8),
    /// `PGTT` is reserved, or a type that the unit lacks (SPT.4.2).
    UnsupportedTranslationType(u8),
    /// `FSPM` is reserved, or a mode that the unit lacks (SPT.4.3).
    UnsupportedPagingMode(u8),
    /// The first-stage root of a nested entry is not below 2^min(`MGAW`, `AW`) (SPT.4.4).
    FirstStageRootBeyondWidth(u64),
}

impl PasidEntryFault {
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::NotPresent => Told::words("not present"),
            Self::ReservedNonZero { quadword, bits } => {
                Told::two("reserved bits of quadword", quadword as u64, bits)
            }
            Self::UnsupportedAddressWidth(field) => Told::one("address width", field as u64),
            Self::UnsupportedTranslationType(field) => Told::one("translation type", field as u64),
            Self::UnsupportedPagingMode(field) => Told::one("paging mode", field as u64),
            Self::FirstStageRootBeyondWidth(root) => Told::one("first-stage root", root),
        }
    }
}

display_as_told!(PasidEntryFault);

/// What the hypervisor decides for an entry beyond its translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PasidEntryOptions {
    /// Requests with supervisor privilege are allowed (`SRE`); needs `ECAP.SRS`.
    pub supervisor_requests: bool,
    /// Accesses to the paging structures are snooped (`PWSNP`); needs `ECAP.SMPWCS`.
    pub page_walk_snoop: bool,
    /// Accesses to the final page are always snooped (`PGSNP`); needs `ECAP.SC`.
    pub page_snoop: bool,
    /// Second-stage accessed and dirty bits are maintained (`SSADE`); needs `ECAP.SSADS`. Entries
    /// without a second stage do not take it.
    pub second_stage_accessed_dirty: bool,
}

/// How a first stage behaves, beyond its root and number of levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FirstStageFlags {
    /// Supervisor writes respect the `R/W` bits (`WPE`).
    pub write_protect: bool,
    /// The unit maintains the `EA` bits (`EAFE`); needs `ECAP.EAFS`.
    pub extended_accessed: bool,
}

table_entry! {
    /// One 64-byte PASID-table entry, as it lies in memory (§9.6).
    ///
    /// Any bit pattern is a value of this type. [`decode`](Self::decode) tells whether a unit would
    /// accept it, and what it then means.
    PasidEntry, quadwords: 8, bytes: 64
}

impl PasidEntry {
    /// Bit 133 (`NXE` before Rev 4.1). Later units ignore it; earlier ones, without it, would fault
    /// a first-stage entry with execute-disable set as reserved.
    const EXECUTE_DISABLE_ENABLE: u64 = 1 << 5;

    /// A present second-stage entry of the host; the low 12 bits of the root are dropped.
    pub fn second_stage(
        root: Hpa,
        width: AddressWidth,
        domain_id: DomainId,
        options: PasidEntryOptions,
    ) -> Self {
        Self::with_common(TranslationType::SecondStage, domain_id, options).with_second_stage(
            root.as_u64(),
            width,
            options,
        )
    }

    /// A present second-stage entry of a guest's table, as the guest's driver writes it.
    pub fn guest_second_stage(
        root: Gpa,
        width: AddressWidth,
        domain_id: DomainId,
        options: PasidEntryOptions,
    ) -> Self {
        Self::with_common(TranslationType::SecondStage, domain_id, options).with_second_stage(
            root.as_u64(),
            width,
            options,
        )
    }

    /// A present nested entry of the host: the guest's first stage over the host's second stage.
    /// The low 12 bits of the roots are dropped.
    ///
    /// The caller has checked what the guest chose against the unit's features (§6.2.3.1).
    pub fn nested(
        first_stage_root: Gpa,
        paging: FirstStagePaging,
        flags: FirstStageFlags,
        second_stage_root: Hpa,
        width: AddressWidth,
        domain_id: DomainId,
        options: PasidEntryOptions,
    ) -> Self {
        Self::with_common(TranslationType::Nested, domain_id, options)
            .with_second_stage(second_stage_root.as_u64(), width, options)
            .with_first_stage(first_stage_root.as_u64(), paging, flags)
    }

    /// A present first-stage entry; the low 12 bits of the root are dropped.
    pub fn first_stage<A: PhysicalAddress>(
        root: A,
        paging: FirstStagePaging,
        flags: FirstStageFlags,
        domain_id: DomainId,
        options: PasidEntryOptions,
    ) -> Self {
        Self::with_common(TranslationType::FirstStage, domain_id, options).with_first_stage(
            root.to_u64(),
            paging,
            flags,
        )
    }

    /// A present pass-through entry. It has no paging structures, so `PWSNP` stays clear.
    pub fn pass_through(domain_id: DomainId, options: PasidEntryOptions) -> Self {
        let options = PasidEntryOptions {
            page_walk_snoop: false,
            ..options
        };
        Self::with_common(TranslationType::PassThrough, domain_id, options)
    }

    /// What the builders of all types share; everything else is zero.
    const fn with_common(
        translation_type: TranslationType,
        domain_id: DomainId,
        options: PasidEntryOptions,
    ) -> Self {
        Self([
            translation_type.field() << 6 | PRESENT,
            domain_id.as_u16() as u64
                | mask_if(options.page_walk_snoop, bits(23, 23))
                | mask_if(options.page_snoop, bits(24, 24)),
            mask_if(options.supervisor_requests, bits(0, 0)),
            0,
            0,
            0,
            0,
            0,
        ])
    }

    const fn with_second_stage(
        self,
        root: u64,
        width: AddressWidth,
        options: PasidEntryOptions,
    ) -> Self {
        let [q0, q1, q2, q3, q4, q5, q6, q7] = self.0;
        let q0 = q0
            | root & POINTER
            | width.field() << 2
            | mask_if(options.second_stage_accessed_dirty, bits(9, 9));
        Self([q0, q1, q2, q3, q4, q5, q6, q7])
    }

    const fn with_first_stage(
        self,
        root: u64,
        paging: FirstStagePaging,
        flags: FirstStageFlags,
    ) -> Self {
        let [q0, q1, q2, q3, q4, q5, q6, q7] = self.0;
        let q2 = q2
            | root & POINTER
            | paging.field() << 2
            | mask_if(flags.write_protect, bits(4, 4))
            | Self::EXECUTE_DISABLE_ENABLE
            | mask_if(flags.extended_accessed, bits(7, 7));
        Self([q0, q1, q2, q3, q4, q5, q6, q7])
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

    /// The address width of the second stage (`AW`), 3 bits.
    #[doc(alias = "AW")]
    #[inline]
    pub const fn address_width_field(&self) -> u8 {
        self.field::<4, 2>() as u8
    }

    /// The translation type (`PGTT`), 3 bits.
    #[doc(alias = "PGTT")]
    #[inline]
    pub const fn translation_type_field(&self) -> u8 {
        self.field::<8, 6>() as u8
    }

    /// Second-Stage Access/Dirty Enable (`SSADE`).
    #[doc(alias = "SSADE")]
    #[inline]
    pub const fn is_second_stage_accessed_dirty_enabled(&self) -> bool {
        self.field::<9, 9>() == 1
    }

    /// The root of the second-stage tables (`SSPTPTR`), 4-KiB aligned.
    #[doc(alias = "SSPTPTR")]
    #[inline]
    pub fn second_stage_root<A: PhysicalAddress>(&self) -> A {
        A::from_u64(self.field::<63, 12>() << 12)
    }

    /// The domain-id (`DID`), which every type has.
    #[doc(alias = "DID")]
    #[inline]
    pub const fn domain_id(&self) -> DomainId {
        DomainId::new(self.field::<79, 64>() as u16)
    }

    /// Page-Walk Snoop (`PWSNP`).
    #[doc(alias = "PWSNP")]
    #[inline]
    pub const fn is_page_walk_snooped(&self) -> bool {
        self.field::<87, 87>() == 1
    }

    /// Page Snoop (`PGSNP`).
    #[doc(alias = "PGSNP")]
    #[inline]
    pub const fn is_page_snooped(&self) -> bool {
        self.field::<88, 88>() == 1
    }

    /// Cache Disable (`CD`).
    #[doc(alias = "CD")]
    #[inline]
    pub const fn is_cache_disabled(&self) -> bool {
        self.field::<89, 89>() == 1
    }

    /// Extended Memory Type Enable (`EMTE`).
    #[doc(alias = "EMTE")]
    #[inline]
    pub const fn is_extended_memory_type_enabled(&self) -> bool {
        self.field::<90, 90>() == 1
    }

    /// The page attribute table (`PAT`): eight fields of 4 bits, `PA0` lowest.
    #[doc(alias = "PAT")]
    #[inline]
    pub const fn page_attribute_table(&self) -> u32 {
        self.field::<127, 96>() as u32
    }

    /// Supervisor Request Enable (`SRE`).
    #[doc(alias = "SRE")]
    #[inline]
    pub const fn is_supervisor_request_enabled(&self) -> bool {
        self.field::<128, 128>() == 1
    }

    /// The first-stage paging mode (`FSPM`), 2 bits.
    #[doc(alias = "FSPM")]
    #[inline]
    pub const fn paging_mode_field(&self) -> u8 {
        self.field::<131, 130>() as u8
    }

    /// Write Protect Enable (`WPE`).
    #[doc(alias = "WPE")]
    #[inline]
    pub const fn is_write_protect_enabled(&self) -> bool {
        self.field::<132, 132>() == 1
    }

    /// Extended Accessed Flag Enable (`EAFE`).
    #[doc(alias = "EAFE")]
    #[inline]
    pub const fn is_extended_accessed_enabled(&self) -> bool {
        self.field::<135, 135>() == 1
    }

    /// The root of the first-stage tables (`FSPTPTR`), 4-KiB aligned: in a nested entry an address
    /// that the second stage translates.
    #[doc(alias = "FSPTPTR")]
    #[inline]
    pub fn first_stage_root<A: PhysicalAddress>(&self) -> A {
        A::from_u64(self.field::<191, 140>() << 12)
    }

    /// The size of the host permission table (`HPTSZ`), 2 bits.
    #[doc(alias = "HPTSZ")]
    #[inline]
    pub const fn host_permission_table_size_field(&self) -> u8 {
        self.field::<257, 256>() as u8
    }

    /// Host Permission Table Prefetch Disable (`HPTPFD`).
    #[doc(alias = "HPTPFD")]
    #[inline]
    pub const fn is_host_permission_prefetch_disabled(&self) -> bool {
        self.field::<258, 258>() == 1
    }

    /// The root of the host permission table (`HPTPTR`), 4-KiB aligned.
    #[doc(alias = "HPTPTR")]
    #[inline]
    pub fn host_permission_table<A: PhysicalAddress>(&self) -> A {
        A::from_u64(self.field::<319, 268>() << 12)
    }

    /// The domain-id of cached host permissions (`HPTDID`).
    #[doc(alias = "HPTDID")]
    #[inline]
    pub const fn host_permission_domain_id(&self) -> DomainId {
        DomainId::new(self.field::<335, 320>() as u16)
    }

    /// The bits that are reserved in a present entry of this type on a unit with these features.
    ///
    /// What belongs to an absent feature is reserved for every type; what a type ignores is not,
    /// if the feature is there.
    fn reserved(translation_type: Option<TranslationType>, features: &TableFeatures) -> [u64; 8] {
        let uses_first_stage = translation_type.is_some_and(TranslationType::uses_first_stage);
        let uses_second_stage = translation_type.is_some_and(TranslationType::uses_second_stage);
        let beyond_width = beyond(features.host_address_width) & POINTER;
        let beyond_domain_id = beyond(features.domain_id_bits) & bits(15, 0);
        let address_width_tolerated = features.tolerate_address_width
            && matches!(
                translation_type,
                Some(TranslationType::FirstStage | TranslationType::PassThrough)
            );
        [
            bits(5, 5)
                | bits(11, 10)
                | mask_if(uses_second_stage, beyond_width)
                | mask_if(
                    !features.second_stage && !address_width_tolerated,
                    bits(4, 2),
                )
                | mask_if(!features.second_stage, bits(9, 9) | POINTER)
                | mask_if(!features.second_stage_accessed_dirty, bits(9, 9)),
            bits(22, 16)
                | bits(31, 27)
                | 0x8888_8888_0000_0000
                | beyond_domain_id
                | mask_if(!features.page_walk_coherency, bits(23, 23))
                | mask_if(!features.snoop_control, bits(24, 24))
                | mask_if(!features.memory_types, bits(26, 25) | bits(63, 32)),
            bits(1, 1)
                | bits(11, 8)
                | mask_if(uses_first_stage, beyond_width)
                | mask_if(!features.supervisor_requests, bits(0, 0))
                | mask_if(!features.first_stage, bits(4, 2) | POINTER)
                | mask_if(!features.extended_accessed, bits(7, 7)),
            u64::MAX,
            bits(11, 3) | beyond_width | mask_if(!features.host_permission_tables, u64::MAX),
            bits(63, 16) | beyond_domain_id | mask_if(!features.host_permission_tables, u64::MAX),
            u64::MAX,
            u64::MAX,
        ]
    }

    /// The meaning of the entry, if a unit with these features accepts it.
    ///
    /// Checks Present, then reserved bits, then translation type, address width and paging mode,
    /// last the reach of a nested first-stage root. Memory types (`CD`, `EMTE`, `PAT`) are checked
    /// for reserved bits only.
    pub fn decode<A: PhysicalAddress>(
        &self,
        features: &TableFeatures,
    ) -> Result<ValidPasidEntry<A>, PasidEntryFault> {
        if !self.is_present() {
            return Err(PasidEntryFault::NotPresent);
        }
        let translation_type = TranslationType::from_field(self.field::<8, 6>());
        let reserved = Self::reserved(translation_type, features);
        if let Some((quadword, bits)) = first_reserved(&self.0, &reserved) {
            return Err(PasidEntryFault::ReservedNonZero { quadword, bits });
        }
        let translation_type = translation_type
            .filter(|translation_type| translation_type.is_supported(features))
            .ok_or(PasidEntryFault::UnsupportedTranslationType(
                self.translation_type_field(),
            ))?;
        let translation = match translation_type {
            TranslationType::FirstStage => PasidTranslation::FirstStage {
                root: self.first_stage_root(),
                paging: self.paging(features)?,
                write_protect: self.is_write_protect_enabled(),
                extended_accessed: self.is_extended_accessed_enabled(),
            },
            TranslationType::SecondStage => PasidTranslation::SecondStage {
                root: self.second_stage_root(),
                width: self.width(features)?,
            },
            TranslationType::Nested => {
                let width = self.width(features)?;
                let paging = self.paging(features)?;
                let first_stage_root: Gpa = self.first_stage_root();
                if !first_stage_root.fits(width.bits().min(features.maximum_guest_address_width)) {
                    return Err(PasidEntryFault::FirstStageRootBeyondWidth(
                        first_stage_root.as_u64(),
                    ));
                }
                PasidTranslation::Nested {
                    first_stage_root,
                    paging,
                    write_protect: self.is_write_protect_enabled(),
                    extended_accessed: self.is_extended_accessed_enabled(),
                    second_stage_root: self.second_stage_root(),
                    width,
                }
            }
            TranslationType::PassThrough => PasidTranslation::PassThrough,
        };
        Ok(ValidPasidEntry {
            translation,
            domain_id: self.domain_id(),
            fault_processing_disabled: self.is_fault_processing_disabled(),
            supervisor_requests: self.is_supervisor_request_enabled(),
            page_walk_snoop: self.is_page_walk_snooped(),
            page_snoop: self.is_page_snooped(),
            second_stage_accessed_dirty: translation_type.uses_second_stage()
                && self.is_second_stage_accessed_dirty_enabled(),
        })
    }

    fn width(&self, features: &TableFeatures) -> Result<AddressWidth, PasidEntryFault> {
        AddressWidth::from_field(self.field::<4, 2>())
            .filter(|width| features.widths.contains(*width))
            .ok_or(PasidEntryFault::UnsupportedAddressWidth(
                self.address_width_field(),
            ))
    }

    fn paging(&self, features: &TableFeatures) -> Result<FirstStagePaging, PasidEntryFault> {
        FirstStagePaging::from_field(self.field::<131, 130>())
            .filter(|paging| *paging != FirstStagePaging::Level5 || features.first_stage_five_level)
            .ok_or(PasidEntryFault::UnsupportedPagingMode(
                self.paging_mode_field(),
            ))
    }
}

#[cfg(test)]
mod tests {
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
            TranslationType::SecondStage => {
                PasidEntry::second_stage(Hpa::new(0), width, domain_id, options)
            }
            TranslationType::Nested => PasidEntry::nested(
                Gpa::new(0),
                paging,
                flags,
                Hpa::new(0),
                width,
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
            Hpa::new(0x12_3456_7fff),
            AddressWidth::Bits57,
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
            Hpa::new(0x1_2345_6000),
            AddressWidth::Bits39,
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
                PasidEntry::second_stage(Hpa::new(0xa000), width, domain_id, OPTIONS),
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
                    Hpa::new(0xc000),
                    width,
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
                let entry =
                    PasidEntry([1 | translation_type << 6 | width << 2, 0, 0, 0, 0, 0, 0, 0]);
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
                    Hpa::new(0),
                    width,
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
}
