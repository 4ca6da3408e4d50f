//! The ACPI DMAR table, through which firmware reports the remapping units (§8).
//!
//! The table is firmware's and therefore untrusted: parsing is total. Every length is checked,
//! nothing loops, unknown structures are skipped by their length, and what is malformed ends the
//! iteration with a typed error that names the offset.

mod coverage;
mod scope;
mod structure;
#[cfg(test)]
mod tests;

use core::fmt::{self, Write as _};
use core::iter::FusedIterator;

pub use scope::{DeviceScope, DeviceScopes, PathEntry, ScopeError, ScopeKind};
pub use structure::{Andd, Atsr, Drhd, Rhsa, Rmrr, Satc, Sidp, Structure, Structures};

/// The size of the table's fixed part in bytes: the ACPI header, width, flags, reserved bytes.
const HEADER_BYTES: usize = 48;

/// What is wrong with a DMAR table. Offsets are in bytes from the start of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmarError {
    /// There are fewer bytes than the table's fixed part has, or than its length field says.
    Truncated {
        /// The number of bytes needed.
        needed: usize,
        /// The number of bytes there are.
        available: usize,
    },
    /// The signature is not `DMAR`.
    Signature([u8; 4]),
    /// The table's length field is smaller than its fixed part.
    TableLength(u32),
    /// The table's bytes do not add up to 0, but to this value.
    Checksum(u8),
    /// The host address width in bits is not 12 to 64.
    HostAddressWidth(u16),
    /// A structure's length is too small for its type, or goes past the end of the table.
    StructureLength {
        /// Where the structure starts.
        offset: usize,
        /// The structure's length field, 0 if even that is missing.
        length: u16,
    },
    /// A device scope's length is no head with at least one path entry, or goes past the end of its
    /// structure.
    ScopeLength {
        /// Where the device scope starts.
        offset: usize,
        /// The scope's length field, 0 if even that is missing.
        length: u8,
    },
    /// The object name of an ACPI namespace device has no terminating zero byte.
    ObjectName {
        /// Where the structure starts.
        offset: usize,
    },
}

impl fmt::Display for DmarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needed, available } => {
                write!(f, "DMAR table needs {needed} bytes, {available} are there")
            }
            Self::Signature(bytes) => {
                f.write_str("not a DMAR table: signature \"")?;
                for byte in bytes {
                    match byte {
                        b' '..=b'~' => f.write_char(char::from(*byte))?,
                        _ => write!(f, "\\x{byte:02x}")?,
                    }
                }
                f.write_char('"')
            }
            Self::TableLength(length) => {
                write!(f, "DMAR table length {length} is below {HEADER_BYTES}")
            }
            Self::Checksum(sum) => write!(f, "DMAR table bytes add up to {sum:#04x}, not 0"),
            Self::HostAddressWidth(bits) => {
                write!(f, "DMAR host address width of {bits} bits is not 12 to 64")
            }
            Self::StructureLength { offset, length } => {
                write!(f, "DMAR structure at {offset:#x} has bad length {length}")
            }
            Self::ScopeLength { offset, length } => {
                write!(
                    f,
                    "DMAR device scope at {offset:#x} has bad length {length}"
                )
            }
            Self::ObjectName { offset } => {
                write!(f, "DMAR structure at {offset:#x} has an unterminated name")
            }
        }
    }
}

impl core::error::Error for DmarError {}

/// The `N` bytes at `offset`, if they are there.
fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes_at(bytes, offset).map(u64::from_le_bytes)
}

/// A DMAR table whose header, length and checksum are sound (§8.1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dmar<'a> {
    /// The remapping structures, one after the other.
    structures: &'a [u8],
    host_address_width: u8,
    flags: u8,
}

impl<'a> Dmar<'a> {
    /// The table at the start of `bytes`; bytes behind the table's own length are not looked at.
    ///
    /// Fails if signature, length, checksum or host address width are wrong. The remapping
    /// structures are checked while they are iterated over.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DmarError> {
        let truncated = |needed| DmarError::Truncated {
            needed,
            available: bytes.len(),
        };
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(truncated(HEADER_BYTES))?;
        let [s0, s1, s2, s3, l0, l1, l2, l3, ..] = *header;
        let signature = [s0, s1, s2, s3];
        if signature != *b"DMAR" {
            return Err(DmarError::Signature(signature));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let needed = usize::try_from(length).map_err(|_| truncated(usize::MAX))?;
        if needed < HEADER_BYTES {
            return Err(DmarError::TableLength(length));
        }
        let table = bytes.get(..needed).ok_or(truncated(needed))?;
        let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        if sum != 0 {
            return Err(DmarError::Checksum(sum));
        }
        let width = u16::from(header[36]) + 1;
        let host_address_width = u8::try_from(width)
            .ok()
            .filter(|width| (12..=64).contains(width))
            .ok_or(DmarError::HostAddressWidth(width))?;
        Ok(Self {
            structures: table.get(HEADER_BYTES..).unwrap_or_default(),
            host_address_width,
            flags: header[37],
        })
    }

    /// The host address width in bits, 12 to 64.
    #[doc(alias = "HAW")]
    #[inline]
    pub const fn host_address_width(&self) -> u8 {
        self.host_address_width
    }

    /// The flags as they stand in the table.
    #[inline]
    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the platform supports interrupt remapping (`INTR_REMAP`).
    #[doc(alias = "INTR_REMAP")]
    #[inline]
    pub const fn supports_interrupt_remapping(&self) -> bool {
        self.flags & 1 != 0
    }

    /// Whether firmware asks not to use extended xAPIC mode (`X2APIC_OPT_OUT`), which counts only
    /// with interrupt remapping.
    #[doc(alias = "X2APIC_OPT_OUT")]
    #[inline]
    pub const fn opts_out_of_x2apic(&self) -> bool {
        self.flags & 0b11 == 0b11
    }

    /// Whether firmware asks that DMA be controlled from early boot on
    /// (`DMA_CTRL_PLATFORM_OPT_IN`).
    #[doc(alias = "DMA_CTRL_PLATFORM_OPT_IN")]
    #[inline]
    pub const fn opts_in_to_dma_control(&self) -> bool {
        self.flags & 0b100 != 0
    }

    /// The remapping structures, in table order. Iteration ends with the first error.
    #[inline]
    pub const fn structures(&self) -> Structures<'a> {
        Structures::new(self.structures, HEADER_BYTES)
    }

    /// The remapping units, in table order. Iteration ends with the first error.
    pub fn remapping_units(&self) -> impl FusedIterator<Item = Result<Drhd<'a>, DmarError>> {
        self.structures().filter_map(|structure| match structure {
            Ok(Structure::Drhd(unit)) => Some(Ok(unit)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

impl fmt::Debug for Dmar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dmar")
            .field("host_address_width", &self.host_address_width)
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}
