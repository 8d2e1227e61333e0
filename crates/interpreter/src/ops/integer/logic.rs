//! Bitwise logic.

use super::Form;
use super::alu::{self, Binary, Unary};
use crate::flags::Flags;
use crate::int::Int;
use crate::op::Handler;
use iced_x86::{Instruction, Mnemonic as M};

pub(super) fn select(instruction: &Instruction, form: &Form) -> Option<Handler> {
    match instruction.mnemonic() {
        M::And => alu::binary::<And>(form),
        M::Or => alu::binary::<Or>(form),
        M::Xor => alu::binary::<Xor>(form),
        M::Test => alu::compare::<And>(form),
        M::Not => alu::unary::<Not>(form),
        _ => None,
    }
}

struct And;

impl Binary for And {
    #[inline(always)]
    fn compute<T: Int>(a: T, b: T, _: bool) -> T {
        T::of(a.zx() & b.zx())
    }
    #[inline(always)]
    fn flags<T: Int>(flags: &mut Flags, _: T, _: T, result: T) {
        flags.set_logic(result);
    }
}

struct Or;

impl Binary for Or {
    #[inline(always)]
    fn compute<T: Int>(a: T, b: T, _: bool) -> T {
        T::of(a.zx() | b.zx())
    }
    #[inline(always)]
    fn flags<T: Int>(flags: &mut Flags, _: T, _: T, result: T) {
        flags.set_logic(result);
    }
}

struct Xor;

impl Binary for Xor {
    #[inline(always)]
    fn compute<T: Int>(a: T, b: T, _: bool) -> T {
        T::of(a.zx() ^ b.zx())
    }
    #[inline(always)]
    fn flags<T: Int>(flags: &mut Flags, _: T, _: T, result: T) {
        flags.set_logic(result);
    }
}

struct Not;

impl Unary for Not {
    #[inline(always)]
    fn compute<T: Int>(a: T) -> T {
        T::of(!a.zx())
    }
    #[inline(always)]
    fn flags<T: Int>(_: &mut Flags, _: T, _: T) {}
}
