//! Guest invalidations carried to hardware, and their completion (R30).
//!
//! What the guest's descriptors cover is collected, by host domain-id, until the guest waits; then
//! it goes to each physical unit as one batch with one wait. A shadow is brought in step at once,
//! so the batch drops what hardware may still know of the old state.

use heapless::Vec;

use crate::arch::address::{Iova, PAGE_SIZE_BYTES};
use crate::arch::capability::CapabilityField;
use crate::arch::descriptor::{Descriptor, IotlbGranularity, PasidIotlbGranularity};
use crate::arch::id::{DomainId, Pasid};
use crate::mem::{Hypervisor, Registers};
use crate::nest::backend::shadow::Synchronisation;
use crate::nest::bind::{EVERYTHING, HostPort, owes_after_set_up};
use crate::nest::domain::DomainKind;
use crate::unit::{QueueError, Ticket};
use crate::viommu::host::{BindError, GuestInvalidation, PageRange, Progress};

/// Descriptors collected before a domain is invalidated whole instead.
const COLLECTED: usize = 64;
/// Descriptors of one batch: what was collected, or domains to invalidate whole.
const BATCH: usize = 64;
/// Physical units one machine's devices can be behind.
pub const MAXIMUM_UNITS: usize = 8;

/// Guest invalidations on their way.
#[derive(Debug, Default)]
pub(super) struct Forwarding {
    collected: Vec<Collected, COLLECTED>,
    in_flight: Vec<InFlight, MAXIMUM_UNITS>,
    /// Since when a full queue has kept a batch back, in nanoseconds.
    owed_since: Option<u64>,
}

#[derive(Debug)]
struct Collected {
    unit: u8,
    domain_id: DomainId,
    descriptor: Descriptor,
}

#[derive(Debug)]
struct InFlight {
    unit: u8,
    ticket: Ticket,
}

impl<H: Hypervisor, R: Registers, const DEVICES: usize, const DOMAINS: usize, const SHADOWS: usize>
    HostPort<'_, H, R, DEVICES, DOMAINS, SHADOWS>
{
    /// Collects what a guest invalidation owes.
    ///
    /// # Errors
    ///
    /// [`BindError`] if a shadow could not be brought in step; it is empty then, so everything
    /// through it faults.
    pub(super) fn forward(&mut self, what: &GuestInvalidation) -> Result<Progress, BindError> {
        self.collect_for_nested(what);
        let mut result = Ok(Progress::Done);
        for index in 0..SHADOWS {
            let range = self
                .side
                .shadows
                .get(index)
                .and_then(Option::as_ref)
                .and_then(|shadow| shadow_range(what, shadow.domain_id));
            if let Some(range) = range
                && let Err(error) = self.synchronise_shadow(index, &range)
            {
                result = Err(error);
            }
        }
        result
    }

    /// First-stage invalidations go to each nested domain of the guest's domain-id; a second-stage
    /// one drops every nested entry of the domain, whatever the range (§6.5.2.3, Table 23).
    fn collect_for_nested(&mut self, what: &GuestInvalidation) {
        let mut granularity = None;
        let (named, pasid) = match *what {
            GuestInvalidation::All => (None, None),
            GuestInvalidation::Domain(domain_id)
            | GuestInvalidation::DomainPages { domain_id, .. } => (Some(domain_id), None),
            GuestInvalidation::Pasid { domain_id, pasid } => {
                granularity = Some(PasidIotlbGranularity::All);
                (Some(domain_id), Some(pasid))
            }
            GuestInvalidation::PasidPages {
                domain_id,
                pasid,
                pages,
            } => {
                granularity = Some(PasidIotlbGranularity::Page {
                    address: pages.address.as_u64(),
                    address_mask: pages.order,
                    leaf_hint: pages.leaf_only,
                });
                (Some(domain_id), Some(pasid))
            }
        };
        let mut covered: Vec<(u8, DomainId), DOMAINS> = Vec::new();
        for domain in self.side.domains.iter_mut() {
            let DomainKind::Nested { guest } = domain.kind else {
                continue;
            };
            if named.is_some_and(|named| named != guest) {
                continue;
            }
            match pasid {
                None => domain.owes_flush = true,
                // As many places as there are domains, so it is never full.
                Some(_) => _ = covered.push((domain.unit, domain.id)),
            }
        }
        let (Some(pasid), Some(granularity)) = (pasid, granularity) else {
            return;
        };
        for &(unit, domain_id) in &covered {
            if self.is_bound(unit, domain_id, pasid) {
                self.collect(
                    unit,
                    domain_id,
                    Descriptor::PasidIotlb {
                        domain_id,
                        pasid,
                        granularity,
                    },
                );
            }
        }
    }

    /// Whether some device's entry for a PASID carries the domain-id.
    fn is_bound(&self, unit: u8, domain_id: DomainId, pasid: Pasid) -> bool {
        let Some(physical) = self.units.get(usize::from(unit)) else {
            return false;
        };
        self.side.devices.iter().any(|(_, device)| {
            device.config.unit == unit
                && physical
                    .read_entry(self.h, &device.tables, pasid)
                    .is_some_and(|entry| entry.domain_id() == domain_id)
        })
    }

    /// Puts a descriptor into the next batch; without room the whole domain is invalidated, which
    /// covers it.
    fn collect(&mut self, unit: u8, domain_id: DomainId, descriptor: Descriptor) {
        if let Some(domain) = self
            .side
            .domains
            .iter_mut()
            .find(|domain| domain.unit == unit && domain.id == domain_id)
            && !domain.owes_flush
        {
            let collected = &mut self.side.forwarding.collected;
            if collected
                .last()
                .is_some_and(|last| last.unit == unit && last.descriptor == descriptor)
            {
                return;
            }
            if collected
                .push(Collected {
                    unit,
                    domain_id,
                    descriptor,
                })
                .is_err()
            {
                domain.owes_flush = true;
            }
        }
    }

    /// Brings one shadow in step with the guest's table and collects what that owes.
    fn synchronise_shadow(&mut self, index: usize, range: &PageRange) -> Result<(), BindError> {
        let synchronisation = Synchronisation {
            memory: self.memory,
            features: &self.side.guest_features,
            table_limit: self.side.shadow_table_limit,
        };
        let Some(shadow) = self.side.shadows.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        let range = if shadow.is_dropped {
            &EVERYTHING
        } else {
            range
        };
        let result = synchronisation.run(shadow, range, &mut self.side.statistics);
        shadow.is_dropped = result.is_err();
        let (owes_whole, owes_range) = match &result {
            Ok(changes) => (shadow.detached.is_some(), changes.replaced > 0),
            Err(error) => {
                log::error!("machine {}: shadow dropped: {error}", self.side.number);
                shadow.empty(self.h);
                self.side.statistics.shadows_dropped =
                    self.side.statistics.shadows_dropped.wrapping_add(1);
                (true, true)
            }
        };
        let added = result.as_ref().is_ok_and(|changes| changes.added > 0);
        let mut pages: Vec<(u8, DomainId, Descriptor), MAXIMUM_UNITS> = Vec::new();
        for domain in self.side.domains.iter_mut() {
            if !matches!(domain.kind, DomainKind::Shadow { shadow, .. } if usize::from(shadow) == index)
            {
                continue;
            }
            let Some(unit) = self.units.get(usize::from(domain.unit)) else {
                continue;
            };
            let capability = unit.features().capability;
            let owes = owes_range || added && owes_after_set_up(unit);
            let selective = !owes_whole
                && capability.has(CapabilityField::PAGE_SELECTIVE_INVALIDATION)
                && range.order <= capability.maximum_address_mask();
            if !owes && !owes_whole {
                continue;
            }
            let descriptor = Descriptor::Iotlb {
                granularity: IotlbGranularity::Page {
                    domain_id: domain.id,
                    address: range.address.as_u64(),
                    address_mask: range.order,
                    // A page that was added may be in a new table, whose absence caching mode lets
                    // hardware keep: then upper levels have to go too (§6.5.2.3).
                    leaf_hint: !added,
                },
                drain_reads: true,
                drain_writes: true,
            };
            if !selective || pages.push((domain.unit, domain.id, descriptor)).is_err() {
                domain.owes_flush = true;
            }
        }
        for &(unit, domain_id, descriptor) in &pages {
            self.collect(unit, domain_id, descriptor);
        }
        result.map(|_| ())
    }

    /// Submits what was collected and brings it to its end. A unit whose devices are all in
    /// quarantine is only asked if `strict`: they reach nothing, and what it owes stays owed.
    ///
    /// # Errors
    ///
    /// [`BindError::Quarantined`] if hardware did not confirm: the machine's devices behind that
    /// unit are cut off.
    pub(super) fn complete_forwarded(&mut self, strict: bool) -> Result<Progress, BindError> {
        // Each round confirms what is in flight and submits what fits; all domains fit in this
        // many rounds.
        for _ in 0..DOMAINS.div_ceil(BATCH).saturating_add(2) {
            if self.confirm_in_flight()? == Progress::Wait {
                return Ok(Progress::Wait);
            }
            if !self.submit_collected(strict)? {
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::Wait)
    }

    fn confirm_in_flight(&mut self) -> Result<Progress, BindError> {
        let mut failed = None;
        for flight in &self.side.forwarding.in_flight {
            let Some(unit) = self.units.get(usize::from(flight.unit)) else {
                continue;
            };
            match unit.poll(self.h, &flight.ticket) {
                Ok(true) => {}
                Ok(false) => return Ok(Progress::Wait),
                Err(error) => {
                    log::error!(
                        "machine {}: invalidation not confirmed: {error}",
                        self.side.number
                    );
                    failed = Some(flight.unit);
                    break;
                }
            }
        }
        if let Some(unit) = failed {
            return Err(self.isolate_unit(unit));
        }
        if !self.side.forwarding.in_flight.is_empty() {
            self.side.forwarding.in_flight.clear();
            for shadow in self.side.shadows.iter_mut().flatten() {
                shadow.flush_confirmed(self.h);
            }
        }
        Ok(Progress::Done)
    }

    /// Submits one batch to each unit that is owed something; `false` if none is.
    fn submit_collected(&mut self, strict: bool) -> Result<bool, BindError> {
        let mut submitted = false;
        for index in 0..self.units.len().min(MAXIMUM_UNITS) {
            let unit = index as u8;
            if !strict && self.is_cut_off(unit) {
                continue;
            }
            let batch = self.next_batch(unit);
            if batch.is_empty() {
                continue;
            }
            let Some(physical) = self.units.get(index) else {
                continue;
            };
            match physical.submit(self.h, &batch) {
                Ok(ticket) => {
                    // One place for each unit, and all were confirmed before.
                    _ = self
                        .side
                        .forwarding
                        .in_flight
                        .push(InFlight { unit, ticket });
                    submitted = true;
                    let statistics = &mut self.side.statistics;
                    statistics.forwarded_batches = statistics.forwarded_batches.wrapping_add(1);
                    statistics.forwarded_descriptors = statistics
                        .forwarded_descriptors
                        .wrapping_add(batch.len() as u64);
                }
                Err(error) => {
                    // What the batch held is owed again, in the form that covers it.
                    for domain in self
                        .side
                        .domains
                        .iter_mut()
                        .filter(|domain| domain.unit == unit)
                    {
                        domain.owes_flush = true;
                    }
                    let now = self.h.now_nanoseconds();
                    let since = *self.side.forwarding.owed_since.get_or_insert(now);
                    if is_transient(&error) && !self.is_late(physical, since) {
                        return Ok(true);
                    }
                    self.side.forwarding.owed_since = None;
                    log::error!("machine {}: {error}", self.side.number);
                    return Err(self.isolate_unit(unit));
                }
            }
        }
        self.side.forwarding.owed_since = None;
        let all_submitted = self
            .side
            .domains
            .iter()
            .all(|(_, domain)| !domain.owes_flush);
        for shadow in self.side.shadows.iter_mut().flatten() {
            if all_submitted {
                shadow.flush_submitted(self.h);
                if !submitted {
                    // No domain of it is on hardware any more.
                    shadow.flush_confirmed(self.h);
                }
            }
        }
        Ok(submitted)
    }

    /// Takes what one unit is owed out of the collection, as far as a batch has room.
    fn next_batch(&mut self, unit: u8) -> Vec<Descriptor, BATCH> {
        let mut batch = Vec::new();
        for domain in self
            .side
            .domains
            .iter_mut()
            .filter(|domain| domain.unit == unit && domain.owes_flush)
        {
            let descriptor = Descriptor::Iotlb {
                granularity: IotlbGranularity::Domain(domain.id),
                drain_reads: true,
                drain_writes: true,
            };
            if batch.push(descriptor).is_err() {
                return batch;
            }
            domain.owes_flush = false;
            let id = domain.id;
            self.side
                .forwarding
                .collected
                .retain(|entry| entry.unit != unit || entry.domain_id != id);
        }
        self.side
            .forwarding
            .collected
            .retain(|entry| entry.unit != unit || batch.push(entry.descriptor).is_err());
        batch
    }

    /// Whether the machine has devices behind a unit, all of them in quarantine.
    fn is_cut_off(&self, unit: u8) -> bool {
        let mut quarantined = self
            .side
            .devices
            .iter()
            .filter(|(_, device)| device.config.unit == unit)
            .map(|(_, device)| device.is_quarantined())
            .peekable();
        quarantined.peek().is_some() && quarantined.all(|is_quarantined| is_quarantined)
    }

    /// Cuts off every device of the machine behind a unit that does not confirm. What was owed
    /// stays owed, so nothing is freed before a later flush succeeds. What other units have in
    /// flight is still waited for.
    fn isolate_unit(&mut self, unit: u8) -> BindError {
        self.side
            .forwarding
            .in_flight
            .retain(|flight| flight.unit != unit);
        for shadow in self.side.shadows.iter_mut().flatten() {
            shadow.flush_failed(self.h);
        }
        let mut error = BindError::Unit;
        for index in 0..DEVICES {
            let handle = crate::viommu::host::DeviceHandle::new(index as u16);
            if self
                .side
                .devices
                .get(handle)
                .is_ok_and(|device| device.config.unit == unit)
            {
                error = self.isolate(handle);
            }
        }
        for domain in self
            .side
            .domains
            .iter_mut()
            .filter(|domain| domain.unit == unit)
        {
            domain.owes_flush = true;
        }
        error
    }
}

/// Whether hardware lifts the refusal by going on with what it has been given before.
pub(super) const fn is_transient(error: &QueueError) -> bool {
    matches!(
        error,
        QueueError::Full { .. } | QueueError::StatusWordsExhausted { .. }
    )
}

/// The range of a guest's second-stage table that an invalidation covers, for a shadow of the
/// domain-id.
fn shadow_range(what: &GuestInvalidation, own: DomainId) -> Option<PageRange> {
    match *what {
        GuestInvalidation::All => Some(EVERYTHING),
        // The PASID-wide form drops second-stage entries too (§6.5.2.4, Table 24).
        GuestInvalidation::Domain(domain_id) | GuestInvalidation::Pasid { domain_id, .. } => {
            (domain_id == own).then_some(EVERYTHING)
        }
        GuestInvalidation::DomainPages { domain_id, pages } => {
            (domain_id == own).then(|| aligned(pages))
        }
        GuestInvalidation::PasidPages { .. } => None,
    }
}

/// The range with the address bits below its size dropped, as hardware does (§6.5.2.3).
fn aligned(pages: PageRange) -> PageRange {
    match PAGE_SIZE_BYTES
        .checked_shl(u32::from(pages.order))
        .filter(|len| *len != 0)
    {
        Some(len) => PageRange {
            address: Iova::new(pages.address.as_u64() & !(len - 1)),
            ..pages
        },
        None => EVERYTHING,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: DomainId = DomainId::new(7);
    const OTHER: DomainId = DomainId::new(8);

    fn pages(address: u64, order: u8) -> PageRange {
        PageRange {
            address: Iova::new(address),
            order,
            leaf_only: true,
        }
    }

    // S42, §6.5.2.3 and §6.5.2.4.
    #[test]
    fn a_shadow_follows_every_invalidation_that_covers_its_domain() {
        let pasid = Pasid::ZERO;
        let wide = |domain_id| GuestInvalidation::Pasid { domain_id, pasid };
        let selective = |domain_id, pages| GuestInvalidation::DomainPages { domain_id, pages };
        for (what, covered) in [
            (GuestInvalidation::All, Some(EVERYTHING)),
            (GuestInvalidation::Domain(OWN), Some(EVERYTHING)),
            (GuestInvalidation::Domain(OTHER), None),
            (wide(OWN), Some(EVERYTHING)),
            (wide(OTHER), None),
            (selective(OWN, pages(0x7fff, 3)), Some(pages(0x0000, 3))),
            (selective(OWN, pages(0x8000, 3)), Some(pages(0x8000, 3))),
            (selective(OWN, pages(0x8000, 52)), Some(EVERYTHING)),
            (selective(OTHER, pages(0x8000, 3)), None),
        ] {
            assert_eq!(shadow_range(&what, OWN), covered, "{what:?}");
        }
    }
}
