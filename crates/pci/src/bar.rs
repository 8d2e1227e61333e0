//! Base address registers (PCI 3.0, 6.2.5.1).

/// What a base address register decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes two registers.
    Memory64,
}

impl BarKind {
    /// The read-only bits at the bottom of the register. No region is prefetchable: reads of
    /// device registers have side effects.
    pub(crate) const fn type_bits(self) -> u32 {
        match self {
            Self::Io => 0b01,
            Self::Memory32 => 0b000,
            Self::Memory64 => 0b100,
        }
    }
}

/// An address space that functions decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoder {
    /// Port space.
    Io,
    /// Memory space.
    Memory,
}

/// One implemented base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) kind: BarKind,
    /// Length in bytes, a power of two.
    pub(crate) size: u64,
}

impl Bar {
    /// The address bits, which are writable.
    pub(crate) const fn mask(self) -> u64 {
        !(self.size - 1)
    }

    pub(crate) const fn decoder(self) -> Decoder {
        match self.kind {
            BarKind::Io => Decoder::Io,
            BarKind::Memory32 | BarKind::Memory64 => Decoder::Memory,
        }
    }
}

/// A range of addresses that a function decodes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// Which base address register, 0 to 5.
    pub bar: u8,
    /// Ports or memory.
    pub decoder: Decoder,
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}
