//! Event messages that the guest's unit sends: faults and completed waits (§7.3, §6.5.2.10).

use vtd_nest::arch::register::{FaultStatus, Register32, Register64};

use super::Guest;

/// `IM` of an event control register.
const MASKED: u32 = 1 << 31;
/// `IP` of an event control register.
const PENDING: u32 = 1 << 30;

/// Which event of the guest's unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// Of faults: `FECTL_REG`.
    Fault,
    /// Of completed waits: `IECTL_REG`.
    Completion,
}

impl Event {
    const ALL: [Self; 2] = [Self::Fault, Self::Completion];

    const fn control(self) -> Register32 {
        match self {
            Self::Fault => Register32::FAULT_EVENT_CONTROL,
            Self::Completion => Register32::INVALIDATION_EVENT_CONTROL,
        }
    }

    /// Address and data of its message.
    const fn message(self) -> (u64, u32) {
        match self {
            Self::Fault => (0x1_fee0_1000, 0x41),
            Self::Completion => (0x2_fee0_2000, 0x42),
        }
    }
}

impl Guest {
    /// Programs the messages of all events and unmasks them.
    pub(crate) fn program_events(&mut self) {
        for event in Event::ALL {
            let (address, data) = event.message();
            let control = u64::from(event.control().offset());
            self.write_register(control + 4, 4, data.into());
            self.write_register(control + 8, 4, address & 0xffff_ffff);
            self.write_register(control + 12, 4, address >> 32);
            self.mask_event(event, false);
        }
    }

    /// Masks or unmasks an event.
    pub(crate) fn mask_event(&mut self, event: Event, masked: bool) {
        self.write32(event.control(), if masked { MASKED } else { 0 });
    }

    /// Whether an event is held back.
    pub(crate) fn is_event_pending(&self, event: Event) -> bool {
        self.read32(event.control()) & PENDING != 0
    }

    /// The events that were delivered since the last look, of the only machine.
    #[track_caller]
    pub(crate) fn take_events(&self) -> Vec<Event> {
        let delivered = self.lab.hypervisor.take_interrupts().into_iter();
        let events = delivered.map(|interrupt| {
            assert_eq!(interrupt.unit, u32::from(self.number()), "the machine");
            let message = (interrupt.address, interrupt.data);
            let event = Event::ALL.into_iter().find(|e| e.message() == message);
            event.unwrap_or_else(|| panic!("nobody programmed the message {message:x?}"))
        });
        events.collect()
    }

    /// `FSTS_REG`.
    pub(crate) fn fault_status(&self) -> FaultStatus {
        FaultStatus::from_bits_truncate(self.read32(Register32::FAULT_STATUS))
    }

    /// Why the queue stands (`IQERCD.IQEI`); `None` while it does not.
    pub(crate) fn queue_error(&self) -> Option<u64> {
        let stands = self
            .fault_status()
            .contains(FaultStatus::INVALIDATION_QUEUE_ERROR);
        let record = self.read64(Register64::INVALIDATION_QUEUE_ERROR_RECORD);
        stands.then_some(record & 0xf)
    }

    /// Clears `FSTS.IQE`.
    pub(crate) fn clear_queue_error(&mut self) {
        let error = FaultStatus::INVALIDATION_QUEUE_ERROR.bits();
        self.write32(Register32::FAULT_STATUS, error);
    }

    /// `IQH_REG`.
    pub(crate) fn head(&self) -> u64 {
        self.read64(Register64::INVALIDATION_QUEUE_HEAD)
    }
}
