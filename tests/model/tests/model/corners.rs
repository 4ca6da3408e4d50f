//! What the tests by theme do not come to: rare reasons, and what tests themselves use.

use std::cell::Cell;

use vtd_model::{Edu, ModelConfig, Violation};
use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::{HostMemory, Registers};

use crate::support::*;

const AT: u64 = 0x1234_5000;

#[test]
fn caching_mode_keeps_absent_legacy_entries_under_domain_0() {
    let bench = Bench::new(ModelConfig::caching_mode(), Mode::Legacy);
    let at = bench.context_at(DEVICE);
    assert_eq!(bench.outcome(DEVICE, None, AT), Err(0x02));
    let root = bench.page();
    bench.put(at + 8, 2 | 7 << 8);
    bench.put(at, root | 1);
    assert_eq!(bench.outcome(DEVICE, None, AT), Err(0x02));
    bench.submit(&[context_device(OTHER, 0), iotlb_domain(0)]);
    assert_eq!(bench.outcome(DEVICE, None, AT), Err(0x02), "another device");
    bench.submit(&[context_device(DEVICE, 0)]);
    // The page is absent, and that is cached under domain 7: of a read or a write, as asked.
    assert_eq!(bench.outcome(DEVICE, None, AT), Err(0x06));
    bench.map_second(root, AT, bench.data_page(9));
    assert_eq!(bench.outcome(DEVICE, None, AT), Err(0x06));
    assert_eq!(bench.write_outcome(DEVICE, None, AT), Err(0x05));
    bench.submit(&[iotlb_domain(7)]);
    assert_eq!(bench.outcome(DEVICE, None, AT), Ok(9));
    // What cannot be read is not cached.
    let table = bench.get(root) & !0xfff;
    bench.submit(&[iotlb_domain(7)]);
    bench.machine.memory.poison(Hpa::new(table), 4096);
    assert_eq!(bench.outcome(DEVICE, None, AT), Err(0x07));
    bench.machine.memory.heal();
    assert_eq!(bench.outcome(DEVICE, None, AT), Ok(9));
}

#[test]
fn a_cached_large_page_is_blocked_where_it_meets_the_interrupt_range() {
    // 1 GiB to 0xC000_0000: 0xFEE0_0000 lies in it.
    for (mode, code) in [(Mode::Legacy, 0x0e), (Mode::Scalable, 0x87)] {
        let bench = Bench::new(ModelConfig::nesting_server(), mode);
        let root = bench.page();
        bench.map(Map {
            leaf_level: 3,
            ..Map::second(root, 0x40_0000_0000, 0xc000_0000)
        });
        match mode {
            Mode::Legacy => bench.set_legacy_context(DEVICE, root | 1, 2 | 7 << 8),
            Mode::Scalable => bench.set_pasid(DEVICE, 0, bench.second_entry(7, root)),
        }
        let interrupts = 0x40_0000_0000 + 0x3ee0_0000;
        for _ in 0..2 {
            assert_eq!(bench.outcome(DEVICE, None, 0x40_0000_0000), Ok(0));
            assert_eq!(bench.outcome(DEVICE, None, interrupts), Err(code));
        }
    }
}

#[test]
fn requests_of_a_privileged_device_write_read_only_pages_without_wpe() {
    let config = ModelConfig::nesting_server()
        .with_extended(Ecap::SUPERVISOR_REQUESTS, 1)
        .with_extended(Ecap::RID_PRIV, 1);
    // RID_PRIV; SRE, and WPE or not.
    for (write_protect, expected) in [(0, Ok(())), (1 << 4, Err(0x85))] {
        let bench = Bench::new(config.clone(), Mode::Scalable);
        let root = bench.page();
        let leaf = bench.map_first(root, AT, bench.data_page(1));
        bench.put(leaf, bench.get(leaf) & !2);
        let mut entry = bench.first_entry(7, root);
        entry[2] |= 1 | write_protect;
        bench.set_pasid(DEVICE, 0, entry);
        bench.put(bench.context_at(DEVICE) + 8, 1 << 20);
        // By the walk, then by the IOTLB.
        for _ in 0..2 {
            assert_eq!(bench.write_outcome(DEVICE, None, AT), expected);
        }
    }
}

#[test]
fn an_entry_that_changes_with_every_look_is_given_up() {
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let second = bench.page();
    bench.map(Map {
        leaf_level: 3,
        ..Map::second(second, GUEST_OFFSET, 0)
    });
    let page = 0x20_0000_0000;
    let watched = bench.map_second(second, page, bench.data_page(1));
    let first = bench.page() + GUEST_OFFSET;
    let leaf = bench.map(Map {
        bits: 7,
        ..Map::guest_first(first, AT, page)
    });
    bench.set_pasid(DEVICE, 5, bench.nested_entry(7, first, second));
    // An ignored bit of the guest's entry changes whenever the second stage is asked for its page.
    let flips = Cell::new(0u64);
    bench.machine.memory.set_fetch_hook(move |memory, fetch| {
        if fetch.address == Hpa::new(watched) {
            flips.set(flips.get() + 1);
            let entry = page | 7 | (flips.get() & 1) << 9;
            memory.write64(Hpa::new(leaf), entry);
        }
    });
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x91));
    bench.machine.memory.clear_fetch_hook();
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(1));
}

#[test]
fn register_based_invalidation_has_three_granularities() {
    let context = |granularity: u64| 1 << 63 | granularity << 61 | 7;
    let iotlb_value = |granularity: u64| 1 << 63 | granularity << 60 | 7 << 32;
    for granularity in [1, 2, 3] {
        let bench = Bench::off(ModelConfig::legacy_server(), Mode::Legacy);
        let mut unit = bench.machine.unit.clone();
        unit.write64(Register64::ROOT_TABLE_ADDRESS, bench.root);
        bench.command(SRTP, true);
        bench.command(TE, true);
        let (old, new) = (bench.page(), bench.page());
        bench.map_second(old, AT, bench.data_page(1));
        bench.map_second(new, AT, bench.data_page(2));
        bench.set_legacy_context(DEVICE, old | 1, 2 | 7 << 8);
        assert_eq!(bench.outcome(DEVICE, None, AT), Ok(1));
        bench.set_legacy_context(DEVICE, new | 1, 2 | 7 << 8);
        let device = u64::from(DEVICE.as_u16()) << 16;
        unit.write64(Register64::CONTEXT_COMMAND, context(granularity) | device);
        let iotlb = Register64::iotlb_invalidate(0xf0).unwrap();
        let address = Register64::invalidate_address(0xf0).unwrap();
        unit.write64(address, AT);
        unit.write64(iotlb, iotlb_value(granularity));
        assert_eq!(bench.outcome(DEVICE, None, AT), Ok(2), "{granularity}");
        // A granularity that does not exist: nothing is done.
        unit.write64(Register64::CONTEXT_COMMAND, context(0) | device);
        let answer = unit.read64(Register64::CONTEXT_COMMAND);
        assert_eq!(answer >> 59 & 3, 0);
        unit.assert_no_violations();
    }
}

#[test]
fn faults_show_the_address_bits_of_the_largest_width() {
    // 48 bits with first stage; all where there is only pass-through.
    for (first_stage, shown) in [(1, 0x8000_1234_5000), (0, 0xffff_8000_1234_5000)] {
        let config = ModelConfig::nesting_server()
            .with_capability(Cap::ADJUSTED_GUEST_ADDRESS_WIDTHS, 0)
            .with_extended(Ecap::SECOND_STAGE, 0)
            .with_extended(Ecap::NESTED, 0)
            .with_extended(Ecap::FIRST_STAGE, first_stage);
        let bench = Bench::new(config, Mode::Scalable);
        bench.set_pasid(DEVICE, 5, bench.pass_through_entry(7));
        let address = 0xffff_8000_1234_5000;
        assert_eq!(bench.outcome(DEVICE, pasid(5), address), Err(0x83));
        let record = Register64::fault_record_low(0x220, 0).unwrap();
        assert_eq!(bench.machine.unit.read64(record), shown);
    }
}

#[test]
fn registers_are_read_only_and_write_only_where_they_are() {
    let bench = Bench::off(ModelConfig::nesting_server(), Mode::Scalable);
    let mut unit = bench.machine.unit.clone();
    let address = Register64::invalidate_address(0xf0).unwrap();
    assert_eq!(unit.read64(address), 0);
    let write_only = |offset| Violation::WriteOnlyRegister { offset };
    assert_eq!(unit.take_violations(), [write_only(0xf0), write_only(0xf4)]);
    // 64 bits where no register has them.
    let nowhere = Register64::fault_record_low(0x340, 0).unwrap();
    let width = Violation::AccessWidth {
        offset: 0x340,
        width_bytes: 8,
    };
    unit.read64(nowhere);
    assert_eq!(unit.take_violations()[0], width);
    unit.write64(nowhere, 1);
    assert_eq!(unit.take_violations()[0], width);
    let record = Register64::fault_record_low(0x220, 0).unwrap();
    unit.write32(record.low_dword(), 5);
    assert_eq!(
        unit.take_violations(),
        [Violation::ReadOnlyRegister {
            offset: 0x220,
            value: 5
        }]
    );
    for (register, value) in [
        (Register32::FAULT_EVENT_DATA, 0x31),
        (Register32::FAULT_EVENT_ADDRESS, 0xfee0_1000),
        (Register32::FAULT_EVENT_UPPER_ADDRESS, 7),
    ] {
        unit.write32(register, value);
        assert_eq!(unit.read32(register), value);
    }
    unit.assert_no_violations();
}

#[test]
fn dma_where_there_is_no_memory_is_told() {
    let bench = Bench::off(ModelConfig::nesting_server(), Mode::Scalable);
    let unit = &bench.machine.unit;
    let nowhere = 0xffff_0000;
    let outside = Violation::DmaOutsideMemory { address: nowhere };
    assert_eq!(bench.read(DEVICE, None, nowhere), Ok(u64::MAX));
    assert_eq!(bench.write(DEVICE, None, nowhere, 1), Ok(()));
    let added = unit.dma_fetch_add(DEVICE, None, Iova::new(nowhere), 1);
    assert_eq!(added, Ok(u64::MAX));
    assert_eq!(unit.violations(), [outside; 3]);
}

#[test]
fn a_tail_that_moves_back_withdraws_what_was_queued() {
    let config = ModelConfig::nesting_server();
    let bench = Bench::new(config, Mode::Scalable);
    let mut unit = bench.machine.unit.clone();
    // The queue stands at an error, behind which the tail may be moved; then at none.
    bench.post(&[[0xf, 0], IOTLB_GLOBAL]);
    unit.write64(Register64::INVALIDATION_QUEUE_TAIL, 32);
    unit.assert_no_violations();
    let config = ModelConfig::nesting_server().with_extended(Ecap::DEVICE_TLB, 1);
    let bench = Bench::new(config, Mode::Scalable);
    let mut unit = bench.machine.unit.clone();
    unit.set_device_silent(DEVICE, true);
    bench.post(&[[3 | u64::from(DEVICE.as_u16()) << 32, 0]]);
    bench.machine.hypervisor.clock().advance(2_000_000_000);
    unit.advance();
    // ITE: nothing is fetched any more.
    bench.post(&[IOTLB_GLOBAL, IOTLB_GLOBAL]);
    unit.write64(Register64::INVALIDATION_QUEUE_TAIL, 64);
    assert_eq!(
        unit.violations(),
        [Violation::QueueTailMovedBack {
            head: 32,
            old: 96,
            new: 64
        }]
    );
}

#[test]
fn domain_0_is_no_domain_in_caching_mode() {
    let bench = Bench::new(ModelConfig::caching_mode(), Mode::Scalable);
    bench.set_pasid(DEVICE, 0, bench.pass_through_entry(0));
    bench.outcome(DEVICE, None, AT).unwrap();
    assert_eq!(
        bench.machine.unit.violations(),
        [Violation::DomainZeroInCachingMode { source_id: DEVICE }]
    );
}

#[test]
fn an_evicted_cache_shows_what_memory_has() {
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let root = bench.page();
    let leaf = bench.map_first(root, AT, bench.data_page(1));
    bench.set_pasid(DEVICE, 0, bench.first_entry(7, root));
    assert_eq!(bench.outcome(DEVICE, None, AT), Ok(1));
    bench.put(leaf, bench.data_page(2) | 0x67);
    assert_eq!(bench.outcome(DEVICE, None, AT), Ok(1));
    bench.machine.unit.evict_all();
    assert_eq!(bench.outcome(DEVICE, None, AT), Ok(2));
    // What a failing test prints.
    assert!(format!("{:?}", bench.machine.unit).contains("violations"));
    assert!(format!("{:?}", bench.machine.memory).contains("unflushed"));
}

#[test]
fn the_hypervisors_memory_is_the_machines() {
    let bench = Bench::off(ModelConfig::nesting_server(), Mode::Scalable);
    let h = &bench.machine.hypervisor;
    let at = Hpa::new(bench.page());
    h.write128(at, 2 << 64 | 0xff);
    h.write32(at, 0xf0);
    assert_eq!(h.fetch_and64(at, 0x30), 0xf0);
    assert_eq!(h.memory().read64(at), 0x30);
    assert_eq!(bench.get(at.as_u64() + 8), 2);
}

#[test]
fn the_devices_addresses_can_be_cut_and_its_requests_tagged() {
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let root = bench.page();
    bench.map_first(root, 0x5000, bench.data_page(0x77));
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, root));
    let mut edu = Edu::new(&bench.machine.unit, DEVICE).with_address_mask(0xffff);
    assert_eq!(edu.source_id(), DEVICE);
    edu.set_pasid(pasid(5));
    for (register, value) in [(0x80, 0xabc_5000), (0x88, 0x4_0000), (0x90, 8)] {
        edu.write64(register, value);
    }
    edu.write64(0x98, 1);
    assert_eq!(edu.last_fault(), None);
    assert_eq!(edu.buffer()[0], 0x77);
    assert_eq!([edu.read32(0x80), edu.read32(0x84)], [0xabc_5000, 0]);
    assert_eq!((edu.read32(0x70), edu.read64(0)), (u32::MAX, u64::MAX));
    // Its interrupt status is set by hand; a start without the bit for it does nothing.
    edu.write32(0x60, 3);
    assert_eq!(edu.read32(0x24), 3);
    edu.write64(0x98, 0);
    edu.set_pasid(None);
    edu.write64(0x98, 1);
    assert_eq!(
        edu.last_fault().map(|fault| fault.reason.code()),
        Some(0x59)
    );
}
