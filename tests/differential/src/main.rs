//! `vtd-differential`: the model of a VT-d unit against QEMU's.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde::Serialize;
use vtd_differential::{CONFIGURATIONS, Configuration, Outcome, Program, Unit, deviation, run};
use vtd_qtest::{Machine, Qemu};

/// Programs of each configuration: in a quick run, and in a full one.
const QUICK: u64 = 40;
const FULL: u64 = 1000;

/// Runs random programs on the model of a VT-d unit and on QEMU's, and compares.
///
/// The exit status is 0 if nothing differs but what is known, 1 if something does, and 2 if there
/// is no QEMU to run on.
#[derive(Parser)]
struct Arguments {
    /// Programs of each configuration.
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// Runs the program of this seed alone, with a trace.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// The first seed.
    #[arg(long, value_name = "S", default_value_t = 1)]
    first: u64,
    /// Runs more configurations, and more programs of each.
    #[arg(long)]
    full: bool,
    /// Runs only configurations whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// The QEMU to use; without it, that of `VTD_NEST_QEMU` or the search path.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Where to write the JSON report.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Goes on after a failure.
    #[arg(long)]
    keep_going: bool,
}

/// What became of a configuration.
#[derive(Serialize)]
struct Done {
    configuration: &'static str,
    programs: u64,
    dma: u64,
    seconds: f64,
    failures: Vec<Failed>,
}

/// A program that failed.
#[derive(Serialize)]
struct Failed {
    seed: u64,
    /// What differs.
    difference: String,
    /// Its steps after shortening.
    program: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let qemu = match &arguments.qemu {
        Some(path) => Qemu::open(path),
        None => Qemu::find(),
    };
    let qemu = match qemu {
        Ok(qemu) => qemu,
        Err(reason) => {
            println!("skipped: {reason}");
            return ExitCode::from(2);
        }
    };
    let mut deviations = vec![0; deviation::ALL.len()];
    let mut ok = true;
    for configuration in CONFIGURATIONS {
        let asked = arguments
            .only
            .as_ref()
            .is_none_or(|part| configuration.name.contains(part.as_str()));
        if !asked || configuration.full_only && !arguments.full && arguments.only.is_none() {
            continue;
        }
        let Some(options) = configuration.options(&qemu) else {
            println!("{}: not in this QEMU", configuration.name);
            continue;
        };
        let mut machine = Machine::new(&options).unwrap();
        let unit = Unit::read(&machine.registers(), &configuration);
        let start = Instant::now();
        let seeds = match arguments.seed {
            Some(seed) => seed..seed + 1,
            None => arguments.first..arguments.first + arguments.seeds.unwrap_or(QUICK),
        };
        let mut dma = 0;
        let mut failed = 0;
        for seed in seeds.clone() {
            let program = vtd_differential::generate(seed, &unit);
            let outcome = run(&program, &unit, &mut machine, arguments.seed.is_some());
            dma += outcome.dma;
            for (sum, count) in deviations.iter_mut().zip(&outcome.deviations) {
                *sum += count;
            }
            if arguments.seed.is_some() {
                println!("{program}\n{}", outcome.trace);
            }
            if let Some((step, difference)) = outcome.failure {
                failed += 1;
                println!("{} seed {seed}, step {step}: {difference}", configuration.name);
                if !arguments.keep_going {
                    return ExitCode::FAILURE;
                }
            }
        }
        println!("{}: {dma} DMA, {failed} failed, {:.1} s", configuration.name, start.elapsed().as_secs_f64());
    }
    for (d, n) in deviation::ALL.iter().zip(&deviations) { println!("{n:6} {}", d.name); }
    ExitCode::SUCCESS
}
