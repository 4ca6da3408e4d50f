//! The two units, accessed in the same way.

use vtd_model::{Clock, Memory, ModelUnit, Violation};
use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::{HostMemory, Registers};
use vtd_qtest::Machine;

use crate::configuration::Unit;
use crate::layout::RAM_BYTES;
use vtd_model::CacheMode;

/// The devices' source-ids, as QEMU's machine has them.
pub(crate) const SOURCE_IDS: [u16; 2] = [0x10, 0x88];

/// Start of the largest page that holds the interrupt range.
const LARGE_PAGE_OVER_INTERRUPTS: u64 = 0xc000_0000;

/// A device's requests end where a page does (PCI Express: at every 4 KiB).
const REQUEST_BOUNDARY: u64 = 4096;

/// One unit with memory and devices.
pub(crate) trait Side {
    fn read32(&self, register: Register32) -> u32;
    fn write32(&mut self, register: Register32, value: u32);
    fn read64(&self, register: Register64) -> u64;
    fn write64(&mut self, register: Register64, value: u64);

    /// Memory as the processor sees it.
    fn memory(&self) -> &dyn HostMemory;

    /// A device reads; what it cannot read is 0. Of each request why it was blocked, if the side
    /// tells that.
    fn dma_read(&mut self, device: usize, at: u64, into: &mut [u8]) -> Vec<Option<u8>>;

    /// A device writes; as [`dma_read`](Self::dma_read).
    fn dma_write(&mut self, device: usize, at: u64, from: &[u8]) -> Vec<Option<u8>>;

    /// Reads a quadword of memory.
    fn load(&self, at: u64) -> u64 {
        self.memory().read64(Hpa::new(at))
    }

    /// Stores a quadword where a unit can see it that does not snoop.
    fn store(&mut self, at: u64, value: u64) {
        self.memory().write64(Hpa::new(at), value);
        self.memory().flush_line(Hpa::new(at));
        self.memory().fence();
    }
}

/// The model.
pub(crate) struct ModelSide {
    memory: Memory,
    unit: ModelUnit,
}

impl ModelSide {
    /// A unit after reset, with memory that is 0.
    pub(crate) fn new(unit: &Unit, cache_mode: CacheMode, seed: u64) -> Self {
        let memory = Memory::new(RAM_BYTES);
        let unit = ModelUnit::new(unit.model(cache_mode, seed), &memory, &Clock::new());
        Self { memory, unit }
    }

    /// What software did wrong since the last call, and what the model sent as interrupts is
    /// forgotten.
    pub(crate) fn take_violations(&self) -> Vec<Violation> {
        let _ = self.unit.take_interrupts();
        let _ = self.unit.take_messages();
        let _ = self.unit.take_descriptors();
        let mut violations = self.unit.take_violations();
        // Large pages may hold the interrupt range, and nothing else there is memory.
        violations.retain(|violation| {
            !matches!(violation, Violation::DmaOutsideMemory { address }
                if (LARGE_PAGE_OVER_INTERRUPTS..1 << 32).contains(address))
        });
        violations
    }
}

/// Does a DMA as the requests that a device makes of it.
fn as_requests(
    at: u64,
    len: usize,
    mut request: impl FnMut(Iova, std::ops::Range<usize>) -> Option<u8>,
) -> Vec<Option<u8>> {
    let mut blocked = Vec::new();
    let mut done = 0;
    while done < len {
        let address = at.wrapping_add(done as u64);
        let room = (REQUEST_BOUNDARY - address % REQUEST_BOUNDARY) as usize;
        let end = len.min(done + room);
        blocked.push(request(Iova::new(address), done..end));
        done = end;
    }
    blocked
}

impl Side for ModelSide {
    fn read32(&self, register: Register32) -> u32 {
        self.unit.read32(register)
    }
    fn write32(&mut self, register: Register32, value: u32) {
        self.unit.write32(register, value);
    }
    fn read64(&self, register: Register64) -> u64 {
        self.unit.read64(register)
    }
    fn write64(&mut self, register: Register64, value: u64) {
        self.unit.write64(register, value);
    }

    fn memory(&self) -> &dyn HostMemory {
        &self.memory
    }

    fn dma_read(&mut self, device: usize, at: u64, into: &mut [u8]) -> Vec<Option<u8>> {
        let source_id = SourceId::from_u16(SOURCE_IDS[device]);
        into.fill(0);
        as_requests(at, into.len(), |at, range| {
            let result = self.unit.dma_read(source_id, None, at, &mut into[range]);
            result.err().map(|fault| fault.reason.code())
        })
    }

    fn dma_write(&mut self, device: usize, at: u64, from: &[u8]) -> Vec<Option<u8>> {
        let source_id = SourceId::from_u16(SOURCE_IDS[device]);
        as_requests(at, from.len(), |at, range| {
            let result = self.unit.dma_write(source_id, None, at, &from[range]);
            result.err().map(|fault| fault.reason.code())
        })
    }
}

/// QEMU's unit.
pub(crate) struct QemuSide<'a>(pub(crate) &'a Machine);

impl Side for QemuSide<'_> {
    fn read32(&self, register: Register32) -> u32 {
        self.0.registers().read32(register)
    }
    fn write32(&mut self, register: Register32, value: u32) {
        self.0.registers().write32(register, value);
    }
    fn read64(&self, register: Register64) -> u64 {
        self.0.registers().read64(register)
    }
    fn write64(&mut self, register: Register64, value: u64) {
        self.0.registers().write64(register, value);
    }

    fn memory(&self) -> &dyn HostMemory {
        self.0.hypervisor()
    }

    fn dma_read(&mut self, device: usize, at: u64, into: &mut [u8]) -> Vec<Option<u8>> {
        self.0.edu(device).dma_read(Iova::new(at), into);
        Vec::new()
    }

    fn dma_write(&mut self, device: usize, at: u64, from: &[u8]) -> Vec<Option<u8>> {
        self.0.edu(device).dma_write(Iova::new(at), from);
        Vec::new()
    }
}
