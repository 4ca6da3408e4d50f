//! Protected memory regions (§11.4.8).

use vtd_model::{ModelConfig, Pace, Violation};
use vtd_nest::arch::address::Iova;
use vtd_nest::arch::capability::CapabilityField as Cap;
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::Registers;

use crate::support::*;

const EPM: u32 = 1 << 31;
/// The unit decodes bits 19:0 of bases as 0 and of limits as 1.
const REGION: u64 = 0x40_0000;
const LAST: u64 = 0x5f_ffff;

fn config(low: u64, high: u64) -> ModelConfig {
    ModelConfig::nesting_server()
        .with_capability(Cap::PROTECTED_LOW_MEMORY, low)
        .with_capability(Cap::PROTECTED_HIGH_MEMORY, high)
}

/// Sets the bounds of the low region, or of the high one.
fn set_bounds(bench: &Bench, high: bool, base: u64, limit: u64) {
    let mut unit = bench.machine.unit.clone();
    if high {
        unit.write64(Register64::PROTECTED_HIGH_MEMORY_BASE, base);
        unit.write64(Register64::PROTECTED_HIGH_MEMORY_LIMIT, limit);
    } else {
        unit.write32(Register32::PROTECTED_LOW_MEMORY_BASE, base as u32);
        unit.write32(Register32::PROTECTED_LOW_MEMORY_LIMIT, limit as u32);
    }
}

fn set_enabled(bench: &Bench, on: bool) {
    let value = if on { EPM } else { 0 };
    let mut unit = bench.machine.unit.clone();
    unit.write32(Register32::PROTECTED_MEMORY_ENABLE, value);
}

fn status(bench: &Bench) -> u32 {
    let unit = &bench.machine.unit;
    unit.read32(Register32::PROTECTED_MEMORY_ENABLE)
}

/// Whether DMA reaches a host address at this address; never a fault.
fn reaches(bench: &Bench, address: u64, host: u64) -> bool {
    bench.put(host, 0x1234);
    let read = bench.read(DEVICE, None, address).unwrap();
    bench.write(DEVICE, None, address, 0x5678).unwrap();
    let written = bench.get(host) == 0x5678;
    bench.put(host, 0x1234);
    let unit = &bench.machine.unit;
    let added = unit
        .dma_fetch_add(DEVICE, None, Iova::new(address), 1)
        .unwrap();
    let all = [
        read == 0x1234,
        written,
        added == 0x1234,
        bench.get(host) == 0x1235,
    ];
    assert!(
        all.iter().all(|reached| *reached == all[0]),
        "one like the other: {all:?}"
    );
    assert!(all[0] || read == u64::MAX);
    all[0]
}

#[test]
fn dma_into_a_region_is_dropped_with_remapping_off_and_on() {
    for high in [false, true] {
        let bench = Bench::off(config(1, 1), Mode::Scalable);
        // Another region that is switched off: its limit lies below its base.
        set_bounds(&bench, !high, 0x80_0000, 0x70_0000);
        set_bounds(&bench, high, REGION, 0x50_0000);
        assert!(reaches(&bench, REGION, REGION), "not enabled");
        set_enabled(&bench, true);
        assert_eq!(status(&bench), EPM | 1);
        for (address, reached) in [
            (REGION - 8, true),
            (REGION, false),
            (LAST - 7, false),
            (LAST + 1, true),
            (0x80_0000, true),
        ] {
            assert_eq!(reaches(&bench, address, address), reached, "{address:#x}");
        }
        bench.enable();
        let root = bench.page();
        bench.map_second(root, 0x7000, REGION);
        bench.map_second(root, 0x8000, LAST + 1);
        bench.set_pasid(DEVICE, 0, bench.second_entry(7, root));
        assert!(!reaches(&bench, 0x7000, REGION));
        assert!(reaches(&bench, 0x8000, LAST + 1));
        let counters = bench.machine.unit.counters();
        assert_eq!((counters.protected, counters.faults), (9, 0));
        set_enabled(&bench, false);
        assert_eq!(status(&bench), 0);
        assert!(reaches(&bench, 0x7000, REGION));
        bench.machine.unit.assert_no_violations();
    }
}

#[test]
fn tables_may_lie_in_a_region() {
    let bench = Bench::new(config(1, 0), Mode::Scalable);
    let root = bench.page();
    let data = 0x200_0000;
    bench.map_second(root, 0x7000, data);
    bench.set_pasid(DEVICE, 0, bench.second_entry(7, root));
    // All that the bench allocates.
    set_bounds(&bench, false, 0x10_0000, 0x10_0000);
    set_enabled(&bench, true);
    assert!(reaches(&bench, 0x7000, data));
}

#[test]
fn regions_need_not_be_whole_pages() {
    let mut config = config(1, 0);
    config.protected_memory_bits = 8;
    let bench = Bench::off(config, Mode::Scalable);
    set_bounds(&bench, false, 0x40_0100, 0x40_01ff);
    set_enabled(&bench, true);
    for (offset, reached) in [(0xf8, true), (0x100, false), (0x1f8, false), (0x200, true)] {
        let address = REGION + offset;
        assert_eq!(reaches(&bench, address, address), reached, "{offset:#x}");
    }
}

#[test]
fn old_units_let_remapped_requests_through_and_software_must_not_map() {
    let mut config = config(1, 0);
    config.protects_from_remapped = false;
    let bench = Bench::off(config, Mode::Scalable);
    set_bounds(&bench, false, REGION, REGION);
    set_enabled(&bench, true);
    assert!(!reaches(&bench, REGION, REGION), "remapping is off");
    bench.enable();
    bench.set_pasid(DEVICE, 0, bench.pass_through_entry(8));
    assert!(!reaches(&bench, REGION, REGION), "pass-through");
    let root = bench.page();
    bench.map_second(root, 0x7000, REGION);
    bench.set_pasid(OTHER, 0, bench.second_entry(7, root));
    bench.machine.unit.assert_no_violations();
    bench.put(REGION, 5);
    assert_eq!(bench.read(OTHER, None, 0x7000), Ok(5));
    assert_eq!(
        bench.machine.unit.violations(),
        [Violation::MappingOfProtectedMemory { address: REGION }]
    );
}

#[test]
fn bounds_show_which_bits_there_are() {
    let bench = Bench::off(config(1, 1), Mode::Scalable);
    set_bounds(&bench, false, u64::MAX, u64::MAX);
    set_bounds(&bench, true, u64::MAX, u64::MAX);
    let unit = &bench.machine.unit;
    // Bits 19:0 are missing, and those at and above the 46 bits of host addresses.
    assert_eq!(
        unit.read32(Register32::PROTECTED_LOW_MEMORY_BASE),
        0xfff0_0000
    );
    assert_eq!(
        unit.read32(Register32::PROTECTED_LOW_MEMORY_LIMIT),
        0xfff0_0000
    );
    for register in [
        Register64::PROTECTED_HIGH_MEMORY_BASE,
        Register64::PROTECTED_HIGH_MEMORY_LIMIT,
    ] {
        assert_eq!(unit.read64(register), 0x3fff_fff0_0000);
    }
    unit.assert_no_violations();
}

#[test]
fn enabling_takes_its_time_and_is_one_command_among_others() {
    let config = config(1, 0).with_command_pace(Pace::Manual);
    let bench = Bench::off(config, Mode::Scalable);
    let unit = &bench.machine.unit;
    set_bounds(&bench, false, REGION, REGION);
    set_enabled(&bench, true);
    assert_eq!(status(&bench), EPM, "not in force");
    assert!(reaches(&bench, REGION, REGION));
    // A second command before the first is done, of either kind.
    set_enabled(&bench, false);
    bench.command(SRTP, true);
    let in_progress = |offset| Violation::CommandInProgress { offset };
    assert_eq!(
        unit.take_violations(),
        [in_progress(0x64), in_progress(0x18)]
    );
    unit.run();
    assert_eq!(status(&bench), 0);
    unit.set_command_pace(Pace::Immediate);
    set_enabled(&bench, true);
    set_bounds(&bench, false, REGION, REGION);
    let enabled = |offset| Violation::ProtectedMemoryWhileEnabled { offset };
    assert_eq!(unit.take_violations(), [enabled(0x68), enabled(0x6c)]);
    let mut writer = unit.clone();
    writer.write32(Register32::PROTECTED_MEMORY_ENABLE, EPM | 1 | 6);
    assert_eq!(
        unit.take_violations(),
        [Violation::ReservedRegisterBits {
            offset: 0x64,
            bits: 6
        }]
    );
}

#[test]
fn regions_exist_where_the_capabilities_say() {
    for (low, high, known) in [
        (0, 0, [false, false, false]),
        (1, 0, [true, true, false]),
        (0, 1, [true, false, true]),
    ] {
        let bench = Bench::off(config(low, high), Mode::Scalable);
        let unit = &bench.machine.unit;
        for (register, known) in [
            Register32::PROTECTED_MEMORY_ENABLE,
            Register32::PROTECTED_LOW_MEMORY_LIMIT,
            Register64::PROTECTED_HIGH_MEMORY_BASE.high_dword(),
        ]
        .into_iter()
        .zip(known)
        {
            unit.read32(register);
            assert_eq!(unit.take_violations().is_empty(), known, "{register:?}");
        }
    }
}
