//! Far jumps, calls and returns, call gates, and IRET (SDM vol. 3, 6.8 and 7.12; vol. 2 for each
//! instruction).
//!
//! Each transfer checks everything on a [`Stack`] of its own before it changes a register.

use super::task::Cause;
use crate::cpu::{Cpu, Result};
use crate::descriptors::{Located, null_segment};
use crate::op::{Handler, Op};
use crate::stack::{Stack, Width};
use iced_x86::{Code, Instruction, MemorySize, Mnemonic as M, OpKind};
use x86::{Descriptor, Rflags, Segment, SegmentRegister, Selector, SystemType, Vector};

/// A far pointer.
#[derive(Clone, Copy)]
struct Far {
    selector: Selector,
    offset: u64,
}

pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let kind = instruction.op0_kind();
    let is_direct = matches!(kind, OpKind::FarBranch16 | OpKind::FarBranch32);
    let pointer = instruction.op_count() > 0
        && kind == OpKind::Memory
        && matches!(
            instruction.memory_size(),
            MemorySize::SegPtr16 | MemorySize::SegPtr32 | MemorySize::SegPtr64
        );
    Some(match instruction.mnemonic() {
        M::Jmp | M::Call if is_direct || pointer => {
            op.extra = match (kind, instruction.memory_size()) {
                (OpKind::FarBranch16, _) => 2,
                (OpKind::FarBranch32, _) | (_, MemorySize::SegPtr32) => 4,
                (_, MemorySize::SegPtr16) => 2,
                _ => 8,
            };
            match (instruction.mnemonic(), is_direct) {
                (M::Jmp, true) => jump::<true>,
                (M::Jmp, false) => jump::<false>,
                (_, true) => call::<true>,
                (_, false) => call::<false>,
            }
        }
        M::Retf => {
            op.extra = match instruction.code() {
                Code::Retfw | Code::Retfw_imm16 => 2,
                Code::Retfd | Code::Retfd_imm16 => 4,
                _ => 8,
            };
            return_far
        }
        M::Iret => {
            op.extra = 2;
            return_from_interrupt
        }
        M::Iretd => {
            op.extra = 4;
            return_from_interrupt
        }
        M::Iretq => {
            op.extra = 8;
            return_from_interrupt
        }
        _ => return None,
    })
}

fn width(op: &Op) -> Width {
    match op.extra {
        2 => Width::Word,
        4 => Width::Double,
        _ => Width::Quad,
    }
}

fn target<const DIRECT: bool>(cpu: &mut Cpu, op: &Op) -> Result<Far> {
    if DIRECT {
        return Ok(Far {
            selector: Selector(op.aux as u16),
            offset: op.imm,
        });
    }
    let offset = match width(op) {
        Width::Word => cpu.load::<u16>(op)?.into(),
        Width::Double => cpu.load::<u32>(op)?.into(),
        Width::Quad => cpu.load(op)?,
    };
    let behind = cpu.address(op).wrapping_add(op.extra.into()) & u64::MAX >> op.address_cut;
    Ok(Far {
        selector: Selector(cpu.load_at(op.segment, behind)?),
        offset,
    })
}

fn jump<const DIRECT: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let far = target::<DIRECT>(cpu, op)?;
    if cpu.real_addressing() {
        return cpu.enter_real(far, None);
    }
    match cpu.far_target(far.selector)? {
        Target::Code(code) => {
            cpu.check_direct(&code)?;
            cpu.enter_same(code, far.offset, None)
        }
        Target::CallGate(gate) => {
            let (code, offset, _) = cpu.through_gate(&gate)?;
            if !code.descriptor.is_conforming() && code.descriptor.dpl() != cpu.cpl {
                return cpu.refuse(Vector::GeneralProtection, code.selector);
            }
            cpu.enter_same(code, offset, None)
        }
        Target::Task(tss) => {
            let next = cpu.next_rip(op);
            cpu.switch_task(&tss, Cause::Jump, next)
        }
    }
}

fn call<const DIRECT: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let far = target::<DIRECT>(cpu, op)?;
    let width = width(op);
    let back = cpu.next_rip(op);
    if cpu.real_addressing() {
        return cpu.enter_real(far, Some((width, back)));
    }
    match cpu.far_target(far.selector)? {
        Target::Code(code) => {
            cpu.check_direct(&code)?;
            cpu.enter_same(code, far.offset, Some((width, back)))
        }
        Target::CallGate(gate) => {
            let (code, offset, width) = cpu.through_gate(&gate)?;
            if code.descriptor.is_conforming() || code.descriptor.dpl() == cpu.cpl {
                return cpu.enter_same(code, offset, Some((width, back)));
            }
            cpu.enter_inner(code, offset, &gate, (width, back))
        }
        Target::Task(tss) => cpu.switch_task(&tss, Cause::Nested { resume: false }, back),
    }
}

/// What a far pointer's selector names.
enum Target {
    Code(Located),
    CallGate(Located),
    Task(Located),
}

/// Operand size and return address of a call.
type Return = (Width, u64);

impl Cpu {
    /// A far jump or call in real and virtual-8086 mode.
    fn enter_real(&mut self, far: Far, back: Option<Return>) -> Result {
        let mut stack = self.stack();
        let old = *self.segment(SegmentRegister::Cs);
        if let Some((width, rip)) = back {
            self.push_on(&mut stack, width, old.selector.0.into())?;
            self.push_on(&mut stack, width, rip)?;
        }
        let cs = self.real_code_segment(far.selector);
        if far.offset > u64::from(cs.limit) {
            return self.general_protection(0);
        }
        if back.is_some() {
            self.commit_stack(&stack);
        }
        self.rip = far.offset;
        self.set_real_code_segment(cs);
        Ok(())
    }

    /// CS with `selector` in real and virtual-8086 mode: limit and rights stay.
    fn real_code_segment(&self, selector: Selector) -> Segment {
        Segment {
            selector,
            base: u64::from(selector.0) << 4,
            ..*self.segment(SegmentRegister::Cs)
        }
    }

    fn set_real_code_segment(&mut self, cs: Segment) {
        self.segments[SegmentRegister::Cs as usize] = cs;
        self.segments_changed();
    }

    /// What `selector` names, if a far jump or call may go there as far as the selector itself
    /// and the gate say.
    fn far_target(&mut self, selector: Selector) -> Result<Target> {
        if selector.is_null() {
            return self.general_protection(0);
        }
        let located = self.descriptor(selector, Vector::GeneralProtection)?;
        let descriptor = located.descriptor;
        if descriptor.is_code() {
            return Ok(Target::Code(located));
        }
        let long = self.long_mode();
        let kind = match descriptor.system_type() {
            Some(SystemType::CallGate) => SystemType::CallGate,
            Some(SystemType::CallGate16) if !long => SystemType::CallGate,
            Some(SystemType::TaskGate) if !long => SystemType::TaskGate,
            Some(SystemType::Tss | SystemType::Tss16) if !long => SystemType::Tss,
            _ => return self.refuse(Vector::GeneralProtection, selector),
        };
        if descriptor.dpl() < self.cpl.max(selector.rpl()) {
            return self.refuse(Vector::GeneralProtection, selector);
        }
        if !descriptor.is_present() {
            return self.refuse(Vector::SegmentNotPresent, selector);
        }
        match kind {
            SystemType::CallGate => Ok(Target::CallGate(located)),
            SystemType::TaskGate => self.task_of_gate(descriptor.gate_selector()),
            _ => Ok(Target::Task(located)),
        }
    }

    fn task_of_gate(&mut self, selector: Selector) -> Result<Target> {
        if selector.is_local() {
            return self.refuse(Vector::GeneralProtection, selector);
        }
        let tss = self.descriptor(selector, Vector::GeneralProtection)?;
        if !matches!(
            tss.descriptor.system_type(),
            Some(SystemType::Tss | SystemType::Tss16)
        ) {
            return self.refuse(Vector::GeneralProtection, selector);
        }
        if !tss.descriptor.is_present() {
            return self.refuse(Vector::SegmentNotPresent, selector);
        }
        Ok(Target::Task(tss))
    }

    /// Whether L and D of a code descriptor contradict each other.
    fn has_two_sizes(&self, descriptor: Descriptor) -> bool {
        self.long_mode() && descriptor.is_long() && descriptor.is_big()
    }

    /// Privilege checks of a code segment that is named directly.
    fn check_direct(&mut self, code: &Located) -> Result {
        let descriptor = code.descriptor;
        let refused = if descriptor.is_conforming() {
            descriptor.dpl() > self.cpl
        } else {
            code.selector.rpl() > self.cpl || descriptor.dpl() != self.cpl
        };
        if refused || self.has_two_sizes(descriptor) {
            return self.refuse(Vector::GeneralProtection, code.selector);
        }
        if !descriptor.is_present() {
            return self.refuse(Vector::SegmentNotPresent, code.selector);
        }
        Ok(())
    }

    /// The code segment, offset and width behind a call gate.
    fn through_gate(&mut self, gate: &Located) -> Result<(Located, u64, Width)> {
        let long = self.long_mode();
        let is_wide = gate.descriptor.kind() & 8 != 0;
        let mut offset = u64::from(gate.descriptor.gate_offset());
        if long {
            let upper = self.upper_half(gate, Vector::GeneralProtection)?;
            offset |= upper << 32;
        } else if !is_wide {
            offset &= 0xffff;
        }
        let selector = gate.descriptor.gate_selector();
        if selector.is_null() {
            return self.general_protection(0);
        }
        let code = self.descriptor(selector, Vector::GeneralProtection)?;
        let descriptor = code.descriptor;
        let wrong_size = long && (!descriptor.is_long() || descriptor.is_big());
        if !descriptor.is_code() || descriptor.dpl() > self.cpl || wrong_size {
            return self.refuse(Vector::GeneralProtection, selector);
        }
        if !descriptor.is_present() {
            return self.refuse(Vector::SegmentNotPresent, selector);
        }
        let width = match (long, is_wide) {
            (true, _) => Width::Quad,
            (false, true) => Width::Double,
            (false, false) => Width::Word,
        };
        Ok((code, offset, width))
    }

    /// Goes to `code` without a change of CPL; a call pushes where to return.
    fn enter_same(&mut self, mut code: Located, offset: u64, back: Option<Return>) -> Result {
        let mut stack = self.stack();
        if let Some((width, rip)) = back {
            let cs = self.segment(SegmentRegister::Cs).selector.0;
            self.push_on(&mut stack, width, cs.into())?;
            self.push_on(&mut stack, width, rip)?;
        }
        if !self.may_run_at(&code.segment(), offset) {
            return self.general_protection(0);
        }
        self.mark_accessed(&mut code)?;
        if back.is_some() {
            self.commit_stack(&stack);
        }
        self.rip = offset;
        self.set_code_segment(code.segment(), self.cpl);
        Ok(())
    }

    /// Calls more privileged code through a gate: its stack comes from the TSS.
    fn enter_inner(
        &mut self,
        mut code: Located,
        offset: u64,
        gate: &Located,
        (width, back): Return,
    ) -> Result {
        let cpl = code.descriptor.dpl();
        let old = self.stack();
        let (mut stack, ss) = if self.long_mode() {
            let pointer = self.tss_pointer(u64::from(cpl) * 8 + 4)?;
            (
                Stack::long(pointer, cpl),
                null_segment(Selector(cpl.into()), cpl),
            )
        } else {
            let (ss, pointer) = self.tss_stack(cpl)?;
            (Stack::new(ss, pointer, cpl, ss.selector.error_code()), ss)
        };
        let old_ss = self.segment(SegmentRegister::Ss).selector.0;
        self.push_on(&mut stack, width, old_ss.into())?;
        self.push_on(&mut stack, width, self.gpr[4])?;
        if !self.long_mode() {
            let count = gate.descriptor.0 >> 32 & 31;
            for parameter in (0..count).rev() {
                let value = self.peek_stack(&old, width, parameter * width.bytes())?;
                self.push_on(&mut stack, width, value)?;
            }
        }
        let cs = self.segment(SegmentRegister::Cs).selector.0;
        self.push_on(&mut stack, width, cs.into())?;
        self.push_on(&mut stack, width, back)?;
        if !self.may_run_at(&code.segment(), offset) {
            return self.general_protection(0);
        }
        self.mark_accessed(&mut code)?;
        self.segments[SegmentRegister::Ss as usize] = ss;
        self.commit_stack(&stack);
        self.rip = offset;
        self.set_code_segment(code.segment(), cpl);
        Ok(())
    }

    /// The code segment that a far return or IRET goes to.
    fn return_target(&mut self, selector: Selector) -> Result<Located> {
        if selector.is_null() {
            return self.general_protection(0);
        }
        let code = self.descriptor(selector, Vector::GeneralProtection)?;
        let descriptor = code.descriptor;
        let rpl = selector.rpl();
        let wrong_level = if descriptor.is_conforming() {
            descriptor.dpl() > rpl
        } else {
            descriptor.dpl() != rpl
        };
        if !descriptor.is_code() || rpl < self.cpl || wrong_level || self.has_two_sizes(descriptor)
        {
            return self.refuse(Vector::GeneralProtection, selector);
        }
        if !descriptor.is_present() {
            return self.refuse(Vector::SegmentNotPresent, selector);
        }
        Ok(code)
    }

    /// SS that a return to `code` pops.
    fn return_stack(&mut self, selector: Selector, code: &Located) -> Result<Segment> {
        let cpl = code.selector.rpl();
        let to_64bit = self.long_mode() && code.descriptor.is_long();
        if selector.is_null() && to_64bit && cpl < 3 && selector.rpl() == cpl {
            return Ok(null_segment(selector, cpl));
        }
        self.stack_segment_for(selector, cpl, Vector::GeneralProtection)
    }

    /// Sets RSP to a popped value, by the width of the stack that it is for.
    fn set_returned_pointer(&mut self, ss: &Segment, to_64bit: bool, pointer: u64, width: Width) {
        self.gpr[4] = if to_64bit {
            pointer
        } else if ss.is_big() {
            pointer & 0xffff_ffff
        } else {
            let upper = if width == Width::Word {
                self.gpr[4]
            } else {
                pointer
            };
            upper & 0xffff_0000 | pointer & 0xffff
        };
    }
}

fn return_far(cpu: &mut Cpu, op: &Op) -> Result {
    let width = width(op);
    let mut stack = cpu.stack();
    let offset = cpu.pop_off(&mut stack, width)?;
    let selector = Selector(cpu.pop_off(&mut stack, width)? as u16);
    if cpu.real_addressing() {
        let cs = cpu.real_code_segment(selector);
        if offset > u64::from(cs.limit) {
            return cpu.general_protection(0);
        }
        cpu.drop_off(&mut stack, op.imm);
        cpu.commit_stack(&stack);
        cpu.rip = offset;
        cpu.set_real_code_segment(cs);
        return Ok(());
    }
    let mut code = cpu.return_target(selector)?;
    let cpl = selector.rpl();
    cpu.drop_off(&mut stack, op.imm);
    let outer = if cpl > cpu.cpl {
        let pointer = cpu.pop_off(&mut stack, width)?;
        let ss = Selector(cpu.pop_off(&mut stack, width)? as u16);
        Some((cpu.return_stack(ss, &code)?, pointer))
    } else {
        None
    };
    if !cpu.may_run_at(&code.segment(), offset) {
        return cpu.general_protection(0);
    }
    cpu.mark_accessed(&mut code)?;
    match outer {
        None => cpu.commit_stack(&stack),
        Some((ss, pointer)) => {
            let to_64bit = cpu.long_mode() && code.descriptor.is_long();
            let mut to = Stack::new(ss, pointer, cpl, 0);
            if to_64bit {
                to = Stack::long(pointer, cpl);
            }
            cpu.drop_off(&mut to, op.imm);
            cpu.set_returned_pointer(&ss, to_64bit, pointer, width);
            cpu.commit_stack(&to);
            cpu.segments[SegmentRegister::Ss as usize] = ss;
            cpu.drop_privileged_segments(cpl);
        }
    }
    cpu.rip = offset;
    cpu.set_code_segment(code.segment(), cpl);
    Ok(())
}

fn return_from_interrupt(cpu: &mut Cpu, op: &Op) -> Result {
    // Even an IRET that faults unblocks NMIs (SDM vol. 3, 7.7.1).
    cpu.nmi_blocked = false;
    cpu.attend();
    let width = width(op);
    if !cpu.protected_mode() {
        return iret_real(cpu, width);
    }
    let flags = cpu.flags.get();
    if flags.contains(Rflags::VM) {
        if flags.iopl() < 3 {
            return cpu.general_protection(0);
        }
        return iret_real(cpu, width);
    }
    if flags.contains(Rflags::NT) {
        return iret_task(cpu, op);
    }
    iret_protected(cpu, width)
}

/// IRET in real mode, and in virtual-8086 mode with IOPL 3.
fn iret_real(cpu: &mut Cpu, width: Width) -> Result {
    let mut stack = cpu.stack();
    let offset = cpu.pop_off(&mut stack, width)?;
    let selector = Selector(cpu.pop_off(&mut stack, width)? as u16);
    let flags = cpu.pop_off(&mut stack, width)?;
    let cs = cpu.real_code_segment(selector);
    if offset > u64::from(cs.limit) {
        return cpu.general_protection(0);
    }
    let mut writable = Rflags::from_bits_retain(0x0024_7fd5) | Rflags::RF;
    if cpu.virtual_8086() {
        writable -= Rflags::IOPL;
    }
    cpu.set_flags(Rflags::from_bits_retain(flags), writable, width);
    cpu.commit_stack(&stack);
    cpu.rip = offset;
    cpu.set_real_code_segment(cs);
    Ok(())
}

/// IRET with NT: back to the task that is linked.
fn iret_task(cpu: &mut Cpu, op: &Op) -> Result {
    if cpu.long_mode() {
        return cpu.general_protection(0);
    }
    let link = Selector(cpu.load_system(cpu.tr.base)?);
    if link.is_local() {
        return cpu.refuse(Vector::InvalidTss, link);
    }
    let tss = cpu.descriptor(link, Vector::InvalidTss)?;
    if !matches!(
        tss.descriptor.system_type(),
        Some(SystemType::BusyTss | SystemType::BusyTss16)
    ) {
        return cpu.refuse(Vector::InvalidTss, link);
    }
    if !tss.descriptor.is_present() {
        return cpu.refuse(Vector::SegmentNotPresent, link);
    }
    let next = cpu.next_rip(op);
    cpu.switch_task(&tss, Cause::Return, next)
}

fn iret_protected(cpu: &mut Cpu, width: Width) -> Result {
    let mut stack = cpu.stack();
    let offset = cpu.pop_off(&mut stack, width)?;
    let selector = Selector(cpu.pop_off(&mut stack, width)? as u16);
    let flags = Rflags::from_bits_retain(cpu.pop_off(&mut stack, width)?);
    let to_v86 = flags.contains(Rflags::VM) && width == Width::Double && cpu.cpl == 0;
    if to_v86 && !cpu.long_mode() {
        return iret_to_v86(cpu, &mut stack, Far { selector, offset }, flags);
    }
    let mut code = cpu.return_target(selector)?;
    let cpl = selector.rpl();
    let from_64bit = cpu.is_64bit();
    let outer = if from_64bit || cpl > cpu.cpl {
        let pointer = cpu.pop_off(&mut stack, width)?;
        let ss = Selector(cpu.pop_off(&mut stack, width)? as u16);
        Some((cpu.return_stack(ss, &code)?, pointer))
    } else {
        None
    };
    if !cpu.may_run_at(&code.segment(), offset) {
        return cpu.general_protection(0);
    }
    cpu.mark_accessed(&mut code)?;
    let mut writable = Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT;
    writable |= Rflags::RF | Rflags::AC | Rflags::ID;
    if cpu.cpl <= cpu.flags.system().iopl() {
        writable |= Rflags::IF;
    }
    if cpu.cpl == 0 {
        writable |= Rflags::IOPL | Rflags::VIF | Rflags::VIP;
    }
    cpu.set_flags(flags, writable, width);
    match outer {
        None => cpu.commit_stack(&stack),
        Some((ss, pointer)) => {
            let to_64bit = cpu.long_mode() && code.descriptor.is_long();
            cpu.set_returned_pointer(&ss, to_64bit, pointer, width);
            cpu.segments[SegmentRegister::Ss as usize] = ss;
            if cpl > cpu.cpl {
                cpu.drop_privileged_segments(cpl);
            }
        }
    }
    cpu.rip = offset;
    cpu.set_code_segment(code.segment(), cpl);
    Ok(())
}

/// IRET from CPL 0 into virtual-8086 mode.
fn iret_to_v86(cpu: &mut Cpu, stack: &mut Stack, far: Far, flags: Rflags) -> Result {
    let pointer = cpu.pop_off(stack, Width::Double)?;
    let mut selectors = [0; 5];
    for selector in &mut selectors {
        *selector = cpu.pop_off(stack, Width::Double)? as u16;
    }
    if far.offset > 0xffff {
        return cpu.general_protection(0);
    }
    let [ss, es, ds, fs, gs] = selectors;
    let all = [es, far.selector.0, ss, ds, fs, gs];
    cpu.segments = all.map(|selector| Segment::real_mode(selector, 0xf3));
    cpu.cpl = 3;
    cpu.gpr[4] = pointer;
    cpu.rip = far.offset;
    let writable = Rflags::from_bits_retain(0x003f_7fd5);
    cpu.set_flags(flags, writable, Width::Double);
    cpu.segments_changed();
    Ok(())
}
