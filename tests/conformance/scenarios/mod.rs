//! The scenarios, in the order of the requirements. Each file holds one section of them.

mod binding;
mod costs;
mod faults;
mod forwarding;
mod job;
mod mode_changes;
mod refusal;
mod replacement;
mod walk;
mod queue_and_registers;

use crate::harness::Scenario;

/// All scenarios.
pub(crate) fn all() -> Vec<Scenario> {
    [
        job::SCENARIOS,
        binding::SCENARIOS,
        replacement::SCENARIOS,
        refusal::SCENARIOS,
        walk::SCENARIOS,
        mode_changes::SCENARIOS,
        forwarding::SCENARIOS,
        costs::SCENARIOS,
        queue_and_registers::SCENARIOS,
        faults::SCENARIOS,
    ]
    .concat()
}
