//! The hypervisor's own devices, each in a domain of its own behind the remapping units, and the proof
//! that each reaches what it was given and nothing else.
//!
//! | module | job |
//! |---|---|
//! | `proof` | the steps |
//! | `dma` | a device's domain and memory, and its faults |
//! | `message` | interrupts of a device, through the unit's table where there is one |
//! | `capability` | capabilities in configuration space, MSI-X |
//! | `nvme`, `entropy`, `network` | a driver each |

mod capability;
mod dma;
mod entropy;
mod message;
mod network;
mod nvme;
mod proof;

use heapless::Vec;
use vtd_nest::arch::id::SourceId;

use crate::local_apic::LocalApic;
use crate::memory::Memory;
use crate::msr;
use crate::pci::{Function, Pci};
use crate::units::DescribedUnits;

use capability::MsiX;
use entropy::Entropy;
use network::Network;
use nvme::Nvme;

/// Disks that there are at most.
const DISKS: usize = 2;

/// A device with its driver.
struct Driven<D> {
    source_id: SourceId,
    /// Index of the unit that it is behind.
    unit: u8,
    driver: D,
}

/// An NVMe controller and its interrupts.
struct Disk {
    nvme: Nvme,
    messages: MsiX,
}

/// The devices, stopped, with bus mastering off.
pub(crate) struct HostDevices {
    disks: Vec<Driven<Disk>, DISKS>,
    entropy: Option<Driven<Entropy>>,
    network: Option<Driven<Network>>,
    apic: Option<LocalApic>,
}

impl HostDevices {
    /// Finds the devices and resets each. One that does not answer is left out, with a warning.
    pub(crate) fn open(
        memory: &Memory,
        pci: &mut Pci,
        functions: &[Function],
        described: &DescribedUnits,
    ) -> Self {
        let mut devices = Self {
            disks: Vec::new(),
            entropy: None,
            network: None,
            apic: None,
        };
        if msr::is_x2apic() {
            log::warn!("the processor is in x2APIC mode: devices of the host raise no interrupts");
        } else {
            devices.apic = LocalApic::open(memory).ok();
        }
        for function in functions {
            let is_disk = function.class == nvme::CLASS;
            if !is_disk && !entropy::is_entropy(function) && !network::is_network(function) {
                continue;
            }
            let source_id = function.source_id;
            let Ok((unit, _)) = described.covering(source_id, functions) else {
                log::warn!("{source_id}: behind no unit");
                continue;
            };
            pci.set_bus_master(source_id, false);
            pci.set_memory_space(source_id, true);
            if devices.add(memory, pci, function, unit).is_none() {
                log::warn!("{source_id}: not used by the host");
            }
        }
        devices
    }

    fn add(&mut self, memory: &Memory, pci: &Pci, function: &Function, unit: u8) -> Option<()> {
        let source_id = function.source_id;
        let warn = |what: &str| log::warn!("{source_id}: {what}");
        let registers = || capability::bar(memory, function, 0);
        if entropy::is_entropy(function) {
            let driver = Entropy::open(memory, pci, function)
                .inspect_err(|error| log::warn!("{source_id}: {error:?}"))
                .ok()?;
            self.entropy = Some(Driven {
                source_id,
                unit,
                driver,
            });
        } else if network::is_network(function) {
            let driver = Network::open(registers()?)
                .inspect_err(|error| log::warn!("{source_id}: {error:?}"))
                .ok()?;
            self.network = Some(Driven {
                source_id,
                unit,
                driver,
            });
        } else {
            let nvme = Nvme::open(registers()?)
                .inspect_err(|error| log::warn!("{source_id}: {error:?}"))
                .ok()?;
            let messages = MsiX::open(memory, pci, function).or_else(|| {
                warn("no MSI-X");
                None
            })?;
            let driver = Disk { nvme, messages };
            let disk = Driven {
                source_id,
                unit,
                driver,
            };
            self.disks.push(disk).ok()?;
        }
        Some(())
    }
}
