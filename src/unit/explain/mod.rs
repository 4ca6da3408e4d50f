//! What a unit's tables say of a request, step by step.
//!
//! The tables are walked as hardware walks them, through [`HostMemory`], which may be a live machine
//! or a dump of one. Nothing is changed, and what hardware has cached is not looked at: tables that
//! allow what hardware blocked tell of an invalidation that is missing.

mod paging;
mod step;
#[cfg(test)]
mod tests;
mod walker;

use core::cell::Cell;
use core::fmt;

use super::fault::{access_of, pasid_of};
use super::unit::Unit;
use crate::arch::address::{Hpa, Iova};
use crate::arch::capability::Features;
use crate::arch::fault::FaultReason;
use crate::arch::features::TableFeatures;
use crate::arch::id::{Pasid, SourceId};
use crate::arch::register::{FaultRecord, Register64, RootTableAddress};
use crate::mem::{HostMemory, Registers};
use crate::paging::walk::{Access, Translation};

use paging::{FirstStageSource, SecondStageSource};
pub use step::Step;
use walker::{Walker, in_nested};

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
