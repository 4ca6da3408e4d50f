//! Devices of a machine that the hypervisor emulates: no hardware is involved.

use crate::arch::address::Gpa;
use crate::arch::id::SourceId;
use crate::mem::{Hypervisor, Registers};
use crate::nest::machine::{VirtualMachine, port};
use crate::paging::walk::Translation;
use crate::unit::Unit;
use crate::viommu::host::DeviceHandle;
use crate::viommu::{DeviceError, DmaRequest, TranslateError};

impl<const DEVICES: usize, const BINDINGS: usize, const DOMAINS: usize, const SHADOWS: usize>
    VirtualMachine<DEVICES, BINDINGS, DOMAINS, SHADOWS>
{
    /// Adds a device that the hypervisor emulates, by the source-id under which the guest knows it.
    /// Nothing is made for it: its requests go through [`translate`](Self::translate).
    ///
    /// # Errors
    ///
    /// [`DeviceError::SourceIdInUse`], and [`DeviceError::BeyondTable`] if the device table is full;
    /// nothing has changed then.
    pub fn add_emulated_device(
        &mut self,
        source_id: SourceId,
    ) -> Result<DeviceHandle, DeviceError> {
        let handle = self.free_handle().ok_or(DeviceError::BeyondTable {
            handle: DeviceHandle::new(DEVICES as u16),
            capacity: DEVICES,
        })?;
        self.virtual_unit.add_emulated_device(handle, source_id)?;
        Ok(handle)
    }

    /// Takes an emulated device away.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Unknown`] if the handle names no emulated device.
    pub fn remove_emulated_device(&mut self, handle: DeviceHandle) -> Result<(), DeviceError> {
        self.virtual_unit.remove_emulated_device(handle)
    }

    /// Translates a request of an emulated device by the guest's tables: to a guest-physical address
    /// that need not be memory of the machine. What the tables do not allow is recorded in the
    /// guest's unit, as for any device.
    ///
    /// The result holds until the next [`poll`](Self::poll): ask again rather than keep it.
    /// Interrupt messages of the device, which are writes without PASID to 0xFEEx_xxxx, are not DMA
    /// and do not belong here.
    ///
    /// # Errors
    ///
    /// [`TranslateError`].
    pub fn translate<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        units: &[Unit<R>],
        request: &DmaRequest,
    ) -> Result<Translation<Gpa>, TranslateError> {
        self.virtual_unit
            .translate(&mut port!(self, h, units), request)
    }
}
