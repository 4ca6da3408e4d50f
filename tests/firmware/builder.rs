//! DMAR tables byte by byte, as §8 lays them out, and the PCI segments that they speak of.

use std::collections::BTreeMap;

use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::pci::{PciFunction, PciFunctions, PciKind, PciTopology, Siblings};

/// The source-id with this name, `bus:device.function` in hexadecimal.
pub(crate) fn id(name: &str) -> SourceId {
    let parts: Vec<_> = name
        .split([':', '.'])
        .map(|part| u8::from_str_radix(part, 16).expect("a hexadecimal number"))
        .collect();
    SourceId::new(parts[0], parts[1], parts[2]).expect("a source-id")
}

/// A table under construction.
#[derive(Clone)]
pub(crate) struct Table {
    bytes: Vec<u8>,
}

impl Table {
    /// An empty table for a host address width in bits.
    pub(crate) fn new(width: u8) -> Self {
        let mut bytes = vec![0; 48];
        bytes[..4].copy_from_slice(b"DMAR");
        bytes[8] = 1; // Revision.
        bytes[10..16].copy_from_slice(b"VTDNST");
        bytes[36] = width - 1;
        bytes[37] = 1; // INTR_REMAP
        Self { bytes }
    }

    /// One more structure: its type, what follows the length, its device scopes.
    pub(crate) fn with(mut self, kind: u16, body: &[u8], scopes: &[Vec<u8>]) -> Self {
        let length = 4 + body.len() + scopes.iter().map(Vec::len).sum::<usize>();
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((length as u16).to_le_bytes());
        self.bytes.extend(body);
        self.bytes.extend(scopes.concat());
        self
    }

    /// Bytes as they are, in place of a structure.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    /// A remapping unit (DRHD).
    pub(crate) fn unit(self, segment: u16, base: u64, scopes: &[Vec<u8>]) -> Self {
        self.unit_with(0, segment, base, scopes)
    }

    /// The unit for all other devices of a segment (DRHD with `INCLUDE_PCI_ALL`).
    pub(crate) fn last_unit(self, segment: u16, base: u64, scopes: &[Vec<u8>]) -> Self {
        self.unit_with(1, segment, base, scopes)
    }

    fn unit_with(self, flags: u8, segment: u16, base: u64, scopes: &[Vec<u8>]) -> Self {
        let body = [&[flags, 0][..], &segment.to_le_bytes(), &base.to_le_bytes()];
        self.with(0, &body.concat(), scopes)
    }

    /// A reserved memory region (RMRR), first and last byte.
    pub(crate) fn reserved(self, segment: u16, base: u64, limit: u64, scopes: &[Vec<u8>]) -> Self {
        let body = [
            &[0, 0][..],
            &segment.to_le_bytes(),
            &base.to_le_bytes(),
            &limit.to_le_bytes(),
        ];
        self.with(1, &body.concat(), scopes)
    }

    /// Root ports with ATS (2, ATSR) or integrated devices with a cache (5, SATC): flags bit 0.
    pub(crate) fn flagged(self, kind: u16, flag: bool, segment: u16, scopes: &[Vec<u8>]) -> Self {
        let body = [&[flag.into(), 0][..], &segment.to_le_bytes()];
        self.with(kind, &body.concat(), scopes)
    }

    /// Properties of integrated devices (SIDP).
    pub(crate) fn properties(self, segment: u16, scopes: &[Vec<u8>]) -> Self {
        let body = [&[0, 0][..], &segment.to_le_bytes()];
        self.with(6, &body.concat(), scopes)
    }

    /// The bytes, with length and checksum right.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[4..8].copy_from_slice(&length.to_le_bytes());
        let sum = self
            .bytes
            .iter()
            .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        self.bytes[9] = sum.wrapping_neg();
        self.bytes
    }
}

/// A device scope: type, flags, enumeration id, start bus, path.
pub(crate) fn scope(kind: u8, flags: u8, number: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    let mut bytes = vec![kind, 6 + 2 * path.len() as u8, flags, 0, number, bus];
    for (device, function) in path {
        bytes.extend([*device, *function]);
    }
    bytes
}

/// The scope of an endpoint.
pub(crate) fn endpoint(bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    scope(1, 0, 0, bus, path)
}

/// The scope of a bridge and all below it.
pub(crate) fn bridge(bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    scope(2, 0, 0, bus, path)
}

/// The scope of an I/O APIC.
pub(crate) fn io_apic(number: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    scope(3, 0, number, bus, path)
}

/// The scope of an HPET.
pub(crate) fn hpet(number: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    scope(4, 0, number, bus, path)
}

/// Bridges with their buses, and other functions, of one segment.
#[derive(Default)]
pub(crate) struct Segment {
    functions: BTreeMap<SourceId, (PciKind, Option<(u8, u8)>)>,
}

impl Segment {
    /// Bridges: kind, name, secondary bus, subordinate bus. Endpoints: names.
    pub(crate) fn new(bridges: &[(PciKind, &str, u8, u8)], endpoints: &[&str]) -> Self {
        let bridges = bridges
            .iter()
            .map(|(kind, name, first, last)| (id(name), (*kind, Some((*first, *last)))));
        let endpoints = endpoints
            .iter()
            .map(|name| (id(name), (PciKind::Endpoint, None)));
        Self {
            functions: bridges.chain(endpoints).collect(),
        }
    }

    fn buses(&self, bridge: SourceId) -> Option<(u8, u8)> {
        self.functions.get(&bridge)?.1
    }
}

impl PciTopology for Segment {
    fn secondary_bus(&self, bridge: SourceId) -> Option<u8> {
        Some(self.buses(bridge)?.0)
    }

    fn subordinate_bus(&self, bridge: SourceId) -> Option<u8> {
        Some(self.buses(bridge)?.1)
    }
}

impl PciFunctions for Segment {
    fn function(&self, source_id: SourceId) -> Option<PciFunction> {
        self.functions.get(&source_id).map(|(kind, _)| PciFunction {
            kind: *kind,
            siblings: Siblings::None,
            phantom_bits: 0,
            access_control: None,
        })
    }

    fn bridge_to(&self, bus: u8) -> Option<SourceId> {
        let mut functions = self.functions.iter();
        let found = functions.find(|(_, (_, buses))| buses.is_some_and(|buses| buses.0 == bus));
        found.map(|(bridge, _)| *bridge)
    }
}
