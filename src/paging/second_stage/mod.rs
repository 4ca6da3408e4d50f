//! Second-stage tables that the library builds (§3.7, §9.8).
//!
//! | edit | module | what hardware sees meanwhile |
//! |---|---|---|
//! | [`map`](SecondStage::map) | `map` | each page absent, then mapped |
//! | [`unmap`](SecondStage::unmap) | `unmap` | each page mapped, then absent |
//! | [`protect`](SecondStage::protect) | `protect` | the old rights, then the new ones |
//! | [`split`](SecondStage::split), [`merge`](SecondStage::merge) | `split`, `merge` | every page as it was |
//! | [`take_accessed_dirty`](SecondStage::take_accessed_dirty) | `accessed` | every page as it was |
//! | [`set_pages`](SecondStage::set_pages), [`set_leaf`](SecondStage::set_leaf) | `pages` | each page as it was, then as wanted (shadows) |
//!
//! A table is changed by one thread at a time while hardware walks it. An entry changes by one
//! 8-byte store; a table page is complete and written back before an entry points to it. An edit
//! that is refused has changed nothing: ranges are checked and frames taken before the first store.
//! What hardware may still use after an edit of present entries travels in a [`StaleMappings`] token,
//! which owns the detached table pages until the invalidation is done.
//!
//! An edit goes through its range once, from the lowest address to the highest (`cursor`, `edit`).

mod accessed;
mod config;
mod cursor;
mod dismantle;
mod edit;
mod error;
mod leaves;
mod map;
mod merge;
mod pages;
mod partial;
mod protect;
mod split;
mod stale;
#[cfg(test)]
mod tests;
mod unmap;

use core::fmt;
use core::marker::PhantomData;

use crate::arch::address::{Gpa, Hpa, Iova, PAGE_SIZE_BYTES, PageSize};
use crate::arch::second_stage::{SecondStageEntry, SecondStagePointer};
use crate::mem::host_memory::LINE_SIZE_BYTES;
use crate::mem::{FrameError, Frames, HostMemory, Owner};
use cursor::Cursor;

pub use crate::arch::second_stage::Rights;
pub use accessed::AccessedDirty;
pub use config::{ConfigError, SecondStageConfig};
pub(crate) use dismantle::Dismantling;
pub use error::MapError;
pub use leaves::{Leaf, Leaves};
pub use pages::{PageChange, PagesChanged};
pub use partial::OnPartialLeaf;
pub use stale::{MERGED_TABLES, MergedLeaves, StaleMappings};

/// Entries of one table page.
const ENTRIES: u64 = 512;
/// Bytes of one entry.
const ENTRY_BYTES: u64 = 8;
/// Most table levels there are (57-bit input).
const MAX_LEVELS: usize = 5;

/// The address space a second-stage table takes as input: guest-physical for a virtual machine's
/// own, I/O virtual for a shadow.
pub trait InputAddress: Copy + Eq + Ord + fmt::Debug + fmt::LowerHex {
    /// The address with this value, in bytes.
    fn from_u64(value: u64) -> Self;
    /// The address's value, in bytes.
    fn to_u64(self) -> u64;
}

impl InputAddress for Gpa {
    fn from_u64(value: u64) -> Self {
        Self::new(value)
    }
    fn to_u64(self) -> u64 {
        self.as_u64()
    }
}

impl InputAddress for Iova {
    fn from_u64(value: u64) -> Self {
        Self::new(value)
    }
    fn to_u64(self) -> u64 {
        self.as_u64()
    }
}

/// A second-stage table, input addresses of space `I`.
///
/// Locking: the owner serialises changes; hardware and [`translate`](Self::translate) may read at
/// any time.
#[derive(Debug)]
pub struct SecondStage<I> {
    root: Hpa,
    config: SecondStageConfig,
    owner: Owner,
    input: PhantomData<I>,
}

/// One mapping of a table, as [`SecondStage::translate`] finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Where the input address leads.
    pub output: Hpa,
    /// The rights that all levels grant.
    pub rights: Rights,
    /// Size of the leaf.
    pub size: PageSize,
    /// Place of the leaf's entry.
    slot: Hpa,
}

/// Binary order of the bytes that one entry of this level, 1 to 5, covers.
#[inline]
const fn shift_of(level: u8) -> u32 {
    12 + 9 * ((level as u32).saturating_sub(1) % 5)
}

/// Bytes that one entry of this level, 1 to 5, covers.
#[inline]
const fn span_of(level: u8) -> u64 {
    1 << shift_of(level)
}

impl<I: InputAddress> SecondStage<I> {
    /// An empty table: its root page is charged to `owner`, as every later table page.
    ///
    /// # Errors
    ///
    /// [`FrameError`] if there is no frame for the root.
    pub fn new<H: HostMemory + Frames>(
        h: &H,
        owner: Owner,
        config: SecondStageConfig,
    ) -> Result<Self, FrameError> {
        let root = h.allocate(owner, 0)?;
        let table = Self {
            root: root.address(),
            config,
            owner,
            input: PhantomData,
        };
        table.publish_page(h, table.root);
        Ok(table)
    }

    /// What stands for the table of a machine that has yet to be started. It is never used.
    pub(crate) const fn vacant() -> Self {
        Self {
            root: Hpa::new(0),
            config: SecondStageConfig::VACANT,
            owner: Owner::HYPERVISOR,
            input: PhantomData,
        }
    }

    /// The top-level table page and the levels from there on (`SSPTPTR`, `AW`).
    pub const fn root(&self) -> SecondStagePointer {
        self.config.root(self.root)
    }

    /// What the table may look like.
    pub const fn config(&self) -> &SecondStageConfig {
        &self.config
    }

    /// A page as this table has them.
    fn leaf(&self, output: Hpa, size: PageSize, rights: Rights) -> SecondStageEntry {
        SecondStageEntry::leaf(output, size, rights, self.config.forces_snoop())
    }

    /// Who the table pages are charged to.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// Where an input address leads now, or `None` where hardware would fault.
    pub fn translate<H: HostMemory>(&self, h: &H, input: I) -> Option<Mapping> {
        self.look_up(h, input).ok()
    }

    /// Where an input address leads, or the length in bytes from it on that certainly leads
    /// nowhere: up to the end of the entry that is not present.
    ///
    /// # Errors
    ///
    /// That length, at least 1.
    pub fn look_up<H: HostMemory>(&self, h: &H, input: I) -> Result<Mapping, u64> {
        let address = input.to_u64();
        if address >> self.config.input_bits().min(63) != 0 {
            return Err(u64::MAX - address);
        }
        let mut rights = Rights::READ_WRITE;
        let mut page = self.root;
        let mut level = self.config.width().levels();
        loop {
            let slot = slot_address(page, address, level);
            let entry = SecondStageEntry::from_u64(h.read64(slot));
            rights = rights.intersection(entry.rights());
            let span = span_of(level);
            let offset = address & (span - 1);
            if rights.is_none() {
                return Err(span - offset);
            }
            match PageSize::of_level(level) {
                Some(size) if entry.is_leaf(level) => {
                    let output = entry.address::<Hpa>().as_u64() & !(span - 1) | offset;
                    return Ok(Mapping {
                        output: Hpa::new(output),
                        rights,
                        size,
                        slot,
                    });
                }
                // Level 1 only has leaves, so the loop ends there at the latest.
                _ => page = entry.address(),
            }
            level = level.saturating_sub(1);
        }
    }

    /// First address beyond all that the table has entries for.
    pub(crate) const fn end(&self) -> u64 {
        1 << (self.config.width().bits() & 63)
    }

    pub(crate) fn check_input(&self, input: I, len_bytes: u64) -> Result<(), MapError> {
        let address = input.to_u64();
        if !address.is_multiple_of(PAGE_SIZE_BYTES) {
            return Err(MapError::Misaligned { value: address });
        }
        if len_bytes == 0 || !len_bytes.is_multiple_of(PAGE_SIZE_BYTES) {
            return Err(MapError::Misaligned { value: len_bytes });
        }
        let bits = self.config.input_bits();
        let limit = 1u64 << bits.min(63);
        match address.checked_add(len_bytes) {
            Some(end) if end <= limit => Ok(()),
            _ => Err(MapError::InputBeyondWidth {
                address,
                len_bytes,
                bits,
            }),
        }
    }

    fn check_output(&self, output: Hpa, len_bytes: u64) -> Result<(), MapError> {
        if output.page_offset() != 0 {
            return Err(MapError::Misaligned {
                value: output.as_u64(),
            });
        }
        let bits = self.config.output_bits();
        let end = match output.as_u64().checked_add(len_bytes) {
            Some(end) if end <= 1 << bits => end,
            _ => {
                return Err(MapError::OutputBeyondWidth {
                    address: output,
                    bits,
                });
            }
        };
        if output.as_u64() < 0xfef0_0000 && end > 0xfee0_0000 {
            return Err(MapError::InterruptRange { address: output });
        }
        Ok(())
    }

    /// Flushes the lines from `first` to `end`, if the units need it.
    fn flush_span<H: HostMemory>(&self, h: &H, first: Hpa, end: u64) {
        if self.config.needs_flush() {
            let start = first.as_u64() & !(LINE_SIZE_BYTES - 1);
            h.flush_range(Hpa::new(start), end.saturating_sub(start));
        }
    }

    fn flush_entry<H: HostMemory>(&self, h: &H, at: Hpa) {
        self.flush_entries(h, at, 1);
    }

    /// Flushes a run of entries from `at` on, if the units need it.
    fn flush_entries<H: HostMemory>(&self, h: &H, at: Hpa, count: u64) {
        let len_bytes = count.saturating_mul(ENTRY_BYTES);
        self.flush_span(h, at, at.as_u64().saturating_add(len_bytes));
    }

    /// At the start of a range.
    fn cursor(&self, first: u64, end: u64) -> Cursor {
        Cursor::new(self.root, self.config.width().levels(), first, end)
    }

    /// Makes a fresh table page visible to hardware before anything points to it.
    fn publish_page<H: HostMemory>(&self, h: &H, page: Hpa) {
        self.flush_span(h, page, page.as_u64().saturating_add(PAGE_SIZE_BYTES));
        h.fence();
    }
}

/// Address of the entry for `address` in a table page of `level`.
#[inline]
fn slot_address(page: Hpa, address: u64, level: u8) -> Hpa {
    let index = (address >> shift_of(level)) % ENTRIES;
    Hpa::new(page.as_u64() | (index * ENTRY_BYTES))
}
