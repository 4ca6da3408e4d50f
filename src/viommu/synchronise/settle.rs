//! One change carried out by the host side, and what becomes of it.

use crate::arch::id::Pasid;
use crate::arch::pasid::PasidTranslation;
use crate::viommu::fault::GuestFault;
use crate::viommu::first_stage_roots::RootUse;
use crate::viommu::host::{BindError, Desired, DeviceHandle, Host, HostState, Progress};
use crate::viommu::statistics::count;
use crate::viommu::unit::VirtualUnit;

use super::{Change, DeviceFilter, Pass, Settled, is_shortage};

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// Has the host make a binding as desired. The binding counts as bound only when it is.
    pub(super) fn settle<Ho: Host<Binding = B>>(
        &mut self,
        host: &mut Ho,
        pass: &Pass,
        change: &mut Change,
    ) -> Settled {
        if !self.is_selected(DeviceFilter::All, change.device) {
            // Removed meanwhile, and with it all its bindings.
            return Settled::Done;
        }
        if change.pasid == Pasid::ZERO {
            self.settle_default(host, pass, change)
        } else {
            self.settle_slot(host, pass, change)
        }
    }

    pub(super) fn settle_default<Ho: Host<Binding = B>>(
        &mut self,
        host: &mut Ho,
        pass: &Pass,
        change: &Change,
    ) -> Settled {
        let conflict = self.root_conflict(change.device, change.pasid, &change.desired);
        let Some(slot) = self.devices.get_mut(change.device) else {
            return Settled::Done;
        };
        let default = &mut slot.default;
        default.actual = None;
        if let Some(error) = conflict {
            // The same call for a state that always fits takes what was bound before away.
            let handle = DeviceHandle::new(change.device as u16);
            match host.bind(handle, Pasid::ZERO, &mut default.host, &Desired::Blocked) {
                Ok(Progress::Wait) => return Settled::Wait,
                Ok(Progress::Again) => return Settled::Again,
                Ok(Progress::Done) => default.raw = [0; 8],
                Err(error) => {
                    self.failed(change.device, change.pasid, &Desired::Blocked, &error);
                }
            }
            if !pass.is_last_walk {
                return Settled::Short;
            }
            if let Some(slot) = self.devices.get_mut(change.device) {
                slot.default.generation = pass.generation;
            }
            self.failed(change.device, change.pasid, &change.desired, &error);
            return Settled::Done;
        }
        if let Desired::Guest(_) = change.desired {
            default.raw = change.raw;
        }
        let handle = DeviceHandle::new(change.device as u16);
        match host.bind(handle, Pasid::ZERO, &mut default.host, &change.desired) {
            Ok(Progress::Wait) => Settled::Wait,
            Ok(Progress::Again) => Settled::Again,
            Ok(Progress::Done) => {
                default.actual = Some(change.desired);
                default.raw = change.raw;
                default.generation = pass.generation;
                self.settled(change);
                Settled::Done
            }
            Err(error) if is_shortage(&error) && pass.may_walk_again() => Settled::Short,
            Err(error) => {
                default.generation = pass.generation;
                self.failed(change.device, change.pasid, &change.desired, &error);
                Settled::Done
            }
        }
    }

    pub(super) fn settle_slot<Ho: Host<Binding = B>>(
        &mut self,
        host: &mut Ho,
        pass: &Pass,
        change: &mut Change,
    ) -> Settled {
        let handle = DeviceHandle::new(change.device as u16);
        let slot = self.slot_of(change.device, change.pasid);
        if change.releasing.is_none()
            && let Some(error) = self.root_conflict(change.device, change.pasid, &change.desired)
        {
            // What contradicts it may be about to go, or to change in the same way.
            let outcome = if pass.is_last_walk {
                self.failed(change.device, change.pasid, &change.desired, &error);
                Settled::Done
            } else {
                Settled::Short
            };
            if slot.is_none() {
                return outcome;
            }
            change.releasing = Some(outcome);
        }
        let at = match slot {
            Some(at) => at,
            None => match self.cache.insert(change.device as u16, change.pasid) {
                Some(at) => at,
                None if pass.may_walk_again() => return Settled::Short,
                None => {
                    let error = BindError::StoreFull {
                        store: "PASID cache entries",
                        capacity: BINDINGS,
                    };
                    self.failed(change.device, change.pasid, &change.desired, &error);
                    return Settled::Done;
                }
            },
        };
        let honoured = match change.desired {
            Desired::Guest(_) if change.releasing.is_none() => Some(&change.raw),
            _ => None,
        };
        self.cache.unsettle(at, honoured, &self.tables);
        let Some(entry) = self.cache.get_mut(at) else {
            return Settled::Done;
        };
        if change.releasing.is_none() {
            match host.bind(handle, change.pasid, &mut entry.host, &change.desired) {
                Ok(Progress::Wait) => return Settled::Wait,
                Ok(Progress::Again) => return Settled::Again,
                Ok(Progress::Done) => {
                    if change.desired == Desired::Blocked {
                        self.cache.remove(at, &self.tables);
                    } else {
                        self.cache.settle(at, pass.generation);
                    }
                    self.settled(change);
                    return Settled::Done;
                }
                Err(error) => {
                    entry.set_generation(pass.generation);
                    change.releasing = Some(if is_shortage(&error) && pass.may_walk_again() {
                        // Told only if the second walk fails as well.
                        Settled::Short
                    } else {
                        self.failed(change.device, change.pasid, &change.desired, &error);
                        Settled::Done
                    });
                    if change.desired == Desired::Blocked {
                        // Kept, unsettled: every later pass tries again.
                        return Settled::Done;
                    }
                }
            }
        }
        // It is blocked now (R20). What the host holds of it is given back.
        let Some(entry) = self.cache.get_mut(at) else {
            return Settled::Done;
        };
        match host.bind(handle, change.pasid, &mut entry.host, &Desired::Blocked) {
            Ok(Progress::Wait) => return Settled::Wait,
            Ok(Progress::Again) => return Settled::Again,
            Ok(Progress::Done) => self.cache.remove(at, &self.tables),
            Err(error) => self.failed(change.device, change.pasid, &Desired::Blocked, &error),
        }
        change.releasing.unwrap_or(Settled::Done)
    }

    /// Why a device's binding may not be made as desired beside the others: one of them uses its
    /// first-stage root with another paging mode or `EAFE` (§6.2.3.1).
    ///
    /// What the binding itself was bound to does not count. Costs one look-up and one look at each
    /// device, however much is bound.
    pub(in crate::viommu) fn root_conflict(
        &self,
        device: usize,
        pasid: Pasid,
        desired: &Desired,
    ) -> Option<BindError> {
        let Desired::Guest(binding) = desired else {
            return None;
        };
        let PasidTranslation::FirstStage { root, .. } = binding.translation else {
            return None;
        };
        let wanted = RootUse::of(binding)?;
        let own = (pasid != Pasid::ZERO)
            .then(|| self.slot_of(device, pasid))
            .flatten();
        let contradicts = self.cache.contradicts(wanted, own, &self.tables)
            || self.devices.iter().enumerate().any(|(index, slot)| {
                !(index == device && pasid == Pasid::ZERO)
                    && slot
                        .default
                        .root(&self.tables)
                        .is_some_and(|used| used.contradicts(wanted))
            });
        contradicts.then_some(BindError::FirstStageRootConflict { root })
    }

    pub(super) fn settled(&mut self, change: &Change) {
        let statistics = &mut self.statistics;
        let Some(slot) = self.devices.get(change.device) else {
            return;
        };
        match change.desired {
            Desired::Guest(binding) => {
                let (counter, what) = if change.replaces {
                    (&mut statistics.replacements, "replaced")
                } else {
                    (&mut statistics.binds, "bound")
                };
                count(counter);
                log::info!(
                    "guest device {} PASID {}: {what}, type {}, guest domain-id {}",
                    slot.source_id,
                    change.pasid,
                    binding.translation.translation_type().field(),
                    binding.domain_id
                );
            }
            Desired::Blocked => {
                count(&mut statistics.unbinds);
                log::info!(
                    "guest device {} PASID {}: unbound",
                    slot.source_id,
                    change.pasid
                );
            }
            Desired::MachineMemory => {
                count(&mut statistics.machine_memory_binds);
                log::info!("guest device {}: translation off", slot.source_id);
            }
        }
    }

    /// Counts, logs and, where the guest is not to blame, tells the guest of a binding that could
    /// not be made as desired.
    pub(in crate::viommu) fn failed(
        &mut self,
        device: usize,
        pasid: Pasid,
        desired: &Desired,
        error: &BindError,
    ) {
        let Some(slot) = self.devices.get(device) else {
            return;
        };
        let source_id = slot.source_id;
        log::warn!("guest device {source_id} PASID {pasid}: blocked: {error}");
        if *desired == Desired::Blocked {
            count(&mut self.statistics.unbind_failures);
        } else {
            count(&mut self.statistics.bind_failures);
        }
        if let BindError::FirstStageRootConflict { .. } = error {
            count(&mut self.statistics.root_conflicts);
        }
        if let (true, Some(reason)) = (self.translating, error.immediate_guest_fault()) {
            self.record(&GuestFault {
                source_id,
                pasid: (pasid != Pasid::ZERO).then_some(pasid),
                reason: self.reason_in_mode(reason),
                address: crate::arch::address::Iova::new(0),
                request: crate::arch::register::RequestType::Read,
                privileged: false,
                execute: false,
                fault_processing_disabled: false,
            });
        }
    }
}
