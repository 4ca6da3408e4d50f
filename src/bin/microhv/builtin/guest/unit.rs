//! The guest's driver for its VT-d unit: registers, queue, tables, faults.

use vtd_nest::arch::address::{AddressWidth, FirstStagePaging, Gpa};
use vtd_nest::arch::capability::{Capability, ExtendedCapability};
use vtd_nest::arch::context::{
    ContextAttributes, DirectoryOrder, LegacyContextEntry, ScalableContextEntry,
};
use vtd_nest::arch::descriptor::{
    ContextGranularity, Descriptor, IotlbGranularity, PasidCacheGranularity, PasidIotlbGranularity,
    WaitStatus,
};
use vtd_nest::arch::id::{DomainId, Pasid, SourceId};
use vtd_nest::arch::pasid::{FirstStageFlags, PasidDirectoryEntry, PasidEntry, PasidEntryOptions};
use vtd_nest::arch::register::{
    DescriptorWidth, FaultRecord, FaultStatus, GlobalCommand, InvalidationQueueAddress, Register32,
    Register64, RootTableAddress, TranslationTableMode,
};
use vtd_nest::arch::root::{LegacyRootEntry, RootHalf, ScalableRootEntry};

use super::tables::{IoTable, Kind, OutOfPages, Pages};
use super::{Machine, offset, write_u64};

/// Looks at a register or a status word before the unit counts as hung.
const MAXIMUM_LOOKS: u32 = 1 << 20;
/// Length of the queue in bytes: one page.
const QUEUE_BYTES: u64 = 4096;
/// The domain-id that the driver uses for its one domain.
pub(crate) const DOMAIN_ID: DomainId = DomainId::new(7);

/// What the driver met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum UnitError {
    /// The unit offers no table kind the driver knows.
    NothingOffered(u64),
    /// A command's status did not come.
    CommandTimeout(u32),
    /// An invalidation wait did not complete; the fault status then.
    WaitTimeout(u64),
    /// No page for a table.
    OutOfPages,
}

impl From<OutOfPages> for UnitError {
    fn from(_: OutOfPages) -> Self {
        Self::OutOfPages
    }
}

/// The guest's unit.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) capability: Capability,
    pub(crate) extended: ExtendedCapability,
    queue: Gpa,
    /// Offset behind the last descriptor.
    tail: u64,
    status: Gpa,
    waits: u32,
    root: Gpa,
    device: SourceId,
    /// The PASID entry or, in legacy mode, the context entry of the device.
    entry: Gpa,
}

impl Unit {
    /// Reads what is offered, and brings the queue up.
    pub(crate) fn bring_up(
        machine: &mut impl Machine,
        pages: &mut Pages,
    ) -> Result<Self, UnitError> {
        let capability =
            Capability::from_bits(machine.read_unit(Register64::CAPABILITY.offset().into(), 8));
        let extended = ExtendedCapability::from_bits(
            machine.read_unit(Register64::EXTENDED_CAPABILITY.offset().into(), 8),
        );
        let queue = pages.take(machine)?;
        let status = pages.take(machine)?;
        let root = pages.take(machine)?;
        let unit = Self {
            capability,
            extended,
            queue,
            tail: 0,
            status,
            waits: 0,
            root,
            device: SourceId::from_u16(0),
            entry: Gpa::new(0),
        };
        let address = InvalidationQueueAddress::new(queue, 0, unit.descriptor_width());
        let address = address.ok_or(UnitError::OutOfPages)?;
        unit.write64(machine, Register64::INVALIDATION_QUEUE_TAIL, 0);
        unit.write64(
            machine,
            Register64::INVALIDATION_QUEUE_ADDRESS,
            address.bits(),
        );
        unit.command(machine, GlobalCommand::QUEUED_INVALIDATION_ENABLE, true)?;
        Ok(unit)
    }

    /// Whether the unit offers legacy mode only.
    pub(crate) fn is_legacy(&self) -> bool {
        !self.extended.has_scalable_mode()
    }

    fn descriptor_width(&self) -> DescriptorWidth {
        if self.is_legacy() {
            DescriptorWidth::Bits128
        } else {
            DescriptorWidth::Bits256
        }
    }

    /// The kind of table that the unit offers.
    pub(crate) fn kind(&self) -> Result<Kind, UnitError> {
        if self.extended.has_first_stage() {
            Ok(Kind::FirstStage)
        } else if self.extended.has_second_stage() || self.is_legacy() {
            Ok(Kind::SecondStage)
        } else {
            Err(UnitError::NothingOffered(self.extended.bits()))
        }
    }

    /// The width of tables that the unit walks: 48 bits, or 39 where it has no more.
    pub(crate) fn width(&self) -> Result<AddressWidth, UnitError> {
        [AddressWidth::Bits48, AddressWidth::Bits39]
            .into_iter()
            .find(|width| self.capability.supports_width(*width))
            .ok_or(UnitError::NothingOffered(self.capability.bits()))
    }

    /// Builds root, context, PASID directory and PASID table for one device, with no entry
    /// present, and makes the unit use them. In legacy mode the context entry is what is absent.
    pub(crate) fn install_tables(
        &mut self,
        machine: &mut impl Machine,
        pages: &mut Pages,
        device: SourceId,
    ) -> Result<(), UnitError> {
        self.device = device;
        let contexts = pages.take(machine)?;
        let root_entry = if self.is_legacy() {
            let index = u64::from(LegacyContextEntry::index(device));
            self.entry = offset(contexts, LegacyContextEntry::LEN_BYTES as u64 * index);
            LegacyRootEntry::new(contexts).to_bytes()
        } else {
            self.entry = Self::install_directory(machine, pages, device, contexts)?;
            match RootHalf::of(device) {
                RootHalf::Lower => ScalableRootEntry::new(Some(contexts), None),
                RootHalf::Upper => ScalableRootEntry::new(None, Some(contexts)),
            }
            .to_bytes()
        };
        let at = offset(self.root, 16 * u64::from(device.bus()));
        machine.write_memory(at, &root_entry);
        let mode = if self.is_legacy() {
            TranslationTableMode::Legacy
        } else {
            TranslationTableMode::Scalable
        };
        let address = RootTableAddress::new(self.root, mode);
        self.write64(machine, Register64::ROOT_TABLE_ADDRESS, address.bits());
        self.command(machine, GlobalCommand::SET_ROOT_TABLE_POINTER, true)?;
        let contexts = Descriptor::ContextCache {
            granularity: ContextGranularity::Global,
        };
        let entries = Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Global,
        };
        let translations = iotlb(IotlbGranularity::Global);
        if self.is_legacy() {
            self.submit(machine, &[contexts, translations])
        } else {
            self.submit(machine, &[contexts, entries, translations])
        }
    }

    /// Makes the context entry, the directory and the table of a device; gives the place of the
    /// entry for PASID 0.
    fn install_directory(
        machine: &mut impl Machine,
        pages: &mut Pages,
        device: SourceId,
        contexts: Gpa,
    ) -> Result<Gpa, UnitError> {
        let directory = pages.take(machine)?;
        let table = pages.take(machine)?;
        write_u64(machine, directory, PasidDirectoryEntry::new(table).as_u64());
        let context = ScalableContextEntry::new(
            directory,
            DirectoryOrder::SMALLEST,
            ContextAttributes::default(),
        );
        let index = u64::from(ScalableContextEntry::index(device));
        let at = offset(contexts, ScalableContextEntry::LEN_BYTES as u64 * index);
        machine.write_memory(at, &context.to_bytes());
        Ok(table)
    }

    /// Turns translation on or off.
    pub(crate) fn set_translation(
        &mut self,
        machine: &mut impl Machine,
        on: bool,
    ) -> Result<(), UnitError> {
        self.command(machine, GlobalCommand::TRANSLATION_ENABLE, on)
    }

    /// Makes the device's requests use a table; tells the unit as caching mode asks.
    pub(crate) fn use_table(
        &mut self,
        machine: &mut impl Machine,
        table: &IoTable,
    ) -> Result<(), UnitError> {
        let options = PasidEntryOptions::default();
        let entry = match table.kind {
            Kind::SecondStage if self.is_legacy() => {
                let (root, width) = (table.root, table.width);
                let context = LegacyContextEntry::second_stage(root, width, DOMAIN_ID, false);
                return self.set_entry(machine, context.quadwords());
            }
            Kind::FirstStage => PasidEntry::first_stage(
                table.root,
                FirstStagePaging::Level4,
                FirstStageFlags::default(),
                DOMAIN_ID,
                options,
            ),
            Kind::SecondStage => {
                PasidEntry::guest_second_stage(table.root, table.width, DOMAIN_ID, options)
            }
        };
        self.set_entry(machine, entry.quadwords())
    }

    /// Makes the device's requests pass through.
    pub(crate) fn use_pass_through(&mut self, machine: &mut impl Machine) -> Result<(), UnitError> {
        if self.is_legacy() {
            let widest = self.capability.largest_address_width();
            let widest = widest.ok_or(UnitError::NothingOffered(self.capability.bits()))?;
            let context = LegacyContextEntry::pass_through(widest, DOMAIN_ID);
            return self.set_entry(machine, context.quadwords());
        }
        let entry = PasidEntry::pass_through(DOMAIN_ID, PasidEntryOptions::default());
        self.set_entry(machine, entry.quadwords())
    }

    /// Replaces the entry by way of not-present, as Linux does: clear, invalidate, set, invalidate.
    fn set_entry(
        &mut self,
        machine: &mut impl Machine,
        quadwords: &[u64],
    ) -> Result<(), UnitError> {
        write_u64(machine, self.entry, 0);
        self.invalidate_entry(machine)?;
        for (index, quadword) in (0u64..).zip(quadwords).skip(1) {
            write_u64(machine, offset(self.entry, 8 * index), *quadword);
        }
        let first = quadwords.first().copied().unwrap_or_default();
        write_u64(machine, self.entry, first);
        self.invalidate_entry(machine)
    }

    fn invalidate_entry(&mut self, machine: &mut impl Machine) -> Result<(), UnitError> {
        let pasid = Pasid::ZERO;
        let domain_id = DOMAIN_ID;
        if self.is_legacy() {
            // Absent entries are cached under domain-id 0 (§6.2.2.1).
            let context = |domain_id| Descriptor::ContextCache {
                granularity: ContextGranularity::Device {
                    source_id: self.device,
                    function_mask: 0,
                    domain_id,
                },
            };
            let batch = [
                context(DomainId::ZERO),
                context(domain_id),
                iotlb(IotlbGranularity::Domain(domain_id)),
            ];
            return self.submit(machine, &batch);
        }
        self.submit(
            machine,
            &[
                Descriptor::PasidCache {
                    granularity: PasidCacheGranularity::Pasid { domain_id, pasid },
                },
                Descriptor::PasidIotlb {
                    domain_id,
                    pasid,
                    granularity: PasidIotlbGranularity::All,
                },
                iotlb(IotlbGranularity::Domain(domain_id)),
            ],
        )
    }

    /// Tells the unit that the page of an address has changed in a table.
    pub(crate) fn invalidate_page(
        &mut self,
        machine: &mut impl Machine,
        kind: Kind,
        iova: u64,
    ) -> Result<(), UnitError> {
        let descriptor = match kind {
            Kind::FirstStage => Descriptor::PasidIotlb {
                domain_id: DOMAIN_ID,
                pasid: Pasid::ZERO,
                granularity: PasidIotlbGranularity::Page {
                    address: iova,
                    address_mask: 0,
                    leaf_hint: true,
                },
            },
            Kind::SecondStage => iotlb(IotlbGranularity::Page {
                domain_id: DOMAIN_ID,
                address: iova,
                address_mask: 0,
                leaf_hint: true,
            }),
        };
        self.submit(machine, &[descriptor])
    }

    /// Takes the oldest fault out of the unit's records.
    pub(crate) fn take_fault(&mut self, machine: &mut impl Machine) -> Option<FaultRecord> {
        let status = machine.read_unit(Register32::FAULT_STATUS.offset().into(), 4) as u32;
        if !FaultStatus::from_bits_retain(status).contains(FaultStatus::PRIMARY_PENDING_FAULT) {
            return None;
        }
        let first = self.capability.fault_record_offset();
        let index = FaultStatus::fault_record_index(status);
        let low = Register64::fault_record_low(first, index)?;
        let high = Register64::fault_record_high(first, index)?;
        let record = FaultRecord {
            low: machine.read_unit(low.offset().into(), 8),
            high: machine.read_unit(high.offset().into(), 8),
        };
        let valid = Register32::fault_record_dword3(first, index)?;
        machine.write_unit(valid.offset().into(), 4, 1 << 31);
        machine.write_unit(
            Register32::FAULT_STATUS.offset().into(),
            4,
            FaultStatus::FAULT_OVERFLOW.bits().into(),
        );
        Some(record)
    }

    /// Puts descriptors and a wait into the queue, and waits for its status word.
    fn submit(
        &mut self,
        machine: &mut impl Machine,
        batch: &[Descriptor],
    ) -> Result<(), UnitError> {
        self.waits = self.waits.wrapping_add(1);
        let wait = Descriptor::Wait {
            status: Some(WaitStatus {
                address: self.status.as_u64(),
                data: self.waits,
            }),
            interrupt: false,
            fence: false,
            page_request_drain: false,
        };
        for descriptor in batch.iter().chain([&wait]) {
            let width = u64::from(self.descriptor_width().len_bytes());
            for (index, word) in (0..width / 8).zip(descriptor.encode().words()) {
                write_u64(machine, offset(self.queue, self.tail + 8 * index), word);
            }
            self.tail = (self.tail + width) % QUEUE_BYTES;
        }
        self.write64(machine, Register64::INVALIDATION_QUEUE_TAIL, self.tail);
        for _ in 0..MAXIMUM_LOOKS {
            let mut status = [0; 4];
            machine.read_memory(self.status, &mut status);
            if u32::from_le_bytes(status) == self.waits {
                return Ok(());
            }
            machine.pass_time();
        }
        Err(UnitError::WaitTimeout(
            machine.read_unit(Register32::FAULT_STATUS.offset().into(), 4),
        ))
    }

    /// Gives one command and waits for its status.
    fn command(
        &self,
        machine: &mut impl Machine,
        command: GlobalCommand,
        on: bool,
    ) -> Result<(), UnitError> {
        let status_at = u64::from(Register32::GLOBAL_STATUS.offset());
        let now = machine.read_unit(status_at, 4) as u32 & GlobalCommand::PERSISTENT.bits();
        let value = if on {
            now | command.bits()
        } else {
            now & !command.bits()
        };
        machine.write_unit(Register32::GLOBAL_COMMAND.offset().into(), 4, value.into());
        for _ in 0..MAXIMUM_LOOKS {
            let status = machine.read_unit(status_at, 4) as u32;
            if (status & command.bits() != 0) == on {
                return Ok(());
            }
            machine.pass_time();
        }
        Err(UnitError::CommandTimeout(command.bits()))
    }

    fn write64(&self, machine: &mut impl Machine, register: Register64, value: u64) {
        machine.write_unit(register.offset().into(), 8, value);
    }
}

fn iotlb(granularity: IotlbGranularity) -> Descriptor {
    Descriptor::Iotlb {
        granularity,
        drain_reads: true,
        drain_writes: true,
    }
}
