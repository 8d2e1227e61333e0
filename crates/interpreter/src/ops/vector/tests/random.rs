//! Operands: random ones, and those at which formats have their edges.

use native::{MXCSR_RESET, VectorState};

/// xorshift64*.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 32) as usize % n
    }

    pub(super) fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    fn f32(&mut self) -> u32 {
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
        let sign = (self.next() as u32) & 1 << 31;
        match self.below(3) {
            0 => self.one_of(&EDGES) | sign,
            1 => (self.below(200) as f32).to_bits() | sign,
            _ => self.next() as u32,
        }
    }

    fn f64(&mut self) -> u64 {
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
        let sign = self.next() & 1 << 63;
        match self.below(3) {
            0 => self.one_of(&EDGES) | sign,
            1 => (self.below(1000) as f64).to_bits() | sign,
            _ => self.next(),
        }
    }

    /// Fills whole quadwords.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        let kind = self.below(4);
        for quad in bytes.chunks_exact_mut(8) {
            let value = match kind {
                0 => self.f64(),
                1 => u64::from(self.f32()) << 32 | u64::from(self.f32()),
                2 => self.next() & self.next() & self.next(),
                _ => self.next(),
            };
            quad.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn x87_register(&mut self) -> [u8; 10] {
        const EXPONENTS: [u16; 7] = [0, 1, 0x3fff, 0x7ffe, 0x7fff, 0x4000, 0x403e];
        let significand = match self.below(5) {
            0 => 0,
            1 => 1 << 63,
            2 => 3 << 62,
            3 => self.next(),
            _ => self.next() | 1 << 63,
        };
        let sign = (self.next() as u16) & 1 << 15;
        let mut register = [0; 10];
        register[..8].copy_from_slice(&significand.to_le_bytes());
        register[8..].copy_from_slice(&(self.one_of(&EXPONENTS) | sign).to_le_bytes());
        register
    }

    /// All vector registers; in a third of the cases with exceptions unmasked.
    pub(super) fn state(&mut self) -> VectorState {
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
            *st = self.x87_register();
        }
        fpu.fcw = 0x37f;
        fpu.ftw = self.one_of(&[0xff, 0xff, 0, 0x3c, 0xa5]);
        fpu.fsw = self.next() as u16 & 0x7f00;
        if self.below(3) == 0 {
            fpu.fcw = self.next() as u16 & 0x1f3f | 0x40;
            fpu.fsw |= self.one_of(&[0, 0, 1, 0x20, 0x41]);
        }
        fpu.update_summary();
        state
    }
}
