//! A small assembler for what surrounds the guest's instructions.
//!
//! The guest's own instructions are copied or encoded by `iced-x86`. The sequences around them
//! are few and are emitted by the hundred thousand, so they are encoded here directly (SDM
//! vol. 2, chapter 2): registers are numbers as in ModRM, memory operands are a base with
//! optional index, or a field of the [`Context`](crate::context::Context) through GS.

use crate::context::spill_slot;

/// A general-purpose register by its encoding: RAX 0, RCX 1, RDX 2, RBX 3, RSP 4, RBP 5, RSI 6,
/// RDI 7, then R8 to R15.
pub(crate) type Reg = u8;

pub(crate) const RCX: Reg = 1;
pub(crate) const RSP: Reg = 4;

/// A condition code, as in Jcc (SDM vol. 2, appendix B.1.4.7).
pub(crate) type Condition = u8;

pub(crate) const BELOW: Condition = 2;
pub(crate) const EQUAL: Condition = 4;
pub(crate) const NOT_EQUAL: Condition = 5;
pub(crate) const ABOVE: Condition = 7;

/// An address: `base + index * scale + disp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mem {
    pub(crate) base: Option<Reg>,
    /// Register and `log2` of the scale. RSP can't be an index.
    pub(crate) index: Option<(Reg, u8)>,
    pub(crate) disp: i32,
}

impl Mem {
    /// `[base + disp]`.
    pub(crate) const fn base(base: Reg, disp: i32) -> Self {
        Self {
            base: Some(base),
            index: None,
            disp,
        }
    }

    /// `[base + index + disp]`.
    pub(crate) const fn sum(base: Reg, index: Reg, disp: i32) -> Self {
        Self {
            base: Some(base),
            index: Some((index, 0)),
            disp,
        }
    }

    /// `[index * 2^scale + disp]`, for table look-ups through GS.
    pub(crate) const fn scaled(index: Reg, scale: u8, disp: i32) -> Self {
        Self {
            base: None,
            index: Some((index, scale)),
            disp,
        }
    }

    /// `[disp]`, absolute.
    pub(crate) const fn at(disp: i32) -> Self {
        Self {
            base: None,
            index: None,
            disp,
        }
    }
}

/// Code that is being written. Positions are offsets in the code cache.
pub(crate) struct Asm {
    start: usize,
    pub(crate) code: Vec<u8>,
}

/// Whether an operation works on 64 or on 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    W32,
    W64,
}

const GS: u8 = 0x65;

impl Asm {
    /// Code that will begin at offset `start` of the cache, in the memory of `code`, which is empty.
    pub(crate) fn new(start: usize, code: Vec<u8>) -> Self {
        Self { start, code }
    }

    /// The offset in the cache of the next byte.
    pub(crate) fn here(&self) -> usize {
        self.start + self.code.len()
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn byte(&mut self, byte: u8) {
        self.code.push(byte);
    }

    fn imm32(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    /// ModRM, SIB and displacement for `reg` and `mem`.
    fn operand(&mut self, reg: Reg, mem: Mem) {
        let reg = (reg & 7) << 3;
        let Mem { base, index, disp } = mem;
        let (mode, short) = match base {
            None => (0x00, false),
            Some(base) if disp == 0 && base & 7 != 5 => (0x00, false),
            Some(_) if i8::try_from(disp).is_ok() => (0x40, true),
            Some(_) => (0x80, false),
        };
        let sib = index.is_some() || base.is_none_or(|b| b & 7 == 4);
        if sib {
            self.byte(mode | reg | 4);
            let (number, scale) = index.unwrap_or((4, 0));
            debug_assert!(index.is_none() || number != RSP);
            self.byte(scale << 6 | (number & 7) << 3 | base.map_or(5, |b| b & 7));
        } else if let Some(base) = base {
            self.byte(mode | reg | base & 7);
        }
        match (base, mode) {
            (None, _) | (_, 0x80) => self.imm32(disp),
            _ if short => self.byte(disp as u8),
            _ => {}
        }
    }

    fn rex(&mut self, wide: Width, reg: Reg, mem: Mem) {
        let rex = u8::from(wide == Width::W64) << 3
            | (reg >> 3) << 2
            | mem.index.map_or(0, |(i, _)| i >> 3) << 1
            | mem.base.map_or(0, |b| b >> 3);
        if rex != 0 {
            self.byte(0x40 | rex);
        }
    }

    fn rex_registers(&mut self, wide: Width, reg: Reg, rm: Reg) {
        let rex = u8::from(wide == Width::W64) << 3 | (reg >> 3) << 2 | rm >> 3;
        if rex != 0 {
            self.byte(0x40 | rex);
        }
    }

    fn op(&mut self, wide: Width, opcode: u8, reg: Reg, mem: Mem) {
        self.rex(wide, reg, mem);
        self.byte(opcode);
        self.operand(reg, mem);
    }

    fn op_registers(&mut self, wide: Width, opcode: u8, reg: Reg, rm: Reg) {
        self.rex_registers(wide, reg, rm);
        self.byte(opcode);
        self.byte(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    fn op_gs(&mut self, wide: Width, opcode: u8, reg: Reg, mem: Mem) {
        self.byte(GS);
        self.op(wide, opcode, reg, mem);
    }

    /// `mov to, from`.
    pub(crate) fn mov(&mut self, to: Reg, from: Reg) {
        self.op_registers(Width::W64, 0x8b, to, from);
    }

    /// `mov to, value` with the shortest encoding.
    pub(crate) fn mov_imm(&mut self, to: Reg, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            self.rex_registers(Width::W32, 0, to);
            self.byte(0xb8 | to & 7);
            self.imm32(value as i32);
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.rex_registers(Width::W64, 0, to);
            self.byte(0xc7);
            self.byte(0xc0 | to & 7);
            self.imm32(value);
        } else {
            self.rex_registers(Width::W64, 0, to);
            self.byte(0xb8 | to & 7);
            self.bytes(&value.to_le_bytes());
        }
    }

    /// `lea to, [mem]`.
    pub(crate) fn lea(&mut self, to: Reg, mem: Mem) {
        self.op(Width::W64, 0x8d, to, mem);
    }

    /// `lea to, [mem]`, cut to 32 bits.
    pub(crate) fn lea32(&mut self, to: Reg, mem: Mem) {
        self.op(Width::W32, 0x8d, to, mem);
    }

    /// `mov to, [mem]` of `width`.
    pub(crate) fn load(&mut self, width: Width, to: Reg, mem: Mem) {
        self.op(width, 0x8b, to, mem);
    }

    /// `mov [mem], from` of 64 bits.
    pub(crate) fn store(&mut self, width: Width, mem: Mem, from: Reg) {
        self.op(width, 0x89, from, mem);
    }

    /// `mov qword [mem], value`, sign-extended (or dword).
    pub(crate) fn store_imm(&mut self, width: Width, mem: Mem, value: i32) {
        self.op(width, 0xc7, 0, mem);
        self.imm32(value);
    }

    /// `mov to, gs:[field]`.
    pub(crate) fn load_field(&mut self, to: Reg, field: i32) {
        self.op_gs(Width::W64, 0x8b, to, Mem::at(field));
    }

    /// `mov to, gs:[field]` of 32 bits.
    pub(crate) fn load_field32(&mut self, to: Reg, field: i32) {
        self.op_gs(Width::W32, 0x8b, to, Mem::at(field));
    }

    /// `mov to, gs:[field]` of 16 bits; the others stay.
    pub(crate) fn load_field16(&mut self, to: Reg, field: i32) {
        self.byte(0x66);
        self.op_gs(Width::W32, 0x8b, to, Mem::at(field));
    }

    /// `mov to, gs:[mem]`.
    pub(crate) fn load_gs(&mut self, to: Reg, mem: Mem) {
        self.op_gs(Width::W64, 0x8b, to, mem);
    }

    /// `mov gs:[mem], from`.
    pub(crate) fn store_gs(&mut self, mem: Mem, from: Reg) {
        self.op_gs(Width::W64, 0x89, from, mem);
    }

    /// `mov gs:[field], from`.
    pub(crate) fn store_field(&mut self, field: i32, from: Reg) {
        self.op_gs(Width::W64, 0x89, from, Mem::at(field));
    }

    /// `mov dword gs:[field], value`.
    pub(crate) fn store_field_imm(&mut self, field: i32, value: u32) {
        self.op_gs(Width::W32, 0xc7, 0, Mem::at(field));
        self.imm32(value as i32);
    }

    /// `add to, gs:[mem]`.
    pub(crate) fn add_gs(&mut self, to: Reg, mem: Mem) {
        self.op_gs(Width::W64, 0x03, to, mem);
    }

    /// `sub to, gs:[mem]`.
    pub(crate) fn sub_gs(&mut self, to: Reg, mem: Mem) {
        self.op_gs(Width::W64, 0x2b, to, mem);
    }

    /// `cmp reg, gs:[mem]`.
    pub(crate) fn cmp_gs(&mut self, reg: Reg, mem: Mem) {
        self.op_gs(Width::W64, 0x3b, reg, mem);
    }

    /// `bts gs:[field], bit`: sets a bit of the string of bits that begins there.
    pub(crate) fn set_bit(&mut self, field: i32, bit: Reg) {
        let mem = Mem::at(field);
        self.byte(GS);
        self.rex(Width::W64, bit, mem);
        self.bytes(&[0x0f, 0xab]);
        self.operand(bit, mem);
    }

    /// `inc qword gs:[field]`.
    pub(crate) fn count_field(&mut self, field: i32) {
        self.op_gs(Width::W64, 0xff, 0, Mem::at(field));
    }

    /// `lahf`, `seto al`: keeps the arithmetic flags in AX.
    pub(crate) fn keep_flags(&mut self) {
        self.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// `add al, 127`, `sahf`: ends [`Asm::keep_flags`].
    pub(crate) fn return_flags(&mut self) {
        self.bytes(&[0x04, 0x7f, 0x9e]);
    }

    /// `cmp dword gs:[field], 0`.
    pub(crate) fn is_field_zero(&mut self, field: i32) {
        self.op_gs(Width::W32, 0x83, 7, Mem::at(field));
        self.byte(0);
    }

    /// `shr to, count`.
    pub(crate) fn shr(&mut self, to: Reg, count: u8) {
        self.op_registers(Width::W64, 0xc1, 5, to);
        self.byte(count);
    }

    /// `and to, mask` of 32 bits: clears the upper half.
    pub(crate) fn and32(&mut self, to: Reg, mask: u32) {
        self.op_registers(Width::W32, 0x81, 4, to);
        self.imm32(mask as i32);
    }

    /// `and to, mask` of 64 bits, sign-extended.
    pub(crate) fn and(&mut self, to: Reg, mask: i32) {
        self.op_registers(Width::W64, 0x81, 4, to);
        self.imm32(mask);
    }

    /// `neg to`.
    pub(crate) fn neg(&mut self, to: Reg) {
        self.op_registers(Width::W64, 0xf7, 3, to);
    }

    /// `cmp reg, value` of 64 bits.
    pub(crate) fn cmp_imm(&mut self, reg: Reg, value: i32) {
        self.op_registers(Width::W64, 0x81, 7, reg);
        self.imm32(value);
    }

    /// `cmp reg, value` of 32 bits.
    pub(crate) fn cmp_imm32(&mut self, reg: Reg, value: i32) {
        self.op_registers(Width::W32, 0x81, 7, reg);
        self.imm32(value);
    }

    /// `pext to, from, gs:[field]`: leaves the flags alone.
    pub(crate) fn pext(&mut self, to: Reg, from: Reg, field: i32) {
        // VEX.LZ.F3.0F38.W1 F5 /r: first source in vvvv.
        self.byte(GS);
        self.byte(0xc4);
        self.byte((!(to >> 3) & 1) << 7 | 0x60 | 2);
        self.byte(0x80 | (!from & 15) << 3 | 2);
        self.byte(0xf5);
        self.operand(to, Mem::at(field));
    }

    /// `pdep to, from, gs:[field]`: leaves the flags alone.
    pub(crate) fn pdep(&mut self, to: Reg, from: Reg, field: i32) {
        // VEX.LZ.F2.0F38.W1 F5 /r.
        self.byte(GS);
        self.byte(0xc4);
        self.byte((!(to >> 3) & 1) << 7 | 0x60 | 2);
        self.byte(0x80 | (!from & 15) << 3 | 3);
        self.byte(0xf5);
        self.operand(to, Mem::at(field));
    }

    /// `mulx high, low, gs:[field]`, of RDX: leaves the flags alone. If both are the same register,
    /// it gets the upper half.
    pub(crate) fn mulx(&mut self, high: Reg, low: Reg, field: i32) {
        // VEX.LZ.F2.0F38.W1 F6 /r.
        self.byte(GS);
        self.byte(0xc4);
        self.byte((!(high >> 3) & 1) << 7 | 0x60 | 2);
        self.byte(0x80 | (!low & 15) << 3 | 3);
        self.byte(0xf6);
        self.operand(high, Mem::at(field));
    }

    /// `sarx to, from, count`: leaves the flags alone.
    pub(crate) fn sarx(&mut self, width: Width, to: Reg, from: Reg, count: Reg) {
        // VEX.LZ.F3.0F38.W0/1 F7 /r: the count in vvvv.
        self.byte(0xc4);
        self.byte((!(to >> 3) & 1) << 7 | 0x40 | (!(from >> 3) & 1) << 5 | 2);
        self.byte(u8::from(width == Width::W64) << 7 | (!count & 15) << 3 | 2);
        self.byte(0xf7);
        self.byte(0xc0 | (to & 7) << 3 | from & 7);
    }

    /// `rorx to, from, count` of 64 bits: leaves the flags alone.
    pub(crate) fn rotate_right(&mut self, to: Reg, from: Reg, count: u8) {
        // VEX.LZ.F2.0F3A.W1 F0 /r ib.
        let high = (!(to >> 3) & 1) << 7 | (!(from >> 3) & 1) << 5;
        self.bytes(&[0xc4, high | 0x40 | 3, 0xfb, 0xf0]);
        self.bytes(&[0xc0 | (to & 7) << 3 | from & 7, count]);
    }

    /// `not reg`: leaves the flags alone.
    pub(crate) fn not(&mut self, reg: Reg) {
        self.op_registers(Width::W64, 0xf7, 2, reg);
    }

    /// `lfence`.
    pub(crate) fn lfence(&mut self) {
        self.bytes(&[0x0f, 0xae, 0xe8]);
    }

    /// `rdtsc`.
    pub(crate) fn rdtsc(&mut self) {
        self.bytes(&[0x0f, 0x31]);
    }

    /// `movsxd to, from`: 32 bits to 64.
    pub(crate) fn movsxd(&mut self, to: Reg, from: Reg) {
        self.op_registers(Width::W64, 0x63, to, from);
    }

    /// The host's RFLAGS to `to`, by way of the stack whose pointer is in `stack`; RSP is kept in
    /// `keep`. Leaves the flags alone.
    pub(crate) fn host_flags(&mut self, to: Reg, keep: i32, stack: i32) {
        self.store_field(keep, RSP);
        self.load_field(RSP, stack);
        self.byte(0x9c);
        if to >= 8 {
            self.byte(0x41);
        }
        self.byte(0x58 | to & 7);
        self.load_field(RSP, keep);
    }

    /// `jrcxz` over the next jump: returns the position to give to [`Asm::land`].
    pub(crate) fn jrcxz(&mut self) -> usize {
        self.bytes(&[0xe3, 0]);
        self.code.len()
    }

    /// Jumps, and leaves the flags alone, if RCX is not 0: to a place that is not known yet, as
    /// [`Asm::jmp_forward`].
    pub(crate) fn jrcxnz_forward(&mut self) -> usize {
        let zero = self.jrcxz();
        let from = self.jmp_forward();
        self.land(zero);
        from
    }

    /// `jmp` rel8, forward.
    pub(crate) fn jmp_short(&mut self) -> usize {
        self.bytes(&[0xeb, 0]);
        self.code.len()
    }

    /// Lets a short jump land here.
    pub(crate) fn land(&mut self, jump: usize) {
        let distance = self.code.len() - jump;
        self.code[jump - 1] = i8::try_from(distance).expect("a short jump") as u8;
    }

    /// `jmp` to an offset in the cache.
    pub(crate) fn jmp(&mut self, target: usize) {
        self.byte(0xe9);
        self.relative(target);
    }

    /// `jcc` to an offset in the cache.
    pub(crate) fn jcc(&mut self, condition: Condition, target: usize) {
        self.bytes(&[0x0f, 0x80 | condition]);
        self.relative(target);
    }

    /// `jmp` whose target can be patched: returns where its displacement is.
    pub(crate) fn jmp_patchable(&mut self) -> usize {
        self.byte(0xe9);
        self.imm32(0);
        self.here() - 4
    }

    /// `jcc` whose target can be patched: returns where its displacement is.
    pub(crate) fn jcc_patchable(&mut self, condition: Condition) -> usize {
        self.bytes(&[0x0f, 0x80 | condition]);
        self.imm32(0);
        self.here() - 4
    }

    /// `jcc` to a place that is not known yet: returns where its displacement is.
    pub(crate) fn jcc_forward(&mut self, condition: Condition) -> usize {
        self.bytes(&[0x0f, 0x80 | condition]);
        self.imm32(0);
        self.here() - 4
    }

    /// `jmp` to a place that is not known yet.
    pub(crate) fn jmp_forward(&mut self) -> usize {
        self.byte(0xe9);
        self.imm32(0);
        self.here() - 4
    }

    /// Lets the jump whose displacement is at `displacement` go to `target`.
    pub(crate) fn set_target(&mut self, displacement: usize, target: usize) {
        let value = relative(displacement, target);
        let at = displacement - self.start;
        self.code[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn relative(&mut self, target: usize) {
        let value = relative(self.here(), target);
        self.bytes(&value.to_le_bytes());
    }

    /// `push imm`.
    pub(crate) fn push_imm(&mut self, value: i32) {
        self.byte(0x68);
        self.imm32(value);
    }

    /// `push [rip + displacement]`. Returns the displacement, for [`Asm::set_target`].
    pub(crate) fn push_relative(&mut self) -> usize {
        self.bytes(&[0xff, 0x35]);
        self.imm32(0);
        self.here() - 4
    }

    /// `pop reg`.
    pub(crate) fn pop(&mut self, reg: Reg) {
        if reg >= 8 {
            self.byte(0x41);
        }
        self.byte(0x58 | reg & 7);
    }

    /// `jmp reg`.
    pub(crate) fn jmp_register(&mut self, reg: Reg) {
        if reg >= 8 {
            self.byte(0x41);
        }
        self.byte(0xff);
        self.byte(0xe0 | reg & 7);
    }

    /// Saves registers, one bit each, as the guest's.
    pub(crate) fn spill(&mut self, registers: u16) {
        for register in (0..16).filter(|r| registers >> r & 1 != 0) {
            self.store_field(spill_slot(register), register);
        }
    }

    /// Gives registers, one bit each, their guest values back.
    pub(crate) fn restore(&mut self, registers: u16) {
        for register in (0..16).filter(|r| registers >> r & 1 != 0) {
            self.load_field(register, spill_slot(register));
        }
    }

    /// `jmp gs:[field]`.
    pub(crate) fn jmp_field(&mut self, field: i32) {
        self.byte(GS);
        self.byte(0xff);
        self.operand(4, Mem::at(field));
    }
}

/// The displacement, standing at `displacement`, of a jump to `target`.
pub(crate) fn relative(displacement: usize, target: usize) -> u32 {
    (target as i64 - (displacement as i64 + 4)) as i32 as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    /// What a disassembler makes of it.
    fn text(emit: impl FnOnce(&mut Asm)) -> String {
        let mut asm = Asm::new(0, Vec::new());
        emit(&mut asm);
        let mut decoder = Decoder::with_ip(64, &asm.code, 0, DecoderOptions::NONE);
        let mut formatter = IntelFormatter::new();
        formatter
            .options_mut()
            .set_space_after_operand_separator(true);
        let mut all = Vec::new();
        while decoder.can_decode() {
            let mut line = String::new();
            formatter.format(&decoder.decode(), &mut line);
            all.push(line);
        }
        all.join("; ")
    }

    #[test]
    fn every_base_and_index_is_encoded() {
        for base in 0..16 {
            for disp in [0, 5, -0x80, 0x1234] {
                let one = text(|a| a.lea(15 - base, Mem::base(base, disp)));
                assert!(one.starts_with("lea "), "{one}");
                assert_eq!(
                    text(|a| a.bytes(&{
                        let mut b = Asm::new(0, Vec::new());
                        b.lea(15 - base, Mem::base(base, disp));
                        b.code
                    })),
                    one
                );
                for index in (0..16).filter(|i| *i != RSP) {
                    let two = text(|a| a.load(Width::W64, 1, Mem::sum(base, index, disp)));
                    assert!(two.starts_with("mov rcx, [r"), "{two}");
                    assert!(two.contains('+'), "{two}");
                }
            }
        }
    }

    #[test]
    fn fields_are_reached_through_gs() {
        assert_eq!(text(|a| a.load_field(9, 0x40)), "mov r9, gs:[40h]");
        assert_eq!(text(|a| a.load_field16(9, 0x40)), "mov r9w, gs:[40h]");
        assert_eq!(text(|a| a.store_field(0x48, 4)), "mov gs:[48h], rsp");
        assert_eq!(text(|a| a.pext(9, 12, 0x50)), "pext r9, r12, gs:[50h]");
        assert_eq!(text(|a| a.pext(1, 1, 0x50)), "pext rcx, rcx, gs:[50h]");
        assert_eq!(text(|a| a.pdep(14, 9, 0x50)), "pdep r14, r9, gs:[50h]");
        assert_eq!(text(|a| a.mulx(14, 9, 0x50)), "mulx r14, r9, gs:[50h]");
        assert_eq!(text(|a| a.mulx(0, 1, 0x50)), "mulx rax, rcx, gs:[50h]");
        assert_eq!(text(Asm::lfence), "lfence");
        assert_eq!(text(Asm::rdtsc), "rdtsc");
        assert_eq!(text(|a| a.sarx(Width::W64, 9, 2, 13)), "sarx r9, rdx, r13");
        assert_eq!(
            text(|a| a.sarx(Width::W32, 1, 12, 3)),
            "sarx ecx, r12d, ebx"
        );
        assert_eq!(text(|a| a.rotate_right(0, 0, 8)), "rorx rax, rax, 8");
        assert_eq!(text(|a| a.rotate_right(11, 11, 56)), "rorx r11, r11, 38h");
        assert_eq!(text(|a| a.not(12)), "not r12");
        assert_eq!(text(|a| a.movsxd(8, 3)), "movsxd r8, ebx");
        assert_eq!(text(|a| a.jmp_field(0x10)), "jmp qword ptr gs:[10h]");
        assert_eq!(
            text(|a| a.load_gs(14, Mem::scaled(13, 3, 0x100))),
            "mov r14, gs:[r13*8+100h]"
        );
        assert_eq!(text(|a| a.is_field_zero(8)), "cmp dword ptr gs:[8], 0");
        assert_eq!(
            text(|a| a.store_gs(Mem::base(13, 0x100), 9)),
            "mov gs:[r13+100h], r9"
        );
        assert_eq!(
            text(|a| a.cmp_gs(2, Mem::scaled(1, 3, 0x100))),
            "cmp rdx, gs:[rcx*8+100h]"
        );
        assert_eq!(text(|a| a.set_bit(0x40, 11)), "bts gs:[40h], r11");
        assert_eq!(text(|a| a.count_field(8)), "inc qword ptr gs:[8]");
    }

    #[test]
    fn flags_are_kept_in_ax() {
        assert_eq!(text(Asm::keep_flags), "lahf; seto al");
        assert_eq!(text(Asm::return_flags), "add al, 7Fh; sahf");
    }

    #[test]
    fn masks_are_extended_by_their_sign() {
        assert_eq!(text(|a| a.and(9, -4096)), "and r9, 0FFFFFFFFFFFFF000h");
        assert_eq!(text(|a| a.and32(9, 0xfff)), "and r9d, 0FFFh");
        assert_eq!(text(|a| a.neg(10)), "neg r10");
    }

    #[test]
    fn immediates_take_the_shortest_form() {
        assert_eq!(text(|a| a.mov_imm(8, 5)), "mov r8d, 5");
        assert_eq!(
            text(|a| a.mov_imm(3, 0xffff_ffff_8100_0000)),
            "mov rbx, 0FFFFFFFF81000000h"
        );
        assert_eq!(
            text(|a| a.mov_imm(3, 0x1234_5678_9abc)),
            "mov rbx, 123456789ABCh"
        );
    }
}
