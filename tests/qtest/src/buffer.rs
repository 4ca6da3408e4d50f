//! The buffer of an `edu` device, found in the emulator's memory.
//!
//! Only the device's own DMA reaches the buffer, and that goes through the unit whose tables are
//! under test. Filling or emptying it by DMA would need a mapping of its own in those tables, and
//! would put entries into the unit's caches that the scenario knows nothing of. So the buffer is
//! accessed where it is: in the memory of the emulator, which is a child of this process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use crate::edu::BUFFER_BYTES;

/// Mappings that are longer hold no small object of the emulator.
const LONGEST_MAPPING: u64 = 64 << 20;

/// How often the emulator's memory is looked through.
const ATTEMPTS: u32 = 20;

/// The buffer of one device.
pub(crate) struct Buffer {
    memory: File,
    address: u64,
}

impl Buffer {
    /// Finds the buffer, which holds exactly `content` now.
    pub(crate) fn find(process_id: u32, content: &[u8; BUFFER_BYTES]) -> io::Result<Self> {
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{process_id}/mem"))?;
        // The emulator's heap may grow or shrink while it is looked through.
        for _ in 0..ATTEMPTS {
            let maps = fs::read_to_string(format!("/proc/{process_id}/maps"))?;
            if let Some(address) = Self::address_in(&memory, &maps, content) {
                return Ok(Self { memory, address });
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(io::Error::other("no mapping holds what DMA put there"))
    }

    /// The address of the content in the mappings that `maps` lists.
    fn address_in(memory: &File, maps: &str, content: &[u8; BUFFER_BYTES]) -> Option<u64> {
        let mut mappings: Vec<_> = maps.lines().filter_map(private_mapping).collect();
        // The heap first: the device is there, and it is the only copy.
        mappings.sort_by_key(|mapping| (!mapping.is_heap, mapping.end - mapping.start));
        for mapping in mappings {
            let mut bytes = vec![0; (mapping.end - mapping.start) as usize];
            // Some special mappings cannot be read.
            if memory.read_exact_at(&mut bytes, mapping.start).is_ok()
                && let Some(offset) = position(&bytes, content)
            {
                return Some(mapping.start + offset as u64);
            }
        }
        None
    }

    /// Reads from the buffer's start on.
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<()> {
        let len = into.len().min(BUFFER_BYTES);
        self.memory.read_exact_at(&mut into[..len], self.address)
    }

    /// Writes from the buffer's start on.
    pub(crate) fn write(&self, from: &[u8]) -> io::Result<()> {
        let len = from.len().min(BUFFER_BYTES);
        self.memory.write_all_at(&from[..len], self.address)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mapping {
    start: u64,
    end: u64,
    is_heap: bool,
}

/// The mapping of a line of `maps`, if the process alone writes to it.
fn private_mapping(line: &str) -> Option<Mapping> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_private = words.next()?.starts_with("rw-p") || line.contains(" rwxp ");
    let mapping = Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        is_heap: line.ends_with("[heap]"),
    };
    let len_bytes = mapping.end.checked_sub(mapping.start)?;
    (is_private && len_bytes <= LONGEST_MAPPING).then_some(mapping)
}

/// Where in `bytes` the content is.
fn position(bytes: &[u8], content: &[u8]) -> Option<usize> {
    // Objects of the heap are aligned, and their members at least to 4 bytes.
    let first = content.first_chunk::<4>()?;
    let candidates = bytes.as_chunks().0.iter().enumerate();
    candidates
        .filter(|(_, chunk)| *chunk == first)
        .map(|(index, _)| index * first.len())
        .find(|&offset| bytes[offset..].starts_with(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_writable_mappings_are_searched() {
        for (line, expected) in [
            (
                "1000-3000 rw-p 00000000 00:00 0    [heap]",
                Some((0x1000, 0x3000, true)),
            ),
            (
                "7f00-8000 rw-p 00000000 00:00 0 ",
                Some((0x7f00, 0x8000, false)),
            ),
            (
                "1000-3000 rw-s 00000000 00:18 7 /dev/shm/#7 (deleted)",
                None,
            ),
            ("1000-3000 r--p 00000000 00:18 7 /usr/lib/x", None),
            ("1000-10000000 rw-p 00000000 00:00 0", None),
            ("", None),
        ] {
            let mapping = private_mapping(line).map(|m| (m.start, m.end, m.is_heap));
            assert_eq!(mapping, expected, "{line}");
        }
    }

    #[test]
    fn content_is_found_at_aligned_offsets_only_as_a_whole() {
        let content: Vec<u8> = (0..64).collect();
        let mut bytes = vec![0; 256];
        bytes[20..52].copy_from_slice(&content[..32]);
        assert_eq!(position(&bytes, &content), None);
        bytes[100..164].copy_from_slice(&content);
        assert_eq!(position(&bytes, &content), Some(100));
    }
}
