//! In which order fetched descriptors are executed (§6.5.2.12).

use crate::bits::{bit, field};
use crate::queue::{InFlight, kind};
use crate::unit::Unit;

/// In which order hardware executes what it has fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueOrder {
    /// As queued, one after the other.
    InOrder,
    /// In any order that §6.5.2.12 allows, pseudo-random and repeatable by the seed: a wait
    /// completes before an earlier wait does, or before what precedes that one.
    Shuffled,
}

/// Whether a descriptor must not run before an earlier one has. `behind_wait`: a wait lies between
/// them.
fn must_follow(later: &[u64; 4], earlier: &[u64; 4], behind_wait: bool) -> bool {
    const WAIT: u64 = 5;
    let (later, first) = (kind(later[0]), kind(earlier[0]));
    if first == WAIT {
        // FN.
        return bit(earlier[0], 6);
    }
    match later {
        WAIT => !behind_wait,
        7 => first == 1,
        2 | 6 => matches!(first, 1 | 7),
        // Responses and device-TLB invalidations go out in the order of the queue (§7.8).
        3 => matches!(first, 2 | 4 | 9),
        8 => matches!(first, 2 | 4 | 6 | 9),
        9 => matches!(first, 3 | 8),
        _ => false,
    }
}

impl Unit {
    /// The next descriptor to execute, if one may be by now.
    pub(crate) fn choose_descriptor(&mut self, manual: bool) -> Option<usize> {
        let now = self.clock.now();
        let is_due = |descriptor: &InFlight| match descriptor.deadline {
            Some(deadline) => deadline <= now,
            None => descriptor.due.is_over(now, manual),
        };
        let in_flight = &self.queue.in_flight;
        if self.config.queue_order == QueueOrder::InOrder {
            return in_flight.front().is_some_and(is_due).then_some(0);
        }
        let may_run = |index: usize, descriptor: &InFlight| {
            let mut behind_wait = false;
            is_due(descriptor)
                && (0..index).rev().all(|before| {
                    let earlier = &in_flight[before].words;
                    let waits = must_follow(&descriptor.words, earlier, behind_wait);
                    behind_wait |= field(earlier[0], 3, 0) == 5;
                    !waits
                })
        };
        let ready: Vec<usize> = in_flight
            .iter()
            .enumerate()
            .filter(|(index, descriptor)| may_run(*index, descriptor))
            .map(|(index, _)| index)
            .collect();
        let chosen = self.queue.random(self.config.seed) % ready.len().max(1) as u64;
        ready.get(chosen as usize).copied()
    }

    /// Devices repeat their requests: what was invalidated too early is cached again.
    pub(crate) fn repeat_requests(&mut self) {
        if self.registers.translation_enabled() {
            for request in self.busy.clone() {
                // Blocked ones are not recorded: nobody asked for them.
                let _ = self.translate(&request);
            }
        }
    }
}
