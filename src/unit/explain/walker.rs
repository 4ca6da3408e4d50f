//! The walk: root, context, PASID entry.

use crate::arch::address::{Gpa, Hpa, PageSize};
use crate::arch::capability::Features;
use crate::arch::context::{LegacyContextEntry, LegacyTranslation, ScalableContextEntry};
use crate::arch::fault::FaultReason;
use crate::arch::features::TableFeatures;
use crate::arch::id::{Pasid, SourceId};
use crate::arch::pasid::{PasidDirectoryEntry, PasidEntry, PasidTranslation};
use crate::arch::register::{RootTableAddress, TranslationTableMode};
use crate::arch::root::{LegacyRootEntry, RootHalf, ScalableRootEntry};
use crate::mem::HostMemory;
use crate::paging::Rights;
use crate::paging::walk::{
    Access, FirstStageRoot, SecondStageRoot, Translation, WalkFault, is_interrupt_address,
    walk_first_stage, walk_second_stage,
};
use core::cell::Cell;

use super::{ExplainRequest, FirstStageSource, SecondStageSource, Step};

pub(super) struct Walker<'a, M, F> {
    pub(super) memory: &'a M,
    pub(super) features: &'a Features,
    pub(super) tables: TableFeatures,
    /// Taken out for the length of a call.
    pub(super) step: Cell<Option<F>>,
    pub(super) fault_processing_disabled: Cell<bool>,
}

impl<M: HostMemory, F: FnMut(&Step)> Walker<'_, M, F> {
    pub(super) fn show(&self, shown: &Step) {
        if let Some(mut step) = self.step.take() {
            step(shown);
            self.step.set(Some(step));
        }
    }

    pub(super) fn met_disable(&self, is_set: bool) {
        if is_set {
            self.fault_processing_disabled.set(true);
        }
    }

    pub(super) fn read<const N: usize>(&self, at: Hpa) -> [u64; N] {
        core::array::from_fn(|index| {
            let offset = index as u64 * 8;
            self.memory
                .read64(Hpa::new(at.as_u64().saturating_add(offset)))
        })
    }

    pub(super) fn walk(
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

    pub(super) fn walk_legacy(
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

    pub(super) fn walk_scalable(
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

    pub(super) fn pasid_entry(
        &self,
        directory: Hpa,
        pasid: Pasid,
    ) -> Result<PasidEntry, FaultReason> {
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

    pub(super) fn pass_through(
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

    pub(super) fn second_stage_source(
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

    pub(super) fn walk_second_stage(
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
pub(super) fn in_nested(fault: WalkFault) -> FaultReason {
    match fault {
        WalkFault::BeyondWidth => FaultReason::FirstStageAddressTooLarge,
        fault => fault.reason(false),
    }
}

pub(super) fn root_entry_at(root: RootTableAddress, source_id: SourceId) -> Hpa {
    let table: Hpa = root.root();
    Hpa::new(table.as_u64() | u64::from(source_id.bus()) << 4)
}
