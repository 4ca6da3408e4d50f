//! What a remapping unit can do: `CAP_REG`, `ECAP_REG` and the host address width (§11.4.2,
//! §11.4.3).

use core::fmt;

use super::address::{AddressWidth, Iova, PAGE_SIZE_BYTES, PageSize};
use super::id::DomainId;
use super::register::{FAULT_RECORD_BYTES, REGISTER_WINDOW_MAX_BYTES};

macro_rules! capability_register {
    (
        $(#[$doc:meta])* $register:ident,
        $(#[$field_doc:meta])* $field:ident {
            $($(#[$doc_of:meta])* $name:ident = $mnemonic:literal $high:literal : $low:literal;)*
        }
    ) => {
        $(#[$field_doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub struct $field {
            mnemonic: &'static str,
            low: u8,
            width: u8,
        }

        impl $field {
            $(
                $(#[$doc_of])*
                #[doc(alias = $mnemonic)]
                pub const $name: Self = Self {
                    mnemonic: $mnemonic,
                    low: $low,
                    width: $high - $low + 1,
                };
            )*

            /// All fields, from bit 0 upward.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name that the specification gives the field.
            #[inline]
            pub const fn mnemonic(self) -> &'static str {
                self.mnemonic
            }

            /// The bits of the register that make up the field.
            #[inline]
            pub const fn mask(self) -> u64 {
                // A field is 1 to 10 bits wide and ends within the register.
                ((1 << self.width) - 1) << self.low
            }
        }

        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $register(u64);

        impl $register {
            /// All bits that Rev 5.10 defines.
            pub const DEFINED: u64 = 0 $(| $field::$name.mask())*;

            /// The register with this raw value.
            #[inline]
            pub const fn from_bits(bits: u64) -> Self {
                Self(bits)
            }

            /// The register's raw value.
            #[inline]
            pub const fn bits(self) -> u64 {
                self.0
            }

            /// The raw value of a field, encoded as its constant says.
            #[inline]
            pub const fn field(self, field: $field) -> u64 {
                (self.0 & field.mask()) >> field.low
            }

            /// Whether any bit of a field is set.
            #[inline]
            pub const fn has(self, field: $field) -> bool {
                self.0 & field.mask() != 0
            }

            /// The register with a field set to a raw value, encoded as its constant says; bits
            /// that the field has no room for are dropped.
            #[inline]
            pub const fn with(self, field: $field, value: u64) -> Self {
                Self(self.0 & !field.mask() | (value << field.low) & field.mask())
            }
        }
    };
}

capability_register! {
    /// The capability register (§11.4.2): any bit pattern, see [`validate`].
    #[doc(alias = "CAP_REG")]
    Capability,
    /// A field of the capability register, by the place and encoding that §11.4.2 gives.
    CapabilityField {
        /// Domain-id width: 4 + 2·n bits.
        DOMAIN_ID_WIDTH = "ND" 2:0;
        /// Write buffers must be flushed.
        WRITE_BUFFER_FLUSH = "RWBF" 4:4;
        /// A protected low memory region exists.
        PROTECTED_LOW_MEMORY = "PLMR" 5:5;
        /// A protected high memory region exists.
        PROTECTED_HIGH_MEMORY = "PHMR" 6:6;
        /// Caching mode.
        CACHING_MODE = "CM" 7:7;
        /// Second-stage widths: bit 1 for 39 bits, bit 2 for 48, bit 3 for 57.
        ADJUSTED_GUEST_ADDRESS_WIDTHS = "SAGAW" 12:8;
        /// Maximum guest address width, in bits, minus 1.
        MAXIMUM_GUEST_ADDRESS_WIDTH = "MGAW" 21:16;
        /// Zero-length reads of write-only pages pass.
        ZERO_LENGTH_READ = "ZLR" 22:22;
        /// Offset of the first fault record, in units of 16 bytes.
        FAULT_RECORD_OFFSET = "FRO" 33:24;
        /// Second-stage large pages: bit 0 for 2 MiB, bit 1 for 1 GiB.
        SECOND_STAGE_LARGE_PAGES = "SSLPS" 37:34;
        /// Page-selective IOTLB invalidation.
        PAGE_SELECTIVE_INVALIDATION = "PSI" 39:39;
        /// Number of fault records, minus 1.
        FAULT_RECORD_COUNT = "NFR" 47:40;
        /// Maximum address mask of IOTLB invalidation.
        MAXIMUM_ADDRESS_MASK = "MAMV" 53:48;
        /// Write draining.
        WRITE_DRAINING = "DWD" 54:54;
        /// Read draining.
        READ_DRAINING = "DRD" 55:55;
        /// First-stage 1-GiB pages.
        FIRST_STAGE_1GIB_PAGES = "FS1GP" 56:56;
        /// Posted interrupts.
        POSTED_INTERRUPTS = "PI" 59:59;
        /// First-stage 5-level paging.
        FIRST_STAGE_5_LEVEL = "FS5LP" 60:60;
        /// Enhanced command interface.
        ENHANCED_COMMANDS = "ECMDS" 61:61;
        /// Setting the interrupt remapping table pointer invalidates.
        ENHANCED_SET_INTERRUPT_TABLE_POINTER = "ESIRTPS" 62:62;
        /// Setting the root table pointer invalidates.
        ENHANCED_SET_ROOT_TABLE_POINTER = "ESRTPS" 63:63;
    }
}

capability_register! {
    /// The extended capability register (§11.4.3): any bit pattern, see [`validate`].
    #[doc(alias = "ECAP_REG")]
    ExtendedCapability,
    /// A field of the extended capability register, by the place and encoding that §11.4.3 gives.
    ExtendedCapabilityField {
        /// Accesses to remapping structures are snooped.
        COHERENCY = "C" 0:0;
        /// Queued invalidation.
        QUEUED_INVALIDATION = "QI" 1:1;
        /// Device-TLBs (ATS).
        DEVICE_TLB = "DT" 2:2;
        /// Interrupt remapping.
        INTERRUPT_REMAPPING = "IR" 3:3;
        /// Extended interrupt mode (32-bit APIC ids).
        EXTENDED_INTERRUPT_MODE = "EIM" 4:4;
        /// Pass-through translation type.
        PASS_THROUGH = "PT" 6:6;
        /// Snoop control.
        SNOOP_CONTROL = "SC" 7:7;
        /// Offset of the IOTLB registers, in units of 16 bytes.
        IOTLB_REGISTER_OFFSET = "IRO" 17:8;
        /// Maximum handle mask of interrupt-entry-cache invalidation.
        MAXIMUM_HANDLE_MASK = "MHMV" 23:20;
        /// Memory types.
        MEMORY_TYPES = "MTS" 25:25;
        /// Nested translation.
        NESTED = "NEST" 26:26;
        /// Page requests.
        PAGE_REQUESTS = "PRS" 29:29;
        /// Execute requests; withdrawn in Rev 4.1.
        EXECUTE_REQUESTS = "ERS" 30:30;
        /// Supervisor requests.
        SUPERVISOR_REQUESTS = "SRS" 31:31;
        /// No-write flag in translation requests.
        NO_WRITE_FLAG = "NWFS" 33:33;
        /// Extended-accessed flag in first-stage entries.
        EXTENDED_ACCESSED = "EAFS" 34:34;
        /// PASID width, in bits, minus 1.
        PASID_SIZE = "PSS" 39:35;
        /// Requests with PASID.
        REQUESTS_WITH_PASID = "PASID" 40:40;
        /// Device-TLB invalidation throttling.
        DEVICE_TLB_THROTTLING = "DIT" 41:41;
        /// Page-request drain.
        PAGE_REQUEST_DRAIN = "PDS" 42:42;
        /// Scalable mode.
        SCALABLE_MODE = "SMTS" 43:43;
        /// Virtual command interface.
        VIRTUAL_COMMANDS = "VCS" 44:44;
        /// Accessed and dirty flags in second-stage entries.
        SECOND_STAGE_ACCESSED_DIRTY = "SSADS" 45:45;
        /// Second-stage translation in scalable mode.
        SECOND_STAGE = "SSTS" 46:46;
        /// First-stage translation.
        FIRST_STAGE = "FSTS" 47:47;
        /// Page walks through a PASID-table entry can be snooped.
        PAGE_WALK_COHERENCY = "SMPWCS" 48:48;
        /// `RID_PASID` in scalable context entries.
        RID_PASID = "RPS" 49:49;
        /// TDX Connect.
        TDX_CONNECT = "TDXCS" 50:50;
        /// Performance monitoring.
        PERFORMANCE_MONITORING = "PMS" 51:51;
        /// Abort-DMA mode.
        ABORT_DMA_MODE = "ADMS" 52:52;
        /// `RID_PRIV` in scalable context entries.
        RID_PRIV = "RPRIVS" 53:53;
        /// Host permission tables.
        HOST_PERMISSION_TABLES = "HPTS" 55:55;
        /// PASIDs in translated requests.
        PASID_IN_TRANSLATED_REQUESTS = "PTRS" 56:56;
        /// I/O read and write permissions in second-stage entries.
        SECOND_STAGE_IO_PERMISSIONS = "SSIRWS" 57:57;
        /// A stop marker that cannot be queued is dropped.
        STOP_MARKERS = "SMS" 58:58;
        /// 1-GiB entries in host permission tables.
        HOST_PERMISSION_1GIB = "HPT1GPS" 59:59;
        /// Resource director technology.
        RESOURCE_DIRECTOR = "RDTS" 60:60;
        /// Extended interrupt mode is required.
        EXTENDED_INTERRUPT_MODE_REQUIRED = "EIMER" 61:61;
        /// Interrupt remapping is required.
        INTERRUPT_REMAPPING_REQUIRED = "IRREQ" 62:62;
    }
}

macro_rules! flag_getters {
    ($register:ident, $field:ident { $($(#[$doc:meta])* $getter:ident = $name:ident;)* }) => {
        impl $register {
            $(
                $(#[$doc])*
                #[inline]
                pub const fn $getter(self) -> bool {
                    self.has($field::$name)
                }
            )*
        }
    };
}

flag_getters! {
    Capability, CapabilityField {
        /// Whether table updates that no invalidation follows need a write-buffer flush (`RWBF`).
        requires_write_buffer_flush = WRITE_BUFFER_FLUSH;
        /// Whether there is a protected low memory region (`PLMR`).
        has_protected_low_memory = PROTECTED_LOW_MEMORY;
        /// Whether there is a protected high memory region (`PHMR`).
        has_protected_high_memory = PROTECTED_HIGH_MEMORY;
        /// Whether not-present and faulty entries may be cached (`CM`, §6.1).
        has_caching_mode = CACHING_MODE;
        /// Whether a zero-length read of a write-only page passes (`ZLR`).
        has_zero_length_read = ZERO_LENGTH_READ;
        /// Whether IOTLB invalidation can name pages (`PSI`).
        has_page_selective_invalidation = PAGE_SELECTIVE_INVALIDATION;
        /// Whether IOTLB invalidation can drain writes (`DWD`).
        has_write_draining = WRITE_DRAINING;
        /// Whether IOTLB invalidation can drain reads (`DRD`).
        has_read_draining = READ_DRAINING;
        /// Whether first-stage tables may hold 1-GiB pages (`FS1GP`).
        has_first_stage_1gib_pages = FIRST_STAGE_1GIB_PAGES;
        /// Whether first-stage tables may have 5 levels (`FS5LP`).
        has_first_stage_5_level = FIRST_STAGE_5_LEVEL;
        /// Whether interrupts can be posted (`PI`).
        has_posted_interrupts = POSTED_INTERRUPTS;
        /// Whether there is an enhanced command interface (`ECMDS`).
        has_enhanced_commands = ENHANCED_COMMANDS;
        /// Whether setting the interrupt remapping table pointer, and ending remapping,
        /// invalidates the interrupt caches (`ESIRTPS`).
        has_enhanced_set_interrupt_table_pointer = ENHANCED_SET_INTERRUPT_TABLE_POINTER;
        /// Whether setting the root table pointer invalidates all DMA-remapping caches (`ESRTPS`).
        has_enhanced_set_root_table_pointer = ENHANCED_SET_ROOT_TABLE_POINTER;
    }
}

flag_getters! {
    ExtendedCapability, ExtendedCapabilityField {
        /// Whether accesses to root, context, PASID and interrupt tables, and to second-stage
        /// tables in legacy mode, are snooped (`C`).
        is_coherent = COHERENCY;
        /// Whether there is an invalidation queue (`QI`).
        has_queued_invalidation = QUEUED_INVALIDATION;
        /// Whether devices may have TLBs (`DT`).
        has_device_tlb = DEVICE_TLB;
        /// Whether interrupts can be remapped (`IR`).
        has_interrupt_remapping = INTERRUPT_REMAPPING;
        /// Whether remapped interrupts may go to 32-bit APIC ids (`EIM`).
        has_extended_interrupt_mode = EXTENDED_INTERRUPT_MODE;
        /// Whether requests may pass untranslated (`PT`).
        has_pass_through = PASS_THROUGH;
        /// Whether snooping can be forced, by `SNP` and `PGSNP` (`SC`).
        has_snoop_control = SNOOP_CONTROL;
        /// Whether memory types are supported (`MTS`).
        has_memory_types = MEMORY_TYPES;
        /// Whether nested translation is supported (`NEST`).
        has_nested = NESTED;
        /// Whether page requests are supported (`PRS`).
        has_page_requests = PAGE_REQUESTS;
        /// Whether execute requests are supported (`ERS`); 0 since Rev 4.1.
        has_execute_requests = EXECUTE_REQUESTS;
        /// Whether supervisor requests are supported (`SRS`).
        has_supervisor_requests = SUPERVISOR_REQUESTS;
        /// Whether the no-write flag of translation requests is honoured (`NWFS`).
        has_no_write_flag = NO_WRITE_FLAG;
        /// Whether first-stage entries may have an extended-accessed flag (`EAFS`).
        has_extended_accessed = EXTENDED_ACCESSED;
        /// Whether requests may carry a PASID (`PASID`).
        has_pasid = REQUESTS_WITH_PASID;
        /// Whether device-TLB invalidation names the physical function, for throttling (`DIT`).
        has_device_tlb_throttling = DEVICE_TLB_THROTTLING;
        /// Whether an invalidation wait can drain page requests (`PDS`).
        has_page_request_drain = PAGE_REQUEST_DRAIN;
        /// Whether scalable mode is supported (`SMTS`).
        has_scalable_mode = SCALABLE_MODE;
        /// Whether there is a virtual command interface (`VCS`).
        has_virtual_commands = VIRTUAL_COMMANDS;
        /// Whether second-stage entries may have accessed and dirty flags (`SSADS`).
        has_second_stage_accessed_dirty = SECOND_STAGE_ACCESSED_DIRTY;
        /// Whether scalable mode has second-stage translation (`SSTS`).
        has_second_stage = SECOND_STAGE;
        /// Whether scalable mode has first-stage translation (`FSTS`).
        has_first_stage = FIRST_STAGE;
        /// Whether page walks through a PASID-table entry are snooped if it asks so (`SMPWCS`).
        has_page_walk_coherency = PAGE_WALK_COHERENCY;
        /// Whether `RID_PASID` is used (`RPS`); if not, requests without PASID use PASID 0.
        has_rid_pasid = RID_PASID;
        /// Whether TDX Connect is supported (`TDXCS`).
        has_tdx_connect = TDX_CONNECT;
        /// Whether performance can be monitored (`PMS`).
        has_performance_monitoring = PERFORMANCE_MONITORING;
        /// Whether there is an abort-DMA mode (`ADMS`).
        has_abort_dma_mode = ABORT_DMA_MODE;
        /// Whether `RID_PRIV` is used (`RPRIVS`).
        has_rid_priv = RID_PRIV;
        /// Whether there are host permission tables (`HPTS`).
        has_host_permission_tables = HOST_PERMISSION_TABLES;
        /// Whether translated requests may carry a PASID (`PTRS`).
        has_pasid_in_translated_requests = PASID_IN_TRANSLATED_REQUESTS;
        /// Whether second-stage entries may have I/O read and write bits of their own (`SSIRWS`).
        has_second_stage_io_permissions = SECOND_STAGE_IO_PERMISSIONS;
        /// Whether a stop marker that cannot be queued is dropped silently (`SMS`).
        has_stop_markers = STOP_MARKERS;
        /// Whether host permission tables may have 1-GiB entries (`HPT1GPS`).
        has_host_permission_1gib = HOST_PERMISSION_1GIB;
        /// Whether there is a resource director register (`RDTS`).
        has_resource_director = RESOURCE_DIRECTOR;
        /// Whether interrupts are blocked unless extended interrupt mode is on (`EIMER`).
        requires_extended_interrupt_mode = EXTENDED_INTERRUPT_MODE_REQUIRED;
        /// Whether interrupts are blocked unless interrupt remapping is on (`IRREQ`).
        requires_interrupt_remapping = INTERRUPT_REMAPPING_REQUIRED;
    }
}

impl Capability {
    /// The width of domain-ids (`ND`), in bits: 4 to 16. The reserved encoding, which
    /// [`validate`] refuses, reads as 16.
    #[inline]
    pub const fn domain_id_bits(self) -> u8 {
        let bits = 4 + 2 * self.field(CapabilityField::DOMAIN_ID_WIDTH) as u8;
        if bits > 16 { 16 } else { bits }
    }

    /// The number of domain-ids: 16 to 65536.
    #[inline]
    pub const fn domain_id_count(self) -> u32 {
        1 << self.domain_id_bits()
    }

    /// The domain-id without the bits that this unit ignores in descriptors and registers.
    #[inline]
    pub const fn truncate_domain_id(self, domain_id: DomainId) -> DomainId {
        DomainId::new((domain_id.as_u16() as u32 & (self.domain_id_count() - 1)) as u16)
    }

    /// Whether second-stage tables of this width are supported (`SAGAW`).
    #[inline]
    pub const fn supports_width(self, width: AddressWidth) -> bool {
        self.field(CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS) >> width.field() & 1 == 1
    }

    /// The largest supported second-stage width (`SAGAW`), or `None` if there is none.
    pub const fn largest_address_width(self) -> Option<AddressWidth> {
        if self.supports_width(AddressWidth::Bits57) {
            Some(AddressWidth::Bits57)
        } else if self.supports_width(AddressWidth::Bits48) {
            Some(AddressWidth::Bits48)
        } else if self.supports_width(AddressWidth::Bits39) {
            Some(AddressWidth::Bits39)
        } else {
            None
        }
    }

    /// The page that a fault record keeps of an address (`FI`, §11.4.7.6): no bits at and above the
    /// largest second-stage width.
    pub const fn recorded_page(self, address: Iova) -> Iova {
        let kept = match self.largest_address_width() {
            Some(width) => !(u64::MAX << width.bits()) & u64::MAX << 12,
            None => u64::MAX << 12,
        };
        Iova::new(address.as_u64() & kept)
    }

    /// The width of addresses that go through a second stage (`MGAW`), in bits: 1 to 64.
    #[inline]
    pub const fn maximum_guest_address_width(self) -> u8 {
        self.field(CapabilityField::MAXIMUM_GUEST_ADDRESS_WIDTH) as u8 + 1
    }

    /// Where the fault records start (`FRO`), in bytes from the start of the registers.
    #[inline]
    pub const fn fault_record_offset(self) -> u16 {
        self.field(CapabilityField::FAULT_RECORD_OFFSET) as u16 * 16
    }

    /// The number of fault records (`NFR` + 1): 1 to 256.
    #[inline]
    pub const fn fault_record_count(self) -> u16 {
        self.field(CapabilityField::FAULT_RECORD_COUNT) as u16 + 1
    }

    /// Whether second-stage tables may hold pages of this size (`SSLPS`); 4 KiB always.
    #[inline]
    pub const fn second_stage_large_page(self, size: PageSize) -> bool {
        let field = self.field(CapabilityField::SECOND_STAGE_LARGE_PAGES);
        match size {
            PageSize::Size4KiB => true,
            PageSize::Size2MiB => field & 1 == 1,
            PageSize::Size1GiB => field >> 1 & 1 == 1,
        }
    }

    /// The largest address mask of an IOTLB invalidation (`MAMV`), as the binary order of a number
    /// of pages; PASID-based invalidation knows no such limit (§6.5.2.4).
    #[inline]
    pub const fn maximum_address_mask(self) -> u8 {
        self.field(CapabilityField::MAXIMUM_ADDRESS_MASK) as u8
    }
}

impl ExtendedCapability {
    /// Where the registers for IOTLB invalidation start (`IRO`), in bytes from the start of the
    /// registers.
    #[inline]
    pub const fn iotlb_register_offset(self) -> u16 {
        self.field(ExtendedCapabilityField::IOTLB_REGISTER_OFFSET) as u16 * 16
    }

    /// The largest mask of an interrupt-entry-cache invalidation (`MHMV`), as the binary order of a
    /// number of entries.
    #[inline]
    pub const fn maximum_handle_mask(self) -> u8 {
        self.field(ExtendedCapabilityField::MAXIMUM_HANDLE_MASK) as u8
    }

    /// The width of PASIDs in requests (`PSS` + 1), in bits: 1 to 20. Larger encodings, which
    /// [`validate`] refuses, read as 20. Meaningless without [`has_pasid`](Self::has_pasid).
    #[inline]
    pub const fn pasid_bits(self) -> u8 {
        let bits = self.field(ExtendedCapabilityField::PASID_SIZE) as u8 + 1;
        if bits > 20 { 20 } else { bits }
    }
}

/// All that decides which fields of the tables and descriptors exist.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Features {
    /// `CAP_REG`.
    pub capability: Capability,
    /// `ECAP_REG`.
    pub extended: ExtendedCapability,
    /// The host address width, in bits (`HAW`, §8): physical addresses stay below 2^this.
    pub host_address_width: u8,
}

impl Features {
    /// The features of a unit with these registers, without those that it reports but lacks a
    /// prerequisite of.
    ///
    /// Units built to the *extended mode* that Rev 3.0 replaced report nesting, PASIDs and page
    /// requests without scalable mode; none of that can be used.
    pub const fn new(
        capability: Capability,
        extended: ExtendedCapability,
        host_address_width: u8,
    ) -> Self {
        let mut features = Self {
            capability,
            extended,
            host_address_width,
        };
        let mut rules = PREREQUISITES;
        while let [rule, rest @ ..] = rules {
            if !rule.holds(features.capability, features.extended) {
                features = features.without(rule.feature);
            }
            rules = rest;
        }
        features
    }

    const fn without(self, feature: Feature) -> Self {
        match feature {
            Feature::Capability(field) => Self {
                capability: self.capability.with(field, 0),
                ..self
            },
            Feature::Extended(field) => Self {
                extended: self.extended.with(field, 0),
                ..self
            },
        }
    }

    /// The bits that are reserved in every 4-KiB-aligned pointer field: those at and above the
    /// host address width.
    #[inline]
    pub const fn reserved_address_bits(&self) -> u64 {
        let at_and_above = match u64::MAX.checked_shl(self.host_address_width as u32) {
            Some(bits) => bits,
            None => 0,
        };
        at_and_above & !(PAGE_SIZE_BYTES - 1)
    }

    /// The largest supported second-stage width, or `None` if there is none.
    #[inline]
    pub const fn largest_address_width(&self) -> Option<AddressWidth> {
        self.capability.largest_address_width()
    }

    /// The width of the input addresses of a second-stage table, in bits: the lesser of its own
    /// width and `MGAW` (§3.7).
    #[inline]
    pub const fn second_stage_address_bits(&self, width: AddressWidth) -> u8 {
        let maximum = self.capability.maximum_guest_address_width();
        if maximum < width.bits() {
            maximum
        } else {
            width.bits()
        }
    }
}

/// A field of either capability register.
#[derive(Clone, Copy)]
enum Feature {
    Capability(CapabilityField),
    Extended(ExtendedCapabilityField),
}

impl Feature {
    const fn is_reported(self, capability: Capability, extended: ExtendedCapability) -> bool {
        match self {
            Self::Capability(field) => capability.has(field),
            Self::Extended(field) => extended.has(field),
        }
    }

    const fn mnemonic(self) -> &'static str {
        match self {
            Self::Capability(field) => field.mnemonic(),
            Self::Extended(field) => field.mnemonic(),
        }
    }
}

/// "`feature` needs `requires`" (§11.4.2, §11.4.3).
struct Prerequisite {
    feature: Feature,
    requires: Feature,
    /// Units of the superseded extended mode report the feature without scalable mode.
    scalable_mode_only: bool,
}

impl Prerequisite {
    const fn holds(&self, capability: Capability, extended: ExtendedCapability) -> bool {
        !self.feature.is_reported(capability, extended)
            || self.requires.is_reported(capability, extended)
    }
}

const fn any_mode(
    feature: ExtendedCapabilityField,
    requires: ExtendedCapabilityField,
) -> Prerequisite {
    Prerequisite {
        feature: Feature::Extended(feature),
        requires: Feature::Extended(requires),
        scalable_mode_only: false,
    }
}

const fn scalable(
    feature: ExtendedCapabilityField,
    requires: ExtendedCapabilityField,
) -> Prerequisite {
    Prerequisite {
        feature: Feature::Extended(feature),
        requires: Feature::Extended(requires),
        scalable_mode_only: true,
    }
}

/// Ordered so that what a rule requires has its own rules before it.
const PREREQUISITES: &[Prerequisite] = {
    use CapabilityField as C;
    use ExtendedCapabilityField as E;
    &[
        any_mode(E::DEVICE_TLB, E::QUEUED_INVALIDATION),
        any_mode(E::INTERRUPT_REMAPPING, E::QUEUED_INVALIDATION),
        any_mode(E::SCALABLE_MODE, E::QUEUED_INVALIDATION),
        any_mode(E::EXTENDED_INTERRUPT_MODE, E::INTERRUPT_REMAPPING),
        any_mode(
            E::EXTENDED_INTERRUPT_MODE_REQUIRED,
            E::EXTENDED_INTERRUPT_MODE,
        ),
        any_mode(E::INTERRUPT_REMAPPING_REQUIRED, E::INTERRUPT_REMAPPING),
        any_mode(E::NO_WRITE_FLAG, E::DEVICE_TLB),
        any_mode(E::DEVICE_TLB_THROTTLING, E::DEVICE_TLB),
        any_mode(E::PAGE_REQUEST_DRAIN, E::DEVICE_TLB),
        scalable(E::FIRST_STAGE, E::SCALABLE_MODE),
        scalable(E::SECOND_STAGE, E::SCALABLE_MODE),
        scalable(E::PAGE_WALK_COHERENCY, E::SCALABLE_MODE),
        scalable(E::MEMORY_TYPES, E::SCALABLE_MODE),
        scalable(E::REQUESTS_WITH_PASID, E::SCALABLE_MODE),
        scalable(E::SUPERVISOR_REQUESTS, E::SCALABLE_MODE),
        scalable(E::RID_PASID, E::SCALABLE_MODE),
        scalable(E::RID_PRIV, E::SUPERVISOR_REQUESTS),
        scalable(E::PAGE_REQUESTS, E::SCALABLE_MODE),
        scalable(E::PAGE_REQUESTS, E::DEVICE_TLB),
        scalable(E::STOP_MARKERS, E::PAGE_REQUESTS),
        scalable(E::NESTED, E::SCALABLE_MODE),
        scalable(E::NESTED, E::FIRST_STAGE),
        scalable(E::NESTED, E::SECOND_STAGE),
        scalable(E::EXTENDED_ACCESSED, E::FIRST_STAGE),
        scalable(E::EXTENDED_ACCESSED, E::PAGE_WALK_COHERENCY),
        scalable(E::SECOND_STAGE_ACCESSED_DIRTY, E::PAGE_WALK_COHERENCY),
        scalable(E::SECOND_STAGE_IO_PERMISSIONS, E::SECOND_STAGE),
        scalable(E::HOST_PERMISSION_TABLES, E::SCALABLE_MODE),
        scalable(E::HOST_PERMISSION_TABLES, E::DEVICE_TLB),
        scalable(E::HOST_PERMISSION_1GIB, E::HOST_PERMISSION_TABLES),
        scalable(E::PASID_IN_TRANSLATED_REQUESTS, E::DEVICE_TLB),
        scalable(E::PASID_IN_TRANSLATED_REQUESTS, E::REQUESTS_WITH_PASID),
        Prerequisite {
            feature: Feature::Capability(C::FIRST_STAGE_1GIB_PAGES),
            requires: Feature::Extended(E::FIRST_STAGE),
            scalable_mode_only: true,
        },
        Prerequisite {
            feature: Feature::Capability(C::FIRST_STAGE_5_LEVEL),
            requires: Feature::Extended(E::FIRST_STAGE),
            scalable_mode_only: true,
        },
        Prerequisite {
            feature: Feature::Capability(C::POSTED_INTERRUPTS),
            requires: Feature::Extended(E::INTERRUPT_REMAPPING),
            scalable_mode_only: false,
        },
        Prerequisite {
            feature: Feature::Extended(E::PERFORMANCE_MONITORING),
            requires: Feature::Capability(C::ENHANCED_COMMANDS),
            scalable_mode_only: false,
        },
    ]
};

/// Why a unit's version and capability registers cannot be those of a working unit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CapabilityError {
    /// A register reads as all ones: nothing answers at this address.
    AllOnes,
    /// The version register names no version: major version 0.
    Version(u32),
    /// `ND` is the reserved 111b.
    DomainIdWidth {
        /// The field's value.
        field: u8,
    },
    /// `SSLPS` is neither 0000b, 0001b nor 0011b.
    SecondStageLargePages {
        /// The field's value.
        field: u8,
    },
    /// Requests may carry a PASID, of more than 20 bits.
    PasidWidth {
        /// The width, in bits.
        bits: u8,
    },
    /// The fault records do not fit the register window, or lie over other registers.
    FaultRecords {
        /// Where they start, in bytes (`FRO` times 16).
        offset: u16,
        /// Their number (`NFR` + 1).
        count: u16,
    },
    /// The IOTLB registers do not fit the register window, or lie over other registers.
    IotlbRegisters {
        /// Where they start, in bytes (`IRO` times 16).
        offset: u16,
    },
    /// A feature is reported without one that it needs. [`Features::new`] takes it as absent, so a
    /// caller may as well note this and go on.
    MissingPrerequisite {
        /// The mnemonic of the feature.
        feature: &'static str,
        /// The mnemonic of what is missing.
        requires: &'static str,
    },
}

impl fmt::Display for CapabilityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllOnes => f.write_str("capability registers read all ones"),
            Self::Version(version) => write!(f, "version register {version:#x}"),
            Self::DomainIdWidth { field } => write!(f, "`ND` is {field}"),
            Self::SecondStageLargePages { field } => write!(f, "`SSLPS` is {field:#x}"),
            Self::PasidWidth { bits } => write!(f, "PASIDs of {bits} bits"),
            Self::FaultRecords { offset, count } => {
                write!(f, "{count} fault records at {offset:#x} have no room")
            }
            Self::IotlbRegisters { offset } => {
                write!(f, "IOTLB registers at {offset:#x} have no room")
            }
            Self::MissingPrerequisite { feature, requires } => {
                f.write_str(feature)?;
                f.write_str(" without ")?;
                f.write_str(requires)
            }
        }
    }
}

impl core::error::Error for CapabilityError {}

/// Checks the registers of a unit before anything relies on them.
///
/// `version` is the raw version register, `window_bytes` the size of the register window.
/// Scalable-mode features that a unit reports without scalable mode are no error: see
/// [`Features::new`].
/// Prerequisites are checked last, so that [`CapabilityError::MissingPrerequisite`] tells that all
/// else is sound.
pub const fn validate(
    capability: Capability,
    extended: ExtendedCapability,
    version: u32,
    window_bytes: u32,
) -> Result<(), CapabilityError> {
    if capability.bits() == u64::MAX || extended.bits() == u64::MAX || version == u32::MAX {
        return Err(CapabilityError::AllOnes);
    }
    if version >> 4 & 0xf == 0 {
        return Err(CapabilityError::Version(version));
    }
    let domain_id_width = capability.field(CapabilityField::DOMAIN_ID_WIDTH) as u8;
    if domain_id_width == 7 {
        return Err(CapabilityError::DomainIdWidth {
            field: domain_id_width,
        });
    }
    let large_pages = capability.field(CapabilityField::SECOND_STAGE_LARGE_PAGES) as u8;
    if !matches!(large_pages, 0b0000 | 0b0001 | 0b0011) {
        return Err(CapabilityError::SecondStageLargePages { field: large_pages });
    }
    let pasid_bits = extended.field(ExtendedCapabilityField::PASID_SIZE) as u8 + 1;
    if extended.has_scalable_mode() && extended.has_pasid() && pasid_bits > 20 {
        return Err(CapabilityError::PasidWidth { bits: pasid_bits });
    }

    let records = Span::new(
        capability.fault_record_offset(),
        capability.fault_record_count() * FAULT_RECORD_BYTES,
    );
    if !records.is_free(window_bytes) {
        return Err(CapabilityError::FaultRecords {
            offset: capability.fault_record_offset(),
            count: capability.fault_record_count(),
        });
    }
    let iotlb = Span::new(extended.iotlb_register_offset(), 16);
    if !iotlb.is_free(window_bytes) || iotlb.overlaps(records) {
        return Err(CapabilityError::IotlbRegisters {
            offset: extended.iotlb_register_offset(),
        });
    }

    let mut rules = PREREQUISITES;
    while let [rule, rest @ ..] = rules {
        let is_checked = extended.has_scalable_mode() || !rule.scalable_mode_only;
        if is_checked && !rule.holds(capability, extended) {
            return Err(CapabilityError::MissingPrerequisite {
                feature: rule.feature.mnemonic(),
                requires: rule.requires.mnemonic(),
            });
        }
        rules = rest;
    }
    Ok(())
}

/// A range of register offsets, in bytes, `end` excluded.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    const fn new(start: u16, len_bytes: u16) -> Self {
        Self {
            start: start as u32,
            end: start as u32 + len_bytes as u32,
        }
    }

    const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether the range lies in the window and beside the registers that every unit has
    /// (§11.4: 000 to 047 and 064 to 0EF).
    const fn is_free(self, window_bytes: u32) -> bool {
        self.end <= window_bytes
            && self.end <= REGISTER_WINDOW_MAX_BYTES
            && !self.overlaps(Self {
                start: 0,
                end: 0x48,
            })
            && !self.overlaps(Self {
                start: 0x64,
                end: 0xf0,
            })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    type Flag<T> = (&'static str, u32, fn(T) -> bool);

    fn assert_flags<T: Copy>(flags: &[Flag<T>], from_bits: fn(u64) -> T) {
        for &(name, own, get) in flags {
            for bit in 0..64 {
                assert_eq!(get(from_bits(1 << bit)), bit == own, "{name}, bit {bit}");
            }
        }
    }

    #[test]
    fn each_flag_reads_its_own_bit_and_no_other() {
        // §11.4.2
        assert_flags::<Capability>(
            &[
                ("RWBF", 4, |c| c.requires_write_buffer_flush()),
                ("PLMR", 5, |c| c.has_protected_low_memory()),
                ("PHMR", 6, |c| c.has_protected_high_memory()),
                ("CM", 7, |c| c.has_caching_mode()),
                ("ZLR", 22, |c| c.has_zero_length_read()),
                ("PSI", 39, |c| c.has_page_selective_invalidation()),
                ("DWD", 54, |c| c.has_write_draining()),
                ("DRD", 55, |c| c.has_read_draining()),
                ("FS1GP", 56, |c| c.has_first_stage_1gib_pages()),
                ("PI", 59, |c| c.has_posted_interrupts()),
                ("FS5LP", 60, |c| c.has_first_stage_5_level()),
                ("ECMDS", 61, |c| c.has_enhanced_commands()),
                ("ESIRTPS", 62, |c| {
                    c.has_enhanced_set_interrupt_table_pointer()
                }),
                ("ESRTPS", 63, |c| c.has_enhanced_set_root_table_pointer()),
                ("SAGAW 39", 9, |c| c.supports_width(AddressWidth::Bits39)),
                ("SAGAW 48", 10, |c| c.supports_width(AddressWidth::Bits48)),
                ("SAGAW 57", 11, |c| c.supports_width(AddressWidth::Bits57)),
                ("SSLPS 2 MiB", 34, |c| {
                    c.second_stage_large_page(PageSize::Size2MiB)
                }),
                ("SSLPS 1 GiB", 35, |c| {
                    c.second_stage_large_page(PageSize::Size1GiB)
                }),
            ],
            Capability::from_bits,
        );
        // §11.4.3
        assert_flags::<ExtendedCapability>(
            &[
                ("C", 0, |e| e.is_coherent()),
                ("QI", 1, |e| e.has_queued_invalidation()),
                ("DT", 2, |e| e.has_device_tlb()),
                ("IR", 3, |e| e.has_interrupt_remapping()),
                ("EIM", 4, |e| e.has_extended_interrupt_mode()),
                ("PT", 6, |e| e.has_pass_through()),
                ("SC", 7, |e| e.has_snoop_control()),
                ("MTS", 25, |e| e.has_memory_types()),
                ("NEST", 26, |e| e.has_nested()),
                ("PRS", 29, |e| e.has_page_requests()),
                ("ERS", 30, |e| e.has_execute_requests()),
                ("SRS", 31, |e| e.has_supervisor_requests()),
                ("NWFS", 33, |e| e.has_no_write_flag()),
                ("EAFS", 34, |e| e.has_extended_accessed()),
                ("PASID", 40, |e| e.has_pasid()),
                ("DIT", 41, |e| e.has_device_tlb_throttling()),
                ("PDS", 42, |e| e.has_page_request_drain()),
                ("SMTS", 43, |e| e.has_scalable_mode()),
                ("VCS", 44, |e| e.has_virtual_commands()),
                ("SSADS", 45, |e| e.has_second_stage_accessed_dirty()),
                ("SSTS", 46, |e| e.has_second_stage()),
                ("FSTS", 47, |e| e.has_first_stage()),
                ("SMPWCS", 48, |e| e.has_page_walk_coherency()),
                ("RPS", 49, |e| e.has_rid_pasid()),
                ("TDXCS", 50, |e| e.has_tdx_connect()),
                ("PMS", 51, |e| e.has_performance_monitoring()),
                ("ADMS", 52, |e| e.has_abort_dma_mode()),
                ("RPRIVS", 53, |e| e.has_rid_priv()),
                ("HPTS", 55, |e| e.has_host_permission_tables()),
                ("PTRS", 56, |e| e.has_pasid_in_translated_requests()),
                ("SSIRWS", 57, |e| e.has_second_stage_io_permissions()),
                ("SMS", 58, |e| e.has_stop_markers()),
                ("HPT1GPS", 59, |e| e.has_host_permission_1gib()),
                ("RDTS", 60, |e| e.has_resource_director()),
                ("EIMER", 61, |e| e.requires_extended_interrupt_mode()),
                ("IRREQ", 62, |e| e.requires_interrupt_remapping()),
            ],
            ExtendedCapability::from_bits,
        );
    }

    #[test]
    fn each_number_reads_its_own_bits_and_no_others() {
        type Number<T> = (&'static str, u32, u32, fn(T) -> u64);
        let capability: [Number<Capability>; 5] = [
            ("MGAW", 21, 16, |c| {
                u64::from(c.maximum_guest_address_width()) - 1
            }),
            ("FRO", 33, 24, |c| u64::from(c.fault_record_offset()) / 16),
            ("NFR", 47, 40, |c| u64::from(c.fault_record_count()) - 1),
            ("MAMV", 53, 48, |c| c.maximum_address_mask().into()),
            ("ND", 2, 0, |c| (u64::from(c.domain_id_bits()) - 4) / 2),
        ];
        let extended: [Number<ExtendedCapability>; 3] = [
            ("IRO", 17, 8, |e| u64::from(e.iotlb_register_offset()) / 16),
            ("MHMV", 23, 20, |e| e.maximum_handle_mask().into()),
            ("PSS", 39, 35, |e| u64::from(e.pasid_bits()) - 1),
        ];
        for bit in 0..64 {
            let expected = |high, low| {
                if (low..=high).contains(&bit) {
                    1_u64 << (bit - low)
                } else {
                    0
                }
            };
            for (name, high, low, get) in capability {
                let value = get(Capability::from_bits(1 << bit));
                assert_eq!(value, expected(high, low), "{name}, bit {bit}");
            }
            for (name, high, low, get) in extended {
                let value = get(ExtendedCapability::from_bits(1 << bit));
                assert_eq!(value, expected(high, low), "{name}, bit {bit}");
            }
        }
        let all_ones = Capability::from_bits(u64::MAX);
        assert_eq!(all_ones.maximum_guest_address_width(), 64);
        assert_eq!(all_ones.fault_record_count(), 256);
        assert_eq!(all_ones.fault_record_offset(), 0x3ff0);
        assert_eq!(all_ones.domain_id_bits(), 16);
        assert_eq!(ExtendedCapability::from_bits(u64::MAX).pasid_bits(), 20);
    }

    #[test]
    fn fields_are_disjoint_and_leave_the_reserved_bits_alone() {
        // Reserved or withdrawn, §11.4.2: 3, 15:13, 23, 38, 58:57.
        assert_eq!(!Capability::DEFINED, 0x0600_0040_0080_e008);
        // Reserved or withdrawn, §11.4.3: 5, 19:18, 24, 27, 28, 32, 54, 63.
        assert_eq!(!ExtendedCapability::DEFINED, 0x8040_0001_190c_0020);
        let capability: u32 = CapabilityField::ALL
            .iter()
            .map(|field| field.mask().count_ones())
            .sum();
        assert_eq!(capability, Capability::DEFINED.count_ones());
        let extended: u32 = ExtendedCapabilityField::ALL
            .iter()
            .map(|field| field.mask().count_ones())
            .sum();
        assert_eq!(extended, ExtendedCapability::DEFINED.count_ones());
    }

    #[test]
    fn setting_a_field_changes_nothing_else() {
        for &field in CapabilityField::ALL {
            for before in [0, u64::MAX, 0x5a5a_a5a5_5a5a_a5a5] {
                for value in [0, 1, 5, u64::MAX] {
                    let before = Capability::from_bits(before);
                    let after = before.with(field, value);
                    assert_eq!(after.bits() & !field.mask(), before.bits() & !field.mask());
                    let room = u64::MAX >> (64 - field.mask().count_ones());
                    assert_eq!(after.field(field), value & room, "{}", field.mnemonic());
                }
            }
        }
    }

    #[test]
    fn records_keep_no_address_bits_above_the_largest_width() {
        // §11.4.7.6.
        let sent = Iova::new(0xfedc_ba98_7654_3210);
        for (widths, kept) in [
            (0b0000, 0xfedc_ba98_7654_3000),
            (0b0010, 0x0000_0018_7654_3000),
            (0b0110, 0x0000_ba98_7654_3000),
            (0b1110, 0x00dc_ba98_7654_3000),
        ] {
            let field = CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS;
            let capability = Capability::from_bits(0).with(field, widths);
            assert_eq!(
                capability.recorded_page(sent),
                Iova::new(kept),
                "{widths:b}"
            );
        }
    }

    #[test]
    fn registers_of_real_units_read_as_published() {
        // A desktop unit of 2015 and, in front of its graphics, one of the old extended mode.
        let system = (
            Capability::from_bits(0x00d2_008c_4066_0462),
            ExtendedCapability::from_bits(0x00f0_50da),
        );
        assert_eq!(system.0.domain_id_bits(), 8);
        assert_eq!(system.0.maximum_guest_address_width(), 39);
        assert_eq!(system.0.largest_address_width(), Some(AddressWidth::Bits48));
        assert!(!system.0.supports_width(AddressWidth::Bits39));
        assert_eq!(system.0.fault_record_offset(), 0x400);
        assert_eq!(system.0.fault_record_count(), 1);
        assert_eq!(system.0.maximum_address_mask(), 18);
        assert!(system.0.has_page_selective_invalidation() && system.0.has_protected_low_memory());
        assert_eq!(system.1.iotlb_register_offset(), 0x500);
        assert_eq!(system.1.maximum_handle_mask(), 15);
        assert!(!system.1.is_coherent() && system.1.has_interrupt_remapping());
        assert_eq!(validate(system.0, system.1, 0x10, 0x1000), Ok(()));

        let graphics = (
            Capability::from_bits(0x01c0_000c_4066_0462),
            ExtendedCapability::from_bits(0x019e_2ff0_505e),
        );
        assert!(
            graphics.1.has_nested() && graphics.1.has_pasid() && graphics.1.has_page_requests()
        );
        assert_eq!(graphics.1.pasid_bits(), 20);
        assert_eq!(validate(graphics.0, graphics.1, 0x10, 0x1000), Ok(()));
        let features = Features::new(graphics.0, graphics.1, 39);
        for is_left in [
            features.extended.has_nested(),
            features.extended.has_pasid(),
            features.extended.has_page_requests(),
            features.extended.has_extended_accessed(),
            features.extended.has_memory_types(),
            features.capability.has_first_stage_1gib_pages(),
        ] {
            assert!(!is_left);
        }
        assert!(features.extended.has_device_tlb() && features.extended.has_no_write_flag());
    }

    #[test]
    fn widths_follow_from_both_registers_and_the_host() {
        let mut features = Features::new(
            Capability::default()
                .with(CapabilityField::MAXIMUM_GUEST_ADDRESS_WIDTH, 45)
                .with(CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS, 0b00110),
            ExtendedCapability::default(),
            46,
        );
        assert_eq!(features.reserved_address_bits(), 0xffff_c000_0000_0000);
        assert_eq!(features.largest_address_width(), Some(AddressWidth::Bits48));
        assert_eq!(features.second_stage_address_bits(AddressWidth::Bits39), 39);
        assert_eq!(features.second_stage_address_bits(AddressWidth::Bits48), 46);
        features.capability = Capability::default();
        assert_eq!(features.largest_address_width(), None);
        for (width, reserved) in [
            (0, 0xffff_ffff_ffff_f000),
            (12, 0xffff_ffff_ffff_f000),
            (52, 0xfff0_0000_0000_0000),
            (63, 0x8000_0000_0000_0000),
            (64, 0),
            (255, 0),
        ] {
            features.host_address_width = width;
            assert_eq!(features.reserved_address_bits(), reserved, "HAW {width}");
        }
    }

    /// A unit that has every feature, each with all that it needs.
    fn full() -> (Capability, ExtendedCapability) {
        let capability = Capability::from_bits(Capability::DEFINED)
            .with(CapabilityField::DOMAIN_ID_WIDTH, 6)
            .with(CapabilityField::SECOND_STAGE_LARGE_PAGES, 0b0011)
            .with(CapabilityField::FAULT_RECORD_OFFSET, 0x40)
            .with(CapabilityField::FAULT_RECORD_COUNT, 7);
        let extended = ExtendedCapability::from_bits(ExtendedCapability::DEFINED)
            .with(ExtendedCapabilityField::IOTLB_REGISTER_OFFSET, 0x50)
            .with(ExtendedCapabilityField::PASID_SIZE, 19);
        (capability, extended)
    }

    #[test]
    fn nonsense_is_refused_with_its_value() {
        let (capability, extended) = full();
        assert_eq!(validate(capability, extended, 0x60, 0x1000), Ok(()));
        let ones = Capability::from_bits(u64::MAX);
        let extended_ones = ExtendedCapability::from_bits(u64::MAX);
        use CapabilityError as Error;
        use CapabilityField as C;
        use ExtendedCapabilityField as E;
        for (capability, extended, version, error) in [
            (ones, extended, 0x10, Error::AllOnes),
            (capability, extended_ones, 0x10, Error::AllOnes),
            (capability, extended, u32::MAX, Error::AllOnes),
            (capability, extended, 0x0, Error::Version(0)),
            (capability, extended, 0x0f, Error::Version(0x0f)),
            (
                capability.with(C::DOMAIN_ID_WIDTH, 7),
                extended,
                0x10,
                Error::DomainIdWidth { field: 7 },
            ),
            (
                capability.with(C::SECOND_STAGE_LARGE_PAGES, 2),
                extended,
                0x10,
                Error::SecondStageLargePages { field: 2 },
            ),
            (
                capability.with(C::SECOND_STAGE_LARGE_PAGES, 7),
                extended,
                0x10,
                Error::SecondStageLargePages { field: 7 },
            ),
            (
                capability,
                extended.with(E::PASID_SIZE, 20),
                0x10,
                Error::PasidWidth { bits: 21 },
            ),
        ] {
            assert_eq!(validate(capability, extended, version, 0x1000), Err(error));
        }
    }

    #[test]
    fn register_blocks_lie_in_the_window_and_over_nothing_else() {
        let (capability, extended) = full();
        // Offset in bytes, number of records, size of the window, whether that is fine.
        for (offset, count, window_bytes, is_fine) in [
            (0x400, 8, 0x1000, true),
            (0xff0, 1, 0x1000, true),
            (0xff0, 2, 0x1000, false),
            (0x1000, 1, 0x1000, false),
            (0x1000, 1, 0x2000, true),
            (0x3ff0, 256, 0x1_0000, true),
            (0x3ff0, 256, 0x4000, false),
            (0x000, 1, 0x1000, false),
            (0x040, 1, 0x1000, false),
            (0x050, 1, 0x1000, true),
            (0x050, 2, 0x1000, false),
            (0x0e0, 1, 0x1000, false),
            (0x0f0, 1, 0x1000, true),
            // The IOTLB registers are at 0x500.
            (0x4f0, 1, 0x1000, true),
        ] {
            let capability = capability
                .with(CapabilityField::FAULT_RECORD_OFFSET, offset / 16)
                .with(CapabilityField::FAULT_RECORD_COUNT, count - 1);
            let error = CapabilityError::FaultRecords {
                offset: offset as u16,
                count: count as u16,
            };
            let expected = if is_fine { Ok(()) } else { Err(error) };
            let result = validate(capability, extended, 0x10, window_bytes);
            assert_eq!(result, expected, "{offset:#x} {count} {window_bytes:#x}");
        }
        for (offset, window_bytes, is_fine) in [
            (0xf0, 0x1000, true),
            (0xff0, 0x1000, true),
            (0x1000, 0x1000, false),
            (0x3ff0, 0x4000, true),
            (0x20, 0x1000, false),
            // The fault records are from 0x400 to 0x47f.
            (0x3f0, 0x1000, true),
            (0x400, 0x1000, false),
            (0x470, 0x1000, false),
            (0x480, 0x1000, true),
        ] {
            let extended =
                extended.with(ExtendedCapabilityField::IOTLB_REGISTER_OFFSET, offset / 16);
            let error = CapabilityError::IotlbRegisters {
                offset: offset as u16,
            };
            let expected = if is_fine { Ok(()) } else { Err(error) };
            let result = validate(capability, extended, 0x10, window_bytes);
            assert_eq!(result, expected, "{offset:#x} {window_bytes:#x}");
        }
    }

    /// "Needs" of §11.4.2 and §11.4.3.
    const NEEDS: [(&str, &[&str]); 30] = [
        ("DT", &["QI"]),
        ("IR", &["QI"]),
        ("SMTS", &["QI"]),
        ("EIM", &["IR"]),
        ("EIMER", &["EIM"]),
        ("IRREQ", &["IR"]),
        ("NWFS", &["DT"]),
        ("DIT", &["DT"]),
        ("PDS", &["DT"]),
        ("FSTS", &["SMTS"]),
        ("SSTS", &["SMTS"]),
        ("SMPWCS", &["SMTS"]),
        ("MTS", &["SMTS"]),
        ("PASID", &["SMTS"]),
        ("SRS", &["SMTS"]),
        ("RPS", &["SMTS"]),
        ("RPRIVS", &["SRS"]),
        ("PRS", &["DT", "SMTS"]),
        ("SMS", &["PRS"]),
        ("NEST", &["SMTS", "FSTS", "SSTS"]),
        ("EAFS", &["FSTS", "SMPWCS"]),
        ("SSADS", &["SMPWCS"]),
        ("SSIRWS", &["SSTS"]),
        ("HPTS", &["SMTS", "DT"]),
        ("HPT1GPS", &["HPTS"]),
        ("PTRS", &["DT", "PASID"]),
        ("FS1GP", &["FSTS"]),
        ("FS5LP", &["FSTS"]),
        ("PI", &["IR"]),
        ("PMS", &["ECMDS"]),
    ];

    fn is_reported(mnemonic: &str, capability: Capability, extended: ExtendedCapability) -> bool {
        CapabilityField::ALL
            .iter()
            .any(|field| field.mnemonic() == mnemonic && capability.has(*field))
            || ExtendedCapabilityField::ALL
                .iter()
                .any(|field| field.mnemonic() == mnemonic && extended.has(*field))
    }

    #[test]
    fn a_feature_without_what_it_needs_is_named_and_taken_as_absent() {
        let (capability, extended) = full();
        assert_eq!(
            Features::new(capability, extended, 46),
            Features {
                capability,
                extended,
                host_address_width: 46
            }
        );
        let without = |mnemonic: &str| {
            let mut registers = (capability, extended);
            for field in CapabilityField::ALL {
                if field.mnemonic() == mnemonic {
                    registers.0 = capability.with(*field, 0);
                }
            }
            for field in ExtendedCapabilityField::ALL {
                if field.mnemonic() == mnemonic {
                    registers.1 = extended.with(*field, 0);
                }
            }
            registers
        };
        let needed: Vec<&str> = NEEDS.iter().flat_map(|row| row.1).copied().collect();
        for missing in needed {
            let (capability, extended) = without(missing);
            match validate(capability, extended, 0x10, 0x1000) {
                Err(CapabilityError::MissingPrerequisite { feature, requires }) => {
                    assert_eq!(requires, missing);
                    let row = NEEDS.iter().find(|row| row.0 == feature).unwrap();
                    assert!(row.1.contains(&missing), "{feature} {missing}");
                }
                // Without scalable mode its features are left over, not wrong.
                result => assert!(missing == "SMTS" && result == Ok(()), "{missing}"),
            }
            let features = Features::new(capability, extended, 46);
            assert_needs_are_met(&features);
        }
    }

    fn assert_needs_are_met(features: &Features) {
        let has = |mnemonic| is_reported(mnemonic, features.capability, features.extended);
        for (feature, requires) in NEEDS {
            let is_met = requires.iter().all(|needed| has(needed));
            assert!(!has(feature) || is_met, "{feature} in {features:x?}");
        }
    }

    #[test]
    fn random_registers_give_consistent_features_and_bounded_offsets() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let capability = Capability::from_bits(random());
            let extended = ExtendedCapability::from_bits(random() | random());
            let version = random() as u32;
            let window_bytes = (random() as u32 & 0xf_0000) | 0x1000;
            let features = Features::new(capability, extended, random() as u8);
            assert_needs_are_met(&features);
            let again = Features::new(
                features.capability,
                features.extended,
                features.host_address_width,
            );
            assert_eq!(again, features);
            if matches!(
                validate(capability, extended, version, window_bytes),
                Ok(()) | Err(CapabilityError::MissingPrerequisite { .. })
            ) {
                let end = u32::from(capability.fault_record_offset())
                    + 16 * u32::from(capability.fault_record_count());
                assert!(end <= window_bytes);
                let end = u32::from(extended.iotlb_register_offset()) + 16;
                assert!(end <= window_bytes);
            }
        }
    }
}
