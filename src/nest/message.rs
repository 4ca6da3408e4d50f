//! Interrupt messages of the machine's devices.

use crate::arch::fault::FaultReason;
use crate::arch::id::SourceId;
use crate::arch::interrupt::{InterruptIndex, InterruptMessage, MessageFormat, SourceValidation};
use crate::arch::register::FaultRecord;
use crate::mem::{Hypervisor, Registers};
use crate::nest::fault::{FaultOutcome, HostFault};
use crate::nest::interrupt::MessageRefusal;
use crate::nest::machine::{VirtualMachine, port};
use crate::unit::{InterruptSlice, Unit};
use crate::viommu::host::{DeviceHandle, GuestInterrupt, InterruptError};

impl<const DEVICES: usize, const BINDINGS: usize, const DOMAINS: usize, const SHADOWS: usize>
    VirtualMachine<DEVICES, BINDINGS, DOMAINS, SHADOWS>
{
    /// The machine's slice of the table of the unit that a device is behind.
    fn slice_of(&self, device: DeviceHandle) -> Result<&InterruptSlice, MessageRefusal> {
        let assigned = self.host.devices.get(device);
        let assigned = assigned.map_err(|_| MessageRefusal::UnknownDevice(device))?;
        let slice = self.host.interrupts.slice(assigned.config.unit);
        slice.ok_or(MessageRefusal::NotRemapped(device))
    }

    fn host_index(
        &self,
        device: DeviceHandle,
        guest: u32,
    ) -> Result<InterruptIndex, MessageRefusal> {
        let slice = self.slice_of(device)?;
        slice
            .index(guest)
            .ok_or(MessageRefusal::Entry(InterruptError::Index {
                index: InterruptIndex::new(guest as u16),
                capacity: slice.count(),
            }))
    }

    /// The index on hardware of a guest's interrupt index, for a device: what goes into the device's
    /// message or an I/O APIC entry in its place.
    ///
    /// # Errors
    ///
    /// [`MessageRefusal::UnknownDevice`], [`MessageRefusal::NotRemapped`], or
    /// [`MessageRefusal::Entry`] beyond the machine's entries.
    pub fn interrupt_index(
        &self,
        device: DeviceHandle,
        guest: InterruptIndex,
    ) -> Result<InterruptIndex, MessageRefusal> {
        self.host_index(device, guest.as_u16().into())
    }

    /// What to program into a device in place of a message in remappable format that the guest
    /// programs, while the guest remaps interrupts. The entry itself follows the guest's table. A
    /// message of a block stays one; the device counts up its data.
    ///
    /// # Errors
    ///
    /// [`MessageRefusal`]: the device is to be given no message then.
    pub fn device_message(
        &self,
        device: DeviceHandle,
        message: InterruptMessage,
    ) -> Result<InterruptMessage, MessageRefusal> {
        if !self.virtual_unit.is_remapping_interrupts() {
            return Err(MessageRefusal::GuestDoesNotRemap);
        }
        match message.decode().map_err(MessageRefusal::Message)? {
            MessageFormat::Compatibility(_) => Err(MessageRefusal::CompatibilityFormat),
            MessageFormat::Remappable {
                handle,
                subhandle: None,
            } => {
                let index = self.host_index(device, handle.into())?;
                Ok(InterruptMessage::remappable(index))
            }
            MessageFormat::Remappable {
                handle,
                subhandle: Some(subhandle),
            } => {
                let sum = u32::from(handle).saturating_add(subhandle.into());
                let first = self.host_index(device, handle.into())?;
                _ = self.host_index(device, sum)?;
                Ok(InterruptMessage {
                    data: subhandle.into(),
                    ..InterruptMessage::remappable_block(first)
                })
            }
        }
    }

    /// Sets the machine's entry `entry` to what a device's message in compatibility format asks for,
    /// while the guest does not remap interrupts, and gives what to program into the device. Once
    /// the guest does, its own table says what the entry is. Waits for hardware.
    ///
    /// # Errors
    ///
    /// [`MessageRefusal`]: the device is to be given no message then.
    pub fn route_message<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        device: DeviceHandle,
        entry: InterruptIndex,
        message: InterruptMessage,
    ) -> Result<InterruptMessage, MessageRefusal> {
        let index = self.host_index(device, entry.as_u16().into())?;
        let interrupt = message
            .decode_compatibility()
            .map_err(MessageRefusal::Message)?;
        let assigned = self.host.devices.get(device);
        let assigned = assigned.map_err(|_| MessageRefusal::UnknownDevice(device))?;
        let wanted = GuestInterrupt {
            source: SourceValidation::exactly(assigned.config.guest_source_id),
            interrupt,
        };
        self.set_routed(h, units, entry, Some(&wanted))?;
        Ok(InterruptMessage::remappable(index))
    }

    /// Makes an entry absent that [`route_message`](Self::route_message) has set. Waits for hardware.
    ///
    /// # Errors
    ///
    /// [`MessageRefusal::GuestRemaps`] or [`MessageRefusal::NotConfirmed`].
    pub fn withdraw_message<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        entry: InterruptIndex,
    ) -> Result<(), MessageRefusal> {
        self.set_routed(h, units, entry, None)
    }

    fn set_routed<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        entry: InterruptIndex,
        wanted: Option<&GuestInterrupt>,
    ) -> Result<(), MessageRefusal> {
        if self.virtual_unit.follows_guest_interrupts() {
            return Err(MessageRefusal::GuestRemaps);
        }
        port!(self, h, units)
            .follow_guest_interrupt(entry, wanted)
            .map_err(MessageRefusal::Entry)?;
        self.complete_strictly(h, units)
            .map_err(MessageRefusal::NotConfirmed)
    }

    /// Routes a fault of a device's message, as [`handle_fault`](Self::handle_fault).
    pub(super) fn handle_interrupt_fault<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        unit: u8,
        guest_source_id: SourceId,
        record: &FaultRecord,
        hardware: FaultReason,
    ) -> FaultOutcome {
        let explained = port!(self, h, units).explain_interrupt(
            &self.virtual_unit,
            unit,
            guest_source_id,
            record,
            hardware,
        );
        let statistics = &mut self.host.statistics;
        match explained {
            Ok(fault) => {
                statistics.faults_to_guest = statistics.faults_to_guest.wrapping_add(1);
                self.virtual_unit
                    .record_fault(&fault, &mut port!(self, h, units));
                FaultOutcome::Guest {
                    source_id: guest_source_id,
                    reason: fault.reason,
                    address: fault.address,
                }
            }
            Err(cause) => {
                statistics.faults_to_host = statistics.faults_to_host.wrapping_add(1);
                FaultOutcome::Host(HostFault {
                    record: *record,
                    cause,
                })
            }
        }
    }
}
