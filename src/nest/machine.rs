//! The virtual machine: its memory, its devices, its virtual unit, and the progress of all three.
//!
//! Inside: messages for its devices, and what becomes of those that hardware blocked.

use core::fmt;

use crate::arch::address::{AddressWidth, Gpa, Hpa};
use crate::arch::capability::ExtendedCapability;
use crate::arch::register::TranslationTableMode;
use crate::mem::{FrameChain, FrameError, Hypervisor, Owner, Registers};
use crate::nest::admission;
use crate::nest::bind::{HostBinding, HostSide, owes_after_set_up};
use crate::nest::device::{
    AssignError, AssignedDevice, DeviceConfig, InterruptIsolation, Quarantine, Storm,
};
use crate::nest::edited_memory::EditedMemory;
use crate::nest::memory::{MachineMemory, PhysicalRange, ProtectedRanges};
use crate::nest::offer::{Backend, Offer, OfferError, OnReadOnlyMemory, Policy, offer};
use crate::nest::statistics::MachineStatistics;
use crate::nest::switches;
use crate::nest::units::{MACHINE_UNITS, MAXIMUM_UNITS};
use crate::paging::second_stage::Dismantling;
use crate::paging::{
    self, MapError, OnPartialLeaf, Rights, SecondStage, SecondStageConfig, StaleMappings,
};
use crate::unit::Unit;
use crate::unit::discovery::ReservedRegion;
use crate::viommu::host::{BindError, DeviceHandle, Progress};
use crate::viommu::{
    ConfigError, DeviceError, DeviceKind, Poll, STATE_LEN_BYTES, StateError, VirtualUnit,
    VirtualUnitConfig, VirtualUnitStatistics,
};

/// Looks at hardware before a strict call gives up although the clock stands still.
const MAXIMUM_LOOKS: u32 = 1 << 24;

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// The embedder's number for the machine's virtual unit, as
    /// [`Platform::deliver_interrupt`](crate::mem::Platform::deliver_interrupt) gets it.
    pub number: u32,
    /// Who the machine's frames are charged to; the owner's quota bounds its tables and shadows.
    pub owner: Owner,
    /// What the guest may be shown.
    pub policy: Policy,
    /// What the machine's devices may never reach.
    pub protected: ProtectedRanges,
    /// Secret of the PASID cache's hash, so that a guest cannot choose PASIDs that collide.
    pub hash_seed: u64,
    /// Guest table pages that one synchronisation of a shadow may read.
    pub shadow_table_limit: u32,
}

/// Why a machine, or a change to its memory, was refused. Nothing has changed then, except where
/// a variant says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MachineError {
    /// More physical units than an index can name.
    TooManyUnits {
        /// How many were given.
        count: usize,
        /// How many can be named.
        capacity: usize,
    },
    /// Nothing can be offered to the guest.
    Offer(OfferError),
    /// The virtual unit cannot be made so.
    VirtualUnit(ConfigError),
    /// The units have no second stage in common as the machine needs it.
    SecondStage(paging::ConfigError),
    /// Nobody notes which pages are written: the machine was made without
    /// [`Policy::track_dirty_pages`].
    DirtyPagesNotTracked,
    /// No frame for the second stage.
    Frames(FrameError),
    /// The range touches what no device may reach.
    Protected {
        /// The protected range.
        range: PhysicalRange,
    },
    /// Firmware reserves the memory for a device that the machine has.
    ReservedMemory {
        /// The memory.
        region: ReservedRegion,
    },
    /// The memory is to be read-only, but devices would write to it
    /// ([`OnReadOnlyMemory::Refuse`]).
    ReadOnlyUnderErratum {
        /// Its first guest-physical address.
        guest: Gpa,
    },
    /// The second stage refused the change.
    Map(MapError),
    /// Hardware did not confirm that the old mapping is gone: the memory must not be used for
    /// anything else. The devices are quarantined, the mapping is removed.
    NotConfirmed(BindError),
    /// The machine is being destroyed.
    BeingDestroyed,
    /// There is a machine in its place already.
    InUse,
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyUnits { count, capacity } => {
                write!(f, "{count} units, at most {capacity} can be named")
            }
            Self::Offer(error) => write!(f, "nothing can be offered: {error}"),
            Self::VirtualUnit(error) => write!(f, "virtual unit: {error}"),
            Self::SecondStage(error) => write!(f, "second stage: {error}"),
            Self::DirtyPagesNotTracked => f.write_str("dirty pages are not tracked"),
            Self::Frames(error) => write!(f, "no frames: {error}"),
            Self::Protected { range } => {
                write!(f, "the range touches {}..{}", range.start, range.end)
            }
            Self::ReservedMemory { region } => {
                let base = region.base();
                write!(f, "a device of the machine needs reserved memory at {base}")
            }
            Self::ReadOnlyUnderErratum { guest } => {
                write!(f, "read-only memory at {guest} would be written")
            }
            Self::Map(error) => write!(f, "second stage: {error}"),
            Self::NotConfirmed(error) => write!(f, "memory is not free to use: {error}"),
            Self::BeingDestroyed => f.write_str("the machine is being destroyed"),
            Self::InUse => f.write_str("there is a machine already"),
        }
    }
}

impl core::error::Error for MachineError {}

impl From<MapError> for MachineError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// A virtual machine with a virtual VT-d unit.
///
/// `DEVICES` assigned devices, `BINDINGS` cached PASID entries, `DOMAINS` host domain-ids and
/// `SHADOWS` shadow tables at most.
///
/// Memory: 124 bytes a binding, 328 a device, 24 a domain-id, 424 a shadow, and about 19 KiB.
/// [`new`](Self::new) needs a stack that holds it while it is made: with thousands of bindings a
/// [`MachineStore`](crate::nest::MachineStore) makes it in its place.
///
/// Locking: the embedder serialises calls for one machine, and passes the same units in the same
/// order each time. No call waits for hardware, except those that change its memory
/// ([`map_memory`](Self::map_memory), [`unmap_memory`](Self::unmap_memory) and the like),
/// [`confirm_unmapped`](Self::confirm_unmapped), [`unassign`](Self::unassign) and
/// [`destroy`](Self::destroy), which wait no longer than the
/// units' time-outs for each device.
#[derive(Debug)]
pub struct VirtualMachine<
    const DEVICES: usize,
    const BINDINGS: usize,
    const DOMAINS: usize,
    const SHADOWS: usize,
> {
    pub(super) memory: SecondStage<Gpa>,
    /// What hardware may still use, until everything of the machine is flushed.
    pub(super) unconfirmed: Option<StaleMappings<Gpa>>,
    /// While the machine is destroyed: how far its second stage has been taken apart.
    pub(super) dismantling: Option<Dismantling>,
    protected: ProtectedRanges,
    /// What becomes of read-only memory, if some unit would write to it.
    read_only: Option<OnReadOnlyMemory>,
    pub(super) virtual_unit: VirtualUnit<HostBinding, DEVICES, BINDINGS>,
    pub(super) host: HostSide<DEVICES, DOMAINS, SHADOWS>,
}

/// The second stage of a machine: what all its units can walk.
fn second_stage_config<R: Registers>(
    units: &[Unit<R>],
    shown: &Offer,
    track_dirty_pages: bool,
) -> Result<SecondStageConfig, MachineError> {
    let refused = MachineError::SecondStage;
    let (first, others) = units
        .split_first()
        .ok_or(MachineError::Offer(OfferError::NoUnit))?;
    let mut config =
        SecondStageConfig::new(shown.width, &first.second_stage_features()).map_err(refused)?;
    for unit in others {
        config = config.and(&unit.second_stage_features()).map_err(refused)?;
    }
    // What PASID entries say by `PGSNP` where there are any.
    let lacks_entries = |unit: &Unit<R>| unit.table_mode() == TranslationTableMode::Legacy;
    let controls_snoop = |unit: &Unit<R>| unit.features().extended.has_snoop_control();
    if units.iter().any(lacks_entries) && units.iter().all(controls_snoop) {
        config = config.forcing_snoop().map_err(refused)?;
    }
    if track_dirty_pages {
        config = config.tracking_access().map_err(refused)?;
    }
    Ok(config)
}

/// The parts of a machine that a call works on, borrowed apart.
macro_rules! port {
    ($machine:expr, $h:expr, $units:expr) => {
        $crate::nest::bind::HostPort {
            side: &mut $machine.host,
            h: $h,
            units: $units,
            memory: $crate::nest::memory::MachineMemory::new($h, &$machine.memory),
        }
    };
}
pub(super) use port;

impl<const DEVICES: usize, const BINDINGS: usize, const DOMAINS: usize, const SHADOWS: usize>
    VirtualMachine<DEVICES, BINDINGS, DOMAINS, SHADOWS>
{
    /// A machine without memory and devices, whose unit shows what all `units` can carry.
    ///
    /// # Errors
    ///
    /// [`MachineError`].
    pub fn new<H: Hypervisor, R: Registers>(
        h: &H,
        units: &[Unit<R>],
        config: MachineConfig,
    ) -> Result<Self, MachineError> {
        let mut machine = Self::vacant();
        machine.start(h, units, config)?;
        Ok(machine)
    }

    /// What stands for a machine that has yet to be [started](Self::start). It is never used.
    pub(super) const fn vacant() -> Self {
        Self {
            memory: SecondStage::vacant(),
            unconfirmed: None,
            dismantling: None,
            protected: ProtectedRanges::new(),
            read_only: None,
            virtual_unit: VirtualUnit::vacant(),
            host: HostSide::vacant(),
        }
    }

    /// Makes it a machine without memory and devices, in its place.
    pub(super) fn start<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        config: MachineConfig,
    ) -> Result<(), MachineError> {
        if units.len() > MAXIMUM_UNITS {
            return Err(MachineError::TooManyUnits {
                count: units.len(),
                capacity: MAXIMUM_UNITS,
            });
        }
        let shown =
            offer(units.iter().map(Unit::features), &config.policy).map_err(MachineError::Offer)?;
        self.virtual_unit
            .start(VirtualUnitConfig {
                features: shown.features,
                fault_records: config.policy.fault_records,
                hash_seed: config.hash_seed,
            })
            .map_err(MachineError::VirtualUnit)?;
        let second_stage = second_stage_config(units, &shown, config.policy.track_dirty_pages)?;
        self.memory =
            SecondStage::new(h, config.owner, second_stage).map_err(MachineError::Frames)?;
        self.host.interrupts.start(units, &config.policy);
        log::info!("machine {}: back end {}", config.number, shown.backend);
        self.unconfirmed = None;
        self.dismantling = None;
        self.host.start(&config, shown);
        self.protected = config.protected;
        let has_erratum = |unit: &Unit<R>| unit.config().errata.avoids_read_only_under_nesting();
        let nests = self.host.offer.backend == Backend::Nested;
        self.read_only =
            (nests && units.iter().any(has_erratum)).then_some(config.policy.on_read_only_memory);
        Ok(())
    }

    /// What the guest is shown, and how its tables reach hardware.
    pub const fn offer(&self) -> &Offer {
        &self.host.offer
    }

    /// Width of the second stage.
    pub const fn second_stage_width(&self) -> AddressWidth {
        self.memory.config().width()
    }

    /// The guest's memory, as its devices and its unit see it.
    pub const fn memory<'a, H: Hypervisor>(&'a self, h: &'a H) -> MachineMemory<'a, H> {
        MachineMemory::new(h, &self.memory)
    }

    /// Gives the machine memory, or a device's registers: `len_bytes` from `guest` on lead to
    /// `host`. Read-only memory is left out, or refused, where hardware would write to it all the
    /// same ([`Policy::on_read_only_memory`]).
    ///
    /// # Errors
    ///
    /// [`MachineError`]; with [`MachineError::NotConfirmed`] the mapping exists.
    pub fn map_memory<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        guest: Gpa,
        host: Hpa,
        len_bytes: u64,
        rights: Rights,
    ) -> Result<(), MachineError> {
        if self.dismantling.is_some() {
            return Err(MachineError::BeingDestroyed);
        }
        let range = PhysicalRange::new(host, len_bytes);
        if let Some(protected) = self.protected.overlapped_by(&range) {
            return Err(MachineError::Protected { range: *protected });
        }
        self.memory.check_mapping(guest, host, len_bytes, rights)?;
        if !rights.write && self.leaves_out_read_only(guest)? {
            return Ok(());
        }
        self.memory.map(h, guest, host, len_bytes, rights)?;
        // A shadow leads nowhere yet where the guest's table already leads to the range.
        let is_shadowed = self.host.shadows.iter().next().is_some();
        if is_shadowed || self.used_units(units).any(owes_after_set_up) {
            let added = EditedMemory::added(guest, len_bytes);
            self.flush_edited(h, units, added, owes_after_set_up)?;
        }
        Ok(())
    }

    /// Whether read-only memory at an address stays unmapped, because devices would write to it.
    pub(super) fn leaves_out_read_only(&mut self, guest: Gpa) -> Result<bool, MachineError> {
        match self.read_only {
            None => Ok(false),
            Some(OnReadOnlyMemory::Refuse) => Err(MachineError::ReadOnlyUnderErratum { guest }),
            Some(OnReadOnlyMemory::LeaveOut) => {
                let left_out = &mut self.host.statistics.read_only_left_out;
                *left_out = left_out.wrapping_add(1);
                log::warn!(
                    "machine {}: read-only memory at {guest} is left out: nested updates ignore \
                     read-only on this platform",
                    self.host.number
                );
                Ok(true)
            }
        }
    }

    /// Takes memory away. When it returns, no device of the machine can reach it any more.
    ///
    /// # Errors
    ///
    /// [`MachineError`]. With [`MachineError::NotConfirmed`] the mapping is gone, and the memory must
    /// not be reused before [`confirm_unmapped`](Self::confirm_unmapped) or
    /// [`destroy`](Self::destroy) succeeds.
    pub fn unmap_memory<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        guest: Gpa,
        len_bytes: u64,
    ) -> Result<(), MachineError> {
        let refuse = OnPartialLeaf::Refuse;
        self.unmap_memory_with(h, units, guest, len_bytes, refuse)
    }

    /// Tries again to have hardware confirm what [`unmap_memory`](Self::unmap_memory) or another edit
    /// of the memory changed. When it returns, what was taken away is free to use.
    ///
    /// # Errors
    ///
    /// [`MachineError::NotConfirmed`].
    pub fn confirm_unmapped<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
    ) -> Result<(), MachineError> {
        if self.unconfirmed.is_none() {
            return Ok(());
        }
        self.flush_unconfirmed(h, units)
    }

    /// Brings every shadow in step with the machine's memory, and has the units that are as said drop
    /// what they know of an edited part, strictly: returns when hardware has confirmed that and what
    /// is still unconfirmed.
    pub(super) fn flush_edited<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        edited: EditedMemory,
        owes: fn(&Unit<R>) -> bool,
    ) -> Result<(), MachineError> {
        port!(self, h, units).collect_edit(&edited, owes);
        self.flush_unconfirmed(h, units)
    }

    /// Has all units drop what they know of what is still unconfirmed, strictly.
    pub(super) fn flush_unconfirmed<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
    ) -> Result<(), MachineError> {
        if let Some(edited) = self.unconfirmed.as_ref().map(EditedMemory::of) {
            port!(self, h, units).collect_edit(&edited, |_| true);
        }
        self.complete_strictly(h, units)
            .map_err(MachineError::NotConfirmed)?;
        if let Some(unmapped) = self.unconfirmed.take() {
            unmapped.settle(h);
        }
        Ok(())
    }

    /// Waits until hardware has confirmed all that is collected.
    pub(super) fn complete_strictly<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
    ) -> Result<(), BindError> {
        let mut port = port!(self, h, units);
        for _ in 0..MAXIMUM_LOOKS {
            match port.complete_forwarded(true)? {
                Progress::Done if port.confirm_device_tlbs()? == Progress::Wait => port.pause(),
                // A shadow that could not be brought in step is empty, which is safe.
                Progress::Done => {
                    port.side.forwarding.dropped = None;
                    return Ok(());
                }
                Progress::Again => {}
                Progress::Wait => port.pause(),
            }
        }
        Err(BindError::Unit)
    }

    /// Assigns a device: its tables are made, and its requests are bound as the guest's unit says
    /// with the next [`poll`](Self::poll). Until then it is blocked.
    ///
    /// # Errors
    ///
    /// [`AssignError`].
    pub fn assign<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        config: DeviceConfig,
    ) -> Result<DeviceHandle, AssignError> {
        let unit = units
            .get(usize::from(config.unit))
            .ok_or(AssignError::UnknownUnit(config.unit))?;
        if config.interrupts == InterruptIsolation::Required && !unit.remaps_interrupts() {
            return Err(AssignError::InterruptRemappingMissing(config.source_id));
        }
        if self.dismantling.is_some() {
            return Err(AssignError::BeingDestroyed);
        }
        if self.host.devices.iter().any(|(_, device)| {
            device.config.guest_source_id == config.guest_source_id
                || device.config.unit == config.unit && device.config.source_id == config.source_id
        }) {
            return Err(AssignError::InUse(config.source_id));
        }
        if self.virtual_unit.has_device(config.guest_source_id) {
            return Err(AssignError::InUse(config.guest_source_id));
        }
        let handle = self
            .free_handle()
            .ok_or(AssignError::Full { capacity: DEVICES })?;
        let pasid_bits = self.pasid_bits_for(unit, &config)?;
        let device_tlb = config.address_translation.device_tlb();
        admission::check_address_translation(unit, &config)?;
        admission::check_group(h, units, &self.host.devices, &config)?;
        admission::check_reserved_memory(h, unit, &self.memory, &config)?;
        self.enter_unit(h, units, config.unit)?;
        let (owner, requesters) = (self.host.owner, config.requesters());
        let attached = unit.attach_requesters(h, owner, &requesters, pasid_bits, device_tlb);
        let tables = match attached {
            Ok(tables) => tables,
            Err(error) => {
                self.leave_unit(h, units, config.unit);
                return Err(AssignError::Unit(error));
            }
        };
        self.host.devices.insert(
            handle,
            AssignedDevice {
                config,
                tables,
                quarantine: Quarantine::None,
                owes_device_tlb: false,
                storm: Storm::new(),
            },
        );
        // Another processor may have let another member of the group in meanwhile.
        let entered = admission::check_group(h, units, &self.host.devices, &config)
            // Its context entry is in place, and blocks it until the first binding.
            .and_then(|()| switches::turn_on(h, &config, pasid_bits).map_err(AssignError::Switches))
            .and_then(|()| {
                let kind = DeviceKind::Assigned { pasid_bits };
                self.virtual_unit
                    .add_device(handle, config.guest_source_id, kind)
                    .map_err(|_| AssignError::VirtualUnit)
            });
        if let Err(error) = entered {
            // Off already, if it is what failed; hardware forgets the device in either case.
            _ = switches::turn_off(h, &config);
            if self.withdraw_tables(h, units, handle) {
                self.leave_unit(h, units, config.unit);
            }
            return Err(error);
        }
        log::info!(
            "machine {}: {} assigned as {}",
            self.host.number,
            config.source_id,
            config.guest_source_id
        );
        Ok(handle)
    }

    /// A place of the device table that neither side uses. A device in quarantine keeps its own.
    pub(super) fn free_handle(&self) -> Option<DeviceHandle> {
        self.virtual_unit
            .free_handle(|handle| self.host.devices.get(handle).is_err())
    }

    /// The width of PASIDs that a device is let use: all that the guest was shown, or none.
    fn pasid_bits_for<R: Registers>(
        &self,
        unit: &Unit<R>,
        config: &DeviceConfig,
    ) -> Result<u8, AssignError> {
        let physical = unit.features().extended;
        if self.host.offer.backend == Backend::Nested && !physical.has_nested() {
            return Err(AssignError::UnitCannotNest(config.unit));
        }
        let bits_of = |extended: ExtendedCapability| {
            if extended.has_pasid() {
                extended.pasid_bits()
            } else {
                0
            }
        };
        let shown = bits_of(self.host.offer.features.extended);
        let carried = bits_of(physical).min(config.pasid_bits);
        match config.pasid_bits {
            0 => Ok(0),
            _ if carried < shown => Err(AssignError::PasidBits {
                source_id: config.source_id,
                shown,
                carried,
            }),
            _ => Ok(shown),
        }
    }

    /// Takes a device away: everything of it is unbound and its tables are freed.
    ///
    /// # Errors
    ///
    /// [`BindError::Quarantined`] if hardware did not confirm: the device is cut off and keeps what
    /// it holds, and the machine's memory must not be reused. A later call tries again: once
    /// hardware confirms, domain-ids and frames come back.
    pub fn unassign<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        handle: DeviceHandle,
    ) -> Result<Progress, BindError> {
        let device = self.host.devices.get(handle)?;
        let DeviceConfig {
            source_id, unit, ..
        } = device.config;
        // Off before its TLB is told to forget everything, and that before its context entry goes.
        if !device.is_quarantined()
            && let Err(error) = switches::turn_off(h, &device.config)
        {
            log::error!("machine {}: {source_id}: {error}", self.host.number);
            return Err(port!(self, h, units).isolate(handle));
        }
        if port!(self, h, units).confirm_quarantine(handle)? == Progress::Wait {
            return Ok(Progress::Wait);
        }
        match self
            .virtual_unit
            .remove_device(handle, &mut port!(self, h, units))
        {
            Ok(Progress::Done) => {}
            Ok(unfinished) => return Ok(unfinished),
            Err(DeviceError::Bind(error)) => return Err(error),
            // The virtual unit has let go of it in an earlier call; its tables are still there.
            Err(_) => {}
        }
        let mut port = port!(self, h, units);
        if !port.withdraw_interrupts(handle) {
            return Err(port.isolate(handle));
        }
        if !self.withdraw_tables(h, units, handle) {
            return Err(BindError::Quarantined { source_id });
        }
        self.leave_unit(h, units, unit);
        log::info!("machine {}: {source_id} unassigned", self.host.number);
        Ok(Progress::Done)
    }

    /// Destroys a machine: takes every device away, and gives back the second stage with what else
    /// it holds of the host. `Done` leaves `None`, and the guest's memory is free to use then;
    /// otherwise call again. Once all devices have left, each call does what about one table page is
    /// work. It is handed over in its place because it is large.
    ///
    /// # Errors
    ///
    /// The first [`BindError`], as of [`unassign`](Self::unassign), once all devices that can leave
    /// have left. The machine stays, and the guest's memory must not be reused; a later call tries
    /// again.
    pub fn destroy<H: Hypervisor, R: Registers>(
        machine: &mut Option<Self>,
        h: &H,
        units: &[Unit<R>],
    ) -> Result<Progress, BindError> {
        let Some(this) = machine else {
            return Ok(Progress::Done);
        };
        let progress = this.wind_up(h, units)?;
        if progress == Progress::Done {
            *machine = None;
        }
        Ok(progress)
    }

    /// Gives back everything that the machine holds of the host; it is vacant when that is done.
    pub(super) fn wind_up<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
    ) -> Result<Progress, BindError> {
        let mut result = Ok(Progress::Done);
        for index in 0..DEVICES {
            let handle = DeviceHandle::new(index as u16);
            if self.host.devices.get(handle).is_err() {
                continue;
            }
            match (self.unassign(h, units, handle), result) {
                (Ok(Progress::Done), _) | (_, Err(_)) => {}
                (unfinished, Ok(_)) => result = unfinished,
            }
        }
        if result != Ok(Progress::Done) {
            return result;
        }
        // Those whose interrupt entries hardware did not confirm gone.
        for n in (0..MACHINE_UNITS).rev() {
            if let Some(unit) = self.host.used_units.get(n)
                && !self.leave_unit(h, units, unit)
            {
                return Err(BindError::Unit);
            }
        }
        // All units have forgotten all devices of the machine, and their domain-ids with them.
        self.host.shadows.retire_all(h, |_| true);
        if self.host.shadows.advance_leaving(h) {
            return Ok(Progress::Again);
        }
        let detached = match self.unconfirmed.take() {
            Some(unmapped) => unmapped.into_tables(),
            None => FrameChain::new(self.host.owner),
        };
        let state = self.dismantling.get_or_insert(Dismantling::new(detached));
        if !self.memory.dismantle(h, state) {
            return Ok(Progress::Again);
        }
        self.dismantling = None;
        log::info!("machine {}: destroyed", self.host.number);
        Ok(Progress::Done)
    }

    /// The physical units that the machine's devices are behind.
    fn used_units<'a, R: Registers>(
        &self,
        units: &'a [Unit<R>],
    ) -> impl Iterator<Item = &'a Unit<R>> {
        let used = self.host.used_units.iter();
        used.filter_map(|unit| units.get(usize::from(unit)))
    }

    /// A device behind a unit comes in.
    fn enter_unit<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        unit: u8,
    ) -> Result<(), AssignError> {
        let physical = units
            .get(usize::from(unit))
            .ok_or(AssignError::UnknownUnit(unit))?;
        if !self.host.used_units.add(unit) {
            return Err(AssignError::TooManyUnits {
                unit,
                capacity: MACHINE_UNITS,
            });
        }
        let owner = self.host.owner;
        let entered = self.host.interrupts.enter(unit, physical, owner);
        entered.map_err(|error| {
            self.leave_unit(h, units, unit);
            AssignError::Unit(error)
        })
    }

    /// A device behind a unit has left; `false` if it was the last one and hardware did not confirm
    /// that it forgot the machine's interrupt entries: they are kept.
    fn leave_unit<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        unit: u8,
    ) -> bool {
        let is_behind = |device: &AssignedDevice| device.config.unit == unit;
        if (self.host.devices.iter()).any(|(_, device)| is_behind(device)) {
            return true;
        }
        if let Some(physical) = units.get(usize::from(unit))
            && let Err(error) = self.host.interrupts.leave(h, unit, physical)
        {
            log::error!("machine {}: unit {unit}: {error}", self.host.number);
            return false;
        }
        if !self.host.domains.has_any_of(unit) {
            port!(self, h, units).drop_collected_of(unit);
            self.host.used_units.remove(unit);
        }
        true
    }

    /// Detaches a device and frees its tables; `false` if hardware did not confirm that it forgot
    /// them: the device is in quarantine then.
    fn withdraw_tables<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        handle: DeviceHandle,
    ) -> bool {
        let Some(device) = self.host.devices.remove(handle) else {
            return true;
        };
        let Some(unit) = units.get(usize::from(device.config.unit)) else {
            return true;
        };
        let source_id = device.config.source_id;
        let was_quarantined = device.is_quarantined();
        let released = unit.detach_device(h, device.tables).and_then(|detached| {
            let released = unit.release(h, detached);
            released.map_err(|(detached, error)| (detached.into_tables(), error))
        });
        let Err((tables, error)) = released else {
            return true;
        };
        log::error!("machine {}: {source_id}: {error}", self.host.number);
        self.host.devices.insert(
            handle,
            AssignedDevice {
                tables,
                quarantine: Quarantine::Unconfirmed,
                ..device
            },
        );
        if !was_quarantined {
            h.set_bus_master(source_id, false);
            self.host.statistics.quarantines = self.host.statistics.quarantines.wrapping_add(1);
        }
        false
    }

    /// Reads the virtual unit's registers: what the VM exit of a load calls. `len` is 1, 2, 4 or
    /// 8 bytes; every offset and alignment has a defined value.
    pub fn read_register(&self, offset: u64, len: u8) -> u64 {
        self.virtual_unit.read(offset, len)
    }

    /// Writes the virtual unit's registers: what the VM exit of a store calls. Whatever it starts
    /// is done by [`poll`](Self::poll).
    pub fn write_register(&mut self, offset: u64, len: u8, value: u64) {
        self.virtual_unit.write(offset, len, value);
    }

    /// Resets the virtual unit, as a reset of its machine does: registers, queue and records are as
    /// after power-on and translation is off. Devices stay assigned. Bindings go with the next
    /// [`poll`](Self::poll), which completes whatever the host side refuses (R25, R26): what cannot
    /// be bound to the machine's memory is blocked.
    pub fn reset(&mut self) {
        log::info!("machine {}: reset", self.host.number);
        self.virtual_unit.reset();
    }

    /// The state of the virtual unit, between two [`poll`](Self::poll)s. The machine's vcpus rest,
    /// and it is not polled afterwards: it would complete the same waits.
    ///
    /// Memory, devices and what hardware holds are no part of it.
    pub fn save(&self) -> [u8; STATE_LEN_BYTES] {
        self.virtual_unit.save()
    }

    /// Takes over a saved state, in a new machine that shows its guest the same and has the guest's
    /// memory, before the first [`poll`](Self::poll). That makes the bindings anew from the guest's
    /// tables; until then every device is blocked.
    ///
    /// # Errors
    ///
    /// [`StateError`]; nothing has changed then. The bytes need not be trusted.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let restored = self.virtual_unit.restore(state);
        match &restored {
            Ok(()) => log::info!("machine {}: state restored", self.host.number),
            Err(error) => log::error!("machine {}: {error}", self.host.number),
        }
        restored
    }

    /// Does pending work, at most `budget` steps of about one guest table page or one host
    /// operation each.
    pub fn poll<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        budget: u32,
    ) -> Poll {
        self.end_silences(h, units);
        self.virtual_unit.poll(&mut port!(self, h, units), budget)
    }

    /// Counters of the host side.
    pub const fn statistics(&self) -> MachineStatistics {
        self.host.statistics
    }

    /// Counters of the virtual unit.
    pub fn virtual_unit_statistics(&self) -> VirtualUnitStatistics {
        self.virtual_unit.statistics()
    }
}
