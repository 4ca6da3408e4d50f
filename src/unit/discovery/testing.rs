//! A PCI segment for tests: functions by name.

extern crate std;

use std::collections::BTreeMap;

use crate::arch::id::SourceId;
use crate::arch::pci::{AccessControl, PciFunction, PciFunctions, PciKind, PciTopology, Siblings};

/// Everything implemented and on that isolation needs.
pub(super) const ISOLATING: AccessControl = AccessControl {
    capability: 0b1_1101,
    control: 0b1_1101,
};

/// The source-id with this name, `bus:device.function` in hexadecimal.
pub(super) fn id(name: &str) -> SourceId {
    let (bus, rest) = name.split_once(':').unwrap();
    let (device, function) = rest.split_once('.').unwrap();
    let number = |text| u8::from_str_radix(text, 16).unwrap();
    SourceId::new(number(bus), number(device), number(function)).unwrap()
}

/// Functions, and the secondary and subordinate buses of those that are bridges.
#[derive(Clone, Default)]
pub(super) struct Segment {
    functions: BTreeMap<SourceId, PciFunction>,
    buses: BTreeMap<SourceId, (u8, u8)>,
    redirected: BTreeMap<u8, SourceId>,
}

impl Segment {
    pub(super) fn add(&mut self, name: &str, kind: PciKind) {
        let function = PciFunction {
            kind,
            siblings: Siblings::None,
            phantom_bits: 0,
            access_control: None,
        };
        self.functions.insert(id(name), function);
    }

    pub(super) fn bridge(&mut self, name: &str, kind: PciKind, secondary: u8, subordinate: u8) {
        self.add(name, kind);
        self.set_buses(name, secondary, subordinate);
    }

    pub(super) fn set_buses(&mut self, name: &str, secondary: u8, subordinate: u8) {
        self.buses.insert(id(name), (secondary, subordinate));
    }

    /// Claims that a bus is behind another bridge than it is.
    pub(super) fn redirect(&mut self, bus: u8, bridge: &str) {
        self.redirected.insert(bus, id(bridge));
    }

    pub(super) fn change(&mut self, name: &str, change: impl FnOnce(&mut PciFunction)) {
        self.change_id(id(name), change);
    }

    pub(super) fn change_id(&mut self, source_id: SourceId, change: impl FnOnce(&mut PciFunction)) {
        change(self.functions.get_mut(&source_id).unwrap());
    }

    pub(super) fn functions(&self) -> impl Iterator<Item = SourceId> {
        self.functions.keys().copied()
    }
}

impl PciTopology for Segment {
    fn secondary_bus(&self, bridge: SourceId) -> Option<u8> {
        self.buses.get(&bridge).map(|buses| buses.0)
    }

    fn subordinate_bus(&self, bridge: SourceId) -> Option<u8> {
        self.buses.get(&bridge).map(|buses| buses.1)
    }
}

impl PciFunctions for Segment {
    fn function(&self, source_id: SourceId) -> Option<PciFunction> {
        self.functions.get(&source_id).copied()
    }

    fn bridge_to(&self, bus: u8) -> Option<SourceId> {
        let found = self.buses.iter().find(|(_, buses)| buses.0 == bus);
        let found = found.map(|(bridge, _)| *bridge);
        self.redirected.get(&bus).copied().or(found)
    }
}
