extern crate std;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

use super::super::testing::first_stage;
use super::*;

/// What the tests' entries need.
fn features() -> TableFeatures {
    TableFeatures {
        host_address_width: 46,
        domain_id_bits: 16,
        first_stage: true,
        ..TableFeatures::default()
    }
}

impl HostState for () {
    const BLOCKED: Self = ();
}

impl HostState for u32 {
    const BLOCKED: Self = 0;
}

impl HostState for [u16; 8] {
    const BLOCKED: Self = [0; 8];
}

fn started<B: HostState, const N: usize>(secret: u64) -> Box<PasidCache<B, N>> {
    let mut cache = Box::new(PasidCache::vacant());
    cache.start(KeyedHash::new(secret));
    cache
}

/// Binds an entry as a pass does.
fn bind<const N: usize>(cache: &mut PasidCache<(), N>, n: u32, domain_id: u16, root: u64) {
    let at = cache.insert(0, pasid(n)).unwrap();
    let raw = *first_stage(domain_id, root).quadwords();
    cache.unsettle(at, Some(&raw), &features());
    cache.settle(at, 1);
}

/// The PASIDs that a walk meets.
fn walk<const N: usize>(cache: &mut PasidCache<(), N>, domain_id: Option<DomainId>) -> Vec<u32> {
    cache.begin_walk(domain_id);
    let met: Vec<_> = core::iter::from_fn(|| cache.next_of_walk()).collect();
    let pasid_at = |at: &usize| cache.get(*at).unwrap().pasid().as_u32();
    met.iter().map(pasid_at).collect()
}

fn pasid(value: u32) -> Pasid {
    Pasid::new(value).unwrap()
}

#[test]
fn finds_what_was_inserted_and_nothing_else_in_any_order_of_changes() {
    // Against a map, with a generator of fixed seed.
    let mut cache = started::<u32, 61>(0x1234_5678_9abc_def0);
    let mut model = BTreeMap::new();
    let mut random = 1u64;
    for _ in 0..4000 {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let key = ((random >> 33) as u16 % 3, pasid((random >> 40) as u32 % 40));
        match cache.find(key.0, key.1) {
            Some(at) => {
                assert_eq!(model.remove(&key), Some(at));
                cache.remove(at, &features());
            }
            None => match cache.insert(key.0, key.1) {
                Some(at) => assert_eq!(model.insert(key, at), None),
                None => assert_eq!(model.len(), 61),
            },
        }
        assert_eq!(cache.len() as usize, model.len());
        for (key, at) in &model {
            assert_eq!(cache.find(key.0, key.1), Some(*at));
            let entry = cache.get(*at).unwrap();
            assert_eq!((entry.device() as u16, entry.pasid()), *key);
        }
    }
}

#[test]
fn a_full_store_refuses_and_takes_again_after_a_removal() {
    let mut cache = started::<(), 4>(7);
    let slots: Vec<_> = (0..4).map(|n| cache.insert(0, pasid(n)).unwrap()).collect();
    assert_eq!(cache.insert(0, pasid(4)), None);
    cache.remove(slots[2], &features());
    assert_eq!(cache.find(0, pasid(2)), None);
    assert_eq!(cache.insert(0, pasid(4)), Some(slots[2]));
}

#[test]
fn a_walk_meets_the_bindings_of_its_domain_id_only_and_survives_their_removal() {
    let mut cache = started::<(), 64>(3);
    for n in 0..30 {
        bind(&mut cache, n, 7 + (n % 3) as u16, u64::from(n) << 12);
    }
    let seven = Some(DomainId::new(7));
    let mut met = walk(&mut cache, seven);
    met.retain(|n| n % 3 == 0);
    assert_eq!(met.len(), 10);
    // Another domain-id in the same chain would be one of three in 64.
    assert!(walk(&mut cache, seven).len() < 30);
    // A change amid the walk, of the slot just met and of the one to come.
    cache.begin_walk(seven);
    let first = cache.next_of_walk().unwrap();
    cache.unsettle(first, None, &features());
    let next = cache.cursor as usize;
    cache.remove(next, &features());
    cache.remove(first, &features());
    let mut rest = 0;
    while let Some(at) = cache.next_of_walk() {
        rest += u32::from(domain_id_of(cache.get(at).unwrap().raw()) == DomainId::new(7));
    }
    assert_eq!(rest, 8);
    assert_eq!(walk(&mut cache, None), []);
    cache.insert(1, pasid(40)).unwrap();
    assert_eq!(walk(&mut cache, None), [40]);
}

#[test]
fn a_changed_entry_is_met_under_its_new_domain_id() {
    let mut cache = started::<(), 4096>(3);
    bind(&mut cache, 5, 7, 0x1000);
    let at = cache.find(0, pasid(5)).unwrap();
    let raw = *first_stage(8, 0x1000).quadwords();
    cache.unsettle(at, Some(&raw), &features());
    assert_eq!(walk(&mut cache, None), [5]);
    cache.settle(at, 2);
    assert_eq!(walk(&mut cache, None), []);
    assert_eq!(walk(&mut cache, Some(DomainId::new(7))), []);
    assert_eq!(walk(&mut cache, Some(DomainId::new(8))), [5]);
    assert_eq!(cache.get(at).unwrap().generation(), 2);
}

#[test]
fn roots_count_as_long_as_an_entry_may_use_them() {
    // S96.
    let mut cache = started::<(), 4>(3);
    let root = |extended: u64| {
        let mut raw = *first_stage(7, 0x1000).quadwords();
        raw[2] |= extended << 7;
        raw
    };
    let features = TableFeatures {
        extended_accessed: true,
        ..features()
    };
    let wanted = root_of(&root(1), &features).unwrap();
    let at = cache.insert(0, pasid(1)).unwrap();
    assert!(!cache.contradicts(wanted, None, &features));
    cache.unsettle(at, Some(&root(0)), &features);
    assert!(cache.contradicts(wanted, None, &features));
    cache.settle(at, 1);
    cache.unsettle(at, None, &features);
    assert!(cache.contradicts(wanted, None, &features));
    assert!(!cache.contradicts(wanted, Some(at), &features));
    cache.remove(at, &features);
    assert!(!cache.contradicts(wanted, None, &features));
}

#[test]
fn what_was_used_once_is_not_looked_at_for_ever() {
    let mut cache = started::<(), 64>(3);
    let slots: Vec<_> = (0..64)
        .map(|n| cache.insert(0, pasid(n)).unwrap())
        .collect();
    assert_eq!(cache.end(), 64);
    for at in slots {
        cache.remove(at, &features());
    }
    assert_eq!((cache.end(), cache.len()), (0, 0));
    for n in 0..64 {
        assert_eq!(cache.insert(0, pasid(n)), Some(n as usize));
    }
}

/// Fills a store, looks everything up and empties it.
fn fill_and_empty<const N: usize>(stride: u32) {
    let mut cache = started::<(), N>(0x0123_4567_89ab_cdef);
    let key = |n: u32| pasid(n * stride);
    let root = |n: u32| u64::from(n) << 12;
    for n in 0..N as u32 {
        let at = cache.insert(0, key(n)).unwrap();
        let raw = *first_stage(n as u16, root(n)).quadwords();
        cache.unsettle(at, Some(&raw), &features());
        cache.settle(at, 1);
    }
    assert_eq!(cache.insert(1, pasid(0)), None);
    // No look-up is long, by key, by domain-id or by root.
    let mut lengths = std::vec![[0u32; 2]; N];
    for n in 0..N as u32 {
        lengths[cache.key_bucket(key_of(0, key(n)))][0] += 1;
        lengths[cache.domain_bucket(DomainId::new(n as u16))][1] += 1;
    }
    for index in 0..2 {
        let longest = lengths.iter().map(|of| of[index]).max().unwrap();
        assert!(longest <= 12, "{longest} of {N} by {stride}");
    }
    for n in 0..N as u32 {
        let at = cache.find(0, key(n)).unwrap();
        assert_eq!(cache.get(at).unwrap().pasid(), key(n));
        cache.remove(at, &features());
    }
    assert_eq!((cache.len(), cache.end()), (0, 0));
    for n in 0..N as u32 {
        let wanted = root_of(first_stage(7, root(n)).quadwords(), &features()).unwrap();
        assert!(!cache.contradicts(wanted, None, &features()));
    }
}

#[test]
fn any_capacity_can_be_filled_and_emptied() {
    // The largest is moved to its place, and would not fit a test's stack.
    let test = || {
        for stride in [1, 16] {
            fill_and_empty::<1>(stride);
            fill_and_empty::<16>(stride);
            fill_and_empty::<4096>(stride);
            fill_and_empty::<65536>(stride);
        }
    };
    let thread = std::thread::Builder::new().stack_size(64 << 20);
    thread.spawn(test).unwrap().join().unwrap();
}

#[test]
fn an_entry_costs_at_most_128_bytes_with_16_bytes_of_the_host() {
    // Requirements, cost targets: memory.
    for (size, capacity) in [
        (size_of::<PasidCache<[u16; 8], 4096>>(), 4096),
        (size_of::<PasidCache<[u16; 8], 65536>>(), 65536),
    ] {
        assert!(size <= 128 * capacity, "{size} / {capacity}");
        assert_eq!(size.div_ceil(capacity), 125, "{size} / {capacity}");
    }
}

#[test]
fn chains_stay_short_for_regular_keys_whatever_the_seed() {
    // S93: consecutive and strided PASIDs are what a guest can choose.
    for seed in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
        for stride in [1, 64, 4096] {
            let mut cache = started::<(), 256>(seed ^ 0x5bd1_e995_1b87_3593);
            let mut lengths = [0u32; 256];
            for n in 0..256 {
                let pasid = pasid(n * stride % Pasid::COUNT);
                lengths[cache.key_bucket(key_of(0, pasid))] += 1;
                cache.insert(0, pasid).unwrap();
            }
            assert!(lengths.iter().max() < Some(&12), "{seed:x} {stride}");
        }
    }
}
