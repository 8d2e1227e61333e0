//! What a check has to know of a block besides its code.

use crate::block::Exit;
use crate::plan::{self, Class, Plan, STATUS, Strings};
use iced_x86::RflagsBits;
use std::sync::atomic::{AtomicU64, Ordering};
use x86::Rflags;

/// How a translated instruction is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By translated code, unless it asks the interpreter for help.
    Native,
    /// As [`Kind::Native`], while no interrupt waits: STI.
    Sti,
    /// By translated code if its operands stay in their pages: a repeated STOS or MOVS.
    Strings(Strings),
    /// By the interpreter; also what gives another result each time.
    Interpreted,
}

/// An instruction of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Offset of its first byte in the page.
    pub(crate) at: u16,
    pub(crate) kind: Kind,
    /// Whether it may go to another instruction than the next.
    pub(crate) branches: bool,
    /// Arithmetic flags that the translation keeps up to here, as bits of RFLAGS.
    pub(crate) live: u64,
    /// Arithmetic flags that instructions before it in the block have left undefined.
    pub(crate) undefined: u64,
    /// Arithmetic flags that it reads, or an instruction before it in the block has changed.
    pub(crate) touched: u64,
}

/// All instructions and exits of a block.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) steps: Box<[Step]>,
    /// Flags that are undefined behind the last one.
    undefined: u64,
    /// For each exit, the flags that the code there reads before it overwrites them, as far as a
    /// short look tells.
    pub(crate) exits: Box<[u64]>,
    /// How often the block was executed.
    runs: AtomicU64,
}

impl Recipe {
    /// For a block whose page has the bytes in `page`.
    pub(crate) fn new(plan: &Plan, exits: &[Exit], page: &[u8]) -> Self {
        let (mut undefined, mut changed) = (0, 0);
        let mut steps = Vec::with_capacity(plan.insns.len());
        for insn in &plan.insns {
            let instruction = &insn.instruction;
            steps.push(Step {
                at: insn.at,
                kind: kind(insn.class),
                branches: insn.class.side_exit().is_some(),
                live: rflags(insn.live),
                undefined: rflags(undefined),
                touched: rflags(changed | instruction.rflags_read()),
            });
            changed |= instruction.rflags_modified();
            let defined = instruction.rflags_modified() & !instruction.rflags_undefined();
            undefined = undefined & !defined | instruction.rflags_undefined() & STATUS;
        }
        let live_at = |exit: &Exit| rflags(plan::live_at(page, exit.target, plan.mode));
        Self {
            steps: steps.into(),
            undefined: rflags(undefined),
            exits: exits.iter().map(live_at).collect(),
            runs: AtomicU64::new(0),
        }
    }

    /// Counts an execution of the block: how many there are with it.
    pub(crate) fn count_run(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The flags that the first `executed` instructions have left undefined.
    pub(crate) fn undefined_after(&self, executed: usize) -> u64 {
        let next = self.steps.get(executed);
        next.map_or(self.undefined, |step| step.undefined)
    }

    /// The number of the instruction at offset `at` of the page.
    pub(crate) fn number(&self, at: u16) -> Option<usize> {
        self.steps.iter().position(|step| step.at == at)
    }
}

fn kind(class: Class) -> Kind {
    match class {
        Class::Callout | Class::End | Class::ReadCounter(_) => Kind::Interpreted,
        Class::Strings(strings) if strings.repeats => Kind::Strings(strings),
        Class::Strings(_) => Kind::Interpreted,
        Class::Sti => Kind::Sti,
        _ => Kind::Native,
    }
}

/// iced-x86's arithmetic flags as bits of RFLAGS.
fn rflags(bits: u32) -> u64 {
    let all = [
        (RflagsBits::CF, Rflags::CF),
        (RflagsBits::PF, Rflags::PF),
        (RflagsBits::AF, Rflags::AF),
        (RflagsBits::ZF, Rflags::ZF),
        (RflagsBits::SF, Rflags::SF),
        (RflagsBits::OF, Rflags::OF),
    ];
    let set = all.iter().filter(|(bit, _)| bits & bit != 0);
    set.fold(0, |flags, (_, flag)| flags | flag.bits())
}
