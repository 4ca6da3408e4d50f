//! Interrupt remapping (§5): table entries, and the messages that name them.
//!
//! | module | what it is |
//! |---|---|
//! | [`entry`] | the table entry, remapped and posted format (§9.9, §9.10), and what it makes of a request |
//! | [`message`] | what devices and I/O APICs send, in remappable and compatibility format (§5.1.2, §5.1.5) |

pub mod entry;
pub mod message;

pub use entry::{
    InterruptAction, InterruptEntry, InterruptEntryFault, InterruptFeatures, PostedInterrupt,
    SourceValidation,
};
pub use message::{InterruptMessage, IoApicEntry, MessageError, MessageFormat};

use core::fmt;

/// The index of an entry in an interrupt remapping table (§5.1.3): 16 bits.
///
/// As with domain-ids, the same type serves guest and host indices; the layers keep them apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct InterruptIndex(u16);

impl InterruptIndex {
    /// The index with this value.
    #[inline]
    pub const fn new(value: u16) -> Self {
        Self(value)
    }

    /// The index's value.
    #[inline]
    pub const fn as_u16(self) -> u16 {
        self.0
    }
}

impl fmt::Display for InterruptIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for InterruptIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// How an interrupt is delivered (`DLM`, §9.9).
#[doc(alias = "DLM")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeliveryMode {
    /// 0: to all processors that the destination names.
    Fixed,
    /// 1: to one of them.
    LowestPriority,
    /// 2: a system management interrupt (SMI).
    SystemManagement,
    /// 4: a non-maskable interrupt (NMI).
    NonMaskable,
    /// 5: `INIT`.
    Init,
    /// 7: as from an 8259A (ExtINT).
    External,
}

impl DeliveryMode {
    /// The mode of the low 3 bits of a field; `None` for 3 and 6, which are reserved.
    pub const fn from_field(field: u64) -> Option<Self> {
        match field & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::SystemManagement),
            4 => Some(Self::NonMaskable),
            5 => Some(Self::Init),
            7 => Some(Self::External),
            _ => None,
        }
    }

    /// The mode as a 3-bit field.
    pub const fn field(self) -> u64 {
        match self {
            Self::Fixed => 0,
            Self::LowestPriority => 1,
            Self::SystemManagement => 2,
            Self::NonMaskable => 4,
            Self::Init => 5,
            Self::External => 7,
        }
    }
}

/// An interrupt on its way to processors: what an entry in remapped format, or a request in
/// compatibility format, asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Interrupt {
    /// The APIC id: 32 bits in extended interrupt mode, else 8 (`DST`).
    pub destination: u32,
    /// The destination is a logical id (`DM`).
    pub logical: bool,
    /// One of the processors named is enough (`RH`).
    pub redirection_hint: bool,
    /// Level-triggered (`TM`).
    pub level_triggered: bool,
    /// How it is delivered.
    pub delivery: DeliveryMode,
    /// The vector (`V`).
    pub vector: u8,
}

impl Interrupt {
    /// An edge-triggered interrupt in fixed mode for the processor with this APIC id.
    pub const fn fixed(destination: u32, vector: u8) -> Self {
        Self {
            destination,
            logical: false,
            redirection_hint: false,
            level_triggered: false,
            delivery: DeliveryMode::Fixed,
            vector,
        }
    }
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "vector {:#x} mode {} for APIC {:#x}",
            self.vector,
            self.delivery.field(),
            self.destination
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivery_modes_are_those_of_the_field() {
        // §9.9: 011b and 110b are reserved.
        for field in 0..8 {
            match DeliveryMode::from_field(field) {
                Some(mode) => assert_eq!(mode.field(), field),
                None => assert!(field == 3 || field == 6),
            }
        }
        assert_eq!(DeliveryMode::from_field(4), Some(DeliveryMode::NonMaskable));
        assert_eq!(DeliveryMode::from_field(8), Some(DeliveryMode::Fixed));
    }
}
