//! Moves, conversions, conditional moves, addresses, and instructions without an effect.

use super::{Form, Kind, condition, conditional, operand_bits, sized, wide};
use crate::cpu::{Cpu, Result};
use crate::int::{Int, ZERO};
use crate::op::{Handler, Op};
use iced_x86::{ConditionCode, Instruction, Mnemonic as M};

pub(super) fn select(instruction: &Instruction, form: &Form, op: &mut Op) -> Option<Handler> {
    if let Some(handler) = select_conditional(instruction, form) {
        return Some(handler);
    }
    match instruction.mnemonic() {
        M::Mov => mov(form),
        M::Movnti => Some(wide!(form.bits, |T| mov_mem_reg::<T>)),
        M::Lea => Some(wide!(form.bits, |T| lea::<T>)),
        M::Movzx => extend::<false>(form, operand_bits(instruction, 1)),
        M::Movsx | M::Movsxd => extend::<true>(form, operand_bits(instruction, 1)),
        M::Xchg => Some(sized!(form.bits, |T| match form.kinds {
            [Kind::Register, Kind::Register, _] => xchg_reg::<T>,
            _ => xchg_mem::<T>,
        })),
        M::Bswap => Some(wide!(form.bits, |T| bswap::<T>)),
        M::Movbe => Some(wide!(form.bits, |T| match form.kinds[0] {
            Kind::Register => movbe_load::<T>,
            _ => movbe_store::<T>,
        })),
        M::Xlatb => {
            // The index is AL alone.
            op.index = ZERO;
            Some(xlat)
        }
        _ => select_accumulator(instruction.mnemonic()),
    }
}

fn select_accumulator(mnemonic: M) -> Option<Handler> {
    Some(match mnemonic {
        M::Cbw => widen::<u8, u16>,
        M::Cwde => widen::<u16, u32>,
        M::Cdqe => widen::<u32, u64>,
        M::Cwd => spread::<u16>,
        M::Cdq => spread::<u32>,
        M::Cqo => spread::<u64>,
        M::Nop | M::Reservednop | M::Endbr32 | M::Endbr64 | M::Pause | M::Rdsspd | M::Rdsspq => nop,
        M::Prefetch | M::Prefetchw | M::Prefetchwt1 | M::Prefetchnta => nop,
        M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 => nop,
        // Where CPUID does not show it, CLDEMOTE is one of the reserved NOPs.
        M::Prefetchit0 | M::Prefetchit1 | M::Cldemote => nop,
        _ => return None,
    })
}

/// CMOVcc and SETcc, which are 16 mnemonics each: of what has a condition, only they have such
/// operands.
fn select_conditional(instruction: &Instruction, form: &Form) -> Option<Handler> {
    if instruction.condition_code() == ConditionCode::None {
        return None;
    }
    let code = condition(instruction);
    match (form.kinds[0], form.kinds[1]) {
        (Kind::Register, Kind::Register) => {
            Some(wide!(form.bits, |T| conditional!(
                code,
                |C| cmov_reg::<T, C>
            )))
        }
        (Kind::Register, Kind::Memory) => {
            Some(wide!(form.bits, |T| conditional!(
                code,
                |C| cmov_mem::<T, C>
            )))
        }
        (Kind::Register, Kind::None) => Some(conditional!(code, |C| set_reg::<C>)),
        (Kind::Memory, Kind::None) => Some(conditional!(code, |C| set_mem::<C>)),
        _ => None,
    }
}

fn mov(form: &Form) -> Option<Handler> {
    use Kind::{Immediate as I, Memory as M, Register as R};
    Some(sized!(form.bits, |T| {
        match (form.kinds[0], form.kinds[1]) {
            (R, R) => mov_reg_reg::<T>,
            (R, I) => mov_reg_imm::<T>,
            (R, M) => mov_reg_mem::<T>,
            (M, R) => mov_mem_reg::<T>,
            (M, I) => mov_mem_imm::<T>,
            _ => return None,
        }
    }))
}

/// MOVZX, MOVSX and MOVSXD from `source` bits.
fn extend<const SIGNED: bool>(form: &Form, source: u32) -> Option<Handler> {
    let memory = form.kinds[1] == Kind::Memory;
    Some(sized!(source, |S| wide!(form.bits, |T| if memory {
        extend_mem::<S, T, SIGNED>
    } else {
        extend_reg::<S, T, SIGNED>
    })))
}

fn mov_reg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: T = cpu.reg(op.r1);
    cpu.set_reg(op.r0, value);
    Ok(())
}

fn mov_reg_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.set_reg(op.r0, T::of(op.imm));
    Ok(())
}

fn mov_reg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: T = cpu.load(op)?;
    cpu.set_reg(op.r0, value);
    Ok(())
}

fn mov_mem_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: T = cpu.reg(op.r0);
    cpu.store(op, value)
}

fn mov_mem_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.store(op, T::of(op.imm))
}

fn lea<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let address = cpu.address(op);
    cpu.set_reg(op.r0, T::of(address));
    Ok(())
}

#[inline(always)]
fn extended<S: Int, T: Int, const SIGNED: bool>(value: S) -> T {
    T::of(if SIGNED { value.sx() } else { value.zx() })
}

fn extend_reg<S: Int, T: Int, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: S = cpu.reg(op.r1);
    cpu.set_reg(op.r0, extended::<S, T, SIGNED>(value));
    Ok(())
}

fn extend_mem<S: Int, T: Int, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: S = cpu.load(op)?;
    cpu.set_reg(op.r0, extended::<S, T, SIGNED>(value));
    Ok(())
}

fn xchg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, b): (T, T) = (cpu.reg(op.r0), cpu.reg(op.r1));
    cpu.set_reg(op.r0, b);
    cpu.set_reg(op.r1, a);
    Ok(())
}

/// Always locked, with or without the prefix (SDM vol. 3, 10.1.2.1).
fn xchg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let place = cpu.place::<T>(op)?;
    let new: T = cpu.reg(op.r0);
    let old = cpu.exchange(place, new);
    cpu.set_reg(op.r0, old);
    Ok(())
}

/// `value` with its bytes in reverse order.
fn swapped<T: Int>(value: T) -> T {
    T::of(value.zx().swap_bytes() >> (64 - T::BITS))
}

/// Of 16 bits, which is undefined, processors make 0.
fn bswap<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value = if T::BITS == 16 {
        T::of(0)
    } else {
        swapped::<T>(cpu.reg(op.r0))
    };
    cpu.set_reg(op.r0, value);
    Ok(())
}

fn movbe_load<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: T = cpu.load(op)?;
    cpu.set_reg(op.r0, swapped(value));
    Ok(())
}

fn movbe_store<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: T = cpu.reg(op.r0);
    cpu.store(op, swapped(value))
}

fn xlat(cpu: &mut Cpu, op: &Op) -> Result {
    let al = u64::from(cpu.reg::<u8>(0));
    let address = cpu.address(op).wrapping_add(al) & u64::MAX >> (op.address_cut & 63);
    let value: u8 = cpu.load_at(op.segment, address)?;
    cpu.set_reg(0, value);
    Ok(())
}

/// CBW, CWDE, CDQE.
fn widen<S: Int, T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    let value: S = cpu.reg(0);
    cpu.set_reg(0, T::of(value.sx()));
    Ok(())
}

/// CWD, CDQ, CQO: the accumulator's sign into every bit of DX, EDX or RDX.
fn spread<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    let value: T = cpu.reg(0);
    cpu.set_reg(2, T::of((value.sx() as i64 >> 63) as u64));
    Ok(())
}

/// Writes its destination also when the condition does not hold: a 32-bit one clears the
/// register's upper half.
fn cmov_reg<T: Int, const C: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    let source: T = cpu.reg(op.r1);
    cmov::<T, C>(cpu, op, source);
    Ok(())
}

/// Reads memory, with its faults, also when the condition does not hold.
fn cmov_mem<T: Int, const C: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    let source: T = cpu.load(op)?;
    cmov::<T, C>(cpu, op, source);
    Ok(())
}

#[inline(always)]
fn cmov<T: Int, const C: u8>(cpu: &mut Cpu, op: &Op, source: T) {
    let old = cpu.reg(op.r0);
    let value = if cpu.flags.condition(C) { source } else { old };
    cpu.set_reg(op.r0, value);
}

fn set_reg<const C: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    let holds = cpu.flags.condition(C);
    cpu.set_reg(op.r0, u8::from(holds));
    Ok(())
}

fn set_mem<const C: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    let holds = cpu.flags.condition(C);
    cpu.store(op, u8::from(holds))
}

fn nop(_: &mut Cpu, _: &Op) -> Result {
    Ok(())
}
