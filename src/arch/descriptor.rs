//! Descriptors of the invalidation queue (§6.5.2, §7.6.1).
//!
//! [`RawDescriptor`] is what lies in the queue, [`Descriptor`] what it asks for. A descriptor that
//! hardware would not accept has no [`Descriptor`].

use super::address::PAGE_SIZE_BYTES;
use super::capability::Features;
use super::id::{DomainId, Pasid, SourceId};
use super::register::{DescriptorWidth, QueueErrorInfo, TranslationTableMode};

const PAGE_FIELD: u64 = !(PAGE_SIZE_BYTES - 1);

/// The type codes of descriptors (§6.5.2).
mod kind {
    pub(super) const CONTEXT_CACHE: u8 = 0x1;
    pub(super) const IOTLB: u8 = 0x2;
    pub(super) const DEVICE_TLB: u8 = 0x3;
    pub(super) const INTERRUPT_ENTRY_CACHE: u8 = 0x4;
    pub(super) const WAIT: u8 = 0x5;
    pub(super) const PASID_IOTLB: u8 = 0x6;
    pub(super) const PASID_CACHE: u8 = 0x7;
    pub(super) const PASID_DEVICE_TLB: u8 = 0x8;
    pub(super) const PAGE_GROUP_RESPONSE: u8 = 0x9;
}

/// One descriptor as it lies in the queue: little-endian quadwords, lowest first.
///
/// Any bit pattern is a value of this type. A 128-bit descriptor is the first two quadwords.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RawDescriptor([u64; 4]);

/// What a descriptor asks for.
///
/// [`encode`](Self::encode) drops what a field has no room for: address bits 11:0, an address mask
/// above 63, an interrupt index mask or number of pending invalidations above 31.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Descriptor {
    /// Type 1: drop cached context entries (§6.5.2.1).
    #[doc(alias = "cc_inv_dsc")]
    ContextCache {
        /// Which ones.
        granularity: ContextGranularity,
    },
    /// Type 2: drop cached translations after a change of second-stage tables (§6.5.2.3).
    #[doc(alias = "iotlb_inv_dsc")]
    Iotlb {
        /// Which ones.
        granularity: IotlbGranularity,
        /// Drain reads first (`DR`); matters below major version 2 only.
        drain_reads: bool,
        /// Drain writes first (`DW`); matters below major version 2 only.
        drain_writes: bool,
    },
    /// Type 3: drop what a device has cached of translations without PASID (§6.5.2.5).
    #[doc(alias = "dev_tlb_inv_dsc")]
    DeviceTlb {
        /// The device.
        source_id: SourceId,
        /// The addresses.
        range: DeviceTlbRange,
        /// The device's physical function (`PFSID`); 0 unless `ECAP.DIT` is set.
        physical_function: SourceId,
        /// How many invalidations the device may have in flight (`MIP`): 0 to 31, 0 for 32.
        max_pending: u8,
    },
    /// Type 4: drop cached interrupt remapping entries (§6.5.2.7).
    #[doc(alias = "iec_inv_dsc")]
    InterruptEntryCache {
        /// Which ones.
        granularity: InterruptEntryGranularity,
    },
    /// Type 5: tell when the descriptors before this one are done (§6.5.2.9).
    ///
    /// With neither status nor interrupt it only orders.
    #[doc(alias = "inv_wait_dsc")]
    Wait {
        /// The store that tells completion (`SW`).
        status: Option<WaitStatus>,
        /// Raise the invalidation event (`IF`); after the store, if both are asked for.
        interrupt: bool,
        /// Start later descriptors only after this one is complete (`FN`).
        fence: bool,
        /// Also wait until page requests received before are in their queue (`PD`); reserved
        /// unless `ECAP.PDS` is set.
        page_request_drain: bool,
    },
    /// Type 6: drop cached translations after a change of first-stage tables (§6.5.2.4).
    #[doc(alias = "p_iotlb_inv_dsc")]
    PasidIotlb {
        /// The domain-id.
        domain_id: DomainId,
        /// The PASID; for requests without PASID the one that stands for them.
        pasid: Pasid,
        /// Which translations.
        granularity: PasidIotlbGranularity,
    },
    /// Type 7: drop cached PASID-table entries (§6.5.2.2).
    #[doc(alias = "pc_inv_dsc")]
    PasidCache {
        /// Which ones.
        granularity: PasidCacheGranularity,
    },
    /// Type 8: drop what a device has cached of translations with PASID (§6.5.2.6).
    #[doc(alias = "p_dev_tlb_inv_dsc")]
    PasidDeviceTlb {
        /// The device.
        source_id: SourceId,
        /// The PASID.
        pasid: Pasid,
        /// Translations of all of the device's PASIDs instead (`G`).
        all_pasids: bool,
        /// The addresses.
        range: DeviceTlbRange,
        /// The device's physical function (`PFSID`); 0 unless `ECAP.DIT` is set.
        physical_function: SourceId,
        /// How many invalidations the device may have in flight (`MIP`): 0 to 31, 0 for 32.
        max_pending: u8,
    },
    /// Type 9: answer a group of page requests (§7.6.1).
    #[doc(alias = "page_grp_resp_dsc")]
    PageGroupResponse {
        /// The device that asked (`RID`).
        source_id: SourceId,
        /// The PASID of the requests (`PP`, `PASID`).
        pasid: Option<Pasid>,
        /// The answer (`RC`).
        response: ResponseCode,
        /// The index of the group (`PRGI`): 9 bits.
        group_index: u16,
    },
}

/// Which cached context entries to drop.
///
/// In scalable mode they carry no domain-id: there a domain means all of them, and the domain-id of
/// a device is ignored (§6.5.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ContextGranularity {
    /// All.
    Global,
    /// Those with the domain-id.
    Domain(DomainId),
    /// Those of a device, or of several functions of one.
    Device {
        /// The device.
        source_id: SourceId,
        /// Which function bits to ignore: see [`function_mask_covers`].
        function_mask: u8,
        /// The domain-id that the entries were cached with.
        domain_id: DomainId,
    },
}

/// Whether `candidate` is a device that `source_id` names under a function mask (`FM`, §6.5.2.1).
///
/// Mask 0 ignores no bit of the function number, 1 bit 2, 2 bits 2:1, 3 bits 2:0; only the low two
/// bits of `function_mask` count.
#[doc(alias = "FM")]
#[inline]
pub const fn function_mask_covers(
    function_mask: u8,
    source_id: SourceId,
    candidate: SourceId,
) -> bool {
    let ignored = match function_mask & 3 {
        0 => 0b000,
        1 => 0b100,
        2 => 0b110,
        _ => 0b111,
    };
    (source_id.as_u16() ^ candidate.as_u16()) & !ignored == 0
}

/// Which translations to drop after a change of second-stage tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IotlbGranularity {
    /// All.
    Global,
    /// Those with the domain-id.
    Domain(DomainId),
    /// Those of some pages with the domain-id; nested and first-stage ones wherever they are.
    Page {
        /// The domain-id.
        domain_id: DomainId,
        /// The second-stage input address, in bytes, a multiple of 4 KiB.
        address: u64,
        /// The binary order of the number of pages (`AM`), at most `CAP.MAMV`: see
        /// [`page_block`].
        address_mask: u8,
        /// Only leaf entries were changed (`IH`).
        leaf_hint: bool,
    },
}

/// Which translations to drop after a change of first-stage tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PasidIotlbGranularity {
    /// All.
    All,
    /// Those of some pages.
    Page {
        /// The address as devices send it, in bytes, a multiple of 4 KiB.
        address: u64,
        /// The binary order of the number of pages (`AM`): see [`page_block`].
        address_mask: u8,
        /// Only leaf entries were changed (`IH`).
        leaf_hint: bool,
    },
}

/// Which cached PASID-table entries to drop; they go by what they were cached with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PasidCacheGranularity {
    /// All.
    Global,
    /// Those with the domain-id.
    Domain(DomainId),
    /// Those of the PASID, with the domain-id, of every device.
    Pasid {
        /// The domain-id.
        domain_id: DomainId,
        /// The PASID.
        pasid: Pasid,
    },
}

/// Which cached interrupt remapping entries to drop.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InterruptEntryGranularity {
    /// All.
    Global,
    /// An aligned run of entries.
    Index {
        /// The index of an entry.
        index: u16,
        /// How many low bits of the index to ignore (`IM`), at most `ECAP.MHMV`.
        mask: u8,
    },
}

/// The store that tells that an invalidation wait is complete.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct WaitStatus {
    /// Where (`STADDR`): a physical address in bytes, a multiple of 4.
    pub address: u64,
    /// What (`STDATA`).
    pub data: u32,
}

/// The answer to a group of page requests (`RC`, §7.6.1): 4 bits.
#[doc(alias = "RC")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ResponseCode(u8);

impl ResponseCode {
    /// All pages are there.
    pub const SUCCESS: Self = Self(0);
    /// Some page cannot be had.
    pub const INVALID_REQUEST: Self = Self(1);
    /// The device's page requests cannot be served any more.
    pub const FAILURE: Self = Self(0xf);

    /// The code in the low 4 bits of a field.
    #[inline]
    pub const fn from_field(field: u64) -> Self {
        Self(field as u8 & 0xf)
    }

    /// The value of the field.
    #[inline]
    pub const fn field(self) -> u64 {
        self.0 as u64
    }
}

/// The first and last byte of the 2^`address_mask` pages around `address`, the last one included
/// (`AM`, §6.5.2.3). Low bits of the address that the mask covers do not count.
#[doc(alias = "AM")]
#[inline]
pub const fn page_block(address: u64, address_mask: u8) -> (u64, u64) {
    let within = match PAGE_SIZE_BYTES.checked_shl(address_mask as u32) {
        // Bits that leave the address space make the length 0, and the block all of it.
        Some(len_bytes) => len_bytes.wrapping_sub(1),
        None => u64::MAX,
    };
    (address & !within, address | within)
}

/// A naturally aligned block of addresses in a device-TLB invalidation (`S` and `ADDR`, §6.5.2.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeviceTlbRange {
    /// `ADDR`, where the block's size is coded too.
    address: u64,
    /// `S`: the block has more than one page.
    is_sized: bool,
}

impl DeviceTlbRange {
    /// All addresses.
    pub const ALL: Self = Self {
        address: 0x7fff_ffff_ffff_f000,
        is_sized: true,
    };

    /// The page that holds `address`, in bytes.
    #[inline]
    pub const fn page(address: u64) -> Self {
        Self {
            address: address & PAGE_FIELD,
            is_sized: false,
        }
    }

    /// The aligned block of 2^`order` pages that holds `address`, in bytes; 52 or more gives all.
    pub const fn block(address: u64, order: u8) -> Self {
        match order {
            0 => Self::page(address),
            1..52 => {
                // A 0 in the highest bit of the offset within the block ends the row of 1s that
                // tells the size.
                let half = PAGE_SIZE_BYTES << (order - 1);
                Self {
                    address: (address & !half | (half - 1)) & PAGE_FIELD,
                    is_sized: true,
                }
            }
            _ => Self::ALL,
        }
    }

    /// The block that a descriptor's `ADDR` (bits 63:12 of `field`) and `S` name.
    #[inline]
    const fn from_fields(field: u64, is_sized: bool) -> Self {
        Self {
            address: field & PAGE_FIELD,
            is_sized,
        }
    }

    /// The binary order of the number of pages: 0 to 52.
    pub const fn order(self) -> u8 {
        if !self.is_sized {
            return 0;
        }
        let order = (self.address >> 12).trailing_ones() as u8 + 1;
        if order > 52 { 52 } else { order }
    }

    /// The first address of the block, in bytes.
    #[inline]
    pub const fn start(self) -> u64 {
        page_block(self.address, self.order()).0
    }

    /// The last address of the block, in bytes.
    #[inline]
    pub const fn last(self) -> u64 {
        page_block(self.address, self.order()).1
    }
}

/// Why hardware stops at a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DescriptorError {
    /// The root table address names a mode that is reserved or absent.
    TableMode(TranslationTableMode),
    /// This width does not go with the mode and the unit.
    Width(DescriptorWidth),
    /// The type is undefined, needs the other width or another mode, or belongs to an absent
    /// feature.
    Type(u8),
    /// Reserved bits are set.
    Reserved {
        /// Which quadword: 0 to 3.
        word: u8,
        /// The reserved bits that are set.
        bits: u64,
    },
    /// The granularity (`G`) is undefined for this type.
    Granularity {
        /// The type.
        kind: u8,
        /// The granularity.
        granularity: u8,
    },
    /// The address mask of a type 2 descriptor exceeds `CAP.MAMV`.
    AddressMask {
        /// The mask (`AM`).
        mask: u8,
        /// The largest mask.
        maximum: u8,
    },
    /// The index mask of a type 4 descriptor exceeds `ECAP.MHMV`.
    InterruptIndexMask {
        /// The mask (`IM`).
        mask: u8,
        /// The largest mask.
        maximum: u8,
    },
}

impl DescriptorError {
    /// What the queue's error record says of it (`IQEI`, §11.4.9.9).
    ///
    /// The specification has no code of its own for an undefined granularity or an overlarge mask:
    /// these are reported like a reserved bit.
    #[doc(alias = "IQEI")]
    pub const fn queue_error(self) -> QueueErrorInfo {
        match self {
            Self::TableMode(_) => QueueErrorInfo::InvalidTableMode,
            Self::Width(_) => QueueErrorInfo::InvalidWidth,
            Self::Type(_) => QueueErrorInfo::InvalidType,
            Self::Reserved { .. }
            | Self::Granularity { .. }
            | Self::AddressMask { .. }
            | Self::InterruptIndexMask { .. } => QueueErrorInfo::ReservedBit,
        }
    }
}

/// Whether a queue of this descriptor width can run at all in this mode (§6.5.2, §11.4.9.9).
///
/// 256-bit descriptors go with legacy mode too, as long as the unit knows scalable or abort-DMA
/// mode.
pub const fn validate_queue(
    width: DescriptorWidth,
    table_mode: TranslationTableMode,
    features: &Features,
) -> Result<(), DescriptorError> {
    let has_scalable = features.extended.has_scalable_mode();
    let has_abort = features.extended.has_abort_dma_mode();
    match (table_mode, width) {
        (TranslationTableMode::Reserved, _) => Err(DescriptorError::TableMode(table_mode)),
        (TranslationTableMode::Scalable, _) if !has_scalable => {
            Err(DescriptorError::TableMode(table_mode))
        }
        (TranslationTableMode::AbortDma, _) if !has_abort => {
            Err(DescriptorError::TableMode(table_mode))
        }
        (_, DescriptorWidth::Bits256) if !has_scalable && !has_abort => {
            Err(DescriptorError::Width(width))
        }
        (
            TranslationTableMode::Scalable | TranslationTableMode::AbortDma,
            DescriptorWidth::Bits128,
        ) => Err(DescriptorError::Width(width)),
        _ => Ok(()),
    }
}

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

const fn is_set(word: u64, bit: u32) -> bool {
    word >> (bit & 63) & 1 == 1
}

/// The reserved bits of the first two quadwords, or `None` for a type that is not valid here
/// (§6.5.2, Table 26).
const fn reserved_bits(
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

const fn domain_id_field(domain_id: DomainId) -> u64 {
    (domain_id.as_u16() as u64) << 16
}

const fn pasid_field(pasid: Pasid) -> u64 {
    (pasid.as_u32() as u64) << 32
}

/// `PFSID` 3:0 in bits 15:12, `PFSID` 15:4 in bits 63:52.
const fn physical_function_field(source_id: SourceId) -> u64 {
    let value = source_id.as_u16() as u64;
    (value & 0xf) << 12 | (value >> 4) << 52
}

const fn page_fields(address: u64, address_mask: u8, leaf_hint: bool) -> u64 {
    address & PAGE_FIELD | (leaf_hint as u64) << 6 | address_mask as u64 & 0x3f
}
