//! Commands to the unit: one at a time, one change per write, bounded waits (§6.9, §11.4.4.1).

use super::deadline::Deadline;
use super::error::UnitError;
use super::unit::Unit;
use crate::arch::register::{
    GlobalCommand, GlobalStatus, ProtectedMemoryEnable, Register32, Register64,
};
use crate::mem::{Platform, Registers};

/// What tells that a command is done: the bits of `mask` in the register read as in `wanted`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    register: Register32,
    mask: u32,
    wanted: u32,
}

impl Completion {
    const fn is_met(self, value: u32) -> bool {
        value & self.mask == self.wanted
    }
}

/// The one command that a unit can work on.
#[derive(Clone, Copy, Debug)]
pub(super) enum CommandSlot {
    /// There is none.
    Idle,
    /// Some processor is waiting for one.
    Running,
    /// One was given up on. No other may be issued before it is done after all.
    Pending(Completion),
}

impl<R: Registers> Unit<R> {
    /// A register's value, unless it is all ones: then nothing answers there any more.
    #[inline(never)]
    pub(super) fn read32(&self, register: Register32) -> Result<u32, UnitError> {
        match self.registers.lock().read32(register) {
            u32::MAX => Err(UnitError::Lost {
                register: register.offset(),
            }),
            value => Ok(value),
        }
    }

    /// As [`read32`](Self::read32).
    #[inline(never)]
    pub(super) fn read64(&self, register: Register64) -> Result<u64, UnitError> {
        match self.registers.lock().read64(register) {
            u64::MAX => Err(UnitError::Lost {
                register: register.offset(),
            }),
            value => Ok(value),
        }
    }

    /// Writes a register that must read back what was written.
    pub(super) fn write64_checked(
        &self,
        register: Register64,
        expected: u64,
    ) -> Result<(), UnitError> {
        self.registers.lock().write64(register, expected);
        match self.read64(register)? {
            value if value == expected => Ok(()),
            value => Err(UnitError::ReadBack {
                register: register.offset(),
                expected,
                value,
            }),
        }
    }

    /// Waits until a register reads with bit 63 clear: the register-based invalidation that it
    /// requests is done (`ICC`, `IVT`).
    pub(super) fn await_invalidation<P: Platform>(
        &self,
        h: &P,
        register: Register64,
    ) -> Result<(), UnitError> {
        let mut deadline = Deadline::after(h, self.config.timeout_nanoseconds);
        let mut is_last = false;
        loop {
            let value = self.read64(register)?;
            if value >> 63 == 0 {
                return Ok(());
            }
            if is_last {
                return Err(UnitError::TimedOut {
                    register: register.offset(),
                    value,
                });
            }
            // One more look after the deadline: this processor may have been away meanwhile.
            is_last = !deadline.pause(h);
        }
    }

    pub(super) fn read_global_status(&self) -> Result<GlobalStatus, UnitError> {
        self.read32(Register32::GLOBAL_STATUS)
            .map(GlobalStatus::from_bits_retain)
    }

    /// Turns a persistent command on.
    pub(super) fn enable<P: Platform>(&self, h: &P, what: GlobalCommand) -> Result<(), UnitError> {
        self.global_command(h, what, GlobalCommand::empty(), what)
    }

    /// Turns a persistent command off.
    pub(super) fn disable<P: Platform>(&self, h: &P, what: GlobalCommand) -> Result<(), UnitError> {
        let none = GlobalCommand::empty();
        self.global_command(h, none, what, none)
    }

    /// Makes the unit use the root table address register (`SRTP`, §6.6).
    pub(super) fn set_root_table_pointer<P: Platform>(&self, h: &P) -> Result<(), UnitError> {
        let what = GlobalCommand::SET_ROOT_TABLE_POINTER;
        self.global_command(h, what, GlobalCommand::empty(), what)
    }

    /// Makes the unit use the interrupt remapping table address register (`SIRTP`, §6.7).
    pub(super) fn set_interrupt_table_pointer<P: Platform>(&self, h: &P) -> Result<(), UnitError> {
        let what = GlobalCommand::SET_INTERRUPT_REMAPPING_TABLE_POINTER;
        self.global_command(h, what, GlobalCommand::empty(), what)
    }

    /// Flushes the unit's write buffer, if it has one (`CAP.RWBF`): owed after a table change that
    /// no invalidation follows (§6.8).
    ///
    /// # Errors
    ///
    /// [`UnitError::TimedOut`], [`UnitError::CommandPending`] or [`UnitError::Lost`].
    pub fn write_buffer_flush<P: Platform>(&self, h: &P) -> Result<(), UnitError> {
        if !self.features.capability.requires_write_buffer_flush() {
            return Ok(());
        }
        let what = GlobalCommand::WRITE_BUFFER_FLUSH;
        let none = GlobalCommand::empty();
        self.global_command(h, what, none, none)
    }

    /// Ends the protection of the protected memory regions (`PMEN`, §11.4.8.1).
    pub(super) fn disable_protected_memory<P: Platform>(&self, h: &P) -> Result<(), UnitError> {
        let register = Register32::PROTECTED_MEMORY_ENABLE;
        let flags = ProtectedMemoryEnable::ENABLE.bits() | ProtectedMemoryEnable::STATUS.bits();
        let completion = Completion {
            register,
            mask: ProtectedMemoryEnable::STATUS.bits(),
            wanted: 0,
        };
        self.run(h, completion, || {
            let value = self.read32(register)?;
            if value & flags != 0 {
                self.registers.lock().write32(register, value & !flags);
            }
            Ok(())
        })
        .map(drop)
    }

    /// Issues a global command: those in force, with one field `set` or `clear`ed. It is done when the
    /// status bit of that field reads as in `wanted`.
    fn global_command<P: Platform>(
        &self,
        h: &P,
        set: GlobalCommand,
        clear: GlobalCommand,
        wanted: GlobalCommand,
    ) -> Result<(), UnitError> {
        // Command and status bits have the same places (§11.4.4).
        let completion = Completion {
            register: Register32::GLOBAL_STATUS,
            mask: set.union(clear).bits(),
            wanted: wanted.bits(),
        };
        let mut command = GlobalCommand::empty();
        let status = self.run(h, completion, || {
            // One-shot bits must not be sent again: the status shows them as still set.
            let in_force = self.read_global_status()?.persistent();
            command = in_force.union(set).difference(clear);
            self.registers
                .lock()
                .write32(Register32::GLOBAL_COMMAND, command.bits());
            Ok(())
        })?;
        let expected = command.intersection(GlobalCommand::PERSISTENT);
        let in_force = GlobalStatus::from_bits_retain(status).persistent();
        if in_force != expected {
            return Err(UnitError::ReadBack {
                register: Register32::GLOBAL_STATUS.offset(),
                expected: u64::from(expected.bits()),
                value: u64::from(status),
            });
        }
        Ok(())
    }

    /// Issues a command while the unit works on no other, and waits for its completion. Returns the
    /// last value of the register.
    fn run<P: Platform>(
        &self,
        h: &P,
        completion: Completion,
        issue: impl FnOnce() -> Result<(), UnitError>,
    ) -> Result<u32, UnitError> {
        self.claim_commands(h)?;
        let result = match issue() {
            Ok(()) => self.await_completion(h, completion),
            Err(error) => {
                *self.commands.lock() = CommandSlot::Idle;
                return Err(error);
            }
        };
        *self.commands.lock() = match result {
            Ok(_) => CommandSlot::Idle,
            Err(_) => CommandSlot::Pending(completion),
        };
        result
    }

    fn await_completion<P: Platform>(
        &self,
        h: &P,
        completion: Completion,
    ) -> Result<u32, UnitError> {
        let mut deadline = Deadline::after(h, self.config.timeout_nanoseconds);
        let mut is_last = false;
        loop {
            let value = self.read32(completion.register)?;
            if completion.is_met(value) {
                return Ok(value);
            }
            if is_last {
                return Err(UnitError::TimedOut {
                    register: completion.register.offset(),
                    value: u64::from(value),
                });
            }
            is_last = !deadline.pause(h);
        }
    }

    /// The unit has lost its registers, and with them a command that it was given up on.
    pub(super) fn forget_pending_command(&self) {
        let mut slot = self.commands.lock();
        if let CommandSlot::Pending(_) = *slot {
            *slot = CommandSlot::Idle;
        }
    }

    /// Waits until no processor has a command under way, and takes the slot.
    fn claim_commands<P: Platform>(&self, h: &P) -> Result<(), UnitError> {
        let mut deadline = Deadline::after(h, self.config.timeout_nanoseconds);
        loop {
            let mut slot = self.commands.lock();
            match *slot {
                CommandSlot::Idle => {
                    *slot = CommandSlot::Running;
                    return Ok(());
                }
                CommandSlot::Pending(completion) => {
                    let value = self.read32(completion.register)?;
                    if completion.is_met(value) {
                        *slot = CommandSlot::Running;
                        return Ok(());
                    }
                    return Err(UnitError::CommandPending {
                        register: completion.register.offset(),
                        value: u64::from(value),
                    });
                }
                CommandSlot::Running => {}
            }
            drop(slot);
            if !deadline.pause(h) {
                let register = Register32::GLOBAL_STATUS;
                return Err(UnitError::CommandPending {
                    register: register.offset(),
                    value: u64::from(self.read32(register)?),
                });
            }
        }
    }
}
