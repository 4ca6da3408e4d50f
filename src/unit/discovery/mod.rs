//! What firmware's tables and the PCI hierarchy say about units, devices and who is protected.
//!
//! Everything here reads what firmware and devices say, both untrusted, and changes nothing.
//!
//! | module | job |
//! |---|---|
//! | [`units`] | the units that the DMAR table names |
//! | [`protection`] | whether all of them translate |
//! | [`interrupt_sources`] | the source-ids of I/O APICs and HPETs |
//! | [`mod@device_properties`] | what firmware lets devices do: ATS, nesting, snooping |
//! | [`mod@reserved_regions`] | the memory that firmware reserves for a device |
//! | [`requesters`] | the source-ids under which a device's requests arrive |
//! | [`groups`] | the devices that hardware does not keep apart |

pub mod device_properties;
pub mod groups;
pub mod interrupt_sources;
pub mod protection;
pub mod requesters;
pub mod reserved_regions;
#[cfg(test)]
mod testing;
pub mod units;

pub use device_properties::{
    AddressTranslationAdvice, DeviceProperties, VouchedDevice, address_translation,
    device_properties, vouched_device,
};
pub use groups::{IsolationGroup, SourceIdRange, isolation_group};
pub use interrupt_sources::{InterruptSource, hpet, io_apic};
pub use protection::{Protected, Unprotected, protected};
pub use requesters::{Aliases, RequesterIds, TopologyError, requester_ids};
pub use reserved_regions::{
    RESERVED_REGIONS, ReservedRegion, ReservedRegionError, ReservedRegions, reserved_regions,
};
pub use units::{DiscoveryError, UnitDescription, discover};
