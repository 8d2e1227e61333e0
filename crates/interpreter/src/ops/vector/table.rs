//! What the host is to execute, kept once for each distinct instruction.

use iced_x86::{Code, Instruction, OpKind, Register};
use native::{Native, Operation, Refusal};
use std::collections::HashMap;

/// Operations kept until everything is decoded anew. Real programs need some thousands.
const OPERATIONS_MAX: usize = 1 << 15;

/// The operations of one vCPU.
///
/// An [`Operation`] does not fit into an [`crate::op::Op`], which holds its index here instead.
/// The table grows only while code is decoded: the decoder looks at [`VectorTable::is_full`]
/// before each block, so that a guest which makes up ever new instructions gains nothing.
#[derive(Default)]
pub(crate) struct VectorTable {
    operations: Vec<Operation>,
    index: HashMap<Key, u32>,
}

/// What an operation depends on: all of an instruction but its place and its address.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    code: Code,
    registers: [Register; 5],
    immediate: u8,
    /// Index register and scale of a gather's addresses.
    vsib: (Register, u32),
}

impl Key {
    fn of(instruction: &Instruction) -> Self {
        let mut key = Self {
            code: instruction.code(),
            registers: [Register::None; 5],
            immediate: 0,
            vsib: (Register::None, 0),
        };
        for operand in 0..instruction.op_count() {
            match instruction.op_kind(operand) {
                OpKind::Register => {
                    key.registers[operand as usize] = instruction.op_register(operand);
                }
                OpKind::Immediate8 => key.immediate = instruction.immediate8(),
                _ => {}
            }
        }
        if instruction.is_vsib() {
            key.vsib = (instruction.memory_index(), instruction.memory_index_scale());
        }
        key
    }
}

impl VectorTable {
    /// The operation for `instruction` and its index, which is valid until the table is cleared.
    ///
    /// # Errors
    /// If it is none that the host executes.
    pub(super) fn intern(
        &mut self,
        native: &Native,
        instruction: &Instruction,
    ) -> Result<(u32, Operation), Refusal> {
        let key = Key::of(instruction);
        if let Some(&index) = self.index.get(&key) {
            return Ok((index, self.operations[index as usize]));
        }
        let operation = native.translate(instruction)?;
        let index = self.operations.len() as u32;
        self.operations.push(operation);
        self.index.insert(key, index);
        Ok((index, operation))
    }

    /// The operation at `index`.
    #[inline(always)]
    pub(super) fn get(&self, index: u32) -> Operation {
        self.operations[index as usize]
    }

    /// How many operations are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether it is time for [`VectorTable::clear`]. A block's worth may be added all the same.
    pub(crate) fn is_full(&self) -> bool {
        self.operations.len() >= OPERATIONS_MAX
    }

    /// Drops all operations. Whoever holds an index must drop it too.
    pub(crate) fn clear(&mut self) {
        self.operations.clear();
        self.index.clear();
    }
}
