//! The unit's own interrupts: fault, invalidation completion, page request (§7.3).

use crate::bits;

/// Which event a message belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A fault was recorded, or the queue met an error.
    Fault,
    /// A wait descriptor with IF=1 completed.
    InvalidationCompletion,
    /// A page request was queued.
    PageRequest,
}

/// A message that the unit sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventMessage {
    /// Which event.
    pub kind: EventKind,
    /// Where to, upper address register in bits 63:32.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// The four registers of one event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventRegisters {
    kind: EventKind,
    masked: bool,
    pending: bool,
    data: u32,
    address: u32,
    upper: u32,
}

const MASK: u32 = 1 << 31;
const PENDING: u32 = 1 << 30;

impl EventRegisters {
    pub(crate) const fn new(kind: EventKind) -> Self {
        Self {
            kind,
            masked: true,
            pending: false,
            data: 0,
            address: 0,
            upper: 0,
        }
    }

    /// The dword at `index`: control, data, address, upper address.
    pub(crate) fn read(&self, index: u16) -> u32 {
        match index {
            0 => (u32::from(self.masked) * MASK) | (u32::from(self.pending) * PENDING),
            1 => self.data,
            2 => self.address,
            _ => self.upper,
        }
    }

    /// Writes the dword at `index`: the reserved bits that were set, and a message to send.
    pub(crate) fn write(&mut self, index: u16, value: u32) -> (u32, Option<EventMessage>) {
        match index {
            0 => {
                self.masked = value & MASK != 0;
                // IP is read-only: writing back what was read is no breach.
                (value & !(MASK | PENDING), self.try_send())
            }
            1 => {
                self.data = value & 0xffff;
                (value & !0xffff, None)
            }
            2 => {
                self.address = value & !3;
                (value & 3, None)
            }
            _ => {
                self.upper = value;
                (0, None)
            }
        }
    }

    /// A new event, no other cause being pending.
    pub(crate) fn raise(&mut self) -> Option<EventMessage> {
        self.pending = true;
        self.try_send()
    }

    /// No cause is left.
    pub(crate) fn clear_pending(&mut self) {
        self.pending = false;
    }

    fn try_send(&mut self) -> Option<EventMessage> {
        if self.masked || !self.pending {
            return None;
        }
        self.pending = false;
        Some(EventMessage {
            kind: self.kind,
            address: u64::from(self.upper) << 32 | u64::from(self.address),
            data: bits::field(u64::from(self.data), 15, 0) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_events_pend_and_are_sent_when_unmasked() {
        let mut event = EventRegisters::new(EventKind::Fault);
        assert_eq!(event.read(0), MASK, "masked after reset");
        assert_eq!(event.write(1, 0x1_0031).0, 0x1_0000);
        assert_eq!(event.write(2, 0xfee0_1003).0, 3);
        event.write(3, 7);
        assert_eq!(event.raise(), None);
        assert_eq!(event.read(0), MASK | PENDING);
        let (reserved, message) = event.write(0, 0);
        assert_eq!(reserved, 0);
        assert_eq!(
            message,
            Some(EventMessage {
                kind: EventKind::Fault,
                address: 0x7_fee0_1000,
                data: 0x31
            })
        );
        assert_eq!(event.read(0), 0);
        assert!(event.raise().is_some());
        event.write(0, MASK);
        event.raise();
        event.clear_pending();
        assert_eq!(event.write(0, 0), (0, None));
        assert_eq!(event.write(0, 1), (1, None));
    }
}
