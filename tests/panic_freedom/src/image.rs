//! Entry, logger and panic handler of the ELF.

use core::fmt::{self, Write};
use core::hint::black_box;
use core::panic::PanicInfo;

/// The generated list: the address of every kept function.
#[allow(
    unused_braces,
    unused_parens,
    reason = "the generator need not know where a value needs them"
)]
mod keep {
    include!(env!("VTD_NEST_KEEP"));
}

unsafe extern "C" {
    /// Exists nowhere: the linker names it if anything can panic.
    safe fn vtd_nest_a_panic_is_reachable() -> !;
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    vtd_nest_a_panic_is_reachable()
}

/// A logger that formats every record, so that formatting is part of what is kept.
struct Logger;

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            black_box(byte);
        }
        Ok(())
    }
}

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let _ = Port.write_str(record.level().as_str());
        let _ = Port.write_str(record.target());
        let _ = Port.write_fmt(*record.args());
    }

    fn flush(&self) {}
}

static LOGGER: Logger = Logger;

/// A function that can panic, to prove that the link then fails.
#[cfg(feature = "planted")]
fn planted(slice: &[u8], index: usize) -> u8 {
    slice[index]
}

/// The root from which the linker finds everything that is kept.
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    // `set_logger` rather than `set_logger_racy`, which can panic.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(log::LevelFilter::Trace);
    log::info!("{} functions", keep::KEEP.len());
    black_box(&keep::KEEP);
    #[cfg(feature = "planted")]
    black_box(planted as *const ());
    loop {
        core::hint::spin_loop();
    }
}
