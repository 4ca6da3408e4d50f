//! What descriptors are made of: granularities, ranges, wait status, response codes.

use crate::arch::address::PAGE_SIZE_BYTES;
use crate::arch::id::{DomainId, Pasid, SourceId};

use super::PAGE_FIELD;

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
    pub(super) address: u64,
    /// `S`: the block has more than one page.
    pub(super) is_sized: bool,
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
    pub(super) const fn from_fields(field: u64, is_sized: bool) -> Self {
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
