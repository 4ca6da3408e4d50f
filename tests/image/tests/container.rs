//! The container of a guest's files.

use crate::container::{ContainerError, FILES, File, HEADER_LEN_BYTES, files, header};

#[test]
fn what_is_written_is_read_again() {
    let (bytes, written) = header([5000, 1]);
    assert_eq!(&bytes[..8], b"VTD-NEST");
    assert_eq!(
        written,
        [
            File {
                offset: 4096,
                len_bytes: 5000
            },
            File {
                offset: 12288,
                len_bytes: 1
            }
        ]
    );
    assert_eq!(files(&bytes, 12289), Ok(written));
}

#[test]
fn what_is_no_container_is_refused() {
    let (good, [_, last]) = header([5000, 1]);
    let changed = |word: usize, value: u64| {
        let mut bytes = good;
        bytes[8 * word..][..8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let file = |offset, len_bytes| ContainerError::File(File { offset, len_bytes });
    for (bytes, len, expected) in [
        (
            good,
            HEADER_LEN_BYTES as u64 - 1,
            ContainerError::Length(HEADER_LEN_BYTES as u64 - 1),
        ),
        (changed(0, 1), 12289, ContainerError::Magic(1)),
        (
            changed(1, FILES as u64 + 1),
            12289,
            ContainerError::Files(FILES as u64 + 1),
        ),
        (changed(2, 0), 12289, file(0, 5000)),
        (changed(3, 0), 12289, file(4096, 0)),
        (changed(3, u64::MAX), 12289, file(4096, u64::MAX)),
        (good, 12288, file(last.offset, last.len_bytes)),
    ] {
        assert_eq!(files(&bytes, len), Err(expected));
    }
}
