//! Both registers as one value.

use crate::arch::address::{AddressWidth, PAGE_SIZE_BYTES};

use super::{Capability, ExtendedCapability, Feature, PREREQUISITES};

/// All that decides which fields of the tables and descriptors exist.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Features {
    /// `CAP_REG`.
    pub capability: Capability,
    /// `ECAP_REG`.
    pub extended: ExtendedCapability,
    /// The host address width, in bits (`HAW`, §8): physical addresses stay below 2^this.
    pub host_address_width: u8,
}

impl Features {
    /// The features of a unit with these registers, without those that it reports but lacks a
    /// prerequisite of.
    ///
    /// Units built to the *extended mode* that Rev 3.0 replaced report nesting, PASIDs and page
    /// requests without scalable mode; none of that can be used.
    pub const fn new(
        capability: Capability,
        extended: ExtendedCapability,
        host_address_width: u8,
    ) -> Self {
        let mut features = Self {
            capability,
            extended,
            host_address_width,
        };
        let mut rules = PREREQUISITES;
        while let [rule, rest @ ..] = rules {
            if !rule.holds(features.capability, features.extended) {
                features = features.without(rule.feature);
            }
            rules = rest;
        }
        features
    }

    pub(super) const fn without(self, feature: Feature) -> Self {
        match feature {
            Feature::Capability(field) => Self {
                capability: self.capability.with(field, 0),
                ..self
            },
            Feature::Extended(field) => Self {
                extended: self.extended.with(field, 0),
                ..self
            },
        }
    }

    /// The bits that are reserved in every 4-KiB-aligned pointer field: those at and above the
    /// host address width.
    #[inline]
    pub const fn reserved_address_bits(&self) -> u64 {
        let at_and_above = match u64::MAX.checked_shl(self.host_address_width as u32) {
            Some(bits) => bits,
            None => 0,
        };
        at_and_above & !(PAGE_SIZE_BYTES - 1)
    }

    /// The largest supported second-stage width, or `None` if there is none.
    #[inline]
    pub const fn largest_address_width(&self) -> Option<AddressWidth> {
        self.capability.largest_address_width()
    }

    /// The width of the input addresses of a second-stage table, in bits: the lesser of its own
    /// width and `MGAW` (§3.7).
    #[inline]
    pub const fn second_stage_address_bits(&self, width: AddressWidth) -> u8 {
        let maximum = self.capability.maximum_guest_address_width();
        if maximum < width.bits() {
            maximum
        } else {
            width.bits()
        }
    }
}
