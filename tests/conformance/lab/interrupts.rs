//! Interrupts of devices that are the hypervisor's own.

use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::interrupt::{Interrupt, InterruptAction, InterruptMessage};
use vtd_nest::mem::Owner;
use vtd_nest::unit::DeviceInterrupt;

use super::Lab;

impl Lab {
    /// Has a device behind the first unit raise a vector on processor 0, by the entry that it has: the
    /// message for the device. What hardware knew of the entry before is forgotten.
    pub(crate) fn route_interrupt(&self, source_id: SourceId, vector: u8) -> InterruptMessage {
        let interrupt = DeviceInterrupt {
            source_id,
            action: InterruptAction::Remap(Interrupt::fixed(0, vector)),
        };
        self.set_interrupt(&interrupt)
    }

    /// Sets the entry that a device behind the first unit has: the message for the device.
    pub(crate) fn set_interrupt(&self, interrupt: &DeviceInterrupt) -> InterruptMessage {
        let (h, unit) = (&*self.hypervisor, &self.units[0]);
        let mut slices = self.slices.borrow_mut();
        let found = slices.iter().position(|(of, _)| *of == interrupt.source_id);
        let at = found.unwrap_or_else(|| {
            let slice = unit.allocate_interrupt_entries(Owner::HYPERVISOR, 1);
            slices.push((interrupt.source_id, slice.expect("an entry")));
            slices.len() - 1
        });
        let slice = &mut slices[at].1;
        let stale = unit.set_interrupt_entry(h, slice, 0, interrupt);
        if let Some(stale) = stale.expect("the entry is made") {
            let confirmed = unit.invalidate_interrupt_entries(h, stale);
            confirmed.expect("hardware confirms");
        }
        InterruptMessage::remappable(slice.first())
    }
}
