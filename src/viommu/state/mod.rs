//! The virtual unit's state, saved and restored.
//!
//! A state is what the guest can tell its unit by: registers, fault records, the place in the
//! queue, commands given and not carried out. Bindings are no part of it: they are made again
//! from the guest's tables, by the first passes of [`VirtualUnit::poll`], and nothing is bound
//! before. Devices are no part of it either: the hypervisor adds them anew.
//!
//! Work in progress is done again from its start. That shows to nobody: a descriptor is passed, a
//! wait completed and a command's status changed in one step, with which the work ends, so a state
//! has either all of it or nothing, and invalidating twice is the same as once. So each wait
//! completes exactly once, before or after.
//!
//! A state that comes back may have been through anybody's hands. Nothing in it reaches further
//! than what a guest can do to its unit by register accesses; what no unit can have in a register
//! is refused all the same.
//!
//! # Format
//!
//! [`STATE_LEN_BYTES`] bytes, quadwords in little endian: mark, version, width of
//! guest-physical addresses, commands, root table address to be taken over, root table address in
//! force, interrupt remapping table address to be taken over, the one in force, index of the next
//! fault record; then every register in the order of
//! [`REGISTERS`], and [`MAX_FAULT_RECORDS`] fault records.

#[cfg(test)]
mod tests;

use core::fmt;

use crate::arch::told::Told;

use crate::arch::register::{
    EventControl, FaultRecord, FaultStatus, GlobalStatus, InterruptRemappingTableAddress,
    InvalidationQueueAddress, RootTableAddress,
};

use super::fault::{FaultRecorder, MAX_FAULT_RECORDS};
use super::host::HostState;
use super::interrupt::InterruptState;
use super::registers::{Event, REGISTERS, Register, RegisterFile};
use super::statistics::count;
use super::unit::{Commands, Purpose, VirtualUnit};

/// The length of a saved state, in bytes.
pub const STATE_LEN_BYTES: usize = WORDS * 8;

/// The version of the format; another one is refused.
pub const STATE_VERSION: u64 = 2;

/// What a state begins with.
const MARK: u64 = u64::from_le_bytes(*b"vtd-nest");
const RECORDS: usize = MAX_FAULT_RECORDS as usize;
/// The fields before the registers.
const HEADER: usize = 9;
const WORDS: usize = HEADER + REGISTERS.len() + 2 * RECORDS;

// Bits of the field of commands.
const ROOT_POINTER: u64 = 1 << 0;
const TRANSLATION: u64 = 1 << 1;
const QUEUE: u64 = 1 << 2;
const QUEUE_STOP: u64 = 1 << 3;
const FAULT_MESSAGE_DUE: u64 = 1 << 4;
const COMPLETION_MESSAGE_DUE: u64 = 1 << 5;
const INTERRUPT_POINTER: u64 = 1 << 6;
const INTERRUPT_REMAPPING: u64 = 1 << 7;
const COMMANDS: u64 = (INTERRUPT_REMAPPING << 1) - 1;

/// Why a state cannot be restored. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateError {
    /// It has not the length of a state.
    Length {
        /// [`STATE_LEN_BYTES`].
        expected: usize,
        /// Its length in bytes.
        found: usize,
    },
    /// A field has a value that it has in no state of such a unit.
    Field {
        /// The field, or the specification's name of the register.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The unit has bindings or work already: a state is restored before the first poll.
    InUse {
        /// Devices that are bound.
        devices: usize,
        /// PASIDs that are bound.
        bindings: u32,
    },
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { expected, found } => {
                write!(f, "{found} bytes, a saved state has {expected}")
            }
            Self::Field { field, value } => Told::one(field, *value).fmt(f),
            Self::InUse { devices, bindings } => write!(
                f,
                "the unit is in use: {devices} devices and {bindings} PASIDs are bound"
            ),
        }
    }
}

impl core::error::Error for StateError {}

/// The bits that a register can hold.
const fn possible_bits(register: Register) -> u64 {
    let description = register.description();
    let set_by_unit = match register {
        // The recorder holds them.
        Register::FaultRecord => return 0,
        Register::GlobalStatus => GlobalStatus::TRANSLATION_ENABLED
            .union(GlobalStatus::ROOT_TABLE_POINTER_SET)
            .union(GlobalStatus::QUEUED_INVALIDATION_ENABLED)
            .union(GlobalStatus::INTERRUPT_REMAPPING_ENABLED)
            .union(GlobalStatus::INTERRUPT_REMAPPING_TABLE_POINTER_SET)
            .union(GlobalStatus::COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED)
            .bits() as u64,
        // The granularity done.
        Register::ContextCommand | Register::IotlbCommand => description.readable,
        // `FRI` is checked by its range.
        Register::FaultStatus => FaultStatus::PRIMARY_PENDING_FAULT.bits() as u64 | 0xff00,
        Register::FaultEventControl | Register::CompletionEventControl => {
            EventControl::INTERRUPT_PENDING.bits() as u64
        }
        Register::QueueHead => Register::QueueTail.description().writable,
        // `IQEI`.
        Register::QueueErrorRecord => 0xf,
        _ => 0,
    };
    description.writable | description.clearable | set_by_unit
}

/// Whether a register never changes, so that its value must be the unit's own.
const fn is_constant(register: Register) -> bool {
    matches!(
        register,
        Register::Version | Register::Capability | Register::ExtendedCapability
    )
}

fn check(field: &'static str, value: u64, is_possible: bool) -> Result<(), StateError> {
    if is_possible {
        Ok(())
    } else {
        Err(StateError::Field { field, value })
    }
}

/// A state's quadwords one after the other. Its length was checked, so it never ends too early.
struct Quadwords<'a>(core::slice::Iter<'a, [u8; 8]>);

impl Quadwords<'_> {
    fn next(&mut self) -> u64 {
        self.0.next().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// The next field, which can only have one value.
    fn must_be(&mut self, field: &'static str, expected: u64) -> Result<(), StateError> {
        let value = self.next();
        check(field, value, value == expected)
    }
}

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// The unit's state, between two [`poll`](Self::poll)s. The unit should do no more work once
    /// its state is in use elsewhere: it would complete the same waits.
    pub fn save(&self) -> [u8; STATE_LEN_BYTES] {
        // A root table that is being taken over is taken over again.
        let root_pointer = self.commands.root_pointer.or_else(|| {
            let job = self.job.as_ref()?;
            (job.purpose == Purpose::RootPointer).then_some(self.root)
        });
        let interrupt_pointer = self.interrupts.table_pointer.or_else(|| {
            let job = self.job.as_ref()?;
            (job.purpose == Purpose::InterruptPointer).then_some(self.interrupts.table)
        });
        let mut commands = 0;
        for (bit, is_set) in [
            (ROOT_POINTER, root_pointer.is_some()),
            (TRANSLATION, self.commands.translation),
            (QUEUE, self.commands.queue),
            (QUEUE_STOP, self.commands.queue_stop),
            (
                FAULT_MESSAGE_DUE,
                self.registers.has_message_of(Event::Fault),
            ),
            (
                COMPLETION_MESSAGE_DUE,
                self.registers.has_message_of(Event::Completion),
            ),
            (INTERRUPT_POINTER, interrupt_pointer.is_some()),
            (INTERRUPT_REMAPPING, self.interrupts.enable),
        ] {
            if is_set {
                commands |= bit;
            }
        }
        let header: [u64; HEADER] = [
            MARK,
            STATE_VERSION,
            self.features.host_address_width.into(),
            commands,
            root_pointer.map_or(0, RootTableAddress::bits),
            self.root.bits(),
            interrupt_pointer.map_or(0, InterruptRemappingTableAddress::bits),
            self.interrupts.table.bits(),
            self.faults.next_index().into(),
        ];
        let registers = Register::ALL
            .iter()
            .map(|register| self.registers.get(*register));
        let records = self.faults.records().iter();
        let records = records.flat_map(|record| [record.low, record.high]);
        let quadwords = header.into_iter().chain(registers).chain(records);
        let mut bytes = [0; STATE_LEN_BYTES];
        for (place, quadword) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(quadwords) {
            *place = quadword.to_le_bytes();
        }
        bytes
    }

    /// Takes over a state. The unit shows the same capabilities as the one that was saved, and has
    /// not been polled; whether its devices were added before or are added after is the same. What
    /// the guest reads is the saved unit's at once; bindings come with the next
    /// [`poll`](Self::poll), and until then every device is blocked.
    ///
    /// # Errors
    ///
    /// [`StateError`]; nothing has changed then.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.refuse_if_in_use()?;
        let (quadwords, rest) = state.as_chunks::<8>();
        if quadwords.len() != WORDS || !rest.is_empty() {
            return Err(StateError::Length {
                expected: STATE_LEN_BYTES,
                found: state.len(),
            });
        }
        let mut quadwords = Quadwords(quadwords.iter());
        quadwords.must_be("mark", MARK)?;
        quadwords.must_be("version", STATE_VERSION)?;
        quadwords.must_be("address width", self.features.host_address_width.into())?;
        let flags = quadwords.next();
        check("commands", flags, flags & !COMMANDS == 0)?;
        let root_pointer = quadwords.next();
        let is_possible = |address| address & !possible_bits(Register::RootTableAddress) == 0;
        check(
            "root table address to be taken over",
            root_pointer,
            is_possible(root_pointer) && (flags & ROOT_POINTER != 0 || root_pointer == 0),
        )?;
        let root = quadwords.next();
        check("root table address in force", root, is_possible(root))?;
        let interrupts = self.restored_interrupts(flags, &mut quadwords)?;
        let next = quadwords.next();

        let mut registers = self.restored_registers(&mut quadwords)?;
        registers.set_messages(
            flags & FAULT_MESSAGE_DUE != 0,
            flags & COMPLETION_MESSAGE_DUE != 0,
        );
        let mut faults = self.faults.clone();
        restore_records(&mut faults, next, &mut quadwords)?;
        let status = registers.fault_status();
        check(
            "FSTS_REG",
            registers.get(Register::FaultStatus),
            status.contains(FaultStatus::PRIMARY_PENDING_FAULT) == faults.has_valid_record(),
        )?;

        self.forget_contexts();
        self.registers = registers;
        self.faults = faults;
        self.root = RootTableAddress::from_bits(root);
        // A change of it that was under way is made again.
        self.translating = self
            .registers
            .status()
            .contains(GlobalStatus::TRANSLATION_ENABLED);
        self.commands = Commands {
            root_pointer: (flags & ROOT_POINTER != 0)
                .then_some(RootTableAddress::from_bits(root_pointer)),
            translation: flags & TRANSLATION != 0,
            queue: flags & QUEUE != 0,
            queue_stop: flags & QUEUE_STOP != 0,
            reconcile: true,
            ..self.commands
        };
        let is_followed = self.is_remapping_interrupts();
        self.interrupts = InterruptState {
            is_followed,
            reconcile: is_followed,
            ..interrupts
        };
        count(&mut self.statistics.restores);
        log::info!("virtual unit: state restored");
        Ok(())
    }

    fn refuse_if_in_use(&self) -> Result<(), StateError> {
        let devices = self.bound_devices();
        let bindings = self.bindings();
        if devices > 0 || bindings > 0 || self.job.is_some() {
            return Err(StateError::InUse { devices, bindings });
        }
        Ok(())
    }

    /// The state of interrupt remapping. A unit that does not show it has none.
    fn restored_interrupts(
        &self,
        flags: u64,
        quadwords: &mut Quadwords,
    ) -> Result<InterruptState, StateError> {
        let is_shown = self.features.extended.has_interrupt_remapping();
        let all_flags = INTERRUPT_POINTER | INTERRUPT_REMAPPING;
        check("commands", flags, is_shown || flags & all_flags == 0)?;
        let is_possible = |address| match is_shown {
            true => address & !possible_bits(Register::InterruptTableAddress) == 0,
            false => address == 0,
        };
        let pointer = quadwords.next();
        check(
            "interrupt remapping table address to be taken over",
            pointer,
            is_possible(pointer) && (flags & INTERRUPT_POINTER != 0 || pointer == 0),
        )?;
        let table = quadwords.next();
        check(
            "interrupt remapping table address in force",
            table,
            is_possible(table),
        )?;
        Ok(InterruptState {
            table: InterruptRemappingTableAddress::from_bits(table),
            table_pointer: (flags & INTERRUPT_POINTER != 0)
                .then_some(InterruptRemappingTableAddress::from_bits(pointer)),
            enable: flags & INTERRUPT_REMAPPING != 0,
            ..InterruptState::OFF
        })
    }

    /// Registers of interrupt remapping are clear where it is not shown.
    fn check_interrupt_registers(&self, registers: &RegisterFile) -> Result<(), StateError> {
        let is_shown = self.features.extended.has_interrupt_remapping();
        let table = registers.get(Register::InterruptTableAddress);
        check("IRTA_REG", table, is_shown || table == 0)?;
        let bits = GlobalStatus::INTERRUPT_REMAPPING_ENABLED
            | GlobalStatus::INTERRUPT_REMAPPING_TABLE_POINTER_SET
            | GlobalStatus::COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED;
        let status = registers.status();
        check(
            "GSTS_REG",
            registers.get(Register::GlobalStatus),
            is_shown || !status.intersects(bits),
        )
    }

    fn restored_registers(&self, quadwords: &mut Quadwords) -> Result<RegisterFile, StateError> {
        let mut registers = RegisterFile::new(&self.features);
        for &register in Register::ALL {
            let name = register.description().name;
            if is_constant(register) {
                quadwords.must_be(name, registers.get(register))?;
                continue;
            }
            let value = quadwords.next();
            check(name, value, value & !possible_bits(register) == 0)?;
            registers.set(register, value);
        }
        self.check_interrupt_registers(&registers)?;
        let queue = InvalidationQueueAddress::from_bits(registers.get(Register::QueueAddress));
        let head = registers.get(Register::QueueHead);
        check(
            Register::QueueHead.description().name,
            head,
            head < u64::from(queue.size_bytes())
                && head.is_multiple_of(queue.descriptor_width().len_bytes().into()),
        )?;
        let status = registers.get(Register::FaultStatus);
        let index = FaultStatus::fault_record_index(status as u32);
        check("FSTS_REG", status, index < self.faults.count())?;
        Ok(registers)
    }
}

fn restore_records(
    faults: &mut FaultRecorder,
    next: u64,
    quadwords: &mut Quadwords,
) -> Result<(), StateError> {
    let count = faults.count();
    check("next fault record", next, next < u64::from(count))?;
    let mut records = [FaultRecord::default(); RECORDS];
    for (index, record) in records.iter_mut().enumerate() {
        let (low, high) = (quadwords.next(), quadwords.next());
        *record = FaultRecord { low, high };
        // What is not a field of a record is 0, and a record beyond the last is all 0.
        let same = FaultRecord::new(record.info());
        let is_there = index < usize::from(count);
        check(
            "FRCD_REG, low",
            low,
            low == same.low && (is_there || low == 0),
        )?;
        check(
            "FRCD_REG, high",
            high,
            record.cleared().high == same.cleared().high && (is_there || high == 0),
        )?;
    }
    faults.restore(next as u8, records);
    Ok(())
}
