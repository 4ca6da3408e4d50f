//! What a desired binding becomes on hardware: one module for each way.

pub mod nested;
pub mod second_stage;
pub mod shadow;

use crate::arch::address::{AddressWidth, FirstStagePaging, Gpa};
use crate::arch::id::{DomainId, Pasid, SourceId};
use crate::arch::pasid::{PasidEntryOptions, PasidTranslation};
use crate::nest::offer::Backend;
use crate::viommu::host::{BindError, Desired, GuestBinding};

/// What a PASID entry on hardware should do, without the host's domain-id.
///
/// Equal targets need no change on hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The machine's own second stage.
    MachineMemory,
    /// The guest's first stage over the machine's second stage.
    Nested(NestedTarget),
    /// A shadow of the guest's second stage.
    Shadow {
        /// The guest's domain-id.
        domain_id: DomainId,
        /// Root of the guest's table.
        root: Gpa,
        /// Levels of the guest's table.
        width: AddressWidth,
    },
}

/// What of a guest's first-stage entry reaches hardware (R19).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedTarget {
    /// The guest's domain-id.
    pub domain_id: DomainId,
    /// First-stage root.
    pub root: Gpa,
    /// Paging mode.
    pub paging: FirstStagePaging,
    /// `WPE`, only with `SRE`.
    pub write_protect: bool,
    /// `EAFE`.
    pub extended_accessed: bool,
    /// `SRE`.
    pub supervisor_requests: bool,
}

impl Target {
    /// The target for a desired state of a device and PASID; `None` for *blocked*.
    ///
    /// # Errors
    ///
    /// [`BindError::NotOffered`] for a translation type that this machine's guest has not.
    pub fn of(
        desired: &Desired,
        backend: Backend,
        source_id: SourceId,
        pasid: Pasid,
    ) -> Result<Option<Self>, BindError> {
        match desired {
            Desired::Blocked => Ok(None),
            Desired::MachineMemory => Ok(Some(Self::MachineMemory)),
            Desired::Guest(binding) => match Self::of_guest(binding, backend) {
                Ok(target) => Ok(Some(target)),
                Err(translation_type) => Err(BindError::NotOffered {
                    translation_type,
                    source_id,
                    pasid,
                }),
            },
        }
    }

    /// The target of a guest's entry, or the translation type (`PGTT`) that is not offered.
    fn of_guest(binding: &GuestBinding, backend: Backend) -> Result<Self, u8> {
        let domain_id = binding.domain_id;
        match (binding.translation, backend) {
            (PasidTranslation::PassThrough, _) => Ok(Self::MachineMemory),
            (
                PasidTranslation::FirstStage {
                    root,
                    paging,
                    write_protect,
                    extended_accessed,
                },
                Backend::Nested,
            ) => Ok(Self::Nested(NestedTarget {
                domain_id,
                root,
                paging,
                write_protect: write_protect && binding.supervisor_requests,
                extended_accessed,
                supervisor_requests: binding.supervisor_requests,
            })),
            // Also on hardware that nests: a guest with a legacy root has second-stage tables.
            (PasidTranslation::SecondStage { root, width }, _) => Ok(Self::Shadow {
                domain_id,
                root,
                width,
            }),
            (translation, _) => Err(translation.translation_type().field() as u8),
        }
    }

    /// The guest domain-id under which the guest invalidates it, if it has one.
    pub const fn guest_domain_id(&self) -> Option<DomainId> {
        match self {
            Self::MachineMemory => None,
            Self::Nested(target) => Some(target.domain_id),
            Self::Shadow { domain_id, .. } => Some(*domain_id),
        }
    }
}

/// The options that every host entry carries: walks snooped and pages forced to snoop wherever
/// the unit can, whatever the guest said.
pub(super) fn entry_options(page_walk_coherency: bool, snoop_control: bool) -> PasidEntryOptions {
    PasidEntryOptions {
        page_walk_snoop: page_walk_coherency,
        page_snoop: snoop_control,
        ..PasidEntryOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::address::Hpa;
    use crate::arch::pasid::PasidEntry;
    use crate::arch::second_stage::SecondStagePointer;

    #[test]
    fn a_type_that_is_not_offered_is_refused_with_device_and_pasid() {
        // R18. PGTT: §9.6, 1 first-stage, 2 second-stage, 3 nested, 4 pass-through.
        let source_id = SourceId::from_u16(0x1234);
        let pasid = Pasid::new(5).unwrap();
        let first_stage = PasidTranslation::FirstStage {
            root: Gpa::new(0x1000),
            paging: FirstStagePaging::Level4,
            write_protect: false,
            extended_accessed: false,
        };
        let second_stage = PasidTranslation::SecondStage {
            root: Gpa::new(0x1000),
            width: AddressWidth::Bits48,
        };
        for (translation, backend, refused) in [
            (first_stage, Backend::Shadow, Some(1)),
            (first_stage, Backend::Nested, None),
            (second_stage, Backend::Nested, None),
            (PasidTranslation::PassThrough, Backend::Nested, None),
        ] {
            let desired = Desired::Guest(GuestBinding {
                domain_id: DomainId::new(7),
                translation,
                supervisor_requests: false,
            });
            let expected = refused.map(|translation_type| BindError::NotOffered {
                translation_type,
                source_id,
                pasid,
            });
            assert_eq!(
                Target::of(&desired, backend, source_id, pasid).err(),
                expected,
                "{translation:?} {backend:?}"
            );
        }
    }

    // R19, §9.6: `PWSNP` is bit 87 and `PGSNP` bit 88, by the unit's abilities and nothing else.
    #[test]
    fn host_entries_snoop_wherever_the_unit_can() {
        for (page_walk_coherency, snoop_control) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let entry = PasidEntry::second_stage(
                SecondStagePointer::new(Hpa::new(0x1000), AddressWidth::Bits48),
                DomainId::new(9),
                entry_options(page_walk_coherency, snoop_control),
            );
            let bits = entry.quadwords()[1] >> (87 - 64) & 0b11;
            let expected = u64::from(page_walk_coherency) | u64::from(snoop_control) << 1;
            assert_eq!(bits, expected);
        }
    }
}
