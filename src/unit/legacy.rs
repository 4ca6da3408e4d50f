//! Context entries of a unit that is driven in legacy mode (§9.3): one for each device, all of its
//! requests through one second-stage table.
//!
//! What is bound is said by a second-stage PASID entry in either mode, so that the layers above
//! need not know which it is; here it becomes a context entry, and the other way round.

use super::error::UnitError;
use crate::arch::address::{AddressWidth, Hpa};
use crate::arch::context::LegacyContextEntry;
use crate::arch::features::TableFeatures;
use crate::arch::id::DomainId;
use crate::arch::pasid::{PasidEntry, PasidEntryOptions, TranslationType};
use crate::arch::second_stage::SecondStagePointer;

/// In the second quadword of the context entry of each attached device, whatever it translates
/// to. Hardware ignores bits 70:67.
const ATTACHED_MARK: u64 = 1 << 3;

/// The context entry of an attached device that has no translation: its requests fault.
pub(super) const ATTACHED: LegacyContextEntry =
    LegacyContextEntry::from_quadwords([0, ATTACHED_MARK]);

/// The bit that silences faults (`FPD`) of the first quadword of a context entry, present or not. It
/// is not part of what an entry translates to, and outlives it.
pub(super) const fn fault_processing_bit(quadword: u64) -> u64 {
    quadword & LegacyContextEntry::FAULT_PROCESSING_DISABLE
}

/// Whether a context entry is that of an attached device without translation.
pub(super) fn is_without_translation(context: &LegacyContextEntry) -> bool {
    let [low, high] = *context.quadwords();
    [low ^ fault_processing_bit(low), high] == *ATTACHED.quadwords()
}

/// The context entry that does what a second-stage PASID entry says. With `device_tlb` the device may
/// use a TLB of its own (`TT` 01b).
///
/// # Errors
///
/// [`UnitError::NotInLegacyMode`] for another type, [`UnitError::LegacyContextEntry`] and
/// [`UnitError::ReservedDomainId`] for an entry that hardware would not accept.
pub(super) fn context_entry(
    entry: &PasidEntry,
    features: &TableFeatures,
    device_tlb: bool,
) -> Result<LegacyContextEntry, UnitError> {
    let refused = UnitError::NotInLegacyMode {
        translation_type: entry.translation_type_field(),
    };
    if u64::from(entry.translation_type_field()) != TranslationType::SecondStage.field() {
        return Err(refused);
    }
    let width = AddressWidth::from_field(u64::from(entry.address_width_field())).ok_or(refused)?;
    let root: Hpa = entry.second_stage_root();
    let context = LegacyContextEntry::second_stage(root, width, entry.domain_id(), device_tlb);
    context
        .decode::<Hpa>(features)
        .map_err(UnitError::LegacyContextEntry)?;
    if entry.domain_id() == DomainId::ZERO {
        return Err(UnitError::ReservedDomainId);
    }
    let [low, high] = *context.quadwords();
    Ok(LegacyContextEntry::from_quadwords([
        low,
        high | ATTACHED_MARK,
    ]))
}

/// The PASID entry that says what a context entry does. One that is not present keeps its
/// domain-id.
pub(super) fn pasid_entry(context: &LegacyContextEntry) -> PasidEntry {
    let width = AddressWidth::from_field(u64::from(context.address_width_field()));
    let domain_id = context.domain_id();
    match width {
        Some(width) if context.is_present() => PasidEntry::second_stage(
            SecondStagePointer::new(context.second_stage_root(), width),
            domain_id,
            PasidEntryOptions::default(),
        ),
        _ => PasidEntry::from_quadwords([0, u64::from(domain_id.as_u16()), 0, 0, 0, 0, 0, 0]),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::device_tlb::DeviceTlb;
    use super::super::discovery::RequesterIds;
    use super::super::testing::{
        Bench, CACHING_MODE, CAPABILITY, COHERENT, EXTENDED, Event, OWNER, up,
    };
    use super::super::{QueueError, tables::DeviceTables};
    use super::*;
    use crate::arch::context::LegacyContextFault;
    use crate::arch::descriptor::{
        ContextGranularity, Descriptor, IotlbGranularity, PasidCacheGranularity,
    };
    use crate::arch::id::{Pasid, SourceId};
    use crate::arch::register::{RootTableAddress, TranslationTableMode};
    use std::vec::Vec;

    /// `ECAP` without SMTS (43), and with it but without SSTS (46) and with FSTS (47).
    const UNITS: [u64; 2] = [EXTENDED & !(1 << 43), EXTENDED & !(1 << 46) | 1 << 47];

    fn device() -> SourceId {
        SourceId::new(3, 17, 2).unwrap()
    }

    fn second_stage(domain_id: u16) -> PasidEntry {
        PasidEntry::second_stage(
            SecondStagePointer::new(Hpa::new(0x1234_5000), AddressWidth::Bits48),
            DomainId::new(domain_id),
            PasidEntryOptions::default(),
        )
    }

    /// The context entry of the device as the unit sees it, by the figures of §9.1 and §9.3: the
    /// root entry of bus 3, then the entry of device 17 and function 2.
    fn seen(bench: &Bench) -> Option<[u64; 2]> {
        let world = bench.world();
        let root = world.latched_root.unwrap() & !0xfff;
        let root_entry = world.table_quadword(root + 3 * 16);
        assert_eq!(world.table_quadword(root + 3 * 16 + 8), 0, "reserved");
        if root_entry & 1 == 0 {
            return None;
        }
        assert_eq!(root_entry & 0xffe, 0);
        let at = (root_entry & !0xfff) + (17 << 3 | 2) * 16;
        Some([world.table_quadword(at), world.table_quadword(at + 8)])
    }

    fn attach(bench: &Bench) -> DeviceTables {
        bench
            .unit
            .attach_device(&bench.h, OWNER, device(), 0)
            .unwrap()
    }

    fn publish(bench: &Bench, tables: &DeviceTables, domain_id: u16) -> Result<(), UnitError> {
        let entry = second_stage(domain_id);
        bench
            .unit
            .publish_entry(&bench.h, tables, Pasid::ZERO, &entry)
    }

    #[test]
    fn a_unit_without_scalable_second_stage_gets_a_legacy_root() {
        for extended in UNITS {
            let bench = up(|options| options.extended = extended);
            let root = RootTableAddress::from_bits(bench.world().latched_root.unwrap());
            assert_eq!(root.mode(), TranslationTableMode::Legacy);
            // 256-bit descriptors where there is scalable mode (§6.5.2).
            let wide = bench.world().queue_address >> 11 & 1;
            assert_eq!(wide, extended >> 43 & 1);
        }
    }

    // G13, §9.3: q0 is P, TT, SSPTPTR; q1 is AW (2 is 48 bits), bit 67 our mark, DID from bit 72.
    #[test]
    fn an_entry_lives_and_goes_with_present_last_and_first() {
        for extended in [UNITS[0], UNITS[1], UNITS[0] | COHERENT] {
            let bench = up(|options| options.extended = extended);
            let tables = attach(&bench);
            assert_eq!(seen(&bench), Some([0, 8]), "attached and blocked");
            bench.take_log();
            publish(&bench, &tables, 9).unwrap();
            assert_eq!(seen(&bench), Some([0x1234_5001, 0x90a]));
            let stores: Vec<u64> = bench
                .take_log()
                .iter()
                .filter_map(|event| match event {
                    Event::Store(_, value) => Some(*value),
                    _ => None,
                })
                .collect();
            assert_eq!(stores, [0x90a, 0x1234_5001], "Present last");
            assert_eq!(
                publish(&bench, &tables, 9),
                Err(UnitError::EntryInUse(Pasid::ZERO))
            );
            let read = || bench.unit.read_entry(&bench.h, &tables, Pasid::ZERO);
            assert_eq!(read(), Some(second_stage(9)));

            bench.unit.withdraw_entry(&bench.h, &tables, Pasid::ZERO);
            assert_eq!(seen(&bench), Some([0, 0x90a]), "not present by one store");
            assert_eq!(read().unwrap().domain_id(), DomainId::new(9));
            assert_eq!(
                publish(&bench, &tables, 9),
                Err(UnitError::EntryInUse(Pasid::ZERO)),
                "hardware may still have the old one"
            );
            bench.unit.clear_entry(&bench.h, &tables, Pasid::ZERO);
            publish(&bench, &tables, 10).unwrap();
            bench.unit.clear_entry(&bench.h, &tables, Pasid::ZERO);
            assert_eq!(read(), Some(second_stage(10)), "a present one stays");

            let detached = bench.unit.detach_device(&bench.h, tables).unwrap();
            assert_eq!(seen(&bench).unwrap()[0] & 1, 0);
            let again = bench.unit.attach_device(&bench.h, OWNER, device(), 0);
            assert_eq!(
                again.map(drop).unwrap_err(),
                UnitError::Attached(device()),
                "until hardware has confirmed"
            );
            bench.unit.release(&bench.h, detached).unwrap();
            assert_eq!(seen(&bench), Some([0, 0]));
            assert_eq!(bench.h.pool.charged_frames(OWNER), 0);
            drop(attach(&bench));
        }
    }

    // §6.5.3, Table 28; with caching mode absent entries are cached under domain-id 0 (§6.2.2.1).
    #[test]
    fn a_change_is_told_by_context_and_domain() {
        for caching in [0, CACHING_MODE] {
            let bench = up(|options| {
                options.extended = UNITS[0];
                options.capability = CAPABILITY | caching;
            });
            let tables = attach(&bench);
            assert!(bench.take_executed().is_empty(), "nothing became present");
            let submitted = |ticket: Result<super::super::Ticket, QueueError>| {
                bench.unit.wait(&bench.h, ticket.unwrap()).unwrap();
                let mut executed = bench.take_executed();
                executed.pop();
                executed
            };
            let id = DomainId::new(9);
            let context = |domain_id| Descriptor::ContextCache {
                granularity: ContextGranularity::Device {
                    source_id: device(),
                    function_mask: 0,
                    domain_id,
                },
            };
            let domain = Descriptor::Iotlb {
                granularity: IotlbGranularity::Domain(id),
                drain_reads: true,
                drain_writes: true,
            };
            let unit = &bench.unit;
            let owed = unit.entry_invalidation(&tables, Pasid::ZERO, id);
            let told = submitted(unit.submit(&bench.h, &owed));
            if caching == 0 {
                assert_eq!(told, [context(id), domain]);
            } else {
                assert_eq!(told, [context(DomainId::ZERO), context(id), domain]);
            }
            let told = submitted(unit.block_device(&bench.h, &tables));
            assert_eq!(told.len(), 2, "all contexts, all translations: {told:?}");
            // There is no PASID cache, and hardware would stop at its descriptor.
            let pasid_cache = Descriptor::PasidCache {
                granularity: PasidCacheGranularity::Global,
            };
            let refused = unit.submit(&bench.h, &[pasid_cache]);
            assert!(matches!(refused, Err(QueueError::Descriptor { .. })));
        }
    }

    /// The context entries of bus 0 at these device and function numbers.
    fn on_bus_0(bench: &Bench, numbers: [u64; 2]) -> [[u64; 2]; 2] {
        let world = bench.world();
        let root = world.latched_root.unwrap() & !0xfff;
        let contexts = world.table_quadword(root) & !0xfff;
        numbers.map(|number| [0, 8].map(|at| world.table_quadword(contexts + number * 16 + at)))
    }

    // G20, §3.12
    #[test]
    fn every_source_id_of_a_device_has_the_same_translation() {
        let bench = up(|options| options.extended = UNITS[0]);
        let (own, alias) = (SourceId::from_u16(0x10), SourceId::from_u16(0xf8));
        let mut requesters = RequesterIds::of(own);
        requesters.add(alias).unwrap();
        let unit = &bench.unit;
        let tables = unit.attach_requesters(&bench.h, OWNER, &requesters, 0, None);
        let tables = tables.unwrap();
        let seen = || on_bus_0(&bench, [0x10, 0xf8]);
        assert_eq!(seen(), [[0, 8]; 2]);
        let taken = unit.attach_device(&bench.h, OWNER, alias, 0).map(drop);
        assert_eq!(taken, Err(UnitError::Attached(alias)));
        publish(&bench, &tables, 9).unwrap();
        assert_eq!(seen(), [[0x1234_5001, 0x90a]; 2]);
        let owed = unit.entry_invalidation(&tables, Pasid::ZERO, DomainId::new(9));
        let contexts = Descriptor::ContextCache {
            granularity: ContextGranularity::Global,
        };
        assert_eq!(owed.first(), Some(&contexts), "each of them is cached");
        unit.withdraw_entry(&bench.h, &tables, Pasid::ZERO);
        assert_eq!(seen(), [[0, 0x90a]; 2]);
        unit.clear_entry(&bench.h, &tables, Pasid::ZERO);
        assert_eq!(seen(), [[0, 8]; 2]);
        let detached = unit.detach_device(&bench.h, tables).unwrap();
        unit.release(&bench.h, detached).unwrap();
        assert_eq!(seen(), [[0, 0]; 2]);
    }

    // §9.3: FPD is bit 1, and counts in an entry that is not present, too.
    #[test]
    fn faults_stay_silenced_whatever_becomes_of_the_translation() {
        let bench = up(|options| options.extended = UNITS[0]);
        let (unit, tables) = (&bench.unit, attach(&bench));
        let silence = |enabled| {
            let ticket = unit.set_fault_processing(&bench.h, &tables, enabled);
            unit.wait(&bench.h, ticket.unwrap()).unwrap();
        };
        silence(false);
        assert_eq!(seen(&bench), Some([2, 8]));
        publish(&bench, &tables, 9).unwrap();
        assert_eq!(seen(&bench), Some([0x1234_5003, 0x90a]));
        unit.withdraw_entry(&bench.h, &tables, Pasid::ZERO);
        assert_eq!(seen(&bench), Some([2, 0x90a]));
        unit.clear_entry(&bench.h, &tables, Pasid::ZERO);
        assert_eq!(seen(&bench), Some([2, 8]));
        silence(true);
        assert_eq!(seen(&bench), Some([0, 8]));
        let detached = unit.detach_device(&bench.h, tables).unwrap();
        unit.release(&bench.h, detached).unwrap();
    }

    fn attach_with_tlb(bench: &Bench) -> Result<DeviceTables, UnitError> {
        let device_tlb = DeviceTlb {
            queue_depth: 5,
            physical_function: device(),
        };
        let ids = RequesterIds::of(device());
        let unit = &bench.unit;
        unit.attach_requesters(&bench.h, OWNER, &ids, 0, Some(device_tlb))
    }

    // §9.3: TT 01b in bits 3:2; §6.5.2.5: SID from bit 32, MIP from bit 16. ECAP.DT is bit 2.
    #[test]
    fn a_device_with_a_tlb_may_use_it_while_it_has_a_translation() {
        let bench = up(|options| options.extended = UNITS[0] | 1 << 2);
        assert!(bench.unit.has_device_tlbs());
        let tables = attach_with_tlb(&bench).unwrap();
        assert_eq!(seen(&bench), Some([0, 8]), "attached and blocked");
        publish(&bench, &tables, 9).unwrap();
        assert_eq!(seen(&bench), Some([0x1234_5005, 0x90a]));
        let read = bench.unit.read_entry(&bench.h, &tables, Pasid::ZERO);
        assert_eq!(read, Some(second_stage(9)));
        bench.unit.withdraw_entry(&bench.h, &tables, Pasid::ZERO);
        assert_eq!(seen(&bench), Some([0, 0x90a]));
        bench.unit.clear_entry(&bench.h, &tables, Pasid::ZERO);
        assert_eq!(seen(&bench), Some([0, 8]));

        // It is told to forget everything, behind the unit, before it counts as gone.
        bench.take_executed();
        let detached = bench.unit.detach_device(&bench.h, tables).unwrap();
        bench.unit.release(&bench.h, detached).unwrap();
        let executed = bench.take_executed();
        let Some([all @ .., told, _wait]) = executed.get(..) else {
            panic!("{executed:?}");
        };
        assert_eq!(all.len(), 2, "all contexts, all translations: {all:?}");
        let [low, ..] = told.encode().words();
        assert_eq!((low >> 32 & 0xffff) as u16, device().as_u16());
        assert_eq!((low & 0xf, low >> 16 & 0x1f), (3, 5));
        assert_eq!(seen(&bench), Some([0, 0]));
    }

    #[test]
    fn what_legacy_mode_has_not_is_refused_by_name() {
        let bench = up(|options| options.extended = UNITS[0]);
        let beyond = UnitError::PasidBits {
            bits: 1,
            maximum: 0,
        };
        let with_pasids = bench.unit.attach_device(&bench.h, OWNER, device(), 1);
        assert_eq!(with_pasids.map(drop), Err(beyond));
        let translation_type = LegacyContextFault::UnsupportedTranslationType(1);
        assert_eq!(
            attach_with_tlb(&bench).map(drop),
            Err(UnitError::LegacyContextEntry(translation_type)),
            "no ECAP.DT"
        );
        let tables = attach(&bench);
        let refuse = |entry: &PasidEntry| {
            let published = bench
                .unit
                .publish_entry(&bench.h, &tables, Pasid::ZERO, entry);
            assert_eq!(seen(&bench), Some([0, 8]), "nothing has changed");
            published.unwrap_err()
        };
        let pass_through = PasidEntry::pass_through(DomainId::new(1), PasidEntryOptions::default());
        assert_eq!(
            refuse(&pass_through),
            UnitError::NotInLegacyMode {
                translation_type: 4
            }
        );
        let wide = PasidEntry::second_stage(
            SecondStagePointer::new(Hpa::new(0x1000), AddressWidth::Bits57),
            DomainId::new(1),
            PasidEntryOptions::default(),
        );
        let width = LegacyContextFault::UnsupportedWidth(3);
        assert_eq!(refuse(&wide), UnitError::LegacyContextEntry(width));
        assert_eq!(refuse(&second_stage(0)), UnitError::ReservedDomainId);
        let one = Pasid::new(1).unwrap();
        assert_eq!(
            bench
                .unit
                .publish_entry(&bench.h, &tables, one, &second_stage(1)),
            Err(UnitError::PasidBeyondLimit {
                pasid: one,
                limit: 1
            })
        );
        let replaced = bench
            .unit
            .replace_quadword(&bench.h, &tables, Pasid::ZERO, 0);
        assert_eq!(replaced, Err(UnitError::NotPrepared(Pasid::ZERO)));
    }
}
