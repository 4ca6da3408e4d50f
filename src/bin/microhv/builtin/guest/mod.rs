//! A small guest driver: it brings its VT-d unit up, builds its tables and drives one `edu` device.
//!
//! It touches only what a guest has: guest memory, the device's registers, and the unit's register
//! page. The same code runs in the image, against emulated hardware, and in hosted tests, against
//! the model. It shares bit layouts with the library, and no logic.

mod edu;
mod job;
mod tables;
mod unit;

#[allow(unused_imports, reason = "hosted tests use fewer")]
pub(crate) use edu::{Direction, DmaTimeout, dma};
#[allow(unused_imports, reason = "hosted tests use fewer")]
pub(crate) use job::{
    Blocked, BlockedTarget, Job, JobError, Layout, PAIRS, STEPS, destination_iova, source_iova,
};

use vtd_nest::arch::address::Gpa;

/// The machine as a guest sees it. Each call may be a VM exit.
pub(crate) trait Machine {
    /// Reads guest memory.
    fn read_memory(&mut self, at: Gpa, into: &mut [u8]);
    /// Writes guest memory.
    fn write_memory(&mut self, at: Gpa, from: &[u8]);
    /// Reads a register of the VT-d unit; `len` is 4 or 8 bytes.
    fn read_unit(&mut self, offset: u64, len: u8) -> u64;
    /// Writes a register of the VT-d unit; `len` is 4 or 8 bytes.
    fn write_unit(&mut self, offset: u64, len: u8, value: u64);
    /// Reads a 64-bit register of the `edu` device.
    fn read_device(&mut self, offset: u64) -> u64;
    /// Writes a 64-bit register of the `edu` device.
    fn write_device(&mut self, offset: u64, value: u64);
    /// Lets time pass in a wait loop.
    fn pass_time(&mut self);
}

/// Reads a quadword of guest memory.
fn read_u64(machine: &mut impl Machine, at: Gpa) -> u64 {
    let mut bytes = [0; 8];
    machine.read_memory(at, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Writes a quadword of guest memory.
fn write_u64(machine: &mut impl Machine, at: Gpa, value: u64) {
    machine.write_memory(at, &value.to_le_bytes());
}

/// The address `offset` bytes into a structure; guest memory is small, so it never wraps.
fn offset(at: Gpa, offset: u64) -> Gpa {
    Gpa::new(at.as_u64().wrapping_add(offset))
}
