//! Register-based invalidation.

use crate::arch::id::{DomainId, SourceId};

use super::PAGE_FIELD;

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
    /// [`function_mask_covers`](crate::arch::descriptor::function_mask_covers).
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
