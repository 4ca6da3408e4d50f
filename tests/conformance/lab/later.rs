//! What scenarios ask of the library and it does not have yet. Each says so; the scenarios that
//! call it are pending.

use vtd_nest::arch::id::SourceId;

use super::Lab;

/// Has the hypervisor send a device's interrupt to a processor: the address and data for the
/// device, in remappable format.
pub(crate) fn route_interrupt(_lab: &Lab, _source_id: SourceId, _vector: u8) -> (u64, u32) {
    panic!("the library builds no interrupt remapping entries yet");
}
