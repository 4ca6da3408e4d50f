//! What the guest was refused: counted, and the last of it kept for the end of the run.
//!
//! Nothing is printed while the guest runs: the console is the guest's.

use core::fmt;

use heapless::Deque;
use vtd_nest::arch::id::SourceId;

use super::apic_filter;
use super::pci_guard;

const KEPT: usize = 16;

/// One refused write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Refused {
    /// Of PCI configuration space.
    Pci {
        source_id: SourceId,
        offset: u16,
        value: u32,
        why: pci_guard::Refusal,
    },
    /// Of the local APIC.
    LocalApic {
        value: u64,
        why: apic_filter::Refused,
    },
    /// Of an I/O APIC's redirection entry.
    IoApic { selected: u8, value: u32 },
    /// An event of the virtual unit that is no interrupt message.
    Message { address: u64, data: u32 },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci {
                source_id,
                offset,
                value,
                why,
            } => write!(
                f,
                "refused: PCI {source_id} register {offset:#x} = {value:#x}: {why:x?}"
            ),
            Self::LocalApic { value, why } => {
                write!(f, "refused: local APIC command {value:#x}: {why:?}")
            }
            Self::IoApic { selected, value } => {
                write!(f, "refused: I/O APIC register {selected:#x} = {value:#x}")
            }
            Self::Message { address, data } => {
                write!(f, "refused: event message {data:#x} to {address:#x}")
            }
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Refused writes of configuration space.
    pub(crate) pci: u64,
    /// Refused writes of local and I/O APICs, and messages.
    pub(crate) interrupts: u64,
    last: Deque<Refused, KEPT>,
}

impl Refusals {
    pub(crate) fn add(&mut self, refused: Refused) {
        if matches!(refused, Refused::Pci { .. }) {
            self.pci += 1;
        } else {
            self.interrupts += 1;
        }
        if self.last.is_full() {
            let _ = self.last.pop_front();
        }
        let _ = self.last.push_back(refused);
    }

    /// The last ones.
    pub(crate) fn last(&self) -> impl Iterator<Item = &Refused> {
        self.last.iter()
    }
}
