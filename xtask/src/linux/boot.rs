//! One boot of the guest, with the hypervisor or without it, and its judgement.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use console::style;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::command::ask;
use crate::progress::Progress;
use crate::qemu::{self, Devices, Ending, Line, Qemu, UnitKind};
use crate::report::{Capabilities, MARKER};
use crate::run::Console;

use super::guest::Told;

/// The time that a boot may take; it takes five seconds on a machine that is not busy.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Half of the disk, which is what is read and what is written.
const PROOF_MIB: usize = 8;
const PROOF_BYTES: usize = PROOF_MIB << 20;
/// Single reads of 4 KiB.
const PROOF_READS: u32 = 1000;
/// An address of no memory at all, which nobody maps.
const PROOF_FAULT: u64 = 0x55_0000_5000;
/// The hypervisor's own memory.
const HYPERVISOR: u64 = 0x800_0000;
/// What the image says when the guest reaches for that.
const TRESPASS: &str = "the guest stopped: Access(MemoryAccess { address: Gpa(0x8000000)";
/// Where `edu` is, being the first device.
const EDU: &str = "00:01.0";
/// What every configuration's command line has. The kernel lets its own timer alone, which an
/// emulator on a busy machine may look broken to.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 no_timer_check iomem=relaxed";

/// How the guest uses its unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Scalable mode with tables of its own: shadowed or nested, as hardware can.
    Scalable,
    /// Scalable mode with pass-through entries.
    PassThrough,
    /// Legacy mode.
    Legacy,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalable => "scalable",
            Self::PassThrough => "pass-through",
            Self::Legacy => "legacy",
        })
    }
}

/// One configuration.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Config {
    pub(crate) mode: Mode,
    /// Processors.
    pub(crate) smp: u32,
    /// Whether the physical unit can remap interrupts.
    pub(crate) intremap: bool,
    /// Whether the guest waits for each invalidation.
    pub(crate) strict: bool,
    /// The kernel's version, or its file.
    pub(crate) kernel: String,
}

impl Config {
    fn command_line(&self) -> String {
        let mode = match self.mode {
            Mode::Scalable => "intel_iommu=on,sm_on",
            Mode::PassThrough => "intel_iommu=on,sm_on iommu=pt",
            Mode::Legacy => "intel_iommu=on,sm_off",
        };
        format!("{mode} iommu.strict={}", u8::from(self.strict))
    }

    /// The reasons that the guest's unit gives for a blocked read and write of [`PROOF_FAULT`].
    fn fault_reasons(&self) -> [u8; 2] {
        match self.mode {
            // No second-stage entry.
            Mode::Scalable => [0x79, 0x79],
            // Allowed by the guest, denied by its machine.
            Mode::PassThrough => [0x86, 0x85],
            Mode::Legacy => [0x06, 0x05],
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strict = if self.strict { "strict" } else { "lazy" };
        let intremap = if self.intremap { "on" } else { "off" };
        write!(f, "{}, {strict}, intremap {intremap}", self.mode)
    }
}

/// What a boot is made of.
pub(crate) struct Setup<'a> {
    pub(crate) qemu: &'a Qemu,
    /// Options of the unit, if others than the configuration's are wanted.
    pub(crate) iommu: Option<&'a str>,
    pub(crate) devices: &'a [String],
    pub(crate) image: &'a Path,
    pub(crate) kernel: &'a Path,
    pub(crate) ramdisk: &'a Path,
    pub(crate) container: &'a Path,
    /// Cargo's folder for the guest's files.
    pub(crate) folder: &'a Path,
    /// Added to the kernel's command line.
    pub(crate) command_line: Option<&'a str>,
    /// Whether the RAM file system is one that tells what it did.
    pub(crate) is_own: bool,
}

/// One boot, as reported.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Boot {
    pub(crate) config: Config,
    pub(crate) ok: bool,
    /// From power-on to power-off.
    pub(crate) seconds: f64,
    /// The physical unit.
    pub(crate) unit: Option<Capabilities>,
    /// The guest's.
    pub(crate) shown: Option<Capabilities>,
    /// Exits by kind.
    pub(crate) exits: Map<String, Value>,
    /// Counters of the hypervisor and the library.
    pub(crate) totals: Map<String, Value>,
    /// What the guest measured.
    pub(crate) guest: Figures,
    /// The same of a boot without the hypervisor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) native: Option<Figures>,
    /// What did not hold.
    pub(crate) why: String,
    #[serde(skip)]
    pub(crate) backend: Option<String>,
}

/// What the guest measured.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    /// From the kernel's start to its first process.
    pub(crate) init_seconds: Option<f64>,
    /// One read of 4 KiB.
    pub(crate) read_microseconds: Option<f64>,
    /// Bytes read and written through the unit and compared.
    pub(crate) bytes: u64,
    /// Whether the guest's unit remapped its interrupts.
    pub(crate) interrupt_remapping: bool,
}

/// One object on the image's console.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Entry {
    Unit(Capabilities),
    Shown(Capabilities),
    Backend(String),
    Exits(Map<String, Value>),
    Totals(Map<String, Value>),
}

/// What a run showed.
#[derive(Default)]
struct Seen {
    told: Told,
    backend: Option<String>,
    unit: Option<Capabilities>,
    shown: Option<Capabilities>,
    exits: Map<String, Value>,
    totals: Map<String, Value>,
    why: Vec<String>,
    lines: Vec<String>,
}

impl Seen {
    fn take(&mut self, line: String, console: Console, progress: &Progress) {
        if let Some((_, object)) = line.split_once(MARKER) {
            match serde_json::from_str(object.trim()) {
                Ok(Entry::Unit(unit)) => self.unit = Some(unit),
                Ok(Entry::Shown(shown)) => self.shown = Some(shown),
                Ok(Entry::Backend(name)) => self.backend = Some(name),
                Ok(Entry::Exits(exits)) => self.exits = exits,
                Ok(Entry::Totals(totals)) => self.totals = totals,
                Err(error) => self.why.push(format!("unreadable report line: {error}")),
            }
            return;
        }
        self.told.take(&line);
        if console == Console::Shown {
            progress.line(&format!("  {} {line}", style("|").dim()));
        }
        progress.at(&line);
        self.lines.push(line);
    }
}

/// The disk: its first half random, its second zero.
struct Disk {
    path: PathBuf,
    sum: Option<String>,
}

impl Disk {
    fn make(folder: &Path) -> Result<Self> {
        let path = folder.join("disk");
        let mut seed = Instant::now().elapsed().as_nanos() as u64
            ^ u64::from(std::process::id())
            ^ 0x9e37_79b9_7f4a_7c15;
        let mut content = Vec::with_capacity(2 * PROOF_BYTES);
        while content.len() < PROOF_BYTES {
            // xorshift64
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            content.extend(seed.to_le_bytes());
        }
        fs::write(&path, &content)?;
        let sum = ask(Command::new("sha256sum").arg(&path));
        let sum = sum.and_then(|text| Some(text.split_whitespace().next()?.to_owned()));
        content.resize(2 * PROOF_BYTES, 0);
        fs::write(&path, &content)?;
        Ok(Self { path, sum })
    }

    /// Whether the second half is a copy of the first now.
    fn is_copied(&self) -> Result<bool> {
        let content = fs::read(&self.path)?;
        let (first, second) = content.split_at(content.len() / 2);
        Ok(first == second)
    }
}

/// Boots a configuration with the hypervisor.
pub(crate) fn boot(
    setup: &Setup<'_>,
    config: &Config,
    console: Console,
    progress: &Progress,
) -> Result<Boot> {
    let disk = Disk::make(setup.folder)?;
    let mut command = machine(setup, config, &disk, " PROOF_INTERRUPTS=1");
    command.arg("-kernel").arg(setup.image);
    command.arg("-initrd").arg(setup.container);
    let (ending, mut seen, seconds) = run(&mut command, console, progress)?;
    seen.why.extend(ending.why());
    if setup.is_own {
        judge(&mut seen, config, setup, &disk)?;
    }
    if !seen.why.is_empty() && console == Console::Hidden {
        for line in seen.lines.iter().rev().take(20).rev() {
            progress.line(&format!("  {} {line}", style("|").dim()));
        }
    }
    Ok(Boot {
        config: config.clone(),
        ok: seen.why.is_empty(),
        seconds,
        unit: seen.unit,
        shown: seen.shown,
        exits: seen.exits,
        totals: seen.totals,
        guest: figures(&seen.told),
        native: None,
        why: seen.why.join("; "),
        backend: seen.backend,
    })
}

/// Boots the same without the hypervisor, to compare.
pub(crate) fn boot_native(
    setup: &Setup<'_>,
    config: &Config,
    progress: &Progress,
) -> Result<Figures> {
    let disk = Disk::make(setup.folder)?;
    let mut command = machine(setup, config, &disk, "");
    command.arg("-kernel").arg(setup.kernel);
    command.arg("-initrd").arg(setup.ramdisk);
    let (ending, seen, _) = run(&mut command, Console::Hidden, progress)?;
    match ending {
        Ending::PoweredOff => Ok(figures(&seen.told)),
        ending => {
            Err(anyhow::anyhow!(ending.why().unwrap_or_default())).context("without the hypervisor")
        }
    }
}

/// Boots a guest that reads the hypervisor's memory: it has to be stopped, and told why.
pub(crate) fn boot_trespasser(
    setup: &Setup<'_>,
    config: &Config,
    progress: &Progress,
) -> Result<String> {
    let disk = Disk::make(setup.folder)?;
    let more = format!(" PROOF_TRESPASS={HYPERVISOR:#x}");
    let mut command = machine(setup, config, &disk, &more);
    command.arg("-kernel").arg(setup.image);
    command.arg("-initrd").arg(setup.container);
    let (ending, seen, _) = run(&mut command, Console::Hidden, progress)?;
    let said = seen.lines.iter().find(|line| line.contains(TRESPASS));
    match (ending, said) {
        (Ending::ImageFailed, Some(line)) => Ok(line.clone()),
        (ending, _) => bail!(
            "the guest was not stopped: {ending:?}, {:?}",
            seen.told.errors
        ),
    }
}

fn figures(told: &Told) -> Figures {
    let is_done = told.read_sum.is_some() && told.written_sum.is_some();
    Figures {
        init_seconds: told.init_seconds,
        read_microseconds: told.read_microseconds.map(f64::round),
        bytes: if is_done { 3 * PROOF_BYTES as u64 } else { 0 },
        interrupt_remapping: told.interrupt_remapping,
    }
}

/// The machine, up to what is booted on it.
fn machine(setup: &Setup<'_>, config: &Config, disk: &Disk, proof: &str) -> Command {
    let own = setup
        .qemu
        .options(UnitKind::SecondStage, config.intremap, "");
    let mut others = vec!["nvme,drive=proof,serial=proof".to_owned()];
    others.extend_from_slice(setup.devices);
    let mut command = setup.qemu.machine(&Devices {
        iommu: setup.iommu.or(own.as_deref()),
        edus: 1,
        own: None,
        others: &others,
    });
    let drive = format!("if=none,id=proof,format=raw,file={}", disk.path.display());
    let mut line = format!("{COMMAND_LINE} {}", config.command_line());
    if setup.is_own {
        line.push_str(&format!(
            " PROOF_MIB={PROOF_MIB} PROOF_READS={PROOF_READS} PROOF_FAULT={PROOF_FAULT:#x}{proof}"
        ));
    }
    if let Some(more) = setup.command_line {
        line.push_str(&format!(" {more}"));
    }
    command.args(["-drive", &drive, "-append", &line]);
    // A later option wins.
    command.args(["-smp", &config.smp.to_string()]);
    command
}

fn run(
    command: &mut Command,
    console: Console,
    progress: &Progress,
) -> Result<(Ending, Seen, f64)> {
    let started = Instant::now();
    let mut seen = Seen::default();
    let ending = qemu::run(command, TIME_LIMIT, |line| match line {
        Line::Console(line) => seen.take(line, console, progress),
        Line::Qemu(_) => {}
    })?;
    let seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    Ok((ending, seen, seconds))
}

/// Finds everything that did not hold.
fn judge(seen: &mut Seen, config: &Config, setup: &Setup<'_>, disk: &Disk) -> Result<()> {
    let told = &seen.told;
    let mut why = Vec::new();
    let mut check = |holds: bool, what: &str| {
        if !holds {
            why.push(what.to_owned());
        }
    };
    check(
        told.done_seconds.is_some(),
        "the guest did not come to its end",
    );
    check(told.unit, "the guest's kernel drives no remapping unit");
    check(disk.sum.is_some(), "`sha256sum` is missing");
    check(told.read_sum == disk.sum, "the disk was not read right");
    check(
        told.written_sum == disk.sum,
        "the disk was not written or read back right",
    );
    check(disk.is_copied()?, "the disk does not hold what was written");
    let moved = told.bar.iter().any(|bar| {
        bar.split_once(' ')
            .is_none_or(|(before, after)| before != after)
    });
    let count = |name: &str| seen.totals.get(name).and_then(Value::as_u64);
    let went_on = told.interrupts && count("refused-interrupts") == Some(3);
    check(
        went_on,
        "messages that take the processor away were not refused",
    );
    check(
        told.bar.len() == 2 && !moved,
        "a base address register moved over the unit",
    );
    let remaps = told.interrupt_remapping == config.intremap;
    check(
        remaps || setup.iommu.is_some() || setup.command_line.is_some(),
        "the guest remaps interrupts if and only if the physical unit can",
    );
    // Other options of the unit may lead to other reasons.
    if setup.iommu.is_none() && setup.command_line.is_none() {
        let [read, write] = config.fault_reasons();
        for (request, reason) in [("Read", read), ("Write", write)] {
            let holds = told.has_fault(request, EDU, PROOF_FAULT, reason);
            let what = format!(
                "no {request} fault of {EDU} at {PROOF_FAULT:#x} for {reason:#04x} in {:?}",
                told.faults
            );
            check(holds, &what);
        }
    }
    for counter in [
        "faults-to-host",
        "quarantines",
        "bind-errors",
        "shadows-dropped",
        "guest-queue-errors",
    ] {
        check(
            count(counter) == Some(0),
            &format!("the counter {counter} is not 0"),
        );
    }
    check(!seen.exits.is_empty(), "the hypervisor told no exits");
    why.extend(told.errors.iter().cloned());
    seen.why.extend(why);
    Ok(())
}
