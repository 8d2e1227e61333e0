//! The bytes of one input, taken from the front.

use device::Width;

/// A cursor over the bytes of an input. At the end it yields zeros: every byte string is an
/// input, and cutting one leaves a simpler one.
#[derive(Debug, Clone)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// The next bytes, at most `max` of them. Two bytes say how many.
    pub(crate) fn bytes(&mut self, max: usize) -> &'a [u8] {
        let len = usize::from(self.u16()) % (max + 1);
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        bytes[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        bytes
    }

    pub(crate) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number below `limit`, which is at most 65536.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        if limit <= 256 {
            usize::from(self.u8()) % limit
        } else {
            usize::from(self.u16()) % limit
        }
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// A value of any size, edges more often than chance has them.
    pub(crate) fn value(&mut self) -> u64 {
        match self.below(10) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (self.u8() % 64),
            3 => u64::MAX >> (self.u8() % 64),
            4 | 5 => self.u8().into(),
            6 => self.u16().into(),
            7 => self.u32().into(),
            _ => self.u64(),
        }
    }

    /// A width of at most `max`.
    pub(crate) fn width(&mut self, max: Width) -> Width {
        let widths = [Width::Byte, Width::Word, Width::Dword, Width::Qword];
        self.pick(&widths).min(max)
    }
}
