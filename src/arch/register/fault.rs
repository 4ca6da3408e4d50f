//! Fault records (§11.4.14).

use crate::arch::address::Iova;
use crate::arch::id::{Pasid, SourceId};

use super::PAGE_FIELD;

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
    /// The fault reason, as [`FaultReason::code`](crate::arch::fault::FaultReason::code) gives it.
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
    /// [`FaultReason::from_code`](crate::arch::fault::FaultReason::from_code).
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
