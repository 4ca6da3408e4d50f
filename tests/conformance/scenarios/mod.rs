//! The scenarios, in the order of the requirements. Each file holds one section of them.

mod binding;

use crate::harness::Scenario;

/// All scenarios.
pub(crate) fn all() -> Vec<Scenario> {
    [binding::SCENARIOS].concat()
}
