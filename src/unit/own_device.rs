//! The hypervisor's own devices: each in a domain of its own, that leads to the memory it was given
//! and to nothing else.
//!
//! What a driver of the hypervisor needs of the layer for DMA: [`OwnDevice`]; for interrupts there
//! are [`interrupt`](super::interrupt)'s slices.

use core::fmt;

use super::discovery::RequesterIds;
use super::error::{QueueError, Requirement, UnitError};
use super::tables::{DetachedDevice, DeviceTables};
use super::unit::Unit;
use crate::arch::address::{Hpa, Iova};
use crate::arch::id::{DomainId, Pasid};
use crate::arch::pasid::{PasidEntry, PasidEntryOptions};
use crate::mem::{FrameError, Hypervisor, Owner, Registers};
use crate::paging::{MapError, Rights, SecondStage, SecondStageConfig};

/// Memory that a device is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnMapping {
    /// The first address that the device uses, a multiple of 4 KiB.
    pub input: Iova,
    /// Where that leads, a multiple of 4 KiB.
    pub output: Hpa,
    /// Length in bytes, a multiple of 4 KiB.
    pub len_bytes: u64,
    /// What the device may do there.
    pub rights: Rights,
}

/// Why a device was not let in. It is blocked then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OwnDeviceError {
    /// No frames for a table.
    Frames(FrameError),
    /// No domain-id is left.
    NoDomainId,
    /// Memory cannot be mapped.
    Map {
        /// Which.
        mapping: OwnMapping,
        /// Why.
        error: MapError,
    },
    /// The unit refused.
    Unit(UnitError),
}

impl fmt::Display for OwnDeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frames(error) => write!(f, "no frames: {error}"),
            Self::NoDomainId => f.write_str("no domain-id is left"),
            Self::Map { mapping, error } => write!(f, "mapping of {}: {error}", mapping.input),
            Self::Unit(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for OwnDeviceError {}

impl From<UnitError> for OwnDeviceError {
    fn from(error: UnitError) -> Self {
        Self::Unit(error)
    }
}

/// A device that the hypervisor drives itself.
///
/// It is blocked until it is let [in](Self::let_in), and again once it is taken
/// [out](Self::take_out). Frames and domain-id are the hypervisor's.
#[must_use = "dropped, the tables that the device uses are lost"]
#[derive(Debug)]
pub struct OwnDevice {
    requesters: RequesterIds,
    state: State,
}

/// How far a device is. It only ever has what its tables map, and these are complete before it has
/// them and whole until it has them no more.
#[derive(Debug)]
enum State {
    /// Nothing of it is mapped, it has no context entry.
    Out,
    /// Its memory is mapped, and its context entry may lead there.
    In(Domain, DeviceTables),
    /// Its context entry is gone, which hardware has yet to confirm.
    Leaving(Domain, DetachedDevice),
    /// As [`Leaving`](Self::Leaving), not even asked for.
    Withdrawn(Domain, DeviceTables),
    /// It could not be shown that hardware forgot it: its tables are lost, and it is blocked.
    Lost,
}

/// What the device's addresses lead to.
#[derive(Debug)]
struct Domain {
    memory: SecondStage<Iova>,
    id: DomainId,
}

impl OwnDevice {
    /// A device by its source-ids. It stays blocked.
    pub const fn new(requesters: RequesterIds) -> Self {
        Self {
            requesters,
            state: State::Out,
        }
    }

    /// The device's source-ids.
    pub const fn requesters(&self) -> &RequesterIds {
        &self.requesters
    }

    /// Whether the device can use its memory.
    pub const fn is_in(&self) -> bool {
        matches!(self.state, State::In(..))
    }

    /// The domain-id of the device, while it has one.
    pub const fn domain_id(&self) -> Option<DomainId> {
        match &self.state {
            State::In(domain, _) | State::Leaving(domain, _) | State::Withdrawn(domain, _) => {
                Some(domain.id)
            }
            State::Out | State::Lost => None,
        }
    }

    /// Lets the device at this memory, and at nothing else: maps it, then gives the device a context
    /// entry. In scalable mode its requests without PASID go through an entry for PASID 0, in legacy
    /// mode through the context entry. A device that is in stays as it is.
    ///
    /// # Errors
    ///
    /// [`OwnDeviceError`]; the device is blocked then, and a later call tries again. After a
    /// [`UnitError::Queue`] from attaching it, which leaves open what hardware knows of its lost
    /// tables, that call is refused with [`UnitError::Attached`].
    pub fn let_in<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        unit: &Unit<R>,
        memory: impl IntoIterator<Item = OwnMapping>,
    ) -> Result<(), OwnDeviceError> {
        if self.is_in() {
            return Ok(());
        }
        self.take_out(h, unit).map_err(UnitError::Queue)?;
        let domain = Domain::new(h, unit, memory)?;
        let owner = Owner::HYPERVISOR;
        let tables = match unit.attach_requesters(h, owner, &self.requesters, 0, None) {
            Ok(tables) => tables,
            // Hardware may know of the tables that are lost, but these lead nowhere.
            Err(error) => {
                domain.free(h, unit);
                if matches!(error, UnitError::Queue(_)) {
                    self.state = State::Lost;
                }
                return Err(error.into());
            }
        };
        let published = domain.publish(h, unit, &tables);
        // From here on hardware may know of the entry, whatever the outcome.
        self.state = State::In(domain, tables);
        if let Err(error) = published {
            // If that fails too, a later call goes on with it.
            _ = self.take_out(h, unit);
            return Err(error.into());
        }
        Ok(())
    }

    /// Cuts the device off, has hardware confirm it, and then gives back its tables and domain-id.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if hardware does not confirm: the device is blocked, its memory stays mapped and
    /// must not be used for anything else, and a later call asks again.
    pub fn take_out<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        unit: &Unit<R>,
    ) -> Result<(), QueueError> {
        let (domain, detached) = match core::mem::replace(&mut self.state, State::Lost) {
            State::Out => {
                self.state = State::Out;
                return Ok(());
            }
            // Its context entry stays as it is: attaching it says that it is in use.
            State::Lost => return Ok(()),
            State::Leaving(domain, device) => (domain, device),
            State::In(domain, tables) | State::Withdrawn(domain, tables) => {
                match unit.detach_device(h, tables) {
                    Ok(device) => (domain, device),
                    Err((tables, error)) => {
                        self.state = State::Withdrawn(domain, tables);
                        return Err(error);
                    }
                }
            }
        };
        match unit.release(h, detached) {
            Ok(()) => {
                domain.free(h, unit);
                self.state = State::Out;
                Ok(())
            }
            Err((device, error)) => {
                self.state = State::Leaving(domain, device);
                Err(error)
            }
        }
    }
}

impl Domain {
    /// Tables that no entry leads to yet.
    fn new<H: Hypervisor, R: Registers>(
        h: &H,
        unit: &Unit<R>,
        mappings: impl IntoIterator<Item = OwnMapping>,
    ) -> Result<Self, OwnDeviceError> {
        let width = unit
            .features()
            .largest_address_width()
            .ok_or(UnitError::Missing(Requirement::AddressWidth))?;
        // The width is one that the unit has.
        let config = SecondStageConfig::new(width, &unit.second_stage_features())
            .map_err(|_| UnitError::Missing(Requirement::AddressWidth))?;
        let memory =
            SecondStage::new(h, Owner::HYPERVISOR, config).map_err(OwnDeviceError::Frames)?;
        let Some(id) = unit.allocate_domain_id() else {
            memory.destroy(h).settle(h);
            return Err(OwnDeviceError::NoDomainId);
        };
        let mut domain = Self { memory, id };
        for mapping in mappings {
            let OwnMapping {
                input,
                output,
                len_bytes,
                rights,
            } = mapping;
            if let Err(error) = domain.memory.map(h, input, output, len_bytes, rights) {
                domain.free(h, unit);
                return Err(OwnDeviceError::Map { mapping, error });
            }
        }
        Ok(domain)
    }

    /// Publishes the entry that leads a device's requests here.
    fn publish<H: Hypervisor, R: Registers>(
        &self,
        h: &H,
        unit: &Unit<R>,
        tables: &DeviceTables,
    ) -> Result<(), UnitError> {
        let options = PasidEntryOptions {
            page_walk_snoop: unit.table_features().page_walk_coherency,
            ..PasidEntryOptions::default()
        };
        let entry = PasidEntry::second_stage(self.memory.root(), self.id, options);
        unit.publish_entry(h, tables, Pasid::ZERO, &entry)?;
        if unit.needs_invalidation_after_set_up() {
            let ticket = unit.submit(h, unit.everything())?;
            return Ok(unit.wait(h, ticket)?);
        }
        unit.write_buffer_flush(h)
    }

    /// Frees what no entry leads to: never published, or confirmed to be forgotten.
    fn free<H: Hypervisor, R: Registers>(self, h: &H, unit: &Unit<R>) {
        self.memory.destroy(h).settle(h);
        unit.free_domain_id(self.id);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::testing::{Bench, CAPABILITY, Completion, EXTENDED, up};
    use super::*;
    use crate::arch::fault::FaultReason;
    use crate::arch::id::SourceId;
    use crate::paging::walk::Access;
    use crate::unit::ExplainRequest;

    /// `ECAP.SMTS`, without which a unit is driven in legacy mode; `CAP.CM`.
    const SCALABLE: u64 = 1 << 43;
    const CACHING: u64 = 1 << 7;

    fn device() -> SourceId {
        SourceId::new(0, 3, 0).unwrap()
    }

    const QUEUE: OwnMapping = OwnMapping {
        input: Iova::new(0x4000_0000),
        output: Hpa::new(0x12_3000),
        len_bytes: 0x2000,
        rights: Rights::READ_WRITE,
    };
    const BUFFER: OwnMapping = OwnMapping {
        input: Iova::new(0x4000_8000),
        output: Hpa::new(0x45_6000),
        len_bytes: 0x1000,
        rights: Rights::READ,
    };

    /// Where a request ends up, by the tables as hardware sees them.
    fn reach(bench: &Bench, address: u64, rights: Rights) -> Result<Hpa, FaultReason> {
        let request = ExplainRequest {
            source_id: device(),
            pasid: None,
            address: Iova::new(address),
            access: Access {
                rights,
                privileged: false,
            },
            execute: false,
        };
        let explanation = bench.unit.explain(&bench.h, &request, |_| {});
        explanation.result.map(|translation| translation.address)
    }

    // Legacy and scalable mode, with and without caching mode.
    #[test]
    fn a_device_reaches_what_it_was_given_and_nothing_else_until_it_is_out() {
        for (scalable, caching) in [(true, false), (true, true), (false, false), (false, true)] {
            let bench = up(|options| {
                if !scalable {
                    options.extended = EXTENDED & !SCALABLE;
                }
                if caching {
                    options.capability = CAPABILITY | CACHING;
                }
            });
            let mut own = OwnDevice::new(RequesterIds::of(device()));
            // From now on there is a context table.
            own.let_in(&bench.h, &bench.unit, []).unwrap();
            own.take_out(&bench.h, &bench.unit).unwrap();
            let free = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
            own.let_in(&bench.h, &bench.unit, [QUEUE, BUFFER]).unwrap();
            assert!(own.is_in() && own.domain_id().is_some_and(|id| id != DomainId::ZERO));
            for (address, rights, expected) in [
                (0x4000_0000, Rights::READ_WRITE, Some(0x12_3000)),
                (0x4000_1ff8, Rights::WRITE, Some(0x12_4ff8)),
                (0x4000_8008, Rights::READ, Some(0x45_6008)),
                (0x4000_8008, Rights::WRITE, None),
                (0x4000_2000, Rights::READ, None),
                // Its host-physical address is no address of the device.
                (0x12_3000, Rights::READ, None),
            ] {
                let reached = reach(&bench, address, rights).ok();
                assert_eq!(reached, expected.map(Hpa::new), "{address:#x} {scalable}");
            }
            own.take_out(&bench.h, &bench.unit).unwrap();
            assert!(!own.is_in() && own.domain_id().is_none());
            assert!(reach(&bench, 0x4000_0000, Rights::READ).is_err());
            let now = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
            assert_eq!(now, free);
        }
    }

    #[test]
    fn two_devices_have_domains_of_their_own() {
        let bench = up(|_| {});
        let mut first = OwnDevice::new(RequesterIds::of(device()));
        let other = SourceId::new(0, 4, 0).unwrap();
        let mut second = OwnDevice::new(RequesterIds::of(other));
        first.let_in(&bench.h, &bench.unit, [QUEUE]).unwrap();
        second.let_in(&bench.h, &bench.unit, [BUFFER]).unwrap();
        assert_ne!(first.domain_id(), second.domain_id());
        assert!(reach(&bench, 0x4000_8000, Rights::READ).is_err());
        second.take_out(&bench.h, &bench.unit).unwrap();
        assert!(reach(&bench, 0x4000_0000, Rights::READ).is_ok());
        first.take_out(&bench.h, &bench.unit).unwrap();
    }

    #[test]
    fn what_cannot_be_mapped_keeps_the_device_out_and_nothing_is_kept() {
        let bench = up(|_| {});
        let free = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
        let mut own = OwnDevice::new(RequesterIds::of(device()));
        let unaligned = OwnMapping {
            input: Iova::new(0x10),
            ..BUFFER
        };
        let error = own.let_in(&bench.h, &bench.unit, [QUEUE, unaligned]);
        let error = error.unwrap_err();
        assert!(matches!(error, OwnDeviceError::Map { mapping, .. } if mapping == unaligned));
        assert!(!own.is_in());
        let now = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
        assert_eq!(now, free);
    }

    #[test]
    fn tables_and_domain_id_are_kept_until_hardware_confirms() {
        let bench = up(|_| {});
        let mut own = OwnDevice::new(RequesterIds::of(device()));
        own.let_in(&bench.h, &bench.unit, [QUEUE]).unwrap();
        let held = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
        let id = own.domain_id();
        bench.world().completion = Completion::Never;
        for _ in 0..2 {
            assert!(own.take_out(&bench.h, &bench.unit).is_err());
            assert!(!own.is_in() && own.domain_id() == id);
            assert!(reach(&bench, 0x4000_0000, Rights::READ).is_err());
            let now = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
            assert_eq!(now, held);
        }
        bench.world().completion = Completion::Now;
        own.take_out(&bench.h, &bench.unit).unwrap();
        assert_eq!(own.domain_id(), None);
    }
}
