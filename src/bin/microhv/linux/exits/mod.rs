//! The guest's exits: one small function each, which does what the guest's instruction would have
//! done, or says why it does not.

mod cpuid;
mod memory;
mod msr;
mod port;

pub(super) use msr::trapped as trapped_msrs;

use heapless::Vec;
use vtd_nest::arch::address::Hpa;

use crate::cpu::{Cpu, Exit, MemoryAccess};
use crate::decode::DecodeError;
use crate::local_apic::LocalApic;

use super::acpi::MAX_IO_APICS;
use super::apic::IoApic;
use super::machine::Machine;
use super::pci_guard::PciGuard;
use super::refusals::{Refusals, Refused};
use super::statistics::{Exits, Kind};

/// What the exits of a guest work on.
pub(crate) struct Guest<C> {
    pub(crate) cpu: C,
    pub(crate) machine: Machine,
    pub(crate) pci_guard: PciGuard,
    pub(crate) apic: LocalApic,
    pub(crate) io_apics: Vec<IoApic, MAX_IO_APICS>,
    /// Register page of the unit.
    pub(crate) unit_registers: Hpa,
    /// Configuration space, from its first address to before its end.
    pub(crate) pci_window: Option<(Hpa, Hpa)>,
    pub(crate) power_ports: Vec<u16, 2>,
    pub(crate) exits: Exits,
    pub(crate) refusals: Refusals,
}

/// Why the guest does not go on.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "most values are only ever printed")]
pub(crate) enum Stop {
    /// It put the machine to sleep or off: the value goes to this port.
    PowerOff { port: u16, size: u8, value: u32 },
    /// A triple fault, which would reset a machine.
    Shutdown,
    /// Somebody sent the processor an INIT.
    Init,
    /// It accessed what is the hypervisor's, or in a way that is not emulated.
    Access(MemoryAccess),
    /// The instruction behind an access is not in memory.
    Fetch(MemoryAccess),
    /// Nor in 64-bit mode.
    Mode(MemoryAccess),
    /// It is not a move.
    Instruction(MemoryAccess, DecodeError, [u8; 15]),
    /// The processor refused the guest's state.
    InvalidState,
    /// An exit that nobody asked for.
    Unexpected(u64),
}

impl<C: Cpu> Guest<C> {
    /// Runs the guest until it stops for good.
    pub(crate) fn run(&mut self) -> Stop {
        loop {
            let exit = self.cpu.enter();
            if let Err(stop) = self.handle(exit) {
                return stop;
            }
            self.machine.work();
            while let Some((address, data)) = self.machine.environment.next_interrupt() {
                if !self.apic.send(address, data) {
                    self.refusals.add(Refused::Message { address, data });
                }
            }
        }
    }

    fn handle(&mut self, exit: Exit) -> Result<(), Stop> {
        match exit {
            Exit::Cpuid => self.cpuid(),
            Exit::ReadMsr(index) => self.read_msr(index),
            Exit::WriteMsr(index, value) => self.write_msr(index, value),
            Exit::Port(access) => return self.port(access),
            Exit::Memory(access) => return self.memory(access),
            Exit::Handled => self.exits.count(Kind::Extension),
            Exit::Shutdown => return Err(Stop::Shutdown),
            Exit::Init => return Err(Stop::Init),
            Exit::InvalidState => return Err(Stop::InvalidState),
            Exit::Unexpected(code) => return Err(Stop::Unexpected(code)),
        }
        Ok(())
    }
}
