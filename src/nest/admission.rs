//! Whether a device may enter a machine, and what it holds while it is there: isolation from the
//! devices of others (R36), and memory that firmware reserves for it (§8.4).

use crate::arch::address::Gpa;
use crate::mem::{Hypervisor, Registers};
use crate::nest::device::{
    AddressTranslation, AssignError, AssignedDevice, DeviceConfig, DeviceList, Isolation,
    ReservedMemoryUse,
};
use crate::paging::{Rights, SecondStage};
use crate::unit::Unit;
use crate::unit::discovery::ReservedRegion;

/// Whether the group of a device holds no attached device but this machine's.
///
/// # Errors
///
/// [`AssignError::SplitGroup`].
pub(super) fn check_group<H: Hypervisor, R: Registers, const N: usize>(
    h: &H,
    units: &[Unit<R>],
    devices: &DeviceList<N>,
    config: &DeviceConfig,
) -> Result<(), AssignError> {
    let Isolation::Group(group) = &config.isolation else {
        return Ok(());
    };
    let segment = units
        .get(usize::from(config.unit))
        .map(|unit| unit.config().segment);
    for (index, unit) in units.iter().enumerate() {
        if Some(unit.config().segment) != segment {
            continue;
        }
        let is_other = |source_id| {
            let is_ours = |device: &AssignedDevice| {
                usize::from(device.config.unit) == index
                    && device.tables.requesters().contains(source_id)
            };
            // The device itself is looked at when it is attached.
            !config.requesters().contains(source_id)
                && !devices.iter().any(|(_, device)| is_ours(device))
        };
        for range in group.ranges() {
            if let Some(member) = unit.find_attached(h, range, is_other) {
                return Err(AssignError::SplitGroup {
                    source_id: config.source_id,
                    member,
                });
            }
        }
    }
    Ok(())
}

/// Whether a device may have the TLB of its own that it is to use.
///
/// # Errors
///
/// [`AssignError::NotVouchedFor`], [`AssignError::NoDeviceTlbs`].
pub(super) fn check_address_translation<R: Registers>(
    unit: &Unit<R>,
    config: &DeviceConfig,
) -> Result<(), AssignError> {
    if let AddressTranslation::FirmwareListed(vouched, _) = &config.address_translation
        && !vouched.is(unit.config().segment, config.source_id)
    {
        return Err(AssignError::NotVouchedFor(config.source_id));
    }
    if config.address_translation.device_tlb().is_some() && !unit.has_device_tlbs() {
        return Err(AssignError::NoDeviceTlbs(config.unit));
    }
    Ok(())
}

/// Whether a device may be assigned with the memory that firmware reserves for it.
///
/// # Errors
///
/// [`AssignError::ReservedMemory`], [`AssignError::ReservedMemoryNotMapped`],
/// [`AssignError::ReservedMemoryUntracked`].
pub(super) fn check_reserved_memory<H: Hypervisor, R: Registers>(
    h: &H,
    unit: &Unit<R>,
    memory: &SecondStage<Gpa>,
    config: &DeviceConfig,
) -> Result<(), AssignError> {
    let source_id = config.source_id;
    let mut is_known = false;
    for requester in config.requesters().iter() {
        for &region in &unit.reserved_regions(requester) {
            is_known = true;
            if config.reserved_memory == ReservedMemoryUse::Refused {
                return Err(AssignError::ReservedMemory { source_id, region });
            }
            if !is_at_its_own_address(h, memory, &region) {
                return Err(AssignError::ReservedMemoryNotMapped { source_id, region });
            }
        }
    }
    if !is_known && unit.has_untracked_reserved_memory() {
        return Err(AssignError::ReservedMemoryUntracked(source_id));
    }
    Ok(())
}

/// The reserved memory of an assigned device that a change of this guest-physical range would take
/// away from it.
pub(super) fn reserved_within<R: Registers, const N: usize>(
    units: &[Unit<R>],
    devices: &DeviceList<N>,
    guest: Gpa,
    len_bytes: u64,
) -> Option<ReservedRegion> {
    let (start, end) = (guest.as_u64(), guest.as_u64().saturating_add(len_bytes));
    devices.iter().find_map(|(_, device)| {
        let unit = units.get(usize::from(device.config.unit))?;
        let mut requesters = device.tables.requesters().iter();
        requesters.find_map(|requester| {
            let regions = unit.reserved_regions(requester);
            let overlaps =
                |region: &&ReservedRegion| region.base().as_u64() < end && start < region.end();
            regions.iter().find(overlaps).copied()
        })
    })
}

/// Whether every page of a region is in a machine's memory at its own address, with all rights.
fn is_at_its_own_address<H: Hypervisor>(
    h: &H,
    memory: &SecondStage<Gpa>,
    region: &ReservedRegion,
) -> bool {
    let mut next = region.base().as_u64();
    // Each round passes a page of the machine's memory.
    while next < region.end() {
        match memory.translate(h, Gpa::new(next)) {
            Some(mapping)
                if mapping.output.as_u64() == next
                    && mapping.rights.contains(Rights::READ_WRITE) =>
            {
                let len_bytes = mapping.size.len_bytes();
                next = (next & !(len_bytes - 1)).saturating_add(len_bytes);
            }
            _ => return false,
        }
    }
    true
}
