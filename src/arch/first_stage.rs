//! First-stage paging entries (§9.7).

use super::address::{PageSize, PhysicalAddress};
use super::features::TableFeatures;
use super::quadwords::{beyond, bits, mask_if};

/// One 8-byte first-stage paging entry of any level, as it lies in memory (§9.7).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct FirstStageEntry(u64);

/// What a present first-stage entry refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstStageEntryMeaning<A> {
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

/// Why a unit refuses a first-stage entry (§7.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstStageEntryFault {
    /// The Present bit is clear (SFS.2).
    NotPresent,
    /// These reserved bits are set (SFS.3).
    ReservedNonZero(u64),
}

impl FirstStageEntry {
    /// The Present bit (`P`).
    pub const PRESENT: u64 = 1 << 0;
    /// The Read/Write bit (`R/W`).
    pub const WRITABLE: u64 = 1 << 1;
    /// The User/Supervisor bit (`U/S`).
    pub const USER: u64 = 1 << 2;
    /// The Accessed bit (`A`).
    pub const ACCESSED: u64 = 1 << 5;
    /// The Dirty bit (`D`), which counts in leaves.
    pub const DIRTY: u64 = 1 << 6;
    /// The Page Size bit (`PS`), which makes an entry of level 2 or 3 a leaf.
    pub const PAGE_SIZE: u64 = 1 << 7;
    /// The Extended Accessed bit (`EA`), which counts if the PASID entry's `EAFE` is set.
    pub const EXTENDED_ACCESSED: u64 = 1 << 10;

    /// The address of a table or a 4-KiB page.
    const ADDRESS: u64 = bits(51, 12);

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

    /// A present reference to the table of the next lower level, open to writes and users; the
    /// leaves restrict. Address bits outside 51:12 are dropped.
    pub fn table<A: PhysicalAddress>(address: A) -> Self {
        Self(address.to_u64() & Self::ADDRESS | Self::PRESENT | Self::WRITABLE | Self::USER)
    }

    /// A present page; address bits below the page's size and above 51 are dropped.
    pub fn leaf<A: PhysicalAddress>(
        address: A,
        size: PageSize,
        writable: bool,
        user: bool,
    ) -> Self {
        Self(
            address.to_u64() & Self::ADDRESS & !(size.len_bytes() - 1)
                | mask_if(size != PageSize::Size4KiB, Self::PAGE_SIZE)
                | Self::PRESENT
                | mask_if(writable, Self::WRITABLE)
                | mask_if(user, Self::USER),
        )
    }

    /// The entry with these bits set as well, of the constants above.
    #[inline]
    pub const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    /// The Present bit (`P`).
    #[doc(alias = "P")]
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// The Read/Write bit (`R/W`).
    #[doc(alias = "RW")]
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.0 & Self::WRITABLE != 0
    }

    /// The User/Supervisor bit (`U/S`): requests with user privilege may use the entry.
    #[doc(alias = "US")]
    #[inline]
    pub const fn is_user(self) -> bool {
        self.0 & Self::USER != 0
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

    /// The Page Size bit (`PS`), whatever the level.
    #[doc(alias = "PS")]
    #[inline]
    pub const fn page_size(self) -> bool {
        self.0 & Self::PAGE_SIZE != 0
    }

    /// The Extended Accessed bit (`EA`).
    #[doc(alias = "EA")]
    #[inline]
    pub const fn is_extended_accessed(self) -> bool {
        self.0 & Self::EXTENDED_ACCESSED != 0
    }

    /// What the entry refers to, if a unit with these features accepts it in a table of `level`,
    /// 1 (page table) to 5.
    ///
    /// That a nested guest's address lies below the second-stage width is for the walk to check.
    pub fn classify<A: PhysicalAddress>(
        self,
        level: u8,
        features: &TableFeatures,
    ) -> Result<FirstStageEntryMeaning<A>, FirstStageEntryFault> {
        if !self.is_present() {
            return Err(FirstStageEntryFault::NotPresent);
        }
        let beyond_width = beyond(features.host_address_width) & Self::ADDRESS;
        let size = match level {
            1 => Some(PageSize::Size4KiB),
            2 if self.page_size() => Some(PageSize::Size2MiB),
            3 if self.page_size() && features.first_stage_1gib => Some(PageSize::Size1GiB),
            _ => None,
        };
        let reserved = beyond_width
            | match size {
                Some(PageSize::Size4KiB) => 0,
                // Bit 12 of a large page is PAT.
                Some(size) => (size.len_bytes() - 1) & bits(63, 13),
                None => Self::PAGE_SIZE,
            };
        if self.0 & reserved != 0 {
            return Err(FirstStageEntryFault::ReservedNonZero(self.0 & reserved));
        }
        let address = self.0 & Self::ADDRESS;
        Ok(match size {
            Some(size) => FirstStageEntryMeaning::Leaf {
                address: A::from_u64(address & !(size.len_bytes() - 1)),
                size,
            },
            None => FirstStageEntryMeaning::Table {
                address: A::from_u64(address),
            },
        })
    }
}

impl core::fmt::Debug for FirstStageEntry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "FirstStageEntry({:#x})", self.0)
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
    fn each_getter_reads_its_own_bit_and_no_other() {
        type Get = fn(FirstStageEntry) -> bool;
        let fields: [(&str, u32, Get); 7] = [
            ("P", 0, FirstStageEntry::is_present),
            ("R/W", 1, FirstStageEntry::is_writable),
            ("U/S", 2, FirstStageEntry::is_user),
            ("A", 5, FirstStageEntry::is_accessed),
            ("D", 6, FirstStageEntry::is_dirty),
            ("PS", 7, FirstStageEntry::page_size),
            ("EA", 10, FirstStageEntry::is_extended_accessed),
        ];
        for (name, field, get) in fields {
            for bit in 0..64 {
                let entry = FirstStageEntry::from_u64(1 << bit);
                assert_eq!(get(entry), bit == field, "{name}, bit {bit}");
            }
        }
    }

    /// What §9.7 says of one bit in an entry of this form.
    fn is_reserved(bit: u32, level: u8, large: bool) -> bool {
        matches!(
            (bit, level, large),
            (46..52, _, _) | (7, 4 | 5, _) | (13..21, 2, true) | (13..30, 3, true)
        )
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
            let base = 1 | u64::from(large) << 7;
            for bit in 1..64 {
                if bit == 7 && matches!(level, 2 | 3) {
                    continue; // Chooses the form.
                }
                let result = FirstStageEntry(base | 1 << bit).classify::<Gpa>(level, &FEATURES);
                let fault = is_reserved(bit, level, large)
                    .then_some(FirstStageEntryFault::ReservedNonZero(1 << bit));
                assert_eq!(result.err(), fault, "level {level} large {large} bit {bit}");
            }
        }
    }

    #[test]
    fn present_comes_before_reserved_bits() {
        for level in 0..=255 {
            assert_eq!(
                FirstStageEntry(!1).classify::<Hpa>(level, &FEATURES),
                Err(FirstStageEntryFault::NotPresent)
            );
        }
    }

    #[test]
    fn large_pages_need_a_level_and_a_feature() {
        let without = TableFeatures {
            first_stage_1gib: false,
            ..FEATURES
        };
        let large = FirstStageEntry(0x4000_0081);
        assert_eq!(
            large.classify(3, &FEATURES),
            Ok(FirstStageEntryMeaning::Leaf {
                address: Hpa::new(0x4000_0000),
                size: PageSize::Size1GiB
            })
        );
        assert_eq!(
            large.classify::<Hpa>(3, &without),
            Err(FirstStageEntryFault::ReservedNonZero(0x80))
        );
        // 2-MiB pages are always there.
        assert!(large.classify::<Hpa>(2, &without).is_ok());
    }

    #[test]
    fn built_entries_classify_as_what_they_are() {
        let address = Gpa::new(0x2abc_dead_bfff);
        for size in PageSize::ALL {
            for (writable, user) in [(false, false), (false, true), (true, false), (true, true)] {
                let entry = FirstStageEntry::leaf(address, size, writable, user);
                assert_eq!((entry.is_writable(), entry.is_user()), (writable, user));
                assert_eq!(
                    entry.classify(size.level(), &FEATURES),
                    Ok(FirstStageEntryMeaning::Leaf {
                        address: address.align_down(size),
                        size
                    })
                );
            }
        }
        for level in 2..=5 {
            assert_eq!(
                FirstStageEntry::table(address).classify(level, &FEATURES),
                Ok(FirstStageEntryMeaning::Table {
                    address: Gpa::new(0x2abc_dead_b000)
                })
            );
        }
        assert_eq!(FirstStageEntry::table(Hpa::new(0x5000)).as_u64(), 0x5007);
        assert_eq!(
            FirstStageEntry::leaf(Hpa::new(0x20_0000), PageSize::Size2MiB, true, true)
                .with(FirstStageEntry::ACCESSED | FirstStageEntry::DIRTY)
                .as_u64(),
            0x20_00e7
        );
    }

    #[test]
    fn pat_of_a_large_page_is_not_part_of_its_address() {
        assert_eq!(
            FirstStageEntry(0x0020_1081).classify(2, &FEATURES),
            Ok(FirstStageEntryMeaning::Leaf {
                address: Gpa::new(0x20_0000),
                size: PageSize::Size2MiB
            })
        );
    }
}
