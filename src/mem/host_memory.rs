//! The host-memory seam: tables, queues and status words that hardware reads and writes.

use crate::arch::address::Hpa;

/// Length of the line that [`HostMemory::flush_line`] writes back, in bytes.
pub const LINE_SIZE_BYTES: u64 = 64;

/// Host-physical memory, shared with hardware.
///
/// Addresses are naturally aligned for the access; an implementation may round a misaligned one
/// down. Outside of what the implementation may reach, loads return all ones and stores are
/// dropped: the library only names addresses it was given, so that is a defence, not a path.
pub trait HostMemory {
    /// Loads 64 bits, as one access.
    fn read64(&self, at: Hpa) -> u64;

    /// Stores 64 bits, as one access.
    fn write64(&self, at: Hpa, value: u64);

    /// Stores 32 bits, as one access.
    fn write32(&self, at: Hpa, value: u32);

    /// Stores 128 bits as one access, low quadword first in memory.
    fn write128(&self, at: Hpa, value: u128);

    /// Clears the bits that are 0 in `mask`, atomically against hardware; returns the old value.
    fn fetch_and64(&self, at: Hpa, mask: u64) -> u64;

    /// Stores `new` if the 64 bits are `current`, atomically against hardware and processors;
    /// returns what they were.
    fn compare_exchange64(&self, at: Hpa, current: u64, new: u64) -> u64;

    /// Copies bytes out of memory. Each aligned quadword is loaded once.
    fn copy_from(&self, at: Hpa, into: &mut [u8]);

    /// Copies bytes into memory. Aligned quadwords and doublewords are stored as one access.
    fn copy_to(&self, at: Hpa, from: &[u8]);

    /// Writes the 64-byte line that holds the address back to memory.
    fn flush_line(&self, at: Hpa);

    /// Orders all earlier loads, stores and flushes before all later ones.
    fn fence(&self);

    /// Flushes every line of `len_bytes` from `at` on.
    fn flush_range(&self, at: Hpa, len_bytes: u64) {
        let mut offset = 0;
        while offset < len_bytes {
            if let Some(line) = at.checked_add(offset) {
                self.flush_line(line);
            }
            offset = offset.saturating_add(LINE_SIZE_BYTES);
        }
    }
}
