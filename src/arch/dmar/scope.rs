//! Device scopes: which devices a structure means (§8.3.1).

use core::fmt;
use core::iter::FusedIterator;

use super::{DmarError, u8_at};
use crate::arch::id::SourceId;

/// The size of a device scope without its path in bytes.
const SCOPE_HEAD_BYTES: usize = 6;
/// The size of one path entry in bytes.
const PATH_ENTRY_BYTES: usize = 2;

/// The bytes of a structure's device scopes, and where they start in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ScopeBytes<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> ScopeBytes<'a> {
    /// What follows the first `head` bytes of a structure.
    pub(super) fn after(structure: &'a [u8], offset: usize, head: usize) -> Option<Self> {
        Some(Self {
            bytes: structure.get(head..)?,
            offset: offset.saturating_add(head),
        })
    }

    pub(super) const fn iter(&self) -> DeviceScopes<'a> {
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
    /// The flags, which have a meaning only inside [`Sidp`](super::Sidp).
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
    pub(super) fn split(bytes: &'a [u8], length: u8) -> Option<(Self, &'a [u8])> {
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
}
