//! Under which source-ids I/O APICs and HPETs send interrupts, and to which unit (§8.3.1, §5.1.5).

use crate::arch::address::Hpa;
use crate::arch::dmar::{Dmar, DmarError, ScopeKind};
use crate::arch::id::SourceId;
use crate::arch::pci::PciTopology;

/// What sends interrupts without being a PCI function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptSource {
    /// The PCI segment of the unit.
    pub segment: u16,
    /// The register base of the unit that remaps its interrupts.
    pub unit: Hpa,
    /// The source-id of its requests, to be validated by the interrupt remapping entries.
    pub source_id: SourceId,
}

/// The I/O APIC with this id, or `None` if no unit lists it: then its interrupts cannot be remapped,
/// and no unit must remap any.
///
/// # Errors
///
/// [`DmarError`].
pub fn io_apic(
    dmar: &Dmar<'_>,
    id: u8,
    topology: &impl PciTopology,
) -> Result<Option<InterruptSource>, DmarError> {
    find(dmar, ScopeKind::IoApic, id, topology)
}

/// The HPET with this number, or `None` if no unit lists it.
///
/// # Errors
///
/// [`DmarError`].
pub fn hpet(
    dmar: &Dmar<'_>,
    number: u8,
    topology: &impl PciTopology,
) -> Result<Option<InterruptSource>, DmarError> {
    find(dmar, ScopeKind::MsiHpet, number, topology)
}

/// The first scope of this kind and enumeration id whose path leads to a device.
fn find(
    dmar: &Dmar<'_>,
    kind: ScopeKind,
    enumeration_id: u8,
    topology: &impl PciTopology,
) -> Result<Option<InterruptSource>, DmarError> {
    let mut found = None;
    for unit in dmar.remapping_units() {
        let unit = unit?;
        for scope in unit.scopes() {
            let scope = scope?;
            if scope.kind != kind || scope.enumeration_id != enumeration_id {
                continue;
            }
            let resolved = scope.resolve(|bridge| topology.secondary_bus(bridge));
            found = found.or(resolved.ok().map(|source_id| InterruptSource {
                segment: unit.segment,
                unit: unit.base,
                source_id,
            }));
        }
    }
    Ok(found)
}
