//! The emulated machine: which QEMU, which options, and one run of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command::{ask, forward_lines};

/// The oldest QEMU whose VT-d unit has what the image and the scenarios use.
pub(crate) const OLDEST: Version = Version {
    major: 10,
    minor: 0,
};

/// The program's name in `PATH`.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// QEMU's exit status after the image wrote 0x10 to the debug-exit port: twice that, plus one.
const EXIT_SUCCESS: i32 = 0x10 * 2 + 1;

/// Options of the unit that every configuration has, after scalable mode.
const COMMON_OPTIONS: &str = "intremap=off";

/// A QEMU version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// First number.
    pub(crate) major: u32,
    /// Second number.
    pub(crate) minor: u32,
}

impl Version {
    /// The version in the output of `--version`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("version ")?;
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A QEMU that is there and recent enough.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    path: PathBuf,
    version: Version,
    scalable_mode: &'static str,
}

impl Qemu {
    /// The version of the program at `path`, or `None` if it cannot be run or tells none.
    pub(crate) fn version_of(path: &Path) -> Option<Version> {
        Version::parse(&ask(Command::new(path).arg("--version"))?)
    }

    /// The QEMU at `path`, asked for the names of its unit's options.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let version = Self::version_of(path)
            .with_context(|| format!("`{} --version` tells no version", path.display()))?;
        let help = ask(Command::new(path).args(["-device", "intel-iommu,help"]))
            .with_context(|| format!("{} has no intel-iommu device", path.display()))?;
        let scalable_mode = scalable_mode_option(&help)
            .with_context(|| format!("{} has no scalable mode", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            version,
            scalable_mode,
        })
    }

    /// Its version.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// The unit's options for scalable mode with second-stage tables, and `extra` ones.
    pub(crate) fn scalable_options(&self, extra: &str) -> String {
        let comma = if extra.is_empty() { "" } else { "," };
        format!("{}=on,{COMMON_OPTIONS}{comma}{extra}", self.scalable_mode)
    }

    /// The command that boots `kernel` on a machine with this unit and these additional devices.
    pub(crate) fn command(&self, kernel: &Path, iommu: &str, devices: &[String]) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(["-accel", "tcg", "-machine", "q35", "-cpu", "EPYC"])
            .args(["-m", "512", "-smp", "1"])
            .args([
                "-nodefaults",
                "-no-reboot",
                "-display",
                "none",
                "-vga",
                "none",
            ])
            .args(["-serial", "stdio", "-monitor", "none"])
            // Virtual time jumps over the 100 ms that each DMA of `edu` takes.
            .args(["-icount", "shift=7,sleep=off"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
            .arg("-device")
            .arg(format!("intel-iommu,{iommu}"))
            // Without the mask, `edu` cuts addresses to 28 bits.
            .args(["-device", "edu,dma_mask=0xffffffffffffffff"]);
        for device in devices {
            command.args(["-device", device]);
        }
        command.arg("-kernel").arg(kernel);
        command
    }
}

/// The name of the scalable-mode option in the output of `-device intel-iommu,help`: it lost its
/// prefix in QEMU 11.
fn scalable_mode_option(help: &str) -> Option<&'static str> {
    ["scalable-mode", "x-scalable-mode"]
        .into_iter()
        .find(|name| {
            help.lines()
                .any(|line| line.trim_start().split('=').next() == Some(name))
        })
}

/// How a run of the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The image wrote the success code.
    Success,
    /// QEMU ended in another way.
    Failure(String),
    /// The time limit passed and QEMU was ended.
    TimedOut(Duration),
}

impl Ending {
    fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(EXIT_SUCCESS) => Self::Success,
            Some(0) => Self::Failure("the machine reset or powered off (QEMU status 0)".into()),
            Some(code) if code & 1 == 1 && code > 1 => {
                Self::Failure(format!("the image ended with code {:#x}", code >> 1))
            }
            _ => Self::Failure(format!("QEMU ended early ({status})")),
        }
    }

    /// Why the ending is not a success.
    pub(crate) fn why(&self) -> Option<String> {
        match self {
            Self::Success => None,
            Self::Failure(why) => Some(why.clone()),
            Self::TimedOut(limit) => Some(format!("time limit of {} s exceeded", limit.as_secs())),
        }
    }
}

/// A line that a running machine produced.
#[derive(Debug)]
pub(crate) enum Line {
    /// On the serial console.
    Console(String),
    /// By QEMU itself.
    Qemu(String),
}

/// Ends QEMU when the run is left, however it is left.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the machine until it ends or `limit` has passed, and hands each line to `each`.
pub(crate) fn run(
    command: &mut Command,
    limit: Duration,
    mut each: impl FnMut(Line),
) -> Result<Ending> {
    let deadline = Instant::now() + limit;
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start QEMU")?;
    let mut running = Running(child);
    let (sender, lines) = mpsc::channel();
    if let Some(console) = running.0.stdout.take() {
        forward_lines(console, sender.clone(), Line::Console);
    }
    if let Some(errors) = running.0.stderr.take() {
        forward_lines(errors, sender.clone(), Line::Qemu);
    }
    drop(sender);
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => each(line),
            Err(RecvTimeoutError::Timeout) => return Ok(Ending::TimedOut(limit)),
            // Both pipes are closed: QEMU has ended, or is about to.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    loop {
        if let Some(status) = running.0.try_wait()? {
            return Ok(Ending::of(status));
        }
        if Instant::now() >= deadline {
            return Ok(Ending::TimedOut(limit));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_first_line() {
        for (text, expected) in [
            (
                "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright",
                Some((10, 0)),
            ),
            ("QEMU emulator version 7.2.17", Some((7, 2))),
            (
                "QEMU emulator version 11.1.50 (v11.0.0-1-g0)",
                Some((11, 1)),
            ),
            ("QEMU emulator version 9", None),
            ("something else", None),
            ("", None),
        ] {
            let version = Version::parse(text).map(|v| (v.major, v.minor));
            assert_eq!(version, expected, "{text}");
        }
        assert!(Version { major: 9, minor: 2 } < OLDEST);
        assert!(
            Version {
                major: 11,
                minor: 0
            } > OLDEST
        );
    }

    #[test]
    fn the_listed_name_of_scalable_mode_is_chosen() {
        let older =
            "intel-iommu options:\n  x-flts=<bool>\n  x-scalable-mode=<bool>  - (default: false)\n";
        let newer = "intel-iommu options:\n  fsts=<bool>\n  scalable-mode=<bool>\n";
        assert_eq!(scalable_mode_option(older), Some("x-scalable-mode"));
        assert_eq!(scalable_mode_option(newer), Some("scalable-mode"));
        assert_eq!(scalable_mode_option("  intremap=<OnOffAuto>\n"), None);
    }

    #[test]
    fn only_the_success_code_is_a_success() {
        use std::os::unix::process::ExitStatusExt;
        let ended = |code: i32| Ending::of(ExitStatus::from_raw(code << 8));
        assert_eq!(ended(33), Ending::Success);
        for code in [0, 1, 3, 35] {
            assert!(ended(code).why().is_some(), "{code}");
        }
        assert!(Ending::of(ExitStatus::from_raw(9)).why().is_some());
    }

    #[test]
    fn a_machine_that_does_not_end_is_ended_at_the_limit() {
        let mut lines = Vec::new();
        let limit = Duration::from_millis(200);
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; exec sleep 60"]);
        let ending = run(&mut command, limit, |line| lines.push(format!("{line:?}"))).unwrap();
        assert_eq!(ending, Ending::TimedOut(limit));
        assert_eq!(lines, [r#"Console("one")"#]);
    }
}
