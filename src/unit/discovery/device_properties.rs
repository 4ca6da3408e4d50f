//! What firmware says that devices may do: ATS (§8.5, §8.8), and properties of integrated devices
//! (§8.9).

use crate::arch::dmar::{Dmar, DmarError, ScopeKind, Structure};
use crate::arch::id::SourceId;
use crate::arch::pci::{PciFunctions, PciKind, PciTopology};

/// What firmware says of a device's use of ATS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AddressTranslationAdvice {
    /// It must not be used: firmware does not vouch for the device's cache and the way to it.
    Forbidden,
    /// It may be used: the device is below a root port that supports it.
    Possible,
    /// Firmware vouches for the device's cache and advises to use it.
    Advised,
    /// The device needs it to work.
    Required,
}

/// What firmware says of an integrated device (§8.9), as the flags of its scope; none are set for a
/// device that firmware does not list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceProperties(u8);

impl DeviceProperties {
    /// Nested translation should not be used for its requests without PASID.
    pub const fn avoids_nesting(self) -> bool {
        self.0 & 1 << 0 != 0
    }

    /// `PWSNP` must be clear in its entry for requests without PASID.
    pub const fn forbids_walk_snoop(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// `PGSNP` must be clear in its entry for requests without PASID, and `SNP` in its second-stage
    /// leaves.
    pub const fn forbids_page_snoop(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// Firmware vouches for its address translation cache.
    pub const fn has_hardened_cache(self) -> bool {
        self.0 & 1 << 3 != 0
    }

    /// It needs its address translation cache to work.
    pub const fn requires_cache(self) -> bool {
        self.0 & 1 << 4 != 0
    }
}

/// The properties of a device; a virtual function has those of its physical function, which is what
/// the caller has to ask for.
///
/// # Errors
///
/// [`DmarError`].
pub fn device_properties(
    dmar: &Dmar<'_>,
    segment: u16,
    source_id: SourceId,
    topology: &impl PciTopology,
) -> Result<DeviceProperties, DmarError> {
    Ok(listed_properties(dmar, segment, source_id, topology)?
        .1
        .unwrap_or_default())
}

/// Whether the table has property structures, and the properties of a device if one lists it.
fn listed_properties(
    dmar: &Dmar<'_>,
    segment: u16,
    source_id: SourceId,
    topology: &impl PciTopology,
) -> Result<(bool, Option<DeviceProperties>), DmarError> {
    let mut has_structures = false;
    let mut found: Option<DeviceProperties> = None;
    for structure in dmar.structures() {
        let Structure::Sidp(sidp) = structure? else {
            continue;
        };
        has_structures = true;
        for scope in sidp.scopes() {
            let scope = scope?;
            let resolved = scope.resolve(|bridge| topology.secondary_bus(bridge));
            if sidp.segment == segment && resolved == Ok(source_id) {
                let flags = found.map_or(0, |known| known.0) | scope.flags;
                found = Some(DeviceProperties(flags));
            }
        }
    }
    Ok((has_structures, found))
}

/// Whether a device may use ATS.
///
/// Integrated devices may where their property structure, or with none in the table their cache
/// structure, says so; other devices below a root port that is listed, with PCI Express all the way.
/// A virtual function may what its physical function may.
///
/// # Errors
///
/// [`DmarError`].
pub fn address_translation(
    dmar: &Dmar<'_>,
    segment: u16,
    source_id: SourceId,
    topology: &impl PciFunctions,
) -> Result<AddressTranslationAdvice, DmarError> {
    let device = match topology.function(source_id).map(|function| function.kind) {
        Some(PciKind::VirtualFunction(physical)) => physical,
        _ => source_id,
    };
    let by_device = vouched_for(dmar, segment, device, topology)?;
    let by_port = match root_port_above(device, topology) {
        Some(port) if port_supports(dmar, segment, port, topology)? => {
            AddressTranslationAdvice::Possible
        }
        _ => AddressTranslationAdvice::Forbidden,
    };
    Ok(by_device.max(by_port))
}

/// Firmware's word that the address translation cache of one device can be trusted. Only the table
/// makes it: [`vouched_device`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VouchedDevice {
    segment: u16,
    source_id: SourceId,
    needs_cache: bool,
}

impl VouchedDevice {
    /// Whether it is this device.
    pub fn is(&self, segment: u16, source_id: SourceId) -> bool {
        self.segment == segment && self.source_id == source_id
    }

    /// Whether the device does not work without its cache (`ATC_REQUIRED`).
    pub const fn needs_cache(&self) -> bool {
        self.needs_cache
    }
}

/// Firmware's word for a device, if it gives it: a root port above that supports ATS (§8.5) says
/// nothing of the device, and is not enough.
///
/// # Errors
///
/// [`DmarError`].
pub fn vouched_device(
    dmar: &Dmar<'_>,
    segment: u16,
    source_id: SourceId,
    topology: &impl PciFunctions,
) -> Result<Option<VouchedDevice>, DmarError> {
    let advice = address_translation(dmar, segment, source_id, topology)?;
    let is_vouched_for = advice >= AddressTranslationAdvice::Advised;
    Ok(is_vouched_for.then_some(VouchedDevice {
        segment,
        source_id,
        needs_cache: advice == AddressTranslationAdvice::Required,
    }))
}

/// What structures say of the device itself.
fn vouched_for(
    dmar: &Dmar<'_>,
    segment: u16,
    source_id: SourceId,
    topology: &impl PciTopology,
) -> Result<AddressTranslationAdvice, DmarError> {
    let (has_properties, properties) = listed_properties(dmar, segment, source_id, topology)?;
    let mut says = match properties.unwrap_or_default() {
        properties if properties.requires_cache() => AddressTranslationAdvice::Required,
        properties if properties.has_hardened_cache() => AddressTranslationAdvice::Advised,
        _ => AddressTranslationAdvice::Forbidden,
    };
    for structure in dmar.structures() {
        let Structure::Satc(satc) = structure? else {
            continue;
        };
        for scope in satc.scopes() {
            let scope = scope?;
            let resolved = scope.resolve(|bridge| topology.secondary_bus(bridge));
            if has_properties || satc.segment != segment || resolved != Ok(source_id) {
                continue;
            }
            says = says.max(if satc.cache_required {
                AddressTranslationAdvice::Required
            } else {
                AddressTranslationAdvice::Advised
            });
        }
    }
    Ok(says)
}

/// The root port above a device, if the way there is PCI Express.
fn root_port_above(source_id: SourceId, topology: &impl PciFunctions) -> Option<SourceId> {
    let mut bus = source_id.bus();
    while let Some(bridge) = topology.bridge_to(bus) {
        match topology.function(bridge)?.kind {
            PciKind::RootPort => return Some(bridge),
            PciKind::UpstreamPort | PciKind::DownstreamPort => {}
            _ => return None,
        }
        if bridge.bus() >= bus {
            return None;
        }
        bus = bridge.bus();
    }
    None
}

fn port_supports(
    dmar: &Dmar<'_>,
    segment: u16,
    port: SourceId,
    topology: &impl PciTopology,
) -> Result<bool, DmarError> {
    let mut supports = false;
    for structure in dmar.structures() {
        let Structure::Atsr(atsr) = structure? else {
            continue;
        };
        if atsr.segment != segment {
            continue;
        }
        supports |= atsr.all_ports;
        for scope in atsr.scopes() {
            let scope = scope?;
            let resolved = scope.resolve(|bridge| topology.secondary_bus(bridge));
            supports |= scope.kind == ScopeKind::PciSubHierarchy && resolved == Ok(port);
        }
    }
    Ok(supports)
}
