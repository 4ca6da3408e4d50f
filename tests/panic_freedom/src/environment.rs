//! The concrete types that `instances.toml` gives for generic parameters.
//!
//! They implement the library's seams with values that the optimizer cannot know: every result
//! passes through [`black_box`], so no branch of the library is folded away.

use core::hint::black_box;

use vtd_nest::arch::address::{Gpa, Hpa};
use vtd_nest::arch::id::{Pasid, SourceId};
use vtd_nest::arch::interrupt::{Interrupt, InterruptIndex};
use vtd_nest::arch::pci::{PciFunction, PciFunctions, PciKind, PciTopology, Siblings};
use vtd_nest::arch::register::{Register32, Register64};
use vtd_nest::mem::{FrameError, FrameRun, Frames, HostMemory, Owner, Platform, Registers};
use vtd_nest::nest::MachineMemory;
use vtd_nest::nest::bind::HostBinding;
use vtd_nest::unit::ConfigurationSpace;
use vtd_nest::viommu::host::{
    BindError, Desired, DeviceHandle, GuestInterrupt, GuestInvalidation, Host, InterruptError,
    Progress,
};

/// The hypervisor: host memory, frames and platform. Also a unit's registers, and the host side of a
/// virtual unit alone.
///
/// Nothing of it is inlined: what is measured is the library's code.
pub(crate) struct Environment(MachineMemory<'static, Environment>);

impl Registers for Environment {
    #[inline(never)]
    fn read32(&self, register: Register32) -> u32 {
        black_box(register);
        black_box(0)
    }

    #[inline(never)]
    fn write32(&mut self, register: Register32, value: u32) {
        black_box((register, value));
    }

    #[inline(never)]
    fn read64(&self, register: Register64) -> u64 {
        black_box(register);
        black_box(0)
    }

    #[inline(never)]
    fn write64(&mut self, register: Register64, value: u64) {
        black_box((register, value));
    }

    #[inline(never)]
    fn window_bytes(&self) -> u64 {
        black_box(4096)
    }
}

impl ConfigurationSpace for Environment {
    fn read32(&self, offset: u16) -> u32 {
        black_box(offset);
        black_box(0)
    }

    fn write16(&mut self, offset: u16, value: u16) {
        black_box((offset, value));
    }

    fn write32(&mut self, offset: u16, value: u32) {
        black_box((offset, value));
    }
}

impl HostMemory for Environment {
    #[inline(never)]
    fn read64(&self, at: Hpa) -> u64 {
        black_box(at);
        black_box(0)
    }

    #[inline(never)]
    fn write64(&self, at: Hpa, value: u64) {
        black_box((at, value));
    }

    #[inline(never)]
    fn write32(&self, at: Hpa, value: u32) {
        black_box((at, value));
    }

    #[inline(never)]
    fn write128(&self, at: Hpa, value: u128) {
        black_box((at, value));
    }

    #[inline(never)]
    fn fetch_and64(&self, at: Hpa, mask: u64) -> u64 {
        black_box((at, mask));
        black_box(0)
    }

    #[inline(never)]
    fn compare_exchange64(&self, at: Hpa, current: u64, new: u64) -> u64 {
        black_box((at, current, new));
        black_box(0)
    }

    #[inline(never)]
    fn copy_from(&self, at: Hpa, into: &mut [u8]) {
        black_box((at, into));
    }

    #[inline(never)]
    fn copy_to(&self, at: Hpa, from: &[u8]) {
        black_box((at, from));
    }

    #[inline(never)]
    fn flush_line(&self, at: Hpa) {
        black_box(at);
    }

    #[inline(never)]
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

    fn compare_exchange(&self, at: Gpa, current: u64, new: u64) -> Result<bool, GuestMemoryError> {
        black_box((at, current, new));
        black_box(Ok(true))
    }
}

impl Frames for Environment {
    #[inline(never)]
    fn allocate(&self, owner: Owner, order: u8) -> Result<FrameRun, FrameError> {
        black_box(Ok(FrameRun::new(Hpa::new(0), order, owner)))
    }

    #[inline(never)]
    fn free(&self, run: FrameRun) {
        let _ = black_box(run);
    }
}

impl Platform for Environment {
    #[inline(never)]
    fn now_nanoseconds(&self) -> u64 {
        black_box(0)
    }

    #[inline(never)]
    fn pause(&self) {
        black_box(());
    }

    #[inline(never)]
    fn deliver_interrupt(&self, unit: u32, address: u64, data: u32) {
        black_box((unit, address, data));
    }

    #[inline(never)]
    fn route_interrupt(&self, unit: u32, interrupt: &Interrupt) -> Option<Interrupt> {
        black_box((unit, interrupt));
        black_box(Some(*interrupt))
    }

    #[inline(never)]
    fn set_bus_master(&self, source_id: SourceId, enabled: bool) {
        black_box((source_id, enabled));
    }
}

impl PciTopology for Environment {
    #[inline(never)]
    fn secondary_bus(&self, bridge: SourceId) -> Option<u8> {
        black_box(bridge);
        black_box(Some(0))
    }

    #[inline(never)]
    fn subordinate_bus(&self, bridge: SourceId) -> Option<u8> {
        black_box(bridge);
        black_box(Some(0))
    }
}

impl PciFunctions for Environment {
    fn function(&self, source_id: SourceId) -> Option<PciFunction> {
        black_box(source_id);
        black_box(Some(PciFunction {
            kind: PciKind::Endpoint,
            siblings: Siblings::None,
            phantom_bits: 0,
            access_control: None,
        }))
    }

    fn bridge_to(&self, bus: u8) -> Option<SourceId> {
        black_box(bus);
        black_box(Some(SourceId::from_u16(0)))
    }
}

impl Host for Environment {
    type Binding = HostBinding;
    type Memory = MachineMemory<'static, Self>;

    #[inline(never)]
    fn memory(&self) -> &Self::Memory {
        black_box(&self.0)
    }

    #[inline(never)]
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

    #[inline(never)]
    fn invalidate(&mut self, what: &GuestInvalidation) -> Result<Progress, BindError> {
        black_box(what);
        black_box(Ok(Progress::Done))
    }

    #[inline(never)]
    fn interrupt_entries(&self) -> u32 {
        black_box(0)
    }

    #[inline(never)]
    fn set_interrupt_entry(
        &mut self,
        index: InterruptIndex,
        desired: Option<&GuestInterrupt>,
    ) -> Result<(), InterruptError> {
        black_box((index, desired));
        black_box(Ok(()))
    }

    #[inline(never)]
    fn flush(&mut self) -> Result<Progress, BindError> {
        black_box(Ok(Progress::Done))
    }

    #[inline(never)]
    fn deliver_interrupt(&mut self, address: u64, data: u32) {
        black_box((address, data));
    }
}
