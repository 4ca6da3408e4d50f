//! A device's own switches for PASIDs and ATS, moved by the machine that it is assigned to, and pages
//! that force its accesses to snoop (G22, R30).

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::capability::ExtendedCapabilityField;
use vtd_nest::arch::id::Pasid;
use vtd_nest::nest::{AssignError, DeviceConfig, DeviceSwitches};
use vtd_nest::paging::walk;
use vtd_nest::unit::DeviceCapabilityError;
use vtd_nest::unit::explain::{ExplainRequest, Step};
use vtd_nest::viommu::host::BindError;

use crate::bench::Ability;
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, Guest, IOVA, Place, kind};

const DEVICE_TLB: &[Need] = &[Need::Ability(Ability::DeviceTlb)];
/// ATS at 0x100 with a queue of 8 and aligned requests, PASID at 0x200 with 20 bits. Both are on, as a
/// hypervisor before this one may have left them.
const LEFT_ON: [(u16, u32); 4] = [
    (0x100, 0x2001_000f),
    (0x104, 0x8000_0028),
    (0x200, 0x0001_001b),
    (0x204, 0x0001_1400),
];
/// Control registers of the two.
const ATS: u16 = 0x106;
const PASID: u16 = 0x206;

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "G22 R30",
        "a device's ATS is on only while its context entry allows it, and off before it is flushed",
        in_order,
    )
    .needs(DEVICE_TLB),
    scenario(
        "G22",
        "a device without the switches, or with one that does not move, is not assigned",
        refused,
    )
    .needs(DEVICE_TLB),
    scenario(
        "G22 R29",
        "a device whose ATS cannot be switched off is cut off",
        stuck_on,
    )
    .needs(DEVICE_TLB),
    scenario(
        "R21",
        "accesses of assigned devices are forced to snoop wherever hardware can",
        forced_snooping,
    ),
];

/// A guest whose first device has left, and how it comes back with its switches moved by the machine.
fn guest(place: Place<'_>) -> (Guest, DeviceConfig) {
    let mut guest = place.device_tlb_guest();
    guest.unassign(D0).unwrap();
    let config = DeviceConfig {
        switches: DeviceSwitches::ByMachine,
        ..guest.device_config(D0, 0, 0)
    };
    (guest, config)
}

fn in_order(place: Place<'_>) {
    let (mut guest, config) = guest(place);
    let hypervisor = guest.lab.hypervisor.clone();
    hypervisor.set_configuration(config.source_id, &LEFT_ON, None);
    let physical = config.source_id;
    guest.try_assign(config).unwrap();
    let writes = |hypervisor: &crate::bench::Interposer| -> Vec<(u16, u16)> {
        let writes = hypervisor.take_configuration_writes();
        writes.iter().map(|&(at, value, _)| (at, value)).collect()
    };
    let mut wanted = vec![(ATS, 0), (PASID, 0), (PASID, 1), (ATS, 0x8000)];
    if guest.tag.is_none() {
        wanted.remove(2);
    }
    assert_eq!(writes(&hypervisor), wanted);
    assert!(guest.lab.context_place(0, physical).is_some());

    let (_, page) = guest.bind(D0, guest.pasid, 7);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.lab.take_submitted();
    let before = hypervisor.counts().submissions;
    guest.unassign(D0).unwrap();
    let writes = hypervisor.take_configuration_writes();
    let first = writes.get(..2).expect("two switches");
    assert_eq!(first, [(ATS, 0, before), (PASID, 0, before)], "first");
    assert!(writes.iter().all(|write| write.1 == 0), "and off they stay");
    let told = guest.lab.take_submitted();
    assert!(told.iter().any(|one| one.kind == kind::DEVICE_TLB));
    guest.finish();
}

fn refused(place: Place<'_>) {
    use DeviceCapabilityError as E;
    let (mut guest, config) = guest(place);
    let hypervisor = guest.lab.hypervisor.clone();
    let none = [(0x100, 0x0001_0001), (0x104, 0)];
    for (words, stuck, error) in [
        (&[][..], None, E::Gone),
        (&LEFT_ON, Some(ATS), E::NotSwitched { offset: 0x100 }),
        (&none, None, E::NoAddressTranslation),
    ] {
        let config = DeviceConfig {
            pasid_bits: 0,
            ..config
        };
        // Off before, so that a switch that does not move stays off.
        let mut words = words.to_vec();
        for (at, word) in &mut words {
            if *at == 0x104 {
                *word &= 0xffff;
            }
        }
        hypervisor.set_configuration(config.source_id, &words, stuck);
        assert_eq!(
            guest.try_assign(config),
            Err(AssignError::Switches(error)),
            "{words:x?}"
        );
    }
    // Nothing of it is left behind.
    hypervisor.set_configuration(config.source_id, &LEFT_ON, None);
    guest.try_assign(config).unwrap();
    let (_, page) = guest.bind(D0, guest.pasid, 7);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.finish();
}

fn stuck_on(place: Place<'_>) {
    let (mut guest, config) = guest(place);
    let hypervisor = guest.lab.hypervisor.clone();
    let source_id = config.source_id;
    hypervisor.set_configuration(source_id, &LEFT_ON, None);
    guest.try_assign(config).unwrap();
    let (_, page) = guest.bind(D0, guest.pasid, 7);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    hypervisor.set_configuration(source_id, &LEFT_ON, Some(ATS));
    assert_eq!(
        guest.unassign(D0),
        Err(BindError::Quarantined { source_id })
    );
    assert_eq!(
        hypervisor.take_bus_master_changes(),
        [(source_id, false)],
        "cut off"
    );
    // Its TLB answers, so it can leave.
    assert_eq!(guest.unassign(D0), Ok(()));
    assert_eq!(guest.reached(D0, guest.tag, IOVA), None);
    guest.finish();
}

// `ECAP.SC`; bit 24 of an entry's second quadword is `PGSNP`, bit 11 of a leaf `SNP`.
fn forced_snooping(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = guest.bind(D0, guest.pasid, 7);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    let unit = &guest.lab.units[0];
    let can = unit
        .features()
        .extended
        .field(ExtendedCapabilityField::SNOOP_CONTROL)
        == 1;
    let request = ExplainRequest {
        source_id: guest.physical(D0),
        pasid: guest.tag.and_then(Pasid::new),
        address: Iova::new(IOVA),
        access: walk::Access::READ,
        execute: false,
    };
    let (mut entry_forces, mut leaf_forces) = (false, false);
    let h = &*guest.lab.hypervisor;
    let explanation = unit.explain(h, &request, |step| match *step {
        Step::Entry { quadwords, .. } => entry_forces = quadwords[1] >> 24 & 1 == 1,
        Step::SecondStage { entry, .. } => leaf_forces = entry >> 11 & 1 == 1,
        _ => {}
    });
    assert!(explanation.result.is_ok());
    assert_eq!(entry_forces || leaf_forces, can);
    assert_eq!(leaf_forces, can && guest.is_legacy());
    guest.finish();
}
