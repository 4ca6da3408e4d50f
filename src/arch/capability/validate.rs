//! Which combinations of capabilities a unit can have.

use crate::arch::register::{FAULT_RECORD_BYTES, REGISTER_WINDOW_MAX_BYTES};
use core::fmt;

use super::{Capability, CapabilityField, ExtendedCapability, ExtendedCapabilityField};

/// A field of either capability register.
#[derive(Clone, Copy)]
pub(super) enum Feature {
    Capability(CapabilityField),
    Extended(ExtendedCapabilityField),
}

impl Feature {
    pub(super) const fn is_reported(
        self,
        capability: Capability,
        extended: ExtendedCapability,
    ) -> bool {
        match self {
            Self::Capability(field) => capability.has(field),
            Self::Extended(field) => extended.has(field),
        }
    }

    pub(super) const fn mnemonic(self) -> &'static str {
        match self {
            Self::Capability(field) => field.mnemonic(),
            Self::Extended(field) => field.mnemonic(),
        }
    }
}

/// "`feature` needs `requires`" (§11.4.2, §11.4.3).
pub(super) struct Prerequisite {
    pub(super) feature: Feature,
    requires: Feature,
    /// Units of the superseded extended mode report the feature without scalable mode.
    scalable_mode_only: bool,
}

impl Prerequisite {
    pub(super) const fn holds(&self, capability: Capability, extended: ExtendedCapability) -> bool {
        !self.feature.is_reported(capability, extended)
            || self.requires.is_reported(capability, extended)
    }
}

pub(super) const fn any_mode(
    feature: ExtendedCapabilityField,
    requires: ExtendedCapabilityField,
) -> Prerequisite {
    Prerequisite {
        feature: Feature::Extended(feature),
        requires: Feature::Extended(requires),
        scalable_mode_only: false,
    }
}

pub(super) const fn scalable(
    feature: ExtendedCapabilityField,
    requires: ExtendedCapabilityField,
) -> Prerequisite {
    Prerequisite {
        feature: Feature::Extended(feature),
        requires: Feature::Extended(requires),
        scalable_mode_only: true,
    }
}

/// Ordered so that what a rule requires has its own rules before it.
pub(super) const PREREQUISITES: &[Prerequisite] = {
    use CapabilityField as C;
    use ExtendedCapabilityField as E;
    &[
        any_mode(E::DEVICE_TLB, E::QUEUED_INVALIDATION),
        any_mode(E::INTERRUPT_REMAPPING, E::QUEUED_INVALIDATION),
        any_mode(E::SCALABLE_MODE, E::QUEUED_INVALIDATION),
        any_mode(E::EXTENDED_INTERRUPT_MODE, E::INTERRUPT_REMAPPING),
        any_mode(
            E::EXTENDED_INTERRUPT_MODE_REQUIRED,
            E::EXTENDED_INTERRUPT_MODE,
        ),
        any_mode(E::INTERRUPT_REMAPPING_REQUIRED, E::INTERRUPT_REMAPPING),
        any_mode(E::NO_WRITE_FLAG, E::DEVICE_TLB),
        any_mode(E::DEVICE_TLB_THROTTLING, E::DEVICE_TLB),
        any_mode(E::PAGE_REQUEST_DRAIN, E::DEVICE_TLB),
        scalable(E::FIRST_STAGE, E::SCALABLE_MODE),
        scalable(E::SECOND_STAGE, E::SCALABLE_MODE),
        scalable(E::PAGE_WALK_COHERENCY, E::SCALABLE_MODE),
        scalable(E::MEMORY_TYPES, E::SCALABLE_MODE),
        scalable(E::REQUESTS_WITH_PASID, E::SCALABLE_MODE),
        scalable(E::SUPERVISOR_REQUESTS, E::SCALABLE_MODE),
        scalable(E::RID_PASID, E::SCALABLE_MODE),
        scalable(E::RID_PRIV, E::SUPERVISOR_REQUESTS),
        scalable(E::PAGE_REQUESTS, E::SCALABLE_MODE),
        scalable(E::PAGE_REQUESTS, E::DEVICE_TLB),
        scalable(E::STOP_MARKERS, E::PAGE_REQUESTS),
        scalable(E::NESTED, E::SCALABLE_MODE),
        scalable(E::NESTED, E::FIRST_STAGE),
        scalable(E::NESTED, E::SECOND_STAGE),
        scalable(E::EXTENDED_ACCESSED, E::FIRST_STAGE),
        scalable(E::EXTENDED_ACCESSED, E::PAGE_WALK_COHERENCY),
        scalable(E::SECOND_STAGE_ACCESSED_DIRTY, E::PAGE_WALK_COHERENCY),
        scalable(E::SECOND_STAGE_IO_PERMISSIONS, E::SECOND_STAGE),
        scalable(E::HOST_PERMISSION_TABLES, E::SCALABLE_MODE),
        scalable(E::HOST_PERMISSION_TABLES, E::DEVICE_TLB),
        scalable(E::HOST_PERMISSION_1GIB, E::HOST_PERMISSION_TABLES),
        scalable(E::PASID_IN_TRANSLATED_REQUESTS, E::DEVICE_TLB),
        scalable(E::PASID_IN_TRANSLATED_REQUESTS, E::REQUESTS_WITH_PASID),
        Prerequisite {
            feature: Feature::Capability(C::FIRST_STAGE_1GIB_PAGES),
            requires: Feature::Extended(E::FIRST_STAGE),
            scalable_mode_only: true,
        },
        Prerequisite {
            feature: Feature::Capability(C::FIRST_STAGE_5_LEVEL),
            requires: Feature::Extended(E::FIRST_STAGE),
            scalable_mode_only: true,
        },
        Prerequisite {
            feature: Feature::Capability(C::POSTED_INTERRUPTS),
            requires: Feature::Extended(E::INTERRUPT_REMAPPING),
            scalable_mode_only: false,
        },
        Prerequisite {
            feature: Feature::Extended(E::PERFORMANCE_MONITORING),
            requires: Feature::Capability(C::ENHANCED_COMMANDS),
            scalable_mode_only: false,
        },
    ]
};

/// Why a unit's version and capability registers cannot be those of a working unit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CapabilityError {
    /// A register reads as all ones: nothing answers at this address.
    AllOnes,
    /// The version register names no version: major version 0.
    Version(u32),
    /// `ND` is the reserved 111b.
    DomainIdWidth {
        /// The field's value.
        field: u8,
    },
    /// `SSLPS` is neither 0000b, 0001b nor 0011b.
    SecondStageLargePages {
        /// The field's value.
        field: u8,
    },
    /// Requests may carry a PASID, of more than 20 bits.
    PasidWidth {
        /// The width, in bits.
        bits: u8,
    },
    /// The fault records do not fit the register window, or lie over other registers.
    FaultRecords {
        /// Where they start, in bytes (`FRO` times 16).
        offset: u16,
        /// Their number (`NFR` + 1).
        count: u16,
    },
    /// The IOTLB registers do not fit the register window, or lie over other registers.
    IotlbRegisters {
        /// Where they start, in bytes (`IRO` times 16).
        offset: u16,
    },
    /// A feature is reported without one that it needs. [`Features::new`](super::Features::new)
    /// takes it as absent, so a
    /// caller may as well note this and go on.
    MissingPrerequisite {
        /// The mnemonic of the feature.
        feature: &'static str,
        /// The mnemonic of what is missing.
        requires: &'static str,
    },
}

impl fmt::Display for CapabilityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllOnes => f.write_str("capability registers read all ones"),
            Self::Version(version) => write!(f, "version register {version:#x}"),
            Self::DomainIdWidth { field } => write!(f, "`ND` is {field}"),
            Self::SecondStageLargePages { field } => write!(f, "`SSLPS` is {field:#x}"),
            Self::PasidWidth { bits } => write!(f, "PASIDs of {bits} bits"),
            Self::FaultRecords { offset, count } => {
                write!(f, "{count} fault records at {offset:#x} have no room")
            }
            Self::IotlbRegisters { offset } => {
                write!(f, "IOTLB registers at {offset:#x} have no room")
            }
            Self::MissingPrerequisite { feature, requires } => {
                f.write_str(feature)?;
                f.write_str(" without ")?;
                f.write_str(requires)
            }
        }
    }
}

impl core::error::Error for CapabilityError {}

/// Checks the registers of a unit before anything relies on them.
///
/// `version` is the raw version register, `window_bytes` the size of the register window.
/// Scalable-mode features that a unit reports without scalable mode are no error: see
/// [`Features::new`](super::Features::new).
/// Prerequisites are checked last, so that [`CapabilityError::MissingPrerequisite`] tells that all
/// else is sound.
pub const fn validate(
    capability: Capability,
    extended: ExtendedCapability,
    version: u32,
    window_bytes: u32,
) -> Result<(), CapabilityError> {
    if capability.bits() == u64::MAX || extended.bits() == u64::MAX || version == u32::MAX {
        return Err(CapabilityError::AllOnes);
    }
    if version >> 4 & 0xf == 0 {
        return Err(CapabilityError::Version(version));
    }
    let domain_id_width = capability.field(CapabilityField::DOMAIN_ID_WIDTH) as u8;
    if domain_id_width == 7 {
        return Err(CapabilityError::DomainIdWidth {
            field: domain_id_width,
        });
    }
    let large_pages = capability.field(CapabilityField::SECOND_STAGE_LARGE_PAGES) as u8;
    if !matches!(large_pages, 0b0000 | 0b0001 | 0b0011) {
        return Err(CapabilityError::SecondStageLargePages { field: large_pages });
    }
    let pasid_bits = extended.field(ExtendedCapabilityField::PASID_SIZE) as u8 + 1;
    if extended.has_scalable_mode() && extended.has_pasid() && pasid_bits > 20 {
        return Err(CapabilityError::PasidWidth { bits: pasid_bits });
    }

    let records = Span::new(
        capability.fault_record_offset(),
        capability.fault_record_count() * FAULT_RECORD_BYTES,
    );
    if !records.is_free(window_bytes) {
        return Err(CapabilityError::FaultRecords {
            offset: capability.fault_record_offset(),
            count: capability.fault_record_count(),
        });
    }
    let iotlb = Span::new(extended.iotlb_register_offset(), 16);
    if !iotlb.is_free(window_bytes) || iotlb.overlaps(records) {
        return Err(CapabilityError::IotlbRegisters {
            offset: extended.iotlb_register_offset(),
        });
    }

    let mut rules = PREREQUISITES;
    while let [rule, rest @ ..] = rules {
        let is_checked = extended.has_scalable_mode() || !rule.scalable_mode_only;
        if is_checked && !rule.holds(capability, extended) {
            return Err(CapabilityError::MissingPrerequisite {
                feature: rule.feature.mnemonic(),
                requires: rule.requires.mnemonic(),
            });
        }
        rules = rest;
    }
    Ok(())
}

/// A range of register offsets, in bytes, `end` excluded.
#[derive(Clone, Copy)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    pub(super) const fn new(start: u16, len_bytes: u16) -> Self {
        Self {
            start: start as u32,
            end: start as u32 + len_bytes as u32,
        }
    }

    pub(super) const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether the range lies in the window and beside the registers that every unit has
    /// (§11.4: 000 to 047 and 064 to 0EF).
    pub(super) const fn is_free(self, window_bytes: u32) -> bool {
        self.end <= window_bytes
            && self.end <= REGISTER_WINDOW_MAX_BYTES
            && !self.overlaps(Self {
                start: 0,
                end: 0x48,
            })
            && !self.overlaps(Self {
                start: 0x64,
                end: 0xf0,
            })
    }
}
