//! The image's guest driver on a bench: `edu` registers over the bench's DMA.

use vtd_nest::arch::address::{Gpa, Iova};

use super::{D0, Guest};
use crate::driver;

/// The registers of an `edu` device that a DMA uses, and its buffer.
pub(crate) struct EduRegisters {
    source: u64,
    destination: u64,
    count: u64,
    buffer: [u8; 4096],
}

impl Default for EduRegisters {
    fn default() -> Self {
        Self {
            source: 0,
            destination: 0,
            count: 0,
            buffer: [0; 4096],
        }
    }
}

impl driver::Machine for Guest {
    fn read_memory(&mut self, at: Gpa, into: &mut [u8]) {
        self.read(at.as_u64(), into);
    }

    fn write_memory(&mut self, at: Gpa, from: &[u8]) {
        self.write(at.as_u64(), from);
    }

    fn read_unit(&mut self, offset: u64, len: u8) -> u64 {
        self.read_register(offset, len)
    }

    fn write_unit(&mut self, offset: u64, len: u8, value: u64) {
        self.write_register(offset, len, value);
    }

    fn read_device(&mut self, offset: u64) -> u64 {
        self.settle();
        match offset {
            0x80 => self.edu.source,
            0x88 => self.edu.destination,
            0x90 => self.edu.count,
            // A DMA is over when the write of the command returns.
            _ => 0,
        }
    }

    fn write_device(&mut self, offset: u64, value: u64) {
        match offset {
            0x80 => self.edu.source = value,
            0x88 => self.edu.destination = value,
            0x90 => self.edu.count = value,
            0x98 if value & 1 != 0 => {
                let requester = self.requester(D0, None);
                let len = (self.edu.count as usize).min(self.edu.buffer.len());
                let hypervisor = self.lab.hypervisor.clone();
                if value & 2 != 0 {
                    let to = Iova::new(self.edu.destination);
                    hypervisor.dma_write(requester, to, &self.edu.buffer[..len]);
                } else {
                    let from = Iova::new(self.edu.source);
                    self.edu.buffer[..len].fill(0);
                    hypervisor.dma_read(requester, from, &mut self.edu.buffer[..len]);
                }
            }
            _ => {}
        }
    }

    fn pass_time(&mut self) {
        self.lab.hypervisor.pass(1_000);
        self.settle();
    }
}
