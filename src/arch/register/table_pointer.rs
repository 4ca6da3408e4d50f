//! Registers that point to tables: root table and interrupt remapping table.

use crate::arch::address::PhysicalAddress;

use super::PAGE_FIELD;

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
