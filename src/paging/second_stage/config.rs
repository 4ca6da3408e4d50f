//! What a table may look like: its width, checked against the units that walk it, and its pages.

use crate::arch::address::{AddressWidth, Hpa, PageSize};
use crate::arch::features::{AddressWidths, TableFeatures};
use crate::arch::second_stage::SecondStagePointer;
use crate::arch::told::{Told, display_as_told};

/// What a table may look like: a width, and the common ability of every unit that walks it.
///
/// A value exists for a width only if `CAP.SAGAW` of all those units has it (§11.4.2), so a table
/// cannot have other levels than hardware walks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondStageConfig {
    width: AddressWidth,
    units: CommonAbility,
    tracks_access: bool,
    forces_snoop: bool,
}

/// What all units have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct CommonAbility {
    /// `CAP.SAGAW`.
    widths: AddressWidths,
    /// `CAP.MGAW`, in bits.
    input_bits: u8,
    /// The host address width (§8.1).
    output_bits: u8,
    pages: PageAbility,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct PageAbility {
    /// `CAP.SSLPS` bit 0.
    leaves_2mib: bool,
    /// `CAP.SSLPS` bit 1.
    leaves_1gib: bool,
    /// Walks are snooped (`ECAP.SMPWCS`).
    snooped: bool,
    /// `ECAP.SSADS`.
    accessed_dirty: bool,
    /// `ECAP.SC`.
    snoop_control: bool,
}

/// Why there is no such table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// Some unit does not walk tables of this width.
    Width {
        /// The width asked for.
        width: AddressWidth,
        /// The widths that all units have in common (`CAP.SAGAW`).
        supported: AddressWidths,
    },
    /// Some unit does not maintain accessed and dirty bits (`ECAP.SSADS`).
    AccessedDirty,
    /// Some unit does not force accesses to snoop (`ECAP.SC`).
    SnoopControl,
}

impl ConfigError {
    pub(crate) const fn told(&self) -> Told {
        match *self {
            Self::Width { width, supported } => Told::two(
                "no second-stage tables of this width; SAGAW",
                width.bits() as u64,
                supported.field(),
            ),
            Self::AccessedDirty => Told::words("no second-stage accessed and dirty bits"),
            Self::SnoopControl => Told::words("no snoop control"),
        }
    }
}

display_as_told!(ConfigError);

impl core::error::Error for ConfigError {}

impl CommonAbility {
    fn of(unit: &TableFeatures) -> Self {
        Self {
            widths: unit.widths,
            input_bits: unit.maximum_guest_address_width,
            output_bits: unit.host_address_width,
            pages: PageAbility {
                leaves_2mib: unit.second_stage_2mib,
                leaves_1gib: unit.second_stage_1gib,
                snooped: unit.page_walk_coherency,
                accessed_dirty: unit.second_stage_accessed_dirty,
                snoop_control: unit.snoop_control,
            },
        }
    }

    fn and(self, other: Self) -> Self {
        let (ours, theirs) = (self.pages, other.pages);
        Self {
            widths: AddressWidths::from_field(self.widths.field() & other.widths.field()),
            input_bits: self.input_bits.min(other.input_bits),
            output_bits: self.output_bits.min(other.output_bits),
            pages: PageAbility {
                leaves_2mib: ours.leaves_2mib && theirs.leaves_2mib,
                leaves_1gib: ours.leaves_1gib && theirs.leaves_1gib,
                snooped: ours.snooped && theirs.snooped,
                accessed_dirty: ours.accessed_dirty && theirs.accessed_dirty,
                snoop_control: ours.snoop_control && theirs.snoop_control,
            },
        }
    }
}

impl SecondStageConfig {
    /// Of a table that is never used.
    pub(super) const VACANT: Self = Self {
        width: AddressWidth::Bits48,
        units: CommonAbility {
            widths: AddressWidths::NONE,
            input_bits: 0,
            output_bits: 0,
            pages: PageAbility {
                leaves_2mib: false,
                leaves_1gib: false,
                snooped: true,
                accessed_dirty: false,
                snoop_control: false,
            },
        },
        tracks_access: false,
        forces_snoop: false,
    };

    /// Tables of a width, walked by one unit.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Width`] if its `SAGAW` lacks the width.
    pub fn new(width: AddressWidth, unit: &TableFeatures) -> Result<Self, ConfigError> {
        Self {
            width,
            units: CommonAbility::of(unit),
            tracks_access: false,
            forces_snoop: false,
        }
        .checked()
    }

    /// The same tables, walked by a further unit too.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if that unit lacks what the tables need.
    pub fn and(self, unit: &TableFeatures) -> Result<Self, ConfigError> {
        Self {
            units: self.units.and(CommonAbility::of(unit)),
            ..self
        }
        .checked()
    }

    /// Tables of another width, walked by the same units, without
    /// [access tracking](Self::tracking_access).
    ///
    /// # Errors
    ///
    /// [`ConfigError::Width`] if a unit lacks the width.
    pub fn with_width(self, width: AddressWidth) -> Result<Self, ConfigError> {
        Self {
            width,
            tracks_access: false,
            ..self
        }
        .checked()
    }

    /// The same tables with accessed and dirty bits, which hardware maintains if `SSADE` is set in
    /// the PASID entries that name them (§3.7.2, §9.6). All entries with one root agree in `SSADE`
    /// (§6.2.3.1), so it belongs to the table.
    ///
    /// # Errors
    ///
    /// [`ConfigError::AccessedDirty`] if a unit lacks the ability.
    pub fn tracking_access(self) -> Result<Self, ConfigError> {
        Self {
            tracks_access: true,
            ..self
        }
        .checked()
    }

    /// The same tables, each page of which forces accesses to snoop the processor caches, whatever the
    /// device asks for (`SNP` of each leaf, §3.10, §9.9). In scalable mode a PASID entry can say the same of
    /// all of its pages (`PGSNP`); in legacy mode there is no other way.
    ///
    /// # Errors
    ///
    /// [`ConfigError::SnoopControl`] if a unit lacks the ability.
    pub fn forcing_snoop(self) -> Result<Self, ConfigError> {
        Self {
            forces_snoop: true,
            ..self
        }
        .checked()
    }

    /// The same tables, with input addresses of at most this many bits.
    #[must_use]
    pub const fn with_input_bits_up_to(mut self, bits: u8) -> Self {
        if bits < self.units.input_bits {
            self.units.input_bits = bits;
        }
        self
    }

    /// The same tables with leaves of at most this size.
    #[must_use]
    pub const fn with_leaves_up_to(mut self, size: PageSize) -> Self {
        let pages = &mut self.units.pages;
        pages.leaves_2mib = pages.leaves_2mib && size.level() >= PageSize::Size2MiB.level();
        pages.leaves_1gib = pages.leaves_1gib && size.level() >= PageSize::Size1GiB.level();
        self
    }

    /// The top-level page of a table like this.
    pub(super) const fn root(&self, address: Hpa) -> SecondStagePointer {
        SecondStagePointer::new(address, self.width)
    }

    fn checked(self) -> Result<Self, ConfigError> {
        if !self.units.widths.contains(self.width) {
            return Err(ConfigError::Width {
                width: self.width,
                supported: self.units.widths,
            });
        }
        if self.tracks_access && !self.units.pages.accessed_dirty {
            return Err(ConfigError::AccessedDirty);
        }
        if self.forces_snoop && !self.units.pages.snoop_control {
            return Err(ConfigError::SnoopControl);
        }
        Ok(self)
    }

    /// Levels and input width.
    #[inline]
    pub const fn width(&self) -> AddressWidth {
        self.width
    }

    /// Bits of an input address that hardware accepts: min(`CAP.MGAW`, width).
    #[inline]
    pub const fn input_bits(&self) -> u8 {
        if self.units.input_bits < self.width.bits() {
            self.units.input_bits
        } else {
            self.width.bits()
        }
    }

    /// Bits of an output address that are not reserved: the host address width (§8.1), at most 52.
    #[inline]
    pub const fn output_bits(&self) -> u8 {
        if self.units.output_bits < 52 {
            self.units.output_bits
        } else {
            52
        }
    }

    /// Whether leaves of a size are supported (`CAP.SSLPS`). 1-GiB leaves count only beside 2-MiB
    /// ones, into which they are split.
    #[inline]
    pub const fn has_leaves_of(&self, size: PageSize) -> bool {
        let pages = self.units.pages;
        match size {
            PageSize::Size4KiB => true,
            PageSize::Size2MiB => pages.leaves_2mib,
            PageSize::Size1GiB => pages.leaves_1gib && pages.leaves_2mib,
        }
    }

    /// Whether every change has to be flushed from the processor caches, because some unit's walks
    /// are not snooped (`ECAP.SMPWCS`, §3.10).
    #[inline]
    pub const fn needs_flush(&self) -> bool {
        !self.units.pages.snooped
    }

    /// Whether every page forces accesses to snoop (`SNP`).
    #[inline]
    pub const fn forces_snoop(&self) -> bool {
        self.forces_snoop
    }

    /// Whether hardware maintains accessed and dirty bits in the table.
    #[inline]
    pub const fn tracks_access(&self) -> bool {
        self.tracks_access
    }
}

#[cfg(test)]
impl SecondStageConfig {
    /// Four levels, 46-bit host addresses, all page sizes, snooped walks.
    pub(crate) const EXAMPLE: Self = Self {
        width: AddressWidth::Bits48,
        units: CommonAbility {
            widths: AddressWidths::ALL,
            input_bits: 48,
            output_bits: 46,
            pages: PageAbility {
                leaves_2mib: true,
                leaves_1gib: true,
                snooped: true,
                accessed_dirty: true,
                snoop_control: true,
            },
        },
        tracks_access: false,
        forces_snoop: false,
    };

    /// The same, with walks that are not snooped.
    pub(crate) const fn unsnooped(mut self) -> Self {
        self.units.pages.snooped = false;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // G16, §11.4.2: bits 1, 2, 3 of SAGAW are 39, 48 and 57 bits.
    #[test]
    fn a_table_has_only_widths_that_every_unit_walks() {
        for one in 0..16 {
            for other in 0..16 {
                let unit = |field| TableFeatures {
                    widths: AddressWidths::from_field(field),
                    ..TableFeatures::EVERYTHING
                };
                for (width, bit) in [
                    (AddressWidth::Bits39, 1 << 1),
                    (AddressWidth::Bits48, 1 << 2),
                    (AddressWidth::Bits57, 1 << 3),
                ] {
                    let first = SecondStageConfig::new(width, &unit(one));
                    assert_eq!(first.is_ok(), one & bit != 0, "{width:?} of {one:#b}");
                    let Ok(first) = first else { continue };
                    let both = first.and(&unit(other));
                    let expected = if other & bit != 0 {
                        Ok(width)
                    } else {
                        Err(ConfigError::Width {
                            width,
                            supported: AddressWidths::from_field(one & other),
                        })
                    };
                    assert_eq!(both.map(|config| config.width()), expected);
                    for next in AddressWidth::ALL {
                        let found = first.with_width(next).map(|config| config.width());
                        let has = one >> next.field() & 1 == 1;
                        assert_eq!(found.ok(), has.then_some(next));
                    }
                }
            }
        }
    }

    #[test]
    fn several_units_have_what_each_of_them_has() {
        let all = TableFeatures {
            host_address_width: 46,
            maximum_guest_address_width: 57,
            ..TableFeatures::EVERYTHING
        };
        let width = AddressWidth::Bits48;
        let config = SecondStageConfig::new(width, &all).unwrap();
        assert_eq!((config.input_bits(), config.output_bits()), (48, 46));
        let narrow = TableFeatures {
            maximum_guest_address_width: 40,
            host_address_width: 39,
            ..all
        };
        let both = config.and(&narrow).unwrap();
        assert_eq!((both.input_bits(), both.output_bits()), (40, 39));
        let sizes =
            |config: SecondStageConfig| PageSize::ALL.map(|size| config.has_leaves_of(size));
        let without = |change: fn(&mut TableFeatures)| {
            let mut unit = all;
            change(&mut unit);
            config.and(&unit).unwrap()
        };
        assert_eq!(sizes(config), [true, true, true]);
        let no_1gib = without(|unit| unit.second_stage_1gib = false);
        assert_eq!(sizes(no_1gib), [true, true, false]);
        let no_2mib = without(|unit| unit.second_stage_2mib = false);
        assert_eq!(sizes(no_2mib), [true, false, false]);
        let shorter = config.with_input_bits_up_to(47);
        assert_eq!(shorter.input_bits(), 47);
        assert_eq!(shorter.with_input_bits_up_to(60).input_bits(), 47);
        for (size, expected) in [
            (PageSize::Size4KiB, [true, false, false]),
            (PageSize::Size2MiB, [true, true, false]),
            (PageSize::Size1GiB, [true, true, true]),
        ] {
            assert_eq!(sizes(config.with_leaves_up_to(size)), expected);
        }
        assert!(!config.needs_flush());
        assert!(without(|unit| unit.page_walk_coherency = false).needs_flush());
    }

    #[test]
    fn accessed_and_dirty_bits_need_every_unit() {
        let able = TableFeatures::EVERYTHING;
        let unable = TableFeatures {
            second_stage_accessed_dirty: false,
            ..able
        };
        let width = AddressWidth::Bits48;
        let config = SecondStageConfig::new(width, &able).unwrap();
        assert!(!config.tracks_access());
        let tracking = config.tracking_access().unwrap();
        assert!(tracking.tracks_access());
        assert_eq!(tracking.and(&unable), Err(ConfigError::AccessedDirty));
        let both = config.and(&unable).unwrap();
        assert_eq!(both.tracking_access(), Err(ConfigError::AccessedDirty));
        // Another table: nobody asked for its bits.
        let other = tracking.with_width(AddressWidth::Bits57).unwrap();
        assert!(!other.tracks_access());
    }

    #[test]
    fn forced_snooping_needs_every_unit_and_goes_with_the_width() {
        let able = TableFeatures::EVERYTHING;
        let unable = TableFeatures {
            snoop_control: false,
            ..able
        };
        let width = AddressWidth::Bits48;
        let config = SecondStageConfig::new(width, &able).unwrap();
        assert!(!config.forces_snoop());
        let forcing = config.forcing_snoop().unwrap();
        assert_eq!(forcing.and(&unable), Err(ConfigError::SnoopControl));
        let both = config.and(&unable).unwrap();
        assert_eq!(both.forcing_snoop(), Err(ConfigError::SnoopControl));
        // Shadows of the machine's devices are such tables, too.
        let other = forcing.with_width(AddressWidth::Bits57).unwrap();
        assert!(other.forces_snoop());
    }
}
