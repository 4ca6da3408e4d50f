//! Changes of a machine's memory below everything that is bound above it: nested and pass-through
//! entries by invalidating their domains, shadows by bringing them in step first.

use super::admission::reserved_within;
use super::edited_memory::EditedMemory;
use super::machine::{MachineError, VirtualMachine};
use crate::arch::address::{Gpa, PageSize};
use crate::mem::{Hypervisor, Registers};
use crate::paging::{AccessedDirty, Leaf, OnPartialLeaf, Rights, SecondStage, StaleMappings};
use crate::unit::Unit;

impl<const DEVICES: usize, const BINDINGS: usize, const DOMAINS: usize, const SHADOWS: usize>
    VirtualMachine<DEVICES, BINDINGS, DOMAINS, SHADOWS>
{
    /// As [`unmap_memory`](Self::unmap_memory), and splits or widens to the large pages that the range
    /// cuts, as asked.
    ///
    /// # Errors
    ///
    /// As of [`unmap_memory`](Self::unmap_memory).
    pub fn unmap_memory_with<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        guest: Gpa,
        len_bytes: u64,
        on_partial: OnPartialLeaf,
    ) -> Result<(), MachineError> {
        self.check_reserved(h, units, guest, len_bytes, on_partial)?;
        let stale = self.editable()?.unmap(h, guest, len_bytes, on_partial)?;
        self.invalidate(h, units, stale)
    }

    /// Gives mapped memory other rights. When it returns, devices have these and no others; until
    /// then they have the old ones or these. Pages that are not mapped stay so.
    ///
    /// Where hardware would write to read-only memory ([`Policy::on_read_only_memory`](crate::nest::Policy)),
    /// taking the right to write away unmaps it, or is refused.
    ///
    /// # Errors
    ///
    /// [`MachineError`]. With [`MachineError::NotConfirmed`] the rights are changed, but a device may
    /// use the old ones until [`confirm_unmapped`](Self::confirm_unmapped) succeeds.
    pub fn protect_memory<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        guest: Gpa,
        len_bytes: u64,
        rights: Rights,
        on_partial: OnPartialLeaf,
    ) -> Result<(), MachineError> {
        if rights != Rights::READ_WRITE {
            self.check_reserved(h, units, guest, len_bytes, on_partial)?;
        }
        self.editable()?.check_input(guest, len_bytes)?;
        let stale = if !rights.write && !rights.is_none() && self.leaves_out_read_only(guest)? {
            self.editable()?.unmap(h, guest, len_bytes, on_partial)?
        } else {
            let memory = self.editable()?;
            memory.protect(h, guest, len_bytes, rights, on_partial)?
        };
        self.invalidate(h, units, stale)
    }

    /// Splits the pages of a range that are larger than `size`, for example to learn of
    /// [dirty pages](Self::take_dirty_pages) one by one. Devices reach all of them meanwhile.
    ///
    /// # Errors
    ///
    /// [`MachineError`]. With [`MachineError::NotConfirmed`] the pages are split, and the memory is not
    /// to be changed before [`confirm_unmapped`](Self::confirm_unmapped) succeeds.
    pub fn split_memory<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        guest: Gpa,
        len_bytes: u64,
        size: PageSize,
    ) -> Result<(), MachineError> {
        let stale = self.editable()?.split(h, guest, len_bytes, size)?;
        self.invalidate(h, units, stale)
    }

    /// Merges the pages of a range into larger ones wherever they are a block of one. Devices reach
    /// all of them meanwhile. Each [`MERGED_TABLES`](crate::paging::second_stage::MERGED_TABLES) table
    /// pages that this frees cost an invalidation.
    ///
    /// # Errors
    ///
    /// [`MachineError`]. With [`MachineError::NotConfirmed`] some pages are merged, and the memory is
    /// not to be changed before [`confirm_unmapped`](Self::confirm_unmapped) succeeds.
    pub fn merge_memory<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        guest: Gpa,
        len_bytes: u64,
    ) -> Result<(), MachineError> {
        let end = guest.as_u64().saturating_add(len_bytes);
        let mut from = guest;
        // Each call but the last one frees table pages.
        loop {
            let rest = end.saturating_sub(from.as_u64());
            let merged = self.editable()?.merge(h, from, rest)?;
            let resume_at = merged.resume_at();
            if merged.leaves() > 0 {
                // Hardware goes on through the old table pages until it has confirmed.
                let edited = EditedMemory::of(merged.owed());
                let flushed = self.flush_edited(h, units, edited, |_| true);
                let stale = merged.into_stale(h);
                match flushed {
                    Ok(()) => stale.settle(h),
                    Err(error) => {
                        self.keep_unconfirmed(h, stale);
                        return Err(error);
                    }
                }
            }
            match resume_at {
                Some(at) => from = at,
                None => return Ok(()),
            }
        }
    }

    /// Calls `report` for each page of a range that may have been written since the last call, by
    /// devices or by the virtual unit. What is written before this returns belongs to this call or to
    /// the next one: look at the pages after it.
    ///
    /// A page that a guest's second-stage table (a shadow) lets a device write is reported each time.
    /// Pages that have been unmapped are nobody's any more: take theirs before.
    ///
    /// # Errors
    ///
    /// [`MachineError`]. With [`MachineError::NotConfirmed`] pages have been reported, but what is
    /// written from now on may not be, until [`confirm_unmapped`](Self::confirm_unmapped) succeeds.
    pub fn take_dirty_pages<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        guest: Gpa,
        len_bytes: u64,
        report: impl FnMut(Leaf<Gpa>),
    ) -> Result<(), MachineError> {
        if !self.memory.config().tracks_access() {
            return Err(MachineError::DirtyPagesNotTracked);
        }
        let taken = AccessedDirty::DIRTY;
        let stale = self
            .editable()?
            .take_accessed_dirty(h, guest, len_bytes, taken, report)?;
        self.invalidate(h, units, stale)
    }

    /// Refuses to take away what firmware reserves for a device of the machine.
    fn check_reserved<H: Hypervisor, R: Registers>(
        &self,
        h: &H,
        units: &[Unit<R>],
        guest: Gpa,
        len_bytes: u64,
        on_partial: OnPartialLeaf,
    ) -> Result<(), MachineError> {
        let (first, len_bytes) = self.memory.edited_range(h, guest, len_bytes, on_partial);
        match reserved_within(units, &self.host.devices, first, len_bytes) {
            Some(region) => Err(MachineError::ReservedMemory { region }),
            None => Ok(()),
        }
    }

    /// The second stage, to change it.
    fn editable(&mut self) -> Result<&mut SecondStage<Gpa>, MachineError> {
        if self.dismantling.is_some() {
            return Err(MachineError::BeingDestroyed);
        }
        Ok(&mut self.memory)
    }

    /// Brings to its end what an edit owes, strictly.
    pub(super) fn invalidate<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        stale: StaleMappings<Gpa>,
    ) -> Result<(), MachineError> {
        if !stale.owes_invalidation() && self.unconfirmed.is_none() {
            stale.settle(h);
            return Ok(());
        }
        self.keep_unconfirmed(h, stale);
        self.flush_unconfirmed(h, units)
    }

    fn keep_unconfirmed<H: Hypervisor>(&mut self, h: &H, stale: StaleMappings<Gpa>) {
        match &mut self.unconfirmed {
            Some(before) => before.merge(h, stale),
            None => self.unconfirmed = Some(stale),
        }
    }
}
