//! Where QEMU's unit is known to differ from the architecture: everything else that differs is a
//! failure.
//!
//! Each deviation says as narrowly as can be when it applies. One that a full run never meets is
//! reported: it is not needed, or programs no longer get there.

use crate::observe::Difference;

/// A known difference.
pub struct Deviation {
    /// Its name, for the report.
    pub name: &'static str,
    /// What QEMU does, and what the architecture says.
    pub what: &'static str,
    /// Whether it explains a difference.
    pub(crate) explains: fn(&Difference) -> bool,
}

/// All of them; the first that explains a difference counts.
pub const ALL: &[Deviation] = &[];
