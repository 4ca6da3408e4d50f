//! Firmware's tables: from the RSDP to a copy of the table wanted, with every length and checksum
//! checked.
//!
//! Written out here because the `acpi` crate needs a nightly compiler and trusts the lengths that it
//! reads.

use vtd_nest::arch::address::Hpa;

use crate::memory::{Memory, MemoryError, Window};

/// Length of the header of every table, in bytes.
const HEADER_LEN_BYTES: u32 = 36;
/// Tables that claim to be longer are refused.
const MAX_TABLE_LEN_BYTES: u32 = 1 << 20;

/// Why a table cannot be had.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "the values are only ever printed")]
pub(crate) enum FirmwareError {
    /// The loader named no RSDP.
    NoRsdp,
    /// There is no RSDP at this address.
    RsdpSignature(Hpa),
    /// The table at this address has another signature than the pointer to it promised.
    Signature(Hpa),
    /// The table at this address claims this length, which is too short or too long.
    Length(Hpa, u32),
    /// The bytes of the table at this address do not add up to zero.
    Checksum(Hpa),
    /// No table has the signature.
    NotFound,
    Memory(MemoryError),
}

impl From<MemoryError> for FirmwareError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

/// Copies the first table with `signature` into RAM of its own.
///
/// `rsdp` is the address of the Root System Description Pointer.
pub(crate) fn find_table(
    memory: &mut Memory,
    rsdp: Option<Hpa>,
    signature: &[u8; 4],
) -> Result<&'static [u8], FirmwareError> {
    let table = locate_table(memory, rsdp, signature)?;
    copy(memory, &table)
}

/// The first table with `signature` where firmware has it.
pub(crate) fn locate_table(
    memory: &Memory,
    rsdp: Option<Hpa>,
    signature: &[u8; 4],
) -> Result<Window, FirmwareError> {
    let (root, entry_len_bytes) = root_table(memory, rsdp.ok_or(FirmwareError::NoRsdp)?)?;
    let entries = (root.len_bytes() - u64::from(HEADER_LEN_BYTES)) / entry_len_bytes;
    for index in 0..entries {
        let offset = u64::from(HEADER_LEN_BYTES) + index * entry_len_bytes;
        let address = match entry_len_bytes {
            4 => u64::from(u32::from_le_bytes(bytes(&root, offset))),
            _ => u64::from_le_bytes(bytes(&root, offset)),
        };
        let header = memory.window(Hpa::new(address), HEADER_LEN_BYTES.into())?;
        if bytes(&header, 0) == *signature {
            return table(memory, Hpa::new(address), signature);
        }
    }
    Err(FirmwareError::NotFound)
}

/// The XSDT, or the RSDT of ACPI 1.0, and the length of its entries.
fn root_table(memory: &Memory, address: Hpa) -> Result<(Window, u64), FirmwareError> {
    const LEN_BYTES_1_0: u32 = 20;
    const LEN_BYTES_2_0: u32 = 36;
    let rsdp = memory.window(address, LEN_BYTES_1_0.into())?;
    if bytes(&rsdp, 0) != *b"RSD PTR " {
        return Err(FirmwareError::RsdpSignature(address));
    }
    verify_checksum(&rsdp)?;
    let [revision] = bytes(&rsdp, 15);
    if revision >= 2 {
        let rsdp = memory.window(address, LEN_BYTES_2_0.into())?;
        let length = u32::from_le_bytes(bytes(&rsdp, 20));
        if !(LEN_BYTES_2_0..=4096).contains(&length) {
            return Err(FirmwareError::Length(address, length));
        }
        verify_checksum(&memory.window(address, length.into())?)?;
        let root = u64::from_le_bytes(bytes(&rsdp, 24));
        if root != 0 {
            return Ok((table(memory, Hpa::new(root), b"XSDT")?, 8));
        }
    }
    let root = u32::from_le_bytes(bytes(&rsdp, 16));
    Ok((table(memory, Hpa::new(root.into()), b"RSDT")?, 4))
}

/// The whole table at `address`, its signature, length and checksum verified.
fn table(memory: &Memory, address: Hpa, signature: &[u8; 4]) -> Result<Window, FirmwareError> {
    let header = memory.window(address, HEADER_LEN_BYTES.into())?;
    if bytes(&header, 0) != *signature {
        return Err(FirmwareError::Signature(address));
    }
    let length = u32::from_le_bytes(bytes(&header, 4));
    if !(HEADER_LEN_BYTES..=MAX_TABLE_LEN_BYTES).contains(&length) {
        return Err(FirmwareError::Length(address, length));
    }
    let table = memory.window(address, length.into())?;
    verify_checksum(&table)?;
    Ok(table)
}

fn verify_checksum(table: &Window) -> Result<(), FirmwareError> {
    let sum = (0..table.len_bytes())
        .filter_map(|offset| table.read_u8(offset))
        .fold(0, u8::wrapping_add);
    if sum == 0 {
        Ok(())
    } else {
        Err(FirmwareError::Checksum(table.start()))
    }
}

/// `N` bytes at any offset; zeroes past the end, which callers have ruled out.
fn bytes<const N: usize>(table: &Window, offset: u64) -> [u8; N] {
    core::array::from_fn(|index| table.read_u8(offset + index as u64).unwrap_or(0))
}

fn copy(memory: &mut Memory, table: &Window) -> Result<&'static [u8], FirmwareError> {
    let copy = memory.allocate(table.len_bytes(), 1)?.into_zeroed_bytes();
    for (offset, byte) in (0..table.len_bytes()).zip(copy.iter_mut()) {
        *byte = table.read_u8(offset).unwrap_or(0);
    }
    let copy: &'static [u8] = copy;
    Ok(copy.get(..table.len_bytes() as usize).unwrap_or_default())
}
