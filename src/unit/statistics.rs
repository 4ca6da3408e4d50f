//! Counters of one unit.

use core::sync::atomic::{AtomicU64, Ordering};

/// Frames lost because the token that owned them was dropped, or because hardware never confirmed
/// an invalidation. Stays 0 in a correct program on working hardware.
static LOST_TABLE_FRAMES: AtomicU64 = AtomicU64::new(0);

/// Number of table frames lost since the start, over all units.
pub fn lost_table_frames() -> u64 {
    LOST_TABLE_FRAMES.load(Ordering::Relaxed)
}

pub(super) fn add_lost_table_frames(frames: u64) {
    LOST_TABLE_FRAMES.fetch_add(frames, Ordering::Relaxed);
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        /// What a unit has done since it was probed.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct UnitStatistics {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> UnitStatistics {
                UnitStatistics { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Batches handed to the invalidation queue.
    submissions;
    /// Descriptors in those batches, the final waits not counted.
    descriptors;
    /// Submissions refused because the queue or the status words were full.
    full;
    /// Waits of a processor for a submission.
    waits;
    /// Submissions that were not confirmed in time.
    timeouts;
    /// Times that the queue stopped at a descriptor (`IQE`).
    queue_errors;
    /// Device-TLB invalidations that timed out (`ITE`).
    device_timeouts;
    /// Unexpected device-TLB completions (`ICE`).
    completion_errors;
    /// Fault records drained.
    faults;
    /// Times that faults went unrecorded (`PFO`).
    fault_overflows;
    /// Devices whose faults were no longer recorded because there were too many.
    silenced;
    /// Devices attached.
    attached;
    /// Devices whose tables were released after detaching.
    released;
    /// Devices blocked by their context entry outside of detaching.
    blocked;
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}
