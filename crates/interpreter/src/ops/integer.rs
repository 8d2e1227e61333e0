//! Integer instructions.

use crate::cpu::{Cpu, Result};
use crate::int::Int;
use crate::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic, OpKind};

pub(super) fn select(_: &Cpu, instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    match (
        instruction.mnemonic(),
        instruction.op0_kind(),
        instruction.op1_kind(),
    ) {
        (Mnemonic::Add, OpKind::Register, OpKind::Memory) => Some(add_load::<u64>),
        _ => None,
    }
}

fn add_load<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let b: T = cpu.load(op)?;
    let a: T = cpu.reg(op.r0);
    let sum = T::of(a.zx().wrapping_add(b.zx()));
    cpu.flags.set_add(a, b, sum);
    cpu.set_reg(op.r0, sum);
    Ok(())
}
