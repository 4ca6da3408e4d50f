//! QEMU's unit over the qtest protocol: one process for a profile and thread, reset for each
//! scenario.

use std::sync::{Arc, Mutex, PoisonError};

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::interrupt::InterruptMessage;
use vtd_nest::mem::{HostMemory, Platform, Registers};
use vtd_qtest::{Machine, Options, Qemu};

use super::{Ability, Bench, HostRange, Layout, Profile, Requester, StartError};

/// Machines that wait for their next scenario.
type Idle = Arc<Mutex<Vec<Machine>>>;

/// A configuration of QEMU's unit.
pub(crate) struct QtestProfile {
    name: String,
    options: Options,
    host_address_width: u8,
    idle: Idle,
}

impl QtestProfile {
    fn new(name: &str, options: Options, host_address_width: u8) -> Self {
        Self {
            name: name.into(),
            options,
            host_address_width,
            idle: Idle::default(),
        }
    }

    /// The configurations that differ in what the library does with them.
    pub(crate) fn all(qemu: &Qemu) -> Vec<Self> {
        let second_stage = || Options::second_stage(qemu);
        let mut all = vec![
            Self::new("second-stage", second_stage(), 48),
            Self::new("caching-mode", second_stage().with("caching-mode=on"), 48),
            Self::new("39-bit", second_stage().with("aw-bits=39"), 39),
            Self::new("no-pass-through", second_stage().with("pt=off"), 48),
            Self::new(
                "no-interrupt-remapping",
                second_stage().with("intremap=off"),
                48,
            ),
            Self::new("legacy", Options::legacy(qemu), 48),
        ];
        all.extend(Options::first_stage(qemu).map(|options| Self::new("first-stage", options, 48)));
        all
    }

    /// Adds devices to the machine.
    pub(crate) fn with_devices(mut self, devices: &[String]) -> Self {
        self.options.devices.extend_from_slice(devices);
        self
    }

    /// The unit with just these options.
    pub(crate) fn named_by(qemu: &Qemu, iommu: &str) -> Self {
        let mut options = Options::legacy(qemu);
        iommu.clone_into(&mut options.iommu);
        let width = if iommu.contains("aw-bits=39") { 39 } else { 48 };
        Self::new(iommu, options, width)
    }
}

impl Profile for QtestProfile {
    fn bench(&self) -> &'static str {
        "qtest"
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn start(&self, units: usize) -> Result<Box<dyn Bench>, StartError> {
        if units != 1 {
            return Err(StartError("the bench has one unit".into()));
        }
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let machine = match idle {
            Some(mut machine) => {
                machine.reset();
                machine
            }
            None => Machine::new(&self.options).map_err(|error| StartError(error.to_string()))?,
        };
        Ok(Box::new(QtestBench {
            machine: Some(machine),
            host_address_width: self.host_address_width,
            idle: self.idle.clone(),
        }))
    }

    fn deviation(&self, scenario: &str) -> Option<&'static str> {
        let found = DEVIATIONS.iter().find(|(number, _)| *number == scenario);
        found.map(|(_, why)| *why)
    }
}

/// Scenarios that QEMU's unit is known to keep from meaning anything, and why.
const DEVIATIONS: [(&str, &str); 0] = [];

struct QtestBench {
    /// Always there until the bench ends.
    machine: Option<Machine>,
    host_address_width: u8,
    idle: Idle,
}

impl QtestBench {
    fn machine(&self) -> &Machine {
        self.machine.as_ref().expect("the bench is running")
    }

    fn edu(&self, requester: Requester) -> vtd_qtest::Edu {
        assert_eq!(requester.pasid, None, "edu sends no PASID");
        let index = (0..2).find(|index| self.device(*index) == requester.source_id);
        self.machine()
            .edu(index.expect("one of the bench's devices"))
    }
}

impl Drop for QtestBench {
    fn drop(&mut self) {
        if let Some(machine) = self.machine.take()
            && !std::thread::panicking()
        {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(machine);
        }
    }
}

impl Bench for QtestBench {
    fn registers(&self, unit: usize) -> Option<Box<dyn Registers>> {
        let registers = self.machine().registers();
        (unit == 0).then(|| Box::new(registers) as Box<dyn Registers>)
    }

    fn memory(&self) -> &dyn HostMemory {
        self.machine().hypervisor()
    }

    fn layout(&self) -> Layout {
        let ram = self.machine().ram();
        let range = |range: vtd_qtest::MemoryRange, len_bytes| {
            HostRange::new(range.start.as_u64(), len_bytes)
        };
        const NOBODYS_BYTES: u64 = 16 << 20;
        let guests = ram.guests.len_bytes - NOBODYS_BYTES;
        Layout {
            frames: range(ram.frames, ram.frames.len_bytes),
            guests: range(ram.guests, guests),
            nobodys: HostRange::new(ram.guests.start.as_u64() + guests, NOBODYS_BYTES),
        }
    }

    fn host_address_width(&self) -> u8 {
        self.host_address_width
    }

    fn device(&self, index: usize) -> SourceId {
        match index {
            0 | 1 => self.machine().edu(index).source_id(),
            _ => self.machine().nvme(index - 2).source_id(),
        }
    }

    fn has(&self, ability: Ability) -> bool {
        matches!(
            ability,
            Ability::UpdatesObeyReadOnly | Ability::DiskControllers
        )
    }

    fn advance(&self, _nanoseconds: u64) {
        // Everything completes before the register write returns.
    }

    fn set_bus_master(&self, source_id: SourceId, enabled: bool) {
        self.machine()
            .hypervisor()
            .set_bus_master(source_id, enabled);
    }

    fn dma_read(&self, requester: Requester, address: Iova, into: &mut [u8]) {
        self.edu(requester).dma_read(address, into);
    }

    fn dma_write(&self, requester: Requester, address: Iova, from: &[u8]) {
        self.edu(requester).dma_write(address, from);
    }

    fn send_message(&self, source_id: SourceId, message: InterruptMessage) {
        let device = (0..2).find(|index| self.device(*index) == source_id);
        let edu = self
            .machine()
            .edu(device.expect("one of the bench's devices"));
        edu.send_message(message.address, message.data as u16);
    }

    fn run_disk_command(&self, index: usize, commands: Iova, completions: Iova) {
        let disk = self.machine().nvme(index - 2);
        disk.run_first_command(commands, completions);
    }

    fn violations(&self) -> Vec<String> {
        Vec::new()
    }
}
