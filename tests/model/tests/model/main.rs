//! The model against the specification, by hand-built tables.

mod caches;
mod capabilities;
mod coherency;
mod corners;
mod device_tlb;
mod faults;
mod interrupts;
mod ordering;
mod page_requests;
mod protected;
mod queue;
mod registers;
mod support;
mod walks;
