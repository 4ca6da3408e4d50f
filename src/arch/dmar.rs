//! The ACPI DMAR table, through which firmware reports the remapping units (§8).
//!
//! The table is firmware's and therefore untrusted: parsing is total. Every length is checked,
//! nothing loops, unknown structures are skipped by their length, and what is malformed ends the
//! iteration with a typed error that names the offset.

use core::ffi::CStr;
use core::fmt::{self, Write as _};
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
                f.write_str("not a DMAR table: signature \"")?;
                for byte in bytes {
                    match byte {
                        b' '..=b'~' => f.write_char(char::from(*byte))?,
                        _ => write!(f, "\\x{byte:02x}")?,
                    }
                }
                f.write_char('"')
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
        let (bits, flags) = (self.host_address_width, self.flags);
        write!(f, "Dmar {{ {bits} bits, flags {flags:#x}, .. }}")
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

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    /// A table with these structures, its length and checksum right.
    fn table(width: u8, flags: u8, structures: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..4].copy_from_slice(b"DMAR");
        bytes[8] = 1; // Revision.
        bytes[10..16].copy_from_slice(b"VTDNST");
        bytes[36] = width - 1;
        bytes[37] = flags;
        for structure in structures {
            bytes.extend_from_slice(structure);
        }
        let length = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    /// Makes the checksum of the whole right.
    fn seal(bytes: &mut [u8]) {
        bytes[9] = 0;
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[9] = sum.wrapping_neg();
    }

    /// A structure: its type, what follows the length, its device scopes.
    fn structure(kind: u16, body: &[u8], scopes: &[&[u8]]) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(body);
        for scope in scopes {
            bytes.extend_from_slice(scope);
        }
        let length = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    fn scope(kind: u8, flags: u8, id: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
        let mut bytes = vec![kind, 6 + 2 * path.len() as u8, flags, 0, id, bus];
        for (device, function) in path {
            bytes.extend_from_slice(&[*device, *function]);
        }
        bytes
    }

    fn drhd(flags: u8, size: u8, segment: u16, base: u64, scopes: &[&[u8]]) -> Vec<u8> {
        let mut body = vec![flags, size];
        body.extend_from_slice(&segment.to_le_bytes());
        body.extend_from_slice(&base.to_le_bytes());
        structure(0, &body, scopes)
    }

    /// What QEMU describes for its unit: explicit scopes, and one I/O APIC behind a pseudo bus.
    fn emulated() -> Vec<u8> {
        table(
            39,
            1,
            &[
                &drhd(
                    0,
                    0,
                    0,
                    0xfed9_0000,
                    &[
                        &scope(3, 0, 0, 0xff, &[(0, 0)]),
                        &scope(1, 0, 0, 0, &[(0, 0)]),
                        &scope(1, 0, 0, 0, &[(2, 0)]),
                        &scope(2, 0, 0, 0, &[(3, 0)]),
                        &scope(1, 0, 0, 0, &[(0x1f, 3)]),
                    ],
                ),
                &structure(2, &[1, 0, 0, 0], &[]),
            ],
        )
    }

    /// A server: two segments, a bridge with a unit of its own and another below, all types.
    fn server() -> Vec<u8> {
        let rmrr_body = [
            &[0, 0, 0, 0][..],
            &0x7b80_0000_u64.to_le_bytes(),
            &0x7bff_ffff_u64.to_le_bytes(),
        ]
        .concat();
        let rhsa_body = [
            &[0, 0, 0, 0][..],
            &0xd0ff_c000_u64.to_le_bytes(),
            &1_u32.to_le_bytes(),
        ]
        .concat();
        table(
            52,
            0b101,
            &[
                // Below root port 00:1c.0, buses 1 to 15.
                &drhd(0, 0, 0, 0xd0ff_c000, &[&scope(2, 0, 0, 0, &[(0x1c, 0)])]),
                // The switch port 01:00.0, buses 2 to 4, named through the root port.
                &drhd(
                    0,
                    1,
                    0,
                    0xd0fe_0000,
                    &[&scope(2, 0, 0, 0, &[(0x1c, 0), (0, 0)])],
                ),
                // The endpoint 02:00.1, named through two bridges.
                &drhd(
                    0,
                    0xf0,
                    0,
                    0xd0fd_0000,
                    &[&scope(1, 0, 0, 0, &[(0x1c, 0), (0, 0), (0, 1)])],
                ),
                &drhd(
                    1,
                    0,
                    0,
                    0xd0fc_0000,
                    &[
                        &scope(3, 0, 8, 0xf0, &[(0x1f, 7)]),
                        &scope(4, 0, 0, 0xf0, &[(0x0f, 0)]),
                        &scope(5, 0, 1, 0xf1, &[(2, 0)]),
                    ],
                ),
                &drhd(1, 0, 1, 0xe0fc_0000, &[]),
                &structure(1, &rmrr_body, &[&scope(1, 0, 0, 0, &[(0x14, 0)])]),
                &structure(2, &[0, 0, 0, 0], &[&scope(2, 0, 0, 0, &[(0x1c, 0)])]),
                &structure(3, &rhsa_body, &[]),
                &structure(4, b"\0\0\0\x01\\_SB.I2C0\0", &[]),
                &structure(5, &[1, 0, 0, 0], &[&scope(1, 0, 0, 0x6a, &[(1, 0)])]),
                &structure(6, &[0, 0, 1, 0], &[&scope(1, 0b110, 0, 0x6a, &[(2, 0)])]),
                &structure(0x77, &[1, 2, 3], &[]),
            ],
        )
    }

    struct Bridges;
    /// Bridge, secondary, subordinate.
    const BRIDGES: [(&str, u8, u8); 4] = [
        ("00:1c.0", 1, 15),
        ("01:00.0", 2, 4),
        ("00:03.0", 5, 5),
        // Not set up.
        ("00:1d.0", 0, 0),
    ];

    impl Bridges {
        fn find(bridge: SourceId) -> Option<(u8, u8)> {
            BRIDGES
                .into_iter()
                .find(|(name, ..)| *name == bridge.to_string())
                .map(|(_, secondary, subordinate)| (secondary, subordinate))
        }
    }

    impl PciTopology for Bridges {
        fn secondary_bus(&self, bridge: SourceId) -> Option<u8> {
            Self::find(bridge).map(|(secondary, _)| secondary)
        }
        fn subordinate_bus(&self, bridge: SourceId) -> Option<u8> {
            Self::find(bridge).map(|(_, subordinate)| subordinate)
        }
    }

    fn source_id(bus: u8, device: u8, function: u8) -> SourceId {
        SourceId::new(bus, device, function).unwrap()
    }

    #[test]
    fn an_emulated_machines_table_is_read() {
        let bytes = emulated();
        let dmar = Dmar::parse(&bytes).unwrap();
        assert_eq!(dmar.host_address_width(), 39);
        assert!(dmar.supports_interrupt_remapping());
        assert!(!dmar.opts_out_of_x2apic() && !dmar.opts_in_to_dma_control());
        let structures: Vec<_> = dmar.structures().map(Result::unwrap).collect();
        let [Structure::Drhd(unit), Structure::Atsr(atsr)] = structures[..] else {
            panic!("{structures:?}");
        };
        assert_eq!((unit.segment, unit.base), (0, Hpa::new(0xfed9_0000)));
        assert_eq!(unit.register_window_bytes, 4096);
        assert!(unit.has_valid_base() && !unit.include_all);
        assert!(atsr.all_ports && atsr.scopes().next().is_none());
        let scopes: Vec<_> = unit.scopes().map(Result::unwrap).collect();
        assert_eq!(
            scopes
                .iter()
                .map(|scope| (scope.kind, scope.resolve(|_| None).unwrap()))
                .collect::<Vec<_>>(),
            [
                (ScopeKind::IoApic, source_id(0xff, 0, 0)),
                (ScopeKind::PciEndpoint, source_id(0, 0, 0)),
                (ScopeKind::PciEndpoint, source_id(0, 2, 0)),
                (ScopeKind::PciSubHierarchy, source_id(0, 3, 0)),
                (ScopeKind::PciEndpoint, source_id(0, 0x1f, 3)),
            ]
        );
        for (device, covered) in [
            (source_id(0, 2, 0), true),
            (source_id(0, 3, 0), true),
            (source_id(5, 9, 1), true),
            (source_id(6, 0, 0), false),
            (source_id(0, 2, 1), false),
        ] {
            let found = dmar.unit_for(0, device, &Bridges).unwrap();
            assert_eq!(found, covered.then_some(unit), "{device}");
        }
    }

    #[test]
    fn a_servers_table_is_read() {
        let bytes = server();
        let dmar = Dmar::parse(&bytes).unwrap();
        assert_eq!((dmar.host_address_width(), dmar.flags()), (52, 0b101));
        assert!(dmar.opts_in_to_dma_control());
        let structures: Vec<_> = dmar.structures().map(Result::unwrap).collect();
        let [
            Structure::Drhd(_),
            Structure::Drhd(second),
            Structure::Drhd(third),
            Structure::Drhd(rest),
            Structure::Drhd(other_segment),
            Structure::Rmrr(rmrr),
            Structure::Atsr(atsr),
            Structure::Rhsa(rhsa),
            Structure::Andd(andd),
            Structure::Satc(satc),
            Structure::Sidp(sidp),
            Structure::Unknown {
                kind: 0x77,
                length: 7,
            },
        ] = structures[..]
        else {
            panic!("{structures:?}");
        };
        assert_eq!(second.register_window_bytes, 8192);
        assert_eq!(third.register_window_bytes, 4096, "bits 7:4 are reserved");
        assert_eq!(
            (other_segment.segment, other_segment.include_all),
            (1, true)
        );
        assert_eq!(
            (rmrr.base, rmrr.limit, rmrr.len_bytes()),
            (
                Hpa::new(0x7b80_0000),
                Hpa::new(0x7bff_ffff),
                Some(0x80_0000)
            )
        );
        assert_eq!(
            rmrr.scopes().next().unwrap().unwrap().resolve(|_| None),
            Ok(source_id(0, 0x14, 0))
        );
        assert!(!atsr.all_ports && atsr.scopes().count() == 1);
        assert_eq!(
            (rhsa.base, rhsa.proximity_domain),
            (Hpa::new(0xd0ff_c000), 1)
        );
        assert_eq!((andd.device_number, andd.object_name), (1, c"\\_SB.I2C0"));
        assert!(satc.cache_required && satc.scopes().count() == 1);
        assert_eq!(sidp.segment, 1);
        assert_eq!(sidp.scopes().next().unwrap().unwrap().flags, 0b110);
        // HPETs and namespace devices: start bus and path are the source-id.
        let direct: Vec<_> = rest
            .scopes()
            .map(|scope| {
                let scope = scope.unwrap();
                (
                    scope.kind,
                    scope.enumeration_id,
                    scope.resolve(|_| None).unwrap(),
                )
            })
            .collect();
        assert_eq!(
            direct,
            [
                (ScopeKind::IoApic, 8, source_id(0xf0, 0x1f, 7)),
                (ScopeKind::MsiHpet, 0, source_id(0xf0, 0x0f, 0)),
                (ScopeKind::AcpiNamespaceDevice, 1, source_id(0xf1, 2, 0)),
            ]
        );
    }

    #[test]
    fn the_closest_unit_covers_a_device() {
        let bytes = server();
        let dmar = Dmar::parse(&bytes).unwrap();
        for (segment, device, base) in [
            (0, source_id(0, 0x1c, 0), Some(0xd0ff_c000)),
            (0, source_id(9, 0, 0), Some(0xd0ff_c000)),
            (0, source_id(15, 31, 7), Some(0xd0ff_c000)),
            (0, source_id(1, 0, 0), Some(0xd0fe_0000)),
            (0, source_id(1, 1, 0), Some(0xd0ff_c000)),
            (0, source_id(2, 0, 0), Some(0xd0fe_0000)),
            (0, source_id(4, 0, 0), Some(0xd0fe_0000)),
            (0, source_id(2, 0, 1), Some(0xd0fd_0000)),
            (0, source_id(0, 2, 0), Some(0xd0fc_0000)),
            (0, source_id(16, 0, 0), Some(0xd0fc_0000)),
            (1, source_id(2, 0, 1), Some(0xe0fc_0000)),
            (2, source_id(0, 0, 0), None),
        ] {
            let found = dmar.unit_for(segment, device, &Bridges).unwrap();
            assert_eq!(
                found.map(|unit| unit.base.as_u64()),
                base,
                "{segment} {device}"
            );
        }
    }

    #[test]
    fn units_are_found_whatever_their_order() {
        // Firmware may list the INCLUDE_PCI_ALL unit first.
        let bytes = table(
            46,
            0,
            &[
                &drhd(1, 0, 0, 0x1000, &[]),
                &drhd(0, 0, 0, 0x2000, &[&scope(2, 0, 0, 0, &[(0x1c, 0)])]),
                &drhd(0, 0, 0, 0x3000, &[&scope(1, 0, 0, 7, &[(0, 0)])]),
                // A device that is absent, and a bridge that is not set up.
                &drhd(0, 0, 0, 0x4000, &[&scope(1, 0, 0, 0, &[(9, 0), (0, 0)])]),
                &drhd(0, 0, 0, 0x5000, &[&scope(2, 0, 0, 0, &[(0x1d, 0)])]),
            ],
        );
        let dmar = Dmar::parse(&bytes).unwrap();
        for (device, base) in [
            (source_id(7, 0, 0), 0x3000),
            (source_id(7, 0, 1), 0x2000),
            (source_id(0, 0, 0), 0x1000),
            (source_id(0x30, 0, 0), 0x1000),
        ] {
            let found = dmar.unit_for(0, device, &Bridges).unwrap().unwrap();
            assert_eq!(found.base, Hpa::new(base), "{device}");
        }
    }

    #[test]
    fn a_path_is_walked_over_secondary_buses() {
        type Case = (u8, &'static [(u8, u8)], Result<SourceId, ScopeError>);
        let cases: [Case; 9] = [
            (1, &[(2, 3)], Ok(source_id(0, 2, 3))),
            (1, &[(0x1c, 0), (5, 1)], Ok(source_id(1, 5, 1))),
            (3, &[(0x1c, 0), (0, 0), (6, 2)], Ok(source_id(2, 6, 2))),
            (
                1,
                &[(9, 0), (0, 0)],
                Err(ScopeError::NotABridge(source_id(0, 9, 0))),
            ),
            (
                1,
                &[(0x1d, 0), (0, 0)],
                Err(ScopeError::NotABridge(source_id(0, 0x1d, 0))),
            ),
            (
                1,
                &[(32, 0)],
                Err(ScopeError::PathEntry(PathEntry {
                    device: 32,
                    function: 0,
                })),
            ),
            (
                2,
                &[(0x1c, 8), (0, 0)],
                Err(ScopeError::PathEntry(PathEntry {
                    device: 0x1c,
                    function: 8,
                })),
            ),
            (4, &[(0x1c, 0), (0, 0)], Err(ScopeError::PathLength(2))),
            (5, &[(0x1c, 0), (0, 0)], Err(ScopeError::PathLength(2))),
        ];
        for (kind, path, expected) in cases {
            let bytes = scope(kind, 0, 0, 0, path);
            let (scope, rest) = DeviceScope::split(&bytes, bytes[1]).unwrap();
            assert!(rest.is_empty());
            assert_eq!(scope.path().len(), path.len());
            assert_eq!(
                scope.resolve(|bridge| Bridges.secondary_bus(bridge)),
                expected,
                "{path:?}"
            );
        }
    }

    #[test]
    fn headers_are_checked() {
        let good = emulated();
        assert!(Dmar::parse(&good).is_ok());
        let change = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            edit(&mut bytes);
            Dmar::parse(&bytes).err()
        };
        assert_eq!(
            change(&|b| b[0] = b'X'),
            Some(DmarError::Signature(*b"XMAR"))
        );
        assert_eq!(
            change(&|b| b[20] = b[20].wrapping_add(3)),
            Some(DmarError::Checksum(3))
        );
        assert_eq!(
            change(&|b| b[4..8].fill(0)),
            Some(DmarError::TableLength(0))
        );
        assert_eq!(
            change(&|b| b[4..8].fill(0xff)),
            Some(DmarError::Truncated {
                needed: 0xffff_ffff,
                available: good.len()
            })
        );
        // Bytes behind the table are somebody else's.
        assert_eq!(change(&|b| b.push(0xee)), None);
        // §8.1: the field is the width minus 1.
        for (field, fault) in [
            (10, Some(DmarError::HostAddressWidth(11))),
            (11, None),
            (51, None),
            (63, None),
            (64, Some(DmarError::HostAddressWidth(65))),
            (255, Some(DmarError::HostAddressWidth(256))),
        ] {
            let result = change(&|b| {
                b[36] = field;
                seal(b);
            });
            assert_eq!(result, fault, "{field}");
        }
    }

    #[test]
    fn flags_are_read_bit_by_bit() {
        for flags in 0..=7 {
            let bytes = table(46, flags, &[]);
            let dmar = Dmar::parse(&bytes).unwrap();
            assert_eq!(dmar.supports_interrupt_remapping(), flags & 1 != 0);
            assert_eq!(dmar.opts_out_of_x2apic(), flags & 3 == 3);
            assert_eq!(dmar.opts_in_to_dma_control(), flags & 4 != 0);
            assert_eq!(dmar.structures().next(), None);
        }
    }

    #[test]
    fn a_malformed_structure_ends_the_iteration_with_its_offset() {
        let unit = drhd(1, 0, 0, 0x1000, &[]);
        let bad_offset = HEADER_BYTES + unit.len();
        let short = |kind: u16, len: u16| {
            let mut bytes = vec![0; len.into()];
            bytes[..2].copy_from_slice(&kind.to_le_bytes());
            bytes[2..4].copy_from_slice(&len.to_le_bytes());
            bytes
        };
        let cases = [
            // Length 0, shorter than its head, past the end; no room for a length.
            (vec![0, 0, 0, 0], 0),
            (vec![0, 0, 3, 0], 3),
            (vec![9, 0, 0xff, 0xff], 0xffff),
            (vec![0, 0, 0], 0),
            // One byte less than the type's fixed part.
            (short(0, 15), 15),
            (short(1, 23), 23),
            (short(2, 7), 7),
            (short(3, 19), 19),
            (short(4, 7), 7),
            (short(5, 7), 7),
            (short(6, 7), 7),
        ];
        for (bad, length) in cases {
            let bytes = table(46, 0, &[&unit, &bad, &unit]);
            // Without room for a length the bad structure has to be last.
            let bytes = if bad.len() == 3 {
                table(46, 0, &[&unit, &bad])
            } else {
                bytes
            };
            let dmar = Dmar::parse(&bytes).unwrap();
            let fault = DmarError::StructureLength {
                offset: bad_offset,
                length,
            };
            let mut structures = dmar.structures();
            assert!(matches!(structures.next(), Some(Ok(Structure::Drhd(_)))));
            assert_eq!(structures.next(), Some(Err(fault)), "{bad:?}");
            assert_eq!(structures.next(), None);
            assert_eq!(dmar.unit_for(0, source_id(0, 0, 0), &Bridges), Err(fault));
        }
        let unterminated = structure(4, b"\0\0\0\x01\\_SB", &[]);
        let bytes = table(46, 0, &[&unterminated]);
        assert_eq!(
            Dmar::parse(&bytes).unwrap().structures().next(),
            Some(Err(DmarError::ObjectName {
                offset: HEADER_BYTES
            }))
        );
    }

    #[test]
    fn a_malformed_scope_ends_the_iteration_with_its_offset() {
        let good = scope(1, 0, 0, 0, &[(1, 0)]);
        for (bad, length) in [
            (vec![1], 0),
            (vec![1, 0, 0, 0, 0, 0, 0, 0], 0),
            (vec![1, 5, 0, 0, 0, 0, 0, 0], 5),
            // No path, half a path entry, past the end.
            (vec![1, 6, 0, 0, 0, 0], 6),
            (vec![1, 7, 0, 0, 0, 0, 0, 0], 7),
            (vec![1, 9, 0, 0, 0, 0, 0, 0, 0], 9),
            (vec![1, 10, 0, 0, 0, 0, 0, 0], 10),
            (vec![1, 255, 0, 0, 0, 0, 0, 0], 255),
        ] {
            let bytes = table(46, 0, &[&drhd(1, 0, 0, 0x1000, &[&good, &bad])]);
            let dmar = Dmar::parse(&bytes).unwrap();
            let unit = dmar.remapping_units().next().unwrap().unwrap();
            let mut scopes = unit.scopes();
            assert!(scopes.next().unwrap().is_ok());
            let fault = DmarError::ScopeLength {
                offset: HEADER_BYTES + 16 + good.len(),
                length,
            };
            assert_eq!(scopes.next(), Some(Err(fault)), "{bad:?}");
            assert_eq!(scopes.next(), None);
            assert_eq!(dmar.unit_for(0, source_id(0, 0, 0), &Bridges), Err(fault));
        }
    }

    #[test]
    fn memory_regions_and_register_bases_are_judged() {
        // base, limit (inclusive), size.
        for (base, limit, len) in [
            (0x1000, 0x1fff, Some(0x1000)),
            (0x1000, 0x1000, None),
            (0x1000, 0xfff, None),
            (0x1001, 0x2000, None),
            (0x2000, 0x1fff, None),
            (0, u64::MAX, None),
            (0x1000, u64::MAX, Some(0u64.wrapping_sub(0x1000))),
            (u64::MAX, 0, None),
        ] {
            let body = [
                &[0; 4][..],
                &u64::to_le_bytes(base),
                &u64::to_le_bytes(limit),
            ]
            .concat();
            let bytes = table(46, 0, &[&structure(1, &body, &[])]);
            let Some(Ok(Structure::Rmrr(rmrr))) = Dmar::parse(&bytes).unwrap().structures().next()
            else {
                panic!("no region");
            };
            assert_eq!(rmrr.len_bytes(), len, "{base:#x} {limit:#x}");
        }
        for (base, size, valid) in [
            (0, 0, false),
            (0x1000, 0, true),
            (0x1800, 0, false),
            (0x1000, 1, false),
            (0x2000, 1, true),
            (0x0800_0000, 15, true),
            (0x0400_0000, 15, false),
        ] {
            let bytes = table(46, 0, &[&drhd(0, size, 0, base, &[])]);
            let unit = Dmar::parse(&bytes).unwrap().remapping_units().next();
            assert_eq!(unit.unwrap().unwrap().has_valid_base(), valid, "{base:#x}");
        }
    }

    /// Looks at everything there is, and returns how many items that were.
    fn visit(dmar: &Dmar<'_>) -> usize {
        let visit_scopes = |scopes: DeviceScopes<'_>| {
            scopes
                .map(|scope| match scope {
                    Ok(scope) => {
                        let _ = scope.resolve(|bridge| Bridges.secondary_bus(bridge));
                        let _ = scope.resolve(|bridge| bridge.bus().checked_add(1));
                        1 + scope.path().count()
                    }
                    Err(error) => error.to_string().len().min(1),
                })
                .sum::<usize>()
        };
        let mut count = 0;
        for structure in dmar.structures() {
            count += 1 + match structure {
                Ok(Structure::Drhd(unit)) => {
                    let _ = unit.has_valid_base();
                    visit_scopes(unit.scopes())
                }
                Ok(Structure::Rmrr(rmrr)) => {
                    let _ = rmrr.len_bytes();
                    visit_scopes(rmrr.scopes())
                }
                Ok(Structure::Atsr(atsr)) => visit_scopes(atsr.scopes()),
                Ok(Structure::Satc(satc)) => visit_scopes(satc.scopes()),
                Ok(Structure::Sidp(sidp)) => visit_scopes(sidp.scopes()),
                Ok(Structure::Rhsa(_) | Structure::Andd(_) | Structure::Unknown { .. }) => 0,
                Err(error) => error.to_string().len().min(1),
            };
        }
        for device in [source_id(0, 2, 0), source_id(2, 0, 1)] {
            let _ = dmar.unit_for(0, device, &Bridges);
        }
        count
    }

    #[test]
    fn mutated_tables_are_parsed_or_refused() {
        for good in [emulated(), server()] {
            // Every byte takes several values, once with a wrong and once with a right checksum.
            for index in 0..good.len() {
                for value in [0, 1, 2, 3, 5, 6, 7, 8, 0x10, 0x20, 0x7f, 0x80, 0xfe, 0xff] {
                    let mut bytes = good.clone();
                    bytes[index] = value;
                    if let Ok(dmar) = Dmar::parse(&bytes) {
                        assert!(visit(&dmar) <= good.len());
                    }
                    seal(&mut bytes);
                    if let Ok(dmar) = Dmar::parse(&bytes) {
                        assert!(visit(&dmar) <= good.len());
                    }
                }
            }
            // Every truncation: as such, and with a length that matches.
            for len in 0..good.len() {
                assert!(matches!(
                    Dmar::parse(&good[..len]),
                    Err(DmarError::Truncated { .. })
                ));
                let mut bytes = good[..len].to_vec();
                if len >= HEADER_BYTES {
                    bytes[4..8].copy_from_slice(&(len as u32).to_le_bytes());
                    seal(&mut bytes);
                    let dmar = Dmar::parse(&bytes).unwrap();
                    assert!(visit(&dmar) <= len);
                }
            }
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (text, part) in [
            (DmarError::Signature(*b"\0MAR").to_string(), "\\x00MAR"),
            (DmarError::Checksum(7).to_string(), "0x07"),
            (
                DmarError::StructureLength {
                    offset: 0x40,
                    length: 3,
                }
                .to_string(),
                "0x40",
            ),
            (
                ScopeError::NotABridge(source_id(1, 2, 3)).to_string(),
                "01:02.3",
            ),
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
