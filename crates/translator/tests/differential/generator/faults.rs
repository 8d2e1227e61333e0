//! Exceptions on purpose, and jumps to where there is no code.

use super::writer::{SP, Writer};
use crate::layout::{PAGE, RECOVERY};
use crate::program::ins;
use crate::tables::{NO_EXECUTE, PRESENT};
use iced_x86::{Code, Instruction, Register};

/// Bytes that raise an exception in every mode: UD2; LOCK before a register operand; INT3; INT1;
/// an instruction of 16 bytes; INT n for a gate that CPL 3 must not use; VADDPS with an EVEX
/// prefix; XEND; a reserved opcode.
const RAISING: [&[u8]; 9] = [
    &[0x0f, 0x0b],
    &[0xf0, 0x01, 0xc0],
    &[0xcc],
    &[0xf1],
    &[
        0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
        0x90,
    ],
    &[0xcd, 0x21],
    &[0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2],
    &[0x0f, 0x01, 0xd5],
    &[0x0f, 0xff, 0xc0],
];

/// Instructions that are tried at CPL 3 only: HLT, MOV to CR0 and CR3, LGDT, LIDT, LTR, LLDT,
/// INVLPG, CLTS, WRMSR, RDMSR, WBINVD, CLI, OUT, SWAPGS, MOV to DR7.
const PRIVILEGED: [&[u8]; 16] = [
    &[0xf4],
    &[0x0f, 0x22, 0xc0],
    &[0x0f, 0x22, 0xd8],
    &[0x0f, 0x01, 0x10],
    &[0x0f, 0x01, 0x18],
    &[0x0f, 0x00, 0xd8],
    &[0x0f, 0x00, 0xd0],
    &[0x0f, 0x01, 0x38],
    &[0x0f, 0x06],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0x09],
    &[0xfa],
    &[0xe6, 0x70],
    &[0x0f, 0x01, 0xf8],
    &[0x0f, 0x23, 0xf8],
];

impl Writer<'_> {
    pub(super) fn fault(&mut self) {
        match self.random.below(6) {
            0 if self.mode().is_user() => {
                let bytes = self.random.one_of(&PRIVILEGED);
                self.program_bytes(bytes);
            }
            0 | 1 => self.divide_error(),
            2 => {
                let bytes = self.random.one_of(&RAISING);
                self.program_bytes(bytes);
            }
            _ => self.jump_nowhere(),
        }
    }

    fn divide_error(&mut self) {
        if [0, 2, 3].iter().any(|&number| self.is_reserved(number)) {
            return;
        }
        self.grouped(|writer| {
            // The quotient is too large, or the divisor 0.
            writer.set(2, 5);
            let divisor = writer.random.below(3);
            writer.raw(ins::set(Register::EBX, divisor));
            let code = if writer.random.percent(50) {
                Code::Div_rm32
            } else {
                Code::Idiv_rm32
            };
            writer.define_flags();
            writer.emit(Instruction::with1(code, Register::EBX).expect("DIV"));
        });
    }

    /// An address that can't be executed by any means.
    fn nowhere(&mut self) -> Option<u64> {
        if self.is_64bit() && self.random.percent(30) {
            let page = self.random.one_of(&[
                0x8000_0000_0000,
                0xffff_7fff_ffff_f000,
                0x1234_5678_9abc_d000,
                0x7fff_ffff_f000_0000,
            ]);
            return Some(page + self.random.below(PAGE));
        }
        let mut pages = Vec::new();
        for window in &self.scene.windows {
            for (n, page) in (0..).zip(&window.pages) {
                if page.flags & PRESENT == 0 || page.flags & NO_EXECUTE != 0 {
                    pages.push(window.linear + PAGE * n);
                }
            }
        }
        (!pages.is_empty()).then(|| self.random.one_of(&pages) + self.random.below(PAGE))
    }

    /// A jump, call or return to where nothing can be executed.
    fn jump_nowhere(&mut self) {
        let Some(target) = self.nowhere() else {
            return;
        };
        let stack = self.known[SP].expect("the stack pointer is known between units");
        let back = self.program.label();
        let recovery = self.mode().control(RECOVERY);
        let word = i64::from(self.program.bits / 8);
        self.grouped(|writer| {
            let number = writer.free();
            let wide = writer.wide(number);
            writer.address_of(number, back);
            let slot = writer.absolute(recovery);
            writer.raw(ins::store(slot, wide));
            writer.set(number, target);
            let (jump, call, ret) = if writer.is_64bit() {
                (Code::Jmp_rm64, Code::Call_rm64, Code::Retnq)
            } else {
                (Code::Jmp_rm32, Code::Call_rm32, Code::Retnd)
            };
            // In a loop, a full log can end the program before the store below.
            let may_call = writer.depth == 0;
            match writer.random.below(3) {
                0 => writer.raw(Instruction::with1(jump, wide).expect("JMP")),
                1 if may_call => writer.raw(Instruction::with1(call, wide).expect("CALL")),
                _ => {
                    writer.raw(ins::push(wide));
                    writer.raw(Instruction::with(ret));
                }
            }
            writer.place(back);
            let pointer = writer.wide(SP);
            // A CALL that raises #GP may have written its return address, below the stack.
            writer.raw(ins::store(ins::at(pointer, -word), wide));
            writer.raw(ins::set(pointer, stack));
        });
    }
}
