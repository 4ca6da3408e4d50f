//! What operations cost hardware, counted on its way there. The figures are the targets of the
//! requirements, section 4.

use vtd_nest::arch::pasid::PasidEntry;

use crate::bench::Counts;
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, Guest, IOVA, Place, kind};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "G39 S1 S4 S5 S9 S91 G31",
        "bind, replacement and unbind cost no more than their targets",
        costs_of_a_binding,
    ),
    scenario(
        "G39 S4 S93",
        "an invalidation costs the same however much is bound",
        cost_does_not_grow,
    )
    .needs(&[Need::ScalableMode]),
];

/// What `act` costs.
fn cost(guest: &mut Guest, act: impl FnOnce(&mut Guest)) -> Counts {
    let before = guest.lab.hypervisor.counts();
    act(guest);
    guest.lab.hypervisor.counts().since(before)
}

fn costs_of_a_binding(place: Place<'_>) {
    let mut guest = place.guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let unit = &guest.lab.units[0];
    let caches_absent = unit.needs_invalidation_after_set_up();
    // An invalidation flushes write buffers, too (§6.8).
    let owes = caches_absent || unit.features().capability.requires_write_buffer_flush();
    let (first, page) = guest.other_table();
    let (second, other) = guest.other_table();
    let entry = guest.entry(first, 7);
    guest.set_entry(D0, pasid, &entry);
    guest.lab.take_submitted();
    let bind = cost(&mut guest, |guest| guest.invalidate_pasid(7, pasid));
    guest.expect_reaches(D0, tag, IOVA, page);
    let submitted = guest.lab.take_submitted();
    let submitted = submitted.iter().map(|one| (one.kind, one.domain_id));
    // Hardware that caches absent entries may have this one under domain-id 0 (§6.2.3).
    let id = guest.host_domain_id(D0, pasid);
    let entry_cache = if guest.is_legacy() {
        kind::CONTEXT_CACHE
    } else {
        kind::PASID_CACHE
    };
    let owed = [(entry_cache, 0), (entry_cache, id), (kind::IOTLB, id)];
    let absent = usize::from(!caches_absent);
    assert!(submitted.eq(owed.into_iter().skip(absent).filter(|_| owes)));
    let expected = if owes { (1, 1) } else { (0, 0) };
    assert_eq!((bind.submissions, bind.waits), expected, "bind: {bind:?}");

    let entry = guest.entry(second, 7);
    guest.set_entry(D0, pasid, &entry);
    let in_place = guest.vm.statistics().replaced_in_place;
    let replace = cost(&mut guest, |guest| guest.invalidate_pasid(7, pasid));
    guest.expect_reaches(D0, tag, IOVA, other);
    let is_in_place = guest.vm.statistics().replaced_in_place > in_place;
    assert_eq!(is_in_place, guest.is_first_stage());
    let most = if is_in_place { 1 } else { 2 };
    assert!(
        replace.submissions <= most && replace.waits <= most && replace.descriptors <= 6 * most,
        "replacement: {replace:?}"
    );

    guest.set_entry(D0, pasid, &PasidEntry::default());
    guest.lab.take_submitted();
    let unbind = cost(&mut guest, |guest| guest.invalidate_pasid(7, pasid));
    // The cache of entries first: it could refill the others from an old entry.
    let kinds: Vec<_> = guest
        .lab
        .take_submitted()
        .iter()
        .map(|one| one.kind)
        .collect();
    assert_eq!(kinds[kinds.len() - 2..], [entry_cache, kind::IOTLB]);
    guest.expect_no_data(D0, tag, IOVA);
    assert_eq!(
        (unbind.submissions, unbind.waits),
        (1, 1),
        "unbind: {unbind:?}"
    );
    assert!(unbind.descriptors <= 6, "unbind: {unbind:?}");
    guest.finish();
}

fn cost_does_not_grow(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, _) = guest.bound();
    let pasid = guest.pasid;
    let few = cost(&mut guest, |guest| guest.invalidate_pasid(7, pasid));
    assert_eq!((few.submissions, few.stores), (0, 0));
    // Beside the two descriptors: directory entry and entry of each of two devices at most.
    assert!(few.guest_reads <= 2 + 2 * 2, "{few:?}");
    let last = if guest.tag.is_some() { 700 } else { 1 };
    for more in pasid + 1..last {
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, more, &entry);
    }
    guest.invalidate_pasid_global();
    let many = cost(&mut guest, |guest| guest.invalidate_pasid(7, pasid));
    assert_eq!(many, few);
    guest.finish();
}
