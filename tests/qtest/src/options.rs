//! Which QEMU, and with which options.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The environment variable that names the program, before the search path.
const VARIABLE: &str = "VTD_NEST_QEMU";

/// The program's name in the search path.
const PROGRAM: &str = "qemu-system-x86_64";

/// Names of the option for scalable mode: it lost its prefix in QEMU 11.
const SCALABLE_MODE_NAMES: [&str; 2] = ["scalable-mode", "x-scalable-mode"];

/// Names of the option for first-stage in place of second-stage tables, newest first.
const FIRST_STAGE_NAMES: [&str; 2] = ["fsts", "x-flts"];

/// A QEMU version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

impl Version {
    /// The version in the output of `--version`.
    fn parse(text: &str) -> Option<Self> {
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

/// Why there is no QEMU to use; printed as the reason why a test is skipped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unavailable(String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// A QEMU with an `intel-iommu` device, asked for the names of that device's options.
#[derive(Clone, Debug)]
pub struct Qemu {
    path: PathBuf,
    version: Version,
    scalable_mode: Option<&'static str>,
    first_stage: Option<&'static str>,
}

impl Qemu {
    /// The program that `VTD_NEST_QEMU` names, else `qemu-system-x86_64` in the search path.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn find() -> Result<Self, Unavailable> {
        let named = std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
        Self::open(Path::new(
            named.as_deref().unwrap_or(std::ffi::OsStr::new(PROGRAM)),
        ))
    }

    /// The program at `path`, or of that name in the search path.
    ///
    /// # Errors
    ///
    /// When it cannot be run, or tells no version or no `intel-iommu` device.
    pub fn open(path: &Path) -> Result<Self, Unavailable> {
        let unavailable = |what: &str| Unavailable(format!("`{}` {what}", path.display()));
        let text = answer(path, &["--version"]).ok_or_else(|| unavailable("cannot be run"))?;
        let version = Version::parse(&text).ok_or_else(|| unavailable("tells no version"))?;
        let help = answer(path, &["-device", "intel-iommu,help"])
            .ok_or_else(|| unavailable("has no `intel-iommu` device"))?;
        Ok(Self {
            path: path.to_owned(),
            version,
            scalable_mode: listed_option(&help, SCALABLE_MODE_NAMES),
            first_stage: listed_option(&help, FIRST_STAGE_NAMES),
        })
    }

    /// Where the program is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Name of the option of `intel-iommu` for scalable mode, if it has that.
    pub fn scalable_mode(&self) -> Option<&'static str> {
        self.scalable_mode
    }

    /// Name of the option of `intel-iommu` for first-stage tables, if it has that.
    pub fn first_stage(&self) -> Option<&'static str> {
        self.first_stage
    }
}

/// What the program prints when it succeeds.
fn answer(path: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}

/// The first of `names` that the output of `-device intel-iommu,help` lists.
fn listed_option(help: &str, names: [&'static str; 2]) -> Option<&'static str> {
    names.into_iter().find(|name| {
        help.lines()
            .any(|line| line.trim_start().split('=').next() == Some(name))
    })
}

/// What a machine is started with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The program.
    pub qemu: PathBuf,
    /// Options of the remapping unit: what follows `intel-iommu,`, possibly nothing.
    pub iommu: String,
    /// More devices beside those that each machine has, each as after `-device`.
    pub devices: Vec<String>,
    /// Length of the machine's memory: a multiple of 1 MiB from 64 MiB to 2 GiB. Memory that is
    /// never written costs nothing.
    pub ram_bytes: u64,
}

impl Options {
    /// A unit without scalable mode.
    pub fn legacy(qemu: &Qemu) -> Self {
        Self {
            qemu: qemu.path.clone(),
            iommu: String::new(),
            devices: Vec::new(),
            ram_bytes: 256 << 20,
        }
    }

    /// A unit with scalable mode and second-stage tables; [`legacy`](Self::legacy) on a QEMU that
    /// has no scalable mode.
    pub fn second_stage(qemu: &Qemu) -> Self {
        let options = Self::legacy(qemu);
        match qemu.scalable_mode {
            Some(name) => options.with(&format!("{name}=on")),
            None => options,
        }
    }

    /// A unit with scalable mode and first-stage tables, if this QEMU has it.
    pub fn first_stage(qemu: &Qemu) -> Option<Self> {
        let name = qemu.first_stage?;
        Some(Self::second_stage(qemu).with(&format!("{name}=on")))
    }

    /// The same with one more option of the unit, such as `caching-mode=on`.
    #[must_use]
    pub fn with(mut self, option: &str) -> Self {
        if !self.iommu.is_empty() {
            self.iommu.push(',');
        }
        self.iommu.push_str(option);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_first_line() {
        for (text, expected) in [
            ("QEMU emulator version 10.0.2 (Debian)\nC", Some((10, 0))),
            ("QEMU emulator version 7.2.17", Some((7, 2))),
            ("QEMU emulator version 9", None),
            ("something else", None),
        ] {
            let version = Version::parse(text).map(|v| (v.major, v.minor));
            assert_eq!(version, expected, "{text}");
        }
    }

    #[test]
    fn the_listed_name_of_an_option_is_chosen() {
        let older = "intel-iommu options:\n  x-flts=<bool>\n  x-scalable-mode=<bool>  - off\n";
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
    fn options_of_the_unit_are_joined_by_commas() {
        let qemu = Qemu {
            path: PROGRAM.into(),
            version: Version {
                major: 10,
                minor: 0,
            },
            scalable_mode: Some("x-scalable-mode"),
            first_stage: Some("x-flts"),
        };
        assert_eq!(
            Options::legacy(&qemu).with("caching-mode=on").iommu,
            "caching-mode=on"
        );
        assert_eq!(
            Options::second_stage(&qemu).with("aw-bits=39").iommu,
            "x-scalable-mode=on,aw-bits=39"
        );
        assert_eq!(
            Options::first_stage(&qemu).map(|options| options.iommu),
            Some("x-scalable-mode=on,x-flts=on".into())
        );
    }

    #[test]
    fn a_missing_program_is_told() {
        let error = Qemu::open(Path::new("/nowhere/qemu")).unwrap_err();
        assert_eq!(error.to_string(), "`/nowhere/qemu` cannot be run");
    }
}
