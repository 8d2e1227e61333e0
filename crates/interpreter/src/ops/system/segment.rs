//! Segment registers: loads with all their checks, and the instructions that ask about
//! descriptors (SDM vol. 3, 6.4 to 6.10).

use super::need_protected_mode;
use crate::cpu::{Cpu, Result};
use crate::descriptors::null_segment;
use crate::op::{Handler, Op};
use crate::stack::Width;
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};
use x86::{Cr4, Segment, SegmentRegister, Selector, SystemType, Vector};

/// Segment registers by encoding.
const REGISTERS: [SegmentRegister; 6] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

fn number(register: Register) -> u8 {
    register.number() as u8
}

pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    Some(match instruction.mnemonic() {
        M::Mov if first.is_segment_register() => {
            op.extra = number(first);
            match instruction.op1_kind() {
                OpKind::Register => mov_to_segment::<false>,
                _ => mov_to_segment::<true>,
            }
        }
        M::Mov if second.is_segment_register() => {
            op.extra = number(second);
            match (instruction.op0_kind(), first.size()) {
                (OpKind::Register, 2) => mov_from_segment_word,
                (OpKind::Register, _) => mov_from_segment_wide,
                _ => store_segment,
            }
        }
        M::Push if first.is_segment_register() => {
            op.extra = number(first);
            push_segment(instruction)
        }
        M::Pop if first.is_segment_register() => {
            op.extra = number(first);
            op.aux = pop_width(instruction);
            pop_segment
        }
        M::Les | M::Lds | M::Lss | M::Lfs | M::Lgs => {
            op.extra = match instruction.mnemonic() {
                M::Les => 0,
                M::Lss => 2,
                M::Lds => 3,
                M::Lfs => 4,
                _ => 5,
            };
            match first.size() {
                2 => load_far::<u16>,
                4 => load_far::<u32>,
                _ => load_far::<u64>,
            }
        }
        M::Verr => sized(instruction, verify::<false, false>, verify::<false, true>),
        M::Verw => sized(instruction, verify::<true, false>, verify::<true, true>),
        M::Arpl => sized(instruction, arpl::<false>, arpl::<true>),
        M::Lar | M::Lsl => {
            op.extra = first.size() as u8;
            op.aux = u32::from(instruction.op1_kind() == OpKind::Memory);
            if instruction.mnemonic() == M::Lar {
                lar
            } else {
                lsl
            }
        }
        M::Swapgs => swapgs,
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => {
            op.aux = first.size() as u32;
            op.extra = match instruction.mnemonic() {
                M::Rdfsbase | M::Wrfsbase => 4,
                _ => 5,
            };
            match instruction.mnemonic() {
                M::Rdfsbase | M::Rdgsbase => read_base,
                _ => write_base,
            }
        }
        _ => return None,
    })
}

fn sized(instruction: &Instruction, register: Handler, memory: Handler) -> Handler {
    match instruction.op0_kind() {
        OpKind::Register => register,
        _ => memory,
    }
}

fn push_segment(instruction: &Instruction) -> Handler {
    match instruction.code() {
        Code::Pushw_ES
        | Code::Pushw_CS
        | Code::Pushw_SS
        | Code::Pushw_DS
        | Code::Pushw_FS
        | Code::Pushw_GS => push_selector::<u16>,
        Code::Pushq_FS | Code::Pushq_GS => push_selector::<u64>,
        _ => push_selector::<u32>,
    }
}

fn pop_width(instruction: &Instruction) -> u32 {
    match instruction.code() {
        Code::Popw_ES | Code::Popw_SS | Code::Popw_DS | Code::Popw_FS | Code::Popw_GS => 2,
        Code::Popq_FS | Code::Popq_GS => 8,
        _ => 4,
    }
}

/// A 16-bit operand that is a register or in memory.
fn operand<const MEMORY: bool>(cpu: &mut Cpu, op: &Op, slot: u8) -> Result<u16> {
    if MEMORY {
        cpu.load(op)
    } else {
        Ok(cpu.reg(slot))
    }
}

fn mov_to_segment<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let selector = Selector(operand::<MEMORY>(cpu, op, op.r0)?);
    let register = REGISTERS[usize::from(op.extra)];
    if register == SegmentRegister::Cs {
        return cpu.undefined();
    }
    cpu.load_segment(register, selector)?;
    cpu.shadow_stack_load(register);
    Ok(())
}

fn selector(cpu: &Cpu, op: &Op) -> u16 {
    cpu.segments[usize::from(op.extra)].selector.0
}

fn mov_from_segment_word(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.set_reg(op.r0, selector(cpu, op));
    Ok(())
}

fn mov_from_segment_wide(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.set_reg(op.r0, u64::from(selector(cpu, op)));
    Ok(())
}

fn store_segment(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.store(op, selector(cpu, op))
}

fn push_selector<T: crate::int::Int>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.push(T::of(selector(cpu, op).into()))
}

fn pop_segment(cpu: &mut Cpu, op: &Op) -> Result {
    let register = REGISTERS[usize::from(op.extra)];
    let width = match op.aux {
        2 => Width::Word,
        4 => Width::Double,
        _ => Width::Quad,
    };
    let mut stack = cpu.stack();
    // Only the selector is read, whatever the operand size.
    let selector = cpu.peek_stack(&stack, Width::Word, 0)?;
    cpu.drop_off(&mut stack, width.bytes());
    // With the width of the stack that was popped, not of the one that SS selects now.
    let before = cpu.gpr[4];
    cpu.commit_stack(&stack);
    if let Err(raised) = cpu.load_segment(register, Selector(selector as u16)) {
        cpu.gpr[4] = before;
        return Err(raised);
    }
    cpu.shadow_stack_load(register);
    Ok(())
}

/// LDS and its family: a far pointer.
fn load_far<T: crate::int::Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let offset: T = cpu.load(op)?;
    let behind = cpu.address(op).wrapping_add(T::SIZE as u64) & u64::MAX >> op.address_cut;
    let selector: u16 = cpu.load_at(op.segment, behind)?;
    cpu.load_segment(REGISTERS[usize::from(op.extra)], Selector(selector))?;
    cpu.set_reg(op.r0, offset);
    Ok(())
}

/// VERR and VERW.
fn verify<const WRITE: bool, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    need_protected_mode(cpu)?;
    let selector = Selector(operand::<MEMORY>(cpu, op, op.r0)?);
    let found = cpu.visible_descriptor(selector)?;
    let accessible = found.is_some_and(|d| {
        if WRITE {
            d.is_writable_data()
        } else {
            d.is_readable()
        }
    });
    cpu.flags.set_zero(accessible);
    Ok(())
}

fn lar(cpu: &mut Cpu, op: &Op) -> Result {
    use SystemType as T;
    const RIGHTS: u64 = 0x00f0_ff00;
    need_protected_mode(cpu)?;
    let found = cpu.described(op)?;
    let long = cpu.long_mode();
    let found = found.filter(|d| match d.system_type() {
        None => d.is_segment(),
        Some(T::Tss | T::Ldt | T::BusyTss | T::CallGate) => true,
        Some(T::Tss16 | T::BusyTss16 | T::CallGate16 | T::TaskGate) => !long,
        Some(_) => false,
    });
    cpu.flags.set_zero(found.is_some());
    if let Some(descriptor) = found {
        cpu.set_sized(op, descriptor.0 >> 32 & RIGHTS);
    }
    Ok(())
}

fn lsl(cpu: &mut Cpu, op: &Op) -> Result {
    use SystemType as T;
    need_protected_mode(cpu)?;
    let found = cpu.described(op)?;
    let long = cpu.long_mode();
    let found = found.filter(|d| match d.system_type() {
        None => d.is_segment(),
        Some(T::Tss | T::Ldt | T::BusyTss) => true,
        Some(T::Tss16 | T::BusyTss16) => !long,
        Some(_) => false,
    });
    cpu.flags.set_zero(found.is_some());
    if let Some(descriptor) = found {
        cpu.set_sized(op, descriptor.limit().into());
    }
    Ok(())
}

fn arpl<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    need_protected_mode(cpu)?;
    let adjust = |to: u16, from: u16| {
        let (to, from) = (Selector(to), Selector(from));
        if to.rpl() < from.rpl() {
            to.with_rpl(from.rpl()).0
        } else {
            to.0
        }
    };
    let (old, new) = if MEMORY {
        let from: u16 = cpu.reg(op.r0);
        let place = cpu.place::<u16>(op)?;
        cpu.update(place, false, |to| adjust(to, from))
    } else {
        let (to, from): (u16, u16) = (cpu.reg(op.r0), cpu.reg(op.r1));
        let new = adjust(to, from);
        cpu.set_reg(op.r0, new);
        (to, new)
    };
    cpu.flags.set_zero(old != new);
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _: &Op) -> Result {
    if !cpu.is_64bit() {
        return cpu.undefined();
    }
    if cpu.cpl != 0 {
        return cpu.general_protection(0);
    }
    let base = std::mem::replace(&mut cpu.syscall.kernel_gs_base, cpu.bases[5]);
    cpu.set_base(SegmentRegister::Gs, base);
    Ok(())
}

/// RDFSBASE and RDGSBASE.
fn read_base(cpu: &mut Cpu, op: &Op) -> Result {
    if !cpu.is_64bit() || !cpu.cr4.contains(Cr4::FSGSBASE) {
        return cpu.undefined();
    }
    let base = cpu.bases[usize::from(op.extra)];
    if op.aux == 4 {
        cpu.set_reg(op.r0, base as u32);
    } else {
        cpu.set_reg(op.r0, base);
    }
    Ok(())
}

/// WRFSBASE and WRGSBASE.
fn write_base(cpu: &mut Cpu, op: &Op) -> Result {
    if !cpu.is_64bit() || !cpu.cr4.contains(Cr4::FSGSBASE) {
        return cpu.undefined();
    }
    let mut base: u64 = cpu.reg(op.r0);
    if op.aux == 4 {
        base &= 0xffff_ffff;
    }
    if !cpu.canonical(base) {
        return cpu.general_protection(0);
    }
    cpu.set_base(REGISTERS[usize::from(op.extra)], base);
    Ok(())
}

impl Cpu {
    /// Sets a segment's base and nothing else.
    pub(crate) fn set_base(&mut self, register: SegmentRegister, base: u64) {
        self.segments[register as usize].base = base;
        self.bases[register as usize] = base;
    }

    /// MOV and POP to SS hold interrupts and debug traps off until after the next instruction
    /// (SDM vol. 3, 7.8.3). LSS does not.
    fn shadow_stack_load(&mut self, register: SegmentRegister) {
        if register == SegmentRegister::Ss {
            self.ss_shadow = true;
            self.attend();
        }
    }

    /// Loads a data or stack segment register, in every mode.
    pub(crate) fn load_segment(&mut self, register: SegmentRegister, selector: Selector) -> Result {
        let segment = if self.virtual_8086() {
            Segment::real_mode(selector.0, 0xf3)
        } else if !self.protected_mode() {
            // Limit and rights stay: what is set in protected mode outlives it.
            Segment {
                selector,
                base: u64::from(selector.0) << 4,
                unusable: false,
                ..*self.segment(register)
            }
        } else if register == SegmentRegister::Ss {
            self.stack_segment_of(selector)?
        } else {
            self.data_segment_of(selector)?
        };
        self.segments[register as usize] = segment;
        self.bases[register as usize] = segment.base;
        match register {
            SegmentRegister::Ss => self.segments_changed(),
            SegmentRegister::Fs | SegmentRegister::Gs => {}
            _ => self.update_derived(),
        }
        Ok(())
    }

    /// SS loaded with `selector` in protected mode.
    fn stack_segment_of(&mut self, selector: Selector) -> Result<Segment> {
        if selector.is_null() && self.is_64bit() && self.cpl < 3 && selector.rpl() == self.cpl {
            return Ok(null_segment(selector, self.cpl));
        }
        self.stack_segment_for(selector, self.cpl, Vector::GeneralProtection)
    }

    /// ES, DS, FS or GS loaded with `selector` in protected mode.
    fn data_segment_of(&mut self, selector: Selector) -> Result<Segment> {
        if selector.is_null() {
            return Ok(null_segment(selector, self.cpl));
        }
        let mut located = self.descriptor(selector, Vector::GeneralProtection)?;
        let descriptor = located.descriptor;
        let privileged = descriptor.dpl() < self.cpl.max(selector.rpl());
        if !descriptor.is_readable() || privileged && !descriptor.is_conforming() {
            return self.refuse(Vector::GeneralProtection, selector);
        }
        if !descriptor.is_present() {
            return self.refuse(Vector::SegmentNotPresent, selector);
        }
        self.mark_accessed(&mut located)?;
        Ok(located.segment())
    }

    /// The descriptor of `selector`, if software of this CPL and RPL may see it: LAR, LSL, VERR
    /// and VERW.
    fn visible_descriptor(&mut self, selector: Selector) -> Result<Option<x86::Descriptor>> {
        if selector.is_null() {
            return Ok(None);
        }
        let level = self.cpl.max(selector.rpl());
        let found = self.find_descriptor(selector)?.map(|l| l.descriptor);
        Ok(found.filter(|d| d.is_conforming() || d.dpl() >= level))
    }

    /// The descriptor that LAR or LSL asks about.
    fn described(&mut self, op: &Op) -> Result<Option<x86::Descriptor>> {
        let selector = if op.aux != 0 {
            self.load(op)?
        } else {
            self.reg(op.r1)
        };
        self.visible_descriptor(Selector(selector))
    }

    /// Writes the result of LAR or LSL.
    fn set_sized(&mut self, op: &Op, value: u64) {
        match op.extra {
            2 => self.set_reg(op.r0, value as u16),
            _ => self.set_reg(op.r0, value),
        }
    }
}
