//! What a block consists of: the guest's instructions, decoded and classified, with the facts
//! that emission needs: live flags, free registers, accesses that share a check.

mod classify;
mod groups;

pub(crate) use classify::{Access, Class, Classifier, Strings, has_high_byte, may_not_store};
pub(crate) use groups::{Base, Group, Use};

use crate::asm::{RCX, RSP, Reg};
use crate::mode::Mode;
use crate::store::PAGE;
use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, RflagsBits};

/// The most bytes of an instruction (SDM vol. 2, 2.3.11).
pub(crate) const INSTRUCTION_BYTES: usize = 15;
/// Most instructions of a block.
const INSTRUCTIONS_MAX: usize = 48;
/// Registers that must be left for the translator's own use.
const SCRATCH_MIN: u32 = 3;
/// Most registers that it takes.
const SCRATCH_MAX: usize = 5;
/// CF, PF, AF, ZF, SF, OF as iced-x86 names them.
pub(crate) const STATUS: u32 = RflagsBits::CF
    | RflagsBits::PF
    | RflagsBits::AF
    | RflagsBits::ZF
    | RflagsBits::SF
    | RflagsBits::OF;
/// In which order registers are taken for scratch: those that compilers use last come first, so
/// that most blocks take the same ones.
const SCRATCH_ORDER: [Reg; 14] = [15, 14, 13, 12, 11, 10, 9, 8, 3, 7, 6, 5, 2, 0];

/// A decoded instruction.
#[derive(Debug, Clone)]
pub(crate) struct Insn {
    pub(crate) instruction: Instruction,
    /// Offset of its first byte in the page.
    pub(crate) at: u16,
    pub(crate) class: Class,
    /// General-purpose registers that it reads or writes, one bit each.
    pub(crate) uses: u16,
    /// General-purpose registers that it writes.
    pub(crate) writes: u16,
    /// Whether an arithmetic flag is live before it, and which ones are, as iced-x86 names them.
    pub(crate) flags_live: bool,
    pub(crate) live: u32,
    /// Whether it may work on x87, MMX or vector registers.
    pub(crate) vectors: bool,
    /// The shared check that serves its memory access.
    pub(crate) shared: Option<Use>,
}

impl Insn {
    /// One that the interpreter is to decode at offset `at`.
    fn interpreted(at: u16) -> Self {
        Self {
            instruction: Instruction::default(),
            at,
            class: Class::End,
            uses: 0,
            writes: 0,
            flags_live: true,
            live: STATUS,
            vectors: true,
            shared: None,
        }
    }

    /// Whether its translation needs registers. `linear` is where the page is.
    fn needs_scratch(&self, mode: Mode, linear: u64) -> bool {
        use Class as C;
        if !mode.is_windowed() {
            return self.class.needs_scratch();
        }
        match self.class {
            C::Memory(_) | C::PushMemory | C::BitString(_) => {
                self.is_relative() && self.near_operand(linear).is_none()
            }
            C::CallIndirect | C::JumpIndirect | C::Return(_) | C::ReadCounter(_) => true,
            _ => false,
        }
    }

    /// Whether it has a memory operand relative to RIP.
    pub(crate) fn is_relative(&self) -> bool {
        self.instruction.memory_base() == iced_x86::Register::RIP
    }

    /// The address of its memory operand, which is relative to RIP, in a page at `linear`, if an
    /// instruction can have it as it is: a number of 32 bits.
    pub(crate) fn near_operand(&self, linear: u64) -> Option<i32> {
        let disp = self.instruction.memory_displacement64();
        i32::try_from(linear.wrapping_add(disp) as i64).ok()
    }

    /// Offset in the page of the next instruction.
    pub(crate) fn next(&self) -> u16 {
        self.at + self.instruction.len() as u16
    }
}

/// A block, planned.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) mode: Mode,
    pub(crate) insns: Vec<Insn>,
    /// Registers that the block takes for itself, in the order in which it takes them: temporary
    /// 0 and 1, then those for shared checks. In windows, where few instructions need any, each
    /// takes them for itself and returns them.
    pub(crate) scratch: Vec<Reg>,
    /// Registers that the block before has taken and that this one leaves as they are, one bit
    /// each.
    pub(crate) carried: u16,
    /// Whether RCX is free for sequences that leave the flags alone.
    pub(crate) rcx_free: bool,
    pub(crate) groups: Vec<Group>,
    /// Whether the last instruction ends the block by its nature.
    pub(crate) is_closed: bool,
    /// Whether an arithmetic flag is live at the beginning.
    pub(crate) flags_live: bool,
}

impl Plan {
    /// Plans the block that begins at offset `at` of a page whose code bytes are `page` and which is
    /// at `linear`, where that matters to the mode. If its first instruction
    /// [`straddles`] the page's end, `page` has the first bytes of the next page too, and
    /// the block is that instruction. If it can't be decoded, the interpreter is left to deal with
    /// it.
    ///
    /// `before` are the registers that the block has taken from which this one is reached: to take
    /// the same ones makes the way from there to here shorter. `insns` is an empty list whose
    /// memory is used.
    pub(crate) fn new(
        classifier: &mut Classifier,
        page: &[u8],
        at: u16,
        linear: u64,
        mode: Mode,
        before: u16,
        mut insns: Vec<Insn>,
    ) -> Self {
        let bitness = if mode.is_32bit() { 32 } else { 64 };
        let code = &page[usize::from(at)..];
        let mut decoder = Decoder::with_ip(bitness, code, at.into(), DecoderOptions::NONE);
        let mut used = 1u16 << RSP;
        let mut is_closed = false;
        while !is_closed && insns.len() < INSTRUCTIONS_MAX {
            let offset = decoder.ip() as u16;
            if usize::from(offset) >= PAGE {
                break;
            }
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                break;
            }
            let insn = classifier.classify(instruction, offset, linear, mode);
            if (!(used | insn.uses)).count_ones() < SCRATCH_MIN && !insns.is_empty() {
                break;
            }
            used |= insn.uses;
            is_closed = insn.class.closes();
            insns.push(insn);
        }
        if insns.is_empty() {
            insns.push(Insn::interpreted(at));
            is_closed = true;
        }
        let mut plan = Self {
            mode,
            insns,
            scratch: Vec::new(),
            carried: 0,
            rcx_free: used & 1 << RCX == 0 && !mode.is_windowed(),
            groups: Vec::new(),
            is_closed,
            flags_live: true,
        };
        plan.find_live_flags(&page[..PAGE]);
        let unused = SCRATCH_ORDER.into_iter().filter(|r| used & 1 << r == 0);
        let is_before = |r: &Reg| before & 1 << r != 0;
        let others = unused.clone().filter(|r| !is_before(r));
        let free = unused.filter(is_before).chain(others);
        if plan.insns.iter().any(|i| i.needs_scratch(mode, linear))
            || !is_closed && !mode.is_windowed()
        {
            let room = free.clone().count().min(SCRATCH_MAX).saturating_sub(2);
            // Outside 64-bit code, addresses wrap within a range.
            if !mode.intersects(Mode::SINGLE | Mode::WINDOW) && !mode.is_32bit() {
                groups::share(&mut plan, room);
            }
            let taken = 2 + plan.groups.iter().map(|g| g.slot + 1).max().unwrap_or(0);
            plan.scratch = free.take(taken).collect();
            assert!(
                plan.scratch.len() >= 2,
                "no instruction uses that many registers"
            );
        } else {
            plan.rcx_free &= before & 1 << RCX != 0;
        }
        plan.carried = before & !used & !plan.scratch_mask();
        plan
    }

    /// Walks backwards from the block's exits, where every flag counts as live unless the code
    /// that follows in the same page says otherwise.
    fn find_live_flags(&mut self, page: &[u8]) {
        let (mode, end) = (self.mode, self.insns.last().map_or(0, |i| i.next()));
        let mut live = if self.is_closed {
            STATUS
        } else {
            live_at(page, end.into(), mode)
        };
        for insn in self.insns.iter_mut().rev() {
            if !insn.class.is_native() && !matches!(insn.class, Class::Jump(_)) {
                live = if loads_flags(&insn.instruction) {
                    0
                } else {
                    STATUS
                };
                insn.flags_live = live != 0;
                insn.live = live;
                continue;
            }
            if let Some(target) = insn.class.side_exit() {
                live |= live_at(page, target, mode);
            } else if let Class::Jump(target) = insn.class {
                live = live_at(page, target, mode);
            }
            live = live & !killed(&insn.instruction) | insn.instruction.rflags_read() & STATUS;
            insn.flags_live = live != 0;
            insn.live = live;
        }
        self.flags_live = live != 0;
    }

    /// Whether instruction `number` makes a check that it shares.
    pub(crate) fn is_leader(&self, number: usize) -> bool {
        let shared = self.insns[number].shared;
        shared.is_some_and(|shared| self.groups[shared.group].leader == number)
    }

    /// Registers whose values are not the guest's between two instructions, one bit each.
    pub(crate) fn scratch_mask(&self) -> u16 {
        if self.mode.is_windowed() {
            return 0;
        }
        let taken = self
            .scratch
            .iter()
            .fold(self.carried, |mask, r| mask | 1 << r);
        taken | u16::from(self.rcx_free) << RCX
    }

    /// Of which an instruction in a window has taken one for itself when it faults in its middle.
    pub(crate) fn held(&self) -> u16 {
        let first = self.scratch.first().filter(|_| self.mode.is_windowed());
        first.map_or(0, |register| 1 << register)
    }
}

/// Whether the instruction that begins with `code`, which is what the page has from there on, ends
/// in the next page.
pub(crate) fn straddles(code: &[u8], mode: Mode) -> bool {
    if code.len() >= INSTRUCTION_BYTES {
        return false;
    }
    let bitness = if mode.is_32bit() { 32 } else { 64 };
    let mut decoder = Decoder::with_ip(bitness, code, 0, DecoderOptions::NONE);
    decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
}

/// The arithmetic flags that are live at `target`, relative to the page, as far as a short look
/// tells. Only code of this very page may be looked at: another page can be another one next time.
pub(crate) fn live_at(page: &[u8], target: i64, mode: Mode) -> u32 {
    const FAR_ENOUGH: usize = 16;
    let Some(start) = usize::try_from(target).ok().filter(|t| *t < page.len()) else {
        return STATUS;
    };
    let bitness = if mode.is_32bit() { 32 } else { 64 };
    let mut decoder = Decoder::new(bitness, page, DecoderOptions::NONE);
    let mut open = STATUS;
    let mut position = start;
    for _ in 0..FAR_ENOUGH {
        // What follows an instruction, or a jump in the page.
        if decoder.set_position(position).is_err() || !decoder.can_decode() {
            break;
        }
        decoder.set_ip(position as u64);
        let instruction = decoder.decode();
        if instruction.is_invalid() || instruction.rflags_read() & open != 0 {
            break;
        }
        if loads_flags(&instruction) {
            return 0;
        }
        position = match instruction.flow_control() {
            FlowControl::Next if !is_for_interpreter(&instruction, mode) => decoder.position(),
            FlowControl::UnconditionalBranch => instruction.near_branch_target() as usize,
            _ => break,
        };
        open &= !killed(&instruction);
        if open == 0 {
            return 0;
        }
    }
    open
}

/// Whether `instruction` replaces all arithmetic flags by what memory or R11 holds.
fn loads_flags(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Sysretq | M::Sysret | M::Iretq | M::Iretd | M::Popfq | M::Popfd
    )
}

/// Whether the program may not execute `instruction` by itself.
fn is_for_interpreter(instruction: &Instruction, mode: Mode) -> bool {
    let is_inline = matches!(instruction.mnemonic(), iced_x86::Mnemonic::Swapgs);
    instruction.is_privileged() && (mode.contains(Mode::USER) || !is_inline)
}

/// The arithmetic flags that `instruction` overwrites whatever its operands are.
fn killed(instruction: &Instruction) -> u32 {
    use iced_x86::{Mnemonic as M, OpKind};
    let may_leave = match instruction.mnemonic() {
        // A count of 0 leaves the flags alone.
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr => {
            instruction.op1_kind() != OpKind::Immediate8 || instruction.immediate8() & 0x1f == 0
        }
        M::Shld | M::Shrd => {
            instruction.op2_kind() != OpKind::Immediate8 || instruction.immediate8() & 0x1f == 0
        }
        _ => instruction.has_rep_prefix() || instruction.has_repne_prefix(),
    };
    if may_leave {
        0
    } else {
        instruction.rflags_modified() & STATUS
    }
}
