//! RFLAGS, with the six arithmetic flags kept as what they are derived from.
//!
//! Most instructions write the arithmetic flags and few read them, so an instruction leaves its
//! result and the carries of its addition, and a flag is computed when somebody asks:
//! - ZF, SF and PF from the result;
//! - CF is the carry out of the top bit, OF whether it differs from the carry into it, AF the
//!   carry out of bit 3.
//!
//! Where the flags don't fit any result (after POPF, say), *deltas* flip SF and PF.

use crate::int::Int;
use x86::Rflags;

/// Bit 63 of [`Flags::carries`]: the carry out of the top bit, CF.
const CARRY_OUT: u64 = 1 << 63;
/// Bit 62: the carry into the top bit; OF is its difference from CF.
const CARRY_IN: u64 = 1 << 62;
/// Bit 61: flips SF.
const SIGN_DELTA: u64 = 1 << 61;
/// Bit 3: the carry out of bit 3, AF.
const HALF_CARRY: u64 = 1 << 3;
/// Bits 15:8 are exclusive-ored with the result's low byte before PF is taken from it.
const PARITY_DELTA_SHIFT: u32 = 8;

/// RFLAGS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flags {
    /// The last result, sign-extended.
    result: u64,
    carries: u64,
    /// All other flags; the arithmetic ones are 0 here.
    rest: u64,
}

impl Flags {
    /// From the architectural form. Bit 1 becomes 1.
    pub(crate) fn new(rflags: Rflags) -> Self {
        let mut flags = Self {
            result: 0,
            carries: 0,
            rest: 0,
        };
        flags.set(rflags);
        flags
    }

    /// The architectural form.
    pub(crate) fn get(&self) -> Rflags {
        let mut bits = self.rest | Rflags::FIXED.bits();
        bits |= u64::from(self.cf());
        bits |= u64::from(self.pf()) << 2;
        bits |= u64::from(self.af()) << 4;
        bits |= u64::from(self.zf()) << 6;
        bits |= u64::from(self.sf()) << 7;
        bits |= u64::from(self.of()) << 11;
        Rflags::from_bits_retain(bits)
    }

    /// Sets all flags.
    pub(crate) fn set(&mut self, rflags: Rflags) {
        self.rest = rflags.difference(Rflags::STATUS).bits() | Rflags::FIXED.bits();
        self.set_status(rflags);
    }

    /// Sets the six arithmetic flags from `rflags` and leaves the others alone.
    pub(crate) fn set_status(&mut self, rflags: Rflags) {
        let has = |flag: Rflags| rflags.intersects(flag);
        // A result of 0 has even parity, one of 1 odd parity.
        self.result = u64::from(!has(Rflags::ZF));
        let parity_delta = u64::from(has(Rflags::PF) != has(Rflags::ZF));
        self.carries = u64::from(has(Rflags::CF)) << 63
            | u64::from(has(Rflags::CF) != has(Rflags::OF)) << 62
            | u64::from(has(Rflags::SF)) << 61
            | parity_delta << PARITY_DELTA_SHIFT
            | u64::from(has(Rflags::AF)) << 3;
    }

    /// The flags that are not arithmetic, as they are.
    #[inline(always)]
    pub(crate) fn system(&self) -> Rflags {
        Rflags::from_bits_retain(self.rest)
    }

    /// Sets or clears flags that are not arithmetic.
    #[inline(always)]
    pub(crate) fn set_system(&mut self, flags: Rflags, on: bool) {
        debug_assert!(!flags.intersects(Rflags::STATUS));
        if on {
            self.rest |= flags.bits();
        } else {
            self.rest &= !flags.bits();
        }
    }

    /// Carry.
    #[inline(always)]
    pub(crate) fn cf(&self) -> bool {
        self.carries & CARRY_OUT != 0
    }

    /// Parity: the low byte has an even number of ones.
    #[inline(always)]
    pub(crate) fn pf(&self) -> bool {
        let byte = (self.result ^ self.carries >> PARITY_DELTA_SHIFT) as u8;
        byte.count_ones().is_multiple_of(2)
    }

    /// Carry out of bit 3.
    #[inline(always)]
    pub(crate) fn af(&self) -> bool {
        self.carries & HALF_CARRY != 0
    }

    /// Zero.
    #[inline(always)]
    pub(crate) fn zf(&self) -> bool {
        self.result == 0
    }

    /// Sign.
    #[inline(always)]
    pub(crate) fn sf(&self) -> bool {
        (self.result ^ self.carries << 2) >> 63 != 0
    }

    /// Signed overflow.
    #[inline(always)]
    pub(crate) fn of(&self) -> bool {
        (self.carries ^ self.carries << 1) >> 63 != 0
    }

    /// Down direction of string instructions.
    #[inline(always)]
    pub(crate) fn df(&self) -> bool {
        self.rest & Rflags::DF.bits() != 0
    }

    /// After AND, OR, XOR, TEST: CF, OF and (undefined) AF are 0.
    #[inline(always)]
    pub(crate) fn set_logic<T: Int>(&mut self, result: T) {
        self.result = result.sx();
        self.carries = 0;
    }

    /// After `result = a + b` or `a + b + carry`.
    #[inline(always)]
    pub(crate) fn set_add<T: Int>(&mut self, a: T, b: T, result: T) {
        let (a, b, r) = (a.zx(), b.zx(), result.zx());
        self.set_carries::<T>(a & b | (a | b) & !r);
        self.result = result.sx();
    }

    /// After `result = a - b` or `a - b - borrow`.
    #[inline(always)]
    pub(crate) fn set_sub<T: Int>(&mut self, a: T, b: T, result: T) {
        let (a, b, r) = (a.zx(), b.zx(), result.zx());
        self.set_carries::<T>(!a & b | (!a | b) & r);
        self.result = result.sx();
    }

    /// After INC or DEC: as an addition or subtraction of 1, with CF as before. Called after
    /// [`Flags::set_add`] or [`Flags::set_sub`].
    #[inline(always)]
    pub(crate) fn keep_carry(&mut self, carry: bool) {
        let overflow = self.of();
        self.set_carry_overflow(carry, overflow);
    }

    /// Sets CF and leaves the other flags alone.
    #[inline(always)]
    pub(crate) fn set_carry(&mut self, carry: bool) {
        let overflow = self.of();
        self.set_carry_overflow(carry, overflow);
    }

    /// Sets CF and OF and leaves the other flags alone.
    #[inline(always)]
    pub(crate) fn set_carry_overflow(&mut self, carry: bool, overflow: bool) {
        self.carries = self.carries & !(CARRY_OUT | CARRY_IN)
            | u64::from(carry) << 63
            | u64::from(carry != overflow) << 62;
    }

    /// ZF, SF and PF from `result`, CF and OF as given: shifts and bit manipulation. They leave AF
    /// undefined; AMD's processors set it.
    #[inline(always)]
    pub(crate) fn set_result<T: Int>(&mut self, result: T, carry: bool, overflow: bool) {
        self.result = result.sx();
        self.carries = u64::from(carry) << 63 | u64::from(carry != overflow) << 62 | HALF_CARRY;
    }

    /// Sets ZF and leaves the other flags alone.
    pub(crate) fn set_zero(&mut self, zero: bool) {
        let mut rflags = self.get();
        rflags.set(Rflags::ZF, zero);
        self.set_status(rflags);
    }

    #[inline(always)]
    fn set_carries<T: Int>(&mut self, carries: u64) {
        let top = carries << (64 - T::BITS);
        self.carries = top & (CARRY_OUT | CARRY_IN) | carries & HALF_CARRY;
    }

    /// Whether the condition of Jcc, SETcc or CMOVcc with this encoding (0 to 15) holds.
    #[inline(always)]
    pub(crate) fn condition(&self, code: u8) -> bool {
        let holds = match code >> 1 & 7 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        holds != (code & 1 != 0)
    }
}

const _: () = assert!(
    SIGN_DELTA << 2 == 1 << 63,
    "sf() shifts the delta onto the sign bit"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_survives() {
        for bits in 0..1u64 << 12 {
            let rflags = Rflags::from_bits_retain(bits) | Rflags::FIXED;
            assert_eq!(Flags::new(rflags).get(), rflags);
        }
    }

    #[test]
    fn additions_and_subtractions_of_bytes() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let mut flags = Flags::new(Rflags::empty());
                let sum = a.wrapping_add(b);
                flags.set_add(a, b, sum);
                assert_eq!(flags.cf(), a.checked_add(b).is_none());
                assert_eq!(flags.of(), (a as i8).checked_add(b as i8).is_none());
                assert_eq!(flags.af(), (a & 15) + (b & 15) > 15);
                let difference = a.wrapping_sub(b);
                flags.set_sub(a, b, difference);
                assert_eq!(flags.cf(), a < b);
                assert_eq!(flags.of(), (a as i8).checked_sub(b as i8).is_none());
                assert_eq!(flags.af(), a & 15 < b & 15);
                assert_eq!(flags.zf(), a == b);
                assert_eq!(flags.sf(), (difference as i8) < 0);
                assert_eq!(flags.pf(), difference.count_ones() % 2 == 0);
                flags.keep_carry(true);
                assert!(flags.cf());
                assert_eq!(flags.of(), (a as i8).checked_sub(b as i8).is_none());
            }
        }
    }

    #[test]
    fn sdm_2_appendix_b_conditions() {
        let mut flags = Flags::new(Rflags::empty());
        flags.set_sub(3u32, 5, 3u32.wrapping_sub(5));
        let below = [2, 5, 6, 8, 12, 14];
        for code in 0..16 {
            let parity = 0xfeu8.count_ones().is_multiple_of(2);
            let expected =
                below.contains(&code) || code == 1 || (code == 10) == parity && code / 2 == 5;
            assert_eq!(flags.condition(code), expected, "condition {code}");
        }
    }
}
