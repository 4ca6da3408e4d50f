//! From bits to meaning.

use crate::arch::capability::Features;
use crate::arch::id::{DomainId, Pasid, SourceId};
use crate::arch::register::{DescriptorWidth, TranslationTableMode};

use super::{
    ContextGranularity, Descriptor, DescriptorError, DeviceTlbRange, InterruptEntryGranularity,
    IotlbGranularity, PAGE_FIELD, PasidCacheGranularity, PasidIotlbGranularity, RawDescriptor,
    ResponseCode, WaitStatus, kind, validate_queue,
};

impl RawDescriptor {
    /// The descriptor with these quadwords, lowest first; a 128-bit one leaves the last two 0.
    #[inline]
    pub const fn from_words(words: [u64; 4]) -> Self {
        Self(words)
    }

    /// The quadwords, lowest first.
    #[inline]
    pub const fn words(self) -> [u64; 4] {
        self.0
    }

    /// The type code: bits 11:9 above bits 3:0.
    #[inline]
    pub const fn kind(self) -> u8 {
        let word = self.0[0];
        (word & 0xf | (word >> 9 & 7) << 4) as u8
    }

    /// What a unit with these features, in this mode, with a queue of this width, takes the
    /// descriptor for, or why it stops at it.
    ///
    /// Bits that the unit ignores are gone from the result: those of a domain-id beyond `CAP.ND`,
    /// and those of a wait's status address at and above the host address width.
    pub const fn decode(
        &self,
        width: DescriptorWidth,
        table_mode: TranslationTableMode,
        features: &Features,
    ) -> Result<Descriptor, DescriptorError> {
        if let Err(error) = validate_queue(width, table_mode, features) {
            return Err(error);
        }
        let kind = self.kind();
        let Some(reserved) = reserved_bits(kind, width, table_mode, features) else {
            return Err(DescriptorError::Type(kind));
        };
        let [q0, q1, q2, q3] = self.0;
        if q0 & reserved.0 != 0 {
            return Err(DescriptorError::Reserved {
                word: 0,
                bits: q0 & reserved.0,
            });
        }
        if q1 & reserved.1 != 0 {
            return Err(DescriptorError::Reserved {
                word: 1,
                bits: q1 & reserved.1,
            });
        }
        if matches!(width, DescriptorWidth::Bits256) {
            if q2 != 0 {
                return Err(DescriptorError::Reserved { word: 2, bits: q2 });
            }
            if q3 != 0 {
                return Err(DescriptorError::Reserved { word: 3, bits: q3 });
            }
        }

        let granularity = (q0 >> 4 & 3) as u8;
        let undefined_granularity = Err(DescriptorError::Granularity { kind, granularity });
        let domain_id = features
            .capability
            .truncate_domain_id(DomainId::new((q0 >> 16) as u16));
        let pasid = Pasid::from_field(q0 >> 32);
        let address = q1 & PAGE_FIELD;
        let address_mask = (q1 & 0x3f) as u8;
        let leaf_hint = is_set(q1, 6);
        let physical_function =
            SourceId::from_u16((q0 >> 12 & 0xf | (q0 >> 52 & 0xfff) << 4) as u16);

        Ok(match kind {
            kind::CONTEXT_CACHE => Descriptor::ContextCache {
                granularity: match granularity {
                    1 => ContextGranularity::Global,
                    2 => ContextGranularity::Domain(domain_id),
                    3 => ContextGranularity::Device {
                        source_id: SourceId::from_u16((q0 >> 32) as u16),
                        function_mask: (q0 >> 48 & 3) as u8,
                        domain_id,
                    },
                    _ => return undefined_granularity,
                },
            },
            kind::IOTLB => Descriptor::Iotlb {
                granularity: match granularity {
                    1 => IotlbGranularity::Global,
                    2 => IotlbGranularity::Domain(domain_id),
                    3 if features.capability.has_page_selective_invalidation() => {
                        let maximum = features.capability.maximum_address_mask();
                        if address_mask > maximum {
                            return Err(DescriptorError::AddressMask {
                                mask: address_mask,
                                maximum,
                            });
                        }
                        IotlbGranularity::Page {
                            domain_id,
                            address,
                            address_mask,
                            leaf_hint,
                        }
                    }
                    _ => return undefined_granularity,
                },
                drain_reads: is_set(q0, 7),
                drain_writes: is_set(q0, 6),
            },
            kind::DEVICE_TLB => Descriptor::DeviceTlb {
                source_id: SourceId::from_u16((q0 >> 32) as u16),
                range: DeviceTlbRange::from_fields(q1, is_set(q1, 0)),
                physical_function,
                max_pending: (q0 >> 16 & 0x1f) as u8,
            },
            kind::INTERRUPT_ENTRY_CACHE => Descriptor::InterruptEntryCache {
                granularity: if is_set(q0, 4) {
                    let mask = (q0 >> 27 & 0x1f) as u8;
                    let maximum = features.extended.maximum_handle_mask();
                    if mask > maximum {
                        return Err(DescriptorError::InterruptIndexMask { mask, maximum });
                    }
                    InterruptEntryGranularity::Index {
                        index: (q0 >> 32) as u16,
                        mask,
                    }
                } else {
                    InterruptEntryGranularity::Global
                },
            },
            kind::WAIT => Descriptor::Wait {
                status: if is_set(q0, 5) {
                    // Aligned by the reserved bits 1:0.
                    let beyond = features.reserved_address_bits();
                    Some(WaitStatus {
                        address: q1 & !beyond,
                        data: (q0 >> 32) as u32,
                    })
                } else {
                    None
                },
                interrupt: is_set(q0, 4),
                fence: is_set(q0, 6),
                page_request_drain: is_set(q0, 7),
            },
            kind::PASID_IOTLB => Descriptor::PasidIotlb {
                domain_id,
                pasid,
                granularity: match granularity {
                    2 => PasidIotlbGranularity::All,
                    3 => PasidIotlbGranularity::Page {
                        address,
                        address_mask,
                        leaf_hint,
                    },
                    _ => return undefined_granularity,
                },
            },
            kind::PASID_CACHE => Descriptor::PasidCache {
                granularity: match granularity {
                    0 => PasidCacheGranularity::Domain(domain_id),
                    1 => PasidCacheGranularity::Pasid { domain_id, pasid },
                    3 => PasidCacheGranularity::Global,
                    _ => return undefined_granularity,
                },
            },
            kind::PASID_DEVICE_TLB => Descriptor::PasidDeviceTlb {
                source_id: SourceId::from_u16((q0 >> 16) as u16),
                pasid,
                all_pasids: is_set(q1, 0),
                range: DeviceTlbRange::from_fields(q1, is_set(q1, 11)),
                physical_function,
                max_pending: (q0 >> 4 & 0x1f) as u8,
            },
            kind::PAGE_GROUP_RESPONSE => Descriptor::PageGroupResponse {
                source_id: SourceId::from_u16((q0 >> 16) as u16),
                pasid: if is_set(q0, 4) { Some(pasid) } else { None },
                response: ResponseCode::from_field(q0 >> 12),
                group_index: (q1 >> 3 & 0x1ff) as u16,
            },
            _ => return Err(DescriptorError::Type(kind)),
        })
    }
}

pub(super) const fn is_set(word: u64, bit: u32) -> bool {
    word >> (bit & 63) & 1 == 1
}

/// The reserved bits of the first two quadwords, or `None` for a type that is not valid here
/// (§6.5.2, Table 26).
pub(super) const fn reserved_bits(
    kind: u8,
    width: DescriptorWidth,
    table_mode: TranslationTableMode,
    features: &Features,
) -> Option<(u64, u64)> {
    let extended = features.extended;
    // Types above 5 have no 128-bit form, nor a meaning in legacy mode.
    let is_long_allowed = matches!(width, DescriptorWidth::Bits256)
        && !matches!(table_mode, TranslationTableMode::Legacy);
    Some(match kind {
        kind::CONTEXT_CACHE => (0xfffc_0000_0000_f1c0, u64::MAX),
        kind::IOTLB => (0xffff_ffff_0000_f100, 0xf80),
        kind::DEVICE_TLB if extended.has_device_tlb() => {
            if extended.has_device_tlb_throttling() {
                (0x000f_0000_ffe0_01f0, 0xffe)
            } else {
                (0xffff_0000_ffe0_f1f0, 0xffe)
            }
        }
        kind::INTERRUPT_ENTRY_CACHE => (0xffff_0000_07ff_f1e0, u64::MAX),
        kind::WAIT => {
            if extended.has_page_request_drain() {
                (0xffff_f100, 3)
            } else {
                (0xffff_f180, 3)
            }
        }
        kind::PASID_IOTLB if is_long_allowed => (0xfff0_0000_0000_f1c0, 0xf80),
        kind::PASID_CACHE if is_long_allowed => (0xfff0_0000_0000_f1c0, u64::MAX),
        kind::PASID_DEVICE_TLB if is_long_allowed && extended.has_device_tlb() => {
            if extended.has_device_tlb_throttling() {
                (0, 0x7fe)
            } else {
                (0xfff0_0000_0000_f000, 0x7fe)
            }
        }
        kind::PAGE_GROUP_RESPONSE if is_long_allowed && extended.has_page_requests() => {
            (0xfff0_0000_0000_01e0, 0xffff_ffff_ffff_f003)
        }
        // Host permission tables (type A) are not supported by this crate.
        _ => return None,
    })
}
