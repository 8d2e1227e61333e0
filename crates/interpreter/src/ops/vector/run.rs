//! Instructions that the host executes on the frame.

use super::unit::{Avx, Integer, IntegerVex, Mmx, MmxSse, Sse, Unit};
use crate::cpu::{Cpu, Result};
use crate::op::{Handler, Op};
use iced_x86::{Instruction, OpKind};
use native::{Operation, Outcome, Routine};
use x86::Rflags;

/// In [`Op::extra`], above the operand's size: the memory operand is read.
const READ: u8 = 1 << 6;
/// In [`Op::extra`]: the memory operand is written.
const WRITE: u8 = 1 << 7;
/// In [`Op::extra`]: the memory operand's size in bytes, 0 if there is none.
const SIZE: u8 = READ - 1;

/// The handler for `instruction`, which `routine` executes. [`Op::imm`] becomes what alignment
/// forbids (see [`Cpu::load_array`]), [`Op::extra`] describes the memory operand.
pub(super) fn select(routine: Routine, instruction: &Instruction, op: &mut Op) -> Handler {
    op.imm = 0;
    op.extra = 0;
    if let Some(memory) = routine.memory() {
        op.imm = u64::from(memory.alignment) - 1;
        op.extra = memory.bytes
            | if memory.read { READ } else { 0 }
            | if memory.write { WRITE } else { 0 };
    }
    let flags = routine.flags_read() | routine.flags_written() != 0;
    match routine.unit() {
        native::Unit::Integer { vex: true } => flexible::<IntegerVex>,
        // x87 instructions never come here, they have their own handler.
        native::Unit::Integer { vex: false } | native::Unit::X87 => flexible::<Integer>,
        // CVTPI2PS from memory, which waits on some processors only: the host decides.
        native::Unit::Mmx if !routine.is_waiting() => flexible::<Sse>,
        native::Unit::Mmx if routine.uses_mxcsr() || has_xmm(instruction) => flexible::<MmxSse>,
        native::Unit::Mmx => flexible::<Mmx>,
        native::Unit::Sse => quick::<Sse>(op, flags),
        native::Unit::Avx => quick::<Avx>(op, flags),
    }
}

fn has_xmm(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Register
            && instruction.op_register(operand).is_xmm()
    })
}

/// Handlers for the common forms, which know all about their operand.
fn quick<U: Unit>(op: &Op, flags: bool) -> Handler {
    const LOAD_4: u8 = 4 | READ;
    const LOAD_8: u8 = 8 | READ;
    const LOAD_16: u8 = 16 | READ;
    const LOAD_32: u8 = 32 | READ;
    match op.extra {
        _ if flags => flexible::<U>,
        0 => registers::<U>,
        LOAD_4 => load::<U, 4>,
        LOAD_8 => load::<U, 8>,
        LOAD_16 => load::<U, 16>,
        LOAD_32 => load::<U, 32>,
        _ => flexible::<U>,
    }
}

impl Cpu {
    /// Has the host execute `op`, on its memory operand in the frame's scratch.
    #[inline(always)]
    pub(super) fn execute(&mut self, op: &Op) -> Outcome {
        let Operation::Run(routine) = self.vector.get(op.aux) else {
            unreachable!("the decoder chose the handler for a routine");
        };
        run(self, routine)
    }

    /// Does [`Cpu::execute`] for an instruction that may read or write status flags.
    pub(super) fn execute_with_flags(&mut self, op: &Op) -> Outcome {
        let Operation::Run(routine) = self.vector.get(op.aux) else {
            unreachable!("the decoder chose the handler for a routine");
        };
        self.fpu.flags = self.flags.get().bits();
        let outcome = run(self, routine);
        if routine.flags_written() != 0 && outcome != Outcome::SimdException {
            self.flags
                .set_status(Rflags::from_bits_retain(self.fpu.flags));
        }
        outcome
    }
}

#[inline(always)]
fn run(cpu: &mut Cpu, routine: Routine) -> Outcome {
    let registers = cpu
        .gpr
        .first_chunk_mut()
        .expect("there are more slots than registers");
    routine.run(&mut cpu.fpu, registers)
}

/// Registers only, no flags.
fn registers<U: Unit>(cpu: &mut Cpu, op: &Op) -> Result {
    U::ready(cpu)?;
    let outcome = cpu.execute(op);
    cpu.conclude(outcome)?;
    Ok(())
}

/// Reads an operand of `N` bytes from memory, no flags.
fn load<U: Unit, const N: usize>(cpu: &mut Cpu, op: &Op) -> Result {
    U::ready(cpu)?;
    let operand = cpu.load_array::<N>(op, op.imm)?;
    cpu.fpu.scratch[..N].copy_from_slice(&operand);
    let outcome = cpu.execute(op);
    cpu.conclude(outcome)?;
    Ok(())
}

/// Any form.
fn flexible<U: Unit>(cpu: &mut Cpu, op: &Op) -> Result {
    U::ready(cpu)?;
    around_memory(cpu, op, op.imm, |cpu| {
        let outcome = cpu.execute_with_flags(op);
        cpu.conclude(outcome)
    })
}

/// Brings `op`'s memory operand into the frame's scratch, calls `execute`, and stores the operand
/// if it is one that is written and `execute` says so. What memory may raise is raised before;
/// `misaligned` is as for [`Cpu::load_array`].
pub(super) fn around_memory(
    cpu: &mut Cpu,
    op: &Op,
    misaligned: u64,
    execute: impl FnOnce(&mut Cpu) -> Result<bool>,
) -> Result {
    let size = usize::from(op.extra & SIZE);
    if op.extra & WRITE == 0 {
        if op.extra & READ != 0 {
            load_scratch(cpu, op, size, misaligned)?;
        }
        execute(cpu)?;
        return Ok(());
    }
    let place = cpu.place_array(op, size, misaligned)?;
    if op.extra & READ != 0 {
        load_scratch(cpu, op, size, misaligned)?;
    }
    if execute(cpu)? {
        let result = cpu.fpu.scratch;
        match size {
            4 => put::<4>(cpu, place, &result),
            8 => put::<8>(cpu, place, &result),
            16 => put::<16>(cpu, place, &result),
            32 => put::<32>(cpu, place, &result),
            _ => cpu.put_bytes(place, &result[..size]),
        }
    }
    Ok(())
}

fn load_scratch(cpu: &mut Cpu, op: &Op, size: usize, misaligned: u64) -> Result {
    match size {
        4 => fill::<4>(cpu, op, misaligned),
        8 => fill::<8>(cpu, op, misaligned),
        16 => fill::<16>(cpu, op, misaligned),
        32 => fill::<32>(cpu, op, misaligned),
        10 => fill::<10>(cpu, op, misaligned),
        2 => fill::<2>(cpu, op, misaligned),
        1 => fill::<1>(cpu, op, misaligned),
        _ => unreachable!("no instruction has an operand of {size} bytes"),
    }
}

#[inline(always)]
fn fill<const N: usize>(cpu: &mut Cpu, op: &Op, misaligned: u64) -> Result {
    let operand = cpu.load_array::<N>(op, misaligned)?;
    cpu.fpu.scratch[..N].copy_from_slice(&operand);
    Ok(())
}

#[inline(always)]
fn put<const N: usize>(
    cpu: &mut Cpu,
    place: crate::access::Place,
    scratch: &[u8; native::SCRATCH_BYTES],
) {
    let operand = scratch
        .first_chunk::<N>()
        .expect("scratch holds every operand");
    cpu.put_array(place, operand);
}
