//! The register file that the guest sees (§11.4).
//!
//! One table, [`REGISTERS`], says of every register where it is, what of it can be read, written or
//! cleared, what it holds after a reset, and who acts on a write. What is not in the table reads as
//! 0 and ignores writes. Accesses of any width and alignment are put together from dwords.

use crate::arch::capability::Features;
use crate::arch::register::{
    EventControl, FaultStatus, GlobalStatus, InvalidationCompletionStatus,
};

/// The size of the virtual register window, in bytes.
pub const REGISTER_WINDOW_BYTES: u32 = 4096;

/// The version register: 1.0, so that register-based invalidation exists (§6.5.1).
pub const VERSION: u32 = 0x10;

/// Where a register is, in bytes from the start of the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At a fixed offset.
    At(u16),
    /// That many bytes into the IOTLB registers (`ECAP.IRO`).
    Iotlb(u16),
    /// In the fault records (`CAP.FRO`), one every 16 bytes.
    FaultRecords,
}

/// Who acts on a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegisterOwner {
    /// Nobody: it never changes.
    Constant,
    /// Nobody: the value is used when something else asks for it.
    Storage,
    /// The unit: commands and their status.
    Command,
    /// The invalidation queue.
    Queue,
    /// Fault recording and the fault event.
    Fault,
    /// The invalidation completion event.
    Completion,
}

/// One line of the register table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegisterDescription {
    /// The name that the specification gives the register.
    pub name: &'static str,
    /// Where it is.
    pub place: Place,
    /// Its size in bytes: 4, 8, or 16 for a fault record.
    pub len_bytes: u8,
    /// The bits that can be read; all others read as 0. Of a fault record: all.
    pub readable: u64,
    /// The bits that take the value written; all others keep theirs.
    pub writable: u64,
    /// The bits that writing 1 clears. Of a fault record: `F`, bit 63 of the upper quadword.
    pub clearable: u64,
    /// The value after a reset. Capabilities come from the configuration.
    pub reset: u64,
    /// Who acts on a write.
    pub owner: RegisterOwner,
}

macro_rules! registers {
    ($($variant:ident $name:literal $place:expr, $len:literal, $owner:ident,
       read $readable:expr, write $writable:expr, clear $clearable:expr, reset $reset:expr;)*) => {
        /// A register of [`REGISTERS`], by its place there.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub(super) enum Register {
            $($variant),*
        }

        impl Register {
            pub(super) const ALL: &[Self] = &[$(Self::$variant),*];

            /// What the table says of it.
            pub(super) const fn description(self) -> &'static RegisterDescription {
                // There is one for each variant, in their order.
                &DESCRIPTIONS[self as usize]
            }
        }

        static DESCRIPTIONS: [RegisterDescription; Register::ALL.len()] = [$(RegisterDescription {
            name: $name,
            place: $place,
            len_bytes: $len,
            readable: $readable,
            writable: $writable,
            clearable: $clearable,
            reset: $reset,
            owner: RegisterOwner::$owner,
        }),*];

        /// Every register of the virtual unit.
        pub const REGISTERS: &[RegisterDescription] = &DESCRIPTIONS;
    };
}

/// `IM`, bit 31.
const MASKED: u64 = EventControl::INTERRUPT_MASK.bits() as u64;
const ALL: u64 = u64::MAX;
const DWORD: u64 = u32::MAX as u64;
/// `PFO`, `IQE`, and, for devices with TLBs, `ICE` and `ITE`.
const FAULT_STATUS_CLEARABLE: u64 = FaultStatus::FAULT_OVERFLOW
    .union(FaultStatus::INVALIDATION_QUEUE_ERROR)
    .union(FaultStatus::INVALIDATION_COMPLETION_ERROR)
    .union(FaultStatus::INVALIDATION_TIMEOUT_ERROR)
    .bits() as u64;
const WAIT_COMPLETE: u64 = InvalidationCompletionStatus::WAIT_COMPLETE.bits() as u64;

registers! {
    Version "VER_REG" Place::At(0x00), 4, Constant,
        read DWORD, write 0, clear 0, reset VERSION as u64;
    Capability "CAP_REG" Place::At(0x08), 8, Constant,
        read ALL, write 0, clear 0, reset 0;
    ExtendedCapability "ECAP_REG" Place::At(0x10), 8, Constant,
        read ALL, write 0, clear 0, reset 0;
    GlobalCommand "GCMD_REG" Place::At(0x18), 4, Command,
        read 0, write 0, clear 0, reset 0;
    GlobalStatus "GSTS_REG" Place::At(0x1c), 4, Command,
        read DWORD, write 0, clear 0, reset 0;
    RootTableAddress "RTADDR_REG" Place::At(0x20), 8, Storage,
        read ALL, write !0x3ff, clear 0, reset 0;
    // The source-id and function mask are write only; `ICC`, `CIRG`, `FM`, `SID`, `DID` are written.
    ContextCommand "CCMD_REG" Place::At(0x28), 8, Command,
        read 0xf800_0000_0000_ffff, write 0xe000_0003_ffff_ffff, clear 0, reset 0;
    FaultStatus "FSTS_REG" Place::At(0x34), 4, Fault,
        read DWORD, write 0, clear FAULT_STATUS_CLEARABLE, reset 0;
    FaultEventControl "FECTL_REG" Place::At(0x38), 4, Fault,
        read DWORD, write MASKED, clear 0, reset MASKED;
    FaultEventData "FEDATA_REG" Place::At(0x3c), 4, Storage,
        read DWORD, write 0xffff, clear 0, reset 0;
    FaultEventAddress "FEADDR_REG" Place::At(0x40), 4, Storage,
        read DWORD, write 0xffff_fffc, clear 0, reset 0;
    FaultEventUpperAddress "FEUADDR_REG" Place::At(0x44), 4, Storage,
        read DWORD, write DWORD, clear 0, reset 0;
    QueueHead "IQH_REG" Place::At(0x80), 8, Queue,
        read ALL, write 0, clear 0, reset 0;
    QueueTail "IQT_REG" Place::At(0x88), 8, Queue,
        read ALL, write 0x7_fff0, clear 0, reset 0;
    QueueAddress "IQA_REG" Place::At(0x90), 8, Queue,
        read ALL, write 0xffff_ffff_ffff_f807, clear 0, reset 0;
    CompletionStatus "ICS_REG" Place::At(0x9c), 4, Completion,
        read DWORD, write 0, clear WAIT_COMPLETE, reset 0;
    CompletionEventControl "IECTL_REG" Place::At(0xa0), 4, Completion,
        read DWORD, write MASKED, clear 0, reset MASKED;
    CompletionEventData "IEDATA_REG" Place::At(0xa4), 4, Storage,
        read DWORD, write 0xffff, clear 0, reset 0;
    CompletionEventAddress "IEADDR_REG" Place::At(0xa8), 4, Storage,
        read DWORD, write 0xffff_fffc, clear 0, reset 0;
    CompletionEventUpperAddress "IEUADDR_REG" Place::At(0xac), 4, Storage,
        read DWORD, write DWORD, clear 0, reset 0;
    QueueErrorRecord "IQERCD_REG" Place::At(0xb0), 8, Queue,
        read ALL, write 0, clear 0, reset 0;
    // Where interrupt remapping is shown.
    InterruptTableAddress "IRTA_REG" Place::At(0xb8), 8, Storage,
        read ALL, write 0xffff_ffff_ffff_f80f, clear 0, reset 0;
    InvalidateAddress "IVA_REG" Place::Iotlb(0), 8, Storage,
        read 0, write 0xffff_ffff_ffff_f07f, clear 0, reset 0;
    IotlbCommand "IOTLB_REG" Place::Iotlb(8), 8, Command,
        read 0xb603_ffff_0000_0000, write 0xb003_ffff_0000_0000, clear 0, reset 0;
    // Held by the fault recorder.
    FaultRecord "FRCD_REG" Place::FaultRecords, 16, Fault,
        read ALL, write 0, clear 1 << 63, reset 0;
}

const COUNT: usize = Register::ALL.len();

/// Offsets below this may be those of [`Place::At`] registers, in dwords.
const FIXED_DWORDS: usize = 0xc0 / 4;

/// For every dword of the fixed part, the register it belongs to.
const FIXED: [Option<Register>; FIXED_DWORDS] = {
    let mut fixed = [None; FIXED_DWORDS];
    let mut registers = Register::ALL;
    while let [register, rest @ ..] = registers {
        let description = register.description();
        if let Place::At(offset) = description.place {
            let mut dword = 0;
            while dword < description.len_bytes / 4 {
                fixed[offset as usize / 4 + dword as usize] = Some(*register);
                dword += 1;
            }
        }
        registers = rest;
    }
    fixed
};

/// A write to one dword, as bits of the register that holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RegisterWrite {
    /// The register.
    pub(super) register: Register,
    /// The bits that the access covers.
    pub(super) covered: u64,
    /// Their values; other bits are 0.
    pub(super) value: u64,
}

/// Which event message (§7.3, §6.5.2.10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// Of faults: `FECTL_REG`.
    Fault,
    /// Of completed waits: `IECTL_REG`.
    Completion,
}

impl Event {
    pub(super) const ALL: [Self; 2] = [Self::Fault, Self::Completion];

    const fn control(self) -> Register {
        match self {
            Self::Fault => Register::FaultEventControl,
            Self::Completion => Register::CompletionEventControl,
        }
    }
}

/// The values of all registers but the fault records.
#[derive(Clone, Debug)]
pub(super) struct RegisterFile {
    values: [u64; COUNT],
    iotlb_offset: u16,
    has_interrupt_remapping: bool,
    /// Messages to be sent that are no longer pending for the guest.
    fault_message: bool,
    completion_message: bool,
}

impl RegisterFile {
    /// That of a unit that has yet to be started.
    pub(super) const VACANT: Self = Self {
        values: [0; COUNT],
        iotlb_offset: 0,
        has_interrupt_remapping: false,
        fault_message: false,
        completion_message: false,
    };

    pub(super) fn new(features: &Features) -> Self {
        let mut file = Self {
            iotlb_offset: features.extended.iotlb_register_offset(),
            has_interrupt_remapping: features.extended.has_interrupt_remapping(),
            ..Self::VACANT
        };
        for register in Register::ALL {
            file.set(*register, register.description().reset);
        }
        file.set(Register::Capability, features.capability.bits());
        file.set(Register::ExtendedCapability, features.extended.bits());
        file
    }

    /// The raw value, unreadable bits included.
    #[inline]
    pub(super) fn get(&self, register: Register) -> u64 {
        self.values.get(register as usize).copied().unwrap_or(0)
    }

    #[inline]
    pub(super) fn set(&mut self, register: Register, value: u64) {
        if let Some(slot) = self.values.get_mut(register as usize) {
            *slot = value;
        }
    }

    /// The register that holds the dword at a multiple of 4, and by how much its bits are shifted.
    #[inline]
    fn locate(&self, offset: u16) -> Option<(Register, u32)> {
        let register = match FIXED.get(usize::from(offset / 4)) {
            Some(Some(Register::InterruptTableAddress)) if !self.has_interrupt_remapping => {
                return None;
            }
            Some(Some(register)) => *register,
            _ => match offset.checked_sub(self.iotlb_offset)? {
                0..8 => Register::InvalidateAddress,
                8..16 => Register::IotlbCommand,
                _ => return None,
            },
        };
        // Registers of 8 bytes lie at multiples of 8.
        let wide = register.description().len_bytes == 8;
        Some((register, if wide { u32::from(offset & 4) * 8 } else { 0 }))
    }

    /// Reads the dword at a multiple of 4.
    #[inline]
    pub(super) fn read_dword(&self, offset: u16) -> u32 {
        match self.locate(offset) {
            Some((register, shift)) => {
                ((self.get(register) & register.description().readable) >> shift) as u32
            }
            None => 0,
        }
    }

    /// Writes the bits `covered` of the dword at a multiple of 4. `None`: no register took notice.
    pub(super) fn write_dword(
        &mut self,
        offset: u16,
        value: u32,
        covered: u32,
    ) -> Option<RegisterWrite> {
        let (register, shift) = self.locate(offset)?;
        let is_locked = match register {
            // The queue is where it was when it was enabled (§11.4.9.3).
            Register::QueueAddress => self
                .status()
                .contains(GlobalStatus::QUEUED_INVALIDATION_ENABLED),
            // A command in progress is not changed (§11.4.6).
            Register::ContextCommand | Register::IotlbCommand => self.get(register) >> 63 == 1,
            _ => false,
        };
        if is_locked {
            return None;
        }
        let covered = u64::from(covered) << shift;
        let value = u64::from(value) << shift & covered;
        let description = register.description();
        let taken = covered & description.writable;
        let new = (self.get(register) & !taken | value & taken) & !(value & description.clearable);
        self.set(register, new);
        Some(RegisterWrite {
            register,
            covered,
            value,
        })
    }

    pub(super) fn status(&self) -> GlobalStatus {
        GlobalStatus::from_bits_truncate(self.get(Register::GlobalStatus) as u32)
    }

    pub(super) fn set_status(&mut self, flags: GlobalStatus, on: bool) {
        let mut status = self.status();
        status.set(flags, on);
        self.set(Register::GlobalStatus, u64::from(status.bits()));
    }

    pub(super) fn fault_status(&self) -> FaultStatus {
        FaultStatus::from_bits_truncate(self.get(Register::FaultStatus) as u32)
    }

    /// Sets causes of the fault event; it is raised unless another cause was set before (§7.3).
    pub(super) fn set_fault_causes(&mut self, causes: FaultStatus) {
        let before = self.get(Register::FaultStatus);
        self.set(Register::FaultStatus, before | u64::from(causes.bits()));
        if FaultStatus::from_bits_truncate(before as u32).is_empty() {
            self.raise(Event::Fault);
        }
    }

    /// Drops a held-back fault message if no cause is left (§7.3).
    pub(super) fn drop_fault_event_without_cause(&mut self) {
        if self.fault_status().is_empty() {
            self.set_pending(Event::Fault, false);
        }
    }

    /// Sets `ICS.IWC`; the event is raised unless it was set before (§6.5.2.10).
    pub(super) fn complete_wait_with_interrupt(&mut self) {
        let before = self.get(Register::CompletionStatus);
        self.set(Register::CompletionStatus, before | WAIT_COMPLETE);
        if before & WAIT_COMPLETE == 0 {
            self.raise(Event::Completion);
        }
    }

    /// Drops a held-back completion message if `ICS.IWC` is clear.
    pub(super) fn drop_completion_event_without_cause(&mut self) {
        if self.get(Register::CompletionStatus) & WAIT_COMPLETE == 0 {
            self.set_pending(Event::Completion, false);
        }
    }

    fn message(&mut self, event: Event) -> &mut bool {
        match event {
            Event::Fault => &mut self.fault_message,
            Event::Completion => &mut self.completion_message,
        }
    }

    fn set_pending(&mut self, event: Event, on: bool) {
        let mut control = EventControl::from_bits_truncate(self.get(event.control()) as u32);
        control.set(EventControl::INTERRUPT_PENDING, on);
        self.set(event.control(), u64::from(control.bits()));
    }

    fn raise(&mut self, event: Event) {
        if self.get(event.control()) & MASKED == 0 {
            *self.message(event) = true;
        } else {
            self.set_pending(event, true);
        }
    }

    /// Follows a write to an event control register: masking holds a message back, unmasking
    /// releases it (§7.3).
    pub(super) fn event_mask_written(&mut self, event: Event) {
        let control = EventControl::from_bits_truncate(self.get(event.control()) as u32);
        if control.contains(EventControl::INTERRUPT_MASK) {
            if core::mem::take(self.message(event)) {
                self.set_pending(event, true);
            }
        } else if control.contains(EventControl::INTERRUPT_PENDING) {
            self.set_pending(event, false);
            *self.message(event) = true;
        }
    }

    /// The message of an event that is to be sent now, address and data; once.
    pub(super) fn take_message(&mut self, event: Event) -> Option<(u64, u32)> {
        if !core::mem::take(self.message(event)) {
            return None;
        }
        let [data, address, upper] = match event {
            Event::Fault => [
                Register::FaultEventData,
                Register::FaultEventAddress,
                Register::FaultEventUpperAddress,
            ],
            Event::Completion => [
                Register::CompletionEventData,
                Register::CompletionEventAddress,
                Register::CompletionEventUpperAddress,
            ],
        };
        Some((
            self.get(upper) << 32 | self.get(address),
            self.get(data) as u32,
        ))
    }

    /// Whether the message of an event is to be sent.
    pub(super) const fn has_message_of(&self, event: Event) -> bool {
        match event {
            Event::Fault => self.fault_message,
            Event::Completion => self.completion_message,
        }
    }

    /// Says which messages are to be sent.
    pub(super) const fn set_messages(&mut self, fault: bool, completion: bool) {
        self.fault_message = fault;
        self.completion_message = completion;
    }

    /// Whether a message is to be sent.
    pub(super) const fn has_message(&self) -> bool {
        self.fault_message || self.completion_message
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::super::fault::{GuestFault, MAX_FAULT_RECORDS};
    use super::super::testing::*;
    use super::*;
    use crate::arch::address::Iova;
    use crate::arch::fault::FaultReason;
    use crate::arch::register::RequestType;

    /// Of each byte of the window: its value after a reset, the bits that keep what is written, the
    /// bits that can be read.
    fn expected_bytes(features: &Features) -> Vec<(u8, u8, u8)> {
        let mut bytes = std::vec![(0, 0, 0); REGISTER_WINDOW_BYTES as usize];
        for register in REGISTERS {
            if register.name == "IRTA_REG" && !features.extended.has_interrupt_remapping() {
                continue;
            }
            let start = match register.place {
                Place::At(start) => start,
                Place::Iotlb(within) => features.extended.iotlb_register_offset() + within,
                // Clear after a reset, and nothing in them keeps what is written.
                Place::FaultRecords => continue,
            };
            let reset = match register.name {
                "CAP_REG" => features.capability.bits(),
                "ECAP_REG" => features.extended.bits(),
                _ => register.reset,
            };
            let parts = [reset, register.writable, register.readable].map(u64::to_le_bytes);
            for index in 0..usize::from(register.len_bytes) {
                let [reset, writable, readable] = parts.map(|bytes| bytes[index]);
                let place = &mut bytes[usize::from(start) + index];
                assert_eq!(*place, (0, 0, 0), "{}: taken", register.name);
                *place = (reset & readable, writable, readable);
            }
        }
        bytes
    }

    #[test]
    fn a_write_of_any_width_at_any_offset_changes_what_the_table_says_and_no_more() {
        // S56, G37: every offset, 1, 2, 4 and 8 bytes, all ones and a pattern.
        let mut t = Bench::new();
        let features = *t.unit.features();
        let table = expected_bytes(&features);
        // What a command register holds after a command is the command's business.
        let iotlb = features.extended.iotlb_register_offset() + 8;
        let commands = [0x28..0x30, iotlb..iotlb + 8];
        let is_command = |at: usize| commands.iter().any(|range| range.contains(&(at as u16)));
        for len in [1u8, 2, 4, 8] {
            for value in [u64::MAX, 0x0123_4567_89ab_cdef] {
                for offset in 0..table.len() {
                    t.unit.reset();
                    t.unit.write(offset as u64, len, value);
                    let covered = offset..offset + usize::from(len);
                    // A few quadwords around the write, and now and then all of them.
                    let all = offset % 512 == 0;
                    let near = (offset & !7).saturating_sub(8)..(offset + 24).min(table.len());
                    let seen = if all { 0..table.len() } else { near };
                    for at in seen.filter(|at| !is_command(*at)) {
                        let (reset, writable, readable) = table[at];
                        let expected = if covered.contains(&at) {
                            let byte = value.to_le_bytes()[at - offset];
                            (reset & !writable | byte & writable) & readable
                        } else {
                            reset
                        };
                        assert_eq!(
                            t.unit.read(at as u64, 1),
                            u64::from(expected),
                            "{at:#x} after {len} bytes at {offset:#x}"
                        );
                    }
                }
            }
        }
    }

    fn fault(source_id: u16) -> GuestFault {
        GuestFault {
            source_id: sid(source_id),
            pasid: None,
            reason: FaultReason::PasidEntryNotPresent,
            address: Iova::new(0x7000),
            request: RequestType::Read,
            privileged: false,
            execute: false,
            fault_processing_disabled: false,
        }
    }

    #[test]
    fn there_are_as_many_fault_records_as_configured() {
        // §11.4.2 `NFR`, §7.2.1.
        for count in 1..=MAX_FAULT_RECORDS {
            let mut t = Bench::with(Setup {
                fault_records: count,
                ..Setup::default()
            });
            for index in 0..u16::from(count) {
                t.record(fault(index));
                let at = FRCD + u64::from(index) * 16;
                assert_eq!(t.unit.read(at + 8, 2), u64::from(index));
                assert_eq!(t.unit.read(at + 15, 1) >> 7, 1, "F");
                assert_eq!(t.unit.read(FSTS, 4), 2, "PPF, and FRI 0");
            }
            t.record(fault(0x100));
            assert_eq!(t.unit.read(FSTS, 4), 3, "PFO with it");
            let behind = FRCD + u64::from(count) * 16;
            assert_eq!((t.unit.read(behind, 8), t.unit.read(behind + 8, 8)), (0, 0));
            // Cleared in any order; the last one takes PPF along, not PFO.
            for index in (0..u64::from(count)).rev() {
                assert_eq!(t.unit.read(FSTS, 4), 3);
                t.unit.write(FRCD + index * 16 + 15, 1, 0x80);
            }
            assert_eq!(t.unit.read(FSTS, 4), 1);
            t.unit.write(FSTS, 1, 1);
            assert_eq!(t.unit.read(FSTS, 4), 0);
        }
    }

    /// One of the two events: its control register, its message, how it comes about and how its
    /// cause goes.
    struct EventCase {
        control: u64,
        message: (u64, u32),
        raise: fn(&mut Bench),
        clear: fn(&mut Bench),
    }

    const EVENTS: [EventCase; 2] = [
        EventCase {
            control: FECTL,
            message: FAULT_MESSAGE,
            raise: |t| t.record(fault(0x10)),
            clear: |t| {
                for index in 0..4 {
                    t.unit.write(FRCD + index * 16 + 12, 4, 1 << 31);
                }
            },
        },
        EventCase {
            control: IECTL,
            message: COMPLETION_MESSAGE,
            raise: |t| t.submit_raw(wait(STATUS, 1, true)),
            clear: |t| t.unit.write(ICS, 4, 1),
        },
    ];

    const IM: u64 = 1 << 31;
    const IP: u64 = 1 << 30;

    fn event_bench(case: &EventCase, is_masked: bool) -> Bench {
        let mut t = Bench::scalable();
        t.program_events();
        if !is_masked {
            t.unit.write(case.control, 4, 0);
        }
        t.forget();
        t
    }

    #[test]
    fn both_events_are_sent_once_for_a_cause_and_again_after_it_was_cleared() {
        // §7.3, §6.5.2.10.
        for case in &EVENTS {
            let mut t = event_bench(case, false);
            for round in 1..4 {
                (case.raise)(&mut t);
                (case.raise)(&mut t);
                assert_eq!(t.host.interrupts, [case.message].repeat(round));
                assert_eq!(t.unit.read(case.control, 4), 0, "not pending");
                (case.clear)(&mut t);
            }
        }
    }

    #[test]
    fn both_events_are_held_back_while_masked_and_sent_when_unmasked() {
        for case in &EVENTS {
            let mut t = event_bench(case, true);
            (case.raise)(&mut t);
            assert_eq!(t.unit.read(case.control, 4), IM | IP);
            // `IP` is read only, and so is everything but `IM`.
            t.unit.write(case.control, 4, IM);
            t.unit.write(case.control, 2, 0xffff);
            t.run();
            assert_eq!(t.unit.read(case.control, 4), IM | IP);
            assert_eq!(t.host.interrupts, []);
            t.unit.write(case.control + 3, 1, 0);
            assert_eq!(t.unit.read(case.control, 4), 0);
            t.run();
            assert_eq!(t.host.interrupts, [case.message]);
            // Masked and unmasked again: it was sent.
            t.unit.write(case.control, 4, IM);
            t.unit.write(case.control, 4, 0);
            t.run();
            assert_eq!(t.host.interrupts, [case.message]);
        }
    }

    #[test]
    fn both_events_are_dropped_when_their_cause_is_cleared_while_masked() {
        for case in &EVENTS {
            let mut t = event_bench(case, true);
            (case.raise)(&mut t);
            (case.clear)(&mut t);
            assert_eq!(t.unit.read(case.control, 4), IM);
            t.unit.write(case.control, 4, 0);
            t.run();
            assert_eq!(t.host.interrupts, []);
            (case.raise)(&mut t);
            assert_eq!(t.host.interrupts, [case.message]);
        }
    }

    #[test]
    fn a_message_is_the_one_programmed_when_it_is_sent() {
        for case in &EVENTS {
            let mut t = event_bench(case, true);
            (case.raise)(&mut t);
            t.unit.write(case.control + 4, 4, 0xffff_1234);
            t.unit.write(case.control, 4, 0);
            t.run();
            assert_eq!(
                t.host.interrupts,
                [(case.message.0, 0x1234)],
                "16 bits of data"
            );
        }
    }
}
