//! Where everything lies: the same on both sides.

use crate::random::mix;

/// Length of memory on both sides. Memory starts at 0.
pub(crate) const RAM_BYTES: u64 = 256 << 20;

/// An address where there is neither memory nor a device.
pub(crate) const NOWHERE: u64 = 0x2000_0000;

/// The 1 MiB that interrupts are written to.
pub(crate) const INTERRUPT_RANGE: u64 = 0xfee0_0000;

/// First of the frames for tables.
pub(crate) const TABLES: u64 = 0x0200_0000;

/// One past the last of them.
pub(crate) const TABLES_END: u64 = 0x0300_0000;

/// Status words of waits.
pub(crate) const STATUS: u64 = 0x0300_0000;

/// Invalidation queues, of 4 KiB each.
pub(crate) const QUEUES: [u64; 2] = [0x0301_0000, 0x0302_0000];

/// Length of a queue.
pub(crate) const QUEUE_BYTES: u64 = 4096;

/// Where 2-MiB pages are mapped to.
pub(crate) const LARGE_FRAMES: [u64; 4] = [0x0400_0000, 0x0800_0000, 0x0820_0000, 0x0a00_0000];

/// Where slots lie in 2 MiB, and the pages behind them.
const OFFSETS: [u64; 6] = [0, 0x1000, 0x2000, 0x3000, 0x4000, 0x1f_f000];

/// The pages that data goes to and comes from: parts of large frames, and some more.
pub(crate) const DATA_PAGES: [u64; 28] = data_pages();

const fn data_pages() -> [u64; 28] {
    let mut pages = [
        0x0c00_0000,
        0x0c01_2000,
        0x0c02_7000,
        0x0c3f_e000,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let mut index = 0;
    while index < LARGE_FRAMES.len() * OFFSETS.len() {
        pages[4 + index] = LARGE_FRAMES[index / OFFSETS.len()] + OFFSETS[index % OFFSETS.len()];
        index += 1;
    }
    pages
}

/// What a data page holds before each DMA: bytes that are neither 0 nor above 0x7f, so that they
/// are neither what a blocked read gives nor what a device sends.
pub(crate) fn content(address: u64) -> u8 {
    (mix(address) as u8 & 0x7f) | 1
}

/// Pages of a domain's addresses that programs map and access. Neighbours are for DMA across page
/// boundaries. Nothing lies at these addresses in host memory, should they be taken for some.
pub(crate) const SLOTS: [u64; 18] = [
    // Across 4 KiB, 2 MiB and 1 GiB.
    0x3fe0_0000,
    0x3fe0_1000,
    0x3fff_f000,
    0x4000_0000,
    // At the offset of a data page in 1 GiB.
    0x1_4400_0000,
    0x1_4800_3000,
    0x40_0820_0000,
    // Around the interrupt range.
    0xfedf_f000,
    0xfef0_0000,
    // The ends of 39 bits, and of half of 48.
    (1 << 39) - 0x1000,
    1 << 39,
    (1 << 47) - 0x1000,
    1 << 47,
    (1 << 48) - 0x1000,
    // Canonical for a first stage with 4 levels.
    0xffff_8000_0000_0000,
    0xffff_ffff_ffff_f000,
    // Far from all others.
    0x12_3456_7000,
    0x7f_0a20_3000,
];

/// Pages that are never mapped.
pub(crate) const BEYOND: [u64; 4] = [
    1 << 48,
    1 << 52,
    0x8000_0000_0000_0000,
    0x0001_3456_789a_b000,
];

/// Whether a page of this size at `frame` has data pages where it maps the address.
pub(crate) fn reaches_data(address: u64, order: u32, frame: u64) -> bool {
    let page = (frame | address & ((1 << order) - 1)) & !0xfff;
    DATA_PAGES.contains(&page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pages_can_map_some_slots_to_data() {
        for order in [21, 30] {
            let mappable = SLOTS.iter().filter(|slot| {
                [0].iter().chain(&LARGE_FRAMES).any(|&frame| {
                    frame & ((1 << order) - 1) == 0 && reaches_data(**slot, order, frame)
                })
            });
            assert!(mappable.count() >= 3, "{order}");
        }
    }

    #[test]
    fn whatever_a_slot_reaches_in_a_large_page_is_data() {
        for slot in SLOTS {
            for frame in LARGE_FRAMES {
                let next = slot
                    .checked_add(0x1000)
                    .filter(|next| next >> 21 == slot >> 21);
                let is_alone = !SLOTS
                    .iter()
                    .any(|&other| other >> 21 == slot >> 21 && reaches_data(other, 21, frame));
                for address in [Some(slot), next].into_iter().flatten() {
                    assert!(is_alone || reaches_data(address, 21, frame), "{address:x}");
                }
            }
        }
    }

    #[test]
    fn no_slot_is_a_host_address_of_anything() {
        for slot in SLOTS {
            assert!(slot >= RAM_BYTES && slot != NOWHERE);
            assert!(!(INTERRUPT_RANGE..INTERRUPT_RANGE + (1 << 20)).contains(&slot));
        }
    }
}
