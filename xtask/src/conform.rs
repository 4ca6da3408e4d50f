//! `cargo xtask conform`: the scenarios of `tests/conformance` on every bench.
//!
//! The suite itself runs the model and QEMU over qtest; this command finds QEMU for it, and adds
//! the bench `image`: the image's own steps, by the numbers of the scenarios that they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use console::style;
use serde::{Deserialize, Serialize};

use crate::MachineArguments;
use crate::command::{capture, cargo};
use crate::configuration::Configuration;
use crate::disks::Disks;
use crate::image;
use crate::progress::{Mark, Progress};
use crate::qemu::{Devices, Qemu};
use crate::report::{self, Report};
use crate::run::Console;
use crate::{run, setup};

/// The benches there are.
const BENCHES: [&str; 3] = ["model", "qtest", "image"];

/// The image's steps, and the scenarios that each of them is.
const IMAGE_STEPS: [(&str, &[&str]); 11] = [
    ("translate", &["S1"]),
    ("remap", &["S5", "S41"]),
    ("blocked", &["S68", "S83"]),
    ("translation-off", &["S31", "S32"]),
    ("pass-through", &["S17", "S18"]),
    ("interleaved", &["S92"]),
    ("other-remaps", &["S92"]),
    ("other-unbinds", &["S92"]),
    ("other-faults", &["S92"]),
    ("other-reset", &["S92"]),
    ("other-destroyed", &["S92"]),
];

/// Arguments of `conform`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) machine: MachineArguments,
    /// `model`, `qtest`, `image`, or part of a profile's name as the matrix shows it; may be
    /// repeated. Without it, all.
    #[arg(long, value_name = "BENCH")]
    pub(crate) bench: Vec<String>,
    /// A number (`S12`, `G5`) or part of a scenario's name; may be repeated. Without it, all.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) scenario: Vec<String>,
    /// Prints only what failed, and the sums.
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Where to write the JSON report.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

/// One run of a scenario, as reported.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    scenario: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    bench: String,
    profile: String,
    status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    why: String,
}

impl Arguments {
    /// All scenarios on all benches of this machine, without a line for each.
    pub(crate) fn everything(machine: &MachineArguments) -> Self {
        Self {
            machine: machine.clone(),
            bench: Vec::new(),
            scenario: Vec::new(),
            quiet: true,
            report: None,
        }
    }

    /// Whether a bench was asked for, by its name or by part of a profile of it.
    fn wants(&self, bench: &str) -> bool {
        let mut asked = self.bench.iter();
        self.bench.is_empty()
            || asked.any(|name| {
                let is_bench = BENCHES.iter().any(|bench| name.starts_with(bench));
                !is_bench || name.starts_with(bench)
            })
    }
}

/// How many runs ended which way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    pub(crate) pending: usize,
}

impl Sums {
    fn of(rows: &[Row]) -> Self {
        let count = |status| rows.iter().filter(|row| row.status == status).count();
        Self {
            passed: count("pass"),
            failed: count("fail"),
            skipped: count("skip"),
            pending: count("pending"),
        }
    }
}

/// Runs the scenarios that were asked for; `true` if none failed.
pub(crate) fn conform(arguments: &Arguments) -> Result<bool> {
    let qemu = if arguments.wants("qtest") || arguments.wants("image") {
        setup::target()?;
        Some(setup::qemu(arguments.machine.qemu())?)
    } else {
        None
    };
    let mut rows = Vec::new();
    let mut ok = true;
    if arguments.wants("model") || arguments.wants("qtest") {
        let file = suite_report()?;
        let mut suite = suite(arguments, qemu.as_ref(), &file);
        ok &= suite.status().context("cannot start cargo")?.success();
        rows.extend(read_rows(&file)?);
    }
    if arguments.wants("image")
        && let Some(qemu) = &qemu
    {
        let progress = Progress::start("building the image");
        let image = image::build(&progress)?;
        progress.finish(Mark::Pass, "");
        let image_rows = image_rows(arguments, qemu, &image)?;
        for row in &image_rows {
            print(row, arguments.quiet);
        }
        rows.extend(image_rows);
    }
    let sums = Sums::of(&rows);
    ok &= sums.failed == 0 && !rows.is_empty();
    if let Some(path) = &arguments.report {
        report::write(path, &rows)?;
    }
    println!(
        "\nAll benches: {} passed, {} failed, {} skipped, {} pending",
        sums.passed, sums.failed, sums.skipped, sums.pending
    );
    Ok(ok)
}

/// The suite alone, for `cargo xtask test`: its sums, or its output if something failed.
pub(crate) fn check_suite(
    arguments: &Arguments,
    qemu: Option<&Qemu>,
    progress: &Progress,
) -> Result<Sums> {
    let file = suite_report()?;
    let outcome = capture(&mut suite(arguments, qemu, &file), progress)?;
    if !outcome.success {
        anyhow::bail!("{}", outcome.text.trim_end());
    }
    Ok(Sums::of(&read_rows(&file)?))
}

/// Where the suite reports to.
fn suite_report() -> Result<PathBuf> {
    let directory = crate::workspace_root().join("target/conform");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory.join("suite.json"))
}

/// The command that runs the suite on the model and, if there is QEMU, over qtest.
fn suite(arguments: &Arguments, qemu: Option<&Qemu>, file: &Path) -> Command {
    let mut command = cargo();
    command.args(["test", "--quiet", "--test", "conformance", "--", "--report"]);
    command.arg(file);
    if let Some(qemu) = qemu {
        command.arg("--qemu").arg(qemu.path());
    }
    if let Some(options) = arguments.machine.iommu() {
        command.args(["--iommu", options]);
    }
    for device in arguments.machine.devices() {
        command.args(["--device", device]);
    }
    for bench in arguments
        .bench
        .iter()
        .filter(|bench| !bench.starts_with("image"))
    {
        command.args(["--bench", bench]);
    }
    for scenario in &arguments.scenario {
        command.args(["--scenario", scenario]);
    }
    if arguments.quiet {
        command.arg("--quiet");
    }
    command
}

fn read_rows(file: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("the suite left no {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("cannot read {}", file.display()))
}

/// Boots the image in each configuration and reads its steps as scenarios.
fn image_rows(arguments: &Arguments, qemu: &Qemu, image: &Path) -> Result<Vec<Row>> {
    let profiles = match arguments.machine.iommu() {
        Some(options) => vec![(options.to_owned(), Some(options.to_owned()))],
        None => (Configuration::all().iter())
            .map(|configuration| (configuration.to_string(), configuration.options(qemu)))
            .collect(),
    };
    let disks = Disks::open()?;
    let mut rows = Vec::new();
    for (name, iommu) in &profiles {
        let full = format!("image/{name}");
        if !arguments.bench.is_empty()
            && !arguments
                .bench
                .iter()
                .any(|part| full.contains(part.as_str()))
        {
            continue;
        }
        let Some(iommu) = iommu else {
            continue;
        };
        let devices = Devices {
            iommu: Some(iommu),
            edus: 2,
            own: Some(&disks),
            others: arguments.machine.devices(),
        };
        let progress = Progress::start(format!("the image with {iommu}"));
        let report = run::boot(qemu, image, &devices, Console::Hidden, &progress)?;
        let mark = if report.ok { Mark::Pass } else { Mark::Fail };
        progress.finish(mark, &run::summary(&report));
        rows.extend(rows_of(&report, name).into_iter().filter(|row| {
            let mut patterns = arguments.scenario.iter();
            arguments.scenario.is_empty()
                || patterns.any(|pattern| row.scenario.eq_ignore_ascii_case(pattern))
        }));
    }
    Ok(rows)
}

/// The scenarios that one boot showed; a step that is missing failed.
fn rows_of(report: &Report, profile: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, scenarios) in IMAGE_STEPS {
        let step = report.steps.iter().find(|step| step.name == name);
        let (status, why) = match step {
            Some(step) if step.ok => ("pass", String::new()),
            Some(_) => ("fail", report.why.join("; ")),
            None => ("fail", format!("the image never came to `{name}`")),
        };
        for scenario in scenarios {
            rows.push(Row {
                scenario: (*scenario).into(),
                name: format!("the image's step `{name}`"),
                bench: "image".into(),
                profile: profile.into(),
                status: status.into(),
                why: why.clone(),
            });
        }
    }
    rows
}

/// A line as the suite prints them.
fn print(row: &Row, quiet: bool) {
    let failed = row.status == "fail";
    if quiet && !failed {
        return;
    }
    let status = if failed { "FAIL" } else { &row.status };
    let place = format!("{}/{}", row.bench, row.profile);
    let why = match row.why.as_str() {
        "" => String::new(),
        why => format!(": {why}"),
    };
    let line = format!(
        "{status:7} {:4} {place:<34} {}{why}",
        row.scenario, row.name
    );
    if failed {
        println!("{}", style(line).red());
    } else {
        println!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Step;

    #[test]
    fn a_step_that_is_missing_or_not_held_fails_its_scenarios() {
        let step = |name: &str, ok| Step {
            name: name.into(),
            ok,
            skipped: None,
            figures: serde_json::Map::new(),
        };
        let report = Report {
            steps: vec![step("translate", true), step("remap", false)],
            why: vec!["stale".into()],
            ..Report::default()
        };
        let rows = rows_of(&report, "p");
        let status = |scenario: &str| {
            let row = rows.iter().find(|row| row.scenario == scenario).unwrap();
            (row.status.as_str(), row.why.as_str())
        };
        assert_eq!(status("S1"), ("pass", ""));
        assert_eq!(status("S5"), ("fail", "stale"));
        assert_eq!(status("S17").0, "fail");
        assert_eq!(Sums::of(&rows).passed, 1);
    }

    #[test]
    fn a_profile_is_looked_for_on_every_bench_and_a_bench_on_itself() {
        let mut arguments = Arguments::everything(&MachineArguments {
            qemu: None,
            iommu: None,
            device: Vec::new(),
        });
        assert!(BENCHES.iter().all(|bench| arguments.wants(bench)));
        arguments.bench = vec!["model/nesting".into()];
        assert!(arguments.wants("model") && !arguments.wants("qtest"));
        arguments.bench = vec!["caching-mode".into()];
        assert!(BENCHES.iter().all(|bench| arguments.wants(bench)));
    }
}
