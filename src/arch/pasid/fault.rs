//! Why a unit refuses a PASID-table entry.

use crate::arch::told::{Told, display_as_told};

/// Why a unit refuses a PASID entry (§7.1.3, Table 30).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidEntryFault {
    /// The Present bit is clear (SPT.2).
    NotPresent,
    /// A reserved bit is set (SPT.3).
    ReservedNonZero {
        /// The quadword of the entry, 0 to 7.
        quadword: u8,
        /// The offending bits of that quadword.
        bits: u64,
    },
    /// `AW` names no width of the unit (SPT.4.1).
    UnsupportedAddressWidth(u8),
    /// `PGTT` is reserved, or a type that the unit lacks (SPT.4.2).
    UnsupportedTranslationType(u8),
    /// `FSPM` is reserved, or a mode that the unit lacks (SPT.4.3).
    UnsupportedPagingMode(u8),
    /// The first-stage root of a nested entry is not below 2^min(`MGAW`, `AW`) (SPT.4.4).
    FirstStageRootBeyondWidth(u64),
}

impl PasidEntryFault {
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::NotPresent => Told::words("not present"),
            Self::ReservedNonZero { quadword, bits } => {
                Told::two("reserved bits of quadword", quadword as u64, bits)
            }
            Self::UnsupportedAddressWidth(field) => Told::one("address width", field as u64),
            Self::UnsupportedTranslationType(field) => Told::one("translation type", field as u64),
            Self::UnsupportedPagingMode(field) => Told::one("paging mode", field as u64),
            Self::FirstStageRootBeyondWidth(root) => Told::one("first-stage root", root),
        }
    }
}

display_as_told!(PasidEntryFault);
