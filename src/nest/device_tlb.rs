//! The TLBs of devices: what they have to forget together with the units' caches (§4, R30, G22).
//!
//! A device with a TLB keeps translations of its own, by input address. Whatever a unit is told to
//! forget of a binding, the device behind it is told, too, in the same batch or a later one, before the
//! guest's wait completes; so it is with what the guest's device-TLB descriptors name. Where an
//! invalidation does not tell which addresses of a device it is about, because it names second-stage
//! addresses or a whole domain, the device is told to forget everything.

use heapless::Vec;

use crate::arch::descriptor::{Descriptor, DeviceTlbRange};
use crate::arch::id::{DomainId, Pasid, SourceId};
use crate::mem::{Hypervisor, Registers};
use crate::nest::bind::HostPort;
use crate::nest::coalesce::{Keyed, Span, Spans, SpansFull};
use crate::nest::device::{AssignedDevice, Quarantine};
use crate::nest::invalidate::BATCH;
use crate::unit::{DeviceTlbScope, QueueError, Unit};
use crate::viommu::host::{BindError, DeviceHandle, DeviceRequests, PageRange, Progress};

/// Ranges collected before a device has to forget everything instead.
const COLLECTED: usize = 32;

/// What is behind it starts only once all before it is done.
const FENCE: Descriptor = Descriptor::Wait {
    status: None,
    interrupt: false,
    fence: true,
    page_request_drain: false,
};

/// Ranges that devices are to forget.
pub(super) type Collected = Spans<Tag, COLLECTED>;

/// What a collected range is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tag {
    device: DeviceHandle,
    requests: DeviceRequests,
}

impl Tag {
    fn scope(&self, block: &PageRange) -> DeviceTlbScope {
        let range = DeviceTlbRange::block(block.address.as_u64(), block.order);
        match self.requests {
            DeviceRequests::WithoutPasid => DeviceTlbScope::WithoutPasid(range),
            DeviceRequests::Pasid(pasid) => DeviceTlbScope::Pasid(pasid, range),
            DeviceRequests::EveryPasid => DeviceTlbScope::EveryPasid(range),
        }
    }
}

/// The descriptors that make a device forget all translations of one PASID entry: of PASID 0 those of
/// requests without PASID, too.
pub(super) fn of_entry<R: Registers>(
    unit: &Unit<R>,
    device: &AssignedDevice,
    pasid: Pasid,
) -> [Option<Descriptor>; 2] {
    let of = |scope| unit.device_tlb_invalidation(&device.tables, scope);
    let with_pasid = DeviceTlbScope::Pasid(pasid, DeviceTlbRange::ALL);
    if pasid != Pasid::ZERO {
        return [of(with_pasid), None];
    }
    let takes_pasids = device.tables.pasid_limit() > 1;
    [
        of(DeviceTlbScope::WithoutPasid(DeviceTlbRange::ALL)),
        takes_pasids.then(|| of(with_pasid)).flatten(),
    ]
}

impl<H: Hypervisor, R: Registers, const DEVICES: usize, const DOMAINS: usize, const SHADOWS: usize>
    HostPort<'_, H, R, DEVICES, DOMAINS, SHADOWS>
{
    /// Collects what the guest's device-TLB descriptors name. A device that uses no TLB has nothing
    /// to forget.
    pub(super) fn collect_device_tlb(
        &mut self,
        device: DeviceHandle,
        requests: DeviceRequests,
        pages: &PageRange,
    ) {
        let Ok(assigned) = self.side.devices.get(device) else {
            return;
        };
        let takes_pasids = assigned.tables.pasid_limit() > 1;
        if assigned.is_tlb_in_use() && (takes_pasids || requests == DeviceRequests::WithoutPasid) {
            self.collect_for_device(Tag { device, requests }, Span::named_by(pages));
        }
    }

    /// Collects what the devices behind a unit are to forget with an invalidation of a domain that
    /// is on its way to the unit: of a PASID and the pages that a PASID uses, if that is known.
    pub(super) fn owe_device_tlbs(
        &mut self,
        unit: u8,
        domain_id: DomainId,
        pasid: Option<Pasid>,
        span: Span,
    ) {
        for index in 0..DEVICES {
            let device = DeviceHandle::new(index as u16);
            let Ok(assigned) = self.side.devices.get(device) else {
                continue;
            };
            if assigned.config.unit != unit || !assigned.is_tlb_in_use() {
                continue;
            }
            let takes_pasids = assigned.tables.pasid_limit() > 1;
            if pasid.is_none() && takes_pasids {
                // Under which PASIDs it is in the domain is not known here.
                if let Ok(assigned) = self.side.devices.get_mut(device) {
                    assigned.owes_device_tlb = true;
                }
                continue;
            }
            let named = pasid.unwrap_or(Pasid::ZERO);
            let uses = self.units.get(usize::from(unit)).is_some_and(|physical| {
                physical
                    .read_entry(self.h, &assigned.tables, named)
                    .is_some_and(|entry| entry.domain_id() == domain_id)
            });
            if !uses {
                continue;
            }
            if named == Pasid::ZERO {
                let requests = DeviceRequests::WithoutPasid;
                self.collect_for_device(Tag { device, requests }, span);
            }
            if takes_pasids {
                let requests = DeviceRequests::Pasid(named);
                self.collect_for_device(Tag { device, requests }, span);
            }
        }
    }

    fn collect_for_device(&mut self, tag: Tag, span: Span) {
        let Ok(assigned) = self.side.devices.get_mut(tag.device) else {
            return;
        };
        if assigned.owes_device_tlb {
            return;
        }
        let statistics = &mut self.side.statistics;
        match self.side.forwarding.device_tlb.add(Keyed {
            key: tag,
            span,
            leaf_only: false,
        }) {
            Ok(false) => {}
            Ok(true) => statistics.ranges_merged = statistics.ranges_merged.wrapping_add(1),
            Err(SpansFull) => assigned.owes_device_tlb = true,
        }
    }

    /// Puts what devices behind a unit are to forget behind what the unit itself is to forget, as
    /// far as the batch has room. The rest stays for the next one.
    pub(super) fn push_device_tlbs(&mut self, unit: u8, batch: &mut Vec<Descriptor, BATCH>) {
        let Some(physical) = self.units.get(usize::from(unit)) else {
            return;
        };
        // A PASID-based invalidation of the unit may otherwise be overtaken (§6.5.2.12).
        let mut fence = batch
            .iter()
            .any(|descriptor| matches!(descriptor, Descriptor::PasidIotlb { .. }))
            .then_some(FENCE);
        let taken = batch.len().saturating_add(usize::from(fence.is_some()));
        let mut left = BATCH.saturating_sub(taken);
        let side = &mut *self.side;
        let mut push = |descriptor: Descriptor| {
            if let Some(fence) = fence.take() {
                _ = batch.push(fence);
            }
            _ = batch.push(descriptor);
        };
        for index in 0..DEVICES {
            let device = DeviceHandle::new(index as u16);
            let Ok(assigned) = side.devices.get_mut(device) else {
                continue;
            };
            if assigned.config.unit != unit || !assigned.owes_device_tlb {
                continue;
            }
            let Some(remaining) = left.checked_sub(1) else {
                return;
            };
            left = remaining;
            assigned.owes_device_tlb = false;
            let everything = DeviceTlbScope::Everything;
            if let Some(descriptor) = physical.device_tlb_invalidation(&assigned.tables, everything)
            {
                push(descriptor);
            }
            side.forwarding
                .device_tlb
                .retain(|entry| entry.key.device != device);
        }
        let devices = &side.devices;
        side.forwarding.device_tlb.retain(|entry| {
            let Ok(assigned) = devices.get(entry.key.device) else {
                return false;
            };
            if assigned.config.unit != unit {
                return true;
            }
            // Two blocks at most.
            let Some(remaining) = left.checked_sub(2) else {
                return true;
            };
            left = remaining;
            let (first, second) = entry.span.blocks();
            for block in [Some(first), second].into_iter().flatten() {
                let scope = entry.key.scope(&block);
                if let Some(descriptor) = physical.device_tlb_invalidation(&assigned.tables, scope)
                {
                    push(descriptor);
                }
            }
            false
        });
    }

    /// Has every device behind a unit forget everything with the next batch.
    pub(super) fn owe_all_device_tlbs(&mut self, unit: u8) {
        for index in 0..DEVICES {
            if let Ok(assigned) = self.side.devices.get_mut(DeviceHandle::new(index as u16))
                && assigned.config.unit == unit
            {
                assigned.owes_device_tlb = assigned.is_tlb_in_use();
            }
        }
    }

    /// Nothing more is sent to a device that is cut off, until that is tried again in so many words.
    pub(super) fn drop_device_tlb(&mut self, device: DeviceHandle) {
        if let Ok(assigned) = self.side.devices.get_mut(device) {
            assigned.owes_device_tlb = false;
        }
        self.side
            .forwarding
            .device_tlb
            .retain(|entry| entry.key.device != device);
    }

    /// The machine's device behind a unit that did not answer a device-TLB invalidation, if that is
    /// what an error says.
    pub(super) fn silent_device(&self, unit: u8, error: &QueueError) -> Option<DeviceHandle> {
        let &QueueError::DeviceTimedOut {
            source_id: Some(source_id),
        } = error
        else {
            return None;
        };
        self.device_of(unit, source_id)
    }

    fn device_of(&self, unit: u8, source_id: SourceId) -> Option<DeviceHandle> {
        let mut devices = self.side.devices.iter();
        devices
            .find(|(_, device)| device.config.unit == unit && device.config.source_id == source_id)
            .map(|(handle, _)| handle)
    }

    /// Has devices that are cut off confirm that their own TLBs are empty: until then they may hold
    /// what leads to memory that was taken from the machine.
    ///
    /// # Errors
    ///
    /// [`BindError::Quarantined`] if one does not answer.
    pub(super) fn confirm_device_tlbs(&mut self) -> Result<Progress, BindError> {
        for index in 0..DEVICES {
            let device = DeviceHandle::new(index as u16);
            let is_owed = self.side.devices.get(device).is_ok_and(|assigned| {
                assigned.tables.device_tlb().is_some()
                    && !matches!(
                        assigned.quarantine,
                        Quarantine::None | Quarantine::Confirmed
                    )
            });
            if is_owed && self.confirm_quarantine(device)? != Progress::Done {
                return Ok(Progress::Wait);
            }
        }
        Ok(Progress::Done)
    }
}
