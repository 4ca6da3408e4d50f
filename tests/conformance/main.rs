//! Scenarios of the whole component, written once and run on every bench: a guest's registers and
//! memory on one side, a device's DMA on the other.
//!
//! This is a test target with its own harness: `cargo test --test conformance` runs the model,
//! `-- --help` tells the rest. `cargo xtask conform` sets up the other benches first.

mod bench;
mod harness;
mod lab;
mod scenarios;
// The image's guest driver: the same code on every bench.
#[path = "../../src/bin/microhv/builtin/guest/mod.rs"]
mod driver;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use bench::{ModelProfile, Profile, QtestProfile};
use harness::{Outcome, Scenario};
use vtd_qtest::Qemu;

/// Runs scenarios on benches; exit status 0 only if nothing failed.
#[derive(Parser)]
struct Arguments {
    /// Benches to run on: `model`, `qtest`, or part of a profile's name; may be repeated.
    #[arg(long, value_name = "BENCH")]
    bench: Vec<String>,
    /// Numbers (`S12`, `G5`) or parts of names of scenarios to run; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    scenario: Vec<String>,
    /// Where to write the JSON report.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The QEMU of the bench `qtest`; without it, that bench is left out.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Everything after `intel-iommu,` on QEMU's command line: one profile of the bench `qtest`
    /// in place of its own.
    #[arg(long, value_name = "OPTIONS")]
    iommu: Option<String>,
    /// One more `-device` for QEMU; may be repeated.
    #[arg(long, value_name = "ARG")]
    device: Vec<String>,
    /// Threads to run on.
    #[arg(long, value_name = "COUNT")]
    threads: Option<usize>,
    /// Prints only what failed, and the sums.
    #[arg(long)]
    quiet: bool,
    /// Brings the tables of `tests/README.md` in step with the suite, and runs nothing.
    #[arg(long)]
    write_table: bool,
    /// Prints the scenarios and what they need, and runs nothing.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let matches = |scenario: &Scenario| {
        let mut patterns = arguments.scenario.iter();
        arguments.scenario.is_empty() || patterns.any(|pattern| scenario.matches(pattern))
    };
    let scenarios: Vec<_> = scenarios::all().into_iter().filter(matches).collect();
    if arguments.list {
        for scenario in &scenarios {
            println!(
                "{:12} {} {:?}",
                scenario.numbers, scenario.name, scenario.needs
            );
        }
        return ExitCode::SUCCESS;
    }
    if arguments.write_table {
        return write_table(&scenarios);
    }
    let asked = |profile: &dyn Profile| {
        let full = format!("{}/{}", profile.bench(), profile.name());
        let mut patterns = arguments.bench.iter();
        arguments.bench.is_empty() || patterns.any(|pattern| full.contains(pattern.as_str()))
    };
    let mut profiles: Vec<Box<dyn Profile>> = Vec::new();
    for profile in ModelProfile::all() {
        profiles.push(Box::new(profile));
    }
    if let Some(path) = &arguments.qemu {
        let qemu = match Qemu::open(path) {
            Ok(qemu) => qemu,
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        };
        let found = match &arguments.iommu {
            Some(options) => vec![QtestProfile::named_by(&qemu, options)],
            None => QtestProfile::all(&qemu),
        };
        for profile in found {
            profiles.push(Box::new(profile.with_devices(&arguments.device)));
        }
    }
    profiles.retain(|profile| asked(&**profile));
    if scenarios.is_empty() || profiles.is_empty() {
        eprintln!("error: no scenario or no bench is called that");
        return ExitCode::FAILURE;
    }
    let threads = arguments
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let quiet = arguments.quiet;
    let rows = harness::run(&scenarios, &profiles, threads, |row| {
        if !quiet || matches!(row.outcome, Outcome::Fail(_)) {
            harness::print_line(row);
        }
    });
    harness::print_matrix(&rows);
    let mut ok = !rows
        .iter()
        .any(|row| matches!(row.outcome, Outcome::Fail(_)));
    // With benches left out nobody knows.
    if arguments.bench.is_empty() && arguments.qemu.is_some() {
        for early in harness::pending_for_nothing(&rows) {
            println!("FAIL    {early} passes wherever it runs: it is not pending");
            ok = false;
        }
    }
    if arguments.scenario.is_empty() {
        for problem in table_problems(&scenarios) {
            println!("FAIL    {problem}");
            ok = false;
        }
    }
    if let Some(path) = &arguments.report
        && let Err(error) = harness::write_json(&rows, path)
    {
        eprintln!("error: {}: {error}", path.display());
        ok = false;
    }
    if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Where the table of numbers and tests is.
const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/README.md");

fn write_table(scenarios: &[Scenario]) -> ExitCode {
    let result = std::fs::read_to_string(TABLE)
        .and_then(|text| std::fs::write(TABLE, harness::table::updated(&text, scenarios)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {TABLE}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is wrong with the suite as a whole.
fn table_problems(scenarios: &[Scenario]) -> Vec<String> {
    let mut problems: Vec<_> = harness::table::missing(scenarios)
        .into_iter()
        .map(|number| format!("{number} has no scenario"))
        .collect();
    let is_current = std::fs::read_to_string(TABLE)
        .is_ok_and(|text| text == harness::table::updated(&text, scenarios));
    if !is_current {
        problems.push("tests/README.md is not in step with the suite: --write-table".into());
    }
    problems
}
