//! Which unit remaps a device.

use super::scope::{DeviceScope, ScopeKind};
use super::{Dmar, DmarError, Drhd};
use crate::arch::id::SourceId;
use crate::arch::pci::PciTopology;

impl<'a> Dmar<'a> {
    /// The unit that remaps the requests of a PCI function, or `None` if no unit of its segment
    /// does (§8.3.1).
    ///
    /// First comes the unit with an endpoint scope for exactly this function; then the one with a
    /// sub-hierarchy scope for a bridge above it (the nearest, if there are several); then the
    /// segment's `INCLUDE_PCI_ALL` unit. The order of the units in the table does not matter.
    /// Scopes of devices that are absent match nothing. A virtual function uses the unit of its
    /// physical function, which is what the caller has to ask for.
    ///
    /// Fails if any remapping structure, or any scope of that segment's units, is malformed.
    pub fn unit_for(
        &self,
        segment: u16,
        source_id: SourceId,
        topology: &impl PciTopology,
    ) -> Result<Option<Drhd<'a>>, DmarError> {
        let mut endpoint = None;
        let mut include_all = None;
        let mut below_bridge: Option<(u8, Drhd<'a>)> = None;
        for unit in self.remapping_units() {
            let unit = unit?;
            if unit.segment != segment {
                continue;
            }
            if unit.include_all {
                include_all = include_all.or(Some(unit));
            }
            for scope in unit.scopes() {
                let scope = scope?;
                if scope.matches_endpoint(source_id, topology) {
                    endpoint = endpoint.or(Some(unit));
                } else if let Some(buses) = scope.matches_sub_hierarchy(source_id, topology)
                    && below_bridge.is_none_or(|(nearest, _)| buses < nearest)
                {
                    below_bridge = Some((buses, unit));
                }
            }
        }
        Ok(endpoint
            .or(below_bridge.map(|(_, unit)| unit))
            .or(include_all))
    }
}

impl DeviceScope<'_> {
    /// Whether this is an endpoint scope of exactly this function.
    fn matches_endpoint(&self, source_id: SourceId, topology: &impl PciTopology) -> bool {
        self.kind == ScopeKind::PciEndpoint
            && self.resolve(|bridge| topology.secondary_bus(bridge)) == Ok(source_id)
    }

    /// If this is a sub-hierarchy scope that covers the function: how many buses there are below
    /// the bridge that it names, not counting the first. The bridge itself is covered too.
    fn matches_sub_hierarchy(
        &self,
        source_id: SourceId,
        topology: &impl PciTopology,
    ) -> Option<u8> {
        if self.kind != ScopeKind::PciSubHierarchy {
            return None;
        }
        let bridge = self.resolve(|bridge| topology.secondary_bus(bridge)).ok()?;
        if bridge == source_id {
            return Some(0);
        }
        let secondary = topology
            .secondary_bus(bridge)
            .filter(|secondary| *secondary > bridge.bus())?;
        let subordinate = topology.subordinate_bus(bridge)?;
        (secondary..=subordinate)
            .contains(&source_id.bus())
            .then(|| subordinate.saturating_sub(secondary))
    }
}
