//! What scenarios ask of the library and it does not have yet. Each says so; the scenarios that
//! call it are pending.

use vtd_nest::arch::address::Hpa;
use vtd_nest::arch::id::SourceId;
use vtd_nest::nest::AssignError;

use super::{Guest, Lab};

/// Tells a machine's virtual unit of a device that the hypervisor emulates.
pub(crate) fn add_emulated_device(_guest: &mut Guest, _source_id: SourceId) {
    panic!("a machine takes no emulated devices yet");
}

/// A lab whose units are known to have erratum 772415 SPR17: with snooped walks, updates of
/// first-stage entries reach pages that the second stage lets them read only.
pub(crate) fn lab_with_erratum_772415(_place: super::Place<'_>) -> std::rc::Rc<super::Lab> {
    panic!("the library cannot be told of a unit's errata yet");
}

/// Tells the library of memory that firmware lets a device use (RMRR).
pub(crate) fn reserve_memory(_lab: &Lab, _source_id: SourceId, _at: Hpa, _len_bytes: u64) {
    panic!("the library knows no reserved memory regions yet");
}

/// Assigns a device in spite of its reserved memory, as an embedder may say in so many words.
pub(crate) fn assign_with_reserved_memory(_guest: &mut Guest, _source_id: SourceId) {
    panic!("the library knows no reserved memory regions yet");
}

/// Assigns a device that sends requests under several source-ids.
pub(crate) fn assign_with_aliases(
    _guest: &mut Guest,
    _source_id: SourceId,
    _aliases: &[SourceId],
) -> Result<(), AssignError> {
    panic!("the library takes a device by one source-id only yet");
}

/// A guest writes configuration space: whether the write is passed on.
pub(crate) fn write_configuration(
    _guest: &mut Guest,
    _source_id: SourceId,
    _offset: u16,
    _value: u32,
) -> bool {
    panic!("configuration space is not given to guests yet");
}
