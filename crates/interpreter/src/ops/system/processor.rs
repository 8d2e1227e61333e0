//! Software interrupts, HLT, CPUID, the time-stamp counter, hypercalls, and instructions that
//! have nothing to do here.

use super::need_supervisor;
use crate::cpu::{CodeSize, Cpu, Result};
use crate::events::Event;
use crate::op::{Handler, Op};
use engine::Kinds;
use iced_x86::{Instruction, Mnemonic as M};
use x86::cpuid::Feature;
use x86::{Activity, Cr4, Vector};

/// What KVM's hypercall answers for a number that it does not know: -KVM_ENOSYS (Linux,
/// Documentation/virt/kvm/x86/hypercalls.rst).
const KVM_ENOSYS: i64 = -1000;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        M::Int => int,
        M::Int1 => int1,
        M::Int3 => int3,
        M::Into => into,
        M::Hlt => hlt,
        M::Cpuid => cpuid,
        M::Rdtsc => rdtsc,
        M::Rdtscp => rdtscp,
        M::Rdpid => rdpid,
        M::Rdpmc => rdpmc,
        M::Vmcall | M::Vmmcall => hypercall,
        M::Clflush | M::Clflushopt | M::Clwb => flush_line,
        _ => return None,
    })
}

fn enter(cpu: &mut Cpu, op: &Op, event: Event) -> Result {
    cpu.finish(op);
    cpu.software_interrupt(event)
}

fn int(cpu: &mut Cpu, op: &Op) -> Result {
    // INT n, unlike INT3 and INTO, needs IOPL 3 in virtual-8086 mode.
    if cpu.virtual_8086() && cpu.flags.system().iopl() < 3 {
        return cpu.general_protection(0);
    }
    enter(cpu, op, Event::Software(op.imm as u8))
}

fn int1(cpu: &mut Cpu, op: &Op) -> Result {
    enter(cpu, op, Event::InterruptOne)
}

fn int3(cpu: &mut Cpu, op: &Op) -> Result {
    enter(cpu, op, Event::Software(Vector::Breakpoint as u8))
}

fn into(cpu: &mut Cpu, op: &Op) -> Result {
    if cpu.flags.of() {
        return enter(cpu, op, Event::Software(Vector::Overflow as u8));
    }
    cpu.finish(op);
    Ok(())
}

fn hlt(cpu: &mut Cpu, _: &Op) -> Result {
    need_supervisor(cpu)?;
    cpu.activity = Activity::Halted;
    cpu.attend();
    Ok(())
}

fn cpuid(cpu: &mut Cpu, _: &Op) -> Result {
    let question = (cpu.gpr[0] as u32, cpu.gpr[1] as u32);
    let answer = cpu.answer_cpuid(question.0, question.1);
    for (slot, value) in [
        (0, answer.eax),
        (3, answer.ebx),
        (1, answer.ecx),
        (2, answer.edx),
    ] {
        cpu.gpr[slot] = value.into();
    }
    cpu.emit(Kinds::CPUID, || engine::Event::Cpuid { question, answer });
    Ok(())
}

/// CR4.TSD makes the counter privileged.
fn read_counter(cpu: &mut Cpu) -> Result {
    if cpu.cr4.contains(Cr4::TSD) && cpu.cpl != 0 {
        return cpu.general_protection(0);
    }
    let tsc = cpu.tsc();
    cpu.gpr[0] = tsc & 0xffff_ffff;
    cpu.gpr[2] = tsc >> 32;
    Ok(())
}

fn rdtsc(cpu: &mut Cpu, _: &Op) -> Result {
    read_counter(cpu)
}

fn rdtscp(cpu: &mut Cpu, _: &Op) -> Result {
    if !cpu.model.has(Feature::Rdtscp) {
        return cpu.undefined();
    }
    read_counter(cpu)?;
    cpu.gpr[1] = cpu.tsc_aux.into();
    Ok(())
}

fn rdpid(cpu: &mut Cpu, op: &Op) -> Result {
    if !cpu.model.has(Feature::Rdpid) {
        return cpu.undefined();
    }
    cpu.set_reg(op.r0, u64::from(cpu.tsc_aux));
    Ok(())
}

/// There are no performance counters.
fn rdpmc(cpu: &mut Cpu, _: &Op) -> Result {
    cpu.general_protection(0)
}

/// VMCALL and VMMCALL: KVM's hypercalls take either, and none is offered.
fn hypercall(cpu: &mut Cpu, op: &Op) -> Result {
    if !cpu.protected_mode() {
        return cpu.undefined();
    }
    let answer = if cpu.cpl == 0 {
        KVM_ENOSYS
    } else {
        // -KVM_EPERM
        -1
    };
    if cpu.code_size == CodeSize::Bits64 {
        cpu.set_reg(0, answer as u64);
    } else {
        cpu.set_reg(0, answer as u32);
    }
    cpu.finish(op);
    Ok(())
}

/// CLFLUSH and its family: memory is coherent, but the address is checked as a load's.
fn flush_line(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.load::<u8>(op)?;
    Ok(())
}

impl Cpu {
    /// Ends a jump-like instruction without a jump: RIP is that of the next one.
    pub(crate) fn finish(&mut self, op: &Op) {
        let next = self.next_rip(op);
        self.rip = match self.code_size {
            CodeSize::Bits64 => next,
            _ => next & 0xffff_ffff,
        };
    }

    /// The time-stamp counter now.
    pub(crate) fn tsc(&self) -> u64 {
        self.tsc_at(self.shared.clock.now())
    }
}
