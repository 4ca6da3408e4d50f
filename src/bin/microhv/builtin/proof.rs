//! The steps of one guest: it runs each, and the hypervisor checks its own side of it.

use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::mem::HostMemory;
use vtd_nest::nest::MachineStatistics;
use vtd_nest::unit::Unit;

use crate::console::println;
use crate::memory::Window;
use crate::report::{self, Explained, Figure};

use super::guest::{Blocked, BlockedTarget, Job, JobError, Layout, STEPS};
use super::hypervisor::Hypervisor;
use super::machine::{GUEST_DEVICE, GUEST_LEN_BYTES};

/// The machine whose guest runs these steps.
pub(super) const FIRST: usize = 0;

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

/// Where a guest has its things; two guests differ in what they put into their pages only.
pub(super) fn layout(content: u16) -> Layout {
    Layout {
        device: GUEST_DEVICE,
        tables: TABLES,
        data: DATA,
        content,
    }
}

/// Runs every step and reports each; the guest if it is up, and whether all held.
pub(crate) fn run(hypervisor: &mut Hypervisor) -> (Option<Job>, bool) {
    let features = hypervisor.unit(FIRST).map(|unit| *unit.features());
    let offer = hypervisor.machine(FIRST).map(|machine| *machine.offer());
    let (Some(features), Some(offer)) = (features, offer) else {
        return (None, false);
    };
    report::capabilities("unit", &features);
    report::capabilities("shown", &offer.features);
    report::backend(offer.backend.name());

    let [bring_up, steps @ ..] = STEPS;
    let mut job = match Job::bring_up(&mut hypervisor.guest(FIRST), layout(1)) {
        Ok(job) => job,
        Err(error) => {
            log::error!("{bring_up}: {error:?}");
            report::step(bring_up, false, &[]);
            return (None, false);
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
        held &= show(hypervisor, step, |hypervisor| {
            if step == "blocked" {
                blocked(hypervisor, &mut job)
            } else {
                run_step(hypervisor, &mut job, step)
            }
        });
    }
    totals(hypervisor);
    (Some(job), held)
}

/// Runs one step and reports it, with each fault of hardware on the way explained; whether it held.
pub(super) fn show<const FIGURES: usize, E: core::fmt::Debug>(
    hypervisor: &mut Hypervisor,
    step: &str,
    run: impl FnOnce(&mut Hypervisor) -> Result<[Figure<'static>; FIGURES], E>,
) -> bool {
    hypervisor.faults.clear();
    let result = run(hypervisor);
    for fault in &hypervisor.faults {
        let explained = Explained(&fault.record, &fault.outcome);
        println!("                  {explained}");
        hypervisor.explain(fault);
    }
    match result {
        Ok(figures) => {
            report::step(step, true, &figures);
            true
        }
        Err(error) => {
            log::error!("{step}: {error:?}");
            report::step(step, false, &[]);
            false
        }
    }
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
    let figures = job
        .run(&mut hypervisor.guest(FIRST), step)
        .map_err(StepError::Guest)?;
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
            .check_blocked(&mut hypervisor.guest(FIRST), target)
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
    let unit = hypervisor
        .unit(FIRST)
        .map(Unit::statistics)
        .unwrap_or_default();
    let machine = hypervisor
        .machine(FIRST)
        .map_or(MachineStatistics::NONE, |machine| machine.statistics());
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
