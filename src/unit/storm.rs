//! Fault storms: how many faults of a device are worth a look, and what ends the rest.
//!
//! A device can fault as fast as its link carries requests, and each fault costs an interrupt and a
//! look at tables. So faults are counted for each device over a window of time. The first ones are
//! handled; the one that is too many ends the storm at its source, and what is still under way is
//! counted only. The first fault after a quiet window is always handled.

use heapless::Vec;

use super::error::QueueError;
use super::queue::Ticket;
use super::tables::DeviceTables;
use super::unit::Unit;
use crate::arch::id::SourceId;
use crate::arch::register::FaultRecord;
use crate::mem::{Hypervisor, Platform, Registers};

/// How many faults of one device are handled in a window of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StormLimit {
    /// Faults that are handled in one window; 0 counts as 1.
    pub faults: u32,
    /// Length of a window, in nanoseconds. It begins with a fault.
    pub window_nanoseconds: u64,
}

impl StormLimit {
    /// 1,024 faults in a second: more than a driver that looks at each of them can use.
    pub const DEFAULT: Self = Self {
        faults: 1024,
        window_nanoseconds: 1_000_000_000,
    };
}

impl Default for StormLimit {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What is to be done about a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum StormVerdict {
    /// It is to be handled.
    Handle,
    /// It is one too many: the device is to be silenced.
    Silence,
    /// The device was to be silenced in this window.
    Ignore,
}

/// How often one device faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultRate {
    window_start_nanoseconds: u64,
    /// Faults in the window; 0 before the first ever.
    faults: u32,
}

impl FaultRate {
    /// No faults yet.
    pub const fn new() -> Self {
        Self {
            window_start_nanoseconds: 0,
            faults: 0,
        }
    }

    /// Whether the current window is over: the device may be heard again.
    pub const fn is_over(&self, limit: &StormLimit, now_nanoseconds: u64) -> bool {
        let age = now_nanoseconds.saturating_sub(self.window_start_nanoseconds);
        self.faults == 0 || age >= limit.window_nanoseconds
    }

    /// Counts one fault.
    pub const fn count(&mut self, limit: &StormLimit, now_nanoseconds: u64) -> StormVerdict {
        if self.is_over(limit, now_nanoseconds) {
            *self = Self {
                window_start_nanoseconds: now_nanoseconds,
                faults: 0,
            };
        }
        self.faults = self.faults.saturating_add(1);
        let most = if limit.faults == 0 { 1 } else { limit.faults };
        if self.faults <= most {
            StormVerdict::Handle
        } else if self.faults == most.saturating_add(1) {
            StormVerdict::Silence
        } else {
            StormVerdict::Ignore
        }
    }
}

/// What one device has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceFaults {
    /// The device.
    pub source_id: SourceId,
    /// Its faults, all of them; saturates.
    pub faults: u64,
    /// Those of them that were ignored; saturates.
    pub ignored: u64,
    /// How often its bus mastering was turned off; saturates.
    pub silenced: u32,
    rate: FaultRate,
}

/// Counts the faults of devices that no machine has, and ends their storms: their requests lead
/// nowhere anyway, so bus mastering is turned off.
///
/// `DEVICES` are counted one by one. With more of them, the one whose window began first makes room,
/// so that invented source-ids do not keep a storm from being seen; what it had counted goes to
/// [`others`](Self::others).
#[derive(Debug)]
pub struct FaultStorms<const DEVICES: usize> {
    limit: StormLimit,
    devices: Vec<DeviceFaults, DEVICES>,
    others: u64,
}

impl<const DEVICES: usize> FaultStorms<DEVICES> {
    /// No faults yet.
    pub const fn new(limit: StormLimit) -> Self {
        Self {
            limit,
            devices: Vec::new(),
            others: 0,
        }
    }

    /// The devices that are counted.
    pub fn devices(&self) -> &[DeviceFaults] {
        &self.devices
    }

    /// Faults of devices that are not counted one by one (any more); saturates.
    pub const fn others(&self) -> u64 {
        self.others
    }

    /// The line of a device, made if there is none.
    fn line(&mut self, source_id: SourceId) -> Option<&mut DeviceFaults> {
        let new = DeviceFaults {
            source_id,
            faults: 0,
            ignored: 0,
            silenced: 0,
            rate: FaultRate::new(),
        };
        let known = self
            .devices
            .iter()
            .position(|device| device.source_id == source_id);
        let index = match known {
            Some(index) => index,
            None if self.devices.push(new).is_ok() => self.devices.len().saturating_sub(1),
            None => {
                let oldest = self
                    .devices
                    .iter_mut()
                    .enumerate()
                    .min_by_key(|(_, device)| device.rate.window_start_nanoseconds);
                let (index, device) = oldest?;
                self.others = self.others.saturating_add(device.faults);
                *device = new;
                index
            }
        };
        self.devices.get_mut(index)
    }

    /// Counts a fault of a device, and turns the device's bus mastering off if it is one too many.
    /// Only what comes back as [`StormVerdict::Handle`] is worth more work.
    pub fn count<P: Platform>(&mut self, platform: &P, record: &FaultRecord) -> StormVerdict {
        let (limit, now) = (self.limit, platform.now_nanoseconds());
        let source_id = record.source_id();
        let Some(device) = self.line(source_id) else {
            self.others = self.others.saturating_add(1);
            return StormVerdict::Ignore;
        };
        device.faults = device.faults.saturating_add(1);
        let verdict = device.rate.count(&limit, now);
        if verdict != StormVerdict::Handle {
            device.ignored = device.ignored.saturating_add(1);
        }
        if verdict == StormVerdict::Silence {
            device.silenced = device.silenced.saturating_add(1);
            log::error!("{source_id} faults without end: bus mastering is turned off: {record}");
            platform.set_bus_master(source_id, false);
        }
        verdict
    }

    /// Forgets a device, as when it was reset or is given to somebody.
    pub fn forget(&mut self, source_id: SourceId) {
        self.devices.retain(|device| device.source_id != source_id);
    }
}

impl<R: Registers> Unit<R> {
    /// Takes at most `most` fault records out of the unit, oldest first, and gives each to
    /// `handle`; whether there may be more. What the handler of the fault event calls: it ends
    /// however fast devices fault.
    pub fn drain_faults(&self, most: u32, mut handle: impl FnMut(&FaultRecord)) -> bool {
        for _ in 0..most {
            let Some(record) = self.next_fault() else {
                return false;
            };
            handle(&record);
        }
        true
    }

    /// Has the unit not record a device's faults any more (`FPD` of its context entry, §7.1.1), or
    /// record them again. What the device may do stays the same. Faults that are found before the
    /// context entry was read are recorded all the same.
    ///
    /// One store and the invalidation of what holds the flag; does not wait.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit): the entry is changed, but what is cached of it may go on to
    /// count.
    pub fn set_fault_processing<H: Hypervisor>(
        &self,
        h: &H,
        tables: &DeviceTables,
        enabled: bool,
    ) -> Result<Ticket, QueueError> {
        self.store_fault_processing(h, tables.requesters(), enabled);
        if !enabled {
            self.counters.silenced.add(1);
        }
        self.forget_entries_of(h, tables)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::super::testing::{OWNER, bench, records, up};
    use super::*;
    use crate::arch::address::Iova;
    use crate::arch::register::{AddressType, FaultInfo, RequestType};
    use crate::mem::HostMemory;

    const LIMIT: StormLimit = StormLimit {
        faults: 3,
        window_nanoseconds: 1000,
    };

    #[test]
    fn the_first_faults_of_a_window_are_handled_and_one_too_many_silences() {
        use StormVerdict::{Handle, Ignore, Silence};
        let mut rate = FaultRate::new();
        assert!(rate.is_over(&LIMIT, 0));
        for (now, expected) in [
            (5, Handle),
            (6, Handle),
            (7, Handle),
            (8, Silence),
            (9, Ignore),
            (1004, Ignore),
            (1005, Handle),
            (1006, Handle),
            (5000, Handle),
            (5000, Handle),
            (5000, Handle),
            (5000, Silence),
            // A clock that goes back does not begin a new window.
            (1, Ignore),
        ] {
            assert_eq!(rate.count(&LIMIT, now), expected, "{now}");
        }
        assert!(!rate.is_over(&LIMIT, 5999));
        assert!(rate.is_over(&LIMIT, 6000));
    }

    #[test]
    fn the_first_fault_is_handled_whatever_the_limit() {
        let none = StormLimit {
            faults: 0,
            window_nanoseconds: u64::MAX,
        };
        let mut rate = FaultRate::new();
        assert_eq!(rate.count(&none, 0), StormVerdict::Handle);
        assert_eq!(rate.count(&none, 0), StormVerdict::Silence);
        assert_eq!(rate.count(&none, 0), StormVerdict::Ignore);
        rate.faults = u32::MAX;
        assert_eq!(rate.count(&none, 0), StormVerdict::Ignore);
    }

    fn record(source_id: u16) -> FaultRecord {
        FaultRecord::new(FaultInfo {
            source_id: SourceId::from_u16(source_id),
            pasid: None,
            reason: 0x41,
            address: Iova::new(0x5000),
            request: RequestType::Read,
            privileged: false,
            execute: false,
            address_type: AddressType::Untranslated,
        })
    }

    #[test]
    fn a_device_that_storms_loses_bus_mastering_and_others_are_handled() {
        let bench = bench(|_| {});
        let mut storms = FaultStorms::<4>::new(StormLimit {
            window_nanoseconds: u64::MAX,
            ..LIMIT
        });
        let mut handled = 0;
        for round in 0..10u16 {
            if storms.count(&bench.h, &record(0x10)) == StormVerdict::Handle {
                handled += 1;
            }
            if round < 2 {
                assert_eq!(storms.count(&bench.h, &record(0x20)), StormVerdict::Handle);
            }
        }
        assert_eq!(handled, 3);
        assert_eq!(
            bench.take_bus_masters(),
            [(SourceId::from_u16(0x10), false)],
            "once"
        );
        let [first, second] = storms.devices() else {
            panic!("{storms:?}");
        };
        assert_eq!((first.faults, first.ignored, first.silenced), (10, 7, 1));
        assert_eq!((second.faults, second.ignored, second.silenced), (2, 0, 0));
        storms.forget(SourceId::from_u16(0x10));
        assert_eq!(storms.count(&bench.h, &record(0x10)), StormVerdict::Handle);
    }

    #[test]
    fn invented_source_ids_make_room_for_each_other_and_lose_no_count() {
        let bench = bench(|_| {});
        let mut storms = FaultStorms::<2>::new(LIMIT);
        for source_id in 0..100 {
            assert_eq!(
                storms.count(&bench.h, &record(source_id)),
                StormVerdict::Handle
            );
        }
        assert_eq!((storms.devices().len(), storms.others()), (2, 98));
        let mut none = FaultStorms::<0>::new(LIMIT);
        assert_eq!(none.count(&bench.h, &record(1)), StormVerdict::Ignore);
        assert_eq!(none.others(), 1);
    }

    #[test]
    fn draining_ends_though_faults_come_as_fast_as_they_are_taken() {
        let bench = bench(|options| options.capability = records(4));
        bench.world().record_fault(7);
        let mut taken = Vec::new();
        let more = bench.unit.drain_faults(20, |record| {
            taken.push(record.source_id().as_u16());
            bench.world().record_fault(7);
        });
        assert!(more);
        assert_eq!(taken, [7; 20]);
        assert!(!bench.unit.drain_faults(20, |_| {}));
    }

    #[test]
    fn fault_processing_is_one_bit_of_the_context_entry() {
        // §9.4: FPD is bit 1, and counts whether the entry is present or not.
        let bench = up(|_| {});
        let source_id = SourceId::from_u16(0x10);
        let owner = OWNER;
        let tables = bench
            .unit
            .attach_device(&bench.h, owner, source_id, 0)
            .unwrap();
        let at = bench.context_entry(source_id);
        let before = bench.h.read64(at);
        for (enabled, expected) in [(false, before | 2), (false, before | 2), (true, before)] {
            let ticket = bench
                .unit
                .set_fault_processing(&bench.h, &tables, enabled)
                .unwrap();
            assert_eq!(bench.h.read64(at), expected);
            bench.unit.wait(&bench.h, ticket).unwrap();
        }
        assert_eq!(bench.unit.statistics().silenced, 2);
        let ticket = bench.unit.block_device(&bench.h, &tables).unwrap();
        bench.unit.wait(&bench.h, ticket).unwrap();
        let ticket = bench
            .unit
            .set_fault_processing(&bench.h, &tables, false)
            .unwrap();
        assert_eq!(bench.h.read64(at), before & !1 | 2, "it stays blocked");
        bench.unit.wait(&bench.h, ticket).unwrap();
        // Released and attached again, its faults are recorded again.
        let detached = bench.unit.detach_device(&bench.h, tables).unwrap();
        bench.unit.release(&bench.h, detached).unwrap();
        assert_eq!(bench.h.read64(at), 0);
    }
}
