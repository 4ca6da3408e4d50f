//! The shadows of one machine: those in use or being built, and those on their way back to the pool.

use crate::arch::address::Iova;
use crate::mem::{Frames, HostMemory, Hypervisor};
use crate::nest::backend::shadow::Shadow;
use crate::paging::SecondStage;
use crate::paging::second_stage::Dismantling;
use crate::viommu::host::BindError;

/// `N` shadows at most.
#[derive(Debug)]
pub(super) struct Shadows<const N: usize> {
    slots: [Slot; N],
    /// How many of them are leaving.
    leaving: usize,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a slot has room for a shadow whatever is in it"
)]
enum Slot {
    Free,
    /// In use, or being built.
    InUse(Shadow),
    /// No entry names it and hardware has forgotten it.
    Leaving(SecondStage<Iova>, Dismantling),
}

impl<const N: usize> Shadows<N> {
    /// No shadow.
    pub(super) const fn new() -> Self {
        Self {
            slots: [const { Slot::Free }; N],
            leaving: 0,
        }
    }

    pub(super) fn get(&self, index: u16) -> Option<&Shadow> {
        match self.slots.get(usize::from(index)) {
            Some(Slot::InUse(shadow)) => Some(shadow),
            _ => None,
        }
    }

    pub(super) fn get_mut(&mut self, index: u16) -> Option<&mut Shadow> {
        match self.slots.get_mut(usize::from(index)) {
            Some(Slot::InUse(shadow)) => Some(shadow),
            _ => None,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Shadow> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::InUse(shadow) => Some(shadow),
            _ => None,
        })
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Shadow> {
        self.slots.iter_mut().filter_map(|slot| match slot {
            Slot::InUse(shadow) => Some(shadow),
            _ => None,
        })
    }

    /// The first shadow that is as asked.
    pub(super) fn find(&self, is_asked: impl Fn(&Shadow) -> bool) -> Option<u16> {
        let is_asked = |slot: &Slot| matches!(slot, Slot::InUse(shadow) if is_asked(shadow));
        let index = self.slots.iter().position(is_asked)?;
        u16::try_from(index).ok()
    }

    /// Adds the shadow that `make` makes if there is room for it.
    ///
    /// # Errors
    ///
    /// [`BindError::StoreFull`], or what `make` says.
    pub(super) fn insert(
        &mut self,
        make: impl FnOnce() -> Result<Shadow, BindError>,
    ) -> Result<u16, BindError> {
        let full = BindError::StoreFull {
            store: "shadows",
            capacity: N,
        };
        let index = self
            .slots
            .iter()
            .position(|slot| matches!(slot, Slot::Free));
        let index = index.and_then(|index| u16::try_from(index).ok());
        let index = index.ok_or(full)?;
        let slot = self.slots.get_mut(usize::from(index)).ok_or(full)?;
        *slot = Slot::InUse(make()?);
        Ok(index)
    }

    /// Has a shadow taken apart that no entry names any more and whose domains are invalidated, or
    /// that hardware has never seen. [`advance_leaving`](Self::advance_leaving) does it.
    pub(super) fn retire<H: HostMemory>(&mut self, h: &H, index: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return;
        };
        match core::mem::replace(slot, Slot::Free) {
            Slot::InUse(shadow) => {
                let (table, detached) = shadow.into_tables(h);
                *slot = Slot::Leaving(table, Dismantling::new(detached));
                self.leaving = self.leaving.saturating_add(1);
            }
            before => *slot = before,
        }
    }

    /// The same for every shadow that is as said.
    pub(super) fn retire_all<H: HostMemory>(&mut self, h: &H, is_so: impl Fn(&Shadow) -> bool) {
        // Each one found is retired, and so not found again.
        for _ in 0..N {
            match self.find(&is_so) {
                Some(index) => self.retire(h, index),
                None => return,
            }
        }
    }

    /// Does a slice of the work on a shadow that leaves: what about one table page is work. `false`
    /// if none does.
    pub(super) fn advance_leaving<H: Hypervisor>(&mut self, h: &H) -> bool {
        if self.leaving == 0 {
            return false;
        }
        for slot in &mut self.slots {
            if let Slot::Leaving(table, state) = slot {
                if table.dismantle(h, state) {
                    *slot = Slot::Free;
                    self.leaving = self.leaving.saturating_sub(1);
                }
                return true;
            }
        }
        false
    }

    /// Returns some of the table pages to the pool that hardware has confirmed to have forgotten;
    /// `false` if there are none.
    pub(super) fn give_back_tables<H: HostMemory + Frames>(&mut self, h: &H) -> bool {
        self.iter_mut().any(|shadow| shadow.give_back_tables(h))
    }

    /// Whether there are such table pages.
    pub(super) fn has_tables_to_give_back(&self) -> bool {
        self.iter().any(Shadow::has_tables_to_give_back)
    }
}
