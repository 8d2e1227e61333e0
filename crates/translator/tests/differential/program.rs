//! Guest code as items that can be taken out one by one, and its assembly.

use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, MemoryOperand, Register};
use std::fmt::Write;

/// A place in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// What of an instruction is the address of a label.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Link {
    /// The branch target.
    Branch,
    /// The memory operand, this many bytes from the label. Its base is RIP or nothing.
    Memory(i64),
    /// The immediate, this many bytes from the label.
    Immediate(i64),
}

/// A piece of code.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    Instruction(Instruction),
    Linked(Instruction, Link, Label),
    /// The label is here.
    Mark(Label),
    /// Bytes as they are.
    Bytes(Vec<u8>),
    /// The address of the label, as data.
    Word(Label),
    /// INT3s up to the address that has these low 12 bits.
    Pad(u16),
}

/// A piece, and what goes with it.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) piece: Piece,
    /// Prefixes without effect.
    pub(crate) prefixes: Vec<u8>,
    /// Items of one group make sense only together.
    pub(crate) group: Option<u32>,
}

/// Guest code.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// 64 or 32.
    pub(crate) bits: u32,
    pub(crate) items: Vec<Item>,
    labels: usize,
}

/// An assembled program.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// Where it begins.
    pub(crate) base: u64,
    pub(crate) bytes: Vec<u8>,
    /// Offset of each item.
    starts: Vec<usize>,
    labels: Vec<u64>,
}

/// Why a program has no machine code: a branch without a long form is too long, for instance.
#[derive(Debug)]
pub(crate) struct Unencodable(pub(crate) String);

/// The address of a label of which none is known yet; branches to it count as short.
const UNPLACED: u64 = u64::MAX - 0x8000;
/// Rounds until the layout must be stable.
const ROUNDS: usize = 40;

impl Program {
    pub(crate) fn new(bits: u32) -> Self {
        Self {
            bits,
            items: Vec::new(),
            labels: 0,
        }
    }

    pub(crate) fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }

    pub(crate) fn push(&mut self, piece: Piece) {
        self.items.push(Item {
            piece,
            prefixes: Vec::new(),
            group: None,
        });
    }

    pub(crate) fn add(&mut self, instruction: Instruction) {
        self.push(Piece::Instruction(instruction));
    }

    pub(crate) fn mark(&mut self, label: Label) {
        self.push(Piece::Mark(label));
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.push(Piece::Bytes(bytes.to_vec()));
    }

    /// A jump, call or conditional jump: the code of its form with an 8-bit displacement where it
    /// has one; the longer form is taken where needed.
    pub(crate) fn branch(&mut self, code: Code, target: Label) {
        let branch = Instruction::with_branch(code, 0).expect("a branch");
        self.push(Piece::Linked(branch, Link::Branch, target));
    }

    /// Machine code at `base`.
    pub(crate) fn assemble(&self, base: u64) -> Result<Image, Unencodable> {
        let mut image = Image {
            base,
            bytes: Vec::new(),
            starts: Vec::new(),
            labels: vec![UNPLACED; self.labels],
        };
        let mut long = vec![false; self.items.len()];
        for _ in 0..ROUNDS {
            let before = image.clone();
            self.lay_out(&mut image, &mut long)?;
            if image.labels == before.labels && image.bytes == before.bytes {
                return Ok(image);
            }
        }
        Err(Unencodable("no stable layout".into()))
    }

    fn lay_out(&self, image: &mut Image, long: &mut [bool]) -> Result<(), Unencodable> {
        let base = image.base;
        let labels = image.labels.clone();
        image.bytes.clear();
        image.starts.clear();
        for (item, long) in self.items.iter().zip(long) {
            let here = base.wrapping_add(image.bytes.len() as u64);
            image.starts.push(image.bytes.len());
            image.bytes.extend(&item.prefixes);
            let at = here.wrapping_add(item.prefixes.len() as u64);
            match &item.piece {
                Piece::Instruction(instruction) => {
                    image.bytes.extend(self.encode(instruction, at)?)
                }
                Piece::Linked(instruction, link, label) => {
                    let target = match labels[label.0] {
                        UNPLACED => at,
                        placed => placed,
                    };
                    let bytes = self.encode_linked(*instruction, *link, target, at, long)?;
                    image.bytes.extend(bytes);
                }
                Piece::Mark(label) => image.labels[label.0] = here,
                Piece::Bytes(bytes) => image.bytes.extend(bytes),
                Piece::Word(label) => {
                    let bytes = labels[label.0].to_le_bytes();
                    image.bytes.extend(&bytes[..self.bits as usize / 8]);
                }
                Piece::Pad(to) => {
                    let len = u64::from(*to).wrapping_sub(here) & 0xfff;
                    image.bytes.extend(std::iter::repeat_n(0xcc, len as usize));
                }
            }
        }
        Ok(())
    }

    fn encode_linked(
        &self,
        mut instruction: Instruction,
        link: Link,
        target: u64,
        at: u64,
        long: &mut bool,
    ) -> Result<Vec<u8>, Unencodable> {
        match link {
            Link::Branch => {
                if *long {
                    instruction.as_near_branch();
                }
                match self.bits {
                    64 => instruction.set_near_branch64(target),
                    _ => instruction.set_near_branch32(target as u32),
                }
                let encoded = self.encode(&instruction, at);
                if encoded.is_err() && !*long {
                    *long = true;
                    return self.encode_linked(instruction, link, target, at, long);
                }
                encoded
            }
            Link::Memory(offset) => {
                instruction.set_memory_displacement64(target.wrapping_add_signed(offset));
                self.encode(&instruction, at)
            }
            Link::Immediate(offset) => {
                let value = target.wrapping_add_signed(offset);
                match self.bits {
                    64 => instruction.set_immediate64(value),
                    _ => instruction.set_immediate32(value as u32),
                }
                self.encode(&instruction, at)
            }
        }
    }

    fn encode(&self, instruction: &Instruction, at: u64) -> Result<Vec<u8>, Unencodable> {
        let mut encoder = Encoder::new(self.bits);
        match encoder.encode(instruction, at) {
            Ok(_) => Ok(encoder.take_buffer()),
            Err(error) => Err(Unencodable(format!("`{instruction}`: {error}"))),
        }
    }

    /// The program's groups, in the order in which they begin; items of no group alone. Labels
    /// are in none: they stay.
    pub(crate) fn units(&self) -> Vec<Vec<usize>> {
        let mut units: Vec<(Option<u32>, Vec<usize>)> = Vec::new();
        for (index, item) in self.items.iter().enumerate() {
            if matches!(item.piece, Piece::Mark(_)) {
                continue;
            }
            let unit = item
                .group
                .and_then(|group| units.iter_mut().find(|(of, _)| *of == Some(group)));
            match unit {
                Some((_, members)) => members.push(index),
                None => units.push((item.group, vec![index])),
            }
        }
        units.into_iter().map(|(_, members)| members).collect()
    }

    /// The program without the items at `indices`. Labels stay.
    pub(crate) fn without(&self, indices: &[usize]) -> Self {
        let kept = self.items.iter().enumerate();
        let items = kept
            .filter(|(index, item)| {
                !indices.contains(index) || matches!(item.piece, Piece::Mark(_))
            })
            .map(|(_, item)| item.clone())
            .collect();
        Self {
            items,
            ..Self::new(self.bits)
        }
        .with_labels(self.labels)
    }

    fn with_labels(mut self, labels: usize) -> Self {
        self.labels = labels;
        self
    }

    /// Offsets of the bytes that belong to instructions.
    pub(crate) fn instruction_bytes(&self, image: &Image) -> Vec<usize> {
        let ends = image.starts.iter().skip(1).copied();
        let ranges = image.starts.iter().zip(ends.chain([image.bytes.len()]));
        let items = self.items.iter().zip(ranges);
        let instructions = items
            .filter(|(item, _)| matches!(item.piece, Piece::Instruction(_) | Piece::Linked(..)));
        instructions
            .flat_map(|(_, (&start, end))| start..end)
            .collect()
    }

    /// The program's text, an instruction a line with address and bytes.
    pub(crate) fn disassemble(&self, image: &Image) -> String {
        let mut text = String::new();
        for (index, item) in self.items.iter().enumerate() {
            let start = image.starts[index];
            let end = image.starts.get(index + 1).copied();
            let bytes = &image.bytes[start..end.unwrap_or(image.bytes.len())];
            let address = image.base.wrapping_add(start as u64);
            let hex: String = bytes.iter().take(16).map(|b| format!("{b:02x}")).collect();
            let what = match &item.piece {
                Piece::Mark(_) => continue,
                Piece::Pad(_) => format!("(filler, {} bytes)", bytes.len()),
                Piece::Word(_) => "(address)".to_owned(),
                _ => Decoder::with_ip(self.bits, bytes, address, DecoderOptions::NONE)
                    .decode()
                    .to_string(),
            };
            writeln!(text, "  {address:016x} {hex:32} {what}").expect("a string grows");
        }
        text
    }
}

impl Image {
    pub(crate) fn address(&self, label: Label) -> u64 {
        self.labels[label.0]
    }

    /// For each byte of the code: where the next item begins.
    pub(crate) fn successors(&self) -> Vec<u16> {
        let mut next = vec![self.bytes.len() as u16; self.bytes.len()];
        for window in self.starts.windows(2) {
            next[window[0]..window[1]].fill(window[1] as u16);
        }
        next
    }
}

/// Constructors of the instructions that fixed guest code consists of. The code follows from the
/// register's size.
pub(crate) mod ins {
    use super::*;

    fn by_size(register: Register, codes: [Code; 4]) -> Code {
        match register.size() {
            1 => codes[0],
            2 => codes[1],
            4 => codes[2],
            8 => codes[3],
            _ => panic!("{register:?} is no general-purpose register"),
        }
    }

    macro_rules! two {
        ($code:expr, $a:expr, $b:expr) => {
            Instruction::with2($code, $a, $b).expect("operands that fit the code")
        };
    }

    /// `[base + displacement]`.
    pub(crate) fn at(base: Register, displacement: i64) -> MemoryOperand {
        MemoryOperand::with_base_displ_size(base, displacement, u32::from(displacement != 0))
    }

    /// `[address]`, below 2 GiB or in the top 2 GiB in 64-bit code.
    pub(crate) fn absolute(bits: u32, address: u64) -> MemoryOperand {
        MemoryOperand::with_displ(address, bits / 8)
    }

    pub(crate) fn load(to: Register, from: MemoryOperand) -> Instruction {
        use Code::*;
        let codes = [Mov_r8_rm8, Mov_r16_rm16, Mov_r32_rm32, Mov_r64_rm64];
        two!(by_size(to, codes), to, from)
    }

    pub(crate) fn store(to: MemoryOperand, from: Register) -> Instruction {
        use Code::*;
        let codes = [Mov_rm8_r8, Mov_rm16_r16, Mov_rm32_r32, Mov_rm64_r64];
        two!(by_size(from, codes), to, from)
    }

    pub(crate) fn copy(to: Register, from: Register) -> Instruction {
        use Code::*;
        let codes = [Mov_r8_rm8, Mov_r16_rm16, Mov_r32_rm32, Mov_r64_rm64];
        two!(by_size(to, codes), to, from)
    }

    /// MOV with an immediate of the register's size.
    pub(crate) fn set(register: Register, value: u64) -> Instruction {
        use Code::*;
        match register.size() {
            8 => two!(Mov_r64_imm64, register, value),
            4 => two!(Mov_r32_imm32, register, value as u32),
            2 => two!(Mov_r16_imm16, register, value as u32 & 0xffff),
            _ => two!(Mov_r8_imm8, register, value as u32 & 0xff),
        }
    }

    pub(crate) fn add(register: Register, value: i32) -> Instruction {
        use Code::*;
        let codes = [Add_rm8_imm8, Add_rm16_imm16, Add_rm32_imm32, Add_rm64_imm32];
        two!(by_size(register, codes), register, value)
    }

    pub(crate) fn add_registers(to: Register, from: Register) -> Instruction {
        use Code::*;
        let codes = [Add_r8_rm8, Add_r16_rm16, Add_r32_rm32, Add_r64_rm64];
        two!(by_size(to, codes), to, from)
    }

    pub(crate) fn subtract_registers(to: Register, from: Register) -> Instruction {
        use Code::*;
        let codes = [Sub_r8_rm8, Sub_r16_rm16, Sub_r32_rm32, Sub_r64_rm64];
        two!(by_size(to, codes), to, from)
    }

    pub(crate) fn compare(register: Register, value: i32) -> Instruction {
        use Code::*;
        let codes = [Cmp_rm8_imm8, Cmp_rm16_imm16, Cmp_rm32_imm32, Cmp_rm64_imm32];
        two!(by_size(register, codes), register, value)
    }

    pub(crate) fn test(register: Register) -> Instruction {
        use Code::*;
        let codes = [Test_rm8_r8, Test_rm16_r16, Test_rm32_r32, Test_rm64_r64];
        two!(by_size(register, codes), register, register)
    }

    /// MOV dword, immediate.
    pub(crate) fn store_immediate(to: MemoryOperand, value: u32) -> Instruction {
        two!(Code::Mov_rm32_imm32, to, value)
    }

    pub(crate) fn push(register: Register) -> Instruction {
        let code = by_size(
            register,
            [
                Code::INVALID,
                Code::Push_r16,
                Code::Push_r32,
                Code::Push_r64,
            ],
        );
        Instruction::with1(code, register).expect("a register")
    }

    pub(crate) fn pop(register: Register) -> Instruction {
        let code = by_size(
            register,
            [Code::INVALID, Code::Pop_r16, Code::Pop_r32, Code::Pop_r64],
        );
        Instruction::with1(code, register).expect("a register")
    }
}
