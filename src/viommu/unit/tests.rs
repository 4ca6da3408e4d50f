extern crate std;
use std::vec::Vec;

use super::super::registers::{Place, REGISTERS};
use super::super::testing::*;
use super::*;
use crate::arch::address::AddressWidth;
use crate::arch::capability::CapabilityError;
use crate::arch::capability::CapabilityField;
use crate::arch::capability::ExtendedCapabilityField;
use crate::arch::context::{DirectoryOrder, LegacyContextEntry};
use crate::arch::pasid::PasidEntry;
use crate::viommu::host::BindError;
use crate::viommu::host::GuestInvalidation;
use crate::viommu::host::Progress;

/// The registers of one dword: its value after reset, its writable bits, its readable bits.
fn expected_dword(offset: u16, features: &Features) -> (u64, u64, u64) {
    for register in REGISTERS {
        let start = match register.place {
            Place::At(start) => start,
            Place::Iotlb(within) => features.extended.iotlb_register_offset() + within,
            Place::FaultRecords => continue,
        };
        let end = start + u16::from(register.len_bytes);
        let is_shown = register.name != "IRTA_REG" || features.extended.has_interrupt_remapping();
        if is_shown && (start..end).contains(&offset) {
            let shift = u32::from(offset - start) * 8;
            let reset = match register.name {
                "CAP_REG" => features.capability.bits(),
                "ECAP_REG" => features.extended.bits(),
                _ => register.reset,
            };
            let dword = |value: u64| value >> shift & 0xffff_ffff;
            return (
                dword(reset & register.readable),
                dword(register.writable),
                dword(register.readable),
            );
        }
    }
    (0, 0, 0)
}

#[test]
fn registers_read_as_the_specification_s_reset_values() {
    // §11.4, with VER 1.0.
    let t = Bench::new();
    for (offset, value) in [
        (0x00, 0x10),
        (0x1c, 0),
        (0x20, 0),
        (0x34, 0),
        (0x38, 0x8000_0000),
        (0x88, 0),
        (0x90, 0),
        (0x9c, 0),
        (0xa0, 0x8000_0000),
    ] {
        assert_eq!(t.unit.read(offset, 4), value, "{offset:x}");
    }
    assert_eq!(t.unit.read(0x08, 8), t.unit.features().capability.bits());
    assert_eq!(t.unit.read(0x10, 8), t.unit.features().extended.bits());
}

#[test]
fn every_offset_and_width_is_defined_and_what_is_no_register_reads_0() {
    // S56, G37: dword by dword, all ones written; then every width and alignment is the same
    // bytes.
    let commands = [0x18, 0x2c, 0xfc];
    let dwords = || (0..0x1000u16).step_by(4);
    let setups = [0, 1 << 3].into_iter();
    for (extended, offset) in setups.flat_map(|bits| dwords().map(move |at| (bits, at))) {
        let mut t = Bench::with(Setup {
            extended,
            ..Setup::default()
        });
        let features = *t.unit.features();
        let (reset, writable, readable) = expected_dword(offset, &features);
        assert_eq!(t.unit.read(u64::from(offset), 4), reset, "{offset:x}");
        t.unit.write(u64::from(offset), 4, u64::MAX);
        if !commands.contains(&offset) {
            let expected = (reset & !writable | writable) & readable;
            assert_eq!(t.unit.read(u64::from(offset), 4), expected, "{offset:x}");
        }
    }
    let mut t = Bench::new();
    for offset in 0..0x1000 {
        t.unit.write(
            offset,
            8,
            0x0123_4567_89ab_cdef_u64.rotate_left(offset as u32),
        );
    }
    let bytes: Vec<u64> = (0..0x1010).map(|offset| t.unit.read(offset, 1)).collect();
    for offset in 0..0x1000usize {
        for len in [2, 4, 8] {
            let value = (0..len).map(|n| bytes[offset + n] << (8 * n)).sum::<u64>();
            assert_eq!(
                t.unit.read(offset as u64, len as u8),
                value,
                "{offset:x} {len}"
            );
        }
    }
    for offset in [0x1000, 0x1_0000, u64::MAX, u64::MAX - 7] {
        t.unit.write(offset, 8, u64::MAX);
        assert_eq!(t.unit.read(offset, 8), 0);
    }
    t.run();
}

#[test]
fn writes_of_any_width_build_the_same_value() {
    // S56.
    for len in [1u8, 2, 4, 8] {
        let mut t = Bench::new();
        let value: u64 = 0x1234_5678_9abc_d400;
        for at in (0..8).step_by(usize::from(len)) {
            t.unit.write(RTADDR + at as u64, len, value >> (8 * at));
        }
        assert_eq!(t.unit.read(RTADDR, 8), value, "{len}");
    }
    // Straddling FEDATA and FEADDR.
    let mut t = Bench::new();
    t.unit.write(FECTL + 4 + 2, 4, 0x5678_1234);
    assert_eq!(t.unit.read(FECTL + 4, 8), 0x5678_0000_0000);
    // A byte of GCMD leaves the others as commanded.
    t.unit.write(GCMD + 3, 1, TE >> 24);
    t.run();
    assert!(t.unit.is_translating());
    t.unit.write(GCMD, 1, 0xff);
    t.run();
    assert!(t.unit.is_translating());
}

#[test]
fn combined_commands_set_the_root_pointer_first() {
    // §11.4.4.1 forbids it; the order chosen is the safe one.
    let mut t = Bench::new();
    t.context(D0, DirectoryOrder::SMALLEST);
    t.assign(0, D0);
    t.entry(D0, 0, first_stage(7, 0x20_0000));
    t.unit.write(RTADDR, 8, ROOT | 1 << 10);
    t.unit.write(GCMD, 4, TE | SRTP);
    t.run();
    assert_eq!(t.unit.read(GSTS, 4), TE | SRTP);
    assert_eq!(t.bound(0, 0), first_stage_binding(7, 0x20_0000));
}

#[test]
fn the_root_address_counts_once_it_is_taken_over() {
    // §11.4.5: latched by SRTP.
    let mut t = Bench::scalable();
    t.entry(D0, 0, pass_through(7));
    t.unit.write(RTADDR, 8, 0xdead_0000);
    assert_eq!(t.unit.read(RTADDR, 8), 0xdead_0000);
    t.invalidate_all();
    assert_eq!(t.bound(0, 0), pass_through_binding(7));
}

#[test]
fn a_new_root_is_shown_as_set_once_hardware_has_forgotten_the_old_one() {
    // R25: with `ESRTPS` setting the root pointer drops all caches by itself.
    let mut t = Bench::scalable();
    t.host.waits = 3;
    t.unit.write(RTADDR, 8, ROOT | 1 << 10);
    t.command_later(SRTP);
    for _ in 0..6 {
        assert_eq!(t.unit.poll(&mut t.host, 100), Poll::Wait);
        assert_eq!(t.unit.read(GSTS, 4) & SRTP, 0);
    }
    t.run();
    assert_eq!(t.unit.read(GSTS, 4) & SRTP, SRTP);
    let expected = [Call::Invalidate(GuestInvalidation::All), Call::Flush];
    assert_eq!(t.host.calls, expected);
}

/// A legacy root with D0 bound under domain-id 3, the queue off.
fn legacy() -> (Bench, u64) {
    let mut t = Bench::new();
    let (root, table) = (t.page(), t.page());
    t.store(root, &[table | 1]);
    let entry = LegacyContextEntry::pass_through(AddressWidth::Bits48, did(3));
    let at = table + u64::from(D0) * 16;
    t.store(at, entry.quadwords());
    t.assign(0, D0);
    t.set_root_at(root, crate::arch::register::TranslationTableMode::Legacy);
    t.enable_translation();
    assert_eq!(t.bound(0, 0), pass_through_binding(3));
    t.forget();
    (t, at)
}

const CCMD: u64 = 0x28;
const ASSIGNED: DeviceKind = DeviceKind::Assigned { pasid_bits: 20 };

#[test]
fn register_based_invalidation_works_in_legacy_mode_without_a_queue() {
    // §6.5.1, §11.4.6: ICC and IVT stay set until it is done.
    let (mut t, context) = legacy();
    t.store(context, &[0, 0]);
    t.host.waits = 2;
    // Device-selective, another device; then this one; the dword that has ICC acts.
    for (source_id, expected) in [(D1, pass_through_binding(3)), (D0, Desired::Blocked)] {
        t.unit.write(CCMD, 4, u64::from(source_id) << 16 | 3);
        t.unit.write(CCMD + 4, 4, 1 << 31 | 3 << 29);
        assert_eq!(t.unit.read(CCMD, 8) >> 63, 1);
        t.run();
        assert_eq!(t.unit.read(CCMD, 8) >> 59, 0b01111, "CIRG and CAIG: device");
        assert_eq!(t.bound(0, 0), expected);
    }
    t.forget();
    t.unit.write(IVA, 8, 0x1234_5000 | 3 | 1 << 6);
    t.unit.write(IOTLB, 8, 1 << 63 | 3 << 60 | 3 << 32);
    assert_eq!(t.unit.poll(&mut t.host, 100), Poll::Wait);
    assert_eq!(t.unit.read(IOTLB, 8) >> 63, 1);
    t.run();
    assert_eq!(
        t.unit.read(IOTLB, 8) >> 57,
        0b001_1011,
        "IIRG and IAIG: page"
    );
    let pages = super::super::PageRange {
        address: crate::arch::address::Iova::new(0x1234_0000),
        order: 3,
        leaf_only: true,
    };
    let what = GuestInvalidation::DomainPages {
        domain_id: did(3),
        pages,
    };
    assert_eq!(t.host.calls, [Call::Invalidate(what), Call::Flush]);
}

#[test]
fn register_based_invalidation_is_refused_where_it_does_not_exist() {
    // §6.5.1: granularity 0 says so. Also AM beyond MAMV and reserved granularities.
    let refused = |t: &mut Bench, at: u64, value: u64, actual: u32| {
        t.unit.write(at, 8, value);
        t.run();
        assert_eq!(t.unit.read(at, 8) >> 63, 0);
        assert_eq!(t.unit.read(at, 8) >> actual & 3, 0);
        assert_eq!(t.host.operations(), 0);
    };
    let mut t = Bench::scalable();
    refused(&mut t, CCMD, 1 << 63 | 1 << 61, 59);
    refused(&mut t, IOTLB, 1 << 63 | 1 << 60, 57);
    let (mut t, _) = legacy();
    refused(&mut t, CCMD, 1 << 63, 59);
    refused(&mut t, IOTLB, 1 << 63, 57);
    t.unit.write(IVA, 8, 19);
    refused(&mut t, IOTLB, 1 << 63 | 3 << 60, 57);
    t.enable_queue();
    t.forget();
    refused(&mut t, CCMD, 1 << 63 | 1 << 61, 59);
}

#[test]
fn a_device_added_while_translation_is_on_is_never_open() {
    // S38.
    let mut t = Bench::scalable();
    t.context(D1, DirectoryOrder::LARGEST);
    t.entry(D1, 5, first_stage(7, 0x20_0000));
    t.assign(1, D1);
    assert_eq!(t.binds(), [(1, 5, first_stage_binding(7, 0x20_0000))]);
    t.assign(2, 0x1234);
    assert_eq!((t.bound(2, 0), t.binds().len()), (Desired::Blocked, 1));
}

#[test]
fn a_device_added_while_translation_is_off_reaches_the_machine_s_memory() {
    let mut t = Bench::new();
    t.assign(0, D0);
    assert_eq!(t.binds(), [(0, 0, Desired::MachineMemory)]);
}

#[test]
fn removing_a_device_takes_all_its_bindings_away() {
    // S37, R5: 100 bindings; another device keeps its own.
    let mut t = Bench::scalable();
    let directory = t.directories[&D0];
    t.share(D1, DirectoryOrder::LARGEST, directory);
    for pasid in 0..100 {
        t.entry(D0, pasid, first_stage(7, 0x20_0000));
    }
    t.assign(1, D1);
    t.invalidate_all();
    assert_eq!(t.host.actual.len(), 200);
    t.forget();
    t.host.waits = 1;
    let mut calls = 0;
    while t.unit.remove_device(handle(0), &mut t.host).unwrap() == Progress::Wait {
        calls += 1;
        assert!(calls < 200);
    }
    assert_eq!(t.binds().len(), 100);
    assert!(t.host.actual.keys().all(|key| key.0 == 1) && t.host.actual.len() == 100);
    t.run();
    assert_eq!(
        t.unit.remove_device(handle(0), &mut t.host),
        Err(DeviceError::Unknown(handle(0)))
    );
    // The handle is free again.
    t.assign(0, D0);
    assert_eq!(t.host.actual.len(), 200);
}

#[test]
fn a_removal_that_fails_is_kept_and_can_be_repeated() {
    // R22, S90.
    let mut t = Bench::scalable();
    t.entry(D0, 5, first_stage(7, 0x20_0000));
    t.invalidate_all();
    t.host.stuck.insert((0, 5));
    assert!(t.unit.remove_device(handle(0), &mut t.host).is_err());
    let again = t.unit.add_device(handle(0), sid(D0), ASSIGNED);
    assert_eq!(again, Err(DeviceError::InUse(handle(0))));
    t.invalidate_all();
    assert_eq!(t.unit.bindings(), 1);
    t.host.stuck.clear();
    assert_eq!(
        t.unit.remove_device(handle(0), &mut t.host),
        Ok(Progress::Done)
    );
    assert_eq!((t.unit.bindings(), t.host.actual.len()), (0, 0));
}

#[test]
fn a_removal_amid_a_pass_ends_the_pass_s_work_for_the_device() {
    let mut t = Bench::scalable();
    for pasid in 0..10 {
        t.entry(D0, pasid, first_stage(7, 0x20_0000));
    }
    t.host.waits = 1;
    t.enqueue(&[[0x37, 0, 0, 0]]);
    for _ in 0..4 {
        let _ = t.unit.poll(&mut t.host, 100);
    }
    assert!(!t.host.actual.is_empty());
    t.host.waits = 0;
    assert_eq!(
        t.unit.remove_device(handle(0), &mut t.host),
        Ok(Progress::Done)
    );
    t.run();
    assert_eq!((t.unit.bindings(), t.host.actual.len()), (0, 0));
    assert_eq!(t.unit.read(IQH, 8), 32);
}

#[test]
fn devices_are_told_apart() {
    let mut t = Bench::new();
    t.assign(0, D0);
    let kind = ASSIGNED;
    let add =
        |t: &mut Bench, index, source_id| t.unit.add_device(handle(index), sid(source_id), kind);
    assert_eq!(add(&mut t, 0, D1), Err(DeviceError::InUse(handle(0))));
    assert_eq!(add(&mut t, 1, D0), Err(DeviceError::SourceIdInUse(sid(D0))));
    assert_eq!(
        add(&mut t, 4, D1),
        Err(DeviceError::BeyondTable {
            handle: handle(4),
            capacity: 4
        })
    );
    assert_eq!(
        t.unit.set_source_id(handle(3), sid(1)),
        Err(DeviceError::Unknown(handle(3)))
    );
}

#[test]
fn a_device_gets_no_pasid_that_it_cannot_send() {
    // R14: the width of the device, below that of the unit.
    for (pasid_bits, expected) in [(0, 1), (3, 8), (6, 64), (20, 70)] {
        let mut t = Bench::scalable();
        t.context(D1, DirectoryOrder::LARGEST);
        for pasid in 0..70 {
            t.entry(D1, pasid, first_stage(7, 0x20_0000));
        }
        let kind = DeviceKind::Assigned { pasid_bits };
        t.unit.add_device(handle(1), sid(D1), kind).unwrap();
        t.invalidate_pasid(7, 8);
        t.invalidate_all();
        assert_eq!(t.host.actual.len(), expected, "{pasid_bits}");
    }
}

#[test]
fn a_new_source_id_leads_to_other_tables() {
    // R1: bus renumbering.
    let mut t = Bench::scalable();
    t.entry(D0, 5, first_stage(7, 0x20_0000));
    t.invalidate_all();
    t.context(0x0310, DirectoryOrder::LARGEST);
    t.entry(0x0310, 6, first_stage(8, 0x30_0000));
    t.unit.set_source_id(handle(0), sid(0x0310)).unwrap();
    t.run();
    assert_eq!(t.host.actual.keys().collect::<Vec<_>>(), [&(0, 6)]);
}

#[test]
fn reset_completes_whatever_fails() {
    // S36, R26: one operation fails, in turn; amid a pass; devices stay.
    for number in 0..6 {
        let mut t = Bench::scalable();
        for pasid in [0, 5, 6] {
            t.entry(D0, pasid, first_stage(7, 0x20_0000));
        }
        t.invalidate_all();
        t.forget();
        t.entry(D0, 5, first_stage(7, 0x30_0000));
        t.host.waits = 1;
        t.enqueue(&[[0x37, 0, 0, 0]]);
        let _ = t.unit.poll(&mut t.host, 100);
        t.host.fail.insert(number, BindError::Unit);
        t.unit.reset();
        for (offset, value) in [(GSTS, 0), (IQH, 0), (IQT, 0), (RTADDR, 0), (FSTS, 0)] {
            assert_eq!(t.unit.read(offset, 4), value);
        }
        t.run();
        for pasid in [5, 6] {
            assert_eq!(t.bound(0, pasid), Desired::Blocked);
        }
        assert!(matches!(
            t.bound(0, 0),
            Desired::Blocked | Desired::MachineMemory
        ));
        assert_eq!(t.take_fault(), None, "the guest has not failed");
        // Made good by what comes next.
        t.set_root(crate::arch::register::TranslationTableMode::Scalable);
        t.enable_translation();
        t.entry(D0, 6, PasidEntry::from_quadwords([0; 8]));
        t.disable_translation();
        assert_eq!(t.bound(0, 0), Desired::MachineMemory, "{number}");
        assert_eq!(t.unit.bindings(), 0, "{number}");
    }
}

#[test]
fn a_failed_translation_off_stays_blocked_until_looked_at_again() {
    let mut t = Bench::new();
    t.host.fail.insert(0, BindError::Unit);
    t.assign(0, D0);
    assert_eq!((t.bound(0, 0), t.take_fault()), (Desired::Blocked, None));
    t.unit.reconcile_device(handle(0)).unwrap();
    t.run();
    assert_eq!(t.bound(0, 0), Desired::MachineMemory);
}

#[test]
fn a_budget_of_nothing_does_nothing() {
    let mut t = Bench::new();
    t.unit.add_device(handle(0), sid(D0), ASSIGNED).unwrap();
    assert_eq!(t.unit.poll(&mut t.host, 0), Poll::Again);
    assert_eq!(t.host.operations(), 0);
}

#[test]
fn what_is_not_emulated_cannot_be_shown() {
    // R34, G28.
    let make = |change: fn(&mut Features)| {
        let mut features = Setup::default().features();
        change(&mut features);
        Unit::new(VirtualUnitConfig {
            features,
            fault_records: 4,
            hash_seed: 1,
        })
        .err()
    };
    assert_eq!(make(|_| {}), None);
    use CapabilityField as C;
    use ExtendedCapabilityField as E;
    type Change = fn(&mut Features);
    let cases: [(Change, ConfigError); 6] = [
        (|f| f.host_address_width = 53, ConfigError::AddressWidth(53)),
        (
            |f| f.capability = f.capability.with(C::FAULT_RECORD_COUNT, 40),
            ConfigError::FaultRecords(4),
        ),
        (
            |f| {
                f.extended = f
                    .extended
                    .with(E::INTERRUPT_REMAPPING, 1)
                    .with(E::INTERRUPT_REMAPPING_REQUIRED, 1)
            },
            ConfigError::NotEmulated { field: "IRREQ" },
        ),
        (
            |f| f.capability = f.capability.with(C::PROTECTED_LOW_MEMORY, 1),
            ConfigError::NotEmulated { field: "PLMR" },
        ),
        (
            |f| f.extended = f.extended.with(E::RID_PASID, 1),
            ConfigError::NotEmulated { field: "RPS" },
        ),
        (
            |f| f.capability = f.capability.with(C::DOMAIN_ID_WIDTH, 7),
            ConfigError::Capability(CapabilityError::DomainIdWidth { field: 7 }),
        ),
    ];
    for (change, expected) in cases {
        assert_eq!(make(change), Some(expected));
    }
}
