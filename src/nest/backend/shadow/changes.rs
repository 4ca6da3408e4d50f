//! What a slice of work has changed.

use crate::arch::address::{Iova, PAGE_SIZE_BYTES};
use crate::nest::coalesce::Span;

/// What a slice changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::nest) struct Changes {
    /// Pages that led nowhere before.
    pub(in crate::nest) added: u64,
    /// Pages that lead elsewhere, or nowhere any more.
    pub(in crate::nest) replaced: u64,
    /// The first and the last of them, and what lies between.
    pub(in crate::nest) span: Option<Span>,
    /// Nothing but last-level entries that led somewhere has changed.
    pub(in crate::nest) is_leaf_only: bool,
}

impl Changes {
    pub(super) fn add(&mut self, first: Iova, len_bytes: u64, added: u64, replaced: u64) {
        if added == 0 && replaced == 0 {
            return;
        }
        self.is_leaf_only = added == 0 && (self.is_leaf_only || self.span.is_none());
        self.added = self.added.wrapping_add(added);
        self.replaced = self.replaced.wrapping_add(replaced);
        let last = first.as_u64().saturating_add(len_bytes.saturating_sub(1));
        let span = Span {
            first: first.as_u64() / PAGE_SIZE_BYTES,
            last: last / PAGE_SIZE_BYTES,
        };
        self.span = Some(self.span.map_or(span, |old| old.joined(&span)));
    }

    /// A large leaf was split: all of it is owed, upper levels included.
    pub(super) fn add_split(&mut self, split: Option<(Iova, u64)>) {
        if let Some((first, len_bytes)) = split {
            self.add(first, len_bytes, 0, 1);
            self.is_leaf_only = false;
        }
    }
}
