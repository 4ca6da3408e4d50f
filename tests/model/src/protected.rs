//! Protected memory regions (§11.4.8): DMA into them is dropped, remapping or not, and no fault
//! tells of it. The unit's own accesses to tables are not checked.

use vtd_nest::arch::capability::CapabilityField as Cap;

use crate::bits;
use crate::unit::{Due, Unit};
use crate::violation::Violation;

const ENABLE: u32 = 1 << 31;
const STATUS: u32 = 1;

/// The registers from `PMEN_REG` on: offsets 0x64 to 0x7F.
pub(crate) const FIRST: u16 = 0x64;
pub(crate) const LAST: u16 = 0x7c;

/// `PMEN_REG` and the bases and limits.
#[derive(Default)]
pub(crate) struct ProtectedMemory {
    /// PLMBASE, PLMLIMIT, PHMBASE and PHMLIMIT, the latter two in halves: 0x68 to 0x7F.
    bounds: [u32; 6],
    /// EPM as written.
    wanted: bool,
    /// PRS.
    enabled: bool,
    pending: Option<Due>,
}

impl Unit {
    /// Whether there is a register at this offset, from [`FIRST`] to [`LAST`].
    pub(crate) fn has_protected_register(&self, at: u16) -> bool {
        let low = self.config.has_cap(Cap::PROTECTED_LOW_MEMORY);
        let high = self.config.has_cap(Cap::PROTECTED_HIGH_MEMORY);
        match at {
            0x64 => low || high,
            0x68 | 0x6c => low,
            _ => high,
        }
    }

    pub(crate) fn read_protected(&self, at: u16) -> u32 {
        let registers = &self.registers.protected_memory;
        match at {
            FIRST => {
                (u32::from(registers.wanted) * ENABLE) | (u32::from(registers.enabled) * STATUS)
            }
            _ => registers.bounds[usize::from(at - 0x68) / 4],
        }
    }

    pub(crate) fn write_protected(&mut self, at: u16, value: u32) {
        if at == FIRST {
            // PRS is read-only: writing back what was read is no breach.
            self.reserved(at, value & !(ENABLE | STATUS));
            if self.has_pending_command() {
                self.violation(Violation::CommandInProgress { offset: at });
                self.finish_protected();
            }
            let due = Due::from_pace(self.config.command_pace, self.clock.now());
            let registers = &mut self.registers.protected_memory;
            registers.wanted = value & ENABLE != 0;
            registers.pending = Some(due);
            self.complete_protected(false);
            return;
        }
        if self.registers.protected_memory.enabled {
            self.violation(Violation::ProtectedMemoryWhileEnabled { offset: at });
        }
        // Bits N:0 and bits at and above the host address width are not implemented: software
        // writes all ones to find N, so that is no breach.
        let reserved = match at {
            0x74 | 0x7c => bits::from_bit(u32::from(self.config.host_address_width)) >> 32,
            _ => !bits::from_bit(u32::from(self.config.protected_memory_bits)),
        };
        self.registers.protected_memory.bounds[usize::from(at - 0x68) / 4] =
            value & !(reserved as u32);
    }

    pub(crate) fn is_protecting_pending(&self) -> bool {
        self.registers.protected_memory.pending.is_some()
    }

    /// Brings PRS to EPM if that is due.
    pub(crate) fn complete_protected(&mut self, manual: bool) {
        let now = self.clock.now();
        let pending = self.registers.protected_memory.pending;
        if pending.is_some_and(|due| due.is_over(now, manual)) {
            self.finish_protected();
        }
    }

    fn finish_protected(&mut self) {
        let registers = &mut self.registers.protected_memory;
        if registers.pending.take().is_some() {
            registers.enabled = registers.wanted;
        }
    }

    /// First and last addresses of the regions in force.
    fn protected_regions(&self) -> impl Iterator<Item = (u64, u64)> {
        let [
            low_base,
            low_limit,
            high_base,
            high_base_upper,
            high_limit,
            high_limit_upper,
        ] = self.registers.protected_memory.bounds;
        let quadword = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let decoded_as_ones = !bits::from_bit(u32::from(self.config.protected_memory_bits));
        let low = (u64::from(low_base), u64::from(low_limit));
        let high = (
            quadword(high_base, high_base_upper),
            quadword(high_limit, high_limit_upper),
        );
        [
            (Cap::PROTECTED_LOW_MEMORY, low),
            (Cap::PROTECTED_HIGH_MEMORY, high),
        ]
        .into_iter()
        .filter(|(capability, (base, limit))| self.config.has_cap(*capability) && limit >= base)
        .map(move |(_, (base, limit))| (base, limit | decoded_as_ones))
    }

    /// Whether an access of a device is dropped, for touching a protected region. `address` is
    /// what the device sent, `host` what became of it.
    pub(crate) fn drops_protected(&mut self, address: u64, host: u64, len_bytes: usize) -> bool {
        let last = host + (len_bytes as u64).max(1) - 1;
        let touches = self.registers.protected_memory.enabled
            && self
                .protected_regions()
                .any(|(first, past)| host <= past && first <= last);
        if !touches {
            return false;
        }
        // An address that is its own translation may be pass-through, which is never let through.
        let is_remapped = self.registers.translation_enabled() && address != host;
        if is_remapped && !self.config.protects_from_remapped {
            self.violation(Violation::MappingOfProtectedMemory { address: host });
            return false;
        }
        self.counters.protected += 1;
        true
    }
}
