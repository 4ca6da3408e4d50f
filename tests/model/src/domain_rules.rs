//! Which entries may share a domain-id or a root (§6.2.2.1, §6.2.3.1).
//!
//! Every valid entry that was fetched is remembered until an invalidation that covers its cached
//! copy, in every cache mode: as long as hardware may hold two entries, they must agree.

use std::collections::BTreeMap;

use vtd_nest::arch::capability::CapabilityField as Cap;
use vtd_nest::arch::id::{DomainId, SourceId};

use crate::bits::{bit, field, page};
use crate::unit::Unit;
use crate::violation::Violation;

/// The fields of a PASID-table entry that the rules are about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    domain: u16,
    translation: u64,
    width: u64,
    second_root: u64,
    second_accessed: bool,
    first_root: u64,
    first_paging: u64,
    extended_accessed: bool,
}

impl Seen {
    fn of(words: &[u64; 8]) -> Self {
        Self {
            domain: words[1] as u16,
            translation: field(words[0], 8, 6),
            width: field(words[0], 4, 2),
            second_root: page(words[0]),
            second_accessed: bit(words[0], 9),
            first_root: page(words[2]),
            first_paging: field(words[2], 3, 2),
            extended_accessed: bit(words[2], 7),
        }
    }

    fn has_first_stage(&self) -> bool {
        matches!(self.translation, 1 | 3)
    }

    fn has_second_stage(&self) -> bool {
        matches!(self.translation, 2 | 3)
    }
}

#[derive(Default)]
pub(crate) struct DomainRules {
    pasids: BTreeMap<(u16, u32), Seen>,
    /// Legacy mode: domain-id, AW and root by source-id.
    contexts: BTreeMap<u16, (u16, u64, u64)>,
}

impl DomainRules {
    pub(crate) fn clear(&mut self) {
        self.pasids.clear();
        self.contexts.clear();
    }

    pub(crate) fn forget_contexts(&mut self) {
        self.contexts.clear();
    }

    pub(crate) fn forget_pasids(&mut self, domain: Option<u16>, pasid: Option<u32>) {
        self.pasids.retain(|key, seen| {
            !(domain.is_none_or(|domain| seen.domain == domain)
                && pasid.is_none_or(|pasid| key.1 == pasid))
        });
    }
}

impl Unit {
    /// A legacy context entry that is not pass-through was fetched.
    pub(crate) fn check_context_rules(&mut self, source_id: u16, words: &[u64; 2]) {
        let domain = field(words[1], 23, 8) as u16;
        let entry = (domain, field(words[1], 2, 0), page(words[0]));
        if domain == 0 && self.config.has_cap(Cap::CACHING_MODE) {
            self.violation(Violation::DomainZeroInCachingMode {
                source_id: SourceId::from_u16(source_id),
            });
        }
        let differing = self
            .domains
            .contexts
            .iter()
            .find(|(other, seen)| **other != source_id && seen.0 == domain && **seen != entry)
            .map(|(other, _)| *other);
        if let Some(other) = differing {
            self.violation(Violation::DomainSecondStageDiffers {
                domain_id: DomainId::new(domain),
                first: SourceId::from_u16(other),
                second: SourceId::from_u16(source_id),
            });
        }
        self.domains.contexts.insert(source_id, entry);
    }

    /// A valid PASID-table entry was fetched.
    pub(crate) fn check_pasid_rules(&mut self, source_id: u16, pasid: u32, words: &[u64; 8]) {
        let new = Seen::of(words);
        let domain_id = DomainId::new(new.domain);
        let second = SourceId::from_u16(source_id);
        if new.domain == 0 && self.config.has_cap(Cap::CACHING_MODE) {
            self.violation(Violation::DomainZeroInCachingMode { source_id: second });
        }
        let attributes = (words[1] >> 32) as u32;
        let has_reserved_type = (0..8).any(|index| matches!(attributes >> (4 * index) & 7, 2 | 3));
        if has_reserved_type {
            self.violation(Violation::ReservedPageAttribute {
                source_id: second,
                value: attributes,
            });
        }
        let mut found = Vec::new();
        for (&(other, other_pasid), seen) in &self.domains.pasids {
            if (other, other_pasid) == (source_id, pasid) {
                continue;
            }
            let first = SourceId::from_u16(other);
            if seen.domain == new.domain {
                if seen.has_second_stage() != new.has_second_stage() {
                    found.push(Violation::DomainTypesMixed { domain_id });
                }
                if (seen.second_root, seen.width) != (new.second_root, new.width) {
                    found.push(Violation::DomainSecondStageDiffers {
                        domain_id,
                        first,
                        second,
                    });
                }
                let first_stage = |s: &Seen| {
                    let root = (s.first_root, s.first_paging);
                    (s.translation, s.has_first_stage().then_some(root))
                };
                if other != source_id
                    && other_pasid == pasid
                    && first_stage(seen) != first_stage(&new)
                {
                    found.push(Violation::DomainFirstStageDiffers {
                        domain_id,
                        pasid,
                        first,
                        second,
                    });
                }
            }
            let shares_first_root = seen.has_first_stage()
                && new.has_first_stage()
                && seen.first_root == new.first_root
                && seen.translation == new.translation
                && (seen.translation == 1 || seen.second_root == new.second_root);
            if shares_first_root
                && (seen.first_paging, seen.extended_accessed)
                    != (new.first_paging, new.extended_accessed)
            {
                found.push(Violation::FirstStageRootDiffers {
                    root: new.first_root,
                });
            }
            if seen.has_second_stage()
                && new.has_second_stage()
                && seen.second_root == new.second_root
                && seen.second_accessed != new.second_accessed
            {
                found.push(Violation::SecondStageRootDiffers {
                    root: new.second_root,
                });
            }
        }
        self.violations.append(&mut found);
        self.domains.pasids.insert((source_id, pasid), new);
    }
}
