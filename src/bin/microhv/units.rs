//! The machine's remapping units: found, and owned from the first moment, so that all DMA is blocked.

use heapless::Vec;
use spin::{Mutex, MutexGuard};
use vtd_nest::arch::address::{Hpa, PAGE_SIZE_BYTES};
use vtd_nest::arch::dmar::{Dmar, DmarError, ScopeError, ScopeKind};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::pci::PciTopology;
use vtd_nest::mem::MmioRegisters;
use vtd_nest::nest::{PhysicalRange, ProtectedRanges};
use vtd_nest::unit::discovery::{ReservedRegionError, TopologyError, reserved_regions};
use vtd_nest::unit::{
    DiscoveryError, Errata, InterruptConfig, InterruptRemapping, ReservedDevice,
    ReservedMemoryError, Unit, UnitConfig, UnitDescription, UnitError, discover,
};

use crate::boot;
use crate::environment::Environment;
use crate::memory::{Memory, MemoryError, Window};
use crate::pci::{Function, Pci};
use crate::topology::{self, Topology};

/// Remapping units that the image can drive.
pub(crate) const UNITS: usize = 4;
/// I/O APICs and HPETs.
pub(crate) const INTERRUPT_SOURCES: usize = 8;

/// Why the units are not owned.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum UnitsError {
    /// The DMAR table.
    Dmar(DmarError),
    /// The units that it lists.
    Discovery(DiscoveryError),
    /// A unit, by the address of its registers.
    Unit(Hpa, UnitError),
    Memory(MemoryError),
    /// An I/O APIC or HPET that the table names.
    Scope(ScopeError),
    /// A function's source-ids cannot be told.
    Topology(TopologyError),
    /// Memory that firmware reserves for a function.
    ReservedRegion(ReservedRegionError),
    ReservedMemory(ReservedMemoryError),
    /// No unit covers the device.
    NotCovered(SourceId),
    /// A fixed list is full.
    Full(&'static str),
}

/// The units as the DMAR table describes them.
pub(crate) struct DescribedUnits {
    dmar: Dmar<'static>,
    list: Vec<UnitDescription, UNITS>,
}

impl DescribedUnits {
    pub(crate) fn find(dmar: &'static [u8]) -> Result<Self, UnitsError> {
        let dmar = Dmar::parse(dmar).map_err(UnitsError::Dmar)?;
        let list = discover::<UNITS>(&dmar).map_err(UnitsError::Discovery)?;
        Ok(Self { dmar, list })
    }

    /// Every unit.
    pub(crate) fn list(&self) -> &[UnitDescription] {
        &self.list
    }

    /// Index and description of the unit that a function is behind.
    pub(crate) fn covering(
        &self,
        source_id: SourceId,
        functions: &[Function],
    ) -> Result<(u8, &UnitDescription), UnitsError> {
        let covering = self
            .dmar
            .unit_for(0, source_id, &Topology(functions))
            .map_err(UnitsError::Dmar)?
            .ok_or(UnitsError::NotCovered(source_id))?;
        (0..)
            .zip(&self.list)
            .find(|(_, unit)| unit.base == covering.base)
            .ok_or(UnitsError::NotCovered(source_id))
    }

    /// What sends interrupts beside PCI functions: I/O APICs and HPETs, by the source-ids that the
    /// table gives them.
    pub(crate) fn interrupt_sources(
        &self,
        functions: &[Function],
    ) -> Result<Vec<SourceId, INTERRUPT_SOURCES>, UnitsError> {
        let mut sources = Vec::new();
        for unit in self.dmar.remapping_units() {
            for scope in unit.map_err(UnitsError::Dmar)?.scopes() {
                let scope = scope.map_err(UnitsError::Dmar)?;
                if !matches!(scope.kind, ScopeKind::IoApic | ScopeKind::MsiHpet) {
                    continue;
                }
                let source_id = scope
                    .resolve(|bridge| Topology(functions).secondary_bus(bridge))
                    .map_err(UnitsError::Scope)?;
                if !sources.contains(&source_id) {
                    sources
                        .push(source_id)
                        .map_err(|_| UnitsError::Full("interrupt sources"))?;
                }
            }
        }
        Ok(sources)
    }

    /// What no device may reach: the hypervisor, interrupt hardware, configuration space, the units.
    pub(crate) fn protected_ranges(
        &self,
        pci: &Pci,
        own: &[(Hpa, u64)],
    ) -> Result<ProtectedRanges, UnitsError> {
        let mut protected = ProtectedRanges::new();
        let mut protect = |start, len| {
            protected
                .add(PhysicalRange::new(start, len))
                .map_err(|_| UnitsError::Full("protected ranges"))
        };
        let image = boot::image_end()
            .as_u64()
            .saturating_sub(boot::image_start().as_u64());
        protect(boot::image_start(), image)?;
        for (start, len) in own {
            protect(*start, *len)?;
        }
        protect(Hpa::new(0xfec0_0000), PAGE_SIZE_BYTES)?; // IOAPIC
        protect(Hpa::new(0xfee0_0000), 1 << 20)?; // local APIC and interrupt messages
        if let Some(window) = pci.window() {
            protect(window.start(), window.len_bytes())?;
        }
        for unit in &self.list {
            protect(unit.base, unit.register_window_bytes)?;
        }
        Ok(protected)
    }

    /// Tells each unit for which functions firmware reserves memory: they stay blocked, and no
    /// machine gets them.
    pub(crate) fn reserve(
        &self,
        units: &[Unit<MmioRegisters>],
        functions: &[Function],
    ) -> Result<(), UnitsError> {
        let topology = Topology(functions);
        for function in functions {
            let source_id = function.source_id;
            let requesters = topology
                .requesters(source_id)
                .map_err(UnitsError::Topology)?;
            let regions = reserved_regions(&self.dmar, 0, &requesters, &topology)
                .map_err(UnitsError::ReservedRegion)?;
            if regions.is_empty() {
                continue;
            }
            log::warn!("{source_id}: firmware reserves memory for it; it stays blocked");
            let (unit, _) = self.covering(source_id, functions)?;
            let unit = units.get(usize::from(unit));
            let unit = unit.ok_or(UnitsError::NotCovered(source_id))?;
            // It is never let in, so it has no tables that could be lost.
            let _ = ReservedDevice::track(unit, requesters, regions)
                .map_err(UnitsError::ReservedMemory)?;
        }
        Ok(())
    }

    /// The registers of each.
    pub(crate) fn windows(
        &self,
        memory: &Memory,
    ) -> Result<Vec<(UnitDescription, Window), UNITS>, UnitsError> {
        let mut windows = Vec::new();
        for unit in &self.list {
            let window = memory
                .window(unit.base, unit.register_window_bytes)
                .map_err(UnitsError::Memory)?;
            windows
                .push((*unit, window))
                .map_err(|_| UnitsError::Full("units"))?;
        }
        Ok(windows)
    }
}

/// Where the units are: too large to be moved over the stack.
static OWNED: Mutex<Vec<Unit<MmioRegisters>, UNITS>> = Mutex::new(Vec::new());

/// Takes every unit over: from then on each blocks all DMA, and interrupts as `remapping` says. They are owned as long as the image runs.
pub(crate) fn bring_up(
    environment: &Environment,
    windows: Vec<(UnitDescription, Window), UNITS>,
    remapping: InterruptRemapping,
) -> Result<&'static [Unit<MmioRegisters>], UnitsError> {
    let errata = Errata::of(&topology::platform_identity(&environment.pci().lock()));
    for erratum in errata.iter() {
        log::warn!("the platform has an erratum that is avoided: {erratum}");
    }
    let units = MutexGuard::leak(OWNED.lock());
    for (description, window) in windows {
        let refused = |error| UnitsError::Unit(description.base, error);
        let registers = window
            .into_unit_registers()
            .ok_or(UnitsError::Full("address space"))?;
        let config = UnitConfig {
            // Ticks of the time-stamp counter, generously.
            timeout_nanoseconds: 1 << 34,
            interrupts: InterruptConfig {
                remapping,
                ..InterruptConfig::new()
            },
            errata,
            ..UnitConfig::of(&description)
        };
        let unit = Unit::probe(registers, config).map_err(refused)?;
        unit.bring_up(environment).map_err(refused)?;
        units.push(unit).map_err(|_| UnitsError::Full("units"))?;
    }
    Ok(units)
}
