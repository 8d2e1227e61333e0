//! PUSHF, POPF, CLI, STI, CLAC and STAC.

use crate::cpu::{Cpu, Result};
use crate::int::Int;
use crate::op::{Handler, Op};
use crate::stack::Width;
use iced_x86::{Instruction, Mnemonic as M};
use x86::Rflags;
use x86::cpuid::Feature;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        M::Pushf => pushf::<u16>,
        M::Pushfd => pushf::<u32>,
        M::Pushfq => pushf::<u64>,
        M::Popf => popf::<u16>,
        M::Popfd => popf::<u32>,
        M::Popfq => popf::<u64>,
        M::Cli => cli,
        M::Sti => sti,
        M::Clac => clac,
        M::Stac => stac,
        _ => return None,
    })
}

/// In virtual-8086 mode, instructions that see IF need IOPL 3 (SDM vol. 3, 22.2.7).
fn need_iopl_in_v86(cpu: &mut Cpu) -> Result {
    if cpu.virtual_8086() && cpu.flags.system().iopl() < 3 {
        return cpu.general_protection(0);
    }
    Ok(())
}

fn pushf<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    need_iopl_in_v86(cpu)?;
    let image = cpu.flags.get() - (Rflags::VM | Rflags::RF);
    cpu.push(T::of(image.bits()))
}

fn popf<T: Int>(cpu: &mut Cpu, _: &Op) -> Result {
    need_iopl_in_v86(cpu)?;
    let value = Rflags::from_bits_retain(cpu.pop::<T>()?.zx());
    let mut writable = Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT;
    writable |= Rflags::AC | Rflags::ID;
    if cpu.cpl == 0 {
        writable |= Rflags::IOPL;
    }
    if cpu.cpl <= cpu.flags.system().iopl() {
        writable |= Rflags::IF;
    }
    let width = if T::BITS == 16 {
        Width::Word
    } else {
        Width::Quad
    };
    cpu.set_flags(value, writable, width);
    cpu.flags.set_system(Rflags::RF, false);
    Ok(())
}

/// CLI and STI: CPL against IOPL.
fn need_iopl(cpu: &mut Cpu) -> Result {
    if cpu.protected_mode() && cpu.cpl > cpu.flags.system().iopl() {
        return cpu.general_protection(0);
    }
    Ok(())
}

fn cli(cpu: &mut Cpu, _: &Op) -> Result {
    need_iopl(cpu)?;
    cpu.flags.set_system(Rflags::IF, false);
    Ok(())
}

fn sti(cpu: &mut Cpu, _: &Op) -> Result {
    need_iopl(cpu)?;
    if !cpu.flags.system().contains(Rflags::IF) {
        cpu.flags.set_system(Rflags::IF, true);
        cpu.sti_shadow = true;
        cpu.attend();
    }
    Ok(())
}

fn set_access_check(cpu: &mut Cpu, on: bool) -> Result {
    if cpu.cpl != 0 || !cpu.model.has(Feature::Smap) {
        return cpu.undefined();
    }
    cpu.flags.set_system(Rflags::AC, on);
    cpu.update_view();
    Ok(())
}

fn clac(cpu: &mut Cpu, _: &Op) -> Result {
    set_access_check(cpu, false)
}

fn stac(cpu: &mut Cpu, _: &Op) -> Result {
    set_access_check(cpu, true)
}

impl Cpu {
    /// Sets the flags in `writable` from `value`, those of its low `width`.
    pub(crate) fn set_flags(&mut self, value: Rflags, writable: Rflags, width: Width) {
        let writable = Rflags::from_bits_retain(width.cut(writable.bits()));
        let kept = self.flags.get() - writable;
        self.flags.set(kept | value & writable | Rflags::FIXED);
        self.update_view();
        self.attend();
    }
}
