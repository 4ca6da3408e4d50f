//! The guest's register reads and writes.

use crate::arch::register::{
    ContextCommand, GlobalCommand, GlobalStatus, IotlbCommand, RootTableAddress,
    TranslationTableMode,
};
use crate::viommu::host::HostState;
use crate::viommu::registers::{Event, REGISTER_WINDOW_BYTES, Register, RegisterWrite};

use super::VirtualUnit;

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// Reads `len_bytes` (1, 2, 4 or 8) at an offset into the register window, low byte first. Any
    /// alignment is defined; what is not a register reads as 0.
    pub fn read(&self, offset: u64, len_bytes: u8) -> u64 {
        let Some(offset) = window_offset(offset) else {
            return 0;
        };
        let (start, shift) = (offset & !3, u32::from(offset & 3) * 8);
        let mut value = u128::from(self.read_dword(start));
        let bits = u32::from(len_bytes.min(8)) * 8;
        if shift + bits > 32 {
            value |= u128::from(self.read_dword(start.saturating_add(4))) << 32;
        }
        if shift + bits > 64 {
            value |= u128::from(self.read_dword(start.saturating_add(8))) << 64;
        }
        (value >> shift) as u64 & low_bits(bits)
    }

    pub(super) fn read_dword(&self, offset: u16) -> u32 {
        if u32::from(offset) >= REGISTER_WINDOW_BYTES {
            return 0;
        }
        match self.faults.read_dword(offset) {
            Some(value) => value,
            None => self.registers.read_dword(offset),
        }
    }

    /// Writes the low `len_bytes` (1, 2, 4 or 8) of a value at an offset into the register window.
    /// Any alignment is defined; what is not writable ignores it.
    ///
    /// Nothing but registers changes: call [`poll`](Self::poll) next.
    pub fn write(&mut self, offset: u64, len_bytes: u8, value: u64) {
        let Some(offset) = window_offset(offset) else {
            return;
        };
        let (start, shift) = (offset & !3, u32::from(offset & 3) * 8);
        let covered = u128::from(low_bits(u32::from(len_bytes.min(8)) * 8)) << shift;
        let value = u128::from(value) << shift & covered;
        for dword in 0..3u16 {
            let bit = u32::from(dword) * 32;
            let covered = (covered >> bit) as u32;
            let offset = start.saturating_add(dword * 4);
            if covered != 0 && u32::from(offset) < REGISTER_WINDOW_BYTES {
                self.write_dword(offset, (value >> bit) as u32, covered);
            }
        }
    }

    pub(super) fn write_dword(&mut self, offset: u16, value: u32, covered: u32) {
        if self
            .faults
            .write_dword(offset, value & covered, &mut self.registers)
        {
            return;
        }
        let Some(write) = self.registers.write_dword(offset, value, covered) else {
            return;
        };
        let refused = write.value >> 63 == 1 && !self.has_register_invalidation();
        match write.register {
            Register::GlobalCommand => {
                self.command(write);
                self.interrupt_command(write);
            }
            // Refused at once: the granularity done is 0 (§6.5.1).
            Register::ContextCommand if refused => self.complete_context_command(0),
            Register::IotlbCommand if refused => self.complete_iotlb_command(0),
            Register::FaultStatus => {
                if !self
                    .registers
                    .fault_status()
                    .contains(crate::arch::register::FaultStatus::INVALIDATION_QUEUE_ERROR)
                {
                    self.registers.set(Register::QueueErrorRecord, 0);
                }
                self.registers.drop_fault_event_without_cause();
            }
            Register::CompletionStatus => self.registers.drop_completion_event_without_cause(),
            Register::FaultEventControl => self.registers.event_mask_written(Event::Fault),
            Register::CompletionEventControl => {
                self.registers.event_mask_written(Event::Completion);
            }
            _ => {}
        }
    }

    /// Acts on every bit of a command that differs from what was commanded before (§11.4.4.1).
    pub(super) fn command(&mut self, write: RegisterWrite) {
        let mut before = GlobalCommand::empty();
        before.set(GlobalCommand::TRANSLATION_ENABLE, self.commands.translation);
        before.set(
            GlobalCommand::QUEUED_INVALIDATION_ENABLE,
            self.commands.queue,
        );
        let bits = u64::from(before.bits()) & !write.covered | write.value;
        let command = GlobalCommand::from_bits_truncate(bits as u32);
        if command.contains(GlobalCommand::SET_ROOT_TABLE_POINTER) {
            self.registers
                .set_status(GlobalStatus::ROOT_TABLE_POINTER_SET, false);
            self.commands.root_pointer = Some(RootTableAddress::from_bits(
                self.registers.get(Register::RootTableAddress),
            ));
        }
        self.commands.translation = command.contains(GlobalCommand::TRANSLATION_ENABLE);
        let queue = command.contains(GlobalCommand::QUEUED_INVALIDATION_ENABLE)
            && self.features.extended.has_queued_invalidation();
        if self.commands.queue && !queue {
            self.commands.queue_stop = true;
        }
        self.commands.queue = queue;
    }

    /// Register-based invalidation works with a legacy root table and without a queue (§6.5.1).
    pub(super) fn has_register_invalidation(&self) -> bool {
        self.root.mode() == TranslationTableMode::Legacy
            && !self
                .registers
                .status()
                .contains(GlobalStatus::QUEUED_INVALIDATION_ENABLED)
    }

    pub(super) fn context_command(&self) -> ContextCommand {
        ContextCommand::from_bits(self.registers.get(Register::ContextCommand))
    }

    pub(super) fn iotlb_command(&self) -> IotlbCommand {
        IotlbCommand::from_bits(self.registers.get(Register::IotlbCommand))
    }

    pub(super) fn complete_context_command(&mut self, granularity: u8) {
        let done = self.context_command().completed(granularity);
        self.registers.set(Register::ContextCommand, done.bits());
    }

    pub(super) fn complete_iotlb_command(&mut self, granularity: u8) {
        let done = self.iotlb_command().completed(granularity);
        self.registers.set(Register::IotlbCommand, done.bits());
    }

    // Work.
}

/// An offset within the register window.
pub(super) fn window_offset(offset: u64) -> Option<u16> {
    u16::try_from(offset)
        .ok()
        .filter(|offset| u32::from(*offset) < REGISTER_WINDOW_BYTES)
}

/// A mask of the low `bits` bits.
pub(super) const fn low_bits(bits: u32) -> u64 {
    match u64::MAX.checked_shr(64u32.saturating_sub(bits)) {
        Some(mask) => mask,
        None => 0,
    }
}
