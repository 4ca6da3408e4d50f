//! What a guest may write to PCI configuration space: everything, but what would put a device's
//! memory over a protected page, or give functions other numbers than their tables have (S94).
//!
//! Pure: configuration space comes as a function. Each write is judged by the state that it would
//! leave: a function that answers no memory accesses may hold any address, so that a driver can
//! measure its registers.

use heapless::Vec;
use vtd_nest::arch::id::SourceId;

/// Functions that the guard has room for.
pub(crate) const MAX_FUNCTIONS: usize = 64;
/// Protected ranges.
pub(crate) const MAX_PROTECTED: usize = 12;
/// Ranges of one function's registers that are never written.
const MAX_FROZEN: usize = 6;

const COMMAND: u16 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const BARS: u16 = 0x10;
const BUS_NUMBERS: u16 = 0x18;
const MEMORY_WINDOW: u16 = 0x20;
const PREFETCHABLE_WINDOW: u16 = 0x24;
const PREFETCHABLE_BASE_HIGH: u16 = 0x28;
const PREFETCHABLE_LIMIT_HIGH: u16 = 0x2c;
const HEADER_END: u16 = 0x40;

/// Why a write is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The function was not there at start.
    UnknownFunction,
    /// The access is not an aligned one of 1, 2 or 4 bytes.
    Access,
    /// A base address register or the expansion ROM's would cover a protected page.
    Covers { start: u64, end: u64 },
    /// A bridge would forward a protected page.
    Forwards { start: u64, end: u64 },
    /// A bridge would get other buses.
    Buses,
    /// The register decides where memory lies in a way that is not judged.
    Frozen(u16),
}

/// A function as the guard knows it.
#[derive(Clone, Debug)]
pub(crate) struct Guarded {
    pub(crate) source_id: SourceId,
    pub(crate) is_bridge: bool,
    /// Lengths of the memory behind base address registers in bytes; 0 where there is none.
    pub(crate) bars: [u64; 6],
    /// Length of the expansion ROM in bytes, or 0.
    pub(crate) rom_len_bytes: u64,
    /// First and last offset of what is never written.
    pub(crate) frozen: Vec<(u16, u16), MAX_FROZEN>,
}

impl Guarded {
    /// A function of this class whose header is known, its capabilities read from configuration
    /// space.
    pub(crate) fn new(
        source_id: SourceId,
        class: u32,
        is_bridge: bool,
        bars: [u64; 6],
        rom_len_bytes: u64,
        read: impl Fn(u16) -> u32,
    ) -> Self {
        let mut frozen = Vec::new();
        let mut freeze = |range| {
            // One of each kind: there is room.
            let _ = frozen.push(range);
        };
        match class >> 8 {
            // Host bridges place configuration space and memory by registers of their own.
            0x0600 => freeze((HEADER_END, 0xff)),
            // The root complex's register block, in what chipsets put beside the ISA bridge.
            0x0601 => freeze((0xf0, 0xf3)),
            _ => {}
        }
        let mut next = read(0x34) as u16 & 0xfc;
        for _ in 0..48 {
            let header = read(next);
            if next < HEADER_END || header == u32::MAX {
                break;
            }
            // Enhanced allocation.
            if header & 0xff == 0x14 {
                freeze((next + 2, 0xff));
            }
            next = (header >> 8) as u16 & 0xfc;
        }
        let mut next = 0x100;
        for _ in 0..960 {
            let header = read(next);
            if next < 0x100 || matches!(header, 0 | u32::MAX) {
                break;
            }
            match header & 0xffff {
                // Single-root virtualisation: functions that nobody has assigned.
                0x10 => freeze((next + 0x08, next + 0x3b)),
                // Resizable base address registers.
                0x15 => freeze((next + 0x04, next + 0x33)),
                _ => {}
            }
            next = (header >> 20) as u16 & 0xffc;
        }
        Self {
            source_id,
            is_bridge,
            bars,
            rom_len_bytes,
            frozen,
        }
    }
}

/// The guard.
#[derive(Debug, Default)]
pub(crate) struct PciGuard {
    functions: Vec<Guarded, MAX_FUNCTIONS>,
    protected: Vec<(u64, u64), MAX_PROTECTED>,
}

impl PciGuard {
    /// Protects the pages from `start` to before `end`; `None` if there is no room.
    pub(crate) fn protect(&mut self, start: u64, end: u64) -> Option<()> {
        self.protected.push((start, end)).ok()
    }

    /// Adds a function; `None` if there is no room.
    pub(crate) fn add(&mut self, function: Guarded) -> Option<()> {
        self.functions.push(function).ok()
    }

    /// Judges a write of the low `size` bytes of `value`; `read` reads the function's registers.
    pub(crate) fn check(
        &self,
        source_id: SourceId,
        offset: u16,
        size: u8,
        value: u32,
        read: impl Fn(u16) -> u32,
    ) -> Result<(), Refusal> {
        if !matches!(size, 1 | 2 | 4) || !offset.is_multiple_of(size.into()) {
            return Err(Refusal::Access);
        }
        let function = self
            .functions
            .iter()
            .find(|function| function.source_id == source_id)
            .ok_or(Refusal::UnknownFunction)?;
        let last = offset + u16::from(size) - 1;
        let frozen = function.frozen.iter();
        if let Some(range) = { frozen }.find(|range| offset <= range.1 && range.0 <= last) {
            return Err(Refusal::Frozen(range.0));
        }
        if offset >= HEADER_END {
            return Ok(());
        }
        // The register at `at` as it would be after the write.
        let after = |at: u16| {
            let old = read(at);
            if at != offset & !3 {
                return old;
            }
            let shift = 8 * u32::from(offset & 3);
            let mask = (u64::from(u32::MAX) >> (32 - 8 * u32::from(size)) << shift) as u32;
            old & !mask | value << shift & mask
        };
        if function.is_bridge && (after(BUS_NUMBERS) ^ read(BUS_NUMBERS)) & 0x00ff_ffff != 0 {
            return Err(Refusal::Buses);
        }
        if after(COMMAND) & COMMAND_MEMORY == 0 {
            return Ok(());
        }
        for (start, end) in covered(function, after) {
            if self.is_protected(start, end) {
                return Err(Refusal::Covers { start, end });
            }
        }
        if function.is_bridge {
            for (start, end) in forwarded(after) {
                if start < end && self.is_protected(start, end) {
                    return Err(Refusal::Forwards { start, end });
                }
            }
        }
        Ok(())
    }

    fn is_protected(&self, start: u64, end: u64) -> bool {
        self.protected
            .iter()
            .any(|protected| start < protected.1 && protected.0 < end)
    }
}

/// What a function answers, by its registers.
fn covered(
    function: &Guarded,
    after: impl Fn(u16) -> u32 + Copy,
) -> impl Iterator<Item = (u64, u64)> {
    let bars = (0..).zip(function.bars);
    let bars = bars.filter(|(_, len)| *len != 0).map(move |(index, len)| {
        let offset = BARS + 4 * index;
        let low = after(offset);
        let high = if low >> 1 & 3 == 2 {
            after(offset + 4)
        } else {
            0
        };
        aligned(u64::from(high) << 32 | u64::from(low & !0xf), len)
    });
    let rom = after(if function.is_bridge { 0x38 } else { 0x30 });
    let rom = (function.rom_len_bytes != 0 && rom & 1 != 0)
        .then(|| aligned(u64::from(rom & !0x7ff), function.rom_len_bytes));
    bars.chain(rom)
}

fn aligned(address: u64, len_bytes: u64) -> (u64, u64) {
    let start = address & !(len_bytes - 1);
    (start, start.saturating_add(len_bytes))
}

/// What a bridge forwards downstream, by its registers; empty windows end before they start.
fn forwarded(after: impl Fn(u16) -> u32) -> [(u64, u64); 2] {
    let window = |register: u32, high: (u32, u32)| {
        let start = u64::from(register & 0xfff0) << 16 | u64::from(high.0) << 32;
        let last = u64::from(register >> 16 & 0xfff0) << 16 | 0xf_ffff | u64::from(high.1) << 32;
        (start, last.saturating_add(1))
    };
    let prefetchable = after(PREFETCHABLE_WINDOW);
    let high = if prefetchable & 0xf == 1 {
        (
            after(PREFETCHABLE_BASE_HIGH),
            after(PREFETCHABLE_LIMIT_HIGH),
        )
    } else {
        (0, 0)
    };
    [
        window(after(MEMORY_WINDOW), (0, 0)),
        window(prefetchable, high),
    ]
}
