//! The parts of the micro-hypervisor image that are pure, on the host.

#![allow(dead_code, reason = "the image uses the rest")]

#[path = "../../src/bin/microhv/linux/apic_filter.rs"]
mod apic_filter;
#[path = "../../src/bin/microhv/linux/boot_protocol.rs"]
mod boot_protocol;
#[path = "../../src/bin/microhv/linux/container.rs"]
mod container;
#[path = "../../src/bin/microhv/decode.rs"]
mod decode;
#[path = "../../src/bin/microhv/cpu/svm/efer.rs"]
mod efer;
#[path = "../../src/bin/microhv/linux/ioapic_filter.rs"]
mod ioapic_filter;
#[path = "../../src/bin/microhv/linux/page_walk.rs"]
mod page_walk;
#[path = "../../src/bin/microhv/linux/pci_guard.rs"]
mod pci_guard;

mod tests;
