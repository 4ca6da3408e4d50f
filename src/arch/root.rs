//! Root-table entries of legacy and scalable mode (§9.1, §9.2).
//!
//! A root table is one page of 256 entries, indexed by bus number.

use super::address::PhysicalAddress;
use super::features::TableFeatures;
use super::id::SourceId;
use super::quadwords::{beyond, bits, first_reserved, table_entry};

/// Bits 11:1 of a quadword that holds a context-table pointer are reserved.
const RESERVED_LOW: u64 = bits(11, 1);
const POINTER: u64 = bits(63, 12);

/// Why a unit refuses a root entry (§7.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RootEntryFault {
    /// The Present bit is clear (LRT.2, SRT.2).
    NotPresent,
    /// A reserved bit is set (LRT.3, SRT.3).
    ReservedNonZero {
        /// The quadword of the entry, 0 or 1.
        quadword: u8,
        /// The offending bits of that quadword.
        bits: u64,
    },
}

table_entry! {
    /// One 16-byte root entry of legacy mode, as it lies in memory (§9.1).
    ///
    /// Any bit pattern is a value of this type; [`decode`](Self::decode) tells what it means.
    LegacyRootEntry, quadwords: 2, bytes: 16
}

impl LegacyRootEntry {
    /// A present entry; the low 12 bits of the address are dropped.
    pub fn new<A: PhysicalAddress>(context_table: A) -> Self {
        Self([context_table.to_u64() & POINTER | 1, 0])
    }

    /// The Present bit (`P`).
    #[doc(alias = "P")]
    #[inline]
    pub const fn is_present(&self) -> bool {
        self.field::<0, 0>() == 1
    }

    /// The context table of the bus (`CTP`), 4-KiB aligned.
    #[doc(alias = "CTP")]
    #[inline]
    pub fn context_table<A: PhysicalAddress>(&self) -> A {
        A::from_u64(self.field::<63, 12>() << 12)
    }

    /// The context table, if a unit with these features accepts the entry.
    pub fn decode<A: PhysicalAddress>(
        &self,
        features: &TableFeatures,
    ) -> Result<A, RootEntryFault> {
        if !self.is_present() {
            return Err(RootEntryFault::NotPresent);
        }
        let reserved = [
            RESERVED_LOW | beyond(features.host_address_width) & POINTER,
            u64::MAX,
        ];
        match first_reserved(&self.0, &reserved) {
            Some((quadword, bits)) => Err(RootEntryFault::ReservedNonZero { quadword, bits }),
            None => Ok(self.context_table()),
        }
    }
}

/// Which half of a scalable-mode root entry serves a device (§9.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RootHalf {
    /// Devices 0 to 15: the lower context table.
    Lower,
    /// Devices 16 to 31: the upper context table.
    Upper,
}

impl RootHalf {
    /// Both halves, the lower first.
    pub const ALL: [Self; 2] = [Self::Lower, Self::Upper];

    /// The half that serves a requester.
    #[inline]
    pub const fn of(source_id: SourceId) -> Self {
        if source_id.device_function() & 0x80 == 0 {
            Self::Lower
        } else {
            Self::Upper
        }
    }

    /// The quadword of the half: 0 or 1.
    #[inline]
    pub const fn quadword(self) -> u8 {
        match self {
            Self::Lower => 0,
            Self::Upper => 1,
        }
    }
}

table_entry! {
    /// One 16-byte root entry of scalable mode, as it lies in memory (§9.2).
    ///
    /// Its two halves are independent; each has a Present bit and a context table of its own.
    ScalableRootEntry, quadwords: 2, bytes: 16
}

impl ScalableRootEntry {
    /// An entry with these halves present; the low 12 bits of the addresses are dropped.
    pub fn new<A: PhysicalAddress>(lower: Option<A>, upper: Option<A>) -> Self {
        let half = |table: Option<A>| table.map_or(0, |table| table.to_u64() & POINTER | 1);
        Self([half(lower), half(upper)])
    }

    /// The quadword of one half.
    #[inline]
    pub const fn half(&self, half: RootHalf) -> u64 {
        match half {
            RootHalf::Lower => self.field::<63, 0>(),
            RootHalf::Upper => self.field::<127, 64>(),
        }
    }

    /// The Present bit of one half (`LP`, `UP`).
    #[doc(alias("LP", "UP"))]
    #[inline]
    pub const fn is_present(&self, half: RootHalf) -> bool {
        self.half(half) & 1 == 1
    }

    /// The lower context table (`LCTP`), 4-KiB aligned.
    #[doc(alias = "LCTP")]
    #[inline]
    pub fn lower_context_table<A: PhysicalAddress>(&self) -> A {
        A::from_u64(self.field::<63, 12>() << 12)
    }

    /// The upper context table (`UCTP`), 4-KiB aligned.
    #[doc(alias = "UCTP")]
    #[inline]
    pub fn upper_context_table<A: PhysicalAddress>(&self) -> A {
        A::from_u64(self.field::<127, 76>() << 12)
    }

    /// The context table of one half, if a unit with these features accepts that half.
    pub fn decode<A: PhysicalAddress>(
        &self,
        half: RootHalf,
        features: &TableFeatures,
    ) -> Result<A, RootEntryFault> {
        let value = self.half(half);
        if value & 1 == 0 {
            return Err(RootEntryFault::NotPresent);
        }
        let reserved = value & (RESERVED_LOW | beyond(features.host_address_width) & POINTER);
        if reserved != 0 {
            return Err(RootEntryFault::ReservedNonZero {
                quadword: half.quadword(),
                bits: reserved,
            });
        }
        Ok(A::from_u64(value & POINTER))
    }
}
