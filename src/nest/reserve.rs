//! What a binding needs before it can be published: a table page, a host domain-id, a shadow.
//!
//! Everything is counted by users and goes with the last one, which is only released once hardware
//! has confirmed that it forgot the entry.

use crate::arch::address::{AddressWidth, Gpa};
use crate::arch::id::{DomainId, Pasid};
use crate::arch::pasid::PasidEntry;
use crate::mem::{Hypervisor, Registers};
use crate::nest::backend::shadow::{Shadow, Synchronisation};
use crate::nest::backend::{self, Target, nested};
use crate::nest::bind::{Bound, HostPort, refused_by_unit};
use crate::nest::domain::{DomainKind, DomainSlot};
use crate::paging::{SecondStage, SecondStageConfig};
use crate::viommu::host::{BindError, DeviceHandle};

/// What a reservation has come to.
pub(super) enum Reserved {
    /// Nothing is wanted.
    Nothing,
    /// A shadow is being built, or one that leaves taken apart: the same call again goes on with it.
    Unfinished,
    /// All is there for this entry.
    Entry(Bound, PasidEntry),
}

impl<H: Hypervisor, R: Registers, const DEVICES: usize, const DOMAINS: usize, const SHADOWS: usize>
    HostPort<'_, H, R, DEVICES, DOMAINS, SHADOWS>
{
    /// Reserves the table page, the domain-id and, for a shadow, the shadow; gives the entry. A shadow
    /// that has to be built takes several calls with the same target.
    pub(super) fn reserve(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        wanted: Result<Option<Target>, BindError>,
    ) -> Result<Reserved, BindError> {
        let Some(target) = wanted? else {
            return Ok(Reserved::Nothing);
        };
        // What leaves may hold the room, and the frames, that this needs.
        if self.side.shadows.advance_leaving(self.h) {
            return Ok(Reserved::Unfinished);
        }
        self.prepare_table(device, pasid)?;
        let Some(domain) = self.acquire(device, pasid, &target)? else {
            return Ok(Reserved::Unfinished);
        };
        match self.entry_for(device, &target, domain) {
            Ok(entry) => Ok(Reserved::Entry(Bound::new(domain), entry)),
            Err(error) => {
                self.release(device, domain);
                Err(error)
            }
        }
    }

    fn prepare_table(&mut self, device: DeviceHandle, pasid: Pasid) -> Result<(), BindError> {
        let index = self.side.devices.get(device)?.config.unit;
        let unit = self
            .units
            .get(usize::from(index))
            .ok_or(BindError::UnknownDevice(device))?;
        let tables = &mut self.side.devices.get_mut(device)?.tables;
        unit.prepare_entry(self.h, tables, pasid)
            .map_err(refused_by_unit)
    }

    /// The hardware entry for a target under a host domain.
    pub(super) fn entry_for(
        &self,
        device: DeviceHandle,
        target: &Target,
        domain: DomainSlot,
    ) -> Result<PasidEntry, BindError> {
        let (_, unit) = self.unit_of(device)?;
        let features = unit.table_features();
        let options = backend::entry_options(features.page_walk_coherency, features.snoop_control);
        let domain = self
            .side
            .domains
            .get(domain)
            .ok_or(BindError::DomainIdsExhausted)?;
        Ok(match target {
            Target::MachineMemory => {
                backend::second_stage::entry(self.memory.second_stage, domain.id, options)
            }
            Target::Nested(target) => {
                nested::entry(target, self.memory.second_stage, domain.id, options)
            }
            Target::Shadow { .. } => {
                let DomainKind::Shadow { shadow, .. } = domain.kind else {
                    return Err(BindError::DomainIdsExhausted);
                };
                let shadow = self.side.shadows.get(shadow).ok_or(BindError::StoreFull {
                    store: "shadows",
                    capacity: SHADOWS,
                })?;
                backend::second_stage::entry(&shadow.table, domain.id, options)
            }
        })
    }

    /// Finds or makes the host domain for a target and counts one more user; `None` while a shadow
    /// is built.
    fn acquire(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        target: &Target,
    ) -> Result<Option<DomainSlot>, BindError> {
        let (unit, _) = self.unit_of(device)?;
        let kind = match target {
            Target::MachineMemory => DomainKind::Machine,
            Target::Nested(target) => DomainKind::Nested {
                guest: target.domain_id,
            },
            Target::Shadow {
                domain_id,
                root,
                width,
            } => {
                let Some(shadow) = self.find_or_build_shadow(*domain_id, *root, *width)? else {
                    return Ok(None);
                };
                DomainKind::Shadow {
                    guest: *domain_id,
                    shadow,
                }
            }
        };
        let found = self.side.domains.of_kind(kind).find(|(_, domain)| {
            domain.unit == unit && !self.conflicts(device, pasid, domain.id, target)
        });
        let slot = match found.map(|(slot, _)| slot) {
            Some(slot) => slot,
            None => match self.new_domain(unit, kind) {
                Ok(slot) => slot,
                Err(error) => {
                    self.drop_unused_shadow(kind);
                    return Err(error);
                }
            },
        };
        self.side.domains.add_user(slot);
        Ok(Some(slot))
    }

    fn new_domain(&mut self, unit: u8, kind: DomainKind) -> Result<DomainSlot, BindError> {
        let physical = self
            .units
            .get(usize::from(unit))
            .ok_or(BindError::DomainIdsExhausted)?;
        let id = physical
            .allocate_domain_id()
            .ok_or(BindError::DomainIdsExhausted)?;
        let slot = self.side.domains.insert(unit, id, kind);
        match slot {
            Ok(_) => {
                if let DomainKind::Shadow { shadow, .. } = kind
                    && let Some(shadow) = self.side.shadows.get_mut(shadow)
                {
                    shadow.users = shadow.users.saturating_add(1);
                }
            }
            Err(_) => physical.free_domain_id(id),
        }
        slot
    }

    /// Whether another device's entry for this PASID carries the domain-id with another first-stage
    /// root or paging mode: entries that share both must agree (§6.2.3.1). The hardware tables are
    /// the truth; an entry that is withdrawn but not yet confirmed still counts.
    pub(super) fn conflicts(
        &self,
        device: DeviceHandle,
        pasid: Pasid,
        id: DomainId,
        target: &Target,
    ) -> bool {
        let Target::Nested(target) = target else {
            return false;
        };
        self.entries_of_others(device, pasid, id).any(|entry| {
            entry.first_stage_root::<Gpa>() != target.root
                || u64::from(entry.paging_mode_field()) != target.paging.field()
                || entry.is_extended_accessed_enabled() != target.extended_accessed
        })
    }

    /// The entries for a PASID, of other devices behind the same unit, that carry a domain-id.
    pub(super) fn entries_of_others(
        &self,
        device: DeviceHandle,
        pasid: Pasid,
        id: DomainId,
    ) -> impl Iterator<Item = PasidEntry> {
        let unit = self.unit_of(device).ok();
        self.side
            .devices
            .iter()
            .filter(move |(handle, _)| *handle != device)
            .filter_map(move |(_, other)| {
                let (index, unit) = unit?;
                if other.config.unit != index {
                    return None;
                }
                unit.read_entry(self.h, &other.tables, pasid)
                    .filter(|entry| entry.domain_id() == id)
            })
    }

    /// Counts one user less; the last one frees the domain-id, and the shadow with it. Only called
    /// when no entry with the id is cached any more.
    pub(super) fn release(&mut self, device: DeviceHandle, slot: DomainSlot) {
        let Some(domain) = self.side.domains.remove_user(slot) else {
            return;
        };
        if let Ok((_, unit)) = self.unit_of(device) {
            unit.free_domain_id(domain.id);
        }
        if let DomainKind::Shadow { shadow, .. } = domain.kind
            && let Some(shadow) = self.side.shadows.get_mut(shadow)
        {
            shadow.users = shadow.users.saturating_sub(1);
        }
        self.drop_unused_shadow(domain.kind);
    }

    fn drop_unused_shadow(&mut self, kind: DomainKind) {
        let DomainKind::Shadow { shadow, .. } = kind else {
            return;
        };
        let shadows = &mut self.side.shadows;
        if shadows.get(shadow).is_some_and(|shadow| shadow.users == 0) {
            shadows.retire(self.h, shadow);
        }
    }

    /// Takes shadows apart that are being built for something else than `wanted`: nobody asks for
    /// them any more. Hardware has never seen them.
    pub(super) fn give_up_builds(&mut self, wanted: &Result<Option<Target>, BindError>) {
        self.side.shadows.retire_all(self.h, |shadow| {
            shadow.users == 0
                && !matches!(
                    wanted,
                    Ok(Some(Target::Shadow { domain_id, root, width }))
                        if shadow.serves(*domain_id, *root, *width)
                )
        });
    }

    /// Finds the shadow of a guest's table, or builds it, a slice a call: `None` until it is whole.
    fn find_or_build_shadow(
        &mut self,
        domain_id: DomainId,
        guest_root: Gpa,
        width: AddressWidth,
    ) -> Result<Option<u16>, BindError> {
        let table_limit = self.side.shadow_table_limit;
        let is_same = |shadow: &Shadow| shadow.serves(domain_id, guest_root, width);
        let index = match self.side.shadows.find(is_same) {
            Some(index) => index,
            None => self.new_shadow(domain_id, guest_root, width)?,
        };
        let synchronisation = Synchronisation {
            memory: self.memory,
            features: &self.side.guest_features,
        };
        let Some(shadow) = self.side.shadows.get_mut(index) else {
            return Ok(None);
        };
        if shadow.users > 0 {
            // Others use it: what the guest's table says now is in force with the guest's next
            // wait, as if the PASID cache had let go of it (R27).
            shadow.restart(table_limit);
            return Ok(Some(index));
        }
        match synchronisation.run_slice(shadow, &mut self.side.statistics) {
            Ok(_) if shadow.is_in_step() => Ok(Some(index)),
            Ok(_) => Ok(None),
            Err(error) => {
                // Hardware has never seen it.
                self.side.shadows.retire(self.h, index);
                Err(error)
            }
        }
    }

    fn new_shadow(
        &mut self,
        domain_id: DomainId,
        guest_root: Gpa,
        width: AddressWidth,
    ) -> Result<u16, BindError> {
        let config = SecondStageConfig {
            width,
            input_bits: self.side.offer.input_bits.min(width.bits()),
            ..*self.memory.second_stage.config()
        };
        let (h, owner) = (self.h, self.side.owner);
        let limit = self.side.shadow_table_limit;
        self.side.shadows.insert(|| {
            let table = SecondStage::new(h, owner, config).map_err(BindError::Frames)?;
            Ok(Shadow::new(domain_id, guest_root, width, table, limit))
        })
    }
}
