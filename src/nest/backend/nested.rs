//! Nested: the guest's first-stage tables run on hardware, over the machine's second stage
//! (§3.8, §6.2.3.1).

use super::NestedTarget;
use crate::arch::address::Gpa;
use crate::arch::id::DomainId;
use crate::arch::pasid::{FirstStageFlags, PasidEntry, PasidEntryOptions};
use crate::paging::SecondStage;

/// The hardware entry for a nested target.
pub fn entry(
    target: &NestedTarget,
    memory: &SecondStage<Gpa>,
    host_domain_id: DomainId,
    options: PasidEntryOptions,
) -> PasidEntry {
    let flags = FirstStageFlags {
        write_protect: target.write_protect,
        extended_accessed: target.extended_accessed,
    };
    PasidEntry::nested(
        target.root,
        target.paging,
        flags,
        memory.root(),
        memory.config().width,
        host_domain_id,
        PasidEntryOptions {
            supervisor_requests: target.supervisor_requests,
            ..options
        },
    )
}

/// Whether two present entries differ in nothing but the quadword of first-stage root, paging
/// mode, `SRE`, `WPE` and `EAFE`, so that one 8-byte store changes the old into the new (§6.2.3.1).
pub fn differs_in_one_quadword(old: &PasidEntry, new: &PasidEntry) -> bool {
    let (old, new) = (old.quadwords(), new.quadwords());
    old.iter()
        .zip(new)
        .enumerate()
        .all(|(index, (old, new))| index == FIRST_STAGE_QUADWORD || old == new)
}

/// Index of that quadword (bits 191:128, §9.6).
pub const FIRST_STAGE_QUADWORD: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_place_change_is_limited_to_the_third_quadword() {
        let old = PasidEntry::from_quadwords([0xc9, 7, 0x1000, 0, 0, 0, 0, 0]);
        for index in 0..8 {
            let mut quadwords = *old.quadwords();
            quadwords[index] ^= 1 << 20;
            let new = PasidEntry::from_quadwords(quadwords);
            assert_eq!(
                differs_in_one_quadword(&old, &new),
                index == 2,
                "quadword {index}"
            );
        }
    }
}
