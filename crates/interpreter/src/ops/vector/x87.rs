//! x87 instructions: arithmetic by the host, control here (SDM vol. 1, chapter 8).

use super::run::around_memory;
use crate::cpu::{Cpu, Result};
use crate::op::{Handler, Op};
use iced_x86::{Code, Instruction, Mnemonic, Register};
use native::image::{self, ENV_BYTES_MAX, EnvFormat, FNSAVE_BYTES_MAX};
use native::{Outcome, Routine};
use x86::{Cr0, SegmentRegister};

/// FSW bits that FNCLEX keeps: the condition code and TOP.
const FSW_CONDITION_AND_TOP: u16 = 0x7f00;

/// The handler for a control instruction.
pub(super) fn select_control(instruction: &Instruction) -> Option<Handler> {
    use Code as C;
    Some(match instruction.code() {
        C::Wait => wait,
        C::Fninit => fninit,
        C::Fnclex => fnclex,
        C::Fnstcw_m2byte => fnstcw,
        C::Fnstsw_m2byte => fnstsw,
        C::Fnstsw_AX => fnstsw_ax,
        C::Fldenv_m14byte => fldenv::<false>,
        C::Fldenv_m28byte => fldenv::<true>,
        C::Fnstenv_m14byte => fnstenv::<false>,
        C::Fnstenv_m28byte => fnstenv::<true>,
        C::Frstor_m94byte => frstor::<false>,
        C::Frstor_m108byte => frstor::<true>,
        C::Fnsave_m94byte => fnsave::<false>,
        C::Fnsave_m108byte => fnsave::<true>,
        // Instructions of the 8087 and 80287, which do nothing since the 80387.
        C::Fneni | C::Fndisi | C::Fnsetpm => nothing,
        _ => return None,
    })
}

/// The handler for `instruction`, which `routine` executes. [`Op::imm`] becomes FOP, [`Op::r2`]
/// the operand's segment.
pub(super) fn select(
    routine: Routine,
    instruction: &Instruction,
    code: &[u8],
    op: &mut Op,
) -> Handler {
    let handler = super::run::select(routine, instruction, op);
    debug_assert_eq!(op.imm, 0, "x87 operands need no alignment");
    if instruction.mnemonic() == Mnemonic::Emms {
        return handler;
    }
    if instruction.mnemonic() == Mnemonic::Fldcw {
        return control;
    }
    op.imm = opcode(code).into();
    op.r2 = segment_number(instruction.memory_segment());
    if routine.memory().is_some() {
        with_memory
    } else {
        with_registers
    }
}

/// FOP: the low three bits of the first opcode byte, and the second (SDM vol. 1, 8.1.9).
fn opcode(code: &[u8]) -> u16 {
    // No prefix has a value from D8 to DF.
    let first = code.iter().position(|byte| byte & 0xf8 == 0xd8);
    first.map_or(0, |at| {
        let second = code.get(at + 1).copied().unwrap_or(0);
        u16::from_be_bytes([code[at] & 7, second])
    })
}

fn segment_number(register: Register) -> u8 {
    match register {
        Register::ES => SegmentRegister::Es as u8,
        Register::CS => SegmentRegister::Cs as u8,
        Register::SS => SegmentRegister::Ss as u8,
        Register::FS => SegmentRegister::Fs as u8,
        Register::GS => SegmentRegister::Gs as u8,
        _ => SegmentRegister::Ds as u8,
    }
}

/// A non-control instruction without a memory operand.
fn with_registers(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    let outcome = cpu.execute_with_flags(op);
    cpu.conclude(outcome)?;
    cpu.note_instruction(op);
    Ok(())
}

/// A non-control instruction with a memory operand.
fn with_memory(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    cpu.raise_pending_x87()?;
    let offset = cpu.address(op);
    around_memory(cpu, op, 0, |cpu| {
        let outcome = cpu.execute(op);
        let stores = cpu.conclude(outcome)?;
        cpu.note_instruction(op);
        let selector = cpu.segments[usize::from(op.r2 % 6)].selector.0;
        let fpu = &mut cpu.fpu.state.fpu;
        (fpu.fdp, fpu.fds) = (offset, selector);
        Ok(stores)
    })
}

/// FLDCW, whose operand is checked and loaded by the host but which counts as control.
fn control(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    cpu.raise_pending_x87()?;
    around_memory(cpu, op, 0, |cpu| {
        let outcome = cpu.execute(op);
        debug_assert_ne!(outcome, Outcome::DoneWithoutStore);
        cpu.conclude(outcome)
    })
}

impl Cpu {
    /// Keeps the pointers to the last non-control instruction (SDM vol. 1, 8.1.8). FOP is kept
    /// only where an unmasked exception is pending, as on all processors since the Pentium 4
    /// (8.1.9.1, fopcode compatibility mode off).
    fn note_instruction(&mut self, op: &Op) {
        let fip = self.rip_of(op);
        let fcs = self.segment(SegmentRegister::Cs).selector.0;
        let long = self.is_64bit();
        let fpu = &mut self.fpu.state.fpu;
        fpu.fip = if long { fip } else { fip & 0xffff_ffff };
        fpu.fcs = fcs;
        if fpu.pending() {
            fpu.fop = op.imm as u16 & 0x7ff;
        }
    }

    /// The layout of environments, by operand size and mode.
    fn environment_format(&self, wide: bool) -> EnvFormat {
        match (wide, self.real_addressing()) {
            (true, false) => EnvFormat::Protected32,
            (true, true) => EnvFormat::Real32,
            (false, false) => EnvFormat::Protected16,
            (false, true) => EnvFormat::Real16,
        }
    }
}

/// FWAIT: unlike the others, it heeds TS only with MP set (SDM vol. 3, table 2-2).
fn wait(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.cr0.contains(Cr0::MP | Cr0::TS) {
        return cpu.no_fpu();
    }
    cpu.raise_pending_x87()
}

fn nothing(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.x87_ready()
}

fn fninit(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.x87_ready()?;
    image::fninit(&mut cpu.fpu.state.fpu);
    Ok(())
}

fn fnclex(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.x87_ready()?;
    cpu.fpu.state.fpu.fsw &= FSW_CONDITION_AND_TOP;
    Ok(())
}

fn fnstcw(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    cpu.store(op, cpu.fpu.state.fpu.fcw)
}

fn fnstsw(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    cpu.store(op, cpu.fpu.state.fpu.fsw)
}

fn fnstsw_ax(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    cpu.set_reg(op.r0, cpu.fpu.state.fpu.fsw);
    Ok(())
}

fn fnstenv<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    let format = cpu.environment_format(WIDE);
    let offset = cpu.address(op);
    cpu.probe_image(op.segment, offset, format.env_bytes())?;
    let mut fpu = cpu.fpu.state.fpu.clone();
    let image = image::fnstenv(&mut fpu, format);
    cpu.store_image(op.segment, offset, &image[..format.env_bytes()])?;
    cpu.fpu.state.fpu = fpu;
    Ok(())
}

fn fldenv<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    cpu.raise_pending_x87()?;
    let format = cpu.environment_format(WIDE);
    let mut image = [0; ENV_BYTES_MAX];
    let offset = cpu.address(op);
    cpu.load_image(op.segment, offset, &mut image[..format.env_bytes()])?;
    image::fldenv(&mut cpu.fpu.state.fpu, format, &image);
    Ok(())
}

fn fnsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    let format = cpu.environment_format(WIDE);
    let offset = cpu.address(op);
    cpu.probe_image(op.segment, offset, format.fnsave_bytes())?;
    let mut fpu = cpu.fpu.state.fpu.clone();
    let image = image::fnsave(&mut fpu, format);
    cpu.store_image(op.segment, offset, &image[..format.fnsave_bytes()])?;
    cpu.fpu.state.fpu = fpu;
    Ok(())
}

fn frstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.x87_ready()?;
    cpu.raise_pending_x87()?;
    let format = cpu.environment_format(WIDE);
    let mut image = [0; FNSAVE_BYTES_MAX];
    let offset = cpu.address(op);
    cpu.load_image(op.segment, offset, &mut image[..format.fnsave_bytes()])?;
    image::frstor(&mut cpu.fpu.state.fpu, format, &image);
    Ok(())
}
