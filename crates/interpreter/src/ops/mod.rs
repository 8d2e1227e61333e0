//! Instructions: which handler executes which, and the handlers by family.
//!
//! [`select`] asks each family in turn; a family matches on the mnemonic, then on operand kinds
//! and sizes, and answers with a handler that is a generic function made for just these.

mod integer;
mod system;
mod vector;

pub(crate) use system::Cause;
pub(crate) use vector::VectorTable;

use crate::cpu::{Cpu, Result};
use crate::int::PC;
use crate::op::{Handler, Op};
use iced_x86::{FlowControl, Instruction, Mnemonic};

/// How an instruction ends its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It doesn't.
    None,
    /// Nothing may be executed after it before interrupts, modes and mappings were looked at.
    Boundary,
    /// Its handler sets [`Cpu::rip`] whenever it returns `Ok`.
    Jump,
}

/// The handler for `instruction`, which was decoded from `code`. `op` has its operands already; a
/// family may change them.
pub(crate) fn select(
    cpu: &mut Cpu,
    instruction: &Instruction,
    code: &[u8],
    op: &mut Op,
) -> Handler {
    if instruction.is_invalid() {
        return undefined;
    }
    integer::select(cpu, instruction, op)
        .or_else(|| system::select(cpu, instruction, op))
        .or_else(|| vector::select(cpu, instruction, code, op))
        .unwrap_or(undefined)
}

/// How `instruction` ends its block.
pub(crate) fn ending(instruction: &Instruction) -> Ending {
    use Mnemonic as M;
    if instruction.flow_control() != FlowControl::Next
        || instruction.is_string_instruction()
            && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
    {
        return Ending::Jump;
    }
    let boundary = match instruction.mnemonic() {
        M::Sti | M::Hlt | M::Popf | M::Popfd | M::Popfq | M::Pause | M::Mwait | M::Clts => true,
        M::Lmsw | M::Lgdt | M::Lidt | M::Lldt | M::Ltr | M::Invlpg | M::Invpcid | M::Wrmsr => true,
        M::Xsetbv | M::Wbinvd | M::In | M::Out | M::Lss | M::Wrfsbase | M::Wrgsbase => true,
        M::Mov | M::Pop => {
            let register = instruction.op0_register();
            register.is_segment_register() || register.is_cr() || register.is_dr()
        }
        M::Lds | M::Les | M::Lfs | M::Lgs => true,
        M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => true,
        _ => false,
    };
    if boundary {
        Ending::Boundary
    } else {
        Ending::None
    }
}

/// #UD.
pub(crate) fn undefined(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.undefined()
}

/// Ends a block that does not end in a jump: RIP is where `op` stands.
pub(crate) fn go_on(cpu: &mut Cpu, op: &Op) -> Result {
    let rip = cpu.gpr[PC as usize].wrapping_add(op.offset.into());
    cpu.rip = if cpu.is_64bit() {
        rip
    } else {
        rip & 0xffff_ffff
    };
    Ok(())
}
