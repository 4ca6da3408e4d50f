//! The physical side: drives one real remapping unit.
//!
//! A [`Unit`] owns the registers of one unit, its root and context tables, its invalidation queue
//! and its domain-ids. It knows devices, PASID entries and descriptors, but no guest and no virtual
//! machine: what an entry translates to is decided above.
//!
//! | module | job |
//! |---|---|
//! | [`discovery`] | what firmware's tables and the PCI hierarchy say of units and devices |
//! | [`mod@unit`] | one unit: probing, its state, its configuration |
//! | [`bring_up`] | from whatever firmware left to *translating, everything blocked* |
//! | [`shut_down`] | the way back, and the way through a suspension |
//! | [`command`] | global commands: one at a time, one change per write, bounded waits |
//! | [`tables`] | attached devices, their tables, and the order of stores to them |
//! | `context` | a device's context entries, one for each source-id |
//! | [`entries`] | what requests of a device translate to: PASID entries |
//! | `legacy` | the same as context entries, for units driven in legacy mode |
//! | [`own_device`] | devices that the hypervisor drives itself |
//! | [`rmrr`] | devices at the memory that firmware reserves for them |
//! | [`queue`] | the invalidation queue |
//! | `queue_memory` | its frames, and places in them |
//! | `ticket` | the right to ask whether a submission is done |
//! | [`queue_recovery`] | what becomes of the queue after an error |
//! | [`deferred`] | invalidations that are put off |
//! | [`device_capability`] | a device's own switches for PASIDs, page requests and ATS |
//! | [`device_tlb`] | the translation caches of devices |
//! | [`platform_errors`] | masks for what malformed interrupt messages do to the platform |
//! | [`fault`] | draining fault records |
//! | [`errata`] | what real units do differently, and what is avoided there |
//! | [`mod@explain`] | what tables say of a request, step by step |
//! | [`storm`] | how many faults of a device are handled, and what ends the rest |
//! | [`interrupt`] | interrupt remapping: the table, its slices and its entries |
//! | [`domain_ids`] | the allocator of domain-ids |
//! | `lock` | the order of a unit's locks |
//! | [`statistics`] | counters |
//!
//! # Rules
//!
//! - All methods take `&self`. Locks are held for a few register or memory accesses, never across a
//!   wait for hardware. Order: tables, interrupts, domain-ids, reserved memory, queue, faults,
//!   commands, registers; `lock` says what is called under them, and what interrupt handlers may do.
//! - Every wait ends: by the platform's clock, and by a count of polls should that clock stand
//!   still ([`deadline`]).
//! - What registers say is checked before it is used as an index, a shift or a bound.
//! - Memory that hardware may still use is never given back: it stays in a token until an
//!   invalidation is confirmed, and is lost and counted if that token is dropped.

pub mod bring_up;
pub mod command;
mod context;
pub mod deadline;
pub mod deferred;
pub mod device_capability;
pub mod device_tlb;
pub mod discovery;
pub mod domain_ids;
pub mod entries;
pub mod errata;
pub mod error;
pub mod explain;
pub mod fault;
pub mod interrupt;
mod legacy;
mod lock;
pub mod own_device;
pub mod platform_errors;
pub mod queue;
mod queue_memory;
pub mod queue_recovery;
pub mod rmrr;
pub mod shut_down;
pub mod statistics;
pub mod storm;
pub mod tables;
mod ticket;
// The unit itself is the layer's main type; its file is named for it.
#[allow(clippy::module_inception)]
pub mod unit;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod threads;

pub use deferred::DeferredInvalidations;
pub use device_capability::{
    ConfigurationSpace, DeviceAbilities, DeviceCapabilities, DeviceCapabilityError,
};
pub use device_tlb::{DeviceTlb, DeviceTlbScope};
pub use discovery::{DiscoveryError, UnitDescription, discover};
pub use errata::{Errata, Erratum, PciIdentity, PlatformIdentity, ProcessorModel};
pub use error::{QueueError, Requirement, UnitError};
pub use explain::{ExplainRequest, Explanation, Step, explain};
pub use interrupt::{
    DeviceInterrupt, InterruptConfig, InterruptRefusal, InterruptRemapping, InterruptSlice,
    StaleInterruptEntries,
};
pub use own_device::{OwnDevice, OwnDeviceError, OwnMapping};
pub use queue::Ticket;
pub use rmrr::{ReservedDevice, ReservedMemoryError};
pub use shut_down::Leave;
pub use statistics::{UnitStatistics, lost_table_frames};
pub use storm::{DeviceFaults, FaultRate, FaultStorms, StormLimit, StormVerdict};
pub use tables::{DetachedDevice, DeviceTables};
pub use unit::{OnFirmwareState, Unit, UnitConfig, table_mode_for};
