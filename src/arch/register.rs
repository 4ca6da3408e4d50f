//! The register file of one remapping unit: offsets, flags and fields (§11.4).
//!
//! [`Register32`] and [`Register64`] make an access of the wrong width impossible. Status and
//! command flags are sets of bits; every other register is a newtype over its raw value.

use bitflags::bitflags;

use super::address::{Iova, PAGE_SIZE_BYTES, PhysicalAddress};
use super::id::{DomainId, Pasid, SourceId};

/// The largest register window that a [`Register32`] or [`Register64`] can reach, in bytes.
pub const REGISTER_WINDOW_MAX_BYTES: u32 = 1 << 16;

/// The size of one fault recording register, in bytes (§11.4.7.6).
pub const FAULT_RECORD_BYTES: u16 = 16;

/// A 32-bit register, or a 32-bit half of a larger one.
///
/// The offset is always a multiple of 4, and the register ends within
/// [`REGISTER_WINDOW_MAX_BYTES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Register32(u16);

/// A 64-bit register, or a 64-bit half of a larger one.
///
/// The offset is always a multiple of 8, and the register ends within
/// [`REGISTER_WINDOW_MAX_BYTES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Register64(u16);

impl Register32 {
    /// Version: minor in bits 3:0, major in 7:4.
    #[doc(alias = "VER_REG")]
    pub const VERSION: Self = Self(0x00);
    /// Global command, write only: [`GlobalCommand`].
    #[doc(alias = "GCMD_REG")]
    pub const GLOBAL_COMMAND: Self = Self(0x18);
    /// Global status, read only: [`GlobalStatus`].
    #[doc(alias = "GSTS_REG")]
    pub const GLOBAL_STATUS: Self = Self(0x1c);
    /// Fault status: [`FaultStatus`].
    #[doc(alias = "FSTS_REG")]
    pub const FAULT_STATUS: Self = Self(0x34);
    /// Fault event control: [`EventControl`].
    #[doc(alias = "FECTL_REG")]
    pub const FAULT_EVENT_CONTROL: Self = Self(0x38);
    /// Fault event message data.
    #[doc(alias = "FEDATA_REG")]
    pub const FAULT_EVENT_DATA: Self = Self(0x3c);
    /// Fault event message address.
    #[doc(alias = "FEADDR_REG")]
    pub const FAULT_EVENT_ADDRESS: Self = Self(0x40);
    /// Fault event message upper address.
    #[doc(alias = "FEUADDR_REG")]
    pub const FAULT_EVENT_UPPER_ADDRESS: Self = Self(0x44);
    /// Protected memory enable: [`ProtectedMemoryEnable`].
    #[doc(alias = "PMEN_REG")]
    pub const PROTECTED_MEMORY_ENABLE: Self = Self(0x64);
    /// Protected low memory base.
    #[doc(alias = "PLMBASE_REG")]
    pub const PROTECTED_LOW_MEMORY_BASE: Self = Self(0x68);
    /// Protected low memory limit, inclusive.
    #[doc(alias = "PLMLIMIT_REG")]
    pub const PROTECTED_LOW_MEMORY_LIMIT: Self = Self(0x6c);
    /// Invalidation completion status: [`InvalidationCompletionStatus`].
    #[doc(alias = "ICS_REG")]
    pub const INVALIDATION_COMPLETION_STATUS: Self = Self(0x9c);
    /// Invalidation event control: [`EventControl`].
    #[doc(alias = "IECTL_REG")]
    pub const INVALIDATION_EVENT_CONTROL: Self = Self(0xa0);
    /// Invalidation event message data.
    #[doc(alias = "IEDATA_REG")]
    pub const INVALIDATION_EVENT_DATA: Self = Self(0xa4);
    /// Invalidation event message address.
    #[doc(alias = "IEADDR_REG")]
    pub const INVALIDATION_EVENT_ADDRESS: Self = Self(0xa8);
    /// Invalidation event message upper address.
    #[doc(alias = "IEUADDR_REG")]
    pub const INVALIDATION_EVENT_UPPER_ADDRESS: Self = Self(0xac);
    /// Page request status: [`PageRequestStatus`].
    #[doc(alias = "PRS_REG")]
    pub const PAGE_REQUEST_STATUS: Self = Self(0xdc);
    /// Page request event control: [`EventControl`].
    #[doc(alias = "PECTL_REG")]
    pub const PAGE_REQUEST_EVENT_CONTROL: Self = Self(0xe0);
    /// Page request event message data.
    #[doc(alias = "PEDATA_REG")]
    pub const PAGE_REQUEST_EVENT_DATA: Self = Self(0xe4);
    /// Page request event message address.
    #[doc(alias = "PEADDR_REG")]
    pub const PAGE_REQUEST_EVENT_ADDRESS: Self = Self(0xe8);
    /// Page request event message upper address.
    #[doc(alias = "PEUADDR_REG")]
    pub const PAGE_REQUEST_EVENT_UPPER_ADDRESS: Self = Self(0xec);

    /// The last dword of fault record `index`, which holds its F bit: writing bit 31 clears F.
    ///
    /// `record_offset` is that of record 0, in bytes. `None` as for
    /// [`Register64::fault_record_low`].
    #[doc(alias = "FRCD_REG")]
    pub const fn fault_record_dword3(record_offset: u16, index: u8) -> Option<Self> {
        match Register64::fault_record_high(record_offset, index) {
            Some(high) => Some(high.high_dword()),
            None => None,
        }
    }

    /// The offset from the start of the register window, in bytes.
    #[inline]
    pub const fn offset(self) -> u16 {
        self.0
    }
}

impl Register64 {
    /// Capability, read only: [`Capability`](super::capability::Capability).
    #[doc(alias = "CAP_REG")]
    pub const CAPABILITY: Self = Self(0x08);
    /// Extended capability, read only:
    /// [`ExtendedCapability`](super::capability::ExtendedCapability).
    #[doc(alias = "ECAP_REG")]
    pub const EXTENDED_CAPABILITY: Self = Self(0x10);
    /// Root table address: [`RootTableAddress`].
    #[doc(alias = "RTADDR_REG")]
    pub const ROOT_TABLE_ADDRESS: Self = Self(0x20);
    /// Context command, for register-based invalidation: [`ContextCommand`].
    #[doc(alias = "CCMD_REG")]
    pub const CONTEXT_COMMAND: Self = Self(0x28);
    /// Protected high memory base.
    #[doc(alias = "PHMBASE_REG")]
    pub const PROTECTED_HIGH_MEMORY_BASE: Self = Self(0x70);
    /// Protected high memory limit, inclusive.
    #[doc(alias = "PHMLIMIT_REG")]
    pub const PROTECTED_HIGH_MEMORY_LIMIT: Self = Self(0x78);
    /// Invalidation queue head, read only: [`queue_offset`].
    #[doc(alias = "IQH_REG")]
    pub const INVALIDATION_QUEUE_HEAD: Self = Self(0x80);
    /// Invalidation queue tail: [`queue_offset`].
    #[doc(alias = "IQT_REG")]
    pub const INVALIDATION_QUEUE_TAIL: Self = Self(0x88);
    /// Invalidation queue address: [`InvalidationQueueAddress`].
    #[doc(alias = "IQA_REG")]
    pub const INVALIDATION_QUEUE_ADDRESS: Self = Self(0x90);
    /// Invalidation queue error record, read only: [`QueueErrorRecord`].
    #[doc(alias = "IQERCD_REG")]
    pub const INVALIDATION_QUEUE_ERROR_RECORD: Self = Self(0xb0);
    /// Interrupt remapping table address: [`InterruptRemappingTableAddress`].
    #[doc(alias = "IRTA_REG")]
    pub const INTERRUPT_REMAPPING_TABLE_ADDRESS: Self = Self(0xb8);
    /// Page request queue head, byte offset in bits 18:5.
    #[doc(alias = "PQH_REG")]
    pub const PAGE_REQUEST_QUEUE_HEAD: Self = Self(0xc0);
    /// Page request queue tail, byte offset in bits 18:5.
    #[doc(alias = "PQT_REG")]
    pub const PAGE_REQUEST_QUEUE_TAIL: Self = Self(0xc8);
    /// Page request queue address: size in bits 2:0 as for the invalidation queue, base in 63:12.
    #[doc(alias = "PQA_REG")]
    pub const PAGE_REQUEST_QUEUE_ADDRESS: Self = Self(0xd0);

    /// Bits 63:0 of fault record `index`.
    ///
    /// `record_offset` is that of record 0, in bytes: `CAP.FRO` times 16. `None` if it is not a
    /// multiple of 16 or the record ends beyond [`REGISTER_WINDOW_MAX_BYTES`].
    #[doc(alias = "FRCD_REG")]
    pub const fn fault_record_low(record_offset: u16, index: u8) -> Option<Self> {
        Self::in_block(record_offset, index as u16 * FAULT_RECORD_BYTES, 0)
    }

    /// Bits 127:64 of fault record `index`; `None` as for
    /// [`fault_record_low`](Self::fault_record_low).
    #[doc(alias = "FRCD_REG")]
    pub const fn fault_record_high(record_offset: u16, index: u8) -> Option<Self> {
        Self::in_block(record_offset, index as u16 * FAULT_RECORD_BYTES, 8)
    }

    /// The address register of register-based IOTLB invalidation: [`InvalidateAddress`].
    ///
    /// `iotlb_offset` is that of the register pair, in bytes: `ECAP.IRO` times 16. `None` if it is
    /// not a multiple of 16.
    #[doc(alias = "IVA_REG")]
    pub const fn invalidate_address(iotlb_offset: u16) -> Option<Self> {
        Self::in_block(iotlb_offset, 0, 0)
    }

    /// The command register of register-based IOTLB invalidation: [`IotlbCommand`]; `None` as for
    /// [`invalidate_address`](Self::invalidate_address).
    #[doc(alias = "IOTLB_REG")]
    pub const fn iotlb_invalidate(iotlb_offset: u16) -> Option<Self> {
        Self::in_block(iotlb_offset, 0, 8)
    }

    /// The quadword at `within` of the 16-byte block that starts `skip` bytes behind `base`.
    ///
    /// A 16-byte aligned block whose start fits 16 bits also ends within 64 KiB.
    const fn in_block(base: u16, skip: u16, within: u16) -> Option<Self> {
        match base.checked_add(skip) {
            Some(start) if start.is_multiple_of(16) => Some(Self(start | (within & 8))),
            _ => None,
        }
    }

    /// The offset from the start of the register window, in bytes.
    #[inline]
    pub const fn offset(self) -> u16 {
        self.0
    }

    /// The dword with bits 31:0.
    #[inline]
    pub const fn low_dword(self) -> Register32 {
        Register32(self.0)
    }

    /// The dword with bits 63:32.
    #[inline]
    pub const fn high_dword(self) -> Register32 {
        // The offset is a multiple of 8, so that this adds 4.
        Register32(self.0 | 4)
    }
}

bitflags! {
    /// The global command register (§11.4.4.1).
    ///
    /// Each write carries all persistent bits and changes one field.
    #[doc(alias = "GCMD_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct GlobalCommand: u32 {
        /// Translate DMA requests (`TE`).
        #[doc(alias = "TE")]
        const TRANSLATION_ENABLE = 1 << 31;
        /// Take over the root table address register (`SRTP`), one-shot.
        #[doc(alias = "SRTP")]
        const SET_ROOT_TABLE_POINTER = 1 << 30;
        /// Flush the write buffer (`WBF`), one-shot; only where `CAP.RWBF` is set.
        #[doc(alias = "WBF")]
        const WRITE_BUFFER_FLUSH = 1 << 27;
        /// Run the invalidation queue (`QIE`).
        #[doc(alias = "QIE")]
        const QUEUED_INVALIDATION_ENABLE = 1 << 26;
        /// Remap interrupts (`IRE`).
        #[doc(alias = "IRE")]
        const INTERRUPT_REMAPPING_ENABLE = 1 << 25;
        /// Take over the interrupt remapping table address register (`SIRTP`), one-shot.
        #[doc(alias = "SIRTP")]
        const SET_INTERRUPT_REMAPPING_TABLE_POINTER = 1 << 24;
        /// Let compatibility-format interrupts pass (`CFI`).
        #[doc(alias = "CFI")]
        const COMPATIBILITY_FORMAT_INTERRUPT = 1 << 23;
    }
}

impl GlobalCommand {
    /// The commands that do something once and are not kept.
    pub const ONE_SHOT: Self = Self::SET_ROOT_TABLE_POINTER
        .union(Self::WRITE_BUFFER_FLUSH)
        .union(Self::SET_INTERRUPT_REMAPPING_TABLE_POINTER);

    /// The commands that stay in force until a write without them.
    pub const PERSISTENT: Self = Self::TRANSLATION_ENABLE
        .union(Self::QUEUED_INVALIDATION_ENABLE)
        .union(Self::INTERRUPT_REMAPPING_ENABLE)
        .union(Self::COMPATIBILITY_FORMAT_INTERRUPT);
}

bitflags! {
    /// The global status register (§11.4.4.2).
    #[doc(alias = "GSTS_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct GlobalStatus: u32 {
        /// DMA requests are translated (`TES`).
        #[doc(alias = "TES")]
        const TRANSLATION_ENABLED = 1 << 31;
        /// The last root table pointer command is done (`RTPS`).
        #[doc(alias = "RTPS")]
        const ROOT_TABLE_POINTER_SET = 1 << 30;
        /// A write-buffer flush is in progress (`WBFS`).
        #[doc(alias = "WBFS")]
        const WRITE_BUFFER_FLUSH_BUSY = 1 << 27;
        /// The invalidation queue runs (`QIES`).
        #[doc(alias = "QIES")]
        const QUEUED_INVALIDATION_ENABLED = 1 << 26;
        /// Interrupts are remapped (`IRES`).
        #[doc(alias = "IRES")]
        const INTERRUPT_REMAPPING_ENABLED = 1 << 25;
        /// The last interrupt remapping table pointer command is done (`IRTPS`).
        #[doc(alias = "IRTPS")]
        const INTERRUPT_REMAPPING_TABLE_POINTER_SET = 1 << 24;
        /// Compatibility-format interrupts pass (`CFIS`).
        #[doc(alias = "CFIS")]
        const COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED = 1 << 23;
    }
}

impl GlobalStatus {
    /// The persistent commands in force, to be repeated in the next command write.
    ///
    /// Repeating the one-shot bits too would trigger them again (§11.4.4.1).
    #[inline]
    pub const fn persistent(self) -> GlobalCommand {
        GlobalCommand::from_bits_truncate(self.bits()).intersection(GlobalCommand::PERSISTENT)
    }
}

bitflags! {
    /// The flags of the fault status register (§11.4.7.1); see also
    /// [`fault_record_index`](Self::fault_record_index).
    #[doc(alias = "FSTS_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct FaultStatus: u32 {
        /// No record was free, and none is written until this is cleared (`PFO`); write 1 to clear.
        #[doc(alias = "PFO")]
        const FAULT_OVERFLOW = 1 << 0;
        /// Some record has its F bit set (`PPF`), read only.
        #[doc(alias = "PPF")]
        const PRIMARY_PENDING_FAULT = 1 << 1;
        /// The invalidation queue met an error and stands (`IQE`); write 1 to clear.
        #[doc(alias = "IQE")]
        const INVALIDATION_QUEUE_ERROR = 1 << 4;
        /// An unexpected device-TLB completion arrived (`ICE`); write 1 to clear.
        #[doc(alias = "ICE")]
        const INVALIDATION_COMPLETION_ERROR = 1 << 5;
        /// A device-TLB invalidation timed out (`ITE`); write 1 to clear.
        #[doc(alias = "ITE")]
        const INVALIDATION_TIMEOUT_ERROR = 1 << 6;
    }
}

impl FaultStatus {
    /// The index of the record that set [`PRIMARY_PENDING_FAULT`](Self::PRIMARY_PENDING_FAULT)
    /// (`FRI`), out of the register's raw value; meaningless while that flag is clear.
    #[doc(alias = "FRI")]
    #[inline]
    pub const fn fault_record_index(raw: u32) -> u8 {
        (raw >> 8) as u8
    }

    /// The register's raw value: the flags together with the record index (`FRI`).
    #[inline]
    pub const fn with_fault_record_index(self, index: u8) -> u32 {
        Self::from_bits_truncate(self.bits()).bits() | (index as u32) << 8
    }
}

bitflags! {
    /// The control register of the fault, invalidation or page request event (§11.4.7.2).
    #[doc(alias("FECTL_REG", "IECTL_REG", "PECTL_REG"))]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct EventControl: u32 {
        /// Messages are held back (`IM`); set after reset.
        #[doc(alias = "IM")]
        const INTERRUPT_MASK = 1 << 31;
        /// A message is held back or being sent (`IP`), read only.
        #[doc(alias = "IP")]
        const INTERRUPT_PENDING = 1 << 30;
    }
}

bitflags! {
    /// The invalidation completion status register (§11.4.9).
    #[doc(alias = "ICS_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct InvalidationCompletionStatus: u32 {
        /// A wait descriptor that asks for an interrupt is complete (`IWC`); write 1 to clear.
        #[doc(alias = "IWC")]
        const WAIT_COMPLETE = 1 << 0;
    }
}

bitflags! {
    /// The page request status register (§11.4.11).
    #[doc(alias = "PRS_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct PageRequestStatus: u32 {
        /// A page request was queued (`PPR`); write 1 to clear.
        #[doc(alias = "PPR")]
        const PENDING = 1 << 0;
        /// A page request met a full queue (`PRO`); write 1 to clear.
        #[doc(alias = "PRO")]
        const OVERFLOW = 1 << 1;
    }
}

bitflags! {
    /// The protected memory enable register (§11.4.8.1).
    #[doc(alias = "PMEN_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct ProtectedMemoryEnable: u32 {
        /// Block DMA to the protected memory regions (`EPM`).
        #[doc(alias = "EPM")]
        const ENABLE = 1 << 31;
        /// The regions are in force (`PRS`), read only.
        #[doc(alias = "PRS")]
        const STATUS = 1 << 0;
    }
}

/// What the root table address points to (`TTM`, §11.4.5).
#[doc(alias = "TTM")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TranslationTableMode {
    /// 00b: a legacy root table.
    Legacy,
    /// 01b: a scalable-mode root table; needs `ECAP.SMTS`.
    Scalable,
    /// 10b: reserved; every request faults.
    Reserved,
    /// 11b: no table, every request is aborted; needs `ECAP.ADMS`.
    AbortDma,
}

impl TranslationTableMode {
    /// The value of the `TTM` field.
    #[inline]
    pub const fn field(self) -> u64 {
        match self {
            Self::Legacy => 0,
            Self::Scalable => 1,
            Self::Reserved => 2,
            Self::AbortDma => 3,
        }
    }

    /// The mode that the low two bits of `field` name.
    #[inline]
    pub const fn from_field(field: u64) -> Self {
        match field & 3 {
            0 => Self::Legacy,
            1 => Self::Scalable,
            2 => Self::Reserved,
            _ => Self::AbortDma,
        }
    }
}

macro_rules! raw_register {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
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
        }
    };
}

/// The base field of a table or queue address register.
const PAGE_FIELD: u64 = !(PAGE_SIZE_BYTES - 1);

raw_register! {
    /// The root table address register (§11.4.5).
    #[doc(alias = "RTADDR_REG")]
    RootTableAddress
}

impl RootTableAddress {
    /// The reserved bits: 9:8 and 6:0.
    pub const RESERVED: u64 = 0x37f;

    /// The register for the table at `root`, in bytes; bits 11:0 of the address are dropped.
    #[inline]
    pub fn new<A: PhysicalAddress>(root: A, mode: TranslationTableMode) -> Self {
        Self(root.to_u64() & PAGE_FIELD | mode.field() << 10)
    }

    /// The root table's address (`RTA`): in bytes, 4-KiB aligned.
    #[doc(alias = "RTA")]
    #[inline]
    pub fn root<A: PhysicalAddress>(self) -> A {
        A::from_u64(self.0 & PAGE_FIELD)
    }

    /// What the address points to (`TTM`).
    #[inline]
    pub const fn mode(self) -> TranslationTableMode {
        TranslationTableMode::from_field(self.0 >> 10)
    }

    /// Whether second-stage entries have I/O read and write bits of their own (`SSIRWE`); reserved
    /// without `ECAP.SSIRWS`.
    #[doc(alias = "SSIRWE")]
    #[inline]
    pub const fn has_second_stage_io_permissions(self) -> bool {
        self.0 >> 7 & 1 == 1
    }
}

raw_register! {
    /// The interrupt remapping table address register (§11.4.10).
    #[doc(alias = "IRTA_REG")]
    InterruptRemappingTableAddress
}

impl InterruptRemappingTableAddress {
    /// The reserved bits: 10:4.
    pub const RESERVED: u64 = 0x7f0;

    /// The register for a table of 2^(`size_order` + 1) entries at `table`, in bytes; `None` if
    /// `size_order` exceeds 15 or `table` is not 4-KiB aligned.
    #[inline]
    pub fn new<A: PhysicalAddress>(
        table: A,
        size_order: u8,
        extended_interrupt_mode: bool,
    ) -> Option<Self> {
        let table = table.to_u64();
        if size_order > 15 || table & !PAGE_FIELD != 0 {
            return None;
        }
        Some(Self(
            table | (extended_interrupt_mode as u64) << 11 | size_order as u64,
        ))
    }

    /// The table's address (`IRTA`): in bytes, 4-KiB aligned.
    #[inline]
    pub fn table<A: PhysicalAddress>(self) -> A {
        A::from_u64(self.0 & PAGE_FIELD)
    }

    /// The number of entries: 2^(`S` + 1), so 2 to 65536.
    #[inline]
    pub const fn entry_count(self) -> u32 {
        2 << (self.0 & 0xf)
    }

    /// Whether destinations are 32-bit APIC ids (`EIME`).
    #[doc(alias = "EIME")]
    #[inline]
    pub const fn has_extended_interrupt_mode(self) -> bool {
        self.0 >> 11 & 1 == 1
    }
}

/// The width of the descriptors in an invalidation queue (`DW`, §11.4.9.3).
#[doc(alias = "DW")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DescriptorWidth {
    /// 0: 128 bits, for legacy mode only.
    Bits128,
    /// 1: 256 bits.
    Bits256,
}

impl DescriptorWidth {
    /// The size of one descriptor, in bytes.
    #[inline]
    pub const fn len_bytes(self) -> u32 {
        match self {
            Self::Bits128 => 16,
            Self::Bits256 => 32,
        }
    }
}

raw_register! {
    /// The invalidation queue address register (§11.4.9.3).
    #[doc(alias = "IQA_REG")]
    InvalidationQueueAddress
}

impl InvalidationQueueAddress {
    /// The reserved bits: 10:3.
    pub const RESERVED: u64 = 0x7f8;

    /// The largest size order: a queue of 128 pages.
    pub const MAX_SIZE_ORDER: u8 = 7;

    /// The register for a queue of 2^`size_order` pages at `base`, in bytes; `None` if
    /// `size_order` exceeds 7 or `base` is not 4-KiB aligned.
    #[inline]
    pub fn new<A: PhysicalAddress>(
        base: A,
        size_order: u8,
        width: DescriptorWidth,
    ) -> Option<Self> {
        let base = base.to_u64();
        if size_order > Self::MAX_SIZE_ORDER || base & !PAGE_FIELD != 0 {
            return None;
        }
        let width = match width {
            DescriptorWidth::Bits128 => 0,
            DescriptorWidth::Bits256 => 1 << 11,
        };
        Some(Self(base | width | size_order as u64))
    }

    /// The queue's address (`IQA`): in bytes, 4-KiB aligned.
    #[inline]
    pub fn base<A: PhysicalAddress>(self) -> A {
        A::from_u64(self.0 & PAGE_FIELD)
    }

    /// The queue's size: 2^`QS` pages, in bytes.
    #[doc(alias = "QS")]
    #[inline]
    pub const fn size_bytes(self) -> u32 {
        4096 << (self.0 & 7)
    }

    /// The width of the queue's descriptors (`DW`).
    #[inline]
    pub const fn descriptor_width(self) -> DescriptorWidth {
        if self.0 >> 11 & 1 == 0 {
            DescriptorWidth::Bits128
        } else {
            DescriptorWidth::Bits256
        }
    }

    /// The number of descriptors that the queue has slots for; one slot always stays empty.
    #[inline]
    pub const fn descriptor_count(self) -> u32 {
        match self.descriptor_width() {
            DescriptorWidth::Bits128 => self.size_bytes() / 16,
            DescriptorWidth::Bits256 => self.size_bytes() / 32,
        }
    }
}

/// The byte offset into the invalidation queue that the head or tail register names (`QH`, `QT`,
/// bits 18:4, §11.4.9.1): below 512 KiB, a multiple of 16.
#[doc(alias("QH", "QT"))]
#[inline]
pub const fn queue_offset(raw: u64) -> u32 {
    (raw & 0x7_fff0) as u32
}

/// Why the invalidation queue stands (`IQEI`, §11.4.9.9).
#[doc(alias = "IQEI")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum QueueErrorInfo {
    /// 1: the tail is invalid, for instance beyond the queue.
    InvalidTail,
    /// 2: a descriptor could not be read.
    FetchFailed,
    /// 3: the descriptor's type is undefined, of another mode, or of an absent feature.
    InvalidType,
    /// 4: a reserved bit is set in the descriptor.
    ReservedBit,
    /// 5: the descriptor width does not go with the translation table mode.
    InvalidWidth,
    /// 6: the tail is not a multiple of the descriptor width.
    MisalignedTail,
    /// 7: the translation table mode is reserved or not supported.
    InvalidTableMode,
}

impl QueueErrorInfo {
    /// All reasons, by rising code.
    pub const ALL: [Self; 7] = [
        Self::InvalidTail,
        Self::FetchFailed,
        Self::InvalidType,
        Self::ReservedBit,
        Self::InvalidWidth,
        Self::MisalignedTail,
        Self::InvalidTableMode,
    ];

    /// The value of the `IQEI` field.
    #[inline]
    pub const fn code(self) -> u8 {
        match self {
            Self::InvalidTail => 1,
            Self::FetchFailed => 2,
            Self::InvalidType => 3,
            Self::ReservedBit => 4,
            Self::InvalidWidth => 5,
            Self::MisalignedTail => 6,
            Self::InvalidTableMode => 7,
        }
    }

    /// The reason with this code; `None` for 0, which tells nothing, and for undefined codes.
    #[inline]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::InvalidTail),
            2 => Some(Self::FetchFailed),
            3 => Some(Self::InvalidType),
            4 => Some(Self::ReservedBit),
            5 => Some(Self::InvalidWidth),
            6 => Some(Self::MisalignedTail),
            7 => Some(Self::InvalidTableMode),
            _ => None,
        }
    }
}

raw_register! {
    /// The invalidation queue error record register (§11.4.9.9). Units older than Rev 3.1 read 0.
    #[doc(alias = "IQERCD_REG")]
    QueueErrorRecord
}

impl QueueErrorRecord {
    /// The record with these fields; `None` is stored as 0.
    pub const fn new(
        error: Option<QueueErrorInfo>,
        timed_out: Option<SourceId>,
        bad_completion: Option<SourceId>,
    ) -> Self {
        let error = match error {
            Some(error) => error.code() as u64,
            None => 0,
        };
        let timed_out = match timed_out {
            Some(source_id) => source_id.as_u16() as u64,
            None => 0,
        };
        let bad_completion = match bad_completion {
            Some(source_id) => source_id.as_u16() as u64,
            None => 0,
        };
        Self(error | timed_out << 32 | bad_completion << 48)
    }

    /// Why the queue stands (`IQEI`); valid while `IQE` is set. `None`: the unit does not tell.
    #[inline]
    pub const fn error(self) -> Option<QueueErrorInfo> {
        QueueErrorInfo::from_code((self.0 & 0xf) as u8)
    }

    /// A device whose invalidation timed out (`ITESID`); valid while `ITE` is set. `None`: the unit
    /// does not tell.
    #[doc(alias = "ITESID")]
    #[inline]
    pub const fn timed_out_source_id(self) -> Option<SourceId> {
        match (self.0 >> 32) as u16 {
            0 => None,
            source_id => Some(SourceId::from_u16(source_id)),
        }
    }

    /// The sender of an unexpected completion (`ICESID`); valid while `ICE` is set. `None`: the
    /// unit does not tell.
    #[doc(alias = "ICESID")]
    #[inline]
    pub const fn bad_completion_source_id(self) -> Option<SourceId> {
        match (self.0 >> 48) as u16 {
            0 => None,
            source_id => Some(SourceId::from_u16(source_id)),
        }
    }
}

raw_register! {
    /// The context command register of register-based invalidation (§11.4.6).
    #[doc(alias = "CCMD_REG")]
    ContextCommand
}

impl ContextCommand {
    /// Whether an invalidation is asked for or in progress (`ICC`).
    #[doc(alias = "ICC")]
    #[inline]
    pub const fn is_requested(self) -> bool {
        self.0 >> 63 == 1
    }

    /// The granularity asked for (`CIRG`): 1 global, 2 domain, 3 device, 0 reserved.
    #[doc(alias = "CIRG")]
    #[inline]
    pub const fn requested_granularity(self) -> u8 {
        (self.0 >> 61 & 3) as u8
    }

    /// The granularity done (`CAIG`), coded as the one asked for; 0: the request was refused.
    #[doc(alias = "CAIG")]
    #[inline]
    pub const fn actual_granularity(self) -> u8 {
        (self.0 >> 59 & 3) as u8
    }

    /// The function mask (`FM`), see
    /// [`function_mask_covers`](super::descriptor::function_mask_covers).
    #[doc(alias = "FM")]
    #[inline]
    pub const fn function_mask(self) -> u8 {
        (self.0 >> 32 & 3) as u8
    }

    /// The device (`SID`).
    #[inline]
    pub const fn source_id(self) -> SourceId {
        SourceId::from_u16((self.0 >> 16) as u16)
    }

    /// The domain-id (`DID`).
    #[inline]
    pub const fn domain_id(self) -> DomainId {
        DomainId::new(self.0 as u16)
    }

    /// The value that reports completion at `granularity`, 0 for a refusal.
    #[inline]
    pub const fn completed(self, granularity: u8) -> Self {
        Self(self.0 & !(1 << 63 | 3 << 59) | (granularity as u64 & 3) << 59)
    }
}

raw_register! {
    /// The IOTLB invalidate register of register-based invalidation (§11.4.6).
    #[doc(alias = "IOTLB_REG")]
    IotlbCommand
}

impl IotlbCommand {
    /// Whether an invalidation is asked for or in progress (`IVT`).
    #[doc(alias = "IVT")]
    #[inline]
    pub const fn is_requested(self) -> bool {
        self.0 >> 63 == 1
    }

    /// The granularity asked for (`IIRG`): 1 global, 2 domain, 3 page in domain, 0 reserved.
    #[doc(alias = "IIRG")]
    #[inline]
    pub const fn requested_granularity(self) -> u8 {
        (self.0 >> 60 & 3) as u8
    }

    /// The granularity done (`IAIG`), coded as the one asked for; 0: the request was refused.
    #[doc(alias = "IAIG")]
    #[inline]
    pub const fn actual_granularity(self) -> u8 {
        (self.0 >> 57 & 3) as u8
    }

    /// Whether reads are drained first (`DR`).
    #[inline]
    pub const fn drains_reads(self) -> bool {
        self.0 >> 49 & 1 == 1
    }

    /// Whether writes are drained first (`DW`).
    #[inline]
    pub const fn drains_writes(self) -> bool {
        self.0 >> 48 & 1 == 1
    }

    /// The domain-id (`DID`).
    #[inline]
    pub const fn domain_id(self) -> DomainId {
        DomainId::new((self.0 >> 32) as u16)
    }

    /// The value that reports completion at `granularity`, 0 for a refusal.
    #[inline]
    pub const fn completed(self, granularity: u8) -> Self {
        Self(self.0 & !(1 << 63 | 3 << 57) | (granularity as u64 & 3) << 57)
    }
}

raw_register! {
    /// The invalidate address register of register-based invalidation (§11.4.6).
    #[doc(alias = "IVA_REG")]
    InvalidateAddress
}

impl InvalidateAddress {
    /// The first page (`ADDR`): in bytes, 4-KiB aligned.
    #[inline]
    pub const fn address(self) -> u64 {
        self.0 & PAGE_FIELD
    }

    /// Whether only leaf entries were changed (`IH`).
    #[doc(alias = "IH")]
    #[inline]
    pub const fn leaf_hint(self) -> bool {
        self.0 >> 6 & 1 == 1
    }

    /// The binary order of the number of pages (`AM`).
    #[doc(alias = "AM")]
    #[inline]
    pub const fn address_mask(self) -> u8 {
        (self.0 & 0x3f) as u8
    }
}

/// What a faulting request wanted (`T1` and `T2`, §11.4.7.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RequestType {
    /// T1=0, T2=0.
    Write,
    /// T1=1, T2=0.
    Read,
    /// T1=0, T2=1.
    PageRequest,
    /// T1=1, T2=1: an atomic operation.
    Atomic,
}

/// The address type of a faulting request (`AT`, §11.4.7.6).
#[doc(alias = "AT")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AddressType {
    /// 00b: a DMA request to be translated.
    Untranslated,
    /// 01b: an ATS translation request.
    TranslationRequest,
    /// 10b: a DMA request with an address that ATS translated before.
    Translated,
    /// 11b.
    Reserved,
}

impl AddressType {
    /// The value of the `AT` field.
    #[inline]
    pub const fn field(self) -> u64 {
        match self {
            Self::Untranslated => 0,
            Self::TranslationRequest => 1,
            Self::Translated => 2,
            Self::Reserved => 3,
        }
    }

    /// The address type that the low two bits of `field` name.
    #[inline]
    pub const fn from_field(field: u64) -> Self {
        match field & 3 {
            0 => Self::Untranslated,
            1 => Self::TranslationRequest,
            2 => Self::Translated,
            _ => Self::Reserved,
        }
    }
}

/// What a fault record tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FaultInfo {
    /// The requester.
    pub source_id: SourceId,
    /// The PASID, if the request carried one.
    pub pasid: Option<Pasid>,
    /// The fault reason, as [`FaultReason::code`](super::fault::FaultReason::code) gives it.
    pub reason: u8,
    /// The address as the device sent it, in bytes; a record holds bits 63:12.
    pub address: Iova,
    /// What the request wanted.
    pub request: RequestType,
    /// Supervisor privilege was asked for; recorded with a PASID only.
    pub privileged: bool,
    /// Execution was asked for; recorded with a PASID, for reads only.
    pub execute: bool,
    /// The address type.
    pub address_type: AddressType,
}

impl FaultInfo {
    /// A fault of interrupt remapping, by the interrupt's index.
    pub const fn interrupt(source_id: SourceId, reason: u8, index: u16) -> Self {
        Self {
            source_id,
            pasid: None,
            reason,
            address: Iova::new((index as u64) << 48),
            request: RequestType::Write,
            privileged: false,
            execute: false,
            address_type: AddressType::Untranslated,
        }
    }
}

/// One fault recording register (§11.4.7.6).
///
/// Any bit pattern is a value of this type; what it says counts while
/// [`is_valid`](Self::is_valid).
#[doc(alias = "FRCD_REG")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FaultRecord {
    /// Bits 63:0.
    pub low: u64,
    /// Bits 127:64.
    pub high: u64,
}

impl FaultRecord {
    /// A valid record (F=1) of `info`.
    pub const fn new(info: FaultInfo) -> Self {
        let (t1, t2) = match info.request {
            RequestType::Write => (0, 0),
            RequestType::Read => (1, 0),
            RequestType::PageRequest => (0, 1),
            RequestType::Atomic => (1, 1),
        };
        let mut high = info.source_id.as_u16() as u64
            | t2 << 28
            | (info.reason as u64) << 32
            | info.address_type.field() << 60
            | t1 << 62
            | 1 << 63;
        if let Some(pasid) = info.pasid {
            let is_execute = info.execute && matches!(info.request, RequestType::Read);
            high |= (info.privileged as u64) << 29
                | (is_execute as u64) << 30
                | 1 << 31
                | (pasid.as_u32() as u64) << 40;
        }
        Self {
            low: info.address.as_u64() & PAGE_FIELD,
            high,
        }
    }

    /// Whether the record holds a fault (`F`).
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.high >> 63 == 1
    }

    /// The record without its F bit.
    #[inline]
    pub const fn cleared(self) -> Self {
        Self {
            low: self.low,
            high: self.high & !(1 << 63),
        }
    }

    /// The requester (`SID`).
    #[doc(alias = "SID")]
    #[inline]
    pub const fn source_id(self) -> SourceId {
        SourceId::from_u16(self.high as u16)
    }

    /// The PASID (`PV`), if the request carried one (`PP`).
    #[doc(alias("PV", "PP"))]
    #[inline]
    pub const fn pasid(self) -> Option<Pasid> {
        if self.high >> 31 & 1 == 1 {
            Some(Pasid::from_field(self.high >> 40))
        } else {
            None
        }
    }

    /// The fault reason (`FR`), for
    /// [`FaultReason::from_code`](super::fault::FaultReason::from_code).
    #[doc(alias = "FR")]
    #[inline]
    pub const fn reason_code(self) -> u8 {
        (self.high >> 32) as u8
    }

    /// The page of a faulting DMA request, as the device sent it (`FI`): in bytes, 4-KiB aligned.
    #[doc(alias = "FI")]
    #[inline]
    pub const fn address(self) -> Iova {
        Iova::new(self.low & PAGE_FIELD)
    }

    /// The index of a faulting interrupt request (`FI` 63:48).
    #[inline]
    pub const fn interrupt_index(self) -> u16 {
        (self.low >> 48) as u16
    }

    /// What the request wanted (`T1`, `T2`).
    #[doc(alias("T1", "T2"))]
    #[inline]
    pub const fn request(self) -> RequestType {
        match (self.high >> 62 & 1, self.high >> 28 & 1) {
            (0, 0) => RequestType::Write,
            (0, _) => RequestType::PageRequest,
            (_, 0) => RequestType::Read,
            (_, _) => RequestType::Atomic,
        }
    }

    /// Whether supervisor privilege was asked for (`PRIV`); meaningful with a PASID only.
    #[doc(alias = "PRIV")]
    #[inline]
    pub const fn is_privileged(self) -> bool {
        self.high >> 29 & 1 == 1
    }

    /// Whether execution was asked for (`EXE`); meaningful for reads with a PASID only.
    #[doc(alias = "EXE")]
    #[inline]
    pub const fn is_execute(self) -> bool {
        self.high >> 30 & 1 == 1
    }

    /// The address type (`AT`).
    #[inline]
    pub const fn address_type(self) -> AddressType {
        AddressType::from_field(self.high >> 60)
    }

    /// All fields at once, valid or not.
    pub const fn info(self) -> FaultInfo {
        FaultInfo {
            source_id: self.source_id(),
            pasid: self.pasid(),
            reason: self.reason_code(),
            address: self.address(),
            request: self.request(),
            privileged: self.is_privileged(),
            execute: self.is_execute(),
            address_type: self.address_type(),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::arch::address::{Gpa, Hpa};
    use std::vec::Vec;

    /// One row per field: mnemonic, highest and lowest bit, getter.
    type Field<T> = (&'static str, u32, u32, fn(T) -> u64);

    /// Sets one bit at a time: a getter shows it at its place in the field, or not at all.
    fn assert_fields<T>(fields: &[Field<T>], bits: u32, with_only: fn(u32) -> T) {
        for &(name, high, low, get) in fields {
            for bit in 0..bits {
                let expected = if (low..=high).contains(&bit) {
                    1 << (bit - low)
                } else {
                    0
                };
                assert_eq!(get(with_only(bit)), expected, "{name}, bit {bit}");
            }
        }
    }

    #[test]
    fn registers_lie_where_the_register_map_puts_them() {
        // §11.4
        for (register, offset) in [
            (Register32::VERSION, 0x000),
            (Register32::GLOBAL_COMMAND, 0x018),
            (Register32::GLOBAL_STATUS, 0x01c),
            (Register32::FAULT_STATUS, 0x034),
            (Register32::FAULT_EVENT_CONTROL, 0x038),
            (Register32::FAULT_EVENT_DATA, 0x03c),
            (Register32::FAULT_EVENT_ADDRESS, 0x040),
            (Register32::FAULT_EVENT_UPPER_ADDRESS, 0x044),
            (Register32::PROTECTED_MEMORY_ENABLE, 0x064),
            (Register32::PROTECTED_LOW_MEMORY_BASE, 0x068),
            (Register32::PROTECTED_LOW_MEMORY_LIMIT, 0x06c),
            (Register32::INVALIDATION_COMPLETION_STATUS, 0x09c),
            (Register32::INVALIDATION_EVENT_CONTROL, 0x0a0),
            (Register32::INVALIDATION_EVENT_DATA, 0x0a4),
            (Register32::INVALIDATION_EVENT_ADDRESS, 0x0a8),
            (Register32::INVALIDATION_EVENT_UPPER_ADDRESS, 0x0ac),
            (Register32::PAGE_REQUEST_STATUS, 0x0dc),
            (Register32::PAGE_REQUEST_EVENT_CONTROL, 0x0e0),
            (Register32::PAGE_REQUEST_EVENT_DATA, 0x0e4),
            (Register32::PAGE_REQUEST_EVENT_ADDRESS, 0x0e8),
            (Register32::PAGE_REQUEST_EVENT_UPPER_ADDRESS, 0x0ec),
        ] {
            assert_eq!(register.offset(), offset);
            assert_eq!(offset % 4, 0);
        }
        for (register, offset) in [
            (Register64::CAPABILITY, 0x008),
            (Register64::EXTENDED_CAPABILITY, 0x010),
            (Register64::ROOT_TABLE_ADDRESS, 0x020),
            (Register64::CONTEXT_COMMAND, 0x028),
            (Register64::PROTECTED_HIGH_MEMORY_BASE, 0x070),
            (Register64::PROTECTED_HIGH_MEMORY_LIMIT, 0x078),
            (Register64::INVALIDATION_QUEUE_HEAD, 0x080),
            (Register64::INVALIDATION_QUEUE_TAIL, 0x088),
            (Register64::INVALIDATION_QUEUE_ADDRESS, 0x090),
            (Register64::INVALIDATION_QUEUE_ERROR_RECORD, 0x0b0),
            (Register64::INTERRUPT_REMAPPING_TABLE_ADDRESS, 0x0b8),
            (Register64::PAGE_REQUEST_QUEUE_HEAD, 0x0c0),
            (Register64::PAGE_REQUEST_QUEUE_TAIL, 0x0c8),
            (Register64::PAGE_REQUEST_QUEUE_ADDRESS, 0x0d0),
        ] {
            assert_eq!(register.offset(), offset);
            assert_eq!(register.low_dword().offset(), offset);
            assert_eq!(register.high_dword().offset(), offset + 4);
            assert_eq!(offset % 8, 0);
        }
    }

    #[test]
    fn run_time_offsets_are_aligned_and_end_within_the_window_or_are_refused() {
        for base in 0..=u16::MAX {
            for index in [0, 1, 7, 0xfe, 0xff] {
                let start = u32::from(base) + 16 * u32::from(index);
                let is_legal = base % 16 == 0 && start + 16 <= REGISTER_WINDOW_MAX_BYTES;
                let expected = |within: u32| is_legal.then_some(start + within);
                let low = Register64::fault_record_low(base, index);
                let high = Register64::fault_record_high(base, index);
                let last = Register32::fault_record_dword3(base, index);
                assert_eq!(low.map(|r| u32::from(r.offset())), expected(0));
                assert_eq!(high.map(|r| u32::from(r.offset())), expected(8));
                assert_eq!(last.map(|r| u32::from(r.offset())), expected(12));
            }
            let expected = |within: u16| (base % 16 == 0).then_some(base | within);
            let address = Register64::invalidate_address(base).map(Register64::offset);
            let command = Register64::iotlb_invalidate(base).map(Register64::offset);
            assert_eq!(address, expected(0));
            assert_eq!(command, expected(8));
        }
    }

    #[test]
    fn flags_have_the_bits_of_the_specification() {
        type Rows<'a> = &'a [(u32, u32)];
        let command: Rows = &[
            (GlobalCommand::TRANSLATION_ENABLE.bits(), 31),
            (GlobalCommand::SET_ROOT_TABLE_POINTER.bits(), 30),
            (GlobalCommand::WRITE_BUFFER_FLUSH.bits(), 27),
            (GlobalCommand::QUEUED_INVALIDATION_ENABLE.bits(), 26),
            (GlobalCommand::INTERRUPT_REMAPPING_ENABLE.bits(), 25),
            (
                GlobalCommand::SET_INTERRUPT_REMAPPING_TABLE_POINTER.bits(),
                24,
            ),
            (GlobalCommand::COMPATIBILITY_FORMAT_INTERRUPT.bits(), 23),
        ];
        let status: Rows = &[
            (GlobalStatus::TRANSLATION_ENABLED.bits(), 31),
            (GlobalStatus::ROOT_TABLE_POINTER_SET.bits(), 30),
            (GlobalStatus::WRITE_BUFFER_FLUSH_BUSY.bits(), 27),
            (GlobalStatus::QUEUED_INVALIDATION_ENABLED.bits(), 26),
            (GlobalStatus::INTERRUPT_REMAPPING_ENABLED.bits(), 25),
            (
                GlobalStatus::INTERRUPT_REMAPPING_TABLE_POINTER_SET.bits(),
                24,
            ),
            (
                GlobalStatus::COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED.bits(),
                23,
            ),
        ];
        let fault: Rows = &[
            (FaultStatus::FAULT_OVERFLOW.bits(), 0),
            (FaultStatus::PRIMARY_PENDING_FAULT.bits(), 1),
            (FaultStatus::INVALIDATION_QUEUE_ERROR.bits(), 4),
            (FaultStatus::INVALIDATION_COMPLETION_ERROR.bits(), 5),
            (FaultStatus::INVALIDATION_TIMEOUT_ERROR.bits(), 6),
        ];
        let others: Rows = &[
            (EventControl::INTERRUPT_MASK.bits(), 31),
            (EventControl::INTERRUPT_PENDING.bits(), 30),
            (InvalidationCompletionStatus::WAIT_COMPLETE.bits(), 0),
            (PageRequestStatus::PENDING.bits(), 0),
            (PageRequestStatus::OVERFLOW.bits(), 1),
            (ProtectedMemoryEnable::ENABLE.bits(), 31),
            (ProtectedMemoryEnable::STATUS.bits(), 0),
        ];
        for &(bits, bit) in [command, status, fault, others].concat().iter() {
            assert_eq!(bits, 1 << bit);
        }
        let union = |rows: Rows| rows.iter().fold(0, |all, row| all | row.0);
        assert_eq!(GlobalCommand::all().bits(), union(command));
        assert_eq!(GlobalStatus::all().bits(), union(status));
        assert_eq!(FaultStatus::all().bits(), union(fault));
    }

    #[test]
    fn only_persistent_commands_are_repeated_from_the_status() {
        // §11.4.4.1: software keeps status bits under this mask.
        for bit in 0..32 {
            let status = GlobalStatus::from_bits_retain(1 << bit);
            let expected = if [31, 26, 25, 23].contains(&bit) {
                1 << bit
            } else {
                0
            };
            assert_eq!(status.persistent().bits(), expected, "bit {bit}");
            assert_eq!(expected & 0x96ff_ffff, expected);
        }
        assert!(!GlobalCommand::ONE_SHOT.intersects(GlobalCommand::PERSISTENT));
        assert_eq!(
            GlobalCommand::ONE_SHOT | GlobalCommand::PERSISTENT,
            GlobalCommand::all()
        );
    }

    #[test]
    fn fault_status_carries_the_record_index_in_bits_15_to_8() {
        for bit in 0..32 {
            let expected = if (8..16).contains(&bit) {
                1 << (bit - 8)
            } else {
                0
            };
            assert_eq!(FaultStatus::fault_record_index(1 << bit), expected);
        }
        let raw = FaultStatus::PRIMARY_PENDING_FAULT.with_fault_record_index(0xa5);
        assert_eq!(raw, 0xa502);
        assert_eq!(
            FaultStatus::from_bits_retain(u32::MAX).with_fault_record_index(0),
            0x73
        );
    }

    #[test]
    fn each_getter_reads_its_own_bits_and_no_others() {
        assert_fields::<RootTableAddress>(
            &[
                ("RTA", 63, 12, |r| r.root::<Hpa>().as_u64() >> 12),
                ("TTM", 11, 10, |r| r.mode().field()),
                ("SSIRWE", 7, 7, |r| {
                    r.has_second_stage_io_permissions().into()
                }),
            ],
            64,
            |bit| RootTableAddress::from_bits(1 << bit),
        );
        assert_fields::<InterruptRemappingTableAddress>(
            &[
                ("IRTA", 63, 12, |r| r.table::<Hpa>().as_u64() >> 12),
                ("EIME", 11, 11, |r| r.has_extended_interrupt_mode().into()),
                ("S", 3, 0, |r| r.entry_count().trailing_zeros() as u64 - 1),
            ],
            64,
            |bit| InterruptRemappingTableAddress::from_bits(1 << bit),
        );
        assert_fields::<InvalidationQueueAddress>(
            &[
                ("IQA", 63, 12, |r| r.base::<Gpa>().as_u64() >> 12),
                ("DW", 11, 11, |r| {
                    (r.descriptor_width() == DescriptorWidth::Bits256).into()
                }),
                ("QS", 2, 0, |r| {
                    (r.size_bytes() / 4096).trailing_zeros().into()
                }),
            ],
            64,
            |bit| InvalidationQueueAddress::from_bits(1 << bit),
        );
        assert_fields::<QueueErrorRecord>(
            &[
                ("ITESID", 47, 32, |r| {
                    r.timed_out_source_id().map_or(0, |id| id.as_u16().into())
                }),
                ("ICESID", 63, 48, |r| {
                    r.bad_completion_source_id()
                        .map_or(0, |id| id.as_u16().into())
                }),
            ],
            64,
            |bit| QueueErrorRecord::from_bits(1 << bit),
        );
        assert_fields::<ContextCommand>(
            &[
                ("ICC", 63, 63, |r| r.is_requested().into()),
                ("CIRG", 62, 61, |r| r.requested_granularity().into()),
                ("CAIG", 60, 59, |r| r.actual_granularity().into()),
                ("FM", 33, 32, |r| r.function_mask().into()),
                ("SID", 31, 16, |r| r.source_id().as_u16().into()),
                ("DID", 15, 0, |r| r.domain_id().as_u16().into()),
            ],
            64,
            |bit| ContextCommand::from_bits(1 << bit),
        );
        assert_fields::<IotlbCommand>(
            &[
                ("IVT", 63, 63, |r| r.is_requested().into()),
                ("IIRG", 61, 60, |r| r.requested_granularity().into()),
                ("IAIG", 58, 57, |r| r.actual_granularity().into()),
                ("DR", 49, 49, |r| r.drains_reads().into()),
                ("DW", 48, 48, |r| r.drains_writes().into()),
                ("DID", 47, 32, |r| r.domain_id().as_u16().into()),
            ],
            64,
            |bit| IotlbCommand::from_bits(1 << bit),
        );
        assert_fields::<InvalidateAddress>(
            &[
                ("ADDR", 63, 12, |r| r.address() >> 12),
                ("IH", 6, 6, |r| r.leaf_hint().into()),
                ("AM", 5, 0, |r| r.address_mask().into()),
            ],
            64,
            |bit| InvalidateAddress::from_bits(1 << bit),
        );
        // Head and tail: bits 18:4 hold the offset in units of 16 bytes.
        assert_fields::<u64>(
            &[("QH, QT", 18, 4, |raw| u64::from(queue_offset(raw)) / 16)],
            64,
            |bit| 1 << bit,
        );
    }

    #[test]
    fn each_fault_record_getter_reads_its_own_bits_and_no_others() {
        let with_only = |bit: u32| {
            let bits = 1_u128 << bit;
            FaultRecord {
                low: bits as u64,
                high: (bits >> 64) as u64,
            }
        };
        assert_fields::<FaultRecord>(
            &[
                // §11.4.7.6
                ("FI", 63, 12, |r| r.address().as_u64() >> 12),
                ("FI, interrupt", 63, 48, |r| r.interrupt_index().into()),
                ("SID", 79, 64, |r| r.source_id().as_u16().into()),
                ("T2", 92, 92, |r| {
                    matches!(r.request(), RequestType::PageRequest).into()
                }),
                ("PRIV", 93, 93, |r| r.is_privileged().into()),
                ("EXE", 94, 94, |r| r.is_execute().into()),
                ("PP", 95, 95, |r| r.pasid().is_some().into()),
                ("FR", 103, 96, |r| r.reason_code().into()),
                ("AT", 125, 124, |r| r.address_type().field()),
                ("T1", 126, 126, |r| {
                    matches!(r.request(), RequestType::Read).into()
                }),
                ("F", 127, 127, |r| r.is_valid().into()),
            ],
            128,
            with_only,
        );
        // PV counts together with PP only.
        for bit in (0..128).filter(|&bit| bit != 95) {
            let mut record = with_only(bit);
            record.high |= 1 << (95 - 64);
            let expected = if (104..=123).contains(&bit) {
                1 << (bit - 104)
            } else {
                0
            };
            assert_eq!(record.pasid().map(Pasid::as_u32), Some(expected));
            assert_eq!(with_only(bit).pasid(), None);
        }
    }

    #[test]
    fn fault_records_match_golden_values_and_give_back_what_was_recorded() {
        let read = FaultInfo {
            source_id: SourceId::from_u16(0x0310),
            pasid: Pasid::new(0x12345),
            reason: 0x71,
            address: Iova::new(0x7fff_1234_5678),
            request: RequestType::Read,
            privileged: true,
            execute: true,
            address_type: AddressType::Translated,
        };
        let plain = FaultInfo {
            source_id: SourceId::from_u16(0xffff),
            pasid: None,
            reason: 0x05,
            request: RequestType::Write,
            privileged: false,
            execute: false,
            address_type: AddressType::Untranslated,
            ..read
        };
        // High quadword: F 63, T1 62, AT 61:60, PV 59:40, FR 39:32, PP 31, EXE 30, PRIV 29, T2 28.
        for (info, high) in [
            (read, 0xe123_4571_e000_0310_u64),
            (plain, 0x8000_0005_0000_ffff),
            (
                FaultInfo {
                    request: RequestType::PageRequest,
                    ..plain
                },
                0x8000_0005_1000_ffff,
            ),
            (
                FaultInfo {
                    request: RequestType::Atomic,
                    ..plain
                },
                0xc000_0005_1000_ffff,
            ),
            (
                FaultInfo {
                    address_type: AddressType::TranslationRequest,
                    ..plain
                },
                0x9000_0005_0000_ffff,
            ),
        ] {
            let record = FaultRecord::new(info);
            assert_eq!(record.high, high, "{info:?}");
            assert_eq!(record.low, 0x7fff_1234_5000);
            assert!(record.is_valid() && !record.cleared().is_valid());
            assert_eq!(record.cleared().info(), record.info());
            let page = Iova::new(record.low);
            assert_eq!(
                record.info(),
                FaultInfo {
                    address: page,
                    ..info
                }
            );
        }
    }

    #[test]
    fn a_fault_record_holds_privilege_and_execute_only_where_they_are_valid() {
        let info = FaultInfo {
            privileged: true,
            execute: true,
            ..FaultInfo::interrupt(SourceId::from_u16(8), 0x22, 0xbeef)
        };
        let record = FaultRecord::new(info);
        assert_eq!(record.interrupt_index(), 0xbeef);
        assert_eq!(record.low, 0xbeef_0000_0000_0000);
        assert!(!record.is_privileged() && !record.is_execute());

        let write = FaultInfo {
            pasid: Some(Pasid::ZERO),
            ..info
        };
        let record = FaultRecord::new(write);
        assert!(record.is_privileged() && !record.is_execute());
        assert_eq!(record.pasid(), Some(Pasid::ZERO));
    }

    #[test]
    fn table_modes_and_queue_errors_are_coded_as_specified() {
        for (mode, field) in [
            (TranslationTableMode::Legacy, 0b00),
            (TranslationTableMode::Scalable, 0b01),
            (TranslationTableMode::Reserved, 0b10),
            (TranslationTableMode::AbortDma, 0b11),
        ] {
            assert_eq!(mode.field(), field);
            assert_eq!(TranslationTableMode::from_field(field | 4), mode);
            let register = RootTableAddress::new(Gpa::new(0x1234_5fff), mode);
            assert_eq!(register.bits(), 0x1234_5000 | field << 10);
            assert_eq!(register.bits() & RootTableAddress::RESERVED, 0);
        }
        for code in 0..=u8::MAX {
            let error = QueueErrorInfo::from_code(code);
            assert_eq!(error.is_some(), (1..=7).contains(&code));
            assert!(error.is_none_or(|error| error.code() == code));
            let record = QueueErrorRecord::from_bits(0xffff_ffff_ffff_fff0 | u64::from(code & 0xf));
            assert_eq!(record.error(), QueueErrorInfo::from_code(code & 0xf));
        }
        let codes: Vec<u8> = QueueErrorInfo::ALL.iter().map(|e| e.code()).collect();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7]);
        let record = QueueErrorRecord::new(
            Some(QueueErrorInfo::ReservedBit),
            Some(SourceId::from_u16(0x1234)),
            Some(SourceId::from_u16(0x5678)),
        );
        assert_eq!(record.bits(), 0x5678_1234_0000_0004);
        assert_eq!(QueueErrorRecord::new(None, None, None).bits(), 0);
    }

    #[test]
    fn queue_size_follows_from_order_and_width() {
        for order in 0..=7 {
            for (width, count, dw) in [
                (DescriptorWidth::Bits128, 1 << (order + 8), 0),
                (DescriptorWidth::Bits256, 1 << (order + 7), 0x800),
            ] {
                let register =
                    InvalidationQueueAddress::new(Hpa::new(0xabc_d000), order, width).unwrap();
                assert_eq!(register.bits(), 0xabc_d000 | dw | u64::from(order));
                assert_eq!(register.bits() & InvalidationQueueAddress::RESERVED, 0);
                assert_eq!(register.descriptor_width(), width);
                assert_eq!(register.descriptor_count(), count);
                assert_eq!(register.size_bytes(), 4096 << order);
                assert_eq!(count * width.len_bytes(), register.size_bytes());
            }
        }
        for (base, order) in [(0x1000, 8), (0x1000, 0xff), (0x1800, 0), (0x1001, 0)] {
            let width = DescriptorWidth::Bits256;
            assert_eq!(
                InvalidationQueueAddress::new(Hpa::new(base), order, width),
                None
            );
        }
    }

    #[test]
    fn interrupt_table_size_follows_from_order() {
        for order in 0..=15 {
            let register =
                InterruptRemappingTableAddress::new(Hpa::new(0x7000), order, true).unwrap();
            assert_eq!(register.bits(), 0x7800 | u64::from(order));
            assert_eq!(register.entry_count(), 1 << (order + 1));
        }
        for (table, order) in [(0x7000, 16), (0x7010, 0)] {
            assert_eq!(
                InterruptRemappingTableAddress::new(Hpa::new(table), order, false),
                None
            );
        }
    }

    #[test]
    fn register_based_invalidation_completes_with_the_granularity_done() {
        let context = ContextCommand::from_bits(u64::MAX).completed(1);
        assert!(!context.is_requested());
        assert_eq!(context.actual_granularity(), 1);
        assert_eq!(context.bits(), 0x6fff_ffff_ffff_ffff);
        let iotlb = IotlbCommand::from_bits(u64::MAX).completed(0);
        assert_eq!(iotlb.bits(), 0x79ff_ffff_ffff_ffff);
        assert_eq!(iotlb.actual_granularity(), 0);
    }
}
