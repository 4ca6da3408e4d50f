//! The store of bindings that follow from guest PASID entries, keyed by (device, PASID).
//!
//! A fixed number of slots, chained by a hash with a secret seed, so that no choice of PASIDs by a
//! guest makes a look-up slow. A slot never moves while it is used: a cursor over the store stays
//! valid whatever is added or removed meanwhile.

use crate::arch::id::Pasid;

/// The chain's end, and no slot.
const NONE: u32 = u32::MAX;

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

/// A binding that follows from a guest PASID entry.
#[derive(Debug)]
pub(super) struct CachedEntry<B> {
    /// The guest's entry as last honoured.
    pub(super) raw: [u64; 8],
    /// What the host side keeps for it.
    pub(super) host: B,
    /// The pass that last looked at it.
    pub(super) generation: u32,
    pub(super) state: BindingState,
    device: u16,
    pasid: u32,
    next: u32,
}

impl<B> CachedEntry<B> {
    /// Index of the device.
    pub(super) const fn device(&self) -> usize {
        self.device as usize
    }

    pub(super) const fn pasid(&self) -> Pasid {
        Pasid::from_field(self.pasid as u64)
    }
}

/// Up to `N` bindings.
#[derive(Debug)]
pub(super) struct PasidCache<B, const N: usize> {
    entries: [CachedEntry<B>; N],
    /// First slot of the chain of each hash value.
    heads: [u32; N],
    free: u32,
    used: u32,
    /// No slot at or above this was ever used.
    high: u32,
    seed: u64,
}

impl<B: Default, const N: usize> PasidCache<B, N> {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            entries: core::array::from_fn(|_| CachedEntry {
                raw: [0; 8],
                host: B::default(),
                generation: 0,
                state: BindingState::Free,
                device: 0,
                pasid: 0,
                next: NONE,
            }),
            heads: [NONE; N],
            free: NONE,
            used: 0,
            high: 0,
            // Spreads a seed with few bits over all of them.
            seed: (seed ^ seed >> 31 ^ 0x243f_6a88_85a3_08d3).wrapping_mul(0xbf58_476d_1ce4_e5b9),
        }
    }

    /// The number of bindings it holds.
    pub(super) const fn len(&self) -> u32 {
        self.used
    }

    /// One more than the highest index that an entry can have now.
    pub(super) const fn end(&self) -> usize {
        self.high as usize
    }

    /// The chain for a key: a folded multiplication by constants that the seed hides.
    #[inline]
    fn bucket(&self, device: u16, pasid: u32) -> usize {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        let key = u64::from(device) << 32 | u64::from(pasid);
        let hash = fold(
            fold(
                key ^ self.seed,
                0x9e37_79b9_7f4a_7c15 ^ self.seed.rotate_left(23),
            ),
            self.seed.rotate_left(41) | 1,
        );
        // Scales 32 bits of the hash to 0..N.
        (((hash >> 32) as u128 * N as u128) >> 32) as usize
    }

    /// The slot of a binding.
    #[inline]
    pub(super) fn find(&self, device: u16, pasid: Pasid) -> Option<usize> {
        let mut at = *self.heads.get(self.bucket(device, pasid.as_u32()))?;
        // Bounded by what the store holds, should a chain ever be broken.
        for _ in 0..self.used {
            let entry = self.entries.get(at as usize)?;
            if entry.device == device && entry.pasid == pasid.as_u32() {
                return Some(at as usize);
            }
            at = entry.next;
        }
        None
    }

    /// A slot for a binding that has none yet, or `None` if all `N` are used.
    pub(super) fn insert(&mut self, device: u16, pasid: Pasid) -> Option<usize> {
        let at = if self.free != NONE {
            self.free
        } else if (self.high as usize) < N {
            self.high
        } else {
            return None;
        };
        let bucket = self.bucket(device, pasid.as_u32());
        let head = self.heads.get_mut(bucket)?;
        let entry = self.entries.get_mut(at as usize)?;
        if at == self.free {
            self.free = entry.next;
        } else {
            self.high = self.high.saturating_add(1);
        }
        *entry = CachedEntry {
            raw: [0; 8],
            host: B::default(),
            generation: 0,
            state: BindingState::Unsettled,
            device,
            pasid: pasid.as_u32(),
            next: *head,
        };
        *head = at;
        self.used = self.used.saturating_add(1);
        Some(at as usize)
    }

    /// Frees a slot.
    pub(super) fn remove(&mut self, index: usize) {
        let Some(entry) = self.entries.get(index) else {
            return;
        };
        if entry.state == BindingState::Free {
            return;
        }
        let (device, pasid, after) = (entry.device, entry.pasid, entry.next);
        let bucket = self.bucket(device, pasid);
        let Some(head) = self.heads.get_mut(bucket) else {
            return;
        };
        if *head as usize == index {
            *head = after;
        } else {
            let mut at = *head;
            for _ in 0..self.used {
                let Some(entry) = self.entries.get_mut(at as usize) else {
                    break;
                };
                if entry.next as usize == index {
                    entry.next = after;
                    break;
                }
                at = entry.next;
            }
        }
        if let Some(entry) = self.entries.get_mut(index) {
            entry.state = BindingState::Free;
            entry.host = B::default();
            entry.next = self.free;
            self.free = index as u32;
            self.used = self.used.saturating_sub(1);
        }
    }

    /// The binding in a slot, unless it is free.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&CachedEntry<B>> {
        self.entries
            .get(index)
            .filter(|entry| entry.state != BindingState::Free)
    }

    /// The binding in a slot, unless it is free.
    #[inline]
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut CachedEntry<B>> {
        self.entries
            .get_mut(index)
            .filter(|entry| entry.state != BindingState::Free)
    }

    /// Forgets which pass looked at which entry.
    pub(super) fn clear_generations(&mut self) {
        for entry in &mut self.entries {
            entry.generation = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use super::*;

    fn pasid(value: u32) -> Pasid {
        Pasid::new(value).unwrap()
    }

    #[test]
    fn finds_what_was_inserted_and_nothing_else_in_any_order_of_changes() {
        // Against a map, with a generator of fixed seed.
        let mut cache = PasidCache::<u32, 61>::new(0x1234_5678_9abc_def0);
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
                    cache.remove(at);
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
                assert_eq!((entry.device, entry.pasid()), *key);
            }
        }
    }

    #[test]
    fn a_full_store_refuses_and_takes_again_after_a_removal() {
        let mut cache = PasidCache::<(), 4>::new(7);
        let slots: Vec<_> = (0..4).map(|n| cache.insert(0, pasid(n)).unwrap()).collect();
        assert_eq!(cache.insert(0, pasid(4)), None);
        cache.remove(slots[2]);
        assert_eq!(cache.find(0, pasid(2)), None);
        assert_eq!(cache.insert(0, pasid(4)), Some(slots[2]));
    }

    #[test]
    fn an_entry_costs_at_most_128_bytes_with_40_bytes_of_the_host() {
        // Requirements, cost targets: memory.
        for (size, capacity) in [
            (size_of::<PasidCache<[u64; 5], 4096>>(), 4096),
            (size_of::<PasidCache<[u64; 5], 65536>>(), 65536),
        ] {
            assert!(size <= 128 * capacity, "{size} / {capacity}");
        }
    }

    #[test]
    fn chains_stay_short_for_regular_keys_whatever_the_seed() {
        // S93: consecutive and strided PASIDs are what a guest can choose.
        for seed in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            for stride in [1, 64, 4096] {
                let mut cache = PasidCache::<(), 256>::new(seed ^ 0x5bd1_e995_1b87_3593);
                let mut lengths = [0u32; 256];
                for n in 0..256 {
                    let pasid = pasid(n * stride % Pasid::COUNT);
                    lengths[cache.bucket(0, pasid.as_u32())] += 1;
                    cache.insert(0, pasid).unwrap();
                }
                assert!(lengths.iter().max() < Some(&12), "{seed:x} {stride}");
            }
        }
    }
}
