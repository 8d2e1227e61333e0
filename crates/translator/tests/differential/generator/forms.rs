//! Instructions of a code with random operands: integer, vector, x87.

use super::address::Use;
use super::writer::Writer;
use crate::random::Random;
use iced_x86::{
    Code, CpuidFeature, Encoder, EncodingKind, FlowControl, Instruction, MemoryOperand, Mnemonic,
    OpCodeOperandKind, OpKind, Register,
};
use std::sync::OnceLock;

/// A code and the kinds of its operands.
pub(super) struct Form {
    pub(super) code: Code,
    operands: Vec<Operand>,
}

/// A kind of operand, as [`OpCodeOperandKind`] without what does not matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operand {
    /// One of so many registers from this one on; whether it may be memory instead.
    Register(Register, u32, bool),
    Fixed(Register),
    Memory,
    Offset,
    /// `[rBX + AL]`, of XLAT.
    Table,
    /// `[rDI]`, of MASKMOVQ.
    Destination,
    One,
    Immediate(OpKind),
}

/// Forms of 64-bit or 32-bit code that `choose` takes.
fn forms(bits: u32, choose: fn(Code) -> bool) -> Vec<Form> {
    let codes = Code::values().filter(|&code| {
        let info = code.op_code();
        let mode = if bits == 64 {
            info.mode64() && info.intel_decoder64() && info.amd_decoder64()
        } else {
            info.mode32() && info.intel_decoder32() && info.amd_decoder32()
        };
        let encoded = matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
        mode && encoded
            && code.flow_control() == FlowControl::Next
            && !info.is_privileged()
            && choose(code)
    });
    codes.filter_map(|code| form(code, bits)).collect()
}

fn form(code: Code, bits: u32) -> Option<Form> {
    let info = code.op_code();
    let mut operands = Vec::new();
    for n in 0..info.op_count() {
        operands.push(operand(info.op_kind(n), bits)?);
    }
    Some(Form { code, operands })
}

/// `None` for kinds that other families make, if any.
fn operand(kind: OpCodeOperandKind, bits: u32) -> Option<Operand> {
    use Operand as O;
    let name = format!("{kind:?}");
    let or_memory = name.ends_with("_or_mem");
    let gprs = if bits == 64 { 16 } else { 8 };
    let starts = |prefix| name.starts_with(prefix);
    Some(match name.as_str() {
        "mem" => O::Memory,
        "mem_offs" => O::Offset,
        "seg_rBX_al" => O::Table,
        "seg_rDI" => O::Destination,
        "al" => O::Fixed(Register::AL),
        "cl" => O::Fixed(Register::CL),
        "ax" => O::Fixed(Register::AX),
        "dx" => O::Fixed(Register::DX),
        "eax" => O::Fixed(Register::EAX),
        "rax" => O::Fixed(Register::RAX),
        "st0" => O::Fixed(Register::ST0),
        "sti_opcode" => O::Register(Register::ST0, 8, false),
        "imm8_const_1" => O::One,
        "imm8" => O::Immediate(OpKind::Immediate8),
        "imm8sex16" => O::Immediate(OpKind::Immediate8to16),
        "imm8sex32" => O::Immediate(OpKind::Immediate8to32),
        "imm8sex64" => O::Immediate(OpKind::Immediate8to64),
        "imm16" => O::Immediate(OpKind::Immediate16),
        "imm32" => O::Immediate(OpKind::Immediate32),
        "imm32sex64" => O::Immediate(OpKind::Immediate32to64),
        "imm64" => O::Immediate(OpKind::Immediate64),
        // AL to BL, AH to BH, SPL to R15L.
        _ if starts("r8_") => O::Register(Register::AL, if bits == 64 { 20 } else { 8 }, or_memory),
        _ if starts("r16_") => O::Register(Register::AX, gprs, or_memory),
        _ if starts("r32_") => O::Register(Register::EAX, gprs, or_memory),
        _ if starts("r64_") => O::Register(Register::RAX, gprs, or_memory),
        _ if starts("xmm_") => O::Register(Register::XMM0, gprs, or_memory),
        _ if starts("ymm_") => O::Register(Register::YMM0, gprs, or_memory),
        _ if starts("mm_") => O::Register(Register::MM0, 8, or_memory),
        _ => return None,
    })
}

/// The integer forms for programs of `bits`.
pub(super) fn integer(bits: u32) -> &'static [Form] {
    static FORMS: [OnceLock<Vec<Form>>; 2] = [const { OnceLock::new() }; 2];
    FORMS[usize::from(bits == 64)].get_or_init(|| forms(bits, is_integer))
}

/// The forms with vector and x87 registers for programs of `bits`.
pub(super) fn vector(bits: u32) -> &'static [Form] {
    static FORMS: [OnceLock<Vec<Form>>; 2] = [const { OnceLock::new() }; 2];
    FORMS[usize::from(bits == 64)].get_or_init(|| forms(bits, is_vector))
}

fn is_integer(code: Code) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    let features = [
        F::INTEL8086,
        F::INTEL186,
        F::INTEL386,
        F::INTEL486,
        F::X64,
        F::CMOV,
        F::CX8,
        F::CMPXCHG16B,
        F::BMI1,
        F::BMI2,
        F::LZCNT,
        F::POPCNT,
        F::MOVBE,
        F::ADX,
        F::MULTIBYTENOP,
        F::PREFETCHW,
        F::PAUSE,
    ];
    let ours = code.cpuid_features().iter().all(|f| features.contains(f))
        || matches!(
            code.mnemonic(),
            M::Crc32
                | M::Movnti
                | M::Lfence
                | M::Mfence
                | M::Sfence
                | M::Prefetchnta
                | M::Prefetcht0
                | M::Prefetcht1
                | M::Prefetcht2
        );
    let others = code.is_stack_instruction()
        || code.is_string_instruction()
        || format!("{:?}", code.mnemonic()).starts_with("Reserved")
        || matches!(
            code.mnemonic(),
            // Other families, or system instructions that anybody may execute.
            M::Lar
                | M::Lsl
                | M::Verr
                | M::Verw
                | M::Arpl
                | M::Sgdt
                | M::Sidt
                | M::Sldt
                | M::Str
                | M::Smsw
                | M::Lfs
                | M::Lgs
                | M::Lss
                | M::Lds
                | M::Les
                | M::Wait
                | M::Cli
                | M::Sti
                | M::In
                | M::Out
                | M::Cpuid
                | M::Rdtsc
                | M::Bound
                | M::Salc
                | M::Invd
                | M::Wbinvd
                | M::Invlpg
                | M::Swapgs
                // What it does to the interrupt flag is another family's.
                | M::Popf
        )
        // Of its memory operand's four bytes, AMD's processors read all; Intel's two.
        || code == Code::Movsxd_r16_rm16;
    ours && !others
}

fn is_vector(code: Code) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    let host = code.cpuid_features().iter().all(|feature| {
        let here = native::Features::host();
        match feature {
            F::AVX => here.avx,
            F::AVX2 => here.avx2,
            F::FMA => here.fma,
            F::F16C => here.f16c,
            F::AES => here.aes,
            F::PCLMULQDQ => here.pclmulqdq,
            F::SHA => here.sha,
            F::SSE3 => here.sse3,
            F::SSSE3 => here.ssse3,
            F::SSE4_1 => here.sse4_1,
            F::SSE4_2 => here.sse4_2,
            F::FPU | F::FPU287 | F::FPU387 | F::MMX | F::SSE | F::SSE2 => true,
            _ => false,
        }
    });
    let others = matches!(
        code.mnemonic(),
        M::Sfence
            | M::Lfence
            | M::Mfence
            | M::Clflush
            | M::Pause
            | M::Movnti
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Monitor
            | M::Mwait
            | M::Crc32
            | M::Popcnt
            // FWAIT and another one.
            | M::Fstenv
            | M::Fsave
            | M::Finit
            | M::Fclex
            | M::Fstcw
            | M::Fstsw
            | M::Feni
            | M::Fdisi
            | M::Fsetpm
            // What faults first, or at all, differs between processors.
            | M::Fldenv
            | M::Fnstenv
            | M::Frstor
            | M::Fnsave
            | M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            // Their operands are chosen elsewhere.
            | M::Ldmxcsr
            | M::Vldmxcsr
    );
    host && !others
}

impl Writer<'_> {
    /// An instruction of `form` with random operands; with one in memory if `memory`. `None` if it
    /// would write what it must not.
    pub(super) fn instance(&mut self, form: &Form, memory: Option<Use>) -> Option<Instruction> {
        let mut instruction = Instruction::default();
        instruction.set_code(form.code);
        let mut place = None;
        for (n, &operand) in (0..).zip(&form.operands) {
            match operand {
                Operand::Memory => place = Some(n),
                Operand::Register(_, _, true) if memory.is_some() => place = Some(n),
                Operand::Offset => {
                    let target = self.target(memory.unwrap_or(Use::of(8)));
                    let bytes = self.program.bits / 8;
                    let operand = MemoryOperand::with_displ(target, bytes);
                    set_memory(&mut instruction, n, operand);
                }
                Operand::Table => {
                    instruction.set_op_kind(n, OpKind::Memory);
                    instruction.set_memory_base(self.wide(3));
                    instruction.set_memory_index(Register::AL);
                }
                Operand::Destination => {
                    instruction.set_op_kind(n, OpKind::MemorySegRDI);
                }
                _ => set_operand(&mut instruction, n, operand, &mut self.random),
            }
        }
        if let Some(n) = place {
            let using = memory?;
            // What the address is made of is a known operand, so it is mostly something else.
            let avoid = match self.random.percent(70) {
                true => gprs_of(&instruction),
                false => Vec::new(),
            };
            let operand = self.operand(using, &avoid);
            set_memory(&mut instruction, n, operand);
        } else if memory.is_some() && !form.operands.contains(&Operand::Offset) {
            return None;
        }
        // High bytes of registers have no encoding beside some others.
        let mut encoder = Encoder::new(self.program.bits);
        let encodable = encoder.encode(&instruction, self.mode().code()).is_ok();
        (encodable && self.may_write(&instruction)).then_some(instruction)
    }
}

/// Numbers of the general-purpose registers among the operands.
fn gprs_of(instruction: &Instruction) -> Vec<usize> {
    (0..instruction.op_count())
        .filter(|&n| instruction.op_kind(n) == OpKind::Register)
        .map(|n| instruction.op_register(n))
        .filter(|register| register.is_gpr())
        .map(|register| register.full_register().number())
        .collect()
}

pub(super) fn set_memory(instruction: &mut Instruction, operand: u32, memory: MemoryOperand) {
    instruction.set_op_kind(operand, OpKind::Memory);
    instruction.set_memory_base(memory.base);
    instruction.set_memory_index(memory.index);
    instruction.set_memory_index_scale(memory.scale);
    instruction.set_memory_displacement64(memory.displacement as u64);
    instruction.set_memory_displ_size(memory.displ_size);
    instruction.set_segment_prefix(memory.segment_prefix);
}

fn set_operand(instruction: &mut Instruction, n: u32, operand: Operand, random: &mut Random) {
    let register = match operand {
        Operand::Register(first, count, _) => first + random.below(count.into()) as u32,
        Operand::Fixed(register) => register,
        Operand::One => {
            instruction.set_op_kind(n, OpKind::Immediate8);
            return instruction.set_immediate8(1);
        }
        Operand::Immediate(kind) => {
            let value = random.operand();
            instruction.set_op_kind(n, kind);
            return match kind {
                OpKind::Immediate8 => instruction.set_immediate8(value as u8),
                OpKind::Immediate16 => instruction.set_immediate16(value as u16),
                OpKind::Immediate32 => instruction.set_immediate32(value as u32),
                OpKind::Immediate64 => instruction.set_immediate64(value),
                OpKind::Immediate32to64 => {
                    instruction.set_immediate32to64(i64::from(value as i32));
                }
                _ => instruction.set_immediate8to64(i64::from(value as i8)),
            };
        }
        _ => unreachable!("memory operands are set elsewhere"),
    };
    instruction.set_op_kind(n, OpKind::Register);
    instruction.set_op_register(n, register);
}

impl Writer<'_> {
    /// An integer instruction; its operands are often such that it does something.
    pub(super) fn integer(&mut self) {
        let forms = integer(self.program.bits);
        let form = &forms[self.random.below(forms.len() as u64) as usize];
        let wants_memory = self.random.percent(50);
        self.grouped(|writer| writer.integer_form(form, wants_memory));
    }

    fn integer_form(&mut self, form: &Form, wants_memory: bool) {
        use Mnemonic as M;
        let mnemonic = form.code.mnemonic();
        let bytes = form.code.op_code().memory_size().size().max(1) as u64;
        // LEA, NOP and prefetches only compute an address.
        let memory = (wants_memory || !form.has_register_form()).then_some(match mnemonic {
            M::Cmpxchg16b => Use::of(16).aligned(16),
            _ => Use::of(bytes),
        });
        if mnemonic == M::Xlatb {
            let target = self.target(Use::of(1));
            if self.is_reserved(3) {
                return;
            }
            let al = self.known[0].unwrap_or(0) & 0xff;
            self.set(3, self.cut(target.wrapping_sub(al)));
        }
        if matches!(mnemonic, M::Div | M::Idiv) && self.random.percent(70) && !self.is_reserved(2) {
            self.set(2, 0);
        }
        let Some(mut instruction) = self.instance(form, memory) else {
            return;
        };
        if matches!(mnemonic, M::Shld | M::Shrd) && instruction.op1_register().is_gpr16() {
            // By more than the width: the result itself is undefined.
            if instruction.op2_kind() == OpKind::Register {
                return;
            }
            instruction.set_immediate8(instruction.immediate8() & 15);
        }
        let in_memory =
            (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
        if in_memory && matches!(mnemonic, M::Bt | M::Bts | M::Btr | M::Btc) {
            // The bit's number moves the address.
            if let Some(&number) = gprs_of(&instruction).first() {
                if self.is_reserved(number) || uses(&instruction, number) {
                    return;
                }
                let offset = self.random.below(0x100) as i64 - 0x80;
                self.set(number, self.cut(offset as u64));
            }
        }
        if matches!(mnemonic, M::Bsf | M::Bsr) && self.random.percent(80) {
            self.define_flags();
        }
        if in_memory && form.code.op_code().can_use_lock_prefix() && self.random.percent(40) {
            instruction.set_has_lock_prefix(true);
        }
        self.emit(instruction);
    }
}

/// Whether the memory operand's address is made from register `number`.
fn uses(instruction: &Instruction, number: usize) -> bool {
    [instruction.memory_base(), instruction.memory_index()]
        .iter()
        .any(|register| register.is_gpr() && register.full_register().number() == number)
}

impl Form {
    /// Whether there is a form without a memory operand.
    pub(super) fn has_register_form(&self) -> bool {
        !self
            .operands
            .iter()
            .any(|operand| matches!(operand, Operand::Memory | Operand::Offset))
    }
}
