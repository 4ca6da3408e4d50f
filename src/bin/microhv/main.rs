//! A micro-hypervisor image: it owns the machine's remapping units, gives a guest a virtual one,
//! and shows that the guest's DMA goes where the guest's tables say, and nowhere else.
//!
//! Two jobs. Without a boot module the guest is a driver in the image ([`builtin`]): it touches only
//! what a guest has, through the entry points that VM exits would call. With one, a container of
//! kernel and initial RAM file system, it is an unmodified Linux ([`linux`]).
#![no_std]
#![no_main]

mod boot;
mod builtin;
mod clock;
mod console;
mod cpu;
mod decode;
mod environment;
mod exception;
mod exit;
mod firmware;
mod host;
mod interrupt;
mod linux;
mod local_apic;
mod memory;
mod msr;
mod pci;
mod platform;
mod port;
mod ram;
mod report;
mod topology;
mod units;

use log::LevelFilter;

use console::println;
use platform::Platform;

extern "C" fn entry(start_info: u32) -> ! {
    console::initialize(LevelFilter::Warn);
    exception::initialize();
    println!("microhv {}", env!("CARGO_PKG_VERSION"));
    let platform = match Platform::discover(start_info) {
        Ok(platform) => platform,
        Err(error) => {
            log::error!("platform: {error:?}");
            exit::failure()
        }
    };
    platform.print_summary();
    if let Some(module) = platform.information.modules.first().copied() {
        match linux::run(platform, module) {
            Ok(true) => exit::halt(),
            Ok(false) => println!("the guest did not come to its end"),
            Err(error) => log::error!("guest: {error:?}"),
        }
        exit::failure()
    }
    match builtin::run(platform) {
        Ok(true) => {
            println!("everything held");
            exit::success()
        }
        Ok(false) => {}
        Err(error) => log::error!("set-up: {error:?}"),
    }
    println!("something did not hold");
    exit::failure()
}
