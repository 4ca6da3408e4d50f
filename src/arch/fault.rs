//! Fault reasons (§5.1.4, Table 15; §7.1.3, Table 30).

use core::fmt;

use super::context::{LegacyContextFault, ScalableContextFault};
use super::pasid::{PasidDirectoryEntryFault, PasidEntryFault};
use super::register::{FaultRecord, RequestType};
use super::root::RootEntryFault;

/// Which kind of remapping a fault reason belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FaultMode {
    /// DMA remapping with legacy tables.
    Legacy,
    /// Interrupt remapping.
    Interrupt,
    /// DMA remapping with scalable-mode tables, and what goes wrong before any table is read.
    Scalable,
}

macro_rules! fault_reasons {
    ($(
        $code:literal $variant:ident [$($mnemonic:literal)?] $qualified:ident $text:literal;
    )*) => {
        /// Why a request was blocked: one variant for each code of the `FR` field (§11.4.7.6).
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum FaultReason {
            $(
                #[doc = concat!("`", stringify!($code), "`", $(", `", $mnemonic, "`",)? ": ", $text, ".")]
                $(#[doc(alias = $mnemonic)])?
                $variant = $code,
            )*
        }

        impl FaultReason {
            /// All reasons, by rising code.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The reason with this code, or `None` for an undefined one.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The reason in words: lower case, without a full stop.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// Whether the fault goes unrecorded if some entry on the way disables fault
            /// processing (§7.1.1).
            pub const fn is_qualified(self) -> bool {
                match self {
                    $(Self::$variant => fault_reasons!(@$qualified),)*
                }
            }
        }
    };
    (@qualified) => { true };
    (@always) => { false };
}

fault_reasons! {
    // Legacy mode.
    0x01 LegacyRootEntryNotPresent ["LRT.2"] always
        "legacy root entry not present";
    0x02 LegacyContextEntryNotPresent ["LCT.2"] qualified
        "legacy context entry not present";
    0x03 LegacyContextEntryInvalid ["LCT.4"] qualified
        "legacy context entry with unsupported width, type or second-stage root";
    0x04 LegacyAddressTooLarge ["LGN.1"] qualified
        "address beyond the width of the domain or host";
    0x05 LegacyWriteDenied ["LGN.2"] qualified
        "write without write permission";
    0x06 LegacyReadDenied ["LGN.3"] qualified
        "read without read permission";
    0x07 LegacySecondStageUnreadable ["LSS.1"] qualified
        "second-stage entry could not be read";
    0x08 LegacyRootTableUnreadable ["LRT.1"] always
        "legacy root entry could not be read";
    0x09 LegacyContextTableUnreadable ["LCT.1"] always
        "legacy context entry could not be read";
    0x0a LegacyRootEntryReserved ["LRT.3"] always
        "reserved bit set in a legacy root entry";
    0x0b LegacyContextEntryReserved ["LCT.3"] qualified
        "reserved bit set in a legacy context entry";
    0x0c LegacySecondStageReserved ["LSS.2"] qualified
        "reserved bit set in a second-stage entry";
    0x0d LegacyAddressTypeBlocked ["LCT.5"] qualified
        "translation or translated request not allowed by the context entry";
    0x0e LegacyInterruptAddress ["LGN.4"] qualified
        "translated into the interrupt address range";

    // Interrupt remapping.
    0x20 InterruptRequestReserved [] always
        "reserved bit set in an interrupt request";
    0x21 InterruptIndexTooLarge [] always
        "interrupt index beyond the table";
    0x22 InterruptEntryNotPresent [] qualified
        "interrupt entry not present";
    0x23 InterruptTableUnreadable [] always
        "interrupt entry could not be read";
    0x24 InterruptEntryReserved [] qualified
        "reserved bit set in an interrupt entry";
    0x25 InterruptCompatibilityFormatBlocked [] always
        "compatibility-format interrupt blocked";
    0x26 InterruptSourceDenied [] qualified
        "interrupt from a source-id that the entry does not allow";
    0x27 PostedDescriptorUnreadable [] qualified
        "posted-interrupt descriptor could not be read";
    0x28 PostedDescriptorReserved [] qualified
        "reserved bit set in a posted-interrupt descriptor";
    0x29 InterruptAddressMisused [] always
        "request into the interrupt address range that is no interrupt";
    0x2a InterruptExtendedModeRequired [] always
        "interrupt while required extended interrupt mode is off";
    0x2b InterruptRemappingRequired [] always
        "interrupt while required interrupt remapping is off";

    // Scalable mode: root table address.
    0x30 RootTableAddressInvalid ["RTA.1"] always
        "root table address with unsupported translation table mode";
    0x31 PasidInLegacyMode ["RTA.2"] always
        "request with PASID in legacy mode";
    0x32 PageRequestInLegacyMode ["RTA.3"] always
        "page request in legacy mode";
    0x33 AbortDmaMode ["RTA.4"] always
        "request in abort-DMA mode";
    0x34 ExecuteRequestBlocked ["RTA.5"] always
        "execute request";

    // Scalable mode: root and context tables.
    0x38 ScalableRootTableUnreadable ["SRT.1"] always
        "scalable-mode root entry could not be read";
    0x39 ScalableRootEntryNotPresent ["SRT.2"] always
        "scalable-mode root entry not present";
    0x3a ScalableRootEntryReserved ["SRT.3"] always
        "reserved bit set in a scalable-mode root entry";
    0x40 ScalableContextTableUnreadable ["SCT.1"] always
        "scalable-mode context entry could not be read";
    0x41 ScalableContextEntryNotPresent ["SCT.2"] qualified
        "scalable-mode context entry not present";
    0x42 ScalableContextEntryReserved ["SCT.3"] qualified
        "reserved bit set in a scalable-mode context entry";
    0x43 ScalableContextEntryInvalid ["SCT.4"] qualified
        "contradictory fields in a scalable-mode context entry";
    0x44 DeviceTlbDisabled ["SCT.5"] qualified
        "translation or translated request while the device-TLB is disabled";
    0x45 PasidDisabled ["SCT.6"] qualified
        "request with PASID while PASIDs are disabled";
    0x46 PasidBeyondDirectory ["SCT.7"] qualified
        "PASID beyond the PASID directory";
    0x47 PageRequestDisabled ["SCT.8"] qualified
        "page request while page requests are disabled";
    0x48 PasidEqualsRidPasid ["SCT.9"] qualified
        "request with the PASID that is set aside for requests without PASID";
    0x49 TranslatedPasidDisabled ["SCT.10"] qualified
        "translated request with PASID while these are disabled";

    // Scalable mode: PASID directory and table.
    0x50 PasidDirectoryUnreadable ["SPD.1"] always
        "PASID-directory entry could not be read";
    0x51 PasidDirectoryEntryNotPresent ["SPD.2"] qualified
        "PASID-directory entry not present";
    0x52 PasidDirectoryEntryReserved ["SPD.3"] qualified
        "reserved bit set in a PASID-directory entry";
    0x58 PasidTableUnreadable ["SPT.1"] always
        "PASID-table entry could not be read";
    0x59 PasidEntryNotPresent ["SPT.2"] qualified
        "PASID-table entry not present";
    0x5a PasidEntryReserved ["SPT.3"] qualified
        "reserved bit set in a PASID-table entry";
    0x5b PasidEntryInvalid ["SPT.4"] qualified
        "PASID-table entry with unsupported width, type, paging mode or first-stage root";
    0x5c ExecuteRequestUnsupported ["SPT.5"] qualified
        "execute request where none is supported";
    0x5d SupervisorRequestDisabled ["SPT.6"] qualified
        "supervisor request while these are disabled";
    0x60 BeyondHostPermissionTable ["SPT.9"] qualified
        "translated request beyond the host permission table";

    // Scalable mode: first stage.
    0x70 FirstStageUnreadable ["SFS.1"] qualified
        "first-stage entry could not be read";
    0x71 FirstStageNotPresent ["SFS.2"] qualified
        "first-stage entry not present";
    0x72 FirstStageReserved ["SFS.3"] qualified
        "reserved bit set in a first-stage entry";
    0x73 FirstStageRootUnreadable ["SFS.4"] qualified
        "first-stage root table could not be read";
    0x74 FirstStageAddressTooLarge ["SFS.5"] qualified
        "address in a first-stage entry beyond the second stage";
    0x75 FirstStageRootDenied ["SFS.6"] qualified
        "first-stage root table without second-stage read permission";
    0x76 FirstStageTableDenied ["SFS.7"] qualified
        "first-stage table without second-stage read permission";
    0x77 FirstStageUpdateDenied ["SFS.8"] qualified
        "accessed or dirty flag in a table without second-stage write permission";

    // Scalable mode: second stage.
    0x78 SecondStageUnreadable ["SSS.1"] qualified
        "second-stage entry could not be read";
    0x79 SecondStageNotPresent ["SSS.2"] qualified
        "second-stage entry not present";
    0x7a SecondStageReserved ["SSS.3"] qualified
        "reserved bit set in a second-stage entry";
    0x7b SecondStageRootUnreadable ["SSS.4"] qualified
        "second-stage root table could not be read";
    0x7c SecondStageUpdateUnsnooped ["SSS.5"] qualified
        "accessed or dirty flag of a second-stage entry to be set without snooping";
    0x7d SecondStageUpdateFailed ["SSS.6"] qualified
        "accessed or dirty flag of a second-stage entry could not be set";

    // Scalable mode: any stage.
    0x80 AddressNotCanonical ["SGN.1"] qualified
        "address not canonical";
    0x81 UserRequestDenied ["SGN.2"] qualified
        "user request without user permission";
    0x83 AddressBeyondHostWidth ["SGN.4"] qualified
        "address beyond the host address width";
    0x84 AddressBeyondSecondStage ["SGN.5"] qualified
        "address beyond the width of the second stage";
    0x85 WriteDenied ["SGN.6"] qualified
        "write without write permission";
    0x86 ReadDenied ["SGN.7"] qualified
        "read without read permission";
    0x87 InterruptAddress ["SGN.8"] qualified
        "translated into the interrupt address range";
    0x89 PasidTooLarge ["SGN.10"] qualified
        "PASID wider than the unit supports";
    0x90 FirstStageUpdateUnsnooped ["SFS.9"] qualified
        "accessed or dirty flag of a first-stage entry to be set without snooping";
    0x91 FirstStageUpdateFailed ["SFS.10"] qualified
        "accessed or dirty flag of a first-stage entry could not be set";

    // Host permission tables.
    0xa0 HostPermissionUnreadable ["HPT.1"] qualified
        "host permission entry could not be read";
    0xa1 HostPermissionReserved ["HPT.2"] qualified
        "reserved bit set in a host permission entry";
    0xa2 HostPermissionRootUnreadable ["HPT.3"] qualified
        "host permission root table could not be read";
    0xa3 HostPermissionAbsent ["HPT.4"] qualified
        "no host permission";
    0xa4 HostPermissionWriteDenied ["HPT.5"] qualified
        "write without host permission";
    0xa5 HostPermissionReadDenied ["HPT.6"] qualified
        "read without host permission";
}

impl FaultReason {
    /// The code in the `FR` field.
    #[doc(alias = "FR")]
    #[inline]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Which kind of remapping the reason belongs to.
    #[inline]
    pub const fn mode(self) -> FaultMode {
        match self.code() {
            0x00..=0x1f => FaultMode::Legacy,
            0x20..=0x2f => FaultMode::Interrupt,
            _ => FaultMode::Scalable,
        }
    }
}

impl fmt::Display for FaultReason {
    /// The code and the reason in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}: ", self.code())?;
        f.write_str(self.name())
    }
}

impl RootEntryFault {
    /// The reason that hardware records; `legacy` for a legacy root table.
    pub const fn reason(self, legacy: bool) -> FaultReason {
        match (self, legacy) {
            (Self::NotPresent, true) => FaultReason::LegacyRootEntryNotPresent,
            (Self::NotPresent, false) => FaultReason::ScalableRootEntryNotPresent,
            (Self::ReservedNonZero { .. }, true) => FaultReason::LegacyRootEntryReserved,
            (Self::ReservedNonZero { .. }, false) => FaultReason::ScalableRootEntryReserved,
        }
    }
}

impl LegacyContextFault {
    /// The reason that hardware records.
    pub const fn reason(self) -> FaultReason {
        match self {
            Self::NotPresent => FaultReason::LegacyContextEntryNotPresent,
            Self::ReservedNonZero { .. } => FaultReason::LegacyContextEntryReserved,
            Self::UnsupportedWidth(_) | Self::UnsupportedTranslationType(_) => {
                FaultReason::LegacyContextEntryInvalid
            }
        }
    }
}

impl ScalableContextFault {
    /// The reason that hardware records.
    pub const fn reason(self) -> FaultReason {
        match self {
            Self::NotPresent => FaultReason::ScalableContextEntryNotPresent,
            Self::ReservedNonZero { .. } => FaultReason::ScalableContextEntryReserved,
            Self::IllegalCombination(_) => FaultReason::ScalableContextEntryInvalid,
        }
    }
}

impl PasidDirectoryEntryFault {
    /// The reason that hardware records.
    pub const fn reason(self) -> FaultReason {
        match self {
            Self::NotPresent => FaultReason::PasidDirectoryEntryNotPresent,
            Self::ReservedNonZero(_) => FaultReason::PasidDirectoryEntryReserved,
        }
    }
}

impl PasidEntryFault {
    /// The reason that hardware records.
    pub const fn reason(self) -> FaultReason {
        match self {
            Self::NotPresent => FaultReason::PasidEntryNotPresent,
            Self::ReservedNonZero { .. } => FaultReason::PasidEntryReserved,
            Self::UnsupportedAddressWidth(_)
            | Self::UnsupportedTranslationType(_)
            | Self::UnsupportedPagingMode(_)
            | Self::FirstStageRootBeyondWidth(_) => FaultReason::PasidEntryInvalid,
        }
    }
}

impl fmt::Display for FaultRecord {
    /// One line for people: what was blocked, and why.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = FaultReason::from_code(self.reason_code());
        if let Some(FaultMode::Interrupt) = reason.map(FaultReason::mode) {
            write!(
                f,
                "interrupt {} by {}",
                self.interrupt_index(),
                self.source_id()
            )?;
        } else {
            let kind = match (self.request(), self.pasid(), self.is_execute()) {
                (RequestType::Read, Some(_), true) => "instruction fetch",
                (RequestType::Read, ..) => "read",
                (RequestType::Write, ..) => "write",
                (RequestType::Atomic, ..) => "atomic operation",
                (RequestType::PageRequest, ..) => "page request",
            };
            write!(f, "{kind} of {} by {}", self.address(), self.source_id())?;
            if let Some(pasid) = self.pasid() {
                write!(f, " PASID {pasid}")?;
                if self.is_privileged() {
                    f.write_str(" as supervisor")?;
                }
            }
        }
        match reason {
            Some(reason) => write!(f, " blocked: {reason}"),
            None => write!(f, " blocked: {:02x}: unknown reason", self.reason_code()),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::arch::address::Iova;
    use crate::arch::id::{Pasid, SourceId};
    use crate::arch::register::{AddressType, FaultInfo};
    use std::collections::BTreeSet;
    use std::string::ToString;

    /// The codes that Tables 15 and 30 define.
    const DEFINED: [(u8, u8); 14] = [
        (0x01, 0x0e),
        (0x20, 0x2b),
        (0x30, 0x34),
        (0x38, 0x3a),
        (0x40, 0x49),
        (0x50, 0x52),
        (0x58, 0x5d),
        (0x60, 0x60),
        (0x70, 0x7d),
        (0x80, 0x81),
        (0x83, 0x87),
        (0x89, 0x89),
        (0x90, 0x91),
        (0xa0, 0xa5),
    ];

    /// The codes that those tables mark as recorded whatever a disable bit says.
    const ALWAYS_RECORDED: [u8; 22] = [
        0x01, 0x08, 0x09, 0x0a, 0x20, 0x21, 0x23, 0x25, 0x29, 0x2a, 0x2b, 0x30, 0x31, 0x32, 0x33,
        0x34, 0x38, 0x39, 0x3a, 0x40, 0x50, 0x58,
    ];

    #[test]
    fn codes_are_complete_unique_and_in_order() {
        for code in 0..=u8::MAX {
            let is_defined = DEFINED
                .iter()
                .any(|&(first, last)| (first..=last).contains(&code));
            let reason = FaultReason::from_code(code);
            assert_eq!(reason.is_some(), is_defined, "{code:#x}");
            assert!(reason.is_none_or(|reason| reason.code() == code));
        }
        let count: u32 = DEFINED
            .iter()
            .map(|&(first, last)| u32::from(last - first) + 1)
            .sum();
        assert_eq!(FaultReason::ALL.len() as u32, count);
        assert!(FaultReason::ALL.is_sorted_by(|a, b| a.code() < b.code()));
    }

    #[test]
    fn faults_met_before_any_disable_bit_are_always_recorded() {
        for reason in FaultReason::ALL {
            let is_always = ALWAYS_RECORDED.contains(&reason.code());
            assert_eq!(reason.is_qualified(), !is_always, "{reason}");
        }
    }

    #[test]
    fn mode_follows_the_code() {
        for reason in FaultReason::ALL {
            let expected = match reason.code() >> 4 {
                0 => FaultMode::Legacy,
                2 => FaultMode::Interrupt,
                _ => FaultMode::Scalable,
            };
            assert_eq!(reason.mode(), expected, "{reason}");
        }
    }

    #[test]
    fn a_record_reads_as_one_line() {
        let info = FaultInfo {
            source_id: SourceId::from_u16(0x0010),
            pasid: None,
            reason: 0x39,
            address: Iova::new(0x1234_5678),
            request: RequestType::Read,
            privileged: true,
            execute: true,
            address_type: AddressType::Untranslated,
        };
        let fetch = FaultInfo {
            pasid: Pasid::new(5),
            reason: 0x5c,
            ..info
        };
        let write = FaultInfo {
            privileged: false,
            execute: false,
            request: RequestType::Write,
            reason: 0x1f,
            ..fetch
        };
        let interrupt = FaultInfo::interrupt(SourceId::from_u16(0x0018), 0x22, 7);
        for (info, line) in [
            (
                info,
                "read of 0x12345000 by 00:02.0 blocked: 39: scalable-mode root entry not present",
            ),
            (
                fetch,
                "instruction fetch of 0x12345000 by 00:02.0 PASID 5 as supervisor blocked: \
                 5c: execute request where none is supported",
            ),
            (
                write,
                "write of 0x12345000 by 00:02.0 PASID 5 blocked: 1f: unknown reason",
            ),
            (
                interrupt,
                "interrupt 7 by 00:03.0 blocked: 22: interrupt entry not present",
            ),
        ] {
            assert_eq!(FaultRecord::new(info).to_string(), line);
        }
    }

    #[test]
    fn meanings_stand_at_the_codes_of_the_specification() {
        for (code, reason) in [
            (0x05, FaultReason::LegacyWriteDenied),
            (0x06, FaultReason::LegacyReadDenied),
            (0x0d, FaultReason::LegacyAddressTypeBlocked),
            (0x22, FaultReason::InterruptEntryNotPresent),
            (0x25, FaultReason::InterruptCompatibilityFormatBlocked),
            (0x26, FaultReason::InterruptSourceDenied),
            (0x30, FaultReason::RootTableAddressInvalid),
            (0x33, FaultReason::AbortDmaMode),
            (0x39, FaultReason::ScalableRootEntryNotPresent),
            (0x41, FaultReason::ScalableContextEntryNotPresent),
            (0x48, FaultReason::PasidEqualsRidPasid),
            (0x51, FaultReason::PasidDirectoryEntryNotPresent),
            (0x58, FaultReason::PasidTableUnreadable),
            (0x59, FaultReason::PasidEntryNotPresent),
            (0x5a, FaultReason::PasidEntryReserved),
            (0x5b, FaultReason::PasidEntryInvalid),
            (0x5d, FaultReason::SupervisorRequestDisabled),
            (0x71, FaultReason::FirstStageNotPresent),
            (0x73, FaultReason::FirstStageRootUnreadable),
            (0x77, FaultReason::FirstStageUpdateDenied),
            (0x79, FaultReason::SecondStageNotPresent),
            (0x7b, FaultReason::SecondStageRootUnreadable),
            (0x80, FaultReason::AddressNotCanonical),
            (0x84, FaultReason::AddressBeyondSecondStage),
            (0x85, FaultReason::WriteDenied),
            (0x86, FaultReason::ReadDenied),
            (0x87, FaultReason::InterruptAddress),
            (0x89, FaultReason::PasidTooLarge),
            (0x90, FaultReason::FirstStageUpdateUnsnooped),
            (0x91, FaultReason::FirstStageUpdateFailed),
        ] {
            assert_eq!(FaultReason::from_code(code), Some(reason));
        }
    }

    #[test]
    fn within_a_mode_no_two_reasons_read_alike() {
        let mut texts = BTreeSet::new();
        for &reason in FaultReason::ALL {
            let is_legacy = reason.mode() == FaultMode::Legacy;
            assert!(texts.insert((is_legacy, reason.name())), "{reason}");
        }
        assert_eq!(
            FaultReason::WriteDenied.to_string(),
            "85: write without write permission"
        );
    }
}
