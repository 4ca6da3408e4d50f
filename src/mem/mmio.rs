//! The real register seam: a remapping unit's registers, mapped into the address space.

use core::ptr::NonNull;

use volatile::VolatilePtr;

use super::registers::Registers;
use crate::arch::register::{Register32, Register64};

/// A unit's register window in memory.
#[derive(Debug)]
pub struct MmioRegisters {
    base: NonNull<u8>,
    window_bytes: u64,
}

// SAFETY: the window is plain device memory that `new`'s caller gave to this value alone; it can
// be used from any processor.
unsafe impl Send for MmioRegisters {}

impl MmioRegisters {
    /// Takes over a register window.
    ///
    /// # Safety
    ///
    /// `base` is 4-KiB aligned and maps `window_bytes` bytes of the unit's registers, uncached,
    /// for as long as the value lives, and nothing else accesses them meanwhile.
    pub const unsafe fn new(base: NonNull<u8>, window_bytes: u64) -> Self {
        Self { base, window_bytes }
    }

    fn pointer<T>(&self, offset: u16) -> Option<VolatilePtr<'_, T>> {
        let end = u64::from(offset) + size_of::<T>() as u64;
        if end > self.window_bytes {
            return None;
        }
        // SAFETY: `new`'s caller vouched for the window, and the access ends inside it. Register
        // offsets are multiples of the register's size (`Register32`, `Register64`) and the base
        // is page-aligned, so the pointer is aligned.
        Some(unsafe { VolatilePtr::new(self.base.byte_add(usize::from(offset)).cast::<T>()) })
    }
}

impl Registers for MmioRegisters {
    fn read32(&self, register: Register32) -> u32 {
        self.pointer(register.offset())
            .map_or(u32::MAX, |pointer| pointer.read())
    }

    fn write32(&mut self, register: Register32, value: u32) {
        if let Some(pointer) = self.pointer(register.offset()) {
            pointer.write(value);
        }
    }

    fn read64(&self, register: Register64) -> u64 {
        self.pointer(register.offset())
            .map_or(u64::MAX, |pointer| pointer.read())
    }

    fn write64(&mut self, register: Register64, value: u64) {
        if let Some(pointer) = self.pointer(register.offset()) {
            pointer.write(value);
        }
    }

    fn window_bytes(&self) -> u64 {
        self.window_bytes
    }
}
