//! Control and debug registers, descriptor-table registers, and TLB and cache management (SDM
//! vol. 3, chapters 2 and 10; vol. 2 for each instruction).

use super::{need_protected_mode, need_supervisor};
use crate::cpu::{CodeSize, Cpu, Result};
use crate::descriptors::null_segment;
use crate::model::CR0_BITS;
use crate::op::{Handler, Op};
use crate::paging::PHYSICAL_BITS;
use engine::{Event, Kinds};
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind};
use lapic::GeneralProtection;
use x86::cpuid::Feature;
use x86::{
    Cr0, Cr4, DescriptorTable, Dr6, Dr7, Efer, Exception, Selector, SystemType, Vector, Xcr0,
};

/// CR3 with PCIDs: the TLB may keep what it has (SDM vol. 3, 5.10.4.1).
const CR3_NO_FLUSH: u64 = 1 << 63;
/// Bits of DR6 and DR7 that can be written (without RTM).
const DR6_WRITABLE: u64 = 0xe00f;
const DR7_WRITABLE: u64 = 0xffff_23ff;

pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    let is_register = instruction.op0_kind() == OpKind::Register;
    op.extra = match instruction.mnemonic() {
        M::Mov if first.is_cr() || first.is_dr() => first.number() as u8,
        M::Mov if second.is_cr() || second.is_dr() => second.number() as u8,
        _ => op.extra,
    };
    Some(match instruction.mnemonic() {
        M::Mov if first.is_cr() => mov_to_control,
        M::Mov if second.is_cr() => mov_from_control,
        M::Mov if first.is_dr() => mov_to_debug,
        M::Mov if second.is_dr() => mov_from_debug,
        M::Lmsw if is_register => lmsw::<false>,
        M::Lmsw => lmsw::<true>,
        M::Smsw | M::Sldt | M::Str => {
            op.extra = if is_register { first.size() as u8 } else { 0 };
            match instruction.mnemonic() {
                M::Smsw => smsw,
                M::Sldt => sldt,
                _ => str,
            }
        }
        M::Clts => clts,
        M::Lgdt | M::Lidt => {
            // With a 16-bit operand size, bases have 24 bits.
            op.extra = u8::from(matches!(
                instruction.code(),
                Code::Lgdt_m1632_16 | Code::Lidt_m1632_16
            ));
            match instruction.mnemonic() {
                M::Lgdt => lgdt,
                _ => lidt,
            }
        }
        M::Sgdt => sgdt,
        M::Sidt => sidt,
        M::Lldt if is_register => lldt::<false>,
        M::Lldt => lldt::<true>,
        M::Ltr if is_register => ltr::<false>,
        M::Ltr => ltr::<true>,
        M::Invlpg => invlpg,
        M::Invpcid => invpcid,
        M::Invd | M::Wbinvd => manage_caches,
        M::Wbnoinvd => manage_caches,
        M::Xgetbv => xgetbv,
        M::Xsetbv => xsetbv,
        _ => return None,
    })
}

fn operand(cpu: &Cpu, op: &Op) -> u64 {
    if cpu.is_64bit() {
        cpu.reg(op.r0)
    } else {
        cpu.reg::<u32>(op.r0).into()
    }
}

fn mov_to_control(cpu: &mut Cpu, op: &Op) -> Result {
    if !matches!(op.extra, 0 | 2 | 3 | 4 | 8) {
        return cpu.undefined();
    }
    need_supervisor(cpu)?;
    let value = operand(cpu, op);
    let rip = cpu.rip_of(op);
    match op.extra {
        0 => cpu.set_cr0(value)?,
        2 => cpu.cr2 = value,
        3 => cpu.set_cr3(value)?,
        4 => cpu.set_cr4(value)?,
        _ => {
            if let Err(GeneralProtection) = cpu.lapic.set_cr8(value) {
                return cpu.general_protection(0);
            }
            cpu.attend();
        }
    }
    cpu.emit(Kinds::CONTROL, || Event::Control {
        register: op.extra,
        value,
        rip,
    });
    Ok(())
}

fn mov_from_control(cpu: &mut Cpu, op: &Op) -> Result {
    let value = match op.extra {
        0 => cpu.cr0.bits(),
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4.bits(),
        8 => cpu.lapic.cr8().into(),
        _ => return cpu.undefined(),
    };
    need_supervisor(cpu)?;
    cpu.set_reg(op.r0, value);
    Ok(())
}

/// DR4 and DR5 are DR6 and DR7, or nothing with CR4.DE. With DR7.GD, any access is a #DB.
fn debug_register(cpu: &mut Cpu, op: &Op) -> Result<usize> {
    let number = match usize::from(op.extra) {
        4 | 5 if cpu.cr4.contains(Cr4::DE) => return cpu.undefined(),
        number @ (4 | 5) => number + 2,
        number @ 0..=7 => number,
        _ => return cpu.undefined(),
    };
    need_supervisor(cpu)?;
    if cpu.dr7 & Dr7::GD.bits() != 0 {
        return cpu.raise(Exception {
            vector: Vector::Debug,
            error_code: 0,
            payload: Dr6::BD.bits(),
        });
    }
    Ok(number)
}

fn mov_to_debug(cpu: &mut Cpu, op: &Op) -> Result {
    let number = debug_register(cpu, op)?;
    let value = operand(cpu, op);
    if number >= 6 && value >> 32 != 0 {
        return cpu.general_protection(0);
    }
    match number {
        6 => cpu.dr6 = value & DR6_WRITABLE | Dr6::FIXED.bits(),
        7 => cpu.dr7 = value & DR7_WRITABLE | Dr7::FIXED.bits(),
        _ => cpu.dr[number] = value,
    }
    cpu.update_view();
    cpu.attend();
    Ok(())
}

fn mov_from_debug(cpu: &mut Cpu, op: &Op) -> Result {
    let number = debug_register(cpu, op)?;
    let value = match number {
        6 => cpu.dr6,
        7 => cpu.dr7,
        _ => cpu.dr[number],
    };
    cpu.set_reg(op.r0, value);
    Ok(())
}

fn lmsw<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    need_supervisor(cpu)?;
    let word: u16 = if MEMORY {
        cpu.load(op)?
    } else {
        cpu.reg(op.r0)
    };
    // PE can be set, not cleared.
    let kept = cpu.cr0.bits() & !0xe;
    cpu.set_cr0(kept | u64::from(word) & 0xf)
}

/// CR4.UMIP keeps user mode from looking at system registers.
fn check_umip(cpu: &mut Cpu) -> Result {
    if cpu.cpl > 0 && cpu.cr4.contains(Cr4::UMIP) {
        return cpu.general_protection(0);
    }
    Ok(())
}

/// Stores a system register: 16 bits in memory, the operand size in a register.
fn store_word(cpu: &mut Cpu, op: &Op, value: u64) -> Result {
    match op.extra {
        0 => return cpu.store(op, value as u16),
        2 => cpu.set_reg(op.r0, value as u16),
        4 => cpu.set_reg(op.r0, value as u32),
        _ => cpu.set_reg(op.r0, value),
    }
    Ok(())
}

fn smsw(cpu: &mut Cpu, op: &Op) -> Result {
    check_umip(cpu)?;
    store_word(cpu, op, cpu.cr0.bits())
}

fn sldt(cpu: &mut Cpu, op: &Op) -> Result {
    need_protected_mode(cpu)?;
    check_umip(cpu)?;
    store_word(cpu, op, cpu.ldtr.selector.0.into())
}

fn str(cpu: &mut Cpu, op: &Op) -> Result {
    need_protected_mode(cpu)?;
    check_umip(cpu)?;
    store_word(cpu, op, cpu.tr.selector.0.into())
}

fn clts(cpu: &mut Cpu, _: &Op) -> Result {
    need_supervisor(cpu)?;
    cpu.cr0 -= Cr0::TS;
    cpu.update_derived();
    Ok(())
}

/// The operand of LGDT and LIDT.
fn load_table(cpu: &mut Cpu, op: &Op) -> Result<DescriptorTable> {
    need_supervisor(cpu)?;
    let limit: u16 = cpu.load(op)?;
    let behind = cpu.address(op).wrapping_add(2) & u64::MAX >> op.address_cut;
    let base = if cpu.is_64bit() {
        cpu.load_at::<u64>(op.segment, behind)?
    } else {
        let base = cpu.load_at::<u32>(op.segment, behind)?;
        u64::from(if op.extra != 0 {
            base & 0xff_ffff
        } else {
            base
        })
    };
    if cpu.is_64bit() && !cpu.canonical(base) {
        return cpu.general_protection(0);
    }
    Ok(DescriptorTable { base, limit })
}

fn lgdt(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.gdtr = load_table(cpu, op)?;
    Ok(())
}

fn lidt(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.idtr = load_table(cpu, op)?;
    Ok(())
}

fn store_table(cpu: &mut Cpu, op: &Op, table: DescriptorTable) -> Result {
    check_umip(cpu)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = if cpu.is_64bit() { 10 } else { 6 };
    cpu.store_bytes(op.segment, cpu.address(op), &bytes[..len])
}

fn sgdt(cpu: &mut Cpu, op: &Op) -> Result {
    store_table(cpu, op, cpu.gdtr)
}

fn sidt(cpu: &mut Cpu, op: &Op) -> Result {
    store_table(cpu, op, cpu.idtr)
}

fn lldt<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    need_protected_mode(cpu)?;
    need_supervisor(cpu)?;
    let selector = Selector(if MEMORY {
        cpu.load(op)?
    } else {
        cpu.reg(op.r0)
    });
    if selector.is_null() {
        cpu.ldtr = null_segment(selector, 0);
        return Ok(());
    }
    if selector.is_local() {
        return cpu.refuse(Vector::GeneralProtection, selector);
    }
    let located = cpu.descriptor(selector, Vector::GeneralProtection)?;
    if located.descriptor.system_type() != Some(SystemType::Ldt) {
        return cpu.refuse(Vector::GeneralProtection, selector);
    }
    let mut segment = located.segment();
    segment.base = cpu.system_base(&located)?;
    if !located.descriptor.is_present() {
        return cpu.refuse(Vector::SegmentNotPresent, selector);
    }
    cpu.ldtr = segment;
    Ok(())
}

fn ltr<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    need_protected_mode(cpu)?;
    need_supervisor(cpu)?;
    let selector = Selector(if MEMORY {
        cpu.load(op)?
    } else {
        cpu.reg(op.r0)
    });
    if selector.is_null() {
        return cpu.general_protection(0);
    }
    if selector.is_local() {
        return cpu.refuse(Vector::GeneralProtection, selector);
    }
    let located = cpu.descriptor(selector, Vector::GeneralProtection)?;
    match located.descriptor.system_type() {
        Some(SystemType::Tss) => {}
        Some(SystemType::Tss16) if !cpu.long_mode() => {}
        _ => return cpu.refuse(Vector::GeneralProtection, selector),
    }
    if !located.descriptor.is_present() {
        return cpu.refuse(Vector::SegmentNotPresent, selector);
    }
    let mut segment = located.segment();
    segment.base = cpu.system_base(&located)?;
    cpu.set_busy(&located, true)?;
    segment.access |= 2;
    cpu.tr = segment;
    Ok(())
}

fn invlpg(cpu: &mut Cpu, op: &Op) -> Result {
    need_supervisor(cpu)?;
    let linear = cpu.bases[op.segment.slot()].wrapping_add(cpu.address(op));
    let linear = if cpu.is_64bit() {
        linear
    } else {
        linear & 0xffff_ffff
    };
    if cpu.canonical(linear) {
        cpu.tlb.flush_page(linear);
    }
    Ok(())
}

fn invpcid(cpu: &mut Cpu, op: &Op) -> Result {
    if !cpu.model.has(Feature::Invpcid) || !cpu.protected_mode() {
        return cpu.undefined();
    }
    need_supervisor(cpu)?;
    let kind = operand(cpu, op);
    let pcid: u64 = cpu.load(op)?;
    let behind = cpu.address(op).wrapping_add(8) & u64::MAX >> op.address_cut;
    let linear: u64 = cpu.load_at(op.segment, behind)?;
    let names_pcid = kind <= 1;
    let refused = kind > 3
        || pcid >> 12 != 0
        || names_pcid && pcid != 0 && !cpu.cr4.contains(Cr4::PCIDE)
        || kind == 0 && !cpu.canonical(linear);
    if refused {
        return cpu.general_protection(0);
    }
    match kind {
        0 => cpu.tlb.flush_page(linear),
        2 => cpu.tlb.flush(),
        _ => cpu.tlb.flush_local(),
    }
    Ok(())
}

/// INVD, WBINVD and WBNOINVD: guest memory is coherent.
fn manage_caches(cpu: &mut Cpu, _: &Op) -> Result {
    need_supervisor(cpu)
}

fn xgetbv(cpu: &mut Cpu, _: &Op) -> Result {
    if !cpu.cr4.contains(Cr4::OSXSAVE) {
        return cpu.undefined();
    }
    let value = match cpu.gpr[1] as u32 {
        0 => cpu.xcr0.bits(),
        // Components in use: none is tracked as being in its initial state.
        1 if cpu.model.has(Feature::Xgetbv1) => cpu.xcr0.bits(),
        _ => return cpu.general_protection(0),
    };
    cpu.gpr[0] = value & 0xffff_ffff;
    cpu.gpr[2] = value >> 32;
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, _: &Op) -> Result {
    if !cpu.cr4.contains(Cr4::OSXSAVE) {
        return cpu.undefined();
    }
    need_supervisor(cpu)?;
    let value = Xcr0::from_bits_retain(cpu.gpr[0] & 0xffff_ffff | cpu.gpr[2] << 32);
    let valid = cpu.gpr[1] as u32 == 0
        && cpu.model.xcr0.contains(value)
        && value.contains(Xcr0::X87)
        && (!value.contains(Xcr0::AVX) || value.contains(Xcr0::SSE));
    if !valid {
        return cpu.general_protection(0);
    }
    cpu.xcr0 = value;
    cpu.update_derived();
    Ok(())
}

impl Cpu {
    /// The base of an LDT or TSS: 64 bits in long mode.
    fn system_base(&mut self, located: &crate::descriptors::Located) -> Result<u64> {
        let base = located.segment().base;
        if !self.long_mode() {
            return Ok(base);
        }
        let upper = self.upper_half(located, Vector::GeneralProtection)?;
        let base = base | upper << 32;
        if !self.canonical(base) {
            return self.refuse(Vector::GeneralProtection, located.selector);
        }
        Ok(base)
    }

    /// MOV to CR0 (SDM vol. 3, 2.5, and 10.8.5 for long mode).
    pub(crate) fn set_cr0(&mut self, value: u64) -> Result {
        let old = self.cr0;
        let new = Cr0::from_bits_retain(value) & CR0_BITS | Cr0::ET;
        let has = |bit| new.contains(bit);
        let refused =
            value >> 32 != 0 || has(Cr0::PG) && !has(Cr0::PE) || has(Cr0::NW) && !has(Cr0::CD);
        if refused {
            return self.general_protection(0);
        }
        let changed = old ^ new;
        if changed.contains(Cr0::PG) {
            if has(Cr0::PG) {
                self.enable_paging()?;
            } else {
                self.disable_paging()?;
            }
        } else if changed.intersects(Cr0::CD | Cr0::NW) && has(Cr0::PG) {
            self.reload_pdptes(self.cr4)?;
        }
        self.cr0 = new;
        if changed.intersects(Cr0::PG | Cr0::PE | Cr0::WP) {
            self.tlb.flush();
        }
        self.segments_changed();
        self.attend();
        Ok(())
    }

    fn enable_paging(&mut self) -> Result {
        if !self.efer.contains(Efer::LME) {
            return self.reload_pdptes(self.cr4);
        }
        let cs = self.segment(x86::SegmentRegister::Cs);
        // Also refused: a 16-bit TSS, which long mode has not.
        let tss16 = !self.tr.unusable && self.tr.kind() == SystemType::BusyTss16 as u8;
        if !self.cr4.contains(Cr4::PAE) || cs.is_long() || tss16 {
            return self.general_protection(0);
        }
        self.efer |= Efer::LMA;
        Ok(())
    }

    fn disable_paging(&mut self) -> Result {
        if self.code_size == CodeSize::Bits64 || self.cr4.contains(Cr4::PCIDE) {
            return self.general_protection(0);
        }
        self.efer -= Efer::LMA;
        Ok(())
    }

    /// Loads the PDPTEs if paging under `cr4` is in the legacy PAE format.
    fn reload_pdptes(&mut self, cr4: Cr4) -> Result {
        if cr4.contains(Cr4::PAE) && !self.long_mode() {
            self.load_pdptes(self.cr3)?;
        }
        Ok(())
    }

    /// MOV to CR3.
    pub(crate) fn set_cr3(&mut self, value: u64) -> Result {
        let with_pcid = self.cr4.contains(Cr4::PCIDE);
        let keeps = with_pcid && value & CR3_NO_FLUSH != 0;
        let value = if with_pcid {
            value & !CR3_NO_FLUSH
        } else {
            value
        };
        if self.long_mode() && value >> PHYSICAL_BITS != 0 {
            return self.general_protection(0);
        }
        if self.cr0.contains(Cr0::PG) && self.cr4.contains(Cr4::PAE) && !self.long_mode() {
            self.load_pdptes(value)?;
        }
        // Translations are not tagged with PCIDs: only the same address space may keep them.
        if !(keeps && value == self.cr3) {
            self.tlb.flush_local();
        }
        self.cr3 = value;
        Ok(())
    }

    /// MOV to CR4.
    pub(crate) fn set_cr4(&mut self, value: u64) -> Result {
        let new = Cr4::from_bits_retain(value);
        let changed = self.cr4 ^ new;
        let long = self.long_mode();
        let sets_pcide = changed.contains(Cr4::PCIDE) && new.contains(Cr4::PCIDE);
        let refused = !self.model.cr4.contains(new)
            || long && (!new.contains(Cr4::PAE) || changed.contains(Cr4::LA57))
            || sets_pcide && (!long || self.cr3 & 0xfff != 0);
        if refused {
            return self.general_protection(0);
        }
        let reloads = Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::SMEP;
        if self.cr0.contains(Cr0::PG) && changed.intersects(reloads) {
            self.reload_pdptes(new)?;
        }
        self.cr4 = new;
        if changed.intersects(reloads | Cr4::SMAP | Cr4::PCIDE | Cr4::LA57) {
            self.tlb.flush();
        }
        self.update_view();
        self.update_derived();
        self.attend();
        Ok(())
    }
}
