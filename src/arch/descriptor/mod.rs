//! Descriptors of the invalidation queue (§6.5.2, §7.6.1).
//!
//! [`RawDescriptor`] is what lies in the queue, [`Descriptor`] what it asks for. A descriptor that
//! hardware would not accept has no [`Descriptor`].

mod decode;
mod encode;
mod error;
mod fields;
#[cfg(test)]
mod tests;

use super::address::PAGE_SIZE_BYTES;
use super::capability::Features;
use super::id::{DomainId, Pasid, SourceId};
use super::register::{DescriptorWidth, TranslationTableMode};

pub use error::DescriptorError;
pub use fields::{
    ContextGranularity, DeviceTlbRange, InterruptEntryGranularity, IotlbGranularity,
    PasidCacheGranularity, PasidIotlbGranularity, ResponseCode, WaitStatus, function_mask_covers,
    page_block,
};

const PAGE_FIELD: u64 = !(PAGE_SIZE_BYTES - 1);

/// The type codes of descriptors (§6.5.2).
mod kind {
    pub(super) const CONTEXT_CACHE: u8 = 0x1;
    pub(super) const IOTLB: u8 = 0x2;
    pub(super) const DEVICE_TLB: u8 = 0x3;
    pub(super) const INTERRUPT_ENTRY_CACHE: u8 = 0x4;
    pub(super) const WAIT: u8 = 0x5;
    pub(super) const PASID_IOTLB: u8 = 0x6;
    pub(super) const PASID_CACHE: u8 = 0x7;
    pub(super) const PASID_DEVICE_TLB: u8 = 0x8;
    pub(super) const PAGE_GROUP_RESPONSE: u8 = 0x9;
}

/// One descriptor as it lies in the queue: little-endian quadwords, lowest first.
///
/// Any bit pattern is a value of this type. A 128-bit descriptor is the first two quadwords.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct RawDescriptor([u64; 4]);

/// What a descriptor asks for.
///
/// [`encode`](Self::encode) drops what a field has no room for: address bits 11:0, an address mask
/// above 63, an interrupt index mask or number of pending invalidations above 31.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Descriptor {
    /// Type 1: drop cached context entries (§6.5.2.1).
    #[doc(alias = "cc_inv_dsc")]
    ContextCache {
        /// Which ones.
        granularity: ContextGranularity,
    },
    /// Type 2: drop cached translations after a change of second-stage tables (§6.5.2.3).
    #[doc(alias = "iotlb_inv_dsc")]
    Iotlb {
        /// Which ones.
        granularity: IotlbGranularity,
        /// Drain reads first (`DR`); matters below major version 2 only.
        drain_reads: bool,
        /// Drain writes first (`DW`); matters below major version 2 only.
        drain_writes: bool,
    },
    /// Type 3: drop what a device has cached of translations without PASID (§6.5.2.5).
    #[doc(alias = "dev_tlb_inv_dsc")]
    DeviceTlb {
        /// The device.
        source_id: SourceId,
        /// The addresses.
        range: DeviceTlbRange,
        /// The device's physical function (`PFSID`); 0 unless `ECAP.DIT` is set.
        physical_function: SourceId,
        /// How many invalidations the device may have in flight (`MIP`): 0 to 31, 0 for 32.
        max_pending: u8,
    },
    /// Type 4: drop cached interrupt remapping entries (§6.5.2).
    #[doc(alias = "iec_inv_dsc")]
    InterruptEntryCache {
        /// Which ones.
        granularity: InterruptEntryGranularity,
    },
    /// Type 5: tell when the descriptors before this one are done (§6.5.2.9).
    ///
    /// With neither status nor interrupt it only orders.
    #[doc(alias = "inv_wait_dsc")]
    Wait {
        /// The store that tells completion (`SW`).
        status: Option<WaitStatus>,
        /// Raise the invalidation event (`IF`); after the store, if both are asked for.
        interrupt: bool,
        /// Start later descriptors only after this one is complete (`FN`).
        fence: bool,
        /// Also wait until page requests received before are in their queue (`PD`); reserved
        /// unless `ECAP.PDS` is set.
        page_request_drain: bool,
    },
    /// Type 6: drop cached translations after a change of first-stage tables (§6.5.2.4).
    #[doc(alias = "p_iotlb_inv_dsc")]
    PasidIotlb {
        /// The domain-id.
        domain_id: DomainId,
        /// The PASID; for requests without PASID the one that stands for them.
        pasid: Pasid,
        /// Which translations.
        granularity: PasidIotlbGranularity,
    },
    /// Type 7: drop cached PASID-table entries (§6.5.2.2).
    #[doc(alias = "pc_inv_dsc")]
    PasidCache {
        /// Which ones.
        granularity: PasidCacheGranularity,
    },
    /// Type 8: drop what a device has cached of translations with PASID (§6.5.2.6).
    #[doc(alias = "p_dev_tlb_inv_dsc")]
    PasidDeviceTlb {
        /// The device.
        source_id: SourceId,
        /// The PASID.
        pasid: Pasid,
        /// Translations of all of the device's PASIDs instead (`G`).
        all_pasids: bool,
        /// The addresses.
        range: DeviceTlbRange,
        /// The device's physical function (`PFSID`); 0 unless `ECAP.DIT` is set.
        physical_function: SourceId,
        /// How many invalidations the device may have in flight (`MIP`): 0 to 31, 0 for 32.
        max_pending: u8,
    },
    /// Type 9: answer a group of page requests (§7.6.1).
    #[doc(alias = "page_grp_resp_dsc")]
    PageGroupResponse {
        /// The device that asked (`RID`).
        source_id: SourceId,
        /// The PASID of the requests (`PP`, `PASID`).
        pasid: Option<Pasid>,
        /// The answer (`RC`).
        response: ResponseCode,
        /// The index of the group (`PRGI`): 9 bits.
        group_index: u16,
    },
}

/// Whether a queue of this descriptor width can run at all in this mode (§6.5.2, §11.4.9.9).
///
/// 256-bit descriptors go with legacy mode too, as long as the unit knows scalable or abort-DMA
/// mode.
pub const fn validate_queue(
    width: DescriptorWidth,
    table_mode: TranslationTableMode,
    features: &Features,
) -> Result<(), DescriptorError> {
    let has_scalable = features.extended.has_scalable_mode();
    let has_abort = features.extended.has_abort_dma_mode();
    match (table_mode, width) {
        (TranslationTableMode::Reserved, _) => Err(DescriptorError::TableMode(table_mode)),
        (TranslationTableMode::Scalable, _) if !has_scalable => {
            Err(DescriptorError::TableMode(table_mode))
        }
        (TranslationTableMode::AbortDma, _) if !has_abort => {
            Err(DescriptorError::TableMode(table_mode))
        }
        (_, DescriptorWidth::Bits256) if !has_scalable && !has_abort => {
            Err(DescriptorError::Width(width))
        }
        (
            TranslationTableMode::Scalable | TranslationTableMode::AbortDma,
            DescriptorWidth::Bits128,
        ) => Err(DescriptorError::Width(width)),
        _ => Ok(()),
    }
}
