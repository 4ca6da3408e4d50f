extern crate std;
use std::vec::Vec;

use super::super::fault::GuestFault;
use super::super::host::Desired;
use super::super::testing::*;
use super::super::unit::{DeviceKind, Poll, VirtualUnitConfig};
use super::*;
use crate::arch::address::Iova;
use crate::arch::descriptor::{Descriptor, PasidCacheGranularity};
use crate::arch::fault::FaultReason;
use crate::arch::register::RequestType;

fn fault(source_id: u16) -> GuestFault {
    GuestFault {
        source_id: sid(source_id),
        pasid: Some(pasid(5)),
        reason: FaultReason::FirstStageNotPresent,
        address: Iova::new(0x1234_5000),
        request: RequestType::Read,
        privileged: false,
        execute: false,
        fault_processing_disabled: false,
    }
}

/// What the guest reads of its unit.
fn window(unit: &Unit) -> Vec<u64> {
    (0..1024).step_by(8).map(|at| unit.read(at, 8)).collect()
}

fn successor(t: &Bench) -> std::boxed::Box<Unit> {
    let config = VirtualUnitConfig {
        features: *t.unit.features(),
        fault_records: t.unit.features().capability.fault_record_count() as u8,
        hash_seed: 1,
    };
    std::boxed::Box::new(Unit::new(config).unwrap())
}

/// Moves a bench's unit and its device elsewhere, where nothing is bound.
fn migrate(t: &mut Bench) {
    let state = t.unit.save();
    let mut next = successor(t);
    assert_eq!(next.restore(&state), Ok(()));
    assert_eq!(window(&next), window(&t.unit));
    assert_eq!(next.save(), state, "it can be moved on at once");
    let kind = DeviceKind::Assigned { pasid_bits: 20 };
    next.add_device(handle(0), sid(D0), kind).unwrap();
    t.unit = next;
    t.host.actual.clear();
}

/// A bound guest with a fault that it has not read, in the middle of the work that `begin`
/// starts.
fn busy(begin: impl Fn(&mut Bench)) -> Bench {
    let mut t = Bench::scalable();
    t.unmask_events();
    t.entry(D0, 5, first_stage(7, 0x30_0000));
    t.invalidate_pasid(7, 5);
    t.record(fault(D0));
    t.forget();
    t.entry(D0, 6, first_stage(8, 0x31_0000));
    begin(&mut t);
    t
}

fn invalidate_and_wait(t: &mut Bench) {
    let invalidation = Descriptor::PasidCache {
        granularity: PasidCacheGranularity::Global,
    };
    t.enqueue(&[
        invalidation.encode().words(),
        wait(STATUS, 0x77, true),
        wait(STATUS + 8, 0x78, true),
    ]);
}

fn new_root(t: &mut Bench) {
    t.command_later(SRTP);
    invalidate_and_wait(t);
}

fn translation_off(t: &mut Bench) {
    let persistent = t.unit.read(GSTS, 4) & 0x96ff_ffff;
    t.unit.write(GCMD, 4, persistent & !TE);
    invalidate_and_wait(t);
}

#[test]
fn a_unit_moved_at_any_step_ends_as_one_that_stays() {
    // S39. Each wait completes once: the status is written, and one event raised for both, as
    // `IWC` stays set (§6.5.2.10).
    for begin in [
        invalidate_and_wait as fn(&mut Bench),
        new_root,
        translation_off,
    ] {
        let mut stays = busy(begin);
        stays.run();
        for steps in 0..40 {
            let mut t = busy(begin);
            t.host.waits = steps % 3;
            for _ in 0..steps {
                let _ = t.unit.poll(&mut t.host, 1);
            }
            migrate(&mut t);
            t.run();
            assert_eq!(window(&t.unit), window(&stays.unit), "{steps}");
            assert_eq!(t.host.actual, stays.host.actual, "{steps}");
            assert_eq!(t.host.interrupts, stays.host.interrupts, "{steps}");
            assert_eq!(t.host.interrupts, [COMPLETION_MESSAGE], "{steps}");
            assert_eq!(t.host.memory.load(STATUS), 0x77);
            assert_eq!(t.host.memory.load(STATUS + 8), 0x78);
            assert_eq!(t.take_fault(), Some((D0, Some(5), 0x71)));
            assert_eq!(t.take_fault(), None);
        }
    }
}

#[test]
fn nothing_is_bound_before_the_first_poll_and_the_tables_count_then() {
    let mut t = busy(|_| {});
    migrate(&mut t);
    assert!(t.host.actual.is_empty());
    assert_eq!((t.unit.bindings(), t.unit.is_translating()), (0, true));
    t.run();
    assert_eq!(t.bound(0, 5), first_stage_binding(7, 0x30_0000));
    assert_eq!(t.bound(0, 6), first_stage_binding(8, 0x31_0000));
    assert_eq!(t.unit.statistics().restores, 1);
}

#[test]
fn a_unit_in_use_takes_no_state() {
    let mut t = busy(|_| {});
    let state = t.unit.save();
    let error = t.unit.restore(&state).unwrap_err();
    assert_eq!(
        error,
        StateError::InUse {
            devices: 0,
            bindings: 1
        }
    );
    t.disable_translation();
    let refused = t.unit.restore(&state);
    assert!(matches!(refused, Err(StateError::InUse { devices: 1, .. })));
}

#[test]
fn states_of_another_length_are_refused() {
    let t = busy(invalidate_and_wait);
    let mut bytes = t.unit.save().to_vec();
    bytes.extend([0; 16]);
    for found in (0..bytes.len()).filter(|len| *len != STATE_LEN_BYTES) {
        assert_eq!(
            successor(&t).restore(&bytes[..found]),
            Err(StateError::Length {
                expected: STATE_LEN_BYTES,
                found
            })
        );
    }
}

/// Where a register is in a state.
fn place(name: &str) -> usize {
    HEADER
        + REGISTERS
            .iter()
            .position(|register| register.name == name)
            .unwrap()
}

#[test]
fn values_that_no_unit_has_are_refused_by_name() {
    let records = HEADER + REGISTERS.len();
    for (at, value, field) in [
        (0, 0, "mark"),
        (1, 0, "version"),
        (1, STATE_VERSION + 1, "version"),
        (2, 47, "address width"),
        (3, 1 << 8, "commands"),
        // Interrupt remapping is not shown.
        (3, 1 << 6, "commands"),
        (3, 1 << 7, "commands"),
        (4, 0x1000, "root table address to be taken over"),
        (5, 1, "root table address in force"),
        (
            6,
            0x1000,
            "interrupt remapping table address to be taken over",
        ),
        (7, 0x1000, "interrupt remapping table address in force"),
        (8, 4, "next fault record"),
        (8, u64::MAX, "next fault record"),
        (place("VER_REG"), 0x20, "VER_REG"),
        (place("CAP_REG"), 0, "CAP_REG"),
        (place("ECAP_REG"), u64::MAX, "ECAP_REG"),
        (place("GCMD_REG"), 1, "GCMD_REG"),
        // §11.4.4.2: bit 29 is FLS.
        (place("GSTS_REG"), 1 << 29, "GSTS_REG"),
        (place("GSTS_REG"), 1 << 25, "GSTS_REG"),
        (place("IRTA_REG"), 0x1000, "IRTA_REG"),
        (place("RTADDR_REG"), 1 << 9, "RTADDR_REG"),
        // §11.4.7.1: bit 2 is reserved, FRI is 15:8, and PPF is bit 1.
        (place("FSTS_REG"), 1 << 2, "FSTS_REG"),
        (place("FSTS_REG"), 0x402, "FSTS_REG"),
        (place("FSTS_REG"), 0, "FSTS_REG"),
        (place("FECTL_REG"), 1, "FECTL_REG"),
        (place("IQH_REG"), 0x1000, "IQH_REG"),
        (place("IQH_REG"), 0x10, "IQH_REG"),
        (place("IQT_REG"), 0x8_0000, "IQT_REG"),
        (place("IQA_REG"), 1 << 3, "IQA_REG"),
        (place("ICS_REG"), 2, "ICS_REG"),
        (place("IQERCD_REG"), 0x10, "IQERCD_REG"),
        (place("FRCD_REG"), 1, "FRCD_REG"),
        // §11.4.7.6: FI is 63:12, and PV needs PP, bit 95.
        (records + 2, 1, "FRCD_REG, low"),
        (records + 3, 1 << 40, "FRCD_REG, high"),
        (records + 8, 0x1000, "FRCD_REG, low"),
        (records + 9, 0x10, "FRCD_REG, high"),
    ] {
        let t = busy(invalidate_and_wait);
        let mut state = t.unit.save();
        state[at * 8..][..8].copy_from_slice(&value.to_le_bytes());
        let mut next = successor(&t);
        let before = window(&next);
        let refused = next.restore(&state);
        assert_eq!(refused, Err(StateError::Field { field, value }));
        assert_eq!(window(&next), before, "nothing has changed");
    }
}

#[test]
fn interrupt_remapping_moves_with_the_unit_at_any_step() {
    // S39: host entries are made anew from the guest's table, by each command in progress.
    const TABLE: u64 = 0x10_0000;
    let begin = |command: u64, set: bool| {
        let mut t = Bench::scalable_with(Setup {
            extended: 1 << 3,
            ..Setup::default()
        });
        t.store(TABLE + 16, &[1 | 0x41 << 16, u64::from(D0) | 1 << 18]);
        t.store(
            TABLE + 0x1000 + 32,
            &[1 | 0x42 << 16, u64::from(D0) | 1 << 18],
        );
        t.unit.write(IRTA, 8, TABLE | 7);
        t.command(SIRTP);
        t.command(IRE);
        t.command(CFI);
        t.unit.write(IRTA, 8, (TABLE + 0x1000) | 7);
        let status = t.unit.read(GSTS, 4) & 0x96ff_ffff;
        let status = if set {
            status | command
        } else {
            status & !command
        };
        t.unit.write(GCMD, 4, status);
        t
    };
    for (command, set, entries) in [(SIRTP, true, &[2][..]), (IRE, false, &[])] {
        for steps in 0..12 {
            let mut t = begin(command, set);
            t.host.waits = steps % 2;
            for _ in 0..steps {
                let _ = t.unit.poll(&mut t.host, 1);
            }
            t.host.entries.clear();
            migrate(&mut t);
            t.run();
            let found: Vec<u16> = t.host.entries.keys().copied().collect();
            assert_eq!(found, entries, "{command:#x} {steps}");
            let status = t.unit.read(GSTS, 4) & (IRE | SIRTP | CFI);
            let on = if set { IRE } else { 0 };
            assert_eq!(status, on | SIRTP | CFI);
        }
    }
    let state = begin(SIRTP, true).unit.save();
    for (at, value) in [(6, 0x10), (7, 0x400)] {
        let mut changed = state;
        changed[at * 8..][..8].copy_from_slice(&u64::to_le_bytes(value));
        let mut next = successor(&begin(SIRTP, true));
        let refused = next.restore(&changed);
        assert!(matches!(refused, Err(StateError::Field { .. })), "{at}");
    }
}

#[test]
fn a_state_with_any_byte_changed_is_refused_or_does_what_a_guest_could_do() {
    let t = busy(new_root);
    let state = t.unit.save();
    for at in 0..STATE_LEN_BYTES {
        for change in [0x01, 0x80, 0xff] {
            let mut changed = state;
            changed[at] ^= change;
            let mut t = busy(new_root);
            t.unit = successor(&t);
            t.host.actual.clear();
            if t.unit.restore(&changed).is_err() {
                assert_eq!(t.unit.poll(&mut t.host, 1), Poll::Idle, "as before");
                continue;
            }
            let kind = DeviceKind::Assigned { pasid_bits: 20 };
            t.unit.add_device(handle(0), sid(D0), kind).unwrap();
            t.run();
            t.unit.reset();
            t.run();
            assert_eq!(t.bound(0, 0), Desired::MachineMemory, "it works");
        }
    }
}
