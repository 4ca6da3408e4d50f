//! PCI configuration space, through the port pair.

use std::sync::Arc;

use vtd_nest::arch::id::SourceId;

use crate::emulator::{Emulator, Operation};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;

/// Offset of the command register, with the status register above it.
const COMMAND: u8 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_BUS_MASTER: u32 = 1 << 2;

/// Offset of the first base address register.
const BASE_ADDRESS_0: u8 = 0x10;

/// The machine's configuration space. No firmware sets anything up: base address registers and bus
/// numbers are 0 but for the `edu` devices'. Clones are the same machine.
///
/// Each access panics when the emulator is lost.
#[derive(Clone)]
pub struct Pci(Arc<Emulator>);

impl Pci {
    pub(crate) fn new(emulator: &Arc<Emulator>) -> Self {
        Self(Arc::clone(emulator))
    }

    /// Reads the register at `offset`, rounded down to a multiple of four; all ones where there is
    /// no function.
    pub fn read32(&self, source_id: SourceId, offset: u8) -> u32 {
        let values = self
            .0
            .perform(&[select(source_id, offset), Operation::PortRead32(DATA_PORT)]);
        *values.first().expect("one of the operations is a read") as u32
    }

    /// Writes the register at `offset`, rounded down to a multiple of four.
    pub fn write32(&self, source_id: SourceId, offset: u8, value: u32) {
        self.0.perform(&[
            select(source_id, offset),
            Operation::PortWrite32(DATA_PORT, value),
        ]);
    }

    /// Whether the function may access memory.
    pub fn is_bus_master(&self, source_id: SourceId) -> bool {
        self.read32(source_id, COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// Lets the function access memory, or stops it.
    pub fn set_bus_master(&self, source_id: SourceId, enabled: bool) {
        // Ones in the upper half would clear status bits.
        let command = self.read32(source_id, COMMAND) & 0xffff & !COMMAND_BUS_MASTER;
        let bus_master = if enabled { COMMAND_BUS_MASTER } else { 0 };
        self.write32(source_id, COMMAND, command | bus_master);
    }

    /// Places the first base address register, and turns memory space and bus mastering on.
    pub fn set_up(&self, source_id: SourceId, base: u32) {
        self.write32(source_id, BASE_ADDRESS_0, base);
        self.write32(source_id, COMMAND, COMMAND_MEMORY | COMMAND_BUS_MASTER);
    }

    /// Whether the function answers neither to memory nor I/O accesses and masters no bus, as after
    /// a reset.
    pub(crate) fn is_reset(&self, source_id: SourceId) -> bool {
        self.read32(source_id, COMMAND) & 7 == 0
    }
}

fn select(source_id: SourceId, offset: u8) -> Operation {
    let address = 1 << 31 | u32::from(source_id.as_u16()) << 8 | u32::from(offset & !3);
    Operation::PortWrite32(ADDRESS_PORT, address)
}
