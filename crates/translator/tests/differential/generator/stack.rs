//! Stack instructions, at good places and odd ones.

use super::address::Use;
use super::writer::{SP, Writer};
use crate::layout::{PAGE, STACK_PAGES};
use crate::program::ins;
use iced_x86::{Code, Instruction, MemoryOperand, Register};

impl Writer<'_> {
    /// Pushes and pops, frames, flags, odd stack pointers.
    pub(super) fn stack_unit(&mut self) {
        match self.random.below(6) {
            0 => self.flags(),
            1 => self.frame(),
            2 | 3 if self.scene.own_fault_stack => self.odd_stack(),
            _ => self.grouped(|writer| {
                let before = writer.known[SP];
                writer.pushes_and_pops();
                writer.set_stack(before.expect("the stack pointer is known between units"));
            }),
        }
    }

    /// Sets the stack pointer.
    fn set_stack(&mut self, value: u64) {
        let wide = self.wide(SP);
        self.raw(ins::set(wide, value));
        self.known[SP] = Some(self.cut(value));
    }

    fn pushes_and_pops(&mut self) {
        let mut depth = 0;
        for _ in 0..1 + self.random.below(10) {
            let number = self.random.below(self.count()) as usize;
            let push = depth == 0 || self.random.percent(55);
            let half = self.random.percent(10);
            let register = if half {
                Register::AX + number as u32
            } else {
                self.wide(number)
            };
            if push {
                depth += 1;
                match self.random.below(5) {
                    0 => self.push_memory(),
                    1 => self.push_immediate(),
                    _ => self.raw(ins::push(register)),
                }
            } else {
                depth -= 1;
                let number = self.free();
                match self.random.below(4) {
                    0 => self.pop_memory(),
                    _ if half => self.raw(ins::pop(Register::AX + number as u32)),
                    _ => {
                        let wide = self.wide(number);
                        self.raw(ins::pop(wide));
                    }
                }
            }
        }
    }

    fn push_memory(&mut self) {
        let bytes = self.word();
        let operand = if self.random.percent(25) {
            // By the stack pointer: as it is before.
            let wide = self.wide(SP);
            MemoryOperand::with_base_displ_size(wide, 8, 1)
        } else {
            self.operand(Use::of(bytes), &[])
        };
        let code = if self.is_64bit() {
            Code::Push_rm64
        } else {
            Code::Push_rm32
        };
        self.raw(Instruction::with1(code, operand).expect("PUSH"));
    }

    fn pop_memory(&mut self) {
        let bytes = self.word();
        let operand = if self.random.percent(25) {
            // By the stack pointer: as it is after.
            let wide = self.wide(SP);
            MemoryOperand::with_base_displ_size(wide, -0x18, 1)
        } else {
            self.operand(Use::of(bytes), &[])
        };
        let code = if self.is_64bit() {
            Code::Pop_rm64
        } else {
            Code::Pop_rm32
        };
        self.raw(Instruction::with1(code, operand).expect("POP"));
    }

    fn push_immediate(&mut self) {
        let value = self.random.operand() as i32;
        let code = match (self.is_64bit(), self.random.percent(50)) {
            (true, true) => Code::Pushq_imm8,
            (true, false) => Code::Pushq_imm32,
            (false, true) => Code::Pushd_imm8,
            (false, false) => Code::Pushd_imm32,
        };
        let value = if self.random.percent(50) {
            i32::from(value as i8)
        } else {
            value
        };
        let short = matches!(code, Code::Pushq_imm8 | Code::Pushd_imm8);
        let value = if short { i32::from(value as i8) } else { value };
        self.raw(Instruction::with1(code, value).expect("PUSH"));
    }

    /// PUSHF, a change of what is on the stack, POPF.
    fn flags(&mut self) {
        const DIRECTION: u32 = 1 << 10;
        const TRAP: u32 = 1 << 8;
        const ALIGNMENT: u32 = 1 << 18;
        const ID: u32 = 1 << 21;
        const NESTED: u32 = 1 << 14;
        let (push, pop) = if self.is_64bit() {
            (Code::Pushfq, Code::Popfq)
        } else {
            (Code::Pushfd, Code::Popfd)
        };
        let bits = match self.random.below(6) {
            0 => TRAP,
            1 => ALIGNMENT,
            2 => DIRECTION,
            3 => ID | NESTED,
            _ => self.random.next() as u32 & 0x8d5,
        };
        self.grouped(|writer| {
            let stack = writer.wide(SP);
            let change = |code, value: u32| {
                Instruction::with2(code, ins::at(stack, 0), value as i32).expect("memory")
            };
            writer.raw(Instruction::with(push));
            writer.raw(change(Code::Xor_rm32_imm32, bits));
            writer.raw(Instruction::with(pop));
            let inner = if bits == TRAP { 2 } else { 3 };
            writer.ungrouped(|writer| writer.inner_units(inner));
            writer.raw(Instruction::with(push));
            let kept = !(TRAP | ALIGNMENT | DIRECTION | ID | NESTED);
            writer.raw(change(Code::And_rm32_imm32, kept));
            writer.raw(Instruction::with(pop));
        });
    }

    /// ENTER and LEAVE.
    fn frame(&mut self) {
        if self.is_reserved(5) {
            return;
        }
        self.grouped(|writer| {
            let before = writer.known[SP].expect("the stack pointer is known between units");
            let size = writer.random.below(0x80) as u32;
            let levels = if writer.random.percent(60) {
                0
            } else {
                writer.random.below(5) as u32
            };
            // ENTER reads outer frames' pointers through RBP.
            if levels > 1 {
                writer.set(5, before + 0x100);
            }
            let (enter, leave) = if writer.is_64bit() {
                (Code::Enterq_imm16_imm8, Code::Leaveq)
            } else {
                (Code::Enterd_imm16_imm8, Code::Leaved)
            };
            writer.raw(Instruction::with2(enter, size, levels).expect("ENTER"));
            writer.known[5] = None;
            writer.raw(Instruction::with(leave));
            writer.known[5] = None;
            writer.set_stack(before);
        });
    }

    /// Uses the stack pointer at the end of a page, unaligned, or where there is no memory. Only
    /// where exceptions have a stack of their own.
    fn odd_stack(&mut self) {
        let before = self.known[SP].expect("the stack pointer is known between units");
        let odd = match self.random.below(5) {
            0 => self.mode().stack() + PAGE * (1 + self.random.below(STACK_PAGES - 1)),
            1 => self.mode().stack() + self.random.below(24),
            2 => self.mode().stack() + STACK_PAGES * PAGE - self.random.below(24),
            3 => self.target(Use::of(8)),
            _ => before - self.random.below(9) - PAGE,
        };
        self.grouped(|writer| {
            writer.set_stack(odd);
            writer.pushes_and_pops();
            if writer.random.percent(40) {
                writer.kernel_call();
            }
            writer.set_stack(before);
        });
    }
}
