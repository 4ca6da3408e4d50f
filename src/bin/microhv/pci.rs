//! PCI: configuration space, and the functions that are in it.

use core::fmt;

use heapless::Vec;
use vtd_nest::arch::address::Hpa;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::pci::PciFunction;

use crate::memory::{Memory, Window};
use crate::port;

/// Functions that [`Pci::find_functions`] has room for.
pub(crate) const MAX_FUNCTIONS: usize = 64;

/// Bytes of configuration space per bus, in the memory-mapped form.
const BUS_LEN_BYTES: u64 = 1 << 20;

/// Offset of the command register, with the status register above it.
const COMMAND: u16 = 0x04;
const COMMAND_IO: u32 = 1 << 0;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_BUS_MASTER: u32 = 1 << 2;

/// The configuration space of segment 0.
pub(crate) struct Pci(Access);

enum Access {
    /// Memory-mapped, as the MCFG table says; `first_bus` is where `window` starts.
    MemoryMapped { window: Window, first_bus: u8 },
    /// Through the port pair, which reaches the first 256 bytes.
    Ports,
}

/// One function of a device.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) source_id: SourceId,
    pub(crate) vendor_id: u16,
    pub(crate) device_id: u16,
    /// Class, subclass and interface, in bits 23:16, 15:8 and 7:0.
    pub(crate) class: u32,
    /// By number of the register; the upper half of a 64-bit one is `None`.
    pub(crate) bars: [Option<Bar>; 6],
    pub(crate) bridge: Option<Bridge>,
    /// What of it decides which requests are its own.
    pub(crate) place: PciFunction,
}

/// A base address register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bar {
    /// Registers in memory space; `len_bytes` is a power of two.
    Memory { start: Hpa, len_bytes: u64 },
    /// Registers in I/O space.
    Io { start: u32, len_bytes: u32 },
}

/// The buses behind a bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bridge {
    pub(crate) secondary_bus: u8,
    pub(crate) subordinate_bus: u8,
}

/// There are more than [`MAX_FUNCTIONS`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct TooManyFunctions;

impl Pci {
    /// Configuration space as the MCFG table describes it, or through ports if the table is absent
    /// or has no usable entry for segment 0.
    pub(crate) fn new(memory: &Memory, mcfg: Option<&[u8]>) -> Self {
        const ENTRIES_OFFSET: usize = 44;
        let entries = mcfg.and_then(|table| table.get(ENTRIES_OFFSET..));
        for entry in entries.unwrap_or_default().as_chunks::<16>().0 {
            let [base @ .., s0, s1, first_bus, last_bus, _, _, _, _] = *entry;
            let buses = (u64::from(last_bus) + 1).saturating_sub(first_bus.into());
            // The base is where bus 0 would be, whatever the first bus is.
            let start = Hpa::new(u64::from_le_bytes(base))
                .checked_add(u64::from(first_bus) * BUS_LEN_BYTES);
            if let (0, Some(start)) = (u16::from_le_bytes([s0, s1]), start)
                && let Ok(window) = memory.window(start, buses * BUS_LEN_BYTES)
            {
                return Self(Access::MemoryMapped { window, first_bus });
            }
        }
        Self(Access::Ports)
    }

    /// The window that configuration space lies in, if it is memory-mapped.
    pub(crate) fn window(&self) -> Option<&Window> {
        match &self.0 {
            Access::MemoryMapped { window, .. } => Some(window),
            Access::Ports => None,
        }
    }

    /// Reads the register at `offset`, a multiple of four; all ones where there is none.
    pub(crate) fn read(&self, source_id: SourceId, offset: u16) -> u32 {
        match &self.0 {
            Access::MemoryMapped { window, first_bus } => place(*first_bus, source_id, offset)
                .and_then(|place| window.read_u32(place))
                .unwrap_or(u32::MAX),
            Access::Ports if offset < 0x100 => {
                port::pci_read(u32::from(source_id.as_u16()) << 8 | u32::from(offset))
            }
            Access::Ports => u32::MAX,
        }
    }

    /// Writes the register at `offset`, a multiple of four; nothing happens where there is none.
    pub(crate) fn write(&mut self, source_id: SourceId, offset: u16, value: u32) {
        match &mut self.0 {
            Access::MemoryMapped { window, first_bus } => {
                if let Some(place) = place(*first_bus, source_id, offset) {
                    let _ = window.write_u32(place, value);
                }
            }
            Access::Ports if offset < 0x100 => port::pci_write(
                u32::from(source_id.as_u16()) << 8 | u32::from(offset),
                value,
            ),
            Access::Ports => {}
        }
    }

    /// Writes the low `size` bytes of `value`, 1, 2 or 4, as one access at `offset`, a multiple of
    /// that; only where configuration space is memory-mapped.
    pub(crate) fn write_part(&mut self, source_id: SourceId, offset: u16, size: u8, value: u32) {
        if let Access::MemoryMapped { window, first_bus } = &mut self.0
            && let Some(place) = place(*first_bus, source_id, offset)
        {
            let _ = match size {
                1 => window.write_u8(place, value as u8),
                2 => window.write_u16(place, value as u16),
                _ => window.write_u32(place, value),
            };
        }
    }

    /// The function and offset at an address in the memory-mapped window.
    pub(crate) fn at(&self, address: Hpa) -> Option<(SourceId, u16)> {
        let Access::MemoryMapped { window, first_bus } = &self.0 else {
            return None;
        };
        let offset = address.as_u64().checked_sub(window.start().as_u64())?;
        let function = (offset >> 12) + (u64::from(*first_bus) << 8);
        let function = u16::try_from(function).ok()?;
        Some((SourceId::from_u16(function), (offset & 0xfff) as u16))
    }

    /// Length in bytes of a function's expansion ROM, or 0.
    pub(crate) fn measure_rom(&mut self, function: &Function) -> u64 {
        let offset = if function.bridge.is_some() {
            0x38
        } else {
            0x30
        };
        let source_id = function.source_id;
        let command = self.read(source_id, COMMAND) & 0xffff;
        self.set_command(source_id, COMMAND_MEMORY, false);
        let (_, mask) = self.measure(source_id, offset);
        self.write(source_id, COMMAND, command);
        match mask & !0x7ff {
            0 => 0,
            mask => 1 << mask.trailing_zeros(),
        }
    }

    /// Lets the function access memory, or stops it.
    pub(crate) fn set_bus_master(&mut self, source_id: SourceId, is_on: bool) {
        self.set_command(source_id, COMMAND_BUS_MASTER, is_on);
    }

    /// Lets the function answer accesses to its memory space, or stops it.
    pub(crate) fn set_memory_space(&mut self, source_id: SourceId, is_on: bool) {
        self.set_command(source_id, COMMAND_MEMORY, is_on);
    }

    /// Whether the function may access memory.
    pub(crate) fn is_bus_master(&self, source_id: SourceId) -> bool {
        self.read(source_id, COMMAND) & COMMAND_BUS_MASTER != 0
    }

    fn set_command(&mut self, source_id: SourceId, bits: u32, is_on: bool) {
        // Ones in the upper half would clear status bits.
        let command = self.read(source_id, COMMAND) & 0xffff;
        let command = if is_on {
            command | bits
        } else {
            command & !bits
        };
        self.write(source_id, COMMAND, command);
    }

    /// All functions on bus 0 and behind the bridges that are set up, no bus twice.
    ///
    /// Measures base address registers, and so stops each function for a moment from answering.
    pub(crate) fn find_functions(
        &mut self,
    ) -> Result<Vec<Function, MAX_FUNCTIONS>, TooManyFunctions> {
        let mut functions = Vec::new();
        let mut seen = [false; 256];
        let mut pending: Vec<u8, 256> = Vec::new();
        let _ = pending.push(0);
        while let Some(bus) = pending.pop() {
            if core::mem::replace(&mut seen[usize::from(bus)], true) {
                continue;
            }
            for device_function in 0..=u8::MAX {
                let source_id = SourceId::from_u16(u16::from_be_bytes([bus, device_function]));
                // Functions 1 to 7 exist only beside a function 0 that says so.
                let function0 = SourceId::from_u16(source_id.as_u16() & !7);
                let is_multifunction = self.read(function0, 0x0c) >> 16 & 0x80 != 0;
                if source_id != function0 && !is_multifunction {
                    continue;
                }
                let Some(function) = self.probe(source_id) else {
                    continue;
                };
                if let Some(bridge) = function.bridge
                    && bridge.secondary_bus > bus
                {
                    // Full only if more than 256 bridges wait, and then buses repeat.
                    let _ = pending.push(bridge.secondary_bus);
                }
                functions.push(function).map_err(|_| TooManyFunctions)?;
            }
        }
        Ok(functions)
    }

    fn probe(&mut self, source_id: SourceId) -> Option<Function> {
        let id = self.read(source_id, 0);
        if id & 0xffff == 0xffff {
            return None;
        }
        let header_type = self.read(source_id, 0x0c) >> 16 & 0x7f;
        let bridge = (header_type == 1).then(|| {
            let [_, secondary_bus, subordinate_bus, _] = self.read(source_id, 0x18).to_le_bytes();
            Bridge {
                secondary_bus,
                subordinate_bus,
            }
        });
        let bar_count = match header_type {
            0 => 6,
            1 => 2,
            _ => 0,
        };
        Some(Function {
            source_id,
            vendor_id: id as u16,
            device_id: (id >> 16) as u16,
            class: self.read(source_id, 8) >> 8,
            bars: self.measure_bars(source_id, bar_count),
            bridge,
            place: PciFunction::decode(source_id, |offset| self.read(source_id, offset))?,
        })
    }

    fn measure_bars(&mut self, source_id: SourceId, count: u16) -> [Option<Bar>; 6] {
        let mut bars = [None; 6];
        let command = self.read(source_id, COMMAND) & 0xffff;
        // With all ones in them the registers would claim other devices' addresses.
        self.set_command(source_id, COMMAND_IO | COMMAND_MEMORY, false);
        let mut upper_half = false;
        for (number, bar) in (0..count).zip(&mut bars) {
            if core::mem::take(&mut upper_half) {
                continue;
            }
            let offset = 0x10 + 4 * number;
            let (value, mask) = self.measure(source_id, offset);
            if value & 1 != 0 {
                let mask = mask & !3;
                // The upper half of the mask may read as zero.
                let len_bytes = 1 << mask.trailing_zeros().min(31);
                *bar = (mask != 0).then_some(Bar::Io {
                    start: value & !3,
                    len_bytes,
                });
                continue;
            }
            let (mut start, mut mask) = (u64::from(value & !0xf), u64::from(mask & !0xf));
            upper_half = value >> 1 & 3 == 2 && number + 1 < count;
            if upper_half {
                let (upper, upper_mask) = self.measure(source_id, offset + 4);
                start |= u64::from(upper) << 32;
                mask |= u64::from(upper_mask) << 32;
            }
            *bar = (mask != 0).then(|| Bar::Memory {
                start: Hpa::new(start),
                len_bytes: 1 << mask.trailing_zeros(),
            });
        }
        self.write(source_id, COMMAND, command);
        bars
    }

    /// The value of a base address register, and its writable bits.
    fn measure(&mut self, source_id: SourceId, offset: u16) -> (u32, u32) {
        let value = self.read(source_id, offset);
        self.write(source_id, offset, u32::MAX);
        let mask = self.read(source_id, offset);
        self.write(source_id, offset, value);
        (value, mask)
    }
}

/// Where a register lies in memory-mapped configuration space that starts with `first_bus`.
fn place(first_bus: u8, source_id: SourceId, offset: u16) -> Option<u64> {
    let bus = source_id.bus().checked_sub(first_bus)?;
    let function = u64::from(bus) << 8 | u64::from(source_id.device_function());
    Some(function << 12 | u64::from(offset & 0xfff))
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (vendor, device) = (self.vendor_id, self.device_id);
        write!(
            f,
            "{} {vendor:04x}:{device:04x} class {:06x}",
            self.source_id, self.class
        )?;
        if let Some(bridge) = self.bridge {
            let Bridge {
                secondary_bus,
                subordinate_bus,
            } = bridge;
            write!(f, " buses {secondary_bus:02x}-{subordinate_bus:02x}")?;
        }
        for (number, bar) in self.bars.iter().enumerate() {
            match bar {
                Some(Bar::Memory { start, len_bytes }) => {
                    write!(f, " bar{number} {start}+{len_bytes:#x}")?;
                }
                Some(Bar::Io { start, len_bytes }) => {
                    write!(f, " bar{number} io {start:#x}+{len_bytes:#x}")?;
                }
                None => {}
            }
        }
        Ok(())
    }
}
