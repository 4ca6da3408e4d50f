//! A model of the `edu` device that QEMU offers for exercises: a 4-KiB buffer and a DMA engine.

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::id::{Pasid, SourceId};

use crate::fault::Fault;
use crate::unit::ModelUnit;

/// Device address of the buffer's first byte.
const BUFFER: u64 = 0x4_0000;
const BUFFER_BYTES: u64 = 4096;

const IDENTIFICATION: u32 = 0x0100_00ed;
const RUN: u64 = 1;
/// Set: from the buffer to memory.
const TO_MEMORY: u64 = 2;
const RAISE_INTERRUPT: u64 = 4;
const DMA_INTERRUPT: u32 = 0x100;

/// An `edu` device: its registers, its buffer and its DMA through a unit.
///
/// | Offset | Register |
/// |---|---|
/// | 0x00 | identification, read only |
/// | 0x04 | reads back inverted |
/// | 0x24 / 0x60 / 0x64 | interrupt status / raise / acknowledge |
/// | 0x80, 0x88 | DMA source, destination: memory or 0x40000 + offset in the buffer |
/// | 0x90 | DMA length in bytes |
/// | 0x98 | DMA command: 1 run, 2 from the buffer to memory, 4 interrupt when done |
///
/// Registers below 0x80 take 32-bit accesses only, the others 64-bit ones too. A DMA is over when
/// the write of the command returns.
#[derive(Debug)]
pub struct Edu {
    unit: ModelUnit,
    source_id: SourceId,
    pasid: Option<Pasid>,
    address_mask: u64,
    buffer: [u8; BUFFER_BYTES as usize],
    inverted: u32,
    interrupt_status: u32,
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    fault: Option<Fault>,
}

impl Edu {
    /// A device behind `unit`, with 64-bit DMA addresses.
    pub fn new(unit: &ModelUnit, source_id: SourceId) -> Self {
        Self {
            unit: unit.clone(),
            source_id,
            pasid: None,
            address_mask: u64::MAX,
            buffer: [0; BUFFER_BYTES as usize],
            inverted: 0,
            interrupt_status: 0,
            source: 0,
            destination: 0,
            count: 0,
            command: 0,
            fault: None,
        }
    }

    /// Cuts DMA addresses; QEMU's own default is 28 bits.
    #[must_use]
    pub fn with_address_mask(mut self, mask: u64) -> Self {
        self.address_mask = mask;
        self
    }

    /// Sends requests with this PASID from now on, or without. QEMU's device sends none.
    pub fn set_pasid(&mut self, pasid: Option<Pasid>) {
        self.pasid = pasid;
    }

    /// The device's source-id.
    pub fn source_id(&self) -> SourceId {
        self.source_id
    }

    /// The fault of the last DMA, if it was blocked.
    pub fn last_fault(&self) -> Option<Fault> {
        self.fault
    }

    /// The buffer.
    pub fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads a register with 32 bits; all ones where there is none.
    pub fn read32(&self, offset: u64) -> u32 {
        match offset {
            0x00 => IDENTIFICATION,
            0x04 => self.inverted,
            0x24 => self.interrupt_status,
            _ => self
                .dma_register(offset & !7)
                .map_or(u32::MAX, |value| (value >> (8 * (offset & 4))) as u32),
        }
    }

    /// Reads a register with 64 bits; all ones where there is none.
    pub fn read64(&self, offset: u64) -> u64 {
        self.dma_register(offset).unwrap_or(u64::MAX)
    }

    /// Writes a register with 32 bits. A running DMA ignores writes to its registers.
    pub fn write32(&mut self, offset: u64, value: u32) {
        match offset {
            0x04 => self.inverted = !value,
            0x60 => self.interrupt_status |= value,
            0x64 => self.interrupt_status &= !value,
            _ => self.write_dma_register(offset, u64::from(value)),
        }
    }

    /// Writes a register with 64 bits.
    pub fn write64(&mut self, offset: u64, value: u64) {
        self.write_dma_register(offset, value);
    }

    fn dma_register(&self, offset: u64) -> Option<u64> {
        match offset {
            0x80 => Some(self.source),
            0x88 => Some(self.destination),
            0x90 => Some(self.count),
            0x98 => Some(self.command),
            _ => None,
        }
    }

    fn write_dma_register(&mut self, offset: u64, value: u64) {
        match offset {
            0x80 => self.source = value,
            0x88 => self.destination = value,
            0x90 => self.count = value,
            0x98 if value & RUN != 0 => {
                self.command = value;
                self.run();
            }
            _ => {}
        }
    }

    /// The part of the buffer at a device address; `None` beyond it.
    fn range(&self, address: u64) -> Option<std::ops::Range<usize>> {
        let start = address.checked_sub(BUFFER)?;
        let end = start.checked_add(self.count)?;
        (end <= BUFFER_BYTES).then_some(start as usize..end as usize)
    }

    fn run(&mut self) {
        self.fault = None;
        let (here, there) = if self.command & TO_MEMORY != 0 {
            (self.source, self.destination)
        } else {
            (self.destination, self.source)
        };
        let there = Iova::new(there & self.address_mask);
        if let Some(range) = self.range(here).filter(|range| !range.is_empty()) {
            let part = &mut self.buffer[range];
            let result = if self.command & TO_MEMORY != 0 {
                self.unit.dma_write(self.source_id, self.pasid, there, part)
            } else {
                self.unit.dma_read(self.source_id, self.pasid, there, part)
            };
            self.fault = result.err();
        }
        self.command &= !RUN;
        if self.command & RAISE_INTERRUPT != 0 {
            self.interrupt_status |= DMA_INTERRUPT;
        }
    }
}

#[cfg(test)]
mod tests {
    use vtd_nest::arch::address::Hpa;
    use vtd_nest::mem::HostMemory;

    use super::*;
    use crate::{Machine, ModelConfig};

    #[test]
    fn data_goes_through_the_buffer_and_back() {
        let machine = Machine::new(ModelConfig::nesting_server());
        machine
            .memory
            .write64(Hpa::new(0x2008), 0x1122_3344_5566_7788);
        let mut edu = Edu::new(&machine.unit, SourceId::from_u16(8));
        assert_eq!(edu.read32(0), 0x0100_00ed);
        edu.write32(4, 0xf0);
        assert_eq!(edu.read32(4), !0xf0);
        edu.write64(0x80, 0x2000);
        edu.write64(0x88, 0x4_0ff0);
        edu.write32(0x90, 16);
        edu.write32(0x98, 1);
        assert_eq!(edu.buffer()[0xff8], 0x88);
        edu.write64(0x80, 0x4_0ff8);
        edu.write64(0x88, 0x3000);
        edu.write64(0x90, 8);
        edu.write64(0x98, 7);
        assert_eq!(
            machine.memory.read64(Hpa::new(0x3000)),
            0x1122_3344_5566_7788
        );
        assert_eq!(edu.read64(0x98) & 1, 0, "done");
        assert_eq!(edu.read32(0x24), 0x100);
        edu.write32(0x64, 0x100);
        assert_eq!(edu.read32(0x24), 0);
        edu.write64(0x90, 9);
        edu.write64(0x98, 3);
        assert_eq!(
            machine.memory.read64(Hpa::new(0x3008)),
            0,
            "beyond the buffer"
        );
        assert_eq!(edu.last_fault(), None);
    }
}
