//! The guest's own page tables, walked to fetch an instruction.
//!
//! Pure: guest memory comes as a function. Rights do not matter, the processor has fetched from
//! there already.

const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const CR4_LA57: u64 = 1 << 12;

/// The guest-physical address behind a linear one in 64-bit mode; `read` gives a quadword of guest
/// memory, `None` outside of it.
pub(crate) fn translate(
    cr3: u64,
    cr4: u64,
    linear: u64,
    read: impl Fn(u64) -> Option<u64>,
) -> Option<u64> {
    let levels = if cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    let mut table = cr3 & ADDRESS;
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry = read(table + (linear >> shift & 0x1ff) * 8)?;
        if entry & PRESENT == 0 {
            return None;
        }
        let offset = (1u64 << shift) - 1;
        if level == 1 || entry & LARGE != 0 && level <= 3 {
            return Some(entry & ADDRESS & !offset | linear & offset);
        }
        table = entry & ADDRESS;
    }
    None
}
