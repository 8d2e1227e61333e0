//! MXCSR, and clearing of vector registers.

use super::unit::{Avx, Sse, Unit};
use crate::cpu::{Cpu, Result};
use crate::op::{Handler, Op};
use iced_x86::{Code, Instruction};
use native::MXCSR_MASK;

/// The handler for `instruction`.
pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Code as C;
    Some(match instruction.code() {
        C::Ldmxcsr_m32 => ldmxcsr::<Sse>,
        C::Stmxcsr_m32 => stmxcsr::<Sse>,
        C::VEX_Vldmxcsr_m32 => ldmxcsr::<Avx>,
        C::VEX_Vstmxcsr_m32 => stmxcsr::<Avx>,
        C::VEX_Vzeroall => vzeroall,
        C::VEX_Vzeroupper => vzeroupper,
        _ => return None,
    })
}

/// #GP(0) for bits that do not exist (SDM vol. 1, 10.2.3).
fn ldmxcsr<U: Unit>(cpu: &mut Cpu, op: &Op) -> Result {
    U::ready(cpu)?;
    let value: u32 = cpu.load(op)?;
    if value & !MXCSR_MASK != 0 {
        return cpu.general_protection(0);
    }
    cpu.fpu.state.mxcsr = value;
    Ok(())
}

fn stmxcsr<U: Unit>(cpu: &mut Cpu, op: &Op) -> Result {
    U::ready(cpu)?;
    cpu.store(op, cpu.fpu.state.mxcsr)
}

fn vzeroall(cpu: &mut Cpu, _: &Op) -> Result {
    Avx::ready(cpu)?;
    let count = cpu.vector_registers();
    cpu.fpu.state.zero_all(count);
    Ok(())
}

fn vzeroupper(cpu: &mut Cpu, _: &Op) -> Result {
    Avx::ready(cpu)?;
    let count = cpu.vector_registers();
    cpu.fpu.state.zero_upper(count);
    Ok(())
}

impl Cpu {
    /// How many vector registers the running code has.
    pub(super) fn vector_registers(&self) -> usize {
        if self.is_64bit() { 16 } else { 8 }
    }
}
