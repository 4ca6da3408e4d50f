//! The disk controllers: what one reads and writes by itself, by its own DMA.

use std::sync::Arc;

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::id::SourceId;

use crate::emulator::{Emulator, Operation};

/// The machine's controllers: 00:03.0 and 00:04.0.
pub(crate) const SOURCE_IDS: [SourceId; 2] = [SourceId::from_u16(0x18), SourceId::from_u16(0x20)];

/// Where their registers are, 16 KiB each.
pub(crate) const BASES: [u32; 2] = [0xfeb0_0000, 0xfeb1_0000];

/// What the serial number of a controller starts with; its index follows.
pub(crate) const SERIAL: &str = "disk-";

const CONFIGURATION: u64 = 0x14;
const STATUS: u64 = 0x1c;
const ADMIN_QUEUE_ATTRIBUTES: u64 = 0x24;
const ADMIN_SUBMISSION_QUEUE: u64 = 0x28;
const ADMIN_COMPLETION_QUEUE: u64 = 0x30;
const SUBMISSION_DOORBELL: u64 = 0x1000;

/// Enabled, with entries of 64 and 16 bytes.
const ENABLED: u32 = 1 | 6 << 16 | 4 << 20;
/// Queues of two entries.
const TWO_ENTRIES: u32 = 1 << 16 | 1;

/// A command goes through a few rounds of the emulator's loop, of which each access is one at least.
const ROUNDS: usize = 64;

/// One of the machine's two disk controllers. Its requests have no PASID. Clones are the same device.
///
/// It fetches commands, stores data and stores completions, each by a request of its own. What is
/// blocked is only seen by what is missing in memory, and by the unit's fault records.
#[derive(Clone)]
pub struct Nvme {
    emulator: Arc<Emulator>,
    source_id: SourceId,
    base: u64,
}

impl Nvme {
    pub(crate) fn new(emulator: &Arc<Emulator>, index: usize) -> Self {
        Self {
            emulator: Arc::clone(emulator),
            source_id: SOURCE_IDS[index],
            base: BASES[index].into(),
        }
    }

    /// The controller's source-id.
    pub fn source_id(&self) -> SourceId {
        self.source_id
    }

    /// The command that has a controller write its 4 KiB of identification to `into`: bytes 4 to 9
    /// of it are `disk-0` or `disk-1`.
    pub fn identify_command(into: Iova) -> [u8; 64] {
        const IDENTIFY: u8 = 0x06;
        const CONTROLLER: u8 = 1;
        let mut command = [0; 64];
        command[0] = IDENTIFY;
        command[24..32].copy_from_slice(&into.as_u64().to_le_bytes());
        command[40] = CONTROLLER;
        command
    }

    /// Starts the controller anew with queues of two entries at these pages, and has it run the
    /// first command. Byte 14 of `completions` is 1 once it is done.
    ///
    /// # Panics
    ///
    /// When the emulator is lost.
    pub fn run_first_command(&self, commands: Iova, completions: Iova) {
        let at = |offset| self.base + offset;
        self.emulator.perform(&[
            Operation::Write32(at(CONFIGURATION), 0),
            Operation::Write32(at(ADMIN_QUEUE_ATTRIBUTES), TWO_ENTRIES),
            Operation::Write64(at(ADMIN_SUBMISSION_QUEUE), commands.as_u64()),
            Operation::Write64(at(ADMIN_COMPLETION_QUEUE), completions.as_u64()),
            Operation::Write32(at(CONFIGURATION), ENABLED),
            Operation::Write32(at(SUBMISSION_DOORBELL), 1),
        ]);
        for _ in 0..ROUNDS {
            self.emulator.read(Operation::Read32(at(STATUS)));
        }
    }
}
