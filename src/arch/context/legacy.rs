//! Context entries of legacy mode (§9.3).

use crate::arch::address::{AddressWidth, PhysicalAddress};
use crate::arch::features::TableFeatures;
use crate::arch::id::{DomainId, SourceId};
use crate::arch::quadwords::{beyond, bits, first_reserved, mask_if, table_entry};
use crate::arch::told::{Told, display_as_told};

use super::{POINTER, PRESENT};

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
    pub(super) const TRANSLATION_TYPE_DEVICE_TLB: u64 = 1;
    pub(super) const TRANSLATION_TYPE_PASS_THROUGH: u64 = 2;

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
