//! Task switches (SDM vol. 3, chapter 9).

use crate::cpu::{Cpu, Result};
use crate::descriptors::{Located, null_segment};
use crate::stack::Width;
use x86::{
    Cr0, Cr4, Dr6, Exception, Rflags, Segment, SegmentRegister, Selector, SystemType, Vector,
};

/// What switches tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// JMP: the old task is left.
    Jump,
    /// CALL, an exception or an interrupt: the old task is linked from the new one. `resume`: its
    /// RF is saved as 1, as for a fault.
    Nested {
        /// Whether RF is set in the saved flags.
        resume: bool,
    },
    /// IRET: back to a task that was left by nesting.
    Return,
}

/// A TSS's length and the offset of what a switch saves (figures 9-2 and 9-10).
struct Layout {
    is_wide: bool,
    len: usize,
    /// EIP and what follows it to the end of the segment registers.
    saved: std::ops::Range<usize>,
}

const WIDE: Layout = Layout {
    is_wide: true,
    len: 104,
    saved: 32..96,
};
const NARROW: Layout = Layout {
    is_wide: false,
    len: 44,
    saved: 14..42,
};

impl Layout {
    fn of(kind: u8) -> &'static Self {
        if kind & 8 != 0 { &WIDE } else { &NARROW }
    }

    const fn registers(&self) -> usize {
        if self.is_wide { 6 } else { 4 }
    }
}

/// What is loaded from a TSS.
struct Context {
    cr3: Option<u64>,
    rip: u64,
    flags: Rflags,
    gpr: [u64; 8],
    /// ES, CS, SS, DS, FS, GS.
    selectors: [Selector; 6],
    ldt: Selector,
    debug_trap: bool,
}

/// Little-endian fields of a TSS.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn double(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 2)) << 16
    }
}

impl Context {
    fn wide(tss: &Fields<'_>) -> Self {
        Self {
            cr3: Some(tss.double(28)),
            rip: tss.double(32),
            flags: Rflags::from_bits_retain(tss.double(36)),
            gpr: std::array::from_fn(|i| tss.double(40 + 4 * i)),
            selectors: std::array::from_fn(|i| Selector(tss.word(72 + 4 * i))),
            ldt: Selector(tss.word(96)),
            debug_trap: tss.word(100) & 1 != 0,
        }
    }

    fn narrow(tss: &Fields<'_>) -> Self {
        let selector = |i: usize| match i {
            0..4 => Selector(tss.word(34 + 2 * i)),
            _ => Selector(0),
        };
        Self {
            cr3: None,
            rip: tss.word(14).into(),
            flags: Rflags::from_bits_retain(tss.word(16).into()),
            // The upper halves are undefined; the 80386 set them.
            gpr: std::array::from_fn(|i| 0xffff_0000 | u64::from(tss.word(18 + 2 * i))),
            selectors: std::array::from_fn(selector),
            ldt: Selector(tss.word(42)),
            debug_trap: false,
        }
    }
}

impl Cpu {
    /// Switches to the task of `tss`, whose descriptor was checked for type and presence. The old
    /// task goes on at `back`.
    ///
    /// # Errors
    /// An exception of the old task, before anything has changed. One of the new task (SDM vol. 3,
    /// 9.3, and table 9-1) stays in [`Cpu::exception`] to be delivered there, and the result is
    /// `Ok`.
    pub(crate) fn switch_task(&mut self, tss: &Located, cause: Cause, back: u64) -> Result {
        let new = tss.segment();
        let layout = Layout::of(new.kind());
        if (new.limit as usize) < layout.len - 1 {
            return self.refuse(Vector::InvalidTss, tss.selector);
        }
        let mut image = [0; WIDE.len];
        let image = &mut image[..layout.len];
        let source = self.find_system(new.base, layout.len)?;
        self.get_bytes(source, image);
        self.save_task(cause, back)?;
        let old_selector = self.tr.selector;
        self.change_busy_bits(tss, cause)?;
        if let Cause::Nested { .. } = cause {
            self.store_system(new.base, old_selector.0)?;
        }
        let mut context = if layout.is_wide {
            Context::wide(&Fields(image))
        } else {
            Context::narrow(&Fields(image))
        };
        if let Cause::Nested { .. } = cause {
            context.flags |= Rflags::NT;
        }
        // From here on, faults are the new task's.
        self.tr = Segment {
            access: new.access | 2,
            ..new
        };
        self.cr0 |= Cr0::TS;
        // Local breakpoints are the old task's.
        self.dr7 &= !0x155;
        if self.load_task(&context).is_err() {
            self.segments_changed();
        }
        self.attend();
        Ok(())
    }

    /// Writes the registers into the current TSS.
    fn save_task(&mut self, cause: Cause, back: u64) -> Result {
        let layout = Layout::of(self.tr.kind());
        let mut flags = self.flags.get();
        match cause {
            Cause::Return => flags -= Rflags::NT,
            Cause::Nested { resume: true } => flags |= Rflags::RF,
            _ => {}
        }
        let field = if layout.is_wide { 4 } else { 2 };
        let selectors = self.segments[..layout.registers()].iter();
        let values = [back, flags.bits()]
            .into_iter()
            .chain(self.gpr[..8].iter().copied())
            .chain(selectors.map(|s| s.selector.0.into()));
        let bytes: Vec<u8> = values
            .flat_map(|value: u64| value.to_le_bytes().into_iter().take(field))
            .collect();
        debug_assert_eq!(bytes.len(), layout.saved.len());
        if (self.tr.limit as usize) < layout.saved.end - 1 {
            return self.refuse(Vector::InvalidTss, self.tr.selector);
        }
        let linear = self.tr.base.wrapping_add(layout.saved.start as u64);
        let place = self.place_system(linear, bytes.len())?;
        self.put_bytes(place, &bytes);
        Ok(())
    }

    fn change_busy_bits(&mut self, new: &Located, cause: Cause) -> Result {
        if matches!(cause, Cause::Jump | Cause::Return)
            && let Some(old) = self.find_descriptor(self.tr.selector)?
        {
            self.set_busy(&old, false)?;
        }
        if cause != Cause::Return {
            self.set_busy(new, true)?;
        }
        Ok(())
    }

    /// Loads the new task's registers, then its descriptors.
    fn load_task(&mut self, context: &Context) -> Result {
        if let Some(cr3) = context.cr3.filter(|_| self.cr0.contains(Cr0::PG)) {
            if self.cr4.contains(Cr4::PAE) {
                self.load_pdptes(cr3)?;
            }
            self.cr3 = cr3;
            self.tlb.flush_local();
        }
        self.rip = context.rip;
        self.gpr[..8].copy_from_slice(&context.gpr);
        let known = Rflags::from_bits_retain(0x003f_7fd7);
        self.flags.set(context.flags & known | Rflags::FIXED);
        // First all selectors, marked as not loaded, so that a fault finds them in place.
        for (segment, selector) in self.segments.iter_mut().zip(context.selectors) {
            *segment = null_segment(selector, 0);
        }
        self.ldtr = null_segment(context.ldt, 0);
        self.cpl = context.selectors[SegmentRegister::Cs as usize].rpl();
        self.load_task_ldt(context.ldt)?;
        if context.flags.contains(Rflags::VM) {
            self.cpl = 3;
            self.segments = context.selectors.map(|s| Segment::real_mode(s.0, 0xf3));
            self.segments_changed();
        } else {
            self.load_task_segments(context)?;
        }
        if context.debug_trap {
            self.debug_trap |= Dr6::BT.bits();
        }
        if !self.may_run_at(self.segment(SegmentRegister::Cs), self.rip) {
            return self.general_protection(0);
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: Selector) -> Result {
        if selector.is_null() {
            return Ok(());
        }
        if selector.is_local() {
            return self.refuse(Vector::InvalidTss, selector);
        }
        let located = self.descriptor(selector, Vector::InvalidTss)?;
        let descriptor = located.descriptor;
        if descriptor.system_type() != Some(SystemType::Ldt) || !descriptor.is_present() {
            return self.refuse(Vector::InvalidTss, selector);
        }
        self.ldtr = located.segment();
        Ok(())
    }

    fn load_task_segments(&mut self, context: &Context) -> Result {
        use SegmentRegister as S;
        let cpl = self.cpl;
        let selector = context.selectors[S::Cs as usize];
        if selector.is_null() {
            return self.refuse(Vector::InvalidTss, selector);
        }
        let mut code = self.descriptor(selector, Vector::InvalidTss)?;
        let descriptor = code.descriptor;
        let wrong_level = if descriptor.is_conforming() {
            descriptor.dpl() > cpl
        } else {
            descriptor.dpl() != cpl
        };
        if !descriptor.is_code() || wrong_level {
            return self.refuse(Vector::InvalidTss, selector);
        }
        if !descriptor.is_present() {
            return self.refuse(Vector::SegmentNotPresent, selector);
        }
        self.mark_accessed(&mut code)?;
        let ss = context.selectors[S::Ss as usize];
        self.segments[S::Ss as usize] = self.stack_segment_for(ss, cpl, Vector::InvalidTss)?;
        self.set_code_segment(code.segment(), cpl);
        for register in [S::Es, S::Ds, S::Fs, S::Gs] {
            let selector = context.selectors[register as usize];
            if let Err(raised) = self.load_segment(register, selector) {
                self.make_invalid_tss();
                return Err(raised);
            }
        }
        self.segments_changed();
        Ok(())
    }

    /// A data segment that #GP refuses in MOV is #TS in a task switch.
    fn make_invalid_tss(&mut self) {
        if let Some(exception) = &mut self.exception
            && exception.vector == Vector::GeneralProtection
        {
            *exception = Exception::with_code(Vector::InvalidTss, exception.error_code);
        }
    }

    /// The operand size of a TSS's stack: that of its task's gate pushes.
    pub(crate) fn task_width(&self) -> Width {
        if self.tr.kind() & 8 != 0 {
            Width::Double
        } else {
            Width::Word
        }
    }
}
