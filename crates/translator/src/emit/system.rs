//! System instructions that need no help.

use super::{Cold, Emitter};
use crate::context::field;
use crate::plan::Insn;

impl Emitter<'_> {
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
        self.asm.store_field_imm(field!(interrupt_flag), 1);
    }

    pub(super) fn swap_gs(&mut self) {
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        self.asm.load_field(t0, field!(gs_base));
        self.asm.load_field(t1, field!(kernel_gs_base));
        self.asm.store_field(field!(gs_base), t1);
        self.asm.store_field(field!(kernel_gs_base), t0);
    }
}
