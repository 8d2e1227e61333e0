//! The run loop of a vCPU whose code is in a jail.

use super::jail::Broken;
use super::pages::Page;
use super::stub::{ASKED, INTERRUPT};
use crate::block::{BlockId, Key};
use crate::gate::Reason;
use crate::mode::Mode;
use crate::store::PAGE;
use crate::vcpu::{Taken, TranslatorVcpu, Vectors};
use engine::Exit;
use interpreter::Changes;
use std::collections::VecDeque;
use std::mem::swap;
use std::time::{Duration, Instant};
use x86::Rflags;
use x86::paging::is_canonical;

/// The pages of so many bytes around one that is missing come along with it, if the guest has used
/// them: what one page table maps.
const AROUND: u64 = 2 << 20;
/// So often may a jail be in the middle of an instruction before it is given up. Its code, if it is
/// what was translated for it, is so for a few instructions of the host's.
const AMISS_MAX: u32 = 100;
/// So many blocks are translated before they are asked for.
const AHEAD: u32 = 32;
/// No guest address: an instruction fetch there raises #GP.
const NOWHERE: u64 = 0x8000_0000_0000_0000;

impl TranslatorVcpu {
    /// Whether the code at RIP, in `mode`, is to run in a jail.
    #[inline(always)]
    pub(crate) fn is_for_window(&self, mode: Mode) -> bool {
        mode.contains(Mode::USER) && !mode.is_32bit() && self.windows.is_open(self.core.cr3())
    }

    /// User code was interrupted by an event: does it pay to run it in a jail?
    pub(crate) fn find_user_code(&mut self) {
        let mode = self.core.mode();
        if !mode.user || mode.bits != 64 {
            return;
        }
        let entries = self.core.events() + u64::from(self.context.crossing.made);
        let (cr3, translating) = (self.core.cr3(), self.counters.translating);
        if self.windows.heat.find(cr3, entries, translating) {
            self.windows.counters.opened += 1;
            // Whoever goes to user code has to ask from now on.
            self.lookup.forget_jumps(&mut self.context);
        }
    }

    /// Runs user code in a jail until it leaves user mode or something waits.
    pub(crate) fn run_in_window(&mut self) -> Option<Exit> {
        let cr3 = self.core.cr3();
        let memory = self.core.memory().clone();
        let number = self.windows.space(cr3, &self.bell, memory.file())?;
        let begin = Instant::now();
        self.vectors_to_core();
        self.exchange(number);
        self.windows.active = Some(number);
        self.take_scale();
        let pending = std::mem::take(&mut self.windows.spaces[number].pending);
        self.apply(pending);
        self.windows.counters.runs += 1;
        let stops = self.windows.counters.stops;
        self.windows.inside = Duration::ZERO;
        self.windows.growing = Duration::ZERO;
        let pinned = self.windows.spaces[number].jail.on_one_cpu();
        let exit = self.run_jail_code();
        drop(pinned);
        self.vectors_to_core();
        self.exchange(number);
        self.windows.active = None;
        let translated = &mut self.windows.spaces[number].store.counters;
        self.windows.translations.take(translated);
        let pending = std::mem::take(&mut self.windows.pending);
        self.apply(pending);
        let stops = self.windows.counters.stops - stops;
        let (time, inside) = (begin.elapsed(), self.windows.inside);
        self.windows.counters.time += time;
        self.windows.counters.inside += inside;
        // What a program's memory takes once is no reason to close its window.
        let time = time.saturating_sub(self.windows.growing);
        self.windows.heat.ran(cr3, time, inside, stops);
        exit
    }

    /// Exchanges the vCPU's translations for those of a space, or back.
    fn exchange(&mut self, number: usize) {
        let space = &mut self.windows.spaces[number];
        swap(&mut self.context, &mut space.context);
        swap(&mut self.store, &mut space.store);
        swap(&mut self.lookup, &mut space.lookup);
        swap(&mut self.units, &mut space.units);
        swap(&mut self.counters, &mut self.windows.assists);
        (self.taken, self.missed) = (None, None);
    }

    fn run_jail_code(&mut self) -> Option<Exit> {
        loop {
            self.apply_changes();
            let space = self.windows.active.map(|n| &self.windows.spaces[n]);
            if space.is_none_or(|s| s.is_broken || !self.windows.heat.is_open(s.cr3)) {
                return None;
            }
            if self.is_disturbed() {
                return None;
            }
            let mode = self.mode()?;
            let Some(block) = self.find(mode) else {
                self.vectors_to_core();
                match self.core.run_instruction() {
                    Ok(()) => continue,
                    Err(exit) => return Some(exit),
                }
            };
            if let Err(exit) = self.run_from(block) {
                return Some(exit);
            }
        }
    }

    /// Lets the jail go on at host address `host`, with the registers in the context, until
    /// something has to be done that is not done on the way.
    pub(crate) fn run_jail(&mut self, number: usize, mut host: u64) {
        let mut amiss = 0;
        loop {
            match self.run_and_stop(number, host, &mut amiss) {
                Ok(Some(next)) => host = next,
                Ok(None) => return,
                Err(Broken) => {
                    self.windows.spaces[number].is_broken = true;
                    // What its registers were nobody knows any more. This is the program's fault.
                    self.core.set_rip(NOWHERE);
                    self.context.reason = Reason::Left as u32;
                    return;
                }
            }
        }
    }

    /// Lets the jail go on at `host` until it stops, and does what it wants. Returns where it goes
    /// on. `amiss` is how often it was interrupted in vain, so that it goes as many steps.
    fn run_and_stop(
        &mut self,
        number: usize,
        host: u64,
        amiss: &mut u32,
    ) -> Result<Option<u64>, Broken> {
        let context = &mut *self.context;
        context.resume = host;
        context.stopped_by = 0;
        context.steps = *amiss;
        context.flags = context.flags & Rflags::STATUS.bits() | Rflags::FIXED.bits();
        if *amiss != 0 {
            context.flags |= Rflags::TF.bits();
        }
        self.windows.counters.stops += 1;
        let bell = &self.bell;
        let jail = &mut self.windows.spaces[number].jail;
        if let Some(deadline) = self.windows.alarm {
            jail.set_alarm(deadline, context);
        }
        let begin = Instant::now();
        bell.set_runner(Some(jail.runner()));
        let result = jail.run(*amiss != 0, &mut || bell.is_ringing());
        bell.set_runner(None);
        self.windows.inside += begin.elapsed();
        self.vectors = Vectors::Area;
        result?;
        self.take_back();
        const INTERRUPTED: u32 = INTERRUPT as u32;
        const STEPPED: u32 = libc::SIGTRAP as u32;
        match self.context.stopped_by {
            0 | INTERRUPTED | STEPPED => self.interrupted(amiss),
            ASKED => {
                *amiss = 0;
                self.after_ask()
            }
            _ => self.window_fault(number),
        }
    }

    /// The jail has stopped: what is not the program's to say it has not said.
    fn take_back(&mut self) {
        let flags = self.core.rflags();
        let context = &mut *self.context;
        context.crossing.crossed = 0;
        context.interrupt_flag = (flags & Rflags::IF.bits()) as u32;
        context.access_flag = (flags & Rflags::AC.bits()) as u32;
        context.fs_base = self.core.base(x86::SegmentRegister::Fs);
        context.gs_base = self.core.base(x86::SegmentRegister::Gs);
        context.kernel_gs_base = self.core.kernel_gs_base();
    }

    /// The jail was interrupted, or did not even go on. Between two instructions, the registers are
    /// the guest's, and what rings can be looked at. In the middle of one it goes some steps ahead,
    /// one more each time: so it is at a better place soon, whatever loop it is in.
    fn interrupted(&mut self, amiss: &mut u32) -> Result<Option<u64>, Broken> {
        let host = self.context.resume;
        let memory = &self.store.memory;
        let position = memory.offset_of(host as usize).ok_or(Broken)?;
        let block = self.store.block_at(position);
        let found = block.and_then(|block| {
            let (offset, scratch) = block.boundary(memory, position as u32)?;
            Some((block.key, offset, scratch))
        });
        let Some((key, offset, scratch)) = found else {
            self.windows.counters.amiss += 1;
            *amiss += 1;
            return if *amiss == AMISS_MAX {
                Err(Broken)
            } else {
                Ok(Some(host))
            };
        };
        self.windows.counters.interrupted += 1;
        let rip = self.address(key.linear, key.mode, offset.into());
        self.core.set_rip(rip);
        Ok(self.left(scratch))
    }

    /// Does what the code in the jail asks for.
    fn after_ask(&mut self) -> Result<Option<u64>, Broken> {
        match self.context.reason {
            reason if reason == Reason::Link as u32 => {
                let argument = self.context.argument;
                let block = self.store.block(argument >> 8).ok_or(Broken)?;
                if argument as u8 >= block.exits() {
                    return Err(Broken);
                }
                Ok(self.assist_in_jail())
            }
            reason if reason == Reason::Callout as u32 => {
                self.site().ok_or(Broken)?;
                Ok(self.assist_in_jail())
            }
            // Its site is an older one's if the jump was to 0, and is not needed then.
            reason if reason == Reason::Indirect as u32 => Ok(self.assist_in_jail()),
            _ => Err(Broken),
        }
    }

    fn assist_in_jail(&mut self) -> Option<u64> {
        let is_jump = self.context.reason != Reason::Callout as u32;
        let next = self.assist()?;
        if is_jump {
            let generation = self.store.generation;
            self.look_ahead();
            if self.store.generation != generation {
                // The code that was found may have made room.
                return self.left(0);
            }
        }
        self.store.memory.publish();
        Some(next)
    }

    /// Translates what follows the code at RIP and was executed behind checks already, so that the
    /// jail does not stop for each block of it.
    fn look_ahead(&mut self) {
        let Some(mode) = self.mode() else {
            return;
        };
        let generation = self.store.generation;
        let mut left = AHEAD;
        let mut queue = VecDeque::new();
        let rip = self.core.rip();
        queue.extend(
            self.key(rip, mode)
                .and_then(|(key, _)| self.store.find(&key)),
        );
        while let Some(from) = queue.pop_front() {
            let exits = self.store.block(from).map_or(0, |block| block.exits());
            for number in 0..exits {
                let Some((block, exit)) = self.store.exit(from, number) else {
                    return;
                };
                let rip = self.address(block.key.linear, block.key.mode, exit.target);
                if exit.linked || exit.single {
                    continue;
                }
                let Some((key, global)) = self.key(rip, mode) else {
                    continue;
                };
                let known = self.store.find(&key);
                let to = match known {
                    Some(block) => Some(block).filter(|block| self.is_whole(*block, rip)),
                    None if left > 0 && self.windows.has_run(&key) => {
                        left -= 1;
                        let block = self.translate(key, rip, global, block.scratch);
                        queue.extend(block);
                        block.inspect(|block| self.expect_jumps(*block, rip, mode))
                    }
                    None => None,
                };
                if self.store.generation != generation {
                    return;
                }
                if let Some(to) = to {
                    let taken = Taken {
                        from,
                        exit: number,
                        rip,
                        single: false,
                        generation,
                    };
                    self.link(taken, to, &key);
                }
            }
        }
    }

    /// Puts the block at `rip` into the jump cache: a jail stops for each jump that is not there.
    pub(crate) fn expect_jumps(&mut self, block: BlockId, rip: u64, mode: Mode) {
        if let Some(host) = self.store.entry(block) {
            self.lookup
                .fill_jump(&mut self.context, mode.slot(), rip, host);
        }
    }

    /// The key of the block at `rip`, and whether that is there in every address space.
    fn key(&mut self, rip: u64, mode: Mode) -> Option<(Key, bool)> {
        let page = self.core.code_page(rip)?;
        let key = Key {
            offset: page.offset + rip as usize % PAGE,
            linear: rip,
            mode,
        };
        Some((key, page.global))
    }

    /// An instruction in the jail raised a signal: the page that it wants is mapped, or the
    /// interpreter finds out what it stands for.
    fn window_fault(&mut self, number: usize) -> Result<Option<u64>, Broken> {
        const PAGE_FAULT: u32 = 14;
        const WRITE: u32 = 2;
        let rip = self.context.resume;
        let position = self.store.memory.offset_of(rip as usize).ok_or(Broken)?;
        let block = self.store.block_at(position).ok_or(Broken)?;
        let offset = block.guest_offset(&self.store.memory, position as u32);
        if offset == u16::MAX {
            return Err(Broken);
        }
        let spilled = block.spilled_at(&self.store.memory, position as u32);
        let generation = self.store.generation;
        let (vector, error) = (self.context.fault_vector, self.context.fault_error);
        let address = self.context.fault_address;
        if vector == PAGE_FAULT && self.fill_window(number, address, error & WRITE != 0)? {
            if self.store.generation == generation {
                return Ok(Some(rip));
            }
            // The block went when permissions changed. It did nothing of this instruction yet.
            let rip = self.address(block.key.linear, block.key.mode, offset.into());
            self.core.set_rip(rip);
            return Ok(self.left(spilled));
        }
        self.record.registers = self.context.host;
        self.record.rip = rip;
        self.record.rflags = self.context.flags;
        self.context.reason = Reason::Fault as u32;
        Ok(None)
    }

    /// Brings the page around `address` into the jail, and those around it. Returns whether it is
    /// there now and was not before.
    fn fill_window(&mut self, number: usize, address: u64, write: bool) -> Result<bool, Broken> {
        let linear = address & !(PAGE as u64 - 1);
        let space = &self.windows.spaces[number];
        let is_there = space
            .pages
            .get(linear)
            .is_some_and(|page| page.writable || !write);
        if is_there || !is_canonical(address, 48) || !space.has_place(linear) {
            return Ok(false);
        }
        let start = Instant::now();
        let Some(page) = self.core.data_page(address, write) else {
            return Ok(false);
        };
        // Looking may have changed permissions.
        self.apply_changes();
        let mut found = Vec::new();
        let space = &mut self.windows.spaces[number];
        let begin = linear & !(AROUND - 1);
        for near in (begin..begin + AROUND).step_by(PAGE) {
            if near == linear {
                found.push((near, page));
                continue;
            }
            let known = space.pages.get(near);
            if known.is_some_and(|page| page.writable) || !space.has_place(near) {
                continue;
            }
            let Some(page) = self.core.peek_user_page(near) else {
                continue;
            };
            if known.is_none_or(|known| known.writable != page.writable) {
                found.push((near, page));
            }
        }
        self.windows.counters.fills += 1;
        self.windows.counters.mapped += found.len() as u64;
        let most = space.pages.most();
        space.map(&found)?;
        if space.pages.most() > most {
            self.windows.growing += start.elapsed();
        }
        Ok(true)
    }

    /// Takes out of the active jail what `changes` say is no longer true.
    pub(crate) fn apply_to_window(&mut self, changes: &Changes) {
        let Some(number) = self.windows.active else {
            return;
        };
        let is_stale = changes.all || changes.locals || changes.lower;
        let space = &mut self.windows.spaces[number];
        let mut gone: Vec<u64> = if is_stale {
            let core = &self.core;
            let is_other = |linear: u64, page: Page| {
                let now = core.peek_user_page(linear);
                !now.is_some_and(|n| n.offset == page.offset && (n.writable || !page.writable))
            };
            let pages = space.pages.iter();
            let others = pages.filter(|(linear, page)| is_other(*linear, *page));
            others.map(|(linear, _)| linear).collect()
        } else {
            let all = changes
                .pages
                .iter()
                .map(|linear| linear & !(PAGE as u64 - 1));
            all.filter(|linear| space.pages.get(*linear).is_some())
                .collect()
        };
        if changes.writes && !is_stale {
            let watch = self.core.memory().watch();
            let pages = space.pages.iter();
            let shut = pages.filter(|(_, p)| p.writable && watch.is_watched(p.offset / PAGE));
            gone.extend(shut.map(|(linear, _)| linear));
        }
        gone.sort_unstable();
        gone.dedup();
        if is_stale && gone.len() * 2 > space.pages.len() {
            self.windows.heat.forget(space.cr3);
        }
        self.windows.counters.unmapped += gone.len() as u64;
        if space.unmap(&gone).is_err() {
            space.is_broken = true;
        }
        if is_stale {
            for linear in self.store.blocks.linear_pages(false) {
                self.check_page(linear);
            }
        }
    }
}
