//! The decoder of trapped moves, beside a whole decoder.

use crate::decode::{DecodeError, Instruction, MAX_LEN_BYTES, Move, Part, decode};
use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, OpKind, Register};

/// Prefixes before a REX prefix.
const PREFIXES: [&[u8]; 14] = [
    &[],
    &[0x66],
    &[0x67],
    &[0x65],
    &[0x66, 0x67],
    &[0x67, 0x66],
    &[0x66, 0x66],
    &[0x26, 0x2e, 0x36, 0x3e, 0x64],
    // A REX prefix that is not the last one does not count.
    &[0x48, 0x66],
    &[0x44, 0x67],
    &[0x4c, 0x2e],
    &[0xf0],
    &[0xf2],
    &[0xf3],
];

/// What follows the ModRM byte; all of it may be displacement or constant.
const TAIL: [u8; 12] = [
    0x81, 0x92, 0xa3, 0xf4, 0x15, 0x26, 0x37, 0x48, 0x59, 0x6a, 0x7b, 0x8c,
];

/// The same instruction as the other decoder reads it, if it is a move that a trap may need.
fn expected(bytes: &[u8]) -> Option<Instruction> {
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let moves = matches!(
        instruction.mnemonic(),
        Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx
    );
    let has_other_prefix = instruction.has_lock_prefix()
        || instruction.has_rep_prefix()
        || instruction.has_repne_prefix()
        || bytes
            .iter()
            .take_while(|byte| is_prefix(**byte))
            .any(|byte| matches!(byte, 0xf0 | 0xf2 | 0xf3));
    if instruction.code() == Code::INVALID || !moves || has_other_prefix {
        return None;
    }
    let is_general = |register: Register| register.is_gpr();
    let size = instruction.memory_size().size() as u8;
    let moved = match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Register, OpKind::Memory) if is_general(instruction.op0_register()) => {
            Move::Load {
                into: part(instruction.op0_register()),
                is_signed: instruction.mnemonic() == Mnemonic::Movsx,
            }
        }
        (OpKind::Memory, OpKind::Register) if is_general(instruction.op1_register()) => {
            Move::StoreRegister(part(instruction.op1_register()))
        }
        (OpKind::Memory, OpKind::Immediate8) => {
            Move::StoreConstant(instruction.immediate8() as i8 as u64)
        }
        (OpKind::Memory, OpKind::Immediate16) => {
            Move::StoreConstant(instruction.immediate16() as i16 as u64)
        }
        (OpKind::Memory, OpKind::Immediate32) => {
            Move::StoreConstant(instruction.immediate32() as i32 as u64)
        }
        (OpKind::Memory, OpKind::Immediate32to64) => {
            Move::StoreConstant(instruction.immediate32to64() as u64)
        }
        _ => return None,
    };
    Some(Instruction {
        len_bytes: instruction.len() as u8,
        size,
        moved,
    })
}

fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

fn part(register: Register) -> Part {
    let is_second_byte = matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    );
    Part {
        register: register.full_register().number() as u8,
        width: register.size() as u8,
        is_second_byte,
    }
}

fn check(bytes: &[u8]) -> bool {
    let found = decode(bytes);
    let expected = expected(bytes);
    assert_eq!(found.ok(), expected, "{bytes:02x?}: {found:?}");
    expected.is_some()
}

/// Every prefix, REX prefix and opcode of one and two bytes with every ModRM byte.
#[test]
fn every_form_is_read_as_another_decoder_reads_it_or_refused() {
    let mut accepted = 0u32;
    for prefixes in PREFIXES {
        for rex in [None].into_iter().chain((0x40..=0x4f).map(Some)) {
            for opcode in 0..0x200u16 {
                let mut start = prefixes.to_vec();
                start.extend(rex);
                if opcode >= 0x100 {
                    start.push(0x0f);
                }
                start.push(opcode as u8);
                if opcode < 0x100 && is_prefix(opcode as u8) || opcode == 0x0f {
                    continue;
                }
                for modrm in 0..=u8::MAX {
                    let mut bytes = start.clone();
                    bytes.push(modrm);
                    bytes.extend(TAIL);
                    accepted += u32::from(check(&bytes));
                    // One for all: these have no ModRM byte, or are refused whatever it is.
                    let is_move = matches!(
                        opcode,
                        0x88..=0x8b | 0xc6 | 0xc7 | 0x1b6 | 0x1b7 | 0x1be | 0x1bf
                    );
                    if !is_move && modrm > 4 {
                        break;
                    }
                }
            }
        }
    }
    assert!(accepted > 100_000, "{accepted}");
}

/// Every SIB byte with every ModRM byte that has one.
#[test]
fn every_sib_byte_is_read_as_another_decoder_reads_it() {
    for rex in [None, Some(0x40), Some(0x43), Some(0x48), Some(0x4f)] {
        for opcode in [0x88, 0x89, 0x8a, 0x8b, 0xc6, 0xc7] {
            for modrm in (0..=u8::MAX).filter(|modrm| modrm & 7 == 4) {
                for sib in 0..=u8::MAX {
                    let mut bytes: Vec<u8> = rex.into_iter().collect();
                    bytes.extend([opcode, modrm, sib]);
                    bytes.extend(TAIL);
                    check(&bytes);
                }
            }
        }
    }
}

#[test]
fn an_instruction_that_is_cut_off_is_incomplete() {
    // mov dword ptr fs:[rax + rcx*4 + 0x44332211], 0x88776655, in two lengths.
    let mut bytes = vec![
        0x64, 0xc7, 0x84, 0x88, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88,
    ];
    for len in 0..bytes.len() {
        assert_eq!(decode(&bytes[..len]), Err(DecodeError::Incomplete), "{len}");
    }
    assert_eq!(
        decode(&bytes).map(|instruction| instruction.len_bytes),
        Ok(12)
    );
    bytes.splice(0..0, [0x64; 4]);
    assert!(bytes.len() > MAX_LEN_BYTES);
    assert_eq!(decode(&bytes), Err(DecodeError::Incomplete));
}

#[test]
fn registers_change_as_moves_of_their_width_change_them() {
    const OLD: u64 = 0x8877_6655_4433_2211;
    for (bytes, value, expected) in [
        (&[0x8a, 0x00][..], 0xff, 0x8877_6655_4433_22ff), // mov al, [rax]
        (&[0x8a, 0x20][..], 0xff, 0x8877_6655_4433_ff11), // mov ah, [rax]
        (&[0x66, 0x8b, 0x00][..], 0xffff, 0x8877_6655_4433_ffff), // mov ax, [rax]
        (&[0x8b, 0x00][..], 0xffff_ffff, 0xffff_ffff),    // mov eax, [rax]
        (&[0x48, 0x8b, 0x00][..], u64::MAX, u64::MAX),    // mov rax, [rax]
        (&[0x0f, 0xb6, 0x00][..], 0xff, 0xff),            // movzx eax, byte [rax]
        (&[0x0f, 0xbe, 0x00][..], 0x80, 0xffff_ff80),     // movsx eax, byte [rax]
        (&[0x48, 0x0f, 0xbf, 0x00][..], 0x8000, 0xffff_ffff_ffff_8000), // movsx rax, word [rax]
        (&[0x66, 0x0f, 0xbe, 0x00][..], 0x80, 0x8877_6655_4433_ff80), // movsx ax, byte [rax]
    ] {
        let mut registers = [OLD; 16];
        decode(bytes).unwrap().load(&mut registers, value);
        assert_eq!(registers[0], expected, "{bytes:02x?}");
        assert_eq!(registers[1..], [OLD; 15], "{bytes:02x?}");
    }
    for (bytes, expected) in [
        (&[0x88, 0x00][..], 0x11),         // mov [rax], al
        (&[0x88, 0x20][..], 0x22),         // mov [rax], ah
        (&[0x40, 0x88, 0x20][..], 0x11),   // mov [rax], spl
        (&[0x66, 0x89, 0x00][..], 0x2211), // mov [rax], ax
        (&[0x89, 0x00][..], 0x4433_2211),  // mov [rax], eax
        (&[0x48, 0x89, 0x00][..], OLD),    // mov [rax], rax
        (&[0x48, 0xc7, 0x00, 0xff, 0xff, 0xff, 0xff][..], u64::MAX), // mov qword [rax], -1
        (&[0xc7, 0x00, 0xff, 0xff, 0xff, 0xff][..], 0xffff_ffff), // mov dword [rax], -1
    ] {
        let instruction = decode(bytes).unwrap();
        assert!(instruction.is_store());
        assert_eq!(
            instruction.stored(&[OLD; 16]),
            Some(expected),
            "{bytes:02x?}"
        );
    }
}
