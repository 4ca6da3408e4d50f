//! Where each register lies (§11.4).

use super::FAULT_RECORD_BYTES;

/// A 32-bit register, or a 32-bit half of a larger one.
///
/// The offset is always a multiple of 4, and the register ends within
/// [`REGISTER_WINDOW_MAX_BYTES`](super::REGISTER_WINDOW_MAX_BYTES).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Register32(u16);

/// A 64-bit register, or a 64-bit half of a larger one.
///
/// The offset is always a multiple of 8, and the register ends within
/// [`REGISTER_WINDOW_MAX_BYTES`](super::REGISTER_WINDOW_MAX_BYTES).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Register64(u16);

impl Register32 {
    /// Version: minor in bits 3:0, major in 7:4.
    #[doc(alias = "VER_REG")]
    pub const VERSION: Self = Self(0x00);
    /// Global command, write only: [`GlobalCommand`](super::GlobalCommand).
    #[doc(alias = "GCMD_REG")]
    pub const GLOBAL_COMMAND: Self = Self(0x18);
    /// Global status, read only: [`GlobalStatus`](super::GlobalStatus).
    #[doc(alias = "GSTS_REG")]
    pub const GLOBAL_STATUS: Self = Self(0x1c);
    /// Fault status: [`FaultStatus`](super::FaultStatus).
    #[doc(alias = "FSTS_REG")]
    pub const FAULT_STATUS: Self = Self(0x34);
    /// Fault event control: [`EventControl`](super::EventControl).
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
    /// Protected memory enable: [`ProtectedMemoryEnable`](super::ProtectedMemoryEnable).
    #[doc(alias = "PMEN_REG")]
    pub const PROTECTED_MEMORY_ENABLE: Self = Self(0x64);
    /// Protected low memory base.
    #[doc(alias = "PLMBASE_REG")]
    pub const PROTECTED_LOW_MEMORY_BASE: Self = Self(0x68);
    /// Protected low memory limit, inclusive.
    #[doc(alias = "PLMLIMIT_REG")]
    pub const PROTECTED_LOW_MEMORY_LIMIT: Self = Self(0x6c);
    /// Invalidation completion status:
    /// [`InvalidationCompletionStatus`](super::InvalidationCompletionStatus).
    #[doc(alias = "ICS_REG")]
    pub const INVALIDATION_COMPLETION_STATUS: Self = Self(0x9c);
    /// Invalidation event control: [`EventControl`](super::EventControl).
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
    /// Page request status: [`PageRequestStatus`](super::PageRequestStatus).
    #[doc(alias = "PRS_REG")]
    pub const PAGE_REQUEST_STATUS: Self = Self(0xdc);
    /// Page request event control: [`EventControl`](super::EventControl).
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
    /// Capability, read only: [`Capability`](crate::arch::capability::Capability).
    #[doc(alias = "CAP_REG")]
    pub const CAPABILITY: Self = Self(0x08);
    /// Extended capability, read only:
    /// [`ExtendedCapability`](crate::arch::capability::ExtendedCapability).
    #[doc(alias = "ECAP_REG")]
    pub const EXTENDED_CAPABILITY: Self = Self(0x10);
    /// Root table address: [`RootTableAddress`](super::RootTableAddress).
    #[doc(alias = "RTADDR_REG")]
    pub const ROOT_TABLE_ADDRESS: Self = Self(0x20);
    /// Context command, for register-based invalidation: [`ContextCommand`](super::ContextCommand).
    #[doc(alias = "CCMD_REG")]
    pub const CONTEXT_COMMAND: Self = Self(0x28);
    /// Protected high memory base.
    #[doc(alias = "PHMBASE_REG")]
    pub const PROTECTED_HIGH_MEMORY_BASE: Self = Self(0x70);
    /// Protected high memory limit, inclusive.
    #[doc(alias = "PHMLIMIT_REG")]
    pub const PROTECTED_HIGH_MEMORY_LIMIT: Self = Self(0x78);
    /// Invalidation queue head, read only: [`queue_offset`](super::queue_offset).
    #[doc(alias = "IQH_REG")]
    pub const INVALIDATION_QUEUE_HEAD: Self = Self(0x80);
    /// Invalidation queue tail: [`queue_offset`](super::queue_offset).
    #[doc(alias = "IQT_REG")]
    pub const INVALIDATION_QUEUE_TAIL: Self = Self(0x88);
    /// Invalidation queue address: [`InvalidationQueueAddress`](super::InvalidationQueueAddress).
    #[doc(alias = "IQA_REG")]
    pub const INVALIDATION_QUEUE_ADDRESS: Self = Self(0x90);
    /// Invalidation queue error record, read only: [`QueueErrorRecord`](super::QueueErrorRecord).
    #[doc(alias = "IQERCD_REG")]
    pub const INVALIDATION_QUEUE_ERROR_RECORD: Self = Self(0xb0);
    /// Interrupt remapping table address:
    /// [`InterruptRemappingTableAddress`](super::InterruptRemappingTableAddress).
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
    /// multiple of 16 or the record ends beyond
    /// [`REGISTER_WINDOW_MAX_BYTES`](super::REGISTER_WINDOW_MAX_BYTES).
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

    /// The address register of register-based IOTLB invalidation:
    /// [`InvalidateAddress`](super::InvalidateAddress).
    ///
    /// `iotlb_offset` is that of the register pair, in bytes: `ECAP.IRO` times 16. `None` if it is
    /// not a multiple of 16.
    #[doc(alias = "IVA_REG")]
    pub const fn invalidate_address(iotlb_offset: u16) -> Option<Self> {
        Self::in_block(iotlb_offset, 0, 0)
    }

    /// The command register of register-based IOTLB invalidation:
    /// [`IotlbCommand`](super::IotlbCommand); `None` as for
    /// [`invalidate_address`](Self::invalidate_address).
    #[doc(alias = "IOTLB_REG")]
    pub const fn iotlb_invalidate(iotlb_offset: u16) -> Option<Self> {
        Self::in_block(iotlb_offset, 0, 8)
    }

    /// The quadword at `within` of the 16-byte block that starts `skip` bytes behind `base`.
    ///
    /// A 16-byte aligned block whose start fits 16 bits also ends within 64 KiB.
    pub(super) const fn in_block(base: u16, skip: u16, within: u16) -> Option<Self> {
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
