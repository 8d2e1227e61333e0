//! Code: raw bytes, mixed with instructions that decode.

use crate::input::Input;
use iced_x86::{
    Code, Decoder, DecoderOptions, EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeTableKind,
};

/// The longest instruction.
const INSTRUCTION_MAX: usize = 15;

/// Code for a segment of `bits`, at most `max` bytes and one instruction.
pub(super) fn code(input: &mut Input<'_>, bits: u32, max: usize) -> Vec<u8> {
    let mut code = Vec::new();
    while !input.is_empty() && code.len() < max {
        match input.below(4) {
            0 => code.extend(input.bytes(8)),
            _ => code.extend(instruction(input, bits)),
        }
    }
    code
}

/// Some instruction of the whole set, with operands from the input.
fn instruction(input: &mut Input<'_>, bits: u32) -> Vec<u8> {
    let code = Code::values().nth(input.below(Code::values().len()));
    let info = code.unwrap_or(Code::INVALID).op_code();
    let mut bytes = Vec::new();
    match info.encoding() {
        EncodingKind::Legacy => legacy(info, bits, input, &mut bytes),
        EncodingKind::VEX => vex(info, bits, input, &mut bytes),
        // Of the others no guest is told: raw bytes will do.
        _ => return input.bytes(INSTRUCTION_MAX).to_vec(),
    }
    bytes.push(operands(info, input));
    // SIB, displacement, immediate: as much of it as the instruction has.
    let small = if input.flag() { 0 } else { 0xff };
    for at in 0..8 {
        let byte = input.u8();
        bytes.push(if at < 2 { byte } else { byte & small });
    }
    let mut decoder = Decoder::new(bits, &bytes, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if !instruction.is_invalid() {
        bytes.truncate(instruction.len());
    }
    bytes
}

fn legacy(info: &OpCodeInfo, bits: u32, input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    // Segment overrides, address size, LOCK, REP.
    if input.below(8) == 0 {
        bytes.push(input.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x67, 0xf0, 0xf2, 0xf3]));
    }
    let size = info.operand_size();
    if (size == 16 && bits != 16) || (size == 32 && bits == 16) {
        bytes.push(0x66);
    }
    match info.mandatory_prefix() {
        MandatoryPrefix::P66 => bytes.push(0x66),
        MandatoryPrefix::PF3 => bytes.push(0xf3),
        MandatoryPrefix::PF2 => bytes.push(0xf2),
        _ => {}
    }
    if bits == 64 {
        let extensions = if input.flag() { input.u8() & 7 } else { 0 };
        let wide = u8::from(size == 64 || info.w() == 1) << 3;
        if wide | extensions != 0 {
            bytes.push(0x40 | wide | extensions);
        }
    }
    match info.table() {
        OpCodeTableKind::T0F => bytes.push(0x0f),
        OpCodeTableKind::T0F38 => bytes.extend([0x0f, 0x38]),
        OpCodeTableKind::T0F3A => bytes.extend([0x0f, 0x3a]),
        _ => {}
    }
    opcode(info, bytes);
}

/// A three-byte VEX prefix (SDM vol. 2, 2.3.5) and the opcode.
fn vex(info: &OpCodeInfo, bits: u32, input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    let table = match info.table() {
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        _ => 1,
    };
    let prefix = match info.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    };
    // Inverted: all ones are the first eight registers, and no operand in vvvv.
    let extensions = if bits == 64 { input.u8() | 0x1f } else { 0xff };
    let operand = if input.flag() { input.u8() & 15 } else { 15 };
    let wide = if info.is_wig() {
        input.u8() & 1
    } else {
        info.w() as u8 & 1
    };
    bytes.push(0xc4);
    bytes.push(extensions & 0xe0 | table);
    bytes.push(wide << 7 | operand << 3 | (info.l() as u8 & 1) << 2 | prefix);
    opcode(info, bytes);
}

fn opcode(info: &OpCodeInfo, bytes: &mut Vec<u8>) {
    let value = info.op_code();
    if info.op_code_len() == 2 {
        bytes.push((value >> 8) as u8);
    }
    bytes.push(value as u8);
}

/// ModRM. Where the instruction has none, a byte of an immediate, or of what follows.
fn operands(info: &OpCodeInfo, input: &mut Input<'_>) -> u8 {
    let mut byte = input.u8();
    // Short displacements stay near what registers point to.
    if byte >> 6 == 2 && input.flag() {
        byte = byte & 0x3f | 0x40;
    }
    if info.is_group() {
        byte = byte & !0x38 | (info.group_index() as u8 & 7) << 3;
    }
    if info.is_rm_group() {
        byte = byte & 0x38 | 0xc0 | info.rm_group_index() as u8 & 7;
    }
    byte
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator whose instructions do not decode would only test #UD.
    #[test]
    fn most_instructions_decode_and_are_of_many_kinds() {
        let mut random = 1u64;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (random >> 56) as u8
        })
        .take(400_000)
        .collect();
        for bits in [16, 32, 64] {
            let mut input = Input::new(&bytes);
            let (mut good, mut all) = (std::collections::HashSet::new(), 0);
            let mut decoded = 0;
            while !input.is_empty() {
                let bytes = instruction(&mut input, bits);
                let mut decoder = Decoder::new(bits, &bytes, DecoderOptions::NONE);
                let instruction = decoder.decode();
                all += 1;
                if !instruction.is_invalid() {
                    decoded += 1;
                    good.insert(instruction.code());
                }
            }
            assert!(decoded * 3 > all, "{bits} bits: {decoded} of {all} decode");
            assert!(
                good.len() > 900,
                "{bits} bits: {} different ones",
                good.len()
            );
        }
    }
}
