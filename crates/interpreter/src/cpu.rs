//! The registers of one vCPU in the form in which instructions use them.

use crate::flags::Flags;
use crate::int::{Int, PC, Registers, SLOTS};
use crate::mailbox::Mailbox;
use crate::mode::Derived;
use crate::model::Model;
use crate::op::Op;
use crate::ops::VectorTable;
use crate::shared::Shared;
use crate::tlb::{Tlb, View};
use lapic::Lapic;
use memory::{GuestMemory, Ram};
use native::Frame;
use std::sync::Arc;
use x86::{
    Cr0, Cr4, DescriptorTable, Efer, Exception, MtrrState, ParavirtState, Rflags, Segment,
    SegmentRegister, SyscallMsrs, Vector, Xcr0,
};

/// An exception was recorded in [`Cpu::exception`]; the instruction has no further effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Raised;

/// What an instruction's handler returns.
pub(crate) type Result<T = ()> = std::result::Result<T, Raised>;

/// How the vCPU executes code: operand and address sizes, and what segmentation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CodeSize {
    /// 16-bit code.
    Bits16 = 0,
    /// 32-bit code.
    Bits32 = 1,
    /// 64-bit code.
    Bits64 = 2,
}

/// One vCPU.
pub(crate) struct Cpu {
    /// General-purpose registers by slot, with [`crate::int::ZERO`] and [`PC`].
    pub(crate) gpr: Registers,
    /// RIP, exact between blocks. Inside a block see [`Cpu::rip_of`].
    pub(crate) rip: u64,
    pub(crate) flags: Flags,
    /// Bases by segment register; slots 6 and 7 are 0. Long mode reads ES, CS, SS and DS through
    /// slot 7.
    pub(crate) bases: [u64; 8],
    pub(crate) segments: [Segment; 6],
    pub(crate) ldtr: Segment,
    pub(crate) tr: Segment,
    pub(crate) gdtr: DescriptorTable,
    pub(crate) idtr: DescriptorTable,
    /// Current privilege level.
    pub(crate) cpl: u8,
    pub(crate) code_size: CodeSize,
    /// What RSP is masked with: 64, 32 or 16 bits.
    pub(crate) stack_mask: u64,
    pub(crate) cr0: Cr0,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: Cr4,
    pub(crate) pdpte: [u64; 4],
    pub(crate) efer: Efer,
    pub(crate) xcr0: Xcr0,
    pub(crate) xss: u64,
    pub(crate) dr: [u64; 4],
    pub(crate) dr6: u64,
    pub(crate) dr7: u64,
    pub(crate) syscall: SyscallMsrs,
    pub(crate) pat: u64,
    pub(crate) mtrr: MtrrState,
    pub(crate) tsc_offset: u64,
    pub(crate) tsc_adjust: u64,
    pub(crate) tsc_aux: u32,
    pub(crate) misc_enable: u64,
    pub(crate) spec_ctrl: u64,
    pub(crate) paravirt: ParavirtState,
    /// x87, MMX and vector registers.
    pub(crate) fpu: Box<Frame>,
    /// How decoded vector instructions are executed; [`Op::aux`] is the index.
    pub(crate) vector: VectorTable,

    pub(crate) lapic: Lapic,
    /// The local APIC changed since the vCPU last looked at its timer.
    pub(crate) apic_touched: bool,
    /// The guest was told that it may end the interrupt in service without a write to EOI (KVM's
    /// paravirtual EOI).
    pub(crate) eoi_offered: bool,
    /// kvmclock's page must be written anew before the guest runs.
    pub(crate) clock_page_stale: bool,
    pub(crate) nmi_pending: bool,
    pub(crate) nmi_blocked: bool,
    /// Interrupts are held off until after the next instruction (STI).
    pub(crate) sti_shadow: bool,
    /// Interrupts and debug traps are held off until after the next instruction (MOV SS).
    pub(crate) ss_shadow: bool,
    pub(crate) activity: x86::Activity,
    /// The exception that [`Raised`] speaks of.
    pub(crate) exception: Option<Exception>,
    /// An interrupt that came with a saved state: acknowledged, but not delivered.
    pub(crate) interrupt: Option<u8>,
    /// The running instruction entered a handler: RFLAGS.TF from before it does not trap.
    pub(crate) skip_step_trap: bool,
    /// Debug traps that are due after the running instruction: bits of DR6.
    pub(crate) debug_trap: u64,

    pub(crate) tlb: Box<Tlb>,
    /// Which of the TLB's views data accesses use: follows CPL, AC, CR0, CR4 and breakpoints.
    pub(crate) view: View,
    /// What else [`crate::Mode`] tells.
    pub(crate) derived: Derived,
    pub(crate) ram: Ram,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) platform: Option<Arc<dyn engine::Platform>>,
    /// This vCPU's number.
    pub(crate) index: usize,
    /// What CPUID shows.
    pub(crate) model: Model,

    /// The block that runs must end after the current instruction.
    pub(crate) stop: bool,
    /// Blocks until the clock is read again. 0 makes the next block boundary look at everything.
    pub(crate) budget: u32,
    /// What the debugger asked for.
    pub(crate) debug: crate::debug::Request,
    /// Instruction trace and other events.
    pub(crate) trace: engine::Kinds,
    pub(crate) counters: crate::vcpu::Counters,
    /// When [`engine::Vcpu::run`] was called, while it runs.
    pub(crate) began: Option<std::time::Instant>,
    /// Instructions are only tried.
    pub(crate) trial: Option<Box<crate::trial::Trial>>,
}

impl Cpu {
    /// RIP of `op`, which is running.
    #[inline(always)]
    pub(crate) fn rip_of(&self, op: &Op) -> u64 {
        self.gpr[PC as usize].wrapping_add(u64::from(op.offset))
    }

    /// RIP of the instruction after `op`, which is running, not cut to the code size.
    #[inline(always)]
    pub(crate) fn next_rip(&self, op: &Op) -> u64 {
        self.rip_of(op).wrapping_add(u64::from(op.len))
    }

    /// Reads a register by slot.
    #[inline(always)]
    pub(crate) fn reg<T: Int>(&self, slot: u8) -> T {
        T::get(&self.gpr, slot)
    }

    /// Writes a register by slot.
    #[inline(always)]
    pub(crate) fn set_reg<T: Int>(&mut self, slot: u8, value: T) {
        T::set(&mut self.gpr, slot, value);
    }

    /// Records `exception`.
    #[cold]
    pub(crate) fn raise<T>(&mut self, exception: Exception) -> Result<T> {
        self.exception = Some(exception);
        Err(Raised)
    }

    /// Records #UD.
    #[cold]
    pub(crate) fn undefined<T>(&mut self) -> Result<T> {
        self.raise(Exception::new(Vector::InvalidOpcode))
    }

    /// Records #GP with `code`.
    #[cold]
    pub(crate) fn general_protection<T>(&mut self, code: u32) -> Result<T> {
        self.raise(Exception::with_code(Vector::GeneralProtection, code))
    }

    /// Makes the next block boundary look at interrupts, traps and requests.
    #[inline(always)]
    pub(crate) fn attend(&mut self) {
        self.budget = 0;
    }

    /// The segment in `register`.
    #[inline(always)]
    pub(crate) fn segment(&self, register: SegmentRegister) -> &Segment {
        &self.segments[register as usize]
    }

    /// Whether long mode is active (64-bit or compatibility mode).
    #[inline(always)]
    pub(crate) fn long_mode(&self) -> bool {
        self.efer.contains(Efer::LMA)
    }

    /// Whether 64-bit code runs.
    #[inline(always)]
    pub(crate) fn is_64bit(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }

    /// Whether protected mode is on (also in virtual-8086 mode).
    #[inline(always)]
    pub(crate) fn protected_mode(&self) -> bool {
        self.cr0.contains(Cr0::PE)
    }

    /// Whether virtual-8086 mode is on.
    #[inline(always)]
    pub(crate) fn virtual_8086(&self) -> bool {
        self.flags.system().contains(Rflags::VM)
    }

    /// Real or virtual-8086 mode: segments are bases shifted by four.
    #[inline(always)]
    pub(crate) fn real_addressing(&self) -> bool {
        !self.protected_mode() || self.virtual_8086()
    }

    /// The platform, while the vCPU runs.
    pub(crate) fn platform(&self) -> Arc<dyn engine::Platform> {
        self.platform
            .clone()
            .expect("the platform is there while the vCPU runs")
    }

    /// Recomputes what follows from the segment registers, EFER and RFLAGS.VM: segment bases,
    /// code size, stack width. CPL is the owner's to set.
    pub(crate) fn segments_changed(&mut self) {
        let long = self.long_mode();
        let cs = self.segment(SegmentRegister::Cs);
        self.code_size = match (long && cs.is_long(), cs.is_big()) {
            (true, _) => CodeSize::Bits64,
            (false, true) => CodeSize::Bits32,
            (false, false) => CodeSize::Bits16,
        };
        self.stack_mask = match (self.code_size, self.segment(SegmentRegister::Ss).is_big()) {
            (CodeSize::Bits64, _) => u64::MAX,
            (_, true) => 0xffff_ffff,
            (_, false) => 0xffff,
        };
        for (base, segment) in self.bases.iter_mut().zip(&self.segments) {
            *base = segment.base;
        }
        if self.code_size == CodeSize::Bits64 {
            self.bases[SegmentRegister::Cs as usize] = 0;
        }
        self.update_view();
        self.update_derived();
    }

    /// Chooses the TLB view by CPL, AC, CR0, CR4, breakpoints on data and trials. To be called
    /// after any of them changed.
    pub(crate) fn update_view(&mut self) {
        let flags = self.flags.system();
        let align = self.cpl == 3 && self.cr0.contains(Cr0::AM) && flags.contains(Rflags::AC);
        self.view = if align || self.watches_data() || self.trial.is_some() {
            View::Checked
        } else if self.cpl == 3 {
            View::User
        } else if self.cr4.contains(Cr4::SMAP) && !flags.contains(Rflags::AC) {
            View::SupervisorOnly
        } else {
            View::Supervisor
        };
    }
}

const _: () = assert!((PC as usize) < SLOTS);
