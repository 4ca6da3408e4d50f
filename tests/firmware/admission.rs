//! What firmware says decides how a device may enter a machine.

use vtd_model::{Machine, ModelConfig, ModelUnit};
use vtd_nest::arch::address::Hpa;
use vtd_nest::arch::dmar::Dmar;
use vtd_nest::arch::id::SourceId;
use vtd_nest::mem::Owner;
use vtd_nest::nest::{
    AddressTranslation, AssignError, DeviceConfig, InterruptIsolation, Isolation, MachineConfig,
    Policy, ProtectedRanges, VirtualMachine,
};
use vtd_nest::unit::discovery::{
    IsolationGroup, RequesterIds, ReservedRegion, VouchedDevice, reserved_regions, vouched_device,
};
use vtd_nest::unit::{DeviceTlb, ReservedDevice, Unit, UnitConfig};

use super::builder::{Segment, Table, endpoint, id};

/// A unit of segment 0, and a machine.
struct Host {
    machine: Machine,
    units: [Unit<ModelUnit>; 1],
    vm: VirtualMachine<4, 16, 16, 2>,
}

impl Host {
    fn new() -> Self {
        let machine = Machine::new(ModelConfig::device_tlb_server());
        let h = &machine.hypervisor;
        let unit = Unit::probe(machine.unit.clone(), UnitConfig::new(0, 46)).expect("a unit");
        unit.bring_up(h).expect("it comes up");
        let units = [unit];
        let config = MachineConfig {
            number: 1,
            owner: Owner::new(1),
            policy: Policy::default(),
            protected: ProtectedRanges::new(),
            hash_seed: 1,
            shadow_table_limit: 64,
        };
        let vm = VirtualMachine::new(h, &units, config).expect("a machine");
        Self { machine, units, vm }
    }

    fn assign(&mut self, name: &str, use_of_ats: AddressTranslation) -> Result<(), AssignError> {
        let source_id = id(name);
        let config = DeviceConfig {
            address_translation: use_of_ats,
            ..DeviceConfig::new(
                source_id,
                source_id,
                0,
                InterruptIsolation::WaivedByEmbedder,
                Isolation::Group(IsolationGroup::of(source_id)),
            )
        };
        let h = &self.machine.hypervisor;
        self.vm.assign(h, &self.units, config).map(drop)
    }
}

const fn device_tlb(physical_function: SourceId) -> DeviceTlb {
    DeviceTlb {
        queue_depth: 8,
        physical_function,
    }
}

// §8.8
#[test]
fn firmware_vouches_for_one_device_of_one_segment() {
    let segment = Segment::new(&[], &["6a:01.0", "6a:02.0", "6a:03.0"]);
    let table = Table::new(46)
        .last_unit(0, 0x1000, &[])
        .flagged(5, true, 0, &[endpoint(0x6a, &[(1, 0)])])
        .flagged(5, false, 1, &[endpoint(0x6a, &[(2, 0)])])
        .flagged(2, true, 0, &[])
        .finish();
    let dmar = Dmar::parse(&table).expect("a table");
    let vouched = |of: u16, name: &str| -> Option<VouchedDevice> {
        vouched_device(&dmar, of, id(name), &segment).expect("a sound table")
    };
    let first = vouched(0, "6a:01.0").expect("it is listed");
    let elsewhere = vouched(1, "6a:02.0").expect("it is listed");
    assert!(first.needs_cache() && !elsewhere.needs_cache());
    assert_eq!(vouched(1, "6a:01.0"), None);
    // All ports support ATS, which says nothing of a device.
    assert_eq!(vouched(0, "6a:03.0"), None);

    let mut host = Host::new();
    for (word, name) in [
        (first, "6a:03.0"),
        (elsewhere, "6a:01.0"),
        (elsewhere, "6a:02.0"),
    ] {
        let listed = AddressTranslation::FirmwareListed(word, device_tlb(id(name)));
        let refused = AssignError::NotVouchedFor(id(name));
        assert_eq!(host.assign(name, listed), Err(refused));
    }
    let listed = AddressTranslation::FirmwareListed(first, device_tlb(id("6a:01.0")));
    assert_eq!(host.assign("6a:01.0", listed), Ok(()));
}

// §8.4
#[test]
fn a_device_whose_table_reserves_memory_for_it_enters_no_machine() {
    let segment = Segment::new(&[], &["00:14.0", "00:15.0"]);
    let table = Table::new(46)
        .last_unit(0, 0x1000, &[])
        .reserved(0, 0x7a00_0000, 0x7a01_ffff, &[endpoint(0, &[(0x14, 0)])])
        .finish();
    let dmar = Dmar::parse(&table).expect("a table");
    let mut host = Host::new();
    // As at start: every function, before any is assigned.
    for name in ["00:14.0", "00:15.0"] {
        let requesters = RequesterIds::of(id(name));
        let regions = reserved_regions(&dmar, 0, &requesters, &segment).expect("sound");
        if !regions.is_empty() {
            // It is never let in, so nothing is lost with it.
            let _ = ReservedDevice::track(&host.units[0], requesters, regions).expect("room");
        }
    }
    let refused = AssignError::ReservedMemory {
        source_id: id("00:14.0"),
        region: ReservedRegion::new(Hpa::new(0x7a00_0000), 0x2_0000).expect("pages"),
    };
    assert_eq!(
        host.assign("00:14.0", AddressTranslation::Off),
        Err(refused)
    );
    assert_eq!(host.assign("00:15.0", AddressTranslation::Off), Ok(()));
}
