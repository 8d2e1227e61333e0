//! Accesses of kernel code at a constant distance from the base of GS.

use super::memory::Address;
use super::{Cold, Emitter, Tail};
use crate::asm::{Mem, NOT_EQUAL, RCX};
use crate::context::field;
use crate::gs_pages::{GS_VIEWS, gs_page_fields, place};
use crate::plan::Insn;

impl Emitter<'_> {
    /// If `size` bytes at `address` are in a page that has a place: makes sure that it is there for
    /// the base of now, and returns where they are, by way of temporary 1.
    pub(super) fn gs_page(
        &mut self,
        number: usize,
        insn: &Insn,
        address: Address,
        size: u16,
        write: bool,
    ) -> Option<Mem> {
        let Address::Based(
            base,
            Mem {
                base: None,
                index: None,
                disp,
            },
        ) = address
        else {
            return None;
        };
        let view = self.plan.mode.view();
        if base != field!(gs_base) || view >= GS_VIEWS || self.plan.mode.is_32bit() {
            return None;
        }
        let (page, offset) = place(disp, size)?;
        let (t0, t1) = (self.temporary(0), self.temporary(1));
        let (tag, host) = gs_page_fields(view, write, page);
        let site = self.site(number, insn, size, write);
        self.sites[usize::from(site)].gs_page = true;
        let from = if insn.flags_live {
            self.asm.load_field(t0, base);
            self.borrow_rcx();
            self.asm.load_field(RCX, tag);
            self.asm.lea(RCX, Mem::sum(RCX, t0, 0));
            let from = self.asm.jrcxnz_forward();
            self.return_rcx();
            from
        } else {
            self.asm.load_field(t0, base);
            self.asm.add_gs(t0, Mem::at(tag));
            self.asm.jcc_forward(NOT_EQUAL)
        };
        self.asm.load_field(t1, host);
        self.cold.push(Cold::GsPage {
            from,
            site,
            distance: disp,
            restores_rcx: insn.flags_live,
        });
        Some(Mem::base(t1, offset))
    }

    /// Cold: Rust code has to find the page.
    pub(super) fn missed_gs_page(
        &mut self,
        from: usize,
        site: u8,
        distance: i32,
        restores_rcx: bool,
    ) {
        let t0 = self.temporary(0);
        self.asm.set_target(from, self.asm.here());
        if restores_rcx {
            self.return_rcx();
        }
        self.asm.load_field(t0, field!(gs_base));
        self.asm.lea(t0, Mem::base(t0, distance));
        let gate = self.gates.miss;
        self.end(Tail::Miss { linear: t0, gate }, Some(site));
    }
}
