//! Host domain-ids of one virtual machine: which there are, what they tag, and who uses them.
//!
//! Domain-ids belong to a physical unit, are never 0 and never the guest's. Entries that share one
//! must agree (§6.2.3.1), which this table and [`bind`](super::bind) see to together.
//!
//! A guest chooses the domain-ids that it uses, so what is found by them is chained by a keyed
//! hash. Domains that owe an invalidation are chained by unit. No look-up depends on how many
//! domains there are.

use crate::arch::id::DomainId;
use crate::nest::units::MACHINE_UNITS;
use crate::viommu::KeyedHash;
use crate::viommu::host::BindError;

/// A chain's end, and no slot.
const NONE: u16 = u16::MAX;

/// What a host domain-id tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainKind {
    /// The machine's own second stage: translation off, and pass-through entries.
    Machine,
    /// Nested entries of one guest domain-id.
    Nested {
        /// The guest's domain-id.
        guest: DomainId,
    },
    /// A shadow table.
    Shadow {
        /// The guest's domain-id.
        guest: DomainId,
        /// Index of the shadow.
        shadow: u16,
    },
}

impl DomainKind {
    /// What the hash is of. A shadow has one guest domain-id only.
    const fn key(self) -> u64 {
        match self {
            Self::Machine => 0,
            Self::Nested { guest } => 1 << 16 | guest.as_u16() as u64,
            Self::Shadow { shadow, .. } => 2 << 16 | shadow as u64,
        }
    }
}

/// One host domain-id in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostDomain {
    /// Index of the physical unit.
    pub unit: u8,
    /// The domain-id on that unit.
    pub id: DomainId,
    /// What it tags.
    pub kind: DomainKind,
    /// Bindings that use it.
    pub users: u32,
    owes_flush: bool,
}

impl HostDomain {
    /// An IOTLB invalidation of the whole domain is owed with the next submission.
    pub const fn owes_flush(&self) -> bool {
        self.owes_flush
    }
}

/// Index of a domain in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainSlot(u16);

/// The slots beside one in the chains that it is in.
#[derive(Clone, Copy, Debug)]
struct Links {
    /// Next of the same hash, or next free one.
    next: u16,
    /// Of those of the unit that owe an invalidation.
    owing_previous: u16,
    owing_next: u16,
}

/// The domains of one unit.
#[derive(Clone, Copy, Debug)]
struct UnitDomains {
    /// The unit, as long as there are some.
    unit: u8,
    count: u16,
    /// First slot that owes it an invalidation.
    owing: u16,
}

impl UnitDomains {
    const NONE: Self = Self {
        unit: 0,
        count: 0,
        owing: NONE,
    };
}

/// The host domain-ids of one machine; `N` is its quota, 65,535 at most.
#[derive(Debug)]
pub struct DomainTable<const N: usize> {
    slots: [Option<HostDomain>; N],
    links: [Links; N],
    /// First slot of each hash value.
    heads: [u16; N],
    /// The units that have domains.
    units: [UnitDomains; MACHINE_UNITS],
    free: u16,
    used: u16,
    /// No slot at or above this was ever used.
    high: u16,
    hash: KeyedHash,
}

impl<const N: usize> DomainTable<N> {
    /// A table that has yet to be [started](Self::start).
    pub(super) const fn vacant() -> Self {
        Self {
            slots: [None; N],
            links: [Links {
                next: 0,
                owing_previous: 0,
                owing_next: 0,
            }; N],
            heads: [0; N],
            units: [UnitDomains::NONE; MACHINE_UNITS],
            free: NONE,
            used: 0,
            high: 0,
            hash: KeyedHash::new(0),
        }
    }

    /// Makes the table empty in its place.
    pub(super) fn start(&mut self, hash: KeyedHash) {
        self.slots.fill(None);
        self.heads.fill(NONE);
        self.units.fill(UnitDomains::NONE);
        self.free = NONE;
        self.used = 0;
        self.high = 0;
        self.hash = hash;
    }

    /// The number of domains in use.
    pub const fn len(&self) -> usize {
        self.used as usize
    }

    /// Whether no domain is in use.
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The domain in a slot.
    pub fn get(&self, slot: DomainSlot) -> Option<&HostDomain> {
        self.slots.get(usize::from(slot.0))?.as_ref()
    }

    fn get_mut(&mut self, slot: DomainSlot) -> Option<&mut HostDomain> {
        self.slots.get_mut(usize::from(slot.0))?.as_mut()
    }

    fn links_mut(&mut self, at: u16) -> Option<&mut Links> {
        self.links.get_mut(usize::from(at))
    }

    fn chain_of(&self, kind: DomainKind) -> usize {
        self.hash.chain_of(kind.key(), N)
    }

    /// All domains in use.
    pub fn iter(&self) -> impl Iterator<Item = (DomainSlot, &HostDomain)> {
        let slots = self.slots.iter().take(usize::from(self.high)).enumerate();
        slots.filter_map(|(index, domain)| Some((DomainSlot(index as u16), domain.as_ref()?)))
    }

    /// The domains that tag the same.
    pub fn of_kind(&self, kind: DomainKind) -> impl Iterator<Item = (DomainSlot, &HostDomain)> {
        let mut slot = self.first_of_kind(kind);
        let all = core::iter::from_fn(move || {
            let this = slot?;
            slot = self.next_of_kind(this, kind);
            Some((this, self.get(this)?))
        });
        // Bounded by what the table holds, should a chain ever be broken.
        all.take(self.len())
    }

    /// The first of the domains that tag the same.
    pub fn first_of_kind(&self, kind: DomainKind) -> Option<DomainSlot> {
        self.in_chain(*self.heads.get(self.chain_of(kind))?, kind)
    }

    /// The one after it.
    pub fn next_of_kind(&self, slot: DomainSlot, kind: DomainKind) -> Option<DomainSlot> {
        self.in_chain(self.links.get(usize::from(slot.0))?.next, kind)
    }

    /// The first domain of a kind from a slot of its chain on.
    fn in_chain(&self, from: u16, kind: DomainKind) -> Option<DomainSlot> {
        let mut at = from;
        for _ in 0..self.used {
            let slot = DomainSlot(at);
            if self.get(slot)?.kind == kind {
                return Some(slot);
            }
            at = self.links.get(usize::from(at))?.next;
        }
        None
    }

    fn of_unit(&self, unit: u8) -> Option<&UnitDomains> {
        let is_it = |of: &&UnitDomains| of.count > 0 && of.unit == unit;
        self.units.iter().find(is_it)
    }

    fn of_unit_mut(&mut self, unit: u8) -> Option<&mut UnitDomains> {
        let is_it = |of: &&mut UnitDomains| of.count > 0 && of.unit == unit;
        self.units.iter_mut().find(is_it)
    }

    /// Whether some domain is of a unit.
    pub fn has_any_of(&self, unit: u8) -> bool {
        self.of_unit(unit).is_some()
    }

    /// Adds a domain without users.
    ///
    /// # Errors
    ///
    /// [`BindError::StoreFull`] if the machine's quota is used up, or there are domains of
    /// [`MACHINE_UNITS`] other units.
    pub fn insert(
        &mut self,
        unit: u8,
        id: DomainId,
        kind: DomainKind,
    ) -> Result<DomainSlot, BindError> {
        let full = BindError::StoreFull {
            store: "host domain-ids",
            capacity: N,
        };
        let is_reused = self.free != NONE;
        let at = if is_reused { self.free } else { self.high };
        let chain = self.chain_of(kind);
        let index = usize::from(at);
        let mut known = self.units.iter();
        let known = known.position(|of| of.count > 0 && of.unit == unit);
        let of_unit = known.or_else(|| self.units.iter().position(|of| of.count == 0));
        let of_unit = of_unit.ok_or(BindError::StoreFull {
            store: "units",
            capacity: MACHINE_UNITS,
        })?;
        let (Some(place), Some(links), Some(head)) = (
            self.slots.get_mut(index).filter(|_| at != NONE),
            self.links.get_mut(index),
            self.heads.get_mut(chain),
        ) else {
            return Err(full);
        };
        if is_reused {
            self.free = links.next;
        } else {
            self.high = self.high.saturating_add(1);
        }
        if let Some(of) = self.units.get_mut(of_unit) {
            of.unit = unit;
            of.count = of.count.saturating_add(1);
        }
        *place = Some(HostDomain {
            unit,
            id,
            kind,
            users: 0,
            owes_flush: false,
        });
        links.next = core::mem::replace(head, at);
        self.used = self.used.saturating_add(1);
        Ok(DomainSlot(at))
    }

    /// Takes a domain out; its id may be freed if it was unused and is invalidated.
    pub fn remove(&mut self, slot: DomainSlot) -> Option<HostDomain> {
        self.flush_taken(slot);
        let domain = self.slots.get_mut(usize::from(slot.0))?.take()?;
        if let Some(of) = self.of_unit_mut(domain.unit) {
            of.count = of.count.saturating_sub(1);
        }
        let after = self.links.get(usize::from(slot.0))?.next;
        let chain = self.chain_of(domain.kind);
        let head = self.heads.get_mut(chain)?;
        if *head == slot.0 {
            *head = after;
        } else {
            let mut at = *head;
            for _ in 0..self.used {
                let Some(links) = self.links_mut(at) else {
                    break;
                };
                if links.next == slot.0 {
                    links.next = after;
                    break;
                }
                at = links.next;
            }
        }
        let free = core::mem::replace(&mut self.free, slot.0);
        self.links_mut(slot.0)?.next = free;
        self.used = self.used.saturating_sub(1);
        Some(domain)
    }

    /// Counts one more user.
    pub fn add_user(&mut self, slot: DomainSlot) {
        if let Some(domain) = self.get_mut(slot) {
            domain.users = domain.users.saturating_add(1);
        }
    }

    /// Counts one user less. The domain, taken out, if it was the last one.
    pub fn remove_user(&mut self, slot: DomainSlot) -> Option<HostDomain> {
        let domain = self.get_mut(slot)?;
        domain.users = domain.users.saturating_sub(1);
        if domain.users > 0 {
            return None;
        }
        self.remove(slot)
    }

    /// Has a domain invalidated whole with the next submission.
    pub fn owe_flush(&mut self, slot: DomainSlot) {
        let Some(domain) = self.get_mut(slot).filter(|domain| !domain.owes_flush) else {
            return;
        };
        let unit = domain.unit;
        domain.owes_flush = true;
        // A unit with a domain is known.
        let Some(of) = self.of_unit_mut(unit) else {
            return;
        };
        let after = core::mem::replace(&mut of.owing, slot.0);
        if let Some(links) = self.links_mut(after) {
            links.owing_previous = slot.0;
        }
        if let Some(links) = self.links_mut(slot.0) {
            links.owing_previous = NONE;
            links.owing_next = after;
        }
    }

    /// Has the domains invalidated whole that are as said.
    pub fn owe_flush_of(&mut self, is_so: impl Fn(&HostDomain) -> bool) {
        for at in 0..self.high {
            let slot = DomainSlot(at);
            if self.get(slot).is_some_and(&is_so) {
                self.owe_flush(slot);
            }
        }
    }

    /// A domain that owes an invalidation to a unit: it is the caller's now.
    pub fn take_owing(&mut self, unit: u8) -> Option<DomainId> {
        let slot = DomainSlot(self.of_unit(unit)?.owing);
        let id = self.get(slot)?.id;
        self.flush_taken(slot);
        Some(id)
    }

    /// Whether some domain owes an invalidation.
    pub fn owes_any(&self) -> bool {
        self.units.iter().any(|of| of.owing != NONE)
    }

    /// The invalidation of a domain is owed no more.
    fn flush_taken(&mut self, slot: DomainSlot) {
        let Some(domain) = self.get_mut(slot).filter(|domain| domain.owes_flush) else {
            return;
        };
        let unit = domain.unit;
        domain.owes_flush = false;
        let Some(&Links {
            owing_previous,
            owing_next,
            ..
        }) = self.links.get(usize::from(slot.0))
        else {
            return;
        };
        if let Some(links) = self.links_mut(owing_next) {
            links.owing_previous = owing_previous;
        }
        if let Some(links) = self.links_mut(owing_previous) {
            links.owing_next = owing_next;
        } else if let Some(of) = self.of_unit_mut(unit) {
            of.owing = owing_next;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;

    fn table<const N: usize>(secret: u64) -> Box<DomainTable<N>> {
        let mut table = Box::new(DomainTable::vacant());
        table.start(KeyedHash::new(secret));
        table
    }

    const fn nested(guest: u16) -> DomainKind {
        DomainKind::Nested {
            guest: DomainId::new(guest),
        }
    }

    fn ids_of<const N: usize>(table: &DomainTable<N>, kind: DomainKind) -> Vec<u16> {
        let ids = table.of_kind(kind).map(|(_, domain)| domain.id.as_u16());
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn full_table_is_a_typed_error_and_slots_are_reused() {
        let mut table = table::<2>(5);
        let first = table
            .insert(0, DomainId::new(1), DomainKind::Machine)
            .unwrap();
        table.insert(0, DomainId::new(2), nested(7)).unwrap();
        assert_eq!(
            table.insert(0, DomainId::new(3), DomainKind::Machine),
            Err(BindError::StoreFull {
                store: "host domain-ids",
                capacity: 2
            })
        );
        assert_eq!((table.iter().count(), table.len()), (2, 2));
        assert_eq!(
            table.remove(first).map(|domain| domain.id),
            Some(DomainId::new(1))
        );
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(
            table.insert(0, DomainId::new(3), DomainKind::Machine),
            Ok(first)
        );
        table.start(KeyedHash::new(6));
        assert!(table.is_empty());
        assert_eq!(ids_of(&table, DomainKind::Machine), []);
    }

    #[test]
    fn domains_that_tag_the_same_are_found_together_in_any_order_of_changes() {
        // Few hash values, so that every chain holds several kinds.
        let mut table = table::<12>(5);
        let shadow = |guest, shadow| DomainKind::Shadow {
            guest: DomainId::new(guest),
            shadow,
        };
        let kinds = [DomainKind::Machine, nested(7), nested(8), shadow(7, 0)];
        let slots: Vec<_> = (0..12u16)
            .map(|id| {
                let kind = kinds[usize::from(id) % 4];
                (id, table.insert(0, DomainId::new(id), kind).unwrap())
            })
            .collect();
        let mut left: Vec<u16> = (0..12).collect();
        for step in [5, 2, 11, 0, 7, 9, 4, 1, 10, 3, 8, 6] {
            for (index, kind) in kinds.into_iter().enumerate() {
                let of_kind = left.iter().filter(|id| usize::from(**id) % 4 == index);
                let expected: Vec<_> = of_kind.copied().collect();
                assert_eq!(ids_of(&table, kind), expected, "{kind:?}");
            }
            left.retain(|id| *id != step);
            assert!(table.remove(slots[usize::from(step)].1).is_some());
        }
        assert!(table.is_empty());
    }

    #[test]
    fn the_last_user_takes_the_domain_out() {
        let mut table = table::<2>(5);
        let slot = table.insert(0, DomainId::new(1), nested(7)).unwrap();
        table.add_user(slot);
        table.add_user(slot);
        assert_eq!(table.remove_user(slot), None);
        assert_eq!(
            table.remove_user(slot).map(|domain| domain.id),
            Some(DomainId::new(1))
        );
        assert!(table.is_empty());
    }

    #[test]
    fn what_is_owed_is_taken_once_by_its_unit_and_goes_with_its_domain() {
        let mut table = table::<8>(5);
        let slots: Vec<_> = (0..6u16)
            .map(|id| {
                let unit = (id % 2) as u8;
                table.insert(unit, DomainId::new(id), nested(id)).unwrap()
            })
            .collect();
        for slot in &slots[..4] {
            table.owe_flush(*slot);
            table.owe_flush(*slot);
        }
        // Of unit 0: 0 and 2; of unit 1: 1, which goes, and 3.
        table.remove(slots[1]);
        let take = |table: &mut DomainTable<8>, unit| {
            let taken = core::iter::from_fn(|| table.take_owing(unit));
            let mut taken: Vec<_> = taken.map(DomainId::as_u16).collect();
            taken.sort_unstable();
            taken
        };
        assert_eq!(take(&mut table, 0), [0, 2]);
        assert!(table.owes_any());
        assert_eq!(take(&mut table, 1), [3]);
        assert!(!table.owes_any());
        table.owe_flush_of(|domain| domain.unit == 1);
        assert_eq!(take(&mut table, 0), []);
        assert_eq!(take(&mut table, 1), [3, 5]);
        table.owe_flush_of(|_| true);
        assert!(table.get(slots[0]).unwrap().owes_flush());
        assert_eq!(take(&mut table, 0), [0, 2, 4]);
        assert_eq!(take(&mut table, 1), [3, 5]);
    }

    /// The most slots that a look-up of one of all domains looks at.
    fn most_probes<const N: usize>(secret: u64, stride: u16) -> usize {
        let mut table = table::<N>(secret);
        let guest = |index: usize| (index as u16).wrapping_mul(stride);
        let mut slots = Vec::new();
        for index in 0..N {
            let (id, kind) = (DomainId::new(index as u16), nested(guest(index)));
            slots.push(table.insert(0, id, kind).unwrap());
        }
        let probes = (0..N).map(|index| {
            let kind = nested(guest(index));
            let mut at = table.heads[table.chain_of(kind)];
            let mut probes = 1;
            while table.get(DomainSlot(at)).unwrap().kind != kind {
                at = table.links[usize::from(at)].next;
                probes += 1;
            }
            assert_eq!(table.first_of_kind(kind), Some(slots[index]));
            probes
        });
        probes.max().unwrap()
    }

    // S93: domain-ids as a guest may choose them who knows the hash, but not the secret.
    #[test]
    fn a_look_up_costs_the_same_however_many_domains_there_are_and_however_chosen() {
        for secret in [1, 0x0123_4567_89ab_cdef] {
            for stride in [1, 3, 257] {
                for most in [
                    most_probes::<16>(secret, stride),
                    most_probes::<1024>(secret, stride),
                    most_probes::<32768>(secret, stride),
                ] {
                    assert!(most <= 12, "{most} by {stride}");
                }
            }
        }
        // The ids that meet under one secret are apart under another.
        let known = KeyedHash::new(1);
        let chosen: Vec<u16> = (0..u16::MAX)
            .filter(|guest| known.chain_of(nested(*guest).key(), 256) == 0)
            .take(200)
            .collect();
        let other = KeyedHash::new(2);
        let mut lengths = [0; 256];
        for guest in &chosen {
            lengths[other.chain_of(nested(*guest).key(), 256)] += 1;
        }
        assert_eq!(chosen.len(), 200);
        assert!(lengths.iter().max() < Some(&12));
    }
}
