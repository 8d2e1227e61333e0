//! The operand shapes that most two-operand and one-operand instructions share.

use super::{Form, Kind, sized};
use crate::cpu::{Cpu, Result};
use crate::flags::Flags;
use crate::int::Int;
use crate::op::{Handler, Op};

/// An operation on two operands, whose result replaces the first. It is split so that a locked
/// access may compute the result several times, but sets the flags once.
pub(super) trait Binary {
    /// The result. `carry` is CF before.
    fn compute<T: Int>(a: T, b: T, carry: bool) -> T;
    /// Sets the flags for `compute(a, b, ..) == result`.
    fn flags<T: Int>(flags: &mut Flags, a: T, b: T, result: T);
}

/// An operation on one operand.
pub(super) trait Unary {
    fn compute<T: Int>(a: T) -> T;
    /// Sets the flags for `compute(a) == result`.
    fn flags<T: Int>(flags: &mut Flags, a: T, result: T);
}

/// The handler of `O` for `form`.
pub(super) fn binary<O: Binary>(form: &Form) -> Option<Handler> {
    use Kind::{Immediate as I, Memory as M, Register as R};
    Some(sized!(form.bits, |T| {
        match (form.kinds[0], form.kinds[1], form.lock) {
            (R, R, _) => reg_reg::<O, T>,
            (R, I, _) => reg_imm::<O, T>,
            (R, M, _) => reg_mem::<O, T>,
            (M, R, false) => mem_reg::<O, T, false>,
            (M, R, true) => mem_reg::<O, T, true>,
            (M, I, false) => mem_imm::<O, T, false>,
            (M, I, true) => mem_imm::<O, T, true>,
            _ => return None,
        }
    }))
}

/// The handler for `form` of an instruction that only sets the flags as `O` does.
pub(super) fn compare<O: Binary>(form: &Form) -> Option<Handler> {
    use Kind::{Immediate as I, Memory as M, Register as R};
    Some(sized!(form.bits, |T| {
        match (form.kinds[0], form.kinds[1]) {
            (R, R) => compare_reg_reg::<O, T>,
            (R, I) => compare_reg_imm::<O, T>,
            (R, M) => compare_reg_mem::<O, T>,
            (M, R) => compare_mem_reg::<O, T>,
            (M, I) => compare_mem_imm::<O, T>,
            _ => return None,
        }
    }))
}

/// The handler of `O` for `form`.
pub(super) fn unary<O: Unary>(form: &Form) -> Option<Handler> {
    Some(sized!(form.bits, |T| {
        match (form.kinds[0], form.lock) {
            (Kind::Register, _) => unary_reg::<O, T>,
            (Kind::Memory, false) => unary_mem::<O, T, false>,
            (Kind::Memory, true) => unary_mem::<O, T, true>,
            _ => return None,
        }
    }))
}

#[inline(always)]
fn to_register<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op, b: T) {
    let a = cpu.reg(op.r0);
    let result = O::compute(a, b, cpu.flags.cf());
    O::flags(&mut cpu.flags, a, b, result);
    cpu.set_reg(op.r0, result);
}

#[inline(always)]
fn to_memory<O: Binary, T: Int, const LOCK: bool>(cpu: &mut Cpu, op: &Op, b: T) -> Result {
    let place = cpu.place::<T>(op)?;
    let carry = cpu.flags.cf();
    let (a, result) = cpu.update(place, LOCK, |a| O::compute(a, b, carry));
    O::flags(&mut cpu.flags, a, b, result);
    Ok(())
}

#[inline(always)]
fn set_flags<O: Binary, T: Int>(cpu: &mut Cpu, a: T, b: T) {
    O::flags(&mut cpu.flags, a, b, O::compute(a, b, false));
}

fn reg_reg<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let b: T = cpu.reg(op.r1);
    to_register::<O, T>(cpu, op, b);
    Ok(())
}

fn reg_imm<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    to_register::<O, T>(cpu, op, T::of(op.imm));
    Ok(())
}

fn reg_mem<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let b: T = cpu.load(op)?;
    to_register::<O, T>(cpu, op, b);
    Ok(())
}

fn mem_reg<O: Binary, T: Int, const LOCK: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let b: T = cpu.reg(op.r0);
    to_memory::<O, T, LOCK>(cpu, op, b)
}

fn mem_imm<O: Binary, T: Int, const LOCK: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    to_memory::<O, T, LOCK>(cpu, op, T::of(op.imm))
}

fn compare_reg_reg<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, b): (T, T) = (cpu.reg(op.r0), cpu.reg(op.r1));
    set_flags::<O, T>(cpu, a, b);
    Ok(())
}

fn compare_reg_imm<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a: T = cpu.reg(op.r0);
    set_flags::<O, T>(cpu, a, T::of(op.imm));
    Ok(())
}

fn compare_reg_mem<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let b: T = cpu.load(op)?;
    let a = cpu.reg(op.r0);
    set_flags::<O, T>(cpu, a, b);
    Ok(())
}

fn compare_mem_reg<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a: T = cpu.load(op)?;
    let b = cpu.reg(op.r0);
    set_flags::<O, T>(cpu, a, b);
    Ok(())
}

fn compare_mem_imm<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a: T = cpu.load(op)?;
    set_flags::<O, T>(cpu, a, T::of(op.imm));
    Ok(())
}

fn unary_reg<O: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a: T = cpu.reg(op.r0);
    let result = O::compute(a);
    O::flags(&mut cpu.flags, a, result);
    cpu.set_reg(op.r0, result);
    Ok(())
}

fn unary_mem<O: Unary, T: Int, const LOCK: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let place = cpu.place::<T>(op)?;
    let (a, result): (T, T) = cpu.update(place, LOCK, O::compute);
    O::flags(&mut cpu.flags, a, result);
    Ok(())
}
