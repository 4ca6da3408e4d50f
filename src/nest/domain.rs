//! Host domain-ids of one virtual machine: which there are, what they tag, and who uses them.
//!
//! Domain-ids belong to a physical unit, are never 0 and never the guest's. Entries that share one
//! must agree (§6.2.3.1), which this table and [`bind`](super::bind) see to together.

use crate::arch::id::DomainId;
use crate::viommu::host::BindError;

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
    /// An IOTLB invalidation of the whole domain is owed with the next submission.
    pub owes_flush: bool,
}

/// Index of a domain in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainSlot(u16);

/// The host domain-ids of one machine; `N` is its quota.
#[derive(Debug)]
pub struct DomainTable<const N: usize> {
    slots: [Option<HostDomain>; N],
}

impl<const N: usize> DomainTable<N> {
    /// An empty table.
    pub const fn new() -> Self {
        Self { slots: [None; N] }
    }

    /// The domain in a slot.
    pub fn get(&self, slot: DomainSlot) -> Option<&HostDomain> {
        self.slots.get(usize::from(slot.0))?.as_ref()
    }

    /// The domain in a slot, to change it.
    pub fn get_mut(&mut self, slot: DomainSlot) -> Option<&mut HostDomain> {
        self.slots.get_mut(usize::from(slot.0))?.as_mut()
    }

    /// All domains in use.
    pub fn iter(&self) -> impl Iterator<Item = (DomainSlot, &HostDomain)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(index, domain)| Some((DomainSlot(index as u16), domain.as_ref()?)))
    }

    /// All domains in use, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut HostDomain> {
        self.slots.iter_mut().flatten()
    }

    /// Adds a domain without users.
    ///
    /// # Errors
    ///
    /// [`BindError::StoreFull`] if the machine's quota is used up.
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
        let index = self.slots.iter().position(Option::is_none).ok_or(full)?;
        let slot = self.slots.get_mut(index).ok_or(full)?;
        *slot = Some(HostDomain {
            unit,
            id,
            kind,
            users: 0,
            owes_flush: false,
        });
        Ok(DomainSlot(index as u16))
    }

    /// Takes a domain out; its id may be freed if it was unused and is invalidated.
    pub fn remove(&mut self, slot: DomainSlot) -> Option<HostDomain> {
        self.slots.get_mut(usize::from(slot.0))?.take()
    }
}

impl<const N: usize> Default for DomainTable<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_table_is_a_typed_error_and_slots_are_reused() {
        let mut table = DomainTable::<2>::new();
        let first = table
            .insert(0, DomainId::new(1), DomainKind::Machine)
            .unwrap();
        let guest = DomainId::new(7);
        table
            .insert(0, DomainId::new(2), DomainKind::Nested { guest })
            .unwrap();
        assert_eq!(
            table.insert(0, DomainId::new(3), DomainKind::Machine),
            Err(BindError::StoreFull {
                store: "host domain-ids",
                capacity: 2
            })
        );
        assert_eq!(table.iter().count(), 2);
        assert_eq!(
            table.remove(first).map(|domain| domain.id),
            Some(DomainId::new(1))
        );
        assert_eq!(table.get(first), None);
        assert_eq!(
            table.insert(0, DomainId::new(3), DomainKind::Machine),
            Ok(first)
        );
    }
}
