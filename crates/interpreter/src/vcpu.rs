//! The run loop: blocks, and what is looked at between them.

use crate::cache::{Block, Cache, Extent};
use crate::cpu::{Cpu, Raised};
use crate::events::{Event, TripleFault};
use crate::mailbox::{CODE_WRITTEN, FORGET_WRITES, INTERRUPT, KICK};
use engine::{DebugRequest, Exit, Platform, Statistic, Stop};
use std::sync::Arc;
use std::time::{Duration, Instant};
use x86::{Activity, Rflags, VcpuState, Vector};

/// Blocks between two looks at the clock: a few microseconds.
const BUDGET: u32 = 256;

/// What a vCPU counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) instructions: u64,
    pub(crate) blocks: u64,
    pub(crate) exceptions: u64,
    pub(crate) interrupts: u64,
    pub(crate) halts: u64,
    /// Time in [`engine::Vcpu::run`], and how much of it in halts.
    pub(crate) running: Duration,
    pub(crate) halted: Duration,
}

/// One vCPU of the interpreter.
pub struct InterpreterVcpu {
    pub(crate) cpu: Cpu,
    pub(crate) cache: Cache,
}

/// What [`InterpreterVcpu::attend`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Run blocks.
    Blocks,
    /// Run one instruction with [`InterpreterVcpu::step`], then look again.
    Instruction,
    /// [`engine::Vcpu::run`] has to return this.
    Exit(Exit),
}

impl engine::Vcpu for InterpreterVcpu {
    fn run(&mut self, platform: &Arc<dyn Platform>) -> Exit {
        let _stands = self.begin(platform);
        let exit = self.run_guest();
        self.end();
        exit
    }

    fn state(&self) -> VcpuState {
        self.cpu.save()
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), state::Invalid> {
        self.cpu.restore(state)?;
        self.forget_code();
        Ok(())
    }

    fn set_debug(&mut self, request: &DebugRequest) {
        self.cpu.debug.set(request);
        self.cpu.update_view();
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        self.cpu.peek(linear)
    }

    fn statistics(&self) -> Vec<Statistic> {
        const EVENTS: &str = "events";
        const OWN: &str = "interpreter";
        let counters = &self.cpu.counters;
        let own = |name, value| Statistic::events(OWN, name, value);
        vec![
            Statistic::time(engine::RUNNING, counters.running),
            Statistic::time("halted", counters.halted),
            Statistic::events(EVENTS, "interrupts", counters.interrupts),
            Statistic::events(EVENTS, "exceptions", counters.exceptions),
            Statistic::events(EVENTS, "halts", counters.halts),
            own("instructions", counters.instructions),
            own("blocks", counters.blocks),
            own("instructions decoded", self.cache.decoded),
            own("blocks dropped", self.cache.invalidated),
            own("flushes of all blocks", self.cache.flushes),
            own("TLB misses", self.cpu.tlb.misses),
            own("TLB flushes", self.cpu.tlb.flushes),
        ]
    }
}

impl InterpreterVcpu {
    fn run_guest(&mut self) -> Exit {
        loop {
            if self.wants_attention() {
                match self.attend() {
                    Next::Blocks => {}
                    Next::Instruction => {
                        if let Some(exit) = self.step() {
                            return exit;
                        }
                        continue;
                    }
                    Next::Exit(exit) => return exit,
                }
            }
            if let Err(exit) = self.run_block() {
                return exit;
            }
        }
    }

    /// First part of [`engine::Vcpu::run`]. Guest instructions may execute until the returned guard
    /// is dropped. [`InterpreterVcpu::end`] is the last part.
    pub fn begin(&mut self, platform: &Arc<dyn Platform>) -> impl Drop + use<> {
        let stands = self.cpu.mailbox.stands_after();
        self.cpu.platform = Some(platform.clone());
        self.cpu.stand_up();
        if self.cpu.clock_page_stale {
            self.cpu.write_clock_page();
        }
        self.cpu.attend();
        self.cpu.began = Some(Instant::now());
        stands
    }

    /// Last part of [`engine::Vcpu::run`].
    pub fn end(&mut self) {
        self.cpu.platform = None;
        if let Some(began) = self.cpu.began.take() {
            self.cpu.counters.running += began.elapsed();
        }
    }

    /// Whether [`InterpreterVcpu::attend`] is to be called before guest code goes on.
    #[inline(always)]
    pub fn wants_attention(&self) -> bool {
        self.cpu.budget == 0 || self.cpu.mailbox.has_mail()
    }

    /// Whether guest code may go on without [`InterpreterVcpu::attend`]: as the opposite of
    /// [`InterpreterVcpu::wants_attention`], but where an instruction has only asked for a look
    /// (because it changed RFLAGS.IF, say), it looks, and there is nothing. For an engine that is
    /// told of the APIC timer's deadlines by [`Remote::post_timer`](crate::Remote::post_timer).
    #[inline]
    pub fn settle(&mut self) -> bool {
        let cpu = &mut self.cpu;
        if cpu.mailbox.has_mail() {
            return false;
        }
        if cpu.budget != 0 {
            return true;
        }
        let system = cpu.flags.system();
        let is_quiet = !cpu.apic_touched
            && cpu.activity == Activity::Running
            && cpu.exception.is_none()
            && cpu.interrupt.is_none()
            && cpu.debug_trap == 0
            && !cpu.sti_shadow
            && !cpu.ss_shadow
            && !cpu.steps_singly()
            && !cpu.debug.wants_anything()
            && (!cpu.nmi_pending || cpu.nmi_blocked)
            && !(system.contains(Rflags::IF) && cpu.interrupt_waits());
        if is_quiet {
            cpu.budget = BUDGET;
            cpu.end_resume_flag();
        }
        is_quiet
    }

    /// Executes the block at RIP and delivers what it raised.
    ///
    /// # Errors
    /// The exit, after a triple fault.
    #[inline(always)]
    pub fn run_block(&mut self) -> Result<(), Exit> {
        self.run_extent(Extent::Run)
    }

    /// Executes the one instruction at RIP and delivers what it raised. It is decoded once, and
    /// kept as blocks are. A repeated string instruction may stop in its middle, with RIP still at
    /// it. Interrupts, shadows and traps are not looked at: the caller has attended.
    ///
    /// # Errors
    /// The exit, after a triple fault.
    pub fn run_instruction(&mut self) -> Result<(), Exit> {
        self.run_extent(Extent::Instruction)
    }

    #[inline(always)]
    fn run_extent(&mut self, extent: Extent) -> Result<(), Exit> {
        // It is 0 after the delivery of an event, which asks for another look soon.
        self.cpu.budget = self.cpu.budget.saturating_sub(1);
        if self.execute(extent).is_err()
            && let Err(fault) = self.cpu.deliver_raised()
        {
            return Err(self.shut_down(&fault));
        }
        Ok(())
    }

    /// Executes the block of this `extent` at RIP. On `Err`, RIP is that of the instruction that
    /// raised.
    #[inline(always)]
    pub(crate) fn execute(&mut self, extent: Extent) -> Result<(), Raised> {
        match self.cached_block(extent) {
            Some(block) => self.execute_block(&block),
            None => self.decode_and_execute(extent),
        }
    }

    /// Has a copy of the loop over instructions for itself: if decoding led back to the other, its
    /// blocks would go through memory too.
    #[cold]
    #[inline(never)]
    fn decode_and_execute(&mut self, extent: Extent) -> Result<(), Raised> {
        let block = self.decode_block(extent)?;
        self.execute_block(&block)
    }

    #[inline(always)]
    fn execute_block(&mut self, block: &Block) -> Result<(), Raised> {
        let cpu = &mut self.cpu;
        let start = cpu.rip;
        cpu.gpr[crate::int::PC as usize] = start;
        cpu.counters.blocks += 1;
        cpu.counters.instructions += u64::from(block.len);
        for op in self.cache.ops(block) {
            if (op.run)(cpu, op).is_err() {
                cpu.rip = cpu.rip_after(start, op.offset.into());
                return Err(Raised);
            }
            if cpu.stop {
                cpu.stop = false;
                if op.offset + u16::from(op.len) < block.bytes {
                    cpu.rip = cpu.rip_after(start, u64::from(op.offset) + u64::from(op.len));
                    break;
                }
            }
        }
        Ok(())
    }

    /// Executes one instruction, with debug traps and the instruction trace, and delivers what it
    /// raised. Returns why the vCPU has to stop, if it does.
    pub fn step(&mut self) -> Option<Exit> {
        match self.try_step() {
            Ok(()) => {}
            Err(Raised) => {
                if let Err(fault) = self.cpu.deliver_raised() {
                    return Some(self.shut_down(&fault));
                }
                self.cpu.debug.stepped();
            }
        }
        self.cpu.attend();
        let stop = self.cpu.debug.take_stop();
        stop.map(Exit::Debug)
    }

    fn try_step(&mut self) -> Result<(), Raised> {
        let cpu = &mut self.cpu;
        let shadows = (cpu.sti_shadow, cpu.ss_shadow);
        let trap = cpu.flags.system().contains(Rflags::TF);
        let linear = cpu.code_linear()?;
        cpu.check_code_breakpoints(linear)?;
        // An instruction that ends leaves RF clear, but for those that load it.
        cpu.flags.set_system(Rflags::RF, false);
        cpu.skip_step_trap = false;
        if cpu.trace.contains(engine::Kinds::INSTRUCTIONS) {
            cpu.trace_instruction(linear);
        }
        self.execute(Extent::Instruction)?;
        let cpu = &mut self.cpu;
        // Each shadow lasts for one instruction; STI after STI does not renew it.
        if shadows.0 {
            cpu.sti_shadow = false;
        }
        if shadows.1 {
            cpu.ss_shadow = false;
        }
        cpu.after_step(trap && !cpu.skip_step_trap);
        Ok(())
    }

    /// Looks at everything that may come between two instructions, in the order of SDM vol. 3,
    /// table 7-2: requests, timers, halts, interrupts, traps, breakpoints.
    pub fn attend(&mut self) -> Next {
        if let Some(stop) = self.cpu.debug.take_stop() {
            return Next::Exit(Exit::Debug(stop));
        }
        // Who steps through a program does not want to find himself in an interrupt handler.
        let mut held = self.cpu.debug.steps_singly();
        loop {
            self.cpu.budget = BUDGET;
            if self.take_mail() {
                return Next::Exit(Exit::Kicked);
            }
            let now = self.cpu.shared.clock.now();
            self.cpu.advance_apic(now);
            self.cpu.apic_touched = false;
            if self.cpu.activity == Activity::Running {
                break;
            }
            if self.cpu.activity == Activity::Shutdown {
                return Next::Exit(Exit::Shutdown("the vCPU is shut down".into()));
            }
            if self.cpu.wakes() {
                self.cpu.activity = Activity::Running;
                // A halt ends with the event, not before it.
                held = false;
                break;
            }
            self.sleep(now);
        }
        match self.cpu.take_event(held) {
            Ok(()) => {}
            Err(fault) => return Next::Exit(self.shut_down(&fault)),
        }
        let cpu = &mut self.cpu;
        let linear = cpu.linear_rip();
        if cpu.debug.breaks_at(linear) {
            return Next::Exit(Exit::Debug(Stop::Breakpoint));
        }
        if cpu.debug.has_breakpoints() {
            // The next block has to be looked at as well.
            cpu.attend();
        }
        let shadow = cpu.sti_shadow || cpu.ss_shadow;
        if shadow || cpu.steps_singly() || cpu.debug.breaks_in_block_at(linear) {
            cpu.attend();
            return Next::Instruction;
        }
        cpu.end_resume_flag();
        Next::Blocks
    }

    /// Takes requests out of the mailbox. Returns whether there was a kick.
    fn take_mail(&mut self) -> bool {
        let requests = self.cpu.mailbox.take();
        if requests & FORGET_WRITES != 0 {
            self.cpu.tlb.forget_writes();
        }
        if requests & CODE_WRITTEN != 0 {
            for page in self.cpu.mailbox.take_pages() {
                self.cache.invalidate(page);
                self.cpu.tlb.journal.code(page);
            }
        }
        if requests & INTERRUPT != 0 {
            self.cpu.take_interrupts();
        }
        requests & KICK != 0
    }

    /// Waits in a halt, or for a start-up IPI.
    fn sleep(&mut self, now: u64) {
        let cpu = &mut self.cpu;
        let wait = cpu
            .next_apic_deadline(now)
            .map(|deadline| Duration::from_nanos(deadline.saturating_sub(now).max(1)));
        cpu.counters.halts += 1;
        cpu.mailbox.set_running(false);
        let asleep = Instant::now();
        cpu.mailbox.sleep(wait);
        cpu.counters.halted += asleep.elapsed();
        cpu.stand_up();
    }

    fn shut_down(&mut self, fault: &TripleFault) -> Exit {
        self.cpu.activity = Activity::Shutdown;
        Exit::Shutdown(fault.to_string())
    }
}

impl Cpu {
    /// RIP `bytes` after `start`, cut to the code size.
    fn rip_after(&self, start: u64, bytes: u64) -> u64 {
        let rip = start.wrapping_add(bytes);
        if self.is_64bit() {
            rip
        } else {
            rip & 0xffff_ffff
        }
    }

    /// The linear address of RIP, wherever that is.
    #[inline(always)]
    pub(crate) fn linear_rip(&self) -> u64 {
        if self.is_64bit() {
            self.rip
        } else {
            self.bases[1].wrapping_add(self.rip) & 0xffff_ffff
        }
    }

    /// Delivers the exception that was raised.
    fn deliver_raised(&mut self) -> Result<(), TripleFault> {
        let exception = self.exception.take().expect("an exception was recorded");
        self.stop = false;
        self.debug.faulted();
        if !self.ss_shadow {
            // Breakpoints on data trap when an instruction has completed. What the one before
            // left is there only in MOV SS's shadow.
            self.debug_trap = 0;
        }
        self.attend();
        self.deliver(Event::Exception(exception))
    }

    /// Takes the most urgent event that is due, if there is one; while interrupts are `held`, none
    /// from outside.
    fn take_event(&mut self, held: bool) -> Result<(), TripleFault> {
        // One that a task switch left to the new task, or that came with a saved state.
        if let Some(exception) = self.exception.take() {
            return self.deliver(Event::Exception(exception));
        }
        // Nothing was executed since it was acknowledged.
        if let Some(vector) = self.interrupt.take() {
            self.counters.interrupts += 1;
            return self.deliver(Event::Interrupt(vector));
        }
        if self.debug_trap != 0 && !self.ss_shadow {
            let bits = std::mem::take(&mut self.debug_trap);
            return self.deliver(Event::Exception(x86::Exception {
                vector: Vector::Debug,
                error_code: 0,
                payload: bits,
            }));
        }
        if held || self.sti_shadow || self.ss_shadow {
            return Ok(());
        }
        if self.nmi_pending && !self.nmi_blocked {
            self.nmi_pending = false;
            return self.deliver(Event::Nmi);
        }
        if self.flags.system().contains(Rflags::IF)
            && let Some(vector) = self.acknowledge_interrupt()
        {
            self.counters.interrupts += 1;
            return self.deliver(Event::Interrupt(vector));
        }
        Ok(())
    }

    /// Whether something ends a halt.
    fn wakes(&self) -> bool {
        self.activity == Activity::Halted
            && (self.interrupt.is_some()
                || self.nmi_pending && !self.nmi_blocked
                || self.debug_trap != 0
                || self.flags.system().contains(Rflags::IF) && self.interrupt_waits())
    }

    /// Nothing comes before the instruction at RIP, whose end leaves RF clear. In between only
    /// breakpoints on code, of which there are none, would ask for it: a fault pushes it as 1.
    #[inline]
    fn end_resume_flag(&mut self) {
        self.flags.set_system(Rflags::RF, false);
    }

    /// Whether each instruction must be looked at by itself.
    fn steps_singly(&self) -> bool {
        self.flags.system().contains(Rflags::TF)
            || self.watches_code()
            || self.debug.steps_singly()
            || self.trace.contains(engine::Kinds::INSTRUCTIONS)
    }
}
