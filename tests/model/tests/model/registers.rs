//! The register file: what reads back, and what is a breach.

use vtd_model::{ModelConfig, ModelUnit, Pace, Violation};
use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::{Platform, Registers};

use crate::support::*;

fn unit(bench: &Bench) -> ModelUnit {
    bench.machine.unit.clone()
}

fn off() -> Bench {
    Bench::off(ModelConfig::nesting_server(), Mode::Scalable)
}

#[test]
fn capabilities_read_back_in_either_width() {
    let bench = off();
    let unit = unit(&bench);
    let config = bench.config();
    assert_eq!(
        unit.read64(Register64::CAPABILITY),
        config.capability.bits()
    );
    assert_eq!(
        unit.read64(Register64::EXTENDED_CAPABILITY),
        config.extended.bits()
    );
    let high = unit.read32(Register64::EXTENDED_CAPABILITY.high_dword());
    assert_eq!(u64::from(high), config.extended.bits() >> 32);
    assert_eq!(unit.read32(Register32::VERSION), 0x50);
    assert_eq!(unit.window_bytes(), 4096);
    unit.assert_no_violations();
}

#[test]
fn the_enable_sequence_is_clean_in_every_profile() {
    for (config, mode) in [
        (ModelConfig::nesting_server(), Mode::Scalable),
        (ModelConfig::nesting_server(), Mode::Legacy),
        (ModelConfig::nesting_client_noncoherent(), Mode::Scalable),
        (ModelConfig::qemu_second_stage(), Mode::Scalable),
        (ModelConfig::qemu_first_stage(), Mode::Scalable),
        (ModelConfig::caching_mode(), Mode::Scalable),
        (ModelConfig::legacy_server(), Mode::Legacy),
    ] {
        let bench = Bench::new(config, mode);
        assert_eq!(
            unit(&bench).read32(Register32::GLOBAL_STATUS),
            TE | SRTP | QIE
        );
        assert!(bench.submit(&[CONTEXT_GLOBAL, IOTLB_GLOBAL]));
        bench.machine.unit.assert_no_violations();
    }
}

#[test]
fn commands_are_one_at_a_time_and_one_change_each() {
    type Row = (&'static str, fn(&Bench), &'static [Violation]);
    let rows: &[Row] = &[
        (
            "two changes",
            |b| unit(b).write32(Register32::GLOBAL_COMMAND, SRTP | QIE),
            &[Violation::SeveralCommands {
                status: 0,
                command: SRTP | QIE,
            }],
        ),
        (
            "the one-shot status written back",
            |b| {
                b.command(SRTP, true);
                unit(b).write32(Register32::GLOBAL_COMMAND, SRTP | TE);
            },
            &[Violation::SeveralCommands {
                status: SRTP,
                command: SRTP | TE,
            }],
        ),
        (
            "TE without root table",
            |b| b.command(TE, true),
            &[Violation::TranslationWithoutRootTable],
        ),
        (
            "TE again without a new SRTP",
            |b| {
                b.command(SRTP, true);
                b.command(TE, true);
                b.command(TE, false);
                b.command(TE, true);
            },
            &[Violation::TranslationWithoutRootTable],
        ),
        (
            "reserved bits",
            |b| unit(b).write32(Register32::GLOBAL_COMMAND, 1 << 29 | 1),
            &[Violation::ReservedRegisterBits {
                offset: 0x18,
                bits: 1 << 29 | 1,
            }],
        ),
        (
            "interrupt remapping without IR",
            |b| b.command(1 << 25, true),
            &[Violation::UnsupportedCommand { bit: 1 << 25 }],
        ),
        (
            "write buffer flush without RWBF",
            |b| b.command(1 << 27, true),
            &[Violation::UnsupportedCommand { bit: 1 << 27 }],
        ),
        (
            "reading the command register",
            |b| assert_eq!(unit(b).read32(Register32::GLOBAL_COMMAND), 0),
            &[Violation::WriteOnlyRegister { offset: 0x18 }],
        ),
    ];
    for (name, act, expected) in rows {
        let bench = off();
        act(&bench);
        assert_eq!(bench.machine.unit.violations(), *expected, "{name}");
    }
}

#[test]
fn the_root_table_is_latched_by_its_command() {
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let mut unit = unit(&bench);
    bench.set_pasid(DEVICE, 0, bench.pass_through_entry(7));
    let page = bench.data_page(5);
    let other = bench.page();
    unit.write64(Register64::ROOT_TABLE_ADDRESS, other | 1 << 10);
    assert_eq!(unit.read64(Register64::ROOT_TABLE_ADDRESS), other | 1 << 10);
    assert_eq!(bench.outcome(DEVICE, None, page), Ok(5));
    assert_eq!(
        unit.root_table().map(|root| root.as_u64()),
        Some(bench.root)
    );
    bench.command(SRTP, true);
    assert_eq!(unit.root_table().map(|root| root.as_u64()), Some(other));
    assert_eq!(bench.outcome(DEVICE, None, page), Err(0x39));
    unit.assert_no_violations();
}

#[test]
fn table_mode_changes_while_enabled_need_esrtps() {
    for (esrtps, count) in [(1, 0), (0, 1)] {
        let config = ModelConfig::nesting_server()
            .with_capability(Cap::ENHANCED_SET_ROOT_TABLE_POINTER, esrtps);
        let bench = Bench::new(config, Mode::Scalable);
        let mut unit = unit(&bench);
        unit.write64(Register64::ROOT_TABLE_ADDRESS, bench.root);
        bench.command(SRTP, true);
        assert_eq!(unit.violations().len(), count);
    }
}

#[test]
fn slow_commands_show_in_the_status_and_must_be_waited_for() {
    let config = ModelConfig::nesting_server().with_command_pace(Pace::After(5_000));
    let bench = Bench::off(config, Mode::Scalable);
    let mut unit = unit(&bench);
    let h = &bench.machine.hypervisor;
    h.set_steps(0, 3_000);
    unit.write64(Register64::ROOT_TABLE_ADDRESS, bench.root_address());
    unit.write32(Register32::GLOBAL_COMMAND, SRTP);
    assert_eq!(unit.read32(Register32::GLOBAL_STATUS), 0);
    h.pause();
    h.pause();
    assert_eq!(unit.read32(Register32::GLOBAL_STATUS), SRTP);
    // Again: RTPS goes and comes back.
    unit.write32(Register32::GLOBAL_COMMAND, SRTP);
    assert_eq!(unit.read32(Register32::GLOBAL_STATUS), 0);
    unit.assert_no_violations();
    unit.write32(Register32::GLOBAL_COMMAND, TE);
    assert_eq!(
        unit.violations(),
        [Violation::CommandInProgress { offset: 0x18 }]
    );
    unit.run();
    h.pause();
    h.pause();
    assert_eq!(unit.read32(Register32::GLOBAL_STATUS), TE | SRTP);
}

#[test]
fn widths_reserved_bits_and_unknown_registers_are_reported() {
    type Row = (&'static str, fn(&mut ModelUnit), Violation);
    let record = Register64::fault_record_low(0x220, 0).unwrap();
    assert_eq!(record.offset(), 0x220);
    let rows: &[Row] = &[
        (
            "write to CAP",
            |u| u.write64(Register64::CAPABILITY, 0),
            Violation::ReadOnlyRegister {
                offset: 8,
                value: 0,
            },
        ),
        (
            "write to GSTS",
            |u| u.write32(Register32::GLOBAL_STATUS, 1),
            Violation::ReadOnlyRegister {
                offset: 0x1c,
                value: 1,
            },
        ),
        (
            "protected memory without the feature",
            |u| u.write32(Register32::PROTECTED_MEMORY_ENABLE, 0),
            Violation::UnknownRegister { offset: 0x64 },
        ),
        (
            "page requests without the feature",
            |u| assert_eq!(u.read32(Register32::PAGE_REQUEST_STATUS), u32::MAX),
            Violation::UnknownRegister { offset: 0xdc },
        ),
        (
            "a record behind the last",
            |u| {
                let beyond = Register64::fault_record_low(0x220, 8).unwrap();
                u.read32(beyond.low_dword());
            },
            Violation::UnknownRegister { offset: 0x2a0 },
        ),
        (
            "root table: reserved",
            |u| u.write64(Register64::ROOT_TABLE_ADDRESS, 0x1000 | 1 << 8),
            Violation::ReservedRegisterBits {
                offset: 0x20,
                bits: 1 << 8,
            },
        ),
        (
            "root table: beyond HAW",
            |u| u.write64(Register64::ROOT_TABLE_ADDRESS, 1 << 46),
            Violation::ReservedRegisterBits {
                offset: 0x24,
                bits: 1 << 14,
            },
        ),
        (
            "queue address: reserved",
            |u| u.write64(Register64::INVALIDATION_QUEUE_ADDRESS, 8),
            Violation::ReservedRegisterBits {
                offset: 0x90,
                bits: 8,
            },
        ),
        (
            "tail: reserved",
            |u| u.write64(Register64::INVALIDATION_QUEUE_TAIL, 1 << 19),
            Violation::ReservedRegisterBits {
                offset: 0x88,
                bits: 1 << 19,
            },
        ),
        (
            "FSTS: reserved",
            |u| u.write32(Register32::FAULT_STATUS, 1 << 7),
            Violation::ReservedRegisterBits {
                offset: 0x34,
                bits: 1 << 7,
            },
        ),
        (
            "FECTL: reserved",
            |u| u.write32(Register32::FAULT_EVENT_CONTROL, 1 << 31 | 4),
            Violation::ReservedRegisterBits {
                offset: 0x38,
                bits: 4,
            },
        ),
        (
            "context command in a unit whose queue is off, but in which it is asked for nothing",
            |u| u.write64(Register64::CONTEXT_COMMAND, 1 << 34),
            Violation::ReservedRegisterBits {
                offset: 0x2c,
                bits: 4,
            },
        ),
    ];
    for (name, act, expected) in rows {
        let bench = off();
        let mut unit = unit(&bench);
        act(&mut unit);
        assert_eq!(unit.violations(), [*expected], "{name}");
    }
    // Writing back what was read is no breach.
    let bench = off();
    let mut unit = unit(&bench);
    for register in [Register32::FAULT_EVENT_CONTROL, Register32::FAULT_STATUS] {
        let value = unit.read32(register);
        unit.write32(register, value);
    }
    unit.assert_no_violations();
}

#[test]
fn register_based_invalidation_is_refused_where_it_does_not_work() {
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let mut unit = unit(&bench);
    unit.write64(Register64::CONTEXT_COMMAND, 1 << 63 | 1 << 61);
    assert_eq!(unit.read64(Register64::CONTEXT_COMMAND) >> 59 & 0x13, 0);
    assert_eq!(
        unit.take_violations(),
        [Violation::RegisterInvalidation { offset: 0x28 }]
    );
    let iotlb = Register64::iotlb_invalidate(0xf0).unwrap();
    unit.write64(iotlb, 1 << 63 | 1 << 60);
    assert_eq!(
        unit.violations(),
        [Violation::RegisterInvalidation { offset: 0xf8 }]
    );
}

#[test]
fn the_window_covers_all_registers() {
    let config = ModelConfig::nesting_server()
        .with_capability(Cap::FAULT_RECORD_OFFSET, 0x140)
        .with_extended(Ecap::IOTLB_REGISTER_OFFSET, 0x50);
    let bench = Bench::off(config, Mode::Scalable);
    let unit = unit(&bench);
    assert_eq!(unit.window_bytes(), 0x2000);
    unit.read64(Register64::fault_record_high(0x1400, 7).unwrap());
    unit.read64(Register64::iotlb_invalidate(0x500).unwrap());
    unit.assert_no_violations();
}

#[test]
fn interrupt_remapping_blocks_the_compatibility_format_until_allowed() {
    const IRE: u32 = 1 << 25;
    const SIRTP: u32 = 1 << 24;
    const CFI: u32 = 1 << 23;
    let config = ModelConfig::qemu_second_stage()
        .with_capability(Cap::ENHANCED_SET_INTERRUPT_TABLE_POINTER, 1);
    let bench = Bench::off(config, Mode::Scalable);
    let mut unit = unit(&bench);
    let send = || {
        let at = vtd_nest::arch::address::Iova::new(0xfee0_0000);
        let sent = bench
            .machine
            .unit
            .dma_write(DEVICE, None, at, &[0x41, 0, 0, 0]);
        sent.map_err(|fault| fault.reason.code())
    };
    bench.command(IRE, true);
    assert_eq!(
        unit.take_violations(),
        [Violation::InterruptRemappingWithoutTable]
    );
    bench.command(IRE, false);
    unit.write64(
        Register64::INTERRUPT_REMAPPING_TABLE_ADDRESS,
        bench.page() | 7,
    );
    bench.command(SIRTP, true);
    assert_eq!(send(), Ok(()));
    bench.command(IRE, true);
    assert_eq!(send(), Err(0x25));
    bench.command(CFI, true);
    assert_eq!(unit.read32(Register32::GLOBAL_STATUS), IRE | SIRTP | CFI);
    assert_eq!(send(), Ok(()));
    assert_eq!(unit.take_interrupts().len(), 2);
    unit.assert_no_violations();
}
