//! What the hypervisor needs of the ACPI tables, and the one change that it makes to them.

use crate::boot::cpuid;
use crate::memory::Window;

/// Ports of the power management control registers, which put the machine to sleep or off.
pub(crate) fn power_management_ports(fadt: &[u8]) -> [Option<u16>; 2] {
    const PM1A_CONTROL: usize = 64;
    const PM1B_CONTROL: usize = 68;
    [PM1A_CONTROL, PM1B_CONTROL].map(|offset| {
        let [low, high, 0, 0] = *fadt.get(offset..)?.first_chunk()? else {
            return None;
        };
        Some(u16::from_le_bytes([low, high])).filter(|port| *port != 0)
    })
}

/// Marks every processor but this one as not there, so that the guest does not start them. Returns
/// how many that were.
pub(crate) fn hide_other_processors(madt: &mut Window) -> u32 {
    const ENTRIES: u64 = 44;
    const CHECKSUM: u64 = 9;
    let own_id = cpuid(1, 0).ebx >> 24;
    let mut hidden = 0;
    let mut at = ENTRIES;
    while let (Some(kind), Some(len)) = (madt.read_u8(at), madt.read_u8(at + 1)) {
        let (id, flags) = match kind {
            // Local APIC: the id is a byte.
            0 => (madt.read_u8(at + 3).map(u32::from), at + 4),
            // Local x2APIC.
            9 => (read_u32(madt, at + 4), at + 8),
            _ => (None, at),
        };
        // Bit 0: enabled. Bit 1: can come later.
        if let (Some(id), Some(byte)) = (id, madt.read_u8(flags))
            && id != own_id
            && byte & 3 != 0
            && let Some(sum) = madt.read_u8(CHECKSUM)
        {
            hidden += 1;
            let _ = madt.write_u8(flags, byte & !3);
            let _ = madt.write_u8(CHECKSUM, sum.wrapping_add(byte & 3));
        }
        if len < 2 {
            break;
        }
        at += u64::from(len);
    }
    hidden
}

fn read_u32(table: &Window, offset: u64) -> Option<u32> {
    let mut value = 0;
    for index in (0..4).rev() {
        value = value << 8 | u32::from(table.read_u8(offset + index)?);
    }
    Some(value)
}
