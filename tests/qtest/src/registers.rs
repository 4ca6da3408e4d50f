//! The unit's registers.

use std::sync::Arc;

use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::Registers;

use crate::emulator::{Emulator, Operation};

/// Where the emulated machine has its unit.
const BASE: u64 = 0xfed9_0000;

/// The length of its register window in bytes.
const WINDOW_BYTES: u64 = 4096;

/// The registers of the machine's remapping unit. Clones are the same unit.
///
/// Each access panics when the emulator is lost.
#[derive(Clone)]
pub struct QtestRegisters(Arc<Emulator>);

impl QtestRegisters {
    pub(crate) fn new(emulator: &Arc<Emulator>) -> Self {
        Self(Arc::clone(emulator))
    }

    /// The place of an access that lies in the window.
    fn place(offset: u16, len_bytes: u64) -> Option<u64> {
        let offset = u64::from(offset);
        (offset + len_bytes <= WINDOW_BYTES).then_some(BASE + offset)
    }
}

impl Registers for QtestRegisters {
    fn read32(&self, register: Register32) -> u32 {
        Self::place(register.offset(), 4)
            .map_or(u32::MAX, |at| self.0.read(Operation::Read32(at)) as u32)
    }

    fn write32(&mut self, register: Register32, value: u32) {
        if let Some(at) = Self::place(register.offset(), 4) {
            self.0.perform(&[Operation::Write32(at, value)]);
        }
    }

    fn read64(&self, register: Register64) -> u64 {
        Self::place(register.offset(), 8).map_or(u64::MAX, |at| self.0.read(Operation::Read64(at)))
    }

    fn write64(&mut self, register: Register64, value: u64) {
        if let Some(at) = Self::place(register.offset(), 8) {
            self.0.perform(&[Operation::Write64(at, value)]);
        }
    }

    fn window_bytes(&self) -> u64 {
        WINDOW_BYTES
    }
}
