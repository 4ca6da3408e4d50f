//! The micro-hypervisor image: boots on bare metal by PVH, with no operating system below it.
//!
//! `linker/microhv.ld` says how it is built. Its `unsafe` is confined to leaf modules: `boot`,
//! `clock`, `exception`, `memory` and `port`. The rest, like the library, has none.
#![no_std]
#![no_main]

mod boot;
mod clock;
mod console;
mod edu;
mod exception;
mod exit;
mod firmware;
mod memory;
mod pci;
mod platform;
mod port;

use log::LevelFilter;

use console::println;
use edu::{BUFFER_LEN_BYTES, Direction, Edu};
use platform::Platform;

/// Where boot.s arrives: 64-bit mode, identity map, interrupts disabled.
extern "C" fn entry(start_info: u32) -> ! {
    console::initialize(LevelFilter::Info);
    exception::initialize();
    println!("microhv {}", env!("CARGO_PKG_VERSION"));
    match Platform::discover(start_info) {
        Ok(mut platform) => {
            platform.print_summary();
            match self_test(&mut platform) {
                Ok(()) => exit::success(),
                Err(error) => log::error!("self-test: {error:?}"),
            }
        }
        Err(error) => log::error!("platform: {error:?}"),
    }
    exit::failure()
}

/// Why the self-test failed.
#[derive(Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
enum SelfTestError {
    NoEdu,
    Edu(edu::EduError),
    Memory(memory::MemoryError),
    Dma(edu::DmaError),
    /// The copy differs from the original in the quadword at this offset.
    Differs(u64),
}

/// Has the `edu` device copy a page of RAM to another, with the remapping unit as firmware left it.
fn self_test(platform: &mut Platform) -> Result<(), SelfTestError> {
    let function = platform
        .functions
        .iter()
        .find(|function| Edu::is_edu(function))
        .ok_or(SelfTestError::NoEdu)?;
    let mut edu =
        Edu::new(&platform.memory, &mut platform.pci, function).map_err(SelfTestError::Edu)?;
    let mut pages = platform
        .memory
        .allocate(2 * BUFFER_LEN_BYTES, BUFFER_LEN_BYTES)
        .map_err(SelfTestError::Memory)?;
    let start = pages.start().as_u64();
    let pattern = |offset: u64| 0xa5a5_0000_5a5a_0000 | offset;
    for offset in (0..BUFFER_LEN_BYTES).step_by(8) {
        let _ = pages.write_u64(offset, pattern(offset));
        let _ = pages.write_u64(BUFFER_LEN_BYTES + offset, 0);
    }
    let begin = clock::read_ticks();
    edu.dma(Direction::ToDevice, start, 0, BUFFER_LEN_BYTES)
        .map_err(SelfTestError::Dma)?;
    let middle = clock::read_ticks();
    edu.dma(
        Direction::ToMemory,
        start + BUFFER_LEN_BYTES,
        0,
        BUFFER_LEN_BYTES,
    )
    .map_err(SelfTestError::Dma)?;
    let end = clock::read_ticks();
    for offset in (0..BUFFER_LEN_BYTES).step_by(8) {
        if pages.read_u64(BUFFER_LEN_BYTES + offset) != Some(pattern(offset)) {
            return Err(SelfTestError::Differs(offset));
        }
    }
    println!(
        "edu: copied a page through the device, {} + {} ticks",
        middle.wrapping_sub(begin),
        end.wrapping_sub(middle)
    );
    Ok(())
}
