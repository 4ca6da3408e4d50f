//! The exits of a guest: what it touches, and what the hypervisor does before it enters it again.

use vtd_nest::arch::address::Gpa;
use vtd_nest::mem::GuestMemory;

use super::guest::Machine;
use super::hypervisor::Hypervisor;

/// One of the machines, as its guest runs on it.
pub(crate) struct Exits<'a> {
    pub(super) hypervisor: &'a mut Hypervisor,
    /// Which machine.
    pub(super) index: usize,
}

impl Exits<'_> {
    fn after_exit(&mut self) {
        let hypervisor = &mut *self.hypervisor;
        if let Some(vm) = hypervisor.machines.get_mut(self.index) {
            vm.work(&hypervisor.environment, hypervisor.units);
        }
        hypervisor.handle_faults();
    }
}

impl Machine for Exits<'_> {
    fn read_memory(&mut self, at: Gpa, into: &mut [u8]) {
        let Some(machine) = self.hypervisor.machine(self.index) else {
            return;
        };
        let memory = machine.memory(&self.hypervisor.environment);
        if let Err(error) = memory.read(at, into) {
            log::error!("guest load: {error:?}");
        }
    }

    fn write_memory(&mut self, at: Gpa, from: &[u8]) {
        let Some(machine) = self.hypervisor.machine(self.index) else {
            return;
        };
        let memory = machine.memory(&self.hypervisor.environment);
        if let Err(error) = memory.write(at, from) {
            log::error!("guest store: {error:?}");
        }
    }

    fn read_unit(&mut self, offset: u64, len: u8) -> u64 {
        let machine = self.hypervisor.machine(self.index);
        machine.map_or(u64::MAX, |machine| machine.read_register(offset, len))
    }

    fn write_unit(&mut self, offset: u64, len: u8, value: u64) {
        let vm = self.hypervisor.machines.get_mut(self.index);
        if let Some(machine) = vm.and_then(|vm| vm.machine_mut()) {
            machine.write_register(offset, len, value);
        }
        self.after_exit();
    }

    fn read_device(&mut self, offset: u64) -> u64 {
        // Read first: the faults of a DMA that has ended are recorded by then.
        let vm = self.hypervisor.machines.get(self.index);
        let value = vm.and_then(|vm| vm.device.registers.read_u64(offset));
        self.after_exit();
        value.unwrap_or(u64::MAX)
    }

    fn write_device(&mut self, offset: u64, value: u64) {
        if let Some(vm) = self.hypervisor.machines.get_mut(self.index) {
            let _ = vm.device.registers.write_u64(offset, value);
        }
    }

    fn pass_time(&mut self) {
        crate::clock::pass_time();
        self.after_exit();
    }
}
