//! Interrupts of a machine's devices: the guest's entries carried out by the machine's slices of the
//! physical tables (DESIGN section 8, R35).
//!
//! The machine has a slice of the table of each unit that remaps interrupts and that a device of it
//! is behind. The guest's entry `n`
//! is the `n`-th of the slice of the unit that its device is behind, and absent in all others. What
//! a host entry does is built from the guest's, never copied: delivery fixed, lowest-priority or, if
//! the policy says so, NMI; the vector and processors that the platform routes it to; for one device
//! only, by its physical source-id.
//!
//! Messages reach hardware in remappable format only. Unless the machine's slice is the first, the
//! hypervisor traps what the guest programs into its devices and programs what
//! [`device_message`](crate::nest::VirtualMachine::device_message) gives instead; while the guest's
//! remapping is off, what [`route_message`](crate::nest::VirtualMachine::route_message) gives.

use core::fmt;

use heapless::Vec;

use crate::arch::descriptor::Descriptor;
use crate::arch::fault::FaultReason;
use crate::arch::id::SourceId;
use crate::arch::interrupt::{
    DeliveryMode, Interrupt, InterruptAction, InterruptIndex, MessageError, SourceValidation,
};
use crate::arch::register::FaultRecord;
use crate::mem::{Hypervisor, Owner, Registers};
use crate::nest::bind::HostPort;
use crate::nest::fault::HostFaultCause;
use crate::nest::offer::Policy;
use crate::nest::units::MACHINE_UNITS;
use crate::unit::interrupt::entry::check_interrupt;
use crate::unit::{DeviceInterrupt, InterruptSlice, StaleInterruptEntries, Unit, UnitError};
use crate::viommu::host::{BindError, DeviceHandle, GuestInterrupt, HostState, InterruptError};
use crate::viommu::{GuestFault, VirtualUnit};

/// Why there is no message for a device. Nothing has changed, unless a variant says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageRefusal {
    /// The handle names no device.
    UnknownDevice(DeviceHandle),
    /// The unit that the device is behind does not remap interrupts.
    NotRemapped(DeviceHandle),
    /// The guest's message is none.
    Message(MessageError),
    /// The message is in compatibility format, and the guest's remapping is on: it is blocked.
    CompatibilityFormat,
    /// The guest's remapping is on: its own entries say what a message comes to.
    GuestRemaps,
    /// The guest's remapping is off: it has no entries.
    GuestDoesNotRemap,
    /// The guest's entry cannot be carried out. It is absent.
    Entry(InterruptError),
    /// Hardware did not confirm that the entry before is forgotten: the message must not be used.
    NotConfirmed(BindError),
}

impl fmt::Display for MessageRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownDevice(handle) => write!(f, "no device {handle:?}"),
            Self::NotRemapped(handle) => {
                write!(f, "interrupts of device {handle:?} are not remapped")
            }
            Self::Message(error) => write!(f, "no interrupt message: {error:?}"),
            Self::CompatibilityFormat => f.write_str("a message in compatibility format"),
            Self::GuestRemaps => f.write_str("the guest remaps interrupts"),
            Self::GuestDoesNotRemap => f.write_str("the guest does not remap interrupts"),
            Self::Entry(error) => error.fmt(f),
            Self::NotConfirmed(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for MessageRefusal {}

/// A machine's part of the physical interrupt remapping tables.
#[derive(Debug)]
pub(super) struct MachineInterrupts {
    /// The number of entries in each slice; 0 if there is none.
    count: u32,
    /// The policy lets devices raise NMIs.
    non_maskable: bool,
    /// Of each unit that the machine uses and that remaps interrupts.
    units: Vec<UnitPart, MACHINE_UNITS>,
}

/// The part of one unit.
#[derive(Debug)]
struct UnitPart {
    unit: u8,
    /// Always there but while it is given back.
    slice: Option<InterruptSlice>,
    /// What hardware may still know of older entries, and has not been told to forget.
    stale: Option<StaleInterruptEntries>,
}

impl MachineInterrupts {
    /// None of any unit.
    pub(super) const fn vacant() -> Self {
        Self {
            count: 0,
            non_maskable: false,
            units: Vec::new(),
        }
    }

    /// Slices are as long as the policy says, if any unit remaps interrupts.
    pub(super) fn start<R: Registers>(&mut self, units: &[Unit<R>], policy: &Policy) {
        *self = Self::vacant();
        self.non_maskable = policy.non_maskable_interrupts;
        if units.iter().any(|unit| unit.interrupt_entries() > 0) {
            self.count = 1 << (policy.interrupt_entries_order & 31);
        }
    }

    /// Takes a slice of a unit that the machine uses from now on, if the unit remaps interrupts.
    ///
    /// # Errors
    ///
    /// The unit has no such slice left. Nothing is taken then.
    pub(super) fn enter<R: Registers>(
        &mut self,
        unit: u8,
        physical: &Unit<R>,
        owner: Owner,
    ) -> Result<(), UnitError> {
        if physical.interrupt_entries() == 0 || self.part(unit).is_some() {
            return Ok(());
        }
        let slice = physical.allocate_interrupt_entries(owner, self.count)?;
        // The machine uses no more units than there are places.
        _ = self.units.push(UnitPart {
            unit,
            slice: Some(slice),
            stale: None,
        });
        Ok(())
    }

    /// Gives the slice of a unit back, once hardware has confirmed that it forgot the entries.
    ///
    /// # Errors
    ///
    /// What the unit says; its slice is kept, and a later call tries again.
    pub(super) fn leave<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        unit: u8,
        physical: &Unit<R>,
    ) -> Result<(), UnitError> {
        if let Some(part) = self.part_mut(unit)
            && let Some(slice) = part.slice.take()
            && let Err((slice, error)) = physical.release_interrupt_entries(h, slice)
        {
            part.slice = Some(slice);
            return Err(error);
        }
        self.units.retain(|part| part.unit != unit);
        Ok(())
    }

    fn part(&self, unit: u8) -> Option<&UnitPart> {
        self.units.iter().find(|part| part.unit == unit)
    }

    fn part_mut(&mut self, unit: u8) -> Option<&mut UnitPart> {
        self.units.iter_mut().find(|part| part.unit == unit)
    }

    /// Adds what a change of a unit's entry owes to what is owed.
    fn owe(&mut self, unit: u8, stale: Option<StaleInterruptEntries>) {
        let Some(part) = self.part_mut(unit) else {
            return;
        };
        match (&mut part.stale, stale) {
            (Some(before), Some(stale)) => before.merge(stale),
            (before @ None, stale) => *before = stale,
            (Some(_), None) => {}
        }
    }

    /// All that was ever told a unit is to be forgotten: an invalidation was not confirmed.
    pub(super) fn owe_all(&mut self, unit: u8) {
        let stale = self.part(unit).and_then(|part| part.slice.as_ref());
        let stale = stale.map(StaleInterruptEntries::of);
        self.owe(unit, stale);
    }

    /// Puts what a unit is owed into a batch, if there is room, and takes it out of what is owed.
    pub(super) fn add_to_batch<const N: usize>(
        &mut self,
        unit: u8,
        maximum_handle_mask: u8,
        batch: &mut Vec<Descriptor, N>,
    ) -> Option<StaleInterruptEntries> {
        let part = self.part_mut(unit)?;
        let stale = part.stale.as_ref()?;
        batch.push(stale.descriptor(maximum_handle_mask)).ok()?;
        part.stale.take()
    }

    /// What was taken out of what is owed was not submitted.
    pub(super) fn put_back(&mut self, unit: u8, stale: Option<StaleInterruptEntries>) {
        self.owe(unit, stale);
    }

    /// The slice of a unit's table.
    pub(super) fn slice(&self, unit: u8) -> Option<&InterruptSlice> {
        self.part(unit)?.slice.as_ref()
    }
}

impl<
    'a,
    H: Hypervisor,
    R: Registers,
    const DEVICES: usize,
    const DOMAINS: usize,
    const SHADOWS: usize,
> HostPort<'a, H, R, DEVICES, DOMAINS, SHADOWS>
{
    /// The number of entries that the guest can have.
    pub(super) const fn interrupt_count(&self) -> u32 {
        self.side.interrupts.count
    }

    /// Makes the host's entries for a guest's index as desired.
    pub(super) fn follow_guest_interrupt(
        &mut self,
        index: InterruptIndex,
        desired: Option<&GuestInterrupt>,
    ) -> Result<(), InterruptError> {
        let offset = u32::from(index.as_u16());
        let capacity = self.side.interrupts.count;
        if offset >= capacity {
            return match desired {
                None => Ok(()),
                Some(_) => Err(InterruptError::Index { index, capacity }),
            };
        }
        let found = desired.map_or(Ok(None), |guest| self.host_interrupt(guest));
        let (mut result, wanted) = match found {
            Ok(wanted) => (Ok(()), wanted),
            Err(error) => (Err(error), None),
        };
        if let Some((unit, _)) = &wanted
            && self.side.interrupts.slice(*unit).is_none()
        {
            // The unit does not remap interrupts.
            result = Err(InterruptError::Unit);
        }
        for index in 0..MACHINE_UNITS {
            let part = self.side.interrupts.units.get(index);
            let Some(unit) = part.map(|part| part.unit) else {
                break;
            };
            let Some(physical) = self.units.get(usize::from(unit)) else {
                continue;
            };
            let interrupt = wanted
                .as_ref()
                .filter(|(of, _)| *of == unit)
                .map(|(_, interrupt)| interrupt);
            if let Err(error) = self.store_interrupt(unit, physical, offset, interrupt) {
                log::error!("machine {}: interrupt {index}: {error}", self.side.number);
                result = Err(InterruptError::Unit);
            }
        }
        result
    }

    /// Stores one host entry, or makes it absent; what cannot be stored is absent, too.
    fn store_interrupt(
        &mut self,
        unit: u8,
        physical: &Unit<R>,
        offset: u32,
        interrupt: Option<&DeviceInterrupt>,
    ) -> Result<(), UnitError> {
        let interrupts = &mut self.side.interrupts;
        let part = interrupts.part_mut(unit);
        let Some(slice) = part.and_then(|part| part.slice.as_mut()) else {
            // The unit does not remap interrupts, so there is nothing to take away.
            return match interrupt {
                None => Ok(()),
                Some(_) => Err(UnitError::InterruptEntries {
                    wanted: 1,
                    capacity: 0,
                }),
            };
        };
        let stored = match interrupt {
            Some(interrupt) => physical.set_interrupt_entry(self.h, slice, offset, interrupt),
            None => physical.clear_interrupt_entry(self.h, slice, offset),
        };
        match stored {
            Ok(stale) => {
                interrupts.owe(unit, stale);
                Ok(())
            }
            Err(error) => {
                let cleared = physical.clear_interrupt_entry(self.h, slice, offset);
                interrupts.owe(unit, cleared?);
                Err(error)
            }
        }
    }

    /// What a guest entry is on hardware, and on which unit; `None` for one that is of no assigned
    /// device.
    fn host_interrupt(
        &self,
        guest: &GuestInterrupt,
    ) -> Result<Option<(u8, DeviceInterrupt)>, InterruptError> {
        let mut named = self.side.devices.iter().filter(|(_, device)| {
            guest.source.allows(device.config.guest_source_id) && !device.is_quarantined()
        });
        let Some((_, device)) = named.next() else {
            return Ok(None);
        };
        if named.next().is_some() {
            return Err(InterruptError::Source(guest.source));
        }
        let interrupt = self
            .route(&guest.interrupt)
            .ok_or(InterruptError::Refused(guest.interrupt))?;
        let interrupt = DeviceInterrupt {
            source_id: device.config.source_id,
            action: InterruptAction::Remap(interrupt),
        };
        Ok(Some((device.config.unit, interrupt)))
    }

    /// The interrupt for the host's processors that stands for one for the guest's; `None` if no
    /// device of the machine may raise it.
    fn route(&self, interrupt: &Interrupt) -> Option<Interrupt> {
        let is_allowed = check_interrupt(interrupt).is_ok()
            && (interrupt.delivery != DeliveryMode::NonMaskable
                || self.side.interrupts.non_maskable);
        if !is_allowed {
            return None;
        }
        self.h.route_interrupt(self.side.number, interrupt)
    }

    /// Makes all host entries of a device absent. Hardware may still know of them.
    pub(super) fn clear_interrupts_of(&mut self, device: DeviceHandle) {
        let Ok((unit, physical)) = self.unit_of(device) else {
            return;
        };
        let Ok(assigned) = self.side.devices.get(device) else {
            return;
        };
        let own = SourceValidation::exactly(assigned.config.source_id);
        for offset in 0..self.side.interrupts.count {
            let Some(slice) = self.side.interrupts.slice(unit) else {
                return;
            };
            let is_own = physical
                .read_interrupt_entry(self.h, slice, offset)
                .is_some_and(|entry| entry.is_present() && entry.source_validation() == Some(own));
            if is_own && let Err(error) = self.store_interrupt(unit, physical, offset, None) {
                log::error!("machine {}: {error}", self.side.number);
            }
        }
    }

    /// Takes all interrupts of a device away; `false` if hardware did not confirm: they are owed
    /// still. Waits for hardware.
    pub(super) fn withdraw_interrupts(&mut self, device: DeviceHandle) -> bool {
        self.clear_interrupts_of(device);
        let Ok((unit, physical)) = self.unit_of(device) else {
            return true;
        };
        let interrupts = &mut self.side.interrupts;
        let part = interrupts.part_mut(unit);
        let Some(stale) = part.and_then(|part| part.stale.take()) else {
            return true;
        };
        match physical.invalidate_interrupt_entries(self.h, stale) {
            Ok(()) => true,
            Err((stale, error)) => {
                log::error!("machine {}: {error}", self.side.number);
                interrupts.owe(unit, Some(stale));
                false
            }
        }
    }

    /// The fault that the guest sees for a message that hardware blocked: found in the guest's table,
    /// by the guest's own index.
    pub(super) fn explain_interrupt<B: HostState, const BINDINGS: usize>(
        &mut self,
        virtual_unit: &VirtualUnit<B, DEVICES, BINDINGS>,
        unit: u8,
        guest_source_id: SourceId,
        record: &FaultRecord,
        hardware: FaultReason,
    ) -> Result<GuestFault, HostFaultCause> {
        if !virtual_unit.is_remapping_interrupts() {
            return Err(HostFaultCause::InterruptRemappingOff);
        }
        use FaultReason as R;
        match hardware {
            // What is wrong with the message is wrong whatever the tables say; there is no index.
            R::InterruptRequestReserved
            | R::InterruptCompatibilityFormatBlocked
            | R::InterruptAddressMisused => {
                return Ok(GuestFault::interrupt(guest_source_id, hardware, 0, false));
            }
            R::InterruptExtendedModeRequired | R::InterruptRemappingRequired => {
                return Err(HostFaultCause::UnknownReason);
            }
            _ => {}
        }
        let first = self
            .side
            .interrupts
            .slice(unit)
            .map_or(0, |slice| slice.first().as_u16());
        let index = record.interrupt_index().wrapping_sub(first);
        let (walked, disabled) =
            virtual_unit.walk_interrupt(&self.memory, guest_source_id, index.into());
        let interrupt = match walked {
            Err(fault) => return Ok(fault),
            Ok(interrupt) => interrupt,
        };
        let reason = if self.route(&interrupt).is_none() {
            R::InterruptEntryReserved
        } else {
            match hardware {
                // The guest has changed its entry, and not said so yet.
                R::InterruptEntryNotPresent | R::InterruptSourceDenied
                    if u32::from(index) < self.side.interrupts.count =>
                {
                    let raced = &mut self.side.statistics.faults_raced;
                    *raced = raced.wrapping_add(1);
                    hardware
                }
                // The host could not carry it out.
                _ => R::InterruptTableUnreadable,
            }
        };
        Ok(GuestFault::interrupt(
            guest_source_id,
            reason,
            index,
            disabled,
        ))
    }
}
