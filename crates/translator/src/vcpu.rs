//! One vCPU: runs translated code, and does what it can't do by itself.
#![expect(unsafe_code, reason = "enters translated code")]
// UNSAFETY: calls of `gate::enter`, and signal handlers.

use crate::block::{Block, BlockId, Key, NO_SITE, Second, Site};
use crate::context::{Bell, ContextBox};
use crate::gate::{self, Reason};
use crate::lockstep::Lockstep;
use crate::lookup::{Lookup, Page};
use crate::mode::Mode;
use crate::plan::{self, INSTRUCTION_BYTES};
use crate::signals::{self, FaultRecord};
use crate::store::{PAGE, Store, with_single};
use crate::timer::{Ring, Timer};
use crate::translator::Options;
use crate::vectors;
use crate::window::Windows;
use engine::{DebugRequest, Exit, Platform, Statistic, Vcpu};
use interpreter::{Changes, DataPage, Doorbell, InterpreterVcpu, Next, Remote};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use x86::{Rflags, SegmentRegister, VcpuState};

/// What a vCPU counts.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) entries: u64,
    /// Exits that were not linked, and those that were but saw that somebody rang.
    pub(crate) links: u64,
    pub(crate) polls: u64,
    /// Jumps that the jump caches did not have, and those that looked up nothing because somebody
    /// rang.
    pub(crate) indirect: u64,
    pub(crate) rung: u64,
    pub(crate) callouts: u64,
    pub(crate) accesses: u64,
    pub(crate) faults: u64,
    pub(crate) attended: u64,
    pub(crate) interpreted: u64,
    pub(crate) singles: u64,
    /// Blocks that were dropped because their code was written, and because it is elsewhere now.
    pub(crate) rewritten: u64,
    pub(crate) displaced: u64,
    /// Flushes of the code cache because it was full.
    pub(crate) full: u64,
    pub(crate) forgot_all: u64,
    pub(crate) forgot_lower: u64,
    pub(crate) forgot_locals: u64,
    pub(crate) forgot_writes: u64,
    pub(crate) checked_pages: u64,
    /// Time spent in translation.
    pub(crate) translating: Duration,
}

/// Where the guest's vector registers are while Rust code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vectors {
    /// In the interpreter's form.
    Core,
    /// In the context's XSAVE area.
    Area,
}

/// A place in translated code.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    /// Offset in the cache.
    position: u32,
    /// Registers that the code there has spilled.
    scratch: u16,
    /// Whether it takes the vector registers for loaded.
    vectors: bool,
}

impl Entry {
    /// The beginning of a block of `mode`.
    pub(crate) fn block(position: u32, mode: Mode) -> Self {
        Self {
            position,
            scratch: mode.landing(),
            vectors: false,
        }
    }
}

/// An exit that was taken and may be linked to where it goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) from: BlockId,
    pub(crate) exit: u8,
    pub(crate) rip: u64,
    pub(crate) single: bool,
    /// Of the store, when it was taken.
    pub(crate) generation: u64,
}

/// A jump that the jump cache did not have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Missed {
    pub(crate) slot: usize,
    pub(crate) rip: u64,
}

/// Makes the vCPU leave translated code when its mailbox gets something.
struct MailBell(Bell);

impl Doorbell for MailBell {
    fn ring(&self) {
        self.0.ring();
    }
}

/// Makes the vCPU look at its timers. A jail has a timer of its own.
struct TimerBell {
    bell: Bell,
    remote: Remote,
}

// SAFETY: both are stores to atomics.
unsafe impl Ring for TimerBell {
    fn ring(&self) {
        self.remote.post_timer();
        self.bell.ring_here();
    }
}

/// One vCPU of the translator.
pub(crate) struct TranslatorVcpu {
    pub(crate) core: InterpreterVcpu,
    pub(crate) context: ContextBox,
    pub(crate) bell: Bell,
    pub(crate) store: Store,
    pub(crate) lookup: Lookup,
    /// The units' bits of the mode for which the jump caches were filled.
    pub(crate) units: Mode,
    pub(crate) vectors: Vectors,
    pub(crate) taken: Option<Taken>,
    pub(crate) missed: Option<Missed>,
    /// Why [`Vcpu::run`] has to return, if an assist found out.
    pub(crate) exit: Option<Exit>,
    pub(crate) record: Box<FaultRecord>,
    /// Jails for user code.
    pub(crate) windows: Windows,
    /// Host address of guest memory.
    pub(crate) ram: u64,
    /// A page of code, and what may be needed of the next.
    page: Box<[u8; PAGE + INSTRUCTION_BYTES]>,
    pub(crate) counters: Counters,
    /// Every block is held against the interpreter.
    pub(crate) lockstep: Option<Box<Lockstep>>,
}

impl Vcpu for TranslatorVcpu {
    fn run(&mut self, platform: &Arc<dyn Platform>) -> Exit {
        let _stands = self.core.begin(platform);
        gate::set_gs(self.context.address());
        self.take_scale();
        let exit = self.run_on_this_thread();
        self.vectors_to_core();
        // They end with the thread that made them, and who knows which one comes back.
        self.windows.close();
        self.core.end();
        exit
    }

    fn state(&self) -> VcpuState {
        self.core.state()
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), state::Invalid> {
        self.core.set_state(state)
    }

    fn set_debug(&mut self, request: &DebugRequest) {
        self.core.set_debug(request);
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        self.core.translate(linear)
    }

    fn statistics(&self) -> Vec<Statistic> {
        self.all_statistics()
    }
}

impl TranslatorVcpu {
    /// A vCPU around the interpreter's.
    ///
    /// # Errors
    /// If the host gives no memory, or none that is executable.
    pub(crate) fn new(mut core: InterpreterVcpu, options: &Options) -> io::Result<Self> {
        core.keep_journal();
        let mut context = ContextBox::new()?;
        let bell = context.bell();
        bell.silence();
        core.set_doorbell(Arc::new(MailBell(bell.clone())));
        let capacity = options.shares().0;
        let mut store = Store::new(capacity, &mut context, options.perf_map)?;
        let lockstep = options.lockstep.map(|every| Box::new(Lockstep::new(every)));
        store.recipes = lockstep.is_some().then(Default::default);
        let ram = core.ram().address() as u64;
        Ok(Self {
            core,
            context,
            bell,
            store,
            lookup: Lookup::with_tlb(),
            units: Mode::empty(),
            vectors: Vectors::Core,
            taken: None,
            missed: None,
            exit: None,
            record: Box::default(),
            windows: Windows::new(options),
            ram,
            page: Box::new([0; PAGE + INSTRUCTION_BYTES]),
            counters: Counters::default(),
            lockstep,
        })
    }

    /// Sets this thread up for translated code, and runs.
    fn run_on_this_thread(&mut self) -> Exit {
        let host_stack = &raw const self.context.host_rsp;
        let resume = gate::fault as *const () as usize;
        // SAFETY: `fault` is the gate for this purpose. It finds the stack pointer that `enter`
        // left in the context, which outlives the guard, as the record does.
        let guard = unsafe {
            signals::Thread::enter(
                self.store.memory.range(),
                resume,
                host_stack,
                &raw mut *self.record,
            )
        };
        let timer = Timer::new(Arc::new(TimerBell {
            bell: self.bell.clone(),
            remote: self.core.remote(),
        }));
        match (guard, timer) {
            (Ok(_guard), Ok(mut timer)) => self.run_guest(&mut timer),
            (Err(error), _) => Exit::Failed(format!("no signal handlers: {error}")),
            (_, Err(error)) => Exit::Failed(format!("no timer: {error}")),
        }
    }

    fn run_guest(&mut self, timer: &mut Timer) -> Exit {
        loop {
            let mut interpret = false;
            if !self.core.settle() {
                match self.attend(timer) {
                    Next::Blocks => interpret = self.core.is_debugged(),
                    Next::Instruction => {
                        self.vectors_to_core();
                        if let Some(exit) = self.core.step() {
                            return exit;
                        }
                        continue;
                    }
                    Next::Exit(exit) => return exit,
                }
            }
            self.apply_changes();
            let mode = match self.mode() {
                Some(mode) if !interpret => mode,
                _ => {
                    self.vectors_to_core();
                    self.counters.interpreted += 1;
                    if let Err(exit) = self.core.run_block() {
                        return exit;
                    }
                    continue;
                }
            };
            if self.is_for_window(mode) {
                if let Some(exit) = self.run_in_window() {
                    return exit;
                }
                continue;
            }
            let Some(block) = self.find(mode) else {
                self.vectors_to_core();
                if let Err(exit) = self.core.run_instruction() {
                    return exit;
                }
                continue;
            };
            if self.lockstep.is_some() {
                if let Err(exit) = self.run_in_lockstep(block) {
                    return exit;
                }
                continue;
            }
            if let Err(exit) = self.run_from(block) {
                return exit;
            }
        }
    }

    /// Runs translated code from `block` on, which is that for RIP, until something has to be
    /// looked at.
    pub(crate) fn run_from(&mut self, block: BlockId) -> Result<(), Exit> {
        let block = self.store.block(block).expect("a block that was found");
        self.context.pc = self.core.rip();
        let mut next = Some(Entry::block(block.entry, block.key.mode));
        while let Some(entry) = next {
            self.enter(&entry);
            next = self.leave()?;
        }
        Ok(())
    }

    /// Looks at requests, timers and interrupts.
    fn attend(&mut self, timer: &mut Timer) -> Next {
        self.counters.attended += 1;
        self.bell.silence();
        self.find_user_code();
        let next = self.core.attend();
        self.take_scale();
        match self.core.apic_deadline() {
            Some(deadline) => {
                let wait = deadline.saturating_sub(self.core.machine_now());
                timer.arm(Duration::from_nanos(wait.max(1)));
            }
            None => timer.disarm(),
        }
        self.windows.alarm = timer.deadline();
        if !self.core.settle() {
            // An event was delivered: look again soon.
            self.bell.ring();
        }
        next
    }

    /// The mode in which code runs.
    pub(crate) fn now(&self) -> Option<Mode> {
        let mode = Mode::now(&self.core.mode())?;
        if !self.windows.is_active() {
            return Some(mode);
        }
        let stays = mode.contains(Mode::USER) && !mode.is_32bit();
        stays.then_some(mode | Mode::WINDOW)
    }

    /// The mode in which code runs, if it can be translated.
    pub(crate) fn mode(&mut self) -> Option<Mode> {
        // Translated code runs with DF clear.
        if self.core.direction_flag() {
            return None;
        }
        let mode = self.now()?;
        if mode.units() != self.units {
            self.units = mode.units();
            self.lookup.forget_jumps(&mut self.context);
        }
        Some(mode)
    }

    /// The block for the code at RIP, translated if need be.
    pub(crate) fn find(&mut self, mode: Mode) -> Option<BlockId> {
        let rip = self.core.rip();
        let taken = self.taken.take().filter(|t| t.rip == rip);
        let missed = self
            .missed
            .take()
            .filter(|m| m.rip == rip && m.slot == mode.slot());
        let linear = self.core.linear_rip();
        let page = self.core.code_page(linear)?;
        let single = taken.is_some_and(|t| t.single);
        let key = Key {
            offset: page.offset + linear as usize % PAGE,
            linear: if mode.is_relocatable() { 0 } else { linear },
            mode: with_single(mode, single),
        };
        let block = match self.store.find(&key) {
            Some(block) if self.is_whole(block, linear) => block,
            stale => {
                self.counters.displaced += u64::from(stale.is_some());
                let context = &mut self.context;
                self.store
                    .drop_blocks(stale.as_slice(), &mut self.lookup, context);
                let before = taken.and_then(|t| self.store.block(t.from));
                let before = before.map_or(mode.landing(), |b| b.scratch);
                let block = self.translate(key, linear, page.global, before)?;
                if self.windows.is_active() {
                    self.expect_jumps(block, rip, mode);
                }
                block
            }
        };
        if let Some(taken) = taken.filter(|_| self.lockstep.is_none()) {
            self.link(taken, block, &key);
        }
        if let Some(missed) = missed {
            let host = self.store.entry(block)?;
            self.lookup
                .fill_jump(&mut self.context, missed.slot, rip, host);
        }
        Some(block)
    }

    /// Whether all of the block at `linear` is where it was.
    pub(crate) fn is_whole(&mut self, block: BlockId, linear: u64) -> bool {
        let Some(block) = self.store.block(block) else {
            return false;
        };
        let (second, mode) = (block.second, block.key.mode);
        second.is_none_or(|second| {
            let now = self.second_page(linear, mode);
            now.is_some_and(|now| now.offset == second.offset)
        })
    }

    /// The page behind that of `linear`; `None` if no instruction can go on there.
    fn second_page(&mut self, linear: u64, mode: Mode) -> Option<Second> {
        let next = (linear | (PAGE as u64 - 1)).checked_add(1)?;
        let is_within = next >> 63 == linear >> 63 && !(mode.is_32bit() && next >> 32 != 0);
        let page = is_within.then(|| self.core.code_page(next))??;
        Some(Second {
            offset: page.offset,
            global: page.global,
        })
    }

    /// Translates the block at `linear`, which is reached from one that has taken the registers in
    /// `before`. `None` if its first instruction is the interpreter's: it goes on in a page from
    /// which nothing can be fetched.
    pub(crate) fn translate(
        &mut self,
        key: Key,
        linear: u64,
        global: bool,
        before: u16,
    ) -> Option<BlockId> {
        let begun = Instant::now();
        let page = key.offset & !(PAGE - 1);
        self.core.watch_code(page / PAGE);
        let mut second = None;
        if self.straddles(&key) {
            let next = self.second_page(linear, key.mode)?;
            self.core.watch_code(next.offset / PAGE);
            second = Some(next);
        }
        // Standing up may have changed permissions.
        self.apply_changes();
        if !self.store.has_room() {
            self.counters.full += 1;
            self.store.clear(&mut self.lookup, &mut self.context);
        }
        self.core.ram().read(page, &mut self.page[..PAGE]);
        let mut bytes = PAGE;
        if let Some(second) = second {
            bytes += INSTRUCTION_BYTES;
            let ram = self.core.ram();
            ram.read(second.offset, &mut self.page[PAGE..bytes]);
        }
        if plan::straddles(&self.page[key.offset - page..PAGE], key.mode) != second.is_some() {
            // Somebody writes there just now.
            return None;
        }
        let code = &self.page[..bytes];
        let store = &mut self.store;
        let block = store.translate(key, code, linear, global, second, before);
        self.counters.translating += begun.elapsed();
        Some(block)
    }

    /// Whether the instruction at `key` ends in the next page.
    fn straddles(&self, key: &Key) -> bool {
        let room = PAGE - key.offset % PAGE;
        if room >= INSTRUCTION_BYTES {
            return false;
        }
        let mut code = [0; INSTRUCTION_BYTES];
        self.core.ram().read(key.offset, &mut code[..room]);
        plan::straddles(&code[..room], key.mode)
    }

    pub(crate) fn link(&mut self, taken: Taken, to: BlockId, key: &Key) {
        if taken.generation != self.store.generation {
            // Its number may be another block's.
            return;
        }
        let Some((from, exit)) = self.store.exit(taken.from, taken.exit) else {
            return;
        };
        let same_mode = exit.mode == key.mode - Mode::SINGLE;
        // A jump inside of a page stays in the page of memory that it is from.
        let in_page = (0..PAGE as i64).contains(&exit.target);
        let same_page = from.key.offset / PAGE == key.offset / PAGE;
        if same_mode && (!in_page || same_page) {
            self.store.link(taken.from, taken.exit, to);
        }
    }

    /// Runs translated code.
    pub(crate) fn enter(&mut self, entry: &Entry) {
        self.vectors_to_area();
        self.give_registers(entry.scratch);
        self.context.vectors_wanted = entry.vectors.into();
        self.store.memory.publish();
        self.counters.entries += 1;
        let target = self.store.memory.address(entry.position as usize) as u64;
        if let Some(number) = self.windows.active() {
            return self.run_jail(number, target);
        }
        let this = (&raw mut *self).expose_provenance();
        self.context.vcpu = this as u64;
        // SAFETY: GS was set for this thread by `run`. `target` is the beginning of a block, or
        // the site where one was left, and the registers were set for it. Assists use the vCPU
        // through the pointer, while nobody else does.
        unsafe { gate::enter(target) };
    }

    /// Deals with what made translated code leave. Returns where it goes on at once, if it does.
    fn leave(&mut self) -> Result<Option<Entry>, Exit> {
        self.take_crossing();
        if let Some(exit) = self.exit.take() {
            return Err(exit);
        }
        match Reason::new(self.context.reason) {
            Reason::Callout | Reason::Memory => self.interpret_with_vectors(),
            Reason::Fault => self.fault().map(|()| None),
            Reason::Left => Ok(None),
            Reason::Link | Reason::Indirect => unreachable!("assists deal with them"),
        }
    }

    /// The block and the site that the context's argument names.
    pub(crate) fn site(&self) -> Option<(Block, Site)> {
        let argument = self.context.argument;
        if argument == NO_SITE {
            return None;
        }
        let block = self.store.block(argument >> 8)?;
        let site = block.site(&self.store.memory, argument as u8)?;
        Some((block, site))
    }

    /// Lets the interpreter execute the instruction of a site that works on vector registers,
    /// which the host has no longer. Returns where to go on, if nothing speaks against it.
    fn interpret_with_vectors(&mut self) -> Result<Option<Entry>, Exit> {
        let Some((block, site)) = self.site() else {
            unreachable!("the site of a block that ran is there");
        };
        let (key, scratch) = (block.key, block.scratch);
        let following = site
            .next
            .map(|p| (p, block.guest_offset(&self.store.memory, p)));
        self.vectors_to_core();
        self.run_site(&key, scratch, &site)?;
        let goes_on = following.filter(|(_, offset)| self.may_resume(&key, *offset));
        Ok(goes_on.map(|(position, _)| Entry {
            position,
            scratch,
            vectors: site.vectors,
        }))
    }

    /// Lets the interpreter execute the instruction of a site.
    pub(crate) fn run_site(&mut self, key: &Key, scratch: u16, site: &Site) -> Result<(), Exit> {
        self.take_registers(scratch);
        let rip = self.address(key.linear, key.mode, site.at.into());
        self.core.set_rip(rip);
        self.core.run_instruction()
    }

    /// Whether translated code may go on at `offset` of the page of a block, after the interpreter
    /// has executed the instruction before.
    pub(crate) fn may_resume(&mut self, key: &Key, offset: u16) -> bool {
        self.core.rip() == self.address(key.linear, key.mode, offset.into())
            && !self.is_disturbed()
            && !self.core.direction_flag()
            && self.now() == Some(key.mode - Mode::SINGLE)
    }

    /// Whether the run loop has to look at something before translated code runs.
    pub(crate) fn is_disturbed(&mut self) -> bool {
        if self.core.has_changes() || !self.core.settle() {
            return true;
        }
        if !self.bell.is_ringing() {
            return false;
        }
        // Nothing is left of what rang. What comes after the silence rings again.
        self.bell.silence();
        !self.core.settle()
    }

    /// The linear address of what is `offset` away from the page of a block at `linear`.
    pub(crate) fn address(&self, linear: u64, mode: Mode, offset: i64) -> u64 {
        let page = if mode.is_relocatable() {
            self.context.page
        } else {
            linear & !(PAGE as u64 - 1)
        };
        let address = page.wrapping_add_signed(offset);
        if mode.is_32bit() {
            address & 0xffff_ffff
        } else {
            address
        }
    }

    /// Puts the guest's registers into the context, those in `scratch` as spilled.
    pub(crate) fn give_registers(&mut self, scratch: u16) {
        let flags = self.core.rflags();
        let waits = self.core.interrupt_waits();
        let context = &mut *self.context;
        for (number, value) in self.core.gpr().iter().enumerate() {
            if scratch >> number & 1 != 0 {
                context.spilled[number] = *value;
            } else {
                context.host[number] = *value;
            }
        }
        context.flags = flags & Rflags::STATUS.bits() | Rflags::FIXED.bits();
        context.interrupt_flag = (flags & Rflags::IF.bits()) as u32;
        context.access_flag = (flags & Rflags::AC.bits()) as u32;
        let elsewhere =
            Rflags::STATUS | Rflags::DF | Rflags::IF | Rflags::AC | Rflags::RF | Rflags::VM;
        context.other_flags = flags & !elsewhere.bits();
        context.interrupt_waits = waits.into();
        context.selectors = self.core.selectors().map(u32::from);
        context.fs_base = self.core.base(SegmentRegister::Fs);
        context.gs_base = self.core.base(SegmentRegister::Gs);
        context.kernel_gs_base = self.core.kernel_gs_base();
        context.cr2 = self.core.cr2();
        context.tsc_offset = self.core.tsc_offset();
        context.tsc_aux = self.core.tsc_aux();
        self.give_crossing();
    }

    /// Takes the guest's registers out of the context, where those in `scratch` are spilled.
    pub(crate) fn take_registers(&mut self, scratch: u16) {
        let context = &*self.context;
        for (number, value) in self.core.gpr_mut().iter_mut().enumerate() {
            *value = if scratch >> number & 1 != 0 {
                context.spilled[number]
            } else {
                context.host[number]
            };
        }
        let flags = context.flags & Rflags::STATUS.bits() | u64::from(context.interrupt_flag);
        self.core.set_rflags_status_df_if(flags);
        self.core.set_access_flag(context.access_flag != 0);
        for (register, base) in [
            (SegmentRegister::Fs, context.fs_base),
            (SegmentRegister::Gs, context.gs_base),
        ] {
            if base != self.core.base(register) {
                self.core.set_base(register, base);
            }
        }
        self.core.set_kernel_gs_base(context.kernel_gs_base);
    }

    /// Lets translated code access the page around `linear`, which is `page`, and returns it as the
    /// TLB has it. The code is about to `write` there, or to read.
    pub(crate) fn permit(
        &mut self,
        view: usize,
        linear: u64,
        write: bool,
        page: &DataPage,
    ) -> Page {
        let mut writable = page.writable;
        if let Some(lockstep) = &mut self.lockstep {
            // The second level would grant later what nobody asks for now.
            writable &= write;
            if writable {
                lockstep.lets_write(self.core.ram(), page.offset, view, linear);
            }
        }
        let page = Page {
            linear,
            host: self.ram + page.offset as u64,
            writable,
        };
        self.lookup.fill(&mut self.context, view, page, write);
        page
    }

    /// An instruction raised a signal: the interpreter raises what it stands for.
    fn fault(&mut self) -> Result<(), Exit> {
        self.take_fault()?;
        self.vectors_to_core();
        self.core.run_instruction()
    }

    /// An instruction raised a signal: takes the guest's registers as they were before it. Returns
    /// its offset in the page.
    pub(crate) fn take_fault(&mut self) -> Result<u16, Exit> {
        self.counters.faults += 1;
        let rip = self.record.rip as usize;
        let found = self.store.memory.offset_of(rip).and_then(|position| {
            let block = self.store.block_at(position)?;
            Some((
                block.key,
                block.spilled_at(&self.store.memory, position as u32),
                block.guest_offset(&self.store.memory, position as u32),
            ))
        });
        let Some((key, scratch, offset)) = found.filter(|(_, _, offset)| *offset != u16::MAX)
        else {
            let FaultRecord {
                signal, address, ..
            } = *self.record;
            return Err(Exit::Failed(format!(
                "signal {signal} outside of guest instructions, address {address:#x}"
            )));
        };
        self.context.host = self.record.registers;
        self.context.flags = self.record.rflags;
        self.take_registers(scratch);
        self.core
            .set_rip(self.address(key.linear, key.mode, offset.into()));
        Ok(offset)
    }

    /// Forgets what the interpreter says is stale.
    pub(crate) fn apply_changes(&mut self) {
        if !self.core.has_changes() {
            return;
        }
        let changes = self.core.take_changes();
        self.windows.note(&changes);
        self.apply(changes);
    }

    /// Forgets what `changes` say in the translations that are active.
    pub(crate) fn apply(&mut self, changes: Changes) {
        if changes == Changes::default() {
            return;
        }
        let context = &mut *self.context;
        if changes.all {
            self.counters.forgot_all += 1;
            self.lookup.forget_all(context);
        } else {
            if changes.locals {
                self.counters.forgot_locals += 1;
                self.lookup.forget_all(context);
            } else if changes.lower {
                self.counters.forgot_lower += 1;
                self.lookup.forget_lower(context);
            }
            for page in &changes.pages {
                self.lookup.forget_page(context, *page);
            }
        }
        if changes.writes {
            self.counters.forgot_writes += 1;
            self.lookup.forget_writes(context);
        }
        if changes.all_code {
            self.store.clear(&mut self.lookup, context);
        } else {
            for page in &changes.code {
                let stale = self.store.blocks.in_page(&self.store.memory, *page);
                self.counters.rewritten += stale.len() as u64;
                self.store
                    .drop_blocks(&stale, &mut self.lookup, &mut self.context);
            }
        }
        self.apply_to_window(&changes);
        if changes.all || changes.locals {
            for linear in self.store.blocks.linear_pages(!changes.all) {
                self.check_page(linear);
            }
        }
        if !changes.all {
            for linear in &changes.pages {
                let linear = *linear;
                if self.store.blocks.depend_on(linear) {
                    self.check_page(linear & !(PAGE as u64 - 1));
                }
            }
        }
    }

    /// Drops the blocks that depend on being at `linear` if that is elsewhere in memory now. Links
    /// between kernel pages depend on it; those of the lower half don't exist.
    pub(crate) fn check_page(&mut self, linear: u64) {
        if linear >> 63 == 0 && !self.windows.is_active() {
            return;
        }
        let offset = self.core.code_page(linear).map(|p| p.offset);
        let store = &mut self.store;
        let stale = store.blocks.displaced(&store.memory, linear, offset);
        self.counters.displaced += stale.len() as u64;
        store.drop_blocks(&stale, &mut self.lookup, &mut self.context);
    }

    pub(crate) fn vectors_to_core(&mut self) {
        if self.vectors == Vectors::Area {
            vectors::load(&self.context.xsave, self.core.vectors());
            self.vectors = Vectors::Core;
        }
    }

    fn vectors_to_area(&mut self) {
        if self.vectors == Vectors::Core {
            vectors::store(self.core.vectors(), &mut self.context.xsave);
            self.vectors = Vectors::Area;
        }
    }
}
