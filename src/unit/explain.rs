//! What a unit's tables say of a request, step by step.
//!
//! The tables are walked as hardware walks them, through [`HostMemory`], which may be a live machine
//! or a dump of one. Nothing is changed, and what hardware has cached is not looked at: tables that
//! allow what hardware blocked tell of an invalidation that is missing.

use core::cell::Cell;
use core::fmt;

use super::fault::{access_of, pasid_of};
use super::unit::Unit;
use crate::arch::address::{Gpa, Hpa, Iova, PageSize};
use crate::arch::capability::Features;
use crate::arch::context::{LegacyContextEntry, LegacyTranslation, ScalableContextEntry};
use crate::arch::fault::FaultReason;
use crate::arch::features::TableFeatures;
use crate::arch::first_stage::FirstStageEntry;
use crate::arch::id::{Pasid, SourceId};
use crate::arch::pasid::{PasidDirectoryEntry, PasidEntry, PasidTranslation};
use crate::arch::register::{FaultRecord, Register64, RootTableAddress, TranslationTableMode};
use crate::arch::root::{LegacyRootEntry, RootHalf, ScalableRootEntry};
use crate::mem::{HostMemory, Registers};
use crate::paging::Rights;
use crate::paging::walk::{
    Access, EntrySource, FirstStageRoot, SecondStageRoot, Translation, WalkFault,
    is_interrupt_address, second_stage_leaf, walk_first_stage, walk_second_stage,
};

/// An untranslated request to be explained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExplainRequest {
    /// The requester.
    pub source_id: SourceId,
    /// The PASID, if the request carries one.
    pub pasid: Option<Pasid>,
    /// The address that the device sent.
    pub address: Iova,
    /// What it wants.
    pub access: Access,
    /// It asks for execution.
    pub execute: bool,
}

/// One entry that the walk has read, as it lies in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The root entry, of either mode (§9.1, §9.2).
    Root {
        /// Where it is.
        at: Hpa,
        /// Its quadwords, the low one first.
        quadwords: [u64; 2],
    },
    /// A legacy-mode context entry (§9.3).
    LegacyContext {
        /// Where it is.
        at: Hpa,
        /// Its quadwords, the low one first.
        quadwords: [u64; 2],
    },
    /// A scalable-mode context entry (§9.4).
    Context {
        /// Where it is.
        at: Hpa,
        /// Its quadwords, the low one first.
        quadwords: [u64; 4],
    },
    /// A PASID-directory entry (§9.5).
    Directory {
        /// The PASID.
        pasid: Pasid,
        /// Where it is.
        at: Hpa,
        /// The entry.
        entry: u64,
    },
    /// A PASID-table entry (§9.6).
    Entry {
        /// The PASID.
        pasid: Pasid,
        /// Where it is.
        at: Hpa,
        /// Its quadwords, the low one first.
        quadwords: [u64; 8],
    },
    /// A first-stage paging entry (§9.7).
    FirstStage {
        /// The level, from 1 up.
        level: u8,
        /// Where it is; of a nested table, where the second stage led.
        at: Hpa,
        /// The entry.
        entry: u64,
    },
    /// A second-stage paging entry (§9.8).
    SecondStage {
        /// The level, from 1 up.
        level: u8,
        /// The address that is being translated.
        input: u64,
        /// Where the entry is.
        at: Hpa,
        /// The entry.
        entry: u64,
    },
}

impl fmt::Display for Step {
    /// One line: what was read, where, and its value, the high quadword first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn line(f: &mut fmt::Formatter<'_>, name: &str, at: Hpa, quadwords: &[u64]) -> fmt::Result {
            write!(f, "{name} at {at}:")?;
            for quadword in quadwords.iter().rev() {
                write!(f, " {quadword:016x}")?;
            }
            Ok(())
        }
        match self {
            Self::Root { at, quadwords } => line(f, "root entry", *at, quadwords),
            Self::LegacyContext { at, quadwords } => {
                line(f, "legacy context entry", *at, quadwords)
            }
            Self::Context { at, quadwords } => line(f, "context entry", *at, quadwords),
            Self::Directory { pasid, at, entry } => {
                write!(f, "PASID {pasid} ")?;
                line(f, "directory entry", *at, &[*entry])
            }
            Self::Entry {
                pasid,
                at,
                quadwords,
            } => {
                write!(f, "PASID {pasid} ")?;
                line(f, "entry", *at, quadwords)
            }
            Self::FirstStage { level, at, entry } => {
                write!(f, "level {level} ")?;
                line(f, "first-stage entry", *at, &[*entry])
            }
            Self::SecondStage {
                level,
                input,
                at,
                entry,
            } => {
                write!(f, "level {level} ")?;
                line(f, "second-stage entry", *at, &[*entry])?;
                write!(f, " for {input:#x}")
            }
        }
    }
}

/// Where the tables lead a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The host-physical address, or the reason for which the request is blocked.
    pub result: Result<Translation<Hpa>, FaultReason>,
    /// An entry on the way disables fault processing (`FPD`): a qualified fault is not recorded.
    pub fault_processing_disabled: bool,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(translation) => write!(
                f,
                "allowed: leads to {}{}",
                translation.address,
                if translation.rights.write {
                    ""
                } else {
                    ", read-only"
                }
            ),
            Err(reason) if self.fault_processing_disabled && reason.is_qualified() => {
                write!(f, "blocked and not recorded: {reason}")
            }
            Err(reason) => write!(f, "blocked: {reason}"),
        }
    }
}

/// Explains a request by the tables below a root table address, for a unit with these features.
/// Each entry is given to `step` as it is read.
pub fn explain<M: HostMemory>(
    memory: &M,
    root: RootTableAddress,
    features: &Features,
    request: &ExplainRequest,
    step: impl FnMut(&Step),
) -> Explanation {
    let walker = Walker {
        memory,
        features,
        tables: TableFeatures::from(features),
        step: Cell::new(Some(step)),
        fault_processing_disabled: Cell::new(false),
    };
    let result = walker.walk(root, request);
    Explanation {
        result,
        fault_processing_disabled: walker.fault_processing_disabled.get(),
    }
}

impl<R: Registers> Unit<R> {
    /// The request that a fault record of this unit tells of, as far as a record goes: without what
    /// lies below the page and above the largest width.
    pub fn request_of(&self, record: &FaultRecord) -> ExplainRequest {
        ExplainRequest {
            source_id: record.source_id(),
            pasid: pasid_of(record, self.features.extended.has_pasid()),
            address: record.address(),
            access: access_of(record),
            execute: record.is_execute(),
        }
    }

    /// Explains a request by the tables that the unit walks now ([`explain`]): those below its root
    /// table address register, whoever wrote it.
    pub fn explain<M: HostMemory>(
        &self,
        memory: &M,
        request: &ExplainRequest,
        step: impl FnMut(&Step),
    ) -> Explanation {
        let root = self.registers.lock().read64(Register64::ROOT_TABLE_ADDRESS);
        let root = RootTableAddress::from_bits(root);
        explain(memory, root, &self.features, request, step)
    }
}

struct Walker<'a, M, F> {
    memory: &'a M,
    features: &'a Features,
    tables: TableFeatures,
    /// Taken out for the length of a call.
    step: Cell<Option<F>>,
    fault_processing_disabled: Cell<bool>,
}

impl<M: HostMemory, F: FnMut(&Step)> Walker<'_, M, F> {
    fn show(&self, shown: &Step) {
        if let Some(mut step) = self.step.take() {
            step(shown);
            self.step.set(Some(step));
        }
    }

    fn met_disable(&self, is_set: bool) {
        if is_set {
            self.fault_processing_disabled.set(true);
        }
    }

    fn read<const N: usize>(&self, at: Hpa) -> [u64; N] {
        core::array::from_fn(|index| {
            let offset = index as u64 * 8;
            self.memory
                .read64(Hpa::new(at.as_u64().saturating_add(offset)))
        })
    }

    fn walk(
        &self,
        root: RootTableAddress,
        request: &ExplainRequest,
    ) -> Result<Translation<Hpa>, FaultReason> {
        if request.pasid.is_none() && is_interrupt_address(request.address.as_u64()) {
            return Err(FaultReason::InterruptAddressMisused);
        }
        let extended = self.features.extended;
        match root.mode() {
            TranslationTableMode::Legacy if request.pasid.is_some() => {
                Err(FaultReason::PasidInLegacyMode)
            }
            TranslationTableMode::Legacy => self.walk_legacy(root, request),
            TranslationTableMode::Scalable if extended.has_scalable_mode() => {
                self.walk_scalable(root, request)
            }
            TranslationTableMode::AbortDma if extended.has_abort_dma_mode() => {
                Err(FaultReason::AbortDmaMode)
            }
            _ => Err(FaultReason::RootTableAddressInvalid),
        }
    }

    fn walk_legacy(
        &self,
        root: RootTableAddress,
        request: &ExplainRequest,
    ) -> Result<Translation<Hpa>, FaultReason> {
        let at = root_entry_at(root, request.source_id);
        let quadwords = self.read(at);
        self.show(&Step::Root { at, quadwords });
        let table: Hpa = LegacyRootEntry::from_quadwords(quadwords)
            .decode(&self.tables)
            .map_err(|fault| fault.reason(true))?;
        let index = u64::from(LegacyContextEntry::index(request.source_id));
        let at = Hpa::new(table.as_u64() | index << 4);
        let quadwords = self.read(at);
        self.show(&Step::LegacyContext { at, quadwords });
        let entry = LegacyContextEntry::from_quadwords(quadwords);
        self.met_disable(entry.is_fault_processing_disabled());
        let context = entry.decode(&self.tables).map_err(|fault| fault.reason())?;
        match context.translation {
            LegacyTranslation::SecondStage { root, width, .. } => {
                let table = SecondStageRoot { root, width };
                self.walk_second_stage(table, request.address.as_u64(), request.access)
                    .map_err(|fault| fault.reason_for(request.access, true))
            }
            LegacyTranslation::PassThrough { .. } => self.pass_through(request, true),
        }
    }

    fn walk_scalable(
        &self,
        root: RootTableAddress,
        request: &ExplainRequest,
    ) -> Result<Translation<Hpa>, FaultReason> {
        let at = root_entry_at(root, request.source_id);
        let quadwords = self.read(at);
        self.show(&Step::Root { at, quadwords });
        let table: Hpa = ScalableRootEntry::from_quadwords(quadwords)
            .decode(RootHalf::of(request.source_id), &self.tables)
            .map_err(|fault| fault.reason(false))?;
        let index = u64::from(ScalableContextEntry::index(request.source_id));
        let at = Hpa::new(table.as_u64() | index << 5);
        let quadwords = self.read(at);
        self.show(&Step::Context { at, quadwords });
        let entry = ScalableContextEntry::from_quadwords(quadwords);
        self.met_disable(entry.is_fault_processing_disabled());
        let context = entry
            .decode::<Hpa>(&self.tables)
            .map_err(|fault| fault.reason())?;
        let mut access = request.access;
        let pasid_bits = self.features.extended.pasid_bits().min(20);
        let pasid = match request.pasid {
            None => {
                access.privileged = context.rid_privilege;
                context.rid_pasid
            }
            Some(_) if !context.pasid_enabled => return Err(FaultReason::PasidDisabled),
            Some(pasid) if pasid.as_u32() >> pasid_bits != 0 => {
                return Err(FaultReason::PasidTooLarge);
            }
            Some(pasid) if pasid == context.rid_pasid => {
                return Err(FaultReason::PasidEqualsRidPasid);
            }
            Some(pasid) => pasid,
        };
        if !context.directory_order.contains(pasid) {
            return Err(FaultReason::PasidBeyondDirectory);
        }
        let entry = self.pasid_entry(context.pasid_directory, pasid)?;
        let valid = entry
            .decode::<Hpa>(&self.tables)
            .map_err(|fault| fault.reason())?;
        if request.execute && request.pasid.is_some() {
            return Err(FaultReason::ExecuteRequestUnsupported);
        }
        if access.privileged && !valid.supervisor_requests {
            return Err(FaultReason::SupervisorRequestDisabled);
        }
        let (first, second) = match valid.translation {
            PasidTranslation::PassThrough => return self.pass_through(request, false),
            PasidTranslation::SecondStage { root, width } => {
                let table = SecondStageRoot { root, width };
                return self
                    .walk_second_stage(table, request.address.as_u64(), access)
                    .map_err(|fault| fault.reason(false));
            }
            PasidTranslation::FirstStage {
                root,
                paging,
                write_protect,
                ..
            } => {
                let first = FirstStageRoot {
                    root: Gpa::new(root.as_u64()),
                    paging,
                    write_protect: write_protect && valid.supervisor_requests,
                };
                (first, None)
            }
            PasidTranslation::Nested {
                first_stage_root,
                paging,
                write_protect,
                second_stage_root,
                width,
                ..
            } => {
                let first = FirstStageRoot {
                    root: first_stage_root,
                    paging,
                    write_protect: write_protect && valid.supervisor_requests,
                };
                let second = SecondStageRoot {
                    root: second_stage_root,
                    width,
                };
                (first, Some(second))
            }
        };
        let source = FirstStageSource {
            walker: self,
            second,
            top: first.paging.levels(),
            level: Cell::new(first.paging.levels()),
            denied: Cell::new(None),
            last: Cell::new(None),
            unset: Cell::new(None),
        };
        let found = walk_first_stage(&source, first, &self.tables, request.address, access)
            .map_err(|fault| source.denied.get().unwrap_or(fault.reason(false)))?;
        source.check_flags(access, valid.page_walk_snoop)?;
        let Some(second) = second else {
            return Ok(Translation {
                address: Hpa::new(found.address.as_u64()),
                rights: found.rights,
                size: found.size,
            });
        };
        let outer = self
            .walk_second_stage(second, found.address.as_u64(), access)
            .map_err(in_nested)?;
        Ok(Translation {
            rights: outer.rights.intersection(found.rights),
            ..outer
        })
    }

    fn pasid_entry(&self, directory: Hpa, pasid: Pasid) -> Result<PasidEntry, FaultReason> {
        let offset = u64::from(pasid.directory_index()) * 8;
        let at = directory
            .checked_add(offset)
            .ok_or(FaultReason::PasidDirectoryUnreadable)?;
        let [entry] = self.read(at);
        self.show(&Step::Directory { pasid, at, entry });
        let entry = PasidDirectoryEntry::from_u64(entry);
        self.met_disable(entry.is_fault_processing_disabled());
        let table: Hpa = entry.decode(&self.tables).map_err(|fault| fault.reason())?;
        let at = Hpa::new(table.as_u64() | u64::from(pasid.table_index()) << 6);
        let quadwords = self.read(at);
        self.show(&Step::Entry {
            pasid,
            at,
            quadwords,
        });
        let entry = PasidEntry::from_quadwords(quadwords);
        self.met_disable(entry.is_fault_processing_disabled());
        Ok(entry)
    }

    fn pass_through(
        &self,
        request: &ExplainRequest,
        legacy: bool,
    ) -> Result<Translation<Hpa>, FaultReason> {
        let address = request.address.as_u64();
        if !request.address.fits(self.features.host_address_width) {
            return Err(if legacy {
                FaultReason::LegacyAddressTooLarge
            } else {
                FaultReason::AddressBeyondHostWidth
            });
        }
        if is_interrupt_address(address) {
            return Err(FaultReason::InterruptAddress);
        }
        Ok(Translation {
            address: Hpa::new(address),
            rights: Rights::READ_WRITE,
            size: PageSize::Size4KiB,
        })
    }

    fn second_stage_source(
        &self,
        table: SecondStageRoot<Hpa>,
        input: u64,
    ) -> SecondStageSource<'_, Self> {
        SecondStageSource {
            walker: self,
            input,
            level: Cell::new(table.width.levels()),
        }
    }

    fn walk_second_stage(
        &self,
        table: SecondStageRoot<Hpa>,
        input: u64,
        access: Access,
    ) -> Result<Translation<Hpa>, WalkFault> {
        let source = self.second_stage_source(table, input);
        walk_second_stage(&source, table, &self.tables, input, access)
    }
}

/// The reason for what the second stage says of an address that a first-stage entry holds.
fn in_nested(fault: WalkFault) -> FaultReason {
    match fault {
        WalkFault::BeyondWidth => FaultReason::FirstStageAddressTooLarge,
        fault => fault.reason(false),
    }
}

fn root_entry_at(root: RootTableAddress, source_id: SourceId) -> Hpa {
    let table: Hpa = root.root();
    Hpa::new(table.as_u64() | u64::from(source_id.bus()) << 4)
}

/// Second-stage entries, shown as they are read; the level counts down with them.
struct SecondStageSource<'a, W> {
    walker: &'a W,
    input: u64,
    level: Cell<u8>,
}

impl<M: HostMemory, F: FnMut(&Step)> EntrySource<Hpa> for SecondStageSource<'_, Walker<'_, M, F>> {
    fn read_entry(&self, at: Hpa) -> Option<u64> {
        let entry = self.walker.memory.read64(at);
        let level = self.level.get();
        self.level.set(level.saturating_sub(1));
        self.walker.show(&Step::SecondStage {
            level,
            input: self.input,
            at,
            entry,
        });
        Some(entry)
    }
}

/// First-stage entries, found through the second stage if there is one.
struct FirstStageSource<'a, W> {
    walker: &'a W,
    second: Option<SecondStageRoot<Hpa>>,
    top: u8,
    level: Cell<u8>,
    /// Why the second stage led to no entry.
    denied: Cell<Option<FaultReason>>,
    /// The last entry read, and whether hardware may write to its table.
    last: Cell<Option<(u64, bool)>>,
    /// The first entry without accessed flag: whether hardware may write to its table.
    unset: Cell<Option<bool>>,
}

impl<M: HostMemory, F: FnMut(&Step)> FirstStageSource<'_, Walker<'_, M, F>> {
    /// Where an entry of the first stage is, and whether hardware may write to it.
    fn place(&self, at: Gpa, level: u8) -> Result<(Hpa, bool), FaultReason> {
        let Some(second) = self.second else {
            return Ok((Hpa::new(at.as_u64()), true));
        };
        let source = self.walker.second_stage_source(second, at.as_u64());
        let found = second_stage_leaf(&source, second, &self.walker.tables, at.as_u64())
            .map_err(in_nested)?;
        if !found.rights.read {
            return Err(if level == self.top {
                FaultReason::FirstStageRootDenied
            } else {
                FaultReason::FirstStageTableDenied
            });
        }
        Ok((found.address, found.rights.write))
    }

    /// Whether the accessed and dirty flags that the request needs are set, or can be.
    fn check_flags(&self, access: Access, is_snooped: bool) -> Result<(), FaultReason> {
        let dirty = self
            .last
            .get()
            .filter(|(entry, _)| access.rights.write && entry & FirstStageEntry::DIRTY == 0);
        let missing = self
            .unset
            .get()
            .or(dirty.map(|(_, is_writable)| is_writable));
        match missing {
            None => Ok(()),
            Some(_) if !is_snooped => Err(FaultReason::FirstStageUpdateUnsnooped),
            Some(false) => Err(FaultReason::FirstStageUpdateDenied),
            // A dirty flag may be missing in a table that cannot be written to, too.
            Some(true) if dirty.is_some_and(|(_, is_writable)| !is_writable) => {
                Err(FaultReason::FirstStageUpdateDenied)
            }
            Some(true) => Ok(()),
        }
    }
}

impl<M: HostMemory, F: FnMut(&Step)> EntrySource<Gpa> for FirstStageSource<'_, Walker<'_, M, F>> {
    fn read_entry(&self, at: Gpa) -> Option<u64> {
        let level = self.level.get();
        self.level.set(level.saturating_sub(1));
        let (at, is_writable) = match self.place(at, level) {
            Ok(place) => place,
            Err(reason) => {
                self.denied.set(Some(reason));
                return None;
            }
        };
        let entry = self.walker.memory.read64(at);
        self.walker.show(&Step::FirstStage { level, at, entry });
        self.last.set(Some((entry, is_writable)));
        if entry & FirstStageEntry::ACCESSED == 0 && self.unset.get().is_none() {
            self.unset.set(Some(is_writable));
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::*;
    use crate::arch::address::{AddressWidth, FirstStagePaging};
    use crate::arch::capability::{
        Capability, CapabilityField as C, ExtendedCapability, ExtendedCapabilityField as E,
    };
    use crate::arch::context::{ContextAttributes, DirectoryOrder};
    use crate::arch::id::DomainId;
    use crate::arch::pasid::{FirstStageFlags, PasidEntryOptions};
    use crate::arch::second_stage::SecondStageEntry;
    use crate::mem::testing::TestHypervisor;

    const ROOT: u64 = 0x1000;
    const CONTEXT: u64 = 0x2000 + 0x10 * 32;
    const DIRECTORY: u64 = 0x3000;
    const ENTRY: u64 = 0x4000 + 5 * 64;
    /// Second-stage tables, from level 4 down.
    const SECOND: [u64; 4] = [0x2_0000, 0x2_1000, 0x2_2000, 0x2_3000];
    /// Guest-physical pages of the first-stage tables, from level 4 down.
    const FIRST: [u64; 4] = [0x1_0000, 0x1_1000, 0x1_2000, 0x1_3000];
    /// Guest-physical memory is here on the host.
    const GUEST: u64 = 0x10_0000;
    /// Where requests to [`IOVA`] are led, guest-physical.
    const PAGE: u64 = 0x5000;
    const IOVA: u64 = 0x7000;
    const FPD: u64 = 2;

    fn features() -> Features {
        let capability = Capability::from_bits(0)
            .with(C::ADJUSTED_GUEST_ADDRESS_WIDTHS, 0b0100)
            .with(C::MAXIMUM_GUEST_ADDRESS_WIDTH, 38)
            .with(C::DOMAIN_ID_WIDTH, 6);
        let mut extended = ExtendedCapability::from_bits(0)
            .with(E::REQUESTS_WITH_PASID, 1)
            .with(E::PASID_SIZE, 19);
        for ability in [
            E::QUEUED_INVALIDATION,
            E::SCALABLE_MODE,
            E::FIRST_STAGE,
            E::SECOND_STAGE,
            E::NESTED,
            E::PASS_THROUGH,
            E::PAGE_WALK_COHERENCY,
        ] {
            extended = extended.with(ability, 1);
        }
        Features::new(capability, extended, 46)
    }

    fn nested() -> PasidEntry {
        PasidEntry::nested(
            Gpa::new(FIRST[0]),
            FirstStagePaging::Level4,
            FirstStageFlags::default(),
            Hpa::new(SECOND[0]),
            AddressWidth::Bits48,
            DomainId::new(3),
            PasidEntryOptions {
                page_walk_snoop: true,
                ..PasidEntryOptions::default()
            },
        )
    }

    fn second_stage_slot(address: u64) -> u64 {
        SECOND[3] + (address >> 12) * 8
    }

    /// Device 00:02.0, PASID 5, nested: [`IOVA`] leads to [`PAGE`].
    fn memory() -> TestHypervisor {
        let h = TestHypervisor::new(1);
        let put = |at: u64, quadwords: &[u64]| {
            for (index, quadword) in quadwords.iter().enumerate() {
                h.write64(Hpa::new(at + index as u64 * 8), *quadword);
            }
        };
        put(ROOT, &[0x2000 | 1, 0]);
        let attributes = ContextAttributes {
            pasid_enabled: true,
            ..ContextAttributes::default()
        };
        let context =
            ScalableContextEntry::new(Hpa::new(DIRECTORY), DirectoryOrder::SMALLEST, attributes);
        put(CONTEXT, context.quadwords());
        put(DIRECTORY, &[0x4000 | 1]);
        put(ENTRY, nested().quadwords());
        for pair in SECOND.windows(2) {
            put(
                pair[0],
                &[SecondStageEntry::table(Hpa::new(pair[1])).as_u64()],
            );
        }
        for page in FIRST.into_iter().chain([PAGE]) {
            put(second_stage_slot(page), &[(GUEST + page) | 3]);
        }
        let accessed = FirstStageEntry::ACCESSED | 7;
        for pair in FIRST.windows(2) {
            put(GUEST + pair[0], &[pair[1] | accessed]);
        }
        put(
            GUEST + FIRST[3] + (IOVA >> 12) * 8,
            &[PAGE | accessed | FirstStageEntry::DIRTY],
        );
        h
    }

    fn request(access: Access) -> ExplainRequest {
        ExplainRequest {
            source_id: SourceId::from_u16(0x10),
            pasid: Pasid::new(5),
            address: Iova::new(IOVA | 0x123),
            access,
            execute: false,
        }
    }

    fn explained(h: &TestHypervisor, request: &ExplainRequest) -> (Explanation, Vec<Step>) {
        let root = RootTableAddress::new(Hpa::new(ROOT), TranslationTableMode::Scalable);
        let mut steps = Vec::new();
        let explanation = explain(h, root, &features(), request, |step| steps.push(*step));
        (explanation, steps)
    }

    #[test]
    fn each_entry_that_hardware_reads_is_a_step_with_its_value() {
        let h = memory();
        let (explanation, steps) = explained(&h, &request(Access::WRITE));
        let translation = explanation.result.unwrap();
        assert_eq!(translation.address, Hpa::new(GUEST + PAGE + 0x123));
        assert_eq!(explanation.to_string(), "allowed: leads to 0x105123");
        // 4 of the tables above; 4 first-stage entries and the page, each behind 4 of the second.
        assert_eq!(steps.len(), 4 + 4 * 5 + 4);
        let lines: Vec<String> = steps.iter().map(Step::to_string).collect();
        let slot = format_slot(second_stage_slot(FIRST[0]));
        for (index, line) in [
            (0, "root entry at 0x1000: 0000000000000000 0000000000002001"),
            (2, "PASID 5 directory entry at 0x3000: 0000000000004001"),
            (
                4,
                "level 4 second-stage entry at 0x20000: 0000000000021003 for 0x10000",
            ),
            (7, slot.as_str()),
            (8, "level 4 first-stage entry at 0x110000: 0000000000011027"),
            (
                27,
                "level 1 second-stage entry at 0x23028: 0000000000105003 for 0x5123",
            ),
        ] {
            assert_eq!(lines[index], line);
        }
        assert!(lines[1].starts_with("context entry at 0x2200: 0000000000000000 0000000000000000"));
        assert!(lines[3].starts_with("PASID 5 entry at 0x4140: "));
    }

    fn format_slot(at: u64) -> String {
        std::format!("level 1 second-stage entry at {at:#x}: 0000000000110003 for 0x10000")
    }

    #[test]
    fn the_last_step_is_the_one_that_blocks_and_the_reason_is_hardware_s() {
        // §7.1.3, Table 30: place and value of one quadword; the reason of a read and of a write, 0
        // for none; FPD was met; the number of steps.
        let first =
            |level: usize| GUEST + FIRST[4 - level] + [0, IOVA >> 12 << 3][(level == 1) as usize];
        let leaf = PAGE | 7 | FirstStageEntry::ACCESSED | FirstStageEntry::DIRTY;
        let slot = second_stage_slot;
        let [entry, ..] = *nested().quadwords();
        for (name, at, value, [read, write], disabled, steps) in [
            ("root entry absent", ROOT, 0, [0x39; 2], false, 1),
            ("root entry reserved", ROOT, 0x2003, [0x3a; 2], false, 1),
            ("context absent", CONTEXT, 0, [0x41; 2], false, 2),
            ("context absent, FPD", CONTEXT, FPD, [0x41; 2], true, 2),
            ("context reserved", CONTEXT, 0x3081, [0x42; 2], false, 2),
            ("PASIDs off", CONTEXT, 0x3001, [0x45; 2], false, 2),
            ("directory entry absent", DIRECTORY, 0, [0x51; 2], false, 3),
            (
                "directory entry reserved",
                DIRECTORY,
                0x4005,
                [0x52; 2],
                false,
                3,
            ),
            ("entry absent", ENTRY, 0, [0x59; 2], false, 4),
            ("entry absent, FPD", ENTRY, FPD, [0x59; 2], true, 4),
            (
                "entry reserved",
                ENTRY,
                entry | 1 << 10,
                [0x5a; 2],
                false,
                4,
            ),
            (
                "entry of a bad type",
                ENTRY,
                entry & !0x1c0,
                [0x5b; 2],
                false,
                4,
            ),
            ("no snoop, all flags set", ENTRY + 8, 3, [0; 2], false, 28),
            (
                "root table not mapped",
                slot(FIRST[0]),
                0,
                [0x79; 2],
                false,
                8,
            ),
            (
                "root table not readable",
                slot(FIRST[0]),
                (GUEST + FIRST[0]) | 2,
                [0x75; 2],
                false,
                8,
            ),
            (
                "table not readable",
                slot(FIRST[1]),
                (GUEST + FIRST[1]) | 2,
                [0x76; 2],
                false,
                13,
            ),
            ("table not mapped", slot(FIRST[2]), 0, [0x79; 2], false, 18),
            (
                "table too far",
                first(4),
                1 << 40 | 0x27,
                [0x74; 2],
                false,
                9,
            ),
            ("first stage absent", first(2), 0, [0x71; 2], false, 19),
            (
                "first stage reserved",
                first(3),
                FIRST[2] | 0x27 | 1 << 51,
                [0x72; 2],
                false,
                14,
            ),
            (
                "first stage supervisor",
                first(1),
                leaf & !4,
                [0x81; 2],
                false,
                24,
            ),
            (
                "first stage read-only",
                first(1),
                leaf & !2,
                [0, 0x85],
                false,
                0,
            ),
            (
                "page too far",
                first(1),
                1 << 40 | leaf,
                [0x74; 2],
                false,
                24,
            ),
            ("page not mapped", slot(PAGE), 0, [0x79; 2], false, 28),
            (
                "page read-only",
                slot(PAGE),
                (GUEST + PAGE) | 1,
                [0, 0x85],
                false,
                28,
            ),
            (
                "page write-only",
                slot(PAGE),
                (GUEST + PAGE) | 2,
                [0x86, 0],
                false,
                28,
            ),
            (
                "page reserved",
                slot(PAGE),
                (GUEST + PAGE) | 3 | 1 << 11,
                [0x7a; 2],
                false,
                28,
            ),
            (
                "accessed flag clear",
                first(1),
                leaf & !0x20,
                [0; 2],
                false,
                28,
            ),
            (
                "interrupt range",
                first(1),
                0xfee0_0067,
                [0x87; 2],
                false,
                24,
            ),
        ] {
            let h = memory();
            h.write64(Hpa::new(at), value);
            for (access, code) in [(Access::READ, read), (Access::WRITE, write)] {
                let (explanation, shown) = explained(&h, &request(access));
                let found = explanation.result.map_or_else(FaultReason::code, |_| 0);
                assert_eq!(found, code, "{name}: {explanation}");
                assert_eq!(explanation.fault_processing_disabled, disabled, "{name}");
                if steps > 0 {
                    assert_eq!(shown.len(), steps, "{name}: {shown:#x?}");
                }
            }
        }
    }

    #[test]
    fn flags_that_cannot_be_set_block() {
        // S69: 90 without snooping, 77 where the second stage does not allow the write.
        let leaf = GUEST + FIRST[3] + (IOVA >> 12) * 8;
        let slot = second_stage_slot(FIRST[3]);
        let all = PAGE | 0x67;
        for (flags, snooped, writable, [read, write]) in [
            (0x60, false, false, [0, 0]),
            (0x20, true, true, [0, 0]),
            (0x20, false, true, [0, 0x90]),
            (0x20, true, false, [0, 0x77]),
            (0x40, true, true, [0, 0]),
            (0x40, false, true, [0x90, 0x90]),
            (0x40, true, false, [0x77, 0x77]),
            (0x00, false, false, [0x90, 0x90]),
        ] {
            let h = memory();
            h.write64(Hpa::new(leaf), all & !0x60 | flags);
            if !snooped {
                h.write64(Hpa::new(ENTRY + 8), 3);
            }
            if !writable {
                h.write64(Hpa::new(slot), (GUEST + FIRST[3]) | 1);
            }
            for (access, code) in [(Access::READ, read), (Access::WRITE, write)] {
                let (explanation, _) = explained(&h, &request(access));
                let found = explanation.result.map_or_else(FaultReason::code, |_| 0);
                assert_eq!(found, code, "{flags:x} {snooped} {writable} {access:?}");
            }
        }
    }

    #[test]
    fn requests_are_checked_as_hardware_does_before_any_table() {
        let h = memory();
        let asked = request(Access::READ);
        let reason = |request: &ExplainRequest, mode| {
            let root = RootTableAddress::new(Hpa::new(ROOT), mode);
            let explanation = explain(&h, root, &features(), request, |_| {});
            explanation.result.map_or_else(FaultReason::code, |_| 0)
        };
        use TranslationTableMode::{AbortDma, Legacy, Scalable};
        let without = ExplainRequest {
            pasid: None,
            ..asked
        };
        let interrupt = ExplainRequest {
            address: Iova::new(0xfee0_1000),
            ..without
        };
        let with = |value| ExplainRequest {
            pasid: Pasid::new(value),
            ..asked
        };
        let execute = ExplainRequest {
            execute: true,
            ..asked
        };
        let supervisor = ExplainRequest {
            access: Access {
                privileged: true,
                ..Access::READ
            },
            ..asked
        };
        let not_canonical = ExplainRequest {
            address: Iova::new(1 << 47),
            ..asked
        };
        for (request, mode, code) in [
            (asked, Legacy, 0x31),
            (asked, AbortDma, 0x30),
            (interrupt, Scalable, 0x29),
            (with(0), Scalable, 0x48),
            (with(8192), Scalable, 0x46),
            (execute, Scalable, 0x5c),
            (supervisor, Scalable, 0x5d),
            (not_canonical, Scalable, 0x80),
            // The root entry is a legacy one as well; its context entry is the first half of
            // another device's here, which is absent: all ones.
            (without, Legacy, 0x0b),
        ] {
            assert_eq!(reason(&request, mode), code, "{request:?} {mode:?}");
        }
    }
}
