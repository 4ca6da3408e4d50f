//! The interrupt of one device: an entry of the unit's own table, or a message that goes unchecked
//! where the unit remaps no interrupts.

use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::interrupt::{Interrupt, InterruptAction, InterruptMessage};
use vtd_nest::mem::{MmioRegisters, Owner};
use vtd_nest::unit::{DeviceInterrupt, InterruptSlice, QueueError, Unit, UnitError};

use crate::environment::Environment;

/// Why a device has no interrupt.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(super) enum MessageError {
    Unit(UnitError),
    Queue(QueueError),
}

/// The message that a device sends for a vector.
pub(super) struct Message {
    pub(super) message: InterruptMessage,
    slice: Option<InterruptSlice>,
}

impl Message {
    /// In remappable format, with an entry that only this device may use, if the unit remaps.
    pub(super) fn new(
        environment: &Environment,
        unit: &Unit<MmioRegisters>,
        source_id: SourceId,
        apic_id: u32,
        vector: u8,
    ) -> Result<Self, MessageError> {
        if !unit.remaps_interrupts() {
            return Ok(Self {
                message: compatibility(apic_id, vector),
                slice: None,
            });
        }
        let mut slice = unit
            .allocate_interrupt_entries(Owner::HYPERVISOR, 1)
            .map_err(MessageError::Unit)?;
        let interrupt = DeviceInterrupt {
            source_id,
            action: InterruptAction::Remap(Interrupt::fixed(apic_id, vector)),
        };
        let stale = unit
            .set_interrupt_entry(environment, &mut slice, 0, &interrupt)
            .map_err(MessageError::Unit)?;
        if let Some(stale) = stale {
            unit.invalidate_interrupt_entries(environment, stale)
                .map_err(|(_, error)| MessageError::Queue(error))?;
        }
        Ok(Self {
            message: InterruptMessage::remappable(slice.first()),
            slice: Some(slice),
        })
    }

    /// Gives the entry back.
    pub(super) fn release(
        self,
        environment: &Environment,
        unit: &Unit<MmioRegisters>,
    ) -> Result<(), MessageError> {
        match self.slice {
            Some(slice) => unit
                .release_interrupt_entries(environment, slice)
                .map_err(|(_, error)| MessageError::Unit(error)),
            None => Ok(()),
        }
    }
}

/// The message in compatibility format, edge-triggered and fixed (§5.1.2.1).
pub(super) const fn compatibility(apic_id: u32, vector: u8) -> InterruptMessage {
    InterruptMessage {
        address: 0xfee0_0000 | (apic_id as u64 & 0xff) << 12,
        data: vector as u32,
    }
}
