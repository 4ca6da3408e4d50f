//! Two guests beside each other, with the same domain-id, guest-physical addresses, I/O virtual
//! addresses and even source-id: what one does reaches nothing of the other (S92).

use vtd_nest::arch::address::{Gpa, Hpa, Iova};
use vtd_nest::paging::walk::Access;
use vtd_nest::unit::{ExplainRequest, Step};
use vtd_nest::viommu::host::BindError;

use crate::report::Figure;

use super::guest::{
    BlockedTarget, Direction, DmaTimeout, Job, JobError, PAIRS, destination_iova, dma, source_iova,
};
use super::hypervisor::Hypervisor;
use super::proof::{layout, show};

/// A pair of pages that no step of the guest changes.
const KEPT_PAIR: u64 = 5;

/// What did not hold.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
enum Crossed {
    /// The side of the guest with this index.
    Guest(usize, JobError),
    /// Memory of the machine with this index has changed, and nobody should have changed it.
    Changed(usize),
    /// A fault of hardware went to the machine with this index.
    FaultOf(Option<usize>),
    /// Hardware recorded fewer faults than there were blocked requests.
    HardwareFaults(usize),
    /// The tables of hardware lead an address of the machine with this index elsewhere, or nowhere.
    LeadsTo(usize, Option<Hpa>),
    /// Both machines have this domain-id on hardware.
    DomainId(u16),
    /// A machine of this index is not there.
    NoMachine(usize),
    /// Destroying a machine did not end.
    Destroy(Option<BindError>),
    /// A destroyed machine still has this many frames.
    Frames(u32),
    /// A device did not end a DMA.
    Dma,
}

impl From<DmaTimeout> for Crossed {
    fn from(_: DmaTimeout) -> Self {
        Self::Dma
    }
}

/// Brings the second guest up beside the first, and runs every step; whether all held.
pub(crate) fn run(hypervisor: &mut Hypervisor, first: Job) -> bool {
    let mut second = None;
    let mut held = show(hypervisor, "second-guest", |hypervisor| {
        second = Some(bring_up_second(hypervisor)?);
        Ok::<_, Crossed>([("guests", hypervisor.machines.len() as u64)])
    });
    let Some(second) = second else {
        return false;
    };
    let mut jobs = [first, second];
    held &= show(hypervisor, "interleaved", |hypervisor| {
        interleaved(hypervisor, &mut jobs)
    });
    for (name, step) in [
        ("other-remaps", "remap"),
        ("other-off", "translation-off"),
        ("other-unbinds", "pass-through"),
    ] {
        held &= show(hypervisor, name, |hypervisor| {
            let mut pages = 0;
            for active in [0, 1] {
                pages += beside(hypervisor, &mut jobs, active, |hypervisor, job| {
                    let figures = job.run(&mut hypervisor.guest(active), step);
                    Ok(figures
                        .map_err(|error| Crossed::Guest(active, error))?
                        .pages)
                })?;
            }
            Ok::<_, Crossed>([("pages", pages), ("faults", hypervisor.faults.len() as u64)])
        });
    }
    held &= show(hypervisor, "other-faults", |hypervisor| {
        let mut blocked = 0;
        for active in [0, 1] {
            blocked += beside(hypervisor, &mut jobs, active, |hypervisor, job| {
                faults(hypervisor, job, active)
            })?;
        }
        Ok::<_, Crossed>([
            ("blocked", blocked),
            ("faults", hypervisor.faults.len() as u64),
        ])
    });
    held &= show(hypervisor, "other-reset", |hypervisor| {
        let pages = beside(hypervisor, &mut jobs, 0, reset)?;
        Ok::<_, Crossed>([("pages", pages)])
    });
    held & show(hypervisor, "other-destroyed", |hypervisor| {
        destroyed(hypervisor, &mut jobs)
    })
}

/// Brings the second guest up; the memory of the first stays as it is.
fn bring_up_second(hypervisor: &mut Hypervisor) -> Result<Job, Crossed> {
    let before = sum(hypervisor, 0);
    let job = Job::bring_up(&mut hypervisor.guest(1), layout(2));
    let job = job.map_err(|error| Crossed::Guest(1, error))?;
    if sum(hypervisor, 0) != before {
        return Err(Crossed::Changed(0));
    }
    Ok(job)
}

/// Both guests map and copy, page by page in turn, at the same addresses.
fn interleaved(
    hypervisor: &mut Hypervisor,
    jobs: &mut [Job; 2],
) -> Result<[Figure<'static>; 4], Crossed> {
    for pair in 0..PAIRS {
        for (index, job) in jobs.iter_mut().enumerate() {
            job.map_pair(&mut hypervisor.guest(index), pair)
                .map_err(|error| Crossed::Guest(index, error))?;
        }
    }
    for pair in 0..PAIRS {
        for (index, job) in jobs.iter_mut().enumerate() {
            job.copy_pair(&mut hypervisor.guest(index), pair)
                .map_err(|error| Crossed::Guest(index, error))?;
        }
    }
    if let Some(fault) = hypervisor.faults.first() {
        return Err(Crossed::FaultOf(fault.machine));
    }
    let (first, second) = (domain_id(hypervisor, 0)?, domain_id(hypervisor, 1)?);
    if first == second {
        return Err(Crossed::DomainId(first));
    }
    Ok([
        ("pages", 4 * PAIRS),
        ("bytes", 4 * 4096 * PAIRS),
        ("first-domain-id", first.into()),
        ("second-domain-id", second.into()),
    ])
}

/// Runs something of one machine: no memory of the other changes, its guest is told of no fault, and
/// its device reaches what it reached.
fn beside(
    hypervisor: &mut Hypervisor,
    jobs: &mut [Job; 2],
    active: usize,
    run: impl FnOnce(&mut Hypervisor, &mut Job) -> Result<u64, Crossed>,
) -> Result<u64, Crossed> {
    let [first, second] = jobs;
    let (job, other_job, other) = if active == 0 {
        (first, second, 1)
    } else {
        (second, first, 0)
    };
    let before = sum(hypervisor, other);
    let faults_before = hypervisor.faults.len();
    let result = run(hypervisor, job)?;
    if sum(hypervisor, other) != before {
        return Err(Crossed::Changed(other));
    }
    let faults = hypervisor.faults.get(faults_before..).unwrap_or_default();
    if let Some(fault) = faults.iter().find(|fault| fault.machine == Some(other)) {
        return Err(Crossed::FaultOf(fault.machine));
    }
    let mut guest = hypervisor.guest(other);
    other_job
        .expect_no_fault(&mut guest)
        .and_then(|()| other_job.copy_pair(&mut guest, KEPT_PAIR))
        .and_then(|()| other_job.expect_no_fault(&mut guest))
        .map_err(|error| Crossed::Guest(other, error))?;
    Ok(result)
}

/// Aims a device at nothing, and at the other machine's memory by its host-physical address.
fn faults(hypervisor: &mut Hypervisor, job: &mut Job, active: usize) -> Result<u64, Crossed> {
    let other = hypervisor.machines.get(1 - active);
    let memory = other.ok_or(Crossed::NoMachine(1 - active))?.memory;
    let targets = [
        BlockedTarget::Unmapped,
        BlockedTarget::NotOfMachine(Gpa::new(memory.as_u64())),
    ];
    for target in targets {
        let before = hypervisor.faults.len();
        job.check_blocked(&mut hypervisor.guest(active), target)
            .map_err(|error| Crossed::Guest(active, error))?;
        let faults = hypervisor.faults.get(before..).unwrap_or_default();
        if faults.len() < 2 {
            return Err(Crossed::HardwareFaults(faults.len()));
        }
        if let Some(fault) = faults.iter().find(|fault| fault.machine != Some(active)) {
            return Err(Crossed::FaultOf(fault.machine));
        }
    }
    Ok(2 * targets.len() as u64)
}

/// Resets the first machine; its guest comes up anew.
fn reset(hypervisor: &mut Hypervisor, job: &mut Job) -> Result<u64, Crossed> {
    let vm = hypervisor
        .machines
        .get_mut(0)
        .ok_or(Crossed::NoMachine(0))?;
    vm.machine_mut().ok_or(Crossed::NoMachine(0))?.reset();
    vm.work(&hypervisor.environment, hypervisor.units);
    let guest = &mut hypervisor.guest(0);
    let anew = Job::bring_up(guest, layout(1)).and_then(|mut anew| {
        let figures = anew.run(guest, "translate")?;
        *job = anew;
        Ok(figures.pages)
    });
    anew.map_err(|error| Crossed::Guest(0, error))
}

/// Destroys the first machine: its device reaches nothing any more, not even what was its own, and
/// nobody is told of its faults but the hypervisor. The second goes on.
fn destroyed(
    hypervisor: &mut Hypervisor,
    jobs: &mut [Job; 2],
) -> Result<[Figure<'static>; 3], Crossed> {
    let vm = hypervisor
        .machines
        .get_mut(0)
        .ok_or(Crossed::NoMachine(0))?;
    let (owner, own_memory) = (vm.owner, vm.memory);
    let source_id = vm.device.function.source_id;
    let frames = hypervisor.environment.pool().charged_frames(owner);
    match vm.destroy(&hypervisor.environment, hypervisor.units) {
        Ok(true) => {}
        Ok(false) => return Err(Crossed::Destroy(None)),
        Err(error) => return Err(Crossed::Destroy(Some(error))),
    }
    match hypervisor.environment.pool().charged_frames(owner) {
        0 => {}
        left => return Err(Crossed::Frames(left)),
    }
    // It is the unit that has to block.
    let pci = hypervisor.environment.pci();
    pci.lock().set_bus_master(source_id, true);
    let addresses = [
        source_iova(KEPT_PAIR),
        destination_iova(KEPT_PAIR),
        layout(0).data.0.as_u64(),
        own_memory.as_u64(),
    ];
    let own_before = sum(hypervisor, 0);
    let blocked = beside(hypervisor, jobs, 0, |hypervisor, _| {
        for address in addresses {
            for direction in [Direction::ToMemory, Direction::ToDevice] {
                let before = hypervisor.faults.len();
                dma(&mut hypervisor.guest(0), direction, address)?;
                let faults = hypervisor.faults.get(before..).unwrap_or_default();
                if faults.is_empty() {
                    return Err(Crossed::HardwareFaults(0));
                }
                let of_machine = faults.iter().find(|fault| fault.machine.is_some());
                if let Some(fault) = of_machine {
                    return Err(Crossed::FaultOf(fault.machine));
                }
            }
        }
        Ok(2 * addresses.len() as u64)
    })?;
    if sum(hypervisor, 0) != own_before {
        return Err(Crossed::Changed(0));
    }
    Ok([
        ("blocked", blocked),
        ("faults", hypervisor.faults.len() as u64),
        ("frames-given-back", frames.into()),
    ])
}

/// The domain-id with which hardware tags a guest's translations, by the tables that it walks; they
/// have to lead into the machine's own memory.
fn domain_id(hypervisor: &Hypervisor, index: usize) -> Result<u16, Crossed> {
    let (Some(unit), Some(vm)) = (hypervisor.unit(index), hypervisor.machines.get(index)) else {
        return Err(Crossed::NoMachine(index));
    };
    let request = ExplainRequest {
        source_id: vm.device.function.source_id,
        pasid: None,
        address: Iova::new(source_iova(KEPT_PAIR)),
        access: Access::READ,
        execute: false,
    };
    let mut domain_id = None;
    let explanation = unit.explain(&hypervisor.environment, &request, |step| match step {
        Step::Entry { quadwords, .. } => domain_id = Some(quadwords[1] as u16),
        Step::LegacyContext { quadwords, .. } => domain_id = Some((quadwords[1] >> 8) as u16),
        _ => {}
    });
    let address = explanation.result.ok().map(|leads| leads.address);
    match (domain_id, address) {
        (Some(domain_id), Some(address)) if vm.has(address) => Ok(domain_id),
        _ => Err(Crossed::LeadsTo(index, address)),
    }
}

/// A sum over a machine's memory on the host.
fn sum(hypervisor: &Hypervisor, index: usize) -> Option<u64> {
    let vm = hypervisor.machines.get(index)?;
    Some(vm.sum_of_memory(&hypervisor.environment))
}
