//! The model against the specification, by hand-built tables.

mod caches;
mod capabilities;
mod coherency;
mod corners;
mod faults;
mod ordering;
mod protected;
mod queue;
mod registers;
mod support;
mod walks;
