//! The platform seam: time, interrupts, and the switch that silences a device.

use crate::arch::id::SourceId;

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

    /// Turns bus mastering of a physical function on or off (PCI command register, bit 2).
    /// Used to silence a device that hardware could not be made to forget.
    fn set_bus_master(&self, source_id: SourceId, enabled: bool);
}
