//! The hypervisor: units brought up, the machines, and the faults of hardware.

use heapless::Vec;
use vtd_nest::arch::address::{Hpa, PAGE_SIZE_BYTES};
use vtd_nest::arch::register::FaultRecord;
use vtd_nest::mem::MmioRegisters;
use vtd_nest::nest::{
    AssignError, DeviceConfig, FaultOutcome, InterruptIsolation, MachineError, Policy,
};
use vtd_nest::unit::{InterruptRemapping, Step, Unit};

use crate::console::println;
use crate::environment::{Environment, POOL_LEN_BYTES};
use crate::host::HostDevices;
use crate::memory::MemoryError;
use crate::platform::Platform;
use crate::ram::Ram;
use crate::topology::Topology;
use crate::units::{self, DescribedUnits, UnitsError};

use super::edu::{self, EduError};
use super::exits::Exits;
use super::machine::{Device, GUEST_DEVICE, GUEST_LEN_BYTES, GuestMachine, MACHINES, Vm};

/// Hardware faults handled after one exit; the rest waits for the next.
const FAULTS_PER_EXIT: u32 = 8;

/// Why the hypervisor is not up. The hardware is left blocking what it can block.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum SetUpError {
    Units(UnitsError),
    Memory(MemoryError),
    /// There are fewer `edu` devices than machines.
    NoDevice,
    Device(EduError),
    /// The RAM for pool and guests cannot be used.
    Arena,
    Machine(MachineError),
    Assign(AssignError),
    /// A step with the hypervisor's own devices did not hold.
    OwnDevices,
}

/// A fault that hardware recorded, and what became of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) record: FaultRecord,
    pub(crate) outcome: FaultOutcome,
    /// Index of the machine whose device it was.
    pub(crate) machine: Option<usize>,
}

/// All of it.
pub(crate) struct Hypervisor {
    pub(crate) environment: Environment,
    pub(crate) units: &'static [Unit<MmioRegisters>],
    pub(crate) machines: Vec<Vm, MACHINES>,
    /// Register page of the unit that the first machine's device is behind.
    pub(crate) unit_registers: Hpa,
    /// A page of RAM that is nobody's.
    pub(crate) canary: Hpa,
    /// What became of the hardware faults since it was last asked.
    pub(crate) faults: Vec<Fault, 32>,
}

impl Hypervisor {
    /// Owns every unit, so that all DMA is blocked; then makes the machines and gives each a device.
    pub(crate) fn set_up(platform: Platform, policy: Policy) -> Result<Self, SetUpError> {
        let Platform {
            mut memory,
            dmar,
            mut pci,
            functions,
            ..
        } = platform;
        let described = DescribedUnits::find(dmar).map_err(SetUpError::Units)?;

        let guests_len_bytes = GUEST_LEN_BYTES * MACHINES as u64;
        let arena = memory
            .allocate(POOL_LEN_BYTES + guests_len_bytes + PAGE_SIZE_BYTES, 2 << 20)
            .map_err(SetUpError::Memory)?;
        let pool = arena.start();
        let after = |offset| Hpa::new(pool.as_u64() + offset);
        let canary = after(POOL_LEN_BYTES + guests_len_bytes);
        let mut ram = Ram::new();
        ram.add(arena).ok_or(SetUpError::Arena)?;
        let protected = described
            .protected_ranges(&pci, &[(pool, POOL_LEN_BYTES)])
            .map_err(SetUpError::Units)?;

        let mut devices: Vec<Device, MACHINES> = Vec::new();
        let mut unit_registers = None;
        for function in functions.iter().filter(|function| edu::is_edu(function)) {
            let (unit, covering) = described
                .covering(function.source_id, &functions)
                .map_err(SetUpError::Units)?;
            let _ = unit_registers.get_or_insert(covering.base);
            // Bus masters stay off until every unit blocks.
            let registers = edu::open(&memory, &mut pci, function).map_err(SetUpError::Device)?;
            pci.set_bus_master(function.source_id, false);
            let device = Device {
                function: function.clone(),
                registers,
                unit,
            };
            // There is one for each machine; another stays as it is.
            if devices.push(device).is_err() {
                break;
            }
        }
        let (true, Some(unit_registers)) = (devices.is_full(), unit_registers) else {
            return Err(SetUpError::NoDevice);
        };
        let windows = described.windows(&memory).map_err(SetUpError::Units)?;
        let own = HostDevices::open(&memory, &mut pci, &functions, &described);
        let environment = Environment::new(ram, pool, pci);
        let units = units::bring_up(&environment, windows, InterruptRemapping::WhereAvailable)
            .map_err(SetUpError::Units)?;
        described
            .reserve(units, &functions)
            .map_err(SetUpError::Units)?;
        if !own.prove(&environment, units) {
            return Err(SetUpError::OwnDevices);
        }

        let mut machines = Vec::new();
        for (index, device) in devices.into_iter().enumerate() {
            let memory = after(POOL_LEN_BYTES + GUEST_LEN_BYTES * index as u64);
            let rules = (policy, protected.clone());
            let config = device_config(&device, units, Topology(&functions))?;
            let vm = Vm::make(&environment, units, index, rules, memory, device, config)?;
            // As many as there are devices.
            let _ = machines.push(vm);
        }
        let mut hypervisor = Self {
            environment,
            units,
            machines,
            unit_registers,
            canary,
            faults: Vec::new(),
        };
        hypervisor.handle_faults();
        Ok(hypervisor)
    }

    /// A machine, unless it is destroyed.
    pub(crate) fn machine(&self, index: usize) -> Option<&GuestMachine> {
        self.machines.get(index)?.machine()
    }

    /// A machine as its guest runs on it.
    pub(crate) fn guest(&mut self, index: usize) -> Exits<'_> {
        Exits {
            hypervisor: self,
            index,
        }
    }

    /// The unit that a machine's device is behind.
    pub(crate) fn unit(&self, index: usize) -> Option<&Unit<MmioRegisters>> {
        let unit = self.machines.get(index)?.device.unit;
        self.units.get(usize::from(unit))
    }

    /// Prints what became of a fault, and what the unit's tables say now of the request, entry by
    /// entry.
    pub(crate) fn explain(&self, fault: &Fault) {
        let Some(unit) = self.unit(fault.machine.unwrap_or(0)) else {
            return;
        };
        let print_step = |step: &Step| println!("                    {step}");
        let request = unit.request_of(&fault.record);
        let explanation = unit.explain(&self.environment, &request, print_step);
        println!("                    {explanation}");
    }

    /// Hands the faults of hardware to the machines whose devices they are of.
    pub(super) fn handle_faults(&mut self) {
        for (number, unit) in (0..).zip(self.units) {
            for _ in 0..FAULTS_PER_EXIT {
                let Some(record) = unit.next_fault() else {
                    break;
                };
                let mut fault = Fault {
                    record,
                    outcome: FaultOutcome::NotOfThisMachine,
                    machine: None,
                };
                for (index, vm) in self.machines.iter_mut().enumerate() {
                    let Some(machine) = vm.machine_mut() else {
                        continue;
                    };
                    let outcome =
                        machine.handle_fault(&self.environment, self.units, number, &record);
                    if !matches!(outcome, FaultOutcome::NotOfThisMachine) {
                        fault.outcome = outcome;
                        fault.machine = Some(index);
                        break;
                    }
                }
                // Enough room for a step; what does not fit was still handled.
                let _ = self.faults.push(fault);
            }
        }
    }
}

/// How a device is assigned: each guest knows its own under the same source-id.
fn device_config(
    device: &Device,
    units: &[Unit<MmioRegisters>],
    topology: Topology<'_>,
) -> Result<DeviceConfig, SetUpError> {
    let remaps = (units.get(usize::from(device.unit))).is_some_and(Unit::remaps_interrupts);
    let interrupts = if remaps {
        InterruptIsolation::Required
    } else {
        // The guests are part of the image, and take no interrupts.
        InterruptIsolation::WaivedByEmbedder
    };
    let config = topology
        .device_config(device.function.source_id, device.unit, interrupts)
        .map_err(|error| SetUpError::Units(UnitsError::Topology(error)))?;
    Ok(DeviceConfig {
        guest_source_id: GUEST_DEVICE,
        pasid_bits: 20,
        ..config
    })
}
