//! What becomes of the invalidation queue after an error (§6.5.2.11).
//!
//! | error | meaning | what is done |
//! |---|---|---|
//! | `IQE` | hardware stands at a descriptor that it refuses | a fence takes its place; its submission fails, all others go on |
//! | `ITE` | a device did not answer a device-TLB invalidation; waits that were fetched never complete, and what is before them may not have run | all that is outstanding runs again, without that device's descriptors; submissions that held one fail |
//! | `ICE` | a device answered what it was not asked | counted; the queue never stopped |
//!
//! An error costs one submission that was refused, or the descriptors of one device: so there are
//! no more of them than submissions and devices.

use super::error::QueueError;
use super::queue::{Cause, Outstanding, Queue, Use};
use super::queue_memory::{PLACE_BYTES, QueueMemory};
use super::unit::{Unit, table_mode_for};
use crate::arch::address::Hpa;
use crate::arch::capability::Features;
use crate::arch::descriptor::{Descriptor, RawDescriptor};
use crate::arch::id::SourceId;
use crate::arch::register::{
    FaultStatus, QueueErrorInfo, QueueErrorRecord, Register32, Register64,
};
use crate::mem::{HostMemory, Hypervisor, Registers};

impl<R: Registers> Unit<R> {
    /// Looks for an error of the queue and makes it run again.
    ///
    /// # Errors
    ///
    /// [`QueueError::Lost`] and [`QueueError::Head`]: nothing can be submitted any more.
    pub(super) fn recover<H: Hypervisor>(
        &self,
        h: &H,
        queue: &mut Queue,
    ) -> Result<(), QueueError> {
        if !queue.is_running {
            return Ok(());
        }
        let status = self.registers.lock().read32(Register32::FAULT_STATUS);
        if status == u32::MAX {
            return Err(QueueError::Lost);
        }
        let stopped =
            FaultStatus::INVALIDATION_QUEUE_ERROR | FaultStatus::INVALIDATION_TIMEOUT_ERROR;
        let errors = FaultStatus::from_bits_truncate(status)
            .intersection(stopped | FaultStatus::INVALIDATION_COMPLETION_ERROR);
        if errors.is_empty() {
            return Ok(());
        }
        let register = Register64::INVALIDATION_QUEUE_ERROR_RECORD;
        let record = QueueErrorRecord::from_bits(self.registers.lock().read64(register));
        if errors.intersects(stopped) {
            self.repair(h, queue, errors, record)?;
        }
        if errors.contains(FaultStatus::INVALIDATION_COMPLETION_ERROR) {
            self.counters.completion_errors.add(1);
            let bits = record.bits();
            log::warn!("unexpected device-TLB completion: error record {bits:#x}");
        }
        let mut registers = self.registers.lock();
        registers.write32(Register32::FAULT_STATUS, errors.bits());
        // More may be to run than before, and some emulators go on only when the tail is written.
        let tail = Register64::INVALIDATION_QUEUE_TAIL;
        registers.write64(tail, u64::from(queue.tail));
        Ok(())
    }

    /// Takes out of the ring what hardware stopped at. Hardware fetches nothing meanwhile.
    fn repair<H: Hypervisor>(
        &self,
        h: &H,
        queue: &mut Queue,
        errors: FaultStatus,
        record: QueueErrorRecord,
    ) -> Result<(), QueueError> {
        let value = self.read_head();
        let memory = queue.memory.as_ref().ok_or(QueueError::NotRunning)?;
        let kept = memory.distance(queue.oldest, queue.tail);
        let head = match memory.checked_head(value) {
            Ok(head) if memory.distance(queue.oldest, head) <= kept => head,
            _ => {
                let error = QueueError::Head { value };
                queue.stop();
                queue.fail_all(error);
                return Err(error);
            }
        };
        if errors.contains(FaultStatus::INVALIDATION_QUEUE_ERROR) {
            self.counters.queue_errors.add(1);
            let info = record.error();
            let bits = record.bits();
            log::error!("invalidation queue stopped at {head:#x}: error record {bits:#x}");
            queue.take_out_refused(h, head, info);
        }
        if errors.contains(FaultStatus::INVALIDATION_TIMEOUT_ERROR) {
            self.counters.device_timeouts.add(1);
            let source_id = record.timed_out_source_id();
            let bits = record.bits();
            log::error!("device-TLB invalidation timed out: error record {bits:#x}");
            if queue.take_out_device(h, source_id, &self.features) {
                let now = h.now_nanoseconds();
                queue.not_late_before = now.saturating_add(self.config.timeout_nanoseconds);
            }
            queue.run_again_from(h, head);
        }
        h.fence();
        Ok(())
    }
}

impl Queue {
    /// Replaces the descriptor at `head`, which hardware refuses, and fails its submission.
    fn take_out_refused<H: HostMemory>(&mut self, h: &H, head: u32, info: Option<QueueErrorInfo>) {
        let is_of_tail = matches!(
            info,
            Some(QueueErrorInfo::InvalidTail | QueueErrorInfo::MisalignedTail)
        );
        if is_of_tail || head == self.tail {
            // No descriptor is to blame, and the tail is written anew.
            return;
        }
        let Some((last, word)) = self.submission_around(head) else {
            return;
        };
        if let Some(memory) = self.memory.as_ref() {
            memory.write(h, head, memory.fence(false).encode());
            memory.write(h, last, memory.fence(false).encode());
        }
        let index = (head / PLACE_BYTES) as u16;
        self.fail(h, word, Cause::Refused(info, index));
    }

    /// The submission that a place in the ring belongs to: where its wait is, and its status word.
    fn submission_around(&self, place: u32) -> Option<(u32, u16)> {
        let memory = self.memory.as_ref()?;
        let mut start = self.oldest;
        for Outstanding { word, length, .. } in &self.outstanding {
            let length = u32::from(*length);
            if memory.distance(start, place) < length {
                return Some((memory.behind(start, length.saturating_sub(1)), *word));
            }
            start = memory.behind(start, length);
        }
        None
    }

    /// Replaces every descriptor for the TLB of a device, or of any if it is not known which one
    /// did not answer, and fails the submissions that held one; whether there was one.
    fn take_out_device<H: HostMemory>(
        &mut self,
        h: &H,
        device: Option<SourceId>,
        features: &Features,
    ) -> bool {
        let mut found = false;
        let mut start = self.oldest;
        for _ in 0..self.outstanding.len() {
            let Some(mut submission) = self.outstanding.pop_front() else {
                break;
            };
            let is_hit = self.take_out_of(h, start, &submission, device, features);
            if is_hit {
                self.fail(h, submission.word, Cause::DeviceTimedOut(device));
                found = true;
            }
            if let Some(memory) = self.memory.as_ref() {
                let length = u32::from(submission.length);
                let last = memory.behind(start, length.saturating_sub(1));
                if is_hit || self.is_over(h, submission.word) {
                    // It must not tell of completion, nor once more.
                    memory.write(h, last, memory.fence(false).encode());
                }
                start = memory.behind(start, length);
            }
            if is_hit && device.is_none() {
                submission.has_device_tlb = false;
            }
            // There is room, for one was taken out.
            _ = self.outstanding.push_back(submission);
        }
        found
    }

    /// As [`take_out_device`](Self::take_out_device), in one submission.
    fn take_out_of<H: HostMemory>(
        &self,
        h: &H,
        start: u32,
        submission: &Outstanding,
        device: Option<SourceId>,
        features: &Features,
    ) -> bool {
        let Some(memory) = self.memory.as_ref().filter(|_| submission.has_device_tlb) else {
            return false;
        };
        let mut found = false;
        let mut offset = start;
        for _ in 0..submission.length {
            let mode = table_mode_for(features);
            let descriptor = memory.read(h, offset).decode(memory.width, mode, features);
            if let Ok(
                Descriptor::DeviceTlb { source_id, .. }
                | Descriptor::PasidDeviceTlb { source_id, .. },
            ) = descriptor
                && device.is_none_or(|device| device == source_id)
            {
                memory.write(h, offset, memory.fence(false).encode());
                found = true;
            }
            offset = memory.behind(offset, 1);
        }
        found
    }

    /// Whether hardware has told that a submission is done, or its status word is used for it no
    /// longer.
    fn is_over<H: HostMemory>(&self, h: &H, word: u16) -> bool {
        let (Some(memory), Some(used)) = (self.memory.as_ref(), self.word(word)) else {
            return true;
        };
        match used.used {
            Use::Outstanding | Use::Retired => h.read64(memory.word_at(word)) as u32 == used.issued,
            Use::Free | Use::Failed => true,
        }
    }

    /// Moves all that is outstanding to `head`, where hardware goes on.
    fn run_again_from<H: HostMemory>(&mut self, h: &H, head: u32) {
        let Some(memory) = self.memory.as_ref() else {
            return;
        };
        let fetched = memory.distance(self.oldest, head);
        let kept = memory.distance(self.oldest, self.tail);
        memory.rotate(h, fetched);
        (self.oldest, self.tail) = (head, memory.behind(head, kept));
    }
}

impl QueueMemory {
    fn read<H: HostMemory>(&self, h: &H, offset: u32) -> RawDescriptor {
        let at = self.descriptor_at(offset).as_u64();
        let len = u64::from(self.width.len_bytes());
        RawDescriptor::from_words([0, 8, 16, 24].map(|within| {
            if within < len {
                h.read64(Hpa::new(at.saturating_add(within)))
            } else {
                0
            }
        }))
    }

    /// Moves every descriptor of the ring `count` places on, by three reversals: what is kept may
    /// be nearly the whole ring, so there is nowhere else to put it.
    fn rotate<H: HostMemory>(&self, h: &H, count: u32) {
        let places = self.places();
        if count == 0 || count >= places {
            return;
        }
        self.reverse(h, 0, places);
        self.reverse(h, 0, count);
        self.reverse(h, count, places.saturating_sub(count));
    }

    /// Puts `count` descriptors from place `first` on in the opposite order.
    fn reverse<H: HostMemory>(&self, h: &H, first: u32, count: u32) {
        for step in 0..count / 2 {
            let one = self.behind(0, first.wrapping_add(step));
            let other = self.behind(0, first.wrapping_add(count).wrapping_sub(step + 1));
            let (front, back) = (self.read(h, one), self.read(h, other));
            self.write(h, one, back);
            self.write(h, other, front);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::testing::{Bench, EXTENDED, ICE, IQE, ITE, up};
    use super::super::unit::UnitConfig;
    use super::*;
    use crate::arch::descriptor::{DeviceTlbRange, PasidCacheGranularity};
    use crate::arch::id::DomainId;
    use std::vec::Vec;

    const SILENT: SourceId = SourceId::from_u16(0x42);
    const OTHER: SourceId = SourceId::from_u16(0x50);

    fn domain(id: u16) -> Descriptor {
        Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Domain(DomainId::new(id)),
        }
    }

    fn device_tlb(source_id: SourceId) -> Descriptor {
        Descriptor::DeviceTlb {
            source_id,
            range: DeviceTlbRange::ALL,
            physical_function: SourceId::from_u16(0),
            max_pending: 0,
        }
    }

    /// A unit with device-TLBs, one of which is of a device that does not answer, and that fetches so
    /// many descriptors behind the one that the device ought to answer.
    fn with_silent_device(ahead: u64) -> Bench {
        let bench = up(|options| options.extended = EXTENDED | 1 << 2);
        bench.world().silent = Some((SILENT, ahead));
        bench
    }

    /// What has run and is no fence.
    fn executed(bench: &Bench) -> Vec<Descriptor> {
        let mut executed = bench.take_executed();
        executed.retain(|descriptor| !matches!(descriptor, Descriptor::Wait { .. }));
        executed
    }

    // §6.5.2.11: hardware stands at the descriptor; what was before it still completes.
    #[test]
    fn a_refused_descriptor_fails_its_own_submission_only() {
        for resumes_at_tail in [false, true] {
            let bench = up(|_| {});
            bench.world().resumes_at_tail = resumes_at_tail;
            let done = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
            bench.take_executed();
            bench.world().error_in = Some((1, IQE));
            let head = bench.world().head as u32 + 32;
            let refused = bench.unit.submit(&bench.h, &[domain(2), domain(3)]);
            let refused = refused.unwrap();
            let next = bench.unit.submit(&bench.h, &[domain(4)]).unwrap();
            let expected = QueueError::InvalidDescriptor {
                info: Some(QueueErrorInfo::ReservedBit),
                head,
            };
            assert_eq!(bench.unit.poll(&bench.h, &next), Ok(true));
            assert_eq!(bench.unit.poll(&bench.h, &refused), Err(expected));
            assert_eq!(bench.unit.poll(&bench.h, &done), Ok(true));
            assert_eq!(executed(&bench), [domain(2), domain(4)]);
            assert_eq!(bench.world().errors, 0);
            // The status word serves again, and the failure is remembered all the same.
            for _ in 0..600 {
                let ticket = bench.unit.submit(&bench.h, &[]).unwrap();
                bench.unit.wait(&bench.h, ticket).unwrap();
            }
            assert_eq!(bench.unit.poll(&bench.h, &refused), Err(expected));
            assert_eq!(bench.unit.statistics().queue_errors, 1);
        }
    }

    #[test]
    fn a_tail_that_hardware_refuses_costs_no_submission() {
        let bench = up(|_| {});
        bench.world().is_frozen = true;
        let ticket = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        bench.world().is_frozen = false;
        bench.world().errors = IQE;
        bench.world().options.forced = std::vec![(0xb0, 1)];
        assert_eq!(bench.unit.poll(&bench.h, &ticket), Ok(true));
    }

    // S49: everyone else's work is completed, whether it was fetched or not.
    #[test]
    fn a_silent_device_fails_what_waits_for_it_and_all_else_runs() {
        for ahead in 0..=9 {
            let bench = with_silent_device(ahead);
            let before = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
            bench.world().is_frozen = true;
            let batches = [
                std::vec![domain(2)],
                std::vec![domain(3), device_tlb(SILENT), device_tlb(OTHER)],
                std::vec![domain(4)],
                std::vec![domain(5), device_tlb(OTHER)],
            ];
            let tickets: Vec<_> = batches
                .iter()
                .map(|batch| bench.unit.submit(&bench.h, batch).unwrap())
                .collect();
            bench.take_executed();
            bench.world().is_frozen = false;
            let last = bench.unit.submit(&bench.h, &[domain(6)]).unwrap();
            let expected = QueueError::DeviceTimedOut {
                source_id: Some(SILENT),
            };
            for (index, ticket) in tickets.iter().enumerate() {
                let result = bench.unit.poll(&bench.h, ticket);
                let wanted = if index == 1 { Err(expected) } else { Ok(true) };
                assert_eq!(result, wanted, "{index}, {ahead} ahead");
            }
            assert_eq!(bench.unit.poll(&bench.h, &last), Ok(true));
            assert_eq!(bench.unit.poll(&bench.h, &before), Ok(true));
            let executed = executed(&bench);
            for id in 2..=6 {
                assert!(executed.contains(&domain(id)), "{id}, {ahead} ahead");
            }
            assert!(!executed.contains(&device_tlb(SILENT)));
            let statistics = bench.unit.statistics();
            assert_eq!((statistics.device_timeouts, statistics.timeouts), (1, 0));
        }
    }

    #[test]
    fn a_nearly_full_ring_runs_again_wherever_it_starts() {
        // 128 places, one always empty.
        for (start, ahead) in [(0, 127), (1, 126), (50, 127), (100, 60), (127, 1)] {
            let bench = with_silent_device(ahead);
            for _ in 0..start {
                let ticket = bench.unit.submit(&bench.h, &[]).unwrap();
                bench.unit.wait(&bench.h, ticket).unwrap();
            }
            bench.world().is_frozen = true;
            let hit = bench.unit.submit(&bench.h, &[device_tlb(SILENT)]).unwrap();
            let rest: Vec<_> = (0..25)
                .map(|id| {
                    let batch = [
                        domain(4 * id),
                        domain(4 * id + 1),
                        domain(4 * id + 2),
                        domain(4 * id + 3),
                    ];
                    bench.unit.submit(&bench.h, &batch).unwrap()
                })
                .collect();
            assert!(bench.unit.submit(&bench.h, &[]).is_err(), "it is full");
            bench.take_executed();
            bench.world().is_frozen = false;
            // Whatever is written to it, the unit goes on.
            bench
                .unit
                .registers
                .lock()
                .write32(Register32::FAULT_STATUS, 0);
            assert!(bench.unit.poll(&bench.h, &hit).is_err());
            for ticket in &rest {
                assert_eq!(bench.unit.poll(&bench.h, ticket), Ok(true), "{start}");
            }
            let wanted: Vec<_> = (0..100).map(domain).collect();
            assert_eq!(executed(&bench), wanted, "{start}");
        }
    }

    #[test]
    fn several_silent_devices_are_given_up_one_after_the_other() {
        let bench = with_silent_device(4);
        bench.world().is_frozen = true;
        let tickets = [SILENT, OTHER].map(|device| {
            let batch = [domain(device.as_u16()), device_tlb(device)];
            bench.unit.submit(&bench.h, &batch).unwrap()
        });
        let innocent = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        bench.world().is_frozen = false;
        bench
            .unit
            .registers
            .lock()
            .write32(Register32::FAULT_STATUS, 0);
        assert!(bench.unit.poll(&bench.h, &tickets[0]).is_err());
        assert_eq!(bench.unit.poll(&bench.h, &tickets[1]), Ok(true));
        bench.world().silent = Some((OTHER, 4));
        assert_eq!(bench.unit.poll(&bench.h, &innocent), Ok(true));
        let again = bench.unit.submit(&bench.h, &[device_tlb(OTHER)]).unwrap();
        assert_eq!(
            bench.unit.poll(&bench.h, &again),
            Err(QueueError::DeviceTimedOut {
                source_id: Some(OTHER)
            })
        );
    }

    // `ITESID` 0: the unit does not tell which device it was.
    #[test]
    fn an_unnamed_silent_device_fails_whatever_waits_for_a_device() {
        let bench = with_silent_device(0);
        bench.world().is_frozen = true;
        let waiting = bench.unit.submit(&bench.h, &[device_tlb(OTHER)]).unwrap();
        let other = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        bench.world().is_frozen = false;
        bench.world().errors = ITE;
        assert_eq!(
            bench.unit.poll(&bench.h, &waiting),
            Err(QueueError::DeviceTimedOut { source_id: None })
        );
        assert_eq!(bench.unit.poll(&bench.h, &other), Ok(true));
    }

    #[test]
    fn who_waits_behind_a_device_waits_as_long_as_hardware_does_for_it() {
        const DEVICES: u64 = 10_000_000;
        let bench = up(|options| {
            options.extended = EXTENDED | 1 << 2;
            options.config = UnitConfig {
                device_timeout_nanoseconds: DEVICES,
                ..options.config
            };
        });
        let timeout = bench.unit.config().timeout_nanoseconds;
        bench.world().is_frozen = true;
        let first = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        let waiting = bench.unit.submit(&bench.h, &[device_tlb(SILENT)]).unwrap();
        let behind = bench.unit.submit(&bench.h, &[domain(2)]).unwrap();
        bench.world().tick(timeout + 100_000);
        assert!(bench.unit.poll(&bench.h, &first).is_err());
        assert_eq!(bench.unit.poll(&bench.h, &behind), Ok(false));
        // Hardware gives the device up at the last moment: what is run again has its time anew.
        bench.world().tick(DEVICES - 200_000);
        bench.world().silent = Some((SILENT, 2));
        bench.world().is_frozen = false;
        bench.world().completion = super::super::testing::Completion::AfterNanoseconds(80_000);
        bench
            .unit
            .registers
            .lock()
            .write32(Register32::FAULT_STATUS, 0);
        assert_eq!(bench.unit.poll(&bench.h, &behind), Ok(false));
        assert!(bench.unit.poll(&bench.h, &waiting).is_err());
        assert_eq!(bench.unit.wait(&bench.h, behind), Ok(()));
    }

    #[test]
    fn heads_outside_what_is_kept_stop_the_queue() {
        let bench = up(|_| {});
        bench.world().is_frozen = true;
        let ticket = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        bench.world().errors = ITE;
        bench.world().options.forced = std::vec![(0x80, 0xfe0)];
        let error = bench.unit.poll(&bench.h, &ticket).unwrap_err();
        assert_eq!(error, QueueError::Head { value: 0xfe0 });
        assert_eq!(
            bench.unit.submit(&bench.h, &[]).unwrap_err(),
            QueueError::NotRunning
        );
    }

    // Written as 1, the fault overflow would be cleared as well (§11.4.7.1).
    #[test]
    fn an_unexpected_completion_stops_nothing_and_clears_no_fault() {
        let bench = up(|_| {});
        let overflow = FaultStatus::FAULT_OVERFLOW.bits();
        bench.world().is_frozen = true;
        let ticket = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        bench.world().is_frozen = false;
        bench.world().errors = ICE | overflow;
        assert_eq!(bench.unit.poll(&bench.h, &ticket), Ok(true));
        assert_eq!(bench.world().fault_status(), overflow);
        assert_eq!(bench.unit.statistics().completion_errors, 1);
    }
}
