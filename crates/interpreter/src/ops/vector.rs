//! To be written.
use crate::cpu::Cpu;
use crate::op::{Handler, Op};
use iced_x86::Instruction;

pub(super) fn select(_: &Cpu, _: &Instruction, _: &mut Op) -> Option<Handler> {
    None
}
