//! What the guest does with its unit, step by step, and what has to come of it.

use vtd_nest::arch::address::{AddressWidth, Gpa};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::{FaultRecord, RequestType};

use super::edu::{self, BUFFER_LEN_BYTES, Direction, DmaTimeout};
use super::tables::{IoTable, Kind, OutOfPages, Pages};
use super::unit::{Unit, UnitError};
use super::{Machine, offset};

/// The steps, in order; [`Job::run`] takes the name of one. `blocked` is [`Job::check_blocked`],
/// once for each target.
pub(crate) const STEPS: [&str; 6] = [
    "bring-up",
    "translate",
    "remap",
    "blocked",
    "translation-off",
    "pass-through",
];

/// Pairs of pages that the `translate` step copies between.
pub(crate) const PAIRS: u64 = 64;
/// I/O virtual address of the first source page; the others follow with gaps. All addresses of the
/// job fit in 39 bits.
const SOURCES: u64 = 0x12_3400_0000;
/// I/O virtual address of the first destination page.
const DESTINATIONS: u64 = 0x7f_0000_0000;
/// Distance of two pages in I/O virtual space: they meet no common lowest table for long.
const STRIDE: u64 = 0x4_3000;
/// An I/O virtual address that is used for what has to be blocked.
const PROBE: u64 = 0x55_0000_5000;

/// Fault reason of a write that the tables of legacy mode do not allow (§7.1.3).
const LEGACY_WRITE_DENIED: u8 = 0x05;
/// The same for a read.
const LEGACY_READ_DENIED: u8 = 0x06;

/// Where things are in guest-physical memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The device's source-id as the guest knows it.
    pub(crate) device: SourceId,
    /// Memory for tables and the queue.
    pub(crate) tables: (Gpa, Gpa),
    /// Memory for data, at least 256 pages.
    pub(crate) data: (Gpa, Gpa),
    /// What the guest puts into its pages differs by this from what other guests put there.
    pub(crate) content: u16,
}

/// What a probe of the `blocked` step aims at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BlockedTarget {
    /// An address that the guest has not mapped.
    Unmapped,
    /// A guest-physical address that the machine does not have, whatever lies there on the host.
    NotOfMachine(Gpa),
}

/// What the guest's unit recorded for a write and a read that were blocked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocked {
    /// The record of the write.
    pub(crate) write: FaultRecord,
    /// The record of the read.
    pub(crate) read: FaultRecord,
}

/// What a step moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Figures {
    /// Pages whose content was compared.
    pub(crate) pages: u64,
    /// Bytes moved by DMA, both ways.
    pub(crate) bytes: u64,
    /// Fault records taken from the guest's unit.
    pub(crate) faults: u64,
}

/// What did not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum JobError {
    /// The driver met an error.
    Unit(UnitError),
    /// The device did not finish a DMA.
    Dma,
    /// The layout has too little memory.
    OutOfPages,
    /// A page differs from what it should hold, first at this guest-physical address.
    Differs(Gpa),
    /// A blocked access left no record in the guest's unit.
    NoFault(Direction),
    /// A record has another reason than it should.
    Reason {
        /// The reason in the record.
        recorded: u8,
        /// What it should be.
        expected: u8,
    },
    /// A record names another request: source-id, address.
    OtherRequest(SourceId, u64),
    /// A fault was recorded where none should be, with this reason.
    UnexpectedFault(u8),
    /// There is no step of this name.
    UnknownStep,
}

impl From<UnitError> for JobError {
    fn from(error: UnitError) -> Self {
        Self::Unit(error)
    }
}

impl From<OutOfPages> for JobError {
    fn from(_: OutOfPages) -> Self {
        Self::OutOfPages
    }
}

impl From<DmaTimeout> for JobError {
    fn from(_: DmaTimeout) -> Self {
        Self::Dma
    }
}

/// The guest, with its unit up.
#[derive(Debug)]
pub(crate) struct Job {
    layout: Layout,
    pages: Pages,
    unit: Unit,
    table: IoTable,
    figures: Figures,
}

impl Job {
    /// The first step, `bring-up`: queue, tables and translation on, and an empty table in use.
    pub(crate) fn bring_up(machine: &mut impl Machine, layout: Layout) -> Result<Self, JobError> {
        let mut pages = Pages::new(layout.tables.0, layout.tables.1);
        let mut unit = Unit::bring_up(machine, &mut pages)?;
        let kind = unit.kind()?;
        let width = if kind == Kind::FirstStage {
            AddressWidth::Bits48
        } else {
            unit.width()?
        };
        unit.install_tables(machine, &mut pages, layout.device)?;
        unit.set_translation(machine, true)?;
        let table = IoTable::new(machine, &mut pages, kind, width)?;
        unit.use_table(machine, &table)?;
        Ok(Self {
            layout,
            pages,
            unit,
            table,
            figures: Figures::default(),
        })
    }

    /// What was moved and taken since the last step began.
    pub(crate) fn figures(&self) -> Figures {
        self.figures
    }

    /// Runs a later step by name; `blocked` and `bring-up` have functions of their own.
    pub(crate) fn run(
        &mut self,
        machine: &mut impl Machine,
        step: &str,
    ) -> Result<Figures, JobError> {
        self.figures = Figures::default();
        match step {
            "translate" => self.translate(machine)?,
            "remap" => self.remap(machine)?,
            "translation-off" => self.translation_off(machine)?,
            "pass-through" => self.pass_through(machine)?,
            _ => return Err(JobError::UnknownStep),
        }
        self.expect_no_fault(machine)?;
        Ok(self.figures)
    }

    /// The unit has recorded nothing that was not taken.
    pub(crate) fn expect_no_fault(&mut self, machine: &mut impl Machine) -> Result<(), JobError> {
        match self.unit.take_fault(machine) {
            None => Ok(()),
            Some(record) => Err(JobError::UnexpectedFault(record.reason_code())),
        }
    }

    /// Copies scattered pages through the device, both ways, by I/O virtual address.
    fn translate(&mut self, machine: &mut impl Machine) -> Result<(), JobError> {
        for pair in 0..PAIRS {
            self.map_pair(machine, pair)?;
        }
        for pair in 0..PAIRS {
            self.copy_pair(machine, pair)?;
        }
        Ok(())
    }

    /// Fills and maps the source page of a pair, and maps its destination page.
    pub(crate) fn map_pair(
        &mut self,
        machine: &mut impl Machine,
        pair: u64,
    ) -> Result<(), JobError> {
        let (source, destination) = (self.source(pair)?, self.destination(pair)?);
        self.fill(machine, source, pair);
        self.map(machine, source_iova(pair), Some(source))?;
        self.map(machine, destination_iova(pair), Some(destination))
    }

    /// Copies from the source to the destination of a mapped pair, and compares both.
    pub(crate) fn copy_pair(
        &mut self,
        machine: &mut impl Machine,
        pair: u64,
    ) -> Result<(), JobError> {
        let destination = self.destination(pair)?;
        machine.write_memory(destination, &[0; BUFFER_LEN_BYTES as usize]);
        self.copy(machine, source_iova(pair), destination_iova(pair))?;
        self.expect_pattern(machine, destination, pair)?;
        // The source is as it was.
        self.expect_pattern(machine, self.source(pair)?, pair)
    }

    /// Points an address at another page: the next DMA uses it, the old page stays untouched.
    fn remap(&mut self, machine: &mut impl Machine) -> Result<(), JobError> {
        let (old, new) = (self.source(0)?, self.page(2 * PAIRS)?);
        self.fill(machine, new, 1000);
        self.map(machine, source_iova(0), Some(new))?;
        self.copy(machine, source_iova(0), destination_iova(0))?;
        self.expect_pattern(machine, self.destination(0)?, 1000)?;
        // And as a destination: the device holds another page's content.
        self.copy(machine, source_iova(1), source_iova(0))?;
        self.expect_pattern(machine, new, 1)?;
        self.expect_pattern(machine, old, 0)
    }

    /// Aims a write and a read at something that has to be blocked. Both must be recorded with
    /// the right reason, and the read must bring nothing.
    pub(crate) fn check_blocked(
        &mut self,
        machine: &mut impl Machine,
        target: BlockedTarget,
    ) -> Result<Blocked, JobError> {
        let (page, write_reason, read_reason) = match target {
            BlockedTarget::Unmapped => {
                let reason = |direction| self.unmapped_reason(direction);
                (
                    None,
                    reason(Direction::ToMemory),
                    reason(Direction::ToDevice),
                )
            }
            BlockedTarget::NotOfMachine(address) if self.unit.is_legacy() => {
                (Some(address), LEGACY_WRITE_DENIED, LEGACY_READ_DENIED)
            }
            BlockedTarget::NotOfMachine(address) => (Some(address), 0x85, 0x86),
        };
        self.map(machine, PROBE, page)?;
        // The device's buffer gets a content of its own.
        let (known, result) = (self.page(2 * PAIRS + 1)?, self.page(2 * PAIRS + 2)?);
        self.fill(machine, known, 2000);
        self.fill(machine, result, 3000);
        self.map(machine, source_iova(2), Some(known))?;
        self.map(machine, destination_iova(2), Some(result))?;
        edu::dma(machine, Direction::ToDevice, source_iova(2))?;

        edu::dma(machine, Direction::ToMemory, PROBE)?;
        let write = self.expect_fault(machine, Direction::ToMemory, write_reason)?;
        edu::dma(machine, Direction::ToDevice, PROBE)?;
        let read = self.expect_fault(machine, Direction::ToDevice, read_reason)?;

        // The buffer now holds what it held, or zeros.
        edu::dma(machine, Direction::ToMemory, destination_iova(2))?;
        if self.expect_pattern(machine, result, 2000).is_err() {
            self.expect(machine, result, |_| 0)?;
        }
        Ok(Blocked { write, read })
    }

    /// The fault reason of an address that is not mapped (§7.1.3).
    fn unmapped_reason(&self, direction: Direction) -> u8 {
        match (self.table.kind, direction) {
            (Kind::FirstStage, _) => 0x71,
            (Kind::SecondStage, _) if !self.unit.is_legacy() => 0x79,
            (Kind::SecondStage, Direction::ToMemory) => LEGACY_WRITE_DENIED,
            (Kind::SecondStage, Direction::ToDevice) => LEGACY_READ_DENIED,
        }
    }

    /// Without translation the device uses guest-physical addresses; with it again, the table.
    fn translation_off(&mut self, machine: &mut impl Machine) -> Result<(), JobError> {
        self.unit.set_translation(machine, false)?;
        self.check_guest_physical(machine, 4000)?;
        self.unit.set_translation(machine, true)?;
        self.check_table(machine)
    }

    /// The same with a pass-through entry.
    fn pass_through(&mut self, machine: &mut impl Machine) -> Result<(), JobError> {
        self.unit.use_pass_through(machine)?;
        self.check_guest_physical(machine, 5000)?;
        self.unit.use_table(machine, &self.table)?;
        self.check_table(machine)
    }

    fn check_guest_physical(
        &mut self,
        machine: &mut impl Machine,
        seed: u64,
    ) -> Result<(), JobError> {
        let (from, to) = (self.page(2 * PAIRS + 3)?, self.page(2 * PAIRS + 4)?);
        self.fill(machine, from, seed);
        machine.write_memory(to, &[0; BUFFER_LEN_BYTES as usize]);
        self.copy(machine, from.as_u64(), to.as_u64())?;
        self.expect_pattern(machine, to, seed)
    }

    /// The mappings of the `translate` step still hold, and nothing else does.
    fn check_table(&mut self, machine: &mut impl Machine) -> Result<(), JobError> {
        self.copy_pair(machine, 3)?;
        let outside = self.page(2 * PAIRS + 3)?;
        edu::dma(machine, Direction::ToDevice, outside.as_u64())?;
        let reason = self.unmapped_reason(Direction::ToDevice);
        self.expect_fault_at(machine, Direction::ToDevice, reason, outside.as_u64())?;
        Ok(())
    }

    /// Maps an address, or nothing, and tells the unit.
    fn map(
        &mut self,
        machine: &mut impl Machine,
        iova: u64,
        page: Option<Gpa>,
    ) -> Result<(), JobError> {
        self.table.set(machine, &mut self.pages, iova, page)?;
        Ok(self.unit.invalidate_page(machine, self.table.kind, iova)?)
    }

    fn copy(&mut self, machine: &mut impl Machine, from: u64, to: u64) -> Result<(), JobError> {
        edu::dma(machine, Direction::ToDevice, from)?;
        edu::dma(machine, Direction::ToMemory, to)?;
        self.figures.bytes += 2 * BUFFER_LEN_BYTES;
        Ok(())
    }

    fn expect_fault(
        &mut self,
        machine: &mut impl Machine,
        direction: Direction,
        reason: u8,
    ) -> Result<FaultRecord, JobError> {
        self.expect_fault_at(machine, direction, reason, PROBE)
    }

    /// Takes every record and compares it with what it should say; there must be one.
    fn expect_fault_at(
        &mut self,
        machine: &mut impl Machine,
        direction: Direction,
        reason: u8,
        address: u64,
    ) -> Result<FaultRecord, JobError> {
        let mut found = None;
        while let Some(record) = self.unit.take_fault(machine) {
            let request = match direction {
                Direction::ToDevice => RequestType::Read,
                Direction::ToMemory => RequestType::Write,
            };
            if record.source_id() != self.layout.device
                || record.address().as_u64() & !0xfff != address & !0xfff
                || record.request() != request
            {
                return Err(JobError::OtherRequest(
                    record.source_id(),
                    record.address().as_u64(),
                ));
            }
            if record.reason_code() != reason {
                return Err(JobError::Reason {
                    recorded: record.reason_code(),
                    expected: reason,
                });
            }
            self.figures.faults += 1;
            found = Some(record);
        }
        found.ok_or(JobError::NoFault(direction))
    }

    fn expect_pattern(
        &mut self,
        machine: &mut impl Machine,
        page: Gpa,
        seed: u64,
    ) -> Result<(), JobError> {
        let content = self.layout.content;
        self.expect(machine, page, |index| pattern(content, seed, index))
    }

    fn fill(&self, machine: &mut impl Machine, page: Gpa, seed: u64) {
        let mut bytes = [0; BUFFER_LEN_BYTES as usize];
        for (index, quadword) in (0u64..).zip(bytes.as_chunks_mut::<8>().0) {
            *quadword = pattern(self.layout.content, seed, index).to_le_bytes();
        }
        machine.write_memory(page, &bytes);
    }

    fn expect(
        &mut self,
        machine: &mut impl Machine,
        page: Gpa,
        content: impl Fn(u64) -> u64,
    ) -> Result<(), JobError> {
        let mut bytes = [0; BUFFER_LEN_BYTES as usize];
        machine.read_memory(page, &mut bytes);
        for (index, quadword) in (0u64..).zip(bytes.as_chunks::<8>().0) {
            if u64::from_le_bytes(*quadword) != content(index) {
                return Err(JobError::Differs(offset(page, 8 * index)));
            }
        }
        self.figures.pages += 1;
        Ok(())
    }

    /// Data pages, in an order that scatters neighbours over guest memory.
    fn page(&self, index: u64) -> Result<Gpa, JobError> {
        let (start, end) = self.layout.data;
        let count = (end.as_u64().saturating_sub(start.as_u64())) / 4096;
        if index >= count || count > 1 << 20 {
            return Err(JobError::OutOfPages);
        }
        // 97 is prime, so it meets every page unless it divides the count.
        let step = if count % 97 == 0 { 1 } else { 97 };
        Ok(offset(start, index * step % count * 4096))
    }

    fn source(&self, pair: u64) -> Result<Gpa, JobError> {
        self.page(2 * pair)
    }

    fn destination(&self, pair: u64) -> Result<Gpa, JobError> {
        self.page(2 * pair + 1)
    }
}

/// I/O virtual address of a pair's source page.
pub(crate) fn source_iova(pair: u64) -> u64 {
    SOURCES + pair * STRIDE
}

/// I/O virtual address of a pair's destination page.
pub(crate) fn destination_iova(pair: u64) -> u64 {
    DESTINATIONS + pair * STRIDE
}

/// The content of a page: no two guests and no two seeds share a quadword.
fn pattern(content: u16, seed: u64, index: u64) -> u64 {
    (u64::from(content) << 48 | seed << 32 | index << 8 | 0xa5).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
