//! Lock-step: every block is executed by the interpreter too, from the same state, and everything
//! that may differ afterwards is compared. The first block that differs ends the run.
//!
//! How a block is checked:
//! 1. The interpreter *tries* it (`interpreter::trial`), instruction by instruction, up to its end
//!    or to what translated code does not do by itself. That tells the registers at the end and
//!    the bytes written, and leaves no trace.
//! 2. The translation is executed for good. It is left at the block's end: in lock-step, blocks
//!    are not linked, and the jump caches stay empty. What translated code asks Rust code for is
//!    where it ends too, but for entries of the TLB.
//! 3. If translated code was left before the interpreter's trial had ended, the trial is made
//!    again from the state of before, up to that instruction.
//! 4. The registers are compared, and *all* memory that was written: translated code gets no
//!    permission to write to a page before a copy of the page was made, and these permissions are
//!    taken back after each block.
//! 5. If the interpreter has to execute the next instruction, it does, unchecked.
//!
//! Flags: those that are undefined are not compared. Those that the code behind an exit overwrites
//! may be anything; but the next block's translation is started with what translated code left
//! there, and its trial with the right ones, so a flag that was wrongly taken for dead shows
//! where it is read.
//!
//! What is not seen: links and jump caches, which are not used; instructions that the interpreter
//! executes in either case; devices and what other vCPUs do, which is why there is only one vCPU.

mod recipe;
mod report;
#[cfg(test)]
mod tests;

pub(crate) use recipe::Recipe;
use recipe::{Kind, Step};
use report::{Differences, Report};

use crate::block::{BlockId, Key, Site};
use crate::context::{Context, STRING_COUNT_END};
use crate::gate::Reason;
use crate::lookup::Lookup;
use crate::mode::Mode;
use crate::plan::Strings;
use crate::store::PAGE;
use crate::vcpu::{Entry, Taken, TranslatorVcpu};
use engine::Exit;
use interpreter::{Effects, Snapshot, Tried};
use memory::Ram;
use std::num::NonZeroU32;
use x86::paging::is_canonical;
use x86::{Exception, Rflags};

/// The arithmetic flags.
const STATUS_FLAGS: u64 = Rflags::STATUS.bits();
/// Executions of a block that are checked whatever part of them is to be.
const FIRST_RUNS: u64 = 4;
/// How often a check is begun anew before it is left out, because the trial changed what is
/// translated.
const ATTEMPTS_MAX: u32 = 4;

/// Where an execution of a block has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Where an exit leads.
    Exit,
    /// Before this instruction, by number.
    Before(usize),
}

/// How translated code was left.
#[derive(Debug, Clone, Copy)]
struct Stop {
    end: End,
    /// Arithmetic flags that are right.
    live: u64,
    /// The interpreter has to execute the instruction at RIP.
    interpret: bool,
    /// That is a call of no canonical address, and has pushed its return address already.
    has_pushed: bool,
}

/// How far a trial goes, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    End,
    /// Before the instruction of this number.
    Step(usize),
    /// To where a branch has led.
    Rip(u64),
}

/// What a trial found.
struct Trial {
    end: End,
    /// Instructions that were executed.
    executed: usize,
    registers: Snapshot,
    effects: Effects,
    /// Why it ended before its end: this would be raised.
    raises: Option<Exception>,
}

/// Arithmetic flags that translated code left, where those that are dead are not what they
/// should be.
#[derive(Debug, Clone, Copy)]
struct DeadFlags {
    rip: u64,
    flags: u64,
    /// The number of looks at requests until then: interrupts use the right ones.
    attended: u64,
}

/// A page of guest memory that translated code may write to, and what was there.
pub(crate) struct Page {
    pub(crate) offset: usize,
    pub(crate) before: Box<[u8; PAGE]>,
}

/// What lock-step needs of a vCPU.
pub(crate) struct Lockstep {
    /// Each how many executions of a block are checked.
    every: u64,
    /// How translated code was left.
    stop: Option<Stop>,
    /// The execution that goes on is checked.
    is_checked: bool,
    pages: Vec<Page>,
    spare: Vec<Box<[u8; PAGE]>>,
    /// Permissions to write that were given: view and linear address.
    writable: Vec<(usize, u64)>,
    /// The string instruction, by its place in the cache, whose pages were looked up.
    strings_at: Option<u32>,
    dead_flags: Option<DeadFlags>,
    attempts: u32,
    pub(crate) checked: u64,
    pub(crate) checked_instructions: u64,
    pub(crate) unchecked: u64,
}

impl Lockstep {
    /// Checks the first executions of each block, and one in `every` after that.
    pub(crate) fn new(every: NonZeroU32) -> Self {
        Self {
            every: every.get().into(),
            stop: None,
            is_checked: false,
            pages: Vec::new(),
            spare: Vec::new(),
            writable: Vec::new(),
            strings_at: None,
            dead_flags: None,
            attempts: 0,
            checked: 0,
            checked_instructions: 0,
            unchecked: 0,
        }
    }

    /// Translated code is about to get permission to write to the page at `offset`, by way of
    /// `linear`.
    pub(crate) fn lets_write(&mut self, ram: &Ram, offset: usize, view: usize, linear: u64) {
        self.writable.push((view, linear));
        if !self.is_checked || self.pages.iter().any(|page| page.offset == offset) {
            return;
        }
        let mut before = self.spare.pop().unwrap_or_else(|| Box::new([0; PAGE]));
        ram.read(offset, &mut before[..]);
        self.pages.push(Page { offset, before });
    }

    /// Takes the permissions to write back.
    fn revoke(&mut self, lookup: &mut Lookup, context: &mut Context) {
        for (view, linear) in self.writable.drain(..) {
            lookup.forget_write(context, view, linear);
        }
        self.spare
            .extend(self.pages.drain(..).map(|page| page.before));
    }
}

impl TranslatorVcpu {
    /// Executes the block at RIP, which is `id`, and checks it if it is its turn.
    ///
    /// # Errors
    /// The exit, if the vCPU has to stop: [`Exit::Failed`] if the translation is wrong.
    pub(crate) fn run_in_lockstep(&mut self, id: BlockId) -> Result<(), Exit> {
        self.vectors_to_core();
        let Some(block) = self.store.block(id) else {
            unreachable!("it was just found");
        };
        let (entry, key) = (block.entry, block.key);
        let recipe = self.store.recipe(entry);
        let runs = recipe.count_run();
        let lockstep = self.lockstep.as_mut().expect("this is lock-step");
        lockstep.revoke(&mut self.lookup, &mut self.context);
        let turn = runs <= FIRST_RUNS || runs.is_multiple_of(lockstep.every);
        lockstep.is_checked = turn && lockstep.attempts < ATTEMPTS_MAX;
        let dead_flags = lockstep.dead_flags.take();
        let start = self.core.snapshot();
        let mut trial = None;
        // Flags with which the translation starts, and that are wrong.
        let mut wrong = 0;
        if lockstep.is_checked {
            trial = Some(self.try_block(&recipe, Until::End));
            if self.core.has_changes() {
                // Decoding for the interpreter has made pages code: what is translated may have
                // to be forgotten.
                let lockstep = self.lockstep.as_mut().expect("this is lock-step");
                lockstep.attempts += 1;
                lockstep.dead_flags = dead_flags;
                if key.mode.contains(Mode::SINGLE) {
                    self.ask_for_single(id, start.rip);
                }
                return Ok(());
            }
            let is_next =
                |d: &DeadFlags| d.rip == start.rip && d.attended == self.counters.attended;
            if let Some(dead) = dead_flags.filter(is_next) {
                let others = start.rflags & !STATUS_FLAGS;
                self.core.set_rflags_status_df_if(others | dead.flags);
                wrong = (dead.flags ^ start.rflags) & STATUS_FLAGS;
            }
        }
        let mut stop = self.run_alone(entry, key.mode)?;
        if let End::Before(number) = stop.end {
            // What the instruction does not read was dead before the block.
            stop.live &= !(wrong & !recipe.steps[number].touched);
        }
        self.vectors_to_core();
        let lockstep = self.lockstep.as_mut().expect("this is lock-step");
        lockstep.attempts = 0;
        match trial {
            Some(trial) => {
                lockstep.checked += 1;
                self.check(entry, &recipe, &key, &start, trial, stop)?;
            }
            None => lockstep.unchecked += 1,
        }
        if stop.interpret {
            self.core.run_instruction()?;
        }
        Ok(())
    }

    /// Executes the translation at `entry`, which is of `mode`, until it is left.
    fn run_alone(&mut self, entry: u32, mode: Mode) -> Result<Stop, Exit> {
        self.context.pc = self.core.rip();
        let lockstep = self.lockstep.as_mut().expect("this is lock-step");
        lockstep.stop = None;
        lockstep.strings_at = None;
        self.enter(&Entry::block(entry, mode));
        self.take_crossing();
        if Reason::new(self.context.reason) == Reason::Fault {
            let at = self.take_fault()?;
            return Ok(self.stop_before(entry, at));
        }
        let lockstep = self.lockstep.as_mut().expect("this is lock-step");
        Ok(lockstep
            .stop
            .take()
            .expect("an assist has left translated code"))
    }

    /// Translated code of the block at `entry` was left before the instruction at offset `at`, which
    /// is the interpreter's.
    fn stop_before(&self, entry: u32, at: u16) -> Stop {
        let recipe = self.store.recipe(entry);
        let number = recipe.number(at).expect("sites are at instructions");
        Stop {
            end: End::Before(number),
            live: recipe.steps[number].live,
            interpret: true,
            has_pushed: false,
        }
    }

    /// As [`TranslatorVcpu::assist`], in lock-step.
    pub(crate) fn assist_in_lockstep(&mut self) -> Option<u64> {
        self.take_crossing();
        match Reason::new(self.context.reason) {
            Reason::Link => self.stop_at_exit(),
            Reason::Indirect => self.stop_at_jump(),
            Reason::Callout => {
                if let Some(host) = self.look_up_strings_once() {
                    return Some(host);
                }
                self.counters.callouts += 1;
                self.stop_at_site()
            }
            Reason::Memory => {
                if let Some(host) = self.refill() {
                    return Some(host);
                }
                self.counters.accesses += 1;
                self.stop_at_site()
            }
            Reason::Fault | Reason::Left => unreachable!("no gate asks for an assist with these"),
        }
        None
    }

    fn stop_at_exit(&mut self) {
        let argument = self.context.argument;
        let number = argument as u8;
        let Some((from, exit)) = self.store.exit(argument >> 8, number) else {
            unreachable!("the block that ran is there");
        };
        let (entry, key) = (from.entry, from.key);
        let rip = self.address(key.linear, key.mode, exit.target);
        let stop = if exit.single {
            self.counters.singles += 1;
            self.ask_for_single(argument >> 8, rip);
            Stop {
                interpret: false,
                ..self.stop_before(entry, exit.target as u16)
            }
        } else {
            self.counters.links += 1;
            Stop {
                end: End::Exit,
                live: self.store.recipe(entry).exits[usize::from(number)],
                interpret: false,
                has_pushed: false,
            }
        };
        self.stop(0, rip, stop);
    }

    /// The next block, at `rip`, is to be one that checks every access by itself. In lock-step it
    /// is not linked to `from`.
    fn ask_for_single(&mut self, from: BlockId, rip: u64) {
        self.taken = Some(Taken {
            from,
            exit: 0,
            rip,
            single: true,
            generation: self.store.generation,
        });
    }

    fn stop_at_jump(&mut self) {
        self.counters.indirect += 1;
        let rip = self.context.pc;
        if !is_canonical(rip, 48)
            && let Some((block, site)) = self.site()
        {
            let (entry, key) = (block.entry, block.key);
            let rsp = &mut self.context.host[4];
            *rsp = rsp.wrapping_sub(i64::from(site.moved) as u64);
            let at = self.address(key.linear, key.mode, site.at.into());
            let stop = Stop {
                has_pushed: site.moved < 0,
                ..self.stop_before(entry, site.at)
            };
            return self.stop(0, at, stop);
        }
        let stop = Stop {
            end: End::Exit,
            live: STATUS_FLAGS,
            interpret: false,
            has_pushed: false,
        };
        self.stop(0, rip, stop);
    }

    fn stop_at_site(&mut self) {
        let (entry, key, scratch, site) = self.running_site();
        let rip = self.address(key.linear, key.mode, site.at.into());
        let stop = self.stop_before(entry, site.at);
        self.stop(scratch, rip, stop);
    }

    /// The block that runs, by its entry, key and scratch registers, and the site in it.
    fn running_site(&self) -> (u32, Key, u16, Site) {
        let Some((block, site)) = self.site() else {
            unreachable!("the site of a block that runs is there");
        };
        (block.entry, block.key, block.scratch, site)
    }

    /// Translated code is left at `rip`, with the registers in `scratch` spilled.
    fn stop(&mut self, scratch: u16, rip: u64, stop: Stop) {
        self.core.set_rip(rip);
        self.left(scratch);
        let lockstep = self.lockstep.as_mut().expect("this is lock-step");
        lockstep.stop = Some(stop);
    }

    /// Gives a repeated STOS or MOVS the pages that it needs, once: where it begins again.
    fn look_up_strings_once(&mut self) -> Option<u64> {
        let (entry, key, scratch, site) = self.running_site();
        let recipe = self.store.recipe(entry);
        let Kind::Strings(strings) = recipe.steps[recipe.number(site.at)?].kind else {
            return None;
        };
        let lockstep = self.lockstep.as_mut().expect("this is lock-step");
        if lockstep.strings_at.replace(site.retry) == Some(site.retry) {
            return None;
        }
        let register = |number: usize| match scratch >> number & 1 {
            0 => self.context.host[number],
            _ => self.context.spilled[number],
        };
        let (rcx, rsi, rdi) = (register(1), register(6), register(7));
        // What writes nothing makes no page dirty.
        if rcx == 0 || !fits(strings, rcx, rsi, rdi) {
            return None;
        }
        self.core.set_access_flag(self.context.access_flag != 0);
        let view = key.mode.view();
        for (linear, write) in [(rsi, false), (rdi, true)] {
            if !write && !strings.moves {
                continue;
            }
            let page = self.core.data_page(linear, write)?;
            self.permit(view, linear, write, &page);
        }
        Some(self.store.memory.address(site.retry as usize) as u64)
    }

    /// Lets the interpreter try the block of `recipe`.
    fn try_block(&mut self, recipe: &Recipe, until: Until) -> Trial {
        let page = self.core.rip() & !(PAGE as u64 - 1);
        let address = |step: &Step| page + u64::from(step.at);
        self.core.begin_trial();
        let mut raises = None;
        let mut number = 0;
        let end = loop {
            let step = recipe.steps[number];
            if until == Until::Step(number) || !self.is_translated(step.kind) {
                break End::Before(number);
            }
            match self.core.try_instruction() {
                Tried::Done => {}
                Tried::Raises(exception) => {
                    raises = Some(exception);
                    break End::Before(number);
                }
                Tried::Outside => break End::Before(number),
            }
            let rip = self.core.rip();
            if matches!(step.kind, Kind::Strings(_)) && rip == address(&step) {
                continue;
            }
            let next = recipe.steps.get(number + 1);
            let was_asked = step.branches && until == Until::Rip(rip);
            number += 1;
            if was_asked || next.is_none_or(|next| rip != address(next)) {
                break End::Exit;
            }
        };
        let (registers, effects) = self.core.end_trial();
        Trial {
            end,
            executed: number,
            registers,
            effects,
            raises,
        }
    }

    /// Whether translated code executes an instruction of this kind by itself.
    fn is_translated(&self, kind: Kind) -> bool {
        match kind {
            Kind::Native => true,
            Kind::Interpreted => false,
            Kind::Sti => !self.core.interrupt_waits(),
            Kind::Strings(strings) => {
                let gpr = self.core.gpr();
                fits(strings, gpr[1], gpr[6], gpr[7])
            }
        }
    }

    /// Compares what translated code has done from `start` on with what it should have.
    fn check(
        &mut self,
        entry: u32,
        recipe: &Recipe,
        key: &Key,
        start: &Snapshot,
        mut trial: Trial,
        stop: Stop,
    ) -> Result<(), Exit> {
        let ours = self.core.snapshot();
        let is_same_end = |trial: &Trial| trial.end == stop.end && trial.registers.rip == ours.rip;
        if !is_same_end(&trial) {
            let until = match stop.end {
                End::Exit => Until::Rip(ours.rip),
                End::Before(number) => Until::Step(number),
            };
            let again = self.try_again(recipe, start, &ours, until);
            if is_same_end(&again) {
                trial = again;
            }
        }
        let undefined = recipe.undefined_after(trial.executed);
        let ignored = if stop.has_pushed {
            self.pushed(&ours)
        } else {
            Vec::new()
        };
        let lockstep = self.lockstep.as_mut().expect("this is lock-step");
        lockstep.checked_instructions += trial.executed as u64;
        let theirs = &trial.registers;
        let differences = Differences::find(
            self.core.ram(),
            &lockstep.pages,
            &ours,
            &trial,
            is_same_end(&trial),
            stop.live & !undefined,
            &ignored,
        );
        if !differences.is_empty() {
            let report = Report {
                vcpu: self,
                key,
                entry,
                start,
                stop,
                trial: &trial,
                differences: &differences,
            };
            return Err(Exit::Failed(report.to_string()));
        }
        // What nobody may read is left to translated code; what it let be overwritten is put right.
        let exact = theirs.rflags & !undefined | ours.rflags & undefined & STATUS_FLAGS;
        if exact != ours.rflags {
            lockstep.dead_flags = (!stop.interpret).then_some(DeadFlags {
                rip: ours.rip,
                flags: ours.rflags & STATUS_FLAGS,
                attended: self.counters.attended,
            });
            self.core.set_rflags_status_df_if(exact);
        }
        Ok(())
    }

    /// Where in memory the bytes of the return address are that was just below the stack of
    /// `registers`.
    fn pushed(&mut self, registers: &Snapshot) -> Vec<usize> {
        let first = registers.gpr[4].wrapping_sub(8);
        let bytes = (0..8).map(|n| first.wrapping_add(n));
        let place = |linear: u64| {
            let page = self.core.data_page(linear, false)?;
            Some(page.offset + linear as usize % PAGE)
        };
        bytes.filter_map(place).collect()
    }

    /// Repeats the trial from `start`, in the memory of before. Afterwards the state is `ours` again.
    fn try_again(
        &mut self,
        recipe: &Recipe,
        start: &Snapshot,
        ours: &Snapshot,
        until: Until,
    ) -> Trial {
        self.core.set_snapshot(start);
        let mut pages = std::mem::take(&mut self.lockstep.as_mut().expect("lock-step").pages);
        self.swap_pages(&mut pages);
        let trial = self.try_block(recipe, until);
        self.swap_pages(&mut pages);
        self.lockstep.as_mut().expect("lock-step").pages = pages;
        self.core.set_snapshot(ours);
        trial
    }

    /// Exchanges what is in `pages` and what was there before.
    fn swap_pages(&self, pages: &mut [Page]) {
        let ram = self.core.ram();
        for page in pages {
            let mut now = [0; PAGE];
            ram.read(page.offset, &mut now);
            ram.write(page.offset, &page.before[..]);
            page.before.copy_from_slice(&now);
        }
    }
}

/// Whether translated code may execute the string instruction by itself: its operands stay in
/// their pages.
fn fits(strings: Strings, rcx: u64, rsi: u64, rdi: u64) -> bool {
    let in_page = |linear: u64| {
        let room = (PAGE as u64 - linear % PAGE as u64) / u64::from(strings.size);
        rcx <= room
    };
    rcx < STRING_COUNT_END as u64 && in_page(rdi) && (!strings.moves || in_page(rsi))
}
