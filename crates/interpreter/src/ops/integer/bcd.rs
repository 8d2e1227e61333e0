//! Decimal arithmetic, outside 64-bit mode.

use crate::cpu::{Cpu, Result};
use crate::int::HIGH;
use crate::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic as M};
use x86::{Exception, Rflags, Vector};

/// Slots of AL (and AX) and AH.
const AL: u8 = 0;
const AH: u8 = HIGH;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        M::Daa => daa,
        M::Das => das,
        M::Aaa => aaa,
        M::Aas => aas,
        M::Aam => aam,
        M::Aad => aad,
        _ => return None,
    })
}

/// Sets CF and AF as given, and ZF, SF and PF by AL.
fn set_flags(cpu: &mut Cpu, carry: bool, half_carry: bool) {
    let al: u8 = cpu.reg(AL);
    cpu.flags.set_result(al, carry, false);
    let mut status = cpu.flags.get() & Rflags::STATUS;
    status.set(Rflags::AF, half_carry);
    cpu.flags.set_status(status);
}

/// Which digits of AL need adjusting after a packed addition or subtraction: the lower, the
/// upper.
fn packed_adjustment(cpu: &Cpu) -> (bool, bool) {
    let al: u8 = cpu.reg(AL);
    let lower = al & 15 > 9 || cpu.flags.af();
    let upper = al > 0x99 || cpu.flags.cf();
    (lower, upper)
}

fn daa(cpu: &mut Cpu, _: &Op) -> Result {
    let (lower, upper) = packed_adjustment(cpu);
    let adjustment = if lower { 6 } else { 0 } + if upper { 0x60 } else { 0 };
    let al = cpu.reg::<u8>(AL).wrapping_add(adjustment);
    cpu.set_reg(AL, al);
    set_flags(cpu, upper, lower);
    Ok(())
}

fn das(cpu: &mut Cpu, _: &Op) -> Result {
    let (lower, upper) = packed_adjustment(cpu);
    let al: u8 = cpu.reg(AL);
    // Below 6, the lower digit borrows from the upper one, and that is a carry too.
    let borrow = lower && al < 6;
    let adjustment = if lower { 6 } else { 0 } + if upper { 0x60 } else { 0 };
    cpu.set_reg(AL, al.wrapping_sub(adjustment));
    set_flags(cpu, upper || borrow, lower);
    Ok(())
}

fn aaa(cpu: &mut Cpu, _: &Op) -> Result {
    adjust_unpacked(cpu, |ax| ax.wrapping_add(0x106))
}

fn aas(cpu: &mut Cpu, _: &Op) -> Result {
    adjust_unpacked(cpu, |ax| ax.wrapping_sub(0x106))
}

fn adjust_unpacked(cpu: &mut Cpu, adjust: fn(u16) -> u16) -> Result {
    let ax: u16 = cpu.reg(AL);
    let carry = ax & 15 > 9 || cpu.flags.af();
    let adjusted = if carry { adjust(ax) } else { ax };
    cpu.set_reg(AL, adjusted & 0xff0f);
    set_flags(cpu, carry, carry);
    Ok(())
}

fn aam(cpu: &mut Cpu, op: &Op) -> Result {
    let (al, base) = (cpu.reg::<u8>(AL), op.imm as u8);
    if base == 0 {
        return cpu.raise(Exception::new(Vector::DivideError));
    }
    cpu.set_reg(AH, al / base);
    cpu.set_reg(AL, al % base);
    set_flags(cpu, false, false);
    Ok(())
}

fn aad(cpu: &mut Cpu, op: &Op) -> Result {
    let (al, ah): (u8, u8) = (cpu.reg(AL), cpu.reg(AH));
    let value = al.wrapping_add(ah.wrapping_mul(op.imm as u8));
    cpu.set_reg(AL, u16::from(value));
    set_flags(cpu, false, false);
    Ok(())
}
