//! Second-stage: DMA by guest-physical address through the machine's own table. Serves devices
//! whose virtual translation is off, and pass-through entries.

use crate::arch::id::DomainId;
use crate::arch::pasid::{PasidEntry, PasidEntryOptions};
use crate::paging::SecondStage;

/// The hardware entry for a second-stage table, the machine's own or a shadow.
pub fn entry<I: crate::paging::InputAddress>(
    table: &SecondStage<I>,
    host_domain_id: DomainId,
    options: PasidEntryOptions,
) -> PasidEntry {
    let options = PasidEntryOptions {
        second_stage_accessed_dirty: table.config().tracks_access(),
        ..options
    };
    PasidEntry::second_stage(table.root(), host_domain_id, options)
}
