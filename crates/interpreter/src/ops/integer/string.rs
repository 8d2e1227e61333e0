//! MOVS, CMPS, SCAS, LODS, STOS, by themselves and repeated.
//!
//! A repeated instruction is interruptible: after every element its registers show what is done
//! and RIP is still its own. It gives the run loop a chance after [`WORK`]; what lies in one page
//! on each side, ascending, is done in one go where the TLB allows it.

use super::sized;
use crate::cpu::{Cpu, Result};
use crate::int::Int;
use crate::op::{Handler, Op, Seg};
use crate::paging::Intent;
use iced_x86::{Instruction, Mnemonic as M};
use memory::PAGE_SIZE;
use x86::Rflags;

/// Slots of RAX, RCX, RSI and RDI.
const AX: u8 = 0;
const CX: u8 = 1;
const SI: u8 = 6;
const DI: u8 = 7;

/// Bytes that a repeated instruction may move before the run loop looks at interrupts.
const WORK: u64 = 64 << 10;
/// What an element that is looked at by itself counts for, in bytes.
const STEP_WORK: u64 = 16;

/// What ends a repetition besides the count: REPE stops at inequality, REPNE at equality.
const REP: u8 = 0;
const REPE: u8 = 1;
const REPNE: u8 = 2;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    if !instruction.is_string_instruction() {
        // MOVSD and CMPSD are also instructions on XMM registers.
        return None;
    }
    match instruction.mnemonic() {
        M::Movsb => string::<Movs>(instruction, 8),
        M::Movsw => string::<Movs>(instruction, 16),
        M::Movsd => string::<Movs>(instruction, 32),
        M::Movsq => string::<Movs>(instruction, 64),
        M::Cmpsb => string::<Cmps>(instruction, 8),
        M::Cmpsw => string::<Cmps>(instruction, 16),
        M::Cmpsd => string::<Cmps>(instruction, 32),
        M::Cmpsq => string::<Cmps>(instruction, 64),
        M::Scasb => string::<Scas>(instruction, 8),
        M::Scasw => string::<Scas>(instruction, 16),
        M::Scasd => string::<Scas>(instruction, 32),
        M::Scasq => string::<Scas>(instruction, 64),
        M::Lodsb => string::<Lods>(instruction, 8),
        M::Lodsw => string::<Lods>(instruction, 16),
        M::Lodsd => string::<Lods>(instruction, 32),
        M::Lodsq => string::<Lods>(instruction, 64),
        M::Stosb => string::<Stos>(instruction, 8),
        M::Stosw => string::<Stos>(instruction, 16),
        M::Stosd => string::<Stos>(instruction, 32),
        M::Stosq => string::<Stos>(instruction, 64),
        _ => None,
    }
}

fn string<O: Element>(instruction: &Instruction, bits: u32) -> Option<Handler> {
    let (f3, f2) = (instruction.has_rep_prefix(), instruction.has_repne_prefix());
    Some(sized!(bits, |T| match (O::COMPARES, f3, f2) {
        (_, false, false) => once::<O, T>,
        (true, true, _) => repeat::<O, T, REPE>,
        (true, false, true) => repeat::<O, T, REPNE>,
        (false, ..) => repeat::<O, T, REP>,
    }))
}

/// Offsets of the elements.
#[derive(Clone, Copy)]
struct Pointers {
    si: u64,
    di: u64,
}

/// What a string instruction does to one element.
trait Element {
    /// Which pointers it uses.
    const USES_SI: bool;
    const USES_DI: bool;
    /// Whether it sets flags, by which a repetition may end.
    const COMPARES: bool;

    /// Does one element.
    fn step<T: Int>(cpu: &mut Cpu, op: &Op, at: Pointers) -> Result;

    /// Does up to `count` ascending elements, and no further than the one that ends a repetition
    /// of kind `kind`. Returns how many; 0 if [`Element::step`] must look at the next.
    fn run<T: Int>(cpu: &mut Cpu, op: &Op, at: Pointers, count: u64, kind: u8) -> u64;

    /// As [`Element::run`] for up to `count` descending elements of a repetition that only the
    /// count ends.
    fn run_down<T: Int>(_: &mut Cpu, _: &Op, _: Pointers, _count: u64) -> u64 {
        0
    }
}

/// The bits of an address.
#[inline(always)]
fn mask(op: &Op) -> u64 {
    u64::MAX >> (op.address_cut & 63)
}

#[inline(always)]
fn pointers(cpu: &Cpu, op: &Op) -> Pointers {
    Pointers {
        si: cpu.gpr[SI as usize] & mask(op),
        di: cpu.gpr[DI as usize] & mask(op),
    }
}

/// Writes as much of a register as addresses have bits.
#[inline(always)]
fn set_register(cpu: &mut Cpu, op: &Op, slot: u8, value: u64) {
    match op.address_cut {
        0 => cpu.set_reg(slot, value),
        32 => cpu.set_reg(slot, value as u32),
        _ => cpu.set_reg(slot, value as u16),
    }
}

/// Moves the pointers over `count` elements.
#[inline(always)]
fn advance<O: Element, T: Int>(cpu: &mut Cpu, op: &Op, count: u64) {
    let bytes = count.wrapping_mul(T::SIZE as u64);
    let delta = if cpu.flags.df() {
        bytes.wrapping_neg()
    } else {
        bytes
    };
    for (slot, used) in [(SI, O::USES_SI), (DI, O::USES_DI)] {
        if used {
            let value = cpu.gpr[slot as usize].wrapping_add(delta);
            set_register(cpu, op, slot, value);
        }
    }
}

fn once<O: Element, T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    O::step::<T>(cpu, op, pointers(cpu, op))?;
    advance::<O, T>(cpu, op, 1);
    Ok(())
}

/// A fault takes back the flags of elements already compared on Intel's processors (SDM vol. 2,
/// REP), and leaves them on AMD's.
fn repeat<O: Element, T: Int, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    let flags = cpu.flags;
    let result = repeat_elements::<O, T, KIND>(cpu, op);
    if O::COMPARES && result.is_err() && !cpu.model.is_amd() {
        cpu.flags = flags;
    }
    result
}

#[inline(always)]
fn repeat_elements<O: Element, T: Int, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Result {
    // Single-stepping traps after each element (SDM vol. 3, 18.3.1.4).
    let single = cpu.flags.system().contains(Rflags::TF);
    let mut work = if single { 0 } else { WORK };
    loop {
        let count = cpu.gpr[CX as usize] & mask(op);
        if count == 0 {
            break;
        }
        let at = pointers(cpu, op);
        let fast = match (single, cpu.flags.df()) {
            (true, _) => 0,
            (false, true) => O::run_down::<T>(cpu, op, at, count),
            (false, false) => O::run::<T>(cpu, op, at, count, KIND),
        };
        let done = if fast == 0 {
            O::step::<T>(cpu, op, at)?;
            1
        } else {
            fast
        };
        advance::<O, T>(cpu, op, done);
        set_register(cpu, op, CX, count - done);
        if count == done || ends(cpu, KIND) {
            break;
        }
        work = work.saturating_sub((done * T::SIZE as u64).max(STEP_WORK));
        if work == 0 || cpu.stop {
            cpu.rip = code_address(cpu, cpu.rip_of(op));
            cpu.attend();
            return Ok(());
        }
    }
    cpu.rip = code_address(cpu, cpu.next_rip(op));
    Ok(())
}

/// Whether the flags end a repetition.
#[inline(always)]
fn ends(cpu: &Cpu, kind: u8) -> bool {
    match kind {
        REPE => !cpu.flags.zf(),
        REPNE => cpu.flags.zf(),
        _ => false,
    }
}

fn code_address(cpu: &Cpu, rip: u64) -> u64 {
    if cpu.is_64bit() {
        rip
    } else {
        rip & 0xffff_ffff
    }
}

/// ES, which no prefix overrides.
#[inline(always)]
fn destination(cpu: &Cpu) -> Seg {
    if cpu.is_64bit() {
        Seg::long(0)
    } else {
        Seg::legacy(0)
    }
}

/// Whole elements in guest memory.
struct Span {
    /// Offset of the first.
    at: usize,
    /// How many.
    count: u64,
}

/// Up to `count` elements at `offset` of `segment` that lie in one page, may be accessed and are
/// in the TLB.
#[inline]
fn span<T: Int>(
    cpu: &mut Cpu,
    op: &Op,
    segment: Seg,
    offset: u64,
    count: u64,
    intent: Intent,
) -> Option<Span> {
    let size = T::SIZE as u64;
    let linear = cpu.bases[segment.slot()].wrapping_add(offset);
    let in_page = PAGE_SIZE as u64 - (linear & (PAGE_SIZE as u64 - 1));
    let in_segment = (mask(op) - offset).saturating_add(1);
    let count = count.min(in_page.min(in_segment) / size);
    let bytes = (count * size) as usize;
    if bytes == 0 {
        return None;
    }
    let Ok(linear) = cpu.linear(segment, offset, bytes, intent) else {
        // Some of it is out of bounds; stepping will find out which.
        cpu.exception = None;
        return None;
    };
    let at = match intent {
        Intent::Write => cpu.tlb.write(cpu.view, linear, bytes),
        _ => cpu.tlb.read(cpu.view, linear, bytes),
    };
    at.map(|at| Span { at, count })
}

/// As [`span`] for elements from `offset` down. [`Span::at`] is that of the lowest.
#[inline]
fn span_down<T: Int>(
    cpu: &mut Cpu,
    op: &Op,
    segment: Seg,
    offset: u64,
    count: u64,
    intent: Intent,
) -> Option<Span> {
    let size = T::SIZE as u64;
    let linear = cpu.bases[segment.slot()].wrapping_add(offset);
    let below = (linear & (PAGE_SIZE as u64 - 1)).min(offset) / size;
    let count = count.min(below + 1);
    let lowest = offset - (count - 1) * size;
    let span = span::<T>(cpu, op, segment, lowest, count, intent)?;
    (span.count == count).then_some(span)
}

struct Movs;

impl Element for Movs {
    const USES_SI: bool = true;
    const USES_DI: bool = true;
    const COMPARES: bool = false;

    #[inline(always)]
    fn step<T: Int>(cpu: &mut Cpu, op: &Op, at: Pointers) -> Result {
        let value: T = cpu.load_at(op.segment, at.si)?;
        cpu.store_at(destination(cpu), at.di, value)
    }

    fn run<T: Int>(cpu: &mut Cpu, op: &Op, at: Pointers, count: u64, _: u8) -> u64 {
        let Some(from) = span::<T>(cpu, op, op.segment, at.si, count, Intent::Read) else {
            return 0;
        };
        let to = destination(cpu);
        let Some(to) = span::<T>(cpu, op, to, at.di, from.count, Intent::Write) else {
            return 0;
        };
        // Byte by byte is the same as element by element unless an element overlaps the next
        // one's source in part.
        if (1..T::SIZE).contains(&to.at.wrapping_sub(from.at)) {
            return 0;
        }
        let bytes = to.count as usize * T::SIZE;
        cpu.ram.copy_within(from.at, to.at, bytes);
        to.count
    }

    fn run_down<T: Int>(cpu: &mut Cpu, op: &Op, at: Pointers, count: u64) -> u64 {
        let Some(from) = span_down::<T>(cpu, op, op.segment, at.si, count, Intent::Read) else {
            return 0;
        };
        let to = destination(cpu);
        let Some(to) = span_down::<T>(cpu, op, to, at.di, from.count, Intent::Write) else {
            return 0;
        };
        // The higher elements of the longer span are the ones whose turn it is.
        let from = from.at + (from.count - to.count) as usize * T::SIZE;
        let bytes = to.count as usize * T::SIZE;
        if from.abs_diff(to.at) < bytes {
            return 0;
        }
        cpu.ram.copy_within(from, to.at, bytes);
        to.count
    }
}

struct Stos;

impl Element for Stos {
    const USES_SI: bool = false;
    const USES_DI: bool = true;
    const COMPARES: bool = false;

    #[inline(always)]
    fn step<T: Int>(cpu: &mut Cpu, _: &Op, at: Pointers) -> Result {
        let value: T = cpu.reg(AX);
        cpu.store_at(destination(cpu), at.di, value)
    }

    fn run<T: Int>(cpu: &mut Cpu, op: &Op, at: Pointers, count: u64, _: u8) -> u64 {
        let to = destination(cpu);
        let Some(to) = span::<T>(cpu, op, to, at.di, count, Intent::Write) else {
            return 0;
        };
        let value: T = cpu.reg(AX);
        let bytes = to.count as usize * T::SIZE;
        let byte = value.zx() as u8;
        if value == T::of(u64::from_le_bytes([byte; 8])) {
            cpu.ram.fill(to.at, byte, bytes);
        } else {
            for offset in (0..bytes).step_by(T::SIZE) {
                cpu.ram.store(to.at + offset, value);
            }
        }
        to.count
    }
}

struct Lods;

impl Element for Lods {
    const USES_SI: bool = true;
    const USES_DI: bool = false;
    const COMPARES: bool = false;

    #[inline(always)]
    fn step<T: Int>(cpu: &mut Cpu, op: &Op, at: Pointers) -> Result {
        let value: T = cpu.load_at(op.segment, at.si)?;
        cpu.set_reg(AX, value);
        Ok(())
    }

    /// Nobody repeats LODS for speed.
    fn run<T: Int>(_: &mut Cpu, _: &Op, _: Pointers, _: u64, _: u8) -> u64 {
        0
    }
}

#[inline(always)]
fn compare<T: Int>(cpu: &mut Cpu, a: T, b: T) {
    let difference = T::of(a.zx().wrapping_sub(b.zx()));
    cpu.flags.set_sub(a, b, difference);
}

struct Scas;

impl Element for Scas {
    const USES_SI: bool = false;
    const USES_DI: bool = true;
    const COMPARES: bool = true;

    #[inline(always)]
    fn step<T: Int>(cpu: &mut Cpu, _: &Op, at: Pointers) -> Result {
        let b: T = cpu.load_at(destination(cpu), at.di)?;
        let a = cpu.reg(AX);
        compare(cpu, a, b);
        Ok(())
    }

    fn run<T: Int>(cpu: &mut Cpu, op: &Op, at: Pointers, count: u64, kind: u8) -> u64 {
        let segment = destination(cpu);
        let Some(span) = span::<T>(cpu, op, segment, at.di, count, Intent::Read) else {
            return 0;
        };
        let a: T = cpu.reg(AX);
        compare_run(cpu, span.count, kind, |cpu, offset| {
            (a, cpu.ram.load(span.at + offset))
        })
    }
}

struct Cmps;

impl Element for Cmps {
    const USES_SI: bool = true;
    const USES_DI: bool = true;
    const COMPARES: bool = true;

    /// If both faulted, AMD's processors report the second operand.
    #[inline(always)]
    fn step<T: Int>(cpu: &mut Cpu, op: &Op, at: Pointers) -> Result {
        let b: T = cpu.load_at(destination(cpu), at.di)?;
        let a: T = cpu.load_at(op.segment, at.si)?;
        compare(cpu, a, b);
        Ok(())
    }

    fn run<T: Int>(cpu: &mut Cpu, op: &Op, at: Pointers, count: u64, kind: u8) -> u64 {
        let Some(a) = span::<T>(cpu, op, op.segment, at.si, count, Intent::Read) else {
            return 0;
        };
        let segment = destination(cpu);
        let Some(b) = span::<T>(cpu, op, segment, at.di, a.count, Intent::Read) else {
            return 0;
        };
        compare_run(cpu, b.count, kind, |cpu, offset| {
            let (a, b): (T, T) = (cpu.ram.load(a.at + offset), cpu.ram.load(b.at + offset));
            (a, b)
        })
    }
}

/// Compares up to `count` (not 0) pairs and stops after the one that ends the repetition. Sets the flags
/// by the last. Returns how many were compared.
#[inline(always)]
fn compare_run<T: Int>(
    cpu: &mut Cpu,
    count: u64,
    kind: u8,
    pair: impl Fn(&Cpu, usize) -> (T, T),
) -> u64 {
    let mut done = 0;
    loop {
        let (a, b) = pair(cpu, done as usize * T::SIZE);
        done += 1;
        if done == count || (a == b) == (kind == REPNE) {
            compare(cpu, a, b);
            return done;
        }
    }
}
