//! Near branches, calls and returns.
//!
//! A branch to where no code can be raises #GP(0) itself, before anything has changed: outside
//! CS's limit, or in 64-bit code to an address that is not canonical.

use super::{Form, Kind, condition, conditional, wide};
use crate::cpu::{Cpu, Result};
use crate::int::{Int, PC};
use crate::op::{Handler, Op};
use crate::ops::integer::stack;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic as M, OpKind};
use x86::SegmentRegister;

pub(super) fn select(instruction: &Instruction, form: &Form) -> Option<Handler> {
    match (instruction.mnemonic(), instruction.flow_control()) {
        (M::Loop, _) => select_loop::<ALWAYS>(instruction),
        (M::Loope, _) => select_loop::<IF_ZERO>(instruction),
        (M::Loopne, _) => select_loop::<UNLESS_ZERO>(instruction),
        (M::Jcxz, _) => Some(wide!(target_bits(instruction), |T| jump_if_zero::<T, u16>)),
        (M::Jecxz, _) => Some(wide!(target_bits(instruction), |T| jump_if_zero::<T, u32>)),
        (M::Jrcxz, _) => Some(wide!(target_bits(instruction), |T| jump_if_zero::<T, u64>)),
        (M::Jmp, FlowControl::UnconditionalBranch) => {
            near(instruction)?;
            Some(wide!(target_bits(instruction), |T| jmp::<T>))
        }
        (M::Jmp, FlowControl::IndirectBranch) => {
            near_indirect(instruction)?;
            Some(wide!(form.bits, |T| match form.kinds[0] {
                Kind::Memory => jmp_mem::<T>,
                _ => jmp_reg::<T>,
            }))
        }
        (M::Call, FlowControl::Call) => {
            near(instruction)?;
            Some(wide!(target_bits(instruction), |T| call::<T>))
        }
        (M::Call, FlowControl::IndirectCall) => {
            near_indirect(instruction)?;
            Some(wide!(form.bits, |T| match form.kinds[0] {
                Kind::Memory => call_mem::<T>,
                _ => call_reg::<T>,
            }))
        }
        (M::Ret, _) => {
            // `imm` is 0 in the form that has none.
            Some(wide!(return_bits(instruction)?, |T| ret::<T>))
        }
        (_, FlowControl::ConditionalBranch) if instruction.is_jcc_short_or_near() => {
            Some(wide!(target_bits(instruction), |T| {
                conditional!(condition(instruction), |C| jcc::<T, C>)
            }))
        }
        _ => None,
    }
}

fn near(instruction: &Instruction) -> Option<()> {
    (target_bits(instruction) != 0).then_some(())
}

fn near_indirect(instruction: &Instruction) -> Option<()> {
    (instruction.is_jmp_near_indirect() || instruction.is_call_near_indirect()).then_some(())
}

/// Operand size of a relative branch; 0 for any other.
fn target_bits(instruction: &Instruction) -> u32 {
    match instruction.op0_kind() {
        OpKind::NearBranch16 => 16,
        OpKind::NearBranch32 => 32,
        OpKind::NearBranch64 => 64,
        _ => 0,
    }
}

fn return_bits(instruction: &Instruction) -> Option<u32> {
    match instruction.code() {
        Code::Retnw | Code::Retnw_imm16 => Some(16),
        Code::Retnd | Code::Retnd_imm16 => Some(32),
        Code::Retnq | Code::Retnq_imm16 => Some(64),
        _ => None,
    }
}

/// RIP after a branch with operand size `T` to `rip`.
///
/// # Errors
/// #GP(0) if there can be no code.
#[inline(always)]
fn target<T: Int>(cpu: &mut Cpu, rip: u64) -> Result<u64> {
    let rip = T::of(rip).zx();
    let is_valid = if T::BITS == 64 || cpu.is_64bit() {
        cpu.canonical(rip)
    } else {
        rip <= u64::from(cpu.segment(SegmentRegister::Cs).limit)
    };
    if is_valid {
        Ok(rip)
    } else {
        cpu.general_protection(0)
    }
}

/// The target of the relative branch `op`.
#[inline(always)]
fn relative<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<u64> {
    target::<T>(cpu, cpu.gpr[PC as usize].wrapping_add(op.imm))
}

/// RIP after `op` if it does not branch, `T` being its operand size.
#[inline(always)]
fn sequential<T: Int>(cpu: &Cpu, op: &Op) -> u64 {
    let rip = cpu.next_rip(op);
    // The operand size of 64-bit code's branches is always 64 bits; elsewhere, 16-bit operands
    // do not cut the instruction pointer of a branch that is not taken.
    if T::BITS == 64 || cpu.is_64bit() {
        rip
    } else {
        rip & 0xffff_ffff
    }
}

fn jmp<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.rip = relative::<T>(cpu, op)?;
    Ok(())
}

fn jcc<T: Int, const C: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.rip = if cpu.flags.condition(C) {
        relative::<T>(cpu, op)?
    } else {
        sequential::<T>(cpu, op)
    };
    Ok(())
}

fn jmp_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let rip: T = cpu.reg(op.r0);
    cpu.rip = target::<T>(cpu, rip.zx())?;
    Ok(())
}

fn jmp_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let rip: T = cpu.load(op)?;
    cpu.rip = target::<T>(cpu, rip.zx())?;
    Ok(())
}

/// Pushes the return address and goes to `rip`. A fault of the push comes before one of the
/// target (SDM vol. 2, CALL).
#[inline(always)]
fn call_to<T: Int>(cpu: &mut Cpu, op: &Op, rip: u64) -> Result {
    let Ok(rip) = target::<T>(cpu, rip) else {
        stack::check_push::<T>(cpu)?;
        return cpu.general_protection(0);
    };
    let next = cpu.next_rip(op);
    stack::push(cpu, T::of(next))?;
    cpu.rip = rip;
    Ok(())
}

fn call<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    call_to::<T>(cpu, op, cpu.gpr[PC as usize].wrapping_add(op.imm))
}

fn call_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let rip: T = cpu.reg(op.r0);
    call_to::<T>(cpu, op, rip.zx())
}

fn call_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let rip: T = cpu.load(op)?;
    call_to::<T>(cpu, op, rip.zx())
}

/// Pops the return address, and `imm` bytes more.
fn ret<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let rip: T = stack::peek(cpu)?;
    cpu.rip = target::<T>(cpu, rip.zx())?;
    stack::release::<T>(cpu, T::SIZE as u64 + op.imm);
    Ok(())
}

/// LOOP's condition besides the count.
const ALWAYS: u8 = 0;
const IF_ZERO: u8 = 1;
const UNLESS_ZERO: u8 = 2;

/// The count is in as many bits of RCX as the address size says.
fn select_loop<const IF: u8>(instruction: &Instruction) -> Option<Handler> {
    let address_bits = match instruction.code() {
        Code::Loop_rel8_16_CX | Code::Loope_rel8_16_CX | Code::Loopne_rel8_16_CX => 16,
        Code::Loop_rel8_32_CX | Code::Loope_rel8_32_CX | Code::Loopne_rel8_32_CX => 16,
        Code::Loop_rel8_16_RCX | Code::Loope_rel8_16_RCX | Code::Loopne_rel8_16_RCX => 64,
        Code::Loop_rel8_64_RCX | Code::Loope_rel8_64_RCX | Code::Loopne_rel8_64_RCX => 64,
        _ => 32,
    };
    Some(wide!(target_bits(instruction), |T| {
        wide!(address_bits, |N| loop_::<T, N, IF>)
    }))
}

fn loop_<T: Int, N: Int, const IF: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    let count = N::of(cpu.reg::<N>(1).zx().wrapping_sub(1));
    let condition = match IF {
        IF_ZERO => cpu.flags.zf(),
        UNLESS_ZERO => !cpu.flags.zf(),
        _ => true,
    };
    cpu.rip = if count.zx() != 0 && condition {
        relative::<T>(cpu, op)?
    } else {
        sequential::<T>(cpu, op)
    };
    cpu.set_reg(1, count);
    Ok(())
}

/// JCXZ, JECXZ, JRCXZ.
fn jump_if_zero<T: Int, N: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.rip = if cpu.reg::<N>(1).zx() == 0 {
        relative::<T>(cpu, op)?
    } else {
        sequential::<T>(cpu, op)
    };
    Ok(())
}
