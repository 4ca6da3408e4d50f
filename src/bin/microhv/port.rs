//! Port I/O: the one place that knows port numbers and touches them.
//!
//! A leaf with `unsafe`; each function is safe because of which port it is about.

use uart_16550::Uart16550;
use uart_16550::backend::PioBackend;
use x86_64::instructions::port::{Port, PortWriteOnly};

/// The first serial port. Two values of it at a time only mix up output.
pub(crate) const fn serial() -> Uart16550<PioBackend> {
    // SAFETY: 0x3f8 is the first serial port of every PC, or decoded by nothing; transmitting
    // accesses no memory.
    match unsafe { Uart16550::new_port(0x3f8) } {
        Ok(uart) => uart,
        Err(_) => panic!("0x3f8 is a valid port"),
    }
}

/// Writes the port of the device that ends the emulator.
pub(crate) fn write_debug_exit(port: u16, value: u32) {
    // SAFETY: the device behind the port ends the emulator or is absent; neither accesses memory.
    unsafe { PortWriteOnly::new(port).write(value) }
}

/// Reads PCI configuration space through the port pair; `address` as for [`pci_write`].
pub(crate) fn pci_read(address: u32) -> u32 {
    // SAFETY: the pair belongs to the PCI host bridge of every PC. Interrupts stay disabled, so the
    // two accesses belong together.
    unsafe {
        Port::new(0xcf8).write(1 << 31 | address & 0x00ff_fffc);
        Port::new(0xcfc).read()
    }
}

/// Writes PCI configuration space through the port pair; `address` is the source-id in bits 23:8
/// and the register's offset, a multiple of four, in bits 7:0.
pub(crate) fn pci_write(address: u32, value: u32) {
    // SAFETY: as in `pci_read`. What a device then does with memory is up to the remapping unit.
    unsafe {
        Port::new(0xcf8).write(1 << 31 | address & 0x00ff_fffc);
        Port::new(0xcfc).write(value);
    }
}
