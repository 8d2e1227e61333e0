//! Control transfer: direct ones are linked, indirect ones go through the jump cache.

use super::{Cold, Emitter, Tail, full_width};
use crate::asm::{Mem, RCX, Reg};
use crate::block::Exit;
use crate::context::{field, jump_fields};
use crate::mode::Mode;
use crate::plan::{Access, Insn};
use iced_x86::{Code, OpKind};

impl Emitter<'_> {
    /// Whether a jump to `target` may be linked: it stays in the page, or in the upper half of a
    /// kernel, whose pages are watched over ([`crate::vcpu`]).
    fn is_linkable(&self, target: i64) -> bool {
        (0..4096).contains(&target)
            || self.plan.mode.is_windowed()
            || !self.plan.mode.is_relocatable()
                && self.linear >> 63 != 0
                && self.linear.wrapping_add_signed(target) >> 63 != 0
    }

    /// A new exit to `target`, from the instruction at `at`. Its jump's displacement is at `jump`.
    pub(super) fn exit(&mut self, jump: usize, target: i64, single: bool, at: u16) -> u8 {
        self.exits.push(Exit {
            jump: jump as u32,
            unlinked: 0,
            target,
            mode: self.plan.mode - Mode::SINGLE,
            single,
            // Jails are interrupted by a signal.
            polls: target <= i64::from(at) && !self.plan.mode.is_windowed(),
            linked: false,
        });
        (self.exits.len() - 1) as u8
    }

    /// Goes from the instruction at `at` to `target`, relative to the page.
    pub(super) fn go(&mut self, at: u16, target: i64) {
        if self.is_linkable(target) {
            let jump = self.asm.jmp_patchable();
            self.exit(jump, target, false, at);
        } else {
            self.distant(target);
        }
    }

    /// Goes to `target` through the jump cache.
    pub(super) fn distant(&mut self, target: i64) {
        let t0 = self.temporary(0);
        self.load_target(t0, target);
        self.indirect(None);
    }

    /// The linear address of `target` into a register.
    pub(super) fn load_target(&mut self, to: Reg, target: i64) {
        if self.plan.mode.is_relocatable() {
            self.asm.load_field(to, field!(page));
            // Branches reach 2 GiB either way.
            if self.plan.mode.is_32bit() {
                self.asm.lea32(to, Mem::base(to, target as i32));
            } else {
                self.asm.lea(to, Mem::base(to, target as i32));
            }
        } else {
            let mut linear = self.linear.wrapping_add_signed(target);
            if self.plan.mode.is_32bit() {
                linear &= 0xffff_ffff;
            }
            self.asm.mov_imm(to, linear);
        }
    }

    /// Goes to the address in temporary 0. If that is not canonical, the instruction of `site`,
    /// whose effects must then be undone, raises #GP.
    pub(super) fn indirect(&mut self, site: Option<u8>) {
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        let mode = self.plan.mode;
        let (tags, hosts) = jump_fields(mode.slot());
        let (taken, landing) = (1 << t0 | 1 << t1, mode.landing());
        if mode.is_windowed() {
            // The first one has the target.
            self.take_temporary(1);
            self.borrow_rcx();
        }
        let spilled = self.plan.scratch_mask();
        self.asm.restore(spilled & !landing & !taken);
        self.asm.spill(landing & !spilled);
        // Only blocks that do not know their address want to be told.
        let tells = mode.contains(Mode::USER);
        if tells {
            self.asm.store_field(field!(pc), t0);
        }
        self.asm.pext(t1, t0, field!(jump_mask));
        self.asm.lea(t1, Mem::sum(t1, t1, 0));
        self.asm.load_gs(RCX, Mem::scaled(t1, 3, tags));
        self.asm.lea(RCX, Mem::sum(RCX, t0, 0));
        let hit = self.asm.jrcxz();
        let ask_second = Tail::Leave {
            spilled: taken & !landing,
            returns_rcx: mode.is_windowed(),
            gate: self.gates.indirect[mode.slot()],
        };
        if !tells {
            self.asm.store_field(field!(pc), t0);
        }
        self.end(ask_second, site);
        self.asm.land(hit);
        self.asm.load_gs(RCX, Mem::scaled(t1, 3, hosts));
        if mode.is_windowed() {
            self.asm.store_field(field!(jump), RCX);
            self.return_rcx();
        }
        self.asm.restore(taken & !landing);
        if mode.is_windowed() {
            self.asm.jmp_field(field!(jump));
        } else {
            self.asm.jmp_register(RCX);
        }
    }

    /// A site for an instruction that has moved RSP by `moved` bytes.
    pub(super) fn undo_site(&mut self, number: usize, insn: &Insn, moved: i32) -> u8 {
        let site = self.site(number, insn, 0, false);
        self.sites[usize::from(site)].moved = moved;
        site
    }

    /// Jcc.
    pub(super) fn branch(&mut self, insn: &Insn, target: i64) {
        let condition = insn.instruction.condition_code() as u8;
        // iced-x86 counts from 1: none, O, NO, B, AE, E, NE, BE, A, S, NS, P, NP, L, GE, LE, G.
        let condition = condition - 1;
        if self.is_linkable(target) {
            let jump = self.asm.jcc_patchable(condition);
            self.exit(jump, target, false, insn.at);
        } else {
            let from = self.asm.jcc_forward(condition);
            self.cold.push(Cold::Distant { from, target });
        }
    }

    /// JRCXZ, JECXZ and LOOP.
    pub(super) fn count(&mut self, insn: &Insn, target: i64) {
        let is_loop = insn.instruction.code() == Code::Loop_rel8_64_RCX;
        if is_loop {
            self.asm.lea(RCX, Mem::base(RCX, -1));
        }
        if insn.instruction.code() == Code::Jecxz_rel8_64 {
            // The address-size prefix.
            self.asm.bytes(&[0x67]);
        }
        let zero = self.asm.jrcxz();
        let skip = if is_loop {
            zero
        } else {
            let skip = self.asm.jmp_short();
            self.asm.land(zero);
            skip
        };
        if self.is_linkable(target) {
            let jump = self.asm.jmp_patchable();
            self.exit(jump, target, false, insn.at);
        } else {
            let from = self.asm.jmp_forward();
            self.cold.push(Cold::Distant { from, target });
        }
        self.asm.land(skip);
    }

    /// Pushes the address of the next instruction.
    fn push_return(&mut self, number: usize, insn: &Insn) {
        let (mem, free) = self.stack_place_and_temporary(number, insn);
        let next = i64::from(insn.next());
        let width = full_width(self.plan.mode.is_32bit());
        let linear = self.linear.wrapping_add_signed(next);
        let constant = if self.plan.mode.is_32bit() {
            Some(linear as u32 as i32)
        } else {
            i32::try_from(linear as i64).ok()
        };
        match constant {
            Some(value) if !self.plan.mode.is_relocatable() => {
                self.asm.store_imm(width, mem, value);
            }
            _ => {
                self.load_target(free, next);
                self.asm.store(width, mem, free);
            }
        }
        self.move_stack(-self.slot_bytes());
    }

    pub(super) fn call(&mut self, number: usize, insn: &Insn, target: i64) {
        self.push_return(number, insn);
        self.go(insn.at, target);
    }

    pub(super) fn call_indirect(&mut self, number: usize, insn: &Insn) {
        let t0 = self.temporary(0);
        self.operand_target(number, insn);
        self.asm.store_field(field!(target), t0);
        self.push_return(number, insn);
        self.asm.load_field(t0, field!(target));
        let site = self.undo_site(number, insn, -self.slot_bytes());
        self.indirect(Some(site));
    }

    pub(super) fn jump_indirect(&mut self, number: usize, insn: &Insn) {
        self.operand_target(number, insn);
        let site = self.undo_site(number, insn, 0);
        self.indirect(Some(site));
    }

    /// The target in a register or memory operand into temporary 0.
    fn operand_target(&mut self, number: usize, insn: &Insn) {
        let t0 = self.temporary(0);
        let instruction = &insn.instruction;
        if instruction.op0_kind() == OpKind::Register {
            let register = instruction.op0_register().full_register().number() as Reg;
            self.asm.mov(t0, register);
            if self.plan.mode.is_32bit() {
                self.asm.lea32(t0, Mem::base(t0, 0));
            }
            return;
        }
        let access = Access {
            size: self.slot_bytes() as u8,
            write: false,
            vector: false,
        };
        let address = self.operand_address(instruction);
        let mem = self.check_one(number, insn, address, access.size.into(), false);
        self.asm
            .load(full_width(self.plan.mode.is_32bit()), t0, mem);
    }

    pub(super) fn ret(&mut self, number: usize, insn: &Insn, release: u16) {
        let mem = self.stack_place(number, insn, false);
        let t0 = self.temporary(0);
        self.asm
            .load(full_width(self.plan.mode.is_32bit()), t0, mem);
        let released = self.slot_bytes() + i32::from(release);
        self.move_stack(released);
        let site = self.undo_site(number, insn, released);
        self.indirect(Some(site));
    }
}
