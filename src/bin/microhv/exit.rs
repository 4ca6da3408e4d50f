//! The end of a run: an exit status where an emulator has QEMU's `isa-debug-exit` device at port
//! 0xf4, a halted processor everywhere else.

use crate::port;

/// The exit device's port.
pub(crate) const PORT: u16 = 0xf4;
/// Makes QEMU's exit status 33: the device turns a value `v` into `2 v + 1`.
const SUCCESS: u32 = 0x10;
/// Makes QEMU's exit status 35.
pub(crate) const FAILURE: u32 = 0x11;

/// Ends the run: everything went well.
pub(crate) fn success() -> ! {
    exit(SUCCESS)
}

/// Says that everything went well, and returns where nothing takes that as the end of the run.
pub(crate) fn report_success() {
    port::write_debug_exit(PORT, SUCCESS);
}

/// Ends the run: something failed, and the console says what.
pub(crate) fn failure() -> ! {
    exit(FAILURE)
}

fn exit(value: u32) -> ! {
    port::write_debug_exit(PORT, value);
    halt()
}

/// Stops the processor for good.
pub(crate) fn halt() -> ! {
    loop {
        x86_64::instructions::hlt();
    }
}
