//! System instructions: everything that is about modes, tables, privilege and the machine.

mod control;
mod far;
mod flags;
mod io;
mod msr;
mod processor;
mod segment;
mod syscall;
mod task;
#[cfg(test)]
mod tests;

pub(crate) use task::Cause;

use crate::cpu::{Cpu, Result};
use crate::op::{Handler, Op};
use iced_x86::Instruction;

pub(super) fn select(_: &Cpu, instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    flags::select(instruction)
        .or_else(|| segment::select(instruction, op))
        .or_else(|| far::select(instruction, op))
        .or_else(|| control::select(instruction, op))
        .or_else(|| syscall::select(instruction))
        .or_else(|| msr::select(instruction))
        .or_else(|| io::select(instruction, op))
        .or_else(|| processor::select(instruction))
}

/// #GP(0) unless CPL is 0.
fn need_supervisor(cpu: &mut Cpu) -> Result {
    if cpu.cpl != 0 {
        return cpu.general_protection(0);
    }
    Ok(())
}

/// #UD in real and virtual-8086 mode.
fn need_protected_mode(cpu: &mut Cpu) -> Result {
    if cpu.real_addressing() {
        return cpu.undefined();
    }
    Ok(())
}
