//! What a unit's capabilities say about its tables.

use super::address::{AddressWidth, PageSize};
use super::capability::{CapabilityField, Features};

/// A set of second-stage address widths.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct AddressWidths(u8);

impl AddressWidths {
    /// No width at all.
    pub const NONE: Self = Self(0);
    /// All three widths.
    pub const ALL: Self = Self(0b1110);

    /// The widths that a `SAGAW` field names: bit 1 is 39 bits, bit 2 is 48, bit 3 is 57 (§11.4.2).
    /// Other bits are dropped.
    #[doc(alias = "SAGAW")]
    #[inline]
    pub const fn from_field(field: u64) -> Self {
        Self(field as u8 & Self::ALL.0)
    }

    /// The set as a `SAGAW` field.
    #[inline]
    pub const fn field(self) -> u64 {
        self.0 as u64
    }

    /// The set with `width` added.
    #[inline]
    pub const fn with(self, width: AddressWidth) -> Self {
        Self(self.0 | 1 << width.field())
    }

    /// Whether the set has `width`.
    #[inline]
    pub const fn contains(self, width: AddressWidth) -> bool {
        self.0 & 1 << width.field() != 0
    }

    /// The largest width of the set, or `None` if it is empty.
    pub fn largest(self) -> Option<AddressWidth> {
        AddressWidth::ALL
            .into_iter()
            .rev()
            .find(|width| self.contains(*width))
    }
}

impl From<&Features> for TableFeatures {
    /// What a unit's capability registers say about its tables.
    fn from(unit: &Features) -> Self {
        let (capability, extended) = (unit.capability, unit.extended);
        Self {
            // No pointer in a table reaches beyond bit 51.
            host_address_width: unit.host_address_width.min(52),
            domain_id_bits: capability.domain_id_bits(),
            maximum_guest_address_width: capability.maximum_guest_address_width(),
            widths: AddressWidths::from_field(
                capability.field(CapabilityField::ADJUSTED_GUEST_ADDRESS_WIDTHS),
            ),
            first_stage: extended.has_first_stage(),
            second_stage: extended.has_second_stage(),
            nested: extended.has_nested(),
            pass_through: extended.has_pass_through(),
            first_stage_five_level: capability.has_first_stage_5_level(),
            first_stage_1gib: capability.has_first_stage_1gib_pages(),
            second_stage_2mib: capability.second_stage_large_page(PageSize::Size2MiB),
            second_stage_1gib: capability.second_stage_large_page(PageSize::Size1GiB),
            snoop_control: extended.has_snoop_control(),
            page_walk_coherency: extended.has_page_walk_coherency(),
            memory_types: extended.has_memory_types(),
            supervisor_requests: extended.has_supervisor_requests(),
            extended_accessed: extended.has_extended_accessed(),
            second_stage_accessed_dirty: extended.has_second_stage_accessed_dirty(),
            device_tlb: extended.has_device_tlb(),
            page_requests: extended.has_page_requests(),
            rid_pasid: extended.has_rid_pasid(),
            rid_privilege: extended.has_rid_priv(),
            pasid: extended.has_pasid(),
            translated_requests_with_pasid: extended.has_pasid_in_translated_requests(),
            host_permission_tables: extended.has_host_permission_tables(),
            zero_length_read: capability.has_zero_length_read(),
            tolerate_address_width: false,
        }
    }
}

/// The capabilities of a unit that decide which bits of its tables are fields, reserved or ignored.
///
/// Plain facts, all public, so that a physical unit's and a virtual unit's decode alike. The
/// default has no ability and no address bits: it refuses everything that is present.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableFeatures {
    /// The host address width in bits, 12 to 52 (DMAR table, §8.1): addresses at and above 2^width
    /// are reserved in entries.
    #[doc(alias = "HAW")]
    pub host_address_width: u8,
    /// The width of domain-ids in bits: 4 + 2·`CAP.ND`, at most 16.
    #[doc(alias = "ND")]
    pub domain_id_bits: u8,
    /// The maximum guest address width in bits: `CAP.MGAW` + 1.
    #[doc(alias = "MGAW")]
    pub maximum_guest_address_width: u8,
    /// The second-stage widths (`CAP.SAGAW`).
    #[doc(alias = "SAGAW")]
    pub widths: AddressWidths,
    /// First-stage translation (`ECAP.FSTS`).
    #[doc(alias = "FSTS")]
    pub first_stage: bool,
    /// Second-stage translation in scalable mode (`ECAP.SSTS`).
    #[doc(alias = "SSTS")]
    pub second_stage: bool,
    /// Nested translation (`ECAP.NEST`).
    #[doc(alias = "NEST")]
    pub nested: bool,
    /// Pass-through, in legacy and scalable mode (`ECAP.PT`).
    #[doc(alias = "PT")]
    pub pass_through: bool,
    /// 5-level paging in the first stage (`CAP.FS5LP`).
    #[doc(alias = "FS5LP")]
    pub first_stage_five_level: bool,
    /// 1-GiB pages in the first stage (`CAP.FS1GP`).
    #[doc(alias = "FS1GP")]
    pub first_stage_1gib: bool,
    /// 2-MiB pages in the second stage (`CAP.SSLPS` bit 0).
    #[doc(alias = "SSLPS")]
    pub second_stage_2mib: bool,
    /// 1-GiB pages in the second stage (`CAP.SSLPS` bit 1).
    #[doc(alias = "SSLPS")]
    pub second_stage_1gib: bool,
    /// Snoop control: `PGSNP` and `SNP` may be set (`ECAP.SC`).
    #[doc(alias = "SC")]
    pub snoop_control: bool,
    /// Snooped walks of scalable-mode paging structures: `PWSNP` may be set (`ECAP.SMPWCS`).
    #[doc(alias = "SMPWCS")]
    pub page_walk_coherency: bool,
    /// Memory types: `CD`, `EMTE` and `PAT` may be set (`ECAP.MTS`).
    #[doc(alias = "MTS")]
    pub memory_types: bool,
    /// Supervisor requests: `SRE` may be set (`ECAP.SRS`).
    #[doc(alias = "SRS")]
    pub supervisor_requests: bool,
    /// The extended-accessed bit: `EAFE` may be set (`ECAP.EAFS`).
    #[doc(alias = "EAFS")]
    pub extended_accessed: bool,
    /// Second-stage accessed and dirty bits: `SSADE` may be set (`ECAP.SSADS`).
    #[doc(alias = "SSADS")]
    pub second_stage_accessed_dirty: bool,
    /// Device-TLBs: `DTE` and `TT` = 01b may be used (`ECAP.DT`).
    #[doc(alias = "DT")]
    pub device_tlb: bool,
    /// Page requests: `PRE` may be set (`ECAP.PRS`).
    #[doc(alias = "PRS")]
    pub page_requests: bool,
    /// The `RID_PASID` field counts (`ECAP.RPS`); otherwise it is reserved and PASID 0 stands.
    #[doc(alias = "RPS")]
    pub rid_pasid: bool,
    /// The `RID_PRIV` bit counts (`ECAP.RPRIVS`); otherwise it is reserved.
    #[doc(alias = "RPRIVS")]
    pub rid_privilege: bool,
    /// Requests-with-PASID: `PASIDE` may be set (`ECAP.PASID`).
    #[doc(alias = "PASID")]
    pub pasid: bool,
    /// PASIDs in translated requests: `EPTR` may be set (`ECAP.PTRS`).
    #[doc(alias = "PTRS")]
    pub translated_requests_with_pasid: bool,
    /// Host permission tables: `HPTE` and the host-permission fields may be set (`ECAP.HPTS`).
    #[doc(alias = "HPTS")]
    pub host_permission_tables: bool,
    /// Zero-length reads of write-only pages succeed (`CAP.ZLR`).
    #[doc(alias = "ZLR")]
    pub zero_length_read: bool,
    /// Lets `AW` have any value in first-stage and pass-through PASID entries of a unit without
    /// second-stage translation.
    ///
    /// The specification reserves `AW` there, yet Linux writes it into every entry, so a virtual
    /// unit that offers the first stage only has to let it pass.
    pub tolerate_address_width: bool,
}

impl TableFeatures {
    /// A unit that has no ability at all.
    pub const NOTHING: Self = Self {
        host_address_width: 0,
        domain_id_bits: 0,
        maximum_guest_address_width: 0,
        widths: AddressWidths::NONE,
        first_stage: false,
        second_stage: false,
        nested: false,
        pass_through: false,
        first_stage_five_level: false,
        first_stage_1gib: false,
        second_stage_2mib: false,
        second_stage_1gib: false,
        snoop_control: false,
        page_walk_coherency: false,
        memory_types: false,
        supervisor_requests: false,
        extended_accessed: false,
        second_stage_accessed_dirty: false,
        device_tlb: false,
        page_requests: false,
        rid_pasid: false,
        rid_privilege: false,
        pasid: false,
        translated_requests_with_pasid: false,
        host_permission_tables: false,
        zero_length_read: false,
        tolerate_address_width: false,
    };
}

#[cfg(test)]
impl TableFeatures {
    /// A unit that has every ability, 52-bit host addresses, and 57-bit guest addresses.
    pub(crate) const EVERYTHING: Self = Self {
        host_address_width: 52,
        domain_id_bits: 16,
        maximum_guest_address_width: 57,
        widths: AddressWidths::ALL,
        first_stage: true,
        second_stage: true,
        nested: true,
        pass_through: true,
        first_stage_five_level: true,
        first_stage_1gib: true,
        second_stage_2mib: true,
        second_stage_1gib: true,
        snoop_control: true,
        page_walk_coherency: true,
        memory_types: true,
        supervisor_requests: true,
        extended_accessed: true,
        second_stage_accessed_dirty: true,
        device_tlb: true,
        page_requests: true,
        rid_pasid: true,
        rid_privilege: true,
        pasid: true,
        translated_requests_with_pasid: true,
        host_permission_tables: true,
        zero_length_read: true,
        tolerate_address_width: false,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_follow_the_sagaw_bits() {
        // §11.4.2: bit 1, 2, 3 of SAGAW are 39, 48, 57 bits; bits 0 and 4 are reserved.
        for field in 0..32_u64 {
            let widths = AddressWidths::from_field(field);
            for (width, bit) in [
                (AddressWidth::Bits39, 1),
                (AddressWidth::Bits48, 2),
                (AddressWidth::Bits57, 3),
            ] {
                assert_eq!(widths.contains(width), field >> bit & 1 == 1, "{field:#b}");
                assert_eq!(widths.with(width).field(), field & 0b1110 | 1 << bit);
            }
            assert_eq!(widths.field(), field & 0b1110);
        }
        assert_eq!(AddressWidths::NONE.largest(), None);
        assert_eq!(AddressWidths::ALL.largest(), Some(AddressWidth::Bits57));
        assert_eq!(
            AddressWidths::from_field(0b0110).largest(),
            Some(AddressWidth::Bits48)
        );
    }
}
