//! The console: lines on the first serial port, and the sink of the `log` crate.

use core::fmt::{self, Write};
use core::panic::PanicInfo;

use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, Uart16550};

use crate::{exit, port};

static SERIAL: Mutex<Uart16550<PioBackend>> = Mutex::new(port::serial());

/// Prints a line to the console, as the standard library's macro does.
macro_rules! println {
    () => { $crate::console::print(format_args!("\n")) };
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}
pub(crate) use println;

/// Sets the port up (115200 baud, 8 data bits) and takes the `log` crate's events from `level` on.
pub(crate) fn initialize(level: LevelFilter) {
    let config = Config {
        baud_rate: BaudRate::Baud115200,
        ..Config::DEFAULT
    };
    // A machine without the port only loses its output: the writes below are bounded.
    let _ = SERIAL.lock().init(config);
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(level);
    }
}

/// Prints to the console; [`println!`] adds the line end.
pub(crate) fn print(arguments: fmt::Arguments<'_>) {
    let _ = Writer(&mut SERIAL.lock()).write_fmt(arguments);
}

/// Prints although the console may be in use: for a processor that will not go on.
pub(crate) fn print_last_words(arguments: fmt::Arguments<'_>) {
    let _ = Writer(&mut port::serial()).write_fmt(arguments);
}

/// Turns line ends into what terminals expect, and gives up on a port that accepts nothing.
struct Writer<'a>(&'a mut Uart16550<PioBackend>);

impl Writer<'_> {
    fn write_bytes(&mut self, mut bytes: &[u8]) -> fmt::Result {
        const ATTEMPTS: u32 = 1_000_000;
        let mut attempts = 0;
        while !bytes.is_empty() {
            let sent = self.0.send_bytes(bytes);
            bytes = bytes.get(sent..).unwrap_or(&[]);
            attempts = if sent == 0 { attempts + 1 } else { 0 };
            if attempts == ATTEMPTS {
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

impl Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    self.write_bytes(line.as_bytes())?;
                    self.write_bytes(b"\r\n")?;
                }
                None => self.write_bytes(line.as_bytes())?,
            }
        }
        Ok(())
    }
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let (level, target) = (record.level(), record.target());
            println!("{level:<5} {target}: {}", record.args());
        }
    }

    fn flush(&self) {}
}

#[panic_handler]
fn panic(information: &PanicInfo<'_>) -> ! {
    print_last_words(format_args!("\n{information}\n"));
    exit::failure()
}
