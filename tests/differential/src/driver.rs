//! Runs programs on both sides, step by step, and compares.

use std::fmt::Write as _;

use vtd_nest::arch::register::{Register32, Register64};
use vtd_qtest::Machine;

use crate::configuration::Unit;
use crate::deviation;
use crate::invalidate::{Command, Invalidation};
use crate::layout::{
    BEYOND, DATA_PAGES, INTERRUPT_RANGE, LARGE_FRAMES, NOWHERE, QUEUE_BYTES, QUEUES, SLOTS, STATUS,
    reaches_data,
};
use crate::observe::{
    Context, Difference, PageContext, QUEUE_ERROR, QueueSeen, REGISTERS, Seen, changed_data,
    clear_faults, compare, fill_data, page_ranges, pending_record,
};
use crate::program::{
    Address, Dma, Interface, Kind, Mode, Place, Program, Scope, Step, Target, Upper,
};
use crate::random::mix;
use crate::sides::{ModelSide, QemuSide, SOURCE_IDS, Side};
use crate::tables::{
    Change, FAULT_DISABLE, FIRST_ACCESSED, FIRST_DIRTY, PAGE_SIZE, PRESENT, Structure, Tables,
    order,
};

const TRANSLATION_ENABLE: u32 = 1 << 31;
const SET_ROOT: u32 = 1 << 30;
const QUEUE_ENABLE: u32 = 1 << 26;

/// A wait that writes its status; the status goes to bits 63:32.
const WAIT_STATUS: u64 = 0x25;

/// The message of an interrupt that does nothing: fixed delivery to a processor that takes none.
const MESSAGE: [u8; 4] = [0x41, 0, 0, 0];

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// DMAs done.
    pub dma: u64,
    /// Those of them that moved data on both sides.
    pub moved: u64,
    /// How often each deviation was met, by its number in [`deviation::ALL`].
    pub deviations: Vec<u64>,
    /// The first difference that nothing explains.
    pub failure: Option<Failure>,
    /// What was done, if it was asked for.
    pub trace: String,
}

/// An invalidation queue as it is set up.
#[derive(Clone, Copy, Debug)]
struct Queue {
    at: u64,
    /// 256-bit descriptors.
    wide: bool,
    tail: u32,
}

/// A difference that nothing explains, or a program that breaks a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The number of the step.
    pub step: usize,
    /// What kind of difference it is.
    pub kind: String,
    /// All that is known of it.
    pub text: String,
}

impl Failure {
    /// A failure of the step that is running.
    fn new(text: String) -> Self {
        let end = text
            .find(|c: char| !c.is_alphanumeric())
            .unwrap_or(text.len());
        Self {
            step: 0,
            kind: text[..end].to_owned(),
            text,
        }
    }
}

struct Driver<'a> {
    unit: &'a Unit,
    model: ModelSide,
    qemu: QemuSide<'a>,
    tables: Tables,
    queue: Option<Queue>,
    /// Persistent bits of `GCMD_REG`.
    command: u32,
    /// What the units may hold of each device: domain-id and kind.
    held: [Option<(u16, Kind)>; 2],
    /// Entries of the page tables of the last DMA's device, before it: level, place, word.
    entries: Vec<(u8, u64, u64)>,
    /// Pages that a device was let through to, as (device, address, log2 of length).
    accessed: Vec<(usize, u64, u32)>,
    /// Count waits and DMAs, so that each has data of its own.
    waits: u64,
    accesses: u64,
    trace: Option<String>,
    outcome: Outcome,
}

/// Bits of an entry that have a meaning which the tests of reserved bits are not to change.
fn defined_bits(place: Place, word: u8, scalable: bool, width: u8, entry: u64) -> u64 {
    let pointer = ((1 << width) - 1) & !0xfff;
    match (place, word) {
        (Place::Root, 0) => pointer | PRESENT,
        (Place::Context, 0) if scalable => pointer | PRESENT | FAULT_DISABLE,
        // TT.
        (Place::Context, 0) => pointer | PRESENT | FAULT_DISABLE | 3 << 2,
        // AW and DID.
        (Place::Context, 1) if !scalable => 0xff_ff07,
        // RID_PASIDs of other pages of the directory, which are not its own.
        (Place::Context, 1) => 0xf_fe00,
        (Place::Directory, _) => pointer | PRESENT | FAULT_DISABLE,
        // AW and PGTT.
        (Place::Pasid, 0) => pointer | PRESENT | FAULT_DISABLE | 7 << 2 | 7 << 6,
        // DID.
        (Place::Pasid, 1) => 0xffff,
        // SRE and FSPM.
        (Place::Pasid, 2) => pointer | 1 | 3 << 2,
        (Place::Table(level), _) => {
            let is_leaf = level == 1 || entry & PAGE_SIZE != 0;
            let address = if is_leaf {
                pointer & !((1 << order(level)) - 1)
            } else {
                pointer
            };
            // PS makes a leaf of an entry only where there can be large pages.
            let size = if matches!(level, 2 | 3) { PAGE_SIZE } else { 0 };
            address | size | 7
        }
        _ => 0,
    }
}

/// Runs a program on a fresh model and on QEMU's machine, which is reset.
pub fn run(program: &Program, unit: &Unit, machine: &mut Machine, trace: bool) -> Outcome {
    machine.reset();
    let mut driver = Driver {
        unit,
        model: ModelSide::new(unit, program.cache_mode, program.seed),
        qemu: QemuSide(machine),
        tables: Tables::new(&program.domains, program.mode),
        queue: None,
        command: 0,
        held: [None; 2],
        entries: Vec::new(),
        accessed: Vec::new(),
        waits: 0,
        accesses: 0,
        trace: trace.then(String::new),
        outcome: Outcome {
            deviations: vec![0; deviation::ALL.len()],
            ..Outcome::default()
        },
    };
    let result = driver.all(program);
    driver.outcome.failure = result.err();
    driver.outcome.trace = driver.trace.unwrap_or_default();
    driver.outcome
}

impl Driver<'_> {
    fn all(&mut self, program: &Program) -> Result<(), Failure> {
        self.start()?;
        for (index, step) in program.steps.iter().enumerate() {
            self.note(|| format!("{index:3}  {step:x?}"));
            self.step(step)
                .and_then(|()| self.after_step())
                .map_err(|failure| Failure {
                    step: index,
                    ..failure
                })?;
        }
        Ok(())
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "{}", line());
        }
    }

    // ---- both sides ----

    fn sides(&mut self) -> [&mut dyn Side; 2] {
        [&mut self.model, &mut self.qemu]
    }

    fn write32(&mut self, register: Register32, value: u32) {
        for side in self.sides() {
            side.write32(register, value);
        }
    }

    fn write64(&mut self, register: Register64, value: u64) {
        for side in self.sides() {
            side.write64(register, value);
        }
    }

    fn store(&mut self, at: u64, value: u64) {
        self.note(|| format!("       [{at:#x}] = {value:#x}"));
        let qemu_bits = self.tables.qemu_bits(at);
        self.model.store(at, value);
        self.qemu.store(at, value | qemu_bits);
    }

    fn store_all(&mut self, stores: &[(u64, u64)]) {
        for &(at, value) in stores {
            self.store(at, value);
        }
    }

    /// Counts a difference that a deviation explains; any other is a failure.
    fn judge(&mut self, difference: &Difference) -> Result<(), Failure> {
        match deviation::of(difference) {
            Some(index) => {
                self.outcome.deviations[index] += 1;
                let name = deviation::ALL[index].name;
                self.note(|| format!("       known: {name}"));
                Ok(())
            }
            None => Err(Failure::new(format!("{difference:x?}"))),
        }
    }

    /// Judges differences one by one if each is known, else all of them as `whole`.
    fn judge_unless_known(
        &mut self,
        differences: Vec<Difference>,
        whole: impl FnOnce() -> Difference,
    ) -> Result<(), Failure> {
        if differences
            .iter()
            .any(|difference| deviation::of(difference).is_none())
        {
            return self.judge(&whole());
        }
        differences
            .iter()
            .try_for_each(|difference| self.judge(difference))
    }

    /// A command in `GCMD_REG`; whether both sides say that it is done is seen after the step.
    fn command(&mut self, one_shot: u32) {
        let value = self.command | one_shot;
        self.note(|| format!("       GCMD = {value:#x}"));
        self.write32(Register32::GLOBAL_COMMAND, value);
    }

    // ---- start ----

    /// Translation off, a root table, no queue: what a driver finds and does first.
    fn start(&mut self) -> Result<(), Failure> {
        self.change_structures(Scope::Exact, true)?;
        self.set_root_pointer(self.tables.root_table(), false);
        let interface = match self.tables.mode {
            Mode::Legacy => Interface::Registers,
            Mode::Scalable => Interface::Wide,
        };
        self.set_interface(interface)?;
        self.after_step()
    }

    /// Writes `RTADDR_REG` and lets the unit take it.
    fn set_root_pointer(&mut self, root: u64, reserved_mode: bool) {
        let mode = match (reserved_mode, self.tables.mode) {
            (true, _) => 2,
            (_, Mode::Legacy) => 0,
            (_, Mode::Scalable) => 1,
        };
        let value = root | mode << 10;
        self.note(|| format!("       RTADDR = {value:#x}"));
        self.write64(Register64::ROOT_TABLE_ADDRESS, value);
        self.command(SET_ROOT);
    }

    fn set_interface(&mut self, interface: Interface) -> Result<(), Failure> {
        if self.command & QUEUE_ENABLE != 0 {
            // A wait is the last of a queue (§6.5.2).
            self.submit_wait()?;
            self.command &= !QUEUE_ENABLE;
            self.command(0);
        }
        let scalable = self.tables.mode == Mode::Scalable;
        let wide = scalable || interface == Interface::Wide && self.unit.scalable();
        if interface == Interface::Registers && !scalable {
            self.queue = None;
            return Ok(());
        }
        let at = match self.queue {
            Some(queue) if queue.at == QUEUES[0] => QUEUES[1],
            _ => QUEUES[0],
        };
        self.queue = Some(Queue { at, wide, tail: 0 });
        self.write64(Register64::INVALIDATION_QUEUE_TAIL, 0);
        let value = at | if wide { 1 << 11 } else { 0 };
        self.note(|| format!("       IQA = {value:#x}"));
        self.write64(Register64::INVALIDATION_QUEUE_ADDRESS, value);
        self.command |= QUEUE_ENABLE;
        self.command(0);
        Ok(())
    }

    // ---- invalidation ----

    /// A status for a wait, and where it goes.
    fn next_wait(&mut self) -> (u64, u64) {
        self.waits += 1;
        (self.waits & 0xffff_ffff, STATUS + 8 * (self.waits % 64))
    }

    /// Puts a descriptor at the tail; the tail register is not written.
    fn push(&mut self, words: [u64; 4]) {
        let Some(mut queue) = self.queue else { return };
        let at = queue.at + u64::from(queue.tail);
        let words = if queue.wide { &words[..] } else { &words[..2] };
        for (at, word) in (at..).step_by(8).zip(words) {
            self.store(at, *word);
        }
        queue.tail = (queue.tail + 8 * words.len() as u32) % QUEUE_BYTES as u32;
        self.queue = Some(queue);
    }

    fn write_tail(&mut self) {
        if let Some(queue) = self.queue {
            self.note(|| format!("       IQT = {:#x}", queue.tail));
            self.write64(Register64::INVALIDATION_QUEUE_TAIL, u64::from(queue.tail));
        }
    }

    /// Compares the status word of a wait with what both sides must have stored.
    fn check_wait(&mut self, at: u64, status: u64) -> Result<(), Failure> {
        let [model, qemu] = self.sides().map(|side| side.load(at));
        if model != status || qemu != status {
            self.judge(&Difference::WaitStatus { model, qemu })?;
        }
        Ok(())
    }

    fn invalidate(&mut self, invalidations: &[Invalidation]) -> Result<(), Failure> {
        let scalable = self.tables.mode == Mode::Scalable;
        let mut wanted: Vec<_> = invalidations
            .iter()
            .copied()
            .filter(|invalidation| scalable || invalidation.is_legacy())
            .collect();
        wanted.sort_by_key(|invalidation| invalidation.rank());
        wanted.dedup();
        if wanted.contains(&Invalidation::IotlbGlobal) {
            self.accessed.clear();
        }
        if wanted.is_empty() {
            return Ok(());
        }
        if self.queue.is_none() {
            for invalidation in wanted {
                self.note(|| format!("       registers: {invalidation:x?}"));
                self.invalidate_by_register(invalidation)?;
            }
            return Ok(());
        }
        for invalidation in wanted {
            self.note(|| format!("       queue: {invalidation:x?}"));
            let [q0, q1] = invalidation.descriptor();
            self.push([q0, q1, 0, 0]);
        }
        self.submit_wait()
    }

    /// Submits a wait behind what is in the queue, and sees it done.
    fn submit_wait(&mut self) -> Result<(), Failure> {
        let (status, at) = self.next_wait();
        self.push([WAIT_STATUS | status << 32, at, 0, 0]);
        self.write_tail();
        self.check_wait(at, status)
    }

    fn invalidate_by_register(&mut self, invalidation: Invalidation) -> Result<(), Failure> {
        let iotlb_offset = self.unit.iotlb_offset();
        let (name, register, value) = match invalidation.command() {
            Some(Command::Context(value)) => ("CCMD", Register64::CONTEXT_COMMAND, value),
            Some(Command::Iotlb(address, value)) => {
                let registers = (
                    Register64::invalidate_address(iotlb_offset),
                    Register64::iotlb_invalidate(iotlb_offset),
                );
                let (Some(at), Some(command)) = registers else {
                    return Err(Failure::new("IOTLB registers are nowhere".into()));
                };
                if let Some(address) = address {
                    self.write64(at, address);
                }
                ("IOTLB", command, value)
            }
            None => return Ok(()),
        };
        self.write64(register, value);
        // The request bit and the granularity: the others are not kept, or need not be.
        let result = if name == "CCMD" {
            1 << 63 | 3 << 59
        } else {
            1 << 63 | 3 << 57
        };
        let [model, qemu] = self.sides().map(|side| side.read64(register) & result);
        if model != qemu {
            self.judge(&Difference::InvalidationResult { name, model, qemu })?;
        }
        Ok(())
    }

    fn invalidate_everything(&mut self) -> Result<(), Failure> {
        self.invalidate(&[
            Invalidation::ContextGlobal,
            Invalidation::PasidGlobal,
            Invalidation::IotlbGlobal,
        ])
    }

    // ---- tables ----

    /// Writes the structures as they are to be, and invalidates what that asks for (Table 28).
    /// `context_too`: QEMU's unit notices some changes of PASID-table entries only by an
    /// invalidation of the context cache.
    fn change_structures(&mut self, scope: Scope, context_too: bool) -> Result<(), Failure> {
        let mut stores = Vec::new();
        let changed = self.tables.update(self.unit, &mut stores);
        self.store_all(&stores);
        let mut wanted = Vec::new();
        for (structure, device) in changed {
            let source_id = SOURCE_IDS[device];
            let held = self.held[device];
            if structure == Structure::Root || scope == Scope::Global {
                wanted.extend([
                    Invalidation::ContextGlobal,
                    Invalidation::PasidGlobal,
                    Invalidation::IotlbGlobal,
                ]);
                continue;
            }
            // With caching mode what is absent is held with domain-id 0.
            let tags: &[(u16, Option<Kind>)] = &[
                held.map_or((0, None), |(domain_id, kind)| (domain_id, Some(kind))),
                (0, None),
            ];
            let used = match held {
                Some(_) if self.unit.caching_mode() => tags,
                Some(_) => &tags[..1],
                None => &tags[1..],
            };
            for &(domain_id, kind) in used {
                if structure == Structure::Context || context_too {
                    wanted.push(match (scope, self.tables.mode) {
                        (Scope::Domain, Mode::Legacy) => Invalidation::ContextDomain(domain_id),
                        _ => Invalidation::ContextDevice(source_id, domain_id),
                    });
                }
                wanted.push(match (scope, structure) {
                    (Scope::Exact, Structure::Pasid | Structure::Directory) => {
                        Invalidation::PasidOne(domain_id)
                    }
                    _ => Invalidation::PasidDomain(domain_id),
                });
                wanted.push(match (scope, kind, self.tables.mode) {
                    (Scope::Exact, Some(Kind::First | Kind::PassThrough), Mode::Scalable) => {
                        Invalidation::PasidIotlb(domain_id)
                    }
                    _ => Invalidation::IotlbDomain(domain_id),
                });
            }
            // With caching mode faults of second-stage tables are held by the new domain-id.
            if let Some((domain_id, _)) = self.tables.tag_of(device)
                && self.unit.caching_mode()
            {
                wanted.push(Invalidation::IotlbDomain(domain_id));
            }
        }
        for device in 0..2 {
            self.held[device] = self.tables.tag_of(device);
        }
        self.invalidate(&wanted)
    }

    /// Invalidates what a change of a domain's page tables asks for.
    fn after_change(
        &mut self,
        domain: usize,
        address: u64,
        change: Option<Change>,
        scope: Scope,
    ) -> Result<(), Failure> {
        let Some(change) = change else { return Ok(()) };
        let state = &self.tables.domains[domain];
        let domain_id = state.domain_id;
        let is_first = state.plan.kind == Kind::First;
        let is_new = !change.was_present && (is_first || !self.unit.caching_mode());
        if is_new && scope == Scope::Exact {
            return Ok(());
        }
        let mask = (order(change.level) - 12) as u8;
        // CAP.MAMV is 18.
        let by_page = scope == Scope::Exact && mask <= 18;
        let address = address & !((0x1000 << mask) - 1);
        let leaf_only = change.leaf_only;
        // Devices with a flaw have entries with domain-ids of their own.
        let used = (0..2).filter(|&device| self.tables.devices[device].domain == Some(domain));
        let mut domain_ids: Vec<_> = used
            .filter_map(|device| self.tables.tag_of(device))
            .map(|(domain_id, _)| domain_id)
            .chain([domain_id])
            .collect();
        domain_ids.sort_unstable();
        domain_ids.dedup();
        let wanted: Vec<_> = domain_ids
            .into_iter()
            .map(|domain_id| match (scope, by_page, is_first) {
                (Scope::Global, ..) => Invalidation::IotlbGlobal,
                (_, true, true) => Invalidation::PasidIotlbPages {
                    domain_id,
                    address,
                    mask,
                    leaf_only,
                },
                (_, true, false) => Invalidation::IotlbPages {
                    domain_id,
                    address,
                    mask,
                    leaf_only,
                },
                (Scope::Exact, false, true) => Invalidation::PasidIotlb(domain_id),
                _ => Invalidation::IotlbDomain(domain_id),
            })
            .collect();
        self.invalidate(&wanted)
    }

    /// A leaf, and the level that it can have.
    fn leaf(
        &self,
        domain: usize,
        address: u64,
        level: u8,
        target: Target,
        rights: u8,
        extra: u64,
    ) -> (u8, u64) {
        let state = &self.tables.domains[domain];
        let frame = |level: u8| match (target, level) {
            (Target::Interrupts, 1) => Some(INTERRUPT_RANGE | u64::from(rights) << 12),
            (Target::Interrupts, 2) => Some(INTERRUPT_RANGE),
            (Target::Interrupts, _) => Some(INTERRUPT_RANGE & !0x3fff_ffff),
            (Target::Data(index), 1) => Some(DATA_PAGES[usize::from(index) % DATA_PAGES.len()]),
            (Target::Data(index), 2) => {
                let start = usize::from(index) % LARGE_FRAMES.len();
                (0..LARGE_FRAMES.len())
                    .map(|skip| LARGE_FRAMES[(start + skip) % LARGE_FRAMES.len()])
                    .find(|frame| reaches_data(address, 21, *frame))
            }
            (Target::Data(_), _) => reaches_data(address, 30, 0).then_some(0),
        };
        // QEMU's unit takes 1-GiB pages whether it offers them or not; software uses what is
        // offered.
        let highest = if state.plan.kind == Kind::First && !self.unit.first_stage_1gib() {
            2
        } else {
            3
        };
        let level = level.clamp(1, highest);
        let (level, frame) = (1..=level)
            .rev()
            .find_map(|level| frame(level).map(|frame| (level, frame)))
            .unwrap_or((1, DATA_PAGES[0]));
        let size = if level > 1 { PAGE_SIZE } else { 0 };
        let ignored = match state.plan.kind {
            // PWT, PCD, G, 11, 62:52, and A and D.
            Kind::First => 0xfff0_0000_0000_0b78,
            // EMT, IPAT, A, D, 10, and 61:52 and 63.
            _ => 0xbff0_0000_0000_077c,
        };
        let mut word = frame | size | state.rights(rights) | extra & ignored;
        if state.plan.kind == Kind::First && !self.unit.snooped_walks() {
            // Software presets them where walks are not snooped; sometimes this one does not.
            let preset = FIRST_ACCESSED | FIRST_DIRTY;
            if extra & 3 << 32 != 0 {
                word |= preset;
            }
        }
        (level, word)
    }

    // ---- DMA ----

    fn is_translating(&self) -> bool {
        self.command & TRANSLATION_ENABLE != 0
    }

    /// Where a DMA goes, and how long it is.
    fn resolve(&self, dma: &Dma) -> (u64, usize) {
        let domain = self.tables.domain_of(usize::from(dma.device));
        let passes = domain.is_some_and(|domain| domain.plan.kind == Kind::PassThrough);
        let data = |page: u8, offset: u16| {
            // Neighbours of data pages are memory that tests do not look at.
            let offset = u64::from(offset & 0xfff);
            let len = usize::from(dma.len).min((0x1000 - offset) as usize);
            (
                DATA_PAGES[usize::from(page) % DATA_PAGES.len()] + offset,
                len,
            )
        };
        let len = usize::from(dma.len);
        match dma.address {
            Address::Interrupt(offset) => {
                (INTERRUPT_RANGE + u64::from(offset & 0xf_fffc), len.min(8))
            }
            Address::Data(page, offset) => data(page, offset),
            Address::Beyond(page, offset) if self.is_translating() => (
                BEYOND[usize::from(page) % BEYOND.len()] + u64::from(offset & 0xfff),
                len.min(0x1000 - usize::from(offset & 0xfff)),
            ),
            Address::Slot(slot, offset) if self.is_translating() && !passes => {
                let slot = SLOTS[usize::from(slot) % SLOTS.len()];
                let offset = u64::from(offset & 0xfff);
                let room = (0x1000 - offset) as usize;
                // Not into the interrupt range, and not around the end of addresses.
                let next = slot.checked_add(0x1000);
                let ends = next.is_none_or(|next| next == INTERRUPT_RANGE);
                (slot + offset, if ends { len.min(room) } else { len })
            }
            Address::Slot(page, offset) | Address::Beyond(page, offset) => data(page, offset),
        }
    }

    /// The DMA without what lies behind its first page.
    fn within_page(&self, dma: Dma) -> Dma {
        let (address, _) = self.resolve(&dma);
        let room = 0x1000 - (address & 0xfff) as u16;
        Dma {
            len: dma.len.min(room),
            ..dma
        }
    }

    fn context(&self, dma: &Dma, address: u64, len: usize) -> Context {
        let device = usize::from(dma.device);
        let domain = self.tables.domain_of(device);
        let mut pages = Vec::new();
        let mut at = address;
        for (_, length) in page_ranges(address, len) {
            let path = domain.map(|domain| domain.path(at)).unwrap_or_default();
            let was_accessed = self
                .accessed
                .iter()
                .any(|&(other, page, order)| other == device && (at ^ page) >> order == 0);
            pages.push(PageContext {
                address: at & !0xfff,
                path,
                was_accessed,
            });
            at = at.wrapping_add(length as u64);
        }
        Context {
            mode: self.tables.mode,
            translating: self.is_translating(),
            device,
            write: dma.write,
            address,
            len,
            kind: domain.map(|domain| domain.plan.kind),
            flaw: self.tables.devices[device].flaw,
            fault_disable: self.tables.devices[device].fault_disable,
            width: self.unit.width(),
            pages,
        }
    }

    /// Does a DMA on both sides: what it was, and what was seen of it.
    fn access(&mut self, dma: &Dma) -> (Context, Seen, Seen) {
        self.accesses += 1;
        self.access_again(dma)
    }

    /// Does a DMA with the same data as the last one.
    fn access_again(&mut self, dma: &Dma) -> (Context, Seen, Seen) {
        let (address, len) = self.resolve(dma);
        self.outcome.dma += 1;
        let is_interrupt = (INTERRUPT_RANGE..INTERRUPT_RANGE + (1 << 20)).contains(&address);
        let sent: Vec<u8> = if is_interrupt {
            MESSAGE.into_iter().cycle().take(len).collect()
        } else {
            let serial = mix(self.accesses);
            (0..len as u64)
                .map(|index| mix(serial ^ index) as u8 | 0x80)
                .collect()
        };
        let context = self.context(dma, address, len);
        let (device, unit) = (usize::from(dma.device), self.unit);
        self.entries = self
            .tables
            .domain_of(device)
            .map(|domain| domain.entries())
            .unwrap_or_default();
        for (_, at, word) in &mut self.entries {
            *word = self.model.load(*at);
        }
        let [model, qemu] = self.sides().map(|side| {
            fill_data(side, address, len);
            let status_before = side.read32(Register32::FAULT_STATUS);
            let record_before = pending_record(side, unit, status_before);
            let (blocked, data) = if dma.write {
                (side.dma_write(device, address, &sent), Vec::new())
            } else {
                let mut data = vec![0; len];
                (side.dma_read(device, address, &mut data), data)
            };
            let status = side.read32(Register32::FAULT_STATUS);
            Seen {
                data,
                arrived: changed_data(side, address, len),
                status_before,
                status,
                record_before,
                record: pending_record(side, unit, status),
                blocked,
            }
        });
        if self.trace.is_some() {
            let verb = if dma.write { "writes" } else { "reads" };
            self.note(|| format!("       device {device} {verb} {len} bytes at {address:#x}"));
            for page in &context.pages {
                for entry in &page.path {
                    self.note(|| {
                        format!(
                            "         level {}: [{:#x}] = {:#x}",
                            entry.level, entry.at, entry.word
                        )
                    });
                }
            }
            self.note(|| format!("         model: {model:x?}"));
            self.note(|| format!("         QEMU:  {qemu:x?}"));
        }
        if !model.is_without_data() && !qemu.is_without_data() {
            self.outcome.moved += 1;
        }
        let noted = qemu.reason().and(qemu.record).map(|record| record.page());
        for page in &context.pages {
            if noted != Some(page.address) {
                let order = page.path.last().map_or(12, |leaf| order(leaf.level));
                self.accessed.push((context.device, page.address, order));
            }
        }
        (context, model, qemu)
    }

    /// Judges a DMA like any other.
    fn judge_access(
        &mut self,
        context: &Context,
        model: &Seen,
        qemu: &Seen,
        keep_faults: bool,
    ) -> Result<(), Failure> {
        let differences = compare(context, model, qemu);
        let mut differ = false;
        for difference in differences {
            differ |= matches!(difference, Difference::Outcome { .. });
            self.judge(&difference)?;
        }
        self.compare_entries(context, model)?;
        if differ || !keep_faults {
            self.clear_faults();
        }
        Ok(())
    }

    fn clear_faults(&mut self) {
        let unit = self.unit;
        for side in self.sides() {
            clear_faults(side, unit);
        }
    }

    fn dma(&mut self, dma: &Dma) -> Result<(), Failure> {
        let (context, model, qemu) = self.access(dma);
        self.judge_access(&context, &model, &qemu, dma.keep_faults)
    }

    /// Compares the page tables of the last DMA's device: accessed and dirty bits.
    fn compare_entries(&mut self, context: &Context, seen: &Seen) -> Result<(), Failure> {
        let Some(kind) = context.kind else {
            return Ok(());
        };
        for (level, at, before) in std::mem::take(&mut self.entries) {
            let [model, qemu] = self.sides().map(|side| side.load(at));
            if model != qemu {
                self.note(|| format!("       [{at:#x}]: model {model:#x}, QEMU {qemu:#x}"));
                self.judge(&Difference::Entry {
                    kind,
                    is_leaf: level == 1 || before & PAGE_SIZE != 0,
                    flaw: context.flaw,
                    write: context.write,
                    blocked: seen.blocked.iter().flatten().copied().collect(),
                    before,
                    model,
                    qemu,
                })?;
                self.qemu.store(at, model);
            }
        }
        Ok(())
    }

    /// Gives QEMU's side the page tables of the model's, after a DMA that the two may rightly take
    /// for different ones.
    fn align_entries(&mut self) {
        for (_, at, _) in std::mem::take(&mut self.entries) {
            let word = self.model.load(at);
            self.qemu.store(at, word);
        }
    }

    // ---- steps ----

    fn step(&mut self, step: &Step) -> Result<(), Failure> {
        match *step {
            Step::Map {
                domain,
                slot,
                level,
                target,
                rights,
                extra,
                scope,
            } => {
                let (domain, address) = self.place(domain, slot);
                let (level, word) = self.leaf(domain, address, level, target, rights, extra);
                self.set_entry(domain, address, level, word, scope)
            }
            Step::Unmap {
                domain,
                slot,
                scope,
            } => {
                let (domain, address) = self.place(domain, slot);
                let leaf = self.tables.domains[domain].path(address).pop();
                match leaf {
                    Some(leaf) if leaf.level == 1 || leaf.word & PAGE_SIZE != 0 => {
                        self.set_entry(domain, address, leaf.level, 0, scope)
                    }
                    _ => Ok(()),
                }
            }
            Step::Upper {
                domain,
                slot,
                level,
                change,
                scope,
            } => {
                let (domain, address) = self.place(domain, slot);
                let mut stores = Vec::new();
                let changed =
                    self.tables
                        .set_upper(
                            domain,
                            address,
                            level,
                            &mut stores,
                            |state, old| match change {
                                Upper::Rights(rights) => old & !7 | state.rights(rights),
                                Upper::Absent => old & !3,
                                Upper::Nowhere => old & 0xfff | NOWHERE,
                            },
                        );
                self.store_all(&stores);
                self.after_change(domain, address, changed, scope)
            }
            Step::NewRoot {
                domain,
                copied,
                scope,
            } => {
                let domain = usize::from(domain) % self.tables.domains.len();
                let mut stores = Vec::new();
                self.tables.replace_root(domain, copied, &mut stores);
                self.store_all(&stores);
                self.change_structures(scope, true)
            }
            Step::NewDomainId { domain, scope } => {
                let domain = usize::from(domain) % self.tables.domains.len();
                let step = self.tables.domains.len() as u16;
                let state = &mut self.tables.domains[domain];
                // Still different from the others', and not 0.
                state.domain_id = state.domain_id.wrapping_add(16 * step);
                self.change_structures(scope, true)
            }
            Step::Attach {
                device,
                domain,
                fault_disable,
                scope,
            } => {
                self.attach(device, domain, fault_disable);
                self.change_structures(scope, true)
            }
            Step::Break {
                device,
                flaw,
                scope,
            } => {
                self.tables.devices[usize::from(device)].flaw = flaw;
                self.change_structures(scope, true)
            }
            Step::Dma(dma) => self.dma(&dma),
            Step::Translation(on) => {
                self.translation(on);
                Ok(())
            }
            Step::RootTable { mode, copied } => self.root_table(mode, copied),
            Step::RootTableNowhere(dma) => self.other_root_table(&dma, false),
            Step::ReservedMode(dma) => self.other_root_table(&dma, true),
            Step::Interface(interface) => self.set_interface(interface),
            Step::Invalidate(which) => self.invalidate_more(which),
            Step::Wait(kind) => self.wait(kind),
            Step::BadDescriptor(words) => self.bad_descriptor(words),
            Step::BadTail(tail) => self.bad_tail(tail),
            Step::Reserved {
                place,
                word,
                bit,
                dma,
            } => self.reserved(place, word, bit, &self.within_page(dma)),
            Step::ClearPresent(dma) => self.clear_present(&self.within_page(dma)),
            Step::LeavePassThrough { domain, dma } => {
                self.leave_pass_through(domain, &self.within_page(dma))
            }
        }
    }

    fn place(&self, domain: u8, slot: u8) -> (usize, u64) {
        (
            usize::from(domain) % self.tables.domains.len(),
            SLOTS[usize::from(slot) % SLOTS.len()],
        )
    }

    fn set_entry(
        &mut self,
        domain: usize,
        address: u64,
        level: u8,
        word: u64,
        scope: Scope,
    ) -> Result<(), Failure> {
        let mut stores = Vec::new();
        let snooped = self.unit.snooped_walks();
        let change = self
            .tables
            .set_entry(domain, address, level, word, snooped, &mut stores);
        self.store_all(&stores);
        self.after_change(domain, address, change, scope)
    }

    fn attach(&mut self, device: u8, domain: Option<u8>, fault_disable: u8) {
        let count = self.tables.domains.len();
        let state = &mut self.tables.devices[usize::from(device)];
        state.domain = domain.map(|domain| usize::from(domain) % count);
        state.fault_disable = fault_disable;
    }

    fn translation(&mut self, on: bool) {
        if on == self.is_translating() {
            return;
        }
        if on {
            // Clearing TE took the root table pointer away.
            self.set_root_pointer(self.tables.root_table(), false);
        }
        self.command ^= TRANSLATION_ENABLE;
        self.command(0);
        if !on {
            self.accessed.clear();
        }
    }

    fn root_table(&mut self, mode: Mode, copied: bool) -> Result<(), Failure> {
        let mode = if self.unit.scalable() {
            mode
        } else {
            Mode::Legacy
        };
        let differs = mode != self.tables.mode;
        let was_on = self.is_translating();
        if differs {
            self.translation(false);
            self.tables.mode = mode;
            self.held = [None; 2];
        }
        if copied {
            self.tables.move_root_table();
        }
        let mut stores = Vec::new();
        self.tables.update(self.unit, &mut stores);
        self.store_all(&stores);
        if differs {
            // In scalable mode descriptors are wide.
            self.set_interface(Interface::Wide)?;
        }
        self.set_root_pointer(self.tables.root_table(), false);
        self.invalidate_everything()?;
        for device in 0..2 {
            self.held[device] = self.tables.tag_of(device);
        }
        self.translation(was_on);
        Ok(())
    }

    fn other_root_table(&mut self, dma: &Dma, reserved_mode: bool) -> Result<(), Failure> {
        let was_on = self.is_translating();
        self.invalidate_everything()?;
        self.translation(false);
        let root = if reserved_mode {
            self.tables.root_table()
        } else {
            NOWHERE
        };
        self.set_root_pointer(root, reserved_mode);
        self.command ^= TRANSLATION_ENABLE;
        self.command(0);
        self.clear_faults();
        let (context, model, qemu) = self.access(dma);
        self.align_entries();
        self.clear_faults();
        self.translation(false);
        self.set_root_pointer(self.tables.root_table(), false);
        self.invalidate_everything()?;
        self.translation(true);
        let (right_context, right_model, right) = self.access_again(dma);
        self.judge_access(&right_context, &right_model, &right, false)?;
        self.translation(was_on);
        self.judge_unless_known(compare(&context, &model, &qemu), || Difference::RootTable {
            reserved_mode,
            context,
            model,
            qemu,
            right,
        })
    }

    fn invalidate_more(&mut self, which: u8) -> Result<(), Failure> {
        let domain_id =
            self.tables.domains[usize::from(which) % self.tables.domains.len()].domain_id;
        let source_id = SOURCE_IDS[usize::from(which >> 7)];
        let choices = [
            Invalidation::ContextGlobal,
            Invalidation::ContextDomain(domain_id),
            Invalidation::ContextDevice(source_id, domain_id),
            Invalidation::PasidGlobal,
            Invalidation::PasidDomain(domain_id),
            Invalidation::PasidOne(domain_id),
            Invalidation::IotlbGlobal,
            Invalidation::IotlbDomain(domain_id),
            Invalidation::IotlbPages {
                domain_id,
                address: SLOTS[usize::from(which) % SLOTS.len()],
                mask: which % 19,
                leaf_only: which & 0x20 != 0,
            },
            Invalidation::PasidIotlb(domain_id),
            Invalidation::PasidIotlbPages {
                domain_id,
                address: SLOTS[usize::from(which) % SLOTS.len()],
                mask: which % 19,
                leaf_only: which & 0x20 != 0,
            },
        ];
        self.invalidate(&[choices[usize::from(which) % choices.len()]])
    }

    fn wait(&mut self, kind: u8) -> Result<(), Failure> {
        if self.queue.is_none() {
            return Ok(());
        }
        let (status, at) = self.next_wait();
        let writes = kind & 1 != 0;
        let flags = match kind {
            _ if writes => 1 << 5 | u64::from(kind >> 2 & 1) << 6,
            _ => 1 << 4 | u64::from(kind >> 2 & 1) << 6,
        };
        self.push([5 | flags | status << 32, at, 0, 0]);
        self.write_tail();
        if writes {
            return self.check_wait(at, status);
        }
        self.compare_registers()?;
        self.write32(Register32::INVALIDATION_COMPLETION_STATUS, 1);
        Ok(())
    }

    /// Submits a descriptor and a wait; then puts both sides right again.
    fn bad_descriptor(&mut self, words: [u64; 4]) -> Result<(), Failure> {
        let Some(queue) = self.queue else {
            return Ok(());
        };
        let before = queue.tail;
        self.push(words);
        let (status, at) = self.next_wait();
        self.push([WAIT_STATUS | status << 32, at, 0, 0]);
        self.write_tail();
        self.compare_queue_error(Some(words), queue, before, at)?;
        // What stands is overwritten with a wait, as drivers do.
        let (harmless, elsewhere) = self.next_wait();
        for side in self.sides() {
            if side.read32(Register32::FAULT_STATUS) & QUEUE_ERROR != 0 {
                let at = queue.at + u64::from(before);
                side.store(at, WAIT_STATUS | harmless << 32);
                side.store(at + 8, elsewhere);
                if queue.wide {
                    side.store(at + 16, 0);
                    side.store(at + 24, 0);
                }
                side.write32(Register32::FAULT_STATUS, QUEUE_ERROR);
            }
        }
        // QEMU looks at the queue again only when the tail is written.
        self.submit_wait()?;
        // It may be one that the model says should not have been sent.
        let _ = self.model.take_violations();
        self.check_wait(at, status)
    }

    fn bad_tail(&mut self, tail: u32) -> Result<(), Failure> {
        let Some(queue) = self.queue else {
            return Ok(());
        };
        let is_bad = u64::from(tail) >= QUEUE_BYTES || queue.wide && tail & 0x10 != 0;
        if !is_bad {
            return Ok(());
        }
        self.write64(Register64::INVALIDATION_QUEUE_TAIL, u64::from(tail));
        self.compare_queue_error(None, queue, queue.tail, STATUS)?;
        self.write_tail();
        self.write32(Register32::FAULT_STATUS, QUEUE_ERROR);
        self.submit_wait()
    }

    fn compare_queue_error(
        &mut self,
        descriptor: Option<[u64; 4]>,
        queue: Queue,
        before: u32,
        status_at: u64,
    ) -> Result<(), Failure> {
        let information = Register64::INVALIDATION_QUEUE_ERROR_RECORD.low_dword();
        let [model, qemu] = self.sides().map(|side| QueueSeen {
            error: side.read32(Register32::FAULT_STATUS) & QUEUE_ERROR != 0,
            // It says something after an error only.
            information: if side.read32(Register32::FAULT_STATUS) & QUEUE_ERROR != 0 {
                side.read32(information) & 0xf
            } else {
                0
            },
            head: (side.read32(Register64::INVALIDATION_QUEUE_HEAD.low_dword()))
                .wrapping_sub(before)
                % QUEUE_BYTES as u32,
            status: side.load(status_at),
        });
        self.note(|| format!("       model {model:x?}, QEMU {qemu:x?}"));
        if model != qemu {
            self.judge(&Difference::QueueError {
                descriptor,
                mode: self.tables.mode,
                wide: queue.wide,
                model,
                qemu,
            })?;
        }
        Ok(())
    }

    /// Sets a bit in an entry of the DMA's device for the time of the DMA.
    fn reserved(&mut self, place: Place, word: u8, bit: u8, dma: &Dma) -> Result<(), Failure> {
        let device = usize::from(dma.device);
        let (address, _) = self.resolve(dma);
        let places = self.tables.places(device);
        let scalable = self.tables.mode == Mode::Scalable;
        let (place, at, word, words) = match place {
            Place::Root => (place, places.root, word, if scalable { 1 } else { 2 }),
            Place::Context => (place, places.context, word, if scalable { 4 } else { 2 }),
            Place::Directory if scalable => (place, places.directory, 0, 1),
            Place::Pasid if scalable => (place, places.pasid, word, 8),
            Place::Directory | Place::Pasid => return Ok(()),
            Place::Table(level) => {
                let path = self
                    .tables
                    .domain_of(device)
                    .map(|domain| domain.path(address))
                    .unwrap_or_default();
                let entry = path
                    .iter()
                    .find(|entry| entry.level == level)
                    .or(path.last());
                match entry {
                    Some(entry) => (Place::Table(entry.level), entry.at, 0, 1),
                    None => return Ok(()),
                }
            }
        };
        let word = word % words;
        let at = at + 8 * u64::from(word);
        let old = self.model.load(at);
        let defined = defined_bits(place, word, scalable, self.unit.width(), old);
        if (old | defined) >> bit & 1 == 1 {
            return Ok(());
        }
        self.note(|| format!("       bit {bit} of {place:?}, word {word}"));
        self.store(at, old | 1 << bit);
        self.invalidate_everything()?;
        self.clear_faults();
        let (context, model, qemu) = self.access(dma);
        self.align_entries();
        self.clear_faults();
        self.store(at, old);
        self.invalidate_everything()?;
        let (repaired_context, repaired_model, repaired) = self.access_again(dma);
        self.judge_access(&repaired_context, &repaired_model, &repaired, false)?;
        let differences = compare(&context, &model, &qemu);
        self.judge_unless_known(differences, || Difference::Reserved {
            place,
            word,
            bit,
            context,
            model,
            qemu,
            repaired,
        })
    }

    fn clear_present(&mut self, dma: &Dma) -> Result<(), Failure> {
        let device = usize::from(dma.device);
        let at = self.tables.places(device).pasid;
        let word = self.tables.word(at);
        if self.tables.mode != Mode::Scalable || word & PRESENT == 0 {
            return Ok(());
        }
        let Some((domain_id, kind)) = self.held[device] else {
            return Ok(());
        };
        // Nothing of the entry but P is to be wrong, and no other device shares its domain-id.
        self.tables.devices[device].flaw = None;
        self.change_structures(Scope::Exact, true)?;
        let word = self.tables.word(at);
        self.clear_faults();
        let (context, model, before) = self.access(dma);
        self.judge_access(&context, &model, &before, false)?;
        self.store(at, word & !PRESENT);
        let iotlb = match kind {
            Kind::Second => Invalidation::IotlbDomain(domain_id),
            Kind::First | Kind::PassThrough => Invalidation::PasidIotlb(domain_id),
        };
        self.invalidate(&[Invalidation::PasidOne(domain_id), iotlb])?;
        let (context, model, qemu) = self.access_again(dma);
        self.align_entries();
        let differences = compare(&context, &model, &qemu);
        self.judge_unless_known(differences, || Difference::PresentCleared {
            context,
            model,
            qemu,
            before,
        })?;
        self.clear_faults();
        self.store(at, word);
        self.invalidate_everything()?;
        self.dma(dma)
    }

    fn leave_pass_through(&mut self, domain: u8, dma: &Dma) -> Result<(), Failure> {
        let device = usize::from(dma.device);
        let passes = self
            .tables
            .domains
            .iter()
            .position(|domain| domain.plan.kind == Kind::PassThrough);
        let Some(passes) = passes else { return Ok(()) };
        if self.tables.mode != Mode::Scalable || !self.unit.pass_through() {
            return Ok(());
        }
        self.tables.devices[device].flaw = None;
        self.attach(dma.device, Some(passes as u8), 0);
        self.change_structures(Scope::Global, true)?;
        self.clear_faults();
        self.dma(&Dma {
            address: Address::Data(domain, 0x40),
            keep_faults: false,
            ..*dma
        })?;
        self.attach(dma.device, Some(domain), 0);
        self.change_structures(Scope::Exact, false)?;
        let (context, model, qemu) = self.access(dma);
        self.align_entries();
        let differences = compare(&context, &model, &qemu);
        self.judge_unless_known(differences, || Difference::PassThroughLeft {
            context,
            model,
            qemu,
        })?;
        self.clear_faults();
        self.invalidate_everything()?;
        self.dma(dma)
    }

    // ---- after each step ----

    fn compare_registers(&mut self) -> Result<(), Failure> {
        for (name, register) in REGISTERS {
            let [model, qemu] = self.sides().map(|side| side.read32(register));
            if model != qemu {
                self.judge(&Difference::Register { name, model, qemu })?;
            }
        }
        Ok(())
    }

    fn after_step(&mut self) -> Result<(), Failure> {
        self.compare_registers()?;
        let violations = self.model.take_violations();
        if let Some(violation) = violations.first() {
            return Err(Failure::new(format!("Violation: {violation:x?}")));
        }
        Ok(())
    }
}
