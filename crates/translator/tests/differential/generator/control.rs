//! Branches, loops, functions.

use super::writer::{SP, Writer};
use crate::program::{Label, Link, Piece, ins};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

/// Conditional jumps with a short form: of 64-bit and 32-bit code.
const CONDITIONAL: [(Code, Code); 16] = [
    (Code::Jo_rel8_64, Code::Jo_rel8_32),
    (Code::Jno_rel8_64, Code::Jno_rel8_32),
    (Code::Jb_rel8_64, Code::Jb_rel8_32),
    (Code::Jae_rel8_64, Code::Jae_rel8_32),
    (Code::Je_rel8_64, Code::Je_rel8_32),
    (Code::Jne_rel8_64, Code::Jne_rel8_32),
    (Code::Jbe_rel8_64, Code::Jbe_rel8_32),
    (Code::Ja_rel8_64, Code::Ja_rel8_32),
    (Code::Js_rel8_64, Code::Js_rel8_32),
    (Code::Jns_rel8_64, Code::Jns_rel8_32),
    (Code::Jp_rel8_64, Code::Jp_rel8_32),
    (Code::Jnp_rel8_64, Code::Jnp_rel8_32),
    (Code::Jl_rel8_64, Code::Jl_rel8_32),
    (Code::Jge_rel8_64, Code::Jge_rel8_32),
    (Code::Jle_rel8_64, Code::Jle_rel8_32),
    (Code::Jg_rel8_64, Code::Jg_rel8_32),
];

impl Writer<'_> {
    pub(super) fn place(&mut self, label: Label) {
        self.push(Piece::Mark(label));
    }

    /// Branches forward.
    pub(super) fn branches(&mut self) {
        match self.random.below(8) {
            0 => self.jump_over(),
            1 => self.jump_by_register(),
            2 => self.jump_by_table(),
            3 => self.short_count_jump(),
            4 => self.diamond(),
            _ => self.conditional(),
        }
    }

    fn conditional(&mut self) {
        let over = self.program.label();
        let before = self.grouped(|writer| {
            if writer.random.percent(60) {
                writer.define_flags();
            }
            let (code64, code32) = writer.random.one_of(&CONDITIONAL);
            writer.branch(code64, code32, over);
            writer.known
        });
        self.inner_units(4);
        self.place(over);
        self.meet(&before);
    }

    /// If and else.
    fn diamond(&mut self) {
        let (other, end) = (self.program.label(), self.program.label());
        let before = self.grouped(|writer| {
            let (code64, code32) = writer.random.one_of(&CONDITIONAL);
            writer.branch(code64, code32, other);
            writer.known
        });
        self.inner_units(3);
        self.grouped(|writer| writer.jump(end));
        let after = std::mem::replace(&mut self.known, before);
        self.place(other);
        self.inner_units(3);
        self.place(end);
        self.meet(&after);
    }

    fn jump_over(&mut self) {
        let over = self.program.label();
        self.grouped(|writer| {
            writer.jump(over);
            // Never decoded as part of the program, if all goes well.
            let count = writer.random.below(20);
            let bytes: Vec<u8> = (0..count).map(|_| writer.random.next() as u8).collect();
            writer.program_bytes(&bytes);
            writer.place(over);
        });
    }

    fn jump_by_register(&mut self) {
        let over = self.program.label();
        let number = self.free();
        let register = self.wide(number);
        self.grouped(|writer| {
            writer.address_of(number, over);
            let code = if writer.is_64bit() {
                Code::Jmp_rm64
            } else {
                Code::Jmp_rm32
            };
            writer.raw(Instruction::with1(code, register).expect("JMP"));
            writer.program_bytes(&[0x0f, 0x0b]);
            writer.place(over);
        });
    }

    /// Loads the address of `label`.
    pub(super) fn address_of(&mut self, number: usize, label: Label) {
        let wide = self.wide(number);
        if self.is_64bit() && self.random.percent(60) {
            let operand = MemoryOperand::with_base_displ_size(Register::RIP, 0, 8);
            let lea = Instruction::with2(Code::Lea_r64_m, wide, operand).expect("LEA");
            self.linked(lea, Link::Memory(0), label);
        } else {
            self.linked(ins::set(wide, 0), Link::Immediate(0), label);
        }
        self.known[number] = None;
    }

    /// A switch: a jump to one of a few places, by a table in the code.
    fn jump_by_table(&mut self) {
        let table = self.program.label();
        let end = self.program.label();
        let places: Vec<Label> = (0..4).map(|_| self.program.label()).collect();
        let base = self.free();
        let index = self.free_but(&[base]);
        let source = self.random.below(self.count()) as u32;
        let before = self.grouped(|writer| {
            // index = source & 3
            let mov = Instruction::with2(
                Code::Mov_r32_rm32,
                Register::EAX + index as u32,
                Register::EAX + source,
            );
            writer.raw(mov.expect("MOV"));
            let and = Instruction::with2(Code::And_rm32_imm8, Register::EAX + index as u32, 3);
            writer.raw(and.expect("AND"));
            writer.address_of(base, table);
            let (code, scale) = if writer.is_64bit() {
                (Code::Jmp_rm64, 8)
            } else {
                (Code::Jmp_rm32, 4)
            };
            let operand =
                MemoryOperand::with_base_index_scale(writer.wide(base), writer.wide(index), scale);
            writer.raw(Instruction::with1(code, operand).expect("JMP"));
            // If the table is not aligned, and must be.
            writer.jump(end);
            writer.place(table);
            for &place in &places {
                writer.push(Piece::Word(place));
            }
            writer.known
        });
        let mut met: Option<[Option<u64>; 16]> = None;
        for place in places {
            self.place(place);
            self.known = before;
            self.inner_units(2);
            self.grouped(|writer| writer.jump(end));
            if let Some(other) = met {
                self.meet(&other);
            }
            met = Some(self.known);
        }
        self.place(end);
    }

    /// JRCXZ, JECXZ, and LOOP as a jump forward.
    fn short_count_jump(&mut self) {
        if self.is_reserved(1) {
            return;
        }
        let over = self.program.label();
        self.grouped(|writer| {
            if writer.random.percent(50) {
                let value = writer.random.below(3) | writer.random.below(2) << 32;
                writer.set(1, value);
            }
            let codes = [
                (Code::Jrcxz_rel8_64, Code::Jecxz_rel8_32),
                (Code::Jecxz_rel8_64, Code::Jcxz_rel8_32),
                (Code::Loop_rel8_64_RCX, Code::Loop_rel8_32_ECX),
                (Code::Loope_rel8_64_RCX, Code::Loope_rel8_32_ECX),
                (Code::Loopne_rel8_64_RCX, Code::Loopne_rel8_32_ECX),
                (Code::Loop_rel8_64_ECX, Code::Loop_rel8_32_CX),
            ];
            let (code64, code32) = writer.random.one_of(&codes);
            writer.branch(code64, code32, over);
            writer.known[1] = None;
            writer.define_flags();
            let number = writer.free();
            let wide = writer.wide(number);
            writer.raw(ins::add(wide, 7));
            writer.place(over);
        });
    }

    /// A loop that runs a few times.
    pub(super) fn bounded_loop(&mut self) {
        let times = match self.random.below(10) {
            0 => 300,
            1 => 60,
            _ => 1 + self.random.below(12),
        };
        let times = if self.depth > 0 { times.min(8) } else { times };
        let head = self.program.label();
        self.grouped(|writer| {
            if writer.random.percent(50) {
                writer.loop_in_memory(head, times);
            } else {
                writer.loop_in_register(head, times);
            }
        });
    }

    fn loop_in_memory(&mut self, head: Label, times: u64) {
        self.loop_of(head, times, |writer| {
            writer.ungrouped(|writer| writer.inner_units(4));
        });
    }

    /// A loop with its counter in memory.
    pub(super) fn loop_of(&mut self, head: Label, times: u64, body: impl FnOnce(&mut Self)) {
        let counter = self.counter();
        let place = self.absolute(counter);
        self.raw(ins::store_immediate(place, times as u32));
        self.place(head);
        self.forget();
        body(self);
        let code = if self.random.percent(50) {
            Instruction::with1(Code::Dec_rm32, place)
        } else {
            Instruction::with2(Code::Sub_rm32_imm8, place, 1)
        };
        self.raw(code.expect("an operand in memory"));
        self.branch(Code::Jne_rel8_64, Code::Jne_rel8_32, head);
    }

    fn loop_in_register(&mut self, head: Label, times: u64) {
        let number = if self.random.percent(30) && !self.is_reserved(1) {
            1
        } else {
            self.free()
        };
        // Some registers must be left to write to.
        if self.reserved.count_ones() >= 2 {
            return self.loop_in_memory(head, times);
        }
        let wide = self.wide(number);
        self.raw(ins::set(wide, times));
        self.place(head);
        self.forget();
        self.reserved |= 1 << number;
        self.ungrouped(|writer| writer.inner_units(4));
        self.reserved &= !(1 << number);
        // In 64-bit code the short form is a prefix.
        let code = if self.is_64bit() {
            Code::Dec_rm64
        } else {
            Code::Dec_r32
        };
        self.raw(Instruction::with1(code, wide).expect("DEC"));
        self.branch(Code::Jne_rel8_64, Code::Jne_rel8_32, head);
    }

    /// A function, called a few times in one way or another.
    pub(super) fn function(&mut self) {
        let (entry, over) = (self.program.label(), self.program.label());
        let stack = self.known[SP].expect("the stack pointer is known between units");
        let released = self.random.one_of(&[0, 0, 0, 8, 0x28]);
        self.grouped(|writer| {
            writer.jump(over);
            writer.place(entry);
            let caller = writer.known;
            writer.forget();
            writer.known[SP] = Some(stack - released - writer.word());
            writer.ungrouped(|writer| writer.inner_units(4));
            writer.known[SP] = Some(stack);
            writer.leave_function(released);
            writer.place(over);
            writer.known = caller;
            writer.known[SP] = Some(stack);
            for _ in 0..1 + writer.random.below(3) {
                writer.call(entry, released);
                writer.forget();
                writer.known[SP] = Some(stack);
                writer.ungrouped(Self::integer);
            }
        });
    }

    fn leave_function(&mut self, released: u64) {
        if released != 0 {
            let code = if self.is_64bit() {
                Code::Retnq_imm16
            } else {
                Code::Retnd_imm16
            };
            return self.raw(Instruction::with1(code, released as u32).expect("RET"));
        }
        // A return that is a jump for the processor.
        if self.random.percent(15) {
            let number = self.free();
            let wide = self.wide(number);
            self.raw(ins::pop(wide));
            self.known[number] = None;
            let code = if self.is_64bit() {
                Code::Jmp_rm64
            } else {
                Code::Jmp_rm32
            };
            return self.raw(Instruction::with1(code, wide).expect("JMP"));
        }
        let code = if self.is_64bit() {
            Code::Retnq
        } else {
            Code::Retnd
        };
        self.raw(Instruction::with(code));
    }

    /// Calls `entry`, which releases `released` bytes of its arguments.
    fn call(&mut self, entry: Label, released: u64) {
        for _ in 0..released / self.word() {
            let number = self.random.below(self.count()) as usize;
            let wide = self.wide(number);
            self.raw(ins::push(wide));
        }
        match self.random.below(4) {
            0 => {
                let number = self.free();
                self.address_of(number, entry);
                let code = if self.is_64bit() {
                    Code::Call_rm64
                } else {
                    Code::Call_rm32
                };
                let wide = self.wide(number);
                self.raw(Instruction::with1(code, wide).expect("CALL"));
            }
            1 => {
                // A return to a return address that no call pushed: to the function.
                let back = self.program.label();
                let number = self.free();
                let wide = self.wide(number);
                self.address_of(number, back);
                self.raw(ins::push(wide));
                self.address_of(number, entry);
                self.raw(ins::push(wide));
                let code = if self.is_64bit() {
                    Code::Retnq
                } else {
                    Code::Retnd
                };
                self.raw(Instruction::with(code));
                self.place(back);
            }
            _ => self.branch(Code::Call_rel32_64, Code::Call_rel32_32, entry),
        }
    }
}
