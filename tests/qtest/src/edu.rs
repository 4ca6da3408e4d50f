//! The `edu` device: a 4-KiB buffer and a DMA engine.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::id::SourceId;
use vtd_nest::mem::HostMemory;

use crate::buffer::Buffer;
use crate::emulator::{Emulator, Operation};
use crate::pci::Pci;
use crate::ram::Ram;

/// The machine's devices: 00:02.0 and 00:11.0.
pub(crate) const SOURCE_IDS: [SourceId; 2] = [SourceId::from_u16(0x10), SourceId::from_u16(0x88)];

/// Where their registers are, 1 MiB each.
pub(crate) const BASES: [u32; 2] = [0xfe90_0000, 0xfea0_0000];

/// Length of the buffer, and so of the longest DMA.
pub(crate) const BUFFER_BYTES: usize = 4096;

/// Device address of the buffer's first byte.
const BUFFER: u64 = 0x4_0000;

/// Registers of the interrupt.
const RAISE: u32 = 0x60;
const ACKNOWLEDGE: u32 = 0x64;

const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;

const RUN: u64 = 1;
/// Set: from the buffer to memory.
const TO_MEMORY: u64 = 2;

/// How long a DMA may take; it takes as long as a few register accesses.
const DMA_TIMEOUT: Duration = Duration::from_secs(10);

/// One of the machine's two `edu` devices. Its requests have no PASID.
///
/// The device does not tell whether a DMA was blocked: a blocked read gives zeros, a blocked write
/// changes nothing, and the unit records a fault. Clones are the same device. Everything here
/// panics when the emulator is lost.
#[derive(Clone)]
pub struct Edu {
    emulator: Arc<Emulator>,
    buffer: Arc<Buffer>,
    source_id: SourceId,
    base: u64,
}

impl Edu {
    /// Device number `index`, set up and with translation off.
    pub(crate) fn find(emulator: &Arc<Emulator>, ram: &Ram, index: usize) -> io::Result<Self> {
        let (source_id, base) = (SOURCE_IDS[index], u64::from(BASES[index]));
        let content = signature(index);
        let at = ram.layout().frames.start;
        ram.memory().copy_to(at, &content);
        run(emulator, base, at.as_u64(), BUFFER, BUFFER_BYTES, 0);
        ram.memory().copy_to(at, &[0; BUFFER_BYTES]);
        let buffer = Buffer::find(emulator.process_id(), &content)?;
        let edu = Self {
            emulator: Arc::clone(emulator),
            buffer: Arc::new(buffer),
            source_id,
            base,
        };
        edu.clear();
        Ok(edu)
    }

    /// The device's source-id.
    pub fn source_id(&self) -> SourceId {
        self.source_id
    }

    /// Where the device's registers are, 1 MiB long.
    pub fn base(&self) -> Hpa {
        Hpa::new(self.base)
    }

    /// Reads a register with 32 bits.
    pub fn read32(&self, offset: u32) -> u32 {
        self.emulator
            .read(Operation::Read32(self.base + u64::from(offset))) as u32
    }

    /// Writes a register with 32 bits.
    pub fn write32(&self, offset: u32, value: u32) {
        let at = self.base + u64::from(offset);
        self.emulator.perform(&[Operation::Write32(at, value)]);
    }

    /// Reads a register with 64 bits; only those of the DMA engine, from 0x80 on, have that many.
    pub fn read64(&self, offset: u32) -> u64 {
        self.emulator
            .read(Operation::Read64(self.base + u64::from(offset)))
    }

    /// Writes a register with 64 bits; only those of the DMA engine, from 0x80 on, have that many.
    pub fn write64(&self, offset: u32, value: u64) {
        let at = self.base + u64::from(offset);
        self.emulator.perform(&[Operation::Write64(at, value)]);
    }

    /// Writes bytes by DMA, as one request for each 4 KiB from `at` on.
    ///
    /// A request that crosses pages is cut there by the unit: what is before a page that cannot be
    /// written arrives.
    pub fn dma_write(&self, at: Iova, from: &[u8]) {
        for (chunk, at) in from.chunks(BUFFER_BYTES).zip(request_addresses(at)) {
            self.buffer
                .write(chunk)
                .expect("the device's buffer is reachable");
            run(
                &self.emulator,
                self.base,
                BUFFER,
                at,
                chunk.len(),
                TO_MEMORY,
            );
        }
    }

    /// Reads bytes by DMA, as one request for each 4 KiB from `at` on. What cannot be read is 0.
    pub fn dma_read(&self, at: Iova, into: &mut [u8]) {
        for (chunk, at) in into.chunks_mut(BUFFER_BYTES).zip(request_addresses(at)) {
            // Not what was there before, if the device may not even ask.
            self.clear();
            run(&self.emulator, self.base, at, BUFFER, chunk.len(), 0);
            self.buffer
                .read(chunk)
                .expect("the device's buffer is reachable");
        }
    }

    /// Raises an interrupt with a message.
    pub fn send_message(&self, address: u64, data: u16) {
        let pci = Pci::new(&self.emulator);
        pci.set_message(self.source_id, address, data);
        self.write32(RAISE, 1);
        self.write32(ACKNOWLEDGE, 1);
        pci.clear_message(self.source_id);
    }

    /// Makes the buffer 0.
    pub(crate) fn clear(&self) {
        let result = self.buffer.write(&[0; BUFFER_BYTES]);
        result.expect("the device's buffer is reachable");
    }
}

/// The addresses of a long transfer's requests.
fn request_addresses(at: Iova) -> impl Iterator<Item = u64> {
    (0..).map(move |request: u64| at.as_u64().wrapping_add(request * BUFFER_BYTES as u64))
}

/// Starts a DMA and waits for its end. Virtual time runs meanwhile: it jumps to the DMA's end as
/// soon as the emulator has nothing else to do.
fn run(
    emulator: &Emulator,
    base: u64,
    source: u64,
    destination: u64,
    len_bytes: usize,
    direction: u64,
) {
    let command = Operation::Read64(base + DMA_COMMAND);
    let mut values = emulator.perform(&[
        Operation::Write64(base + DMA_SOURCE, source),
        Operation::Write64(base + DMA_DESTINATION, destination),
        Operation::Write64(base + DMA_COUNT, len_bytes as u64),
        Operation::Write64(base + DMA_COMMAND, RUN | direction),
        command,
    ]);
    let deadline = Instant::now() + DMA_TIMEOUT;
    while values.pop().is_none_or(|value| value & RUN != 0) {
        assert!(Instant::now() < deadline, "a DMA of edu never ends");
        values.push(emulator.read(command));
    }
}

/// Bytes that are nowhere else in the emulator, different for each device.
fn signature(index: usize) -> [u8; BUFFER_BYTES] {
    // Any generator will do: xorshift64.
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ u64::from(std::process::id()) << 8 ^ index as u64;
    std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
}
