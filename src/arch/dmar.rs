//! The ACPI DMAR table, through which firmware reports the remapping units (§8).
//!
//! The table is firmware's and therefore untrusted: parsing is total. Every length is checked,
//! nothing loops, unknown structures are skipped by their length, and what is malformed ends the
//! iteration with a typed error that names the offset.

use core::ffi::CStr;
use core::fmt;
use core::iter::FusedIterator;

use super::address::{Hpa, PAGE_SIZE_BYTES};
use super::id::SourceId;

/// The size of the table's fixed part in bytes: the ACPI header, width, flags, reserved bytes.
const HEADER_BYTES: usize = 48;
/// The size of the type and length of a remapping structure in bytes.
const STRUCTURE_HEAD_BYTES: usize = 4;
/// The size of a device scope without its path in bytes.
const SCOPE_HEAD_BYTES: usize = 6;
/// The size of one path entry in bytes.
const PATH_ENTRY_BYTES: usize = 2;

/// What is wrong with a DMAR table. Offsets are in bytes from the start of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmarError {
    /// There are fewer bytes than the table's fixed part has, or than its length field says.
    Truncated {
        /// The number of bytes needed.
        needed: usize,
        /// The number of bytes there are.
        available: usize,
    },
    /// The signature is not `DMAR`.
    Signature([u8; 4]),
    /// The table's length field is smaller than its fixed part.
    TableLength(u32),
    /// The table's bytes do not add up to 0, but to this value.
    Checksum(u8),
    /// The host address width in bits is not 12 to 64.
    HostAddressWidth(u16),
    /// A structure's length is too small for its type, or goes past the end of the table.
    StructureLength {
        /// Where the structure starts.
        offset: usize,
        /// The structure's length field, 0 if even that is missing.
        length: u16,
    },
    /// A device scope's length is no head with at least one path entry, or goes past the end of its
    /// structure.
    ScopeLength {
        /// Where the device scope starts.
        offset: usize,
        /// The scope's length field, 0 if even that is missing.
        length: u8,
    },
    /// The object name of an ACPI namespace device has no terminating zero byte.
    ObjectName {
        /// Where the structure starts.
        offset: usize,
    },
}

impl fmt::Display for DmarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needed, available } => {
                write!(f, "DMAR table needs {needed} bytes, {available} are there")
            }
            Self::Signature(bytes) => {
                write!(
                    f,
                    "not a DMAR table: signature \"{}\"",
                    bytes.escape_ascii()
                )
            }
            Self::TableLength(length) => {
                write!(f, "DMAR table length {length} is below {HEADER_BYTES}")
            }
            Self::Checksum(sum) => write!(f, "DMAR table bytes add up to {sum:#04x}, not 0"),
            Self::HostAddressWidth(bits) => {
                write!(f, "DMAR host address width of {bits} bits is not 12 to 64")
            }
            Self::StructureLength { offset, length } => {
                write!(f, "DMAR structure at {offset:#x} has bad length {length}")
            }
            Self::ScopeLength { offset, length } => {
                write!(
                    f,
                    "DMAR device scope at {offset:#x} has bad length {length}"
                )
            }
            Self::ObjectName { offset } => {
                write!(f, "DMAR structure at {offset:#x} has an unterminated name")
            }
        }
    }
}

impl core::error::Error for DmarError {}

/// The `N` bytes at `offset`, if they are there.
fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes_at(bytes, offset).map(u64::from_le_bytes)
}

/// A DMAR table whose header, length and checksum are sound (§8.1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dmar<'a> {
    /// The remapping structures, one after the other.
    structures: &'a [u8],
    host_address_width: u8,
    flags: u8,
}

impl<'a> Dmar<'a> {
    /// The table at the start of `bytes`; bytes behind the table's own length are not looked at.
    ///
    /// Fails if signature, length, checksum or host address width are wrong. The remapping
    /// structures are checked while they are iterated over.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DmarError> {
        let truncated = |needed| DmarError::Truncated {
            needed,
            available: bytes.len(),
        };
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(truncated(HEADER_BYTES))?;
        let [s0, s1, s2, s3, l0, l1, l2, l3, ..] = *header;
        let signature = [s0, s1, s2, s3];
        if signature != *b"DMAR" {
            return Err(DmarError::Signature(signature));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let needed = usize::try_from(length).map_err(|_| truncated(usize::MAX))?;
        if needed < HEADER_BYTES {
            return Err(DmarError::TableLength(length));
        }
        let table = bytes.get(..needed).ok_or(truncated(needed))?;
        let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        if sum != 0 {
            return Err(DmarError::Checksum(sum));
        }
        let width = u16::from(header[36]) + 1;
        let host_address_width = u8::try_from(width)
            .ok()
            .filter(|width| (12..=64).contains(width))
            .ok_or(DmarError::HostAddressWidth(width))?;
        Ok(Self {
            structures: table.get(HEADER_BYTES..).unwrap_or_default(),
            host_address_width,
            flags: header[37],
        })
    }

    /// The host address width in bits, 12 to 64.
    #[doc(alias = "HAW")]
    #[inline]
    pub const fn host_address_width(&self) -> u8 {
        self.host_address_width
    }

    /// The flags as they stand in the table.
    #[inline]
    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether the platform supports interrupt remapping (`INTR_REMAP`).
    #[doc(alias = "INTR_REMAP")]
    #[inline]
    pub const fn supports_interrupt_remapping(&self) -> bool {
        self.flags & 1 != 0
    }

    /// Whether firmware asks not to use extended xAPIC mode (`X2APIC_OPT_OUT`), which counts only
    /// with interrupt remapping.
    #[doc(alias = "X2APIC_OPT_OUT")]
    #[inline]
    pub const fn opts_out_of_x2apic(&self) -> bool {
        self.flags & 0b11 == 0b11
    }

    /// Whether firmware asks that DMA be controlled from early boot on
    /// (`DMA_CTRL_PLATFORM_OPT_IN`).
    #[doc(alias = "DMA_CTRL_PLATFORM_OPT_IN")]
    #[inline]
    pub const fn opts_in_to_dma_control(&self) -> bool {
        self.flags & 0b100 != 0
    }

    /// The remapping structures, in table order. Iteration ends with the first error.
    #[inline]
    pub const fn structures(&self) -> Structures<'a> {
        Structures {
            rest: self.structures,
            offset: HEADER_BYTES,
        }
    }

    /// The remapping units, in table order. Iteration ends with the first error.
    pub fn remapping_units(&self) -> impl FusedIterator<Item = Result<Drhd<'a>, DmarError>> {
        self.structures().filter_map(|structure| match structure {
            Ok(Structure::Drhd(unit)) => Some(Ok(unit)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
    }

    /// The unit that remaps the requests of a PCI function, or `None` if no unit of its segment
    /// does (§8.3.1).
    ///
    /// First comes the unit with an endpoint scope for exactly this function; then the one with a
    /// sub-hierarchy scope for a bridge above it (the nearest, if there are several); then the
    /// segment's `INCLUDE_PCI_ALL` unit. The order of the units in the table does not matter.
    /// Scopes of devices that are absent match nothing. A virtual function uses the unit of its
    /// physical function, which is what the caller has to ask for.
    ///
    /// Fails if any remapping structure, or any scope of that segment's units, is malformed.
    pub fn unit_for(
        &self,
        segment: u16,
        source_id: SourceId,
        topology: &impl PciTopology,
    ) -> Result<Option<Drhd<'a>>, DmarError> {
        let mut endpoint = None;
        let mut include_all = None;
        let mut below_bridge: Option<(u8, Drhd<'a>)> = None;
        for unit in self.remapping_units() {
            let unit = unit?;
            if unit.segment != segment {
                continue;
            }
            if unit.include_all {
                include_all = include_all.or(Some(unit));
            }
            for scope in unit.scopes() {
                let scope = scope?;
                if scope.matches_endpoint(source_id, topology) {
                    endpoint = endpoint.or(Some(unit));
                } else if let Some(buses) = scope.matches_sub_hierarchy(source_id, topology)
                    && below_bridge.is_none_or(|(nearest, _)| buses < nearest)
                {
                    below_bridge = Some((buses, unit));
                }
            }
        }
        Ok(endpoint
            .or(below_bridge.map(|(_, unit)| unit))
            .or(include_all))
    }
}

impl fmt::Debug for Dmar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dmar")
            .field("host_address_width", &self.host_address_width)
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}

/// The bus numbers behind bridges, as the bridges' configuration space holds them.
pub trait PciTopology {
    /// The secondary bus number of a bridge (configuration offset 0x19), or `None` if there is no
    /// such bridge.
    fn secondary_bus(&self, bridge: SourceId) -> Option<u8>;

    /// The subordinate bus number of a bridge (configuration offset 0x1a), or `None` if there is no
    /// such bridge.
    fn subordinate_bus(&self, bridge: SourceId) -> Option<u8>;
}

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
    /// The devices; their properties are the [flags](DeviceScope::flags) of their scopes.
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

/// The bytes of a structure's device scopes, and where they start in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ScopeBytes<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> ScopeBytes<'a> {
    /// What follows the first `head` bytes of a structure.
    fn after(structure: &'a [u8], offset: usize, head: usize) -> Option<Self> {
        Some(Self {
            bytes: structure.get(head..)?,
            offset: offset.saturating_add(head),
        })
    }

    const fn iter(&self) -> DeviceScopes<'a> {
        DeviceScopes {
            rest: self.bytes,
            offset: self.offset,
        }
    }
}

/// The device scopes of a remapping structure. An error is the last item.
#[derive(Clone, Debug)]
pub struct DeviceScopes<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Iterator for DeviceScopes<'a> {
    type Item = Result<DeviceScope<'a>, DmarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let offset = self.offset;
        let length = u8_at(self.rest, 1).unwrap_or(0);
        match DeviceScope::split(self.rest, length) {
            Some((scope, rest)) => {
                self.rest = rest;
                self.offset = offset.saturating_add(usize::from(length));
                Some(Ok(scope))
            }
            None => {
                self.rest = &[];
                Some(Err(DmarError::ScopeLength { offset, length }))
            }
        }
    }
}

impl FusedIterator for DeviceScopes<'_> {}

/// What a device scope names (§8.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScopeKind {
    /// A PCI endpoint (1).
    PciEndpoint,
    /// A PCI bridge and everything below it (2).
    PciSubHierarchy,
    /// An I/O APIC (3).
    IoApic,
    /// An HPET that can send MSIs (4).
    MsiHpet,
    /// A device of the ACPI namespace (5).
    AcpiNamespaceDevice,
    /// A type that this library does not know.
    Unknown(u8),
}

impl ScopeKind {
    const fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::PciEndpoint,
            2 => Self::PciSubHierarchy,
            3 => Self::IoApic,
            4 => Self::MsiHpet,
            5 => Self::AcpiNamespaceDevice,
            other => Self::Unknown(other),
        }
    }
}

/// One step of a device scope's path, as it stands in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathEntry {
    /// The device number; only 0 to 31 exist.
    pub device: u8,
    /// The function number; only 0 to 7 exist.
    pub function: u8,
}

/// One device scope: a device, named by the path to it (§8.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceScope<'a> {
    /// What is named.
    pub kind: ScopeKind,
    /// The flags, which have a meaning only inside [`Sidp`].
    pub flags: u8,
    /// The I/O APIC's id, the HPET's number, or the namespace device's number.
    pub enumeration_id: u8,
    /// The bus that the path starts on.
    pub start_bus: u8,
    path: &'a [[u8; PATH_ENTRY_BYTES]],
}

/// Why a device scope's path leads to no device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScopeError {
    /// The path has a device number above 31 or a function number above 7.
    PathEntry(PathEntry),
    /// The path has no entry, or for a device that is not on PCI more than one.
    PathLength(usize),
    /// The path goes through this function, which is no bridge to a higher bus.
    NotABridge(SourceId),
}

impl fmt::Display for ScopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PathEntry(PathEntry { device, function }) => write!(
                f,
                "device scope path has device {device} function {function}"
            ),
            Self::PathLength(length) => write!(f, "device scope path has {length} entries"),
            Self::NotABridge(source_id) => {
                write!(f, "device scope path goes through {source_id}, no bridge")
            }
        }
    }
}

impl core::error::Error for ScopeError {}

impl<'a> DeviceScope<'a> {
    /// The scope of `length` bytes at the start of `bytes`, and what follows it.
    fn split(bytes: &'a [u8], length: u8) -> Option<(Self, &'a [u8])> {
        let (scope, rest) = bytes.split_at_checked(usize::from(length))?;
        let (&[kind, _, flags, _, enumeration_id, start_bus], path) =
            scope.split_first_chunk::<SCOPE_HEAD_BYTES>()?;
        let (path, odd) = path.as_chunks();
        if path.is_empty() || !odd.is_empty() {
            return None;
        }
        let scope = Self {
            kind: ScopeKind::from_u8(kind),
            flags,
            enumeration_id,
            start_bus,
            path,
        };
        Some((scope, rest))
    }

    /// The path: bridges, then the device.
    pub fn path(&self) -> impl ExactSizeIterator<Item = PathEntry> + use<'a> {
        self.path
            .iter()
            .map(|&[device, function]| PathEntry { device, function })
    }

    /// The source-id of the device.
    ///
    /// Follows the bridges of the path, at most as many as the path has entries; `secondary_bus`
    /// tells the secondary bus number of a bridge, or `None` if there is no such bridge. For HPETs
    /// and ACPI namespace devices the only path entry is itself part of the source-id.
    pub fn resolve(
        &self,
        mut secondary_bus: impl FnMut(SourceId) -> Option<u8>,
    ) -> Result<SourceId, ScopeError> {
        let on_pci = !matches!(
            self.kind,
            ScopeKind::MsiHpet | ScopeKind::AcpiNamespaceDevice
        );
        let too_long = !on_pci && self.path.len() > 1;
        let (device, bridges) = self
            .path
            .split_last()
            .filter(|_| !too_long)
            .ok_or(ScopeError::PathLength(self.path.len()))?;
        let function_on = |bus, &[device, function]: &[u8; PATH_ENTRY_BYTES]| {
            SourceId::new(bus, device, function)
                .ok_or(ScopeError::PathEntry(PathEntry { device, function }))
        };
        let mut bus = self.start_bus;
        for entry in bridges {
            let bridge = function_on(bus, entry)?;
            // A bridge that is not set up has secondary bus 0, and a path never leads back up.
            bus = secondary_bus(bridge)
                .filter(|secondary| *secondary > bus)
                .ok_or(ScopeError::NotABridge(bridge))?;
        }
        function_on(bus, device)
    }

    /// Whether this is an endpoint scope of exactly this function.
    fn matches_endpoint(&self, source_id: SourceId, topology: &impl PciTopology) -> bool {
        self.kind == ScopeKind::PciEndpoint
            && self.resolve(|bridge| topology.secondary_bus(bridge)) == Ok(source_id)
    }

    /// If this is a sub-hierarchy scope that covers the function: how many buses there are below
    /// the bridge that it names, not counting the first. The bridge itself is covered too.
    fn matches_sub_hierarchy(
        &self,
        source_id: SourceId,
        topology: &impl PciTopology,
    ) -> Option<u8> {
        if self.kind != ScopeKind::PciSubHierarchy {
            return None;
        }
        let bridge = self.resolve(|bridge| topology.secondary_bus(bridge)).ok()?;
        if bridge == source_id {
            return Some(0);
        }
        let secondary = topology
            .secondary_bus(bridge)
            .filter(|secondary| *secondary > bridge.bus())?;
        let subordinate = topology.subordinate_bus(bridge)?;
        (secondary..=subordinate)
            .contains(&source_id.bus())
            .then(|| subordinate.saturating_sub(secondary))
    }
}
