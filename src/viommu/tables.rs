//! The guest's remapping tables, read from hostile memory: root, context, PASID directory, PASID
//! table (§3.4, §9).
//!
//! Every structure is read once, into a copy; the copy is checked and the copy is used.

use core::fmt;

use crate::arch::address::Gpa;
use crate::arch::capability::Features;
use crate::arch::context::{
    LegacyContext, LegacyContextEntry, LegacyContextFault, LegacyTranslation, ScalableContext,
    ScalableContextEntry, ScalableContextFault,
};
use crate::arch::fault::FaultReason;
use crate::arch::features::TableFeatures;
use crate::arch::id::{DomainId, Pasid, SourceId};
use crate::arch::pasid::{
    PasidDirectoryEntry, PasidDirectoryEntryFault, PasidEntry, PasidEntryFault, PasidTranslation,
};
use crate::arch::register::{RootTableAddress, TranslationTableMode};
use crate::arch::root::{LegacyRootEntry, RootEntryFault, RootHalf, ScalableRootEntry};
use crate::arch::told::Told;
use crate::mem::GuestMemory;

use super::host::GuestBinding;

/// The features of the shown registers, as the decoders of table entries take them.
pub fn table_features(features: &Features) -> TableFeatures {
    TableFeatures {
        // Linux writes `AW` into every entry, also where it is reserved (§9.6).
        tolerate_address_width: !features.extended.has_second_stage(),
        ..TableFeatures::from(features)
    }
}

/// What is wrong with the guest's tables on the way to a translation: the structure, and the field
/// with its value as the decoders report them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableFault {
    /// The root table address names a mode that is reserved or absent.
    RootMode(TranslationTableMode),
    /// A request with PASID while the root table is a legacy one.
    PasidInLegacyMode,
    /// The legacy root entry is in no guest memory.
    LegacyRootUnreadable(Gpa),
    /// The legacy root entry is not valid.
    LegacyRoot(RootEntryFault),
    /// The legacy context entry is in no guest memory.
    LegacyContextUnreadable(Gpa),
    /// The legacy context entry is not valid.
    LegacyContext(LegacyContextFault),
    /// The root entry is in no guest memory.
    RootUnreadable(Gpa),
    /// The root entry's half for the device is not valid.
    Root(RootEntryFault),
    /// The context entry is in no guest memory.
    ContextUnreadable(Gpa),
    /// The context entry is not valid.
    Context(ScalableContextFault),
    /// A request with PASID while the context entry's `PASIDE` is clear.
    PasidDisabled,
    /// The PASID is wider than the unit shows (`ECAP.PSS`), in bits.
    PasidTooLarge {
        /// The width shown.
        bits: u8,
    },
    /// The PASID is beyond the directory that the context entry declares (`PDTS`).
    PasidBeyondDirectory {
        /// The number of PASIDs that it reaches.
        limit: u32,
    },
    /// A request with the PASID that stands for requests without PASID (`RID_PASID`).
    PasidEqualsRidPasid,
    /// The directory entry is in no guest memory.
    DirectoryUnreadable(Gpa),
    /// The directory entry is not valid.
    Directory(PasidDirectoryEntryFault),
    /// The PASID entry is in no guest memory.
    EntryUnreadable(Gpa),
    /// The PASID entry is not valid.
    Entry(PasidEntryFault),
    /// The request asked for execution (`ERS` is never shown).
    ExecuteRequest,
    /// A supervisor request while the PASID entry's `SRE` is clear.
    SupervisorRequest,
}

impl TableFault {
    /// The structure, and what is wrong with it where its own type does not tell.
    const fn told(&self) -> (&'static str, Told) {
        let own = Told::words("");
        let (structure, at) = match *self {
            Self::RootMode(mode) => return ("root table: ", Told::one("mode", mode.field())),
            Self::PasidInLegacyMode => return ("root table: ", Told::words("is a legacy one")),
            Self::PasidDisabled => return ("context entry: ", Told::words("PASIDE is clear")),
            Self::PasidTooLarge { bits } => {
                return ("PASID: ", Told::one("wider than", bits as u64));
            }
            Self::PasidBeyondDirectory { limit } => {
                return ("PASID: ", Told::one("not below", limit as u64));
            }
            Self::PasidEqualsRidPasid => return ("PASID: ", Told::words("is RID_PASID")),
            Self::ExecuteRequest => return ("request: ", Told::words("asks for execution")),
            Self::SupervisorRequest => return ("request: ", Told::words("is a supervisor's")),
            Self::LegacyRoot(_) | Self::Root(_) => return ("root entry: ", own),
            Self::LegacyContext(_) | Self::Context(_) => return ("context entry: ", own),
            Self::Directory(_) => return ("directory entry: ", own),
            Self::Entry(_) => return ("PASID entry: ", own),
            Self::LegacyRootUnreadable(at) | Self::RootUnreadable(at) => ("root entry: ", at),
            Self::LegacyContextUnreadable(at) | Self::ContextUnreadable(at) => {
                ("context entry: ", at)
            }
            Self::DirectoryUnreadable(at) => ("directory entry: ", at),
            Self::EntryUnreadable(at) => ("PASID entry: ", at),
        };
        (structure, Told::one("in no memory", at.as_u64()))
    }
}

impl fmt::Display for TableFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (structure, told) = self.told();
        f.write_str(structure)?;
        match self {
            Self::LegacyRoot(fault) | Self::Root(fault) => fault.fmt(f),
            Self::LegacyContext(fault) => fault.fmt(f),
            Self::Context(fault) => fault.fmt(f),
            Self::Directory(fault) => fault.fmt(f),
            Self::Entry(fault) => fault.fmt(f),
            _ => told.fmt(f),
        }
    }
}

impl TableFault {
    /// What hardware records (§7.1.3, Table 30).
    pub const fn reason(&self) -> FaultReason {
        match self {
            Self::RootMode(_) => FaultReason::RootTableAddressInvalid,
            Self::PasidInLegacyMode => FaultReason::PasidInLegacyMode,
            Self::LegacyRootUnreadable(_) => FaultReason::LegacyRootTableUnreadable,
            Self::LegacyRoot(fault) => fault.reason(true),
            Self::LegacyContextUnreadable(_) => FaultReason::LegacyContextTableUnreadable,
            Self::LegacyContext(fault) => fault.reason(),
            Self::RootUnreadable(_) => FaultReason::ScalableRootTableUnreadable,
            Self::Root(fault) => fault.reason(false),
            Self::ContextUnreadable(_) => FaultReason::ScalableContextTableUnreadable,
            Self::Context(fault) => fault.reason(),
            Self::PasidDisabled => FaultReason::PasidDisabled,
            Self::PasidTooLarge { .. } => FaultReason::PasidTooLarge,
            Self::PasidBeyondDirectory { .. } => FaultReason::PasidBeyondDirectory,
            Self::PasidEqualsRidPasid => FaultReason::PasidEqualsRidPasid,
            Self::DirectoryUnreadable(_) => FaultReason::PasidDirectoryUnreadable,
            Self::Directory(fault) => fault.reason(),
            Self::EntryUnreadable(_) => FaultReason::PasidTableUnreadable,
            Self::Entry(fault) => fault.reason(),
            Self::ExecuteRequest => FaultReason::ExecuteRequestUnsupported,
            Self::SupervisorRequest => FaultReason::SupervisorRequestDisabled,
        }
    }
}

/// A fault of the guest's tables, with whose request meets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableError {
    /// The guest's source-id of the device.
    pub source_id: SourceId,
    /// The PASID asked for; 0 stands for requests without PASID.
    pub pasid: Pasid,
    /// What is wrong.
    pub fault: TableFault,
    /// Whether an entry on the way, the faulty one included, disables fault processing (`FPD`).
    pub fault_processing_disabled: bool,
}

/// A context entry that the unit accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestContext {
    /// Of a legacy root table.
    Legacy(LegacyContext<Gpa>),
    /// Of a scalable-mode root table.
    Scalable(ScalableContext<Gpa>),
}

impl GuestContext {
    /// `FPD` of the entry.
    pub const fn is_fault_processing_disabled(&self) -> bool {
        match self {
            Self::Legacy(context) => context.fault_processing_disabled,
            Self::Scalable(context) => context.fault_processing_disabled,
        }
    }
}

/// The guest's tables below one root, as a unit with some features reads them.
#[derive(Debug)]
pub struct GuestTableReader<'a, M> {
    /// The guest's memory.
    pub memory: &'a M,
    /// What the guest was shown.
    pub features: &'a TableFeatures,
    /// The root table address in force.
    pub root: RootTableAddress,
    /// Scalable mode is shown (`ECAP.SMTS`).
    pub scalable_mode: bool,
}

/// A fault on the way to a context entry, with `FPD` as far as it was met.
type Found<T> = Result<T, (TableFault, bool)>;

impl<M: GuestMemory> GuestTableReader<'_, M> {
    /// The context entry of a device: one read of the root table and one of the context table.
    ///
    /// # Errors
    ///
    /// The first fault on the way, and `FPD` of the context entry if it came that far.
    pub fn context(&self, source_id: SourceId) -> Found<GuestContext> {
        match self.root.mode() {
            TranslationTableMode::Legacy => self.legacy_context(source_id),
            TranslationTableMode::Scalable if self.scalable_mode => {
                self.scalable_context(source_id)
            }
            mode => Err((TableFault::RootMode(mode), false)),
        }
    }

    fn legacy_context(&self, source_id: SourceId) -> Found<GuestContext> {
        let root: Gpa = self.root.root();
        let at = Gpa::new(root.as_u64() | u64::from(source_id.bus()) << 4);
        let entry = match self.memory.read_quadwords(at) {
            Ok(quadwords) => LegacyRootEntry::from_quadwords(quadwords),
            Err(_) => return Err((TableFault::LegacyRootUnreadable(at), false)),
        };
        let table: Gpa = entry
            .decode(self.features)
            .map_err(|fault| (TableFault::LegacyRoot(fault), false))?;
        let at = Gpa::new(table.as_u64() | u64::from(source_id.device_function()) << 4);
        let entry = match self.memory.read_quadwords(at) {
            Ok(quadwords) => LegacyContextEntry::from_quadwords(quadwords),
            Err(_) => return Err((TableFault::LegacyContextUnreadable(at), false)),
        };
        match entry.decode(self.features) {
            Ok(context) => Ok(GuestContext::Legacy(context)),
            Err(fault) => Err((
                TableFault::LegacyContext(fault),
                entry.is_fault_processing_disabled(),
            )),
        }
    }

    fn scalable_context(&self, source_id: SourceId) -> Found<GuestContext> {
        let root: Gpa = self.root.root();
        let at = Gpa::new(root.as_u64() | u64::from(source_id.bus()) << 4);
        let entry = match self.memory.read_quadwords(at) {
            Ok(quadwords) => ScalableRootEntry::from_quadwords(quadwords),
            Err(_) => return Err((TableFault::RootUnreadable(at), false)),
        };
        let table: Gpa = entry
            .decode(RootHalf::of(source_id), self.features)
            .map_err(|fault| (TableFault::Root(fault), false))?;
        let index = u64::from(ScalableContextEntry::index(source_id));
        let at = Gpa::new(table.as_u64() | index << 5);
        let entry = match self.memory.read_quadwords(at) {
            Ok(quadwords) => ScalableContextEntry::from_quadwords(quadwords),
            Err(_) => return Err((TableFault::ContextUnreadable(at), false)),
        };
        match entry.decode(self.features) {
            Ok(context) => Ok(GuestContext::Scalable(context)),
            Err(fault) => Err((
                TableFault::Context(fault),
                entry.is_fault_processing_disabled(),
            )),
        }
    }

    /// The PASID entry for a PASID below the context's directory limit: one read of the directory
    /// and one of the table. `FPD` of the directory entry comes with it.
    ///
    /// # Errors
    ///
    /// The first fault on the way; the entry itself is not checked.
    pub fn pasid_entry(
        &self,
        context: &ScalableContext<Gpa>,
        pasid: Pasid,
    ) -> Found<(PasidEntry, bool)> {
        if !context.directory_order.contains(pasid) {
            let limit = context.directory_order.pasid_limit();
            return Err((TableFault::PasidBeyondDirectory { limit }, false));
        }
        let directory = context.pasid_directory;
        let Some(at) = directory.checked_add(u64::from(pasid.directory_index()) * 8) else {
            return Err((TableFault::DirectoryUnreadable(directory), false));
        };
        let entry = match self.memory.read_u64(at) {
            Ok(value) => PasidDirectoryEntry::from_u64(value),
            Err(_) => return Err((TableFault::DirectoryUnreadable(at), false)),
        };
        let disabled = entry.is_fault_processing_disabled();
        let table: Gpa = entry
            .decode(self.features)
            .map_err(|fault| (TableFault::Directory(fault), disabled))?;
        let at = Gpa::new(table.as_u64() | u64::from(pasid.table_index()) << 6);
        match self.memory.read_quadwords(at) {
            Ok(quadwords) => Ok((PasidEntry::from_quadwords(quadwords), disabled)),
            Err(_) => Err((TableFault::EntryUnreadable(at), disabled)),
        }
    }
}

/// The number of PASIDs that requests of a device may use under a context entry: 1, PASID 0 for
/// requests without PASID, unless requests-with-PASID are enabled.
pub(super) fn pasid_limit(context: &ScalableContext<Gpa>, pasid_bits: u8) -> u32 {
    if context.pasid_enabled {
        let shown = 1 << pasid_bits.min(20);
        context.directory_order.pasid_limit().min(shown)
    } else {
        1
    }
}

/// What of a PASID entry reaches hardware.
///
/// # Errors
///
/// Why the unit refuses the entry.
pub fn guest_binding(
    entry: &PasidEntry,
    features: &TableFeatures,
) -> Result<GuestBinding, PasidEntryFault> {
    let valid = entry.decode(features)?;
    let mut translation = valid.translation;
    if let PasidTranslation::FirstStage { write_protect, .. } = &mut translation {
        // `WPE` is about supervisor writes only (§9.6).
        *write_protect &= valid.supervisor_requests;
    }
    Ok(GuestBinding {
        domain_id: valid.domain_id,
        translation,
        supervisor_requests: valid.supervisor_requests,
    })
}

/// What of a legacy context entry reaches hardware, for all requests of the device.
pub fn legacy_binding(context: &LegacyContext<Gpa>) -> GuestBinding {
    GuestBinding {
        domain_id: context.domain_id,
        translation: match context.translation {
            LegacyTranslation::SecondStage { root, width, .. } => {
                PasidTranslation::SecondStage { root, width }
            }
            LegacyTranslation::PassThrough { .. } => PasidTranslation::PassThrough,
        },
        supervisor_requests: false,
    }
}

/// The domain-id of a PASID entry as it lies in memory, valid or not.
#[inline]
pub(super) const fn domain_id_of(raw: &[u64; 8]) -> DomainId {
    DomainId::new(raw[1] as u16)
}
