//! Delivery of exceptions and interrupts through the interrupt vector table of real mode and the
//! IDT (SDM vol. 3, chapter 7; vol. 2, "INT n/INTO/INT3/INT1").
//!
//! Delivery computes everything that can fault first and changes registers last: when it faults,
//! they are as before. What was pushed stays in memory, as on hardware.

use crate::cpu::{Cpu, Raised, Result};
use crate::descriptors::null_segment;
use crate::ops::Cause;
use crate::stack::{Stack, Width};
use engine::Kinds;
use x86::{
    Descriptor, Dr6, Dr7, Exception, Rflags, Segment, SegmentRegister, Selector, SystemType, Vector,
};

/// Something that is delivered through the IDT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// An exception of the instruction at RIP (for traps: of the one before).
    Exception(Exception),
    /// An interrupt from the APIC or the PIC.
    Interrupt(u8),
    Nmi,
    /// INT n, INT3 or INTO: RIP is already that of the next instruction.
    Software(u8),
    /// INT1: as if hardware had raised #DB, but DR6 tells nothing.
    InterruptOne,
}

/// An exception while a double fault was delivered. The text tells the story.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TripleFault(String);

/// Events that are remembered for the report of a triple fault.
const STORY: usize = 6;

impl Event {
    fn vector(&self) -> u8 {
        match self {
            Self::Exception(exception) => exception.vector as u8,
            Self::Interrupt(vector) | Self::Software(vector) => *vector,
            Self::Nmi => Vector::Nmi as u8,
            Self::InterruptOne => Vector::Debug as u8,
        }
    }

    fn error_code(&self) -> Option<u32> {
        match self {
            Self::Exception(e) if e.vector.has_error_code() => Some(e.error_code),
            _ => None,
        }
    }

    /// Whether a gate's DPL bounds who may cause it.
    fn is_software(&self) -> bool {
        matches!(self, Self::Software(_))
    }

    /// EXT of the error codes of exceptions that delivery itself raises: not for INT n, INT3 and
    /// INTO (SDM vol. 3, 7.13).
    fn is_external(&self) -> bool {
        !self.is_software()
    }

    /// Whether RF is pushed as 1: faults are restarted, and must not hit an instruction
    /// breakpoint again. That of a breakpoint itself is pushed as it is (SDM vol. 3, 18.3.1.1).
    fn sets_resume_flag(&self) -> bool {
        let Self::Exception(exception) = self else {
            return false;
        };
        match exception.vector {
            Vector::Debug => exception.payload & Dr6::BD.bits() != 0,
            Vector::DoubleFault | Vector::MachineCheck | Vector::Breakpoint | Vector::Overflow => {
                false
            }
            _ => true,
        }
    }
}

/// The class of an event for what follows from a second one (SDM vol. 3, table 7-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Class {
    fn of(event: &Event) -> Self {
        match event {
            Event::Exception(e) if e.vector == Vector::PageFault => Self::PageFault,
            Event::Exception(e) if e.vector == Vector::DoubleFault => Self::DoubleFault,
            Event::Exception(e) if e.vector.is_contributory() => Self::Contributory,
            _ => Self::Benign,
        }
    }
}

/// What becomes of an exception that was raised while another event was delivered.
#[derive(Debug, PartialEq, Eq)]
enum Escalation {
    /// It is delivered; the first event is dropped, and is raised anew if it was a fault.
    Serial,
    Double,
    Triple,
}

/// SDM vol. 3, table 7-5.
fn escalation(first: Class, second: Class) -> Escalation {
    match (first, second) {
        (_, Class::Benign) | (Class::Benign, _) => Escalation::Serial,
        (Class::DoubleFault, _) => Escalation::Triple,
        (Class::Contributory, Class::PageFault) => Escalation::Serial,
        _ => Escalation::Double,
    }
}

/// A gate of the IDT that was checked.
struct Gate {
    selector: Selector,
    offset: u64,
    width: Width,
    /// An interrupt gate: IF is cleared.
    masks: bool,
    /// Interrupt-stack-table index in long mode, or 0.
    ist: u8,
}

impl Cpu {
    /// Delivers `event`; exceptions on the way become double and triple faults.
    pub(crate) fn deliver(&mut self, event: Event) -> std::result::Result<(), TripleFault> {
        let mut event = event;
        let mut story = [None; STORY];
        self.attend();
        loop {
            self.announce(&event);
            story.rotate_left(1);
            story[STORY - 1] = Some(event);
            let Err(Raised) = self.deliver_once(&event) else {
                return Ok(());
            };
            let second = self.exception.take().expect("an exception was recorded");
            let second = Event::Exception(second);
            event = match escalation(Class::of(&event), Class::of(&second)) {
                Escalation::Serial => second,
                Escalation::Double => {
                    story.rotate_left(1);
                    story[STORY - 1] = Some(second);
                    Event::Exception(Exception::new(Vector::DoubleFault))
                }
                Escalation::Triple => {
                    return Err(TripleFault(self.tell_triple_fault(&story, &second)));
                }
            };
        }
    }

    /// INT n, INT3, INTO or INT1, with RIP at the next instruction.
    pub(crate) fn software_interrupt(&mut self, event: Event) -> Result {
        self.attend();
        self.announce(&event);
        self.deliver_once(&event)?;
        self.skip_step_trap = true;
        Ok(())
    }

    fn announce(&mut self, event: &Event) {
        let rip = self.rip;
        match *event {
            Event::Exception(exception) => {
                self.counters.exceptions += 1;
                self.emit(Kinds::EXCEPTIONS, || engine::Event::Exception {
                    exception,
                    rip,
                });
            }
            Event::Nmi => self.emit(Kinds::INTERRUPTS, || engine::Event::Signal("NMI")),
            Event::Interrupt(vector) | Event::Software(vector) => {
                self.emit(Kinds::INTERRUPTS, || engine::Event::Interrupt {
                    vector,
                    rip,
                });
            }
            Event::InterruptOne => {
                self.emit(Kinds::INTERRUPTS, || engine::Event::Interrupt {
                    vector: 1,
                    rip,
                });
            }
        }
    }

    /// Delivers `event`, or raises what its delivery raises.
    fn deliver_once(&mut self, event: &Event) -> Result {
        self.note_payload(event);
        let delivered = if !self.protected_mode() {
            self.deliver_real(event)
        } else {
            self.deliver_protected(event)
        };
        match delivered {
            Ok(()) => {
                self.sti_shadow = false;
                self.ss_shadow = false;
                if *event == Event::Nmi {
                    self.nmi_blocked = true;
                }
                Ok(())
            }
            Err(Raised) => {
                self.mark_external(event);
                Err(Raised)
            }
        }
    }

    /// CR2 and DR6: set whether or not delivery succeeds.
    fn note_payload(&mut self, event: &Event) {
        let Event::Exception(exception) = event else {
            return;
        };
        match exception.vector {
            Vector::PageFault => self.cr2 = exception.payload,
            Vector::Debug => {
                let kept = self.dr6 & !Dr6::B.bits();
                self.dr6 = kept | Dr6::FIXED.bits() | exception.payload;
                self.dr7 &= !Dr7::GD.bits();
                self.update_view();
            }
            _ => {}
        }
    }

    /// Sets EXT in the error code of what delivery raised (SDM vol. 3, 7.13).
    fn mark_external(&mut self, event: &Event) {
        use Vector as V;
        if let Some(exception) = &mut self.exception
            && matches!(
                exception.vector,
                V::InvalidTss | V::SegmentNotPresent | V::StackFault | V::GeneralProtection
            )
        {
            exception.error_code |= u32::from(event.is_external());
        }
    }

    /// Through the interrupt vector table.
    fn deliver_real(&mut self, event: &Event) -> Result {
        let offset = u64::from(event.vector()) * 4;
        if offset + 3 > u64::from(self.idtr.limit) {
            return self.general_protection(0);
        }
        let target: u32 = self.load_system(self.idtr.base.wrapping_add(offset))?;
        let (selector, rip) = ((target >> 16) as u16, u64::from(target & 0xffff));
        let flags = self.flags.get();
        let mut stack = self.stack();
        let cs = *self.segment(SegmentRegister::Cs);
        for value in [flags.bits(), cs.selector.0.into(), self.rip] {
            self.push_on(&mut stack, Width::Word, value)?;
        }
        if rip > u64::from(cs.limit) {
            return self.general_protection(0);
        }
        self.commit_stack(&stack);
        let cleared = Rflags::IF | Rflags::TF | Rflags::AC | Rflags::RF;
        self.flags.set_system(cleared, false);
        let cs = Segment {
            selector: Selector(selector),
            base: u64::from(selector) << 4,
            ..cs
        };
        self.rip = rip;
        self.segments[SegmentRegister::Cs as usize] = cs;
        self.segments_changed();
        Ok(())
    }

    /// Through the IDT.
    fn deliver_protected(&mut self, event: &Event) -> Result {
        let long = self.long_mode();
        let vector = event.vector();
        let in_idt = u32::from(vector) * 8 + 2;
        let size = if long { 16 } else { 8 };
        let offset = u64::from(vector) * size;
        if offset + size - 1 > u64::from(self.idtr.limit) {
            return self.general_protection(in_idt);
        }
        let linear = self.idtr.base.wrapping_add(offset);
        let entry = Descriptor(self.load_system(linear)?);
        let kind = match entry.system_type() {
            Some(kind @ (SystemType::InterruptGate | SystemType::TrapGate)) => kind,
            Some(
                kind
                @ (SystemType::InterruptGate16 | SystemType::TrapGate16 | SystemType::TaskGate),
            ) if !long => kind,
            _ => return self.general_protection(in_idt),
        };
        if event.is_software() && entry.dpl() < self.cpl {
            return self.general_protection(in_idt);
        }
        if !entry.is_present() {
            return self.raise(Exception::with_code(Vector::SegmentNotPresent, in_idt));
        }
        if kind == SystemType::TaskGate {
            return self.deliver_to_task(event, entry.gate_selector());
        }
        let upper: u64 = if long {
            self.load_system::<u32>(linear.wrapping_add(8))?.into()
        } else {
            0
        };
        let gate = Gate {
            selector: entry.gate_selector(),
            offset: u64::from(entry.gate_offset()) | upper << 32,
            width: match kind {
                _ if long => Width::Quad,
                SystemType::InterruptGate | SystemType::TrapGate => Width::Double,
                _ => Width::Word,
            },
            masks: matches!(
                kind,
                SystemType::InterruptGate | SystemType::InterruptGate16
            ),
            ist: if long { (entry.0 >> 32 & 7) as u8 } else { 0 },
        };
        self.deliver_through(event, &gate)
    }

    /// Through an interrupt or trap gate.
    fn deliver_through(&mut self, event: &Event, gate: &Gate) -> Result {
        if gate.selector.is_null() {
            return self.general_protection(0);
        }
        let mut target = self.descriptor(gate.selector, Vector::GeneralProtection)?;
        let descriptor = target.descriptor;
        let v86 = self.virtual_8086();
        let wrong_size = self.long_mode() && (!descriptor.is_long() || descriptor.is_big());
        // Only to the same or a more privileged level; from virtual-8086 mode only to level 0.
        let stays = descriptor.is_conforming() || descriptor.dpl() == self.cpl;
        let wrong_level = descriptor.dpl() > self.cpl || v86 && (stays || descriptor.dpl() != 0);
        if !descriptor.is_code() || wrong_size || wrong_level {
            return self.refuse(Vector::GeneralProtection, gate.selector);
        }
        if !descriptor.is_present() {
            return self.refuse(Vector::SegmentNotPresent, gate.selector);
        }
        let cpl = if stays { self.cpl } else { descriptor.dpl() };
        let (mut stack, ss) = self.handler_stack(gate, cpl, stays)?;
        let cs = target.segment();
        let offset = match gate.width {
            Width::Word => gate.offset & 0xffff,
            _ => gate.offset,
        };
        self.push_frame(
            &mut stack,
            event,
            gate.width,
            ss.is_some() || self.long_mode(),
        )?;
        if !self.may_run_at(&cs, offset) {
            return self.general_protection(0);
        }
        self.mark_accessed(&mut target)?;
        if let Some(ss) = ss {
            self.segments[SegmentRegister::Ss as usize] = ss;
        }
        if v86 {
            use SegmentRegister as S;
            for register in [S::Es, S::Ds, S::Fs, S::Gs] {
                self.segments[register as usize] = null_segment(Selector(0), 0);
            }
        }
        self.commit_stack(&stack);
        let mut cleared = Rflags::TF | Rflags::NT | Rflags::RF | Rflags::VM;
        cleared.set(Rflags::IF, gate.masks);
        self.flags.set_system(cleared, false);
        self.rip = offset;
        self.set_code_segment(target.segment(), cpl);
        Ok(())
    }

    /// The stack of the handler, and SS if it is loaded anew.
    fn handler_stack(
        &mut self,
        gate: &Gate,
        cpl: u8,
        stays: bool,
    ) -> Result<(Stack, Option<Segment>)> {
        if self.long_mode() {
            let pointer = match (gate.ist, stays) {
                (0, true) => self.gpr[4],
                (0, false) => self.tss_pointer(u64::from(cpl) * 8 + 4)?,
                (ist, _) => self.tss_pointer(u64::from(ist) * 8 + 28)?,
            };
            let ss = (!stays).then(|| null_segment(Selector(cpl.into()), cpl));
            return Ok((Stack::long(pointer & !15, cpl), ss));
        }
        if stays {
            return Ok((self.stack(), None));
        }
        let (ss, pointer) = self.tss_stack(cpl)?;
        let error_code = ss.selector.error_code();
        Ok((Stack::new(ss, pointer, cpl, error_code), Some(ss)))
    }

    /// The stack pointer at `offset` in a 64-bit TSS.
    pub(crate) fn tss_pointer(&mut self, offset: u64) -> Result<u64> {
        if offset + 7 > u64::from(self.tr.limit) {
            return self.refuse(Vector::InvalidTss, self.tr.selector);
        }
        let pointer = self.load_system(self.tr.base.wrapping_add(offset))?;
        if !self.canonical(pointer) {
            return self.raise(Exception::with_code(Vector::StackFault, 0));
        }
        Ok(pointer)
    }

    /// SS and the stack pointer for privilege `cpl` from a 16- or 32-bit TSS.
    pub(crate) fn tss_stack(&mut self, cpl: u8) -> Result<(Segment, u64)> {
        let level = u64::from(cpl);
        let is_wide = self.tr.kind() & 8 != 0;
        let (offset, size) = if is_wide {
            (level * 8 + 4, 6)
        } else {
            (level * 4 + 2, 4)
        };
        if offset + size - 1 > u64::from(self.tr.limit) {
            return self.refuse(Vector::InvalidTss, self.tr.selector);
        }
        let linear = self.tr.base.wrapping_add(offset);
        let (pointer, selector) = if is_wide {
            let pointer = self.load_system::<u32>(linear)?.into();
            (pointer, self.load_system(linear.wrapping_add(4))?)
        } else {
            let pointer = self.load_system::<u16>(linear)?.into();
            (pointer, self.load_system(linear.wrapping_add(2))?)
        };
        let ss = self.stack_segment_for(Selector(selector), cpl, Vector::InvalidTss)?;
        Ok((ss, pointer))
    }

    /// Pushes what the handler returns to; with `outer`, the interrupted stack too.
    fn push_frame(
        &mut self,
        stack: &mut Stack,
        event: &Event,
        width: Width,
        outer: bool,
    ) -> Result {
        use SegmentRegister as S;
        let selector = |cpu: &Self, register: S| u64::from(cpu.segment(register).selector.0);
        if self.virtual_8086() {
            for register in [S::Gs, S::Fs, S::Ds, S::Es] {
                self.push_on(stack, width, selector(self, register))?;
            }
        }
        if outer {
            self.push_on(stack, width, selector(self, S::Ss))?;
            self.push_on(stack, width, self.gpr[4])?;
        }
        let mut flags = self.flags.get();
        if event.sets_resume_flag() {
            flags |= Rflags::RF;
        }
        self.push_on(stack, width, flags.bits())?;
        self.push_on(stack, width, selector(self, S::Cs))?;
        self.push_on(stack, width, self.rip)?;
        if let Some(code) = event.error_code() {
            self.push_on(stack, width, code.into())?;
        }
        Ok(())
    }

    /// Through a task gate.
    fn deliver_to_task(&mut self, event: &Event, selector: Selector) -> Result {
        if selector.is_local() {
            return self.refuse(Vector::GeneralProtection, selector);
        }
        let tss = self.descriptor(selector, Vector::GeneralProtection)?;
        let available = matches!(
            tss.descriptor.system_type(),
            Some(SystemType::Tss16 | SystemType::Tss)
        );
        if !available {
            return self.refuse(Vector::GeneralProtection, selector);
        }
        if !tss.descriptor.is_present() {
            return self.refuse(Vector::SegmentNotPresent, selector);
        }
        let resume = event.sets_resume_flag();
        self.switch_task(&tss, Cause::Nested { resume }, self.rip)?;
        if self.exception.is_some() && !event.is_software() {
            return Err(Raised);
        }
        if let Some(code) = event.error_code() {
            let mut stack = self.stack();
            self.push_on(&mut stack, self.task_width(), code.into())?;
            self.commit_stack(&stack);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sdm_table_7_5_double_faults() {
        use Class::{Benign, Contributory, DoubleFault, PageFault};
        let table = [
            (
                Benign,
                [Escalation::Serial, Escalation::Serial, Escalation::Serial],
            ),
            (
                Contributory,
                [Escalation::Serial, Escalation::Double, Escalation::Serial],
            ),
            (
                PageFault,
                [Escalation::Serial, Escalation::Double, Escalation::Double],
            ),
            (
                DoubleFault,
                [Escalation::Serial, Escalation::Triple, Escalation::Triple],
            ),
        ];
        for (first, row) in table {
            for (second, expected) in [Benign, Contributory, PageFault].into_iter().zip(row) {
                assert_eq!(escalation(first, second), expected, "{first:?}, {second:?}");
            }
        }
    }
}
