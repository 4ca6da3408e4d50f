//! Capabilities in a device's configuration space, and its MSI-X table.

use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::interrupt::InterruptMessage;

use crate::memory::{Memory, Window};
use crate::pci::{Bar, Function, Pci};

const STATUS: u16 = 0x04;
const STATUS_HAS_CAPABILITIES: u32 = 1 << (16 + 4);
const FIRST: u16 = 0x34;
/// Capabilities that fit in configuration space.
const MAXIMUM: u32 = 48;

const MSI_X: u8 = 0x11;
const MSI_X_ENABLED: u32 = 1 << 31;
const MSI_X_MASKED: u32 = 1 << 30;
const ENTRY_LEN_BYTES: u64 = 16;
const ENTRY_MASKED: u32 = 1;

/// The `nth` capability of a kind: where it is.
pub(super) fn find(pci: &Pci, source_id: SourceId, id: u8, nth: usize) -> Option<u16> {
    if pci.read(source_id, STATUS) & STATUS_HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = (pci.read(source_id, FIRST) & 0xfc) as u16;
    let mut left = nth;
    for _ in 0..MAXIMUM {
        if at < 0x40 {
            return None;
        }
        let head = pci.read(source_id, at);
        if head as u8 == id {
            if left == 0 {
                return Some(at);
            }
            left -= 1;
        }
        at = (head >> 8 & 0xfc) as u16;
    }
    None
}

/// A window on a memory base address register.
pub(super) fn bar(memory: &Memory, function: &Function, number: usize) -> Option<Window> {
    match function.bars.get(number) {
        Some(Some(Bar::Memory { start, len_bytes })) => memory.window(*start, *len_bytes).ok(),
        _ => None,
    }
}

/// A device's MSI-X table.
pub(super) struct MsiX {
    at: u16,
    table: Window,
    offset: u64,
}

impl MsiX {
    /// The table, if the device has one.
    pub(super) fn open(memory: &Memory, pci: &Pci, function: &Function) -> Option<Self> {
        let at = find(pci, function.source_id, MSI_X, 0)?;
        let place = pci.read(function.source_id, at + 4);
        Some(Self {
            at,
            table: bar(memory, function, (place & 7) as usize)?,
            offset: u64::from(place & !7),
        })
    }

    /// Lets the device send the messages of entries that are not masked.
    pub(super) fn enable(&self, pci: &mut Pci, source_id: SourceId) {
        let control = pci.read(source_id, self.at);
        pci.write(
            source_id,
            self.at,
            (control | MSI_X_ENABLED) & !MSI_X_MASKED,
        );
    }

    /// Sets one entry, or masks it.
    pub(super) fn set(&mut self, entry: u16, message: Option<InterruptMessage>) -> Option<()> {
        let at = self.offset + u64::from(entry) * ENTRY_LEN_BYTES;
        self.table.write_u32(at + 12, ENTRY_MASKED)?;
        if let Some(message) = message {
            self.table.write_u32(at, message.address as u32)?;
            self.table
                .write_u32(at + 4, (message.address >> 32) as u32)?;
            self.table.write_u32(at + 8, message.data)?;
            self.table.write_u32(at + 12, 0)?;
        }
        Some(())
    }
}
