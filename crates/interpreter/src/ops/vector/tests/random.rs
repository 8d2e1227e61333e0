//! Operands: random ones, and those at which formats have their edges.

use crate::testing::Random;
use native::{MXCSR_RESET, VectorState};

/// Random operands of vector and x87 instructions.
pub(super) trait Operands {
    /// Fills whole quadwords.
    fn fill(&mut self, bytes: &mut [u8]);

    /// All vector registers; in a third of the cases with exceptions unmasked.
    fn state(&mut self) -> VectorState;
}

impl Operands for Random {
    fn fill(&mut self, bytes: &mut [u8]) {
        let kind = self.below(4);
        for quad in bytes.chunks_exact_mut(8) {
            let value = match kind {
                0 => f64(self),
                1 => u64::from(f32(self)) << 32 | u64::from(f32(self)),
                2 => self.next() & self.next() & self.next(),
                _ => self.next(),
            };
            quad.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn state(&mut self) -> VectorState {
        let mut state = VectorState::reset();
        for ymm in &mut state.ymm {
            self.fill(ymm);
        }
        state.mxcsr = match self.below(3) {
            0 => MXCSR_RESET,
            1 => MXCSR_RESET | self.next() as u32 & 0xe07f,
            _ => self.next() as u32 & 0xffff,
        };
        let fpu = &mut state.fpu;
        for st in &mut fpu.st {
            *st = x87_register(self);
        }
        fpu.fcw = 0x37f;
        fpu.ftw = self.one_of(&[0xff, 0xff, 0, 0x3c, 0xa5]);
        fpu.fsw = self.next() as u16 & 0x7f00;
        if self.one_in(3) {
            fpu.fcw = self.next() as u16 & 0x1f3f | 0x40;
            fpu.fsw |= self.one_of(&[0, 0, 1, 0x20, 0x41]);
        }
        fpu.update_summary();
        state
    }
}

fn f32(random: &mut Random) -> u32 {
    const EDGES: [u32; 8] = [
        0,
        0x3f80_0000,
        0x7f80_0000,
        0x7fc0_0000,
        0x7f80_0001,
        1,
        0x007f_ffff,
        0x7f7f_ffff,
    ];
    let sign = (random.next() as u32) & 1 << 31;
    match random.below(3) {
        0 => random.one_of(&EDGES) | sign,
        1 => (random.below(200) as f32).to_bits() | sign,
        _ => random.next() as u32,
    }
}

fn f64(random: &mut Random) -> u64 {
    const EDGES: [u64; 9] = [
        0,
        0x3ff0 << 48,
        0x7ff0 << 48,
        0x7ff8 << 48,
        (0x7ff0 << 48) + 1,
        1,
        (1 << 52) - 1,
        (0x7ff0 << 48) - 1,
        // 2^31 and 2^63 are where conversions overflow.
        0x41e0 << 48,
    ];
    let sign = random.next() & 1 << 63;
    match random.below(3) {
        0 => random.one_of(&EDGES) | sign,
        1 => (random.below(1000) as f64).to_bits() | sign,
        _ => random.next(),
    }
}

fn x87_register(random: &mut Random) -> [u8; 10] {
    const EXPONENTS: [u16; 7] = [0, 1, 0x3fff, 0x7ffe, 0x7fff, 0x4000, 0x403e];
    let significand = match random.below(5) {
        0 => 0,
        1 => 1 << 63,
        2 => 3 << 62,
        3 => random.next(),
        _ => random.next() | 1 << 63,
    };
    let sign = (random.next() as u16) & 1 << 15;
    let mut register = [0; 10];
    register[..8].copy_from_slice(&significand.to_le_bytes());
    register[8..].copy_from_slice(&(random.one_of(&EXPONENTS) | sign).to_le_bytes());
    register
}
