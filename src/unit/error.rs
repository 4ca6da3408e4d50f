//! What can go wrong with a physical unit.

use core::fmt;

use super::errata::Erratum;
use super::interrupt::InterruptRefusal;
use crate::arch::capability::CapabilityError;
use crate::arch::context::{LegacyContextFault, ScalableContextFault};
use crate::arch::descriptor::DescriptorError;
use crate::arch::id::{Pasid, SourceId};
use crate::arch::pasid::PasidEntryFault;
use crate::arch::register::QueueErrorInfo;
use crate::arch::told::Told;
use crate::mem::FrameError;

/// An ability that this driver cannot do without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Requirement {
    /// `ECAP.QI`: the invalidation queue.
    QueuedInvalidation,
    /// `CAP.SAGAW`: any second-stage address width.
    AddressWidth,
    /// `ECAP.IR`: interrupt remapping, where the configuration requires it.
    InterruptRemapping,
}

impl Requirement {
    /// The mnemonic of the capability field.
    pub const fn mnemonic(self) -> &'static str {
        match self {
            Self::QueuedInvalidation => "QI",
            Self::AddressWidth => "SAGAW",
            Self::InterruptRemapping => "IR",
        }
    }
}

/// Why an operation on a unit failed.
///
/// Registers are named by their offset in the unit's register window, in bytes (§11.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnitError {
    /// The capability registers are not those of a working unit.
    Capability(CapabilityError),
    /// The unit lacks an ability that this driver needs.
    Missing(Requirement),
    /// The host address width is not 12 to 64 bits.
    HostAddressWidth(u8),
    /// The queue order exceeds 7 (`IQA.QS`).
    QueueOrder(u8),
    /// The order of the interrupt remapping table exceeds 15 (`IRTA.S`).
    InterruptTableOrder(u8),
    /// Firmware left translation, the queue or interrupt remapping on, and the configuration asks
    /// to refuse that. Holds the global status register.
    FirmwareState(u32),
    /// Firmware left translation on with a root table of another mode, which the unit cannot be
    /// taken from while translation is on; the configuration allows nothing else.
    TranslationGap {
        /// Firmware's root table address register.
        root: u64,
    },
    /// Firmware left its invalidation queue on, where it stood at an error, and it cannot be turned off:
    /// emulated units turn off none whose last descriptor was no wait. Only a descriptor in firmware's
    /// own memory would help, which the driver does not write: it may be anybody's by now.
    FirmwareQueue {
        /// The fault status register, before the error was cleared.
        fault_status: u32,
        /// The global status register.
        global_status: u32,
    },
    /// The unit has an erratum because of which this is not done; nothing has changed.
    Erratum(Erratum),
    /// The unit has been brought up already, or that is under way, or it is suspended.
    AlreadyUp,
    /// The unit has not been brought up, or it is suspended.
    NotUp,
    /// The unit is not suspended.
    NotSuspended,
    /// Devices are attached, or their detaching is not confirmed: so many.
    DevicesAttached(u32),
    /// A register reads all ones: the unit does not answer any more.
    Lost {
        /// The register.
        register: u16,
    },
    /// Hardware did not get there in time.
    TimedOut {
        /// The register that was polled.
        register: u16,
        /// Its last value.
        value: u64,
    },
    /// An earlier command timed out and still is not done: a unit takes one at a time (§6.9).
    CommandPending {
        /// The register that tells its completion.
        register: u16,
        /// The register's value.
        value: u64,
    },
    /// A register does not hold what was written.
    ReadBack {
        /// The register.
        register: u16,
        /// What it should hold.
        expected: u64,
        /// What it holds.
        value: u64,
    },
    /// Something wrote to the root table before translation was on, and again after it was cleared.
    RootTableModified {
        /// The first quadword that is not zero: 0 to 511.
        quadword: u16,
        /// Its value.
        value: u64,
    },
    /// No frames for a table or the queue.
    Frames(FrameError),
    /// The invalidation queue failed.
    Queue(QueueError),
    /// The width is not 0 to 20 bits or more than the unit has.
    PasidBits {
        /// The width asked for.
        bits: u8,
        /// The most there are.
        maximum: u8,
    },
    /// The function has a context entry: it is attached, or its detaching is not confirmed.
    Attached(SourceId),
    /// Hardware would refuse the context entry.
    ContextEntry(ScalableContextFault),
    /// The PASID is not below the limit that the device was attached with.
    PasidBeyondLimit {
        /// The PASID.
        pasid: Pasid,
        /// The number of PASIDs.
        limit: u32,
    },
    /// There is no table for the PASID yet: it was not prepared.
    NotPrepared(Pasid),
    /// The slot is in use, or was withdrawn and not cleared.
    EntryInUse(Pasid),
    /// The slot holds no present entry.
    EntryAbsent(Pasid),
    /// Hardware would refuse the PASID entry.
    PasidEntry(PasidEntryFault),
    /// Hardware would refuse the legacy context entry.
    LegacyContextEntry(LegacyContextFault),
    /// The unit is driven in legacy mode, where a device has a second-stage table and nothing else.
    NotInLegacyMode {
        /// The translation type of the PASID entry that was asked for (`PGTT`).
        translation_type: u8,
    },
    /// The PASID entry has domain-id 0, which is reserved for not-present entries (§6.2.3.1).
    ReservedDomainId,
    /// There is no free run of interrupt entries of this length.
    InterruptEntries {
        /// How many were asked for.
        wanted: u32,
        /// The number of entries of the table; 0 if the unit does not remap interrupts.
        capacity: u32,
    },
    /// The interrupt entry is beyond the slice.
    InterruptOffset {
        /// How far into the slice.
        offset: u32,
        /// The length of the slice.
        count: u32,
    },
    /// No device may raise such an interrupt, or the unit cannot.
    Interrupt(InterruptRefusal),
}

impl From<FrameError> for UnitError {
    fn from(error: FrameError) -> Self {
        Self::Frames(error)
    }
}

impl From<InterruptRefusal> for UnitError {
    fn from(refusal: InterruptRefusal) -> Self {
        Self::Interrupt(refusal)
    }
}

impl From<QueueError> for UnitError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = match *self {
            Self::Capability(error) => {
                return write!(f, "implausible capability registers: {error}");
            }
            Self::Frames(error) => return write!(f, "no frames: {error}"),
            Self::Queue(error) => return error.fmt(f),
            Self::Attached(source_id) => return write!(f, "{source_id} has a context entry"),
            Self::ContextEntry(fault) => return write!(f, "invalid context entry: {fault}"),
            Self::PasidEntry(fault) => return write!(f, "invalid PASID entry: {fault}"),
            Self::Interrupt(refusal) => return write!(f, "interrupt refused: {refusal}"),
            Self::Missing(requirement) => {
                f.write_str("the unit lacks ")?;
                return f.write_str(requirement.mnemonic());
            }
            Self::ReadBack {
                register,
                expected,
                value,
            } => {
                return write!(f, "register {register:#x} is {value:#x}, not {expected:#x}");
            }
            Self::HostAddressWidth(bits) => Told::one("host address width in bits:", bits.into()),
            Self::QueueOrder(order) => Told::one("a queue order exceeds 7:", order.into()),
            Self::InterruptTableOrder(order) => {
                Told::one("an interrupt table order exceeds 15:", order.into())
            }
            Self::FirmwareState(status) => {
                Told::one("firmware left the unit on: global status", status.into())
            }
            Self::TranslationGap { root } => Told::one(
                "firmware's translation would have to be off for a moment: root",
                root,
            ),
            Self::FirmwareQueue {
                fault_status,
                global_status,
            } => Told::two(
                "firmware's queue stood at an error and cannot be turned off: fault and global status",
                fault_status.into(),
                global_status.into(),
            ),
            Self::Erratum(erratum) => return erratum.fmt(f),
            Self::NotSuspended => Told::words("the unit is not suspended"),
            Self::DevicesAttached(count) => Told::one("devices are attached:", count.into()),
            Self::AlreadyUp => Told::words("the unit is up already"),
            Self::NotUp => Told::words("the unit is not up"),
            Self::Lost { register } => Told::one("reads all ones: register", register.into()),
            Self::TimedOut { register, value } => {
                Told::two("timed out: register and last value", register.into(), value)
            }
            Self::CommandPending { register, value } => Told::two(
                "an earlier command is pending: register and value",
                register.into(),
                value,
            ),
            Self::RootTableModified { quadword, value } => Told::two(
                "the root table was written to: quadword and value",
                quadword.into(),
                value,
            ),
            Self::PasidBits { bits, maximum } => Told::two(
                "too wide PASIDs: bits and maximum",
                bits.into(),
                maximum.into(),
            ),
            Self::PasidBeyondLimit { pasid, limit } => Told::two(
                "PASID not below the limit",
                pasid.as_u32().into(),
                limit.into(),
            ),
            Self::NotPrepared(pasid) => Told::one("no table for PASID", pasid.as_u32().into()),
            Self::EntryInUse(pasid) => Told::one("entry in use of PASID", pasid.as_u32().into()),
            Self::EntryAbsent(pasid) => {
                Told::one("entry not present of PASID", pasid.as_u32().into())
            }
            Self::InterruptEntries { wanted, capacity } => Told::two(
                "no run of free interrupt entries: wanted and capacity",
                wanted.into(),
                capacity.into(),
            ),
            Self::InterruptOffset { offset, count } => Told::two(
                "interrupt entry beyond its slice: offset and length",
                offset.into(),
                count.into(),
            ),
            Self::LegacyContextEntry(_) => Told::words("invalid context entry of legacy mode"),
            Self::NotInLegacyMode { translation_type } => Told::one(
                "a unit in legacy mode has no translation type",
                translation_type.into(),
            ),
            Self::ReservedDomainId => Told::words("domain-id 0 in a PASID entry"),
        };
        told.fmt(f)
    }
}

impl core::error::Error for UnitError {}

/// Why a submission to the invalidation queue failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueError {
    /// The queue does not run: the unit is not up.
    NotRunning,
    /// There is no room for the batch now, or never if `wanted` exceeds `capacity`.
    Full {
        /// The most descriptors that the queue can hold.
        capacity: u32,
        /// How many it has room for now.
        free: u32,
        /// How many the batch needs, with its wait.
        wanted: u32,
    },
    /// Every status word awaits its completion, or timed out.
    StatusWordsExhausted {
        /// The number of status words.
        capacity: u16,
    },
    /// Hardware would not accept a descriptor of the batch.
    Descriptor {
        /// Its place in the batch.
        index: usize,
        /// What is wrong with it.
        error: DescriptorError,
    },
    /// A wait in the batch asks for a status write or an interrupt; only fences may be in it.
    Wait {
        /// Its place in the batch.
        index: usize,
    },
    /// The head register holds no valid offset.
    Head {
        /// The register's value.
        value: u64,
    },
    /// Hardware did not confirm in time.
    TimedOut {
        /// The number of the submission.
        sequence: u64,
        /// The head register's value.
        head: u64,
        /// The fault status register.
        fault_status: u32,
    },
    /// Hardware stopped at a descriptor (`FSTS.IQE`). The submission must be taken as not done.
    InvalidDescriptor {
        /// What hardware says is wrong (`IQERCD.IQEI`), if it does.
        info: Option<QueueErrorInfo>,
        /// The offset in the queue of the descriptor, in bytes.
        head: u32,
    },
    /// A device did not answer a device-TLB invalidation of the submission (`FSTS.ITE`), which must
    /// be taken as not done.
    DeviceTimedOut {
        /// The device (`IQERCD.ITESID`), if hardware reports it.
        source_id: Option<SourceId>,
    },
    /// The unit's registers read all ones.
    Lost,
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning => f.write_str("the invalidation queue does not run"),
            Self::Full {
                capacity,
                free,
                wanted,
            } => write!(
                f,
                "the invalidation queue has room for {free} of {capacity} descriptors, not {wanted}"
            ),
            Self::StatusWordsExhausted { capacity } => {
                write!(f, "all {capacity} invalidation status words are in use")
            }
            Self::Descriptor { index, error } => {
                write!(f, "descriptor {index} of the batch is invalid: {error}")
            }
            Self::Wait { index } => write!(f, "descriptor {index} of the batch is no mere fence"),
            Self::Head { value } => write!(f, "invalidation queue head {value:#x}"),
            Self::TimedOut {
                sequence,
                head,
                fault_status,
            } => write!(
                f,
                "invalidation {sequence} timed out: head {head:#x}, fault status {fault_status:#x}"
            ),
            Self::InvalidDescriptor { info, head } => {
                let code = info.map_or(0, QueueErrorInfo::code);
                write!(
                    f,
                    "hardware refused the descriptor at {head:#x}: error {code}"
                )
            }
            Self::DeviceTimedOut { source_id } => {
                f.write_str("device-TLB invalidation timed out")?;
                match source_id {
                    Some(source_id) => write!(f, ": {source_id}"),
                    None => Ok(()),
                }
            }
            Self::Lost => f.write_str("the unit's registers read all ones"),
        }
    }
}

impl core::error::Error for QueueError {}
