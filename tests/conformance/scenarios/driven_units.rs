//! Guard rules about driving hardware (requirements, section 2), without a guest: bring-up,
//! entries, the queue, several units.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::{
    Capability, CapabilityField as Cap, ExtendedCapability, ExtendedCapabilityField as Ecap,
};
use vtd_nest::arch::descriptor::Descriptor;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::{DomainId, Pasid, SourceId};
use vtd_nest::arch::interrupt::InterruptMessage;
use vtd_nest::arch::register::{
    GlobalCommand, GlobalStatus, Register32, Register64, RootTableAddress,
};
use vtd_nest::mem::{Owner, Registers};
use vtd_nest::nest::{MachineConfig, Policy, ProtectedRanges};
use vtd_nest::unit::{QueueError, Requirement, UnitConfig, UnitError, lost_table_frames};

use crate::bench::{Ability, Hold, Interposer, Requester, host_offset};
use crate::harness::{Need, Scenario, scenario};
use crate::lab::direct::{
    DIRECT_OWNER, attach_direct, device_reads, direct_entry, direct_table, publish_direct,
    stamped_page,
};
use crate::lab::{Place, Random, Tap, Vm, probe_tapped};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "G5 G17",
        "frames of a detached device are free only after hardware has confirmed",
        frames_after_confirmation,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "G5",
        "tables whose confirmation was never waited for are lost and counted, never reused",
        dropped_tables,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "G6",
        "every structure of a unit is seen by hardware that snoops nothing",
        everything_is_flushed,
    )
    .needs(&[Need::Ability(Ability::FlushedLinesOnly)]),
    scenario(
        "G7",
        "a late completion confirms its own submission only",
        late_completion,
    ),
    scenario(
        "G9",
        "a head register that makes no sense overwrites nothing and ends",
        senseless_head,
    ),
    scenario(
        "G11",
        "commands: one change a write, one-shot bits never repeated",
        commands_one_at_a_time,
    ),
    scenario(
        "G13 G12",
        "a context entry that is set up and torn down is never read torn",
        context_entries_are_never_torn,
    ),
    scenario(
        "G12",
        "an entry that hardware has not confirmed to have forgotten is not written again",
        unconfirmed_entries_stay,
    ),
    scenario(
        "G12 G17 G38",
        "PASID tables grow by the page that they need, to the last of 2^20, and go with the device",
        pasid_tables_grow,
    )
    .needs(&[Need::ScalableMode, Need::PASID]),
    scenario(
        "G16 S28",
        "the width of tables is one that the unit has, whatever it has",
        widths_follow_the_unit,
    ),
    scenario(
        "G17",
        "domain-ids: never 0, never twice, and reused without a stale translation",
        domain_ids_are_reused_clean,
    ),
    scenario(
        "G19",
        "a detached device is blocked, whatever it is given back to",
        detached_is_blocked,
    ),
    scenario(
        "G24",
        "a device that writes to the tables during bring-up changes nothing",
        hostile_device_during_bring_up,
    ),
    scenario(
        "G25",
        "from the end of bring-up on, DMA of devices that nobody attached faults",
        blocked_from_the_first_moment,
    ),
    scenario(
        "G26",
        "two units: each protects its own devices, and one that is down is told as such",
        each_unit_for_itself,
    )
    .needs(&[Need::Ability(Ability::SeveralUnits)]),
    scenario(
        "G28",
        "capability registers of random bits are refused or used within the window",
        random_capabilities,
    ),
    scenario(
        "G28",
        "a unit whose registers read all ones is refused, and lost later, without a loop",
        all_ones,
    ),
    scenario(
        "G33",
        "head equal to tail proves nothing",
        head_equal_to_tail,
    ),
    scenario(
        "G38",
        "any allocation of an attachment may fail: nothing is kept, and it can be repeated",
        attach_without_frames,
    )
    .needs(&[Need::ScalableMode]),
    scenario(
        "G1 S87",
        "hardware blocks interrupts in compatibility format once a unit is up",
        compatibility_format_is_blocked,
    )
    .needs(&[
        Need::Extended(Ecap::INTERRUPT_REMAPPING, "IR"),
        Need::Ability(Ability::BlocksCompatibilityFormat),
    ]),
];

/// Time that passes at each look at the clock when hardware is to be given up quickly.
const COARSE_STEP_NANOSECONDS: u64 = 10_000_000;

fn charged(hypervisor: &Interposer) -> u32 {
    hypervisor.pool().charged_frames(DIRECT_OWNER)
}

fn frames_after_confirmation(place: Place<'_>) {
    let lab = place.lab();
    let (hypervisor, unit) = (&*lab.hypervisor, &lab.units[0]);
    let source_id = hypervisor.bench().device(0);
    let (page, value) = stamped_page(hypervisor, 0);
    for _ in 0..3 {
        let before = charged(hypervisor);
        let tables = unit
            .attach_device(hypervisor, DIRECT_OWNER, source_id, 0)
            .expect("it is attached");
        let of_device = charged(hypervisor) - before;
        assert!(of_device > 0);
        let table = direct_table(hypervisor, unit, page);
        let domain_id = unit.allocate_domain_id().expect("an id");
        let entry = direct_entry(unit, &table, domain_id);
        publish_direct(hypervisor, unit, &tables, &entry);
        assert_eq!(device_reads(hypervisor, source_id), value);
        let held = charged(hypervisor);

        hypervisor.hold(Hold::Forever);
        hypervisor.set_steps(COARSE_STEP_NANOSECONDS, COARSE_STEP_NANOSECONDS);
        let detached = unit.detach_device(hypervisor, tables).expect("queued");
        let released = unit.release(hypervisor, detached);
        let (detached, error) = released.expect_err("nothing is confirmed");
        assert!(matches!(error, QueueError::TimedOut { .. }), "{error:?}");
        assert_eq!(charged(hypervisor), held, "hardware may use them");
        let again = unit.attach_device(hypervisor, DIRECT_OWNER, source_id, 0);
        assert_eq!(again.map(drop), Err(UnitError::Attached(source_id)));

        hypervisor.set_steps(100, 1_000);
        hypervisor.hold(Hold::Nothing);
        unit.release(hypervisor, detached).expect("confirmed");
        assert_eq!(device_reads(hypervisor, source_id), 0);
        assert_eq!(charged(hypervisor), held - of_device);
        unit.free_domain_id(domain_id);
    }
    lab.expect_no_violations();
}

fn dropped_tables(place: Place<'_>) {
    let lab = place.lab();
    let (hypervisor, unit) = (&*lab.hypervisor, &lab.units[0]);
    let source_id = hypervisor.bench().device(0);
    let (page, value) = stamped_page(hypervisor, 0);
    let (tables, _) = attach_direct(hypervisor, unit, source_id, page).expect("attached");
    assert_eq!(device_reads(hypervisor, source_id), value);
    let (held, lost) = (charged(hypervisor), lost_table_frames());
    drop(unit.detach_device(hypervisor, tables).expect("queued"));
    // Other scenarios run beside this one.
    assert!(lost_table_frames() > lost, "it is counted");
    assert_eq!(charged(hypervisor), held, "and never free again");
    hypervisor.pass(1_000_000);
    assert_eq!(device_reads(hypervisor, source_id), 0);
    let again = unit.attach_device(hypervisor, DIRECT_OWNER, source_id, 0);
    assert_eq!(again.map(drop), Err(UnitError::Attached(source_id)));
    lab.expect_no_violations();
}

fn everything_is_flushed(place: Place<'_>) {
    let lab = place.lab();
    let (hypervisor, unit) = (&*lab.hypervisor, &lab.units[0]);
    let source_id = hypervisor.bench().device(0);
    let pages = [0, 1, 2].map(|index| stamped_page(hypervisor, index));
    for round in 0..3 {
        let (page, value) = pages[round];
        let (tables, domain_id) =
            attach_direct(hypervisor, unit, source_id, page).expect("attached");
        assert_eq!(device_reads(hypervisor, source_id), value, "set up");
        // Torn down and set up again, under another id and table.
        unit.withdraw_entry(hypervisor, &tables, Pasid::ZERO);
        unit.invalidate_everything(hypervisor).expect("confirmed");
        assert_eq!(device_reads(hypervisor, source_id), 0, "withdrawn");
        unit.clear_entry(hypervisor, &tables, Pasid::ZERO);
        unit.free_domain_id(domain_id);
        let (page, value) = pages[(round + 1) % 3];
        let mut table = direct_table(hypervisor, unit, page);
        let domain_id = unit.allocate_domain_id().expect("an id");
        let entry = direct_entry(unit, &table, domain_id);
        publish_direct(hypervisor, unit, &tables, &entry);
        assert_eq!(device_reads(hypervisor, source_id), value, "set up again");
        // One page leads elsewhere.
        let (page, value) = pages[(round + 2) % 3];
        let iova = Iova::new(crate::lab::IOVA);
        let rights = vtd_nest::paging::Rights::READ_WRITE;
        table
            .set_page(hypervisor, iova, Some((page, rights)))
            .expect("changed");
        unit.invalidate_everything(hypervisor).expect("confirmed");
        assert_eq!(device_reads(hypervisor, source_id), value, "page changed");
        let detached = unit.detach_device(hypervisor, tables).expect("queued");
        unit.release(hypervisor, detached).expect("confirmed");
        assert_eq!(device_reads(hypervisor, source_id), 0, "detached");
        unit.free_domain_id(domain_id);
    }
    lab.expect_no_violations();
}

// ---- the queue ----

/// A batch that every unit accepts.
const BATCH: [Descriptor; 1] = [Descriptor::ContextCache {
    granularity: vtd_nest::arch::descriptor::ContextGranularity::Global,
}];

fn late_completion(place: Place<'_>) {
    let lab = place.lab();
    let (hypervisor, unit) = (&*lab.hypervisor, &lab.units[0]);
    for round in 0..20 {
        // So many that each status word has been used before.
        for _ in 0..120 {
            hypervisor.hold(Hold::Nothing);
            let ticket = unit.submit(hypervisor, &BATCH).expect("queued");
            unit.wait(hypervisor, ticket).expect("confirmed");
        }
        hypervisor.hold(Hold::Forever);
        let first = unit.submit(hypervisor, &BATCH).expect("queued");
        hypervisor.set_steps(COARSE_STEP_NANOSECONDS, COARSE_STEP_NANOSECONDS);
        let waited = unit.wait(hypervisor, first);
        assert!(matches!(waited, Err(QueueError::TimedOut { .. })));
        hypervisor.set_steps(100, 1_000);
        if round % 2 == 0 {
            // The first is done late, while the second is not.
            hypervisor.hold(Hold::Nothing);
            hypervisor.pass(1_000_000);
            hypervisor.hold(Hold::Forever);
        }
        let second = unit.submit(hypervisor, &BATCH).expect("queued");
        for _ in 0..3 {
            let polled = unit.poll(hypervisor, &second);
            assert_eq!(polled, Ok(false), "nothing of it was done");
        }
        hypervisor.hold(Hold::Nothing);
        unit.wait(hypervisor, second).expect("confirmed");
    }
    lab.expect_no_violations();
}

fn head_equal_to_tail(place: Place<'_>) {
    let lab = place.lab();
    let (hypervisor, unit) = (&*lab.hypervisor, &lab.units[0]);
    let registers = lab.hypervisor.registers(0).expect("a unit");
    let fetched = || {
        registers.read64(Register64::INVALIDATION_QUEUE_HEAD)
            == registers.read64(Register64::INVALIDATION_QUEUE_TAIL)
    };
    for _ in 0..1_200 {
        hypervisor.hold(Hold::Forever);
        let ticket = unit.submit(hypervisor, &BATCH).expect("queued");
        assert!(fetched(), "hardware has not been told of it yet");
        assert_eq!(unit.poll(hypervisor, &ticket), Ok(false));
        hypervisor.hold(Hold::Nothing);
        unit.wait(hypervisor, ticket).expect("confirmed");
        assert!(fetched());
    }
    lab.expect_no_violations();
}

fn senseless_head(place: Place<'_>) {
    let (hypervisor, tap) = (place.unprogrammed(), Rc::new(Tap::default()));
    let unit = probe_tapped(&hypervisor, &tap).expect("a usable unit");
    unit.bring_up(&*hypervisor).expect("it comes up");
    let head = Register64::INVALIDATION_QUEUE_HEAD.offset();
    for value in [u64::MAX, 0x7_fff0, 0x10, 1 << 19, 0x8000, 7] {
        hypervisor.hold(Hold::Forever);
        tap.falsify(head, value);
        let mut tickets = Vec::new();
        let mut refused = None;
        // The ring has 1024 places; with so many batches it is full whatever the head says.
        for _ in 0..2_000 {
            match unit.submit(&*hypervisor, &BATCH) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        assert!(refused.is_some(), "head {value:#x}: the ring is never full");
        tap.reads.borrow_mut().clear();
        hypervisor.hold(Hold::Nothing);
        hypervisor.pass(10_000_000);
        for ticket in tickets {
            assert_eq!(
                unit.wait(&*hypervisor, ticket),
                Ok(()),
                "nothing was overwritten"
            );
        }
        let ticket = unit.submit(&*hypervisor, &BATCH).expect("queued");
        unit.wait(&*hypervisor, ticket).expect("it goes on");
    }
    let violations = hypervisor.bench().violations();
    assert!(violations.is_empty(), "{violations:?}");
}

// ---- commands and registers ----

fn commands_one_at_a_time(place: Place<'_>) {
    let (hypervisor, tap) = (place.unprogrammed(), Rc::new(Tap::default()));
    let unit = probe_tapped(&hypervisor, &tap).expect("a usable unit");
    assert!(tap.writes.borrow().is_empty(), "probing changes nothing");
    // Firmware's leavings: a second bring-up on the same hardware takes over from the first.
    for take_over in [false, true] {
        let unit = if take_over {
            &probe_tapped(&hypervisor, &tap).expect("a usable unit")
        } else {
            &unit
        };
        unit.bring_up(&*hypervisor).expect("it comes up");
        assert!(unit.is_protecting());
    }
    let command = Register32::GLOBAL_COMMAND.offset();
    let persistent = GlobalCommand::PERSISTENT.bits();
    let mut commands = 0;
    for write in tap.writes.borrow().iter() {
        if write.offset != command {
            continue;
        }
        let value = write.value as u32;
        let changes = (value & persistent ^ write.status & persistent).count_ones();
        let one_shot = (value & GlobalCommand::ONE_SHOT.bits()).count_ones();
        assert_eq!(changes + one_shot, 1, "{write:x?}");
        commands += 1;
    }
    assert!(commands >= 3, "queue, root table, translation");
    let violations = hypervisor.bench().violations();
    assert!(violations.is_empty(), "{violations:?}");
}

fn widths_follow_the_unit(place: Place<'_>) {
    let (hypervisor, tap) = (place.unprogrammed(), Rc::new(Tap::default()));
    let offset = Register64::CAPABILITY.offset();
    let registers = hypervisor.registers(0).expect("a unit");
    let truth = Capability::from_bits(registers.read64(Register64::CAPABILITY));
    for field in 0..32 {
        let told = truth.with(Cap::ADJUSTED_GUEST_ADDRESS_WIDTHS, field);
        tap.falsify(offset, told.bits());
        let unit = match probe_tapped(&hypervisor, &tap) {
            Ok(unit) => unit,
            Err(error) => {
                let refused = matches!(
                    error,
                    UnitError::Missing(Requirement::AddressWidth) | UnitError::Capability(_)
                );
                assert!(refused, "SAGAW {field:#b}: {error:?}");
                // 39, 48 and 57 bits are bits 1 to 3.
                assert_eq!(field & 0b1110, 0, "SAGAW {field:#b} has a width: {error:?}");
                continue;
            }
        };
        assert_ne!(field & 0b1110, 0, "SAGAW {field:#b} has no width");
        let config = MachineConfig {
            number: 0,
            owner: Owner::new(1),
            policy: Policy::default(),
            protected: ProtectedRanges::new(),
            hash_seed: 1,
            shadow_table_limit: 16,
        };
        let vm = Box::new(Vm::new(&*hypervisor, &[unit], config).expect("a machine"));
        let width = vm.second_stage_width();
        // AW n is 30 + 9 n bits, n + 2 levels, bit n of SAGAW (§9.6, §11.4.2).
        let encoding = u64::from(width.bits() - 30) / 9;
        assert_eq!(field >> encoding & 1, 1, "SAGAW {field:#b}: {width:?}");
        assert_eq!(u64::from(width.levels()), encoding + 2);
        assert!(
            vm.offer().features.capability.supports_width(width)
                || vm.offer().features.extended.has_first_stage()
        );
    }
}

fn random_capabilities(place: Place<'_>) {
    let (hypervisor, tap) = (place.unprogrammed(), Rc::new(Tap::default()));
    let registers = hypervisor.registers(0).expect("a unit");
    let capability = Capability::from_bits(registers.read64(Register64::CAPABILITY));
    let extended = ExtendedCapability::from_bits(registers.read64(Register64::EXTENDED_CAPABILITY));
    hypervisor.set_steps(COARSE_STEP_NANOSECONDS, COARSE_STEP_NANOSECONDS);
    let mut random = Random::new(28);
    let (mut refused, mut used) = (0, 0);
    for round in 0..400 {
        // All bits random, or some of the real ones flipped, or the real ones with other offsets.
        let (cap, ecap) = match round % 3 {
            0 => (random.next() ^ random.next() << 13, random.next()),
            1 => (
                capability.bits() ^ 1 << random.below(64),
                extended.bits() ^ 1 << random.below(64),
            ),
            _ => (
                capability
                    .with(Cap::FAULT_RECORD_OFFSET, random.below(1 << 10))
                    .with(Cap::FAULT_RECORD_COUNT, random.below(1 << 8))
                    .bits(),
                extended
                    .with(Ecap::IOTLB_REGISTER_OFFSET, random.below(1 << 10))
                    .bits(),
            ),
        };
        let version = if round % 7 == 0 {
            random.next()
        } else {
            u64::from(registers.read32(Register32::VERSION))
        };
        tap.reads.borrow_mut().clear();
        tap.falsify(Register64::CAPABILITY.offset(), cap);
        tap.falsify(Register64::EXTENDED_CAPABILITY.offset(), ecap);
        tap.falsify(Register32::VERSION.offset(), version);
        match probe_tapped(&hypervisor, &tap) {
            Err(_) => refused += 1,
            Ok(unit) => {
                used += 1;
                // Whatever becomes of it, it ends; the records and IOTLB registers are looked at.
                let _ = unit.next_fault();
                let _ = unit.is_protecting();
                if used % 8 == 0 {
                    let _ = unit.bring_up(&*hypervisor);
                }
            }
        }
        assert_eq!(
            tap.outside.take(),
            [0u16; 0],
            "outside of the window: CAP {cap:#x} ECAP {ecap:#x}"
        );
    }
    assert!(refused > 0 && used > 0, "{refused} refused, {used} used");
}

fn all_ones(place: Place<'_>) {
    let (hypervisor, tap) = (place.unprogrammed(), Rc::new(Tap::default()));
    for register in [
        Register64::CAPABILITY.offset(),
        Register64::EXTENDED_CAPABILITY.offset(),
        Register32::VERSION.offset(),
    ] {
        tap.falsify(register, u64::MAX);
        let refused = probe_tapped(&hypervisor, &tap).map(drop);
        assert!(
            matches!(refused, Err(UnitError::Capability(_))),
            "{refused:?}"
        );
        tap.reads.borrow_mut().clear();
    }
    let unit = probe_tapped(&hypervisor, &tap).expect("a usable unit");
    unit.bring_up(&*hypervisor).expect("it comes up");
    let ticket = unit.submit(&*hypervisor, &BATCH).expect("queued");
    unit.wait(&*hypervisor, ticket).expect("confirmed");
    hypervisor.hold(Hold::Forever);
    let ticket = unit.submit(&*hypervisor, &BATCH).expect("queued");
    for offset in (0..0x1000).step_by(4) {
        tap.falsify(offset, u64::MAX);
    }
    assert_eq!(unit.wait(&*hypervisor, ticket), Err(QueueError::Lost));
    assert_eq!(unit.next_fault(), None);
    assert!(!unit.is_protecting(), "nobody can say that it does");
}

// ---- entries ----

fn context_entries_are_never_torn(place: Place<'_>) {
    let lab = place.lab();
    let (hypervisor, unit) = (&*lab.hypervisor, &lab.units[0]);
    let source_id = hypervisor.bench().device(0);
    let (page, value) = stamped_page(hypervisor, 0);
    // Once, so that there is a context table.
    let (tables, _) = attach_direct(hypervisor, unit, source_id, page).expect("attached");
    let detached = unit.detach_device(hypervisor, tables).expect("queued");
    unit.release(hypervisor, detached).expect("confirmed");
    let at = lab.context_place(0, source_id).expect("a context table");
    let whole = || [0, 8, 16, 24].map(|offset| lab.host_read64(host_offset(at, offset)));
    for _ in 0..3 {
        let history = lab.record_entry(at, 4);
        let (tables, _) = attach_direct(hypervisor, unit, source_id, page).expect("attached");
        let entry = whole().to_vec();
        assert_eq!(device_reads(hypervisor, source_id), value);
        let detached = unit.detach_device(hypervisor, tables).expect("queued");
        assert_eq!(whole()[0] & 1, 0, "not present by one store");
        unit.release(hypervisor, detached).expect("confirmed");
        hypervisor.clear_hooks();
        assert_eq!(whole(), [0; 4], "clear for the next one");
        for readable in history.readable() {
            assert_eq!(readable, entry, "of {:x?}", history.states());
        }
        assert!(history.states().len() >= 3, "it was set up and torn down");
    }
    lab.expect_no_violations();
}

fn pasid_tables_grow(place: Place<'_>) {
    let lab = place.lab();
    let (hypervisor, unit) = (&*lab.hypervisor, &lab.units[0]);
    let source_id = hypervisor.bench().device(0);
    let (page, value) = stamped_page(hypervisor, 0);
    let table = direct_table(hypervisor, unit, page);
    let base = charged(hypervisor);
    let bits = unit.features().extended.pasid_bits();
    let last = (1u32 << bits) - 1;
    let reads = |pasid: u32| {
        let mut bytes = [0; 8];
        let requester = Requester {
            source_id,
            pasid: Pasid::new(pasid),
            privileged: false,
            execute: false,
        };
        hypervisor.dma_read(requester, Iova::new(crate::lab::IOVA), &mut bytes);
        u64::from_le_bytes(bytes)
    };
    for _ in 0..2 {
        let tables = unit.attach_device(hypervisor, DIRECT_OWNER, source_id, bits);
        let mut tables = tables.expect("attached");
        // A directory entry of 8 bytes for each 64 PASIDs, in runs of 2^k pages; and one table.
        let directory = ((u64::from(last) + 1) / 64 * 8).div_ceil(4096) as u32;
        assert_eq!(
            charged(hypervisor) - base,
            directory.next_power_of_two() + 1
        );
        let domain_id = unit.allocate_domain_id().expect("an id");
        let entry = direct_entry(unit, &table, domain_id);
        let mut pages = 1;
        // A table is there for the first PASID of each 64, and for no other.
        for (pasid, is_new) in [
            (1, false),
            (63, false),
            (64, true),
            (127, false),
            (last / 2, true),
            (last, true),
            (last - 63, false),
        ] {
            let at = Pasid::new(pasid).expect("20 bits");
            let full = charged(hypervisor);
            hypervisor.pool().set_quota(DIRECT_OWNER, full).unwrap();
            let refused = unit.prepare_entry(hypervisor, &mut tables, at);
            assert_eq!(refused.is_err(), is_new, "PASID {pasid}: {refused:?}");
            let capacity = hypervisor.pool().capacity();
            hypervisor.pool().set_quota(DIRECT_OWNER, capacity).unwrap();
            assert_eq!(reads(pasid), 0, "PASID {pasid}");
            unit.prepare_entry(hypervisor, &mut tables, at)
                .expect("there are frames");
            pages += u32::from(is_new);
            assert_eq!(tables.table_count(), pages, "PASID {pasid}");
            unit.publish_entry(hypervisor, &tables, at, &entry)
                .expect("it is published");
            if unit.needs_invalidation_after_set_up() {
                unit.invalidate_everything(hypervisor).expect("confirmed");
            } else {
                unit.write_buffer_flush(hypervisor).expect("flushed");
            }
            assert_eq!(reads(pasid), value, "PASID {pasid}");
        }
        assert_eq!(
            charged(hypervisor) - base,
            directory.next_power_of_two() + pages
        );
        assert_eq!(reads(2), 0, "nobody asked for it");
        if last < 0xf_ffff {
            let beyond = Pasid::new(last + 1).expect("20 bits");
            let refused = unit.prepare_entry(hypervisor, &mut tables, beyond);
            let limit = last + 1;
            assert_eq!(
                refused,
                Err(UnitError::PasidBeyondLimit {
                    pasid: beyond,
                    limit
                })
            );
        }
        let detached = unit.detach_device(hypervisor, tables).expect("queued");
        unit.release(hypervisor, detached).expect("confirmed");
        assert_eq!(charged(hypervisor), base, "all of it is back");
        assert_eq!((reads(1), reads(last)), (0, 0));
        unit.free_domain_id(domain_id);
    }
    lab.expect_no_violations();
}

fn unconfirmed_entries_stay(place: Place<'_>) {
    let lab = place.lab();
    let (hypervisor, unit) = (&*lab.hypervisor, &lab.units[0]);
    let source_id = hypervisor.bench().device(0);
    let (page, _) = stamped_page(hypervisor, 0);
    let (tables, domain_id) = attach_direct(hypervisor, unit, source_id, page).expect("attached");
    let table = direct_table(hypervisor, unit, page);
    let entry = direct_entry(unit, &table, domain_id);
    let publish = || unit.publish_entry(hypervisor, &tables, Pasid::ZERO, &entry);
    assert_eq!(
        publish(),
        Err(UnitError::EntryInUse(Pasid::ZERO)),
        "present"
    );
    unit.withdraw_entry(hypervisor, &tables, Pasid::ZERO);
    let withdrawn = unit.read_entry(hypervisor, &tables, Pasid::ZERO);
    let withdrawn = withdrawn.expect("a table");
    assert_eq!(withdrawn.quadwords()[0], 0, "one store");
    assert_eq!(withdrawn.domain_id(), domain_id, "named by what is owed");
    assert_eq!(
        publish(),
        Err(UnitError::EntryInUse(Pasid::ZERO)),
        "withdrawn"
    );
    unit.invalidate_everything(hypervisor).expect("confirmed");
    unit.clear_entry(hypervisor, &tables, Pasid::ZERO);
    publish_direct(hypervisor, unit, &tables, &entry);
    // Domain-id 0 is for what is not present.
    unit.withdraw_entry(hypervisor, &tables, Pasid::ZERO);
    unit.invalidate_everything(hypervisor).expect("confirmed");
    unit.clear_entry(hypervisor, &tables, Pasid::ZERO);
    let reserved = direct_entry(unit, &table, DomainId::ZERO);
    assert_eq!(
        unit.publish_entry(hypervisor, &tables, Pasid::ZERO, &reserved),
        Err(UnitError::ReservedDomainId)
    );
    lab.expect_no_violations();
}

fn domain_ids_are_reused_clean(place: Place<'_>) {
    let lab = place.lab();
    let (hypervisor, unit) = (&*lab.hypervisor, &lab.units[0]);
    let source_id = hypervisor.bench().device(0);
    let mut taken = Vec::new();
    while let Some(id) = unit.allocate_domain_id() {
        taken.push(id.as_u16());
    }
    assert_eq!(unit.free_domain_ids(), 0);
    let count = taken.len();
    taken.sort_unstable();
    taken.dedup();
    assert_eq!(taken.len(), count, "never twice");
    let bits = unit.features().capability.domain_id_bits();
    assert_eq!(count, (1 << bits) - 1, "all of them but 0");
    assert!(!taken.contains(&0));
    // One id for everything: each new table under it must be the one that is used.
    unit.free_domain_id(DomainId::new(taken[0]));
    for index in 0..8 {
        let (page, value) = stamped_page(hypervisor, index);
        let (tables, id) = attach_direct(hypervisor, unit, source_id, page).expect("attached");
        assert_eq!(id.as_u16(), taken[0]);
        assert_eq!(device_reads(hypervisor, source_id), value);
        let detached = unit.detach_device(hypervisor, tables).expect("queued");
        unit.release(hypervisor, detached).expect("confirmed");
        unit.free_domain_id(id);
    }
    lab.expect_no_violations();
}

fn detached_is_blocked(place: Place<'_>) {
    let lab = place.lab();
    let (hypervisor, unit) = (&*lab.hypervisor, &lab.units[0]);
    let (page, value) = stamped_page(hypervisor, 0);
    let devices = [0, 1].map(|index| hypervisor.bench().device(index));
    for source_id in devices {
        let (tables, _) = attach_direct(hypervisor, unit, source_id, page).expect("attached");
        assert_eq!(device_reads(hypervisor, source_id), value);
        // The device is active all the while: mapped until it is blocked, and never again.
        let seen = Rc::new(RefCell::new(Vec::new()));
        let into = seen.clone();
        hypervisor.on_step(move |hypervisor| {
            into.borrow_mut().push(device_reads(hypervisor, source_id));
        });
        let detached = unit.detach_device(hypervisor, tables).expect("queued");
        unit.release(hypervisor, detached).expect("confirmed");
        hypervisor.clear_hooks();
        let seen = seen.take();
        let blocked = seen.iter().position(|read| *read == 0);
        let blocked = blocked.expect("it is blocked before its tables are free");
        assert!(seen[..blocked].iter().all(|read| *read == value));
        assert!(seen[blocked..].iter().all(|read| *read == 0), "{seen:x?}");
        assert_eq!(device_reads(hypervisor, source_id), 0);
        // Blocked at once, its tables kept: the same.
        let (tables, _) = attach_direct(hypervisor, unit, source_id, page).expect("attached");
        let ticket = unit.block_device(hypervisor, &tables).expect("queued");
        unit.wait(hypervisor, ticket).expect("confirmed");
        assert_eq!(device_reads(hypervisor, source_id), 0);
        let detached = unit.detach_device(hypervisor, tables).expect("queued");
        unit.release(hypervisor, detached).expect("confirmed");
        assert_eq!(device_reads(hypervisor, source_id), 0);
    }
    lab.take_unclaimed_faults();
    lab.expect_no_violations();
}

fn attach_without_frames(place: Place<'_>) {
    let lab = place.lab();
    let (hypervisor, unit) = (&*lab.hypervisor, &lab.units[0]);
    let source_id = hypervisor.bench().device(0);
    let (page, value) = stamped_page(hypervisor, 0);
    let free = hypervisor.pool().free_frames();
    let mut failures = 0;
    for allocations in 0..8 {
        hypervisor.fail_allocations_after(Some(allocations));
        let attached = unit.attach_device(hypervisor, DIRECT_OWNER, source_id, 0);
        hypervisor.fail_allocations_after(None);
        match attached {
            Err(error) => {
                assert!(matches!(error, UnitError::Frames(_)), "{error:?}");
                assert_eq!(charged(hypervisor), 0);
                assert_eq!(hypervisor.pool().free_frames(), free);
                failures += 1;
            }
            Ok(tables) => {
                let detached = unit.detach_device(hypervisor, tables).expect("queued");
                unit.release(hypervisor, detached).expect("confirmed");
                break;
            }
        }
    }
    assert_eq!(failures, 3, "directory, table, context table");
    let _attached = attach_direct(hypervisor, unit, source_id, page).expect("attached");
    assert_eq!(device_reads(hypervisor, source_id), value);
    lab.expect_no_violations();
}

// ---- bring-up and several units ----

fn raw_write(hypervisor: &Interposer, source_id: SourceId, at: Hpa, value: u64) {
    let requester = Requester {
        source_id,
        pasid: None,
        privileged: false,
        execute: false,
    };
    hypervisor.dma_write(requester, Iova::new(at.as_u64()), &value.to_le_bytes());
}

fn hostile_device_during_bring_up(place: Place<'_>) {
    let hypervisor = place.unprogrammed();
    let source_id = hypervisor.bench().device(0);
    let nobodys = hypervisor.bench().layout().nobodys.start;
    let width = hypervisor.bench().host_address_width();
    let registers = hypervisor.registers(0).expect("a unit");
    let unit = vtd_nest::unit::Unit::probe(registers, UnitConfig::new(0, width));
    let unit = unit.expect("a usable unit");
    // After every store of bring-up the device overwrites what was stored: present, and leading to
    // memory that is nobody's.
    let written = Rc::new(Cell::new(0));
    let count = written.clone();
    hypervisor.record_stores();
    hypervisor.on_step(move |hypervisor| {
        for store in hypervisor.take_stores() {
            raw_write(hypervisor, source_id, store.at, nobodys.as_u64() | 1);
            count.set(count.get() + 1);
        }
        hypervisor.record_stores();
    });
    let result = unit.bring_up(&*hypervisor);
    hypervisor.clear_hooks();
    hypervisor.take_stores();
    assert!(written.get() >= 512, "the device was active");
    // It may fail, for the device writes to the queue, too, but says no better than it is.
    assert!(result.is_err() || unit.is_protecting());
    let violations = hypervisor.bench().violations();
    assert!(violations.is_empty(), "{violations:?}");
    if !unit.is_protecting() {
        return;
    }
    let registers = hypervisor.registers(0).expect("a unit");
    let root = registers.read64(Register64::ROOT_TABLE_ADDRESS);
    let root = RootTableAddress::from_bits(root).root::<Hpa>();
    for offset in (0..4096).step_by(8) {
        let value = hypervisor
            .bench()
            .memory()
            .read64(host_offset(root, offset));
        assert_eq!(value, 0, "the root table at {offset:#x}");
    }
    raw_write(&hypervisor, source_id, nobodys, 0x0bad_0bad);
    assert_eq!(hypervisor.bench().memory().read64(nobodys), 0);
}

fn blocked_from_the_first_moment(place: Place<'_>) {
    let hypervisor = place.unprogrammed();
    let nobodys = hypervisor.bench().layout().nobodys.start;
    let devices = [0, 1].map(|index| hypervisor.bench().device(index));
    // Before bring-up nothing is remapped: that the devices work at all shows here.
    raw_write(&hypervisor, devices[0], nobodys, 0x1111);
    assert_eq!(hypervisor.bench().memory().read64(nobodys), 0x1111);
    drop(hypervisor);

    let lab = place.lab();
    assert!(lab.units[0].is_protecting());
    for source_id in devices {
        for at in [nobodys, lab.hypervisor.bench().layout().frames.start] {
            let before = lab.host_read64(at);
            raw_write(&lab.hypervisor, source_id, at, 0x0bad_0bad);
            assert_eq!(lab.host_read64(at), before, "{source_id} writes to {at}");
        }
        let faults = lab.take_unclaimed_faults();
        assert!(!faults.is_empty());
        for fault in faults {
            // Some units use the legacy number.
            let absent = [
                FaultReason::ScalableRootEntryNotPresent,
                FaultReason::LegacyRootEntryNotPresent,
            ];
            let reason = FaultReason::from_code(fault.reason_code());
            assert!(reason.is_some_and(|reason| absent.contains(&reason)));
            assert_eq!(fault.source_id(), source_id);
        }
    }
    lab.expect_no_violations();
}

fn each_unit_for_itself(place: Place<'_>) {
    // The last device is behind the second unit.
    let lab = place.lab_of(2);
    let hypervisor = &*lab.hypervisor;
    let [first, second] = [0, 1].map(|index| hypervisor.bench().device(index));
    let (page, value) = stamped_page(hypervisor, 0);
    for source_id in [first, second] {
        assert_eq!(
            device_reads(hypervisor, source_id),
            0,
            "blocked by its unit"
        );
    }
    // Attached at the wrong unit, a device stays blocked.
    let (tables, _) = attach_direct(hypervisor, &lab.units[0], second, page).expect("attached");
    assert_eq!(device_reads(hypervisor, second), 0);
    let _attached = attach_direct(hypervisor, &lab.units[1], second, page).expect("attached");
    assert_eq!(device_reads(hypervisor, second), value);
    let detached = lab.units[0].detach_device(hypervisor, tables);
    let detached = detached.expect("queued");
    lab.units[0]
        .release(hypervisor, detached)
        .expect("confirmed");
    assert_eq!(device_reads(hypervisor, second), value, "the other unit's");
    assert_eq!(device_reads(hypervisor, first), 0);
    // Ids and frames of one unit are its own.
    let before = lab.units[0].free_domain_ids();
    let id = lab.units[1].allocate_domain_id().expect("an id");
    assert_eq!(lab.units[0].free_domain_ids(), before);
    lab.units[1].free_domain_id(id);
    lab.take_unclaimed_faults();
    lab.expect_no_violations();

    // A unit that is not up protects nobody, and says so.
    let bench = place.profile.start(2).expect("the bench starts");
    let hypervisor = Interposer::new(bench);
    let width = hypervisor.bench().host_address_width();
    let units = [0, 1].map(|index| {
        let registers = hypervisor.registers(index).expect("the bench has the unit");
        vtd_nest::unit::Unit::probe(registers, UnitConfig::new(0, width)).expect("usable")
    });
    units[0].bring_up(&*hypervisor).expect("it comes up");
    assert!(units[0].is_protecting() && !units[1].is_protecting());
    let refused = units[1].attach_device(&*hypervisor, DIRECT_OWNER, second, 0);
    assert_eq!(refused.map(drop), Err(UnitError::NotUp));
    assert_eq!(
        units[1].submit(&*hypervisor, &BATCH).map(drop),
        Err(QueueError::NotRunning)
    );
}

fn compatibility_format_is_blocked(place: Place<'_>) {
    let lab = place.lab();
    let registers = lab.hypervisor.registers(0).expect("a unit");
    let status = registers.read32(Register32::GLOBAL_STATUS);
    let status = GlobalStatus::from_bits_truncate(status);
    assert!(status.contains(GlobalStatus::INTERRUPT_REMAPPING_ENABLED));
    assert!(!status.contains(GlobalStatus::COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED));
    let source_id = lab.hypervisor.bench().device(0);
    let message = InterruptMessage {
        address: 0xfee0_0000,
        data: 0x41,
    };
    lab.hypervisor.send_message(source_id, message);
    let faults = lab.take_unclaimed_faults();
    let blocked = FaultReason::InterruptCompatibilityFormatBlocked.code();
    assert!(
        faults.iter().any(|fault| fault.reason_code() == blocked),
        "{faults:x?}"
    );
    lab.expect_no_violations();
}
