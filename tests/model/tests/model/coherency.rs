//! What a unit sees of stores that were not flushed, and of entries that change while it reads.

use std::cell::Cell;
use std::rc::Rc;

use vtd_model::{FetchOrder, MemoryEvent, ModelConfig};
use vtd_nest::arch::address::Hpa;
use vtd_nest::mem::HostMemory;

use crate::support::*;

const AT: u64 = 0x1234_5000;

fn flush(bench: &Bench, at: u64, len_bytes: u64) {
    bench.machine.memory.flush_range(Hpa::new(at), len_bytes);
    bench.machine.memory.fence();
}

/// Stores without flushing.
fn store(bench: &Bench, at: u64, value: u64) {
    bench.machine.memory.write64(Hpa::new(at), value);
}

#[test]
fn unflushed_entries_are_invisible_to_a_unit_that_does_not_snoop() {
    for coherent in [false, true] {
        let config = if coherent {
            ModelConfig::nesting_server()
        } else {
            ModelConfig::nesting_client_noncoherent()
        };
        let bench = Bench::new(config, Mode::Scalable);
        let see = |stale, fresh| if coherent { fresh } else { stale };
        let check = |expected, what: &str| {
            assert_eq!(
                bench.outcome(DEVICE, pasid(5), AT),
                expected,
                "{what}, {coherent}"
            );
        };
        let page = bench.data_page(0x11);
        let tables = [
            bench.page(),
            bench.page(),
            bench.page(),
            bench.page(),
            bench.page(),
        ];
        let [context, directory, pasids, ..] = tables;
        store(&bench, bench.root, context | 1);
        check(Err(see(0x39, 0x41)), "root");
        flush(&bench, bench.root, 8);
        store(&bench, context + 32 * 0x10, directory | 8 | 1);
        check(Err(see(0x41, 0x51)), "context");
        flush(&bench, context + 32 * 0x10, 8);
        store(&bench, directory, pasids | 1);
        check(Err(see(0x51, 0x59)), "directory");
        flush(&bench, directory, 8);
        let root = bench.page();
        for (index, word) in bench.first_entry(7, root).into_iter().enumerate().rev() {
            store(&bench, pasids + 64 * 5 + 8 * index as u64, word);
        }
        check(Err(see(0x59, 0x71)), "PASID entry");
        flush(&bench, pasids + 64 * 5, 64);
        let leaf = bench.map_first(root, AT, page);
        let entry = bench.get(leaf);
        bench.put(leaf, 0);
        store(&bench, leaf, entry);
        check(if coherent { Ok(0x11) } else { Err(0x71) }, "leaf");
        flush(&bench, leaf, 8);
        check(Ok(0x11), "all flushed");
        bench.machine.unit.assert_no_violations();
    }
}

#[test]
fn walks_are_snooped_by_pwsnp_not_by_c() {
    // (snooped page walks supported and asked for)
    for (pwsnp, expected) in [(true, Ok(0x22)), (false, Ok(0x11))] {
        let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
        let root = bench.page();
        let leaf = bench.map_first(root, AT, bench.data_page(0x11));
        let mut entry = bench.first_entry(7, root);
        if !pwsnp {
            entry[1] &= !(1 << 23);
        }
        bench.set_pasid(DEVICE, 5, entry);
        store(&bench, leaf, bench.data_page(0x22) | 0x67);
        assert_eq!(bench.outcome(DEVICE, pasid(5), AT), expected);
    }
}

#[test]
fn queue_and_wait_status_are_always_snooped() {
    let bench = Bench::new(ModelConfig::nesting_client_noncoherent(), Mode::Scalable);
    assert!(bench.submit(&[CONTEXT_GLOBAL, PASID_CACHE_GLOBAL, IOTLB_GLOBAL]));
    assert_eq!(bench.machine.unit.take_descriptors().len(), 4);
}

#[test]
fn legacy_second_stage_is_snooped_by_c() {
    for (config, expected) in [
        (ModelConfig::legacy_server(), Ok(0x22)),
        (ModelConfig::qemu_second_stage(), Ok(0x11)),
    ] {
        let bench = Bench::new(config, Mode::Legacy);
        let root = bench.page();
        let leaf = bench.map_second(root, AT, bench.data_page(0x11));
        bench.set_legacy_context(DEVICE, root | 1, 2 | 7 << 8);
        store(&bench, leaf, bench.data_page(0x22) | 3);
        assert_eq!(bench.outcome(DEVICE, None, AT), expected);
    }
}

/// A binding of PASID 5 by first stage to 1; the entry's address, and that of another root.
fn two_roots(bench: &Bench) -> (u64, u64, u64) {
    let (old, new) = (bench.page(), bench.page());
    bench.map_first(old, AT, bench.data_page(1));
    bench.map_first(new, AT, bench.data_page(2));
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, old));
    (bench.pasid_at(DEVICE, 5), old, new)
}

#[test]
fn entries_are_fetched_in_16_byte_pieces_in_either_order() {
    for (order, pieces) in [
        (FetchOrder::Ascending, [0, 16, 32, 48]),
        (FetchOrder::Descending, [48, 32, 16, 0]),
    ] {
        let mut config = ModelConfig::nesting_server();
        config.fetch_order = order;
        let bench = Bench::new(config, Mode::Scalable);
        let (entry, ..) = two_roots(&bench);
        let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
        let log = Rc::clone(&seen);
        bench.machine.memory.set_fetch_hook(move |_, fetch| {
            if let Some(offset) = fetch.address.as_u64().checked_sub(entry)
                && offset < 64
            {
                log.borrow_mut().push((offset, fetch.len_bytes));
            }
        });
        assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(1));
        assert_eq!(*seen.borrow(), pieces.map(|piece| (piece, 16)));
    }
}

#[test]
fn an_entry_rewritten_while_it_is_fetched_is_seen_torn() {
    // Domain-id 7 with the old root becomes 9 with the new one, between two pieces.
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let (entry, _, new) = two_roots(&bench);
    let fetched = Rc::new(Cell::new(0));
    let count = Rc::clone(&fetched);
    let q1 = bench.get(entry + 8);
    bench.machine.memory.set_fetch_hook(move |memory, fetch| {
        if fetch.address == Hpa::new(entry + 16) {
            count.set(count.get() + 1);
            memory.write64(Hpa::new(entry + 8), q1 & !0xffff | 9);
            memory.write64(Hpa::new(entry + 16), new);
        }
    });
    // The new root under the old domain-id.
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(2));
    assert_eq!(fetched.get(), 1);
    bench.machine.memory.clear_fetch_hook();
    bench.submit(&[pasid_cache(9, 5), pasid_iotlb_all(9, 5)]);
    bench.put(entry, bench.get(entry) & !1);
    assert_eq!(
        bench.outcome(DEVICE, pasid(5), AT),
        Ok(2),
        "nothing carries the new domain-id"
    );
    bench.submit(&[pasid_cache(7, 5), pasid_iotlb_all(7, 5)]);
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Err(0x59));
}

#[test]
fn an_accessed_bit_never_undoes_a_change_by_software() {
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let second = bench.page();
    bench.map(Map {
        leaf_level: 3,
        ..Map::second(second, GUEST_OFFSET, 0)
    });
    let guest_page = 0x20_0000_0000;
    let second_leaf = bench.map_second(second, guest_page, bench.data_page(1));
    bench.map_second(second, guest_page + 0x1000, bench.data_page(2));
    let first = bench.page() + GUEST_OFFSET;
    let leaf = bench.map(Map {
        bits: 7,
        ..Map::guest_first(first, AT, guest_page)
    });
    bench.set_pasid(DEVICE, 5, bench.nested_entry(7, first, second));
    // The leaf was read when the second stage is asked about its page: it changes there, so the
    // update must find that out and take the new one.
    let moved = (guest_page + 0x1000) | 7;
    bench.machine.memory.set_fetch_hook(move |memory, fetch| {
        if fetch.address == Hpa::new(second_leaf) {
            memory.write64(Hpa::new(leaf), moved);
        }
    });
    assert_eq!(bench.outcome(DEVICE, pasid(5), AT), Ok(2));
    assert_eq!(bench.get(leaf), moved | 0x20);
}

#[test]
fn the_log_shows_what_hardware_and_software_stored() {
    let bench = Bench::new(ModelConfig::nesting_server(), Mode::Scalable);
    let root = bench.page();
    let leaf = bench.map_first(root, AT, bench.data_page(1));
    let entry = bench.get(leaf) & !0x60;
    bench.put(leaf, entry);
    bench.set_pasid(DEVICE, 5, bench.first_entry(7, root));
    bench.machine.memory.start_log();
    bench.outcome(DEVICE, pasid(5), AT).unwrap();
    assert_eq!(
        bench.machine.memory.take_log(),
        [MemoryEvent::HardwareStore {
            address: Hpa::new(leaf),
            value: entry | 0x20,
            width_bytes: 8
        }]
    );
}
