//! Several regions of RAM as one host memory.

use heapless::Vec;
use vtd_nest::arch::address::Hpa;
use vtd_nest::mem::{DirectMemory, HostMemory};

use crate::memory::Region;

/// Regions that [`Ram`] has room for.
const MAX_REGIONS: usize = 72;

/// All RAM that the library and the hypervisor access: each access goes to the region that it lies
/// in, and nowhere if there is none.
pub(crate) struct Ram(Vec<Piece, MAX_REGIONS>);

struct Piece {
    start: Hpa,
    end: Hpa,
    memory: DirectMemory,
}

impl Ram {
    /// No memory.
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a region; regions added first are found first. `None` if there is no room.
    pub(crate) fn add(&mut self, region: Region) -> Option<()> {
        let start = region.start();
        let piece = Piece {
            start,
            end: start.checked_add(region.len_bytes())?,
            memory: region.into_direct_memory()?,
        };
        self.0.push(piece).ok()
    }

    fn at(&self, at: Hpa) -> Option<&DirectMemory> {
        let piece = self
            .0
            .iter()
            .find(|piece| (piece.start..piece.end).contains(&at))?;
        Some(&piece.memory)
    }
}

impl HostMemory for Ram {
    fn read64(&self, at: Hpa) -> u64 {
        self.at(at).map_or(u64::MAX, |memory| memory.read64(at))
    }

    fn write64(&self, at: Hpa, value: u64) {
        if let Some(memory) = self.at(at) {
            memory.write64(at, value);
        }
    }

    fn write32(&self, at: Hpa, value: u32) {
        if let Some(memory) = self.at(at) {
            memory.write32(at, value);
        }
    }

    fn write128(&self, at: Hpa, value: u128) {
        if let Some(memory) = self.at(at) {
            memory.write128(at, value);
        }
    }

    fn fetch_and64(&self, at: Hpa, mask: u64) -> u64 {
        self.at(at)
            .map_or(u64::MAX, |memory| memory.fetch_and64(at, mask))
    }

    fn compare_exchange64(&self, at: Hpa, current: u64, new: u64) -> u64 {
        self.at(at).map_or(u64::MAX, |memory| {
            memory.compare_exchange64(at, current, new)
        })
    }

    fn copy_from(&self, at: Hpa, into: &mut [u8]) {
        match self.at(at) {
            Some(memory) => memory.copy_from(at, into),
            None => into.fill(u8::MAX),
        }
    }

    fn copy_to(&self, at: Hpa, from: &[u8]) {
        if let Some(memory) = self.at(at) {
            memory.copy_to(at, from);
        }
    }

    fn flush_line(&self, at: Hpa) {
        if let Some(memory) = self.at(at) {
            memory.flush_line(at);
        }
    }

    fn fence(&self) {
        if let Some(piece) = self.0.first() {
            piece.memory.fence();
        }
    }
}
