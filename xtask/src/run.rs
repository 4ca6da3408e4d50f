//! `cargo xtask run`: the image, booted once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use console::style;

use crate::MachineArguments;
use crate::configuration::Configuration;
use crate::disks::Disks;
use crate::progress::{Mark, Progress};
use crate::qemu::{self, Devices, Ending, Line, Qemu};
use crate::report::{self, Report, Taken};
use crate::screen::Screen;
use crate::{image, setup};

/// The time that the image may take to refuse a machine; it takes a tenth of a second.
const REFUSAL_LIMIT: Duration = Duration::from_secs(10);

/// The time that the image may take; it takes a second or two.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// In each of QEMU's warnings about features of the processor model that it does not emulate.
const MODEL_WARNING: &str = "TCG doesn't support requested feature";

/// Arguments of `run`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) machine: MachineArguments,
    /// Shows every line of the image's console.
    #[arg(long)]
    verbose: bool,
    /// Where to write the JSON report.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Sets up, builds, boots, reports; `true` if everything held.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let console = if arguments.verbose {
        Console::All
    } else {
        Console::Shown
    };
    let report = build_and_boot(&arguments.machine, console)
        .unwrap_or_else(|error| Report::failed(format!("{error:#}")));
    if let Some(path) = &arguments.report {
        report::write(path, &report)?;
    }
    for why in &report.why {
        println!("{} {why}", style("not held:").red());
    }
    println!();
    if report.ok {
        println!("Everything held.");
    } else {
        println!("Not everything held: {} reason(s) above.", report.why.len());
    }
    Ok(report.ok)
}

fn build_and_boot(machine: &MachineArguments, console: Console) -> Result<Report> {
    setup::target()?;
    let qemu = setup::qemu(machine.qemu())?;
    let progress = Progress::start("building the image");
    let image = match image::build(&progress) {
        Ok(image) => image,
        Err(error) => {
            progress.finish(Mark::Fail, "");
            return Err(error);
        }
    };
    progress.finish(Mark::Pass, &image.display().to_string());
    let iommu = match machine.iommu() {
        Some(options) => options.to_owned(),
        None => (Configuration::PLAIN.options(&qemu)).context("QEMU has no such unit")?,
    };
    let progress = Progress::start(format!("booting on QEMU {} with {iommu}", qemu.version()));
    let disks = Disks::open()?;
    let devices = Devices {
        iommu: Some(&iommu),
        edus: 2,
        own: Some(&disks),
        others: machine.devices(),
    };
    let report = boot(&qemu, &image, &devices, console, &progress)?;
    let mark = if report.ok { Mark::Pass } else { Mark::Fail };
    progress.finish(mark, &summary(&report));
    Ok(report)
}

/// What is shown of the image's console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Console {
    /// Every line, as it comes.
    All,
    /// A screen of it, as [`Screen`] chooses; all of it if something did not hold.
    Shown,
    /// Nothing; all of it if something did not hold.
    Hidden,
}

/// Boots the image once and returns the settled report.
pub(crate) fn boot(
    qemu: &Qemu,
    image: &Path,
    devices: &Devices<'_>,
    console: Console,
    progress: &Progress,
) -> Result<Report> {
    let mut command = qemu.command(image, devices);
    let mut report = Report::default();
    let mut errors = Vec::new();
    let mut hidden = Vec::new();
    let mut screen = Screen::default();
    let ending = qemu::run(&mut command, TIME_LIMIT, |line| match line {
        Line::Qemu(line) => errors.push(line),
        Line::Console(line) => match report.take(&line) {
            Taken::Merged => {}
            Taken::Step(step) if console == Console::Hidden => progress.at(&step.name),
            Taken::Text(text)
                if console == Console::Hidden
                    || console == Console::Shown && !screen.shows(&text) =>
            {
                hidden.push(text);
            }
            Taken::Step(step) => {
                let mark = if step.ok { Mark::Pass } else { Mark::Fail };
                let figures = report::shown_figures(&step.figures);
                progress.line(&format!("  {} {:<16} {figures}", mark.shown(), step.name));
                progress.at(&step.name);
            }
            Taken::Text(text) => progress.line(&format!("  {} {text}", style("|").dim())),
        },
    })?;
    if devices.own.is_some() {
        report.require_own_devices();
    }
    report.finish(&ending);
    if !report.ok {
        for text in hidden {
            progress.line(&format!("  {} {text}", style("|").dim()));
        }
        for error in errors.iter().filter(|error| !error.contains(MODEL_WARNING)) {
            progress.line(&format!("  {} {error}", style("qemu:").dim()));
        }
    }
    Ok(report)
}

/// Boots the image on a machine that it has to refuse: it must report a failure, and a line of its
/// console must contain `text`. Returns that line.
pub(crate) fn boot_refused(
    qemu: &Qemu,
    image: &Path,
    devices: &Devices<'_>,
    text: &str,
) -> Result<String> {
    let mut said = None;
    let mut lines = Vec::new();
    let ending = qemu::run(&mut qemu.command(image, devices), REFUSAL_LIMIT, |line| {
        let line = match line {
            Line::Qemu(line) => line,
            Line::Console(line) => {
                if line.contains(text) {
                    said.get_or_insert_with(|| line.clone());
                }
                line
            }
        };
        lines.push(line);
    })?;
    match (ending, said) {
        (Ending::ImageFailed, Some(line)) => Ok(line),
        (Ending::ImageFailed, None) => bail!("no `{text}` in:\n{}", lines.join("\n")),
        (Ending::Success, _) => bail!("the image took the machine"),
        (ending, _) => bail!(
            "{}:\n{}",
            ending.why().unwrap_or_default(),
            lines.join("\n")
        ),
    }
}

/// One line about a boot: the back end, the number of steps.
pub(crate) fn summary(report: &Report) -> String {
    let held = report.steps.iter().filter(|step| step.ok).count();
    let backend = report.backend.as_deref().unwrap_or("no back end");
    let mut text = format!("{backend}, {held} of {} steps held", report.steps.len());
    let totals = report::shown_figures(&report.totals);
    if !totals.is_empty() {
        text.push_str(&format!("; {totals}"));
    }
    text
}
