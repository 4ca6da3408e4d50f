//! The store of bindings that follow from guest PASID entries, keyed by (device, PASID).
//!
//! A fixed number of slots, chained by a hash with a secret seed, so that no choice of PASIDs by a
//! guest makes a look-up slow. A slot never moves while it is used: a cursor over the store stays
//! valid whatever is added or removed meanwhile. Three indices lead to slots: by key, by the
//! domain-id that is cached, and, to what they use only, by first-stage root.

#[cfg(test)]
mod tests;

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
