//! The invalidation queue: its address and its errors.

use crate::arch::address::PhysicalAddress;
use crate::arch::id::SourceId;

use super::PAGE_FIELD;

/// The width of the descriptors in an invalidation queue (`DW`, §11.4.9.3).
#[doc(alias = "DW")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DescriptorWidth {
    /// 0: 128 bits, for legacy mode only.
    Bits128,
    /// 1: 256 bits.
    Bits256,
}

impl DescriptorWidth {
    /// The size of one descriptor, in bytes.
    #[inline]
    pub const fn len_bytes(self) -> u32 {
        match self {
            Self::Bits128 => 16,
            Self::Bits256 => 32,
        }
    }
}

raw_register! {
    /// The invalidation queue address register (§11.4.9.3).
    #[doc(alias = "IQA_REG")]
    InvalidationQueueAddress
}

impl InvalidationQueueAddress {
    /// The reserved bits: 10:3.
    pub const RESERVED: u64 = 0x7f8;

    /// The largest size order: a queue of 128 pages.
    pub const MAX_SIZE_ORDER: u8 = 7;

    /// The register for a queue of 2^`size_order` pages at `base`, in bytes; `None` if
    /// `size_order` exceeds 7 or `base` is not 4-KiB aligned.
    #[inline]
    pub fn new<A: PhysicalAddress>(
        base: A,
        size_order: u8,
        width: DescriptorWidth,
    ) -> Option<Self> {
        let base = base.to_u64();
        if size_order > Self::MAX_SIZE_ORDER || base & !PAGE_FIELD != 0 {
            return None;
        }
        let width = match width {
            DescriptorWidth::Bits128 => 0,
            DescriptorWidth::Bits256 => 1 << 11,
        };
        Some(Self(base | width | size_order as u64))
    }

    /// The queue's address (`IQA`): in bytes, 4-KiB aligned.
    #[inline]
    pub fn base<A: PhysicalAddress>(self) -> A {
        A::from_u64(self.0 & PAGE_FIELD)
    }

    /// The queue's size: 2^`QS` pages, in bytes.
    #[doc(alias = "QS")]
    #[inline]
    pub const fn size_bytes(self) -> u32 {
        4096 << (self.0 & 7)
    }

    /// The width of the queue's descriptors (`DW`).
    #[inline]
    pub const fn descriptor_width(self) -> DescriptorWidth {
        if self.0 >> 11 & 1 == 0 {
            DescriptorWidth::Bits128
        } else {
            DescriptorWidth::Bits256
        }
    }

    /// The number of descriptors that the queue has slots for; one slot always stays empty.
    #[inline]
    pub const fn descriptor_count(self) -> u32 {
        match self.descriptor_width() {
            DescriptorWidth::Bits128 => self.size_bytes() / 16,
            DescriptorWidth::Bits256 => self.size_bytes() / 32,
        }
    }
}

/// The byte offset into the invalidation queue that the head or tail register names (`QH`, `QT`,
/// bits 18:4, §11.4.9.1): below 512 KiB, a multiple of 16.
#[doc(alias("QH", "QT"))]
#[inline]
pub const fn queue_offset(raw: u64) -> u32 {
    (raw & 0x7_fff0) as u32
}

/// Why the invalidation queue stands (`IQEI`, §11.4.9.9).
#[doc(alias = "IQEI")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum QueueErrorInfo {
    /// 1: the tail is invalid, for instance beyond the queue.
    InvalidTail,
    /// 2: a descriptor could not be read.
    FetchFailed,
    /// 3: the descriptor's type is undefined, of another mode, or of an absent feature.
    InvalidType,
    /// 4: a reserved bit is set in the descriptor.
    ReservedBit,
    /// 5: the descriptor width does not go with the translation table mode.
    InvalidWidth,
    /// 6: the tail is not a multiple of the descriptor width.
    MisalignedTail,
    /// 7: the translation table mode is reserved or not supported.
    InvalidTableMode,
}

impl QueueErrorInfo {
    /// All reasons, by rising code.
    pub const ALL: [Self; 7] = [
        Self::InvalidTail,
        Self::FetchFailed,
        Self::InvalidType,
        Self::ReservedBit,
        Self::InvalidWidth,
        Self::MisalignedTail,
        Self::InvalidTableMode,
    ];

    /// The value of the `IQEI` field.
    #[inline]
    pub const fn code(self) -> u8 {
        match self {
            Self::InvalidTail => 1,
            Self::FetchFailed => 2,
            Self::InvalidType => 3,
            Self::ReservedBit => 4,
            Self::InvalidWidth => 5,
            Self::MisalignedTail => 6,
            Self::InvalidTableMode => 7,
        }
    }

    /// The reason with this code; `None` for 0, which tells nothing, and for undefined codes.
    #[inline]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::InvalidTail),
            2 => Some(Self::FetchFailed),
            3 => Some(Self::InvalidType),
            4 => Some(Self::ReservedBit),
            5 => Some(Self::InvalidWidth),
            6 => Some(Self::MisalignedTail),
            7 => Some(Self::InvalidTableMode),
            _ => None,
        }
    }
}

raw_register! {
    /// The invalidation queue error record register (§11.4.9.9). Units older than Rev 3.1 read 0.
    #[doc(alias = "IQERCD_REG")]
    QueueErrorRecord
}

impl QueueErrorRecord {
    /// The record with these fields; `None` is stored as 0.
    pub const fn new(
        error: Option<QueueErrorInfo>,
        timed_out: Option<SourceId>,
        bad_completion: Option<SourceId>,
    ) -> Self {
        let error = match error {
            Some(error) => error.code() as u64,
            None => 0,
        };
        let timed_out = match timed_out {
            Some(source_id) => source_id.as_u16() as u64,
            None => 0,
        };
        let bad_completion = match bad_completion {
            Some(source_id) => source_id.as_u16() as u64,
            None => 0,
        };
        Self(error | timed_out << 32 | bad_completion << 48)
    }

    /// Why the queue stands (`IQEI`); valid while `IQE` is set. `None`: the unit does not tell.
    #[inline]
    pub const fn error(self) -> Option<QueueErrorInfo> {
        QueueErrorInfo::from_code((self.0 & 0xf) as u8)
    }

    /// A device whose invalidation timed out (`ITESID`); valid while `ITE` is set. `None`: the unit
    /// does not tell.
    #[doc(alias = "ITESID")]
    #[inline]
    pub const fn timed_out_source_id(self) -> Option<SourceId> {
        match (self.0 >> 32) as u16 {
            0 => None,
            source_id => Some(SourceId::from_u16(source_id)),
        }
    }

    /// The sender of an unexpected completion (`ICESID`); valid while `ICE` is set. `None`: the
    /// unit does not tell.
    #[doc(alias = "ICESID")]
    #[inline]
    pub const fn bad_completion_source_id(self) -> Option<SourceId> {
        match (self.0 >> 48) as u16 {
            0 => None,
            source_id => Some(SourceId::from_u16(source_id)),
        }
    }
}
