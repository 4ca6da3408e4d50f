//! A driver for the transmit side of Intel's 82574L (QEMU's `e1000e`): one frame at a time, by legacy
//! descriptors.

use vtd_nest::arch::address::PAGE_SIZE_BYTES;

use crate::clock;
use crate::memory::Window;
use crate::pci::Function;

use super::dma::Dma;

/// Whether a function is this device.
pub(super) fn is_network(function: &Function) -> bool {
    (function.vendor_id, function.device_id) == (0x8086, 0x10d3)
}

const CONTROL: u64 = 0x0000;
const CONTROL_RESET: u32 = 1 << 26;
const INTERRUPT_MASK_CLEAR: u64 = 0x00d8;
const TRANSMIT_CONTROL: u64 = 0x0400;
const TRANSMIT_ENABLED: u32 = 1 << 1;
const RING_LOW: u64 = 0x3800;
const RING_HIGH: u64 = 0x3804;
const RING_LENGTH: u64 = 0x3808;
const RING_HEAD: u64 = 0x3810;
const RING_TAIL: u64 = 0x3818;

/// Entries of the ring, of 16 bytes each.
const ENTRIES: u32 = 8;
/// Of a legacy descriptor: end of packet, checksum by hardware, report status.
const COMMAND: u64 = 0b1011 << 24;
/// The descriptor is done, in its second quadword.
const DONE: u64 = 1 << 32;

const RING: u64 = 0;
pub(super) const FRAME: u64 = PAGE_SIZE_BYTES;
/// The least that Ethernet takes.
const FRAME_LEN_BYTES: u64 = 64;

const MAXIMUM_LOOKS: u32 = 1 << 12;

/// Why it sends nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NetworkError {
    /// A register is outside its window.
    Registers,
    /// It does not come out of reset, or does not report the frame as sent.
    Silent,
}

/// The device.
pub(super) struct Network {
    registers: Window,
    tail: u32,
}

impl Network {
    /// The device with these registers, reset.
    pub(super) fn open(registers: Window) -> Result<Self, NetworkError> {
        let mut network = Self { registers, tail: 0 };
        network.stop()?;
        Ok(network)
    }

    /// Resets the device: it forgets its ring.
    pub(super) fn stop(&mut self) -> Result<(), NetworkError> {
        self.write(INTERRUPT_MASK_CLEAR, u32::MAX)?;
        self.write(CONTROL, CONTROL_RESET)?;
        for _ in 0..MAXIMUM_LOOKS {
            let control = self.registers.read_u32(CONTROL);
            if control.ok_or(NetworkError::Registers)? & CONTROL_RESET == 0 {
                return self.write(INTERRUPT_MASK_CLEAR, u32::MAX);
            }
            clock::pass_time();
        }
        Err(NetworkError::Silent)
    }

    /// Starts the device with its ring in the device's memory.
    pub(super) fn start(&mut self, dma: &Dma<'_>) -> Result<(), NetworkError> {
        self.tail = 0;
        dma.fill_page(RING, 0);
        let ring = dma.input(RING).as_u64();
        self.write(RING_LOW, ring as u32)?;
        self.write(RING_HIGH, (ring >> 32) as u32)?;
        self.write(RING_LENGTH, ENTRIES * 16)?;
        self.write(RING_HEAD, 0)?;
        self.write(RING_TAIL, 0)?;
        self.write(TRANSMIT_CONTROL, TRANSMIT_ENABLED)
    }

    /// Sends a frame from an address of the device's, and waits until the device has written back
    /// that it is done.
    pub(super) fn send(&mut self, dma: &Dma<'_>, address: u64) -> Result<(), NetworkError> {
        let at = RING + u64::from(self.tail) * 16;
        dma.write(at, address);
        dma.write(at + 8, FRAME_LEN_BYTES | COMMAND);
        self.tail = (self.tail + 1) % ENTRIES;
        dma.fence();
        self.write(RING_TAIL, self.tail)?;
        for _ in 0..MAXIMUM_LOOKS {
            if dma.read(at + 8) & DONE != 0 {
                return Ok(());
            }
            clock::pass_time();
        }
        Err(NetworkError::Silent)
    }

    fn write(&mut self, register: u64, value: u32) -> Result<(), NetworkError> {
        self.registers
            .write_u32(register, value)
            .ok_or(NetworkError::Registers)
    }
}
