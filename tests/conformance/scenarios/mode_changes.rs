//! Mode changes, reset, plug and unplug, save and restore (S31 to S40).

use std::cell::RefCell;
use std::rc::Rc;

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::TranslationTableMode;
use vtd_nest::arch::root::RootHalf;
use vtd_nest::nest::{AssignError, Backend, DeviceConfig, InterruptIsolation, Isolation, Policy};
use vtd_nest::viommu::StateError;
use vtd_nest::viommu::registers::REGISTERS;

use crate::bench::Hold;
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, Guest, GuestOptions, IOVA, Place};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "S31 R21",
        "translation off: bindings go, devices reach guest-physical memory",
        translation_off,
    ),
    scenario(
        "S32 R25",
        "translation on again: the bindings return without an invalidation",
        translation_on_again,
    ),
    scenario(
        "S33 R25",
        "a root table without the device: all unbound, and blocked",
        root_without_the_device,
    ),
    scenario(
        "S34 R25",
        "a root table where one entry differs: exactly that one is replaced",
        root_with_one_difference,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "S35 R21",
        "a legacy root: shadowed by legacy tables, nothing nested left, never open",
        legacy_root,
    ),
    scenario(
        "S35 R21",
        "from nested bindings to a legacy root and back",
        legacy_root_after_bindings,
    ),
    scenario(
        "S36 R25 R26",
        "reset of the unit completes while the host fails",
        reset_while_the_host_fails,
    ),
    scenario(
        "S37 R5 G17",
        "unplugging a device with 100 bindings leaves nothing behind",
        unplug_with_many_bindings,
    ),
    scenario(
        "S38 R21 G19",
        "a device plugged while its entries are present is never open",
        plug_with_entries_present,
    ),
    scenario(
        "S39 R32",
        "save and restore: same registers, pending fault and queue, bindings rebuilt",
        save_and_restore,
    ),
    scenario(
        "S39 R32",
        "a state is taken over before the first poll only; until then devices are blocked",
        restore_before_the_first_poll,
    ),
    scenario(
        "S39 R32",
        "a saved state with indices out of range is rejected",
        restore_of_hostile_state,
    ),
    scenario(
        "S40",
        "a device behind a unit with too few PASID bits is refused with both numbers",
        too_few_pasid_bits,
    )
    .needs(&[Need::PASID]),
    scenario(
        "S40 R14",
        "a device that sends no PASIDs is assigned, and no entry of a PASID is bound for it",
        device_without_pasids,
    )
    .needs(&[Need::PASID]),
];

/// Devices and PASIDs of three bindings: one per device where requests have no PASID.
fn three(guest: &Guest) -> Vec<(SourceId, u32, Option<u32>)> {
    if guest.tag.is_some() {
        vec![(D0, 5, Some(5)), (D0, 6, Some(6)), (D1, 5, Some(5))]
    } else {
        vec![(D0, 0, None), (D1, 0, None)]
    }
}

/// Binds all of [`three`] to one table: root and page.
fn bind_three(guest: &mut Guest) -> (u64, u64) {
    let page = guest.data_page();
    let root = guest.table(&[(IOVA, page)]);
    let entry = guest.entry(root, 7);
    for (device, pasid, _) in three(guest) {
        guest.set_entry(device, pasid, &entry);
    }
    guest.invalidate_pasid_global();
    for (device, _, tag) in three(guest) {
        guest.expect_reaches(device, tag, IOVA, page);
    }
    (root, page)
}

fn translation_off(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = bind_three(&mut guest);
    guest.set_translation(false);
    for (device, pasid, tag) in three(&guest) {
        if pasid != 0 {
            assert_eq!(guest.hardware_entry(device, pasid), None);
            guest.expect_no_data(device, tag, IOVA);
        }
        guest.expect_reaches(device, None, page, page);
        guest.expect_writes_reach(device, None, page, page);
        assert!(
            guest.reached(device, None, IOVA).is_none(),
            "the guest's own translation is gone"
        );
    }
    guest.finish();
}

fn translation_on_again(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = bind_three(&mut guest);
    for _ in 0..2 {
        guest.set_translation(false);
        guest.expect_reaches(D0, None, page, page);
        guest.set_translation(true);
        for (device, _, tag) in three(&guest) {
            guest.expect_reaches(device, tag, IOVA, page);
        }
        assert!(guest.reached(D0, None, page).is_none(), "closed again");
        guest.take_faults();
    }
    guest.finish();
}

fn root_without_the_device(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = bind_three(&mut guest);
    let empty = guest.page();
    guest.set_root(empty, guest.table_mode());
    for (device, pasid, tag) in three(&guest) {
        assert_eq!(guest.hardware_entry(device, pasid), None);
        guest.expect_blocked(device, tag, IOVA, FaultReason::ScalableRootEntryNotPresent);
        guest.expect_blocked(device, None, page, FaultReason::ScalableRootEntryNotPresent);
    }
    guest.finish();
}

fn root_with_one_difference(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = bind_three(&mut guest);
    let (table, other) = guest.other_table();
    // A copy of D1's part of the tree that leads to another entry.
    let source = guest.root_entry_at(D1);
    let (contexts, directory, entries, root) =
        (guest.page(), guest.pages(32), guest.page(), guest.page());
    let mut bytes = [0; 32];
    guest.read(guest.context_at(D1), &mut bytes);
    let attributes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) & 0xfff;
    bytes[..8].copy_from_slice(&(directory | attributes).to_le_bytes());
    let context_offset = guest.context_at(D1) % 0x1000;
    guest.write(contexts + context_offset, &bytes);
    guest.write_u64(directory, entries | 1);
    let pasid = guest.pasid;
    let entry = guest.entry(table, 7).to_bytes();
    guest.write(entries + 64 * u64::from(pasid), &entry);
    let mut old_root = [0; 4096];
    guest.read(source & !0xfff, &mut old_root);
    guest.write(root, &old_root);
    let half = 8 * u64::from(RootHalf::of(D1).quadword());
    guest.write_u64(root + 16 * u64::from(D1.bus()) + half, contexts | 1);

    let kept: Vec<_> = three(&guest)
        .into_iter()
        .filter(|(device, ..)| *device == D0)
        .map(|(device, pasid, tag)| (device, pasid, tag, guest.hardware_entry(device, pasid)))
        .collect();
    let before = guest.vm.statistics();
    guest.set_root(root, guest.table_mode());
    guest.expect_reaches(D1, guest.tag, IOVA, other);
    for (device, pasid, tag, entry) in kept {
        assert_eq!(guest.hardware_entry(device, pasid), entry, "untouched");
        guest.expect_reaches(device, tag, IOVA, page);
    }
    let after = guest.vm.statistics();
    let changes =
        (after.binds - before.binds) + (after.replaced_in_place - before.replaced_in_place);
    assert_eq!(changes, 1, "one replacement, whichever way: {after:?}");
    guest.finish();
}

fn legacy_root(place: Place<'_>) {
    let mut guest = place.guest_with(GuestOptions {
        policy: Policy {
            forbid_nesting: true,
            ..Policy::default()
        },
        ..GuestOptions::default()
    });
    assert_ne!(guest.vm.offer().backend, Backend::Nested);
    let page = guest.data_page();
    let (table, slot) = guest.second_stage_table(IOVA, page);
    let root = guest.legacy_root(D0, table, 7);
    guest.set_root(root, TranslationTableMode::Legacy);
    guest.expect_reaches(D0, None, IOVA, page);
    guest.expect_writes_reach(D0, None, IOVA, page);
    guest.expect_blocked(D0, None, IOVA + 0x1000, FaultReason::LegacyReadDenied);
    guest.expect_blocked(D0, None, page, FaultReason::LegacyReadDenied);
    guest.expect_blocked(D1, None, IOVA, FaultReason::LegacyRootEntryNotPresent);
    // And it follows the guest's table.
    let other = guest.data_page();
    let leaf = guest.read_u64(slot) & 0xfff | other;
    guest.write_u64(slot, leaf);
    guest.invalidate_iotlb(vtd_nest::arch::descriptor::IotlbGranularity::Global);
    guest.expect_reaches(D0, None, IOVA, other);
    guest.finish();
}

fn legacy_root_after_bindings(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = bind_three(&mut guest);
    let other = guest.data_page();
    let (table, _) = guest.second_stage_table(IOVA, other);
    let root = guest.legacy_root(D0, table, 7);
    guest.set_root(root, TranslationTableMode::Legacy);
    for (device, pasid, tag) in three(&guest) {
        if pasid != 0 {
            assert_eq!(
                guest.hardware_entry(device, pasid),
                None,
                "nothing nested left"
            );
            guest.expect_no_data(device, tag, IOVA);
        }
    }
    guest.expect_reaches(D0, None, IOVA, other);
    guest.expect_no_data(D1, None, IOVA);
    guest.expect_no_data(D0, None, page);
    guest.set_root(crate::lab::ROOT, guest.table_mode());
    for (device, _, tag) in three(&guest) {
        guest.expect_reaches(device, tag, IOVA, page);
    }
    guest.finish();
}

fn reset_while_the_host_fails(place: Place<'_>) {
    for allocations in [None, Some(0)] {
        let mut guest = place.guest();
        let (_, page) = bind_three(&mut guest);
        guest.lab.hypervisor.fail_allocations_after(allocations);
        guest.vm.reset();
        guest.settle();
        guest.lab.hypervisor.fail_allocations_after(None);
        for (device, pasid, _) in three(&guest) {
            if pasid != 0 {
                assert_eq!(guest.hardware_entry(device, pasid), None);
            }
            // Translation is off after reset: the machine's own memory or nothing.
            let reached = guest.reached(device, None, page);
            assert!(reached == Some(page) || allocations.is_some() && reached.is_none());
        }
        // A driver starts from the beginning and finds a unit that works.
        guest.take_faults();
        guest.bring_up(guest.descriptor_width());
        guest.bound();
        guest.finish();
    }
}

fn unplug_with_many_bindings(place: Place<'_>) {
    let mut guest = place.guest();
    let ids_before = {
        let mut bare = place.guest();
        bare.unassign(D0).unwrap();
        let charged = bare.lab.hypervisor.pool().charged_frames(bare.owner());
        (bare.lab.units[0].free_domain_ids(), charged)
    };
    let (root, page) = guest.bound();
    let last = if guest.tag.is_some() { 105 } else { 1 };
    for pasid in guest.pasid..last {
        let entry = guest.entry(root, 7 + (pasid % 10) as u16);
        guest.set_entry(D0, pasid, &entry);
    }
    guest.invalidate_pasid_global();
    guest.unassign(D0).unwrap();
    for pasid in guest.pasid..last {
        assert_eq!(guest.hardware_entry(D0, pasid), None);
    }
    assert!(!guest.gets_through(D0, guest.tag, IOVA, crate::bench::Access::Read));
    assert!(guest.reached(D0, None, page).is_none());
    guest.lab.take_unclaimed_faults();
    let charged = guest.lab.hypervisor.pool().charged_frames(guest.owner());
    assert_eq!(
        (guest.lab.units[0].free_domain_ids(), charged),
        ids_before,
        "domain-ids and frames"
    );
    // It can come back, and is bound as before.
    guest.assign(D0, 0, 0);
    guest.settle();
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.finish();
}

fn plug_with_entries_present(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = bind_three(&mut guest);
    guest.unassign(D0).unwrap();
    // The device never rests: between any two stores of the hypervisor it reads the page by its
    // guest-physical address, which no table of the guest allows.
    let escapes = Rc::new(RefCell::new(Vec::new()));
    let seen = escapes.clone();
    let requester = guest.requester(D0, None);
    guest.lab.hypervisor.on_step(move |interposer| {
        let mut bytes = [0; 8];
        interposer.dma_read(requester, Iova::new(page), &mut bytes);
        if bytes != [0; 8] {
            seen.borrow_mut().push(u64::from_le_bytes(bytes));
        }
    });
    guest.assign(D0, 0, 0);
    guest.settle();
    guest.lab.hypervisor.clear_hooks();
    assert_eq!(*escapes.borrow(), [0u64; 0], "open while it was plugged");
    guest.take_faults();
    for (device, _, tag) in three(&guest) {
        guest.expect_reaches(device, tag, IOVA, page);
    }
    guest.finish();
}

/// All registers but the fault records, and the first of these.
fn registers(guest: &Guest) -> Vec<u64> {
    let registers = (0..0x100).step_by(4);
    let mut values: Vec<_> = registers
        .map(|offset| guest.read_register(offset, 4))
        .collect();
    let (low, high) = guest.fault_record(0);
    values.extend([low, high]);
    values
}

fn save_and_restore(place: Place<'_>) {
    for steps in 0..4 {
        let mut guest = place.guest();
        let (_, page) = bind_three(&mut guest);
        // A fault that the guest has not read, and a wait that hardware has not confirmed.
        guest.gets_through(D0, guest.tag, IOVA + 0x1000, crate::bench::Access::Read);
        guest.settle();
        let record = guest.fault_record(0);
        let lab = guest.lab.clone();
        lab.hypervisor.hold(Hold::Forever);
        let invalidation = guest.page_invalidation(7, IOVA, 0);
        guest.push(invalidation);
        let wait = guest.push_wait();
        guest.ring_only();
        for _ in 0..steps {
            let _ = guest.vm.poll(&*lab.hypervisor, &lab.units, 1);
        }
        assert_ne!(guest.wait_status(), wait, "in the middle of it");
        let before = registers(&guest);
        let saved = guest.vm.save();
        lab.hypervisor.hold(Hold::Nothing);
        let mut restored = guest.restored(&saved);
        assert_eq!(registers(&restored), before);
        assert_eq!(restored.vm.save(), saved, "it can be moved on");
        assert_ne!(restored.wait_status(), wait, "nothing is done yet");
        restored.settle();
        assert_eq!(restored.wait_status(), wait);
        assert_eq!(restored.fault_record(0), record);
        for (device, _, tag) in three(&restored) {
            restored.expect_reaches(device, tag, IOVA, page);
        }
        // And the queue goes on where it was.
        let (root, other) = restored.other_table();
        let entry = restored.entry(root, 7);
        restored.set_entry(D0, restored.pasid, &entry);
        restored.invalidate_pasid(7, restored.pasid);
        restored.expect_reaches(D0, restored.tag, IOVA, other);
        restored.finish();
    }
}

fn restore_before_the_first_poll(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = bind_three(&mut guest);
    let saved = guest.vm.save();
    let in_use = guest.vm.restore(&saved);
    assert!(
        matches!(in_use, Err(StateError::InUse { .. })),
        "nothing is open meanwhile: {in_use:?}"
    );
    let mut guest = guest.restored(&saved);
    for (device, pasid, tag) in three(&guest) {
        assert_eq!(guest.hardware_entry(device, pasid), None);
        // By the guest's own address, and by the machine's.
        for (tag, address) in [(tag, IOVA), (None, page)] {
            assert!(!guest.gets_through(device, tag, address, crate::bench::Access::Read));
        }
    }
    guest.settle();
    guest.take_faults();
    guest.lab.take_unclaimed_faults();
    for (device, _, tag) in three(&guest) {
        guest.expect_reaches(device, tag, IOVA, page);
    }
    guest.finish();
}

/// Where a register is in a saved state, in bytes: after nine quadwords, in the table's order.
fn place_in_state(name: &str) -> usize {
    let index = REGISTERS.iter().position(|register| register.name == name);
    8 * (9 + index.expect("a register"))
}

fn restore_of_hostile_state(place: Place<'_>) {
    let lab = place.lab();
    let options = GuestOptions::default();
    let mut guest = Guest::start(&lab, options.clone());
    let (_, page) = guest.bound();
    let saved = guest.vm.save();
    let mut next = Guest::start(
        &lab,
        GuestOptions {
            number: 1,
            devices: Vec::new(),
            brought_up: false,
            ..options
        },
    );
    let before = registers(&next);
    let mut refuse = |state: &[u8], field: Option<&str>| {
        let refused = next.vm.restore(state);
        match (refused, field) {
            (Err(StateError::Field { field, .. }), Some(expected)) => assert_eq!(field, expected),
            (Err(StateError::Length { .. }), None) => {}
            _ => panic!("{field:?}: {refused:?}"),
        }
        assert_eq!(registers(&next), before, "nothing has changed");
    };
    // The index of the next fault record, the one of the first, the head: out of range; and
    // reserved bits.
    for (at, value, field) in [
        (0, 0, "mark"),
        (8, 1, "version"),
        (8 * 8, 4, "next fault record"),
        (place_in_state("FSTS_REG"), 0xff02, "FSTS_REG"),
        (place_in_state("IQH_REG"), 0x7_fff0, "IQH_REG"),
        (place_in_state("IQT_REG"), 0xf, "IQT_REG"),
        (place_in_state("GSTS_REG"), 0xffff_ffff, "GSTS_REG"),
        (place_in_state("CAP_REG"), u64::MAX, "CAP_REG"),
        (place_in_state("ECAP_REG"), u64::MAX, "ECAP_REG"),
    ] {
        let mut state = saved;
        state[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        refuse(&state, Some(field));
    }
    for len in [0, 1, 8, saved.len() - 1] {
        refuse(&saved[..len], None);
    }
    next.destroy().ok().expect("it goes");
    // Whatever byte is wrong, it never stops the hypervisor; what is taken over is replaced.
    let mut guest = guest.restored(&saved);
    let before = registers(&guest);
    for at in 0..saved.len() {
        let mut state = saved;
        state[at] ^= 0xff;
        let _ = guest.vm.restore(&state);
    }
    assert_eq!(guest.vm.restore(&saved), Ok(()));
    assert_eq!(registers(&guest), before);
    guest.settle();
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.finish();
}

fn too_few_pasid_bits(place: Place<'_>) {
    let lab = place.lab();
    let mut guest = Guest::start(&lab, GuestOptions::default());
    let shown = guest.vm.offer().features.extended.pasid_bits();
    let before = guest.holdings();
    let config = DeviceConfig {
        pasid_bits: 4,
        ..DeviceConfig::new(
            SourceId::from_u16(0x0400),
            SourceId::from_u16(0x0400),
            0,
            InterruptIsolation::WaivedByEmbedder,
            Isolation::AssertedByEmbedder,
        )
    };
    let assign = |guest: &mut Guest, pasid_bits| {
        let config = DeviceConfig {
            pasid_bits,
            ..config
        };
        guest.vm.assign(&*lab.hypervisor, &lab.units, config)
    };
    for carried in [1, 4, shown - 1] {
        assert_eq!(
            assign(&mut guest, carried),
            Err(AssignError::PasidBits {
                source_id: config.source_id,
                shown,
                carried
            })
        );
        assert_eq!(guest.holdings(), before, "nothing is kept");
    }
    assert!(assign(&mut guest, shown).is_ok());
    guest.finish();
}

fn device_without_pasids(place: Place<'_>) {
    let mut guest = place.guest();
    guest.unassign(D0).unwrap();
    guest.assign_with_pasid_bits(D0, 0, 0, 0);
    let page = guest.data_page();
    let root = guest.table(&[(IOVA, page)]);
    let entry = guest.entry(root, 7);
    for pasid in [0, 5] {
        guest.set_entry(D0, pasid, &entry);
    }
    guest.invalidate_pasid_global();
    guest.expect_reaches(D0, None, IOVA, page);
    assert_eq!(guest.hardware_entry(D0, 5), None, "it has no such PASID");
    if let Some(tag) = guest.tag {
        guest.expect_no_data(D0, Some(tag), IOVA);
    }
    guest.finish();
}
