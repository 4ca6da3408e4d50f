//! Addresses of the three address spaces, page sizes, and widths.
//!
//! `Hpa`, `Gpa` and `Iova` never convert into each other: only a page-table walk does that.

use core::fmt;

/// Size of the smallest page, and of every remapping table page, in bytes.
pub const PAGE_SIZE_BYTES: u64 = 4096;

/// An address that a remapping table may hold: host-physical in the host's tables,
/// guest-physical in a guest's.
///
/// Table layouts are the same on both sides; this trait lets one decoder serve both without an
/// address ever changing its space.
pub trait PhysicalAddress: Copy + Eq + Ord + fmt::Debug + fmt::LowerHex {
    /// The address with this value, in bytes.
    fn from_u64(value: u64) -> Self;
    /// The address's value, in bytes.
    fn to_u64(self) -> u64;
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this value, in bytes.
            #[inline]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The address's value, in bytes.
            #[inline]
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// The number of the 4-KiB page that holds the address.
            #[inline]
            pub const fn page_number(self) -> u64 {
                self.0 / PAGE_SIZE_BYTES
            }

            /// The offset within the 4-KiB page, in bytes.
            #[inline]
            pub const fn page_offset(self) -> u64 {
                self.0 % PAGE_SIZE_BYTES
            }

            /// The address `len_bytes` further on, or `None` past the end of the space.
            #[inline]
            pub const fn checked_add(self, len_bytes: u64) -> Option<Self> {
                match self.0.checked_add(len_bytes) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }

            /// The start of the page of size `size` that holds the address.
            #[inline]
            pub const fn align_down(self, size: PageSize) -> Self {
                Self(self.0 & !(size.len_bytes() - 1))
            }

            /// Whether the address is a multiple of the page size.
            #[inline]
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.0 & (size.len_bytes() - 1) == 0
            }

            /// Whether the address needs no more than `bits` bits.
            #[inline]
            pub const fn fits(self, bits: u8) -> bool {
                bits >= 64 || self.0 >> bits == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "("))?;
                fmt::LowerHex::fmt(self, f)?;
                f.write_str(")")
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(self, f)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A host-physical address, in bytes.
    Hpa
}
address! {
    /// A guest-physical address, in bytes.
    Gpa
}
address! {
    /// The address that a device puts into a DMA request, in bytes.
    Iova
}

impl PhysicalAddress for Hpa {
    #[inline]
    fn from_u64(value: u64) -> Self {
        Self::new(value)
    }
    #[inline]
    fn to_u64(self) -> u64 {
        self.as_u64()
    }
}

impl PhysicalAddress for Gpa {
    #[inline]
    fn from_u64(value: u64) -> Self {
        Self::new(value)
    }
    #[inline]
    fn to_u64(self) -> u64 {
        self.as_u64()
    }
}

/// The page sizes of first- and second-stage paging entries (§9.7, §9.8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PageSize {
    /// 4 KiB, a leaf of level 1.
    Size4KiB,
    /// 2 MiB, a leaf of level 2.
    Size2MiB,
    /// 1 GiB, a leaf of level 3.
    Size1GiB,
}

impl PageSize {
    /// All sizes, smallest first.
    pub const ALL: [Self; 3] = [Self::Size4KiB, Self::Size2MiB, Self::Size1GiB];

    /// The size in bytes.
    #[inline]
    pub const fn len_bytes(self) -> u64 {
        match self {
            Self::Size4KiB => 1 << 12,
            Self::Size2MiB => 1 << 21,
            Self::Size1GiB => 1 << 30,
        }
    }

    /// The level of a leaf of this size: 1 for the level that only holds leaves.
    #[inline]
    pub const fn level(self) -> u8 {
        match self {
            Self::Size4KiB => 1,
            Self::Size2MiB => 2,
            Self::Size1GiB => 3,
        }
    }

    /// The size of a leaf of this level, or `None` for levels that hold no leaves.
    #[inline]
    pub const fn of_level(level: u8) -> Option<Self> {
        match level {
            1 => Some(Self::Size4KiB),
            2 => Some(Self::Size2MiB),
            3 => Some(Self::Size1GiB),
            _ => None,
        }
    }
}

/// The input width of a second-stage table, which also is its number of levels
/// (`AW` in §9.3 and §9.6, `SAGAW` in §11.4.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum AddressWidth {
    /// 39 bits, 3 levels.
    Bits39,
    /// 48 bits, 4 levels.
    Bits48,
    /// 57 bits, 5 levels.
    Bits57,
}

impl AddressWidth {
    /// All widths, smallest first.
    pub const ALL: [Self; 3] = [Self::Bits39, Self::Bits48, Self::Bits57];

    /// The width in bits.
    #[inline]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Bits39 => 39,
            Self::Bits48 => 48,
            Self::Bits57 => 57,
        }
    }

    /// The number of table levels.
    #[inline]
    pub const fn levels(self) -> u8 {
        match self {
            Self::Bits39 => 3,
            Self::Bits48 => 4,
            Self::Bits57 => 5,
        }
    }

    /// The value of an `AW` field: 001b, 010b or 011b.
    #[inline]
    pub const fn field(self) -> u64 {
        match self {
            Self::Bits39 => 1,
            Self::Bits48 => 2,
            Self::Bits57 => 3,
        }
    }

    /// The width that an `AW` field names, or `None` for a reserved encoding.
    #[inline]
    pub const fn from_field(field: u64) -> Option<Self> {
        match field {
            1 => Some(Self::Bits39),
            2 => Some(Self::Bits48),
            3 => Some(Self::Bits57),
            _ => None,
        }
    }
}

/// The paging mode of a first-stage table (`FSPM`, §9.6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FirstStagePaging {
    /// 4-level paging, 48-bit canonical input (00b).
    Level4,
    /// 5-level paging, 57-bit canonical input (01b).
    Level5,
}

impl FirstStagePaging {
    /// The number of table levels.
    #[inline]
    pub const fn levels(self) -> u8 {
        match self {
            Self::Level4 => 4,
            Self::Level5 => 5,
        }
    }

    /// The value of the `FSPM` field.
    #[inline]
    pub const fn field(self) -> u64 {
        match self {
            Self::Level4 => 0,
            Self::Level5 => 1,
        }
    }

    /// The mode that an `FSPM` field names, or `None` for a reserved encoding.
    #[inline]
    pub const fn from_field(field: u64) -> Option<Self> {
        match field {
            0 => Some(Self::Level4),
            1 => Some(Self::Level5),
            _ => None,
        }
    }

    /// Whether the address is canonical: all bits from the top translated one up are equal (§3.6).
    #[inline]
    pub const fn is_canonical(self, address: Iova) -> bool {
        let unused = match self {
            Self::Level4 => 64 - 48,
            Self::Level5 => 64 - 57,
        };
        let value = address.as_u64();
        ((value << unused) as i64 >> unused) as u64 == value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_addresses_repeat_their_top_translated_bit() {
        // §3.6: bit 47 (4-level) or 56 (5-level) is repeated up to bit 63.
        for (address, four, five) in [
            (0, true, true),
            (0x0000_7fff_ffff_ffff, true, true),
            (0x0000_8000_0000_0000, false, true),
            (0xffff_8000_0000_0000, true, true),
            (0xffff_7fff_ffff_ffff, false, true),
            (0x00ff_ffff_ffff_ffff, false, true),
            (0x0100_0000_0000_0000, false, false),
            (0xff00_0000_0000_0000, false, true),
            (0xfe00_0000_0000_0000, false, false),
            (u64::MAX, true, true),
        ] {
            let address = Iova::new(address);
            assert_eq!(
                FirstStagePaging::Level4.is_canonical(address),
                four,
                "{address}"
            );
            assert_eq!(
                FirstStagePaging::Level5.is_canonical(address),
                five,
                "{address}"
            );
        }
    }

    #[test]
    fn width_and_paging_fields_round_trip_and_refuse_reserved_encodings() {
        for field in 0..8 {
            let width = AddressWidth::from_field(field);
            assert_eq!(width.is_some(), (1..=3).contains(&field), "AW {field}");
            if let Some(width) = width {
                assert_eq!(width.field(), field);
                assert_eq!(u64::from(width.bits()), 30 + 9 * field);
                assert_eq!(u64::from(width.levels()), 2 + field);
            }
            let paging = FirstStagePaging::from_field(field);
            assert_eq!(
                paging.map(FirstStagePaging::field),
                (field < 2).then_some(field)
            );
        }
    }

    #[test]
    fn page_sizes_match_their_levels() {
        for size in PageSize::ALL {
            assert_eq!(PageSize::of_level(size.level()), Some(size));
            assert_eq!(size.len_bytes(), 1 << (3 + 9 * u32::from(size.level())));
        }
        assert_eq!(PageSize::of_level(0), None);
        assert_eq!(PageSize::of_level(4), None);
    }

    #[test]
    fn address_arithmetic_is_checked() {
        assert_eq!(Gpa::new(u64::MAX).checked_add(1), None);
        assert_eq!(Gpa::new(1).checked_add(2), Some(Gpa::new(3)));
        assert!(Hpa::new(0xff_ffff_ffff).fits(40) && !Hpa::new(1 << 40).fits(40));
        assert!(Hpa::new(u64::MAX).fits(64));
        assert_eq!(
            Iova::new(0x40_1fff).align_down(PageSize::Size2MiB),
            Iova::new(0x40_0000)
        );
        assert_eq!(Iova::new(0x1fff).page_offset(), 0xfff);
        assert_eq!(Iova::new(0x1fff).page_number(), 1);
    }
}
