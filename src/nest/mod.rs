//! Joins the guest side to hardware: what a virtual machine's devices are really bound to.
//!
//! A [`VirtualMachine`] owns its second stage, its virtual unit and the host side of its
//! bindings. The virtual unit says what each device and PASID should be bound to; this layer turns
//! that into PASID entries of the physical unit, each change one transaction: reserve, withdraw,
//! invalidate, publish. At any moment a binding is the old one, the new one, or blocked.
//!
//! | module | job |
//! |---|---|
//! | [`offer`] | what the guest is shown, from the hardware's capabilities and policy |
//! | [`machine`] | the virtual machine: memory, devices, registers, progress |
//! | [`store`] | a place for a machine, in which it is made |
//! | [`device`] | one assigned device and its tables on the physical unit |
//! | `switches` | a device's own switches for PASIDs and ATS, in order |
//! | `device_tlb` | what the TLBs of devices have to forget |
//! | `admission` | isolation groups and reserved memory: what a device needs to be let in |
//! | `emulated` | devices that the hypervisor emulates |
//! | [`domain`] | host domain-ids and who uses them |
//! | [`bind`] | one binding's way from state to state |
//! | `reserve` | what a binding needs before it is published: table page, domain-id, shadow |
//! | `shadows` | the shadows of a machine, and those on their way back to the pool |
//! | [`backend`] | what an entry becomes on hardware: nested, second-stage, shadow |
//! | `coalesce` | ranges joined while they are collected |
//! | [`invalidate`] | guest invalidations carried to hardware, completion |
//! | [`interrupt`] | the guest's interrupt entries carried out by the machine's slice of the table |
//! | `message` | interrupt messages of the machine's devices |
//! | [`fault`] | what hardware faults come to |
//! | `route` | hardware faults explained by the guest's tables, routed, and limited |

mod admission;
pub mod backend;
pub mod bind;
mod coalesce;
pub mod device;
mod device_tlb;
pub mod domain;
mod edited_memory;
mod emulated;
pub mod fault;
pub mod interrupt;
pub mod invalidate;
pub mod machine;
pub mod memory;
mod memory_edits;
mod message;
pub mod offer;
mod reserve;
mod route;
mod shadows;
pub mod statistics;
pub mod store;
mod switches;
pub mod units;

pub use bind::HostBinding;
pub use device::{
    AddressTranslation, AssignError, DeviceConfig, DeviceSwitches, InterruptIsolation, Isolation,
    ReservedMemoryUse,
};
pub use fault::{FaultOutcome, HostFault};
pub use interrupt::MessageRefusal;
pub use machine::{MachineConfig, MachineError, VirtualMachine};
pub use memory::{MachineMemory, PhysicalRange, ProtectedRanges};
pub use offer::{Backend, Offer, OfferError, OnReadOnlyMemory, Policy};
pub use statistics::MachineStatistics;
pub use store::MachineStore;
pub use units::{MACHINE_UNITS, MAXIMUM_UNITS};
