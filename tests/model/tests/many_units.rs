//! A machine of a host with many units costs by the units that its devices are behind.

use vtd_model::{Machine, ModelConfig, ModelHypervisor, ModelUnit};
use vtd_nest::arch::address::{Gpa, Hpa, Iova};
use vtd_nest::arch::id::SourceId;
use vtd_nest::mem::Owner;
use vtd_nest::nest::{
    AssignError, DeviceConfig, InterruptIsolation, Isolation, MACHINE_UNITS, MachineConfig, Policy,
    ProtectedRanges, VirtualMachine,
};
use vtd_nest::paging::Rights;
use vtd_nest::unit::discovery::IsolationGroup;
use vtd_nest::unit::{InterruptConfig, Unit, UnitConfig};
use vtd_nest::viommu::Poll;
use vtd_nest::viommu::host::{DeviceHandle, Progress};

/// As on a server with eight sockets.
const UNITS: usize = 40;
const MEMORY_LEN_BYTES: u64 = 2 << 20;
const HOST_MEMORY: u64 = 0x4000_0000;
const INTERRUPT_TABLE_ORDER: u8 = 7;
const SLICE_ORDER: u8 = 5;

type Vm = VirtualMachine<16, 16, 16, 2>;

/// A machine on a host with units that are all up.
struct Host {
    machine: Machine,
    models: Vec<ModelUnit>,
    units: Vec<Unit<ModelUnit>>,
    vm: Box<Vm>,
}

/// What hardware was asked for: descriptors and waits of each unit.
type Work = Vec<(u64, u64)>;

impl Host {
    fn new(unit_count: usize) -> Self {
        let config = ModelConfig::caching_mode().with_interrupt_remapping();
        let machine = Machine::new(config.clone());
        let h = &machine.hypervisor;
        let models: Vec<_> = (0..unit_count)
            .map(|index| match index {
                0 => machine.unit.clone(),
                _ => {
                    let unit = ModelUnit::new(config.clone(), &machine.memory, h.clock());
                    h.attach(&unit);
                    unit
                }
            })
            .collect();
        let units: Vec<_> = (0..)
            .zip(&models)
            .map(|(segment, model)| {
                let interrupts = InterruptConfig {
                    table_order: INTERRUPT_TABLE_ORDER,
                    ..InterruptConfig::new()
                };
                let config = UnitConfig {
                    interrupts,
                    ..UnitConfig::new(segment, 46)
                };
                let unit = Unit::probe(model.clone(), config).expect("a unit");
                unit.bring_up(h).expect("it comes up");
                unit
            })
            .collect();
        let vm = Box::new(machine_of(h, &units, 1));
        Self {
            machine,
            models,
            units,
            vm,
        }
    }

    fn assign(&mut self, unit: u8) -> Result<DeviceHandle, AssignError> {
        let config = config(unit, device(unit));
        self.vm
            .assign(&self.machine.hypervisor, &self.units, config)
    }

    fn map(&mut self) {
        self.vm
            .map_memory(
                &self.machine.hypervisor,
                &self.units,
                Gpa::new(0),
                Hpa::new(HOST_MEMORY),
                MEMORY_LEN_BYTES,
                Rights::READ_WRITE,
            )
            .expect("memory");
    }

    fn unmap(&mut self) {
        self.vm
            .unmap_memory(
                &self.machine.hypervisor,
                &self.units,
                Gpa::new(0),
                MEMORY_LEN_BYTES,
            )
            .expect("it goes");
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            match self.vm.poll(&self.machine.hypervisor, &self.units, 64) {
                Poll::Idle => return,
                Poll::Again => {}
                Poll::Wait => self.machine.hypervisor.clock().advance(1_000),
            }
        }
        panic!("the work does not end");
    }

    fn unassign(&mut self, handle: DeviceHandle) {
        for _ in 0..10_000 {
            let h = &self.machine.hypervisor;
            match self.vm.unassign(h, &self.units, handle).expect("it leaves") {
                Progress::Done => return,
                Progress::Again => {}
                Progress::Wait => h.clock().advance(1_000),
            }
        }
        panic!("the device never leaves");
    }

    /// Whether the device behind a unit reads the machine's memory.
    fn reaches_memory(&self, unit: u8) -> bool {
        let mut bytes = [0; 8];
        self.models[usize::from(unit)]
            .initiator(device(unit))
            .read(Iova::new(0x1000), &mut bytes)
            .is_ok()
    }

    fn work(&self) -> Work {
        let counters = self.models.iter().map(ModelUnit::counters);
        counters
            .map(|counters| (counters.descriptors, counters.waits))
            .collect()
    }

    /// The work since then, of the units that had any.
    fn work_since(&self, before: &Work) -> Vec<(usize, (u64, u64))> {
        let now = self.work().into_iter().zip(before);
        now.map(|(now, before)| (now.0 - before.0, now.1 - before.1))
            .enumerate()
            .filter(|(_, work)| *work != (0, 0))
            .collect()
    }
}

fn machine_of(h: &ModelHypervisor, units: &[Unit<ModelUnit>], number: u16) -> Vm {
    let config = MachineConfig {
        number: number.into(),
        owner: Owner::new(number),
        policy: Policy {
            interrupt_entries_order: SLICE_ORDER,
            ..Policy::default()
        },
        protected: ProtectedRanges::new(),
        hash_seed: 1,
        shadow_table_limit: 64,
    };
    Vm::new(h, units, config).expect("a machine")
}

fn device(unit: u8) -> SourceId {
    SourceId::new(unit, 1, 0).expect("a function")
}

fn config(unit: u8, source_id: SourceId) -> DeviceConfig {
    DeviceConfig::new(
        source_id,
        source_id,
        unit,
        InterruptIsolation::Required,
        Isolation::Group(IsolationGroup::of(source_id)),
    )
}

#[test]
fn a_machine_has_devices_behind_the_first_and_the_last_of_forty_units() {
    let mut host = Host::new(UNITS);
    let last = UNITS as u8 - 1;
    let handles = [0, last].map(|unit| host.assign(unit).expect("room"));
    host.map();
    host.settle();
    assert!(host.reaches_memory(0) && host.reaches_memory(last));
    host.unmap();
    assert!(!host.reaches_memory(0) && !host.reaches_memory(last));
    host.map();
    for handle in handles {
        host.unassign(handle);
    }
    assert!(!host.reaches_memory(0) && !host.reaches_memory(last));
    for model in &host.models {
        model.assert_no_violations();
    }
}

#[test]
fn what_a_machine_owes_does_not_grow_with_units_that_it_does_not_use() {
    let work_of = |unit_count: usize, used: [u8; 2]| {
        let mut host = Host::new(unit_count);
        host.map();
        let before = host.work();
        let handles = used.map(|unit| host.assign(unit).expect("room"));
        host.settle();
        host.unmap();
        host.map();
        for handle in handles {
            host.unassign(handle);
        }
        host.work_since(&before)
    };
    let few = work_of(2, [0, 1]);
    let many = work_of(UNITS, [0, 39]);
    let indices = |work: &[(usize, _)]| work.iter().map(|(index, _)| *index).collect::<Vec<_>>();
    let sums = |work: &[(usize, (u64, u64))]| work.iter().map(|(_, work)| *work).collect();
    assert_eq!((indices(&few), indices(&many)), (vec![0, 1], vec![0, 39]));
    let (few, many): (Vec<_>, Vec<_>) = (sums(&few), sums(&many));
    assert_eq!(few, many);
}

#[test]
fn a_unit_that_a_machine_has_left_makes_room_for_another() {
    let mut host = Host::new(UNITS);
    let handles: Vec<_> = (0..MACHINE_UNITS as u8)
        .map(|unit| host.assign(unit * 4).expect("room"))
        .collect();
    let refused = AssignError::TooManyUnits {
        unit: 39,
        capacity: MACHINE_UNITS,
    };
    assert_eq!(host.assign(39), Err(refused));
    // Behind a unit that it uses.
    let h = &host.machine.hypervisor;
    let second = config(4, SourceId::new(4, 2, 0).expect("a function"));
    let second = host.vm.assign(h, &host.units, second).expect("room");
    host.settle();
    // One of the two behind the unit, which stays in use.
    host.unassign(handles[1]);
    assert_eq!(host.assign(39), Err(refused));
    host.unassign(second);
    host.assign(39).expect("room");
    host.map();
    host.settle();
    assert!(host.reaches_memory(39) && !host.reaches_memory(4));
    for model in &host.models {
        model.assert_no_violations();
    }
}

#[test]
fn interrupt_entries_are_taken_of_used_units_and_come_back() {
    let mut host = Host::new(UNITS);
    let slices = 1usize << (INTERRUPT_TABLE_ORDER + 1 - SLICE_ORDER);
    let h = &host.machine.hypervisor;
    // More machines than any one unit has slices for.
    let mut others: Vec<_> = (0..slices as u16)
        .map(|number| Box::new(machine_of(h, &host.units, 2 + number)))
        .collect();
    for (number, other) in (2..).zip(&mut others) {
        let source_id = SourceId::new(39, number, 0).expect("a function");
        let assigned = other.assign(h, &host.units, config(39, source_id));
        assigned.expect("a slice is free");
    }
    let full = host.assign(39).expect_err("no slice is free");
    assert!(matches!(full, AssignError::Unit(_)), "{full:?}");
    // Of all other units there is one.
    let handle = host.assign(38).expect("room");
    host.unassign(handle);
    let mut left = others.pop().map(|other| *other);
    while Vm::destroy(&mut left, &host.machine.hypervisor, &host.units) != Ok(Progress::Done) {}
    host.assign(39).expect("a slice came back");
}
