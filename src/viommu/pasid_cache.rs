//! The store of bindings that follow from guest PASID entries, keyed by (device, PASID).
//!
//! A fixed number of slots, chained by a hash with a secret seed, so that no choice of PASIDs by a
//! guest makes a look-up slow. A slot never moves while it is used: a cursor over the store stays
//! valid whatever is added or removed meanwhile. Three indices lead to slots: by key, by the
//! domain-id that is cached, and, to what they use only, by first-stage root.

use crate::arch::features::TableFeatures;
use crate::arch::id::{DomainId, Pasid};
use crate::arch::pasid::PasidEntry;

use super::first_stage_roots::{FirstStageRoots, MAXIMUM_USERS, RootUse};
use super::host::HostState;
use super::keyed_hash::KeyedHash;
use super::tables::{domain_id_of, guest_binding};

/// A chain's end, and no slot.
pub(super) const NONE: u32 = u32::MAX;

/// Most bindings that a store can have: what its indices can count.
pub(super) const MAXIMUM_BINDINGS: usize = MAXIMUM_USERS;

/// Passes that stamps can tell apart, 0 for none.
pub(super) const GENERATIONS: u32 = 1 << 26;

/// What is known of a binding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BindingState {
    /// The slot is free.
    Free,
    /// Hardware may hold some of it: a host operation is unfinished, or failed.
    Unsettled,
    /// It is bound to what [`CachedEntry::raw`] says.
    Bound,
}

/// A binding that follows from a guest PASID entry: 72 bytes and what the host keeps.
#[derive(Debug)]
pub(super) struct CachedEntry<B> {
    /// The guest's entry as last honoured, or as the host is honouring it.
    raw: [u64; 8],
    /// From bit 0: device (16), PASID (20), state (2), and the pass that last looked at it (26).
    key: u64,
    /// What the host side keeps for it.
    pub(super) host: B,
}

const PASID_SHIFT: u32 = 16;
const STATE_SHIFT: u32 = 36;
const GENERATION_SHIFT: u32 = 38;
/// Device and PASID.
const KEY_MASK: u64 = (1 << STATE_SHIFT) - 1;

const fn key_of(device: u16, pasid: Pasid) -> u64 {
    device as u64 | (pasid.as_u32() as u64) << PASID_SHIFT
}

impl<B: HostState> CachedEntry<B> {
    /// What a free slot holds.
    const FREE: Self = Self {
        raw: [0; 8],
        key: 0,
        host: B::BLOCKED,
    };
}

impl<B> CachedEntry<B> {
    /// Index of the device.
    pub(super) const fn device(&self) -> usize {
        (self.key & 0xffff) as usize
    }

    pub(super) const fn pasid(&self) -> Pasid {
        Pasid::from_field(self.key >> PASID_SHIFT & ((1 << 20) - 1))
    }

    pub(super) const fn raw(&self) -> &[u64; 8] {
        &self.raw
    }

    pub(super) const fn state(&self) -> BindingState {
        match self.key >> STATE_SHIFT & 3 {
            0 => BindingState::Free,
            1 => BindingState::Unsettled,
            _ => BindingState::Bound,
        }
    }

    const fn set_state(&mut self, state: BindingState) {
        let field = match state {
            BindingState::Free => 0,
            BindingState::Unsettled => 1,
            BindingState::Bound => 2,
        };
        self.key = self.key & !(3 << STATE_SHIFT) | field << STATE_SHIFT;
    }

    /// The pass that last looked at it.
    pub(super) const fn generation(&self) -> u32 {
        (self.key >> GENERATION_SHIFT) as u32
    }

    pub(super) const fn set_generation(&mut self, generation: u32) {
        self.key =
            self.key & ((1 << GENERATION_SHIFT) - 1) | (generation as u64) << GENERATION_SHIFT;
    }

    /// The use of a first-stage root that it stands for.
    fn root(&self, features: &TableFeatures) -> Option<RootUse> {
        root_of(&self.raw, features)
    }
}

/// The use of a first-stage root that a guest's entry stands for.
pub(super) fn root_of(raw: &[u64; 8], features: &TableFeatures) -> Option<RootUse> {
    let binding = guest_binding(&PasidEntry::from_quadwords(*raw), features).ok()?;
    RootUse::of(&binding)
}

/// The slots beside one in the chains that it is in.
#[derive(Clone, Copy, Debug)]
struct Links {
    /// Next of the same hash of its key, or next free one.
    next: u32,
    /// Of the same hash of its domain-id; of the unsettled ones for an unsettled one.
    domain_previous: u32,
    domain_next: u32,
}

/// The first slots of the chains of each hash value.
#[derive(Clone, Copy, Debug)]
struct Heads {
    key: u32,
    domain: u32,
}

/// Up to `N` bindings: 108 bytes each, what the host keeps apart.
#[derive(Debug)]
pub(super) struct PasidCache<B, const N: usize> {
    entries: [CachedEntry<B>; N],
    links: [Links; N],
    heads: [Heads; N],
    roots: FirstStageRoots<N>,
    /// First of the unsettled ones.
    unsettled: u32,
    free: u32,
    used: u32,
    /// No slot at or above this is used.
    high: u32,
    /// The slot that the walk of a chain looks at next. A slot that leaves its chain passes it on.
    cursor: u32,
    hash: KeyedHash,
}

impl<B: HostState, const N: usize> PasidCache<B, N> {
    /// A store that has yet to be [started](Self::start).
    pub(super) const fn vacant() -> Self {
        Self {
            entries: [const { CachedEntry::FREE }; N],
            links: [Links {
                next: 0,
                domain_previous: 0,
                domain_next: 0,
            }; N],
            heads: [Heads { key: 0, domain: 0 }; N],
            roots: FirstStageRoots::vacant(),
            unsettled: NONE,
            free: NONE,
            used: 0,
            high: 0,
            cursor: NONE,
            hash: KeyedHash::new(0),
        }
    }

    /// Makes the store empty in its place.
    pub(super) fn start(&mut self, hash: KeyedHash) {
        for entry in &mut self.entries {
            *entry = CachedEntry::FREE;
        }
        self.heads.fill(Heads {
            key: NONE,
            domain: NONE,
        });
        self.roots.start(hash.another(11));
        self.unsettled = NONE;
        self.free = NONE;
        self.used = 0;
        self.high = 0;
        self.cursor = NONE;
        self.hash = hash;
    }

    /// The number of bindings it holds.
    pub(super) const fn len(&self) -> u32 {
        self.used
    }

    /// One more than the highest index that an entry can have now.
    pub(super) const fn end(&self) -> usize {
        self.high as usize
    }

    #[inline]
    fn key_bucket(&self, key: u64) -> usize {
        self.hash.chain_of(key & KEY_MASK, N)
    }

    fn domain_bucket(&self, domain_id: DomainId) -> usize {
        let hash = self.hash.another(37);
        hash.chain_of(u64::from(domain_id.as_u16()), N)
    }

    /// The slot of a binding.
    #[inline]
    pub(super) fn find(&self, device: u16, pasid: Pasid) -> Option<usize> {
        let key = key_of(device, pasid);
        let mut at = self.heads.get(self.key_bucket(key))?.key;
        // Bounded by what the store holds, should a chain ever be broken.
        for _ in 0..self.used {
            if self.entries.get(at as usize)?.key & KEY_MASK == key {
                return Some(at as usize);
            }
            at = self.links.get(at as usize)?.next;
        }
        None
    }

    /// A slot for a binding that has none yet, unsettled and with an entry of zeros; `None` if all
    /// `N` are used.
    pub(super) fn insert(&mut self, device: u16, pasid: Pasid) -> Option<usize> {
        let is_reused = self.free != NONE;
        let at = if is_reused { self.free } else { self.high };
        let key = key_of(device, pasid);
        let bucket = self.key_bucket(key);
        let head = self.heads.get_mut(bucket)?;
        let entry = self.entries.get_mut(at as usize)?;
        let links = self.links.get_mut(at as usize)?;
        if is_reused {
            self.free = links.next;
        } else {
            self.high = self.high.saturating_add(1);
        }
        *entry = CachedEntry {
            key,
            ..CachedEntry::FREE
        };
        entry.set_state(BindingState::Unsettled);
        links.next = head.key;
        head.key = at;
        self.used = self.used.saturating_add(1);
        self.link_domain(at);
        Some(at as usize)
    }

    /// Frees a slot.
    pub(super) fn remove(&mut self, index: usize, features: &TableFeatures) {
        let Some(entry) = self.get(index) else {
            return;
        };
        let bucket = self.key_bucket(entry.key);
        if let Some(root) = entry.root(features) {
            self.roots.remove(root);
        }
        self.unlink_domain(index as u32);
        let Some(after) = self.links.get(index).map(|links| links.next) else {
            return;
        };
        let Some(head) = self.heads.get_mut(bucket) else {
            return;
        };
        if head.key as usize == index {
            head.key = after;
        } else {
            let mut at = head.key;
            for _ in 0..self.used {
                let Some(links) = self.links.get_mut(at as usize) else {
                    break;
                };
                if links.next as usize == index {
                    links.next = after;
                    break;
                }
                at = links.next;
            }
        }
        if let (Some(entry), Some(links)) = (self.entries.get_mut(index), self.links.get_mut(index))
        {
            entry.set_state(BindingState::Free);
            entry.host = B::BLOCKED;
            links.next = self.free;
            self.free = index as u32;
            self.used = self.used.saturating_sub(1);
            if self.used == 0 {
                // What was used once need not be looked at for ever.
                self.free = NONE;
                self.high = 0;
            }
        }
    }

    /// The binding in a slot, unless it is free.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&CachedEntry<B>> {
        self.entries
            .get(index)
            .filter(|entry| entry.state() != BindingState::Free)
    }

    /// The binding in a slot, unless it is free.
    #[inline]
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut CachedEntry<B>> {
        self.entries
            .get_mut(index)
            .filter(|entry| entry.state() != BindingState::Free)
    }

    /// The host starts to change a binding: to the guest's entry `raw`, if there is one.
    pub(super) fn unsettle(
        &mut self,
        index: usize,
        raw: Option<&[u64; 8]>,
        features: &TableFeatures,
    ) {
        let Some(entry) = self.get(index) else {
            return;
        };
        if entry.state() != BindingState::Unsettled {
            self.unlink_domain(index as u32);
            if let Some(entry) = self.entries.get_mut(index) {
                entry.set_state(BindingState::Unsettled);
            }
            self.link_domain(index as u32);
        }
        if let Some(raw) = raw {
            self.exchange(index, raw, features);
        }
    }

    /// The host has honoured what [`unsettle`](Self::unsettle) was told.
    pub(super) fn settle(&mut self, index: usize, generation: u32) {
        if self.get(index).is_none() {
            return;
        }
        self.unlink_domain(index as u32);
        if let Some(entry) = self.entries.get_mut(index) {
            entry.set_state(BindingState::Bound);
            entry.set_generation(generation);
        }
        self.link_domain(index as u32);
    }

    /// The guest's entry reads differently, but means the same.
    pub(super) fn refresh(
        &mut self,
        index: usize,
        raw: &[u64; 8],
        generation: u32,
        features: &TableFeatures,
    ) {
        let Some(entry) = self.get_mut(index) else {
            return;
        };
        entry.set_generation(generation);
        if entry.raw != *raw {
            // The same meaning has the same domain-id, so its chain is the same.
            self.exchange(index, raw, features);
        }
    }

    fn exchange(&mut self, index: usize, raw: &[u64; 8], features: &TableFeatures) {
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        let old = core::mem::replace(&mut entry.raw, *raw);
        if let Some(root) = root_of(&old, features) {
            self.roots.remove(root);
        }
        if let Some(root) = root_of(raw, features) {
            self.roots.add(root);
        }
    }

    /// Whether bindings other than the one in a slot use a first-stage root differently.
    pub(super) fn contradicts(
        &self,
        wanted: RootUse,
        own: Option<usize>,
        features: &TableFeatures,
    ) -> bool {
        let own = own
            .and_then(|index| self.get(index))
            .and_then(|entry| entry.root(features));
        self.roots.contradicts(wanted, own)
    }

    /// Whether the host may hold something of a binding that is not as the guest's entry says.
    pub(super) const fn has_unsettled(&self) -> bool {
        self.unsettled != NONE
    }

    /// Begins a walk over the bindings with a domain-id, or over the unsettled ones. There is one
    /// walk at a time.
    pub(super) fn begin_walk(&mut self, domain_id: Option<DomainId>) {
        self.cursor = match domain_id {
            Some(domain_id) => self
                .heads
                .get(self.domain_bucket(domain_id))
                .map_or(NONE, |heads| heads.domain),
            None => self.unsettled,
        };
    }

    /// The next slot of the walk. It may be of another domain-id with the same hash.
    pub(super) fn next_of_walk(&mut self) -> Option<usize> {
        let at = self.cursor as usize;
        self.cursor = self.links.get(at)?.domain_next;
        Some(at)
    }

    /// The head of the chain that a slot belongs to by its state and domain-id.
    fn chain_of(&mut self, at: u32) -> Option<&mut u32> {
        let entry = self.entries.get(at as usize)?;
        if entry.state() == BindingState::Unsettled {
            return Some(&mut self.unsettled);
        }
        let bucket = self.domain_bucket(domain_id_of(&entry.raw));
        Some(&mut self.heads.get_mut(bucket)?.domain)
    }

    fn link_domain(&mut self, at: u32) {
        let Some(head) = self.chain_of(at) else {
            return;
        };
        let after = core::mem::replace(head, at);
        if let Some(links) = self.links.get_mut(after as usize) {
            links.domain_previous = at;
        }
        if let Some(links) = self.links.get_mut(at as usize) {
            links.domain_previous = NONE;
            links.domain_next = after;
        }
    }

    fn unlink_domain(&mut self, at: u32) {
        let Some(&Links {
            domain_previous,
            domain_next,
            ..
        }) = self.links.get(at as usize)
        else {
            return;
        };
        if self.cursor == at {
            self.cursor = domain_next;
        }
        if let Some(links) = self.links.get_mut(domain_next as usize) {
            links.domain_previous = domain_previous;
        }
        if let Some(links) = self.links.get_mut(domain_previous as usize) {
            links.domain_next = domain_next;
        } else if let Some(head) = self.chain_of(at) {
            *head = domain_next;
        }
    }

    /// Forgets which pass looked at which entry.
    pub(super) fn clear_generations(&mut self) {
        for entry in &mut self.entries {
            entry.set_generation(0);
        }
    }
}

#[cfg(test)]
mod tests {
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
    fn walk<const N: usize>(
        cache: &mut PasidCache<(), N>,
        domain_id: Option<DomainId>,
    ) -> Vec<u32> {
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
}
