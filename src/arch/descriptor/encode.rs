//! From meaning to bits.

use crate::arch::id::{DomainId, Pasid, SourceId};

use super::{
    ContextGranularity, Descriptor, InterruptEntryGranularity, IotlbGranularity, PAGE_FIELD,
    PasidCacheGranularity, PasidIotlbGranularity, RawDescriptor, WaitStatus, kind,
};

impl Descriptor {
    /// The descriptor as it goes into the queue; types 1 to 5 also fit a 128-bit queue.
    pub const fn encode(self) -> RawDescriptor {
        let (q0, q1) = match self {
            Self::ContextCache { granularity } => {
                let kind = kind::CONTEXT_CACHE as u64;
                match granularity {
                    ContextGranularity::Global => (kind | 1 << 4, 0),
                    ContextGranularity::Domain(domain_id) => {
                        (kind | 2 << 4 | domain_id_field(domain_id), 0)
                    }
                    ContextGranularity::Device {
                        source_id,
                        function_mask,
                        domain_id,
                    } => (
                        kind | 3 << 4
                            | domain_id_field(domain_id)
                            | (source_id.as_u16() as u64) << 32
                            | (function_mask as u64 & 3) << 48,
                        0,
                    ),
                }
            }
            Self::Iotlb {
                granularity,
                drain_reads,
                drain_writes,
            } => {
                let head =
                    kind::IOTLB as u64 | (drain_writes as u64) << 6 | (drain_reads as u64) << 7;
                match granularity {
                    IotlbGranularity::Global => (head | 1 << 4, 0),
                    IotlbGranularity::Domain(domain_id) => {
                        (head | 2 << 4 | domain_id_field(domain_id), 0)
                    }
                    IotlbGranularity::Page {
                        domain_id,
                        address,
                        address_mask,
                        leaf_hint,
                    } => (
                        head | 3 << 4 | domain_id_field(domain_id),
                        page_fields(address, address_mask, leaf_hint),
                    ),
                }
            }
            Self::DeviceTlb {
                source_id,
                range,
                physical_function,
                max_pending,
            } => (
                kind::DEVICE_TLB as u64
                    | physical_function_field(physical_function)
                    | (max_pending as u64 & 0x1f) << 16
                    | (source_id.as_u16() as u64) << 32,
                range.address | range.is_sized as u64,
            ),
            Self::InterruptEntryCache { granularity } => {
                let kind = kind::INTERRUPT_ENTRY_CACHE as u64;
                match granularity {
                    InterruptEntryGranularity::Global => (kind, 0),
                    InterruptEntryGranularity::Index { index, mask } => (
                        kind | 1 << 4 | (mask as u64 & 0x1f) << 27 | (index as u64) << 32,
                        0,
                    ),
                }
            }
            Self::Wait {
                status,
                interrupt,
                fence,
                page_request_drain,
            } => {
                let head = kind::WAIT as u64
                    | (interrupt as u64) << 4
                    | (fence as u64) << 6
                    | (page_request_drain as u64) << 7;
                match status {
                    Some(WaitStatus { address, data }) => {
                        (head | 1 << 5 | (data as u64) << 32, address & !3)
                    }
                    None => (head, 0),
                }
            }
            Self::PasidIotlb {
                domain_id,
                pasid,
                granularity,
            } => {
                let head =
                    kind::PASID_IOTLB as u64 | domain_id_field(domain_id) | pasid_field(pasid);
                match granularity {
                    PasidIotlbGranularity::All => (head | 2 << 4, 0),
                    PasidIotlbGranularity::Page {
                        address,
                        address_mask,
                        leaf_hint,
                    } => (head | 3 << 4, page_fields(address, address_mask, leaf_hint)),
                }
            }
            Self::PasidCache { granularity } => {
                let kind = kind::PASID_CACHE as u64;
                match granularity {
                    PasidCacheGranularity::Domain(domain_id) => {
                        (kind | domain_id_field(domain_id), 0)
                    }
                    PasidCacheGranularity::Pasid { domain_id, pasid } => (
                        kind | 1 << 4 | domain_id_field(domain_id) | pasid_field(pasid),
                        0,
                    ),
                    PasidCacheGranularity::Global => (kind | 3 << 4, 0),
                }
            }
            Self::PasidDeviceTlb {
                source_id,
                pasid,
                all_pasids,
                range,
                physical_function,
                max_pending,
            } => (
                kind::PASID_DEVICE_TLB as u64
                    | (max_pending as u64 & 0x1f) << 4
                    | physical_function_field(physical_function)
                    | (source_id.as_u16() as u64) << 16
                    | pasid_field(pasid),
                range.address | (range.is_sized as u64) << 11 | all_pasids as u64,
            ),
            Self::PageGroupResponse {
                source_id,
                pasid,
                response,
                group_index,
            } => {
                let pasid = match pasid {
                    Some(pasid) => 1 << 4 | pasid_field(pasid),
                    None => 0,
                };
                (
                    kind::PAGE_GROUP_RESPONSE as u64
                        | response.field() << 12
                        | (source_id.as_u16() as u64) << 16
                        | pasid,
                    (group_index as u64 & 0x1ff) << 3,
                )
            }
        };
        RawDescriptor([q0, q1, 0, 0])
    }
}

pub(super) const fn domain_id_field(domain_id: DomainId) -> u64 {
    (domain_id.as_u16() as u64) << 16
}

pub(super) const fn pasid_field(pasid: Pasid) -> u64 {
    (pasid.as_u32() as u64) << 32
}

/// `PFSID` 3:0 in bits 15:12, `PFSID` 15:4 in bits 63:52.
pub(super) const fn physical_function_field(source_id: SourceId) -> u64 {
    let value = source_id.as_u16() as u64;
    (value & 0xf) << 12 | (value >> 4) << 52
}

pub(super) const fn page_fields(address: u64, address_mask: u8, leaf_hint: bool) -> u64 {
    address & PAGE_FIELD | (leaf_hint as u64) << 6 | address_mask as u64 & 0x3f
}
