//! The unit as a whole, and the handle that tests and the library hold.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use vtd_nest::arch::address::Hpa;
use vtd_nest::arch::capability::CapabilityField;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::Registers;

use crate::bits;
use crate::cache::Caches;
use crate::clock::Clock;
use crate::config::{ModelConfig, Pace};
use crate::device_tlb::Devices;
use crate::dma::Request;
use crate::domain_rules::DomainRules;
use crate::event::EventMessage;
use crate::interrupt::{DeviceInterrupt, InterruptEntryCache};
use crate::memory::Memory;
use crate::page_request::PageRequests;
use crate::queue::{Queue, SubmittedDescriptor};
use crate::registers::{RegisterFile, SRTP};
use crate::violation::Violation;

/// What a unit did, counted since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Reads of tables and paging structures, each piece counted.
    pub fetches: u64,
    /// Requests answered by the IOTLB.
    pub iotlb_hits: u64,
    /// Requests that needed more.
    pub iotlb_misses: u64,
    /// Remappable interrupt requests answered by the interrupt-entry cache.
    pub interrupt_entry_hits: u64,
    /// Invalidation descriptors executed, waits included.
    pub descriptors: u64,
    /// Wait descriptors completed.
    pub waits: u64,
    /// Faults that blocked a request, recorded or not.
    pub faults: u64,
    /// Accesses dropped for touching a protected memory region.
    pub protected: u64,
}

/// When something is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    At(u64),
    Manual,
    Never,
}

impl Due {
    pub(crate) fn from_pace(pace: Pace, now: u64) -> Self {
        match pace {
            Pace::Immediate => Self::At(now),
            Pace::After(nanoseconds) => Self::At(now.saturating_add(nanoseconds)),
            Pace::Manual => Self::Manual,
            Pace::Never => Self::Never,
        }
    }

    /// Whether it is done by `now`; `manual` when the test says so.
    pub(crate) fn is_over(self, now: u64, manual: bool) -> bool {
        match self {
            Self::At(due) => due <= now,
            Self::Manual => manual,
            Self::Never => false,
        }
    }
}

pub(crate) struct Unit {
    pub(crate) config: ModelConfig,
    pub(crate) clock: Clock,
    pub(crate) memory: Memory,
    pub(crate) registers: RegisterFile,
    pub(crate) queue: Queue,
    pub(crate) caches: Caches,
    pub(crate) interrupt_entries: InterruptEntryCache,
    pub(crate) domains: DomainRules,
    pub(crate) devices: Devices,
    pub(crate) page_requests: PageRequests,
    pub(crate) violations: Vec<Violation>,
    pub(crate) messages: Vec<EventMessage>,
    pub(crate) interrupts: Vec<DeviceInterrupt>,
    pub(crate) counters: Counters,
    /// What devices ask for again and again.
    pub(crate) busy: Vec<Request>,
}

impl Unit {
    pub(crate) fn violation(&mut self, violation: Violation) {
        self.violations.push(violation);
    }

    /// One read of the unit.
    pub(crate) fn fetch<const N: usize>(&mut self, at: u64, snooped: bool) -> Option<[u64; N]> {
        self.counters.fetches += 1;
        self.memory.fetch_entry(at, snooped)
    }

    /// Drops all DMA-remapping caches.
    pub(crate) fn drop_all_caches(&mut self) {
        self.caches.clear();
        self.domains.clear();
    }

    /// Does what is due by now.
    pub(crate) fn advance(&mut self, manual: bool) {
        self.complete_command(manual);
        self.accept_page_requests(manual);
        self.run_queue(manual);
    }
}

/// A remapping unit in software; clones are the same unit.
///
/// `Registers` is implemented on it for the library; the other methods are for tests: DMA by
/// devices ([`dma_read`](Self::dma_read)), time ([`run`](Self::run)), and what was observed.
#[derive(Clone)]
pub struct ModelUnit(pub(crate) Rc<RefCell<Unit>>);

impl fmt::Debug for ModelUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = self.0.borrow();
        f.debug_struct("ModelUnit")
            .field("status", &format_args!("{:#x}", unit.registers.status))
            .field("violations", &unit.violations)
            .finish_non_exhaustive()
    }
}

impl ModelUnit {
    /// A unit after reset.
    pub fn new(config: ModelConfig, memory: &Memory, clock: &Clock) -> Self {
        let caches = Caches::new(config.cache_mode, config.seed);
        let interrupt_entries = InterruptEntryCache::new(config.cache_mode, config.seed);
        let registers = RegisterFile::new(config.fault_records());
        if config.has_cap(CapabilityField::WRITE_BUFFER_FLUSH) {
            memory.use_write_buffer();
        }
        Self(Rc::new(RefCell::new(Unit {
            config,
            clock: clock.clone(),
            memory: memory.clone(),
            registers,
            queue: Queue::default(),
            caches,
            interrupt_entries,
            domains: DomainRules::default(),
            devices: Devices::default(),
            page_requests: PageRequests::default(),
            violations: Vec::new(),
            messages: Vec::new(),
            interrupts: Vec::new(),
            counters: Counters::default(),
            busy: Vec::new(),
        })))
    }

    /// The configuration.
    pub fn config(&self) -> ModelConfig {
        self.0.borrow().config.clone()
    }

    /// The root table in force, if one was ever set.
    pub fn root_table(&self) -> Option<Hpa> {
        let unit = self.0.borrow();
        let is_set = unit.registers.status & SRTP != 0;
        is_set.then(|| Hpa::new(bits::page(unit.registers.root)))
    }

    /// Changes when descriptors fetched from now on are executed.
    pub fn set_queue_pace(&self, pace: Pace) {
        self.0.borrow_mut().config.queue_pace = pace;
    }

    /// Changes when commands written from now on complete.
    pub fn set_command_pace(&self, pace: Pace) {
        self.0.borrow_mut().config.command_pace = pace;
    }

    /// Does what is due by the clock; register accesses and the hypervisor's clock do so too.
    pub fn advance(&self) {
        self.0.borrow_mut().advance(false);
    }

    /// Does what is due, and everything of [`Pace::Manual`].
    pub fn run(&self) {
        self.0.borrow_mut().advance(true);
    }

    /// Executes one fetched descriptor, also one of [`Pace::Manual`]; whether there was one.
    pub fn run_one(&self) -> bool {
        self.0.borrow_mut().execute_one(true)
    }

    /// From now on devices make these requests again behind every descriptor that the unit
    /// executes, as devices do that are never told of an invalidation. What they find is cached;
    /// faults are not recorded. An empty list ends it.
    pub fn set_busy(&self, requests: &[Request]) {
        self.0.borrow_mut().busy = requests.to_vec();
    }

    /// Makes a device answer device-TLB invalidations, or not.
    pub fn set_device_silent(&self, source_id: SourceId, silent: bool) {
        let silent_devices = &mut self.0.borrow_mut().queue.silent_devices;
        if silent {
            silent_devices.insert(source_id.as_u16());
        } else {
            silent_devices.remove(&source_id.as_u16());
        }
    }

    /// The breaches of the architecture so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.0.borrow().violations.clone()
    }

    /// The breaches so far, which are forgotten.
    pub fn take_violations(&self) -> Vec<Violation> {
        std::mem::take(&mut self.0.borrow_mut().violations)
    }

    /// # Panics
    ///
    /// If software broke the architecture.
    #[track_caller]
    pub fn assert_no_violations(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "violations: {violations:#x?}");
    }

    /// The event messages sent since the last call.
    pub fn take_messages(&self) -> Vec<EventMessage> {
        std::mem::take(&mut self.0.borrow_mut().messages)
    }

    /// The interrupts that devices sent, and that were not blocked, since the last call.
    pub fn take_interrupts(&self) -> Vec<DeviceInterrupt> {
        std::mem::take(&mut self.0.borrow_mut().interrupts)
    }

    /// The descriptors found valid since the last call, in queue order.
    pub fn take_descriptors(&self) -> Vec<SubmittedDescriptor> {
        std::mem::take(&mut self.0.borrow_mut().queue.submitted)
    }

    /// The descriptors executed since the last call, in the order of their execution.
    pub fn take_executed(&self) -> Vec<[u64; 4]> {
        std::mem::take(&mut self.0.borrow_mut().queue.executed)
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        self.0.borrow().counters
    }

    /// Empties every cache, as hardware may at any time.
    pub fn evict_all(&self) {
        let mut unit = self.0.borrow_mut();
        unit.caches.clear();
        unit.interrupt_entries.clear();
    }
}

impl Registers for ModelUnit {
    fn read32(&self, register: Register32) -> u32 {
        self.0.borrow_mut().read_register32(register.offset())
    }

    fn write32(&mut self, register: Register32, value: u32) {
        self.0
            .borrow_mut()
            .write_register32(register.offset(), value);
    }

    fn read64(&self, register: Register64) -> u64 {
        self.0.borrow_mut().read_register64(register.offset())
    }

    fn write64(&mut self, register: Register64, value: u64) {
        self.0
            .borrow_mut()
            .write_register64(register.offset(), value);
    }

    fn window_bytes(&self) -> u64 {
        self.0.borrow().config.window_bytes()
    }
}
