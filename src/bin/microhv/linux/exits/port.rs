//! Ports: the value port of configuration space, and what puts the machine to sleep or off.

use vtd_nest::arch::id::SourceId;

use crate::cpu::{Cpu, Exception, PortAccess, RAX};
use crate::decode::Part;
use crate::linux::refusals::Refused;
use crate::linux::statistics::Kind;
use crate::port;

use super::{Guest, Stop};

/// In a power management control register: go to the sleep state in the bits before.
const SLEEP_ENABLE: u32 = 1 << 13;

impl<C: Cpu> Guest<C> {
    pub(super) fn port(&mut self, access: PortAccess) -> Result<(), Stop> {
        let end = u32::from(access.port) + u32::from(access.size);
        let power = self.power_ports.iter().copied();
        let power = { power }.find(|port| access.port < port + 2 && u32::from(*port) < end);
        let is_pci = (0xcfc..=0xcff).contains(&access.port) && end <= 0xd00;
        if access.is_string || power.is_none() && !is_pci {
            // No driver moves these by string instructions, nor across their borders.
            self.cpu.raise(Exception::GeneralProtection);
            return Ok(());
        }
        let accumulator = Part {
            register: RAX as u8,
            width: access.size,
            is_second_byte: false,
        };
        let stored = accumulator.get(&self.cpu.registers().general) as u32;
        let loaded = match (power, access.is_write) {
            (Some(first), true) => {
                self.exits.count(Kind::PowerPort);
                let shift = 8 * u32::from(access.port.saturating_sub(first) & 1);
                if stored << shift & SLEEP_ENABLE != 0 {
                    return Err(Stop::PowerOff {
                        port: access.port,
                        size: access.size,
                        value: stored,
                    });
                }
                port::write_power_management(access.port, access.size, stored);
                None
            }
            (Some(_), false) => {
                self.exits.count(Kind::PowerPort);
                Some(port::read_power_management(access.port, access.size))
            }
            (None, true) => {
                self.exits.count(Kind::PciPort);
                self.write_pci_port(access, stored);
                None
            }
            (None, false) => {
                self.exits.count(Kind::PciPort);
                Some(port::read_pci_data(access.port, access.size))
            }
        };
        if let Some(value) = loaded {
            accumulator.set(&mut self.cpu.registers_mut().general, value.into());
        }
        self.cpu.skip(access.len_bytes);
        Ok(())
    }

    fn write_pci_port(&mut self, access: PortAccess, value: u32) {
        let address = port::pci_address();
        let is_configuration = address & 1 << 31 != 0;
        let source_id = SourceId::from_u16((address >> 8) as u16);
        let offset = (address & 0xfc) as u16 | access.port & 3;
        if !is_configuration || self.may_write_pci(source_id, offset, access.size, value) {
            port::write_pci_data(access.port, access.size, value);
        }
    }

    /// Whether the guard lets a write of configuration space pass.
    pub(super) fn may_write_pci(
        &mut self,
        source_id: SourceId,
        offset: u16,
        size: u8,
        value: u32,
    ) -> bool {
        let pci = self.machine.environment.pci().lock();
        let read = |offset| pci.read(source_id, offset);
        let result = self.pci_guard.check(source_id, offset, size, value, read);
        let is_there = pci.read(source_id, 0) != u32::MAX;
        if let (Err(why), true) = (result, is_there) {
            self.refusals.add(Refused::Pci {
                source_id,
                offset,
                value,
                why,
            });
        }
        result.is_ok()
    }
}
