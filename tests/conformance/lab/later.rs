//! What scenarios ask of the library and it does not have yet. Each says so; the scenarios that
//! call it are pending.

use vtd_nest::arch::id::SourceId;
use vtd_nest::nest::{AssignError, DeviceConfig};

use super::Guest;

/// State of a virtual unit, saved.
pub(crate) struct Saved(Vec<u8>);

/// Saves the state of a machine's virtual unit.
pub(crate) fn save(_guest: &Guest) -> Saved {
    panic!("the library cannot save a virtual unit yet");
}

/// A machine made anew from a saved state, over the same memory.
pub(crate) fn restore(guest: Guest, saved: &Saved) -> Guest {
    let _ = (guest, &saved.0);
    panic!("the library cannot restore a virtual unit yet");
}

/// Saved states that are out of range in one field each.
pub(crate) fn hostile_states(guest: &Guest) -> Vec<Saved> {
    let saved = save(guest);
    (0..saved.0.len())
        .map(|index| {
            let mut bytes = saved.0.clone();
            bytes[index] = 0xff;
            Saved(bytes)
        })
        .collect()
}

/// Whether a restore refuses a state.
pub(crate) fn is_refused(_guest: &mut Guest, _saved: &Saved) -> bool {
    panic!("the library cannot restore a virtual unit yet");
}

/// Assigns a device that has fewer PASID bits than its machine was shown.
pub(crate) fn assign_with_pasid_bits(
    _guest: &mut Guest,
    _config: DeviceConfig,
    _bits: u8,
) -> Result<(), AssignError> {
    panic!("the library takes no width of PASIDs of a single device yet");
}

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

/// Destroys a machine; gives it back if hardware did not confirm.
pub(crate) fn destroy(guest: Guest) -> Result<(), Box<Guest>> {
    let _ = guest.number();
    panic!("the library cannot destroy a machine yet");
}
