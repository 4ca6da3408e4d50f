//! The concrete types that `instances.toml` gives for generic parameters.
//!
//! They implement the library's seams with values that the optimizer cannot know: every result
//! passes through [`black_box`], so no branch of the library is folded away.

use core::hint::black_box;

use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::arch::dmar::PciTopology;
use vtd_nest::arch::id::{Pasid, SourceId};
use vtd_nest::arch::interrupt::{Interrupt, InterruptIndex};
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::{
    FrameError, FrameRun, Frames, GuestMemory, GuestMemoryError, HostMemory, Owner, Platform,
    Registers,
};
use vtd_nest::nest::bind::HostBinding;
use vtd_nest::paging::walk::EntrySource;
use vtd_nest::viommu::host::{
    BindError, Desired, DeviceHandle, GuestInterrupt, GuestInvalidation, Host, InterruptError,
    Progress,
};

/// The hypervisor: host memory, frames and platform. Also a unit's registers and a guest's memory.
pub(crate) struct Environment;

impl Registers for Environment {
    fn read32(&self, register: Register32) -> u32 {
        black_box(register);
        black_box(0)
    }

    fn write32(&mut self, register: Register32, value: u32) {
        black_box((register, value));
    }

    fn read64(&self, register: Register64) -> u64 {
        black_box(register);
        black_box(0)
    }

    fn write64(&mut self, register: Register64, value: u64) {
        black_box((register, value));
    }

    fn window_bytes(&self) -> u64 {
        black_box(4096)
    }
}

impl HostMemory for Environment {
    fn read64(&self, at: Hpa) -> u64 {
        black_box(at);
        black_box(0)
    }

    fn write64(&self, at: Hpa, value: u64) {
        black_box((at, value));
    }

    fn write32(&self, at: Hpa, value: u32) {
        black_box((at, value));
    }

    fn write128(&self, at: Hpa, value: u128) {
        black_box((at, value));
    }

    fn fetch_and64(&self, at: Hpa, mask: u64) -> u64 {
        black_box((at, mask));
        black_box(0)
    }

    fn copy_from(&self, at: Hpa, into: &mut [u8]) {
        black_box((at, into));
    }

    fn copy_to(&self, at: Hpa, from: &[u8]) {
        black_box((at, from));
    }

    fn flush_line(&self, at: Hpa) {
        black_box(at);
    }

    fn fence(&self) {
        black_box(());
    }
}

impl GuestMemory for Environment {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), GuestMemoryError> {
        black_box((at, into));
        black_box(Ok(()))
    }

    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), GuestMemoryError> {
        black_box((at, from));
        black_box(Ok(()))
    }
}

impl Frames for Environment {
    fn allocate(&self, owner: Owner, order: u8) -> Result<FrameRun, FrameError> {
        black_box(Ok(FrameRun::new(Hpa::new(0), order, owner)))
    }

    fn free(&self, run: FrameRun) {
        let _ = black_box(run);
    }
}

impl Platform for Environment {
    fn now_nanoseconds(&self) -> u64 {
        black_box(0)
    }

    fn pause(&self) {
        black_box(());
    }

    fn deliver_interrupt(&self, unit: u32, address: u64, data: u32) {
        black_box((unit, address, data));
    }

    fn route_interrupt(&self, unit: u32, interrupt: &Interrupt) -> Option<Interrupt> {
        black_box((unit, interrupt));
        black_box(Some(*interrupt))
    }

    fn set_bus_master(&self, source_id: SourceId, enabled: bool) {
        black_box((source_id, enabled));
    }
}

impl PciTopology for Environment {
    fn secondary_bus(&self, bridge: SourceId) -> Option<u8> {
        black_box(bridge);
        black_box(Some(0))
    }

    fn subordinate_bus(&self, bridge: SourceId) -> Option<u8> {
        black_box(bridge);
        black_box(Some(0))
    }
}

impl<A> EntrySource<A> for Environment {
    fn read_entry(&self, at: A) -> Option<u64> {
        black_box(at);
        black_box(Some(0))
    }
}

/// A guest, too: the host side of a virtual unit.
impl Host for Environment {
    type Binding = HostBinding;
    type Memory = Self;

    fn memory(&self) -> &Self::Memory {
        black_box(self)
    }

    fn bind(
        &mut self,
        device: DeviceHandle,
        pasid: Pasid,
        binding: &mut Self::Binding,
        desired: &Desired,
    ) -> Result<Progress, BindError> {
        black_box((device, pasid, binding, desired));
        black_box(Ok(Progress::Done))
    }

    fn invalidate(&mut self, what: &GuestInvalidation) -> Result<Progress, BindError> {
        black_box(what);
        black_box(Ok(Progress::Done))
    }

    fn interrupt_entries(&self) -> u32 {
        black_box(0)
    }

    fn set_interrupt_entry(
        &mut self,
        index: InterruptIndex,
        desired: Option<&GuestInterrupt>,
    ) -> Result<(), InterruptError> {
        black_box((index, desired));
        black_box(Ok(()))
    }

    fn flush(&mut self) -> Result<Progress, BindError> {
        black_box(Ok(Progress::Done))
    }

    fn deliver_interrupt(&mut self, address: u64, data: u32) {
        black_box((address, data));
    }
}
