//! The virtual unit: what the guest programs, and the loop that carries it out.

use core::fmt;

use crate::arch::capability::{Capability, CapabilityField, ExtendedCapability};
use crate::arch::capability::{CapabilityError, ExtendedCapabilityField, Features, validate};
use crate::arch::descriptor::{IotlbGranularity, WaitStatus};
use crate::arch::fault::{FaultMode, FaultReason};
use crate::arch::features::TableFeatures;
use crate::arch::id::{Pasid, SourceId};
use crate::arch::register::{
    ContextCommand, GlobalCommand, GlobalStatus, InvalidateAddress, IotlbCommand, RootTableAddress,
    TranslationTableMode,
};
use crate::mem::GuestMemory;

use super::emulated::TRANSLATION_SETS;
use super::fault::{FaultRecorder, GuestFault, MAX_FAULT_RECORDS};
use super::first_stage_roots::RootUse;
use super::host::{BindError, Desired, DeviceHandle, GuestInvalidation, Host, HostState, Progress};
use super::interrupt::{InterruptPass, InterruptState};
use super::keyed_hash::KeyedHash;
use super::pasid_cache::{MAXIMUM_BINDINGS, PasidCache, root_of};
use super::queue::second_stage_invalidation;
use super::registers::{
    Event, REGISTER_WINDOW_BYTES, Register, RegisterFile, RegisterWrite, VERSION,
};
use super::statistics::{VirtualUnitStatistics, count};
use super::synchronise::{DeviceFilter, EntryFilter, PageCopies, Pass, Stepped};
use super::tables::{GuestContext, GuestTableReader, table_features};
use super::translation_cache::TranslationCache;

/// What a virtual unit is made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtualUnitConfig {
    /// The capability registers that the guest sees, and the width of guest-physical addresses.
    pub features: Features,
    /// The number of fault records, as `CAP.NFR` shows it: 1 to [`MAX_FAULT_RECORDS`].
    pub fault_records: u8,
    /// A number that the guest does not know: hides where the store keeps what.
    pub hash_seed: u64,
}

/// Why a virtual unit cannot be made as configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// The capability registers contradict themselves.
    Capability(CapabilityError),
    /// A capability that no virtual unit has, by its name in the specification.
    NotEmulated {
        /// The field.
        field: &'static str,
    },
    /// The width of guest-physical addresses is not in 12 to 52 bits.
    AddressWidth(u8),
    /// The number of fault records is 0, too large, or not what `CAP.NFR` shows.
    FaultRecords(u8),
    /// There are more devices or bindings than their numbers have room for.
    Capacity(usize),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capability(error) => fmt::Display::fmt(error, f),
            Self::NotEmulated { field } => {
                f.write_str(field)?;
                f.write_str(" is not emulated")
            }
            Self::AddressWidth(bits) => write!(f, "guest-physical addresses of {bits} bits"),
            Self::FaultRecords(count) => write!(f, "{count} fault records"),
            Self::Capacity(capacity) => write!(f, "a capacity of {capacity}"),
        }
    }
}

impl core::error::Error for ConfigError {}

/// What a device is to the virtual unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// A physical device assigned to the machine: its bindings are made by the host, as soon as
    /// the guest announces them.
    Assigned {
        /// The width of the PASIDs that it can send, in bits; 0 if it sends none.
        pasid_bits: u8,
    },
    /// A device that the hypervisor emulates: it asks [`VirtualUnit::translate`], and the host has
    /// nothing to do for it.
    Emulated,
}

/// Why a device cannot be added, changed or removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceError {
    /// The handle is beyond the device table.
    BeyondTable {
        /// The handle.
        handle: DeviceHandle,
        /// The capacity of the table.
        capacity: usize,
    },
    /// The handle is in use.
    InUse(DeviceHandle),
    /// The handle names no device.
    Unknown(DeviceHandle),
    /// Another device has the source-id.
    SourceIdInUse(SourceId),
    /// A binding could not be taken away; it is kept, and a later call tries again.
    Bind(BindError),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeyondTable { handle, capacity } => {
                write!(f, "device {handle:?} is beyond a table of {capacity}")
            }
            Self::InUse(handle) => write!(f, "device {handle:?} is in use"),
            Self::Unknown(handle) => write!(f, "no device {handle:?}"),
            Self::SourceIdInUse(source_id) => write!(f, "{source_id} is in use"),
            Self::Bind(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl core::error::Error for DeviceError {}

/// What [`VirtualUnit::poll`] leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Poll {
    /// Nothing is left to do.
    Idle,
    /// More can be done at once: call again.
    Again,
    /// The host waits for hardware: call again when that may have changed.
    Wait,
}

/// The context entry of a device, as last read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CachedContext {
    /// To be read when it is needed.
    Unknown,
    /// Read; `None` if there was no valid one.
    Read(Option<GuestContext>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SlotState {
    Free,
    Active,
    Removing,
}

/// The binding of a device's requests without PASID. It always has a place, so that turning
/// translation off never fails for lack of one.
#[derive(Debug)]
pub(super) struct DefaultBinding<B> {
    pub(super) host: B,
    /// The guest's PASID entry as last honoured, or as the host is honouring it.
    pub(super) raw: [u64; 8],
    /// What it is bound to; `None` while the host is changing it, or if the host failed to.
    pub(super) actual: Option<Desired>,
    /// The pass that last looked at it.
    pub(super) generation: u32,
}

/// One line of the device table.
#[derive(Debug)]
pub(super) struct DeviceSlot<B> {
    pub(super) source_id: SourceId,
    kind: DeviceKind,
    state: SlotState,
    needs_reconcile: bool,
    /// While it is removed: slots of the store below this hold nothing of it.
    cleared: u32,
    pub(super) context: CachedContext,
    /// PASIDs below this may be bound by that context entry.
    pub(super) pasid_end: u32,
    pub(super) default: DefaultBinding<B>,
}

impl<B> DefaultBinding<B> {
    /// The use of a first-stage root that it stands for.
    pub(super) fn root(&self, features: &TableFeatures) -> Option<RootUse> {
        match &self.actual {
            Some(Desired::Guest(binding)) => RootUse::of(binding),
            Some(_) => None,
            None => root_of(&self.raw, features),
        }
    }
}

impl<B: HostState> DeviceSlot<B> {
    const FREE: Self = Self {
        source_id: SourceId::from_u16(0),
        kind: DeviceKind::Emulated,
        state: SlotState::Free,
        needs_reconcile: false,
        cleared: 0,
        context: CachedContext::Unknown,
        pasid_end: u32::MAX,
        default: DefaultBinding {
            host: B::BLOCKED,
            raw: [0; 8],
            actual: Some(Desired::Blocked),
            generation: 0,
        },
    };
}

impl<B> DeviceSlot<B> {
    /// Has the context entry read when it is needed.
    pub(super) const fn forget_context(&mut self) {
        self.context = CachedContext::Unknown;
        self.pasid_end = u32::MAX;
    }

    /// Whether the host binds it.
    pub(super) const fn is_assigned(&self) -> bool {
        matches!(
            (self.state, self.kind),
            (SlotState::Active, DeviceKind::Assigned { .. })
        )
    }

    pub(super) const fn pasid_bits(&self) -> u8 {
        match self.kind {
            DeviceKind::Assigned { pasid_bits } => pasid_bits,
            DeviceKind::Emulated => 0,
        }
    }
}

/// What the guest has commanded and the unit has not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Commands {
    /// The root table address to take over.
    pub(super) root_pointer: Option<RootTableAddress>,
    /// What `TES` is to become.
    pub(super) translation: bool,
    /// What `QIES` is to become.
    pub(super) queue: bool,
    /// The queue is to be disabled first, whatever it is to become.
    pub(super) queue_stop: bool,
    /// Everything is to be looked at again, after a reset.
    pub(super) reconcile: bool,
    /// Some device is to be looked at again.
    pub(super) reconcile_devices: bool,
}

impl Commands {
    pub(super) const NONE: Self = Self {
        root_pointer: None,
        translation: false,
        queue: false,
        queue_stop: false,
        reconcile: false,
        reconcile_devices: false,
    };
}

/// What a job is for, and so what its end does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// The descriptor at the queue's head.
    Descriptor,
    /// The wait descriptor at the queue's head.
    Wait {
        status: Option<WaitStatus>,
        interrupt: bool,
    },
    /// Set Root Table Pointer.
    RootPointer,
    /// Translation Enable, set or cleared.
    Translation(bool),
    /// Set Interrupt Remapping Table Pointer.
    InterruptPointer,
    /// Interrupt Remapping Enable, set or cleared.
    InterruptRemapping(bool),
    /// A device was added or changed, or the unit was reset.
    Reconcile,
    /// Register-based context-cache invalidation.
    ContextCommand,
    /// Register-based IOTLB invalidation.
    IotlbCommand,
}

/// What a job is doing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// Making bindings equal to the guest's tables.
    Pass(Pass),
    /// Making the host's interrupt entries equal to the guest's.
    Interrupts(InterruptPass),
    /// Handing an invalidation to the host.
    Invalidate(GuestInvalidation),
    /// Waiting until the host has completed all invalidations.
    Flush {
        /// How often it failed so far.
        errors: usize,
    },
}

/// The work in progress; there is at most one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) stage: Stage,
    pub(super) purpose: Purpose,
}

/// Host operations of one [`VirtualUnit::remove_device`] call.
const REMOVALS_PER_CALL: u32 = 64;

/// A virtual VT-d unit with room for `DEVICES` devices and, beside one each for their requests
/// without PASID, `BINDINGS` bindings of PASIDs. `B` is what the host side keeps of each binding.
///
/// It answers register accesses at once and does everything else in [`poll`](Self::poll).
///
/// Memory: a binding takes 108 bytes and what `B` takes. `BINDINGS` may be 1 to 2^21 - 1; a power
/// of two is no better than another number.
#[derive(Debug)]
pub struct VirtualUnit<B: HostState, const DEVICES: usize, const BINDINGS: usize> {
    pub(super) features: Features,
    pub(super) tables: TableFeatures,
    pub(super) registers: RegisterFile,
    pub(super) faults: FaultRecorder,
    pub(super) commands: Commands,
    /// The root table address in force.
    pub(super) root: RootTableAddress,
    /// Whether bindings are to follow the guest's tables: `TES`, or what it is about to become.
    pub(super) translating: bool,
    pub(super) devices: [DeviceSlot<B>; DEVICES],
    pub(super) cache: PasidCache<B, BINDINGS>,
    pub(super) interrupts: InterruptState,
    pub(super) generation: u32,
    pub(super) job: Option<Job>,
    pub(super) pages: PageCopies,
    /// What requests of emulated devices have found.
    pub(super) translations: TranslationCache<TRANSLATION_SETS>,
    pub(super) statistics: VirtualUnitStatistics,
}

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// A unit after reset, without devices.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn new(config: VirtualUnitConfig) -> Result<Self, ConfigError> {
        let mut unit = Self::vacant();
        unit.start(config)?;
        Ok(unit)
    }

    /// A unit that has yet to be [started](Self::start), and does nothing before.
    pub(crate) const fn vacant() -> Self {
        Self {
            features: Features {
                capability: Capability::from_bits(0),
                extended: ExtendedCapability::from_bits(0),
                host_address_width: 0,
            },
            tables: TableFeatures::NOTHING,
            registers: RegisterFile::VACANT,
            faults: FaultRecorder::VACANT,
            commands: Commands::NONE,
            root: RootTableAddress::from_bits(0),
            translating: false,
            devices: [const { DeviceSlot::FREE }; DEVICES],
            cache: PasidCache::vacant(),
            interrupts: InterruptState::OFF,
            generation: 0,
            job: None,
            pages: PageCopies::new(),
            translations: TranslationCache::new(KeyedHash::new(0)),
            statistics: VirtualUnitStatistics::NONE,
        }
    }

    /// Makes it a unit after reset, without devices, in its place.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]; nothing has changed then.
    pub(crate) fn start(&mut self, config: VirtualUnitConfig) -> Result<(), ConfigError> {
        let VirtualUnitConfig {
            features,
            fault_records,
            hash_seed,
        } = config;
        validate(
            features.capability,
            features.extended,
            VERSION,
            REGISTER_WINDOW_BYTES,
        )
        .map_err(ConfigError::Capability)?;
        if let Some(field) = not_emulated(&features) {
            return Err(ConfigError::NotEmulated { field });
        }
        if !(12..=52).contains(&features.host_address_width) {
            return Err(ConfigError::AddressWidth(features.host_address_width));
        }
        if !(1..=MAX_FAULT_RECORDS).contains(&fault_records)
            || features.capability.fault_record_count() != u16::from(fault_records)
        {
            return Err(ConfigError::FaultRecords(fault_records));
        }
        if DEVICES > usize::from(u16::MAX) {
            return Err(ConfigError::Capacity(DEVICES));
        }
        if BINDINGS > MAXIMUM_BINDINGS {
            return Err(ConfigError::Capacity(BINDINGS));
        }
        self.features = features;
        self.tables = table_features(&features);
        self.registers = RegisterFile::new(&features);
        self.faults = FaultRecorder::new(fault_records, features.capability.fault_record_offset());
        self.commands = Commands::NONE;
        self.root = RootTableAddress::from_bits(0);
        self.translating = false;
        for slot in &mut self.devices {
            *slot = DeviceSlot::FREE;
        }
        self.cache.start(KeyedHash::new(hash_seed));
        self.interrupts = InterruptState::OFF;
        self.generation = 0;
        self.job = None;
        self.translations = TranslationCache::new(KeyedHash::new(hash_seed).another(29));
        self.statistics = VirtualUnitStatistics::NONE;
        Ok(())
    }

    /// The capabilities that the guest sees.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// What it has done since it was made.
    pub const fn statistics(&self) -> VirtualUnitStatistics {
        self.statistics
    }

    /// The number of PASIDs bound, those of requests without PASID not counted.
    pub const fn bindings(&self) -> u32 {
        self.cache.len()
    }

    /// The number of devices whose requests without PASID are bound to something.
    pub(super) fn bound_devices(&self) -> usize {
        let is_bound = |slot: &&DeviceSlot<B>| slot.default.actual != Some(Desired::Blocked);
        self.devices.iter().filter(is_bound).count()
    }

    /// What a device's binding for requests without PASID, or for a PASID, is; `None` if it is
    /// unsettled or there is no such device.
    #[cfg(test)]
    pub(super) fn default_binding(&self, handle: DeviceHandle) -> Option<Desired> {
        self.devices.get(handle.index())?.default.actual
    }

    /// The mode of the root table in force.
    pub const fn table_mode(&self) -> TranslationTableMode {
        self.root.mode()
    }

    /// Whether the guest sees translation as on (`TES`).
    pub fn is_translating(&self) -> bool {
        self.registers
            .status()
            .contains(GlobalStatus::TRANSLATION_ENABLED)
    }

    /// The width of PASIDs that the guest was shown; 0 without requests-with-PASID.
    pub(super) const fn pasid_bits(&self) -> u8 {
        if self.features.extended.has_pasid() {
            self.features.extended.pasid_bits()
        } else {
            0
        }
    }

    /// A reader of the guest's tables below the root in force.
    pub(super) const fn reader<'a, M>(
        &self,
        memory: &'a M,
        tables: &'a TableFeatures,
    ) -> GuestTableReader<'a, M> {
        GuestTableReader {
            memory,
            features: tables,
            root: self.root,
            scalable_mode: self.features.extended.has_scalable_mode(),
        }
    }

    /// The reason as the guest's root table has it: a host-side failure has a scalable-mode reason
    /// and a legacy one.
    pub(super) const fn reason_in_mode(&self, reason: FaultReason) -> FaultReason {
        match (self.root.mode(), reason.mode()) {
            (TranslationTableMode::Legacy, FaultMode::Scalable) => {
                FaultReason::LegacyContextTableUnreadable
            }
            _ => reason,
        }
    }

    // Devices.

    /// Adds a device. The next [`poll`](Self::poll) binds it as the guest's tables say now: to the
    /// machine's memory while translation is off. Until then it is blocked.
    ///
    /// # Errors
    ///
    /// [`DeviceError`]; nothing has changed then.
    pub fn add_device(
        &mut self,
        handle: DeviceHandle,
        source_id: SourceId,
        kind: DeviceKind,
    ) -> Result<(), DeviceError> {
        self.refuse_duplicate(handle, source_id)?;
        let slot = self
            .devices
            .get_mut(handle.index())
            .ok_or(DeviceError::BeyondTable {
                handle,
                capacity: DEVICES,
            })?;
        if slot.state != SlotState::Free {
            return Err(DeviceError::InUse(handle));
        }
        *slot = DeviceSlot {
            source_id,
            kind,
            state: SlotState::Active,
            needs_reconcile: true,
            ..DeviceSlot::FREE
        };
        self.commands.reconcile_devices = true;
        self.reconcile_interrupts();
        Ok(())
    }

    fn refuse_duplicate(
        &self,
        handle: DeviceHandle,
        source_id: SourceId,
    ) -> Result<(), DeviceError> {
        let is_used = self.devices.iter().enumerate().any(|(index, slot)| {
            index != handle.index()
                && slot.state == SlotState::Active
                && slot.source_id == source_id
        });
        if is_used {
            return Err(DeviceError::SourceIdInUse(source_id));
        }
        Ok(())
    }

    fn active(&mut self, handle: DeviceHandle) -> Result<&mut DeviceSlot<B>, DeviceError> {
        self.devices
            .get_mut(handle.index())
            .filter(|slot| slot.state == SlotState::Active)
            .ok_or(DeviceError::Unknown(handle))
    }

    /// The first free handle that `is_usable`.
    pub fn free_handle(&self, is_usable: impl Fn(DeviceHandle) -> bool) -> Option<DeviceHandle> {
        let slots = self.devices.iter().enumerate();
        slots
            .filter(|(_, slot)| slot.state == SlotState::Free)
            .map(|(index, _)| DeviceHandle::new(index as u16))
            .find(|handle| is_usable(*handle))
    }

    /// Whether a device has the source-id.
    pub fn has_device(&self, source_id: SourceId) -> bool {
        let mut slots = self.devices.iter();
        slots.any(|slot| slot.state == SlotState::Active && slot.source_id == source_id)
    }

    /// Whether an emulated device has the source-id.
    pub(super) fn is_emulated(&self, source_id: SourceId) -> bool {
        let mut slots = self.devices.iter();
        slots.any(|slot| {
            matches!(
                (slot.state, slot.kind),
                (SlotState::Active, DeviceKind::Emulated)
            ) && slot.source_id == source_id
        })
    }

    /// Frees the slot of an emulated device: the source-id that it had.
    pub(super) fn free_emulated(&mut self, handle: DeviceHandle) -> Result<SourceId, DeviceError> {
        let slot = self.active(handle)?;
        if slot.kind != DeviceKind::Emulated {
            return Err(DeviceError::Unknown(handle));
        }
        let source_id = slot.source_id;
        *slot = DeviceSlot::FREE;
        Ok(source_id)
    }

    /// Gives a device another source-id, as when the guest renumbers its buses. The next
    /// [`poll`](Self::poll) binds it as the guest's tables say under the new one.
    ///
    /// # Errors
    ///
    /// [`DeviceError`]; nothing has changed then.
    pub fn set_source_id(
        &mut self,
        handle: DeviceHandle,
        source_id: SourceId,
    ) -> Result<(), DeviceError> {
        self.refuse_duplicate(handle, source_id)?;
        let slot = self.active(handle)?;
        let before = core::mem::replace(&mut slot.source_id, source_id);
        self.translations.drop_devices(|named| named == before);
        self.reconcile_device(handle)
    }

    /// Has the next [`poll`](Self::poll) look at all bindings of a device again: for instance once
    /// the reason of a host-side failure is gone.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unknown`].
    pub fn reconcile_device(&mut self, handle: DeviceHandle) -> Result<(), DeviceError> {
        let slot = self.active(handle)?;
        slot.forget_context();
        slot.needs_reconcile = true;
        self.commands.reconcile_devices = true;
        self.reconcile_interrupts();
        Ok(())
    }

    /// Takes all bindings of a device away and forgets it. From the first call on nothing is bound
    /// for it any more. Unless it is [`Progress::Done`], call again; a call does a bounded amount of work.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unknown`], or [`DeviceError::Bind`] for the first binding that the host could
    /// not take away: a later call tries again.
    pub fn remove_device<Ho: Host<Binding = B>>(
        &mut self,
        handle: DeviceHandle,
        host: &mut Ho,
    ) -> Result<Progress, DeviceError> {
        let index = handle.index();
        let slot = self
            .devices
            .get_mut(index)
            .filter(|slot| slot.state != SlotState::Free)
            .ok_or(DeviceError::Unknown(handle))?;
        if let DeviceKind::Emulated = slot.kind {
            self.remove_emulated_device(handle)?;
            return Ok(Progress::Done);
        }
        slot.state = SlotState::Removing;
        let default = &mut slot.default;
        if default.actual != Some(Desired::Blocked) {
            default.actual = None;
            match host.bind(handle, Pasid::ZERO, &mut default.host, &Desired::Blocked) {
                Ok(Progress::Done) => default.actual = Some(Desired::Blocked),
                Ok(unfinished) => return Ok(unfinished),
                Err(error) => return Err(self.removal_failed(index, Pasid::ZERO, error)),
            }
            count(&mut self.statistics.unbinds);
        }
        let mut left = REMOVALS_PER_CALL;
        let from = slot.cleared;
        for at in from as usize..self.cache.end() {
            if self
                .cache
                .get(at)
                .is_none_or(|entry| entry.device() != index)
            {
                continue;
            }
            // Where the next call goes on. Nothing is added for a device that is removed.
            if let Some(slot) = self.devices.get_mut(index) {
                slot.cleared = at as u32;
            }
            if left == 0 {
                return Ok(Progress::Wait);
            }
            left = left.saturating_sub(1);
            self.cache.unsettle(at, None, &self.tables);
            let Some(entry) = self.cache.get_mut(at) else {
                continue;
            };
            let pasid = entry.pasid();
            match host.bind(handle, pasid, &mut entry.host, &Desired::Blocked) {
                Ok(Progress::Done) => self.cache.remove(at, &self.tables),
                Ok(unfinished) => return Ok(unfinished),
                Err(error) => return Err(self.removal_failed(index, pasid, error)),
            }
            count(&mut self.statistics.unbinds);
        }
        if let Some(slot) = self.devices.get_mut(index) {
            log::info!("guest device {}: removed", slot.source_id);
            *slot = DeviceSlot::FREE;
        }
        Ok(Progress::Done)
    }

    fn removal_failed(&mut self, index: usize, pasid: Pasid, error: BindError) -> DeviceError {
        self.failed(index, pasid, &Desired::Blocked, &error);
        DeviceError::Bind(error)
    }

    // Registers.

    /// Reads `len_bytes` (1, 2, 4 or 8) at an offset into the register window, low byte first. Any
    /// alignment is defined; what is not a register reads as 0.
    pub fn read(&self, offset: u64, len_bytes: u8) -> u64 {
        let Some(offset) = window_offset(offset) else {
            return 0;
        };
        let (start, shift) = (offset & !3, u32::from(offset & 3) * 8);
        let mut value = u128::from(self.read_dword(start));
        let bits = u32::from(len_bytes.min(8)) * 8;
        if shift + bits > 32 {
            value |= u128::from(self.read_dword(start.saturating_add(4))) << 32;
        }
        if shift + bits > 64 {
            value |= u128::from(self.read_dword(start.saturating_add(8))) << 64;
        }
        (value >> shift) as u64 & low_bits(bits)
    }

    fn read_dword(&self, offset: u16) -> u32 {
        if u32::from(offset) >= REGISTER_WINDOW_BYTES {
            return 0;
        }
        match self.faults.read_dword(offset) {
            Some(value) => value,
            None => self.registers.read_dword(offset),
        }
    }

    /// Writes the low `len_bytes` (1, 2, 4 or 8) of a value at an offset into the register window.
    /// Any alignment is defined; what is not writable ignores it.
    ///
    /// Nothing but registers changes: call [`poll`](Self::poll) next.
    pub fn write(&mut self, offset: u64, len_bytes: u8, value: u64) {
        let Some(offset) = window_offset(offset) else {
            return;
        };
        let (start, shift) = (offset & !3, u32::from(offset & 3) * 8);
        let covered = u128::from(low_bits(u32::from(len_bytes.min(8)) * 8)) << shift;
        let value = u128::from(value) << shift & covered;
        for dword in 0..3u16 {
            let bit = u32::from(dword) * 32;
            let covered = (covered >> bit) as u32;
            let offset = start.saturating_add(dword * 4);
            if covered != 0 && u32::from(offset) < REGISTER_WINDOW_BYTES {
                self.write_dword(offset, (value >> bit) as u32, covered);
            }
        }
    }

    fn write_dword(&mut self, offset: u16, value: u32, covered: u32) {
        if self
            .faults
            .write_dword(offset, value & covered, &mut self.registers)
        {
            return;
        }
        let Some(write) = self.registers.write_dword(offset, value, covered) else {
            return;
        };
        let refused = write.value >> 63 == 1 && !self.has_register_invalidation();
        match write.register {
            Register::GlobalCommand => {
                self.command(write);
                self.interrupt_command(write);
            }
            // Refused at once: the granularity done is 0 (§6.5.1).
            Register::ContextCommand if refused => self.complete_context_command(0),
            Register::IotlbCommand if refused => self.complete_iotlb_command(0),
            Register::FaultStatus => {
                if !self
                    .registers
                    .fault_status()
                    .contains(crate::arch::register::FaultStatus::INVALIDATION_QUEUE_ERROR)
                {
                    self.registers.set(Register::QueueErrorRecord, 0);
                }
                self.registers.drop_fault_event_without_cause();
            }
            Register::CompletionStatus => self.registers.drop_completion_event_without_cause(),
            Register::FaultEventControl => self.registers.event_mask_written(Event::Fault),
            Register::CompletionEventControl => {
                self.registers.event_mask_written(Event::Completion);
            }
            _ => {}
        }
    }

    /// Acts on every bit of a command that differs from what was commanded before (§11.4.4.1).
    fn command(&mut self, write: RegisterWrite) {
        let mut before = GlobalCommand::empty();
        before.set(GlobalCommand::TRANSLATION_ENABLE, self.commands.translation);
        before.set(
            GlobalCommand::QUEUED_INVALIDATION_ENABLE,
            self.commands.queue,
        );
        let bits = u64::from(before.bits()) & !write.covered | write.value;
        let command = GlobalCommand::from_bits_truncate(bits as u32);
        if command.contains(GlobalCommand::SET_ROOT_TABLE_POINTER) {
            self.registers
                .set_status(GlobalStatus::ROOT_TABLE_POINTER_SET, false);
            self.commands.root_pointer = Some(RootTableAddress::from_bits(
                self.registers.get(Register::RootTableAddress),
            ));
        }
        self.commands.translation = command.contains(GlobalCommand::TRANSLATION_ENABLE);
        let queue = command.contains(GlobalCommand::QUEUED_INVALIDATION_ENABLE)
            && self.features.extended.has_queued_invalidation();
        if self.commands.queue && !queue {
            self.commands.queue_stop = true;
        }
        self.commands.queue = queue;
    }

    /// Register-based invalidation works with a legacy root table and without a queue (§6.5.1).
    fn has_register_invalidation(&self) -> bool {
        self.root.mode() == TranslationTableMode::Legacy
            && !self
                .registers
                .status()
                .contains(GlobalStatus::QUEUED_INVALIDATION_ENABLED)
    }

    fn context_command(&self) -> ContextCommand {
        ContextCommand::from_bits(self.registers.get(Register::ContextCommand))
    }

    fn iotlb_command(&self) -> IotlbCommand {
        IotlbCommand::from_bits(self.registers.get(Register::IotlbCommand))
    }

    fn complete_context_command(&mut self, granularity: u8) {
        let done = self.context_command().completed(granularity);
        self.registers.set(Register::ContextCommand, done.bits());
    }

    fn complete_iotlb_command(&mut self, granularity: u8) {
        let done = self.iotlb_command().completed(granularity);
        self.registers.set(Register::IotlbCommand, done.bits());
    }

    // Work.

    /// Does pending work, at most `budget` steps of about one guest table page or one host
    /// operation each, and sends event messages that are due.
    pub fn poll<Ho: Host<Binding = B>>(&mut self, host: &mut Ho, budget: u32) -> Poll {
        let mut left = budget;
        let outcome = loop {
            if !self.has_work() {
                break Poll::Idle;
            }
            let Some(after) = left.checked_sub(1) else {
                break Poll::Again;
            };
            left = after;
            if self.step(host) == Progress::Wait {
                break Poll::Wait;
            }
        };
        self.send_messages(host);
        outcome
    }

    fn has_work(&self) -> bool {
        let commands = &self.commands;
        let status = self.registers.status();
        self.job.is_some()
            || commands.reconcile
            || commands.reconcile_devices
            || commands.root_pointer.is_some()
            || commands.translation != status.contains(GlobalStatus::TRANSLATION_ENABLED)
            || commands.queue_stop
            || commands.queue && !status.contains(GlobalStatus::QUEUED_INVALIDATION_ENABLED)
            || self.context_command().is_requested()
            || self.iotlb_command().is_requested()
            || self.has_interrupt_work()
            || self.queue_has_work()
    }

    fn send_messages<Ho: Host<Binding = B>>(&mut self, host: &mut Ho) {
        if !self.registers.has_message() {
            return;
        }
        for event in Event::ALL {
            if let Some((address, data)) = self.registers.take_message(event) {
                count(&mut self.statistics.interrupts);
                host.deliver_interrupt(address, data);
            }
        }
    }

    fn step<Ho: Host<Binding = B>>(&mut self, host: &mut Ho) -> Progress {
        let Some(mut job) = self.job.take() else {
            self.job = self.next_job(host.memory());
            return Progress::Done;
        };
        let stepped = match &mut job.stage {
            Stage::Pass(pass) => self.step_pass(host, pass),
            Stage::Interrupts(pass) => self.step_interrupts(host, pass),
            Stage::Invalidate(what) => {
                let result = host.invalidate(what);
                if !matches!(result, Ok(Progress::Wait | Progress::Again)) {
                    count(&mut self.statistics.invalidations);
                }
                self.invalidated(result)
            }
            Stage::Flush { errors } => match host.flush() {
                // What was not confirmed is blocked; the rest is still to be. Each failure names
                // another device, and a host that says more is not waited for.
                Err(error) if *errors <= DEVICES => {
                    *errors = errors.saturating_add(1);
                    self.invalidation_failed(&error);
                    Stepped::More
                }
                result => self.invalidated(result),
            },
        };
        match stepped {
            Stepped::Wait => {
                self.job = Some(job);
                return Progress::Wait;
            }
            Stepped::More => self.job = Some(job),
            Stepped::Done => {
                job.stage = match (job.purpose, &job.stage) {
                    // Setting the root pointer drops all caches by itself (`ESRTPS`).
                    (Purpose::RootPointer, Stage::Pass(_)) => {
                        Stage::Invalidate(GuestInvalidation::All)
                    }
                    (Purpose::RootPointer | Purpose::IotlbCommand, Stage::Invalidate(_)) => {
                        Stage::Flush { errors: 0 }
                    }
                    // What a descriptor changes is completed by the guest's wait.
                    (purpose, Stage::Interrupts(_)) if purpose != Purpose::Descriptor => {
                        Stage::Flush { errors: 0 }
                    }
                    _ => {
                        self.finish(host, job.purpose);
                        return Progress::Done;
                    }
                };
                self.job = Some(job);
            }
        }
        Progress::Done
    }

    fn invalidated(&mut self, result: Result<Progress, BindError>) -> Stepped {
        match result {
            Ok(Progress::Wait) => Stepped::Wait,
            Ok(Progress::Again) => Stepped::More,
            Ok(Progress::Done) => Stepped::Done,
            Err(error) => {
                self.invalidation_failed(&error);
                Stepped::Done
            }
        }
    }

    fn invalidation_failed(&mut self, error: &BindError) {
        count(&mut self.statistics.invalidation_failures);
        log::warn!("guest invalidation: {error}");
    }

    /// The next job, registers before the queue.
    fn next_job(&mut self, memory: &impl GuestMemory) -> Option<Job> {
        if core::mem::take(&mut self.commands.reconcile) {
            return Some(self.pass_job(DeviceFilter::All, Purpose::Reconcile));
        }
        if self.commands.reconcile_devices {
            return self.next_device_job();
        }
        if let Some(root) = self.commands.root_pointer.take() {
            self.root = root;
            self.forget_contexts();
            if self.translating {
                return Some(self.pass_job(DeviceFilter::All, Purpose::RootPointer));
            }
            self.finish_root_pointer();
            return None;
        }
        let status = self.registers.status();
        let translation = self.commands.translation;
        if translation != status.contains(GlobalStatus::TRANSLATION_ENABLED) {
            self.translating = translation;
            self.forget_contexts();
            return Some(self.pass_job(DeviceFilter::All, Purpose::Translation(translation)));
        }
        if core::mem::take(&mut self.commands.queue_stop) {
            self.registers.set(Register::QueueHead, 0);
            self.registers
                .set_status(GlobalStatus::QUEUED_INVALIDATION_ENABLED, false);
            return None;
        }
        if self.commands.queue && !status.contains(GlobalStatus::QUEUED_INVALIDATION_ENABLED) {
            self.registers.set(Register::QueueHead, 0);
            self.registers
                .set_status(GlobalStatus::QUEUED_INVALIDATION_ENABLED, true);
            return None;
        }
        if self.context_command().is_requested() {
            return self.context_command_job();
        }
        if self.iotlb_command().is_requested() {
            return self.iotlb_command_job();
        }
        if self.has_interrupt_work() {
            return self.next_interrupt_job();
        }
        if self.queue_has_work() {
            return self.fetch(memory);
        }
        None
    }

    fn pass_job(&mut self, devices: DeviceFilter, purpose: Purpose) -> Job {
        Job {
            stage: Stage::Pass(self.new_pass(devices, EntryFilter::Everything)),
            purpose,
        }
    }

    fn next_device_job(&mut self) -> Option<Job> {
        let mut waiting = self
            .devices
            .iter_mut()
            .enumerate()
            .filter(|(_, slot)| slot.needs_reconcile && slot.state == SlotState::Active);
        let Some((index, slot)) = waiting.next() else {
            self.commands.reconcile_devices = false;
            return None;
        };
        slot.needs_reconcile = false;
        slot.forget_context();
        Some(self.pass_job(DeviceFilter::Handle(index), Purpose::Reconcile))
    }

    fn context_command_job(&mut self) -> Option<Job> {
        let command = self.context_command();
        // A legacy entry is dropped by device or by domain-id; more may always be dropped.
        let devices = match command.requested_granularity() {
            1 | 2 if self.has_register_invalidation() => DeviceFilter::All,
            3 if self.has_register_invalidation() => DeviceFilter::Source {
                source_id: command.source_id(),
                function_mask: command.function_mask(),
            },
            _ => {
                self.complete_context_command(0);
                return None;
            }
        };
        Some(Job {
            stage: self.begin_context_invalidation(devices),
            purpose: Purpose::ContextCommand,
        })
    }

    fn iotlb_command_job(&mut self) -> Option<Job> {
        let command = self.iotlb_command();
        let at = InvalidateAddress::from_bits(self.registers.get(Register::InvalidateAddress));
        let capability = self.features.capability;
        let domain_id = capability.truncate_domain_id(command.domain_id());
        let granularity = match command.requested_granularity() {
            _ if !self.has_register_invalidation() => None,
            1 => Some(IotlbGranularity::Global),
            2 => Some(IotlbGranularity::Domain(domain_id)),
            3 if capability.has_page_selective_invalidation()
                && at.address_mask() <= capability.maximum_address_mask() =>
            {
                Some(IotlbGranularity::Page {
                    domain_id,
                    address: at.address(),
                    address_mask: at.address_mask(),
                    leaf_hint: at.leaf_hint(),
                })
            }
            _ => None,
        };
        match granularity {
            Some(granularity) => Some(Job {
                stage: self.begin_invalidation(second_stage_invalidation(granularity)),
                purpose: Purpose::IotlbCommand,
            }),
            None => {
                self.complete_iotlb_command(0);
                None
            }
        }
    }

    /// Everything that came from the tables below the root is to be read again.
    pub(super) fn forget_contexts(&mut self) {
        self.translations.clear();
        for slot in &mut self.devices {
            slot.forget_context();
        }
    }

    fn finish_root_pointer(&mut self) {
        // A further command keeps the status clear until it is done, too.
        if self.commands.root_pointer.is_none() {
            self.registers
                .set_status(GlobalStatus::ROOT_TABLE_POINTER_SET, true);
        }
    }

    /// Shows the guest that a job is done.
    fn finish<Ho: Host<Binding = B>>(&mut self, host: &Ho, purpose: Purpose) {
        match purpose {
            Purpose::Descriptor => self.pass_descriptor(),
            Purpose::Wait { status, interrupt } => {
                self.complete_wait(host, status, interrupt);
                self.pass_descriptor();
            }
            Purpose::RootPointer => self.finish_root_pointer(),
            Purpose::Translation(on) => {
                self.registers
                    .set_status(GlobalStatus::TRANSLATION_ENABLED, on);
                self.restart_fault_records_if_off();
            }
            Purpose::InterruptPointer => self.finish_interrupt_pointer(),
            Purpose::InterruptRemapping(on) => self.finish_interrupt_remapping(on),
            Purpose::Reconcile => {}
            Purpose::ContextCommand => {
                let granularity = self.context_command().requested_granularity();
                self.complete_context_command(granularity);
            }
            Purpose::IotlbCommand => {
                let granularity = self.iotlb_command().requested_granularity();
                self.complete_iotlb_command(granularity);
            }
        }
    }

    // Faults and reset.

    /// The internal fault index starts over while all remapping is off (§7.2.1).
    pub(super) fn restart_fault_records_if_off(&mut self) {
        let remapping =
            GlobalStatus::TRANSLATION_ENABLED | GlobalStatus::INTERRUPT_REMAPPING_ENABLED;
        if !self.registers.status().intersects(remapping) {
            self.faults.restart();
        }
    }

    /// Records a fault of one of the guest's devices, and raises the fault event as the guest has
    /// it set up (§7.2, §7.3).
    pub fn record_fault<Ho: Host<Binding = B>>(&mut self, fault: &GuestFault, host: &mut Ho) {
        self.record(fault);
        self.send_messages(host);
    }

    /// As [`record_fault`](Self::record_fault); the message is sent by the next
    /// [`poll`](Self::poll).
    pub(super) fn record(&mut self, fault: &GuestFault) {
        let address = match fault.reason.mode() {
            // An index, not an address.
            FaultMode::Interrupt => fault.address,
            _ => self.features.capability.recorded_page(fault.address),
        };
        let fault = GuestFault { address, ..*fault };
        self.faults
            .record(&fault, &mut self.registers, &mut self.statistics);
    }

    /// Resets the unit as power does: all registers, all state of the queue. Devices stay. The
    /// following [`poll`](Self::poll) takes back all PASIDs and binds requests without PASID to the
    /// machine's memory; it completes whatever fails.
    pub fn reset(&mut self) {
        count(&mut self.statistics.resets);
        self.registers = RegisterFile::new(&self.features);
        self.faults.reset();
        self.root = RootTableAddress::from_bits(0);
        self.reset_interrupts();
        self.translating = false;
        self.job = None;
        self.forget_contexts();
        for slot in &mut self.devices {
            slot.needs_reconcile = false;
        }
        self.commands = Commands {
            reconcile: true,
            ..Commands::NONE
        };
    }
}

/// An offset within the register window.
fn window_offset(offset: u64) -> Option<u16> {
    u16::try_from(offset)
        .ok()
        .filter(|offset| u32::from(*offset) < REGISTER_WINDOW_BYTES)
}

/// A mask of the low `bits` bits.
const fn low_bits(bits: u32) -> u64 {
    match u64::MAX.checked_shr(64u32.saturating_sub(bits)) {
        Some(mask) => mask,
        None => 0,
    }
}

/// The first capability shown that a virtual unit does not have.
fn not_emulated(features: &Features) -> Option<&'static str> {
    use CapabilityField as C;
    use ExtendedCapabilityField as E;
    const CAPABILITY: [C; 5] = [
        C::WRITE_BUFFER_FLUSH,
        C::PROTECTED_LOW_MEMORY,
        C::PROTECTED_HIGH_MEMORY,
        C::POSTED_INTERRUPTS,
        C::ENHANCED_COMMANDS,
    ];
    const EXTENDED: [E; 19] = [
        E::EXTENDED_INTERRUPT_MODE_REQUIRED,
        E::MEMORY_TYPES,
        E::NESTED,
        E::PAGE_REQUESTS,
        E::EXECUTE_REQUESTS,
        E::NO_WRITE_FLAG,
        E::PAGE_REQUEST_DRAIN,
        E::VIRTUAL_COMMANDS,
        E::SECOND_STAGE_ACCESSED_DIRTY,
        // Requests without PASID always use PASID 0.
        E::RID_PASID,
        E::RID_PRIV,
        E::TDX_CONNECT,
        E::PERFORMANCE_MONITORING,
        E::ABORT_DMA_MODE,
        E::HOST_PERMISSION_TABLES,
        E::PASID_IN_TRANSLATED_REQUESTS,
        E::SECOND_STAGE_IO_PERMISSIONS,
        E::RESOURCE_DIRECTOR,
        E::INTERRUPT_REMAPPING_REQUIRED,
    ];
    let extended: ExtendedCapability = features.extended;
    CAPABILITY
        .iter()
        .find(|field| features.capability.has(**field))
        .map(|field| field.mnemonic())
        .or_else(|| {
            EXTENDED
                .iter()
                .find(|field| extended.has(**field))
                .map(|field| field.mnemonic())
        })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::super::registers::{Place, REGISTERS};
    use super::super::testing::*;
    use super::*;
    use crate::arch::address::AddressWidth;
    use crate::arch::context::{DirectoryOrder, LegacyContextEntry};
    use crate::arch::pasid::PasidEntry;

    /// The registers of one dword: its value after reset, its writable bits, its readable bits.
    fn expected_dword(offset: u16, features: &Features) -> (u64, u64, u64) {
        for register in REGISTERS {
            let start = match register.place {
                Place::At(start) => start,
                Place::Iotlb(within) => features.extended.iotlb_register_offset() + within,
                Place::FaultRecords => continue,
            };
            let end = start + u16::from(register.len_bytes);
            let is_shown =
                register.name != "IRTA_REG" || features.extended.has_interrupt_remapping();
            if is_shown && (start..end).contains(&offset) {
                let shift = u32::from(offset - start) * 8;
                let reset = match register.name {
                    "CAP_REG" => features.capability.bits(),
                    "ECAP_REG" => features.extended.bits(),
                    _ => register.reset,
                };
                let dword = |value: u64| value >> shift & 0xffff_ffff;
                return (
                    dword(reset & register.readable),
                    dword(register.writable),
                    dword(register.readable),
                );
            }
        }
        (0, 0, 0)
    }

    #[test]
    fn registers_read_as_the_specification_s_reset_values() {
        // §11.4, with VER 1.0.
        let t = Bench::new();
        for (offset, value) in [
            (0x00, 0x10),
            (0x1c, 0),
            (0x20, 0),
            (0x34, 0),
            (0x38, 0x8000_0000),
            (0x88, 0),
            (0x90, 0),
            (0x9c, 0),
            (0xa0, 0x8000_0000),
        ] {
            assert_eq!(t.unit.read(offset, 4), value, "{offset:x}");
        }
        assert_eq!(t.unit.read(0x08, 8), t.unit.features().capability.bits());
        assert_eq!(t.unit.read(0x10, 8), t.unit.features().extended.bits());
    }

    #[test]
    fn every_offset_and_width_is_defined_and_what_is_no_register_reads_0() {
        // S56, G37: dword by dword, all ones written; then every width and alignment is the same
        // bytes.
        let commands = [0x18, 0x2c, 0xfc];
        let dwords = || (0..0x1000u16).step_by(4);
        let setups = [0, 1 << 3].into_iter();
        for (extended, offset) in setups.flat_map(|bits| dwords().map(move |at| (bits, at))) {
            let mut t = Bench::with(Setup {
                extended,
                ..Setup::default()
            });
            let features = *t.unit.features();
            let (reset, writable, readable) = expected_dword(offset, &features);
            assert_eq!(t.unit.read(u64::from(offset), 4), reset, "{offset:x}");
            t.unit.write(u64::from(offset), 4, u64::MAX);
            if !commands.contains(&offset) {
                let expected = (reset & !writable | writable) & readable;
                assert_eq!(t.unit.read(u64::from(offset), 4), expected, "{offset:x}");
            }
        }
        let mut t = Bench::new();
        for offset in 0..0x1000 {
            t.unit.write(
                offset,
                8,
                0x0123_4567_89ab_cdef_u64.rotate_left(offset as u32),
            );
        }
        let bytes: Vec<u64> = (0..0x1010).map(|offset| t.unit.read(offset, 1)).collect();
        for offset in 0..0x1000usize {
            for len in [2, 4, 8] {
                let value = (0..len).map(|n| bytes[offset + n] << (8 * n)).sum::<u64>();
                assert_eq!(
                    t.unit.read(offset as u64, len as u8),
                    value,
                    "{offset:x} {len}"
                );
            }
        }
        for offset in [0x1000, 0x1_0000, u64::MAX, u64::MAX - 7] {
            t.unit.write(offset, 8, u64::MAX);
            assert_eq!(t.unit.read(offset, 8), 0);
        }
        t.run();
    }

    #[test]
    fn writes_of_any_width_build_the_same_value() {
        // S56.
        for len in [1u8, 2, 4, 8] {
            let mut t = Bench::new();
            let value: u64 = 0x1234_5678_9abc_d400;
            for at in (0..8).step_by(usize::from(len)) {
                t.unit.write(RTADDR + at as u64, len, value >> (8 * at));
            }
            assert_eq!(t.unit.read(RTADDR, 8), value, "{len}");
        }
        // Straddling FEDATA and FEADDR.
        let mut t = Bench::new();
        t.unit.write(FECTL + 4 + 2, 4, 0x5678_1234);
        assert_eq!(t.unit.read(FECTL + 4, 8), 0x5678_0000_0000);
        // A byte of GCMD leaves the others as commanded.
        t.unit.write(GCMD + 3, 1, TE >> 24);
        t.run();
        assert!(t.unit.is_translating());
        t.unit.write(GCMD, 1, 0xff);
        t.run();
        assert!(t.unit.is_translating());
    }

    #[test]
    fn combined_commands_set_the_root_pointer_first() {
        // §11.4.4.1 forbids it; the order chosen is the safe one.
        let mut t = Bench::new();
        t.context(D0, DirectoryOrder::SMALLEST);
        t.assign(0, D0);
        t.entry(D0, 0, first_stage(7, 0x20_0000));
        t.unit.write(RTADDR, 8, ROOT | 1 << 10);
        t.unit.write(GCMD, 4, TE | SRTP);
        t.run();
        assert_eq!(t.unit.read(GSTS, 4), TE | SRTP);
        assert_eq!(t.bound(0, 0), first_stage_binding(7, 0x20_0000));
    }

    #[test]
    fn the_root_address_counts_once_it_is_taken_over() {
        // §11.4.5: latched by SRTP.
        let mut t = Bench::scalable();
        t.entry(D0, 0, pass_through(7));
        t.unit.write(RTADDR, 8, 0xdead_0000);
        assert_eq!(t.unit.read(RTADDR, 8), 0xdead_0000);
        t.invalidate_all();
        assert_eq!(t.bound(0, 0), pass_through_binding(7));
    }

    #[test]
    fn a_new_root_is_shown_as_set_once_hardware_has_forgotten_the_old_one() {
        // R25: with `ESRTPS` setting the root pointer drops all caches by itself.
        let mut t = Bench::scalable();
        t.host.waits = 3;
        t.unit.write(RTADDR, 8, ROOT | 1 << 10);
        t.command_later(SRTP);
        for _ in 0..6 {
            assert_eq!(t.unit.poll(&mut t.host, 100), Poll::Wait);
            assert_eq!(t.unit.read(GSTS, 4) & SRTP, 0);
        }
        t.run();
        assert_eq!(t.unit.read(GSTS, 4) & SRTP, SRTP);
        let expected = [Call::Invalidate(GuestInvalidation::All), Call::Flush];
        assert_eq!(t.host.calls, expected);
    }

    /// A legacy root with D0 bound under domain-id 3, the queue off.
    fn legacy() -> (Bench, u64) {
        let mut t = Bench::new();
        let (root, table) = (t.page(), t.page());
        t.store(root, &[table | 1]);
        let entry = LegacyContextEntry::pass_through(AddressWidth::Bits48, did(3));
        let at = table + u64::from(D0) * 16;
        t.store(at, entry.quadwords());
        t.assign(0, D0);
        t.set_root_at(root, crate::arch::register::TranslationTableMode::Legacy);
        t.enable_translation();
        assert_eq!(t.bound(0, 0), pass_through_binding(3));
        t.forget();
        (t, at)
    }

    const CCMD: u64 = 0x28;
    const ASSIGNED: DeviceKind = DeviceKind::Assigned { pasid_bits: 20 };

    #[test]
    fn register_based_invalidation_works_in_legacy_mode_without_a_queue() {
        // §6.5.1, §11.4.6: ICC and IVT stay set until it is done.
        let (mut t, context) = legacy();
        t.store(context, &[0, 0]);
        t.host.waits = 2;
        // Device-selective, another device; then this one; the dword that has ICC acts.
        for (source_id, expected) in [(D1, pass_through_binding(3)), (D0, Desired::Blocked)] {
            t.unit.write(CCMD, 4, u64::from(source_id) << 16 | 3);
            t.unit.write(CCMD + 4, 4, 1 << 31 | 3 << 29);
            assert_eq!(t.unit.read(CCMD, 8) >> 63, 1);
            t.run();
            assert_eq!(t.unit.read(CCMD, 8) >> 59, 0b01111, "CIRG and CAIG: device");
            assert_eq!(t.bound(0, 0), expected);
        }
        t.forget();
        t.unit.write(IVA, 8, 0x1234_5000 | 3 | 1 << 6);
        t.unit.write(IOTLB, 8, 1 << 63 | 3 << 60 | 3 << 32);
        assert_eq!(t.unit.poll(&mut t.host, 100), Poll::Wait);
        assert_eq!(t.unit.read(IOTLB, 8) >> 63, 1);
        t.run();
        assert_eq!(
            t.unit.read(IOTLB, 8) >> 57,
            0b001_1011,
            "IIRG and IAIG: page"
        );
        let pages = super::super::PageRange {
            address: crate::arch::address::Iova::new(0x1234_0000),
            order: 3,
            leaf_only: true,
        };
        let what = GuestInvalidation::DomainPages {
            domain_id: did(3),
            pages,
        };
        assert_eq!(t.host.calls, [Call::Invalidate(what), Call::Flush]);
    }

    #[test]
    fn register_based_invalidation_is_refused_where_it_does_not_exist() {
        // §6.5.1: granularity 0 says so. Also AM beyond MAMV and reserved granularities.
        let refused = |t: &mut Bench, at: u64, value: u64, actual: u32| {
            t.unit.write(at, 8, value);
            t.run();
            assert_eq!(t.unit.read(at, 8) >> 63, 0);
            assert_eq!(t.unit.read(at, 8) >> actual & 3, 0);
            assert_eq!(t.host.operations(), 0);
        };
        let mut t = Bench::scalable();
        refused(&mut t, CCMD, 1 << 63 | 1 << 61, 59);
        refused(&mut t, IOTLB, 1 << 63 | 1 << 60, 57);
        let (mut t, _) = legacy();
        refused(&mut t, CCMD, 1 << 63, 59);
        refused(&mut t, IOTLB, 1 << 63, 57);
        t.unit.write(IVA, 8, 19);
        refused(&mut t, IOTLB, 1 << 63 | 3 << 60, 57);
        t.enable_queue();
        t.forget();
        refused(&mut t, CCMD, 1 << 63 | 1 << 61, 59);
    }

    #[test]
    fn a_device_added_while_translation_is_on_is_never_open() {
        // S38.
        let mut t = Bench::scalable();
        t.context(D1, DirectoryOrder::LARGEST);
        t.entry(D1, 5, first_stage(7, 0x20_0000));
        t.assign(1, D1);
        assert_eq!(t.binds(), [(1, 5, first_stage_binding(7, 0x20_0000))]);
        t.assign(2, 0x1234);
        assert_eq!((t.bound(2, 0), t.binds().len()), (Desired::Blocked, 1));
    }

    #[test]
    fn a_device_added_while_translation_is_off_reaches_the_machine_s_memory() {
        let mut t = Bench::new();
        t.assign(0, D0);
        assert_eq!(t.binds(), [(0, 0, Desired::MachineMemory)]);
    }

    #[test]
    fn removing_a_device_takes_all_its_bindings_away() {
        // S37, R5: 100 bindings; another device keeps its own.
        let mut t = Bench::scalable();
        let directory = t.directories[&D0];
        t.share(D1, DirectoryOrder::LARGEST, directory);
        for pasid in 0..100 {
            t.entry(D0, pasid, first_stage(7, 0x20_0000));
        }
        t.assign(1, D1);
        t.invalidate_all();
        assert_eq!(t.host.actual.len(), 200);
        t.forget();
        t.host.waits = 1;
        let mut calls = 0;
        while t.unit.remove_device(handle(0), &mut t.host).unwrap() == Progress::Wait {
            calls += 1;
            assert!(calls < 200);
        }
        assert_eq!(t.binds().len(), 100);
        assert!(t.host.actual.keys().all(|key| key.0 == 1) && t.host.actual.len() == 100);
        t.run();
        assert_eq!(
            t.unit.remove_device(handle(0), &mut t.host),
            Err(DeviceError::Unknown(handle(0)))
        );
        // The handle is free again.
        t.assign(0, D0);
        assert_eq!(t.host.actual.len(), 200);
    }

    #[test]
    fn a_removal_that_fails_is_kept_and_can_be_repeated() {
        // R22, S90.
        let mut t = Bench::scalable();
        t.entry(D0, 5, first_stage(7, 0x20_0000));
        t.invalidate_all();
        t.host.stuck.insert((0, 5));
        assert!(t.unit.remove_device(handle(0), &mut t.host).is_err());
        let again = t.unit.add_device(handle(0), sid(D0), ASSIGNED);
        assert_eq!(again, Err(DeviceError::InUse(handle(0))));
        t.invalidate_all();
        assert_eq!(t.unit.bindings(), 1);
        t.host.stuck.clear();
        assert_eq!(
            t.unit.remove_device(handle(0), &mut t.host),
            Ok(Progress::Done)
        );
        assert_eq!((t.unit.bindings(), t.host.actual.len()), (0, 0));
    }

    #[test]
    fn a_removal_amid_a_pass_ends_the_pass_s_work_for_the_device() {
        let mut t = Bench::scalable();
        for pasid in 0..10 {
            t.entry(D0, pasid, first_stage(7, 0x20_0000));
        }
        t.host.waits = 1;
        t.enqueue(&[[0x37, 0, 0, 0]]);
        for _ in 0..4 {
            let _ = t.unit.poll(&mut t.host, 100);
        }
        assert!(!t.host.actual.is_empty());
        t.host.waits = 0;
        assert_eq!(
            t.unit.remove_device(handle(0), &mut t.host),
            Ok(Progress::Done)
        );
        t.run();
        assert_eq!((t.unit.bindings(), t.host.actual.len()), (0, 0));
        assert_eq!(t.unit.read(IQH, 8), 32);
    }

    #[test]
    fn devices_are_told_apart() {
        let mut t = Bench::new();
        t.assign(0, D0);
        let kind = ASSIGNED;
        let add = |t: &mut Bench, index, source_id| {
            t.unit.add_device(handle(index), sid(source_id), kind)
        };
        assert_eq!(add(&mut t, 0, D1), Err(DeviceError::InUse(handle(0))));
        assert_eq!(add(&mut t, 1, D0), Err(DeviceError::SourceIdInUse(sid(D0))));
        assert_eq!(
            add(&mut t, 4, D1),
            Err(DeviceError::BeyondTable {
                handle: handle(4),
                capacity: 4
            })
        );
        assert_eq!(
            t.unit.set_source_id(handle(3), sid(1)),
            Err(DeviceError::Unknown(handle(3)))
        );
    }

    #[test]
    fn a_device_gets_no_pasid_that_it_cannot_send() {
        // R14: the width of the device, below that of the unit.
        for (pasid_bits, expected) in [(0, 1), (3, 8), (6, 64), (20, 70)] {
            let mut t = Bench::scalable();
            t.context(D1, DirectoryOrder::LARGEST);
            for pasid in 0..70 {
                t.entry(D1, pasid, first_stage(7, 0x20_0000));
            }
            let kind = DeviceKind::Assigned { pasid_bits };
            t.unit.add_device(handle(1), sid(D1), kind).unwrap();
            t.invalidate_pasid(7, 8);
            t.invalidate_all();
            assert_eq!(t.host.actual.len(), expected, "{pasid_bits}");
        }
    }

    #[test]
    fn a_new_source_id_leads_to_other_tables() {
        // R1: bus renumbering.
        let mut t = Bench::scalable();
        t.entry(D0, 5, first_stage(7, 0x20_0000));
        t.invalidate_all();
        t.context(0x0310, DirectoryOrder::LARGEST);
        t.entry(0x0310, 6, first_stage(8, 0x30_0000));
        t.unit.set_source_id(handle(0), sid(0x0310)).unwrap();
        t.run();
        assert_eq!(t.host.actual.keys().collect::<Vec<_>>(), [&(0, 6)]);
    }

    #[test]
    fn reset_completes_whatever_fails() {
        // S36, R26: one operation fails, in turn; amid a pass; devices stay.
        for number in 0..6 {
            let mut t = Bench::scalable();
            for pasid in [0, 5, 6] {
                t.entry(D0, pasid, first_stage(7, 0x20_0000));
            }
            t.invalidate_all();
            t.forget();
            t.entry(D0, 5, first_stage(7, 0x30_0000));
            t.host.waits = 1;
            t.enqueue(&[[0x37, 0, 0, 0]]);
            let _ = t.unit.poll(&mut t.host, 100);
            t.host.fail.insert(number, BindError::Unit);
            t.unit.reset();
            for (offset, value) in [(GSTS, 0), (IQH, 0), (IQT, 0), (RTADDR, 0), (FSTS, 0)] {
                assert_eq!(t.unit.read(offset, 4), value);
            }
            t.run();
            for pasid in [5, 6] {
                assert_eq!(t.bound(0, pasid), Desired::Blocked);
            }
            assert!(matches!(
                t.bound(0, 0),
                Desired::Blocked | Desired::MachineMemory
            ));
            assert_eq!(t.take_fault(), None, "the guest has not failed");
            // Made good by what comes next.
            t.set_root(crate::arch::register::TranslationTableMode::Scalable);
            t.enable_translation();
            t.entry(D0, 6, PasidEntry::from_quadwords([0; 8]));
            t.disable_translation();
            assert_eq!(t.bound(0, 0), Desired::MachineMemory, "{number}");
            assert_eq!(t.unit.bindings(), 0, "{number}");
        }
    }

    #[test]
    fn a_failed_translation_off_stays_blocked_until_looked_at_again() {
        let mut t = Bench::new();
        t.host.fail.insert(0, BindError::Unit);
        t.assign(0, D0);
        assert_eq!((t.bound(0, 0), t.take_fault()), (Desired::Blocked, None));
        t.unit.reconcile_device(handle(0)).unwrap();
        t.run();
        assert_eq!(t.bound(0, 0), Desired::MachineMemory);
    }

    #[test]
    fn a_budget_of_nothing_does_nothing() {
        let mut t = Bench::new();
        t.unit.add_device(handle(0), sid(D0), ASSIGNED).unwrap();
        assert_eq!(t.unit.poll(&mut t.host, 0), Poll::Again);
        assert_eq!(t.host.operations(), 0);
    }

    #[test]
    fn what_is_not_emulated_cannot_be_shown() {
        // R34, G28.
        let make = |change: fn(&mut Features)| {
            let mut features = Setup::default().features();
            change(&mut features);
            Unit::new(VirtualUnitConfig {
                features,
                fault_records: 4,
                hash_seed: 1,
            })
            .err()
        };
        assert_eq!(make(|_| {}), None);
        use CapabilityField as C;
        use ExtendedCapabilityField as E;
        type Change = fn(&mut Features);
        let cases: [(Change, ConfigError); 6] = [
            (|f| f.host_address_width = 53, ConfigError::AddressWidth(53)),
            (
                |f| f.capability = f.capability.with(C::FAULT_RECORD_COUNT, 40),
                ConfigError::FaultRecords(4),
            ),
            (
                |f| {
                    f.extended = f
                        .extended
                        .with(E::INTERRUPT_REMAPPING, 1)
                        .with(E::INTERRUPT_REMAPPING_REQUIRED, 1)
                },
                ConfigError::NotEmulated { field: "IRREQ" },
            ),
            (
                |f| f.capability = f.capability.with(C::PROTECTED_LOW_MEMORY, 1),
                ConfigError::NotEmulated { field: "PLMR" },
            ),
            (
                |f| f.extended = f.extended.with(E::RID_PASID, 1),
                ConfigError::NotEmulated { field: "RPS" },
            ),
            (
                |f| f.capability = f.capability.with(C::DOMAIN_ID_WIDTH, 7),
                ConfigError::Capability(CapabilityError::DomainIdWidth { field: 7 }),
            ),
        ];
        for (change, expected) in cases {
            assert_eq!(make(change), Some(expected));
        }
    }
}
