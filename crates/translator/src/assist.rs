//! What translated code asks Rust code for, without being left: most of it goes on at once.

use crate::gate::Reason;
use crate::store::PAGE;
use crate::vcpu::{Missed, Taken, TranslatorVcpu};
use std::sync::atomic::Ordering;
use x86::paging::is_canonical;

/// The Rust part of [`crate::gate::assist`]: the host address at which translated code goes on, or
/// 0 if it is to be left. [`Reason::Left`] is then noted, unless the vector registers have to be
/// saved first for what is wanted.
#[expect(unsafe_code, reason = "called by assembly with a pointer")]
// UNSAFETY: one pointer, made a reference.
pub(crate) extern "C" fn assist(vcpu: *mut TranslatorVcpu) -> u64 {
    // SAFETY: `TranslatorVcpu::enter` made the pointer for the gate that calls this, and does not
    // use the vCPU until translated code is left.
    let vcpu = unsafe { &mut *vcpu };
    let goes_on = if vcpu.lockstep.is_none() {
        vcpu.assist()
    } else {
        vcpu.assist_in_lockstep()
    };
    match goes_on {
        Some(host) => {
            vcpu.store.memory.publish();
            host
        }
        None => 0,
    }
}

impl TranslatorVcpu {
    pub(crate) fn assist(&mut self) -> Option<u64> {
        self.take_crossing();
        match Reason::new(self.context.reason) {
            Reason::Link => self.follow_exit(),
            Reason::Indirect => self.follow_jump(),
            Reason::Callout => {
                self.counters.callouts += 1;
                self.interpret()
            }
            Reason::Memory => self.refill().or_else(|| {
                self.counters.accesses += 1;
                self.interpret()
            }),
            Reason::Fault | Reason::Left => unreachable!("no gate asks for an assist with these"),
        }
    }

    /// An exit that is not linked was taken, or one whose poll saw attention.
    fn follow_exit(&mut self) -> Option<u64> {
        let argument = self.context.argument;
        let number = argument as u8;
        let Some((from, exit)) = self.store.exit(argument >> 8, number) else {
            unreachable!("the block that ran is there");
        };
        let rip = self.address(from.key.linear, from.key.mode, exit.target);
        match exit.linked {
            true => self.counters.polls += 1,
            false => self.counters.links += 1,
        }
        self.counters.singles += u64::from(exit.single);
        self.taken = Some(Taken {
            from: argument >> 8,
            exit: number,
            rip,
            single: exit.single,
            generation: self.store.generation,
        });
        self.go_to(rip).or_else(|| self.left(0))
    }

    /// The jump cache does not have [`crate::context::Context::pc`], or somebody rings.
    fn follow_jump(&mut self) -> Option<u64> {
        match self.context.attention.load(Ordering::Relaxed) {
            0 => self.counters.indirect += 1,
            _ => self.counters.rung += 1,
        }
        let rip = self.context.pc;
        if !is_canonical(rip, 48)
            && let Some((block, site)) = self.site()
        {
            // The jump itself may be what raises #GP: it is made again, by the interpreter.
            let key = block.key;
            let rsp = &mut self.context.host[4];
            *rsp = rsp.wrapping_sub(i64::from(site.moved) as u64);
            if let Err(exit) = self.run_site(&key, 0, &site) {
                self.exit = Some(exit);
            }
            self.context.reason = Reason::Left as u32;
            return None;
        }
        if let Some(mode) = self.now() {
            let slot = mode.slot();
            self.missed = Some(Missed { slot, rip });
        }
        self.go_to(rip).or_else(|| self.left(0))
    }

    /// Where the translation for `rip` begins; the context has all registers of the guest as the
    /// host's.
    fn go_to(&mut self, rip: u64) -> Option<u64> {
        self.core.set_access_flag(self.context.access_flag != 0);
        self.core.set_rip(rip);
        if self.is_disturbed() {
            return None;
        }
        let mode = self.mode()?;
        if !self.windows.is_active() && self.is_for_window(mode) {
            return None;
        }
        let block = self.find(mode)?;
        let host = self.store.entry(block)?;
        let context = &mut *self.context;
        context.pc = rip;
        for register in (0..16).filter(|r| mode.landing() >> r & 1 != 0) {
            context.spilled[register] = context.host[register];
        }
        Some(host)
    }

    /// Takes the guest's registers, so that translated code can be left.
    pub(crate) fn left(&mut self, scratch: u16) -> Option<u64> {
        self.take_registers(scratch);
        self.context.reason = Reason::Left as u32;
        None
    }

    /// Lets the interpreter execute the instruction of a site, and follows to where it leads.
    fn interpret(&mut self) -> Option<u64> {
        let Some((block, site)) = self.site() else {
            unreachable!("the site of a block that ran is there");
        };
        if site.works_on_vectors {
            return None;
        }
        let (key, scratch) = (block.key, block.scratch);
        let (id, generation) = (self.context.argument >> 8, self.store.generation);
        let following = site
            .next
            .map(|p| (p, block.guest_offset(&self.store.memory, p)));
        let done = self.run_site(&key, scratch, &site);
        self.context.reason = Reason::Left as u32;
        if let Err(exit) = done {
            self.exit = Some(exit);
            return None;
        }
        if !self.windows.is_active() {
            self.apply_changes();
        }
        let is_there = self.store.generation == generation && self.store.block(id).is_some();
        if let Some((position, offset)) = following.filter(|_| is_there)
            && self.may_resume(&key, offset)
        {
            self.give_registers(scratch);
            return Some(self.store.memory.address(position as usize) as u64);
        }
        if self.is_disturbed() {
            return None;
        }
        let rip = self.core.rip();
        let mode = self.mode()?;
        if !self.windows.is_active() && self.is_for_window(mode) {
            return None;
        }
        let slot = mode.slot();
        let host = match self.lookup.jump(&self.context, slot, rip) {
            Some(host) => host,
            None => {
                self.missed = Some(Missed { slot, rip });
                let block = self.find(mode)?;
                self.store.entry(block)?
            }
        };
        self.give_registers(mode.landing());
        self.context.pc = rip;
        Some(host)
    }

    /// An access missed the TLB: where translated code goes on, unless the interpreter has to make
    /// the access.
    pub(crate) fn refill(&mut self) -> Option<u64> {
        self.core.set_access_flag(self.context.access_flag != 0);
        let linear = self.context.linear;
        let Some((block, site)) = self.site() else {
            unreachable!("the site of a block that runs is there");
        };
        let view = block.key.mode.view();
        let fits = linear as usize % PAGE + usize::from(site.size) <= PAGE;
        let operand = linear.wrapping_add(site.skew.into());
        if !operand.is_multiple_of(site.alignment.into()) {
            // It raises #GP, and must leave no dirty bit.
            return None;
        }
        let page = fits.then(|| self.core.data_page(linear, site.write && !site.if_dirty));
        if let Some(page) = page.flatten().filter(|p| p.writable || !site.write) {
            let page = self.permit(view, linear, site.write, &page);
            let (lookup, context) = (&mut self.lookup, &mut self.context);
            if site.gs_page && !lookup.fill_gs_page(context, view, page, site.write) {
                // The base is none that has places.
                return None;
            }
            return Some(self.store.memory.address(site.retry as usize) as u64);
        }
        // What stands behind a shared check must not run without it.
        let memory = &self.store.memory;
        let single = block.exit(memory, site.single?);
        Some(memory.address(single.jump as usize - 1) as u64)
    }
}
