//! The invalidation queue, its tickets and its errors (§6.5.2).
//!
//! A batch is queued whole, with one wait behind it that stores a value to a status word of its
//! own. Only that store proves completion: the head moves when descriptors are fetched, not when
//! they are done. Each use of a status word stores another value, and a word whose wait was given
//! up is never used again, so that a late completion can be taken for no other.

use super::deadline::Deadline;
use super::error::QueueError;
use super::unit::Unit;
use crate::arch::address::Hpa;
use crate::arch::descriptor::{
    ContextGranularity, Descriptor, IotlbGranularity, PasidCacheGranularity, RawDescriptor,
    WaitStatus,
};
use crate::arch::register::{
    DescriptorWidth, FaultStatus, QueueErrorRecord, Register32, Register64,
};
use crate::mem::{FrameRun, HostMemory, Hypervisor, Registers};

/// Status words take a quadword each, of which hardware writes the lower half.
const STATUS_WORD_BYTES: u64 = 8;
/// One page of status words, the last of them for waits that nobody looks at.
const STATUS_WORDS: u16 = 511;
const UNWATCHED_WORD: u16 = 511;

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

/// The right to ask whether a submission is done.
///
/// Dropping it loses nothing but the answer. It is kept by every binding that waits, and therefore
/// takes 12 bytes of no alignment.
#[must_use = "nothing is known to be invalidated before the ticket is confirmed"]
#[derive(Debug)]
pub struct Ticket {
    /// The lower half of the submission's number, which is what its wait stores.
    sequence: [u8; 4],
    /// The status word that it stores to.
    word: [u8; 2],
    /// In ticks.
    deadline: [u8; 6],
}

/// Binary logarithm of the nanoseconds of a tick: 48 bits of them hold any time of 64 bits.
const TICK_ORDER: u32 = 16;

impl Ticket {
    fn new(sequence: u64, word: u16, deadline_nanoseconds: u64) -> Self {
        // Rounded up, so that nothing is late before its time.
        let ticks = (deadline_nanoseconds >> TICK_ORDER).saturating_add(1);
        let [a, b, c, d, e, f, ..] = ticks.min((1 << 48) - 1).to_le_bytes();
        Self {
            sequence: (sequence as u32).to_le_bytes(),
            word: word.to_le_bytes(),
            deadline: [a, b, c, d, e, f],
        }
    }

    /// The number of the submission, counted from 1 by the unit, modulo 2^32.
    pub const fn sequence(&self) -> u32 {
        u32::from_le_bytes(self.sequence)
    }

    const fn word(&self) -> u16 {
        u16::from_le_bytes(self.word)
    }

    /// Whether the time is up; at most 66 microseconds late.
    const fn is_late(&self, now_nanoseconds: u64) -> bool {
        let [a, b, c, d, e, f] = self.deadline;
        now_nanoseconds >> TICK_ORDER >= u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

/// The frames of the queue.
#[derive(Debug)]
pub(super) struct QueueMemory {
    pub(super) ring: FrameRun,
    pub(super) status: FrameRun,
    /// Of each descriptor.
    pub(super) width: DescriptorWidth,
}

impl QueueMemory {
    /// Length of the ring in bytes: a power of two, at most 512 KiB.
    const fn ring_bytes(&self) -> u32 {
        self.ring.len_bytes() as u32
    }

    fn descriptor_at(&self, offset: u32) -> Hpa {
        let offset = u64::from(offset & self.ring_bytes().wrapping_sub(1));
        Hpa::new(self.ring.address().as_u64().saturating_add(offset))
    }

    fn word_at(&self, word: u16) -> Hpa {
        let offset = u64::from(word) * STATUS_WORD_BYTES;
        Hpa::new(self.status.address().as_u64().saturating_add(offset))
    }

    /// The offset behind the descriptor at `offset`.
    const fn next(&self, offset: u32) -> u32 {
        offset.wrapping_add(self.width.len_bytes()) & self.ring_bytes().wrapping_sub(1)
    }

    /// Binary logarithm of a descriptor's length in bytes.
    const fn descriptor_order(&self) -> u32 {
        self.width.len_bytes().trailing_zeros()
    }

    /// Number of descriptors from `head` to `tail`.
    const fn distance(&self, head: u32, tail: u32) -> u32 {
        (tail.wrapping_sub(head) & self.ring_bytes().wrapping_sub(1)) >> self.descriptor_order()
    }

    /// The head register's value, if it is the place of a descriptor.
    const fn checked_head(&self, value: u64) -> Result<u32, QueueError> {
        if value < self.ring_bytes() as u64 && value.is_multiple_of(self.width.len_bytes() as u64) {
            Ok(value as u32)
        } else {
            Err(QueueError::Head { value })
        }
    }

    fn write<H: HostMemory>(&self, h: &H, offset: u32, descriptor: RawDescriptor) {
        let mut at = self.descriptor_at(offset);
        let quadwords = self.width.len_bytes() as usize / 8;
        for quadword in descriptor.words().into_iter().take(quadwords) {
            h.write64(at, quadword);
            at = Hpa::new(at.as_u64().saturating_add(8));
        }
    }

    /// A wait that only orders. It stores to a word that nobody looks at, because a wait that does
    /// nothing at all is an error to some emulators. As a fence it keeps what is before it from
    /// being left out of what a later wait proves (§6.5.2.12).
    fn fence(&self, page_request_drain: bool) -> Descriptor {
        Descriptor::Wait {
            status: Some(WaitStatus {
                address: self.word_at(UNWATCHED_WORD).as_u64(),
                data: 0,
            }),
            interrupt: false,
            fence: true,
            page_request_drain,
        }
    }
}

/// The state of a unit's queue; about 2 KiB.
#[derive(Debug)]
pub(super) struct Queue {
    memory: Option<QueueMemory>,
    /// Hardware may know of the memory.
    is_exposed: bool,
    is_running: bool,
    /// Offset behind the last descriptor, in bytes.
    tail: u32,
    last_sequence: u64,
    /// Submissions up to this one that are not done never will be, because of `failure`.
    failed_sequence: u64,
    failure: QueueError,
    /// The last value that each status word was or will be given.
    issued: [u32; STATUS_WORDS as usize],
    /// Status words whose wait was given up.
    retired: [u64; 8],
    next_word: u16,
}

impl Queue {
    pub(super) const fn new() -> Self {
        Self {
            memory: None,
            is_exposed: false,
            is_running: false,
            tail: 0,
            last_sequence: 0,
            failed_sequence: 0,
            failure: QueueError::NotRunning,
            issued: [0; STATUS_WORDS as usize],
            retired: [0; 8],
            next_word: 0,
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
        self.tail = 0;
        self.is_running = true;
    }

    pub(super) fn stop(&mut self) {
        self.is_running = false;
        self.fail_all(QueueError::NotRunning);
    }

    fn fail_all(&mut self, failure: QueueError) {
        self.failed_sequence = self.last_sequence;
        self.failure = failure;
    }

    fn is_retired(&self, word: u16) -> bool {
        let bits = self.retired.get(usize::from(word) / 64);
        bits.is_none_or(|bits| bits >> (word % 64) & 1 == 1)
    }

    /// The whole number of a ticket's submission, if it is one of the last 2^32.
    const fn sequence_of(&self, ticket: &Ticket) -> u64 {
        let age = (self.last_sequence as u32).wrapping_sub(ticket.sequence());
        self.last_sequence.saturating_sub(age as u64)
    }

    /// Whether the status word of a ticket holds its value, or was given to a later submission,
    /// which only happens once the earlier one is over.
    fn is_done<H: HostMemory>(&self, h: &H, ticket: &Ticket) -> bool {
        let (Some(memory), Some(issued)) = (
            self.memory.as_ref(),
            self.issued.get(usize::from(ticket.word())),
        ) else {
            return false;
        };
        *issued != ticket.sequence()
            || h.read64(memory.word_at(ticket.word())) as u32 == ticket.sequence()
    }

    /// Puts a status word aside for ever; `false` if it already was.
    fn retire(&mut self, word: u16) -> bool {
        let was_retired = self.is_retired(word);
        if let Some(bits) = self.retired.get_mut(usize::from(word) / 64) {
            *bits |= 1 << (word % 64);
        }
        !was_retired
    }

    /// A status word that holds what it was last given, so that no store to it is outstanding.
    fn find_word<H: HostMemory>(&self, h: &H, memory: &QueueMemory) -> Option<u16> {
        (0..STATUS_WORDS)
            .filter_map(|step| self.next_word.wrapping_add(step).checked_rem(STATUS_WORDS))
            .find(|&word| {
                let issued = self.issued.get(usize::from(word));
                !self.is_retired(word)
                    && issued.is_some_and(|&issued| h.read64(memory.word_at(word)) as u32 == issued)
            })
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
        let deadline = h
            .now_nanoseconds()
            .saturating_add(self.config.timeout_nanoseconds);
        let result = self.submit_valid(h, batch, deadline);
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
        deadline_nanoseconds: u64,
    ) -> Result<Ticket, QueueError> {
        let mut queue = self.queue.lock();
        if !queue.is_running {
            return Err(QueueError::NotRunning);
        }
        let wanted = u32::try_from(batch.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        if self.room(&queue, wanted).is_err() {
            // It may be full because it stands at an error that nobody has looked for.
            self.recover(h, &mut queue)?;
        }
        self.room(&queue, wanted)?;
        let queue = &mut *queue;
        let memory = queue.memory.as_ref().ok_or(QueueError::NotRunning)?;
        let word = queue
            .find_word(h, memory)
            .ok_or(QueueError::StatusWordsExhausted {
                capacity: STATUS_WORDS,
            })?;
        let issued = queue.issued.get_mut(usize::from(word));
        let issued = issued.ok_or(QueueError::NotRunning)?;
        // Nothing can fail from here on.
        queue.last_sequence = queue.last_sequence.wrapping_add(1);
        if queue.last_sequence as u32 == *issued {
            // After 2^32 submissions: what the word holds must not be taken for the new value.
            queue.last_sequence = queue.last_sequence.wrapping_add(1);
        }
        *issued = queue.last_sequence as u32;
        let value = *issued;
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
            offset = memory.next(offset);
        }
        queue.tail = offset;
        queue.next_word = word.wrapping_add(1);
        // The descriptors before the tail that shows them.
        h.fence();
        self.write_tail(offset);
        Ok(Ticket::new(queue.last_sequence, word, deadline_nanoseconds))
    }

    /// Whether `wanted` descriptors fit; one place always stays empty.
    fn room(&self, queue: &Queue, wanted: u32) -> Result<(), QueueError> {
        let memory = queue.memory.as_ref().ok_or(QueueError::NotRunning)?;
        let capacity = (memory.ring_bytes() >> memory.descriptor_order()).saturating_sub(1);
        let head = memory.checked_head(self.read_head())?;
        let free = capacity.saturating_sub(memory.distance(head, queue.tail));
        if wanted > free {
            return Err(QueueError::Full {
                capacity,
                free,
                wanted,
            });
        }
        Ok(())
    }

    fn read_head(&self) -> u64 {
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
    /// [`QueueError::TimedOut`] after the configured time, [`QueueError::InvalidDescriptor`] and
    /// [`QueueError::DeviceTimedOut`] if hardware reported an error before the submission was
    /// done, in which case the queue runs again without it; [`QueueError::NotRunning`] if the queue
    /// was stopped, [`QueueError::Head`] and [`QueueError::Lost`] if the unit does not make sense any more.
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
        if queue.sequence_of(ticket) <= queue.failed_sequence {
            return Err(queue.failure);
        }
        if ticket.is_late(h.now_nanoseconds()) {
            return Err(self.give_up(&mut queue, ticket));
        }
        Ok(false)
    }

    /// Waits until a submission is done, for the configured time at most.
    ///
    /// # Errors
    ///
    /// As [`poll`](Self::poll).
    pub fn wait<H: Hypervisor>(&self, h: &H, ticket: Ticket) -> Result<(), QueueError> {
        self.counters.waits.add(1);
        let mut deadline = Deadline::after(h, self.config.timeout_nanoseconds);
        let mut is_last = false;
        loop {
            if self.poll(h, &ticket)? {
                return Ok(());
            }
            if is_last {
                return Err(self.give_up(&mut self.queue.lock(), &ticket));
            }
            is_last = !deadline.pause(h);
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

    /// Looks for an error of the queue and makes it run again.
    ///
    /// Hardware reports an error for the whole queue. What was done of which batch is then unknown:
    /// after a device-TLB time-out a wait that was not yet fetched would even complete without what
    /// was before it (§6.5.2.11). So every submission that is not done fails, and what hardware
    /// has not fetched is replaced by fences.
    fn recover<H: Hypervisor>(&self, h: &H, queue: &mut Queue) -> Result<(), QueueError> {
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
        if errors.intersects(stopped) {
            self.fail_outstanding(h, queue, errors)?;
        }
        if errors.contains(FaultStatus::INVALIDATION_COMPLETION_ERROR) {
            self.counters.completion_errors.add(1);
        }
        let mut registers = self.registers.lock();
        registers.write32(Register32::FAULT_STATUS, errors.bits());
        // Some emulators go on only when the tail is written.
        let tail = Register64::INVALIDATION_QUEUE_TAIL;
        registers.write64(tail, u64::from(queue.tail));
        Ok(())
    }

    fn fail_outstanding<H: Hypervisor>(
        &self,
        h: &H,
        queue: &mut Queue,
        errors: FaultStatus,
    ) -> Result<(), QueueError> {
        let register = Register64::INVALIDATION_QUEUE_ERROR_RECORD;
        let record = QueueErrorRecord::from_bits(self.registers.lock().read64(register));
        let head = self.read_head();
        let memory = queue.memory.as_ref().ok_or(QueueError::NotRunning)?;
        let head = match memory.checked_head(head) {
            Ok(head) => head,
            Err(error) => {
                queue.is_running = false;
                queue.fail_all(error);
                return Err(error);
            }
        };
        let mut offset = head;
        // Bounded by the ring, as head and tail are both places in it.
        for _ in 0..memory.distance(head, queue.tail) {
            memory.write(h, offset, memory.fence(false).encode());
            offset = memory.next(offset);
        }
        h.fence();
        if errors.contains(FaultStatus::INVALIDATION_TIMEOUT_ERROR) {
            self.counters.device_timeouts.add(1);
            queue.fail_all(QueueError::DeviceTimedOut {
                source_id: record.timed_out_source_id(),
            });
        }
        if errors.contains(FaultStatus::INVALIDATION_QUEUE_ERROR) {
            self.counters.queue_errors.add(1);
            queue.fail_all(QueueError::InvalidDescriptor {
                info: record.error(),
                head,
            });
        }
        log::error!("{}", queue.failure);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::testing::{Completion, EXTENDED, Event, IQE, ITE, bench, up};
    use super::*;
    use crate::arch::descriptor::DescriptorError;
    use crate::arch::id::{DomainId, Pasid, SourceId};
    use crate::arch::register::QueueErrorInfo;
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
        let bench = up(|_| {});
        bench.world().completion = Completion::AfterNanoseconds(10_000_000);
        drop(bench.unit.submit(&bench.h, &[]).unwrap());
        let busy = statuses(&bench.take_executed())[0].address;
        bench.world().completion = Completion::Now;
        bench.world().clock_step = 1;
        for round in 0..2 {
            let mut words = BTreeSet::new();
            for _ in 0..511 {
                let ticket = bench.unit.submit(&bench.h, &[]).unwrap();
                words.insert(statuses(&bench.take_executed())[0].address);
                bench.unit.wait(&bench.h, ticket).unwrap();
            }
            assert_eq!(words.contains(&busy), round == 1);
            bench.world().tick(10_000_000);
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
    fn an_error_fails_every_open_submission_and_the_queue_goes_on() {
        for resumes_at_tail in [false, true] {
            for (error, expected) in [
                (
                    IQE,
                    QueueError::InvalidDescriptor {
                        info: Some(QueueErrorInfo::ReservedBit),
                        head: 0,
                    },
                ),
                (
                    ITE,
                    QueueError::DeviceTimedOut {
                        source_id: Some(SourceId::from_u16(0x42)),
                    },
                ),
            ] {
                let bench = up(|_| {});
                bench.world().resumes_at_tail = resumes_at_tail;
                let done = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
                bench.take_executed();
                // The second descriptor of the first batch, as if it had never been fetched.
                bench.world().error_in = Some((1, error));
                let head = bench.world().head as u32 + 32;
                let first = bench
                    .unit
                    .submit(&bench.h, &[domain(2), domain(3)])
                    .unwrap();
                let second = bench.unit.submit(&bench.h, &[domain(4)]).unwrap();
                let expected = match expected {
                    QueueError::InvalidDescriptor { info, .. } => {
                        QueueError::InvalidDescriptor { info, head }
                    }
                    other => other,
                };
                assert_eq!(bench.unit.poll(&bench.h, &second), Err(expected));
                assert_eq!(bench.unit.poll(&bench.h, &first), Err(expected));
                assert_eq!(bench.unit.poll(&bench.h, &done), Ok(true));
                // What was left ran as fences, not as the waits of those submissions.
                let executed = bench.take_executed();
                assert_eq!((executed.len(), executed[0]), (5, domain(2)));
                assert!(executed[1..].iter().all(|descriptor| {
                    matches!(descriptor, Descriptor::Wait { fence: true, .. })
                }));
                assert_eq!(bench.world().errors, 0);
                let next = bench.unit.submit(&bench.h, &[domain(5)]).unwrap();
                assert_eq!(bench.unit.wait(&bench.h, next), Ok(()));
                assert_eq!(bench.unit.poll(&bench.h, &first), Err(expected));
                let statistics = bench.unit.statistics();
                assert_eq!(statistics.queue_errors + statistics.device_timeouts, 1);
            }
        }
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
    fn a_ticket_is_late_from_its_deadline_on_and_at_most_a_tick_after_it() {
        for deadline in [
            0,
            1,
            65_535,
            65_536,
            1_700_000_000_000_000_000,
            u64::MAX - 65_536,
        ] {
            let ticket = Ticket::new(1, 2, deadline);
            assert!(!ticket.is_late(deadline.saturating_sub(1)), "{deadline}");
            assert!(ticket.is_late(deadline + 65_536), "{deadline}");
        }
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
        queue.issued[word] = queue.last_sequence as u32 + 1;
        let at = queue.memory.as_ref().unwrap().word_at(word as u16);
        bench.h.write64(at, u64::from(queue.issued[word]));
        let before = queue.last_sequence;
        drop(queue);
        bench.world().completion = Completion::Never;
        let ticket = bench.unit.submit(&bench.h, &[domain(1)]).unwrap();
        assert_eq!(u64::from(ticket.sequence()), (before + 2) & 0xffff_ffff);
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
