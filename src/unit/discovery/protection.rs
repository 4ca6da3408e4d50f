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

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::unit::UnitConfig;
    use crate::unit::testing::{TE, bench};
    use std::vec::Vec;

    const PLACES: [(u16, u64); 3] = [(0, 0xfed9_0000), (0, 0xfed9_1000), (1, 0xfed9_0000)];

    fn description(&(segment, base): &(u16, u64)) -> UnitDescription {
        UnitDescription {
            segment,
            base: Hpa::new(base),
            register_window_bytes: 4096,
            include_all: false,
            host_address_width: 39,
        }
    }

    // G26
    #[test]
    fn protected_is_who_drives_every_unit_of_every_segment() {
        let described: Vec<_> = PLACES.iter().map(description).collect();
        let benches: Vec<_> = described
            .iter()
            .map(|description| {
                bench(|options| {
                    options.config = UnitConfig {
                        timeout_nanoseconds: 100_000,
                        queue_order: 0,
                        ..UnitConfig::of(description)
                    };
                })
            })
            .collect();
        let (worlds, units): (Vec<_>, Vec<_>) = benches
            .into_iter()
            .map(|bench| (bench.h, bench.unit))
            .unzip();
        let at = |index: usize| (described[index].segment, described[index].base);
        let silent = |index: usize| {
            let (segment, base) = at(index);
            Err(Unprotected::NotTranslating { segment, base })
        };
        assert_eq!(protected(&[], &units), Err(Unprotected::NoUnits));
        for index in 0..3 {
            assert_eq!(protected(&described, &units), silent(index));
            units[index].bring_up(&worlds[index]).unwrap();
        }
        let everything = protected(&described, &units).unwrap();
        assert_eq!(everything.unit_count(), 3);
        for count in 0..3 {
            let (segment, base) = at(count);
            let missing = Err(Unprotected::NotDriven { segment, base });
            assert_eq!(protected(&described, &units[..count]), missing);
        }
        // Somebody else turns a unit off.
        worlds[1].world.borrow_mut().status &= !TE;
        assert_eq!(protected(&described, &units), silent(1));
    }
}
