//! Invalidations that are put off and sent together (§6.5.3.6).
//!
//! Everything else of this crate is strict: when a call that takes memory away is done, devices cannot
//! reach it any more. [`DeferredInvalidations`] gives that up for fewer submissions, and only for who
//! names it.

use heapless::Vec;

use super::error::QueueError;
use super::queue::Ticket;
use super::unit::Unit;
use crate::arch::descriptor::{Descriptor, IotlbGranularity};
use crate::arch::id::DomainId;
use crate::mem::{Hypervisor, Registers};
use crate::paging::{InputAddress, Unmapped};

/// Mappings taken from second-stage tables that one unit alone uses, whose invalidation is put off.
///
/// Until [`flush`](Self::flush) returns `true`, devices go on reaching what was unmapped: it must
/// not be given to anyone who does not trust them, and the caller bounds how long that lasts. Not for
/// devices with TLBs of their own, which are not told. Domains are invalidated whole, all of them if
/// more than `DOMAINS` are waiting; `DOMAINS` and a wait have to fit into the unit's queue.
///
/// Dropped, the table pages of what is waiting are lost, and counted.
#[must_use = "devices reach what was unmapped until it is flushed"]
#[derive(Debug)]
pub struct DeferredInvalidations<I, const DOMAINS: usize> {
    domains: Vec<DomainId, DOMAINS>,
    /// More domains are waiting than there is room for.
    is_global: bool,
    waiting: Option<Unmapped<I>>,
    in_flight: Option<(Ticket, Option<Unmapped<I>>)>,
}

impl<I: InputAddress, const DOMAINS: usize> DeferredInvalidations<I, DOMAINS> {
    /// Nothing is put off.
    pub const fn new() -> Self {
        Self {
            domains: Vec::new(),
            is_global: false,
            waiting: None,
            in_flight: None,
        }
    }

    /// Whether nothing is waiting, and nothing on its way.
    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
            && !self.is_global
            && self.waiting.is_none()
            && self.in_flight.is_none()
    }

    /// Puts off what an unmapping owes for one of the domain-ids that use the table; for further ones
    /// see [`put_off_domain`](Self::put_off_domain).
    pub fn put_off<H: Hypervisor>(&mut self, h: &H, domain_id: DomainId, unmapped: Unmapped<I>) {
        self.put_off_domain(domain_id);
        keep(h, &mut self.waiting, unmapped);
    }

    /// Puts off what is owed for one more domain-id that uses a table which something was unmapped
    /// from.
    pub fn put_off_domain(&mut self, domain_id: DomainId) {
        if !self.domains.contains(&domain_id) {
            self.is_global |= self.domains.push(domain_id).is_err();
        }
    }

    /// Sends what is waiting, and asks after what was sent. Does not wait: call it again until it
    /// returns `true`, which means that nothing is outstanding and all that was put off is free.
    ///
    /// # Errors
    ///
    /// As [`Unit::submit`] and [`Unit::poll`]; everything is kept, to try again.
    pub fn flush<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        unit: &Unit<R>,
    ) -> Result<bool, QueueError> {
        if let Some((ticket, unmapped)) = self.in_flight.take() {
            match unit.poll(h, &ticket) {
                Ok(true) => {
                    if let Some(unmapped) = unmapped {
                        unmapped.settle(h);
                    }
                }
                Ok(false) => {
                    self.in_flight = Some((ticket, unmapped));
                    return Ok(false);
                }
                Err(error) => {
                    // For which domains it was is forgotten.
                    self.is_global = true;
                    if let Some(unmapped) = unmapped {
                        keep(h, &mut self.waiting, unmapped);
                    }
                    return Err(error);
                }
            }
        }
        let invalidation = |granularity| Descriptor::Iotlb {
            granularity,
            drain_reads: true,
            drain_writes: true,
        };
        let ticket = if self.is_global {
            unit.submit(h, &[invalidation(IotlbGranularity::Global)])?
        } else if self.domains.is_empty() {
            return Ok(true);
        } else {
            let mut batch = Vec::<Descriptor, DOMAINS>::new();
            for domain_id in &self.domains {
                // As many places as domains.
                _ = batch.push(invalidation(IotlbGranularity::Domain(*domain_id)));
            }
            unit.submit(h, &batch)?
        };
        self.domains.clear();
        self.is_global = false;
        self.in_flight = Some((ticket, self.waiting.take()));
        Ok(false)
    }
}

impl<I: InputAddress, const DOMAINS: usize> Default for DeferredInvalidations<I, DOMAINS> {
    fn default() -> Self {
        Self::new()
    }
}

fn keep<H: Hypervisor, I: InputAddress>(
    h: &H,
    place: &mut Option<Unmapped<I>>,
    unmapped: Unmapped<I>,
) {
    match place {
        Some(before) => before.merge(h, unmapped),
        None => *place = Some(unmapped),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::testing::{Bench, Completion, IQE, OWNER, up};
    use super::*;
    use crate::arch::address::{AddressWidth, Hpa, Iova};
    use crate::paging::{Rights, SecondStage, SecondStageConfig};
    use std::vec::Vec as StdVec;

    fn table(bench: &Bench) -> SecondStage<Iova> {
        let config = SecondStageConfig {
            width: AddressWidth::Bits48,
            input_bits: 48,
            output_bits: 39,
            leaves_2mib: false,
            leaves_1gib: false,
            flush: false,
        };
        let mut table = SecondStage::new(&bench.h, OWNER, config).unwrap();
        for page in 0..4u64 {
            let at = page << 30;
            table
                .map(
                    &bench.h,
                    Iova::new(at),
                    Hpa::new(at),
                    4096,
                    Rights::READ_WRITE,
                )
                .unwrap();
        }
        table
    }

    /// Unmaps a page with the tables that lead to nothing else.
    fn unmap(bench: &Bench, table: &mut SecondStage<Iova>, page: u64) -> Unmapped<Iova> {
        let at = Iova::new(page << 30);
        table.unmap(&bench.h, at, 1 << 30).unwrap()
    }

    fn domains(bench: &Bench) -> StdVec<Option<DomainId>> {
        let executed = bench.take_executed().into_iter();
        executed
            .filter_map(|descriptor| match descriptor {
                Descriptor::Iotlb { granularity, .. } => Some(match granularity {
                    IotlbGranularity::Domain(id) => Some(id),
                    _ => None,
                }),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn what_was_put_off_goes_in_one_batch_and_is_free_when_that_is_confirmed() {
        let bench = up(|_| {});
        let mut table = table(&bench);
        let mut deferred = DeferredInvalidations::<Iova, 2>::new();
        assert_eq!(deferred.flush(&bench.h, &bench.unit), Ok(true));
        let (one, other) = (DomainId::new(1), DomainId::new(2));
        for (page, domain_id) in [(0, one), (1, one), (2, other)] {
            let unmapped = unmap(&bench, &mut table, page);
            deferred.put_off(&bench.h, domain_id, unmapped);
        }
        let charged = bench.h.pool.charged_frames(OWNER);
        assert!(domains(&bench).is_empty(), "nothing is sent before");
        bench.world().completion = Completion::AfterNanoseconds(50_000);
        assert_eq!(deferred.flush(&bench.h, &bench.unit), Ok(false));
        assert_eq!(deferred.flush(&bench.h, &bench.unit), Ok(false));
        assert_eq!(bench.h.pool.charged_frames(OWNER), charged);
        assert_eq!(domains(&bench), [Some(one), Some(other)]);
        bench.world().tick(50_000);
        assert_eq!(deferred.flush(&bench.h, &bench.unit), Ok(true));
        assert!(deferred.is_empty());
        assert!(bench.h.pool.charged_frames(OWNER) < charged);
    }

    #[test]
    fn more_domains_than_there_is_room_for_are_all_invalidated() {
        let bench = up(|_| {});
        let mut deferred = DeferredInvalidations::<Iova, 2>::new();
        for id in 1..=3 {
            deferred.put_off_domain(DomainId::new(id));
        }
        assert_eq!(deferred.flush(&bench.h, &bench.unit), Ok(false));
        assert_eq!(domains(&bench), [None]);
        assert_eq!(deferred.flush(&bench.h, &bench.unit), Ok(true));
    }

    #[test]
    fn a_flush_that_fails_keeps_everything_for_the_next() {
        let bench = up(|_| {});
        let mut table = table(&bench);
        let mut deferred = DeferredInvalidations::<Iova, 2>::new();
        let unmapped = unmap(&bench, &mut table, 0);
        deferred.put_off(&bench.h, DomainId::new(1), unmapped);
        let charged = bench.h.pool.charged_frames(OWNER);
        bench.world().error_in = Some((0, IQE));
        assert_eq!(deferred.flush(&bench.h, &bench.unit), Ok(false));
        assert!(deferred.flush(&bench.h, &bench.unit).is_err());
        assert_eq!(bench.h.pool.charged_frames(OWNER), charged);
        assert!(!deferred.is_empty());
        bench.take_executed();
        assert_eq!(deferred.flush(&bench.h, &bench.unit), Ok(false));
        assert_eq!(domains(&bench), [None], "for which domains is forgotten");
        assert_eq!(deferred.flush(&bench.h, &bench.unit), Ok(true));
        assert!(bench.h.pool.charged_frames(OWNER) < charged);
    }
}
