//! Why a table was not changed.

use crate::arch::address::{Hpa, PageSize};
use crate::arch::told::{Told, display_as_told};
use crate::mem::FrameError;

/// Why a table was not changed. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// An address or the length is no multiple of 4 KiB, or the length is 0.
    Misaligned {
        /// The offending value in bytes.
        value: u64,
    },
    /// The input range passes the width of the table.
    InputBeyondWidth {
        /// First input address.
        address: u64,
        /// Length in bytes.
        len_bytes: u64,
        /// Bits that an input address may have.
        bits: u8,
    },
    /// The output range passes the host address width.
    OutputBeyondWidth {
        /// First output address.
        address: Hpa,
        /// Bits that an output address may have.
        bits: u8,
    },
    /// The output range touches the interrupt range 0xFEEx_xxxx (§3.15).
    InterruptRange {
        /// First output address.
        address: Hpa,
    },
    /// A page of the range is mapped already.
    Overlap {
        /// Input address of that page.
        address: u64,
    },
    /// The range begins or ends inside a large page.
    PartialLeaf {
        /// Input address of the large page.
        address: u64,
        /// Its size.
        size: PageSize,
    },
    /// No right at all was asked for: that is not a mapping.
    NoRights,
    /// No frame for a table page.
    Frames(FrameError),
}

impl MapError {
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::Misaligned { value } => Told::one("misaligned", value),
            Self::InputBeyondWidth {
                address, len_bytes, ..
            } => Told::two("input beyond the width", address, len_bytes),
            Self::OutputBeyondWidth { address, bits } => {
                Told::two("output beyond the width", address.as_u64(), bits as u64)
            }
            Self::InterruptRange { address } => {
                Told::one("output in the interrupt range", address.as_u64())
            }
            Self::Overlap { address } => Told::one("mapped already", address),
            Self::PartialLeaf { address, size } => {
                Told::two("part of a large page", address, size.len_bytes())
            }
            Self::NoRights => Told::words("no rights"),
            Self::Frames(error) => error.told(),
        }
    }
}

display_as_told!(MapError);

impl core::error::Error for MapError {}

impl From<FrameError> for MapError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}
