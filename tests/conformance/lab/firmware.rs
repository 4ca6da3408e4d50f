//! What firmware, or another system before, does to a unit: by its registers alone, with tables in
//! memory that is nobody's.

use vtd_nest::arch::address::{AddressWidth, Hpa};
use vtd_nest::arch::capability::{Capability, CapabilityField, ExtendedCapability};
use vtd_nest::arch::context::{
    ContextAttributes, DirectoryOrder, LegacyContextEntry, ScalableContextEntry,
};
use vtd_nest::arch::id::{DomainId, SourceId};
use vtd_nest::arch::pasid::{PasidDirectoryEntry, PasidEntry, PasidEntryOptions};
use vtd_nest::arch::register::{
    DescriptorWidth, FaultStatus, GlobalCommand, InvalidationQueueAddress, ProtectedMemoryEnable,
    Register32, Register64, RootTableAddress, TranslationTableMode,
};
use vtd_nest::arch::root::{LegacyRootEntry, RootHalf, ScalableRootEntry};
use vtd_nest::arch::second_stage::SecondStageEntry;
use vtd_nest::arch::second_stage::SecondStagePointer;
use vtd_nest::mem::Registers;
use vtd_nest::paging::Rights;

use super::IOVA;
use crate::bench::{Interposer, host_offset};

/// The domain-id of firmware's one domain: the library's first, too.
const DOMAIN: DomainId = DomainId::new(1);

/// Firmware at work on the first unit.
pub(crate) struct Firmware<'a> {
    hypervisor: &'a Interposer,
    registers: Box<dyn Registers>,
    next_page: u64,
}

impl<'a> Firmware<'a> {
    pub(crate) fn new(hypervisor: &'a Interposer) -> Self {
        let registers = hypervisor.bench().registers(0).expect("a unit");
        Self {
            hypervisor,
            registers,
            next_page: 0,
        }
    }

    /// A zeroed page of nobody's memory.
    pub(crate) fn page(&mut self) -> Hpa {
        let base = self.hypervisor.bench().layout().nobodys.start;
        let page = host_offset(base, self.next_page << 12);
        self.next_page += 1;
        self.hypervisor.guest_write(page, &[0; 4096]);
        page
    }

    /// A page with a value of its own.
    pub(crate) fn stamped_page(&mut self) -> (Hpa, u64) {
        let page = self.page();
        let value = 0xf1f1_0000 + self.next_page;
        self.hypervisor.guest_write(page, &value.to_le_bytes());
        (page, value)
    }

    fn extended(&self) -> ExtendedCapability {
        ExtendedCapability::from_bits(self.registers.read64(Register64::EXTENDED_CAPABILITY))
    }

    fn capability(&self) -> Capability {
        Capability::from_bits(self.registers.read64(Register64::CAPABILITY))
    }

    fn write_entry(&self, at: Hpa, bytes: &[u8]) {
        self.hypervisor.guest_write(at, bytes);
    }

    /// A second-stage table that maps [`IOVA`] to a page.
    fn table(&mut self, page: Hpa) -> (Hpa, AddressWidth) {
        let width = self.capability().largest_address_width().expect("a width");
        let root = self.page();
        let mut table = root;
        for level in (1..u32::from(width.levels())).rev() {
            let below = self.page();
            let slot = host_offset(table, (IOVA >> (12 + 9 * level) & 0x1ff) * 8);
            let entry = SecondStageEntry::table(below).as_u64();
            self.write_entry(slot, &entry.to_le_bytes());
            table = below;
        }
        let size = vtd_nest::arch::address::PageSize::Size4KiB;
        let leaf = SecondStageEntry::leaf(page, size, Rights::READ_WRITE, false).as_u64();
        let slot = host_offset(table, (IOVA >> 12 & 0x1ff) * 8);
        self.write_entry(slot, &leaf.to_le_bytes());
        (root, width)
    }

    /// Has the unit translate by a root table of this mode, that leads a device to a page at
    /// [`IOVA`] and nowhere else.
    pub(crate) fn translate(&mut self, mode: TranslationTableMode, source_id: SourceId, page: Hpa) {
        let (table, width) = self.table(page);
        let (root, contexts) = (self.page(), self.page());
        let root_at = host_offset(root, 16 * u64::from(source_id.bus()));
        if mode == TranslationTableMode::Legacy {
            self.write_entry(root_at, &LegacyRootEntry::new(contexts).to_bytes());
            let context = LegacyContextEntry::second_stage(table, width, DOMAIN, false);
            let index = u64::from(LegacyContextEntry::index(source_id));
            self.write_entry(host_offset(contexts, 16 * index), &context.to_bytes());
        } else {
            let (directory, entries) = (self.page(), self.page());
            let root_entry = match RootHalf::of(source_id) {
                RootHalf::Lower => ScalableRootEntry::new(Some(contexts), None),
                RootHalf::Upper => ScalableRootEntry::new(None, Some(contexts)),
            };
            self.write_entry(root_at, &root_entry.to_bytes());
            let attributes = ContextAttributes::default();
            let context =
                ScalableContextEntry::new(directory, DirectoryOrder::SMALLEST, attributes);
            let index = u64::from(ScalableContextEntry::index(source_id));
            self.write_entry(host_offset(contexts, 32 * index), &context.to_bytes());
            let entry = PasidDirectoryEntry::new(entries).as_u64();
            self.write_entry(directory, &entry.to_le_bytes());
            let options = PasidEntryOptions {
                page_walk_snoop: self.extended().has_page_walk_coherency(),
                ..PasidEntryOptions::default()
            };
            let entry =
                PasidEntry::second_stage(SecondStagePointer::new(table, width), DOMAIN, options);
            self.write_entry(entries, &entry.to_bytes());
        }
        let address = RootTableAddress::new(root, mode);
        self.registers
            .write64(Register64::ROOT_TABLE_ADDRESS, address.bits());
        self.flush_write_buffers();
        self.command(GlobalCommand::SET_ROOT_TABLE_POINTER, true);
        self.command(GlobalCommand::TRANSLATION_ENABLE, true);
    }

    /// Where hardware has write buffers, they keep tables from it (§6.8).
    fn flush_write_buffers(&mut self) {
        if !self.capability().requires_write_buffer_flush() {
            return;
        }
        let status = self.registers.read32(Register32::GLOBAL_STATUS);
        let now = status & GlobalCommand::PERSISTENT.bits();
        let command = now | GlobalCommand::WRITE_BUFFER_FLUSH.bits();
        self.registers.write32(Register32::GLOBAL_COMMAND, command);
        self.hypervisor.pass(1_000_000);
    }

    /// Turns the queue on, empty, or standing at a descriptor that there is not.
    pub(crate) fn enable_queue(&mut self, stands_at_error: bool) {
        let ring = self.page();
        let width = if self.extended().has_scalable_mode() {
            DescriptorWidth::Bits256
        } else {
            DescriptorWidth::Bits128
        };
        let address = InvalidationQueueAddress::new(ring, 0, width).expect("aligned");
        self.registers
            .write64(Register64::INVALIDATION_QUEUE_TAIL, 0);
        self.registers
            .write64(Register64::INVALIDATION_QUEUE_ADDRESS, address.bits());
        self.command(GlobalCommand::QUEUED_INVALIDATION_ENABLE, true);
        // A wait, done, and something that no unit knows.
        let len = u64::from(width.len_bytes());
        let status = self.page().as_u64();
        let wait = [1u64 << 32 | 0x25, status].map(u64::to_le_bytes);
        self.write_entry(ring, wait.as_flattened());
        self.write_entry(host_offset(ring, len), &0xfu64.to_le_bytes());
        let tail = if stands_at_error { 2 * len } else { len };
        self.registers
            .write64(Register64::INVALIDATION_QUEUE_TAIL, tail);
        self.hypervisor.pass(1_000_000);
        let status = self.registers.read32(Register32::FAULT_STATUS);
        let stands = status & FaultStatus::INVALIDATION_QUEUE_ERROR.bits() != 0;
        assert_eq!(stands, stands_at_error);
    }

    /// Protects low memory up to 4 GiB from all DMA.
    pub(crate) fn protect_low_memory(&mut self, from: Hpa) {
        let base = from.as_u64() as u32;
        self.registers
            .write32(Register32::PROTECTED_LOW_MEMORY_BASE, base);
        self.registers
            .write32(Register32::PROTECTED_LOW_MEMORY_LIMIT, u32::MAX);
        if self
            .capability()
            .field(CapabilityField::PROTECTED_HIGH_MEMORY)
            != 0
        {
            // Limit below base: none.
            self.registers
                .write64(Register64::PROTECTED_HIGH_MEMORY_BASE, 1 << 32);
            self.registers
                .write64(Register64::PROTECTED_HIGH_MEMORY_LIMIT, 0);
        }
        self.registers.write32(
            Register32::PROTECTED_MEMORY_ENABLE,
            ProtectedMemoryEnable::ENABLE.bits(),
        );
        self.hypervisor.pass(1_000_000);
        assert!(self.protects_memory());
    }

    /// Whether protected memory regions are in force.
    pub(crate) fn protects_memory(&self) -> bool {
        let value = self.registers.read32(Register32::PROTECTED_MEMORY_ENABLE);
        value & ProtectedMemoryEnable::STATUS.bits() != 0
    }

    /// The root table address register.
    pub(crate) fn root(&self) -> u64 {
        self.registers.read64(Register64::ROOT_TABLE_ADDRESS)
    }

    /// Gives one command and waits for its status.
    pub(crate) fn command(&mut self, command: GlobalCommand, on: bool) {
        let status = self.registers.read32(Register32::GLOBAL_STATUS);
        let now = status & GlobalCommand::PERSISTENT.bits();
        let value = if on {
            now | command.bits()
        } else {
            now & !command.bits()
        };
        self.registers.write32(Register32::GLOBAL_COMMAND, value);
        self.hypervisor.pass(1_000_000);
        let status = self.registers.read32(Register32::GLOBAL_STATUS);
        assert_eq!(status & command.bits() != 0, on, "{command:?}");
    }
}
