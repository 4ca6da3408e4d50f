//! The guest side: a virtual VT-d unit. Knows no hardware.
//!
//! | module | what it is |
//! |---|---|
//! | [`host`] | the one seam to the host side: desired bindings, guest invalidations |
//! | [`mod@unit`] | the unit: registers, commands, devices, and the loop that gets work done |
//! | [`registers`] | the table of all registers |
//! | [`tables`] | the guest's root, context and PASID tables, read from hostile memory |
//! | [`translate`] | where the guest's tables lead a request |
//! | [`emulated`] | devices that the hypervisor emulates: translation in software |
//! | [`interrupt`] | the guest's interrupt remapping, and messages remapped in software |
//! | [`fault`] | fault records and the fault event |
//! | [`state`] | the unit's state, saved and restored |
//! | [`statistics`] | counters |
//!
//! Inside: the store of bindings, accessed and dirty flags, the cache of emulated devices' translations, the passes that keep it in step with the guest's tables, and the
//! invalidation queue.
//!
//! No register access does host work. A write leaves work pending, and
//! [`VirtualUnit::poll`] does it in slices: call it after every write, and again as it says.

pub mod emulated;
pub mod fault;
mod first_stage_roots;
mod flags;
pub mod host;
pub mod interrupt;
mod keyed_hash;
mod pasid_cache;
mod queue;
pub mod registers;
pub mod state;
pub mod statistics;
mod synchronise;
pub mod tables;
#[cfg(test)]
mod testing;
pub mod translate;
mod translation_cache;
pub mod unit;

pub(crate) use keyed_hash::KeyedHash;

pub use emulated::{CACHED_TRANSLATIONS, TranslateError};
pub use fault::{GuestFault, MAX_FAULT_RECORDS};
pub use host::{
    BindError, Desired, DeviceHandle, DeviceRequests, GuestBinding, GuestInterrupt,
    GuestInvalidation, Host, HostState, InterruptError, PageRange, Progress,
};
pub use state::{STATE_LEN_BYTES, StateError};
pub use statistics::VirtualUnitStatistics;
pub use translate::{DmaRequest, Walked};
pub use unit::{ConfigError, DeviceError, DeviceKind, Poll, VirtualUnit, VirtualUnitConfig};
