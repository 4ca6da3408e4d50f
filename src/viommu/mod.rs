//! The guest side: a virtual VT-d unit. Knows no hardware.

pub mod host;
