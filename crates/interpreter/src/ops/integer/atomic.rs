//! Exchange-and-add, compare-and-exchange, and fences.
//!
//! Other instructions that may be locked are with their families.

use super::{Form, Kind, sized};
use crate::access::Place;
use crate::cpu::{Cpu, Result};
use crate::flags::Flags;
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::paging::Intent;
use iced_x86::{Instruction, Mnemonic as M};
use memory::PAGE_SHIFT;
use std::sync::atomic::{Ordering, fence};

/// Slots of RAX, RCX, RDX, RBX.
const AX: u8 = 0;
const CX: u8 = 1;
const DX: u8 = 2;
const BX: u8 = 3;

pub(super) fn select(instruction: &Instruction, form: &Form) -> Option<Handler> {
    let memory = form.kinds[0] == Kind::Memory;
    Some(match (instruction.mnemonic(), memory, form.lock) {
        (M::Xadd, false, _) => sized!(form.bits, |T| xadd_reg::<T>),
        (M::Xadd, true, false) => sized!(form.bits, |T| xadd_mem::<T, false>),
        (M::Xadd, true, true) => sized!(form.bits, |T| xadd_mem::<T, true>),
        (M::Cmpxchg, false, _) => sized!(form.bits, |T| cmpxchg_reg::<T>),
        (M::Cmpxchg, true, false) => sized!(form.bits, |T| cmpxchg_mem::<T, false>),
        (M::Cmpxchg, true, true) => sized!(form.bits, |T| cmpxchg_mem::<T, true>),
        (M::Cmpxchg8b, _, false) => cmpxchg8b::<false>,
        (M::Cmpxchg8b, _, true) => cmpxchg8b::<true>,
        (M::Cmpxchg16b, ..) => cmpxchg16b,
        (M::Mfence | M::Lfence | M::Sfence, ..) => full_fence,
        _ => return None,
    })
}

impl Cpu {
    /// Replaces the operand at `place` by `new`, atomically. Returns the old value.
    #[inline(always)]
    pub(super) fn exchange<T: Int>(&mut self, place: Place, new: T) -> T {
        match place {
            Place::Ram(at) => self.ram.exchange(at, new),
            _ => self.update(place, true, |_| new).0,
        }
    }

    /// Replaces the operand at `place` by `new` if it is `current`, else by itself. Returns the
    /// old value.
    #[inline(always)]
    fn compare_exchange<T: Int, const LOCK: bool>(
        &mut self,
        place: Place,
        current: T,
        new: T,
    ) -> T {
        if let (Place::Ram(at), true) = (place, LOCK) {
            return self.ram.compare_exchange(at, current, new);
        }
        let choose = |old| if old == current { new } else { old };
        self.update(place, LOCK, choose).0
    }
}

#[inline(always)]
fn sum<T: Int>(flags: &mut Flags, a: T, b: T) -> T {
    let sum = T::of(a.zx().wrapping_add(b.zx()));
    flags.set_add(a, b, sum);
    sum
}

/// Writes the sum last, as it stays if both operands are the same register.
fn xadd_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, b): (T, T) = (cpu.reg(op.r0), cpu.reg(op.r1));
    let sum = sum(&mut cpu.flags, a, b);
    cpu.set_reg(op.r1, a);
    cpu.set_reg(op.r0, sum);
    Ok(())
}

fn xadd_mem<T: Int, const LOCK: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let place = cpu.place::<T>(op)?;
    let b: T = cpu.reg(op.r0);
    let add = |a: T| T::of(a.zx().wrapping_add(b.zx()));
    let (a, _) = cpu.update(place, LOCK, add);
    sum(&mut cpu.flags, a, b);
    cpu.set_reg(op.r0, a);
    Ok(())
}

#[inline(always)]
fn compare<T: Int>(flags: &mut Flags, accumulator: T, old: T) -> bool {
    let difference = T::of(accumulator.zx().wrapping_sub(old.zx()));
    flags.set_sub(accumulator, old, difference);
    accumulator == old
}

fn cmpxchg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (old, accumulator): (T, T) = (cpu.reg(op.r0), cpu.reg(AX));
    if compare(&mut cpu.flags, accumulator, old) {
        let new: T = cpu.reg(op.r1);
        cpu.set_reg(op.r0, new);
    } else {
        cpu.set_reg(AX, old);
    }
    Ok(())
}

/// Writes the operand, with the faults of a write, also if the comparison fails.
fn cmpxchg_mem<T: Int, const LOCK: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let place = cpu.place::<T>(op)?;
    let (accumulator, new): (T, T) = (cpu.reg(AX), cpu.reg(op.r0));
    let old = cpu.compare_exchange::<T, LOCK>(place, accumulator, new);
    if !compare(&mut cpu.flags, accumulator, old) {
        cpu.set_reg(AX, old);
    }
    Ok(())
}

/// The value in two 32-bit registers.
fn pair(cpu: &Cpu, high: u8, low: u8) -> u64 {
    let (high, low): (u32, u32) = (cpu.reg(high), cpu.reg(low));
    u64::from(high) << 32 | u64::from(low)
}

fn cmpxchg8b<const LOCK: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let place = cpu.place::<u64>(op)?;
    let (current, new) = (pair(cpu, DX, AX), pair(cpu, CX, BX));
    let old = cpu.compare_exchange::<u64, LOCK>(place, current, new);
    cpu.flags.set_zero(old == current);
    if old != current {
        cpu.set_reg(AX, old as u32);
        cpu.set_reg(DX, (old >> 32) as u32);
    }
    Ok(())
}

/// Atomic with and without LOCK.
fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Result {
    let address = cpu.address(op);
    let linear = cpu.linear(op.segment, address, 16, Intent::Write)?;
    if !linear.is_multiple_of(16) {
        return cpu.general_protection(0);
    }
    let place = cpu.place_at(op.segment, address, 16)?;
    let wide = |high: u8, low: u8| {
        let (high, low) = (cpu.gpr[high as usize], cpu.gpr[low as usize]);
        u128::from(high) << 64 | u128::from(low)
    };
    let (current, new) = (wide(DX, AX), wide(CX, BX));
    let old = compare_exchange_wide(cpu, place, current, new);
    cpu.flags.set_zero(old == current);
    if old != current {
        cpu.set_reg(AX, old as u64);
        cpu.set_reg(DX, (old >> 64) as u64);
    }
    Ok(())
}

fn compare_exchange_wide(cpu: &mut Cpu, place: Place, current: u128, new: u128) -> u128 {
    match place {
        Place::Ram(at) => cpu.ram.compare_exchange(at, current, new),
        Place::Code(at) => {
            let old = cpu.ram.compare_exchange(at, current, new);
            // Aligned, so it is one page. The block that runs may be from there.
            cpu.memory.watch().written(at >> PAGE_SHIFT);
            cpu.stop = true;
            cpu.attend();
            old
        }
        // Of devices, nobody expects 16 bytes at once.
        place => {
            let mut bytes = [0; 16];
            cpu.get_bytes(place, &mut bytes);
            let old = u128::from_le_bytes(bytes);
            let value = if old == current { new } else { old };
            cpu.put_bytes(place, &value.to_le_bytes());
            old
        }
    }
}

/// MFENCE, LFENCE, SFENCE: guest accesses are the host's, in program order; that stores come
/// before later loads is what the host must be told.
fn full_fence(_: &mut Cpu, _: &Op) -> Result {
    fence(Ordering::SeqCst);
    Ok(())
}
