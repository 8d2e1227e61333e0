//! Multiplication and division.
//!
//! The flags that they leave undefined stay as they are, as on AMD's processors.

use super::{Form, Kind, sized, wide};
use crate::cpu::{Cpu, Result};
use crate::int::{HIGH, Int};
use crate::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic as M};
use x86::{Exception, Vector};

/// Slots of RAX, RDX and AH.
const AX: u8 = 0;
const DX: u8 = 2;
const AH: u8 = HIGH;

pub(super) fn select(instruction: &Instruction, form: &Form) -> Option<Handler> {
    use Kind::{Immediate as I, Memory, Register as R};
    let memory = form.kinds[0] == Memory;
    Some(match (instruction.mnemonic(), form.kinds) {
        (M::Mul, _) => sized!(form.bits, |T| if memory {
            mul::<T, true>
        } else {
            mul::<T, false>
        }),
        (M::Imul, [_, Kind::None, _]) => sized!(form.bits, |T| if memory {
            imul::<T, true>
        } else {
            imul::<T, false>
        }),
        (M::Imul, [R, R, Kind::None]) => wide!(form.bits, |T| imul_reg_reg::<T>),
        (M::Imul, [R, Memory, Kind::None]) => wide!(form.bits, |T| imul_reg_mem::<T>),
        (M::Imul, [R, R, I]) => wide!(form.bits, |T| imul_reg_imm::<T>),
        (M::Imul, [R, Memory, I]) => wide!(form.bits, |T| imul_mem_imm::<T>),
        (M::Mulx, [_, _, Memory]) => wide!(form.bits, |T| mulx::<T, true>),
        (M::Mulx, _) => wide!(form.bits, |T| mulx::<T, false>),
        (M::Div, _) => sized!(form.bits, |T| if memory {
            div::<T, true>
        } else {
            div::<T, false>
        }),
        (M::Idiv, _) => sized!(form.bits, |T| if memory {
            idiv::<T, true>
        } else {
            idiv::<T, false>
        }),
        _ => return None,
    })
}

/// The explicit operand of a one-operand instruction.
#[inline(always)]
fn operand<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result<T> {
    if MEMORY {
        cpu.load(op)
    } else {
        Ok(cpu.reg(op.r0))
    }
}

/// Slot of the upper half of a double-width value: AH for bytes, else RDX.
const fn high_slot<T: Int>() -> u8 {
    if T::BITS == 8 { AH } else { DX }
}

/// Writes a double-width result.
#[inline(always)]
fn set_wide<T: Int>(cpu: &mut Cpu, value: u128) {
    cpu.set_reg(AX, T::of(value as u64));
    cpu.set_reg(high_slot::<T>(), T::of((value >> T::BITS) as u64));
}

/// The double-width value in the accumulator.
#[inline(always)]
fn wide_accumulator<T: Int>(cpu: &Cpu) -> u128 {
    let (low, high): (T, T) = (cpu.reg(AX), cpu.reg(high_slot::<T>()));
    u128::from(low.zx()) | u128::from(high.zx()) << T::BITS
}

fn mul<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let b: T = operand::<T, MEMORY>(cpu, op)?;
    let product = u128::from(cpu.reg::<T>(AX).zx()) * u128::from(b.zx());
    set_wide::<T>(cpu, product);
    let overflow = product >> T::BITS != 0;
    cpu.flags.set_carry_overflow(overflow, overflow);
    Ok(())
}

/// The product of two signed operands, and whether it does not fit one.
#[inline(always)]
fn signed_product<T: Int>(a: T, b: T) -> (i128, bool) {
    let product = i128::from(a.sx() as i64) * i128::from(b.sx() as i64);
    (
        product,
        product != i128::from(T::of(product as u64).sx() as i64),
    )
}

fn imul<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let b: T = operand::<T, MEMORY>(cpu, op)?;
    let (product, overflow) = signed_product(cpu.reg(AX), b);
    set_wide::<T>(cpu, product as u128);
    cpu.flags.set_carry_overflow(overflow, overflow);
    Ok(())
}

#[inline(always)]
fn imul_to<T: Int>(cpu: &mut Cpu, to: u8, a: T, b: T) -> Result {
    let (product, overflow) = signed_product(a, b);
    let product = T::of(product as u64);
    cpu.set_reg(to, product);
    cpu.flags.set_carry_overflow(overflow, overflow);
    Ok(())
}

fn imul_reg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    imul_to::<T>(cpu, op.r0, cpu.reg(op.r0), cpu.reg(op.r1))
}

fn imul_reg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let b: T = cpu.load(op)?;
    imul_to(cpu, op.r0, cpu.reg(op.r0), b)
}

fn imul_reg_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    imul_to(cpu, op.r0, cpu.reg(op.r1), T::of(op.imm))
}

fn imul_mem_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a: T = cpu.load(op)?;
    imul_to(cpu, op.r0, a, T::of(op.imm))
}

/// RDX times the last operand; the upper half to the first, written last, and the lower half to
/// the second.
fn mulx<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let b: T = if MEMORY {
        cpu.load(op)?
    } else {
        cpu.reg(op.r2)
    };
    let product = u128::from(cpu.reg::<T>(DX).zx()) * u128::from(b.zx());
    cpu.set_reg(op.r1, T::of(product as u64));
    cpu.set_reg(op.r0, T::of((product >> T::BITS) as u64));
    Ok(())
}

#[cold]
fn divide_error(cpu: &mut Cpu) -> Result {
    cpu.raise(Exception::new(Vector::DivideError))
}

fn div<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let divisor = operand::<T, MEMORY>(cpu, op)?.zx();
    let dividend = wide_accumulator::<T>(cpu);
    // The quotient fits if and only if the upper half is less than the divisor.
    if (dividend >> T::BITS) as u64 >= divisor {
        return divide_error(cpu);
    }
    let (quotient, remainder) = match u64::try_from(dividend) {
        Ok(dividend) => (dividend / divisor, dividend % divisor),
        Err(_) => {
            let divisor = u128::from(divisor);
            ((dividend / divisor) as u64, (dividend % divisor) as u64)
        }
    };
    set_quotient::<T>(cpu, quotient, remainder);
    Ok(())
}

fn idiv<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let divisor = i128::from(operand::<T, MEMORY>(cpu, op)?.sx() as i64);
    let unused = 128 - 2 * T::BITS;
    let dividend = (wide_accumulator::<T>(cpu) << unused) as i128 >> unused;
    let Some(quotient) = quotient_of(dividend, divisor) else {
        return divide_error(cpu);
    };
    if quotient != i128::from(T::of(quotient as u64).sx() as i64) {
        return divide_error(cpu);
    }
    let remainder = dividend.wrapping_sub(quotient.wrapping_mul(divisor));
    set_quotient::<T>(cpu, quotient as u64, remainder as u64);
    Ok(())
}

/// The quotient, rounded towards zero, if it exists.
#[inline(always)]
fn quotient_of(dividend: i128, divisor: i128) -> Option<i128> {
    // The host divides 64-bit numbers much faster.
    match (i64::try_from(dividend), i64::try_from(divisor)) {
        (Ok(dividend), Ok(divisor)) if divisor != 0 && divisor != -1 => {
            Some(i128::from(dividend / divisor))
        }
        _ => dividend.checked_div(divisor),
    }
}

#[inline(always)]
fn set_quotient<T: Int>(cpu: &mut Cpu, quotient: u64, remainder: u64) {
    cpu.set_reg(AX, T::of(quotient));
    cpu.set_reg(high_slot::<T>(), T::of(remainder));
}
