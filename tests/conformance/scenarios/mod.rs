//! The scenarios, in the order of the requirements. Each file holds one section of them.

mod binding;
mod costs;
mod forwarding;
mod job;
mod mode_changes;

use crate::harness::Scenario;

/// All scenarios.
pub(crate) fn all() -> Vec<Scenario> {
    [
        job::SCENARIOS,
        binding::SCENARIOS,
        mode_changes::SCENARIOS,
        forwarding::SCENARIOS,
        costs::SCENARIOS,
    ]
    .concat()
}
