//! What software wrote: domains with page tables, devices with their structures.
//!
//! Everything here is bookkeeping of the driver's side. Whether an access is allowed is for the
//! two units to say.

use std::collections::BTreeMap;

use crate::configuration::Unit;
use crate::layout::{NOWHERE, TABLES, TABLES_END};
use crate::program::{Domain, Flaw, Kind, Mode};

/// Bit 0 of all structures but second-stage entries.
pub(crate) const PRESENT: u64 = 1;
/// FPD in context, directory and PASID-table entries.
pub(crate) const FAULT_DISABLE: u64 = 1 << 1;
/// PS in both stages.
pub(crate) const PAGE_SIZE: u64 = 1 << 7;
/// A in the first stage.
pub(crate) const FIRST_ACCESSED: u64 = 1 << 5;
/// D in the first stage.
pub(crate) const FIRST_DIRTY: u64 = 1 << 6;

/// log2 of what an entry of a level maps.
pub(crate) const fn order(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

/// Frames for tables, handed out in order; freed ones again, last first.
#[derive(Debug)]
pub(crate) struct Frames {
    next: u64,
    free: Vec<u64>,
}

impl Frames {
    fn take(&mut self) -> u64 {
        self.free.pop().unwrap_or_else(|| {
            let frame = self.next;
            assert!(frame < TABLES_END, "programs are not that long");
            self.next += 0x1000;
            frame
        })
    }
}

/// A page table as software knows it.
#[derive(Debug)]
pub(crate) struct Table {
    /// Where it is.
    pub(crate) at: u64,
    entries: BTreeMap<u16, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    word: u64,
    /// The table that the entry leads to, even while the word says otherwise.
    below: Option<Table>,
}

impl Table {
    fn new(frames: &mut Frames) -> Self {
        Self {
            at: frames.take(),
            entries: BTreeMap::new(),
        }
    }

    /// Every entry that was ever written, with the level: place and word.
    fn all(&self, level: u8, into: &mut Vec<(u8, u64, u64)>) {
        for (index, entry) in &self.entries {
            into.push((level, self.at + 8 * u64::from(*index), entry.word));
            if let Some(below) = &entry.below {
                below.all(level - 1, into);
            }
        }
    }

    /// Gives the frames of this table and all below back; the stores that empty them.
    fn release(self, frames: &mut Frames, stores: &mut Vec<(u64, u64)>) {
        for (index, entry) in self.entries {
            stores.push((self.at + 8 * u64::from(index), 0));
            if let Some(below) = entry.below {
                below.release(frames, stores);
            }
        }
        frames.free.push(self.at);
    }
}

/// An entry on the way of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PathEntry {
    /// The level.
    pub(crate) level: u8,
    /// Where it is.
    pub(crate) at: u64,
    /// As software wrote it.
    pub(crate) word: u64,
}

/// What a change of page tables was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    /// The level of the highest entry that changed.
    pub(crate) level: u8,
    /// That entry was present before.
    pub(crate) was_present: bool,
    /// Only a leaf changed. What was absent above the lowest level was none.
    pub(crate) leaf_only: bool,
}

/// A domain as it is now.
#[derive(Debug)]
pub(crate) struct DomainState {
    /// What it is.
    pub(crate) plan: Domain,
    /// The domain-id now.
    pub(crate) domain_id: u16,
    /// The top-level table.
    pub(crate) root: Option<Table>,
}

impl DomainState {
    fn is_present(&self, word: u64) -> bool {
        match self.plan.kind {
            Kind::First => word & PRESENT != 0,
            _ => word & 3 != 0,
        }
    }

    /// Bits of rights in an entry: bit 0 read, 1 write, 2 user.
    pub(crate) fn rights(&self, rights: u8) -> u64 {
        match self.plan.kind {
            Kind::First => PRESENT | u64::from(rights & 6),
            _ => u64::from(rights & 3),
        }
    }

    /// The entries on the way of an address, down to the first that leads nowhere; none for an
    /// address that the tables cannot have.
    pub(crate) fn path(&self, address: u64) -> Vec<PathEntry> {
        let mut path = Vec::new();
        if !may_hold(&self.plan, address) {
            return path;
        }
        let (mut level, mut table) = (self.plan.levels, self.root.as_ref());
        while let Some(this) = table {
            let index = (address >> order(level) & 0x1ff) as u16;
            let entry = this.entries.get(&index);
            let word = entry.map_or(0, |entry| entry.word);
            path.push(PathEntry {
                level,
                at: this.at + 8 * u64::from(index),
                word,
            });
            let is_leaf = level == 1 || word & PAGE_SIZE != 0;
            if is_leaf || !self.is_present(word) || word & !0xfff & ((1 << 52) - 1) == NOWHERE {
                break;
            }
            level -= 1;
            table = entry.and_then(|entry| entry.below.as_ref());
        }
        path
    }

    /// Every entry ever written.
    pub(crate) fn entries(&self) -> Vec<(u8, u64, u64)> {
        let mut all = Vec::new();
        if let Some(root) = &self.root {
            root.all(self.plan.levels, &mut all);
        }
        all
    }
}

/// A device as it is now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DeviceState {
    /// Its domain.
    pub(crate) domain: Option<usize>,
    /// FPD: bit 0 context, 1 directory, 2 PASID-table entry.
    pub(crate) fault_disable: u8,
    /// What is wrong.
    pub(crate) flaw: Option<Flaw>,
}

/// A structure above page tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Structure {
    /// Shared by both devices in legacy mode.
    Root,
    Context,
    Directory,
    Pasid,
}

/// Where the structures of a device are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    pub(crate) root: u64,
    pub(crate) context: u64,
    pub(crate) directory: u64,
    pub(crate) pasid: u64,
}

/// All that software wrote.
#[derive(Debug)]
pub(crate) struct Tables {
    /// The mode that the root table address says.
    pub(crate) mode: Mode,
    /// The domains.
    pub(crate) domains: Vec<DomainState>,
    /// The devices.
    pub(crate) devices: [DeviceState; 2],
    /// Root tables, of legacy and of scalable mode.
    roots: [u64; 2],
    frames: Frames,
    /// Words of structures as they are in memory, and bits that only QEMU's unit sees.
    written: BTreeMap<u64, (u64, u64)>,
    /// Frames of structures: legacy context table; context tables, directories and PASID tables.
    legacy_contexts: u64,
    contexts: [u64; 2],
    directories: [u64; 2],
    pasids: [u64; 2],
}

/// AW for 4 levels.
const FOUR_LEVELS: u64 = 2 << 2;

/// Domain-ids from here on are of devices whose entries are unlike others of their domain.
const OWN_DOMAIN_IDS: u16 = 1 << 14;

/// Source-ids without the bus, which is 0.
const FUNCTIONS: [u64; 2] = [0x10, 0x88];

impl Tables {
    /// Tables of a program, none of them written.
    pub(crate) fn new(domains: &[Domain], mode: Mode) -> Self {
        let mut frames = Frames {
            next: TABLES,
            free: Vec::new(),
        };
        let mut frame = || frames.take();
        let roots = [frame(), frame()];
        let legacy_contexts = frame();
        let contexts = [frame(), frame()];
        let directories = [frame(), frame()];
        let pasids = [frame(), frame()];
        let domains = domains
            .iter()
            .map(|plan| DomainState {
                plan: *plan,
                domain_id: plan.domain_id,
                root: (plan.kind != Kind::PassThrough).then(|| Table::new(&mut frames)),
            })
            .collect();
        Self {
            mode,
            domains,
            devices: Default::default(),
            roots,
            frames,
            written: BTreeMap::new(),
            legacy_contexts,
            contexts,
            directories,
            pasids,
        }
    }

    /// The root table of the mode.
    pub(crate) fn root_table(&self) -> u64 {
        self.roots[usize::from(self.mode == Mode::Scalable)]
    }

    /// Puts the root table of the mode into a new frame.
    pub(crate) fn move_root_table(&mut self) {
        self.roots[usize::from(self.mode == Mode::Scalable)] = self.frames.take();
    }

    /// The domain of a device, if the mode allows its kind.
    pub(crate) fn domain_of(&self, device: usize) -> Option<&DomainState> {
        let domain = &self.domains[self.devices[device].domain?];
        let usable = self.mode == Mode::Scalable || domain.plan.kind != Kind::First;
        usable.then_some(domain)
    }

    /// The domain-id and kind that the entry of a device has.
    pub(crate) fn tag_of(&self, device: usize) -> Option<(u16, Kind)> {
        let domain = self.domain_of(device)?;
        // Entries that share a domain-id must agree in these fields (§6.2.3.1).
        let differs = matches!(
            self.devices[device].flaw,
            Some(
                Flaw::TableNowhere
                    | Flaw::TranslationType(_)
                    | Flaw::Width(_)
                    | Flaw::PagingMode(_)
            )
        );
        let own = if differs { OWN_DOMAIN_IDS << device } else { 0 };
        Some((domain.domain_id | own, domain.plan.kind))
    }

    /// Where the structures of a device are in the mode.
    pub(crate) fn places(&self, device: usize) -> Places {
        let function = FUNCTIONS[device];
        match self.mode {
            Mode::Legacy => Places {
                root: self.root_table(),
                context: self.legacy_contexts + 16 * function,
                directory: 0,
                pasid: 0,
            },
            Mode::Scalable => Places {
                root: self.root_table() + 8 * (function >> 7),
                context: self.contexts[device] + 32 * (function & 0x7f),
                directory: self.directories[device],
                pasid: self.pasids[device],
            },
        }
    }

    /// Writes the structures of the mode as they are to be: the stores, and what changed.
    pub(crate) fn update(
        &mut self,
        unit: &Unit,
        stores: &mut Vec<(u64, u64)>,
    ) -> Vec<(Structure, usize)> {
        let mut changed = Vec::new();
        for (structure, device, at, word) in self.wanted(unit) {
            let qemu_bits = self.qemu_bits(at);
            let written = (word, qemu_bits);
            if self.written.get(&at).copied().unwrap_or_default() != written {
                self.written.insert(at, written);
                stores.push((at, word));
                changed.push((structure, device));
            }
        }
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    /// Bits that a word of a structure has for QEMU's unit only.
    ///
    /// It takes the width of first-stage addresses from AW, which is not for that, and reserved
    /// where there is no second stage (§9.6). Linux sets it always.
    pub(crate) fn qemu_bits(&self, at: u64) -> u64 {
        let needs_width = (0..2).any(|device| {
            self.mode == Mode::Scalable
                && self.places(device).pasid == at
                && self.devices[device].flaw != Some(Flaw::WidthMissing)
                && self
                    .domain_of(device)
                    .is_some_and(|domain| domain.plan.kind == Kind::First)
        });
        if needs_width { FOUR_LEVELS } else { 0 }
    }

    /// The word of a structure as software wrote it.
    pub(crate) fn word(&self, at: u64) -> u64 {
        self.written.get(&at).map_or(0, |(word, _)| *word)
    }

    /// Every word of the mode's structures.
    fn wanted(&self, unit: &Unit) -> Vec<(Structure, usize, u64, u64)> {
        let mut words = Vec::new();
        let flawed = |flaw| self.devices.iter().any(|device| device.flaw == Some(flaw));
        for (device, state) in self.devices.iter().enumerate() {
            let places = self.places(device);
            let has = |flaw| state.flaw == Some(flaw);
            let pointer =
                |table: u64, nowhere: Flaw| PRESENT | if has(nowhere) { NOWHERE } else { table };
            let disable = |bit: u8| u64::from(state.fault_disable >> bit & 1) * FAULT_DISABLE;
            match self.mode {
                Mode::Legacy => {
                    // Both devices share the entry.
                    let root = if flawed(Flaw::RootAbsent) {
                        0
                    } else if flawed(Flaw::RootNowhere) {
                        NOWHERE | PRESENT
                    } else {
                        self.legacy_contexts | PRESENT
                    };
                    words.push((Structure::Root, device, places.root, root));
                    let [q0, q1] = self.legacy_context(unit, device);
                    let q0 = if has(Flaw::ContextAbsent) {
                        q0 & !PRESENT
                    } else {
                        q0
                    };
                    words.push((Structure::Context, device, places.context, q0 | disable(0)));
                    words.push((Structure::Context, device, places.context + 8, q1));
                }
                Mode::Scalable => {
                    let root = if has(Flaw::RootAbsent) {
                        0
                    } else {
                        pointer(self.contexts[device], Flaw::RootNowhere)
                    };
                    words.push((Structure::Root, device, places.root, root));
                    let context = if has(Flaw::ContextAbsent) {
                        0
                    } else {
                        pointer(self.directories[device], Flaw::ContextNowhere)
                    };
                    words.push((
                        Structure::Context,
                        device,
                        places.context,
                        context | disable(0),
                    ));
                    let directory = if has(Flaw::DirectoryAbsent) {
                        0
                    } else {
                        pointer(self.pasids[device], Flaw::DirectoryNowhere)
                    };
                    words.push((
                        Structure::Directory,
                        device,
                        places.directory,
                        directory | disable(1),
                    ));
                    let [q0, q1, q2] = self.pasid_entry(unit, device);
                    words.push((Structure::Pasid, device, places.pasid, q0 | disable(2)));
                    words.push((Structure::Pasid, device, places.pasid + 8, q1));
                    words.push((Structure::Pasid, device, places.pasid + 16, q2));
                }
            }
        }
        words
    }

    fn legacy_context(&self, unit: &Unit, device: usize) -> [u64; 2] {
        let (Some(domain), Some((domain_id, _))) = (self.domain_of(device), self.tag_of(device))
        else {
            return [0; 2];
        };
        let flaw = self.devices[device].flaw;
        let (mut translation_type, mut width, mut root) = match &domain.root {
            Some(root) => (0, u64::from(domain.plan.levels - 2), root.at),
            None => (2, unit.largest_width_field(), 0),
        };
        match flaw {
            // Not to pass-through, which is no flaw.
            Some(Flaw::TranslationType(value)) if value & 3 != 2 => {
                translation_type = u64::from(value & 3);
            }
            Some(Flaw::Width(value)) => width = u64::from(value & 7),
            Some(Flaw::TableNowhere) if translation_type == 0 => root = NOWHERE,
            _ => {}
        }
        [
            PRESENT | translation_type << 2 | root,
            width | u64::from(domain_id) << 8,
        ]
    }

    fn pasid_entry(&self, unit: &Unit, device: usize) -> [u64; 3] {
        let (Some(domain), Some((domain_id, _))) = (self.domain_of(device), self.tag_of(device))
        else {
            return [0; 3];
        };
        let flaw = self.devices[device].flaw;
        let root = match (&domain.root, flaw) {
            (Some(_), Some(Flaw::TableNowhere)) => NOWHERE,
            (Some(root), _) => root.at,
            (None, _) => 0,
        };
        let (translation_type, mut q0, mut q2) = match domain.plan.kind {
            Kind::First => (1, 0, root),
            Kind::Second => (2, u64::from(domain.plan.levels - 2) << 2 | root, 0),
            Kind::PassThrough => (4, 0, 0),
        };
        let mut translation_type: u64 = translation_type;
        match flaw {
            // Not to pass-through, which is no flaw, nor to a first stage that has no table.
            Some(Flaw::TranslationType(value))
                if value & 7 != 4 && !(value & 7 == 1 && unit.first_stage()) =>
            {
                translation_type = u64::from(value & 7);
            }
            Some(Flaw::Width(value)) if domain.plan.kind == Kind::Second => {
                q0 = q0 & !0x1c | u64::from(value & 7) << 2;
            }
            Some(Flaw::PagingMode(value)) if domain.plan.kind == Kind::First => {
                q2 |= u64::from(value & 3) << 2;
            }
            _ => {}
        }
        q0 |= PRESENT | translation_type << 6;
        let snooped = if unit.snooped_walks() { 1 << 23 } else { 0 };
        [q0, u64::from(domain_id) | snooped, q2]
    }

    /// Writes an entry for an address at a level; tables above are made, tables below are given
    /// back. What changed, if anything did; `None` for an address that the tables cannot have.
    pub(crate) fn set_entry(
        &mut self,
        domain: usize,
        address: u64,
        level: u8,
        word: u64,
        snooped: bool,
        stores: &mut Vec<(u64, u64)>,
    ) -> Option<Change> {
        let state = &mut self.domains[domain];
        let levels = state.plan.levels;
        if !may_hold(&state.plan, address) {
            return None;
        }
        let mut root = state.root.take()?;
        let mut change: Option<Change> = None;
        let mut table = &mut root;
        let mut at_level = levels;
        loop {
            let index = (address >> order(at_level) & 0x1ff) as u16;
            let place = table.at + 8 * u64::from(index);
            let entry = table.entries.entry(index).or_default();
            let old = entry.word;
            let was_present = state.is_present(old);
            let was_leaf = at_level == 1 || old & PAGE_SIZE != 0;
            if at_level == level {
                if let Some(below) = entry.below.take() {
                    below.release(&mut self.frames, stores);
                }
                if old != word {
                    entry.word = word;
                    stores.push((place, word));
                    change.get_or_insert(Change {
                        level,
                        was_present,
                        leaf_only: level == 1 || was_present && was_leaf,
                    });
                }
                break;
            }
            let leads_on = was_present
                && !was_leaf
                && entry
                    .below
                    .as_ref()
                    .is_some_and(|below| old & !0xfff == below.at);
            if !leads_on {
                let below = entry
                    .below
                    .get_or_insert_with(|| Table::new(&mut self.frames));
                let link = link(state.plan.kind, below.at, snooped);
                entry.word = link;
                stores.push((place, link));
                change.get_or_insert(Change {
                    level: at_level,
                    was_present,
                    leaf_only: false,
                });
            }
            table = entry.below.as_mut()?;
            at_level -= 1;
        }
        state.root = Some(root);
        change
    }

    /// Changes the word of an entry above the leaf that exists already; what it leads to is kept.
    pub(crate) fn set_upper(
        &mut self,
        domain: usize,
        address: u64,
        level: u8,
        stores: &mut Vec<(u64, u64)>,
        word: impl FnOnce(&DomainState, u64) -> u64,
    ) -> Option<Change> {
        let place = self.domains[domain]
            .path(address)
            .into_iter()
            .find(|entry| entry.level == level)?;
        let state = &self.domains[domain];
        let is_leaf = place.word & PAGE_SIZE != 0;
        if is_leaf || !state.is_present(place.word) {
            return None;
        }
        let new = word(state, place.word);
        if new == place.word {
            return None;
        }
        let state = &mut self.domains[domain];
        let mut at_level = state.plan.levels;
        let mut table = state.root.as_mut()?;
        while at_level > level {
            let index = (address >> order(at_level) & 0x1ff) as u16;
            table = table.entries.get_mut(&index)?.below.as_mut()?;
            at_level -= 1;
        }
        let index = (address >> order(level) & 0x1ff) as u16;
        table.entries.get_mut(&index)?.word = new;
        stores.push((place.at, new));
        Some(Change {
            level,
            was_present: true,
            leaf_only: false,
        })
    }

    /// Gives a domain a new top-level table, empty or with the old one's entries.
    pub(crate) fn replace_root(
        &mut self,
        domain: usize,
        copied: bool,
        stores: &mut Vec<(u64, u64)>,
    ) {
        let state = &mut self.domains[domain];
        let Some(mut old) = state.root.take() else {
            return;
        };
        let mut new = Table::new(&mut self.frames);
        if copied {
            for (index, entry) in std::mem::take(&mut old.entries) {
                stores.push((new.at + 8 * u64::from(index), entry.word));
                stores.push((old.at + 8 * u64::from(index), 0));
                new.entries.insert(index, entry);
            }
        }
        old.release(&mut self.frames, stores);
        state.root = Some(new);
    }
}

/// An entry above the leaf with all rights.
fn link(kind: Kind, table: u64, snooped: bool) -> u64 {
    match kind {
        // Walks that are not snooped can set no accessed bit.
        Kind::First => table | 7 | if snooped { 0 } else { FIRST_ACCESSED },
        _ => table | 3,
    }
}

/// Whether the tables of a domain have entries for an address.
fn may_hold(plan: &Domain, address: u64) -> bool {
    let bits = u32::from(plan.levels) * 9 + 12;
    match plan.kind {
        Kind::First => {
            let upper = address >> (bits - 1);
            upper == 0 || upper == u64::MAX >> (bits - 1)
        }
        Kind::Second => address >> bits == 0,
        Kind::PassThrough => false,
    }
}
