//! A remapping unit, its memory and a platform, for the tests of this layer.
//!
//! The unit is strict: it panics where software breaks a rule of the specification. It sees tables
//! only as they were written back, unless it snoops, and it can be told to misbehave.

extern crate std;

use std::boxed::Box;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec;
use std::vec::Vec;

use super::interrupt::{InterruptConfig, InterruptRemapping};
use super::lock::held;
use super::unit::{Unit, UnitConfig};
use crate::arch::address::Hpa;
use crate::arch::capability::{Capability, CapabilityField, ExtendedCapability, Features};
use crate::arch::descriptor::{Descriptor, RawDescriptor};
use crate::arch::id::SourceId;
use crate::arch::register::{
    AddressType, DescriptorWidth, FaultInfo, FaultRecord, InterruptRemappingTableAddress,
    InvalidationQueueAddress, QueueErrorInfo, QueueErrorRecord, Register32, Register64,
    RequestType, RootTableAddress, TranslationTableMode,
};
use crate::mem::{FrameError, FramePool, FrameRun, Frames, HostMemory, Owner, Platform, Registers};

/// Where memory starts, and its length in bytes.
const BASE: u64 = 0x10_0000;
const LEN: u64 = 0x10_0000;
/// What hardware sees in memory that was never written back.
pub(super) const STALE: u64 = 0xa5a5_a5a5_a5a5_a5a5;

pub(super) const TE: u32 = 1 << 31;
pub(super) const SRTP: u32 = 1 << 30;
pub(super) const QIE: u32 = 1 << 26;
pub(super) const IRE: u32 = 1 << 25;
const PERSISTENT: u32 = TE | QIE | IRE | 1 << 23;
const SIRTP: u32 = 1 << 24;
const ONE_SHOT: u32 = SRTP | 1 << 27 | SIRTP;

const PFO: u32 = 1;
const PPF: u32 = 1 << 1;
pub(super) const IQE: u32 = 1 << 4;
pub(super) const ICE: u32 = 1 << 5;
pub(super) const ITE: u32 = 1 << 6;

/// `CAP` and `ECAP` of QEMU's unit in scalable mode, with 20-bit PASIDs.
pub(super) const CAPABILITY: u64 = 0x00d2_008c_222f_0606;
pub(super) const EXTENDED: u64 = 0x0000_4998_80f0_0f4a;
pub(super) const COHERENT: u64 = 1;
pub(super) const CACHING_MODE: u64 = 1 << 7;
pub(super) const ESRTPS: u64 = 1 << 63;

/// The capability register with so many fault records.
pub(super) fn records(count: u64) -> u64 {
    Capability::from_bits(CAPABILITY)
        .with(CapabilityField::FAULT_RECORD_COUNT, count - 1)
        .bits()
}

/// What a wait descriptor does.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Completion {
    Now,
    AfterNanoseconds(u64),
    Never,
}

/// What the unit is and how it misbehaves.
pub(super) struct Options {
    pub(super) capability: u64,
    pub(super) extended: u64,
    pub(super) version: u32,
    pub(super) window_bytes: u64,
    pub(super) config: UnitConfig,
    /// Global commands that never complete.
    pub(super) stuck_commands: u32,
    /// Registers, by offset, that ignore writes.
    pub(super) read_only: BTreeSet<u16>,
    /// Registers, by offset, that always read so.
    pub(super) forced: Vec<(u16, u64)>,
    /// Number of times that a device writes to the root table.
    pub(super) root_writes: u32,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Event {
    Store(u64, u64),
    Store128(u64, u128),
    Flush(u64),
    Fence,
    Register(u16, u64),
}

/// The internal fault index and that of the record which set PPF.
#[derive(Clone, Copy)]
pub(super) struct FaultAt {
    pub(super) next: usize,
    pub(super) first: usize,
}

pub(super) struct World {
    pub(super) options: Options,
    features: Features,
    /// Memory as processors see it, and as the unit sees tables.
    memory: Vec<u64>,
    written_back: Vec<u64>,
    pub(super) log: Vec<Event>,
    pub(super) now: u64,
    pub(super) clock_step: u64,
    pub(super) register_reads: u32,
    pub(super) gone: bool,
    pub(super) fail_allocation: Option<u32>,

    pub(super) status: u32,
    pub(super) root: u64,
    pub(super) latched_root: Option<u64>,
    pub(super) interrupt_table: u64,
    pub(super) latched_interrupt_table: Option<u64>,
    pub(super) is_busy: bool,
    pub(super) queue_address: u64,
    pub(super) head: u64,
    pub(super) tail: u64,
    pub(super) errors: u32,
    error_record: u64,
    pub(super) protected_memory: u32,
    pub(super) fault_event_control: u32,
    pub(super) context_command: u64,

    pub(super) completion: Completion,
    /// The unit fetches nothing.
    pub(super) is_frozen: bool,
    /// Raise this error instead of executing the n-th descriptor from now on.
    pub(super) error_in: Option<(u32, u32)>,
    /// This device answers no device-TLB invalidation: each ends in a time-out at once, with so many
    /// descriptors behind it fetched and aborted.
    pub(super) silent: Option<(SourceId, u64)>,
    /// Clearing an error does not restart the queue; writing the tail does.
    pub(super) resumes_at_tail: bool,
    late: Vec<(u64, u64, u32)>,
    pub(super) executed: Vec<Descriptor>,

    records: Vec<FaultRecord>,
    pub(super) faults: FaultAt,
    pub(super) forced_fault_status: Option<u32>,
    pub(super) bus_masters: Vec<(SourceId, bool)>,
    /// Called by the next pause.
    pub(super) on_pause: Option<Box<dyn FnOnce() + Send>>,
}

impl World {
    fn new(options: Options) -> Self {
        let features = Features::new(
            Capability::from_bits(options.capability),
            ExtendedCapability::from_bits(options.extended),
            options.config.host_address_width,
        );
        let records = usize::from(features.capability.fault_record_count());
        Self {
            options,
            features,
            memory: vec![STALE; (LEN / 8) as usize],
            written_back: vec![STALE; (LEN / 8) as usize],
            log: Vec::new(),
            now: 1,
            clock_step: 1000,
            register_reads: 0,
            gone: false,
            fail_allocation: None,
            status: 0,
            root: 0,
            latched_root: None,
            interrupt_table: 0,
            latched_interrupt_table: None,
            is_busy: false,
            queue_address: 0,
            head: 0,
            tail: 0,
            errors: 0,
            error_record: 0,
            protected_memory: 0,
            fault_event_control: 0,
            context_command: 0,
            completion: Completion::Now,
            is_frozen: false,
            error_in: None,
            silent: None,
            resumes_at_tail: false,
            late: Vec::new(),
            executed: Vec::new(),
            records: vec![FaultRecord::default(); records],
            faults: FaultAt { next: 0, first: 0 },
            forced_fault_status: None,
            bus_masters: Vec::new(),
            on_pause: None,
        }
    }

    pub(super) fn load(&self, at: u64) -> u64 {
        self.memory[((at - BASE) / 8) as usize]
    }

    pub(super) fn store(&mut self, at: u64, value: u64) {
        self.memory[((at - BASE) / 8) as usize] = value;
    }

    /// A quadword of a table as the unit sees it.
    pub(super) fn table_quadword(&self, at: u64) -> u64 {
        if self.options.extended & COHERENT != 0 {
            self.load(at)
        } else {
            self.written_back[((at - BASE) / 8) as usize]
        }
    }

    pub(super) fn fault_status(&self) -> u32 {
        if let Some(status) = self.forced_fault_status {
            return status;
        }
        let pending = self.records.iter().any(|record| record.is_valid());
        self.errors | (self.faults.first as u32) << 8 | if pending { PPF } else { 0 }
    }

    pub(super) fn pending_records(&self) -> usize {
        self.records
            .iter()
            .filter(|record| record.is_valid())
            .count()
    }

    /// §7.2.1.
    pub(super) fn record_fault(&mut self, source_id: u16) {
        if self.errors & PFO != 0 {
            return;
        }
        if self.records[self.faults.next].is_valid() {
            self.errors |= PFO;
            return;
        }
        if self.pending_records() == 0 {
            self.faults.first = self.faults.next;
        }
        self.records[self.faults.next] = FaultRecord::new(FaultInfo {
            source_id: SourceId::from_u16(source_id),
            pasid: None,
            reason: 0x71,
            address: crate::arch::address::Iova::new(0x5000),
            request: RequestType::Read,
            privileged: false,
            execute: false,
            address_type: AddressType::Untranslated,
        });
        assert!(self.records[self.faults.next].is_valid());
        self.faults.next = (self.faults.next + 1) % self.records.len();
    }

    fn command(&mut self, value: u32) {
        assert_eq!(
            value & !(PERSISTENT | ONE_SHOT),
            0,
            "reserved command bits {value:#x}"
        );
        let changed = (value ^ self.status) & PERSISTENT | value & ONE_SHOT;
        assert!(
            changed.count_ones() <= 1,
            "several changes at once: {changed:#x}"
        );
        assert!(!self.is_busy, "a command during another one");
        self.status &= !(changed & (SRTP | SIRTP));
        if changed & self.options.stuck_commands != 0 {
            self.is_busy = true;
            return;
        }
        self.complete(changed);
    }

    /// Does what one command bit asks for.
    pub(super) fn complete(&mut self, changed: u32) {
        self.is_busy = false;
        match changed {
            SRTP => {
                let mode = |root| RootTableAddress::from_bits(root).mode();
                if self.status & TE != 0 && self.options.capability & ESRTPS == 0 {
                    let old = self.latched_root.expect("translating without a root");
                    assert_eq!(mode(old), mode(self.root), "mode changed while translating");
                }
                self.latched_root = Some(self.root);
                self.status |= SRTP;
            }
            TE => {
                if self.status & TE == 0 {
                    assert!(self.latched_root.is_some(), "translation without a root");
                }
                self.status ^= TE;
                if self.status & TE != 0 {
                    self.write_root();
                }
            }
            QIE => {
                if self.status & QIE == 0 {
                    assert_eq!(self.tail, 0, "tail at the start");
                } else {
                    // Emulated units turn off no other queue, whatever it stands at.
                    assert_eq!(self.head, self.tail, "turned off while not empty");
                }
                self.status ^= QIE;
                self.head = 0;
            }
            SIRTP => {
                let is_extended = |table| {
                    InterruptRemappingTableAddress::from_bits(table).has_extended_interrupt_mode()
                };
                if let Some(old) = self.latched_interrupt_table
                    && self.status & IRE != 0
                {
                    let new = self.interrupt_table;
                    assert_eq!(is_extended(old), is_extended(new), "EIME changed while on");
                }
                self.latched_interrupt_table = Some(self.interrupt_table);
                self.status |= SIRTP;
            }
            IRE => {
                let table = self.latched_interrupt_table;
                assert!(
                    self.status & IRE != 0 || table.is_some(),
                    "remapping without a table"
                );
                self.status ^= IRE;
            }
            0 => {}
            other => self.status ^= other & PERSISTENT,
        }
    }

    fn write_root(&mut self) {
        if self.options.root_writes > 0 {
            self.options.root_writes -= 1;
            let root = self.latched_root.unwrap() & !0xfff;
            self.store(root + 24, 0x1234_5001);
        }
    }

    fn ring_bytes(&self) -> u64 {
        4096 << (self.queue_address & 7)
    }

    fn descriptor_width(&self) -> DescriptorWidth {
        InvalidationQueueAddress::from_bits(self.queue_address).descriptor_width()
    }

    fn process(&mut self) {
        let mode = self
            .latched_root
            .map_or(TranslationTableMode::Legacy, |root| {
                RootTableAddress::from_bits(root).mode()
            });
        while self.status & QIE != 0
            && self.errors & (IQE | ITE) == 0
            && self.head != self.tail
            && !self.is_frozen
        {
            let width = self.descriptor_width();
            let at = (self.queue_address & !0xfff) + self.head;
            let words = [0, 8, 16, 24].map(|offset| {
                let is_there = offset < u64::from(width.len_bytes());
                if is_there { self.load(at + offset) } else { 0 }
            });
            let injected = match &mut self.error_in {
                Some((0, _)) => self.error_in.take().map(|(_, error)| error),
                Some((count, _)) => {
                    *count -= 1;
                    None
                }
                None => None,
            };
            if let Some(error) = injected {
                self.errors |= error;
                let timed_out = (error == ITE).then_some(SourceId::from_u16(0x42));
                let info = (error == IQE).then_some(QueueErrorInfo::ReservedBit);
                self.error_record = QueueErrorRecord::new(info, timed_out, None).bits();
                return;
            }
            let descriptor = RawDescriptor::from_words(words)
                .decode(width, mode, &self.features)
                .expect("an invalid descriptor");
            if let Descriptor::DeviceTlb { source_id, .. }
            | Descriptor::PasidDeviceTlb { source_id, .. } = descriptor
                && let Some((silent, ahead)) = self.silent
                && silent == source_id
            {
                self.errors |= ITE;
                self.error_record = QueueErrorRecord::new(None, Some(silent), None).bits();
                let left = (self.tail.wrapping_sub(self.head) % self.ring_bytes()) / 32;
                self.head = (self.head + 32 * left.min(ahead)) % self.ring_bytes();
                return;
            }
            if let Descriptor::Wait {
                status, interrupt, ..
            } = descriptor
            {
                assert!(!interrupt);
                let status = status.expect("a wait without status is an error here");
                match self.completion {
                    Completion::Now => self.store_status(status.address, status.data),
                    Completion::AfterNanoseconds(delay) => {
                        self.late
                            .push((self.now + delay, status.address, status.data));
                    }
                    Completion::Never => {}
                }
            }
            self.executed.push(descriptor);
            self.head = (self.head + u64::from(width.len_bytes())) % self.ring_bytes();
        }
        if self.status & TE != 0 && !self.executed.is_empty() {
            self.write_root();
        }
    }

    fn store_status(&mut self, at: u64, value: u32) {
        assert_eq!(at % 4, 0);
        let quadword = at & !7;
        let old = self.load(quadword);
        let new = if at.is_multiple_of(8) {
            old & !0xffff_ffff | u64::from(value)
        } else {
            old & 0xffff_ffff | u64::from(value) << 32
        };
        self.store(quadword, new);
    }

    /// Lets time pass.
    pub(super) fn tick(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        let now = self.now;
        let (due, later) = self.late.iter().partition(|(at, ..)| *at <= now);
        self.late = later;
        let due: Vec<(u64, u64, u32)> = due;
        for (_, at, value) in due {
            self.store_status(at, value);
        }
    }

    fn read(&mut self, offset: u16) -> u64 {
        self.register_reads += 1;
        if self.gone {
            return u64::MAX;
        }
        if let Some((_, value)) = self.options.forced.iter().find(|(at, _)| *at == offset) {
            return *value;
        }
        match offset {
            0x00 => u64::from(self.options.version),
            0x08 => self.options.capability,
            0x10 => self.options.extended,
            0x1c => u64::from(self.status),
            0x20 => self.root,
            0x28 => self.context_command,
            0x34 => u64::from(self.fault_status()),
            0x38 => u64::from(self.fault_event_control),
            0x64 => u64::from(self.protected_memory),
            0x80 => self.head,
            0x88 => self.tail,
            0x90 => self.queue_address,
            0xb0 => self.error_record,
            0xb8 => self.interrupt_table,
            _ => match self.record_at(offset) {
                Some((index, 0)) => self.records[index].low,
                Some((index, 8)) => self.records[index].high,
                Some((index, 12)) => self.records[index].high >> 32,
                _ => 0,
            },
        }
    }

    /// The fault record at a register offset, and the offset in it.
    fn record_at(&self, offset: u16) -> Option<(usize, u16)> {
        let within = offset.checked_sub(self.features.capability.fault_record_offset())?;
        let index = usize::from(within / 16);
        (index < self.records.len()).then_some((index, within % 16))
    }

    fn write(&mut self, offset: u16, value: u64) {
        self.log.push(Event::Register(offset, value));
        if self.gone || self.options.read_only.contains(&offset) {
            return;
        }
        match offset {
            0x18 => self.command(value as u32),
            0x20 => self.root = value,
            0x34 => {
                self.errors &= !(value as u32 & (PFO | IQE | ICE | ITE));
                if !self.resumes_at_tail {
                    self.process();
                }
            }
            0x38 => self.fault_event_control = value as u32,
            0x64 => {
                let enable = value as u32 & 1 << 31;
                self.protected_memory = enable | enable >> 31;
            }
            0x88 => {
                assert!(
                    value < self.ring_bytes()
                        && value.is_multiple_of(self.descriptor_width().len_bytes().into()),
                    "tail {value:#x}"
                );
                self.tail = value;
                self.process();
            }
            0x90 => {
                assert_eq!(self.status & QIE, 0, "queue moved while it runs");
                self.queue_address = value;
            }
            0xb8 => self.interrupt_table = value,
            _ => {
                if let Some((index, 12)) = self.record_at(offset)
                    && value & 1 << 31 != 0
                {
                    self.records[index] = self.records[index].cleared();
                }
            }
        }
    }
}

/// A world that several threads can have, as a unit can.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(super) fn borrow_mut(&self) -> MutexGuard<'_, World> {
        // A test that panics on one thread tells it by its own panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn borrow(&self) -> MutexGuard<'_, World> {
        self.borrow_mut()
    }
}

#[derive(Clone)]
pub(super) struct FakeRegisters(Shared);

impl Registers for FakeRegisters {
    fn read32(&self, register: Register32) -> u32 {
        self.0.borrow_mut().read(register.offset()) as u32
    }

    fn write32(&mut self, register: Register32, value: u32) {
        self.0
            .borrow_mut()
            .write(register.offset(), u64::from(value));
    }

    fn read64(&self, register: Register64) -> u64 {
        self.0.borrow_mut().read(register.offset())
    }

    fn write64(&mut self, register: Register64, value: u64) {
        self.0.borrow_mut().write(register.offset(), value);
    }

    fn window_bytes(&self) -> u64 {
        self.0.borrow().options.window_bytes
    }
}

pub(super) struct FakeHypervisor {
    pub(super) world: Shared,
    pub(super) pool: FramePool<4, 4>,
}

impl HostMemory for FakeHypervisor {
    fn read64(&self, at: Hpa) -> u64 {
        assert_eq!(at.as_u64() % 8, 0);
        self.world.borrow().load(at.as_u64())
    }

    fn write64(&self, at: Hpa, value: u64) {
        assert_eq!(at.as_u64() % 8, 0);
        let mut world = self.world.borrow_mut();
        world.store(at.as_u64(), value);
        world.log.push(Event::Store(at.as_u64(), value));
    }

    fn write32(&self, _: Hpa, _: u32) {
        panic!("not used by this layer");
    }

    fn write128(&self, at: Hpa, value: u128) {
        assert_eq!(at.as_u64() % 16, 0);
        let mut world = self.world.borrow_mut();
        world.store(at.as_u64(), value as u64);
        world.store(at.as_u64() + 8, (value >> 64) as u64);
        world.log.push(Event::Store128(at.as_u64(), value));
    }

    fn fetch_and64(&self, _: Hpa, _: u64) -> u64 {
        panic!("not used by this layer");
    }

    fn compare_exchange64(&self, _: Hpa, _: u64, _: u64) -> u64 {
        panic!("not used by this layer");
    }

    fn copy_from(&self, _: Hpa, _: &mut [u8]) {
        panic!("not used by this layer");
    }

    fn copy_to(&self, _: Hpa, _: &[u8]) {
        panic!("not used by this layer");
    }

    fn flush_line(&self, at: Hpa) {
        let mut world = self.world.borrow_mut();
        let line = at.as_u64() & !63;
        for quadword in (line..line + 64).step_by(8) {
            let value = world.load(quadword);
            world.written_back[((quadword - BASE) / 8) as usize] = value;
        }
        world.log.push(Event::Flush(line));
    }

    fn fence(&self) {
        self.world.borrow_mut().log.push(Event::Fence);
    }
}

impl Frames for FakeHypervisor {
    fn allocate(&self, owner: Owner, order: u8) -> Result<FrameRun, FrameError> {
        held::assert_none("Frames::allocate");
        let mut world = self.world.borrow_mut();
        match &mut world.fail_allocation {
            Some(0) => return Err(FrameError::PoolExhausted { capacity: 0, order }),
            Some(left) => *left -= 1,
            None => {}
        }
        let run = self.pool.take(owner, order)?;
        let start = run.address().as_u64();
        for quadword in (start..start + run.len_bytes()).step_by(8) {
            world.store(quadword, 0);
            world.written_back[((quadword - BASE) / 8) as usize] = STALE;
        }
        Ok(run)
    }

    fn free(&self, run: FrameRun) {
        held::assert_none("Frames::free");
        self.pool.give_back(run);
    }
}

impl Platform for FakeHypervisor {
    fn now_nanoseconds(&self) -> u64 {
        let mut world = self.world.borrow_mut();
        let step = world.clock_step;
        world.tick(step);
        world.now
    }

    fn pause(&self) {
        held::assert_none("Platform::pause");
        let hook = self.world.borrow_mut().on_pause.take();
        if let Some(hook) = hook {
            hook();
        }
    }

    fn deliver_interrupt(&self, _: u32, _: u64, _: u32) {
        panic!("not used by this layer");
    }

    fn set_bus_master(&self, source_id: SourceId, enabled: bool) {
        held::assert_none("Platform::set_bus_master");
        self.world
            .borrow_mut()
            .bus_masters
            .push((source_id, enabled));
    }
}

pub(super) struct Bench {
    pub(super) unit: Unit<FakeRegisters>,
    pub(super) h: FakeHypervisor,
}

impl FakeHypervisor {
    /// What the unit of its machine is to be driven with.
    pub(super) fn config(&self) -> UnitConfig {
        self.world.borrow().options.config
    }
}

impl Bench {
    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.h.world.borrow_mut()
    }

    /// Where a device's context entry is; its table exists.
    pub(super) fn context_entry(&self, source_id: SourceId) -> Hpa {
        let root = self.unit.tables.lock().root().unwrap().as_u64();
        let id = u64::from(source_id.as_u16());
        let half = self.world().load(root + (id >> 8) * 16 + (id >> 7 & 1) * 8);
        Hpa::new((half & !0xfff) + (id & 0x7f) * 32)
    }

    /// What was done to bus mastering.
    pub(super) fn take_bus_masters(&self) -> Vec<(SourceId, bool)> {
        std::mem::take(&mut self.world().bus_masters)
    }

    /// What was stored, flushed and written to registers since the last call.
    pub(super) fn take_log(&self) -> Vec<Event> {
        std::mem::take(&mut self.world().log)
    }

    pub(super) fn take_executed(&self) -> Vec<Descriptor> {
        std::mem::take(&mut self.world().executed)
    }
}

pub(super) const OWNER: Owner = Owner::new(1);

/// A unit that was probed, after `change` has altered what it is.
pub(super) fn bench(change: impl FnOnce(&mut Options)) -> Bench {
    let (registers, h) = parts(change);
    let config = h.world.borrow().options.config;
    Bench {
        unit: Unit::probe(registers, config).unwrap(),
        h,
    }
}

/// A unit that was probed and brought up.
pub(super) fn up(change: impl FnOnce(&mut Options)) -> Bench {
    let bench = bench(change);
    bench.unit.bring_up(&bench.h).unwrap();
    bench.take_log();
    bench.take_executed();
    bench
}

pub(super) fn parts(change: impl FnOnce(&mut Options)) -> (FakeRegisters, FakeHypervisor) {
    let mut options = Options {
        capability: CAPABILITY,
        extended: EXTENDED,
        version: 0x10,
        window_bytes: 4096,
        config: UnitConfig {
            timeout_nanoseconds: 100_000,
            queue_order: 0,
            // Tests of it ask for it.
            interrupts: InterruptConfig {
                remapping: InterruptRemapping::Forbidden,
                ..InterruptConfig::new()
            },
            ..UnitConfig::new(0, 39)
        },
        stuck_commands: 0,
        read_only: BTreeSet::new(),
        forced: Vec::new(),
        root_writes: 0,
    };
    change(&mut options);
    let world = Shared::new(World::new(options));
    let pool = FramePool::new(Hpa::new(BASE), LEN);
    pool.set_quota(OWNER, 128).unwrap();
    let h = FakeHypervisor {
        world: world.clone(),
        pool,
    };
    (FakeRegisters(world), h)
}
