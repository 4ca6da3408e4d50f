//! What is seen of a unit, and how it is compared.

use std::fmt;

use vtd_nest::arch::register::{Register32, Register64};

use crate::configuration::Unit;
use crate::layout::{DATA_PAGES, INTERRUPT_RANGE, content};
use crate::program::{Flaw, Kind, Mode, Place};
use crate::sides::Side;
use crate::tables::{PAGE_SIZE, PathEntry, order};

/// PFO and PPF in `FSTS_REG`.
pub(crate) const OVERFLOW: u32 = 1;
pub(crate) const PENDING: u32 = 1 << 1;
/// IQE in `FSTS_REG`.
pub(crate) const QUEUE_ERROR: u32 = 1 << 4;

/// A fault record: its two quadwords.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record(pub(crate) [u64; 2]);

impl Record {
    /// F, FR, PV, PP, EXE, PRIV, T2 and SID taken apart (§11.4.7.6).
    pub(crate) fn reason(self) -> u8 {
        (self.0[1] >> 32) as u8
    }

    /// FI: the address of the page.
    pub(crate) fn page(self) -> u64 {
        self.0[0]
    }

    /// PP.
    pub(crate) fn has_pasid(self) -> bool {
        self.0[1] >> 31 & 1 == 1
    }

    /// PV.
    pub(crate) fn pasid(self) -> u32 {
        (self.0[1] >> 40) as u32 & 0xf_ffff
    }

    /// All but FR, PP and PV.
    pub(crate) fn rest(self) -> [u64; 2] {
        [
            self.0[0],
            self.0[1] & !(0xff << 32 | 1 << 31 | 0xf_ffff << 40),
        ]
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = self.0;
        let kind = match (high >> 62 & 1, high >> 28 & 1) {
            (0, 0) => "write",
            (1, 0) => "read",
            (1, 1) => "atomic",
            _ => "page request",
        };
        write!(
            f,
            "fault {:02x} of {:04x} at {low:#x}, {kind}",
            self.reason(),
            high as u16
        )?;
        if self.has_pasid() {
            write!(f, ", PASID {}", self.pasid())?;
        }
        Ok(())
    }
}

/// Bytes of a data page that are not what the page held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Arrived {
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
}

/// What is seen of one DMA.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    /// What the device read.
    pub(crate) data: Vec<u8>,
    /// What it wrote, where it came to be.
    pub(crate) arrived: Vec<Arrived>,
    /// `FSTS_REG` before it and after it.
    pub(crate) status_before: u32,
    pub(crate) status: u32,
    /// The fault record before it and after it, if there is one.
    pub(crate) record_before: Option<Record>,
    pub(crate) record: Option<Record>,
    /// Of each request why it was blocked, recorded or not; the model tells that.
    pub(crate) blocked: Vec<Option<u8>>,
}

impl Seen {
    /// The same to software and devices.
    pub(crate) fn has_same_effect(&self, other: &Self) -> bool {
        self.data == other.data && self.arrived == other.arrived && self.record == other.record
    }

    /// No data moved, and no fault was noted.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_without_data() && self.status == self.status_before
    }

    /// One of these reasons was recorded for it, or could not be because a fault was pending.
    pub(crate) fn is_fault(&self, reasons: &[u8]) -> bool {
        self.is_without_data()
            && match self.reason() {
                Some(reason) => reasons.contains(&reason),
                None => self.record_before.is_some(),
            }
    }

    /// Nothing was blocked, as far as the side tells.
    pub(crate) fn is_unblocked(&self) -> bool {
        self.blocked.iter().all(Option::is_none)
    }

    /// The reason that was recorded for it.
    pub(crate) fn reason(&self) -> Option<u8> {
        let record = self.record.filter(|_| self.status_before & PENDING == 0)?;
        Some(record.reason())
    }

    /// Nothing arrived and nothing was read.
    pub(crate) fn is_without_data(&self) -> bool {
        self.arrived.is_empty() && self.data.iter().all(|byte| *byte == 0)
    }
}

/// Ranges of a page that a DMA touches: offset and length.
pub(crate) fn page_ranges(address: u64, len: usize) -> Vec<(u64, usize)> {
    let mut ranges = Vec::new();
    let mut done = 0;
    while done < len {
        let offset = address.wrapping_add(done as u64) & 0xfff;
        let length = (len - done).min((0x1000 - offset) as usize);
        ranges.push((offset, length));
        done += length;
    }
    ranges
}

/// Fills what a DMA at `address` may touch of the data pages.
pub(crate) fn fill_data(side: &dyn Side, address: u64, len: usize) {
    for page in DATA_PAGES {
        for (offset, length) in page_ranges(address, len) {
            let bytes: Vec<u8> = (page + offset..).take(length).map(content).collect();
            let at = vtd_nest::arch::address::Hpa::new(page + offset);
            side.memory().copy_to(at, &bytes);
        }
    }
}

/// What of the data pages changed since [`fill_data`].
pub(crate) fn changed_data(side: &dyn Side, address: u64, len: usize) -> Vec<Arrived> {
    let mut arrived = Vec::new();
    for page in DATA_PAGES {
        for (offset, length) in page_ranges(address, len) {
            let at = page + offset;
            let mut bytes = vec![0; length];
            let from = vtd_nest::arch::address::Hpa::new(at);
            side.memory().copy_from(from, &mut bytes);
            if (at..).zip(&bytes).any(|(at, byte)| *byte != content(at)) {
                arrived.push(Arrived { at, bytes });
            }
        }
    }
    arrived
}

/// The fault record of a unit, if `FSTS_REG` says that there is one.
pub(crate) fn pending_record(side: &dyn Side, unit: &Unit, status: u32) -> Option<Record> {
    if status & PENDING == 0 {
        return None;
    }
    let offset = unit.fault_record_offset();
    let low = side.read64(Register64::fault_record_low(offset, 0)?);
    let high = side.read64(Register64::fault_record_high(offset, 0)?);
    Some(Record([low, high]))
}

/// Clears the fault record and the overflow.
pub(crate) fn clear_faults(side: &mut dyn Side, unit: &Unit) {
    if let Some(last) = Register32::fault_record_dword3(unit.fault_record_offset(), 0) {
        side.write32(last, 1 << 31);
    }
    side.write32(Register32::FAULT_STATUS, OVERFLOW);
}

/// Registers that are compared after every step.
pub(crate) const REGISTERS: [(&str, Register32); 10] = [
    ("GSTS", Register32::GLOBAL_STATUS),
    ("FSTS", Register32::FAULT_STATUS),
    ("FECTL", Register32::FAULT_EVENT_CONTROL),
    ("ICS", Register32::INVALIDATION_COMPLETION_STATUS),
    ("IECTL", Register32::INVALIDATION_EVENT_CONTROL),
    ("IQH", Register64::INVALIDATION_QUEUE_HEAD.low_dword()),
    ("IQT", Register64::INVALIDATION_QUEUE_TAIL.low_dword()),
    ("IQA", Register64::INVALIDATION_QUEUE_ADDRESS.low_dword()),
    (
        "IQERCD",
        Register64::INVALIDATION_QUEUE_ERROR_RECORD.low_dword(),
    ),
    ("RTADDR", Register64::ROOT_TABLE_ADDRESS.low_dword()),
];

/// What is known of a DMA when two sides differ.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) mode: Mode,
    /// Translation is on.
    pub(crate) translating: bool,
    pub(crate) device: usize,
    pub(crate) write: bool,
    pub(crate) address: u64,
    pub(crate) len: usize,
    /// Of the domain that the device is attached to, if the mode allows it.
    pub(crate) kind: Option<Kind>,
    pub(crate) flaw: Option<Flaw>,
    /// FPD bits of the device's structures.
    pub(crate) fault_disable: u8,
    /// Width of addresses.
    pub(crate) width: u8,
    /// The pages that it touches.
    pub(crate) pages: Vec<PageContext>,
}

/// One of the pages that a DMA touches.
#[derive(Clone, Debug)]
pub(crate) struct PageContext {
    /// The first address.
    pub(crate) address: u64,
    /// The entries on its way.
    pub(crate) path: Vec<PathEntry>,
    /// The device was let through to the leaf since all was invalidated.
    pub(crate) was_accessed: bool,
}

impl PageContext {
    /// The host address of the page, if the way ends at a leaf.
    fn host(&self) -> Option<u64> {
        let leaf = self.path.last()?;
        let within = (1 << order(leaf.level)) - 1;
        let frame = leaf.word & ((1 << 52) - 1) & !within & !0xfff;
        let is_leaf = leaf.level == 1 || leaf.word & PAGE_SIZE != 0;
        is_leaf.then_some(frame | self.address & within)
    }

    /// An entry above the last one lacks this bit.
    pub(crate) fn lacks_above(&self, bit: u64) -> bool {
        self.path
            .split_last()
            .is_some_and(|(_, above)| above.iter().any(|entry| entry.word & bit == 0))
    }

    /// Some entry lacks this bit.
    pub(crate) fn lacks(&self, bit: u64) -> bool {
        self.path.iter().any(|entry| entry.word & bit == 0)
    }

    /// The last entry of the way is a leaf that leads to the interrupt range, or to more than that.
    pub(crate) fn has_interrupt_leaf(&self) -> bool {
        self.path.last().is_some_and(|leaf| {
            let order = order(leaf.level).max(20);
            self.host()
                .is_some_and(|host| host >> order == INTERRUPT_RANGE >> order)
        })
    }
}

/// Something that is not the same on both sides.
#[derive(Clone, Debug)]
pub(crate) enum Difference {
    /// Data, or whether a fault was recorded.
    Outcome {
        context: Context,
        model: Seen,
        qemu: Seen,
    },
    /// The reason in records that are there on both sides.
    Reason {
        context: Context,
        model: u8,
        qemu: u8,
    },
    /// The PASID in the records.
    RecordPasid {
        context: Context,
        model: Record,
        qemu: Record,
    },
    /// Anything else in the records.
    Record {
        context: Context,
        model: Record,
        qemu: Record,
    },
    /// A DMA with a bit set that is reserved; `repaired` is what QEMU did without it.
    Reserved {
        place: Place,
        word: u8,
        bit: u8,
        context: Context,
        model: Seen,
        qemu: Seen,
        repaired: Seen,
    },
    /// A DMA after P alone was cleared; `before` is what QEMU did before.
    PresentCleared {
        context: Context,
        model: Seen,
        qemu: Seen,
        before: Seen,
    },
    /// A DMA after pass-through was left, without a context-cache invalidation.
    PassThroughLeft {
        context: Context,
        #[expect(dead_code, reason = "shown when nothing explains it")]
        model: Seen,
        qemu: Seen,
    },
    /// A DMA while the root table is nowhere, or the mode reserved; `right` is what QEMU did after
    /// that.
    RootTable {
        reserved_mode: bool,
        context: Context,
        model: Seen,
        qemu: Seen,
        right: Seen,
    },
    /// An entry of a page table.
    Entry {
        kind: Kind,
        is_leaf: bool,
        /// Why the model blocked requests of the DMA.
        blocked: Vec<u8>,
        flaw: Option<Flaw>,
        /// The DMA was to memory.
        write: bool,
        /// The entry before the DMA, on both sides.
        before: u64,
        model: u64,
        qemu: u64,
    },
    /// A register after a step.
    Register {
        name: &'static str,
        model: u32,
        qemu: u32,
    },
    /// What a register of register-based invalidation reads as.
    InvalidationResult {
        name: &'static str,
        model: u64,
        qemu: u64,
    },
    /// Whether a descriptor or tail is taken, and the reason if it is not.
    QueueError {
        /// Of a descriptor; `None` for a tail.
        descriptor: Option<[u64; 4]>,
        mode: Mode,
        wide: bool,
        model: QueueSeen,
        qemu: QueueSeen,
    },
    /// The status word of a wait, which is not what the wait says on both sides.
    #[expect(dead_code, reason = "shown; nothing explains it")]
    WaitStatus { model: u64, qemu: u64 },
}

impl Context {
    /// Whether a side moved exactly the bytes of the pages for which `moves` is true, to or from
    /// where their leaves lead; `moves` gets the number of the page.
    pub(crate) fn is_done_by_leaves(&self, seen: &Seen, moves: impl Fn(usize) -> bool) -> bool {
        let mut done = 0;
        let mut arrived = seen.arrived.clone();
        for (index, (offset, length)) in page_ranges(self.address, self.len).into_iter().enumerate()
        {
            let host = self.pages.get(index).and_then(PageContext::host);
            let at = host.map(|host| host + offset).filter(|_| moves(index));
            if self.write {
                if let Some(at) = at {
                    let place = arrived
                        .iter()
                        .position(|part| part.at == at && part.bytes.len() == length);
                    match place {
                        Some(place) => drop(arrived.swap_remove(place)),
                        None => return false,
                    }
                }
            } else {
                let read = seen.data.get(done..done + length).unwrap_or_default();
                let expected = (0..length as u64).map(|byte| at.map_or(0, |at| content(at + byte)));
                if !read.iter().copied().eq(expected) {
                    return false;
                }
            }
            done += length;
        }
        arrived.is_empty()
    }
}

/// What is seen of a queue after a bad descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QueueSeen {
    /// IQE.
    pub(crate) error: bool,
    /// IQEI.
    pub(crate) information: u32,
    /// `IQH_REG` from where it was before.
    pub(crate) head: u32,
    /// The status word of the wait behind it.
    pub(crate) status: u64,
}

/// Compares two DMAs; several things can differ.
pub(crate) fn compare(context: &Context, model: &Seen, qemu: &Seen) -> Vec<Difference> {
    let outcome = || Difference::Outcome {
        context: context.clone(),
        model: model.clone(),
        qemu: qemu.clone(),
    };
    if model.data != qemu.data || model.arrived != qemu.arrived || model.status != qemu.status {
        return vec![outcome()];
    }
    if model.record == model.record_before && qemu.record == qemu.record_before {
        // They were compared when they were made.
        return Vec::new();
    }
    let (Some(from_model), Some(from_qemu)) = (model.record, qemu.record) else {
        return vec![outcome()];
    };
    // Bits above the largest table width are 0.
    let cut = |record: Record| record.page() & ((1 << context.width) - 1);
    if cut(from_model) != cut(from_qemu) {
        return vec![outcome()];
    }
    let mut differences = Vec::new();
    if from_model.rest() != from_qemu.rest() {
        differences.push(Difference::Record {
            context: context.clone(),
            model: from_model,
            qemu: from_qemu,
        });
    }
    if from_model.reason() != from_qemu.reason() {
        differences.push(Difference::Reason {
            context: context.clone(),
            model: from_model.reason(),
            qemu: from_qemu.reason(),
        });
    }
    // PV says nothing without PP.
    let pasid = |record: Record| record.has_pasid().then(|| record.pasid());
    if pasid(from_model) != pasid(from_qemu) {
        differences.push(Difference::RecordPasid {
            context: context.clone(),
            model: from_model,
            qemu: from_qemu,
        });
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart_by_their_bits() {
        let record = Record([0x1000, 1 << 63 | 1 << 62 | 0x71 << 32 | 1 << 31 | 0x88]);
        assert_eq!(
            (record.reason(), record.page(), record.has_pasid()),
            (0x71, 0x1000, true)
        );
        assert_eq!(
            format!("{record:?}"),
            "fault 71 of 0088 at 0x1000, read, PASID 0"
        );
        assert_eq!(record.rest(), [0x1000, 1 << 63 | 1 << 62 | 0x88]);
    }

    #[test]
    fn a_dma_is_cut_at_pages() {
        assert_eq!(page_ranges(0x1ffc, 8), [(0xffc, 4), (0, 4)]);
        assert_eq!(page_ranges(0x1000, 8), [(0, 8)]);
        assert!(page_ranges(0x1000, 0).is_empty());
    }
}
