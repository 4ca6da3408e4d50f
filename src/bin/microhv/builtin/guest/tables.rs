//! The guest's I/O page tables: first-stage or second-stage, as its unit offers (§9.7, §9.8).

use vtd_nest::arch::address::{AddressWidth, Gpa, PageSize};
use vtd_nest::arch::first_stage::FirstStageEntry;
use vtd_nest::arch::second_stage::{Rights, SecondStageEntry};

use super::{Machine, offset, read_u64, write_u64};

/// Hands out zeroed pages from a range of guest memory.
#[derive(Debug)]
pub(crate) struct Pages {
    next: Gpa,
    end: Gpa,
}

/// The range is used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutOfPages;

impl Pages {
    /// The 4-KiB pages of a range.
    pub(crate) fn new(start: Gpa, end: Gpa) -> Self {
        Self { next: start, end }
    }

    /// A zeroed page.
    pub(crate) fn take(&mut self, machine: &mut impl Machine) -> Result<Gpa, OutOfPages> {
        let page = self.next;
        if page >= self.end {
            return Err(OutOfPages);
        }
        self.next = offset(page, 4096);
        machine.write_memory(page, &[0; 4096]);
        Ok(page)
    }
}

/// Which kind of table the unit offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// First-stage: the unit nests.
    FirstStage,
    /// Second-stage.
    SecondStage,
}

/// One table.
#[derive(Debug)]
pub(crate) struct IoTable {
    /// Which kind.
    pub(crate) kind: Kind,
    /// Width of its input, and so its levels; a first-stage table has 48 bits.
    pub(crate) width: AddressWidth,
    /// Address of the top-level page.
    pub(crate) root: Gpa,
}

impl IoTable {
    /// An empty table.
    pub(crate) fn new(
        machine: &mut impl Machine,
        pages: &mut Pages,
        kind: Kind,
        width: AddressWidth,
    ) -> Result<Self, OutOfPages> {
        Ok(Self {
            kind,
            width,
            root: pages.take(machine)?,
        })
    }

    /// Makes a 4-KiB page lead to a guest-physical page, or to nothing. No invalidation is sent.
    pub(crate) fn set(
        &self,
        machine: &mut impl Machine,
        pages: &mut Pages,
        iova: u64,
        page: Option<Gpa>,
    ) -> Result<(), OutOfPages> {
        let mut table = self.root;
        for level in (1..u32::from(self.width.levels())).rev() {
            let slot = slot(table, iova, level);
            let entry = read_u64(machine, slot);
            let present = match self.kind {
                Kind::FirstStage => FirstStageEntry::from_u64(entry).is_present(),
                Kind::SecondStage => SecondStageEntry::from_u64(entry).is_present(),
            };
            if present {
                table = Gpa::new(entry & 0x000f_ffff_ffff_f000);
            } else {
                table = pages.take(machine)?;
                let entry = match self.kind {
                    // Preset, so that the table also works where walks are not snooped (§3.10).
                    Kind::FirstStage => FirstStageEntry::table(table)
                        .with(FirstStageEntry::ACCESSED)
                        .as_u64(),
                    Kind::SecondStage => SecondStageEntry::table(table).as_u64(),
                };
                write_u64(machine, slot, entry);
            }
        }
        let entry = page.map_or(0, |page| match self.kind {
            Kind::FirstStage => FirstStageEntry::leaf(page, PageSize::Size4KiB, true, true)
                .with(FirstStageEntry::ACCESSED | FirstStageEntry::DIRTY)
                .as_u64(),
            Kind::SecondStage => {
                SecondStageEntry::leaf(page, PageSize::Size4KiB, Rights::READ_WRITE, false).as_u64()
            }
        });
        write_u64(machine, slot(table, iova, 0), entry);
        Ok(())
    }
}

/// The entry for an address in a table page; level 0 holds the leaves.
fn slot(table: Gpa, iova: u64, level: u32) -> Gpa {
    offset(table, (iova >> (12 + 9 * level) & 0x1ff) * 8)
}
