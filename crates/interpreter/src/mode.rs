//! What code that runs now may assume: all that its translation depends on.

use crate::cpu::{CodeSize, Cpu};
use crate::tlb::View;
use x86::cpuid::Feature;
use x86::{Cr0, Cr4, Segment, SegmentRegister as S, Xcr0};

/// How code is executed now. Code translated under one mode may run under an equal one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Default operand and address size of the code: 16, 32 or 64.
    pub bits: u8,
    /// Whether it runs at CPL 3.
    pub user: bool,
    /// Which pages its data accesses may touch, and whether each has to be looked at.
    pub view: View,
    /// Whether CR4.SMAP is set, so that for supervisor code RFLAGS.AC decides about the view.
    pub smap: bool,
    /// Whether ES, CS, SS and DS do nothing, so that an offset in any of them is the linear
    /// address. So in 64-bit code at CPL 0 or 3. In 32-bit code: protected mode at CPL 0 or 3, and
    /// these four are usable, begin at 0 and end at 4 GiB; CS may be read, the others written,
    /// and the stack is a 32-bit one. Never so in 16-bit code.
    pub flat: bool,
    /// Whether x87 and MMX instructions are executed, rather than raise #NM, #UD or #MF.
    pub x87: bool,
    /// Whether SSE instructions with a legacy encoding are.
    pub sse: bool,
    /// Whether AVX instructions are.
    pub avx: bool,
    /// Whether CR4.TSD is set, so that outside CPL 0 the time-stamp counter can't be read.
    pub tsd: bool,
    /// Whether the CPU has RDTSCP.
    pub rdtscp: bool,
    /// Whether CR4.FSGSBASE is set, so that RDFSBASE and its kin are executed in 64-bit code.
    pub fsgsbase: bool,
}

/// The parts of a [`Mode`] that are kept between changes of control and segment registers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Derived {
    flat: bool,
    x87: bool,
    sse: bool,
    avx: bool,
}

impl Cpu {
    /// How code is executed now.
    #[inline]
    pub(crate) fn mode(&self) -> Mode {
        let Derived {
            flat,
            x87,
            sse,
            avx,
        } = self.derived;
        Mode {
            bits: 16 << self.code_size as u8,
            user: self.cpl == 3,
            view: self.view,
            smap: self.cr4.contains(Cr4::SMAP),
            flat,
            x87: x87 && !self.fpu.state.fpu.pending(),
            sse,
            avx,
            tsd: self.cr4.contains(Cr4::TSD),
            rdtscp: self.model.has(Feature::Rdtscp),
            fsgsbase: self.cr4.contains(Cr4::FSGSBASE),
        }
    }

    /// Recomputes what a [`Mode`] takes from CR0, CR4, XCR0, CPL and the segment registers. To be
    /// called after any of them changed.
    pub(crate) fn update_derived(&mut self) {
        let (cr0, cr4) = (self.cr0, self.cr4);
        let saved = cr4.contains(Cr4::OSXSAVE) && self.xcr0.contains(Xcr0::SSE | Xcr0::AVX);
        self.derived = Derived {
            flat: self.is_flat(),
            x87: !cr0.intersects(Cr0::EM | Cr0::TS),
            sse: !cr0.intersects(Cr0::EM | Cr0::TS) && cr4.contains(Cr4::OSFXSR),
            avx: saved && !cr0.contains(Cr0::TS) && !self.real_addressing(),
        };
    }

    fn is_flat(&self) -> bool {
        match self.code_size {
            CodeSize::Bits64 => matches!(self.cpl, 0 | 3),
            CodeSize::Bits16 => false,
            CodeSize::Bits32 => {
                let cs = self.segment(S::Cs);
                let data = [S::Es, S::Ss, S::Ds].map(|register| self.segment(register));
                !self.real_addressing()
                    && matches!(self.cpl, 0 | 3)
                    && covers_all(cs)
                    && cs.kind() & 2 != 0
                    && data.into_iter().all(|s| covers_all(s) && is_plain_data(s))
                    && self.segment(S::Ss).is_big()
            }
        }
    }
}

/// Whether `segment` begins at 0 and ends at 4 GiB.
fn covers_all(segment: &Segment) -> bool {
    !segment.unusable && segment.base == 0 && segment.limit == u32::MAX
}

/// Whether `segment` is writable data that expands up.
fn is_plain_data(segment: &Segment) -> bool {
    segment.kind() & 0b1110 == 0b0010
}
