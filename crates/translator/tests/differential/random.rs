//! Pseudo-random numbers, the same in each run.

/// xorshift64*.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mixed = (seed ^ seed >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = Self((mixed ^ mixed >> 29) | 1);
        // Neighbouring seeds are apart after a few steps.
        for _ in 0..8 {
            random.next();
        }
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 32) % n
    }

    /// True `percent` times in a hundred.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    /// An integer operand: small, near a power of two, sparse or dense.
    pub(crate) fn operand(&mut self) -> u64 {
        let near = self.below(3).wrapping_sub(1);
        let value = match self.below(6) {
            0 => self.below(4).wrapping_sub(1),
            1 => (1u64 << self.below(64)).wrapping_add(near),
            2 => (self.next() & self.next() & self.next()) >> self.below(64),
            3 => self.next() >> self.below(64),
            _ => self.next(),
        };
        if self.percent(25) { !value } else { value }
    }

    /// Fills `bytes`: words that are often floating-point numbers of some kind.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            let value = match self.below(8) {
                0 => self.operand(),
                1 => 0,
                2 => f64::from(self.next() as i32).to_bits(),
                3 => {
                    let low = (self.next() as i16 as f32 / 16.0).to_bits();
                    u64::from(low) << 32 | u64::from((self.next() as i8 as f32).to_bits())
                }
                _ => self.next(),
            };
            word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
        }
    }

    /// Fills `words` as [`Random::fill`] does bytes.
    pub(crate) fn fill_words(&mut self, words: &mut [u64]) {
        for word in words {
            let mut bytes = [0; 8];
            self.fill(&mut bytes);
            *word = u64::from_le_bytes(bytes);
        }
    }

    /// The values in random order.
    pub(crate) fn shuffle<T>(&mut self, values: &mut [T]) {
        for n in (1..values.len()).rev() {
            values.swap(n, self.below(n as u64 + 1) as usize);
        }
    }
}
