//! Invalidations as descriptors and as register writes.

/// One invalidation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Invalidation {
    ContextGlobal,
    ContextDomain(u16),
    /// Of this source-id; the domain-id is that of the old entry (legacy mode).
    ContextDevice(u16, u16),
    PasidGlobal,
    /// All PASIDs of a domain.
    PasidDomain(u16),
    /// PASID 0 of a domain.
    PasidOne(u16),
    IotlbGlobal,
    IotlbDomain(u16),
    IotlbPages {
        domain_id: u16,
        address: u64,
        /// log2 of the number of pages.
        mask: u8,
        leaf_only: bool,
    },
    /// PASID 0 of a domain.
    PasidIotlb(u16),
    PasidIotlbPages {
        domain_id: u16,
        address: u64,
        mask: u8,
        leaf_only: bool,
    },
}

/// Drains reads and writes; units of version 2 and later do so anyway.
const DRAIN: u64 = 0b11 << 6;

impl Invalidation {
    /// The cache's place in the order in which caches are invalidated.
    pub(crate) fn rank(self) -> u8 {
        match self {
            Self::ContextGlobal | Self::ContextDomain(_) | Self::ContextDevice(..) => 0,
            Self::PasidGlobal | Self::PasidDomain(_) | Self::PasidOne(_) => 1,
            _ => 2,
        }
    }

    /// Whether legacy mode knows it.
    pub(crate) fn is_legacy(self) -> bool {
        matches!(
            self,
            Self::ContextGlobal
                | Self::ContextDomain(_)
                | Self::ContextDevice(..)
                | Self::IotlbGlobal
                | Self::IotlbDomain(_)
                | Self::IotlbPages { .. }
        )
    }

    /// As a descriptor (§6.5.2).
    pub(crate) fn descriptor(self) -> [u64; 2] {
        let domain = |domain_id: u16| u64::from(domain_id) << 16;
        let pages = |address: u64, mask: u8, leaf_only: bool| {
            address & !0xfff | u64::from(leaf_only) << 6 | u64::from(mask)
        };
        match self {
            Self::ContextGlobal => [0x11, 0],
            Self::ContextDomain(domain_id) => [0x21 | domain(domain_id), 0],
            Self::ContextDevice(source_id, domain_id) => {
                [0x31 | domain(domain_id) | u64::from(source_id) << 32, 0]
            }
            Self::PasidDomain(domain_id) => [0x07 | domain(domain_id), 0],
            Self::PasidOne(domain_id) => [0x17 | domain(domain_id), 0],
            Self::PasidGlobal => [0x37, 0],
            Self::IotlbGlobal => [0x12 | DRAIN, 0],
            Self::IotlbDomain(domain_id) => [0x22 | DRAIN | domain(domain_id), 0],
            Self::IotlbPages {
                domain_id,
                address,
                mask,
                leaf_only,
            } => [
                0x32 | DRAIN | domain(domain_id),
                pages(address, mask, leaf_only),
            ],
            Self::PasidIotlb(domain_id) => [0x26 | domain(domain_id), 0],
            Self::PasidIotlbPages {
                domain_id,
                address,
                mask,
                leaf_only,
            } => [0x36 | domain(domain_id), pages(address, mask, leaf_only)],
        }
    }

    /// As writes of `CCMD_REG`, or of `IVA_REG` and `IOTLB_REG` (§11.4.6).
    pub(crate) fn command(self) -> Option<Command> {
        let iotlb = |granularity: u64, domain_id: u16| {
            1 << 63 | granularity << 60 | 0b11 << 48 | u64::from(domain_id) << 32
        };
        Some(match self {
            Self::ContextGlobal => Command::Context(1 << 63 | 1 << 61),
            Self::ContextDomain(domain_id) => {
                Command::Context(1 << 63 | 2 << 61 | u64::from(domain_id))
            }
            Self::ContextDevice(source_id, domain_id) => Command::Context(
                1 << 63 | 3 << 61 | u64::from(source_id) << 16 | u64::from(domain_id),
            ),
            Self::IotlbGlobal => Command::Iotlb(None, iotlb(1, 0)),
            Self::IotlbDomain(domain_id) => Command::Iotlb(None, iotlb(2, domain_id)),
            Self::IotlbPages {
                domain_id,
                address,
                mask,
                leaf_only,
            } => Command::Iotlb(
                Some(address & !0xfff | u64::from(leaf_only) << 6 | u64::from(mask)),
                iotlb(3, domain_id),
            ),
            _ => return None,
        })
    }
}

/// Values of registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Context(u64),
    /// The address first, if it is needed.
    Iotlb(Option<u64>, u64),
}
