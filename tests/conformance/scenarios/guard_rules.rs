//! later
use crate::harness::Scenario;
pub(super) const SCENARIOS: &[Scenario] = &[];
