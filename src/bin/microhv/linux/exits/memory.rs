//! Trapped memory: the remapping unit's registers, those of local and I/O APICs, PCI configuration
//! space.

use vtd_nest::arch::address::Hpa;

use crate::cpu::{Cpu, MemoryAccess};
use crate::decode::{Instruction, MAX_LEN_BYTES, decode};
use crate::linux::apic_filter::{self, BASE, Verdict};
use crate::linux::ioapic_filter;
use crate::linux::page_walk;
use crate::linux::refusals::Refused;
use crate::linux::statistics::Kind;

use super::{Guest, Stop};

const PAGE: u64 = 0xfff;

/// What is behind a trapped page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Device {
    Unit,
    LocalApic,
    /// By its place in the list.
    IoApic(usize),
    Pci,
}

impl<C: Cpu> Guest<C> {
    pub(super) fn memory(&mut self, access: MemoryAccess) -> Result<(), Stop> {
        if access.is_fetch || access.is_table_walk {
            return Err(Stop::Access(access));
        }
        let address = access.address.as_u64();
        let device = self
            .trapped_device(Hpa::new(address & !PAGE))
            .ok_or(Stop::Access(access))?;
        let instruction = self.instruction(access)?;
        let (size, offset) = (instruction.size, address & PAGE);
        let is_inside = offset + u64::from(size) <= PAGE + 1;
        if instruction.is_store() != access.is_write || !is_inside {
            return Err(Stop::Access(access));
        }
        let general = &self.cpu.registers().general;
        match (device, instruction.stored(general)) {
            (Device::Unit, Some(value)) => {
                self.exits.count(Kind::UnitWrite);
                let hardware = &mut self.machine.hardware;
                hardware.write_register(offset, size, value);
            }
            (Device::Unit, None) => {
                self.exits.count(Kind::UnitRead);
                let value = self.machine.hardware.read_register(offset, size);
                instruction.load(&mut self.cpu.registers_mut().general, value);
            }
            (Device::LocalApic, Some(value)) => {
                self.exits.count(Kind::LocalApic);
                self.write_local_apic(offset as u16, size, value as u32);
            }
            (Device::IoApic(index), Some(value)) => {
                self.exits.count(Kind::IoApic);
                self.write_io_apic(index, offset as u16, size, value as u32);
            }
            (Device::Pci, Some(value)) => {
                self.exits.count(Kind::PciMemory);
                self.write_pci_memory(address, size, value);
            }
            // Reads of these never exit.
            (_, None) => return Err(Stop::Access(access)),
        }
        self.cpu.skip(instruction.len_bytes);
        Ok(())
    }

    fn trapped_device(&self, page: Hpa) -> Option<Device> {
        let is_pci = |(start, end)| (start..end).contains(&page);
        if page == self.unit_registers {
            Some(Device::Unit)
        } else if page.as_u64() == BASE {
            Some(Device::LocalApic)
        } else if self.pci_window.is_some_and(is_pci) {
            Some(Device::Pci)
        } else {
            let index = self
                .io_apics
                .iter()
                .position(|io_apic| io_apic.start() == page);
            index.map(Device::IoApic)
        }
    }

    fn write_pci_memory(&mut self, address: u64, size: u8, value: u64) {
        let place = self.machine.environment.pci().lock().at(Hpa::new(address));
        if let Some((source_id, offset)) = place
            && self.may_write_pci(source_id, offset, size, value as u32)
        {
            let mut pci = self.machine.environment.pci().lock();
            pci.write_part(source_id, offset, size, value as u32);
        }
    }

    fn write_local_apic(&mut self, offset: u16, size: u8, value: u32) {
        // Other accesses have no defined effect.
        if size != 4 || !offset.is_multiple_of(16) {
            return;
        }
        match apic_filter::judge(offset, value) {
            Verdict::Pass => self.apic.write(offset.into(), value),
            Verdict::Ignore => {}
            Verdict::Refuse(why) => self.refusals.add(Refused::LocalApic {
                value: value.into(),
                why,
            }),
        }
    }

    fn write_io_apic(&mut self, index: usize, offset: u16, size: u8, value: u32) {
        let Some(io_apic) = self.io_apics.get_mut(index).filter(|_| size == 4) else {
            return;
        };
        let selected = io_apic.selected();
        match ioapic_filter::judge(offset, selected, value) {
            ioapic_filter::Verdict::Pass => io_apic.write(offset.into(), value),
            ioapic_filter::Verdict::Ignore => {}
            ioapic_filter::Verdict::Refuse => {
                self.refusals.add(Refused::IoApic { selected, value });
            }
        }
    }

    /// The instruction that the guest stopped at.
    fn instruction(&self, access: MemoryAccess) -> Result<Instruction, Stop> {
        let paging = self.cpu.paging();
        if !paging.is_64_bit_code {
            return Err(Stop::Mode(access));
        }
        let rip = self.cpu.registers().rip;
        let mut bytes = [0; MAX_LEN_BYTES];
        let mut len = 0;
        // At most two pages; the second one is needed only if the first ends too early.
        while len < MAX_LEN_BYTES {
            let linear = rip.wrapping_add(len as u64);
            let in_page = (PAGE + 1 - (linear & PAGE)) as usize;
            let piece = bytes.get_mut(len..).unwrap_or_default();
            let piece_len = piece.len().min(in_page);
            let fetched = page_walk::translate(paging.cr3, paging.cr4, linear, |at| {
                self.machine.read_quadword(at)
            })
            .and_then(|at| {
                self.machine
                    .read_memory(at, piece.get_mut(..piece_len).unwrap_or_default())
            });
            if fetched.is_none() {
                break;
            }
            len += piece_len;
        }
        if len == 0 {
            return Err(Stop::Fetch(access));
        }
        decode(bytes.get(..len).unwrap_or(&bytes))
            .map_err(|error| Stop::Instruction(access, error, bytes))
    }
}
