//! A device's own translation cache, and how it is told to forget (§4, §6.5.2.5, §6.5.2.6).

use super::tables::DeviceTables;
use super::unit::Unit;
use crate::arch::descriptor::{Descriptor, DeviceTlbRange};
use crate::arch::id::{Pasid, SourceId};
use crate::mem::Registers;

/// What invalidations of a device's TLB have to know of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceTlb {
    /// How many invalidations the device takes at once: Invalidate Queue Depth of its ATS capability, 1
    /// to 31, or 0 for 32 (`MIP`).
    #[doc(alias = "MIP")]
    pub queue_depth: u8,
    /// The physical function that a virtual function belongs to; of any other function itself (`PFSID`).
    #[doc(alias = "PFSID")]
    pub physical_function: SourceId,
}

/// Which of a device's cached translations an invalidation is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceTlbScope {
    /// All of them (§6.5.3.3, Table 28).
    Everything,
    /// Those of requests without PASID.
    WithoutPasid(DeviceTlbRange),
    /// Those of one PASID.
    Pasid(Pasid, DeviceTlbRange),
    /// Those of every PASID (`G`).
    EveryPasid(DeviceTlbRange),
}

impl<R: Registers> Unit<R> {
    /// Whether devices behind the unit can use TLBs of their own (`ECAP.DT`).
    pub const fn has_device_tlbs(&self) -> bool {
        self.features.extended.has_device_tlb()
    }

    /// The descriptor that makes an attached device forget cached translations; `None` if it was
    /// attached without a device-TLB, and so may not have any.
    ///
    /// A device refills its TLB through the unit's caches: those have to be invalidated before, with
    /// a fence between a PASID-based IOTLB invalidation and one without PASID for the device
    /// (§6.5.2.12).
    pub fn device_tlb_invalidation(
        &self,
        tables: &DeviceTables,
        scope: DeviceTlbScope,
    ) -> Option<Descriptor> {
        let device_tlb = tables.device_tlb()?;
        let source_id = tables.source_id();
        let max_pending = device_tlb.queue_depth & 0x1f;
        let physical_function = if self.features.extended.has_device_tlb_throttling() {
            device_tlb.physical_function
        } else {
            SourceId::from_u16(0)
        };
        let with_pasid = |pasid, all_pasids, range| Descriptor::PasidDeviceTlb {
            source_id,
            pasid,
            all_pasids,
            range,
            physical_function,
            max_pending,
        };
        let without_pasid = |range| Descriptor::DeviceTlb {
            source_id,
            range,
            physical_function,
            max_pending,
        };
        Some(match scope {
            DeviceTlbScope::Everything => without_pasid(DeviceTlbRange::ALL),
            DeviceTlbScope::WithoutPasid(range) => without_pasid(range),
            DeviceTlbScope::Pasid(pasid, range) => with_pasid(pasid, false, range),
            DeviceTlbScope::EveryPasid(range) => with_pasid(Pasid::ZERO, true, range),
        })
    }
}
