//! The kernel's boot protocol: what a bzImage says of itself, and the zero page that it is given.
//!
//! Pure. Offsets and values are those of the kernel's x86 boot protocol, version 2.12 and later
//! (64-bit entry).

/// Bytes from the start of a kernel file that hold all of its header.
pub(crate) const HEADER_LEN_BYTES: usize = 1024;
/// Length of the zero page.
pub(crate) const ZERO_PAGE_LEN_BYTES: usize = 4096;
/// Offset of the 64-bit entry from where the kernel is loaded.
pub(crate) const ENTRY_OFFSET: u64 = 0x200;

const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_END: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADER_TYPE: usize = 0x210;
const RAMDISK_ADDRESS: usize = 0x218;
const RAMDISK_LENGTH: usize = 0x21c;
const COMMAND_LINE_ADDRESS: usize = 0x228;
const EXTENDED_LOAD_FLAGS: usize = 0x236;
const COMMAND_LINE_LIMIT: usize = 0x238;
const PREFERRED_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

const RSDP_ADDRESS: usize = 0x070;
const MEMORY_MAP_COUNT: usize = 0x1e8;
const MEMORY_MAP: usize = 0x2d0;
const MEMORY_MAP_ENTRIES: usize = 128;
const MEMORY_MAP_ENTRY_LEN_BYTES: usize = 20;

/// Why a kernel cannot be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(dead_code, reason = "the values are only ever printed")]
pub(crate) enum KernelError {
    /// Not a bzImage.
    NotAKernel,
    /// An older protocol than 2.12, by its number.
    Protocol(u16),
    /// No 64-bit entry.
    Not64Bit,
    /// The file ends before the kernel does.
    Length(u64),
    /// The command line is longer than the kernel takes.
    CommandLine(usize),
    /// The memory map has more entries than the zero page.
    MemoryMap(usize),
}

/// What a kernel file says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kernel {
    /// Where the code starts in the file.
    pub(crate) code_offset: u64,
    /// Where it wants to lie.
    pub(crate) preferred_address: u64,
    /// Memory that it needs from there on until it knows the memory map.
    pub(crate) init_size: u64,
    /// Longest command line, without its final zero.
    command_line_limit: u32,
}

impl Kernel {
    /// Reads the header of a kernel file of `len_bytes`.
    pub(crate) fn parse(
        header: &[u8; HEADER_LEN_BYTES],
        len_bytes: u64,
    ) -> Result<Self, KernelError> {
        let read = |offset| u32::from_le_bytes(bytes(header, offset));
        if read(BOOT_FLAG) as u16 != 0xaa55 || bytes(header, MAGIC) != *b"HdrS" {
            return Err(KernelError::NotAKernel);
        }
        let version = read(VERSION) as u16;
        if version < 0x020c {
            return Err(KernelError::Protocol(version));
        }
        if read(EXTENDED_LOAD_FLAGS) & 1 == 0 {
            return Err(KernelError::Not64Bit);
        }
        let sectors = match header[SETUP_SECTORS] {
            0 => 4,
            sectors => sectors,
        };
        let code_offset = (u64::from(sectors) + 1) * 512;
        if len_bytes <= code_offset + ENTRY_OFFSET {
            return Err(KernelError::Length(len_bytes));
        }
        Ok(Self {
            code_offset,
            preferred_address: u64::from_le_bytes(bytes(header, PREFERRED_ADDRESS)),
            init_size: u64::from(read(INIT_SIZE)).max(len_bytes - code_offset),
            command_line_limit: read(COMMAND_LINE_LIMIT),
        })
    }
}

/// What a range of the memory map is, in the numbers of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MapEntry {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) kind: u32,
}

/// RAM.
pub(crate) const MAP_RAM: u32 = 1;
/// Nothing to be used.
pub(crate) const MAP_RESERVED: u32 = 2;

/// What the kernel is told beside its own header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) memory_map: &'a [MapEntry],
    pub(crate) rsdp: u64,
    /// Address and length, without the final zero.
    pub(crate) command_line: (u64, usize),
    /// Address and length.
    pub(crate) ramdisk: (u64, u64),
}

/// The zero page for a kernel with this header.
pub(crate) fn zero_page(
    kernel: &Kernel,
    header: &[u8; HEADER_LEN_BYTES],
    told: &Told<'_>,
) -> Result<[u8; ZERO_PAGE_LEN_BYTES], KernelError> {
    if told.command_line.1 as u64 > u64::from(kernel.command_line_limit) {
        return Err(KernelError::CommandLine(told.command_line.1));
    }
    if told.memory_map.len() > MEMORY_MAP_ENTRIES {
        return Err(KernelError::MemoryMap(told.memory_map.len()));
    }
    let mut page = [0; ZERO_PAGE_LEN_BYTES];
    let end = MAGIC + usize::from(header[HEADER_END]);
    page[SETUP_SECTORS..end].copy_from_slice(&header[SETUP_SECTORS..end]);
    let mut write = |offset: usize, bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    // The extended halves are left zero: all addresses are below 4 GiB.
    write(LOADER_TYPE, &[0xff]);
    write(RSDP_ADDRESS, &told.rsdp.to_le_bytes());
    write(RAMDISK_ADDRESS, &(told.ramdisk.0 as u32).to_le_bytes());
    write(RAMDISK_LENGTH, &(told.ramdisk.1 as u32).to_le_bytes());
    write(
        COMMAND_LINE_ADDRESS,
        &(told.command_line.0 as u32).to_le_bytes(),
    );
    write(MEMORY_MAP_COUNT, &[told.memory_map.len() as u8]);
    for (index, entry) in told.memory_map.iter().enumerate() {
        let place = MEMORY_MAP + index * MEMORY_MAP_ENTRY_LEN_BYTES;
        write(place, &entry.start.to_le_bytes());
        write(place + 8, &(entry.end - entry.start).to_le_bytes());
        write(place + 16, &entry.kind.to_le_bytes());
    }
    Ok(page)
}

/// Puts a range with another kind over a memory map; entries are split where they cross its borders.
/// Gives the entries to `each`, ascending where they were.
pub(crate) fn overlay(
    map: impl Iterator<Item = MapEntry>,
    over: MapEntry,
    mut each: impl FnMut(MapEntry),
) {
    for entry in map {
        let before = MapEntry {
            end: entry.end.min(over.start),
            ..entry
        };
        let inside = MapEntry {
            start: entry.start.max(over.start),
            end: entry.end.min(over.end),
            kind: over.kind,
        };
        let after = MapEntry {
            start: entry.start.max(over.end),
            ..entry
        };
        for part in [before, inside, after] {
            if part.start < part.end {
                each(part);
            }
        }
    }
}

fn bytes<const N: usize>(header: &[u8; HEADER_LEN_BYTES], offset: usize) -> [u8; N] {
    core::array::from_fn(|index| header.get(offset + index).copied().unwrap_or(0))
}
