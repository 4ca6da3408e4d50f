//! The units that are compared: QEMU's options, and the model that goes with them.

use vtd_model::{CacheMode, ModelConfig};
use vtd_nest::arch::capability::{
    Capability, CapabilityField as Cap, ExtendedCapability, ExtendedCapabilityField as Ecap,
};
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::Registers;
use vtd_qtest::{Options, Qemu};

use crate::random::mix;

/// What QEMU's unit is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// Without scalable mode.
    Legacy,
    /// Scalable mode with second-stage tables.
    SecondStage,
    /// Scalable mode with first-stage tables.
    FirstStage,
}

/// One unit on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    /// Its name, for `--only` and the report.
    pub name: &'static str,
    /// The unit that the options are added to.
    pub base: Base,
    /// More options of QEMU's unit.
    pub options: &'static [&'static str],
    /// The model says that page walks are snooped (`ECAP.SMPWCS`), and programs ask for it.
    ///
    /// QEMU's unit reports that they are not, but sets accessed and dirty bits all the same. Only
    /// so can those be compared; without, the model faults where one would have to be set.
    pub snooped_walks: bool,
    /// Only `--full` runs it.
    pub full_only: bool,
}

const fn configuration(
    name: &'static str,
    base: Base,
    options: &'static [&'static str],
) -> Configuration {
    Configuration {
        name,
        base,
        options,
        snooped_walks: false,
        full_only: false,
    }
}

const fn full_only(configuration: Configuration) -> Configuration {
    Configuration {
        full_only: true,
        ..configuration
    }
}

/// All configurations.
pub const ALL: [Configuration; 13] = [
    configuration("legacy", Base::Legacy, &[]),
    configuration("second-stage", Base::SecondStage, &[]),
    configuration("first-stage", Base::FirstStage, &[]),
    Configuration {
        snooped_walks: true,
        ..configuration("first-stage-snooped", Base::FirstStage, &[])
    },
    configuration(
        "second-stage-caching",
        Base::SecondStage,
        &["caching-mode=on"],
    ),
    configuration("second-stage-39", Base::SecondStage, &["aw-bits=39"]),
    full_only(configuration(
        "legacy-caching",
        Base::Legacy,
        &["caching-mode=on"],
    )),
    full_only(configuration("legacy-39", Base::Legacy, &["aw-bits=39"])),
    full_only(configuration(
        "legacy-device-iotlb",
        Base::Legacy,
        &["device-iotlb=on"],
    )),
    full_only(configuration("legacy-no-pt", Base::Legacy, &["pt=off"])),
    full_only(configuration(
        "second-stage-snoop-control",
        Base::SecondStage,
        &["snoop-control=on"],
    )),
    full_only(configuration(
        "second-stage-no-pt",
        Base::SecondStage,
        &["pt=off"],
    )),
    Configuration {
        snooped_walks: true,
        full_only: true,
        ..configuration("first-stage-no-1gib", Base::FirstStage, &["fs1gp=off"])
    },
];

impl Configuration {
    /// QEMU's options for it; `None` if this QEMU has no such unit.
    pub fn options(&self, qemu: &Qemu) -> Option<Options> {
        let options = match self.base {
            Base::Legacy => Options::legacy(qemu),
            Base::SecondStage => {
                qemu.scalable_mode()?;
                Options::second_stage(qemu)
            }
            Base::FirstStage => Options::first_stage(qemu)?,
        };
        Some(
            self.options
                .iter()
                .fold(options, |options, option| options.with(option)),
        )
    }
}

/// What both units are, by the registers of QEMU's.
#[derive(Clone, Debug)]
pub struct Unit {
    version: u32,
    capability: Capability,
    /// As QEMU's unit shows it.
    extended: ExtendedCapability,
    snooped_walks: bool,
}

impl Unit {
    /// Reads the registers of a running unit.
    pub fn read(registers: &impl Registers, configuration: &Configuration) -> Self {
        Self {
            version: registers.read32(Register32::VERSION),
            capability: Capability::from_bits(registers.read64(Register64::CAPABILITY)),
            extended: ExtendedCapability::from_bits(
                registers.read64(Register64::EXTENDED_CAPABILITY),
            ),
            snooped_walks: configuration.snooped_walks,
        }
    }

    /// The model of it.
    pub(crate) fn model(&self, cache_mode: CacheMode, seed: u64) -> ModelConfig {
        let mut config = ModelConfig::qemu_second_stage();
        config.version = self.version;
        config.capability = self.capability;
        config.extended = self.extended;
        if self.snooped_walks {
            config = config.with_extended(Ecap::PAGE_WALK_COHERENCY, 1);
        }
        // QEMU's unit has one width for all addresses.
        config.host_address_width = self.width();
        // It records one fault of each device at a time.
        config.fault_compression = true;
        config.cache_mode = cache_mode;
        config.seed = seed;
        config
    }

    /// A number that is different for units that differ.
    pub(crate) fn signature(&self) -> u64 {
        mix(mix(self.capability.bits()) ^ self.extended.bits() ^ u64::from(self.snooped_walks))
    }

    /// Width of guest and host addresses.
    pub(crate) fn width(&self) -> u8 {
        self.capability.field(Cap::MAXIMUM_GUEST_ADDRESS_WIDTH) as u8 + 1
    }

    /// Whether second-stage tables may have this many levels.
    pub(crate) fn allows_levels(&self, levels: u8) -> bool {
        let widths = self.capability.field(Cap::ADJUSTED_GUEST_ADDRESS_WIDTHS);
        levels >= 2 && widths >> (levels - 2) & 1 == 1
    }

    /// The AW field for the largest second-stage tables.
    pub(crate) fn largest_width_field(&self) -> u64 {
        let widths = self.capability.field(Cap::ADJUSTED_GUEST_ADDRESS_WIDTHS);
        u64::from(63 - (widths | 1).leading_zeros())
    }

    /// CAP.CM.
    pub(crate) fn caching_mode(&self) -> bool {
        self.capability.has(Cap::CACHING_MODE)
    }

    /// Whether there is scalable mode.
    pub(crate) fn scalable(&self) -> bool {
        self.extended.has(Ecap::SCALABLE_MODE)
    }

    /// Whether scalable mode has first-stage tables.
    pub(crate) fn first_stage(&self) -> bool {
        self.extended.has(Ecap::FIRST_STAGE)
    }

    /// Whether first-stage tables may have 1-GiB pages.
    pub(crate) fn first_stage_1gib(&self) -> bool {
        self.capability.has(Cap::FIRST_STAGE_1GIB_PAGES)
    }

    /// Whether there is pass-through.
    pub(crate) fn pass_through(&self) -> bool {
        self.extended.has(Ecap::PASS_THROUGH)
    }

    /// Whether PASID-table entries ask for snooped page walks.
    pub(crate) fn snooped_walks(&self) -> bool {
        self.snooped_walks
    }

    /// Offset of the first fault record in bytes.
    pub(crate) fn fault_record_offset(&self) -> u16 {
        self.capability.fault_record_offset()
    }

    /// Offset of the register pair of IOTLB invalidation in bytes.
    pub(crate) fn iotlb_offset(&self) -> u16 {
        self.extended.iotlb_register_offset()
    }
}
