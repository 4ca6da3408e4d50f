//! From whatever firmware left to *translating* (§6.5.2, §6.6, §11.4.4): with everything blocked or,
//! after a suspension, with the tables that there were.

use core::sync::atomic::Ordering;

use super::deadline::Deadline;
use super::error::UnitError;
use super::queue_memory::QueueMemory;
use super::unit::{OnFirmwareState, Phase, Unit};
use crate::arch::address::{Hpa, PAGE_SIZE_BYTES};
use crate::arch::register::{
    EventControl, FaultStatus, GlobalCommand, GlobalStatus, InvalidationQueueAddress, Register32,
    Register64, RootTableAddress,
};
use crate::mem::{FrameRun, Hypervisor, Owner, Registers};

/// What the root table holds that a unit is programmed with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    /// Nothing: everything is blocked.
    Empty,
    /// What it held before: attached devices go on.
    Kept,
}

impl<R: Registers> Unit<R> {
    /// Brings the unit up: translation on, an empty root table, the invalidation queue running.
    ///
    /// Every DMA request of every device behind the unit faults from then on, until its device is
    /// attached. The order is: firmware's queue off, own queue on, root table set, caches
    /// invalidated (where setting the root does not do it), translation on, root table checked,
    /// protected memory regions off, interrupts remapped by an empty table. All events are masked.
    ///
    /// Bus mastering of the devices should be off, or their memory protected, until this returns:
    /// a unit without translation lets everything pass. What firmware had on stays on: translation
    /// is never off in between ([`OnFirmwareState`] has the one exception), and the protected memory
    /// regions come off last. Its fault records are dropped.
    ///
    /// # Errors
    ///
    /// [`UnitError`], with the register and its value where there is one. DMA is then blocked
    /// all the same if the hardware can still be made to; [`is_protecting`](Self::is_protecting)
    /// tells. Firmware's translation is never turned off for good. The call may be repeated: frames
    /// that hardware may know of are kept for that, all others are free again.
    pub fn bring_up<H: Hypervisor>(&self, h: &H) -> Result<(), UnitError> {
        self.change_phase(Phase::Down, Phase::Working)
            .map_err(|_| UnitError::AlreadyUp)?;
        let result = self.program(h, Content::Empty);
        if result.is_err() {
            self.free_unexposed_memory(h);
        }
        self.enter(if result.is_ok() {
            Phase::Up
        } else {
            Phase::Down
        });
        result
    }

    /// Programs the unit with a root table that is empty, or as it was.
    pub(super) fn program<H: Hypervisor>(&self, h: &H, content: Content) -> Result<(), UnitError> {
        let was_translating = self.is_translating().unwrap_or(false);
        let result = self.program_steps(h, content);
        if let Err(error) = &result {
            self.stop_queue_use();
            self.forget_interrupt_remapping();
            self.block_after_failure(h, was_translating, content);
            log::error!(
                "remapping unit of segment {}: {error}; protecting: {}",
                self.config.segment,
                u8::from(self.is_protecting())
            );
        }
        result
    }

    /// Whether all DMA of the devices behind the unit goes through this driver's tables: the unit
    /// uses its root table, and translation is on.
    pub fn is_protecting(&self) -> bool {
        self.owns_root.load(Ordering::Acquire)
            && self
                .read_global_status()
                .is_ok_and(|status| status.contains(GlobalStatus::TRANSLATION_ENABLED))
    }

    fn program_steps<H: Hypervisor>(&self, h: &H, content: Content) -> Result<(), UnitError> {
        let status = self.read_global_status()?;
        let left_on = GlobalStatus::TRANSLATION_ENABLED
            | GlobalStatus::QUEUED_INVALIDATION_ENABLED
            | GlobalStatus::INTERRUPT_REMAPPING_ENABLED;
        if self.config.on_firmware_state == OnFirmwareState::Refuse && status.intersects(left_on) {
            return Err(UnitError::FirmwareState(status.bits()));
        }
        self.acquire_memory(h, content)?;
        self.mask_events()?;
        self.drop_faults();
        self.stop_queue(h, status)?;
        self.start_queue(h)?;
        self.set_root(h)?;
        if !self
            .features
            .capability
            .has_enhanced_set_root_table_pointer()
        {
            self.invalidate_everything(h)?;
        }
        self.enable_translation(h)?;
        if content == Content::Empty {
            self.check_root(h)?;
        }
        let capability = self.features.capability;
        if capability.has_protected_low_memory() || capability.has_protected_high_memory() {
            self.disable_protected_memory(h)?;
        }
        self.start_interrupt_remapping(h, content)
    }

    /// Makes sure that there are a root table and a queue; the table is all zero unless it is kept.
    fn acquire_memory<H: Hypervisor>(&self, h: &H, content: Content) -> Result<(), UnitError> {
        let held = self.tables.lock().root();
        if content == Content::Kept {
            return held.map(drop).ok_or(UnitError::NotUp);
        }
        let root = match held {
            Some(root) => root,
            None => {
                let root = h.allocate(Owner::HYPERVISOR, 0)?;
                let address = root.address();
                self.tables.lock().set_root(root);
                address
            }
        };
        self.clear_page(h, root);
        if self.queue.lock().has_memory() {
            return Ok(());
        }
        let ring = h.allocate(Owner::HYPERVISOR, self.config.queue_order);
        let status = h.allocate(Owner::HYPERVISOR, 0);
        match (ring, status) {
            (Ok(ring), Ok(status)) => {
                self.queue.lock().set_memory(QueueMemory {
                    ring,
                    status,
                    width: self.descriptor_width(),
                });
                Ok(())
            }
            (ring, status) => {
                let free = |run: FrameRun| {
                    h.free(run);
                    Ok(())
                };
                let ring = ring.map_err(UnitError::Frames).and_then(free);
                let status = status.map_err(UnitError::Frames).and_then(free);
                ring.and(status)
            }
        }
    }

    /// Gives back what hardware was never told of.
    fn free_unexposed_memory<H: Hypervisor>(&self, h: &H) {
        let memory = self.queue.lock().take_unexposed_memory();
        if let Some(QueueMemory { ring, status, .. }) = memory {
            h.free(ring);
            h.free(status);
        }
        let root = self.tables.lock().take_unexposed_root();
        if let Some(root) = root {
            h.free(root);
        }
        let table = self.interrupts.lock().take_unexposed_memory();
        if let Some(table) = table {
            h.free(table);
        }
    }

    /// Keeps the unit from sending firmware's interrupt messages.
    fn mask_events(&self) -> Result<(), UnitError> {
        let controls = [
            (Register32::FAULT_EVENT_CONTROL, true),
            (Register32::INVALIDATION_EVENT_CONTROL, true),
            (
                Register32::PAGE_REQUEST_EVENT_CONTROL,
                self.features.extended.has_page_requests(),
            ),
        ];
        for (register, is_there) in controls {
            if is_there {
                let value = self.read32(register)?;
                let masked = value | EventControl::INTERRUPT_MASK.bits();
                self.registers.lock().write32(register, masked);
            }
        }
        Ok(())
    }

    /// Takes firmware's fault records away: they are of nobody that this driver knows.
    fn drop_faults(&self) {
        let mut count = 0;
        // A device may fault as fast as they are taken.
        for _ in 0..self.features.capability.fault_record_count() {
            if self.next_fault().is_none() {
                break;
            }
            count += 1;
        }
        if count > 0 {
            log::info!("{count} fault records from before bring-up dropped");
        }
    }

    /// Ends what is under way of register-based invalidation and of firmware's queue.
    fn stop_queue<H: Hypervisor>(&self, h: &H, status: GlobalStatus) -> Result<(), UnitError> {
        self.await_invalidation(h, Register64::CONTEXT_COMMAND)?;
        let offset = self.features.extended.iotlb_register_offset();
        if let Some(register) = Register64::iotlb_invalidate(offset) {
            self.await_invalidation(h, register)?;
        }
        if !status.contains(GlobalStatus::QUEUED_INVALIDATION_ENABLED) {
            return Ok(());
        }
        // The queue may be turned off only when it is empty (§6.5.2), unless it stands at an error.
        let mut deadline = Deadline::after(h, self.config.timeout_nanoseconds);
        let mut is_last = false;
        let mut stood_at = None;
        loop {
            let head = self.read64(Register64::INVALIDATION_QUEUE_HEAD)?;
            let tail = self.read64(Register64::INVALIDATION_QUEUE_TAIL)?;
            let fault_status = self.read32(Register32::FAULT_STATUS)?;
            let stands =
                FaultStatus::INVALIDATION_QUEUE_ERROR | FaultStatus::INVALIDATION_TIMEOUT_ERROR;
            if head == tail {
                break;
            }
            if fault_status & stands.bits() != 0 {
                // Emulated units turn off none but an empty queue, so nothing is left to fetch.
                let mut registers = self.registers.lock();
                registers.write64(Register64::INVALIDATION_QUEUE_TAIL, head);
                registers.write32(Register32::FAULT_STATUS, fault_status & stands.bits());
                stood_at = Some(fault_status);
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
        let result = self.disable(h, GlobalCommand::QUEUED_INVALIDATION_ENABLE);
        match (result, stood_at) {
            (Err(UnitError::TimedOut { value, .. }), Some(fault_status)) => {
                Err(UnitError::FirmwareQueue {
                    fault_status,
                    global_status: value as u32,
                })
            }
            (result, _) => result,
        }
    }

    fn start_queue<H: Hypervisor>(&self, h: &H) -> Result<(), UnitError> {
        let address = self
            .queue
            .lock()
            .expose()
            .and_then(|ring| {
                let order = self.config.queue_order;
                InvalidationQueueAddress::new(ring, order, self.descriptor_width())
            })
            .ok_or(UnitError::QueueOrder(self.config.queue_order))?;
        self.write64_checked(Register64::INVALIDATION_QUEUE_TAIL, 0)?;
        self.registers
            .lock()
            .write64(Register64::INVALIDATION_QUEUE_ADDRESS, address.bits());
        let mut errors = FaultStatus::INVALIDATION_QUEUE_ERROR;
        if self.features.extended.has_device_tlb() {
            // Reserved without device-TLBs (§11.4.7.1).
            errors |= FaultStatus::INVALIDATION_COMPLETION_ERROR
                | FaultStatus::INVALIDATION_TIMEOUT_ERROR;
        }
        self.registers
            .lock()
            .write32(Register32::FAULT_STATUS, errors.bits());
        self.enable(h, GlobalCommand::QUEUED_INVALIDATION_ENABLE)?;
        // Emulated units show the address only once the queue runs. Nothing is fetched before the
        // tail moves, so it is not too late to look.
        let register = Register64::INVALIDATION_QUEUE_ADDRESS;
        let value = self.read64(register)?;
        if value != address.bits() {
            self.disable(h, GlobalCommand::QUEUED_INVALIDATION_ENABLE)?;
            return Err(UnitError::ReadBack {
                register: register.offset(),
                expected: address.bits(),
                value,
            });
        }
        let register = Register64::INVALIDATION_QUEUE_HEAD;
        match self.read64(register)? {
            0 => {
                self.queue.lock().start();
                Ok(())
            }
            value => Err(UnitError::ReadBack {
                register: register.offset(),
                expected: 0,
                value,
            }),
        }
    }

    /// Nothing may be submitted any more; a ticket that is out fails.
    fn stop_queue_use(&self) {
        self.queue.lock().stop();
    }

    /// Makes the unit use the empty root table.
    fn set_root<H: Hypervisor>(&self, h: &H) -> Result<(), UnitError> {
        let Some(root) = self.tables.lock().expose_root() else {
            return Err(UnitError::NotUp);
        };
        if self.is_translating()? && !self.may_switch_root()? {
            if self.config.on_firmware_state != OnFirmwareState::TakeOverWithGap
                || self.config.errata.keeps_translation_on()
            {
                let root = self.read64(Register64::ROOT_TABLE_ADDRESS)?;
                return Err(UnitError::TranslationGap { root });
            }
            self.disable(h, GlobalCommand::TRANSLATION_ENABLE)?;
        }
        let address = RootTableAddress::new(root, self.table_mode());
        self.owns_root.store(false, Ordering::Release);
        self.write64_checked(Register64::ROOT_TABLE_ADDRESS, address.bits())?;
        self.set_root_table_pointer(h)?;
        self.owns_root.store(true, Ordering::Release);
        Ok(())
    }

    fn is_translating(&self) -> Result<bool, UnitError> {
        let status = self.read_global_status()?;
        Ok(status.contains(GlobalStatus::TRANSLATION_ENABLED))
    }

    /// Whether the root may be set while translation is on: its mode stays, or the unit allows a
    /// change (§11.4.5).
    fn may_switch_root(&self) -> Result<bool, UnitError> {
        let current = self.read64(Register64::ROOT_TABLE_ADDRESS)?;
        let current = RootTableAddress::from_bits(current);
        Ok(self
            .features
            .capability
            .has_enhanced_set_root_table_pointer()
            || current.mode() == self.table_mode() && !current.has_second_stage_io_permissions())
    }

    fn enable_translation<H: Hypervisor>(&self, h: &H) -> Result<(), UnitError> {
        if self.is_translating()? {
            return Ok(());
        }
        self.enable(h, GlobalCommand::TRANSLATION_ENABLE)
    }

    /// Sees to it that the root table is still empty: before translation was on, any device could
    /// write to it.
    fn check_root<H: Hypervisor>(&self, h: &H) -> Result<(), UnitError> {
        let Some(root) = self.tables.lock().root() else {
            return Err(UnitError::NotUp);
        };
        if find_nonzero(h, root).is_none() {
            return Ok(());
        }
        log::warn!("the root table at {root} was written to; clearing it");
        self.clear_page(h, root);
        self.invalidate_everything(h)?;
        match find_nonzero(h, root) {
            None => Ok(()),
            Some((quadword, value)) => {
                self.clear_page(h, root);
                Err(UnitError::RootTableModified { quadword, value })
            }
        }
    }

    fn clear_page<H: Hypervisor>(&self, h: &H, page: Hpa) {
        self.clear_range(h, page, PAGE_SIZE_BYTES);
    }

    /// Zeroes a table, so that hardware sees it.
    pub(super) fn clear_range<H: Hypervisor>(&self, h: &H, at: Hpa, len_bytes: u64) {
        for quadword in 0..len_bytes / 8 {
            if let Some(at) = at.checked_add(quadword.saturating_mul(8)) {
                h.write64(at, 0);
            }
        }
        self.flush_table(h, at, len_bytes);
        h.fence();
    }

    /// Blocks all DMA if that is still possible without opening anything on the way; what a kept
    /// table allows stays allowed.
    fn block_after_failure<H: Hypervisor>(&self, h: &H, was_translating: bool, content: Content) {
        if self.tables.lock().root().is_none() {
            return;
        }
        let root = if self.owns_root.load(Ordering::Acquire) {
            Ok(())
        } else {
            match self
                .is_translating()
                .and_then(|is_on| Ok(is_on && !self.may_switch_root()?))
            {
                Ok(true) => return,
                Ok(false) => self.set_root(h),
                Err(error) => Err(error),
            }
        };
        let is_emptied = root.is_ok() && content == Content::Empty;
        let ours = is_emptied.then(|| self.tables.lock().root()).flatten();
        if let Some(at) = ours {
            self.clear_page(h, at);
        }
        // Firmware's root, should ours not be in force, is better than none.
        let translation = match root {
            Err(error) if !was_translating => Err(error),
            _ => self.enable_translation(h),
        };
        // Any device could write to the table until now, and what hardware has read of it since
        // cannot be invalidated: the queue is not to be used.
        if let Some(at) = ours
            && let Some((quadword, value)) = find_nonzero(h, at)
        {
            self.clear_page(h, at);
            self.owns_root.store(false, Ordering::Release);
            log::error!("quadword {quadword} of the root table became {value:#x}");
        }
        if let Err(error) = translation {
            log::error!("the remapping unit cannot be made to block: {error}");
        }
    }
}

/// The first quadword of a page that is not zero.
fn find_nonzero<H: Hypervisor>(h: &H, page: Hpa) -> Option<(u16, u64)> {
    (0..(PAGE_SIZE_BYTES / 8) as u16).find_map(|quadword| {
        let value = h.read64(page.checked_add(u64::from(quadword) * 8)?);
        (value != 0).then_some((quadword, value))
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::errata::{Errata, Erratum};
    use super::super::testing::{
        Bench, CAPABILITY, ESRTPS, EXTENDED, Event, IQE, IRE, Options, QIE, SRTP, TE, bench,
    };
    use super::*;
    use crate::arch::register::TranslationTableMode;
    use std::vec::Vec;

    const LEGACY_ROOT: u64 = 0x7000;
    const SCALABLE_ROOT: u64 = 0x7000 | 1 << 10;

    /// The global commands that were written, and the offsets of other registers.
    fn register_writes(bench: &Bench) -> Vec<(u16, u64)> {
        bench
            .take_log()
            .into_iter()
            .filter_map(|event| match event {
                Event::Register(offset, value) => Some((offset, value)),
                _ => None,
            })
            .collect()
    }

    fn commands(bench: &Bench) -> Vec<u32> {
        register_writes(bench)
            .into_iter()
            .filter(|(offset, _)| *offset == 0x18)
            .map(|(_, value)| value as u32)
            .collect()
    }

    /// A unit as firmware left it: root of this mode, these commands in force.
    fn left_on(change: impl FnOnce(&mut Options), root: u64, status: u32) -> Bench {
        let bench = bench(change);
        {
            let mut world = bench.world();
            world.root = root;
            world.latched_root = Some(root);
            world.status = status | SRTP;
        }
        bench
    }

    fn assert_root_is_empty(bench: &Bench) {
        let root = bench.world().latched_root.unwrap();
        assert_eq!(
            RootTableAddress::from_bits(root).mode(),
            TranslationTableMode::Scalable
        );
        let root = root & !0xfff;
        for quadword in (root..root + 4096).step_by(8) {
            assert_eq!(bench.world().table_quadword(quadword), 0, "{quadword:#x}");
        }
    }

    #[test]
    fn a_fresh_unit_blocks_everything_before_it_translates() {
        let bench = bench(|options| options.capability |= 1 << 5);
        bench.world().protected_memory = 1 << 31 | 1;
        bench.unit.bring_up(&bench.h).unwrap();
        assert!(bench.unit.is_up() && bench.unit.is_protecting());
        assert_root_is_empty(&bench);
        assert_eq!(bench.world().status, TE | SRTP | QIE);
        let writes = register_writes(&bench);
        // Events masked, queue, root, invalidations by the queue, translation, PMRs last.
        let expected = [
            0x38, 0xa0, 0x88, 0x90, 0x34, 0x18, 0x20, 0x18, 0x88, 0x18, 0x64,
        ];
        assert_eq!(
            writes.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(),
            expected
        );
        let commands: Vec<u64> = writes
            .iter()
            .filter(|(o, _)| *o == 0x18)
            .map(|(_, v)| *v)
            .collect();
        assert_eq!(
            commands,
            [u64::from(QIE), u64::from(QIE | SRTP), u64::from(QIE | TE)]
        );
        assert_eq!(bench.world().protected_memory, 0);
        assert_eq!(bench.world().fault_event_control, 1 << 31);
        // §6.6: context cache, PASID cache, IOTLB, all global, in this order.
        let heads: Vec<u64> = bench
            .take_executed()
            .iter()
            .map(|descriptor| descriptor.encode().words()[0] & 0xff)
            .collect();
        assert_eq!(heads, [0x11, 0x37, 0xd2, 0x25]);
        assert_eq!(bench.unit.bring_up(&bench.h), Err(UnitError::AlreadyUp));
    }

    #[test]
    fn a_unit_that_forgets_by_itself_gets_no_invalidation() {
        let bench = bench(|options| options.capability |= ESRTPS);
        bench.unit.bring_up(&bench.h).unwrap();
        assert!(bench.take_executed().is_empty());
    }

    #[test]
    fn what_firmware_left_on_is_taken_over() {
        // The same mode: translation is never off.
        let bench = left_on(|_| {}, SCALABLE_ROOT, TE | QIE | IRE);
        bench.unit.bring_up(&bench.h).unwrap();
        assert_root_is_empty(&bench);
        assert_eq!(
            commands(&bench),
            [
                TE | IRE,
                TE | IRE | QIE,
                TE | IRE | QIE | SRTP,
                // Not to be used here, and not by firmware's table.
                TE | QIE
            ]
        );
        // Another mode: only with ESRTPS while translating (the fake checks).
        let bench = left_on(|options| options.capability |= ESRTPS, LEGACY_ROOT, TE);
        bench.unit.bring_up(&bench.h).unwrap();
        assert_eq!(commands(&bench), [TE | QIE, TE | QIE | SRTP]);
        // Otherwise translation has to be off for the change, and not by default.
        let bench = left_on(|_| {}, LEGACY_ROOT, TE);
        assert_eq!(
            bench.unit.bring_up(&bench.h),
            Err(UnitError::TranslationGap { root: LEGACY_ROOT })
        );
        assert_eq!(bench.world().status & TE, TE);
        assert_eq!(bench.world().latched_root, Some(LEGACY_ROOT), "untouched");
        let with_gap = |options: &mut Options| {
            options.config.on_firmware_state = OnFirmwareState::TakeOverWithGap;
        };
        let bench = left_on(with_gap, LEGACY_ROOT, TE);
        bench.unit.bring_up(&bench.h).unwrap();
        assert_root_is_empty(&bench);
        assert_eq!(commands(&bench), [TE | QIE, QIE, QIE | SRTP, QIE | TE]);
        // Nor then where turning translation off is what the unit does not survive.
        let with_erratum = |options: &mut Options| {
            with_gap(options);
            options.config.errata = Errata::NONE.with(Erratum::TranslationStaysOn);
        };
        let bench = left_on(with_erratum, LEGACY_ROOT, TE);
        assert_eq!(
            bench.unit.bring_up(&bench.h),
            Err(UnitError::TranslationGap { root: LEGACY_ROOT })
        );
        assert_eq!(bench.world().status & TE, TE);
    }

    #[test]
    fn a_firmware_queue_is_turned_off_only_when_it_is_empty_or_stands() {
        let bench = left_on(|_| {}, SCALABLE_ROOT, QIE);
        bench.world().head = 0x20;
        bench.world().tail = 0x60;
        assert_eq!(
            bench.unit.bring_up(&bench.h),
            Err(UnitError::TimedOut {
                register: 0x80,
                value: 0x20
            })
        );
        let bench = left_on(|_| {}, SCALABLE_ROOT, QIE);
        bench.world().head = 0x20;
        bench.world().tail = 0x60;
        bench.world().errors = IQE;
        bench.unit.bring_up(&bench.h).unwrap();
        assert_eq!(bench.world().errors, 0);
        // As an emulated unit whose last descriptor was no wait; firmware's ring is not written.
        let bench = left_on(|options| options.stuck_commands = QIE, SCALABLE_ROOT, QIE);
        (bench.world().head, bench.world().tail) = (0x20, 0x60);
        bench.world().errors = IQE;
        let expected = UnitError::FirmwareQueue {
            fault_status: IQE,
            global_status: QIE | SRTP,
        };
        assert_eq!(bench.unit.bring_up(&bench.h), Err(expected));
    }

    #[test]
    fn firmware_state_can_be_refused_untouched() {
        for status in [TE, QIE, IRE] {
            let refuse = |options: &mut Options| {
                options.config.on_firmware_state = OnFirmwareState::Refuse;
            };
            let bench = left_on(refuse, SCALABLE_ROOT, status);
            assert_eq!(
                bench.unit.bring_up(&bench.h),
                Err(UnitError::FirmwareState(status | SRTP))
            );
            assert!(register_writes(&bench).is_empty());
            assert_eq!(bench.h.pool.free_frames(), bench.h.pool.capacity());
        }
    }

    #[test]
    fn every_step_that_hangs_is_a_timeout_and_dma_is_blocked_where_it_can_be() {
        let timed_out = |register, value| UnitError::TimedOut { register, value };
        type Change = fn(&mut Options);
        // What hangs, the error, and whether the unit protects afterwards.
        let cases: [(&str, Change, UnitError, bool); 7] = [
            ("QIE", |o| o.stuck_commands = QIE, timed_out(0x1c, 0), false),
            (
                "SRTP",
                |o| o.stuck_commands = SRTP,
                timed_out(0x1c, QIE.into()),
                false,
            ),
            (
                "TE",
                |o| o.stuck_commands = TE,
                timed_out(0x1c, (QIE | SRTP).into()),
                false,
            ),
            (
                "ICC",
                |o| o.forced = std::vec![(0x28, 1 << 63)],
                timed_out(0x28, 1 << 63),
                true,
            ),
            (
                "IVT",
                |o| o.forced = std::vec![(0xf8, 1 << 63)],
                timed_out(0xf8, 1 << 63),
                true,
            ),
            (
                "PRS",
                |o| {
                    o.capability |= 1 << 6;
                    o.forced = std::vec![(0x64, 1)];
                },
                timed_out(0x64, 1),
                true,
            ),
            (
                "IQH",
                |o| o.forced = std::vec![(0x80, 0x40)],
                UnitError::ReadBack {
                    register: 0x80,
                    expected: 0,
                    value: 0x40,
                },
                true,
            ),
        ];
        for (name, change, error, protects) in cases {
            let bench = bench(change);
            assert_eq!(bench.unit.bring_up(&bench.h), Err(error), "{name}");
            assert_eq!(bench.unit.is_protecting(), protects, "{name}");
            assert!(!bench.unit.is_up());
            if protects {
                assert_root_is_empty(&bench);
            }
            assert_eq!(
                bench.unit.invalidate_everything(&bench.h),
                Err(crate::unit::QueueError::NotRunning)
            );
        }
    }

    #[test]
    fn registers_that_do_not_keep_their_value_are_reported() {
        for offset in [0x20u16, 0x90] {
            let bench = bench(|options| {
                options.read_only.insert(offset);
            });
            match bench.unit.bring_up(&bench.h) {
                Err(UnitError::ReadBack {
                    register, value: 0, ..
                }) => assert_eq!(register, offset),
                other => panic!("{offset:#x}: {other:?}"),
            }
            // Without its root register there is nothing to block with.
            assert_eq!(bench.unit.is_protecting(), offset != 0x20);
        }
    }

    #[test]
    fn an_invalidation_that_never_completes_leaves_everything_blocked() {
        let bench = bench(|_| {});
        bench.world().completion = super::super::testing::Completion::Never;
        assert!(matches!(
            bench.unit.bring_up(&bench.h),
            Err(UnitError::Queue(crate::unit::QueueError::TimedOut {
                sequence: 1,
                ..
            }))
        ));
        assert!(bench.unit.is_protecting() && !bench.unit.is_up());
        // Once the hardware works, a second attempt needs no new frames.
        let free = bench.h.pool.free_frames();
        bench.world().completion = super::super::testing::Completion::Now;
        bench.unit.bring_up(&bench.h).unwrap();
        assert_eq!(bench.h.pool.free_frames(), free);
    }

    #[test]
    fn translation_that_firmware_had_on_survives_every_failure() {
        for offset in [0x20u16, 0x90] {
            for root in [LEGACY_ROOT, SCALABLE_ROOT] {
                let change = |options: &mut Options| {
                    options.read_only.insert(offset);
                };
                let bench = left_on(change, root, TE | QIE);
                assert!(bench.unit.bring_up(&bench.h).is_err());
                assert_ne!(bench.world().status & TE, 0, "{offset:#x} {root:#x}");
            }
        }
    }

    #[test]
    fn a_command_given_up_blocks_the_next_until_it_is_done_after_all() {
        let bench = bench(|options| options.stuck_commands = QIE);
        assert!(bench.unit.bring_up(&bench.h).is_err());
        commands(&bench);
        assert!(matches!(
            bench.unit.bring_up(&bench.h),
            Err(UnitError::CommandPending { register: 0x1c, .. })
        ));
        assert_eq!(commands(&bench), []);
        bench.world().options.stuck_commands = 0;
        bench.world().complete(QIE);
        bench.unit.bring_up(&bench.h).unwrap();
        assert!(bench.unit.is_protecting());
    }

    #[test]
    fn a_clock_that_stands_still_ends_the_wait_too() {
        let bench = bench(|options| options.stuck_commands = QIE);
        bench.world().clock_step = 0;
        assert!(matches!(
            bench.unit.bring_up(&bench.h),
            Err(UnitError::TimedOut { register: 0x1c, .. })
        ));
    }

    #[test]
    fn a_unit_that_is_gone_is_reported_as_such() {
        let bench = bench(|_| {});
        bench.world().gone = true;
        assert_eq!(
            bench.unit.bring_up(&bench.h),
            Err(UnitError::Lost { register: 0x1c })
        );
        assert!(!bench.unit.is_protecting());
        assert_eq!(bench.h.pool.free_frames(), bench.h.pool.capacity());
    }

    #[test]
    fn frames_come_back_whichever_is_missing() {
        for allowed in 0..3 {
            let bench = bench(|_| {});
            bench.world().fail_allocation = Some(allowed);
            assert!(matches!(
                bench.unit.bring_up(&bench.h),
                Err(UnitError::Frames(_))
            ));
            // With a root table there is enough to block with, and hardware uses it.
            let kept = u32::from(allowed > 0);
            assert_eq!(bench.h.pool.free_frames(), bench.h.pool.capacity() - kept);
            assert_eq!(bench.unit.is_protecting(), allowed > 0);
        }
    }

    #[test]
    fn a_root_table_that_a_device_wrote_to_is_cleared_once_and_then_refused() {
        let bench = bench(|options| options.root_writes = 1);
        bench.unit.bring_up(&bench.h).unwrap();
        assert_root_is_empty(&bench);
        let bench = super::super::testing::bench(|options| options.root_writes = 2);
        assert_eq!(
            bench.unit.bring_up(&bench.h),
            Err(UnitError::RootTableModified {
                quadword: 3,
                value: 0x1234_5001
            })
        );
        assert!(bench.unit.is_protecting());
        assert_root_is_empty(&bench);
    }

    #[test]
    fn the_root_table_is_written_back_where_the_unit_does_not_snoop() {
        for (extended, flushes) in [(EXTENDED, true), (EXTENDED | 1, false)] {
            let bench = bench(|options| {
                options.extended = extended;
                options.capability = CAPABILITY;
            });
            bench.unit.bring_up(&bench.h).unwrap();
            let log = bench.take_log();
            let flushed = log
                .iter()
                .filter(|event| matches!(event, Event::Flush(_)))
                .count();
            assert_eq!(flushed, if flushes { 64 } else { 0 });
        }
    }
}
