//! What scenarios ask of the library and it does not have yet. Each says so; the scenarios that
//! call it are pending.

use vtd_nest::arch::id::SourceId;

use super::Guest;

/// Tells a machine's virtual unit of a device that the hypervisor emulates.
pub(crate) fn add_emulated_device(_guest: &mut Guest, _source_id: SourceId) {
    panic!("a machine takes no emulated devices yet");
}

/// Whether the bench's units have erratum 772415 SPR17.
pub(crate) fn has_erratum_772415(place: super::Place<'_>) -> bool {
    place.profile.name().contains("erratum")
}

/// A lab whose units are known to have erratum 772415 SPR17: with snooped walks, updates of
/// first-stage entries reach pages that the second stage lets them read only.
pub(crate) fn lab_with_erratum_772415(_place: super::Place<'_>) -> std::rc::Rc<super::Lab> {
    panic!("the library cannot be told of a unit's errata yet");
}
