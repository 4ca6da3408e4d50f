//! The image's job on the model: every step, in every profile and cache mode.

use vtd_model::{ModelConfig, Pace};
use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::mem::HostMemory;
use vtd_nest::nest::{Backend, Policy};

use crate::bench::{Bench, CACHE_MODES, D0, GUEST_LEN_BYTES};
use crate::guest::{BlockedTarget, Job, Layout, STEPS};

const LAYOUT: Layout = Layout {
    device: D0,
    tables: (Gpa::new(0x10_0000), Gpa::new(0x40_0000)),
    data: (Gpa::new(0x40_0000), Gpa::new(GUEST_LEN_BYTES)),
};

/// Host memory that is not the machine's.
const OUTSIDE: Hpa = Hpa::new(0x3000_0000);

fn run(config: ModelConfig, policy: Policy, backend: Backend) -> Bench {
    let mut bench = Bench::with_policy(config, policy);
    assert_eq!(bench.vm.offer().backend, backend);
    bench.model.memory.write64(OUTSIDE, 0x5ec3_e75e);
    let mut job = Job::bring_up(&mut bench, LAYOUT).unwrap();
    for step in &STEPS[1..] {
        if *step == "blocked" {
            for target in [
                BlockedTarget::Unmapped,
                BlockedTarget::NotOfMachine(Gpa::new(OUTSIDE.as_u64())),
                BlockedTarget::NotOfMachine(Gpa::new(0xfed9_0000)), // the unit's registers
                BlockedTarget::NotOfMachine(Gpa::new(0xfec0_0000)), // the IOAPIC
                BlockedTarget::NotOfMachine(Gpa::new(0xb000_0000)), // ECAM
            ] {
                let blocked = job
                    .check_blocked(&mut bench, target)
                    .unwrap_or_else(|error| panic!("{target:x?}: {error:x?}"));
                assert_ne!(blocked.write, blocked.read);
                assert_eq!(bench.model.memory.read64(OUTSIDE), 0x5ec3_e75e);
            }
            assert!(
                job.figures().faults >= 10,
                "a write and a read for each target"
            );
        } else {
            let figures = job
                .run(&mut bench, step)
                .unwrap_or_else(|error| panic!("{step}: {error:x?}"));
            assert!(figures.bytes > 0 && figures.pages > 0, "{step}");
        }
    }
    bench.model.unit.assert_no_violations();
    bench
}

// S1, S5, S17, S18, S31, S32, S41, S83; R18, R19, R21, R30
#[test]
fn guest_first_stage_tables_run_nested_on_hardware_that_nests() {
    for cache_mode in CACHE_MODES {
        let config = ModelConfig::nesting_server().with_cache_mode(cache_mode);
        let bench = run(config, Policy::default(), Backend::Nested);
        assert_eq!(bench.vm.statistics().shadow_pages, 0);
    }
}

// G6: every store that hardware has to see is flushed where the unit does not snoop.
#[test]
fn nested_on_a_unit_that_snoops_nothing() {
    for cache_mode in CACHE_MODES {
        let config = ModelConfig::nesting_client_noncoherent().with_cache_mode(cache_mode);
        run(config, Policy::default(), Backend::Nested);
    }
}

// S1, S5, S17, S18, S31, S32, S83 through the shadow; R21
#[test]
fn guest_second_stage_tables_are_shadowed_on_hardware_that_does_not_nest() {
    for cache_mode in CACHE_MODES {
        let config = ModelConfig::qemu_second_stage().with_cache_mode(cache_mode);
        let bench = run(config, Policy::default(), Backend::Shadow);
        assert!(bench.vm.statistics().shadow_pages >= 128);
    }
}

#[test]
fn policy_may_ask_for_shadows_on_hardware_that_nests() {
    let policy = Policy {
        forbid_nesting: true,
        ..Policy::default()
    };
    run(ModelConfig::nesting_server(), policy, Backend::Shadow);
}

// G31: a unit that caches what is not present is told of what becomes present.
#[test]
fn units_in_caching_mode_are_told_of_new_entries() {
    for cache_mode in CACHE_MODES {
        run(
            ModelConfig::caching_mode().with_cache_mode(cache_mode),
            Policy::default(),
            Backend::Nested,
        );
        let shadow = Policy {
            forbid_nesting: true,
            ..Policy::default()
        };
        run(
            ModelConfig::caching_mode().with_cache_mode(cache_mode),
            shadow,
            Backend::Shadow,
        );
    }
}

// G7: nothing is taken as done before hardware says so.
#[test]
fn late_completion_changes_nothing_but_time() {
    for delay in [500, 20_000] {
        for config in [
            ModelConfig::nesting_server(),
            ModelConfig::qemu_second_stage(),
        ] {
            let backend = if config.extended.has_nested() {
                Backend::Nested
            } else {
                Backend::Shadow
            };
            run(
                config.with_queue_pace(Pace::After(delay)),
                Policy::default(),
                backend,
            );
        }
    }
}
