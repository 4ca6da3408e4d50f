//! What a scenario runs on: one or more remapping units, memory, and devices that do DMA.
//!
//! A bench is as dumb as hardware. What scenarios count, hold back or break is done by the
//! [`Interposer`] between the library and the bench, the same way on every bench.

mod interposer;
mod model;
mod qtest;
mod ranges;

use std::fmt;

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::{Capability, ExtendedCapability};
use vtd_nest::arch::id::{Pasid, SourceId};
use vtd_nest::arch::interrupt::{Interrupt, InterruptMessage};
use vtd_nest::arch::register::Register64;
use vtd_nest::mem::{HostMemory, Registers};

pub(crate) use interposer::{Counts, Hold, Interposer, Observed};
pub(crate) use model::ModelProfile;
pub(crate) use qtest::QtestProfile;
pub(crate) use ranges::{HostRange, Layout};

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Who sends a request, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Requester {
    /// Physical source-id.
    pub(crate) source_id: SourceId,
    pub(crate) pasid: Option<Pasid>,
    /// Supervisor privilege.
    pub(crate) privileged: bool,
    /// Asks for execution.
    pub(crate) execute: bool,
}

/// What a device does with a TLB of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DeviceTlbUse {
    /// It has none: ATS is off in its configuration space.
    Off,
    /// It keeps what it may, until it is told to forget it.
    Honest,
    /// It asks at once again for what it was told to forget.
    Refilling,
    /// It says that it forgets, and keeps everything.
    Lying,
}

/// What a bench's devices and hardware can do beside plain DMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ability {
    /// Devices send requests with PASID.
    RequestsWithPasid,
    /// Devices send privileged and execute requests.
    PrivilegedRequests,
    /// More than one remapping unit.
    SeveralUnits,
    /// Caches keep what the architecture lets them keep, so that a missing invalidation shows.
    ArchitecturalCaches,
    /// Reads of memory see only what was flushed where the unit does not snoop.
    FlushedLinesOnly,
    /// Devices have a device-TLB and may be silent.
    DeviceTlb,
    /// Devices that send page requests.
    PageRequests,
    /// Updates of first-stage entries respect read-only second-stage mappings.
    UpdatesObeyReadOnly,
    /// A queue that stands at an error can be turned off.
    QueueOffAtError,
    /// What reaches processors is seen.
    SeesInterrupts,
    /// Interrupts in compatibility format can be blocked.
    BlocksCompatibilityFormat,
    /// Devices 2 and 3 are disk controllers.
    DiskControllers,
}

impl Ability {
    /// All of them.
    pub(crate) const ALL: [Self; 12] = [
        Self::RequestsWithPasid,
        Self::PrivilegedRequests,
        Self::SeveralUnits,
        Self::ArchitecturalCaches,
        Self::FlushedLinesOnly,
        Self::DeviceTlb,
        Self::PageRequests,
        Self::UpdatesObeyReadOnly,
        Self::QueueOffAtError,
        Self::SeesInterrupts,
        Self::BlocksCompatibilityFormat,
        Self::DiskControllers,
    ];

    /// Why a scenario that needs it is skipped.
    pub(crate) const fn missing(self) -> &'static str {
        match self {
            Self::RequestsWithPasid => "deviation: no device sends requests with PASID",
            Self::PrivilegedRequests => "deviation: no device sends privileged or execute requests",
            Self::SeveralUnits => "deviation: one remapping unit only",
            Self::ArchitecturalCaches => "deviation: caches hardly anything",
            Self::FlushedLinesOnly => "deviation: unflushed stores are visible",
            Self::DeviceTlb => "deviation: no device has a device-TLB",
            Self::PageRequests => "deviation: no device sends page requests",
            Self::UpdatesObeyReadOnly => "deviation: erratum 772415 SPR17",
            Self::QueueOffAtError => "deviation: no queue is turned off unless it ran a wait last",
            Self::SeesInterrupts => "deviation: what reaches processors is not seen",
            Self::BlocksCompatibilityFormat => {
                "deviation: interrupts in compatibility format always pass"
            }
            Self::DiskControllers => "no disk controllers",
        }
    }
}

/// A bench that is running: power-on state, nothing programmed.
pub(crate) trait Bench {
    /// Registers of the unit of this index; `None` if there is none.
    fn registers(&self, unit: usize) -> Option<Box<dyn Registers>>;

    /// Host memory.
    fn memory(&self) -> &dyn HostMemory;

    /// Which memory is for what.
    fn layout(&self) -> Layout;

    /// The host address width in bits.
    fn host_address_width(&self) -> u8;

    /// The physical source-id of the device of this index: 0 and 1 are always there.
    fn device(&self, index: usize) -> SourceId;

    /// Whether the bench has an ability.
    fn has(&self, ability: Ability) -> bool;

    /// Lets time pass for hardware, in nanoseconds.
    fn advance(&self, nanoseconds: u64);

    /// Switches bus mastering of a device.
    fn set_bus_master(&self, source_id: SourceId, enabled: bool);

    /// The device reads. What is blocked leaves `into` zero; whether it was blocked only shows by
    /// data and fault records.
    fn dma_read(&self, requester: Requester, address: Iova, into: &mut [u8]);

    /// The device writes.
    fn dma_write(&self, requester: Requester, address: Iova, from: &[u8]);

    /// What software did that the architecture forbids, if the bench can tell.
    fn violations(&self) -> Vec<String>;

    /// Switches a device's own TLB on or off.
    fn set_device_tlb(&self, _source_id: SourceId, _used: DeviceTlbUse) {}
    /// The device sends an interrupt message.
    fn send_message(&self, source_id: SourceId, message: InterruptMessage) {
        let requester = Requester {
            source_id,
            pasid: None,
            privileged: false,
            execute: false,
        };
        let data = message.data.to_le_bytes();
        self.dma_write(requester, Iova::new(message.address), &data);
    }

    /// What reached processors since the last call, from devices that wrote to 0xFEEx_xxxx: who, and
    /// what came of it.
    fn take_interrupts(&self) -> Vec<(SourceId, Interrupt)> {
        Vec::new()
    }

    /// The disk controller of this index runs the first command of a queue, with the pages of its
    /// commands and completions at these addresses.
    fn run_disk_command(&self, _index: usize, _commands: Iova, _completions: Iova) {}

    /// Lets the device of this source-id answer no device-TLB invalidation.
    fn set_device_silent(&self, _source_id: SourceId, _silent: bool) {}
}

/// A kind of bench, and everything needed to start one.
pub(crate) trait Profile: Send + Sync {
    /// The bench: `model`, `qtest`.
    fn bench(&self) -> &'static str;

    /// The configuration.
    fn name(&self) -> String;

    /// Starts one with this many units.
    fn start(&self, units: usize) -> Result<Box<dyn Bench>, StartError>;

    /// Whether a listed deviation keeps the scenario from meaning anything here.
    fn deviation(&self, _scenario: &str) -> Option<&'static str> {
        None
    }
}

/// A bench that did not start.
#[derive(Debug)]
pub(crate) struct StartError(pub(crate) String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a profile has, looked at once.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) capability: Capability,
    pub(crate) extended: ExtendedCapability,
    pub(crate) abilities: Vec<Ability>,
}

impl Description {
    pub(crate) fn of(profile: &dyn Profile) -> Result<Self, StartError> {
        let bench = profile.start(1)?;
        let unit = bench.registers(0);
        let unit = unit.ok_or_else(|| StartError("there is no unit".into()))?;
        let abilities = Ability::ALL
            .into_iter()
            .filter(|ability| bench.has(*ability));
        Ok(Self {
            capability: Capability::from_bits(unit.read64(Register64::CAPABILITY)),
            extended: ExtendedCapability::from_bits(unit.read64(Register64::EXTENDED_CAPABILITY)),
            abilities: abilities.collect(),
        })
    }
}

/// A host address `offset` bytes further.
pub(crate) fn host_offset(at: Hpa, offset: u64) -> Hpa {
    Hpa::new(at.as_u64() + offset)
}
