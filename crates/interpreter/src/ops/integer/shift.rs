//! Shifts and rotations.
//!
//! Counts are masked to five bits, six for 64-bit operands, and a count of 0 leaves the flags
//! alone (SDM vol. 2, SAL/SAR/SHL/SHR).

use super::{Form, Kind, sized, wide};
use crate::cpu::{Cpu, Result};
use crate::flags::Flags;
use crate::int::Int;
use crate::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic as M, OpKind};

pub(super) fn select(instruction: &Instruction, form: &Form, op: &mut Op) -> Option<Handler> {
    match instruction.mnemonic() {
        M::Shl | M::Sal => shift::<Shl>(instruction, form, op),
        M::Shr => shift::<Shr>(instruction, form, op),
        M::Sar => shift::<Sar>(instruction, form, op),
        M::Rol => shift::<Rol>(instruction, form, op),
        M::Ror => shift::<Ror>(instruction, form, op),
        M::Rcl => shift::<Rcl>(instruction, form, op),
        M::Rcr => shift::<Rcr>(instruction, form, op),
        M::Shld => double_shift::<false>(form),
        M::Shrd => double_shift::<true>(form),
        M::Rorx => Some(wide!(form.bits, |T| match form.kinds[1] {
            Kind::Memory => rorx::<T, true>,
            _ => rorx::<T, false>,
        })),
        M::Shlx => plain_shift::<Shl>(form),
        M::Shrx => plain_shift::<Shr>(form),
        M::Sarx => plain_shift::<Sar>(form),
        _ => None,
    }
}

/// A shift by a count that is masked already and not 0. Returns the result and sets the flags.
trait Shift {
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T;
}

/// The count of a shift of `T` by `count`.
#[inline(always)]
fn masked<T: Int>(count: u64) -> u32 {
    count as u32 & if T::BITS == 64 { 63 } else { 31 }
}

#[inline(always)]
fn top_bit<T: Int>(value: u64) -> bool {
    value >> (T::BITS - 1) & 1 != 0
}

struct Shl;

impl Shift for Shl {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let before_last = a.zx() << (count - 1);
        let carry = top_bit::<T>(before_last);
        let result = before_last << 1;
        flags.set_result(T::of(result), carry, carry != top_bit::<T>(result));
        T::of(result)
    }
}

struct Shr;

impl Shift for Shr {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let before_last = a.zx() >> (count - 1);
        let result = before_last >> 1;
        let overflow = top_bit::<T>(before_last);
        flags.set_result(T::of(result), before_last & 1 != 0, overflow);
        T::of(result)
    }
}

struct Sar;

impl Shift for Sar {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let before_last = a.sx() as i64 >> (count - 1);
        let result = T::of((before_last >> 1) as u64);
        flags.set_result(result, before_last & 1 != 0, false);
        result
    }
}

/// `a` rotated left by `count`, which may exceed the width.
#[inline(always)]
fn rotated<T: Int>(a: T, count: u32) -> u64 {
    let count = count % T::BITS;
    // The second shift is by the width, of an operand that is narrower than 64 bits, at most.
    a.zx() << count | (a.zx() >> 1) >> (T::BITS - 1 - count)
}

struct Rol;

impl Shift for Rol {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let result = rotated(a, count);
        let carry = result & 1 != 0;
        flags.set_carry_overflow(carry, carry != top_bit::<T>(result));
        T::of(result)
    }
}

struct Ror;

impl Shift for Ror {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let result = rotated(a, T::BITS - count % T::BITS);
        let (carry, next) = (top_bit::<T>(result), top_bit::<T>(result << 1));
        flags.set_carry_overflow(carry, carry != next);
        T::of(result)
    }
}

/// The operand with CF above it, rotated left by `count`: the new operand and CF.
fn rotated_through_carry<T: Int>(a: T, carry: bool, count: u32) -> (T, bool) {
    let width = T::BITS + 1;
    let whole = u128::from(a.zx()) | u128::from(carry) << T::BITS;
    let rotated = whole << count | whole >> (width - count);
    (T::of(rotated as u64), rotated >> T::BITS & 1 != 0)
}

struct Rcl;

impl Shift for Rcl {
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let (result, carry) = rotated_through_carry(a, flags.cf(), count % (T::BITS + 1));
        flags.set_carry_overflow(carry, carry != top_bit::<T>(result.zx()));
        result
    }
}

struct Rcr;

impl Shift for Rcr {
    fn apply<T: Int>(flags: &mut Flags, a: T, count: u32) -> T {
        let left = T::BITS + 1 - count % (T::BITS + 1);
        let (result, carry) = rotated_through_carry(a, flags.cf(), left);
        let top = top_bit::<T>(result.zx());
        flags.set_carry_overflow(carry, top != top_bit::<T>(result.zx() << 1));
        result
    }
}

/// Counts in [`Op::imm`] are masked at selection; one that is 0 makes a handler that only has
/// the operand's other effects.
fn shift<O: Shift>(instruction: &Instruction, form: &Form, op: &mut Op) -> Option<Handler> {
    let memory = form.kinds[0] == Kind::Memory;
    if instruction.op_kind(1) != OpKind::Register {
        return Some(sized!(form.bits, |T| {
            op.imm = masked::<T>(op.imm).into();
            match (memory, op.imm) {
                (false, 0) => touch_reg::<T>,
                (false, _) => shift_reg_imm::<O, T>,
                (true, _) => shift_mem_imm::<O, T>,
            }
        }));
    }
    Some(sized!(form.bits, |T| if memory {
        shift_mem_cl::<O, T>
    } else {
        shift_reg_cl::<O, T>
    }))
}

/// A shift by 0: a 32-bit operand is zero-extended all the same.
fn touch_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: T = cpu.reg(op.r0);
    cpu.set_reg(op.r0, value);
    Ok(())
}

fn shift_reg_imm<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a: T = cpu.reg(op.r0);
    let result = O::apply(&mut cpu.flags, a, op.imm as u32);
    cpu.set_reg(op.r0, result);
    Ok(())
}

fn shift_mem_imm<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    shift_memory::<O, T>(cpu, op, op.imm as u32)
}

fn shift_reg_cl<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let count = masked::<T>(cpu.gpr[1]);
    if count == 0 {
        return touch_reg::<T>(cpu, op);
    }
    let a: T = cpu.reg(op.r0);
    let result = O::apply(&mut cpu.flags, a, count);
    cpu.set_reg(op.r0, result);
    Ok(())
}

fn shift_mem_cl<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let count = masked::<T>(cpu.gpr[1]);
    shift_memory::<O, T>(cpu, op, count)
}

/// Writes the operand also if the count is 0.
#[inline(always)]
fn shift_memory<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op, count: u32) -> Result {
    let place = cpu.place::<T>(op)?;
    let mut flags = cpu.flags;
    cpu.update(place, false, |a: T| {
        if count == 0 {
            a
        } else {
            O::apply(&mut flags, a, count)
        }
    });
    cpu.flags = flags;
    Ok(())
}

/// SHLD and (if `RIGHT`) SHRD. The count's operand is CL or the immediate.
fn double_shift<const RIGHT: bool>(form: &Form) -> Option<Handler> {
    let by_cl = form.kinds[2] == Kind::Register;
    Some(wide!(form.bits, |T| match (form.kinds[0], by_cl) {
        (Kind::Memory, true) => double_mem::<T, RIGHT, true>,
        (Kind::Memory, false) => double_mem::<T, RIGHT, false>,
        (_, true) => double_reg::<T, RIGHT, true>,
        (_, false) => double_reg::<T, RIGHT, false>,
    }))
}

#[inline(always)]
fn double_count<T: Int, const CL: bool>(cpu: &Cpu, op: &Op) -> u32 {
    masked::<T>(if CL { cpu.gpr[1] } else { op.imm })
}

/// Shifts `a` by `count`, filling up from `b`. A count above the width, which only 16 bits can
/// have and is undefined, fills up from `b` again.
#[inline(always)]
fn double<T: Int, const RIGHT: bool>(flags: &mut Flags, a: T, b: T, count: u32) -> T {
    if count == 0 {
        return a;
    }
    let far = u128::from(b.zx());
    let (near, count) = if count > T::BITS {
        (far, count - T::BITS)
    } else {
        (u128::from(a.zx()), count)
    };
    let (result, carry) = if RIGHT {
        let before_last = (far << T::BITS | near) >> (count - 1);
        (T::of((before_last >> 1) as u64), before_last & 1 != 0)
    } else {
        let shifted = (near << T::BITS | far) >> (T::BITS - count);
        (T::of(shifted as u64), shifted >> T::BITS & 1 != 0)
    };
    // Defined for a count of 1 only: whether the sign has changed.
    let before = if RIGHT {
        top_bit::<T>(result.zx() << 1)
    } else {
        carry
    };
    flags.set_result(result, carry, before != top_bit::<T>(result.zx()));
    result
}

fn double_reg<T: Int, const RIGHT: bool, const CL: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let count = double_count::<T, CL>(cpu, op);
    let (a, b): (T, T) = (cpu.reg(op.r0), cpu.reg(op.r1));
    let result = double::<T, RIGHT>(&mut cpu.flags, a, b, count);
    cpu.set_reg(op.r0, result);
    Ok(())
}

fn double_mem<T: Int, const RIGHT: bool, const CL: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let count = double_count::<T, CL>(cpu, op);
    let b: T = cpu.reg(op.r0);
    let place = cpu.place::<T>(op)?;
    let mut flags = cpu.flags;
    cpu.update(place, false, |a| {
        double::<T, RIGHT>(&mut flags, a, b, count)
    });
    cpu.flags = flags;
    Ok(())
}

fn rorx<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let a: T = if MEMORY {
        cpu.load(op)?
    } else {
        cpu.reg(op.r1)
    };
    let count = masked::<T>(op.imm);
    cpu.set_reg(op.r0, T::of(rotated(a, T::BITS - count)));
    Ok(())
}

/// SHLX, SHRX, SARX: the count is the last operand, and no flags are set.
fn plain_shift<O: Shift>(form: &Form) -> Option<Handler> {
    Some(wide!(form.bits, |T| match form.kinds[1] {
        Kind::Memory => plain_mem::<O, T>,
        _ => plain_reg::<O, T>,
    }))
}

fn plain_reg<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a: T = cpu.reg(op.r1);
    plain::<O, T>(cpu, op.r0, a, op.r2);
    Ok(())
}

fn plain_mem<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a: T = cpu.load(op)?;
    plain::<O, T>(cpu, op.r0, a, op.r1);
    Ok(())
}

#[inline(always)]
fn plain<O: Shift, T: Int>(cpu: &mut Cpu, to: u8, a: T, count: u8) {
    let count = masked::<T>(cpu.reg(count));
    let mut flags = cpu.flags;
    let result = if count == 0 {
        a
    } else {
        O::apply(&mut flags, a, count)
    };
    cpu.set_reg(to, result);
}
