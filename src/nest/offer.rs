//! What a guest is shown: `CAP` and `ECAP` of its virtual unit, from hardware and policy.
//!
//! Never more than is emulated, and never more than the hardware below can carry: a guest entry
//! that the virtual unit accepts must not make the physical one fault for a reserved bit.

use core::fmt;

use crate::arch::address::AddressWidth;
use crate::arch::capability::{
    Capability, CapabilityField, ExtendedCapability, ExtendedCapabilityField, Features,
};
use crate::arch::register::TranslationTableMode;
use crate::unit::{StormLimit, table_mode_for};

/// Offset of the fault records in the virtual register page, in bytes (`CAP.FRO`).
const FAULT_RECORD_OFFSET_BYTES: u64 = 0x220;
/// Offset of the IOTLB registers in the virtual register page, in bytes (`ECAP.IRO`).
const IOTLB_OFFSET_BYTES: u64 = 0xf0;
/// Largest address mask of an IOTLB descriptor: 2^18 pages, one 1-GiB page (`CAP.MAMV`).
const MAXIMUM_ADDRESS_MASK: u64 = 18;
/// Largest mask of an interrupt entry cache descriptor: half of the largest table (`ECAP.MHMV`).
const MAXIMUM_HANDLE_MASK: u64 = 15;

/// How the guest's tables reach hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// First-stage tables run on hardware, over the machine's second stage.
    Nested,
    /// Second-stage tables are composed with the machine's own into a shadow.
    Shadow,
    /// As [`Shadow`](Self::Shadow), on units without scalable-mode second stage: the guest is shown
    /// legacy mode only.
    SecondStage,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Backend {
    /// The name used in logs and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nested => "nested",
            Self::Shadow => "shadow",
            Self::SecondStage => "second-stage",
        }
    }
}

/// The hypervisor's choices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Most PASID bits to offer, 0 to 20; 0 offers no requests-with-PASID.
    pub pasid_bits: u8,
    /// Domain-id bits to offer: 4 to 16, even (`CAP.ND`).
    pub domain_id_bits: u8,
    /// Fault recording registers to offer, 1 to 8.
    pub fault_records: u8,
    /// Show device-TLBs (`ECAP.DT`) where all units have them: for guests whose devices are assigned
    /// with [`AddressTranslation`](crate::nest::AddressTranslation). It lets no device use one.
    pub device_tlbs: bool,
    /// Use shadow tables even where hardware nests.
    pub forbid_nesting: bool,
    /// Have hardware note which of the machine's pages devices write (`SSADE`, §3.7.2), for
    /// [`take_dirty_pages`](super::VirtualMachine::take_dirty_pages). Needs `ECAP.SSADS` of all
    /// units. A guest that nests must keep its first-stage tables in writable memory then (§3.8.1).
    pub track_dirty_pages: bool,
    /// How many faults of one device are explained to the guest in a while. With one more, hardware
    /// is told to record none until that while is over.
    pub storm_limit: StormLimit,
    /// What becomes of read-only memory that hardware would write to.
    pub on_read_only_memory: OnReadOnlyMemory,
    /// The machine gets 2^order interrupt entries of each unit that remaps interrupts: 0 to 16. The
    /// guest's indices beyond are not carried out: their messages are blocked, and told as 23.
    pub interrupt_entries_order: u8,
    /// Offer interrupt remapping where all units have it. Without, the hypervisor routes the
    /// messages of the guest's devices
    /// ([`route_message`](crate::nest::VirtualMachine::route_message)).
    pub interrupt_remapping: bool,
    /// Devices may raise NMIs.
    pub non_maskable_interrupts: bool,
}

/// What becomes of memory that is to be read-only, where entries nest on a unit with
/// [`NestedUpdatesIgnoreReadOnly`](crate::unit::Erratum::NestedUpdatesIgnoreReadOnly).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnReadOnlyMemory {
    /// It is not mapped: devices, and the virtual unit with them, find no memory there.
    #[default]
    LeaveOut,
    /// Mapping it fails.
    Refuse,
}

impl Default for Policy {
    /// All PASIDs, 16-bit domain-ids, four fault records, 256 interrupt entries, interrupt
    /// remapping, no NMIs; read-only memory is left out where it would be written.
    fn default() -> Self {
        Self {
            pasid_bits: 20,
            domain_id_bits: 16,
            fault_records: 4,
            device_tlbs: false,
            forbid_nesting: false,
            track_dirty_pages: false,
            on_read_only_memory: OnReadOnlyMemory::LeaveOut,
            storm_limit: StormLimit::default(),
            interrupt_entries_order: 8,
            interrupt_remapping: true,
            non_maskable_interrupts: false,
        }
    }
}

/// Why nothing can be offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OfferError {
    /// There is no unit to offer from.
    NoUnit,
    /// Units have no second-stage width in common (`CAP.SAGAW`).
    NoCommonWidth,
    /// A policy value is out of its range.
    Policy {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u8,
    },
}

impl fmt::Display for OfferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUnit => f.write_str("there is no unit"),
            Self::NoCommonWidth => f.write_str("the units have no second-stage width in common"),
            Self::Policy { field, value } => {
                write!(f, "a policy cannot be {value}: ")?;
                f.write_str(field)
            }
        }
    }
}

impl core::error::Error for OfferError {}

/// What the guest is shown, and how it is carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The virtual unit's `CAP`, `ECAP` and address width.
    pub features: Features,
    /// How first- or second-stage tables of the guest reach hardware.
    pub backend: Backend,
    /// Width of the machine's second stage.
    pub width: AddressWidth,
    /// Bits that a guest-physical address may have: min(`CAP.MGAW`, width), over all units.
    pub input_bits: u8,
}

impl Offer {
    /// What a machine shows that has yet to be started.
    pub(super) const NOTHING: Self = Self {
        features: Features {
            capability: Capability::from_bits(0),
            extended: ExtendedCapability::from_bits(0),
            host_address_width: 0,
        },
        backend: Backend::Shadow,
        width: AddressWidth::Bits48,
        input_bits: 0,
    };
}

/// The table of DESIGN section 5: what all the `units` can carry, cut down by `policy`.
///
/// # Errors
///
/// [`OfferError`].
pub fn offer<'a>(
    units: impl Iterator<Item = &'a Features>,
    policy: &Policy,
) -> Result<Offer, OfferError> {
    check(policy)?;
    let common = units.map(Common::of).reduce(Common::and);
    offer_of(&common.ok_or(OfferError::NoUnit)?, policy)
}

/// What some units have in common.
#[derive(Clone, Copy)]
struct Common {
    /// Bits that all registers have: right for single bits and for fields of one bit a choice.
    capability: u64,
    extended: u64,
    /// The least numbers.
    address_bits: u8,
    guest_bits: u8,
    pasid_bits: u8,
}

impl Common {
    fn of(unit: &Features) -> Self {
        Self {
            capability: unit.capability.bits(),
            extended: unit.extended.bits(),
            address_bits: unit.host_address_width,
            guest_bits: unit.capability.maximum_guest_address_width(),
            pasid_bits: if unit.extended.has_pasid() {
                unit.extended.pasid_bits()
            } else {
                0
            },
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            capability: self.capability & other.capability,
            extended: self.extended & other.extended,
            address_bits: self.address_bits.min(other.address_bits),
            guest_bits: self.guest_bits.min(other.guest_bits),
            pasid_bits: self.pasid_bits.min(other.pasid_bits),
        }
    }
}

fn offer_of(common: &Common, policy: &Policy) -> Result<Offer, OfferError> {
    let unit = Features {
        capability: Capability::from_bits(common.capability),
        extended: ExtendedCapability::from_bits(common.extended),
        host_address_width: common.address_bits,
    };
    let supports = |width: AddressWidth| unit.capability.supports_width(width);
    // Four levels where possible: more only cost reads, fewer only reach 512 GiB.
    let width = [
        AddressWidth::Bits48,
        AddressWidth::Bits39,
        AddressWidth::Bits57,
    ]
    .into_iter()
    .find(|width| supports(*width))
    .ok_or(OfferError::NoCommonWidth)?;
    let input_bits = common.guest_bits.min(width.bits());

    // Of what all have in common: one unit in legacy mode is enough.
    let is_scalable = matches!(table_mode_for(&unit), TranslationTableMode::Scalable);
    let nests = is_scalable
        && !policy.forbid_nesting
        && unit.extended.has_nested()
        && unit.extended.has_first_stage()
        && unit.extended.has_second_stage();
    let pasid_bits = if is_scalable {
        policy.pasid_bits.min(common.pasid_bits)
    } else {
        0
    };

    let mut capability = Capability::from_bits(0)
        .with(
            CapabilityField::DOMAIN_ID_WIDTH,
            u64::from(policy.domain_id_bits.saturating_sub(4) / 2),
        )
        .with(CapabilityField::CACHING_MODE, 1)
        .with(
            CapabilityField::MAXIMUM_GUEST_ADDRESS_WIDTH,
            u64::from(input_bits.saturating_sub(1)),
        )
        .with(
            CapabilityField::FAULT_RECORD_OFFSET,
            FAULT_RECORD_OFFSET_BYTES / 16,
        )
        .with(
            CapabilityField::FAULT_RECORD_COUNT,
            u64::from(policy.fault_records.saturating_sub(1)),
        )
        .with(CapabilityField::PAGE_SELECTIVE_INVALIDATION, 1)
        .with(CapabilityField::MAXIMUM_ADDRESS_MASK, MAXIMUM_ADDRESS_MASK)
        .with(CapabilityField::WRITE_DRAINING, 1)
        .with(CapabilityField::READ_DRAINING, 1)
        .with(CapabilityField::ENHANCED_SET_INTERRUPT_TABLE_POINTER, 1)
        .with(CapabilityField::ENHANCED_SET_ROOT_TABLE_POINTER, 1)
        .with(
            CapabilityField::ZERO_LENGTH_READ,
            u64::from(unit.capability.has_zero_length_read()),
        );
    let mut widths = 0;
    for width in AddressWidth::ALL {
        if supports(width) {
            widths |= 1 << width.field();
        }
    }
    capability = capability.with(CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS, widths);

    let mut extended = ExtendedCapability::from_bits(0)
        .with(ExtendedCapabilityField::QUEUED_INVALIDATION, 1)
        .with(
            ExtendedCapabilityField::IOTLB_REGISTER_OFFSET,
            IOTLB_OFFSET_BYTES / 16,
        )
        .with(ExtendedCapabilityField::PASS_THROUGH, 1)
        .with(
            ExtendedCapabilityField::SCALABLE_MODE,
            u64::from(is_scalable),
        )
        .with(
            ExtendedCapabilityField::COHERENCY,
            u64::from(unit.extended.is_coherent()),
        )
        .with(
            ExtendedCapabilityField::PAGE_WALK_COHERENCY,
            u64::from(is_scalable && unit.extended.has_page_walk_coherency()),
        );
    if policy.device_tlbs {
        extended = extended.with(
            ExtendedCapabilityField::DEVICE_TLB,
            u64::from(unit.extended.has_device_tlb()),
        );
    }
    if policy.interrupt_remapping && unit.extended.has_interrupt_remapping() {
        extended = extended
            .with(ExtendedCapabilityField::INTERRUPT_REMAPPING, 1)
            .with(
                ExtendedCapabilityField::MAXIMUM_HANDLE_MASK,
                MAXIMUM_HANDLE_MASK,
            )
            .with(
                ExtendedCapabilityField::EXTENDED_INTERRUPT_MODE,
                u64::from(unit.extended.has_extended_interrupt_mode()),
            );
    }
    if pasid_bits > 0 {
        extended = extended
            .with(ExtendedCapabilityField::REQUESTS_WITH_PASID, 1)
            .with(
                ExtendedCapabilityField::PASID_SIZE,
                u64::from(pasid_bits - 1),
            );
    }
    if nests {
        let five_level = unit.capability.has_first_stage_5_level();
        capability = capability
            .with(
                CapabilityField::FIRST_STAGE_1GIB_PAGES,
                u64::from(unit.capability.has_first_stage_1gib_pages()),
            )
            .with(CapabilityField::FIRST_STAGE_5_LEVEL, u64::from(five_level));
        extended = extended
            .with(ExtendedCapabilityField::FIRST_STAGE, 1)
            .with(
                ExtendedCapabilityField::SUPERVISOR_REQUESTS,
                u64::from(unit.extended.has_supervisor_requests()),
            )
            .with(
                ExtendedCapabilityField::EXTENDED_ACCESSED,
                u64::from(unit.extended.has_extended_accessed()),
            );
    } else {
        // Every size the guest may use is split or kept by the shadow; none needs hardware.
        capability = capability.with(CapabilityField::SECOND_STAGE_LARGE_PAGES, 0b11);
        extended = extended.with(
            ExtendedCapabilityField::SECOND_STAGE,
            u64::from(is_scalable),
        );
    }
    // A guest's pointers above this are reserved bits to it, as they would be to hardware.
    let host_address_width = common.address_bits.min(input_bits);
    Ok(Offer {
        features: Features {
            capability,
            extended,
            host_address_width,
        },
        backend: match (is_scalable, nests) {
            (false, _) => Backend::SecondStage,
            (true, false) => Backend::Shadow,
            (true, true) => Backend::Nested,
        },
        width,
        input_bits,
    })
}

fn check(policy: &Policy) -> Result<(), OfferError> {
    let refuse = |field, value| Err(OfferError::Policy { field, value });
    if policy.pasid_bits > 20 {
        return refuse("pasid_bits", policy.pasid_bits);
    }
    if !(4..=16).contains(&policy.domain_id_bits) || !policy.domain_id_bits.is_multiple_of(2) {
        return refuse("domain_id_bits", policy.domain_id_bits);
    }
    if !(1..=8).contains(&policy.fault_records) {
        return refuse("fault_records", policy.fault_records);
    }
    if policy.interrupt_entries_order > 16 {
        return refuse("interrupt_entries_order", policy.interrupt_entries_order);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A unit with every ability that the offer looks at.
    fn able() -> Features {
        let capability = Capability::from_bits(0x00d2_008c_222f_0606)
            .with(CapabilityField::FIRST_STAGE_1GIB_PAGES, 1)
            .with(CapabilityField::FIRST_STAGE_5_LEVEL, 1);
        let extended = [
            ExtendedCapabilityField::FIRST_STAGE,
            ExtendedCapabilityField::NESTED,
            ExtendedCapabilityField::REQUESTS_WITH_PASID,
            ExtendedCapabilityField::EXTENDED_ACCESSED,
            ExtendedCapabilityField::COHERENCY,
            ExtendedCapabilityField::PAGE_WALK_COHERENCY,
            ExtendedCapabilityField::SNOOP_CONTROL,
            ExtendedCapabilityField::DEVICE_TLB,
            ExtendedCapabilityField::PAGE_REQUESTS,
            ExtendedCapabilityField::SECOND_STAGE_ACCESSED_DIRTY,
        ]
        .into_iter()
        .fold(
            ExtendedCapability::from_bits(0x0000_4800_80f0_0f4a),
            |extended, field| extended.with(field, 1),
        )
        .with(ExtendedCapabilityField::PASID_SIZE, 19);
        Features {
            capability,
            extended,
            host_address_width: 46,
        }
    }

    fn without(field: ExtendedCapabilityField) -> Features {
        let able = able();
        Features {
            extended: able.extended.with(field, 0),
            ..able
        }
    }

    fn offered(units: &[Features], policy: &Policy) -> Offer {
        offer(units.iter(), policy).unwrap()
    }

    // R34
    #[test]
    fn hardware_that_nests_shows_the_first_stage_only() {
        let offer = offered(&[able()], &Policy::default());
        let (capability, extended) = (offer.features.capability, offer.features.extended);
        assert_eq!(offer.backend, Backend::Nested);
        assert!(extended.has_first_stage() && !extended.has_second_stage());
        assert!(capability.has_first_stage_1gib_pages() && capability.has_first_stage_5_level());
        assert!(extended.has_supervisor_requests() && extended.has_extended_accessed());
        assert!(extended.is_coherent() && extended.has_page_walk_coherency());
        assert_eq!((extended.has_pasid(), extended.pasid_bits()), (true, 20));
        assert_ne!(
            capability.field(CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS),
            0
        );
        assert_eq!(offer.features.host_address_width, 46);
    }

    // R34
    #[test]
    fn hardware_that_does_not_nest_shows_the_second_stage_only() {
        for missing in [
            ExtendedCapabilityField::NESTED,
            ExtendedCapabilityField::FIRST_STAGE,
        ] {
            let offer = offered(&[able(), without(missing)], &Policy::default());
            let (capability, extended) = (offer.features.capability, offer.features.extended);
            assert_eq!(offer.backend, Backend::Shadow);
            assert!(!extended.has_first_stage() && extended.has_second_stage());
            assert!(
                !capability.has_first_stage_1gib_pages() && !extended.has_supervisor_requests()
            );
        }
    }

    // R34, DESIGN section 5: without a second stage in scalable mode, legacy mode is shown.
    #[test]
    fn hardware_in_legacy_mode_shows_legacy_mode_only() {
        for missing in [
            ExtendedCapabilityField::SCALABLE_MODE,
            ExtendedCapabilityField::SECOND_STAGE,
        ] {
            let offer = offered(&[able(), without(missing)], &Policy::default());
            let (capability, extended) = (offer.features.capability, offer.features.extended);
            assert_eq!(offer.backend, Backend::SecondStage, "{missing:?}");
            assert!(!extended.has_scalable_mode() && !extended.has_pasid());
            assert!(!extended.has_second_stage() && !extended.has_first_stage());
            assert!(extended.has_queued_invalidation() && extended.has_pass_through());
            assert!(capability.has_caching_mode());
            assert!(
                capability.field(CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS) != 0,
                "second-stage tables by context entries"
            );
        }
    }

    // R34: what is not emulated is not shown, whatever hardware has.
    #[test]
    fn nothing_is_shown_that_is_not_emulated() {
        for forbid_nesting in [false, true] {
            let offer = offered(
                &[able()],
                &Policy {
                    forbid_nesting,
                    ..Policy::default()
                },
            );
            let (capability, extended) = (offer.features.capability, offer.features.extended);
            assert!(capability.has_caching_mode());
            for field in [
                ExtendedCapabilityField::NESTED,
                ExtendedCapabilityField::MEMORY_TYPES,
                ExtendedCapabilityField::EXECUTE_REQUESTS,
                ExtendedCapabilityField::VIRTUAL_COMMANDS,
                ExtendedCapabilityField::PAGE_REQUEST_DRAIN,
                ExtendedCapabilityField::RID_PASID,
                ExtendedCapabilityField::ABORT_DMA_MODE,
                ExtendedCapabilityField::SECOND_STAGE_ACCESSED_DIRTY,
                ExtendedCapabilityField::DEVICE_TLB,
                ExtendedCapabilityField::PAGE_REQUESTS,
                ExtendedCapabilityField::SNOOP_CONTROL,
            ] {
                assert!(!extended.has(field), "{}", field.mnemonic());
            }
            for field in [
                CapabilityField::WRITE_BUFFER_FLUSH,
                CapabilityField::PROTECTED_LOW_MEMORY,
                CapabilityField::PROTECTED_HIGH_MEMORY,
                CapabilityField::POSTED_INTERRUPTS,
                CapabilityField::ENHANCED_COMMANDS,
            ] {
                assert!(!capability.has(field), "{}", field.mnemonic());
            }
        }
    }

    // R34, G22.
    #[test]
    fn device_tlbs_are_shown_by_policy_where_all_units_have_them() {
        let policy = Policy {
            device_tlbs: true,
            ..Policy::default()
        };
        let field = ExtendedCapabilityField::DEVICE_TLB;
        for (units, policy, shown) in [
            (&[able(), able()][..], policy, true),
            (&[able(), able()], Policy::default(), false),
            (&[able(), without(field)], policy, false),
            (
                &[without(ExtendedCapabilityField::SCALABLE_MODE)],
                policy,
                true,
            ),
        ] {
            let extended = offered(units, &policy).features.extended;
            assert_eq!(extended.has_device_tlb(), shown);
            assert!(!extended.has_page_requests() && !extended.has_no_write_flag());
        }
    }

    #[test]
    fn units_and_policy_only_take_away() {
        let narrow = Features {
            host_address_width: 39,
            ..able()
        };
        let few = Features {
            extended: able().extended.with(ExtendedCapabilityField::PASID_SIZE, 7),
            ..able()
        };
        let offer = offered(
            &[able(), narrow, few],
            &Policy {
                pasid_bits: 12,
                domain_id_bits: 8,
                ..Policy::default()
            },
        );
        assert_eq!(offer.features.host_address_width, 39);
        assert_eq!(offer.features.extended.pasid_bits(), 8);
        assert_eq!(offer.features.capability.domain_id_bits(), 8);
        let none = without(ExtendedCapabilityField::REQUESTS_WITH_PASID);
        assert!(
            !offered(&[able(), none], &Policy::default())
                .features
                .extended
                .has_pasid()
        );
    }

    // R34: the guest's tables may be used by any of the units.
    #[test]
    fn what_one_unit_lacks_is_not_shown() {
        for field in [
            CapabilityField::FIRST_STAGE_1GIB_PAGES,
            CapabilityField::FIRST_STAGE_5_LEVEL,
            CapabilityField::ZERO_LENGTH_READ,
        ] {
            let lacking = Features {
                capability: able().capability.with(field, 0),
                ..able()
            };
            for units in [[able(), lacking], [lacking, able()]] {
                let shown = offered(&units, &Policy::default()).features.capability;
                assert!(!shown.has(field), "{}", field.mnemonic());
            }
        }
        for field in [
            ExtendedCapabilityField::SUPERVISOR_REQUESTS,
            ExtendedCapabilityField::EXTENDED_ACCESSED,
            ExtendedCapabilityField::COHERENCY,
            ExtendedCapabilityField::PAGE_WALK_COHERENCY,
        ] {
            for units in [[able(), without(field)], [without(field), able()]] {
                let shown = offered(&units, &Policy::default()).features.extended;
                assert!(!shown.has(field), "{}", field.mnemonic());
            }
        }
    }

    // G16: `SAGAW`, bits 12:8 of `CAP_REG`, has bit 1 for 39, bit 2 for 48 and bit 3 for 57 bits.
    #[test]
    fn only_widths_that_every_unit_walks_are_shown() {
        let field = CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS;
        for (one, other, shown) in [
            (0b0110, 0b0110, 0b0110),
            (0b1110, 0b0100, 0b0100),
            (0b0010, 0b1110, 0b0010),
        ] {
            let units = [one, other].map(|widths| Features {
                capability: able().capability.with(field, widths),
                ..able()
            });
            let capability = offered(&units, &Policy::default()).features.capability;
            assert_eq!(capability.field(field), shown, "{one:b} {other:b}");
        }
    }

    // S28: `MGAW`, one less than the width. Pointers beyond it could not be translated.
    #[test]
    fn pointers_are_no_wider_than_what_the_second_stage_translates() {
        for (guest_bits, host_bits, shown) in [(39, 46, 39), (48, 46, 46), (42, 52, 42)] {
            let field = CapabilityField::MAXIMUM_GUEST_ADDRESS_WIDTH;
            let unit = Features {
                capability: able().capability.with(field, guest_bits - 1),
                host_address_width: host_bits,
                ..able()
            };
            let offer = offered(&[unit], &Policy::default());
            assert_eq!(offer.features.host_address_width, shown, "{guest_bits}");
        }
    }

    #[test]
    fn impossible_policies_and_units_are_typed_errors() {
        let policy = Policy::default();
        for (policy, field, value) in [
            (
                Policy {
                    pasid_bits: 21,
                    ..policy
                },
                "pasid_bits",
                21,
            ),
            (
                Policy {
                    domain_id_bits: 3,
                    ..policy
                },
                "domain_id_bits",
                3,
            ),
            (
                Policy {
                    domain_id_bits: 7,
                    ..policy
                },
                "domain_id_bits",
                7,
            ),
            (
                Policy {
                    domain_id_bits: 18,
                    ..policy
                },
                "domain_id_bits",
                18,
            ),
            (
                Policy {
                    fault_records: 0,
                    ..policy
                },
                "fault_records",
                0,
            ),
            (
                Policy {
                    fault_records: 9,
                    ..policy
                },
                "fault_records",
                9,
            ),
        ] {
            assert_eq!(
                offer([able()].iter(), &policy),
                Err(OfferError::Policy { field, value })
            );
        }
        assert_eq!(offer([].iter(), &policy), Err(OfferError::NoUnit));
        let width = |widths| {
            let capability = able()
                .capability
                .with(CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS, widths);
            Features {
                capability,
                ..able()
            }
        };
        assert_eq!(
            offer([width(2), width(4)].iter(), &policy),
            Err(OfferError::NoCommonWidth)
        );
    }
}
