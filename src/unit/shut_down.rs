//! The way back from *up*, and the way through a suspension of the machine (§6.5.2, §11.4.4).

use core::sync::atomic::Ordering;

use super::bring_up::Content;
use super::deadline::Deadline;
use super::errata::Erratum;
use super::error::UnitError;
use super::unit::{Phase, Unit};
use crate::arch::address::{Hpa, PAGE_SIZE_BYTES};
use crate::arch::descriptor::{Descriptor, InterruptEntryGranularity};
use crate::arch::register::{GlobalCommand, Register64};
use crate::mem::{FrameRun, Hypervisor, Owner, Registers};

/// What a unit is left as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// Translating with an empty root table: all DMA of all devices faults. Interrupts stay
    /// remapped. The tables stay the unit's.
    Blocking,
    /// Not translating and not remapping interrupts, as after power-on: all DMA and all interrupts
    /// pass. For whoever takes the machine over.
    Passing,
}

impl<R: Registers> Unit<R> {
    /// Shuts the unit down: its caches are empty and its queue is off, events stay masked. The
    /// frames of root table and queue stay with the unit for another [`bring_up`](Self::bring_up);
    /// all others are free.
    ///
    /// # Errors
    ///
    /// [`UnitError::NotUp`], and [`UnitError::DevicesAttached`] unless every device has been
    /// detached and released, [`UnitError::Erratum`] if the unit must not stop translating; nothing has
    /// changed then. [`UnitError::Queue`] and the errors of a
    /// command if hardware does not answer. [`is_up`](Self::is_up) tells whether the unit is still
    /// up then; if it is not, it can be brought up again.
    pub fn shut_down<H: Hypervisor>(&self, h: &H, leave: Leave) -> Result<(), UnitError> {
        if leave == Leave::Passing && self.config.errata.keeps_translation_on() {
            return Err(UnitError::Erratum(Erratum::TranslationStaysOn));
        }
        self.change_phase(Phase::Up, Phase::Working)?;
        // No device is attached from here on.
        let attached = self.tables.lock().attached;
        let result = if attached > 0 {
            Err(UnitError::DevicesAttached(attached))
        } else {
            self.shut_down_steps(h, leave)
        };
        self.leave_working(&result, Phase::Down, "shut down");
        result
    }

    fn shut_down_steps<H: Hypervisor>(&self, h: &H, leave: Leave) -> Result<(), UnitError> {
        self.free_context_tables(h)?;
        self.forget_interrupt_entries(h)?;
        self.turn_queue_off(h)?;
        if leave == Leave::Passing {
            self.disable(h, GlobalCommand::TRANSLATION_ENABLE)?;
            self.owns_root.store(false, Ordering::Release);
            self.stop_interrupt_remapping(h)?;
        }
        Ok(())
    }

    /// Prepares for the loss of the unit's registers, as in a suspension to memory: everything is
    /// invalidated and the queue is off. Tables and bindings stay, and devices stay translated until
    /// power goes. Nothing can be submitted until [`resume`](Self::resume): machines must not be
    /// polled meanwhile, and what they have outstanding should be done before.
    ///
    /// # Errors
    ///
    /// [`UnitError::NotUp`], [`UnitError::Queue`] and the errors of a command.
    /// [`is_up`](Self::is_up) tells whether the unit is still up then; if it is not, it is suspended.
    pub fn suspend<H: Hypervisor>(&self, h: &H) -> Result<(), UnitError> {
        self.change_phase(Phase::Up, Phase::Working)?;
        let result = self.turn_queue_off(h);
        self.leave_working(&result, Phase::Suspended, "suspended");
        result
    }

    /// Programs the unit anew after [`suspend`](Self::suspend), whatever state its registers are in:
    /// the same tables, nothing cached, translation on last. Attached devices go on where they were.
    ///
    /// As in [`bring_up`](Self::bring_up), devices should not be bus masters until this returns.
    ///
    /// # Errors
    ///
    /// [`UnitError::NotSuspended`]; others as of [`bring_up`](Self::bring_up): the unit stays
    /// suspended then, and the call may be repeated. If hardware can still be made to translate
    /// by the unit's tables, it does.
    pub fn resume<H: Hypervisor>(&self, h: &H) -> Result<(), UnitError> {
        self.change_phase(Phase::Suspended, Phase::Working)
            .map_err(|_| UnitError::NotSuspended)?;
        self.forget_pending_command();
        let result = self.program(h, Content::Kept);
        self.enter(match result {
            Ok(()) => Phase::Up,
            Err(_) => Phase::Suspended,
        });
        result
    }

    /// Has hardware forget what it has cached of interrupt entries, which is owed before remapping
    /// is turned off (§6.7).
    fn forget_interrupt_entries<H: Hypervisor>(&self, h: &H) -> Result<(), UnitError> {
        if !self.features.extended.has_interrupt_remapping() {
            return Ok(());
        }
        let everything = Descriptor::InterruptEntryCache {
            granularity: InterruptEntryGranularity::Global,
        };
        let ticket = self.submit(h, &[everything])?;
        Ok(self.wait(h, ticket)?)
    }

    /// Ends [`Phase::Working`]: without its queue the unit cannot go back to *up*.
    fn leave_working(&self, result: &Result<(), UnitError>, done: Phase, what: &str) {
        let is_running = self.queue.lock().is_running;
        self.enter(if is_running { Phase::Up } else { done });
        let segment = self.config.segment;
        match result {
            Ok(()) => log::info!("remapping unit of segment {segment}: {what}"),
            Err(error) => log::error!("remapping unit of segment {segment}: not {what}: {error}"),
        }
    }

    /// Has hardware forget everything, and turns the queue off once all submissions are over.
    fn turn_queue_off<H: Hypervisor>(&self, h: &H) -> Result<(), UnitError> {
        self.invalidate_everything(h)?;
        let time = self.config.timeout_nanoseconds;
        let mut deadline = Deadline::after(h, time);
        let mut is_last = false;
        loop {
            let (head, now) = (self.read_head(), h.now_nanoseconds());
            if self.queue.lock().stop_if_idle(h, head, now, time) {
                break;
            }
            if is_last {
                return Err(UnitError::TimedOut {
                    register: Register64::INVALIDATION_QUEUE_HEAD.offset(),
                    value: head,
                });
            }
            is_last = !deadline.pause(h);
        }
        self.disable(h, GlobalCommand::QUEUED_INVALIDATION_ENABLE)
    }

    /// Empties the root table and frees the context tables, which hold no entry. The addresses stay
    /// in the table, not present, until hardware has forgotten them.
    fn free_context_tables<H: Hypervisor>(&self, h: &H) -> Result<(), UnitError> {
        let Some(root) = self.tables.lock().root() else {
            return Err(UnitError::NotUp);
        };
        let places = (0..PAGE_SIZE_BYTES / 8).filter_map(|index| root.checked_add(index * 8));
        for at in places.clone() {
            match h.read64(at) {
                0 => {}
                entry => self.publish_quadword(h, at, entry & !1),
            }
        }
        if let Err(error) = self.invalidate_everything(h) {
            for at in places {
                match h.read64(at) {
                    0 => {}
                    entry => self.publish_quadword(h, at, entry | 1),
                }
            }
            return Err(error.into());
        }
        for at in places {
            let entry = h.read64(at);
            if entry == 0 {
                continue;
            }
            self.publish_quadword(h, at, 0);
            let table = Hpa::new(entry & !(PAGE_SIZE_BYTES - 1));
            h.free(FrameRun::new(table, 0, Owner::HYPERVISOR));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::error::QueueError;
    use super::super::testing::{
        Bench, Completion, ESRTPS, Event, IRE, OWNER, Options, QIE, SRTP, TE, up,
    };
    use super::*;
    use crate::arch::address::AddressWidth;
    use crate::arch::id::{DomainId, Pasid, SourceId};
    use crate::arch::pasid::{PasidEntry, PasidEntryOptions};
    use crate::arch::second_stage::SecondStagePointer;
    use crate::mem::HostMemory;
    use crate::unit::{DeviceTables, InterruptRemapping};
    use std::vec::Vec;

    const DEVICE: SourceId = SourceId::from_u16(0x0388);

    /// The global commands and the invalidations, in their order.
    fn commands(bench: &Bench) -> Vec<u32> {
        let log = bench.take_log().into_iter();
        log.filter_map(|event| match event {
            Event::Register(0x18, value) => Some(value as u32),
            // The tail.
            Event::Register(0x88, value) if value != 0 => Some(0),
            _ => None,
        })
        .collect()
    }

    fn attached(bench: &Bench) -> DeviceTables {
        let tables = bench.unit.attach_device(&bench.h, OWNER, DEVICE, 0);
        let tables = tables.unwrap();
        let entry = PasidEntry::second_stage(
            SecondStagePointer::new(Hpa::new(0x1234_5000), AddressWidth::Bits48),
            DomainId::new(9),
            PasidEntryOptions::default(),
        );
        bench
            .unit
            .publish_entry(&bench.h, &tables, Pasid::ZERO, &entry)
            .unwrap();
        tables
    }

    fn release(bench: &Bench, tables: DeviceTables) {
        let detached = bench.unit.detach_device(&bench.h, tables).unwrap();
        bench.unit.release(&bench.h, detached).unwrap();
    }

    /// The root table as the unit sees it.
    fn root_table(bench: &Bench) -> Vec<u64> {
        let world = bench.world();
        let root = world.latched_root.unwrap() & !0xfff;
        (root..root + 4096)
            .step_by(8)
            .map(|at| world.table_quadword(at))
            .collect()
    }

    /// The unit loses its registers.
    fn power_cycle(bench: &Bench) {
        let mut world = bench.world();
        (world.status, world.root, world.latched_root) = (0, 0, None);
        (world.queue_address, world.head, world.tail) = (0, 0, 0);
        world.is_busy = false;
        world.fault_event_control = 0;
    }

    #[test]
    fn a_unit_that_must_not_stop_translating_is_left_blocking_only() {
        let erratum = Erratum::TranslationStaysOn;
        let bench = up(|options| options.config.errata = options.config.errata.with(erratum));
        let error = bench.unit.shut_down(&bench.h, Leave::Passing);
        assert_eq!(error, Err(UnitError::Erratum(erratum)));
        assert!(bench.unit.is_up() && bench.take_log().is_empty());
        assert_eq!(bench.unit.shut_down(&bench.h, Leave::Blocking), Ok(()));
        assert_eq!(bench.world().status, TE | SRTP);
    }

    #[test]
    fn a_unit_with_devices_is_not_shut_down() {
        let bench = up(|_| {});
        let tables = attached(&bench);
        bench.take_log();
        for leave in [Leave::Blocking, Leave::Passing] {
            assert_eq!(
                bench.unit.shut_down(&bench.h, leave),
                Err(UnitError::DevicesAttached(1))
            );
        }
        assert_eq!(commands(&bench), []);
        assert!(bench.unit.is_up());
        // Not before hardware has confirmed.
        let detached = bench.unit.detach_device(&bench.h, tables).unwrap();
        let refused = bench.unit.shut_down(&bench.h, Leave::Blocking);
        assert_eq!(refused, Err(UnitError::DevicesAttached(1)));
        bench.unit.release(&bench.h, detached).unwrap();
        bench.unit.shut_down(&bench.h, Leave::Blocking).unwrap();
        assert!(!bench.unit.is_up());
    }

    #[test]
    fn what_is_left_blocks_or_passes_as_asked_for() {
        for (leave, status) in [(Leave::Blocking, TE | SRTP), (Leave::Passing, SRTP)] {
            let bench = up(|_| {});
            let free = bench.h.pool.free_frames();
            release(&bench, attached(&bench));
            assert!(bench.h.pool.free_frames() < free, "a context table");
            bench.unit.shut_down(&bench.h, leave).unwrap();
            assert_eq!(bench.world().status, status);
            assert_eq!(bench.unit.is_protecting(), leave == Leave::Blocking);
            assert!(root_table(&bench).iter().all(|entry| *entry == 0));
            assert_eq!(bench.h.pool.free_frames(), free);
            assert_eq!(bench.unit.shut_down(&bench.h, leave), Err(UnitError::NotUp));
            let attached_again = bench.unit.attach_device(&bench.h, OWNER, DEVICE, 0);
            assert_eq!(attached_again.map(drop), Err(UnitError::NotUp));
            // And up again, with the same frames.
            bench.unit.bring_up(&bench.h).unwrap();
            assert_eq!(bench.h.pool.free_frames(), free);
            assert!(bench.unit.is_protecting());
            drop(attached(&bench));
        }
    }

    #[test]
    fn hardware_that_does_not_confirm_keeps_the_unit_up() {
        let bench = up(|_| {});
        release(&bench, attached(&bench));
        let before = root_table(&bench);
        bench.world().completion = Completion::Never;
        for leave in [Leave::Blocking, Leave::Passing] {
            assert!(matches!(
                bench.unit.shut_down(&bench.h, leave),
                Err(UnitError::Queue(QueueError::TimedOut { .. }))
            ));
            assert!(bench.unit.is_up() && bench.unit.is_protecting());
            assert_eq!(root_table(&bench), before, "the context tables are there");
        }
        assert!(matches!(
            bench.unit.suspend(&bench.h),
            Err(UnitError::Queue(QueueError::TimedOut { .. }))
        ));
        assert!(bench.unit.is_up());
    }

    #[test]
    fn a_suspension_keeps_bindings_and_nothing_is_open_or_stale_after_it() {
        for capability in [0, ESRTPS] {
            let bench = up(|options| options.capability |= capability);
            let tables = attached(&bench);
            let ticket = bench.unit.submit(&bench.h, &[]).unwrap();
            let (table, entry) = (
                root_table(&bench),
                bench.unit.read_entry(&bench.h, &tables, Pasid::ZERO),
            );
            bench.unit.suspend(&bench.h).unwrap();
            assert_eq!(bench.world().status, TE | SRTP, "translating to the end");
            assert!(!bench.unit.is_up());
            assert!(matches!(
                bench.unit.submit(&bench.h, &[]),
                Err(QueueError::NotRunning)
            ));
            assert_eq!(bench.unit.poll(&bench.h, &ticket), Ok(true), "done before");
            assert_eq!(bench.unit.suspend(&bench.h), Err(UnitError::NotUp));
            assert_eq!(bench.unit.bring_up(&bench.h), Err(UnitError::AlreadyUp));

            power_cycle(&bench);
            bench.take_log();
            bench.unit.resume(&bench.h).unwrap();
            // Queue, root, everything forgotten unless hardware does it by itself, translation.
            let expected: &[u32] = match capability {
                0 => &[QIE, QIE | SRTP, 0, QIE | TE],
                _ => &[QIE, QIE | SRTP, QIE | TE],
            };
            assert_eq!(commands(&bench), expected);
            assert_eq!(bench.world().fault_event_control, 1 << 31, "masked again");
            assert_eq!(root_table(&bench), table);
            let kept = bench.unit.read_entry(&bench.h, &tables, Pasid::ZERO);
            assert_eq!(kept, entry);
            assert!(bench.unit.is_up() && bench.unit.is_protecting());
            assert_eq!(bench.unit.resume(&bench.h), Err(UnitError::NotSuspended));
            bench.unit.invalidate_everything(&bench.h).unwrap();
            release(&bench, tables);
        }
    }

    // §6.7
    #[test]
    fn interrupts_stay_remapped_unless_the_unit_is_handed_back() {
        let remapping = |options: &mut Options| {
            options.config.interrupts.remapping = InterruptRemapping::Required;
            options.config.interrupts.table_order = 7;
        };
        for (leave, is_on) in [(Leave::Blocking, true), (Leave::Passing, false)] {
            let bench = up(remapping);
            bench.unit.shut_down(&bench.h, leave).unwrap();
            assert_eq!(bench.world().status & IRE != 0, is_on);
        }
        let bench = up(remapping);
        let address = bench.world().interrupt_table;
        let first = address & !0xfff;
        bench.world().store(first, 0x1234_0001);
        bench.h.flush_line(Hpa::new(first));
        bench.unit.suspend(&bench.h).unwrap();
        power_cycle(&bench);
        bench.world().interrupt_table = 0;
        bench.unit.resume(&bench.h).unwrap();
        assert_eq!(bench.world().interrupt_table, address);
        assert_eq!(bench.world().load(first), 0x1234_0001, "kept");
        assert_ne!(bench.world().status & IRE, 0);
        assert_eq!(bench.world().status & TE, TE);
    }

    #[test]
    fn a_resumption_that_fails_can_be_repeated() {
        let bench = up(|_| {});
        let tables = attached(&bench);
        let table = root_table(&bench);
        bench.unit.suspend(&bench.h).unwrap();
        for stuck in [QIE, SRTP, TE] {
            power_cycle(&bench);
            bench.world().options.stuck_commands = stuck;
            assert!(matches!(
                bench.unit.resume(&bench.h),
                Err(UnitError::TimedOut { register: 0x1c, .. })
            ));
            assert!(!bench.unit.is_up());
        }
        // Translating by the kept tables is better than nothing.
        power_cycle(&bench);
        bench.world().options.stuck_commands = 0;
        bench.world().completion = Completion::Never;
        assert!(bench.unit.resume(&bench.h).is_err());
        assert!(!bench.unit.is_up() && bench.unit.is_protecting());
        assert_eq!(root_table(&bench), table);
        bench.world().completion = Completion::Now;
        bench.unit.resume(&bench.h).unwrap();
        assert_eq!(root_table(&bench), table);
        release(&bench, tables);
    }
}
