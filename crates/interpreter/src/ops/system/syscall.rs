//! SYSCALL, SYSRET, SYSENTER and SYSEXIT, where the vendors differ: by the vendor that CPUID
//! shows (SDM vol. 2; APM vol. 3).

use crate::borrow::Crossings;
use crate::cpu::{Cpu, Result};
use crate::op::{Handler, Op};
use iced_x86::{Code, Instruction, Mnemonic as M};
use x86::{Efer, Rflags, Segment, SegmentRegister, Selector};

/// Flags that SYSRET takes from R11.
const SYSRET_FLAGS: u64 = 0x003c_7fd7;
/// Type, S and P of flat code and data; D/B, L and G.
const CODE: u16 = 0x9b;
const DATA: u16 = 0x93;
const LONG: u16 = 1 << 13;
const BIG: u16 = 1 << 14;
const PAGES: u16 = 1 << 15;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        M::Syscall => syscall,
        M::Sysenter => sysenter,
        M::Sysret | M::Sysretq => match instruction.code() {
            Code::Sysretq => sysret::<true>,
            _ => sysret::<false>,
        },
        M::Sysexit | M::Sysexitq => match instruction.code() {
            Code::Sysexitq => sysexit::<true>,
            _ => sysexit::<false>,
        },
        _ => return None,
    })
}

fn flat(selector: u16, access: u16, cpl: u8) -> Segment {
    Segment {
        selector: Selector(selector).with_rpl(cpl),
        base: 0,
        limit: u32::MAX,
        access: access | PAGES | u16::from(cpl) << 5,
        unusable: false,
    }
}

impl Cpu {
    /// Flat CS and SS without a look at descriptors. SS is 8 above CS in every case but SYSRET's.
    fn set_flat_segments(&mut self, cs: u16, ss: u16, size: u16, cpl: u8) {
        self.segments[SegmentRegister::Ss as usize] = flat(ss, DATA | BIG, cpl);
        self.set_code_segment(flat(cs, CODE | size, cpl), cpl);
    }

    /// The selectors of CS and SS after SYSCALL, before their RPL becomes 0.
    #[inline]
    fn syscall_selectors(&self) -> [u16; 2] {
        let cs = (self.syscall.star >> 32) as u16 & !3;
        [cs, cs.wrapping_add(8)]
    }

    /// The selectors of CS and SS after SYSRET to 64-bit code, before their RPL becomes 3.
    #[inline]
    fn sysret_selectors(&self) -> [u16; 2] {
        let base = (self.syscall.star >> 48) as u16;
        [base.wrapping_add(16), base.wrapping_add(8)]
    }

    /// What SYSCALL and SYSRET do between 64-bit code.
    #[inline]
    pub(crate) fn crossings(&self) -> Crossings {
        let with_rpl = |selectors: [u16; 2], cpl| selectors.map(|s| Selector(s).with_rpl(cpl).0);
        Crossings {
            enabled: self.efer.contains(Efer::SCE),
            entry: self.syscall.lstar,
            cleared: self.syscall.fmask & 0xffff_ffff,
            kernel: with_rpl(self.syscall_selectors(), 0),
            user: with_rpl(self.sysret_selectors(), 3),
        }
    }

    /// Changes CPL, CS and SS as SYSCALL from 64-bit code does, or, if to `user`, SYSRET to it.
    pub(crate) fn cross(&mut self, user: bool) {
        let ([cs, ss], cpl) = match user {
            true => (self.sysret_selectors(), 3),
            false => (self.syscall_selectors(), 0),
        };
        self.set_flat_segments(cs, ss, LONG, cpl);
    }
}

fn syscall(cpu: &mut Cpu, op: &Op) -> Result {
    let allowed = cpu.efer.contains(Efer::SCE)
        && cpu.protected_mode()
        && (cpu.is_64bit() || cpu.model.is_amd());
    if !allowed {
        return cpu.undefined();
    }
    let [cs, ss] = cpu.syscall_selectors();
    let next = cpu.next_rip(op);
    let mut traps = cpu.flags.system();
    if cpu.long_mode() {
        let flags = cpu.flags.get() - Rflags::RF;
        cpu.gpr[1] = if cpu.is_64bit() {
            next
        } else {
            next & 0xffff_ffff
        };
        cpu.gpr[11] = flags.bits();
        cpu.rip = if cpu.is_64bit() {
            cpu.syscall.lstar
        } else {
            cpu.syscall.cstar
        };
        let masked = Rflags::from_bits_retain(cpu.syscall.fmask & 0xffff_ffff);
        cpu.flags.set(flags - masked);
        cpu.cross(false);
        traps = cpu.flags.system();
    } else {
        cpu.gpr[1] = next & 0xffff_ffff;
        cpu.rip = cpu.syscall.star & 0xffff_ffff;
        cpu.flags
            .set_system(Rflags::VM | Rflags::IF | Rflags::RF, false);
        cpu.set_flat_segments(cs, ss, BIG, 0);
    }
    cpu.attend();
    // A step trap after SYSCALL follows TF as masked.
    cpu.skip_step_trap = !traps.contains(Rflags::TF);
    Ok(())
}

fn sysret<const QUAD: bool>(cpu: &mut Cpu, _: &Op) -> Result {
    let allowed = cpu.efer.contains(Efer::SCE)
        && cpu.protected_mode()
        && (cpu.is_64bit() || cpu.model.is_amd());
    if !allowed {
        return cpu.undefined();
    }
    if cpu.cpl != 0 {
        return cpu.general_protection(0);
    }
    let rcx = cpu.gpr[1];
    // Intel faults here, still at CPL 0; AMD at the first fetch.
    if QUAD && !cpu.model.is_amd() && !cpu.canonical(rcx) {
        return cpu.general_protection(0);
    }
    if cpu.is_64bit() {
        let flags = cpu.gpr[11] & SYSRET_FLAGS | Rflags::FIXED.bits();
        cpu.flags.set(Rflags::from_bits_retain(flags));
    } else {
        cpu.flags.set_system(Rflags::IF, true);
    }
    if QUAD {
        cpu.rip = rcx;
        cpu.cross(true);
    } else {
        let base = (cpu.syscall.star >> 48) as u16;
        cpu.rip = rcx & 0xffff_ffff;
        cpu.set_flat_segments(base, base.wrapping_add(8), BIG, 3);
    }
    cpu.attend();
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.long_mode() && cpu.model.is_amd() {
        return cpu.undefined();
    }
    let cs = cpu.syscall.sysenter_cs as u16 & !3;
    if !cpu.protected_mode() || cs == 0 {
        return cpu.general_protection(0);
    }
    cpu.flags
        .set_system(Rflags::VM | Rflags::IF | Rflags::RF, false);
    let (rip, rsp) = (cpu.syscall.sysenter_eip, cpu.syscall.sysenter_esp);
    if cpu.long_mode() {
        (cpu.rip, cpu.gpr[4]) = (rip, rsp);
        cpu.set_flat_segments(cs, cs.wrapping_add(8), LONG, 0);
    } else {
        (cpu.rip, cpu.gpr[4]) = (rip & 0xffff_ffff, rsp & 0xffff_ffff);
        cpu.set_flat_segments(cs, cs.wrapping_add(8), BIG, 0);
    }
    cpu.attend();
    Ok(())
}

fn sysexit<const QUAD: bool>(cpu: &mut Cpu, _: &Op) -> Result {
    if cpu.long_mode() && cpu.model.is_amd() {
        return cpu.undefined();
    }
    let base = cpu.syscall.sysenter_cs as u16 & !3;
    if !cpu.protected_mode() || base == 0 || cpu.cpl != 0 {
        return cpu.general_protection(0);
    }
    let (rsp, rip) = (cpu.gpr[1], cpu.gpr[2]);
    if QUAD {
        if !cpu.canonical(rip) || !cpu.canonical(rsp) {
            return cpu.general_protection(0);
        }
        (cpu.rip, cpu.gpr[4]) = (rip, rsp);
        cpu.set_flat_segments(base.wrapping_add(32), base.wrapping_add(40), LONG, 3);
    } else {
        (cpu.rip, cpu.gpr[4]) = (rip & 0xffff_ffff, rsp & 0xffff_ffff);
        cpu.set_flat_segments(base.wrapping_add(16), base.wrapping_add(24), BIG, 3);
    }
    cpu.attend();
    Ok(())
}
