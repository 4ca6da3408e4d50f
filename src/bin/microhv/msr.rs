//! Model-specific registers: the one place that reads and writes those of the local APIC.
//!
//! A leaf with `unsafe`; each function is safe because of which register it is about.

use x86_64::registers::model_specific::Msr;

const APIC_BASE: u32 = 0x1b;

/// The base register of the processor's local APIC: page, and in which mode it is.
pub(crate) fn apic_base() -> u64 {
    // SAFETY: every 64-bit processor has the register.
    unsafe { Msr::new(APIC_BASE).read() }
}

/// Whether the local APIC is reached through model-specific registers.
pub(crate) fn is_x2apic() -> bool {
    apic_base() & (1 << 10) != 0
}

/// Changes the mode of the local APIC. The page stays, and `value` has been checked.
pub(crate) fn write_apic_base(value: u64) {
    if value & !0xc00 == apic_base() & !0xc00 {
        // SAFETY: interrupts never reach this program, so the mode matters to the guest only.
        unsafe { Msr::new(APIC_BASE).write(value) }
    }
}

/// Writes a register of the local APIC in x2APIC mode, by its index from 0x800 on; reserved bits
/// have been checked.
pub(crate) fn write_x2apic(index: u32, value: u64) {
    if is_x2apic() && (0x800..0x900).contains(&index) {
        // SAFETY: the registers of the local APIC access no memory, and interrupts never reach this
        // program.
        unsafe { Msr::new(index).write(value) }
    }
}
