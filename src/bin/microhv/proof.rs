//! The steps of the proof: the guest runs each, and the hypervisor checks its own side of it.

use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::mem::HostMemory;
use vtd_nest::unit::Unit;

use crate::console::println;
use crate::guest::{Blocked, BlockedTarget, Job, JobError, Layout, STEPS};
use crate::hypervisor::{Explained, GUEST_LEN_BYTES, Hypervisor};
use crate::memory::Window;
use crate::report::{self, Figure};

/// Memory for the guest's tables and queue.
const TABLES: (Gpa, Gpa) = (Gpa::new(0x10_0000), Gpa::new(0x40_0000));
/// Memory for the guest's data.
const DATA: (Gpa, Gpa) = (Gpa::new(0x40_0000), Gpa::new(GUEST_LEN_BYTES));

/// A page of the hypervisor's own, which a guest may try to reach by its host-physical address.
#[repr(align(4096))]
struct Secret([u64; 512]);

static SECRET: Secret = Secret([0x5ec3_e75e_c3e7_5ec3; 512]);

/// Content of the page that is nobody's.
const CANARY: u64 = 0xca_0a57_ca0a_57ca;

/// Runs every step and reports each; whether all held.
pub(crate) fn run(hypervisor: &mut Hypervisor) -> bool {
    let Some(features) = hypervisor.unit().map(|unit| *unit.features()) else {
        return false;
    };
    report::capabilities("unit", &features);
    report::capabilities("shown", &hypervisor.machine.offer().features);
    report::backend(hypervisor.machine.offer().backend.name());

    let layout = Layout {
        device: hypervisor.device.source_id,
        tables: TABLES,
        data: DATA,
    };
    let [bring_up, steps @ ..] = STEPS;
    let mut job = match Job::bring_up(hypervisor, layout) {
        Ok(job) => job,
        Err(error) => {
            log::error!("{bring_up}: {error:?}");
            report::step(bring_up, false, &[]);
            return false;
        }
    };
    let protecting = hypervisor.units.iter().all(Unit::is_protecting);
    report::step(
        bring_up,
        protecting,
        &[("units", hypervisor.units.len() as u64)],
    );

    let mut held = protecting;
    for step in steps {
        hypervisor.faults.clear();
        let result = if step == "blocked" {
            blocked(hypervisor, &mut job)
        } else {
            run_step(hypervisor, &mut job, step)
        };
        for (record, outcome) in &hypervisor.faults {
            println!("                  {}", Explained(record, outcome));
            hypervisor.explain(record);
        }
        match result {
            Ok(figures) => report::step(step, true, &figures),
            Err(error) => {
                log::error!("{step}: {error:?}");
                report::step(step, false, &[]);
                held = false;
            }
        }
    }
    totals(hypervisor);
    held
}

/// Why a step did not hold.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
enum StepError {
    /// The guest's side.
    Guest(JobError),
    /// What should have been out of reach has changed.
    Changed(Hpa),
    /// A unit does not translate by the library's tables any more.
    UnitLost,
    /// Hardware recorded fewer faults than there were blocked requests.
    HardwareFaults(usize),
}

fn run_step(
    hypervisor: &mut Hypervisor,
    job: &mut Job,
    step: &str,
) -> Result<[Figure<'static>; 3], StepError> {
    let figures = job.run(hypervisor, step).map_err(StepError::Guest)?;
    Ok([
        ("pages", figures.pages),
        ("bytes", figures.bytes),
        ("faults", figures.faults),
    ])
}

/// Aims the device at what it must not reach, one target after the other.
fn blocked(hypervisor: &mut Hypervisor, job: &mut Job) -> Result<[Figure<'static>; 3], StepError> {
    let secret = Gpa::new(&raw const SECRET as u64);
    let canary = hypervisor.canary;
    for offset in (0..4096).step_by(8) {
        hypervisor
            .environment
            .write64(Hpa::new(canary.as_u64() + offset), CANARY);
    }
    // Without a window the configuration space has no address; q35's place is as good as any.
    let ecam = hypervisor
        .environment
        .pci()
        .lock()
        .window()
        .map_or(Hpa::new(0xb000_0000), Window::start);
    let targets = [
        ("unmapped address", BlockedTarget::Unmapped),
        (
            "memory outside the machine",
            BlockedTarget::NotOfMachine(Gpa::new(canary.as_u64())),
        ),
        (
            "the hypervisor's memory",
            BlockedTarget::NotOfMachine(secret),
        ),
        (
            "the unit's registers",
            BlockedTarget::NotOfMachine(Gpa::new(hypervisor.unit_registers.as_u64())),
        ),
        (
            "the IOAPIC",
            BlockedTarget::NotOfMachine(Gpa::new(0xfec0_0000)),
        ),
        (
            "PCI configuration space",
            BlockedTarget::NotOfMachine(Gpa::new(ecam.as_u64())),
        ),
    ];
    let mut records = 0;
    for (name, target) in targets {
        let before = hypervisor.faults.len();
        let Blocked { write, read } = job
            .check_blocked(hypervisor, target)
            .map_err(StepError::Guest)?;
        println!(
            "                  {name}: write and read blocked; the guest's records say {:#04x} and {:#04x}",
            write.reason_code(),
            read.reason_code()
        );
        let found = hypervisor.faults.len().saturating_sub(before);
        if found < 2 {
            return Err(StepError::HardwareFaults(found));
        }
        records += found as u64;
        for offset in (0..4096).step_by(8) {
            let at = Hpa::new(canary.as_u64() + offset);
            if hypervisor.environment.read64(at) != CANARY {
                return Err(StepError::Changed(at));
            }
        }
        for word in &SECRET.0 {
            // SECRET is constant to the compiler; the device is not bound by that.
            if core::hint::black_box(*word) != 0x5ec3_e75e_c3e7_5ec3 {
                return Err(StepError::Changed(Hpa::new(secret.as_u64())));
            }
        }
        if !hypervisor.units.iter().all(Unit::is_protecting) {
            return Err(StepError::UnitLost);
        }
    }
    Ok([
        ("targets", targets.len() as u64),
        ("hardware-faults", records),
        ("guest-records", job.figures().faults),
    ])
}

fn totals(hypervisor: &Hypervisor) {
    let unit = hypervisor.unit().map(Unit::statistics).unwrap_or_default();
    let machine = hypervisor.machine.statistics();
    report::totals(&[
        ("bindings", machine.binds),
        ("unbindings", machine.unbinds),
        ("in-place-replacements", machine.replaced_in_place),
        ("shadow-pages", machine.shadow_pages),
        ("submissions", unit.submissions),
        ("descriptors", unit.descriptors),
        ("waits", unit.waits),
        ("faults-to-guest", machine.faults_to_guest),
        ("faults-to-host", machine.faults_to_host),
        ("interrupts", hypervisor.environment.delivered_interrupts()),
    ]);
}
