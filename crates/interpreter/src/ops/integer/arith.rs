//! Addition and subtraction.

use super::alu::{self, Binary, Unary};
use super::{Form, Kind, wide};
use crate::cpu::{Cpu, Result};
use crate::flags::Flags;
use crate::int::Int;
use crate::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic as M};

pub(super) fn select(instruction: &Instruction, form: &Form) -> Option<Handler> {
    match instruction.mnemonic() {
        M::Add => alu::binary::<Add>(form),
        M::Adc => alu::binary::<Adc>(form),
        M::Sub => alu::binary::<Sub>(form),
        M::Sbb => alu::binary::<Sbb>(form),
        M::Cmp => alu::compare::<Sub>(form),
        M::Inc => alu::unary::<Inc>(form),
        M::Dec => alu::unary::<Dec>(form),
        M::Neg => alu::unary::<Neg>(form),
        M::Adcx => Some(wide!(form.bits, |T| match form.kinds[1] {
            Kind::Memory => add_with_flag::<T, false, true>,
            _ => add_with_flag::<T, false, false>,
        })),
        M::Adox => Some(wide!(form.bits, |T| match form.kinds[1] {
            Kind::Memory => add_with_flag::<T, true, true>,
            _ => add_with_flag::<T, true, false>,
        })),
        _ => None,
    }
}

struct Add;

impl Binary for Add {
    #[inline(always)]
    fn compute<T: Int>(a: T, b: T, _: bool) -> T {
        T::of(a.zx().wrapping_add(b.zx()))
    }
    #[inline(always)]
    fn flags<T: Int>(flags: &mut Flags, a: T, b: T, result: T) {
        flags.set_add(a, b, result);
    }
}

struct Adc;

impl Binary for Adc {
    #[inline(always)]
    fn compute<T: Int>(a: T, b: T, carry: bool) -> T {
        T::of(a.zx().wrapping_add(b.zx()).wrapping_add(carry.into()))
    }
    #[inline(always)]
    fn flags<T: Int>(flags: &mut Flags, a: T, b: T, result: T) {
        flags.set_add(a, b, result);
    }
}

struct Sub;

impl Binary for Sub {
    #[inline(always)]
    fn compute<T: Int>(a: T, b: T, _: bool) -> T {
        T::of(a.zx().wrapping_sub(b.zx()))
    }
    #[inline(always)]
    fn flags<T: Int>(flags: &mut Flags, a: T, b: T, result: T) {
        flags.set_sub(a, b, result);
    }
}

struct Sbb;

impl Binary for Sbb {
    #[inline(always)]
    fn compute<T: Int>(a: T, b: T, carry: bool) -> T {
        T::of(a.zx().wrapping_sub(b.zx()).wrapping_sub(carry.into()))
    }
    #[inline(always)]
    fn flags<T: Int>(flags: &mut Flags, a: T, b: T, result: T) {
        flags.set_sub(a, b, result);
    }
}

struct Inc;

impl Unary for Inc {
    #[inline(always)]
    fn compute<T: Int>(a: T) -> T {
        T::of(a.zx().wrapping_add(1))
    }
    #[inline(always)]
    fn flags<T: Int>(flags: &mut Flags, a: T, result: T) {
        let carry = flags.cf();
        flags.set_add(a, T::of(1), result);
        flags.keep_carry(carry);
    }
}

struct Dec;

impl Unary for Dec {
    #[inline(always)]
    fn compute<T: Int>(a: T) -> T {
        T::of(a.zx().wrapping_sub(1))
    }
    #[inline(always)]
    fn flags<T: Int>(flags: &mut Flags, a: T, result: T) {
        let carry = flags.cf();
        flags.set_sub(a, T::of(1), result);
        flags.keep_carry(carry);
    }
}

struct Neg;

impl Unary for Neg {
    #[inline(always)]
    fn compute<T: Int>(a: T) -> T {
        T::of(a.zx().wrapping_neg())
    }
    #[inline(always)]
    fn flags<T: Int>(flags: &mut Flags, a: T, result: T) {
        flags.set_sub(T::of(0), a, result);
    }
}

/// ADCX and ADOX: an addition whose carry comes from and goes to CF or OF alone.
fn add_with_flag<T: Int, const OVERFLOW: bool, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result {
    let b: T = if MEMORY {
        cpu.load(op)?
    } else {
        cpu.reg(op.r1)
    };
    let (cf, of) = (cpu.flags.cf(), cpu.flags.of());
    let carry = if OVERFLOW { of } else { cf };
    let sum = u128::from(cpu.reg::<T>(op.r0).zx()) + u128::from(b.zx()) + u128::from(carry);
    cpu.set_reg(op.r0, T::of(sum as u64));
    let carry = sum >> T::BITS != 0;
    if OVERFLOW {
        cpu.flags.set_carry_overflow(cf, carry);
    } else {
        cpu.flags.set_carry_overflow(carry, of);
    }
    Ok(())
}
