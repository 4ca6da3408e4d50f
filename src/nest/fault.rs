//! Hardware faults explained by the guest's own tables, and routed (DESIGN section 7, R29).
//!
//! Hardware says where a request was blocked in the host's tables; the guest has to learn where
//! it would have been blocked in its own. So each fault is explained once by walking the guest's
//! tables in software. What those tables do not explain is the hypervisor's business, or a race
//! with a change that came after the request.

use core::fmt;

use crate::arch::address::{Gpa, Iova};
use crate::arch::capability::Capability;
use crate::arch::fault::FaultReason;
use crate::arch::id::SourceId;
use crate::arch::register::FaultRecord;
use crate::paging::walk::Access;

/// A hardware fault that is not the guest's: what the hypervisor's handler gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostFault {
    /// What hardware recorded; with a PASID only if the request had one.
    pub record: FaultRecord,
    /// Why it is not the guest's.
    pub cause: HostFaultCause,
}

/// Why a hardware fault is not the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostFaultCause {
    /// The guest's translation is off: its device used an address that the machine does not have.
    TranslationOff,
    /// The guest's tables and the machine's memory allow the request, but with other rights than
    /// the machine's memory now grants.
    MachineMemory {
        /// Where the guest's tables lead.
        address: Gpa,
    },
    /// The guest's interrupt remapping is off: its device sent a message that the hypervisor has not
    /// given it.
    InterruptRemappingOff,
    /// The reason code is not one that a guest's device can cause.
    UnknownReason,
}

impl fmt::Display for HostFaultCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TranslationOff => {
                f.write_str("the guest's translation is off, and its machine has no such address")
            }
            Self::MachineMemory { address } => write!(
                f,
                "the guest's tables lead to {address}, to which the machine has other rights"
            ),
            Self::InterruptRemappingOff => f.write_str(
                "the guest does not remap interrupts, and its device was given no such message",
            ),
            Self::UnknownReason => f.write_str("no request causes that"),
        }
    }
}

impl fmt::Display for HostFault {
    /// One line for people: what was blocked, and why it is the hypervisor's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.record, self.cause)
    }
}

impl fmt::Display for FaultOutcome {
    /// One clause for people, to follow what the fault was.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest {
                source_id, reason, ..
            } => write!(f, "the guest sees {source_id} with {reason}"),
            Self::Host(fault) => write!(f, "the hypervisor's: {}", fault.cause),
            Self::Ignored => f.write_str("one of too many, counted only"),
            Self::NotOfThisMachine => f.write_str("of no device of this machine"),
        }
    }
}

/// Where a hardware fault went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// It was recorded in the guest's unit, or the guest asked not to be told.
    Guest {
        /// The guest's source-id.
        source_id: SourceId,
        /// The reason the guest sees, in its unit's mode.
        reason: FaultReason,
        /// Page address of the request.
        address: Iova,
    },
    /// It is the hypervisor's.
    Host(HostFault),
    /// It is one of too many of its device ([`Policy::storm_limit`](crate::nest::Policy)) and was
    /// counted only.
    Ignored,
    /// No device of this machine has the source-id.
    NotOfThisMachine,
}

/// What a reason says of the address that the device sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AddressFault {
    NotCanonical,
    TooLarge,
}

const fn address_fault(reason: FaultReason) -> Option<AddressFault> {
    match reason {
        FaultReason::AddressNotCanonical => Some(AddressFault::NotCanonical),
        FaultReason::AddressBeyondSecondStage
        | FaultReason::AddressBeyondHostWidth
        | FaultReason::LegacyAddressTooLarge => Some(AddressFault::TooLarge),
        _ => None,
    }
}

/// Whether the guest's tables say of an address what hardware said of the one that it saw.
pub(super) fn agrees(hardware: FaultReason, walked: Option<FaultReason>) -> bool {
    address_fault(hardware) == walked.and_then(address_fault)
}

/// What else a device may have sent than the address that was recorded: records have no bits above
/// the largest second-stage width (§11.4.7.6).
pub(super) fn sent_addresses(recorded: Iova, capability: Capability) -> [Iova; 2] {
    let address = recorded.as_u64();
    // In neither canonical half, and too large for any table.
    let beyond = address | 1 << 62;
    let lost = capability
        .largest_address_width()
        .map_or(0, |width| u64::MAX << width.bits());
    // The highest bit that was kept is the sign.
    let is_upper = address & lost == 0 && address & lost >> 1 != 0;
    let upper_half = if is_upper { address | lost } else { address };
    [beyond, upper_half].map(Iova::new)
}

/// The reason for an address that the guest's tables allow but its machine does not have: the
/// guest's doing, shown as the missing right in its unit's mode.
pub(super) const fn outside_machine(access: Access, legacy: bool) -> FaultReason {
    match (access.rights.write, legacy) {
        (true, false) => FaultReason::WriteDenied,
        (true, true) => FaultReason::LegacyWriteDenied,
        (false, false) => FaultReason::ReadDenied,
        (false, true) => FaultReason::LegacyReadDenied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::capability::CapabilityField;
    use crate::arch::second_stage::Rights;

    // R29, §7.1.3: 05 and 06 with a legacy root, 85 and 86 in scalable mode.
    #[test]
    fn an_address_outside_the_machine_is_a_missing_right() {
        for (rights, legacy, scalable) in [
            (Rights::READ, 0x06, 0x86),
            (Rights::WRITE, 0x05, 0x85),
            (Rights::READ_WRITE, 0x05, 0x85),
        ] {
            let access = Access {
                rights,
                privileged: false,
            };
            assert_eq!(outside_machine(access, true).code(), legacy);
            assert_eq!(outside_machine(access, false).code(), scalable);
        }
    }

    #[test]
    fn lost_address_bits_are_found_again() {
        // §11.4.7.6, §3.6: 48 bits are recorded, bit 47 is the sign.
        let capability =
            Capability::from_bits(0).with(CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS, 0b0110);
        for (recorded, beyond, upper_half) in [
            (0x1000, 0x4000_0000_0000_1000, 0x1000),
            (
                0x8000_0000_1000,
                0x4000_8000_0000_1000,
                0xffff_8000_0000_1000,
            ),
            // A unit that records all bits.
            (
                0x0001_8000_0000_1000,
                0x4001_8000_0000_1000,
                0x0001_8000_0000_1000,
            ),
        ] {
            let found = sent_addresses(Iova::new(recorded), capability);
            assert_eq!(found, [beyond, upper_half].map(Iova::new), "{recorded:#x}");
        }
    }

    #[test]
    fn only_what_is_said_of_the_address_has_to_agree() {
        use FaultReason as R;
        for (hardware, walked, expected) in [
            (R::AddressNotCanonical, Some(R::AddressNotCanonical), true),
            (R::AddressNotCanonical, Some(R::FirstStageNotPresent), false),
            (R::FirstStageNotPresent, Some(R::AddressNotCanonical), false),
            (R::AddressBeyondSecondStage, None, false),
            (
                R::AddressBeyondSecondStage,
                Some(R::LegacyAddressTooLarge),
                true,
            ),
            (
                R::AddressBeyondSecondStage,
                Some(R::AddressBeyondHostWidth),
                true,
            ),
            (
                R::SecondStageNotPresent,
                Some(R::PasidEntryNotPresent),
                true,
            ),
            (R::SecondStageNotPresent, None, true),
        ] {
            assert_eq!(agrees(hardware, walked), expected, "{hardware} {walked:?}");
        }
    }
}
