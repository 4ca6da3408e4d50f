//! Nested paging: an identity map of the machine's address space, with holes.

use vtd_nest::arch::address::{Hpa, PAGE_SIZE_BYTES};

use crate::cpu::{Access, MapError};
use crate::memory::Window;

/// Pages for tables: four levels, and one more for each large page that is split.
pub(crate) const TABLE_PAGES: u64 = 64;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// All accesses of a guest count as a user's.
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const TABLE: u64 = PRESENT | WRITABLE | USER;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Level of the tables whose entries lead to 4-KiB pages, …
const PAGES: u32 = 1;
/// … and of the root.
const ROOT: u32 = 4;

/// Bytes that one entry of a level covers.
const fn entry_len_bytes(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

/// The tables.
#[derive(Debug)]
pub(crate) struct NestedTables {
    pages: Window,
    /// Pages in use, the root being the first.
    used: u64,
    end: u64,
    largest_leaf: u32,
    /// The hypervisor's own: absent for good.
    hidden: (Hpa, Hpa),
}

impl NestedTables {
    /// Tables in `pages`, zeroed, that map everything below `end` to itself, but for the range
    /// `hidden`, which stays absent.
    pub(crate) fn new(
        pages: Window,
        end: Hpa,
        has_1gib_pages: bool,
        hidden: (Hpa, Hpa),
    ) -> Result<Self, MapError> {
        let mut tables = Self {
            pages,
            used: 1,
            end: end.as_u64(),
            largest_leaf: if has_1gib_pages { 3 } else { 2 },
            hidden,
        };
        tables.set(Hpa::new(0), hidden.0, Access::Full)?;
        tables.set(hidden.1, end, Access::Full)?;
        Ok(tables)
    }

    /// Physical address of the root.
    pub(crate) fn root(&self) -> u64 {
        self.pages.start().as_u64()
    }

    /// Changes what the guest may do with the pages from `start` to before `end`.
    pub(crate) fn set(&mut self, start: Hpa, end: Hpa, access: Access) -> Result<(), MapError> {
        if access != Access::None && start < self.hidden.1 && self.hidden.0 < end {
            return Err(MapError::Hypervisor(start));
        }
        let mut at = start.as_u64() & !(PAGE_SIZE_BYTES - 1);
        let end = end
            .as_u64()
            .checked_next_multiple_of(PAGE_SIZE_BYTES)
            .filter(|end| *end <= self.end)
            .ok_or(MapError::OutOfReach(end))?;
        while at < end {
            let level = (PAGES..=self.largest_leaf)
                .rev()
                .find(|level| {
                    let len = entry_len_bytes(*level);
                    at.is_multiple_of(len) && end - at >= len
                })
                .unwrap_or(PAGES);
            let place = self.entry(at, level)?;
            self.write(place, leaf(at, level, access));
            at += entry_len_bytes(level);
        }
        Ok(())
    }

    /// The place of the entry for an address at a level; large pages above are split on the way. A
    /// table that a large page replaces stays in use: holes are made once, at start.
    fn entry(&mut self, address: u64, level: u32) -> Result<u64, MapError> {
        let mut table = 0;
        for upper in (level + 1..=ROOT).rev() {
            let place = place(table, address, upper);
            let entry = self.read(place);
            table = if entry & (PRESENT | LARGE) == PRESENT {
                (entry & ADDRESS).wrapping_sub(self.root())
            } else {
                let new = self.used * PAGE_SIZE_BYTES;
                if new >= self.pages.len_bytes() {
                    return Err(MapError::Full);
                }
                self.used += 1;
                // Each entry of the new table allows what the large page did.
                if entry & PRESENT != 0 {
                    let access = if entry & WRITABLE != 0 {
                        Access::Full
                    } else {
                        Access::ReadOnly
                    };
                    let len = entry_len_bytes(upper - 1);
                    let first = address & !(entry_len_bytes(upper) - 1);
                    for index in 0..512 {
                        self.write(
                            new + index * 8,
                            leaf(first + index * len, upper - 1, access),
                        );
                    }
                }
                self.write(place, (self.root() + new) | TABLE);
                new
            };
        }
        Ok(place(table, address, level))
    }

    // Places come from `place`, within pages in use.
    fn read(&self, place: u64) -> u64 {
        self.pages.read_u64(place).unwrap_or(0)
    }

    fn write(&mut self, place: u64, entry: u64) {
        let _ = self.pages.write_u64(place, entry);
    }
}

fn place(table: u64, address: u64, level: u32) -> u64 {
    table + address / entry_len_bytes(level) % 512 * 8
}

fn leaf(address: u64, level: u32, access: Access) -> u64 {
    let rights = match access {
        Access::None => return 0,
        Access::ReadOnly => PRESENT | USER,
        Access::Full => PRESENT | USER | WRITABLE,
    };
    let size = if level == PAGES { 0 } else { LARGE };
    address | rights | size
}
