//! What the guest tells: lines of its one process, put together and judged.

use serde::Deserialize;

/// What starts a line of the guest's process; one JSON object follows.
const MARKER: &str = "@guest ";

/// Everything that the guest told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Told {
    /// Seconds from the kernel's start to its first process.
    pub(crate) init_seconds: Option<f64>,
    /// Seconds to the end of the work.
    pub(crate) done_seconds: Option<f64>,
    /// Microseconds for one read of 4 KiB.
    pub(crate) read_microseconds: Option<f64>,
    /// SHA-256 of the disk's first half as read, and of the second after it was written.
    pub(crate) read_sum: Option<String>,
    pub(crate) written_sum: Option<String>,
    /// The base address register before and after each try to move it.
    pub(crate) bar: Vec<String>,
    /// The kernel's lines about blocked DMA.
    pub(crate) faults: Vec<String>,
    /// Whether it tried to send messages that take a processor away, and went on.
    pub(crate) interrupts: bool,
    /// Whether the kernel drives a remapping unit, and remaps interrupts.
    pub(crate) unit: bool,
    pub(crate) interrupt_remapping: bool,
    pub(crate) errors: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    init_seconds: Option<f64>,
    done_seconds: Option<f64>,
    reads: Option<f64>,
    reads_start: Option<f64>,
    reads_end: Option<f64>,
    read_sum: Option<String>,
    written_sum: Option<String>,
    bar_by_port: Option<String>,
    bar_by_memory: Option<String>,
    fault: Option<String>,
    interrupts: Option<bool>,
    unit: Option<bool>,
    interrupt_remapping: Option<bool>,
    error: Option<String>,
}

impl Told {
    /// Takes a console line; `false` if it is another's.
    pub(crate) fn take(&mut self, line: &str) -> bool {
        let Some((_, object)) = line.split_once(MARKER) else {
            return false;
        };
        let line: Line = match serde_json::from_str(object.trim()) {
            Ok(line) => line,
            Err(error) => {
                self.errors
                    .push(format!("unreadable line {object:?}: {error}"));
                return true;
            }
        };
        self.init_seconds = self.init_seconds.or(line.init_seconds);
        self.done_seconds = self.done_seconds.or(line.done_seconds);
        if let (Some(reads), Some(start), Some(end)) =
            (line.reads, line.reads_start, line.reads_end)
        {
            self.read_microseconds = Some((end - start) / reads * 1e6);
        }
        self.read_sum = self.read_sum.take().or(line.read_sum);
        self.written_sum = self.written_sum.take().or(line.written_sum);
        self.bar.extend(line.bar_by_port);
        self.bar.extend(line.bar_by_memory);
        self.faults.extend(line.fault);
        self.interrupts |= line.interrupts.unwrap_or(false);
        self.unit |= line.unit.unwrap_or(false);
        self.interrupt_remapping |= line.interrupt_remapping.unwrap_or(false);
        self.errors.extend(line.error);
        true
    }

    /// Whether one of the kernel's lines is about a blocked read, or write, of `device` at
    /// `address` for `reason`.
    pub(crate) fn has_fault(&self, request: &str, device: &str, address: u64, reason: u8) -> bool {
        let device = format!("device [{device}]");
        let address = format!("fault addr {address:#x} ");
        let reason = format!("[fault reason {reason:#04x}]");
        self.faults.iter().any(|line| {
            line.contains(&format!("[DMA {request}"))
                && line.contains(&device)
                && line.contains(&address)
                && line.contains(&reason)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_add_up() {
        let mut told = Told::default();
        assert!(!told.take("[    0.0] Linux version"));
        for line in [
            r#"@guest {"init_seconds":2.5}"#,
            r#"@guest {"reads":1000,"reads_start":3.00,"reads_end":3.25}"#,
            r#"@guest {"read_sum":"ab"}"#,
            r#"@guest {"fault":"[ 3.1] DMAR: [DMA Read NO_PASID] Request device [00:01.0] fault addr 0x5500005000 [fault reason 0x79] SM: x"}"#,
            r#"@guest {"unit":true}"#,
            r#"@guest {"done_seconds":4.0}"#,
        ] {
            assert!(told.take(line));
        }
        assert_eq!(told.init_seconds, Some(2.5));
        assert_eq!(told.read_microseconds, Some(250.0));
        assert_eq!(told.read_sum.as_deref(), Some("ab"));
        assert!(told.unit && !told.interrupt_remapping && told.errors.is_empty());
        assert!(told.has_fault("Read", "00:01.0", 0x55_0000_5000, 0x79));
        for (request, device, address, reason) in [
            ("Write", "00:01.0", 0x55_0000_5000, 0x79),
            ("Read", "00:02.0", 0x55_0000_5000, 0x79),
            ("Read", "00:01.0", 0x5500_0500, 0x79),
            ("Read", "00:01.0", 0x55_0000_5000, 0x71),
        ] {
            assert!(!told.has_fault(request, device, address, reason));
        }
        told.take("@guest {broken");
        assert_eq!(told.errors.len(), 1);
    }
}
