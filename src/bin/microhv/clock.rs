//! The processor's time-stamp counter, for bounded waits.
//!
//! A leaf with `unsafe`: the counter is read by an intrinsic.

use core::arch::x86_64::_rdtsc;
use core::hint::black_box;

/// A time in ticks of the time-stamp counter, whose rate differs between machines: good for bounds.
pub(crate) fn read_ticks() -> u64 {
    // SAFETY: every 64-bit processor has the instruction, and nothing disables it here.
    unsafe { _rdtsc() }
}

/// Lets some microseconds pass between two looks at a slow device.
///
/// Counts rather than pauses: under an emulator that derives time from the number of instructions a
/// pause is slow and takes next to no time.
pub(crate) fn pass_time() {
    for count in 0..4096 {
        black_box(count);
    }
}
