//! The model against the specification, by hand-built tables.

mod caches;
mod coherency;
mod device_tlb;
mod faults;
mod page_requests;
mod queue;
mod registers;
mod support;
mod walks;
