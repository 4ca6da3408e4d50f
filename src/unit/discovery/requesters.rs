//! Under which source-ids a device's requests arrive (§3.4.1, §3.12).
//!
//! A device is all of them: its own, those of its phantom functions, and those that bridges on the
//! way put in place of its own. What is programmed for one has to be programmed for all.

use core::fmt;

use crate::arch::id::SourceId;
use crate::arch::pci::{PciFunctions, PciKind};

/// Most source-ids that one device can have besides its own.
pub const MAXIMUM_ALIASES: usize = 8;

/// The source-ids of one device besides its own, each once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Aliases {
    /// Those behind the first `count` are all zeroes.
    ids: [SourceId; MAXIMUM_ALIASES],
    count: u8,
}

/// All [`MAXIMUM_ALIASES`] places are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManyAliases;

impl Aliases {
    /// No alias: the device sends under its own source-id only.
    pub const NONE: Self = Self {
        ids: [SourceId::from_u16(0); MAXIMUM_ALIASES],
        count: 0,
    };

    /// The aliases.
    pub fn as_slice(&self) -> &[SourceId] {
        self.ids.get(..usize::from(self.count)).unwrap_or_default()
    }

    /// Adds an alias that is none yet.
    ///
    /// # Errors
    ///
    /// [`TooManyAliases`].
    pub fn add(&mut self, alias: SourceId) -> Result<(), TooManyAliases> {
        if self.as_slice().contains(&alias) {
            return Ok(());
        }
        let place = self.ids.get_mut(usize::from(self.count));
        *place.ok_or(TooManyAliases)? = alias;
        self.count = self.count.saturating_add(1);
        Ok(())
    }
}

impl Default for Aliases {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Debug for Aliases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

/// The source-ids of one device: its own, and its aliases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequesterIds {
    own: SourceId,
    aliases: Aliases,
}

impl RequesterIds {
    /// A device that sends under its own source-id only.
    pub const fn of(own: SourceId) -> Self {
        Self {
            own,
            aliases: Aliases::NONE,
        }
    }

    /// The device's own source-id.
    pub const fn own(&self) -> SourceId {
        self.own
    }

    /// The others.
    pub const fn aliases(&self) -> &Aliases {
        &self.aliases
    }

    /// All of them, its own first.
    pub fn iter(&self) -> impl Iterator<Item = SourceId> + '_ {
        core::iter::once(self.own).chain(self.aliases.as_slice().iter().copied())
    }

    /// Whether requests with this source-id are the device's.
    pub fn contains(&self, source_id: SourceId) -> bool {
        self.own == source_id || self.aliases.as_slice().contains(&source_id)
    }

    /// Adds an alias, unless it is the device's already.
    ///
    /// # Errors
    ///
    /// [`TooManyAliases`].
    pub fn add(&mut self, alias: SourceId) -> Result<(), TooManyAliases> {
        if self.own == alias {
            return Ok(());
        }
        self.aliases.add(alias)
    }

    /// A device with these aliases; its own source-id among them is dropped.
    pub fn with_aliases(own: SourceId, aliases: &Aliases) -> Self {
        let mut ids = Self::of(own);
        for alias in aliases.as_slice() {
            // There is room for all of them.
            _ = ids.add(*alias);
        }
        ids
    }
}

/// Why the PCI hierarchy does not say which requests are a device's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TopologyError {
    /// There is no such function.
    Absent(SourceId),
    /// The bridge on the way to the device does not lead to a higher bus.
    Bridge(SourceId),
    /// The device claims this function of its own as a phantom function.
    PhantomFunction(SourceId),
    /// The device has more aliases than can be kept.
    TooManyAliases(SourceId),
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(source_id) => write!(f, "there is no function {source_id}"),
            Self::Bridge(source_id) => write!(f, "bridge {source_id} leads to no higher bus"),
            Self::PhantomFunction(source_id) => {
                write!(f, "phantom function {source_id} is a real one")
            }
            Self::TooManyAliases(source_id) => {
                write!(f, "{source_id} has more than {MAXIMUM_ALIASES} aliases")
            }
        }
    }
}

impl core::error::Error for TopologyError {}

/// All source-ids under which a device's requests can arrive.
///
/// A bridge from PCI Express to PCI may use its secondary bus with device and function 0, or its own
/// source-id; one on PCI its own. Devices behind such a bridge share these, and so can only be
/// assigned together: as aliases of one.
///
/// # Errors
///
/// [`TopologyError`].
pub fn requester_ids(
    source_id: SourceId,
    topology: &impl PciFunctions,
) -> Result<RequesterIds, TopologyError> {
    let function = topology
        .function(source_id)
        .ok_or(TopologyError::Absent(source_id))?;
    let add = |ids: &mut RequesterIds, alias| {
        let added = ids.add(alias);
        added.map_err(|TooManyAliases| TopologyError::TooManyAliases(source_id))
    };
    let mut ids = RequesterIds::of(source_id);
    for phantom in phantom_functions(source_id, function.phantom_bits) {
        if topology.function(phantom).is_some() {
            return Err(TopologyError::PhantomFunction(phantom));
        }
        add(&mut ids, phantom)?;
    }
    for bridge in Path::from(source_id, topology) {
        let (bridge, bus) = bridge?;
        match topology
            .function(bridge)
            .ok_or(TopologyError::Absent(bridge))?
            .kind
        {
            PciKind::ExpressToPciBridge => {
                add(&mut ids, SourceId::from_u16(u16::from(bus) << 8))?;
                add(&mut ids, bridge)?;
            }
            PciKind::PciToExpressBridge | PciKind::ConventionalBridge => add(&mut ids, bridge)?,
            _ => {}
        }
    }
    Ok(ids)
}

/// The functions of a device that differ from one of it in the highest `bits` bits of the number.
fn phantom_functions(source_id: SourceId, bits: u8) -> impl Iterator<Item = SourceId> {
    let bits = bits.min(3);
    let low_bits = 0b111_u16 >> bits;
    let value = source_id.as_u16();
    (0..8_u16)
        .map(move |function| SourceId::from_u16(value & !0b111 | function))
        .filter(move |other| {
            *other != source_id && (other.as_u16() ^ value) & low_bits == 0 && bits > 0
        })
}

/// The bridges from a function up to the root bus, each with its secondary bus.
pub(super) struct Path<'a, T> {
    topology: &'a T,
    bus: Option<u8>,
}

impl<'a, T: PciFunctions> Path<'a, T> {
    pub(super) fn from(source_id: SourceId, topology: &'a T) -> Self {
        // A virtual function may have a bus number of its own, behind its physical function's.
        let function = topology.function(source_id);
        let placed = match function.map(|function| function.kind) {
            Some(PciKind::VirtualFunction(physical)) => physical,
            _ => source_id,
        };
        Self {
            topology,
            bus: Some(placed.bus()),
        }
    }

    /// The bus that the way goes on from; `None` once it has ended.
    pub(super) const fn bus(&self) -> Option<u8> {
        self.bus
    }
}

impl<T: PciFunctions> Iterator for Path<'_, T> {
    type Item = Result<(SourceId, u8), TopologyError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bus = self.bus.take()?;
        let bridge = self.topology.bridge_to(bus)?;
        // Bus numbers fall on the way up, so the way ends.
        if bridge.bus() >= bus || self.topology.secondary_bus(bridge) != Some(bus) {
            return Some(Err(TopologyError::Bridge(bridge)));
        }
        self.bus = Some(bridge.bus());
        Some(Ok((bridge, bus)))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::testing::{Segment, id};
    use super::*;
    use std::vec::Vec;

    fn ids(segment: &Segment, device: &str) -> Vec<SourceId> {
        let ids = requester_ids(id(device), segment).unwrap();
        assert!(ids.iter().all(|one| ids.contains(one)));
        ids.iter().collect()
    }

    fn named(names: &[&str]) -> Vec<SourceId> {
        names.iter().map(|name| id(name)).collect()
    }

    // G20: PCI Express, phantom functions take the highest bits of the function number.
    #[test]
    fn phantom_functions_are_the_devices_own() {
        for (bits, device, expected) in [
            (0, "01:00.0", &["01:00.0"][..]),
            (1, "01:00.0", &["01:00.0", "01:00.4"]),
            (1, "01:00.3", &["01:00.3", "01:00.7"]),
            (2, "01:00.1", &["01:00.1", "01:00.3", "01:00.5", "01:00.7"]),
            (
                3,
                "01:1f.0",
                &[
                    "01:1f.0", "01:1f.1", "01:1f.2", "01:1f.3", "01:1f.4", "01:1f.5", "01:1f.6",
                    "01:1f.7",
                ],
            ),
            // Reserved, and as good as 3.
            (
                200,
                "01:00.7",
                &[
                    "01:00.7", "01:00.0", "01:00.1", "01:00.2", "01:00.3", "01:00.4", "01:00.5",
                    "01:00.6",
                ],
            ),
        ] {
            let mut segment = Segment::default();
            segment.bridge("00:01.0", PciKind::RootPort, 1, 1);
            segment.add(device, PciKind::Endpoint);
            segment.change(device, |function| function.phantom_bits = bits);
            assert_eq!(ids(&segment, device), named(expected), "{bits}");
        }
    }

    #[test]
    fn a_phantom_function_that_exists_is_refused() {
        let mut segment = Segment::default();
        segment.add("00:02.0", PciKind::Endpoint);
        segment.add("00:02.4", PciKind::Endpoint);
        segment.change("00:02.0", |function| function.phantom_bits = 1);
        assert_eq!(
            requester_ids(id("00:02.0"), &segment),
            Err(TopologyError::PhantomFunction(id("00:02.4")))
        );
    }

    // G20
    #[test]
    fn bridges_to_pci_put_other_source_ids_in_place() {
        let mut segment = Segment::default();
        segment.bridge("00:1c.0", PciKind::RootPort, 1, 4);
        segment.bridge("01:00.0", PciKind::ExpressToPciBridge, 2, 4);
        segment.bridge("02:05.0", PciKind::ConventionalBridge, 3, 3);
        segment.bridge("02:06.0", PciKind::PciToExpressBridge, 4, 4);
        segment.bridge("00:1e.0", PciKind::ConventionalBridge, 5, 5);
        for device in ["02:04.0", "03:00.0", "05:01.0"] {
            segment.add(device, PciKind::Conventional);
        }
        segment.add("04:00.0", PciKind::Endpoint);
        for (device, expected) in [
            ("02:04.0", &["02:04.0", "02:00.0", "01:00.0"][..]),
            ("03:00.0", &["03:00.0", "02:05.0", "02:00.0", "01:00.0"]),
            ("04:00.0", &["04:00.0", "02:06.0", "02:00.0", "01:00.0"]),
            ("05:01.0", &["05:01.0", "00:1e.0"]),
            // A device that is where the bridge points.
            ("01:00.0", &["01:00.0"]),
        ] {
            assert_eq!(ids(&segment, device), named(expected), "{device}");
        }
    }

    #[test]
    fn a_virtual_function_goes_the_way_of_its_physical_function() {
        let mut segment = Segment::default();
        segment.bridge("00:1c.0", PciKind::ExpressToPciBridge, 1, 1);
        segment.add("01:00.0", PciKind::Endpoint);
        segment.add("02:10.0", PciKind::VirtualFunction(id("01:00.0")));
        let expected = named(&["02:10.0", "01:00.0", "00:1c.0"]);
        assert_eq!(ids(&segment, "02:10.0"), expected);
    }

    #[test]
    fn more_bridges_than_there_is_room_for_are_refused() {
        let mut segment = Segment::default();
        for bus in 0..20 {
            let name = std::format!("{bus:02x}:01.0");
            segment.bridge(&name, PciKind::ConventionalBridge, bus + 1, 20);
        }
        segment.add("14:00.0", PciKind::Conventional);
        assert_eq!(
            requester_ids(id("14:00.0"), &segment),
            Err(TopologyError::TooManyAliases(id("14:00.0")))
        );
    }
}
