//! Bit manipulation, BMI1 and BMI2.

use super::{Form, Kind, wide};
use crate::cpu::{Cpu, Result};
use crate::flags::Flags;
use crate::int::Int;
use crate::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic as M};

pub(super) fn select(instruction: &Instruction, form: &Form) -> Option<Handler> {
    match instruction.mnemonic() {
        // The first source is a register; the second may be memory.
        M::Andn => register_first::<Andn>(form),
        M::Pdep => register_first::<Pdep>(form),
        M::Pext => register_first::<Pext>(form),
        // The first source may be memory; the second is a register.
        M::Bextr => register_last::<Bextr>(form),
        M::Bzhi => register_last::<Bzhi>(form),
        // One source.
        M::Blsi => lowest_bit::<Blsi>(form),
        M::Blsmsk => lowest_bit::<Blsmsk>(form),
        M::Blsr => lowest_bit::<Blsr>(form),
        _ => None,
    }
}

/// A function of two sources, into a register.
trait Function {
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T;
}

fn register_first<O: Function>(form: &Form) -> Option<Handler> {
    Some(wide!(form.bits, |T| match form.kinds[2] {
        Kind::Memory => reg_mem::<O, T>,
        _ => reg_reg::<O, T>,
    }))
}

fn register_last<O: Function>(form: &Form) -> Option<Handler> {
    Some(wide!(form.bits, |T| match form.kinds[1] {
        Kind::Memory => mem_reg::<O, T>,
        _ => reg_reg::<O, T>,
    }))
}

fn reg_reg<O: Function, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, b) = (cpu.reg(op.r1), cpu.reg(op.r2));
    let result: T = O::apply(&mut cpu.flags, a, b);
    cpu.set_reg(op.r0, result);
    Ok(())
}

fn reg_mem<O: Function, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let b = cpu.load(op)?;
    let a = cpu.reg(op.r1);
    let result: T = O::apply(&mut cpu.flags, a, b);
    cpu.set_reg(op.r0, result);
    Ok(())
}

fn mem_reg<O: Function, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a = cpu.load(op)?;
    let b = cpu.reg(op.r1);
    let result: T = O::apply(&mut cpu.flags, a, b);
    cpu.set_reg(op.r0, result);
    Ok(())
}

struct Andn;

impl Function for Andn {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        let result = T::of(!a.zx() & b.zx());
        flags.set_logic(result);
        result
    }
}

/// Deposits the low bits of `a` where `b` has ones.
struct Pdep;

impl Function for Pdep {
    fn apply<T: Int>(_: &mut Flags, a: T, b: T) -> T {
        let (mut source, mut mask, mut result) = (a.zx(), b.zx(), 0);
        while mask != 0 {
            let lowest = mask & mask.wrapping_neg();
            if source & 1 != 0 {
                result |= lowest;
            }
            source >>= 1;
            mask ^= lowest;
        }
        T::of(result)
    }
}

/// Collects the bits of `a` where `b` has ones.
struct Pext;

impl Function for Pext {
    fn apply<T: Int>(_: &mut Flags, a: T, b: T) -> T {
        let (source, mut mask, mut result, mut bit) = (a.zx(), b.zx(), 0, 1u64);
        while mask != 0 {
            let lowest = mask & mask.wrapping_neg();
            if source & lowest != 0 {
                result |= bit;
            }
            bit <<= 1;
            mask ^= lowest;
        }
        T::of(result)
    }
}

/// `b` bits 7:0 are the first bit, 15:8 the length.
struct Bextr;

impl Function for Bextr {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        let start = b.zx() as u8;
        let len = (b.zx() >> 8) as u8;
        let shifted = a.zx().checked_shr(start.into()).unwrap_or(0);
        let result = T::of(shifted & !u64::MAX.checked_shl(len.into()).unwrap_or(0));
        flags.set_result(result, false, false);
        result
    }
}

/// Clears the bits from `b` (7:0) on.
struct Bzhi;

impl Function for Bzhi {
    #[inline(always)]
    fn apply<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
        let first = b.zx() as u8;
        let result = T::of(a.zx() & !u64::MAX.checked_shl(first.into()).unwrap_or(0));
        flags.set_result(result, u32::from(first) >= T::BITS, false);
        result
    }
}

/// A function of the lowest set bit: the result, and CF.
trait LowestBit {
    fn apply(source: u64) -> (u64, bool);
}

struct Blsi;

impl LowestBit for Blsi {
    #[inline(always)]
    fn apply(source: u64) -> (u64, bool) {
        (source & source.wrapping_neg(), source != 0)
    }
}

struct Blsmsk;

impl LowestBit for Blsmsk {
    #[inline(always)]
    fn apply(source: u64) -> (u64, bool) {
        (source ^ source.wrapping_sub(1), source == 0)
    }
}

struct Blsr;

impl LowestBit for Blsr {
    #[inline(always)]
    fn apply(source: u64) -> (u64, bool) {
        (source & source.wrapping_sub(1), source == 0)
    }
}

fn lowest_bit<O: LowestBit>(form: &Form) -> Option<Handler> {
    Some(wide!(form.bits, |T| match form.kinds[1] {
        Kind::Memory => lowest_mem::<O, T>,
        _ => lowest_reg::<O, T>,
    }))
}

fn lowest_reg<O: LowestBit, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let source: T = cpu.reg(op.r1);
    lowest_to::<O, T>(cpu, op, source);
    Ok(())
}

fn lowest_mem<O: LowestBit, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let source: T = cpu.load(op)?;
    lowest_to::<O, T>(cpu, op, source);
    Ok(())
}

#[inline(always)]
fn lowest_to<O: LowestBit, T: Int>(cpu: &mut Cpu, op: &Op, source: T) {
    let (result, carry) = O::apply(source.zx());
    let result = T::of(result);
    cpu.flags.set_result(result, carry, false);
    cpu.set_reg(op.r0, result);
}
