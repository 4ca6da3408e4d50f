//! The numbers that name requesters, address spaces and domains.

use core::fmt;

/// A source-id, which is a PCI requester-id: bus, device and function (§3.4.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SourceId(u16);

impl SourceId {
    /// The source-id with this value: bus in bits 15:8, device in 7:3, function in 2:0.
    #[inline]
    pub const fn from_u16(value: u16) -> Self {
        Self(value)
    }

    /// The source-id of a function, or `None` if `device` exceeds 31 or `function` exceeds 7.
    #[inline]
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self(
                (bus as u16) << 8 | (device as u16) << 3 | function as u16,
            ))
        } else {
            None
        }
    }

    /// The source-id as the 16-bit value that tables and descriptors hold.
    #[inline]
    pub const fn as_u16(self) -> u16 {
        self.0
    }

    /// The bus number, which indexes the root table.
    #[inline]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device and function as one number, which indexes a legacy context table.
    #[inline]
    pub const fn device_function(self) -> u8 {
        self.0 as u8
    }

    /// The device number, 0 to 31.
    #[inline]
    pub const fn device(self) -> u8 {
        self.device_function() >> 3
    }

    /// The function number, 0 to 7.
    #[inline]
    pub const fn function(self) -> u8 {
        self.device_function() & 7
    }
}

impl fmt::Display for SourceId {
    /// As `bus:device.function` in hexadecimal, the way system tools print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{}",
            self.bus(),
            self.device(),
            self.function()
        )
    }
}

impl fmt::Debug for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A process address space id: 20 bits (§3.4.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pasid(u32);

impl Pasid {
    /// The PASID of requests without PASID, as long as `RID_PASID` is not supported (§9.4).
    pub const ZERO: Self = Self(0);

    /// The number of PASIDs there can be: 2^20.
    pub const COUNT: u32 = 1 << 20;

    /// The PASID with this value, or `None` if it needs more than 20 bits.
    #[inline]
    pub const fn new(value: u32) -> Option<Self> {
        if value < Self::COUNT {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The PASID in the low 20 bits of a field; higher bits are dropped.
    #[inline]
    pub const fn from_field(field: u64) -> Self {
        Self(field as u32 & (Self::COUNT - 1))
    }

    /// The PASID's value.
    #[inline]
    pub const fn as_u32(self) -> u32 {
        self.0
    }

    /// The index into the PASID directory: PASID bits 19:6 (§9.5).
    #[inline]
    pub const fn directory_index(self) -> u32 {
        self.0 >> 6
    }

    /// The index into the PASID table: PASID bits 5:0 (§9.6).
    #[inline]
    pub const fn table_index(self) -> u32 {
        self.0 & 63
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A domain-id, the tag of cached translations: up to 16 bits, as `CAP.ND` says (§11.4.2).
///
/// The same type serves guest and host domain-ids; the layers keep them apart by owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DomainId(u16);

impl DomainId {
    /// The tag of not-present entries while `CAP.CM` is set; never handed out (§6.2.3.1).
    pub const ZERO: Self = Self(0);

    /// The domain-id with this value.
    #[inline]
    pub const fn new(value: u16) -> Self {
        Self(value)
    }

    /// The domain-id's value.
    #[inline]
    pub const fn as_u16(self) -> u16 {
        self.0
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_id_splits_into_bus_device_function() {
        let id = SourceId::new(0x12, 0x1f, 7).unwrap();
        assert_eq!(id.as_u16(), 0x12ff);
        assert_eq!((id.bus(), id.device(), id.function()), (0x12, 0x1f, 7));
        assert_eq!(id.device_function(), 0xff);
        assert_eq!(SourceId::new(0, 32, 0), None);
        assert_eq!(SourceId::new(0, 0, 8), None);
        extern crate std;
        assert_eq!(std::format!("{}", SourceId::from_u16(0x0010)), "00:02.0");
    }

    #[test]
    fn pasid_is_limited_to_twenty_bits_and_splits_into_two_indexes() {
        assert_eq!(Pasid::new(1 << 20), None);
        let pasid = Pasid::new(0xf_ffff).unwrap();
        assert_eq!((pasid.directory_index(), pasid.table_index()), (0x3fff, 63));
        assert_eq!(Pasid::from_field(0xfff0_0005).as_u32(), 5);
    }
}
