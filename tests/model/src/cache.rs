//! The translation caches (§6.2): tagged as Table 17 says, emptied only by what Tables 23 and 24
//! let an invalidation reach.

use std::collections::BTreeMap;

use vtd_nest::arch::fault::FaultReason;

use crate::bits::field;

/// How much the caches keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheMode {
    /// Everything, until an invalidation that covers it.
    Hoarder,
    /// Two entries in each cache; which one goes is pseudo-random and repeatable.
    Tiny,
    /// Nothing.
    None,
}

/// Why a translation did not come about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Blocked {
    pub(crate) reason: FaultReason,
    /// FPD=1 was met on the way.
    pub(crate) fault_disable: bool,
}

/// A context entry as it was fetched, all checks passed; or the fault it gives (CM=1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CachedContext {
    pub(crate) words: [u64; 4],
    /// The domain-id, in legacy mode.
    pub(crate) domain: Option<u16>,
    pub(crate) blocked: Option<Blocked>,
}

/// A PASID-table entry as it was fetched, all checks passed; or the fault it gives (CM=1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CachedPasid {
    pub(crate) words: [u64; 8],
    /// FPD of context, directory or this entry.
    pub(crate) fault_disable: bool,
    pub(crate) blocked: Option<Blocked>,
}

impl CachedPasid {
    pub(crate) fn domain(&self) -> u16 {
        self.words[1] as u16
    }

    /// PGTT.
    pub(crate) fn kind(&self) -> Kind {
        match field(self.words[0], 8, 6) {
            1 => Kind::First,
            2 => Kind::Second,
            3 => Kind::Nested,
            _ => Kind::PassThrough,
        }
    }
}

/// By what kind of entry a translation came about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Legacy,
    First,
    Second,
    Nested,
    PassThrough,
}

impl Kind {
    /// Whether a first stage took part, so that the address of a type 2 descriptor says nothing.
    fn has_first_stage(self) -> bool {
        matches!(self, Self::First | Self::Nested)
    }
}

/// The rights along a walk, and what else of the way a translation completion tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rights {
    /// U/S of the first stage.
    pub(crate) user: bool,
    /// R/W of the first stage.
    pub(crate) first_write: bool,
    /// WPE of the PASID entry.
    pub(crate) write_protect: bool,
    pub(crate) second_read: bool,
    pub(crate) second_write: bool,
    /// SNP of the second-stage leaf.
    pub(crate) second_snoop: bool,
}

impl Rights {
    pub(crate) const ALL: Self = Self {
        user: true,
        first_write: true,
        write_protect: false,
        second_read: true,
        second_write: true,
        second_snoop: false,
    };
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IotlbValue {
    Page {
        /// Host address of the entry's first byte.
        host: u64,
        rights: Rights,
        /// No dirty bit would have to be set for a write.
        dirty: bool,
    },
    /// CM=1: the request faults so. In legacy mode the reason depends on the access (`None`).
    Faulting(Option<FaultReason>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IotlbEntry {
    /// Last address, inclusive; the first one is in the key.
    pub(crate) last: u64,
    pub(crate) value: IotlbValue,
    pub(crate) domain: u16,
    /// The PASID it was translated with: RID_PASID for requests without.
    pub(crate) pasid: u32,
    pub(crate) kind: Kind,
    pub(crate) fault_disable: bool,
}

/// A first-stage entry that names a table: where the table is, and the rights so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FirstTable {
    /// The address in the entry.
    pub(crate) table: u64,
    /// The table's host address: nested, what the second stage made of it.
    pub(crate) host: u64,
    pub(crate) user: bool,
    pub(crate) write: bool,
}

/// A second-stage entry that names a table, or (CM=1) does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SecondTable {
    Table { host: u64, read: bool, write: bool },
    Faulting(SecondFault),
}

/// What stops a second-stage walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SecondFault {
    RootUnreadable,
    Unreadable,
    Absent,
    Reserved,
    UpdateUnsnooped,
    UpdateFailed,
}

/// A block of addresses, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Block {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Block {
    #[cfg(test)]
    const ALL: Self = Self {
        first: 0,
        last: u64::MAX,
    };

    /// The block of 2^`order` bytes that holds `address`.
    pub(crate) fn around(address: u64, order: u32) -> Self {
        let offset = 1u64
            .checked_shl(order)
            .map_or(u64::MAX, |length| length - 1);
        Self {
            first: address & !offset,
            last: address | offset,
        }
    }

    fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Number of address bits below what an entry of `level` translates to one place.
pub(crate) const fn level_shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

type IotlbKey = (u16, Option<u32>, u64);
type FirstKey = (u16, u32, u8, u64);
type SecondKey = (u16, u8, u64);

pub(crate) struct Caches {
    mode: CacheMode,
    random: u64,
    context: BTreeMap<u16, CachedContext>,
    pasid: BTreeMap<(u16, u32), CachedPasid>,
    iotlb: BTreeMap<IotlbKey, IotlbEntry>,
    first: BTreeMap<FirstKey, FirstTable>,
    second: BTreeMap<SecondKey, SecondTable>,
}

/// The number of entries that [`CacheMode::Tiny`] keeps.
const TINY: usize = 2;

/// Puts an entry into a cache, as the mode lets it.
pub(crate) fn insert<K: Ord + Copy, V>(
    cache: &mut BTreeMap<K, V>,
    mode: CacheMode,
    random: &mut u64,
    key: K,
    value: V,
) {
    if mode == CacheMode::None {
        return;
    }
    if mode == CacheMode::Tiny && !cache.contains_key(&key) {
        while cache.len() >= TINY {
            // xorshift64
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            let victim = (*random % cache.len() as u64) as usize;
            if let Some(key) = cache.keys().nth(victim).copied() {
                cache.remove(&key);
            }
        }
    }
    cache.insert(key, value);
}

/// What a device-selective context-cache invalidation names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FunctionSet {
    pub(crate) source_id: u16,
    /// FM: 0 exact, 1 without function bit 2, 2 without bits 2:1, 3 without bits 2:0.
    pub(crate) mask: u8,
}

impl FunctionSet {
    fn contains(self, source_id: u16) -> bool {
        let ignored = match self.mask & 3 {
            0 => 0,
            1 => 0b100,
            2 => 0b110,
            _ => 0b111,
        };
        (self.source_id ^ source_id) & !ignored == 0
    }
}

impl Caches {
    pub(crate) fn new(mode: CacheMode, seed: u64) -> Self {
        Self {
            mode,
            random: seed | 1,
            context: BTreeMap::new(),
            pasid: BTreeMap::new(),
            iotlb: BTreeMap::new(),
            first: BTreeMap::new(),
            second: BTreeMap::new(),
        }
    }

    pub(crate) fn context(&self, source_id: u16) -> Option<CachedContext> {
        self.context.get(&source_id).copied()
    }

    pub(crate) fn insert_context(&mut self, source_id: u16, entry: CachedContext) {
        insert(
            &mut self.context,
            self.mode,
            &mut self.random,
            source_id,
            entry,
        );
    }

    pub(crate) fn pasid(&self, source_id: u16, pasid: u32) -> Option<CachedPasid> {
        self.pasid.get(&(source_id, pasid)).copied()
    }

    pub(crate) fn insert_pasid(&mut self, source_id: u16, pasid: u32, entry: CachedPasid) {
        insert(
            &mut self.pasid,
            self.mode,
            &mut self.random,
            (source_id, pasid),
            entry,
        );
    }

    /// The entry for an address, and the entry's first address.
    pub(crate) fn iotlb(
        &self,
        source_id: u16,
        pasid: Option<u32>,
        address: u64,
    ) -> Option<(u64, IotlbEntry)> {
        let (&(key_source, key_pasid, first), entry) = self
            .iotlb
            .range(..=(source_id, pasid, address))
            .next_back()?;
        (key_source == source_id && key_pasid == pasid && entry.last >= address)
            .then_some((first, *entry))
    }

    pub(crate) fn insert_iotlb(
        &mut self,
        source_id: u16,
        pasid: Option<u32>,
        first: u64,
        entry: IotlbEntry,
    ) {
        let block = Block {
            first,
            last: entry.last,
        };
        self.cut_iotlb(block, |&(key_source, key_pasid, _), _| {
            key_source == source_id && key_pasid == pasid
        });
        insert(
            &mut self.iotlb,
            self.mode,
            &mut self.random,
            (source_id, pasid, first),
            entry,
        );
    }

    /// The first-stage table of the lowest level that is cached: the level whose entry named it.
    pub(crate) fn first_table(
        &self,
        domain: u16,
        pasid: u32,
        address: u64,
        top: u8,
    ) -> Option<(u8, FirstTable)> {
        (2..=top).find_map(|level| {
            let key = (domain, pasid, level, address >> level_shift(level));
            self.first.get(&key).map(|table| (level, *table))
        })
    }

    pub(crate) fn insert_first_table(
        &mut self,
        domain: u16,
        pasid: u32,
        level: u8,
        address: u64,
        table: FirstTable,
    ) {
        let key = (domain, pasid, level, address >> level_shift(level));
        insert(&mut self.first, self.mode, &mut self.random, key, table);
    }

    /// The second-stage table of the lowest level that is cached: the level whose entry named it.
    pub(crate) fn second_table(
        &self,
        domain: u16,
        address: u64,
        top: u8,
    ) -> Option<(u8, SecondTable)> {
        (2..=top).find_map(|level| {
            let key = (domain, level, address >> level_shift(level));
            self.second.get(&key).map(|table| (level, *table))
        })
    }

    pub(crate) fn insert_second_table(
        &mut self,
        domain: u16,
        level: u8,
        address: u64,
        table: SecondTable,
    ) {
        let key = (domain, level, address >> level_shift(level));
        insert(&mut self.second, self.mode, &mut self.random, key, table);
    }

    /// Drops everything that DMA remapping has cached.
    pub(crate) fn clear(&mut self) {
        self.context.clear();
        self.pasid.clear();
        self.iotlb.clear();
        self.first.clear();
        self.second.clear();
    }

    /// Type 1, global.
    pub(crate) fn drop_contexts(&mut self) {
        self.context.clear();
    }

    /// Type 1, domain: scalable-mode entries have no domain-id, so all of them go. A faulting
    /// entry goes with any domain-id.
    pub(crate) fn drop_contexts_of_domain(&mut self, domain: u16) {
        self.context.retain(|_, entry| {
            entry.blocked.is_none() && entry.domain.is_some_and(|d| d != domain)
        });
    }

    /// Type 1, device: legacy-mode entries only with the domain-id they were cached with.
    pub(crate) fn drop_contexts_of_device(&mut self, functions: FunctionSet, domain: u16) {
        self.context.retain(|&source_id, entry| {
            let has_domain = entry.blocked.is_some() || entry.domain.is_none_or(|d| d == domain);
            !(functions.contains(source_id) && has_domain)
        });
    }

    /// Type 7: `domain` and `pasid` select, `None` is all. A faulting entry goes with any
    /// domain-id (§6.2.3 tags it 0; guests name the new one).
    pub(crate) fn drop_pasids(&mut self, domain: Option<u16>, pasid: Option<u32>) {
        self.pasid.retain(|&(_, key_pasid), entry| {
            let has_domain =
                entry.blocked.is_some() || domain.is_none_or(|domain| entry.domain() == domain);
            !(has_domain && pasid.is_none_or(|pasid| key_pasid == pasid))
        });
    }

    /// Type 2, global.
    pub(crate) fn drop_iotlb(&mut self) {
        self.iotlb.clear();
        self.first.clear();
        self.second.clear();
    }

    /// Type 2, domain.
    pub(crate) fn drop_iotlb_of_domain(&mut self, domain: u16) {
        self.iotlb.retain(|_, entry| entry.domain != domain);
        self.first.retain(|key, _| key.0 != domain);
        self.second.retain(|key, _| key.0 != domain);
    }

    /// Type 2, page in domain (Table 23).
    pub(crate) fn drop_iotlb_pages(&mut self, domain: u16, block: Block, leaf_only: bool) {
        self.iotlb
            .retain(|_, entry| !(entry.domain == domain && entry.kind.has_first_stage()));
        self.cut_iotlb(block, |_, entry| entry.domain == domain);
        self.first.retain(|key, _| key.0 != domain);
        if !leaf_only {
            self.second.retain(|&(key_domain, level, prefix), _| {
                let covered = Block::around(prefix << level_shift(level), level_shift(level));
                !(key_domain == domain && covered.meets(block))
            });
        }
    }

    /// Type 6, all of a PASID (Table 24).
    pub(crate) fn drop_iotlb_of_pasid(&mut self, domain: u16, pasid: u32) {
        self.iotlb
            .retain(|_, entry| (entry.domain, entry.pasid) != (domain, pasid));
        self.first
            .retain(|key, _| (key.0, key.1) != (domain, pasid));
    }

    /// Type 6, page in PASID (Table 24).
    pub(crate) fn drop_iotlb_pages_of_pasid(
        &mut self,
        domain: u16,
        pasid: u32,
        block: Block,
        leaf_only: bool,
    ) {
        self.cut_iotlb(block, |_, entry| {
            (entry.domain, entry.pasid) == (domain, pasid) && entry.kind.has_first_stage()
        });
        if !leaf_only {
            self.first
                .retain(|&(key_domain, key_pasid, level, prefix), _| {
                    let covered = Block::around(prefix << level_shift(level), level_shift(level));
                    !((key_domain, key_pasid) == (domain, pasid) && covered.meets(block))
                });
        }
    }

    /// Cuts a block out of the selected entries. What lies beside it stays: hardware may have
    /// cached a large page as many small ones (§6.5.3.2).
    fn cut_iotlb(&mut self, block: Block, selected: impl Fn(&IotlbKey, &IotlbEntry) -> bool) {
        let cut: Vec<(IotlbKey, IotlbEntry)> = self
            .iotlb
            .iter()
            .filter(|(key, entry)| {
                let covered = Block {
                    first: key.2,
                    last: entry.last,
                };
                covered.meets(block) && selected(key, entry)
            })
            .map(|(key, entry)| (*key, *entry))
            .collect();
        for (key, entry) in cut {
            self.iotlb.remove(&key);
            if self.mode != CacheMode::Hoarder {
                continue;
            }
            let (source_id, pasid, first) = key;
            if first < block.first {
                let below = IotlbEntry {
                    last: block.first - 1,
                    ..entry
                };
                self.iotlb.insert(key, below);
            }
            if entry.last > block.last {
                let skipped = block.last + 1 - first;
                let value = match entry.value {
                    IotlbValue::Page {
                        host,
                        rights,
                        dirty,
                    } => IotlbValue::Page {
                        host: host + skipped,
                        rights,
                        dirty,
                    },
                    faulting => faulting,
                };
                self.iotlb.insert(
                    (source_id, pasid, first + skipped),
                    IotlbEntry { value, ..entry },
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(last: u64, host: u64, domain: u16, pasid: u32, kind: Kind) -> IotlbEntry {
        IotlbEntry {
            last,
            value: IotlbValue::Page {
                host,
                rights: Rights::ALL,
                dirty: true,
            },
            domain,
            pasid,
            kind,
            fault_disable: false,
        }
    }

    fn host_of(caches: &Caches, pasid: Option<u32>, address: u64) -> Option<u64> {
        let (first, entry) = caches.iotlb(8, pasid, address)?;
        match entry.value {
            IotlbValue::Page { host, .. } => Some(host + (address - first)),
            IotlbValue::Faulting(_) => None,
        }
    }

    #[test]
    fn a_page_is_cut_out_of_a_large_entry_and_the_rest_stays() {
        let mut caches = Caches::new(CacheMode::Hoarder, 1);
        let entry = page(0x3f_ffff, 0x80_0000, 5, 0, Kind::Second);
        caches.insert_iotlb(8, None, 0x20_0000, entry);
        caches.drop_iotlb_pages(5, Block::around(0x30_1234, 13), false);
        for (address, host) in [
            (0x20_0000, Some(0x80_0000)),
            (0x2f_ffff, Some(0x8f_ffff)),
            (0x30_0000, None),
            (0x30_1fff, None),
            (0x30_2000, Some(0x90_2000)),
            (0x3f_ffff, Some(0x9f_ffff)),
            (0x40_0000, None),
        ] {
            assert_eq!(host_of(&caches, None, address), host, "{address:#x}");
        }
        caches.drop_iotlb_pages(6, Block::ALL, false);
        assert!(
            host_of(&caches, None, 0x20_0000).is_some(),
            "another domain"
        );
    }

    #[test]
    fn each_descriptor_reaches_the_kinds_that_tables_23_and_24_name() {
        let kinds = [
            Kind::Legacy,
            Kind::First,
            Kind::Second,
            Kind::Nested,
            Kind::PassThrough,
        ];
        // For each kind: what is left of a page in the range and of one outside it.
        type Row = (&'static str, fn(&mut Caches), [(bool, bool); 5]);
        let rows: [Row; 5] = [
            (
                "type 2 page",
                |c| c.drop_iotlb_pages(5, Block::around(0x1000, 12), true),
                [
                    (false, true),
                    (false, false),
                    (false, true),
                    (false, false),
                    (false, true),
                ],
            ),
            (
                "type 2 domain",
                |c| c.drop_iotlb_of_domain(5),
                [(false, false); 5],
            ),
            (
                "type 6 page",
                |c| c.drop_iotlb_pages_of_pasid(5, 3, Block::around(0x1000, 12), true),
                [
                    (true, true),
                    (false, true),
                    (true, true),
                    (false, true),
                    (true, true),
                ],
            ),
            (
                "type 6 all",
                |c| c.drop_iotlb_of_pasid(5, 3),
                [(false, false); 5],
            ),
            (
                "type 6 all, other PASID",
                |c| c.drop_iotlb_of_pasid(5, 4),
                [(true, true); 5],
            ),
        ];
        for (name, invalidate, expected) in rows {
            for (kind, expected) in kinds.into_iter().zip(expected) {
                let mut caches = Caches::new(CacheMode::Hoarder, 1);
                caches.insert_iotlb(8, Some(3), 0x1000, page(0x1fff, 0, 5, 3, kind));
                caches.insert_iotlb(8, Some(3), 0x9000, page(0x9fff, 0, 5, 3, kind));
                invalidate(&mut caches);
                let left = (
                    host_of(&caches, Some(3), 0x1000).is_some(),
                    host_of(&caches, Some(3), 0x9000).is_some(),
                );
                assert_eq!(left, expected, "{name}, {kind:?}");
            }
        }
    }

    #[test]
    fn paging_structure_entries_go_by_range_and_stay_with_the_leaf_hint() {
        let table = FirstTable {
            table: 0,
            host: 0,
            user: true,
            write: true,
        };
        let second = SecondTable::Table {
            host: 0,
            read: true,
            write: true,
        };
        let fill = || {
            let mut caches = Caches::new(CacheMode::Hoarder, 1);
            caches.insert_first_table(5, 3, 2, 0x20_0000, table);
            caches.insert_first_table(5, 3, 3, 0x20_0000, table);
            caches.insert_second_table(5, 2, 0x20_0000, second);
            caches.insert_second_table(5, 3, 0x20_0000, second);
            caches
        };
        let first = |caches: &Caches| caches.first_table(5, 3, 0x3f_ffff, 4).map(|t| t.0);
        let second = |caches: &Caches| caches.second_table(5, 0x3f_ffff, 4).map(|t| t.0);
        let mut caches = fill();
        assert_eq!((first(&caches), second(&caches)), (Some(2), Some(2)));
        assert!(
            caches
                .first_table(5, 3, 0x40_0000, 4)
                .is_some_and(|t| t.0 == 3)
        );
        caches.drop_iotlb_pages_of_pasid(5, 3, Block::around(0x40_0000, 12), false);
        assert_eq!(
            (first(&caches), second(&caches)),
            (Some(2), Some(2)),
            "level 3 only"
        );
        assert!(caches.first_table(5, 3, 0x40_0000, 4).is_none());
        caches.drop_iotlb_pages_of_pasid(5, 3, Block::ALL, true);
        assert_eq!(first(&caches), Some(2), "leaf hint");
        caches.drop_iotlb_of_pasid(5, 3);
        assert_eq!((first(&caches), second(&caches)), (None, Some(2)));
        let mut caches = fill();
        caches.drop_iotlb_pages(5, Block::ALL, true);
        assert_eq!((first(&caches), second(&caches)), (None, Some(2)));
        caches.drop_iotlb_pages(5, Block::around(0x20_0000, 12), false);
        assert_eq!(second(&caches), None);
    }

    #[test]
    fn context_and_pasid_entries_go_by_their_tags() {
        let context = |domain, blocked| CachedContext {
            words: [0; 4],
            domain,
            blocked,
        };
        let blocked = Blocked {
            reason: FaultReason::LegacyContextEntryNotPresent,
            fault_disable: false,
        };
        let exact = |source_id| FunctionSet { source_id, mask: 0 };
        let mut caches = Caches::new(CacheMode::Hoarder, 1);
        caches.insert_context(0x10, context(Some(5), None));
        caches.insert_context(0x11, context(None, None));
        caches.insert_context(0x12, context(None, Some(blocked)));
        caches.drop_contexts_of_device(exact(0x10), 6);
        caches.drop_contexts_of_device(exact(0x11), 6);
        assert!(caches.context(0x10).is_some(), "wrong domain-id");
        assert!(caches.context(0x11).is_none(), "scalable mode has none");
        caches.drop_contexts_of_domain(6);
        assert!(caches.context(0x12).is_none());
        assert!(caches.context(0x10).is_some());
        for (mask, covered) in [(0, 0x10..=0x10), (3, 0x10..=0x17)] {
            let functions = FunctionSet {
                source_id: 0x10,
                mask,
            };
            for source_id in 0..0x20 {
                assert_eq!(functions.contains(source_id), covered.contains(&source_id));
            }
        }
        let sets = |mask| {
            let functions = FunctionSet { source_id: 0, mask };
            (0..8u16)
                .filter(|f| functions.contains(*f))
                .collect::<Vec<_>>()
        };
        assert_eq!((sets(1), sets(2)), (vec![0, 4], vec![0, 2, 4, 6]));

        let pasid = |domain: u64| CachedPasid {
            words: [1, domain, 0, 0, 0, 0, 0, 0],
            fault_disable: false,
            blocked: None,
        };
        caches.insert_pasid(0x10, 3, pasid(5));
        caches.insert_pasid(0x11, 3, pasid(5));
        caches.insert_pasid(0x10, 4, pasid(5));
        caches.insert_pasid(0x10, 5, pasid(6));
        caches.drop_pasids(Some(6), Some(3));
        assert!(caches.pasid(0x10, 3).is_some());
        caches.drop_pasids(Some(5), Some(3));
        assert!(caches.pasid(0x10, 3).is_none() && caches.pasid(0x11, 3).is_none());
        assert!(caches.pasid(0x10, 4).is_some());
        caches.drop_pasids(Some(5), None);
        assert!(caches.pasid(0x10, 4).is_none() && caches.pasid(0x10, 5).is_some());
        caches.drop_pasids(None, None);
        assert!(caches.pasid(0x10, 5).is_none());
    }

    #[test]
    fn tiny_keeps_two_entries_and_none_keeps_none() {
        for (mode, kept) in [
            (CacheMode::Hoarder, 9),
            (CacheMode::Tiny, 2),
            (CacheMode::None, 0),
        ] {
            let mut caches = Caches::new(mode, 7);
            for n in 0..9u64 {
                let first = n << 12;
                caches.insert_iotlb(8, None, first, page(first | 0xfff, 0, 5, 0, Kind::Second));
            }
            assert_eq!(caches.iotlb.len(), kept, "{mode:?}");
        }
    }
}
