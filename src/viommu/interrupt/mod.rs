//! The guest's interrupt remapping: its table, the commands that set it, and the host entries that
//! follow it (§5, §6.7).
//!
//! The guest's entry `n` is carried out by the host's entry for `n`, which is brought in step when
//! the guest invalidates it, sets the table pointer, or turns remapping on or off. A guest entry is
//! read once, and what is used is the copy. Compatibility format is never let pass while remapping
//! is on: `CFI` reads back in `CFIS` and opens nothing.
//!
//! | module | what it is |
//! |---|---|
//! | [`remap`] | what a message comes to by the guest's table, in software |

pub mod remap;

#[cfg(test)]
mod tests;

use super::fault::GuestFault;
use super::host::{GuestInterrupt, Host, HostState, InterruptError};
use super::registers::{Register, RegisterWrite};
use super::statistics::count;
use super::synchronise::Stepped;
use super::unit::{Job, Purpose, Stage, VirtualUnit};
use crate::arch::address::Gpa;
use crate::arch::descriptor::InterruptEntryGranularity;
use crate::arch::fault::FaultReason;
use crate::arch::id::SourceId;
use crate::arch::interrupt::{
    InterruptAction, InterruptEntry, InterruptFeatures, InterruptIndex, SourceValidation,
};
use crate::arch::register::{GlobalCommand, GlobalStatus, InterruptRemappingTableAddress};
use crate::mem::GuestMemory;

/// Length of an entry in bytes.
const ENTRY_BYTES: usize = InterruptEntry::LEN_BYTES;
/// Entries that one step looks at. As many never cross a page.
const ENTRIES_PER_STEP: u32 = 64;
/// Beyond the largest table.
const ALL_ENTRIES: u32 = 0x1_0000;

/// The state of the guest's interrupt remapping, beside its registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct InterruptState {
    /// The table address in force.
    pub(super) table: InterruptRemappingTableAddress,
    /// The table address that is to be taken over.
    pub(super) table_pointer: Option<InterruptRemappingTableAddress>,
    /// What `IRES` is to become.
    pub(super) enable: bool,
    /// Whether the host's entries are to follow the table: `IRES`, or what it is about to become.
    pub(super) is_followed: bool,
    /// The host's entries are to be looked at again.
    pub(super) reconcile: bool,
}

impl InterruptState {
    /// As after power-on.
    pub(super) const OFF: Self = Self {
        table: InterruptRemappingTableAddress::from_bits(0),
        table_pointer: None,
        enable: false,
        is_followed: false,
        reconcile: false,
    };
}

/// A pass over guest entries: those from `next` to before `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct InterruptPass {
    next: u32,
    end: u32,
}

impl InterruptPass {
    const EVERYTHING: Self = Self {
        next: 0,
        end: ALL_ENTRIES,
    };

    /// What an invalidation covers: an aligned block (§6.5.2.8).
    pub(super) fn of(granularity: InterruptEntryGranularity) -> Self {
        let InterruptEntryGranularity::Index { index, mask } = granularity else {
            return Self::EVERYTHING;
        };
        let len = 1u32.checked_shl(mask.into()).unwrap_or(ALL_ENTRIES);
        let first = u32::from(index) & !len.saturating_sub(1);
        Self {
            next: first,
            end: first.saturating_add(len).min(ALL_ENTRIES),
        }
    }
}

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    const fn shows_interrupt_remapping(&self) -> bool {
        self.features.extended.has_interrupt_remapping()
    }

    /// Whether the guest sees interrupt remapping as on (`IRES`).
    pub fn is_remapping_interrupts(&self) -> bool {
        self.registers
            .status()
            .contains(GlobalStatus::INTERRUPT_REMAPPING_ENABLED)
    }

    /// Whether the host's entries follow the guest's table: remapping is on, or being turned on or
    /// off.
    pub fn follows_guest_interrupts(&self) -> bool {
        self.interrupts.is_followed || self.interrupts.enable || self.is_remapping_interrupts()
    }

    /// What decides over the guest's entries.
    pub(super) const fn interrupt_features(&self) -> InterruptFeatures {
        InterruptFeatures {
            extended_interrupt_mode: self.features.extended.has_extended_interrupt_mode()
                && self.interrupts.table.has_extended_interrupt_mode(),
            posted_interrupts: false,
            host_address_width: self.features.host_address_width,
        }
    }

    /// Takes note of the bits of a command that are for interrupt remapping (§11.4.4.1).
    pub(super) fn interrupt_command(&mut self, write: RegisterWrite) {
        if !self.shows_interrupt_remapping() {
            return;
        }
        let status = self.registers.status();
        let mut before = GlobalCommand::empty();
        before.set(
            GlobalCommand::INTERRUPT_REMAPPING_ENABLE,
            self.interrupts.enable,
        );
        before.set(
            GlobalCommand::COMPATIBILITY_FORMAT_INTERRUPT,
            status.contains(GlobalStatus::COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED),
        );
        let bits = u64::from(before.bits()) & !write.covered | write.value;
        let command = GlobalCommand::from_bits_truncate(bits as u32);
        if command.contains(GlobalCommand::SET_INTERRUPT_REMAPPING_TABLE_POINTER) {
            self.registers
                .set_status(GlobalStatus::INTERRUPT_REMAPPING_TABLE_POINTER_SET, false);
            self.interrupts.table_pointer = Some(InterruptRemappingTableAddress::from_bits(
                self.registers.get(Register::InterruptTableAddress),
            ));
        }
        self.interrupts.enable = command.contains(GlobalCommand::INTERRUPT_REMAPPING_ENABLE);
        self.registers.set_status(
            GlobalStatus::COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED,
            command.contains(GlobalCommand::COMPATIBILITY_FORMAT_INTERRUPT),
        );
    }

    /// Has the host's entries looked at again, if they follow the guest's.
    pub(super) const fn reconcile_interrupts(&mut self) {
        self.interrupts.reconcile |= self.interrupts.is_followed;
    }

    /// As after power-on: the host's entries go with the next [`poll`](Self::poll).
    pub(super) fn reset_interrupts(&mut self) {
        let is_changing = self
            .job
            .is_some_and(|job| matches!(job.stage, Stage::Interrupts(_)));
        self.interrupts = InterruptState {
            reconcile: self.interrupts.is_followed || self.interrupts.reconcile || is_changing,
            ..InterruptState::OFF
        };
    }

    /// Whether a command or a change of devices is to be carried out.
    pub(super) fn has_interrupt_work(&self) -> bool {
        let state = &self.interrupts;
        state.reconcile
            || state.table_pointer.is_some()
            || state.enable != self.is_remapping_interrupts()
    }

    /// The next job of interrupt remapping; `None` if what there was is done.
    pub(super) fn next_interrupt_job(&mut self) -> Option<Job> {
        let state = &mut self.interrupts;
        let purpose = if core::mem::take(&mut state.reconcile) {
            Purpose::Reconcile
        } else if let Some(table) = state.table_pointer.take() {
            state.table = table;
            if !state.is_followed {
                self.finish_interrupt_pointer();
                return None;
            }
            Purpose::InterruptPointer
        } else {
            state.is_followed = state.enable;
            Purpose::InterruptRemapping(state.enable)
        };
        Some(Job {
            stage: Stage::Interrupts(InterruptPass::EVERYTHING),
            purpose,
        })
    }

    /// The table pointer is taken over, and hardware has forgotten what came from the old one.
    pub(super) fn finish_interrupt_pointer(&mut self) {
        // A further command keeps the status clear until it is done, too.
        if self.interrupts.table_pointer.is_none() {
            self.registers
                .set_status(GlobalStatus::INTERRUPT_REMAPPING_TABLE_POINTER_SET, true);
        }
    }

    /// Remapping is on or off as commanded.
    pub(super) fn finish_interrupt_remapping(&mut self, on: bool) {
        self.registers
            .set_status(GlobalStatus::INTERRUPT_REMAPPING_ENABLED, on);
        self.restart_fault_records_if_off();
    }

    /// Brings a slice of the host's entries in step with the guest's, with one read of its table.
    pub(super) fn step_interrupts<Ho: Host<Binding = B>>(
        &mut self,
        host: &mut Ho,
        pass: &mut InterruptPass,
    ) -> Stepped {
        let end = pass.end.min(host.interrupt_entries());
        if pass.next >= end {
            return Stepped::Done;
        }
        let first = pass.next;
        // To the end of an aligned block, which is within a page.
        let block_end = (first | (ENTRIES_PER_STEP - 1)).saturating_add(1);
        let last = block_end.min(end);
        pass.next = last;
        let mut bytes = [0; ENTRIES_PER_STEP as usize * ENTRY_BYTES];
        let is_wanted = self.interrupts.is_followed && first < self.interrupts.table.entry_count();
        let is_there = is_wanted && self.read_entries(host.memory(), first, last, &mut bytes);
        if is_wanted && !is_there {
            count(&mut self.statistics.tables_skipped);
        }
        let entries = bytes.as_chunks::<ENTRY_BYTES>().0;
        for (index, bytes) in (first..last).zip(entries) {
            // What is beyond the table was not read, and is zero.
            let entry = if is_there {
                InterruptEntry::from_bytes(bytes)
            } else {
                InterruptEntry::default()
            };
            self.follow_entry(host, InterruptIndex::new(index as u16), &entry);
        }
        if pass.next >= end {
            Stepped::Done
        } else {
            Stepped::More
        }
    }

    /// Reads the entries from `first` to before `last`, as far as they are in the table; `false` if
    /// they are not in the guest's memory.
    fn read_entries(
        &self,
        memory: &impl GuestMemory,
        first: u32,
        last: u32,
        into: &mut [u8],
    ) -> bool {
        let table = self.interrupts.table;
        let count = last.min(table.entry_count()).saturating_sub(first) as usize;
        let Some(into) = into.get_mut(..count.saturating_mul(ENTRY_BYTES)) else {
            return false;
        };
        let offset = u64::from(first).saturating_mul(ENTRY_BYTES as u64);
        let Some(at) = table.table::<Gpa>().checked_add(offset) else {
            return false;
        };
        memory.read(at, into).is_ok()
    }

    /// Has the host carry out what a guest entry says; one that says nothing valid is absent.
    fn follow_entry<Ho: Host<Binding = B>>(
        &mut self,
        host: &mut Ho,
        index: InterruptIndex,
        entry: &InterruptEntry,
    ) {
        let wanted = self.guest_interrupt(entry);
        let Err(error) = host.set_interrupt_entry(index, wanted.as_ref()) else {
            return;
        };
        log::warn!("guest interrupt entry {index}: {error}");
        if !matches!(error, InterruptError::Unit) {
            // The interrupt itself will tell.
            count(&mut self.statistics.interrupt_entries_refused);
            return;
        }
        count(&mut self.statistics.interrupt_entry_failures);
        let source_id = match wanted.map(|wanted| wanted.source) {
            Some(SourceValidation::SourceId { source_id, .. }) => source_id,
            _ => SourceId::from_u16(0),
        };
        let reason = FaultReason::InterruptTableUnreadable;
        self.record(&GuestFault::interrupt(
            source_id,
            reason,
            index.as_u16(),
            false,
        ));
    }

    /// What a guest entry asks of the host.
    fn guest_interrupt(&mut self, entry: &InterruptEntry) -> Option<GuestInterrupt> {
        if !entry.is_present() {
            return None;
        }
        let source = entry.source_validation();
        let action = entry.action::<Gpa>(&self.interrupt_features());
        match (source, action) {
            (Some(source), Ok(InterruptAction::Remap(interrupt))) => {
                Some(GuestInterrupt { source, interrupt })
            }
            _ => {
                count(&mut self.statistics.interrupt_entries_refused);
                None
            }
        }
    }
}
