//! What the machine consists of: everything that is found before the first guest.

use heapless::Vec;
use vtd_nest::arch::address::Hpa;

use crate::boot::{self, BootError, BootInformation};
use crate::console::println;
use crate::firmware::{self, FirmwareError};
use crate::memory::{Memory, MemoryError};
use crate::pci::{Function, MAX_FUNCTIONS, Pci, TooManyFunctions};

/// The machine.
pub(crate) struct Platform {
    pub(crate) information: BootInformation,
    pub(crate) memory: Memory,
    /// The DMAR table.
    pub(crate) dmar: &'static [u8],
    pub(crate) pci: Pci,
    pub(crate) functions: Vec<Function, MAX_FUNCTIONS>,
}

/// Why the machine cannot be used.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum PlatformError {
    Boot(BootError),
    Memory(MemoryError),
    /// There is no usable DMAR table, and so no remapping unit.
    Dmar(FirmwareError),
    Pci(TooManyFunctions),
}

impl Platform {
    /// Finds everything; `start_info` is the loader's `hvm_start_info`.
    pub(crate) fn discover(start_info: u32) -> Result<Self, PlatformError> {
        let information = boot::read_information(start_info).map_err(PlatformError::Boot)?;
        let mut memory = Memory::new(&information).map_err(PlatformError::Memory)?;
        let dmar = firmware::find_table(&mut memory, information.rsdp, b"DMAR")
            .map_err(PlatformError::Dmar)?;
        let mcfg = firmware::find_table(&mut memory, information.rsdp, b"MCFG")
            .inspect_err(|error| log::warn!("MCFG: {error:?}; PCI through ports"))
            .ok();
        let mut pci = Pci::new(&memory, mcfg);
        let functions = pci.find_functions().map_err(PlatformError::Pci)?;
        Ok(Self {
            information,
            memory,
            dmar,
            pci,
            functions,
        })
    }

    /// Prints what there is.
    pub(crate) fn print_summary(&self) {
        println!("command line: {:?}", self.information.command_line());
        for range in &self.information.memory_map {
            println!("map: {}..{} {:?}", range.start, range.end, range.kind);
        }
        println!("image: {}..{}", boot::image_start(), boot::image_end());
        for module in &self.information.modules {
            println!("module: {}..{}", module.start, module.end);
        }
        for range in self.memory.free() {
            println!("free: {range} {} KiB", range.len_bytes() / 1024);
        }
        let rsdp = self.information.rsdp.unwrap_or(Hpa::new(0));
        println!("RSDP at {rsdp}, DMAR of {} bytes", self.dmar.len());
        match self.pci.window() {
            Some(window) => println!(
                "PCI: configuration space at {}+{:#x}",
                window.start(),
                window.len_bytes()
            ),
            None => println!("PCI: configuration space through ports"),
        }
        for function in &self.functions {
            let is_master = self.pci.is_bus_master(function.source_id);
            let master = if is_master { " bus-master" } else { "" };
            println!("PCI: {function}{master}");
        }
    }
}
