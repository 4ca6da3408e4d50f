//! The way from the loader to [`entry`](crate::entry), and what the loader tells.
//!
//! A leaf with `unsafe`: it holds the PVH entry, the identity map that all physical accesses rely on,
//! and the one reading of the loader's structures, before any other memory is in use.

use core::arch::global_asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};
use core::ptr;

use heapless::Vec;
use vtd_nest::arch::address::Hpa;

use crate::exit;

/// Size of the stack; the 2-MiB page below it is not mapped.
const STACK_SIZE_BYTES: usize = 1024 * 1024;

/// Level-3 tables of the identity map, 512 GiB each.
const LEVEL3_TABLES: usize = 2;

global_asm!(
    include_str!("boot.s"),
    entry = sym crate::entry,
    stack_size_bytes = const STACK_SIZE_BYTES,
    level3_tables = const LEVEL3_TABLES,
    exit_port = const exit::PORT,
    exit_failure = const exit::FAILURE,
);

unsafe extern "C" {
    safe static microhv_text_start: u8;
    safe static microhv_image_end: u8;
}

/// First byte of the image.
pub(crate) fn image_start() -> Hpa {
    Hpa::new((&raw const microhv_text_start).addr() as u64)
}

/// First byte after the image; between the two lie also its unmapped guard page and padding.
pub(crate) fn image_end() -> Hpa {
    Hpa::new((&raw const microhv_image_end).addr() as u64)
}

/// What the processor says of itself.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    #[allow(unused_unsafe, reason = "newer compilers call the intrinsic safe")]
    // SAFETY: every 64-bit processor has the instruction.
    unsafe {
        __cpuid_count(leaf, subleaf)
    }
}

/// First address past the identity map.
pub(crate) fn identity_map_end() -> Hpa {
    let has_1gib_pages = cpuid(0x8000_0001, 0).edx & 1 << 26 != 0;
    let mapped_end = if has_1gib_pages {
        (LEVEL3_TABLES as u64) << 39
    } else {
        4 << 30
    };
    let widths = cpuid(0x8000_0000, 0).eax;
    let physical_bits = if widths >= 0x8000_0008 {
        cpuid(0x8000_0008, 0).eax & 0xff
    } else {
        36
    };
    let physical_end = 1u64.checked_shl(physical_bits).unwrap_or(u64::MAX);
    Hpa::new(mapped_end.min(physical_end))
}

/// What a range of the loader's memory map may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RangeKind {
    /// Free RAM.
    Ram,
    /// Firmware's own, devices, or nothing.
    Reserved,
    /// ACPI tables, free once they have been read.
    AcpiTables,
    /// ACPI memory that must be kept.
    AcpiStorage,
    /// Any other type.
    Other(u32),
}

/// One range of the loader's memory map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryRange {
    pub(crate) start: Hpa,
    pub(crate) end: Hpa,
    pub(crate) kind: RangeKind,
}

/// A file that the loader put into memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Module {
    pub(crate) start: Hpa,
    pub(crate) end: Hpa,
}

/// A copy of everything that the loader tells.
pub(crate) struct BootInformation {
    /// Where the ACPI RSDP lies, if the loader found one.
    pub(crate) rsdp: Option<Hpa>,
    pub(crate) memory_map: Vec<MemoryRange, 64>,
    pub(crate) modules: Vec<Module, 8>,
    command_line: Vec<u8, 1024>,
}

impl BootInformation {
    /// The command line; empty if it is no valid UTF-8.
    pub(crate) fn command_line(&self) -> &str {
        str::from_utf8(&self.command_line).unwrap_or("")
    }
}

/// Why the loader's information cannot be used.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum BootError {
    /// No `hvm_start_info` there: this value stands in place of its magic number.
    Magic(u32),
    /// Version 0 has no memory map.
    Version(u32),
    /// A structure lies in the image or outside the identity map.
    OutOfReach(Hpa),
    TooManyRanges(u32),
    TooManyModules(u32),
    CommandLineTooLong,
}

const START_INFO_MAGIC: u32 = 0x336e_c578;

/// Reads the `hvm_start_info` at physical address `start_info`.
///
/// Called once, from [`entry`](crate::entry), before anything else uses memory outside the image.
pub(crate) fn read_information(start_info: u32) -> Result<BootInformation, BootError> {
    let info = Hpa::new(start_info.into());
    let magic = read_u32(info, 0)?;
    if magic != START_INFO_MAGIC {
        return Err(BootError::Magic(magic));
    }
    let version = read_u32(info, 4)?;
    if version < 1 {
        return Err(BootError::Version(version));
    }
    let mut information = BootInformation {
        rsdp: Some(Hpa::new(read_u64(info, 32)?)).filter(|rsdp| rsdp.as_u64() != 0),
        memory_map: Vec::new(),
        modules: Vec::new(),
        command_line: Vec::new(),
    };

    let count = read_u32(info, 48)?;
    let table = Hpa::new(read_u64(info, 40)?);
    for index in 0..u64::from(count) {
        let entry = index * 24;
        let start = Hpa::new(read_u64(table, entry)?);
        let length = read_u64(table, entry + 8)?;
        let kind = match read_u32(table, entry + 16)? {
            1 => RangeKind::Ram,
            2 => RangeKind::Reserved,
            3 => RangeKind::AcpiTables,
            4 => RangeKind::AcpiStorage,
            other => RangeKind::Other(other),
        };
        let range = MemoryRange {
            start,
            end: end_of(start, length),
            kind,
        };
        if information.memory_map.push(range).is_err() {
            return Err(BootError::TooManyRanges(count));
        }
    }

    let count = read_u32(info, 12)?;
    let table = Hpa::new(read_u64(info, 16)?);
    for index in 0..u64::from(count) {
        let start = Hpa::new(read_u64(table, index * 32)?);
        let end = end_of(start, read_u64(table, index * 32 + 8)?);
        if information.modules.push(Module { start, end }).is_err() {
            return Err(BootError::TooManyModules(count));
        }
    }

    let command_line = Hpa::new(read_u64(info, 24)?);
    if command_line.as_u64() != 0 {
        for offset in 0.. {
            match read::<u8>(command_line, offset)? {
                0 => break,
                byte => information
                    .command_line
                    .push(byte)
                    .map_err(|_| BootError::CommandLineTooLong)?,
            }
        }
    }
    Ok(information)
}

fn end_of(start: Hpa, length: u64) -> Hpa {
    Hpa::new(start.as_u64().saturating_add(length))
}

fn read_u32(base: Hpa, offset: u64) -> Result<u32, BootError> {
    read(base, offset)
}

fn read_u64(base: Hpa, offset: u64) -> Result<u64, BootError> {
    read(base, offset)
}

/// An integer of any bit pattern, which [`read`] relies on.
trait Integer: Copy {}
impl Integer for u8 {}
impl Integer for u32 {}
impl Integer for u64 {}

fn read<T: Integer>(base: Hpa, offset: u64) -> Result<T, BootError> {
    let address = base
        .checked_add(offset)
        .ok_or(BootError::OutOfReach(base))?;
    let end = address
        .checked_add(size_of::<T>() as u64)
        .ok_or(BootError::OutOfReach(address))?;
    let in_image = address < image_end() && end > image_start();
    if in_image || address.as_u64() == 0 || end > identity_map_end() {
        return Err(BootError::OutOfReach(address));
    }
    let pointer = ptr::with_exposed_provenance::<T>(address.as_u64() as usize);
    // SAFETY: boot.s mapped everything below `identity_map_end` except the guard page, which lies
    // inside the image, and the check above excludes that. No Rust object lives outside the image
    // yet, as `read_information` says. Any bits are an `Integer`; it may be unaligned.
    Ok(unsafe { pointer.read_unaligned() })
}
