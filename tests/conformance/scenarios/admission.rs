//! Who may enter a machine, and with what: errata of the platform, isolation groups, source-ids of one
//! device, memory that firmware reserves.

use vtd_nest::arch::address::{Gpa, Hpa, Iova};
use vtd_nest::arch::capability::{ExtendedCapability, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::Register64;
use vtd_nest::mem::Registers;
use vtd_nest::nest::{
    AssignError, DeviceConfig, InterruptIsolation, Isolation, MachineError, ReservedMemoryUse,
};
use vtd_nest::paging::{OnPartialLeaf, Rights};
use vtd_nest::unit::discovery::{
    Aliases, IsolationGroup, RequesterIds, ReservedRegion, ReservedRegions, SourceIdRange,
};
use vtd_nest::unit::rmrr::RESERVED_DEVICES;
use vtd_nest::unit::{Erratum, ReservedDevice, ReservedMemoryError, UnitError};

use crate::bench::Requester;
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, Guest, GuestOptions, IOVA, Lab, OUTSIDE, Place};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "G3",
        "a chipset with broken interrupt remapping gets no device assigned",
        broken_remapping_vetoes,
    )
    .needs(&[Need::Extended(Ecap::INTERRUPT_REMAPPING, "IR")]),
    scenario(
        "G18",
        "a device with reserved memory is refused, or keeps it for as long as it may use it",
        reserved_memory,
    ),
    scenario(
        "G18",
        "reserved memory that the unit could not be told of keeps every unknown device out",
        untracked_reserved_memory,
    ),
    scenario(
        "G20",
        "a device is all of its requester ids, or none",
        aliases,
    ),
    scenario(
        "G20 R36",
        "one of a device's source-ids is somebody else's: nothing of it is assigned",
        an_alias_in_use,
    ),
    scenario(
        "R36",
        "devices that hardware does not keep apart are in one machine, unless the embedder insists",
        groups_are_not_split,
    ),
];

fn no_devices(number: u16) -> GuestOptions {
    GuestOptions {
        number,
        devices: Vec::new(),
        ..GuestOptions::default()
    }
}

fn broken_remapping_vetoes(place: Place<'_>) {
    let lab = place.lab_with_erratum(Erratum::InterruptRemapping);
    // The registers say that it remaps, and the library does not believe them.
    let unit = lab.hypervisor.registers(0).expect("a unit");
    let reported = unit.read64(Register64::EXTENDED_CAPABILITY);
    assert!(ExtendedCapability::from_bits(reported).has_interrupt_remapping());
    let believed = lab.units[0].features().extended;
    assert!(!believed.has_interrupt_remapping());
    let mut guest = Guest::start(
        &lab,
        GuestOptions {
            devices: Vec::new(),
            ..GuestOptions::default()
        },
    );
    let source_id = lab.hypervisor.bench().device(0);
    let config = DeviceConfig {
        pasid_bits: 20,
        ..DeviceConfig::new(
            source_id,
            D0,
            0,
            InterruptIsolation::Required,
            Isolation::AssertedByEmbedder,
        )
    };
    let refused = guest.vm.assign(&*lab.hypervisor, &lab.units, config);
    let expected = AssignError::InterruptRemappingMissing(source_id);
    assert_eq!(refused.map(drop), Err(expected));
    // What the unit shows is not passed on either.
    let offered = guest.vm.offer().features.extended;
    assert!(!offered.has_interrupt_remapping());
}

/// One region of one page.
fn page_at(at: Hpa) -> ReservedRegion {
    ReservedRegion::new(at, 0x1000).expect("a page")
}

/// The device reads its reserved memory: whether data came.
fn reads_reserved(lab: &Lab, source_id: SourceId, at: Hpa) -> bool {
    const VALUE: u64 = 0x5afe;
    lab.hypervisor.bench().memory().write64(at, VALUE);
    let requester = Requester {
        source_id,
        pasid: None,
        privileged: false,
        execute: false,
    };
    let mut bytes = [0; 8];
    let address = Iova::new(at.as_u64());
    lab.hypervisor.dma_read(requester, address, &mut bytes);
    u64::from_le_bytes(bytes) == VALUE
}

fn untracked_reserved_memory(place: Place<'_>) {
    let lab = place.lab();
    let (h, unit) = (&*lab.hypervisor, &lab.units[0]);
    let region = page_at(h.bench().layout().nobodys.start);
    let regions = || ReservedRegions::from_slice(&[region]).expect("room for one");
    let device = |index| SourceId::from_u16(0x4000 + index as u16);
    let track = |index| ReservedDevice::track(unit, RequesterIds::of(device(index)), regions());
    let mut tracked: Vec<_> = (0..RESERVED_DEVICES)
        .map(|index| track(index).expect("room for it"))
        .collect();
    let mut guest = Guest::start(&lab, no_devices(0));
    // One that is told of twice is known all the same.
    assert_eq!(track(0).err(), Some(ReservedMemoryError::Known(device(0))));
    assert!(!unit.has_untracked_reserved_memory());
    let too_many = ReservedMemoryError::TooMany(device(RESERVED_DEVICES));
    assert_eq!(track(RESERVED_DEVICES).err(), Some(too_many));
    for reserved_memory in [
        ReservedMemoryUse::Refused,
        ReservedMemoryUse::MappedInMachine,
    ] {
        let config = DeviceConfig {
            reserved_memory,
            ..guest.device_config(D0, 0, 0)
        };
        let untracked = AssignError::ReservedMemoryUntracked(config.source_id);
        assert_eq!(guest.try_assign(config), Err(untracked));
    }
    for reserved in &mut tracked {
        reserved.take_out(h, unit).expect("they never were let in");
    }
}

fn reserved_memory(place: Place<'_>) {
    let lab = place.lab();
    let (h, unit) = (&*lab.hypervisor, &lab.units[0]);
    let source_id = h.bench().device(0);
    let at = h.bench().layout().nobodys.start;
    let region = page_at(at);
    let reads = |expected: bool| assert_eq!(reads_reserved(&lab, source_id, at), expected);
    reads(false);
    let regions = ReservedRegions::from_slice(&[region]).expect("room for one");
    let ids = RequesterIds::of(source_id);
    let mut reserved = ReservedDevice::track(unit, ids, regions).expect("room for one");
    reads(false);
    reserved.let_in(h, unit).expect("it is let in");
    reads(true);

    let mut guest = Guest::start(
        &lab,
        GuestOptions {
            brought_up: false,
            ..no_devices(0)
        },
    );
    let by_default = guest.device_config(D0, 0, 0);
    let config = DeviceConfig {
        reserved_memory: ReservedMemoryUse::MappedInMachine,
        ..by_default
    };
    let refused = AssignError::ReservedMemory { source_id, region };
    assert_eq!(guest.try_assign(by_default), Err(refused));
    let not_mapped = AssignError::ReservedMemoryNotMapped { source_id, region };
    assert_eq!(guest.try_assign(config), Err(not_mapped));
    let gpa = Gpa::new(at.as_u64());
    for (host, rights) in [
        (at, Rights::READ),
        (Hpa::new(at.as_u64() + 0x1000), Rights::READ_WRITE),
    ] {
        // In part, or elsewhere.
        let vm = &mut guest.vm;
        let mapped = vm.map_memory(h, &lab.units, gpa, host, 0x1000, rights);
        mapped.expect("memory for the machine");
        assert_eq!(guest.try_assign(config), Err(not_mapped));
        let vm = &mut guest.vm;
        vm.unmap_memory(h, &lab.units, gpa, 0x1000).expect("gone");
    }
    let vm = &mut guest.vm;
    vm.map_memory(h, &lab.units, gpa, at, 0x1000, Rights::READ_WRITE)
        .expect("memory for the machine");
    // The hypervisor has it.
    let in_use = AssignError::Unit(UnitError::Attached(source_id));
    assert_eq!(guest.try_assign(config), Err(in_use));
    reads(true);

    reserved.take_out(h, unit).expect("hardware confirms");
    guest.try_assign(config).expect("the device is assigned");
    guest.settle();
    reads(true);
    let kept = Err(MachineError::ReservedMemory { region });
    for (first, len_bytes) in [(gpa, 0x1000), (Gpa::new(gpa.as_u64() - 0x1000), 0x2000)] {
        let vm = &mut guest.vm;
        assert_eq!(vm.unmap_memory(h, &lab.units, first, len_bytes), kept);
        let (rights, partial) = (Rights::READ, OnPartialLeaf::Widen);
        let protected = vm.protect_memory(h, &lab.units, first, len_bytes, rights, partial);
        assert_eq!(protected, kept);
    }
    reads(true);
    guest.unassign(D0).expect("it leaves");
    reserved.let_in(h, unit).expect("it is let in");
    reads(true);
    let vm = &mut guest.vm;
    vm.unmap_memory(h, &lab.units, gpa, 0x1000)
        .expect("it is free");
    reads(true);
    reserved.take_out(h, unit).expect("hardware confirms");
    reads(false);
    guest.finish();
}

/// The bench's first device, with its second one's source-id as an alias.
fn with_alias(guest: &Guest) -> (DeviceConfig, SourceId) {
    let alias = guest.lab.hypervisor.bench().device(1);
    let mut aliases = Aliases::NONE;
    aliases.add(alias).expect("room for one");
    let config = DeviceConfig {
        aliases,
        ..guest.device_config(D0, 0, 0)
    };
    (config, alias)
}

fn aliases(place: Place<'_>) {
    let lab = place.lab();
    let h = &*lab.hypervisor;
    // The n-th table of the set cannot be made: none of the set is assigned.
    let mut guest = Guest::start(&lab, GuestOptions::default());
    guest.unassign(D0).expect("it leaves");
    guest.unassign(D1).expect("it leaves");
    let (config, alias) = with_alias(&guest);
    let whole = SourceIdRange {
        first: SourceId::from_u16(0),
        last: SourceId::from_u16(u16::MAX),
    };
    let mut failures = 0;
    for frames in 0.. {
        let before = guest.holdings();
        h.fail_allocations_after(Some(frames));
        let refused = guest.try_assign(config);
        h.fail_allocations_after(None);
        if refused.is_ok() {
            break;
        }
        failures += 1;
        assert_eq!(guest.holdings(), before);
        assert_eq!(lab.units[0].find_attached(h, whole, |_| true), None);
    }
    // In legacy mode there are only context tables, which stay.
    assert!(failures >= 2 || guest.is_legacy(), "{failures}");
    guest.settle();

    // Whichever id it sends, it is the same device of the same guest.
    let (_, page) = guest.bound();
    let sends_as_alias = |guest: &Guest, iova: u64| {
        let mut bytes = [0; 8];
        let requester = Requester {
            source_id: alias,
            ..guest.requester(D0, guest.tag)
        };
        h.dma_read(requester, Iova::new(iova), &mut bytes);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(sends_as_alias(&guest, IOVA), guest.read_u64(page));
    assert_eq!(sends_as_alias(&guest, OUTSIDE), 0);
    let faults = guest.take_faults().faults;
    let told: Vec<_> = faults.iter().map(|fault| fault.source_id).collect();
    assert_eq!(told, [D0]);
    guest.unassign(D0).expect("it leaves");
    assert_eq!(lab.units[0].find_attached(h, whole, |_| true), None);
    assert_eq!(sends_as_alias(&guest, IOVA), 0);
    guest.finish();
}

fn an_alias_in_use(place: Place<'_>) {
    let lab = place.lab();
    let h = &*lab.hypervisor;
    let mut other = Guest::start(
        &lab,
        GuestOptions {
            devices: vec![(D1, 1, 0)],
            ..no_devices(0)
        },
    );
    let mut guest = Guest::start(&lab, no_devices(1));
    let before = guest.holdings();
    let (config, alias) = with_alias(&guest);
    let refused = AssignError::Unit(UnitError::Attached(alias));
    assert_eq!(guest.try_assign(config), Err(refused));
    assert_eq!(guest.holdings(), before);
    let own = IsolationGroup::of(config.source_id).members;
    assert_eq!(lab.units[0].find_attached(h, own, |_| true), None);
    other.unassign(D1).expect("it leaves");
    guest.try_assign(config).expect("it is free");
    // Now both are gone.
    let refused = AssignError::Unit(UnitError::Attached(alias));
    let theirs = other.device_config(D1, 1, 0);
    assert_eq!(other.try_assign(theirs), Err(refused));
    guest.finish();
    other.finish();
}

fn groups_are_not_split(place: Place<'_>) {
    let lab = place.lab();
    let (first, second) = (
        lab.hypervisor.bench().device(0),
        lab.hypervisor.bench().device(1),
    );
    let group = IsolationGroup {
        members: SourceIdRange {
            first: first.min(second),
            last: first.max(second),
        },
        bridge: None,
    };
    let mut guest = Guest::start(&lab, no_devices(0));
    let mut other = Guest::start(&lab, no_devices(1));
    let in_group = |guest: &Guest, source_id, device| DeviceConfig {
        isolation: Isolation::Group(group),
        ..guest.device_config(source_id, device, 0)
    };
    let config = in_group(&guest, D0, 0);
    guest.try_assign(config).expect("nobody has the other");
    let config = in_group(&other, D1, 1);
    let before = other.holdings();
    let refused = AssignError::SplitGroup {
        source_id: second,
        member: first,
    };
    assert_eq!(other.try_assign(config), Err(refused));
    assert_eq!(other.holdings(), before);
    // The whole group in one machine, and then in the other.
    let both = in_group(&guest, D1, 1);
    guest.try_assign(both).expect("the same machine");
    guest.unassign(D0).expect("it leaves");
    assert_eq!(
        other.try_assign(in_group(&other, D0, 0)),
        Err(AssignError::SplitGroup {
            source_id: first,
            member: second,
        })
    );
    guest.unassign(D1).expect("it leaves");
    other.try_assign(config).expect("nobody has the other");
    // In so many words.
    let insists = DeviceConfig {
        isolation: Isolation::AssertedByEmbedder,
        ..in_group(&guest, D0, 0)
    };
    guest.try_assign(insists).expect("the embedder insists");
    guest.finish();
    other.finish();
}
