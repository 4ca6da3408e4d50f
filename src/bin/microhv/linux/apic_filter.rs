//! What a guest may write to its processor's local APIC: everything, but messages that would take a
//! processor out of the guest.
//!
//! Pure. An INIT resets a processor behind the hypervisor's back, a start-up message runs another
//! one beside it, an SMI enters firmware.

/// Register page of every local APIC that nobody has moved.
pub(crate) const BASE: u64 = 0xfee0_0000;

/// The model-specific register of a register at `offset` when the page is off (x2APIC).
pub(crate) const fn msr_of(offset: u16) -> u32 {
    0x800 + (offset as u32 >> 4)
}

/// Offset of the low half of the interrupt command.
pub(crate) const INTERRUPT_COMMAND: u16 = 0x300;
/// Offset of its high half, the destination.
pub(crate) const INTERRUPT_COMMAND_HIGH: u16 = 0x310;

/// Offsets of the local vector table: corrected errors, timer, thermal, counters, the two pins,
/// errors.
pub(crate) const LOCAL_VECTORS: [u16; 7] = [0x2f0, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370];

/// Offsets of the extended local vector table of some processors.
const EXTENDED_LOCAL_VECTORS: core::ops::RangeInclusive<u16> = 0x500..=0x530;

/// Bits of the 64-bit interrupt command in x2APIC mode; others are a fault.
pub(crate) const INTERRUPT_COMMAND_BITS: u64 = 0xffff_ffff_000c_cfff;
/// Bits of a local vector that can be written without a fault in x2APIC mode.
pub(crate) const LOCAL_VECTOR_BITS: u64 = 0x0007_ffff;

/// What becomes of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Pass,
    /// Without effect on any processor today: it is left out.
    Ignore,
    Refuse(Refused),
}

/// A message that a guest may not send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    SystemManagement,
    Init,
    StartUp,
}

/// Judges a write of the low 32 bits of the register at `offset`.
pub(crate) fn judge(offset: u16, value: u32) -> Verdict {
    let is_vector = LOCAL_VECTORS.contains(&offset) || EXTENDED_LOCAL_VECTORS.contains(&offset);
    if offset != INTERRUPT_COMMAND && !is_vector {
        return Verdict::Pass;
    }
    match value >> 8 & 7 {
        2 => Verdict::Refuse(Refused::SystemManagement),
        // Level-triggered and not asserted: once synchronised arbitration, now nothing.
        5 if !is_vector && value & (1 << 14 | 1 << 15) == 1 << 15 => Verdict::Ignore,
        5 => Verdict::Refuse(Refused::Init),
        6 => Verdict::Refuse(Refused::StartUp),
        _ => Verdict::Pass,
    }
}

/// Whether the base register may change from `old` to `new`: the page stays where it is, and modes
/// change as the architecture allows.
pub(crate) fn may_change_base(old: u64, new: u64, has_x2apic: bool) -> bool {
    const EXTENDED: u64 = 1 << 10;
    const ENABLED: u64 = 1 << 11;
    let is_same_elsewhere = (old ^ new) & !(EXTENDED | ENABLED) == 0;
    let may_change_mode = match (old & (EXTENDED | ENABLED), new & (EXTENDED | ENABLED)) {
        (old, new) if old == new => true,
        (_, 0) | (0, ENABLED) => true,
        (ENABLED, new) => new == ENABLED | EXTENDED && has_x2apic,
        _ => false,
    };
    is_same_elsewhere && may_change_mode
}

/// The interrupt command for an interrupt message, upper half the destination as x2APIC has it;
/// `None` for what is no message of a fixed vector.
pub(crate) fn command_of_message(address: u64, data: u32) -> Option<(u32, u32)> {
    let is_message = address & 0xfff0_0000 == BASE & 0xfff0_0000;
    let (mode, vector) = (data >> 8 & 7, data & 0xff);
    if !is_message || mode > 1 || vector < 16 {
        return None;
    }
    let destination = (address >> 32 & 0xffff_ff00 | address >> 12 & 0xff) as u32;
    let is_logical = (address >> 2 & 1) as u32;
    Some((destination, is_logical << 11 | mode << 8 | vector))
}
