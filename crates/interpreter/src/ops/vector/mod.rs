//! x87, MMX, SSE and AVX instructions, and those that save and restore their registers.
//!
//! What an instruction computes is the host's business (crate `native`, see [`run`]); what the CPU
//! does around it is done here: whether the unit is there ([`mod@unit`]), the memory operand, pending
//! and raised exceptions, the x87 pointers ([`x87`]). Only plain moves and bitwise operations are
//! quicker done in Rust ([`moves`]).

mod control;
mod masked;
mod moves;
mod run;
mod save;
mod table;
#[cfg(test)]
mod tests;
mod unit;
mod x87;

pub(crate) use table::VectorTable;

use crate::cpu::Cpu;
use crate::op::{Handler, Op};
use iced_x86::Instruction;
use native::Operation;

/// The handler for `instruction`, which was decoded from `code`.
pub(super) fn select(
    cpu: &mut Cpu,
    instruction: &Instruction,
    code: &[u8],
    op: &mut Op,
) -> Option<Handler> {
    x87::select_control(instruction)
        .or_else(|| control::select(instruction))
        .or_else(|| save::select(instruction))
        .or_else(|| select_native(cpu, instruction, code, op))
}

/// The handler for an instruction that the crate `native` knows.
fn select_native(
    cpu: &mut Cpu,
    instruction: &Instruction,
    code: &[u8],
    op: &mut Op,
) -> Option<Handler> {
    let native = cpu.shared.native;
    let (index, operation) = cpu.vector.intern(native, instruction).ok()?;
    op.aux = index;
    Some(match operation {
        Operation::Run(routine) if routine.unit() == native::Unit::X87 => {
            x87::select(routine, instruction, code, op)
        }
        Operation::Run(routine) => {
            let handler = run::select(routine, instruction, op);
            moves::select(instruction, op).unwrap_or(handler)
        }
        Operation::Masked(operation) => masked::select(operation, op),
        Operation::Gather(operation) => masked::select_gather(operation, op),
    })
}
