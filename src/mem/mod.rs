//! The seams between the library and the machine.
//!
//! Everything the library does to hardware, host memory or guest memory goes through a trait of
//! this module, so the same code drives a real machine, an emulator over a socket, or a model in
//! a test. The real implementations, [`mmio`] and [`direct`], hold all of the library's `unsafe`.

pub mod direct;
pub mod frames;
pub mod guest_memory;
pub mod host_memory;
pub mod mmio;
pub mod platform;
pub mod registers;
#[cfg(test)]
pub(crate) mod testing;

pub use direct::DirectMemory;
pub use frames::{FrameChain, FrameError, FramePool, FrameRun, Frames, Owner};
pub use guest_memory::{GuestMemory, GuestMemoryError};
pub use host_memory::HostMemory;
pub use mmio::MmioRegisters;
pub use platform::Platform;
pub use registers::Registers;

/// What the hypervisor provides to the library: memory, frames, time and interrupts.
///
/// Implemented for whatever implements the three parts; pass one shared reference to it into each
/// call. All methods take `&self`: an implementation locks inside, briefly, and never calls back.
pub trait Hypervisor: HostMemory + Frames + Platform {}

impl<T: HostMemory + Frames + Platform> Hypervisor for T {}
