//! The memory a stub works in.

use crate::state::VectorState;

/// Size of [`Frame::scratch`].
pub const SCRATCH_BYTES: usize = 64;

/// A virtual CPU's vector state, and the working memory of the stubs that execute on it.
///
/// A stub addresses nothing but its frame. One per virtual CPU, boxed (about 1.4 KiB).
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub struct Frame {
    /// The memory operand, from byte 0 on.
    pub scratch: [u8; SCRATCH_BYTES],
    /// The guest's registers.
    pub state: VectorState,
    /// CF, PF, AF, ZF, SF and OF at their places in EFLAGS: read by instructions for which
    /// [`Routine::flags_read`](crate::Routine::flags_read) is not 0, written by those for which
    /// [`Routine::flags_written`](crate::Routine::flags_written) is not 0. Other bits are
    /// ignored, and clear after an instruction that writes flags.
    pub flags: u64,
    /// RAX, RCX, RDX and RSI of the stub.
    pub(crate) gpr: [u64; 4],
    /// What x87 stubs load and store with FXRSTOR and FXSAVE.
    pub(crate) fx: FxArea,
    /// MXCSR as Rust code has it; constant.
    pub(crate) host_mxcsr: u32,
}

/// An FXSAVE area (Intel SDM vol. 1, 10.5.1).
#[derive(Debug, Clone)]
#[repr(C, align(16))]
pub(crate) struct FxArea {
    pub(crate) fcw: u16,
    pub(crate) fsw: u16,
    pub(crate) ftw: u8,
    reserved: u8,
    fop: u16,
    fip: u64,
    fdp: u64,
    /// The host's; the guest's is in the frame's state.
    mxcsr: u32,
    mxcsr_mask: u32,
    pub(crate) st: [[u8; 16]; 8],
    xmm: [[u8; 16]; 16],
    unused: [u8; 96],
}

impl Frame {
    /// A frame with the registers' reset state.
    pub fn new() -> Self {
        Self {
            scratch: [0; SCRATCH_BYTES],
            state: VectorState::reset(),
            flags: 0,
            gpr: [0; 4],
            fx: FxArea {
                fcw: 0x37f,
                fsw: 0,
                ftw: 0,
                reserved: 0,
                fop: 0,
                fip: 0,
                fdp: 0,
                mxcsr: crate::MXCSR_RESET,
                mxcsr_mask: 0,
                st: [[0; 16]; 8],
                xmm: [[0; 16]; 16],
                unused: [0; 96],
            },
            host_mxcsr: crate::MXCSR_RESET,
        }
    }

    /// Copies the x87 registers to where a stub loads them from.
    pub(crate) fn stage_fpu(&mut self) {
        let fpu = &self.state.fpu;
        self.fx.fcw = fpu.fcw;
        self.fx.fsw = fpu.fsw;
        self.fx.ftw = fpu.ftw;
        for (to, from) in self.fx.st.iter_mut().zip(&fpu.st) {
            to[..10].copy_from_slice(from);
        }
    }

    /// Takes over the x87 registers that a stub stored. The pointers are the interpreter's.
    pub(crate) fn commit_fpu(&mut self) {
        let fpu = &mut self.state.fpu;
        fpu.fcw = self.fx.fcw;
        fpu.fsw = self.fx.fsw;
        fpu.ftw = self.fx.ftw;
        for (to, from) in fpu.st.iter_mut().zip(&self.fx.st) {
            to.copy_from_slice(&from[..10]);
        }
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fxsave_area_has_its_architectural_size() {
        assert_eq!(size_of::<FxArea>(), 512);
        assert_eq!(std::mem::offset_of!(FxArea, st), 32);
        assert_eq!(std::mem::offset_of!(Frame, fx) % 16, 0);
    }
}
