//! Programs as bytes, with labels.

use std::collections::HashMap;

/// Code for one place.
#[derive(Default)]
pub(crate) struct Code {
    bytes: Vec<u8>,
    labels: HashMap<&'static str, usize>,
    /// Where 32-bit displacements to labels are.
    uses: Vec<(usize, &'static str)>,
}

impl Code {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// These bytes.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Names this place.
    pub(crate) fn label(mut self, name: &'static str) -> Self {
        assert!(self.labels.insert(name, self.bytes.len()).is_none());
        self
    }

    /// A branch with this opcode and a 32-bit displacement.
    pub(crate) fn branch(mut self, opcode: &[u8], to: &'static str) -> Self {
        self.bytes.extend_from_slice(opcode);
        self.uses.push((self.bytes.len(), to));
        self.raw(&[0; 4])
    }

    /// Bytes of this value up to offset `end`.
    pub(crate) fn fill_to(mut self, end: usize, byte: u8) -> Self {
        assert!(self.bytes.len() <= end, "the code before is shorter");
        self.bytes.resize(end, byte);
        self
    }

    /// `body`, so many times; it leaves RCX alone, which counts down.
    pub(crate) fn rounds(self, count: u32, body: &[u8]) -> Self {
        const RCX: u8 = 1;
        let code = self.set(RCX, count.into()).label("loop").raw(body);
        // dec ecx; jnz
        code.raw(&[0xff, 0xc9]).branch(&[0x0f, 0x85], "loop")
    }

    /// `mov r64, value`; `register` below 8.
    pub(crate) fn set(self, register: u8, value: u64) -> Self {
        self.raw(&[0x48, 0xb8 + register]).raw(&value.to_le_bytes())
    }

    /// Ends the program with `result`: `mov al, result; out 0xf4, al; jmp $`.
    pub(crate) fn end(self, result: u8) -> Self {
        self.raw(&[0xb0, result, 0xe6, 0xf4, 0xeb, 0xfe])
    }

    /// The bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        for (at, name) in &self.uses {
            let distance = self.labels[name] as i64 - (*at as i64 + 4);
            self.bytes[*at..at + 4].copy_from_slice(&(distance as i32).to_le_bytes());
        }
        self.bytes
    }
}
