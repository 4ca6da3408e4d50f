//! `cargo xtask`: sets up the machine, boots the image in QEMU, runs every check.
//!
//! CI calls nothing that a person could not call: `.ci/run` is `cargo xtask test`.

mod command;
mod configuration;
mod conform;
mod coverage;
mod differential;
mod disks;
mod image;
mod linux;
mod mutants;
mod panic_freedom;
mod progress;
mod qemu;
mod report;
mod run;
mod screen;
mod setup;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

/// Builds, boots and tests vtd-nest.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Applies deliberate faults to the library, one at a time: a test has to find each.
    Mutants(mutants::Arguments),
    /// Builds the micro-hypervisor image and boots it in QEMU.
    Run(run::Arguments),
    /// Boots the distribution's unmodified Linux as the image's guest.
    Linux(linux::Arguments),
    /// Runs the scenarios on every bench: the model, QEMU over qtest, the image.
    Conform(conform::Arguments),
    /// Runs every check: formatting, lints, documentation, tests, panic freedom, the image in QEMU.
    Test(test::Arguments),
    /// Tells which lines of the model its own tests run.
    Coverage(coverage::Arguments),
}

/// Which emulated machine to use; the same on every command that boots one.
#[derive(Args, Clone, Debug)]
pub(crate) struct MachineArguments {
    /// The QEMU to use; without it, `qemu-system-x86_64`, installed if it is missing.
    #[arg(
        long,
        value_name = "PATH",
        env = "VTD_NEST_QEMU",
        hide_env_values = true
    )]
    qemu: Option<PathBuf>,
    /// Everything after `intel-iommu,` on QEMU's command line, in place of the command's own.
    #[arg(
        long,
        value_name = "OPTIONS",
        env = "VTD_NEST_IOMMU",
        hide_env_values = true
    )]
    iommu: Option<String>,
    /// One more `-device` for QEMU; may be repeated.
    #[arg(long, value_name = "ARG")]
    device: Vec<String>,
}

impl MachineArguments {
    /// The QEMU that was asked for; an empty environment variable asks for none.
    pub(crate) fn qemu(&self) -> Option<&Path> {
        self.qemu
            .as_deref()
            .filter(|path| !path.as_os_str().is_empty())
    }

    /// The options of the unit that were asked for.
    pub(crate) fn iommu(&self) -> Option<&str> {
        self.iommu.as_deref().filter(|options| !options.is_empty())
    }

    /// The devices to add.
    pub(crate) fn devices(&self) -> &[String] {
        &self.device
    }
}

/// The root of the workspace.
pub(crate) fn workspace_root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Cargo's folder for what it builds.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let metadata = command::ask(command::cargo().args([
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        "--offline",
    ]))
    .context("`cargo metadata` failed")?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let folder = metadata["target_directory"]
        .as_str()
        .context("`cargo metadata` names no target folder")?;
    Ok(PathBuf::from(folder))
}

fn main() -> ExitCode {
    let result = match CommandLine::parse().command {
        Command::Mutants(arguments) => mutants::mutants(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Linux(arguments) => linux::linux(&arguments),
        Command::Conform(arguments) => conform::conform(&arguments),
        Command::Test(arguments) => test::test(&arguments),
        Command::Coverage(arguments) => coverage::coverage(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_flag_is_taken_and_devices_add_up() {
        let line = CommandLine::parse_from([
            "xtask",
            "run",
            "--iommu",
            "a=on,b=off",
            "--device",
            "one",
            "--device",
            "two",
        ]);
        let Command::Run(arguments) = line.command else {
            panic!("not `run`");
        };
        assert_eq!(arguments.machine.iommu(), Some("a=on,b=off"));
        assert_eq!(arguments.machine.devices(), ["one", "two"]);
    }
}
