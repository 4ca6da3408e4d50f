//! The permission maps: which ports and which model-specific registers are exits.

use crate::memory::Window;

/// Length of the map of ports in bytes.
pub(crate) const PORTS_LEN_BYTES: u64 = 12 << 10;
/// Length of the map of model-specific registers in bytes.
pub(crate) const MSRS_LEN_BYTES: u64 = 8 << 10;

/// One bit a port; a set bit is an exit.
#[derive(Debug)]
pub(crate) struct PortPermissions(pub(crate) Window);

impl PortPermissions {
    pub(crate) fn trap(&mut self, port: u16) {
        set(&mut self.0, u64::from(port));
    }
}

/// Two bits a register, read and write; three ranges of registers have them, the rest always exits.
#[derive(Debug)]
pub(crate) struct MsrPermissions(pub(crate) Window);

impl MsrPermissions {
    fn first_bit(index: u32) -> Option<u64> {
        let (base, first) = match index {
            0..=0x1fff => (0, 0),
            0xc000_0000..=0xc000_1fff => (0xc000_0000, 0x800),
            0xc001_0000..=0xc001_1fff => (0xc001_0000, 0x1000),
            _ => return None,
        };
        Some(first * 8 + 2 * u64::from(index - base))
    }

    pub(crate) fn trap_read(&mut self, index: u32) {
        if let Some(bit) = Self::first_bit(index) {
            set(&mut self.0, bit);
        }
    }

    pub(crate) fn trap_write(&mut self, index: u32) {
        if let Some(bit) = Self::first_bit(index) {
            set(&mut self.0, bit + 1);
        }
    }
}

fn set(map: &mut Window, bit: u64) {
    let offset = bit / 8;
    if let Some(byte) = map.read_u8(offset) {
        let _ = map.write_u8(offset, byte | 1 << (bit % 8));
    }
}
