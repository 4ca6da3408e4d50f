//! One binding's way from state to state, transactionally (DESIGN section 6, R20, R22).
//!
//! ```text
//!             reserve, publish                    withdraw, submit
//! Blocked ───────────────────────▶ Bound ───────────────────────────▶ Leaving
//!    ▲                             │   ▲                                │   │
//!    │                             └───┘ one 8-byte store, submit       │   │ not confirmed
//!    ├──────────────── confirmed: entry zeroed, domain-id released ─────┘   ▼
//!    └──────────────── a retry is confirmed for the whole device ────── Quarantined
//! ```
//!
//! A change of a bound entry reserves all that the new one needs before the old one is touched.
//! Nothing that the old entry used is reused before hardware has confirmed its invalidation.

use heapless::Vec;

use crate::arch::descriptor::Descriptor;
use crate::arch::features::TableFeatures;
use crate::arch::id::{Pasid, SourceId};
use crate::arch::interrupt::InterruptIndex;
use crate::arch::pasid::PasidEntry;
use crate::mem::{Hypervisor, Owner, Registers};
use crate::nest::backend::{Target, nested};
use crate::nest::device::{DeviceList, Quarantine};
use crate::nest::device_tlb;
use crate::nest::domain::{DomainKind, DomainSlot, DomainTable};
use crate::nest::interrupt::MachineInterrupts;
use crate::nest::invalidate::{Forwarding, is_transient};
use crate::nest::machine::MachineConfig;
use crate::nest::memory::MachineMemory;
use crate::nest::offer::Offer;
use crate::nest::reserve::Reserved;
use crate::nest::shadows::Shadows;
use crate::nest::statistics::MachineStatistics;
use crate::nest::switches;
use crate::nest::units::UsedUnits;
use crate::unit::{QueueError, StormLimit, Ticket, Unit, UnitError};
use crate::viommu::KeyedHash;
use crate::viommu::host::{
    BindError, Desired, DeviceHandle, GuestInterrupt, GuestInvalidation, Host, HostState,
    InterruptError, PageRange, Progress,
};

/// The whole input range of a table.
pub(super) const EVERYTHING: PageRange = PageRange {
    address: crate::arch::address::Iova::new(0),
    order: 63,
    leaf_only: false,
};

/// Where a binding that holds something stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The hardware entry is present.
    Bound,
    /// The entry is withdrawn; its invalidation is not confirmed yet.
    Leaving,
    /// Hardware never confirmed: the device is quarantined and what the entry used is kept.
    Quarantined,
}

/// A hardware entry. What it does is said by its domain and by the entry itself.
#[derive(Debug)]
pub struct Bound {
    stage: Stage,
    /// Its host domain-id.
    domain: DomainSlot,
    /// The invalidation that the last change owes.
    confirmation: Confirmation,
}

impl Bound {
    /// An entry that nothing older is known of.
    pub(super) const fn new(domain: DomainSlot) -> Self {
        Self {
            stage: Stage::Bound,
            domain,
            confirmation: Confirmation::Settled,
        }
    }
}

/// What an entry that is not published yet holds, while hardware forgets the one before it. There
/// is one for a machine, because bindings change one after another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reservation {
    device: DeviceHandle,
    pasid: Pasid,
    /// What the entry will do.
    target: Target,
    /// Its host domain-id.
    domain: DomainSlot,
}

/// How far the invalidation that a change owes has come.
#[derive(Debug)]
enum Confirmation {
    /// Hardware knows nothing older.
    Settled,
    /// Not submitted yet, since this moment.
    Owed(Moment),
    /// On its way.
    Submitted(Ticket),
}

/// A moment in nanoseconds, of no alignment.
#[derive(Clone, Copy, Debug)]
struct Moment([u8; 8]);

impl Moment {
    const fn new(nanoseconds: u64) -> Self {
        Self(nanoseconds.to_ne_bytes())
    }

    const fn nanoseconds(self) -> u64 {
        u64::from_ne_bytes(self.0)
    }
}

/// What the host side keeps of one binding: 16 bytes, because there is one in every slot of the
/// PASID cache.
#[derive(Debug, Default)]
pub enum HostBinding {
    /// No hardware entry, nothing held.
    #[default]
    Blocked,
    /// A hardware entry, or what is left of one.
    Held(Bound),
}

impl HostState for HostBinding {
    const BLOCKED: Self = Self::Blocked;
}

impl HostBinding {
    /// What it holds, in a stage.
    fn held(&mut self, stage: Stage) -> Option<&mut Bound> {
        match self {
            Self::Held(bound) if bound.stage == stage => Some(bound),
            _ => None,
        }
    }
}

/// The host side of one machine: everything but its memory and its virtual unit.
#[derive(Debug)]
pub(super) struct HostSide<const DEVICES: usize, const DOMAINS: usize, const SHADOWS: usize> {
    /// The embedder's number for the machine's virtual unit.
    pub(super) number: u32,
    pub(super) owner: Owner,
    pub(super) offer: Offer,
    pub(super) guest_features: TableFeatures,
    pub(super) shadow_table_limit: u32,
    pub(super) devices: DeviceList<DEVICES>,
    pub(super) domains: DomainTable<DOMAINS>,
    pub(super) shadows: Shadows<SHADOWS>,
    pub(super) forwarding: Forwarding,
    pub(super) interrupts: MachineInterrupts,
    /// The units that its devices are behind.
    pub(super) used_units: UsedUnits,
    pub(super) reservation: Option<Reservation>,
    pub(super) storm_limit: StormLimit,
    /// Devices whose faults hardware does not record for the time being.
    pub(super) silenced_devices: usize,
    pub(super) statistics: MachineStatistics,
}

impl<const DEVICES: usize, const DOMAINS: usize, const SHADOWS: usize>
    HostSide<DEVICES, DOMAINS, SHADOWS>
{
    /// That of a machine that has yet to be started.
    pub(super) const fn vacant() -> Self {
        Self {
            number: 0,
            owner: Owner::HYPERVISOR,
            offer: Offer::NOTHING,
            guest_features: TableFeatures::NOTHING,
            shadow_table_limit: 0,
            devices: DeviceList::new(),
            domains: DomainTable::vacant(),
            shadows: Shadows::new(),
            forwarding: Forwarding::new(),
            interrupts: MachineInterrupts::vacant(),
            used_units: UsedUnits::new(),
            reservation: None,
            storm_limit: StormLimit::DEFAULT,
            silenced_devices: 0,
            statistics: MachineStatistics::NONE,
        }
    }

    /// Makes it that of a machine without devices, in its place. What it was of another machine before
    /// has been given back.
    pub(super) fn start(&mut self, config: &MachineConfig, offer: Offer) {
        self.number = config.number;
        self.owner = config.owner;
        self.guest_features = TableFeatures::from(&offer.features);
        self.offer = offer;
        self.shadow_table_limit = config.shadow_table_limit;
        // Devices and shadows are gone with the machine before.
        self.domains
            .start(KeyedHash::new(config.hash_seed).another(19));
        self.forwarding = Forwarding::new();
        self.used_units = UsedUnits::new();
        self.reservation = None;
        self.storm_limit = config.policy.storm_limit;
        self.silenced_devices = 0;
        self.statistics = MachineStatistics::NONE;
    }
}

/// The host side together with what it acts on, for the length of one call.
pub(super) struct HostPort<
    'a,
    H,
    R,
    const DEVICES: usize,
    const DOMAINS: usize,
    const SHADOWS: usize,
> {
    pub(super) side: &'a mut HostSide<DEVICES, DOMAINS, SHADOWS>,
    pub(super) h: &'a H,
    pub(super) units: &'a [Unit<R>],
    pub(super) memory: MachineMemory<'a, H>,
}

impl<
    'a,
    H: Hypervisor,
    R: Registers,
    const DEVICES: usize,
    const DOMAINS: usize,
    const SHADOWS: usize,
> Host for HostPort<'a, H, R, DEVICES, DOMAINS, SHADOWS>
{
    type Binding = HostBinding;
    type Memory = MachineMemory<'a, H>;

    fn memory(&self) -> &Self::Memory {
        &self.memory
    }

    fn bind(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        binding: &mut HostBinding,
        desired: &Desired,
    ) -> Result<Progress, BindError> {
        let result = self.make_as_desired(device, pasid, binding, desired);
        if let Err(error) = &result {
            self.side.statistics.bind_errors = self.side.statistics.bind_errors.wrapping_add(1);
            let source_id = self
                .side
                .devices
                .get(device)
                .map_or(SourceId::from_u16(0), |device| device.config.source_id);
            log::warn!(
                "machine {}: {source_id} PASID {pasid} blocked: {error}",
                self.side.number
            );
        }
        // What the change left behind goes before the next one.
        if matches!(result, Ok(Progress::Done)) && self.side.shadows.advance_leaving(self.h) {
            return Ok(Progress::Again);
        }
        result
    }

    fn invalidate(&mut self, what: &GuestInvalidation) -> Result<Progress, BindError> {
        Ok(self.forward(what))
    }

    fn flush(&mut self) -> Result<Progress, BindError> {
        let progress = self.complete_forwarded(false)?;
        // Told once hardware has confirmed: the guest's wait is not cut short by it.
        if progress == Progress::Done
            && let Some(error) = self.side.forwarding.dropped.take()
        {
            return Err(error);
        }
        Ok(progress)
    }

    fn interrupt_entries(&self) -> u32 {
        self.interrupt_count()
    }

    fn set_interrupt_entry(
        &mut self,
        index: InterruptIndex,
        desired: Option<&GuestInterrupt>,
    ) -> Result<(), InterruptError> {
        self.follow_guest_interrupt(index, desired)
    }

    fn deliver_interrupt(&mut self, address: u64, data: u32) {
        self.h.deliver_interrupt(self.side.number, address, data);
    }
}

impl<
    'a,
    H: Hypervisor,
    R: Registers,
    const DEVICES: usize,
    const DOMAINS: usize,
    const SHADOWS: usize,
> HostPort<'a, H, R, DEVICES, DOMAINS, SHADOWS>
{
    /// Pauses the processor in a call that waits for hardware.
    pub(super) fn pause(&mut self) {
        let pauses = &mut self.side.statistics.pauses;
        *pauses = pauses.wrapping_add(1);
        self.h.pause();
    }

    /// The physical unit that a device is behind.
    pub(super) fn unit_of(&self, device: DeviceHandle) -> Result<(u8, &'a Unit<R>), BindError> {
        let index = self.side.devices.get(device)?.config.unit;
        let unit = self
            .units
            .get(usize::from(index))
            .ok_or(BindError::UnknownDevice(device))?;
        Ok((index, unit))
    }

    fn make_as_desired(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        binding: &mut HostBinding,
        desired: &Desired,
    ) -> Result<Progress, BindError> {
        let assigned = self.side.devices.get(device)?;
        let source_id = assigned.config.source_id;
        match assigned.quarantine {
            Quarantine::None => {}
            Quarantine::Confirmed if *desired == Desired::Blocked => {
                return self.give_back(device, pasid, binding);
            }
            _ => {
                self.drop_reservation(device, pasid);
                self.give_up_builds(&Ok(None));
                return Err(BindError::Quarantined { source_id });
            }
        }
        if self.confirm(device, pasid, binding)? == Progress::Wait {
            return Ok(Progress::Wait);
        }
        let wanted = Target::of(desired, self.side.offer.backend, source_id, pasid);
        self.give_up_builds(&wanted);
        if let Some(bound) = binding.held(Stage::Bound) {
            if let Ok(Some(target)) = &wanted
                && self.does(device, pasid, bound, target)?
            {
                return Ok(Progress::Done);
            }
            if self.replace_in_place(device, pasid, bound, &wanted)? {
                return self.confirm(device, pasid, binding);
            }
            // All that the new entry needs is there before the old one is touched.
            let refusal = match (self.reserve(device, pasid, wanted), wanted) {
                (Ok(Reserved::Unfinished), _) => return Ok(Progress::Again),
                (Ok(Reserved::Entry(next, _)), Ok(Some(target))) => {
                    self.keep_reservation(device, pasid, target, next.domain);
                    None
                }
                (Ok(_), _) => None,
                (Err(error), _) => Some(error),
            };
            self.withdraw(device, pasid, binding)?;
            if self.confirm(device, pasid, binding)? == Progress::Wait {
                return Ok(Progress::Wait);
            }
            if let Some(error) = refusal {
                return Err(error);
            }
        }
        if !matches!(binding, HostBinding::Blocked) {
            return Ok(Progress::Done);
        }
        if let Some(next) = self.take_reservation(device, pasid) {
            let keeps = matches!(&wanted, Ok(Some(target)) if *target == next.target)
                && self.side.domains.get(next.domain).is_some_and(|domain| {
                    // Others may have been bound during the wait.
                    !self.conflicts(device, pasid, domain.id, &next.target)
                });
            if keeps && let Ok(entry) = self.entry_for(device, &next.target, next.domain) {
                return self.publish(device, pasid, binding, Bound::new(next.domain), &entry);
            }
            self.release(device, next.domain);
        }
        match self.reserve(device, pasid, wanted)? {
            Reserved::Entry(bound, entry) => self.publish(device, pasid, binding, bound, &entry),
            Reserved::Unfinished => Ok(Progress::Again),
            Reserved::Nothing => Ok(Progress::Done),
        }
    }

    /// Keeps what the next entry of a binding needs while hardware forgets the one before. Another
    /// binding that was in the midst of this makes its reservation anew.
    fn keep_reservation(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        target: Target,
        domain: DomainSlot,
    ) {
        let before = self.side.reservation.replace(Reservation {
            device,
            pasid,
            target,
            domain,
        });
        if let Some(before) = before {
            self.release(before.device, before.domain);
        }
    }

    /// Takes out what is kept for the next entry of a binding.
    fn take_reservation(&mut self, device: DeviceHandle, pasid: Pasid) -> Option<Reservation> {
        let reservation = &mut self.side.reservation;
        reservation.take_if(|kept| kept.device == device && kept.pasid == pasid)
    }

    /// Gives back what is kept for the next entry of a binding.
    fn drop_reservation(&mut self, device: DeviceHandle, pasid: Pasid) {
        if let Some(next) = self.take_reservation(device, pasid) {
            self.release(device, next.domain);
        }
    }

    /// Whether a present entry does what a target wants. Its host domain-id tags one thing only; in
    /// a nested entry the guest's root and flags are to be compared beside it.
    fn does(
        &self,
        device: DeviceHandle,
        pasid: Pasid,
        bound: &Bound,
        target: &Target,
    ) -> Result<bool, BindError> {
        let Some(domain) = self.side.domains.get(bound.domain) else {
            return Ok(false);
        };
        Ok(match (target, domain.kind) {
            (Target::MachineMemory, DomainKind::Machine) => true,
            (Target::Nested(wanted), DomainKind::Nested { guest }) => {
                let (_, unit) = self.unit_of(device)?;
                let tables = &self.side.devices.get(device)?.tables;
                wanted.domain_id == guest
                    && unit.read_entry(self.h, tables, pasid)
                        == Some(self.entry_for(device, target, bound.domain)?)
            }
            (
                Target::Shadow {
                    domain_id,
                    root,
                    width,
                },
                DomainKind::Shadow { shadow, .. },
            ) => self
                .side
                .shadows
                .get(shadow)
                .is_some_and(|shadow| shadow.serves(*domain_id, *root, *width)),
            _ => false,
        })
    }

    /// Brings the invalidation that the last change owes to its end, if there is one.
    fn confirm(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        binding: &mut HostBinding,
    ) -> Result<Progress, BindError> {
        let bound = match binding {
            HostBinding::Held(bound) if bound.stage != Stage::Quarantined => bound,
            _ => return Ok(Progress::Done),
        };
        match self.advance(device, pasid, bound) {
            Ok(Progress::Done) => {}
            Ok(unfinished) => return Ok(unfinished),
            Err(error) => {
                log::error!(
                    "machine {}: PASID {pasid}: not confirmed: {error}",
                    self.side.number
                );
                return Err(self.quarantine(device, pasid, binding));
            }
        }
        if let Some(bound) = binding.held(Stage::Leaving) {
            let slot = bound.domain;
            let (_, unit) = self.unit_of(device)?;
            unit.clear_entry(self.h, &self.side.devices.get(device)?.tables, pasid);
            *binding = HostBinding::Blocked;
            self.release(device, slot);
        }
        Ok(Progress::Done)
    }

    /// Submits what a change owes, or asks after it.
    fn advance(
        &self,
        device: DeviceHandle,
        pasid: Pasid,
        bound: &mut Bound,
    ) -> Result<Progress, QueueError> {
        let (Ok((_, unit)), Ok(assigned), Some(domain)) = (
            self.unit_of(device),
            self.side.devices.get(device),
            self.side.domains.get(bound.domain),
        ) else {
            return Ok(Progress::Done);
        };
        if let Confirmation::Owed(since) = bound.confirmation {
            let owed = unit.entry_invalidation(&assigned.tables, pasid, domain.id);
            // The device refills its TLB from the unit's caches, so it comes last.
            let device_tlb = device_tlb::of_entry(unit, assigned, pasid);
            let mut batch = Vec::<Descriptor, 5>::new();
            for descriptor in owed.iter().copied().chain(device_tlb.into_iter().flatten()) {
                // There is room for five.
                _ = batch.push(descriptor);
            }
            match unit.submit(self.h, &batch) {
                Ok(ticket) => bound.confirmation = Confirmation::Submitted(ticket),
                // Others fill the queue; hardware empties it, or stops altogether.
                Err(error) if is_transient(&error) && !self.is_late(unit, since.nanoseconds()) => {
                    return Ok(Progress::Wait);
                }
                Err(error) => return Err(error),
            }
        }
        if let Confirmation::Submitted(ticket) = &bound.confirmation {
            if !unit.poll(self.h, ticket)? {
                return Ok(Progress::Wait);
            }
            bound.confirmation = Confirmation::Settled;
        }
        Ok(Progress::Done)
    }

    /// Whether something owed since a moment has waited longer than the unit's time-out.
    pub(super) fn is_late(&self, unit: &Unit<R>, since: u64) -> bool {
        self.h.now_nanoseconds().saturating_sub(since) > unit.submission_timeout()
    }

    /// Publishes a reserved entry.
    fn publish(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        binding: &mut HostBinding,
        mut bound: Bound,
        entry: &PasidEntry,
    ) -> Result<Progress, BindError> {
        let assigned = self.side.devices.get(device)?;
        let source_id = assigned.config.source_id;
        let (_, unit) = self.unit_of(device)?;
        if let Err(error) = unit.publish_entry(self.h, &assigned.tables, pasid, entry) {
            self.release(device, bound.domain);
            *binding = HostBinding::Blocked;
            return Err(refused_by_unit(error));
        }
        self.side.statistics.binds = self.side.statistics.binds.wrapping_add(1);
        log::info!(
            "machine {}: bind {source_id} PASID {pasid} as type {} domain-id {}",
            self.side.number,
            entry.translation_type_field(),
            entry.domain_id()
        );
        if owes_after_set_up(unit) {
            bound.confirmation = Confirmation::Owed(Moment::new(self.h.now_nanoseconds()));
        }
        *binding = HostBinding::Held(bound);
        self.confirm(device, pasid, binding)
    }

    /// Takes a present entry away by one store; [`confirm`](Self::confirm) does the rest.
    fn withdraw(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        binding: &mut HostBinding,
    ) -> Result<(), BindError> {
        let assigned = self.side.devices.get(device)?;
        let source_id = assigned.config.source_id;
        let (_, unit) = self.unit_of(device)?;
        let Some(bound) = binding.held(Stage::Bound) else {
            return Ok(());
        };
        unit.withdraw_entry(self.h, &assigned.tables, pasid);
        bound.confirmation = Confirmation::Owed(Moment::new(self.h.now_nanoseconds()));
        bound.stage = Stage::Leaving;
        self.side.statistics.unbinds = self.side.statistics.unbinds.wrapping_add(1);
        log::info!(
            "machine {}: unbind {source_id} PASID {pasid}",
            self.side.number
        );
        Ok(())
    }

    /// Changes a nested entry by one 8-byte store where the architecture allows it (§6.2.3.1):
    /// only the first-stage quadword differs, and nobody else uses its domain-id and PASID.
    fn replace_in_place(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        bound: &mut Bound,
        wanted: &Result<Option<Target>, BindError>,
    ) -> Result<bool, BindError> {
        let Ok(Some(target @ Target::Nested(new))) = wanted else {
            return Ok(false);
        };
        let kind = self
            .side
            .domains
            .get(bound.domain)
            .map(|domain| domain.kind);
        let guest = new.domain_id;
        if kind != Some(DomainKind::Nested { guest }) {
            return Ok(false);
        }
        let entry = self.entry_for(device, target, bound.domain)?;
        let assigned = self.side.devices.get(device)?;
        let source_id = assigned.config.source_id;
        let (_, unit) = self.unit_of(device)?;
        let Some(old) = unit.read_entry(self.h, &assigned.tables, pasid) else {
            return Ok(false);
        };
        if !nested::differs_in_one_quadword(&old, &entry)
            || self
                .entries_of_others(device, pasid, entry.domain_id())
                .next()
                .is_some()
        {
            return Ok(false);
        }
        let quadword = entry
            .quadwords()
            .get(nested::FIRST_STAGE_QUADWORD)
            .copied()
            .unwrap_or_default();
        if unit
            .replace_quadword(self.h, &assigned.tables, pasid, quadword)
            .is_err()
        {
            return Ok(false);
        }
        log::info!(
            "machine {}: replace {source_id} PASID {pasid} in place",
            self.side.number
        );
        self.side.statistics.replaced_in_place =
            self.side.statistics.replaced_in_place.wrapping_add(1);
        bound.confirmation = Confirmation::Owed(Moment::new(self.h.now_nanoseconds()));
        Ok(true)
    }

    /// Puts the device of a binding into quarantine and keeps what the binding holds.
    fn quarantine(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        binding: &mut HostBinding,
    ) -> BindError {
        self.drop_reservation(device, pasid);
        if let HostBinding::Held(bound) = binding {
            bound.stage = Stage::Quarantined;
        }
        self.isolate(device)
    }

    /// Has hardware confirm that it forgot a quarantined device, if the device is one. Each call
    /// after a failure asks anew.
    ///
    /// # Errors
    ///
    /// [`BindError::Quarantined`] if hardware did not confirm; everything is kept.
    pub(super) fn confirm_quarantine(
        &mut self,
        device: DeviceHandle,
    ) -> Result<Progress, BindError> {
        let (_, unit) = self.unit_of(device)?;
        let assigned = self.side.devices.get_mut(device)?;
        let source_id = assigned.config.source_id;
        if matches!(assigned.quarantine, Quarantine::Unconfirmed) {
            match unit.forget_device(self.h, &assigned.tables) {
                Ok(ticket) => assigned.quarantine = Quarantine::Confirming(ticket),
                Err(error) => {
                    log::error!("machine {}: {source_id}: {error}", self.side.number);
                    return Err(BindError::Quarantined { source_id });
                }
            }
        }
        let Quarantine::Confirming(ticket) = &assigned.quarantine else {
            return Ok(Progress::Done);
        };
        match unit.poll(self.h, ticket) {
            Ok(false) => Ok(Progress::Wait),
            Ok(true) => {
                assigned.quarantine = Quarantine::Confirmed;
                log::info!(
                    "machine {}: {source_id}: hardware has forgotten it",
                    self.side.number
                );
                Ok(Progress::Done)
            }
            Err(error) => {
                assigned.quarantine = Quarantine::Unconfirmed;
                log::error!("machine {}: {source_id}: {error}", self.side.number);
                Err(BindError::Quarantined { source_id })
            }
        }
    }

    /// Takes away a binding of a device that hardware has forgotten, context entry and all: nothing
    /// more is owed for it.
    fn give_back(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        binding: &mut HostBinding,
    ) -> Result<Progress, BindError> {
        self.drop_reservation(device, pasid);
        let HostBinding::Held(bound) = core::mem::take(binding) else {
            return Ok(Progress::Done);
        };
        let (_, unit) = self.unit_of(device)?;
        let tables = &self.side.devices.get(device)?.tables;
        unit.withdraw_entry(self.h, tables, pasid);
        unit.clear_entry(self.h, tables, pasid);
        self.release(device, bound.domain);
        Ok(Progress::Done)
    }

    /// Cuts a device off: its context entry goes by one store, bus mastering with it.
    pub(super) fn isolate(&mut self, device: DeviceHandle) -> BindError {
        let index = self
            .side
            .devices
            .get(device)
            .map(|assigned| assigned.config.unit)
            .unwrap_or_default();
        let Ok(assigned) = self.side.devices.get_mut(device) else {
            return BindError::UnknownDevice(device);
        };
        let source_id = assigned.config.source_id;
        if !assigned.is_quarantined() {
            assigned.quarantine = Quarantine::Unconfirmed;
            if let Some(unit) = self.units.get(usize::from(index)) {
                // The device stays cut off whatever comes of it; a retry asks.
                match unit.block_device(self.h, &assigned.tables) {
                    // Its own TLB is not asked now: it may be what did not answer.
                    Ok(_) if assigned.tables.device_tlb().is_some() => {}
                    Ok(ticket) => assigned.quarantine = Quarantine::Confirming(ticket),
                    Err(error) => log::error!("{source_id}: {error}"),
                }
            }
            self.drop_device_tlb(device);
            self.clear_interrupts_of(device);
            if let Ok(assigned) = self.side.devices.get(device)
                && let Err(error) = switches::turn_off(self.h, &assigned.config)
            {
                log::error!("{source_id}: {error}");
            }
            self.h.set_bus_master(source_id, false);
            self.side.statistics.quarantines = self.side.statistics.quarantines.wrapping_add(1);
            log::error!("machine {}: {source_id} is quarantined", self.side.number);
        }
        BindError::Quarantined { source_id }
    }
}

/// Whether new entries and mappings owe an invalidation: where absent ones are cached, and where it
/// stands for the write-buffer flush that hardware does before it (`CAP.RWBF`, §6.8).
pub(super) fn owes_after_set_up<R: Registers>(unit: &Unit<R>) -> bool {
    unit.needs_invalidation_after_set_up()
        || unit.features().capability.requires_write_buffer_flush()
}

/// What the guest side learns of a physical unit's refusal; the details go to the log.
pub(super) fn refused_by_unit(error: UnitError) -> BindError {
    match error {
        UnitError::Frames(error) => BindError::Frames(error),
        error => {
            log::error!("physical unit: {error}");
            BindError::Unit
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nest::VirtualMachine;
    use crate::viommu::VirtualUnit;

    #[test]
    fn each_device_domain_and_shadow_costs_what_is_documented() {
        // `VirtualMachine`, Memory.
        let one = size_of::<VirtualMachine<1, 1, 1, 1>>();
        let each = |size: usize| (size - one) / 1000;
        assert_eq!(
            (
                each(size_of::<VirtualMachine<1001, 1, 1, 1>>()),
                each(size_of::<VirtualMachine<1, 1001, 1, 1>>()),
                each(size_of::<VirtualMachine<1, 1, 1001, 1>>()),
                each(size_of::<VirtualMachine<1, 1, 1, 1001>>()),
            ),
            (328, 124, 24, 424)
        );
        assert!(one <= 19 << 10, "{one}");
    }

    #[test]
    fn a_cached_binding_costs_at_most_128_bytes() {
        // Requirements, cost targets: memory. The rest of the unit does not grow with its bindings.
        assert_eq!((size_of::<Ticket>(), size_of::<HostBinding>()), (12, 16));
        let one = size_of::<VirtualUnit<HostBinding, 1, 1>>();
        for (size, bindings) in [
            (size_of::<VirtualUnit<HostBinding, 1, 4096>>(), 4096),
            (size_of::<VirtualUnit<HostBinding, 1, 65536>>(), 65536),
        ] {
            let growth = size - one;
            assert!(growth.abs_diff(124 * (bindings - 1)) < 8, "{growth}");
        }
    }
}
