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

/// Offset of the pointer to the first capability.
const CAPABILITIES: u8 = 0x34;
/// The capability of message-signalled interrupts; its enable bit in the first register.
const MSI: u32 = 0x05;
const MSI_ENABLE: u32 = 1 << 16;

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

    /// Gives the function a message to raise its interrupt with, and turns that on.
    ///
    /// # Panics
    ///
    /// If the function has no message-signalled interrupts with 64-bit addresses.
    pub fn set_message(&self, source_id: SourceId, address: u64, data: u16) {
        let at = self.message_capability(source_id);
        self.write32(source_id, at + 4, address as u32);
        self.write32(source_id, at + 8, (address >> 32) as u32);
        self.write32(source_id, at + 12, data.into());
        let control = self.read32(source_id, at);
        self.write32(source_id, at, control | MSI_ENABLE);
    }

    /// Turns message-signalled interrupts off.
    ///
    /// # Panics
    ///
    /// As [`set_message`](Self::set_message).
    pub fn clear_message(&self, source_id: SourceId) {
        let at = self.message_capability(source_id);
        let control = self.read32(source_id, at);
        self.write32(source_id, at, control & !MSI_ENABLE);
    }

    /// Offset of the capability, which is of the long form.
    fn message_capability(&self, source_id: SourceId) -> u8 {
        let mut at = self.read32(source_id, CAPABILITIES) as u8 & !3;
        // There are no more than fit.
        for _ in 0..48 {
            assert_ne!(at, 0, "{source_id} has no message-signalled interrupts");
            let header = self.read32(source_id, at);
            if header & 0xff == MSI {
                assert_ne!(header & 1 << 23, 0, "64-bit addresses");
                return at;
            }
            at = (header >> 8) as u8 & !3;
        }
        panic!("the list of capabilities has no end");
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
