//! What a fresh machine lacks, set up: the bare-metal target, components of the toolchain, QEMU.

mod apt;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{ask, capture, check};
use crate::image::TARGET;
use crate::progress::{Mark, Progress};
use crate::qemu::{OLDEST, PROGRAM, Qemu};

/// The Debian release whose backports carry a recent QEMU.
const RELEASE: &str = "bookworm";

/// The Debian package with the emulator.
const PACKAGE: &str = "qemu-system-x86";

/// Adds the bare-metal target to the toolchain in use, unless it has it.
pub(crate) fn target() -> Result<()> {
    let installed = ask(Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(crate::workspace_root()))
    .is_some_and(|folder| Path::new(folder.trim()).is_dir());
    if installed {
        return Ok(());
    }
    rustup(&["target", "add", TARGET])
}

/// Adds the formatter and the linter to the toolchain in use, unless it has them.
pub(crate) fn components() -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if ask(crate::command::cargo().args([subcommand, "--version"])).is_none() {
            rustup(&["component", "add", component])?;
        }
    }
    Ok(())
}

/// Where the LLVM tools of the toolchain in use are, added unless it has them.
pub(crate) fn llvm_tools() -> Result<PathBuf> {
    let rustc = |argument: &[&str]| {
        let mut command = Command::new("rustc");
        command.args(argument).current_dir(crate::workspace_root());
        ask(&mut command).context("`rustc` tells nothing of itself")
    };
    let version = rustc(&["-vV"])?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("`rustc -vV` names no host")?;
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?.trim());
    let folder = sysroot.join("lib/rustlib").join(host).join("bin");
    let is_there = || {
        ["llvm-profdata", "llvm-cov"]
            .iter()
            .all(|tool| folder.join(tool).is_file())
    };
    if !is_there() {
        rustup(&["component", "add", "llvm-tools"])?;
    }
    if !is_there() {
        bail!(
            "llvm-profdata and llvm-cov of the component llvm-tools are missing in {}",
            folder.display()
        );
    }
    Ok(folder)
}

fn rustup(arguments: &[&str]) -> Result<()> {
    let line = format!("rustup {}", arguments.join(" "));
    let progress = Progress::start(format!("setting up: {line}"));
    let mut command = Command::new("rustup");
    command.args(arguments).current_dir(crate::workspace_root());
    match check(&mut command, &progress) {
        Ok(_) => {
            progress.finish(Mark::Pass, "");
            Ok(())
        }
        Err(error) => {
            progress.finish(Mark::Fail, "");
            Err(error.context(format!("the toolchain is incomplete; type `{line}`")))
        }
    }
}

/// The QEMU to use: the one asked for, else the one in `PATH`, installed where it is missing.
pub(crate) fn qemu(asked: Option<&Path>) -> Result<Qemu> {
    if let Some(path) = asked {
        return match Qemu::version_of(path) {
            Some(version) if version >= OLDEST => Qemu::open(path),
            Some(version) => bail!("{} is QEMU {version}; {OLDEST} is needed", path.display()),
            None => bail!("{} is no QEMU that can be run", path.display()),
        };
    }
    let program = Path::new(PROGRAM);
    if Qemu::version_of(program).is_none_or(|version| version < OLDEST) {
        install_qemu(&Machine::this()?)?;
    }
    match Qemu::version_of(program) {
        Some(version) if version >= OLDEST => Qemu::open(program),
        Some(version) => bail!("{PROGRAM} is still QEMU {version}; {OLDEST} is needed"),
        None => bail!("{PROGRAM} is still missing"),
    }
}

/// What decides how QEMU can be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Machine {
    /// `VERSION_CODENAME`, if the system is Debian.
    debian: Option<String>,
    root: bool,
    /// The backports entry to add, or that it is there already.
    backports: apt::Backports,
}

impl Machine {
    fn this() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        Ok(Self {
            debian: debian_release(&release),
            // The process's own folder belongs to its effective user.
            root: fs::metadata("/proc/self").is_ok_and(|folder| folder.uid() == 0),
            backports: apt::backports(Path::new("/etc/apt"), RELEASE)?,
        })
    }

    /// Whether QEMU can be installed from here; if not, what a person can do.
    fn check(&self) -> Result<()> {
        match self.debian.as_deref() {
            Some(RELEASE) => {}
            Some(_) => bail!(
                "QEMU {OLDEST} or later is needed; as root, type \
                 `apt-get install --no-install-recommends {PACKAGE}`, or give `--qemu PATH`"
            ),
            None => bail!("QEMU {OLDEST} or later is needed; install it, or give `--qemu PATH`"),
        }
        if !self.root {
            bail!(
                "QEMU {OLDEST} or later is needed; as root, type\n\n{}\n\nor give `--qemu PATH`",
                self.by_hand()
            );
        }
        if self.backports == apt::Backports::NoMirror {
            bail!(
                "QEMU {OLDEST} or later is needed, and no package source of this machine serves \
                 {RELEASE}; add {RELEASE}-backports, or give `--qemu PATH`"
            );
        }
        Ok(())
    }

    /// The commands that do by hand what [`install_qemu`] does.
    fn by_hand(&self) -> String {
        let add = match &self.backports {
            apt::Backports::Add(source) => format!(
                "  cat > {} <<'END'\n{}END\n",
                source.path().display(),
                source.text
            ),
            apt::Backports::Present | apt::Backports::NoMirror => String::new(),
        };
        let install = install_arguments().join(" ");
        format!("{add}  apt-get update\n  apt-get {install}")
    }
}

fn install_arguments() -> [String; 6] {
    [
        "install".into(),
        "-y".into(),
        "--no-install-recommends".into(),
        "-t".into(),
        format!("{RELEASE}-backports"),
        PACKAGE.into(),
    ]
}

/// The code name in an `os-release` file of Debian.
fn debian_release(os_release: &str) -> Option<String> {
    let value = |key: &str| {
        os_release.lines().find_map(|line| {
            let value = line.strip_prefix(key)?.strip_prefix('=')?;
            Some(value.trim().trim_matches('"').to_owned())
        })
    };
    (value("ID")? == "debian").then(|| value("VERSION_CODENAME"))?
}

/// A file that is removed when it is no longer needed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Installs QEMU from the backports of the mirror that this machine uses already.
///
/// The package source is added for the installation only.
fn install_qemu(machine: &Machine) -> Result<()> {
    machine.check()?;
    let _source = match &machine.backports {
        apt::Backports::Add(source) => {
            let path = source.path();
            fs::write(&path, &source.text)
                .with_context(|| format!("cannot write {}", path.display()))?;
            Some(Temporary(path))
        }
        apt::Backports::Present | apt::Backports::NoMirror => None,
    };
    let progress = Progress::start("setting up: QEMU from Debian's backports");
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // Another source of this machine may be out of order without harm to this installation.
    let update = capture(apt_get().arg("update"), &progress)?;
    let install = capture(apt_get().args(install_arguments()), &progress)?;
    if install.success {
        progress.finish(Mark::Pass, "");
        return Ok(());
    }
    progress.finish(Mark::Fail, "");
    bail!(
        "QEMU could not be installed\n{}{}\nas root, try\n\n{}\n\nor give `--qemu PATH`",
        update.text,
        install.text,
        machine.by_hand()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_has_a_debian_release() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(debian_release(debian).as_deref(), Some("bookworm"));
        let other = "ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n";
        assert_eq!(debian_release(other), None);
        assert_eq!(debian_release("ID=debian\n"), None);
        assert_eq!(debian_release(""), None);
    }

    #[test]
    fn a_machine_that_cannot_install_is_told_what_to_type() {
        let text = "Types: deb\nURIs: mirror:/debian\nSuites: bookworm-backports\n".to_owned();
        let machine = Machine {
            debian: Some("bookworm".into()),
            root: false,
            backports: apt::Backports::Add(apt::Source { text, deb822: true }),
        };
        let told = machine.check().unwrap_err().to_string();
        for part in [
            "URIs: mirror:/debian",
            "apt-get update",
            "apt-get install -y --no-install-recommends -t bookworm-backports qemu-system-x86",
        ] {
            assert!(told.contains(part), "{told}");
        }
        for (debian, root, backports) in [
            (None, true, apt::Backports::NoMirror),
            (Some("trixie"), true, apt::Backports::NoMirror),
            (Some("bookworm"), true, apt::Backports::NoMirror),
        ] {
            let machine = Machine {
                debian: debian.map(str::to_owned),
                root,
                backports,
            };
            assert!(machine.check().is_err(), "{machine:?}");
        }
        let ready = Machine {
            debian: Some("bookworm".into()),
            root: true,
            backports: apt::Backports::Present,
        };
        assert!(ready.check().is_ok());
    }
}
