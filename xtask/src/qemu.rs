//! The emulated machine: which QEMU, which options, and one run of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command::{ask, forward_lines};
use crate::disks::Disks;

/// The oldest QEMU whose VT-d unit has what the image and the scenarios use.
pub(crate) const OLDEST: Version = Version {
    major: 10,
    minor: 0,
};

/// The program's name in `PATH`.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// QEMU's exit status after the image wrote 0x10 to the debug-exit port: twice that, plus one.
const EXIT_SUCCESS: i32 = 0x10 * 2 + 1;

/// The same after 0x11: the image's own report of a failure.
const EXIT_FAILURE: i32 = 0x11 * 2 + 1;

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
    first_stage: Option<&'static str>,
}

/// The devices of a machine that configurations differ in.
#[derive(Clone, Debug)]
pub(crate) struct Devices<'a> {
    /// Options of the remapping unit; without it there is none.
    pub(crate) iommu: Option<&'a str>,
    /// How many `edu` devices there are, which the image's guests do DMA with.
    pub(crate) edus: u8,
    /// The disks of the devices that the image's hypervisor drives itself: two NVMe controllers, and
    /// with them a network card and a source of entropy. Without disks there is none of them.
    pub(crate) own: Option<&'a Disks>,
    /// Additional devices, as after `-device`.
    pub(crate) others: &'a [String],
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
        let scalable_mode = listed_option(&help, SCALABLE_MODE_NAMES)
            .with_context(|| format!("{} has no scalable mode", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            version,
            scalable_mode,
            first_stage: listed_option(&help, FIRST_STAGE_NAMES),
        })
    }

    /// The program.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// The options of a unit of this kind, with or without interrupt remapping, and with `extra` ones;
    /// `None` if this QEMU has no such unit.
    pub(crate) fn options(&self, unit: UnitKind, intremap: bool, extra: &str) -> Option<String> {
        let mut options = match unit {
            UnitKind::SecondStage => format!("{}=on,", self.scalable_mode),
            UnitKind::FirstStage => format!("{}=on,{}=on,", self.scalable_mode, self.first_stage?),
            UnitKind::Legacy => String::new(),
        };
        options.push_str(if intremap {
            "intremap=on"
        } else {
            "intremap=off"
        });
        if !extra.is_empty() {
            options.push(',');
            options.push_str(extra);
        }
        Some(options)
    }

    /// The command that boots `kernel` on a machine with these devices.
    pub(crate) fn command(&self, kernel: &Path, devices: &Devices<'_>) -> Command {
        let mut command = self.machine(devices);
        // Virtual time jumps over the 100 ms that each DMA of `edu` takes.
        command.args(["-icount", "shift=7,sleep=off"]);
        command.arg("-kernel").arg(kernel);
        command
    }

    /// The machine with these devices, its time the host's.
    pub(crate) fn machine(&self, devices: &Devices<'_>) -> Command {
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
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        if let Some(options) = devices.iommu {
            command.arg("-device").arg(format!("intel-iommu,{options}"));
        }
        for _ in 0..devices.edus {
            // Without the mask, `edu` cuts addresses to 28 bits.
            command.args(["-device", "edu,dma_mask=0xffffffffffffffff"]);
        }
        if let Some(disks) = devices.own {
            add_own_devices(&mut command, disks);
        }
        for device in devices.others {
            command.args(["-device", device]);
        }
        command
    }
}

/// Adds the devices that the image's hypervisor drives itself.
fn add_own_devices(command: &mut Command, disks: &Disks) {
    for (serial, path) in disks.list() {
        // What is written goes elsewhere: the file stays as it is, and several runs can share it.
        let drive = format!(
            "if=none,id={serial},format=raw,snapshot=on,file={}",
            path.display()
        );
        let device = format!("nvme,drive={serial},serial={serial}");
        command.args(["-drive", &drive, "-device", &device]);
    }
    // A hub with one port: the link is up, and frames go nowhere. No ROM: the firmware is done sooner.
    command.args(["-netdev", "hubport,id=net,hubid=0"]);
    command.args(["-device", "e1000e,netdev=net,romfile="]);
    // Its DMA goes through the remapping unit only where it is told that there is one.
    command.args([
        "-device",
        "virtio-rng-pci,iommu_platform=on,disable-legacy=on",
    ]);
}

/// What a unit offers; the library drives the last two in legacy mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum UnitKind {
    /// Scalable mode with second-stage tables.
    SecondStage,
    /// Scalable mode with first-stage tables only.
    FirstStage,
    /// No scalable mode.
    Legacy,
}

/// Names of the option for scalable mode: it lost its prefix in QEMU 11.
const SCALABLE_MODE_NAMES: [&str; 2] = ["scalable-mode", "x-scalable-mode"];

/// Names of the option for first-stage in place of second-stage tables, newest first.
const FIRST_STAGE_NAMES: [&str; 2] = ["fsts", "x-flts"];

/// The first of `names` that the output of `-device intel-iommu,help` lists.
fn listed_option(help: &str, names: [&'static str; 2]) -> Option<&'static str> {
    names.into_iter().find(|name| {
        help.lines()
            .any(|line| line.trim_start().split('=').next() == Some(name))
    })
}

/// How a run of the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The image wrote the success code.
    Success,
    /// The image wrote the failure code.
    ImageFailed,
    /// The machine reset or powered off, which the image never lets happen.
    PoweredOff,
    /// QEMU ended in another way.
    Failure(String),
    /// The time limit passed and QEMU was ended.
    TimedOut(Duration),
}

impl Ending {
    fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(EXIT_SUCCESS) => Self::Success,
            Some(EXIT_FAILURE) => Self::ImageFailed,
            Some(0) => Self::PoweredOff,
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
            Self::ImageFailed => Some("the image reported a failure".into()),
            Self::PoweredOff => Some("the machine reset or powered off (QEMU status 0)".into()),
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
    fn the_listed_name_of_an_option_is_chosen() {
        let older =
            "intel-iommu options:\n  x-flts=<bool>\n  x-scalable-mode=<bool>  - (default: false)\n";
        let newer = "intel-iommu options:\n  fsts=<bool>\n  scalable-mode=<bool>\n";
        for (help, scalable_mode, first_stage) in [
            (older, Some("x-scalable-mode"), Some("x-flts")),
            (newer, Some("scalable-mode"), Some("fsts")),
            ("  intremap=<OnOffAuto>\n", None, None),
        ] {
            assert_eq!(listed_option(help, SCALABLE_MODE_NAMES), scalable_mode);
            assert_eq!(listed_option(help, FIRST_STAGE_NAMES), first_stage);
        }
    }

    #[test]
    fn only_the_success_code_is_a_success() {
        use std::os::unix::process::ExitStatusExt;
        let ended = |code: i32| Ending::of(ExitStatus::from_raw(code << 8));
        assert_eq!(ended(33), Ending::Success);
        assert_eq!(ended(35), Ending::ImageFailed);
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
