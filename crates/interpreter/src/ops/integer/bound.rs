//! BOUND, and the instructions that are undefined by definition.

use super::{Form, wide};
use crate::cpu::{Cpu, Result};
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::ops;
use iced_x86::{Instruction, Mnemonic as M};
use x86::{Exception, Vector};

pub(super) fn select(instruction: &Instruction, form: &Form) -> Option<Handler> {
    match instruction.mnemonic() {
        M::Bound => Some(wide!(form.bits, |T| bound::<T>)),
        M::Ud0 | M::Ud1 | M::Ud2 => Some(ops::undefined),
        _ => None,
    }
}

/// The memory operand is the lower and the upper bound, both signed and inclusive.
fn bound<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let address = cpu.address(op);
    let upper_at = address.wrapping_add(T::SIZE as u64) & u64::MAX >> (op.address_cut & 63);
    let lower: T = cpu.load_at(op.segment, address)?;
    let upper: T = cpu.load_at(op.segment, upper_at)?;
    let index = cpu.reg::<T>(op.r0).sx() as i64;
    if index < lower.sx() as i64 || index > upper.sx() as i64 {
        return cpu.raise(Exception::new(Vector::BoundRange));
    }
    Ok(())
}
