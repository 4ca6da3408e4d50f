//! The container: one boot module that holds a guest's kernel and initial RAM file system.
//!
//! The loader protocol has one module, so both go into one file: a header of 64-bit little-endian
//! words, which are the magic number, the number of files, and offset and length of each; then the
//! files. `cargo xtask` includes this module to write what the image reads.

/// First word of a container.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"VTD-NEST");
/// Files of a container: kernel, initial RAM file system.
pub(crate) const FILES: usize = 2;
/// Length of the header in bytes.
pub(crate) const HEADER_LEN_BYTES: usize = 16 + 16 * FILES;

/// Where a file lies in the container, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct File {
    pub(crate) offset: u64,
    pub(crate) len_bytes: u64,
}

/// Why a module is no container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(dead_code, reason = "the values are only ever printed")]
pub(crate) enum ContainerError {
    /// Too short for a header: this many bytes.
    Length(u64),
    Magic(u64),
    /// Another number of files than [`FILES`].
    Files(u64),
    /// A file is empty, or not all inside.
    File(File),
}

/// The header of a container whose files start page-aligned, in this order.
#[allow(dead_code, reason = "the image only reads")]
pub(crate) fn header(lengths: [u64; FILES]) -> ([u8; HEADER_LEN_BYTES], [File; FILES]) {
    let mut offset = 0u64;
    let mut end = HEADER_LEN_BYTES as u64;
    let files = lengths.map(|len_bytes| {
        offset = end.next_multiple_of(4096);
        end = offset + len_bytes;
        File { offset, len_bytes }
    });
    let words = [MAGIC, FILES as u64].into_iter();
    let words = words.chain(files.iter().flat_map(|file| [file.offset, file.len_bytes]));
    let mut header = [0; HEADER_LEN_BYTES];
    for (place, word) in header.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    (header, files)
}

/// The files of a container of `len_bytes` that starts with `header`.
#[allow(dead_code, reason = "its writer does not read")]
pub(crate) fn files(
    header: &[u8; HEADER_LEN_BYTES],
    len_bytes: u64,
) -> Result<[File; FILES], ContainerError> {
    if len_bytes < HEADER_LEN_BYTES as u64 {
        return Err(ContainerError::Length(len_bytes));
    }
    let mut words = header
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_le_bytes(*word));
    let mut next = || words.next().unwrap_or(0);
    match (next(), next()) {
        (MAGIC, count) if count == FILES as u64 => {}
        (MAGIC, count) => return Err(ContainerError::Files(count)),
        (magic, _) => return Err(ContainerError::Magic(magic)),
    }
    let mut files = [File {
        offset: 0,
        len_bytes: 0,
    }; FILES];
    for file in &mut files {
        *file = File {
            offset: next(),
            len_bytes: next(),
        };
        let end = file.offset.checked_add(file.len_bytes);
        if file.len_bytes == 0
            || file.offset < HEADER_LEN_BYTES as u64
            || end.is_none_or(|end| end > len_bytes)
        {
            return Err(ContainerError::File(*file));
        }
    }
    Ok(files)
}
