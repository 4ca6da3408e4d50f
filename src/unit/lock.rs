//! A unit's locks, and the order in which they are taken.
//!
//! A processor that holds one lock takes only locks behind it in [`Rank`]. So no two processors
//! wait for each other. Test builds of the crate assert it at each lock that any test takes, and the
//! stand-in platform asserts that nothing is called under a lock that may wait.
//!
//! | called under a lock | not called under any |
//! |---|---|
//! | `Registers`; `HostMemory`; `Platform::now_nanoseconds`; `log` | `Frames`; `Platform::pause`, `deliver_interrupt`, `set_bus_master`; anything that waits for hardware |
//!
//! # Interrupt handlers
//!
//! The locks spin and leave interrupts as they are. A handler that calls a unit while the code that it
//! interrupted, on the same processor, holds a lock of that unit would spin for ever. So the
//! embedder calls units either with interrupts off, or from no handler at all: a handler of a fault
//! event or of an invalidation event only notes that there is work, and `poll` is called later.
//! Handlers that call no unit may run at any time: nothing of a unit depends on how long a lock is
//! held. An implementation of the traits above must not call the unit that calls it.

use spin::{Mutex, MutexGuard};

/// What a lock is for, in the order in which locks are taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Rank {
    /// What is attached, and the root table.
    Tables,
    /// The interrupt remapping table and its slices.
    Interrupts,
    /// Domain-ids. Nothing is taken under it.
    DomainIds,
    /// Reserved memory. Nothing is taken under it.
    Reserved,
    /// The invalidation queue.
    Queue,
    /// Where draining of fault records goes on.
    Faults,
    /// The one command that the unit can work on.
    Commands,
    /// The registers.
    Registers,
}

/// A spinning lock with its place in the order; nothing but the lock outside of test builds.
#[derive(Debug)]
pub(super) struct Lock<T> {
    inner: Mutex<T>,
    #[cfg(test)]
    rank: Rank,
}

impl<T> Lock<T> {
    #[cfg_attr(not(test), allow(unused_variables))]
    pub(super) const fn new(rank: Rank, value: T) -> Self {
        Self {
            inner: Mutex::new(value),
            #[cfg(test)]
            rank,
        }
    }

    #[cfg(not(test))]
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.inner.lock()
    }

    /// As outside of tests, with the order asserted.
    #[cfg(test)]
    pub(super) fn lock(&self) -> Guard<'_, T> {
        held::take(self.rank);
        Guard {
            inner: self.inner.lock(),
            rank: self.rank,
        }
    }
}

#[cfg(test)]
pub(super) struct Guard<'a, T> {
    inner: MutexGuard<'a, T>,
    rank: Rank,
}

#[cfg(test)]
impl<T> core::ops::Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

#[cfg(test)]
impl<T> core::ops::DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(test)]
impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        held::give_back(self.rank);
    }
}

/// The locks that a thread holds.
#[cfg(test)]
pub(super) mod held {
    extern crate std;
    use super::Rank;
    use std::cell::RefCell;
    use std::vec::Vec;

    std::thread_local! {
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn take(rank: Rank) {
        HELD.with_borrow_mut(|held| {
            if let Some(last) = held.iter().max() {
                assert!(*last < rank, "{rank:?} taken under {held:?}");
            }
            held.push(rank);
        });
    }

    pub(super) fn give_back(rank: Rank) {
        HELD.with_borrow_mut(|held| {
            let at = held.iter().rposition(|other| *other == rank);
            held.remove(at.expect("given back twice"));
        });
    }

    /// Asserts that the calling thread holds no lock of any unit.
    pub(in super::super) fn assert_none(caller: &str) {
        HELD.with_borrow(|held| assert!(held.is_empty(), "{caller} called under {held:?}"));
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    // G21: what asserts the order everywhere else.
    #[test]
    fn locks_are_taken_in_their_order_only() {
        let ranks = [
            Rank::Tables,
            Rank::Interrupts,
            Rank::DomainIds,
            Rank::Reserved,
            Rank::Queue,
            Rank::Faults,
            Rank::Commands,
            Rank::Registers,
        ];
        for (first, outer) in ranks.into_iter().enumerate() {
            for (second, inner) in ranks.into_iter().enumerate() {
                let (outer, inner) = (Lock::new(outer, ()), Lock::new(inner, ()));
                let both = catch_unwind(AssertUnwindSafe(|| {
                    let _outer = outer.lock();
                    let _inner = inner.lock();
                    assert!(catch_unwind(|| held::assert_none("test")).is_err());
                }));
                assert_eq!(both.is_ok(), first < second, "{first} {second}");
                held::assert_none("test");
            }
        }
    }
}
