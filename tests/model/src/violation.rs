//! What software did that the architecture forbids.

use vtd_nest::arch::id::{DomainId, SourceId};

/// A breach of the architecture by software. The model goes on as hardware plausibly would.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// Access to an offset where this unit has no register.
    UnknownRegister {
        /// Offset in the register window, in bytes.
        offset: u16,
    },
    /// A register was accessed with another width than §11.2 allows.
    AccessWidth {
        /// Offset in the register window, in bytes.
        offset: u16,
        /// Width of the access, in bytes.
        width_bytes: u8,
    },
    /// A read-only register was written.
    ReadOnlyRegister {
        /// Offset in the register window, in bytes.
        offset: u16,
        /// The value.
        value: u32,
    },
    /// A write-only register was read.
    WriteOnlyRegister {
        /// Offset in the register window, in bytes.
        offset: u16,
    },
    /// Reserved bits were written with ones (or not preserved).
    ReservedRegisterBits {
        /// Offset of the dword, in bytes.
        offset: u16,
        /// The reserved bits that were set.
        bits: u32,
    },
    /// One GCMD write asked for more than one change (§11.4.4.1).
    SeveralCommands {
        /// `GSTS_REG` before the write.
        status: u32,
        /// The value written.
        command: u32,
    },
    /// A command while the one before was not complete (§6.9).
    CommandInProgress {
        /// Offset of the register written, in bytes.
        offset: u16,
    },
    /// A command bit of a feature that the unit lacks.
    UnsupportedCommand {
        /// The bit in `GCMD_REG`.
        bit: u32,
    },
    /// TE without a root table pointer set before (§6.6).
    TranslationWithoutRootTable,
    /// IRE without a table pointer set before (§6.7).
    InterruptRemappingWithoutTable,
    /// TTM or SSIRWE changed while TES=1 and CAP.ESRTPS=0 (§6.6).
    TableModeChangedWhileEnabled {
        /// The root table address in force.
        old: u64,
        /// The new one.
        new: u64,
    },
    /// IRE after a new table, with no global interrupt-entry-cache invalidation in between, where
    /// CAP.ESIRTPS=0 (§6.7).
    InterruptEntryCacheNotInvalidated,
    /// SIRTP while IRES=1 with a table that lacks a present entry of the old one, or has another
    /// (§6.7).
    InterruptTableDiffers {
        /// The first such index.
        index: u16,
    },
    /// IRE with EIME=0 while ECAP.EIMER=1 (§11.4.10).
    ExtendedInterruptModeRequired,
    /// EIME changed while IRES=1 (§11.4.10): written so, or put into force.
    ExtendedInterruptModeChangedWhileEnabled,
    /// QIE with a tail that is not 0 (§6.5.2).
    QueueEnabledWithTail {
        /// `IQT_REG`.
        tail: u32,
    },
    /// QIE while a register-based invalidation was pending, or QIE cleared while the queue was not
    /// drained by a final wait (§6.5.2).
    QueueDisabledBusy {
        /// `IQH_REG`.
        head: u32,
        /// `IQT_REG`.
        tail: u32,
    },
    /// `IQA_REG` written while QIES=1 (§11.4.9.3).
    QueueAddressWhileEnabled {
        /// The value.
        value: u64,
    },
    /// The tail moved so that submitted descriptors are withdrawn.
    QueueTailMovedBack {
        /// `IQH_REG`.
        head: u32,
        /// The tail before.
        old: u32,
        /// The tail written.
        new: u32,
    },
    /// A base or limit of a protected memory region written while PRS=1 (§11.4.8).
    ProtectedMemoryWhileEnabled {
        /// Offset of the dword, in bytes.
        offset: u16,
    },
    /// Tables map a protected memory region on a unit that lets remapped requests through to it
    /// (§11.4.8.1).
    MappingOfProtectedMemory {
        /// The host-physical address.
        address: u64,
    },
    /// A wait descriptor's status address is not memory (§6.5.2.9).
    WaitStatusAddress {
        /// The address.
        address: u64,
    },
    /// A device-TLB descriptor while TES=0 (§4.3).
    DeviceTlbWhileDisabled {
        /// The device.
        source_id: SourceId,
    },
    /// A device-TLB descriptor names another physical function than the device's (§6.5.2.5,
    /// §6.5.2.6).
    PhysicalFunctionDiffers {
        /// The device.
        source_id: SourceId,
        /// Its physical function: itself, if it is one.
        wanted: SourceId,
        /// `PFSID`.
        given: SourceId,
    },
    /// The page request queue's head moved to where no request was, or out of the queue (§7.4.1).
    PageRequestHeadMisplaced {
        /// `PQH_REG` before.
        old: u32,
        /// The value written.
        new: u32,
        /// `PQT_REG`.
        tail: u32,
    },
    /// `PQT_REG` was written with another value than 0, though hardware moves it (§7.4.1).
    PageRequestTailWritten {
        /// The value.
        value: u32,
    },
    /// A page request was allowed (PRE=1) before `PQA_REG` was written (§11.4.11.3).
    PageRequestQueueNotSet,
    /// The page request queue is not memory (§11.4.11.3).
    PageRequestQueueAddress {
        /// Where a descriptor was to be written.
        address: u64,
    },
    /// A stop marker that could not be queued, on a unit without ECAP.SMS: undefined, so that
    /// software should not have enabled page requests for the device (§11.4.3).
    StopMarkerLost {
        /// The device.
        source_id: SourceId,
    },
    /// A page group response to no request that waits for one (§7.6).
    PageResponseUnexpected {
        /// The device.
        source_id: SourceId,
        /// The PASID, if the response has one.
        pasid: Option<u32>,
        /// The page request group index.
        group: u16,
    },
    /// A page group response with a reserved response code (Table 32).
    PageResponseCode {
        /// The code.
        code: u8,
    },
    /// Register-based invalidation where it does not work (§6.5.1).
    RegisterInvalidation {
        /// Offset of the register written, in bytes.
        offset: u16,
    },
    /// Domain-id 0 in an entry while CAP.CM=1 (§6.2.2, §6.2.3).
    DomainZeroInCachingMode {
        /// Whose entry.
        source_id: SourceId,
    },
    /// A PASID-table entry's PAT has a memory type that does not exist (§9.6).
    ReservedPageAttribute {
        /// Whose entry.
        source_id: SourceId,
        /// Bits 127:96 of the entry.
        value: u32,
    },
    /// Two entries share a domain-id and disagree in the second-stage root or width (§6.2.3.1).
    DomainSecondStageDiffers {
        /// The domain-id.
        domain_id: DomainId,
        /// Whose entry came first.
        first: SourceId,
        /// Whose entry came second.
        second: SourceId,
    },
    /// Two entries of different devices share domain-id and PASID and disagree in the first-stage
    /// root, its paging mode or the translation type (§6.2.3.1).
    DomainFirstStageDiffers {
        /// The domain-id.
        domain_id: DomainId,
        /// The PASID.
        pasid: u32,
        /// Whose entry came first.
        first: SourceId,
        /// Whose entry came second.
        second: SourceId,
    },
    /// A domain-id is used by first-stage or pass-through entries and by second-stage or nested
    /// ones (§6.2.3.1).
    DomainTypesMixed {
        /// The domain-id.
        domain_id: DomainId,
    },
    /// Entries share a first-stage root (and second-stage root) and disagree in FSPM or EAFE
    /// (§6.2.3.1).
    FirstStageRootDiffers {
        /// The root as the entries hold it.
        root: u64,
    },
    /// Entries share a second-stage root and disagree in SSADE (§6.2.3.1).
    SecondStageRootDiffers {
        /// The root.
        root: u64,
    },
    /// A request was translated to an address where there is no memory.
    DmaOutsideMemory {
        /// The host-physical address.
        address: u64,
    },
    /// The model has no model of this yet.
    NotModelled(&'static str),
}
