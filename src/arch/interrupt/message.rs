//! What devices and I/O APICs send to raise interrupts (§5.1.2, §5.1.5).

use super::{DeliveryMode, Interrupt, InterruptIndex};

/// An interrupt message: what a device writes, and where (MSI and MSI-X).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InterruptMessage {
    /// The address: 0xFEEx_xxxx.
    pub address: u64,
    /// The data.
    pub data: u32,
}

/// What a message says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MessageFormat {
    /// Compatibility format: it says itself what it asks for (§5.1.2.1).
    Compatibility(Interrupt),
    /// Remappable format: it names an entry (§5.1.2.2).
    Remappable {
        /// The handle.
        handle: u16,
        /// What is added to the handle, if the message is one of a block (`SHV`).
        subhandle: Option<u16>,
    },
}

/// Why a write is no valid interrupt message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MessageError {
    /// The address is not in 0xFEE0_0000 to 0xFEEF_FFFF.
    Address(u64),
    /// With a subhandle, bits 31:16 of the data are reserved (§5.1.2.2).
    ReservedData(u32),
    /// The delivery mode of a compatibility request is 3 or 6, which are reserved.
    DeliveryMode(u8),
}

impl MessageFormat {
    /// The index of the entry that a remappable message names: the sum may need 17 bits (§5.1.3).
    pub const fn index(self) -> Option<u32> {
        match self {
            Self::Compatibility(_) => None,
            Self::Remappable { handle, subhandle } => {
                let subhandle = match subhandle {
                    Some(subhandle) => subhandle as u32,
                    None => 0,
                };
                Some((handle as u32).saturating_add(subhandle))
            }
        }
    }
}

const RANGE: u64 = 0xfee0_0000;
const REMAPPABLE: u64 = 1 << 4;
const SUBHANDLE_VALID: u64 = 1 << 3;

impl InterruptMessage {
    /// The message in remappable format that names one entry.
    pub const fn remappable(index: InterruptIndex) -> Self {
        let index = index.as_u16() as u64;
        Self {
            address: RANGE | REMAPPABLE | (index & 0x7fff) << 5 | (index >> 15) << 2,
            data: 0,
        }
    }

    /// The message in remappable format that names the first of a block of entries: a device that
    /// sends several messages (MSI) counts up the low bits of the data, and so the entry.
    pub const fn remappable_block(first: InterruptIndex) -> Self {
        let Self { address, data } = Self::remappable(first);
        Self {
            address: address | SUBHANDLE_VALID,
            data,
        }
    }

    /// Whether it is in remappable format: bit 4 of the address.
    pub const fn is_remappable(self) -> bool {
        self.address & REMAPPABLE != 0
    }

    /// What the message says.
    ///
    /// # Errors
    ///
    /// [`MessageError`].
    pub const fn decode(self) -> Result<MessageFormat, MessageError> {
        let Self { address, data } = self;
        if address & !0xf_ffff != RANGE {
            return Err(MessageError::Address(address));
        }
        if self.is_remappable() {
            let subhandle = if address & SUBHANDLE_VALID == 0 {
                None
            } else if data >> 16 != 0 {
                return Err(MessageError::ReservedData(data));
            } else {
                Some(data as u16)
            };
            return Ok(MessageFormat::Remappable {
                handle: (address >> 5 & 0x7fff | (address >> 2 & 1) << 15) as u16,
                subhandle,
            });
        }
        match self.decode_compatibility() {
            Ok(interrupt) => Ok(MessageFormat::Compatibility(interrupt)),
            Err(error) => Err(error),
        }
    }

    /// What the message asks for in compatibility format, whatever bit 4 of the address says: what
    /// processors make of it while interrupts are not remapped (§5.1.2.1).
    ///
    /// # Errors
    ///
    /// [`MessageError::Address`] or [`MessageError::DeliveryMode`].
    pub const fn decode_compatibility(self) -> Result<Interrupt, MessageError> {
        let Self { address, data } = self;
        if address & !0xf_ffff != RANGE {
            return Err(MessageError::Address(address));
        }
        let mode = data as u64 >> 8 & 7;
        let Some(delivery) = DeliveryMode::from_field(mode) else {
            return Err(MessageError::DeliveryMode(mode as u8));
        };
        Ok(Interrupt {
            destination: (address >> 12 & 0xff) as u32,
            logical: address >> 2 & 1 == 1,
            redirection_hint: address >> 3 & 1 == 1,
            level_triggered: data >> 15 & 1 == 1,
            delivery,
            vector: data as u8,
        })
    }
}

/// An I/O APIC redirection table entry (§5.1.5.1).
///
/// Any bit pattern is a value of this type.
#[doc(alias = "RTE")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IoApicEntry(u64);

impl IoApicEntry {
    /// Bits that mean the same in both formats: mask 16, trigger mode 15, remote IRR 14, polarity
    /// 13, delivery status 12.
    const PIN: u64 = 0x1_f000;

    /// The entry with these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits of the entry.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The entry in remappable format that names the table entry `index`, with the pin set up as it
    /// is here.
    ///
    /// `vector` is that of the table entry: a level-triggered pin is found by it at the end of the
    /// interrupt. The trigger mode has to be that of the table entry, too.
    #[must_use]
    pub const fn remappable(self, index: InterruptIndex, vector: u8) -> Self {
        let index = index.as_u16() as u64;
        Self(
            self.0 & Self::PIN
                | vector as u64
                | (index >> 15) << 11
                | 1 << 48
                | (index & 0x7fff) << 49,
        )
    }

    /// Whether it is in remappable format.
    pub const fn is_remappable(self) -> bool {
        self.0 >> 48 & 1 == 1
    }

    /// The index that it names, if it is in remappable format.
    pub const fn index(self) -> Option<InterruptIndex> {
        if !self.is_remappable() {
            return None;
        }
        let index = self.0 >> 49 | (self.0 >> 11 & 1) << 15;
        Some(InterruptIndex::new(index as u16))
    }

    /// Whether the pin is masked.
    pub const fn is_masked(self) -> bool {
        self.0 >> 16 & 1 == 1
    }

    /// Whether the pin is level-triggered.
    pub const fn is_level_triggered(self) -> bool {
        self.0 >> 15 & 1 == 1
    }

    /// The vector.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(address: u64, data: u32) -> InterruptMessage {
        InterruptMessage { address, data }
    }

    #[test]
    fn remappable_messages_carry_handle_and_subhandle() {
        // §5.1.2.2: 19:5 handle 14:0, 4 format, 3 SHV, 2 handle 15. Without SHV data is ignored.
        for (address, data, handle, subhandle, index) in [
            (0xfee0_0010, 0xffff_ffff, 0, None, 0),
            (0xfee0_0030, 0, 1, None, 1),
            (0xfeef_fff0, 0, 0x7fff, None, 0x7fff),
            (0xfee0_0014, 0, 0x8000, None, 0x8000),
            (0xfee0_0038, 2, 1, Some(2), 3),
            (0xfeef_fffc, 0xffff, 0xffff, Some(0xffff), 0x1_fffe),
        ] {
            let format = message(address, data).decode().unwrap();
            assert_eq!(format, MessageFormat::Remappable { handle, subhandle });
            assert_eq!(format.index(), Some(index));
        }
        let reserved = message(0xfee0_0018, 0x1_0000).decode();
        assert_eq!(reserved, Err(MessageError::ReservedData(0x1_0000)));
        for address in [0xfed0_0010, 0xfef0_0000, 0x1_fee0_0010] {
            let error = MessageError::Address(address);
            assert_eq!(message(address, 0).decode(), Err(error));
        }
    }

    #[test]
    fn messages_name_every_index() {
        for index in [0, 1, 0x7fff, 0x8000, 0xffff] {
            let one = InterruptMessage::remappable(InterruptIndex::new(index));
            assert_eq!(one.decode().unwrap().index(), Some(index.into()));
            let block = InterruptMessage::remappable_block(InterruptIndex::new(index));
            let third = message(block.address, block.data | 3);
            assert_eq!(third.decode().unwrap().index(), Some(u32::from(index) + 3));
        }
    }

    #[test]
    fn compatibility_requests_are_read_as_processors_read_them() {
        // §5.1.2.1.
        assert_eq!(
            message(0xfee1_200c, 0xc731).decode(),
            Ok(MessageFormat::Compatibility(Interrupt {
                destination: 0x12,
                logical: true,
                redirection_hint: true,
                level_triggered: true,
                delivery: DeliveryMode::External,
                vector: 0x31,
            }))
        );
        let fixed = Interrupt::fixed(0xff, 0x41);
        let format = MessageFormat::Compatibility(fixed);
        assert_eq!(message(0xfeef_f000, 0x41).decode(), Ok(format));
        assert_eq!(format.index(), None);
        let reserved = Err(MessageError::DeliveryMode(6));
        assert_eq!(message(0xfee0_0000, 0x600).decode(), reserved);
    }

    #[test]
    fn io_apic_entries_keep_the_pin_and_name_an_index() {
        // §5.1.5.1: 63:49 index 14:0, 48 format, 11 index 15, 10:8 are 0.
        let pin = IoApicEntry::from_bits(0x0300_0000_0001_af31);
        let entry = pin.remappable(InterruptIndex::new(0x8003), 0x52);
        assert_eq!(entry.bits(), 3 << 49 | 1 << 48 | 0x1_a852);
        assert_eq!(entry.index(), Some(InterruptIndex::new(0x8003)));
        assert_eq!((entry.vector(), pin.index()), (0x52, None));
        assert!(entry.is_masked() && entry.is_level_triggered() && entry.is_remappable());
    }
}
