//! The loop that gets work done: one job after another, in slices.

use crate::arch::descriptor::{IotlbGranularity, WaitStatus};
use crate::arch::register::{GlobalStatus, InvalidateAddress, RootTableAddress};
use crate::mem::GuestMemory;
use crate::viommu::host::{BindError, GuestInvalidation, Host, HostState, Progress};
use crate::viommu::interrupt::InterruptPass;
use crate::viommu::queue::second_stage_invalidation;
use crate::viommu::registers::{Event, Register};
use crate::viommu::statistics::count;
use crate::viommu::synchronise::{DeviceFilter, EntryFilter, Pass, Stepped};

use super::{SlotState, VirtualUnit};

/// What [`VirtualUnit::poll`] leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Poll {
    /// Nothing is left to do.
    Idle,
    /// More can be done at once: call again.
    Again,
    /// The host waits for hardware: call again when that may have changed.
    Wait,
}

/// What the guest has commanded and the unit has not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::viommu) struct Commands {
    /// The root table address to take over.
    pub(in crate::viommu) root_pointer: Option<RootTableAddress>,
    /// What `TES` is to become.
    pub(in crate::viommu) translation: bool,
    /// What `QIES` is to become.
    pub(in crate::viommu) queue: bool,
    /// The queue is to be disabled first, whatever it is to become.
    pub(in crate::viommu) queue_stop: bool,
    /// Everything is to be looked at again, after a reset.
    pub(in crate::viommu) reconcile: bool,
    /// Some device is to be looked at again.
    pub(in crate::viommu) reconcile_devices: bool,
}

impl Commands {
    pub(in crate::viommu) const NONE: Self = Self {
        root_pointer: None,
        translation: false,
        queue: false,
        queue_stop: false,
        reconcile: false,
        reconcile_devices: false,
    };
}

/// What a job is for, and so what its end does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::viommu) enum Purpose {
    /// The descriptor at the queue's head.
    Descriptor,
    /// The wait descriptor at the queue's head.
    Wait {
        status: Option<WaitStatus>,
        interrupt: bool,
    },
    /// Set Root Table Pointer.
    RootPointer,
    /// Translation Enable, set or cleared.
    Translation(bool),
    /// Set Interrupt Remapping Table Pointer.
    InterruptPointer,
    /// Interrupt Remapping Enable, set or cleared.
    InterruptRemapping(bool),
    /// A device was added or changed, or the unit was reset.
    Reconcile,
    /// Register-based context-cache invalidation.
    ContextCommand,
    /// Register-based IOTLB invalidation.
    IotlbCommand,
}

/// What a job is doing.
#[derive(Clone, Copy, Debug)]
pub(in crate::viommu) enum Stage {
    /// Making bindings equal to the guest's tables.
    Pass(Pass),
    /// Making the host's interrupt entries equal to the guest's.
    Interrupts(InterruptPass),
    /// Handing an invalidation to the host.
    Invalidate(GuestInvalidation),
    /// Waiting until the host has completed all invalidations.
    Flush {
        /// How often it failed so far.
        errors: usize,
    },
}

/// The work in progress; there is at most one.
#[derive(Clone, Copy, Debug)]
pub(in crate::viommu) struct Job {
    pub(in crate::viommu) stage: Stage,
    pub(in crate::viommu) purpose: Purpose,
}

impl<B: HostState, const DEVICES: usize, const BINDINGS: usize> VirtualUnit<B, DEVICES, BINDINGS> {
    /// Does pending work, at most `budget` steps of about one guest table page or one host
    /// operation each, and sends event messages that are due.
    pub fn poll<Ho: Host<Binding = B>>(&mut self, host: &mut Ho, budget: u32) -> Poll {
        let mut left = budget;
        let outcome = loop {
            if !self.has_work() {
                break Poll::Idle;
            }
            let Some(after) = left.checked_sub(1) else {
                break Poll::Again;
            };
            left = after;
            if self.step(host) == Progress::Wait {
                break Poll::Wait;
            }
        };
        self.send_messages(host);
        outcome
    }

    pub(super) fn has_work(&self) -> bool {
        let commands = &self.commands;
        let status = self.registers.status();
        self.job.is_some()
            || commands.reconcile
            || commands.reconcile_devices
            || commands.root_pointer.is_some()
            || commands.translation != status.contains(GlobalStatus::TRANSLATION_ENABLED)
            || commands.queue_stop
            || commands.queue && !status.contains(GlobalStatus::QUEUED_INVALIDATION_ENABLED)
            || self.context_command().is_requested()
            || self.iotlb_command().is_requested()
            || self.has_interrupt_work()
            || self.queue_has_work()
    }

    pub(super) fn send_messages<Ho: Host<Binding = B>>(&mut self, host: &mut Ho) {
        if !self.registers.has_message() {
            return;
        }
        for event in Event::ALL {
            if let Some((address, data)) = self.registers.take_message(event) {
                count(&mut self.statistics.interrupts);
                host.deliver_interrupt(address, data);
            }
        }
    }

    pub(super) fn step<Ho: Host<Binding = B>>(&mut self, host: &mut Ho) -> Progress {
        let Some(mut job) = self.job.take() else {
            self.job = self.next_job(host.memory());
            return Progress::Done;
        };
        let stepped = match &mut job.stage {
            Stage::Pass(pass) => self.step_pass(host, pass),
            Stage::Interrupts(pass) => self.step_interrupts(host, pass),
            Stage::Invalidate(what) => {
                let result = host.invalidate(what);
                if !matches!(result, Ok(Progress::Wait | Progress::Again)) {
                    count(&mut self.statistics.invalidations);
                }
                self.invalidated(result)
            }
            Stage::Flush { errors } => match host.flush() {
                // What was not confirmed is blocked; the rest is still to be. Each failure names
                // another device, and a host that says more is not waited for.
                Err(error) if *errors <= DEVICES => {
                    *errors = errors.saturating_add(1);
                    self.invalidation_failed(&error);
                    Stepped::More
                }
                result => self.invalidated(result),
            },
        };
        match stepped {
            Stepped::Wait => {
                self.job = Some(job);
                return Progress::Wait;
            }
            Stepped::More => self.job = Some(job),
            Stepped::Done => {
                job.stage = match (job.purpose, &job.stage) {
                    // Setting the root pointer drops all caches by itself (`ESRTPS`).
                    (Purpose::RootPointer, Stage::Pass(_)) => {
                        Stage::Invalidate(GuestInvalidation::All)
                    }
                    (Purpose::RootPointer | Purpose::IotlbCommand, Stage::Invalidate(_)) => {
                        Stage::Flush { errors: 0 }
                    }
                    // What a descriptor changes is completed by the guest's wait.
                    (purpose, Stage::Interrupts(_)) if purpose != Purpose::Descriptor => {
                        Stage::Flush { errors: 0 }
                    }
                    _ => {
                        self.finish(host, job.purpose);
                        return Progress::Done;
                    }
                };
                self.job = Some(job);
            }
        }
        Progress::Done
    }

    pub(super) fn invalidated(&mut self, result: Result<Progress, BindError>) -> Stepped {
        match result {
            Ok(Progress::Wait) => Stepped::Wait,
            Ok(Progress::Again) => Stepped::More,
            Ok(Progress::Done) => Stepped::Done,
            Err(error) => {
                self.invalidation_failed(&error);
                Stepped::Done
            }
        }
    }

    pub(super) fn invalidation_failed(&mut self, error: &BindError) {
        count(&mut self.statistics.invalidation_failures);
        log::warn!("guest invalidation: {error}");
    }

    /// The next job, registers before the queue.
    pub(super) fn next_job(&mut self, memory: &impl GuestMemory) -> Option<Job> {
        if core::mem::take(&mut self.commands.reconcile) {
            return Some(self.pass_job(DeviceFilter::All, Purpose::Reconcile));
        }
        if self.commands.reconcile_devices {
            return self.next_device_job();
        }
        if let Some(root) = self.commands.root_pointer.take() {
            self.root = root;
            self.forget_contexts();
            if self.translating {
                return Some(self.pass_job(DeviceFilter::All, Purpose::RootPointer));
            }
            self.finish_root_pointer();
            return None;
        }
        let status = self.registers.status();
        let translation = self.commands.translation;
        if translation != status.contains(GlobalStatus::TRANSLATION_ENABLED) {
            self.translating = translation;
            self.forget_contexts();
            return Some(self.pass_job(DeviceFilter::All, Purpose::Translation(translation)));
        }
        if core::mem::take(&mut self.commands.queue_stop) {
            self.registers.set(Register::QueueHead, 0);
            self.registers
                .set_status(GlobalStatus::QUEUED_INVALIDATION_ENABLED, false);
            return None;
        }
        if self.commands.queue && !status.contains(GlobalStatus::QUEUED_INVALIDATION_ENABLED) {
            self.registers.set(Register::QueueHead, 0);
            self.registers
                .set_status(GlobalStatus::QUEUED_INVALIDATION_ENABLED, true);
            return None;
        }
        if self.context_command().is_requested() {
            return self.context_command_job();
        }
        if self.iotlb_command().is_requested() {
            return self.iotlb_command_job();
        }
        if self.has_interrupt_work() {
            return self.next_interrupt_job();
        }
        if self.queue_has_work() {
            return self.fetch(memory);
        }
        None
    }

    pub(super) fn pass_job(&mut self, devices: DeviceFilter, purpose: Purpose) -> Job {
        Job {
            stage: Stage::Pass(self.new_pass(devices, EntryFilter::Everything)),
            purpose,
        }
    }

    pub(super) fn next_device_job(&mut self) -> Option<Job> {
        let mut waiting = self
            .devices
            .iter_mut()
            .enumerate()
            .filter(|(_, slot)| slot.needs_reconcile && slot.state == SlotState::Active);
        let Some((index, slot)) = waiting.next() else {
            self.commands.reconcile_devices = false;
            return None;
        };
        slot.needs_reconcile = false;
        slot.forget_context();
        Some(self.pass_job(DeviceFilter::Handle(index), Purpose::Reconcile))
    }

    pub(super) fn context_command_job(&mut self) -> Option<Job> {
        let command = self.context_command();
        // A legacy entry is dropped by device or by domain-id; more may always be dropped.
        let devices = match command.requested_granularity() {
            1 | 2 if self.has_register_invalidation() => DeviceFilter::All,
            3 if self.has_register_invalidation() => DeviceFilter::Source {
                source_id: command.source_id(),
                function_mask: command.function_mask(),
            },
            _ => {
                self.complete_context_command(0);
                return None;
            }
        };
        Some(Job {
            stage: self.begin_context_invalidation(devices),
            purpose: Purpose::ContextCommand,
        })
    }

    pub(super) fn iotlb_command_job(&mut self) -> Option<Job> {
        let command = self.iotlb_command();
        let at = InvalidateAddress::from_bits(self.registers.get(Register::InvalidateAddress));
        let capability = self.features.capability;
        let domain_id = capability.truncate_domain_id(command.domain_id());
        let granularity = match command.requested_granularity() {
            _ if !self.has_register_invalidation() => None,
            1 => Some(IotlbGranularity::Global),
            2 => Some(IotlbGranularity::Domain(domain_id)),
            3 if capability.has_page_selective_invalidation()
                && at.address_mask() <= capability.maximum_address_mask() =>
            {
                Some(IotlbGranularity::Page {
                    domain_id,
                    address: at.address(),
                    address_mask: at.address_mask(),
                    leaf_hint: at.leaf_hint(),
                })
            }
            _ => None,
        };
        match granularity {
            Some(granularity) => Some(Job {
                stage: self.begin_invalidation(second_stage_invalidation(granularity)),
                purpose: Purpose::IotlbCommand,
            }),
            None => {
                self.complete_iotlb_command(0);
                None
            }
        }
    }

    /// Everything that came from the tables below the root is to be read again.
    pub(in crate::viommu) fn forget_contexts(&mut self) {
        self.translations.clear();
        for slot in &mut self.devices {
            slot.forget_context();
        }
    }

    pub(super) fn finish_root_pointer(&mut self) {
        // A further command keeps the status clear until it is done, too.
        if self.commands.root_pointer.is_none() {
            self.registers
                .set_status(GlobalStatus::ROOT_TABLE_POINTER_SET, true);
        }
    }

    /// Shows the guest that a job is done.
    pub(super) fn finish<Ho: Host<Binding = B>>(&mut self, host: &Ho, purpose: Purpose) {
        match purpose {
            Purpose::Descriptor => self.pass_descriptor(),
            Purpose::Wait { status, interrupt } => {
                self.complete_wait(host, status, interrupt);
                self.pass_descriptor();
            }
            Purpose::RootPointer => self.finish_root_pointer(),
            Purpose::Translation(on) => {
                self.registers
                    .set_status(GlobalStatus::TRANSLATION_ENABLED, on);
                self.restart_fault_records_if_off();
            }
            Purpose::InterruptPointer => self.finish_interrupt_pointer(),
            Purpose::InterruptRemapping(on) => self.finish_interrupt_remapping(on),
            Purpose::Reconcile => {}
            Purpose::ContextCommand => {
                let granularity = self.context_command().requested_granularity();
                self.complete_context_command(granularity);
            }
            Purpose::IotlbCommand => {
                let granularity = self.iotlb_command().requested_granularity();
                self.complete_iotlb_command(granularity);
            }
        }
    }

    // Faults and reset.

    /// The internal fault index starts over while all remapping is off (§7.2.1).
    pub(in crate::viommu) fn restart_fault_records_if_off(&mut self) {
        let remapping =
            GlobalStatus::TRANSLATION_ENABLED | GlobalStatus::INTERRUPT_REMAPPING_ENABLED;
        if !self.registers.status().intersects(remapping) {
            self.faults.restart();
        }
    }
}
