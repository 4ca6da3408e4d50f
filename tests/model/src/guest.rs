//! A guest's memory over the model's host memory.

use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::mem::{GuestMemory, GuestMemoryError};

use crate::memory::Memory;

/// Guest-physical windows onto host memory.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: Memory,
    windows: Vec<(Gpa, u64, Hpa)>,
}

impl GuestRam {
    /// A guest without memory.
    pub fn new(memory: &Memory) -> Self {
        Self {
            memory: memory.clone(),
            windows: Vec::new(),
        }
    }

    /// Adds a window of `len_bytes` at `at` onto `host`.
    #[must_use]
    pub fn with_window(mut self, at: Gpa, len_bytes: u64, host: Hpa) -> Self {
        self.windows.push((at, len_bytes, host));
        self
    }

    /// The host address of the byte, if the guest has it and `len_bytes` from it on lie in the
    /// same window.
    pub fn host(&self, at: Gpa, len_bytes: u64) -> Option<Hpa> {
        self.windows.iter().find_map(|&(first, length, host)| {
            let offset = at.as_u64().checked_sub(first.as_u64())?;
            (offset.checked_add(len_bytes)? <= length)
                .then(|| host.checked_add(offset))
                .flatten()
        })
    }
}

impl GuestMemory for GuestRam {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), GuestMemoryError> {
        let len_bytes = into.len() as u64;
        match self.host(at, len_bytes) {
            Some(host) if self.memory.device_read(host.as_u64(), into) => Ok(()),
            _ => Err(GuestMemoryError {
                address: at,
                len_bytes,
            }),
        }
    }

    fn compare_exchange(&self, at: Gpa, current: u64, new: u64) -> Result<bool, GuestMemoryError> {
        use vtd_nest::mem::HostMemory;
        match self.host(at, 8) {
            Some(host) if self.memory.is_ram(host, 8) => {
                Ok(self.memory.compare_exchange64(host, current, new) == current)
            }
            _ => Err(GuestMemoryError {
                address: at,
                len_bytes: 8,
            }),
        }
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), GuestMemoryError> {
        use vtd_nest::mem::HostMemory;
        let len_bytes = from.len() as u64;
        match self.host(at, len_bytes) {
            Some(host) if self.memory.is_ram(host, len_bytes) => {
                self.memory.copy_to(host, from);
                Ok(())
            }
            _ => Err(GuestMemoryError {
                address: at,
                len_bytes,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_accesses_stay_in_their_window() {
        let memory = Memory::new(0x10000);
        let guest = GuestRam::new(&memory).with_window(Gpa::new(0x1000), 0x1000, Hpa::new(0x8000));
        guest.write(Gpa::new(0x1ff8), &7u64.to_le_bytes()).unwrap();
        assert_eq!(guest.read_u64(Gpa::new(0x1ff8)), Ok(7));
        assert!(guest.read_u64(Gpa::new(0x1ffc)).is_err());
        assert!(guest.write(Gpa::new(0xfff), &[0; 2]).is_err());
        assert_eq!(guest.host(Gpa::new(0x1234), 4), Some(Hpa::new(0x8234)));
    }
}
