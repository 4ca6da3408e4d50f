//! `vtd-differential`: the model of a VT-d unit against QEMU's.

use std::fs;
use std::panic;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::Instant;

use clap::Parser;
use serde::Serialize;
use vtd_differential::{CONFIGURATIONS, Configuration, Unit, deviation, generate, run, shorten};
use vtd_qtest::{Machine, Qemu, Version};

/// Programs of each configuration in a quick run and in a full one.
const QUICK: u64 = 50;
const FULL: u64 = 400;

/// The version that the known deviations are of.
const MEASURED: Version = Version {
    major: 10,
    minor: 0,
};

/// How often a machine is tried to start.
const STARTS: u32 = 3;

/// Runs random programs on the model of a VT-d unit and on QEMU's, and compares.
///
/// Exit status: 0 if nothing differs but what is known, 1 if something does, 2 if it was skipped:
/// there is no QEMU, or one whose deviations are not known.
#[derive(Parser)]
struct Arguments {
    /// How many programs of each configuration.
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// Runs the program of this seed alone, with a trace of both sides.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// The first seed of several.
    #[arg(long, value_name = "S", default_value_t = 1)]
    first: u64,
    /// Runs all configurations, and more programs of each.
    #[arg(long)]
    full: bool,
    /// Runs only configurations whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// The QEMU to use; without it, that of VTD_NEST_QEMU or of the search path.
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// Runs on a QEMU of another version than the known deviations are of, too.
    #[arg(long)]
    any_version: bool,
    /// Where to write a JSON report.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// The report.
#[derive(Default, Serialize)]
struct Report {
    ok: bool,
    qemu: String,
    configurations: Vec<Done>,
    deviations: Vec<Met>,
}

/// What became of a configuration.
#[derive(Serialize)]
struct Done {
    name: &'static str,
    programs: u64,
    dma: u64,
    /// DMAs that moved data on both sides.
    moved: u64,
    seconds: f64,
    failures: Vec<Failed>,
}

/// A program that failed.
#[derive(Serialize)]
struct Failed {
    seed: u64,
    step: usize,
    difference: String,
    /// The program, shortened.
    program: String,
}

/// How often a known deviation was met.
#[derive(Serialize)]
struct Met {
    name: &'static str,
    what: &'static str,
    count: u64,
}

/// What is running, should it panic: where, and QEMU's process.
static RUNNING: Mutex<Option<(String, u32)>> = Mutex::new(None);

fn set_running(what: Option<(String, u32)>) {
    if let Ok(mut running) = RUNNING.lock() {
        *running = what;
    }
}

/// A panic ends this process at once: says where it was, and ends the emulator it started.
fn install_panic_hook() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |information| {
        default(information);
        if let Ok(mut running) = RUNNING.try_lock()
            && let Some((place, process_id)) = running.take()
        {
            eprintln!("while running {place}");
            let _ = Command::new("kill").arg(process_id.to_string()).status();
        }
    }));
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    install_panic_hook();
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
    if qemu.version() != MEASURED && !arguments.any_version {
        println!(
            "skipped: the known deviations are those of QEMU {MEASURED}, this is {}; \
             `--any-version` runs all the same",
            qemu.version()
        );
        return ExitCode::from(2);
    }
    let mut report = Report {
        ok: true,
        qemu: qemu.version().to_string(),
        ..Report::default()
    };
    let mut counts = vec![0; deviation::ALL.len()];
    for configuration in &CONFIGURATIONS {
        let asked = match &arguments.only {
            Some(part) => configuration.name.contains(part.as_str()),
            None => arguments.full || !configuration.full_only,
        };
        if !asked {
            continue;
        }
        match run_configuration(configuration, &qemu, &arguments, &mut counts) {
            Ok(Some(done)) => {
                report.ok &= done.failures.is_empty();
                println!(
                    "{}: {} programs, {} DMA ({} moved data), {} failed, {:.1} s",
                    done.name,
                    done.programs,
                    done.dma,
                    done.moved,
                    done.failures.len(),
                    done.seconds
                );
                report.configurations.push(done);
            }
            Ok(None) => println!("{}: not in this QEMU", configuration.name),
            Err(error) => {
                report.ok = false;
                println!("{}: {error}", configuration.name);
            }
        }
    }
    report.deviations = deviation::ALL
        .iter()
        .zip(counts)
        .map(|(deviation, count)| Met {
            name: deviation.name,
            what: deviation.what,
            count,
        })
        .collect();
    conclude(&report, &arguments)
}

/// Prints what it comes to, and writes the report.
fn conclude(report: &Report, arguments: &Arguments) -> ExitCode {
    let met = report.deviations.iter().filter(|met| met.count > 0).count();
    let programs: u64 = report.configurations.iter().map(|done| done.programs).sum();
    let dma: u64 = report.configurations.iter().map(|done| done.dma).sum();
    println!(
        "{programs} programs, {dma} DMA, {met} of {} known deviations met",
        report.deviations.len()
    );
    if arguments.full {
        for met in &report.deviations {
            println!("{:>8}  {}: {}", met.count, met.name, met.what);
        }
        for met in report.deviations.iter().filter(|met| met.count == 0) {
            println!("never met: {}", met.name);
        }
    }
    if let Some(path) = &arguments.report {
        let text = serde_json::to_string_pretty(report).unwrap_or_default();
        if let Err(error) = fs::write(path, text + "\n") {
            println!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the programs of one configuration; `None` if this QEMU has no such unit.
fn run_configuration(
    configuration: &Configuration,
    qemu: &Qemu,
    arguments: &Arguments,
    counts: &mut [u64],
) -> Result<Option<Done>, String> {
    let Some(options) = configuration.options(qemu) else {
        return Ok(None);
    };
    let started = Instant::now();
    let mut machine = (1..STARTS)
        .find_map(|_| Machine::new(&options).ok())
        .map_or_else(|| Machine::new(&options), Ok)
        .map_err(|error| error.to_string())?;
    let unit = Unit::read(&machine.registers(), configuration);
    let count = arguments
        .seeds
        .unwrap_or(if arguments.full { FULL } else { QUICK });
    let seeds = match arguments.seed {
        Some(seed) => seed..seed.saturating_add(1),
        None => arguments.first..arguments.first.saturating_add(count),
    };
    let mut done = Done {
        name: configuration.name,
        programs: 0,
        dma: 0,
        moved: 0,
        seconds: 0.0,
        failures: Vec::new(),
    };
    for seed in seeds {
        let place = format!("--only {} --seed {seed}", configuration.name);
        set_running(Some((place.clone(), machine.process_id())));
        let program = generate(seed, &unit);
        let outcome = run(&program, &unit, &mut machine, arguments.seed.is_some());
        done.programs += 1;
        done.dma += outcome.dma;
        done.moved += outcome.moved;
        for (sum, count) in counts.iter_mut().zip(&outcome.deviations) {
            *sum += count;
        }
        if arguments.seed.is_some() {
            println!("{}: {program}{}", configuration.name, outcome.trace);
        }
        if let Some(failure) = outcome.failure {
            println!("{place}, step {}: {}", failure.step, failure.text);
            let program = shorten(&program, &failure, &unit, &mut machine);
            println!("shortened: {program}");
            let again = run(&program, &unit, &mut machine, true);
            println!("{}", again.trace);
            done.failures.push(Failed {
                seed,
                step: failure.step,
                difference: failure.text,
                program: program.to_string(),
            });
            // More of the same would hide it.
            break;
        }
    }
    set_running(None);
    done.seconds = started.elapsed().as_secs_f64();
    Ok(Some(done))
}
