//! Entries that are not valid, and a host that cannot do what a valid one asks (S19 to S23, S28).

use vtd_nest::arch::address::{FirstStagePaging, Gpa};
use vtd_nest::arch::capability::CapabilityField;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::DomainId;
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::nest::MachineError;
use vtd_nest::viommu::host::BindError;

use crate::bench::{Access, Hold};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, GUEST_LEN_BYTES, Guest, Holdings, IOVA, LogEvents, Place, changed};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S19 R18 R24",
        "a translation type that was not offered is blocked, told and named",
        s19,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S20 R19",
        "five-level first-stage tables are bound as such",
        s20_five_levels,
    )
    .needs(&[
        Need::Nesting,
        Need::Capability(CapabilityField::FIRST_STAGE_5_LEVEL, "FS5LP"),
    ]),
    scenario(
        "S20 R19",
        "a paging mode that the unit lacks is blocked",
        s20_lacking,
    )
    .needs(&[Need::Nesting]),
    scenario(
        "S21 R19",
        "SRE, EAFE and WPE reach hardware where shown; elsewhere the first two are reserved",
        s21,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S22 R20 G38",
        "a bind that the host cannot make is blocked, told and tried again",
        s22,
    ),
    scenario(
        "S22 R20 G38",
        "any allocation may fail: new or blocked, never old, and nothing leaks",
        s22_each_allocation,
    ),
    scenario(
        "S22 R20 G38",
        "a replacement without a free domain-id is blocked, never the old table",
        s22_no_domain_id,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S23 R22",
        "an unbind that hardware never confirms quarantines the device and keeps all it holds",
        s23,
    ),
    scenario(
        "S23 R22",
        "once hardware confirms after all, a retry gives everything back",
        s23_recovery,
    ),
    scenario(
        "S28 R29",
        "tables outside the machine are the guest's own fault and touch nobody else",
        s28,
    ),
    scenario(
        "S28 R18",
        "a root beyond the address width is reserved",
        s28_beyond_width,
    ),
];

fn s19(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (pasid, tag) = (guest.pasid, guest.tag);
        let offered = if guest.is_first_stage() { 1 } else { 2 };
        let empty = guest.holdings();
        for field in (0..8).filter(|field| ![offered, 4].contains(field)) {
            for was_bound in [false, true] {
                let (root, page) = match was_bound {
                    true => guest.bound(),
                    false => guest.other_table(),
                };
                let entry = guest.entry(root, 7);
                let entry = changed(&entry, |quadwords| {
                    quadwords[0] = quadwords[0] & !(7 << 6) | field << 6;
                });
                guest.set_entry(D0, pasid, &entry);
                let events = LogEvents::collect();
                let watch = guest.watch(D0, tag, IOVA);
                guest.invalidate_pasid(7, pasid);
                watch.expect_only(&[page]);
                events.expect(&[
                    &D0.to_string(),
                    &format!("PASID {pasid}"),
                    &format!("translation type {field:#x}"),
                ]);
                drop(events);
                assert_eq!(guest.hardware_entry(D0, pasid), None);
                guest.expect_blocked(D0, tag, IOVA, FaultReason::PasidEntryInvalid);
                assert_eq!(guest.holdings(), empty, "type {field}");
            }
        }
        guest.bound();
        guest.finish();
    }
}

/// An entry for five-level tables.
fn five_level_entry(root: u64) -> PasidEntry {
    let options = Default::default();
    PasidEntry::first_stage(
        Gpa::new(root),
        FirstStagePaging::Level5,
        Default::default(),
        DomainId::new(7),
        options,
    )
}

fn s20_five_levels(place: Place<'_>) {
    let mut guest = place.guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    // As IOVA to four levels.
    let high = 0x0034_0000_0000_0000 | IOVA;
    let (below, page) = guest.other_table();
    let top = guest.page();
    let table = guest.table_entry(below);
    guest.write_u64(top + (high >> 48 & 0x1ff) * 8, table);
    guest.set_entry(D0, pasid, &five_level_entry(top));
    guest.invalidate_pasid(7, pasid);
    let hardware = guest.hardware_entry(D0, pasid).expect("an entry");
    assert_eq!(hardware.paging_mode_field(), 1);
    guest.expect_reaches(D0, tag, high, page);
    guest.expect_blocked(D0, tag, IOVA, FaultReason::FirstStageNotPresent);
    guest.expect_blocked(D0, tag, high | 1 << 56, FaultReason::AddressNotCanonical);
    // From five levels to four and back.
    let entry = guest.entry(below, 7);
    for (entry, reached, not) in [(entry, IOVA, high), (five_level_entry(top), high, IOVA)] {
        guest.set_entry(D0, pasid, &entry);
        guest.invalidate_pasid(7, pasid);
        guest.expect_reaches(D0, tag, reached, page);
        guest.expect_no_data(D0, tag, not);
    }
    guest.finish();
}

fn s20_lacking(place: Place<'_>) {
    for field in [1, 2, 3] {
        let mut guest = place.guest();
        let capability = guest.vm.offer().features.capability;
        if field == 1 && capability.has_first_stage_5_level() {
            continue;
        }
        let (root, _) = guest.bound();
        let entry = guest.entry(root, 7);
        let entry = changed(&entry, |quadwords| quadwords[2] |= field << 2);
        guest.set_entry(D0, guest.pasid, &entry);
        guest.invalidate_pasid(7, guest.pasid);
        assert_eq!(guest.hardware_entry(D0, guest.pasid), None);
        guest.expect_blocked(D0, guest.tag, IOVA, FaultReason::PasidEntryInvalid);
        guest.finish();
    }
}

fn s21(place: Place<'_>) {
    const SRE: u64 = 1;
    const WPE: u64 = 1 << 4;
    const EAFE: u64 = 1 << 7;
    for flags in [SRE, SRE | WPE, EAFE, SRE | EAFE, WPE] {
        for mut guest in place.each_guest() {
            let shown = guest.vm.offer().features.extended;
            let allowed = (if shown.has_supervisor_requests() {
                SRE
            } else {
                0
            }) | (if shown.has_extended_accessed() {
                EAFE
            } else {
                0
            }) | (if guest.is_first_stage() { WPE } else { 0 });
            let (pasid, tag) = (guest.pasid, guest.tag);
            let (root, page) = guest.bound();
            let entry = changed(&guest.entry(root, 7), |quadwords| quadwords[2] |= flags);
            guest.set_entry(D0, pasid, &entry);
            guest.invalidate_pasid(7, pasid);
            let hardware = guest.hardware_entry(D0, pasid);
            if flags & !allowed != 0 {
                assert_eq!(hardware, None);
                guest.expect_blocked(D0, tag, IOVA, FaultReason::PasidEntryReserved);
            } else {
                // WPE is about supervisors only.
                let expected = if flags == WPE { 0 } else { flags };
                let hardware = hardware.expect("an entry");
                assert_eq!(hardware.quadwords()[2] & (SRE | WPE | EAFE), expected);
                guest.expect_reaches(D0, tag, IOVA, page);
            }
            guest.finish();
        }
    }
}

/// The one fault that tells of a binding which the host could not make.
#[track_caller]
fn expect_told(guest: &mut Guest, pasid: u32) {
    let faults = guest.take_faults().faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    let reason = guest.shown(FaultReason::PasidTableUnreadable, false);
    assert_eq!(faults[0].reason, reason);
    assert_eq!(faults[0].source_id, D0);
    assert_eq!(faults[0].pasid.unwrap_or(0), pasid);
}

fn s22(place: Place<'_>) {
    for mut guest in place.each_guest() {
        // PASID 70 needs a page of hardware's tables that is not there yet; where there is no such
        // PASID, its shadow has to be made.
        let (pasid, tag) = match guest.tag {
            Some(_) => (70, Some(70)),
            None => (0, None),
        };
        let (root, page) = guest.other_table();
        let entry = guest.entry(root, 7);
        let before = guest.holdings();
        guest.set_entry(D0, pasid, &entry);
        let hypervisor = guest.lab.hypervisor.clone();
        hypervisor.fail_allocations_after(Some(0));
        for _ in 0..3 {
            let errors = guest.vm.statistics().bind_errors;
            guest.invalidate_pasid(7, pasid);
            assert_eq!(guest.hardware_entry(D0, pasid), None);
            let tries = guest.vm.statistics().bind_errors - errors;
            // An invalidation of all contexts may come to it twice.
            assert!(
                (1..=1 + u64::from(guest.is_legacy())).contains(&tries),
                "tried again"
            );
            expect_told(&mut guest, pasid);
            assert!(!guest.gets_through(D0, tag, IOVA, Access::Read));
            assert!(!guest.gets_through(D0, tag, IOVA, Access::Write));
            guest.take_faults();
        }
        assert_eq!(guest.holdings(), before, "nothing leaks");
        hypervisor.fail_allocations_after(None);
        guest.invalidate_pasid(7, pasid);
        guest.expect_reaches(D0, tag, IOVA, page);
        guest.finish();
    }
}

/// What a machine holds whose devices have left.
fn holdings_without_devices(guest: &mut Guest) -> Holdings {
    for device in [D0, D1] {
        guest.unassign(device).expect("the device leaves");
    }
    guest.holdings()
}

fn s22_each_allocation(place: Place<'_>) {
    let mut empty = place.guest();
    let expected = holdings_without_devices(&mut empty);
    for allocations in 0..8 {
        for mut guest in place.each_guest() {
            let (_, old) = guest.bound();
            let (root, page) = guest.other_table();
            let entry = guest.entry(root, 9);
            let mut bindings = vec![(guest.pasid, guest.tag)];
            if guest.tag.is_some() {
                bindings.push((70, Some(70)));
            }
            for (pasid, _) in bindings.iter().copied() {
                guest.set_entry(D0, pasid, &entry);
            }
            let hypervisor = guest.lab.hypervisor.clone();
            hypervisor.fail_allocations_after(Some(allocations));
            let watch = guest.watch(D0, guest.tag, IOVA);
            guest.invalidate_pasid_domain(7);
            watch.expect_only(&[old, page]);
            for (_, tag) in bindings.iter().copied() {
                let reached = guest.reached(D0, tag, IOVA);
                assert!(
                    reached.is_none_or(|reached| reached == page),
                    "{allocations}: {tag:?} still reaches {reached:x?}"
                );
            }
            guest.invalidate_pasid_domain(9);
            hypervisor.fail_allocations_after(None);
            guest.invalidate_pasid_global();
            for (_, tag) in bindings.iter().copied() {
                guest.expect_reaches(D0, tag, IOVA, page);
            }
            let holdings = holdings_without_devices(&mut guest);
            assert_eq!(holdings, expected, "{allocations} allocations");
            guest.finish();
        }
    }
}

fn s22_no_domain_id(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (_, old) = guest.bound();
        let (root, page) = guest.other_table();
        // Each under a domain-id of its own, until the host has none left for this machine, or no
        // shadow.
        let mut last = 100;
        loop {
            let entry = guest.entry(root, last as u16);
            guest.set_entry(D0, last, &entry);
            guest.invalidate_pasid(last as u16, last);
            if guest.hardware_entry(D0, last).is_none() {
                break;
            }
            last += 1;
            assert!(last < 1_000, "there is no limit");
        }
        expect_told(&mut guest, last);
        guest.expect_reaches(D0, Some(5), IOVA, old);
        let full = guest.holdings();
        let entry = guest.entry(root, 9);
        guest.set_entry(D0, 5, &entry);
        let watch = guest.watch(D0, Some(5), IOVA);
        guest.invalidate_pasid(7, 5);
        watch.expect_only(&[old, page]);
        // What the old entry held may be enough for the new one.
        if guest.reached(D0, Some(5), IOVA) != Some(page) {
            guest.take_faults();
            assert_eq!(guest.hardware_entry(D0, 5), None);
            guest.expect_no_data(D0, Some(5), IOVA);
            assert!(guest.holdings().free_domain_ids >= full.free_domain_ids);
            guest.invalidate_pasid(9, 5);
        }
        guest.expect_reaches(D0, Some(5), IOVA, page);
        // Those that found no room are bound once there is some.
        guest.set_entry(D0, 100, &PasidEntry::default());
        guest.invalidate_pasid_global();
        guest.expect_reaches(D0, Some(last), IOVA, page);
        guest.finish();
    }
}

/// (D0, the scenario's PASID) unbound by its guest while hardware confirms nothing.
fn unbind_unconfirmed(guest: &mut Guest) -> (u64, Holdings) {
    let (root, _) = guest.bound();
    let holdings = guest.holdings();
    let hypervisor = guest.lab.hypervisor.clone();
    hypervisor.take_bus_master_changes();
    hypervisor.hold(Hold::Forever);
    hypervisor.set_steps(10_000_000, 10_000_000);
    guest.set_entry(D0, guest.pasid, &PasidEntry::default());
    guest.invalidate_pasid(7, guest.pasid);
    (root, holdings)
}

fn s23(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let events = LogEvents::collect();
        let (_, held) = unbind_unconfirmed(&mut guest);
        let hypervisor = guest.lab.hypervisor.clone();
        let physical = guest.physical(D0);
        events.expect(&[&physical.to_string(), "quarantine"]);
        drop(events);
        assert_eq!(guest.hardware_entry(D0, guest.pasid), None);
        assert_eq!(guest.hardware_entry(D0, 0), None, "nor anything else of it");
        assert_eq!(hypervisor.take_bus_master_changes(), [(physical, false)]);
        assert_eq!(guest.vm.statistics().quarantines, 1);
        assert_eq!(guest.holdings(), held);
        // The device cannot be had back, nor what it may still reach.
        for _ in 0..2 {
            let left = guest.unassign(D0);
            let quarantined = BindError::Quarantined {
                source_id: physical,
            };
            assert_eq!(left, Err(quarantined));
        }
        let lab = guest.lab.clone();
        for page in 0..2 {
            let at = Gpa::new(page << 12);
            let unmapped = guest
                .vm
                .unmap_memory(&*lab.hypervisor, &lab.units, at, 0x1000);
            assert!(
                matches!(unmapped, Err(MachineError::NotConfirmed(_))),
                "{unmapped:?}"
            );
        }
        assert_eq!(guest.holdings(), held);
        // Its guest can ask as it likes: the device stays blocked.
        guest.invalidate_pasid_global();
        assert_eq!(guest.hardware_entry(D0, guest.pasid), None);
        assert_eq!(guest.holdings(), held);
        guest.finish();
    }
}

fn s23_recovery(place: Place<'_>) {
    let mut empty = place.guest();
    let expected = holdings_without_devices(&mut empty);
    for mut guest in place.each_guest() {
        let (root, _) = unbind_unconfirmed(&mut guest);
        let hypervisor = guest.lab.hypervisor.clone();
        hypervisor.hold(Hold::Nothing);
        hypervisor.set_steps(100, 1_000);
        assert_eq!(guest.unassign(D0), Ok(()));
        let page = guest.data_page();
        // Whoever gives the device away again lets it do DMA again.
        let bench = hypervisor.bench();
        bench.set_bus_master(bench.device(0), true);
        guest.assign(D0, 0, 0);
        guest.settle();
        guest.map(root, IOVA, Some(page));
        let entry = guest.entry(root, 7);
        guest.set_entry(D0, guest.pasid, &entry);
        guest.invalidate_pasid_global();
        guest.expect_reaches(D0, guest.tag, IOVA, page);
        assert_eq!(holdings_without_devices(&mut guest), expected);
        guest.finish();
    }
}

fn s28(place: Place<'_>) {
    use FaultReason as R;
    for mut guest in place.each_guest() {
        let (pasid, tag) = (guest.pasid, guest.tag);
        let bits = guest.vm.offer().features.host_address_width;
        let (root_reason, table_reason) = match guest.is_first_stage() {
            true => (R::FirstStageRootUnreadable, R::FirstStageUnreadable),
            false => (R::SecondStageRootUnreadable, R::SecondStageUnreadable),
        };
        let (_, neighbour) = guest.bind(D1, pasid, 8);
        for outside in [GUEST_LEN_BYTES, 0x7fff_f000, (1 << bits) - 0x1000] {
            for level in (1..=guest.levels()).rev() {
                // The table that a walk reads for this level lies outside.
                let (root, _) = guest.other_table();
                let root = match level == guest.levels() {
                    true => outside,
                    false => {
                        let entry = guest.table_entry(outside);
                        guest.set_leaf(root, IOVA, level + 1, entry);
                        root
                    }
                };
                let entry = guest.entry(root, 7);
                guest.set_entry(D0, pasid, &entry);
                guest.invalidate_pasid(7, pasid);
                if guest.is_first_stage() {
                    let hardware = guest.hardware_entry(D0, pasid).expect("an entry");
                    assert_eq!(hardware.first_stage_root::<Gpa>(), Gpa::new(root));
                }
                let reason = match level == guest.levels() {
                    true => root_reason,
                    false => table_reason,
                };
                guest.expect_blocked(D0, tag, IOVA, reason);
                guest.expect_access_blocked(D0, tag, IOVA, Access::Write, reason);
                guest.expect_reaches(D1, tag, IOVA, neighbour);
            }
        }
        assert_eq!(
            guest.lab.host_faults.take(),
            [],
            "the host is not concerned"
        );
        assert_eq!(guest.lab.take_unclaimed_faults(), []);
        guest.finish();
    }
}

fn s28_beyond_width(place: Place<'_>) {
    for mut guest in place.each_guest() {
        let (pasid, tag) = (guest.pasid, guest.tag);
        let bits = guest.vm.offer().features.host_address_width;
        for beyond in [1 << bits, 1 << 50, (1 << 52) - 0x1000, 1 << 63] {
            let (_, page) = guest.bound();
            let entry = guest.entry(beyond, 7);
            guest.set_entry(D0, pasid, &entry);
            let watch = guest.watch(D0, tag, IOVA);
            guest.invalidate_pasid(7, pasid);
            watch.expect_only(&[page]);
            assert_eq!(guest.hardware_entry(D0, pasid), None);
            guest.expect_blocked(D0, tag, IOVA, FaultReason::PasidEntryReserved);
        }
        guest.finish();
    }
}
