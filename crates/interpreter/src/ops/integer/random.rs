//! RDRAND and RDSEED: random numbers of the host's kernel.

use super::{Form, wide};
use crate::cpu::{Cpu, Result};
use crate::int::Int;
use crate::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic as M};
use rustix::rand::{GetRandomFlags, getrandom};
use x86::Rflags;
use x86::cpuid::Feature;

pub(super) fn select(instruction: &Instruction, form: &Form) -> Option<Handler> {
    match instruction.mnemonic() {
        M::Rdrand => Some(wide!(form.bits, |T| rdrand::<T>)),
        M::Rdseed => Some(wide!(form.bits, |T| rdseed::<T>)),
        _ => None,
    }
}

fn rdrand<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    random::<T>(cpu, op, Feature::Rdrand)
}

fn rdseed<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    random::<T>(cpu, op, Feature::Rdseed)
}

/// CF is 1 if there is a number. If the host has none yet, the guest gets 0 and tries again.
fn random<T: Int>(cpu: &mut Cpu, op: &Op, feature: Feature) -> Result {
    if !cpu.model.has(feature) {
        return cpu.undefined();
    }
    let mut bytes = [0; 8];
    let filled = getrandom(&mut bytes, GetRandomFlags::NONBLOCK) == Ok(bytes.len());
    let value = if filled { u64::from_le_bytes(bytes) } else { 0 };
    cpu.set_reg(op.r0, T::of(value));
    let mut status = Rflags::empty();
    status.set(Rflags::CF, filled);
    cpu.flags.set_status(status);
    Ok(())
}
