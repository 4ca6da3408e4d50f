//! The suite's own harness: scenarios, what they need, and how each run of one ended.

mod report;
mod runner;
mod scenario;
pub(crate) mod table;

pub(crate) use report::{print_line, print_matrix, write_json};
pub(crate) use runner::{Outcome, pending_for_nothing, run};
pub(crate) use scenario::{Need, Scenario, Standing, scenario};
