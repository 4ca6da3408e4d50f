//! Second-stage paging entries (§9.8).

use super::address::{AddressWidth, Hpa, PageSize, PhysicalAddress};
use super::features::TableFeatures;
use super::quadwords::{beyond, bits, mask_if};

/// What a second-stage entry, or a whole walk, permits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Rights {
    /// Reads are permitted.
    pub read: bool,
    /// Writes are permitted.
    pub write: bool,
}

impl Rights {
    /// Nothing is permitted.
    pub const NONE: Self = Self {
        read: false,
        write: false,
    };
    /// Only reads are permitted.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    /// Only writes are permitted.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };
    /// Reads, writes and atomic operations are permitted.
    pub const READ_WRITE: Self = Self {
        read: true,
        write: true,
    };

    /// What both permit: the rights of a walk are those of all its entries together (§3.7.1).
    #[inline]
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self {
            read: self.read && other.read,
            write: self.write && other.write,
        }
    }

    /// Whether all that `other` permits is permitted here.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        (self.read || !other.read) && (self.write || !other.write)
    }

    /// Whether nothing is permitted.
    #[inline]
    pub const fn is_none(self) -> bool {
        !self.read && !self.write
    }
}

/// Where a second-stage table of the host begins and how many levels it has: one value, because
/// hardware that walks other levels than were built takes pages for tables (§9.6, `SSPTPTR` and
/// `AW`).
///
/// The tables that the library builds give it, for a width that their units have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SecondStagePointer {
    address: Hpa,
    width: AddressWidth,
}

impl SecondStagePointer {
    /// The top-level page at `address` of a table of this width, built for units that have it.
    pub const fn new(address: Hpa, width: AddressWidth) -> Self {
        Self { address, width }
    }

    /// Address of the top-level page (`SSPTPTR`).
    #[doc(alias = "SSPTPTR")]
    pub const fn address(self) -> Hpa {
        self.address
    }

    /// Input width, which also is the number of levels (`AW`).
    #[doc(alias = "AW")]
    pub const fn width(self) -> AddressWidth {
        self.width
    }
}

/// One 8-byte second-stage paging entry of any level, as it lies in memory (§9.8).
///
/// The read and write bits are bits 0 and 1; this library never sets `SSIRWE`, which would move
/// them to bits 61 and 62.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct SecondStageEntry(u64);

/// What a present second-stage entry refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecondStageEntryMeaning<A> {
    /// The table of the next lower level.
    Table {
        /// The table's address.
        address: A,
    },
    /// A page.
    Leaf {
        /// The page's address, aligned to its size.
        address: A,
        /// The page's size.
        size: PageSize,
    },
}

/// Why a unit refuses a second-stage entry (§7.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecondStageEntryFault {
    /// Neither reads nor writes are permitted (SSS.2; in legacy mode LGN.2 and LGN.3).
    NotPresent,
    /// These reserved bits are set (SSS.3, LSS.2).
    ReservedNonZero(u64),
}

impl SecondStageEntry {
    /// The Read bit (`R`).
    pub const READ: u64 = 1 << 0;
    /// The Write bit (`W`).
    pub const WRITE: u64 = 1 << 1;
    /// The Page Size bit (`PS`), which makes an entry of level 2 or 3 a leaf.
    pub const PAGE_SIZE: u64 = 1 << 7;
    /// The Accessed bit (`A`), which counts if the PASID entry's `SSADE` is set.
    pub const ACCESSED: u64 = 1 << 8;
    /// The Dirty bit (`D`) of leaves, which counts if the PASID entry's `SSADE` is set.
    pub const DIRTY: u64 = 1 << 9;
    /// The Snoop bit (`SNP`) of leaves.
    pub const SNOOP: u64 = 1 << 11;

    /// The address of a table or a 4-KiB page.
    const ADDRESS: u64 = bits(51, 12);
    /// Reserved in entries of every level.
    const RESERVED: u64 = 1 << 62;

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

    /// The address field, bits 51:12, of an entry that was built by this library; an entry of
    /// unknown origin goes through [`classify`](Self::classify).
    #[inline]
    pub fn address<A: PhysicalAddress>(self) -> A {
        A::from_u64(self.0 & Self::ADDRESS)
    }

    /// A reference to the table of the next lower level that permits everything; the leaves
    /// restrict. Address bits outside 51:12 are dropped.
    pub fn table<A: PhysicalAddress>(address: A) -> Self {
        Self(address.to_u64() & Self::ADDRESS | Self::READ | Self::WRITE)
    }

    /// A page; address bits below the page's size and above 51 are dropped. With no rights the
    /// entry is not present. `snoop` needs `ECAP.SC`.
    pub fn leaf<A: PhysicalAddress>(
        address: A,
        size: PageSize,
        rights: Rights,
        snoop: bool,
    ) -> Self {
        Self(
            address.to_u64() & Self::ADDRESS & !(size.len_bytes() - 1)
                | mask_if(size != PageSize::Size4KiB, Self::PAGE_SIZE)
                | mask_if(rights.read, Self::READ)
                | mask_if(rights.write, Self::WRITE)
                | mask_if(snoop, Self::SNOOP),
        )
    }

    /// The entry with these rights instead of its own.
    #[inline]
    #[must_use]
    pub const fn with_rights(self, rights: Rights) -> Self {
        Self(
            self.0 & !(Self::READ | Self::WRITE)
                | mask_if(rights.read, Self::READ)
                | mask_if(rights.write, Self::WRITE),
        )
    }

    /// The entry with these bits set as well, of the constants above.
    #[inline]
    pub const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    /// The Read bit (`R`).
    #[doc(alias = "R")]
    #[inline]
    pub const fn is_readable(self) -> bool {
        self.0 & Self::READ != 0
    }

    /// The Write bit (`W`).
    #[doc(alias = "W")]
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// The rights of this entry alone.
    #[inline]
    pub const fn rights(self) -> Rights {
        Rights {
            read: self.is_readable(),
            write: self.is_writable(),
        }
    }

    /// Whether reads or writes are permitted.
    #[inline]
    pub const fn is_present(self) -> bool {
        self.is_readable() || self.is_writable()
    }

    /// Whether an entry of this level, 1 to 5, is a leaf, on a unit with all page sizes.
    #[inline]
    pub const fn is_leaf(self, level: u8) -> bool {
        match level {
            1 => true,
            2 | 3 => self.page_size(),
            _ => false,
        }
    }

    /// The Page Size bit (`PS`), whatever the level.
    #[doc(alias = "PS")]
    #[inline]
    pub const fn page_size(self) -> bool {
        self.0 & Self::PAGE_SIZE != 0
    }

    /// The Accessed bit (`A`).
    #[doc(alias = "A")]
    #[inline]
    pub const fn is_accessed(self) -> bool {
        self.0 & Self::ACCESSED != 0
    }

    /// The Dirty bit (`D`).
    #[doc(alias = "D")]
    #[inline]
    pub const fn is_dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }

    /// The Snoop bit (`SNP`).
    #[doc(alias = "SNP")]
    #[inline]
    pub const fn is_snooped(self) -> bool {
        self.0 & Self::SNOOP != 0
    }

    /// What the entry refers to, if a unit with these features accepts it in a table of `level`,
    /// 1 (page table) to 5.
    ///
    /// Memory types (bits 6:3) are ignored: they count only under `EMTE`.
    pub fn classify<A: PhysicalAddress>(
        self,
        level: u8,
        features: &TableFeatures,
    ) -> Result<SecondStageEntryMeaning<A>, SecondStageEntryFault> {
        if !self.is_present() {
            return Err(SecondStageEntryFault::NotPresent);
        }
        let size = match level {
            1 => Some(PageSize::Size4KiB),
            2 if self.page_size() && features.second_stage_2mib => Some(PageSize::Size2MiB),
            3 if self.page_size() && features.second_stage_1gib => Some(PageSize::Size1GiB),
            _ => None,
        };
        let reserved = Self::RESERVED
            | beyond(features.host_address_width) & Self::ADDRESS
            | match size {
                Some(size) => {
                    (size.len_bytes() - 1) & Self::ADDRESS
                        | mask_if(!features.snoop_control, Self::SNOOP)
                }
                None => Self::PAGE_SIZE | Self::SNOOP,
            };
        if self.0 & reserved != 0 {
            return Err(SecondStageEntryFault::ReservedNonZero(self.0 & reserved));
        }
        let address = A::from_u64(self.0 & Self::ADDRESS);
        Ok(match size {
            Some(size) => SecondStageEntryMeaning::Leaf { address, size },
            None => SecondStageEntryMeaning::Table { address },
        })
    }
}

impl core::fmt::Debug for SecondStageEntry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SecondStageEntry({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::address::Gpa;

    const FEATURES: TableFeatures = TableFeatures {
        host_address_width: 46,
        ..TableFeatures::EVERYTHING
    };

    #[test]
    fn each_getter_reads_its_own_bit_and_no_other() {
        type Get = fn(SecondStageEntry) -> bool;
        let fields: [(&str, u32, Get); 6] = [
            ("R", 0, SecondStageEntry::is_readable),
            ("W", 1, SecondStageEntry::is_writable),
            ("PS", 7, SecondStageEntry::page_size),
            ("A", 8, SecondStageEntry::is_accessed),
            ("D", 9, SecondStageEntry::is_dirty),
            ("SNP", 11, SecondStageEntry::is_snooped),
        ];
        for (name, field, get) in fields {
            for bit in 0..64 {
                let entry = SecondStageEntry::from_u64(1 << bit);
                assert_eq!(get(entry), bit == field, "{name}, bit {bit}");
            }
        }
        for bit in 0..64 {
            assert_eq!(SecondStageEntry(1 << bit).is_present(), bit < 2);
        }
    }

    /// What §9.8 says of one bit in an entry of this form.
    fn is_reserved(bit: u32, level: u8, large: bool) -> bool {
        let leaf = level == 1 || large;
        match (bit, level) {
            (62, _) | (46..52, _) => true,
            (11, _) => !leaf,
            (7, 4 | 5) => true,
            (12..21, 2) | (12..30, 3) => large,
            _ => false,
        }
    }

    #[test]
    fn reserved_bits_are_refused_one_by_one() {
        for (level, large) in [
            (1, false),
            (2, false),
            (2, true),
            (3, false),
            (3, true),
            (4, false),
            (5, false),
        ] {
            for present in [1, 2, 3] {
                let base = present | u64::from(large) << 7;
                for bit in 2..64 {
                    if bit == 7 && matches!(level, 2 | 3) {
                        continue; // Chooses the form.
                    }
                    let result =
                        SecondStageEntry(base | 1 << bit).classify::<Hpa>(level, &FEATURES);
                    let fault = is_reserved(bit, level, large)
                        .then_some(SecondStageEntryFault::ReservedNonZero(1 << bit));
                    assert_eq!(result.err(), fault, "level {level} large {large} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn snoop_is_reserved_without_snoop_control() {
        let without = TableFeatures {
            snoop_control: false,
            ..FEATURES
        };
        for size in PageSize::ALL {
            let leaf = SecondStageEntry::leaf(Hpa::new(0), size, Rights::READ, true);
            assert!(leaf.classify::<Hpa>(size.level(), &FEATURES).is_ok());
            assert_eq!(
                leaf.classify::<Hpa>(size.level(), &without),
                Err(SecondStageEntryFault::ReservedNonZero(0x800))
            );
        }
    }

    #[test]
    fn large_pages_need_a_level_and_a_feature() {
        for (level, with_2mib, with_1gib, is_leaf) in [
            (2, true, false, true),
            (2, false, true, false),
            (3, false, true, true),
            (3, true, false, false),
        ] {
            let features = TableFeatures {
                second_stage_2mib: with_2mib,
                second_stage_1gib: with_1gib,
                ..FEATURES
            };
            let result = SecondStageEntry(0x83).classify::<Hpa>(level, &features);
            if is_leaf {
                assert!(matches!(result, Ok(SecondStageEntryMeaning::Leaf { .. })));
            } else {
                assert_eq!(result, Err(SecondStageEntryFault::ReservedNonZero(0x80)));
            }
        }
    }

    #[test]
    fn presence_comes_before_reserved_bits() {
        for level in 0..=255 {
            assert_eq!(
                SecondStageEntry(!3).classify::<Hpa>(level, &FEATURES),
                Err(SecondStageEntryFault::NotPresent)
            );
        }
    }

    #[test]
    fn built_entries_classify_as_what_they_are() {
        let address = Gpa::new(0x2abc_dead_bfff);
        for size in PageSize::ALL {
            for rights in [Rights::READ, Rights::WRITE, Rights::READ_WRITE] {
                let entry = SecondStageEntry::leaf(address, size, rights, true);
                assert_eq!(entry.rights(), rights);
                assert!(entry.is_snooped() && entry.is_leaf(size.level()));
                assert_eq!(
                    entry.classify(size.level(), &FEATURES),
                    Ok(SecondStageEntryMeaning::Leaf {
                        address: address.align_down(size),
                        size
                    })
                );
            }
            let none = SecondStageEntry::leaf(address, size, Rights::NONE, false);
            assert!(!none.is_present());
        }
        for level in 2..=5 {
            let entry = SecondStageEntry::table(address);
            assert_eq!(
                (entry.rights(), entry.is_leaf(level)),
                (Rights::READ_WRITE, false)
            );
            assert_eq!(
                entry.classify(level, &FEATURES),
                Ok(SecondStageEntryMeaning::Table {
                    address: Gpa::new(0x2abc_dead_b000)
                })
            );
        }
        assert_eq!(SecondStageEntry::table(Hpa::new(0x5000)).as_u64(), 0x5003);
        assert_eq!(
            SecondStageEntry::leaf(
                Hpa::new(0x4000_0000),
                PageSize::Size1GiB,
                Rights::READ,
                false
            )
            .as_u64(),
            0x4000_0081
        );
    }

    #[test]
    fn rights_intersect_and_contain() {
        const ALL: [Rights; 4] = [
            Rights::NONE,
            Rights::READ,
            Rights::WRITE,
            Rights::READ_WRITE,
        ];
        // As sets of two bits, in the order above.
        for (a, left) in (0..4).zip(ALL) {
            for (b, right) in (0..4).zip(ALL) {
                assert_eq!(left.intersection(right), ALL[a & b]);
                assert_eq!(left.contains(right), a & b == b);
            }
            assert_eq!(left.is_none(), a == 0);
        }
    }
}
