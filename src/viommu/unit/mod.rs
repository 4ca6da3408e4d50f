//! The virtual unit: what the guest programs, and the loop that carries it out.

mod config;
mod devices;
mod register_access;
#[cfg(test)]
mod tests;
mod work;

use crate::arch::capability::{Capability, ExtendedCapability};
use crate::arch::capability::{Features, validate};
use crate::arch::fault::{FaultMode, FaultReason};
use crate::arch::features::TableFeatures;
use crate::arch::register::{GlobalStatus, RootTableAddress, TranslationTableMode};

use super::emulated::TRANSLATION_SETS;
use super::fault::{FaultRecorder, GuestFault, MAX_FAULT_RECORDS};
use super::host::{Desired, Host, HostState};
use super::interrupt::InterruptState;
use super::keyed_hash::KeyedHash;
use super::pasid_cache::{MAXIMUM_BINDINGS, PasidCache};
use super::registers::{REGISTER_WINDOW_BYTES, RegisterFile, VERSION};
use super::statistics::{VirtualUnitStatistics, count};
use super::synchronise::PageCopies;
use super::tables::{GuestTableReader, table_features};
use super::translation_cache::TranslationCache;

use config::not_emulated;
pub use config::{ConfigError, VirtualUnitConfig};
use devices::SlotState;
pub(in crate::viommu) use devices::{CachedContext, DeviceSlot};
pub use devices::{DeviceError, DeviceKind};
pub use work::Poll;
pub(in crate::viommu) use work::{Commands, Job, Purpose, Stage};

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
    pub(super) fn default_binding(&self, handle: super::host::DeviceHandle) -> Option<Desired> {
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
}

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
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
