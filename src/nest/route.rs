//! Hardware faults on their way to the guest or to the hypervisor.

use crate::arch::capability::Capability;
use crate::arch::fault::{FaultMode, FaultReason};
use crate::arch::register::{FaultInfo, FaultRecord, TranslationTableMode};
use crate::mem::{Hypervisor, Registers};
use crate::nest::fault::{
    FaultOutcome, HostFault, HostFaultCause, agrees, outside_machine, sent_addresses,
};
use crate::nest::machine::{VirtualMachine, port};
use crate::nest::memory::MachineMemory;
use crate::unit::fault::{access_of, pasid_of};
use crate::unit::{StormVerdict, Unit};
use crate::viommu::host::DeviceHandle;
use crate::viommu::{DmaRequest, GuestFault, Walked};

impl<const DEVICES: usize, const BINDINGS: usize, const DOMAINS: usize, const SHADOWS: usize>
    VirtualMachine<DEVICES, BINDINGS, DOMAINS, SHADOWS>
{
    /// Routes a fault that a physical unit recorded: explains it by the guest's tables and records
    /// it in the guest's unit, or gives it back as the hypervisor's.
    pub fn handle_fault<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        unit: u8,
        record: &FaultRecord,
    ) -> FaultOutcome {
        let device = self.host.devices.iter().find(|(_, device)| {
            device.config.unit == unit && device.tables.requesters().contains(record.source_id())
        });
        let Some((handle, device)) = device else {
            return FaultOutcome::NotOfThisMachine;
        };
        let guest_source_id = device.config.guest_source_id;
        if self.is_storm(h, units, handle, record) {
            let ignored = &mut self.host.statistics.faults_ignored;
            *ignored = ignored.wrapping_add(1);
            return FaultOutcome::Ignored;
        }
        if let Some(reason) = FaultReason::from_code(record.reason_code())
            && reason.mode() == FaultMode::Interrupt
        {
            return self.handle_interrupt_fault(h, units, unit, guest_source_id, record, reason);
        }
        let access = access_of(record);
        let features = units.get(usize::from(unit)).map(Unit::features);
        let has_pasid = features.is_some_and(|features| features.extended.has_pasid());
        let capability = features.map_or(Capability::from_bits(0), |features| features.capability);
        let pasid = pasid_of(record, has_pasid);
        let host = |cause| {
            FaultOutcome::Host(HostFault {
                record: FaultRecord::new(FaultInfo {
                    pasid,
                    ..record.info()
                }),
                cause,
            })
        };
        let request = DmaRequest {
            source_id: guest_source_id,
            pasid,
            address: record.address(),
            access,
            execute: record.is_execute(),
        };
        let outcome = match self.explain(h, request, record.reason_code(), capability) {
            Ok(fault) => {
                self.virtual_unit
                    .record_fault(&fault, &mut port!(self, h, units));
                FaultOutcome::Guest {
                    source_id: guest_source_id,
                    reason: fault.reason,
                    address: record.address(),
                }
            }
            Err(cause) => host(cause),
        };
        let statistics = &mut self.host.statistics;
        let counter = match outcome {
            FaultOutcome::Guest { .. } => &mut statistics.faults_to_guest,
            _ => &mut statistics.faults_to_host,
        };
        *counter = counter.wrapping_add(1);
        match &outcome {
            FaultOutcome::Host(fault) => log::warn!("machine {}: {fault}", self.host.number),
            _ => log::debug!("machine {}: {record}; {outcome}", self.host.number),
        }
        outcome
    }

    /// The fault that a guest sees for a request that hardware, with this capability register,
    /// blocked for a reason. The request's address is the recorded one.
    fn explain<H: Hypervisor>(
        &mut self,
        h: &H,
        mut request: DmaRequest,
        reason_code: u8,
        capability: Capability,
    ) -> Result<GuestFault, HostFaultCause> {
        if !self.virtual_unit.is_translating() {
            return Err(HostFaultCause::TranslationOff);
        }
        let hardware = FaultReason::from_code(reason_code).ok_or(HostFaultCause::UnknownReason)?;
        let memory = MachineMemory::new(h, &self.memory);
        let mut walked = self.virtual_unit.walk(&memory, &request);
        let reason_of = |walked: &Walked| walked.result.err().map(|fault| fault.reason);
        if !agrees(hardware, reason_of(&walked)) {
            // Hardware may have seen more of the address than it recorded.
            for address in sent_addresses(request.address, capability) {
                let sent = DmaRequest { address, ..request };
                let found = self.virtual_unit.walk(&memory, &sent);
                if agrees(hardware, reason_of(&found)) {
                    (walked, request) = (found, sent);
                    break;
                }
            }
        }
        let translation = match walked.result {
            Err(fault) => return Ok(fault),
            Ok(translation) => translation,
        };
        let fault = |reason| Ok(request.fault(reason, walked.fault_processing_disabled));
        match hardware {
            // The guest cannot see the second stage that denied the update.
            FaultReason::FirstStageUpdateDenied => {
                return fault(FaultReason::FirstStageUpdateFailed);
            }
            FaultReason::FirstStageUpdateUnsnooped => return fault(hardware),
            _ => {}
        }
        let legacy = self.virtual_unit.table_mode() == TranslationTableMode::Legacy;
        match self.memory.translate(h, translation.address) {
            None => fault(outside_machine(request.access, legacy)),
            Some(mapping) if mapping.rights.contains(request.access.rights) => {
                // Allowed by now: the fault raced with a change.
                self.host.statistics.faults_raced =
                    self.host.statistics.faults_raced.wrapping_add(1);
                fault(outside_machine(request.access, legacy))
            }
            Some(_) => Err(HostFaultCause::MachineMemory {
                address: translation.address,
            }),
        }
    }

    /// Counts a fault of a device; whether there are too many to look at it. If so, hardware is told
    /// to record no more of them (`FPD`, §7.1.1): the device reaches what it reached before, and
    /// nobody has to look.
    fn is_storm<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        handle: DeviceHandle,
        record: &FaultRecord,
    ) -> bool {
        let limit = self.host.storm_limit;
        let Ok(device) = self.host.devices.get_mut(handle) else {
            return false;
        };
        match device.storm.rate.count(&limit, h.now_nanoseconds()) {
            StormVerdict::Handle => return false,
            StormVerdict::Silence => log::error!(
                "machine {}: {} faults without end; last {record}",
                self.host.number,
                record.source_id()
            ),
            StormVerdict::Ignore => {}
        }
        let unit = units.get(usize::from(device.config.unit));
        if let (false, Some(unit)) = (device.storm.is_silenced, unit) {
            match unit.set_fault_processing(h, &device.tables, false) {
                // Whether hardware has seen it shows in whether faults go on.
                Ok(_) => {
                    device.storm.is_silenced = true;
                    self.host.silenced_devices = self.host.silenced_devices.saturating_add(1);
                    self.host.statistics.storms = self.host.statistics.storms.wrapping_add(1);
                }
                Err(error) => log::warn!("{}: {error}", record.source_id()),
            }
        }
        true
    }

    /// Has hardware record the faults of devices again whose time is over.
    pub(super) fn end_silences<H: Hypervisor, R: Registers>(&mut self, h: &H, units: &[Unit<R>]) {
        if self.host.silenced_devices == 0 {
            return;
        }
        let (limit, now) = (self.host.storm_limit, h.now_nanoseconds());
        let mut left = 0usize;
        for device in self.host.devices.iter_mut() {
            let storm = &mut device.storm;
            if !storm.is_silenced {
                continue;
            }
            let is_heard = storm.rate.is_over(&limit, now)
                && units
                    .get(usize::from(device.config.unit))
                    .is_some_and(|unit| unit.set_fault_processing(h, &device.tables, true).is_ok());
            if is_heard {
                storm.is_silenced = false;
                log::info!(
                    "machine {}: faults of {} count again",
                    self.host.number,
                    device.config.source_id
                );
            } else {
                left = left.saturating_add(1);
            }
        }
        self.host.silenced_devices = left;
    }
}
