//! String instructions.

use super::address::Use;
use super::writer::Writer;
use iced_x86::{Code, Instruction, OpKind, Register};

/// An instruction, the bytes of an element, whether it has a source and a destination, and whether
/// it compares.
const STRINGS: [(Code, u64, bool, bool, bool); 20] = [
    (Code::Movsb_m8_m8, 1, true, true, false),
    (Code::Movsw_m16_m16, 2, true, true, false),
    (Code::Movsd_m32_m32, 4, true, true, false),
    (Code::Movsq_m64_m64, 8, true, true, false),
    (Code::Cmpsb_m8_m8, 1, true, true, true),
    (Code::Cmpsw_m16_m16, 2, true, true, true),
    (Code::Cmpsd_m32_m32, 4, true, true, true),
    (Code::Cmpsq_m64_m64, 8, true, true, true),
    (Code::Stosb_m8_AL, 1, false, true, false),
    (Code::Stosw_m16_AX, 2, false, true, false),
    (Code::Stosd_m32_EAX, 4, false, true, false),
    (Code::Stosq_m64_RAX, 8, false, true, false),
    (Code::Lodsb_AL_m8, 1, true, false, false),
    (Code::Lodsw_AX_m16, 2, true, false, false),
    (Code::Lodsd_EAX_m32, 4, true, false, false),
    (Code::Lodsq_RAX_m64, 8, true, false, false),
    (Code::Scasb_AL_m8, 1, false, true, true),
    (Code::Scasw_AX_m16, 2, false, true, true),
    (Code::Scasd_EAX_m32, 4, false, true, true),
    (Code::Scasq_RAX_m64, 8, false, true, true),
];

impl Writer<'_> {
    /// A string instruction, with or without REP, upwards or downwards.
    pub(super) fn string(&mut self) {
        let (code, bytes, source, destination, compares) = self.random.one_of(&STRINGS);
        let written = [0, 1, 6, 7].iter().any(|&number| self.is_reserved(number));
        if written || bytes == 8 && !self.is_64bit() {
            return;
        }
        self.grouped(|writer| {
            let repeats = writer.random.percent(70);
            let down = writer.random.percent(30);
            let count = match writer.random.below(8) {
                0 => 0,
                1 => writer.random.below(3000),
                _ => writer.random.below(40),
            };
            let mut narrow = writer.is_64bit() && writer.random.percent(10);
            // One of the operands at most faults: which comes first is the processor's choice.
            let culprit = writer.random.below(2) == 0;
            for (number, is_used, may_fault) in [(6, source, culprit), (7, destination, !culprit)] {
                if !is_used {
                    continue;
                }
                let using = if may_fault {
                    Use::of(bytes)
                } else {
                    Use::safe(bytes)
                };
                let target = writer.target(using);
                narrow &= target >> 32 == 0;
                writer.set(number, target);
            }
            if compares && writer.random.percent(50) {
                // So that it goes on for a while.
                let value = writer.random.one_of(&[0, u64::MAX]);
                writer.set(0, value);
            }
            if repeats {
                let above = if narrow { 1 << 40 } else { 0 };
                writer.set(1, count | above);
            }
            let direction = if down { Code::Std } else { Code::Cld };
            writer.raw(Instruction::with(direction));
            let mut instruction = Instruction::default();
            instruction.set_code(code);
            let operands = instruction.op_count();
            for n in 0..operands {
                writer.string_operand(&mut instruction, n, narrow);
            }
            if repeats {
                if compares && writer.random.percent(50) {
                    instruction.set_has_repne_prefix(true);
                } else {
                    instruction.set_has_rep_prefix(true);
                }
            }
            writer.raw(instruction);
            writer.raw(Instruction::with(Code::Cld));
        });
    }

    pub(super) fn string_operand(&mut self, instruction: &mut Instruction, n: u32, narrow: bool) {
        use iced_x86::OpCodeOperandKind as K;
        let wide = self.is_64bit() && !narrow;
        let kind = match instruction.code().op_code().op_kind(n) {
            K::seg_rSI if wide => OpKind::MemorySegRSI,
            K::seg_rSI => OpKind::MemorySegESI,
            K::es_rDI if wide => OpKind::MemoryESRDI,
            K::es_rDI => OpKind::MemoryESEDI,
            other => {
                let register = match other {
                    K::al => Register::AL,
                    K::ax => Register::AX,
                    K::eax => Register::EAX,
                    _ => Register::RAX,
                };
                instruction.set_op_kind(n, OpKind::Register);
                return instruction.set_op_register(n, register);
            }
        };
        instruction.set_op_kind(n, kind);
    }
}
