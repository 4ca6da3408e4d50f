//! `CPUID`: the processor's own answer, without what runs the guest.

use crate::boot;
use crate::cpu::{Cpu, RAX, RBX, RCX, RDX};
use crate::linux::statistics::Kind;

use super::Guest;

const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PROTECTION_KEYS: u64 = 1 << 22;

impl<C: Cpu> Guest<C> {
    pub(super) fn cpuid(&mut self) {
        self.exits.count(Kind::Cpuid);
        let cr4 = self.cpu.paging().cr4;
        let general = self.cpu.registers().general;
        let (leaf, subleaf) = (general[RAX] as u32, general[RCX] as u32);
        let mut result = boot::cpuid(leaf, subleaf);
        // Two bits repeat CR4, and the instruction was executed with the hypervisor's.
        let repeat = |register: &mut u32, bit: u32, flag: u64| {
            *register &= !(1 << bit);
            *register |= u32::from(cr4 & flag != 0) << bit;
        };
        match (leaf, subleaf) {
            (1, _) => repeat(&mut result.ecx, 27, CR4_OSXSAVE),
            (7, 0) => repeat(&mut result.ecx, 4, CR4_PROTECTION_KEYS),
            _ => {}
        }
        self.cpu.hide_features(leaf, &mut result);
        let general = &mut self.cpu.registers_mut().general;
        general[RAX] = result.eax.into();
        general[RBX] = result.ebx.into();
        general[RCX] = result.ecx.into();
        general[RDX] = result.edx.into();
        self.cpu.skip(2);
    }
}
