//! The code of a stub.
//!
//! A stub is a leaf function with a calling convention of its own:
//!
//! | register | at entry | at exit |
//! |---|---|---|
//! | RDI | the [`Frame`] | same |
//! | R8 to R11 | addresses of the vector registers, by slot | same |
//! | RAX | - | 0, or 1 after a SIMD exception |
//! | RCX, RDX, RSI, flags, vector and x87 registers | - | clobbered |
//!
//! At exit MXCSR and the x87 state are initial, which is what Rust code may assume and must
//! restore (Rust reference, "Behavior considered undefined": the floating-point environment),
//! and the upper halves of the YMM registers are clear. Nothing is on the stack while the guest's
//! instruction executes, so that the fault handler can leave by jumping to [`fault_exit`].

use std::mem::offset_of;

use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};

use crate::features::Features;
use crate::frame::Frame;
use crate::policy::{GPR_SLOTS, Shape, VectorClass, VectorSlot, host_vector};

/// R8 to R11: where the stub finds its vector registers.
const VECTOR_POINTERS: [Register; 4] = [Register::R8, Register::R9, Register::R10, Register::R11];

/// Appends instructions. Nothing here depends on the address at which the code will run.
struct Assembler {
    encoder: Encoder,
}

impl Assembler {
    fn new() -> Self {
        Self {
            encoder: Encoder::new(64),
        }
    }

    fn emit(&mut self, instruction: Result<Instruction, IcedError>) -> Result<(), IcedError> {
        self.encoder.encode(&instruction?, 0).map(|_| ())
    }

    /// An instruction without operands.
    fn plain(&mut self, code: Code) -> Result<(), IcedError> {
        self.emit(Ok(Instruction::with(code)))
    }

    /// An instruction whose operand is at `offset` in the frame.
    fn frame(&mut self, code: Code, offset: usize) -> Result<(), IcedError> {
        self.emit(Instruction::with1(code, at(Register::RDI, offset)))
    }

    fn finish(mut self) -> Vec<u8> {
        self.encoder.take_buffer()
    }
}

/// The memory at `base + offset`.
fn at(base: Register, offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, offset as i64)
}

const FLAGS: usize = offset_of!(Frame, flags);
const HOST_MXCSR: usize = offset_of!(Frame, host_mxcsr);
const GUEST_MXCSR: usize = offset_of!(Frame, state.mxcsr);
const FX: usize = offset_of!(Frame, fx);

fn gpr_offset(slot: usize) -> usize {
    offset_of!(Frame, gpr) + 8 * slot
}

/// Where every stub goes whose instruction raised a SIMD exception: keeps the guest's MXCSR
/// with its new exception flags and the x87 state, restores the host's and returns 1.
///
/// # Errors
/// Never, in practice: the instructions are constant.
pub(crate) fn fault_exit() -> Result<Vec<u8>, IcedError> {
    let mut code = Assembler::new();
    code.frame(Code::Stmxcsr_m32, GUEST_MXCSR)?;
    code.frame(Code::Ldmxcsr_m32, HOST_MXCSR)?;
    // Of use only if the stub loaded the guest's, see `policy::is_mixed`.
    code.frame(Code::Fxsave64_m512byte, FX)?;
    code.plain(Code::Fninit)?;
    if Features::host().avx {
        code.plain(Code::VEX_Vzeroupper)?;
    }
    code.emit(Instruction::with2(Code::Mov_r32_imm32, Register::EAX, 1))?;
    code.plain(Code::Retnq)?;
    Ok(code.finish())
}

/// The stub for `shape`.
///
/// # Errors
/// If iced-x86 can't encode the canonical instruction.
pub(crate) fn assemble(shape: &Shape) -> Result<Vec<u8>, IcedError> {
    let mut code = Assembler::new();
    enter(&mut code, shape)?;
    for (slot, vector) in vectors(shape).filter(|(_, vector)| vector.load) {
        load_vector(&mut code, shape, slot, vector)?;
    }
    for slot in (0..4).filter(|&slot| shape.gprs[slot].used) {
        let from = at(Register::RDI, gpr_offset(slot));
        code.emit(Instruction::with2(
            Code::Mov_r64_rm64,
            GPR_SLOTS[slot],
            from,
        ))?;
    }
    if loads_flags(shape) {
        code.frame(Code::Push_rm64, FLAGS)?;
        code.plain(Code::Popfq)?;
    }
    code.emit(Ok(shape.canonical))?;
    if shape.flags_written != 0 {
        code.plain(Code::Pushfq)?;
        code.frame(Code::Pop_rm64, FLAGS)?;
    }
    for (slot, vector) in vectors(shape).filter(|(_, vector)| vector.store) {
        store_vector(&mut code, shape, slot, vector)?;
    }
    for slot in (0..4).filter(|&slot| shape.gprs[slot].written) {
        let to = at(Register::RDI, gpr_offset(slot));
        code.emit(Instruction::with2(Code::Mov_rm64_r64, to, GPR_SLOTS[slot]))?;
    }
    leave(&mut code, shape)?;
    Ok(code.finish())
}

fn vectors(shape: &Shape) -> impl Iterator<Item = (usize, VectorSlot)> {
    shape
        .vectors
        .iter()
        .enumerate()
        .filter_map(|(slot, vector)| Some((slot, (*vector)?)))
}

/// Flags that an instruction leaves undefined may well be those it found.
fn loads_flags(shape: &Shape) -> bool {
    shape.flags_read != 0 || shape.canonical.rflags_undefined() != 0 && shape.flags_written != 0
}

/// Loads the guest's control registers.
fn enter(code: &mut Assembler, shape: &Shape) -> Result<(), IcedError> {
    if shape.fx {
        // Loads MXCSR too: the frame's image holds the host's.
        code.frame(Code::Fxrstor64_m512byte, FX)?;
    }
    if shape.mxcsr {
        code.frame(Code::Ldmxcsr_m32, GUEST_MXCSR)?;
    }
    Ok(())
}

/// Restores the host's state and returns 0.
fn leave(code: &mut Assembler, shape: &Shape) -> Result<(), IcedError> {
    if shape.mxcsr {
        code.frame(Code::Stmxcsr_m32, GUEST_MXCSR)?;
        code.frame(Code::Ldmxcsr_m32, HOST_MXCSR)?;
    }
    if shape.fx {
        code.frame(Code::Fxsave64_m512byte, FX)?;
        code.plain(Code::Fninit)?;
    }
    if shape.mmx {
        code.plain(Code::Emms)?;
    }
    if vectors(shape).any(|(_, vector)| vector.class == VectorClass::Ymm) {
        code.plain(Code::VEX_Vzeroupper)?;
    }
    code.emit(Instruction::with2(
        Code::Xor_r32_rm32,
        Register::EAX,
        Register::EAX,
    ))?;
    code.plain(Code::Retnq)
}

fn load_vector(
    code: &mut Assembler,
    shape: &Shape,
    slot: usize,
    vector: VectorSlot,
) -> Result<(), IcedError> {
    let opcode = match vector.class {
        VectorClass::Mm => Code::Movq_mm_mmm64,
        VectorClass::Ymm => Code::VEX_Vmovups_ymm_ymmm256,
        VectorClass::Xmm if shape.vex => Code::VEX_Vmovups_xmm_xmmm128,
        VectorClass::Xmm => Code::Movups_xmm_xmmm128,
    };
    let from = at(VECTOR_POINTERS[slot], 0);
    code.emit(Instruction::with2(
        opcode,
        host_vector(slot, vector.class),
        from,
    ))
}

/// A VEX instruction with an XMM result clears the upper half, so all of YMM is stored.
fn store_vector(
    code: &mut Assembler,
    shape: &Shape,
    slot: usize,
    vector: VectorSlot,
) -> Result<(), IcedError> {
    let (opcode, class) = match vector.class {
        VectorClass::Mm => (Code::Movq_mmm64_mm, VectorClass::Mm),
        VectorClass::Xmm if !shape.vex => (Code::Movups_xmmm128_xmm, VectorClass::Xmm),
        VectorClass::Xmm | VectorClass::Ymm => (Code::VEX_Vmovups_ymmm256_ymm, VectorClass::Ymm),
    };
    let to = at(VECTOR_POINTERS[slot], 0);
    code.emit(Instruction::with2(opcode, to, host_vector(slot, class)))
}
