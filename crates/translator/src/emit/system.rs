//! System instructions that need no help.

use super::{Cold, Emitter};
use crate::asm::{BELOW, Mem, RCX, Reg, Width};
use crate::context::field;
use crate::mode::Mode;
use crate::plan::Insn;
use x86::Rflags;

const RAX: Reg = 0;
const RDX: Reg = 2;

impl Emitter<'_> {
    /// PUSHFQ: the host's arithmetic flags, and the rest as the context has it.
    pub(super) fn push_flags(&mut self, number: usize, insn: &Insn) {
        let (mem, flags) = self.stack_place_and_temporary(number, insn);
        self.asm.host_flags(flags, field!(target), field!(host_rsp));
        self.asm.pext(flags, flags, field!(status_mask));
        self.asm.pdep(flags, flags, field!(status_mask));
        self.borrow_rcx();
        self.asm.load_field(RCX, field!(other_flags));
        self.asm.lea(flags, Mem::sum(flags, RCX, 0));
        self.asm.load_field32(RCX, field!(interrupt_flag));
        self.asm.lea(flags, Mem::sum(flags, RCX, 0));
        self.asm.load_field32(RCX, field!(access_flag));
        self.asm.lea(flags, Mem::sum(flags, RCX, 0));
        self.return_rcx();
        self.asm.store(Width::W64, mem, flags);
        self.move_stack(-8);
    }

    /// STAC and CLAC, which end a block: what follows is translated for another view of memory.
    pub(super) fn set_access(&mut self, number: usize, insn: &Insn, on: bool) {
        if insn.next() >= 4096 {
            return self.callout(number, insn);
        }
        self.asm.store_field_imm(
            field!(access_flag),
            if on { Rflags::AC.bits() as u32 } else { 0 },
        );
        let mode = self.plan.mode.with_ac(on) - Mode::SINGLE;
        let jump = self.asm.jmp_patchable();
        let exit = self.exit(jump, insn.next().into(), false, insn.at);
        self.exits[usize::from(exit)].mode = mode;
    }

    /// MOV of a selector to a register, of which 16 bits change or all.
    pub(super) fn read_segment(&mut self, insn: &Insn) {
        let register = insn.instruction.op0_register();
        let to = register.full_register().number() as Reg;
        let segment = insn.instruction.op1_register().number() as i32;
        let field = field!(selectors) + 4 * segment;
        if register.size() == 2 {
            self.asm.load_field16(to, field);
        } else {
            self.asm.load_field32(to, field);
        }
    }

    /// MOV from CR2, which only the interpreter changes.
    pub(super) fn read_fault_address(&mut self, insn: &Insn) {
        let to = insn.instruction.op0_register().number() as Reg;
        self.asm.load_field(to, field!(cr2));
    }

    /// RDFSBASE, or RDGSBASE.
    pub(super) fn read_base(&mut self, insn: &Insn, gs: bool) {
        let register = insn.instruction.op0_register();
        let to = register.full_register().number() as Reg;
        if register.size() == 8 {
            self.asm.load_field(to, base_field(gs));
        } else {
            self.asm.load_field32(to, base_field(gs));
        }
    }

    /// WRFSBASE, or WRGSBASE. Addresses of the upper half, and those that are not canonical, are
    /// left to the interpreter.
    pub(super) fn write_base(&mut self, number: usize, insn: &Insn, gs: bool) {
        let register = insn.instruction.op0_register();
        let from = register.full_register().number() as Reg;
        let is_wide = register.size() == 8;
        let site = self.site(number, insn, 0, false);
        self.borrow_rcx();
        if is_wide {
            self.asm.pext(RCX, from, field!(crossing.upper_half));
            let refused = self.asm.jrcxnz_forward();
            self.cold.push(Cold::Callout {
                from: refused,
                site,
                restores_rcx: true,
            });
            self.return_rcx();
            self.asm.store_field(base_field(gs), from);
        } else {
            self.asm.lea32(RCX, Mem::base(from, 0));
            self.asm.store_field(base_field(gs), RCX);
            self.return_rcx();
        }
    }

    /// RDTSC, and RDTSCP, which waits until all instructions before it are done. The result is
    /// what the interpreter's [`clock::Clock::now`] makes of the same counter.
    pub(super) fn read_counter(&mut self, number: usize, insn: &Insn, is_rdtscp: bool) {
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        let site = self.site(number, insn, 0, false);
        if self.plan.mode.is_windowed() {
            self.take_temporary(0);
            self.take_temporary(1);
        }
        self.asm.store_field(field!(saved_other), RAX);
        self.asm.store_field(field!(target), RDX);
        if is_rdtscp {
            self.asm.lfence();
        }
        self.asm.rdtsc();
        self.asm.rotate_right(RDX, RDX, 32);
        self.asm.lea(RDX, Mem::sum(RDX, RAX, 0));
        if insn.flags_live {
            // The sign of the difference: both are below 2^63.
            self.asm.load_field(t1, field!(tsc_floor));
            self.asm.not(t1);
            self.asm.lea(t0, Mem::sum(RDX, t1, 1));
            self.asm.mov_imm(t1, 63);
            self.borrow_rcx();
            self.asm.sarx(Width::W64, RCX, t0, t1);
            let from = self.asm.jrcxnz_forward();
            self.return_rcx();
            self.cold.push(Cold::Counter {
                from,
                site,
                restores_rcx: true,
            });
        } else {
            self.asm.mov(t0, RDX);
            self.asm.sub_gs(t0, Mem::at(field!(tsc_floor)));
            let from = self.asm.jcc_forward(BELOW);
            self.cold.push(Cold::Counter {
                from,
                site,
                restores_rcx: false,
            });
        }
        self.asm.mulx(RAX, RAX, field!(tsc_mult));
        for offset in [field!(machine_offset), field!(tsc_offset)] {
            self.asm.load_field(t0, offset);
            self.asm.lea(RAX, Mem::sum(RAX, t0, 0));
        }
        self.asm.rotate_right(RDX, RAX, 32);
        self.asm.lea32(RDX, Mem::base(RDX, 0));
        self.asm.lea32(RAX, Mem::base(RAX, 0));
        if is_rdtscp {
            self.asm.load_field32(RCX, field!(tsc_aux));
        }
        self.return_temporaries();
    }

    /// Ends what [`Emitter::take_temporary`] began for both, in a window.
    fn return_temporaries(&mut self) {
        if self.plan.mode.is_windowed() {
            self.asm
                .restore(1 << self.temporary(0) | 1 << self.temporary(1));
        }
    }

    /// Cold: [`Emitter::read_counter`] is left to the interpreter.
    pub(super) fn counter_below_floor(&mut self, from: usize, site: u8, restores_rcx: bool) {
        self.asm.set_target(from, self.asm.here());
        if restores_rcx {
            self.return_rcx();
        }
        self.asm.load_field(RAX, field!(saved_other));
        self.asm.load_field(RDX, field!(target));
        self.return_temporaries();
        self.ask(self.gates.callout, site);
    }

    pub(super) fn cli(&mut self) {
        self.asm.store_field_imm(field!(interrupt_flag), 0);
    }

    /// STI. While no interrupt waits, nobody can see its shadow: one that comes later is taken at
    /// a poll, or after the HLT that may follow.
    pub(super) fn sti(&mut self, number: usize, insn: &Insn) {
        let site = self.site(number, insn, 0, false);
        let (from, restores_rcx) =
            self.jump_if_field(field!(interrupt_waits), false, insn.flags_live);
        self.cold.push(Cold::Callout {
            from,
            site,
            restores_rcx,
        });
        self.asm
            .store_field_imm(field!(interrupt_flag), Rflags::IF.bits() as u32);
    }

    /// SYSCALL, by [`crate::crossing::syscall`].
    pub(super) fn system_call(&mut self, number: usize, insn: &Insn) {
        let t0 = self.temporary(0);
        self.load_target(t0, insn.next().into());
        self.asm.store_field(field!(target), t0);
        self.cross(number, insn, field!(syscall_gate));
    }

    /// SYSRET, by [`crate::crossing::sysret`].
    pub(super) fn system_return(&mut self, number: usize, insn: &Insn) {
        self.cross(number, insn, field!(sysret_gate));
    }

    fn cross(&mut self, number: usize, insn: &Insn, gate: i32) {
        let site = self.site(number, insn, 0, false);
        let (landing, spilled) = (self.plan.mode.landing(), self.plan.scratch_mask());
        self.asm.restore(spilled & !landing);
        self.asm.spill(landing & !spilled);
        let argument = self.argument(site);
        self.asm.store_field_imm(field!(argument), argument);
        self.asm.jmp_field(gate);
    }

    pub(super) fn swap_gs(&mut self) {
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        self.asm.load_field(t0, field!(gs_base));
        self.asm.load_field(t1, field!(kernel_gs_base));
        self.asm.store_field(field!(gs_base), t1);
        self.asm.store_field(field!(kernel_gs_base), t0);
    }
}

/// Displacement of the base of FS, or of GS.
fn base_field(gs: bool) -> i32 {
    if gs { field!(gs_base) } else { field!(fs_base) }
}
