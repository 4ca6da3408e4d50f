//! A device's own switches for PASIDs, page requests and ATS, and the order of their use (§4.5; PCI
//! Express Base Specification, *Address Translation Services* and *PASID Extended Capability*).
//!
//! What a device may do is decided by its context entry; these switches make it try. The order is that
//! of [`enable`](DeviceCapabilities::enable): a device's PASID switch must not move while its ATS is on,
//! so ATS comes last and goes first.

use core::fmt;

use super::device_tlb::DeviceTlb;
use super::errata::{PciIdentity, has_unreliable_device_tlb};
use crate::arch::id::SourceId;

/// Where extended capabilities start in configuration space, in bytes.
const FIRST_CAPABILITY: u16 = 0x100;
/// No more capabilities than these fit into configuration space: each takes 8 bytes at least.
const MOST_CAPABILITIES: u16 = (0x1000 - FIRST_CAPABILITY) / 8;

const ATS_ID: u16 = 0x0f;
const PAGE_REQUEST_ID: u16 = 0x13;
const PASID_ID: u16 = 0x1b;

/// Switches in the upper half of the doubleword behind a capability's header (ATS, PASID).
const UPPER_CONTROL: u16 = 6;
const ATS_ENABLE: u16 = 1 << 15;
const PASID_ENABLE: u16 = 1 << 0;
/// Switches of page requests, in the lower half of that doubleword.
const PAGE_REQUEST_CONTROL: u16 = 4;
const PAGE_REQUEST_ENABLE: u16 = 1 << 0;
const PAGE_REQUEST_RESET: u16 = 1 << 1;

/// Configuration space of one function. Offsets are in bytes, aligned to the access, below 4096.
pub trait ConfigurationSpace {
    /// Reads 32 bits; all ones if there is no such function.
    fn read32(&self, offset: u16) -> u32;

    /// Writes 16 bits.
    fn write16(&mut self, offset: u16, value: u16);

    /// Writes 32 bits.
    fn write32(&mut self, offset: u16, value: u32);
}

/// What of a device is to be switched on. The default is nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceAbilities {
    /// Requests with PASID: of at least this many bits, or none with 0.
    pub pasid_bits: u8,
    /// Page requests, this many at most at a time; none with 0. They need ATS.
    pub page_requests: u32,
    /// ATS: translation requests and translated requests.
    pub address_translation: bool,
}

/// Why a device cannot be switched as asked. Nothing was written then, except where a variant says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceCapabilityError {
    /// Configuration space reads all ones: the function is gone.
    Gone,
    /// The list of capabilities does not end, or leads out of configuration space.
    BrokenList {
        /// Where it does, in bytes.
        offset: u16,
    },
    /// The function has no PASID capability, or one of fewer bits.
    PasidBits {
        /// Bits asked for.
        wanted: u8,
        /// Bits there are.
        carried: u8,
    },
    /// The function has no ATS capability, or an erratum forbids its use.
    NoAddressTranslation,
    /// The function's translation requests are not aligned to pages, which remapping hardware
    /// takes them to be.
    Unaligned,
    /// A switch was written and reads back otherwise.
    NotSwitched {
        /// The capability, in bytes.
        offset: u16,
    },
    /// The function cannot have so many page requests outstanding, or has none at all.
    PageRequests {
        /// Asked for.
        wanted: u32,
        /// Its capacity.
        capacity: u32,
    },
}

impl fmt::Display for DeviceCapabilityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("configuration space reads all ones"),
            Self::BrokenList { offset } => {
                write!(f, "the list of capabilities is broken at {offset:#x}")
            }
            Self::PasidBits { wanted, carried } => {
                write!(f, "PASIDs of {wanted} bits, the device has {carried}")
            }
            Self::NoAddressTranslation => f.write_str("the device has no ATS"),
            Self::NotSwitched { offset } => {
                write!(f, "the capability at {offset:#x} does not switch")
            }
            Self::Unaligned => f.write_str("the device's translation requests are not aligned"),
            Self::PageRequests { wanted, capacity } => {
                write!(
                    f,
                    "{wanted} page requests, the device has room for {capacity}"
                )
            }
        }
    }
}

impl core::error::Error for DeviceCapabilityError {}

/// The ATS capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct AddressTranslation {
    offset: u16,
    /// Invalidate Queue Depth; 0 is 32.
    queue_depth: u8,
    is_page_aligned: bool,
    /// No erratum is known of its invalidations.
    is_reliable: bool,
}

/// Where a function's capabilities are, and what they say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceCapabilities {
    address_translation: Option<AddressTranslation>,
    /// Offset, and width in bits.
    pasid: Option<(u16, u8)>,
    /// Offset, and capacity.
    page_requests: Option<(u16, u32)>,
}

impl DeviceCapabilities {
    /// Looks for them. ATS where an erratum makes it unusable ([`has_unreliable_device_tlb`]) is only
    /// ever switched off. A virtual function has no PASID and page request capability: it goes by the
    /// switches of its physical function.
    ///
    /// # Errors
    ///
    /// [`DeviceCapabilityError::Gone`] and [`DeviceCapabilityError::BrokenList`].
    pub fn find(space: &impl ConfigurationSpace) -> Result<Self, DeviceCapabilityError> {
        let mut found = Self::default();
        let ids = space.read32(0);
        let identity = PciIdentity {
            vendor: ids as u16,
            device: (ids >> 16) as u16,
            revision: 0,
        };
        let is_reliable = !has_unreliable_device_tlb(&identity);
        let mut offset = FIRST_CAPABILITY;
        for _ in 0..MOST_CAPABILITIES {
            let header = space.read32(offset);
            if header == u32::MAX {
                return Err(DeviceCapabilityError::Gone);
            }
            let below = offset.saturating_add(4);
            match header as u16 {
                ATS_ID => {
                    let word = space.read32(below);
                    found.address_translation = Some(AddressTranslation {
                        offset,
                        queue_depth: (word & 0x1f) as u8,
                        is_page_aligned: word >> 5 & 1 == 1,
                        is_reliable,
                    });
                }
                PASID_ID => {
                    let word = space.read32(below);
                    // Wider than 20 bits is reserved.
                    found.pasid = Some((offset, (word >> 8 & 0x1f).min(20) as u8));
                }
                PAGE_REQUEST_ID => {
                    let capacity = space.read32(offset.saturating_add(8));
                    found.page_requests = Some((offset, capacity));
                }
                _ => {}
            }
            let next = (header >> 20) as u16;
            if next == 0 {
                return Ok(found);
            }
            // The longest of these capabilities has 16 bytes.
            if next < FIRST_CAPABILITY || !next.is_multiple_of(4) || next > 0xff0 {
                return Err(DeviceCapabilityError::BrokenList { offset });
            }
            offset = next;
        }
        Err(DeviceCapabilityError::BrokenList { offset })
    }

    /// The width of the PASIDs that the function can send, in bits; 0 if it has none.
    pub const fn pasid_bits(&self) -> u8 {
        match self.pasid {
            Some((_, bits)) => bits,
            None => 0,
        }
    }

    /// What invalidations of the function's TLB have to know; `None` if it has no ATS, or none to be
    /// used.
    pub fn device_tlb(&self, physical_function: SourceId) -> Option<DeviceTlb> {
        let usable = self
            .address_translation
            .filter(|capability| capability.is_reliable);
        usable.map(|capability| DeviceTlb {
            queue_depth: capability.queue_depth,
            physical_function,
        })
    }

    /// Switches a function on: everything off first, then PASIDs, page requests, ATS.
    ///
    /// The function sends nothing meanwhile. Its context entry allows what is switched on already, so
    /// that its first translation request is not refused, which would switch its ATS off (§4.5.1).
    ///
    /// # Errors
    ///
    /// [`DeviceCapabilityError`].
    pub fn enable(
        &self,
        space: &mut impl ConfigurationSpace,
        wanted: &DeviceAbilities,
    ) -> Result<(), DeviceCapabilityError> {
        self.check(wanted)?;
        self.disable(space);
        if let Some((offset, _)) = self.pasid.filter(|_| wanted.pasid_bits > 0) {
            space.write16(offset.saturating_add(UPPER_CONTROL), PASID_ENABLE);
        }
        if let Some((offset, _)) = self.page_requests.filter(|_| wanted.page_requests > 0) {
            let control = offset.saturating_add(PAGE_REQUEST_CONTROL);
            // What it still expects answers for is forgotten.
            space.write16(control, PAGE_REQUEST_RESET);
            space.write32(offset.saturating_add(12), wanted.page_requests);
            space.write16(control, PAGE_REQUEST_ENABLE);
        }
        if let Some(capability) = self
            .address_translation
            .filter(|_| wanted.address_translation)
        {
            // The smallest translation unit is 4 KiB, which is coded as 0.
            let control = capability.offset.saturating_add(UPPER_CONTROL);
            space.write16(control, ATS_ENABLE);
        }
        Ok(())
    }

    /// Whether a function's switches are as [`enable`](Self::enable) or [`disable`](Self::disable) left
    /// them.
    ///
    /// # Errors
    ///
    /// [`DeviceCapabilityError::Gone`], [`DeviceCapabilityError::NotSwitched`].
    pub fn confirm(
        &self,
        space: &impl ConfigurationSpace,
        wanted: &DeviceAbilities,
    ) -> Result<(), DeviceCapabilityError> {
        let translation = self.address_translation.map(|found| {
            let switch = (UPPER_CONTROL, ATS_ENABLE);
            (found.offset, switch, wanted.address_translation)
        });
        let requests = self.page_requests.map(|(offset, _)| {
            let switch = (PAGE_REQUEST_CONTROL, PAGE_REQUEST_ENABLE);
            (offset, switch, wanted.page_requests > 0)
        });
        let pasid = self
            .pasid
            .map(|(offset, _)| (offset, (UPPER_CONTROL, PASID_ENABLE), wanted.pasid_bits > 0));
        for (offset, (control, switch), is_wanted) in
            [translation, requests, pasid].into_iter().flatten()
        {
            let word = space.read32(offset.saturating_add(4));
            if word == u32::MAX {
                return Err(DeviceCapabilityError::Gone);
            }
            let half = if control == UPPER_CONTROL {
                (word >> 16) as u16
            } else {
                word as u16
            };
            if (half & switch != 0) != is_wanted {
                return Err(DeviceCapabilityError::NotSwitched { offset });
            }
        }
        Ok(())
    }

    fn check(&self, wanted: &DeviceAbilities) -> Result<(), DeviceCapabilityError> {
        if wanted.pasid_bits > self.pasid_bits() {
            return Err(DeviceCapabilityError::PasidBits {
                wanted: wanted.pasid_bits,
                carried: self.pasid_bits(),
            });
        }
        let needs_translation = wanted.address_translation || wanted.page_requests > 0;
        match self
            .address_translation
            .filter(|capability| wanted.address_translation && capability.is_reliable)
        {
            None if needs_translation => return Err(DeviceCapabilityError::NoAddressTranslation),
            Some(capability) if !capability.is_page_aligned => {
                return Err(DeviceCapabilityError::Unaligned);
            }
            _ => {}
        }
        let capacity = self.page_requests.map_or(0, |(_, capacity)| capacity);
        if wanted.page_requests > capacity {
            return Err(DeviceCapabilityError::PageRequests {
                wanted: wanted.page_requests,
                capacity,
            });
        }
        Ok(())
    }

    /// Switches a function off: ATS, page requests, PASIDs.
    ///
    /// The function sends nothing meanwhile. Its TLB is to be invalidated afterwards, before its
    /// context entry stops allowing ATS (§4.5.2): [`Unit::detach_device`](super::Unit::detach_device)
    /// does both.
    pub fn disable(&self, space: &mut impl ConfigurationSpace) {
        if let Some(capability) = self.address_translation {
            space.write16(capability.offset.saturating_add(UPPER_CONTROL), 0);
        }
        if let Some((offset, _)) = self.page_requests {
            space.write16(offset.saturating_add(PAGE_REQUEST_CONTROL), 0);
        }
        if let Some((offset, _)) = self.pasid {
            space.write16(offset.saturating_add(UPPER_CONTROL), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    #[derive(Default)]
    struct Space {
        words: BTreeMap<u16, u32>,
        writes: Vec<(u16, u32)>,
    }

    impl ConfigurationSpace for Space {
        fn read32(&self, offset: u16) -> u32 {
            assert!(offset.is_multiple_of(4) && offset < 0x1000);
            self.words.get(&offset).copied().unwrap_or(0)
        }

        fn write16(&mut self, offset: u16, value: u16) {
            self.writes.push((offset, value.into()));
        }

        fn write32(&mut self, offset: u16, value: u32) {
            self.writes.push((offset, value));
        }
    }

    /// ATS at 0x100 (depth 8, aligned), PASID at 0x200 (20 bits), page requests at 0x300 (32).
    fn able() -> Space {
        let words = [
            (0x100, 0x2001_000f),
            (0x104, 0x28),
            (0x200, 0x3001_001b),
            (0x204, 20 << 8),
            (0x300, 0x0001_0013),
            (0x308, 32),
        ];
        Space {
            words: words.into_iter().collect(),
            writes: Vec::new(),
        }
    }

    const EVERYTHING: DeviceAbilities = DeviceAbilities {
        pasid_bits: 20,
        page_requests: 16,
        address_translation: true,
    };

    // Vendor 8086, device 4940: its TLB does not forget at the first invalidation.
    #[test]
    fn ats_with_an_erratum_is_switched_off_and_never_on() {
        let mut space = able();
        space.words.insert(0, 0x4940_8086);
        let found = DeviceCapabilities::find(&space).unwrap();
        assert_eq!(found.device_tlb(SourceId::from_u16(8)), None);
        assert_eq!(
            found.enable(&mut space, &EVERYTHING),
            Err(DeviceCapabilityError::NoAddressTranslation)
        );
        found.disable(&mut space);
        assert!(space.writes.contains(&(0x106, 0)));
    }

    #[test]
    fn ats_is_switched_on_last_and_off_first() {
        let mut space = able();
        let found = DeviceCapabilities::find(&space).unwrap();
        assert_eq!(found.pasid_bits(), 20);
        let function = SourceId::from_u16(8);
        assert_eq!(
            found.device_tlb(function),
            Some(DeviceTlb {
                queue_depth: 8,
                physical_function: function
            })
        );
        found.enable(&mut space, &EVERYTHING).unwrap();
        let off = [(0x106, 0), (0x304, 0), (0x206, 0)];
        let on = [
            (0x206, 1),
            (0x304, 2),
            (0x30c, 16),
            (0x304, 1),
            (0x106, 0x8000),
        ];
        assert_eq!(space.writes, [&off[..], &on].concat());
        space.writes.clear();
        found.disable(&mut space);
        assert_eq!(space.writes, off);
    }

    #[test]
    fn a_switch_that_does_not_move_is_told_by_its_capability() {
        use DeviceCapabilityError as E;
        let nothing = DeviceAbilities::default();
        // ATS E is bit 31 of 0x104, PASID E bit 16 of 0x204, page requests' E bit 0 of 0x304.
        let on = [(0x104, 0x8000_0028), (0x204, 0x0001_1400), (0x304, 1)];
        let mut space = able();
        let found = DeviceCapabilities::find(&space).unwrap();
        assert_eq!(found.confirm(&space, &nothing), Ok(()));
        assert_eq!(
            found.confirm(&space, &EVERYTHING),
            Err(E::NotSwitched { offset: 0x100 })
        );
        for (at, word) in on {
            let mut one = able();
            one.words.insert(at, word);
            let stuck = E::NotSwitched { offset: at & 0xf00 };
            assert_eq!(found.confirm(&one, &nothing), Err(stuck));
            one.words.insert(at, u32::MAX);
            assert_eq!(found.confirm(&one, &nothing), Err(E::Gone));
            space.words.insert(at, word);
        }
        assert_eq!(found.confirm(&space, &EVERYTHING), Ok(()));
    }

    #[test]
    fn what_is_not_asked_for_is_switched_off() {
        let mut space = able();
        let found = DeviceCapabilities::find(&space).unwrap();
        found
            .enable(&mut space, &DeviceAbilities::default())
            .unwrap();
        assert_eq!(space.writes, [(0x106, 0), (0x304, 0), (0x206, 0)]);
    }

    #[test]
    fn what_a_device_cannot_do_is_refused_before_anything_is_written() {
        use DeviceCapabilityError as E;
        let none = (0x100, 0x0001_0001);
        let unaligned = (0x104, 8);
        let narrow = (0x204, 16 << 8);
        let few = (0x308, 4);
        let without_requests = DeviceAbilities {
            page_requests: 0,
            ..EVERYTHING
        };
        let without_ats = DeviceAbilities {
            address_translation: false,
            ..EVERYTHING
        };
        for (change, wanted, error) in [
            (
                none,
                without_requests,
                E::PasidBits {
                    wanted: 20,
                    carried: 0,
                },
            ),
            (
                none,
                DeviceAbilities {
                    pasid_bits: 0,
                    ..EVERYTHING
                },
                E::NoAddressTranslation,
            ),
            (unaligned, EVERYTHING, E::Unaligned),
            (
                narrow,
                EVERYTHING,
                E::PasidBits {
                    wanted: 20,
                    carried: 16,
                },
            ),
            (
                few,
                EVERYTHING,
                E::PageRequests {
                    wanted: 16,
                    capacity: 4,
                },
            ),
            (few, without_ats, E::NoAddressTranslation),
        ] {
            let mut space = able();
            space.words.insert(change.0, change.1);
            let found = DeviceCapabilities::find(&space).unwrap();
            assert_eq!(found.enable(&mut space, &wanted), Err(error));
            assert!(space.writes.is_empty());
        }
    }

    #[test]
    fn lists_that_do_not_end_or_leave_configuration_space_are_refused() {
        use DeviceCapabilityError as E;
        for (header, expected) in [
            (0x1001_000f, E::BrokenList { offset: 0x100 }),
            (0x0401_000f, E::BrokenList { offset: 0x100 }),
            (0x2021_000f, E::BrokenList { offset: 0x100 }),
            (0xff81_000f, E::BrokenList { offset: 0x100 }),
            (u32::MAX, E::Gone),
        ] {
            let mut space = able();
            space.words.insert(0x100, header);
            assert_eq!(
                DeviceCapabilities::find(&space),
                Err(expected),
                "{header:#x}"
            );
        }
        assert_eq!(
            DeviceCapabilities::find(&Space::default()),
            Ok(DeviceCapabilities::default())
        );
    }
}
