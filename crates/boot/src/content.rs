//! What a loader reads from, wherever it is kept.

use memory::{GuestMemory, OutOfRange};
use std::{fmt, io};

/// A kernel file or a part of an initrd: bytes in memory, or a file that is read at every start,
/// so that it takes no memory while the guest runs.
pub trait Content: fmt::Debug + Send + Sync {
    /// How many bytes there are, the same each time.
    fn size(&self) -> u64;

    /// Fills `bytes` with those from offset `at` on.
    ///
    /// # Errors
    /// If they can't be read, are no longer the same, or there are less.
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl<T: AsRef<[u8]> + fmt::Debug + Send + Sync> Content for T {
    fn size(&self) -> u64 {
        self.as_ref().len() as u64
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let from = self.as_ref().get(at..).and_then(|b| b.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Why content is not in guest memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// It can't be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// There is no memory for it.
    #[error(transparent)]
    Memory(#[from] OutOfRange),
}

/// The first bytes of `content`: `len`, or all if there are less.
pub(crate) fn head(content: &dyn Content, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; content.size().min(len as u64) as usize];
    content.read(0, &mut bytes)?;
    Ok(bytes)
}

/// Copies `len` bytes of `content` from offset `at` on to guest-physical address `gpa`.
pub(crate) fn copy(
    content: &dyn Content,
    mut at: u64,
    memory: &GuestMemory,
    mut gpa: u64,
    mut len: u64,
) -> Result<(), CopyError> {
    let mut buffer = vec![0; len.min(1 << 16) as usize];
    while len != 0 {
        let step = len.min(buffer.len() as u64);
        let piece = &mut buffer[..step as usize];
        content.read(at, piece)?;
        memory.write(gpa, piece)?;
        (at, gpa, len) = (at + step, gpa + step, len - step);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn bytes_are_content() {
        let content: &dyn Content = &b"0123456789";
        assert_eq!(content.size(), 10);
        let mut bytes = [0; 4];
        content.read(6, &mut bytes).unwrap();
        assert_eq!(&bytes, b"6789");
        for beyond in [7, 11, u64::MAX] {
            let error = content.read(beyond, &mut bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(head(content, 3).unwrap(), b"012");
        assert_eq!(head(content, 11).unwrap(), b"0123456789");
    }

    #[test]
    fn all_of_long_content_is_copied_and_no_more() {
        let (memory, _) = machine(64).unwrap();
        let bytes: Vec<u8> = (0..200_001u32).map(|i| (i % 251) as u8).collect();
        copy(&bytes, 1, &memory, 0x10_0003, 200_000).unwrap();
        let mut copied = vec![0; 200_001];
        memory.read(0x10_0003, &mut copied).unwrap();
        assert!(copied[..200_000] == bytes[1..]);
        assert_eq!(copied[200_000], 0);
        let error = copy(&bytes, 1, &memory, 0x10_0000, 200_001).unwrap_err();
        assert!(matches!(error, CopyError::Read(_)));
        let error = copy(&bytes, 0, &memory, (64 << 20) - 1, 2).unwrap_err();
        assert!(matches!(error, CopyError::Memory(_)));
    }
}
