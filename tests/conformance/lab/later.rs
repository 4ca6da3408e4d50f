//! What scenarios ask of the library and it does not have yet. Each says so; the scenarios that
//! call it are pending.

use vtd_nest::arch::id::SourceId;

use super::Guest;

/// A guest writes configuration space: whether the write is passed on.
pub(crate) fn write_configuration(
    _guest: &mut Guest,
    _source_id: SourceId,
    _offset: u16,
    _value: u32,
) -> bool {
    panic!("configuration space is not given to guests yet");
}
