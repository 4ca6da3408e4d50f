//! The `edu` device of QEMU, whose registers make it copy between its buffer and any bus address.

use crate::clock;

use crate::memory::{Memory, MemoryError, Window};
use crate::pci::{Bar, Function, Pci};

/// Length of the device's buffer, in bytes.
pub(crate) const BUFFER_LEN_BYTES: u64 = 4096;
/// The buffer's address on the device's side.
const BUFFER: u64 = 0x4_0000;

const IDENTIFICATION: u64 = 0x00;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
const COMMAND_START: u64 = 1 << 0;
const COMMAND_TO_MEMORY: u64 = 1 << 1;

/// A DMA takes 100 ms; this many ticks are seconds on any processor, emulated or not.
const TIMEOUT_TICKS: u64 = 1 << 34;

/// Which way a DMA goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// The device reads memory.
    ToDevice,
    /// The device writes memory.
    ToMemory,
}

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

/// Why a DMA was not done.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum DmaError {
    /// The range is empty or not inside the device's buffer; nothing was started.
    NotInBuffer { device_offset: u64, len_bytes: u64 },
    /// The device did not finish.
    Timeout,
}

/// One `edu` device.
#[derive(Debug)]
pub(crate) struct Edu {
    registers: Window,
}

impl Edu {
    /// Whether a function is this device.
    pub(crate) fn is_edu(function: &Function) -> bool {
        (function.vendor_id, function.device_id) == (0x1234, 0x11e8)
    }

    /// Makes the device usable: memory space and bus-mastering on.
    pub(crate) fn new(
        memory: &Memory,
        pci: &mut Pci,
        function: &Function,
    ) -> Result<Self, EduError> {
        let [Some(Bar::Memory { start, len_bytes }), ..] = function.bars else {
            return Err(EduError::NoRegisters);
        };
        let registers = memory.window(start, len_bytes).map_err(EduError::Memory)?;
        pci.set_memory_space(function.source_id, true);
        pci.set_bus_master(function.source_id, true);
        match registers.read_u32(IDENTIFICATION) {
            Some(value) if value & 0xffff == 0x00ed => Ok(Self { registers }),
            Some(value) => Err(EduError::Identification(value)),
            None => Err(EduError::NoRegisters),
        }
    }

    /// Copies `len_bytes` between bus address `bus_address` and the device's buffer, and waits for
    /// the end. A blocked DMA ends like any other: what was copied tells.
    pub(crate) fn dma(
        &mut self,
        direction: Direction,
        bus_address: u64,
        device_offset: u64,
        len_bytes: u64,
    ) -> Result<(), DmaError> {
        // The emulator ends itself over a range outside the buffer.
        let end = device_offset.checked_add(len_bytes);
        if len_bytes == 0 || end.is_none_or(|end| end > BUFFER_LEN_BYTES) {
            return Err(DmaError::NotInBuffer {
                device_offset,
                len_bytes,
            });
        }
        let buffer = BUFFER + device_offset;
        let (source, destination, command) = match direction {
            Direction::ToDevice => (bus_address, buffer, COMMAND_START),
            Direction::ToMemory => (buffer, bus_address, COMMAND_START | COMMAND_TO_MEMORY),
        };
        self.write(DMA_SOURCE, source);
        self.write(DMA_DESTINATION, destination);
        self.write(DMA_COUNT, len_bytes);
        self.write(DMA_COMMAND, command);

        let start = clock::read_ticks();
        while clock::read_ticks().wrapping_sub(start) < TIMEOUT_TICKS {
            if self.registers.read_u64(DMA_COMMAND).unwrap_or(0) & COMMAND_START == 0 {
                return Ok(());
            }
            clock::pass_time();
        }
        Err(DmaError::Timeout)
    }

    fn write(&mut self, offset: u64, value: u64) {
        let _ = self.registers.write_u64(offset, value);
    }
}
