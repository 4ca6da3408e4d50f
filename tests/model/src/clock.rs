//! The time that everything in a test shares.

use std::cell::Cell;
use std::rc::Rc;

/// A clock in nanoseconds that moves only when told. Clones show the same time.
#[derive(Clone, Default, Debug)]
pub struct Clock(Rc<Cell<u64>>);

impl Clock {
    /// A clock at 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.0.get()
    }

    /// Moves the clock on.
    pub fn advance(&self, nanoseconds: u64) {
        self.0.set(self.0.get().saturating_add(nanoseconds));
    }
}
