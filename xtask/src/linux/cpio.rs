//! Initial RAM file systems: the `newc` form of cpio, as far as a few files need it.

/// An archive that grows by one entry at a time.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder; its parent comes before it.
    pub(crate) fn folder(&mut self, path: &str) {
        self.entry(path, 0o040_755, (0, 0), &[]);
    }

    /// Adds a file that can be executed.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, 0o100_755, (0, 0), content);
    }

    /// Adds a character device by its numbers.
    pub(crate) fn device(&mut self, path: &str, numbers: (u32, u32)) {
        self.entry(path, 0o020_600, numbers, &[]);
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let name_len = path.len() as u32 + 1;
        let fields = [
            self.entries, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // time
            content.len() as u32,
            0, // the file system's device numbers
            0,
            device.0,
            device.1,
            name_len,
            0, // checksum, of another form
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let mut archive = Archive::default();
        archive.folder("a");
        archive.file("a/b", b"hello");
        archive.device("c", (5, 1));
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        let field = |entry: usize, index: usize| {
            let at = starts[entry] + 6 + 8 * index;
            u32::from_str_radix(&text[at..at + 8], 16).unwrap()
        };
        assert_eq!((field(0, 1), field(0, 6)), (0o040_755, 0));
        assert_eq!((field(1, 1), field(1, 6), field(1, 11)), (0o100_755, 5, 4));
        // The header is 110 bytes; name and content are padded to four each.
        assert_eq!(&bytes[starts[1] + 110..][..4], b"a/b\0");
        assert_eq!(&bytes[starts[1] + 116..][..5], b"hello");
        assert_eq!((field(2, 1), field(2, 9), field(2, 10)), (0o020_600, 5, 1));
        assert_eq!(&bytes[starts[3] + 110..][..11], b"TRAILER!!!\0");
    }
}
