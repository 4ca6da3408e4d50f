//! Scenarios of the whole component on a bench: a guest's registers and memory on one side, a
//! device's DMA on the other. Each test names the requirement numbers it covers.
//!
//! The bench here is the model in process; the image runs the end-to-end job on emulated hardware.

mod bench;
mod bindings;
mod confirmations;
mod containment;
mod costs;
mod end_to_end;
mod faults;
mod transactions;
// The image's guest driver: the same code on both benches.
#[path = "../../src/bin/microhv/guest/mod.rs"]
mod guest;
mod stores;
