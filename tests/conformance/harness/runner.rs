//! Runs scenarios on profiles, each run by itself on a machine of its own.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::scenario::{Scenario, Standing};
use crate::bench::{Description, Profile, StartError};
use crate::lab::Place;

/// Stack of the threads that scenarios run on: machines are built on it.
const STACK_BYTES: usize = 64 << 20;

/// How a run ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Pass,
    /// The first difference.
    Fail(String),
    /// What the bench lacks.
    Skip(String),
    /// The work that it waits for.
    Pending(String),
}

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) number: &'static str,
    pub(crate) name: &'static str,
    pub(crate) bench: &'static str,
    pub(crate) profile: String,
    pub(crate) outcome: Outcome,
    /// It ran, whatever that counts as.
    pub(crate) ran: bool,
    /// A pending scenario that passed here.
    pub(crate) passed_early: bool,
    pub(crate) time: Duration,
}

thread_local! {
    /// Where the last panic of this thread was.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs each scenario on each profile with this many threads; `done` gets each row as it ends.
/// Rows come back in the order of scenarios, then profiles.
pub(crate) fn run(
    scenarios: &[Scenario],
    profiles: &[Box<dyn Profile>],
    threads: usize,
    done: impl Fn(&Row) + Sync,
) -> Vec<Row> {
    panic::set_hook(Box::new(|info| {
        let place = info
            .location()
            .map_or_else(String::new, |at| format!(" ({}:{})", at.file(), at.line()));
        let message = message(info.payload());
        PANIC.with_borrow_mut(|last| *last = Some(format!("{message}{place}")));
    }));
    let jobs: Vec<_> = scenarios
        .iter()
        .flat_map(|scenario| (0..profiles.len()).map(move |profile| (scenario, profile)))
        .collect();
    let descriptions: Vec<_> = profiles
        .iter()
        .map(|profile| Description::of(&**profile))
        .collect();
    let rows: Mutex<Vec<(usize, Row)>> = Mutex::default();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let work = || {
                while let Some((index, (scenario, profile))) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(index).map(|job| (index, *job))
                } {
                    let row = run_one(scenario, &*profiles[profile], &descriptions[profile]);
                    let mut rows = rows.lock().unwrap();
                    done(&row);
                    rows.push((index, row));
                }
            };
            let builder = thread::Builder::new().stack_size(STACK_BYTES);
            builder.spawn_scoped(scope, work).expect("a thread");
        }
    });
    // The default hook comes back.
    let _ = panic::take_hook();
    let mut rows = rows.into_inner().unwrap();
    rows.sort_by_key(|(index, _)| *index);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn run_one(
    scenario: &Scenario,
    profile: &dyn Profile,
    described: &Result<Description, StartError>,
) -> Row {
    let started = Instant::now();
    let (mut ran, mut passed_early) = (false, false);
    let outcome = match (ready(scenario, profile, described), scenario.standing) {
        (_, Standing::Unwritten(why)) => Outcome::Pending(why.into()),
        (Err(outcome), _) => outcome,
        (Ok(()), standing) => {
            ran = true;
            match (attempt(scenario, profile), standing) {
                (Ok(()), standing) => {
                    passed_early = standing != Standing::Passes;
                    Outcome::Pass
                }
                (Err(_), Standing::Pending(why)) => Outcome::Pending(why.into()),
                (Err(why), _) => Outcome::Fail(why),
            }
        }
    };
    Row {
        number: scenario.number(),
        name: scenario.name,
        bench: profile.bench(),
        profile: profile.name(),
        outcome,
        ran,
        passed_early,
        time: started.elapsed(),
    }
}

/// Whether the scenario can run on this profile; if not, how that counts.
fn ready(
    scenario: &Scenario,
    profile: &dyn Profile,
    described: &Result<Description, StartError>,
) -> Result<(), Outcome> {
    let described = described.as_ref();
    let described = described.map_err(|error| Outcome::Fail(format!("no bench: {error}")))?;
    for need in scenario.needs {
        if let Some(why) = need.missing(described) {
            return Err(Outcome::Skip(why));
        }
    }
    if let Some(why) = profile.deviation(scenario.number()) {
        return Err(Outcome::Skip(format!("deviation: {why}")));
    }
    Ok(())
}

fn attempt(scenario: &Scenario, profile: &dyn Profile) -> Result<(), String> {
    let place = Place { profile };
    panic::catch_unwind(AssertUnwindSafe(|| (scenario.run)(place))).map_err(|payload| {
        let last = PANIC.with_borrow_mut(Option::take);
        last.unwrap_or_else(|| message(&*payload))
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".into())
}

/// Pending scenarios that passed on every profile that could run them.
pub(crate) fn pending_for_nothing(rows: &[Row]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for row in rows.iter().filter(|row| row.passed_early) {
        let same = |other: &&Row| other.number == row.number && other.name == row.name;
        let still_fails = rows.iter().filter(same).any(|other| {
            matches!(other.outcome, Outcome::Pending(_)) && other.ran && !other.passed_early
        });
        let name = format!("{} {}", row.number, row.name);
        if !still_fails && !found.contains(&name) {
            found.push(name);
        }
    }
    found
}
