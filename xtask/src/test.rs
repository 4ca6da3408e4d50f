//! `cargo xtask test`: every check there is, each a step with a time, a summary at the end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};
use clap::Args;
use console::style;
use serde::Serialize;

use crate::MachineArguments;
use crate::command::{ask, cargo, check};
use crate::configuration::Configuration;
use crate::differential::{self, Checked};
use crate::disks::Disks;
use crate::image::{self, TARGET};
use crate::linux::{self, Files};
use crate::progress::{Mark, Progress};
use crate::qemu::{Devices, Qemu};
use crate::report::{self, Report};
use crate::run::Console;
use crate::{conform, mutants, panic_freedom, run, setup};

/// Lines of a failed step's output that are shown again at the end.
const LAST_LINES: usize = 30;

/// Parts of the names of the tests that Miri runs: what is quick there.
const MIRI_TESTS: [&str; 3] = ["mem::", "nest::memory::", "arch::address::"];

/// A machine that the image cannot work on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refused {
    /// There is no remapping unit.
    NoUnit,
    /// There is no device to do DMA with.
    NoEdu,
}

/// Machines that the image has to refuse: a name, the machine, and what its console says.
const REFUSALS: [(&str, Refused, &str); 2] = [
    ("no unit", Refused::NoUnit, "Dmar(NotFound)"),
    ("no device", Refused::NoEdu, "NoDevice"),
];

/// Arguments of `test`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    machine: MachineArguments,
    /// Runs what takes long, too.
    #[arg(long)]
    full: bool,
    /// Runs only steps whose name contains this; may be repeated. Set-up always runs.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Where to write the JSON report.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// How a step ended.
enum Ended {
    Pass(String),
    Skip(String),
    Fail(Error),
}

impl From<Result<String>> for Ended {
    fn from(result: Result<String>) -> Self {
        result.map_or_else(Self::Fail, Self::Pass)
    }
}

/// A step that has been run, as reported.
#[derive(Debug, Serialize)]
struct Done {
    name: String,
    status: &'static str,
    seconds: f64,
    /// A remark, why it was skipped, or the output of its failure.
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<Report>,
    #[serde(skip)]
    mark: Mark,
    #[serde(skip)]
    time: Duration,
}

/// The report of the whole command.
#[derive(Serialize)]
struct Summary<'a> {
    ok: bool,
    steps: &'a [Done],
}

/// Runs the steps one after the other.
#[derive(Default)]
struct Steps {
    done: Vec<Done>,
    /// Parts of names: other steps are skipped. Empty for all.
    only: Vec<String>,
}

impl Steps {
    /// Runs one step; a failure does not keep the next from running.
    fn step(&mut self, name: &str, body: impl FnOnce(&Progress) -> Ended) {
        self.step_with_report(name, |progress| (body(progress), None));
    }

    fn step_with_report(
        &mut self,
        name: &str,
        body: impl FnOnce(&Progress) -> (Ended, Option<Report>),
    ) {
        let started = Instant::now();
        let progress = Progress::start(name);
        let asked = self.only.is_empty() || self.only.iter().any(|part| name.contains(part));
        let (ended, image) = if asked {
            body(&progress)
        } else {
            (Ended::Skip("not asked for".into()), None)
        };
        let (mark, status, why) = match ended {
            Ended::Pass(remark) => (Mark::Pass, "pass", remark),
            Ended::Skip(why) => (Mark::Skip, "skip", why),
            Ended::Fail(error) => (Mark::Fail, "fail", format!("{error:#}")),
        };
        let remark = if mark == Mark::Fail { "" } else { why.as_str() };
        progress.finish(mark, remark);
        let time = started.elapsed();
        self.done.push(Done {
            name: name.to_owned(),
            status,
            seconds: (time.as_secs_f64() * 10.0).round() / 10.0,
            why,
            image,
            mark,
            time,
        });
    }

    fn count(&self, mark: Mark) -> usize {
        self.done.iter().filter(|done| done.mark == mark).count()
    }

    /// Prints the failures, the table and the closing line.
    fn print(&self) {
        for done in self.done.iter().filter(|done| done.mark == Mark::Fail) {
            println!("\n{} {}", Mark::Fail.shown(), style(&done.name).bold());
            for line in last_lines(&done.why, LAST_LINES) {
                println!("    {line}");
            }
        }
        println!();
        let width = self
            .done
            .iter()
            .map(|done| done.name.len())
            .max()
            .unwrap_or(0);
        for done in &self.done {
            let remark = if done.mark == Mark::Fail {
                "see above"
            } else {
                &done.why
            };
            println!(
                "{} {:<width$} {:>7.1} s  {}",
                done.mark.shown(),
                done.name,
                done.time.as_secs_f64(),
                style(remark).dim()
            );
        }
        println!("\n{}", self.closing_line());
    }

    /// The line that a machine reads: counts of steps.
    fn closing_line(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.count(Mark::Pass),
            self.count(Mark::Fail),
            self.count(Mark::Skip)
        )
    }
}

/// Runs every check; `true` if none failed.
pub(crate) fn test(arguments: &Arguments) -> Result<bool> {
    let mut steps = Steps::default();
    let mut qemu = None;
    steps.step("set-up", |_| match set_up(&arguments.machine) {
        Ok(found) => {
            let remark = format!("QEMU {}", found.version());
            qemu = Some(found);
            Ended::Pass(remark)
        }
        Err(error) => Ended::Fail(error),
    });
    steps.only.clone_from(&arguments.only);
    for (name, mut command) in cargo_steps() {
        steps.step(name, |progress| {
            check(&mut command, progress)
                .map(|output| tests_run(&output))
                .into()
        });
    }
    steps.step("scenarios on the model and over qtest", |progress| {
        let everything = conform::Arguments::everything(&arguments.machine);
        conform::check_suite(&everything, qemu.as_ref(), progress)
            .map(|sums| {
                format!(
                    "{} passed, {} skipped, {} pending",
                    sums.passed, sums.skipped, sums.pending
                )
            })
            .into()
    });
    steps.step("model against QEMU", |progress| match &qemu {
        Some(qemu) => match differential::check_model(qemu, arguments.full, progress) {
            Ok(Checked::Agrees(remark)) => Ended::Pass(remark),
            Ok(Checked::Skipped(why)) => Ended::Skip(why),
            Err(error) => Ended::Fail(error),
        },
        None => Ended::Skip("no QEMU".into()),
    });
    steps.step("undefined behaviour (Miri)", miri);
    mutant_steps(&mut steps, arguments);
    steps.step("panic freedom", |progress| {
        panic_freedom::check(progress)
            .map(|figures| figures.to_string())
            .into()
    });
    image_steps(&mut steps, arguments, qemu.as_ref());
    steps.print();
    let ok = steps.count(Mark::Fail) == 0;
    if let Some(path) = &arguments.report {
        let summary = Summary {
            ok,
            steps: &steps.done,
        };
        report::write(path, &summary)?;
    }
    Ok(ok)
}

fn set_up(machine: &MachineArguments) -> Result<Qemu> {
    setup::target()?;
    setup::components()?;
    setup::qemu(machine.qemu())
}

/// The steps that are one cargo command each.
fn cargo_steps() -> Vec<(&'static str, Command)> {
    let with = |arguments: &[&str]| {
        let mut command = cargo();
        command.args(arguments);
        command
    };
    let mut documentation = with(&["doc", "--no-deps", "--workspace"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    vec![
        ("formatting", with(&["fmt", "--all", "--check"])),
        (
            "lints, host",
            with(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
        ),
        (
            "lints, scenarios",
            with(&["clippy", "--test", "conformance", "--", "-D", "warnings"]),
        ),
        ("lints, image", image::clippy_command()),
        ("documentation", documentation),
        (
            "unit tests",
            with(&["test", "--workspace", "--all-targets", "--no-fail-fast"]),
        ),
        (
            "documentation tests",
            with(&["test", "--workspace", "--doc"]),
        ),
        (
            "library for bare metal",
            with(&[
                "build",
                "--package",
                "vtd-nest",
                "--lib",
                "--target",
                TARGET,
            ]),
        ),
    ]
}

/// Runs under Miri what has `unsafe` code below it, where a nightly toolchain with Miri is there.
fn miri(progress: &Progress) -> Ended {
    // Cargo of a toolchain sets this for what it runs; the proxy of another one must choose anew.
    let nightly = || {
        let mut command = Command::new("cargo");
        command
            .arg("+nightly")
            .current_dir(crate::workspace_root())
            .env_remove("CARGO")
            .env_remove("RUSTC")
            .env_remove("RUSTUP_TOOLCHAIN");
        command
    };
    if ask(nightly().arg("--version")).is_none() {
        return Ended::Skip("no nightly toolchain".into());
    }
    if ask(nightly().args(["miri", "--version"])).is_none() {
        let mut add = Command::new("rustup");
        add.args(["+nightly", "component", "add", "miri", "rust-src"]);
        if check(&mut add, progress).is_err() {
            return Ended::Skip("the nightly toolchain has no `miri`".into());
        }
    }
    let mut command = nightly();
    command
        // Miri itself fails where one place is accessed with and without atomics, which memory
        // shared with hardware is; with one thread there is nothing weak to emulate.
        .env("MIRIFLAGS", "-Zmiri-disable-weak-memory-emulation")
        .args(["miri", "test", "--package", "vtd-nest", "--lib", "--"])
        .args(MIRI_TESTS);
    check(&mut command, progress)
        .map(|output| tests_run(&output))
        .into()
}

/// Checks that the mutants' patches apply; with `--full`, that a test finds each.
fn mutant_steps(steps: &mut Steps, arguments: &Arguments) {
    steps.step("patches of mutants", |progress| {
        mutants::check_apply(progress)
            .map(|count| format!("{count} apply"))
            .into()
    });
    steps.step("mutants", |_| {
        if !arguments.full {
            return Ended::Skip("only with `--full`".into());
        }
        match mutants::mutants(&mutants::Arguments::default()) {
            Ok(true) => Ended::Pass(String::new()),
            Ok(false) => Ended::Fail(anyhow!("not every mutant was found by a test")),
            Err(error) => Ended::Fail(error),
        }
    });
}

/// Builds the image and boots it in each configuration.
fn image_steps(steps: &mut Steps, arguments: &Arguments, qemu: Option<&Qemu>) {
    let mut built = None;
    steps.step("image builds", |progress| match image::build(progress) {
        Ok(path) => {
            built = Some(path);
            Ended::Pass(String::new())
        }
        Err(error) => Ended::Fail(error),
    });
    let asked = arguments.machine.iommu().map(|options| {
        let options = Some(options.to_owned());
        ("as asked".to_owned(), options, Console::Shown)
    });
    let boots = match asked {
        Some(asked) => vec![asked],
        None => (Configuration::all().into_iter())
            .map(|configuration| {
                let console = if configuration == Configuration::PLAIN {
                    Console::Shown
                } else {
                    Console::Hidden
                };
                let options = qemu.and_then(|qemu| configuration.options(qemu));
                (configuration.to_string(), options, console)
            })
            .collect(),
    };
    for (name, iommu, console) in boots {
        steps.step_with_report(&format!("image: {name}"), |progress| {
            let (Some(qemu), Some(image)) = (qemu, &built) else {
                let missing = if qemu.is_none() { "QEMU" } else { "image" };
                return (Ended::Skip(format!("no {missing}")), None);
            };
            let Some(iommu) = iommu else {
                return (Ended::Skip("this QEMU has no such unit".into()), None);
            };
            let booted = Disks::open().and_then(|disks| {
                let devices = Devices {
                    iommu: Some(&iommu),
                    edus: 2,
                    own: Some(&disks),
                    others: arguments.machine.devices(),
                };
                run::boot(qemu, image, &devices, console, progress)
            });
            match booted {
                Err(error) => (Ended::Fail(error), None),
                Ok(report) if report.ok => (Ended::Pass(run::summary(&report)), Some(report)),
                Ok(report) => (
                    Ended::Fail(anyhow!("{}", report.why.join("\n"))),
                    Some(report),
                ),
            }
        });
    }
    for (name, machine, text) in REFUSALS {
        steps.step(&format!("image refuses: {name}"), |_| {
            let (Some(qemu), Some(image)) = (qemu, &built) else {
                let missing = if qemu.is_none() { "QEMU" } else { "image" };
                return Ended::Skip(format!("no {missing}"));
            };
            let iommu = match machine {
                Refused::NoUnit => None,
                Refused::NoEdu => Configuration::PLAIN.options(qemu),
            };
            let devices = Devices {
                iommu: iommu.as_deref(),
                edus: if machine == Refused::NoEdu { 0 } else { 2 },
                own: None,
                others: &[],
            };
            run::boot_refused(qemu, image, &devices, text).into()
        });
    }
    linux_steps(steps, qemu, built.as_deref());
}

/// The short form of `linux`: two configurations, and a guest that reaches for the hypervisor.
fn linux_steps(steps: &mut Steps, qemu: Option<&Qemu>, image: Option<&Path>) {
    let mut files = None;
    steps.step("linux: guest's files", |progress| {
        // Without a network there is no kernel: no failure of the project.
        match linux::packages(progress) {
            Err(error) => Ended::Skip(format!("{error:#}")),
            Ok(packages) => linux::pack(&packages)
                .map(|packed| files.insert(packed).version().to_owned())
                .into(),
        }
    });
    let mut boot = |name: &str, run: &dyn Fn(&Qemu, &Path, &Files, &Progress) -> Result<String>| {
        steps.step(&format!("linux: {name}"), |progress| {
            match (qemu, image, &files) {
                (Some(qemu), Some(image), Some(files)) => run(qemu, image, files, progress).into(),
                (None, ..) => Ended::Skip("no QEMU".into()),
                (_, None, _) => Ended::Skip("no image".into()),
                _ => Ended::Skip("no kernel for the guest".into()),
            }
        });
    };
    for mode in linux::SHORT {
        boot(&mode.to_string(), &|qemu, image, files, progress| {
            linux::boot_short(qemu, image, files, mode, progress)
        });
    }
    boot("stopped at the hypervisor", &linux::boot_trespasser);
}

/// How many tests a test run passed, if it was one: the sum over its result lines.
fn tests_run(output: &str) -> String {
    let mut passed = 0_u64;
    let mut ignored = 0_u64;
    let mut any = false;
    for line in output.lines() {
        let Some(result) = line.trim().strip_prefix("test result: ") else {
            continue;
        };
        any = true;
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            if let (Some(count), Some(what)) = (words.next(), words.next())
                && let Ok(count) = count.parse::<u64>()
            {
                match what {
                    "passed" => passed += count,
                    "ignored" => ignored += count,
                    _ => {}
                }
            }
        }
    }
    match (any, ignored) {
        (false, _) => String::new(),
        (true, 0) => format!("{passed} tests"),
        (true, _) => format!("{passed} tests, {ignored} ignored"),
    }
}

/// The last `count` lines of a text.
fn last_lines(text: &str, count: usize) -> Vec<&str> {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_results_are_summed_over_all_binaries() {
        let output = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            \n\
            test result: ok. 39 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.20s\n";
        assert_eq!(tests_run(output), "42 tests, 1 ignored");
        assert_eq!(tests_run("Finished"), "");
        assert_eq!(
            tests_run("test result: ok. 1 passed; 0 failed; 0 ignored;"),
            "1 tests"
        );
    }

    #[test]
    fn the_closing_line_counts_steps_by_how_they_ended() {
        let mut steps = Steps::default();
        steps.step("a", |_| Ended::Pass(String::new()));
        steps.step("b", |_| Ended::Pass(String::new()));
        steps.step("c", |_| Ended::Fail(anyhow!("x")));
        steps.step("d", |_| Ended::Skip("y".into()));
        assert_eq!(steps.closing_line(), "2 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn the_last_lines_are_the_last() {
        assert_eq!(last_lines("a\nb\nc\n", 2), ["b", "c"]);
        assert_eq!(last_lines("a", 2), ["a"]);
        assert!(last_lines("", 2).is_empty());
    }
}
