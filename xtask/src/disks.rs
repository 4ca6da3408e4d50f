//! The disks of the hypervisor's own NVMe devices: files of known content.
//!
//! A disk has [`LEN_BYTES`] bytes in blocks of [`BLOCK_LEN_BYTES`]. Quadword `i` of block `n` of the
//! disk with letter `l` is, little-endian, `l << 56 | i << 32 | n`: each tells where it belongs, and
//! neither disk has a quadword of the other. The image checks the same pattern.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Length of a disk in bytes.
const LEN_BYTES: usize = 1 << 20;

/// Length of a block in bytes.
const BLOCK_LEN_BYTES: usize = 512;

/// Letters of the disks; the serial number of the disk with letter `a` is `disk-a`.
const LETTERS: [char; 2] = ['a', 'b'];

/// The disks, as files that QEMU reads and never writes.
#[derive(Clone, Debug)]
pub(crate) struct Disks {
    folder: PathBuf,
}

impl Disks {
    /// The disks in the target folder, made if they are missing.
    pub(crate) fn open() -> Result<Self> {
        let disks = Self {
            folder: crate::target_folder()?.join("disks"),
        };
        for letter in LETTERS {
            make(&disks.path(letter), letter)?;
        }
        Ok(disks)
    }

    fn path(&self, letter: char) -> PathBuf {
        self.folder.join(format!("{}.raw", serial(letter)))
    }

    /// Each disk's serial number and file.
    pub(crate) fn list(&self) -> impl Iterator<Item = (String, PathBuf)> {
        LETTERS
            .into_iter()
            .map(|letter| (serial(letter), self.path(letter)))
    }
}

fn serial(letter: char) -> String {
    format!("disk-{letter}")
}

/// Makes a disk's file; one that is right stays, because a running QEMU may read it.
fn make(path: &Path, letter: char) -> Result<()> {
    let content = content(letter);
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let cannot = || format!("cannot make {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(cannot)?;
    }
    // Put in place when complete: nobody ever reads half a disk.
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    fs::write(&partial, content).with_context(cannot)?;
    fs::rename(&partial, path).with_context(cannot)
}

/// The content of the disk with this letter.
fn content(letter: char) -> Vec<u8> {
    let mut content = Vec::with_capacity(LEN_BYTES);
    for block in 0..(LEN_BYTES / BLOCK_LEN_BYTES) as u64 {
        for index in 0..(BLOCK_LEN_BYTES / 8) as u64 {
            let quadword = u64::from(letter as u8) << 56 | index << 32 | block;
            content.extend_from_slice(&quadword.to_le_bytes());
        }
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quadword_tells_its_disk_its_block_and_its_place() {
        let (a, b) = (content('a'), content('b'));
        assert_eq!((a.len(), b.len()), (1 << 20, 1 << 20));
        let quadword = |disk: &[u8], block: usize, index: usize| {
            let at = block * 512 + index * 8;
            u64::from_le_bytes(disk[at..at + 8].try_into().unwrap())
        };
        assert_eq!(quadword(&a, 0, 0), 0x6100_0000_0000_0000);
        assert_eq!(quadword(&a, 3, 5), 0x6100_0005_0000_0003);
        assert_eq!(quadword(&b, 2047, 63), 0x6200_003f_0000_07ff);
    }
}
