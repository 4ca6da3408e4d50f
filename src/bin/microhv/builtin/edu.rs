//! The registers of QEMU's `edu` device, which the hypervisor passes on to its guest.

use crate::memory::{Memory, MemoryError, Window};
use crate::pci::{Bar, Function, Pci};

const IDENTIFICATION: u64 = 0x00;

/// Why the device cannot be used.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum EduError {
    /// It has no such base address register.
    NoRegisters,
    Memory(MemoryError),
    /// The identification register has another value.
    Identification(u32),
}

/// Whether a function is this device.
pub(crate) fn is_edu(function: &Function) -> bool {
    (function.vendor_id, function.device_id) == (0x1234, 0x11e8)
}

/// Makes the device usable, memory space and bus-mastering on, and gives its registers.
pub(crate) fn open(
    memory: &Memory,
    pci: &mut Pci,
    function: &Function,
) -> Result<Window, EduError> {
    let [Some(Bar::Memory { start, len_bytes }), ..] = function.bars else {
        return Err(EduError::NoRegisters);
    };
    let registers = memory.window(start, len_bytes).map_err(EduError::Memory)?;
    pci.set_memory_space(function.source_id, true);
    pci.set_bus_master(function.source_id, true);
    match registers.read_u32(IDENTIFICATION) {
        Some(value) if value & 0xffff == 0x00ed => Ok(registers),
        Some(value) => Err(EduError::Identification(value)),
        None => Err(EduError::NoRegisters),
    }
}
