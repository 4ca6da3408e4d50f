//! Random programs of edits against a flat map, with hardware that walks between any two stores.

use std::boxed::Box;
use std::vec::Vec;

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;

/// The pages that programs work on: four blocks of 2 MiB, around a border of 1 GiB.
const PAGES: u64 = 2048;
const BASE: u64 = (1 << 30) - (4 << 20);
const OUTPUT: u64 = 8 << 30;

/// Where a page leads, by flat number of the output page.
type Page = Option<(u64, Rights)>;

#[derive(Clone, Debug)]
enum Edit {
    Map(u64, Rights),
    Unmap(OnPartialLeaf),
    Protect(Rights, OnPartialLeaf),
    Split(PageSize),
    Merge,
    /// Devices write some of the pages, then the bits are taken.
    Take,
}

/// An edit of a range of pages.
type Step = (Edit, u64, u64);

fn step() -> impl Strategy<Value = Step> {
    let rights = prop_oneof![
        3 => Just(Rights::READ_WRITE),
        1 => Just(Rights::READ),
        1 => Just(Rights::WRITE),
    ];
    let partial = prop_oneof![
        Just(OnPartialLeaf::Refuse),
        Just(OnPartialLeaf::Split),
        Just(OnPartialLeaf::Widen),
    ];
    // The same place in a large page, or another.
    let shift = prop_oneof![2 => Just(0), 1 => 0u64..600];
    let edit = prop_oneof![
        4 => (shift, rights.clone()).prop_map(|(shift, rights)| Edit::Map(shift, rights)),
        2 => partial.clone().prop_map(Edit::Unmap),
        3 => (rights, partial).prop_map(|(rights, partial)| Edit::Protect(rights, partial)),
        1 => prop_oneof![Just(PageSize::Size4KiB), Just(PageSize::Size2MiB)].prop_map(Edit::Split),
        2 => Just(Edit::Merge),
        1 => Just(Edit::Take),
    ];
    let range = prop_oneof![
        (0u64..4, 1u64..=3).prop_map(|(block, blocks)| (block * 512, blocks * 512)),
        (0u64..PAGES, 1u64..20),
        (0u64..PAGES, 1u64..900),
    ];
    (edit, range).prop_map(|(edit, (first, count))| (edit, first, count.min(PAGES - first)))
}

fn address(page: u64) -> u64 {
    BASE + (page << 12)
}

/// Where a walk from an entry of a level on ends.
fn walk(read: &dyn Fn(Hpa) -> u64, table: Hpa, level: u8, address: u64) -> Page {
    let (mut at, mut rights) = (table.as_u64(), 3);
    for level in (1..=level).rev() {
        let shift = 12 + 9 * (u32::from(level) - 1);
        let entry = read(Hpa::new(at + (address >> shift) % 512 * 8));
        rights &= entry & 3;
        if rights == 0 {
            return None;
        }
        at = entry & 0xf_ffff_ffff_f000;
        if level == 1 || level <= 3 && entry & 1 << 7 != 0 {
            let page = ((at - OUTPUT) >> 12) + (address & ((1 << shift) - 1)) / 4096;
            let (read, write) = (rights & 1 != 0, rights & 2 != 0);
            return Some((page, Rights { read, write }));
        }
    }
    None
}

/// A page that hardware looks at between any two stores.
struct Probe {
    address: u64,
    /// Where it may lead.
    allowed: [Page; 2],
    /// The page of level 1 that hardware has cached for it.
    cached: Option<Hpa>,
}

struct Bench {
    h: TestHypervisor,
    table: SecondStage<Gpa>,
    flat: Vec<Page>,
    free_frames: u32,
}

impl Bench {
    fn new(config: SecondStageConfig) -> Self {
        let h = TestHypervisor::new(40);
        let free_frames = h.pool.free_frames();
        Self {
            table: SecondStage::new(&h, OWNER, config).unwrap(),
            h,
            flat: std::vec![None; PAGES as usize],
            free_frames,
        }
    }

    /// Where the leaf of a page lies, if it has one, and the page of level 1 on the way.
    fn leaf_slot(&self, page: u64) -> (Option<Hpa>, Option<Hpa>) {
        let mut at = self.table.root().address();
        for level in (1..=4).rev() {
            let slot = slot_address(at, address(page), level);
            let entry = SecondStageEntry::from_u64(self.h.peek(slot));
            if level == 1 {
                return (entry.is_present().then_some(slot), Some(at));
            }
            match entry.is_present() {
                true if entry.is_leaf(level) => return (Some(slot), None),
                true => at = entry.address(),
                false => break,
            }
        }
        (None, None)
    }

    /// Has hardware look on while an edit may change pages of a range as `new` says.
    fn watch(&self, first: u64, count: u64, new: &dyn Fn(u64, Page) -> Page) {
        let edges = [first, first + count, first & !511, (first + count) & !511];
        let probes = edges
            .into_iter()
            .flat_map(|edge| [edge.wrapping_sub(1), edge, edge + 1])
            .filter(|page| *page < PAGES)
            .map(|page| {
                let old = self.flat[page as usize];
                // A page beside the range, in a large page that is changed whole.
                let near = (first & !511..(first + count).next_multiple_of(512)).contains(&page);
                Probe {
                    address: address(page),
                    allowed: [old, if near { new(page, old) } else { old }],
                    cached: self.leaf_slot(page).1,
                }
            });
        let probes: Vec<Probe> = probes.collect();
        let root = self.table.root().address();
        let snooped = !self.table.config().needs_flush();
        let mut steps = 0u32;
        self.h.on_store(move |h| {
            steps += 1;
            if steps > 16 && !steps.is_multiple_of(13) {
                return;
            }
            let read: Box<dyn Fn(Hpa) -> u64 + '_> = match snooped {
                true => Box::new(|at| h.peek(at)),
                false => Box::new(|at| h.read_flushed(at)),
            };
            for probe in &probes {
                let from_root = walk(&*read, root, 4, probe.address);
                assert!(probe.allowed.contains(&from_root), "{from_root:?}");
                if let Some(page) = probe.cached {
                    let found = walk(&*read, page, 1, probe.address);
                    assert!(probe.allowed.contains(&found), "cached: {found:?}");
                }
            }
        });
    }

    /// The pages of a token.
    fn pages_of(&self, stale: &StaleMappings<Gpa>) -> core::ops::Range<usize> {
        let first = stale.first.as_u64().saturating_sub(BASE) >> 12;
        let end = (stale.first.as_u64() + stale.len_bytes).saturating_sub(BASE) >> 12;
        first as usize..end.min(PAGES) as usize
    }

    /// What an edit of present entries gave: the pages that it changed were in its range, and the
    /// frames come back after the invalidation.
    fn took(
        &mut self,
        result: Result<StaleMappings<Gpa>, MapError>,
        range: core::ops::Range<usize>,
        partial: OnPartialLeaf,
        new: &dyn Fn(u64, Page) -> Page,
    ) {
        match result {
            Ok(stale) => {
                let owed = self.pages_of(&stale);
                assert!(owed.start <= range.start && range.end <= owed.end);
                let changed = match partial {
                    OnPartialLeaf::Widen => owed,
                    OnPartialLeaf::Refuse => {
                        assert_eq!(owed, range);
                        range
                    }
                    OnPartialLeaf::Split => range,
                };
                let mut changes = false;
                for page in changed {
                    let old = self.flat[page];
                    self.flat[page] = new(page as u64, old);
                    changes |= self.flat[page] != old;
                }
                assert!(!changes || stale.owes_invalidation());
                self.h.clear_hook();
                stale.settle(&self.h);
            }
            Err(MapError::PartialLeaf { .. }) => assert_eq!(partial, OnPartialLeaf::Refuse),
            Err(error) => assert!(matches!(error, MapError::Frames(_)), "{error}"),
        }
    }

    fn run(&mut self, (edit, first, count): Step) {
        let (at, len) = (Gpa::new(address(first)), count << 12);
        let range = first as usize..(first + count) as usize;
        match edit {
            Edit::Map(shift, rights) => {
                let to = Hpa::new(OUTPUT + ((first + shift) << 12));
                let new = |page: u64, _| Some((page + shift, rights));
                let overlaps = self.flat[range.clone()].iter().any(Option::is_some);
                if !overlaps {
                    self.watch(first, count, &new);
                }
                match self.table.map(&self.h, at, to, len, rights) {
                    Ok(()) => {
                        assert!(!overlaps);
                        for page in range {
                            self.flat[page] = new(page as u64, None);
                        }
                    }
                    Err(MapError::Overlap { address }) => {
                        let page = (address.max(BASE) - BASE) >> 12;
                        assert!(self.flat[page as usize].is_some());
                        assert!(overlaps);
                    }
                    Err(error) => assert!(matches!(error, MapError::Frames(_)), "{error}"),
                }
            }
            Edit::Unmap(partial) => {
                let new = |_, _| None;
                self.watch(first, count, &new);
                let result = self.table.unmap(&self.h, at, len, partial);
                self.took(result, range, partial, &new);
            }
            Edit::Protect(rights, partial) => {
                let new = |_, old: Page| old.map(|(output, _)| (output, rights));
                self.watch(first, count, &new);
                let result = self.table.protect(&self.h, at, len, rights, partial);
                self.took(result, range, partial, &new);
            }
            Edit::Split(size) => {
                self.watch(first, count, &|_, old| old);
                let result = self.table.split(&self.h, at, len, size);
                self.h.clear_hook();
                if let Ok(stale) = result {
                    stale.settle(&self.h);
                    let larger = |page| {
                        let found = self.table.translate(&self.h, Gpa::new(address(page)));
                        found.is_some_and(|found| found.size > size)
                    };
                    assert!(!(first..first + count).any(larger));
                }
            }
            Edit::Merge => {
                self.watch(first, count, &|_, old| old);
                let merged = self.table.merge(&self.h, at, len).unwrap();
                self.h.clear_hook();
                assert_eq!(merged.resume_at(), None);
                merged.into_stale(&self.h).settle(&self.h);
            }
            Edit::Take => self.take(first, count),
        }
        self.h.clear_hook();
    }

    fn take(&mut self, first: u64, count: u64) {
        let (accessed, dirty) = (SecondStageEntry::ACCESSED, SecondStageEntry::DIRTY);
        let range = first..first + count;
        let written: Vec<u64> = range.filter(|page| page % 7 == 3).collect();
        let mut expected = Vec::new();
        for page in written {
            let writable = self.flat[page as usize].is_some_and(|(_, rights)| rights.write);
            if let (Some(slot), true) = (self.leaf_slot(page).0, writable) {
                self.h.hardware_sets(slot, accessed | dirty);
                expected.push(address(page));
            }
        }
        self.watch(first, count, &|_, old| old);
        let mut found = Vec::new();
        let (at, len) = (Gpa::new(address(first)), count << 12);
        for _ in 0..2 {
            let found = &mut found;
            let stale = self
                .table
                .take_accessed_dirty(&self.h, at, len, AccessedDirty::DIRTY, |leaf| {
                    found.push(leaf.input.as_u64()..leaf.input.as_u64() + leaf.size.len_bytes());
                })
                .unwrap();
            assert!(stale.is_leaf_only());
            stale.settle(&self.h);
        }
        for page in &expected {
            let times = found.iter().filter(|leaf| leaf.contains(page)).count();
            assert_eq!(times, 1, "{page:#x}");
        }
    }

    fn check(&self) {
        let root = self.table.root().address();
        for (page, expected) in (0..).zip(&self.flat) {
            let at = address(page);
            let found = self.table.translate(&self.h, Gpa::new(at));
            let found = found.map(|found| ((found.output.as_u64() - OUTPUT) >> 12, found.rights));
            assert_eq!(found, *expected, "page {page}");
            if self.table.config().needs_flush() {
                let seen = walk(&|at| self.h.read_flushed(at), root, 4, at);
                assert_eq!(seen, *expected, "page {page}, as hardware sees it");
            }
        }
    }

    fn end(self) {
        self.table.destroy(&self.h).settle(&self.h);
        assert_eq!(self.h.pool.free_frames(), self.free_frames);
    }
}

fn run(config: SecondStageConfig, program: Vec<Step>) -> TestCaseResult {
    let mut bench = Bench::new(config);
    for step in program {
        bench.run(step);
        bench.check();
    }
    bench.end();
    Ok(())
}

fn cases() -> ProptestConfig {
    ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

// G6, G15, XSA-304.
proptest! {
    #![proptest_config(cases())]

    #[test]
    fn programs_agree_with_a_flat_map_and_hardware_never_sees_anything_else(
        program in prop::collection::vec(step(), 1..20),
        unsnooped in any::<bool>(),
        tracking in any::<bool>(),
    ) {
        let config = match (unsnooped, tracking) {
            (true, _) => CONFIG.unsnooped(),
            (false, true) => CONFIG.tracking_access().unwrap(),
            (false, false) => CONFIG,
        };
        run(config, program)?;
    }
}
