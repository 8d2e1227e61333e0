//! Whether the registers that an instruction works on are available to software now: what is
//! checked before anything else is done (SDM vol. 2, 2.4 to 2.7; vol. 3, 2.5 and 14.1).

use crate::cpu::{Cpu, Result};
use native::Outcome;
use x86::{Cr0, Cr4, Exception, Vector, Xcr0};

/// A kind of instruction, by its checks.
pub(super) trait Unit {
    /// Raises #UD, #NM or #MF if the instruction can't be executed.
    fn ready(cpu: &mut Cpu) -> Result;
}

/// General-purpose registers only.
pub(super) struct Integer;
/// General-purpose registers only, VEX-encoded.
pub(super) struct IntegerVex;
/// MMX registers.
pub(super) struct Mmx;
/// MMX registers, and XMM registers or MXCSR too.
pub(super) struct MmxSse;
/// XMM registers, with a legacy encoding.
pub(super) struct Sse;
/// XMM and YMM registers, VEX-encoded.
pub(super) struct Avx;

impl Unit for Integer {
    #[inline(always)]
    fn ready(_: &mut Cpu) -> Result {
        Ok(())
    }
}

impl Unit for IntegerVex {
    #[inline(always)]
    fn ready(cpu: &mut Cpu) -> Result {
        if cpu.real_addressing() {
            return cpu.undefined();
        }
        Ok(())
    }
}

impl Unit for Mmx {
    fn ready(cpu: &mut Cpu) -> Result {
        if cpu.cr0.contains(Cr0::EM) {
            return cpu.undefined();
        }
        if cpu.cr0.contains(Cr0::TS) {
            return cpu.no_fpu();
        }
        cpu.raise_pending_x87()
    }
}

impl Unit for MmxSse {
    fn ready(cpu: &mut Cpu) -> Result {
        Sse::ready(cpu)?;
        cpu.raise_pending_x87()
    }
}

impl Unit for Sse {
    #[inline(always)]
    fn ready(cpu: &mut Cpu) -> Result {
        if cpu.cr0.intersects(Cr0::EM | Cr0::TS) || !cpu.cr4.contains(Cr4::OSFXSR) {
            return cpu.no_sse();
        }
        Ok(())
    }
}

impl Unit for Avx {
    #[inline(always)]
    fn ready(cpu: &mut Cpu) -> Result {
        let enabled =
            cpu.cr4.contains(Cr4::OSXSAVE) && cpu.xcr0.contains(Xcr0::SSE.union(Xcr0::AVX));
        if !enabled || cpu.cr0.contains(Cr0::TS) || cpu.real_addressing() {
            return cpu.no_avx(enabled);
        }
        Ok(())
    }
}

impl Cpu {
    #[cold]
    fn no_sse(&mut self) -> Result {
        if self.cr0.contains(Cr0::EM) || !self.cr4.contains(Cr4::OSFXSR) {
            return self.undefined();
        }
        self.no_fpu()
    }

    #[cold]
    fn no_avx(&mut self, enabled: bool) -> Result {
        if !enabled || self.real_addressing() {
            return self.undefined();
        }
        self.no_fpu()
    }

    /// Records #NM.
    #[cold]
    pub(super) fn no_fpu<T>(&mut self) -> Result<T> {
        self.raise(Exception::new(Vector::DeviceNotAvailable))
    }

    /// Raises #NM if x87 instructions do.
    pub(super) fn x87_ready(&mut self) -> Result {
        if self.cr0.intersects(Cr0::EM | Cr0::TS) {
            return self.no_fpu();
        }
        Ok(())
    }

    /// Raises #MF if an unmasked x87 exception is pending.
    ///
    /// With CR0.NE clear, a PC would signal FERR# to its interrupt controller (IRQ 13) instead.
    /// That is not modelled: #MF is raised all the same.
    pub(super) fn raise_pending_x87(&mut self) -> Result {
        if self.fpu.state.fpu.pending() {
            return self.raise(Exception::new(Vector::X87));
        }
        Ok(())
    }

    /// Raises what the host's execution of an instruction came to. `Ok(false)` if it completed
    /// without storing its result.
    #[inline(always)]
    pub(super) fn conclude(&mut self, outcome: Outcome) -> Result<bool> {
        if outcome == Outcome::Done {
            return Ok(true);
        }
        self.conclude_otherwise(outcome)
    }

    #[cold]
    fn conclude_otherwise(&mut self, outcome: Outcome) -> Result<bool> {
        match outcome {
            Outcome::Done => Ok(true),
            Outcome::DoneWithoutStore => Ok(false),
            Outcome::X87Pending => self.raise(Exception::new(Vector::X87)),
            Outcome::SimdException if self.cr4.contains(Cr4::OSXMMEXCPT) => {
                self.raise(Exception::new(Vector::Simd))
            }
            Outcome::SimdException => self.undefined(),
        }
    }
}
