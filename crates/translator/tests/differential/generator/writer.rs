//! Writes a program and knows what is in registers.

use super::Family;
use crate::layout::{COUNTERS, Mode};
use crate::program::ins;
use crate::program::{Item, Label, Link, Piece, Program};
use crate::random::Random;
use crate::scene::Scene;
use iced_x86::{
    Code, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic, OpAccess, OpKind, Register,
    RflagsBits,
};

/// Number of RSP.
pub(super) const SP: usize = 4;
/// Prefixes that most instructions ignore in 64-bit code: CS, DS, ES, SS.
const IGNORED: [u8; 4] = [0x2e, 0x3e, 0x26, 0x36];

/// Writes a program.
pub(super) struct Writer<'a> {
    pub(super) scene: &'a Scene,
    pub(super) random: Random,
    pub(super) program: Program,
    /// What registers hold, as far as it is the same in every pass.
    pub(super) known: [Option<u64>; 16],
    /// Registers that must not be written: counters of loops.
    pub(super) reserved: u16,
    /// What inner units are of.
    pub(super) family: (Vec<Family>, u64),
    /// How deep inner units are nested.
    pub(super) depth: u32,
    /// Whether operands are where no access faults.
    pub(super) calm: bool,
    group: Option<u32>,
    groups: u32,
    counters: u64,
    info: InstructionInfoFactory,
}

impl<'a> Writer<'a> {
    pub(super) fn new(scene: &'a Scene, random: Random) -> Self {
        let mut known = scene.gpr.map(Some);
        known[SP] = Some(scene.stack_top());
        Self {
            scene,
            random,
            program: Program::new(scene.mode.bits()),
            known,
            reserved: 0,
            family: (Vec::new(), 0),
            depth: 0,
            calm: false,
            group: None,
            groups: 0,
            counters: 0,
            info: InstructionInfoFactory::new(),
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.scene.mode
    }

    pub(super) fn is_64bit(&self) -> bool {
        self.program.bits == 64
    }

    /// Bytes of a pointer.
    pub(super) fn word(&self) -> u64 {
        u64::from(self.program.bits / 8)
    }

    /// The general-purpose register `number` as wide as a pointer.
    pub(super) fn wide(&self, number: usize) -> Register {
        let first = if self.is_64bit() {
            Register::RAX
        } else {
            Register::EAX
        };
        first + number as u32
    }

    /// The number of general-purpose registers.
    pub(super) fn count(&self) -> u64 {
        if self.is_64bit() { 16 } else { 8 }
    }

    /// The number of a register that may be written.
    pub(super) fn free(&mut self) -> usize {
        loop {
            let number = self.random.below(self.count()) as usize;
            if !self.is_reserved(number) {
                return number;
            }
        }
    }

    /// The number of a register that may be written and is not among `others`.
    pub(super) fn free_but(&mut self, others: &[usize]) -> usize {
        loop {
            let number = self.free();
            if !others.contains(&number) {
                return number;
            }
        }
    }

    pub(super) fn is_reserved(&self, number: usize) -> bool {
        number == SP || self.reserved >> number & 1 != 0
    }

    /// Does what `write` does in a group: its items stay together, but for those of units inside.
    pub(super) fn grouped<T>(&mut self, write: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.group;
        if outer.is_none() {
            self.groups += 1;
            self.group = Some(self.groups);
        }
        let result = write(self);
        self.group = outer;
        result
    }

    /// Writes units that do not belong to the group around them.
    pub(super) fn ungrouped(&mut self, write: impl FnOnce(&mut Self)) {
        let outer = self.group.take();
        write(self);
        self.group = outer;
    }

    pub(super) fn push(&mut self, piece: Piece) {
        self.program.items.push(Item {
            piece,
            prefixes: Vec::new(),
            group: self.group,
        });
    }

    pub(super) fn program_bytes(&mut self, bytes: &[u8]) {
        self.push(Piece::Bytes(bytes.to_vec()));
    }

    pub(super) fn branch(&mut self, code64: Code, code32: Code, target: Label) {
        let code = if self.is_64bit() { code64 } else { code32 };
        let branch = Instruction::with_branch(code, 0).expect("a branch");
        self.push(Piece::Linked(branch, Link::Branch, target));
    }

    pub(super) fn jump(&mut self, target: Label) {
        self.branch(Code::Jmp_rel8_64, Code::Jmp_rel8_32, target);
    }

    pub(super) fn linked(&mut self, instruction: Instruction, link: Link, label: Label) {
        self.note(&instruction);
        self.push(Piece::Linked(instruction, link, label));
    }

    /// Registers that `instruction` writes, by number.
    fn written(&mut self, instruction: &Instruction) -> u16 {
        let info = self.info.info(instruction);
        let mut written = 0;
        for used in info.used_registers() {
            let reads = matches!(
                used.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None
            );
            let register = used.register();
            if !reads && register.is_gpr() {
                written |= 1 << register.full_register().number();
            }
        }
        written
    }

    /// Whether `instruction` leaves the stack pointer and loops' counters alone.
    pub(super) fn may_write(&mut self, instruction: &Instruction) -> bool {
        self.written(instruction) & (self.reserved | 1 << SP) == 0
    }

    /// Forgets what `instruction` changes.
    fn note(&mut self, instruction: &Instruction) {
        let written = self.written(instruction);
        for (number, known) in self.known.iter_mut().enumerate() {
            // Who writes the stack pointer says what it is then.
            if written >> number & 1 != 0 && number != SP {
                *known = None;
            }
        }
    }

    /// Adds `instruction` as it is.
    pub(super) fn raw(&mut self, instruction: Instruction) {
        self.note(&instruction);
        self.push(Piece::Instruction(instruction));
    }

    /// Adds `instruction`; behind it, what makes flags defined that it leaves undefined.
    pub(super) fn emit(&mut self, instruction: Instruction) {
        let undefined = undefined_flags(&instruction);
        let prefixes = self.is_64bit() && self.random.percent(3) && takes_prefix(&instruction);
        self.grouped(|writer| {
            writer.raw(instruction);
            if prefixes {
                let prefix = writer.random.one_of(&IGNORED);
                let item = writer.program.items.last_mut().expect("just added");
                item.prefixes.push(prefix);
            }
            if undefined != 0 {
                writer.use_flags(!undefined);
                writer.define_flags();
            }
        });
    }

    /// Sometimes reads a condition of the flags in `defined`.
    fn use_flags(&mut self, defined: u32) {
        const CONDITIONS: [(u32, u32); 6] = [
            (0, RflagsBits::OF),
            (1, RflagsBits::CF),
            (2, RflagsBits::ZF),
            (4, RflagsBits::SF),
            (5, RflagsBits::PF),
            (3, RflagsBits::CF | RflagsBits::ZF),
        ];
        const SET: [Code; 6] = [
            Code::Seto_rm8,
            Code::Setb_rm8,
            Code::Sete_rm8,
            Code::Setbe_rm8,
            Code::Sets_rm8,
            Code::Setp_rm8,
        ];
        let (condition, flags) = self.random.one_of(&CONDITIONS);
        if self.random.percent(50) || flags & !defined != 0 {
            return;
        }
        let number = self.free_but(&[4, 5, 6, 7]);
        let register = Register::AL + if number < 4 { number } else { number + 4 } as u32;
        let set = Instruction::with1(SET[condition as usize], register).expect("SETcc");
        self.raw(set);
    }

    /// Defines all status flags.
    pub(super) fn define_flags(&mut self) {
        let left = self.random.below(self.count()) as u32;
        let right = self.random.below(self.count()) as u32;
        let (code, first) = if self.is_64bit() && self.random.percent(50) {
            (Code::Cmp_r64_rm64, Register::RAX)
        } else {
            (Code::Cmp_r32_rm32, Register::EAX)
        };
        let compare = Instruction::with2(code, first + left, first + right);
        self.raw(compare.expect("CMP"));
    }

    /// Makes register `number` hold `value`.
    pub(super) fn set(&mut self, number: usize, value: u64) {
        let value = if self.is_64bit() {
            value
        } else {
            value & 0xffff_ffff
        };
        if self.known[number] == Some(value) {
            return;
        }
        let wide = self.wide(number);
        let near = self.known[number].map(|old| value.wrapping_sub(old) as i64);
        let instruction = match near {
            // By a register that holds something else: what is found before may be kept.
            Some(delta) if self.random.percent(30) && i64::from(delta as i32) == delta => {
                let (code, register) = match self.is_64bit() {
                    true => (Code::Lea_r64_m, wide),
                    false => (Code::Lea_r32_m, wide),
                };
                Instruction::with2(code, register, ins::at(wide, delta)).expect("LEA")
            }
            _ if value >> 32 == 0 => ins::set(Register::EAX + number as u32, value),
            _ if i64::from(value as i32) as u64 == value => {
                Instruction::with2(Code::Mov_rm64_imm32, wide, value as i32).expect("MOV")
            }
            _ => ins::set(wide, value),
        };
        self.raw(instruction);
        self.known[number] = Some(value);
    }

    /// The address of a new counter.
    pub(super) fn counter(&mut self) -> u64 {
        self.counters = (self.counters + 1) % 0x100;
        self.mode().control(COUNTERS + 8 * self.counters)
    }

    /// `[address]` without registers, for addresses that a displacement can hold.
    pub(super) fn absolute(&self, address: u64) -> MemoryOperand {
        ins::absolute(self.program.bits, address)
    }

    /// Forgets all registers but the stack pointer.
    pub(super) fn forget(&mut self) {
        let stack = self.known[SP];
        self.known = [None; 16];
        self.known[SP] = stack;
    }

    /// What is known where two paths meet, one of which left with `other` known.
    pub(super) fn meet(&mut self, other: &[Option<u64>; 16]) {
        for (known, other) in self.known.iter_mut().zip(other) {
            if *known != *other {
                *known = None;
            }
        }
    }
}

/// Status flags that `instruction` leaves undefined, as [`RflagsBits`]. AF after AND, OR, XOR and
/// TEST is 0 on every processor.
fn undefined_flags(instruction: &Instruction) -> u32 {
    use Mnemonic as M;
    let logic = matches!(
        instruction.mnemonic(),
        M::And | M::Or | M::Xor | M::Test | M::Andn
    );
    let rotates = matches!(instruction.mnemonic(), M::Rcl | M::Rcr);
    // OF is defined after a rotation by one bit only, also where the count is a multiple of the
    // width and nothing else changes.
    let overflow = match instruction.op1_kind() {
        OpKind::Immediate8 if rotates && instruction.immediate8() & 0x1f > 1 => RflagsBits::OF,
        _ => 0,
    };
    instruction.rflags_undefined() & if logic { !RflagsBits::AF } else { !0 } | overflow
}

/// Whether an ignored prefix may stand before `instruction`: one that has no other segment prefix.
fn takes_prefix(instruction: &Instruction) -> bool {
    instruction.segment_prefix() == Register::None && !instruction.is_jcc_short_or_near()
}
