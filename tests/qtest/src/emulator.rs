//! The emulator's process and the protocol that drives it.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::options::Options;

/// How long one answer may take. Accesses take microseconds; the first one waits for the start.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The firmware's length; it ends at 4 GiB and at 1 MiB.
const FIRMWARE_BYTES: usize = 64 << 10;

/// Where in the firmware the processor starts.
const RESET_VECTOR: usize = FIRMWARE_BYTES - 16;

/// `cli; 1: hlt; jmp 1b`
const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];

/// Why a machine did not start.
#[derive(Debug)]
pub enum StartError {
    /// [`Options::ram_bytes`] is not a multiple of 1 MiB from 64 MiB to 2 GiB.
    RamBytes(u64),
    /// The operating system refused a file, a mapping or the process.
    System(io::Error),
    /// The emulator refused its options, or ended; with what it wrote.
    Emulator(String),
    /// An `edu` device's buffer was not found in the emulator: its number, and why.
    Buffer(usize, io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RamBytes(len_bytes) => write!(f, "memory of {len_bytes} bytes"),
            Self::System(error) => write!(f, "cannot start the emulator: {error}"),
            Self::Emulator(lost) => f.write_str(lost),
            Self::Buffer(index, error) => {
                write!(f, "buffer of edu {index} in the emulator: {error}")
            }
        }
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// One access to the machine, from the processor's side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Read32(u64),
    Read64(u64),
    Write32(u64, u32),
    Write64(u64, u64),
    PortRead32(u16),
    PortWrite8(u16, u8),
    PortWrite32(u16, u32),
}

impl fmt::Display for Operation {
    /// As a line of the protocol.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Read32(at) => write!(f, "readl {at:#x}"),
            Self::Read64(at) => write!(f, "readq {at:#x}"),
            Self::Write32(at, value) => write!(f, "writel {at:#x} {value:#x}"),
            Self::Write64(at, value) => write!(f, "writeq {at:#x} {value:#x}"),
            Self::PortRead32(port) => write!(f, "inl {port:#x}"),
            Self::PortWrite8(port, value) => write!(f, "outb {port:#x} {value:#x}"),
            Self::PortWrite32(port, value) => write!(f, "outl {port:#x} {value:#x}"),
        }
    }
}

/// The running emulator; shared by all handles of a machine.
pub(crate) struct Emulator {
    process_id: u32,
    inner: Mutex<Inner>,
}

struct Inner {
    child: Child,
    stream: BufReader<UnixStream>,
    /// What it writes to its standard error.
    errors: File,
    /// Set once it ended or went silent; nothing is sent any more.
    lost: Option<String>,
}

impl Emulator {
    /// Starts a machine whose memory is the file `ram`, and waits until it answers.
    pub(crate) fn start(options: &Options, ram: &File) -> Result<Self, StartError> {
        let mut firmware = tempfile::tempfile()?;
        let mut image = [0xf4; FIRMWARE_BYTES];
        image[RESET_VECTOR..][..HALT.len()].copy_from_slice(&HALT);
        firmware.write_all(&image)?;
        let errors = tempfile::tempfile()?;
        let (stream, other_end) = UnixStream::pair()?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let child = command(options, ram, &firmware)
            .stdin(Stdio::from(OwnedFd::from(other_end.try_clone()?)))
            .stdout(Stdio::from(OwnedFd::from(other_end)))
            .stderr(Stdio::from(errors.try_clone()?))
            .spawn()?;
        let emulator = Self {
            process_id: child.id(),
            inner: Mutex::new(Inner {
                child,
                stream: BufReader::new(stream),
                errors,
                lost: None,
            }),
        };
        // The files are open in the emulator once it answers.
        emulator
            .lock()
            .perform(&[Operation::PortRead32(0xcf8)], &mut Vec::new())
            .map_err(StartError::Emulator)?;
        Ok(emulator)
    }

    /// The emulator's process.
    pub(crate) fn process_id(&self) -> u32 {
        self.process_id
    }

    /// Performs the operations in order, nothing between them, and gives what the reads read.
    ///
    /// # Panics
    ///
    /// When the emulator ended or does not answer.
    pub(crate) fn perform(&self, operations: &[Operation]) -> Vec<u64> {
        let mut values = Vec::new();
        // The lock is free again when this panics.
        let result = self.lock().perform(operations, &mut values);
        if let Err(lost) = result {
            panic!("{lost}");
        }
        values
    }

    /// Performs a read.
    ///
    /// # Panics
    ///
    /// As [`perform`](Self::perform).
    pub(crate) fn read(&self, operation: Operation) -> u64 {
        let values = self.perform(&[operation]);
        *values.first().expect("the operation is a read")
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Inner {
    fn perform(&mut self, operations: &[Operation], values: &mut Vec<u64>) -> Result<(), String> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let result = self.exchange(operations, values);
        result.map_err(|(operation, error)| self.give_up(operation, &error))
    }

    fn exchange(
        &mut self,
        operations: &[Operation],
        values: &mut Vec<u64>,
    ) -> Result<(), (Operation, io::Error)> {
        let Some(&first) = operations.first() else {
            return Ok(());
        };
        let lines: String = operations.iter().map(|line| format!("{line}\n")).collect();
        let stream = self.stream.get_mut();
        stream
            .write_all(lines.as_bytes())
            .map_err(|error| (first, error))?;
        for &operation in operations {
            values.extend(self.answer().map_err(|error| (operation, error))?);
        }
        Ok(())
    }

    /// Reads one answer: the value if it has one.
    fn answer(&mut self) -> io::Result<Option<u64>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("OK"), None) => Ok(None),
            (Some("OK"), Some(value)) => value
                .strip_prefix("0x")
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .map(Some)
                .ok_or_else(|| io::Error::other(line.trim())),
            _ => Err(io::Error::other(line.trim())),
        }
    }

    /// Ends the emulator and says what became of it.
    fn give_up(&mut self, operation: Operation, error: &io::Error) -> String {
        // One that is about to end tells a status of its own; one that hangs is killed.
        if error.kind() != io::ErrorKind::UnexpectedEof {
            let _ = self.child.kill();
        }
        let status = self.child.wait().map_or_else(
            |error| format!("its status is unknown: {error}"),
            |status| status.to_string(),
        );
        let mut written = String::new();
        if self.errors.rewind().is_err() || self.errors.read_to_string(&mut written).is_err() {
            written.push_str("(not readable)");
        }
        let written = written.trim();
        let lost = format!(
            "the emulator is lost at `{operation}`: {error}; {status}; it wrote: {written}"
        );
        self.lost = Some(lost.clone());
        lost
    }
}

/// The command that starts the machine.
fn command(options: &Options, ram: &File, firmware: &File) -> Command {
    // Neither file has a name, so that none is left behind whatever happens.
    let path_of = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let ram_bytes = options.ram_bytes;
    let mut iommu = String::from("intel-iommu");
    if !options.iommu.is_empty() {
        iommu = format!("{iommu},{}", options.iommu);
    }
    let mut command = Command::new(&options.qemu);
    command
        .args(["-accel", "tcg,tb-size=1"])
        // Virtual time jumps to the next timer, which then is that of a DMA: the periodic ones
        // are off, or the emulator would never rest.
        .args(["-icount", "shift=0,sleep=off"])
        .args([
            "-machine",
            "q35,memory-backend=ram,hpet=off,pit=off,sata=off,smbus=off,usb=off,vmport=off",
        ])
        .args(["-no-user-config", "-nodefaults"])
        .args(["-display", "none", "-vga", "none", "-net", "none"])
        .args(["-serial", "none", "-monitor", "none"])
        .args(["-qtest", "stdio", "-qtest-log", "none"])
        .args(["-bios", &path_of(firmware)])
        .args(["-m", &format!("{}M", ram_bytes >> 20)])
        .args([
            "-object",
            &format!(
                "memory-backend-file,id=ram,share=on,size={ram_bytes},mem-path={}",
                path_of(ram)
            ),
        ])
        .args(["-device", &iommu]);
    for source_id in crate::edu::SOURCE_IDS {
        // Without the mask, `edu` cuts addresses to 28 bits.
        command.arg("-device").arg(format!(
            "edu,addr={:#x},dma_mask=0xffffffffffffffff",
            source_id.device()
        ));
    }
    for (index, source_id) in crate::nvme::SOURCE_IDS.into_iter().enumerate() {
        let (slot, serial) = (source_id.device(), crate::nvme::SERIAL);
        command
            .arg("-drive")
            .arg(format!("if=none,id=disk{index},driver=null-co,size=1M"))
            .arg("-device")
            .arg(format!(
                "nvme,drive=disk{index},serial={serial}{index},addr={slot:#x}"
            ));
    }
    command.args(["-device", "e1000e,romfile=,addr=5"]).args([
        "-device",
        "virtio-rng-pci,iommu_platform=on,disable-legacy=on,romfile=,addr=6",
    ]);
    for device in &options.devices {
        command.args(["-device", device]);
    }
    command
}
