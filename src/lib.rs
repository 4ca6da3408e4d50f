//! A virtual Intel VT-d unit for the guests of a Type-1 hypervisor, nested on the real one.
//!
//! See `ARCHITECTURE.md` for the layers; a module uses only the modules above it in this list.
#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]

pub mod arch;
#[cfg(test)]
mod log_events;
pub mod mem;
pub mod nest;
pub mod paging;
pub mod unit;
pub mod viommu;
