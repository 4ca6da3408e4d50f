//! The remapping structures of the table, type by type (§8.2 to §8.9).

use core::ffi::CStr;
use core::iter::FusedIterator;

use super::scope::{DeviceScopes, ScopeBytes};
use super::{DmarError, u8_at, u16_at, u32_at, u64_at};
use crate::arch::address::{Hpa, PAGE_SIZE_BYTES};

/// The size of the type and length of a remapping structure in bytes.
const STRUCTURE_HEAD_BYTES: usize = 4;

/// One remapping structure (§8.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Structure<'a> {
    /// A remapping unit (type 0).
    Drhd(Drhd<'a>),
    /// A reserved memory region (type 1).
    Rmrr(Rmrr<'a>),
    /// Root ports that support ATS (type 2).
    Atsr(Atsr<'a>),
    /// The proximity domain of a unit (type 3).
    Rhsa(Rhsa),
    /// A device of the ACPI namespace (type 4).
    Andd(Andd<'a>),
    /// Integrated devices with an address translation cache (type 5).
    Satc(Satc<'a>),
    /// Properties of integrated devices (type 6).
    Sidp(Sidp<'a>),
    /// A structure of a type that this library does not know.
    Unknown {
        /// The structure's type.
        kind: u16,
        /// The structure's length in bytes.
        length: u16,
    },
}

/// A remapping unit: DMA Remapping Hardware Unit Definition (§8.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "DRHD")]
pub struct Drhd<'a> {
    /// The PCI segment whose devices the unit remaps.
    pub segment: u16,
    /// Where the unit's registers are.
    pub base: Hpa,
    /// The size of the register window in bytes: 4 KiB to 128 MiB, a power of two.
    pub register_window_bytes: u64,
    /// Whether the unit remaps all devices of its segment that no other unit lists
    /// (`INCLUDE_PCI_ALL`).
    pub include_all: bool,
    scopes: ScopeBytes<'a>,
}

impl<'a> Drhd<'a> {
    /// The devices that the unit remaps.
    #[inline]
    pub const fn scopes(&self) -> DeviceScopes<'a> {
        self.scopes.iter()
    }

    /// Whether the register base is neither 0 nor misaligned for the register window.
    #[inline]
    pub const fn has_valid_base(&self) -> bool {
        let base = self.base.as_u64();
        base != 0 && base & self.register_window_bytes.wrapping_sub(1) == 0
    }
}

/// A memory region that devices use before and outside software's control: Reserved Memory Region
/// Reporting (§8.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "RMRR")]
pub struct Rmrr<'a> {
    /// The PCI segment of the devices.
    pub segment: u16,
    /// The first byte of the region.
    pub base: Hpa,
    /// The last byte of the region.
    pub limit: Hpa,
    scopes: ScopeBytes<'a>,
}

impl<'a> Rmrr<'a> {
    /// The devices that use the region.
    #[inline]
    pub const fn scopes(&self) -> DeviceScopes<'a> {
        self.scopes.iter()
    }

    /// The size of the region in bytes, or `None` if it is not a whole number of pages, at least
    /// one, at a page boundary.
    pub fn len_bytes(&self) -> Option<u64> {
        let len = self
            .limit
            .as_u64()
            .checked_sub(self.base.as_u64())?
            .checked_add(1)?;
        (self.base.page_offset() == 0 && len % PAGE_SIZE_BYTES == 0).then_some(len)
    }
}

/// Root ports whose devices may use ATS: Root Port ATS Capability Reporting (§8.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "ATSR")]
pub struct Atsr<'a> {
    /// The PCI segment of the root ports.
    pub segment: u16,
    /// Whether all root ports of the segment support ATS (`ALL_PORTS`).
    pub all_ports: bool,
    scopes: ScopeBytes<'a>,
}

impl<'a> Atsr<'a> {
    /// The root ports that support ATS; none are listed if all do.
    #[inline]
    pub const fn scopes(&self) -> DeviceScopes<'a> {
        self.scopes.iter()
    }
}

/// The proximity domain of a unit: Remapping Hardware Status Affinity (§8.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "RHSA")]
pub struct Rhsa {
    /// The register base of the unit.
    pub base: Hpa,
    /// The proximity domain, as in the SRAT table.
    pub proximity_domain: u32,
}

/// A device of the ACPI namespace that can do DMA: ACPI Name-space Device Declaration (§8.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "ANDD")]
pub struct Andd<'a> {
    /// The number that device scopes name the device by.
    pub device_number: u8,
    /// The device's path in the namespace.
    pub object_name: &'a CStr,
}

/// Integrated devices whose address translation cache is validated: SoC Integrated Address
/// Translation Cache (§8.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "SATC")]
pub struct Satc<'a> {
    /// The PCI segment of the devices.
    pub segment: u16,
    /// Whether the devices need their cache to work (`ATC_REQUIRED`).
    pub cache_required: bool,
    scopes: ScopeBytes<'a>,
}

impl<'a> Satc<'a> {
    /// The devices.
    #[inline]
    pub const fn scopes(&self) -> DeviceScopes<'a> {
        self.scopes.iter()
    }
}

/// Properties of integrated devices: SoC Integrated Device Property Reporting (§8.9).
///
/// Software that uses it must ignore the [`Satc`] structures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "SIDP")]
pub struct Sidp<'a> {
    /// The PCI segment of the devices.
    pub segment: u16,
    scopes: ScopeBytes<'a>,
}

impl<'a> Sidp<'a> {
    /// The devices; their properties are the [flags](super::DeviceScope::flags) of their scopes.
    #[inline]
    pub const fn scopes(&self) -> DeviceScopes<'a> {
        self.scopes.iter()
    }
}

/// The remapping structures of a table. An error is the last item.
#[derive(Clone, Debug)]
pub struct Structures<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Structures<'a> {
    /// The structures that fill `bytes`, which start at `offset` in the table.
    pub(super) const fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self {
            rest: bytes,
            offset,
        }
    }
}

impl<'a> Iterator for Structures<'a> {
    type Item = Result<Structure<'a>, DmarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let offset = self.offset;
        let length = u16_at(self.rest, 2).unwrap_or(0);
        let split = Some(usize::from(length))
            .filter(|length| *length >= STRUCTURE_HEAD_BYTES)
            .and_then(|length| self.rest.split_at_checked(length));
        let parsed = match split {
            Some((structure, rest)) => {
                self.rest = rest;
                self.offset = offset.saturating_add(structure.len());
                Structure::parse(structure, offset, length)
            }
            None => Err(DmarError::StructureLength { offset, length }),
        };
        if parsed.is_err() {
            self.rest = &[];
        }
        Some(parsed)
    }
}

impl FusedIterator for Structures<'_> {}

impl<'a> Structure<'a> {
    /// The structure that fills `bytes`, which start at `offset` in the table.
    fn parse(bytes: &'a [u8], offset: usize, length: u16) -> Result<Self, DmarError> {
        let too_short = DmarError::StructureLength { offset, length };
        match u16_at(bytes, 0).ok_or(too_short)? {
            0 => Self::drhd(bytes, offset).ok_or(too_short),
            1 => Self::rmrr(bytes, offset).ok_or(too_short),
            2 => Self::atsr(bytes, offset).ok_or(too_short),
            3 => Self::rhsa(bytes).ok_or(too_short),
            4 => {
                let device_number = u8_at(bytes, 7).ok_or(too_short)?;
                let name = bytes.get(8..).ok_or(too_short)?;
                Ok(Self::Andd(Andd {
                    device_number,
                    object_name: CStr::from_bytes_until_nul(name)
                        .map_err(|_| DmarError::ObjectName { offset })?,
                }))
            }
            5 => Self::satc(bytes, offset).ok_or(too_short),
            6 => Self::sidp(bytes, offset).ok_or(too_short),
            kind => Ok(Self::Unknown { kind, length }),
        }
    }

    fn drhd(bytes: &'a [u8], offset: usize) -> Option<Self> {
        Some(Self::Drhd(Drhd {
            include_all: u8_at(bytes, 4)? & 1 != 0,
            // The upper half of the size byte is reserved.
            register_window_bytes: PAGE_SIZE_BYTES << (u8_at(bytes, 5)? & 0xf),
            segment: u16_at(bytes, 6)?,
            base: Hpa::new(u64_at(bytes, 8)?),
            scopes: ScopeBytes::after(bytes, offset, 16)?,
        }))
    }

    fn rmrr(bytes: &'a [u8], offset: usize) -> Option<Self> {
        Some(Self::Rmrr(Rmrr {
            segment: u16_at(bytes, 6)?,
            base: Hpa::new(u64_at(bytes, 8)?),
            limit: Hpa::new(u64_at(bytes, 16)?),
            scopes: ScopeBytes::after(bytes, offset, 24)?,
        }))
    }

    fn atsr(bytes: &'a [u8], offset: usize) -> Option<Self> {
        Some(Self::Atsr(Atsr {
            all_ports: u8_at(bytes, 4)? & 1 != 0,
            segment: u16_at(bytes, 6)?,
            scopes: ScopeBytes::after(bytes, offset, 8)?,
        }))
    }

    fn rhsa(bytes: &[u8]) -> Option<Self> {
        Some(Self::Rhsa(Rhsa {
            base: Hpa::new(u64_at(bytes, 8)?),
            proximity_domain: u32_at(bytes, 16)?,
        }))
    }

    fn satc(bytes: &'a [u8], offset: usize) -> Option<Self> {
        Some(Self::Satc(Satc {
            cache_required: u8_at(bytes, 4)? & 1 != 0,
            segment: u16_at(bytes, 6)?,
            scopes: ScopeBytes::after(bytes, offset, 8)?,
        }))
    }

    fn sidp(bytes: &'a [u8], offset: usize) -> Option<Self> {
        Some(Self::Sidp(Sidp {
            segment: u16_at(bytes, 6)?,
            scopes: ScopeBytes::after(bytes, offset, 8)?,
        }))
    }
}
