//! Memory that firmware reserves for devices (§3.16, §8.4): known to the unit before anything else,
//! mapped before its device is let in, there for as long as the device may use it.
//!
//! A device whose reserved memory is known to its unit is refused to machines, unless the embedder
//! asks for it by name and has mapped the regions in the machine's memory. While no machine has it,
//! a [`ReservedDevice`] keeps it at its regions, and away from everything else.

use core::fmt;

use heapless::Vec;

use super::discovery::{RequesterIds, ReservedRegion, ReservedRegions};
use super::error::{QueueError, UnitError};
use super::own_device::{OwnDevice, OwnDeviceError, OwnMapping};
use super::unit::Unit;
use crate::arch::address::{Hpa, Iova};
use crate::arch::id::SourceId;
use crate::mem::{FrameError, Hypervisor, Registers};
use crate::paging::{MapError, Rights};

/// Most devices with reserved memory that one unit keeps track of.
pub const RESERVED_DEVICES: usize = 16;

/// Devices with reserved memory, by all of their source-ids.
#[derive(Debug)]
pub(super) struct ReservedMemory {
    devices: Vec<(RequesterIds, ReservedRegions), RESERVED_DEVICES>,
    /// There is a device with reserved memory that is not in the list.
    is_incomplete: bool,
}

impl ReservedMemory {
    pub(super) const fn new() -> Self {
        Self {
            devices: Vec::new(),
            is_incomplete: false,
        }
    }

    fn is_known(&self, source_id: SourceId) -> bool {
        let mut known = self.devices.iter();
        known.any(|(requesters, _)| requesters.contains(source_id))
    }
}

/// Why a device with reserved memory was not let in. It is blocked then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReservedMemoryError {
    /// The device has no reserved memory.
    NoRegions(SourceId),
    /// The unit keeps track of [`RESERVED_DEVICES`] already.
    TooMany(SourceId),
    /// One of the device's source-ids is known already.
    Known(SourceId),
    /// No frames for a table.
    Frames(FrameError),
    /// No domain-id is left.
    NoDomainId,
    /// The region cannot be mapped.
    Map {
        /// The first address of the region.
        base: Hpa,
        /// Why.
        error: MapError,
    },
    /// The unit refused.
    Unit(UnitError),
}

impl fmt::Display for ReservedMemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRegions(source_id) => write!(f, "{source_id} has no reserved memory"),
            Self::TooMany(source_id) => {
                write!(
                    f,
                    "{source_id}: more than {RESERVED_DEVICES} with reserved memory"
                )
            }
            Self::Known(source_id) => write!(f, "reserved memory of {source_id} is known already"),
            Self::Frames(error) => write!(f, "no frames: {error:?}"),
            Self::NoDomainId => f.write_str("no domain-id is left"),
            Self::Map { base, error } => write!(f, "reserved memory at {base}: {error:?}"),
            Self::Unit(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ReservedMemoryError {}

impl From<UnitError> for ReservedMemoryError {
    fn from(error: UnitError) -> Self {
        Self::Unit(error)
    }
}

impl<R: Registers> Unit<R> {
    /// The reserved memory of the device with this source-id, own or alias; none if the unit knows
    /// of none.
    pub fn reserved_regions(&self, source_id: SourceId) -> ReservedRegions {
        let reserved = self.reserved.lock();
        let found = reserved
            .devices
            .iter()
            .find(|(requesters, _)| requesters.contains(source_id));
        found
            .map(|(_, regions)| regions.clone())
            .unwrap_or_default()
    }

    /// Whether some device has reserved memory that the unit does not know of, because
    /// [`ReservedDevice::track`] failed for it: any device may be that one.
    pub fn has_untracked_reserved_memory(&self) -> bool {
        self.reserved.lock().is_incomplete
    }

    /// Remembers for good that a device has reserved memory.
    fn track_reserved(
        &self,
        requesters: &RequesterIds,
        regions: &ReservedRegions,
    ) -> Result<(), ReservedMemoryError> {
        let mut reserved = self.reserved.lock();
        if let Some(source_id) = requesters.iter().find(|id| reserved.is_known(*id)) {
            // Under its other source-ids nothing would refuse it.
            let is_whole = requesters.iter().all(|id| reserved.is_known(id));
            reserved.is_incomplete |= !is_whole;
            return Err(ReservedMemoryError::Known(source_id));
        }
        let tracked = reserved.devices.push((*requesters, regions.clone()));
        tracked.map_err(|_| {
            reserved.is_incomplete = true;
            ReservedMemoryError::TooMany(requesters.own())
        })
    }
}

/// A device with reserved memory, while no machine has it.
///
/// Made by [`track`](Self::track), from when on the unit knows of it. It is blocked until it is let
/// [in](Self::let_in), and again once it is taken [out](Self::take_out), to be assigned.
#[must_use = "dropped, the tables that the device uses are lost"]
#[derive(Debug)]
pub struct ReservedDevice {
    device: OwnDevice,
    regions: ReservedRegions,
}

impl ReservedDevice {
    /// Tells the unit of a device's reserved memory. Nothing is mapped, the device stays blocked.
    ///
    /// # Errors
    ///
    /// [`ReservedMemoryError`]. Unless all of the device's source-ids were known before, the unit's
    /// knowledge has a gap then, and machines get no device from behind it but those whose reserved
    /// memory it does know.
    pub fn track<R: Registers>(
        unit: &Unit<R>,
        requesters: RequesterIds,
        regions: ReservedRegions,
    ) -> Result<Self, ReservedMemoryError> {
        if regions.is_empty() {
            return Err(ReservedMemoryError::NoRegions(requesters.own()));
        }
        unit.track_reserved(&requesters, &regions)?;
        Ok(Self {
            device: OwnDevice::new(requesters),
            regions,
        })
    }

    /// The device's source-ids.
    pub const fn requesters(&self) -> &RequesterIds {
        self.device.requesters()
    }

    /// Its reserved memory.
    pub const fn regions(&self) -> &ReservedRegions {
        &self.regions
    }

    /// Whether the device can use its reserved memory.
    pub const fn is_in(&self) -> bool {
        self.device.is_in()
    }

    /// Lets the device at its reserved memory, and at nothing else: maps the regions, then gives it
    /// a context entry. To be called right after the unit's bring-up, and when a machine has given
    /// the device up.
    ///
    /// # Errors
    ///
    /// [`ReservedMemoryError`]; the device is blocked then. A later call tries again.
    pub fn let_in<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        unit: &Unit<R>,
    ) -> Result<(), ReservedMemoryError> {
        if self.is_in() {
            return Ok(());
        }
        let to_themselves = |region: &ReservedRegion| OwnMapping {
            input: Iova::new(region.base().as_u64()),
            output: region.base(),
            len_bytes: region.len_bytes(),
            rights: Rights::READ_WRITE,
        };
        let memory = self.regions.iter().map(to_themselves);
        self.device
            .let_in(h, unit, memory)
            .map_err(|error| self.refusal(error))?;
        log::info!(
            "{}: let in at its reserved memory",
            self.device.requesters().own()
        );
        Ok(())
    }

    /// What an error of the device is in terms of its regions.
    fn refusal(&self, error: OwnDeviceError) -> ReservedMemoryError {
        match error {
            OwnDeviceError::Frames(error) => ReservedMemoryError::Frames(error),
            OwnDeviceError::NoDomainId => ReservedMemoryError::NoDomainId,
            OwnDeviceError::Unit(error) => ReservedMemoryError::Unit(error),
            OwnDeviceError::Map { mapping, error } => ReservedMemoryError::Map {
                base: mapping.output,
                error,
            },
        }
    }

    /// Cuts the device off, has hardware confirm it, and then unmaps its reserved memory. It can be
    /// assigned afterwards.
    ///
    /// # Errors
    ///
    /// [`QueueError`] if hardware does not confirm: the device is blocked, its memory stays mapped, and
    /// a later call asks again.
    pub fn take_out<H: Hypervisor, R: Registers>(
        &mut self,
        h: &H,
        unit: &Unit<R>,
    ) -> Result<(), QueueError> {
        self.device.take_out(h, unit)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::queue::EVERYTHING;
    use super::super::statistics::lost_table_frames;
    use super::super::testing::{Bench, COHERENT, Completion, EXTENDED, Event, up};
    use super::*;
    use crate::arch::address::Hpa;
    use std::vec::Vec;

    const FIRST: u64 = 0x7b80_0000;
    const SECOND: u64 = 0x1_0000_3000;

    fn device() -> SourceId {
        SourceId::new(0, 2, 0).unwrap()
    }

    fn regions() -> ReservedRegions {
        [(FIRST, 0x40_0000), (SECOND, 0x1000)]
            .into_iter()
            .map(|(base, len_bytes)| ReservedRegion::new(Hpa::new(base), len_bytes).unwrap())
            .collect()
    }

    fn track(bench: &Bench) -> ReservedDevice {
        ReservedDevice::track(&bench.unit, RequesterIds::of(device()), regions()).unwrap()
    }

    /// Where hardware finds the device's context entry, and the quadword there.
    fn context(bench: &Bench) -> Option<(u64, u64)> {
        let world = bench.world();
        let root = world.latched_root.unwrap() & !0xfff;
        let root_entry = world.table_quadword(root);
        let at = (root_entry & !0xfff) + u64::from(device().device_function()) * 32;
        (root_entry & 1 != 0).then(|| (at, world.table_quadword(at)))
    }

    /// Where a request of the device to an address ends up, by the tables as hardware sees them
    /// (§9.3 to §9.8), with read and write allowed at each level.
    fn reach(bench: &Bench, address: u64) -> Option<u64> {
        let (_, context) = context(bench).filter(|(_, entry)| entry & 1 != 0)?;
        let world = bench.world();
        let table = world.table_quadword(context & !0xfff) & !0xfff;
        let entry = world.table_quadword(table);
        if entry & 1 == 0 {
            return None;
        }
        assert_eq!(entry >> 6 & 7, 0b010, "second-stage only");
        let levels = (entry >> 2 & 7) + 2;
        let mut at = entry & !0xfff;
        for level in (1..=levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let entry = world.table_quadword(at + (address >> shift & 0x1ff) * 8);
            if entry & 3 != 3 {
                return None;
            }
            let output = entry & 0x000f_ffff_ffff_f000;
            if level == 1 || entry & 0x80 != 0 {
                let offset = (1 << shift) - 1;
                return Some(output & !offset | address & offset);
            }
            at = output;
        }
        None
    }

    /// Everything reserved is reached, and nothing beside it.
    fn is_at_its_memory(bench: &Bench) -> bool {
        let reached = [FIRST, FIRST + 0x3f_fff8, SECOND, SECOND + 0xff8];
        for beside in [0, FIRST - 8, FIRST + 0x40_0000, SECOND - 8, SECOND + 0x1000] {
            assert_eq!(reach(bench, beside), None, "{beside:#x}");
        }
        let count = |at: &&u64| reach(bench, **at) == Some(**at);
        match reached.iter().filter(count).count() {
            0 => false,
            count => count == reached.len(),
        }
    }

    // G18
    #[test]
    fn regions_are_mapped_before_the_device_is_let_in_and_until_it_is_out() {
        for extended in [EXTENDED, EXTENDED | COHERENT] {
            let bench = up(|options| options.extended = extended);
            let free = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
            let mut reserved = track(&bench);
            assert_eq!(bench.unit.reserved_regions(device()), regions());
            assert!(!reserved.is_in() && !is_at_its_memory(&bench));
            bench.take_log();

            reserved.let_in(&bench.h, &bench.unit).unwrap();
            assert!(reserved.is_in() && is_at_its_memory(&bench));
            reserved.let_in(&bench.h, &bench.unit).unwrap();
            let (context_at, context) = context(&bench).unwrap();
            let leaf = |value: u64| value & 0b11 == 0b11 && value & !0xfff >= FIRST;
            let log = bench.take_log();
            let let_in = log
                .iter()
                .position(|event| *event == Event::Store(context_at, context));
            let last_leaf = log
                .iter()
                .rposition(|event| matches!(event, Event::Store(_, value) if leaf(*value)));
            assert!(last_leaf.unwrap() < let_in.unwrap());
            let leaves: Vec<u64> = log
                .iter()
                .filter_map(|event| match event {
                    Event::Store(at, value) if leaf(*value) => Some(*at),
                    _ => None,
                })
                .collect();

            bench.take_executed();
            reserved.take_out(&bench.h, &bench.unit).unwrap();
            assert!(!reserved.is_in() && !is_at_its_memory(&bench));
            let log = bench.take_log();
            let position = |found: &dyn Fn(&Event) -> bool| log.iter().position(found).unwrap();
            let out = position(&|event| *event == Event::Store(context_at, context & !1));
            let submitted = position(&|event| matches!(event, Event::Register(0x88, _)));
            let unmapped =
                position(&|event| matches!(event, Event::Store(at, 0) if leaves.contains(at)));
            assert!(out < submitted && submitted < unmapped);
            // The context table stays with the unit.
            let now = (bench.h.pool.free_frames() + 1, bench.unit.free_domain_ids());
            assert_eq!(now, free);
            assert_eq!(
                bench.unit.reserved_regions(device()),
                regions(),
                "still known"
            );
        }
    }

    // G18: a failure at each step leaves the device blocked, and nothing behind.
    #[test]
    fn the_nth_allocation_fails() {
        let bench = up(|_| {});
        let mut reserved = track(&bench);
        // From now on there is a context table.
        reserved.let_in(&bench.h, &bench.unit).unwrap();
        reserved.take_out(&bench.h, &bench.unit).unwrap();
        let free = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
        let mut failures = 0;
        for allowed in 0.. {
            bench.world().fail_allocation = Some(allowed);
            let result = reserved.let_in(&bench.h, &bench.unit);
            bench.world().fail_allocation = None;
            if result.is_ok() {
                break;
            }
            failures += 1;
            assert!(!reserved.is_in() && reach(&bench, FIRST).is_none());
            let now = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
            assert_eq!(now, free, "{result:?}");
        }
        assert!(failures >= 5, "{failures}");
        assert!(is_at_its_memory(&bench));
        reserved.take_out(&bench.h, &bench.unit).unwrap();
    }

    // G18
    #[test]
    fn memory_stays_mapped_until_hardware_confirms() {
        let bench = up(|_| {});
        let mut reserved = track(&bench);
        reserved.let_in(&bench.h, &bench.unit).unwrap();
        let held = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
        let lost = lost_table_frames();
        bench.world().completion = Completion::Never;
        for _ in 0..2 {
            bench.take_log();
            let error = reserved.take_out(&bench.h, &bench.unit).unwrap_err();
            assert!(matches!(error, QueueError::TimedOut { .. }), "{error:?}");
            assert!(!reserved.is_in() && reach(&bench, FIRST).is_none());
            // Hardware may still walk what it has cached the way to.
            let now = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
            assert_eq!(now, held);
            let error = reserved.let_in(&bench.h, &bench.unit).unwrap_err();
            assert!(matches!(
                error,
                ReservedMemoryError::Unit(UnitError::Queue(_))
            ));
        }
        bench.world().completion = Completion::Now;
        reserved.let_in(&bench.h, &bench.unit).unwrap();
        assert!(is_at_its_memory(&bench));
        reserved.take_out(&bench.h, &bench.unit).unwrap();
        assert_eq!(lost_table_frames(), lost);
    }

    #[test]
    fn a_full_queue_leaves_the_device_blocked_and_its_memory_mapped() {
        let bench = up(|_| {});
        let mut reserved = track(&bench);
        reserved.let_in(&bench.h, &bench.unit).unwrap();
        let held = bench.h.pool.free_frames();
        bench.world().is_frozen = true;
        drop(bench.unit.submit(&bench.h, &[EVERYTHING[1]; 125]).unwrap());
        assert!(reserved.take_out(&bench.h, &bench.unit).is_err());
        assert!(!reserved.is_in() && reach(&bench, FIRST).is_none());
        assert_eq!(bench.h.pool.free_frames(), held);
    }

    #[test]
    fn what_cannot_be_kept_track_of_is_refused() {
        let bench = up(|_| {});
        let track =
            |requesters, regions| ReservedDevice::track(&bench.unit, requesters, regions).map(drop);
        let ids = RequesterIds::of(device());
        let none = ReservedMemoryError::NoRegions(device());
        assert_eq!(track(ids, ReservedRegions::new()), Err(none));
        assert_eq!(track(ids, regions()), Ok(()));
        // The same device under another of its names.
        let mut other = RequesterIds::of(SourceId::from_u16(0x100));
        other.add(device()).unwrap();
        let known = ReservedMemoryError::Known(device());
        assert_eq!(track(other, regions()), Err(known));
        for index in 1..RESERVED_DEVICES as u16 {
            let ids = RequesterIds::of(SourceId::from_u16(0x200 + index));
            assert_eq!(track(ids, regions()), Ok(()));
        }
        let last = SourceId::from_u16(0x300);
        let full = ReservedMemoryError::TooMany(last);
        assert_eq!(track(RequesterIds::of(last), regions()), Err(full));
        assert!(bench.unit.reserved_regions(last).is_empty());
    }

    #[test]
    fn a_region_that_cannot_be_mapped_keeps_the_device_out() {
        let bench = up(|_| {});
        let free = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
        // Beyond the host address width of 39 bits; the interrupt range.
        for base in [1 << 39, 0xfee0_0000] {
            let region = ReservedRegion::new(Hpa::new(base), 0x1000).unwrap();
            let ids = RequesterIds::of(SourceId::from_u16((base >> 24) as u16));
            let regions = ReservedRegions::from_slice(&[region]).unwrap();
            let mut reserved = ReservedDevice::track(&bench.unit, ids, regions).unwrap();
            let error = reserved.let_in(&bench.h, &bench.unit).unwrap_err();
            assert!(
                matches!(error, ReservedMemoryError::Map { base: found, .. } if found == region.base())
            );
            let now = (bench.h.pool.free_frames(), bench.unit.free_domain_ids());
            assert_eq!(now, free);
        }
    }
}
