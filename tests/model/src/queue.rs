//! The invalidation queue (§6.5.2).

use std::collections::{BTreeSet, VecDeque};

use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::id::SourceId;

use crate::bits::{self, bit, field};
use crate::cache::{Block, FunctionSet};
use crate::queue_order::QueueOrder;
use crate::registers::{ICE, IQE, ITE};
use crate::unit::{Due, ModelUnit, Unit};
use crate::violation::Violation;

/// A descriptor that the unit fetched and found valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubmittedDescriptor {
    /// The quadwords; the last two are 0 in a queue of 128-bit descriptors.
    pub words: [u64; 4],
    /// When it was fetched, in nanoseconds.
    pub fetched_at: u64,
}

impl SubmittedDescriptor {
    /// The type: bits 3:0, and bits 11:9 above them.
    pub fn kind(&self) -> u8 {
        kind(self.words[0]) as u8
    }
}

pub(crate) fn kind(q0: u64) -> u64 {
    field(q0, 3, 0) | field(q0, 11, 9) << 4
}

/// A fetched descriptor that has not been executed.
pub(crate) struct InFlight {
    pub(crate) words: [u64; 4],
    pub(crate) due: Due,
    /// When a device that does not answer is given up.
    pub(crate) deadline: Option<u64>,
}

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) head: u32,
    /// IQA as it was when the queue was enabled.
    pub(crate) address: u64,
    pub(crate) in_flight: VecDeque<InFlight>,
    /// Whether the last executed descriptor was a wait; `None` before the first one.
    ended_with_wait: Option<bool>,
    pub(crate) submitted: Vec<SubmittedDescriptor>,
    pub(crate) executed: Vec<[u64; 4]>,
    /// State of the shuffle; 0 before the first one.
    shuffle: u64,
    pub(crate) silent_devices: BTreeSet<u16>,
}

impl Queue {
    /// Whether everything is executed and a wait was the last.
    pub(crate) fn is_drained(&self) -> bool {
        self.in_flight.is_empty() && self.ended_with_wait != Some(false)
    }

    /// A pseudo-random number (xorshift).
    pub(crate) fn random(&mut self, seed: u64) -> u64 {
        let mut state = if self.shuffle == 0 {
            seed | 1
        } else {
            self.shuffle
        };
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.shuffle = state;
        state >> 32
    }

    pub(crate) fn restart(&mut self, address: u64) {
        self.address = address;
        self.head = 0;
        self.in_flight.clear();
        self.ended_with_wait = None;
    }
}

/// IQEI codes (§11.4.9.9).
mod error {
    pub(super) const TAIL: u64 = 1;
    pub(super) const FETCH: u64 = 2;
    pub(super) const TYPE: u64 = 3;
    pub(super) const RESERVED: u64 = 4;
    pub(super) const WIDTH: u64 = 5;
    pub(super) const MISALIGNED: u64 = 6;
    pub(super) const TABLE_MODE: u64 = 7;
}

impl Unit {
    pub(crate) fn queue_size_bytes(&self) -> u32 {
        4096 << field(self.queue.address, 2, 0)
    }

    /// DW=1.
    fn has_wide_descriptors(&self) -> bool {
        bit(self.queue.address, 11)
    }

    /// The domain-id in bits 15:0, cut to the unit's width.
    pub(crate) fn domain_of_descriptor(&self, word: u64) -> u16 {
        (field(word, 15, 0) & !bits::from_bit(self.config.domain_id_bits())) as u16
    }

    /// Fetches and executes whatever can be by now.
    pub(crate) fn run_queue(&mut self, manual: bool) {
        loop {
            if self.config.queue_order == QueueOrder::InOrder {
                self.execute_due(manual);
            }
            if !self.fetch_descriptor() {
                break;
            }
        }
        self.execute_due(manual);
    }

    /// Takes one descriptor from the queue; whether there was a valid one.
    fn fetch_descriptor(&mut self) -> bool {
        let (head, tail) = (self.queue.head, self.registers.queue_tail as u32);
        if !self.registers.queue_enabled()
            || self.registers.fault_status & (IQE | ITE) != 0
            || head == tail
        {
            return false;
        }
        match self.check_descriptor(tail) {
            Ok(words) => {
                let length = if self.has_wide_descriptors() { 32 } else { 16 };
                self.queue.head = (head + length) % self.queue_size_bytes();
                let now = self.clock.now();
                self.memory.note_descriptor(words);
                self.queue.submitted.push(SubmittedDescriptor {
                    words,
                    fetched_at: now,
                });
                self.queue.in_flight.push_back(InFlight {
                    words,
                    due: Due::from_pace(self.config.queue_pace, now),
                    deadline: None,
                });
                true
            }
            Err(code) => {
                let was_quiet = self.is_fault_event_quiet();
                self.registers.fault_status |= IQE;
                self.registers.queue_error_record = self.registers.queue_error_record & !0xf | code;
                self.raise_fault_event(was_quiet);
                false
            }
        }
    }

    /// Reads and checks the descriptor at the head; an error is an IQEI code.
    fn check_descriptor(&mut self, tail: u32) -> Result<[u64; 4], u64> {
        let wide = self.has_wide_descriptors();
        let scalable = self.config.has(Ecap::SCALABLE_MODE);
        let abort = self.config.has(Ecap::ABORT_DMA_MODE);
        let mode = self.registers.table_mode();
        let io_permissions = self.registers.second_stage_io_permissions();
        if mode == 2 || mode == 1 && !scalable || mode == 3 && !abort || mode == 0 && io_permissions
        {
            return Err(error::TABLE_MODE);
        }
        if wide && !scalable && !abort || !wide && mode != 0 {
            return Err(error::WIDTH);
        }
        if tail >= self.queue_size_bytes() {
            return Err(error::TAIL);
        }
        if wide && tail & 0x10 != 0 {
            return Err(error::MISALIGNED);
        }
        let at = bits::page(self.queue.address) + u64::from(self.queue.head);
        let [q0, q1] = self.memory.fetch(at, true).ok_or(error::FETCH)?;
        let [q2, q3] = if wide {
            self.memory.fetch(at + 16, true).ok_or(error::FETCH)?
        } else {
            [0, 0]
        };
        let words = [q0, q1, q2, q3];
        let code = kind(q0);
        let known = match code {
            1 | 2 | 4 | 5 => true,
            3 => self.config.has(Ecap::DEVICE_TLB),
            6 | 7 => mode != 0,
            8 => mode != 0 && self.config.has(Ecap::DEVICE_TLB),
            9 => mode != 0 && self.config.has(Ecap::PAGE_REQUESTS),
            10 => mode != 0 && self.config.has(Ecap::HOST_PERMISSION_TABLES),
            _ => false,
        };
        if !known {
            return Err(error::TYPE);
        }
        let (reserved0, reserved1) = self.reserved_bits(code);
        let has_reserved = q0 & reserved0 != 0 || q1 & reserved1 != 0 || q2 != 0 || q3 != 0;
        if has_reserved || !self.has_valid_fields(code, q0, q1) {
            return Err(error::RESERVED);
        }
        Ok(words)
    }

    /// Reserved bits of q0 and q1.
    fn reserved_bits(&self, kind: u64) -> (u64, u64) {
        let throttling = self.config.has(Ecap::DEVICE_TLB_THROTTLING);
        let drain = self.config.has(Ecap::PAGE_REQUEST_DRAIN);
        match kind {
            1 => (0xfffc_0000_0000_f1c0, u64::MAX),
            2 => (0xffff_ffff_0000_f100, 0xf80),
            3 if throttling => (0x000f_0000_ffe0_01f0, 0xffe),
            3 => (0xffff_0000_ffe0_f1f0, 0xffe),
            4 => (0xffff_0000_07ff_f1e0, u64::MAX),
            5 if drain => (0xf100, 3),
            5 => (0xf180, 3),
            6 => (0xfff0_0000_0000_f1c0, 0xf80),
            7 => (0xfff0_0000_0000_f1c0, u64::MAX),
            8 if throttling => (0, 0x7fe),
            8 => (0xfff0_0000_0000_f000, 0x7fe),
            9 => (0xfff0_0000_0000_01e0, 0xffff_ffff_ffff_f003),
            _ => (0xffff_ffff_0000_f1c0, 0xf00),
        }
    }

    /// Granularities that are defined, masks that are not too large.
    fn has_valid_fields(&self, kind: u64, q0: u64, q1: u64) -> bool {
        let granularity = field(q0, 5, 4);
        match kind {
            1 | 10 => granularity != 0,
            2 => match granularity {
                0 => false,
                3 => {
                    self.config.has_cap(Cap::PAGE_SELECTIVE_INVALIDATION)
                        && field(q1, 5, 0) <= self.config.cap(Cap::MAXIMUM_ADDRESS_MASK)
                }
                _ => true,
            },
            4 => !bit(q0, 4) || field(q0, 31, 27) <= self.config.ecap(Ecap::MAXIMUM_HANDLE_MASK),
            6 => granularity >= 2,
            7 => granularity != 2,
            _ => true,
        }
    }

    /// Executes fetched descriptors as far as they are due.
    fn execute_due(&mut self, manual: bool) {
        while self.execute_one(manual) {}
    }

    /// Executes one fetched descriptor, or gives up its device; whether there was one.
    pub(crate) fn execute_one(&mut self, manual: bool) -> bool {
        let now = self.clock.now();
        while let Some(index) = self.choose_descriptor(manual) {
            let chosen = &mut self.queue.in_flight[index];
            let words = chosen.words;
            if chosen.deadline.is_some() {
                self.time_out(device_of(words));
                return false;
            }
            if matches!(kind(words[0]), 3 | 8)
                && self.queue.silent_devices.contains(&device_of(words))
            {
                chosen.deadline = Some(now.saturating_add(self.config.device_tlb_timeout));
                continue;
            }
            self.queue.in_flight.remove(index);
            self.queue.ended_with_wait = Some(kind(words[0]) == 5);
            self.queue.executed.push(words);
            self.counters.descriptors += 1;
            self.execute(words);
            self.repeat_requests();
            return true;
        }
        false
    }

    /// ITE: nothing from the oldest pending device-TLB descriptor on has run, and no wait of it
    /// will complete (§6.5.2.11).
    fn time_out(&mut self, source_id: u16) {
        self.queue.in_flight.clear();
        self.queue.ended_with_wait = Some(false);
        let was_quiet = self.is_fault_event_quiet();
        self.registers.fault_status |= ITE;
        let record = &mut self.registers.queue_error_record;
        *record = *record & !(0xffff << 32) | u64::from(source_id) << 32;
        self.raise_fault_event(was_quiet);
    }

    fn execute(&mut self, words: [u64; 4]) {
        let [q0, q1, ..] = words;
        let granularity = field(q0, 5, 4);
        let domain = self.domain_of_descriptor(q0 >> 16);
        let pasid = field(q0, 51, 32) as u32;
        if matches!(kind(q0), 1 | 2 | 4 | 6 | 7) {
            // A precondition of invalidations of the unit's own caches (§6.8).
            self.memory.flush_write_buffer();
        }
        match (kind(q0), granularity) {
            (1, 1) => {
                self.caches.drop_contexts();
                self.domains.forget_contexts();
            }
            (1, 2) => {
                self.caches.drop_contexts_of_domain(domain);
                self.domains.forget_contexts();
            }
            (1, _) => {
                let functions = FunctionSet {
                    source_id: field(q0, 47, 32) as u16,
                    mask: field(q0, 49, 48) as u8,
                };
                self.caches.drop_contexts_of_device(functions, domain);
                self.domains.forget_contexts();
            }
            (2, 1) => self.caches.drop_iotlb(),
            (2, 2) => self.caches.drop_iotlb_of_domain(domain),
            (2, _) => {
                let block = Block::around(bits::page(q1), 12 + field(q1, 5, 0) as u32);
                self.caches.drop_iotlb_pages(domain, block, bit(q1, 6));
            }
            (3 | 8, _) if !self.registers.translation_enabled() => {
                self.violation(Violation::DeviceTlbWhileDisabled {
                    source_id: SourceId::from_u16(device_of(words)),
                });
            }
            (3, _) => self.invalidate_device_tlb(words, false),
            (4, _) => self.invalidate_interrupt_entries(q0),
            (5, _) => self.complete_wait(q0, q1),
            (6, 2) => self.caches.drop_iotlb_of_pasid(domain, pasid),
            (6, _) => {
                let block = Block::around(bits::page(q1), 12 + field(q1, 5, 0) as u32);
                self.caches
                    .drop_iotlb_pages_of_pasid(domain, pasid, block, bit(q1, 6));
            }
            (7, 0) => self.drop_pasid_entries(Some(domain), None),
            (7, 1) => self.drop_pasid_entries(Some(domain), Some(pasid)),
            (7, _) => self.drop_pasid_entries(None, None),
            (8, _) => self.invalidate_device_tlb(words, true),
            (9, _) => self.respond(words),
            // No host permission tables yet.
            _ => {}
        }
    }

    fn drop_pasid_entries(&mut self, domain: Option<u16>, pasid: Option<u32>) {
        self.caches.drop_pasids(domain, pasid);
        self.domains.forget_pasids(domain, pasid);
    }

    fn complete_wait(&mut self, q0: u64, q1: u64) {
        self.counters.waits += 1;
        if bit(q0, 7) {
            self.drain_page_requests();
        }
        if bit(q0, 5) {
            let host_bits = u32::from(self.config.host_address_width);
            let address = q1 & !3 & !bits::from_bit(host_bits);
            if !self.memory.hardware_write32(address, (q0 >> 32) as u32) {
                self.violation(Violation::WaitStatusAddress { address });
            }
        }
        if bit(q0, 4) && !self.registers.wait_complete {
            self.registers.wait_complete = true;
            self.messages
                .extend(self.registers.completion_event.raise());
        }
    }
}

impl ModelUnit {
    /// A device sends a device-TLB invalidation completion with a tag that it was not given
    /// (§6.5.2.11): ICE. The queue goes on.
    ///
    /// # Panics
    ///
    /// If the unit has no device-TLBs: completions do not reach it, and ICE is a reserved bit.
    pub fn send_invalid_completion(&self, source_id: SourceId) {
        let mut unit = self.0.borrow_mut();
        assert!(unit.config.has(Ecap::DEVICE_TLB), "no device-TLBs");
        unit.advance(false);
        let was_quiet = unit.is_fault_event_quiet();
        // ICESID keeps the first one until ICE is cleared.
        if unit.registers.fault_status & ICE == 0 {
            let record = &mut unit.registers.queue_error_record;
            *record = *record & !(0xffff << 48) | u64::from(source_id.as_u16()) << 48;
        }
        unit.registers.fault_status |= ICE;
        unit.raise_fault_event(was_quiet);
    }
}

/// The device of a device-TLB descriptor.
fn device_of(words: [u64; 4]) -> u16 {
    if kind(words[0]) == 3 {
        field(words[0], 47, 32) as u16
    } else {
        field(words[0], 31, 16) as u16
    }
}
