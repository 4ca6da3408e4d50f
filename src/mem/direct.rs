//! The real host-memory seam: physical memory seen through one linear mapping.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::host_memory::HostMemory;
use crate::arch::address::Hpa;

/// Host-physical memory through a linear mapping.
///
/// Loads and stores are atomic accesses of their width, so they may race with hardware and with
/// guests. Outside the window loads give all ones and stores are dropped.
#[derive(Debug)]
pub struct DirectMemory {
    base: NonNull<u8>,
    first: Hpa,
    len_bytes: u64,
}

// SAFETY: every access through the value is atomic, and `new`'s caller vouched that the memory is
// there for all processors as long as the value lives.
unsafe impl Send for DirectMemory {}
// SAFETY: as for `Send`; no method needs exclusive access.
unsafe impl Sync for DirectMemory {}

impl DirectMemory {
    /// The window of `len_bytes` from host-physical `first` on, mapped at `base`.
    ///
    /// # Safety
    ///
    /// As long as the value lives, `base` maps that physical range linearly, readable, writable
    /// and write-back cached; it is aligned as `first` is modulo 4 KiB; and no Rust reference
    /// covers a byte in it that the library is given to use (frames, guest memory).
    pub const unsafe fn new(base: NonNull<u8>, first: Hpa, len_bytes: u64) -> Self {
        Self {
            base,
            first,
            len_bytes,
        }
    }

    /// The mapped place of an aligned access of `size` bytes, if it lies in the window.
    #[inline]
    fn place(&self, at: Hpa, size: u64) -> Option<NonNull<u8>> {
        let offset = (at.as_u64() & !(size - 1)).checked_sub(self.first.as_u64())?;
        if offset > self.len_bytes.checked_sub(size)? {
            return None;
        }
        // SAFETY: the offset lies in the range that `new`'s caller vouched for.
        Some(unsafe { self.base.byte_add(offset as usize) })
    }

    #[inline]
    fn atomic64(&self, at: Hpa) -> Option<&AtomicU64> {
        let place = self.place(at, 8)?;
        // SAFETY: the place is mapped (`place`), 8-byte aligned (rounded down there, and the base
        // is aligned as the physical address), and only accessed atomically or by hardware.
        Some(unsafe { place.cast::<AtomicU64>().as_ref() })
    }

    #[inline]
    fn atomic32(&self, at: Hpa) -> Option<&AtomicU32> {
        let place = self.place(at, 4)?;
        // SAFETY: as in `atomic64`, for 4 bytes.
        Some(unsafe { place.cast::<AtomicU32>().as_ref() })
    }
}

impl HostMemory for DirectMemory {
    #[inline]
    fn read64(&self, at: Hpa) -> u64 {
        self.atomic64(at)
            .map_or(u64::MAX, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    fn write64(&self, at: Hpa, value: u64) {
        if let Some(word) = self.atomic64(at) {
            word.store(value, Ordering::Release);
        }
    }

    #[inline]
    fn write32(&self, at: Hpa, value: u32) {
        if let Some(word) = self.atomic32(at) {
            word.store(value, Ordering::Release);
        }
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    fn write128(&self, at: Hpa, value: u128) {
        let Some(place) = self.place(at, 16) else {
            return;
        };
        let pointer = place.cast::<u128>().as_ptr();
        let mut low = self.read64(at);
        let mut high = at.checked_add(8).map_or(0, |next| self.read64(next));
        // Only this call writes here, so the first attempt may fail by a stale `low`/`high` at most;
        // the bound is against a caller that breaks that.
        for _ in 0..64 {
            let swapped: u8;
            // The plain instruction, because the compiler's 128-bit atomics need a target feature
            // that the bare target does not enable; every processor with VT-d has it.
            // SAFETY: the place is mapped and 16-byte aligned (`place`); RBX is saved because the
            // compiler reserves it.
            unsafe {
                core::arch::asm!(
                    "xchg rsi, rbx",
                    "lock cmpxchg16b [rdi]",
                    "sete r8b",
                    "mov rbx, rsi",
                    in("rdi") pointer,
                    inout("rsi") value as u64 => _,
                    out("r8b") swapped,
                    in("rcx") (value >> 64) as u64,
                    inout("rax") low,
                    inout("rdx") high,
                    options(nostack)
                );
            }
            if swapped != 0 {
                return;
            }
        }
    }

    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    fn write128(&self, at: Hpa, value: u128) {
        // Hosts without the instruction only run tests, where nothing reads concurrently.
        self.write64(at, value as u64);
        if let Some(next) = at.checked_add(8) {
            self.write64(next, (value >> 64) as u64);
        }
    }

    #[inline]
    fn fetch_and64(&self, at: Hpa, mask: u64) -> u64 {
        self.atomic64(at)
            .map_or(u64::MAX, |word| word.fetch_and(mask, Ordering::AcqRel))
    }

    fn compare_exchange64(&self, at: Hpa, current: u64, new: u64) -> u64 {
        self.atomic64(at).map_or(u64::MAX, |word| {
            let (Ok(found) | Err(found)) =
                word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
            found
        })
    }

    fn copy_from(&self, at: Hpa, into: &mut [u8]) {
        let mut position = 0;
        while let Some(rest) = into.get_mut(position..).filter(|rest| !rest.is_empty()) {
            let Some(current) = at.checked_add(position as u64) else {
                return;
            };
            let skip = (current.as_u64() % 8) as usize;
            let word = self.read64(current).to_le_bytes();
            let available = word.get(skip..).unwrap_or_default();
            for (to, from) in rest.iter_mut().zip(available) {
                *to = *from;
            }
            position += available.len();
        }
    }

    fn copy_to(&self, at: Hpa, from: &[u8]) {
        let mut position = 0;
        while let Some(rest) = from.get(position..).filter(|rest| !rest.is_empty()) {
            let Some(current) = at.checked_add(position as u64) else {
                return;
            };
            let address = current.as_u64();
            if address % 8 == 0
                && let Some(bytes) = rest.first_chunk::<8>()
            {
                self.write64(current, u64::from_le_bytes(*bytes));
                position += 8;
            } else if address % 4 == 0
                && let Some(bytes) = rest.first_chunk::<4>()
            {
                self.write32(current, u32::from_le_bytes(*bytes));
                position += 4;
            } else {
                if let (Some(place), Some(byte)) = (self.place(current, 1), rest.first()) {
                    // SAFETY: the place is one mapped byte (`place`).
                    unsafe { place.as_ptr().write_volatile(*byte) };
                }
                position += 1;
            }
        }
    }

    #[inline]
    fn flush_line(&self, at: Hpa) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if let Some(place) = self.place(at, 1) {
            // SAFETY: flushing a mapped line changes no value.
            unsafe { core::arch::x86_64::_mm_clflush(place.as_ptr()) };
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = at;
    }

    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    #[repr(C, align(4096))]
    struct Page([u8; 4096]);

    #[test]
    fn accesses_stay_in_the_window_and_copies_take_any_alignment() {
        let mut page = vec![Page([0; 4096])];
        let base = NonNull::new(page.as_mut_ptr().cast::<u8>()).unwrap();
        // SAFETY: the page lives to the end of the test and is used through the value only.
        let memory = unsafe { DirectMemory::new(base, Hpa::new(0x10_0000), 4096) };
        let at = |offset: u64| Hpa::new(0x10_0000 + offset);

        memory.write64(at(4088), 0x1122_3344_5566_7788);
        assert_eq!(memory.read64(at(4088)), 0x1122_3344_5566_7788);
        for outside in [
            Hpa::new(0),
            Hpa::new(0xf_fff8),
            at(4096),
            Hpa::new(u64::MAX),
        ] {
            memory.write64(outside, 1);
            memory.write32(outside, 1);
            memory.write128(outside, 1);
            assert_eq!(memory.read64(outside), u64::MAX);
        }

        memory.write128(at(32), 0xffff_0000_1111_2222_3333_4444_5555_6666);
        assert_eq!(memory.read64(at(32)), 0x3333_4444_5555_6666);
        assert_eq!(memory.read64(at(40)), 0xffff_0000_1111_2222);
        assert_eq!(memory.fetch_and64(at(40), 0xff), 0xffff_0000_1111_2222);
        assert_eq!(memory.read64(at(40)), 0x22);

        for offset in 0..9 {
            for len in 0..20 {
                let bytes: vec::Vec<u8> = (0..len).map(|i| i as u8 ^ 0x5a).collect();
                memory.write64(at(offset & !7), 0);
                memory.copy_to(at(offset), &bytes);
                let mut back = vec![0; len];
                memory.copy_from(at(offset), &mut back);
                assert_eq!(back, bytes, "offset {offset}, length {len}");
            }
        }
        memory.flush_range(at(0), 4096);
        memory.fence();
    }
}
