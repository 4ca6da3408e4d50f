//! The register file of one remapping unit: offsets, flags and fields (§11.4).
//!
//! [`Register32`] and [`Register64`] make an access of the wrong width impossible. Status and
//! command flags are sets of bits; every other register is a newtype over its raw value.

use super::address::PAGE_SIZE_BYTES;

/// The largest register window that a [`Register32`] or [`Register64`] can reach, in bytes.
pub const REGISTER_WINDOW_MAX_BYTES: u32 = 1 << 16;

/// The size of one fault recording register, in bytes (§11.4.7.6).
pub const FAULT_RECORD_BYTES: u16 = 16;

macro_rules! raw_register {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The register with this raw value.
            #[inline]
            pub const fn from_bits(bits: u64) -> Self {
                Self(bits)
            }

            /// The register's raw value.
            #[inline]
            pub const fn bits(self) -> u64 {
                self.0
            }
        }
    };
}

/// The base field of a table or queue address register.
const PAGE_FIELD: u64 = !(PAGE_SIZE_BYTES - 1);

mod fault;
mod flags;
mod invalidation;
mod offset;
mod queue;
mod table_pointer;
#[cfg(test)]
mod tests;

pub use fault::{AddressType, FaultInfo, FaultRecord, RequestType};
pub use flags::{
    EventControl, FaultStatus, GlobalCommand, GlobalStatus, InvalidationCompletionStatus,
    PageRequestStatus, ProtectedMemoryEnable,
};
pub use invalidation::{ContextCommand, InvalidateAddress, IotlbCommand};
pub use offset::{Register32, Register64};
pub use queue::{
    DescriptorWidth, InvalidationQueueAddress, QueueErrorInfo, QueueErrorRecord, queue_offset,
};
pub use table_pointer::{InterruptRemappingTableAddress, RootTableAddress, TranslationTableMode};
