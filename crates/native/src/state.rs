//! The guest's vector and floating-point registers.

use x86::{FpuState, Mxcsr};

/// The bits of MXCSR that exist (Intel SDM vol. 1, rev. 082, 10.2.3). A guest that loads any
/// other bit gets `#GP(0)`. AMD's misaligned-access bit 17 is not offered.
pub const MXCSR_MASK: u32 = 0xffff;

/// MXCSR after reset and INIT of the SSE state: all exceptions masked, round to nearest.
pub const MXCSR_RESET: u32 = 0x1f80;

/// What XSAVE components 0 to 2 hold: x87 and MMX, XMM, and the upper halves of YMM.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C, align(32))]
pub struct VectorState {
    /// YMM0 to YMM15, little-endian. XMMn is the first 16 bytes.
    pub ymm: [[u8; 32]; 16],
    /// x87 and MMX.
    pub fpu: Fpu,
    /// SSE control and status. Bits outside [`MXCSR_MASK`] are dropped when it reaches the host.
    pub mxcsr: u32,
}

impl VectorState {
    /// The state after power-up and `RESET` (Intel SDM vol. 3A, table 10-1).
    pub fn reset() -> Self {
        Self {
            ymm: [[0; 32]; 16],
            fpu: Fpu::reset(),
            mxcsr: MXCSR_RESET,
        }
    }

    /// `VZEROUPPER`: clears bits 255:128 of the first `count` registers (16 in 64-bit mode,
    /// otherwise 8).
    pub fn zero_upper(&mut self, count: usize) {
        for register in self.ymm.iter_mut().take(count) {
            register[16..].fill(0);
        }
    }

    /// `VZEROALL`: clears the first `count` registers (16 in 64-bit mode, otherwise 8).
    pub fn zero_all(&mut self, count: usize) {
        for register in self.ymm.iter_mut().take(count) {
            register.fill(0);
        }
    }
}

impl Default for VectorState {
    fn default() -> Self {
        Self::reset()
    }
}

/// The shared register-state type holds the same registers in the form that engines exchange.
impl From<&FpuState> for VectorState {
    fn from(shared: &FpuState) -> Self {
        let mut fpu = Fpu {
            st: shared.st,
            fcw: control_word(shared.control),
            fsw: shared.status,
            ftw: Fpu::abridge(shared.tags),
            fop: shared.opcode & 0x7ff,
            fip: shared.instruction.0,
            fdp: shared.operand.0,
            fcs: shared.instruction.1,
            fds: shared.operand.1,
        };
        fpu.update_summary();
        let ymm = shared.ymm.map(|quads| {
            let mut bytes = [0; 32];
            for (to, quad) in bytes.chunks_exact_mut(8).zip(quads) {
                to.copy_from_slice(&quad.to_le_bytes());
            }
            bytes
        });
        Self {
            ymm,
            fpu,
            mxcsr: shared.mxcsr.bits() & MXCSR_MASK,
        }
    }
}

impl From<&VectorState> for FpuState {
    fn from(own: &VectorState) -> Self {
        let VectorState { ymm, fpu, mxcsr } = own;
        let quad = |bytes: &[u8; 32], n: usize| {
            bytes[8 * n..8 * n + 8]
                .iter()
                .rev()
                .fold(0, |quad, &byte| quad << 8 | u64::from(byte))
        };
        Self {
            control: fpu.fcw,
            status: fpu.fsw,
            tags: fpu.full_tags(),
            opcode: fpu.fop,
            instruction: (fpu.fip, fpu.fcs),
            operand: (fpu.fdp, fpu.fds),
            st: fpu.st,
            mxcsr: Mxcsr::from_bits_retain(mxcsr & MXCSR_MASK),
            ymm: ymm.map(|bytes| std::array::from_fn(|n| quad(&bytes, n))),
        }
    }
}

/// The x87 FPU.
///
/// The tag word is held as FXSAVE holds it. That loses nothing: a CPU keeps only "empty or
/// not" and derives valid, zero and special from the register when it stores the full tag word
/// (Intel SDM vol. 1, 8.1.7 and 10.5.1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C)]
pub struct Fpu {
    /// The data registers in FXSAVE's order: `st[i]` is ST(i), which is physical register
    /// (TOP + i) modulo 8. MMn is physical register n.
    pub st: [[u8; 10]; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word. ES and B (bits 7 and 15) follow from the exception flags and masks; see
    /// [`Fpu::update_summary`].
    pub fsw: u16,
    /// Abridged tag word: bit n is set if *physical* register n is not empty.
    pub ftw: u8,
    /// Last non-control instruction's opcode, 11 bits. Kept by the interpreter.
    pub fop: u16,
    /// Last non-control instruction's offset. Kept by the interpreter.
    pub fip: u64,
    /// Last memory operand's offset. Kept by the interpreter.
    pub fdp: u64,
    /// Last non-control instruction's code selector. Kept by the interpreter.
    pub fcs: u16,
    /// Last memory operand's segment selector. Kept by the interpreter.
    pub fds: u16,
}

/// FSW.ES, the exception summary.
const FSW_ES: u16 = 1 << 7;
/// FSW.B, which mirrors ES since the 387.
const FSW_B: u16 = 1 << 15;
/// The six exception flags of FSW, and their masks in FCW.
const EXCEPTIONS: u16 = 0x3f;

impl Fpu {
    /// The state after power-up and `RESET` (Intel SDM vol. 3A, table 10-1).
    pub fn reset() -> Self {
        Self {
            fcw: 0x40,
            ftw: 0xff,
            ..Self::init()
        }
    }

    /// The state `FNINIT` leaves, with cleared data registers.
    pub fn init() -> Self {
        Self {
            st: [[0; 10]; 8],
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            fcs: 0,
            fds: 0,
        }
    }

    /// TOP: the physical register that is ST(0).
    pub fn top(&self) -> u8 {
        (self.fsw >> 11 & 7) as u8
    }

    /// Whether an unmasked exception is pending: the next waiting x87 or MMX instruction
    /// raises `#MF` (or FERR# with CR0.NE clear) instead of executing.
    pub fn pending(&self) -> bool {
        self.fsw & !self.fcw & EXCEPTIONS != 0
    }

    /// Makes ES and B follow from flags and masks, as a CPU does when either is loaded.
    pub fn update_summary(&mut self) {
        self.fsw &= !(FSW_ES | FSW_B);
        if self.pending() {
            self.fsw |= FSW_ES | FSW_B;
        }
    }

    /// The full 16-bit tag word, two bits per physical register: 0 valid, 1 zero, 2 special,
    /// 3 empty (Intel SDM vol. 1, 8.1.7).
    pub fn full_tags(&self) -> u16 {
        let top = self.top();
        (0..8).fold(0, |tags, physical: u8| {
            let tag = if self.ftw >> physical & 1 == 0 {
                3
            } else {
                tag_of(&self.st[usize::from(physical.wrapping_sub(top) & 7)])
            };
            tags | tag << (2 * physical)
        })
    }

    /// The abridged form of a full tag word.
    pub fn abridge(tags: u16) -> u8 {
        (0..8).fold(0, |abridged, n| {
            abridged | u8::from(tags >> (2 * n) & 3 != 3) << n
        })
    }

    /// Sets TOP, keeping every value in its physical register.
    pub fn set_top(&mut self, top: u8) {
        let old = self.top();
        self.st.rotate_left(usize::from(top.wrapping_sub(old) & 7));
        self.fsw = self.fsw & !(7 << 11) | u16::from(top & 7) << 11;
    }
}

impl Default for Fpu {
    fn default() -> Self {
        Self::reset()
    }
}

/// A control word as the FPU holds it: bit 6 is 1, bits 7 and 13 to 15 are 0.
pub(crate) fn control_word(loaded: u16) -> u16 {
    loaded & 0x1f3f | 0x40
}

/// The tag of a register that is not empty.
fn tag_of(register: &[u8; 10]) -> u16 {
    let mut significand = [0; 8];
    significand.copy_from_slice(&register[..8]);
    let significand = u64::from_le_bytes(significand);
    let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
    match (exponent, significand) {
        (0, 0) => 1,
        (0 | 0x7fff, _) => 2,
        (_, significand) if significand >> 63 == 0 => 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_top_keeps_physical_registers() {
        let mut fpu = Fpu::init();
        for (i, st) in fpu.st.iter_mut().enumerate() {
            st[0] = i as u8;
        }
        // TOP = 0: st[i] is physical register i.
        fpu.set_top(5);
        assert_eq!(fpu.top(), 5);
        for i in 0..8 {
            assert_eq!(usize::from(fpu.st[i][0]), (5 + i) % 8);
        }
        fpu.set_top(0);
        assert_eq!(fpu.st[3][0], 3);
    }

    #[test]
    fn the_shared_state_type_loses_nothing() {
        let mut own = VectorState::reset();
        own.ymm[3] = std::array::from_fn(|n| n as u8);
        own.fpu = Fpu {
            fsw: 5 << 11,
            ftw: 0x5a,
            fip: 1 << 40,
            fcs: 8,
            ..Fpu::init()
        };
        own.fpu.st[2] = [1; 10];
        assert_eq!(VectorState::from(&FpuState::from(&own)), own);
    }

    #[test]
    fn tags_survive_abridging() {
        for ftw in 0..=255 {
            let fpu = Fpu { ftw, ..Fpu::init() };
            assert_eq!(Fpu::abridge(fpu.full_tags()), ftw);
        }
    }
}
