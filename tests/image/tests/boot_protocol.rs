//! What a kernel says of itself, and what it is told.

use crate::boot_protocol::{
    HEADER_LEN_BYTES, Kernel, KernelError, MAP_RAM, MAP_RESERVED, MapEntry, Told, overlay,
    zero_page,
};

/// The header of a kernel with a 64-bit entry, by the boot protocol's offsets.
fn header() -> [u8; HEADER_LEN_BYTES] {
    let mut header = [0; HEADER_LEN_BYTES];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[27]); // setup sectors
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x6a]); // jump over the header, which ends at 0x26c
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x236, &[0x2b]); // 64-bit entry among the flags
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x380_0000u32.to_le_bytes());
    put(0x300, &[0xff]); // beyond the header
    header
}

fn changed(at: usize, bytes: &[u8]) -> [u8; HEADER_LEN_BYTES] {
    let mut header = header();
    header[at..at + bytes.len()].copy_from_slice(bytes);
    header
}

#[test]
fn a_kernel_is_read_from_its_header() {
    let kernel = Kernel::parse(&header(), 8 << 20).unwrap();
    assert_eq!(kernel.code_offset, 28 * 512);
    assert_eq!(kernel.preferred_address, 0x100_0000);
    assert_eq!(kernel.init_size, 0x380_0000);
    // No number of sectors means four.
    let old = Kernel::parse(&changed(0x1f1, &[0]), 8 << 20).unwrap();
    assert_eq!(old.code_offset, 5 * 512);
    // It takes at least its own length.
    let large = Kernel::parse(&header(), 64 << 20).unwrap();
    assert_eq!(large.init_size, (64 << 20) - 28 * 512);
}

#[test]
fn what_cannot_be_started_is_refused() {
    for (header, len, expected) in [
        (changed(0x1fe, &[0]), 8 << 20, KernelError::NotAKernel),
        (changed(0x202, b"HdrT"), 8 << 20, KernelError::NotAKernel),
        (
            changed(0x206, &[0x0b]),
            8 << 20,
            KernelError::Protocol(0x020b),
        ),
        (changed(0x236, &[0x2a]), 8 << 20, KernelError::Not64Bit),
        (
            header(),
            28 * 512 + 0x200,
            KernelError::Length(28 * 512 + 0x200),
        ),
    ] {
        assert_eq!(Kernel::parse(&header, len), Err(expected));
    }
}

#[test]
fn the_zero_page_has_the_header_and_what_is_told() {
    let kernel = Kernel::parse(&header(), 8 << 20).unwrap();
    let map = [
        MapEntry {
            start: 0,
            end: 0x9_fc00,
            kind: MAP_RAM,
        },
        MapEntry {
            start: 0x10_0000,
            end: 0x800_0000,
            kind: MAP_RESERVED,
        },
    ];
    let told = Told {
        memory_map: &map,
        rsdp: 0xf_5250,
        command_line: (0x8_1000, 100),
        ramdisk: (0x3f00_0000, 0x12_3456),
    };
    let page = zero_page(&kernel, &header(), &told).unwrap();
    let read = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
    assert_eq!(page[0x1f1..0x210], header()[0x1f1..0x210]);
    assert_eq!(page[0x230..0x26c], header()[0x230..0x26c]);
    assert_eq!(page[0x300..0x400].iter().max(), Some(&0));
    assert_eq!(page[0x210], 0xff);
    assert_eq!((read(0x070), read(0x074)), (0xf_5250, 0));
    assert_eq!((read(0x218), read(0x21c)), (0x3f00_0000, 0x12_3456));
    assert_eq!(read(0x228), 0x8_1000);
    assert_eq!(page[0x1e8], 2);
    assert_eq!((read(0x2d0), read(0x2d8), read(0x2e0)), (0, 0x9_fc00, 1));
    assert_eq!(
        (read(0x2e4), read(0x2ec), read(0x2f4)),
        (0x10_0000, 0x7f0_0000, 2)
    );

    let long = Told {
        command_line: (0x8_1000, 2048),
        ..told
    };
    assert_eq!(
        zero_page(&kernel, &header(), &long),
        Err(KernelError::CommandLine(2048))
    );
    let many = [map[0]; 129];
    let full = Told {
        memory_map: &many,
        ..told
    };
    assert_eq!(
        zero_page(&kernel, &header(), &full),
        Err(KernelError::MemoryMap(129))
    );
}

#[test]
fn a_reserved_range_splits_what_it_crosses() {
    let entry = |start, end, kind| MapEntry { start, end, kind };
    let map = [
        entry(0, 100, MAP_RAM),
        entry(100, 200, 3),
        entry(300, 400, MAP_RAM),
    ];
    for (start, end, expected) in [
        (
            20,
            40,
            vec![
                (0, 20, 1),
                (20, 40, 2),
                (40, 100, 1),
                (100, 200, 3),
                (300, 400, 1),
            ],
        ),
        (0, 100, vec![(0, 100, 2), (100, 200, 3), (300, 400, 1)]),
        (
            50,
            350,
            vec![
                (0, 50, 1),
                (50, 100, 2),
                (100, 200, 2),
                (300, 350, 2),
                (350, 400, 1),
            ],
        ),
        (200, 300, vec![(0, 100, 1), (100, 200, 3), (300, 400, 1)]),
    ] {
        let mut found = Vec::new();
        overlay(map.into_iter(), entry(start, end, MAP_RESERVED), |entry| {
            found.push((entry.start, entry.end, entry.kind));
        });
        assert_eq!(found, expected, "{start}..{end}");
    }
}
