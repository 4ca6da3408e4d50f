//! What a device's malformed interrupt messages do to the platform, and the masks that keep it from
//! that.
//!
//! A write to 0xFEEx_xxxx that is no proper interrupt request (too long, unaligned, or with data
//! that the format does not have) is refused by the root complex as an unsupported request, before
//! or beside remapping. Where firmware lets the function above the device report that, the report
//! is a system error: a fatal interrupt for the whole machine, at a guest's word (CVE-2013-3495).
//! No table of the unit prevents it. So a hypervisor that assigns a device masks the report in the
//! port that the device is below, or in the host bridge for an integrated device, beforehand.

use super::device_capability::ConfigurationSpace;
use crate::arch::pci::{find_capability, find_extended_capability};

/// Extended capability: Advanced Error Reporting.
const ERROR_REPORTING_ID: u32 = 0x01;
const UNCORRECTABLE_MASK: u16 = 0x08;
const UNSUPPORTED_REQUEST: u32 = 1 << 20;
const CORRECTABLE_MASK: u16 = 0x14;
const ADVISORY_NON_FATAL: u32 = 1 << 13;

/// The command register, and its switch of system errors.
const COMMAND: u16 = 0x04;
const SYSTEM_ERROR_ENABLE: u16 = 1 << 8;

/// Device Control in the PCI Express capability, and its switch of these reports.
const DEVICE_CONTROL: u16 = 8;
const UNSUPPORTED_REQUEST_REPORTING: u16 = 1 << 3;

/// How the reports of unsupported requests of a function were turned off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorMask {
    /// Only they are masked, in its Advanced Error Reporting capability.
    UnsupportedRequests,
    /// The function has no such capability: its Device Control no longer asks for these reports, and
    /// its Command register for no system error at all.
    SystemErrors,
    /// The function has no PCI Express capability either: only its Command register was changed,
    /// and whether that is enough is the chipset's secret.
    CommandOnly,
}

/// Keeps a function from telling the platform of unsupported requests. To be called for the root port
/// above an assigned device, and the switch ports on the way, or for the host bridge.
///
/// `None` if there is no such function; nothing was written then. What firmware had set is not
/// brought back: a device that a guest once had may still have such a write on its way.
#[doc(alias = "UR")]
#[doc(alias = "SERR")]
#[doc(alias = "AER")]
pub fn mask_unsupported_requests(space: &mut impl ConfigurationSpace) -> Option<ErrorMask> {
    if space.read32(0) == u32::MAX {
        return None;
    }
    // Where Device Control lies in conventional configuration space.
    let express = find_capability(|at| space.read32(at)).filter(|at| *at <= 0x100 - 0xc);
    let reporting = express
        .and_then(|_| find_extended_capability(|at| space.read32(at), ERROR_REPORTING_ID))
        // The last mask lies in configuration space.
        .filter(|at| *at <= 0x1000 - 0x18);
    if let Some(reporting) = reporting {
        for (offset, mask) in [
            (UNCORRECTABLE_MASK, UNSUPPORTED_REQUEST),
            // An unsupported request can be told as an advisory error instead.
            (CORRECTABLE_MASK, ADVISORY_NON_FATAL),
        ] {
            let at = reporting.saturating_add(offset);
            let masked = space.read32(at);
            space.write32(at, masked | mask);
        }
        return Some(ErrorMask::UnsupportedRequests);
    }
    // Only these halves are written: ones in the other halves would clear status bits.
    let command = space.read32(COMMAND) as u16;
    space.write16(COMMAND, command & !SYSTEM_ERROR_ENABLE);
    let Some(express) = express else {
        return Some(ErrorMask::CommandOnly);
    };
    let at = express.saturating_add(DEVICE_CONTROL);
    let control = space.read32(at) as u16;
    space.write16(at, control & !UNSUPPORTED_REQUEST_REPORTING);
    Some(ErrorMask::SystemErrors)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    /// Configuration space: these dwords, zeroes elsewhere. What was written, and its width in bits.
    struct Space {
        words: BTreeMap<u16, u32>,
        writes: Vec<(u16, u32, u8)>,
    }

    impl Space {
        fn new(words: &[(u16, u32)]) -> Self {
            Self {
                words: words.iter().copied().collect(),
                writes: Vec::new(),
            }
        }
    }

    impl ConfigurationSpace for Space {
        fn read32(&self, offset: u16) -> u32 {
            assert!(offset.is_multiple_of(4) && offset < 0x1000, "{offset:#x}");
            self.words.get(&offset).copied().unwrap_or(0)
        }

        fn write16(&mut self, offset: u16, value: u16) {
            self.writes.push((offset, value.into(), 16));
        }

        fn write32(&mut self, offset: u16, value: u32) {
            assert!(offset < 0x1000, "{offset:#x}");
            self.writes.push((offset, value, 32));
        }
    }

    const IDENTITY: (u16, u32) = (0, 0x1234_8086);
    /// A list of capabilities, bus mastering, system errors on; a status bit that ones clear.
    const COMMAND_AND_STATUS: (u16, u32) = (4, 0x4010_0107);
    const FIRST_CAPABILITY: (u16, u32) = (0x34, 0x40);
    const EXPRESS: (u16, u32) = (0x40, 0x0042_0010);
    /// All four kinds of reports; a status bit that ones clear.
    const CONTROL_AND_STATUS: (u16, u32) = (0x48, 0x0008_000f);

    #[test]
    fn only_unsupported_requests_are_masked_where_they_can_be() {
        let mut space = Space::new(&[
            IDENTITY,
            COMMAND_AND_STATUS,
            FIRST_CAPABILITY,
            EXPRESS,
            CONTROL_AND_STATUS,
            (0x100, 0x1401_000d),
            (0x140, 0x0002_0001),
            (0x148, 0x0040_0000),
            (0x154, 0x0000_0001),
        ]);
        let mask = mask_unsupported_requests(&mut space);
        assert_eq!(mask, Some(ErrorMask::UnsupportedRequests));
        let expected = [(0x148, 0x0050_0000, 32), (0x154, 0x0000_2001, 32)];
        assert_eq!(space.writes, expected);
    }

    #[test]
    fn what_cannot_be_masked_by_kind_is_switched_off_without_touching_status() {
        let command = (4, 0x0007, 16);
        let control = (0x48, 0x0007, 16);
        let with_express = [
            IDENTITY,
            COMMAND_AND_STATUS,
            FIRST_CAPABILITY,
            EXPRESS,
            CONTROL_AND_STATUS,
        ];
        // A capability whose masks are not in configuration space.
        let mut cut = with_express.to_vec();
        cut.extend([(0x100, 0xff01_000d), (0xff0, 0x0002_0001)]);
        for (words, mask, writes) in [
            (
                &with_express[..],
                ErrorMask::SystemErrors,
                &[command, control][..],
            ),
            (&cut, ErrorMask::SystemErrors, &[command, control]),
            // A capability whose Device Control is not where such a register can be.
            (
                &[
                    IDENTITY,
                    COMMAND_AND_STATUS,
                    (0x34, 0xf8),
                    (0xf8, 0x0042_0010),
                ],
                ErrorMask::CommandOnly,
                &[command],
            ),
            (
                &[IDENTITY, COMMAND_AND_STATUS],
                ErrorMask::CommandOnly,
                &[command],
            ),
        ] {
            let mut space = Space::new(words);
            assert_eq!(mask_unsupported_requests(&mut space), Some(mask));
            assert_eq!(space.writes, writes, "{mask:?}");
        }
    }

    #[test]
    fn an_absent_function_is_told_and_not_written_to() {
        let mut space = Space::new(&[(0, u32::MAX)]);
        assert_eq!(mask_unsupported_requests(&mut space), None);
        assert_eq!(space.writes, []);
    }
}
