//! Descriptors on their way to hardware, as a scenario looks at them (§6.5.2).

use vtd_nest::arch::id::SourceId;

use super::{Guest, Lab};

/// Types of descriptors.
pub(crate) mod kind {
    pub(crate) const CONTEXT_CACHE: u8 = 1;
    pub(crate) const IOTLB: u8 = 2;
    pub(crate) const DEVICE_TLB: u8 = 3;
    pub(crate) const INTERRUPT_ENTRY_CACHE: u8 = 4;
    pub(crate) const PASID_IOTLB: u8 = 6;
    pub(crate) const PASID_CACHE: u8 = 7;
}

/// One descriptor, by its fields; those that its type lacks are meaningless.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Submitted {
    pub(crate) kind: u8,
    /// Bits 5:4.
    pub(crate) granularity: u8,
    pub(crate) domain_id: u16,
    pub(crate) pasid: u32,
    /// First address of the pages named.
    pub(crate) address: u64,
    /// Their number is 2^this.
    pub(crate) order: u8,
    pub(crate) leaf_hint: bool,
}

impl Submitted {
    pub(crate) fn new(words: [u64; 4]) -> Self {
        let [q0, q1, ..] = words;
        Self {
            kind: (q0 & 0xf | (q0 >> 9 & 7) << 4) as u8,
            granularity: (q0 >> 4 & 3) as u8,
            domain_id: (q0 >> 16) as u16,
            pasid: (q0 >> 32) as u32 & 0xf_ffff,
            address: q1 & !0xfff,
            order: (q1 & 0x3f) as u8,
            leaf_hint: q1 >> 6 & 1 == 1,
        }
    }

    /// Whether it makes hardware forget the leaf translations of `pages` pages from `address` on
    /// of a domain-id.
    pub(crate) fn covers(&self, domain_id: u16, address: u64, pages: u64) -> bool {
        let whole = match (self.kind, self.granularity) {
            (kind::IOTLB, 1) => return true,
            (kind::IOTLB, 2) => true,
            (kind::IOTLB, 3) => false,
            (kind::PASID_IOTLB, 2) => true,
            (kind::PASID_IOTLB, 3) => false,
            _ => return false,
        };
        if self.domain_id != domain_id {
            return false;
        }
        let mask = 1u64
            .checked_shl(12 + u32::from(self.order))
            .map_or(0, |len| !(len - 1));
        let last = address.saturating_add(pages * 0x1000 - 1);
        whole || (address ^ self.address) & mask == 0 && (last ^ self.address) & mask == 0
    }
}

impl Lab {
    /// Descriptors submitted since the last call, invalidation waits apart.
    pub(crate) fn take_submitted(&self) -> Vec<Submitted> {
        let words = self.hypervisor.take_descriptors();
        words.into_iter().map(Submitted::new).collect()
    }
}

impl Guest {
    /// The domain-id of the entry that hardware holds for a device and PASID.
    #[track_caller]
    pub(crate) fn host_domain_id(&self, source_id: SourceId, pasid: u32) -> u16 {
        let entry = self.hardware_entry(source_id, pasid);
        entry.expect("a binding").domain_id().as_u16()
    }
}
