//! Bit tests, scans and counts, and CRC32.

use super::{Form, Kind, operand_bits, sized, wide};
use crate::cpu::{Cpu, Result};
use crate::int::Int;
use crate::op::{Handler, Op};
use iced_x86::{Instruction, Mnemonic as M};

pub(super) fn select(instruction: &Instruction, form: &Form) -> Option<Handler> {
    match instruction.mnemonic() {
        M::Bt => bit_test(form),
        M::Bts => bit_change::<Set>(form),
        M::Btr => bit_change::<Reset>(form),
        M::Btc => bit_change::<Complement>(form),
        M::Bsf => scan::<Forward>(form),
        M::Bsr => scan::<Reverse>(form),
        M::Tzcnt => scan::<TrailingZeros>(form),
        M::Lzcnt => scan::<LeadingZeros>(form),
        M::Popcnt => scan::<Ones>(form),
        M::Crc32 => {
            let memory = form.kinds[1] == Kind::Memory;
            Some(sized!(operand_bits(instruction, 1), |S| if memory {
                crc32::<S, true>
            } else {
                crc32::<S, false>
            }))
        }
        _ => None,
    }
}

/// What BTS, BTR or BTC makes of its operand.
trait Change {
    fn apply(value: u64, bit: u64) -> u64;
}

struct Set;

impl Change for Set {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value | bit
    }
}

struct Reset;

impl Change for Reset {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}

struct Complement;

impl Change for Complement {
    #[inline(always)]
    fn apply(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

fn bit_test(form: &Form) -> Option<Handler> {
    use Kind::{Immediate as I, Memory as M, Register as R};
    Some(wide!(form.bits, |T| match (form.kinds[0], form.kinds[1]) {
        (R, R) => test_reg_reg::<T>,
        (R, I) => test_reg_imm::<T>,
        (M, R) => test_mem_reg::<T>,
        (M, I) => test_mem_imm::<T>,
        _ => return None,
    }))
}

fn bit_change<O: Change>(form: &Form) -> Option<Handler> {
    use Kind::{Immediate as I, Memory as M, Register as R};
    Some(wide!(form.bits, |T| {
        match (form.kinds[0], form.kinds[1], form.lock) {
            (R, R, _) => change_reg_reg::<O, T>,
            (R, I, _) => change_reg_imm::<O, T>,
            (M, R, false) => change_mem_reg::<O, T, false>,
            (M, R, true) => change_mem_reg::<O, T, true>,
            (M, I, false) => change_mem_imm::<O, T, false>,
            (M, I, true) => change_mem_imm::<O, T, true>,
            _ => return None,
        }
    }))
}

/// The bit that `offset` means inside one operand, as a mask.
#[inline(always)]
fn bit<T: Int>(offset: u64) -> u64 {
    1 << (offset & u64::from(T::BITS - 1))
}

/// Where the operand lies that holds the bit `offset` bits away from `op`'s memory operand, by
/// its sign: a register's offset may reach far outside (SDM vol. 2, BT).
#[inline(always)]
fn bit_address<T: Int>(cpu: &Cpu, op: &Op, offset: u64) -> u64 {
    let operands = offset as i64 >> T::BITS.trailing_zeros();
    let bytes = (operands as u64).wrapping_mul(T::SIZE as u64);
    cpu.address(op).wrapping_add(bytes) & u64::MAX >> (op.address_cut & 63)
}

fn test_reg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let (a, offset): (T, T) = (cpu.reg(op.r0), cpu.reg(op.r1));
    cpu.flags.set_carry(a.zx() & bit::<T>(offset.zx()) != 0);
    Ok(())
}

fn test_reg_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a: T = cpu.reg(op.r0);
    cpu.flags.set_carry(a.zx() & bit::<T>(op.imm) != 0);
    Ok(())
}

fn test_mem_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let offset = cpu.reg::<T>(op.r0).sx();
    let a: T = cpu.load_at(op.segment, bit_address::<T>(cpu, op, offset))?;
    cpu.flags.set_carry(a.zx() & bit::<T>(offset) != 0);
    Ok(())
}

fn test_mem_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let a: T = cpu.load(op)?;
    cpu.flags.set_carry(a.zx() & bit::<T>(op.imm) != 0);
    Ok(())
}

#[inline(always)]
fn change_reg<O: Change, T: Int>(cpu: &mut Cpu, op: &Op, bit: u64) -> Result {
    let a: T = cpu.reg(op.r0);
    cpu.set_reg(op.r0, T::of(O::apply(a.zx(), bit)));
    cpu.flags.set_carry(a.zx() & bit != 0);
    Ok(())
}

#[inline(always)]
fn change_mem<O: Change, T: Int, const LOCK: bool>(
    cpu: &mut Cpu,
    op: &Op,
    address: u64,
    bit: u64,
) -> Result {
    let place = cpu.place_at(op.segment, address, T::SIZE)?;
    let change = |a: T| T::of(O::apply(a.zx(), bit));
    let (a, _) = cpu.update(place, LOCK, change);
    cpu.flags.set_carry(a.zx() & bit != 0);
    Ok(())
}

fn change_reg_reg<O: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let offset: T = cpu.reg(op.r1);
    change_reg::<O, T>(cpu, op, bit::<T>(offset.zx()))
}

fn change_reg_imm<O: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    change_reg::<O, T>(cpu, op, bit::<T>(op.imm))
}

fn change_mem_reg<O: Change, T: Int, const LOCK: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let offset = cpu.reg::<T>(op.r0).sx();
    let address = bit_address::<T>(cpu, op, offset);
    change_mem::<O, T, LOCK>(cpu, op, address, bit::<T>(offset))
}

fn change_mem_imm<O: Change, T: Int, const LOCK: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let address = cpu.address(op);
    change_mem::<O, T, LOCK>(cpu, op, address, bit::<T>(op.imm))
}

/// A function of one source operand, into a register.
trait Scan {
    /// Sets the flags and returns the result; `None` leaves the destination alone.
    fn apply<T: Int>(cpu: &mut Cpu, source: T) -> Option<u64>;
}

fn scan<O: Scan>(form: &Form) -> Option<Handler> {
    Some(wide!(form.bits, |T| match form.kinds[1] {
        Kind::Memory => scan_mem::<O, T>,
        _ => scan_reg::<O, T>,
    }))
}

fn scan_reg<O: Scan, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let source: T = cpu.reg(op.r1);
    scan_to::<O, T>(cpu, op, source);
    Ok(())
}

fn scan_mem<O: Scan, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let source: T = cpu.load(op)?;
    scan_to::<O, T>(cpu, op, source);
    Ok(())
}

#[inline(always)]
fn scan_to<O: Scan, T: Int>(cpu: &mut Cpu, op: &Op, source: T) {
    if let Some(result) = O::apply(cpu, source) {
        cpu.set_reg(op.r0, T::of(result));
    }
}

#[inline(always)]
fn leading_zeros<T: Int>(source: T) -> u32 {
    source.zx().leading_zeros() - (64 - T::BITS)
}

#[inline(always)]
fn trailing_zeros<T: Int>(source: T) -> u32 {
    source.zx().trailing_zeros().min(T::BITS)
}

/// A source of 0 sets ZF and leaves the destination as it is, upper half included (APM vol. 3,
/// BSF).
struct Forward;

impl Scan for Forward {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, source: T) -> Option<u64> {
        cpu.flags.set_result(source, false, false);
        (source.zx() != 0).then(|| trailing_zeros(source).into())
    }
}

/// As [`Forward`].
struct Reverse;

impl Scan for Reverse {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, source: T) -> Option<u64> {
        cpu.flags.set_result(source, false, false);
        (source.zx() != 0).then(|| (T::BITS - 1 - leading_zeros(source)).into())
    }
}

struct TrailingZeros;

impl Scan for TrailingZeros {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, source: T) -> Option<u64> {
        let count = trailing_zeros(source);
        let carry = source.zx() == 0;
        cpu.flags.set_result(T::of(count.into()), carry, false);
        Some(count.into())
    }
}

struct LeadingZeros;

impl Scan for LeadingZeros {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, source: T) -> Option<u64> {
        let count = leading_zeros(source);
        let carry = source.zx() == 0;
        cpu.flags.set_result(T::of(count.into()), carry, false);
        Some(count.into())
    }
}

struct Ones;

impl Scan for Ones {
    #[inline(always)]
    fn apply<T: Int>(cpu: &mut Cpu, source: T) -> Option<u64> {
        let zero = x86::Rflags::ZF;
        cpu.flags.set_status(if source.zx() == 0 {
            zero
        } else {
            x86::Rflags::empty()
        });
        Some(source.zx().count_ones().into())
    }
}

/// Remainders of all bytes by the Castagnoli polynomial 11EDC6F41H, bits reflected.
static CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            let subtract = if remainder & 1 != 0 { 0x82f6_3b78 } else { 0 };
            remainder = remainder >> 1 ^ subtract;
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};

/// Clears the destination's upper half, whatever its size.
fn crc32<S: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let source: S = if MEMORY {
        cpu.load(op)?
    } else {
        cpu.reg(op.r1)
    };
    let bytes = source.zx().to_le_bytes();
    let crc = bytes[..S::SIZE]
        .iter()
        .fold(cpu.reg::<u32>(op.r0), |crc, byte| {
            crc >> 8 ^ CRC32C[usize::from(crc as u8 ^ byte)]
        });
    cpu.set_reg(op.r0, crc);
    Ok(())
}
