//! The memory that firmware reserves for devices, by device (§8.4).

use core::fmt;

use heapless::Vec;

use crate::arch::address::{Hpa, PAGE_SIZE_BYTES};
use crate::arch::dmar::{Dmar, DmarError, Structure};
use crate::arch::pci::PciTopology;

use super::requesters::RequesterIds;

/// Memory that a device uses without being told to: whole pages, at least one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReservedRegion {
    base: Hpa,
    len_bytes: u64,
}

impl ReservedRegion {
    /// `len_bytes` from `base` on, or `None` if that is no range of whole pages.
    pub fn new(base: Hpa, len_bytes: u64) -> Option<Self> {
        let is_whole = base.page_offset() == 0
            && len_bytes != 0
            && len_bytes.is_multiple_of(PAGE_SIZE_BYTES)
            && base.as_u64().checked_add(len_bytes).is_some();
        is_whole.then_some(Self { base, len_bytes })
    }

    /// The first byte.
    pub const fn base(&self) -> Hpa {
        self.base
    }

    /// Its length in bytes.
    pub const fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The address behind the last byte.
    pub const fn end(&self) -> u64 {
        self.base.as_u64().saturating_add(self.len_bytes)
    }
}

/// Most regions that are kept for one device.
pub const RESERVED_REGIONS: usize = 8;

/// The regions of one device, none of which overlap.
pub type ReservedRegions = Vec<ReservedRegion, RESERVED_REGIONS>;

/// Why the reserved memory of a device is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReservedRegionError {
    /// A structure of the table is malformed.
    Malformed(DmarError),
    /// The region is empty, or not made of whole pages.
    Region {
        /// Its first byte.
        base: Hpa,
        /// Its last byte.
        limit: Hpa,
    },
    /// The device has more than [`RESERVED_REGIONS`].
    TooMany,
}

impl fmt::Display for ReservedRegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => error.fmt(f),
            Self::Region { base, limit } => {
                write!(
                    f,
                    "reserved memory from {base} to {limit} is no range of pages"
                )
            }
            Self::TooMany => write!(f, "more than {RESERVED_REGIONS} reserved memory regions"),
        }
    }
}

impl core::error::Error for ReservedRegionError {}

/// The reserved memory of a device: of all its source-ids, regions that touch joined.
///
/// # Errors
///
/// [`ReservedRegionError`], for a region of this device only: a device whose reserved memory is not
/// known must not be assigned.
pub fn reserved_regions(
    dmar: &Dmar<'_>,
    segment: u16,
    device: &RequesterIds,
    topology: &impl PciTopology,
) -> Result<ReservedRegions, ReservedRegionError> {
    let mut regions = ReservedRegions::new();
    for structure in dmar.structures() {
        let Structure::Rmrr(rmrr) = structure.map_err(ReservedRegionError::Malformed)? else {
            continue;
        };
        let mut is_for_device = false;
        for scope in rmrr.scopes() {
            let scope = scope.map_err(ReservedRegionError::Malformed)?;
            let resolved = scope.resolve(|bridge| topology.secondary_bus(bridge));
            is_for_device |= resolved.is_ok_and(|source_id| device.contains(source_id));
        }
        if !is_for_device || rmrr.segment != segment {
            continue;
        }
        let region = rmrr
            .len_bytes()
            .and_then(|len_bytes| ReservedRegion::new(rmrr.base, len_bytes))
            .ok_or(ReservedRegionError::Region {
                base: rmrr.base,
                limit: rmrr.limit,
            })?;
        join(&mut regions, region).map_err(|_| ReservedRegionError::TooMany)?;
    }
    Ok(regions)
}

/// Adds a region, joined with all that it touches.
fn join(regions: &mut ReservedRegions, region: ReservedRegion) -> Result<(), ReservedRegion> {
    let (mut start, mut end) = (region.base.as_u64(), region.end());
    // Each round takes out one, so there are no more rounds than regions.
    while let Some(index) = regions
        .iter()
        .position(|other| other.base.as_u64() <= end && start <= other.end())
    {
        let other = regions.swap_remove(index);
        start = start.min(other.base.as_u64());
        end = end.max(other.end());
    }
    regions.push(ReservedRegion {
        base: Hpa::new(start),
        len_bytes: end.saturating_sub(start),
    })
}
