//! The interrupt remapping table entry (§9.9, §9.10).

use super::{DeliveryMode, Interrupt};
use crate::arch::address::PhysicalAddress;
use crate::arch::fault::FaultReason;
use crate::arch::id::SourceId;
use crate::arch::quadwords::{beyond, first_reserved, mask_if, table_entry};

table_entry! {
    /// One 16-byte interrupt remapping table entry, as it lies in memory (§9.9, §9.10).
    ///
    /// Any bit pattern is a value of this type; [`process`](Self::process) tells what hardware makes
    /// of it. Hardware reads an entry in one piece, and software has to store it so.
    #[doc(alias = "IRTE")]
    InterruptEntry, quadwords: 2, bytes: 16
}

/// Bits of a destination that are no xAPIC id: all but 47:40.
const NOT_XAPIC: u64 = 0xffff_00ff_0000_0000;
/// 31:24 and 14:12; with bit 15 (`IM`) where there are no posted interrupts, which makes `IM` and
/// `URG` reserved.
const RESERVED_REMAPPED: u64 = 0xff00_7000;
const POSTED: u64 = 1 << 15;
const URGENT: u64 = 1 << 14;
/// 37:24, 13:12 and 7:2.
const RESERVED_POSTED: u64 = 0x3f_ff00_30fc;
/// Above `SVT`: 127:84 of a remapped entry, 95:84 of a posted one.
const RESERVED_HIGH: u64 = !0xf_ffff;
const RESERVED_HIGH_POSTED: u64 = 0xfff0_0000;

/// What of a unit's abilities and state decides over entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptFeatures {
    /// Destinations are 32-bit APIC ids (`IRTA.EIME`).
    pub extended_interrupt_mode: bool,
    /// Interrupts can be posted (`CAP.PI`).
    pub posted_interrupts: bool,
    /// The width of physical addresses in bits.
    pub host_address_width: u8,
}

/// Which requesters may use an entry (`SVT`, `SQ`, `SID`; §9.9).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SourceValidation {
    /// `SVT` = 0: all of them.
    None,
    /// `SVT` = 1: this one, and those that differ only in function bits that are ignored.
    SourceId {
        /// The requester.
        source_id: SourceId,
        /// What `SQ` ignores: 0, or bit 2, bits 2:1, bits 2:0 of the function number.
        ignored_function_bits: u8,
    },
    /// `SVT` = 2: those on these buses.
    Buses {
        /// The first bus (`SID` 15:8).
        first: u8,
        /// The last one (`SID` 7:0).
        last: u8,
    },
}

impl SourceValidation {
    /// Validation of the whole source-id.
    pub const fn exactly(source_id: SourceId) -> Self {
        Self::SourceId {
            source_id,
            ignored_function_bits: 0,
        }
    }

    /// Whether a request of this requester may use the entry.
    pub const fn allows(self, requester: SourceId) -> bool {
        match self {
            Self::None => true,
            Self::SourceId {
                source_id,
                ignored_function_bits,
            } => {
                let differing = source_id.as_u16() ^ requester.as_u16();
                differing & !(ignored_function_bits as u16) == 0
            }
            Self::Buses { first, last } => first <= requester.bus() && requester.bus() <= last,
        }
    }

    /// The validation in bits 19:0 of an entry's upper quadword.
    const fn field(self) -> u64 {
        match self {
            Self::None => 0,
            Self::SourceId {
                source_id,
                ignored_function_bits,
            } => {
                let qualifier: u64 = match ignored_function_bits & 7 {
                    0 => 0,
                    0b100 => 1,
                    0b110 => 2,
                    _ => 3,
                };
                source_id.as_u16() as u64 | qualifier << 16 | 1 << 18
            }
            Self::Buses { first, last } => (first as u64) << 8 | last as u64 | 2 << 18,
        }
    }
}

/// An entry in posted format (§9.10).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PostedInterrupt<A> {
    /// The posted-interrupt descriptor: 64-byte aligned.
    pub descriptor: A,
    /// The bit to set there.
    pub vector: u8,
    /// Notifies even while notifications are suppressed (`URG`).
    pub urgent: bool,
}

/// What an entry does with a request that it accepts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InterruptAction<A> {
    /// It becomes this interrupt.
    Remap(Interrupt),
    /// It is posted.
    Post(PostedInterrupt<A>),
}

/// Why hardware refuses a request by its entry (§5.1.4, Table 15).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InterruptEntryFault {
    /// The Present bit is clear.
    NotPresent,
    /// The requester is not among those that may use it.
    Source(SourceId),
    /// `SVT` is 3, which is reserved.
    SourceValidationType,
    /// Reserved bits are set.
    Reserved {
        /// The quadword, 0 or 1.
        quadword: u8,
        /// Those of its bits.
        bits: u64,
    },
    /// `DLM` is 3 or 6, which are reserved.
    DeliveryMode(u8),
}

impl InterruptEntryFault {
    /// The reason that is recorded. That of a reserved `SVT` is not specified.
    pub const fn reason(self) -> FaultReason {
        match self {
            Self::NotPresent => FaultReason::InterruptEntryNotPresent,
            Self::Source(_) => FaultReason::InterruptSourceDenied,
            Self::SourceValidationType | Self::Reserved { .. } | Self::DeliveryMode(_) => {
                FaultReason::InterruptEntryReserved
            }
        }
    }
}

impl InterruptEntry {
    /// A present entry in remapped format that does `interrupt` for the requesters in `source`;
    /// `None` if its destination does not fit: without extended interrupt mode it has 8 bits.
    pub const fn remapped(
        interrupt: &Interrupt,
        source: SourceValidation,
        extended_interrupt_mode: bool,
    ) -> Option<Self> {
        let destination = interrupt.destination as u64;
        let destination = match (extended_interrupt_mode, destination) {
            (true, _) => destination << 32,
            (false, 0..=0xff) => destination << 40,
            (false, _) => return None,
        };
        let low = 1
            | (interrupt.logical as u64) << 2
            | (interrupt.redirection_hint as u64) << 3
            | (interrupt.level_triggered as u64) << 4
            | interrupt.delivery.field() << 5
            | (interrupt.vector as u64) << 16
            | destination;
        Some(Self::from_quadwords([low, source.field()]))
    }

    /// A present entry in posted format; `None` if the descriptor is not 64-byte aligned.
    pub fn posted<A: PhysicalAddress>(
        interrupt: &PostedInterrupt<A>,
        source: SourceValidation,
    ) -> Option<Self> {
        let descriptor = interrupt.descriptor.to_u64();
        if descriptor & 63 != 0 {
            return None;
        }
        let low = 1
            | (interrupt.urgent as u64) << 14
            | POSTED
            | (interrupt.vector as u64) << 16
            | (descriptor & 0xffff_ffc0) << 32;
        let high = source.field() | descriptor & 0xffff_ffff_0000_0000;
        Some(Self::from_quadwords([low, high]))
    }

    /// Whether the entry counts (`P`).
    #[inline]
    pub const fn is_present(&self) -> bool {
        self.field::<0, 0>() == 1
    }

    /// Whether faults of requests that come to it go unrecorded (`FPD`), which counts even while
    /// `P` is clear.
    #[doc(alias = "FPD")]
    #[inline]
    pub const fn is_fault_processing_disabled(&self) -> bool {
        self.field::<1, 1>() == 1
    }

    /// Which requesters may use it; `None` if `SVT` is 3.
    pub const fn source_validation(&self) -> Option<SourceValidation> {
        let source_id = self.field::<79, 64>() as u16;
        match self.field::<83, 82>() {
            0 => Some(SourceValidation::None),
            1 => Some(SourceValidation::SourceId {
                source_id: SourceId::from_u16(source_id),
                ignored_function_bits: match self.field::<81, 80>() {
                    0 => 0,
                    1 => 0b100,
                    2 => 0b110,
                    _ => 0b111,
                },
            }),
            2 => Some(SourceValidation::Buses {
                first: (source_id >> 8) as u8,
                last: source_id as u8,
            }),
            _ => None,
        }
    }

    /// What a request of `requester` comes to, checked in the order of §5.1.4.
    ///
    /// # Errors
    ///
    /// The first [`InterruptEntryFault`].
    pub fn process<A: PhysicalAddress>(
        &self,
        requester: SourceId,
        features: &InterruptFeatures,
    ) -> Result<InterruptAction<A>, InterruptEntryFault> {
        if !self.is_present() {
            return Err(InterruptEntryFault::NotPresent);
        }
        let source = self
            .source_validation()
            .ok_or(InterruptEntryFault::SourceValidationType)?;
        if !source.allows(requester) {
            return Err(InterruptEntryFault::Source(requester));
        }
        self.action(features)
    }

    /// What a present entry does, whoever the requester is.
    ///
    /// # Errors
    ///
    /// [`InterruptEntryFault::Reserved`] or [`InterruptEntryFault::DeliveryMode`].
    pub fn action<A: PhysicalAddress>(
        &self,
        features: &InterruptFeatures,
    ) -> Result<InterruptAction<A>, InterruptEntryFault> {
        let [low, high] = *self.quadwords();
        let is_posted = features.posted_interrupts && low & POSTED != 0;
        let vector = self.field::<23, 16>() as u8;
        if is_posted {
            let descriptor = high & 0xffff_ffff_0000_0000 | low >> 32 & 0xffff_ffc0;
            let too_wide = descriptor & beyond(features.host_address_width);
            let reserved = [
                RESERVED_POSTED | (too_wide & 0xffff_ffff) << 32,
                RESERVED_HIGH_POSTED | too_wide & 0xffff_ffff_0000_0000,
            ];
            return match first_reserved(self.quadwords(), &reserved) {
                Some((quadword, bits)) => Err(InterruptEntryFault::Reserved { quadword, bits }),
                None => Ok(InterruptAction::Post(PostedInterrupt {
                    descriptor: A::from_u64(descriptor),
                    vector,
                    urgent: low & URGENT != 0,
                })),
            };
        }
        let reserved = [
            RESERVED_REMAPPED | POSTED | mask_if(!features.extended_interrupt_mode, NOT_XAPIC),
            RESERVED_HIGH,
        ];
        if let Some((quadword, bits)) = first_reserved(self.quadwords(), &reserved) {
            return Err(InterruptEntryFault::Reserved { quadword, bits });
        }
        let mode = self.field::<7, 5>();
        let delivery =
            DeliveryMode::from_field(mode).ok_or(InterruptEntryFault::DeliveryMode(mode as u8))?;
        let destination = if features.extended_interrupt_mode {
            self.field::<63, 32>()
        } else {
            self.field::<47, 40>()
        };
        Ok(InterruptAction::Remap(Interrupt {
            destination: destination as u32,
            logical: self.field::<2, 2>() == 1,
            redirection_hint: self.field::<3, 3>() == 1,
            level_triggered: self.field::<4, 4>() == 1,
            delivery,
            vector,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::address::Hpa;

    const SOURCE: SourceId = SourceId::from_u16(0x1235);
    const XAPIC: InterruptFeatures = InterruptFeatures {
        extended_interrupt_mode: false,
        posted_interrupts: false,
        host_address_width: 46,
    };
    const X2APIC: InterruptFeatures = InterruptFeatures {
        extended_interrupt_mode: true,
        posted_interrupts: false,
        host_address_width: 46,
    };
    const POSTING: InterruptFeatures = InterruptFeatures {
        extended_interrupt_mode: false,
        posted_interrupts: true,
        host_address_width: 46,
    };

    fn action(
        entry: InterruptEntry,
        features: &InterruptFeatures,
    ) -> Result<InterruptAction<Hpa>, InterruptEntryFault> {
        entry.process(SOURCE, features)
    }

    #[test]
    fn remapped_entries_have_the_fields_where_the_specification_has_them() {
        // §9.9: DM 2, RH 3, TM 4, DLM 7:5, V 23:16, DST 63:32 or 47:40, SID 79:64, SVT 83:82.
        let interrupt = Interrupt {
            destination: 0x5a,
            logical: true,
            redirection_hint: true,
            level_triggered: true,
            delivery: DeliveryMode::LowestPriority,
            vector: 0x41,
        };
        let source = SourceValidation::exactly(SOURCE);
        let xapic = InterruptEntry::remapped(&interrupt, source, false).unwrap();
        assert_eq!(*xapic.quadwords(), [0x5a00_0041_003d, 0x4_1235]);
        assert_eq!(action(xapic, &XAPIC), Ok(InterruptAction::Remap(interrupt)));
        let wide = Interrupt {
            destination: 0x8000_0101,
            ..interrupt
        };
        let x2apic = InterruptEntry::remapped(&wide, source, true).unwrap();
        assert_eq!(*x2apic.quadwords(), [0x8000_0101_0041_003d, 0x4_1235]);
        assert_eq!(action(x2apic, &X2APIC), Ok(InterruptAction::Remap(wide)));
        assert_eq!(InterruptEntry::remapped(&wide, source, false), None);
    }

    #[test]
    fn posted_entries_have_the_fields_where_the_specification_has_them() {
        // §9.10: URG 14, IM 15, VV 23:16, PDA 31:6 in 63:38, PDA 63:32 in 127:96.
        let posted = PostedInterrupt {
            descriptor: Hpa::new(0x12_3456_7fc0),
            vector: 0x77,
            urgent: true,
        };
        let entry = InterruptEntry::posted(&posted, SourceValidation::exactly(SOURCE)).unwrap();
        assert_eq!(*entry.quadwords(), [0x3456_7fc0_0077_c001, 0x12_0004_1235]);
        assert_eq!(action(entry, &POSTING), Ok(InterruptAction::Post(posted)));
        let fault = InterruptEntryFault::Reserved {
            quadword: 0,
            bits: 0x3456_00c0_0000_c000,
        };
        assert_eq!(action(entry, &XAPIC), Err(fault), "IM is reserved");
        let unaligned = PostedInterrupt {
            descriptor: Hpa::new(0x20),
            ..posted
        };
        assert_eq!(
            InterruptEntry::posted(&unaligned, SourceValidation::None),
            None
        );
    }

    #[test]
    fn each_reserved_bit_is_found_and_no_other() {
        // §9.9 and §9.10. DLM is checked apart.
        let remapped = |high: u32, low: u32| move |bit: u32| (low..=high).contains(&bit);
        let is_reserved = |features: &InterruptFeatures, bit: u32| {
            if features.posted_interrupts {
                [(7, 2), (13, 12), (37, 24), (95, 84)]
                    .iter()
                    .any(|(high, low)| remapped(*high, *low)(bit))
                    // The descriptor beyond 46 bits.
                    || remapped(127, 110)(bit)
            } else {
                remapped(15, 12)(bit)
                    || remapped(31, 24)(bit)
                    || remapped(127, 84)(bit)
                    || !features.extended_interrupt_mode
                        && (remapped(39, 32)(bit) || remapped(63, 48)(bit))
            }
        };
        for features in [XAPIC, X2APIC, POSTING] {
            let base: u64 = if features.posted_interrupts {
                1 | 1 << 15
            } else {
                1
            };
            // All but P, DLM, IM and what says who may use it.
            for bit in
                (1..128).filter(|bit| ![5, 6, 7, 15].contains(bit) && !(64..84).contains(bit))
            {
                let [low, high] = *InterruptEntry::with_only(bit).quadwords();
                let entry = InterruptEntry::from_quadwords([low | base, high]);
                let found = action(entry, &features);
                let expected = is_reserved(&features, bit as u32);
                assert_eq!(found.is_err(), expected, "{features:?} {bit}");
                if let Err(fault) = found {
                    assert_eq!(fault.reason().code(), 0x24);
                }
            }
        }
        for mode in [3, 6] {
            let entry = InterruptEntry::from_quadwords([1 | mode << 5, 0]);
            let fault = InterruptEntryFault::DeliveryMode(mode as u8);
            assert_eq!(action(entry, &XAPIC), Err(fault));
            assert_eq!(fault.reason().code(), 0x24);
        }
    }

    #[test]
    fn faults_come_in_the_order_of_the_specification() {
        // §5.1.4: present, source, format. FPD counts in any case.
        for (low, high, code) in [
            (0xff00_0002, 0xf_0000, Some(0x22)),
            (0xff00_0003, 0x4_0001, Some(0x26)),
            (0xff00_0003, 0xc_1235, Some(0x24)),
            (0xff00_0003, 0x4_1235, Some(0x24)),
            (0x0041_0003, 0x4_1235, None),
        ] {
            let entry = InterruptEntry::from_quadwords([low, high]);
            let found = action(entry, &XAPIC).err();
            assert_eq!(found.map(|fault| fault.reason().code()), code, "{low:#x}");
            assert!(entry.is_fault_processing_disabled());
        }
    }

    #[test]
    fn sources_are_validated_as_the_entry_says() {
        // SVT, SQ, SID; who passes and who does not.
        type Row = (u64, u64, u64, &'static [u16], &'static [u16]);
        let rows: &[Row] = &[
            (0, 3, 0x1234, &[0, 0x1234, 0xffff], &[]),
            (1, 0, 0x1234, &[0x1234], &[0x1230, 0x1235, 0x1334, 0x123c]),
            (1, 1, 0x1235, &[0x1231, 0x1235], &[0x1234, 0x1237, 0x123d]),
            (1, 2, 0x1235, &[0x1231, 0x1233, 0x1237], &[0x1234, 0x123d]),
            (1, 3, 0x1235, &[0x1230, 0x1237], &[0x1238, 0x1335]),
            (2, 0, 0x0305, &[0x0300, 0x05ff], &[0x02ff, 0x0600, 0x0005]),
            (2, 0, 0x0503, &[], &[0x0300, 0x0400, 0x0500]),
        ];
        for (svt, sq, sid, pass, fail) in rows {
            let entry = InterruptEntry::from_quadwords([1, sid | sq << 16 | svt << 18]);
            let validation = entry.source_validation().unwrap();
            let allows = |id: &u16| validation.allows(SourceId::from_u16(*id));
            assert!(pass.iter().all(allows), "{validation:?}");
            assert!(!fail.iter().any(allows), "{validation:?}");
            if *svt != 0 {
                assert_eq!(validation.field(), sid | sq << 16 | svt << 18);
            }
        }
        let reserved = InterruptEntry::from_quadwords([1, 0xc_0000]);
        assert_eq!(reserved.source_validation(), None);
    }
}
