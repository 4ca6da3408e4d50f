//! Kernel, initial RAM file system and what the kernel is told, put where they belong.

use heapless::Vec;
use vtd_nest::arch::address::Hpa;

use crate::boot::{BootInformation, Module, RangeKind};
use crate::cpu::Start;
use crate::memory::{FreeRange, Memory, MemoryError};

use super::boot_protocol::{
    self, ENTRY_OFFSET, HEADER_LEN_BYTES, Kernel, KernelError, MAP_RAM, MAP_RESERVED, MapEntry,
    Told, zero_page,
};
use super::container::{self, ContainerError, File};
use super::machine::Machine;

/// Where the kernel finds what it is told: a few pages of low memory, which every PC has.
const ZERO_PAGE: u64 = 0x8_0000;
const COMMAND_LINE: u64 = 0x8_1000;
const COMMAND_LINE_END: u64 = 0x8_2000;
const DESCRIPTORS: u64 = 0x8_2000;
const PAGE_TABLES: u64 = 0x8_3000;
/// A root, a table below it, and one for each of four GiB.
const PAGE_TABLES_END: u64 = PAGE_TABLES + 6 * 4096;
/// The stack grows down from the zero page.
const STACK_START: u64 = ZERO_PAGE - 4096;

/// Why the guest cannot be loaded.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum LoadError {
    Container(ContainerError),
    Kernel(KernelError),
    Memory(MemoryError),
    /// The guest has no RAM there, or something else is there already.
    NoRoom {
        start: u64,
        end: u64,
    },
    /// No RSDP to tell the guest of.
    NoRsdp,
}

impl From<ContainerError> for LoadError {
    fn from(error: ContainerError) -> Self {
        Self::Container(error)
    }
}

impl From<KernelError> for LoadError {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error)
    }
}

impl From<MemoryError> for LoadError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

/// The guest's files, where the loader put them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuestFiles {
    module: Module,
    kernel: File,
    ramdisk: File,
}

impl GuestFiles {
    /// The files in a module that is a container.
    pub(crate) fn find(memory: &Memory, module: Module) -> Result<Self, LoadError> {
        let len_bytes = module.end.as_u64().saturating_sub(module.start.as_u64());
        let window = memory.window(module.start, len_bytes)?;
        let mut header = [0; container::HEADER_LEN_BYTES];
        for (offset, byte) in (0..).zip(&mut header) {
            *byte = window.read_u8(offset).unwrap_or(0);
        }
        let [kernel, ramdisk] = container::files(&header, len_bytes)?;
        Ok(Self {
            module,
            kernel,
            ramdisk,
        })
    }

    fn place(&self, file: File) -> (u64, u64) {
        let start = self.module.start.as_u64() + file.offset;
        (start, start + file.len_bytes)
    }
}

/// The memory map that the guest is told, the hypervisor's own range reserved.
pub(crate) fn memory_map(information: &BootInformation, own: FreeRange) -> Vec<MapEntry, 128> {
    let entries = information.memory_map.iter().map(|range| MapEntry {
        start: range.start.as_u64(),
        end: range.end.as_u64(),
        kind: match range.kind {
            RangeKind::Ram => MAP_RAM,
            RangeKind::Reserved => MAP_RESERVED,
            RangeKind::AcpiTables => 3,
            RangeKind::AcpiStorage => 4,
            RangeKind::Other(kind) => kind,
        },
    });
    let over = MapEntry {
        start: own.start.as_u64(),
        end: own.end.as_u64(),
        kind: MAP_RESERVED,
    };
    let mut map = Vec::new();
    boot_protocol::overlay(entries, over, |entry| {
        // The loader's map has half as many entries.
        let _ = map.push(entry);
    });
    map
}

/// Loads everything into the machine; the guest then starts there.
pub(crate) fn load(
    machine: &Machine,
    files: &GuestFiles,
    map: &[MapEntry],
    information: &BootInformation,
) -> Result<Start, LoadError> {
    let (kernel_file, kernel_file_end) = files.place(files.kernel);
    let ramdisk = files.place(files.ramdisk);
    let mut header = [0; HEADER_LEN_BYTES];
    let no_room = |start, end| LoadError::NoRoom { start, end };
    machine
        .read_memory(kernel_file, &mut header)
        .ok_or(no_room(kernel_file, kernel_file_end))?;
    let kernel = Kernel::parse(&header, files.kernel.len_bytes)?;

    let start = kernel.preferred_address;
    let end = start.saturating_add(kernel.init_size);
    for (start, end) in [(start, end), (STACK_START, PAGE_TABLES_END)] {
        let is_ram = map
            .iter()
            .any(|entry| entry.kind == MAP_RAM && entry.start <= start && end <= entry.end);
        let is_free = files.module.end.as_u64() <= start || end <= files.module.start.as_u64();
        if !is_ram || !is_free {
            return Err(no_room(start, end));
        }
    }

    let write = |at: u64, bytes: &[u8]| {
        let end = at + bytes.len() as u64;
        machine.write_memory(at, bytes).ok_or(no_room(at, end))
    };
    let command_line = information.command_line().as_bytes();
    let page = zero_page(
        &kernel,
        &header,
        &Told {
            memory_map: map,
            rsdp: information.rsdp.map(Hpa::as_u64).ok_or(LoadError::NoRsdp)?,
            command_line: (COMMAND_LINE, command_line.len()),
            ramdisk: (ramdisk.0, files.ramdisk.len_bytes),
        },
    )?;
    write(ZERO_PAGE, &page)?;
    write(
        COMMAND_LINE,
        &[0; (COMMAND_LINE_END - COMMAND_LINE) as usize],
    )?;
    write(COMMAND_LINE, command_line)?;
    copy(
        machine,
        kernel_file + kernel.code_offset,
        kernel_file_end,
        start,
    )?;

    // 0x10: 64-bit code, 0x18: data.
    let descriptors = [0u64, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (index, descriptor) in (0..).zip(descriptors) {
        write(DESCRIPTORS + 8 * index, &descriptor.to_le_bytes())?;
    }
    identity_map(&write)?;
    Ok(Start {
        rip: start + ENTRY_OFFSET,
        rsp: ZERO_PAGE,
        rsi: ZERO_PAGE,
        cr3: PAGE_TABLES,
        gdt: (DESCRIPTORS, size_of_val(&descriptors) as u32 - 1),
    })
}

/// Tables that map the first 4 GiB to themselves in 2-MiB pages.
fn identity_map(write: &impl Fn(u64, &[u8]) -> Result<(), LoadError>) -> Result<(), LoadError> {
    const TABLE: u64 = 0x3; // present, writable
    const LEAF: u64 = 0x83; // and large
    write(PAGE_TABLES, &[0; 2 * 4096])?;
    write(PAGE_TABLES, &((PAGE_TABLES + 0x1000) | TABLE).to_le_bytes())?;
    for gibibyte in 0..4 {
        let table = PAGE_TABLES + 0x2000 + gibibyte * 0x1000;
        let place = PAGE_TABLES + 0x1000 + gibibyte * 8;
        write(place, &(table | TABLE).to_le_bytes())?;
        for index in 0..512 {
            let address = (gibibyte * 512 + index) << 21;
            write(table + index * 8, &(address | LEAF).to_le_bytes())?;
        }
    }
    Ok(())
}

/// Copies guest memory from `start` to before `end`; the two places do not overlap.
fn copy(machine: &Machine, start: u64, end: u64, to: u64) -> Result<(), LoadError> {
    let mut piece = [0; 4096];
    let mut done = 0;
    while start + done < end {
        let len = (end - start - done).min(piece.len() as u64);
        let piece = &mut piece[..len as usize];
        machine
            .read_memory(start + done, piece)
            .and_then(|()| machine.write_memory(to + done, piece))
            .ok_or(LoadError::NoRoom {
                start: to + done,
                end: to + done + len,
            })?;
        done += len;
    }
    Ok(())
}
