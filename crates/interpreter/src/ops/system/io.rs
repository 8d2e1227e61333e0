//! IN, OUT, INS and OUTS (SDM vol. 1, chapter 20).

use crate::cpu::{Cpu, Result};
use crate::int::Int;
use crate::op::{Handler, Op, Seg};
use engine::{Access, Space};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use x86::Rflags;

const RSI: u8 = 6;
const RDI: u8 = 7;
const RCX: u8 = 1;
const RDX: u8 = 2;
/// Iterations of a repeated instruction until interrupts are looked at.
const BURST: u32 = 256;

pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    // The port is an immediate or DX; the data register tells the size.
    let (data, port) = match instruction.mnemonic() {
        M::In => (instruction.op0_register(), instruction.op1_kind()),
        M::Out => (instruction.op1_register(), instruction.op0_kind()),
        _ => return select_string(instruction, op),
    };
    op.extra = u8::from(port != OpKind::Register);
    Some(match (instruction.mnemonic(), data) {
        (M::In, Register::AL) => input::<u8>,
        (M::In, Register::AX) => input::<u16>,
        (M::In, _) => input::<u32>,
        (_, Register::AL) => output::<u8>,
        (_, Register::AX) => output::<u16>,
        _ => output::<u32>,
    })
}

fn select_string(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.extra = u8::from(instruction.has_rep_prefix() || instruction.has_repne_prefix());
    Some(match instruction.mnemonic() {
        M::Insb => repeated::<u8, true>,
        M::Insw => repeated::<u16, true>,
        M::Insd => repeated::<u32, true>,
        M::Outsb => repeated::<u8, false>,
        M::Outsw => repeated::<u16, false>,
        M::Outsd => repeated::<u32, false>,
        _ => return None,
    })
}

fn port(cpu: &Cpu, op: &Op) -> u16 {
    if op.extra != 0 {
        op.imm as u16 & 0xff
    } else {
        cpu.reg(RDX)
    }
}

fn input<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let port = port(cpu, op);
    cpu.check_port(port, T::SIZE)?;
    let value = cpu.port_access(port, T::SIZE, None);
    cpu.set_reg(0, T::of(value));
    Ok(())
}

fn output<T: Int>(cpu: &mut Cpu, op: &Op) -> Result {
    let port = port(cpu, op);
    cpu.check_port(port, T::SIZE)?;
    let value: T = cpu.reg(0);
    cpu.port_access(port, T::SIZE, Some(value.zx()));
    Ok(())
}

/// INS and OUTS, with or without a REP prefix.
fn repeated<T: Int, const IN: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    cpu.check_port(cpu.reg(RDX), T::SIZE)?;
    if op.extra == 0 {
        return one::<T, IN>(cpu, op);
    }
    let mask = u64::MAX >> op.address_cut;
    // Single-stepping traps after each element (SDM vol. 3, 18.3.1.4).
    let burst = if cpu.flags.system().contains(Rflags::TF) {
        1
    } else {
        BURST
    };
    for _ in 0..burst {
        if cpu.gpr[RCX as usize] & mask == 0 {
            break;
        }
        one::<T, IN>(cpu, op)?;
        let count = (cpu.gpr[RCX as usize] & mask) - 1;
        set_pointer(cpu, RCX, mask, count);
        if cpu.stop || cpu.mailbox.has_mail() {
            break;
        }
    }
    if cpu.gpr[RCX as usize] & mask == 0 {
        cpu.finish(op);
    } else {
        // Not done: interrupts come between two iterations.
        cpu.rip = cpu.rip_of(op);
        cpu.attend();
    }
    Ok(())
}

/// Writes an address or count register of the instruction's address size.
fn set_pointer(cpu: &mut Cpu, slot: u8, mask: u64, value: u64) {
    match mask {
        0xffff => cpu.set_reg(slot, value as u16),
        0xffff_ffff => cpu.set_reg(slot, value as u32),
        _ => cpu.set_reg(slot, value),
    }
}

fn one<T: Int, const IN: bool>(cpu: &mut Cpu, op: &Op) -> Result {
    let mask = u64::MAX >> op.address_cut;
    let port = cpu.reg(RDX);
    let slot = if IN { RDI } else { RSI };
    let offset = cpu.gpr[slot as usize] & mask;
    if IN {
        let es = if cpu.is_64bit() {
            Seg::long(0)
        } else {
            Seg::legacy(0)
        };
        // The destination first: a port must not be read for nothing.
        let place = cpu.place_at(es, offset, T::SIZE)?;
        let value = cpu.port_access(port, T::SIZE, None);
        // While the port was read, another vCPU may have begun to watch the page.
        cpu.put_bytes(place, &value.to_le_bytes()[..T::SIZE]);
    } else {
        let value: T = cpu.load_at(op.segment, offset)?;
        cpu.port_access(port, T::SIZE, Some(value.zx()));
    }
    let step = T::SIZE as u64;
    let next = if cpu.flags.df() {
        offset.wrapping_sub(step)
    } else {
        offset.wrapping_add(step)
    };
    set_pointer(cpu, slot, mask, next & mask);
    Ok(())
}

impl Cpu {
    /// Permission for `bytes` ports from `port` on: by IOPL, else by the I/O permission bitmap of
    /// the TSS (SDM vol. 1, 20.5).
    fn check_port(&mut self, port: u16, bytes: usize) -> Result {
        let flags = self.flags.system();
        if !self.protected_mode() || self.cpl <= flags.iopl() && !flags.contains(Rflags::VM) {
            return Ok(());
        }
        const MAP_BASE: u64 = 102;
        let limit = u64::from(self.tr.limit);
        if self.tr.unusable || self.tr.kind() & 8 == 0 || limit < MAP_BASE + 1 {
            return self.general_protection(0);
        }
        let map: u16 = self.load_system(self.tr.base.wrapping_add(MAP_BASE))?;
        let first = u64::from(map) + u64::from(port / 8);
        // Two bytes are always read, since the ports may lie across.
        if first + 1 > limit {
            return self.general_protection(0);
        }
        let bits: u16 = self.load_system(self.tr.base.wrapping_add(first))?;
        let wanted = (1u16 << bytes) - 1;
        if bits >> (port % 8) & wanted != 0 {
            return self.general_protection(0);
        }
        Ok(())
    }

    fn port_access(&mut self, port: u16, bytes: usize, write: Option<u64>) -> u64 {
        self.note_port(port, bytes as u64);
        self.machine_access(Access {
            space: Space::Port,
            address: port.into(),
            bytes: bytes as u8,
            write,
        })
    }
}
