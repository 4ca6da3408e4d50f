//! Why hardware refuses a descriptor.

use crate::arch::register::{DescriptorWidth, QueueErrorInfo, TranslationTableMode};
use crate::arch::told::{Told, display_as_told};

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
