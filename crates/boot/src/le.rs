//! Little-endian fields in byte slices.

/// The two bytes at `at`, if they are there.
pub(crate) fn u16(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

/// The four bytes at `at`, if they are there.
pub(crate) fn u32(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

/// The eight bytes at `at`, if they are there.
pub(crate) fn u64(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// A table under construction, written field by field at fixed offsets.
pub(crate) struct Fields<const N: usize>(pub(crate) [u8; N]);

impl<const N: usize> Fields<N> {
    pub(crate) const fn new() -> Self {
        Self([0; N])
    }

    /// Writes `value` at `at`.
    ///
    /// # Panics
    /// If it does not fit: the offsets are constants of ours.
    pub(crate) fn put(&mut self, at: usize, value: impl AsRef<[u8]>) -> &mut Self {
        let value = value.as_ref();
        self.0[at..at + value.len()].copy_from_slice(value);
        self
    }

    pub(crate) fn u8(&mut self, at: usize, value: u8) -> &mut Self {
        self.put(at, [value])
    }

    pub(crate) fn u16(&mut self, at: usize, value: u16) -> &mut Self {
        self.put(at, value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.put(at, value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.put(at, value.to_le_bytes())
    }

    /// Writes the byte at `at` that makes the bytes in `range` sum up to 0.
    pub(crate) fn checksum(&mut self, at: usize, range: std::ops::Range<usize>) -> &mut Self {
        self.0[at] = 0;
        self.0[at] = checksum(&self.0[range]);
        self
    }
}

/// The byte that makes `bytes` sum up to 0 with it.
pub(crate) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}
