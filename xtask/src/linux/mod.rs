//! `cargo xtask linux`: the distribution's kernel as the image's guest.
//!
//! | module | job |
//! |---|---|
//! | `packages` | kernel and busybox from the package manager |
//! | `modules` | which kernel modules the guest needs |
//! | `cpio` | the initial RAM file system |
//! | `container` | the boot module, written as the image reads it |
//! | `boot` | one boot and its judgement |
//! | `guest` | what the guest tells |

mod boot;
#[path = "../../../src/bin/microhv/linux/container.rs"]
mod container;
mod cpio;
mod guest;
mod modules;
mod packages;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use console::style;
use serde::Serialize;

use crate::MachineArguments;
use crate::progress::{Mark, Progress};
use crate::qemu::Qemu;
use crate::run::Console;
use crate::{image, report, setup};

use boot::{Boot, Config, Setup};

pub(crate) use boot::Mode;
pub(crate) use packages::Packages;

/// What the guest's process drives its disk with.
const MODULES: [&str; 1] = ["nvme"];

/// Arguments of `linux`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    machine: MachineArguments,
    /// Added to the guest's command line.
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// The guest's kernel, in place of the distribution's.
    #[arg(long, value_name = "FILE", requires = "initrd")]
    kernel: Option<PathBuf>,
    /// The guest's initial RAM file system; with it, only a clean power-off is asked for.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Processors; the guest gets one.
    #[arg(long, value_name = "N", default_value_t = 1)]
    smp: u32,
    /// Boots every configuration: scalable, pass-through and legacy, strict and lazy, with and
    /// without interrupt remapping.
    #[arg(long)]
    matrix: bool,
    /// Boots in all, going round the configurations.
    #[arg(long, value_name = "N", requires = "matrix")]
    boots: Option<usize>,
    /// Does not boot the same without the hypervisor to compare.
    #[arg(long)]
    alone: bool,
    /// Where to write the JSON report.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// The report of the command.
#[derive(Debug, Default, Serialize)]
struct Report {
    ok: bool,
    backend: Option<String>,
    boots: Vec<Boot>,
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
}

/// The files of the guest.
#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
    version: String,
    kernel: PathBuf,
    ramdisk: PathBuf,
    container: PathBuf,
    is_own: bool,
}

impl Files {
    /// The kernel's version, or its file.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }
}

/// Runs the command; `true` if everything held.
pub(crate) fn linux(arguments: &Arguments) -> Result<bool> {
    let report = boot_all(arguments).unwrap_or_else(|error| Report {
        why: format!("{error:#}"),
        ..Report::default()
    });
    if let Some(path) = &arguments.report {
        report::write(path, &report)?;
    }
    if !report.why.is_empty() {
        println!("{} {}", style("not held:").red(), report.why);
    }
    for boot in report.boots.iter().filter(|boot| !boot.ok) {
        println!("{} {}: {}", style("not held:").red(), boot.config, boot.why);
    }
    let held = report.boots.iter().filter(|boot| boot.ok).count();
    println!("\n{held} of {} boots held.", report.boots.len());
    Ok(report.ok)
}

fn boot_all(arguments: &Arguments) -> Result<Report> {
    setup::target()?;
    let qemu = setup::qemu(arguments.machine.qemu())?;
    let progress = Progress::start("building the image");
    let image = image::build(&progress)?;
    progress.finish(Mark::Pass, &image.display().to_string());
    let progress = Progress::start("the guest's files");
    let files = match (&arguments.kernel, &arguments.initrd) {
        (Some(kernel), Some(initrd)) => given(kernel, initrd)?,
        _ => pack(&packages(&progress)?)?,
    };
    progress.finish(Mark::Pass, &files.version);

    let all = configurations(&files.version, arguments.smp);
    let chosen: Vec<_> = if arguments.matrix {
        let count = arguments.boots.unwrap_or(all.len());
        all.iter().cycle().take(count).collect()
    } else {
        all.iter().take(1).collect()
    };
    let console = if arguments.matrix {
        Console::Hidden
    } else {
        Console::Shown
    };
    let setup = Setup {
        iommu: arguments.machine.iommu(),
        devices: arguments.machine.devices(),
        command_line: arguments.cmdline.as_deref(),
        ..setup_of(&qemu, &image, &files)
    };
    let mut report = Report::default();
    for config in chosen {
        let progress = Progress::start(format!("booting {}: {config}", files.version));
        let mut boot = boot::boot(&setup, config, console, &progress)?;
        progress.finish(mark(boot.ok), &summary(&boot));
        if !arguments.alone && files.is_own {
            let progress = Progress::start("the same without the hypervisor");
            let native = boot::boot_native(&setup, config, &progress)?;
            progress.finish(Mark::Pass, &shown(&native));
            boot.native = Some(native);
        }
        if !arguments.matrix {
            details(&boot);
        }
        report.backend = report.backend.or_else(|| boot.backend.clone());
        report.boots.push(boot);
    }
    report.ok = !report.boots.is_empty() && report.boots.iter().all(|boot| boot.ok);
    Ok(report)
}

/// The short form, for `cargo xtask test`: what is booted beside the trespasser.
pub(crate) const SHORT: [Mode; 2] = [Mode::Scalable, Mode::PassThrough];

/// Boots one configuration of the short form and returns a remark.
pub(crate) fn boot_short(
    qemu: &Qemu,
    image: &Path,
    files: &Files,
    mode: Mode,
    progress: &Progress,
) -> Result<String> {
    let setup = setup_of(qemu, image, files);
    let config = short(files, mode);
    let boot = boot::boot(&setup, &config, Console::Hidden, progress)?;
    if !boot.ok {
        bail!("{config}: {}", boot.why);
    }
    Ok(summary(&boot))
}

/// Boots a guest that reaches for the hypervisor's memory and returns what the image said.
pub(crate) fn boot_trespasser(
    qemu: &Qemu,
    image: &Path,
    files: &Files,
    progress: &Progress,
) -> Result<String> {
    let setup = setup_of(qemu, image, files);
    boot::boot_trespasser(&setup, &short(files, Mode::Scalable), progress)
}

fn short(files: &Files, mode: Mode) -> Config {
    Config {
        mode,
        smp: 1,
        intremap: false,
        strict: true,
        kernel: files.version.clone(),
    }
}

fn setup_of<'a>(qemu: &'a Qemu, image: &'a Path, files: &'a Files) -> Setup<'a> {
    Setup {
        qemu,
        iommu: None,
        devices: &[],
        image,
        kernel: &files.kernel,
        ramdisk: &files.ramdisk,
        container: &files.container,
        folder: &files.folder,
        command_line: None,
        is_own: files.is_own,
    }
}

/// Every cell of the matrix.
fn configurations(kernel: &str, smp: u32) -> Vec<Config> {
    let mut all = Vec::new();
    for intremap in [false, true] {
        for strict in [true, false] {
            for mode in [Mode::Scalable, Mode::PassThrough, Mode::Legacy] {
                all.push(Config {
                    mode,
                    smp,
                    intremap,
                    strict,
                    kernel: kernel.to_owned(),
                });
            }
        }
    }
    all
}

/// The distribution's kernel and the guest's programs, downloaded unless they are there.
pub(crate) fn packages(progress: &Progress) -> Result<Packages> {
    packages::fetch(&guest_folder()?, progress)
}

/// The distribution's kernel with a RAM file system of our own.
pub(crate) fn pack(packages: &Packages) -> Result<Files> {
    let folder = guest_folder()?;
    let mut archive = cpio::Archive::default();
    for path in ["bin", "dev", "proc", "sys", "modules"] {
        archive.folder(path);
    }
    archive.device("dev/console", (5, 1));
    archive.file("init", include_bytes!("init.sh"));
    archive.file("bin/busybox", &fs::read(&packages.programs)?);
    let modules = modules::with_dependencies(&packages.modules, &MODULES)?;
    for (number, module) in modules.iter().enumerate() {
        let path = format!("modules/{number:02}-{}.ko", module.name);
        archive.file(&path, &module.content);
    }
    let ramdisk = folder.join("ramdisk");
    fs::write(&ramdisk, archive.finish())?;
    files(
        folder,
        packages.version.clone(),
        packages.kernel.clone(),
        ramdisk,
        true,
    )
}

fn given(kernel: &Path, initrd: &Path) -> Result<Files> {
    let version = kernel.display().to_string();
    files(
        guest_folder()?,
        version,
        kernel.to_owned(),
        initrd.to_owned(),
        false,
    )
}

fn guest_folder() -> Result<PathBuf> {
    let folder = crate::target_folder()?.join("linux");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Writes the container.
fn files(
    folder: PathBuf,
    version: String,
    kernel: PathBuf,
    ramdisk: PathBuf,
    is_own: bool,
) -> Result<Files> {
    let mut contents = Vec::new();
    for path in [&kernel, &ramdisk] {
        contents.push(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let lengths = [contents[0].len() as u64, contents[1].len() as u64];
    let (header, places) = container::header(lengths);
    let mut bytes = header.to_vec();
    for (place, content) in places.iter().zip(&contents) {
        bytes.resize(place.offset as usize, 0);
        bytes.extend(content);
    }
    let container = folder.join("container");
    fs::write(&container, bytes)?;
    Ok(Files {
        folder,
        version,
        kernel,
        ramdisk,
        container,
        is_own,
    })
}

fn mark(ok: bool) -> Mark {
    if ok { Mark::Pass } else { Mark::Fail }
}

fn shown(figures: &boot::Figures) -> String {
    let mut parts = Vec::new();
    if let Some(seconds) = figures.init_seconds {
        parts.push(format!("init after {seconds:.1} s"));
    }
    if let Some(time) = figures.read_microseconds {
        parts.push(format!("4-KiB read {time:.0} us"));
    }
    parts.push(format!("{} MiB", figures.bytes >> 20));
    parts.join(", ")
}

/// One line about a boot.
fn summary(boot: &Boot) -> String {
    let backend = boot.backend.as_deref().unwrap_or("no back end");
    let count = |map: &serde_json::Map<String, serde_json::Value>, name: &str| {
        map.get(name)
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0)
    };
    format!(
        "{backend}, {}, {} exits, {} bindings, {} invalidations",
        shown(&boot.guest),
        count(&boot.exits, "total"),
        count(&boot.totals, "bindings"),
        count(&boot.totals, "guest-invalidations"),
    )
}

/// All figures of a boot.
fn details(boot: &Boot) {
    println!("  exits: {}", report::shown_figures(&boot.exits));
    println!("  totals: {}", report::shown_figures(&boot.totals));
    println!("  with the hypervisor: {}", shown(&boot.guest));
    if let Some(native) = &boot.native {
        println!("  without it: {}", shown(native));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_has_every_cell_once() {
        let all = configurations("x", 1);
        assert_eq!(all.len(), 12);
        for (index, config) in all.iter().enumerate() {
            let same = all[index + 1..].iter().filter(|other| {
                (config.mode, config.strict, config.intremap)
                    == (other.mode, other.strict, other.intremap)
            });
            assert_eq!(same.count(), 0, "{config}");
        }
    }
}
