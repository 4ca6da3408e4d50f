//! Root-table entries of legacy and scalable mode (§9.1, §9.2).
//!
//! A root table is one page of 256 entries, indexed by bus number.

use super::address::PhysicalAddress;
use super::features::TableFeatures;
use super::id::SourceId;
use super::quadwords::{beyond, bits, first_reserved, table_entry};
use super::told::{Told, display_as_told};

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

impl RootEntryFault {
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::NotPresent => Told::words("not present"),
            Self::ReservedNonZero { quadword, bits } => {
                Told::two("reserved bits of quadword", quadword as u64, bits)
            }
        }
    }
}

display_as_told!(RootEntryFault);

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::address::{Gpa, Hpa};

    const FEATURES: TableFeatures = TableFeatures {
        host_address_width: 46,
        ..TableFeatures::EVERYTHING
    };

    #[test]
    fn each_getter_reads_its_own_bits_and_no_others() {
        type Legacy = fn(&LegacyRootEntry) -> u64;
        type Scalable = fn(&ScalableRootEntry) -> u64;
        let legacy: [(&str, usize, usize, Legacy); 2] = [
            ("P", 0, 0, |e| e.is_present().into()),
            ("CTP", 63, 12, |e| e.context_table::<Hpa>().as_u64() >> 12),
        ];
        let scalable: [(&str, usize, usize, Scalable); 6] = [
            ("LP", 0, 0, |e| e.is_present(RootHalf::Lower).into()),
            ("UP", 64, 64, |e| e.is_present(RootHalf::Upper).into()),
            ("LCTP", 63, 12, |e| {
                e.lower_context_table::<Hpa>().as_u64() >> 12
            }),
            ("UCTP", 127, 76, |e| {
                e.upper_context_table::<Hpa>().as_u64() >> 12
            }),
            ("lower", 63, 0, |e| e.half(RootHalf::Lower)),
            ("upper", 127, 64, |e| e.half(RootHalf::Upper)),
        ];
        for bit in 0..128 {
            let expected = |hi, lo| {
                if (lo..=hi).contains(&bit) {
                    1_u64 << (bit - lo)
                } else {
                    0
                }
            };
            for (name, hi, lo, get) in legacy {
                let entry = LegacyRootEntry::with_only(bit);
                assert_eq!(get(&entry), expected(hi, lo), "{name}, bit {bit}");
            }
            for (name, hi, lo, get) in scalable {
                let entry = ScalableRootEntry::with_only(bit);
                assert_eq!(get(&entry), expected(hi, lo), "{name}, bit {bit}");
            }
        }
    }

    #[test]
    fn legacy_reserved_bits_are_refused_one_by_one() {
        // §9.1: 11:1, 63:HAW, and the upper quadword.
        let valid = LegacyRootEntry::new(Gpa::new(0x1234_5000));
        assert_eq!(valid.quadwords(), &[0x1234_5001, 0]);
        for bit in 1..128 {
            let mut quadwords = *valid.quadwords();
            quadwords[bit / 64] |= 1 << (bit % 64);
            let decoded = LegacyRootEntry::from_quadwords(quadwords).decode::<Gpa>(&FEATURES);
            if (12..46).contains(&bit) {
                assert_eq!(decoded, Ok(Gpa::new(0x1234_5000 | 1 << bit)), "bit {bit}");
            } else {
                let fault = RootEntryFault::ReservedNonZero {
                    quadword: (bit / 64) as u8,
                    bits: 1 << (bit % 64),
                };
                assert_eq!(decoded, Err(fault), "bit {bit}");
            }
        }
    }

    #[test]
    fn scalable_halves_are_checked_independently() {
        // §9.2: 11:1 and 63:HAW of the half in use; the other half does not count.
        for half in RootHalf::ALL {
            let table = Hpa::new(0x0020_0000_0000);
            let q = usize::from(half.quadword());
            for bit in 1..128 {
                let mut quadwords = [0, 0];
                quadwords[q] = table.as_u64() | 1;
                quadwords[bit / 64] |= 1 << (bit % 64);
                let entry = ScalableRootEntry::from_quadwords(quadwords);
                let expected = if bit / 64 != q || bit % 64 == 0 {
                    Ok(table)
                } else if (12..46).contains(&(bit % 64)) {
                    Ok(Hpa::new(table.as_u64() | 1 << (bit % 64)))
                } else {
                    Err(RootEntryFault::ReservedNonZero {
                        quadword: half.quadword(),
                        bits: 1 << (bit % 64),
                    })
                };
                assert_eq!(entry.decode(half, &FEATURES), expected, "{half:?} {bit}");
            }
        }
    }

    #[test]
    fn not_present_comes_before_reserved_bits() {
        let legacy = LegacyRootEntry::from_quadwords([!1, u64::MAX]);
        assert_eq!(
            legacy.decode::<Hpa>(&FEATURES),
            Err(RootEntryFault::NotPresent)
        );
        let scalable = ScalableRootEntry::from_quadwords([!1, !1]);
        for half in RootHalf::ALL {
            assert_eq!(
                scalable.decode::<Hpa>(half, &FEATURES),
                Err(RootEntryFault::NotPresent)
            );
        }
    }

    #[test]
    fn halves_split_the_bus_at_device_sixteen() {
        for (device, half) in [(0, RootHalf::Lower), (15, RootHalf::Lower)]
            .into_iter()
            .chain([(16, RootHalf::Upper), (31, RootHalf::Upper)])
        {
            let source_id = SourceId::new(0x12, device, 7).unwrap();
            assert_eq!(RootHalf::of(source_id), half, "{source_id}");
        }
        let entry = ScalableRootEntry::new(None, Some(Hpa::new(0x7fff)));
        assert_eq!(entry.quadwords(), &[0, 0x7001]);
        assert_eq!(
            entry.decode(RootHalf::Upper, &FEATURES),
            Ok(Hpa::new(0x7000))
        );
    }

    #[test]
    fn bytes_are_little_endian() {
        let mut bytes = [0; 16];
        bytes[0] = 1;
        bytes[2] = 0xab;
        bytes[15] = 0xcd;
        let entry = ScalableRootEntry::from_bytes(&bytes);
        assert_eq!(entry.quadwords(), &[0x00ab_0001, 0xcd00_0000_0000_0000]);
        assert_eq!(entry.to_bytes(), bytes);
    }
}
