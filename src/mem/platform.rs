//! The platform seam: time, interrupts, and the switch that silences a device.

use crate::arch::id::SourceId;
use crate::arch::interrupt::Interrupt;

/// What the library asks of the platform beside memory.
pub trait Platform {
    /// Nanoseconds since some fixed moment; never goes back. Bounds every wait on hardware.
    fn now_nanoseconds(&self) -> u64;

    /// A hint in a wait loop.
    fn pause(&self);

    /// Delivers an interrupt to the guest that owns the virtual unit `unit`: the message that the
    /// guest programmed, address as written to the event address registers (upper half in bits
    /// 63:32) and data. Event messages of a remapping unit are never remapped (§5.1.6).
    ///
    /// `unit` is the number given when the virtual machine was created.
    fn deliver_interrupt(&self, unit: u32, address: u64, data: u32);

    /// The interrupt that stands on the machine for one that the guest behind the virtual unit `unit`
    /// asks its device to raise: for a guest that owns its processors and their vectors the same one,
    /// otherwise one that the hypervisor handles, and hands on to the guest. `None` blocks it: the
    /// guest must not reach the destination, or there is no vector left.
    ///
    /// It is fixed or lowest-priority and has a vector of 16 to 254, or is an NMI if the machine's
    /// policy allows that; the answer has to be such an interrupt, too. It is asked again whenever
    /// the guest changes the entry, and must then answer the same for the same interrupt unless the
    /// route has changed.
    ///
    /// Without an implementation, there are no routes: every interrupt is blocked.
    fn route_interrupt(&self, unit: u32, interrupt: &Interrupt) -> Option<Interrupt> {
        _ = (unit, interrupt);
        None
    }

    /// Turns bus mastering of a physical function on or off (PCI command register, bit 2).
    /// Used to silence a device that hardware could not be made to forget.
    fn set_bus_master(&self, source_id: SourceId, enabled: bool);

    /// Reads 32 bits of a function's configuration space; `offset` is in bytes, aligned, below 4096. All
    /// ones if there is no such function.
    ///
    /// Used for the switches of a device's PASIDs and ATS
    /// ([`DeviceSwitches::ByMachine`](crate::nest::DeviceSwitches::ByMachine)). Without an
    /// implementation there is no configuration space, and such a device is not assigned.
    fn read_configuration(&self, source_id: SourceId, offset: u16) -> u32 {
        _ = (source_id, offset);
        u32::MAX
    }

    /// Writes 16 bits of a function's configuration space: see
    /// [`read_configuration`](Self::read_configuration).
    fn write_configuration(&self, source_id: SourceId, offset: u16, value: u16) {
        _ = (source_id, offset, value);
    }
}
