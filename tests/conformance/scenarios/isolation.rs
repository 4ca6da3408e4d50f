//! Bindings and machines kept apart: what is gone stays gone, what is shared agrees (S88 to S97).

use std::cell::RefCell;
use std::rc::Rc;

use vtd_nest::arch::address::{FirstStagePaging, Gpa, Hpa, Iova};
use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::descriptor::IotlbGranularity;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::{DomainId, SourceId};
use vtd_nest::arch::pasid::{FirstStageFlags, PasidEntry, PasidEntryOptions};
use vtd_nest::mem::{Owner, Platform};
use vtd_nest::nest::{MachineError, Policy};
use vtd_nest::unit::Unit;
use vtd_nest::viommu::host::BindError;
use vtd_qtest::Nvme;

use crate::bench::{Ability, Access, Hold, host_offset};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, Guest, GuestOptions, IOVA, LogEvents, Place, kind};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S88 S18 G17 R21",
        "nothing is left of a pass-through binding, then of a shadow binding",
        unbound_types_leave_nothing,
    )
    .needs(&[Need::Extended(Ecap::PASS_THROUGH, "PT")]),
    scenario(
        "S89 R1 R24",
        "one domain-id and PASID with two roots on two devices: two translations, two host ids",
        one_domain_two_roots,
    ),
    scenario(
        "S90 S23 R22",
        "hardware that never confirms: the device is cut off, everything is kept",
        never_confirmed,
    ),
    scenario(
        "S90 S23 R22",
        "hardware that confirms at last: the retry gives everything back",
        confirmed_at_last,
    ),
    scenario(
        "S90 R22",
        "a machine is destroyed: everything is given back, also after hardware was silent",
        destroyed,
    ),
    scenario(
        "S90 R22 G22",
        "a machine is destroyed while its device never answers its device-TLB invalidation",
        destroyed_while_silent,
    )
    .needs(&[Need::Ability(Ability::DeviceTlb)]),
    scenario(
        "S91 S5 R20",
        "a new first-stage root is one store and one submission, without a blocked window",
        root_replaced_in_place,
    )
    .needs(&[Need::Nesting]),
    scenario(
        "S91 R20",
        "a new root is never used together with the old one after the guest's wait",
        root_replaced_by_slow_hardware,
    ),
    scenario(
        "S92 S70 R29",
        "two machines with the same ids and addresses: data and faults do not cross",
        machines_do_not_cross,
    ),
    scenario(
        "S92 S46 R30",
        "two machines with the same ids: an invalidation is for one of them",
        invalidations_do_not_cross,
    ),
    scenario(
        "S92 S79",
        "two machines: one that uses up its own ids takes none of the other's",
        quota_does_not_cross,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S89 R1",
        "two disk controllers with one domain-id and addresses have a table each",
        disks_with_tables_of_their_own,
    )
    .needs(&[Need::Ability(Ability::DiskControllers)]),
    scenario(
        "S92 S46 S50",
        "two machines with a disk controller each: commands and data do not cross",
        disks_of_two_machines,
    )
    .needs(&[Need::Ability(Ability::DiskControllers)]),
    scenario(
        "S95 R9",
        "an invalidation under domain-id 0 binds an entry that was not present",
        domain_id_0,
    ),
    scenario(
        "S96",
        "one first-stage root with two paging modes: the second is blocked, told as 5B",
        root_with_two_paging_modes,
    )
    .needs(&[
        Need::Nesting,
        Need::PASID,
        Need::Capability(Cap::FIRST_STAGE_5_LEVEL, "FS5LP"),
    ]),
    scenario(
        "S96",
        "one first-stage root with two settings of EAFE: the second is blocked, told as 5B",
        root_with_two_extended_accessed,
    )
    .needs(&[
        Need::Nesting,
        Need::PASID,
        Need::Extended(Ecap::EXTENDED_ACCESSED, "EAFS"),
        // EAFS without it counts as absent.
        Need::Extended(Ecap::PAGE_WALK_COHERENCY, "SMPWCS"),
    ]),
    scenario(
        "S97 S91",
        "two devices that share a host id never disagree under it while their root changes",
        sharing_devices_agree,
    ),
];

/// Takes the binding of the scenario's PASID away; what reached `iova` no longer does.
fn unbind(guest: &mut Guest, iova: u64) {
    let (pasid, tag) = (guest.pasid, guest.tag);
    let domain_id = guest.host_domain_id(D0, pasid);
    guest.lab.take_submitted();
    guest.set_entry(D0, pasid, &PasidEntry::default());
    guest.invalidate_pasid(7, pasid);
    assert_eq!(guest.hardware_entry(D0, pasid), None);
    let submitted = guest.lab.take_submitted();
    let drops_domain = submitted.iter().any(|descriptor| {
        descriptor.kind == kind::IOTLB
            && (descriptor.granularity == 1
                || descriptor.granularity == 2 && descriptor.domain_id == domain_id)
    });
    assert!(
        drops_domain,
        "domain-selective IOTLB of {domain_id}: {submitted:x?}"
    );
    guest.expect_blocked(D0, tag, iova, FaultReason::PasidEntryNotPresent);
    guest.expect_no_data(D0, tag, iova);
}

fn unbound_types_leave_nothing(place: Place<'_>) {
    for start in [Place::shadow_guest, Place::guest] {
        let mut guest = start(place);
        let (pasid, tag) = (guest.pasid, guest.tag);
        let page = guest.data_page();
        for _ in 0..2 {
            guest.set_entry(D0, pasid, &Guest::pass_through(7));
            guest.invalidate_pasid(7, pasid);
            guest.expect_reaches(D0, tag, page, page);
            guest.expect_writes_reach(D0, tag, page, page);
            unbind(&mut guest, page);
            let (_, mapped) = guest.bind(D0, pasid, 7);
            guest.expect_reaches(D0, tag, IOVA, mapped);
            guest.expect_writes_reach(D0, tag, IOVA, mapped);
            guest.expect_no_data(D0, tag, page);
            unbind(&mut guest, IOVA);
        }
        guest.finish();
    }
}

fn one_domain_two_roots(place: Place<'_>) {
    let mut guest = place.guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let events = LogEvents::collect();
    let (first, first_page) = guest.bind(D0, pasid, 7);
    let (second, second_page) = guest.bind(D1, pasid, 7);
    for device in [D0, D1] {
        let source_id = guest.physical(device);
        let event = format!(
            "bind {source_id} PASID {pasid} as type {} domain-id {}",
            guest
                .hardware_entry(device, pasid)
                .expect("bound")
                .translation_type_field(),
            guest.host_domain_id(device, pasid)
        );
        assert_eq!(events.count(&[&event]), 1, "{event}: {:#?}", events.lines());
    }
    drop(events);
    guest.expect_reaches(D0, tag, IOVA, first_page);
    guest.expect_reaches(D1, tag, IOVA, second_page);
    assert_ne!(
        guest.host_domain_id(D0, pasid),
        guest.host_domain_id(D1, pasid)
    );
    // Either table changes, under the one domain-id that the guest knows.
    let (third, fourth) = (guest.data_page(), guest.data_page());
    guest.map(first, IOVA, Some(third));
    guest.invalidate_pages(7, IOVA, 0);
    guest.expect_reaches(D0, tag, IOVA, third);
    guest.expect_reaches(D1, tag, IOVA, second_page);
    guest.map(second, IOVA, Some(fourth));
    guest.invalidate_pages(7, IOVA, 0);
    guest.expect_reaches(D0, tag, IOVA, third);
    guest.expect_reaches(D1, tag, IOVA, fourth);
    guest.finish();
}

/// Time that passes at each look at the clock when hardware is to be given up quickly.
const COARSE_STEP_NANOSECONDS: u64 = 10_000_000;

/// A bound guest whose hardware stops to confirm while the binding goes.
fn cut_off(guest: &mut Guest) {
    let pasid = guest.pasid;
    guest.bound();
    let before = guest.holdings();
    let hypervisor = guest.lab.hypervisor.clone();
    hypervisor.take_bus_master_changes();
    hypervisor.hold(Hold::Forever);
    hypervisor.set_steps(COARSE_STEP_NANOSECONDS, COARSE_STEP_NANOSECONDS);
    guest.set_entry(D0, pasid, &PasidEntry::default());
    // The guest's wait ends all the same.
    guest.invalidate_pasid(7, pasid);
    assert_eq!(guest.hardware_entry(D0, pasid), None);
    assert_eq!(
        hypervisor.take_bus_master_changes(),
        [(guest.physical(D0), false)]
    );
    assert_eq!(guest.vm.statistics().quarantines, 1, "it is reported");
    assert_eq!(guest.holdings(), before, "everything is kept");
}

/// Memory that the machine can do without.
const SPARE: Gpa = Gpa::new(0xf_0000);

fn unmap(guest: &mut Guest, at: Gpa) -> Result<(), MachineError> {
    let lab = guest.lab.clone();
    guest
        .vm
        .unmap_memory(&*lab.hypervisor, &lab.units, at, 0x1000)
}

fn never_confirmed(place: Place<'_>) {
    for start in [Place::shadow_guest, Place::guest] {
        let mut guest = start(place);
        cut_off(&mut guest);
        let before = guest.holdings();
        let source_id = guest.physical(D0);
        for _ in 0..2 {
            assert_eq!(
                guest.unassign(D0),
                Err(BindError::Quarantined { source_id }),
                "a device that may still reach memory does not leave"
            );
        }
        for page in 0..2 {
            let unmapped = unmap(&mut guest, Gpa::new(SPARE.as_u64() + (page << 12)));
            assert!(
                matches!(unmapped, Err(MachineError::NotConfirmed(_))),
                "memory is not returned: {unmapped:?}"
            );
        }
        assert_eq!(guest.holdings(), before, "everything is kept");
        guest.finish();
    }
}

// Pending: a quarantined device stays so, and unassigning it is refused for good.
fn confirmed_at_last(place: Place<'_>) {
    for start in [Place::shadow_guest, Place::guest] {
        let mut empty = start(place);
        empty.unassign(D0).expect("it leaves");
        empty.unassign(D1).expect("it leaves");
        let expected = empty.holdings();
        drop(empty);

        let mut guest = start(place);
        cut_off(&mut guest);
        let source_id = guest.physical(D0);
        assert_eq!(
            guest.unassign(D0),
            Err(BindError::Quarantined { source_id })
        );
        let hypervisor = guest.lab.hypervisor.clone();
        hypervisor.set_steps(100, 1_000);
        hypervisor.hold(Hold::Nothing);
        assert_eq!(guest.unassign(D0), Ok(()), "the retry succeeds");
        assert_eq!(guest.unassign(D1), Ok(()));
        assert_eq!(unmap(&mut guest, SPARE), Ok(()));
        assert_eq!(guest.holdings(), expected, "everything is given back");
        guest.finish();
    }
}

fn destroyed(place: Place<'_>) {
    for (forbid_nesting, silent) in [(false, false), (true, false), (false, true), (true, true)] {
        let lab = place.lab();
        let options = GuestOptions {
            policy: Policy {
                forbid_nesting,
                ..Policy::default()
            },
            ..GuestOptions::default()
        };
        let hypervisor = lab.hypervisor.clone();
        let free = || {
            let ids: u32 = lab.units.iter().map(Unit::free_domain_ids).sum();
            (ids, hypervisor.pool().charged_frames(Owner::new(1)))
        };
        // Context tables stay with the hypervisor.
        Guest::start(&lab, options.clone())
            .destroy()
            .ok()
            .expect("it goes");
        let (before, free_frames) = (free(), hypervisor.pool().free_frames());
        assert_eq!(before.1, 0, "no frame is charged");

        let mut guest = Guest::start(&lab, options.clone());
        let (_, page) = guest.bound();
        if silent {
            hypervisor.hold(Hold::Forever);
            hypervisor.set_steps(COARSE_STEP_NANOSECONDS, COARSE_STEP_NANOSECONDS);
            // Every kind of binding leads there.
            let spare = unmap(&mut guest, Gpa::new(page));
            assert!(matches!(spare, Err(MachineError::NotConfirmed(_))));
            let held = guest.holdings();
            for _ in 0..2 {
                let (back, error) = guest.destroy().expect_err("nothing bypasses it");
                guest = *back;
                let source_id = guest.physical(D0);
                assert_eq!(error, BindError::Quarantined { source_id });
                assert_eq!(guest.holdings(), held, "everything is kept");
            }
            assert!(guest.vm.confirm_unmapped(&*hypervisor, &lab.units).is_err());
            hypervisor.set_steps(100, 1_000);
            hypervisor.hold(Hold::Nothing);
            let confirmed = guest.vm.confirm_unmapped(&*hypervisor, &lab.units);
            assert_eq!(confirmed, Ok(()), "memory can be returned");
        }
        let requester = guest.requester(D0, guest.tag);
        let devices = [D0, D1].map(|device| guest.physical(device));
        guest.destroy().ok().expect("it goes");
        assert_eq!(free(), before, "domain-ids and frames");
        assert_eq!(hypervisor.pool().free_frames(), free_frames, "none is lost");
        let mut bytes = [0; 8];
        hypervisor.dma_read(requester, Iova::new(page), &mut bytes);
        assert_eq!(bytes, [0; 8], "the device reaches nothing");
        lab.take_unclaimed_faults();
        // The devices work in the next machine, once the hypervisor lets them.
        for device in devices {
            hypervisor.set_bus_master(device, true);
        }
        let mut next = Guest::start(&lab, options);
        let (_, page) = next.bound();
        next.expect_reaches(D0, next.tag, IOVA, page);
        next.finish();
    }
}

fn destroyed_while_silent(place: Place<'_>) {
    let mut guest = place.device_tlb_guest();
    guest.bound();
    let before = guest.holdings();
    let lab = guest.lab.clone();
    let physical = guest.physical(D0);
    lab.hypervisor.bench().set_device_silent(physical, true);
    lab.hypervisor
        .set_steps(COARSE_STEP_NANOSECONDS, COARSE_STEP_NANOSECONDS);
    let (mut guest, _) = guest
        .destroy()
        .expect_err("a silent device keeps the machine's memory");
    assert_eq!(
        lab.hypervisor.take_bus_master_changes().last(),
        Some(&(physical, false))
    );
    assert!(guest.holdings().charged_frames > 0 && before.charged_frames > 0);
    (guest, _) = guest
        .destroy()
        .expect_err("nor does a second try bypass it");
    lab.hypervisor.bench().set_device_silent(physical, false);
    assert!(guest.destroy().is_ok(), "the retry succeeds");
    lab.expect_no_violations();
}

fn root_replaced_in_place(place: Place<'_>) {
    let mut guest = place.guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let (_, old) = guest.bound();
    let (root, new) = guest.other_table();
    let at = guest.entry_place(D0, pasid);
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, pasid, &entry);
    let hypervisor = guest.lab.hypervisor.clone();
    let watch = guest.watch(D0, tag, IOVA);
    let before = hypervisor.counts();
    hypervisor.record_stores();
    guest.invalidate_pasid(7, pasid);
    hypervisor.clear_hooks();
    let stores = hypervisor.take_stores();
    let of_entry = stores
        .iter()
        .filter(|store| (at..host_offset(at, 64)).contains(&store.at));
    let of_entry: Vec<_> = of_entry.map(|store| store.len_bytes).collect();
    assert_eq!(of_entry, [8], "one store of 8 bytes");
    assert_eq!(hypervisor.counts().since(before).submissions, 1);
    let seen = watch.take();
    assert!(
        seen.iter()
            .all(|page| [Some(old), Some(new)].contains(page)),
        "no blocked window: {seen:x?}"
    );
    guest.expect_reaches(D0, tag, IOVA, new);
    assert_eq!(guest.take_faults().faults, []);
    guest.finish();
}

fn root_replaced_by_slow_hardware(place: Place<'_>) {
    let mut guest = place.guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let (_, old) = guest.bound();
    let (root, new) = guest.other_table();
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, pasid, &entry);
    let hypervisor = guest.lab.hypervisor.clone();
    hypervisor.hold(Hold::For(100_000));
    guest.push(guest.entry_invalidation(7, pasid));
    let wait = guest.push_wait();
    guest.ring_only();
    let mut polls = 0;
    while guest.wait_status() != wait {
        let lab = guest.lab.clone();
        let _ = guest.vm.poll(&*lab.hypervisor, &lab.units, 1);
        if guest.wait_status() != wait {
            let reached = guest.reached(D0, tag, IOVA);
            assert!([None, Some(old), Some(new)].contains(&reached));
        }
        hypervisor.pass(1_000);
        polls += 1;
        assert!(polls < 10_000, "the wait never completes");
    }
    guest.expect_reaches(D0, tag, IOVA, new);
    hypervisor.hold(Hold::Nothing);
    guest.settle();
    guest.expect_reaches(D0, tag, IOVA, new);
    guest.finish();
}

/// Two machines on one lab, each with one device, under the same guest source-id.
fn two_machines(place: Place<'_>) -> [Guest; 2] {
    let lab = place.lab();
    [0, 1].map(|number| {
        let options = GuestOptions {
            number,
            devices: vec![(D0, usize::from(number), 0)],
            ..GuestOptions::default()
        };
        Guest::start(&lab, options)
    })
}

fn machines_do_not_cross(place: Place<'_>) {
    let [mut first, mut second] = two_machines(place);
    let (pasid, tag) = (first.pasid, first.tag);
    // The same guest-physical places in either machine: same root, same page.
    let (root, page) = first.bind(D0, pasid, 7);
    assert_eq!(second.bind(D0, pasid, 7), (root, page));
    for _ in 0..2 {
        // A stamp of the other machine would be noticed.
        first.expect_reaches(D0, tag, IOVA, page);
        second.expect_reaches(D0, tag, IOVA, page);
        first.expect_writes_reach(D0, tag, IOVA, page);
        second.expect_writes_reach(D0, tag, IOVA, page);
    }
    assert_ne!(
        first.host_domain_id(D0, pasid),
        second.host_domain_id(D0, pasid)
    );
    let absent = IOVA + 0x1000;
    let reason = if first.is_first_stage() {
        FaultReason::FirstStageNotPresent
    } else {
        FaultReason::SecondStageNotPresent
    };
    first.expect_blocked(D0, tag, absent, reason);
    assert_eq!(second.take_faults().faults, []);
    assert!(!second.gets_through(D0, tag, absent, Access::Read));
    assert_eq!(first.take_faults().faults, [], "the other machine's");
    second.expect_blocked(D0, tag, absent, reason);
    // One goes; the other stays.
    first.set_entry(D0, pasid, &PasidEntry::default());
    first.invalidate_pasid(7, pasid);
    first.expect_blocked(D0, tag, IOVA, FaultReason::PasidEntryNotPresent);
    second.expect_reaches(D0, tag, IOVA, page);
    first.set_translation(false);
    first.expect_reaches(D0, None, page, page);
    second.expect_reaches(D0, tag, IOVA, page);
    first.unassign(D0).expect("it leaves");
    second.expect_reaches(D0, tag, IOVA, page);
    second.finish();
}

fn invalidations_do_not_cross(place: Place<'_>) {
    let [mut first, mut second] = two_machines(place);
    let (pasid, tag) = (first.pasid, first.tag);
    let (root, _) = first.bind(D0, pasid, 7);
    let (_, page) = second.bind(D0, pasid, 7);
    second.expect_reaches(D0, tag, IOVA, page);
    let theirs = second.host_domain_id(D0, pasid);
    let changes: [fn(&mut Guest); 5] = [
        |guest| guest.invalidate_pages(7, IOVA, 0),
        |guest| guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7))),
        |guest| guest.invalidate_iotlb(IotlbGranularity::Global),
        |guest| guest.invalidate_pasid_global(),
        |guest| guest.invalidate_pasid_domain(7),
    ];
    for change in changes {
        let new = first.data_page();
        first.map(root, IOVA, Some(new));
        first.lab.take_submitted();
        change(&mut first);
        let submitted = first.lab.take_submitted();
        assert!(
            !submitted.iter().any(|descriptor| {
                descriptor.domain_id == theirs || descriptor.granularity == 1
            }),
            "the other machine pays: {submitted:x?}"
        );
        second.expect_reaches(D0, tag, IOVA, page);
    }
    first.finish();
}

fn quota_does_not_cross(place: Place<'_>) {
    let [mut first, mut second] = two_machines(place);
    let page = first.data_page();
    let root = first.table(&[(IOVA, page)]);
    for pasid in 1..100 {
        let entry = first.entry(root, 100 + pasid as u16);
        first.set_entry(D0, pasid, &entry);
    }
    first.invalidate_pasid_global();
    assert!(
        first.vm.statistics().bind_errors + first.vm.virtual_unit_statistics().bind_failures > 0,
        "some store is full"
    );
    first.take_faults();
    for pasid in 5..10 {
        let (_, page) = second.bind(D0, pasid, pasid as u16);
        second.expect_reaches(D0, Some(pasid), IOVA, page);
    }
    assert_eq!(second.vm.statistics().bind_errors, 0);
    assert_eq!(second.take_faults().faults, []);
    second.finish();
}

fn domain_id_0(place: Place<'_>) {
    let mut guest = place.guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    guest.expect_no_data(D0, tag, IOVA);
    let (root, page) = guest.other_table();
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, pasid, &entry);
    guest.invalidate_pasid(0, pasid);
    guest.expect_reaches(D0, tag, IOVA, page);
    assert_eq!(guest.hardware_entry(D1, pasid), None);
    guest.finish();
}

/// Two PASIDs with one root and two settings: the second one is blocked, and works once the first
/// has gone.
fn expect_second_setting_blocked(
    guest: &mut Guest,
    root: u64,
    page: u64,
    first: &PasidEntry,
    second: &PasidEntry,
) {
    guest.set_entry(D0, 5, first);
    guest.invalidate_pasid(7, 5);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    guest.set_entry(D0, 6, second);
    guest.invalidate_pasid(8, 6);
    assert_eq!(guest.hardware_entry(D0, 6), None, "{root:#x}");
    guest.expect_blocked(D0, Some(6), IOVA, FaultReason::PasidEntryInvalid);
    guest.expect_reaches(D0, Some(5), IOVA, page);
    guest.set_entry(D0, 5, &PasidEntry::default());
    guest.invalidate_pasid(7, 5);
    guest.invalidate_pasid(8, 6);
    assert!(guest.hardware_entry(D0, 6).is_some());
}

fn first_stage(
    root: u64,
    mode: FirstStagePaging,
    flags: FirstStageFlags,
    domain: u16,
) -> PasidEntry {
    let options = PasidEntryOptions::default();
    PasidEntry::first_stage(Gpa::new(root), mode, flags, DomainId::new(domain), options)
}

fn root_with_two_paging_modes(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, page) = guest.other_table();
    let flags = FirstStageFlags::default();
    let first = first_stage(root, FirstStagePaging::Level4, flags, 7);
    let second = first_stage(root, FirstStagePaging::Level5, flags, 8);
    expect_second_setting_blocked(&mut guest, root, page, &first, &second);
    guest.finish();
}

fn root_with_two_extended_accessed(place: Place<'_>) {
    let mut guest = place.guest();
    let (root, page) = guest.other_table();
    let mut flags = FirstStageFlags::default();
    let first = first_stage(root, FirstStagePaging::Level4, flags, 7);
    flags.extended_accessed = true;
    let second = first_stage(root, FirstStagePaging::Level4, flags, 8);
    expect_second_setting_blocked(&mut guest, root, page, &first, &second);
    guest.finish();
}

fn sharing_devices_agree(place: Place<'_>) {
    let mut guest = place.guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let (first, first_page) = guest.other_table();
    let (second, second_page) = guest.other_table();
    let roots = [(first, first_page), (second, second_page)];
    let bind_both = |guest: &mut Guest, root: u64| {
        let entry = guest.entry(root, 7);
        for device in [D0, D1] {
            guest.set_entry(device, pasid, &entry);
        }
        guest.invalidate_pasid(7, pasid);
    };
    bind_both(&mut guest, first);
    let places = [D0, D1].map(|device| guest.entry_place(device, pasid));
    let disagreements = Rc::new(RefCell::new(Vec::new()));
    let into = disagreements.clone();
    guest.lab.hypervisor.on_step(move |hypervisor| {
        let memory = hypervisor.bench().memory();
        let entry =
            |at: Hpa| std::array::from_fn(|index| memory.read64(host_offset(at, 8 * index as u64)));
        let [one, other] = places.map(|at| PasidEntry::from_quadwords(entry(at)));
        let both = one.is_present() && other.is_present();
        if both && one.domain_id() == other.domain_id() && one != other {
            into.borrow_mut().push((one, other));
        }
    });
    for round in 1..6 {
        let (root, page) = roots[round % 2];
        bind_both(&mut guest, root);
        for device in [D0, D1] {
            guest.expect_reaches(device, tag, IOVA, page);
        }
        // One device alone, and back: the two no longer share.
        let (other_root, other_page) = roots[(round + 1) % 2];
        let entry = guest.entry(other_root, 7);
        guest.set_entry(D1, pasid, &entry);
        guest.invalidate_pasid(7, pasid);
        guest.expect_reaches(D0, tag, IOVA, page);
        guest.expect_reaches(D1, tag, IOVA, other_page);
    }
    guest.lab.hypervisor.clear_hooks();
    let disagreements = disagreements.take();
    assert!(disagreements.is_empty(), "{disagreements:x?}");
    guest.finish();
}

/// What a disk controller works with, in guest memory.
struct Disk {
    /// By its guest source-id, and its index on the bench.
    device: (SourceId, usize),
    root: u64,
    commands: u64,
    completions: u64,
    data: u64,
}

/// Where a disk controller's pages are in its address space.
const COMMANDS: u64 = IOVA;
const COMPLETIONS: u64 = IOVA + 0x1000;
const DATA: u64 = IOVA + 0x20_0000;

impl Disk {
    /// A table for the controller's pages, under domain-id 7.
    fn bind(guest: &mut Guest, device: (SourceId, usize)) -> Self {
        let [commands, completions, data] = [(); 3].map(|()| guest.page());
        let root = guest.table(&[
            (COMMANDS, commands),
            (COMPLETIONS, completions),
            (DATA, data),
        ]);
        let entry = guest.entry(root, 7);
        guest.set_entry(device.0, guest.pasid, &entry);
        guest.invalidate_pasid(7, guest.pasid);
        Self {
            device,
            root,
            commands,
            completions,
            data,
        }
    }

    /// The controller is asked who it is, and must say so in its guest's memory.
    #[track_caller]
    fn expect_works(&self, guest: &mut Guest) {
        let (completed, serial) = self.run(guest);
        let expected = format!("disk-{}", self.device.1 - 2);
        assert_eq!((completed, &serial[..]), (true, expected.as_bytes()));
        guest.route_faults();
        assert_eq!(guest.take_faults().faults, []);
    }

    /// The controller is asked who it is: whether it completed, and what it said.
    fn run(&self, guest: &mut Guest) -> (bool, [u8; 6]) {
        let command = Nvme::identify_command(Iova::new(DATA));
        guest.write(self.commands, &command);
        guest.write(self.completions, &[0; 64]);
        guest.write(self.data, &[0; 64]);
        let pages = [COMMANDS, COMPLETIONS].map(Iova::new);
        let bench = guest.lab.hypervisor.bench();
        bench.run_disk_command(self.device.1, pages[0], pages[1]);
        let mut serial = [0; 6];
        guest.read(self.data + 4, &mut serial);
        (guest.read_u64(self.completions + 8) >> 48 & 1 == 1, serial)
    }

    /// Leads the controller's data elsewhere, or nowhere.
    fn map_data(&mut self, guest: &mut Guest, page: Option<u64>) {
        guest.map(self.root, DATA, page);
        guest.invalidate_pages(7, DATA, 0);
        self.data = page.unwrap_or(self.data);
    }
}

fn disks_with_tables_of_their_own(place: Place<'_>) {
    let mut guest = place.guest_with(GuestOptions {
        devices: vec![(D0, 2, 0), (D1, 3, 0)],
        ..GuestOptions::default()
    });
    let mut first = Disk::bind(&mut guest, (D0, 2));
    let second = Disk::bind(&mut guest, (D1, 3));
    first.expect_works(&mut guest);
    second.expect_works(&mut guest);
    // One's data goes elsewhere; the other's goes where it went.
    let elsewhere = guest.page();
    first.map_data(&mut guest, Some(elsewhere));
    first.expect_works(&mut guest);
    second.expect_works(&mut guest);
    guest.finish();
}

fn disks_of_two_machines(place: Place<'_>) {
    let lab = place.lab();
    let [mut first, mut second] = [0, 1].map(|number| {
        let options = GuestOptions {
            number,
            devices: vec![(D0, 2 + usize::from(number), 0)],
            ..GuestOptions::default()
        };
        Guest::start(&lab, options)
    });
    // The same guest-physical places in either machine.
    let mut disk = Disk::bind(&mut first, (D0, 2));
    let other = Disk::bind(&mut second, (D0, 3));
    assert_eq!((disk.root, disk.data), (other.root, other.data));
    disk.expect_works(&mut first);
    other.expect_works(&mut second);
    // What one guest unmaps is out of reach for its controller only, and is its fault only.
    disk.map_data(&mut first, None);
    let (_, serial) = disk.run(&mut first);
    assert_eq!(serial, [0; 6], "the page is not mapped any more");
    second.route_faults();
    assert_eq!(second.take_faults().faults, [], "the other machine's");
    first.route_faults();
    let faults = first.take_faults().faults;
    assert!(
        faults
            .iter()
            .any(|fault| fault.source_id == D0 && fault.address == Iova::new(DATA)),
        "{faults:x?}"
    );
    other.expect_works(&mut second);
    // A controller without a binding does not even get at its commands.
    first.set_entry(D0, first.pasid, &PasidEntry::default());
    first.invalidate_pasid(7, first.pasid);
    assert_eq!(disk.run(&mut first), (false, [0; 6]));
    other.expect_works(&mut second);
    second.finish();
}
