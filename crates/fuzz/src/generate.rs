//! Inputs without coverage feedback: random bytes, and mutations of seeds and of each other.

/// The longest input that is made.
pub const LEN_MAX: usize = 4096;
/// Inputs that are kept as material for others.
const KEPT_MAX: usize = 64;

/// Pseudo-random numbers (xorshift64*; Vigna, "An experimental exploration of Marsaglia's
/// xorshift generators, scrambled").
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 11) % limit as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 32) as u8).collect()
    }

    /// A length up to `max`, short ones more often.
    fn len(&mut self, max: usize) -> usize {
        let bound = 1 + self.below(max);
        1 + self.below(bound)
    }
}

/// An endless sequence of inputs, the same for the same seed.
#[derive(Debug, Clone)]
pub struct Generator {
    random: Random,
    material: Vec<Vec<u8>>,
    seeds: usize,
}

impl Generator {
    /// The sequence number `seed`, which starts from `seeds`.
    pub fn new(seed: u64, seeds: Vec<Vec<u8>>) -> Self {
        Self {
            // Any but zero; neighbours must not be alike.
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            seeds: seeds.len(),
            material: seeds,
        }
    }

    /// The next input, [`LEN_MAX`] bytes long at most.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut bytes = if self.material.is_empty() || self.random.below(4) == 0 {
            let len = self.random.len(LEN_MAX);
            self.random.bytes(len)
        } else {
            let from = self.random.below(self.material.len());
            self.material[from].clone()
        };
        for _ in 0..self.random.below(8) {
            self.mutate(&mut bytes);
        }
        bytes.truncate(LEN_MAX);
        self.keep(&bytes);
        bytes
    }

    /// Keeps some inputs, the seeds always.
    fn keep(&mut self, bytes: &[u8]) {
        if self.random.below(8) != 0 {
            return;
        }
        if self.material.len() < self.seeds + KEPT_MAX {
            self.material.push(bytes.to_vec());
        } else {
            let at = self.seeds + self.random.below(KEPT_MAX);
            self.material[at] = bytes.to_vec();
        }
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let random = &mut self.random;
        let at = random.below(bytes.len() + 1);
        let left = bytes.len() - at;
        match random.below(8) {
            0 if left > 0 => bytes[at] ^= 1 << random.below(8),
            1 if left > 0 => bytes[at] = random.next() as u8,
            2 if left > 0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => {
                let value = [0, 1, u64::MAX, 1 << 63, 1 << 31, 0xffff, 0x1000][random.below(7)];
                let len = left.min(1 << random.below(4));
                bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
            }
            4 => {
                let len = random.len(64);
                bytes.splice(at..at, random.bytes(len));
            }
            5 if left > 0 => {
                let len = random.len(left);
                bytes.drain(at..at + len);
            }
            6 if left > 0 => {
                let len = random.len(left);
                let copy = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            7 if !self.material.is_empty() => {
                let other = &self.material[random.below(self.material.len())];
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_sequence_is_that_of_its_seed() {
        let sequence = |seed| {
            let mut generator = Generator::new(seed, vec![vec![1, 2, 3]]);
            (0..200).map(|_| generator.next_input()).collect::<Vec<_>>()
        };
        assert_eq!(sequence(1), sequence(1));
        assert_ne!(sequence(1), sequence(2));
    }

    #[test]
    fn inputs_are_bounded_and_differ() {
        let mut generator = Generator::new(3, vec![vec![7; 100], Vec::new()]);
        let inputs: HashSet<_> = (0..2000).map(|_| generator.next_input()).collect();
        assert!(inputs.len() > 1000, "{} different ones", inputs.len());
        assert!(inputs.iter().all(|input| input.len() <= LEN_MAX));
        assert!(generator.material.len() <= 2 + KEPT_MAX);
    }
}
