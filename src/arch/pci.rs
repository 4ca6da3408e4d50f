//! What PCI functions are, as far as it decides which requests are theirs: bridges and their buses,
//! port types, phantom functions, access control services.
//!
//! Configuration space is untrusted: walks of capability lists are bounded, and what makes no sense
//! decodes to the kind that isolates least.

use super::id::SourceId;

/// The bus numbers behind bridges of one segment, as the bridges' configuration space holds them.
pub trait PciTopology {
    /// The secondary bus number of a bridge (configuration offset 0x19), or `None` if there is no
    /// such bridge.
    fn secondary_bus(&self, bridge: SourceId) -> Option<u8>;

    /// The subordinate bus number of a bridge (configuration offset 0x1a), or `None` if there is no
    /// such bridge.
    fn subordinate_bus(&self, bridge: SourceId) -> Option<u8>;
}

/// The functions of one segment, and the way from each to its root bus.
pub trait PciFunctions: PciTopology {
    /// What a function is, or `None` if there is none.
    fn function(&self, source_id: SourceId) -> Option<PciFunction>;

    /// The bridge whose secondary bus this is, or `None` for a root bus.
    fn bridge_to(&self, bus: u8) -> Option<SourceId>;
}

/// Where a function stands between its device and the root of the segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PciKind {
    /// A PCI Express function that is no port, on a link or integrated.
    Endpoint,
    /// A virtual function, and its physical function.
    VirtualFunction(SourceId),
    /// A root port.
    RootPort,
    /// The upstream port of a switch.
    UpstreamPort,
    /// A downstream port of a switch.
    DownstreamPort,
    /// A bridge from PCI Express to PCI or PCI-X.
    ExpressToPciBridge,
    /// A bridge from PCI or PCI-X to PCI Express.
    PciToExpressBridge,
    /// A bridge without a PCI Express capability.
    ConventionalBridge,
    /// A function without a PCI Express capability that is no bridge.
    Conventional,
}

/// Which functions belong to one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Siblings {
    /// Only this one.
    None,
    /// All that share the device number.
    Device,
    /// All of the bus: the device has alternative routing-ids.
    #[doc(alias = "ARI")]
    Bus,
}

/// The access control services of a function (PCI Express, extended capability 0x0D).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "ACS")]
pub struct AccessControl {
    /// The capability register (offset 4): what is implemented.
    pub capability: u16,
    /// The control register (offset 6): what is on.
    pub control: u16,
}

impl AccessControl {
    /// Source validation.
    pub const SOURCE_VALIDATION: u16 = 1 << 0;
    /// Peer-to-peer request redirect.
    pub const REQUEST_REDIRECT: u16 = 1 << 2;
    /// Peer-to-peer completion redirect.
    pub const COMPLETION_REDIRECT: u16 = 1 << 3;
    /// Upstream forwarding.
    pub const UPSTREAM_FORWARDING: u16 = 1 << 4;

    /// Whether each of these services is on, or not needed because it is not implemented.
    const fn enforces(self, services: u16) -> bool {
        self.capability & services & !self.control == 0
    }

    /// Whether a port with these services lets what is below it send nothing under another's
    /// source-id, and nothing to its peers that the remapping unit does not see.
    pub const fn isolates_port(self) -> bool {
        self.capability & self.control & Self::SOURCE_VALIDATION != 0
            && self.enforces(
                Self::REQUEST_REDIRECT | Self::COMPLETION_REDIRECT | Self::UPSTREAM_FORWARDING,
            )
    }

    /// Whether a function with these services sends nothing to the other functions of its device
    /// that the remapping unit does not see.
    pub const fn isolates_function(self) -> bool {
        self.enforces(Self::REQUEST_REDIRECT | Self::COMPLETION_REDIRECT)
    }
}

/// One function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciFunction {
    /// What it is.
    pub kind: PciKind,
    /// Which other functions belong to the same device.
    pub siblings: Siblings,
    /// How many high bits of the function number phantom functions take: 0 to 3.
    pub phantom_bits: u8,
    /// Its access control services, if it has any. Where an embedder knows that a port isolates
    /// without them, it may say so here.
    pub access_control: Option<AccessControl>,
}

/// Capabilities that fit between the header and the end of conventional configuration space.
const CAPABILITIES: usize = 48;
/// Extended capabilities that fit behind conventional configuration space.
const EXTENDED_CAPABILITIES: usize = 960;
const EXPRESS: u32 = 0x10;
const ACCESS_CONTROL: u32 = 0x0d;
const ALTERNATIVE_ROUTING: u32 = 0x0e;

impl PciFunction {
    /// The function whose configuration space `read` reads: 32 bits at an offset that is a multiple
    /// of 4. `None` if there is no such function, or if it is a virtual function, which has no
    /// vendor id of its own.
    pub fn decode(source_id: SourceId, read: impl Fn(u16) -> u32) -> Option<Self> {
        if read(0) & 0xffff == 0xffff {
            return None;
        }
        let header = read(0x0c) >> 16;
        let is_bridge = header & 0x7f == 1;
        let express = find_capability(&read);
        let kind = match (express.map(|at| read(at) >> 20 & 0xf), is_bridge) {
            (None, true) => PciKind::ConventionalBridge,
            (None, false) => PciKind::Conventional,
            (Some(4), true) => PciKind::RootPort,
            (Some(5), true) => PciKind::UpstreamPort,
            (Some(6), true) => PciKind::DownstreamPort,
            (Some(7), true) => PciKind::ExpressToPciBridge,
            (Some(8), true) => PciKind::PciToExpressBridge,
            (Some(_), true) => PciKind::ConventionalBridge,
            (Some(_), false) => PciKind::Endpoint,
        };
        let extended = |id| express.and_then(|_| find_extended_capability(&read, id));
        let is_one_of_many = header & 0x80 != 0 || source_id.function() != 0;
        let siblings = if !is_bridge && extended(ALTERNATIVE_ROUTING).is_some() {
            Siblings::Bus
        } else if is_one_of_many {
            Siblings::Device
        } else {
            Siblings::None
        };
        let access_control = extended(ACCESS_CONTROL).map(|at| {
            let registers = read(at.saturating_add(4));
            AccessControl {
                capability: registers as u16,
                control: (registers >> 16) as u16,
            }
        });
        let phantom_bits = express.map_or(0, |at| (read(at.saturating_add(4)) >> 3 & 3) as u8);
        Some(Self {
            kind,
            siblings,
            phantom_bits,
            access_control,
        })
    }
}

/// Where the PCI Express capability is.
pub(crate) fn find_capability(read: impl Fn(u16) -> u32) -> Option<u16> {
    const HAS_CAPABILITIES: u32 = 1 << 20;
    if read(4) & HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = (read(0x34) & 0xfc) as u16;
    for _ in 0..CAPABILITIES {
        if at < 0x40 {
            return None;
        }
        let capability = read(at);
        if capability & 0xff == EXPRESS {
            return Some(at);
        }
        at = (capability >> 8 & 0xfc) as u16;
    }
    None
}

/// Where the extended capability of this id is.
pub(crate) fn find_extended_capability(read: impl Fn(u16) -> u32, id: u32) -> Option<u16> {
    let mut at = 0x100;
    for _ in 0..EXTENDED_CAPABILITIES {
        let capability = read(at);
        // An absent one reads as zeroes or ones.
        if capability == 0 || capability == u32::MAX {
            return None;
        }
        if capability & 0xffff == id {
            // One without a register behind its header is none.
            return (at < 0xffc).then_some(at);
        }
        at = (capability >> 20 & 0xffc) as u16;
        if at < 0x100 {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeMap;

    fn source_id(function: u8) -> SourceId {
        SourceId::new(3, 0, function).unwrap()
    }

    /// Configuration space: these dwords, zeroes elsewhere.
    fn decode(function: u8, dwords: &[(u16, u32)]) -> Option<PciFunction> {
        let dwords: BTreeMap<u16, u32> = dwords.iter().copied().collect();
        PciFunction::decode(source_id(function), |at| {
            assert!(at % 4 == 0 && at < 0x1000, "{at:#x}");
            dwords.get(&at).copied().unwrap_or(0)
        })
    }

    const PRESENT: (u16, u32) = (0, 0x1234_8086);
    const LISTS: (u16, u32) = (4, 1 << 20);

    // PCI Express: device/port type in bits 7:4 of the capabilities register, at offset 2.
    #[test]
    fn port_types_are_told_apart() {
        for (header, port_type, expected) in [
            (0, 0, PciKind::Endpoint),
            (0, 9, PciKind::Endpoint),
            (1, 4, PciKind::RootPort),
            (1, 5, PciKind::UpstreamPort),
            (1, 6, PciKind::DownstreamPort),
            (1, 7, PciKind::ExpressToPciBridge),
            (1, 8, PciKind::PciToExpressBridge),
            // A bridge that says it is an endpoint, an endpoint that says it is a root port.
            (1, 0, PciKind::ConventionalBridge),
            (0, 4, PciKind::Endpoint),
        ] {
            let found = decode(
                0,
                &[
                    PRESENT,
                    LISTS,
                    (0x0c, header << 16),
                    (0x34, 0x40),
                    (0x40, 0x4805),
                    (0x48, 0x10 | port_type << 20),
                    (0x4c, 0b10 << 3),
                ],
            );
            let found = found.unwrap();
            assert_eq!((found.kind, found.phantom_bits), (expected, 2));
            assert_eq!(found.siblings, Siblings::None);
        }
        let plain = decode(0, &[PRESENT]).unwrap();
        assert_eq!(plain.kind, PciKind::Conventional);
        let bridge = decode(0, &[PRESENT, (0x0c, 0x81 << 16)]).unwrap();
        assert_eq!(bridge.kind, PciKind::ConventionalBridge);
        assert_eq!(bridge.siblings, Siblings::Device);
        let second = decode(1, &[PRESENT]).unwrap();
        assert_eq!(second.siblings, Siblings::Device);
        assert_eq!(decode(0, &[(0, u32::MAX)]), None);
    }

    #[test]
    fn extended_capabilities_are_found() {
        let express = [PRESENT, LISTS, (0x34, 0x40), (0x40, 0x10)];
        let with = |more: &[(u16, u32)]| decode(0, &[&express[..], more].concat()).unwrap();
        let found = with(&[
            (0x100, 0x1481_0001),
            (0x148, 0x2001_000d),
            (0x14c, 0x001d_005f),
            (0x200, 0x0001_000e),
        ]);
        let access_control = AccessControl {
            capability: 0x5f,
            control: 0x1d,
        };
        assert_eq!(found.access_control, Some(access_control));
        assert_eq!(found.siblings, Siblings::Bus);
        assert_eq!(with(&[]).access_control, None);
    }

    // A device's configuration space is its own work.
    #[test]
    fn nothing_is_read_beyond_configuration_space() {
        for id in [ACCESS_CONTROL, ALTERNATIVE_ROUTING] {
            let words: BTreeMap<u16, u32> = [
                PRESENT,
                LISTS,
                (0x34, 0x40),
                (0x40, 0x10),
                (0x100, 0xffc1_0001),
                (0xffc, 0x0001_0000 | id),
            ]
            .into();
            let found = PciFunction::decode(source_id(0), |offset| {
                assert!(offset < 0x1000, "{offset:#x}");
                words.get(&offset).copied().unwrap_or(0)
            });
            assert_eq!(found.unwrap().access_control, None);
        }
    }

    #[test]
    fn lists_that_are_circles_end() {
        let circle = [PRESENT, LISTS, (0x34, 0x40), (0x40, 0x4005)];
        assert_eq!(decode(0, &circle).unwrap().kind, PciKind::Conventional);
        let circle = [
            PRESENT,
            LISTS,
            (0x34, 0x40),
            (0x40, 0x10),
            (0x100, 0x1001_0001),
        ];
        assert_eq!(decode(0, &circle).unwrap().access_control, None);
    }

    #[test]
    fn services_isolate_when_what_is_implemented_is_on() {
        // SV 0, TB 1, RR 2, CR 3, UF 4, EC 5, DT 6.
        for (capability, control, port, function) in [
            (0b1_1101, 0b1_1101, true, true),
            (0b111_1111, 0b1_1101, true, true),
            (0b1_1101, 0b1_1100, false, true),
            (0b1_1100, 0b1_1101, false, true),
            (0b1_1101, 0b1_1001, false, false),
            (0b1_1101, 0b1_0101, false, false),
            (0b1_1101, 0b0_1101, false, true),
            (0b0_0001, 0b0_0001, true, true),
            (0, 0, false, true),
        ] {
            let services = AccessControl {
                capability,
                control,
            };
            assert_eq!(
                (services.isolates_port(), services.isolates_function()),
                (port, function),
                "{services:x?}"
            );
        }
    }
}
