//! x87, MMX, SSE and AVX instructions, and those that save and restore their registers.

mod table;

pub(crate) use table::VectorTable;

use crate::cpu::Cpu;
use crate::op::{Handler, Op};
use iced_x86::Instruction;

/// The handler for `instruction`, which was decoded from `code`.
pub(super) fn select(_: &mut Cpu, _: &Instruction, _: &[u8], _: &mut Op) -> Option<Handler> {
    None
}
