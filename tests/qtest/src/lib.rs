//! QEMU's VT-d unit as a bench: real tables in shared memory, real DMA by `edu` devices, no guest.
//!
//! A [`Machine`] is one QEMU process whose processor is halted by its first instruction. Registers
//! are accessed over QEMU's `qtest` protocol, the machine's memory is a file that this process maps
//! too, and two `edu` devices and two NVMe controllers do DMA through the unit, behind which a network
//! card and a virtio device are too. So the library drives an implementation of
//! VT-d that shares no code with it or with the model.
//!
//! The process ends and all of its files are gone when the last handle of a machine is dropped. An
//! emulator that ends by itself, or answers nothing, is a panic with what it wrote to its standard
//! error: nothing that a test does after that would mean anything.
//!
//! Linux on x86-64 only.
//!
//! ```no_run
//! use vtd_nest::arch::address::Iova;
//! use vtd_nest::arch::register::Register32;
//! use vtd_nest::mem::Registers;
//! use vtd_qtest::{Machine, Options, Qemu};
//!
//! let qemu = Qemu::find().unwrap();
//! let machine = Machine::new(&Options::second_stage(&qemu)).unwrap();
//! assert_eq!(machine.registers().read32(Register32::VERSION), 0x10);
//! machine.edu(0).dma_write(Iova::new(0x10_0000), b"data");
//! ```

mod buffer;
mod edu;
mod emulator;
mod hypervisor;
mod machine;
mod nvme;
mod options;
mod pci;
mod ram;
mod registers;

pub use edu::Edu;
pub use emulator::StartError;
pub use hypervisor::{BusMasterChange, DeliveredInterrupt, QtestHypervisor};
pub use machine::Machine;
pub use nvme::Nvme;
pub use options::{Options, Qemu, Unavailable, Version};
pub use pci::Pci;
pub use ram::{MemoryRange, RamLayout};
pub use registers::QtestRegisters;
