//! Physical memory: what is where, who owns it, and the accesses to it through the identity map.
//!
//! A leaf with `unsafe`. Everything outside the image is in one of two states: *free* RAM, which
//! nobody accesses, or the rest (device registers, firmware's tables, modules), to which anybody may
//! have a [`Window`] with volatile accesses. Free RAM becomes a [`Region`] of one owner.

use core::ptr::NonNull;
use core::{fmt, ptr, slice};

use heapless::Vec;
use vtd_nest::arch::address::{Hpa, PAGE_SIZE_BYTES};
use vtd_nest::mem::{DirectMemory, MmioRegisters};

use crate::boot::{self, BootInformation, RangeKind};

/// Ranges of free RAM that [`Memory`] can tell apart.
const MAX_FREE_RANGES: usize = 64;

/// Memory below is left alone: it holds firmware's data and the code that starts processors.
const LOW_MEMORY_END: Hpa = Hpa::new(1 << 20);

/// Why memory cannot be had.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum MemoryError {
    /// The memory map is split into more than [`MAX_FREE_RANGES`] free ranges.
    TooFragmented,
    /// No free range holds `len_bytes` aligned to `alignment_bytes`.
    OutOfMemory {
        len_bytes: u64,
        alignment_bytes: u64,
    },
    /// The alignment is no power of two.
    Alignment(u64),
    /// The range is empty, past the identity map, in the image, or in RAM that is free or owned.
    NotAWindow { start: Hpa, len_bytes: u64 },
}

/// A range of physical addresses, `end` excluded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FreeRange {
    pub(crate) start: Hpa,
    pub(crate) end: Hpa,
}

impl FreeRange {
    pub(crate) fn len_bytes(self) -> u64 {
        self.end.as_u64().saturating_sub(self.start.as_u64())
    }

    fn overlaps(self, start: Hpa, end: Hpa) -> bool {
        self.start < end && start < self.end
    }
}

impl fmt::Display for FreeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// All physical memory. There is one value of it.
pub(crate) struct Memory {
    /// What was free at first, and is either free or owned now: no window goes there.
    free_at_boot: Vec<FreeRange, MAX_FREE_RANGES>,
    free: Vec<FreeRange, MAX_FREE_RANGES>,
    mapped_end: Hpa,
}

impl Memory {
    /// Sorts out which RAM is free: outside low memory, the image, the modules and whatever else the
    /// memory map says about the same addresses.
    pub(crate) fn new(information: &BootInformation) -> Result<Self, MemoryError> {
        let mapped_end = boot::identity_map_end();
        let mut free = ram(information, mapped_end)?;
        for module in &information.modules {
            remove(&mut free, module.start, module.end)?;
        }
        remove(&mut free, Hpa::new(0), LOW_MEMORY_END)?;
        remove(&mut free, boot::image_start(), boot::image_end())?;
        free.sort_unstable_by_key(|range| range.start);
        Ok(Self {
            free_at_boot: free.clone(),
            free,
            mapped_end,
        })
    }

    /// The RAM that is still free, in ascending order.
    pub(crate) fn free(&self) -> &[FreeRange] {
        &self.free
    }

    /// Takes a region out of free RAM: its length rounded up to pages, its start a multiple of
    /// `alignment_bytes`, at least a page. What it holds is left over from before.
    ///
    /// The lowest fitting place above the image is taken, so that the hypervisor's memory is one
    /// run as long as that RAM lasts; then the lowest below.
    pub(crate) fn allocate(
        &mut self,
        len_bytes: u64,
        alignment_bytes: u64,
    ) -> Result<Region, MemoryError> {
        if !alignment_bytes.is_power_of_two() {
            return Err(MemoryError::Alignment(alignment_bytes));
        }
        let exhausted = MemoryError::OutOfMemory {
            len_bytes,
            alignment_bytes,
        };
        let alignment = alignment_bytes.max(PAGE_SIZE_BYTES);
        let len_bytes = len_bytes
            .max(1)
            .checked_next_multiple_of(PAGE_SIZE_BYTES)
            .ok_or(exhausted)?;
        let place_in = |range: &FreeRange| {
            let start = range.start.as_u64().checked_next_multiple_of(alignment)?;
            let end = start.checked_add(len_bytes)?;
            (end <= range.end.as_u64()).then_some((Hpa::new(start), Hpa::new(end)))
        };
        let image_end = boot::image_end();
        let (start, end) = self
            .free
            .iter()
            .filter(|range| range.start >= image_end)
            .find_map(place_in)
            .or_else(|| self.free.iter().find_map(place_in))
            .ok_or(exhausted)?;
        remove(&mut self.free, start, end)?;
        self.free.sort_unstable_by_key(|range| range.start);
        Ok(Region(Window { start, len_bytes }))
    }

    /// The run of addresses that the hypervisor keeps for itself: the image and everything that was
    /// allocated, and what lies between.
    pub(crate) fn hypervisor_range(&self) -> FreeRange {
        let mut range = FreeRange {
            start: boot::image_start(),
            end: boot::image_end(),
        };
        let mut taken = self.free_at_boot.clone();
        for free in &self.free {
            // Cannot split more than what was free at first did.
            let _ = remove(&mut taken, free.start, free.end);
        }
        for taken in &taken {
            range.start = range.start.min(taken.start);
            range.end = range.end.max(taken.end);
        }
        range
    }

    /// Gives up all RAM outside [`hypervisor_range`](Self::hypervisor_range), low memory and modules
    /// included, for a guest to own; the page at address 0, which no pointer leads to, excepted.
    pub(crate) fn into_guest_ram(
        self,
        information: &BootInformation,
    ) -> Result<Vec<Region, MAX_FREE_RANGES>, MemoryError> {
        let own = self.hypervisor_range();
        let mut ram = ram(information, self.mapped_end)?;
        remove(&mut ram, own.start, own.end)?;
        remove(&mut ram, Hpa::new(0), Hpa::new(PAGE_SIZE_BYTES))?;
        let regions = ram.iter().map(|range| {
            Region(Window {
                start: range.start,
                len_bytes: range.len_bytes(),
            })
        });
        Ok(regions.collect())
    }

    /// A window on device registers, firmware's tables or a module.
    pub(crate) fn window(&self, start: Hpa, len_bytes: u64) -> Result<Window, MemoryError> {
        let refused = MemoryError::NotAWindow { start, len_bytes };
        let end = start.checked_add(len_bytes).ok_or(refused)?;
        let in_image = start < boot::image_end() && end > boot::image_start();
        let in_ram = self
            .free_at_boot
            .iter()
            .any(|range| range.overlaps(start, end));
        if len_bytes == 0 || start.as_u64() == 0 || end > self.mapped_end || in_image || in_ram {
            return Err(refused);
        }
        Ok(Window { start, len_bytes })
    }
}

/// The whole pages of RAM below `mapped_end` that the memory map says nothing else about.
fn ram(
    information: &BootInformation,
    mapped_end: Hpa,
) -> Result<Vec<FreeRange, MAX_FREE_RANGES>, MemoryError> {
    let mut ram = Vec::new();
    for range in &information.memory_map {
        let start = range
            .start
            .as_u64()
            .checked_next_multiple_of(PAGE_SIZE_BYTES);
        let end = range.end.min(mapped_end).as_u64() / PAGE_SIZE_BYTES * PAGE_SIZE_BYTES;
        let Some(start) = start.filter(|start| *start < end) else {
            continue;
        };
        if range.kind == RangeKind::Ram {
            let range = FreeRange {
                start: Hpa::new(start),
                end: Hpa::new(end),
            };
            // A range named twice must not be handed out twice.
            remove(&mut ram, range.start, range.end)?;
            ram.push(range).map_err(|_| MemoryError::TooFragmented)?;
        }
    }
    for range in &information.memory_map {
        if range.kind != RangeKind::Ram {
            remove(&mut ram, range.start, range.end)?;
        }
    }
    Ok(ram)
}

/// Cuts `start..end` out of the ranges; on an error they are as they were.
fn remove(
    ranges: &mut Vec<FreeRange, MAX_FREE_RANGES>,
    start: Hpa,
    end: Hpa,
) -> Result<(), MemoryError> {
    if start >= end {
        return Ok(());
    }
    let mut kept = Vec::new();
    for range in ranges.iter() {
        let before = FreeRange {
            start: range.start,
            end: range.end.min(start),
        };
        let after = FreeRange {
            start: range.start.max(end),
            end: range.end,
        };
        for part in [before, after] {
            if part.start < part.end {
                kept.push(part).map_err(|_| MemoryError::TooFragmented)?;
            }
        }
    }
    *ranges = kept;
    Ok(())
}

/// A range of physical addresses outside which no access of this value goes, and which no Rust
/// object lies in.
#[derive(Debug)]
pub(crate) struct Window {
    start: Hpa,
    len_bytes: u64,
}

macro_rules! accesses {
    ($($read:ident, $write:ident: $type:ty;)*) => {$(
        /// Reads at `offset` bytes from the start; `None` if that is unaligned or not all inside.
        #[allow(dead_code, reason = "one of a set")]
        pub(crate) fn $read(&self, offset: u64) -> Option<$type> {
            let pointer = self.pointer::<$type>(offset)?;
            // SAFETY: `pointer` checked alignment and bounds. The window lies in the identity map,
            // outside the image and outside everything that is lent as a slice: `Memory` makes
            // windows only there, and `Region` gives up its window before it becomes a slice.
            Some(unsafe { pointer.read_volatile() })
        }

        /// Writes at `offset` bytes from the start; `None` if that is unaligned or not all inside.
        #[allow(dead_code, reason = "one of a set")]
        pub(crate) fn $write(&mut self, offset: u64, value: $type) -> Option<()> {
            let pointer = self.pointer::<$type>(offset)?;
            // SAFETY: as for reading.
            unsafe { pointer.write_volatile(value) };
            Some(())
        }
    )*};
}

impl Window {
    /// Gives the window to the library as a remapping unit's registers.
    pub(crate) fn into_unit_registers(self) -> Option<MmioRegisters> {
        if !self.start.as_u64().is_multiple_of(PAGE_SIZE_BYTES) {
            return None;
        }
        let base = NonNull::new(ptr::with_exposed_provenance_mut(
            self.start.as_u64() as usize
        ))?;
        // SAFETY: the window is page-aligned, in the identity map, and outside RAM; the one who
        // asked for it named a unit's registers and gives it up here. The identity map leaves
        // caching to the memory type range registers, in which firmware has device memory uncached.
        Some(unsafe { MmioRegisters::new(base, self.len_bytes) })
    }

    /// First address.
    pub(crate) fn start(&self) -> Hpa {
        self.start
    }

    /// Length in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    accesses! {
        read_u8, write_u8: u8;
        read_u16, write_u16: u16;
        read_u32, write_u32: u32;
        read_u64, write_u64: u64;
    }

    fn pointer<T>(&self, offset: u64) -> Option<*mut T> {
        let size = size_of::<T>() as u64;
        let address = self.start.checked_add(offset)?.as_u64();
        let is_inside = offset.checked_add(size)? <= self.len_bytes;
        (is_inside && address.is_multiple_of(size))
            .then(|| ptr::with_exposed_provenance_mut(address as usize))
    }
}

/// RAM with one owner, for as long as the machine runs; the owner may share it with a device.
//
// The window stays private: whoever could swap it for another would have that one as bytes.
#[derive(Debug)]
pub(crate) struct Region(Window);

impl Region {
    /// Gives the region to the library as host memory.
    pub(crate) fn into_direct_memory(self) -> Option<DirectMemory> {
        let base = NonNull::new(ptr::with_exposed_provenance_mut(
            self.0.start.as_u64() as usize
        ))?;
        // SAFETY: a region is RAM of one owner in the identity map, which is linear, writable and
        // write-back cached; the owner gives it up here, so no reference covers it.
        Some(unsafe { DirectMemory::new(base, self.0.start, self.0.len_bytes) })
    }

    /// First address.
    pub(crate) fn start(&self) -> Hpa {
        self.0.start
    }

    /// Length in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.0.len_bytes
    }

    /// The region, zeroed, for accesses that may race with the processor's own.
    pub(crate) fn into_zeroed_window(mut self) -> Window {
        for offset in (0..self.0.len_bytes).step_by(8) {
            let _ = self.0.write_u64(offset, 0);
        }
        self.0
    }

    /// The region as zeroed bytes. No device may be left with an address in it.
    pub(crate) fn into_zeroed_bytes(self) -> &'static mut [u8] {
        let (start, len) = (self.0.start.as_u64() as usize, self.0.len_bytes as usize);
        let pointer = ptr::with_exposed_provenance_mut::<u8>(start);
        // SAFETY: `Memory` cut the region out of free RAM, which is mapped, and made this one value
        // for it, which is consumed; so nothing else accesses it from now on. It is not at address
        // 0, which is low memory, and initialised by the first statement.
        unsafe {
            pointer.write_bytes(0, len);
            slice::from_raw_parts_mut(pointer, len)
        }
    }
}
