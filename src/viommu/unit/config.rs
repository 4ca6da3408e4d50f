//! What a virtual unit is made from, and what cannot be shown.

use crate::arch::capability::{CapabilityError, ExtendedCapabilityField, Features};
use crate::arch::capability::{CapabilityField, ExtendedCapability};
use core::fmt;

/// What a virtual unit is made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtualUnitConfig {
    /// The capability registers that the guest sees, and the width of guest-physical addresses.
    pub features: Features,
    /// The number of fault records, as `CAP.NFR` shows it: 1 to
    /// [`MAX_FAULT_RECORDS`](crate::viommu::MAX_FAULT_RECORDS).
    pub fault_records: u8,
    /// A number that the guest does not know: hides where the store keeps what.
    pub hash_seed: u64,
}

/// Why a virtual unit cannot be made as configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// The capability registers contradict themselves.
    Capability(CapabilityError),
    /// A capability that no virtual unit has, by its name in the specification.
    NotEmulated {
        /// The field.
        field: &'static str,
    },
    /// The width of guest-physical addresses is not in 12 to 52 bits.
    AddressWidth(u8),
    /// The number of fault records is 0, too large, or not what `CAP.NFR` shows.
    FaultRecords(u8),
    /// There are more devices or bindings than their numbers have room for.
    Capacity(usize),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capability(error) => fmt::Display::fmt(error, f),
            Self::NotEmulated { field } => {
                f.write_str(field)?;
                f.write_str(" is not emulated")
            }
            Self::AddressWidth(bits) => write!(f, "guest-physical addresses of {bits} bits"),
            Self::FaultRecords(count) => write!(f, "{count} fault records"),
            Self::Capacity(capacity) => write!(f, "a capacity of {capacity}"),
        }
    }
}

impl core::error::Error for ConfigError {}

/// The first capability shown that a virtual unit does not have.
pub(super) fn not_emulated(features: &Features) -> Option<&'static str> {
    use CapabilityField as C;
    use ExtendedCapabilityField as E;
    pub(super) const CAPABILITY: [C; 5] = [
        C::WRITE_BUFFER_FLUSH,
        C::PROTECTED_LOW_MEMORY,
        C::PROTECTED_HIGH_MEMORY,
        C::POSTED_INTERRUPTS,
        C::ENHANCED_COMMANDS,
    ];
    pub(super) const EXTENDED: [E; 19] = [
        E::EXTENDED_INTERRUPT_MODE_REQUIRED,
        E::MEMORY_TYPES,
        E::NESTED,
        E::PAGE_REQUESTS,
        E::EXECUTE_REQUESTS,
        E::NO_WRITE_FLAG,
        E::PAGE_REQUEST_DRAIN,
        E::VIRTUAL_COMMANDS,
        E::SECOND_STAGE_ACCESSED_DIRTY,
        // Requests without PASID always use PASID 0.
        E::RID_PASID,
        E::RID_PRIV,
        E::TDX_CONNECT,
        E::PERFORMANCE_MONITORING,
        E::ABORT_DMA_MODE,
        E::HOST_PERMISSION_TABLES,
        E::PASID_IN_TRANSLATED_REQUESTS,
        E::SECOND_STAGE_IO_PERMISSIONS,
        E::RESOURCE_DIRECTOR,
        E::INTERRUPT_REMAPPING_REQUIRED,
    ];
    let extended: ExtendedCapability = features.extended;
    CAPABILITY
        .iter()
        .find(|field| features.capability.has(**field))
        .map(|field| field.mnemonic())
        .or_else(|| {
            EXTENDED
                .iter()
                .find(|field| extended.has(**field))
                .map(|field| field.mnemonic())
        })
}
