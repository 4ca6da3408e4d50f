//! The `edu` device of QEMU, whose registers make it copy between its buffer and any bus address.

use super::Machine;

/// Length of the device's buffer, in bytes.
pub(crate) const BUFFER_LEN_BYTES: u64 = 4096;
/// The buffer's address on the device's side.
const BUFFER: u64 = 0x4_0000;

const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
const COMMAND_START: u64 = 1 << 0;
const COMMAND_TO_MEMORY: u64 = 1 << 1;

/// Looks at the device before a DMA counts as hung.
const MAXIMUM_LOOKS: u32 = 1 << 22;

/// Which way a DMA goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// The device reads memory.
    ToDevice,
    /// The device writes memory.
    ToMemory,
}

/// The device did not finish a DMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DmaTimeout;

/// Copies the whole buffer between the device and a bus address, and waits for the end. A blocked
/// DMA ends like any other: what was copied tells.
pub(crate) fn dma(
    machine: &mut impl Machine,
    direction: Direction,
    bus_address: u64,
) -> Result<(), DmaTimeout> {
    let (source, destination, command) = match direction {
        Direction::ToDevice => (bus_address, BUFFER, COMMAND_START),
        Direction::ToMemory => (BUFFER, bus_address, COMMAND_START | COMMAND_TO_MEMORY),
    };
    machine.write_device(DMA_SOURCE, source);
    machine.write_device(DMA_DESTINATION, destination);
    machine.write_device(DMA_COUNT, BUFFER_LEN_BYTES);
    machine.write_device(DMA_COMMAND, command);
    for _ in 0..MAXIMUM_LOOKS {
        if machine.read_device(DMA_COMMAND) & COMMAND_START == 0 {
            return Ok(());
        }
        machine.pass_time();
    }
    Err(DmaTimeout)
}
