//! Instructions that move a value between a register and trapped memory: how long one is, and what
//! it moves.
//!
//! Pure, so that hosted tests check it against another decoder. The address is none of its business:
//! the exit tells it. What it does not know it refuses, and the guest stops with a report.

/// The longest instruction, in bytes.
pub(crate) const MAX_LEN_BYTES: usize = 15;

/// Why an instruction is not emulated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DecodeError {
    /// The bytes end before the instruction does, or it is longer than [`MAX_LEN_BYTES`].
    Incomplete,
    /// A prefix that changes what the instruction does: `LOCK`, `REP`, `REPNE`.
    Prefix(u8),
    /// Another opcode than the moves; 0x0fxx if it has two bytes.
    Opcode(u16),
    /// The move is between registers, or the ModRM byte belongs to another instruction.
    ModRm(u8),
}

/// The low 1, 2, 4 or 8 bytes of a general register, or the second byte of one of the first four.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    /// The register's number, 0 to 15, as in instructions: `RAX`, `RCX`, `RDX`, `RBX`, `RSP`, …
    pub(crate) register: u8,
    /// Width in bytes.
    pub(crate) width: u8,
    /// Whether it is `AH`, `CH`, `DH` or `BH`.
    pub(crate) is_second_byte: bool,
}

impl Part {
    fn mask(self) -> u64 {
        width_mask(self.width)
    }

    /// What the part holds.
    pub(crate) fn get(self, registers: &[u64; 16]) -> u64 {
        let value = registers[usize::from(self.register & 15)];
        if self.is_second_byte {
            value >> 8 & 0xff
        } else {
            value & self.mask()
        }
    }

    /// Changes the part: four bytes clear the upper half, fewer leave the rest as it is.
    pub(crate) fn set(self, registers: &mut [u64; 16], value: u64) {
        let register = &mut registers[usize::from(self.register & 15)];
        *register = match (self.is_second_byte, self.width) {
            (true, _) => *register & !0xff00 | (value & 0xff) << 8,
            (false, 4 | 8) => value & self.mask(),
            (false, _) => *register & !self.mask() | value & self.mask(),
        };
    }
}

/// What an instruction moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Move {
    /// Memory to a register.
    Load {
        /// The destination, at least as wide as the value.
        into: Part,
        /// Whether the value's sign fills the rest of the destination, in place of zeros.
        is_signed: bool,
    },
    /// A register to memory.
    StoreRegister(Part),
    /// A constant to memory, sign-extended to 64 bits.
    StoreConstant(u64),
}

/// A move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Instruction {
    /// Length of the instruction in bytes.
    pub(crate) len_bytes: u8,
    /// Bytes of memory that it accesses: 1, 2, 4 or 8.
    pub(crate) size: u8,
    /// What it moves.
    pub(crate) moved: Move,
}

impl Instruction {
    /// Whether it writes memory.
    pub(crate) fn is_store(&self) -> bool {
        !matches!(self.moved, Move::Load { .. })
    }

    /// What a store writes; `None` for a load.
    pub(crate) fn stored(&self, registers: &[u64; 16]) -> Option<u64> {
        match self.moved {
            Move::Load { .. } => None,
            Move::StoreRegister(from) => Some(from.get(registers)),
            Move::StoreConstant(value) => Some(value & width_mask(self.size)),
        }
    }

    /// Ends a load with what memory gave; a store changes nothing.
    pub(crate) fn load(&self, registers: &mut [u64; 16], value: u64) {
        if let Move::Load { into, is_signed } = self.moved {
            let value = value & width_mask(self.size);
            let unused = 64 - 8 * u32::from(self.size.clamp(1, 8));
            let value = if is_signed {
                (((value << unused) as i64) >> unused) as u64
            } else {
                value
            };
            into.set(registers, value);
        }
    }
}

fn width_mask(width: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 8)))
}

/// Bytes of an instruction, taken from the front.
struct Bytes<'a> {
    rest: &'a [u8],
    taken: u8,
}

impl Bytes<'_> {
    fn next(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.rest.split_first().ok_or(DecodeError::Incomplete)?;
        self.rest = rest;
        self.taken += 1;
        Ok(*first)
    }

    fn skip(&mut self, count: u8) -> Result<(), DecodeError> {
        for _ in 0..count {
            self.next()?;
        }
        Ok(())
    }

    fn constant(&mut self, width: u8) -> Result<u64, DecodeError> {
        let mut value = 0;
        for index in 0..width.min(8) {
            value |= u64::from(self.next()?) << (8 * u32::from(index));
        }
        let unused = 64 - 8 * u32::from(width.clamp(1, 8));
        Ok((((value << unused) as i64) >> unused) as u64)
    }

    /// The ModRM byte and what it has of SIB and displacement; gives back the byte.
    fn memory_operand(&mut self) -> Result<u8, DecodeError> {
        let modrm = self.next()?;
        let (mode, rm) = (modrm >> 6, modrm & 7);
        if mode == 3 {
            return Err(DecodeError::ModRm(modrm));
        }
        let base = if rm == 4 { self.next()? & 7 } else { rm };
        self.skip(match (mode, base) {
            (0, 5) | (2, _) => 4,
            (0, _) => 0,
            (_, _) => 1,
        })?;
        Ok(modrm)
    }
}

const REX_W: u8 = 8;
const REX_R: u8 = 4;

/// Decodes one instruction of 64-bit mode from its first bytes; more may follow it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Instruction, DecodeError> {
    let bytes = bytes.get(..MAX_LEN_BYTES).unwrap_or(bytes);
    let mut bytes = Bytes {
        rest: bytes,
        taken: 0,
    };
    let (mut has_small_operand, mut has_small_address) = (false, false);
    let mut rex = None;
    let mut opcode = loop {
        match bytes.next()? {
            0x66 => (has_small_operand, rex) = (true, None),
            0x67 => (has_small_address, rex) = (true, None),
            // Segments: the address is known already.
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => rex = None,
            prefix @ (0xf0 | 0xf2 | 0xf3) => return Err(DecodeError::Prefix(prefix)),
            // Counts only directly before the opcode.
            byte @ 0x40..=0x4f => rex = Some(byte),
            opcode => break u16::from(opcode),
        }
    };
    if opcode == 0x0f {
        opcode = 0x0f00 | u16::from(bytes.next()?);
    }
    let has = |bit| rex.is_some_and(|rex| rex & bit != 0);
    let width = match (has(REX_W), has_small_operand) {
        (true, _) => 8,
        (false, true) => 2,
        (false, false) => 4,
    };
    let register = |modrm: u8, width: u8| {
        let number = modrm >> 3 & 7;
        let is_second_byte = width == 1 && rex.is_none() && number >= 4;
        Part {
            register: match (is_second_byte, has(REX_R)) {
                (true, _) => number - 4,
                (false, true) => number + 8,
                (false, false) => number,
            },
            width,
            is_second_byte,
        }
    };
    let accumulator = |width| Part {
        register: 0,
        width,
        is_second_byte: false,
    };
    let load = |into| Move::Load {
        into,
        is_signed: false,
    };
    // Bit 0 of these opcodes tells bytes from wider values.
    let size = if opcode & 1 == 0 { 1 } else { width };
    let (size, moved) = match opcode {
        0x88 | 0x89 => {
            let modrm = bytes.memory_operand()?;
            (size, Move::StoreRegister(register(modrm, size)))
        }
        0x8a | 0x8b => {
            let modrm = bytes.memory_operand()?;
            (size, load(register(modrm, size)))
        }
        0xa0..=0xa3 => {
            bytes.skip(if has_small_address { 4 } else { 8 })?;
            let moved = if opcode < 0xa2 {
                load(accumulator(size))
            } else {
                Move::StoreRegister(accumulator(size))
            };
            (size, moved)
        }
        0xc6 | 0xc7 => {
            let modrm = bytes.memory_operand()?;
            if modrm >> 3 & 7 != 0 {
                return Err(DecodeError::ModRm(modrm));
            }
            (size, Move::StoreConstant(bytes.constant(size.min(4))?))
        }
        0x0fb6 | 0x0fb7 | 0x0fbe | 0x0fbf => {
            let modrm = bytes.memory_operand()?;
            let moved = Move::Load {
                into: register(modrm, width),
                is_signed: opcode & 8 != 0,
            };
            (if opcode & 1 == 0 { 1 } else { 2 }, moved)
        }
        _ => return Err(DecodeError::Opcode(opcode)),
    };
    Ok(Instruction {
        len_bytes: bytes.taken,
        size,
        moved,
    })
}
