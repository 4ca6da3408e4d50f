//! Guest invalidations carried to hardware, and their completion (R30).
//!
//! What the guest's descriptors cover is collected until the guest waits: by host domain-id, and for
//! shadows by range. Then the shadows are brought in step, a slice a call, and what that and the
//! descriptors owe goes to each physical unit as one batch with one wait.

use heapless::Vec;

use crate::arch::capability::CapabilityField;
use crate::arch::descriptor::{Descriptor, IotlbGranularity, PasidIotlbGranularity};
use crate::arch::id::{DomainId, Pasid};
use crate::mem::{Hypervisor, Registers};
use crate::nest::backend::shadow::{Changes, Shadow, Synchronisation};
use crate::nest::bind::{EVERYTHING, HostPort, owes_after_set_up};
use crate::nest::coalesce::{Keyed, Span, Spans, SpansFull};
use crate::nest::device_tlb;
use crate::nest::domain::{DomainKind, DomainSlot, HostDomain};
use crate::nest::units::MACHINE_UNITS;
use crate::unit::{QueueError, Ticket};
use crate::viommu::host::{BindError, GuestInvalidation, PageRange, Progress};

/// Ranges collected before a domain is invalidated whole instead. Each is two descriptors at most.
const COLLECTED: usize = 32;
/// Descriptors of one batch: what was collected, or domains to invalidate whole.
pub(super) const BATCH: usize = 2 * COLLECTED;
/// Binary order from which on a block is the whole address space.
const EVERY_PAGE: u8 = 52;

/// Guest invalidations on their way.
#[derive(Debug)]
pub(super) struct Forwarding {
    collected: Spans<Tag, COLLECTED>,
    pub(super) device_tlb: device_tlb::Collected,
    in_flight: Vec<InFlight, MACHINE_UNITS>,
    /// Since when a full queue has kept a batch back, in nanoseconds.
    owed_since: Option<u64>,
    /// Why a shadow was dropped, until the guest's wait has told.
    pub(super) dropped: Option<BindError>,
}

impl Forwarding {
    /// Nothing is on its way.
    pub(super) const fn new() -> Self {
        Self {
            collected: Spans::new(),
            device_tlb: device_tlb::Collected::new(),
            in_flight: Vec::new(),
            owed_since: None,
            dropped: None,
        }
    }
}

/// What a collected range is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tag {
    unit: u8,
    domain_id: DomainId,
    /// The domain's place, as long as it has this domain-id.
    slot: DomainSlot,
    /// First-stage addresses of a PASID, or second-stage addresses.
    pasid: Option<Pasid>,
}

impl Tag {
    /// Second-stage addresses of a domain.
    pub(super) const fn second_stage(unit: u8, domain_id: DomainId, slot: DomainSlot) -> Self {
        Self {
            unit,
            domain_id,
            slot,
            pasid: None,
        }
    }

    /// The descriptor for a block of pages.
    fn descriptor(&self, block: &PageRange) -> Descriptor {
        let (domain_id, address) = (self.domain_id, block.address.as_u64());
        match self.pasid {
            Some(pasid) => Descriptor::PasidIotlb {
                domain_id,
                pasid,
                granularity: if block.order >= EVERY_PAGE {
                    PasidIotlbGranularity::All
                } else {
                    PasidIotlbGranularity::Page {
                        address,
                        address_mask: block.order,
                        leaf_hint: block.leaf_only,
                    }
                },
            },
            None => Descriptor::Iotlb {
                granularity: IotlbGranularity::Page {
                    domain_id,
                    address,
                    address_mask: block.order,
                    leaf_hint: block.leaf_only,
                },
                drain_reads: true,
                drain_writes: true,
            },
        }
    }
}

/// What a unit is told to forget: the devices behind it are to be told, too.
#[derive(Clone, Copy)]
struct Taken {
    domain_id: DomainId,
    pasid: Option<Pasid>,
    span: Span,
}

#[derive(Debug)]
struct InFlight {
    unit: u8,
    ticket: Ticket,
}

impl<H: Hypervisor, R: Registers, const DEVICES: usize, const DOMAINS: usize, const SHADOWS: usize>
    HostPort<'_, H, R, DEVICES, DOMAINS, SHADOWS>
{
    /// Collects what a guest invalidation owes. [`Progress::Again`]: a shadow has no room for one
    /// more range, and a slice of what is pending for it was done instead.
    pub(super) fn forward(&mut self, what: &GuestInvalidation) -> Progress {
        if let GuestInvalidation::DeviceTlb {
            device,
            requests,
            pages,
        } = what
        {
            self.collect_device_tlb(*device, *requests, pages);
            return Progress::Done;
        }
        self.collect_for_nested(what);
        let limit = self.side.shadow_table_limit;
        for index in 0..SHADOWS.min(usize::from(u16::MAX)) as u16 {
            let Some(shadow) = self.side.shadows.get_mut(index) else {
                continue;
            };
            let Some(span) = shadow_span(what, shadow.domain_id) else {
                continue;
            };
            if shadow.mark(span, limit).is_ok() {
                continue;
            }
            if shadow.users > 0 {
                self.advance_shadow(index);
                return Progress::Again;
            }
            shadow.restart(limit);
        }
        Progress::Done
    }

    /// First-stage invalidations go to each nested domain of the guest's domain-id; a second-stage
    /// one drops every nested entry of the domain, whatever the range (§6.5.2.3, Table 23).
    fn collect_for_nested(&mut self, what: &GuestInvalidation) {
        let mut pages = EVERYTHING;
        let (named, pasid) = match *what {
            GuestInvalidation::All => (None, None),
            GuestInvalidation::Domain(domain_id)
            | GuestInvalidation::DomainPages { domain_id, .. } => (Some(domain_id), None),
            GuestInvalidation::Pasid { domain_id, pasid } => (Some(domain_id), Some(pasid)),
            GuestInvalidation::PasidPages {
                domain_id,
                pasid,
                pages: named,
            } => {
                pages = named;
                (Some(domain_id), Some(pasid))
            }
            GuestInvalidation::DeviceTlb { .. } => return,
        };
        let Some(guest) = named else {
            let is_nested = |domain: &HostDomain| matches!(domain.kind, DomainKind::Nested { .. });
            return self.side.domains.owe_flush_of(is_nested);
        };
        let kind = DomainKind::Nested { guest };
        let mut next = self.side.domains.first_of_kind(kind);
        for _ in 0..self.side.domains.len() {
            let Some(slot) = next else {
                return;
            };
            next = self.side.domains.next_of_kind(slot, kind);
            let Some(pasid) = pasid else {
                self.side.domains.owe_flush(slot);
                continue;
            };
            let Some(&HostDomain { unit, id, .. }) = self.side.domains.get(slot) else {
                continue;
            };
            if self.is_bound(unit, id, pasid) {
                let tag = Tag {
                    unit,
                    domain_id: id,
                    slot,
                    pasid: Some(pasid),
                };
                self.collect(tag, Span::named_by(&pages), pages.leaf_only);
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

    /// Puts a range into the next batch, joined with its neighbours; without room the whole domain
    /// is invalidated, which covers it.
    pub(super) fn collect(&mut self, tag: Tag, span: Span, leaf_only: bool) {
        let domain = self.side.domains.get(tag.slot);
        if domain.is_none_or(|domain| domain.owes_flush()) {
            return;
        }
        let statistics = &mut self.side.statistics;
        match self.side.forwarding.collected.add(Keyed {
            key: tag,
            span,
            leaf_only,
        }) {
            Ok(false) => {}
            Ok(true) => {
                statistics.ranges_merged = statistics.ranges_merged.wrapping_add(1);
            }
            Err(SpansFull) => {
                self.side.domains.owe_flush(tag.slot);
                statistics.domains_widened = statistics.domains_widened.wrapping_add(1);
                log::debug!(
                    "machine {}: domain-id {} is invalidated whole: {COLLECTED} ranges are collected",
                    self.side.number,
                    tag.domain_id
                );
            }
        }
    }

    /// Does a slice of the first shadow in use that is not in step; `false` if all are.
    fn advance_shadows(&mut self) -> bool {
        let is_behind = |shadow: &Shadow| shadow.users > 0 && !shadow.is_in_step();
        let behind = self.side.shadows.find(is_behind);
        if let Some(index) = behind {
            self.advance_shadow(index);
        }
        behind.is_some()
    }

    /// Does a slice of what is pending for a shadow, and collects what that owes. One that cannot be
    /// kept in step is emptied: everything through it faults.
    fn advance_shadow(&mut self, index: u16) {
        let synchronisation = Synchronisation {
            memory: self.memory,
            features: &self.side.guest_features,
        };
        let Some(shadow) = self.side.shadows.get_mut(index) else {
            return;
        };
        let statistics = &mut self.side.statistics;
        let changes = if shadow.empty_slice(self.h) {
            Changes::default()
        } else {
            synchronisation
                .run_slice(shadow, statistics)
                .unwrap_or_else(|error| {
                    log::error!("machine {}: shadow dropped: {error}", self.side.number);
                    shadow.empty();
                    statistics.shadows_dropped = statistics.shadows_dropped.wrapping_add(1);
                    self.side.forwarding.dropped.get_or_insert(error);
                    Changes::default()
                })
        };
        let owes_whole = shadow.detached.is_some();
        let kind = DomainKind::Shadow {
            guest: shadow.domain_id,
            shadow: index,
        };
        let mut next = self.side.domains.first_of_kind(kind);
        // One for each unit.
        for _ in 0..MACHINE_UNITS {
            let Some(slot) = next else {
                return;
            };
            next = self.side.domains.next_of_kind(slot, kind);
            let Some(&HostDomain { unit, id, .. }) = self.side.domains.get(slot) else {
                return;
            };
            if owes_whole {
                self.side.domains.owe_flush(slot);
            }
            let owes_added = self
                .units
                .get(usize::from(unit))
                .is_some_and(owes_after_set_up);
            if let Some(span) = changes.span
                && (changes.replaced > 0 || owes_added)
            {
                let tag = Tag::second_stage(unit, id, slot);
                // A page that was added may be in a new table, whose absence caching mode lets
                // hardware keep: then upper levels have to go too (§6.5.2.3). So it is with a leaf
                // that was split.
                self.collect(tag, span, changes.is_leaf_only);
            }
        }
    }

    /// Submits what was collected and brings it to its end. A unit whose devices are all in
    /// quarantine is only asked if `strict`: they reach nothing, and what it owes stays owed.
    ///
    /// # Errors
    ///
    /// [`BindError::Quarantined`] if hardware did not confirm: the machine's devices behind that
    /// unit are cut off.
    pub(super) fn complete_forwarded(&mut self, strict: bool) -> Result<Progress, BindError> {
        if self.advance_shadows()
            || self.side.shadows.give_back_tables(self.h)
            || self.side.shadows.advance_leaving(self.h)
        {
            return Ok(Progress::Again);
        }
        // Each round confirms what is in flight and submits what fits; all domains, devices, and
        // interrupt entries behind them, fit in this many rounds.
        let rounds = DOMAINS.saturating_add(DEVICES).div_ceil(BATCH);
        for _ in 0..rounds.saturating_add(5) {
            if self.confirm_in_flight()? == Progress::Wait {
                return Ok(Progress::Wait);
            }
            if !self.submit_collected(strict)? {
                return Ok(if self.side.shadows.has_tables_to_give_back() {
                    Progress::Again
                } else {
                    Progress::Done
                });
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
                    failed = Some((flight.unit, error));
                    break;
                }
            }
        }
        if let Some((unit, error)) = failed {
            let Some(device) = self.silent_device(unit, &error) else {
                return Err(self.isolate_unit(unit));
            };
            // The unit itself answers: only that device goes, and all else is asked for again.
            self.take_back(unit);
            let error = self.isolate(device);
            self.side.forwarding.dropped.get_or_insert(error);
            return Ok(Progress::Done);
        }
        if !self.side.forwarding.in_flight.is_empty() {
            self.side.forwarding.in_flight.clear();
            for shadow in self.side.shadows.iter_mut() {
                shadow.flush_confirmed(self.h);
            }
        }
        Ok(Progress::Done)
    }

    /// Submits one batch to each unit that is owed something; `false` if none is.
    fn submit_collected(&mut self, strict: bool) -> Result<bool, BindError> {
        let mut submitted = false;
        for index in 0..MACHINE_UNITS {
            let Some(unit) = self.side.used_units.get(index) else {
                break;
            };
            if !strict && self.is_cut_off(unit) {
                continue;
            }
            let Some(physical) = self.units.get(usize::from(unit)) else {
                continue;
            };
            let mut batch = self.next_batch(unit);
            let maximum_mask = physical.features().extended.maximum_handle_mask();
            let interrupts = &mut self.side.interrupts;
            let stale = interrupts.add_to_batch(unit, maximum_mask, &mut batch);
            if batch.is_empty() {
                continue;
            }
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
                    self.owe_all(unit);
                    self.side.interrupts.put_back(unit, stale);
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
        let all_submitted = !self.side.domains.owes_any();
        for shadow in self.side.shadows.iter_mut() {
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

    /// What a batch held is owed again, in the form that covers it.
    fn owe_all(&mut self, unit: u8) {
        self.side.domains.owe_flush_of(|domain| domain.unit == unit);
        self.owe_all_device_tlbs(unit);
    }

    /// Drops what is collected for a unit that no domain and no device of the machine is behind.
    pub(super) fn drop_collected_of(&mut self, unit: u8) {
        let forwarding = &mut self.side.forwarding;
        forwarding.collected.retain(|entry| entry.key.unit != unit);
    }

    /// Forgets what a unit has in flight: all of it is owed again.
    fn take_back(&mut self, unit: u8) {
        self.side
            .forwarding
            .in_flight
            .retain(|flight| flight.unit != unit);
        for shadow in self.side.shadows.iter_mut() {
            shadow.flush_failed(self.h);
        }
        self.owe_all(unit);
        self.side.interrupts.owe_all(unit);
    }

    /// Takes what one unit is owed, and the devices behind it, out of the collection, as far as a batch
    /// has room.
    fn next_batch(&mut self, unit: u8) -> Vec<Descriptor, BATCH> {
        let (mut batch, taken) = self.next_of_unit(unit);
        for &Taken {
            domain_id,
            pasid,
            span,
        } in &taken
        {
            self.owe_device_tlbs(unit, domain_id, pasid, span);
        }
        self.push_device_tlbs(unit, &mut batch);
        batch
    }

    /// As [`next_batch`](Self::next_batch), without the devices: also what they have to follow.
    fn next_of_unit(&mut self, unit: u8) -> (Vec<Descriptor, BATCH>, Vec<Taken, BATCH>) {
        let mut batch = Vec::new();
        let mut taken = Vec::new();
        self.widen_beyond_mask(unit);
        let side = &mut *self.side;
        while !batch.is_full()
            && let Some(id) = side.domains.take_owing(unit)
        {
            // There is room for it.
            _ = batch.push(Descriptor::Iotlb {
                granularity: IotlbGranularity::Domain(id),
                drain_reads: true,
                drain_writes: true,
            });
            // As many places as in the batch.
            _ = taken.push(Taken {
                domain_id: id,
                pasid: None,
                span: Span::EVERYTHING,
            });
            side.forwarding
                .collected
                .retain(|entry| entry.key.unit != unit || entry.key.domain_id != id);
        }
        side.forwarding.collected.retain(|entry| {
            if entry.key.unit != unit || batch.len().saturating_add(2) > BATCH {
                return true;
            }
            _ = taken.push(Taken {
                domain_id: entry.key.domain_id,
                pasid: entry.key.pasid,
                span: entry.span,
            });
            let (first, second) = entry.span.blocks();
            for block in [Some(first), second].into_iter().flatten() {
                let block = PageRange {
                    leaf_only: entry.leaf_only,
                    ..block
                };
                // There is room for two.
                _ = batch.push(entry.key.descriptor(&block));
            }
            false
        });
        (batch, taken)
    }

    /// Has domains invalidated whole where a joined range is longer than the unit can name: an IOTLB
    /// descriptor is limited by `CAP.MAMV`, a PASID-based one is not (§6.5.2.3, §6.5.2.4).
    fn widen_beyond_mask(&mut self, unit: u8) {
        let Some(physical) = self.units.get(usize::from(unit)) else {
            return;
        };
        let capability = physical.features().capability;
        let side = &mut *self.side;
        side.forwarding.collected.retain(|entry| {
            let tag = &entry.key;
            let is_named = tag.pasid.is_some()
                || capability.has(CapabilityField::PAGE_SELECTIVE_INVALIDATION)
                    && entry.span.blocks().0.order <= capability.maximum_address_mask();
            if tag.unit == unit && !is_named {
                // A domain that went since has been invalidated whole.
                let domain = side.domains.get(tag.slot);
                if domain.is_some_and(|domain| domain.unit == unit && domain.id == tag.domain_id) {
                    side.domains.owe_flush(tag.slot);
                }
                return false;
            }
            true
        });
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
        self.take_back(unit);
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

/// The pages of a guest's second-stage table that an invalidation covers, for a shadow of the
/// domain-id.
fn shadow_span(what: &GuestInvalidation, own: DomainId) -> Option<Span> {
    match *what {
        GuestInvalidation::All => Some(Span::EVERYTHING),
        // The PASID-wide form drops second-stage entries too (§6.5.2.4, Table 24).
        GuestInvalidation::Domain(domain_id) | GuestInvalidation::Pasid { domain_id, .. } => {
            (domain_id == own).then_some(Span::EVERYTHING)
        }
        GuestInvalidation::DomainPages { domain_id, pages } => {
            (domain_id == own).then(|| Span::named_by(&pages))
        }
        GuestInvalidation::PasidPages { .. } | GuestInvalidation::DeviceTlb { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::address::Iova;

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
            (GuestInvalidation::All, Some(Span::EVERYTHING)),
            (GuestInvalidation::Domain(OWN), Some(Span::EVERYTHING)),
            (GuestInvalidation::Domain(OTHER), None),
            (wide(OWN), Some(Span::EVERYTHING)),
            (wide(OTHER), None),
            (
                selective(OWN, pages(0x7fff, 3)),
                Some(Span { first: 0, last: 7 }),
            ),
            (
                selective(OWN, pages(0x8000, 3)),
                Some(Span { first: 8, last: 15 }),
            ),
            (selective(OWN, pages(0x8000, 52)), Some(Span::EVERYTHING)),
            (selective(OTHER, pages(0x8000, 3)), None),
        ] {
            assert_eq!(shadow_span(&what, OWN), covered, "{what:?}");
        }
    }
}
