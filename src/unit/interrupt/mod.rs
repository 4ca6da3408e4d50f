//! Interrupt remapping of one unit (§5): its table, who has which entries, and the order in which it
//! is set up.
//!
//! A unit that remaps interrupts blocks every message that does not name a present entry whose
//! source-id is the sender's. Messages in compatibility format are always blocked (`CFI` clear):
//! with them a device could raise any vector on any processor (G1).
//!
//! | module | job |
//! |---|---|
//! | [`slice`](mod@slice) | runs of entries, each with one owner |
//! | [`entry`] | what an entry may do; entries set, cleared and invalidated |

pub mod entry;
pub mod slice;

pub use entry::{DeviceInterrupt, InterruptRefusal, StaleInterruptEntries};
pub use slice::InterruptSlice;

use self::slice::SliceMap;
use super::bring_up::Content;
use super::error::UnitError;
use super::unit::Unit;
use crate::arch::address::{Hpa, PAGE_SIZE_BYTES};
use crate::arch::descriptor::{Descriptor, InterruptEntryGranularity};
use crate::arch::interrupt::{InterruptEntry, InterruptFeatures};
use crate::arch::register::{
    GlobalCommand, GlobalStatus, InterruptRemappingTableAddress, Register64,
};
use crate::mem::{FrameRun, Hypervisor, Owner, Registers};

/// Length of an entry in bytes.
const ENTRY_BYTES: u64 = InterruptEntry::LEN_BYTES as u64;

/// Whether a unit is to remap interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum InterruptRemapping {
    /// A unit that cannot is refused.
    Required,
    /// If the unit can (`ECAP.IR`). Devices behind one that cannot are refused by
    /// [`InterruptIsolation::Required`](crate::nest::InterruptIsolation::Required).
    #[default]
    WhereAvailable,
    /// Never, whatever the unit reports: the chipset's is known to be broken. The unit is taken as
    /// one that cannot.
    Forbidden,
}

/// How a unit's interrupts are remapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptConfig {
    /// Whether they are.
    pub remapping: InterruptRemapping,
    /// The table has 2^(order + 1) entries of 16 bytes: 0 to 15 (`IRTA.S`).
    pub table_order: u8,
    /// The processors are in x2APIC mode: destinations are 32-bit APIC ids where the unit has that
    /// (`ECAP.EIM`). A unit that requires it (`ECAP.EIMER`) has it in any case.
    pub extended_mode: bool,
}

impl InterruptConfig {
    /// Where available, 4096 entries, 8-bit APIC ids.
    pub const fn new() -> Self {
        Self {
            remapping: InterruptRemapping::WhereAvailable,
            table_order: 11,
            extended_mode: false,
        }
    }
}

impl Default for InterruptConfig {
    /// As [`new`](Self::new).
    fn default() -> Self {
        Self::new()
    }
}

/// The state of a unit's interrupt remapping.
#[derive(Debug)]
pub(super) struct InterruptTable {
    memory: Option<FrameRun>,
    /// Hardware may know of the memory.
    is_exposed: bool,
    /// The unit remaps by this table.
    is_on: bool,
    slices: SliceMap,
}

impl InterruptTable {
    pub(super) const fn new(config: &InterruptConfig) -> Self {
        Self {
            memory: None,
            is_exposed: false,
            is_on: false,
            slices: SliceMap::new(2 << (config.table_order & 0xf)),
        }
    }

    /// Gives back what hardware was never told of.
    pub(super) fn take_unexposed_memory(&mut self) -> Option<FrameRun> {
        if self.is_exposed {
            None
        } else {
            self.memory.take()
        }
    }

    /// Where an entry is.
    fn place(&self, index: u16) -> Option<Hpa> {
        let memory = self.memory.as_ref()?;
        let offset = u64::from(index).saturating_mul(ENTRY_BYTES);
        if offset >= memory.len_bytes() {
            return None;
        }
        memory.address().checked_add(offset)
    }
}

impl<R: Registers> Unit<R> {
    /// Whether the unit remaps interrupts: it can, and it has been brought up.
    pub fn remaps_interrupts(&self) -> bool {
        self.interrupts.lock().is_on
    }

    /// What decides over the unit's entries.
    pub fn interrupt_features(&self) -> InterruptFeatures {
        let extended = self.features.extended;
        InterruptFeatures {
            extended_interrupt_mode: extended.requires_extended_interrupt_mode()
                || self.config.interrupts.extended_mode && extended.has_extended_interrupt_mode(),
            posted_interrupts: self.features.capability.has_posted_interrupts(),
            host_address_width: self.features.host_address_width,
        }
    }

    /// Makes the unit remap interrupts by an empty table: every message is blocked then.
    ///
    /// Called when DMA is blocked: the table is new to every device. What firmware had on stays on
    /// meanwhile and its table is replaced by one command, so that no message passes unchecked; only
    /// where the mode of destinations differs, which must not change while remapping is on
    /// (§11.4.10), it is off for the moment of the change.
    pub(super) fn start_interrupt_remapping<H: Hypervisor>(
        &self,
        h: &H,
        content: Content,
    ) -> Result<(), UnitError> {
        let status = self.read_global_status()?;
        let was_on = status.contains(GlobalStatus::INTERRUPT_REMAPPING_ENABLED);
        if !self.features.extended.has_interrupt_remapping() {
            // Not by firmware's table, which nobody keeps.
            return if was_on {
                self.disable(h, GlobalCommand::INTERRUPT_REMAPPING_ENABLE)
            } else {
                Ok(())
            };
        }
        if status.contains(GlobalStatus::COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED) {
            self.disable(h, GlobalCommand::COMPATIBILITY_FORMAT_INTERRUPT)?;
        }
        let table = self.interrupt_table(h, content)?;
        let features = self.interrupt_features();
        let address = InterruptRemappingTableAddress::new(
            table,
            self.config.interrupts.table_order,
            features.extended_interrupt_mode,
        )
        .ok_or(UnitError::InterruptTableOrder(
            self.config.interrupts.table_order,
        ))?;
        let register = Register64::INTERRUPT_REMAPPING_TABLE_ADDRESS;
        if was_on {
            let before = InterruptRemappingTableAddress::from_bits(self.read64(register)?);
            if before.has_extended_interrupt_mode() != features.extended_interrupt_mode {
                self.disable(h, GlobalCommand::INTERRUPT_REMAPPING_ENABLE)?;
            }
        }
        self.write64_checked(register, address.bits())?;
        self.set_interrupt_table_pointer(h)?;
        if !self
            .features
            .capability
            .has_enhanced_set_interrupt_table_pointer()
        {
            let everything = Descriptor::InterruptEntryCache {
                granularity: InterruptEntryGranularity::Global,
            };
            let ticket = self.submit(h, &[everything])?;
            self.wait(h, ticket)?;
        }
        let status = self.read_global_status()?;
        if !status.contains(GlobalStatus::INTERRUPT_REMAPPING_ENABLED) {
            self.enable(h, GlobalCommand::INTERRUPT_REMAPPING_ENABLE)?;
        }
        self.interrupts.lock().is_on = true;
        log::info!(
            "interrupts are remapped: {} entries, {}-bit APIC ids",
            address.entry_count(),
            if features.extended_interrupt_mode {
                32
            } else {
                8
            }
        );
        Ok(())
    }

    /// Ends the remapping of interrupts, for a unit that is handed back: any message passes then.
    pub(super) fn stop_interrupt_remapping<H: Hypervisor>(&self, h: &H) -> Result<(), UnitError> {
        self.forget_interrupt_remapping();
        let status = self.read_global_status()?;
        if status.contains(GlobalStatus::INTERRUPT_REMAPPING_ENABLED) {
            self.disable(h, GlobalCommand::INTERRUPT_REMAPPING_ENABLE)?;
        }
        Ok(())
    }

    /// Nothing is remapped by the table any more, or it is not known whether it is.
    pub(super) fn forget_interrupt_remapping(&self) {
        self.interrupts.lock().is_on = false;
    }

    /// The table, with all entries absent unless they are kept, and hardware able to see that.
    fn interrupt_table<H: Hypervisor>(&self, h: &H, content: Content) -> Result<Hpa, UnitError> {
        let held = self
            .interrupts
            .lock()
            .memory
            .as_ref()
            .map(FrameRun::address);
        // The least is a page, which is 256 entries.
        let order = self.config.interrupts.table_order.saturating_sub(7);
        let len_bytes = PAGE_SIZE_BYTES << (order & 31);
        let table = match held {
            Some(table) => {
                if content == Content::Empty {
                    self.clear_range(h, table, len_bytes);
                }
                table
            }
            None => {
                let run = h.allocate(Owner::HYPERVISOR, order)?;
                let table = run.address();
                self.interrupts.lock().memory = Some(run);
                self.flush_table(h, table, len_bytes);
                h.fence();
                table
            }
        };
        self.interrupts.lock().is_exposed = true;
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::error::Requirement;
    use super::super::testing::{
        Bench, EXTENDED, Event, IRE, Options, QIE, SRTP, TE, bench, parts,
    };
    use super::*;
    use std::vec::Vec;

    const CFI: u32 = 1 << 23;
    const SIRTP: u32 = 1 << 24;
    const ESIRTPS: u64 = 1 << 62;
    const EIM: u64 = 1 << 4;
    const EIMER: u64 = 1 << 61;

    fn wanted(options: &mut Options) {
        options.config.interrupts.remapping = InterruptRemapping::WhereAvailable;
        options.config.interrupts.table_order = 8;
    }

    fn commands(bench: &Bench) -> Vec<u32> {
        let log = bench.take_log();
        let commands = log.into_iter().filter_map(|event| match event {
            Event::Register(0x18, value) => Some(value as u32),
            _ => None,
        });
        commands.collect()
    }

    #[test]
    fn interrupts_are_remapped_last_by_a_table_that_hardware_sees_as_empty() {
        // §6.7: table, SIRTP, global invalidation, IRE; CFI stays clear (G1).
        for capability in [0, ESIRTPS] {
            let bench = bench(|options| {
                wanted(options);
                options.capability |= capability;
            });
            bench.unit.bring_up(&bench.h).unwrap();
            assert!(bench.unit.remaps_interrupts());
            let on = QIE | TE;
            assert_eq!(
                commands(&bench)[..],
                [QIE, QIE | SRTP, QIE | TE, on | SIRTP, on | IRE]
            );
            let table = bench.world().latched_interrupt_table.unwrap();
            assert_eq!(table & 0xfff, 8, "S, and no EIME");
            for quadword in 0..1024 {
                let at = (table & !0xfff) + 8 * quadword;
                assert_eq!(bench.world().table_quadword(at), 0);
            }
            let global = Descriptor::InterruptEntryCache {
                granularity: InterruptEntryGranularity::Global,
            };
            let sent = bench.take_executed().contains(&global);
            assert_eq!(sent, capability == 0);
        }
    }

    #[test]
    fn extended_mode_is_used_when_asked_for_and_there_or_when_required() {
        for (asked, extended, expected) in [
            (false, EIM, false),
            (true, 0, false),
            (true, EIM, true),
            (false, EIM | EIMER, true),
        ] {
            let bench = bench(|options| {
                wanted(options);
                options.config.interrupts.extended_mode = asked;
                options.extended = options.extended & !EIM | extended;
            });
            bench.unit.bring_up(&bench.h).unwrap();
            let table = bench.world().latched_interrupt_table.unwrap();
            assert_eq!(table >> 11 & 1 == 1, expected);
            let features = bench.unit.interrupt_features();
            assert_eq!(features.extended_interrupt_mode, expected);
        }
    }

    #[test]
    fn what_firmware_left_on_never_lets_a_message_pass_unchecked() {
        // IRE stays on, compatibility format is blocked first.
        let was = bench(wanted);
        was.world().status |= IRE | CFI;
        was.world().latched_interrupt_table = Some(0x7000);
        was.unit.bring_up(&was.h).unwrap();
        let commands = commands(&was);
        assert!(commands.iter().all(|command| command & IRE != 0));
        let first_set = commands.iter().position(|command| command & SIRTP != 0);
        let blocked = commands.iter().position(|command| command & CFI == 0);
        assert!(blocked.unwrap() < first_set.unwrap());
        assert_eq!(was.world().status & CFI, 0);
        // Another mode of destinations cannot be set while it is on (§11.4.10).
        let was = bench(wanted);
        was.world().status |= IRE;
        was.world().latched_interrupt_table = Some(0x7800);
        was.world().interrupt_table = 0x7800;
        was.unit.bring_up(&was.h).unwrap();
        assert!(was.unit.remaps_interrupts());
    }

    #[test]
    fn a_unit_that_must_remap_and_cannot_is_refused() {
        let probe = |extended, remapping| {
            let (registers, h) = parts(|options| options.extended = extended);
            let mut config = h.config();
            config.interrupts.remapping = remapping;
            Unit::probe(registers, config).map(drop)
        };
        let without = EXTENDED & !(1 << 3);
        assert_eq!(probe(EXTENDED, InterruptRemapping::Required), Ok(()));
        assert_eq!(
            probe(without, InterruptRemapping::Required),
            Err(UnitError::Missing(Requirement::InterruptRemapping))
        );
        assert_eq!(probe(without, InterruptRemapping::WhereAvailable), Ok(()));
        let (registers, h) = parts(|_| {});
        let mut config = h.config();
        config.interrupts.table_order = 16;
        assert_eq!(
            Unit::probe(registers, config).map(drop),
            Err(UnitError::InterruptTableOrder(16))
        );
    }

    #[test]
    fn what_is_known_to_be_broken_is_turned_off_and_taken_as_absent() {
        // G3.
        let bench = bench(|options| {
            wanted(options);
            options.config.interrupts.remapping = InterruptRemapping::Forbidden;
        });
        bench.world().status |= IRE;
        bench.unit.bring_up(&bench.h).unwrap();
        assert_eq!(bench.world().status & IRE, 0);
        assert!(!bench.unit.remaps_interrupts());
        assert!(!bench.unit.features().extended.has_interrupt_remapping());
    }

    #[test]
    fn without_frames_the_unit_does_not_come_up_and_gets_none() {
        let bench = bench(wanted);
        // Root table, ring, status words.
        bench.world().fail_allocation = Some(3);
        assert!(matches!(
            bench.unit.bring_up(&bench.h),
            Err(UnitError::Frames(_))
        ));
        assert!(!bench.unit.remaps_interrupts());
        bench.world().fail_allocation = None;
        assert_eq!(bench.unit.bring_up(&bench.h), Ok(()));
        assert!(bench.unit.remaps_interrupts());
    }
}
