//! Second-stage tables that the library builds (§3.7, §9.8): map, unmap, translate, destroy.
//!
//! A table is changed by one thread at a time while hardware walks it. Entries change from not
//! present to present and back by one 8-byte store each; a table page is complete and written
//! back before an entry points to it. What hardware may still have cached after an [`unmap`]
//! travels in an [`Unmapped`] token, which owns the table pages until the invalidation is done.
//!
//! [`unmap`]: SecondStage::unmap

mod dismantle;
mod map;
mod pages;
#[cfg(test)]
mod tests;
mod unmap;

use core::fmt;
use core::marker::PhantomData;

use crate::arch::address::{AddressWidth, Gpa, Hpa, Iova, PAGE_SIZE_BYTES, PageSize};
use crate::arch::second_stage::SecondStageEntry;
use crate::arch::told::Told;
use crate::mem::host_memory::LINE_SIZE_BYTES;
use crate::mem::{FrameChain, FrameError, Frames, HostMemory, Owner};

pub use crate::arch::second_stage::Rights;
pub(crate) use dismantle::Dismantling;
pub use pages::{PageChange, PagesChanged};

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

/// What a table may look like: the common ability of every unit that walks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondStageConfig {
    /// Levels and input width; one of `CAP.SAGAW` (§11.4.2).
    pub width: AddressWidth,
    /// Bits of an input address that hardware accepts: min(`CAP.MGAW`, width).
    pub input_bits: u8,
    /// Bits of an output address that are not reserved: the host address width (§8.1).
    pub output_bits: u8,
    /// Whether 2-MiB leaves are supported (`CAP.SSLPS` bit 0).
    pub leaves_2mib: bool,
    /// Whether 1-GiB leaves are supported (`CAP.SSLPS` bit 1).
    pub leaves_1gib: bool,
    /// Whether every change has to be flushed from the processor caches, because some unit's
    /// walks are not snooped (`ECAP.SMPWCS`, §3.10).
    pub flush: bool,
}

/// Why a mapping was not changed. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// An address or the length is no multiple of 4 KiB, or the length is 0.
    Misaligned {
        /// The offending value in bytes.
        value: u64,
    },
    /// The input range passes the width of the table.
    InputBeyondWidth {
        /// First input address.
        address: u64,
        /// Length in bytes.
        len_bytes: u64,
        /// Bits that an input address may have.
        bits: u8,
    },
    /// The output range passes the host address width.
    OutputBeyondWidth {
        /// First output address.
        address: Hpa,
        /// Bits that an output address may have.
        bits: u8,
    },
    /// The output range touches the interrupt range 0xFEEx_xxxx (§3.15).
    InterruptRange {
        /// First output address.
        address: Hpa,
    },
    /// A page of the range is mapped already.
    Overlap {
        /// Input address of that page.
        address: u64,
    },
    /// The range ends inside a large page.
    PartialLeaf {
        /// Input address of the large page.
        address: u64,
        /// Its size.
        size: PageSize,
    },
    /// No right at all was asked for: that is not a mapping.
    NoRights,
    /// No frame for a table page.
    Frames(FrameError),
}

impl MapError {
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::Misaligned { value } => Told::one("misaligned", value),
            Self::InputBeyondWidth {
                address, len_bytes, ..
            } => Told::two("input beyond the width", address, len_bytes),
            Self::OutputBeyondWidth { address, bits } => {
                Told::two("output beyond the width", address.as_u64(), bits as u64)
            }
            Self::InterruptRange { address } => {
                Told::one("output in the interrupt range", address.as_u64())
            }
            Self::Overlap { address } => Told::one("mapped already", address),
            Self::PartialLeaf { address, size } => {
                Told::two("part of a large page", address, size.len_bytes())
            }
            Self::NoRights => Told::words("no rights"),
            Self::Frames(error) => error.told(),
        }
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.told(), f)
    }
}

impl core::error::Error for MapError {}

impl From<FrameError> for MapError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}

/// What hardware may still use after an unmap, and owns the detached table pages.
///
/// Owed: an IOTLB invalidation of the range for every domain-id that uses the table; after it
/// the frames are free. Dropped, its frames are lost to the pool, counted, and never reused.
#[must_use = "hardware may use the old mapping until it is invalidated"]
#[derive(Debug)]
pub struct Unmapped<I> {
    /// First input address that lost its mapping.
    pub first: I,
    /// Length in bytes of the range to invalidate, whole leaves.
    pub len_bytes: u64,
    /// Number of leaves removed.
    pub leaves: u64,
    tables: FrameChain,
}

impl<I> Unmapped<I> {
    /// Whether only leaf entries changed, so that the invalidation may carry the leaf hint
    /// (`IH`, §6.5.2.3).
    pub const fn is_leaf_only(&self) -> bool {
        self.tables.is_empty()
    }

    /// Adds what another unmap of the same table detached; the ranges are joined.
    pub fn merge<H: HostMemory>(&mut self, h: &H, other: Self)
    where
        I: InputAddress,
    {
        let end = |first: I, len: u64| first.to_u64().saturating_add(len);
        let end = end(self.first, self.len_bytes).max(end(other.first, other.len_bytes));
        self.first = self.first.min(other.first);
        self.len_bytes = end.saturating_sub(self.first.to_u64());
        self.leaves = self.leaves.saturating_add(other.leaves);
        self.tables.append(h, other.tables);
    }

    /// Returns the table pages to the pool, once the invalidation of the range has completed on
    /// every unit that uses the table. The crate's `nest` layer calls it with that knowledge.
    pub(crate) fn settle<H: HostMemory + Frames>(self, h: &H) {
        self.tables.free(h);
    }

    /// As [`settle`](Self::settle), for one who returns the table pages in slices.
    pub(crate) fn into_tables(self) -> FrameChain {
        self.tables
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
}

/// Bytes that one entry of this level, 1 to 5, covers.
const fn span_of(level: u8) -> u64 {
    1 << (12 + 9 * ((level as u32).saturating_sub(1) % 5))
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
            config: SecondStageConfig {
                width: AddressWidth::Bits48,
                input_bits: 0,
                output_bits: 0,
                leaves_2mib: false,
                leaves_1gib: false,
                flush: false,
            },
            owner: Owner::HYPERVISOR,
            input: PhantomData,
        }
    }

    /// Host-physical address of the top-level table page (`SSPTPTR`).
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// What the table may look like.
    pub const fn config(&self) -> &SecondStageConfig {
        &self.config
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
        if address >> self.config.input_bits.min(63) != 0 {
            return Err(u64::MAX - address);
        }
        let mut rights = Rights::READ_WRITE;
        let mut page = self.root;
        let mut level = self.config.width.levels();
        loop {
            let entry = entry_at(h, page, address, level);
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
                    });
                }
                // Level 1 only has leaves, so the loop ends there at the latest.
                _ => page = entry.address(),
            }
            level = level.saturating_sub(1);
        }
    }

    fn check_input(&self, input: I, len_bytes: u64) -> Result<(), MapError> {
        let address = input.to_u64();
        if !address.is_multiple_of(PAGE_SIZE_BYTES) {
            return Err(MapError::Misaligned { value: address });
        }
        if len_bytes == 0 || !len_bytes.is_multiple_of(PAGE_SIZE_BYTES) {
            return Err(MapError::Misaligned { value: len_bytes });
        }
        let bits = self.config.input_bits.min(self.config.width.bits());
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
        // Address bits 63:52 are no address bits in an entry, whatever the host address width.
        let bits = self.config.output_bits.min(52);
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
        if self.config.flush {
            let start = first.as_u64() & !(LINE_SIZE_BYTES - 1);
            h.flush_range(Hpa::new(start), end.saturating_sub(start));
        }
    }

    fn flush_entry<H: HostMemory>(&self, h: &H, at: Hpa) {
        self.flush_span(h, at, at.as_u64().saturating_add(ENTRY_BYTES));
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
    let index = address / span_of(level) % ENTRIES;
    Hpa::new(page.as_u64() | (index * ENTRY_BYTES))
}

#[inline]
fn entry_at<H: HostMemory>(h: &H, page: Hpa, address: u64, level: u8) -> SecondStageEntry {
    SecondStageEntry::from_u64(h.read64(slot_address(page, address, level)))
}
