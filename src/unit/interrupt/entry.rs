//! What an entry may do; entries set, cleared and invalidated.

use core::fmt;

use super::super::error::{QueueError, UnitError};
use super::super::unit::Unit;
use super::slice::InterruptSlice;
use crate::arch::address::Hpa;
use crate::arch::descriptor::{Descriptor, InterruptEntryGranularity};
use crate::arch::id::SourceId;
use crate::arch::interrupt::{
    DeliveryMode, Interrupt, InterruptAction, InterruptEntry, InterruptFeatures, PostedInterrupt,
    SourceValidation,
};
use crate::mem::{HostMemory, Hypervisor, Registers};

/// The lowest and the highest vector that a device may raise: those below are exceptions or reserved
/// to processors, the last one is customarily the spurious vector.
const VECTORS: core::ops::RangeInclusive<u8> = 16..=254;

/// One device's use of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInterrupt {
    /// The device: messages of any other are blocked. There is no entry that does not check.
    pub source_id: SourceId,
    /// What becomes of the device's message.
    pub action: InterruptAction<Hpa>,
}

/// Why an entry is not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptRefusal {
    /// No device may send an SMI, an `INIT` or an ExtINT.
    DeliveryMode(DeliveryMode),
    /// The vector is not 16 to 254.
    Vector(u8),
    /// The destination needs more than 8 bits, and the unit is not in extended interrupt mode.
    Destination(u32),
    /// The unit cannot post interrupts (`CAP.PI`).
    Posted,
    /// The posted-interrupt descriptor is not 64-byte aligned, or beyond the host address width.
    Descriptor(Hpa),
}

impl fmt::Display for InterruptRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeliveryMode(mode) => write!(f, "delivery mode {} is refused", mode.field()),
            Self::Vector(vector) => write!(f, "vector {vector} is not 16 to 254"),
            Self::Destination(id) => write!(f, "APIC id {id:#x} needs extended interrupt mode"),
            Self::Posted => f.write_str("the unit cannot post interrupts"),
            Self::Descriptor(at) => write!(f, "posted-interrupt descriptor at {at}"),
        }
    }
}

impl core::error::Error for InterruptRefusal {}

/// Whether a device may raise an interrupt: fixed and lowest-priority vectors, and NMIs, which
/// have none.
///
/// # Errors
///
/// [`InterruptRefusal::DeliveryMode`] or [`InterruptRefusal::Vector`].
pub fn check_interrupt(interrupt: &Interrupt) -> Result<(), InterruptRefusal> {
    match interrupt.delivery {
        DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
            if VECTORS.contains(&interrupt.vector) {
                Ok(())
            } else {
                Err(InterruptRefusal::Vector(interrupt.vector))
            }
        }
        DeliveryMode::NonMaskable => Ok(()),
        mode => Err(InterruptRefusal::DeliveryMode(mode)),
    }
}

impl DeviceInterrupt {
    /// The entry, with its reserved bits clear by construction and the whole source-id checked.
    fn entry(&self, features: &InterruptFeatures) -> Result<InterruptEntry, InterruptRefusal> {
        let source = SourceValidation::exactly(self.source_id);
        match &self.action {
            InterruptAction::Remap(interrupt) => {
                check_interrupt(interrupt)?;
                let extended = features.extended_interrupt_mode;
                InterruptEntry::remapped(interrupt, source, extended)
                    .ok_or(InterruptRefusal::Destination(interrupt.destination))
            }
            InterruptAction::Post(interrupt) => posted_entry(interrupt, source, features),
        }
    }
}

fn posted_entry(
    interrupt: &PostedInterrupt<Hpa>,
    source: SourceValidation,
    features: &InterruptFeatures,
) -> Result<InterruptEntry, InterruptRefusal> {
    if !features.posted_interrupts {
        return Err(InterruptRefusal::Posted);
    }
    if !VECTORS.contains(&interrupt.vector) {
        return Err(InterruptRefusal::Vector(interrupt.vector));
    }
    let refused = InterruptRefusal::Descriptor(interrupt.descriptor);
    let entry = InterruptEntry::posted(interrupt, source).ok_or(refused)?;
    match entry.action::<Hpa>(features) {
        Ok(_) => Ok(entry),
        Err(_) => Err(refused),
    }
}

/// Changed entries that hardware may still have cached (§6.4): a range of indices.
#[must_use = "hardware may use the old entries until they are invalidated"]
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StaleInterruptEntries {
    first: u16,
    last: u16,
}

impl StaleInterruptEntries {
    /// All entries of a slice.
    pub fn of(slice: &InterruptSlice) -> Self {
        let first = slice.first().as_u16();
        let last = slice.index(slice.count().saturating_sub(1));
        Self {
            first,
            last: last.map_or(first, |last| last.as_u16()),
        }
    }

    /// Adds others to these; entries in between are invalidated with them.
    pub fn merge(&mut self, other: Self) {
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }

    /// The one descriptor that invalidates them all, on a unit whose largest mask is this
    /// (`ECAP.MHMV`).
    pub fn descriptor(&self, maximum_handle_mask: u8) -> Descriptor {
        // The bits in which the first and the last differ lie within the block.
        let differing = self.first ^ self.last;
        let order = 16u32.saturating_sub(differing.leading_zeros()) as u8;
        let granularity = match u16::MAX.checked_shl(order.into()) {
            Some(block) if order <= maximum_handle_mask => InterruptEntryGranularity::Index {
                index: self.first & block,
                mask: order,
            },
            _ => InterruptEntryGranularity::Global,
        };
        Descriptor::InterruptEntryCache { granularity }
    }
}

impl<R: Registers> Unit<R> {
    /// The entry that is `offset` into a slice, as it is in memory; `None` beyond its end.
    pub fn read_interrupt_entry<H: HostMemory>(
        &self,
        h: &H,
        slice: &InterruptSlice,
        offset: u32,
    ) -> Option<InterruptEntry> {
        let index = slice.index(offset)?.as_u16();
        let at = self.interrupts.lock().place(index)?;
        let low = h.read64(at);
        let high = h.read64(at.checked_add(8)?);
        Some(InterruptEntry::from_quadwords([low, high]))
    }

    /// Sets the entry that is `offset` into a slice, by one 16-byte store: hardware sees the old or
    /// the new one. `None`: hardware knows nothing older.
    ///
    /// # Errors
    ///
    /// [`UnitError::Interrupt`] for what no device may raise or the unit cannot do,
    /// [`UnitError::InterruptOffset`] beyond the end of the slice, [`UnitError::NotUp`] while the unit
    /// does not remap interrupts. The entry is as it was.
    pub fn set_interrupt_entry<H: HostMemory>(
        &self,
        h: &H,
        slice: &mut InterruptSlice,
        offset: u32,
        interrupt: &DeviceInterrupt,
    ) -> Result<Option<StaleInterruptEntries>, UnitError> {
        let entry = interrupt.entry(&self.interrupt_features())?;
        self.store_interrupt_entry(h, slice, offset, entry)
    }

    /// Makes the entry that is `offset` into a slice absent. `None`: hardware knows nothing older.
    ///
    /// # Errors
    ///
    /// [`UnitError::InterruptOffset`], [`UnitError::NotUp`].
    pub fn clear_interrupt_entry<H: HostMemory>(
        &self,
        h: &H,
        slice: &mut InterruptSlice,
        offset: u32,
    ) -> Result<Option<StaleInterruptEntries>, UnitError> {
        self.store_interrupt_entry(h, slice, offset, InterruptEntry::default())
    }

    fn store_interrupt_entry<H: HostMemory>(
        &self,
        h: &H,
        slice: &mut InterruptSlice,
        offset: u32,
        entry: InterruptEntry,
    ) -> Result<Option<StaleInterruptEntries>, UnitError> {
        let refused = UnitError::InterruptOffset {
            offset,
            count: slice.count(),
        };
        let index = slice.index(offset).ok_or(refused)?.as_u16();
        if !self.remaps_interrupts() {
            return Err(UnitError::NotUp);
        }
        let Some(old) = self.read_interrupt_entry(h, slice, offset) else {
            return Err(refused);
        };
        if old == entry {
            return Ok(None);
        }
        let at = self.interrupts.lock().place(index).ok_or(refused)?;
        slice.is_used = true;
        let [low, high] = *entry.quadwords();
        h.write128(at, u128::from(high) << 64 | u128::from(low));
        self.flush_table(h, at, InterruptEntry::LEN_BYTES as u64);
        h.fence();
        // An absent entry is cached in caching mode only (§6.1); the write buffer is flushed with an
        // invalidation (§6.8).
        let owes = old.is_present()
            || self.needs_invalidation_after_set_up()
            || self.features.capability.requires_write_buffer_flush();
        Ok(owes.then_some(StaleInterruptEntries {
            first: index,
            last: index,
        }))
    }

    /// Makes hardware forget changed entries, and waits for that: the old ones are no longer used,
    /// and interrupts that used them are delivered (§6.5.5).
    ///
    /// # Errors
    ///
    /// What the queue says; the entries are still owed.
    pub fn invalidate_interrupt_entries<H: Hypervisor>(
        &self,
        h: &H,
        stale: StaleInterruptEntries,
    ) -> Result<(), (StaleInterruptEntries, QueueError)> {
        let descriptor = stale.descriptor(self.features.extended.maximum_handle_mask());
        let waited = self
            .submit(h, &[descriptor])
            .and_then(|ticket| self.wait(h, ticket));
        waited.map_err(|error| (stale, error))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::super::testing::{
        Bench, CACHING_MODE, COHERENT, Completion, Event, OWNER, Options, up,
    };
    use super::super::InterruptRemapping;
    use super::*;

    const DEVICE: SourceId = SourceId::from_u16(0x0310);

    fn remapping(change: impl FnOnce(&mut Options)) -> Bench {
        up(|options| {
            options.config.interrupts.remapping = InterruptRemapping::WhereAvailable;
            options.config.interrupts.table_order = 8;
            change(options);
        })
    }

    fn fixed(vector: u8) -> DeviceInterrupt {
        DeviceInterrupt {
            source_id: DEVICE,
            action: InterruptAction::Remap(Interrupt::fixed(3, vector)),
        }
    }

    fn index(index: u16, mask: u8) -> Descriptor {
        Descriptor::InterruptEntryCache {
            granularity: InterruptEntryGranularity::Index { index, mask },
        }
    }

    #[test]
    fn an_entry_is_one_store_that_hardware_sees() {
        // G13, G2: 16 bytes at once, written back where the unit does not snoop; SVT=1, SQ=0.
        for coherent in [0, COHERENT] {
            let bench = remapping(|options| options.extended |= coherent);
            let mut slice = bench.unit.allocate_interrupt_entries(OWNER, 32).unwrap();
            let table = bench.world().latched_interrupt_table.unwrap() & !0xfff;
            let at = table + 16 * 5;
            let stale = bench
                .unit
                .set_interrupt_entry(&bench.h, &mut slice, 5, &fixed(0x41));
            assert_eq!(stale, Ok(None), "nothing older is cached");
            let expected = [0x0300_0041_0001, 0x4_0310];
            let log = bench.take_log();
            let value = u128::from(expected[1]) << 64 | u128::from(expected[0]);
            assert_eq!(log[0], Event::Store128(at, value));
            let flushed = log.contains(&Event::Flush(at & !63));
            assert_eq!(flushed, coherent == 0);
            assert_eq!(log.last(), Some(&Event::Fence));
            for (quadword, expected) in (0..).zip(expected) {
                assert_eq!(bench.world().table_quadword(at + 8 * quadword), expected);
            }
            // The same again is nothing.
            let again = bench
                .unit
                .set_interrupt_entry(&bench.h, &mut slice, 5, &fixed(0x41));
            assert_eq!((again, bench.take_log().len()), (Ok(None), 0));
        }
    }

    #[test]
    fn what_was_present_or_may_be_cached_is_owed() {
        // G30, §6.4, §6.1.
        for (caching, owed_first) in [(0, false), (CACHING_MODE, true)] {
            let bench = remapping(|options| options.capability |= caching);
            let mut slice = bench.unit.allocate_interrupt_entries(OWNER, 16).unwrap();
            let mut set = |vector| {
                bench
                    .unit
                    .set_interrupt_entry(&bench.h, &mut slice, 9, &fixed(vector))
                    .unwrap()
            };
            assert_eq!(set(0x41).is_some(), owed_first);
            let stale = set(0x42).unwrap();
            assert_eq!(stale.descriptor(15), index(9, 0));
            assert_eq!(
                bench.unit.invalidate_interrupt_entries(&bench.h, stale),
                Ok(())
            );
            assert_eq!(bench.take_executed()[0], index(9, 0));
            let cleared = bench.unit.clear_interrupt_entry(&bench.h, &mut slice, 9);
            assert!(cleared.unwrap().is_some());
        }
    }

    #[test]
    fn one_descriptor_covers_all_that_is_stale() {
        for (entries, maximum, expected) in [
            (&[7, 7][..], 0, index(7, 0)),
            (&[4, 7], 15, index(4, 2)),
            (&[7, 8], 15, index(0, 4)),
            (&[0x7fff, 0x8000], 15, index(0, 16)),
            (&[4, 7], 1, index(0, 16)),
        ] {
            let stale = |index: u16| StaleInterruptEntries {
                first: index,
                last: index,
            };
            let mut all = stale(entries[1]);
            all.merge(stale(entries[0]));
            let expected = match expected {
                Descriptor::InterruptEntryCache {
                    granularity: InterruptEntryGranularity::Index { mask: 16, .. },
                } => Descriptor::InterruptEntryCache {
                    granularity: InterruptEntryGranularity::Global,
                },
                other => other,
            };
            assert_eq!(all.descriptor(maximum), expected, "{entries:x?} {maximum}");
        }
    }

    #[test]
    fn what_no_device_may_raise_is_refused_by_name_and_changes_nothing() {
        let bench = remapping(|_| {});
        let mut slice = bench.unit.allocate_interrupt_entries(OWNER, 16).unwrap();
        let with = |delivery, vector, destination| {
            let interrupt = Interrupt {
                delivery,
                ..Interrupt::fixed(destination, vector)
            };
            InterruptAction::Remap(interrupt)
        };
        let posted = InterruptAction::Post(PostedInterrupt {
            descriptor: Hpa::new(0x1000),
            vector: 0x41,
            urgent: false,
        });
        use DeliveryMode as D;
        for (action, refusal) in [
            (
                with(D::SystemManagement, 0x41, 0),
                InterruptRefusal::DeliveryMode(D::SystemManagement),
            ),
            (
                with(D::Init, 0x41, 0),
                InterruptRefusal::DeliveryMode(D::Init),
            ),
            (
                with(D::External, 0x41, 0),
                InterruptRefusal::DeliveryMode(D::External),
            ),
            (with(D::Fixed, 15, 0), InterruptRefusal::Vector(15)),
            (
                with(D::LowestPriority, 255, 0),
                InterruptRefusal::Vector(255),
            ),
            (
                with(D::Fixed, 16, 0x100),
                InterruptRefusal::Destination(0x100),
            ),
            (posted, InterruptRefusal::Posted),
        ] {
            let interrupt = DeviceInterrupt {
                source_id: DEVICE,
                action,
            };
            let set = bench
                .unit
                .set_interrupt_entry(&bench.h, &mut slice, 0, &interrupt);
            assert_eq!(set, Err(UnitError::Interrupt(refusal)));
        }
        assert!(bench.take_log().is_empty());
        for action in [
            with(D::Fixed, 16, 0xff),
            with(D::LowestPriority, 254, 0),
            with(D::NonMaskable, 0, 0),
        ] {
            let interrupt = DeviceInterrupt {
                source_id: DEVICE,
                action,
            };
            let set = bench
                .unit
                .set_interrupt_entry(&bench.h, &mut slice, 0, &interrupt);
            assert!(set.is_ok());
        }
    }

    #[test]
    fn posted_entries_are_made_where_the_unit_posts() {
        let bench = remapping(|options| options.capability |= 1 << 59);
        let mut slice = bench.unit.allocate_interrupt_entries(OWNER, 16).unwrap();
        let mut set = |descriptor| {
            let interrupt = DeviceInterrupt {
                source_id: DEVICE,
                action: InterruptAction::Post(PostedInterrupt {
                    descriptor: Hpa::new(descriptor),
                    vector: 0x41,
                    urgent: false,
                }),
            };
            bench
                .unit
                .set_interrupt_entry(&bench.h, &mut slice, 0, &interrupt)
        };
        assert_eq!(set(0x12_3440), Ok(None));
        for descriptor in [0x12_3420, 1 << 39] {
            let refusal = InterruptRefusal::Descriptor(Hpa::new(descriptor));
            assert_eq!(set(descriptor), Err(UnitError::Interrupt(refusal)));
        }
        let entry = bench.unit.read_interrupt_entry(&bench.h, &slice, 0);
        assert_eq!(
            entry.map(|entry| *entry.quadwords()),
            Some([0x0012_3440_0041_8001, 0x4_0310])
        );
    }

    #[test]
    fn a_slice_is_free_again_only_once_hardware_has_forgotten_it() {
        // G5 for interrupt entries.
        let bench = remapping(|_| {});
        let mut slice = bench.unit.allocate_interrupt_entries(OWNER, 512).unwrap();
        let none = bench.unit.allocate_interrupt_entries(OWNER, 1);
        let full = UnitError::InterruptEntries {
            wanted: 1,
            capacity: 512,
        };
        assert_eq!(none.map(drop), Err(full));
        let offset = UnitError::InterruptOffset {
            offset: 512,
            count: 512,
        };
        let beyond = bench
            .unit
            .set_interrupt_entry(&bench.h, &mut slice, 512, &fixed(0x41));
        assert_eq!(beyond, Err(offset));
        bench
            .unit
            .set_interrupt_entry(&bench.h, &mut slice, 511, &fixed(0x41))
            .unwrap();
        bench.world().completion = Completion::Never;
        let refused = bench.unit.release_interrupt_entries(&bench.h, slice);
        let (slice, error) = refused.unwrap_err();
        assert!(matches!(error, UnitError::Queue(_)));
        assert!(bench.unit.allocate_interrupt_entries(OWNER, 1).is_err());
        let entry = bench.unit.read_interrupt_entry(&bench.h, &slice, 511);
        assert_eq!(
            entry,
            Some(InterruptEntry::default()),
            "blocked all the same"
        );
        bench.world().completion = Completion::Now;
        bench.take_executed();
        assert!(
            bench
                .unit
                .release_interrupt_entries(&bench.h, slice)
                .is_ok()
        );
        assert_eq!(bench.take_executed()[0], index(0, 9));
        assert!(bench.unit.allocate_interrupt_entries(OWNER, 512).is_ok());
    }

    #[test]
    fn nothing_is_set_in_a_unit_that_does_not_remap() {
        let bench = up(|_| {});
        let refused = bench.unit.allocate_interrupt_entries(OWNER, 1);
        let none = UnitError::InterruptEntries {
            wanted: 1,
            capacity: 0,
        };
        assert_eq!(refused.map(drop), Err(none));
    }
}
