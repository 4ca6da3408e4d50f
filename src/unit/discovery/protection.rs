//! Whether nothing gets past the units: the one place that says so.

use core::fmt;

use super::units::UnitDescription;
use crate::arch::address::Hpa;
use crate::mem::Registers;
use crate::unit::Unit;

/// Every unit of every segment translates by this driver's tables, as of the moment it was asked.
/// There is no other way to get one than [`protected`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Protected {
    units: usize,
}

impl Protected {
    /// How many units that is.
    pub const fn unit_count(self) -> usize {
        self.units
    }
}

/// A unit that lets DMA pass, or may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unprotected {
    /// The table names no unit.
    NoUnits,
    /// The unit is not driven.
    NotDriven {
        /// Its segment.
        segment: u16,
        /// Its register base.
        base: Hpa,
    },
    /// The unit does not translate, or not by this driver's tables.
    NotTranslating {
        /// Its segment.
        segment: u16,
        /// Its register base.
        base: Hpa,
    },
}

impl fmt::Display for Unprotected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUnits => f.write_str("there is no remapping unit"),
            Self::NotDriven { segment, base } => {
                write!(f, "unit at {base} of segment {segment} is not driven")
            }
            Self::NotTranslating { segment, base } => {
                write!(f, "unit at {base} of segment {segment} does not translate")
            }
        }
    }
}

impl core::error::Error for Unprotected {}

/// Whether each of the units that the table names is driven and translates. A driven unit is told by
/// the [`segment` and `base`](crate::unit::UnitConfig) that it was probed with.
///
/// # Errors
///
/// [`Unprotected`], the first unit of which that cannot be said.
pub fn protected<R: Registers>(
    described: &[UnitDescription],
    driven: &[Unit<R>],
) -> Result<Protected, Unprotected> {
    if described.is_empty() {
        return Err(Unprotected::NoUnits);
    }
    for &UnitDescription { segment, base, .. } in described {
        let unit = driven.iter().find(|unit| {
            let config = unit.config();
            config.segment == segment && config.base == base
        });
        match unit {
            None => return Err(Unprotected::NotDriven { segment, base }),
            Some(unit) if !(unit.is_up() && unit.is_protecting()) => {
                return Err(Unprotected::NotTranslating { segment, base });
            }
            Some(_) => {}
        }
    }
    Ok(Protected {
        units: described.len(),
    })
}
