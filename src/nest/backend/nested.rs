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
        host_domain_id,
        PasidEntryOptions {
            supervisor_requests: target.supervisor_requests,
            second_stage_accessed_dirty: memory.config().tracks_access(),
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
    use crate::arch::address::FirstStagePaging;
    use crate::mem::Owner;
    use crate::mem::testing::TestHypervisor;
    use crate::paging::SecondStageConfig;

    // R19, §9.6: `SRE` is bit 128, `FSPM` 131:130, `WPE` 132, `NXE` 133, `EAFE` 135.
    #[test]
    fn flags_of_the_guest_are_carried_one_by_one_and_nxe_is_always_set() {
        let h = TestHypervisor::new(1);
        let config = SecondStageConfig::EXAMPLE;
        let memory = SecondStage::new(&h, Owner::new(1), config).unwrap();
        let plain = NestedTarget {
            domain_id: DomainId::new(7),
            root: Gpa::new(0x5000),
            paging: FirstStagePaging::Level4,
            write_protect: false,
            extended_accessed: false,
            supervisor_requests: false,
        };
        type Change = fn(&mut NestedTarget);
        let changes: [(Change, u64); 5] = [
            (|_| {}, 0),
            (|target| target.supervisor_requests = true, 1 << 0),
            (|target| target.paging = FirstStagePaging::Level5, 1 << 2),
            (|target| target.write_protect = true, 1 << 4),
            (|target| target.extended_accessed = true, 1 << 7),
        ];
        for (change, flags) in changes {
            let mut target = plain;
            change(&mut target);
            let host = DomainId::new(9);
            let entry = entry(&target, &memory, host, PasidEntryOptions::default());
            let first_stage = entry.quadwords()[FIRST_STAGE_QUADWORD];
            assert_eq!(first_stage, 0x5000 | 1 << 5 | flags, "{target:?}");
            assert_eq!(entry.domain_id(), host);
        }
    }

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
