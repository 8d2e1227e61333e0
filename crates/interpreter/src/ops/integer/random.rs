//! RDRAND and RDSEED: random numbers of the host's kernel.

use super::{Form, wide};
use crate::cpu::{Cpu, Result};
use crate::int::Int;
use crate::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic as M};
use rustix::rand::{GetRandomFlags, getrandom};
use x86::Rflags;

pub(super) fn select(instruction: &Instruction, form: &Form) -> Option<Handler> {
    match instruction.mnemonic() {
        M::Rdrand | M::Rdseed => Some(wide!(form.bits, |T| random::<T>)),
        _ => None,
    }
}

/// CF is 1 if there is a number. If the host has none yet, the guest gets 0 and tries again.
fn random<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let mut bytes = [0; 8];
    let filled = getrandom(&mut bytes, GetRandomFlags::NONBLOCK) == Ok(bytes.len());
    let value = if filled { u64::from_le_bytes(bytes) } else { 0 };
    cpu.set_reg(op.r0, T::of(value));
    let mut status = Rflags::empty();
    status.set(Rflags::CF, filled);
    cpu.flags.set_status(status);
    Ok(())
}
