//! The hardware's own structures: where an entry is, and what it held after each
//! store.

use std::cell::RefCell;
use std::rc::Rc;

use vtd_nest::arch::address::Hpa;
use vtd_nest::arch::context::{LegacyContextEntry, ScalableContextEntry};
use vtd_nest::arch::id::SourceId;
use vtd_nest::arch::register::{Register64, RootTableAddress};
use vtd_nest::arch::root::RootHalf;
use vtd_nest::mem::Registers;

use super::{Guest, Lab};
use crate::bench::{Interposer, host_offset};

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Hardware reads entries of more than 16 bytes in pieces of this length (§9).
const PIECE_QUADWORDS: usize = 2;

impl Lab {
    /// Where the context entry of a device is in a physical unit's tables, if it has a table.
    pub(crate) fn context_place(&self, unit: usize, source_id: SourceId) -> Option<Hpa> {
        let registers = self.hypervisor.registers(unit)?;
        let root = registers.read64(Register64::ROOT_TABLE_ADDRESS);
        let root = RootTableAddress::from_bits(root).root::<Hpa>();
        let legacy = self.is_legacy(unit);
        let half = if legacy {
            0
        } else {
            u64::from(RootHalf::of(source_id).quadword())
        };
        let root_entry = self.host_read64(host_offset(
            root,
            16 * u64::from(source_id.bus()) + 8 * half,
        ));
        let offset = if legacy {
            16 * u64::from(LegacyContextEntry::index(source_id))
        } else {
            32 * u64::from(ScalableContextEntry::index(source_id))
        };
        (root_entry & 1 != 0).then(|| Hpa::new((root_entry & ADDRESS) + offset))
    }

    /// Where the entry of a device and PASID is in a physical unit's tables, if it has a table. In
    /// legacy mode it is the context entry.
    pub(crate) fn entry_place(&self, unit: usize, source_id: SourceId, pasid: u32) -> Option<Hpa> {
        let place = self.context_place(unit, source_id)?;
        if self.is_legacy(unit) {
            return (pasid == 0).then_some(place);
        }
        let context = self.host_read64(place);
        // PDTS: 2^(PDTS + 7) directory entries of 64 PASIDs each.
        if context & 1 == 0 || pasid >> (13 + (context >> 9 & 7)) != 0 {
            return None;
        }
        let directory = Hpa::new((context & ADDRESS) + 8 * u64::from(pasid >> 6));
        let table = self.host_read64(directory);
        (table & 1 != 0).then(|| Hpa::new((table & ADDRESS) + 64 * u64::from(pasid & 63)))
    }

    /// Remembers what an entry of `quadwords` quadwords holds after each step from now on.
    pub(crate) fn record_entry(&self, at: Hpa, quadwords: usize) -> EntryHistory {
        let history = EntryHistory {
            states: Rc::default(),
        };
        let states = history.states.clone();
        note(&self.hypervisor, at, quadwords, &states);
        self.hypervisor
            .on_step(move |hypervisor| note(hypervisor, at, quadwords, &states));
        history
    }
}

type States = Rc<RefCell<Vec<(u64, Vec<u64>)>>>;

fn note(hypervisor: &Interposer, at: Hpa, quadwords: usize, states: &States) {
    let memory = hypervisor.bench().memory();
    let words = (0..quadwords as u64).map(|index| memory.read64(host_offset(at, 8 * index)));
    let submissions = hypervisor.counts().submissions;
    states.borrow_mut().push((submissions, words.collect()));
}

/// What an entry held after each step, and how many submissions hardware had done by then.
pub(crate) struct EntryHistory {
    states: States,
}

impl EntryHistory {
    /// Everything present that hardware can take the entry for: it reads the piece with Present
    /// first, and each other piece at any later time before the next invalidation is complete.
    pub(crate) fn readable(&self) -> Vec<Vec<u64>> {
        let states = self.states.borrow();
        let mut found: Vec<Vec<u64>> = Vec::new();
        for (start, (submissions, first)) in states.iter().enumerate() {
            if first[0] & 1 == 0 {
                continue;
            }
            let window = states[start..].iter();
            let window: Vec<_> = window.take_while(|state| state.0 == *submissions).collect();
            let mut mixes = vec![first[..PIECE_QUADWORDS].to_vec()];
            for piece in 1..first.len() / PIECE_QUADWORDS {
                let words = piece * PIECE_QUADWORDS..(piece + 1) * PIECE_QUADWORDS;
                let mut values: Vec<&[u64]> = Vec::new();
                for (_, state) in &window {
                    if !values.contains(&&state[words.clone()]) {
                        values.push(&state[words.clone()]);
                    }
                }
                let longer = |mix: &Vec<u64>| {
                    let with = |value: &&[u64]| [&mix[..], value].concat();
                    values.iter().map(with).collect::<Vec<_>>()
                };
                mixes = mixes.iter().flat_map(longer).collect();
            }
            for mix in mixes {
                if !found.contains(&mix) {
                    found.push(mix);
                }
            }
        }
        found
    }

    /// Every state in order, repetitions left out.
    pub(crate) fn states(&self) -> Vec<Vec<u64>> {
        let mut states: Vec<_> = self
            .states
            .borrow()
            .iter()
            .map(|state| state.1.clone())
            .collect();
        states.dedup();
        states
    }
}

impl Guest {
    /// As [`Lab::entry_place`], of a device of the machine behind the first unit.
    #[track_caller]
    pub(crate) fn entry_place(&self, source_id: SourceId, pasid: u32) -> Hpa {
        let place = self.lab.entry_place(0, self.physical(source_id), pasid);
        place.expect("a table for the PASID")
    }
}
