//! The invalidation queue, its tickets and its errors (§6.5.2).
//!
//! A batch is queued whole, with one wait behind it that stores a value to a status word of its
//! own. Only that store proves completion: the head moves when descriptors are fetched, not when
//! they are done. So a submission keeps its place in the ring until it is over, and can be run again
//! ([`queue_recovery`](super::queue_recovery)). Each use of a status word stores another value, and a word whose wait was given
//! up is never used again, so that a late completion can be taken for no other.

use heapless::Deque;

use super::deadline::Deadline;
use super::error::QueueError;
use super::queue_memory::{PLACE_BYTES, QueueMemory, STATUS_WORDS};
pub use super::ticket::Ticket;
use super::unit::Unit;
use crate::arch::address::Hpa;
use crate::arch::descriptor::{
    ContextGranularity, Descriptor, IotlbGranularity, PasidCacheGranularity, WaitStatus,
};
use crate::arch::id::SourceId;
use crate::arch::register::{QueueErrorInfo, Register32, Register64};
use crate::mem::{HostMemory, Hypervisor, Registers};

/// What forgets all that a unit has cached for DMA, in the order of §6.5.3.
pub(super) const EVERYTHING: [Descriptor; 3] = [
    Descriptor::ContextCache {
        granularity: ContextGranularity::Global,
    },
    Descriptor::PasidCache {
        granularity: PasidCacheGranularity::Global,
    },
    Descriptor::Iotlb {
        granularity: IotlbGranularity::Global,
        drain_reads: true,
        drain_writes: true,
    },
];

/// As [`EVERYTHING`], in legacy mode: there is no PASID cache.
const EVERYTHING_LEGACY: [Descriptor; 2] = [EVERYTHING[0], EVERYTHING[2]];

/// What a status word is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    /// Nothing: it holds what it was last given.
    Free,
    /// The wait of a submission that is not known to be over.
    Outstanding,
    /// The wait of a submission that failed, and is still in the ring as a fence.
    Failed,
    /// Its wait was given up and may come late, so it is never used again.
    Retired,
}

/// Why a submission failed while the queue went on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// A device did not answer (`ITE`).
    DeviceTimedOut(Option<SourceId>),
    /// Hardware refused a descriptor (`IQE`), so many times 16 bytes behind the ring's start.
    Refused(Option<QueueErrorInfo>, u16),
}

impl Cause {
    const fn error(self) -> QueueError {
        match self {
            Self::DeviceTimedOut(source_id) => QueueError::DeviceTimedOut { source_id },
            Self::Refused(info, index) => QueueError::InvalidDescriptor {
                info,
                head: index as u32 * PLACE_BYTES,
            },
        }
    }
}

/// One status word.
#[derive(Clone, Copy, Debug)]
pub(super) struct StatusWord {
    /// The last value that it was or will be given.
    pub(super) issued: u32,
    /// The last of its submissions that failed; 0 if none has.
    pub(super) failed: u32,
    /// Why that one failed.
    pub(super) cause: Cause,
    pub(super) used: Use,
}

/// A submission whose descriptors are kept in the ring, to be run again if hardware aborts them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outstanding {
    /// Its status word.
    pub(super) word: u16,
    /// Number of its descriptors, the wait included.
    pub(super) length: u16,
    /// One of them waits for a device.
    pub(super) has_device_tlb: bool,
}

/// The state of a unit's queue; about 10 KiB.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) memory: Option<QueueMemory>,
    /// Hardware may know of the memory.
    is_exposed: bool,
    pub(super) is_running: bool,
    /// Offset behind the last descriptor, in bytes.
    pub(super) tail: u32,
    /// Offset of the first descriptor that is kept, in bytes.
    pub(super) oldest: u32,
    /// The submissions from `oldest` to `tail`, in their order.
    pub(super) outstanding: Deque<Outstanding, 512>,
    last_sequence: u64,
    /// Submissions up to this one that are not done never will be, because of `failure`.
    failed_sequence: u64,
    failure: QueueError,
    pub(super) words: [StatusWord; STATUS_WORDS as usize],
    next_word: u16,
    /// When the oldest of them is given up, in nanoseconds.
    oldest_deadline: u64,
    /// Submissions that were run again have their time anew: none is late before this moment, in
    /// nanoseconds.
    pub(super) not_late_before: u64,
}

impl Queue {
    pub(super) const fn new() -> Self {
        const FRESH: StatusWord = StatusWord {
            issued: 0,
            failed: 0,
            cause: Cause::DeviceTimedOut(None),
            used: Use::Free,
        };
        Self {
            memory: None,
            is_exposed: false,
            is_running: false,
            tail: 0,
            oldest: 0,
            outstanding: Deque::new(),
            last_sequence: 0,
            failed_sequence: 0,
            failure: QueueError::NotRunning,
            words: [FRESH; STATUS_WORDS as usize],
            next_word: 0,
            oldest_deadline: 0,
            not_late_before: 0,
        }
    }

    pub(super) const fn has_memory(&self) -> bool {
        self.memory.is_some()
    }

    pub(super) fn set_memory(&mut self, memory: QueueMemory) {
        self.memory = Some(memory);
    }

    /// The ring's address, to tell hardware: the memory stays with the unit from now on.
    pub(super) fn expose(&mut self) -> Option<Hpa> {
        let ring = self.memory.as_ref()?.ring.address();
        self.is_exposed = true;
        Some(ring)
    }

    pub(super) fn take_unexposed_memory(&mut self) -> Option<QueueMemory> {
        if self.is_exposed {
            None
        } else {
            self.memory.take()
        }
    }

    /// Hardware has started at offset 0.
    pub(super) fn start(&mut self) {
        self.stop();
        (self.tail, self.oldest) = (0, 0);
        self.is_running = true;
    }

    pub(super) fn stop(&mut self) {
        self.is_running = false;
        self.fail_all(QueueError::NotRunning);
        for word in &mut self.words {
            match word.used {
                // Its store may still come.
                Use::Outstanding => word.used = Use::Retired,
                Use::Failed => word.used = Use::Free,
                Use::Free | Use::Retired => {}
            }
        }
        self.outstanding.clear();
        self.oldest = self.tail;
    }

    /// Stops the queue if all that was submitted is over and hardware has passed it; whether it is.
    pub(super) fn stop_if_idle<H: HostMemory>(
        &mut self,
        h: &H,
        head: u64,
        now: u64,
        time: u64,
    ) -> bool {
        let place = self.memory.as_ref().map(|memory| memory.checked_head(head));
        let Some(Ok(head)) = place else {
            return false;
        };
        self.reclaim(h, head, now, time);
        let is_idle = self.is_running && self.outstanding.is_empty() && head == self.tail;
        if is_idle {
            self.stop();
        }
        is_idle
    }

    pub(super) fn fail_all(&mut self, failure: QueueError) {
        self.failed_sequence = self.last_sequence;
        self.failure = failure;
    }

    pub(super) fn word(&self, word: u16) -> Option<&StatusWord> {
        self.words.get(usize::from(word))
    }

    /// Marks a submission as failed. Its wait is in the ring no longer, so its status word is made
    /// to look as if it had been stored to.
    pub(super) fn fail<H: HostMemory>(&mut self, h: &H, word: u16, cause: Cause) {
        let Some(at) = self.memory.as_ref().map(|memory| memory.word_at(word)) else {
            return;
        };
        if let Some(word) = self.words.get_mut(usize::from(word))
            && word.used == Use::Outstanding
        {
            (word.failed, word.cause, word.used) = (word.issued, cause, Use::Failed);
            h.write64(at, u64::from(word.issued));
        }
    }

    /// Gives the ring back what submissions took that are over and that hardware has passed. One
    /// that nobody asks after is over, too, once it has been the oldest for its whole time.
    fn reclaim<H: HostMemory>(&mut self, h: &H, head: u32, now: u64, time: u64) {
        let Some(memory) = self.memory.as_ref() else {
            return;
        };
        while let Some(Outstanding { word, length, .. }) = self.outstanding.front().copied() {
            let length = u32::from(length);
            let Some(used) = self.words.get_mut(usize::from(word)) else {
                return;
            };
            let is_over = used.used != Use::Outstanding
                || h.read64(memory.word_at(word)) as u32 == used.issued;
            let is_given_up = now >= self.not_late_before.max(self.oldest_deadline);
            if !(is_over || is_given_up) || memory.distance(self.oldest, head) < length {
                return;
            }
            used.used = match used.used {
                Use::Outstanding if !is_over => Use::Retired,
                Use::Retired => Use::Retired,
                _ => Use::Free,
            };
            self.oldest = memory.behind(self.oldest, length);
            self.outstanding.pop_front();
            self.oldest_deadline = now.saturating_add(time);
        }
    }

    /// The whole number of a ticket's submission, if it is one of the last 2^32.
    const fn sequence_of(&self, ticket: &Ticket) -> u64 {
        let age = (self.last_sequence as u32).wrapping_sub(ticket.sequence());
        self.last_sequence.saturating_sub(age as u64)
    }

    /// Whether the status word of a ticket holds its value, or was given to a later submission,
    /// which only happens once the earlier one is over.
    fn is_done<H: HostMemory>(&self, h: &H, ticket: &Ticket) -> bool {
        let (Some(memory), Some(word)) = (self.memory.as_ref(), self.word(ticket.word())) else {
            return false;
        };
        word.failed != ticket.sequence()
            && (word.issued != ticket.sequence()
                || h.read64(memory.word_at(ticket.word())) as u32 == ticket.sequence())
    }

    /// Why the submission of a ticket that is not done never will be.
    fn failure_of(&self, ticket: &Ticket) -> Option<QueueError> {
        match self.word(ticket.word()) {
            Some(word) if word.failed == ticket.sequence() => Some(word.cause.error()),
            _ if self.sequence_of(ticket) <= self.failed_sequence => Some(self.failure),
            _ => None,
        }
    }

    /// Puts a status word aside for ever; `false` if it already was.
    fn retire(&mut self, word: u16) -> bool {
        match self.words.get_mut(usize::from(word)) {
            Some(word) if word.used != Use::Retired => {
                word.used = Use::Retired;
                true
            }
            _ => false,
        }
    }

    /// A status word that no store is outstanding to.
    fn find_word(&self) -> Option<u16> {
        (0..STATUS_WORDS)
            .filter_map(|step| self.next_word.wrapping_add(step).checked_rem(STATUS_WORDS))
            .find(|&word| self.word(word).is_some_and(|word| word.used == Use::Free))
    }

    /// The next number of a submission, for a status word: one that the word neither holds nor is
    /// remembered to have failed with.
    fn next_sequence(&self, word: &StatusWord) -> u64 {
        let mut next = self.last_sequence.wrapping_add(1);
        for _ in 0..3 {
            if [0, word.issued, word.failed].contains(&(next as u32)) {
                // After 2^32 submissions.
                next = next.wrapping_add(1);
            }
        }
        next
    }
}

impl<R: Registers> Unit<R> {
    /// Queues a batch of descriptors with one wait behind them, by one write to the tail register.
    ///
    /// A wait in the batch may only be a fence; it is given a status word that nobody looks at.
    /// The batch need not end in one.
    ///
    /// # Errors
    ///
    /// [`QueueError::NotRunning`], [`QueueError::Full`], [`QueueError::StatusWordsExhausted`],
    /// [`QueueError::Descriptor`], [`QueueError::Wait`] or [`QueueError::Head`]; nothing was queued
    /// then.
    pub fn submit<H: Hypervisor>(&self, h: &H, batch: &[Descriptor]) -> Result<Ticket, QueueError> {
        for (index, descriptor) in batch.iter().enumerate() {
            if let Descriptor::Wait {
                status, interrupt, ..
            } = descriptor
                && (status.is_some() || *interrupt)
            {
                return Err(QueueError::Wait { index });
            }
            // Hardware would stop at it, and fail everybody's submissions.
            descriptor
                .encode()
                .decode(self.descriptor_width(), self.table_mode(), &self.features)
                .map_err(|error| QueueError::Descriptor { index, error })?;
        }
        let result = self.submit_valid(h, batch);
        match result {
            Ok(_) => {
                self.counters.submissions.add(1);
                self.counters.descriptors.add(batch.len() as u64);
            }
            Err(QueueError::Full { .. } | QueueError::StatusWordsExhausted { .. }) => {
                self.counters.full.add(1);
            }
            Err(_) => {}
        }
        result
    }

    fn submit_valid<H: Hypervisor>(
        &self,
        h: &H,
        batch: &[Descriptor],
    ) -> Result<Ticket, QueueError> {
        let has_device_tlb = batch.iter().any(|descriptor| {
            matches!(
                descriptor,
                Descriptor::DeviceTlb { .. } | Descriptor::PasidDeviceTlb { .. }
            )
        });
        let now = h.now_nanoseconds();
        let mut queue = self.queue.lock();
        if !queue.is_running {
            return Err(QueueError::NotRunning);
        }
        let wanted = u32::try_from(batch.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        if self.room(h, &mut queue, wanted, now).is_err() {
            // It may be full because it stands at an error that nobody has looked for.
            self.recover(h, &mut queue)?;
        }
        self.room(h, &mut queue, wanted, now)?;
        let queue = &mut *queue;
        let memory = queue.memory.as_ref().ok_or(QueueError::NotRunning)?;
        let exhausted = QueueError::StatusWordsExhausted {
            capacity: STATUS_WORDS,
        };
        let word = queue.find_word().ok_or(exhausted)?;
        let used = queue.word(word).ok_or(exhausted)?;
        let sequence = queue.next_sequence(used);
        let length = u16::try_from(wanted).unwrap_or(u16::MAX);
        queue
            .outstanding
            .push_back(Outstanding {
                word,
                length,
                has_device_tlb,
            })
            .map_err(|_| exhausted)?;
        // Nothing can fail from here on.
        let value = sequence as u32;
        queue.last_sequence = sequence;
        if let Some(used) = queue.words.get_mut(usize::from(word)) {
            (used.issued, used.used) = (value, Use::Outstanding);
        }
        let at = memory.word_at(word);
        let wait = Descriptor::Wait {
            status: Some(WaitStatus {
                address: at.as_u64(),
                data: value,
            }),
            interrupt: false,
            fence: false,
            page_request_drain: false,
        };
        let mut offset = queue.tail;
        for descriptor in batch.iter().chain([&wait]) {
            let descriptor = match descriptor {
                Descriptor::Wait {
                    status: None,
                    page_request_drain,
                    ..
                } => memory.fence(*page_request_drain),
                other => *other,
            };
            memory.write(h, offset, descriptor.encode());
            offset = memory.behind(offset, 1);
        }
        queue.tail = offset;
        queue.next_word = word.wrapping_add(1);
        // The descriptors before the tail that shows them.
        h.fence();
        self.write_tail(offset);
        let deadline = now.saturating_add(self.time_of(queue));
        if queue.outstanding.len() == 1 {
            queue.oldest_deadline = deadline;
        }
        Ok(Ticket::new(queue.last_sequence, word, deadline))
    }

    /// How long hardware may take for what is submitted now, in nanoseconds: devices before it in the
    /// queue may keep it from being done until hardware gives them up.
    pub fn submission_timeout(&self) -> u64 {
        self.time_of(&self.queue.lock())
    }

    fn time_of(&self, queue: &Queue) -> u64 {
        let time = self.config.timeout_nanoseconds;
        if queue.outstanding.iter().any(|other| other.has_device_tlb) {
            time.saturating_add(self.config.device_timeout_nanoseconds)
        } else {
            time
        }
    }

    /// Whether `wanted` descriptors fit; one place always stays empty.
    fn room<H: HostMemory>(
        &self,
        h: &H,
        queue: &mut Queue,
        wanted: u32,
        now: u64,
    ) -> Result<(), QueueError> {
        let memory = queue.memory.as_ref().ok_or(QueueError::NotRunning)?;
        let capacity = memory.places().saturating_sub(1);
        let head = memory.checked_head(self.read_head())?;
        let time = self.time_of(queue);
        queue.reclaim(h, head, now, time);
        let memory = queue.memory.as_ref().ok_or(QueueError::NotRunning)?;
        let free = capacity.saturating_sub(memory.distance(queue.oldest, queue.tail));
        if wanted > free {
            return Err(QueueError::Full {
                capacity,
                free,
                wanted,
            });
        }
        Ok(())
    }

    pub(super) fn read_head(&self) -> u64 {
        let register = Register64::INVALIDATION_QUEUE_HEAD;
        self.registers.lock().read64(register)
    }

    fn write_tail(&self, offset: u32) {
        let register = Register64::INVALIDATION_QUEUE_TAIL;
        self.registers.lock().write64(register, u64::from(offset));
    }

    /// Whether a submission is done. Does not wait.
    ///
    /// A submission that timed out may still complete later; `true` is right then, too.
    ///
    /// # Errors
    ///
    /// [`QueueError::TimedOut`] after the configured time; [`QueueError::InvalidDescriptor`] and
    /// [`QueueError::DeviceTimedOut`] if hardware refused a descriptor of this submission or a device
    /// did not answer one, in which case the queue goes on without it and every other submission is
    /// completed; [`QueueError::NotRunning`] if the queue was stopped; [`QueueError::Head`] and
    /// [`QueueError::Lost`] if the unit does not make sense any more.
    pub fn poll<H: Hypervisor>(&self, h: &H, ticket: &Ticket) -> Result<bool, QueueError> {
        let mut queue = self.queue.lock();
        if queue.is_done(h, ticket) {
            return Ok(true);
        }
        let recovered = self.recover(h, &mut queue);
        // The store may have come since, and is the truth whatever else went wrong.
        if queue.is_done(h, ticket) {
            return Ok(true);
        }
        recovered?;
        if let Some(failure) = queue.failure_of(ticket) {
            return Err(failure);
        }
        let now = h.now_nanoseconds();
        if ticket.is_late(now) && now >= queue.not_late_before {
            return Err(self.give_up(&mut queue, ticket));
        }
        Ok(false)
    }

    /// Waits until a submission is done, for the configured time at most, and for as long again as
    /// devices that do not answer hold the queue up.
    ///
    /// # Errors
    ///
    /// As [`poll`](Self::poll).
    pub fn wait<H: Hypervisor>(&self, h: &H, ticket: Ticket) -> Result<(), QueueError> {
        self.counters.waits.add(1);
        // By the clock, the ticket ends it.
        let mut still_clock = Deadline::after(h, u64::MAX);
        let mut is_last = false;
        loop {
            if self.poll(h, &ticket)? {
                return Ok(());
            }
            if is_last {
                return Err(self.give_up(&mut self.queue.lock(), &ticket));
            }
            is_last = !still_clock.pause(h);
        }
    }

    /// Forgets everything that the unit has cached for DMA: context cache, PASID cache, IOTLB, all
    /// of them whole. Waits for it.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit) and [`poll`](Self::poll).
    pub fn invalidate_everything<H: Hypervisor>(&self, h: &H) -> Result<(), QueueError> {
        let ticket = self.submit(h, self.everything())?;
        self.wait(h, ticket)
    }

    /// What forgets all that the unit has cached for DMA.
    pub(super) const fn everything(&self) -> &'static [Descriptor] {
        if self.is_scalable() {
            &EVERYTHING
        } else {
            &EVERYTHING_LEGACY
        }
    }

    fn give_up(&self, queue: &mut Queue, ticket: &Ticket) -> QueueError {
        if queue.retire(ticket.word()) {
            self.counters.timeouts.add(1);
        }
        QueueError::TimedOut {
            sequence: queue.sequence_of(ticket),
            head: self.read_head(),
            fault_status: self.registers.lock().read32(Register32::FAULT_STATUS),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::testing::{Completion, EXTENDED, Event, IQE, bench, up};
    use super::*;
    use crate::arch::descriptor::DescriptorError;
    use crate::arch::id::{DomainId, Pasid, SourceId};
    use crate::arch::register::FaultStatus;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    fn domain(id: u16) -> Descriptor {
        Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Domain(DomainId::new(id)),
        }
    }

    const FENCE: Descriptor = Descriptor::Wait {
        status: None,
        interrupt: false,
        fence: true,
        page_request_drain: false,
    };

    fn statuses(descriptors: &[Descriptor]) -> Vec<WaitStatus> {
        descriptors
            .iter()
            .filter_map(|descriptor| match descriptor {
                Descriptor::Wait { status, .. } => *status,
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_batch_is_queued_whole_with_one_wait_and_one_tail_write() {
        let bench = up(|_| {});
        let batch = [domain(1), FENCE, domain(2)];
        let ticket = bench.unit.submit(&bench.h, &batch).unwrap();
        let log = bench.take_log();
        // Descriptors, a fence, and then the tail.
        let tails: Vec<_> = log
            .iter()
            .filter(|event| matches!(event, Event::Register(..)))
            .collect();
        assert_eq!(tails.len(), 1);
        assert!(matches!(
            log[log.len() - 2..],
            [Event::Fence, Event::Register(0x88, _)]
        ));
        let executed = bench.take_executed();
        assert_eq!((executed[0], executed[2]), (batch[0], batch[2]));
        assert_eq!(executed.len(), 4);
        // The fence stores to a word of its own, and orders.
        assert!(matches!(executed[1], Descriptor::Wait { fence: true, .. }));
        let statuses = statuses(&executed);
        assert_ne!(statuses[0].address, statuses[1].address);
        assert_eq!(bench.unit.poll(&bench.h, &ticket), Ok(true));
        assert_eq!(bench.unit.wait(&bench.h, ticket), Ok(()));
        let statistics = bench.unit.statistics();
        assert_eq!(
            (
                statistics.submissions,
                statistics.descriptors,
                statistics.waits
            ),
            (2, 6, 2)
        );
    }

    #[test]
    fn the_ring_wraps_and_no_status_value_is_used_twice_in_a_word() {
        let bench = up(|_| {});
        let mut seen = BTreeSet::new();
        for _ in 0..1100 {
            let ticket = bench
                .unit
                .submit(&bench.h, &[domain(1), domain(2)])
                .unwrap();
            bench.unit.wait(&bench.h, ticket).unwrap();
            for status in statuses(&bench.take_executed()) {
                assert!(seen.insert((status.address, status.data)), "{status:?}");
            }
            bench.take_log();
        }
        assert_eq!(seen.len(), 1100);
    }

    #[test]
    fn a_batch_that_does_not_fit_changes_nothing() {
        let bench = up(|_| {});
        bench.world().is_frozen = true;
        // 128 descriptors in a page, one place always empty.
        let too_long = [domain(1); 127];
        let full = |free, wanted| QueueError::Full {
            capacity: 127,
            free,
            wanted,
        };
        let tail = bench.world().tail;
        let error = bench.unit.submit(&bench.h, &too_long).unwrap_err();
        assert_eq!(error, full(127, 128));
        let ticket = bench.unit.submit(&bench.h, &[domain(1); 120]).unwrap();
        bench.take_log();
        let error = bench.unit.submit(&bench.h, &[domain(1); 6]).unwrap_err();
        assert_eq!(error, full(6, 7));
        let stores = bench.take_log();
        assert!(stores.is_empty(), "{stores:?}");
        // It just fits, and goes once around the ring.
        let last = bench.unit.submit(&bench.h, &[domain(2); 5]).unwrap();
        assert_eq!(bench.world().tail, (tail + 127 * 32) % 4096);
        assert_eq!(bench.unit.poll(&bench.h, &last), Ok(false));
        bench.world().is_frozen = false;
        let more = bench.unit.submit(&bench.h, &[]);
        assert_eq!(more.unwrap_err(), full(0, 1));
        let fault_status = Register32::FAULT_STATUS;
        bench.unit.registers.lock().write32(fault_status, 0);
        for ticket in [ticket, last] {
            assert_eq!(bench.unit.poll(&bench.h, &ticket), Ok(true));
        }
        assert_eq!(bench.unit.statistics().full, 3);
    }

    #[test]
    fn descriptors_that_hardware_would_stop_at_are_refused() {
        let bench = up(|_| {});
        let large = Descriptor::Iotlb {
            granularity: IotlbGranularity::Page {
                domain_id: DomainId::new(1),
                address: 0,
                address_mask: 19,
                leaf_hint: false,
            },
            drain_reads: false,
            drain_writes: false,
        };
        let wait = |status, interrupt| Descriptor::Wait {
            status,
            interrupt,
            fence: true,
            page_request_drain: false,
        };
        let status = WaitStatus {
            address: 0x1000,
            data: 1,
        };
        for (descriptor, expected) in [
            (
                large,
                QueueError::Descriptor {
                    index: 1,
                    error: DescriptorError::AddressMask {
                        mask: 19,
                        maximum: 18,
                    },
                },
            ),
            (wait(Some(status), false), QueueError::Wait { index: 1 }),
            (wait(None, true), QueueError::Wait { index: 1 }),
        ] {
            let batch = [domain(1), descriptor];
            assert_eq!(bench.unit.submit(&bench.h, &batch).unwrap_err(), expected);
        }
        assert!(bench.take_log().is_empty());
        let down = super::super::testing::bench(|_| {});
        let error = down.unit.submit(&down.h, &[]).unwrap_err();
        assert_eq!(error, QueueError::NotRunning);
    }

    #[test]
    fn head_equal_to_tail_proves_nothing() {
        let bench = up(|_| {});
        bench.world().completion = Completion::Never;
        let ticket = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        {
            let world = bench.world();
            assert_eq!(world.head, world.tail);
        }
        assert_eq!(bench.unit.poll(&bench.h, &ticket), Ok(false));
        let error = bench.unit.wait(&bench.h, ticket).unwrap_err();
        assert!(matches!(error, QueueError::TimedOut { sequence: 2, .. }));
        assert_eq!(bench.unit.statistics().timeouts, 1);
    }

    #[test]
    fn a_late_completion_is_taken_for_no_other_ticket() {
        let bench = up(|_| {});
        bench.world().completion = Completion::AfterNanoseconds(500_000);
        let late = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        let late_status = statuses(&bench.take_executed())[0];
        bench.world().tick(200_000);
        assert!(matches!(
            bench.unit.poll(&bench.h, &late),
            Err(QueueError::TimedOut { .. })
        ));
        // The word is never used again, however many follow.
        bench.world().completion = Completion::Never;
        let mut tickets = Vec::new();
        for _ in 0..60 {
            tickets.push(bench.unit.submit(&bench.h, &[domain(2)]).unwrap());
        }
        bench.world().tick(500_000);
        for ticket in &tickets {
            assert!(bench.unit.poll(&bench.h, ticket).is_err(), "{ticket:?}");
        }
        // What completed late is complete.
        assert_eq!(bench.unit.poll(&bench.h, &late), Ok(true));
        bench.world().completion = Completion::Now;
        bench.take_executed();
        for _ in 0..1100 {
            let ticket = bench.unit.submit(&bench.h, &[]).unwrap();
            bench.unit.wait(&bench.h, ticket).unwrap();
            let status = statuses(&bench.take_executed())[0];
            assert_ne!(status.address, late_status.address);
        }
        assert_eq!(bench.unit.statistics().timeouts, 61);
    }

    #[test]
    fn a_word_whose_ticket_was_dropped_is_used_again_only_after_its_store() {
        // Given up, because it was the oldest for the whole time, or not.
        for is_late in [false, true] {
            let bench = up(|options| options.config.queue_order = 3);
            bench.world().completion = Completion::AfterNanoseconds(10_000_000);
            drop(bench.unit.submit(&bench.h, &[]).unwrap());
            let busy = statuses(&bench.take_executed())[0].address;
            bench.world().completion = Completion::Now;
            bench.world().clock_step = 1;
            let submit = || {
                let ticket = bench.unit.submit(&bench.h, &[])?;
                bench.unit.wait(&bench.h, ticket).unwrap();
                Ok(statuses(&bench.take_executed())[0].address)
            };
            let words: BTreeSet<u64> = (0..510).map(|_| submit().unwrap()).collect();
            assert!(!words.contains(&busy));
            let exhausted = QueueError::StatusWordsExhausted { capacity: 511 };
            assert_eq!(submit(), Err(exhausted));
            bench
                .world()
                .tick(if is_late { 200_000 } else { 10_000_000 });
            let words: BTreeSet<u64> = (0..511).map(|_| submit().unwrap()).collect();
            assert_eq!(words.contains(&busy), !is_late);
        }
    }

    #[test]
    fn status_words_run_out_with_a_typed_error() {
        let bench = up(|options| options.config.queue_order = 7);
        bench.world().completion = Completion::Never;
        for _ in 0..511 {
            drop(bench.unit.submit(&bench.h, &[]).unwrap());
        }
        assert_eq!(
            bench.unit.submit(&bench.h, &[]).unwrap_err(),
            QueueError::StatusWordsExhausted { capacity: 511 }
        );
    }

    #[test]
    fn a_queue_that_is_full_because_it_stands_is_set_going_again() {
        let bench = up(|_| {});
        bench.world().error_in = Some((0, IQE));
        let ticket = bench.unit.submit(&bench.h, &[domain(1); 126]).unwrap();
        let next = bench.unit.submit(&bench.h, &[domain(2)]).unwrap();
        assert_eq!(bench.unit.wait(&bench.h, next), Ok(()));
        assert!(matches!(
            bench.unit.poll(&bench.h, &ticket),
            Err(QueueError::InvalidDescriptor { .. })
        ));
    }

    #[test]
    fn recovery_clears_the_errors_of_the_queue_and_no_fault() {
        // Written as 1, the fault overflow would be cleared as well (§11.4.7.1).
        let bench = up(|_| {});
        let overflow = FaultStatus::FAULT_OVERFLOW.bits();
        bench.world().errors |= overflow;
        bench.world().error_in = Some((0, IQE));
        let ticket = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        assert!(bench.unit.poll(&bench.h, &ticket).is_err());
        assert_eq!(bench.world().fault_status(), overflow);
    }

    #[test]
    fn heads_and_registers_that_make_no_sense_are_never_used() {
        for head in [0x10u64, 4096, 0x7_ffe0, u64::MAX] {
            let bench = up(|_| {});
            let ticket = {
                bench.world().completion = Completion::Never;
                bench.unit.submit(&bench.h, &[]).unwrap()
            };
            bench.world().options.forced = std::vec![(0x80, head)];
            let error = bench.unit.submit(&bench.h, &[]).unwrap_err();
            assert_eq!(error, QueueError::Head { value: head });
            bench.world().errors = IQE;
            let error = bench.unit.poll(&bench.h, &ticket).unwrap_err();
            assert_eq!(error, QueueError::Head { value: head });
            // Nothing can be queued any more.
            let error = bench.unit.submit(&bench.h, &[]).unwrap_err();
            assert_eq!(error, QueueError::NotRunning);
        }
        let bench = up(|_| {});
        bench.world().completion = Completion::Never;
        let ticket = bench.unit.submit(&bench.h, &[]).unwrap();
        bench.world().gone = true;
        assert_eq!(bench.unit.poll(&bench.h, &ticket), Err(QueueError::Lost));
    }

    #[test]
    fn an_unexpected_completion_is_counted_and_stops_nothing() {
        let bench = up(|_| {});
        bench.world().completion = Completion::AfterNanoseconds(20_000);
        let ticket = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        bench.world().errors = 1 << 5;
        assert_eq!(bench.unit.wait(&bench.h, ticket), Ok(()));
        assert_eq!(bench.unit.statistics().completion_errors, 1);
        assert_eq!(bench.world().errors, 0);
    }

    #[test]
    fn submissions_are_told_apart_beyond_32_bits_of_their_number() {
        let bench = up(|_| {});
        let old = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        let start = u64::from(u32::MAX) - 2;
        bench.unit.queue.lock().last_sequence = start;
        let tickets: Vec<_> = (0..6)
            .map(|_| {
                let ticket = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
                (bench.unit.queue.lock().last_sequence, ticket)
            })
            .collect();
        // 2^32 is left out: fresh words hold its value.
        assert_eq!(tickets.last().unwrap().0, start + 7);
        for (number, ticket) in &tickets {
            assert_eq!(bench.unit.queue.lock().sequence_of(ticket), *number);
            assert_eq!(bench.unit.poll(&bench.h, ticket), Ok(true));
        }
        assert_eq!(bench.unit.poll(&bench.h, &old), Ok(true));
        // A number that the next word already holds is left out.
        let mut queue = bench.unit.queue.lock();
        let word = usize::from(queue.next_word);
        let taken = queue.last_sequence as u32 + 1;
        (queue.words[word].issued, queue.words[word].failed) = (taken, taken + 1);
        let at = queue.memory.as_ref().unwrap().word_at(word as u16);
        bench.h.write64(at, u64::from(taken));
        let before = queue.last_sequence;
        drop(queue);
        bench.world().completion = Completion::Never;
        let ticket = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        assert_eq!(u64::from(ticket.sequence()), (before + 3) & 0xffff_ffff);
        assert_eq!(bench.unit.poll(&bench.h, &ticket), Ok(false));
    }

    #[test]
    fn a_failure_long_ago_fails_no_later_submission() {
        let bench = up(|_| {});
        bench.unit.queue.lock().failed_sequence = 1;
        bench.unit.queue.lock().last_sequence = 0xc000_0000;
        bench.world().completion = Completion::Never;
        let ticket = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        assert_eq!(bench.unit.poll(&bench.h, &ticket), Ok(false));
    }

    #[test]
    fn a_ticket_of_a_word_that_served_again_is_done() {
        let bench = up(|_| {});
        let old = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        let first = bench.unit.queue.lock().next_word;
        for _ in 0..STATUS_WORDS {
            let ticket = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
            bench.unit.wait(&bench.h, ticket).unwrap();
        }
        assert_eq!(bench.unit.queue.lock().next_word, first);
        bench.world().completion = Completion::Never;
        let _waiting = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        assert_eq!(bench.unit.poll(&bench.h, &old), Ok(true));
    }

    #[test]
    fn a_wait_ends_though_the_clock_stands_still() {
        let bench = up(|_| {});
        bench.world().completion = Completion::Never;
        bench.world().clock_step = 0;
        let ticket = bench.unit.submit(&bench.h, &[]).unwrap();
        assert!(matches!(
            bench.unit.wait(&bench.h, ticket),
            Err(QueueError::TimedOut { .. })
        ));
    }

    #[test]
    fn all_descriptor_types_that_the_unit_has_pass_the_check() {
        let bench = bench(|options| options.extended = EXTENDED | 1 << 2);
        bench.unit.bring_up(&bench.h).unwrap();
        let pasid = Pasid::new(5).unwrap();
        let batch = [
            EVERYTHING[0],
            Descriptor::PasidCache {
                granularity: PasidCacheGranularity::Pasid {
                    domain_id: DomainId::new(3),
                    pasid,
                },
            },
            Descriptor::PasidIotlb {
                domain_id: DomainId::new(3),
                pasid,
                granularity: crate::arch::descriptor::PasidIotlbGranularity::All,
            },
            FENCE,
            Descriptor::DeviceTlb {
                source_id: SourceId::from_u16(8),
                range: crate::arch::descriptor::DeviceTlbRange::ALL,
                physical_function: SourceId::from_u16(0),
                max_pending: 0,
            },
        ];
        let ticket = bench.unit.submit(&bench.h, &batch).unwrap();
        assert_eq!(bench.unit.wait(&bench.h, ticket), Ok(()));
    }
}
