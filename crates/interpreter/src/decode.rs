//! From code bytes to blocks of [`Op`]s.

use crate::cache::{Block, Extent};
use crate::cpu::{CodeSize, Cpu, Result};
use crate::int::{HIGH, PC, ZERO};
use crate::op::{Op, Seg};
use crate::ops::{self, Ending};
use crate::paging::Intent;
use crate::vcpu::InterpreterVcpu;
use engine::{Access, Space};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};
use memory::{PAGE_SHIFT, PAGE_SIZE};
use x86::SegmentRegister;

/// Longest instruction, in bytes (SDM vol. 2, 2.3.11).
pub(crate) const INSTRUCTION_MAX: usize = 15;
/// Most instructions in a block.
const BLOCK_OPS: usize = 48;
/// Most code bytes that are fetched for a block, of its first page.
pub(crate) const BLOCK_BYTES: usize = 256;

/// Why code is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be kept, from pages that are watched from now on.
    Keep(Extent),
    /// To be executed once: one instruction.
    Once,
}

/// Code bytes at RIP.
pub(crate) struct Fetched {
    bytes: [u8; BLOCK_BYTES + INSTRUCTION_MAX],
    len: usize,
    /// How many lie in the page of the first.
    in_first: usize,
}

/// What was decoded.
pub(crate) struct Decoded {
    pub(crate) ops: Vec<Op>,
    /// Bytes of code.
    pub(crate) bytes: u16,
    /// The page (offset / 4096) into which the last instruction reaches, if it is another.
    pub(crate) second_page: Option<u32>,
}

impl InterpreterVcpu {
    /// The block of this `extent` at RIP, if it was decoded already and its fetch needs no walk.
    #[inline(always)]
    pub(crate) fn cached_block(&self, extent: Extent) -> Option<Block> {
        let cpu = &self.cpu;
        let linear = cpu.linear_rip();
        if let Some(page) = cpu.tlb.code(cpu.cpl == 3, linear)
            && let offset = page + (linear as usize & (PAGE_SIZE - 1))
            && let Some(block) = self.cache.find(offset, cpu.code_size, extent)
            && (cpu.is_64bit() || cpu.within_code_limit(block.bytes.into()))
            && block
                .second_page
                .is_none_or(|page| cpu.next_code_page_is(linear, page))
        {
            return Some(*block);
        }
        None
    }

    /// Finds or decodes the block of this `extent` at RIP.
    ///
    /// # Errors
    /// A fault of the fetch.
    pub(crate) fn decode_block(&mut self, extent: Extent) -> Result<Block> {
        self.bound_tables();
        let linear = self.cpu.code_linear()?;
        let Some(page) = self.cpu.fetch_page(linear)? else {
            // Code outside of memory can't be watched.
            let decoded = self.cpu.decode(linear, Purpose::Once)?;
            return Ok(self.cache.insert_once(&decoded));
        };
        let offset = page + (linear as usize & (PAGE_SIZE - 1));
        if let Some(block) = self.cache.find(offset, self.cpu.code_size, extent)
            && (self.cpu.is_64bit() || self.cpu.within_code_limit(block.bytes.into()))
            && block.second_page.is_none()
        {
            return Ok(*block);
        }
        let decoded = self.cpu.decode(linear, Purpose::Keep(extent))?;
        let room = PAGE_SIZE - (linear as usize & (PAGE_SIZE - 1));
        if usize::from(decoded.bytes) > room && decoded.second_page.is_none() {
            // It ends outside of memory.
            return Ok(self.cache.insert_once(&decoded));
        }
        let size = self.cpu.code_size;
        Ok(self.cache.insert(offset, size, extent, &decoded))
    }
}

impl InterpreterVcpu {
    /// Keeps the table of vector operations bounded, to which decoding adds. Blocks refer to it,
    /// so they go with it.
    pub(crate) fn bound_tables(&mut self) {
        if self.cpu.vector.is_full() {
            self.cpu.vector.clear();
            self.cache.clear();
        }
    }
}

impl Cpu {
    /// Whether `bytes` of code from RIP on lie inside CS.
    #[inline(always)]
    fn within_code_limit(&self, bytes: u64) -> bool {
        let limit = u64::from(self.segment(SegmentRegister::Cs).limit);
        self.rip + bytes <= limit + 1
    }

    /// Whether code on the page after `linear`'s is fetched from `page` (offset / 4096).
    fn next_code_page_is(&self, linear: u64, page: u32) -> bool {
        let next = self.next_page(linear);
        self.tlb.code(self.cpl == 3, next) == Some((page as usize) << PAGE_SHIFT)
    }

    /// The first address of the page of code after `linear`'s. Outside 64-bit mode, linear
    /// addresses have 32 bits.
    fn next_page(&self, linear: u64) -> u64 {
        let next = (linear | (PAGE_SIZE as u64 - 1)).wrapping_add(1);
        if self.is_64bit() {
            next
        } else {
            next & 0xffff_ffff
        }
    }

    /// The linear address of RIP.
    ///
    /// # Errors
    /// #GP(0) if it is not canonical, or not inside CS.
    pub(crate) fn code_linear(&mut self) -> Result<u64> {
        if self.is_64bit() {
            if !self.canonical(self.rip) {
                return self.general_protection(0);
            }
            return Ok(self.rip);
        }
        if !self.within_code_limit(1) {
            return self.general_protection(0);
        }
        Ok(self.bases[SegmentRegister::Cs as usize].wrapping_add(self.rip) & 0xffff_ffff)
    }

    /// Offset in guest memory of the page of code at `linear`; `None` if it is not memory.
    ///
    /// # Errors
    /// #PF.
    pub(crate) fn fetch_page(&mut self, linear: u64) -> Result<Option<usize>> {
        let user = self.cpl == 3;
        if let Some(page) = self.tlb.code(user, linear) {
            return Ok(Some(page));
        }
        let mapping = self.walk(linear, Intent::Fetch, self.privilege())?;
        let Some((page, _)) = self.memory.page(mapping.gpa) else {
            return Ok(None);
        };
        self.tlb.fill_code(user, linear, page, mapping.global);
        Ok(Some(page))
    }

    /// Appends code bytes from `linear` on to `fetched`, `len` at most and none beyond the page.
    /// Returns the page (offset / 4096) they are from, if it is memory.
    fn fetch(
        &mut self,
        fetched: &mut Fetched,
        linear: u64,
        len: usize,
        purpose: Purpose,
    ) -> Result<Option<usize>> {
        let len = len.min(PAGE_SIZE - (linear as usize & (PAGE_SIZE - 1)));
        let to = &mut fetched.bytes[fetched.len..fetched.len + len];
        fetched.len += len;
        let Some(page) = self.fetch_page(linear)? else {
            let gpa = self.walk(linear, Intent::Fetch, self.privilege())?.gpa;
            for (address, byte) in (gpa..).zip(to) {
                let access = Access {
                    space: Space::Memory,
                    address,
                    bytes: 1,
                    write: None,
                };
                *byte = self.machine_access(access) as u8;
            }
            return Ok(None);
        };
        if let Purpose::Keep(_) = purpose {
            self.watch_code(page >> PAGE_SHIFT);
        }
        self.ram
            .read(page + (linear as usize & (PAGE_SIZE - 1)), to);
        Ok(Some(page >> PAGE_SHIFT))
    }

    /// From here on, nobody writes to `page` unseen.
    pub(crate) fn watch_code(&mut self, page: usize) {
        if self.shared.watch_code(self.index, page) {
            self.tlb.forget_writes();
        }
        self.stand_up();
    }

    /// Decodes what stands at RIP, which is at `linear`.
    ///
    /// # Errors
    /// A fault in the fetch of the first instruction.
    pub(crate) fn decode(&mut self, linear: u64, purpose: Purpose) -> Result<Decoded> {
        let (most_ops, most_bytes) = match purpose {
            Purpose::Keep(Extent::Run) => (BLOCK_OPS, BLOCK_BYTES),
            Purpose::Keep(Extent::Instruction) | Purpose::Once => (1, INSTRUCTION_MAX),
        };
        let mut fetched = Fetched {
            bytes: [0; BLOCK_BYTES + INSTRUCTION_MAX],
            len: 0,
            in_first: 0,
        };
        self.fetch(&mut fetched, linear, most_bytes, purpose)?;
        fetched.in_first = fetched.len;
        let mut decoded = Decoded {
            ops: Vec::with_capacity(BLOCK_OPS + 1),
            bytes: 0,
            second_page: None,
        };
        let mut ending = Ending::None;
        while ending == Ending::None && decoded.ops.len() < most_ops {
            let at = usize::from(decoded.bytes);
            let mut instruction = decode_one(&fetched, at, self.code_size);
            if instruction.is_none() && at == 0 && fetched.len < INSTRUCTION_MAX {
                // The first instruction may reach into the next page.
                let next = self.next_page(linear);
                let page = self.fetch(&mut fetched, next, INSTRUCTION_MAX, purpose)?;
                decoded.second_page = page.map(|p| p as u32);
                instruction = decode_one(&fetched, at, self.code_size);
            }
            let Some(instruction) = instruction else {
                if at == 0 {
                    // More than 15 bytes (SDM vol. 3, 7.15).
                    return self.general_protection(0);
                }
                break;
            };
            let end = at + instruction.len();
            if !self.is_64bit() && !self.within_code_limit(end as u64) {
                if at == 0 {
                    return self.general_protection(0);
                }
                break;
            }
            let mut op = Op::from_instruction(&instruction, self.code_size);
            op.offset = at as u16;
            op.len = instruction.len() as u8;
            op.run = ops::select(self, &instruction, &fetched.bytes[at..end], &mut op);
            ending = ops::ending(&instruction);
            decoded.ops.push(op);
            decoded.bytes = end as u16;
        }
        if usize::from(decoded.bytes) <= fetched.in_first {
            decoded.second_page = None;
        }
        if ending != Ending::Jump {
            let mut go_on = Op::new(ops::go_on);
            go_on.offset = decoded.bytes;
            decoded.ops.push(go_on);
        }
        Ok(decoded)
    }
}

/// The instruction `at` bytes into `fetched`; an invalid one is [`Instruction::is_invalid`].
/// `None` if bytes are missing.
fn decode_one(fetched: &Fetched, at: usize, size: CodeSize) -> Option<Instruction> {
    let bitness = match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let end = fetched.len.min(at + INSTRUCTION_MAX);
    let bytes = &fetched.bytes[at..end];
    let mut decoder = Decoder::with_ip(bitness, bytes, at as u64, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (decoder.last_error() != DecoderError::NoMoreBytes).then_some(instruction)
}

impl Op {
    /// The operands of `instruction`, which was decoded as if its block began at address 0. The
    /// handler is to be chosen.
    fn from_instruction(instruction: &Instruction, size: CodeSize) -> Self {
        let mut op = Self::new(ops::undefined);
        let mut registers = [ZERO; 3];
        let mut count = 0;
        for operand in 0..instruction.op_count() {
            match instruction.op_kind(operand) {
                OpKind::Register => {
                    if let Some(slot) = slot(instruction.op_register(operand))
                        && count < registers.len()
                    {
                        registers[count] = slot;
                        count += 1;
                    }
                }
                OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                    op.imm = instruction.near_branch_target();
                }
                OpKind::FarBranch16 => {
                    op.imm = instruction.far_branch16().into();
                    op.aux = instruction.far_branch_selector().into();
                }
                OpKind::FarBranch32 => {
                    op.imm = instruction.far_branch32().into();
                    op.aux = instruction.far_branch_selector().into();
                }
                OpKind::Immediate8_2nd => op.aux = instruction.immediate8_2nd().into(),
                OpKind::Memory => op.set_memory(instruction, size),
                kind if is_immediate(kind) => op.imm = instruction.immediate(operand),
                _ => op.set_implicit_memory(instruction, operand, size),
            }
        }
        [op.r0, op.r1, op.r2] = registers;
        op
    }

    fn set_memory(&mut self, instruction: &Instruction, size: CodeSize) {
        let base = instruction.memory_base();
        let index = instruction.memory_index();
        self.disp = instruction.memory_displacement64();
        if matches!(base, Register::RIP | Register::EIP) {
            // The displacement is that from the block's first byte.
            self.base = PC;
        } else {
            self.base = slot(base).unwrap_or(ZERO);
        }
        // A vector register as index is a gather's, which its handler looks at.
        self.index = slot(index).unwrap_or(ZERO);
        self.scale = instruction.memory_index_scale().trailing_zeros() as u8;
        self.address_cut = match address_bits(instruction) {
            64 => 0,
            32 => 32,
            _ => 48,
        };
        self.segment = seg(instruction.memory_segment(), size);
    }

    /// String instructions and their like: the source's segment and the address size.
    fn set_implicit_memory(&mut self, instruction: &Instruction, operand: u32, size: CodeSize) {
        use OpKind as K;
        self.address_cut = match instruction.op_kind(operand) {
            K::MemorySegSI | K::MemorySegDI | K::MemoryESDI => 48,
            K::MemorySegESI | K::MemorySegEDI | K::MemoryESEDI => 32,
            _ => 0,
        };
        let is_source = !matches!(
            instruction.op_kind(operand),
            K::MemoryESDI | K::MemoryESEDI | K::MemoryESRDI
        );
        if is_source {
            self.segment = seg(instruction.memory_segment(), size);
        }
    }
}

fn is_immediate(kind: OpKind) -> bool {
    use OpKind as K;
    matches!(
        kind,
        K::Immediate8
            | K::Immediate16
            | K::Immediate32
            | K::Immediate64
            | K::Immediate8to16
            | K::Immediate8to32
            | K::Immediate8to64
            | K::Immediate32to64
    )
}

/// Bits of the memory operand's address.
fn address_bits(instruction: &Instruction) -> u32 {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    for register in [base, index] {
        if register.is_gpr() || matches!(register, Register::RIP | Register::EIP) {
            return register.size() as u32 * 8;
        }
    }
    // An absolute address: as wide as its displacement, which a decoder has sign-extended.
    match instruction.memory_displ_size() {
        2 => 16,
        4 => 32,
        _ => 64,
    }
}

/// The slot of a general-purpose register; `None` for any other.
pub(crate) fn slot(register: Register) -> Option<u8> {
    use Register as R;
    if !register.is_gpr() {
        return None;
    }
    let high = [R::AH, R::CH, R::DH, R::BH];
    if let Some(number) = high.iter().position(|h| *h == register) {
        return Some(number as u8 + HIGH);
    }
    Some(register.full_register().number() as u8)
}

/// The checks of an access through `register`.
pub(crate) fn seg(register: Register, size: CodeSize) -> Seg {
    let number = match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    };
    if size == CodeSize::Bits64 {
        Seg::long(number)
    } else {
        Seg::legacy(number)
    }
}
