//! The parts of the micro-hypervisor image that are pure, on the host.

mod container;
mod decode;
