//! The scenarios, in the order of the requirements. Each file holds one section of them.

mod admission;
mod binding;
mod bring_up;
mod costs;
mod device_switches;
mod device_tlbs;
mod driven_units;
mod explained;
mod faults;
mod forwarding;
mod guard_rules;
mod hostile_guests;
mod interrupts;
mod isolation;
mod job;
mod memory_edits;
mod mode_changes;
mod page_requests;
mod platform;
mod queue_and_registers;
mod refusal;
mod replacement;
mod shadow_slices;
mod shadows;
mod storms;
mod walk;

use crate::harness::{Scenario, Standing};

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
        memory_edits::SCENARIOS,
        device_switches::SCENARIOS,
        device_tlbs::SCENARIOS,
        costs::SCENARIOS,
        shadows::SCENARIOS,
        shadow_slices::SCENARIOS,
        queue_and_registers::SCENARIOS,
        faults::SCENARIOS,
        explained::SCENARIOS,
        page_requests::SCENARIOS,
        hostile_guests::SCENARIOS,
        interrupts::SCENARIOS,
        isolation::SCENARIOS,
        driven_units::SCENARIOS,
        bring_up::SCENARIOS,
        guard_rules::SCENARIOS,
        admission::SCENARIOS,
        storms::SCENARIOS,
        platform::SCENARIOS,
    ]
    .concat()
}

/// A scenario that there is nothing to run of until the named work begins.
const fn unwritten(numbers: &'static str, name: &'static str, why: &'static str) -> Scenario {
    Scenario {
        numbers,
        name,
        needs: &[],
        standing: Standing::Unwritten(why),
        run: |_| {},
    }
}
