//! Accesses that reach a device.

/// How many bytes an access has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Width {
    /// 1 byte.
    Byte = 1,
    /// 2 bytes.
    Word = 2,
    /// 4 bytes.
    Dword = 4,
    /// 8 bytes; memory only.
    Qword = 8,
}

impl Width {
    /// The width of `bytes` bytes.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// Number of bytes.
    pub const fn bytes(self) -> usize {
        self as usize
    }

    /// Number of bits.
    pub const fn bits(self) -> u32 {
        self as u32 * 8
    }

    /// A value with all of its bits set; also what a read gets where nothing answers.
    pub const fn ones(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }
}

/// A device with registers in port space.
pub trait PortIo: Send {
    /// Reads `width` (at most [`Width::Dword`]) at `port`, the absolute number. Bits above the
    /// width are ignored.
    fn port_read(&mut self, port: u16, width: Width) -> u32;

    /// Writes `width` (at most [`Width::Dword`]) at `port`. Bits of `value` above the width are 0.
    fn port_write(&mut self, port: u16, width: Width, value: u32);
}

/// A device with registers in memory space.
pub trait Mmio: Send {
    /// Reads at `offset` from the start of the device's range. The access lies wholly in the
    /// range but may be unaligned. Bits above the width are ignored.
    fn mmio_read(&mut self, offset: u64, width: Width) -> u64;

    /// Writes at `offset`. Bits of `value` above the width are 0.
    fn mmio_write(&mut self, offset: u64, width: Width, value: u64);
}
