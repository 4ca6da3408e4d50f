//! The model of a VT-d unit against QEMU's unit: the same random programs on both.

mod configuration;
pub mod deviation;
mod driver;
mod generate;
mod invalidate;
mod layout;
mod observe;
mod program;
mod random;
mod sides;
mod tables;

pub use configuration::{ALL as CONFIGURATIONS, Base, Configuration, Unit};
pub use driver::{Outcome, run};
pub use generate::generate;
pub use program::{Domain, Dma, Program, Step};
