//! Local APIC and I/O APICs: the guest's, but for what [`apic_filter`] and [`ioapic_filter`](super::ioapic_filter) keep.

use vtd_nest::arch::address::{Hpa, PAGE_SIZE_BYTES};

use crate::local_apic::LocalApic;
use crate::memory::{Memory, MemoryError, Window};
use crate::msr;

use super::apic_filter::{self, INTERRUPT_COMMAND, INTERRUPT_COMMAND_HIGH};
use super::ioapic_filter::SELECT;

/// Looks at a message on its way before it counts as sent.
const MAXIMUM_LOOKS: u32 = 1 << 16;

impl LocalApic {
    /// Sends the guest an interrupt message; `false` if it is none that may be sent.
    pub(crate) fn send(&mut self, address: u64, data: u32) -> bool {
        let Some((destination, command)) = apic_filter::command_of_message(address, data) else {
            return false;
        };
        if msr::is_x2apic() {
            let value = u64::from(destination) << 32 | u64::from(command);
            msr::write_x2apic(apic_filter::msr_of(INTERRUPT_COMMAND), value);
            return true;
        }
        let (low, high) = (
            u64::from(INTERRUPT_COMMAND),
            u64::from(INTERRUPT_COMMAND_HIGH),
        );
        // The guest may be between its own two writes.
        let kept = self.read(high).unwrap_or(0);
        self.write(high, destination << 24);
        self.write(low, command);
        for _ in 0..MAXIMUM_LOOKS {
            if self.read(low).is_none_or(|low| low & 1 << 12 == 0) {
                break;
            }
        }
        self.write(high, kept);
        true
    }
}

/// The registers of an I/O APIC.
#[derive(Debug)]
pub(crate) struct IoApic(Window);

impl IoApic {
    /// The one whose page starts at `start`.
    pub(crate) fn open(memory: &Memory, start: Hpa) -> Result<Self, MemoryError> {
        memory.window(start, PAGE_SIZE_BYTES).map(Self)
    }

    /// Its page.
    pub(crate) fn start(&self) -> Hpa {
        self.0.start()
    }

    /// The selected register.
    pub(crate) fn selected(&self) -> u8 {
        self.0.read_u32(SELECT.into()).unwrap_or(0) as u8
    }

    /// Writes a register for the guest.
    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        let _ = self.0.write_u32(offset, value);
    }
}
