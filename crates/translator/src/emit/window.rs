//! Code for a jail: the guest's memory is at the guest's addresses, so instructions stay as they
//! are but for addresses relative to RIP, which is another one here, and for jumps.

use super::Emitter;
use super::relocated;
use crate::asm::{Mem, Reg};
use crate::context::field;
use crate::plan::{Class, Insn};
use iced_x86::{Code, Instruction, MemoryOperand, OpKind, Register};

impl Emitter<'_> {
    /// Translates `insn` if it differs here; `false` if not.
    pub(super) fn plain(&mut self, number: usize, insn: &Insn) -> bool {
        match insn.class {
            Class::Memory(access) if access.size != 0 && insn.is_relative() => self.relative(insn),
            Class::PushMemory | Class::BitString(_) if insn.is_relative() => self.relative(insn),
            Class::Memory(_)
            | Class::Push
            | Class::Pop
            | Class::PushMemory
            | Class::Leave
            | Class::BitString(_) => self.copy(insn),
            Class::Call(target) => {
                self.push_literal(insn);
                self.go(insn.at, target);
            }
            Class::CallIndirect => {
                self.take_temporary(0);
                self.plain_target(insn);
                let t0 = self.temporary(0);
                self.asm.store_field(field!(target), t0);
                self.push_literal(insn);
                self.asm.load_field(t0, field!(target));
                let site = self.undo_site(number, insn, -8);
                self.indirect(Some(site));
            }
            Class::JumpIndirect => {
                self.take_temporary(0);
                self.plain_target(insn);
                let site = self.undo_site(number, insn, 0);
                self.indirect(Some(site));
            }
            Class::Return(release) => {
                self.take_temporary(0);
                let t0 = self.temporary(0);
                self.asm.pop(t0);
                if release != 0 {
                    self.move_stack(release.into());
                }
                let site = self.undo_site(number, insn, 8 + i32::from(release));
                self.indirect(Some(site));
            }
            _ => return false,
        }
        true
    }

    /// The instruction with its operand at its address, or with that in temporary 0. While it can
    /// fault, this is the only register that is taken ([`Block::held`](crate::block::Block::held)).
    fn relative(&mut self, insn: &Insn) {
        if let Some(address) = insn.near_operand(self.linear) {
            return self.encode(&absolute(&insn.instruction, address));
        }
        self.take_temporary(0);
        let t0 = self.temporary(0);
        self.load_relative(t0, &insn.instruction);
        self.encode(&relocated(&insn.instruction, Mem::base(t0, 0)));
        self.asm.restore(1 << t0);
    }

    /// Saves what the guest has in temporary `n`, in a window.
    pub(super) fn take_temporary(&mut self, n: usize) {
        let register = self.temporary(n);
        self.asm.spill(1 << register);
    }

    fn load_relative(&mut self, to: Reg, instruction: &Instruction) {
        let disp = instruction.memory_displacement64();
        self.asm.mov_imm(to, self.linear.wrapping_add(disp));
    }

    /// The target in a register or memory operand into temporary 0.
    fn plain_target(&mut self, insn: &Insn) {
        let t0 = self.temporary(0);
        let from = &insn.instruction;
        if from.op0_kind() == OpKind::Register {
            let register = from.op0_register().number() as Reg;
            return self.asm.mov(t0, register);
        }
        let to = Register::RAX + u32::from(t0);
        let operand = if insn.is_relative() {
            self.load_relative(t0, from);
            MemoryOperand::with_base(to)
        } else {
            MemoryOperand::new(
                from.memory_base(),
                from.memory_index(),
                from.memory_index_scale(),
                from.memory_displacement64() as i64,
                from.memory_displ_size(),
                false,
                from.segment_prefix(),
            )
        };
        let load = Instruction::with2(Code::Mov_r64_rm64, to, operand);
        self.encode(&load.expect("a load of a register"));
    }

    /// Pushes the address of the next instruction.
    fn push_literal(&mut self, insn: &Insn) {
        let value = self.linear.wrapping_add(insn.next().into());
        if let Ok(value) = i32::try_from(value as i64) {
            return self.asm.push_imm(value);
        }
        let at = self.asm.push_relative();
        self.literals.push((at, value));
    }

    /// Puts the constants behind the code.
    pub(super) fn place_literals(&mut self) {
        for (at, value) in std::mem::take(&mut self.literals) {
            self.asm.set_target(at, self.asm.here());
            self.asm.bytes(&value.to_le_bytes());
        }
    }
}

/// The instruction with its memory operand at `address`, sign-extended.
fn absolute(instruction: &Instruction, address: i32) -> Instruction {
    let mut moved = *instruction;
    moved.set_memory_base(Register::None);
    moved.set_memory_displacement64(i64::from(address) as u64);
    moved.set_memory_displ_size(8);
    moved
}
