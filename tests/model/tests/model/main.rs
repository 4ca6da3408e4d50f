//! The model against the specification, by hand-built tables.

mod caches;
mod coherency;
mod faults;
mod interrupts;
mod queue;
mod registers;
mod support;
mod walks;
