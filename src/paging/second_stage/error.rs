//! Why a table was not changed.

use core::fmt;

use crate::arch::address::{Hpa, PageSize};
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

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned { value } => write!(f, "{value:#x} is no whole number of pages"),
            Self::InputBeyondWidth {
                address,
                len_bytes,
                bits,
            } => write!(
                f,
                "{len_bytes:#x} bytes from {address:#x} on do not fit into {bits} bits"
            ),
            Self::OutputBeyondWidth { address, bits } => {
                write!(f, "the pages at {address} do not fit into {bits} bits")
            }
            Self::InterruptRange { address } => {
                write!(f, "the pages at {address} touch the interrupt range")
            }
            Self::Overlap { address } => write!(f, "{address:#x} is mapped already"),
            Self::PartialLeaf { address, size } => write!(
                f,
                "the range cuts the page of {:#x} bytes at {address:#x}",
                size.len_bytes()
            ),
            Self::NoRights => f.write_str("a mapping without rights is none"),
            Self::Frames(error) => write!(f, "no frame for a table: {error:?}"),
        }
    }
}

impl core::error::Error for MapError {}

impl From<FrameError> for MapError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}
