//! Errata of real units: which platforms have them, and what is avoided there.
//!
//! [`ERRATA`] is the one table. [`Errata::of`] looks a platform up in it; what it finds goes into
//! [`UnitConfig::errata`](crate::unit::UnitConfig::errata), and everything else follows from there.
//! An ability that an erratum makes unusable is taken as absent by
//! [`Unit::probe`](crate::unit::Unit::probe), so nothing above has to ask.

use core::fmt;
use core::ops::RangeInclusive;

use crate::arch::capability::{
    Capability, CapabilityField, ExtendedCapability, ExtendedCapabilityField,
};

/// Something that real hardware does differently from what it reports or what is specified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Erratum {
    /// With snooped walks (`PWSNP`), nested translation sets accessed and dirty bits in first-stage
    /// entries even where the second stage makes them read-only. Avoided: read-only ranges in the
    /// second stage of a machine whose entries nest.
    NestedUpdatesIgnoreReadOnly,
    /// Interrupt remapping loses or misroutes interrupts. Avoided: `ECAP.IR` and what needs it are
    /// taken as absent, so that no device can be assigned that needs isolated interrupts.
    InterruptRemapping,
    /// Large second-stage pages are reported, but unusable. Avoided: `CAP.SSLPS` is taken as 0.
    SecondStageLargePages,
    /// Write buffers must be flushed, although `CAP.RWBF` says that they need not.
    WriteBufferFlush,
    /// A unit that remaps integrated graphics only does not survive that translation is turned off.
    /// Avoided: translation, once on, stays on.
    TranslationStaysOn,
}

impl Erratum {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NestedUpdatesIgnoreReadOnly,
        Self::InterruptRemapping,
        Self::SecondStageLargePages,
        Self::WriteBufferFlush,
        Self::TranslationStaysOn,
    ];

    /// What is wrong, in a few words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NestedUpdatesIgnoreReadOnly => "nested updates ignore read-only",
            Self::InterruptRemapping => "broken interrupt remapping",
            Self::SecondStageLargePages => "broken large second-stage pages",
            Self::WriteBufferFlush => "write-buffer flush needed but not reported",
            Self::TranslationStaysOn => "translation cannot be turned off",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Erratum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Vendor id of Intel's PCI devices.
const INTEL: u16 = 0x8086;

/// A processor's model, as `CPUID` leaf 1 gives it with the extended fields added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessorModel {
    /// Family.
    pub family: u16,
    /// Model.
    pub model: u8,
}

/// Identity of a PCI function, from its configuration space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciIdentity {
    /// Vendor id (offset 0).
    pub vendor: u16,
    /// Device id (offset 2).
    pub device: u16,
    /// Revision id (offset 8).
    pub revision: u8,
}

/// What a platform is recognised by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlatformIdentity {
    /// The processors' model, if they are Intel's.
    pub processor: Option<ProcessorModel>,
    /// The host bridge: segment 0, bus 0, device 0, function 0.
    pub host_bridge: Option<PciIdentity>,
}

/// Which platforms have an erratum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Affected {
    /// Platforms with these Intel processors.
    Processor(ProcessorModel),
    /// Platforms with this Intel host bridge, in these revisions.
    HostBridge {
        /// Device id.
        device: u16,
        /// Revision ids.
        revisions: RangeInclusive<u8>,
    },
}

impl Affected {
    fn covers(&self, platform: &PlatformIdentity) -> bool {
        match self {
            Self::Processor(model) => platform.processor == Some(*model),
            Self::HostBridge { device, revisions } => platform.host_bridge.is_some_and(|bridge| {
                bridge.vendor == INTEL
                    && bridge.device == *device
                    && revisions.contains(&bridge.revision)
            }),
        }
    }
}

/// One row of [`ERRATA`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ErratumRow {
    /// What is wrong.
    pub erratum: Erratum,
    /// Where.
    pub affected: Affected,
    /// Where it is published.
    pub source: &'static str,
}

const fn processor(erratum: Erratum, model: u8, source: &'static str) -> ErratumRow {
    ErratumRow {
        erratum,
        affected: Affected::Processor(ProcessorModel { family: 6, model }),
        source,
    }
}

const fn host_bridge(
    erratum: Erratum,
    device: u16,
    revisions: RangeInclusive<u8>,
    source: &'static str,
) -> ErratumRow {
    ErratumRow {
        erratum,
        affected: Affected::HostBridge { device, revisions },
        source,
    }
}

const SAPPHIRE_RAPIDS: &str = "Intel document 772415, item SPR17";
const CHIPSET_5500: &str = "Intel document 321329, items 47 and 53";
const CHIPSET_X58: &str = "Intel document 320839, items 62 and 69";
const SANDY_BRIDGE: &str = "Xen security advisory XSA-304, its patch for SandyBridge units";
const SERIES_4: &str = "Linux, drivers/iommu/intel/iommu.c: 4 Series chipsets";

/// Generations of integrated graphics, bits 15:8 of the device id, whose own unit has
/// [`Erratum::TranslationStaysOn`]. Source: Linux, drivers/iommu/intel/iommu.c, its list of graphics
/// devices for which `GCMD.TE` is not cleared.
pub const GRAPHICS_TRANSLATION_STAYS_ON: [u8; 9] =
    [0x45, 0x46, 0x4c, 0x4e, 0x7d, 0x8a, 0x98, 0x9a, 0xa7];

/// Device ids of accelerators (QAT) whose device-TLB forgets with certainty only at the second
/// invalidation. Source: Linux, drivers/iommu/intel/iommu.c, devices with an extra device-TLB
/// invalidation.
pub const DEVICE_TLB_FORGETS_LATE: RangeInclusive<u16> = 0x4940..=0x4943;

/// Whether a device's own TLB is better not used, because it does not forget what it is told to.
///
/// [`DeviceCapabilities::find`](crate::unit::DeviceCapabilities::find) asks it, by the ids in
/// configuration space. Those of a virtual function read all ones there: the embedder asks
/// with its physical function's vendor id and VF Device ID.
pub fn has_unreliable_device_tlb(device: &PciIdentity) -> bool {
    device.vendor == INTEL && DEVICE_TLB_FORGETS_LATE.contains(&device.device)
}

/// Every erratum that the library knows how to avoid.
pub const ERRATA: &[ErratumRow] = {
    use Erratum::{
        InterruptRemapping, NestedUpdatesIgnoreReadOnly, SecondStageLargePages, WriteBufferFlush,
    };
    &[
        processor(NestedUpdatesIgnoreReadOnly, 0x8f, SAPPHIRE_RAPIDS),
        // Revisions: 12h is stepping B2, 13h is B3, 22h is C2.
        host_bridge(InterruptRemapping, 0x3403, 0..=0x13, CHIPSET_5500),
        host_bridge(InterruptRemapping, 0x3406, 0..=0x13, CHIPSET_5500),
        host_bridge(InterruptRemapping, 0x3405, 0..=0x13, CHIPSET_X58),
        host_bridge(InterruptRemapping, 0x3405, 0x22..=0x22, CHIPSET_X58),
        processor(SecondStageLargePages, 0x2a, SANDY_BRIDGE),
        processor(SecondStageLargePages, 0x2d, SANDY_BRIDGE),
        host_bridge(WriteBufferFlush, 0x2a40, 0..=0xff, SERIES_4),
        host_bridge(WriteBufferFlush, 0x2e00, 0..=0xff, SERIES_4),
        host_bridge(WriteBufferFlush, 0x2e10, 0..=0xff, SERIES_4),
        host_bridge(WriteBufferFlush, 0x2e20, 0..=0xff, SERIES_4),
        host_bridge(WriteBufferFlush, 0x2e30, 0..=0xff, SERIES_4),
        host_bridge(WriteBufferFlush, 0x2e40, 0..=0xff, SERIES_4),
        host_bridge(WriteBufferFlush, 0x2e90, 0..=0xff, SERIES_4),
    ]
};

/// A set of errata.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Errata(u8);

impl Errata {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// What [`ERRATA`] says of a platform.
    pub fn of(platform: &PlatformIdentity) -> Self {
        ERRATA
            .iter()
            .filter(|row| row.affected.covers(platform))
            .fold(Self::NONE, |errata, row| errata.with(row.erratum))
    }

    /// What is known of a unit that remaps no device but this integrated graphics device (class 03h).
    /// To be united with that of the platform.
    pub fn of_graphics_unit(graphics: &PciIdentity) -> Self {
        let generation = (graphics.device >> 8) as u8;
        if graphics.vendor == INTEL && GRAPHICS_TRANSLATION_STAYS_ON.contains(&generation) {
            Self::NONE.with(Erratum::TranslationStaysOn)
        } else {
            Self::NONE
        }
    }

    /// What is in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set with an erratum that the embedder knows of or wants to assume.
    #[must_use]
    pub const fn with(self, erratum: Erratum) -> Self {
        Self(self.0 | erratum.bit())
    }

    /// Whether an erratum is in the set.
    pub const fn contains(self, erratum: Erratum) -> bool {
        self.0 & erratum.bit() != 0
    }

    /// Whether interrupt remapping must not be used.
    pub const fn avoids_interrupt_remapping(self) -> bool {
        self.contains(Erratum::InterruptRemapping)
    }

    /// Whether translation, once on, must not be turned off.
    pub const fn keeps_translation_on(self) -> bool {
        self.contains(Erratum::TranslationStaysOn)
    }

    /// Whether a second stage below nested entries must have no read-only ranges.
    pub const fn avoids_read_only_under_nesting(self) -> bool {
        self.contains(Erratum::NestedUpdatesIgnoreReadOnly)
    }

    /// The set's errata.
    pub fn iter(self) -> impl Iterator<Item = Erratum> {
        Erratum::ALL
            .into_iter()
            .filter(move |erratum| self.contains(*erratum))
    }

    /// What capability registers are worth, given the errata.
    pub(super) fn correct(
        self,
        mut capability: Capability,
        mut extended: ExtendedCapability,
    ) -> (Capability, ExtendedCapability) {
        if self.contains(Erratum::SecondStageLargePages) {
            capability = capability.with(CapabilityField::SECOND_STAGE_LARGE_PAGES, 0);
        }
        if self.contains(Erratum::WriteBufferFlush) {
            capability = capability.with(CapabilityField::WRITE_BUFFER_FLUSH, 1);
        }
        if self.avoids_interrupt_remapping() {
            capability = capability.with(CapabilityField::POSTED_INTERRUPTS, 0);
            extended = extended
                .with(ExtendedCapabilityField::INTERRUPT_REMAPPING, 0)
                .with(ExtendedCapabilityField::EXTENDED_INTERRUPT_MODE, 0);
        }
        (capability, extended)
    }
}

impl fmt::Debug for Errata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;
    use std::vec::Vec;

    fn with_processor(family: u16, model: u8) -> PlatformIdentity {
        PlatformIdentity {
            processor: Some(ProcessorModel { family, model }),
            host_bridge: None,
        }
    }

    fn with_bridge(vendor: u16, device: u16, revision: u8) -> PlatformIdentity {
        PlatformIdentity {
            processor: None,
            host_bridge: Some(PciIdentity {
                vendor,
                device,
                revision,
            }),
        }
    }

    // G3, G14: platforms as their documents name them, and their nearest unaffected neighbours.
    #[test]
    fn platforms_have_the_published_errata_and_no_others() {
        use Erratum::*;
        let none: &[Erratum] = &[];
        for (platform, expected) in [
            (with_processor(6, 0x8f), &[NestedUpdatesIgnoreReadOnly][..]),
            (with_processor(15, 0x8f), none),
            (with_processor(6, 0x8e), none),
            (with_processor(6, 0x2a), &[SecondStageLargePages]),
            (with_processor(6, 0x2d), &[SecondStageLargePages]),
            (with_processor(6, 0x3a), none),
            (with_bridge(0x8086, 0x3403, 0x13), &[InterruptRemapping]),
            (with_bridge(0x8086, 0x3403, 0x22), none),
            (with_bridge(0x8086, 0x3406, 0x12), &[InterruptRemapping]),
            (with_bridge(0x8086, 0x3406, 0x22), none),
            (with_bridge(0x8086, 0x3405, 0x12), &[InterruptRemapping]),
            (with_bridge(0x8086, 0x3405, 0x13), &[InterruptRemapping]),
            (with_bridge(0x8086, 0x3405, 0x22), &[InterruptRemapping]),
            (with_bridge(0x8086, 0x3405, 0x23), none),
            (with_bridge(0x1af4, 0x3405, 0x13), none),
            (with_bridge(0x8086, 0x3404, 0x13), none),
            (with_bridge(0x8086, 0x2a40, 0x07), &[WriteBufferFlush]),
            (with_bridge(0x8086, 0x2e90, 0x00), &[WriteBufferFlush]),
            (with_bridge(0x8086, 0x2e80, 0x00), none),
            // The emulated Q35 host bridge.
            (with_bridge(0x8086, 0x29c0, 0x00), none),
        ] {
            let found: Vec<_> = Errata::of(&platform).iter().collect();
            assert_eq!(found, expected, "{platform:x?}");
        }
        let unknown = PlatformIdentity {
            processor: None,
            host_bridge: None,
        };
        assert_eq!(Errata::of(&unknown), Errata::NONE);
    }

    #[test]
    fn each_row_is_found_by_its_own_platform_and_names_its_source() {
        for row in ERRATA {
            let platform = match &row.affected {
                Affected::Processor(model) => with_processor(model.family, model.model),
                Affected::HostBridge { device, revisions } => {
                    with_bridge(INTEL, *device, *revisions.end())
                }
            };
            assert!(Errata::of(&platform).contains(row.erratum), "{row:x?}");
            assert!(!row.source.is_empty(), "{row:x?}");
        }
        for erratum in Erratum::ALL {
            let is_listed = ERRATA.iter().any(|row| row.erratum == erratum);
            // By the graphics device, not by the platform.
            let is_of_platform = erratum != Erratum::TranslationStaysOn;
            assert_eq!(is_listed, is_of_platform, "{erratum}");
        }
    }

    #[test]
    fn devices_have_the_published_errata_and_no_others() {
        let identity = |vendor, device| PciIdentity {
            vendor,
            device,
            revision: 0,
        };
        // Ice Lake, Tiger Lake, Rocket Lake, Meteor Lake and Raptor Lake; Skylake, another vendor's.
        for (vendor, device, stays_on) in [
            (0x8086, 0x8a52, true),
            (0x8086, 0x9a49, true),
            (0x8086, 0x4c8a, true),
            (0x8086, 0x7d55, true),
            (0x8086, 0xa780, true),
            (0x8086, 0x1912, false),
            (0x1002, 0x9a49, false),
        ] {
            let errata = Errata::of_graphics_unit(&identity(vendor, device));
            let found = errata.contains(Erratum::TranslationStaysOn);
            assert_eq!(found, stays_on, "{vendor:x}:{device:x}");
            let both = errata.union(Errata::NONE.with(Erratum::WriteBufferFlush));
            assert_eq!(both.contains(Erratum::TranslationStaysOn), stays_on);
            assert!(both.contains(Erratum::WriteBufferFlush));
        }
        for (vendor, device, is_unreliable) in [
            (0x8086, 0x493f, false),
            (0x8086, 0x4940, true),
            (0x8086, 0x4943, true),
            (0x8086, 0x4944, false),
            (0x1af4, 0x4940, false),
        ] {
            let found = has_unreliable_device_tlb(&identity(vendor, device));
            assert_eq!(found, is_unreliable, "{vendor:x}:{device:x}");
        }
    }

    // §11.4.2: RWBF 4, SSLPS 37:34, PI 59; §11.4.3: IR 3, EIM 4.
    #[test]
    fn capabilities_lose_what_an_erratum_makes_unusable() {
        let all = (u64::MAX, u64::MAX);
        for (erratum, reported, expected) in [
            (Erratum::NestedUpdatesIgnoreReadOnly, all, all),
            (Erratum::InterruptRemapping, all, (!(1 << 59), !(0b11 << 3))),
            (
                Erratum::SecondStageLargePages,
                all,
                (!(0xf << 34), u64::MAX),
            ),
            (Erratum::WriteBufferFlush, (0, 0), (1 << 4, 0)),
            (Erratum::TranslationStaysOn, all, all),
        ] {
            let (capability, extended) = Errata::NONE.with(erratum).correct(
                Capability::from_bits(reported.0),
                ExtendedCapability::from_bits(reported.1),
            );
            let corrected = (capability.bits(), extended.bits());
            assert_eq!(corrected, expected, "{erratum}");
        }
        let untouched = Errata::NONE.correct(
            Capability::from_bits(u64::MAX),
            ExtendedCapability::from_bits(u64::MAX),
        );
        assert_eq!((untouched.0.bits(), untouched.1.bits()), all);
    }

    #[test]
    fn a_set_shows_its_errata() {
        let two = Errata::NONE
            .with(Erratum::InterruptRemapping)
            .with(Erratum::WriteBufferFlush);
        assert_eq!(format!("{two:?}"), "{InterruptRemapping, WriteBufferFlush}");
        assert!(two.avoids_interrupt_remapping() && !two.avoids_read_only_under_nesting());
    }
}
