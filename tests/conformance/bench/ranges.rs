//! Where things lie in a bench's host memory.

use vtd_nest::arch::address::Hpa;

/// A range of host memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HostRange {
    pub(crate) start: Hpa,
    pub(crate) len_bytes: u64,
}

impl HostRange {
    pub(crate) const fn new(start: u64, len_bytes: u64) -> Self {
        Self {
            start: Hpa::new(start),
            len_bytes,
        }
    }

    pub(crate) const fn contains(self, at: Hpa) -> bool {
        at.as_u64() >= self.start.as_u64() && at.as_u64() - self.start.as_u64() < self.len_bytes
    }
}

/// Which host memory is for what; the ranges do not meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// The hypervisor's frames.
    pub(crate) frames: HostRange,
    /// Memory to give to guests.
    pub(crate) guests: HostRange,
    /// Memory that is nobody's: a device that gets there has escaped.
    pub(crate) nobodys: HostRange,
}
