//! The model of a VT-d unit against QEMU's unit: the same random programs on both.
//!
//! A [`Program`] is what a driver does: it writes tables, sets pointers, switches translation, and
//! invalidates after each change what the architecture asks for, while two devices do DMA. It is
//! generated from a seed for a [`Unit`], and [`run`] on a fresh model and on QEMU, step by step:
//!
//! - the same stores and register writes go to both sides;
//! - after each DMA, what the device read, what arrived in memory, the fault record, `FSTS_REG`
//!   and the accessed and dirty bits of the page tables are compared;
//! - after each step, the status and queue registers are; and that the model found no rule broken.
//!
//! What differs must be a [known deviation](deviation) of QEMU's unit. Anything else is a failure:
//! of the model, or of the table of deviations.
//!
//! Programs stay within what both can be compared in: requests without PASID, since no device of
//! QEMU's sends one; no interrupt remapping, device-TLBs or page requests; status and interrupt in
//! one wait descriptor never, since that ends QEMU.

mod configuration;
pub mod deviation;
mod driver;
mod generate;
mod invalidate;
mod layout;
mod observe;
mod program;
mod random;
mod shorten;
mod sides;
mod tables;

pub use configuration::{ALL as CONFIGURATIONS, Base, Configuration, Unit};
pub use driver::{Failure, Outcome, run};
pub use generate::generate;
pub use program::{
    Address, Dma, Domain, Flaw, Interface, Kind, Mode, Place, Program, Scope, Step, Target, Upper,
};
pub use shorten::shorten;
