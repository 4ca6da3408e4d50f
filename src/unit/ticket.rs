//! The right to ask whether a submission to the invalidation queue is done.

/// The right to ask whether a submission is done.
///
/// Dropping it loses nothing but the answer. It is kept by every binding that waits, and therefore
/// takes 12 bytes of no alignment.
#[must_use = "nothing is known to be invalidated before the ticket is confirmed"]
#[derive(Debug)]
pub struct Ticket {
    /// The lower half of the submission's number, which is what its wait stores.
    sequence: [u8; 4],
    /// The status word that it stores to.
    word: [u8; 2],
    /// In ticks.
    deadline: [u8; 6],
}

/// Binary logarithm of the nanoseconds of a tick: 48 bits of them hold any time of 64 bits.
const TICK_ORDER: u32 = 16;

impl Ticket {
    pub(super) fn new(sequence: u64, word: u16, deadline_nanoseconds: u64) -> Self {
        // Rounded up, so that nothing is late before its time.
        let ticks = (deadline_nanoseconds >> TICK_ORDER).saturating_add(1);
        let [a, b, c, d, e, f, ..] = ticks.min((1 << 48) - 1).to_le_bytes();
        Self {
            sequence: (sequence as u32).to_le_bytes(),
            word: word.to_le_bytes(),
            deadline: [a, b, c, d, e, f],
        }
    }

    /// The number of the submission, counted from 1 by the unit, modulo 2^32.
    pub const fn sequence(&self) -> u32 {
        u32::from_le_bytes(self.sequence)
    }

    pub(super) const fn word(&self) -> u16 {
        u16::from_le_bytes(self.word)
    }

    /// Whether the time is up; at most 66 microseconds late.
    pub(super) const fn is_late(&self, now_nanoseconds: u64) -> bool {
        let [a, b, c, d, e, f] = self.deadline;
        now_nanoseconds >> TICK_ORDER >= u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_late_from_its_deadline_on_and_at_most_a_tick_after_it() {
        for deadline in [
            0,
            1,
            65_535,
            65_536,
            1_700_000_000_000_000_000,
            u64::MAX - 65_536,
        ] {
            let ticket = Ticket::new(1, 2, deadline);
            assert!(!ticket.is_late(deadline.saturating_sub(1)), "{deadline}");
            assert!(ticket.is_late(deadline + 65_536), "{deadline}");
        }
    }
}
