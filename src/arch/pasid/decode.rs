//! What a PASID-table entry means, and which bits a unit reserves.

use crate::arch::address::{AddressWidth, FirstStagePaging, Gpa, PhysicalAddress};
use crate::arch::features::TableFeatures;
use crate::arch::quadwords::{beyond, bits, first_reserved, mask_if};

use super::{
    POINTER, PasidEntry, PasidEntryFault, PasidTranslation, TranslationType, ValidPasidEntry,
};

impl PasidEntry {
    /// The bits that are reserved in a present entry of this type on a unit with these features.
    ///
    /// What belongs to an absent feature is reserved for every type; what a type ignores is not,
    /// if the feature is there.
    pub(super) fn reserved(
        translation_type: Option<TranslationType>,
        features: &TableFeatures,
    ) -> [u64; 8] {
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

    pub(super) fn width(&self, features: &TableFeatures) -> Result<AddressWidth, PasidEntryFault> {
        AddressWidth::from_field(self.field::<4, 2>())
            .filter(|width| features.widths.contains(*width))
            .ok_or(PasidEntryFault::UnsupportedAddressWidth(
                self.address_width_field(),
            ))
    }

    pub(super) fn paging(
        &self,
        features: &TableFeatures,
    ) -> Result<FirstStagePaging, PasidEntryFault> {
        FirstStagePaging::from_field(self.field::<131, 130>())
            .filter(|paging| *paging != FirstStagePaging::Level5 || features.first_stage_five_level)
            .ok_or(PasidEntryFault::UnsupportedPagingMode(
                self.paging_mode_field(),
            ))
    }
}
