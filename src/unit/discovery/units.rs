//! The remapping units that the DMAR table names (§8.3).

use core::fmt;

use heapless::Vec;

use crate::arch::address::Hpa;
use crate::arch::dmar::{Dmar, DmarError};

/// What the DMAR table says of one unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnitDescription {
    /// The PCI segment whose devices the unit remaps.
    pub segment: u16,
    /// Where the unit's registers are.
    pub base: Hpa,
    /// The size of the register window in bytes.
    pub register_window_bytes: u64,
    /// Whether the unit remaps all devices of its segment that no other unit lists.
    pub include_all: bool,
    /// The width of physical addresses in bits (`HAW`), the same for all units.
    pub host_address_width: u8,
}

/// Why the units are not known. Nobody is protected by the units found before an error, so there is
/// no partial list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiscoveryError {
    /// The table names no unit.
    NoUnits,
    /// A structure of the table is malformed; the error holds its offset.
    Malformed(DmarError),
    /// A unit's register window starts at 0, is misaligned, or is beyond the host address width.
    RegisterBase(Hpa),
    /// The register window of this unit overlaps another's.
    Overlap(Hpa),
    /// There are more units than the list has room for.
    TooMany {
        /// Capacity of the list.
        capacity: usize,
    },
}

impl fmt::Display for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUnits => f.write_str("the DMAR table names no remapping unit"),
            Self::Malformed(error) => error.fmt(f),
            Self::RegisterBase(base) => write!(f, "remapping unit at {base}"),
            Self::Overlap(base) => write!(f, "remapping unit at {base} overlaps another"),
            Self::TooMany { capacity } => write!(f, "more than {capacity} remapping units"),
        }
    }
}

impl core::error::Error for DiscoveryError {}

impl UnitDescription {
    /// The address behind the register window, unless it passes the host address width.
    fn end(&self) -> Option<u64> {
        let end = self.base.as_u64().checked_add(self.register_window_bytes)?;
        // The last address, because the width may be 64 bits.
        let last = end.checked_sub(1)?;
        let beyond = last.checked_shr(self.host_address_width.into());
        (beyond.unwrap_or(0) == 0).then_some(end)
    }
}

/// All units of the table, in its order. A unit that the table lists twice is listed once.
///
/// # Errors
///
/// [`DiscoveryError`]: a machine is protected only if each of its units is driven, so that one
/// unusable entry fails the whole.
pub fn discover<const N: usize>(
    dmar: &Dmar<'_>,
) -> Result<Vec<UnitDescription, N>, DiscoveryError> {
    let mut units: Vec<UnitDescription, N> = Vec::new();
    for unit in dmar.remapping_units() {
        let unit = unit.map_err(DiscoveryError::Malformed)?;
        let description = UnitDescription {
            segment: unit.segment,
            base: unit.base,
            register_window_bytes: unit.register_window_bytes,
            include_all: unit.include_all,
            host_address_width: dmar.host_address_width(),
        };
        let Some(end) = description.end().filter(|_| unit.has_valid_base()) else {
            return Err(DiscoveryError::RegisterBase(unit.base));
        };
        let is_same = |other: &UnitDescription| {
            (other.segment, other.base, other.register_window_bytes)
                == (unit.segment, unit.base, unit.register_window_bytes)
        };
        if let Some(known) = units.iter_mut().find(|other| is_same(other)) {
            known.include_all |= unit.include_all;
            continue;
        }
        let overlaps = |other: &UnitDescription| {
            other.base.as_u64() < end && other.end().is_none_or(|end| unit.base.as_u64() < end)
        };
        if units.iter().any(overlaps) {
            return Err(DiscoveryError::Overlap(unit.base));
        }
        units
            .push(description)
            .map_err(|_| DiscoveryError::TooMany { capacity: N })?;
    }
    if units.is_empty() {
        return Err(DiscoveryError::NoUnits);
    }
    Ok(units)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    /// A DRHD structure: type 0, length 16, flags, size, segment, base (§8.3).
    fn drhd(flags: u8, segment: u16, base: u64) -> vec::Vec<u8> {
        let mut bytes = vec![0, 0, 16, 0, flags, 0];
        bytes.extend(segment.to_le_bytes());
        bytes.extend(base.to_le_bytes());
        bytes
    }

    fn table(structures: &[u8]) -> vec::Vec<u8> {
        let mut bytes = vec![0; 48];
        bytes[..4].copy_from_slice(b"DMAR");
        bytes[36] = 38; // Host address width minus 1.
        bytes.extend(structures);
        let length = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[9] = sum.wrapping_neg();
        bytes
    }

    #[test]
    fn every_unit_is_listed_in_table_order_and_other_structures_are_skipped() {
        let mut structures = drhd(0, 0, 0xfed9_0000);
        structures.extend([9, 0, 4, 0]);
        structures.extend(drhd(1, 1, 0xfed9_1000));
        let bytes = table(&structures);
        let units = discover::<2>(&Dmar::parse(&bytes).unwrap()).unwrap();
        let found: vec::Vec<_> = units
            .iter()
            .map(|unit| (unit.segment, unit.base.as_u64(), unit.include_all))
            .collect();
        assert_eq!(found, [(0, 0xfed9_0000, false), (1, 0xfed9_1000, true)]);
        assert_eq!(units[0].host_address_width, 39);
        assert_eq!(units[0].register_window_bytes, 4096);
    }

    #[test]
    fn a_table_that_does_not_describe_all_units_is_refused() {
        let two = [drhd(0, 0, 0xfed9_0000), drhd(1, 0, 0xfed9_1000)].concat();
        let mut cut = two.clone();
        cut[18] = 40; // The second structure's length goes past the end.
        for (structures, expected) in [
            (vec![], DiscoveryError::NoUnits),
            (two, DiscoveryError::TooMany { capacity: 1 }),
            (
                cut,
                DiscoveryError::Malformed(DmarError::StructureLength {
                    offset: 48 + 16,
                    length: 40,
                }),
            ),
            (drhd(1, 0, 0), DiscoveryError::RegisterBase(Hpa::new(0))),
        ] {
            let bytes = table(&structures);
            assert_eq!(
                discover::<1>(&Dmar::parse(&bytes).unwrap()).unwrap_err(),
                expected
            );
        }
    }
}
