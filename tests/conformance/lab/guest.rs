//! A guest that writes its tables and descriptors by hand, and the machine around it.
//!
//! Fixed places in guest memory: root table, context tables, one PASID directory for each device,
//! the queue. Everything else comes from a bump allocator.

use std::rc::Rc;

use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::arch::descriptor::{Descriptor, WaitStatus};
use vtd_nest::arch::id::{Pasid, SourceId};
use vtd_nest::arch::register::{
    DescriptorWidth, GlobalCommand, InvalidationQueueAddress, Register32, Register64,
    RootTableAddress, TranslationTableMode,
};
use vtd_nest::mem::Owner;
use vtd_nest::nest::{
    AddressTranslation, AssignError, DeviceConfig, InterruptIsolation, Isolation, MachineConfig,
    MachineError, Policy, ProtectedRanges, VirtualMachine,
};
use vtd_nest::paging::Rights;
use vtd_nest::unit::DeviceTlb;
use vtd_nest::unit::discovery::IsolationGroup;
use vtd_nest::viommu::Poll;
use vtd_nest::viommu::host::{BindError, DeviceHandle, Progress};

use super::{Lab, tables};
use crate::bench::{Ability, DeviceTlbUse, Requester, host_offset};

/// 8 devices, 1,200 cached bindings, 64 host domain-ids, 16 shadows.
pub(crate) type Vm = VirtualMachine<8, 1200, 64, 16>;

/// Guest memory starts at guest-physical 0 and has this length.
pub(crate) const GUEST_LEN_BYTES: u64 = 16 << 20;
/// Guest memory is spread over the host's in pieces of this length.
const PIECE: u64 = 64 << 10;

/// The device that most scenarios use, by its guest source-id.
pub(crate) const D0: SourceId = SourceId::from_u16(0x0010);
/// A second one.
pub(crate) const D1: SourceId = SourceId::from_u16(0x0288);

const QUEUE: u64 = 0x8_0000;
const STATUS: u64 = 0x3000;
const FIRST_FREE_PAGE: u64 = 0x30_0000;

/// How a guest is made.
#[derive(Clone, Debug)]
pub(crate) struct GuestOptions {
    /// Tells machines on one lab apart, from 0 on.
    pub(crate) number: u16,
    pub(crate) policy: Policy,
    /// Guest source-ids and the indices of the bench's devices and units that play them.
    pub(crate) devices: Vec<(SourceId, usize, u8)>,
    pub(crate) shadow_table_limit: u32,
    pub(crate) protected: ProtectedRanges,
    /// Whether devices use TLBs of their own.
    pub(crate) device_tlbs: DeviceTlbUse,
    /// Whether the guest brings its unit up: queue, root table, translation.
    pub(crate) brought_up: bool,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            number: 0,
            policy: Policy::default(),
            devices: vec![(D0, 0, 0), (D1, 1, 0)],
            shadow_table_limit: 256,
            protected: ProtectedRanges::new(),
            device_tlbs: DeviceTlbUse::Off,
            brought_up: true,
        }
    }
}

/// A machine on a lab, with its guest.
pub(crate) struct Guest {
    pub(crate) lab: Rc<Lab>,
    pub(crate) vm: Box<Vm>,
    number: u16,
    options: GuestOptions,
    /// Devices by guest source-id: physical source-id, handle.
    devices: Vec<(SourceId, SourceId, DeviceHandle)>,
    /// The PASID that plays "PASID 5": 5, or 0 where no device sends requests with PASID.
    pub(crate) pasid: u32,
    /// How a request of that PASID is sent.
    pub(crate) tag: Option<u32>,
    /// Budget of one poll.
    pub(crate) budget: u32,
    /// What became of hardware's records.
    pub(crate) outcomes: Vec<vtd_nest::nest::FaultOutcome>,
    tail: u64,
    waits: u32,
    next_page: u64,
    /// Directory entries that lead to a PASID table.
    pub(super) directory_entries: Vec<u64>,
    pub(super) data_pages: Vec<u64>,
    pub(super) edu: super::job::EduRegisters,
}

/// A machine with its memory, without devices.
fn machine(lab: &Lab, options: &GuestOptions) -> Box<Vm> {
    let h = &*lab.hypervisor;
    let mut vm = Box::new(new_machine(lab, options).expect("a machine"));
    for at in (0..GUEST_LEN_BYTES).step_by(PIECE as usize) {
        let at = Gpa::new(at);
        let host = host_of(lab, options.number, at);
        vm.map_memory(h, &lab.units, at, host, PIECE, Rights::READ_WRITE)
            .expect("memory for the machine");
    }
    vm
}

fn new_machine(lab: &Lab, options: &GuestOptions) -> Result<Vm, MachineError> {
    let config = MachineConfig {
        number: options.number.into(),
        owner: Owner::new(1 + options.number),
        policy: Policy {
            device_tlbs: options.device_tlbs != DeviceTlbUse::Off,
            ..options.policy
        },
        protected: options.protected.clone(),
        hash_seed: 0x1234_5678_9abc_def1,
        shadow_table_limit: options.shadow_table_limit,
    };
    Vm::new(&*lab.hypervisor, &lab.units, config)
}

/// Destroys a machine, for as long as hardware needs.
fn destroy(lab: &Lab, machine: &mut Option<Vm>) -> Result<(), BindError> {
    for _ in 0..1_000 {
        match Vm::destroy(machine, &*lab.hypervisor, &lab.units)? {
            Progress::Done => return Ok(()),
            Progress::Again => {}
            Progress::Wait => lab.hypervisor.pass(1_000_000),
        }
    }
    panic!("the machine never goes");
}

/// Where a guest-physical address of a machine is on the host: pieces in another order.
fn host_of(lab: &Lab, number: u16, at: Gpa) -> Hpa {
    let base = lab.hypervisor.bench().layout().guests.start;
    let machine = u64::from(number) * GUEST_LEN_BYTES;
    let piece = at.as_u64() / PIECE * 37 % (GUEST_LEN_BYTES / PIECE) * PIECE;
    host_offset(base, machine + piece + at.as_u64() % PIECE)
}

impl Guest {
    /// Makes the machine, assigns its devices, and lets the guest bring its unit up.
    pub(crate) fn start(lab: &Rc<Lab>, options: GuestOptions) -> Self {
        let h = &*lab.hypervisor;
        let vm = machine(lab, &options);
        let features = vm.offer().features.extended;
        let with_pasid = features.has_pasid() && h.bench().has(Ability::RequestsWithPasid);
        let (pasid, tag) = if with_pasid { (5, Some(5)) } else { (0, None) };
        let mut guest = Self {
            lab: lab.clone(),
            vm,
            number: options.number,
            options: options.clone(),
            devices: Vec::new(),
            pasid,
            tag,
            budget: 64,
            outcomes: Vec::new(),
            tail: 0,
            waits: 0,
            next_page: FIRST_FREE_PAGE,
            directory_entries: Vec::new(),
            data_pages: Vec::new(),
            edu: Default::default(),
        };
        for (source_id, device, unit) in options.devices {
            guest.assign(source_id, device, unit);
        }
        guest.settle();
        if options.brought_up {
            guest.bring_up(guest.descriptor_width());
        }
        lab.hypervisor.take_descriptors();
        guest
    }

    /// Assigns the bench's device of this index, behind this unit.
    pub(crate) fn assign(&mut self, source_id: SourceId, device: usize, unit: u8) {
        self.assign_with_pasid_bits(source_id, device, unit, 20);
    }

    /// As [`assign`](Self::assign), for a device that sends PASIDs of this width.
    pub(crate) fn assign_with_pasid_bits(
        &mut self,
        source_id: SourceId,
        device: usize,
        unit: u8,
        pasid_bits: u8,
    ) {
        let config = DeviceConfig {
            pasid_bits,
            ..self.device_config(source_id, device, unit)
        };
        self.try_assign(config).expect("the device is assigned");
    }

    /// How the bench's device of this index, behind this unit, is assigned unless a scenario says
    /// otherwise.
    pub(crate) fn device_config(
        &self,
        source_id: SourceId,
        device: usize,
        unit: u8,
    ) -> DeviceConfig {
        let physical = self.lab.hypervisor.bench().device(device);
        DeviceConfig {
            pasid_bits: 20,
            address_translation: match self.options.device_tlbs {
                DeviceTlbUse::Off => AddressTranslation::Off,
                _ => AddressTranslation::TrustedByEmbedder(DeviceTlb {
                    queue_depth: 8,
                    physical_function: physical,
                }),
            },
            ..DeviceConfig::new(
                physical,
                source_id,
                unit,
                InterruptIsolation::WaivedByEmbedder,
                Isolation::Group(IsolationGroup::of(physical)),
            )
        }
    }

    /// Assigns a device, if the machine takes it.
    pub(crate) fn try_assign(&mut self, config: DeviceConfig) -> Result<(), AssignError> {
        let h = &*self.lab.hypervisor;
        let handle = self.vm.assign(h, &self.lab.units, config)?;
        let (source_id, physical) = (config.guest_source_id, config.source_id);
        h.bench().set_device_tlb(physical, self.options.device_tlbs);
        self.devices.push((source_id, physical, handle));
        Ok(())
    }

    /// Takes a device away, for as long as hardware needs.
    pub(crate) fn unassign(&mut self, source_id: SourceId) -> Result<(), BindError> {
        let handle = self.device(source_id).2;
        for _ in 0..1_000 {
            let h = &*self.lab.hypervisor;
            match self.vm.unassign(h, &self.lab.units, handle)? {
                Progress::Done => return Ok(()),
                Progress::Again => {}
                Progress::Wait => h.pass(1_000_000),
            }
        }
        panic!("the device never leaves");
    }

    /// Destroys the machine, for as long as hardware needs; gives it back if it does not confirm.
    pub(crate) fn destroy(mut self) -> Result<(), (Box<Self>, BindError)> {
        let mut machine = Some(*self.vm);
        match destroy(&self.lab, &mut machine) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.vm = Box::new(machine.expect("it is given back"));
                Err((Box::new(self), error))
            }
        }
    }

    /// The guest in a new machine over the same memory that takes over a saved state, with its
    /// devices, before it is first polled. The old machine is destroyed before.
    pub(crate) fn restored(mut self, state: &[u8]) -> Self {
        let (lab, options) = (self.lab.clone(), self.options.clone());
        destroy(&lab, &mut Some(*self.vm)).expect("hardware confirms");
        self.vm = machine(&lab, &options);
        self.vm.restore(state).expect("a state of this machine");
        self.devices.clear();
        for (source_id, device, unit) in options.devices {
            self.assign(source_id, device, unit);
        }
        self
    }

    fn device(&self, source_id: SourceId) -> (SourceId, SourceId, DeviceHandle) {
        let found = self
            .devices
            .iter()
            .rev()
            .find(|device| device.0 == source_id);
        *found.expect("a device of this machine")
    }

    /// The machine's handle of a device.
    pub(crate) fn handle(&self, source_id: SourceId) -> DeviceHandle {
        self.device(source_id).2
    }

    /// The physical source-id of a device.
    pub(crate) fn physical(&self, source_id: SourceId) -> SourceId {
        self.device(source_id).1
    }

    /// The entry in the physical unit's tables for a device and PASID, if it is present.
    pub(crate) fn hardware_entry(
        &self,
        source_id: SourceId,
        pasid: u32,
    ) -> Option<vtd_nest::arch::pasid::PasidEntry> {
        self.lab.hardware_entry(self.physical(source_id), pasid)
    }

    pub(crate) fn requester(&self, source_id: SourceId, tag: Option<u32>) -> Requester {
        Requester {
            source_id: self.physical(source_id),
            pasid: tag.map(|pasid| Pasid::new(pasid).expect("20 bits")),
            privileged: false,
            execute: false,
        }
    }

    /// Owner of the machine's frames.
    pub(crate) fn owner(&self) -> Owner {
        Owner::new(1 + self.number)
    }

    /// Which machine of the lab it is.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Where a guest-physical address is on the host: pieces in another order.
    pub(crate) fn host_of(&self, at: Gpa) -> Hpa {
        host_of(&self.lab, self.number, at)
    }

    // ---- the hypervisor's side ----

    /// Runs the hypervisor until it is idle, and routes what hardware has recorded.
    pub(crate) fn settle(&mut self) {
        let lab = self.lab.clone();
        let h = &*lab.hypervisor;
        for round in 0.. {
            assert!(round < 100_000, "the machine never comes to rest");
            match self.vm.poll(h, &lab.units, self.budget) {
                Poll::Idle => break,
                Poll::Again => {}
                Poll::Wait => h.pass(1_000),
            }
        }
        self.route_faults();
    }

    /// Gives hardware's records to the machine.
    pub(crate) fn route_faults(&mut self) {
        use vtd_nest::nest::FaultOutcome;
        let lab = self.lab.clone();
        lab.route_faults(|unit, record| {
            let h = &*lab.hypervisor;
            let outcome = self.vm.handle_fault(h, &lab.units, unit, record);
            if outcome == FaultOutcome::NotOfThisMachine {
                return false;
            }
            if matches!(outcome, FaultOutcome::Host(_)) {
                lab.host_faults.borrow_mut().push((*record, outcome));
            }
            self.outcomes.push(outcome);
            true
        });
    }

    // ---- the guest's side: memory ----

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let from = at + done as u64;
            let len = (bytes.len() - done).min((PIECE - from % PIECE) as usize);
            let host = self.host_of(Gpa::new(from));
            self.lab
                .hypervisor
                .guest_write(host, &bytes[done..done + len]);
            done += len;
        }
    }

    pub(crate) fn write_u64(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    pub(crate) fn read(&self, at: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let from = at + done as u64;
            let len = (into.len() - done).min((PIECE - from % PIECE) as usize);
            let host = self.host_of(Gpa::new(from));
            self.lab
                .hypervisor
                .guest_read(host, &mut into[done..done + len]);
            done += len;
        }
    }

    pub(crate) fn read_u64(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A zeroed page of guest memory: none is given twice, and memory is zero at power-on.
    pub(crate) fn page(&mut self) -> u64 {
        let page = self.next_page;
        self.next_page += 0x1000;
        assert!(self.next_page <= GUEST_LEN_BYTES, "guest memory is used up");
        page
    }

    /// Zeroed pages in a row, aligned to their length, which is a power of two.
    pub(crate) fn pages(&mut self, count: u64) -> u64 {
        let len = count * 0x1000;
        self.next_page = self.next_page.next_multiple_of(len);
        let first = self.page();
        for _ in 1..count {
            self.page();
        }
        first
    }

    // ---- the guest's side: registers ----

    pub(crate) fn read_register(&self, offset: u64, len: u8) -> u64 {
        self.vm.read_register(offset, len)
    }

    /// Writes a register and lets the hypervisor finish what that starts.
    pub(crate) fn write_register(&mut self, offset: u64, len: u8, value: u64) {
        self.vm.write_register(offset, len, value);
        self.settle();
    }

    pub(crate) fn read32(&self, register: Register32) -> u32 {
        self.read_register(register.offset().into(), 4) as u32
    }

    pub(crate) fn write32(&mut self, register: Register32, value: u32) {
        self.write_register(register.offset().into(), 4, value.into());
    }

    pub(crate) fn read64(&self, register: Register64) -> u64 {
        self.read_register(register.offset().into(), 8)
    }

    pub(crate) fn write64(&mut self, register: Register64, value: u64) {
        self.write_register(register.offset().into(), 8, value);
    }

    /// Gives a command, and expects its status bit.
    pub(crate) fn command(&mut self, command: GlobalCommand, on: bool) {
        let now = self.read32(Register32::GLOBAL_STATUS) & GlobalCommand::PERSISTENT.bits();
        let value = if on {
            now | command.bits()
        } else {
            now & !command.bits()
        };
        self.write32(Register32::GLOBAL_COMMAND, value);
        let status = self.read32(Register32::GLOBAL_STATUS);
        assert_eq!(status & command.bits() != 0, on, "{command:?}");
    }

    pub(crate) fn set_translation(&mut self, on: bool) {
        self.command(GlobalCommand::TRANSLATION_ENABLE, on);
    }

    pub(crate) fn set_root(&mut self, root: u64, mode: TranslationTableMode) {
        let address = RootTableAddress::new(Gpa::new(root), mode);
        self.write64(Register64::ROOT_TABLE_ADDRESS, address.bits());
        self.command(GlobalCommand::SET_ROOT_TABLE_POINTER, true);
    }

    /// Queue and tables set, translation on: contexts present, no PASID entry.
    pub(crate) fn bring_up(&mut self, width: DescriptorWidth) {
        self.enable_queue(width);
        self.write(tables::ROOT, &[0; 4096]);
        for (source_id, ..) in self.devices.clone() {
            self.install_tables(source_id);
        }
        self.set_root(tables::ROOT, self.table_mode());
        self.set_translation(true);
    }

    // ---- the guest's side: the queue ----

    /// A queue of 32 KiB, empty, enabled.
    pub(crate) fn enable_queue(&mut self, width: DescriptorWidth) {
        let queue = InvalidationQueueAddress::new(Gpa::new(QUEUE), 3, width).expect("aligned");
        self.tail = 0;
        self.write64(Register64::INVALIDATION_QUEUE_TAIL, 0);
        self.write64(Register64::INVALIDATION_QUEUE_ADDRESS, queue.bits());
        self.command(GlobalCommand::QUEUED_INVALIDATION_ENABLE, true);
    }

    /// The queue as the guest programmed it.
    fn queue(&self) -> InvalidationQueueAddress {
        InvalidationQueueAddress::from_bits(self.read64(Register64::INVALIDATION_QUEUE_ADDRESS))
    }

    /// Puts quadwords of a descriptor at the tail; hardware is not told.
    pub(crate) fn push_words(&mut self, words: [u64; 4]) {
        let len = u64::from(self.queue().descriptor_width().len_bytes());
        for (index, word) in (0..len / 8).zip(words) {
            self.write_u64(QUEUE + self.tail + 8 * index, word);
        }
        self.tail = (self.tail + len) % u64::from(self.queue().size_bytes());
    }

    pub(crate) fn push(&mut self, descriptor: Descriptor) {
        self.push_words(descriptor.encode().words());
    }

    /// An invalidation wait that writes the next status value, which is given back.
    pub(crate) fn push_wait(&mut self) -> u32 {
        self.waits += 1;
        self.push(Descriptor::Wait {
            status: Some(WaitStatus {
                address: STATUS,
                data: self.waits,
            }),
            interrupt: false,
            fence: false,
            page_request_drain: false,
        });
        self.waits
    }

    /// Where the next descriptor goes, in bytes from the queue's start.
    pub(crate) fn tail(&self) -> u64 {
        self.tail
    }

    /// Goes back to a place in the queue, to write it anew.
    pub(crate) fn set_tail(&mut self, tail: u64) {
        self.tail = tail;
    }

    /// Guest-physical place of the queue.
    pub(crate) const fn queue_base() -> u64 {
        QUEUE
    }

    /// Tells hardware of the tail.
    pub(crate) fn ring(&mut self) {
        self.write64(Register64::INVALIDATION_QUEUE_TAIL, self.tail);
    }

    /// As [`ring`](Self::ring), but the hypervisor is not run.
    pub(crate) fn ring_only(&mut self) {
        let offset = Register64::INVALIDATION_QUEUE_TAIL.offset().into();
        self.vm.write_register(offset, 8, self.tail);
    }

    /// The last status that an invalidation wait wrote.
    pub(crate) fn wait_status(&self) -> u32 {
        self.read_u64(STATUS) as u32
    }

    /// Submits descriptors and an invalidation wait; it must complete.
    #[track_caller]
    pub(crate) fn submit(&mut self, batch: &[Descriptor]) {
        for descriptor in batch {
            self.push(*descriptor);
        }
        let wait = self.push_wait();
        self.ring();
        assert_eq!(self.wait_status(), wait, "the guest's wait completes");
    }
}
