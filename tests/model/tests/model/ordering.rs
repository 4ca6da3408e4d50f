//! The order in which descriptors are executed (§6.5.2.12).

use vtd_model::{Access, DeviceTlbMode, ModelConfig, Pace, QueueOrder, Request};
use vtd_nest::arch::address::Iova;
use vtd_nest::arch::capability::ExtendedCapabilityField as Ecap;

use crate::support::*;

const AT: u64 = 0x1234_5000;
/// Enough for every order of two descriptors to come up.
const SEEDS: std::ops::Range<u64> = 1..33;

fn config(seed: u64) -> ModelConfig {
    ModelConfig::nesting_server()
        .with_extended(Ecap::DEVICE_TLB, 1)
        .with_extended(Ecap::PAGE_REQUESTS, 1)
        .with_extended(Ecap::INTERRUPT_REMAPPING, 1)
        .with_queue_order(QueueOrder::Shuffled, seed)
}

/// A wait with neither status nor interrupt, with FN or without.
const fn barrier(fence: bool) -> [u64; 2] {
    [5 | (fence as u64) << 6, 0]
}

#[test]
fn what_must_come_first_does_and_everything_else_is_turned_round() {
    let context = CONTEXT_GLOBAL;
    let pasid_cache = PASID_CACHE_GLOBAL;
    let iotlb = IOTLB_GLOBAL;
    let pasid_iotlb = pasid_iotlb_all(7, 5);
    let interrupt = [4, 0];
    let device_tlb = [3 | 0x10 << 32, 0x7fff_ffff_ffff_f001];
    let pasid_device_tlb = [8 | 0x10 << 16 | 5 << 32, 0x7fff_ffff_ffff_f800];
    let response = [9 | 0x10 << 16, 0];
    // The first and the second in the queue; whether the second may be executed before the first.
    for (first, second, may_overtake) in [
        (context, pasid_cache, false),
        (context, iotlb, false),
        (context, pasid_iotlb, false),
        (pasid_cache, iotlb, false),
        (pasid_cache, pasid_iotlb, false),
        (iotlb, device_tlb, false),
        (iotlb, pasid_device_tlb, false),
        (pasid_iotlb, pasid_device_tlb, false),
        (interrupt, device_tlb, false),
        (interrupt, pasid_device_tlb, false),
        (response, device_tlb, false),
        (pasid_device_tlb, response, false),
        (iotlb, barrier(false), false),
        (device_tlb, barrier(false), false),
        (barrier(true), iotlb, false),
        (barrier(true), barrier(false), false),
        (pasid_iotlb, device_tlb, true),
        (pasid_cache, context, true),
        (iotlb, pasid_cache, true),
        (iotlb, context, true),
        (iotlb, pasid_iotlb, true),
        (pasid_iotlb, iotlb, true),
        (interrupt, iotlb, true),
        (iotlb, interrupt, true),
        (device_tlb, iotlb, true),
        (device_tlb, pasid_device_tlb, true),
        (context, iotlb_domain(7), false),
        (iotlb, iotlb_domain(7), true),
        (barrier(false), iotlb, true),
        (barrier(false), barrier(true), true),
    ] {
        let mut overtook = false;
        for seed in SEEDS {
            let bench = Bench::new(config(seed), Mode::Scalable);
            bench.machine.unit.take_executed();
            bench.post(&[first, second]);
            let executed = bench.machine.unit.take_executed();
            let heads: Vec<u64> = executed.iter().map(|words| words[0]).collect();
            assert_eq!(heads.len(), 2, "{heads:x?}");
            overtook |= heads == [second[0], first[0]];
        }
        assert_eq!(overtook, may_overtake, "{first:x?} then {second:x?}");
    }
    // In order, whatever the seed.
    for seed in SEEDS {
        let config = config(seed).with_queue_order(QueueOrder::InOrder, seed);
        let bench = Bench::new(config, Mode::Scalable);
        bench.post(&[iotlb, context]);
        let executed = bench.machine.unit.take_executed();
        assert_eq!([executed[0][0], executed[1][0]], [iotlb[0], context[0]]);
    }
}

/// PASID 5 bound to a page with 1 that the device keeps asking for, then to one with 2.
fn rebound(config: ModelConfig) -> Bench {
    let bench = Bench::new(config, Mode::Scalable);
    let (old, new) = (bench.page(), bench.page());
    bench.map_first(old, AT, bench.data_page(1));
    bench.map_first(new, AT, bench.data_page(2));
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, old));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(1));
    let request = Request::new(DEVICE, pasid(5), Iova::new(AT), Access::Read);
    bench.machine.unit.set_busy(&[request]);
    bench.put(bench.pasid_at(DEVICE, 5) + 16, new);
    bench
}

#[test]
fn a_busy_device_finds_out_the_wrong_order_of_invalidations() {
    for seed in SEEDS {
        let right = [pasid_cache(7, 5), pasid_iotlb_all(7, 5)];
        let bench = rebound(config(seed));
        assert!(bench.submit(&right));
        assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(2));
    }
    let bench = rebound(config(1).with_queue_order(QueueOrder::InOrder, 1));
    assert!(bench.submit(&[pasid_iotlb_all(7, 5), pasid_cache(7, 5)]));
    assert_eq!(
        bench.outcome(DEVICE, pasid(5), AT),
        Ok(1),
        "cached again by what the PASID cache still had"
    );
    bench.machine.unit.set_busy(&[]);
    assert!(bench.submit(&[pasid_iotlb_all(7, 5)]));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(2));
}

#[test]
fn a_wait_says_nothing_of_what_lies_before_the_wait_before_it() {
    let mut stale = [false; 2];
    for (fence, stale) in [false, true].into_iter().zip(&mut stale) {
        for seed in SEEDS {
            let bench = rebound(config(seed).with_queue_pace(Pace::Manual));
            let wait = bench.wait_descriptor(77);
            bench.post(&[
                pasid_cache(7, 5),
                pasid_iotlb_all(7, 5),
                barrier(fence),
                wait,
            ]);
            while !bench.is_done(77) {
                assert!(bench.machine.unit.run_one(), "the wait is on its way");
            }
            *stale |= bench.outcome(DEVICE, pasid(5), AT) == Ok(1);
            while bench.machine.unit.run_one() {}
            assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(2));
        }
    }
    assert_eq!(stale, [true, false]);
}

#[test]
fn others_go_on_while_a_silent_device_is_waited_for() {
    let mut config = config(3);
    config.device_tlb_timeout = 1_000;
    let bench = rebound(config);
    let unit = &bench.machine.unit;
    unit.set_device_silent(DEVICE, true);
    let device_tlb = [3 | u64::from(DEVICE.as_u16()) << 32, 0x7fff_ffff_ffff_f001];
    assert!(!bench.submit(&[device_tlb, pasid_cache(7, 5), pasid_iotlb_all(7, 5)]));
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(2));
    bench.machine.hypervisor.clock().advance(2_000);
    unit.advance();
    assert!(!unit.run_one(), "the wait is aborted");
}

/// Whether any seed leaves a translation of the old page in the device-TLB of a device without
/// PASIDs, that asks again for what is taken from it.
fn leaves_stale_device_tlb(batch: &[[u64; 2]]) -> bool {
    SEEDS.into_iter().any(|seed| {
        let bench = Bench::new(config(seed), Mode::Scalable);
        let unit = &bench.machine.unit;
        let root = bench.page();
        let (old, new) = (bench.data_page(1), bench.data_page(2));
        let leaf = bench.map_first(root, AT, old);
        bench.set_pasid(DEVICE, 0, bench.first_entry(7, root));
        let context = bench.context_at(DEVICE);
        bench.put(context, bench.get(context) | 1 << 2);
        unit.set_device_tlb_mode(DEVICE, DeviceTlbMode::Refilling);
        let device = unit.initiator(DEVICE).through_device_tlb();
        let read = || {
            let mut bytes = [0; 8];
            device.read(Iova::new(AT), &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        assert_eq!(read(), 1);
        bench.put(leaf, new | 0x67);
        assert!(bench.submit(batch));
        read() == 1
    })
}

#[test]
fn device_tlbs_are_not_ordered_behind_pasid_based_invalidations() {
    // Type 3 follows type 2, and not type 6: that takes a fence.
    let device = u64::from(DEVICE.as_u16());
    let device_tlb = [3 | device << 32, 0x7fff_ffff_ffff_f001];
    let pasid_iotlb = pasid_iotlb_all(7, 0);
    for (batch, stale) in [
        (&[pasid_iotlb, device_tlb][..], true),
        (&[pasid_iotlb, barrier(false), device_tlb], true),
        (&[pasid_iotlb, barrier(true), device_tlb], false),
        (&[iotlb_domain(7), device_tlb], false),
        (&[device_tlb, iotlb_domain(7)], true),
    ] {
        assert_eq!(leaves_stale_device_tlb(batch), stale, "{batch:x?}");
    }
}
