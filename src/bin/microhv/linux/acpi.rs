//! What the hypervisor needs of the ACPI tables, and the one change that it makes to them.

use heapless::Vec;
use vtd_nest::arch::address::Hpa;

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

/// I/O APICs that [`io_apics`] can list.
pub(crate) const MAX_IO_APICS: usize = 4;

/// Where the I/O APICs are; `None` if there are more than can be listed.
pub(crate) fn io_apics(madt: &Window) -> Option<Vec<Hpa, MAX_IO_APICS>> {
    let mut found = Vec::new();
    for at in entries(madt) {
        if madt.read_u8(at) == Some(1)
            && let Some(address) = read_u32(madt, at + 4)
        {
            found.push(Hpa::new(address.into())).ok()?;
        }
    }
    Some(found)
}

/// Offsets of the MADT's entries.
fn entries(madt: &Window) -> impl Iterator<Item = u64> {
    const ENTRIES: u64 = 44;
    let next = |at: &u64| {
        let len = madt.read_u8(at + 1)?;
        (len >= 2).then(|| at + u64::from(len))
    };
    core::iter::successors(Some(ENTRIES), next).take_while(|at| *at < madt.len_bytes())
}

/// Marks every processor but this one as not there, so that the guest does not start them. Returns
/// how many that were.
pub(crate) fn hide_other_processors(madt: &mut Window) -> u32 {
    const CHECKSUM: u64 = 9;
    let own_id = cpuid(1, 0).ebx >> 24;
    let mut hidden = 0;
    let mut processors: Vec<(u32, u64), 256> = Vec::new();
    for at in entries(madt) {
        let (id, flags) = match madt.read_u8(at) {
            // Local APIC: the id is a byte.
            Some(0) => (madt.read_u8(at + 3).map(u32::from), at + 4),
            // Local x2APIC.
            Some(9) => (read_u32(madt, at + 4), at + 8),
            _ => (None, at),
        };
        if let Some(id) = id {
            // More are not started either: messages to them are refused.
            let _ = processors.push((id, flags));
        }
    }
    for (id, flags) in processors {
        // Bit 0: enabled. Bit 1: can come later.
        if let (Some(byte), Some(sum)) = (madt.read_u8(flags), madt.read_u8(CHECKSUM))
            && id != own_id
            && byte & 3 != 0
        {
            hidden += 1;
            let _ = madt.write_u8(flags, byte & !3);
            let _ = madt.write_u8(CHECKSUM, sum.wrapping_add(byte & 3));
        }
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
