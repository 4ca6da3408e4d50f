//! Which devices hardware does not keep apart: the unit of assignment (R36).
//!
//! Translation isolates only requests that reach the remapping unit under the sender's own
//! source-id. Without access control services a switch delivers requests from port to port, a device
//! from function to function, and nobody checks source-ids; behind a bridge to PCI they are lost.

use crate::arch::id::SourceId;
use crate::arch::pci::{AccessControl, PciFunctions, PciKind, Siblings};

use super::requesters::{Path, TopologyError};

/// Source-ids from one to another, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceIdRange {
    /// The lowest.
    pub first: SourceId,
    /// The highest.
    pub last: SourceId,
}

impl SourceIdRange {
    const fn buses(first: u8, last: u8) -> Self {
        Self {
            first: SourceId::from_u16((first as u16) << 8),
            last: SourceId::from_u16((last as u16) << 8 | 0xff),
        }
    }

    /// All functions of a function's device number.
    const fn device(source_id: SourceId) -> Self {
        Self {
            first: SourceId::from_u16(source_id.as_u16() & !0b111),
            last: SourceId::from_u16(source_id.as_u16() | 0b111),
        }
    }

    /// Whether a source-id is one of them.
    pub fn contains(&self, source_id: SourceId) -> bool {
        (self.first..=self.last).contains(&source_id)
    }

    fn iter(self) -> impl Iterator<Item = SourceId> {
        (self.first.as_u16()..=self.last.as_u16()).map(SourceId::from_u16)
    }
}

/// The functions of one segment that hardware does not keep apart: one device, or all below a
/// bridge and the bridge with its siblings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IsolationGroup {
    /// The device, or what is below the bridge.
    pub members: SourceIdRange,
    /// The bridge with its siblings, if everything below it is one group.
    pub bridge: Option<SourceIdRange>,
}

impl IsolationGroup {
    /// A device that hardware keeps apart from all others.
    pub const fn of(source_id: SourceId) -> Self {
        Self {
            members: SourceIdRange {
                first: source_id,
                last: source_id,
            },
            bridge: None,
        }
    }

    /// Whether a source-id belongs to the group.
    pub fn contains(&self, source_id: SourceId) -> bool {
        self.ranges().any(|range| range.contains(source_id))
    }

    /// The ranges that make up the group.
    pub fn ranges(&self) -> impl Iterator<Item = SourceIdRange> {
        core::iter::once(self.members).chain(self.bridge)
    }
}

/// The group that a device belongs to.
///
/// Starting from the device's own functions, each bus on the way up that does not isolate widens the
/// group: one behind a bridge from or to PCI, or behind a function that its siblings can reach, to all
/// below that; one with a downstream port that
/// does not isolate to all below the switch; a root bus with such a root port to all of that bus,
/// because nobody checks which source-ids the port lets pass. An embedder who knows better of a
/// port says so by its [`access_control`](crate::arch::pci::PciFunction::access_control).
///
/// All members of a group that are no bridges have the same group. Ports that isolate belong to none.
///
/// # Errors
///
/// [`TopologyError`].
pub fn isolation_group(
    source_id: SourceId,
    topology: &impl PciFunctions,
) -> Result<IsolationGroup, TopologyError> {
    let mut group = with_below(siblings(source_id, topology)?, topology);
    let path = Path::from(source_id, topology);
    let mut top = path.bus().unwrap_or(source_id.bus());
    for step in path {
        let (bridge, bus) = step?;
        let function = topology
            .function(bridge)
            .ok_or(TopologyError::Absent(bridge))?;
        let is_port = matches!(
            function.kind,
            PciKind::RootPort | PciKind::UpstreamPort | PciKind::DownstreamPort
        );
        let siblings = siblings(bridge, topology)?;
        if !is_port || siblings.first != siblings.last || has_open_port(bus, topology) {
            group = with_below(siblings, topology);
        }
        top = bridge.bus();
    }
    if has_open_port(top, topology) {
        group = below_root(top, topology);
    }
    Ok(group)
}

/// Whether a bus has a root port or downstream port that does not isolate.
fn has_open_port(bus: u8, topology: &impl PciFunctions) -> bool {
    SourceIdRange::buses(bus, bus)
        .iter()
        .filter_map(|source_id| topology.function(source_id))
        .any(|function| {
            matches!(function.kind, PciKind::RootPort | PciKind::DownstreamPort)
                && !function
                    .access_control
                    .is_some_and(AccessControl::isolates_port)
        })
}

/// A function and those of its device that it is not kept apart from.
fn siblings(
    source_id: SourceId,
    topology: &impl PciFunctions,
) -> Result<SourceIdRange, TopologyError> {
    let function = topology
        .function(source_id)
        .ok_or(TopologyError::Absent(source_id))?;
    let all = match function.siblings {
        Siblings::None => return Ok(IsolationGroup::of(source_id).members),
        Siblings::Device => SourceIdRange::device(source_id),
        Siblings::Bus => SourceIdRange::buses(source_id.bus(), source_id.bus()),
    };
    let keeps_apart = |other: SourceId| {
        topology.function(other).is_none_or(|function| {
            function
                .access_control
                .is_some_and(AccessControl::isolates_function)
        })
    };
    Ok(if all.iter().all(keeps_apart) {
        IsolationGroup::of(source_id).members
    } else {
        all
    })
}

/// Functions that are not kept apart, with everything below those of them that are bridges.
fn with_below(functions: SourceIdRange, topology: &impl PciFunctions) -> IsolationGroup {
    let mut buses: Option<(u8, u8)> = None;
    for function in functions.iter() {
        if let Some(secondary) = topology.secondary_bus(function)
            && secondary > function.bus()
        {
            let subordinate = topology.subordinate_bus(function).unwrap_or(u8::MAX);
            let (first, last) = buses.unwrap_or((secondary, subordinate));
            buses = Some((first.min(secondary), last.max(subordinate).max(secondary)));
        }
    }
    match buses {
        Some((first, last)) => IsolationGroup {
            members: SourceIdRange::buses(first, last),
            bridge: Some(functions),
        },
        None => IsolationGroup {
            members: functions,
            bridge: None,
        },
    }
}

/// Everything on a root bus and below it.
fn below_root(root_bus: u8, topology: &impl PciFunctions) -> IsolationGroup {
    let on_bus = SourceIdRange::buses(root_bus, root_bus);
    let last = on_bus
        .iter()
        .filter_map(|function| topology.subordinate_bus(function))
        .fold(root_bus, u8::max);
    IsolationGroup {
        members: SourceIdRange::buses(root_bus, last),
        bridge: None,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::testing::{ISOLATING, Segment, id};
    use super::*;
    use crate::arch::pci::PciTopology;
    use std::vec;
    use std::vec::Vec;

    /// Two root ports, one above a switch with two downstream ports, one above a bridge to PCI;
    /// integrated devices, one of them with two functions.
    fn segment() -> Segment {
        let mut segment = Segment::default();
        segment.bridge("00:1c.0", PciKind::RootPort, 1, 4);
        segment.bridge("01:00.0", PciKind::UpstreamPort, 2, 4);
        segment.bridge("02:00.0", PciKind::DownstreamPort, 3, 3);
        segment.bridge("02:01.0", PciKind::DownstreamPort, 4, 4);
        segment.bridge("00:1d.0", PciKind::RootPort, 5, 6);
        segment.bridge("05:00.0", PciKind::ExpressToPciBridge, 6, 6);
        for device in [
            "00:02.0", "00:1f.0", "00:1f.3", "03:00.0", "04:00.0", "04:00.1",
        ] {
            segment.add(device, PciKind::Endpoint);
        }
        for device in ["06:00.0", "06:01.0"] {
            segment.add(device, PciKind::Conventional);
        }
        for device in ["00:1f.0", "00:1f.3", "04:00.0", "04:00.1"] {
            segment.change(device, |function| function.siblings = Siblings::Device);
        }
        for port in ["00:1c.0", "00:1d.0", "02:00.0", "02:01.0"] {
            segment.change(port, |function| function.access_control = Some(ISOLATING));
        }
        segment
    }

    /// The members of a device's group.
    fn group(segment: &Segment, device: &str) -> Vec<SourceId> {
        let group = isolation_group(id(device), segment).unwrap();
        let all = segment.functions();
        all.filter(|member| group.contains(*member)).collect()
    }

    fn ids(names: &[&str]) -> Vec<SourceId> {
        names.iter().map(|name| id(name)).collect()
    }

    // R36
    #[test]
    fn devices_are_apart_where_every_port_on_the_way_isolates() {
        let segment = segment();
        for (device, expected) in [
            ("00:02.0", vec!["00:02.0"]),
            ("03:00.0", vec!["03:00.0"]),
            ("00:1f.3", vec!["00:1f.0", "00:1f.3"]),
            ("04:00.1", vec!["04:00.0", "04:00.1"]),
            ("06:01.0", vec!["05:00.0", "06:00.0", "06:01.0"]),
        ] {
            assert_eq!(group(&segment, device), ids(&expected), "{device}");
        }
    }

    // R36
    #[test]
    fn each_service_that_is_off_on_the_way_widens_the_group() {
        let switch = [
            "01:00.0", "02:00.0", "02:01.0", "03:00.0", "04:00.0", "04:00.1",
        ];
        let everything: Vec<_> = segment().functions().collect();
        for off in [0, 2, 3, 4] {
            let off = |function: &mut crate::arch::pci::PciFunction| {
                let services = function.access_control.as_mut().unwrap();
                services.control &= !(1 << off);
            };
            // It does not matter under which of the ports a device is.
            let mut open = segment();
            open.change("02:01.0", off);
            assert_eq!(group(&open, "03:00.0"), ids(&switch));
            assert_eq!(group(&open, "04:00.1"), ids(&switch));
            assert_eq!(group(&open, "00:02.0"), ids(&["00:02.0"]));
            let mut open = segment();
            open.change("00:1d.0", off);
            assert_eq!(group(&open, "03:00.0"), everything);
            assert_eq!(group(&open, "00:02.0"), everything);
        }
    }

    #[test]
    fn functions_with_services_are_devices_of_their_own() {
        let mut segment = segment();
        let isolates = |function: &mut crate::arch::pci::PciFunction| {
            function.access_control = Some(ISOLATING);
        };
        segment.change("04:00.0", isolates);
        assert_eq!(group(&segment, "04:00.0").len(), 2, "the other has none");
        segment.change("04:00.1", isolates);
        assert_eq!(group(&segment, "04:00.0"), ids(&["04:00.0"]));
    }

    #[test]
    fn functions_beside_a_bridge_belong_to_what_is_below_it() {
        let mut segment = Segment::default();
        segment.bridge("00:1e.0", PciKind::ConventionalBridge, 1, 1);
        segment.add("00:1e.1", PciKind::Conventional);
        segment.add("01:03.0", PciKind::Conventional);
        for function in ["00:1e.0", "00:1e.1"] {
            segment.change(function, |function| function.siblings = Siblings::Device);
        }
        for member in ["00:1e.0", "00:1e.1", "01:03.0"] {
            assert_eq!(group(&segment, member).len(), 3, "{member}");
        }
    }

    // Whatever the hierarchy.
    #[test]
    fn groups_do_not_overlap() {
        let mut random = 1_u64;
        for _ in 0..200 {
            let mut segment = segment();
            let all: Vec<_> = segment.functions().collect();
            for source_id in &all {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let bits = random >> 33;
                segment.change_id(*source_id, |function| {
                    if bits & 3 == 0 {
                        function.access_control = None;
                    }
                    if bits >> 2 & 3 == 0 {
                        function.siblings = Siblings::Device;
                    }
                    if bits >> 4 & 3 == 0 {
                        function.kind = PciKind::ConventionalBridge;
                    }
                });
            }
            let is_device = |source_id: &SourceId| segment.secondary_bus(*source_id).is_none();
            let all: Vec<_> = all.into_iter().filter(is_device).collect();
            for one in &all {
                let group = isolation_group(*one, &segment).unwrap();
                assert!(group.contains(*one));
                for other in all.iter().filter(|other| group.contains(**other)) {
                    let same = isolation_group(*other, &segment).unwrap();
                    assert_eq!(same, group, "{one} {other}");
                }
            }
        }
    }

    #[test]
    fn a_way_up_that_is_none_is_an_error() {
        let mut segment = segment();
        assert_eq!(
            isolation_group(id("07:00.0"), &segment),
            Err(TopologyError::Absent(id("07:00.0")))
        );
        segment.set_buses("02:00.0", 3, 3);
        segment.redirect(3, "03:00.0");
        assert_eq!(
            isolation_group(id("03:00.0"), &segment),
            Err(TopologyError::Bridge(id("03:00.0")))
        );
    }
}
