//! Accessed and dirty flags of a guest's first-stage entries, set for emulated devices (§3.6.2).

use core::cell::Cell;

use crate::arch::address::Gpa;
use crate::arch::fault::FaultReason;
use crate::arch::first_stage::FirstStageEntry;
use crate::mem::GuestMemory;
use crate::paging::walk::{Access, EntrySource};

/// Most levels of a first stage.
const LEVELS: usize = 5;

/// The entries that a walk has used, from the top level down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct UsedEntries {
    entries: [(Gpa, u64); LEVELS],
    len: usize,
    /// The unit maintains the `EA` bits (`EAFE`).
    extended: bool,
}

/// Why the flags that a request needs are not set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FlagError {
    /// The guest has changed an entry since: the walk does not count.
    Changed,
    /// They cannot be set.
    Fault(FaultReason),
}

impl UsedEntries {
    fn leaf(&self) -> Option<(Gpa, u64)> {
        self.entries.get(self.len.checked_sub(1)?).copied()
    }

    /// Whether the page is known to be dirty, so that writes need no update.
    pub(super) fn is_dirty(&self) -> bool {
        self.leaf()
            .is_some_and(|(_, entry)| entry & FirstStageEntry::DIRTY != 0)
    }

    /// Sets what a request needs: each entry's accessed flag and, for a write, the page's dirty
    /// flag. Each entry is changed by one atomic access, and only if it is as the walk found it.
    pub(super) fn update<M: GuestMemory>(
        &self,
        memory: &M,
        access: Access,
        is_snooped: bool,
    ) -> Result<(), FlagError> {
        let mut accessed = FirstStageEntry::ACCESSED;
        if self.extended {
            accessed |= FirstStageEntry::EXTENDED_ACCESSED;
        }
        let last = self.len.saturating_sub(1);
        for (index, (at, entry)) in self.entries.iter().take(self.len).enumerate() {
            let mut needed = accessed;
            if index == last && access.rights.write {
                needed |= FirstStageEntry::DIRTY;
            }
            if entry & needed == needed {
                continue;
            }
            if !is_snooped {
                return Err(FlagError::Fault(FaultReason::FirstStageUpdateUnsnooped));
            }
            match memory.compare_exchange(*at, *entry, entry | needed) {
                Ok(true) => {}
                Ok(false) => return Err(FlagError::Changed),
                Err(_) => return Err(FlagError::Fault(FaultReason::FirstStageUpdateFailed)),
            }
        }
        Ok(())
    }
}

/// A guest's tables that remember which entries were read.
pub(super) struct RememberedTables<'a, M> {
    memory: &'a M,
    used: Cell<UsedEntries>,
}

impl<'a, M> RememberedTables<'a, M> {
    pub(super) const fn new(memory: &'a M, extended: bool) -> Self {
        Self {
            memory,
            used: Cell::new(UsedEntries {
                entries: [(Gpa::new(0), 0); LEVELS],
                len: 0,
                extended,
            }),
        }
    }

    pub(super) const fn used(&self) -> UsedEntries {
        self.used.get()
    }
}

impl<M: GuestMemory> EntrySource<Gpa> for RememberedTables<'_, M> {
    fn read_entry(&self, at: Gpa) -> Option<u64> {
        let entry = self.memory.read_u64(at).ok()?;
        let mut used = self.used.get();
        *used.entries.get_mut(used.len)? = (at, entry);
        used.len = used.len.saturating_add(1);
        self.used.set(used);
        Some(entry)
    }
}
