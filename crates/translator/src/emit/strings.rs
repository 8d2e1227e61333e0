//! STOS and MOVS with a REP prefix: as the host's own, where all of it stays in one page.

use super::{Cold, Emitter, Tail};
use crate::asm::{Mem, RCX, Reg};
use crate::block::Site;
use crate::context::{field, tlb_fields};
use crate::plan::{Insn, Strings};

const RAX: Reg = 0;
const RSI: Reg = 6;
const RDI: Reg = 7;

impl Emitter<'_> {
    /// The flags stay as they are, as the instruction leaves them.
    pub(super) fn strings(&mut self, number: usize, insn: &Insn, strings: Strings) {
        if !strings.repeats {
            return self.callout(number, insn);
        }
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        let destination = self.site(number, insn, strings.size.into(), true);
        let source = strings
            .moves
            .then(|| self.site(number, insn, strings.size.into(), false));
        let acc = self.borrowed(strings);
        let view = self.plan.mode.view();
        let (write, write_bias) = tlb_fields(view, true);
        let (read, read_bias) = tlb_fields(view, false);
        let scale = strings.size.trailing_zeros() as u8;
        let last = |base: Reg| Mem {
            base: Some(base),
            index: Some((RCX, scale)),
            disp: -1,
        };
        self.asm.store_field(field!(saved_other), acc);
        self.asm.store_field(field!(saved_rcx), RCX);
        // `acc` becomes 0 if all is well: the count is below `STRING_COUNT_END`, so that the last
        // byte is no more than `REACH_PAGES` on, and it is in the first one's page.
        self.tlb_index(t1, RDI);
        self.asm.load_gs(acc, Mem::scaled(t1, 3, write));
        self.asm.lea(t0, last(RDI));
        self.asm.lea(acc, Mem::sum(acc, t0, 0));
        self.asm.pext(acc, acc, field!(page_mask));
        self.asm.pext(t0, RCX, field!(count_mask));
        self.asm.lea(acc, Mem::sum(acc, t0, 0));
        self.asm.load_gs(t1, Mem::scaled(t1, 3, write_bias));
        if strings.moves {
            self.asm.store_field(field!(target), t1);
            self.asm.store_field(field!(linear), acc);
            self.tlb_index(t0, RSI);
            self.asm.lea(t1, last(RSI));
            self.asm.load_gs(acc, Mem::scaled(t0, 3, read));
            self.asm.lea(acc, Mem::sum(acc, t1, 0));
            self.asm.pext(acc, acc, field!(page_mask));
            self.asm.load_field(t1, field!(linear));
            self.asm.lea(acc, Mem::sum(acc, t1, 0));
            self.asm.load_field(t1, field!(target));
            self.asm.load_gs(t0, Mem::scaled(t0, 3, read_bias));
        }
        self.asm.mov(RCX, acc);
        let from = self.asm.jrcxnz_forward();
        self.cold.push(Cold::Strings {
            from,
            destination,
            source,
            borrowed: acc,
        });
        self.return_borrowed(acc);
        self.shift(RDI, t1);
        if strings.moves {
            self.shift(RSI, t0);
        }
        // A REP prefix, then MOVS A4/A5 or STOS AA/AB.
        self.asm.bytes(&[0xf3]);
        if strings.size == 2 {
            self.asm.bytes(&[0x66]);
        } else if strings.size == 8 {
            self.asm.bytes(&[0x48]);
        }
        let opcode = if strings.moves { 0xa4 } else { 0xaa };
        self.asm.bytes(&[opcode | u8::from(strings.size != 1)]);
        self.shift_back(RDI, t1);
        if strings.moves {
            self.shift_back(RSI, t0);
        }
    }

    /// Cold: goes to where the TLB's second level is asked for the source's page, or the
    /// destination's, if that is not known, and to the interpreter otherwise. A page is marked
    /// dirty on the way: so there must be a first element, and it must be one that can be read.
    pub(super) fn missed_strings(
        &mut self,
        from: usize,
        destination: u8,
        source: Option<u8>,
        borrowed: Reg,
    ) {
        self.asm.set_target(from, self.asm.here());
        self.asm.load_field(RCX, field!(saved_rcx));
        let is_empty = self.asm.jrcxz();
        let ask = self.asm.jmp_short();
        self.asm.land(is_empty);
        self.return_borrowed(borrowed);
        self.ask(self.gates.callout, destination);
        self.asm.land(ask);
        let operands = [(RSI, source, false), (RDI, Some(destination), true)];
        for (linear, site, write) in operands {
            let Some(site) = site else {
                continue;
            };
            let view = self.plan.mode.view();
            let (tag, _) = tlb_fields(view, write);
            self.tlb_index(RCX, linear);
            self.asm.load_gs(RCX, Mem::scaled(RCX, 3, tag));
            let Site { size, retry, .. } = self.sites[usize::from(site)];
            self.asm
                .lea(RCX, Mem::sum(RCX, linear, i32::from(size) - 1));
            self.asm.pext(RCX, RCX, field!(page_mask));
            let is_known = self.asm.jrcxz();
            self.return_borrowed(borrowed);
            self.asm.store_field_imm(field!(retry), retry);
            let gate = self.gates.refill[view][usize::from(write)];
            self.end(Tail::Miss { linear, gate }, Some(site));
            self.asm.land(is_known);
        }
        self.return_borrowed(borrowed);
        self.ask(self.gates.callout, destination);
    }

    fn return_borrowed(&mut self, borrowed: Reg) {
        self.asm.load_field(RCX, field!(saved_rcx));
        self.asm.load_field(borrowed, field!(saved_other));
    }

    /// A register that the instruction does not use and that is no temporary.
    fn borrowed(&self, strings: Strings) -> Reg {
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        let others: [Reg; 4] = [2, 3, 5, RAX];
        let usable = |r: &Reg| *r != t0 && *r != t1 && (strings.moves || *r != RAX);
        let found = others.into_iter().find(usable);
        found.expect("two temporaries leave one of three")
    }

    /// An index of the TLB, in units of 8 bytes.
    fn tlb_index(&mut self, to: Reg, linear: Reg) {
        self.asm.pext(to, linear, field!(tlb_mask));
        self.asm.lea(to, Mem::sum(to, to, 0));
    }

    fn shift(&mut self, register: Reg, by: Reg) {
        self.asm.lea(register, Mem::sum(register, by, 0));
    }

    /// Undoes [`Emitter::shift`]: `-x` is `!x + 1`. Leaves `by` inverted.
    fn shift_back(&mut self, register: Reg, by: Reg) {
        self.asm.not(by);
        self.asm.lea(register, Mem::sum(register, by, 1));
    }
}
