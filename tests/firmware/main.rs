//! What firmware says of remapping units: a corpus of tables, sound ones and broken ones of every
//! kind known, and what the library makes of each (G26, G27, G18).

mod admission;
mod broken;
mod builder;
mod random;
mod sound;

use vtd_nest::arch::dmar::{Dmar, DmarError, ScopeError};
use vtd_nest::unit::DiscoveryError;
use vtd_nest::unit::discovery::discover;

use builder::{Segment, id};

/// What is expected of a table.
struct Case {
    name: &'static str,
    table: Vec<u8>,
    segment: Segment,
    /// Segment, register base and `INCLUDE_PCI_ALL` of each unit.
    units: Result<Vec<(u16, u64, bool)>, Refused>,
    /// Segment and name of a device, register base of the unit that remaps it.
    covered: Vec<(u16, &'static str, Option<u64>)>,
}

/// By whom a table is refused.
#[derive(PartialEq, Debug)]
enum Refused {
    Table(DmarError),
    Discovery(DiscoveryError),
}

impl Case {
    fn new(name: &'static str, table: Vec<u8>) -> Self {
        Self {
            name,
            table,
            segment: Segment::default(),
            units: Ok(Vec::new()),
            covered: Vec::new(),
        }
    }

    fn in_segment(self, segment: Segment) -> Self {
        Self { segment, ..self }
    }

    fn has_units(self, units: &[(u16, u64, bool)]) -> Self {
        Self {
            units: Ok(units.to_vec()),
            ..self
        }
    }

    fn refused(self, error: DiscoveryError) -> Self {
        Self {
            units: Err(Refused::Discovery(error)),
            ..self
        }
    }

    fn malformed(self, error: DmarError) -> Self {
        self.refused(DiscoveryError::Malformed(error))
    }

    fn no_table(self, error: DmarError) -> Self {
        Self {
            units: Err(Refused::Table(error)),
            ..self
        }
    }

    fn covers(mut self, covered: &[(u16, &'static str, Option<u64>)]) -> Self {
        self.covered.extend(covered);
        self
    }

    fn run(&self) {
        let name = self.name;
        let dmar = match Dmar::parse(&self.table) {
            Ok(dmar) => dmar,
            Err(error) => {
                assert_eq!(Err(Refused::Table(error)), self.units, "{name}");
                return;
            }
        };
        let units = discover::<64>(&dmar).map_err(Refused::Discovery);
        let units = units.map(|units| {
            let units = units.iter();
            let units = units.map(|unit| (unit.segment, unit.base.as_u64(), unit.include_all));
            units.collect()
        });
        assert_eq!(units, self.units, "{name}");
        for (segment, device, expected) in &self.covered {
            let unit = dmar.unit_for(*segment, id(device), &self.segment);
            let unit = unit.expect("a sound table");
            let base = unit.map(|unit| unit.base.as_u64());
            assert_eq!(base, *expected, "{name}: {device}");
        }
    }
}

#[test]
fn each_table_of_the_corpus_gives_what_is_expected() {
    let cases: Vec<_> = sound::cases().into_iter().chain(broken::cases()).collect();
    assert!(cases.len() >= 20);
    for case in &cases {
        case.run();
    }
}

/// The first device scope of a table.
fn resolve_first(table: &[u8], segment: &Segment) -> Result<(), ScopeError> {
    use vtd_nest::arch::pci::PciTopology;
    let dmar = Dmar::parse(table).expect("a table");
    let unit = dmar.remapping_units().next().expect("a unit");
    let scope = unit.expect("sound").scopes().next().expect("a scope");
    let resolved = scope
        .expect("sound")
        .resolve(|bridge| segment.secondary_bus(bridge));
    resolved.map(drop)
}
