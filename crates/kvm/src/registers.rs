//! General-purpose, segment, control and debug registers, in the kernel's form and in ours.

use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs2};
use x86::{Cr0, Cr4, DescriptorTable, Efer, Rflags, Segment, SegmentRegister, Selector, VcpuState};

/// `KVM_SREGS2_FLAGS_PDPTRS_VALID`.
const PDPTRS_VALID: u64 = 1;

fn segment(segment: &Segment) -> kvm_segment {
    let Segment {
        selector,
        base,
        limit,
        access,
        unusable,
    } = *segment;
    let bit = |at: u32| (access >> at & 1) as u8;
    kvm_segment {
        base,
        limit,
        selector: selector.0,
        type_: (access & 15) as u8,
        s: bit(4),
        dpl: (access >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: unusable.into(),
        padding: 0,
    }
}

fn from_segment(segment: &kvm_segment) -> Segment {
    let bit = |bit: u8, at: u32| u16::from(bit & 1) << at;
    Segment {
        selector: Selector(segment.selector),
        base: segment.base,
        limit: segment.limit,
        access: u16::from(segment.type_ & 15)
            | bit(segment.s, 4)
            | u16::from(segment.dpl & 3) << 5
            | bit(segment.present, 7)
            | bit(segment.avl, 12)
            | bit(segment.l, 13)
            | bit(segment.db, 14)
            | bit(segment.g, 15),
        unusable: segment.unusable != 0,
    }
}

fn table(table: DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        ..kvm_dtable::default()
    }
}

fn from_table(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: table.base,
        limit: table.limit,
    }
}

/// The general-purpose registers, RIP and RFLAGS of `state`.
pub(crate) fn general(state: &VcpuState) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = state.gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        rflags: state.rflags.bits(),
    }
}

/// Takes them over.
pub(crate) fn take_general(state: &mut VcpuState, regs: &kvm_regs) {
    state.gpr = [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8,
        regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    state.rip = regs.rip;
    state.rflags = Rflags::from_bits_retain(regs.rflags);
}

/// Whether the PDPTEs are registers: PAE paging outside long mode.
fn has_pdptes(state: &VcpuState) -> bool {
    state.cr0.contains(Cr0::PG) && state.cr4.contains(Cr4::PAE) && !state.efer.contains(Efer::LMA)
}

/// The segments, tables and control registers of `state`.
pub(crate) fn special(state: &VcpuState) -> kvm_sregs2 {
    let of = |register: SegmentRegister| segment(&state.segments[register as usize]);
    let has_pdptes = has_pdptes(state);
    kvm_sregs2 {
        cs: of(SegmentRegister::Cs),
        ds: of(SegmentRegister::Ds),
        es: of(SegmentRegister::Es),
        fs: of(SegmentRegister::Fs),
        gs: of(SegmentRegister::Gs),
        ss: of(SegmentRegister::Ss),
        tr: segment(&state.tr),
        ldt: segment(&state.ldtr),
        gdt: table(state.gdtr),
        idt: table(state.idtr),
        cr0: state.cr0.bits(),
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4.bits(),
        cr8: (state.apic.tpr >> 4).into(),
        efer: state.efer.bits(),
        apic_base: state.apic.base,
        flags: if has_pdptes { PDPTRS_VALID } else { 0 },
        pdptrs: if has_pdptes { state.pdpte } else { [0; 4] },
    }
}

/// Takes them over.
pub(crate) fn take_special(state: &mut VcpuState, sregs: &kvm_sregs2) {
    for (register, segment) in [
        (SegmentRegister::Es, &sregs.es),
        (SegmentRegister::Cs, &sregs.cs),
        (SegmentRegister::Ss, &sregs.ss),
        (SegmentRegister::Ds, &sregs.ds),
        (SegmentRegister::Fs, &sregs.fs),
        (SegmentRegister::Gs, &sregs.gs),
    ] {
        state.segments[register as usize] = from_segment(segment);
    }
    state.tr = from_segment(&sregs.tr);
    state.ldtr = from_segment(&sregs.ldt);
    state.gdtr = from_table(&sregs.gdt);
    state.idtr = from_table(&sregs.idt);
    state.cr0 = Cr0::from_bits_retain(sregs.cr0);
    state.cr2 = sregs.cr2;
    state.cr3 = sregs.cr3;
    state.cr4 = Cr4::from_bits_retain(sregs.cr4);
    state.efer = Efer::from_bits_retain(sregs.efer);
    state.apic.base = sregs.apic_base;
    state.pdpte = if has_pdptes(state) {
        sregs.pdptrs
    } else {
        [0; 4]
    };
}

/// The debug registers of `state`.
pub(crate) fn debug(state: &VcpuState) -> kvm_debugregs {
    kvm_debugregs {
        db: state.dr,
        dr6: state.dr6,
        dr7: state.dr7,
        ..kvm_debugregs::default()
    }
}

/// Takes them over.
pub(crate) fn take_debug(state: &mut VcpuState, regs: &kvm_debugregs) {
    state.dr = regs.db;
    state.dr6 = regs.dr6;
    state.dr7 = regs.dr7;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_come_back_as_they_were() {
        let mut state = VcpuState::after_reset(0);
        state.gpr = std::array::from_fn(|n| n as u64 + 1);
        state.segments = std::array::from_fn(|n| Segment {
            selector: Selector(8 * n as u16),
            base: 1 << n,
            limit: 0xffff_ffff,
            access: 0xf0ff & !(1 << n),
            unusable: n == 3,
        });
        state.dr = [1, 2, 3, 4];
        state.cr2 = 0x1234;
        let mut copy = VcpuState::after_reset(0);
        take_general(&mut copy, &general(&state));
        take_special(&mut copy, &special(&state));
        take_debug(&mut copy, &debug(&state));
        assert_eq!(copy, state);
    }

    #[test]
    fn sdm_4_4_1_pdptes_are_registers_under_pae_paging_only() {
        let mut state = VcpuState::after_reset(0);
        state.pdpte = [1, 0x1001, 0, 0];
        assert_eq!(special(&state).flags, 0);
        state.cr0 |= Cr0::PE | Cr0::PG;
        state.cr4 = Cr4::PAE;
        let sregs = special(&state);
        assert_eq!((sregs.flags, sregs.pdptrs), (PDPTRS_VALID, state.pdpte));
        state.efer = Efer::LME | Efer::LMA;
        assert_eq!(special(&state).flags, 0);
    }
}
