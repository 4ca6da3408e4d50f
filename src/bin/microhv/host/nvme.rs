//! A driver for one NVMe controller: an admin and an I/O queue pair, one command at a time, blocks of
//! 512 bytes.

use vtd_nest::arch::address::PAGE_SIZE_BYTES;

use crate::clock;
use crate::memory::Window;

use super::dma::Dma;

/// Class of the device: mass storage, non-volatile memory, NVMe.
pub(super) const CLASS: u32 = 0x01_0802;

const CAPABILITIES: u64 = 0x00;
const CONFIGURATION: u64 = 0x14;
const STATUS: u64 = 0x1c;
const ADMIN_QUEUE_ATTRIBUTES: u64 = 0x24;
const ADMIN_SUBMISSION_QUEUE: u64 = 0x28;
const ADMIN_COMPLETION_QUEUE: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

/// Enabled, submission entries of 64 bytes, completion entries of 16.
const CONFIGURATION_ON: u32 = 1 | 6 << 16 | 4 << 20;
const STATUS_READY: u32 = 1;
const STATUS_FATAL: u32 = 1 << 1;

/// Entries of each queue.
const ENTRIES: u16 = 16;
/// Blocks of one page.
pub(super) const BLOCKS_PER_PAGE: u64 = 8;
/// Looks at a device before it counts as silent: each some microseconds.
const MAXIMUM_LOOKS: u32 = 1 << 14;

/// The page of each part of the device's memory.
const ADMIN: u64 = 0;
pub(super) const IO: u64 = 2 * PAGE_SIZE_BYTES;
pub(super) const BUFFER: u64 = 4 * PAGE_SIZE_BYTES;

/// The entry of the MSI-X table that the I/O queue uses. The admin queue is only polled.
pub(super) const VECTOR: u16 = 1;

/// Why a command did not do what it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NvmeError {
    /// It cannot be reset or made ready.
    NotReady,
    /// A register is outside its window.
    Registers,
    /// No completion came.
    Silent,
    /// The controller gave up, as after a command that it cannot fetch.
    Fatal,
    /// The status field of the completion.
    Status(u16),
}

/// A submission queue with its completion queue.
struct Queue {
    number: u64,
    /// Submission queue; the completion queue is the page behind it.
    place: u64,
    tail: u16,
    head: u16,
    phase: bool,
}

impl Queue {
    const fn new(number: u64, place: u64) -> Self {
        Self {
            number,
            place,
            tail: 0,
            head: 0,
            phase: true,
        }
    }
}

/// The controller.
pub(super) struct Nvme {
    registers: Window,
    stride: u64,
    admin: Queue,
    io: Queue,
}

/// What a command says, without its identifier.
struct Command {
    opcode: u8,
    namespace: u32,
    /// Where the data goes, as the device sees it.
    data: u64,
    dword10: u32,
    dword11: u32,
    dword12: u32,
}

impl Nvme {
    /// The controller with these registers, stopped.
    pub(super) fn open(registers: Window) -> Result<Self, NvmeError> {
        let capabilities = registers
            .read_u32(CAPABILITIES + 4)
            .ok_or(NvmeError::Registers)?;
        let mut nvme = Self {
            registers,
            stride: 4 << (capabilities & 0xf),
            admin: Queue::new(0, ADMIN),
            io: Queue::new(1, IO),
        };
        nvme.stop()?;
        Ok(nvme)
    }

    /// Stops the controller: it forgets its queues.
    pub(super) fn stop(&mut self) -> Result<(), NvmeError> {
        self.write(CONFIGURATION, 0)?;
        self.await_ready(0)
    }

    /// Starts the controller with its queues in the device's memory.
    pub(super) fn start(&mut self, dma: &Dma<'_>) -> Result<(), NvmeError> {
        self.admin = Queue::new(0, ADMIN);
        self.io = Queue::new(1, IO);
        for page in 0..4 {
            dma.fill_page(page * PAGE_SIZE_BYTES, 0);
        }
        let entries = u32::from(ENTRIES - 1);
        self.write(ADMIN_QUEUE_ATTRIBUTES, entries << 16 | entries)?;
        let submission = dma.input(ADMIN).as_u64();
        let completion = dma.input(ADMIN + PAGE_SIZE_BYTES).as_u64();
        for (register, address) in [
            (ADMIN_SUBMISSION_QUEUE, submission),
            (ADMIN_COMPLETION_QUEUE, completion),
        ] {
            self.write(register, address as u32)?;
            self.write(register + 4, (address >> 32) as u32)?;
        }
        dma.fence();
        self.write(CONFIGURATION, CONFIGURATION_ON)?;
        self.await_ready(STATUS_READY)?;
        // Contiguous; interrupts by `VECTOR`.
        self.administer(
            dma,
            Command {
                opcode: 5,
                namespace: 0,
                data: dma.input(IO + PAGE_SIZE_BYTES).as_u64(),
                dword10: entries << 16 | 1,
                dword11: u32::from(VECTOR) << 16 | 0b11,
                dword12: 0,
            },
        )?;
        self.administer(
            dma,
            Command {
                opcode: 1,
                namespace: 0,
                data: dma.input(IO).as_u64(),
                dword10: entries << 16 | 1,
                dword11: 1 << 16 | 1,
                dword12: 0,
            },
        )
    }

    /// The last letter of the serial number: `a` of `disk-a`. 0 for another serial number.
    pub(super) fn letter(&mut self, dma: &Dma<'_>) -> Result<u8, NvmeError> {
        self.administer(
            dma,
            Command {
                opcode: 6,
                namespace: 0,
                data: dma.input(BUFFER).as_u64(),
                dword10: 1,
                dword11: 0,
                dword12: 0,
            },
        )?;
        // Bytes 4 to 23 of the data, padded with blanks.
        let mut serial = [0; 8];
        let (first, second) = (dma.read(BUFFER), dma.read(BUFFER + 8));
        serial[..4].copy_from_slice(&first.to_le_bytes()[4..]);
        serial[4..].copy_from_slice(&second.to_le_bytes()[..4]);
        Ok(match serial {
            [b'd', b'i', b's', b'k', b'-', letter, b' ', _] => letter,
            _ => 0,
        })
    }

    /// Number of blocks of the first namespace.
    pub(super) fn blocks(&mut self, dma: &Dma<'_>) -> Result<u64, NvmeError> {
        self.administer(
            dma,
            Command {
                opcode: 6,
                namespace: 1,
                data: dma.input(BUFFER).as_u64(),
                dword10: 0,
                dword11: 0,
                dword12: 0,
            },
        )?;
        Ok(dma.read(BUFFER))
    }

    /// Reads a page's worth of blocks to an address of the device's; `meanwhile` runs while the
    /// completion is awaited.
    pub(super) fn read_to(
        &mut self,
        dma: &Dma<'_>,
        block: u64,
        data: u64,
        meanwhile: impl FnMut(),
    ) -> Result<(), NvmeError> {
        let command = Command {
            opcode: 2,
            namespace: 1,
            data,
            dword10: block as u32,
            dword11: (block >> 32) as u32,
            dword12: BLOCKS_PER_PAGE as u32 - 1,
        };
        let Self {
            registers,
            stride,
            io,
            ..
        } = self;
        run(registers, *stride, io, dma, &command, meanwhile)
    }

    fn administer(&mut self, dma: &Dma<'_>, command: Command) -> Result<(), NvmeError> {
        let Self {
            registers,
            stride,
            admin,
            ..
        } = self;
        run(registers, *stride, admin, dma, &command, || {})
    }

    fn write(&mut self, register: u64, value: u32) -> Result<(), NvmeError> {
        self.registers
            .write_u32(register, value)
            .ok_or(NvmeError::Registers)
    }

    fn await_ready(&self, ready: u32) -> Result<(), NvmeError> {
        for _ in 0..MAXIMUM_LOOKS {
            let status = self
                .registers
                .read_u32(STATUS)
                .ok_or(NvmeError::Registers)?;
            if status & STATUS_READY == ready {
                return Ok(());
            }
            clock::pass_time();
        }
        Err(NvmeError::NotReady)
    }
}

/// Submits one command and waits for its completion.
fn run(
    registers: &mut Window,
    stride: u64,
    queue: &mut Queue,
    dma: &Dma<'_>,
    command: &Command,
    mut meanwhile: impl FnMut(),
) -> Result<(), NvmeError> {
    let Command {
        opcode,
        namespace,
        data,
        dword10,
        dword11,
        dword12,
    } = *command;
    let at = queue.place + u64::from(queue.tail) * 64;
    let quadwords = [
        u64::from(opcode) | u64::from(queue.tail) << 16 | u64::from(namespace) << 32,
        0,
        0,
        data,
        0,
        u64::from(dword11) << 32 | u64::from(dword10),
        dword12.into(),
        0,
    ];
    for (offset, quadword) in (0..).step_by(8).zip(quadwords) {
        dma.write(at + offset, quadword);
    }
    queue.tail = (queue.tail + 1) % ENTRIES;
    dma.fence();
    let doorbell = DOORBELLS + 2 * queue.number * stride;
    registers
        .write_u32(doorbell, queue.tail.into())
        .ok_or(NvmeError::Registers)?;
    let completion = queue.place + PAGE_SIZE_BYTES + u64::from(queue.head) * 16;
    for _ in 0..MAXIMUM_LOOKS {
        let high = dma.read(completion + 8);
        if (high >> 48 & 1 == 1) != queue.phase {
            let status = registers.read_u32(STATUS).ok_or(NvmeError::Registers)?;
            if status & STATUS_FATAL != 0 {
                return Err(NvmeError::Fatal);
            }
            meanwhile();
            clock::pass_time();
            continue;
        }
        queue.head = (queue.head + 1) % ENTRIES;
        queue.phase ^= queue.head == 0;
        registers
            .write_u32(doorbell + stride, queue.head.into())
            .ok_or(NvmeError::Registers)?;
        return match (high >> 49) as u16 {
            0 => Ok(()),
            status => Err(NvmeError::Status(status)),
        };
    }
    Err(NvmeError::Silent)
}
