//! Instructions on single flags, and AH to and from the flags.

use crate::cpu::{Cpu, Result};
use crate::int::HIGH;
use crate::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic as M};
use x86::Rflags;

/// Slots of AL and AH.
const AL: u8 = 0;
const AH: u8 = HIGH;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    let handler: Handler = match instruction.mnemonic() {
        M::Clc => |cpu, _| set_carry(cpu, false),
        M::Stc => |cpu, _| set_carry(cpu, true),
        M::Cmc => |cpu, _| set_carry(cpu, !cpu.flags.cf()),
        M::Cld => |cpu, _| set_direction(cpu, false),
        M::Std => |cpu, _| set_direction(cpu, true),
        M::Lahf => lahf,
        M::Sahf => sahf,
        M::Salc => salc,
        _ => return None,
    };
    Some(handler)
}

fn set_carry(cpu: &mut Cpu, carry: bool) -> Result {
    cpu.flags.set_carry(carry);
    Ok(())
}

fn set_direction(cpu: &mut Cpu, down: bool) -> Result {
    cpu.flags.set_system(Rflags::DF, down);
    Ok(())
}

/// AL from CF: every bit of it. In no manual, but in every processor outside 64-bit mode.
fn salc(cpu: &mut Cpu, _: &Op) -> Result {
    let value: u8 = if cpu.flags.cf() { 0xff } else { 0 };
    cpu.set_reg(AL, value);
    Ok(())
}

fn lahf(cpu: &mut Cpu, _: &Op) -> Result {
    let flags = cpu.flags.get().bits() as u8;
    // The low byte: SF, ZF, 0, AF, 0, PF, 1, CF.
    cpu.set_reg(AH, flags & 0b1101_0101 | 0b10);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Op) -> Result {
    let low = Rflags::from_bits_retain(u64::from(cpu.reg::<u8>(AH)));
    let mut status = low & Rflags::STATUS;
    status.set(Rflags::OF, cpu.flags.of());
    cpu.flags.set_status(status);
    Ok(())
}
