//! Accesses that share a check.
//!
//! Two accesses `[base + 8]` and `[base + 40]` with the same value in `base` are in one page
//! nearly always. One check, made for the whole range before the first of them, leaves the
//! difference between host and guest addresses in a register for all. Constant changes of the
//! base (PUSH, POP, ADD RSP, ...) do not end a group.

use super::{Class, Insn, Plan, SCRATCH_MAX, has_high_byte, may_not_store};
use crate::asm::RSP;
use crate::gs_pages::{GS_VIEWS, place};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// Most bytes between the first and the last byte of a group: the larger, the likelier is a
/// page's end among them.
const RANGE_MAX: i64 = 512;

/// What addresses are relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// A general-purpose register.
    Register(u8),
    /// The base of FS.
    Fs,
    /// The base of GS.
    Gs,
    /// The page of the code: relative to RIP.
    Page,
}

/// Accesses that share a check.
#[derive(Debug)]
pub(crate) struct Group {
    /// The first instruction, which makes the check.
    pub(crate) leader: usize,
    pub(crate) base: Base,
    /// Where the range begins, from the base's value at the leader.
    pub(crate) first: i32,
    /// Bytes in the range.
    pub(crate) range: u16,
    /// Whether the check is for writes.
    pub(crate) write: bool,
    /// Whether only a page that is dirty already passes it: the leader reads, and what writes may
    /// not be reached.
    pub(crate) if_dirty: bool,
    /// Which of the registers for shared checks holds the difference (for a register base) or
    /// the host address of the base.
    pub(crate) slot: usize,
}

/// An instruction's part in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) group: usize,
}

/// One access relative to a base.
struct Reference {
    insn: usize,
    base: Base,
    version: u32,
    /// First byte, from the base's value at the version's beginning.
    first: i64,
    size: i64,
    write: bool,
    /// How far the base has moved since then, at this instruction.
    moved: i64,
}

/// A group in the making.
struct Open {
    leader: usize,
    /// The first byte and the one after the last.
    first: i64,
    end: i64,
    /// Whether its check is for writes.
    write: bool,
    /// The last reference, and how many there are.
    last: usize,
    members: usize,
    /// What became of it in the plan.
    group: Option<usize>,
}

/// Finds groups, and registers for them: `room` at most at a time. For 64-bit code.
pub(crate) fn share(plan: &mut Plan, room: usize) {
    if room == 0 {
        return;
    }
    let references = references(plan);
    let mut open: Vec<Open> = Vec::with_capacity(references.len());
    let mut memberships = Vec::with_capacity(references.len());
    for (number, reference) in references.iter().enumerate() {
        let end = reference.first + reference.size;
        let found = open.iter().position(|group| {
            let leader = &references[group.leader];
            leader.base == reference.base
                && leader.version == reference.version
                && (!reference.write
                    || group.write
                    || is_stack(leader.base)
                    || is_certain(plan, leader.insn, reference.insn))
                && group.end.max(end) - group.first.min(reference.first) <= RANGE_MAX
        });
        let index = found.unwrap_or(open.len());
        memberships.push(index);
        if found.is_none() {
            open.push(Open {
                leader: number,
                first: reference.first,
                end,
                last: number,
                write: reference.write,
                members: 0,
                group: None,
            });
        }
        let group = &mut open[index];
        group.write |= reference.write;
        group.first = group.first.min(reference.first);
        group.end = group.end.max(end);
        group.last = number;
        group.members += 1;
    }
    let mut busy_until = [0; SCRATCH_MAX];
    for group in open.iter_mut().filter(|g| g.members > 1) {
        let leader = &references[group.leader];
        let busy = &mut busy_until[..room];
        let Some(slot) = busy.iter().position(|until| *until <= leader.insn) else {
            continue;
        };
        let Ok(first) = i32::try_from(group.first - leader.moved) else {
            continue;
        };
        busy[slot] = references[group.last].insn + 1;
        group.group = Some(plan.groups.len());
        plan.groups.push(Group {
            leader: leader.insn,
            base: leader.base,
            first,
            range: (group.end - group.first) as u16,
            write: group.write,
            if_dirty: group.write && !leader.write && is_stack(leader.base),
            slot,
        });
    }
    for (reference, membership) in references.iter().zip(memberships) {
        if let Some(group) = open[membership].group {
            plan.insns[reference.insn].shared = Some(Use { group });
        }
    }
}

/// Whether instruction `to` makes its access once `from` has made its own, so that the page may be
/// marked dirty before either: nothing in between leads elsewhere or can raise anything.
fn is_certain(plan: &Plan, from: usize, to: usize) -> bool {
    let divides =
        |insn: &Insn| matches!(insn.instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
    // Vector accesses may have to be aligned.
    let only_accesses = |insn: &Insn| match insn.class {
        Class::Memory(access) => !access.vector && access.size <= 8 && !divides(insn),
        _ => false,
    };
    let insns = &plan.insns;
    let between = insns[from + 1..to].iter().all(|insn| match insn.class {
        Class::Nothing | Class::LeaRip => true,
        Class::Copy => !divides(insn),
        _ => false,
    });
    between && only_accesses(&insns[from]) && only_accesses(&insns[to])
}

/// Whether accesses relative to `base` are to the stack, whose pages are dirty nearly always.
fn is_stack(base: Base) -> bool {
    base == Base::Register(RSP)
}

/// The accesses of a block that a group can serve.
fn references(plan: &Plan) -> Vec<Reference> {
    let mut references = Vec::new();
    let mut version = [0u32; 19];
    let mut moved = [0i64; 16];
    for (number, insn) in plan.insns.iter().enumerate() {
        if let Some((base, disp, size, write)) = access(insn, plan) {
            let moved = match base {
                Base::Register(register) => moved[usize::from(register)],
                _ => 0,
            };
            references.push(Reference {
                insn: number,
                base,
                version: version[index(base)],
                first: disp + moved,
                size,
                write,
                moved,
            });
        }
        for register in ones(insn.writes) {
            match movement(insn, register) {
                Some(step) => moved[usize::from(register)] += step,
                None => {
                    version[usize::from(register)] += 1;
                    moved[usize::from(register)] = 0;
                }
            }
        }
        if matches!(
            insn.class,
            Class::SwapGs | Class::WriteBase(_) | Class::Callout
        ) {
            version[index(Base::Fs)] += 1;
            version[index(Base::Gs)] += 1;
        }
    }
    references
}

/// The numbers of the bits that are set.
fn ones(mut bits: u16) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let lowest = bits.trailing_zeros() as u8;
        let is_one = bits != 0;
        bits &= bits.wrapping_sub(1);
        is_one.then_some(lowest)
    })
}

fn index(base: Base) -> usize {
    match base {
        Base::Register(register) => register.into(),
        Base::Fs => 16,
        Base::Gs => 17,
        Base::Page => 18,
    }
}

/// Base, displacement, size and direction of an instruction's access.
fn access(insn: &Insn, plan: &Plan) -> Option<(Base, i64, i64, bool)> {
    let full = 8;
    let stack = Base::Register(RSP);
    let view = plan.mode.view();
    match insn.class {
        Class::Push | Class::PushFlags | Class::PushMemory | Class::Call(_) => {
            Some((stack, -full, full, true))
        }
        Class::Pop | Class::Return(_) => Some((stack, 0, full, false)),
        Class::Memory(access) if access.size != 0 && !has_high_byte(&insn.instruction) => {
            let instruction = &insn.instruction;
            if instruction.memory_index() != Register::None {
                return None;
            }
            let base = match (instruction.memory_segment(), instruction.memory_base()) {
                (Register::FS, Register::None) => Base::Fs,
                (Register::GS, Register::None) => Base::Gs,
                (Register::FS | Register::GS, _) => return None,
                (_, Register::RIP) if plan.mode.is_relocatable() => Base::Page,
                (_, base) if base.is_gpr64() => Base::Register(base.number() as u8),
                _ => return None,
            };
            let disp = instruction.memory_displacement64() as i64;
            if access.write && may_not_store(instruction) {
                return None;
            }
            let distance = i32::try_from(disp).ok()?;
            let size = u16::from(access.size);
            if base == Base::Gs && view < GS_VIEWS && place(distance, size).is_some() {
                // It has a faster way.
                return None;
            }
            Some((base, disp, access.size.into(), access.write))
        }
        _ => None,
    }
}

/// By how much `insn` moves `register`, if that is a constant.
fn movement(insn: &Insn, register: u8) -> Option<i64> {
    let instruction = &insn.instruction;
    let full = 8;
    if register == RSP {
        match insn.class {
            Class::Push | Class::PushFlags | Class::PushMemory => return Some(-full),
            Class::Pop if !is_register(instruction, 0, RSP) => return Some(full),
            _ => {}
        }
    }
    if insn.class != Class::Copy
        || !is_register(instruction, 0, register)
        || instruction.op0_register().size() != 8
    {
        return None;
    }
    let step = match instruction.mnemonic() {
        Mnemonic::Add if is_immediate(instruction) => instruction.immediate(1) as i64,
        Mnemonic::Sub if is_immediate(instruction) => {
            (instruction.immediate(1) as i64).checked_neg()?
        }
        Mnemonic::Inc => 1,
        Mnemonic::Dec => -1,
        Mnemonic::Lea
            if instruction.memory_base() == instruction.op0_register()
                && instruction.memory_index() == Register::None =>
        {
            instruction.memory_displacement64() as i64
        }
        _ => return None,
    };
    // Far away, nothing can be shared.
    (step.abs() < 1 << 20).then_some(step)
}

fn is_register(instruction: &Instruction, operand: u32, register: u8) -> bool {
    instruction.op_count() > operand
        && instruction.op_kind(operand) == OpKind::Register
        && instruction.op_register(operand).is_gpr()
        && instruction.op_register(operand).full_register().number() == usize::from(register)
}

fn is_immediate(instruction: &Instruction) -> bool {
    matches!(
        instruction.op1_kind(),
        OpKind::Immediate8to64 | OpKind::Immediate32to64
    )
}
