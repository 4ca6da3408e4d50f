//! What hardware can fetch of an entry while software changes it (§9).
//!
//! Hardware reads 64- and 128-bit entries in one access each, and may read larger ones as aligned
//! 128-bit pieces in an order of its own. Between two pieces any number of software's stores can
//! become visible. [`fetched_values`] visits everything that can be put together that way,
//! [`windows`] cuts a recorded sequence of stores into the spans that one fetch can lie in, and
//! [`Entry::judge`] says whether a fetched value is the entry before the update, the entry after
//! it, a blocking one, or a mixture that nobody wrote.
//!
//! A fetch cannot outlive the invalidation that covers its entry: once that is confirmed, hardware
//! uses nothing that it read before. Each covering invalidation thus ends one window, at the store
//! of its wait's status, and begins the next one at its submission, for hardware may execute it at
//! any time in between.
//!
//! Where accesses are not snooped, hardware sees a line as it was when the processor last wrote it
//! back: at a flush, or at any time by itself. So every state since the last flush is visible, and
//! only a flush with a fence behind it ends the visibility of older ones.

use std::collections::BTreeSet;

use vtd_nest::arch::address::Hpa;
use vtd_nest::arch::context::{LegacyContextEntry, ScalableContextEntry};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::pasid::{PasidDirectoryEntry, PasidEntry};

use crate::bits::{bit, field, page};
use crate::memory::{Memory, MemoryEvent};

/// The largest number of values that [`fetched_values`] puts together.
pub const MAXIMUM_VALUES: usize = 1 << 20;

const LINE_BYTES: u64 = 64;

/// One store into an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryStore {
    /// Offset in the entry, in bytes; a multiple of the width.
    pub offset: usize,
    /// Width in bytes: 1, 4, 8 or 16.
    pub width_bytes: usize,
    /// What, in the low bits.
    pub value: u128,
}

impl EntryStore {
    /// Applies the store to an entry's quadwords. What lies outside is left out.
    pub fn apply(&self, quadwords: &mut [u64]) {
        for index in 0..self.width_bytes {
            let byte = (self.value >> (8 * index)) as u8;
            let at = self.offset + index;
            if let Some(quadword) = quadwords.get_mut(at / 8) {
                let shift = 8 * (at % 8);
                *quadword = *quadword & !(0xff << shift) | u64::from(byte) << shift;
            }
        }
    }
}

/// The states that an entry goes through: `before`, and what it is after each store.
pub fn states(before: &[u64], stores: &[EntryStore]) -> Vec<Vec<u64>> {
    let mut now = before.to_vec();
    let mut states = vec![now.clone()];
    for store in stores {
        store.apply(&mut now);
        states.push(now.clone());
    }
    states
}

/// At which moments the pieces of one fetch may be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PieceOrder {
    /// Each at any moment, whatever the others.
    Any,
    /// None before the first one, which holds Present. That setting up an entry needs no
    /// invalidation (Table 28) rests on this: with [`Any`](Self::Any), no order of stores can keep
    /// hardware from reading the end of an entry before it is written and Present afterwards.
    PresentFirst,
}

/// Every value that hardware can fetch of an entry that goes through `states`, in pieces of
/// `piece_bytes`, each once.
///
/// Independent moments cover every order of pieces. The work is bounded: the number of states
/// times the number of values that pieces can make, at most [`MAXIMUM_VALUES`].
///
/// # Panics
///
/// If `piece_bytes` is not 8 or 16, the states differ in length, or there are too many values.
pub fn fetched_values(
    states: &[Vec<u64>],
    piece_bytes: usize,
    order: PieceOrder,
) -> BTreeSet<Vec<u64>> {
    assert!(
        matches!(piece_bytes, 8 | 16),
        "pieces of {piece_bytes} bytes"
    );
    let Some(first) = states.first() else {
        return BTreeSet::new();
    };
    assert!(
        states.iter().all(|state| state.len() == first.len()),
        "states of one entry have one length"
    );
    let piece_words = piece_bytes / 8;
    let mut values = BTreeSet::new();
    match order {
        PieceOrder::Any => combine(states, None, piece_words, &mut values),
        PieceOrder::PresentFirst => {
            for (moment, state) in states.iter().enumerate() {
                let present = &state[..piece_words.min(state.len())];
                combine(&states[moment..], Some(present), piece_words, &mut values);
            }
        }
    }
    values
}

/// Adds every combination of pieces of `states`; `first` fixes the first piece.
fn combine(
    states: &[Vec<u64>],
    first: Option<&[u64]>,
    piece_words: usize,
    values: &mut BTreeSet<Vec<u64>>,
) {
    let words = states.first().map_or(0, Vec::len);
    let mut made: Vec<Vec<u64>> = vec![Vec::new()];
    for start in (0..words).step_by(piece_words) {
        let end = (start + piece_words).min(words);
        let pieces: BTreeSet<&[u64]> = match first {
            Some(piece) if start == 0 => [piece].into(),
            _ => states.iter().map(|state| &state[start..end]).collect(),
        };
        assert!(
            made.len() * pieces.len() <= MAXIMUM_VALUES,
            "more than {MAXIMUM_VALUES} values can be fetched"
        );
        made = made
            .iter()
            .flat_map(|value| pieces.iter().map(move |piece| [value, *piece].concat()))
            .collect();
    }
    values.extend(made);
    assert!(
        values.len() <= MAXIMUM_VALUES,
        "more than {MAXIMUM_VALUES} values can be fetched"
    );
}

/// What a fetched value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not present, or a fault by the entry's own bits: requests are blocked.
    Blocked,
    /// Translates as the entry did before the update.
    Before,
    /// Translates as the entry does after the update.
    After,
    /// Translates as the entry did after another update that was complete.
    Between,
    /// A mixture: present, and neither the old entry nor the new one.
    Neither,
}

/// An entry of a table that software changes while hardware reads it, with what tells its cached
/// copies from others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Entry {
    /// One half of a scalable-mode root entry, or the low quadword of a legacy one: 8 bytes
    /// (§9.1, §9.2). The bus.
    RootHalf(u8),
    /// A legacy context entry: 16 bytes (§9.3). The device.
    LegacyContext(SourceId),
    /// A scalable-mode context entry: 32 bytes (§9.4). The device.
    ScalableContext(SourceId),
    /// A PASID-directory entry: 8 bytes (§9.5). The lowest PASID that it leads to.
    PasidDirectory(u32),
    /// A PASID-table entry: 64 bytes (§9.6). The PASID.
    Pasid(u32),
    /// An interrupt-remapping table entry: 16 bytes (§9.9, §9.10). Its index.
    Interrupt(u16),
}

impl Entry {
    /// Its length in bytes.
    pub const fn len_bytes(self) -> usize {
        match self {
            Self::RootHalf(_) => 8,
            Self::LegacyContext(_) => LegacyContextEntry::LEN_BYTES,
            Self::ScalableContext(_) => ScalableContextEntry::LEN_BYTES,
            Self::PasidDirectory(_) => PasidDirectoryEntry::LEN_BYTES,
            Self::Pasid(_) => PasidEntry::LEN_BYTES,
            Self::Interrupt(_) => 16,
        }
    }

    /// What software may find the entry fetched in: 16-byte pieces, which are whole for all but
    /// the two larger entries.
    pub const fn piece_bytes(self) -> usize {
        if self.len_bytes() < 16 { 8 } else { 16 }
    }

    /// What translation looks at: the value without ignored bits, or `None` where it blocks.
    fn meaning(self, value: &[u64]) -> Option<Vec<u64>> {
        let &q0 = value.first()?;
        if !bit(q0, 0) {
            return None;
        }
        let (used, reserved): (Vec<u64>, Vec<u64>) = match self {
            Self::RootHalf(_) => (vec![!0xffe], vec![0xffe]),
            Self::PasidDirectory(_) => (vec![!0xffc], vec![0xffc]),
            Self::LegacyContext(_) => {
                // Pass-through ignores SSPTPTR.
                let pointer = if field(q0, 3, 2) == 0b10 { 0 } else { !0xfff };
                (
                    vec![pointer | 0xf, 0xff_ff07],
                    vec![0xff0, 0xffff_ffff_ff00_0080],
                )
            }
            Self::ScalableContext(_) => (
                vec![!0x180, 0x1f_ffff, 0, 0],
                vec![0x180, !0x1f_ffff, u64::MAX, u64::MAX],
            ),
            Self::Pasid(_) => (pasid_fields(q0)?.to_vec(), PASID_RESERVED.to_vec()),
            Self::Interrupt(_) if bit(q0, 15) => (
                vec![0xffff_ffc0_00ff_c003, 0xffff_ffff_000f_ffff],
                vec![0x0000_003f_ff00_30fc, 0x0000_0000_fff0_0000],
            ),
            Self::Interrupt(_) => (
                vec![0xffff_ffff_00ff_80ff, 0xf_ffff],
                vec![0xff00_7000, !0xf_ffff],
            ),
        };
        let blocks = value
            .iter()
            .zip(reserved)
            .any(|(word, bits)| word & bits != 0);
        (!blocks).then(|| {
            value
                .iter()
                .zip(used)
                .map(|(word, bits)| word & bits)
                .collect()
        })
    }

    /// What a fetched value is, against the whole entry before and after an update.
    pub fn judge(self, value: &[u64], before: &[u64], after: &[u64]) -> Verdict {
        let Some(meaning) = self.meaning(value) else {
            return Verdict::Blocked;
        };
        if self.meaning(after).as_ref() == Some(&meaning) {
            Verdict::After
        } else if self.meaning(before).as_ref() == Some(&meaning) {
            Verdict::Before
        } else {
            Verdict::Neither
        }
    }

    /// The domain-id under which a value is cached, where the cache has that tag.
    fn domain_id(self, value: &[u64]) -> Option<u16> {
        self.meaning(value)?;
        match self {
            Self::LegacyContext(_) => Some(field(value[1], 23, 8) as u16),
            Self::Pasid(_) => Some(value[1] as u16),
            _ => None,
        }
    }

    /// Whether a descriptor invalidates every cached copy of the entry, of whichever of these
    /// domain-ids (§6.5.2.1, §6.5.2.2, §6.5.2.7). Copies of a directory entry are in the PASID
    /// cache only, under the tags of the entries behind it.
    fn is_covered_by(self, words: &[u64; 4], domain_ids: &BTreeSet<u16>) -> bool {
        let q0 = words[0];
        let kind = field(q0, 3, 0) | field(q0, 11, 9) << 4;
        let granularity = field(q0, 5, 4);
        let named = field(q0, 31, 16) as u16;
        let names_all = domain_ids.iter().all(|domain_id| *domain_id == named);
        let names_device = |device: SourceId| {
            let masked = [0u16, 4, 6, 7][field(q0, 49, 48) as usize];
            (device.as_u16() ^ field(q0, 47, 32) as u16) & !masked == 0
        };
        match (self, kind, granularity) {
            (Self::RootHalf(_) | Self::LegacyContext(_) | Self::ScalableContext(_), 1, 1) => true,
            (Self::LegacyContext(_), 1, 2) => names_all,
            (Self::LegacyContext(device), 1, 3) => names_all && names_device(device),
            // The context cache has no domain-id in scalable mode: domain granularity is global.
            (Self::ScalableContext(_), 1, 2) => true,
            (Self::ScalableContext(device), 1, 3) => names_device(device),
            (Self::PasidDirectory(_) | Self::Pasid(_), 7, 3) => true,
            (Self::Pasid(_), 7, 0) => names_all,
            (Self::Pasid(pasid), 7, 1) => names_all && field(q0, 51, 32) == u64::from(pasid),
            (Self::Interrupt(_), 4, _) if !bit(q0, 4) => true,
            (Self::Interrupt(index), 4, _) => {
                let masked = (1u64 << field(q0, 31, 27)) - 1;
                (u64::from(index) ^ field(q0, 47, 32)) & !masked == 0
            }
            _ => false,
        }
    }
}

/// Reserved bits of a PASID-table entry on a unit that has every feature.
const PASID_RESERVED: [u64; 8] = [
    0xc20,
    0x8888_8888_f87f_0000,
    0xf02,
    u64::MAX,
    0xff8,
    0xffff_ffff_ffff_0000,
    u64::MAX,
    u64::MAX,
];

/// The fields of a PASID-table entry that its PGTT uses; `None` where PGTT itself faults.
fn pasid_fields(q0: u64) -> Option<[u64; 8]> {
    let translation = field(q0, 8, 6);
    let (first, second) = match translation {
        1 => (true, false),
        2 => (false, true),
        3 => (true, true),
        4 => (false, false),
        _ => return None,
    };
    let when = |used, fields: u64| if used { fields } else { 0 };
    Some([
        // P, FPD, PGTT; AW, SSADE, SSPTPTR.
        0x1c3 | when(second, page(u64::MAX) | 0x21c),
        // DID, PGSNP, CD; PWSNP; EMTE; PAT.
        0x300_ffff
            | when(first || second, 1 << 23)
            | when(second, 1 << 26)
            | when(first, 0x7777_7777 << 32),
        // SRE; FSPM, WPE, EAFE, FSPTPTR.
        1 | when(first, page(u64::MAX) | 0x9c),
        0,
        // HPTSZ, HPTPFD, HPTPTR; HPTDID.
        page(u64::MAX) | 7,
        0xffff,
        0,
        0,
    ])
}

/// A span in which one fetch of an entry can lie, invalidations being where they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    /// What memory could show in it, in order; at least one.
    pub states: Vec<Vec<u64>>,
    /// The entry at its beginning: what hardware may still have.
    pub before: Vec<u64>,
    /// The entry at its end.
    pub after: Vec<u64>,
    /// The entry at each [`MemoryEvent::Mark`] in it: several updates may share a window.
    pub marked: Vec<Vec<u64>>,
}

impl Window {
    /// What a value that was fetched in this window is.
    pub fn judge(&self, entry: Entry, value: &[u64]) -> Verdict {
        let verdict = entry.judge(value, &self.before, &self.after);
        let is_marked = |marked| entry.judge(value, marked, marked) == Verdict::After;
        if verdict == Verdict::Neither && self.marked.iter().any(|marked| is_marked(marked)) {
            Verdict::Between
        } else {
            verdict
        }
    }

    /// The values that can be fetched in this window, and are a mixture.
    pub fn mixtures(&self, entry: Entry, order: PieceOrder) -> Vec<Vec<u64>> {
        fetched_values(&self.states, entry.piece_bytes(), order)
            .into_iter()
            .filter(|value| self.judge(entry, value) == Verdict::Neither)
            .collect()
    }
}

/// What a recorded sequence of events did to one entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryHistory {
    /// The spans between covering invalidations, in order; at least one.
    pub windows: Vec<Window>,
    /// Whether the last store to it is sure to be visible in memory.
    pub is_flushed: bool,
}

/// The stores of a log that touch an entry at `at`, in order.
pub fn stores_into(log: &[MemoryEvent], at: Hpa, len_bytes: usize) -> Vec<EntryStore> {
    log.iter()
        .filter_map(|event| store_into(event, at.as_u64(), len_bytes))
        .collect()
}

fn store_into(event: &MemoryEvent, at: u64, len_bytes: usize) -> Option<EntryStore> {
    let (address, value, width_bytes) = match *event {
        MemoryEvent::Store {
            address,
            value,
            width_bytes,
        } => (address.as_u64(), value, usize::from(width_bytes)),
        MemoryEvent::HardwareStore {
            address,
            value,
            width_bytes,
        } => (address.as_u64(), value.into(), usize::from(width_bytes)),
        _ => return None,
    };
    let past = at + len_bytes as u64;
    if address + width_bytes as u64 <= at || address >= past {
        return None;
    }
    Some(match address.checked_sub(at) {
        Some(offset) => EntryStore {
            offset: offset as usize,
            width_bytes,
            value,
        },
        // A wider store that begins in the neighbour below.
        None => {
            let skipped = (at - address) as usize;
            EntryStore {
                offset: 0,
                width_bytes: width_bytes - skipped,
                value: value >> (8 * skipped),
            }
        }
    })
}

/// An invalidation that was submitted and is not confirmed.
struct Submitted {
    /// Which event it was.
    index: usize,
    words: [u64; 4],
    cut: Cut,
}

/// A wait descriptor. It confirms what lies behind the previous wait, and with that one's fence
/// what that one confirms (§6.5.2.12).
struct Wait {
    /// Which event it was.
    index: usize,
    /// Status address and data.
    status: (u64, u32),
    is_fence: bool,
    is_complete: bool,
    /// The first event that it confirms.
    confirms_from: usize,
}

/// Where a window begins: the oldest state still visible, and the newest one.
#[derive(Clone, Copy)]
struct Cut {
    visible: usize,
    newest: usize,
}

/// Cuts what a log tells of an entry at `at` into windows.
///
/// `before` is the entry when the log was started, all of it visible; `coherent` is whether the
/// unit snoops accesses to it (`ECAP.C`). The log must have the unit's descriptors
/// ([`Memory::start_log`] records them), and a mark after each update where several of them may
/// share a window: what sets up an absent entry, for one, owes no invalidation.
///
/// # Panics
///
/// If the entry lies in more than one line.
pub fn windows(
    log: &[MemoryEvent],
    entry: Entry,
    at: Hpa,
    before: &[u64],
    coherent: bool,
) -> EntryHistory {
    let (at, len_bytes) = (at.as_u64(), entry.len_bytes());
    let line = at & !(LINE_BYTES - 1);
    assert!(
        at + len_bytes as u64 <= line + LINE_BYTES,
        "an entry lies in one line"
    );
    let mut states = vec![before.to_vec()];
    let mut submitted: Vec<Submitted> = Vec::new();
    let mut waits: Vec<Wait> = Vec::new();
    let mut begin = Cut {
        visible: 0,
        newest: 0,
    };
    let (mut flushing, mut flushed) = (0, 0);
    let mut marks = BTreeSet::new();
    let mut windows = Vec::new();
    for (index, event) in log.iter().enumerate() {
        if let Some(store) = store_into(event, at, len_bytes) {
            let mut now = states[states.len() - 1].clone();
            store.apply(&mut now);
            states.push(now);
            continue;
        }
        let newest = states.len() - 1;
        match *event {
            MemoryEvent::Flush { line: flushed_line } if flushed_line.as_u64() == line => {
                flushing = newest;
            }
            MemoryEvent::Fence => flushed = flushing,
            MemoryEvent::Mark => {
                marks.insert(newest);
            }
            MemoryEvent::Descriptor { words } if field(words[0], 3, 0) == 5 => {
                let confirms_from = match waits.last() {
                    Some(previous) if previous.is_fence => previous.confirms_from,
                    Some(previous) => previous.index,
                    None => 0,
                };
                waits.push(Wait {
                    index,
                    status: (words[1] & !3, (words[0] >> 32) as u32),
                    is_fence: bit(words[0], 6),
                    is_complete: false,
                    confirms_from,
                });
            }
            MemoryEvent::Descriptor { words } => submitted.push(Submitted {
                index,
                words,
                cut: Cut {
                    visible: if coherent { newest } else { flushed },
                    newest,
                },
            }),
            MemoryEvent::HardwareStore {
                address,
                value,
                width_bytes: 4,
            } => {
                let status = (address.as_u64(), value as u32);
                let wait = waits
                    .iter_mut()
                    .find(|wait| !wait.is_complete && wait.status == status);
                let Some(wait) = wait else {
                    continue;
                };
                wait.is_complete = true;
                let span = wait.confirms_from..wait.index;
                let domain_ids = states[begin.visible..]
                    .iter()
                    .filter_map(|state| entry.domain_id(state))
                    .collect();
                let (confirmed, open): (Vec<_>, Vec<_>) = submitted
                    .into_iter()
                    .partition(|submitted| span.contains(&submitted.index));
                submitted = open;
                let covering = confirmed
                    .iter()
                    .rev()
                    .find(|submitted| entry.is_covered_by(&submitted.words, &domain_ids));
                if let Some(covering) = covering {
                    windows.push(window(&states, &marks, begin));
                    begin = covering.cut;
                }
            }
            _ => {}
        }
    }
    windows.push(window(&states, &marks, begin));
    EntryHistory {
        windows,
        is_flushed: coherent || flushed == states.len() - 1,
    }
}

/// The window from a cut to the newest state.
fn window(states: &[Vec<u64>], marks: &BTreeSet<usize>, begin: Cut) -> Window {
    Window {
        marked: marks
            .range(begin.newest..)
            .map(|&mark| states[mark].clone())
            .collect(),
        states: states[begin.visible..].to_vec(),
        before: states[begin.newest].clone(),
        after: states[states.len() - 1].clone(),
    }
}

impl Memory {
    /// The quadwords of an entry, as the processor sees them.
    pub fn read_entry(&self, entry: Entry, at: Hpa) -> Vec<u64> {
        use vtd_nest::mem::HostMemory;
        (0..entry.len_bytes() as u64 / 8)
            .map(|index| self.read64(Hpa::new(at.as_u64() + 8 * index)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vtd_nest::mem::HostMemory;

    const AT: Hpa = Hpa::new(0x2040);
    const STATUS: u64 = 0x5000;

    /// Nested, domain-id 7, first-stage root 0x10_0000, second-stage root 0x20_0000.
    const OLD: [u64; 8] = [0x20_00c9, 0x80_0007, 0x10_0000, 0, 0, 0, 0, 0];
    /// Domain-id 9, roots 0x30_0000 and 0x40_0000.
    const NEW: [u64; 8] = [0x40_00c9, 0x80_0009, 0x30_0000, 0, 0, 0, 0, 0];
    const EMPTY: [u64; 8] = [0; 8];
    const PASID: Entry = Entry::Pasid(5);

    fn quadword(index: usize, value: u64) -> EntryStore {
        EntryStore {
            offset: 8 * index,
            width_bytes: 8,
            value: value.into(),
        }
    }

    fn in_order(order: impl IntoIterator<Item = usize>, entry: &[u64; 8]) -> Vec<EntryStore> {
        order
            .into_iter()
            .map(|index| quadword(index, entry[index]))
            .collect()
    }

    fn mixtures(before: &[u64; 8], stores: &[EntryStore], order: PieceOrder) -> usize {
        let states = states(before, stores);
        let window = Window {
            before: before.to_vec(),
            after: states[states.len() - 1].clone(),
            marked: Vec::new(),
            states,
        };
        window.mixtures(PASID, order).len()
    }

    #[test]
    fn pieces_are_read_at_all_moments_and_values_come_once() {
        // Two pieces of 8 bytes, one store each: each old or new.
        let two = states(&[0, 0], &[quadword(0, 1), quadword(1, 2)]);
        let values =
            |order| -> Vec<Vec<u64>> { fetched_values(&two, 8, order).into_iter().collect() };
        assert_eq!(
            values(PieceOrder::Any),
            [vec![0, 0], vec![0, 2], vec![1, 0], vec![1, 2]]
        );
        assert_eq!(values(PieceOrder::PresentFirst), values(PieceOrder::Any));
        // The other way round, what follows the first piece is never older.
        let reverse = states(&[0, 0], &[quadword(1, 2), quadword(0, 1)]);
        let seen = fetched_values(&reverse, 8, PieceOrder::PresentFirst);
        assert!(!seen.contains(&vec![1, 0]) && seen.len() == 3);
        assert!(fetched_values(&reverse, 8, PieceOrder::Any).contains(&vec![1, 0]));
        // One access: only what was there at some moment.
        let whole = fetched_values(&two, 16, PieceOrder::Any);
        assert_eq!(whole.len(), 3);
        assert!(!whole.contains(&vec![0, 2]));
        assert!(fetched_values(&[], 16, PieceOrder::Any).is_empty());
    }

    #[test]
    fn values_multiply_by_pieces() {
        let stores: Vec<_> = (0..8).map(|index| quadword(index, 1)).collect();
        let states = states(&[0; 8], &stores);
        // Four pieces, each with three contents.
        assert_eq!(fetched_values(&states, 16, PieceOrder::Any).len(), 81);
        assert_eq!(fetched_values(&states, 8, PieceOrder::Any).len(), 256);
    }

    #[test]
    fn stores_of_each_width_change_what_they_cover() {
        for (offset, width_bytes, value, expected) in [
            (4, 4, 0x1234_5678, [0x1234_5678_0000_0000, 0]),
            (9, 1, 0xab, [0, 0xab00]),
            (8, 8, 7, [0, 7]),
            (0, 16, 2 << 64 | 1, [1, 2]),
            (8, 16, 2 << 64 | 1, [0, 1]),
        ] {
            let mut words = [0, 0];
            let store = EntryStore {
                offset,
                width_bytes,
                value,
            };
            store.apply(&mut words);
            assert_eq!(words, expected, "{store:?}");
        }
    }

    #[test]
    #[should_panic(expected = "values can be fetched")]
    fn too_many_values_are_refused() {
        let stores: Vec<_> = (0..8)
            .flat_map(|index| (1..7).map(move |value| quadword(index, value)))
            .collect();
        fetched_values(&states(&[0; 8], &stores), 8, PieceOrder::Any);
    }

    #[test]
    fn rewriting_a_present_entry_is_torn_in_any_order() {
        for order in [PieceOrder::Any, PieceOrder::PresentFirst] {
            assert!(mixtures(&OLD, &in_order(0..8, &NEW), order) > 0);
            assert!(mixtures(&OLD, &in_order((0..8).rev(), &NEW), order) > 0);
            // By 16-byte stores too: the pieces are stored at different moments.
            let wide: Vec<_> = (0..4)
                .map(|piece| EntryStore {
                    offset: 16 * piece,
                    width_bytes: 16,
                    value: u128::from(NEW[2 * piece]) | u128::from(NEW[2 * piece + 1]) << 64,
                })
                .collect();
            assert!(mixtures(&OLD, &wide, order) > 0);
        }
    }

    #[test]
    fn clearing_the_end_before_present_is_torn_and_present_first_is_not() {
        let end_first = in_order((0..8).rev(), &EMPTY);
        assert!(mixtures(&OLD, &end_first, PieceOrder::PresentFirst) > 0);
        let present = [quadword(0, 0)];
        assert_eq!(mixtures(&OLD, &present, PieceOrder::Any), 0);
        // The rest in the same window: it may be fetched before Present is.
        let at_once = in_order(0..8, &EMPTY);
        assert!(mixtures(&OLD, &at_once, PieceOrder::Any) > 0);
    }

    #[test]
    fn setting_up_is_whole_if_present_comes_last_and_is_read_first() {
        let present_last = in_order((0..8).rev(), &NEW);
        assert_eq!(mixtures(&EMPTY, &present_last, PieceOrder::PresentFirst), 0);
        // See PieceOrder::PresentFirst.
        assert!(mixtures(&EMPTY, &present_last, PieceOrder::Any) > 0);
        let present_first = in_order(0..8, &NEW);
        assert!(mixtures(&EMPTY, &present_first, PieceOrder::PresentFirst) > 0);
    }

    #[test]
    fn one_quadword_can_be_replaced_by_one_store_and_not_by_two() {
        let whole = [quadword(2, 0x30_0000)];
        assert_eq!(mixtures(&OLD, &whole, PieceOrder::Any), 0);
        let halves = [(16, 0x7000_0000u128), (20, 3)].map(|(offset, value)| EntryStore {
            offset,
            width_bytes: 4,
            value,
        });
        assert!(mixtures(&OLD, &halves, PieceOrder::Any) > 0);
    }

    #[test]
    fn entries_of_16_bytes_are_fetched_whole_but_stored_in_halves() {
        // TT=0, roots and domain-ids differ: a 16-byte store is whole, two quadwords are not.
        let device = SourceId::from_u16(0x10);
        let (old, new) = ([0x10_0001u64, 0x702], [0x20_0001u64, 0x902]);
        for (entry, old, new) in [
            (Entry::LegacyContext(device), old, new),
            // Vector 0x31 to 0x10, vector 0x41 to 0x11; the device changes too.
            (
                Entry::Interrupt(3),
                [0x1000_0031_0001, 0x4_0010],
                [0x1100_0041_0001, 0x4_0018],
            ),
        ] {
            let one = [EntryStore {
                offset: 0,
                width_bytes: 16,
                value: u128::from(new[0]) | u128::from(new[1]) << 64,
            }];
            let two = [quadword(1, new[1]), quadword(0, new[0])];
            for (stores, torn) in [(&one[..], false), (&two[..], true)] {
                let states = states(&old, stores);
                let window = Window {
                    states,
                    before: old.to_vec(),
                    after: new.to_vec(),
                    marked: Vec::new(),
                };
                let found = !window.mixtures(entry, PieceOrder::Any).is_empty();
                assert_eq!(found, torn, "{entry:?} {stores:?}");
            }
        }
    }

    #[test]
    fn verdicts_follow_what_translation_looks_at() {
        let device = SourceId::from_u16(0x10);
        let first = [0x41, 7, 0x10_0000, 0, 0, 0, 0, 0];
        let pass = [0x101, 7, 0, 0, 0, 0, 0, 0];
        let with = |base: [u64; 8], index: usize, bits: u64| {
            let mut entry = base;
            entry[index] ^= bits;
            entry.to_vec()
        };
        use Verdict::*;
        let pasid_cases = [
            (with(OLD, 0, 1), OLD, Blocked),
            (with(OLD, 0, 1 << 5), OLD, Blocked),
            (with(OLD, 6, 1), OLD, Blocked),
            // PGTT 7.
            (with(OLD, 0, 1 << 8), OLD, Blocked),
            (with(OLD, 2, 1 << 12), OLD, Neither),
            (with(OLD, 1, 1), OLD, Neither),
            (with(OLD, 1, 1 << 23), OLD, Neither),
            (with(OLD, 0, 1 << 9), OLD, Neither),
            // Ignored: bits 134:133, and what PGTT leaves out.
            (with(OLD, 2, 0x60), OLD, Before),
            (with(first, 0, 0x9000_021c), first, Before),
            (with(first, 1, 1 << 26), first, Before),
            (with(first, 1, 1 << 32), first, Neither),
            (with(pass, 2, 0x10_001c), pass, Before),
            (with(pass, 2, 1), pass, Neither),
        ];
        for (value, before, expected) in pasid_cases {
            assert_eq!(PASID.judge(&value, &before, &EMPTY), expected, "{value:x?}");
        }
        assert_eq!(PASID.judge(&NEW, &OLD, &NEW), After);
        let cases: [(Entry, &[u64], &[u64], Verdict); 12] = [
            (Entry::RootHalf(1), &[0x1001], &[0x1001], Before),
            (Entry::RootHalf(1), &[0x2001], &[0x1001], Neither),
            (Entry::RootHalf(1), &[0x1003], &[0x1001], Blocked),
            (Entry::PasidDirectory(0), &[0x1003], &[0x1001], Neither),
            (Entry::PasidDirectory(0), &[0x1005], &[0x1001], Blocked),
            (
                Entry::ScalableContext(device),
                &[0x1001, 0, 0, 0],
                &[0x1009, 0, 0, 0],
                Neither,
            ),
            (
                Entry::ScalableContext(device),
                &[0x1001, 0, 1, 0],
                &[0x1001, 0, 0, 0],
                Blocked,
            ),
            // Pass-through: the pointer is ignored, and AVAIL of q1.
            (
                Entry::LegacyContext(device),
                &[0x9009, 0x77a],
                &[9, 0x702],
                Before,
            ),
            (
                Entry::LegacyContext(device),
                &[0x9001, 0x702],
                &[1, 0x702],
                Neither,
            ),
            // AVAIL of an interrupt entry; then the vector; then SVT.
            (
                Entry::Interrupt(0),
                &[0x31_0f01, 0],
                &[0x31_0001, 0],
                Before,
            ),
            (
                Entry::Interrupt(0),
                &[0x32_0001, 0],
                &[0x31_0001, 0],
                Neither,
            ),
            (
                Entry::Interrupt(0),
                &[0x31_8001, 0x4_0000],
                &[0x31_8001, 0],
                Neither,
            ),
        ];
        for (entry, value, before, expected) in cases {
            assert_eq!(
                entry.judge(value, before, &[]),
                expected,
                "{entry:?} {value:x?}"
            );
        }
    }

    /// A log made by hand, of stores and descriptors.
    struct Script(Vec<MemoryEvent>);

    impl Script {
        fn put(&mut self, index: u64, value: u64) {
            self.0.push(MemoryEvent::Store {
                address: Hpa::new(AT.as_u64() + 8 * index),
                value: value.into(),
                width_bytes: 8,
            });
        }

        fn flush(&mut self) {
            self.0.push(MemoryEvent::Flush { line: AT });
            self.0.push(MemoryEvent::Fence);
        }

        fn submit(&mut self, q0: u64, cookie: u32) {
            let wait = [0x25 | u64::from(cookie) << 32, STATUS, 0, 0];
            for words in [[q0, 0, 0, 0], wait] {
                self.0.push(MemoryEvent::Descriptor { words });
            }
        }

        fn complete(&mut self, cookie: u32) {
            self.0.push(MemoryEvent::HardwareStore {
                address: Hpa::new(STATUS),
                value: cookie.into(),
                width_bytes: 4,
            });
        }

        /// Withdraw, invalidate, clear, publish another entry.
        fn replace(&mut self, q0: u64, waits: bool, flushes: bool) {
            self.put(0, 0);
            if flushes {
                self.flush();
            }
            self.submit(q0, 1);
            if waits {
                self.complete(1);
            }
            for (index, value) in NEW.iter().enumerate().skip(1) {
                self.put(index as u64, *value);
            }
            self.flush();
            self.put(0, NEW[0]);
            self.flush();
            if !waits {
                self.complete(1);
            }
        }
    }

    #[test]
    fn a_replacement_is_whole_only_behind_a_covering_confirmed_invalidation() {
        // PASID-selective with domain-id 7 and PASID 5; others cover something else.
        let selective = |domain: u64, pasid: u64| 0x17 | domain << 16 | pasid << 32;
        for (q0, waits, flushes, coherent, torn) in [
            (selective(7, 5), true, true, true, false),
            (selective(7, 5), true, true, false, false),
            (0x07 | 7 << 16, true, true, true, false),
            (0x37, true, true, true, false),
            (selective(9, 5), true, true, true, true),
            (selective(7, 6), true, true, true, true),
            (0x12, true, true, true, true),
            // Not waited for.
            (selective(7, 5), false, true, true, true),
            // Not flushed before the invalidation: hardware may read the old entry again.
            (selective(7, 5), true, false, true, false),
            (selective(7, 5), true, false, false, true),
        ] {
            let mut script = Script(Vec::new());
            script.replace(q0, waits, flushes);
            let history = windows(&script.0, PASID, AT, &OLD, coherent);
            assert!(history.is_flushed);
            let found = history
                .windows
                .iter()
                .any(|window| !window.mixtures(PASID, PieceOrder::PresentFirst).is_empty());
            assert_eq!(found, torn, "{q0:x} {waits} {flushes} {coherent}");
        }
    }

    #[test]
    fn a_wait_confirms_what_lies_behind_the_previous_wait() {
        // Between the invalidation and the wait that completes: nothing, a wait, a wait with FN.
        for (between, torn) in [(None, false), (Some(0x25), true), (Some(0x65), false)] {
            let mut script = Script(Vec::new());
            script.put(0, 0);
            let wait = |q0| MemoryEvent::Descriptor {
                words: [q0, STATUS, 0, 0],
            };
            script.0.push(MemoryEvent::Descriptor {
                words: [0x37, 0, 0, 0],
            });
            script.0.extend(between.map(wait));
            script.0.push(wait(0x25 | 1 << 32));
            script.complete(1);
            for index in [2, 1, 0] {
                script.put(index, NEW[index as usize]);
            }
            let history = windows(&script.0, PASID, AT, &OLD, true);
            let found = history
                .windows
                .iter()
                .any(|window| !window.mixtures(PASID, PieceOrder::PresentFirst).is_empty());
            assert_eq!(found, torn, "{between:?}");
        }
    }

    #[test]
    fn complete_updates_that_share_a_window_are_no_mixtures() {
        for (mark, mixtures) in [(true, 0), (false, 1)] {
            let mut script = Script(Vec::new());
            for (index, value) in NEW.iter().enumerate().rev() {
                script.put(index as u64, *value);
            }
            if mark {
                script.0.push(MemoryEvent::Mark);
            }
            script.put(0, 0);
            let history = windows(&script.0, PASID, AT, &EMPTY, true);
            let [window] = &history.windows[..] else {
                panic!("one window: {history:?}");
            };
            let found = window.mixtures(PASID, PieceOrder::PresentFirst);
            assert_eq!(found.len(), mixtures);
            assert_eq!(window.judge(PASID, &NEW) == Verdict::Between, mark);
        }
    }

    #[test]
    fn what_was_never_flushed_is_told() {
        let mut script = Script(Vec::new());
        script.put(0, 0);
        assert!(!windows(&script.0, PASID, AT, &OLD, false).is_flushed);
        assert!(windows(&script.0, PASID, AT, &OLD, true).is_flushed);
        script.0.push(MemoryEvent::Flush { line: AT });
        assert!(!windows(&script.0, PASID, AT, &OLD, false).is_flushed);
        script.0.push(MemoryEvent::Fence);
        assert!(windows(&script.0, PASID, AT, &OLD, false).is_flushed);
    }

    #[test]
    fn descriptors_cover_the_entries_that_the_tables_say() {
        let device = SourceId::from_u16(0x12);
        let none = BTreeSet::new();
        let seven = BTreeSet::from([7]);
        let device_selective = |id: u64, mask: u64| 0x31 | 7 << 16 | id << 32 | mask << 48;
        let (root, legacy) = (Entry::RootHalf(0), Entry::LegacyContext(device));
        let (scalable, directory) = (Entry::ScalableContext(device), Entry::PasidDirectory(0));
        let interrupt = Entry::Interrupt(0x25);
        for (entry, q0, domain_ids, expected) in [
            (root, 0x11, &none, true),
            (root, device_selective(0x12, 0), &none, false),
            (legacy, 0x21 | 7 << 16, &seven, true),
            (legacy, 0x21 | 8 << 16, &seven, false),
            (legacy, device_selective(0x12, 0), &seven, true),
            (scalable, 0x21 | 8 << 16, &none, true),
            (scalable, device_selective(0x12, 0), &none, true),
            (scalable, device_selective(0x10, 0), &none, false),
            // Functions 0, 2, 4 and 6 by mask 2; all of the device by 3.
            (scalable, device_selective(0x16, 2), &none, true),
            (scalable, device_selective(0x11, 2), &none, false),
            (scalable, device_selective(0x17, 3), &none, true),
            (scalable, 0x37, &none, false),
            (directory, 0x37, &none, true),
            (directory, 0x07, &none, false),
            (interrupt, 0x04, &none, true),
            (interrupt, 0x14 | 0x25 << 32, &none, true),
            (interrupt, 0x14 | 0x24 << 32, &none, false),
            (interrupt, 0x14 | 0x20 << 32 | 3 << 27, &none, true),
        ] {
            let covered = entry.is_covered_by(&[q0, 0, 0, 0], domain_ids);
            assert_eq!(covered, expected, "{entry:?} {q0:#x}");
        }
    }

    #[test]
    fn the_log_of_memory_gives_an_entry_s_stores() {
        let memory = Memory::new(0x10000);
        memory.start_log();
        memory.write64(AT, 1);
        memory.write128(Hpa::new(AT.as_u64() + 16), 3 << 64 | 2);
        memory.write32(Hpa::new(AT.as_u64() + 60), 4);
        memory.write64(Hpa::new(AT.as_u64() + 64), 5);
        memory.write64(Hpa::new(AT.as_u64() - 8), 6);
        memory.fetch_and64(AT, 0);
        let log = memory.take_log();
        let expected = [(0, 8, 1), (16, 16, 3 << 64 | 2), (60, 4, 4), (0, 8, 0)];
        assert_eq!(
            stores_into(&log, AT, 64),
            expected.map(|(offset, width_bytes, value)| EntryStore {
                offset,
                width_bytes,
                value
            })
        );
        // The upper half of a 16-byte store, for the 8 bytes that it ends in.
        let upper = stores_into(&log, Hpa::new(AT.as_u64() + 24), 8);
        assert_eq!(
            upper,
            [EntryStore {
                offset: 0,
                width_bytes: 8,
                value: 3
            }]
        );
        let states = states(&[0; 8], &stores_into(&log, AT, 64));
        assert_eq!(states[states.len() - 1], memory.read_entry(PASID, AT));
    }
}
