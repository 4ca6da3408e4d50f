//! The scenarios, in the order of the requirements. Each file holds one section of them.

mod binding;
mod mode_changes;
mod replacement;

use crate::harness::Scenario;

/// All scenarios.
pub(crate) fn all() -> Vec<Scenario> {
    [
        binding::SCENARIOS,
        replacement::SCENARIOS,
        mode_changes::SCENARIOS,
    ]
    .concat()
}
