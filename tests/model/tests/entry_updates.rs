//! No update of an entry by the library can be fetched as a mixture of the old entry and the new
//! one, whatever pieces hardware reads at whatever moments (G12, G13; §9, §6.2.3.1).
//!
//! Each scenario records what the library stores, flushes and submits. The log is cut into the
//! windows that one fetch can lie in, for every root, context, directory and PASID entry, and every
//! value that can be fetched in a window is judged.

use std::collections::BTreeMap;

use vtd_model::pieces::{Entry, PieceOrder, Verdict, windows};
use vtd_model::{Machine, Memory, MemoryEvent, ModelConfig, ModelUnit, Pace, QueueOrder};
use vtd_nest::arch::address::{AddressWidth, FirstStagePaging, Gpa, Hpa};
use vtd_nest::arch::capability::ExtendedCapabilityField as Ecap;
use vtd_nest::arch::context::{ContextAttributes, DirectoryOrder, ScalableContextEntry};
use vtd_nest::arch::descriptor::{Descriptor, IotlbGranularity, PasidCacheGranularity, WaitStatus};
use vtd_nest::arch::id::{DomainId, Pasid, SourceId};
use vtd_nest::arch::pasid::{FirstStageFlags, PasidDirectoryEntry, PasidEntry, PasidEntryOptions};
use vtd_nest::arch::register::{
    DescriptorWidth, GlobalCommand, InvalidationQueueAddress, Register32, Register64,
    RootTableAddress, TranslationTableMode,
};
use vtd_nest::arch::root::{RootHalf, ScalableRootEntry};
use vtd_nest::mem::{HostMemory, Owner};
use vtd_nest::nest::{
    DeviceConfig, InterruptIsolation, Isolation, MachineConfig, Policy, ProtectedRanges,
    VirtualMachine,
};
use vtd_nest::paging::Rights;
use vtd_nest::unit::{DeviceTables, Unit, UnitConfig};
use vtd_nest::viommu::Poll;
use vtd_nest::viommu::host::{DeviceHandle, Progress};

const D0: SourceId = SourceId::from_u16(0x0010);
/// In the upper half of its bus.
const D1: SourceId = SourceId::from_u16(0x0288);
const PASIDS: [u32; 4] = [0, 1, 2, 70];

/// Units that differ in what they cache and snoop, each with a queue that is done at once and one
/// that is not; neither keeps more of the order of descriptors than it must.
fn configs() -> Vec<ModelConfig> {
    let profiles = [
        ModelConfig::nesting_server(),
        ModelConfig::nesting_client_noncoherent(),
        ModelConfig::caching_mode(),
        ModelConfig::everything_on(),
    ];
    let paces = [Pace::Immediate, Pace::After(30_000)];
    profiles
        .iter()
        .flat_map(|profile| paces.map(|pace| profile.clone().with_queue_pace(pace)))
        .map(|config| config.with_queue_order(QueueOrder::Shuffled, 0x0dd5))
        .collect()
}

/// What an audit looked at, so that no test passes for lack of updates.
#[derive(Clone, Copy, Default, Debug)]
struct Audited {
    /// Windows in which an entry changed.
    changed: usize,
    /// Those in which a present entry did.
    of_present: usize,
}

/// Records everything from one moment on.
struct Recorder {
    memory: Memory,
    unit: ModelUnit,
    /// By address, with what hardware could find there at the start: nothing in tables that it was
    /// given later.
    entries: BTreeMap<u64, (Entry, Vec<u64>)>,
    log: Vec<MemoryEvent>,
    coherent: bool,
}

impl Recorder {
    fn start(machine: &Machine) -> Self {
        let memory = machine.memory.clone();
        memory.start_log();
        let mut recorder = Self {
            memory,
            unit: machine.unit.clone(),
            entries: BTreeMap::new(),
            log: Vec::new(),
            coherent: machine.unit.config().extended.has(Ecap::COHERENCY),
        };
        recorder.step();
        for (&at, (entry, before)) in &mut recorder.entries {
            *before = recorder.memory.read_entry(*entry, Hpa::new(at));
        }
        recorder
    }

    fn know(&mut self, at: u64, entry: Entry) {
        let absent = vec![0; entry.len_bytes() / 8];
        self.entries.entry(at).or_insert((entry, absent));
    }

    /// Marks that a step is complete, and takes down which entries the unit's tables have by now:
    /// those of tables that go away later are known then.
    fn step(&mut self) {
        self.memory.mark();
        self.log.extend(self.memory.take_log());
        let Some(root) = self.unit.root_table() else {
            return;
        };
        let memory = self.memory.clone();
        let read = |at: u64| memory.read64(Hpa::new(at));
        for device in [D0, D1] {
            let half = root.as_u64()
                + 16 * u64::from(device.bus())
                + 8 * u64::from(RootHalf::of(device).quadword());
            self.know(half, Entry::RootHalf(device.bus()));
            if read(half) & 1 == 0 {
                continue;
            }
            let context =
                (read(half) & !0xfff) + 32 * u64::from(ScalableContextEntry::index(device));
            self.know(context, Entry::ScalableContext(device));
            if read(context) & 1 == 0 {
                continue;
            }
            for pasid in PASIDS {
                let directory = (read(context) & !0xfff) + 8 * u64::from(pasid >> 6);
                let first = pasid & !0x3f;
                self.know(directory, Entry::PasidDirectory(first));
                if read(directory) & 1 == 1 {
                    let at = (read(directory) & !0xfff) + 64 * u64::from(pasid & 0x3f);
                    self.know(at, Entry::Pasid(pasid));
                }
            }
        }
    }

    /// Every mixture that could have been fetched, and what was looked at.
    fn audit(&mut self) -> (Vec<String>, Audited) {
        self.step();
        let mut audited = Audited::default();
        let mut mixtures = Vec::new();
        for (&at, &(entry, ref before)) in &self.entries {
            let history = windows(&self.log, entry, Hpa::new(at), before, self.coherent);
            if !history.is_flushed {
                mixtures.push(format!("{entry:?}: the last store was not flushed"));
            }
            for window in history.windows {
                let [before, after] = [&window.before, &window.after];
                let is_present = |state| entry.judge(state, state, state) == Verdict::After;
                let mut changes = window.states.windows(2).filter(|pair| pair[0] != pair[1]);
                let of_present = changes.clone().any(|pair| is_present(&pair[0]));
                audited.changed += usize::from(changes.next().is_some());
                audited.of_present += usize::from(of_present);
                let order = if is_present(before) {
                    PieceOrder::Any
                } else {
                    PieceOrder::PresentFirst
                };
                for value in window.mixtures(entry, order) {
                    mixtures.push(format!(
                        "{entry:?}: {value:x?} between {before:x?} and {after:x?}"
                    ));
                }
            }
        }
        (mixtures, audited)
    }

    #[track_caller]
    fn expect_whole(&mut self, changed: usize, of_present: usize) {
        let (mixtures, audited) = self.audit();
        assert_eq!(mixtures, [""; 0]);
        assert!(
            audited.changed >= changed && audited.of_present >= of_present,
            "{audited:?}"
        );
    }
}

// ---- the unit by itself ----

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).expect("a PASID")
}

fn unit_of(machine: &Machine) -> Unit<ModelUnit> {
    let width = machine.unit.config().host_address_width;
    let unit = Unit::probe(machine.unit.clone(), UnitConfig::new(0, width)).expect("a unit");
    unit.bring_up(&machine.hypervisor).expect("it comes up");
    unit
}

/// The options that a unit with these capabilities allows.
fn options(machine: &Machine) -> PasidEntryOptions {
    let extended = machine.unit.config().extended;
    PasidEntryOptions {
        page_walk_snoop: extended.has(Ecap::PAGE_WALK_COHERENCY),
        page_snoop: extended.has(Ecap::SNOOP_CONTROL),
        ..PasidEntryOptions::default()
    }
}

/// Four entries, of each translation type one; `number` makes them different.
fn entries(machine: &Machine, number: u64) -> [PasidEntry; 4] {
    let options = options(machine);
    let domain = |index: u16| DomainId::new(10 * number as u16 + index);
    let (first, second) = (number << 24, number << 28);
    [
        PasidEntry::nested(
            Gpa::new(first),
            FirstStagePaging::Level4,
            FirstStageFlags::default(),
            Hpa::new(second),
            AddressWidth::Bits48,
            domain(1),
            options,
        ),
        PasidEntry::second_stage(Hpa::new(second), AddressWidth::Bits48, domain(2), options),
        PasidEntry::first_stage(
            Hpa::new(first),
            FirstStagePaging::Level4,
            FirstStageFlags::default(),
            domain(3),
            options,
        ),
        PasidEntry::pass_through(domain(4), PasidEntryOptions::default()),
    ]
}

/// What the removal or change of an entry owes (§6.5.3.3).
fn forget(machine: &Machine, unit: &Unit<ModelUnit>, entry: &PasidEntry, number: u32) {
    let domain_id = entry.domain_id();
    let batch = [
        Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Pasid {
                domain_id,
                pasid: pasid(number),
            },
        },
        Descriptor::Iotlb {
            granularity: IotlbGranularity::Domain(domain_id),
            drain_reads: true,
            drain_writes: true,
        },
    ];
    let h = &machine.hypervisor;
    let ticket = unit.submit(h, &batch).expect("room in the queue");
    unit.wait(h, ticket).expect("it completes");
}

fn remove(
    machine: &Machine,
    unit: &Unit<ModelUnit>,
    tables: &DeviceTables,
    number: u32,
    entry: &PasidEntry,
) {
    let h = &machine.hypervisor;
    unit.withdraw_entry(h, tables, pasid(number));
    forget(machine, unit, entry, number);
    unit.clear_entry(h, tables, pasid(number));
}

#[test]
fn the_units_entry_operations_are_whole() {
    for config in configs() {
        let machine = Machine::new(config);
        let h = &machine.hypervisor;
        let unit = unit_of(&machine);
        let mut recorder = Recorder::start(&machine);
        let mut tables = unit.attach_device(h, Owner::new(1), D0, 20).expect("room");
        let other = unit.attach_device(h, Owner::new(1), D1, 0).expect("room");
        recorder.step();
        // Every kind of entry, each replaced by each other kind.
        for number in PASIDS {
            unit.prepare_entry(h, &mut tables, pasid(number))
                .expect("frames");
            recorder.step();
            let (old, new) = (entries(&machine, 1), entries(&machine, 2));
            for old in &old {
                for new in &new {
                    for entry in [old, new] {
                        unit.publish_entry(h, &tables, pasid(number), entry)
                            .expect("free");
                        recorder.step();
                        if unit.needs_invalidation_after_set_up() {
                            forget(&machine, &unit, &PasidEntry::default(), number);
                        }
                        remove(&machine, &unit, &tables, number, entry);
                        recorder.step();
                    }
                }
            }
        }
        // Another first-stage root in place.
        let [nested, ..] = entries(&machine, 3);
        for tables in [&tables, &other] {
            unit.publish_entry(h, tables, pasid(0), &nested)
                .expect("free");
            recorder.step();
            unit.replace_quadword(h, tables, pasid(0), 0x7000_0000)
                .expect("bound");
            forget(&machine, &unit, &nested, 0);
            recorder.step();
        }
        // Blocked and given up; detached and attached again, with other entries.
        let ticket = unit.block_device(h, &other).expect("room in the queue");
        unit.wait(h, ticket).expect("it completes");
        recorder.expect_whole(135, 130);
        // Behind a context entry that is gone a PASID entry cannot be fetched: what becomes of its
        // frame is no update of it. Hence an audit each time.
        for device in [tables, other] {
            let source_id = device.source_id();
            let detached = unit.detach_device(h, device).expect("room in the queue");
            unit.release(h, detached).expect("it completes");
            recorder.expect_whole(1, 0);
            recorder = Recorder::start(&machine);
            let device = unit
                .attach_device(h, Owner::new(1), source_id, 20)
                .expect("room");
            recorder.step();
            let [_, second, ..] = entries(&machine, 4);
            unit.publish_entry(h, &device, pasid(0), &second)
                .expect("free");
            recorder.step();
            drop(device);
        }
        recorder.expect_whole(2, 0);
        machine.unit.assert_no_violations();
    }
}

// ---- a machine and its guest ----

const GUEST_HOST: u64 = 0x4000_0000;
const GUEST_LEN_BYTES: u64 = 4 << 20;
const ROOT: u64 = 0x1000;
const QUEUE: u64 = 0x2000;
const STATUS: u64 = 0x3000;
const CONTEXTS: u64 = 0x8000;
/// Roots of first-stage or second-stage tables, which may be empty.
const TABLES: [u64; 3] = [0x20_0000, 0x21_0000, 0x22_0000];

/// A machine with two devices, and a guest that writes its tables by hand.
struct Guest {
    machine: Machine,
    units: Vec<Unit<ModelUnit>>,
    vm: VirtualMachine<4, 16, 16, 8>,
    handles: Vec<DeviceHandle>,
    tail: u64,
    waits: u32,
}

impl Guest {
    fn new(config: ModelConfig, policy: Policy) -> Self {
        let machine = Machine::new(config);
        let units = vec![unit_of(&machine)];
        let h = &machine.hypervisor;
        let config = MachineConfig {
            number: 1,
            owner: Owner::new(1),
            policy,
            protected: ProtectedRanges::new(),
            hash_seed: 1,
            shadow_table_limit: 64,
        };
        let mut vm = VirtualMachine::new(h, &units, config).expect("a machine");
        let (gpa, host) = (Gpa::new(0), Hpa::new(GUEST_HOST));
        vm.map_memory(h, &units, gpa, host, GUEST_LEN_BYTES, Rights::READ_WRITE)
            .expect("memory");
        let mut guest = Self {
            machine,
            units,
            vm,
            handles: Vec::new(),
            tail: 0,
            waits: 0,
        };
        guest.handles = [D0, D1].map(|device| guest.assign(device)).into();
        guest.settle();
        guest
    }

    fn assign(&mut self, source_id: SourceId) -> DeviceHandle {
        let config = DeviceConfig {
            pasid_bits: 20,
            ..DeviceConfig::new(
                source_id,
                source_id,
                0,
                InterruptIsolation::WaivedByEmbedder,
                Isolation::AssertedByEmbedder,
            )
        };
        self.vm
            .assign(&self.machine.hypervisor, &self.units, config)
            .expect("room for the device")
    }

    fn unassign(&mut self, index: usize) {
        for _ in 0..10_000 {
            let h = &self.machine.hypervisor;
            match self.vm.unassign(h, &self.units, self.handles[index]) {
                Ok(Progress::Done) => return,
                Ok(Progress::Again) => {}
                Ok(Progress::Wait) => self.pass_time(),
                Err(error) => panic!("{error:?}"),
            }
        }
        panic!("the device never leaves");
    }

    fn pass_time(&self) {
        self.machine.hypervisor.clock().advance(1_000);
        self.machine.unit.advance();
    }

    fn settle(&mut self) {
        for _ in 0..1_000_000 {
            match self.vm.poll(&self.machine.hypervisor, &self.units, 8) {
                Poll::Idle => return,
                Poll::Again => {}
                Poll::Wait => self.pass_time(),
            }
        }
        panic!("the machine never comes to rest");
    }

    fn put(&self, at: u64, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            let at = Hpa::new(GUEST_HOST + at + 8 * index as u64);
            self.machine.memory.write64(at, *word);
            self.machine.memory.flush_line(at);
        }
        self.machine.memory.fence();
    }

    fn write_register(&mut self, register: Register64, value: u64) {
        let offset = register.offset().into();
        self.vm.write_register(offset, 8, value);
        self.settle();
    }

    fn command(&mut self, command: GlobalCommand, on: bool) {
        let status = Register32::GLOBAL_STATUS.offset().into();
        let now = self.vm.read_register(status, 4) as u32 & GlobalCommand::PERSISTENT.bits();
        let value = if on {
            now | command.bits()
        } else {
            now & !command.bits()
        };
        let offset = Register32::GLOBAL_COMMAND.offset().into();
        self.vm.write_register(offset, 4, value.into());
        self.settle();
    }

    const fn directory(device: SourceId) -> u64 {
        0x1_0000 + device.as_u16() as u64 * 0x800
    }

    /// Tables, queue, and translation on.
    fn turn_on(&mut self) {
        for device in [D0, D1] {
            let contexts = CONTEXTS + 0x1000 * u64::from(device.bus());
            let directory = Self::directory(device);
            let root = ScalableRootEntry::new(Some(Gpa::new(contexts)), Some(Gpa::new(contexts)));
            self.put(ROOT + 16 * u64::from(device.bus()), root.quadwords());
            let attributes = ContextAttributes {
                pasid_enabled: self.vm.offer().features.extended.has_pasid(),
                ..ContextAttributes::default()
            };
            let order = DirectoryOrder::for_pasid_bits(0).expect("an order");
            let context = ScalableContextEntry::new(Gpa::new(directory), order, attributes);
            let index = u64::from(ScalableContextEntry::index(device));
            self.put(contexts + 32 * index, context.quadwords());
            for table in 0..2 {
                let entry = PasidDirectoryEntry::new(Gpa::new(directory + 0x1000 + 0x1000 * table));
                self.put(directory + 8 * table, &[entry.as_u64()]);
            }
        }
        let queue = InvalidationQueueAddress::new(Gpa::new(QUEUE), 0, DescriptorWidth::Bits256)
            .expect("an address");
        self.write_register(Register64::INVALIDATION_QUEUE_TAIL, 0);
        self.write_register(Register64::INVALIDATION_QUEUE_ADDRESS, queue.bits());
        self.command(GlobalCommand::QUEUED_INVALIDATION_ENABLE, true);
        let root = RootTableAddress::new(Gpa::new(ROOT), TranslationTableMode::Scalable);
        self.write_register(Register64::ROOT_TABLE_ADDRESS, root.bits());
        self.command(GlobalCommand::SET_ROOT_TABLE_POINTER, true);
        self.command(GlobalCommand::TRANSLATION_ENABLE, true);
    }

    /// Writes an entry and announces it under both domain-ids.
    fn set(&mut self, device: SourceId, number: u32, old: &PasidEntry, new: &PasidEntry) {
        let at = Self::directory(device)
            + 0x1000
            + 0x1000 * u64::from(number >> 6)
            + 64 * u64::from(number & 0x3f);
        self.put(at, new.quadwords());
        self.waits += 1;
        let wait = Descriptor::Wait {
            status: Some(WaitStatus {
                address: STATUS,
                data: self.waits,
            }),
            interrupt: false,
            fence: false,
            page_request_drain: false,
        };
        let announce = |entry: &PasidEntry| Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Pasid {
                domain_id: entry.domain_id(),
                pasid: pasid(number),
            },
        };
        for descriptor in [announce(old), announce(new), wait] {
            self.put(QUEUE + self.tail, &descriptor.encode().words());
            self.tail = (self.tail + 32) % 4096;
        }
        self.write_register(Register64::INVALIDATION_QUEUE_TAIL, self.tail);
    }

    fn is_first_stage(&self) -> bool {
        self.vm.offer().features.extended.has_first_stage()
    }

    fn entry(&self, root: u64, domain: u16) -> PasidEntry {
        let (root, domain) = (Gpa::new(root), DomainId::new(domain));
        let options = PasidEntryOptions::default();
        if self.is_first_stage() {
            let flags = FirstStageFlags::default();
            PasidEntry::first_stage(root, FirstStagePaging::Level4, flags, domain, options)
        } else {
            PasidEntry::guest_second_stage(root, AddressWidth::Bits39, domain, options)
        }
    }
}

fn guests() -> impl Iterator<Item = Guest> {
    configs().into_iter().flat_map(|config| {
        [false, true].map(|forbid_nesting| {
            let policy = Policy {
                forbid_nesting,
                ..Policy::default()
            };
            Guest::new(config.clone(), policy)
        })
    })
}

#[test]
fn bindings_replacements_and_removals_of_a_guests_entries_are_whole() {
    for mut guest in guests() {
        let mut recorder = Recorder::start(&guest.machine);
        guest.turn_on();
        recorder.step();
        let absent = PasidEntry::default();
        let pass_through =
            PasidEntry::pass_through(DomainId::new(30), PasidEntryOptions::default());
        let targets = [
            guest.entry(TABLES[0], 7),
            // Another root under the same domain-id, then another domain-id, then both.
            guest.entry(TABLES[1], 7),
            guest.entry(TABLES[1], 8),
            guest.entry(TABLES[2], 9),
            pass_through,
            guest.entry(TABLES[0], 7),
            absent,
        ];
        for device in [D0, D1] {
            for number in PASIDS {
                let mut old = absent;
                for new in &targets {
                    guest.set(device, number, &old, new);
                    recorder.step();
                    old = *new;
                }
            }
        }
        let replaced = guest.vm.statistics().replaced_in_place > 0;
        assert_eq!(replaced, guest.is_first_stage());
        guest.command(GlobalCommand::TRANSLATION_ENABLE, false);
        recorder.expect_whole(50, 40);
        guest.machine.unit.assert_no_violations();
    }
}

#[test]
fn devices_that_come_go_and_are_cut_off_leave_no_mixture() {
    for mut guest in guests() {
        guest.turn_on();
        let mut recorder = Recorder::start(&guest.machine);
        let absent = PasidEntry::default();
        let entry = guest.entry(TABLES[0], 7);
        for device in [D0, D1] {
            guest.set(device, 0, &absent, &entry);
            recorder.step();
        }
        guest.unassign(0);
        recorder.step();
        guest.handles[0] = guest.assign(D0);
        guest.settle();
        recorder.step();
        // Hardware that never confirms: the device is blocked by its context entry.
        guest.machine.unit.set_queue_pace(Pace::Never);
        let other = guest.entry(TABLES[1], 9);
        guest.vm.write_register(0x34, 4, 0);
        let before = guest.vm.statistics().quarantines;
        guest.machine.hypervisor.set_steps(100, 10_000_000);
        for _ in 0..3 {
            guest.set_without_rest(D0, 0, &other);
            recorder.step();
        }
        assert!(guest.vm.statistics().quarantines > before);
        recorder.expect_whole(6, 3);
    }
}

impl Guest {
    /// As [`set`](Self::set), with hardware that does not answer.
    fn set_without_rest(&mut self, device: SourceId, number: u32, entry: &PasidEntry) {
        let at = Self::directory(device) + 0x1000 + 64 * u64::from(number);
        self.put(at, entry.quadwords());
        let announce = Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Global,
        };
        self.put(QUEUE + self.tail, &announce.encode().words());
        self.tail = (self.tail + 32) % 4096;
        let offset = Register64::INVALIDATION_QUEUE_TAIL.offset().into();
        self.vm.write_register(offset, 8, self.tail);
        for _ in 0..1_000 {
            let h = &self.machine.hypervisor;
            if self.vm.poll(h, &self.units, 8) == Poll::Idle {
                break;
            }
            h.clock().advance(10_000_000);
        }
    }
}

// ---- the audit itself ----

#[test]
fn a_driver_that_rewrites_a_present_entry_is_found_out() {
    let machine = Machine::new(ModelConfig::nesting_server());
    let h = &machine.hypervisor;
    let unit = unit_of(&machine);
    let tables = unit.attach_device(h, Owner::new(1), D0, 20).expect("room");
    let [old, ..] = entries(&machine, 1);
    let [new, ..] = entries(&machine, 2);
    unit.publish_entry(h, &tables, pasid(0), &old)
        .expect("free");
    let mut recorder = Recorder::start(&machine);
    let at = recorder
        .entries
        .iter()
        .find_map(|(&at, (entry, _))| (*entry == Entry::Pasid(0)).then_some(at))
        .expect("the entry");
    for (index, word) in new.quadwords().iter().enumerate().rev() {
        machine
            .memory
            .write64(Hpa::new(at + 8 * index as u64), *word);
    }
    forget(&machine, &unit, &old, 0);
    let (mixtures, _) = recorder.audit();
    assert!(!mixtures.is_empty());
}
