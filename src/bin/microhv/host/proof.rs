//! The steps of the proof with the hypervisor's own devices.

use heapless::Vec;
use vtd_nest::arch::address::PAGE_SIZE_BYTES;
use vtd_nest::mem::MmioRegisters;
use vtd_nest::unit::Unit;

use crate::clock;
use crate::console::println;
use crate::environment::Environment;
use crate::interrupt;
use crate::local_apic::LocalApic;
use crate::report::{self, Figure};

use super::dma::{Dma, DmaError, Faults};
use super::entropy::{self, Entropy, EntropyError};
use super::message::{self, Message, MessageError};
use super::network::{self, Network, NetworkError};
use super::nvme::{self, BLOCKS_PER_PAGE, NvmeError};
use super::{DISKS, Disk, Driven, HostDevices};

/// Bytes of a disk, and of its blocks.
const DISK_LEN_BYTES: u64 = 1 << 20;
const BLOCK_LEN_BYTES: u64 = 512;
/// What is in memory that must not change.
const UNTOUCHED: u64 = 0x0a7e_0a7e_0a7e_0a7e;
/// Looks for an interrupt that is on its way.
const MAXIMUM_LOOKS: u32 = 64;

/// Why a step did not come to its end.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
enum StepError {
    Dma(DmaError),
    Message(MessageError),
    Nvme(NvmeError),
    Entropy(EntropyError),
    Network(NetworkError),
    /// The disk's serial number or length is another.
    NotTheDisk {
        letter: u8,
        blocks: u64,
    },
    /// A quadword on the disk is another.
    Content {
        block: u64,
        quadword: u64,
    },
    /// This does not hold.
    Not(&'static str),
    /// The unit of a device is not there.
    NoUnit,
}

impl From<DmaError> for StepError {
    fn from(error: DmaError) -> Self {
        Self::Dma(error)
    }
}
impl From<MessageError> for StepError {
    fn from(error: MessageError) -> Self {
        Self::Message(error)
    }
}
impl From<NvmeError> for StepError {
    fn from(error: NvmeError) -> Self {
        Self::Nvme(error)
    }
}
impl From<EntropyError> for StepError {
    fn from(error: EntropyError) -> Self {
        Self::Entropy(error)
    }
}
impl From<NetworkError> for StepError {
    fn from(error: NetworkError) -> Self {
        Self::Network(error)
    }
}

fn hold(condition: bool, what: &'static str) -> Result<(), StepError> {
    if condition {
        Ok(())
    } else {
        Err(StepError::Not(what))
    }
}

/// One fault of the device at the place that was aimed at, and no other.
fn hold_blocked(faults: Faults) -> Result<(), StepError> {
    hold(faults.expected > 0, "the blocked request is recorded")?;
    hold(faults.others == 0, "nothing else is recorded")
}

type Figures = Vec<Figure<'static>, 8>;

/// Reports how a step ended; whether it held.
fn settle(name: &str, result: Result<Figures, StepError>) -> bool {
    match result {
        Ok(figures) => {
            report::step(name, true, &figures);
            true
        }
        Err(error) => {
            log::error!("{name}: {error:?}");
            report::step(name, false, &[]);
            false
        }
    }
}

/// A disk at work.
struct Running<'a> {
    disk: &'a mut Disk,
    dma: Dma<'a>,
    message: Message,
    vector: u8,
}

type Units = [Unit<MmioRegisters>];

/// What is free: frames, and domain-ids of all units.
fn free(environment: &Environment, units: &Units) -> (u32, u32) {
    let ids = units.iter().map(Unit::free_domain_ids).sum();
    (environment.pool().free_frames(), ids)
}

fn unit_of<'a, D>(
    units: &'a Units,
    device: &Driven<D>,
) -> Result<&'a Unit<MmioRegisters>, StepError> {
    units.get(usize::from(device.unit)).ok_or(StepError::NoUnit)
}

/// Lets a device in once and takes it out, so that from then on there is a context table for it.
fn warm_up<D>(
    environment: &Environment,
    units: &Units,
    device: &Driven<D>,
) -> Result<(), StepError> {
    let unit = unit_of(units, device)?;
    Ok(Dma::set_up(environment, unit, device.source_id)?.free()?)
}

impl HostDevices {
    /// Runs every step; whether all held. Devices that are not there are told as skipped.
    #[inline(never)]
    pub(crate) fn prove(mut self, environment: &Environment, units: &Units) -> bool {
        let warm = self.warm_up(environment, units);
        if let Err(error) = warm {
            log::error!("own devices: {error:?}");
            report::step("own-bring-up", false, &[]);
            return false;
        }
        let before = free(environment, units);
        let mut held = self.prove_disks(environment, units);
        held &= match &mut self.entropy {
            Some(device) => settle("own-entropy", prove_entropy(environment, units, device)),
            None => report::skipped("own-entropy", "no virtio entropy device"),
        };
        held &= match &mut self.network {
            Some(device) => settle("own-network", prove_network(environment, units, device)),
            None => report::skipped("own-network", "no e1000e"),
        };
        let after = free(environment, units);
        let mut figures = Figures::new();
        let _ = figures.push(("frames-free", after.0.into()));
        let _ = figures.push(("domain-ids-free", after.1.into()));
        let given_back = hold(before == after, "frames and domain-ids are given back");
        held & settle("own-given-back", given_back.map(|()| figures))
    }

    fn warm_up(&self, environment: &Environment, units: &Units) -> Result<(), StepError> {
        for disk in &self.disks {
            warm_up(environment, units, disk)?;
        }
        if let Some(device) = &self.entropy {
            warm_up(environment, units, device)?;
        }
        if let Some(device) = &self.network {
            warm_up(environment, units, device)?;
        }
        Ok(())
    }

    fn prove_disks(&mut self, environment: &Environment, units: &Units) -> bool {
        const STEPS: [&str; 4] = ["own-disks", "own-interrupts", "own-foreign", "own-detached"];
        let Self { disks, apic, .. } = self;
        let why = match (disks.len(), &apic) {
            (DISKS, Some(_)) => None,
            (DISKS, None) => Some("no local APIC in xAPIC mode"),
            _ => Some("there are not two NVMe devices"),
        };
        let (Some(apic), None) = (apic, why) else {
            return STEPS
                .iter()
                .all(|name| report::skipped(name, why.unwrap_or_default()));
        };
        apic.enable();
        let [first, second] = disks.as_mut_slice() else {
            return false;
        };
        let [first_vector, second_vector, _] = interrupt::VECTORS;
        let started = start(environment, units, apic, first, first_vector);
        let started = started.and_then(|first| {
            Ok([
                first,
                start(environment, units, apic, second, second_vector)?,
            ])
        });
        let mut running = match started {
            Ok(running) => running,
            Err(error) => return settle(STEPS[0], Err(error)),
        };
        let mut held = settle(STEPS[0], read_disks(&mut running, apic));
        held &= if running[1].dma.unit.remaps_interrupts() {
            settle(STEPS[1], forge_interrupts(&mut running, apic))
        } else {
            println!("                  interrupts in compatibility format, nothing checks them");
            report::skipped(STEPS[1], "the unit remaps no interrupts")
        };
        held &= settle(STEPS[2], read_elsewhere(&mut running));
        held & settle(STEPS[3], detach(running))
    }
}

/// Starts a disk in a domain of its own, with an interrupt.
fn start<'a>(
    environment: &'a Environment,
    units: &'a Units,
    apic: &LocalApic,
    device: &'a mut Driven<Disk>,
    vector: u8,
) -> Result<Running<'a>, StepError> {
    let unit = unit_of(units, device)?;
    let source_id = device.source_id;
    let dma = Dma::set_up(environment, unit, source_id)?;
    let message = Message::new(environment, unit, source_id, apic.id(), vector)?;
    let disk = &mut device.driver;
    disk.messages
        .enable(&mut environment.pci().lock(), source_id);
    let _ = disk.messages.set(0, None);
    let _ = disk.messages.set(nvme::VECTOR, Some(message.message));
    disk.nvme.start(&dma)?;
    Ok(Running {
        disk,
        dma,
        message,
        vector,
    })
}

impl Running<'_> {
    /// Reads a page of blocks into the buffer; how many interrupts came of it.
    fn read_page(&mut self, apic: &mut LocalApic, block: u64) -> Result<u64, StepError> {
        let mut taken = 0;
        let buffer = self.dma.input(nvme::BUFFER).as_u64();
        let vector = self.vector;
        self.disk.nvme.read_to(&self.dma, block, buffer, || {
            taken += apic.take(vector);
        })?;
        for _ in 0..MAXIMUM_LOOKS {
            if taken > 0 {
                break;
            }
            taken += apic.take(vector);
            clock::pass_time();
        }
        Ok(taken)
    }

    /// Reads the whole disk and checks every quadword.
    fn read_all(&mut self, apic: &mut LocalApic, letter: u8) -> Result<u64, StepError> {
        let mut interrupts = 0;
        for page in 0..DISK_LEN_BYTES / PAGE_SIZE_BYTES {
            let first = page * BLOCKS_PER_PAGE;
            self.dma.fill_page(nvme::BUFFER, UNTOUCHED);
            interrupts += self.read_page(apic, first)?;
            for at in (0..PAGE_SIZE_BYTES).step_by(8) {
                let block = first + at / BLOCK_LEN_BYTES;
                let quadword = self.dma.read(nvme::BUFFER + at);
                let index = at % BLOCK_LEN_BYTES / 8;
                if quadword != u64::from(letter) << 56 | index << 32 | block {
                    return Err(StepError::Content { block, quadword });
                }
            }
        }
        Ok(interrupts)
    }
}

/// Each disk is what it should be, whole, and each page of it was announced by an interrupt.
fn read_disks(running: &mut [Running<'_>; 2], apic: &mut LocalApic) -> Result<Figures, StepError> {
    let mut interrupts = 0;
    let mut letters = 0;
    for disk in running.iter_mut() {
        let letter = disk.disk.nvme.letter(&disk.dma)?;
        let blocks = disk.disk.nvme.blocks(&disk.dma)?;
        if !(b'a'..=b'b').contains(&letter) || blocks * BLOCK_LEN_BYTES != DISK_LEN_BYTES {
            return Err(StepError::NotTheDisk { letter, blocks });
        }
        letters |= 1 << (letter - b'a');
        interrupts += disk.read_all(apic, letter)?;
    }
    hold(letters == 0b11, "one disk is `disk-a`, one `disk-b`")?;
    let pages = 2 * DISK_LEN_BYTES / PAGE_SIZE_BYTES;
    hold(interrupts == pages, "one interrupt for each read")?;
    let faults = running[0].dma.faults_at(u64::MAX);
    hold(faults.others == 0, "nothing is blocked")?;
    let [first, second] = running;
    let domains = (first.dma.domain_id(), second.dma.domain_id());
    hold(domains.0 != domains.1, "each disk has a domain of its own")?;
    let mut figures = Figures::new();
    let _ = figures.push(("bytes", 2 * DISK_LEN_BYTES));
    let _ = figures.push(("interrupts", interrupts));
    let remapped = first.dma.unit.remaps_interrupts();
    let _ = figures.push(("remapped", u64::from(remapped)));
    Ok(figures)
}

/// The message of another device's entry is blocked by source validation. So is one in compatibility
/// format by a unit that is told so, which an emulated one may not heed: that is only told.
fn forge_interrupts(
    running: &mut [Running<'_>; 2],
    apic: &mut LocalApic,
) -> Result<Figures, StepError> {
    let [first, second] = running;
    let _ = second
        .disk
        .messages
        .set(nvme::VECTOR, Some(first.message.message));
    let own = second.read_page(apic, 0)?;
    let foreign = apic.take(first.vector);
    hold(foreign == 0, "the other device's vector stays silent")?;
    hold(own == 0, "and the device's own")?;
    hold_blocked(second.dma.refused_interrupts())?;

    let compatibility = message::compatibility(apic.id(), second.vector);
    let _ = second.disk.messages.set(nvme::VECTOR, Some(compatibility));
    let passed = second.read_page(apic, 0)?;
    let _ = second.dma.refused_interrupts();
    if passed > 0 {
        println!(
            "                  the emulated unit let a message in compatibility format pass (the library never sets CFI)"
        );
    }

    let own = second.message.message;
    let _ = second.disk.messages.set(nvme::VECTOR, Some(own));
    let taken = second.read_page(apic, 0)?;
    hold(taken == 1, "its own message still passes")?;
    let mut figures = Figures::new();
    let _ = figures.push(("blocked", 1));
    let _ = figures.push(("own", taken));
    let _ = figures.push(("compatibility-passed", passed));
    Ok(figures)
}

/// A disk reaches neither the other's memory nor its own host-physical addresses nor what lies
/// behind what it was given.
fn read_elsewhere(running: &mut [Running<'_>; 2]) -> Result<Figures, StepError> {
    let [first, second] = running;
    let mut blocked = 0;
    first.dma.fill_page(nvme::BUFFER, UNTOUCHED);
    second.dma.fill_page(nvme::BUFFER, UNTOUCHED);
    second.dma.fill_page(Dma::beyond(), UNTOUCHED);
    for target in [
        first.dma.input(nvme::BUFFER).as_u64(),
        first.dma.output(nvme::BUFFER).as_u64(),
        second.dma.output(nvme::BUFFER).as_u64(),
        second.dma.input(Dma::beyond()).as_u64(),
    ] {
        let outcome = second.disk.nvme.read_to(&second.dma, 0, target, || {});
        log::debug!("read to {target:#x}: {outcome:?}");
        hold_blocked(second.dma.faults_at(target))?;
        blocked += 1;
    }
    let is_untouched = first.dma.is_page_all(nvme::BUFFER, UNTOUCHED)
        && second.dma.is_page_all(nvme::BUFFER, UNTOUCHED)
        && second.dma.is_page_all(Dma::beyond(), UNTOUCHED);
    hold(is_untouched, "memory is untouched")?;
    let mut figures = Figures::new();
    let _ = figures.push(("blocked", blocked));
    Ok(figures)
}

/// A device that was taken out is blocked, its driver still at work.
fn detach(running: [Running<'_>; 2]) -> Result<Figures, StepError> {
    let mut blocked = 0;
    for disk in running {
        let Running {
            disk,
            mut dma,
            message,
            ..
        } = disk;
        dma.fill_page(nvme::BUFFER, UNTOUCHED);
        let buffer = dma.input(nvme::BUFFER).as_u64();
        dma.cut_off()?;
        let outcome = disk.nvme.read_to(&dma, 0, buffer, || {});
        hold(outcome.is_err(), "no command is fetched")?;
        let queue = dma.input(nvme::IO).as_u64();
        hold_blocked(dma.faults_at(queue))?;
        hold(
            dma.is_page_all(nvme::BUFFER, UNTOUCHED),
            "memory is untouched",
        )?;
        blocked += 1;
        disk.nvme.stop()?;
        let _ = disk.messages.set(nvme::VECTOR, None);
        message.release(dma.environment, dma.unit)?;
        dma.free()?;
    }
    let mut figures = Figures::new();
    let _ = figures.push(("blocked", blocked));
    Ok(figures)
}

/// The device fills a page, and cannot fill one that it was not given.
fn prove_entropy(
    environment: &Environment,
    units: &Units,
    device: &mut Driven<Entropy>,
) -> Result<Figures, StepError> {
    let unit = unit_of(units, device)?;
    let dma = Dma::set_up(environment, unit, device.source_id)?;
    let driver = &mut device.driver;
    driver.start(&dma)?;
    dma.fill_page(entropy::BUFFER, UNTOUCHED);
    let bytes = driver.fill(&dma, dma.input(entropy::BUFFER).as_u64())?;
    hold(u64::from(bytes) == PAGE_SIZE_BYTES, "the page is filled")?;
    let kept = (0..PAGE_SIZE_BYTES)
        .step_by(8)
        .filter(|at| dma.read(entropy::BUFFER + at) == UNTOUCHED)
        .count();
    hold(kept == 0, "every quadword has changed")?;
    hold(dma.faults_at(u64::MAX).others == 0, "nothing is blocked")?;
    dma.fill_page(Dma::beyond(), UNTOUCHED);
    let target = dma.input(Dma::beyond()).as_u64();
    let outcome = driver.fill(&dma, target);
    log::debug!("entropy to {target:#x}: {outcome:?}");
    hold_blocked(dma.faults_at(target))?;
    hold(
        dma.is_page_all(Dma::beyond(), UNTOUCHED),
        "memory is untouched",
    )?;
    driver.stop()?;
    dma.free()?;
    let mut figures = Figures::new();
    let _ = figures.push(("bytes", bytes.into()));
    let _ = figures.push(("blocked", 1));
    Ok(figures)
}

/// The device reads a frame and writes its descriptor back, and cannot read what it was not given.
fn prove_network(
    environment: &Environment,
    units: &Units,
    device: &mut Driven<Network>,
) -> Result<Figures, StepError> {
    let unit = unit_of(units, device)?;
    let dma = Dma::set_up(environment, unit, device.source_id)?;
    let driver = &mut device.driver;
    driver.start(&dma)?;
    dma.fill_page(network::FRAME, UNTOUCHED);
    driver.send(&dma, dma.input(network::FRAME).as_u64())?;
    hold(dma.faults_at(u64::MAX).others == 0, "nothing is blocked")?;
    let target = dma.input(Dma::beyond()).as_u64();
    let outcome = driver.send(&dma, target);
    log::debug!("frame at {target:#x}: {outcome:?}");
    hold_blocked(dma.faults_at(target))?;
    driver.stop()?;
    dma.free()?;
    let mut figures = Figures::new();
    let _ = figures.push(("frames", 1));
    let _ = figures.push(("blocked", 1));
    Ok(figures)
}
