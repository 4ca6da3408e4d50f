//! Translations of emulated devices, kept until the guest invalidates them (§6.2).
//!
//! One entry is one 4-KiB page of one (source-id, PASID), whatever the size of the guest's page.
//! Only translations that succeeded are kept. A look-up compares a fixed number of entries, and
//! where they lie depends on a seed that the guest does not know: no choice of addresses makes it
//! slower. An invalidation looks at every entry, and at none while the cache is empty.

use crate::arch::address::{Gpa, PAGE_SIZE_BYTES, PageSize};
use crate::arch::id::{DomainId, Pasid, SourceId};
use crate::paging::Rights;
use crate::paging::walk::Translation;

use super::host::{GuestInvalidation, PageRange};
use super::keyed_hash::KeyedHash;
use super::synchronise::EntryFilter;
use super::translate::DmaRequest;

/// Entries that one look-up compares.
const WAYS: usize = 4;

/// What a translation was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    source_id: SourceId,
    pasid: Option<Pasid>,
    privileged: bool,
    /// Address of the 4-KiB page.
    page: u64,
}

impl Key {
    fn of(request: &DmaRequest) -> Self {
        Self {
            source_id: request.source_id,
            pasid: request.pasid,
            privileged: request.access.privileged,
            page: request.address.as_u64() & !(PAGE_SIZE_BYTES - 1),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct CachedTranslation {
    key: Key,
    /// The tag by which the guest invalidates.
    domain_id: DomainId,
    /// Where the 4-KiB page leads.
    page: Gpa,
    rights: Rights,
    /// The size of the guest's page: invalidating any of it drops the entry.
    size: PageSize,
}

impl CachedTranslation {
    fn pasid(&self) -> Pasid {
        self.key.pasid.unwrap_or(Pasid::ZERO)
    }

    /// Both are naturally aligned powers of two: they overlap if one holds the other.
    fn overlaps(&self, range: &PageRange) -> bool {
        let own_bits = self.size.len_bytes().trailing_zeros();
        let bits = own_bits.max(u32::from(range.order).saturating_add(12));
        let differing = self.key.page ^ range.address.as_u64();
        differing.checked_shr(bits).unwrap_or(0) == 0
    }

    /// Whether a guest's invalidation covers it.
    fn is_covered(&self, what: &GuestInvalidation) -> bool {
        match what {
            GuestInvalidation::All => true,
            GuestInvalidation::Domain(domain_id) => self.domain_id == *domain_id,
            GuestInvalidation::DomainPages { domain_id, pages } => {
                self.domain_id == *domain_id && self.overlaps(pages)
            }
            GuestInvalidation::Pasid { domain_id, pasid } => {
                self.domain_id == *domain_id && self.pasid() == *pasid
            }
            GuestInvalidation::PasidPages {
                domain_id,
                pasid,
                pages,
            } => self.domain_id == *domain_id && self.pasid() == *pasid && self.overlaps(pages),
            // What a device keeps itself is no concern of the unit.
            GuestInvalidation::DeviceTlb { .. } => false,
        }
    }
}

/// `4 * SETS` translations.
#[derive(Debug)]
pub(super) struct TranslationCache<const SETS: usize> {
    sets: [[Option<CachedTranslation>; WAYS]; SETS],
    /// The next entry to be replaced, in every set.
    victim: usize,
    /// Entries in use.
    len: usize,
    hash: KeyedHash,
}

impl<const SETS: usize> TranslationCache<SETS> {
    pub(super) const fn new(hash: KeyedHash) -> Self {
        Self {
            sets: [[None; WAYS]; SETS],
            victim: 0,
            len: 0,
            hash,
        }
    }

    /// The number of translations kept.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    fn set_of(&self, key: &Key) -> usize {
        let device = u64::from(key.source_id.as_u16()) << 48;
        let pasid = key
            .pasid
            .map_or(1 << 47, |pasid| u64::from(pasid.as_u32()) << 27);
        self.hash.chain_of(device ^ pasid ^ key.page >> 12, SETS)
    }

    /// The translation of a request, if one is kept that grants what it wants.
    pub(super) fn look_up(&self, request: &DmaRequest) -> Option<Translation<Gpa>> {
        if self.len == 0 || request.execute {
            return None;
        }
        let key = Key::of(request);
        let set = self.sets.get(self.set_of(&key))?;
        let found = set.iter().flatten().find(|cached| cached.key == key)?;
        let offset = request.address.as_u64() & (PAGE_SIZE_BYTES - 1);
        found
            .rights
            .contains(request.access.rights)
            .then_some(Translation {
                address: Gpa::new(found.page.as_u64() | offset),
                rights: found.rights,
                size: found.size,
            })
    }

    /// Keeps a translation under the guest's domain-id, in the place of another if need be.
    pub(super) fn insert(
        &mut self,
        request: &DmaRequest,
        domain_id: DomainId,
        translation: &Translation<Gpa>,
    ) {
        if request.execute {
            return;
        }
        let key = Key::of(request);
        let index = self.set_of(&key);
        let victim = self.victim % WAYS;
        self.victim = self.victim.wrapping_add(1);
        let Some(set) = self.sets.get_mut(index) else {
            return;
        };
        let is_same = |cached: &Option<CachedTranslation>| {
            cached.as_ref().is_some_and(|cached| cached.key == key)
        };
        let way = set
            .iter()
            .position(is_same)
            .or_else(|| set.iter().position(Option::is_none))
            .unwrap_or(victim);
        let Some(slot) = set.get_mut(way) else {
            return;
        };
        if slot.is_none() {
            self.len = self.len.saturating_add(1);
        }
        *slot = Some(CachedTranslation {
            key,
            domain_id,
            page: Gpa::new(translation.address.as_u64() & !(PAGE_SIZE_BYTES - 1)),
            rights: translation.rights,
            size: translation.size,
        });
    }

    fn drop_where(&mut self, is_dropped: impl Fn(&CachedTranslation) -> bool) {
        if self.len == 0 {
            return;
        }
        for slot in self.sets.as_flattened_mut() {
            if slot.as_ref().is_some_and(&is_dropped) {
                *slot = None;
                self.len = self.len.saturating_sub(1);
            }
        }
    }

    /// Drops everything: another root table, or translation turned on or off.
    pub(super) fn clear(&mut self) {
        self.drop_where(|_| true);
    }

    /// Drops what is kept of the devices that a context-cache invalidation names.
    pub(super) fn drop_devices(&mut self, is_named: impl Fn(SourceId) -> bool) {
        self.drop_where(|cached| is_named(cached.key.source_id));
    }

    /// Drops what came from the PASID entries that a PASID-cache invalidation names.
    pub(super) fn drop_entries(&mut self, entries: EntryFilter) {
        self.drop_where(|cached| {
            entries.covers(cached.domain_id)
                && match entries {
                    EntryFilter::Pasid { pasid, .. } => cached.pasid() == pasid,
                    _ => true,
                }
        });
    }

    /// Drops what an IOTLB invalidation names.
    pub(super) fn invalidate(&mut self, what: &GuestInvalidation) {
        self.drop_where(|cached| cached.is_covered(what));
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;
    use std::vec::Vec;

    use super::super::testing::{did, pasid, sid};
    use super::*;
    use crate::arch::address::Iova;
    use crate::paging::walk::Access;

    fn request(source_id: u16, value: Option<u32>, address: u64) -> DmaRequest {
        DmaRequest {
            source_id: sid(source_id),
            pasid: value.map(pasid),
            address: Iova::new(address),
            access: Access::READ,
            execute: false,
        }
    }

    fn page(address: u64, size: PageSize) -> Translation<Gpa> {
        Translation {
            address: Gpa::new(address),
            rights: Rights::READ,
            size,
        }
    }

    fn fill_and_check<const SETS: usize>() {
        let mut cache = Box::new(TranslationCache::<SETS>::new(KeyedHash::new(1)));
        let capacity = SETS * WAYS;
        let asked: Vec<_> = (0..capacity as u64 * 3)
            .map(|index| request(0x10 + index as u16 % 3, Some(index as u32 % 7), index << 12))
            .collect();
        for (index, request) in asked.iter().enumerate() {
            cache.insert(
                request,
                did(1),
                &page((index as u64) << 20, PageSize::Size4KiB),
            );
            assert!(cache.len() <= capacity, "never more than there is room");
            let found = cache.look_up(request).expect("the last one is there");
            assert_eq!(found.address, Gpa::new((index as u64) << 20));
        }
        for (index, request) in asked.iter().enumerate() {
            if let Some(found) = cache.look_up(request) {
                assert_eq!(found.address, Gpa::new((index as u64) << 20), "its own");
            }
        }
        cache.clear();
        assert_eq!(cache.len(), 0);
        assert!(asked.iter().all(|request| cache.look_up(request).is_none()));
    }

    #[test]
    fn a_full_cache_replaces_and_never_mixes() {
        fill_and_check::<1>();
        fill_and_check::<4>();
        fill_and_check::<32>();
        fill_and_check::<1024>();
    }

    #[test]
    fn a_cache_without_room_keeps_nothing() {
        let mut cache = TranslationCache::<0>::new(KeyedHash::new(1));
        let asked = request(0x10, None, 0);
        cache.insert(&asked, did(1), &page(0, PageSize::Size4KiB));
        assert_eq!((cache.len(), cache.look_up(&asked)), (0, None));
    }

    #[test]
    fn a_right_that_is_not_kept_and_another_privilege_are_not_found() {
        let mut cache = TranslationCache::<4>::new(KeyedHash::new(1));
        let asked = request(0x10, Some(5), 0x1234);
        cache.insert(&asked, did(1), &page(0x7000, PageSize::Size4KiB));
        let found = cache.look_up(&asked).unwrap();
        assert_eq!(found.address, Gpa::new(0x7234));
        for change in [
            |request: &mut DmaRequest| request.access = Access::WRITE,
            |request: &mut DmaRequest| request.access.privileged = true,
            |request: &mut DmaRequest| request.execute = true,
            |request: &mut DmaRequest| request.pasid = None,
            |request: &mut DmaRequest| request.source_id = sid(0x11),
            |request: &mut DmaRequest| request.address = Iova::new(0x2234),
        ] {
            let mut other = asked;
            change(&mut other);
            assert_eq!(cache.look_up(&other), None, "{other:?}");
        }
    }

    #[test]
    fn invalidations_drop_what_they_cover_and_nothing_else() {
        // §6.5.2.3, §6.5.2.4: by domain-id, PASID and address; a page is dropped by any part of it.
        let pages = |address, order| PageRange {
            address: Iova::new(address),
            order,
            leaf_only: false,
        };
        let (own, other) = (did(7), did(8));
        let domain_pages = |domain_id, pages| GuestInvalidation::DomainPages { domain_id, pages };
        let pasid_pages = |value, pages| GuestInvalidation::PasidPages {
            domain_id: own,
            pasid: pasid(value),
            pages,
        };
        let in_pasid = |domain_id, value| GuestInvalidation::Pasid {
            domain_id,
            pasid: pasid(value),
        };
        for (what, is_dropped) in [
            (GuestInvalidation::All, true),
            (GuestInvalidation::Domain(own), true),
            (GuestInvalidation::Domain(other), false),
            (in_pasid(own, 5), true),
            (in_pasid(own, 6), false),
            (in_pasid(other, 5), false),
            (pasid_pages(5, pages(0x20_0000, 0)), true),
            (pasid_pages(5, pages(0x3f_f000, 0)), true),
            (pasid_pages(5, pages(0x40_0000, 0)), false),
            (pasid_pages(5, pages(0, 9)), false),
            (pasid_pages(5, pages(0, 10)), true),
            (pasid_pages(5, pages(1 << 40, 52)), true),
            (pasid_pages(6, pages(0x20_0000, 0)), false),
            (domain_pages(own, pages(0x20_1000, 0)), true),
            (domain_pages(own, pages(0x1f_f000, 0)), false),
            (domain_pages(other, pages(0x20_1000, 0)), false),
        ] {
            let mut cache = TranslationCache::<4>::new(KeyedHash::new(1));
            let asked = request(0x10, Some(5), 0x20_1000);
            cache.insert(&asked, own, &page(0x7000, PageSize::Size2MiB));
            cache.invalidate(&what);
            assert_eq!(cache.look_up(&asked).is_none(), is_dropped, "{what:?}");
            assert_eq!(cache.len(), usize::from(!is_dropped));
        }
    }

    #[test]
    fn pasid_cache_invalidations_drop_by_entry() {
        // §6.2.3: domain-id 0 names everything.
        let in_pasid = |domain_id, value| EntryFilter::Pasid {
            domain_id: did(domain_id),
            pasid: pasid(value),
        };
        for (entries, is_dropped) in [
            (EntryFilter::Everything, true),
            (EntryFilter::Domain(did(7)), true),
            (EntryFilter::Domain(did(8)), false),
            (EntryFilter::Domain(did(0)), true),
            (in_pasid(7, 5), true),
            (in_pasid(0, 5), true),
            (in_pasid(7, 6), false),
            (in_pasid(8, 5), false),
        ] {
            let mut cache = TranslationCache::<4>::new(KeyedHash::new(1));
            let asked = request(0x10, Some(5), 0x1000);
            cache.insert(&asked, did(7), &page(0x7000, PageSize::Size4KiB));
            cache.drop_entries(entries);
            assert_eq!(cache.look_up(&asked).is_none(), is_dropped, "{entries:?}");
        }
    }

    #[test]
    fn requests_without_pasid_are_dropped_as_pasid_0() {
        let mut cache = TranslationCache::<4>::new(KeyedHash::new(1));
        let asked = request(0x10, None, 0x1000);
        cache.insert(&asked, did(7), &page(0x7000, PageSize::Size4KiB));
        cache.invalidate(&GuestInvalidation::Pasid {
            domain_id: did(7),
            pasid: Pasid::ZERO,
        });
        assert_eq!(cache.look_up(&asked), None);
    }
}
