//! Operand sizes as types: one handler serves all of them.

use memory::Word;

/// Number of register slots: 16 architectural ones, [`ZERO`], [`PC`], and room so that a slot
/// number masked to five bits is always in range.
pub(crate) const SLOTS: usize = 32;
/// A slot that always holds 0: the base or index that is not there.
pub(crate) const ZERO: u8 = 16;
/// The slot that holds RIP of the running block's first instruction: base of RIP-relative
/// operands and branches.
pub(crate) const PC: u8 = 17;
/// Added to a slot number: the register's bits 15:8 (AH, CH, DH, BH).
pub(crate) const HIGH: u8 = 32;

/// The register file, by slot.
pub(crate) type Registers = [u64; SLOTS];

/// An operand of 8, 16, 32 or 64 bits.
pub(crate) trait Int: Word + std::fmt::Debug {
    /// Width in bits.
    const BITS: u32;
    /// The low bits of `value`.
    fn of(value: u64) -> Self;
    /// Zero-extended.
    fn zx(self) -> u64;
    /// Sign-extended.
    fn sx(self) -> u64;
    /// Reads a register.
    fn get(registers: &Registers, slot: u8) -> Self;
    /// Writes a register: 32 bits clear the upper half, 8 and 16 bits leave the rest alone.
    fn set(registers: &mut Registers, slot: u8, value: Self);
}

macro_rules! int {
    ($type:ty, $signed:ty, $get:expr, $set:expr) => {
        impl Int for $type {
            const BITS: u32 = <$type>::BITS;
            #[inline(always)]
            fn of(value: u64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn zx(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sx(self) -> u64 {
                self as $signed as i64 as u64
            }
            #[inline(always)]
            fn get(registers: &Registers, slot: u8) -> Self {
                let get: fn(&Registers, u8) -> u64 = $get;
                get(registers, slot) as $type
            }
            #[inline(always)]
            fn set(registers: &mut Registers, slot: u8, value: Self) {
                let set: fn(&mut Registers, u8, u64) = $set;
                set(registers, slot, value as u64)
            }
        }
    };
}

const fn at(slot: u8) -> usize {
    slot as usize & (SLOTS - 1)
}

/// How far the byte of an 8-bit slot is shifted.
const fn byte_shift(slot: u8) -> u32 {
    (slot & HIGH) as u32 / 4
}

int!(u64, i64, |r, s| r[at(s)], |r, s, v| r[at(s)] = v);
int!(u32, i32, |r, s| r[at(s)], |r, s, v| r[at(s)] = v);
int!(u16, i16, |r, s| r[at(s)], |r, s, v| r[at(s)] =
    r[at(s)] & !0xffff | v);
int!(u8, i8, |r, s| r[at(s)] >> byte_shift(s), |r, s, v| {
    let shift = byte_shift(s);
    r[at(s)] = r[at(s)] & !(0xff << shift) | v << shift;
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sdm_1_3_4_1_1_partial_register_writes() {
        let mut r = [u64::MAX; SLOTS];
        u32::set(&mut r, 0, 5);
        assert_eq!(r[0], 5);
        r[1] = 0x1122_3344_5566_7788;
        u16::set(&mut r, 1, 0xabcd);
        assert_eq!(r[1], 0x1122_3344_5566_abcd);
        u8::set(&mut r, 1, 0x01);
        u8::set(&mut r, 1 + HIGH, 0x02);
        assert_eq!(r[1], 0x1122_3344_5566_0201);
        assert_eq!((u8::get(&r, 1), u8::get(&r, 1 + HIGH)), (1, 2));
        assert_eq!(0x80u8.sx(), 0xffff_ffff_ffff_ff80);
    }
}
