//! Devices translated by the driver of a physical unit alone, without a machine.

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::id::{DomainId, Pasid, SourceId};
use vtd_nest::arch::pasid::{PasidEntry, PasidEntryOptions};
use vtd_nest::mem::{Owner, Registers};
use vtd_nest::paging::{Rights, SecondStage, SecondStageConfig};
use vtd_nest::unit::{DeviceTables, Unit, UnitError};

use super::IOVA;
use crate::bench::{Interposer, Requester, host_offset};

/// Whom the frames of these devices are charged to.
pub(crate) const DIRECT_OWNER: Owner = Owner::new(200);

/// A page of memory to give to devices, with a value that tells it from others.
pub(crate) fn stamped_page(hypervisor: &Interposer, index: u64) -> (Hpa, u64) {
    let base = hypervisor.bench().layout().guests.start;
    let (page, value) = (host_offset(base, index << 12), 0xd12e_c700 + index);
    hypervisor.guest_write(page, &value.to_le_bytes());
    (page, value)
}

/// What a device's request without PASID reads at [`IOVA`]; 0 if it is blocked.
pub(crate) fn device_reads(hypervisor: &Interposer, source_id: SourceId) -> u64 {
    let mut bytes = [0; 8];
    let requester = Requester {
        source_id,
        pasid: None,
        privileged: false,
        execute: false,
    };
    hypervisor.dma_read(requester, Iova::new(IOVA), &mut bytes);
    u64::from_le_bytes(bytes)
}

/// A table that maps [`IOVA`] to a page, and nothing else.
pub(crate) fn direct_table<R: Registers>(
    hypervisor: &Interposer,
    unit: &Unit<R>,
    page: Hpa,
) -> SecondStage<Iova> {
    let width = unit.features().largest_address_width().expect("a width");
    let config = SecondStageConfig::new(width, &unit.second_stage_features())
        .expect("the unit has the width");
    let mut table = SecondStage::new(hypervisor, DIRECT_OWNER, config).expect("a frame");
    let iova = Iova::new(IOVA);
    table
        .map(hypervisor, iova, page, 0x1000, Rights::READ_WRITE)
        .expect("a mapping");
    table
}

/// The entry that makes a unit use a table.
pub(crate) fn direct_entry<R>(
    unit: &Unit<R>,
    table: &SecondStage<Iova>,
    domain_id: DomainId,
) -> PasidEntry
where
    R: Registers,
{
    let features = unit.table_features();
    let options = PasidEntryOptions {
        page_walk_snoop: features.page_walk_coherency,
        page_snoop: features.snoop_control,
        ..PasidEntryOptions::default()
    };
    PasidEntry::second_stage(table.root(), domain_id, options)
}

/// Attaches a device and lets it reach a page at [`IOVA`].
pub(crate) fn attach_direct<R: Registers>(
    hypervisor: &Interposer,
    unit: &Unit<R>,
    source_id: SourceId,
    page: Hpa,
) -> Result<(DeviceTables, DomainId), UnitError> {
    let tables = unit.attach_device(hypervisor, DIRECT_OWNER, source_id, 0)?;
    let table = direct_table(hypervisor, unit, page);
    let domain_id = unit.allocate_domain_id().expect("a domain-id");
    publish_direct(
        hypervisor,
        unit,
        &tables,
        &direct_entry(unit, &table, domain_id),
    );
    Ok((tables, domain_id))
}

/// Publishes an entry for requests without PASID, and pays what is owed for it.
pub(crate) fn publish_direct<R: Registers>(
    hypervisor: &Interposer,
    unit: &Unit<R>,
    tables: &DeviceTables,
    entry: &PasidEntry,
) {
    unit.publish_entry(hypervisor, tables, Pasid::ZERO, entry)
        .expect("the entry is published");
    if unit.needs_invalidation_after_set_up() {
        unit.invalidate_everything(hypervisor).expect("confirmed");
    } else {
        unit.write_buffer_flush(hypervisor).expect("flushed");
    }
}
