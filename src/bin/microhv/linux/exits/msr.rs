//! Model-specific registers: the local APIC's, as far as they have power over processors.

use crate::boot;
use crate::cpu::{Cpu, Exception};
use crate::linux::apic_filter::{
    self, INTERRUPT_COMMAND, INTERRUPT_COMMAND_BITS, LOCAL_VECTOR_BITS, LOCAL_VECTORS, Verdict,
};
use crate::linux::refusals::Refused;
use crate::linux::statistics::Kind;
use crate::msr;

use super::Guest;

pub(crate) const APIC_BASE: u32 = 0x1b;

/// Offset of the local APIC's trapped register behind an index.
fn trapped_offset(index: u32) -> Option<u16> {
    [INTERRUPT_COMMAND]
        .into_iter()
        .chain(LOCAL_VECTORS)
        .find(|offset| apic_filter::msr_of(*offset) == index)
}

/// Indices whose writes are exits.
pub(crate) fn trapped() -> impl Iterator<Item = u32> {
    let offsets = [INTERRUPT_COMMAND].into_iter().chain(LOCAL_VECTORS);
    offsets.map(apic_filter::msr_of).chain([APIC_BASE])
}

impl<C: Cpu> Guest<C> {
    /// No register is an exit when read, so this is one that no processor of this kind has.
    pub(super) fn read_msr(&mut self, _index: u32) {
        self.exits.count(Kind::Msr);
        self.cpu.raise(Exception::GeneralProtection);
    }

    pub(super) fn write_msr(&mut self, index: u32, value: u64) {
        self.exits.count(Kind::Msr);
        if self.try_write(index, value).is_some() {
            self.cpu.skip(2);
        } else {
            self.cpu.raise(Exception::GeneralProtection);
        }
    }

    fn try_write(&mut self, index: u32, value: u64) -> Option<()> {
        if index == APIC_BASE {
            let has_x2apic = boot::cpuid(1, 0).ecx & 1 << 21 != 0;
            let may_change = apic_filter::may_change_base(msr::apic_base(), value, has_x2apic);
            return may_change.then(|| msr::write_apic_base(value));
        }
        let offset = trapped_offset(index)?;
        let bits = if offset == INTERRUPT_COMMAND {
            INTERRUPT_COMMAND_BITS
        } else {
            LOCAL_VECTOR_BITS
        };
        if !msr::is_x2apic() || value & !bits != 0 {
            return None;
        }
        match apic_filter::judge(offset, value as u32) {
            Verdict::Pass => msr::write_x2apic(index, value),
            Verdict::Ignore => {}
            Verdict::Refuse(why) => self.refusals.add(Refused::LocalApic { value, why }),
        }
        Some(())
    }
}
