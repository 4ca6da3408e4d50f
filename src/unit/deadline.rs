//! Bounded waits: by the clock, and by a count should the clock stand still.

use crate::mem::Platform;

/// Polls without any progress of the clock after which a wait ends all the same.
const STILL_CLOCK_POLLS: u32 = 1 << 20;

/// The end of one wait.
#[derive(Debug)]
pub(super) struct Deadline {
    end_nanoseconds: u64,
    last_nanoseconds: u64,
    still_polls: u32,
}

impl Deadline {
    /// A wait of `timeout_nanoseconds` from now on.
    pub(super) fn after<P: Platform>(platform: &P, timeout_nanoseconds: u64) -> Self {
        let now = platform.now_nanoseconds();
        Self {
            end_nanoseconds: now.saturating_add(timeout_nanoseconds),
            last_nanoseconds: now,
            still_polls: 0,
        }
    }

    /// Pauses for one poll; `false` once the wait is over.
    pub(super) fn pause<P: Platform>(&mut self, platform: &P) -> bool {
        let now = platform.now_nanoseconds();
        if now == self.last_nanoseconds {
            self.still_polls = self.still_polls.saturating_add(1);
        } else {
            self.last_nanoseconds = now;
            self.still_polls = 0;
        }
        if now >= self.end_nanoseconds || self.still_polls >= STILL_CLOCK_POLLS {
            return false;
        }
        platform.pause();
        true
    }
}
