//! Moves and bitwise operations, which are quicker done here than on the host: what `memcpy`,
//! `memset` and compilers use most.

use super::unit::{Avx, Sse, Unit};
use crate::cpu::{Cpu, Result};
use crate::op::{Handler, Op};
use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};

/// Bits that a legacy-encoded instruction writes at most: the XMM register.
const XMM: usize = 16;
/// A VEX-encoded instruction clears what it does not write, to the end of the YMM register.
const YMM: usize = 32;

/// The handler for `instruction`, if it is a plain one. Registers in `op` become numbers of vector
/// registers; [`Op::imm`] and [`Op::extra`] stay.
pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let vex = instruction.encoding() == EncodingKind::VEX;
    let mut numbers = [op.r0, op.r1, op.r2];
    let operands = instruction.op_count().min(3);
    for operand in 0..operands {
        let register = instruction.op_register(operand);
        if let Some(number) = vector_number(register) {
            numbers[operand as usize] = number;
        } else if register.is_mm() {
            return None;
        }
    }
    let handler = if let Some(operation) = bitwise_operation(instruction.mnemonic()) {
        if !vex {
            // The destination is the first source.
            numbers = [numbers[0], numbers[0], numbers[1]];
        }
        select_bitwise(instruction, operation, vex)
    } else if is_move(instruction.mnemonic()) && operands == 2 {
        select_move(instruction, vex)
    } else {
        None
    }?;
    // Where one operand is a general-purpose register, `r0` already is its slot.
    let has_gpr = (0..operands).any(|operand| instruction.op_register(operand).is_gpr());
    if has_gpr {
        op.r1 = numbers[usize::from(instruction.op0_register().is_gpr())];
    } else {
        [op.r0, op.r1, op.r2] = numbers;
    }
    Some(handler)
}

fn vector_number(register: Register) -> Option<u8> {
    (register.is_xmm() || register.is_ymm()).then(|| register.number() as u8)
}

/// Moves without a merge: whatever of the destination is not written is kept or cleared.
fn is_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Movups
            | M::Movupd
            | M::Movaps
            | M::Movapd
            | M::Movdqu
            | M::Movdqa
            | M::Lddqu
            | M::Movntdqa
            | M::Movntps
            | M::Movntpd
            | M::Movntdq
            | M::Movd
            | M::Movq
            | M::Movss
            | M::Movsd
            | M::Movlps
            | M::Movlpd
            | M::Vmovups
            | M::Vmovupd
            | M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqu
            | M::Vmovdqa
            | M::Vlddqu
            | M::Vmovntdqa
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq
            | M::Vmovd
            | M::Vmovq
            | M::Vmovss
            | M::Vmovsd
            | M::Vmovlps
            | M::Vmovlpd
    )
}

fn select_move(instruction: &Instruction, vex: bool) -> Option<Handler> {
    use OpKind as K;
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    let partial = matches!(instruction.mnemonic(), Mnemonic::Movlps | Mnemonic::Movlpd);
    match (instruction.op0_kind(), instruction.op1_kind()) {
        (K::Register, K::Memory) if !partial && vector_number(to).is_some() => {
            select_load(instruction.memory_size().size(), vex)
        }
        (K::Memory, K::Register) if vector_number(from).is_some() => {
            select_store(instruction.memory_size().size(), vex)
        }
        (K::Register, K::Register) => select_copy(instruction, vex),
        _ => None,
    }
}

fn select_load(bytes: usize, vex: bool) -> Option<Handler> {
    Some(match (bytes, vex) {
        (4, false) => load::<Sse, 4, XMM>,
        (8, false) => load::<Sse, 8, XMM>,
        (16, false) => load::<Sse, 16, XMM>,
        (4, true) => load::<Avx, 4, YMM>,
        (8, true) => load::<Avx, 8, YMM>,
        (16, true) => load::<Avx, 16, YMM>,
        (32, true) => load::<Avx, 32, YMM>,
        _ => return None,
    })
}

fn select_store(bytes: usize, vex: bool) -> Option<Handler> {
    Some(match (bytes, vex) {
        (4, false) => store::<Sse, 4>,
        (8, false) => store::<Sse, 8>,
        (16, false) => store::<Sse, 16>,
        (4, true) => store::<Avx, 4>,
        (8, true) => store::<Avx, 8>,
        (16, true) => store::<Avx, 16>,
        (32, true) => store::<Avx, 32>,
        _ => return None,
    })
}

fn select_copy(instruction: &Instruction, vex: bool) -> Option<Handler> {
    use Mnemonic as M;
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    if to.is_gpr() || from.is_gpr() {
        return Some(match (to.is_gpr(), to.size().min(from.size()), vex) {
            (false, 4, false) => from_gpr::<Sse, 4, XMM>,
            (false, 8, false) => from_gpr::<Sse, 8, XMM>,
            (false, 4, true) => from_gpr::<Avx, 4, YMM>,
            (false, 8, true) => from_gpr::<Avx, 8, YMM>,
            (true, 4, false) => to_gpr::<Sse, 4>,
            (true, 8, false) => to_gpr::<Sse, 8>,
            (true, 4, true) => to_gpr::<Avx, 4>,
            (true, 8, true) => to_gpr::<Avx, 8>,
            _ => return None,
        });
    }
    Some(match (instruction.mnemonic(), vex) {
        // They merge scalars.
        (M::Movss | M::Movsd, _) => return None,
        (M::Movq, _) => copy::<Sse, 8, XMM>,
        (M::Vmovq, _) => copy::<Avx, 8, YMM>,
        (_, false) => copy::<Sse, 16, XMM>,
        (_, true) if to.is_ymm() => copy::<Avx, 32, YMM>,
        (_, true) => copy::<Avx, 16, YMM>,
    })
}

/// Loads `N` bytes and clears the register from there to `END`.
fn load<U: Unit, const N: usize, const END: usize>(cpu: &mut Cpu, op: &Op) -> Result {
    U::ready(cpu)?;
    let value = cpu.load_array::<N>(op, op.imm)?;
    set::<N, END>(cpu, op.r0, &value);
    Ok(())
}

/// Stores the low `N` bytes.
fn store<U: Unit, const N: usize>(cpu: &mut Cpu, op: &Op) -> Result {
    U::ready(cpu)?;
    let place = cpu.place_array(op, N, op.imm)?;
    let value = low::<N>(cpu, op.r1);
    cpu.put_array(place, &value);
    Ok(())
}

/// Copies the low `N` bytes and clears the register from there to `END`.
fn copy<U: Unit, const N: usize, const END: usize>(cpu: &mut Cpu, op: &Op) -> Result {
    U::ready(cpu)?;
    let value = low::<N>(cpu, op.r1);
    set::<N, END>(cpu, op.r0, &value);
    Ok(())
}

/// Copies `N` bytes of a general-purpose register and clears from there to `END`.
fn from_gpr<U: Unit, const N: usize, const END: usize>(cpu: &mut Cpu, op: &Op) -> Result {
    U::ready(cpu)?;
    let value = cpu.reg::<u64>(op.r0).to_le_bytes();
    let value = value.first_chunk::<N>().expect("4 or 8 bytes");
    set::<N, END>(cpu, op.r1, value);
    Ok(())
}

/// Copies the low `N` bytes to a general-purpose register and clears the rest of it.
fn to_gpr<U: Unit, const N: usize>(cpu: &mut Cpu, op: &Op) -> Result {
    U::ready(cpu)?;
    let mut value = [0; 8];
    value[..N].copy_from_slice(&low::<N>(cpu, op.r1));
    cpu.set_reg(op.r0, u64::from_le_bytes(value));
    Ok(())
}

/// The low `N` bytes of vector register `number`.
#[inline(always)]
fn low<const N: usize>(cpu: &Cpu, number: u8) -> [u8; N] {
    let register = &cpu.fpu.state.ymm[usize::from(number & 15)];
    *register.first_chunk().expect("no more than a register")
}

/// Sets the low `N` bytes of vector register `number` and clears it from there to `END`.
#[inline(always)]
fn set<const N: usize, const END: usize>(cpu: &mut Cpu, number: u8, value: &[u8; N]) {
    let register = &mut cpu.fpu.state.ymm[usize::from(number & 15)];
    register[..N].copy_from_slice(value);
    register[N..END].fill(0);
}

/// A bitwise operation of the first and the second source.
trait Bitwise {
    fn apply(a: u128, b: u128) -> u128;
}

struct And;
struct AndNot;
struct Or;
struct Xor;

impl Bitwise for And {
    #[inline(always)]
    fn apply(a: u128, b: u128) -> u128 {
        a & b
    }
}

impl Bitwise for AndNot {
    #[inline(always)]
    fn apply(a: u128, b: u128) -> u128 {
        !a & b
    }
}

impl Bitwise for Or {
    #[inline(always)]
    fn apply(a: u128, b: u128) -> u128 {
        a | b
    }
}

impl Bitwise for Xor {
    #[inline(always)]
    fn apply(a: u128, b: u128) -> u128 {
        a ^ b
    }
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    And,
    AndNot,
    Or,
    Xor,
}

fn bitwise_operation(mnemonic: Mnemonic) -> Option<Operation> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Pand | M::Andps | M::Andpd | M::Vpand | M::Vandps | M::Vandpd => Operation::And,
        M::Pandn | M::Andnps | M::Andnpd | M::Vpandn | M::Vandnps | M::Vandnpd => Operation::AndNot,
        M::Por | M::Orps | M::Orpd | M::Vpor | M::Vorps | M::Vorpd => Operation::Or,
        M::Pxor | M::Xorps | M::Xorpd | M::Vpxor | M::Vxorps | M::Vxorpd => Operation::Xor,
        _ => return None,
    })
}

fn select_bitwise(instruction: &Instruction, operation: Operation, vex: bool) -> Option<Handler> {
    fn form<B: Bitwise>(instruction: &Instruction, vex: bool) -> Handler {
        let from_memory = instruction.op_count() > 0
            && instruction.op_kind(instruction.op_count() - 1) == OpKind::Memory;
        match (instruction.op0_register().is_ymm(), vex, from_memory) {
            (false, false, false) => bitwise::<Sse, B, 16, XMM>,
            (false, false, true) => bitwise_load::<Sse, B, 16, XMM>,
            (false, true, false) => bitwise::<Avx, B, 16, YMM>,
            (false, true, true) => bitwise_load::<Avx, B, 16, YMM>,
            (true, _, false) => bitwise::<Avx, B, 32, YMM>,
            (true, _, true) => bitwise_load::<Avx, B, 32, YMM>,
        }
    }
    vector_number(instruction.op0_register())?;
    Some(match operation {
        Operation::And => form::<And>(instruction, vex),
        Operation::AndNot => form::<AndNot>(instruction, vex),
        Operation::Or => form::<Or>(instruction, vex),
        Operation::Xor => form::<Xor>(instruction, vex),
    })
}

fn bitwise<U: Unit, B: Bitwise, const N: usize, const END: usize>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result {
    U::ready(cpu)?;
    let value = combine::<B, N>(&low(cpu, op.r1), &low(cpu, op.r2));
    set::<N, END>(cpu, op.r0, &value);
    Ok(())
}

fn bitwise_load<U: Unit, B: Bitwise, const N: usize, const END: usize>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result {
    U::ready(cpu)?;
    let operand = cpu.load_array::<N>(op, op.imm)?;
    let value = combine::<B, N>(&low(cpu, op.r1), &operand);
    set::<N, END>(cpu, op.r0, &value);
    Ok(())
}

#[inline(always)]
fn combine<B: Bitwise, const N: usize>(a: &[u8; N], b: &[u8; N]) -> [u8; N] {
    let mut result = [0; N];
    let (a, _) = a.as_chunks::<16>();
    let (b, _) = b.as_chunks::<16>();
    let (to, _) = result.as_chunks_mut::<16>();
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        *to = B::apply(u128::from_le_bytes(*a), u128::from_le_bytes(*b)).to_le_bytes();
    }
    result
}
