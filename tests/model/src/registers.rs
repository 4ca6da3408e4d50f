//! The register file and its write protocol (§11.2, §11.4).

use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};

use crate::bits::{self, bit, field};
use crate::cache::{Block, FunctionSet};
use crate::event::{EventKind, EventRegisters};
use crate::fault::FaultRecords;
use crate::protected::{self, ProtectedMemory};
use crate::unit::{Due, Unit};
use crate::violation::Violation;

pub(crate) const TE: u32 = 1 << 31;
pub(crate) const SRTP: u32 = 1 << 30;
pub(crate) const WBF: u32 = 1 << 27;
pub(crate) const QIE: u32 = 1 << 26;
pub(crate) const IRE: u32 = 1 << 25;
pub(crate) const SIRTP: u32 = 1 << 24;
pub(crate) const CFI: u32 = 1 << 23;
const PERSISTENT: u32 = TE | QIE | IRE | CFI;
const ONE_SHOT: u32 = SRTP | WBF | SIRTP;

/// FSTS causes that software clears (IQE, ICE, ITE); PFO and PPF are kept with the records.
pub(crate) const IQE: u32 = 1 << 4;
pub(crate) const ICE: u32 = 1 << 5;
pub(crate) const ITE: u32 = 1 << 6;

/// Offsets of registers, in bytes; 64-bit ones are named by their low dword.
mod offset {
    pub(super) const VER: u16 = 0x00;
    pub(super) const CAP: u16 = 0x08;
    pub(super) const ECAP: u16 = 0x10;
    pub(super) const GCMD: u16 = 0x18;
    pub(super) const GSTS: u16 = 0x1c;
    pub(super) const RTADDR: u16 = 0x20;
    pub(super) const CCMD: u16 = 0x28;
    pub(super) const FSTS: u16 = 0x34;
    pub(super) const FECTL: u16 = 0x38;
    pub(super) const FEUADDR: u16 = 0x44;
    pub(super) const PHMBASE: u16 = 0x70;
    pub(super) const IQH: u16 = 0x80;
    pub(super) const IQT: u16 = 0x88;
    pub(super) const IQA: u16 = 0x90;
    pub(super) const ICS: u16 = 0x9c;
    pub(super) const IECTL: u16 = 0xa0;
    pub(super) const IEUADDR: u16 = 0xac;
    pub(super) const IQERCD: u16 = 0xb0;
    pub(super) const IRTA: u16 = 0xb8;
    pub(super) const PQH: u16 = 0xc0;
    pub(super) const PQA: u16 = 0xd0;
    pub(super) const PRS: u16 = 0xdc;
    pub(super) const PECTL: u16 = 0xe0;
    pub(super) const PEUADDR: u16 = 0xec;
}

/// A command that was written to GCMD and is not done.
struct PendingCommand {
    due: Due,
    command: u32,
    /// The pointer as it was when the command arrived.
    root: u64,
    interrupt_table: u64,
}

pub(crate) struct RegisterFile {
    /// GSTS.
    pub(crate) status: u32,
    pending: Option<PendingCommand>,
    /// RTADDR as last written, and as SRTP took it.
    root_written: u64,
    pub(crate) root: u64,
    /// SRTP was done since reset and since TE was last cleared.
    root_set: bool,
    interrupt_table_written: u64,
    pub(crate) interrupt_table: u64,
    /// SIRTP was done since reset and since IRE was last cleared.
    pub(crate) interrupt_table_set: bool,
    context_command: u64,
    invalidate_address: u64,
    iotlb_command: u64,
    pub(crate) fault_status: u32,
    pub(crate) records: FaultRecords,
    pub(crate) fault_event: EventRegisters,
    pub(crate) completion_event: EventRegisters,
    pub(crate) page_request_event: EventRegisters,
    pub(crate) wait_complete: bool,
    pub(crate) queue_tail: u64,
    pub(crate) queue_address: u64,
    pub(crate) queue_error_record: u64,
    pub(crate) protected_memory: ProtectedMemory,
    /// PQH, PQT, PQA, 0xC0 to 0xD7.
    pub(crate) page_request_queue: [u32; 6],
    pub(crate) page_request_status: u32,
}

impl RegisterFile {
    pub(crate) fn new(fault_records: usize) -> Self {
        Self {
            status: 0,
            pending: None,
            root_written: 0,
            root: 0,
            root_set: false,
            interrupt_table_written: 0,
            interrupt_table: 0,
            interrupt_table_set: false,
            context_command: 0,
            invalidate_address: 0,
            iotlb_command: 0,
            fault_status: 0,
            records: FaultRecords::new(fault_records),
            fault_event: EventRegisters::new(EventKind::Fault),
            completion_event: EventRegisters::new(EventKind::InvalidationCompletion),
            page_request_event: EventRegisters::new(EventKind::PageRequest),
            wait_complete: false,
            queue_tail: 0,
            queue_address: 0,
            queue_error_record: 0,
            protected_memory: ProtectedMemory::default(),
            page_request_queue: [0; 6],
            page_request_status: 0,
        }
    }

    pub(crate) fn translation_enabled(&self) -> bool {
        self.status & TE != 0
    }

    pub(crate) fn queue_enabled(&self) -> bool {
        self.status & QIE != 0
    }

    pub(crate) fn interrupt_remapping_enabled(&self) -> bool {
        self.status & IRE != 0
    }

    /// TTM of the root table address in force.
    pub(crate) fn table_mode(&self) -> u64 {
        field(self.root, 11, 10)
    }

    /// SSIRWE of the root table address in force.
    pub(crate) fn second_stage_io_permissions(&self) -> bool {
        bit(self.root, 7)
    }
}

fn low(word: u64) -> u32 {
    word as u32
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// Replaces one half of a word: `index` 0 low, 1 high.
fn set_half(word: &mut u64, index: u16, value: u32) {
    let shift = 32 * u32::from(index);
    *word = *word & !(0xffff_ffff << shift) | u64::from(value) << shift;
}

fn half(word: u64, index: u16) -> u32 {
    if index == 0 { low(word) } else { high(word) }
}

impl Unit {
    /// Whether an 8-byte access is allowed here.
    fn is_quadword(&self, at: u16) -> bool {
        let iotlb = self.config.iotlb_offset();
        if at == iotlb || at == iotlb.wrapping_add(8) {
            return true;
        }
        match at {
            offset::CAP
            | offset::ECAP
            | offset::RTADDR
            | offset::CCMD
            | offset::PHMBASE
            | 0x78
            | offset::IQH
            | offset::IQT
            | offset::IQA
            | offset::IQERCD
            | offset::IRTA
            | offset::PQH
            | 0xc8
            | offset::PQA => true,
            _ => self.fault_record_at(at).is_some(),
        }
    }

    /// The fault record and the dword in it that lie at an offset.
    fn fault_record_at(&self, at: u16) -> Option<(usize, u16)> {
        let within = at.checked_sub(self.config.fault_record_offset())?;
        let index = usize::from(within / 16);
        (index < self.config.fault_records()).then_some((index, within % 16 / 4))
    }

    pub(crate) fn read_register32(&mut self, at: u16) -> u32 {
        self.advance(false);
        self.read_dword(at)
    }

    pub(crate) fn read_register64(&mut self, at: u16) -> u64 {
        self.advance(false);
        if !self.is_quadword(at) {
            self.violation(Violation::AccessWidth {
                offset: at,
                width_bytes: 8,
            });
        }
        u64::from(self.read_dword(at)) | u64::from(self.read_dword(at + 4)) << 32
    }

    pub(crate) fn write_register32(&mut self, at: u16, value: u32) {
        self.advance(false);
        self.write_dword(at, value);
    }

    pub(crate) fn write_register64(&mut self, at: u16, value: u64) {
        self.advance(false);
        if !self.is_quadword(at) {
            self.violation(Violation::AccessWidth {
                offset: at,
                width_bytes: 8,
            });
        }
        if self.is_read_only(at) {
            self.violation(Violation::ReadOnlyRegister {
                offset: at,
                value: low(value),
            });
            return;
        }
        self.write_dword(at, low(value));
        self.write_dword(at + 4, high(value));
    }

    fn is_read_only(&self, at: u16) -> bool {
        matches!(
            at & !4,
            offset::CAP | offset::ECAP | offset::IQH | offset::IQERCD
        ) || at == offset::VER
            || at == offset::GSTS
    }

    fn read_dword(&mut self, at: u16) -> u32 {
        if self.lacks_queue_register(at) {
            return 0;
        }
        let page_requests = self.has_page_requests();
        let registers = &self.registers;
        let index = at % 8 / 4;
        match at {
            offset::VER => self.config.version,
            0x08 | 0x0c => half(self.config.capability.bits(), index),
            0x10 | 0x14 => half(self.config.extended.bits(), index),
            offset::GCMD => {
                self.violation(Violation::WriteOnlyRegister { offset: at });
                0
            }
            offset::GSTS => registers.status,
            0x20 | 0x24 => half(registers.root_written, index),
            0x28 | 0x2c => half(registers.context_command, index),
            offset::FSTS => registers.fault_status | registers.records.status(),
            offset::FECTL..=offset::FEUADDR => registers.fault_event.read((at - offset::FECTL) / 4),
            protected::FIRST..=protected::LAST if self.has_protected_register(at) => {
                self.read_protected(at)
            }
            0x80 => self.queue.head,
            0x84 => 0,
            0x88 | 0x8c => half(registers.queue_tail, index),
            0x90 | 0x94 => half(registers.queue_address, index),
            offset::ICS => u32::from(registers.wait_complete),
            offset::IECTL..=offset::IEUADDR => {
                registers.completion_event.read((at - offset::IECTL) / 4)
            }
            0xb0 | 0xb4 => half(registers.queue_error_record, index),
            0xb8 | 0xbc => half(registers.interrupt_table_written, index),
            offset::PQH..=0xd4 if page_requests => {
                registers.page_request_queue[usize::from(at - offset::PQH) / 4]
            }
            offset::PRS if page_requests => registers.page_request_status,
            offset::PECTL..=offset::PEUADDR if page_requests => {
                registers.page_request_event.read((at - offset::PECTL) / 4)
            }
            _ => {
                let iotlb = self.config.iotlb_offset();
                if at == iotlb || at == iotlb + 4 {
                    self.violation(Violation::WriteOnlyRegister { offset: at });
                    return 0;
                }
                if at == iotlb + 8 || at == iotlb + 12 {
                    return half(registers.iotlb_command, index);
                }
                if let Some((record, dword)) = self.fault_record_at(at) {
                    return registers.records.read(record, dword);
                }
                self.violation(Violation::UnknownRegister { offset: at });
                u32::MAX
            }
        }
    }

    /// Registers of the invalidation queue are reserved where there is none (§11.4.9).
    fn lacks_queue_register(&self, at: u16) -> bool {
        (offset::IQH..offset::IRTA).contains(&at) && !self.config.has(Ecap::QUEUED_INVALIDATION)
    }

    fn has_page_requests(&self) -> bool {
        self.config.has(Ecap::PAGE_REQUESTS)
    }

    pub(crate) fn reserved(&mut self, offset: u16, bits: u32) {
        if bits != 0 {
            self.violation(Violation::ReservedRegisterBits { offset, bits });
        }
    }

    fn write_dword(&mut self, at: u16, value: u32) {
        if self.is_read_only(at) {
            self.violation(Violation::ReadOnlyRegister { offset: at, value });
            return;
        }
        if self.lacks_queue_register(at) {
            self.reserved(at, value);
            return;
        }
        let index = at % 8 / 4;
        // Pointer bits at and above HAW are reserved.
        let beyond_host = half(
            bits::from_bit(u32::from(self.config.host_address_width)),
            index,
        );
        match at {
            offset::GCMD => self.write_command(value),
            0x20 | 0x24 => {
                let io_permissions = u32::from(self.config.has(Ecap::SECOND_STAGE_IO_PERMISSIONS));
                let reserved = if index == 0 {
                    0x3ff & !(io_permissions << 7)
                } else {
                    beyond_host
                };
                self.reserved(at, value & reserved);
                set_half(&mut self.registers.root_written, index, value);
            }
            0x28 | 0x2c => {
                let reserved = if index == 0 { 0 } else { 0x07ff_fffc };
                self.reserved(at, value & reserved);
                set_half(&mut self.registers.context_command, index, value);
                if index == 1 && value >> 31 == 1 {
                    self.run_context_command();
                }
            }
            offset::FSTS => self.write_fault_status(value),
            offset::FECTL..=offset::FEUADDR => {
                let index = (at - offset::FECTL) / 4;
                let (reserved, message) = self.registers.fault_event.write(index, value);
                self.reserved(at, reserved);
                self.messages.extend(message);
            }
            protected::FIRST..=protected::LAST if self.has_protected_register(at) => {
                self.write_protected(at, value);
            }
            0x88 | 0x8c => {
                let reserved = if index == 0 { !0x7_fff0 } else { u32::MAX };
                self.reserved(at, value & reserved);
                if index == 0 {
                    self.write_tail(value & 0x7_fff0);
                }
            }
            0x90 | 0x94 => {
                if self.registers.queue_enabled() {
                    self.violation(Violation::QueueAddressWhileEnabled {
                        value: u64::from(value) << (32 * u32::from(index)),
                    });
                }
                let reserved = if index == 0 { 0x7f8 } else { beyond_host };
                self.reserved(at, value & reserved);
                set_half(&mut self.registers.queue_address, index, value);
            }
            offset::ICS => {
                self.reserved(at, value & !1);
                if value & 1 != 0 {
                    self.registers.wait_complete = false;
                    self.registers.completion_event.clear_pending();
                }
            }
            offset::IECTL..=offset::IEUADDR => {
                let index = (at - offset::IECTL) / 4;
                let (reserved, message) = self.registers.completion_event.write(index, value);
                self.reserved(at, reserved);
                self.messages.extend(message);
            }
            0xb8 | 0xbc => {
                self.write_interrupt_table(index, value, beyond_host);
            }
            offset::PQH..=0xd4 if self.has_page_requests() => {
                let reserved = match at {
                    0xc0 | 0xc8 => !0x7_ffe0,
                    0xd0 => 0xff8,
                    0xd4 => beyond_host,
                    _ => u32::MAX,
                };
                self.reserved(at, value & reserved);
                self.write_page_request_queue(usize::from(at - offset::PQH) / 4, value);
            }
            offset::PRS if self.has_page_requests() => {
                self.reserved(at, value & !3);
                self.clear_page_request_status(value);
            }
            offset::PECTL..=offset::PEUADDR if self.has_page_requests() => {
                let index = (at - offset::PECTL) / 4;
                let (reserved, message) = self.registers.page_request_event.write(index, value);
                self.reserved(at, reserved);
                self.messages.extend(message);
            }
            _ => self.write_placed_register(at, value),
        }
    }

    /// `IRTA_REG` (§11.4.10): the dword at `index`.
    fn write_interrupt_table(&mut self, index: u16, value: u32, beyond_host: u32) {
        const EXTENDED_MODE: u32 = 1 << 11;
        let mut reserved = match index {
            0 if self.config.has(Ecap::EXTENDED_INTERRUPT_MODE) => 0x7f0,
            0 => 0xff0,
            _ => beyond_host,
        };
        if !self.config.has(Ecap::INTERRUPT_REMAPPING) {
            reserved = u32::MAX;
        }
        self.reserved(offset::IRTA + 4 * index, value & reserved);
        // What is reserved in the low dword reads 0 and does nothing. A pointer beyond HAW is kept:
        // requests fault on it.
        let value = if index == 0 || reserved == u32::MAX {
            value & !reserved
        } else {
            value
        };
        let old = half(self.registers.interrupt_table_written, index);
        if index == 0
            && (old ^ value) & EXTENDED_MODE != 0
            && self.registers.interrupt_remapping_enabled()
        {
            self.violation(Violation::ExtendedInterruptModeChangedWhileEnabled);
        }
        set_half(&mut self.registers.interrupt_table_written, index, value);
    }

    /// The registers whose place the capabilities tell.
    fn write_placed_register(&mut self, at: u16, value: u32) {
        let iotlb = self.config.iotlb_offset();
        let index = at % 8 / 4;
        if at == iotlb || at == iotlb + 4 {
            let reserved = if index == 0 { 0xf80 } else { 0 };
            self.reserved(at, value & reserved);
            set_half(&mut self.registers.invalidate_address, index, value);
        } else if at == iotlb + 8 || at == iotlb + 12 {
            let reserved = if index == 0 { u32::MAX } else { 0x49fc_0000 };
            self.reserved(at, value & reserved);
            set_half(&mut self.registers.iotlb_command, index, value);
            if index == 1 && value >> 31 == 1 {
                self.run_iotlb_command();
            }
        } else if let Some((record, dword)) = self.fault_record_at(at) {
            if dword == 3 {
                if value >> 31 == 1 {
                    self.registers.records.clear(record);
                    self.update_fault_event();
                }
            } else {
                self.violation(Violation::ReadOnlyRegister { offset: at, value });
            }
        } else {
            self.violation(Violation::UnknownRegister { offset: at });
        }
    }

    fn write_fault_status(&mut self, value: u32) {
        let mut defined = 1 | 1 << 1 | IQE | 0xff00;
        if self.config.has(Ecap::DEVICE_TLB) {
            defined |= ICE | ITE;
        }
        self.reserved(offset::FSTS, value & !defined);
        self.registers.fault_status &= !(value & (IQE | ICE | ITE));
        if value & 1 != 0 {
            self.registers.records.clear_overflow();
        }
        self.update_fault_event();
        // Fetching goes on at IQH once neither IQE nor ITE is set.
        self.run_queue(false);
    }

    /// IP of the fault event goes with the last cause.
    fn update_fault_event(&mut self) {
        if self.registers.fault_status | self.registers.records.status() & 3 == 0 {
            self.registers.fault_event.clear_pending();
        }
    }

    fn write_command(&mut self, value: u32) {
        let changed = (value ^ self.registers.status) & PERSISTENT | value & ONE_SHOT;
        self.reserved(offset::GCMD, value & !(PERSISTENT | ONE_SHOT));
        if changed.count_ones() > 1 {
            self.violation(Violation::SeveralCommands {
                status: self.registers.status,
                command: value,
            });
        }
        if self.has_pending_command() {
            self.violation(Violation::CommandInProgress {
                offset: offset::GCMD,
            });
            self.finish_command();
        }
        let supported = TE
            | SRTP
            | if self.config.has_cap(Cap::WRITE_BUFFER_FLUSH) {
                WBF
            } else {
                0
            }
            | if self.config.has(Ecap::QUEUED_INVALIDATION) {
                QIE
            } else {
                0
            }
            | if self.config.has(Ecap::INTERRUPT_REMAPPING) {
                IRE | SIRTP | CFI
            } else {
                0
            };
        for index in 0..32 {
            let command = changed & 1 << index & !supported;
            if command != 0 {
                self.violation(Violation::UnsupportedCommand { bit: command });
            }
        }
        // Status of one-shot commands: cleared or set when the command arrives, and back when done.
        self.registers.status &= !(changed & (SRTP | SIRTP));
        self.registers.status |= changed & supported & WBF;
        self.registers.pending = Some(PendingCommand {
            due: Due::from_pace(self.config.command_pace, self.clock.now()),
            command: value & supported,
            root: self.registers.root_written,
            interrupt_table: self.registers.interrupt_table_written,
        });
        self.complete_command(false);
    }

    /// Whether a command to `GCMD_REG` or `PMEN_REG` is in progress: one at a time (§6.9).
    pub(crate) fn has_pending_command(&self) -> bool {
        self.registers.pending.is_some() || self.is_protecting_pending()
    }

    /// Completes the command in progress if it is due.
    pub(crate) fn complete_command(&mut self, manual: bool) {
        self.complete_protected(manual);
        let now = self.clock.now();
        if self
            .registers
            .pending
            .as_ref()
            .is_some_and(|pending| pending.due.is_over(now, manual))
        {
            self.finish_command();
        }
    }

    /// Pointers before enables, should a write ask for several.
    fn finish_command(&mut self) {
        let Some(pending) = self.registers.pending.take() else {
            return;
        };
        let command = pending.command;
        if command & SRTP != 0 {
            self.set_root_table(pending.root);
        }
        if command & SIRTP != 0 {
            self.set_interrupt_table(pending.interrupt_table);
        }
        if command & WBF != 0 {
            self.memory.flush_write_buffer();
        }
        self.registers.status &= !WBF;
        let changed = (command ^ self.registers.status) & PERSISTENT;
        if changed & QIE != 0 {
            self.switch_queue(command & QIE != 0);
        }
        if changed & IRE != 0 {
            self.switch_interrupt_remapping(command & IRE != 0);
        }
        self.registers.status ^= changed & CFI;
        if changed & TE != 0 {
            if command & TE != 0 {
                if !self.registers.root_set {
                    self.violation(Violation::TranslationWithoutRootTable);
                }
            } else {
                self.registers.root_set = false;
                if self.config.has(Ecap::SCALABLE_MODE) {
                    self.drop_all_caches();
                }
            }
            self.registers.status ^= TE;
        }
        if self.registers.status & (TE | IRE) == 0 {
            self.registers.records.restart();
        }
        self.run_queue(false);
    }

    fn set_root_table(&mut self, root: u64) {
        let old = self.registers.root;
        // TTM and SSIRWE.
        let differs = (old ^ root) & 0xc80 != 0;
        let keeps_caches = !self.config.has_cap(Cap::ENHANCED_SET_ROOT_TABLE_POINTER);
        if differs && keeps_caches && self.registers.translation_enabled() {
            self.violation(Violation::TableModeChangedWhileEnabled { old, new: root });
        }
        self.registers.root = root;
        self.registers.root_set = true;
        self.registers.status |= SRTP;
        if !keeps_caches {
            self.drop_all_caches();
        }
    }

    fn switch_queue(&mut self, on: bool) {
        let (head, tail) = (self.queue.head, self.registers.queue_tail as u32);
        if on {
            if tail != 0 {
                self.violation(Violation::QueueEnabledWithTail { tail });
            }
        } else if head != tail || !self.queue.is_drained() {
            self.violation(Violation::QueueDisabledBusy { head, tail });
        }
        self.queue.restart(self.registers.queue_address);
        self.registers.status ^= QIE;
    }

    fn write_tail(&mut self, tail: u32) {
        let old = self.registers.queue_tail as u32;
        let head = self.queue.head;
        self.registers.queue_tail = u64::from(tail);
        if self.registers.queue_enabled() {
            let size = self.queue_size_bytes();
            let behind = |tail: u32| tail.wrapping_sub(head) & (size - 1);
            let is_recovery = self.registers.fault_status & IQE != 0;
            if !is_recovery && old < size && tail < size && behind(tail) < behind(old) {
                self.violation(Violation::QueueTailMovedBack {
                    head,
                    old,
                    new: tail,
                });
            }
            self.run_queue(false);
        }
    }

    /// Whether register-based invalidation works (§6.5.1).
    fn allows_register_invalidation(&self) -> bool {
        self.registers.table_mode() == 0
            && !self.registers.queue_enabled()
            && self.config.major_version() < 6
    }

    fn run_context_command(&mut self) {
        let command = self.registers.context_command;
        self.memory.flush_write_buffer();
        let granularity = if self.allows_register_invalidation() {
            field(command, 62, 61)
        } else {
            self.violation(Violation::RegisterInvalidation {
                offset: offset::CCMD,
            });
            0
        };
        let domain = self.domain_of_descriptor(command);
        match granularity {
            1 => self.caches.drop_contexts(),
            2 => self.caches.drop_contexts_of_domain(domain),
            3 => {
                let functions = FunctionSet {
                    source_id: field(command, 31, 16) as u16,
                    mask: field(command, 33, 32) as u8,
                };
                self.caches.drop_contexts_of_device(functions, domain);
            }
            _ => {}
        }
        self.domains.forget_contexts();
        self.registers.context_command = command & !(1 << 63) & !(3 << 59) | granularity << 59;
    }

    fn run_iotlb_command(&mut self) {
        let command = self.registers.iotlb_command;
        self.memory.flush_write_buffer();
        let mask = field(self.registers.invalidate_address, 5, 0);
        let mut granularity = if self.allows_register_invalidation() {
            field(command, 61, 60)
        } else {
            self.violation(Violation::RegisterInvalidation {
                offset: self.config.iotlb_offset() + 8,
            });
            0
        };
        let domain = self.domain_of_descriptor(command >> 32);
        match granularity {
            1 => self.caches.drop_iotlb(),
            2 => self.caches.drop_iotlb_of_domain(domain),
            3 if mask > self.config.cap(Cap::MAXIMUM_ADDRESS_MASK) => granularity = 0,
            3 => {
                let address = self.registers.invalidate_address;
                self.caches.drop_iotlb_pages(
                    domain,
                    Block::around(bits::page(address), 12 + mask as u32),
                    bit(address, 6),
                );
            }
            _ => {}
        }
        self.registers.iotlb_command = command & !(1 << 63) & !(3 << 57) | granularity << 57;
    }
}
