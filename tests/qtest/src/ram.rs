//! The machine's memory, mapped into this process.

use std::fs::File;
use std::io;
use std::path::Path;
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};
use vtd_nest::arch::address::Hpa;
use vtd_nest::mem::{DirectMemory, HostMemory};

use crate::emulator::StartError;

const MEBIBYTE: u64 = 1 << 20;

/// A range of the machine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryRange {
    /// First byte.
    pub start: Hpa,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// What the machine's memory is used for. Memory starts at address 0 and has no holes for devices
/// beyond its first MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamLayout {
    /// Total length in bytes.
    pub total_bytes: u64,
    /// Frames of the hypervisor: a quarter of all, 256 MiB at most, from 16 MiB on.
    pub frames: MemoryRange,
    /// The rest after the frames, for guests; nothing here touches it.
    pub guests: MemoryRange,
}

impl RamLayout {
    /// The layout of memory of this length.
    pub(crate) fn new(total_bytes: u64) -> Result<Self, StartError> {
        let allowed = 64 * MEBIBYTE..=2048 * MEBIBYTE;
        if !allowed.contains(&total_bytes) || !total_bytes.is_multiple_of(MEBIBYTE) {
            return Err(StartError::RamBytes(total_bytes));
        }
        let frames = MemoryRange {
            start: Hpa::new(16 * MEBIBYTE),
            len_bytes: (total_bytes / 4).min(256 * MEBIBYTE),
        };
        let start = frames.start.as_u64() + frames.len_bytes;
        Ok(Self {
            total_bytes,
            frames,
            guests: MemoryRange {
                start: Hpa::new(start),
                len_bytes: total_bytes - start,
            },
        })
    }
}

/// The mapped memory.
pub(crate) struct Ram {
    memory: DirectMemory,
    mapping: MmapRaw,
    layout: RamLayout,
}

impl Ram {
    /// A file without a name for memory of this layout. Memory that was never written has no
    /// storage.
    pub(crate) fn file(layout: &RamLayout) -> io::Result<File> {
        let shared = Path::new("/dev/shm");
        let file = if shared.is_dir() {
            tempfile::tempfile_in(shared)?
        } else {
            tempfile::tempfile()?
        };
        file.set_len(layout.total_bytes)?;
        Ok(file)
    }

    /// Maps the memory.
    pub(crate) fn map(file: &File, layout: RamLayout) -> io::Result<Self> {
        let len_bytes = usize::try_from(layout.total_bytes).map_err(io::Error::other)?;
        let mapping = MmapOptions::new().len(len_bytes).map_raw(file)?;
        let base = NonNull::new(mapping.as_mut_ptr())
            .ok_or_else(|| io::Error::other("mapped at address 0"))?;
        // SAFETY: the mapping is shared, readable and writable, page-aligned and of this length,
        // it lives as long as the value does (`mapping`), and no reference into it is ever made.
        let memory = unsafe { DirectMemory::new(base, Hpa::new(0), layout.total_bytes) };
        Ok(Self {
            memory,
            mapping,
            layout,
        })
    }

    /// The memory.
    pub(crate) fn memory(&self) -> &DirectMemory {
        &self.memory
    }

    /// Its layout.
    pub(crate) fn layout(&self) -> RamLayout {
        self.layout
    }

    /// Makes all of it 0.
    pub(crate) fn clear(&self) {
        // SAFETY: the pages stay mapped and read as 0 after that; nobody has a reference to them.
        if unsafe { self.mapping.unchecked_advise(UncheckedAdvice::Remove) }.is_ok() {
            return;
        }
        // The file system cannot give pages back. Pages without storage are not written.
        for at in (0..self.layout.total_bytes).step_by(8).map(Hpa::new) {
            if self.memory.read64(at) != 0 {
                self.memory.write64(at, 0);
            }
        }
    }
}
