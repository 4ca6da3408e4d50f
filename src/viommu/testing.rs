//! What the tests of this folder share: a small guest memory, a host that records, and a bench
//! that writes a guest's tables and descriptors.

extern crate std;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;

use crate::arch::address::{FirstStagePaging, Gpa, Iova};
use crate::arch::capability::{
    Capability, CapabilityField as C, ExtendedCapability, ExtendedCapabilityField as E, Features,
};
use crate::arch::context::{ContextAttributes, DirectoryOrder, ScalableContextEntry};
use crate::arch::descriptor::{Descriptor, PasidCacheGranularity, WaitStatus};
use crate::arch::id::{DomainId, Pasid, SourceId};
use crate::arch::interrupt::InterruptIndex;
use crate::arch::pasid::{FirstStageFlags, PasidDirectoryEntry, PasidEntry, PasidEntryOptions};
use crate::arch::register::TranslationTableMode;
use crate::mem::{GuestMemory, GuestMemoryError};
use crate::paging::walk::Access;

use super::fault::GuestFault;
use super::host::*;
use super::translate::DmaRequest;
use super::unit::*;

pub(super) const GCMD: u64 = 0x18;
pub(super) const GSTS: u64 = 0x1c;
pub(super) const RTADDR: u64 = 0x20;
pub(super) const FSTS: u64 = 0x34;
pub(super) const FECTL: u64 = 0x38;
pub(super) const IQH: u64 = 0x80;
pub(super) const IQT: u64 = 0x88;
pub(super) const IQA: u64 = 0x90;
pub(super) const ICS: u64 = 0x9c;
pub(super) const IECTL: u64 = 0xa0;
pub(super) const IQERCD: u64 = 0xb0;
pub(super) const IRTA: u64 = 0xb8;
pub(super) const IVA: u64 = 0xf0;
pub(super) const IOTLB: u64 = 0xf8;
pub(super) const FRCD: u64 = 0x220;

pub(super) const TE: u64 = 1 << 31;
pub(super) const SRTP: u64 = 1 << 30;
pub(super) const QIE: u64 = 1 << 26;
pub(super) const IRE: u64 = 1 << 25;
pub(super) const SIRTP: u64 = 1 << 24;
pub(super) const CFI: u64 = 1 << 23;

pub(super) const FAULT_MESSAGE: (u64, u32) = (0x1_fee0_1000, 0x41);
pub(super) const COMPLETION_MESSAGE: (u64, u32) = (0x2_fee0_2000, 0x42);

/// Where the bench puts things.
pub(super) const ROOT: u64 = 0x1000;
pub(super) const STATUS: u64 = 0x3000;
pub(super) const QUEUE: u64 = 0x4000;
const FIRST_FREE: u64 = 0x1_0000;
pub(super) const MEMORY_BYTES: usize = 8 << 20;

pub(super) fn pasid(value: u32) -> Pasid {
    Pasid::new(value).unwrap()
}

pub(super) fn did(value: u16) -> DomainId {
    DomainId::new(value)
}

pub(super) fn sid(value: u16) -> SourceId {
    SourceId::from_u16(value)
}

pub(super) fn handle(index: u16) -> DeviceHandle {
    DeviceHandle::new(index)
}

/// Guest memory from address 0 on, which counts what is read.
pub(super) struct Memory {
    bytes: RefCell<Vec<u8>>,
    pub(super) reads: Cell<usize>,
    pub(super) bytes_read: Cell<usize>,
    /// Pages that are not there.
    pub(super) holes: RefCell<BTreeSet<u64>>,
    /// Pages that cannot be written to by a compare-exchange.
    pub(super) read_only: RefCell<BTreeSet<u64>>,
    /// Quadwords that the guest stores before the next compare-exchanges, the last one first.
    pub(super) changes: RefCell<Vec<(u64, u64)>>,
    /// Every read, as address and length.
    pub(super) log: RefCell<Vec<(u64, usize)>>,
}

impl Memory {
    fn range(&self, at: Gpa, len: usize) -> Result<core::ops::Range<usize>, GuestMemoryError> {
        let error = GuestMemoryError {
            address: at,
            len_bytes: len as u64,
        };
        let start = usize::try_from(at.as_u64()).map_err(|_| error)?;
        let end = start
            .checked_add(len)
            .filter(|end| *end <= MEMORY_BYTES)
            .ok_or(error)?;
        let pages = start as u64 / 4096..=(end as u64).saturating_sub(1) / 4096;
        if self.holes.borrow().range(pages).next().is_some() {
            return Err(error);
        }
        Ok(start..end)
    }

    pub(super) fn store(&self, at: u64, quadwords: &[u64]) {
        for (index, value) in quadwords.iter().enumerate() {
            let at = at as usize + index * 8;
            self.bytes.borrow_mut()[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }

    pub(super) fn load(&self, at: u64) -> u64 {
        let at = at as usize;
        u64::from_le_bytes(self.bytes.borrow()[at..at + 8].try_into().unwrap())
    }
}

impl GuestMemory for Memory {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), GuestMemoryError> {
        self.reads.set(self.reads.get() + 1);
        self.bytes_read.set(self.bytes_read.get() + into.len());
        self.log.borrow_mut().push((at.as_u64(), into.len()));
        let range = self.range(at, into.len())?;
        into.copy_from_slice(&self.bytes.borrow()[range]);
        Ok(())
    }

    fn compare_exchange(&self, at: Gpa, current: u64, new: u64) -> Result<bool, GuestMemoryError> {
        self.range(at, 8)?;
        if self.read_only.borrow().contains(&(at.as_u64() / 4096)) {
            return Err(GuestMemoryError {
                address: at,
                len_bytes: 8,
            });
        }
        if let Some((place, value)) = self.changes.borrow_mut().pop() {
            self.store(place, &[value]);
        }
        let is_same = self.load(at.as_u64()) == current;
        if is_same {
            self.store(at.as_u64(), &[new]);
        }
        Ok(is_same)
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), GuestMemoryError> {
        let range = self.range(at, from.len())?;
        self.bytes.borrow_mut()[range].copy_from_slice(from);
        Ok(())
    }
}

/// What the recording host keeps of a binding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct TestBinding(pub(super) Option<Desired>);

impl HostState for TestBinding {
    const BLOCKED: Self = Self(None);
}

/// A host operation that was carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    Bind(u16, u32, Desired),
    Invalidate(GuestInvalidation),
    Flush,
}

pub(super) struct RecordingHost {
    pub(super) memory: Memory,
    /// What was asked for and done or refused; not what was answered with `Wait`.
    pub(super) calls: Vec<Call>,
    /// What is bound, by device and PASID; absent is blocked.
    pub(super) actual: BTreeMap<(u16, u32), Desired>,
    pub(super) interrupts: Vec<(u64, u32)>,
    /// The interrupt entries of this host, by the guest's index.
    pub(super) entries: BTreeMap<u16, GuestInterrupt>,
    /// How many there can be.
    pub(super) entry_count: u32,
    /// Changes of entries asked for, whether they changed anything or not.
    pub(super) entry_calls: usize,
    /// Refuse to set these.
    pub(super) refused_entries: BTreeMap<u16, InterruptError>,
    /// Refuse the operations with these numbers, from 0 on.
    pub(super) fail: BTreeMap<usize, BindError>,
    /// Refuse every change of these, keeping what is bound.
    pub(super) stuck: BTreeSet<(u16, u32)>,
    /// Refuse to bind more than this many at once.
    pub(super) capacity: usize,
    /// Answer every operation so many times with `Wait`.
    pub(super) waits: u32,
    /// Answer only this operation so.
    pub(super) wait_only: Option<usize>,
    waited: u32,
    done: usize,
}

impl RecordingHost {
    /// `true`: answer `Wait`.
    fn waits_now(&mut self) -> bool {
        let waits = match self.wait_only {
            Some(number) if number != self.done => 0,
            _ => self.waits,
        };
        if self.waited < waits {
            self.waited += 1;
            return true;
        }
        self.waited = 0;
        false
    }

    fn outcome(&mut self) -> Result<Progress, BindError> {
        let number = self.done;
        self.done += 1;
        match self.fail.get(&number) {
            Some(error) => Err(*error),
            None => Ok(Progress::Done),
        }
    }

    pub(super) fn operations(&self) -> usize {
        self.done
    }
}

impl Host for RecordingHost {
    type Binding = TestBinding;
    type Memory = Memory;

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn bind(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        binding: &mut TestBinding,
        desired: &Desired,
    ) -> Result<Progress, BindError> {
        let key = (device.index() as u16, pasid.as_u32());
        assert_eq!(
            binding.0,
            self.actual.get(&key).copied(),
            "the binding of {key:?} was lost"
        );
        if self.waits_now() {
            // Blocked on the way.
            self.actual.remove(&key);
            binding.0 = None;
            return Ok(Progress::Wait);
        }
        self.calls.push(Call::Bind(key.0, key.1, *desired));
        if self.stuck.contains(&key) {
            self.done += 1;
            return Err(BindError::Quarantined {
                source_id: sid(0x99),
            });
        }
        self.actual.remove(&key);
        binding.0 = None;
        let outcome = self.outcome()?;
        if *desired != Desired::Blocked {
            if self.actual.len() >= self.capacity {
                return Err(BindError::DomainIdsExhausted);
            }
            self.actual.insert(key, *desired);
            binding.0 = Some(*desired);
        }
        Ok(outcome)
    }

    fn invalidate(&mut self, what: &GuestInvalidation) -> Result<Progress, BindError> {
        if self.waits_now() {
            return Ok(Progress::Wait);
        }
        self.calls.push(Call::Invalidate(*what));
        self.outcome()
    }

    fn flush(&mut self) -> Result<Progress, BindError> {
        if self.waits_now() {
            return Ok(Progress::Wait);
        }
        self.calls.push(Call::Flush);
        self.outcome()
    }

    fn interrupt_entries(&self) -> u32 {
        self.entry_count
    }

    fn set_interrupt_entry(
        &mut self,
        index: InterruptIndex,
        desired: Option<&GuestInterrupt>,
    ) -> Result<(), InterruptError> {
        let index = index.as_u16();
        assert!(u32::from(index) < self.entry_count);
        self.entry_calls += 1;
        self.entries.remove(&index);
        if let Some(desired) = desired {
            if let Some(error) = self.refused_entries.get(&index) {
                return Err(*error);
            }
            self.entries.insert(index, *desired);
        }
        Ok(())
    }

    fn deliver_interrupt(&mut self, address: u64, data: u32) {
        self.interrupts.push((address, data));
    }
}

/// What a bench's unit shows.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    pub(super) fault_records: u8,
    /// First stage only, as on hardware that nests; else second stage only.
    pub(super) first_stage: bool,
    pub(super) pasid_bits: u8,
    pub(super) budget: u32,
    /// More of `ECAP`.
    pub(super) extended: u64,
    /// More of `CAP`.
    pub(super) capability: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            fault_records: 4,
            first_stage: true,
            pasid_bits: 20,
            budget: 1000,
            extended: 0,
            capability: 0,
        }
    }
}

impl Setup {
    pub(super) fn features(&self) -> Features {
        let capability = Capability::from_bits(self.capability)
            .with(C::DOMAIN_ID_WIDTH, 6)
            .with(C::CACHING_MODE, 1)
            .with(C::ADJUSTED_GUEST_ADDRESS_WIDTHS, 0b0110)
            .with(C::MAXIMUM_GUEST_ADDRESS_WIDTH, 47)
            .with(C::FAULT_RECORD_OFFSET, FRCD / 16)
            .with(C::FAULT_RECORD_COUNT, u64::from(self.fault_records - 1))
            .with(
                C::SECOND_STAGE_LARGE_PAGES,
                if self.first_stage { 0 } else { 3 },
            )
            .with(C::PAGE_SELECTIVE_INVALIDATION, 1)
            .with(C::MAXIMUM_ADDRESS_MASK, 18)
            .with(C::ENHANCED_SET_ROOT_TABLE_POINTER, 1);
        let mut extended = ExtendedCapability::from_bits(self.extended)
            .with(E::QUEUED_INVALIDATION, 1)
            .with(E::PASS_THROUGH, 1)
            .with(E::IOTLB_REGISTER_OFFSET, IVA / 16)
            .with(E::SCALABLE_MODE, 1)
            .with(
                if self.first_stage {
                    E::FIRST_STAGE
                } else {
                    E::SECOND_STAGE
                },
                1,
            );
        if self.pasid_bits > 0 {
            extended = extended
                .with(E::REQUESTS_WITH_PASID, 1)
                .with(E::PASID_SIZE, u64::from(self.pasid_bits - 1));
        }
        Features {
            capability,
            extended,
            host_address_width: 46,
        }
    }
}

pub(super) const D0: u16 = 0x0010;
pub(super) const D1: u16 = 0x0098;

pub(super) type Unit = VirtualUnit<TestBinding, 4, 1200>;

pub(super) struct Bench {
    pub(super) unit: std::boxed::Box<Unit>,
    pub(super) host: RecordingHost,
    pub(super) budget: u32,
    free: u64,
    /// The directory of the device with this source-id.
    pub(super) directories: BTreeMap<u16, u64>,
}

impl Bench {
    /// A unit after reset, without devices.
    pub(super) fn new() -> Self {
        Self::with(Setup::default())
    }

    pub(super) fn with(setup: Setup) -> Self {
        let config = VirtualUnitConfig {
            features: setup.features(),
            fault_records: setup.fault_records,
            hash_seed: 0x1357_9bdf_0246_8ace,
        };
        Self {
            unit: std::boxed::Box::new(Unit::new(config).unwrap()),
            host: RecordingHost {
                memory: Memory {
                    bytes: RefCell::new(vec![0; MEMORY_BYTES]),
                    reads: Cell::new(0),
                    bytes_read: Cell::new(0),
                    holes: RefCell::default(),
                    read_only: RefCell::default(),
                    changes: RefCell::default(),
                    log: RefCell::default(),
                },
                calls: Vec::new(),
                actual: BTreeMap::new(),
                interrupts: Vec::new(),
                entries: BTreeMap::new(),
                entry_count: 200,
                entry_calls: 0,
                refused_entries: BTreeMap::new(),
                fail: BTreeMap::new(),
                stuck: BTreeSet::new(),
                capacity: usize::MAX,
                waits: 0,
                wait_only: None,
                waited: 0,
                done: 0,
            },
            budget: setup.budget,
            free: FIRST_FREE,
            directories: BTreeMap::new(),
        }
    }

    /// Translation on, scalable root, queue on, device 0 with a full directory.
    pub(super) fn scalable() -> Self {
        Self::scalable_with(Setup::default())
    }

    pub(super) fn scalable_with(setup: Setup) -> Self {
        let mut t = Self::with(setup);
        t.context(D0, DirectoryOrder::LARGEST);
        t.assign(0, D0);
        t.set_root(TranslationTableMode::Scalable);
        t.enable_queue();
        t.enable_translation();
        t.forget();
        t
    }

    /// Forgets what was recorded so far.
    pub(super) fn forget(&mut self) {
        self.host.calls.clear();
        self.host.interrupts.clear();
        self.host.done = 0;
        self.host.memory.reads.set(0);
        self.host.memory.bytes_read.set(0);
        self.host.memory.log.borrow_mut().clear();
    }

    pub(super) fn page(&mut self) -> u64 {
        self.pages(1)
    }

    pub(super) fn pages(&mut self, count: u64) -> u64 {
        let at = self.free;
        self.free += count * 4096;
        assert!(self.free as usize <= MEMORY_BYTES);
        at
    }

    pub(super) fn store(&self, at: u64, quadwords: &[u64]) {
        self.host.memory.store(at, quadwords);
    }

    pub(super) fn assign(&mut self, index: u16, source_id: u16) {
        let kind = DeviceKind::Assigned { pasid_bits: 20 };
        self.unit
            .add_device(handle(index), sid(source_id), kind)
            .unwrap();
        self.run();
    }

    /// Adds an emulated device.
    pub(super) fn emulate(&mut self, index: u16, source_id: u16) {
        self.unit
            .add_emulated_device(handle(index), sid(source_id))
            .unwrap();
        self.run();
    }

    /// Address of the scalable-mode context entry of a source-id, tables added as needed.
    pub(super) fn context_at(&mut self, source_id: u16) -> u64 {
        let half = u64::from(source_id >> 7 & 1);
        let root = ROOT + u64::from(source_id >> 8) * 16 + half * 8;
        if self.host.memory.load(root) & 1 == 0 {
            let table = self.page();
            self.store(root, &[table | 1]);
        }
        let table = self.host.memory.load(root) & !0xfff;
        table + u64::from(source_id & 0x7f) * 32
    }

    /// Writes a context entry with a new empty directory, requests-with-PASID enabled.
    pub(super) fn context(&mut self, source_id: u16, order: DirectoryOrder) -> u64 {
        let directory = self.pages(order.len_bytes().div_ceil(4096));
        self.share(source_id, order, directory);
        directory
    }

    /// Writes a context entry for a directory.
    pub(super) fn share(&mut self, source_id: u16, order: DirectoryOrder, directory: u64) {
        let attributes = ContextAttributes {
            pasid_enabled: self.unit.features().extended.has_pasid(),
            ..ContextAttributes::default()
        };
        let entry = ScalableContextEntry::new(Gpa::new(directory), order, attributes);
        let at = self.context_at(source_id);
        self.store(at, entry.quadwords());
        self.directories.insert(source_id, directory);
    }

    /// Address of a PASID entry of a device, a table added as needed.
    pub(super) fn entry_at(&mut self, source_id: u16, value: u32) -> u64 {
        let at = self.directories[&source_id] + u64::from(value >> 6) * 8;
        if self.host.memory.load(at) & 1 == 0 {
            let table = self.page();
            self.store(at, &[PasidDirectoryEntry::new(Gpa::new(table)).as_u64()]);
        }
        (self.host.memory.load(at) & !0xfff) + u64::from(value & 63) * 64
    }

    pub(super) fn entry(&mut self, source_id: u16, value: u32, entry: PasidEntry) {
        let at = self.entry_at(source_id, value);
        self.store(at, entry.quadwords());
    }

    pub(super) fn set_root(&mut self, mode: TranslationTableMode) {
        self.set_root_at(ROOT, mode);
    }

    pub(super) fn set_root_at(&mut self, root: u64, mode: TranslationTableMode) {
        self.unit.write(RTADDR, 8, root | mode.field() << 10);
        self.command(SRTP);
        assert_eq!(self.unit.read(GSTS, 4) & SRTP, SRTP, "RTPS");
    }

    /// Writes GCMD as drivers do: the persistent bits and one more.
    pub(super) fn command(&mut self, bit: u64) {
        self.command_later(bit);
        self.run();
    }

    pub(super) fn command_later(&mut self, bit: u64) {
        let persistent = self.unit.read(GSTS, 4) & 0x96ff_ffff;
        self.unit.write(GCMD, 4, persistent | bit);
    }

    pub(super) fn enable_translation(&mut self) {
        self.command(TE);
        assert!(self.unit.is_translating());
    }

    pub(super) fn disable_translation(&mut self) {
        let persistent = self.unit.read(GSTS, 4) & 0x96ff_ffff;
        self.unit.write(GCMD, 4, persistent & !TE);
        self.run();
        assert!(!self.unit.is_translating());
    }

    pub(super) fn enable_queue(&mut self) {
        self.unit.write(IQT, 8, 0);
        self.unit.write(IQA, 8, QUEUE | 1 << 11);
        self.command(QIE);
        assert_eq!(self.unit.read(GSTS, 4) & QIE, QIE, "QIES");
    }

    /// Puts descriptors into the queue, 256 bits each.
    pub(super) fn enqueue(&mut self, descriptors: &[[u64; 4]]) {
        let mut tail = self.unit.read(IQT, 8);
        for descriptor in descriptors {
            self.store(QUEUE + tail, descriptor);
            tail = (tail + 32) % 4096;
        }
        self.unit.write(IQT, 8, tail);
    }

    pub(super) fn submit(&mut self, descriptor: Descriptor) {
        self.submit_raw(descriptor.encode().words());
        assert_eq!(self.unit.read(FSTS, 4) & 0x10, 0, "IQE at {descriptor:?}");
        assert_eq!(self.unit.read(IQH, 8), self.unit.read(IQT, 8));
    }

    pub(super) fn submit_raw(&mut self, descriptor: [u64; 4]) {
        self.enqueue(&[descriptor]);
        self.run();
    }

    pub(super) fn invalidate_pasid(&mut self, domain_id: u16, value: u32) {
        self.submit(Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Pasid {
                domain_id: did(domain_id),
                pasid: pasid(value),
            },
        });
    }

    pub(super) fn invalidate_domain(&mut self, domain_id: u16) {
        self.submit(Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Domain(did(domain_id)),
        });
    }

    pub(super) fn invalidate_all(&mut self) {
        self.submit(Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Global,
        });
    }

    /// Polls until there is nothing left to do.
    pub(super) fn run(&mut self) {
        for _ in 0..200_000 {
            if self.unit.poll(&mut self.host, self.budget) == Poll::Idle {
                let pasids = self.host.actual.keys().filter(|key| key.1 != 0).count();
                if self.host.stuck.is_empty() && self.host.fail.is_empty() {
                    assert_eq!(
                        self.unit.bindings() as usize,
                        pasids,
                        "store and host disagree"
                    );
                }
                return;
            }
        }
        panic!("poll does not come to an end");
    }

    pub(super) fn record(&mut self, fault: GuestFault) {
        self.unit.record_fault(&fault, &mut self.host);
    }

    /// Programs both event messages.
    pub(super) fn program_events(&mut self) {
        for (control, (address, data)) in [(FECTL, FAULT_MESSAGE), (IECTL, COMPLETION_MESSAGE)] {
            self.unit.write(control + 4, 4, u64::from(data));
            self.unit.write(control + 8, 4, address & 0xffff_ffff);
            self.unit.write(control + 12, 4, address >> 32);
        }
    }

    pub(super) fn unmask_events(&mut self) {
        self.program_events();
        self.unit.write(FECTL, 4, 0);
        self.unit.write(IECTL, 4, 0);
    }

    pub(super) fn bound(&self, device: u16, value: u32) -> Desired {
        self.host
            .actual
            .get(&(device, value))
            .copied()
            .unwrap_or(Desired::Blocked)
    }

    pub(super) fn binds(&self) -> Vec<(u16, u32, Desired)> {
        let binds = self.host.calls.iter().filter_map(|call| match call {
            Call::Bind(device, pasid, desired) => Some((*device, *pasid, *desired)),
            _ => None,
        });
        binds.collect()
    }

    /// The reason of the first fault record, which is then cleared.
    pub(super) fn take_fault(&mut self) -> Option<(u16, Option<u32>, u8)> {
        for record in (0..4).map(|index| FRCD + index * 16) {
            let high = self.unit.read(record + 8, 8);
            if high >> 63 == 1 {
                self.unit.write(record + 12, 4, 1 << 31);
                let pasid = (high >> 31 & 1 == 1).then_some((high >> 40) as u32 & 0xf_ffff);
                return Some((high as u16, pasid, (high >> 32) as u8));
            }
        }
        None
    }

    /// The fault reason for a request, or the address it leads to.
    pub(super) fn translate(
        &self,
        source_id: u16,
        value: Option<u32>,
        address: u64,
        access: Access,
    ) -> Result<u64, u8> {
        let request = DmaRequest {
            source_id: sid(source_id),
            pasid: value.map(pasid),
            address: Iova::new(address),
            access,
            execute: false,
        };
        match self.unit.walk(&self.host.memory, &request).result {
            Ok(translation) => Ok(translation.address.as_u64()),
            Err(fault) => Err(fault.reason.code()),
        }
    }
}

/// A first-stage entry.
pub(super) fn first_stage(domain_id: u16, root: u64) -> PasidEntry {
    PasidEntry::first_stage(
        Gpa::new(root),
        FirstStagePaging::Level4,
        FirstStageFlags::default(),
        did(domain_id),
        PasidEntryOptions::default(),
    )
}

pub(super) fn pass_through(domain_id: u16) -> PasidEntry {
    PasidEntry::pass_through(did(domain_id), PasidEntryOptions::default())
}

/// What [`first_stage`] is to be bound as.
pub(super) fn first_stage_binding(domain_id: u16, root: u64) -> Desired {
    Desired::Guest(GuestBinding {
        domain_id: did(domain_id),
        translation: crate::arch::pasid::PasidTranslation::FirstStage {
            root: Gpa::new(root),
            paging: FirstStagePaging::Level4,
            write_protect: false,
            extended_accessed: false,
        },
        supervisor_requests: false,
    })
}

pub(super) fn pass_through_binding(domain_id: u16) -> Desired {
    Desired::Guest(GuestBinding {
        domain_id: did(domain_id),
        translation: crate::arch::pasid::PasidTranslation::PassThrough,
        supervisor_requests: false,
    })
}

/// A wait with status.
pub(super) fn wait(address: u64, data: u32, interrupt: bool) -> [u64; 4] {
    Descriptor::Wait {
        status: Some(WaitStatus { address, data }),
        interrupt,
        fence: true,
        page_request_drain: false,
    }
    .encode()
    .words()
}
