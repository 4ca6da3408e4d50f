//! A bench: a machine, hand-built tables, a queue driven by hand.

use std::cell::Cell;

use vtd_model::{Fault, FlushMode, Machine, ModelConfig};
use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::ExtendedCapabilityField;
use vtd_nest::arch::id::{Pasid, SourceId};
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::{HostMemory, Registers};

pub(crate) const TE: u32 = 1 << 31;
pub(crate) const SRTP: u32 = 1 << 30;
pub(crate) const QIE: u32 = 1 << 26;
const PERSISTENT: u32 = 0x8680_0000;

/// The device that most tests use: 00:02.0.
pub(crate) const DEVICE: SourceId = SourceId::from_u16(0x10);
/// A second one, in the upper half of its bus: 01:11.3.
pub(crate) const OTHER: SourceId = SourceId::from_u16(0x018b);

pub(crate) fn pasid(value: u32) -> Option<Pasid> {
    Pasid::new(value)
}

/// Legacy or scalable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Legacy,
    Scalable,
}

pub(crate) struct Bench {
    pub(crate) machine: Machine,
    pub(crate) mode: Mode,
    pub(crate) root: u64,
    next: Cell<u64>,
    queue: u64,
    pub(crate) tail: Cell<u32>,
    status: u64,
    cookie: Cell<u32>,
}

impl Bench {
    /// A machine with an empty root table, queue and translation on.
    pub(crate) fn new(config: ModelConfig, mode: Mode) -> Self {
        let bench = Self::off(config, mode);
        bench.enable();
        bench
    }

    /// The same with everything off.
    pub(crate) fn off(config: ModelConfig, mode: Mode) -> Self {
        let mut bench = Self {
            machine: Machine::new(config),
            mode,
            root: 0,
            next: Cell::new(0x10_0000),
            queue: 0,
            tail: Cell::new(0),
            status: 0,
            cookie: Cell::new(0),
        };
        bench.machine.memory.set_flush_mode(FlushMode::AtFence);
        bench.root = bench.page();
        bench.queue = bench.page();
        bench.status = bench.page();
        bench
    }

    pub(crate) fn enable(&self) {
        let mut unit = self.machine.unit.clone();
        unit.write64(Register64::INVALIDATION_QUEUE_TAIL, 0);
        unit.write64(Register64::INVALIDATION_QUEUE_ADDRESS, self.queue_address());
        self.command(QIE, true);
        unit.write64(Register64::ROOT_TABLE_ADDRESS, self.root_address());
        self.command(SRTP, true);
        self.command(TE, true);
    }

    pub(crate) fn root_address(&self) -> u64 {
        self.root
            | if self.mode == Mode::Scalable {
                1 << 10
            } else {
                0
            }
    }

    pub(crate) fn queue_address(&self) -> u64 {
        self.queue
            | if self.mode == Mode::Scalable {
                1 << 11
            } else {
                0
            }
    }

    /// One change in GCMD.
    pub(crate) fn command(&self, bit: u32, on: bool) {
        let mut unit = self.machine.unit.clone();
        let status = unit.read32(Register32::GLOBAL_STATUS) & PERSISTENT;
        let value = if on { status | bit } else { status & !bit };
        unit.write32(Register32::GLOBAL_COMMAND, value);
    }

    pub(crate) fn config(&self) -> ModelConfig {
        self.machine.unit.config()
    }

    pub(crate) fn has(&self, field: ExtendedCapabilityField) -> bool {
        self.config().extended.has(field)
    }

    /// A fresh page.
    pub(crate) fn page(&self) -> u64 {
        let page = self.next.get();
        self.next.set(page + 4096);
        page
    }

    /// Stores a word and flushes it.
    pub(crate) fn put(&self, at: u64, value: u64) {
        let memory = &self.machine.memory;
        memory.write64(Hpa::new(at), value);
        memory.flush_line(Hpa::new(at));
        memory.fence();
    }

    pub(crate) fn get(&self, at: u64) -> u64 {
        self.machine.memory.read64(Hpa::new(at))
    }

    // ---- queue ----

    pub(crate) fn descriptor_bytes(&self) -> u32 {
        if self.mode == Mode::Scalable { 32 } else { 16 }
    }

    /// Writes descriptors behind the tail and moves the tail.
    pub(crate) fn post(&self, descriptors: &[[u64; 2]]) {
        let mut unit = self.machine.unit.clone();
        for [low, high] in descriptors {
            let at = self.queue + u64::from(self.tail.get());
            for (index, word) in [*low, *high, 0, 0].into_iter().enumerate() {
                if index < self.descriptor_bytes() as usize / 8 {
                    self.machine
                        .memory
                        .write64(Hpa::new(at + 8 * index as u64), word);
                }
            }
            self.tail
                .set((self.tail.get() + self.descriptor_bytes()) % 4096);
        }
        unit.write64(Register64::INVALIDATION_QUEUE_TAIL, self.tail.get().into());
    }

    /// Posts descriptors and a wait; whether its status was written by then.
    pub(crate) fn submit(&self, descriptors: &[[u64; 2]]) -> bool {
        let cookie = self.cookie.get() + 1;
        self.cookie.set(cookie);
        let mut all = descriptors.to_vec();
        all.push(self.wait_descriptor(cookie));
        self.post(&all);
        self.is_done(cookie)
    }

    pub(crate) fn wait_descriptor(&self, cookie: u32) -> [u64; 2] {
        [0x25 | u64::from(cookie) << 32, self.status]
    }

    pub(crate) fn is_done(&self, cookie: u32) -> bool {
        self.get(self.status) as u32 == cookie
    }

    // ---- tables ----

    /// The root entry half for a device, filled if it is absent: the context table.
    fn context_table(&self, device: SourceId) -> u64 {
        let mut at = self.root + 16 * u64::from(device.bus());
        if self.mode == Mode::Scalable && device.device_function() >= 0x80 {
            at += 8;
        }
        if self.get(at) & 1 == 0 {
            self.put(at, self.page() | 1);
        }
        self.get(at) & !0xfff
    }

    /// Where a device's context entry is.
    pub(crate) fn context_at(&self, device: SourceId) -> u64 {
        let table = self.context_table(device);
        let function = u64::from(device.device_function());
        match self.mode {
            Mode::Legacy => table + 16 * function,
            Mode::Scalable => table + 32 * (function & 0x7f),
        }
    }

    pub(crate) fn set_legacy_context(&self, device: SourceId, low: u64, high: u64) {
        let at = self.context_at(device);
        self.put(at + 8, high);
        self.put(at, low);
    }

    /// A scalable context entry with an empty PASID directory of 64 KiB PASIDs (PDTS 3):
    /// RID_PASID 0, PASIDs allowed where the unit knows them.
    pub(crate) fn set_context(&self, device: SourceId) {
        let directory = self.page();
        for _ in 1..2 {
            self.page();
        }
        let pasids = self.has(ExtendedCapabilityField::REQUESTS_WITH_PASID);
        let at = self.context_at(device);
        self.put(at, directory | 3 << 9 | u64::from(pasids) << 3 | 1);
    }

    /// Where a PASID's directory entry is.
    pub(crate) fn directory_at(&self, device: SourceId, pasid: u32) -> u64 {
        let context = self.context_at(device);
        if self.get(context) & 1 == 0 {
            self.set_context(device);
        }
        (self.get(context) & !0xfff) + 8 * u64::from(pasid >> 6)
    }

    /// Where a PASID's table entry is.
    pub(crate) fn pasid_at(&self, device: SourceId, pasid: u32) -> u64 {
        let at = self.directory_at(device, pasid);
        if self.get(at) & 1 == 0 {
            self.put(at, self.page() | 1);
        }
        (self.get(at) & !0xfff) + 64 * u64::from(pasid & 0x3f)
    }

    pub(crate) fn set_pasid(&self, device: SourceId, pasid: u32, entry: [u64; 8]) {
        let at = self.pasid_at(device, pasid);
        for (index, word) in entry.into_iter().enumerate().rev() {
            self.put(at + 8 * index as u64, word);
        }
    }

    /// q1: domain-id, and PWSNP where walks can be snooped.
    fn domain_word(&self, domain: u16) -> u64 {
        let snooped = self.has(ExtendedCapabilityField::PAGE_WALK_COHERENCY);
        u64::from(domain) | u64::from(snooped) << 23
    }

    pub(crate) fn first_entry(&self, domain: u16, root: u64) -> [u64; 8] {
        [0x41, self.domain_word(domain), root, 0, 0, 0, 0, 0]
    }

    /// Second stage with 4 levels.
    pub(crate) fn second_entry(&self, domain: u16, root: u64) -> [u64; 8] {
        [root | 0x89, self.domain_word(domain), 0, 0, 0, 0, 0, 0]
    }

    pub(crate) fn nested_entry(&self, domain: u16, first_root: u64, root: u64) -> [u64; 8] {
        [
            root | 0xc9,
            self.domain_word(domain),
            first_root,
            0,
            0,
            0,
            0,
            0,
        ]
    }

    pub(crate) fn pass_through_entry(&self, domain: u16) -> [u64; 8] {
        [0x101, u64::from(domain), 0, 0, 0, 0, 0, 0]
    }

    /// Maps a page of `leaf_level`: `levels` are walked from `root`, missing tables are made.
    /// `table_bits` go into the entries above. Returns where the leaf entry is.
    pub(crate) fn map(&self, map: Map) -> u64 {
        let mut table = map.root;
        for level in (1..=map.levels).rev() {
            let index = map.address >> (12 + 9 * (u32::from(level) - 1)) & 0x1ff;
            let at = (map.host_of)(table) + 8 * index;
            if level == map.leaf_level {
                let size = if level > 1 { 1 << 7 } else { 0 };
                self.put(at, map.target | map.bits | size);
                return at;
            }
            if self.get(at) == 0 {
                self.put(at, (map.address_of)(self.page()) | map.table_bits);
            }
            table = self.get(at) & 0x000f_ffff_ffff_f000;
        }
        unreachable!("the leaf level lies within the levels")
    }

    /// Maps 4 KiB in a 4-level first-stage table, user and writable, A and D preset.
    pub(crate) fn map_first(&self, root: u64, address: u64, target: u64) -> u64 {
        self.map(Map::first(root, address, target))
    }

    /// Maps 4 KiB in a 4-level second-stage table, R and W.
    pub(crate) fn map_second(&self, root: u64, address: u64, target: u64) -> u64 {
        self.map(Map::second(root, address, target))
    }

    // ---- DMA ----

    pub(crate) fn read(
        &self,
        device: SourceId,
        pasid: Option<Pasid>,
        at: u64,
    ) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        self.machine
            .unit
            .dma_read(device, pasid, Iova::new(at), &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(crate) fn write(
        &self,
        device: SourceId,
        pasid: Option<Pasid>,
        at: u64,
        value: u64,
    ) -> Result<(), Fault> {
        self.machine
            .unit
            .dma_write(device, pasid, Iova::new(at), &value.to_le_bytes())
    }

    /// A read's data, or the code of its fault.
    pub(crate) fn outcome(
        &self,
        device: SourceId,
        pasid: Option<Pasid>,
        at: u64,
    ) -> Result<u64, u8> {
        self.read(device, pasid, at)
            .map_err(|fault| fault.reason.code())
    }

    /// A write's fault code.
    pub(crate) fn write_outcome(
        &self,
        device: SourceId,
        pasid: Option<Pasid>,
        at: u64,
    ) -> Result<(), u8> {
        self.write(device, pasid, at, 0x5555)
            .map_err(|fault| fault.reason.code())
    }

    /// A page of memory whose first word is `value`.
    pub(crate) fn data_page(&self, value: u64) -> u64 {
        let page = self.page();
        self.put(page, value);
        page
    }
}

/// One mapping to make.
#[derive(Clone, Copy)]
pub(crate) struct Map {
    pub(crate) root: u64,
    pub(crate) levels: u8,
    pub(crate) leaf_level: u8,
    pub(crate) address: u64,
    pub(crate) target: u64,
    /// Of the leaf.
    pub(crate) bits: u64,
    /// Of the entries above.
    pub(crate) table_bits: u64,
    /// The host address of a table, and what to write for it.
    pub(crate) host_of: fn(u64) -> u64,
    pub(crate) address_of: fn(u64) -> u64,
}

impl Map {
    pub(crate) fn first(root: u64, address: u64, target: u64) -> Self {
        Self {
            root,
            levels: 4,
            leaf_level: 1,
            address,
            target,
            bits: 0x67,
            table_bits: 0x27,
            host_of: |at| at,
            address_of: |at| at,
        }
    }

    pub(crate) fn second(root: u64, address: u64, target: u64) -> Self {
        Self {
            bits: 3,
            table_bits: 3,
            ..Self::first(root, address, target)
        }
    }

    /// First stage, its tables at guest-physical addresses: host plus [`GUEST_OFFSET`].
    pub(crate) fn guest_first(root: u64, address: u64, target: u64) -> Self {
        Self {
            host_of: |at| at - GUEST_OFFSET,
            address_of: |at| at + GUEST_OFFSET,
            ..Self::first(root, address, target)
        }
    }
}

/// Guest-physical minus host-physical address in nested tests.
pub(crate) const GUEST_OFFSET: u64 = 0x10_0000_0000;

// ---- descriptors ----

pub(crate) fn context_device(device: SourceId, domain: u16) -> [u64; 2] {
    [
        0x31 | u64::from(domain) << 16 | u64::from(device.as_u16()) << 32,
        0,
    ]
}

pub(crate) const CONTEXT_GLOBAL: [u64; 2] = [0x11, 0];
pub(crate) const IOTLB_GLOBAL: [u64; 2] = [0x12, 0];
pub(crate) const PASID_CACHE_GLOBAL: [u64; 2] = [0x37, 0];

pub(crate) fn iotlb_domain(domain: u16) -> [u64; 2] {
    [0x22 | u64::from(domain) << 16, 0]
}

pub(crate) fn iotlb_page(domain: u16, address: u64, mask: u64, leaf_only: bool) -> [u64; 2] {
    [
        0x32 | u64::from(domain) << 16,
        address | mask | u64::from(leaf_only) << 6,
    ]
}

pub(crate) fn pasid_iotlb_all(domain: u16, pasid: u32) -> [u64; 2] {
    [0x26 | u64::from(domain) << 16 | u64::from(pasid) << 32, 0]
}

pub(crate) fn pasid_iotlb_page(
    domain: u16,
    pasid: u32,
    address: u64,
    mask: u64,
    leaf_only: bool,
) -> [u64; 2] {
    [
        0x36 | u64::from(domain) << 16 | u64::from(pasid) << 32,
        address | mask | u64::from(leaf_only) << 6,
    ]
}

pub(crate) fn pasid_cache(domain: u16, pasid: u32) -> [u64; 2] {
    [0x17 | u64::from(domain) << 16 | u64::from(pasid) << 32, 0]
}

pub(crate) fn pasid_cache_domain(domain: u16) -> [u64; 2] {
    [0x07 | u64::from(domain) << 16, 0]
}
