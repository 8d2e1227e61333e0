//! A vCPU: its loop over exits, and its owner's view of it.

use crate::calls::VcpuCalls;
use crate::debug::Debug;
use crate::external::External;
use crate::failure::{self, Place};
use crate::load::{self, Identity};
use crate::mailbox::{KICK, Mailbox, NMI};
use crate::run_page::{MemoryExit, RunExit};
use crate::save;
use crate::time::VcpuTime;
use crate::vm::Shared;
use crate::{apic, exit};
use engine::{DebugRequest, Exit, Platform, Statistic};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use x86::{Activity, Cr0, Efer, VcpuState};

/// How often a vCPU is entered at most to bring an instruction or an interrupt to its end. A
/// string instruction makes as many accesses as it likes, a page at a time.
const SETTLING_MAX: u32 = 10_000;

/// Exits by cause.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    ports: u64,
    memory: u64,
    windows: u64,
    signals: u64,
    ends_of_interrupts: u64,
    debug: u64,
    kicks: u64,
    external_interrupts: u64,
    running: Duration,
}

/// One vCPU under KVM.
pub(crate) struct KvmVcpu {
    calls: Arc<dyn VcpuCalls>,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    identity: Identity,
    index: usize,
    external: External,
    /// The kernel waits for the answer to an access: it completes the instruction when it is
    /// entered next.
    answers: bool,
    shut_down: bool,
    debug: Debug,
    /// The kernel has the debugger's request.
    debug_is_set: bool,
    /// The state that was last loaded, for what the kernel does not keep of it.
    kept: VcpuState,
    counters: Counters,
}

impl KvmVcpu {
    pub(crate) fn new(shared: Arc<Shared>, index: usize, identity: Identity) -> Self {
        let part = &shared.vcpus[index];
        Self {
            calls: part.calls.clone(),
            mailbox: part.mailbox.clone(),
            kept: VcpuState::after_reset(identity.id),
            shared,
            identity,
            index,
            external: External::default(),
            answers: false,
            shut_down: false,
            debug: Debug::default(),
            debug_is_set: true,
            counters: Counters::default(),
        }
    }

    fn run_guest(&mut self, platform: &dyn Platform) -> Exit {
        if self.shut_down {
            return Exit::Shutdown("the vCPU is shut down".to_owned());
        }
        if let Err(error) = self.shared.time.begin() {
            return self.failed(&error);
        }
        if self.debug.is_active()
            && let Some(stop) = self.debug.begin(self.linear_rip())
        {
            return Exit::Debug(stop);
        }
        self.debug_is_set &= !self.debug.is_active();
        loop {
            if self.mailbox.has_mail() {
                let requests = self.mailbox.take();
                if requests & NMI != 0
                    && let Err(error) = self.calls.nmi()
                {
                    return self.failed(&error);
                }
                if requests & KICK != 0 {
                    self.counters.kicks += 1;
                    return Exit::Kicked;
                }
            }
            if let Some(exit) = self.enter(platform) {
                return exit;
            }
        }
    }

    /// Enters the guest once, and does what it left for. Returns what is the owner's to handle.
    fn enter(&mut self, platform: &dyn Platform) -> Option<Exit> {
        if !self.debug_is_set
            && let Err(error) = self.set_guest_debug()
        {
            return Some(self.failed(&error));
        }
        let given = self.external.is_hidden();
        let calls = &*self.calls;
        if let Err(error) = self.external.before_run(calls, &self.mailbox, platform) {
            return Some(self.failed(&error));
        }
        self.counters.external_interrupts += u64::from(self.external.is_hidden() && !given);
        match calls.run() {
            Ok(()) => {
                let exit = calls.page().exit();
                self.external.after_run(true, Some(&exit));
                self.handle(&exit, platform)
            }
            Err(error) => self.interrupted(&error),
        }
    }

    /// `KVM_RUN` has failed with `error`.
    fn interrupted(&mut self, error: &io::Error) -> Option<Exit> {
        match error.raw_os_error() {
            // A signal; or a vCPU that waited for INIT has got it.
            Some(libc::EINTR | libc::EAGAIN) => {
                let page = self.calls.page();
                self.external.after_run(page.was_entered(), None);
                // What waited for an answer has got it.
                self.answers = false;
                self.counters.signals += 1;
                // Whoever set it since has posted his request before.
                page.set_immediate_exit(false);
                None
            }
            _ => Some(self.failed(error)),
        }
    }

    /// Does what the guest left for. Returns what is the owner's to handle.
    #[inline]
    fn handle(&mut self, exit: &RunExit, platform: &dyn Platform) -> Option<Exit> {
        self.answers = false;
        match exit {
            RunExit::Port(ports) => {
                self.counters.ports += 1;
                self.answers = true;
                exit::access_ports(self.calls.page(), ports, platform);
            }
            RunExit::Memory(access) => {
                self.counters.memory += 1;
                self.answers = true;
                if !self.is_write_to_rom(access) {
                    exit::access_memory(self.calls.page(), access, platform);
                }
            }
            RunExit::Window => self.counters.windows += 1,
            RunExit::Interrupted => self.counters.signals += 1,
            RunExit::EndOfInterrupt(vector) => {
                self.counters.ends_of_interrupts += 1;
                platform.end_of_interrupt(*vector);
            }
            RunExit::Debug { pc, dr6, .. } => {
                self.counters.debug += 1;
                self.debug_is_set = false;
                return self.debug.stopped(*pc, *dr6).map(Exit::Debug);
            }
            RunExit::Shutdown => {
                self.shut_down = true;
                return Some(Exit::Shutdown(failure::describe_shutdown(&self.place())));
            }
            exit => return Some(Exit::Failed(failure::describe(exit, &self.place()))),
        }
        None
    }

    /// The guest's writes to ROM are lost.
    fn is_write_to_rom(&self, access: &MemoryExit) -> bool {
        let rom = |gpa| {
            let region = self.shared.memory.region(gpa);
            region.is_some_and(|region| region.kind == memory::Kind::Rom)
        };
        access.write.is_some() && rom(access.gpa)
    }

    /// Brings the instruction that the kernel is in the middle of to its end, and an interrupt to
    /// where it can be seen: whoever looks at the vCPU now finds it between two instructions.
    fn settle(&mut self, platform: &dyn Platform) {
        let mut left = SETTLING_MAX;
        let mut to_guest = 0;
        while left > 0 && (self.answers || self.external.is_hidden() && to_guest < 3) {
            left -= 1;
            let result = if self.answers {
                self.calls.page().set_immediate_exit(true);
                self.calls.run()
            } else {
                to_guest += 1;
                self.calls.run_up_to_guest()
            };
            match result {
                Ok(()) => {
                    let exit = self.calls.page().exit();
                    self.external.after_run(true, Some(&exit));
                    // A triple fault or a failure comes again when the vCPU runs.
                    let _ = self.handle(&exit, platform);
                }
                Err(_) => {
                    self.answers = false;
                    self.external
                        .after_run(self.calls.page().was_entered(), None);
                }
            }
        }
        self.calls.page().set_immediate_exit(false);
    }

    fn set_guest_debug(&mut self) -> io::Result<()> {
        let control = self.debug.control(self.shared.blocks_interrupts);
        self.calls.set_guest_debug(&control)?;
        self.debug_is_set = true;
        Ok(())
    }

    fn linear_rip(&self) -> u64 {
        match (self.calls.regs(), self.calls.sregs()) {
            (Ok(regs), Ok(sregs)) => linear(&sregs, regs.rip),
            // There is no breakpoint at an address that nobody knows.
            _ => u64::MAX,
        }
    }

    /// Where the vCPU stands.
    fn place(&self) -> Place {
        let (Ok(regs), Ok(sregs)) = (self.calls.regs(), self.calls.sregs()) else {
            return Place {
                index: self.index,
                cs: 0,
                rip: 0,
                code: Vec::new(),
            };
        };
        let linear = linear(&sregs, regs.rip);
        let byte_at = |n| {
            let address = self.translate_by(sregs.cr0, linear.wrapping_add(n))?;
            self.shared.memory.load::<u8>(address).ok()
        };
        Place {
            index: self.index,
            cs: sregs.cs.selector,
            rip: regs.rip,
            code: (0..15).map_while(byte_at).collect(),
        }
    }

    /// As [`engine::Vcpu::translate`], with CR0 known.
    fn translate_by(&self, cr0: u64, linear: u64) -> Option<u64> {
        if cr0 & Cr0::PG.bits() == 0 {
            return Some(linear & 0xffff_ffff);
        }
        self.calls.translate(linear).ok().flatten()
    }

    fn failed(&self, error: &io::Error) -> Exit {
        Exit::Failed(failure::describe_error(error, &self.place()))
    }

    fn read(&self) -> VcpuState {
        let time = self.shared.time.of(self.index);
        let external = self.mailbox.external();
        let mut state = save::save(&*self.calls, &self.kept, &time, external)
            .expect("KVM tells the state of a vCPU that stands");
        state.events.nmi_pending |= self.mailbox.has(NMI);
        if self.shut_down {
            state.activity = Activity::Shutdown;
        }
        state
    }

    /// Gives the kernel `state`, with messages held up.
    fn write(&mut self, state: &VcpuState) -> Result<(), state::Invalid> {
        let settled = load::settled(state, &self.identity);
        let closed = self.shared.time.gate().close();
        let loaded = load::load(&*self.calls, &settled);
        drop(closed);
        loaded?;
        let time = VcpuTime::new(settled.tsc_offset, &settled.apic);
        self.shared.time.take(self.index, time);
        self.shut_down = settled.activity == Activity::Shutdown;
        self.mailbox.withdraw(NMI);
        self.mailbox.set_external(settled.events.external_interrupt);
        self.kept = settled;
        Ok(())
    }
}

/// RIP as a linear address.
fn linear(sregs: &kvm_bindings::kvm_sregs2, rip: u64) -> u64 {
    if sregs.efer & Efer::LMA.bits() != 0 && sregs.cs.l != 0 {
        rip
    } else {
        sregs.cs.base.wrapping_add(rip) & 0xffff_ffff
    }
}

impl engine::Vcpu for KvmVcpu {
    fn run(&mut self, platform: &Arc<dyn Platform>) -> Exit {
        let began = Instant::now();
        let running = self.mailbox.run_by_this_thread();
        let exit = self.run_guest(&**platform);
        self.settle(&**platform);
        drop(running);
        self.shared.time.leave(self.index);
        self.counters.running += began.elapsed();
        exit
    }

    fn state(&self) -> VcpuState {
        self.read()
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), state::Invalid> {
        if state.apic.id != self.identity.id {
            return Err(state::Invalid::new("another APIC ID"));
        }
        let before = self.read();
        if let Err(invalid) = self.write(state) {
            // All or nothing. What the kernel gave it takes again.
            let _ = self.write(&before);
            return Err(invalid);
        }
        load::withdraw_eoi_offer(&self.shared.memory, state);
        for vector in apic::awaited_ends(&state.apic) {
            let own = 0xfee0_0000 | u64::from(self.identity.id & 0xff) << 12;
            self.shared
                .expect_end(vector, own)
                .map_err(|error| state::Invalid::new(format!("KVM_SET_GSI_ROUTING: {error}")))?;
        }
        Ok(())
    }

    fn set_debug(&mut self, request: &DebugRequest) {
        self.debug.set(request);
        self.debug_is_set = false;
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        let cr0 = self.calls.sregs().ok()?.cr0;
        self.translate_by(cr0, linear)
    }

    fn statistics(&self) -> Vec<Statistic> {
        const EXITS: &str = "exits";
        let counters = &self.counters;
        let exits = |name, value| Statistic::events(EXITS, name, value);
        vec![
            Statistic::time(engine::RUNNING, counters.running),
            exits("port accesses", counters.ports),
            exits("memory accesses", counters.memory),
            exits("interrupt windows", counters.windows),
            exits("ends of interrupts", counters.ends_of_interrupts),
            exits("signals", counters.signals),
            exits("debugger's stops", counters.debug),
            exits("kicks", counters.kicks),
            Statistic::events(
                "events",
                "interrupts of the PIC",
                counters.external_interrupts,
            ),
        ]
    }
}

#[cfg(test)]
mod tests;
