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

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::host::Host;
    use super::super::testing::*;
    use super::super::unit::Poll;
    use super::*;
    use crate::arch::descriptor::Descriptor;
    use crate::arch::interrupt::{DeliveryMode, Interrupt};

    /// `IR` and `EIM`, and a largest mask of 15.
    const ECAP: u64 = 1 << 3 | 1 << 4 | 0xf << 20;
    const TABLE: u64 = 0x10_0000;

    /// A unit with a queue and a table of 2^(`order` + 1) entries in force, remapping on.
    fn remapping(order: u64) -> Bench {
        let mut t = Bench::scalable_with(Setup {
            extended: ECAP,
            ..Setup::default()
        });
        t.unit.write(IRTA, 8, TABLE | order);
        t.command(SIRTP);
        t.command(IRE);
        t.forget();
        t
    }

    /// Present, fixed, edge, to processor 3, for `source_id` alone (§9.9).
    fn entry(vector: u64, source_id: u16) -> [u64; 2] {
        [1 | vector << 16 | 3 << 40, u64::from(source_id) | 1 << 18]
    }

    fn wanted(vector: u8, source_id: u16) -> GuestInterrupt {
        GuestInterrupt {
            source: SourceValidation::exactly(sid(source_id)),
            interrupt: Interrupt::fixed(3, vector),
        }
    }

    fn set(t: &Bench, index: u64, entry: [u64; 2]) {
        t.store(TABLE + 16 * index, &entry);
    }

    fn invalidate(t: &mut Bench, index: u16, mask: u8) {
        let granularity = InterruptEntryGranularity::Index { index, mask };
        t.submit(Descriptor::InterruptEntryCache { granularity });
    }

    fn indices(t: &Bench) -> std::vec::Vec<u16> {
        t.host.entries.keys().copied().collect()
    }

    #[test]
    fn an_entry_is_followed_when_it_is_invalidated_and_not_before() {
        // S86, G30.
        let mut t = remapping(7);
        set(&t, 5, entry(0x41, D0));
        t.run();
        assert_eq!(indices(&t), []);
        invalidate(&mut t, 5, 0);
        assert_eq!(t.host.entries[&5], wanted(0x41, D0));
        set(&t, 5, entry(0x42, D1));
        t.run();
        assert_eq!(t.host.entries[&5], wanted(0x41, D0));
        invalidate(&mut t, 5, 0);
        assert_eq!(t.host.entries[&5], wanted(0x42, D1));
        set(&t, 5, [0; 2]);
        invalidate(&mut t, 5, 0);
        assert_eq!(indices(&t), []);
        assert_eq!(t.unit.statistics().interrupt_entries_refused, 0);
    }

    #[test]
    fn an_invalidation_reaches_an_aligned_block_within_table_and_host() {
        // §6.5.2.8. The table has 256 entries, the host 200.
        for (index, mask, expected) in [
            (70u16, 0u8, 70..71u16),
            (70, 3, 64..72),
            (190, 6, 128..192),
            (199, 4, 192..200),
            (200, 0, 0..0),
            (255, 15, 0..200),
        ] {
            let mut t = remapping(7);
            for at in 0..256 {
                set(&t, at, entry(0x41, D0));
            }
            invalidate(&mut t, index, mask);
            assert_eq!(
                indices(&t),
                expected.collect::<std::vec::Vec<_>>(),
                "{index}"
            );
        }
        // What lies behind the table in memory is no entry of it.
        let mut t = remapping(3);
        for at in 0..64 {
            set(&t, at, entry(0x41, D0));
        }
        t.submit(Descriptor::InterruptEntryCache {
            granularity: InterruptEntryGranularity::Global,
        });
        assert_eq!(indices(&t), (0..16).collect::<std::vec::Vec<_>>());
    }

    #[test]
    fn what_an_entry_must_not_be_is_absent_on_the_host() {
        // §9.9: reserved bits, delivery modes and SVT; without EIME destinations have 8 bits.
        for (low, high) in [
            (1 << 12, 0),
            (1 << 15, 0),
            (1 << 32, 0),
            (3 << 5, 0),
            (0, 2 << 18),
            (0, 1 << 20),
        ] {
            let mut t = remapping(7);
            set(&t, 1, entry(0x41, D0));
            invalidate(&mut t, 1, 0);
            assert_eq!(indices(&t), [1]);
            let [valid_low, valid_high] = entry(0x41, D0);
            set(&t, 1, [valid_low | low, valid_high | high]);
            invalidate(&mut t, 1, 0);
            assert_eq!(indices(&t), [], "{low:#x} {high:#x}");
            assert_eq!(t.unit.statistics().interrupt_entries_refused, 1);
            assert_eq!(t.take_fault(), None, "the interrupt itself will tell");
        }
    }

    #[test]
    fn extended_mode_widens_destinations() {
        let mut t = Bench::scalable_with(Setup {
            extended: ECAP,
            ..Setup::default()
        });
        t.unit.write(IRTA, 8, TABLE | 1 << 11);
        t.command(SIRTP);
        t.command(IRE);
        set(&t, 1, [1 | 0x41 << 16 | 0x8000_0001 << 32, 1 << 18]);
        invalidate(&mut t, 1, 0);
        assert_eq!(t.host.entries[&1].interrupt.destination, 0x8000_0001);
    }

    #[test]
    fn commands_take_the_table_over_and_turn_remapping_on_and_off() {
        // §6.7, §11.4.4.1: status follows once hardware has forgotten what was before.
        let mut t = Bench::scalable_with(Setup {
            extended: ECAP,
            ..Setup::default()
        });
        set(&t, 1, entry(0x41, D0));
        t.unit.write(IRTA, 8, TABLE | 7);
        t.command(SIRTP);
        assert_eq!(t.unit.read(GSTS, 4) & (SIRTP | IRE), SIRTP);
        assert_eq!(indices(&t), [], "it is off");
        t.host.waits = 3;
        t.command_later(IRE);
        for _ in 0..3 {
            assert_eq!(t.unit.poll(&mut t.host, 100), Poll::Wait);
            assert_eq!(t.unit.read(GSTS, 4) & IRE, 0);
        }
        t.run();
        assert!(t.unit.is_remapping_interrupts());
        assert_eq!(indices(&t), [1]);
        // Another table.
        t.store(TABLE + 0x2000 + 32, &entry(0x42, D0));
        t.unit.write(IRTA, 8, (TABLE + 0x2000) | 7);
        t.command_later(SIRTP);
        assert_eq!(t.unit.poll(&mut t.host, 100), Poll::Wait);
        assert_eq!(t.unit.read(GSTS, 4) & SIRTP, 0);
        t.run();
        assert_eq!(
            (t.unit.read(GSTS, 4) & SIRTP, indices(&t)),
            (SIRTP, [2].into())
        );
        t.unit
            .write(GCMD, 4, t.unit.read(GSTS, 4) & !(IRE | SIRTP | SRTP));
        t.run();
        assert!(!t.unit.is_remapping_interrupts());
        assert_eq!(indices(&t), []);
        // While it is off an invalidation is nothing.
        let before = t.host.entry_calls;
        invalidate(&mut t, 2, 0);
        assert_eq!((indices(&t), t.host.entry_calls), ([].into(), before));
    }

    #[test]
    fn compatibility_format_reads_back_and_is_blocked() {
        // S87, G1.
        let mut t = remapping(7);
        t.command(CFI);
        assert_eq!(t.unit.read(GSTS, 4) & CFI, CFI);
        let message = crate::arch::interrupt::InterruptMessage {
            address: 0xfee0_0000,
            data: 0x41,
        };
        let fault = t.unit.remap_interrupt(t.host.memory(), sid(D0), message);
        assert_eq!(fault.unwrap_err().reason.code(), 0x25);
    }

    #[test]
    fn without_the_capability_there_is_nothing_of_it() {
        let mut t = Bench::scalable();
        t.unit.write(IRTA, 8, TABLE | 7);
        t.command(SIRTP);
        t.command(IRE);
        t.command(CFI);
        assert_eq!(t.unit.read(IRTA, 8), 0);
        assert_eq!(t.unit.read(GSTS, 4) & (SIRTP | IRE | CFI), 0);
        assert_eq!(t.host.entry_calls, 0);
    }

    #[test]
    fn a_device_that_comes_and_a_reset_have_all_entries_looked_at() {
        let mut t = remapping(7);
        set(&t, 1, entry(0x41, D1));
        t.assign(1, D1);
        assert_eq!(indices(&t), [1]);
        t.unit.reset();
        assert!(!t.unit.is_remapping_interrupts());
        t.run();
        assert_eq!(indices(&t), []);
    }

    #[test]
    fn a_reset_while_remapping_is_turned_off_leaves_no_entry() {
        let mut t = remapping(7);
        for index in 0..150 {
            set(&t, index, entry(0x41, D0));
        }
        invalidate(&mut t, 0, 15);
        t.unit
            .write(GCMD, 4, t.unit.read(GSTS, 4) & !(IRE | SIRTP | SRTP));
        // The job, and the first slice of it.
        assert_eq!(t.unit.poll(&mut t.host, 2), Poll::Again);
        assert!(!indices(&t).is_empty());
        t.unit.reset();
        t.run();
        assert_eq!(indices(&t), []);
    }

    #[test]
    fn a_table_in_no_memory_has_no_entries() {
        let mut t = remapping(7);
        set(&t, 1, entry(0x41, D0));
        invalidate(&mut t, 1, 0);
        t.unit.write(IRTA, 8, MEMORY_BYTES as u64 | 7);
        t.command(SIRTP);
        assert_eq!(indices(&t), []);
        assert!(t.unit.statistics().tables_skipped > 0);
        let (found, _) = t.unit.walk_interrupt(t.host.memory(), sid(D0), 1);
        assert_eq!(found.unwrap_err().reason.code(), 0x23);
    }

    #[test]
    fn what_the_host_cannot_do_is_told_by_index_and_what_it_refuses_is_not() {
        let refused = InterruptError::Refused(Interrupt::fixed(3, 0x41));
        for (error, fault) in [
            (refused, None),
            (InterruptError::Unit, Some((D0, None, 0x23))),
        ] {
            let mut t = remapping(7);
            t.host.refused_entries.insert(9, error);
            set(&t, 9, entry(0x41, D0));
            invalidate(&mut t, 9, 0);
            assert_eq!(t.take_fault(), fault);
            if fault.is_some() {
                assert_eq!(t.unit.read(FRCD, 8) >> 48, 9, "FI has the index");
            }
        }
    }

    #[test]
    fn a_full_table_is_followed_in_slices() {
        // G9: one read of the table a step, whatever the guest asks for.
        let mut t = remapping(7);
        let calls = t.host.entry_calls;
        let granularity = InterruptEntryGranularity::Global;
        t.enqueue(&[Descriptor::InterruptEntryCache { granularity }
            .encode()
            .words()]);
        let reads = t.host.memory().reads.get();
        // The descriptor and the first slice.
        assert_eq!(t.unit.poll(&mut t.host, 2), Poll::Again);
        assert_eq!(t.host.entry_calls - calls, 64);
        assert_eq!(t.host.memory().reads.get() - reads, 2);
        t.run();
        assert_eq!(t.host.entry_calls - calls, 200);
    }

    #[test]
    fn messages_are_remapped_in_the_order_of_the_specification() {
        // §5.1.4, Table 15.
        let mut t = remapping(3);
        set(&t, 1, entry(0x41, D0));
        set(&t, 2, [2 | 1 << 12, 0]);
        set(&t, 3, [1 | 1 << 12, u64::from(D1) | 1 << 18]);
        set(&t, 4, [1 | 1 << 12 | 2, u64::from(D0) | 1 << 18]);
        let remappable = |index: u64| 0xfee0_0010 | (index & 0x7fff) << 5 | index >> 15 << 2;
        for (address, data, expected) in [
            (remappable(1), 0xffff_ffff, Ok(0x41)),
            (remappable(0) | 8, 1, Ok(0x41)),
            (remappable(0) | 8, 0x1_0001, Err((0x20, 0))),
            (remappable(16), 0, Err((0x21, 16))),
            (remappable(0xffff) | 8, 1, Err((0x21, 0))),
            (remappable(2), 0, Err((0x22, 2))),
            (remappable(3), 0, Err((0x26, 3))),
            (remappable(4), 0, Err((0x24, 4))),
            (0xfee0_0000, 0x41, Err((0x25, 0))),
            (0xfee0_0000, 0x600, Err((0x25, 0))),
            (0xfed0_0010, 0, Err((0x29, 0))),
        ] {
            let message = crate::arch::interrupt::InterruptMessage { address, data };
            let found = t.unit.remap_interrupt(t.host.memory(), sid(D0), message);
            let found = found
                .map(|interrupt| interrupt.unwrap().vector)
                .map_err(|fault| (fault.reason.code(), fault.address.as_u64() >> 48));
            assert_eq!(found, expected, "{address:#x} {data:#x}");
        }
        let disabled = |index| t.unit.walk_interrupt(t.host.memory(), sid(D0), index).1;
        assert_eq!([1, 2, 4].map(disabled), [false, true, true]);
        // Off: as processors read it.
        t.unit
            .write(GCMD, 4, t.unit.read(GSTS, 4) & !(IRE | SIRTP | SRTP));
        t.run();
        let interrupt = |address, data| {
            let message = crate::arch::interrupt::InterruptMessage { address, data };
            t.unit.remap_interrupt(t.host.memory(), sid(D0), message)
        };
        let smi = interrupt(0xfee0_0010, 0x241).unwrap().unwrap();
        assert_eq!(smi.delivery, DeliveryMode::SystemManagement);
        assert_eq!(interrupt(0xfee0_0010, 0x641), Ok(None));
        assert_eq!(interrupt(0, 0).unwrap_err().reason.code(), 0x29);
    }
}
