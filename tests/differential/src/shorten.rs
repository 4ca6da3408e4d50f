//! Shortens a program that fails.

use vtd_qtest::Machine;

use crate::configuration::Unit;
use crate::driver::{Failure, run};
use crate::program::Program;

/// Runs that shortening may take.
const RUNS: usize = 300;

/// The shortest program found that fails in the same way, by removing steps, many at first.
pub fn shorten(
    program: &Program,
    failure: &Failure,
    unit: &Unit,
    machine: &mut Machine,
) -> Program {
    let mut shortest = program.clone();
    // What comes after the failing step has no part in it.
    shortest.steps.truncate(failure.step + 1);
    let mut left = RUNS;
    let mut count = shortest.steps.len() / 2;
    while count > 0 {
        let mut at = 0;
        while at < shortest.steps.len() && left > 0 {
            let mut shorter = shortest.clone();
            let end = shorter.steps.len().min(at + count);
            shorter.steps.drain(at..end);
            left -= 1;
            let outcome = run(&shorter, unit, machine, false);
            if outcome
                .failure
                .is_some_and(|other| other.kind == failure.kind)
            {
                shortest = shorter;
            } else {
                at += count;
            }
        }
        count /= 2;
    }
    shortest
}
