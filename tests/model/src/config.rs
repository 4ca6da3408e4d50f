//! What kind of unit a model is: capabilities, caches, and how it takes its liberties.

use vtd_nest::arch::capability::{
    Capability, CapabilityField as Cap, ExtendedCapability, ExtendedCapabilityField as Ecap,
};

use crate::cache::CacheMode;
use crate::queue_order::QueueOrder;

/// When something that hardware does by itself is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// Before the write that asks for it returns.
    Immediate,
    /// This many nanoseconds later.
    After(u64),
    /// When the test calls [`ModelUnit::run`](crate::ModelUnit::run).
    Manual,
    /// Not at all.
    Never,
}

/// In which order the 16-byte pieces of a larger entry are read (§9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchOrder {
    /// Lowest address first: the present bit is read first.
    Ascending,
    /// Highest address first: the present bit is read last.
    Descending,
}

/// All knobs of a model. Start from a profile and change single ones.
///
/// Every field of the capability registers is a knob, and what it brings is there or not, and its
/// bits in tables are used or reserved, as it says. These change only what the registers read:
///
/// - DWD and DRD: the model has no requests in flight, so every invalidation drains;
/// - ECMDS, PMS, VCS, RDTS, TDXCS: no such registers and commands;
/// - ERS: withdrawn; execute requests fault, by the major version;
/// - HPT1GPS: no host permission tables are walked;
/// - SC beyond the reserved bits that go with it, and MTS likewise: a final access has no memory
///   type here and is always snooped.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// `VER_REG`: minor in bits 3:0, major in 7:4.
    pub version: u32,
    /// `CAP_REG`.
    pub capability: Capability,
    /// `ECAP_REG`.
    pub extended: ExtendedCapability,
    /// The host address width in bits.
    pub host_address_width: u8,
    /// How much the caches keep.
    pub cache_mode: CacheMode,
    /// When commands in `GCMD_REG` complete.
    pub command_pace: Pace,
    /// When a fetched descriptor is executed, a wait's status write included.
    pub queue_pace: Pace,
    /// In which order fetched descriptors are executed.
    pub queue_order: QueueOrder,
    /// When a page request that arrived is checked and written to its queue.
    pub page_request_pace: Pace,
    /// How long an invalidation waits for a device that does not answer, in nanoseconds.
    pub device_tlb_timeout: u64,
    /// In which order large entries are fetched.
    pub fetch_order: FetchOrder,
    /// Whether a fault is dropped when a record of the same source-id is pending (§7.2.1).
    pub fault_compression: bool,
    /// Erratum 772415 SPR17: with PWSNP=1, nested translation sets first-stage accessed and dirty
    /// bits in pages that the second stage lets it only read.
    pub erratum_772415: bool,
    /// Bits that bases and limits of protected memory regions lack: N+1 (§11.4.8).
    pub protected_memory_bits: u8,
    /// Whether remapped requests are kept out of protected memory regions too, as all units of
    /// major version 2 and later do.
    pub protects_from_remapped: bool,
    /// Seed of the evictions of [`CacheMode::Tiny`] and of [`QueueOrder::Shuffled`].
    pub seed: u64,
}

impl ModelConfig {
    fn base() -> Self {
        Self {
            version: 0x50,
            capability: Capability::from_bits(0)
                .with(Cap::DOMAIN_ID_WIDTH, 6)
                .with(Cap::ADJUSTED_GUEST_ADDRESS_WIDTHS, 0b0110)
                .with(Cap::MAXIMUM_GUEST_ADDRESS_WIDTH, 47)
                .with(Cap::ZERO_LENGTH_READ, 1)
                .with(Cap::FAULT_RECORD_OFFSET, 0x22)
                .with(Cap::FAULT_RECORD_COUNT, 7)
                .with(Cap::SECOND_STAGE_LARGE_PAGES, 0b0011)
                .with(Cap::PAGE_SELECTIVE_INVALIDATION, 1)
                .with(Cap::MAXIMUM_ADDRESS_MASK, 18)
                .with(Cap::WRITE_DRAINING, 1)
                .with(Cap::READ_DRAINING, 1),
            extended: ExtendedCapability::from_bits(0)
                .with(Ecap::QUEUED_INVALIDATION, 1)
                .with(Ecap::PASS_THROUGH, 1)
                .with(Ecap::IOTLB_REGISTER_OFFSET, 0xf),
            host_address_width: 46,
            cache_mode: CacheMode::Hoarder,
            command_pace: Pace::Immediate,
            queue_pace: Pace::Immediate,
            queue_order: QueueOrder::InOrder,
            page_request_pace: Pace::Immediate,
            device_tlb_timeout: 1_000_000_000,
            fetch_order: FetchOrder::Ascending,
            fault_compression: false,
            erratum_772415: false,
            protected_memory_bits: 20,
            protects_from_remapped: true,
            seed: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// A server's unit: scalable mode with every translation type, 20-bit PASIDs, all accesses
    /// snooped, 8 fault records.
    pub fn nesting_server() -> Self {
        let mut config = Self::base();
        config.capability = config
            .capability
            .with(Cap::FIRST_STAGE_1GIB_PAGES, 1)
            .with(Cap::ENHANCED_SET_ROOT_TABLE_POINTER, 1);
        config.extended = config
            .extended
            .with(Ecap::COHERENCY, 1)
            .with(Ecap::SNOOP_CONTROL, 1)
            .with(Ecap::SCALABLE_MODE, 1)
            .with(Ecap::SECOND_STAGE, 1)
            .with(Ecap::FIRST_STAGE, 1)
            .with(Ecap::NESTED, 1)
            .with(Ecap::REQUESTS_WITH_PASID, 1)
            .with(Ecap::PASID_SIZE, 19)
            .with(Ecap::RID_PASID, 1)
            .with(Ecap::PAGE_WALK_COHERENCY, 1);
        config
    }

    /// [`nesting_server`](Self::nesting_server) with what devices with device-TLBs and page
    /// requests need, and with supervisor requests.
    pub fn device_tlb_server() -> Self {
        let mut config = Self::nesting_server();
        config.extended = config
            .extended
            .with(Ecap::DEVICE_TLB, 1)
            .with(Ecap::PAGE_REQUESTS, 1)
            .with(Ecap::SUPERVISOR_REQUESTS, 1)
            .with(Ecap::NO_WRITE_FLAG, 1)
            .with(Ecap::DEVICE_TLB_THROTTLING, 1)
            .with(Ecap::PAGE_REQUEST_DRAIN, 1)
            .with(Ecap::PASID_IN_TRANSLATED_REQUESTS, 1)
            .with(Ecap::STOP_MARKERS, 1);
        config
    }

    /// A client's unit: as [`nesting_server`](Self::nesting_server), but nothing is snooped.
    pub fn nesting_client_noncoherent() -> Self {
        Self::nesting_server()
            .with_extended(Ecap::COHERENCY, 0)
            .with_extended(Ecap::PAGE_WALK_COHERENCY, 0)
    }

    /// A server's unit without scalable mode.
    pub fn legacy_server() -> Self {
        Self::base().with_extended(Ecap::COHERENCY, 1)
    }

    /// [`legacy_server`](Self::legacy_server) with CAP.RWBF=1: stores to tables stay in write buffers.
    pub fn write_buffered() -> Self {
        Self::legacy_server().with_capability(Cap::WRITE_BUFFER_FLUSH, 1)
    }

    /// The registers that QEMU's unit shows in scalable mode with second-stage translation.
    pub fn qemu_second_stage() -> Self {
        let mut config = Self::base();
        config.version = 0x10;
        config.capability = Capability::from_bits(0x00d2_008c_222f_0606);
        config.extended = ExtendedCapability::from_bits(0x0000_4800_80f0_0f4a);
        config.host_address_width = 48;
        config
    }

    /// The registers that QEMU's unit shows in scalable mode with first-stage translation.
    pub fn qemu_first_stage() -> Self {
        let mut config = Self::qemu_second_stage();
        config.capability = Capability::from_bits(0x01d2_008c_222f_0606);
        config.extended = ExtendedCapability::from_bits(0x0000_8800_00f0_0f4a);
        config
    }

    /// [`nesting_server`](Self::nesting_server) with CAP.CM=1: what is not present is cached too.
    pub fn caching_mode() -> Self {
        Self::nesting_server().with_capability(Cap::CACHING_MODE, 1)
    }

    /// [`nesting_server`](Self::nesting_server) with erratum 772415 SPR17.
    pub fn nesting_server_erratum() -> Self {
        Self {
            erratum_772415: true,
            ..Self::nesting_server()
        }
    }

    /// A unit with every feature that the model knows, at its largest: all widths and page sizes,
    /// accessed and dirty bits, memory types, supervisor requests, device-TLBs, page requests,
    /// interrupt remapping, abort-DMA mode, protected memory, 256 fault records in a page of their
    /// own. Not what takes something away: CM, RWBF, EIMER, IRREQ.
    pub fn everything_on() -> Self {
        let mut config = Self::nesting_server();
        config.version = 0x80;
        config.host_address_width = 52;
        for (field, value) in [
            (Cap::PROTECTED_LOW_MEMORY, 1),
            (Cap::PROTECTED_HIGH_MEMORY, 1),
            (Cap::ADJUSTED_GUEST_ADDRESS_WIDTHS, 0b1110),
            (Cap::MAXIMUM_GUEST_ADDRESS_WIDTH, 56),
            (Cap::FAULT_RECORD_OFFSET, 0x100),
            (Cap::FAULT_RECORD_COUNT, 255),
            (Cap::MAXIMUM_ADDRESS_MASK, 63),
            (Cap::POSTED_INTERRUPTS, 1),
            (Cap::FIRST_STAGE_5_LEVEL, 1),
            (Cap::ENHANCED_SET_INTERRUPT_TABLE_POINTER, 1),
        ] {
            config.capability = config.capability.with(field, value);
        }
        for (field, value) in [
            (Ecap::DEVICE_TLB, 1),
            (Ecap::INTERRUPT_REMAPPING, 1),
            (Ecap::EXTENDED_INTERRUPT_MODE, 1),
            (Ecap::MAXIMUM_HANDLE_MASK, 15),
            (Ecap::MEMORY_TYPES, 1),
            (Ecap::PAGE_REQUESTS, 1),
            (Ecap::SUPERVISOR_REQUESTS, 1),
            (Ecap::NO_WRITE_FLAG, 1),
            (Ecap::EXTENDED_ACCESSED, 1),
            (Ecap::DEVICE_TLB_THROTTLING, 1),
            (Ecap::PAGE_REQUEST_DRAIN, 1),
            (Ecap::SECOND_STAGE_ACCESSED_DIRTY, 1),
            (Ecap::ABORT_DMA_MODE, 1),
            (Ecap::RID_PRIV, 1),
            (Ecap::HOST_PERMISSION_TABLES, 1),
            (Ecap::PASID_IN_TRANSLATED_REQUESTS, 1),
            (Ecap::SECOND_STAGE_IO_PERMISSIONS, 1),
            (Ecap::STOP_MARKERS, 1),
        ] {
            config.extended = config.extended.with(field, value);
        }
        config
    }

    /// Adds interrupt remapping and posting: 32-bit destinations, invalidations of up to 2^15
    /// indexes, caches that SIRTP empties.
    #[must_use]
    pub fn with_interrupt_remapping(self) -> Self {
        self.with_capability(Cap::POSTED_INTERRUPTS, 1)
            .with_capability(Cap::ENHANCED_SET_INTERRUPT_TABLE_POINTER, 1)
            .with_extended(Ecap::INTERRUPT_REMAPPING, 1)
            .with_extended(Ecap::EXTENDED_INTERRUPT_MODE, 1)
            .with_extended(Ecap::MAXIMUM_HANDLE_MASK, 15)
    }

    /// Changes a field of `CAP_REG`.
    #[must_use]
    pub fn with_capability(mut self, field: Cap, value: u64) -> Self {
        self.capability = self.capability.with(field, value);
        self
    }

    /// Changes a field of `ECAP_REG`.
    #[must_use]
    pub fn with_extended(mut self, field: Ecap, value: u64) -> Self {
        self.extended = self.extended.with(field, value);
        self
    }

    /// Changes how much the caches keep.
    #[must_use]
    pub fn with_cache_mode(mut self, mode: CacheMode) -> Self {
        self.cache_mode = mode;
        self
    }

    /// Changes when descriptors are executed.
    #[must_use]
    pub fn with_queue_pace(mut self, pace: Pace) -> Self {
        self.queue_pace = pace;
        self
    }

    /// Changes in which order descriptors are executed, and by which seed.
    #[must_use]
    pub fn with_queue_order(mut self, order: QueueOrder, seed: u64) -> Self {
        (self.queue_order, self.seed) = (order, seed);
        self
    }

    /// Changes when commands complete.
    #[must_use]
    pub fn with_command_pace(mut self, pace: Pace) -> Self {
        self.command_pace = pace;
        self
    }

    pub(crate) fn cap(&self, field: Cap) -> u64 {
        self.capability.field(field)
    }

    pub(crate) fn has_cap(&self, field: Cap) -> bool {
        self.cap(field) != 0
    }

    pub(crate) fn ecap(&self, field: Ecap) -> u64 {
        self.extended.field(field)
    }

    pub(crate) fn has(&self, field: Ecap) -> bool {
        self.ecap(field) != 0
    }

    pub(crate) fn major_version(&self) -> u32 {
        self.version >> 4 & 0xf
    }

    /// Number of domain-id bits.
    pub(crate) fn domain_id_bits(&self) -> u32 {
        4 + 2 * self.cap(Cap::DOMAIN_ID_WIDTH) as u32
    }

    /// Whether AW is a supported encoding.
    pub(crate) fn supports_width(&self, aw: u64) -> bool {
        (1..=3).contains(&aw) && self.cap(Cap::ADJUSTED_GUEST_ADDRESS_WIDTHS) >> aw & 1 == 1
    }

    /// min(MGAW, width of AW): input addresses of second stage lie below 2^this.
    pub(crate) fn second_stage_bits(&self, aw: u64) -> u32 {
        (self.cap(Cap::MAXIMUM_GUEST_ADDRESS_WIDTH) as u32 + 1).min(30 + 9 * aw as u32)
    }

    /// Number of fault records.
    pub(crate) fn fault_records(&self) -> usize {
        self.cap(Cap::FAULT_RECORD_COUNT) as usize + 1
    }

    /// Offset of the first fault record in bytes.
    pub(crate) fn fault_record_offset(&self) -> u16 {
        self.cap(Cap::FAULT_RECORD_OFFSET) as u16 * 16
    }

    /// Offset of the IVA register in bytes.
    pub(crate) fn iotlb_offset(&self) -> u16 {
        self.ecap(Ecap::IOTLB_REGISTER_OFFSET) as u16 * 16
    }

    /// Length of the register window in bytes: as many 4-KiB pages, a power of two, as hold all
    /// registers.
    pub(crate) fn window_bytes(&self) -> u64 {
        let records = u64::from(self.fault_record_offset()) + 16 * self.fault_records() as u64;
        let iotlb = u64::from(self.iotlb_offset()) + 16;
        records.max(iotlb).max(4096).next_power_of_two()
    }
}
