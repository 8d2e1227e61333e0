//! RDMSR and WRMSR (SDM vol. 4; APM vol. 2, appendix A). A register that is not known raises #GP,
//! as on hardware; guests probe for it.

use super::need_supervisor;
use crate::cpu::{Cpu, Result};
use crate::op::{Handler, Op};
use crate::paging;
use engine::{Event, Kinds};
use iced_x86::{Instruction, Mnemonic as M};
use x86::cpuid::Feature;
use x86::{Cr0, Efer, SegmentRegister, msr};

/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write-combining.
const MTRRCAP: u64 = 8 | 1 << 8 | 1 << 10;
/// IA32_FEATURE_CONTROL: locked, with everything off.
const FEATURE_CONTROL: u64 = 1;
/// IA32_BIOS_SIGN_ID on Intel: microcode revision 1, in the upper half.
const INTEL_MICROCODE: u64 = 1 << 32;
/// The patch level on AMD.
const AMD_MICROCODE: u64 = 0x0a00_11d5;
/// IBRS, STIBP, SSBD and BHI_DIS_S of IA32_SPEC_CTRL (SDM vol. 4, table 2-2).
const SPEC_CTRL_WRITABLE: u64 = 7 | 1 << 10;
/// HWCR: the TSC counts at the frequency of P0. Writes of the bits that firmware and kernels set
/// are lost.
const HWCR: u64 = 1 << 24;
const HWCR_WRITABLE: u64 = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 18 | 1 << 24;
/// DE_CFG: LFENCE waits for the instructions before it.
const DE_CFG: u64 = 2;
/// MTRRs: memory types that exist, as a set.
const MEMORY_TYPES: u64 = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6;

/// The access raises #GP(0).
pub(crate) struct Refused;

type Answer<T = ()> = std::result::Result<T, Refused>;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        M::Rdmsr => rdmsr,
        M::Wrmsr => wrmsr,
        _ => return None,
    })
}

fn rdmsr(cpu: &mut Cpu, op: &Op) -> Result {
    need_supervisor(cpu)?;
    let number = cpu.gpr[1] as u32;
    let answer = cpu.read_msr(number);
    let value = answer.as_ref().map_or(0, |v| *v);
    trace(cpu, op, number, value, false, answer.is_err());
    if answer.is_err() {
        return cpu.general_protection(0);
    }
    cpu.gpr[0] = value & 0xffff_ffff;
    cpu.gpr[2] = value >> 32;
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, op: &Op) -> Result {
    need_supervisor(cpu)?;
    let number = cpu.gpr[1] as u32;
    let value = cpu.gpr[0] & 0xffff_ffff | cpu.gpr[2] << 32;
    let answer = cpu.write_msr(number, value);
    trace(cpu, op, number, value, true, answer.is_err());
    if answer.is_err() {
        return cpu.general_protection(0);
    }
    Ok(())
}

fn trace(cpu: &Cpu, op: &Op, number: u32, value: u64, write: bool, refused: bool) {
    let rip = cpu.rip_of(op);
    cpu.emit(Kinds::MSRS, || Event::Msr {
        number,
        value,
        write,
        refused,
        rip,
    });
}

fn allow(condition: bool) -> Answer {
    if condition { Ok(()) } else { Err(Refused) }
}

/// The register behind the number of a fixed-range MTRR.
fn fixed_mtrr(number: u32) -> Option<usize> {
    let index = match number {
        msr::IA32_MTRR_FIX64K_00000 => 0,
        msr::IA32_MTRR_FIX16K_80000 => 1,
        msr::IA32_MTRR_FIX16K_A0000 => 2,
        msr::IA32_MTRR_FIX4K_C0000..=msr::IA32_MTRR_FIX4K_F8000 => {
            3 + (number - msr::IA32_MTRR_FIX4K_C0000) as usize
        }
        _ => return None,
    };
    Some(index)
}

fn is_memory_type(byte: u64) -> bool {
    byte < 8 && MEMORY_TYPES >> byte & 1 != 0
}

impl Cpu {
    fn read_msr(&mut self, number: u32) -> Answer<u64> {
        if let Some(index) = fixed_mtrr(number) {
            return Ok(self.mtrr.fixed[index]);
        }
        Ok(match number {
            msr::IA32_TSC => self.tsc(),
            msr::IA32_TSC_ADJUST => self.tsc_adjust,
            msr::IA32_APIC_BASE => self.lapic.base(),
            msr::IA32_TSC_DEADLINE => self.tsc_deadline(),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                return self.read_x2apic(number).map_err(|_| Refused);
            }
            msr::IA32_SYSENTER_CS => self.syscall.sysenter_cs,
            msr::IA32_SYSENTER_ESP => self.syscall.sysenter_esp,
            msr::IA32_SYSENTER_EIP => self.syscall.sysenter_eip,
            msr::IA32_EFER => self.efer.bits(),
            msr::IA32_STAR => self.syscall.star,
            msr::IA32_LSTAR => self.syscall.lstar,
            msr::IA32_CSTAR => self.syscall.cstar,
            msr::IA32_FMASK => self.syscall.fmask,
            msr::IA32_FS_BASE => self.bases[SegmentRegister::Fs as usize],
            msr::IA32_GS_BASE => self.bases[SegmentRegister::Gs as usize],
            msr::IA32_KERNEL_GS_BASE => self.syscall.kernel_gs_base,
            msr::IA32_TSC_AUX => self.tsc_aux.into(),
            msr::IA32_PAT => self.pat,
            msr::IA32_MTRRCAP => MTRRCAP,
            msr::IA32_MTRR_DEF_TYPE => self.mtrr.default_type,
            msr::IA32_MTRR_PHYSBASE0..=msr::IA32_MTRR_PHYSMASK7 => {
                let range = number - msr::IA32_MTRR_PHYSBASE0;
                let (base, mask) = self.mtrr.variable[range as usize / 2];
                if range.is_multiple_of(2) { base } else { mask }
            }
            msr::IA32_XSS if self.has_xsaves() => self.xss,
            msr::IA32_MISC_ENABLE => self.misc_enable,
            // No banks, no errors.
            msr::IA32_MCG_CAP | msr::IA32_MCG_STATUS => 0,
            // Last-branch records and branch stepping never record anything.
            msr::IA32_DEBUGCTL => 0,
            msr::IA32_BIOS_SIGN_ID if self.model.is_amd() => AMD_MICROCODE,
            msr::IA32_BIOS_SIGN_ID => INTEL_MICROCODE,
            msr::IA32_ARCH_CAPABILITIES if self.has_arch_capabilities() => {
                crate::cpuid::ARCH_CAPABILITIES
            }
            msr::IA32_SPEC_CTRL if self.has_spec_ctrl() => self.spec_ctrl,
            msr::IA32_PLATFORM_ID if !self.model.is_amd() => 0,
            msr::IA32_FEATURE_CONTROL if !self.model.is_amd() => FEATURE_CONTROL,
            msr::AMD_SYSCFG | msr::AMD_NB_CFG | msr::AMD_LS_CFG if self.model.is_amd() => 0,
            msr::AMD_HWCR if self.model.is_amd() => HWCR,
            msr::AMD_DE_CFG if self.model.is_amd() => DE_CFG,
            msr::KVM_WALL_CLOCK => self.paravirt.wall_clock,
            msr::KVM_SYSTEM_TIME => self.paravirt.system_time,
            msr::KVM_PV_EOI_EN => self.paravirt.pv_eoi,
            _ => return Err(Refused),
        })
    }

    fn write_msr(&mut self, number: u32, value: u64) -> Answer {
        if let Some(index) = fixed_mtrr(number) {
            let types = value.to_le_bytes();
            allow(types.iter().all(|t| is_memory_type((*t).into())))?;
            self.mtrr.fixed[index] = value;
            return Ok(());
        }
        match number {
            msr::IA32_TSC => self.write_tsc(value),
            msr::IA32_TSC_ADJUST => self.move_tsc(value.wrapping_sub(self.tsc_adjust)),
            msr::IA32_APIC_BASE => return self.set_apic_base(value).map_err(|_| Refused),
            msr::IA32_TSC_DEADLINE => self.set_tsc_deadline(value),
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                return self.write_x2apic(number, value).map_err(|_| Refused);
            }
            msr::IA32_SYSENTER_CS => self.syscall.sysenter_cs = value & 0xffff_ffff,
            msr::IA32_SYSENTER_ESP => self.syscall.sysenter_esp = self.checked_address(value)?,
            msr::IA32_SYSENTER_EIP => self.syscall.sysenter_eip = self.checked_address(value)?,
            msr::IA32_EFER => return self.set_efer(value),
            msr::IA32_STAR => self.syscall.star = value,
            msr::IA32_LSTAR => self.syscall.lstar = self.checked_address(value)?,
            msr::IA32_CSTAR => self.syscall.cstar = self.checked_address(value)?,
            msr::IA32_FMASK => {
                allow(value >> 32 == 0)?;
                self.syscall.fmask = value;
            }
            msr::IA32_FS_BASE => {
                let base = self.checked_address(value)?;
                self.set_base(SegmentRegister::Fs, base);
            }
            msr::IA32_GS_BASE => {
                let base = self.checked_address(value)?;
                self.set_base(SegmentRegister::Gs, base);
            }
            msr::IA32_KERNEL_GS_BASE => {
                self.syscall.kernel_gs_base = self.checked_address(value)?
            }
            msr::IA32_TSC_AUX => {
                allow(value >> 32 == 0)?;
                self.tsc_aux = value as u32;
            }
            msr::IA32_PAT => {
                allow(paging::is_valid_pat(value))?;
                self.pat = value;
            }
            msr::IA32_MTRR_DEF_TYPE => {
                allow(value & !0xcff == 0 && is_memory_type(value & 0xff))?;
                self.mtrr.default_type = value;
            }
            msr::IA32_MTRR_PHYSBASE0..=msr::IA32_MTRR_PHYSMASK7 => {
                return self.set_variable_mtrr(number - msr::IA32_MTRR_PHYSBASE0, value);
            }
            // No supervisor state components.
            msr::IA32_XSS if self.has_xsaves() => return allow(value == 0),
            msr::IA32_MISC_ENABLE => self.misc_enable = value,
            msr::IA32_MCG_STATUS => return allow(value == 0),
            msr::IA32_DEBUGCTL => return allow(value & !3 == 0),
            msr::IA32_BIOS_SIGN_ID | msr::IA32_BIOS_UPDT_TRIG => {}
            // Nothing is speculated here: the controls are kept, and flushes are done.
            msr::IA32_SPEC_CTRL if self.has_spec_ctrl() => {
                allow(value & !SPEC_CTRL_WRITABLE == 0)?;
                self.spec_ctrl = value;
            }
            msr::IA32_PRED_CMD if self.has_spec_ctrl() => return allow(value & !1 == 0),
            msr::AMD_SYSCFG | msr::AMD_NB_CFG | msr::AMD_LS_CFG if self.model.is_amd() => {}
            msr::AMD_HWCR if self.model.is_amd() => return allow(value & !HWCR_WRITABLE == 0),
            msr::AMD_DE_CFG if self.model.is_amd() => return allow(value == DE_CFG),
            msr::KVM_WALL_CLOCK => return allow(self.set_wall_clock(value)),
            msr::KVM_SYSTEM_TIME => return allow(self.set_system_time(value)),
            msr::KVM_PV_EOI_EN => return allow(self.set_paravirtual_eoi(value)),
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// `value`, if it is canonical.
    fn checked_address(&self, value: u64) -> Answer<u64> {
        allow(self.canonical(value))?;
        Ok(value)
    }

    fn has_xsaves(&self) -> bool {
        self.model.has(Feature::Xsaves)
    }

    fn has_spec_ctrl(&self) -> bool {
        self.model.has(Feature::SpecCtrl)
    }

    fn has_arch_capabilities(&self) -> bool {
        self.model.has(Feature::ArchCapabilities)
    }

    fn set_variable_mtrr(&mut self, range: u32, value: u64) -> Answer {
        const VALID: u64 = 1 << 11;
        let address = ((1u64 << paging::PHYSICAL_BITS) - 1) & !0xfff;
        let (base, mask) = &mut self.mtrr.variable[range as usize / 2];
        if range.is_multiple_of(2) {
            allow(value & !(address | 0xff) == 0 && is_memory_type(value & 0xff))?;
            *base = value;
        } else {
            allow(value & !(address | VALID) == 0)?;
            *mask = value;
        }
        Ok(())
    }

    /// WRMSR to IA32_EFER (SDM vol. 3, 10.8.5).
    fn set_efer(&mut self, value: u64) -> Answer {
        let new = Efer::from_bits_retain(value);
        let changed = self.efer ^ new;
        allow(self.model.efer.contains(new))?;
        allow(!(changed.contains(Efer::LME) && self.cr0.contains(Cr0::PG)))?;
        // LMA follows from CR0.PG; writes to it are ignored.
        self.efer = (new - Efer::LMA) | self.efer & Efer::LMA;
        if changed.contains(Efer::NXE) {
            self.tlb.flush();
        }
        Ok(())
    }
}
