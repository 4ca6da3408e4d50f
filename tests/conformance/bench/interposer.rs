//! Between the library and a bench: counts what passes, and holds back or breaks what a scenario
//! asks for, so that slow hardware, failing allocations and hostile processors exist on every bench.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::interrupt::{Interrupt, InterruptMessage};
use vtd_nest::arch::register::{InvalidationQueueAddress, Register32, Register64, queue_offset};
use vtd_nest::mem::frames::zero_run;
use vtd_nest::mem::{
    FrameError, FramePool, FrameRun, Frames, HostMemory, Owner, Platform, Registers,
};

use super::{Bench, HostRange, Requester, host_offset};

/// Interrupts of guests go to processors with an APIC id below this.
const PROCESSORS: u32 = 8;

/// When hardware sees what was put into its invalidation queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hold {
    /// At once.
    Nothing,
    /// This many nanoseconds late.
    For(u64),
    /// Never; what is held is handed over once this is changed.
    Forever,
}

/// What passed between the library and the bench since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    /// Tail writes of invalidation queues.
    pub(crate) submissions: u64,
    /// Descriptors in them, invalidation waits apart.
    pub(crate) descriptors: u64,
    /// Invalidation wait descriptors.
    pub(crate) waits: u64,
    /// Reads of guest memory by the library.
    pub(crate) guest_reads: u64,
    /// Bytes of guest memory read by the library.
    pub(crate) guest_bytes: u64,
    /// Stores to memory that is not a guest's.
    pub(crate) stores: u64,
}

impl Counts {
    /// What was added since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            submissions: self.submissions - before.submissions,
            descriptors: self.descriptors - before.descriptors,
            waits: self.waits - before.waits,
            guest_reads: self.guest_reads - before.guest_reads,
            guest_bytes: self.guest_bytes - before.guest_bytes,
            stores: self.stores - before.stores,
        }
    }
}

/// A store by the library to memory that is not a guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Store {
    pub(crate) at: Hpa,
    pub(crate) len_bytes: u8,
    pub(crate) value: u128,
}

/// An interrupt that the library delivered to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Delivered {
    pub(crate) unit: u32,
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// The queue of one unit as seen on its way to hardware.
struct UnitQueue {
    registers: Box<dyn Registers>,
    address: u64,
    tail: u32,
    /// A tail not yet handed over, and when it is due.
    held: Option<(Option<u64>, u64)>,
    /// How its tails are held back, if not as those of all units.
    hold: Option<Hold>,
}

type ReadHook = Box<dyn FnMut(&Interposer, Hpa, usize)>;
type StepHook = Box<dyn FnMut(&Interposer)>;

/// What functions of the machine have in configuration space, beside what the library is not told of.
#[derive(Default)]
struct ConfigurationSpaces {
    words: BTreeMap<(SourceId, u16), u32>,
    /// Nothing changes here.
    stuck: Option<u16>,
    writes: Vec<(u16, u16, u64)>,
}

/// The hypervisor that the library runs on: the bench's memory, its own frames and clock.
pub(crate) struct Interposer {
    bench: Box<dyn Bench>,
    pool: FramePool<1024, 256>,
    units: RefCell<Vec<UnitQueue>>,
    hold: Cell<Hold>,
    now: Cell<u64>,
    steps: Cell<(u64, u64)>,
    allocations_left: Cell<Option<u32>>,
    guests: HostRange,
    counts: Cell<Counts>,
    descriptors: RefCell<Vec<[u64; 4]>>,
    stores: RefCell<Option<Vec<Store>>>,
    interrupts: RefCell<Vec<Delivered>>,
    bus_master: RefCell<Vec<(SourceId, bool)>>,
    configuration: RefCell<ConfigurationSpaces>,
    on_guest_read: RefCell<Option<ReadHook>>,
    on_step: RefCell<Option<StepHook>>,
}

impl Interposer {
    pub(crate) fn new(bench: Box<dyn Bench>) -> Rc<Self> {
        let layout = bench.layout();
        let pool = FramePool::new(layout.frames.start, layout.frames.len_bytes);
        for owner in 0..256 {
            // Every number below 256 has a quota.
            let _ = pool.set_quota(Owner::new(owner), pool.capacity());
        }
        Rc::new(Self {
            guests: layout.guests,
            pool,
            units: RefCell::default(),
            hold: Cell::new(Hold::Nothing),
            now: Cell::new(0),
            steps: Cell::new((100, 1_000)),
            allocations_left: Cell::new(None),
            counts: Cell::default(),
            descriptors: RefCell::default(),
            stores: RefCell::new(None),
            interrupts: RefCell::default(),
            bus_master: RefCell::default(),
            configuration: RefCell::default(),
            on_guest_read: RefCell::new(None),
            on_step: RefCell::new(None),
            bench,
        })
    }

    /// The registers of a unit, for the library.
    pub(crate) fn registers(self: &Rc<Self>, unit: usize) -> Option<Observed> {
        let mut units = self.units.borrow_mut();
        if units.len() == unit {
            units.push(UnitQueue {
                registers: self.bench.registers(unit)?,
                address: 0,
                tail: 0,
                held: None,
                hold: None,
            });
        }
        Some(Observed {
            interposer: self.clone(),
            unit,
        })
    }

    pub(crate) fn bench(&self) -> &dyn Bench {
        &*self.bench
    }

    /// The frame pool, for quotas and counts.
    pub(crate) fn pool(&self) -> &FramePool<1024, 256> {
        &self.pool
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.get()
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    /// Quadwords of the descriptors submitted since the last call, invalidation waits apart.
    pub(crate) fn take_descriptors(&self) -> Vec<[u64; 4]> {
        self.descriptors.take()
    }

    /// Remembers stores to memory that is not a guest's from now on.
    pub(crate) fn record_stores(&self) {
        *self.stores.borrow_mut() = Some(Vec::new());
    }

    /// The stores since [`record_stores`](Self::record_stores), which ends with this.
    pub(crate) fn take_stores(&self) -> Vec<Store> {
        self.stores.take().unwrap_or_default()
    }

    pub(crate) fn take_interrupts(&self) -> Vec<Delivered> {
        self.interrupts.take()
    }

    /// Switches of bus mastering since the last call.
    pub(crate) fn take_bus_master_changes(&self) -> Vec<(SourceId, bool)> {
        self.bus_master.take()
    }

    /// Gives a function of the machine a configuration space of these doublewords; the rest reads as
    /// zero. Writes to `stuck` do nothing.
    pub(crate) fn set_configuration(
        &self,
        source_id: SourceId,
        words: &[(u16, u32)],
        stuck: Option<u16>,
    ) {
        let mut spaces = self.configuration.borrow_mut();
        spaces
            .words
            .retain(|(function, _), _| *function != source_id);
        let words = words.iter().map(|(at, word)| ((source_id, *at), *word));
        spaces.words.extend(words);
        spaces.stuck = stuck;
    }

    /// Writes of configuration space since the last call, and how many submissions hardware had done by
    /// then.
    pub(crate) fn take_configuration_writes(&self) -> Vec<(u16, u16, u64)> {
        std::mem::take(&mut self.configuration.borrow_mut().writes)
    }

    /// Lets only this many allocations succeed from now on; `None` lifts that.
    pub(crate) fn fail_allocations_after(&self, count: Option<u32>) {
        self.allocations_left.set(count);
    }

    /// How far the clock moves with each look at it and with each pause, in nanoseconds.
    pub(crate) fn set_steps(&self, now: u64, pause: u64) {
        self.steps.set((now, pause));
    }

    /// Holds submissions back from now on, or hands over what was held.
    pub(crate) fn hold(&self, hold: Hold) {
        self.hold.set(hold);
        if hold == Hold::Nothing {
            self.hand_over(|_| true);
        }
    }

    /// As [`hold`](Self::hold), for one unit from now on.
    pub(crate) fn hold_unit(&self, unit: usize, hold: Hold) {
        if let Some(unit) = self.units.borrow_mut().get_mut(unit) {
            unit.hold = Some(hold);
        }
    }

    /// Calls this before each of the library's reads of guest memory.
    pub(crate) fn on_guest_read(&self, hook: impl FnMut(&Self, Hpa, usize) + 'static) {
        *self.on_guest_read.borrow_mut() = Some(Box::new(hook));
    }

    /// Calls this after each of the library's stores to memory that is not a guest's, and after
    /// each submission, command and address written to a register: a device that is active in
    /// between.
    pub(crate) fn on_step(&self, hook: impl FnMut(&Self) + 'static) {
        *self.on_step.borrow_mut() = Some(Box::new(hook));
    }

    /// Ends [`on_guest_read`](Self::on_guest_read) and [`on_step`](Self::on_step).
    pub(crate) fn clear_hooks(&self) {
        self.on_guest_read.take();
        self.on_step.take();
    }

    /// A processor of the guest writes memory: nothing is counted, lines are flushed.
    pub(crate) fn guest_write(&self, at: Hpa, from: &[u8]) {
        let memory = self.bench.memory();
        memory.copy_to(at, from);
        let first = at.as_u64() & !63;
        let last = (at.as_u64() + from.len().max(1) as u64 - 1) & !63;
        for line in (first..=last).step_by(64) {
            memory.flush_line(Hpa::new(line));
        }
        memory.fence();
    }

    /// A processor of the guest reads memory: nothing is counted.
    pub(crate) fn guest_read(&self, at: Hpa, into: &mut [u8]) {
        self.bench.memory().copy_from(at, into);
    }

    /// A device reads.
    pub(crate) fn dma_read(&self, requester: Requester, address: Iova, into: &mut [u8]) {
        self.bench.dma_read(requester, address, into);
    }

    /// A device sends an interrupt message.
    pub(crate) fn send_message(&self, source_id: SourceId, message: InterruptMessage) {
        self.bench.send_message(source_id, message);
    }

    /// A device writes.
    pub(crate) fn dma_write(&self, requester: Requester, address: Iova, from: &[u8]) {
        self.bench.dma_write(requester, address, from);
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, nanoseconds: u64) {
        let now = self.now.get().saturating_add(nanoseconds);
        self.now.set(now);
        self.bench.advance(nanoseconds);
        self.hand_over(|due| due.is_some_and(|due| due <= now));
    }

    fn hand_over(&self, is_due: impl Fn(Option<u64>) -> bool) {
        for unit in self.units.borrow_mut().iter_mut() {
            if let Some((due, tail)) = unit.held
                && is_due(due)
            {
                unit.held = None;
                unit.registers
                    .write64(Register64::INVALIDATION_QUEUE_TAIL, tail);
            }
        }
    }

    fn step(&self) {
        let hook = self.on_step.take();
        if let Some(mut hook) = hook {
            hook(self);
            let mut place = self.on_step.borrow_mut();
            if place.is_none() {
                *place = Some(hook);
            }
        }
    }

    fn note_read(&self, at: Hpa, len_bytes: usize) {
        if !self.guests.contains(at) {
            return;
        }
        self.count(|counts| {
            counts.guest_reads += 1;
            counts.guest_bytes += len_bytes as u64;
        });
        let hook = self.on_guest_read.take();
        if let Some(mut hook) = hook {
            hook(self, at, len_bytes);
            let mut place = self.on_guest_read.borrow_mut();
            if place.is_none() {
                *place = Some(hook);
            }
        }
    }

    fn note_store(&self, at: Hpa, len_bytes: u8, value: u128) {
        if self.guests.contains(at) {
            return;
        }
        self.count(|counts| counts.stores += 1);
        if let Some(stores) = self.stores.borrow_mut().as_mut() {
            stores.push(Store {
                at,
                len_bytes,
                value,
            });
        }
        self.step();
    }

    /// A tail on its way to hardware.
    fn submit(&self, index: usize, tail: u64) {
        {
            let mut units = self.units.borrow_mut();
            let unit = &mut units[index];
            let queue = InvalidationQueueAddress::from_bits(unit.address);
            let width = queue.descriptor_width().len_bytes();
            let (end, size) = (queue_offset(tail), queue.size_bytes());
            while unit.tail != end {
                let at = host_offset(queue.base(), u64::from(unit.tail));
                let word = |index: u64| self.bench.memory().read64(host_offset(at, 8 * index));
                let wide = width == 32;
                let words = [
                    word(0),
                    word(1),
                    if wide { word(2) } else { 0 },
                    if wide { word(3) } else { 0 },
                ];
                if words[0] & 0xf == 5 {
                    self.count(|counts| counts.waits += 1);
                } else {
                    self.count(|counts| counts.descriptors += 1);
                    self.descriptors.borrow_mut().push(words);
                }
                unit.tail = (unit.tail + width) % size;
            }
            self.count(|counts| counts.submissions += 1);
            match unit.hold.unwrap_or(self.hold.get()) {
                Hold::Nothing => {
                    unit.held = None;
                    unit.registers
                        .write64(Register64::INVALIDATION_QUEUE_TAIL, tail);
                }
                Hold::For(delay) => {
                    let due = self.now.get().saturating_add(delay);
                    unit.held = Some((Some(due), tail));
                }
                Hold::Forever => unit.held = Some((None, tail)),
            }
        }
        self.step();
    }
}

impl HostMemory for Interposer {
    fn read64(&self, at: Hpa) -> u64 {
        self.note_read(at, 8);
        self.bench.memory().read64(at)
    }
    fn write64(&self, at: Hpa, value: u64) {
        self.bench.memory().write64(at, value);
        self.note_store(at, 8, value.into());
    }
    fn write32(&self, at: Hpa, value: u32) {
        self.bench.memory().write32(at, value);
        self.note_store(at, 4, value.into());
    }
    fn write128(&self, at: Hpa, value: u128) {
        self.bench.memory().write128(at, value);
        self.note_store(at, 16, value);
    }
    fn fetch_and64(&self, at: Hpa, mask: u64) -> u64 {
        let old = self.bench.memory().fetch_and64(at, mask);
        self.note_store(at, 8, (old & mask).into());
        old
    }
    fn compare_exchange64(&self, at: Hpa, current: u64, new: u64) -> u64 {
        self.bench.memory().compare_exchange64(at, current, new)
    }
    fn copy_from(&self, at: Hpa, into: &mut [u8]) {
        self.note_read(at, into.len());
        self.bench.memory().copy_from(at, into);
    }
    fn copy_to(&self, at: Hpa, from: &[u8]) {
        self.bench.memory().copy_to(at, from);
    }
    fn flush_line(&self, at: Hpa) {
        self.bench.memory().flush_line(at);
    }
    fn fence(&self) {
        self.bench.memory().fence();
    }
}

impl Frames for Interposer {
    fn allocate(&self, owner: Owner, order: u8) -> Result<FrameRun, FrameError> {
        if let Some(left) = self.allocations_left.get() {
            let capacity = self.pool.capacity();
            let left = left
                .checked_sub(1)
                .ok_or(FrameError::PoolExhausted { capacity, order })?;
            self.allocations_left.set(Some(left));
        }
        let run = self.pool.take(owner, order)?;
        zero_run(self.bench.memory(), &run);
        Ok(run)
    }

    fn free(&self, run: FrameRun) {
        self.pool.give_back(run);
    }
}

impl Platform for Interposer {
    fn now_nanoseconds(&self) -> u64 {
        self.pass(self.steps.get().0);
        self.now.get()
    }

    fn pause(&self) {
        self.pass(self.steps.get().1);
    }

    fn deliver_interrupt(&self, unit: u32, address: u64, data: u32) {
        self.interrupts.borrow_mut().push(Delivered {
            unit,
            address,
            data,
        });
    }

    /// Guests own the first processors, each with all its vectors.
    fn route_interrupt(&self, _unit: u32, interrupt: &Interrupt) -> Option<Interrupt> {
        (interrupt.destination < PROCESSORS).then_some(*interrupt)
    }

    fn set_bus_master(&self, source_id: SourceId, enabled: bool) {
        self.bus_master.borrow_mut().push((source_id, enabled));
        self.bench.set_bus_master(source_id, enabled);
    }

    fn read_configuration(&self, source_id: SourceId, offset: u16) -> u32 {
        let spaces = self.configuration.borrow();
        if !spaces.words.contains_key(&(source_id, 0x100)) {
            return u32::MAX;
        }
        let word = spaces.words.get(&(source_id, offset));
        word.copied().unwrap_or_default()
    }

    fn write_configuration(&self, source_id: SourceId, offset: u16, value: u16) {
        let submissions = self.counts().submissions;
        let mut spaces = self.configuration.borrow_mut();
        spaces.writes.push((offset, value, submissions));
        if spaces.stuck == Some(offset) {
            return;
        }
        let word = spaces.words.entry((source_id, offset & !3)).or_default();
        let shift = 8 * u32::from(offset & 2);
        *word = *word & !(0xffff << shift) | u32::from(value) << shift;
    }
}

/// A unit's registers, watched.
pub(crate) struct Observed {
    interposer: Rc<Interposer>,
    unit: usize,
}

impl Registers for Observed {
    fn read32(&self, register: Register32) -> u32 {
        self.interposer.units.borrow()[self.unit]
            .registers
            .read32(register)
    }

    fn write32(&mut self, register: Register32, value: u32) {
        self.interposer.units.borrow_mut()[self.unit]
            .registers
            .write32(register, value);
        // A device that faults whenever a record is taken would never be done with.
        let commands = [
            Register32::GLOBAL_COMMAND,
            Register32::PROTECTED_MEMORY_ENABLE,
        ];
        if commands.contains(&register) {
            self.interposer.step();
        }
    }

    fn read64(&self, register: Register64) -> u64 {
        self.interposer.units.borrow()[self.unit]
            .registers
            .read64(register)
    }

    fn write64(&mut self, register: Register64, value: u64) {
        if register == Register64::INVALIDATION_QUEUE_TAIL {
            self.interposer.submit(self.unit, value);
            return;
        }
        {
            let mut units = self.interposer.units.borrow_mut();
            let unit = &mut units[self.unit];
            if register == Register64::INVALIDATION_QUEUE_ADDRESS {
                unit.address = value;
                unit.tail = 0;
            }
            unit.registers.write64(register, value);
        }
        self.interposer.step();
    }

    fn window_bytes(&self) -> u64 {
        self.interposer.units.borrow()[self.unit]
            .registers
            .window_bytes()
    }
}
