//! Machines of any capacity, made in a place of their own: nothing of them goes over the stack.

use std::error::Error;
use std::sync::{Mutex, MutexGuard};
use std::thread;

use vtd_model::{Machine, ModelConfig};
use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::arch::id::SourceId;
use vtd_nest::mem::{FramePool, Owner};
use vtd_nest::nest::{
    DeviceConfig, HostBinding, InterruptIsolation, Isolation, MachineConfig, MachineError,
    MachineStore, Policy, ProtectedRanges,
};
use vtd_nest::paging::Rights;
use vtd_nest::unit::{Unit, UnitConfig};
use vtd_nest::viommu::{Poll, Progress, VirtualUnit};

/// Less than one index of the largest store takes.
const STACK_LEN_BYTES: usize = 256 << 10;

fn config(number: u32) -> MachineConfig {
    MachineConfig {
        number,
        owner: Owner::new(1),
        policy: Policy::default(),
        protected: ProtectedRanges::new(),
        hash_seed: 1,
        shadow_table_limit: 64,
    }
}

/// Makes a machine in a place, uses it and destroys it, twice.
fn use_place<
    const DEVICES: usize,
    const BINDINGS: usize,
    const DOMAINS: usize,
    const SHADOWS: usize,
>(
    place: &mut MachineStore<DEVICES, BINDINGS, DOMAINS, SHADOWS>,
) -> Result<(), Box<dyn Error>> {
    let machine = Machine::new(ModelConfig::nesting_server());
    let h = &machine.hypervisor;
    let unit = Unit::probe(machine.unit.clone(), UnitConfig::new(0, 46))?;
    unit.bring_up(h)?;
    let units = [unit];
    for number in 0..2 {
        assert!(place.get().is_none() && place.get_mut().is_none());
        let vm = place.start(h, &units, config(number))?;
        let (guest, host) = (Gpa::new(0), Hpa::new(0x4000_0000));
        vm.map_memory(h, &units, guest, host, 4 << 20, Rights::READ_WRITE)?;
        let source_id = SourceId::new(0, 2, 0).ok_or("no such function")?;
        let device = DeviceConfig {
            pasid_bits: 20,
            ..DeviceConfig::new(
                source_id,
                source_id,
                0,
                InterruptIsolation::WaivedByEmbedder,
                Isolation::AssertedByEmbedder,
            )
        };
        vm.assign(h, &units, device)
            .map_err(|error| format!("{error:?}"))?;
        while vm.poll(h, &units, 64) != Poll::Idle {}
        assert_eq!(vm.statistics().binds, 1, "translation is off");
        assert_eq!(
            place.start(h, &units, config(9)).err(),
            Some(MachineError::InUse)
        );
        assert!(place.get().is_some());
        while place.destroy(h, &units)? != Progress::Done {
            assert!(
                place.get_mut().is_some(),
                "it is there until all is given back"
            );
        }
        assert_eq!(h.pool().charged_frames(Owner::new(1)), 0);
    }
    assert_eq!(
        place.destroy(h, &units),
        Ok(Progress::Done),
        "nothing to do"
    );
    machine.unit.assert_no_violations();
    Ok(())
}

/// Runs on a small stack.
fn on_small_stack(run: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().stack_size(STACK_LEN_BYTES);
    thread.spawn(run).unwrap().join().unwrap();
}

macro_rules! place {
    ($devices:literal, $bindings:literal, $domains:literal, $shadows:literal) => {{
        static PLACE: Mutex<MachineStore<$devices, $bindings, $domains, $shadows>> =
            Mutex::new(MachineStore::new());
        let lock: fn() -> MutexGuard<'static, _> = || PLACE.lock().unwrap();
        lock
    }};
}

#[test]
fn a_machine_of_any_capacity_is_made_and_destroyed_on_a_small_stack() {
    on_small_stack(|| {
        use_place(&mut *place!(1, 1, 1, 1)()).unwrap();
        use_place(&mut *place!(4, 16, 16, 4)()).unwrap();
        use_place(&mut *place!(16, 4096, 256, 16)()).unwrap();
        use_place(&mut *place!(64, 65536, 65535, 64)()).unwrap();
    });
}

#[test]
fn what_cannot_be_offered_leaves_the_place_free() {
    let lock = place!(1, 8, 1, 2);
    let machine = Machine::new(ModelConfig::nesting_server());
    let mut place = lock();
    let refused = MachineConfig {
        policy: Policy {
            fault_records: 0,
            ..Policy::default()
        },
        ..config(0)
    };
    let unit = Unit::probe(machine.unit.clone(), UnitConfig::new(0, 46)).unwrap();
    let error = place.start(&machine.hypervisor, &[unit], refused).err();
    assert!(matches!(error, Some(MachineError::Offer(_))), "{error:?}");
    assert!(place.get().is_none());
    drop(place);
    use_place(&mut *lock()).unwrap();
}

// The table of `vtd_nest::nest::store`.
#[test]
fn every_store_takes_what_is_documented() {
    let rounded = |bytes: usize| bytes.div_ceil(1 << 10);
    assert_eq!(
        [
            size_of::<MachineStore<4, 64, 16, 4>>(),
            size_of::<MachineStore<8, 4096, 256, 16>>(),
            size_of::<MachineStore<16, 65536, 1024, 64>>(),
            size_of::<VirtualUnit<HostBinding, 8, 4096>>(),
            size_of::<FramePool<256, 16>>(),
            size_of::<FramePool<4096, 64>>(),
        ]
        .map(rounded),
        [29, 529, 8010, 512, 3, 33]
    );
}
