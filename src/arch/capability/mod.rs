//! What a remapping unit can do: `CAP_REG`, `ECAP_REG` and the host address width (§11.4.2,
//! §11.4.3).

mod features;
#[cfg(test)]
mod tests;
mod validate;

use super::address::{AddressWidth, Iova, PageSize};
use super::id::DomainId;

pub use features::Features;
pub use validate::{CapabilityError, validate};
use validate::{Feature, PREREQUISITES};

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
