//! Interrupt requests of devices: remapping, posting and the interrupt-entry cache (§5, §6.4).

use std::collections::BTreeMap;

use vtd_nest::arch::address::{Hpa, Iova};
use vtd_nest::arch::capability::{CapabilityField as Cap, ExtendedCapabilityField as Ecap};
use vtd_nest::arch::fault::FaultReason;
use vtd_nest::arch::id::SourceId;
use vtd_nest::mem::HostMemory;

use crate::bits::{self, bit, field};
use crate::cache::{self, Blocked, CacheMode};
use crate::dma::Request;
use crate::fault::{Fault, Origin};
use crate::registers::{CFI, IRE, SIRTP};
use crate::unit::{ModelUnit, Unit};
use crate::violation::Violation;

/// An interrupt that a device sent and the unit did not block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInterrupt {
    /// The device.
    pub source_id: SourceId,
    /// The address written.
    pub address: u64,
    /// The data written.
    pub data: u32,
    /// What became of it.
    pub outcome: InterruptOutcome,
}

/// What the unit made of an interrupt request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptOutcome {
    /// Compatibility format, or remapping is off: it went on as the device wrote it (§5.1.2.1).
    Passed(ProcessorInterrupt),
    /// An entry for remapped interrupts was used (§9.9).
    Remapped {
        /// The interrupt index.
        index: u16,
        /// What the entry made of the request.
        interrupt: ProcessorInterrupt,
    },
    /// An entry for posted interrupts was used (§5.2.3, §9.10).
    Posted {
        /// The interrupt index.
        index: u16,
        /// The bit that was set in PIR.
        vector: u8,
        /// The posted-interrupt descriptor.
        descriptor: Hpa,
        /// The notification, if there was one.
        notification: Option<ProcessorInterrupt>,
    },
}

impl InterruptOutcome {
    /// What reaches processors.
    pub fn interrupt(&self) -> Option<ProcessorInterrupt> {
        match *self {
            Self::Passed(interrupt) | Self::Remapped { interrupt, .. } => Some(interrupt),
            Self::Posted { notification, .. } => notification,
        }
    }
}

/// An interrupt on its way to processors. Its level is always "asserted", except for what passes
/// unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessorInterrupt {
    /// The APIC id: 32 bits with EIME, else 8.
    pub destination: u32,
    /// The destination is a logical id (DM).
    pub is_logical: bool,
    /// One of the processors named, not all (RH).
    pub has_redirection_hint: bool,
    /// How it is delivered (DLM).
    pub delivery: DeliveryMode,
    /// Level-triggered (TM). Only the fixed and lowest-priority modes can be.
    pub is_level: bool,
    /// The vector.
    pub vector: u8,
}

/// How an interrupt is delivered (DLM, §9.9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeliveryMode {
    /// To all processors that the destination names.
    Fixed,
    /// To one of them.
    LowestPriority,
    /// A system management interrupt.
    SystemManagement,
    /// A non-maskable interrupt.
    NonMaskable,
    /// INIT.
    Init,
    /// As from an 8259A.
    External,
    /// An encoding that has no meaning: 3 or 6. Only what passes unchanged can have it.
    Undefined(u8),
}

impl DeliveryMode {
    fn from_bits(mode: u64) -> Self {
        match mode {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::SystemManagement,
            4 => Self::NonMaskable,
            5 => Self::Init,
            7 => Self::External,
            _ => Self::Undefined(mode as u8),
        }
    }

    fn may_be_level(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// The message that a device writes.
#[derive(Clone, Copy, Debug)]
struct Message {
    address: u64,
    data: u32,
}

impl Message {
    /// Address bit 4: remappable, not compatibility format.
    fn is_remappable(self) -> bool {
        bit(self.address, 4)
    }

    fn has_subhandle(self) -> bool {
        bit(self.address, 3)
    }

    /// The index of a remappable request (§5.1.3); the sum may have 17 bits.
    fn index(self) -> u32 {
        let handle = field(self.address, 19, 5) as u32 | (field(self.address, 2, 2) as u32) << 15;
        if self.has_subhandle() {
            handle + (self.data & 0xffff)
        } else {
            handle
        }
    }

    /// What a request in compatibility format asks for.
    fn as_sent(self) -> ProcessorInterrupt {
        let data = u64::from(self.data);
        ProcessorInterrupt {
            destination: field(self.address, 19, 12) as u32,
            is_logical: bit(self.address, 2),
            has_redirection_hint: bit(self.address, 3),
            delivery: DeliveryMode::from_bits(field(data, 10, 8)),
            is_level: bit(data, 15),
            vector: data as u8,
        }
    }
}

/// Why a request was blocked, and its index where the fault record tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Refused {
    blocked: Blocked,
    index: Option<u32>,
}

/// Reserved bits of a destination field in bits 63:32 while EIME=0: all but 47:40.
const DESTINATION_RESERVED: u64 = 0xffff_00ff_0000_0000;

/// A destination field in bits 63:32.
fn destination(word: u64, extended: bool) -> u32 {
    if extended {
        field(word, 63, 32) as u32
    } else {
        field(word, 47, 40) as u32
    }
}

/// An interrupt-remapping table entry, as it was fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry([u64; 2]);

impl Entry {
    fn is_present(self) -> bool {
        bit(self.0[0], 0)
    }

    /// FPD, which counts even while P=0.
    fn is_fault_disabled(self) -> bool {
        bit(self.0[0], 1)
    }

    /// IM.
    fn is_posted(self) -> bool {
        bit(self.0[0], 15)
    }

    fn vector(self) -> u8 {
        field(self.0[0], 23, 16) as u8
    }

    /// The address of the posted-interrupt descriptor.
    fn descriptor(self) -> u64 {
        self.0[1] & 0xffff_ffff_0000_0000 | self.0[0] >> 32 & 0xffff_ffc0
    }

    /// SVT, SQ and SID against the requester. SVT=3 is reserved; the specification does not say
    /// which fault it gives, and no source-id passes here.
    fn allows(self, source_id: SourceId) -> bool {
        let requester = u64::from(source_id.as_u16());
        let allowed = field(self.0[1], 15, 0);
        match field(self.0[1], 19, 18) {
            0 => true,
            1 => {
                let ignored = match field(self.0[1], 17, 16) {
                    0 => 0b000,
                    1 => 0b100,
                    2 => 0b110,
                    _ => 0b111,
                };
                (requester ^ allowed) & !ignored == 0
            }
            2 => (allowed >> 8..=allowed & 0xff).contains(&(requester >> 8)),
            _ => false,
        }
    }

    /// Whether the bits that §9.9 reserves are 0, and DLM has a meaning.
    fn is_valid_remapped(self, extended: bool) -> bool {
        let [q0, q1] = self.0;
        let destination = if extended { 0 } else { DESTINATION_RESERVED };
        // IM is among the reserved bits: whoever comes here takes the entry for a remapped one.
        let reserved = 0xff00_f000 | destination;
        let mode = DeliveryMode::from_bits(field(q0, 7, 5));
        q0 & reserved == 0 && q1 >> 20 == 0 && !matches!(mode, DeliveryMode::Undefined(_))
    }

    /// Whether the bits that §9.10 reserves are 0.
    fn is_valid_posted(self, host_address_width: u8) -> bool {
        let [q0, q1] = self.0;
        let beyond_host = bits::from_bit(u32::from(host_address_width));
        q0 & 0x3f_ff00_30fc == 0 && q1 & 0xfff0_0000 == 0 && self.descriptor() & beyond_host == 0
    }

    fn remapped(self, extended: bool) -> ProcessorInterrupt {
        let q0 = self.0[0];
        let delivery = DeliveryMode::from_bits(field(q0, 7, 5));
        ProcessorInterrupt {
            destination: destination(q0, extended),
            is_logical: bit(q0, 2),
            has_redirection_hint: bit(q0, 3),
            delivery,
            is_level: bit(q0, 4) && delivery.may_be_level(),
            vector: self.vector(),
        }
    }
}

/// The interrupt-entry cache (§6.4). Entries are kept as they were fetched: each request is
/// validated against them anew.
pub(crate) struct InterruptEntryCache {
    mode: CacheMode,
    random: u64,
    entries: BTreeMap<u16, Entry>,
    /// A new table was set, and no global invalidation came since (§6.7).
    awaits_invalidation: bool,
}

impl InterruptEntryCache {
    pub(crate) fn new(mode: CacheMode, seed: u64) -> Self {
        Self {
            mode,
            random: seed | 1,
            entries: BTreeMap::new(),
            awaits_invalidation: false,
        }
    }

    /// Empties the cache, as hardware may at any time.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    fn insert(&mut self, index: u16, entry: Entry) {
        cache::insert(&mut self.entries, self.mode, &mut self.random, index, entry);
    }

    fn invalidate_all(&mut self) {
        self.entries.clear();
        self.awaits_invalidation = false;
    }

    /// Drops the 2^`mask` indexes around `index`.
    fn invalidate(&mut self, index: u16, mask: u32) {
        let block = |index: u16| u64::from(index) >> mask;
        self.entries.retain(|&key, _| block(key) != block(index));
    }
}

impl Unit {
    // ---- requests ----

    /// A write of 4 bytes without PASID into the interrupt range (§5.1.4).
    pub(crate) fn interrupt(&mut self, request: &Request, data: u32) -> Result<(), Fault> {
        let message = Message {
            address: request.address.as_u64(),
            data,
        };
        match self.process_message(request.source_id, message) {
            Ok(outcome) => {
                self.interrupts.push(DeviceInterrupt {
                    source_id: request.source_id,
                    address: message.address,
                    data,
                    outcome,
                });
                Ok(())
            }
            Err(Refused { blocked, index }) => {
                // FI has the index in bits 63:48; where it has none it is undefined (§11.4.7.6),
                // so that it is no index that anybody uses.
                let information = index.map_or(0xdead_dead_dead_d000, |i| u64::from(i) << 48);
                Err(self.block_with(Origin::Untranslated, request, blocked, information))
            }
        }
    }

    fn process_message(
        &mut self,
        source_id: SourceId,
        message: Message,
    ) -> Result<InterruptOutcome, Refused> {
        use FaultReason::*;
        let refused = |reason, index| Refused {
            blocked: Blocked {
                reason,
                fault_disable: false,
            },
            index,
        };
        if !self.registers.interrupt_remapping_enabled() {
            if self.config.has(Ecap::INTERRUPT_REMAPPING_REQUIRED) {
                return Err(refused(InterruptRemappingRequired, None));
            }
            return Ok(InterruptOutcome::Passed(message.as_sent()));
        }
        let extended = self.has_extended_interrupts();
        if !extended && self.config.has(Ecap::EXTENDED_INTERRUPT_MODE_REQUIRED) {
            return Err(refused(InterruptExtendedModeRequired, None));
        }
        if !message.is_remappable() {
            if extended || self.registers.status & CFI == 0 {
                return Err(refused(InterruptCompatibilityFormatBlocked, None));
            }
            return Ok(InterruptOutcome::Passed(message.as_sent()));
        }
        if message.has_subhandle() && message.data >> 16 != 0 {
            return Err(refused(InterruptRequestReserved, None));
        }
        let wide_index = message.index();
        let entries = 1 << (field(self.registers.interrupt_table, 3, 0) + 1);
        let index = u16::try_from(wide_index)
            .ok()
            .filter(|_| wide_index < entries)
            .ok_or(refused(InterruptIndexTooLarge, Some(wide_index)))?;
        let cached = self.interrupt_entries.entries.get(&index).copied();
        let entry = match cached {
            Some(entry) => {
                self.counters.interrupt_entry_hits += 1;
                entry
            }
            None => self
                .fetch_interrupt_entry(index)
                .map_err(|reason| refused(reason, Some(wide_index)))?,
        };
        let result = self.process_entry(source_id, index, entry);
        // What faults is not cached, unless CM=1.
        if cached.is_none() && (result.is_ok() || self.config.has_cap(Cap::CACHING_MODE)) {
            self.interrupt_entries.insert(index, entry);
        }
        result.map_err(|reason| Refused {
            blocked: Blocked {
                reason,
                fault_disable: entry.is_fault_disabled(),
            },
            index: Some(wide_index),
        })
    }

    fn fetch_interrupt_entry(&mut self, index: u16) -> Result<Entry, FaultReason> {
        let at = bits::page(self.registers.interrupt_table).wrapping_add(16 * u64::from(index));
        if at & self.beyond_host() != 0 {
            return Err(FaultReason::InterruptIndexTooLarge);
        }
        let snooped = self.config.has(Ecap::COHERENCY);
        self.fetch(at, snooped)
            .map(Entry)
            .ok_or(FaultReason::InterruptTableUnreadable)
    }

    /// What an entry makes of a request, in the order of §5.1.4.
    fn process_entry(
        &mut self,
        source_id: SourceId,
        index: u16,
        entry: Entry,
    ) -> Result<InterruptOutcome, FaultReason> {
        use FaultReason::*;
        if !entry.is_present() {
            return Err(InterruptEntryNotPresent);
        }
        if !entry.allows(source_id) {
            return Err(InterruptSourceDenied);
        }
        if entry.is_posted() && self.config.has_cap(Cap::POSTED_INTERRUPTS) {
            if !entry.is_valid_posted(self.config.host_address_width) {
                return Err(InterruptEntryReserved);
            }
            return self.post(index, entry);
        }
        let extended = self.has_extended_interrupts();
        if !entry.is_valid_remapped(extended) {
            return Err(InterruptEntryReserved);
        }
        Ok(InterruptOutcome::Remapped {
            index,
            interrupt: entry.remapped(extended),
        })
    }

    /// Posts an interrupt: one atomic update of the descriptor, then the notification (§5.2.3).
    fn post(&mut self, index: u16, entry: Entry) -> Result<InterruptOutcome, FaultReason> {
        let descriptor = entry.descriptor();
        let words: [u64; 8] = self
            .fetch(descriptor, true)
            .ok_or(FaultReason::PostedDescriptorUnreadable)?;
        let extended = self.has_extended_interrupts();
        let control = words[4];
        let narrow = if extended { 0 } else { DESTINATION_RESERVED };
        if control & (0xff00_fffc | narrow) != 0 || words[5..] != [0; 3] {
            return Err(FaultReason::PostedDescriptorReserved);
        }
        let vector = entry.vector();
        let (word, mask) = (usize::from(vector / 64), 1 << (vector % 64));
        let urgent = bit(entry.0[0], 14);
        let (outstanding, suppressed) = (bit(control, 0), bit(control, 1));
        let notifies = !outstanding && (urgent || !suppressed);
        self.update_descriptor(descriptor + 8 * word as u64, words[word], mask);
        if notifies {
            self.update_descriptor(descriptor + 32, control, 1);
        }
        Ok(InterruptOutcome::Posted {
            index,
            vector,
            descriptor: Hpa::new(descriptor),
            notification: notifies.then(|| ProcessorInterrupt {
                destination: destination(control, extended),
                is_logical: false,
                has_redirection_hint: false,
                delivery: DeliveryMode::Fixed,
                is_level: false,
                vector: field(control, 23, 16) as u8,
            }),
        })
    }

    /// Sets a bit of a descriptor that was just read; nobody else runs in between.
    fn update_descriptor(&mut self, at: u64, old: u64, mask: u64) {
        if old & mask == 0 {
            self.memory.compare_exchange(at, old, old | mask);
        }
    }

    // ---- commands ----

    /// EIME of the table address in force.
    fn has_extended_interrupts(&self) -> bool {
        bit(self.registers.interrupt_table, 11)
    }

    /// SIRTP (§6.7).
    pub(crate) fn set_interrupt_table(&mut self, table: u64) {
        let old = self.registers.interrupt_table;
        if self.registers.interrupt_remapping_enabled() {
            if bit(old ^ table, 11) {
                self.violation(Violation::ExtendedInterruptModeChangedWhileEnabled);
            }
            if let Some(index) = self.first_entry_that_differs(old, table) {
                self.violation(Violation::InterruptTableDiffers { index });
            }
        }
        self.registers.interrupt_table = table;
        self.registers.interrupt_table_set = true;
        self.registers.status |= SIRTP;
        if self.drops_interrupt_entries() {
            self.interrupt_entries.invalidate_all();
        } else {
            self.interrupt_entries.awaits_invalidation = true;
        }
    }

    /// IRE changes.
    pub(crate) fn switch_interrupt_remapping(&mut self, on: bool) {
        if on {
            if !self.registers.interrupt_table_set {
                self.violation(Violation::InterruptRemappingWithoutTable);
            }
            if self.interrupt_entries.awaits_invalidation {
                self.violation(Violation::InterruptEntryCacheNotInvalidated);
            }
            let required = self.config.has(Ecap::EXTENDED_INTERRUPT_MODE_REQUIRED);
            if required && !self.has_extended_interrupts() {
                self.violation(Violation::ExtendedInterruptModeRequired);
            }
        } else {
            self.registers.interrupt_table_set = false;
            if self.drops_interrupt_entries() {
                self.interrupt_entries.invalidate_all();
            }
        }
        self.registers.status ^= IRE;
    }

    /// ESIRTPS: SIRTP and IRE 1→0 empty the cache.
    fn drops_interrupt_entries(&self) -> bool {
        self.config
            .has_cap(Cap::ENHANCED_SET_INTERRUPT_TABLE_POINTER)
    }

    /// The first present entry of a table that another table does not have. What software keeps
    /// for itself in an entry does not count.
    fn first_entry_that_differs(&self, old: u64, new: u64) -> Option<u16> {
        const AVAILABLE: u64 = 0xf00;
        let entry = |table: u64, index: u64| {
            let at = Hpa::new(bits::page(table).wrapping_add(16 * index));
            let within = index < 1 << (field(table, 3, 0) + 1);
            if !within || !self.memory.is_ram(at, 16) {
                return None;
            }
            let low = self.memory.read64(at) & !AVAILABLE;
            let high = self.memory.read64(Hpa::new(at.as_u64() + 8));
            bit(low, 0).then_some([low, high])
        };
        (0..=u16::MAX).find(|&index| {
            let before = entry(old, index.into());
            before.is_some() && before != entry(new, index.into())
        })
    }

    // ---- invalidation ----

    /// An interrupt entry cache invalidation descriptor (§6.5.2.8).
    pub(crate) fn invalidate_interrupt_entries(&mut self, q0: u64) {
        if bit(q0, 4) {
            let (index, mask) = (field(q0, 47, 32) as u16, field(q0, 31, 27) as u32);
            self.interrupt_entries.invalidate(index, mask);
        } else {
            self.interrupt_entries.invalidate_all();
        }
    }
}

impl ModelUnit {
    /// A device sends an interrupt: it writes `data` to `address`, 4-byte aligned at 0xFEEx_xxxx.
    /// What comes of it, [`take_interrupts`](Self::take_interrupts) tells.
    ///
    /// # Errors
    ///
    /// The fault that blocks it.
    pub fn send_interrupt(
        &self,
        source_id: SourceId,
        address: u32,
        data: u32,
    ) -> Result<(), Fault> {
        let address = Iova::new(u64::from(address));
        self.dma_write(source_id, None, address, &data.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_the_handle_and_with_shv_the_subhandle_added() {
        for (address, data, index) in [
            (0xfee0_0010, 0xffff_ffff, 0),
            (0xfee0_0030, 0, 1),
            (0xfeef_fff0, 0, 0x7fff),
            (0xfee0_0014, 0, 0x8000),
            (0xfeef_fff4, 9, 0xffff),
            (0xfee0_0038, 0x0002, 3),
            (0xfee0_001b, 0xffff, 0xffff),
            (0xfeef_fffc, 0xffff, 0x1_fffe),
        ] {
            let message = Message { address, data };
            assert!(message.is_remappable());
            assert_eq!(message.index(), index, "{address:#x} {data:#x}");
        }
    }

    #[test]
    fn sources_are_validated_as_svt_and_sq_say() {
        // SVT, SQ, SID; source-ids that pass, and that do not.
        type Row = (u64, u64, u64, &'static [u16], &'static [u16]);
        let rows: &[Row] = &[
            (0, 0, 0x1234, &[0, 0x1234, 0xffff], &[]),
            (0, 3, 0, &[0, 0x1234, 0xffff], &[]),
            (1, 0, 0x1234, &[0x1234], &[0x1230, 0x1235, 0x1334, 0x123c]),
            (1, 1, 0x1235, &[0x1231, 0x1235], &[0x1234, 0x1237, 0x123d]),
            (
                1,
                2,
                0x1235,
                &[0x1231, 0x1233, 0x1235, 0x1237],
                &[0x1230, 0x1234, 0x123d],
            ),
            (
                1,
                3,
                0x1235,
                &[0x1230, 0x1234, 0x1237],
                &[0x122f, 0x1238, 0x1335],
            ),
            (
                2,
                0,
                0x0305,
                &[0x0300, 0x03ff, 0x0480, 0x05ff],
                &[0x02ff, 0x0600, 0x0003, 0x0005],
            ),
            (2, 0, 0x0303, &[0x0300, 0x03ff], &[0x0200, 0x0400]),
            (2, 0, 0x0503, &[], &[0x0300, 0x0400, 0x0500]),
            (3, 0, 0x1234, &[], &[0x1234, 0]),
        ];
        for (svt, sq, sid, pass, fail) in rows {
            let entry = Entry([1, sid | sq << 16 | svt << 18]);
            for (sources, expected) in [(pass, true), (fail, false)] {
                for source in *sources {
                    let source_id = SourceId::from_u16(*source);
                    let name = format!("SVT {svt} SQ {sq} SID {sid:#x}: {source:#x}");
                    assert_eq!(entry.allows(source_id), expected, "{name}");
                }
            }
        }
    }

    #[test]
    fn index_invalidations_reach_an_aligned_block() {
        for (index, mask, dropped) in [
            (5, 0, 5..6),
            (5, 1, 4..6),
            (5, 2, 4..8),
            (0, 3, 0..8),
            (9, 3, 8..16),
            (300, 8, 20..20),
            (3, 15, 0..20),
        ] {
            let mut cache = InterruptEntryCache::new(CacheMode::Hoarder, 1);
            for index in 0..20 {
                cache.insert(index, Entry([1, 0]));
            }
            cache.invalidate(index, mask);
            for index in 0..20 {
                let kept = !dropped.contains(&index);
                assert_eq!(cache.entries.contains_key(&index), kept, "{mask} {index}");
            }
        }
    }

    #[test]
    fn compatibility_requests_are_read_as_the_processors_read_them() {
        let interrupt = |address, data| Message { address, data }.as_sent();
        assert_eq!(
            interrupt(0xfee1_200c, 0xc731),
            ProcessorInterrupt {
                destination: 0x12,
                is_logical: true,
                has_redirection_hint: true,
                delivery: DeliveryMode::External,
                is_level: true,
                vector: 0x31,
            }
        );
        let plain = interrupt(0xfeef_f000, 0x0041);
        assert_eq!((plain.destination, plain.vector), (0xff, 0x41));
        assert_eq!(plain.delivery, DeliveryMode::Fixed);
        assert!(!plain.is_level && !plain.is_logical && !plain.has_redirection_hint);
    }
}
