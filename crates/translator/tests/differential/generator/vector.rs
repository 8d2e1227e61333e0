//! Vector and x87 instructions, and those that save and load their state.

use super::address::Use;
use super::forms::{self, set_memory};
use super::writer::Writer;
use iced_x86::{Code, Instruction};

/// Bits of MXCSR that a program sets: exceptions, masks, rounding, denormals and flushing.
const MXCSR_MASKED: u32 = 0x1f80;

/// An image of these units' state in memory.
struct Area {
    save: Code,
    load: Code,
    bytes: u64,
    alignment: u64,
    /// Where the x87 opcode, instruction pointer and operand pointer are (SDM vol. 1, 8.1.10 and
    /// 10.5.1.1): offsets of 16-bit words.
    pointers: &'static [u64],
}

const FXSAVE: Area = Area {
    save: Code::Fxsave_m512byte,
    load: Code::Fxrstor_m512byte,
    bytes: 512,
    alignment: 16,
    pointers: &[6, 8, 10, 12, 14, 16, 18, 20, 22],
};

const FXSAVE64: Area = Area {
    save: Code::Fxsave64_m512byte,
    load: Code::Fxrstor64_m512byte,
    ..FXSAVE
};

const FNSTENV: Area = Area {
    save: Code::Fnstenv_m28byte,
    load: Code::Fldenv_m28byte,
    bytes: 28,
    alignment: 1,
    pointers: &[12, 14, 16, 18, 20, 22, 24],
};

const FNSAVE: Area = Area {
    save: Code::Fnsave_m108byte,
    load: Code::Frstor_m108byte,
    bytes: 108,
    ..FNSTENV
};

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
            2 => writer.area(&FXSAVE),
            3 if writer.is_64bit() => writer.area(&FXSAVE64),
            4 => writer.area(&FNSTENV),
            5 => writer.area(&FNSAVE),
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

    /// Saves to memory and perhaps, after something else, loads from there.
    ///
    /// The pointers are overwritten at once, since the translator does not have the guest's.
    fn area(&mut self, area: &Area) {
        let target = self.target(Use::safe(area.bytes).aligned(area.alignment));
        // A device would see the pointers.
        let last = self.cut(target.wrapping_add(area.bytes - 1));
        let is_memory = self.is_memory(target) && self.is_memory(last);
        if !target.is_multiple_of(area.alignment) || !is_memory {
            return;
        }
        let place = |writer: &mut Self, code: Code| {
            let operand = writer.operand_at(target, &[]);
            let mut instruction = Instruction::default();
            instruction.set_code(code);
            set_memory(&mut instruction, 0, operand);
            writer.emit(instruction);
        };
        place(self, area.save);
        for offset in area.pointers {
            let operand = self.operand_at(self.cut(target.wrapping_add(*offset)), &[]);
            let store = Instruction::with2(Code::Mov_rm16_imm16, operand, 0).expect("MOV");
            self.raw(store);
        }
        if self.random.percent(60) {
            for _ in 0..self.random.below(3) {
                self.ungrouped(Self::vector);
            }
            place(self, area.load);
        }
    }
}
