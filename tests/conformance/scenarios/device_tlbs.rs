//! TLBs of devices: what they are told to forget, and devices that lie or never answer (S48, S49, S90,
//! G22).

use vtd_nest::arch::address::Gpa;
use vtd_nest::arch::capability::ExtendedCapabilityField;
use vtd_nest::arch::descriptor::{
    Descriptor, DeviceTlbRange, IotlbGranularity, PasidIotlbGranularity,
};
use vtd_nest::arch::id::{DomainId, Pasid, SourceId};
use vtd_nest::arch::register::{FaultStatus, Register32, Register64};
use vtd_nest::nest::{MachineError, Policy};

use crate::bench::{Ability, DeviceTlbUse};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, Guest, GuestOptions, IOVA, Place, kind};

const DEVICE_TLB: &[Need] = &[Need::Ability(Ability::DeviceTlb)];
/// How far each look at the clock moves it where hardware waits for a device, in nanoseconds.
const COARSE_STEP_NANOSECONDS: u64 = 10_000_000;

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S48",
        "without DT device-TLB descriptors are queue errors",
        not_offered,
    ),
    scenario(
        "S48 R30 G22",
        "device-TLB descriptors reach the device's own TLB; a foreign source-id is dropped",
        forwarded,
    )
    .needs(DEVICE_TLB),
    scenario(
        "S48 R30 G22",
        "whatever a guest has its unit forget, its devices forget before its wait completes",
        follows_the_unit,
    )
    .needs(DEVICE_TLB),
    scenario(
        "S48 R30",
        "devices refill without PASID only from what their unit has not forgotten",
        refill_without_pasid,
    )
    .needs(DEVICE_TLB),
    scenario(
        "S48 S91 R30",
        "devices forget a binding that is taken away, replaced, or turned off",
        follows_bindings,
    )
    .needs(DEVICE_TLB),
    scenario(
        "S50 S48 R30",
        "devices forget memory that is taken from the machine when the call returns",
        memory_taken,
    )
    .needs(DEVICE_TLB),
    scenario(
        "S48 S42",
        "a device is told of as many pages as its unit is, and of all where they are not known",
        forms,
    )
    .needs(DEVICE_TLB),
    scenario(
        "S49 G22",
        "a device that answers no flush: bounded wait, quarantine, the guest goes on",
        never_answers,
    )
    .needs(DEVICE_TLB),
    scenario(
        "S49 G22 R29",
        "a device that answers no flush costs another machine nothing but time",
        other_machine_goes_on,
    )
    .needs(DEVICE_TLB),
    scenario(
        "S49 S50 S90",
        "memory stays out of use until a silent device has answered after all",
        memory_of_a_silent_device,
    )
    .needs(DEVICE_TLB),
    scenario(
        "G22 G19",
        "a device that says it forgets and does not reaches nothing once it is unassigned",
        lying_device,
    )
    .needs(DEVICE_TLB),
];

/// A guest of each kind whose devices use TLBs of their own.
fn guests(place: Place<'_>, used: DeviceTlbUse) -> Vec<Guest> {
    place.each_guest_with(GuestOptions {
        device_tlbs: used,
        ..GuestOptions::default()
    })
}

/// Binds D0 and D1 under domain-id 7 to one table, and has both cache a page: root and page.
fn bind_both(guest: &mut Guest) -> (u64, u64) {
    let (root, page) = guest.bound();
    let entry = guest.entry(root, 7);
    let pasid = guest.pasid;
    guest.set_entry(D1, pasid, &entry);
    guest.invalidate_pasid(7, pasid);
    for device in [D0, D1] {
        guest.expect_reaches(device, guest.tag, IOVA, page);
    }
    guest.lab.take_submitted();
    (root, page)
}

fn device_tlb(source_id: SourceId, pasid: Option<u32>, all_pasids: bool) -> Descriptor {
    let range = DeviceTlbRange::page(IOVA);
    match pasid {
        None => Descriptor::DeviceTlb {
            source_id,
            range,
            physical_function: SourceId::from_u16(0),
            max_pending: 0,
        },
        Some(pasid) => Descriptor::PasidDeviceTlb {
            source_id,
            pasid: Pasid::new(pasid).unwrap(),
            range,
            all_pasids,
            physical_function: SourceId::from_u16(0),
            max_pending: 0,
        },
    }
}

/// Quadwords of the device-TLB descriptors that reached hardware since the last call.
fn sent(guest: &Guest) -> Vec<[u64; 4]> {
    let mut words = guest.lab.hypervisor.take_descriptors();
    words.retain(|words| matches!(words[0] & 0xe0f, 3 | 8));
    words
}

fn not_offered(place: Place<'_>) {
    for pasid in [None, Some(5)] {
        let mut guest = place.guest();
        let extended = guest.vm.offer().features.extended;
        assert_eq!(extended.field(ExtendedCapabilityField::DEVICE_TLB), 0);
        let head = guest.tail();
        guest.push(device_tlb(D0, pasid, false));
        guest.ring();
        let status = guest.read32(Register32::FAULT_STATUS);
        assert_ne!(status & FaultStatus::INVALIDATION_QUEUE_ERROR.bits(), 0);
        assert_eq!(guest.read64(Register64::INVALIDATION_QUEUE_HEAD), head);
        guest.finish();
    }
}

fn forwarded(place: Place<'_>) {
    let mut guest = place.device_tlb_guest();
    let extended = guest.vm.offer().features.extended;
    assert!(extended.has_device_tlb(), "DT is offered");
    bind_both(&mut guest);
    let mut forms = vec![device_tlb(D0, guest.tag, false)];
    if guest.tag.is_some() {
        forms.push(device_tlb(D0, guest.tag, true));
        forms.push(device_tlb(D0, None, false));
    }
    for form in forms {
        guest.submit(&[form]);
        let physical = guest.physical(D0);
        let words = sent(&guest);
        assert_eq!(words.len(), 1, "{words:x?}");
        // SID; G; the page.
        let [q0, q1, ..] = words[0];
        let (source_id, global) = match q0 & 0xf {
            3 => (q0 >> 32, 0),
            _ => (q0 >> 16, q1 & 1),
        };
        assert_eq!(source_id as u16, physical.as_u16());
        let [wanted, pages, ..] = form.encode().words();
        assert_eq!((q0 & 0xf, q1 & !0xfff), (wanted & 0xf, pages & !0xfff));
        assert_eq!(global, if wanted & 0xf == 8 { pages & 1 } else { 0 });
    }
    let before = guest.vm.virtual_unit_statistics().foreign_device_tlbs;
    guest.submit(&[device_tlb(SourceId::from_u16(0x1234), guest.tag, false)]);
    assert_eq!(guest.lab.hypervisor.take_descriptors(), [[0; 4]; 0]);
    let after = guest.vm.virtual_unit_statistics().foreign_device_tlbs;
    assert_eq!(after - before, 1);
    guest.finish();
}

fn follows_the_unit(place: Place<'_>) {
    for used in [DeviceTlbUse::Honest, DeviceTlbUse::Refilling] {
        for mut guest in guests(place, used) {
            let (pasid, tag) = (guest.pasid, guest.tag);
            let (root, mut page) = bind_both(&mut guest);
            let domain_id = DomainId::new(7);
            let page_only = guest.page_invalidation(7, IOVA, 0);
            let block = guest.page_invalidation(7, IOVA, 9);
            let mut forms = vec![
                page_only,
                block,
                Descriptor::Iotlb {
                    granularity: IotlbGranularity::Domain(domain_id),
                    drain_reads: true,
                    drain_writes: true,
                },
                Descriptor::Iotlb {
                    granularity: IotlbGranularity::Global,
                    drain_reads: true,
                    drain_writes: true,
                },
            ];
            if guest.is_first_stage() {
                forms.push(Descriptor::PasidIotlb {
                    domain_id,
                    pasid: Pasid::new(pasid).unwrap(),
                    granularity: PasidIotlbGranularity::All,
                });
            }
            for form in forms {
                let other = guest.data_page();
                guest.map(root, IOVA, Some(other));
                guest.submit(&[form]);
                for device in [D0, D1] {
                    let reached = guest.reached(device, tag, IOVA);
                    assert_eq!(reached, Some(other), "not {page:#x}: {form:x?} {used:?}");
                }
                page = other;
            }
            guest.finish();
        }
    }
}

// A PASID-based IOTLB invalidation and one of the device without PASID are not ordered by the queue
// (§6.5.2.12).
fn refill_without_pasid(place: Place<'_>) {
    for mut guest in guests(place, DeviceTlbUse::Refilling) {
        let (root, page) = guest.bind(D0, 0, 7);
        guest.expect_reaches(D0, None, IOVA, page);
        for _ in 0..20 {
            let other = guest.data_page();
            guest.map(root, IOVA, Some(other));
            let flush = if guest.is_first_stage() {
                Descriptor::PasidIotlb {
                    domain_id: DomainId::new(7),
                    pasid: Pasid::ZERO,
                    granularity: PasidIotlbGranularity::Page {
                        address: IOVA,
                        address_mask: 0,
                        leaf_hint: false,
                    },
                }
            } else {
                guest.page_invalidation(7, IOVA, 0)
            };
            guest.submit(&[flush]);
            guest.expect_reaches(D0, None, IOVA, other);
        }
        guest.finish();
    }
}

fn follows_bindings(place: Place<'_>) {
    for used in [DeviceTlbUse::Honest, DeviceTlbUse::Refilling] {
        for mut guest in guests(place, used) {
            let (pasid, tag) = (guest.pasid, guest.tag);
            bind_both(&mut guest);
            // Another root, in place where that is possible.
            let (root, other) = guest.other_table();
            let entry = guest.entry(root, 7);
            guest.set_entry(D0, pasid, &entry);
            guest.invalidate_pasid(7, pasid);
            guest.expect_reaches(D0, tag, IOVA, other);
            // Another domain-id.
            let (root, third) = guest.other_table();
            let entry = guest.entry(root, 9);
            guest.set_entry(D0, pasid, &entry);
            guest.invalidate_pasid(7, pasid);
            guest.expect_reaches(D0, tag, IOVA, third);
            guest.set_entry(D0, pasid, &Default::default());
            guest.invalidate_pasid(9, pasid);
            guest.expect_no_data(D0, tag, IOVA);
            guest.set_translation(false);
            if tag.is_none() {
                let page = guest.data_page();
                guest.expect_reaches(D1, tag, page, page);
                guest.set_translation(true);
                guest.expect_no_data(D1, tag, page);
            } else {
                guest.expect_no_data(D1, tag, IOVA);
            }
            guest.finish();
        }
    }
}

fn memory_taken(place: Place<'_>) {
    for mut guest in guests(place, DeviceTlbUse::Refilling) {
        let (_, page) = bind_both(&mut guest);
        let lab = guest.lab.clone();
        let at = Gpa::new(page & !0xfff);
        guest
            .vm
            .unmap_memory(&*lab.hypervisor, &lab.units, at, 0x1000)
            .expect("hardware and devices confirm");
        for device in [D0, D1] {
            assert_eq!(guest.reached(device, guest.tag, IOVA), None);
        }
        // Blocked by the machine's second stage, which is no business of the guest's.
        lab.expect_no_violations();
    }
}

fn forms(place: Place<'_>) {
    let mut guest = place.device_tlb_guest();
    let (root, _) = bind_both(&mut guest);
    // A shadow that stays as it is has nothing to tell.
    let change = |guest: &mut Guest| {
        if !guest.is_first_stage() {
            let other = guest.data_page();
            guest.map(root, IOVA, Some(other));
        }
    };
    let physical = u64::from(guest.physical(D0).as_u16());
    let throttles = {
        let extended = guest.lab.units[0].features().extended;
        extended.has_device_tlb_throttling()
    };
    for (order, first) in [(0, IOVA), (3, IOVA & !0x7fff)] {
        change(&mut guest);
        guest.invalidate_pages(7, first, order);
        let words = sent(&guest);
        let of_device = |words: &&[u64; 4]| {
            let shift = if words[0] & 0xf == 3 { 32 } else { 16 };
            words[0] >> shift & 0xffff == physical
        };
        let of_device: Vec<_> = words.iter().filter(of_device).collect();
        assert_eq!(of_device.len(), 1, "{words:x?}");
        let [q0, q1, ..] = *of_device[0];
        // MIP is the device's queue depth, PFSID only where the unit throttles.
        let (depth, size) = match q0 & 0xf {
            3 => (q0 >> 16 & 0x1f, q1 & 1),
            _ => (q0 >> 4 & 0x1f, q1 >> 11 & 1),
        };
        assert_eq!(depth, 8);
        let function = (q0 >> 12 & 0xf) | (q0 >> 52) << 4;
        assert_eq!(function, if throttles { physical } else { 0 });
        if guest.is_first_stage() {
            // 2^order pages: ones below a zero.
            assert_eq!(size, u64::from(order > 0));
            let ones = (1u64 << (order.max(1) - 1)) - 1;
            assert_eq!(q1 & !0xfff, first | ones << 12, "{q1:#x}");
        } else if guest.tag.is_some() {
            assert_eq!((q0 & 0xf, q1), (3, 0x7fff_ffff_ffff_f001));
        }
    }
    change(&mut guest);
    guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7)));
    let words = sent(&guest);
    let all = words.iter().filter(|words| {
        words[0] & 0xf == 3 && words[1] == 0x7fff_ffff_ffff_f001
            || words[0] & 0xf == 8 && words[1] == 0x7fff_ffff_ffff_f800
    });
    // Without PASIDs it is known what a shadow's change was.
    let told = if guest.is_first_stage() || guest.tag.is_some() {
        all.count()
    } else {
        words.len()
    };
    assert_eq!(told, 2, "one for each device: {words:x?}");
    guest.finish();
}

/// Silences a device, and lets the clock run as fast as waiting for it needs.
fn silence(guest: &Guest, source_id: SourceId) -> SourceId {
    let physical = guest.physical(source_id);
    let hypervisor = &guest.lab.hypervisor;
    hypervisor.bench().set_device_silent(physical, true);
    hypervisor.set_steps(COARSE_STEP_NANOSECONDS, COARSE_STEP_NANOSECONDS);
    physical
}

fn never_answers(place: Place<'_>) {
    let mut guest = place.device_tlb_guest();
    let (root, _) = bind_both(&mut guest);
    silence(&guest, D0);
    let other = guest.data_page();
    guest.map(root, IOVA, Some(other));
    let flush = guest.page_invalidation(7, IOVA, 0);
    let dtlb = device_tlb(D0, guest.tag, false);
    guest.submit(&[flush, dtlb]);
    assert_eq!(guest.vm.statistics().quarantines, 1);
    guest.expect_no_data(D0, guest.tag, IOVA);
    guest.expect_reaches(D1, guest.tag, IOVA, other);
    // The device is asked no more, and so does not hold up anybody.
    guest.lab.hypervisor.set_steps(100, 1_000);
    let waits = guest.vm.statistics();
    guest.submit(&[flush]);
    assert_eq!(guest.vm.statistics().quarantines, waits.quarantines);
    guest.finish();
}

fn other_machine_goes_on(place: Place<'_>) {
    let lab = place.lab();
    let options = |number, source_id, device| GuestOptions {
        number,
        devices: vec![(source_id, device, 0)],
        device_tlbs: DeviceTlbUse::Honest,
        ..GuestOptions::default()
    };
    let mut one = Guest::start(&lab, options(0, D0, 0));
    let mut other = Guest::start(&lab, options(1, D0, 1));
    let (pasid, tag) = (one.pasid, one.tag);
    let (root, _) = one.bind(D0, pasid, 7);
    let (other_root, _) = other.bind(D0, pasid, 7);
    let physical = silence(&one, D0);
    one.map(root, IOVA, None);
    let new = other.data_page();
    other.map(other_root, IOVA, Some(new));
    // The other's invalidation gets into the queue behind the one that waits for the device.
    let flush = one.page_invalidation(7, IOVA, 0);
    one.push(flush);
    let wait = one.push_wait();
    one.ring_only();
    for _ in 0..8 {
        let _ = one.vm.poll(&*lab.hypervisor, &lab.units, 64);
    }
    assert_ne!(one.wait_status(), wait);
    other.invalidate_pages(7, IOVA, 0);
    other.expect_reaches(D0, tag, IOVA, new);
    one.settle();
    assert_eq!(one.wait_status(), wait, "the guest's wait completes");
    one.expect_no_data(D0, tag, IOVA);
    assert_eq!(
        lab.hypervisor.take_bus_master_changes(),
        [(physical, false)]
    );
    assert_eq!(one.vm.statistics().quarantines, 1);
    assert_eq!(other.vm.statistics().quarantines, 0);
    assert_eq!(lab.units[0].statistics().timeouts, 0);
    one.finish();
    other.finish();
}

fn memory_of_a_silent_device(place: Place<'_>) {
    for mut guest in guests(place, DeviceTlbUse::Honest) {
        let (_, page) = bind_both(&mut guest);
        let lab = guest.lab.clone();
        let physical = silence(&guest, D0);
        let at = Gpa::new(page & !0xfff);
        let unmapped = guest
            .vm
            .unmap_memory(&*lab.hypervisor, &lab.units, at, 0x1000);
        assert!(
            matches!(unmapped, Err(MachineError::NotConfirmed(_))),
            "{unmapped:?}"
        );
        let confirmed = guest.vm.confirm_unmapped(&*lab.hypervisor, &lab.units);
        assert!(
            matches!(confirmed, Err(MachineError::NotConfirmed(_))),
            "{confirmed:?}"
        );
        for device in [D0, D1] {
            assert_eq!(guest.reached(device, guest.tag, IOVA), None);
        }
        assert_eq!(guest.vm.statistics().quarantines, 1);
        lab.hypervisor.bench().set_device_silent(physical, false);
        guest
            .vm
            .confirm_unmapped(&*lab.hypervisor, &lab.units)
            .expect("the device has answered");
        assert_eq!(guest.unassign(D0), Ok(()));
        lab.expect_no_violations();
    }
}

fn lying_device(place: Place<'_>) {
    for forbid_nesting in [false, true] {
        let mut guest = place.guest_with(GuestOptions {
            policy: Policy {
                forbid_nesting,
                ..Policy::default()
            },
            device_tlbs: DeviceTlbUse::Lying,
            ..GuestOptions::default()
        });
        let (root, page) = bind_both(&mut guest);
        // It was trusted, and keeps the page that the guest took away from it.
        guest.map(root, IOVA, None);
        guest.invalidate_pages(7, IOVA, 0);
        assert_eq!(guest.reached(D0, guest.tag, IOVA), Some(page));
        guest.lab.take_submitted();
        assert_eq!(guest.unassign(D0), Ok(()));
        let kinds: Vec<_> = guest.lab.take_submitted();
        assert!(kinds.iter().any(|one| one.kind == kind::DEVICE_TLB));
        assert_eq!(guest.reached(D0, guest.tag, IOVA), None);
        guest.lab.expect_no_violations();
    }
}
