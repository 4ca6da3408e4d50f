//! The register file that the guest sees (§11.4).
//!
//! One table, [`REGISTERS`], says of every register where it is, what of it can be read, written or
//! cleared, what it holds after a reset, and who acts on a write. What is not in the table reads as
//! 0 and ignores writes. Accesses of any width and alignment are put together from dwords.

#[cfg(test)]
mod tests;

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
