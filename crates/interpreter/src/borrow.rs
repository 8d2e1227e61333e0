//! What another engine borrows of a vCPU: one that runs code of its own, and leaves events, rare
//! instructions, page tables and the truth about code to the interpreter.
//!
//! Such an engine keeps copies: of TLB entries ([`InterpreterVcpu::data_page`]) and of what it made
//! from code ([`InterpreterVcpu::code_page`]). Whatever the interpreter does for it may make them
//! stale, so after each call that begins, executes, attends or asks for a page it takes the
//! [`Changes`], if there are any, before it uses a copy again.

use crate::access::Part;
use crate::cpu::{Cpu, Result};
use crate::journal::Changes;
use crate::mailbox::{Doorbell, Remote};
use crate::mode::Mode;
use crate::paging::Intent;
use crate::tlb::View;
use crate::vcpu::InterpreterVcpu;
use clock::{NANOS_PER_SECOND, TscScale};
use memory::{GuestMemory, Kind, PAGE_SIZE, Ram};
use native::VectorState;
use std::sync::Arc;
use x86::{Cr0, Rflags, SegmentRegister};

/// A page from which code is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodePage {
    /// Where the page is in guest memory.
    pub offset: usize,
    /// Whether it is mapped there in every address space: the translation is global, or paging is
    /// off. A CR3 write does not change it.
    pub global: bool,
}

/// A page of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataPage {
    /// Where the page is in guest memory.
    pub offset: usize,
    /// Whether it may be read without another look.
    pub readable: bool,
    /// Whether it may be written without another look: it is dirty, and holds no code.
    pub writable: bool,
}

/// What SYSCALL and SYSRET do between 64-bit code, as long as nobody changes their MSRs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crossings {
    /// Whether they do not raise #UD.
    pub enabled: bool,
    /// Where SYSCALL goes.
    pub entry: u64,
    /// The bits of RFLAGS that it clears.
    pub cleared: u64,
    /// The selectors of CS and SS that it sets.
    pub kernel: [u16; 2],
    /// The selectors of CS and SS that SYSRET sets.
    pub user: [u16; 2],
}

/// Registers.
impl InterpreterVcpu {
    /// This vCPU's number.
    pub fn index(&self) -> usize {
        self.cpu.index
    }

    /// How code is executed now.
    #[inline]
    pub fn mode(&self) -> Mode {
        self.cpu.mode()
    }

    /// General-purpose registers by number, RAX to R15.
    #[inline(always)]
    pub fn gpr(&self) -> &[u64; 16] {
        self.cpu.gpr.first_chunk().expect("there are more slots")
    }

    /// General-purpose registers by number, RAX to R15.
    #[inline(always)]
    pub fn gpr_mut(&mut self) -> &mut [u64; 16] {
        self.cpu
            .gpr
            .first_chunk_mut()
            .expect("there are more slots")
    }

    /// RIP.
    #[inline(always)]
    pub fn rip(&self) -> u64 {
        self.cpu.rip
    }

    /// Sets RIP, which outside 64-bit code has 32 bits.
    #[inline(always)]
    pub fn set_rip(&mut self, rip: u64) {
        self.cpu.rip = rip;
    }

    /// The linear address of RIP, wherever that is.
    #[inline(always)]
    pub fn linear_rip(&self) -> u64 {
        self.cpu.linear_rip()
    }

    /// RFLAGS.
    #[inline]
    pub fn rflags(&self) -> u64 {
        self.cpu.flags.get().bits()
    }

    /// Sets the six arithmetic flags, DF and IF from `bits` and leaves the others alone. Whoever
    /// sets IF looks at [`InterpreterVcpu::interrupt_waits`].
    #[inline]
    pub fn set_rflags_status_df_if(&mut self, bits: u64) {
        let rflags = Rflags::from_bits_retain(bits);
        let flags = &mut self.cpu.flags;
        flags.set_status(rflags);
        flags.set_system(Rflags::DF, rflags.contains(Rflags::DF));
        flags.set_system(Rflags::IF, rflags.contains(Rflags::IF));
    }

    /// RFLAGS.DF.
    #[inline(always)]
    pub fn direction_flag(&self) -> bool {
        self.cpu.flags.df()
    }

    /// Sets RFLAGS.AC, as STAC and CLAC do.
    #[inline]
    pub fn set_access_flag(&mut self, on: bool) {
        if self.cpu.flags.system().contains(Rflags::AC) != on {
            self.cpu.flags.set_system(Rflags::AC, on);
            self.cpu.update_view();
        }
    }

    /// The selectors of ES, CS, SS, DS, FS and GS.
    #[inline(always)]
    pub fn selectors(&self) -> [u16; 6] {
        self.cpu.segments.each_ref().map(|s| s.selector.0)
    }

    /// What is added to an offset in the segment in `register`. In 64-bit code, that is 0 for all
    /// but FS and GS.
    #[inline(always)]
    pub fn base(&self, register: SegmentRegister) -> u64 {
        let has_base = matches!(register, SegmentRegister::Fs | SegmentRegister::Gs);
        if has_base || !self.cpu.is_64bit() {
            self.cpu.bases[register as usize]
        } else {
            0
        }
    }

    /// Sets the base of FS or GS to a canonical address.
    ///
    /// # Panics
    /// If `register` is another.
    pub fn set_base(&mut self, register: SegmentRegister, base: u64) {
        let has_base = matches!(register, SegmentRegister::Fs | SegmentRegister::Gs);
        assert!(has_base, "{register:?} has no base of its own");
        debug_assert!(self.cpu.canonical(base));
        self.cpu.set_base(register, base);
    }

    /// IA32_KERNEL_GS_BASE.
    #[inline(always)]
    pub fn kernel_gs_base(&self) -> u64 {
        self.cpu.syscall.kernel_gs_base
    }

    /// Sets IA32_KERNEL_GS_BASE to a canonical address.
    #[inline(always)]
    pub fn set_kernel_gs_base(&mut self, base: u64) {
        debug_assert!(self.cpu.canonical(base));
        self.cpu.syscall.kernel_gs_base = base;
    }

    /// CR2: the address that the last page fault was about.
    #[inline(always)]
    pub fn cr2(&self) -> u64 {
        self.cpu.cr2
    }

    /// What SYSCALL and SYSRET do between 64-bit code.
    #[inline(always)]
    pub fn crossings(&self) -> Crossings {
        self.cpu.crossings()
    }

    /// Does what SYSCALL from 64-bit code does with CPL, CS and SS, or, if to `user`, SYSRET to
    /// 64-bit code, and sets the flags that are not arithmetic from `flags`. Whoever sets IF looks
    /// at [`InterpreterVcpu::interrupt_waits`].
    pub fn cross(&mut self, user: bool, flags: u64) {
        let others = Rflags::from_bits_retain(!Rflags::STATUS.bits());
        let flags = Rflags::from_bits_retain(flags) | Rflags::FIXED;
        self.cpu.flags.set_system(others, false);
        self.cpu.flags.set_system(flags & others, true);
        self.cpu.cross(user);
    }

    /// x87, MMX and vector registers.
    #[inline(always)]
    pub fn vectors(&mut self) -> &mut VectorState {
        &mut self.cpu.fpu.state
    }
}

/// Memory.
impl InterpreterVcpu {
    /// Guest memory by offset.
    #[inline(always)]
    pub fn ram(&self) -> &Ram {
        &self.cpu.ram
    }

    /// Guest memory by guest-physical address.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.cpu.memory
    }

    /// Where code at the linear address `linear` is fetched from, at the current privilege. In
    /// 32-bit code, `linear` has 32 bits.
    ///
    /// `None` if it can't be, or is not in memory. Nothing is raised: that is left to the
    /// interpreter when it executes there.
    pub fn code_page(&mut self, linear: u64) -> Option<CodePage> {
        if !self.cpu.canonical(linear) {
            return None;
        }
        let offset = self.cpu.quietly(|cpu| cpu.fetch_page(linear))??;
        let cpu = &self.cpu;
        let global = cpu.tlb.code_is_global(cpu.cpl == 3, linear) || !cpu.cr0.contains(Cr0::PG);
        Some(CodePage { offset, global })
    }

    /// From here on, nobody writes to `page` (offset / 4096) of guest memory unseen: who writes
    /// there ends up in [`Changes::code`]. What is read of it through [`InterpreterVcpu::ram`]
    /// after this call is true until then.
    pub fn watch_code(&mut self, page: usize) {
        self.cpu.watch_code(page);
    }

    /// Where data at the linear address `linear` is, for the code that runs now. Accessed bits are
    /// set, and dirty bits if it is to `write`. In 32-bit code, `linear` has 32 bits.
    ///
    /// `None` if the access would fault, is to a device, or has to be seen: a write to code, or any
    /// under [`View::Checked`]. Nothing is raised: that is left to the interpreter.
    pub fn data_page(&mut self, linear: u64, write: bool) -> Option<DataPage> {
        let cpu = &mut self.cpu;
        let view = cpu.view;
        if view == View::Checked || !cpu.canonical(linear) {
            return None;
        }
        let (at, writable) = match cpu.tlb.probe(view, linear) {
            Some((at, writable)) if writable || !write => (at, writable),
            _ => {
                let intent = if write { Intent::Write } else { Intent::Read };
                let by = cpu.privilege();
                match cpu.quietly(|cpu| cpu.fill(linear, intent, by))? {
                    (Part::Ram(at), writable) => (at, writable),
                    (Part::Device(_), _) => return None,
                }
            }
        };
        (writable || !write).then_some(DataPage {
            offset: at & !(PAGE_SIZE - 1),
            readable: true,
            writable,
        })
    }

    /// Where user code finds the page at the linear address `linear`, if it has done so before: a
    /// look that sets nothing, for whoever wants to know more pages than are asked for.
    pub fn peek_user_page(&self, linear: u64) -> Option<DataPage> {
        let cpu = &self.cpu;
        if !cpu.canonical(linear) {
            return None;
        }
        let (gpa, writable) = cpu.peek_user(linear)?;
        if cpu.apic_page(gpa).is_some() {
            return None;
        }
        let (page, is_ram) = match cpu.memory.page(gpa)? {
            (page, Kind::Ram) => (page, true),
            (page, Kind::Rom) => (page, false),
        };
        let writable = writable
            && is_ram
            && cpu
                .shared
                .claim_write(cpu.index, page >> memory::PAGE_SHIFT);
        Some(DataPage {
            offset: page & !(PAGE_SIZE - 1),
            readable: true,
            writable,
        })
    }

    /// CR3, which tells address spaces apart.
    #[inline(always)]
    pub fn cr3(&self) -> u64 {
        self.cpu.cr3
    }

    /// Records [`Changes`] from now on.
    pub fn keep_journal(&mut self) {
        self.cpu.tlb.journal.switch_on();
    }

    /// Whether [`InterpreterVcpu::take_changes`] has something.
    #[inline(always)]
    pub fn has_changes(&self) -> bool {
        self.cpu.tlb.journal.has_any()
    }

    /// Takes what was forgotten since the last call.
    pub fn take_changes(&mut self) -> Changes {
        self.cpu.tlb.journal.take()
    }

    /// Drops all decoded code, the other engine's too.
    pub fn forget_code(&mut self) {
        self.cache.clear();
        self.cpu.tlb.journal.all_code();
    }
}

/// Events and time.
impl InterpreterVcpu {
    /// Whether each block has to be looked at for a debugger, so that no other code than the
    /// interpreter's may run: [`InterpreterVcpu::attend`] then asks for attention at once.
    #[inline(always)]
    pub fn is_debugged(&self) -> bool {
        self.cpu.debug.has_breakpoints()
    }

    /// Whether an interrupt or NMI would be taken if RFLAGS.IF were set.
    pub fn interrupt_waits(&self) -> bool {
        self.cpu.nmi_pending && !self.cpu.nmi_blocked || self.cpu.interrupt_waits()
    }

    /// Exceptions and interrupts so far.
    #[inline(always)]
    pub fn events(&self) -> u64 {
        self.cpu.counters.exceptions + self.cpu.counters.interrupts
    }

    /// Machine time, in nanoseconds, at which the local APIC's timer wants attention.
    pub fn apic_deadline(&self) -> Option<u64> {
        self.cpu.next_apic_deadline(self.machine_now())
    }

    /// Machine time, in nanoseconds.
    pub fn machine_now(&self) -> u64 {
        self.cpu.shared.clock.now()
    }

    /// How machine time follows from the host's TSC, if that is also how the guest's TSC does but
    /// for [`InterpreterVcpu::tsc_offset`]: if it counts nanoseconds.
    pub fn tsc_scale(&self) -> Option<TscScale> {
        let shared = &self.cpu.shared;
        (shared.tsc_khz == NANOS_PER_SECOND / 1000)
            .then(|| shared.clock.tsc_scale())
            .flatten()
    }

    /// The guest's TSC at machine time 0, modulo 2^64.
    #[inline(always)]
    pub fn tsc_offset(&self) -> u64 {
        self.cpu.tsc_offset
    }

    /// IA32_TSC_AUX, which RDTSCP shows.
    #[inline(always)]
    pub fn tsc_aux(&self) -> u32 {
        self.cpu.tsc_aux
    }

    /// Requests that wait in the mailbox, one bit each; 0 if there are none.
    #[inline(always)]
    pub fn requests(&self) -> u32 {
        self.cpu.mailbox.requests()
    }

    /// Rings `doorbell` at each request from now on.
    ///
    /// # Panics
    /// If the vCPU has one already.
    pub fn set_doorbell(&mut self, doorbell: Arc<dyn Doorbell>) {
        self.cpu.mailbox.set_doorbell(doorbell);
    }

    /// A handle for the timer of this vCPU.
    pub fn remote(&self) -> Remote {
        Remote::new(self.cpu.mailbox.clone())
    }
}

impl Cpu {
    /// What `look` finds; `None` if it raises something, which is then dropped.
    fn quietly<T>(&mut self, look: impl FnOnce(&mut Self) -> Result<T>) -> Option<T> {
        let waiting = self.exception;
        let found = look(self).ok();
        self.exception = waiting;
        found
    }
}
