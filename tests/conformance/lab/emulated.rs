//! Requests of devices that the hypervisor emulates.

use vtd_nest::arch::address::Iova;
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::{Pasid, SourceId};
use vtd_nest::paging::walk::Access;
use vtd_nest::viommu::{DmaRequest, TranslateError};

use super::Guest;

impl Guest {
    /// Where a read of an emulated device, under the scenario's PASID, is led in software.
    pub(crate) fn translated(
        &mut self,
        source_id: SourceId,
        iova: u64,
    ) -> Result<u64, FaultReason> {
        let request = DmaRequest {
            source_id,
            pasid: self.tag.and_then(Pasid::new),
            address: Iova::new(iova),
            access: Access::READ,
            execute: false,
        };
        let lab = self.lab.clone();
        match self.vm.translate(&*lab.hypervisor, &lab.units, &request) {
            Ok(translation) => Ok(translation.address.as_u64()),
            Err(TranslateError::Fault(fault)) => Err(fault.reason),
            Err(error) => panic!("{error}"),
        }
    }
}
