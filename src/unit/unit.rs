//! One remapping unit: what it is, what it can do, and where its state lives.

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::command::CommandSlot;
use super::discovery::UnitDescription;
use super::domain_ids::DomainIds;
use super::errata::Errata;
use super::error::{Requirement, UnitError};
use super::fault::FaultCursor;
use super::interrupt::{InterruptConfig, InterruptRemapping, InterruptTable};
use super::lock::{Lock, Rank};
use super::queue::Queue;
use super::rmrr::ReservedMemory;
use super::statistics::{Counters, UnitStatistics};
use super::tables::Tables;
use crate::arch::address::Hpa;
use crate::arch::capability::{
    Capability, CapabilityError, ExtendedCapability, ExtendedCapabilityField, Features, validate,
};
use crate::arch::features::TableFeatures;
use crate::arch::id::DomainId;
use crate::arch::register::{
    DescriptorWidth, InvalidationQueueAddress, Register32, Register64, TranslationTableMode,
};
use crate::mem::Registers;

/// What bring-up does with a unit that firmware left translating, with its queue on, or remapping
/// interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnFirmwareState {
    /// Stop its queue and replace its root table, as long as all DMA stays checked meanwhile.
    /// Otherwise fail with [`UnitError::TranslationGap`].
    #[default]
    TakeOver,
    /// The same, and turn translation off for a moment where the mode of the root table must not
    /// change while it is on (§11.4.5): firmware's has another one, and the unit lacks
    /// `CAP.ESRTPS`. The embedder keeps the devices' bus mastering off.
    TakeOverWithGap,
    /// Touch nothing and fail.
    Refuse,
}

/// How to drive a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnitConfig {
    /// The PCI segment whose devices the unit remaps.
    pub segment: u16,
    /// Where the unit's registers are: with the segment, its name.
    pub base: Hpa,
    /// The width of physical addresses in bits, from the DMAR table (`HAW`, §8.1): 12 to 64.
    pub host_address_width: u8,
    /// How long hardware may take for one command or one submission.
    pub timeout_nanoseconds: u64,
    /// How long hardware may take beside that to give up a device which does not answer a device-TLB
    /// invalidation (`FSTS.ITE`). Whoever waits for something behind it in the queue waits for that.
    pub device_timeout_nanoseconds: u64,
    /// The invalidation queue has 2^order pages of 128 descriptors each: 0 to 7 (`IQA.QS`).
    pub queue_order: u8,
    /// What to do with what firmware left on.
    pub on_firmware_state: OnFirmwareState,
    /// What is wrong with the unit, from [`Errata::of`] its platform.
    pub errata: Errata,
    /// Whether and how interrupts are remapped.
    pub interrupts: InterruptConfig,
}

impl UnitConfig {
    /// As [`new`](Self::new), for a unit that [`discover`](crate::unit::discover) found.
    pub const fn of(description: &UnitDescription) -> Self {
        Self {
            base: description.base,
            ..Self::new(description.segment, description.host_address_width)
        }
    }

    /// One second for hardware, 90 seconds for devices, which is what PCI Express lets an invalidation
    /// take, a queue of 1024 descriptors, taking over, no errata, and interrupts remapped where the
    /// unit can.
    pub const fn new(segment: u16, host_address_width: u8) -> Self {
        Self {
            segment,
            base: Hpa::new(0),
            host_address_width,
            timeout_nanoseconds: 1_000_000_000,
            device_timeout_nanoseconds: 90_000_000_000,
            queue_order: 3,
            on_firmware_state: OnFirmwareState::TakeOver,
            errata: Errata::NONE,
            interrupts: InterruptConfig::new(),
        }
    }
}

/// How far a unit is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Phase {
    Down = 0,
    Working = 1,
    Up = 2,
    Suspended = 3,
}

/// One physical remapping unit.
///
/// About 19 KiB, most of it the bitmap of domain-ids and the record of what is in the queue, whose
/// descriptors lie in frames like the tables. It
/// can be shared: any processor may call any method at any time, but changes of one device's
/// PASID entries must be serialised by the caller.
#[derive(Debug)]
pub struct Unit<R> {
    pub(super) registers: Lock<R>,
    pub(super) features: Features,
    pub(super) table_features: TableFeatures,
    pub(super) config: UnitConfig,
    pub(super) phase: AtomicU8,
    /// The unit's root table pointer is that of `tables`.
    pub(super) owns_root: AtomicBool,
    pub(super) commands: Lock<CommandSlot>,
    pub(super) queue: Lock<Queue>,
    pub(super) tables: Lock<Tables>,
    pub(super) faults: Lock<FaultCursor>,
    pub(super) interrupts: Lock<InterruptTable>,
    domain_ids: Lock<DomainIds>,
    pub(super) reserved: Lock<ReservedMemory>,
    pub(super) counters: Counters,
}

impl<R: Registers> Unit<R> {
    /// Reads and checks what the unit is; changes nothing in it (§11.4.1 to §11.4.3).
    ///
    /// An ability that is reported without what it needs is taken as absent, and so is one that an
    /// [erratum](UnitConfig::errata) makes unusable.
    ///
    /// # Errors
    ///
    /// [`UnitError::Capability`] if the registers cannot be those of a working unit,
    /// [`UnitError::Missing`] if this driver cannot drive it, [`UnitError::HostAddressWidth`],
    /// [`UnitError::QueueOrder`] and [`UnitError::InterruptTableOrder`] for an impossible
    /// configuration.
    pub fn probe(registers: R, config: UnitConfig) -> Result<Self, UnitError> {
        if !(12..=64).contains(&config.host_address_width) {
            return Err(UnitError::HostAddressWidth(config.host_address_width));
        }
        if config.queue_order > InvalidationQueueAddress::MAX_SIZE_ORDER {
            return Err(UnitError::QueueOrder(config.queue_order));
        }
        let InterruptConfig {
            remapping,
            table_order,
            ..
        } = config.interrupts;
        if table_order > 15 {
            return Err(UnitError::InterruptTableOrder(table_order));
        }
        let version = registers.read32(Register32::VERSION);
        let capability = Capability::from_bits(registers.read64(Register64::CAPABILITY));
        let extended =
            ExtendedCapability::from_bits(registers.read64(Register64::EXTENDED_CAPABILITY));
        let window_bytes = u32::try_from(registers.window_bytes()).unwrap_or(u32::MAX);
        match validate(capability, extended, version, window_bytes) {
            Ok(()) => {}
            Err(error @ CapabilityError::MissingPrerequisite { .. }) => {
                log::warn!("remapping unit: {error}");
            }
            Err(error) => return Err(UnitError::Capability(error)),
        }
        for erratum in config.errata.iter() {
            log::warn!("remapping unit has an erratum: {erratum}");
        }
        let (capability, extended) = config.errata.correct(capability, extended);
        let mut features = Features::new(capability, extended, config.host_address_width);
        if remapping == InterruptRemapping::Forbidden {
            let absent = ExtendedCapabilityField::INTERRUPT_REMAPPING;
            features.extended = features.extended.with(absent, 0);
        }
        let missing = [
            (
                features.extended.has_queued_invalidation(),
                Requirement::QueuedInvalidation,
            ),
            (
                features.largest_address_width().is_some(),
                Requirement::AddressWidth,
            ),
            (
                features.extended.has_interrupt_remapping()
                    || remapping != InterruptRemapping::Required,
                Requirement::InterruptRemapping,
            ),
        ]
        .into_iter()
        .find_map(|(is_there, requirement)| (!is_there).then_some(requirement));
        if let Some(requirement) = missing {
            return Err(UnitError::Missing(requirement));
        }
        Ok(Self {
            registers: Lock::new(Rank::Registers, registers),
            table_features: TableFeatures::from(&features),
            config,
            phase: AtomicU8::new(Phase::Down as u8),
            owns_root: AtomicBool::new(false),
            commands: Lock::new(Rank::Commands, CommandSlot::Idle),
            queue: Lock::new(Rank::Queue, Queue::new()),
            tables: Lock::new(Rank::Tables, Tables::new()),
            faults: Lock::new(Rank::Faults, FaultCursor::default()),
            interrupts: Lock::new(Rank::Interrupts, InterruptTable::new(&config.interrupts)),
            domain_ids: Lock::new(
                Rank::DomainIds,
                DomainIds::new(features.capability.domain_id_bits()),
            ),
            reserved: Lock::new(Rank::Reserved, ReservedMemory::new()),
            counters: Counters::default(),
            features,
        })
    }

    /// The unit's capabilities, without those that lack a prerequisite or are not to be used.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// The mode of the unit's tables: scalable if it has second-stage translation there, otherwise
    /// legacy.
    pub const fn table_mode(&self) -> TranslationTableMode {
        table_mode_for(&self.features)
    }

    pub(super) const fn is_scalable(&self) -> bool {
        matches!(self.table_mode(), TranslationTableMode::Scalable)
    }

    /// The width of the queue's descriptors: 256 bits wherever the unit has scalable mode, in which
    /// they are a must (§6.5.2).
    pub(super) const fn descriptor_width(&self) -> DescriptorWidth {
        if self.features.extended.has_scalable_mode() {
            DescriptorWidth::Bits256
        } else {
            DescriptorWidth::Bits128
        }
    }

    /// What the capabilities say about table entries.
    pub const fn table_features(&self) -> &TableFeatures {
        &self.table_features
    }

    /// The configuration that the unit was probed with.
    pub const fn config(&self) -> &UnitConfig {
        &self.config
    }

    /// Whether the unit is up: [`bring_up`](Self::bring_up) succeeded.
    pub fn is_up(&self) -> bool {
        self.phase.load(Ordering::Acquire) == Phase::Up as u8
    }

    /// Takes the unit from one phase to another.
    pub(super) fn change_phase(&self, from: Phase, to: Phase) -> Result<(), UnitError> {
        self.phase
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(|_| UnitError::NotUp)
    }

    /// Ends [`Phase::Working`].
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub(super) fn check_is_up(&self) -> Result<(), UnitError> {
        if self.is_up() {
            Ok(())
        } else {
            Err(UnitError::NotUp)
        }
    }

    /// Whether the unit snoops its accesses to second-stage tables, so that they need not be
    /// written back (`ECAP.SMPWC`; in legacy mode `ECAP.C`).
    pub const fn snoops_second_stage(&self) -> bool {
        if self.is_scalable() {
            self.table_features.page_walk_coherency
        } else {
            self.features.extended.is_coherent()
        }
    }

    /// What second-stage tables for the unit may look like, in the mode that it is driven in: `CAP` and
    /// `ECAP` fields, of which `SMPWC` and `SSADS` count in scalable mode only (§11.4.2, §11.4.3).
    pub const fn second_stage_features(&self) -> TableFeatures {
        TableFeatures {
            page_walk_coherency: self.snoops_second_stage(),
            // Only PASID entries turn these bits on.
            second_stage_accessed_dirty: self.is_scalable()
                && self.table_features.second_stage_accessed_dirty,
            ..self.table_features
        }
    }

    /// Whether the unit may cache entries that are not present (`CAP.CM`, §6.1), so that entries
    /// must be invalidated after they are set up, too.
    pub const fn needs_invalidation_after_set_up(&self) -> bool {
        self.features.capability.has_caching_mode()
    }

    /// Takes a domain-id, or `None` if all are in use. Never 0.
    pub fn allocate_domain_id(&self) -> Option<DomainId> {
        self.domain_ids.lock().allocate()
    }

    /// Gives a domain-id back. Nothing may be cached under it any more: the caller has seen the
    /// invalidation of its last use complete. An id that is not out is ignored.
    pub fn free_domain_id(&self, id: DomainId) {
        self.domain_ids.lock().release(id);
    }

    /// Number of domain-ids that are not in use.
    pub fn free_domain_ids(&self) -> u32 {
        self.domain_ids.lock().free()
    }

    /// The counters.
    pub fn statistics(&self) -> UnitStatistics {
        self.counters.snapshot()
    }
}

/// The mode that a unit with these capabilities is driven in.
///
/// Scalable mode without `ECAP.SSTS` has no way to lead a device to a machine's memory; legacy mode
/// always has one, by the widths of `CAP.SAGAW`.
pub const fn table_mode_for(features: &Features) -> TranslationTableMode {
    let extended = features.extended;
    if extended.has_scalable_mode() && extended.has_second_stage() {
        TranslationTableMode::Scalable
    } else {
        TranslationTableMode::Legacy
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::testing::{CAPABILITY, EXTENDED, Options, bench, parts};
    use super::*;

    fn probe(change: impl FnOnce(&mut Options)) -> Result<(), UnitError> {
        let (registers, h) = parts(change);
        drop(h);
        let config = UnitConfig {
            queue_order: 0,
            ..UnitConfig::new(0, 39)
        };
        Unit::probe(registers, config).map(drop)
    }

    #[test]
    fn registers_that_no_working_unit_has_are_refused() {
        let capability = |error| Err(UnitError::Capability(error));
        let all_ones = capability(CapabilityError::AllOnes);
        // §11.4.2: FRO in bits 33:24 and IRO in ECAP 17:8 count 16 bytes each.
        let far_records = CAPABILITY & !(0x3ff << 24) | 0x3ff << 24;
        let far_iotlb = EXTENDED & !(0x3ff << 8) | 0x3ff << 8;
        assert_eq!(probe(|_| {}), Ok(()));
        assert_eq!(probe(|o| o.capability = u64::MAX), all_ones);
        assert_eq!(probe(|o| o.extended = u64::MAX), all_ones);
        assert_eq!(probe(|o| o.version = u32::MAX), all_ones);
        assert_eq!(
            probe(|o| o.version = 0),
            capability(CapabilityError::Version(0))
        );
        assert_eq!(
            probe(|o| o.capability = far_records | 1 << 40),
            capability(CapabilityError::FaultRecords {
                offset: 0x3ff0,
                count: 2
            })
        );
        assert_eq!(
            probe(|o| o.extended = far_iotlb),
            capability(CapabilityError::IotlbRegisters { offset: 0x3ff0 })
        );
        assert_eq!(
            probe(|o| o.capability |= 7),
            capability(CapabilityError::DomainIdWidth { field: 7 })
        );
    }

    #[test]
    fn units_that_this_driver_cannot_drive_are_refused_by_name() {
        let without = |bit: u32| EXTENDED & !(1 << bit);
        // §11.4.3: QI 1, SMTS 43, SSTS 46; scalable mode needs QI.
        assert_eq!(
            probe(|o| o.extended = without(1)),
            Err(UnitError::Missing(Requirement::QueuedInvalidation))
        );
        for extended in [without(43), without(46)] {
            let legacy = bench(|o| o.extended = extended);
            assert_eq!(legacy.unit.table_mode(), TranslationTableMode::Legacy);
        }
        let no_width = CAPABILITY & !(0x1f << 8);
        assert_eq!(
            probe(|o| o.capability = no_width),
            Err(UnitError::Missing(Requirement::AddressWidth))
        );
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let try_config = |width, queue_order| {
            let (registers, _h) = parts(|_| {});
            let config = UnitConfig {
                queue_order,
                ..UnitConfig::new(0, width)
            };
            Unit::probe(registers, config).map(drop)
        };
        assert_eq!(try_config(11, 0), Err(UnitError::HostAddressWidth(11)));
        assert_eq!(try_config(65, 0), Err(UnitError::HostAddressWidth(65)));
        assert_eq!(try_config(39, 8), Err(UnitError::QueueOrder(8)));
        assert_eq!(try_config(52, 7), Ok(()));
        let wide = bench(|options| options.config.host_address_width = 64);
        assert_eq!(wide.unit.table_features().host_address_width, 52);
    }

    #[test]
    fn probing_writes_no_register_and_table_features_follow_the_capabilities() {
        let bench = bench(|_| {});
        assert!(bench.take_log().is_empty());
        let features = bench.unit.table_features();
        assert_eq!(
            (features.host_address_width, features.domain_id_bits),
            (39, 16)
        );
        assert_eq!(features.maximum_guest_address_width, 48);
        assert_eq!(features.widths.field(), 0b0110);
        assert!(features.second_stage && features.second_stage_1gib && features.pasid);
        assert!(!features.first_stage && !features.nested && !features.page_walk_coherency);
    }

    // G6: `ECAP.SMPWCS` (48) is for tables that PASID entries lead to, `ECAP.C` (0) for those of legacy
    // mode (SMTS is 43).
    #[test]
    fn second_stage_tables_are_snooped_by_the_field_of_their_mode() {
        for (extended, snoops) in [
            (EXTENDED, false),
            (EXTENDED | 1, false),
            (EXTENDED | 1 << 48, true),
            (EXTENDED & !(1 << 43), false),
            (EXTENDED & !(1 << 43) | 1 << 48, false),
            (EXTENDED & !(1 << 43) | 1, true),
        ] {
            let bench = bench(|options| options.extended = extended);
            assert_eq!(bench.unit.snoops_second_stage(), snoops, "{extended:#x}");
        }
    }

    #[test]
    fn domain_ids_are_those_of_the_capability() {
        // §11.4.2: ND = 0 is 4 bits.
        let bench = bench(|options| options.capability = CAPABILITY & !7);
        assert_eq!(bench.unit.free_domain_ids(), 15);
        let first = bench.unit.allocate_domain_id().unwrap();
        for _ in 0..14 {
            assert_ne!(bench.unit.allocate_domain_id(), Some(DomainId::ZERO));
        }
        assert_eq!(bench.unit.allocate_domain_id(), None);
        bench.unit.free_domain_id(first);
        assert_eq!(bench.unit.allocate_domain_id(), Some(first));
    }
}
