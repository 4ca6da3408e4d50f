//! The guest's invalidation queue (§6.5.2): one descriptor at a time, in order.
//!
//! The head passes a descriptor only when all that it asks for is done. A descriptor is read once,
//! decoded from the copy, and the copy is used.

#[cfg(test)]
mod tests;

use crate::arch::address::{Gpa, Iova};
use crate::arch::descriptor::{
    ContextGranularity, Descriptor, DeviceTlbRange, IotlbGranularity, PasidCacheGranularity,
    PasidIotlbGranularity, RawDescriptor, WaitStatus, page_block,
};
use crate::arch::id::SourceId;
use crate::arch::register::{
    DescriptorWidth, FaultStatus, GlobalStatus, InvalidationQueueAddress, QueueErrorInfo,
    QueueErrorRecord, TranslationTableMode, queue_offset,
};
use crate::mem::GuestMemory;

use super::host::{DeviceHandle, DeviceRequests, GuestInvalidation, Host, HostState, PageRange};
use super::interrupt::InterruptPass;
use super::registers::Register;
use super::statistics::count;
use super::synchronise::{DeviceFilter, EntryFilter};
use super::unit::{Job, Purpose, Stage, VirtualUnit};

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    fn queue_address(&self) -> InvalidationQueueAddress {
        InvalidationQueueAddress::from_bits(self.registers.get(Register::QueueAddress))
    }

    /// Whether there is a descriptor to fetch, or a bad tail to report.
    pub(super) fn queue_has_work(&self) -> bool {
        self.registers
            .status()
            .contains(GlobalStatus::QUEUED_INVALIDATION_ENABLED)
            && !self
                .registers
                .fault_status()
                .contains(FaultStatus::INVALIDATION_QUEUE_ERROR)
            && self.registers.get(Register::QueueHead) != self.registers.get(Register::QueueTail)
    }

    /// Fetches the descriptor at the head: the job that it asks for, or `None` if there is nothing
    /// left to do for it.
    pub(super) fn fetch(&mut self, memory: &impl GuestMemory) -> Option<Job> {
        let address = self.queue_address();
        let width = address.descriptor_width();
        let tail = queue_offset(self.registers.get(Register::QueueTail));
        if tail >= address.size_bytes() {
            self.queue_error(QueueErrorInfo::InvalidTail);
            return None;
        }
        if !tail.is_multiple_of(width.len_bytes()) {
            self.queue_error(QueueErrorInfo::MisalignedTail);
            return None;
        }
        let head = queue_offset(self.registers.get(Register::QueueHead));
        let base: Gpa = address.base();
        let raw = base
            .checked_add(u64::from(head))
            .and_then(|at| match width {
                DescriptorWidth::Bits128 => {
                    let [q0, q1] = memory.read_quadwords(at).ok()?;
                    Some(RawDescriptor::from_words([q0, q1, 0, 0]))
                }
                DescriptorWidth::Bits256 => {
                    Some(RawDescriptor::from_words(memory.read_quadwords(at).ok()?))
                }
            });
        let Some(raw) = raw else {
            self.queue_error(QueueErrorInfo::FetchFailed);
            return None;
        };
        let decoded = raw.decode(width, self.root.mode(), &self.features);
        match decoded {
            // Interrupt remapping is not shown, and nothing else has such a cache.
            Ok(Descriptor::InterruptEntryCache { .. })
                if !self.features.extended.has_interrupt_remapping() =>
            {
                self.queue_error(QueueErrorInfo::InvalidType);
                None
            }
            Ok(descriptor) => self.begin(descriptor),
            Err(error) => {
                let [q0, q1, q2, q3] = raw.words();
                log::warn!("guest descriptor {q0:#x} {q1:#x} {q2:#x} {q3:#x}: {error}");
                self.queue_error(error.queue_error());
                None
            }
        }
    }

    /// Stops the queue at its head (§6.5.2.11).
    fn queue_error(&mut self, error: QueueErrorInfo) {
        count(&mut self.statistics.queue_errors);
        log::warn!(
            "guest invalidation queue: stopped at {:#x} of {:#x}: error {}",
            self.registers.get(Register::QueueHead),
            self.registers.get(Register::QueueTail),
            error.code()
        );
        let record = QueueErrorRecord::new(Some(error), None, None);
        self.registers
            .set(Register::QueueErrorRecord, record.bits());
        self.registers
            .set_fault_causes(FaultStatus::INVALIDATION_QUEUE_ERROR);
    }

    /// The job that carries a descriptor out; one without work is done at once.
    fn begin(&mut self, descriptor: Descriptor) -> Option<Job> {
        let stage = match descriptor {
            Descriptor::ContextCache { granularity } => {
                Some(self.begin_context_invalidation(match granularity {
                    // Scalable-mode entries carry no domain-id, and more may always be
                    // invalidated than asked for (§6.5.2.1).
                    ContextGranularity::Global | ContextGranularity::Domain(_) => DeviceFilter::All,
                    ContextGranularity::Device {
                        source_id,
                        function_mask,
                        ..
                    } => DeviceFilter::Source {
                        source_id,
                        function_mask,
                    },
                }))
            }
            Descriptor::PasidCache { granularity } => {
                // R13: only scalable mode has PASID entries, and only then do they matter.
                let matters =
                    self.translating && matches!(self.root.mode(), TranslationTableMode::Scalable);
                let entries = match granularity {
                    PasidCacheGranularity::Global => EntryFilter::Everything,
                    PasidCacheGranularity::Domain(domain_id) => EntryFilter::Domain(domain_id),
                    PasidCacheGranularity::Pasid { domain_id, pasid } => {
                        EntryFilter::Pasid { domain_id, pasid }
                    }
                };
                self.translations.drop_entries(entries);
                matters.then(|| Stage::Pass(self.new_pass(DeviceFilter::All, entries)))
            }
            Descriptor::Iotlb { granularity, .. } => {
                Some(self.begin_invalidation(second_stage_invalidation(granularity)))
            }
            Descriptor::PasidIotlb {
                domain_id,
                pasid,
                granularity,
            } => Some(self.begin_invalidation(match granularity {
                PasidIotlbGranularity::All => GuestInvalidation::Pasid { domain_id, pasid },
                PasidIotlbGranularity::Page {
                    address,
                    address_mask,
                    leaf_hint,
                } => GuestInvalidation::PasidPages {
                    domain_id,
                    pasid,
                    pages: covering_range(address, address_mask, leaf_hint),
                },
            })),
            Descriptor::Wait {
                status, interrupt, ..
            } => {
                return Some(Job {
                    stage: Stage::Flush { errors: 0 },
                    purpose: Purpose::Wait { status, interrupt },
                });
            }
            Descriptor::DeviceTlb {
                source_id, range, ..
            } => self.begin_device_tlb_invalidation(source_id, DeviceRequests::WithoutPasid, range),
            Descriptor::PasidDeviceTlb {
                source_id,
                pasid,
                all_pasids,
                range,
                ..
            } => {
                let requests = if all_pasids {
                    DeviceRequests::EveryPasid
                } else {
                    DeviceRequests::Pasid(pasid)
                };
                self.begin_device_tlb_invalidation(source_id, requests, range)
            }
            // While remapping is off the host has no entries.
            Descriptor::InterruptEntryCache { granularity } => self
                .interrupts
                .is_followed
                .then(|| Stage::Interrupts(InterruptPass::of(granularity))),
            Descriptor::PageGroupResponse { .. } => None,
        };
        match stage {
            Some(stage) => Some(Job {
                stage,
                purpose: Purpose::Descriptor,
            }),
            None => {
                self.pass_descriptor();
                None
            }
        }
    }

    /// A guest may name devices that are not its own (§4.3): there is nothing to drop for them.
    fn begin_device_tlb_invalidation(
        &mut self,
        source_id: SourceId,
        requests: DeviceRequests,
        range: DeviceTlbRange,
    ) -> Option<Stage> {
        let named = DeviceFilter::Source {
            source_id,
            function_mask: 0,
        };
        let Some(index) = (0..DEVICES).find(|index| self.is_selected(named, *index)) else {
            count(&mut self.statistics.foreign_device_tlbs);
            log::warn!("guest device-TLB invalidation: {source_id} is not the machine's");
            return None;
        };
        Some(Stage::Invalidate(GuestInvalidation::DeviceTlb {
            device: DeviceHandle::new(index as u16),
            requests,
            pages: PageRange {
                address: Iova::new(range.start()),
                order: range.order(),
                leaf_only: false,
            },
        }))
    }

    /// Drops what is kept for emulated devices; the host is to do the rest.
    pub(super) fn begin_invalidation(&mut self, what: GuestInvalidation) -> Stage {
        self.translations.invalidate(&what);
        Stage::Invalidate(what)
    }

    /// Drops the cached context entries of the devices and looks at all their bindings again.
    pub(super) fn begin_context_invalidation(&mut self, devices: DeviceFilter) -> Stage {
        self.translations
            .drop_devices(|source_id| devices.names(source_id));
        for index in 0..DEVICES {
            let is_selected = self.is_selected(devices, index);
            if let Some(slot) = self.devices.get_mut(index).filter(|_| is_selected) {
                slot.forget_context();
            }
        }
        Stage::Pass(self.new_pass(devices, EntryFilter::Everything))
    }

    /// Moves the head past the descriptor that is done.
    pub(super) fn pass_descriptor(&mut self) {
        count(&mut self.statistics.descriptors);
        let address = self.queue_address();
        let head = queue_offset(self.registers.get(Register::QueueHead));
        let next = head.saturating_add(address.descriptor_width().len_bytes());
        let next = if next < address.size_bytes() { next } else { 0 };
        self.registers.set(Register::QueueHead, u64::from(next));
    }

    /// Tells the guest that a wait is complete: first the status, then the event (§6.5.2.9).
    pub(super) fn complete_wait<Ho: Host<Binding = B>>(
        &mut self,
        host: &Ho,
        status: Option<WaitStatus>,
        interrupt: bool,
    ) {
        if let Some(WaitStatus { address, data }) = status {
            // Aligned to 4 bytes: the bits below are reserved in the descriptor.
            let write = host
                .memory()
                .write(Gpa::new(address & !3), &data.to_le_bytes());
            if write.is_err() {
                count(&mut self.statistics.wait_write_failures);
                log::warn!("guest wait status at {address:#x}: not the guest's memory");
            }
        }
        if interrupt {
            self.registers.complete_wait_with_interrupt();
        }
        count(&mut self.statistics.waits);
    }
}

/// The invalidation that an IOTLB descriptor or register asks for.
pub(super) fn second_stage_invalidation(granularity: IotlbGranularity) -> GuestInvalidation {
    match granularity {
        IotlbGranularity::Global => GuestInvalidation::All,
        IotlbGranularity::Domain(domain_id) => GuestInvalidation::Domain(domain_id),
        IotlbGranularity::Page {
            domain_id,
            address,
            address_mask,
            leaf_hint,
        } => GuestInvalidation::DomainPages {
            domain_id,
            // Address bits that the mask covers do not count (§6.5.2.3).
            pages: PageRange {
                address: Iova::new(page_block(address, address_mask).0),
                order: address_mask,
                leaf_only: leaf_hint,
            },
        },
    }
}

/// The smallest aligned range that covers 2^`address_mask` pages from `address` on, aligned or not.
fn covering_range(address: u64, address_mask: u8, leaf_only: bool) -> PageRange {
    let len_bytes = 4096u64.checked_shl(u32::from(address_mask)).unwrap_or(0);
    let last = match len_bytes.checked_sub(1) {
        Some(within) if address_mask < 52 => address.checked_add(within),
        _ => None,
    };
    let order = match last {
        // The bits in which the first and the last address differ lie within the range.
        Some(last) => {
            let bits = 64 - (address ^ last).leading_zeros();
            (bits.saturating_sub(12) as u8).max(address_mask)
        }
        None => 52,
    };
    PageRange {
        address: Iova::new(page_block(address, order).0),
        order,
        leaf_only,
    }
}
