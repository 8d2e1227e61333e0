//! PUSH, POP, ENTER, LEAVE.

use super::{Form, Kind, wide};
use crate::cpu::{Cpu, Result};
use crate::int::Int;
use crate::op::{Handler, Op, Seg};
use iced_x86::{Code, Instruction, Mnemonic as M};

/// Slots of RSP and RBP.
const SP: u8 = 4;
const BP: u8 = 5;

pub(super) fn select(instruction: &Instruction, form: &Form) -> Option<Handler> {
    // Of PUSH and POP: bits on the stack.
    let bits = instruction.stack_pointer_increment().unsigned_abs() * 8;
    match instruction.mnemonic() {
        M::Push => match form.kinds[0] {
            Kind::Register => Some(wide!(bits, |T| push_reg::<T>)),
            Kind::Memory => Some(wide!(bits, |T| push_mem::<T>)),
            Kind::Immediate => Some(wide!(bits, |T| push_imm::<T>)),
            _ => None,
        },
        M::Pop => match form.kinds[0] {
            Kind::Register => Some(wide!(bits, |T| pop_reg::<T>)),
            Kind::Memory => Some(wide!(bits, |T| pop_mem::<T>)),
            _ => None,
        },
        M::Pusha => Some(push_all::<u16>),
        M::Pushad => Some(push_all::<u32>),
        M::Popa => Some(pop_all::<u16>),
        M::Popad => Some(pop_all::<u32>),
        M::Enter => Some(match instruction.code() {
            Code::Enterw_imm16_imm8 => enter::<u16>,
            Code::Enterd_imm16_imm8 => enter::<u32>,
            _ => enter::<u64>,
        }),
        M::Leave => Some(match instruction.code() {
            Code::Leavew => leave::<u16>,
            Code::Leaved => leave::<u32>,
            _ => leave::<u64>,
        }),
        _ => None,
    }
}

/// SS, and what stack addresses are masked with, for an operand of type `T`: one of 64 bits is
/// only had by 64-bit code.
#[inline(always)]
fn stack<T: Int>(cpu: &Cpu) -> (Seg, u64) {
    if T::BITS == 64 {
        (Seg::long(2), u64::MAX)
    } else {
        (cpu.stack_segment(), cpu.stack_mask)
    }
}

/// Sets as much of RSP (or RBP) as stack addresses have bits.
#[inline(always)]
fn set_pointer(cpu: &mut Cpu, slot: u8, mask: u64, value: u64) {
    let register = &mut cpu.gpr[slot as usize];
    *register = *register & !mask | value & mask;
}

/// Pushes `value`.
#[inline(always)]
pub(super) fn push<T: Int>(cpu: &mut Cpu, value: T) -> Result {
    let (segment, mask) = stack::<T>(cpu);
    let new = cpu.gpr[SP as usize].wrapping_sub(T::SIZE as u64) & mask;
    cpu.store_at(segment, new, value)?;
    set_pointer(cpu, SP, mask, new);
    Ok(())
}

/// The faults of a [`push`] without its effects.
#[cold]
pub(super) fn check_push<T: Int>(cpu: &mut Cpu) -> Result {
    let (segment, mask) = stack::<T>(cpu);
    let new = cpu.gpr[SP as usize].wrapping_sub(T::SIZE as u64) & mask;
    cpu.place_at(segment, new, T::SIZE).map(|_| ())
}

/// The value on top of the stack.
#[inline(always)]
pub(super) fn peek<T: Int>(cpu: &mut Cpu) -> Result<T> {
    let (segment, mask) = stack::<T>(cpu);
    cpu.load_at(segment, cpu.gpr[SP as usize] & mask)
}

/// Moves the stack pointer up by `bytes`, on the stack of [`peek`].
#[inline(always)]
pub(super) fn release<T: Int>(cpu: &mut Cpu, bytes: u64) {
    let (_, mask) = stack::<T>(cpu);
    let new = cpu.gpr[SP as usize].wrapping_add(bytes);
    set_pointer(cpu, SP, mask, new);
}

/// PUSH RSP pushes RSP as it was before.
fn push_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: T = cpu.reg(op.r0);
    push(cpu, value)
}

fn push_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    push(cpu, T::of(op.imm))
}

fn push_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: T = cpu.load(op)?;
    push(cpu, value)
}

/// POP RSP sets RSP to what was popped.
fn pop_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: T = peek(cpu)?;
    release::<T>(cpu, T::SIZE as u64);
    cpu.set_reg(op.r0, value);
    Ok(())
}

/// An address by RSP is that after the increment (SDM vol. 2, POP).
fn pop_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let value: T = peek(cpu)?;
    let before = cpu.gpr[SP as usize];
    release::<T>(cpu, T::SIZE as u64);
    cpu.store(op, value)
        .inspect_err(|_| cpu.gpr[SP as usize] = before)
}

/// PUSHA, PUSHAD: all in the order of their encoding, RSP as it was before.
fn push_all<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    let before = cpu.gpr[SP as usize];
    for slot in 0..8 {
        let value = if slot == SP {
            T::of(before)
        } else {
            cpu.reg(slot)
        };
        push(cpu, value).inspect_err(|_| cpu.gpr[SP as usize] = before)?;
    }
    Ok(())
}

/// POPA, POPAD: all but RSP.
fn pop_all<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    let (segment, mask) = stack::<T>(cpu);
    let mut values = [T::of(0); 8];
    for (value, offset) in values.iter_mut().rev().zip((0..).step_by(T::SIZE)) {
        let at = cpu.gpr[SP as usize].wrapping_add(offset) & mask;
        *value = cpu.load_at(segment, at)?;
    }
    for (slot, value) in (0..8).zip(values) {
        if slot != SP {
            cpu.set_reg(slot, value);
        }
    }
    release::<T>(cpu, 8 * T::SIZE as u64);
    Ok(())
}

/// ENTER: `imm` bytes of room, `aux` (modulo 32) frame pointers of enclosing procedures.
fn enter<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (segment, mask) = stack::<T>(cpu);
    let size = T::SIZE as u64;
    let level = op.aux & 31;
    let mut sp = cpu.gpr[SP as usize];
    let mut push = |cpu: &mut Cpu, value: T| {
        sp = sp.wrapping_sub(size);
        cpu.store_at(segment, sp & mask, value).map(|()| sp)
    };
    let bp = cpu.reg::<T>(BP);
    let frame = push(cpu, bp)?;
    let mut sp = frame;
    let outer = cpu.gpr[BP as usize];
    for n in 1..level {
        let at = outer.wrapping_sub(u64::from(n) * size);
        let pointer: T = cpu.load_at(segment, at & mask)?;
        sp = push(cpu, pointer)?;
    }
    if level > 0 {
        sp = push(cpu, T::of(merge(cpu.gpr[SP as usize], frame, mask)))?;
    }
    let sp = sp.wrapping_sub(op.imm);
    // The new top of the stack must be writable, though nothing is written (SDM vol. 2, ENTER).
    cpu.place_at(segment, sp & mask, T::SIZE)?;
    let frame = merge(cpu.gpr[SP as usize], frame, mask);
    cpu.set_reg(BP, T::of(frame));
    set_pointer(cpu, SP, mask, sp);
    Ok(())
}

/// `old` with the bits of `mask` replaced by those of `new`.
fn merge(old: u64, new: u64, mask: u64) -> u64 {
    old & !mask | new & mask
}

fn leave<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    let (segment, mask) = stack::<T>(cpu);
    let frame = cpu.gpr[BP as usize];
    let value: T = cpu.load_at(segment, frame & mask)?;
    set_pointer(cpu, SP, mask, frame.wrapping_add(T::SIZE as u64));
    cpu.set_reg(BP, value);
    Ok(())
}
