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
    // accesses belong together, and a guest between its own two finds its address again.
    unsafe {
        let kept: u32 = Port::new(0xcf8).read();
        Port::new(0xcf8).write(1 << 31 | address & 0x00ff_fffc);
        let value = Port::new(0xcfc).read();
        Port::new(0xcf8).write(kept);
        value
    }
}

/// Writes PCI configuration space through the port pair; `address` is the source-id in bits 23:8
/// and the register's offset, a multiple of four, in bits 7:0.
pub(crate) fn pci_write(address: u32, value: u32) {
    // SAFETY: as in `pci_read`. What a device then does with memory is up to the remapping unit.
    unsafe {
        let kept: u32 = Port::new(0xcf8).read();
        Port::new(0xcf8).write(1 << 31 | address & 0x00ff_fffc);
        Port::new(0xcfc).write(value);
        Port::new(0xcf8).write(kept);
    }
}

/// First of the four ports of the value that [`pci_address`] addresses.
pub(crate) const PCI_DATA: u16 = 0xcfc;

/// What the guest wrote last to the port pair's address register.
pub(crate) fn pci_address() -> u32 {
    // SAFETY: reading the register has no effect.
    unsafe { Port::new(0xcf8).read() }
}

/// Does what a guest's `IN` would: `size` bytes from one of the four ports from [`PCI_DATA`] on.
pub(crate) fn read_pci_data(port: u16, size: u8) -> u32 {
    // SAFETY: reading configuration space accesses no memory.
    unsafe { read(PCI_DATA | port & 3, size) }
}

/// Does what a guest's `OUT` would. What is written has been judged.
pub(crate) fn write_pci_data(port: u16, size: u8, value: u32) {
    // SAFETY: as in `pci_write`.
    unsafe { write(PCI_DATA | port & 3, size, value) }
}

/// Reads a power management control register, whose port firmware's tables name.
pub(crate) fn read_power_management(port: u16, size: u8) -> u32 {
    // SAFETY: reading the register has no effect.
    unsafe { read(port, size) }
}

/// Writes a power management control register, whose port firmware's tables name.
pub(crate) fn write_power_management(port: u16, size: u8, value: u32) {
    // SAFETY: the register puts the machine to sleep or off, and accesses no memory.
    unsafe { write(port, size, value) }
}

/// # Safety
///
/// As for a read of that port.
unsafe fn read(port: u16, size: u8) -> u32 {
    // SAFETY: the caller's.
    unsafe {
        match size {
            1 => Port::<u8>::new(port).read().into(),
            2 => Port::<u16>::new(port).read().into(),
            _ => Port::<u32>::new(port).read(),
        }
    }
}

/// # Safety
///
/// As for a write to that port.
unsafe fn write(port: u16, size: u8, value: u32) {
    // SAFETY: the caller's.
    unsafe {
        match size {
            1 => Port::new(port).write(value as u8),
            2 => Port::new(port).write(value as u16),
            _ => Port::new(port).write(value),
        }
    }
}
