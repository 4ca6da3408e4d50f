//! Tables of random structures: total functions only, and nothing that contradicts itself (G27).

use vtd_nest::arch::dmar::Dmar;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::pci::PciKind::RootPort;
use vtd_nest::unit::discovery::{
    RequesterIds, address_translation, device_properties, discover, hpet, io_apic, reserved_regions,
};

use super::builder::{Segment, Table};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A small number mostly, so that things meet.
    fn byte(&mut self) -> u8 {
        let value = self.next();
        if value & 0x700 == 0 {
            value as u8
        } else {
            value as u8 & 3
        }
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let count = self.next() % (most + 1);
        (0..count).map(|_| self.byte()).collect()
    }

    fn scope(&mut self) -> Vec<u8> {
        let path: Vec<_> = (0..1 + self.next() % 3)
            .flat_map(|_| [self.byte(), self.byte()])
            .collect();
        let length = if self.next().is_multiple_of(16) {
            self.byte()
        } else {
            6 + path.len() as u8
        };
        let head = [
            self.byte().wrapping_add(1),
            length,
            self.byte(),
            0,
            self.byte(),
            self.byte(),
        ];
        [&head[..], &path].concat()
    }

    fn table(&mut self) -> Vec<u8> {
        let mut table = Table::new(39);
        for _ in 0..self.next() % 8 {
            let scopes: Vec<_> = (0..self.next() % 4).map(|_| self.scope()).collect();
            let (segment, page) = (self.next() as u16 & 1, self.next() & 0xff);
            table = match self.next() % 10 {
                0..4 => table.unit(segment, page << 12, &scopes),
                4 => table.last_unit(segment, page << 12, &scopes),
                5 => table.reserved(segment, page << 12, page << 12 | 0xfff, &scopes),
                6 => table.flagged(2 + 3 * (page as u16 & 1), page & 2 != 0, segment, &scopes),
                7 => table.properties(segment, &scopes),
                8 => table.with(self.byte().into(), &self.bytes(32), &scopes),
                _ => table.raw(&self.bytes(6)),
            };
        }
        table.finish()
    }
}

#[test]
fn random_tables_are_parsed_or_refused_and_never_contradict_themselves() {
    let segment = Segment::new(
        &[(RootPort, "00:01.0", 1, 2), (RootPort, "01:00.0", 2, 2)],
        &["00:02.0", "01:01.0", "02:00.0"],
    );
    let mut random = Random(0x0dd_ba11);
    let (mut sound, mut refused, mut resolved) = (0, 0, 0);
    for _ in 0..5_000 {
        let bytes = random.table();
        let dmar = Dmar::parse(&bytes).expect("the header is right");
        // Every item takes at least four bytes, so this ends.
        let structures = dmar.structures().count();
        assert!(structures <= bytes.len() / 4);
        let units = discover::<64>(&dmar);
        match &units {
            Ok(units) => {
                sound += 1;
                assert!(!units.is_empty());
            }
            Err(_) => refused += 1,
        }
        for device in 0..0x300_u16 {
            let device = SourceId::from_u16(device);
            if device.device() > 3 || device.function() > 3 {
                continue;
            }
            let found = dmar.unit_for(0, device, &segment);
            if let (Ok(Some(unit)), Ok(units)) = (found, &units) {
                resolved += 1;
                let is_driven = |known: &vtd_nest::unit::UnitDescription| {
                    known.segment == 0 && known.base == unit.base
                };
                assert!(
                    units.iter().any(is_driven),
                    "a unit that is not in the list"
                );
            }
        }
        let device = SourceId::from_u16(random.next() as u16 & 0x1ff);
        let _ = address_translation(&dmar, 0, device, &segment);
        let _ = device_properties(&dmar, 0, device, &segment);
        let _ = io_apic(&dmar, 1, &segment);
        let _ = hpet(&dmar, 1, &segment);
        if let Ok(regions) = reserved_regions(&dmar, 0, &RequesterIds::of(device), &segment) {
            for (index, region) in regions.iter().enumerate() {
                let others = regions.iter().skip(index + 1);
                for other in others {
                    let apart = region.end() < other.base().as_u64()
                        || other.end() < region.base().as_u64();
                    assert!(apart, "{region:?} {other:?}");
                }
            }
        }
    }
    // All of it happens.
    assert!(sound > 500 && refused > 500 && resolved > 500);
}
