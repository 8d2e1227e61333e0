//! Self-modifying code.
//!
//! What is written never reads an arithmetic flag that the code before it did not: such flags may
//! be gone when an instruction that overwrites them is replaced by one that reads them.

use super::writer::{SP, Writer};
use crate::program::{Label, Link, ins};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

/// What code is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A MOV's immediate.
    Immediate,
    /// One-byte instructions.
    Single,
    /// An opcode of arithmetic.
    Opcode,
    /// A short jump's condition, one of these.
    Condition(&'static [u8]),
}

/// Opcodes of conditional short jumps, each of which reads some of the flags that the last reads:
/// CF and ZF; ZF, SF and OF.
const CONDITIONS: [&[u8]; 2] = [
    &[0x72, 0x73, 0x74, 0x75, 0x77, 0x76],
    &[0x70, 0x71, 0x74, 0x75, 0x78, 0x79, 0x7c, 0x7d, 0x7f, 0x7e],
];

/// What is written.
struct Patch {
    /// Bytes from the label.
    offset: i64,
    /// 1 or 4.
    bytes: u64,
    /// Written, added or pushed.
    value: u32,
}

impl Writer<'_> {
    /// Code that writes to code: what comes next or a little later, in this page or the next,
    /// through this mapping or another one.
    pub(super) fn modify(&mut self) {
        let target = self.program.label();
        self.grouped(|writer| {
            let conditions = Kind::Condition(writer.random.one_of(&CONDITIONS));
            let kinds = [Kind::Immediate, Kind::Single, Kind::Opcode, conditions];
            let kind = writer.random.one_of(&kinds);
            let patch = writer.patch(kind);
            let through_alias = writer.random.percent(30);
            writer.write_code(target, &patch, through_alias);
            match writer.random.below(4) {
                0 => {
                    let over = writer.program.label();
                    writer.jump(over);
                    writer.program_bytes(&[0x0f, 0x0b]);
                    writer.place(over);
                }
                1 => writer.ungrouped(|writer| writer.inner_units(3)),
                _ => {}
            }
            writer.place(target);
            writer.patched(kind);
        });
    }

    fn patch(&mut self, kind: Kind) -> Patch {
        let random = self.random.next() as u32;
        match kind {
            // All of it, or a byte.
            Kind::Immediate if random & 1 == 0 => Patch {
                offset: 1,
                bytes: 4,
                value: random,
            },
            Kind::Immediate => Patch {
                offset: 2,
                bytes: 1,
                value: random >> 8,
            },
            // NOP, CMC, CLC, STC.
            Kind::Single => Patch {
                offset: i64::from(random & 3),
                bytes: 1,
                value: self.random.one_of(&[0x90, 0xf5, 0xf8, 0xf9]),
            },
            // ADD, ADC, SBB, SUB, XOR r32, r32.
            Kind::Opcode => Patch {
                offset: 0,
                bytes: 1,
                value: self.random.one_of(&[0x01, 0x11, 0x19, 0x29, 0x31]),
            },
            Kind::Condition(codes) => Patch {
                offset: 0,
                bytes: 1,
                value: self.random.one_of(codes).into(),
            },
        }
    }

    /// The code that is written to. It is right before and after.
    fn patched(&mut self, kind: Kind) {
        let number = loop {
            let number = self.free();
            if number < 8 {
                break number;
            }
        };
        let low = number as u8;
        if kind != Kind::Single {
            self.known[number] = None;
        }
        match kind {
            // mov r32, imm32
            Kind::Immediate => {
                let mut bytes = vec![0xb8 | low];
                bytes.extend((self.random.next() as u32).to_le_bytes());
                self.program_bytes(&bytes);
            }
            Kind::Single => self.program_bytes(&[0x90; 4]),
            // adc r32, r32
            Kind::Opcode => {
                let other = self.random.below(8) as u8;
                self.program_bytes(&[0x11, 0xc0 | other << 3 | low]);
                self.define_flags();
            }
            // jcc over add r32, r32
            Kind::Condition(codes) => {
                let last = codes[codes.len() - 1];
                self.program_bytes(&[last, 2, 0x01, 0xc0 | low << 3 | low]);
            }
        }
    }

    fn write_code(&mut self, target: Label, patch: &Patch, through_alias: bool) {
        let alias = self
            .mode()
            .code_alias()
            .wrapping_sub(self.mode().code())
            .cast_signed();
        let offset = patch.offset + if through_alias { alias } else { 0 };
        if self.random.percent(12) && self.scene.own_fault_stack && patch.bytes == 4 {
            return self.push_to_code(target, offset, patch.value);
        }
        let has_registers = !self.is_reserved(0) && !self.is_reserved(7);
        if self.random.percent(12) && patch.bytes == 1 && has_registers {
            return self.string_to_code(target, offset, patch.value);
        }
        let base = if self.is_64bit() {
            Register::RIP
        } else {
            Register::None
        };
        let place = MemoryOperand::with_base_displ_size(base, 0, self.program.bits / 8);
        let value = patch.value;
        let locked = self.random.percent(15);
        let instruction = match (patch.bytes, locked) {
            (1, false) => Instruction::with2(Code::Mov_rm8_imm8, place, value & 0xff),
            (4, false) => Instruction::with2(Code::Mov_rm32_imm32, place, value),
            (1, true) => {
                let byte = Register::AL + self.free_but(&[4, 5, 6, 7]) as u32 % 8;
                self.raw(ins::set(byte, u64::from(value)));
                Instruction::with2(Code::Xchg_rm8_r8, place, byte)
            }
            _ => {
                let add = Instruction::with2(Code::Add_rm32_imm32, place, value.cast_signed());
                add.map(|mut add| {
                    add.set_has_lock_prefix(true);
                    add
                })
            }
        };
        let instruction = instruction.expect("an operand in memory");
        self.linked(instruction, Link::Memory(offset), target);
    }

    /// PUSH onto the code. In 64-bit code, the upper half of what is pushed is what is there.
    fn push_to_code(&mut self, target: Label, offset: i64, value: u32) {
        let stack = self.known[SP].expect("the stack pointer is known between units");
        let number = self.free();
        let wide = self.wide(number);
        let word = i64::from(self.program.bits / 8);
        let pointer = self.wide(SP);
        self.linked(ins::set(pointer, 0), Link::Immediate(offset), target);
        self.raw(ins::load(wide, MemoryOperand::with_base(pointer)));
        if self.is_64bit() {
            let value = (value & 0x7fff_ffff).cast_signed();
            let xor = Instruction::with2(Code::Xor_rm64_imm32, wide, value);
            self.raw(xor.expect("XOR"));
        } else {
            self.raw(ins::set(wide, value.into()));
        }
        self.linked(ins::set(pointer, 0), Link::Immediate(offset + word), target);
        self.raw(ins::push(wide));
        self.raw(ins::set(pointer, stack));
    }

    fn string_to_code(&mut self, target: Label, offset: i64, value: u32) {
        let pointer = self.wide(7);
        self.linked(ins::set(pointer, 0), Link::Immediate(offset), target);
        self.raw(ins::set(Register::AL, value.into()));
        let mut store = Instruction::default();
        store.set_code(Code::Stosb_m8_AL);
        self.string_operand(&mut store, 0, false);
        self.string_operand(&mut store, 1, false);
        self.raw(store);
    }
}
