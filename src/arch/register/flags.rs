//! Registers that are flags: commands, status and events.

use bitflags::bitflags;

bitflags! {
    /// The global command register (§11.4.4.1).
    ///
    /// Each write carries all persistent bits and changes one field.
    #[doc(alias = "GCMD_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct GlobalCommand: u32 {
        /// Translate DMA requests (`TE`).
        #[doc(alias = "TE")]
        const TRANSLATION_ENABLE = 1 << 31;
        /// Take over the root table address register (`SRTP`), one-shot.
        #[doc(alias = "SRTP")]
        const SET_ROOT_TABLE_POINTER = 1 << 30;
        /// Flush the write buffer (`WBF`), one-shot; only where `CAP.RWBF` is set.
        #[doc(alias = "WBF")]
        const WRITE_BUFFER_FLUSH = 1 << 27;
        /// Run the invalidation queue (`QIE`).
        #[doc(alias = "QIE")]
        const QUEUED_INVALIDATION_ENABLE = 1 << 26;
        /// Remap interrupts (`IRE`).
        #[doc(alias = "IRE")]
        const INTERRUPT_REMAPPING_ENABLE = 1 << 25;
        /// Take over the interrupt remapping table address register (`SIRTP`), one-shot.
        #[doc(alias = "SIRTP")]
        const SET_INTERRUPT_REMAPPING_TABLE_POINTER = 1 << 24;
        /// Let compatibility-format interrupts pass (`CFI`).
        #[doc(alias = "CFI")]
        const COMPATIBILITY_FORMAT_INTERRUPT = 1 << 23;
    }
}

impl GlobalCommand {
    /// The commands that do something once and are not kept.
    pub const ONE_SHOT: Self = Self::SET_ROOT_TABLE_POINTER
        .union(Self::WRITE_BUFFER_FLUSH)
        .union(Self::SET_INTERRUPT_REMAPPING_TABLE_POINTER);

    /// The commands that stay in force until a write without them.
    pub const PERSISTENT: Self = Self::TRANSLATION_ENABLE
        .union(Self::QUEUED_INVALIDATION_ENABLE)
        .union(Self::INTERRUPT_REMAPPING_ENABLE)
        .union(Self::COMPATIBILITY_FORMAT_INTERRUPT);
}

bitflags! {
    /// The global status register (§11.4.4.2).
    #[doc(alias = "GSTS_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct GlobalStatus: u32 {
        /// DMA requests are translated (`TES`).
        #[doc(alias = "TES")]
        const TRANSLATION_ENABLED = 1 << 31;
        /// The last root table pointer command is done (`RTPS`).
        #[doc(alias = "RTPS")]
        const ROOT_TABLE_POINTER_SET = 1 << 30;
        /// A write-buffer flush is in progress (`WBFS`).
        #[doc(alias = "WBFS")]
        const WRITE_BUFFER_FLUSH_BUSY = 1 << 27;
        /// The invalidation queue runs (`QIES`).
        #[doc(alias = "QIES")]
        const QUEUED_INVALIDATION_ENABLED = 1 << 26;
        /// Interrupts are remapped (`IRES`).
        #[doc(alias = "IRES")]
        const INTERRUPT_REMAPPING_ENABLED = 1 << 25;
        /// The last interrupt remapping table pointer command is done (`IRTPS`).
        #[doc(alias = "IRTPS")]
        const INTERRUPT_REMAPPING_TABLE_POINTER_SET = 1 << 24;
        /// Compatibility-format interrupts pass (`CFIS`).
        #[doc(alias = "CFIS")]
        const COMPATIBILITY_FORMAT_INTERRUPT_ALLOWED = 1 << 23;
    }
}

impl GlobalStatus {
    /// The persistent commands in force, to be repeated in the next command write.
    ///
    /// Repeating the one-shot bits too would trigger them again (§11.4.4.1).
    #[inline]
    pub const fn persistent(self) -> GlobalCommand {
        GlobalCommand::from_bits_truncate(self.bits()).intersection(GlobalCommand::PERSISTENT)
    }
}

bitflags! {
    /// The flags of the fault status register (§11.4.7.1); see also
    /// [`fault_record_index`](Self::fault_record_index).
    #[doc(alias = "FSTS_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct FaultStatus: u32 {
        /// No record was free, and none is written until this is cleared (`PFO`); write 1 to clear.
        #[doc(alias = "PFO")]
        const FAULT_OVERFLOW = 1 << 0;
        /// Some record has its F bit set (`PPF`), read only.
        #[doc(alias = "PPF")]
        const PRIMARY_PENDING_FAULT = 1 << 1;
        /// The invalidation queue met an error and stands (`IQE`); write 1 to clear.
        #[doc(alias = "IQE")]
        const INVALIDATION_QUEUE_ERROR = 1 << 4;
        /// An unexpected device-TLB completion arrived (`ICE`); write 1 to clear.
        #[doc(alias = "ICE")]
        const INVALIDATION_COMPLETION_ERROR = 1 << 5;
        /// A device-TLB invalidation timed out (`ITE`); write 1 to clear.
        #[doc(alias = "ITE")]
        const INVALIDATION_TIMEOUT_ERROR = 1 << 6;
    }
}

impl FaultStatus {
    /// The index of the record that set [`PRIMARY_PENDING_FAULT`](Self::PRIMARY_PENDING_FAULT)
    /// (`FRI`), out of the register's raw value; meaningless while that flag is clear.
    #[doc(alias = "FRI")]
    #[inline]
    pub const fn fault_record_index(raw: u32) -> u8 {
        (raw >> 8) as u8
    }

    /// The register's raw value: the flags together with the record index (`FRI`).
    #[inline]
    pub const fn with_fault_record_index(self, index: u8) -> u32 {
        Self::from_bits_truncate(self.bits()).bits() | (index as u32) << 8
    }
}

bitflags! {
    /// The control register of the fault, invalidation or page request event (§11.4.7.2).
    #[doc(alias("FECTL_REG", "IECTL_REG", "PECTL_REG"))]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct EventControl: u32 {
        /// Messages are held back (`IM`); set after reset.
        #[doc(alias = "IM")]
        const INTERRUPT_MASK = 1 << 31;
        /// A message is held back or being sent (`IP`), read only.
        #[doc(alias = "IP")]
        const INTERRUPT_PENDING = 1 << 30;
    }
}

bitflags! {
    /// The invalidation completion status register (§11.4.9).
    #[doc(alias = "ICS_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct InvalidationCompletionStatus: u32 {
        /// A wait descriptor that asks for an interrupt is complete (`IWC`); write 1 to clear.
        #[doc(alias = "IWC")]
        const WAIT_COMPLETE = 1 << 0;
    }
}

bitflags! {
    /// The page request status register (§11.4.11).
    #[doc(alias = "PRS_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct PageRequestStatus: u32 {
        /// A page request was queued (`PPR`); write 1 to clear.
        #[doc(alias = "PPR")]
        const PENDING = 1 << 0;
        /// A page request met a full queue (`PRO`); write 1 to clear.
        #[doc(alias = "PRO")]
        const OVERFLOW = 1 << 1;
    }
}

bitflags! {
    /// The protected memory enable register (§11.4.8.1).
    #[doc(alias = "PMEN_REG")]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct ProtectedMemoryEnable: u32 {
        /// Block DMA to the protected memory regions (`EPM`).
        #[doc(alias = "EPM")]
        const ENABLE = 1 << 31;
        /// The regions are in force (`PRS`), read only.
        #[doc(alias = "PRS")]
        const STATUS = 1 << 0;
    }
}
