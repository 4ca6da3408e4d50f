//! Descriptors of the invalidation queue (§6.5.2, §7.6.1).
//!
//! [`RawDescriptor`] is what lies in the queue, [`Descriptor`] what it asks for. A descriptor that
//! hardware would not accept has no [`Descriptor`].

use super::address::PAGE_SIZE_BYTES;
use super::capability::Features;
use super::id::{DomainId, Pasid, SourceId};
use super::register::{DescriptorWidth, QueueErrorInfo, TranslationTableMode};
use super::told::{Told, display_as_told};

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
    /// Type 4: drop cached interrupt remapping entries (§6.5.2).
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
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::TableMode(mode) => Told::one("table mode", mode.field()),
            Self::Width(width) => Told::one("descriptor width", width as u64),
            Self::Type(kind) => Told::one("type", kind as u64),
            Self::Reserved { word, bits } => Told::two("reserved bits of word", word as u64, bits),
            Self::Granularity { kind, granularity } => {
                Told::two("granularity of type", kind as u64, granularity as u64)
            }
            Self::AddressMask { mask, maximum } => {
                Told::two("address mask beyond maximum", mask as u64, maximum as u64)
            }
            Self::InterruptIndexMask { mask, maximum } => {
                Told::two("index mask beyond maximum", mask as u64, maximum as u64)
            }
        }
    }
}

display_as_told!(DescriptorError);

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::capability::{
        Capability, CapabilityField, ExtendedCapability, ExtendedCapabilityField,
    };
    use DescriptorWidth::{Bits128, Bits256};
    use TranslationTableMode::{AbortDma, Legacy, Scalable};

    const DEVICE: SourceId = SourceId::from_u16(0x0310);
    const FUNCTION: SourceId = SourceId::from_u16(0xabcd);
    const DOMAIN: DomainId = DomainId::new(0x1234);

    fn pasid(value: u32) -> Pasid {
        Pasid::new(value).unwrap()
    }

    /// A unit with everything that descriptors depend on.
    fn full() -> Features {
        Features {
            capability: Capability::default()
                .with(CapabilityField::DOMAIN_ID_WIDTH, 6)
                .with(CapabilityField::PAGE_SELECTIVE_INVALIDATION, 1)
                .with(CapabilityField::MAXIMUM_ADDRESS_MASK, 63),
            extended: ExtendedCapability::from_bits(ExtendedCapability::DEFINED),
            host_address_width: 64,
        }
    }

    fn without(field: ExtendedCapabilityField) -> Features {
        let features = full();
        Features {
            extended: features.extended.with(field, 0),
            ..features
        }
    }

    fn raw(q0: u64, q1: u64) -> RawDescriptor {
        RawDescriptor::from_words([q0, q1, 0, 0])
    }

    fn decode(q0: u64, q1: u64) -> Result<Descriptor, DescriptorError> {
        raw(q0, q1).decode(Bits256, Scalable, &full())
    }

    fn wait(status: Option<WaitStatus>, flags: [bool; 3]) -> Descriptor {
        let [interrupt, fence, page_request_drain] = flags;
        Descriptor::Wait {
            status,
            interrupt,
            fence,
            page_request_drain,
        }
    }

    /// Descriptors with the two quadwords that §6.5.2 and §7.6.1 give them.
    fn golden() -> [(Descriptor, u64, u64); 34] {
        let context = |granularity| Descriptor::ContextCache { granularity };
        let iotlb = |granularity, drain_reads, drain_writes| Descriptor::Iotlb {
            granularity,
            drain_reads,
            drain_writes,
        };
        let entry = |granularity| Descriptor::InterruptEntryCache { granularity };
        let pasid_cache = |granularity| Descriptor::PasidCache { granularity };
        let pasid_iotlb = |granularity| Descriptor::PasidIotlb {
            domain_id: DOMAIN,
            pasid: pasid(0xf_edcb),
            granularity,
        };
        let page = |address, address_mask, leaf_hint| IotlbGranularity::Page {
            domain_id: DOMAIN,
            address,
            address_mask,
            leaf_hint,
        };
        let device_tlb = |range, physical_function, max_pending| Descriptor::DeviceTlb {
            source_id: DEVICE,
            range,
            physical_function,
            max_pending,
        };
        let pasid_device_tlb =
            |range, all_pasids, physical_function, max_pending| Descriptor::PasidDeviceTlb {
                source_id: DEVICE,
                pasid: pasid(0xf_edcb),
                all_pasids,
                range,
                physical_function,
                max_pending,
            };
        let response = |pasid, response, group_index| Descriptor::PageGroupResponse {
            source_id: DEVICE,
            pasid,
            response,
            group_index,
        };
        let none = SourceId::from_u16(0);
        let status = Some(WaitStatus {
            address: 0xffff_ffff_ffff_fffc,
            data: 2,
        });
        let word = 0xffff_ffff_ffff_fffc;
        let all = 0x7fff_ffff_ffff_f000;
        [
            (context(ContextGranularity::Global), 0x11, 0),
            (context(ContextGranularity::Domain(DOMAIN)), 0x1234_0021, 0),
            (
                context(ContextGranularity::Device {
                    source_id: DEVICE,
                    function_mask: 3,
                    domain_id: DOMAIN,
                }),
                0x0003_0310_1234_0031,
                0,
            ),
            (iotlb(IotlbGranularity::Global, false, false), 0x12, 0),
            (iotlb(IotlbGranularity::Global, true, true), 0xd2, 0),
            (iotlb(IotlbGranularity::Global, true, false), 0x92, 0),
            (iotlb(IotlbGranularity::Global, false, true), 0x52, 0),
            (
                iotlb(IotlbGranularity::Domain(DOMAIN), true, true),
                0x1234_00e2,
                0,
            ),
            (
                iotlb(page(0x7fff_ffff_f000, 18, false), true, true),
                0x1234_00f2,
                0x7fff_ffff_f012,
            ),
            (
                iotlb(page(0x1000, 63, true), false, false),
                0x1234_0032,
                0x107f,
            ),
            (
                device_tlb(DeviceTlbRange::ALL, none, 0),
                0x0310_0000_0003,
                all | 1,
            ),
            (
                device_tlb(DeviceTlbRange::page(0x1_2345_6789), FUNCTION, 31),
                0xabc0_0310_001f_d003,
                0x1_2345_6000,
            ),
            (
                device_tlb(DeviceTlbRange::block(0x0020_0000, 9), none, 16),
                0x0310_0010_0003,
                0x002f_f001,
            ),
            (entry(InterruptEntryGranularity::Global), 0x04, 0),
            (
                entry(InterruptEntryGranularity::Index {
                    index: 0xbeef,
                    mask: 15,
                }),
                0xbeef_7800_0014,
                0,
            ),
            (wait(status, [false; 3]), 0x2_0000_0025, word),
            (wait(None, [true, false, false]), 0x15, 0),
            (wait(status, [true, false, false]), 0x2_0000_0035, word),
            (wait(status, [false, true, false]), 0x2_0000_0065, word),
            (wait(status, [false, false, true]), 0x2_0000_00a5, word),
            (wait(None, [false, true, false]), 0x45, 0),
            (wait(None, [false; 3]), 0x05, 0),
            (
                pasid_iotlb(PasidIotlbGranularity::All),
                0x000f_edcb_1234_0026,
                0,
            ),
            (
                pasid_iotlb(PasidIotlbGranularity::Page {
                    address: 0xffff_8000_0000_0000,
                    address_mask: 9,
                    leaf_hint: true,
                }),
                0x000f_edcb_1234_0036,
                0xffff_8000_0000_0049,
            ),
            (
                pasid_cache(PasidCacheGranularity::Domain(DOMAIN)),
                0x1234_0007,
                0,
            ),
            (
                pasid_cache(PasidCacheGranularity::Pasid {
                    domain_id: DOMAIN,
                    pasid: pasid(0xf_edcb),
                }),
                0x000f_edcb_1234_0017,
                0,
            ),
            (pasid_cache(PasidCacheGranularity::Global), 0x37, 0),
            (
                pasid_device_tlb(DeviceTlbRange::ALL, false, none, 0),
                0x000f_edcb_0310_0008,
                all | 1 << 11,
            ),
            (
                pasid_device_tlb(DeviceTlbRange::ALL, true, none, 0),
                0x000f_edcb_0310_0008,
                all | 1 << 11 | 1,
            ),
            (
                pasid_device_tlb(DeviceTlbRange::page(0x5000), false, FUNCTION, 31),
                0xabcf_edcb_0310_d1f8,
                0x5000,
            ),
            (
                response(Some(pasid(0xf_edcb)), ResponseCode::INVALID_REQUEST, 0x1ff),
                0x000f_edcb_0310_1019,
                0xff8,
            ),
            (response(None, ResponseCode::SUCCESS, 1), 0x0310_0009, 0x8),
            (
                response(Some(Pasid::ZERO), ResponseCode::SUCCESS, 0),
                0x0310_0019,
                0,
            ),
            (response(None, ResponseCode::FAILURE, 0), 0x0310_f009, 0),
        ]
    }

    #[test]
    fn descriptors_match_golden_values_both_ways() {
        for (descriptor, q0, q1) in golden() {
            assert_eq!(descriptor.encode(), raw(q0, q1), "{descriptor:x?}");
            assert_eq!(decode(q0, q1), Ok(descriptor), "{q0:#x} {q1:#x}");
            let in_abort = raw(q0, q1).decode(Bits256, AbortDma, &full());
            assert_eq!(in_abort, Ok(descriptor));
        }
    }

    /// What Table 26 says of each defined type, with the reserved bits of its two quadwords.
    struct Row {
        kind: u64,
        /// A granularity that is valid, in place.
        granularity: u64,
        features: Features,
        q0: u64,
        q1: u64,
    }

    fn reserved_rows() -> [Row; 12] {
        use ExtendedCapabilityField as E;
        let row = |kind, granularity, features, q0, q1| Row {
            kind,
            granularity,
            features,
            q0,
            q1,
        };
        let all = u64::MAX;
        [
            row(1, 0x10, full(), 0xfffc_0000_0000_f1c0, all),
            row(2, 0x10, full(), 0xffff_ffff_0000_f100, 0xf80),
            row(3, 0, full(), 0x000f_0000_ffe0_01f0, 0xffe),
            row(
                3,
                0,
                without(E::DEVICE_TLB_THROTTLING),
                0xffff_0000_ffe0_f1f0,
                0xffe,
            ),
            row(4, 0, full(), 0xffff_0000_07ff_f1e0, all),
            row(5, 0, full(), 0x0000_0000_ffff_f100, 0x3),
            row(
                5,
                0,
                without(E::PAGE_REQUEST_DRAIN),
                0x0000_0000_ffff_f180,
                0x3,
            ),
            row(6, 0x20, full(), 0xfff0_0000_0000_f1c0, 0xf80),
            row(7, 0, full(), 0xfff0_0000_0000_f1c0, all),
            row(8, 0, full(), 0, 0x7fe),
            row(
                8,
                0,
                without(E::DEVICE_TLB_THROTTLING),
                0xfff0_0000_0000_f000,
                0x7fe,
            ),
            row(9, 0, full(), 0xfff0_0000_0000_01e0, 0xffff_ffff_ffff_f003),
        ]
    }

    #[test]
    fn every_reserved_bit_is_refused_and_no_other() {
        for row in reserved_rows() {
            let q0 = row.kind | row.granularity;
            let decode =
                |words| RawDescriptor::from_words(words).decode(Bits256, Scalable, &row.features);
            assert!(decode([q0, 0, 0, 0]).is_ok(), "type {}", row.kind);
            for bit in 0..64 {
                let mask = 1 << bit;
                let refused = |word| Err(DescriptorError::Reserved { word, bits: mask });
                let place = (row.kind, bit);
                assert_eq!(decode([q0, 0, mask, 0]), refused(2), "{place:?}");
                assert_eq!(decode([q0, 0, 0, mask]), refused(3), "{place:?}");
                let result = decode([q0, mask, 0, 0]);
                if row.q1 & mask != 0 {
                    assert_eq!(result, refused(1), "{place:?}");
                } else {
                    assert!(result.is_ok(), "{place:?}");
                }
                let is_type = 0xe0f & mask != 0;
                let is_granularity = row.granularity != 0 && 0x30 & mask != 0;
                if is_type || is_granularity {
                    continue;
                }
                let result = decode([q0 | mask, 0, 0, 0]);
                if row.q0 & mask != 0 {
                    assert_eq!(result, refused(0), "{place:?}");
                } else if row.kind == 7 && bit == 5 {
                    // Granularity 2 of type 7 is undefined.
                    assert!(result.is_err());
                } else {
                    assert!(result.is_ok(), "{place:?}");
                }
            }
        }
    }

    #[test]
    fn types_are_valid_where_table_26_says_so() {
        use ExtendedCapabilityField as E;
        let granularity = [0, 0x10, 0x10, 0, 0, 0, 0x20, 0, 0, 0];
        for kind in 0..0x80_u64 {
            let q0 = kind & 0xf
                | (kind >> 4) << 9
                | granularity.get(kind as usize).copied().unwrap_or(0);
            assert_eq!(u64::from(raw(q0, 0).kind()), kind);
            for (width, mode, valid) in [
                (Bits128, Legacy, 1..=5),
                (Bits256, Legacy, 1..=5),
                (Bits256, Scalable, 1..=9),
                (Bits256, AbortDma, 1..=9),
            ] {
                let decode = |features: &Features| raw(q0, 0).decode(width, mode, features);
                let refused = Err(DescriptorError::Type(kind as u8));
                if !valid.contains(&kind) {
                    assert_eq!(decode(&full()), refused, "{kind:#x} {width:?} {mode:?}");
                    continue;
                }
                assert!(decode(&full()).is_ok(), "{kind:#x} {width:?} {mode:?}");
                let has_no_device_tlb = decode(&without(E::DEVICE_TLB));
                assert_eq!(has_no_device_tlb == refused, kind == 3 || kind == 8);
                let has_no_page_requests = decode(&without(E::PAGE_REQUESTS));
                assert_eq!(has_no_page_requests == refused, kind == 9);
            }
        }
    }

    #[test]
    fn width_must_go_with_mode_and_unit() {
        use ExtendedCapabilityField as E;
        let legacy_only = {
            let features = without(E::SCALABLE_MODE);
            Features {
                extended: features.extended.with(E::ABORT_DMA_MODE, 0),
                ..features
            }
        };
        let table_mode = |mode| Err(DescriptorError::TableMode(mode));
        let width = |width| Err(DescriptorError::Width(width));
        let reserved = TranslationTableMode::Reserved;
        for (features, w, mode, expected) in [
            (full(), Bits128, Legacy, Ok(())),
            (full(), Bits256, Legacy, Ok(())),
            (full(), Bits128, Scalable, width(Bits128)),
            (full(), Bits128, AbortDma, width(Bits128)),
            (full(), Bits256, Scalable, Ok(())),
            (full(), Bits256, AbortDma, Ok(())),
            (full(), Bits128, reserved, table_mode(reserved)),
            (full(), Bits256, reserved, table_mode(reserved)),
            (legacy_only, Bits128, Legacy, Ok(())),
            (legacy_only, Bits256, Legacy, width(Bits256)),
            (legacy_only, Bits128, Scalable, table_mode(Scalable)),
            (legacy_only, Bits256, AbortDma, table_mode(AbortDma)),
            (without(E::SCALABLE_MODE), Bits256, Legacy, Ok(())),
            (without(E::ABORT_DMA_MODE), Bits256, Legacy, Ok(())),
            (
                without(E::ABORT_DMA_MODE),
                Bits256,
                AbortDma,
                table_mode(AbortDma),
            ),
            (
                without(E::SCALABLE_MODE),
                Bits256,
                Scalable,
                table_mode(Scalable),
            ),
        ] {
            assert_eq!(validate_queue(w, mode, &features), expected);
            assert_eq!(
                raw(0x05, 0).decode(w, mode, &features).err(),
                expected.err()
            );
        }
    }

    #[test]
    fn a_128_bit_descriptor_ends_after_two_quadwords() {
        let descriptor = RawDescriptor::from_words([0x11, 0, 1, u64::MAX]);
        assert!(descriptor.decode(Bits128, Legacy, &full()).is_ok());
        assert!(descriptor.decode(Bits256, Legacy, &full()).is_err());
    }

    #[test]
    fn undefined_granularities_are_refused() {
        for (kind, defined) in [
            (1, [false, true, true, true]),
            (2, [false, true, true, true]),
            (6, [false, false, true, true]),
            (7, [true, true, false, true]),
        ] {
            for (granularity, is_defined) in (0..4_u8).zip(defined) {
                let result = decode(kind | u64::from(granularity) << 4, 0);
                let error = DescriptorError::Granularity {
                    kind: kind as u8,
                    granularity,
                };
                assert_eq!(result.err(), (!is_defined).then_some(error));
            }
        }
        let mut features = full();
        features.capability = features
            .capability
            .with(CapabilityField::PAGE_SELECTIVE_INVALIDATION, 0);
        for (kind, is_refused) in [(0x32, true), (0x36, false)] {
            let result = raw(kind, 0).decode(Bits256, Scalable, &features);
            assert_eq!(result.is_err(), is_refused);
        }
    }

    #[test]
    fn masks_beyond_the_units_limits_are_refused() {
        let mut features = full();
        features.capability = features
            .capability
            .with(CapabilityField::MAXIMUM_ADDRESS_MASK, 18);
        features.extended = features
            .extended
            .with(ExtendedCapabilityField::MAXIMUM_HANDLE_MASK, 4);
        let decode = |q0, q1| raw(q0, q1).decode(Bits256, Scalable, &features).err();
        for mask in 0..64 {
            let address = DescriptorError::AddressMask { mask, maximum: 18 };
            assert_eq!(
                decode(0x32, u64::from(mask)),
                (mask > 18).then_some(address)
            );
            // PASID-based invalidation knows no limit, nor does any other granularity.
            assert_eq!(decode(0x36, u64::from(mask)), None);
            assert_eq!(decode(0x22, u64::from(mask)), None);
        }
        for mask in 0..32 {
            let q0 = 0x14 | u64::from(mask) << 27;
            let index = DescriptorError::InterruptIndexMask { mask, maximum: 4 };
            assert_eq!(decode(q0, 0), (mask > 4).then_some(index));
            assert_eq!(decode(q0 & !0x10, 0), None);
        }
    }

    #[test]
    fn unused_and_ignored_fields_do_not_matter() {
        let mut features = full();
        features.capability = features
            .capability
            .with(CapabilityField::DOMAIN_ID_WIDTH, 2);
        features.host_address_width = 46;
        let decode = |q0, q1| raw(q0, q1).decode(Bits256, Scalable, &features);
        let same = |a: (u64, u64), b: (u64, u64)| {
            assert_eq!(decode(a.0, a.1), decode(b.0, b.1));
            assert!(decode(a.0, a.1).is_ok());
        };
        // Unused: domain-id with global, address with domain granularity, PASID with a domain.
        same((0x12, 0), (0xffff_0012, 0xffff_ffff_ffff_f07f));
        same((0x1_0022, 0), (0x1_0022, 0xffff_ffff_ffff_f07f));
        same((0x37, 0), (0x000f_ffff_ffff_0037, 0));
        same((0x1_0007, 0), (0x000f_ffff_0001_0007, 0));
        same((0x11, 0), (0x0003_ffff_ffff_0011, 0));
        same((0x04, 0), (0xffff_f800_0004, 0));
        // A page group response without PASID; its bit 66.
        same((0x09, 0), (0x000f_ffff_0000_0009, 4));
        // Domain-id bits beyond ND (8 bits here).
        same((0x0012_0022, 0), (0xff12_0022, 0));
        same((0x0012_0036, 0), (0xff12_0036, 0));
        same((0x0012_0017, 0), (0xff12_0017, 0));
        same((0x0012_0031, 0), (0xff12_0031, 0));
        // Status address bits at and above the host address width, and all of it without `SW`.
        same((0x25, 0x3fff_ffff_fffc), (0x25, 0xffff_ffff_ffff_fffc));
        same((0x15, 0), (0xffff_ffff_0000_0015, 0xffff_ffff_ffff_fffc));
    }

    #[test]
    fn errors_are_reported_by_the_codes_of_the_queue() {
        // §11.4.9.9
        for (error, code) in [
            (DescriptorError::Type(0xa), 3),
            (DescriptorError::Reserved { word: 0, bits: 1 }, 4),
            (
                DescriptorError::Granularity {
                    kind: 1,
                    granularity: 0,
                },
                4,
            ),
            (
                DescriptorError::AddressMask {
                    mask: 2,
                    maximum: 1,
                },
                4,
            ),
            (
                DescriptorError::InterruptIndexMask {
                    mask: 2,
                    maximum: 1,
                },
                4,
            ),
            (DescriptorError::Width(Bits128), 5),
            (
                DescriptorError::TableMode(TranslationTableMode::Reserved),
                7,
            ),
        ] {
            assert_eq!(error.queue_error().code(), code, "{error:?}");
        }
    }

    #[test]
    fn what_decodes_encodes_to_the_same_meaning() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let features = full();
        let mut decoded = 0;
        for _ in 0..20_000 {
            let kind = random() % 9 + 1;
            let q0 = random() & !0xe0f | kind;
            let words = (q0, random());
            // Without reserved bits nearly all is accepted.
            let Some(reserved) = reserved_bits(kind as u8, Bits256, Scalable, &features) else {
                panic!("type {kind}");
            };
            let descriptor = raw(words.0 & !reserved.0, words.1 & !reserved.1);
            if let Ok(meaning) = descriptor.decode(Bits256, Scalable, &features) {
                let again = meaning.encode().decode(Bits256, Scalable, &features);
                assert_eq!(again, Ok(meaning));
                decoded += 1;
            }
        }
        assert!(decoded > 10_000, "{decoded}");
    }

    #[test]
    fn fields_without_room_are_cut_off() {
        let cut = Descriptor::Iotlb {
            granularity: IotlbGranularity::Page {
                domain_id: DomainId::ZERO,
                address: 0x1fff,
                address_mask: 0xff,
                leaf_hint: false,
            },
            drain_reads: false,
            drain_writes: false,
        };
        assert_eq!(cut.encode(), raw(0x32, 0x103f));
        let cut = Descriptor::ContextCache {
            granularity: ContextGranularity::Device {
                source_id: DEVICE,
                function_mask: 0xff,
                domain_id: DomainId::ZERO,
            },
        };
        assert_eq!(cut.encode(), raw(0x0003_0310_0000_0031, 0));
        let cut = Descriptor::InterruptEntryCache {
            granularity: InterruptEntryGranularity::Index {
                index: 0,
                mask: 0xff,
            },
        };
        assert_eq!(cut.encode(), raw(0xf800_0014, 0));
        let cut = Descriptor::PageGroupResponse {
            source_id: SourceId::from_u16(0),
            pasid: None,
            response: ResponseCode::from_field(0xf1),
            group_index: 0xffff,
        };
        assert_eq!(cut.encode(), raw(0x1009, 0xff8));
        let cut = wait(
            Some(WaitStatus {
                address: 0x1003,
                data: 0,
            }),
            [false; 3],
        );
        assert_eq!(cut.encode(), raw(0x25, 0x1000));
    }

    #[test]
    fn device_tlb_ranges_code_their_size_in_the_address() {
        let page = DeviceTlbRange::page(0x1234_5fff);
        assert_eq!(
            (page.start(), page.last(), page.order()),
            (0x1234_5000, 0x1234_5fff, 0)
        );
        for order in 1..=51 {
            let range = DeviceTlbRange::block(0xaaaa_aaaa_aaaa_aaaa, order);
            let len_bytes = 4096_u64 << order;
            assert_eq!(range.order(), order);
            assert_eq!(range.start(), 0xaaaa_aaaa_aaaa_aaaa / len_bytes * len_bytes);
            assert_eq!(range.last() - range.start(), len_bytes - 1);
        }
        for order in [52, 53, 64, 255] {
            assert_eq!(DeviceTlbRange::block(0x1000, order), DeviceTlbRange::ALL);
        }
        assert_eq!(
            DeviceTlbRange::block(u64::MAX, 0),
            DeviceTlbRange::page(u64::MAX)
        );
        // §6.5.2.5: one row of 1s more than ALL has is still everything.
        for everything in [
            DeviceTlbRange::ALL,
            DeviceTlbRange::from_fields(u64::MAX, true),
        ] {
            assert_eq!(everything.order(), 52);
            assert_eq!((everything.start(), everything.last()), (0, u64::MAX));
        }
        // 2 pages with bit 12 clear, 4 with bits 13:12 = 01.
        assert_eq!(DeviceTlbRange::from_fields(0x8000, true).last(), 0x9fff);
        assert_eq!(DeviceTlbRange::from_fields(0x9000, true).last(), 0xbfff);
    }

    #[test]
    fn page_blocks_are_aligned_and_never_overflow() {
        for (address, mask, block) in [
            (0x1234, 0, (0x1000, 0x1fff)),
            (0x5000, 1, (0x4000, 0x5fff)),
            (0x7fff_ffff, 9, (0x7fe0_0000, 0x7fff_ffff)),
            (u64::MAX, 0, (0xffff_ffff_ffff_f000, u64::MAX)),
            (u64::MAX, 51, (0x8000_0000_0000_0000, u64::MAX)),
            (0x1000, 52, (0, u64::MAX)),
            (0x1000, 63, (0, u64::MAX)),
            (0x1000, 255, (0, u64::MAX)),
        ] {
            assert_eq!(page_block(address, mask), block, "{address:#x} {mask}");
        }
    }

    #[test]
    fn a_function_mask_ignores_the_bits_that_it_names() {
        for (mask, ignored) in [(0, 0b000), (1, 0b100), (2, 0b110), (3, 0b111), (4, 0b000)] {
            for bit in 0..16 {
                let other = SourceId::from_u16(DEVICE.as_u16() ^ 1 << bit);
                let is_covered = ignored >> bit & 1 == 1;
                assert_eq!(function_mask_covers(mask, DEVICE, other), is_covered);
            }
            assert!(function_mask_covers(mask, DEVICE, DEVICE));
        }
    }
}
