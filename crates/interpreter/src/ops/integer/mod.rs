//! Integer instructions that any program may execute.
//!
//! Handlers are generic over the operand size, the operation and whether the access is locked, so
//! that the compiler makes a straight line of each combination. `select` of each family picks
//! among them by the instruction's [`Form`].
//!
//! Flags that the manuals leave undefined are what AMD's Zen cores make of them where that costs
//! nothing, else 0.

mod alu;
mod arith;
mod atomic;
mod bcd;
mod bits;
mod bmi;
mod bound;
mod branch;
mod data;
mod flags;
mod logic;
mod multiply;
mod random;
mod shift;
mod stack;
mod string;
#[cfg(test)]
mod tests;

use crate::cpu::Cpu;
use crate::op::{Handler, Op};
use iced_x86::{EncodingKind, Instruction, OpKind};

/// The handler for an operand of `$bits` bits, `$handler` being written for the type `$T`.
/// Returns `None` from the caller for any other size.
macro_rules! sized {
    ($bits:expr, |$T:ident| $handler:expr) => {
        match $bits {
            8 => {
                type $T = u8;
                let handler: $crate::op::Handler = $handler;
                handler
            }
            bits => $crate::ops::integer::wide!(bits, |$T| $handler),
        }
    };
}
use sized;

/// Like [`sized!`], for instructions that have no form for bytes.
macro_rules! wide {
    ($bits:expr, |$T:ident| $handler:expr) => {
        match $bits {
            16 => {
                type $T = u16;
                let handler: $crate::op::Handler = $handler;
                handler
            }
            32 => {
                type $T = u32;
                let handler: $crate::op::Handler = $handler;
                handler
            }
            64 => {
                type $T = u64;
                let handler: $crate::op::Handler = $handler;
                handler
            }
            _ => return None,
        }
    };
}
use wide;

/// The handler for condition `$code` (0 to 15), `$handler` being written for the constant `$C`.
macro_rules! conditional {
    ($code:expr, |$C:ident| $handler:expr) => {
        $crate::ops::integer::conditional!(@ $code, $C, $handler,
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $code:expr, $C:ident, $handler:expr, $($n:literal)*) => {
        match $code {
            $($n => {
                const $C: u8 = $n;
                let handler: $crate::op::Handler = $handler;
                handler
            })*
            _ => return None,
        }
    };
}
use conditional;

/// What an operand is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    /// A general-purpose register.
    Register,
    Memory,
    Immediate,
    /// Anything else: another register, a string operand, a branch target.
    Other,
}

impl Kind {
    fn of(instruction: &Instruction, operand: u32) -> Self {
        if operand >= instruction.op_count() {
            return Self::None;
        }
        match instruction.op_kind(operand) {
            OpKind::Register if instruction.op_register(operand).is_gpr() => Self::Register,
            OpKind::Memory => Self::Memory,
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Self::Immediate,
            _ => Self::Other,
        }
    }
}

/// What handlers of one mnemonic differ in.
struct Form {
    kinds: [Kind; 3],
    /// Size of the first operand, in bits.
    bits: u32,
    /// The access to memory is locked.
    lock: bool,
}

impl Form {
    fn new(instruction: &Instruction) -> Self {
        Self {
            kinds: [0, 1, 2].map(|operand| Kind::of(instruction, operand)),
            bits: operand_bits(instruction, 0),
            lock: instruction.has_lock_prefix(),
        }
    }
}

/// Size of an operand in bits; 0 for one that has none of its own.
fn operand_bits(instruction: &Instruction, operand: u32) -> u32 {
    let bytes = match Kind::of(instruction, operand) {
        Kind::Register => instruction.op_register(operand).size(),
        Kind::Memory => instruction.memory_size().size(),
        _ => 0,
    };
    bytes as u32 * 8
}

/// The encoding (0 to 15) of the condition of a Jcc, CMOVcc, SETcc or their like.
fn condition(instruction: &Instruction) -> u8 {
    // iced-x86 numbers them from 1 in the order of the encoding.
    (instruction.condition_code() as u8).wrapping_sub(1)
}

/// The handler of an integer instruction; `None` for any other.
pub(super) fn select(cpu: &Cpu, instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let form = Form::new(instruction);
    if form.kinds[0] == Kind::Other && instruction.op_kind(0) == OpKind::Register {
        // A segment, control or vector register.
        return None;
    }
    let handler = data::select(instruction, &form, op)
        .or_else(|| arith::select(instruction, &form))
        .or_else(|| logic::select(instruction, &form))
        .or_else(|| branch::select(instruction, &form))
        .or_else(|| stack::select(instruction, &form))
        .or_else(|| shift::select(instruction, &form, op))
        .or_else(|| string::select(instruction))
        .or_else(|| multiply::select(instruction, &form))
        .or_else(|| bits::select(instruction, &form))
        .or_else(|| bmi::select(instruction, &form))
        .or_else(|| atomic::select(instruction, &form))
        .or_else(|| flags::select(instruction))
        .or_else(|| bcd::select(instruction))
        .or_else(|| bound::select(instruction, &form))
        .or_else(|| random::select(instruction, &form))?;
    if instruction.encoding() == EncodingKind::VEX && cpu.real_addressing() {
        // SDM vol. 2, 2.8: VEX is not recognised in real-address and virtual-8086 mode.
        return Some(super::undefined);
    }
    Some(handler)
}
