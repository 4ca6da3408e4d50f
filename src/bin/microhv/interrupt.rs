//! Interrupts of the hypervisor's own devices: counted, and nothing else.
//!
//! A leaf with `unsafe`: its handlers are in assembly. The processor takes interrupts only inside
//! [`let_in`]; everything else runs with interrupts disabled.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::interrupts;

/// The vectors that are handled: one for each device that raises interrupts, and the one of spurious
/// interrupts.
pub(crate) const VECTORS: [u8; 3] = [0x51, 0x52, 0xff];

/// The vector of spurious interrupts, which end without a word to the local APIC.
pub(crate) const SPURIOUS: u8 = 0xff;

/// Interrupts by index into [`VECTORS`].
static COUNTS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

// One stub per vector, 16 bytes apart. Each adds one to a counter and changes nothing else, so
// there is nothing to save.
global_asm!(
    ".section .text.microhv_interrupts, \"ax\", @progbits",
    ".balign 16",
    "microhv_interrupt_stubs:",
    ".irp offset, 0,8,16",
    ".balign 16",
    "lock inc qword ptr [rip + {counts} + \\offset]",
    "iretq",
    ".endr",
    counts = sym COUNTS,
);

unsafe extern "C" {
    safe static microhv_interrupt_stubs: u8;
}

/// Where the handler of a vector is.
pub(crate) fn handler(vector: usize) -> Option<u64> {
    let index = VECTORS
        .iter()
        .position(|handled| usize::from(*handled) == vector)?;
    let first = (&raw const microhv_interrupt_stubs).addr() as u64;
    Some(first + 16 * index as u64)
}

/// How often an interrupt of a vector has been taken.
pub(crate) fn count(vector: u8) -> u64 {
    let index = VECTORS.iter().position(|handled| *handled == vector);
    let count = index.and_then(|index| COUNTS.get(index));
    count.map_or(0, |count| count.load(Ordering::Relaxed))
}

/// Takes what is pending.
pub(crate) fn let_in() {
    interrupts::enable();
    // The one instruction after `sti` is still not interrupted.
    x86_64::instructions::nop();
    interrupts::disable();
}
