//! Interrupt remapping of the guest's unit (S84 to S87): what a device's message comes to.
//!
//! A message that is blocked leaves a fault record in the guest's unit; one that is not, none.

use vtd_nest::arch::capability::ExtendedCapabilityField as Ecap;
use vtd_nest::arch::descriptor::{Descriptor, InterruptEntryGranularity};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::interrupt::InterruptMessage;
use vtd_nest::arch::register::{GlobalCommand, GlobalStatus, Register32, Register64};
use vtd_nest::mem::Registers;

use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, Guest, Lab, Place};

const NEEDS: &[Need] = &[Need::Extended(Ecap::INTERRUPT_REMAPPING, "IR")];

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
    .needs(NEEDS),
];

/// Entries of the guest's table: 2^(S + 1), S = 3.
const ENTRIES: u64 = 16;
const SIZE_FIELD: u64 = 3;
const VECTOR: u64 = 0x5d;

/// A guest whose table has [`ENTRIES`] absent entries, with remapping on; and the table's place.
fn remapping(place: Place<'_>) -> (Guest, u64) {
    let mut guest = place.guest();
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
        assert_eq!(signal(&mut guest, D0, remappable(2)), None);
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
        assert_eq!(signal(&mut guest, D1, remappable(1)), None);
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
