//! The model as a bench: a unit driven by the library, one machine, its guest's entry points, and
//! devices that can do DMA.

use vtd_model::{Access, CacheMode, Edu, Fault, ModelConfig, ModelUnit, Request};
use vtd_nest::arch::address::{AddressWidth, FirstStagePaging, Gpa, Hpa, Iova, PageSize};
use vtd_nest::arch::context::{ContextAttributes, DirectoryOrder, ScalableContextEntry};
use vtd_nest::arch::descriptor::{
    ContextGranularity, Descriptor, IotlbGranularity, PasidCacheGranularity, WaitStatus,
};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::first_stage::FirstStageEntry;
use vtd_nest::arch::id::{DomainId, Pasid, SourceId};
use vtd_nest::arch::pasid::{FirstStageFlags, PasidDirectoryEntry, PasidEntry, PasidEntryOptions};
use vtd_nest::arch::register::{
    DescriptorWidth, FaultRecord, GlobalCommand, InvalidationQueueAddress, Register32, Register64,
    RootTableAddress, TranslationTableMode,
};
use vtd_nest::arch::root::{RootHalf, ScalableRootEntry};
use vtd_nest::arch::second_stage::SecondStageEntry;
use vtd_nest::mem::{GuestMemory, HostMemory, Owner};
use vtd_nest::nest::{
    DeviceConfig, FaultOutcome, InterruptIsolation, MachineConfig, Policy, ProtectedRanges,
    VirtualMachine,
};
use vtd_nest::paging::Rights;
use vtd_nest::unit::{Unit, UnitConfig};
use vtd_nest::viommu::Poll;

use crate::guest;

pub(crate) type Vm = VirtualMachine<8, 64, 16, 4>;

/// Guest memory starts at guest-physical 0 and has this length.
pub(crate) const GUEST_LEN_BYTES: u64 = 16 << 20;
/// Host memory behind it, in another order.
const GUEST_HOST: u64 = 0x4000_0000;
const PIECE: u64 = 64 << 10;

/// The device that most scenarios use.
pub(crate) const D0: SourceId = SourceId::from_u16(0x0010);
/// A second one.
pub(crate) const D1: SourceId = SourceId::from_u16(0x0288);

/// A machine on the model, up to assigned devices.
pub(crate) struct Bench {
    pub(crate) model: vtd_model::Machine,
    pub(crate) units: Vec<Unit<ModelUnit>>,
    pub(crate) vm: Vm,
    pub(crate) edu: Edu,
    /// What became of hardware faults.
    pub(crate) faults: Vec<(FaultRecord, FaultOutcome)>,
    /// Budget of one poll.
    pub(crate) budget: u32,
}

impl Bench {
    /// A machine with devices [`D0`] and [`D1`].
    pub(crate) fn new(config: ModelConfig) -> Self {
        Self::with_policy(config, Policy::default())
    }

    pub(crate) fn with_policy(config: ModelConfig, policy: Policy) -> Self {
        let model = vtd_model::Machine::new(config.clone());
        let unit = Unit::probe(
            model.unit.clone(),
            UnitConfig::new(0, config.host_address_width),
        )
        .unwrap();
        unit.bring_up(&model.hypervisor).unwrap();
        let units = vec![unit];
        let h = &model.hypervisor;
        let mut vm = Vm::new(
            h,
            &units,
            MachineConfig {
                number: 1,
                owner: Owner::new(1),
                policy,
                protected: ProtectedRanges::new(),
                hash_seed: 0x1234_5678_9abc_def1,
                shadow_table_limit: 256,
            },
        )
        .unwrap();
        for piece in 0..GUEST_LEN_BYTES / PIECE {
            let host = Self::host_piece(piece);
            vm.map_memory(
                h,
                &units,
                Gpa::new(piece * PIECE),
                Hpa::new(host),
                PIECE,
                Rights::READ_WRITE,
            )
            .unwrap();
        }
        for source_id in [D0, D1] {
            let config = DeviceConfig {
                source_id,
                guest_source_id: source_id,
                unit: 0,
                pasid_bits: 20,
                interrupts: InterruptIsolation::WaivedByEmbedder,
            };
            vm.assign(h, &units, config).unwrap();
        }
        let edu = Edu::new(&model.unit, D0);
        let mut bench = Self {
            model,
            units,
            vm,
            edu,
            faults: Vec::new(),
            budget: 64,
        };
        bench.settle();
        bench
    }

    fn host_piece(piece: u64) -> u64 {
        GUEST_HOST + piece * 37 % (GUEST_LEN_BYTES / PIECE) * PIECE
    }

    /// Where a guest-physical address is on the host.
    pub(crate) fn host_of(at: Gpa) -> Hpa {
        Hpa::new(Self::host_piece(at.as_u64() / PIECE) + at.as_u64() % PIECE)
    }

    /// Runs the hypervisor until it is idle, and routes what hardware has recorded.
    pub(crate) fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "the machine never comes to rest");
            match self
                .vm
                .poll(&self.model.hypervisor, &self.units, self.budget)
            {
                Poll::Idle => break,
                Poll::Again => {}
                Poll::Wait => {
                    self.model.hypervisor.clock().advance(1_000);
                    self.model.unit.advance();
                }
            }
        }
        while let Some(record) = self.units[0].next_fault() {
            let outcome = self
                .vm
                .handle_fault(&self.model.hypervisor, &self.units, 0, &record);
            self.faults.push((record, outcome));
        }
    }

    /// Descriptors executed by hardware since the last call, without waits.
    pub(crate) fn take_descriptors(&mut self) -> Vec<u8> {
        let kinds = self
            .model
            .unit
            .take_descriptors()
            .into_iter()
            .map(|descriptor| descriptor.kind());
        kinds.filter(|kind| *kind != 5).collect()
    }

    /// The hardware entry for a device and PASID, in the physical unit's tables.
    pub(crate) fn hardware_entry(&self, source_id: SourceId, pasid: u32) -> Option<PasidEntry> {
        let memory = &self.model.memory;
        let root = self.model.unit.root_table()?;
        let at = |base: u64, offset: u64| memory.read64(Hpa::new(base + offset));
        let half = u64::from(RootHalf::of(source_id).quadword());
        let contexts = at(root.as_u64(), 16 * u64::from(source_id.bus()) + 8 * half);
        let context = at(
            contexts & !0xfff,
            32 * u64::from(ScalableContextEntry::index(source_id)),
        );
        let directory = at(context & !0xfff, u64::from(pasid >> 6) * 8);
        if contexts & 1 == 0 || context & 1 == 0 || directory & 1 == 0 {
            return None;
        }
        let quadwords = std::array::from_fn(|index| {
            at(
                directory & !0xfff,
                u64::from(pasid & 63) * 64 + 8 * index as u64,
            )
        });
        let entry = PasidEntry::from_quadwords(quadwords);
        entry.is_present().then_some(entry)
    }

    /// Where a device's read would go.
    pub(crate) fn translate(
        &self,
        source_id: SourceId,
        pasid: Option<u32>,
        address: u64,
        access: Access,
    ) -> Result<Hpa, Fault> {
        let pasid = pasid.map(|pasid| Pasid::new(pasid).unwrap());
        let request = Request::new(source_id, pasid, Iova::new(address), access);
        self.model
            .unit
            .translate(&request)
            .map(|translation| translation.host)
    }

    /// A request that must be blocked: settles, and gives the reason that the guest's unit records.
    pub(crate) fn guest_reason(
        &mut self,
        source_id: SourceId,
        pasid: Option<u32>,
        address: u64,
        access: Access,
    ) -> FaultReason {
        self.translate(source_id, pasid, address, access)
            .expect_err("the request is not blocked");
        self.faults.clear();
        self.settle();
        match self.faults.as_slice() {
            [(_, FaultOutcome::Guest { reason, .. })] => *reason,
            other => panic!("not one fault for the guest: {other:x?}"),
        }
    }
}

impl guest::Machine for Bench {
    fn read_memory(&mut self, at: Gpa, into: &mut [u8]) {
        self.vm
            .memory(&self.model.hypervisor)
            .read(at, into)
            .unwrap();
    }

    fn write_memory(&mut self, at: Gpa, from: &[u8]) {
        self.vm
            .memory(&self.model.hypervisor)
            .write(at, from)
            .unwrap();
        // A guest of a unit that does not snoop flushes what it writes, as its `ECAP` tells it.
        for offset in (0..from.len() as u64 + 64).step_by(64) {
            if at.as_u64() + offset < GUEST_LEN_BYTES {
                self.model
                    .memory
                    .flush_line(Self::host_of(Gpa::new(at.as_u64() + offset)));
            }
        }
        self.model.memory.fence();
    }

    fn read_unit(&mut self, offset: u64, len: u8) -> u64 {
        self.vm.read_register(offset, len)
    }

    fn write_unit(&mut self, offset: u64, len: u8, value: u64) {
        self.vm.write_register(offset, len, value);
        self.settle();
    }

    fn read_device(&mut self, offset: u64) -> u64 {
        let value = self.edu.read64(offset);
        self.settle();
        value
    }

    fn write_device(&mut self, offset: u64, value: u64) {
        self.edu.write64(offset, value);
    }

    fn pass_time(&mut self) {
        self.model.hypervisor.clock().advance(1_000);
        self.settle();
    }
}

/// Every way the model can cache.
pub(crate) const CACHE_MODES: [CacheMode; 3] =
    [CacheMode::Hoarder, CacheMode::Tiny, CacheMode::None];

/// A guest that writes its tables and descriptors by hand.
///
/// Fixed places in guest memory: one root, context table and PASID directory with two tables for
/// each device, and a bump allocator for page tables.
pub(crate) struct Guest {
    pub(crate) bench: Bench,
    tail: u64,
    waits: u32,
    next_page: u64,
}

const ROOT: u64 = 0x1000;
const QUEUE: u64 = 0x2000;
const STATUS: u64 = 0x3000;
const PAGES: u64 = 0x10_0000;

/// Guest-physical place of a device's directory; its PASID tables follow.
const fn directory(source_id: SourceId) -> u64 {
    0x1_0000 + source_id.as_u16() as u64 * 0x4000
}

impl Guest {
    /// Queue and root table set, translation on, contexts of [`D0`] and [`D1`] present, no entry.
    pub(crate) fn new(bench: Bench) -> Self {
        use guest::Machine;
        let mut guest = Self {
            bench,
            tail: 0,
            waits: 0,
            next_page: PAGES,
        };
        let queue =
            InvalidationQueueAddress::new(Gpa::new(QUEUE), 0, DescriptorWidth::Bits256).unwrap();
        for (register, value) in [
            (Register64::INVALIDATION_QUEUE_TAIL, 0),
            (Register64::INVALIDATION_QUEUE_ADDRESS, queue.bits()),
        ] {
            guest.bench.write_unit(register.offset().into(), 8, value);
        }
        guest.command(GlobalCommand::QUEUED_INVALIDATION_ENABLE, true);
        guest.bench.write_memory(Gpa::new(ROOT), &[0; 4096]);
        for source_id in [D0, D1] {
            guest.install_context(source_id, directory(source_id), DirectoryOrder::LARGEST);
        }
        guest.set_root(ROOT, TranslationTableMode::Scalable);
        guest.command(GlobalCommand::TRANSLATION_ENABLE, true);
        guest.bench.take_descriptors();
        guest
    }

    /// Root, context and directory of a device in guest memory; no PASID entry.
    pub(crate) fn install_context(
        &mut self,
        source_id: SourceId,
        directory: u64,
        order: DirectoryOrder,
    ) {
        let contexts = 0x8000 + 0x1000 * u64::from(source_id.bus());
        let mut root = [0; 16];
        let half = usize::from(RootHalf::of(source_id).quadword()) * 8;
        let entry = ScalableRootEntry::new(Some(Gpa::new(contexts)), Some(Gpa::new(contexts)));
        root[half..half + 8].copy_from_slice(&entry.to_bytes()[half..half + 8]);
        self.write(ROOT + 16 * u64::from(source_id.bus()), &root);
        let attributes = ContextAttributes {
            pasid_enabled: self.offers_pasid(),
            ..ContextAttributes::default()
        };
        let context = ScalableContextEntry::new(Gpa::new(directory), order, attributes);
        self.write(
            contexts + 32 * u64::from(ScalableContextEntry::index(source_id)),
            &context.to_bytes(),
        );
        for (index, table) in [1u64, 2].into_iter().enumerate() {
            let entry = PasidDirectoryEntry::new(Gpa::new(directory + 0x1000 * table));
            self.write(directory + 8 * index as u64, &entry.as_u64().to_le_bytes());
        }
    }

    pub(crate) fn offers_pasid(&self) -> bool {
        self.bench.vm.offer().features.extended.has_pasid()
    }

    pub(crate) fn context_at(&self, source_id: SourceId) -> u64 {
        0x8000
            + 0x1000 * u64::from(source_id.bus())
            + 32 * u64::from(ScalableContextEntry::index(source_id))
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        guest::Machine::write_memory(&mut self.bench, Gpa::new(at), bytes);
    }

    pub(crate) fn read_u64(&mut self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        guest::Machine::read_memory(&mut self.bench, Gpa::new(at), &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn command(&mut self, command: GlobalCommand, on: bool) {
        use guest::Machine;
        let status = u64::from(Register32::GLOBAL_STATUS.offset());
        let now = self.bench.read_unit(status, 4) as u32 & GlobalCommand::PERSISTENT.bits();
        let value = if on {
            now | command.bits()
        } else {
            now & !command.bits()
        };
        self.bench
            .write_unit(Register32::GLOBAL_COMMAND.offset().into(), 4, value.into());
        assert_eq!(
            self.bench.read_unit(status, 4) as u32 & command.bits() != 0,
            on,
            "{command:?}"
        );
    }

    pub(crate) fn set_translation(&mut self, on: bool) {
        self.command(GlobalCommand::TRANSLATION_ENABLE, on);
    }

    pub(crate) fn set_root(&mut self, root: u64, mode: TranslationTableMode) {
        use guest::Machine;
        let address = RootTableAddress::new(Gpa::new(root), mode);
        self.bench.write_unit(
            Register64::ROOT_TABLE_ADDRESS.offset().into(),
            8,
            address.bits(),
        );
        self.command(GlobalCommand::SET_ROOT_TABLE_POINTER, true);
    }

    /// Where the guest keeps an entry; PASIDs below 128.
    pub(crate) fn entry_at(source_id: SourceId, pasid: u32) -> u64 {
        assert!(pasid < 128);
        directory(source_id) + 0x1000 + u64::from(pasid) * 64
    }

    /// Writes a PASID entry, and says nothing.
    pub(crate) fn set_entry(&mut self, source_id: SourceId, pasid: u32, entry: &PasidEntry) {
        self.write(Self::entry_at(source_id, pasid), &entry.to_bytes());
    }

    /// Puts descriptors and a wait into the queue; the wait must complete.
    pub(crate) fn submit(&mut self, batch: &[Descriptor]) {
        use guest::Machine;
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
        for descriptor in batch.iter().chain([&wait]) {
            for (index, word) in descriptor.encode().words().into_iter().enumerate() {
                self.write(QUEUE + self.tail + 8 * index as u64, &word.to_le_bytes());
            }
            self.tail = (self.tail + 32) % 4096;
        }
        self.bench.write_unit(
            Register64::INVALIDATION_QUEUE_TAIL.offset().into(),
            8,
            self.tail,
        );
        assert_eq!(
            self.read_u64(STATUS) as u32,
            self.waits,
            "the wait did not complete"
        );
    }

    /// PASID-cache invalidation, PASID-selective.
    pub(crate) fn invalidate_pasid(&mut self, domain: u16, pasid: u32) {
        let granularity = PasidCacheGranularity::Pasid {
            domain_id: DomainId::new(domain),
            pasid: Pasid::new(pasid).unwrap(),
        };
        self.submit(&[Descriptor::PasidCache { granularity }]);
    }

    pub(crate) fn invalidate_pasid_domain(&mut self, domain: u16) {
        self.submit(&[Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Domain(DomainId::new(domain)),
        }]);
    }

    pub(crate) fn invalidate_pasid_global(&mut self) {
        self.submit(&[Descriptor::PasidCache {
            granularity: PasidCacheGranularity::Global,
        }]);
    }

    pub(crate) fn invalidate_context(&mut self, source_id: SourceId) {
        let granularity = ContextGranularity::Device {
            source_id,
            function_mask: 0,
            domain_id: DomainId::new(0),
        };
        self.submit(&[Descriptor::ContextCache { granularity }]);
    }

    pub(crate) fn invalidate_iotlb(&mut self, granularity: IotlbGranularity) {
        self.submit(&[Descriptor::Iotlb {
            granularity,
            drain_reads: true,
            drain_writes: true,
        }]);
    }

    /// A zeroed page of guest memory.
    pub(crate) fn page(&mut self) -> u64 {
        let page = self.next_page;
        self.next_page += 0x1000;
        self.write(page, &[0; 4096]);
        page
    }

    /// A page table of the kind that the unit offers, that maps each I/O virtual page to a
    /// guest-physical one.
    pub(crate) fn table(&mut self, mappings: &[(u64, u64)]) -> u64 {
        let root = self.page();
        for &(iova, page) in mappings {
            self.map(root, iova, Some(page));
        }
        root
    }

    pub(crate) fn is_first_stage(&self) -> bool {
        self.bench.vm.offer().features.extended.has_first_stage()
    }

    /// Changes one page of a table, and says nothing.
    pub(crate) fn map(&mut self, root: u64, iova: u64, page: Option<u64>) {
        let first_stage = self.is_first_stage();
        let mut table = root;
        for level in (1..4).rev() {
            let slot = table + (iova >> (12 + 9 * level) & 0x1ff) * 8;
            let entry = self.read_u64(slot);
            table = if entry & 1 != 0 {
                entry & 0x000f_ffff_ffff_f000
            } else {
                let below = self.page();
                let at = Gpa::new(below);
                let entry = if first_stage {
                    FirstStageEntry::table(at)
                        .with(FirstStageEntry::ACCESSED)
                        .as_u64()
                } else {
                    SecondStageEntry::table(at).as_u64()
                };
                self.write(slot, &entry.to_le_bytes());
                below
            };
        }
        let slot = table + (iova >> 12 & 0x1ff) * 8;
        let entry = page.map_or(0, |page| {
            let (at, size) = (Gpa::new(page), PageSize::Size4KiB);
            if first_stage {
                let leaf = FirstStageEntry::leaf(at, size, true, true);
                leaf.with(FirstStageEntry::ACCESSED | FirstStageEntry::DIRTY)
                    .as_u64()
            } else {
                SecondStageEntry::leaf(at, size, Rights::READ_WRITE, false).as_u64()
            }
        });
        self.write(slot, &entry.to_le_bytes());
    }

    /// Where the leaf entry of an address is, in a table that has all upper levels.
    pub(crate) fn slot(&mut self, root: u64, iova: u64) -> u64 {
        let mut table = root;
        for level in (1..4).rev() {
            table = self.read_u64(table + ((iova >> (12 + 9 * level)) & 0x1ff) * 8)
                & 0x000f_ffff_ffff_f000;
        }
        table + ((iova >> 12) & 0x1ff) * 8
    }

    /// An entry of the kind that the unit offers.
    pub(crate) fn entry(&self, root: u64, domain: u16) -> PasidEntry {
        let (root, domain_id) = (Gpa::new(root), DomainId::new(domain));
        if self.is_first_stage() {
            PasidEntry::first_stage(
                root,
                FirstStagePaging::Level4,
                FirstStageFlags::default(),
                domain_id,
                PasidEntryOptions::default(),
            )
        } else {
            PasidEntry::guest_second_stage(
                root,
                AddressWidth::Bits48,
                domain_id,
                PasidEntryOptions::default(),
            )
        }
    }

    pub(crate) fn pass_through(domain: u16) -> PasidEntry {
        PasidEntry::pass_through(DomainId::new(domain), PasidEntryOptions::default())
    }

    /// Where a device's read goes, as a guest-physical address of a page made by [`page`](Self::page).
    #[track_caller]
    pub(crate) fn expect_reaches(
        &mut self,
        source_id: SourceId,
        pasid: Option<u32>,
        iova: u64,
        page: u64,
    ) {
        let reached = self.bench.translate(source_id, pasid, iova, Access::Read);
        assert_eq!(
            reached.map_err(|fault| fault.reason),
            Ok(Bench::host_of(Gpa::new(page)))
        );
    }

    #[track_caller]
    pub(crate) fn expect_blocked(
        &mut self,
        source_id: SourceId,
        pasid: Option<u32>,
        iova: u64,
        reason: FaultReason,
    ) {
        assert_eq!(
            self.bench
                .guest_reason(source_id, pasid, iova, Access::Read),
            reason
        );
    }
}
