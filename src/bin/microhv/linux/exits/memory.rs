//! Trapped memory: the remapping unit's registers, the local APIC's, PCI configuration space.

use vtd_nest::arch::address::Hpa;

use crate::cpu::{Cpu, MemoryAccess};
use crate::decode::{Instruction, MAX_LEN_BYTES, decode};
use crate::linux::apic_filter::{self, BASE, Verdict};
use crate::linux::page_walk;
use crate::linux::statistics::Kind;

use super::{Guest, Stop};

const PAGE: u64 = 0xfff;

impl<C: Cpu> Guest<C> {
    pub(super) fn memory(&mut self, access: MemoryAccess) -> Result<(), Stop> {
        if access.is_fetch || access.is_table_walk {
            return Err(Stop::Access(access));
        }
        let address = access.address.as_u64();
        let page = Hpa::new(address & !PAGE);
        let is_pci = self
            .pci_window
            .is_some_and(|(start, end)| (start..end).contains(&page));
        let is_known = page == self.unit_registers || page.as_u64() == BASE || is_pci;
        if !is_known {
            return Err(Stop::Access(access));
        }
        let instruction = self.instruction(access)?;
        let is_inside = (address & PAGE) + u64::from(instruction.size) <= PAGE + 1;
        if instruction.is_store() != access.is_write || !is_inside {
            return Err(Stop::Access(access));
        }
        let stored = instruction.stored(&self.cpu.registers().general);
        let offset = address & PAGE;
        match stored {
            Some(value) if page == self.unit_registers => {
                self.exits.count(Kind::UnitWrite);
                let hardware = &mut self.machine.hardware;
                hardware.write_register(offset, instruction.size, value);
            }
            None if page == self.unit_registers => {
                self.exits.count(Kind::UnitRead);
                let value = self
                    .machine
                    .hardware
                    .read_register(offset, instruction.size);
                instruction.load(&mut self.cpu.registers_mut().general, value);
            }
            Some(value) if is_pci => {
                self.exits.count(Kind::PciMemory);
                self.write_pci_memory(address, instruction.size, value);
            }
            Some(value) => {
                self.exits.count(Kind::Apic);
                self.write_apic(offset as u16, instruction.size, value as u32);
            }
            // Reads of the other two never exit.
            None => return Err(Stop::Access(access)),
        }
        self.cpu.skip(instruction.len_bytes);
        Ok(())
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

    fn write_apic(&mut self, offset: u16, size: u8, value: u32) {
        // Other accesses have no defined effect.
        if size != 4 || !offset.is_multiple_of(16) {
            return;
        }
        match apic_filter::judge(offset, value) {
            Verdict::Pass => self.apic.write(offset.into(), value),
            Verdict::Ignore => {}
            Verdict::Refuse(refused) => self.refuse_apic(refused, value.into()),
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
