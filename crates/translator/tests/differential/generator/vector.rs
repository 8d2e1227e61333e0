//! Vector and x87 instructions, and those that save and load their state.

use super::address::Use;
use super::forms::{self, set_memory};
use super::writer::Writer;
use iced_x86::{Code, Instruction};

/// Bits of MXCSR that a program sets: exceptions, masks, rounding, denormals and flushing.
const MXCSR_MASKED: u32 = 0x1f80;

impl Writer<'_> {
    /// A vector or x87 instruction.
    pub(super) fn vector(&mut self) {
        let forms = forms::vector(self.program.bits);
        let form = &forms[self.random.below(forms.len() as u64) as usize];
        let info = form.code.op_code();
        let bytes = info.memory_size().size().max(1) as u64;
        let wants_memory = self.random.percent(50) || !form.has_register_form();
        self.grouped(|writer| {
            // Pieces of one instruction's operand may be accessed in any order.
            let using = if bytes > 32 {
                Use::safe(bytes)
            } else {
                Use::of(bytes)
            };
            let memory = wants_memory.then_some(using.aligned(bytes.clamp(1, 32)));
            let memory = if writer.random.percent(30) && bytes <= 32 {
                memory.map(|using| using.aligned(1))
            } else {
                memory
            };
            if let Some(instruction) = writer.instance(form, memory) {
                writer.emit(instruction);
            }
        });
    }

    /// Loads or saves state of these units.
    pub(super) fn vector_state(&mut self) {
        self.grouped(|writer| match writer.random.below(8) {
            0 => writer.load_mxcsr(),
            1 => writer.load_control(),
            2 => writer.area(Code::Fxsave_m512byte, Code::Fxrstor_m512byte, 512, 16),
            3 if writer.is_64bit() => {
                writer.area(Code::Fxsave64_m512byte, Code::Fxrstor64_m512byte, 512, 16);
            }
            4 => writer.area(Code::Fnstenv_m28byte, Code::Fldenv_m28byte, 28, 1),
            5 => writer.area(Code::Fnsave_m108byte, Code::Frstor_m108byte, 108, 1),
            6 => writer.raw(Instruction::with(Code::Fninit)),
            _ => writer.raw(Instruction::with(Code::Emms)),
        });
    }

    fn load_mxcsr(&mut self) {
        let target = self.target(Use::safe(4));
        let value = match self.random.below(3) {
            // Unmasked, with and without flags that are set already.
            0 => self.random.next() as u32 & 0xffff,
            1 => MXCSR_MASKED | self.random.next() as u32 & 0xe07f,
            _ => MXCSR_MASKED,
        };
        let place = self.operand_at(target, &[]);
        let store = Instruction::with2(Code::Mov_rm32_imm32, place, value).expect("MOV");
        self.emit(store);
        let place = self.operand_at(target, &[]);
        let load = Instruction::with1(Code::Ldmxcsr_m32, place).expect("LDMXCSR");
        self.emit(load);
    }

    fn load_control(&mut self) {
        let target = self.target(Use::safe(2));
        let value = match self.random.below(3) {
            0 => self.random.next() as u32 & 0xf7f,
            _ => 0x37f | self.random.next() as u32 & 0xc00,
        };
        let place = self.operand_at(target, &[]);
        let store = Instruction::with2(Code::Mov_rm16_imm16, place, value).expect("MOV");
        self.emit(store);
        let place = self.operand_at(target, &[]);
        let load = Instruction::with1(Code::Fldcw_m2byte, place).expect("FLDCW");
        self.emit(load);
    }

    /// Saves to an area of `bytes` and perhaps, after something else, loads from there.
    fn area(&mut self, save: Code, load: Code, bytes: u64, alignment: u64) {
        let target = self.target(Use::safe(bytes).aligned(alignment));
        if !target.is_multiple_of(alignment) {
            return;
        }
        let place = |writer: &mut Self, code: Code| {
            let operand = writer.operand_at(target, &[]);
            let mut instruction = Instruction::default();
            instruction.set_code(code);
            set_memory(&mut instruction, 0, operand);
            writer.emit(instruction);
        };
        place(self, save);
        if self.random.percent(60) {
            for _ in 0..self.random.below(3) {
                self.ungrouped(Self::vector);
            }
            place(self, load);
        }
    }
}
