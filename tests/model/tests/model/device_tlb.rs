//! Translation requests, translated requests and device-TLBs (§4, §6.5.2.5, §6.5.2.6, Table 30).

use vtd_model::{
    CompletionStatus, DeviceTlbMode, DmaError, Initiator, ModelConfig, TranslationCompletion,
    Violation,
};
use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::ExtendedCapabilityField as Ecap;
use vtd_nest::arch::id::{Pasid, SourceId};
use vtd_nest::arch::register::{AddressType, FaultRecord, Register32, Register64, RequestType};
use vtd_nest::mem::Registers;

use crate::support::*;
use crate::walks::{AT, Binding, bind, clear, scalable_faults, set};

/// DTE of a context entry.
const DTE: u64 = 1 << 2;
/// EPTR.
const EPTR: u64 = 1 << 6;
/// Everything, as type 3 and type 8 say it.
const ALL: u64 = 0x7fff_ffff_ffff_f000;

fn server() -> Bench {
    Bench::new(ModelConfig::device_tlb_server(), Mode::Scalable)
}

/// A bench with PASIDs 5 and 0 bound, and ATS allowed.
fn bound(config: ModelConfig, binding: Binding) -> (Bench, crate::walks::Tables) {
    let bench = Bench::new(config, Mode::Scalable);
    let tables = bind(&bench, binding);
    set(&bench, tables.context, DTE);
    (bench, tables)
}

fn initiator(bench: &Bench, pasid: Option<Pasid>) -> Initiator<'_> {
    let initiator = bench.machine.unit.initiator(DEVICE);
    pasid.map_or(initiator, |pasid| initiator.with_pasid(pasid))
}

fn translate(bench: &Bench, pasid: Option<Pasid>, at: u64) -> TranslationCompletion {
    initiator(bench, pasid).translate(Iova::new(at), false)
}

/// The first record, which goes.
fn take_record(bench: &Bench) -> Option<FaultRecord> {
    let mut unit = bench.machine.unit.clone();
    let record = FaultRecord {
        low: unit.read64(Register64::fault_record_low(0x220, 0).unwrap()),
        high: unit.read64(Register64::fault_record_high(0x220, 0).unwrap()),
    };
    let register = Register32::fault_record_dword3(0x220, 0).unwrap();
    unit.write32(register, 1 << 31);
    record.is_valid().then_some(record)
}

/// What the device learns: the status, or the rights as R and W.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Learns {
    Ur,
    Ca,
    Rights(bool, bool),
}

fn learned(completion: &TranslationCompletion) -> Learns {
    match (completion.status, completion.data) {
        (CompletionStatus::Success, Some(data)) => Learns::Rights(data.read, data.write),
        (CompletionStatus::UnsupportedRequest, None) => Learns::Ur,
        (CompletionStatus::CompleterAbort, None) => Learns::Ca,
        other => panic!("data goes with success: {other:?}"),
    }
}

const NOTHING: Learns = Learns::Rights(false, false);

fn device_tlb(device: SourceId, address: u64, sized: bool) -> [u64; 2] {
    let (number, function) = (u64::from(device.as_u16()), pfsid(device));
    [3 | number << 32 | function, address | u64::from(sized)]
}

fn pasid_device_tlb(
    device: SourceId,
    pasid: u32,
    address: u64,
    sized: bool,
    global: bool,
) -> [u64; 2] {
    let (number, function) = (u64::from(device.as_u16()), pfsid(device));
    [
        8 | number << 16 | u64::from(pasid) << 32 | function,
        address | u64::from(sized) << 11 | u64::from(global),
    ]
}

/// PFSID in both descriptors.
fn pfsid(device: SourceId) -> u64 {
    let number = u64::from(device.as_u16());
    (number & 0xf) << 12 | number >> 4 << 52
}

#[test]
fn translation_requests_meet_the_faults_of_table_30() {
    let config = ModelConfig::nesting_server().with_extended(Ecap::DEVICE_TLB, 1);
    for (code, name, binding, change) in scalable_faults() {
        if *name == "DTE without DT" {
            continue;
        }
        let expected = match code {
            0x39 | 0x41 | 0x44..=0x46 | 0x48 | 0x89 => Learns::Ur,
            0x38 | 0x3a | 0x40 | 0x42 | 0x43 | 0x50 | 0x52 | 0x58 | 0x5a | 0x5b => Learns::Ca,
            0x78 | 0x7a | 0x7b..=0x7d | 0x87 => Learns::Ca,
            0x51 | 0x59 | 0x5c | 0x5d | 0x70..=0x77 | 0x79 | 0x80 | 0x81 | 0x84 => NOTHING,
            // What rights there are: here, W.
            0x86 => Learns::Rights(false, true),
            _ => panic!("{code:#x} has no row"),
        };
        for no_write in [false, true] {
            let (bench, tables) = bound(config.clone(), *binding);
            change(&bench, &tables);
            let completion = initiator(&bench, pasid(5)).translate(Iova::new(AT), no_write);
            assert_eq!(learned(&completion), expected, "{name}");
            let is_fault = matches!(expected, Learns::Ur | Learns::Ca);
            if *code != 0x86 {
                assert_eq!(completion.reason.map(|r| r.code()), Some(*code), "{name}");
            }
            let record = take_record(&bench);
            assert_eq!(record.is_some(), is_fault, "{name}");
            if let Some(record) = record {
                let info = record.info();
                assert_eq!(
                    (info.reason, info.address_type, info.request, info.pasid),
                    (
                        *code,
                        AddressType::TranslationRequest,
                        RequestType::Read,
                        pasid(5)
                    ),
                    "{name}"
                );
            }
            let unit = &bench.machine.unit;
            assert_eq!(
                unit.is_ats_enabled(DEVICE),
                expected != Learns::Ur,
                "{name}"
            );
            let is_held = matches!(expected, Learns::Rights(_, true));
            assert_eq!(
                unit.device_tlb(DEVICE).len(),
                usize::from(is_held),
                "{name}"
            );
            unit.assert_no_violations();
        }
    }
}

#[test]
fn translated_requests_meet_the_faults_of_root_and_context_tables_only() {
    let config = ModelConfig::nesting_server().with_extended(Ecap::DEVICE_TLB, 1);
    for (code, name, binding, change) in scalable_faults() {
        if *name == "DTE without DT" {
            continue;
        }
        let (bench, tables) = bound(config.clone(), *binding);
        let page = bench.data_page(0x77);
        change(&bench, &tables);
        let mut word = [0; 8];
        let outcome = initiator(&bench, None).read_translated(Hpa::new(page), &mut word);
        let found = outcome.err().and_then(|error| error.code());
        let expected = Some(*code).filter(|code| *code <= 0x43);
        assert_eq!(found, expected, "{name}");
        let info = take_record(&bench).map(|record| record.info());
        assert_eq!(info.map(|info| info.reason), expected, "{name}");
        if let Some(info) = info {
            assert_eq!(info.address_type, AddressType::Translated);
            assert_eq!((info.address.as_u64(), info.pasid), (page, None));
        }
    }
}

#[test]
fn the_context_entry_says_who_may_use_translated_addresses() {
    // PASID, DTE and EPTR; the codes for translation and for translated requests.
    let rows = [
        (None, 0, Some(0x44), Some(0x44)),
        (None, DTE, None, None),
        (pasid(5), 0, Some(0x44), Some(0x44)),
        (pasid(5), DTE, None, Some(0x49)),
        (pasid(5), DTE | EPTR, None, None),
        // RID_PASID, and beyond 16 bits of directory.
        (pasid(0), DTE | EPTR, Some(0x48), Some(0x48)),
        (pasid(0x1_0000), DTE | EPTR, Some(0x46), Some(0x46)),
    ];
    for (number, flags, translation, translated) in rows {
        let bench = server();
        let tables = bind(&bench, Binding::First);
        set(&bench, tables.context, flags);
        let completion = translate(&bench, number, AT);
        let what = format!("{number:?} {flags:#x}");
        assert_eq!(completion.reason.map(|r| r.code()), translation, "{what}");
        let page = bench.data_page(9);
        let write = initiator(&bench, number).write_translated(Hpa::new(page), &[1; 8]);
        assert_eq!(write.err().and_then(|e| e.code()), translated, "{what}");
        let old = initiator(&bench, number).fetch_add_translated(Hpa::new(page), 1);
        assert_eq!(old.err().and_then(|e| e.code()), translated, "{what}");
        if translated.is_none() {
            assert_eq!(bench.get(page), 0x0101_0101_0101_0102);
        } else {
            assert_eq!(bench.get(page), 9);
        }
        bench.machine.unit.assert_no_violations();
    }
}

#[test]
fn translated_requests_stay_below_the_host_width_and_out_of_the_interrupt_range() {
    for (mode, too_large, interrupt) in [(Mode::Scalable, 0x83, 0x87), (Mode::Legacy, 4, 0xe)] {
        let bench = Bench::new(ModelConfig::device_tlb_server(), mode);
        match mode {
            Mode::Scalable => set(&bench, bind(&bench, Binding::First).context, DTE),
            Mode::Legacy => bench.set_legacy_context(DEVICE, bench.page() | 1 << 2 | 1, 2 | 7 << 8),
        }
        let device = initiator(&bench, None);
        for (address, code) in [
            (1 << 46, Some(too_large)),
            (0xfee0_0000, Some(interrupt)),
            (0xfeef_fff8, Some(interrupt)),
            (0x20_0000, None),
        ] {
            let write = device.write_translated(Hpa::new(address), &[0; 4]);
            assert_eq!(write.err().and_then(|e| e.code()), code, "{address:#x}");
        }
        assert!(bench.machine.unit.take_interrupts().is_empty());
        bench.machine.unit.assert_no_violations();
    }
}

#[test]
fn units_that_do_not_take_such_requests_answer_without_a_fault() {
    type Prepare = fn(&Bench);
    let rows: &[(&str, ModelConfig, Prepare)] = &[
        ("no DT", ModelConfig::nesting_server(), |_| {}),
        ("TES=0", ModelConfig::device_tlb_server(), |bench| {
            bench.command(TE, false);
        }),
    ];
    for (name, config, prepare) in rows {
        let bench = Bench::new(config.clone(), Mode::Scalable);
        bind(&bench, Binding::First);
        prepare(&bench);
        assert_eq!(learned(&translate(&bench, None, AT)), Learns::Ur, "{name}");
        let device = initiator(&bench, None);
        let outcome = device.read_translated(Hpa::new(0x1000), &mut [0; 8]);
        assert_eq!(outcome, Err(DmaError::Unsupported), "{name}");
        assert!(take_record(&bench).is_none());
    }
    // A PASID in a translated request, without ECAP.PTRS.
    let config =
        ModelConfig::device_tlb_server().with_extended(Ecap::PASID_IN_TRANSLATED_REQUESTS, 0);
    let (bench, _) = bound(config, Binding::First);
    let outcome = initiator(&bench, pasid(5)).read_translated(Hpa::new(0x1000), &mut [0; 8]);
    assert_eq!(outcome, Err(DmaError::Unsupported));
    assert!(take_record(&bench).is_none());
}

#[test]
fn legacy_mode_allows_ats_by_translation_type_1_only() {
    /// Context entry and second-stage leaf.
    type LegacyChange = fn(&Bench, u64, u64);
    let rows: &[(&str, LegacyChange, Learns, Option<u8>)] = &[
        ("all", |_, _, _| {}, Learns::Rights(true, true), None),
        (
            "no W",
            |b, _, s| clear(b, s, 2),
            Learns::Rights(true, false),
            None,
        ),
        (
            "no R",
            |b, _, s| clear(b, s, 1),
            Learns::Rights(false, true),
            None,
        ),
        ("absent", |b, _, s| b.put(s, 0), NOTHING, None),
        (
            "root absent",
            |b, _, _| b.put(b.root, 0),
            Learns::Ur,
            Some(1),
        ),
        (
            "context absent",
            |b, c, _| clear(b, c, 1),
            Learns::Ur,
            Some(2),
        ),
        ("AW 0", |b, c, _| clear(b, c + 8, 7), Learns::Ca, Some(3)),
        ("TT 3", |b, c, _| set(b, c, 3 << 2), Learns::Ca, Some(3)),
        ("TT 0", |b, c, _| clear(b, c, 3 << 2), Learns::Ur, Some(0xd)),
        (
            "TT 2",
            |b, c, _| b.put(c, 2 << 2 | 1),
            Learns::Ur,
            Some(0xd),
        ),
        (
            "reserved",
            |b, c, _| set(b, c, 1 << 4),
            Learns::Ca,
            Some(0xb),
        ),
        ("leaf", |b, _, s| set(b, s, 1 << 62), Learns::Ca, Some(0xc)),
        (
            "interrupts",
            |b, _, s| b.put(s, 0xfee0_0003),
            Learns::Ca,
            Some(0xe),
        ),
    ];
    for (name, change, expected, code) in rows {
        let bench = Bench::new(ModelConfig::device_tlb_server(), Mode::Legacy);
        let second = bench.page();
        let leaf = bench.map_second(second, AT, bench.page());
        bench.set_legacy_context(DEVICE, second | 1 << 2 | 1, 2 | 7 << 8);
        change(&bench, bench.context_at(DEVICE), leaf);
        assert_eq!(learned(&translate(&bench, None, AT)), *expected, "{name}");
        let record = take_record(&bench);
        assert_eq!(record.map(|r| r.info().reason), *code, "{name}");
        // Of translated requests the root and context entries' faults are UR too.
        let page = bench.page();
        let outcome = initiator(&bench, None).read_translated(Hpa::new(page), &mut [0; 8]);
        let about_context = code.filter(|code| !matches!(code, 0xc | 0xe));
        assert_eq!(
            outcome.err().and_then(|e| e.code()),
            about_context,
            "{name}"
        );
        bench.machine.unit.assert_no_violations();
    }
    let bench = Bench::new(ModelConfig::device_tlb_server(), Mode::Legacy);
    bench.set_legacy_context(DEVICE, bench.page() | 1 << 2 | 1, 2 | 7 << 8);
    assert_eq!(learned(&translate(&bench, None, 1 << 48)), NOTHING);
    assert_eq!(learned(&translate(&bench, pasid(5), AT)), Learns::Ur);
    assert_eq!(take_record(&bench).map(|r| r.info().reason), Some(0x31));
}

#[test]
fn the_interrupt_range_takes_untranslated_requests_only() {
    for (has_flag, no_write, write) in [
        (true, false, true),
        (true, true, false),
        (false, true, true),
    ] {
        let config = ModelConfig::device_tlb_server()
            .with_extended(Ecap::NO_WRITE_FLAG, u64::from(has_flag));
        let (bench, _) = bound(config, Binding::First);
        let device = initiator(&bench, None);
        let data = device
            .translate(Iova::new(0xfee0_1000), no_write)
            .data
            .unwrap();
        assert_eq!(
            (
                data.read,
                data.write,
                data.untranslated_only,
                data.length_bytes
            ),
            (false, write, write, 4096)
        );
        // The device then sends its interrupt as it is.
        let message = 0x41u32.to_le_bytes();
        let device = device.through_device_tlb();
        device.write(Iova::new(0xfee0_1000), &message).unwrap();
        assert_eq!(bench.machine.unit.take_interrupts().len(), 1);
        // With PASID it is an address as any other.
        assert_eq!(learned(&translate(&bench, pasid(5), 0xfee0_1000)), NOTHING);
        bench.machine.unit.assert_no_violations();
    }
    // Before the context entry allows ATS, nothing is answered.
    let bench = server();
    bind(&bench, Binding::First);
    assert_eq!(learned(&translate(&bench, None, 0xfee0_1000)), Learns::Ur);
}

#[test]
fn completions_tell_address_size_rights_and_snooping() {
    let at = 0x12_3456_7000u64;
    type Fill = fn(&Bench, u64) -> [u64; 8];
    // What to bind, which block holds, where it lies, R, W and N.
    let rows: &[(&str, Fill, u64, u64, bool, bool)] = &[
        (
            "first stage, 4 KiB",
            |b, at| {
                let root = b.page();
                b.map_first(root, at, 0x20_1000);
                b.first_entry(7, root)
            },
            0x1000,
            0x20_1000,
            true,
            false,
        ),
        (
            "first stage, 2 MiB, read-only, PGSNP",
            |b, at| {
                let root = b.page();
                b.map(Map {
                    leaf_level: 2,
                    bits: 0x65,
                    ..Map::first(root, at, 0x40_0000)
                });
                let mut entry = b.first_entry(7, root);
                entry[1] |= 1 << 24;
                entry
            },
            0x20_0000,
            0x40_0000,
            false,
            true,
        ),
        (
            "second stage, 1 GiB, SNP",
            |b, at| {
                let root = b.page();
                b.map(Map {
                    leaf_level: 3,
                    bits: 3 | 1 << 11,
                    ..Map::second(root, at, 0x1_0000_0000)
                });
                b.second_entry(7, root)
            },
            0x4000_0000,
            0x1_0000_0000,
            true,
            true,
        ),
        (
            "nested, the smaller page counts",
            |b, at| {
                let second = b.page();
                for gigabyte in 0..4 {
                    b.map(Map {
                        leaf_level: 3,
                        ..Map::second(second, GUEST_OFFSET + (gigabyte << 30), gigabyte << 30)
                    });
                }
                let root = b.page() + GUEST_OFFSET;
                b.map(Map {
                    leaf_level: 2,
                    ..Map::guest_first(root, at, 0x8060_0000 + GUEST_OFFSET)
                });
                b.nested_entry(7, root, second)
            },
            0x20_0000,
            0x8060_0000,
            true,
            false,
        ),
        (
            "pass-through, the largest page of the unit",
            |b, _| b.pass_through_entry(7),
            0x4000_0000,
            at & !0x3fff_ffff,
            true,
            false,
        ),
    ];
    for (name, fill, length, host, writable, non_snooped) in rows {
        let bench = server();
        let entry = fill(&bench, at);
        bench.set_pasid(DEVICE, 5, entry);
        set(&bench, bench.context_at(DEVICE), DTE);
        // From the tables, and then from the IOTLB.
        for round in 0..2 {
            let data = translate(&bench, pasid(5), at | 0x234).data.unwrap();
            assert_eq!(
                (data.first.as_u64(), data.length_bytes, data.host.as_u64()),
                (at & !(length - 1), *length, *host),
                "{name}, round {round}"
            );
            assert_eq!(
                (data.read, data.write, data.non_snooped, data.privileged),
                (true, *writable, *non_snooped, false),
                "{name}, round {round}"
            );
        }
        // NW=1: never W.
        let completion = initiator(&bench, pasid(5)).translate(Iova::new(at), true);
        assert_eq!(learned(&completion), Learns::Rights(true, false), "{name}");
        bench.machine.unit.assert_no_violations();
    }
}

#[test]
fn pass_through_leaves_the_interrupt_range_out() {
    let (bench, _) = bound(ModelConfig::device_tlb_server(), Binding::PassThrough);
    for (at, first, length) in [
        (0xc000_0000u64, 0xc000_0000u64, 0x20_0000),
        (0xfec0_0000, 0xfec0_0000, 0x20_0000),
        (0xfee0_0000 - 0x1000, 0xfec0_0000, 0x20_0000),
        (0xfef0_1000, 0xfef0_1000, 0x1000),
        (0xff00_0000, 0xff00_0000, 0x20_0000),
        (0x1_0000_0000, 0x1_0000_0000, 0x4000_0000),
    ] {
        let data = translate(&bench, None, at).data.unwrap();
        assert_eq!(
            (data.first.as_u64(), data.length_bytes),
            (first, length),
            "{at:#x}"
        );
    }
    assert_eq!(learned(&translate(&bench, None, 1 << 46)), NOTHING);
    // A page that covers the range is an error of the tables.
    let (bench, tables) = bound(ModelConfig::device_tlb_server(), Binding::Second);
    bench.put(tables.second[2], 0xfee0_0000 | 1 << 7 | 3);
    let completion = translate(&bench, pasid(5), AT);
    assert_eq!(learned(&completion), Learns::Ca);
    assert_eq!(completion.reason.map(|r| r.code()), Some(0x87));
}

#[test]
fn supervisor_translations_need_sre_and_say_so() {
    for (sre, rights) in [(true, Learns::Rights(true, true)), (false, NOTHING)] {
        let (bench, tables) = bound(ModelConfig::device_tlb_server(), Binding::First);
        set(&bench, tables.pasid + 16, u64::from(sre));
        clear(&bench, tables.first[2], 4);
        let user = translate(&bench, pasid(5), AT);
        assert_eq!(learned(&user), NOTHING, "U/S=0");
        assert!(!user.data.unwrap().privileged);
        let supervisor = initiator(&bench, pasid(5)).privileged();
        let completion = supervisor.translate(Iova::new(AT), false);
        assert_eq!(learned(&completion), rights);
        assert!(completion.data.unwrap().privileged);
        let reason = completion.reason.map(|r| r.code());
        assert_eq!(reason, (!sre).then_some(0x5d));
        // The rights of one are not those of the other.
        let mut word = [0; 8];
        let read = supervisor
            .through_device_tlb()
            .read(Iova::new(AT), &mut word);
        assert_eq!(read.is_ok(), sre);
        let device = initiator(&bench, pasid(5)).through_device_tlb();
        assert_eq!(
            device.read(Iova::new(AT), &mut word),
            Err(DmaError::Recoverable)
        );
        assert!(take_record(&bench).is_none());
        bench.machine.unit.assert_no_violations();
    }
    // RID_PRIV makes requests without PASID supervisor ones; PRIV stays 0.
    let config = ModelConfig::device_tlb_server().with_extended(Ecap::RID_PRIV, 1);
    let bench = Bench::new(config, Mode::Scalable);
    let tables = bind(&bench, Binding::First);
    set(&bench, tables.context, DTE);
    set(&bench, tables.context + 8, 1 << 20);
    set(&bench, bench.pasid_at(DEVICE, 0) + 16, 1);
    clear(&bench, tables.first[3], 4);
    for _ in 0..2 {
        let data = translate(&bench, None, AT).data.unwrap();
        assert_eq!(
            (data.read, data.write, data.privileged),
            (true, true, false)
        );
    }
}

#[test]
fn execute_requests_get_nothing_or_ur_by_major_version() {
    for (version, code, expected) in [(0x50, 0x5c, NOTHING), (0x80, 0x34, Learns::Ur)] {
        let mut config = ModelConfig::device_tlb_server();
        config.version = version;
        let (bench, _) = bound(config, Binding::First);
        let completion = initiator(&bench, pasid(5))
            .executing()
            .translate(Iova::new(AT), true);
        assert_eq!(learned(&completion), expected);
        assert_eq!(completion.reason.map(|r| r.code()), Some(code));
        let info = take_record(&bench).map(|record| record.info());
        assert_eq!(info.is_some(), expected == Learns::Ur);
        assert!(info.is_none_or(|info| info.execute && info.pasid == pasid(5)));
    }
}

#[test]
fn a_writable_translation_dirties_the_page_before_any_write() {
    for (has_flag, no_write, dirty) in [
        (true, false, true),
        (true, true, false),
        (false, true, true),
    ] {
        let config = ModelConfig::device_tlb_server()
            .with_extended(Ecap::NO_WRITE_FLAG, u64::from(has_flag));
        let (bench, tables) = bound(config, Binding::First);
        clear(&bench, tables.first[3], 1 << 5 | 1 << 6);
        initiator(&bench, pasid(5)).translate(Iova::new(AT), no_write);
        let entry = bench.get(tables.first[3]);
        assert_eq!((entry >> 5 & 1, entry >> 6 & 1), (1, u64::from(dirty)));
        // What the IOTLB holds as clean is not enough for W.
        translate(&bench, pasid(5), AT);
        assert_eq!(bench.get(tables.first[3]) >> 6 & 1, 1);
        // Nor is a page made dirty that may not be written.
        let (bench, tables) = bound(ModelConfig::device_tlb_server(), Binding::First);
        clear(&bench, tables.first[3], 1 << 1 | 1 << 5 | 1 << 6);
        let completion = translate(&bench, pasid(5), AT);
        assert_eq!(learned(&completion), Learns::Rights(true, false));
        assert_eq!(bench.get(tables.first[3]) >> 5 & 3, 1);
    }
}

#[test]
fn a_failed_update_grants_nothing_and_is_recorded() {
    let (bench, tables) = bound(ModelConfig::device_tlb_server(), Binding::Nested);
    clear(&bench, tables.first[3], 1 << 5);
    let (leaf, last) = (Hpa::new(tables.first[3]), Hpa::new(tables.second[3]));
    // The entry can be read; when its page is looked up, it can be accessed no more.
    bench.machine.memory.set_fetch_hook(move |memory, fetch| {
        if fetch.address == last {
            memory.poison(leaf, 8);
        }
    });
    let completion = translate(&bench, pasid(5), AT);
    assert_eq!(learned(&completion), NOTHING);
    let info = take_record(&bench).map(|record| record.info());
    let recorded = info.map(|info| (info.reason, info.address_type));
    assert_eq!(recorded, Some((0x91, AddressType::TranslationRequest)));
    assert!(bench.machine.unit.is_ats_enabled(DEVICE));
}

#[test]
fn devices_hold_translations_until_a_covering_invalidation() {
    let bench = server();
    let root = bench.page();
    // 2 MiB, and a page of its own.
    let (large, small) = (0x4020_0000u64, 0x8000_1000u64);
    bench.map(Map {
        leaf_level: 2,
        ..Map::first(root, large, 0x80_0000)
    });
    let leaf = bench.map_first(root, small, bench.data_page(1));
    for number in [0, 5, 6] {
        bench.set_pasid(DEVICE, number, bench.first_entry(7, root));
    }
    set(&bench, bench.context_at(DEVICE), DTE);
    let unit = &bench.machine.unit;
    let fill = || {
        for number in [None, pasid(5), pasid(6)] {
            translate(&bench, number, large);
            translate(&bench, number, small);
        }
        assert_eq!(unit.device_tlb(DEVICE).len(), 6);
    };
    // Which translations go: small and large of no PASID, of 5 and of 6.
    let rows: &[(&str, [u64; 2], [bool; 6])] = &[
        (
            "one page",
            device_tlb(DEVICE, small, false),
            [true, false, false, false, false, false],
        ),
        (
            "two pages",
            device_tlb(DEVICE, small & !0x1000, true),
            [true, false, false, false, false, false],
        ),
        (
            "another page",
            device_tlb(DEVICE, small + 0x1000, false),
            [false; 6],
        ),
        ("another device", device_tlb(OTHER, ALL, true), [false; 6]),
        (
            "a page of the large one",
            device_tlb(DEVICE, large + 0x5000, false),
            [false, true, false, false, false, false],
        ),
        ("everything", device_tlb(DEVICE, ALL, true), [true; 6]),
        (
            "a page of PASID 5",
            pasid_device_tlb(DEVICE, 5, small, false, false),
            [false, false, true, false, false, false],
        ),
        (
            "all of PASID 5",
            pasid_device_tlb(DEVICE, 5, ALL, true, false),
            [false, false, true, true, false, false],
        ),
        (
            "a page of every PASID",
            pasid_device_tlb(DEVICE, 5, small, false, true),
            [false, false, true, false, true, false],
        ),
        (
            "all of every PASID",
            pasid_device_tlb(DEVICE, 0, ALL, true, true),
            [false, false, true, true, true, true],
        ),
    ];
    for (name, descriptor, gone) in rows {
        fill();
        assert!(bench.submit(&[*descriptor]), "{name}");
        let held = unit.device_tlb(DEVICE);
        let holds = |number: Option<Pasid>, at: u64| {
            held.iter().any(|entry| {
                entry.pasid == number && entry.first.as_u64() <= at && entry.last.as_u64() >= at
            })
        };
        let found: Vec<bool> = [None, pasid(5), pasid(6)]
            .into_iter()
            .flat_map(|number| [!holds(number, small), !holds(number, large + 0x5000)])
            .collect();
        assert_eq!(found, gone, "{name}");
        // Beside the page that went, the large one is still there, at its place.
        if *name == "a page of the large one" {
            for at in [large, large + 0x4fff, large + 0x6000, large + 0x1f_ffff] {
                let entry = held
                    .iter()
                    .find(|entry| {
                        entry.pasid.is_none()
                            && entry.first.as_u64() <= at
                            && entry.last.as_u64() >= at
                    })
                    .unwrap();
                let host = entry.host.as_u64() + (at - entry.first.as_u64());
                assert_eq!(host, 0x80_0000 + (at - large));
            }
        }
        assert!(bench.submit(&[device_tlb(DEVICE, ALL, true)]));
        assert!(unit.device_tlb(DEVICE).is_empty());
    }
    // What the tables say now is not what the device holds.
    fill();
    let device = initiator(&bench, pasid(5)).through_device_tlb();
    bench.put(leaf, bench.data_page(2) | 0x67);
    let read = || {
        let mut word = [0; 8];
        device.read(Iova::new(small), &mut word).map(|()| word[0])
    };
    assert_eq!(read(), Ok(1));
    assert!(bench.submit(&[pasid_iotlb_page(7, 5, small, 0, true)]));
    assert_eq!(read(), Ok(1), "the device asks nobody");
    assert!(bench.submit(&[pasid_device_tlb(DEVICE, 5, small, false, false)]));
    assert_eq!(read(), Ok(2));
    unit.assert_no_violations();
}

#[test]
fn the_units_caches_go_before_the_devices() {
    // In which order the two invalidations are sent, and what the device reads then.
    for (device_first, value) in [(false, 2), (true, 1)] {
        let bench = server();
        let root = bench.page();
        let leaf = bench.map_first(root, AT, bench.data_page(1));
        bench.set_pasid(DEVICE, 5, bench.first_entry(7, root));
        set(&bench, bench.context_at(DEVICE), DTE);
        let unit = &bench.machine.unit;
        unit.set_device_tlb_mode(DEVICE, DeviceTlbMode::Refilling);
        translate(&bench, pasid(5), AT);
        bench.put(leaf, bench.data_page(2) | 0x67);
        let mut descriptors = [
            pasid_iotlb_page(7, 5, AT, 0, true),
            pasid_device_tlb(DEVICE, 5, AT, false, false),
        ];
        if device_first {
            descriptors.reverse();
        }
        assert!(bench.submit(&descriptors));
        let mut word = [0; 8];
        let device = initiator(&bench, pasid(5)).through_device_tlb();
        device.read(Iova::new(AT), &mut word).unwrap();
        assert_eq!(word[0], value, "device first: {device_first}");
    }
}

#[test]
fn devices_may_lie_and_may_keep_nothing() {
    let (bench, _) = bound(ModelConfig::device_tlb_server(), Binding::First);
    let unit = &bench.machine.unit;
    unit.set_device_tlb_mode(DEVICE, DeviceTlbMode::KeepsInvalidated);
    translate(&bench, pasid(5), AT);
    assert!(bench.submit(&[pasid_device_tlb(DEVICE, 5, ALL, true, true)]));
    assert_eq!(unit.device_tlb(DEVICE).len(), 1, "it says it is done");
    unit.set_device_tlb_mode(DEVICE, DeviceTlbMode::None);
    translate(&bench, pasid(5), AT);
    assert!(unit.device_tlb(DEVICE).is_empty());
    // It may also go to any host address, as long as ATS is allowed to it.
    let page = bench.data_page(0x5ec4e7);
    let mut word = [0; 8];
    let device = initiator(&bench, None);
    device.read_translated(Hpa::new(page), &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), 0x5ec4e7);
    clear(&bench, bench.context_at(DEVICE), DTE);
    assert!(bench.submit(&[context_device(DEVICE, 0)]));
    assert!(device.read_translated(Hpa::new(page), &mut word).is_err());
    unit.assert_no_violations();
}

#[test]
fn accesses_go_by_the_device_tlb_and_recover_or_fall_back() {
    let (bench, tables) = bound(ModelConfig::device_tlb_server(), Binding::First);
    let unit = &bench.machine.unit;
    let device = initiator(&bench, pasid(5)).through_device_tlb();
    let at = Iova::new(AT);
    let mut word = [0; 8];
    device.read(at, &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), 0xda7a);
    // The read asked with NW; the write asks again, then both are there.
    assert_eq!(unit.device_tlb(DEVICE).len(), 1);
    device.write(at, &7u64.to_le_bytes()).unwrap();
    assert_eq!(unit.device_tlb(DEVICE).len(), 2);
    assert_eq!(device.fetch_add(at, 3), Ok(7));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(10));
    // Translated requests of a device that sends PASIDs need EPTR.
    unit.set_translated_pasid(DEVICE, true);
    let code = device.read(at, &mut word).err().and_then(|e| e.code());
    assert_eq!(code, Some(0x49));
    take_record(&bench);
    unit.set_translated_pasid(DEVICE, false);
    // A page that is not there is no fault of the unit's.
    let absent = Iova::new(AT + 0x1000);
    assert_eq!(device.read(absent, &mut word), Err(DmaError::Recoverable));
    // Neither is what has become read-only, as long as the entry for writes is gone.
    clear(&bench, tables.first[3], 2);
    assert!(bench.submit(&[IOTLB_GLOBAL, device_tlb(DEVICE, ALL, true)]));
    assert_eq!(device.write(at, &word), Err(DmaError::Recoverable));
    assert_eq!(device.fetch_add(at, 1), Err(DmaError::Recoverable));
    device.read(at, &mut word).unwrap();
    assert!(take_record(&bench).is_none());
    // An error in the tables ends it without ATS being switched off, a refusal switches it off.
    set(&bench, tables.pasid, 1 << 5);
    assert!(bench.submit(&[PASID_CACHE_GLOBAL, IOTLB_GLOBAL]));
    let failed = DmaError::TranslationFailed(CompletionStatus::CompleterAbort);
    assert_eq!(device.read(absent, &mut word), Err(failed));
    assert!(unit.is_ats_enabled(DEVICE));
    clear(&bench, tables.pasid, 1 << 5);
    clear(&bench, tables.context, DTE);
    assert!(bench.submit(&[CONTEXT_GLOBAL, PASID_CACHE_GLOBAL, IOTLB_GLOBAL]));
    let refused = DmaError::TranslationFailed(CompletionStatus::UnsupportedRequest);
    assert_eq!(device.read(absent, &mut word), Err(refused));
    assert!(!unit.is_ats_enabled(DEVICE));
    // From now on its requests are untranslated.
    device.read(at, &mut word).unwrap();
    unit.set_ats_enabled(DEVICE, true);
    let code = device.read(at, &mut word).err().and_then(|e| e.code());
    assert_eq!(code, Some(0x44), "what it held before is refused");
    unit.assert_no_violations();
}

#[test]
fn a_silenced_context_entry_silences_ats_faults() {
    let bench = server();
    let tables = bind(&bench, Binding::First);
    set(&bench, tables.context, 2);
    assert_eq!(learned(&translate(&bench, None, AT)), Learns::Ur);
    let outcome = initiator(&bench, None).read_translated(Hpa::new(0x1000), &mut [0; 8]);
    assert_eq!(outcome.err().and_then(|e| e.code()), Some(0x44));
    assert!(take_record(&bench).is_none(), "FPD");
}

#[test]
fn descriptors_name_the_physical_function_where_invalidations_are_throttled() {
    let physical = SourceId::from_u16(0x1234);
    for (throttles, names, expected) in [
        (true, OTHER, Some(OTHER)),
        (true, physical, Some(physical)),
        (true, DEVICE, None),
        (false, SourceId::from_u16(0), None),
    ] {
        let config = ModelConfig::device_tlb_server()
            .with_extended(Ecap::DEVICE_TLB_THROTTLING, u64::from(throttles));
        let bench = Bench::new(config, Mode::Scalable);
        let unit = &bench.machine.unit;
        let number = u64::from(DEVICE.as_u16());
        // MIP 0 to 31.
        let descriptors = [
            [3 | 31 << 16 | number << 32 | pfsid(names), ALL | 1],
            [
                8 | 31 << 4 | number << 16 | 5 << 32 | pfsid(names),
                ALL | 1 << 11,
            ],
        ];
        assert!(bench.submit(&descriptors));
        let differs = expected.map(|given| Violation::PhysicalFunctionDiffers {
            source_id: DEVICE,
            wanted: DEVICE,
            given,
        });
        let wanted: Vec<Violation> = differs.into_iter().chain(differs).collect();
        assert_eq!(unit.take_violations(), wanted);
        unit.set_physical_function(DEVICE, physical);
        assert!(bench.submit(&descriptors));
        let is_right = !throttles || names == physical;
        assert_eq!(unit.take_violations().is_empty(), is_right);
    }
}

#[test]
fn host_permission_tables_are_reported_as_missing() {
    let config = ModelConfig::device_tlb_server().with_extended(Ecap::HOST_PERMISSION_TABLES, 1);
    let (bench, tables) = bound(config, Binding::First);
    set(&bench, tables.context, 1 << 5);
    let page = bench.data_page(1);
    let mut word = [0; 8];
    initiator(&bench, None)
        .read_translated(Hpa::new(page), &mut word)
        .unwrap();
    assert_eq!(
        bench.machine.unit.take_violations(),
        [Violation::NotModelled("host permission tables")]
    );
}

#[test]
fn write_only_pages_take_writes_only() {
    let (bench, tables) = bound(ModelConfig::device_tlb_server(), Binding::Second);
    clear(&bench, tables.second[3], 1);
    let data = translate(&bench, pasid(5), AT).data.unwrap();
    assert_eq!((data.read, data.write), (false, true));
    let device = initiator(&bench, pasid(5)).through_device_tlb();
    let at = Iova::new(AT);
    assert_eq!(device.read(at, &mut [0]), Err(DmaError::Recoverable));
    device.write(at, &[1]).unwrap();
}
