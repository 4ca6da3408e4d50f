//! The physical units that one machine uses, of all that the host has: those that its devices are
//! behind. What a machine does costs by these, however many others there are.

use heapless::Vec;

/// Physical units that a host may have: what an index can name.
pub const MAXIMUM_UNITS: usize = 1 << u8::BITS;

/// Physical units that the devices of one machine can be behind.
pub const MACHINE_UNITS: usize = 8;

/// The units that a machine uses.
#[derive(Debug)]
pub(super) struct UsedUnits(Vec<u8, MACHINE_UNITS>);

impl UsedUnits {
    /// None.
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Their indices.
    pub(super) fn iter(&self) -> impl Iterator<Item = u8> {
        self.0.iter().copied()
    }

    /// The index of the `n`-th.
    pub(super) fn get(&self, n: usize) -> Option<u8> {
        self.0.get(n).copied()
    }

    /// Counts a unit in; `false` if the machine uses as many as it can.
    #[must_use]
    pub(super) fn add(&mut self, unit: u8) -> bool {
        self.0.contains(&unit) || self.0.push(unit).is_ok()
    }

    /// A unit is used no more.
    pub(super) fn remove(&mut self, unit: u8) {
        self.0.retain(|used| *used != unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_used_once_and_any_index_finds_room() {
        let mut used = UsedUnits::new();
        assert!(used.add(255) && used.add(0) && used.add(255));
        assert!(used.iter().eq([255, 0]));
        for unit in 100..106 {
            assert!(used.add(unit));
        }
        assert!(!used.add(1), "no room");
        assert!(used.add(105), "it is there");
        used.remove(0);
        assert!(used.add(1));
        assert_eq!((used.get(7), used.get(8)), (Some(1), None));
    }
}
