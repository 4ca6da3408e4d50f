//! Which first-stage roots the bindings of one virtual unit use, and how.
//!
//! Entries that lead to one first-stage table must agree in paging mode and `EAFE`, whatever their
//! domain-ids and PASIDs (§6.2.3.1): hardware may share what it caches of the table. The check takes
//! one look-up in a table hashed with a secret seed.

use crate::arch::pasid::PasidTranslation;

use super::host::GuestBinding;
use super::keyed_hash::KeyedHash;
use super::pasid_cache::NONE;

/// Most users that a record can count.
pub(super) const MAXIMUM_USERS: usize = (1 << USER_BITS) - 1;
const USER_BITS: u32 = 21;
const SETTING_BITS: u32 = 3;

/// A first-stage root and the settings that its users share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RootUse {
    /// Page number of the root, at most 40 bits.
    page: u64,
    /// `FSPM` and `EAFE`.
    setting: u8,
}

impl RootUse {
    /// Of a binding, if it has a first stage.
    pub(super) fn of(binding: &GuestBinding) -> Option<Self> {
        match binding.translation {
            PasidTranslation::FirstStage {
                root,
                paging,
                extended_accessed,
                ..
            } => Some(Self {
                page: root.as_u64() >> 12 & ((1 << 40) - 1),
                setting: (paging.field() as u8 & 3) << 1 | u8::from(extended_accessed),
            }),
            _ => None,
        }
    }

    /// Whether both are uses of one root that hardware may not see together.
    pub(super) const fn contradicts(self, other: Self) -> bool {
        self.page == other.page && self.setting != other.setting
    }

    const fn record(self, users: u64) -> u64 {
        self.page << (USER_BITS + SETTING_BITS)
            | users << SETTING_BITS
            | self.setting as u64 & ((1 << SETTING_BITS) - 1)
    }
}

/// The roots of up to `N` bindings: 16 bytes each.
#[derive(Debug)]
pub(super) struct FirstStageRoots<const N: usize> {
    /// Root page, users and setting.
    records: [u64; N],
    next: [u32; N],
    heads: [u32; N],
    free: u32,
    /// No record at or above this was ever used.
    high: u32,
    hash: KeyedHash,
}

impl<const N: usize> FirstStageRoots<N> {
    /// A table that has yet to be [started](Self::start).
    pub(super) const fn vacant() -> Self {
        Self {
            records: [0; N],
            next: [0; N],
            heads: [0; N],
            free: NONE,
            high: 0,
            hash: KeyedHash::new(0),
        }
    }

    /// Makes the table empty in its place.
    pub(super) fn start(&mut self, hash: KeyedHash) {
        self.heads.fill(NONE);
        self.free = NONE;
        self.high = 0;
        self.hash = hash;
    }

    fn bucket(&self, page: u64) -> usize {
        self.hash.chain_of(page, N)
    }

    /// The record of a root page and the one before it in its chain.
    fn find(&self, page: u64) -> Option<(usize, u32)> {
        let mut before = NONE;
        let mut at = *self.heads.get(self.bucket(page))?;
        for _ in 0..self.high {
            let record = self.records.get(at as usize)?;
            if record >> (USER_BITS + SETTING_BITS) == page {
                return Some((at as usize, before));
            }
            before = at;
            at = *self.next.get(at as usize)?;
        }
        None
    }

    const fn users(record: u64) -> u64 {
        record >> SETTING_BITS & MAXIMUM_USERS as u64
    }

    /// Whether the root is used with another setting, by others than a binding whose own use is
    /// `own`.
    pub(super) fn contradicts(&self, wanted: RootUse, own: Option<RootUse>) -> bool {
        let Some(record) = self
            .find(wanted.page)
            .and_then(|(at, _)| self.records.get(at))
        else {
            return false;
        };
        let is_own = own.is_some_and(|own| own.page == wanted.page);
        let others = Self::users(*record).saturating_sub(u64::from(is_own));
        others > 0 && *record != wanted.record(Self::users(*record))
    }

    /// Counts one more user of a root that nobody else uses differently.
    pub(super) fn add(&mut self, wanted: RootUse) {
        if let Some((at, _)) = self.find(wanted.page) {
            if let Some(record) = self.records.get_mut(at) {
                *record = wanted.record((Self::users(*record) + 1).min(MAXIMUM_USERS as u64));
            }
            return;
        }
        let bucket = self.bucket(wanted.page);
        let is_reused = self.free != NONE;
        let at = if is_reused { self.free } else { self.high };
        // There is a record for each binding, so one is left.
        let (Some(record), Some(next), Some(head)) = (
            self.records.get_mut(at as usize),
            self.next.get_mut(at as usize),
            self.heads.get_mut(bucket),
        ) else {
            return;
        };
        if is_reused {
            self.free = *next;
        } else {
            self.high = self.high.saturating_add(1);
        }
        *record = wanted.record(1);
        *next = *head;
        *head = at;
    }

    /// Counts one user less.
    pub(super) fn remove(&mut self, own: RootUse) {
        let Some((at, before)) = self.find(own.page) else {
            return;
        };
        let Some(record) = self.records.get_mut(at) else {
            return;
        };
        let left = Self::users(*record).saturating_sub(1);
        *record = own.record(left);
        if left > 0 {
            return;
        }
        let bucket = self.bucket(own.page);
        let Some(after) = self.next.get(at).copied() else {
            return;
        };
        let link = match before {
            NONE => self.heads.get_mut(bucket),
            before => self.next.get_mut(before as usize),
        };
        if let Some(link) = link {
            *link = after;
        }
        if let Some(next) = self.next.get_mut(at) {
            *next = self.free;
            self.free = at as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::BTreeMap;

    use super::*;

    fn started<const N: usize>(secret: u64) -> FirstStageRoots<N> {
        let mut roots = FirstStageRoots::vacant();
        roots.start(KeyedHash::new(secret));
        roots
    }

    fn root(page: u64, setting: u8) -> RootUse {
        RootUse { page, setting }
    }

    #[test]
    fn only_another_setting_of_the_same_root_by_somebody_else_contradicts() {
        let mut roots = started::<8>(5);
        let (first, other) = (root(0x2000, 0), root(0x2000, 1));
        assert!(!roots.contradicts(first, None));
        roots.add(first);
        assert!(!roots.contradicts(first, None));
        assert!(roots.contradicts(other, None));
        assert!(!roots.contradicts(other, Some(first)));
        assert!(!roots.contradicts(root(0x2001, 1), None));
        roots.add(first);
        assert!(roots.contradicts(other, Some(first)));
        roots.remove(first);
        roots.remove(first);
        roots.add(other);
        assert!(roots.contradicts(first, None));
        assert!(roots.contradicts(first, Some(root(0x2001, 0))));
    }

    #[test]
    fn counts_users_as_a_map_does_in_any_order_of_changes() {
        const N: usize = 61;
        let mut roots = started::<N>(0x1234_5678_9abc_def1);
        let mut model: BTreeMap<u64, (u8, u32)> = BTreeMap::new();
        let mut random = 1u64;
        let mut used = 0;
        for _ in 0..4000 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            // Page numbers at both ends of what a record holds.
            let end = if random >> 63 == 0 { 0 } else { (1 << 40) - 1 };
            let page = ((random >> 33) % 40) ^ end;
            let wanted = root(page, (random >> 50) as u8 % 6);
            let expected = model
                .get(&page)
                .is_some_and(|(setting, _)| *setting != wanted.setting);
            assert_eq!(roots.contradicts(wanted, None), expected);
            let is_removal = random >> 60 & 1 == 0;
            match model.get_mut(&page) {
                Some((setting, users)) if is_removal => {
                    roots.remove(root(page, *setting));
                    *users -= 1;
                    used -= 1;
                    if *users == 0 {
                        model.remove(&page);
                    }
                }
                Some((_, users)) if !expected && used < N => {
                    roots.add(wanted);
                    *users += 1;
                    used += 1;
                }
                None if used < N => {
                    roots.add(wanted);
                    model.insert(page, (wanted.setting, 1));
                    used += 1;
                }
                _ => {}
            }
        }
    }
}
