//! The guest-memory seam: hostile bytes, copied once and used from the copy.

use crate::arch::address::Gpa;

/// A guest-physical range that the guest does not have, or must not be accessed so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestMemoryError {
    /// First address of the refused access.
    pub address: Gpa,
    /// Length of the refused access in bytes.
    pub len_bytes: u64,
}

/// One guest's memory as the guest addresses it.
///
/// Every byte may change between two reads: callers read a structure once, check the copy and use
/// the copy. A naturally aligned 4- or 8-byte part is never torn.
pub trait GuestMemory {
    /// Copies bytes out of the guest's memory.
    ///
    /// # Errors
    ///
    /// When any part is not the guest's readable memory; `into` then holds arbitrary bytes.
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), GuestMemoryError>;

    /// Copies bytes into the guest's memory.
    ///
    /// # Errors
    ///
    /// When any part is not the guest's writable memory; nothing past that part is written.
    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), GuestMemoryError>;

    /// Stores `new` to a naturally aligned quadword if that is `current`, atomically; whether it was.
    ///
    /// # Errors
    ///
    /// When it is not the guest's writable memory; nothing is written.
    fn compare_exchange(&self, at: Gpa, current: u64, new: u64) -> Result<bool, GuestMemoryError>;

    /// Reads one little-endian quadword.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_u64(&self, at: Gpa) -> Result<u64, GuestMemoryError> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads `N` consecutive little-endian quadwords in one copy.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_quadwords<const N: usize>(&self, at: Gpa) -> Result<[u64; N], GuestMemoryError> {
        let mut bytes = [[0u8; 8]; N];
        self.read(at, bytes.as_flattened_mut())?;
        Ok(bytes.map(u64::from_le_bytes))
    }
}
