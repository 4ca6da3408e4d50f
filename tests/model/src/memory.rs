//! Host-physical memory with two views: the processor's, and what has reached memory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use rustc_hash::FxHashMap;
use vtd_nest::arch::address::Hpa;
use vtd_nest::mem::HostMemory;

const PAGE_BYTES: u64 = 4096;
const LINE_BYTES: u64 = 64;

type Line = [u64; 8];
type Page = Box<[u64; 512]>;

/// When a flushed line reaches memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FlushMode {
    /// At the next fence, with what the line held when it was flushed.
    #[default]
    AtFence,
    /// At once.
    Immediate,
}

/// One thing that happened to memory, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryEvent {
    /// A store of the processor; an atomic AND is a store of its result.
    Store {
        /// Where.
        address: Hpa,
        /// What, in the low bits.
        value: u128,
        /// Width in bytes: 1, 4, 8 or 16.
        width_bytes: u8,
    },
    /// A line was flushed.
    Flush {
        /// First byte of the line.
        line: Hpa,
    },
    /// A fence.
    Fence,
    /// A store of the remapping unit: wait status, accessed and dirty bits, posted interrupts.
    HardwareStore {
        /// Where.
        address: Hpa,
        /// What.
        value: u64,
        /// Width in bytes: 4 or 8.
        width_bytes: u8,
    },
    /// The remapping unit took a valid descriptor from its invalidation queue.
    Descriptor {
        /// The quadwords; the last two are 0 in a queue of 128-bit descriptors.
        words: [u64; 4],
    },
    /// The test called [`Memory::mark`].
    Mark,
}

/// A read that the remapping unit is about to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// Where.
    pub address: Hpa,
    /// How much, read as one access: 8 or 16 bytes, 64 of a posted-interrupt descriptor.
    pub len_bytes: u8,
}

type FetchHook = Box<dyn FnMut(&Memory, Fetch)>;

/// Sparse host-physical memory; clones are the same memory.
///
/// The processor (`HostMemory`) and snooped accesses see the newest bytes; accesses that are not
/// snooped see a line as it was when it was last flushed. Nothing is ever written back by itself.
#[derive(Clone)]
pub struct Memory(Rc<Inner>);

struct Inner {
    state: RefCell<State>,
    hook: RefCell<Option<FetchHook>>,
}

#[derive(Default)]
struct State {
    /// Where memory is: first byte, one past the last.
    ram: Vec<(u64, u64)>,
    /// Where hardware's accesses fail.
    poisoned: Vec<(u64, u64)>,
    pages: FxHashMap<u64, Page>,
    /// What memory holds of the lines that the processor's caches have changed.
    unflushed: BTreeMap<u64, Line>,
    /// Flushed lines that wait for the fence.
    flushing: Vec<(u64, Line)>,
    /// With write buffers (`CAP.RWBF`), lines with stores that they hold back from units, as units see
    /// them; `None` without.
    write_buffer: Option<FxHashMap<u64, Line>>,
    flush_mode: FlushMode,
    log: Option<Vec<MemoryEvent>>,
    stores: u64,
    outside: u64,
}

/// A copy of all memory, both views.
#[derive(Clone)]
pub struct MemorySnapshot {
    pages: FxHashMap<u64, Page>,
    unflushed: BTreeMap<u64, Line>,
    flushing: Vec<(u64, Line)>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.borrow();
        f.debug_struct("Memory")
            .field("ram", &state.ram)
            .field("unflushed_lines", &state.unflushed.len())
            .finish_non_exhaustive()
    }
}

impl State {
    fn is_ram(&self, at: u64, len_bytes: u64) -> bool {
        let Some(end) = at.checked_add(len_bytes) else {
            return false;
        };
        self.ram
            .iter()
            .any(|&(first, past)| first <= at && end <= past)
    }

    fn is_poisoned(&self, at: u64, len_bytes: u64) -> bool {
        let end = at.saturating_add(len_bytes);
        self.poisoned
            .iter()
            .any(|&(first, past)| at < past && first < end)
    }

    fn word(&self, at: u64) -> u64 {
        self.pages
            .get(&(at / PAGE_BYTES))
            .map_or(0, |page| page[(at % PAGE_BYTES / 8) as usize])
    }

    fn set_word(&mut self, at: u64, value: u64) {
        let page = self
            .pages
            .entry(at / PAGE_BYTES)
            .or_insert_with(|| Box::new([0; 512]));
        page[(at % PAGE_BYTES / 8) as usize] = value;
    }

    fn line(&self, line: u64) -> Line {
        std::array::from_fn(|i| self.word(line + 8 * i as u64))
    }

    /// A word as memory holds it, whatever the processor's caches have.
    fn memory_word(&self, at: u64) -> u64 {
        match self.unflushed.get(&(at & !(LINE_BYTES - 1))) {
            Some(line) => line[(at % LINE_BYTES / 8) as usize],
            None => self.word(at),
        }
    }

    /// The processor changes bits of a word.
    fn store(&mut self, at: u64, value: u64, mask: u64) {
        let old = self.word(at);
        let line = at & !(LINE_BYTES - 1);
        if !self.unflushed.contains_key(&line) {
            let content = self.line(line);
            self.unflushed.insert(line, content);
        }
        let seen = self.line(line);
        if let Some(buffer) = &mut self.write_buffer {
            buffer.entry(line).or_insert(seen);
        }
        self.set_word(at, old & !mask | value & mask);
    }

    /// A snooped store of hardware: seen by all.
    fn hardware_store(&mut self, at: u64, value: u64, mask: u64) {
        let old = self.word(at);
        self.set_word(at, old & !mask | value & mask);
        if let Some(line) = self.unflushed.get_mut(&(at & !(LINE_BYTES - 1))) {
            let word = &mut line[(at % LINE_BYTES / 8) as usize];
            *word = *word & !mask | value & mask;
        }
        let line = at & !(LINE_BYTES - 1);
        if let Some(line) = self.write_buffer.as_mut().and_then(|it| it.get_mut(&line)) {
            let word = &mut line[(at % LINE_BYTES / 8) as usize];
            *word = *word & !mask | value & mask;
        }
    }

    /// A word as write buffers hide it, if they do.
    fn buffered_word(&self, at: u64) -> Option<u64> {
        let line = self.write_buffer.as_ref()?.get(&(at & !(LINE_BYTES - 1)))?;
        Some(line[(at % LINE_BYTES / 8) as usize])
    }

    fn write_back(&mut self, line: u64, content: Line) {
        if self.line(line) == content {
            self.unflushed.remove(&line);
        } else if let Some(old) = self.unflushed.get_mut(&line) {
            *old = content;
        }
    }

    fn note(&mut self, event: MemoryEvent) {
        if matches!(event, MemoryEvent::Store { .. }) {
            self.stores += 1;
        }
        if let Some(log) = &mut self.log {
            log.push(event);
        }
    }
}

impl Memory {
    /// Memory from address 0 up to `ram_bytes`, all zero, clean.
    pub fn new(ram_bytes: u64) -> Self {
        let memory = Self(Rc::new(Inner {
            state: RefCell::default(),
            hook: RefCell::default(),
        }));
        memory.add_ram(Hpa::new(0), ram_bytes);
        memory
    }

    /// Adds a range of memory.
    pub fn add_ram(&self, at: Hpa, len_bytes: u64) {
        let mut state = self.0.state.borrow_mut();
        state
            .ram
            .push((at.as_u64(), at.as_u64().saturating_add(len_bytes)));
    }

    /// Whether the whole range is memory.
    pub fn is_ram(&self, at: Hpa, len_bytes: u64) -> bool {
        self.0.state.borrow().is_ram(at.as_u64(), len_bytes)
    }

    /// From now on the unit's reads of this range fail.
    pub fn poison(&self, at: Hpa, len_bytes: u64) {
        let mut state = self.0.state.borrow_mut();
        state
            .poisoned
            .push((at.as_u64(), at.as_u64().saturating_add(len_bytes)));
    }

    /// Undoes every [`poison`](Self::poison).
    pub fn heal(&self) {
        self.0.state.borrow_mut().poisoned.clear();
    }

    /// When flushed lines reach memory.
    pub fn set_flush_mode(&self, mode: FlushMode) {
        self.0.state.borrow_mut().flush_mode = mode;
    }

    /// Writes all changed lines back, as the processor's caches may at any time.
    pub fn write_back_all(&self) {
        let mut state = self.0.state.borrow_mut();
        state.unflushed.clear();
        state.flushing.clear();
    }

    /// Whether memory lacks something that the processor stored to this line.
    pub fn is_line_unflushed(&self, at: Hpa) -> bool {
        let state = self.0.state.borrow();
        let line = at.as_u64() & !(LINE_BYTES - 1);
        state
            .unflushed
            .get(&line)
            .is_some_and(|content| *content != state.line(line))
    }

    /// Starts recording [`MemoryEvent`]s, from an empty log.
    pub fn start_log(&self) {
        self.0.state.borrow_mut().log = Some(Vec::new());
    }

    /// What was recorded since the start or the last call.
    pub fn take_log(&self) -> Vec<MemoryEvent> {
        let mut state = self.0.state.borrow_mut();
        state.log.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Puts a mark into the log: what software was at is complete.
    pub fn mark(&self) {
        self.0.state.borrow_mut().note(MemoryEvent::Mark);
    }

    /// Number of stores of the processor so far.
    pub fn store_count(&self) -> u64 {
        self.0.state.borrow().stores
    }

    /// Number of accesses of the processor so far where there is no memory.
    pub fn outside_count(&self) -> u64 {
        self.0.state.borrow().outside
    }

    /// Calls `hook` before every read of the unit. It may change memory, to tear entries; it must
    /// not touch the unit.
    pub fn set_fetch_hook(&self, hook: impl FnMut(&Memory, Fetch) + 'static) {
        *self.0.hook.borrow_mut() = Some(Box::new(hook));
    }

    /// Takes the hook out.
    pub fn clear_fetch_hook(&self) {
        *self.0.hook.borrow_mut() = None;
    }

    /// Copies all memory.
    pub fn snapshot(&self) -> MemorySnapshot {
        let state = self.0.state.borrow();
        MemorySnapshot {
            pages: state.pages.clone(),
            unflushed: state.unflushed.clone(),
            flushing: state.flushing.clone(),
        }
    }

    /// Puts a copy back.
    pub fn restore(&self, snapshot: &MemorySnapshot) {
        let mut state = self.0.state.borrow_mut();
        state.pages = snapshot.pages.clone();
        state.unflushed = snapshot.unflushed.clone();
        state.flushing = snapshot.flushing.clone();
    }

    /// From now on stores of the processor stay in the root complex's write buffers, where units do not
    /// see them, until those are flushed (§6.8).
    pub(crate) fn use_write_buffer(&self) {
        self.0.state.borrow_mut().write_buffer = Some(FxHashMap::default());
    }

    /// Lets units see what the write buffers hold.
    pub(crate) fn flush_write_buffer(&self) {
        if let Some(buffer) = &mut self.0.state.borrow_mut().write_buffer {
            buffer.clear();
        }
    }

    /// One read of a remapping structure: as [`fetch`](Self::fetch), past write buffers.
    pub(crate) fn fetch_entry<const N: usize>(&self, at: u64, snooped: bool) -> Option<[u64; N]> {
        let mut words = self.fetch(at, snooped)?;
        let state = self.0.state.borrow();
        for (i, word) in words.iter_mut().enumerate() {
            *word = state.buffered_word(at + 8 * i as u64).unwrap_or(*word);
        }
        Some(words)
    }

    /// One read of the unit: `N` quadwords as one access. `None` where the access fails.
    pub(crate) fn fetch<const N: usize>(&self, at: u64, snooped: bool) -> Option<[u64; N]> {
        let fetch = Fetch {
            address: Hpa::new(at),
            len_bytes: 8 * N as u8,
        };
        let hook = self.0.hook.borrow_mut().take();
        if let Some(mut hook) = hook {
            hook(self, fetch);
            let mut slot = self.0.hook.borrow_mut();
            if slot.is_none() {
                *slot = Some(hook);
            }
        }
        let state = self.0.state.borrow();
        let len_bytes = u64::from(fetch.len_bytes);
        if !state.is_ram(at, len_bytes) || state.is_poisoned(at, len_bytes) {
            return None;
        }
        Some(std::array::from_fn(|i| {
            let at = at + 8 * i as u64;
            if snooped {
                state.word(at)
            } else {
                state.memory_word(at)
            }
        }))
    }

    /// An atomic update of the unit; `None` where the access fails, else whether `old` was there.
    pub(crate) fn compare_exchange(&self, at: u64, old: u64, new: u64) -> Option<bool> {
        let mut state = self.0.state.borrow_mut();
        if !state.is_ram(at, 8) || state.is_poisoned(at, 8) {
            return None;
        }
        if state.word(at) != old {
            return Some(false);
        }
        state.hardware_store(at, new, u64::MAX);
        state.note(MemoryEvent::HardwareStore {
            address: Hpa::new(at),
            value: new,
            width_bytes: 8,
        });
        Some(true)
    }

    /// Puts a descriptor that the unit fetched into the log.
    pub(crate) fn note_descriptor(&self, words: [u64; 4]) {
        let mut state = self.0.state.borrow_mut();
        state.note(MemoryEvent::Descriptor { words });
    }

    /// A 32-bit store of the unit; whether there is memory.
    pub(crate) fn hardware_write32(&self, at: u64, value: u32) -> bool {
        let mut state = self.0.state.borrow_mut();
        if !state.is_ram(at, 4) {
            return false;
        }
        let shift = 8 * (at % 8);
        state.hardware_store(at & !7, u64::from(value) << shift, 0xffff_ffff << shift);
        state.note(MemoryEvent::HardwareStore {
            address: Hpa::new(at),
            value: u64::from(value),
            width_bytes: 4,
        });
        true
    }

    /// A snooped read of a device. Where there is no memory it gives all ones and false.
    pub(crate) fn device_read(&self, at: u64, into: &mut [u8]) -> bool {
        let state = self.0.state.borrow();
        let mut all = true;
        for (at, byte) in (at..).zip(into) {
            let there = state.is_ram(at, 1);
            all &= there;
            *byte = if there {
                (state.word(at & !7) >> (8 * (at % 8))) as u8
            } else {
                0xff
            };
        }
        all
    }

    /// A snooped write of a device; dropped, and false, where there is no memory.
    pub(crate) fn device_write(&self, at: u64, from: &[u8]) -> bool {
        let mut state = self.0.state.borrow_mut();
        let mut all = true;
        for (at, byte) in (at..).zip(from) {
            if state.is_ram(at, 1) {
                let shift = 8 * (at % 8);
                state.hardware_store(at & !7, u64::from(*byte) << shift, 0xff << shift);
            } else {
                all = false;
            }
        }
        all
    }

    fn processor_store(&self, at: Hpa, value: u128, width_bytes: u8) {
        let mut state = self.0.state.borrow_mut();
        let at = at.as_u64() & !(u64::from(width_bytes) - 1);
        if !state.is_ram(at, u64::from(width_bytes)) {
            state.outside += 1;
            return;
        }
        let address = Hpa::new(at);
        match width_bytes {
            16 => {
                state.store(at, value as u64, u64::MAX);
                state.store(at + 8, (value >> 64) as u64, u64::MAX);
            }
            8 => state.store(at, value as u64, u64::MAX),
            width => {
                let shift = 8 * (at % 8);
                let mask = (1u64 << (8 * width)) - 1;
                state.store(at & !7, (value as u64) << shift, mask << shift);
            }
        }
        state.note(MemoryEvent::Store {
            address,
            value,
            width_bytes,
        });
    }
}

impl HostMemory for Memory {
    fn read64(&self, at: Hpa) -> u64 {
        let mut state = self.0.state.borrow_mut();
        let at = at.as_u64() & !7;
        if state.is_ram(at, 8) {
            state.word(at)
        } else {
            state.outside += 1;
            u64::MAX
        }
    }

    fn write64(&self, at: Hpa, value: u64) {
        self.processor_store(at, value.into(), 8);
    }

    fn write32(&self, at: Hpa, value: u32) {
        self.processor_store(at, value.into(), 4);
    }

    fn write128(&self, at: Hpa, value: u128) {
        self.processor_store(at, value, 16);
    }

    fn fetch_and64(&self, at: Hpa, mask: u64) -> u64 {
        let old = self.read64(at);
        self.processor_store(at, (old & mask).into(), 8);
        old
    }

    fn compare_exchange64(&self, at: Hpa, current: u64, new: u64) -> u64 {
        let old = self.read64(at);
        if old == current {
            self.processor_store(at, new.into(), 8);
        }
        old
    }

    fn copy_from(&self, at: Hpa, into: &mut [u8]) {
        if !self.device_read(at.as_u64(), into) {
            self.0.state.borrow_mut().outside += 1;
        }
    }

    fn copy_to(&self, at: Hpa, from: &[u8]) {
        let mut at = at.as_u64();
        let mut rest = from;
        while !rest.is_empty() {
            let width = [8, 4, 1]
                .into_iter()
                .find(|&width| at.is_multiple_of(width as u64) && rest.len() >= width)
                .unwrap_or(1);
            let (now, later) = rest.split_at(width);
            let value = now
                .iter()
                .rev()
                .fold(0, |value: u128, byte| value << 8 | u128::from(*byte));
            self.processor_store(Hpa::new(at), value, width as u8);
            at += width as u64;
            rest = later;
        }
    }

    fn flush_line(&self, at: Hpa) {
        let mut state = self.0.state.borrow_mut();
        let line = at.as_u64() & !(LINE_BYTES - 1);
        state.note(MemoryEvent::Flush {
            line: Hpa::new(line),
        });
        if state.unflushed.contains_key(&line) {
            let content = state.line(line);
            match state.flush_mode {
                FlushMode::Immediate => state.write_back(line, content),
                FlushMode::AtFence => state.flushing.push((line, content)),
            }
        }
    }

    fn fence(&self) {
        let mut state = self.0.state.borrow_mut();
        state.note(MemoryEvent::Fence);
        for (line, content) in std::mem::take(&mut state.flushing) {
            state.write_back(line, content);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsnooped_reads_see_a_store_only_after_flush_and_fence() {
        let memory = Memory::new(0x10000);
        let at = Hpa::new(0x1040);
        memory.write64(at, 1);
        let seen = |snooped| memory.fetch::<1>(0x1040, snooped).unwrap()[0];
        assert_eq!((seen(true), seen(false)), (1, 0));
        memory.flush_line(Hpa::new(0x107f));
        assert_eq!(seen(false), 0, "no fence yet");
        memory.write64(at, 2);
        memory.fence();
        assert_eq!(seen(false), 1, "the store behind the flush is not flushed");
        assert!(memory.is_line_unflushed(at));
        memory.flush_line(at);
        memory.fence();
        assert_eq!(seen(false), 2);
        assert!(!memory.is_line_unflushed(at));
        memory.flush_line(Hpa::new(0x1080));
        memory.write64(at, 3);
        memory.flush_line(Hpa::new(0x1080));
        memory.fence();
        assert_eq!(seen(false), 2, "another line was flushed");
        memory.write_back_all();
        assert_eq!(seen(false), 3);
    }

    #[test]
    fn immediate_flushes_need_no_fence() {
        let memory = Memory::new(0x1000);
        memory.set_flush_mode(FlushMode::Immediate);
        memory.write32(Hpa::new(4), 7);
        memory.flush_line(Hpa::new(0));
        assert_eq!(memory.fetch::<1>(0, false), Some([7 << 32]));
    }

    #[test]
    fn hardware_stores_are_seen_by_all_and_leave_other_words_unflushed() {
        let memory = Memory::new(0x1000);
        memory.write64(Hpa::new(0x40), 5);
        assert!(memory.hardware_write32(0x4c, 9));
        assert_eq!(memory.fetch::<2>(0x40, false), Some([0, 9 << 32]));
        assert_eq!(memory.fetch::<2>(0x40, true), Some([5, 9 << 32]));
        assert_eq!(memory.compare_exchange(0x40, 4, 6), Some(false));
        assert_eq!(memory.compare_exchange(0x40, 5, 6), Some(true));
        assert_eq!(memory.read64(Hpa::new(0x40)), 6);
        assert!(!memory.hardware_write32(0x1000, 1));
    }

    // §6.8.
    #[test]
    fn write_buffers_hold_stores_back_from_units_until_flushed() {
        let memory = Memory::new(0x10000);
        let at = Hpa::new(0x1008);
        memory.write64(at, 1);
        memory.use_write_buffer();
        memory.write64(at, 2);
        memory.write64(at, 3);
        for snooped in [false, true] {
            memory.flush_line(at);
            memory.fence();
            assert_eq!(memory.fetch_entry(0x1008, snooped), Some([1]), "{snooped}");
        }
        // Processors and devices see them, and descriptors come whole.
        assert_eq!(memory.read64(at), 3);
        assert_eq!(memory.fetch(0x1008, true), Some([3]));
        memory.flush_write_buffer();
        assert_eq!(memory.fetch_entry(0x1008, true), Some([3]));
    }

    #[test]
    fn accesses_outside_and_poisoned_ranges_fail() {
        let memory = Memory::new(0x1000);
        assert_eq!(memory.read64(Hpa::new(0x1000)), u64::MAX);
        memory.write64(Hpa::new(0x1000), 1);
        assert_eq!(memory.outside_count(), 2);
        assert_eq!(memory.fetch::<1>(0x1000, true), None);
        memory.poison(Hpa::new(0x100), 8);
        assert_eq!(memory.fetch::<2>(0xf8, true), None);
        assert_eq!(memory.fetch::<1>(0xf8, true), Some([0]));
        memory.heal();
        assert!(memory.fetch::<2>(0xf8, true).is_some());
        memory.add_ram(Hpa::new(0x1_0000_0000), 0x1000);
        assert!(memory.is_ram(Hpa::new(0x1_0000_0ff8), 8));
    }

    #[test]
    fn the_log_has_stores_flushes_and_fences_in_order() {
        let memory = Memory::new(0x1000);
        memory.write64(Hpa::new(8), 1);
        memory.start_log();
        memory.write128(Hpa::new(0x10), 2 << 64 | 3);
        memory.copy_to(Hpa::new(0x23), &[1; 14]);
        memory.flush_range(Hpa::new(0), 128);
        memory.fence();
        assert_eq!(memory.fetch_and64(Hpa::new(8), 0), 1);
        let widths: Vec<u8> = memory
            .take_log()
            .iter()
            .map(|event| match event {
                MemoryEvent::Store { width_bytes, .. } => *width_bytes,
                MemoryEvent::Flush { .. } => 64,
                MemoryEvent::Fence => 0,
                _ => 99,
            })
            .collect();
        assert_eq!(widths, [16, 1, 4, 8, 1, 64, 64, 0, 8]);
        assert_eq!(memory.store_count(), 7);
        let mut bytes = [0; 16];
        memory.copy_from(Hpa::new(0x22), &mut bytes);
        assert_eq!(bytes, [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn the_fetch_hook_runs_before_the_read_and_snapshots_come_back() {
        let memory = Memory::new(0x1000);
        let before = memory.snapshot();
        memory.set_fetch_hook(|memory, fetch| memory.write64(fetch.address, 0x55));
        assert_eq!(memory.fetch::<2>(0x20, true), Some([0x55, 0]));
        memory.clear_fetch_hook();
        memory.restore(&before);
        assert_eq!(memory.read64(Hpa::new(0x20)), 0);
    }
}
