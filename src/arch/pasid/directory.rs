//! PASID-directory entries (§9.5).

use crate::arch::address::PhysicalAddress;
use crate::arch::features::TableFeatures;
use crate::arch::quadwords::{beyond, bits};
use crate::arch::told::{Told, display_as_told};

use super::{POINTER, PRESENT};

/// One 8-byte PASID-directory entry, as it lies in memory (§9.5).
///
/// Any value is allowed; [`decode`](Self::decode) tells what it means.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct PasidDirectoryEntry(u64);

/// Why a unit refuses a PASID-directory entry (§7.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasidDirectoryEntryFault {
    /// The Present bit is clear (SPD.2).
    NotPresent,
    /// These reserved bits are set (SPD.3).
    ReservedNonZero(u64),
}

impl PasidDirectoryEntryFault {
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::NotPresent => Told::words("not present"),
            Self::ReservedNonZero(bits) => Told::one("reserved bits", bits),
        }
    }
}

display_as_told!(PasidDirectoryEntryFault);

impl PasidDirectoryEntry {
    /// The size of an entry in bytes.
    pub const LEN_BYTES: usize = 8;

    /// A present entry; the low 12 bits of the PASID table's address are dropped.
    pub fn new<A: PhysicalAddress>(pasid_table: A) -> Self {
        Self(pasid_table.to_u64() & POINTER | PRESENT)
    }

    /// The entry with this value.
    #[inline]
    pub const fn from_u64(value: u64) -> Self {
        Self(value)
    }

    /// The entry's value.
    #[inline]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The Present bit (`P`).
    #[doc(alias = "P")]
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Fault Processing Disable (`FPD`), which counts even while `P` is clear.
    #[doc(alias = "FPD")]
    #[inline]
    pub const fn is_fault_processing_disabled(self) -> bool {
        self.0 & 2 != 0
    }

    /// The PASID table (`SMPTBLPTR`), one page of 64 entries.
    #[doc(alias = "SMPTBLPTR")]
    #[inline]
    pub fn pasid_table<A: PhysicalAddress>(self) -> A {
        A::from_u64(self.0 & POINTER)
    }

    /// The PASID table, if a unit with these features accepts the entry.
    pub fn decode<A: PhysicalAddress>(
        self,
        features: &TableFeatures,
    ) -> Result<A, PasidDirectoryEntryFault> {
        if !self.is_present() {
            return Err(PasidDirectoryEntryFault::NotPresent);
        }
        let reserved = self.0 & (bits(11, 2) | beyond(features.host_address_width) & POINTER);
        if reserved != 0 {
            return Err(PasidDirectoryEntryFault::ReservedNonZero(reserved));
        }
        Ok(self.pasid_table())
    }
}

impl core::fmt::Debug for PasidDirectoryEntry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "PasidDirectoryEntry({:#x})", self.0)
    }
}
