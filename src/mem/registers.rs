//! The register seam: all that the logic above knows of a remapping unit.

use crate::arch::register::{Register32, Register64};

/// One remapping unit's registers.
///
/// Accesses happen in program order, each as one aligned access of its width (§11.2). An
/// implementation never panics: a register outside the window reads all ones and ignores writes.
pub trait Registers {
    /// Reads a 32-bit register.
    fn read32(&self, register: Register32) -> u32;
    /// Writes a 32-bit register.
    fn write32(&mut self, register: Register32, value: u32);
    /// Reads a 64-bit register.
    fn read64(&self, register: Register64) -> u64;
    /// Writes a 64-bit register.
    fn write64(&mut self, register: Register64, value: u64);
    /// Length of the register window in bytes (DRHD size, §8.3).
    fn window_bytes(&self) -> u64;
}
