//! The invalidation queue and the registers of the guest's unit (S51 to S58).

use vtd_nest::arch::capability::ExtendedCapabilityField;
use vtd_nest::arch::descriptor::{
    ContextGranularity, Descriptor, IotlbGranularity, PasidIotlbGranularity,
};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::{DomainId, Pasid};
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::arch::register::{
    DescriptorWidth, FaultStatus, GlobalCommand, Register32, Register64, TranslationTableMode,
};
use vtd_nest::nest::Policy;

use crate::bench::{Access, Hold};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, Event, Guest, GuestOptions, IOVA, OUTSIDE, Place, pasid_cache};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S51 R7 R8",
        "a reserved bit in a descriptor stops the queue at it",
        s51,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S51 G9",
        "a tail or a queue that cannot be stops the queue",
        s51_bad_queue,
    ),
    scenario(
        "S52 R7",
        "a queue of 128-bit descriptors takes no type that has none",
        s52,
    ),
    scenario(
        "S52",
        "descriptor width and table mode have to go together",
        s52_width,
    )
    .needs(&[Need::ScalableMode]),
    scenario("S53", "a wait writes its data and raises its event", s53),
    scenario(
        "S53 G33",
        "a wait waits for hardware; one that does nothing is a barrier",
        s53_barrier,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S53 G10",
        "a wait whose status is not in the machine's memory writes nowhere",
        s53_outside,
    ),
    scenario(
        "S54",
        "a queue that stands goes on at its head once the error is cleared",
        s54,
    ),
    scenario(
        "S55",
        "a tail set before the queue is enabled is processed",
        s55,
    ),
    scenario(
        "S56 G37",
        "every access to the register page reads the same bytes",
        s56_reads,
    ),
    scenario(
        "S56 G37",
        "every register keeps what can be written and nothing else",
        s56_registers,
    ),
    scenario(
        "S56 G9 G37",
        "writes of any width anywhere leave a unit that works",
        s56_writes,
    ),
    scenario(
        "S57",
        "faults of one device are compressed, those of another overflow",
        s57,
    ),
    scenario("S57", "several records are filled in turn", s57_records),
    scenario(
        "S58 R25",
        "an entry that disables fault processing silences qualified faults",
        s58,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S58",
        "a legacy context entry that disables fault processing silences its faults",
        s58_legacy,
    ),
];

/// IQEI: 1 tail, 2 fetch, 3 type, 4 reserved bit, 5 width, 6 alignment, 7 table mode (§11.4.9.9).
const TAIL: u64 = 1;
const FETCH: u64 = 2;
const TYPE: u64 = 3;
const RESERVED: u64 = 4;
const WIDTH: u64 = 5;
const ALIGNMENT: u64 = 6;
const TABLE_MODE: u64 = 7;

/// Where waits of this file write.
const STATUS: u64 = 0x4000;
/// What is there before.
const SENTINEL: u64 = 0x5e5e_5e5e_5e5e_5e5e;

/// Wait descriptor: `IF`, `SW`, `FN` and `PD` in q0.
const WAIT: u64 = 5;
const IF: u64 = 1 << 4;
const SW: u64 = 1 << 5;
const FN: u64 = 1 << 6;
const PD: u64 = 1 << 7;

/// A wait that writes data at [`STATUS`] plus an offset.
fn wait(flags: u64, data: u32, offset: u64) -> [u64; 4] {
    [WAIT | flags | u64::from(data) << 32, STATUS + offset, 0, 0]
}

/// A guest without tables, with a queue of this width, in legacy mode as after a reset.
fn with_queue_only(place: Place<'_>, width: DescriptorWidth) -> Guest {
    let mut guest = place.guest_with(GuestOptions {
        brought_up: false,
        ..GuestOptions::default()
    });
    guest.enable_queue(width);
    guest
}

/// Lets the hypervisor work a while, whether it comes to rest or not.
fn work_a_while(guest: &mut Guest) {
    let lab = guest.lab.clone();
    for _ in 0..50 {
        let budget = guest.budget;
        let _ = guest.vm.poll(&*lab.hypervisor, &lab.units, budget);
        lab.hypervisor.pass(1_000);
    }
}

/// A descriptor's name, its quadwords, and reserved bits of it by quadword and bit.
type Reserved<'a> = (&'a str, [u64; 4], &'a [(usize, u32)]);

/// Descriptors that are wrong in one way each, and why the queue stops.
fn bad_descriptors(guest: &Guest) -> Vec<(String, [u64; 4], u64)> {
    let extended = guest.vm.offer().features.extended;
    let has = |field| extended.field(field) != 0;
    let pasid = Pasid::new(guest.pasid).expect("20 bits");
    let domain_id = DomainId::new(7);
    let words = |descriptor: Descriptor| descriptor.encode().words();
    let pasid_cache = pasid_cache(7, guest.pasid).encode().words();
    let pasid_iotlb = words(Descriptor::PasidIotlb {
        domain_id,
        pasid,
        granularity: PasidIotlbGranularity::All,
    });
    let context = words(Descriptor::ContextCache {
        granularity: ContextGranularity::Device {
            source_id: D0,
            function_mask: 0,
            domain_id,
        },
    });
    let iotlb = words(Descriptor::Iotlb {
        granularity: IotlbGranularity::Domain(domain_id),
        drain_reads: true,
        drain_writes: true,
    });
    let wait = wait(SW, 0xbad, 0);
    // Lowest and highest bit of each reserved field, by quadword (§6.5.2).
    let mut reserved: Vec<Reserved<'_>> = vec![
        (
            "PASID cache",
            pasid_cache,
            &[
                (0, 6),
                (0, 8),
                (0, 12),
                (0, 15),
                (0, 52),
                (0, 63),
                (1, 0),
                (1, 63),
            ],
        ),
        (
            "PASID IOTLB",
            pasid_iotlb,
            &[(0, 6), (0, 12), (0, 52), (0, 63), (1, 7), (1, 11)],
        ),
        (
            "context cache",
            context,
            &[(0, 6), (0, 12), (0, 50), (0, 63), (1, 0), (1, 63)],
        ),
        ("IOTLB", iotlb, &[(0, 8), (0, 12), (0, 32), (1, 7), (1, 11)]),
        (
            "wait",
            wait,
            &[(0, 8), (0, 12), (0, 15), (0, 16), (0, 31), (1, 0), (1, 1)],
        ),
    ];
    let interrupt_entry_cache = [4, 0, 0, 0];
    let interrupts = has(ExtendedCapabilityField::INTERRUPT_REMAPPING);
    if interrupts {
        reserved.push((
            "interrupt entry cache",
            interrupt_entry_cache,
            &[(0, 5), (0, 8), (0, 26), (0, 48), (1, 0), (1, 63)],
        ));
    }
    let mut bad = Vec::new();
    for (name, words, bits) in reserved {
        for &(quadword, bit) in bits.iter().chain(&[(2, 0), (3, 63)]) {
            let mut words = words;
            words[quadword] |= 1 << bit;
            bad.push((format!("{name}, bit {bit} of {quadword}"), words, RESERVED));
        }
        // Bits 11:9 are part of the type.
        let mut words = words;
        words[0] |= 1 << 9;
        bad.push((format!("{name}, high type bit"), words, TYPE));
    }
    let plain = |q0: u64| [q0, 0, 0, 0];
    for (name, words) in [
        ("PASID cache, granularity 2", plain(0x27)),
        ("PASID IOTLB, granularity 0", plain(0x06)),
        ("PASID IOTLB, granularity 1", plain(0x16)),
        ("context cache, granularity 0", plain(0x01)),
        ("IOTLB, granularity 0", plain(0x02)),
        ("IOTLB, mask beyond MAMV", [0x32 | 7 << 16, 19, 0, 0]),
    ] {
        bad.push((name.into(), words, RESERVED));
    }
    if !has(ExtendedCapabilityField::PAGE_REQUEST_DRAIN) {
        let mut words = wait;
        words[0] |= PD;
        bad.push(("wait, PD without PDS".into(), words, RESERVED));
    }
    // Undefined types, and those of features that are not shown.
    let device_tlb = has(ExtendedCapabilityField::DEVICE_TLB);
    for (name, words, shown) in [
        ("type 0", plain(0), false),
        ("type B", plain(0xb), false),
        ("type F", plain(0xf), false),
        ("interrupt entry cache", interrupt_entry_cache, interrupts),
        ("device-TLB", plain(3), device_tlb),
        ("PASID device-TLB", plain(8), device_tlb),
        (
            "page group response",
            plain(9),
            has(ExtendedCapabilityField::PAGE_REQUESTS),
        ),
    ] {
        if !shown {
            bad.push((name.into(), words, TYPE));
        }
    }
    bad
}

fn s51(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = guest.bound();
    guest.program_events();
    for (index, (name, words, error)) in bad_descriptors(&guest).into_iter().enumerate() {
        let masked = index % 2 == 1;
        guest.mask_event(Event::Fault, masked);
        let before = guest.push_wait();
        let bad_at = guest.tail();
        guest.push_words(words);
        let after = guest.push_wait();
        guest.ring();
        assert_eq!(guest.queue_error(), Some(error), "{name}");
        assert_eq!(guest.head(), bad_at, "{name}: at the bad one");
        assert_eq!(
            guest.wait_status(),
            before,
            "{name}: what was before is done"
        );
        if masked {
            assert!(guest.is_event_pending(Event::Fault), "{name}");
            assert_eq!(guest.take_events(), [], "{name}: held back");
            guest.mask_event(Event::Fault, false);
        }
        assert_eq!(guest.take_events(), [Event::Fault], "{name}");
        assert!(!guest.is_event_pending(Event::Fault), "{name}");
        // As Linux does: the bad one is overwritten with a harmless one.
        let tail = guest.tail();
        guest.set_tail(bad_at);
        guest.push_words(wait(0, 0, 0));
        guest.set_tail(tail);
        guest.clear_queue_error();
        assert_eq!(guest.queue_error(), None, "{name}");
        assert_eq!(guest.head(), tail, "{name}: all is done");
        assert_eq!(guest.wait_status(), after, "{name}");
        assert_eq!(guest.take_events(), [], "{name}");
    }
    // None of them reached hardware, and nothing else changed.
    assert_eq!(guest.lab.hypervisor.take_descriptors(), [[0; 4]; 0]);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.finish();
}

fn s51_bad_queue(place: Place<'_>) {
    // One page of 128 descriptors of 256 bits.
    let queue = Guest::queue_base() | 1 << 11;
    for (name, tail, address, error) in [
        ("beyond the queue", 4096, queue, TAIL),
        ("far beyond the queue", 0x7_ffe0, queue, TAIL),
        ("between two descriptors", 16, queue, ALIGNMENT),
        ("queue outside the machine", 32, OUTSIDE | 1 << 11, FETCH),
        (
            "queue at the end of the address space",
            32,
            !0xfff | 1 << 11,
            FETCH,
        ),
    ] {
        let mut guest = place.guest_with(GuestOptions {
            brought_up: false,
            ..GuestOptions::default()
        });
        guest.program_events();
        guest.write64(Register64::INVALIDATION_QUEUE_ADDRESS, address);
        guest.command(GlobalCommand::QUEUED_INVALIDATION_ENABLE, true);
        guest.write64(Register64::INVALIDATION_QUEUE_TAIL, tail);
        assert_eq!(guest.queue_error(), Some(error), "{name}");
        assert_eq!(guest.head(), 0, "{name}");
        assert_eq!(guest.take_events(), [Event::Fault], "{name}");
        // The guest starts over.
        guest.command(GlobalCommand::QUEUED_INVALIDATION_ENABLE, false);
        guest.clear_queue_error();
        guest.bring_up(guest.descriptor_width());
        guest.bound();
        guest.finish();
    }
}

fn s52(place: Place<'_>) {
    // Context cache and IOTLB have a short form; types 6 to A have none.
    for (name, q0, error) in [
        ("context cache", 0x11, None),
        ("IOTLB", 0x12, None),
        ("PASID IOTLB", 0x26, Some(TYPE)),
        ("PASID cache", 0x37, Some(TYPE)),
        ("PASID device-TLB", 8, Some(TYPE)),
        ("page group response", 9, Some(TYPE)),
        ("HPT cache", 0x1a, Some(TYPE)),
    ] {
        let mut guest = with_queue_only(place, DescriptorWidth::Bits128);
        guest.program_events();
        guest.push_words([q0, 0, 0, 0]);
        let wait = guest.push_wait();
        guest.ring();
        assert_eq!(guest.queue_error(), error, "{name}");
        if error.is_some() {
            assert_eq!(guest.head(), 0, "{name}");
            assert_eq!(guest.wait_status(), 0, "{name}: nothing behind it is done");
            assert_eq!(guest.take_events(), [Event::Fault], "{name}");
        } else {
            assert_eq!(guest.head(), 32, "{name}: two of 16 bytes");
            assert_eq!(guest.wait_status(), wait, "{name}");
            assert_eq!(guest.take_events(), [], "{name}");
        }
        guest.finish();
    }
}

fn s52_width(place: Place<'_>) {
    for (name, width, mode, error) in [
        (
            "short ones in scalable mode",
            DescriptorWidth::Bits128,
            TranslationTableMode::Scalable,
            Some(WIDTH),
        ),
        (
            "short ones in legacy mode",
            DescriptorWidth::Bits128,
            TranslationTableMode::Legacy,
            None,
        ),
        (
            "long ones in legacy mode",
            DescriptorWidth::Bits256,
            TranslationTableMode::Legacy,
            None,
        ),
        (
            "reserved mode",
            DescriptorWidth::Bits256,
            TranslationTableMode::Reserved,
            Some(TABLE_MODE),
        ),
    ] {
        let mut guest = with_queue_only(place, width);
        let root = guest.page();
        guest.set_root(root, mode);
        let wait = guest.push_wait();
        guest.ring();
        assert_eq!(guest.queue_error(), error, "{name}");
        let done = if error.is_some() { 0 } else { wait };
        assert_eq!(guest.wait_status(), done, "{name}");
        guest.finish();
    }
}

fn s53(place: Place<'_>) {
    let mut guest = place.guest();
    guest.program_events();
    guest.write_u64(STATUS, SENTINEL);
    guest.write_u64(STATUS + 8, SENTINEL);
    let completion = |guest: &Guest| guest.read32(Register32::INVALIDATION_COMPLETION_STATUS);

    // Data and event; the data's neighbours stay.
    guest.push_words(wait(SW | IF | FN, 0xdead_beef, 4));
    guest.ring();
    assert_eq!(guest.read_u64(STATUS), 0xdead_beef_5e5e_5e5e);
    assert_eq!(guest.read_u64(STATUS + 8), SENTINEL);
    assert_eq!(
        (completion(&guest), guest.take_events()),
        (1, vec![Event::Completion])
    );

    // While IWC is set there is no second event, but there is data.
    guest.push_words(wait(SW | IF | FN, 1, 8));
    guest.ring();
    assert_eq!(guest.read_u64(STATUS + 8) as u32, 1);
    assert_eq!((completion(&guest), guest.take_events()), (1, vec![]));

    // IF alone, masked: held back, and sent when unmasked.
    guest.write32(Register32::INVALIDATION_COMPLETION_STATUS, 1);
    assert_eq!(completion(&guest), 0);
    guest.mask_event(Event::Completion, true);
    guest.push_words(wait(IF, 0x99, 0));
    guest.ring();
    assert_eq!((completion(&guest), guest.take_events()), (1, vec![]));
    assert!(guest.is_event_pending(Event::Completion));
    assert_eq!(
        guest.read_u64(STATUS),
        0xdead_beef_5e5e_5e5e,
        "no data without SW"
    );
    guest.mask_event(Event::Completion, false);
    assert_eq!(guest.take_events(), [Event::Completion]);

    // Masked, and the cause cleared before it is unmasked: dropped.
    guest.write32(Register32::INVALIDATION_COMPLETION_STATUS, 1);
    guest.mask_event(Event::Completion, true);
    guest.push_words(wait(IF, 0, 0));
    guest.ring();
    assert!(guest.is_event_pending(Event::Completion));
    guest.write32(Register32::INVALIDATION_COMPLETION_STATUS, 1);
    assert!(!guest.is_event_pending(Event::Completion));
    guest.mask_event(Event::Completion, false);
    assert_eq!(guest.take_events(), []);

    // SW alone: data and no event. None: accepted, and nothing happens.
    guest.push_words(wait(SW, 2, 0));
    guest.ring();
    assert_eq!(guest.read_u64(STATUS) as u32, 2);
    for flags in [0, FN] {
        guest.push_words(wait(flags, 0x1111, 0));
        guest.push_words([WAIT | flags, 0, 0, 0]);
    }
    guest.ring();
    assert_eq!((guest.queue_error(), guest.head()), (None, guest.tail()));
    assert_eq!((completion(&guest), guest.take_events()), (0, vec![]));
    assert_eq!(guest.read_u64(STATUS), 0xdead_beef_0000_0002);
    assert_eq!(guest.read_u64(0), 0, "nothing at address 0");
    guest.finish();
}

fn s53_barrier(place: Place<'_>) {
    for flags in [SW | IF | FN, SW | IF, FN] {
        let mut guest = place.guest();
        guest.program_events();
        guest.bound();
        let old = guest.structures(D0, guest.pasid);
        guest.write(old.entry, &[0; 64]);
        guest.lab.hypervisor.hold(Hold::Forever);
        guest.push_words(pasid_cache(7, guest.pasid).encode().words());
        guest.push_words(wait(flags, 1, 0));
        let last = guest.push_wait();
        guest.ring_only();
        work_a_while(&mut guest);
        assert_ne!(
            guest.lab.hypervisor.take_descriptors(),
            [[0; 4]; 0],
            "hardware was told"
        );
        assert_eq!(guest.read_u64(STATUS), 0, "hardware is not done");
        assert_ne!(guest.wait_status(), last, "nor is what comes behind");
        assert_eq!(guest.take_events(), []);
        guest.lab.hypervisor.hold(Hold::Nothing);
        guest.settle();
        assert_eq!(guest.read_u64(STATUS), u64::from(flags & SW != 0));
        assert_eq!(guest.wait_status(), last);
        let events = guest.take_events();
        assert_eq!(events.contains(&Event::Completion), flags & IF != 0);
        guest.expect_no_data(D0, guest.tag, IOVA);
        guest.finish();
    }
}

fn s53_outside(place: Place<'_>) {
    let mut guest = place.guest();
    // Where the addresses below lie if a guest's address were taken for a host's.
    let host = |at: u64| vtd_nest::arch::address::Hpa::new(at);
    let layout = guest.lab.hypervisor.bench().layout();
    let targets = [
        layout.frames.start.as_u64(),
        layout.guests.start.as_u64(),
        layout.nobodys.start.as_u64(),
        OUTSIDE,
        0x000f_ffff_ffff_fffc,
        !3,
    ];
    let held = |guest: &Guest, at: u64| guest.lab.host_read64(host(at));
    for at in targets {
        let known = layout.nobodys.contains(host(at)) || layout.frames.contains(host(at));
        let before = known.then(|| held(&guest, at));
        guest.push_words([WAIT | SW | 0xbad_0bad << 32, at, 0, 0]);
        guest.submit(&[]);
        assert_eq!(guest.queue_error(), None, "{at:#x}");
        assert_eq!(known.then(|| held(&guest, at)), before, "{at:#x}");
    }
    guest.bound();
    guest.finish();
}

fn s54(place: Place<'_>) {
    let mut guest = place.guest();
    guest.program_events();
    let bad_at = guest.tail();
    guest.push_words([0; 4]);
    let first = guest.push_wait();
    guest.ring();
    assert_eq!(guest.queue_error(), Some(TYPE));
    assert_eq!(guest.take_events(), [Event::Fault]);
    // Neither a new tail nor time nor other causes restart it.
    let second = guest.push_wait();
    guest.ring();
    guest.write32(Register32::FAULT_STATUS, FaultStatus::FAULT_OVERFLOW.bits());
    work_a_while(&mut guest);
    assert_eq!((guest.head(), guest.queue_error()), (bad_at, Some(TYPE)));
    assert!(guest.wait_status() < first);
    assert_eq!(guest.take_events(), [], "one event for one error");
    // Cleared, but as bad as before: it stops at the same place again.
    guest.clear_queue_error();
    assert_eq!((guest.head(), guest.queue_error()), (bad_at, Some(TYPE)));
    assert_eq!(guest.take_events(), [Event::Fault]);
    // Mended while it stands: still nothing. Cleared: all of it, from the head on.
    let tail = guest.tail();
    guest.set_tail(bad_at);
    guest.push_words(wait(SW, 3, 0));
    guest.set_tail(tail);
    work_a_while(&mut guest);
    assert_eq!(guest.read_u64(STATUS), 0);
    guest.clear_queue_error();
    assert_eq!((guest.head(), guest.queue_error()), (tail, None));
    assert_eq!((guest.read_u64(STATUS), guest.wait_status()), (3, second));
    // Another way out: the queue is disabled and enabled anew, and starts at 0.
    guest.push_words([0; 4]);
    guest.ring();
    guest.command(GlobalCommand::QUEUED_INVALIDATION_ENABLE, false);
    assert_eq!(guest.head(), 0);
    guest.clear_queue_error();
    guest.enable_queue(guest.descriptor_width());
    guest.bound();
    guest.finish();
}

fn s55(place: Place<'_>) {
    // Windows sets the tail before it enables the queue; in either order with its address.
    for tail_first in [false, true] {
        let mut guest = place.guest_with(GuestOptions {
            brought_up: false,
            ..GuestOptions::default()
        });
        let width = guest.descriptor_width();
        let wide = u64::from(width == DescriptorWidth::Bits256);
        let queue = Guest::queue_base() | wide << 11;
        let tail = 2 * u64::from(width.len_bytes());
        if tail_first {
            guest.write64(Register64::INVALIDATION_QUEUE_TAIL, tail);
        }
        guest.write64(Register64::INVALIDATION_QUEUE_ADDRESS, queue);
        guest.push_words([0x11, 0, 0, 0]);
        let wait = guest.push_wait();
        if !tail_first {
            guest.ring();
        }
        work_a_while(&mut guest);
        assert_eq!(
            (guest.head(), guest.wait_status()),
            (0, 0),
            "not enabled yet"
        );
        guest.command(GlobalCommand::QUEUED_INVALIDATION_ENABLE, true);
        assert_eq!((guest.head(), guest.wait_status()), (tail, wait));
        assert_eq!(guest.queue_error(), None);
        guest.finish();
    }
}

/// Length of the register page in bytes.
const PAGE: u64 = 0x1000;

fn s56_reads(place: Place<'_>) {
    for brought_up in [false, true] {
        let mut guest = place.guest_with(GuestOptions {
            brought_up,
            ..GuestOptions::default()
        });
        if brought_up {
            // Records and error registers hold something.
            guest.bound();
            guest.reached(D1, guest.tag, IOVA);
            guest.push_words([0; 4]);
            guest.ring();
        }
        let bytes: Vec<u64> = (0..PAGE + 16)
            .map(|at| guest.read_register(at, 1))
            .collect();
        assert!(bytes.iter().all(|byte| *byte < 256));
        assert!(
            bytes[PAGE as usize..].iter().all(|byte| *byte == 0),
            "behind the page"
        );
        for at in 0..PAGE {
            for len in [2u8, 4, 8] {
                let part = &bytes[at as usize..][..usize::from(len)];
                let value = part.iter().rev().fold(0, |value, byte| value << 8 | byte);
                assert_eq!(guest.read_register(at, len), value, "{at:#x}, {len} bytes");
            }
        }
        for at in [PAGE, 0x1_0000, u64::MAX - 7, u64::MAX] {
            assert_eq!(guest.read_register(at, 8), 0, "{at:#x}");
        }
        guest.finish();
    }
}

/// What §11.4 says of a register that is there and is no command: name, offset, length, value
/// after a reset, bits that keep what is written.
fn registers(guest: &Guest) -> Vec<(&'static str, u64, u8, u64, u64)> {
    let features = guest.vm.offer().features;
    let (capability, extended) = (features.capability, features.extended);
    let has = |field| extended.field(field) != 0;
    let high = u64::MAX << 12;
    let mut registers = vec![
        ("CAP", 0x08, 8, capability.bits(), 0),
        ("ECAP", 0x10, 8, extended.bits(), 0),
        ("RTADDR", 0x20, 8, 0, high | 3 << 10),
        ("FSTS", 0x34, 4, 0, 0),
        ("FECTL", 0x38, 4, 1 << 31, 1 << 31),
        ("FEDATA", 0x3c, 4, 0, 0xffff),
        ("FEADDR", 0x40, 4, 0, 0xffff_fffc),
        ("FEUADDR", 0x44, 4, 0, 0xffff_ffff),
        ("IQH", 0x80, 8, 0, 0),
        ("IQT", 0x88, 8, 0, 0x7_fff0),
        ("IQA", 0x90, 8, 0, high | 1 << 11 | 7),
        ("ICS", 0x9c, 4, 0, 0),
        ("IECTL", 0xa0, 4, 1 << 31, 1 << 31),
        ("IEDATA", 0xa4, 4, 0, 0xffff),
        ("IEADDR", 0xa8, 4, 0, 0xffff_fffc),
        ("IEUADDR", 0xac, 4, 0, 0xffff_ffff),
        ("IQERCD", 0xb0, 8, 0, 0),
    ];
    if !has(ExtendedCapabilityField::INTERRUPT_REMAPPING) {
        registers.push(("IRTA, absent", 0xb8, 8, 0, 0));
    }
    if !has(ExtendedCapabilityField::PAGE_REQUESTS) {
        for (name, at, len) in [
            ("PQH, absent", 0xc0, 8),
            ("PQT, absent", 0xc8, 8),
            ("PQA, absent", 0xd0, 8),
            ("PRS, absent", 0xdc, 4),
            ("PECTL, absent", 0xe0, 4),
            ("PEDATA, absent", 0xe4, 4),
            ("PEADDR, absent", 0xe8, 4),
            ("PEUADDR, absent", 0xec, 4),
        ] {
            registers.push((name, at, len, 0, 0));
        }
    }
    // Protected memory regions, the advanced fault log and memory types are never shown.
    for (name, at, len) in [
        ("AFLOG, gone", 0x58, 8),
        ("PMEN, absent", 0x64, 4),
        ("PLMBASE, absent", 0x68, 4),
        ("PLMLIMIT, absent", 0x6c, 4),
        ("PHMBASE, absent", 0x70, 8),
        ("PHMLIMIT, absent", 0x78, 8),
        ("MTRRCAP, absent", 0x100, 8),
        ("MTRRDEF, absent", 0x108, 8),
        ("VCCAP, absent", 0xe30, 8),
        ("VCMD, absent", 0xe00, 8),
        ("reserved", 0x04, 4),
        ("reserved", 0x30, 4),
        ("reserved", 0x98, 4),
        ("reserved", 0xd8, 4),
    ] {
        registers.push((name, at, len, 0, 0));
    }
    for index in 0..guest.fault_record_count() {
        let at = u64::from(capability.fault_record_offset()) + 16 * index;
        registers.push(("FRCD", at, 8, 0, 0));
        registers.push(("FRCD", at + 8, 8, 0, 0));
    }
    registers
}

fn s56_registers(place: Place<'_>) {
    let unborn = || {
        place.guest_with(GuestOptions {
            brought_up: false,
            ..GuestOptions::default()
        })
    };
    let mut guest = unborn();
    assert_ne!(guest.read32(Register32::VERSION), 0);
    let low = |len: u8| u64::MAX >> (64 - 8 * u32::from(len));
    for (name, at, len, reset, writable) in registers(&guest) {
        assert_eq!(guest.read_register(at, len), reset, "{name} after a reset");
        for value in [u64::MAX, 0, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210] {
            let expected = (reset & !writable | value & writable) & low(len);
            // At once, and in pieces: every piece leaves the rest alone.
            for piece in [1, 2, 4, 8u8] {
                if piece > len {
                    continue;
                }
                guest.write_register(at, len, 0);
                for offset in (0..len).step_by(piece.into()) {
                    let bits = value >> (8 * offset) & low(piece);
                    guest.write_register(at + u64::from(offset), piece, bits);
                }
                assert_eq!(
                    guest.read_register(at, len),
                    expected,
                    "{name}: {value:#x} in pieces of {piece}"
                );
            }
        }
    }
    // Commands read as 0, status only follows them.
    guest.write_register(0x1c, 4, u64::MAX);
    assert_eq!(guest.read_register(0x18, 8), 0, "GCMD and GSTS");
    guest.finish();

    // Across the border of two registers, at any alignment.
    let mut guest = unborn();
    guest.write_register(0x3e, 4, 0x5678_1234);
    assert_eq!(
        guest.read_register(0x3c, 8),
        0x5678_0000_0000,
        "FEDATA and FEADDR"
    );
    guest.write_register(0x3d, 8, 0x1122_3344_5566_7788);
    assert_eq!(guest.read_register(0x3c, 8), 0x2233_4454_0000_8800);
    assert_eq!(guest.read_register(0x44, 4), 0x11, "FEUADDR");
    guest.write_register(0x8c, 8, 0x0001_0807_ffff_ffff);
    assert_eq!(guest.read64(Register64::INVALIDATION_QUEUE_TAIL), 0);
    let address = guest.read64(Register64::INVALIDATION_QUEUE_ADDRESS);
    assert_eq!(address, 0x1_0807);
    guest.write_register(0x1f, 4, 0x0678_9cff);
    assert_eq!(guest.read64(Register64::ROOT_TABLE_ADDRESS), 0x6_7800);
    // One byte of the command register is a command; the others stay as commanded.
    let queue = Guest::queue_base() | 1 << 11;
    guest.write64(Register64::INVALIDATION_QUEUE_ADDRESS, queue);
    guest.write_register(0x1b, 1, 4);
    assert_eq!(guest.read32(Register32::GLOBAL_STATUS), 4 << 24);
    guest.write_register(0x18, 2, 0xffff);
    assert_eq!(guest.read32(Register32::GLOBAL_STATUS), 4 << 24);
    guest.finish();
}

fn s56_writes(place: Place<'_>) {
    let mut guest = place.guest();
    guest.use_small_directories();
    let ends = [PAGE, 0x1_0000, u64::MAX - 7, u64::MAX];
    let fixed = [0x00, 0x08, 0x10];
    let before = fixed.map(|at| guest.read_register(at, 8));
    let records = u64::from(guest.vm.offer().features.capability.fault_record_offset());
    // Beyond the records there is nothing: every 61st offset stands for the rest.
    let end = records + 16 * guest.fault_record_count() + 8;
    let offsets = (0..end).chain((end..PAGE).step_by(61)).chain(ends);
    for at in offsets {
        for (len, value) in [
            (1, 0xff),
            (2, 0xa5a5),
            (4, 0xffff_ffff),
            (4, 0x0123_4567_u64.rotate_left(at as u32)),
            (8, u64::MAX),
            (8, 0x0123_4567_89ab_cdef_u64.rotate_left(at as u32)),
            (8, 0),
        ] {
            guest.write_register(at, len, value);
        }
    }
    assert_eq!(
        fixed.map(|at| guest.read_register(at, 8)),
        before,
        "constants"
    );
    // A driver that starts over finds a unit that works.
    guest.write32(Register32::GLOBAL_COMMAND, 0);
    // RTPS and IRTPS tell of the past.
    let status = guest.read32(Register32::GLOBAL_STATUS);
    assert_eq!(status & !(1 << 30 | 1 << 24), 0);
    guest.take_faults();
    guest.write32(Register32::FAULT_STATUS, u32::MAX);
    assert_eq!(guest.fault_status(), FaultStatus::empty());
    guest.bring_up(guest.descriptor_width());
    guest.bound();
    guest.expect_blocked(D0, guest.tag, IOVA + 0x1000, not_mapped(&guest));
    guest.finish();
}

/// Why a guest's own table without an entry blocks.
fn not_mapped(guest: &Guest) -> FaultReason {
    if guest.is_first_stage() {
        FaultReason::FirstStageNotPresent
    } else {
        FaultReason::SecondStageNotPresent
    }
}

/// A guest with this many fault records whose devices are bound to tables that map [`IOVA`] only.
fn with_records(place: Place<'_>, fault_records: u8) -> Guest {
    let mut guest = place.guest_with(GuestOptions {
        policy: Policy {
            fault_records,
            ..Policy::default()
        },
        ..GuestOptions::default()
    });
    assert_eq!(guest.fault_record_count(), u64::from(fault_records));
    for device in [D0, D1] {
        guest.bind(device, guest.pasid, 7);
    }
    guest.program_events();
    guest
}

/// A request of a device at an address that is not mapped, and its record in the guest's unit.
fn blocked_read(guest: &mut Guest, device: vtd_nest::arch::id::SourceId, iova: u64) {
    assert!(!guest.gets_through(device, guest.tag, iova, Access::Read));
    guest.settle();
}

fn s57(place: Place<'_>) {
    let mut guest = with_records(place, 1);
    let pending = FaultStatus::PRIMARY_PENDING_FAULT;
    let overflow = FaultStatus::FAULT_OVERFLOW;
    let record_top = u64::from(guest.vm.offer().features.capability.fault_record_offset()) + 12;
    let first = IOVA + 0x1000;
    let recorded = |guest: &Guest| {
        let (low, high) = guest.fault_record(0);
        (high >> 63 == 1).then_some((low, high & 0xffff))
    };
    let of_d0 = Some((first, u64::from(D0.as_u16())));

    blocked_read(&mut guest, D0, first);
    assert_eq!((guest.fault_status(), recorded(&guest)), (pending, of_d0));
    assert_eq!(guest.take_events(), [Event::Fault]);
    // The same device again: the record stays, there is no overflow.
    blocked_read(&mut guest, D0, IOVA + 0x2000);
    assert_eq!((guest.fault_status(), recorded(&guest)), (pending, of_d0));
    // Another device: there is no room.
    blocked_read(&mut guest, D1, IOVA + 0x3000);
    assert_eq!(guest.fault_status(), pending | overflow);
    assert_eq!(recorded(&guest), of_d0);
    assert_eq!(guest.take_events(), [], "one event for all of them");

    // The overflow cleared first: the record is still there, and the next device overflows again.
    guest.write32(Register32::FAULT_STATUS, overflow.bits());
    assert_eq!((guest.fault_status(), recorded(&guest)), (pending, of_d0));
    blocked_read(&mut guest, D1, IOVA + 0x4000);
    assert_eq!(guest.fault_status(), pending | overflow);
    assert_eq!(recorded(&guest), of_d0);
    assert_eq!(guest.take_events(), []);

    // The record cleared first: while the overflow stands nothing is recorded.
    guest.write_register(record_top, 4, 1 << 31);
    assert_eq!((guest.fault_status(), recorded(&guest)), (overflow, None));
    blocked_read(&mut guest, D1, IOVA + 0x5000);
    assert_eq!((guest.fault_status(), recorded(&guest)), (overflow, None));
    assert_eq!(guest.take_events(), []);

    // Both cleared: faults come in again, with an event of their own.
    guest.write32(Register32::FAULT_STATUS, overflow.bits());
    assert_eq!(guest.fault_status(), FaultStatus::empty());
    blocked_read(&mut guest, D1, IOVA + 0x6000);
    let of_d1 = Some((IOVA + 0x6000, u64::from(D1.as_u16())));
    assert_eq!((guest.fault_status(), recorded(&guest)), (pending, of_d1));
    assert_eq!(guest.take_events(), [Event::Fault]);

    // Masked: the event is held back, and dropped when its cause is cleared.
    guest.write_register(record_top, 4, 1 << 31);
    guest.mask_event(Event::Fault, true);
    blocked_read(&mut guest, D0, first);
    assert!(guest.is_event_pending(Event::Fault));
    guest.write_register(record_top, 4, 1 << 31);
    assert!(!guest.is_event_pending(Event::Fault));
    guest.mask_event(Event::Fault, false);
    assert_eq!(guest.take_events(), []);
    guest.finish();
}

fn s57_records(place: Place<'_>) {
    let mut guest = with_records(place, 3);
    let top = u64::from(guest.vm.offer().features.capability.fault_record_offset()) + 12;
    let index = |guest: &Guest| guest.read32(Register32::FAULT_STATUS) >> 8 & 0xff;
    let source = |guest: &Guest, index| guest.fault_record(index).1 & 0xffff;
    for round in 0..4 {
        // Two of three records a round: the first one moves on by two.
        let (one, other) = (2 * round % 3, (2 * round + 1) % 3);
        blocked_read(&mut guest, D0, IOVA + 0x1000);
        blocked_read(&mut guest, D1, IOVA + 0x1000);
        assert_eq!(u64::from(index(&guest)), one, "FRI names the first");
        assert_eq!(source(&guest, one), u64::from(D0.as_u16()));
        assert_eq!(source(&guest, other), u64::from(D1.as_u16()));
        assert_eq!(guest.take_events(), [Event::Fault]);
        guest.write_register(top + 16 * one, 4, 1 << 31);
        assert_eq!(guest.fault_status(), FaultStatus::PRIMARY_PENDING_FAULT);
        guest.write_register(top + 16 * other, 4, 1 << 31);
        assert_eq!(guest.fault_status(), FaultStatus::empty());
    }
    guest.finish();
}

/// `FPD` of a context, directory or PASID entry.
const FPD: u64 = 1 << 1;

fn s58(place: Place<'_>) {
    use FaultReason as R;
    let mut guest = place.guest();
    guest.use_small_directories();
    let pasid = guest.pasid;
    let (_, page) = guest.bind(D0, pasid, 7);
    guest.program_events();
    let at = guest.structures(D0, pasid);
    // Where, cleared bits, set bits; the fault that is recorded all the same.
    type Change = (u64, u64, u64);
    let present = 1;
    let pointer = 0x000f_ffff_ffff_f000;
    let cases: [(&str, &[Change], Option<R>); 14] = [
        (
            "absent context",
            &[(at.context, present, 0)],
            Some(R::ScalableContextEntryNotPresent),
        ),
        ("absent context, FPD", &[(at.context, present, FPD)], None),
        (
            "reserved context, FPD",
            &[(at.context, 0, FPD | 1 << 7)],
            None,
        ),
        (
            "absent directory",
            &[(at.directory, present, 0)],
            Some(R::PasidDirectoryEntryNotPresent),
        ),
        (
            "absent directory, FPD",
            &[(at.directory, present, FPD)],
            None,
        ),
        (
            "absent directory, FPD in context",
            &[(at.context, 0, FPD), (at.directory, present, 0)],
            None,
        ),
        (
            "absent entry",
            &[(at.entry, present, 0)],
            Some(R::PasidEntryNotPresent),
        ),
        ("absent entry, FPD", &[(at.entry, present, FPD)], None),
        (
            "absent entry, FPD in directory",
            &[(at.directory, 0, FPD), (at.entry, present, 0)],
            None,
        ),
        (
            "absent entry, FPD in context",
            &[(at.context, 0, FPD), (at.entry, present, 0)],
            None,
        ),
        ("reserved entry, FPD", &[(at.entry, 0, FPD | 1 << 5)], None),
        // Not qualified: recorded whatever was met before.
        (
            "unreadable directory, FPD in context",
            &[(at.context, pointer, FPD | OUTSIDE)],
            Some(R::PasidDirectoryUnreadable),
        ),
        (
            "unreadable table, FPD in directory",
            &[(at.directory, pointer, FPD | OUTSIDE)],
            Some(R::PasidTableUnreadable),
        ),
        (
            "absent root entry",
            &[(at.root, present, FPD)],
            Some(R::ScalableRootEntryNotPresent),
        ),
    ];
    for (name, changes, recorded) in cases {
        for &(at, clear, set) in changes {
            guest.change(at, clear, set);
        }
        guest.invalidate_everything();
        guest.outcomes.clear();
        for access in [Access::Read, Access::Write] {
            assert!(!guest.gets_through(D0, guest.tag, IOVA, access), "{name}");
            let taken = guest.take_faults();
            let reasons: Vec<_> = taken.faults.iter().map(|fault| fault.reason).collect();
            assert_eq!(reasons, Vec::from_iter(recorded), "{name}");
            assert!(!taken.overflow, "{name}");
        }
        assert_eq!(guest.outcomes.len(), 2, "{name}: hardware has told of both");
        assert_eq!(guest.fault_status(), FaultStatus::empty(), "{name}");
        let events = if recorded.is_some() { 2 } else { 0 };
        assert_eq!(guest.take_events().len(), events, "{name}");
        guest.restore(&at);
        guest.expect_reaches(D0, guest.tag, IOVA, page);
    }
    // A present entry with FPD: its translations work, and what its table lacks is silent.
    for (name, where_at) in [
        ("context", at.context),
        ("directory", at.directory),
        ("entry", at.entry),
    ] {
        guest.change(where_at, 0, FPD);
        guest.invalidate_everything();
        guest.expect_reaches(D0, guest.tag, IOVA, page);
        assert!(
            !guest.gets_through(D0, guest.tag, IOVA + 0x1000, Access::Read),
            "{name}"
        );
        assert_eq!(guest.take_faults().faults, [], "{name}");
        assert_eq!(guest.take_events(), [], "{name}");
        guest.restore(&at);
        guest.expect_blocked(D0, guest.tag, IOVA + 0x1000, not_mapped(&guest));
        guest.take_events();
    }
    // And nobody else is silent.
    let quadwords = [FPD, 0, 0, 0, 0, 0, 0, 0];
    guest.set_entry(D0, pasid, &PasidEntry::from_quadwords(quadwords));
    guest.invalidate_pasid(7, pasid);
    guest.expect_blocked(D1, guest.tag, IOVA, R::PasidDirectoryEntryNotPresent);
    assert!(guest.lab.host_faults.borrow().is_empty());
    guest.finish();
}

fn s58_legacy(place: Place<'_>) {
    let mut guest = place.shadow_guest();
    let page = guest.data_page();
    let table = guest.table(&[(IOVA, page)]);
    let context = guest.use_legacy_table(D0, table);
    let good = guest.read_u64(context);
    guest.expect_reaches(D0, None, IOVA, page);
    for (name, value, recorded) in [
        (
            "absent",
            good & !1,
            Some(FaultReason::LegacyContextEntryNotPresent),
        ),
        ("absent, FPD", good & !1 | FPD, None),
        ("reserved bit, FPD", good | FPD | 1 << 4, None),
        ("no mapping, FPD", good | FPD, None),
        ("no mapping", good, Some(FaultReason::LegacyReadDenied)),
    ] {
        guest.write_u64(context, value);
        guest.invalidate_context(D0);
        assert!(
            !guest.gets_through(D0, None, IOVA + 0x1000, Access::Read),
            "{name}"
        );
        let taken = guest.take_faults();
        let reasons: Vec<_> = taken.faults.iter().map(|fault| fault.reason).collect();
        assert_eq!(reasons, Vec::from_iter(recorded), "{name}");
    }
    guest.finish();
}
