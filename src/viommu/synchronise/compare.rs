//! What is bound beside what the tables say now.

use crate::arch::address::Gpa;
use crate::arch::context::ScalableContext;
use crate::arch::id::{DomainId, Pasid};
use crate::arch::pasid::PasidEntry;
use crate::mem::GuestMemory;
use crate::viommu::host::{Desired, HostState};
use crate::viommu::pasid_cache::BindingState;
use crate::viommu::statistics::count;
use crate::viommu::tables::{
    GuestContext, TableError, TableFault, domain_id_of, guest_binding, legacy_binding, pasid_limit,
};
use crate::viommu::unit::VirtualUnit;

use super::{Change, EntryFilter, Pass, Position, SLOTS_PER_STEP};

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// The bindings of requests without PASID that the walk has not met.
    pub(super) fn check_default(
        &mut self,
        memory: &impl GuestMemory,
        pass: &mut Pass,
        from: usize,
    ) {
        let Some(index) = self.next_selected(pass.devices, from) else {
            pass.position = match pass.entries {
                EntryFilter::Domain(domain_id) if domain_id != DomainId::ZERO => {
                    self.cache.begin_walk(Some(domain_id));
                    Position::OfDomain(domain_id)
                }
                _ => Position::Slot(0),
            };
            return;
        };
        pass.position = Position::Default(index.saturating_add(1));
        let Some(slot) = self.devices.get(index) else {
            return;
        };
        let is_in_scope = match slot.default.actual {
            _ if pass.entries == EntryFilter::Everything => true,
            Some(Desired::Guest(binding)) => pass.entries.covers(binding.domain_id),
            Some(_) => pass.entries.covers(DomainId::ZERO),
            None => true,
        };
        if is_in_scope && slot.default.generation != pass.generation {
            let (raw, desired) = self.desired_now(memory, index, Pasid::ZERO);
            pass.change = self.difference(pass.generation, index, Pasid::ZERO, raw, desired);
        }
    }

    /// The bindings of the store that the walk has not met, slot by slot.
    pub(super) fn check_slots(&mut self, memory: &impl GuestMemory, pass: &mut Pass, from: usize) {
        let end = self.cache.end();
        for at in from..end.min(from.saturating_add(SLOTS_PER_STEP)) {
            if self.check_slot(memory, pass, at) {
                pass.position = Position::Slot(at.saturating_add(1));
                return;
            }
        }
        let next = from.saturating_add(SLOTS_PER_STEP);
        if next < end {
            pass.position = Position::Slot(next);
        } else {
            Self::leave_store(pass);
        }
    }

    /// The same for the bindings with one domain-id, and then for those whose domain-id is not
    /// certain.
    pub(super) fn check_chain(&mut self, memory: &impl GuestMemory, pass: &mut Pass) {
        for _ in 0..SLOTS_PER_STEP {
            match self.cache.next_of_walk() {
                Some(at) => {
                    if self.check_slot(memory, pass, at) {
                        return;
                    }
                }
                None if matches!(pass.position, Position::OfDomain(_)) => {
                    self.cache.begin_walk(None);
                    pass.position = Position::Unsettled;
                }
                None => return Self::leave_store(pass),
            }
        }
    }

    /// Reads the entry of a binding in scope that the walk has not met; `true` if it did.
    pub(super) fn check_slot(
        &mut self,
        memory: &impl GuestMemory,
        pass: &mut Pass,
        at: usize,
    ) -> bool {
        let Some(entry) = self.cache.get(at) else {
            return false;
        };
        let is_in_scope = entry.state() == BindingState::Unsettled
            || pass.entries.covers(domain_id_of(entry.raw()));
        if !is_in_scope
            || entry.generation() == pass.generation
            || !self.is_selected(pass.devices, entry.device())
        {
            return false;
        }
        let (device, pasid) = (entry.device(), entry.pasid());
        let (raw, desired) = self.desired_now(memory, device, pasid);
        pass.change = self.difference(pass.generation, device, pasid, raw, desired);
        true
    }

    /// At the end of a pass, or before its second walk.
    pub(super) fn leave_store(pass: &mut Pass) {
        pass.position = if pass.short && !pass.is_last_walk {
            pass.is_last_walk = true;
            Position::Device(0)
        } else {
            Position::Done
        };
    }

    /// What one PASID of one device should be bound to now, and the guest's entry that says so.
    pub(super) fn desired_now(
        &mut self,
        memory: &impl GuestMemory,
        device: usize,
        pasid: Pasid,
    ) -> ([u64; 8], Desired) {
        const ABSENT: [u64; 8] = [0; 8];
        let is_default = pasid == Pasid::ZERO;
        if !self.translating {
            return match is_default {
                true => (ABSENT, Desired::MachineMemory),
                false => (ABSENT, Desired::Blocked),
            };
        }
        match self.context_of(memory, device) {
            Some(GuestContext::Scalable(context)) => {
                match self.entry_now(memory, device, &context, pasid) {
                    Some((entry, desired)) => (*entry.quadwords(), desired),
                    None => (ABSENT, Desired::Blocked),
                }
            }
            Some(GuestContext::Legacy(context)) if is_default => {
                (ABSENT, Desired::Guest(legacy_binding(&context)))
            }
            _ => (ABSENT, Desired::Blocked),
        }
    }

    pub(super) fn entry_now(
        &mut self,
        memory: &impl GuestMemory,
        device: usize,
        context: &ScalableContext<Gpa>,
        pasid: Pasid,
    ) -> Option<(PasidEntry, Desired)> {
        if pasid.as_u32() >= pasid_limit(context, self.pasid_bits_of(device)) {
            return None;
        }
        let tables = self.tables;
        let read = self.reader(memory, &tables).pasid_entry(context, pasid);
        let (fault, entry) = match read {
            Ok((entry, _)) => match guest_binding(&entry, &tables) {
                Ok(binding) => return Some((entry, Desired::Guest(binding))),
                Err(fault) => (TableFault::Entry(fault), Some((entry, Desired::Blocked))),
            },
            Err((fault, _)) => (fault, None),
        };
        if let Some(slot) = self.devices.get(device) {
            self.skip_table(TableError {
                source_id: slot.source_id,
                pasid,
                fault,
                fault_processing_disabled: false,
            });
        }
        entry
    }

    /// PASID-selective invalidation, for one device.
    pub(super) fn check_pasid(
        &mut self,
        memory: &impl GuestMemory,
        pass: &Pass,
        device: usize,
        domain_id: DomainId,
        pasid: Pasid,
    ) -> Option<Change> {
        let is_bound_in_scope = if pasid == Pasid::ZERO {
            match self.devices.get(device)?.default.actual {
                Some(Desired::Guest(binding)) => pass.entries.covers(binding.domain_id),
                Some(_) => domain_id == DomainId::ZERO,
                None => true,
            }
        } else {
            match self
                .slot_of(device, pasid)
                .and_then(|at| self.cache.get(at))
            {
                Some(entry) => {
                    entry.state() == BindingState::Unsettled
                        || pass.entries.covers(domain_id_of(entry.raw()))
                }
                None => false,
            }
        };
        let (raw, desired) = self.desired_now(memory, device, pasid);
        let is_present_in_scope =
            matches!(desired, Desired::Guest(_)) && pass.entries.covers(domain_id_of(&raw));
        if is_bound_in_scope || is_present_in_scope {
            self.difference(pass.generation, device, pasid, raw, desired)
        } else {
            None
        }
    }

    pub(super) fn slot_of(&self, device: usize, pasid: Pasid) -> Option<usize> {
        self.cache.find(u16::try_from(device).ok()?, pasid)
    }

    /// The change that makes a binding as desired, or `None` if it is so already: then nothing but
    /// the copy of the guest's entry is refreshed.
    pub(super) fn difference(
        &mut self,
        generation: u32,
        device: usize,
        pasid: Pasid,
        raw: [u64; 8],
        desired: Desired,
    ) -> Option<Change> {
        let mut replaces = false;
        if pasid == Pasid::ZERO {
            let default = &mut self.devices.get_mut(device)?.default;
            if default.actual == Some(desired) {
                default.raw = raw;
                default.generation = generation;
                count(&mut self.statistics.unchanged);
                return None;
            }
            replaces = matches!(default.actual, Some(Desired::Guest(_)));
        } else if let Some(at) = self.slot_of(device, pasid) {
            let entry = self.cache.get(at)?;
            if entry.state() == BindingState::Bound {
                replaces = true;
                let is_same = match desired {
                    Desired::Guest(binding) => {
                        *entry.raw() == raw
                            || guest_binding(
                                &PasidEntry::from_quadwords(*entry.raw()),
                                &self.tables,
                            ) == Ok(binding)
                    }
                    _ => false,
                };
                if is_same {
                    self.cache.refresh(at, &raw, generation, &self.tables);
                    count(&mut self.statistics.unchanged);
                    return None;
                }
            }
        } else if desired == Desired::Blocked {
            return None;
        }
        Some(Change {
            device,
            pasid,
            raw,
            desired,
            replaces,
            releasing: None,
        })
    }
}
