//! The walk's tables of first and second stage.

use crate::arch::address::{Gpa, Hpa};
use crate::arch::fault::FaultReason;
use crate::arch::first_stage::FirstStageEntry;
use crate::mem::HostMemory;
use crate::paging::walk::{Access, EntrySource, SecondStageRoot, second_stage_leaf};
use core::cell::Cell;

use super::{Step, Walker, in_nested};

/// Second-stage entries, shown as they are read; the level counts down with them.
pub(super) struct SecondStageSource<'a, W> {
    pub(super) walker: &'a W,
    pub(super) input: u64,
    pub(super) level: Cell<u8>,
}

impl<M: HostMemory, F: FnMut(&Step)> EntrySource<Hpa> for SecondStageSource<'_, Walker<'_, M, F>> {
    fn read_entry(&self, at: Hpa) -> Option<u64> {
        let entry = self.walker.memory.read64(at);
        let level = self.level.get();
        self.level.set(level.saturating_sub(1));
        self.walker.show(&Step::SecondStage {
            level,
            input: self.input,
            at,
            entry,
        });
        Some(entry)
    }
}

/// First-stage entries, found through the second stage if there is one.
pub(super) struct FirstStageSource<'a, W> {
    pub(super) walker: &'a W,
    pub(super) second: Option<SecondStageRoot<Hpa>>,
    pub(super) top: u8,
    pub(super) level: Cell<u8>,
    /// Why the second stage led to no entry.
    pub(super) denied: Cell<Option<FaultReason>>,
    /// The last entry read, and whether hardware may write to its table.
    pub(super) last: Cell<Option<(u64, bool)>>,
    /// The first entry without accessed flag: whether hardware may write to its table.
    pub(super) unset: Cell<Option<bool>>,
}

impl<M: HostMemory, F: FnMut(&Step)> FirstStageSource<'_, Walker<'_, M, F>> {
    /// Where an entry of the first stage is, and whether hardware may write to it.
    pub(super) fn place(&self, at: Gpa, level: u8) -> Result<(Hpa, bool), FaultReason> {
        let Some(second) = self.second else {
            return Ok((Hpa::new(at.as_u64()), true));
        };
        let source = self.walker.second_stage_source(second, at.as_u64());
        let found = second_stage_leaf(&source, second, &self.walker.tables, at.as_u64())
            .map_err(in_nested)?;
        if !found.rights.read {
            return Err(if level == self.top {
                FaultReason::FirstStageRootDenied
            } else {
                FaultReason::FirstStageTableDenied
            });
        }
        Ok((found.address, found.rights.write))
    }

    /// Whether the accessed and dirty flags that the request needs are set, or can be.
    pub(super) fn check_flags(&self, access: Access, is_snooped: bool) -> Result<(), FaultReason> {
        let dirty = self
            .last
            .get()
            .filter(|(entry, _)| access.rights.write && entry & FirstStageEntry::DIRTY == 0);
        let missing = self
            .unset
            .get()
            .or(dirty.map(|(_, is_writable)| is_writable));
        match missing {
            None => Ok(()),
            Some(_) if !is_snooped => Err(FaultReason::FirstStageUpdateUnsnooped),
            Some(false) => Err(FaultReason::FirstStageUpdateDenied),
            // A dirty flag may be missing in a table that cannot be written to, too.
            Some(true) if dirty.is_some_and(|(_, is_writable)| !is_writable) => {
                Err(FaultReason::FirstStageUpdateDenied)
            }
            Some(true) => Ok(()),
        }
    }
}

impl<M: HostMemory, F: FnMut(&Step)> EntrySource<Gpa> for FirstStageSource<'_, Walker<'_, M, F>> {
    fn read_entry(&self, at: Gpa) -> Option<u64> {
        let level = self.level.get();
        self.level.set(level.saturating_sub(1));
        let (at, is_writable) = match self.place(at, level) {
            Ok(place) => place,
            Err(reason) => {
                self.denied.set(Some(reason));
                return None;
            }
        };
        let entry = self.walker.memory.read64(at);
        self.walker.show(&Step::FirstStage { level, at, entry });
        self.last.set(Some((entry, is_writable)));
        if entry & FirstStageEntry::ACCESSED == 0 && self.unset.get().is_none() {
            self.unset.set(Some(is_writable));
        }
        Some(entry)
    }
}
