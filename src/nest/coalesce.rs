//! Ranges of pages joined while they are collected: neighbours become one, and what has no room is
//! for the caller to widen.

use heapless::Vec;

use crate::arch::address::{Iova, PAGE_SIZE_BYTES};
use crate::viommu::host::PageRange;

/// Number of the last page of the 64-bit address space.
const LAST_PAGE: u64 = u64::MAX / PAGE_SIZE_BYTES;
/// Binary order of the number of pages of the 64-bit address space.
const ALL_PAGES_ORDER: u8 = 52;

/// Pages side by side, by page number, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Span {
    /// The whole address space.
    pub(super) const EVERYTHING: Self = Self {
        first: 0,
        last: LAST_PAGE,
    };

    /// The pages that an invalidation names; address bits below the range's size are dropped, as
    /// hardware does (§6.5.2.3).
    pub(super) const fn named_by(pages: &PageRange) -> Self {
        if pages.order >= ALL_PAGES_ORDER {
            return Self::EVERYTHING;
        }
        let within = (1u64 << pages.order) - 1;
        let page = pages.address.as_u64() / PAGE_SIZE_BYTES;
        Self {
            first: page & !within,
            last: page | within,
        }
    }

    /// Whether the two share a page or are neighbours.
    pub(super) const fn touches(&self, other: &Self) -> bool {
        self.first <= other.last.saturating_add(1) && other.first <= self.last.saturating_add(1)
    }

    /// The smallest span that holds both.
    pub(super) fn joined(&self, other: &Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }

    /// One or two blocks, as descriptors name them, that cover the span: no block is longer than
    /// the span rounded up to a power of two.
    pub(super) fn blocks(&self) -> (PageRange, Option<PageRange>) {
        let difference = self.last.saturating_sub(self.first).min(LAST_PAGE);
        // Pages less one, so its length in bits is the order of the pages rounded up.
        let order = (64 - difference.leading_zeros()).min(u32::from(ALL_PAGES_ORDER)) as u8;
        let block = |page: u64| {
            let number = page.checked_shr(u32::from(order)).unwrap_or(0);
            let address = number
                .checked_shl(u32::from(order))
                .unwrap_or(0)
                .saturating_mul(PAGE_SIZE_BYTES);
            PageRange {
                address: Iova::new(address),
                order,
                leaf_only: false,
            }
        };
        let (first, last) = (block(self.first), block(self.last));
        (first, (first != last).then_some(last))
    }
}

/// A span of something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Keyed<K> {
    pub(super) key: K,
    pub(super) span: Span,
    /// Only leaf entries have changed in all that was joined.
    pub(super) leaf_only: bool,
}

/// Spans by key; what touches is joined.
#[derive(Debug)]
pub(super) struct Spans<K, const N: usize> {
    entries: Vec<Keyed<K>, N>,
}

/// There was no room for a span: nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SpansFull;

impl<K, const N: usize> Spans<K, N> {
    /// No span.
    pub(super) const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }
}

impl<K: Copy + PartialEq, const N: usize> Spans<K, N> {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The span that came first.
    pub(super) fn first(&self) -> Option<&Keyed<K>> {
        self.entries.first()
    }

    /// Adds a span: joined with what it touches, or in a place of its own. `Ok(true)` if it was
    /// joined.
    ///
    /// # Errors
    ///
    /// [`SpansFull`].
    pub(super) fn add(&mut self, new: Keyed<K>) -> Result<bool, SpansFull> {
        let joins = |entry: &Keyed<K>| entry.key == new.key && entry.span.touches(&new.span);
        let Some(place) = self.entries.iter().position(joins) else {
            return match self.entries.push(new) {
                Ok(()) => Ok(false),
                Err(_) => Err(SpansFull),
            };
        };
        // It may close a gap: what it touches beside the first is taken into that.
        let mut index = 0;
        let mut joined = new;
        self.entries.retain(|entry| {
            let is_place = index == place;
            index += 1;
            if !joins(entry) {
                return true;
            }
            joined.span = joined.span.joined(&entry.span);
            joined.leaf_only &= entry.leaf_only;
            is_place
        });
        if let Some(entry) = self.entries.get_mut(place) {
            *entry = joined;
        }
        Ok(true)
    }

    /// Drops what does not pass.
    pub(super) fn retain(&mut self, passes: impl FnMut(&Keyed<K>) -> bool) {
        self.entries.retain(passes);
    }

    /// Takes away the pages before `page` of the span that came first; the whole span if it ends
    /// before.
    pub(super) fn advance_first(&mut self, page: u64) {
        let Some(first) = self.entries.first_mut() else {
            return;
        };
        if page > first.span.last {
            self.entries.remove(0);
        } else {
            first.span.first = first.span.first.max(page);
        }
    }

    /// Has the span that came first reach over another one too.
    pub(super) fn widen_first(&mut self, span: &Span) {
        if let Some(first) = self.entries.first_mut() {
            first.span = first.span.joined(span);
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;

    fn span(first: u64, last: u64) -> Span {
        Span { first, last }
    }

    fn add<const N: usize>(
        spans: &mut Spans<u8, N>,
        key: u8,
        first: u64,
        last: u64,
    ) -> Result<bool, SpansFull> {
        spans.add(Keyed {
            key,
            span: span(first, last),
            leaf_only: first != 7,
        })
    }

    fn all<const N: usize>(spans: &Spans<u8, N>) -> std::vec::Vec<(u8, u64, u64, bool)> {
        let one = |entry: &Keyed<u8>| {
            (
                entry.key,
                entry.span.first,
                entry.span.last,
                entry.leaf_only,
            )
        };
        spans.entries.iter().map(one).collect()
    }

    #[test]
    fn a_thousand_neighbours_are_one_whatever_their_order() {
        for step in [1u64, 7, 999] {
            let mut spans = Spans::<u8, 256>::new();
            for index in 0..1000u64 {
                let page = 100 + index * step % 1000;
                add(&mut spans, 1, page, page).unwrap();
            }
            // What closes a gap takes in what lies on both sides.
            assert_eq!(all(&spans), [(1, 100, 1099, true)], "step {step}");
        }
    }

    #[test]
    fn other_keys_and_pages_apart_are_kept_apart() {
        let mut spans = Spans::<u8, 4>::new();
        assert_eq!(add(&mut spans, 1, 4, 5), Ok(false));
        assert_eq!(add(&mut spans, 2, 6, 6), Ok(false));
        assert_eq!(add(&mut spans, 1, 8, 9), Ok(false));
        assert_eq!(add(&mut spans, 1, 20, 20), Ok(false));
        assert_eq!(add(&mut spans, 1, 30, 30), Err(SpansFull));
        // The hint stays only if all had it.
        assert_eq!(add(&mut spans, 1, 7, 7), Ok(true));
        assert_eq!(add(&mut spans, 1, 6, 6), Ok(true));
        assert_eq!(
            all(&spans),
            [(1, 4, 9, false), (2, 6, 6, true), (1, 20, 20, true)]
        );
    }

    #[test]
    fn the_last_pages_of_the_address_space_are_joined_without_overflow() {
        let mut spans = Spans::<u8, 4>::new();
        add(&mut spans, 1, LAST_PAGE, LAST_PAGE).unwrap();
        add(&mut spans, 1, 0, 0).unwrap();
        assert_eq!(add(&mut spans, 1, LAST_PAGE - 1, LAST_PAGE - 1), Ok(true));
        assert_eq!(
            all(&spans),
            [(1, LAST_PAGE - 1, LAST_PAGE, true), (1, 0, 0, true)]
        );
        add(&mut spans, 1, 0, LAST_PAGE).unwrap();
        assert_eq!(all(&spans), [(1, 0, LAST_PAGE, true)]);
    }

    #[test]
    fn invalidations_name_whole_blocks() {
        for (address, order, first, last) in [
            (0x5000, 0, 5, 5),
            (0x5000, 3, 0, 7),
            (0xf000, 3, 8, 15),
            (u64::MAX, 0, LAST_PAGE, LAST_PAGE),
            (0x5000, 52, 0, LAST_PAGE),
            (0x5000, 63, 0, LAST_PAGE),
        ] {
            let range = PageRange {
                address: Iova::new(address),
                order,
                leaf_only: false,
            };
            assert_eq!(Span::named_by(&range), span(first, last), "{range:?}");
        }
    }

    #[test]
    fn two_blocks_at_most_cover_a_span_and_little_more() {
        for (first, last, blocks) in [
            (5, 5, &[(0x5000, 0)][..]),
            (4, 7, &[(0x4000, 2)]),
            (5, 8, &[(0x4000, 2), (0x8000, 2)]),
            (1, 2, &[(0, 1), (0x2000, 1)]),
            (100, 1099, &[(0, 10), (0x40_0000, 10)]),
            (LAST_PAGE, LAST_PAGE, &[(LAST_PAGE << 12, 0)]),
            (0, LAST_PAGE, &[(0, 52)]),
            (1, LAST_PAGE, &[(0, 52)]),
        ] {
            let (one, two) = span(first, last).blocks();
            let found: std::vec::Vec<_> = [Some(one), two]
                .into_iter()
                .flatten()
                .map(|block| (block.address.as_u64(), block.order))
                .collect();
            assert_eq!(found, blocks, "{first:#x}..={last:#x}");
        }
    }

    #[test]
    fn a_span_is_worked_off_from_its_start() {
        let mut spans = Spans::<u8, 4>::new();
        add(&mut spans, 1, 4, 9).unwrap();
        spans.advance_first(7);
        assert_eq!(all(&spans), [(1, 7, 9, true)]);
        spans.advance_first(3);
        assert_eq!(all(&spans), [(1, 7, 9, true)]);
        spans.widen_first(&span(5, 7));
        assert_eq!(all(&spans), [(1, 5, 9, true)]);
        spans.advance_first(10);
        assert!(spans.is_empty());
        spans.advance_first(11);
    }
}
