//! Guard rules that show on a machine with a guest (requirements, section 2).

use std::cell::Cell;
use std::rc::Rc;

use vtd_nest::arch::address::{Gpa, Hpa, Iova, PageSize};
use vtd_nest::arch::descriptor::{Descriptor, IotlbGranularity};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::first_stage::FirstStageEntry;
use vtd_nest::arch::id::{DomainId, SourceId};
use vtd_nest::arch::pasid::PasidEntry;
use vtd_nest::arch::register::{GlobalStatus, Register32, Register64};
use vtd_nest::arch::second_stage::SecondStageEntry;
use vtd_nest::mem::Registers;
use vtd_nest::nest::{AssignError, DeviceConfig, InterruptIsolation, Isolation, MachineError};
use vtd_nest::paging::{MapError, Rights};

use crate::bench::{Ability, Access, Hold, Interposer, host_offset};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::{D0, D1, GUEST_LEN_BYTES, Guest, GuestOptions, IOVA, Place, Random};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "G1",
        "a device whose interrupts must be isolated is refused where nothing isolates them",
        isolation_is_required,
    ),
    scenario(
        "G9",
        "random writes to the guest's registers: each call does bounded work",
        random_register_writes,
    ),
    scenario(
        "G10 G36",
        "a wait's status address in nobody's memory is written nowhere, and never forwarded",
        wait_status_addresses,
    ),
    scenario(
        "G12 R12",
        "hardware can read an entry old, new or absent, never torn, whatever changes",
        entries_are_never_torn,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "G14 S69",
        "hardware never writes the guest's read-only memory through its page tables",
        read_only_memory_stays,
    )
    .needs(&[Need::Nesting]),
    scenario(
        "G15 G23",
        "random changes of a machine's memory agree with a flat map",
        memory_agrees_with_a_flat_map,
    ),
    scenario(
        "G15 S50",
        "a part of a large page is not taken away, the whole of it is",
        part_of_a_large_page,
    ),
    scenario(
        "G15 S68",
        "large guest pages are shadowed as far as there is memory, and replaced by small ones",
        large_guest_pages,
    ),
    scenario(
        "G17 S7 S88",
        "reused host domain-ids serve no translation of their last user",
        reused_domain_ids,
    ),
    scenario(
        "G19 G23 R5",
        "an unassigned device is blocked from some step on, and until it is assigned again",
        unassigned_is_blocked,
    ),
    scenario(
        "G22 S48",
        "device-TLBs and page requests stay off in hardware whatever the guest writes",
        device_tlb_stays_off,
    ),
    scenario(
        "G22 S49",
        "a device that never answers is cut off, and the queue goes on for others",
        silent_device,
    )
    .needs(&[Need::Ability(Ability::DeviceTlb)]),
    scenario(
        "G23 S50",
        "memory that is taken away is out of reach when the call returns",
        memory_taken_away,
    ),
    scenario(
        "G23 S50",
        "memory added later is reached through a table that names it already",
        memory_added_later,
    ),
    scenario(
        "G26 G33",
        "two units, one of them dead: what the other has not confirmed still counts",
        dead_unit_beside_a_slow_one,
    )
    .needs(&[Need::Ability(Ability::SeveralUnits)]),
    scenario(
        "G31",
        "what was absent is seen once it is present, whether absence is cached or not",
        absent_then_present,
    ),
    scenario(
        "G32",
        "a storm of faults: bounded reports, overflow told, others served",
        fault_storm,
    ),
    scenario(
        "G35",
        "page-request registers are not the guest's",
        page_request_registers,
    ),
    scenario(
        "G36 S27",
        "guest memory that changes at every read: old, new or nothing, never a mix",
        memory_changes_at_every_read,
    ),
    scenario(
        "G37 S56",
        "offsets that are no register read 0 and reach no hardware",
        no_register,
    ),
    scenario(
        "S78 R16",
        "a table page in no memory blocks its own range only",
        table_in_no_memory,
    ),
    scenario(
        "S79 R20",
        "a shadow that found no frame is whole again after the next invalidation",
        emptied_shadow,
    ),
    scenario(
        "S79",
        "a full device table refuses the next device, and nothing else",
        device_table_full,
    ),
    scenario(
        "S90 R22",
        "a guest waits once for hardware that never confirms",
        waits_once,
    ),
    scenario(
        "S37 G19",
        "a shared shadow outlives the device that leaves",
        shared_shadow,
    ),
];

const BACK_ENDS: [fn(Place<'_>) -> Guest; 2] =
    [|place| place.guest(), |place| place.shadow_guest()];

/// Time that passes at each look at the clock when hardware is to be given up quickly.
const COARSE_STEP_NANOSECONDS: u64 = 10_000_000;

fn device(guest: &Guest, index: usize, interrupts: InterruptIsolation) -> DeviceConfig {
    DeviceConfig {
        pasid_bits: 20,
        ..DeviceConfig::new(
            guest.lab.hypervisor.bench().device(index),
            SourceId::from_u16(0x0500),
            0,
            interrupts,
            Isolation::AssertedByEmbedder,
        )
    }
}

fn isolation_is_required(place: Place<'_>) {
    let mut guest = place.guest_with(GuestOptions {
        devices: vec![(D0, 0, 0)],
        ..GuestOptions::default()
    });
    let lab = guest.lab.clone();
    let config = device(&guest, 1, InterruptIsolation::Required);
    let before = guest.holdings();
    let assigned = guest.vm.assign(&*lab.hypervisor, &lab.units, config);
    let registers = lab.hypervisor.registers(0).expect("a unit");
    let status = registers.read32(Register32::GLOBAL_STATUS);
    let status = GlobalStatus::from_bits_truncate(status);
    let isolates = status.contains(GlobalStatus::INTERRUPT_REMAPPING_ENABLED)
        && !status.contains(GlobalStatus::COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED);
    if isolates {
        assert!(assigned.is_ok(), "{assigned:?}");
    } else {
        let refused = AssignError::InterruptRemappingMissing(config.source_id);
        assert_eq!(assigned.map(drop), Err(refused), "not a warning");
        assert_eq!(guest.holdings(), before);
    }
    guest.finish();
}

// ---- registers and the queue ----

fn random_register_writes(place: Place<'_>) {
    const BUDGET: u32 = 32;
    for seed in 0..2 {
        let mut random = Random::new(seed);
        let mut guest = place.guest();
        guest.bound();
        let lab = guest.lab.clone();
        for _ in 0..300 {
            // Mostly the registers that matter; sometimes anything.
            let offset = match random.below(4) {
                0 => random.below(0x1200),
                1 => random.pick(&[0x18, 0x20, 0x88, 0x90, 0x28]),
                _ => random.below(0x40) * 8,
            };
            let value = match random.below(4) {
                0 => random.next(),
                1 => random.below(GUEST_LEN_BYTES),
                2 => 1 << random.below(64),
                _ => 0x20_0000 | random.below(1 << 12) << random.below(8),
            };
            let len = random.pick(&[1, 2, 4, 8]);
            guest.vm.write_register(offset, len, value);
            let _ = guest.vm.read_register(random.below(0x1200), len);
            for _ in 0..3 {
                let before = lab.hypervisor.counts();
                let _ = guest.vm.poll(&*lab.hypervisor, &lab.units, BUDGET);
                let done = lab.hypervisor.counts().since(before);
                assert!(
                    done.guest_bytes <= u64::from(BUDGET) * 2 * 4096
                        && done.stores <= u64::from(BUDGET) * 64,
                    "{value:#x} to {offset:#x}: {done:?}"
                );
            }
            // Whatever it is, it stays the guest's.
            let _ = guest.reached(D0, guest.tag, IOVA);
        }
        guest.take_faults();
        guest.finish();
    }
}

fn wait_status_addresses(place: Place<'_>) {
    const DATA: u64 = 0x0bad_f00d;
    let mut guest = place.guest();
    guest.bound();
    let lab = guest.lab.clone();
    let layout = lab.hypervisor.bench().layout();
    let (nobodys, frames) = (layout.nobodys.start.as_u64(), layout.frames);
    let nobodys_before: Vec<_> = (0..64)
        .map(|word| lab.host_read64(Hpa::new(nobodys + 8 * word)))
        .collect();
    // Next to it lies another machine's memory.
    let beyond = guest.lab.hypervisor.bench().layout().guests.start.as_u64() + GUEST_LEN_BYTES;
    for address in [
        GUEST_LEN_BYTES,
        nobodys,
        frames.start.as_u64(),
        beyond,
        0xfed9_0000,
        0xfee0_0000,
        0x000f_ffff_ffff_fffc,
        !3,
        1 << 63,
    ] {
        lab.hypervisor.record_stores();
        lab.hypervisor.take_descriptors();
        // SW, no interrupt, no fence.
        guest.push_words([5 | 1 << 5 | DATA << 32, address, 0, 0]);
        let wait = guest.push_wait();
        guest.ring();
        assert_eq!(guest.wait_status(), wait, "{address:#x} stops nothing");
        for store in lab.hypervisor.take_stores() {
            assert!(frames.contains(store.at), "{address:#x}: {store:x?}");
            assert_ne!(store.value as u32, DATA as u32, "forwarded: {store:x?}");
        }
        assert_eq!(lab.hypervisor.take_descriptors(), [[0; 4]; 0]);
    }
    let nobodys_after: Vec<_> = (0..64)
        .map(|word| lab.host_read64(Hpa::new(nobodys + 8 * word)))
        .collect();
    assert_eq!(nobodys_after, nobodys_before);
    // The last dword of a page, and one that is half of a quadword, are the guest's own.
    let page = guest.page();
    for at in [page, page + 4, page + 0xffc] {
        guest.push_words([5 | 1 << 5 | DATA << 32, at, 0, 0]);
        guest.push_wait();
        guest.ring();
        let mut bytes = [0; 4];
        guest.read(at, &mut bytes);
        assert_eq!(u64::from(u32::from_le_bytes(bytes)), DATA);
    }
    assert_eq!(guest.read_u64(page + 0xff0), 0, "and nothing beside them");
    guest.finish();
}

fn page_request_registers(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = guest.bound();
    let lab = guest.lab.clone();
    let registers = lab.hypervisor.registers(0).expect("a unit");
    let has_requests = lab.units[0].features().extended.has_page_requests();
    let hardware = || {
        [
            Register64::PAGE_REQUEST_QUEUE_HEAD,
            Register64::PAGE_REQUEST_QUEUE_TAIL,
            Register64::PAGE_REQUEST_QUEUE_ADDRESS,
        ]
        .map(|register| has_requests.then(|| registers.read64(register)))
    };
    let before = hardware();
    let shown = guest.vm.offer().features.extended.has_page_requests();
    for offset in (0xc0..0xf0).step_by(4) {
        guest.write_register(offset, 4, 0xffff_ffff);
        guest.write_register(offset & !7, 8, u64::MAX);
        if !shown {
            assert_eq!(guest.read_register(offset, 4), 0, "{offset:#x}");
        }
    }
    assert_eq!(hardware(), before);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.finish();
}

fn no_register(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = guest.bound();
    let lab = guest.lab.clone();
    let features = guest.vm.offer().features;
    let records = u64::from(features.capability.fault_record_offset());
    let iotlb = u64::from(features.extended.iotlb_register_offset());
    let interrupts = features.extended.has_interrupt_remapping();
    let requests = features.extended.has_page_requests();
    // Offset and length of every register that this unit shows (§11.4.1).
    let mut known: Vec<(u64, u64)> = vec![
        (0x00, 4),
        (0x08, 8),
        (0x10, 8),
        (0x18, 4),
        (0x1c, 4),
        (0x20, 8),
        (0x28, 8),
        (0x34, 4),
        (0x38, 16),
        (0x80, 24),
        (0x9c, 20),
        (0xb0, 8),
        (records, 16 * guest.fault_record_count()),
        (iotlb, 16),
    ];
    if interrupts {
        known.push((0xb8, 8));
    }
    if requests {
        known.extend([(0xc0, 24), (0xdc, 20)]);
    }
    let is_known = |offset: u64, len: u64| {
        let mut known = known.iter();
        known.any(|(start, size)| offset < start + size && *start < offset + len)
    };
    let registers = lab.hypervisor.registers(0).expect("a unit");
    let hardware = || {
        let words = [
            Register64::ROOT_TABLE_ADDRESS,
            Register64::INVALIDATION_QUEUE_ADDRESS,
            Register64::INVALIDATION_QUEUE_TAIL,
        ]
        .map(|register| registers.read64(register));
        let controls = [
            Register32::GLOBAL_STATUS,
            Register32::FAULT_EVENT_CONTROL,
            Register32::INVALIDATION_EVENT_CONTROL,
        ]
        .map(|register| registers.read32(register));
        (words, controls)
    };
    let before = hardware();
    for len in [1, 2, 4, 8] {
        for offset in (0..0x1400).step_by(usize::from(len)) {
            if is_known(offset, len.into()) {
                // Defined, whatever it is.
                let _ = guest.read_register(offset, len);
                continue;
            }
            guest.vm.write_register(offset, len, u64::MAX);
            assert_eq!(guest.read_register(offset, len), 0, "{offset:#x}, {len}");
        }
    }
    for offset in [0x1400, 0xffff, 0x1_0000, u64::MAX - 7, u64::MAX] {
        guest.vm.write_register(offset, 8, u64::MAX);
        assert_eq!(guest.read_register(offset, 8), 0, "{offset:#x}");
    }
    guest.settle();
    assert_eq!(hardware(), before);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.finish();
}

// ---- entries ----

fn entries_are_never_torn(place: Place<'_>) {
    for start in BACK_ENDS {
        let mut guest = start(place);
        let (pasid, tag) = (guest.pasid, guest.tag);
        let tables = [guest.other_table(), guest.other_table()];
        guest.bound();
        let at = guest.entry_place(D0, pasid);
        let mut changes: Vec<PasidEntry> = vec![
            guest.entry(tables[0].0, 7),
            guest.entry(tables[1].0, 7),
            guest.entry(tables[0].0, 9),
            PasidEntry::default(),
            guest.entry(tables[1].0, 9),
        ];
        if guest.vm.offer().features.extended.has_pass_through() {
            changes.extend([
                Guest::pass_through(9),
                guest.entry(tables[0].0, 7),
                Guest::pass_through(7),
            ]);
        }
        let now = |guest: &Guest| -> Vec<u64> {
            let words = (0..8).map(|index| guest.lab.host_read64(host_offset(at, 8 * index)));
            words.collect()
        };
        for change in changes {
            let old = now(&guest);
            let history = guest.lab.record_entry(at, 8);
            guest.set_entry(D0, pasid, &change);
            guest.invalidate_pasid(0, pasid);
            guest.lab.hypervisor.clear_hooks();
            let new = now(&guest);
            for readable in history.readable() {
                assert!(
                    readable == old || readable == new,
                    "{readable:x?} of {:x?}",
                    history.states()
                );
            }
            // Gone is the whole of it: the slot is clear for the next.
            assert!(new[0] & 1 == 1 || new == [0; 8], "{new:x?}");
            assert_eq!(new[0] & 1 == 1, change.is_present());
            let _ = guest.reached(D0, tag, IOVA);
        }
        guest.take_faults();
        guest.finish();
    }
}

fn read_only_memory_stays(place: Place<'_>) {
    let mut guest = place.guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let lab = guest.lab.clone();
    // A read-only page behind the machine's memory holds the lowest page table.
    let at = Gpa::new(GUEST_LEN_BYTES);
    let host = lab.hypervisor.bench().layout().nobodys.start;
    let page = guest.data_page();
    let leaf = FirstStageEntry::leaf(Gpa::new(page), PageSize::Size4KiB, true, true).as_u64();
    let slot = host_offset(host, (IOVA >> 12 & 0x1ff) * 8);
    lab.hypervisor.guest_write(slot, &leaf.to_le_bytes());
    guest
        .vm
        .map_memory(&*lab.hypervisor, &lab.units, at, host, 0x1000, Rights::READ)
        .expect("it is mapped, or left out");
    let root = guest.page();
    let entry = guest.table_entry(at.as_u64());
    guest.set_leaf(root, IOVA, 2, entry);
    let entry = guest.entry(root, 7);
    guest.set_entry(D0, pasid, &entry);
    guest.invalidate_pasid(7, pasid);
    for access in [Access::Read, Access::Write] {
        let _ = guest.gets_through(D0, tag, IOVA, access);
        let now = lab.host_read64(slot);
        assert_eq!(now, leaf, "{access:?} wrote to read-only memory");
    }
    guest.take_faults();
    guest.finish();
}

// ---- memory of a machine ----

fn memory_agrees_with_a_flat_map(place: Place<'_>) {
    const PAGES: u64 = 2048;
    const STAMP: u64 = 0xf1a7_0000_0000;
    let mut guest = place.guest();
    guest.set_translation(false);
    let lab = guest.lab.clone();
    let hypervisor = &*lab.hypervisor;
    let host = hypervisor.bench().layout().nobodys.start;
    for page in 0..PAGES {
        let value = STAMP | page;
        hypervisor.guest_write(host_offset(host, page << 12), &value.to_le_bytes());
    }
    let mut random = Random::new(15);
    let mut flat = vec![None; PAGES as usize];
    let mut done = [0; 3];
    for _ in 0..80 {
        let len: u64 = random.pick(&[1, 3, 16, 511, 512, 1024]);
        let align = random.pick(&[1, len.next_power_of_two()]);
        let first = random.below(PAGES - len) / align * align;
        let at = Gpa::new(GUEST_LEN_BYTES + (first << 12));
        let range = first as usize..(first + len) as usize;
        if random.below(5) < 3 {
            // The same place in the host's large pages, or another.
            let other = random.below(PAGES - len);
            let from = random.pick(&[first, other]);
            let mapped = guest.vm.map_memory(
                hypervisor,
                &lab.units,
                at,
                host_offset(host, from << 12),
                len << 12,
                Rights::READ_WRITE,
            );
            if flat[range.clone()].iter().any(Option::is_some) {
                let overlap = matches!(mapped, Err(MachineError::Map(MapError::Overlap { .. })));
                assert!(overlap, "{mapped:?}");
                done[0] += 1;
            } else {
                assert_eq!(mapped, Ok(()));
                for (page, slot) in (from..).zip(&mut flat[range]) {
                    *slot = Some(page);
                }
                done[1] += 1;
            }
        } else {
            match guest.vm.unmap_memory(hypervisor, &lab.units, at, len << 12) {
                Ok(()) => {
                    flat[range].fill(None);
                    done[2] += 1;
                }
                Err(MachineError::Map(MapError::PartialLeaf { .. })) => done[0] += 1,
                other => panic!("{other:?}"),
            }
        }
        for _ in 0..40 {
            let page = random.below(PAGES);
            let requester = guest.requester(D0, None);
            let mut bytes = [0; 8];
            let address = Iova::new(GUEST_LEN_BYTES + (page << 12));
            hypervisor.dma_read(requester, address, &mut bytes);
            let expected = flat[page as usize].map_or(0, |page| STAMP | page);
            assert_eq!(u64::from_le_bytes(bytes), expected, "page {page}");
        }
        guest.settle();
    }
    assert!(done.iter().all(|count| *count > 0), "{done:?}");
    lab.host_faults.take();
    guest.finish();
}

fn part_of_a_large_page(place: Place<'_>) {
    let mut guest = place.guest();
    guest.set_translation(false);
    let lab = guest.lab.clone();
    let hypervisor = &*lab.hypervisor;
    let nobodys = hypervisor.bench().layout().nobodys.start.as_u64();
    // 2 MiB, aligned on both sides: one leaf where hardware has such.
    let host = Hpa::new(nobodys.next_multiple_of(2 << 20));
    let at = GUEST_LEN_BYTES.next_multiple_of(2 << 20);
    let len = 2 << 20;
    let part = 0x12_3000;
    let value = 0x9a97_0000_9a97u64;
    hypervisor.guest_write(host_offset(host, part), &value.to_le_bytes());
    hypervisor.guest_write(host, &value.to_le_bytes());
    let reads = |guest: &Guest, offset: u64| {
        let mut bytes = [0; 8];
        let requester = guest.requester(D0, None);
        hypervisor.dma_read(requester, Iova::new(at + offset), &mut bytes);
        u64::from_le_bytes(bytes)
    };
    let (units, rights) = (&lab.units, Rights::READ_WRITE);
    guest
        .vm
        .map_memory(hypervisor, units, Gpa::new(at), host, len, rights)
        .expect("mapped");
    assert_eq!(reads(&guest, part), value);
    let unmapped = guest
        .vm
        .unmap_memory(hypervisor, units, Gpa::new(at + part), 0x1000);
    match unmapped {
        Ok(()) => assert_eq!(reads(&guest, part), 0),
        Err(MachineError::Map(MapError::PartialLeaf { .. })) => {
            assert_eq!(reads(&guest, part), value, "nothing has changed");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(reads(&guest, 0), value, "the rest is there");
    if unmapped.is_err() {
        guest
            .vm
            .unmap_memory(hypervisor, units, Gpa::new(at), len)
            .expect("the whole");
        assert_eq!((reads(&guest, 0), reads(&guest, part)), (0, 0));
    }
    guest.settle();
    lab.host_faults.take();
    guest.finish();
}

fn large_guest_pages(place: Place<'_>) {
    use vtd_nest::arch::address::PageSize::{Size1GiB, Size2MiB};
    let mut guest = place.shadow_guest();
    let (root, page) = guest.bound();
    let tag = guest.tag;
    let capability = guest.vm.offer().features.capability;
    if capability.second_stage_large_page(Size2MiB) {
        let base = IOVA & !0x1f_ffff;
        let slot = guest.slot_at(root, IOVA, 2);
        let small = guest.read_u64(slot);
        let region = guest.pages(512);
        let (low, high) = (region + (IOVA - base), region + 0x1f_f000);
        guest.stamp(low);
        guest.stamp(high);
        let large = SecondStageEntry::leaf(Gpa::new(region), Size2MiB, Rights::READ_WRITE, false);
        for _ in 0..2 {
            guest.write_u64(slot, large.as_u64());
            guest.invalidate_pages(7, base, 9);
            guest.expect_reaches(D0, tag, IOVA, low);
            guest.expect_reaches(D0, tag, base + 0x1f_f000, high);
            guest.write_u64(slot, small);
            guest.invalidate_pages(7, base, 9);
            guest.expect_reaches(D0, tag, IOVA, page);
            guest.expect_no_data(D0, tag, base + 0x1f_f000);
        }
    }
    if capability.second_stage_large_page(Size1GiB) {
        // Of which the machine has the first part only.
        let base = IOVA & !0x3fff_ffff;
        let slot = guest.slot_at(root, IOVA, 3);
        let middle = guest.read_u64(slot);
        let giant = SecondStageEntry::leaf(Gpa::new(0), Size1GiB, Rights::READ_WRITE, false);
        guest.write_u64(slot, giant.as_u64());
        guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7)));
        let last = GUEST_LEN_BYTES - 0x1000;
        guest.stamp(last);
        guest.expect_reaches(D0, tag, base + last, last);
        guest.expect_blocked(D0, tag, base + GUEST_LEN_BYTES, FaultReason::ReadDenied);
        guest.write_u64(slot, middle);
        guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7)));
        guest.expect_reaches(D0, tag, IOVA, page);
        guest.expect_no_data(D0, tag, base + last);
    }
    guest.finish();
}

fn memory_taken_away(place: Place<'_>) {
    for start in BACK_ENDS {
        for hold in [Hold::Nothing, Hold::For(50_000)] {
            let mut guest = start(place);
            let (pasid, tag) = (guest.pasid, guest.tag);
            let lab = guest.lab.clone();
            let hypervisor = &*lab.hypervisor;
            let at = Gpa::new(GUEST_LEN_BYTES);
            let host = guest.host_of(Gpa::new(0x1_e000));
            let (units, rights) = (&lab.units, Rights::READ_WRITE);
            guest
                .vm
                .map_memory(hypervisor, units, at, host, 0x1000, rights)
                .expect("mapped");
            guest.stamp(0x1_e000);
            let root = guest.table(&[(IOVA, at.as_u64())]);
            let entry = guest.entry(root, 7);
            guest.set_entry(D0, pasid, &entry);
            guest.invalidate_pasid(7, pasid);
            guest.expect_reaches(D0, tag, IOVA, 0x1_e000);
            guest.expect_writes_reach(D0, tag, IOVA, 0x1_e000);
            hypervisor.hold(hold);
            guest
                .vm
                .unmap_memory(hypervisor, units, at, 0x1000)
                .expect("unmapped");
            for access in [Access::Read, Access::Write] {
                assert!(!guest.gets_through(D0, tag, IOVA, access), "{hold:?}");
            }
            hypervisor.hold(Hold::Nothing);
            guest.take_faults();
            guest.finish();
        }
    }
}

fn memory_added_later(place: Place<'_>) {
    for start in BACK_ENDS {
        let mut guest = start(place);
        let tag = guest.tag;
        let (root, page) = guest.bound();
        let lab = guest.lab.clone();
        let hypervisor = &*lab.hypervisor;
        let iova = IOVA + 0x1000;
        guest.map(root, iova, Some(GUEST_LEN_BYTES));
        guest.invalidate_pages(7, iova, 0);
        guest.expect_no_data(D0, tag, iova);
        let at = Gpa::new(GUEST_LEN_BYTES);
        let host = guest.host_of(Gpa::new(page));
        for _ in 0..2 {
            guest
                .vm
                .map_memory(hypervisor, &lab.units, at, host, 0x1000, Rights::READ_WRITE)
                .expect("mapped");
            guest.expect_reaches(D0, tag, iova, page);
            guest
                .vm
                .unmap_memory(hypervisor, &lab.units, at, 0x1000)
                .expect("unmapped");
            guest.expect_no_data(D0, tag, iova);
        }
        guest.expect_reaches(D0, tag, IOVA, page);
        guest.finish();
    }
}

// ---- domain-ids, devices ----

fn reused_domain_ids(place: Place<'_>) {
    for start in BACK_ENDS {
        let mut guest = start(place);
        let (pasid, tag) = (guest.pasid, guest.tag);
        let lab = guest.lab.clone();
        // Two ids are left: each binding takes one of them, and its replacement the other.
        let mut taken = Vec::new();
        while let Some(id) = lab.units[0].allocate_domain_id() {
            taken.push(id);
        }
        for id in taken.drain(..2) {
            lab.units[0].free_domain_id(id);
        }
        let mut used = Vec::new();
        for round in 0..8 {
            let (_, page) = guest.bind(D0, pasid, 100 + round);
            guest.expect_reaches(D0, tag, IOVA, page);
            guest.expect_writes_reach(D0, tag, IOVA, page);
            used.push(guest.host_domain_id(D0, pasid));
            if round % 3 == 2 {
                guest.set_entry(D0, pasid, &PasidEntry::default());
                guest.invalidate_pasid(100 + round, pasid);
                guest.expect_blocked(D0, tag, IOVA, FaultReason::PasidEntryNotPresent);
            }
        }
        assert!(!used.contains(&0));
        used.sort_unstable();
        used.dedup();
        assert!(used.len() <= 2, "they were reused: {used:?}");
        guest.finish();
    }
}

fn unassigned_is_blocked(place: Place<'_>) {
    for start in BACK_ENDS {
        let mut guest = start(place);
        let (pasid, tag) = (guest.pasid, guest.tag);
        let (root, page) = guest.bound();
        for _ in 0..2 {
            let watch = guest.watch(D0, tag, IOVA);
            guest.unassign(D0).expect("it leaves");
            let seen = watch.take();
            let blocked = seen.iter().position(Option::is_none);
            let blocked = blocked.expect("it is blocked before it has left");
            assert!(seen[..blocked].iter().all(|seen| *seen == Some(page)));
            assert!(seen[blocked..].iter().all(Option::is_none), "{seen:x?}");
            for tag in [None, tag] {
                for iova in [IOVA, page] {
                    for access in [Access::Read, Access::Write] {
                        assert!(!guest.gets_through(D0, tag, iova, access));
                    }
                }
            }
            // With translation off it would reach guest memory, were it still there.
            guest.set_translation(false);
            assert!(!guest.gets_through(D0, None, page, Access::Read));
            guest.set_translation(true);
            // Back again it is what the guest's tables say, and never more.
            watch.take();
            guest.assign(D0, 0, 0);
            guest.settle();
            guest.lab.hypervisor.clear_hooks();
            let seen = watch.take();
            assert!(seen.iter().all(|seen| [None, Some(page)].contains(seen)));
            let entry = guest.entry(root, 7);
            guest.set_entry(D0, pasid, &entry);
            guest.invalidate_pasid(7, pasid);
            guest.expect_reaches(D0, tag, IOVA, page);
        }
        guest.lab.take_unclaimed_faults();
        guest.finish();
    }
}

fn device_tlb_stays_off(place: Place<'_>) {
    // DTE and PRE of a scalable context entry (§9.4); TT 01b of a legacy one (§9.3), which has
    // nothing for page requests.
    const DEVICE_TLB: u64 = 1 << 2;
    const PAGE_REQUESTS: u64 = 1 << 4;
    let mut guest = place.guest();
    let (_, page) = guest.bound();
    let shown = guest.vm.offer().features.extended;
    let at = guest.context_at(D0);
    let context = guest.read_u64(at);
    for bits in [DEVICE_TLB, PAGE_REQUESTS, DEVICE_TLB | PAGE_REQUESTS] {
        guest.write_u64(at, context | bits);
        guest.invalidate_context(D0);
        guest.invalidate_pasid_global();
        let place = guest.lab.context_place(0, guest.physical(D0));
        let hardware = guest.lab.host_read64(place.expect("a context table"));
        assert_eq!(hardware & (DEVICE_TLB | PAGE_REQUESTS), 0, "{hardware:#x}");
        if !shown.has_device_tlb() && !shown.has_page_requests() {
            // Reserved in what the guest was shown.
            let reason = match guest.is_legacy() {
                false => FaultReason::ScalableContextEntryReserved,
                true if bits & PAGE_REQUESTS != 0 => FaultReason::LegacyContextEntryReserved,
                true => FaultReason::LegacyContextEntryInvalid,
            };
            guest.expect_blocked(D0, guest.tag, IOVA, reason);
        }
    }
    guest.write_u64(at, context);
    guest.invalidate_context(D0);
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.finish();
}

fn silent_device(place: Place<'_>) {
    let mut guest = place.device_tlb_guest();
    let (root, _) = guest.bound();
    let (_, other) = guest.bind(D1, guest.pasid, 9);
    assert!(
        guest.vm.offer().features.extended.has_device_tlb(),
        "the guest's unit has no device-TLB"
    );
    let lab = guest.lab.clone();
    let physical = guest.physical(D0);
    lab.hypervisor.bench().set_device_silent(physical, true);
    lab.hypervisor
        .set_steps(COARSE_STEP_NANOSECONDS, COARSE_STEP_NANOSECONDS);
    guest.map(root, IOVA, None);
    // The guest's wait completes, for the device is cut off.
    guest.invalidate_pages(7, IOVA, 0);
    assert_eq!(
        lab.hypervisor.take_bus_master_changes(),
        [(physical, false)]
    );
    guest.expect_no_data(D0, guest.tag, IOVA);
    guest.expect_reaches(D1, guest.tag, IOVA, other);
    guest.finish();
}

fn dead_unit_beside_a_slow_one(place: Place<'_>) {
    const TIMEOUT: u64 = 1_000_000_000;
    let lab = place.lab_with_timeouts(&[TIMEOUT, 1_000 * TIMEOUT]);
    let mut guest = Guest::start(
        &lab,
        GuestOptions {
            devices: vec![(D0, 0, 0), (D1, 1, 1)],
            policy: vtd_nest::nest::Policy {
                forbid_nesting: true,
                ..Default::default()
            },
            ..GuestOptions::default()
        },
    );
    let (pasid, tag) = (guest.pasid, guest.tag);
    let (old, new) = (guest.data_page(), guest.data_page());
    let root = guest.table(&[(IOVA, old)]);
    let entry = guest.entry(root, 7);
    for device in [D0, D1] {
        guest.set_entry(device, pasid, &entry);
    }
    guest.invalidate_pasid(7, pasid);
    for device in [D0, D1] {
        guest.expect_reaches(device, tag, IOVA, old);
    }
    lab.hypervisor.hold_unit(0, Hold::Forever);
    lab.hypervisor.hold_unit(1, Hold::For(100 * TIMEOUT));
    lab.hypervisor.set_steps(TIMEOUT / 8, TIMEOUT / 8);
    guest.map(root, IOVA, Some(new));
    guest.invalidate_pages(7, IOVA, 0);
    // The guest's wait has completed: the slow unit has confirmed, the dead one's device is out.
    guest.expect_reaches(D1, tag, IOVA, new);
    assert_eq!(
        lab.hypervisor.take_bus_master_changes(),
        [(guest.physical(D0), false)],
        "only the dead unit's device"
    );
    guest.map(root, IOVA, None);
    guest.invalidate_pages(7, IOVA, 0);
    guest.expect_blocked(D1, tag, IOVA, FaultReason::SecondStageNotPresent);
    guest.finish();
}

fn absent_then_present(place: Place<'_>) {
    for start in BACK_ENDS {
        let mut guest = start(place);
        let (pasid, tag) = (guest.pasid, guest.tag);
        // The entry itself.
        for round in 0..3 {
            guest.expect_no_data(D0, tag, IOVA);
            let (_, page) = guest.bind(D0, pasid, 7 + round);
            guest.expect_reaches(D0, tag, IOVA, page);
            guest.set_entry(D0, pasid, &PasidEntry::default());
            guest.invalidate_pasid(7 + round, pasid);
        }
        // Pages in a table that is there, and in new tables of each level: absent ones may be
        // cached at every level.
        let (root, page) = guest.bind(D0, pasid, 7);
        for iova in [
            IOVA + 0x1000,
            IOVA + (1 << 21),
            IOVA + (1 << 30),
            IOVA ^ 1 << 36,
        ] {
            guest.expect_no_data(D0, tag, iova);
            guest.map(root, iova, Some(page));
            guest.invalidate_pages(7, iova, 0);
            guest.expect_reaches(D0, tag, iova, page);
        }
        // A device that was absent.
        let (_, other) = guest.bind(D1, pasid, 7);
        guest.expect_reaches(D1, tag, IOVA, other);
        guest.unassign(D1).expect("it leaves");
        assert!(!guest.gets_through(D1, tag, IOVA, Access::Read));
        guest.assign(D1, 1, 0);
        guest.settle();
        guest.invalidate_pasid_global();
        guest.expect_reaches(D1, tag, IOVA, other);
        guest.lab.take_unclaimed_faults();
        guest.finish();
    }
}

// ---- faults ----

fn fault_storm(place: Place<'_>) {
    let mut guest = place.guest();
    let tag = guest.tag;
    let (_, page) = guest.bound();
    let (_, other) = guest.bind(D1, guest.pasid, 9);
    let records = guest.fault_record_count();
    for _ in 0..3 {
        let lab = guest.lab.clone();
        for index in 0..400u64 {
            let absent = IOVA + 0x1_0000 + 0x1000 * index;
            assert!(!guest.gets_through(D0, tag, absent, Access::Read));
        }
        // Not more than hardware can hold, however often it is asked.
        let capacity = lab.units[0].features().capability.fault_record_count();
        let mut taken = 0;
        while let Some(record) = lab.units[0].next_fault() {
            taken += 1;
            assert!(taken <= u32::from(capacity));
            let h = &*lab.hypervisor;
            let _ = guest.vm.handle_fault(h, &lab.units, 0, &record);
        }
        assert!(taken > 0);
        let taken = guest.take_faults();
        assert!(!taken.faults.is_empty() && taken.faults.len() as u64 <= records);
        let is_d0 = |fault: &crate::lab::GuestFault| fault.source_id == D0;
        assert!(taken.faults.iter().all(is_d0));
        // The overflow is over on both sides: the next fault is told, of either device.
        let reason = if guest.is_first_stage() {
            FaultReason::FirstStageNotPresent
        } else {
            FaultReason::SecondStageNotPresent
        };
        guest.expect_blocked(D1, tag, IOVA + 0x1000, reason);
        guest.expect_blocked(D0, tag, IOVA + 0x1000, reason);
        guest.expect_reaches(D0, tag, IOVA, page);
        guest.expect_reaches(D1, tag, IOVA, other);
    }
    guest.finish();
}

// ---- memory that changes ----

/// Two versions of a piece of guest memory; each read of the library finds the other one.
struct Flips {
    versions: [Vec<u8>; 2],
    at: Hpa,
    reads: Cell<usize>,
    /// At this read the second version comes, and stays; `None`: they alternate.
    once: Option<usize>,
}

impl Flips {
    fn before_read(&self, hypervisor: &Interposer) {
        let reads = self.reads.get();
        self.reads.set(reads + 1);
        let version = match self.once {
            Some(once) => usize::from(reads >= once),
            None => reads % 2,
        };
        hypervisor.guest_write(self.at, &self.versions[version]);
    }
}

fn memory_changes_at_every_read(place: Place<'_>) {
    for start in BACK_ENDS {
        let mut guest = start(place);
        let (pasid, tag) = (guest.pasid, guest.tag);
        let lab = guest.lab.clone();
        let [(first, one), (second, other)] = [guest.other_table(), guest.other_table()];
        let entry_at = guest.entry_at(D0, pasid);
        let entries = [first, second].map(|root| guest.entry_bytes(&guest.entry(root, 7)));
        let foreign = guest.entry_bytes(&guest.entry(second, 9));
        let absent = vec![0; foreign.len()];
        // A table of entries beside the one in use.
        let directory_at = guest.directory_entry_at(D0, pasid);
        let spare = guest.page();
        guest.write(spare + entry_at % 0x1000, &entries[1]);
        let directory = guest.read_u64(directory_at).to_le_bytes().to_vec();
        let spare = (spare | 1).to_le_bytes().to_vec();
        let context_at = guest.context_at(D0);
        let context = guest.read_u64(context_at);
        let contexts = [context, context & !1].map(|word| word.to_le_bytes().to_vec());
        let slot = guest.slot(first, IOVA);
        let leaves = [one, other].map(|page| {
            let leaf = guest.leaf(page, PageSize::Size4KiB, Rights::READ_WRITE);
            leaf.to_le_bytes().to_vec()
        });
        let top = guest.slot_at(first, IOVA, guest.levels());
        let tops = [guest.read_u64(top), guest.table_entry(first)];
        let tops = tops.map(|entry| entry.to_le_bytes().to_vec());
        let [entry, new_entry] = entries;
        let [context, no_context] = contexts;
        let cases = [
            ("the root", entry_at, entry.clone(), new_entry),
            ("root and domain-id", entry_at, entry.clone(), foreign),
            ("presence of the entry", entry_at, entry.clone(), absent),
            ("the PASID table", directory_at, directory, spare),
            ("presence of the context", context_at, context, no_context),
            ("a leaf", slot, leaves[0].clone(), leaves[1].clone()),
            (
                "a table of the page table",
                top,
                tops[0].clone(),
                tops[1].clone(),
            ),
        ];
        for (name, at, old, new) in cases {
            // In legacy mode the entry is the context entry, and there is no table of PASIDs.
            if guest.is_legacy() && ["the PASID table", "presence of the context"].contains(&name) {
                continue;
            }
            for once in [None, Some(0), Some(1), Some(2), Some(3), Some(5), Some(8)] {
                guest.write(entry_at, &entry);
                guest.write(at, &old);
                guest.invalidate_context(D0);
                guest.submit(&[
                    guest.entry_invalidation(0, pasid),
                    Descriptor::Iotlb {
                        granularity: IotlbGranularity::Global,
                        drain_reads: true,
                        drain_writes: true,
                    },
                ]);
                let flips = Rc::new(Flips {
                    versions: [old.clone(), new.clone()],
                    at: guest.host_of(Gpa::new(at)),
                    reads: Cell::new(0),
                    once,
                });
                let hook = flips.clone();
                lab.hypervisor
                    .on_guest_read(move |hypervisor, _, _| hook.before_read(hypervisor));
                guest.invalidate_context(D0);
                guest.invalidate_pasid(0, pasid);
                guest.invalidate_pages(7, IOVA, 0);
                lab.hypervisor.clear_hooks();
                assert!(flips.reads.get() > 0, "{name}: nothing was read");
                let reached = guest.reached(D0, tag, IOVA);
                assert!(
                    [None, Some(one), Some(other)].contains(&reached),
                    "{name}, {once:?}: {reached:x?}"
                );
                guest.take_faults();
            }
            guest.write(at, &old);
            guest.write(entry_at, &entry);
            guest.invalidate_context(D0);
            guest.invalidate_pasid(0, pasid);
            guest.invalidate_pages(7, IOVA, 0);
            guest.expect_reaches(D0, tag, IOVA, one);
        }
        guest.finish();
    }
}

// ---- shadows ----

fn table_in_no_memory(place: Place<'_>) {
    const NOWHERE: u64 = 0x7fff_f000;
    for start in BACK_ENDS {
        let mut guest = start(place);
        let tag = guest.tag;
        let (root, page) = guest.bound();
        for index in 1..4 {
            let entry = guest.table_entry(NOWHERE);
            guest.set_leaf(root, IOVA + (index << 21), 2, entry);
        }
        guest.invalidate_iotlb(IotlbGranularity::Domain(DomainId::new(7)));
        guest.expect_reaches(D0, tag, IOVA, page);
        let reason = if guest.is_first_stage() {
            FaultReason::FirstStageUnreadable
        } else {
            FaultReason::SecondStageUnreadable
        };
        guest.expect_blocked(D0, tag, IOVA + (1 << 21), reason);
        assert_eq!(guest.vm.statistics().shadows_dropped, 0);
        guest.finish();
    }
}

fn emptied_shadow(place: Place<'_>) {
    let mut guest = place.shadow_guest();
    let tag = guest.tag;
    let (root, page) = guest.bound();
    let far = IOVA ^ 1 << 36;
    guest.map(root, far, Some(page));
    let hypervisor = guest.lab.hypervisor.clone();
    hypervisor.fail_allocations_after(Some(0));
    guest.invalidate_pages(7, far, 0);
    hypervisor.fail_allocations_after(None);
    // It may be emptied or keep what it had, but is not half of something.
    guest.expect_no_data(D0, tag, far);
    let reached = guest.reached(D0, tag, IOVA);
    assert!([None, Some(page)].contains(&reached));
    guest.take_faults();
    guest.invalidate_pages(7, far, 0);
    guest.expect_reaches(D0, tag, far, page);
    guest.expect_reaches(D0, tag, IOVA, page);
    guest.finish();
}

fn shared_shadow(place: Place<'_>) {
    let mut guest = place.shadow_guest();
    let (pasid, tag) = (guest.pasid, guest.tag);
    let (root, page) = guest.bound();
    let entry = guest.entry(root, 7);
    guest.set_entry(D1, pasid, &entry);
    guest.invalidate_pasid(7, pasid);
    guest.unassign(D0).expect("it leaves");
    guest.expect_reaches(D1, tag, IOVA, page);
    let other = guest.data_page();
    guest.map(root, IOVA, Some(other));
    guest.invalidate_pages(7, IOVA, 0);
    guest.expect_reaches(D1, tag, IOVA, other);
    guest.map(root, IOVA, None);
    guest.invalidate_pages(7, IOVA, 0);
    guest.expect_blocked(D1, tag, IOVA, FaultReason::SecondStageNotPresent);
    assert!(!guest.gets_through(D0, tag, IOVA, Access::Read));
    guest.lab.take_unclaimed_faults();
    guest.finish();
}

fn device_table_full(place: Place<'_>) {
    let mut guest = place.guest();
    let (_, page) = guest.bound();
    let lab = guest.lab.clone();
    let mut assign = |number: u16, unit: u8| {
        let id = SourceId::from_u16(number);
        let config = DeviceConfig {
            pasid_bits: 20,
            ..DeviceConfig::new(
                id,
                id,
                unit,
                InterruptIsolation::WaivedByEmbedder,
                Isolation::AssertedByEmbedder,
            )
        };
        let assigned = guest.vm.assign(&*lab.hypervisor, &lab.units, config);
        assigned.map(drop)
    };
    assert_eq!(assign(0x0500, 9), Err(AssignError::UnknownUnit(9)));
    // Two of eight are there.
    for number in 0..6 {
        assert_eq!(assign(0x0500 + number, 0), Ok(()));
    }
    let id = SourceId::from_u16(0x0500);
    assert_eq!(assign(0x0500, 0), Err(AssignError::InUse(id)));
    let free = lab.hypervisor.pool().free_frames();
    assert_eq!(assign(0x0600, 0), Err(AssignError::Full { capacity: 8 }));
    assert_eq!(lab.hypervisor.pool().free_frames(), free);
    guest.settle();
    guest.expect_reaches(D0, guest.tag, IOVA, page);
    guest.finish();
}

fn waits_once(place: Place<'_>) {
    let mut guest = place.shadow_guest();
    let (root, _) = guest.bound();
    let hypervisor = guest.lab.hypervisor.clone();
    hypervisor.hold(Hold::Forever);
    hypervisor.set_steps(COARSE_STEP_NANOSECONDS, COARSE_STEP_NANOSECONDS);
    guest.map(root, IOVA, None);
    guest.invalidate_pages(7, IOVA, 0);
    let cut_off = hypervisor.take_bus_master_changes();
    assert!(
        cut_off.contains(&(guest.physical(D0), false)),
        "{cut_off:?}"
    );
    let before = hypervisor.counts();
    for _ in 0..4 {
        guest.invalidate_pages(7, IOVA, 0);
    }
    assert_eq!(
        hypervisor.counts().since(before).submissions,
        0,
        "every device is cut off: there is nobody to invalidate for"
    );
    guest.finish();
}
