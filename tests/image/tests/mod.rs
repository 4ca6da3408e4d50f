//! The tests, named as what they test.

mod apic_filter;
mod boot_protocol;
mod container;
mod decode;
mod efer;
mod page_walk;
mod pci_guard;
