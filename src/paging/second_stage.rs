//! Second-stage tables that the library builds (§3.7, §9.8): map, unmap, translate, destroy.
//!
//! A table is changed by one thread at a time while hardware walks it. Entries change from not
//! present to present and back by one 8-byte store each; a table page is complete and written
//! back before an entry points to it. What hardware may still have cached after an [`unmap`]
//! travels in an [`Unmapped`] token, which owns the table pages until the invalidation is done.
//!
//! [`unmap`]: SecondStage::unmap

use core::fmt;
use core::marker::PhantomData;

use crate::arch::address::{AddressWidth, Gpa, Hpa, Iova, PAGE_SIZE_BYTES, PageSize};
use crate::arch::second_stage::SecondStageEntry;
use crate::mem::host_memory::LINE_SIZE_BYTES;
use crate::mem::{FrameChain, FrameError, Frames, HostMemory, Owner};

pub use crate::arch::second_stage::Rights;

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

impl From<FrameError> for MapError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}

/// What hardware may still use after an unmap, and owns the detached table pages.
///
/// Owed: an IOTLB invalidation of the range for every domain-id that uses the table, then
/// [`settle`](Self::settle). Dropped, its frames are lost to the pool, counted, and never reused.
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

/// What [`SecondStage::set_page`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageChange {
    /// Nothing: the page already was as wanted.
    None,
    /// A page that led nowhere leads somewhere. Hardware may only know the difference with
    /// caching mode.
    Added,
    /// A page that led somewhere leads elsewhere or nowhere: an invalidation is owed.
    Replaced,
}

/// Entries of one size that lie side by side in one table page.
#[derive(Clone, Copy)]
struct Run {
    size: PageSize,
    count: u64,
    /// Highest level whose entry on the path is not present; 0 if the table page exists.
    missing_from: u8,
}

impl Run {
    fn len_bytes(&self) -> u64 {
        self.count.saturating_mul(self.size.len_bytes())
    }
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
        let table = Self { root: root.address(), config, owner, input: PhantomData };
        table.publish_page(h, table.root);
        Ok(table)
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

    /// Maps `len_bytes` from `input` on to `output`, in the largest pages that fit.
    ///
    /// No invalidation is owed on a unit without caching mode and write-buffer flushing; with
    /// either, the caller invalidates the range (§6.5.3.5).
    ///
    /// # Errors
    ///
    /// [`MapError`]: ranges and overlaps are checked and all table pages reserved before the
    /// first entry is written.
    pub fn map<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        output: Hpa,
        len_bytes: u64,
        rights: Rights,
    ) -> Result<(), MapError> {
        self.check_input(input, len_bytes)?;
        self.check_output(output, len_bytes)?;
        if !rights.read && !rights.write {
            return Err(MapError::NoRights);
        }
        let wanted = self.count_missing_tables(h, input, output, len_bytes)?;
        let mut reserve = FrameChain::allocate(h, self.owner, wanted)?;

        let mut done = 0;
        while done < len_bytes {
            let address = input.to_u64().saturating_add(done);
            let target = output.as_u64().saturating_add(done);
            let run = self.next_run(h, address, target, len_bytes - done)?;
            let Some(at) = self.descend(h, address, run.size.level(), &mut reserve) else { break };
            let first = SecondStageEntry::leaf(Hpa::new(target), run.size, rights, false);
            self.fill(h, at, first, run);
            done = done.saturating_add(run.len_bytes());
        }
        h.fence();
        reserve.free(h);
        Ok(())
    }

    /// Removes every mapping in `len_bytes` from `input` on. Pages that are not mapped are no
    /// error.
    ///
    /// # Errors
    ///
    /// [`MapError`]: misaligned, beyond the width, or the range ends inside a large page.
    pub fn unmap<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        len_bytes: u64,
    ) -> Result<Unmapped<I>, MapError> {
        self.check_input(input, len_bytes)?;
        let (first, widened) = self.widen_to_leaves(h, input, len_bytes);
        if first != input {
            return Err(self.partial_leaf(h, first.to_u64()));
        }
        if widened != len_bytes {
            return Err(self.partial_leaf(h, input.to_u64().saturating_add(len_bytes)));
        }
        Ok(self.remove(h, input, len_bytes))
    }

    /// Removes every leaf that overlaps the range, whole. The range is 4-KiB aligned and within
    /// the width; the token says what went.
    ///
    /// # Errors
    ///
    /// [`MapError`]: misaligned or beyond the width.
    pub fn unmap_covering<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        len_bytes: u64,
    ) -> Result<Unmapped<I>, MapError> {
        self.check_input(input, len_bytes)?;
        let (first, len_bytes) = self.widen_to_leaves(h, input, len_bytes);
        Ok(self.remove(h, first, len_bytes))
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
                    return Ok(Mapping { output: Hpa::new(output), rights, size });
                }
                // Level 1 only has leaves, so the loop ends there at the latest.
                _ => page = entry.address(),
            }
            level = level.saturating_sub(1);
        }
    }

    /// Makes one 4-KiB page lead to `wanted`, or nowhere, by one store, whatever it led to before.
    ///
    /// Only for tables whose leaves are all 4-KiB pages, which shadows are: a leaf changes into
    /// another leaf of the same size, so hardware sees the old one or the new one (§6.5.3.3).
    ///
    /// # Errors
    ///
    /// [`MapError`]; the page is unchanged.
    pub fn set_page<H: HostMemory + Frames>(
        &mut self,
        h: &H,
        input: I,
        wanted: Option<(Hpa, Rights)>,
    ) -> Result<PageChange, MapError> {
        self.check_input(input, PAGE_SIZE_BYTES)?;
        let address = input.to_u64();
        let entry = match wanted {
            Some((output, rights)) if !rights.is_none() => {
                self.check_output(output, PAGE_SIZE_BYTES)?;
                SecondStageEntry::leaf(output, PageSize::Size4KiB, rights, false)
            }
            _ => SecondStageEntry::from_u64(0),
        };
        let mut page = self.root;
        let mut level = self.config.width.levels();
        while level > 1 {
            let at = slot_address(page, address, level);
            let current = SecondStageEntry::from_u64(h.read64(at));
            if current.is_present() && current.is_leaf(level) {
                return Err(MapError::Overlap { address });
            }
            if current.is_present() {
                page = current.address();
            } else if !entry.is_present() {
                return Ok(PageChange::None);
            } else {
                let run = h.allocate(self.owner, 0)?;
                page = run.address();
                self.publish_page(h, page);
                h.write64(at, SecondStageEntry::table(page).as_u64());
                self.flush_entry(h, at);
            }
            level -= 1;
        }
        let at = slot_address(page, address, 1);
        let current = SecondStageEntry::from_u64(h.read64(at));
        if current == entry {
            return Ok(PageChange::None);
        }
        h.write64(at, entry.as_u64());
        self.flush_entry(h, at);
        Ok(if current.is_present() { PageChange::Replaced } else { PageChange::Added })
    }

    /// Takes the whole table apart. Nothing may point to it any more; the frames are free once
    /// the token is settled.
    pub fn destroy<H: HostMemory + Frames>(mut self, h: &H) -> Unmapped<I> {
        let whole = 1u64 << self.config.input_bits.min(63);
        let mut unmapped = self.remove(h, I::from_u64(0), whole);
        unmapped.tables.push(h, self.root);
        unmapped
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
            _ => Err(MapError::InputBeyondWidth { address, len_bytes, bits }),
        }
    }

    fn check_output(&self, output: Hpa, len_bytes: u64) -> Result<(), MapError> {
        if output.page_offset() != 0 {
            return Err(MapError::Misaligned { value: output.as_u64() });
        }
        // Address bits 63:52 are no address bits in an entry, whatever the host address width.
        let bits = self.config.output_bits.min(52);
        let end = match output.as_u64().checked_add(len_bytes) {
            Some(end) if end <= 1 << bits => end,
            _ => return Err(MapError::OutputBeyondWidth { address: output, bits }),
        };
        if output.as_u64() < 0xfef0_0000 && end > 0xfee0_0000 {
            return Err(MapError::InterruptRange { address: output });
        }
        Ok(())
    }

    /// The next entries to write for a mapping: their size and how many lie side by side.
    ///
    /// A leaf is as large as alignment, length and the table allow: where a lower table exists,
    /// even an empty one, it is used, because replacing it by a leaf would owe an invalidation.
    ///
    /// # Errors
    ///
    /// [`MapError::Overlap`] if any of the entries is a leaf already.
    fn next_run<H: HostMemory>(&self, h: &H, address: u64, target: u64, rest: u64) -> Result<Run, MapError> {
        let mut page = Some(self.root);
        let mut level = self.config.width.levels();
        let mut missing_from = 0;
        loop {
            let entry = page.map(|page| entry_at(h, page, address, level)).filter(|entry| entry.is_present());
            if entry.is_some_and(|entry| level == 1 || entry.is_leaf(level)) {
                return Err(MapError::Overlap { address });
            }
            if let Some(entry) = entry {
                page = Some(entry.address());
            } else if let Some(size) = self.leaf_size(level, address, target, rest) {
                let count = self.free_run(h, page, address, rest, size)?;
                return Ok(Run { size, count, missing_from });
            } else if page.take().is_some() {
                missing_from = level;
            }
            // `leaf_size` always allows level 1, so the loop ends there at the latest.
            level = level.saturating_sub(1);
        }
    }

    /// The leaf size of `level`, if such a leaf may map `address` to `target` within `rest` bytes.
    fn leaf_size(&self, level: u8, address: u64, target: u64, rest: u64) -> Option<PageSize> {
        let size = PageSize::of_level(level.max(1))?;
        let supported = match size {
            PageSize::Size4KiB => return Some(size),
            PageSize::Size2MiB => self.config.leaves_2mib,
            PageSize::Size1GiB => self.config.leaves_1gib,
        };
        let fits = (address | target) & (size.len_bytes() - 1) == 0 && rest >= size.len_bytes();
        (supported && fits).then_some(size)
    }

    /// Number of entries of this size from `address` on, in one table page and within `rest`, that
    /// are free; at least one.
    fn free_run<H: HostMemory>(
        &self,
        h: &H,
        page: Option<Hpa>,
        address: u64,
        rest: u64,
        size: PageSize,
    ) -> Result<u64, MapError> {
        let level = size.level();
        let index = (address >> (12 + 9 * (u32::from(level) - 1))) % ENTRIES;
        let most = (rest / size.len_bytes()).min(ENTRIES - index).max(1);
        let Some(page) = page else { return Ok(most) };
        let mut at = slot_address(page, address, level).as_u64();
        for count in 0..most {
            let entry = SecondStageEntry::from_u64(h.read64(Hpa::new(at)));
            if entry.is_present() {
                if level == 1 || entry.is_leaf(level) {
                    return Err(MapError::Overlap { address: address.saturating_add(count * size.len_bytes()) });
                }
                return Ok(count.max(1));
            }
            at = at.saturating_add(ENTRY_BYTES);
        }
        Ok(most)
    }

    /// Writes a run of entries from `at` on, each leading one page further.
    fn fill<H: HostMemory>(&self, h: &H, at: Hpa, first: SecondStageEntry, run: Run) {
        let mut entry = first.as_u64();
        let end = at.as_u64().saturating_add(run.count.saturating_mul(ENTRY_BYTES));
        let mut slot = at.as_u64();
        while slot < end {
            h.write64(Hpa::new(slot), entry);
            entry = entry.wrapping_add(run.size.len_bytes());
            slot += ENTRY_BYTES;
        }
        self.flush_span(h, at, end);
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

    /// The entry's place for `address` at `level`; missing tables come from `reserve`.
    fn descend<H: HostMemory>(&self, h: &H, address: u64, level: u8, reserve: &mut FrameChain) -> Option<Hpa> {
        let mut page = self.root;
        let mut current = self.config.width.levels();
        while current > level {
            let at = slot_address(page, address, current);
            let entry = SecondStageEntry::from_u64(h.read64(at));
            if entry.is_present() {
                page = entry.address();
            } else {
                page = reserve.pop(h)?;
                self.publish_page(h, page);
                h.write64(at, SecondStageEntry::table(page).as_u64());
                self.flush_entry(h, at);
            }
            current -= 1;
        }
        Some(slot_address(page, address, level))
    }

    /// Counts the table pages that mapping the range needs, and finds overlaps.
    fn count_missing_tables<H: HostMemory>(
        &self,
        h: &H,
        input: I,
        output: Hpa,
        len_bytes: u64,
    ) -> Result<u32, MapError> {
        let mut missing = 0u32;
        let mut done = 0;
        // End of the input range of the missing table counted last, by the level of its parent.
        let mut counted_to = [0u64; MAX_LEVELS + 1];
        while done < len_bytes {
            let address = input.to_u64().saturating_add(done);
            let target = output.as_u64().saturating_add(done);
            let run = self.next_run(h, address, target, len_bytes - done)?;
            for (level, counted_to) in counted_to.iter_mut().enumerate() {
                // An entry of this level will have to point to a new table.
                let level = level as u8;
                if level > run.size.level() && level <= run.missing_from && address >= *counted_to {
                    missing = missing.saturating_add(1);
                    *counted_to = (address & !(span_of(level) - 1)).saturating_add(span_of(level));
                }
            }
            done = done.saturating_add(run.len_bytes());
        }
        Ok(missing)
    }

    /// The range widened so that it covers every leaf it touches.
    fn widen_to_leaves<H: HostMemory>(&self, h: &H, input: I, len_bytes: u64) -> (I, u64) {
        let first = input.to_u64();
        let end = first.saturating_add(len_bytes);
        let leaf_start = |address: u64| {
            self.translate(h, I::from_u64(address)).map(|mapping| {
                let start = address & !(mapping.size.len_bytes() - 1);
                (start, start.saturating_add(mapping.size.len_bytes()))
            })
        };
        let widened_first = leaf_start(first).map_or(first, |(start, _)| start);
        let widened_end = leaf_start(end.saturating_sub(PAGE_SIZE_BYTES)).map_or(end, |(_, leaf_end)| leaf_end);
        (I::from_u64(widened_first), widened_end.saturating_sub(widened_first))
    }

    fn partial_leaf<H: HostMemory>(&self, h: &H, address: u64) -> MapError {
        let size = self.translate(h, I::from_u64(address)).map_or(PageSize::Size4KiB, |mapping| mapping.size);
        MapError::PartialLeaf { address: address & !(size.len_bytes() - 1), size }
    }

    /// Removes all leaves of a range that cuts no leaf, and detaches the table pages that the
    /// range covers whole. Depth-first, without recursion: at most one position a level.
    fn remove<H: HostMemory>(&mut self, h: &H, input: I, len_bytes: u64) -> Unmapped<I> {
        let first = input.to_u64();
        let end = first.saturating_add(len_bytes);
        let mut tables = FrameChain::new(self.owner);
        let mut leaves = 0u64;
        let mut pages = [self.root; MAX_LEVELS + 1];
        let top = self.config.width.levels();
        let mut level = top;
        let mut address = first;
        // Every step either goes down one level or moves on by one entry's span, so the walk
        // visits each entry of each table page in the range at most twice.
        while address < end {
            let Some(&page) = pages.get(usize::from(level)) else { break };
            let span = span_of(level);
            let at = slot_address(page, address, level);
            let entry = SecondStageEntry::from_u64(h.read64(at));
            if entry.is_present() && level > 1 && !entry.is_leaf(level) {
                level -= 1;
                if let Some(below) = pages.get_mut(usize::from(level)) {
                    *below = entry.address();
                }
                continue;
            }
            if entry.is_present() {
                h.write64(at, 0);
                self.flush_entry(h, at);
                leaves = leaves.saturating_add(1);
            }
            address = (address & !(span - 1)).saturating_add(span);
            // Leave every table page whose last entry has been passed; detach it if the range
            // covers all that it maps.
            while level < top {
                let parent_span = span_of(level + 1);
                if address < end && !address.is_multiple_of(parent_span) {
                    break;
                }
                let covered_start = address.saturating_sub(1) & !(parent_span - 1);
                let child = pages.get(usize::from(level)).copied();
                level += 1;
                if covered_start >= first
                    && address == covered_start.saturating_add(parent_span)
                    && let (Some(child), Some(&parent)) = (child, pages.get(usize::from(level)))
                {
                    let parent_slot = slot_address(parent, covered_start, level);
                    h.write64(parent_slot, 0);
                    self.flush_entry(h, parent_slot);
                    tables.push(h, child);
                    self.flush_entry(h, child);
                }
            }
        }
        h.fence();
        Unmapped { first: input, len_bytes, leaves, tables }
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
