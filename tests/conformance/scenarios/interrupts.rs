//! Interrupt remapping of the guest's unit (S84 to S87): what a device's message comes to.
//!
//! A message that is blocked leaves a fault record in the guest's unit; one that is not, none.

use vtd_nest::arch::capability::ExtendedCapabilityField as Ecap;
use vtd_nest::arch::descriptor::{Descriptor, InterruptEntryGranularity};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::interrupt::{DeliveryMode, Interrupt, InterruptIndex, InterruptMessage};
use vtd_nest::arch::register::{GlobalCommand, GlobalStatus, Register32, Register64};
use vtd_nest::mem::Registers;
use vtd_nest::nest::{AssignError, MessageRefusal, Policy};
use vtd_nest::unit::UnitError;
use vtd_nest::viommu::{BindError, InterruptError};

use crate::bench::{Ability, Hold};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, Guest, GuestOptions, Lab, Place};

const NEEDS: &[Need] = &[Need::Extended(Ecap::INTERRUPT_REMAPPING, "IR")];
const BLOCKS: &[Need] = &[NEEDS[0], Need::Ability(Ability::BlocksCompatibilityFormat)];
const SEEN: &[Need] = &[NEEDS[0], Need::Ability(Ability::SeesInterrupts)];

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S84 R35 G2",
        "delivery modes INIT, SMI, ExtINT and NMI are refused, and told as 24",
        refused_delivery_modes,
    )
    .needs(NEEDS),
    scenario(
        "S85 R35 G29 G2",
        "an index beyond the table is told as 21, a foreign source-id as 26",
        bad_index_and_source,
    )
    .needs(NEEDS),
    scenario(
        "S86 R35 G30",
        "a changed entry is in force after the guest's wait, an old one no longer",
        changed_entry,
    )
    .needs(NEEDS),
    scenario(
        "S87 R35 G1",
        "remapping off and on, CFI set: compatibility format stays blocked, told as 25",
        compatibility_format,
    )
    .needs(BLOCKS),
    scenario(
        "S84 R35",
        "vectors and processors that are not the machine's are refused, and told as 24",
        refused_targets,
    )
    .needs(NEEDS),
    scenario(
        "S84 R35",
        "devices raise NMIs where the policy lets them",
        non_maskable_by_policy,
    )
    .needs(SEEN),
    scenario(
        "S86 R35",
        "a level-triggered, a logical and a block entry come to what they say",
        what_entries_say,
    )
    .needs(SEEN),
    scenario(
        "S85 R35 G29",
        "two machines with the same indices: each has its own entries, and no other's",
        two_machines,
    )
    .needs(NEEDS),
    scenario(
        "S87 R35 G1",
        "while the guest does not remap, messages are routed for it; its own entries end that",
        routed_messages,
    )
    .needs(NEEDS),
    scenario(
        "S37 R35 G30",
        "a device that leaves takes its entries with it, and finds them again when it comes",
        leaving_device,
    )
    .needs(NEEDS),
    scenario(
        "S90 R35 G30",
        "an entry whose invalidation is not confirmed: its device is cut off, and keeps the machine",
        unconfirmed_entry,
    )
    .needs(NEEDS),
    scenario(
        "S36 S39 R35",
        "reset ends remapping; a restored unit has its entries again",
        reset_and_restore,
    )
    .needs(NEEDS),
    scenario(
        "S79 R35 G29",
        "a machine without entries left is refused, and a guest index beyond its own is told as 23",
        entries_run_out,
    )
    .needs(NEEDS),
];

/// Entries of the guest's table: 2^(S + 1), S = 3.
const ENTRIES: u64 = 16;
const SIZE_FIELD: u64 = 3;
const VECTOR: u64 = 0x5d;

/// A guest whose table has [`ENTRIES`] absent entries, with remapping on; and the table's place.
fn remapping(place: Place<'_>) -> (Guest, u64) {
    with_table(place.guest())
}

/// As [`remapping`], of a guest that has brought its unit up.
fn with_table(mut guest: Guest) -> (Guest, u64) {
    assert!(
        guest.vm.offer().features.extended.has_interrupt_remapping(),
        "the guest's unit has no interrupt remapping"
    );
    let table = guest.page();
    guest.write64(
        Register64::INTERRUPT_REMAPPING_TABLE_ADDRESS,
        table | SIZE_FIELD,
    );
    guest.command(GlobalCommand::SET_INTERRUPT_REMAPPING_TABLE_POINTER, true);
    guest.command(GlobalCommand::INTERRUPT_REMAPPING_ENABLE, true);
    (guest, table)
}

/// A present entry: edge, physical destination 0, source-id checked whole (§9.9).
fn entry(delivery: u64, vector: u64, source_id: SourceId) -> [u64; 2] {
    [
        1 | delivery << 5 | vector << 16,
        u64::from(source_id.as_u16()) | 1 << 18,
    ]
}

/// Writes an entry, and says nothing.
fn set(guest: &mut Guest, table: u64, index: u64, entry: [u64; 2]) {
    guest.write_u64(table + 16 * index + 8, entry[1]);
    guest.write_u64(table + 16 * index, entry[0]);
}

/// Announces a change of an entry.
fn invalidate(guest: &mut Guest, index: u16) {
    guest.submit(&[Descriptor::InterruptEntryCache {
        granularity: InterruptEntryGranularity::Index { index, mask: 0 },
    }]);
}

/// The address of a message in remappable format (§5.1.2.2).
const fn remappable(index: u64) -> u64 {
    0xfee0_0000 | 1 << 4 | (index & 0x7fff) << 5 | (index >> 15) << 2
}

/// What has reached processors since the last call: who raised which vector. `None` where that is
/// not seen.
fn raised(lab: &Lab) -> Option<Vec<(SourceId, Interrupt)>> {
    let bench = lab.hypervisor.bench();
    let sees = bench.has(Ability::SeesInterrupts);
    sees.then(|| bench.take_interrupts())
}

/// A device of the machine has raised a vector on processor 0, and nothing else has come.
#[track_caller]
fn expect_raised(guest: &Guest, device: SourceId, vector: u64) {
    if let Some(found) = raised(&guest.lab) {
        let expected = Interrupt::fixed(0, vector as u8);
        assert_eq!(found, [(guest.physical(device), expected)]);
    }
}

/// As [`signal`], with the message that the hypervisor has put in the place of the guest's.
fn signal_trapped(guest: &mut Guest, device: SourceId, index: u64) -> Option<FaultReason> {
    let handle = guest.handle(device);
    let message = InterruptMessage::remappable(InterruptIndex::new(index as u16));
    let message = guest.vm.device_message(handle, message).expect("a message");
    signal(guest, device, message.address)
}

/// A device sends a message: the reason why it was blocked, if it was.
fn signal(guest: &mut Guest, device: SourceId, address: u64) -> Option<FaultReason> {
    guest.take_faults();
    // Whatever the data, the entry says what it comes to.
    let data = if address & 1 << 4 == 0 {
        VECTOR as u32
    } else {
        0
    };
    let physical = guest.physical(device);
    let message = InterruptMessage { address, data };
    guest.lab.hypervisor.send_message(physical, message);
    let taken = guest.take_faults();
    match taken.faults.as_slice() {
        [] => None,
        [fault] => {
            assert_eq!(fault.source_id, device);
            Some(fault.reason)
        }
        other => panic!("one message, records {other:x?}"),
    }
}

/// Entries present in the hardware's table.
pub(super) fn hardware_entries(lab: &Lab) -> Vec<[u64; 2]> {
    use vtd_nest::arch::address::Hpa;
    let registers = lab.hypervisor.registers(0).expect("a unit");
    let status = registers.read32(Register32::GLOBAL_STATUS);
    assert!(
        status & GlobalStatus::INTERRUPT_REMAPPING_ENABLED.bits() != 0,
        "hardware remaps interrupts"
    );
    let table = registers.read64(Register64::INTERRUPT_REMAPPING_TABLE_ADDRESS);
    let count = 2u64 << (table & 0xf);
    let entries = (0..count).map(|index| {
        [0, 8].map(|half| lab.host_read64(Hpa::new((table & !0xfff) + 16 * index + half)))
    });
    entries.filter(|entry| entry[0] & 1 != 0).collect()
}

fn refused_delivery_modes(place: Place<'_>) {
    let (mut guest, table) = remapping(place);
    // Fixed works; lowest priority does, too.
    for delivery in [0, 1] {
        set(&mut guest, table, 2, entry(delivery, VECTOR, D0));
        invalidate(&mut guest, 2);
        raised(&guest.lab);
        assert_eq!(signal(&mut guest, D0, remappable(2)), None);
        if let Some(found) = raised(&guest.lab) {
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].1.delivery.field(), delivery);
        }
    }
    let before = hardware_entries(&guest.lab);
    // SMI, reserved, NMI without policy, INIT, reserved, ExtINT.
    for delivery in [2, 3, 4, 5, 6, 7] {
        set(&mut guest, table, 2, entry(delivery, VECTOR, D0));
        invalidate(&mut guest, 2);
        assert_eq!(
            signal(&mut guest, D0, remappable(2)),
            Some(FaultReason::InterruptEntryReserved),
            "delivery mode {delivery}"
        );
        let now = hardware_entries(&guest.lab);
        assert_eq!(
            now.len(),
            before.len() - 1,
            "the host's entry is not present"
        );
    }
    for [_, high] in before {
        assert_ne!(high >> 18 & 3, 0, "no entry without source validation");
    }
    guest.finish();
}

fn bad_index_and_source(place: Place<'_>) {
    let (mut guest, table) = remapping(place);
    let before = hardware_entries(&guest.lab);
    set(&mut guest, table, 3, entry(0, VECTOR, D1));
    invalidate(&mut guest, 3);
    for index in [ENTRIES, ENTRIES + 1, 0x7fff, 0xffff] {
        // What lies behind the table in memory is no entry of it.
        if index < 256 {
            set(&mut guest, table, index, entry(0, VECTOR, D0));
        }
        assert_eq!(
            signal(&mut guest, D0, remappable(index)),
            Some(FaultReason::InterruptIndexTooLarge),
            "{index}"
        );
    }
    assert_eq!(
        signal(&mut guest, D0, remappable(3)),
        Some(FaultReason::InterruptSourceDenied)
    );
    assert_eq!(signal(&mut guest, D1, remappable(3)), None);
    let now = hardware_entries(&guest.lab);
    assert!(
        before.iter().all(|entry| now.contains(entry)),
        "the others' entries are untouched"
    );
    guest.finish();
}

fn changed_entry(place: Place<'_>) {
    let (mut guest, table) = remapping(place);
    assert_eq!(
        signal(&mut guest, D0, remappable(1)),
        Some(FaultReason::InterruptEntryNotPresent)
    );
    for _ in 0..2 {
        set(&mut guest, table, 1, entry(0, VECTOR, D0));
        invalidate(&mut guest, 1);
        assert_eq!(signal(&mut guest, D0, remappable(1)), None);
        // Without an invalidation the old entry may still be in force, and nothing else.
        set(&mut guest, table, 1, entry(0, VECTOR, D1));
        let found = signal(&mut guest, D0, remappable(1));
        assert!([None, Some(FaultReason::InterruptSourceDenied)].contains(&found));
        invalidate(&mut guest, 1);
        assert_eq!(
            signal(&mut guest, D0, remappable(1)),
            Some(FaultReason::InterruptSourceDenied)
        );
        raised(&guest.lab);
        assert_eq!(signal(&mut guest, D1, remappable(1)), None);
        expect_raised(&guest, D1, VECTOR);
        set(&mut guest, table, 1, [0; 2]);
        invalidate(&mut guest, 1);
        for device in [D0, D1] {
            assert_eq!(
                signal(&mut guest, device, remappable(1)),
                Some(FaultReason::InterruptEntryNotPresent)
            );
        }
    }
    guest.finish();
}

fn compatibility_format(place: Place<'_>) {
    let (mut guest, table) = remapping(place);
    set(&mut guest, table, 1, entry(0, VECTOR, D0));
    invalidate(&mut guest, 1);
    let blocked = Some(FaultReason::InterruptCompatibilityFormatBlocked);
    let compatibility = 0xfee0_0000;
    for _ in 0..2 {
        assert_eq!(signal(&mut guest, D0, compatibility), blocked);
        assert_eq!(signal(&mut guest, D0, remappable(1)), None);
        // CFI reads back, and opens nothing.
        guest.command(GlobalCommand::COMPATIBILITY_FORMAT_INTERRUPT, true);
        assert_eq!(signal(&mut guest, D0, compatibility), blocked);
        guest.command(GlobalCommand::COMPATIBILITY_FORMAT_INTERRUPT, false);
        // Off: nothing of the device's choice reaches a processor without the embedder's policy.
        guest.command(GlobalCommand::INTERRUPT_REMAPPING_ENABLE, false);
        let registers = guest.lab.hypervisor.registers(0).expect("a unit");
        let status = registers.read32(Register32::GLOBAL_STATUS);
        let compatible = GlobalStatus::COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED.bits();
        assert_eq!(status & compatible, 0, "hardware keeps blocking it");
        guest.command(GlobalCommand::INTERRUPT_REMAPPING_ENABLE, true);
    }
    guest.finish();
}

fn refused_targets(place: Place<'_>) {
    let (mut guest, table) = remapping(place);
    let refused = |guest: &mut Guest, entry: [u64; 2]| {
        set(guest, table, 2, entry);
        invalidate(guest, 2);
        signal(guest, D0, remappable(2))
    };
    for vector in [0, 15, 255] {
        let found = refused(&mut guest, entry(0, vector, D0));
        assert_eq!(found, Some(FaultReason::InterruptEntryReserved), "{vector}");
    }
    for vector in [16, 254] {
        raised(&guest.lab);
        assert_eq!(refused(&mut guest, entry(0, vector, D0)), None);
        expect_raised(&guest, D0, vector);
    }
    // A processor that the platform does not let it reach.
    let [low, high] = entry(0, VECTOR, D0);
    let found = refused(&mut guest, [low | 0xff << 40, high]);
    assert_eq!(found, Some(FaultReason::InterruptEntryReserved));
    assert!(hardware_entries(&guest.lab).is_empty());
    guest.finish();
}

fn non_maskable_by_policy(place: Place<'_>) {
    let guest = place.guest_with(GuestOptions {
        policy: Policy {
            non_maskable_interrupts: true,
            ..Policy::default()
        },
        ..GuestOptions::default()
    });
    let (mut guest, table) = with_table(guest);
    set(&mut guest, table, 2, entry(4, 0, D0));
    invalidate(&mut guest, 2);
    assert_eq!(signal(&mut guest, D0, remappable(2)), None);
    let found = raised(&guest.lab).expect("it is seen");
    assert_eq!(found[0].1.delivery, DeliveryMode::NonMaskable);
    guest.finish();
}

fn what_entries_say(place: Place<'_>) {
    let (mut guest, table) = remapping(place);
    let wanted = Interrupt {
        destination: 5,
        logical: true,
        redirection_hint: true,
        level_triggered: true,
        delivery: DeliveryMode::LowestPriority,
        vector: 0x61,
    };
    let [low, high] = entry(1, 0x61, D0);
    set(&mut guest, table, 7, [low | 0b11100 | 5 << 40, high]);
    invalidate(&mut guest, 7);
    // The third message of a block that begins at 5.
    let first = InterruptMessage::remappable_block(InterruptIndex::new(5));
    let handle = guest.handle(D0);
    let message = guest.vm.device_message(handle, first).expect("a message");
    let third = InterruptMessage {
        data: message.data | 2,
        ..message
    };
    raised(&guest.lab);
    let physical = guest.physical(D0);
    guest.lab.hypervisor.send_message(physical, third);
    assert_eq!(raised(&guest.lab), Some(vec![(physical, wanted)]));
    assert!(guest.take_faults().faults.is_empty());
    guest.finish();
}

fn two_machines(place: Place<'_>) {
    let lab = place.lab();
    let mut machines = [(0, D0), (1, D1)].map(|(number, device)| {
        let options = GuestOptions {
            number,
            devices: vec![(device, number.into(), 0)],
            ..GuestOptions::default()
        };
        (with_table(Guest::start(&lab, options)), device)
    });
    let vectors = [0x41, 0x42];
    for (((guest, table), device), vector) in machines.iter_mut().zip(vectors) {
        set(guest, *table, 1, entry(0, vector, *device));
        invalidate(guest, 1);
    }
    let indices = [0, 1].map(|at: usize| {
        let ((guest, _), device) = &machines[at];
        let handle = guest.handle(*device);
        let index = guest.vm.interrupt_index(handle, InterruptIndex::new(1));
        index.expect("an index").as_u16()
    });
    assert_ne!(indices[0], indices[1]);
    for (((guest, _), device), vector) in machines.iter_mut().zip(vectors) {
        raised(&lab);
        assert_eq!(signal_trapped(guest, *device, 1), None);
        expect_raised(guest, *device, vector);
    }
    // The other's entry, by a device that sends what it likes: told in terms of its own table.
    for (at, other) in [(0, indices[1]), (1, indices[0])] {
        let ((guest, _), device) = &mut machines[at];
        raised(&lab);
        let found = signal(guest, *device, remappable(other.into()));
        assert_eq!(found, Some(FaultReason::InterruptIndexTooLarge));
        assert!(raised(&lab).is_none_or(|found| found.is_empty()));
    }
    // Nor does one machine's invalidation reach the other.
    {
        let ((guest, _), _) = &mut machines[0];
        guest.submit(&[Descriptor::InterruptEntryCache {
            granularity: InterruptEntryGranularity::Global,
        }]);
    }
    let ((guest, _), device) = &mut machines[1];
    assert_eq!(signal_trapped(guest, *device, 1), None);
    let [first, second] = machines;
    second.0.0.finish();
    first.0.0.finish();
}

fn routed_messages(place: Place<'_>) {
    let mut guest = place.guest();
    let lab = guest.lab.clone();
    let handle = guest.handle(D0);
    let compatibility = |data| InterruptMessage {
        address: 0xfee0_0000,
        data,
    };
    let entry_index = InterruptIndex::new(4);
    let route = |guest: &mut Guest, data| {
        let (h, units) = (&*lab.hypervisor, &lab.units);
        let message = compatibility(data);
        guest
            .vm
            .route_message(h, units, handle, entry_index, message)
    };
    let message = route(&mut guest, 0x41).expect("a message");
    raised(&lab);
    lab.hypervisor.send_message(guest.physical(D0), message);
    expect_raised(&guest, D0, 0x41);
    assert_eq!(
        route(&mut guest, 0x42),
        Ok(message),
        "the same entry, changed"
    );
    lab.hypervisor.send_message(guest.physical(D0), message);
    expect_raised(&guest, D0, 0x42);
    // An SMI is not for devices, whoever asks.
    let refused = route(&mut guest, 0x241);
    assert!(matches!(
        refused,
        Err(MessageRefusal::Entry(InterruptError::Refused(_)))
    ));
    assert!(hardware_entries(&lab).is_empty());
    route(&mut guest, 0x41).expect("a message");
    // The guest's own table says from now on what there is.
    let (mut guest, _) = with_table(guest);
    assert!(hardware_entries(&lab).is_empty());
    assert_eq!(
        route(&mut guest, 0x41),
        Err(MessageRefusal::GuestRemaps),
        "not behind its back"
    );
    let found = signal(&mut guest, D0, message.address);
    assert_eq!(found, Some(FaultReason::InterruptEntryNotPresent));
    guest.finish();
}

fn leaving_device(place: Place<'_>) {
    let (mut guest, table) = remapping(place);
    set(&mut guest, table, 1, entry(0, 0x41, D0));
    set(&mut guest, table, 2, entry(0, 0x42, D1));
    guest.submit(&[Descriptor::InterruptEntryCache {
        granularity: InterruptEntryGranularity::Global,
    }]);
    assert_eq!(signal(&mut guest, D1, remappable(2)), None);
    let physical = guest.physical(D1);
    guest.unassign(D1).expect("it leaves");
    assert_eq!(hardware_entries(&guest.lab).len(), 1);
    guest.lab.take_unclaimed_faults();
    raised(&guest.lab);
    let index = InterruptIndex::new(2);
    let message = InterruptMessage::remappable(index);
    guest.lab.hypervisor.send_message(physical, message);
    assert!(raised(&guest.lab).is_none_or(|found| found.is_empty()));
    let faults = guest.lab.take_unclaimed_faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].reason_code(), 0x22);
    assert_eq!(signal(&mut guest, D0, remappable(1)), None);
    guest.assign(D1, 1, 0);
    guest.settle();
    assert_eq!(signal(&mut guest, D1, remappable(2)), None);
    guest.finish();
}

fn unconfirmed_entry(place: Place<'_>) {
    let (mut guest, table) = remapping(place);
    set(&mut guest, table, 1, entry(0, 0x41, D0));
    invalidate(&mut guest, 1);
    assert_eq!(signal(&mut guest, D0, remappable(1)), None);
    let lab = guest.lab.clone();
    lab.hypervisor.hold(Hold::Forever);
    let refused = guest.unassign(D0);
    assert!(matches!(refused, Err(BindError::Quarantined { .. })));
    assert!(hardware_entries(&lab).is_empty(), "absent all the same");
    lab.hypervisor.hold(Hold::Nothing);
    lab.hypervisor.pass(1_000_000);
    guest.unassign(D0).expect("hardware confirms at last");
    raised(&lab);
    let message = InterruptMessage::remappable(InterruptIndex::new(1));
    let physical = lab.hypervisor.bench().device(0);
    lab.hypervisor.send_message(physical, message);
    assert!(raised(&lab).is_none_or(|found| found.is_empty()));
    assert!(guest.destroy().is_ok());
    lab.expect_no_violations();
}

fn reset_and_restore(place: Place<'_>) {
    let (mut guest, table) = remapping(place);
    set(&mut guest, table, 1, entry(0, 0x41, D0));
    invalidate(&mut guest, 1);
    let state = guest.vm.save();
    let mut guest = guest.restored(&state);
    assert!(
        hardware_entries(&guest.lab).is_empty(),
        "not before it is polled"
    );
    guest.settle();
    assert_eq!(signal(&mut guest, D0, remappable(1)), None);
    guest.vm.reset();
    guest.settle();
    assert!(hardware_entries(&guest.lab).is_empty());
    guest.finish();
}

fn entries_run_out(place: Place<'_>) {
    let lab = place.lab();
    let options = |number, interrupt_entries_order| GuestOptions {
        number,
        policy: Policy {
            interrupt_entries_order,
            ..Policy::default()
        },
        ..GuestOptions::default()
    };
    let without_devices = |number, order| {
        let devices = Vec::new();
        Guest::start(
            &lab,
            GuestOptions {
                devices,
                ..options(number, order)
            },
        )
    };
    // Half of the unit's entries; then 8, of which a granule is 16.
    let half = lab.units[0].interrupt_entries().ilog2() as u8 - 1;
    let mut large = without_devices(0, half);
    let config = large.device_config(D1, 1, 0);
    large.try_assign(config).expect("half is free");
    let small = GuestOptions {
        devices: vec![(D0, 0, 0)],
        ..options(1, 3)
    };
    let (mut guest, table) = with_table(Guest::start(&lab, small));
    let mut refused = without_devices(2, half);
    let config = refused.device_config(D1, 1, 0);
    assert!(matches!(
        refused.try_assign(config),
        Err(AssignError::Unit(UnitError::InterruptEntries { .. }))
    ));
    refused.finish();
    for index in [7, 8] {
        set(&mut guest, table, index, entry(0, 0x41, D0));
        invalidate(&mut guest, index as u16);
    }
    assert_eq!(signal_trapped(&mut guest, D0, 7), None);
    let handle = guest.handle(D0);
    let beyond = guest.vm.interrupt_index(handle, InterruptIndex::new(8));
    assert!(matches!(
        beyond,
        Err(MessageRefusal::Entry(InterruptError::Index {
            capacity: 8,
            ..
        }))
    ));
    let first = guest.vm.interrupt_index(handle, InterruptIndex::new(0));
    let eighth = u64::from(first.expect("an index").as_u16()) + 8;
    let found = signal(&mut guest, D0, remappable(eighth));
    assert_eq!(found, Some(FaultReason::InterruptTableUnreadable));
    guest.finish();
    large.finish();
}
