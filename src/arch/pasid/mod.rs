//! PASID-directory and PASID-table entries (§9.5, §9.6).

mod decode;
mod directory;
mod fault;
#[cfg(test)]
mod tests;

use super::address::{AddressWidth, FirstStagePaging, Gpa, PhysicalAddress};
use super::features::TableFeatures;
use super::id::DomainId;
use super::quadwords::{bits, mask_if, table_entry};
use super::second_stage::SecondStagePointer;

pub use directory::{PasidDirectoryEntry, PasidDirectoryEntryFault};
pub use fault::PasidEntryFault;

const PRESENT: u64 = 1;
const POINTER: u64 = bits(63, 12);

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
        root: SecondStagePointer,
        domain_id: DomainId,
        options: PasidEntryOptions,
    ) -> Self {
        Self::with_common(TranslationType::SecondStage, domain_id, options).with_second_stage(
            root.address().as_u64(),
            root.width(),
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
        second_stage: SecondStagePointer,
        domain_id: DomainId,
        options: PasidEntryOptions,
    ) -> Self {
        Self::with_common(TranslationType::Nested, domain_id, options)
            .with_second_stage(
                second_stage.address().as_u64(),
                second_stage.width(),
                options,
            )
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
}
