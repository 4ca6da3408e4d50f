//! What an edit of a machine's memory owes, domain by domain (§6.5.3.3).
//!
//! | entries | the domain is invalidated |
//! |---|---|
//! | of the second stage alone | in the range that changed, with the leaf hint where it may have it |
//! | nested | whole: the range names no first-stage address, and drops all of theirs anyway (§6.5.2.3, Table 23) |
//! | of a shadow | where the shadow changes when it is brought in step |
//! | behind a unit with a device that is cut off | whole, whatever they are |

use super::bind::HostPort;
use super::coalesce::Span;
use super::domain::{DomainKind, HostDomain};
use super::invalidate::Tag;
use super::units::MACHINE_UNITS;
use crate::arch::address::{Gpa, PAGE_SIZE_BYTES};
use crate::mem::{Hypervisor, Registers};
use crate::paging::StaleMappings;
use crate::unit::Unit;

/// The part of a machine's memory that an edit changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EditedMemory {
    span: Span,
    /// Only leaf entries have changed.
    leaf_only: bool,
}

impl EditedMemory {
    /// What a token owes.
    pub(super) fn of(stale: &StaleMappings<Gpa>) -> Self {
        Self {
            span: span_of(stale.first, stale.len_bytes),
            leaf_only: stale.is_leaf_only(),
        }
    }

    /// Memory that has been added, perhaps with table pages.
    pub(super) fn added(first: Gpa, len_bytes: u64) -> Self {
        Self {
            span: span_of(first, len_bytes),
            leaf_only: false,
        }
    }
}

/// The pages of a range; of an empty one, everything.
fn span_of(first: Gpa, len_bytes: u64) -> Span {
    let start = first.as_u64();
    match len_bytes.checked_sub(1) {
        Some(rest) => Span {
            first: start / PAGE_SIZE_BYTES,
            last: start.saturating_add(rest) / PAGE_SIZE_BYTES,
        },
        None => Span::EVERYTHING,
    }
}

impl<H: Hypervisor, R: Registers, const DEVICES: usize, const DOMAINS: usize, const SHADOWS: usize>
    HostPort<'_, H, R, DEVICES, DOMAINS, SHADOWS>
{
    /// Collects what an edit owes to the units that are as said, and has every shadow brought in
    /// step.
    pub(super) fn collect_edit(&mut self, edited: &EditedMemory, owes: fn(&Unit<R>) -> bool) {
        let units = self.units;
        let is_owed = |unit: u8| units.get(usize::from(unit)).is_some_and(owes);
        // Hardware may not have confirmed what it was to forget of a device that is cut off.
        let side = &mut *self.side;
        for (_, device) in side.devices.iter() {
            let unit = device.config.unit;
            if device.is_quarantined() && is_owed(unit) {
                side.domains.owe_flush_of(|domain| domain.unit == unit);
            }
        }
        let mut next = self.side.domains.first_of_kind(DomainKind::Machine);
        // One for each unit.
        for _ in 0..MACHINE_UNITS {
            let Some(slot) = next else {
                break;
            };
            next = self.side.domains.next_of_kind(slot, DomainKind::Machine);
            if let Some(&HostDomain { unit, id, .. }) = self.side.domains.get(slot)
                && is_owed(unit)
            {
                let tag = Tag::second_stage(unit, id, slot);
                self.collect(tag, edited.span, edited.leaf_only);
            }
        }
        self.side.domains.owe_flush_of(|domain| {
            matches!(domain.kind, DomainKind::Nested { .. }) && is_owed(domain.unit)
        });
        let limit = self.side.shadow_table_limit;
        for shadow in self.side.shadows.iter_mut() {
            // Everything joins whatever is pending, so there is room for it.
            _ = shadow.mark(Span::EVERYTHING, limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn span(first: u64, last: u64) -> Span {
        Span { first, last }
    }

    #[test]
    fn every_page_of_the_range_is_named_and_no_other() {
        for (first, len_bytes, expected) in [
            (0x5000, 0x1000, span(5, 5)),
            (0x5000, 0x2000, span(5, 6)),
            (0x20_0000, 0x20_0000, span(0x200, 0x3ff)),
            (0x5000, 0, Span::EVERYTHING),
            (
                u64::MAX - 0xfff,
                u64::MAX,
                span(Span::EVERYTHING.last, Span::EVERYTHING.last),
            ),
        ] {
            assert_eq!(span_of(Gpa::new(first), len_bytes), expected, "{first:#x}");
        }
    }
}
