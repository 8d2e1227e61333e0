//! Executable memory: one memory object, mapped writable and mapped executable.
#![expect(unsafe_code, reason = "maps memory")]
// UNSAFETY: creates two mappings that live as long as the process and writes to one of them,
// below the high-water mark that it alone keeps.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::thread::{MembarrierCommand, membarrier};

/// How much the pool may hold. Memory is committed as it is used.
pub(crate) const CAPACITY: usize = 16 << 20;

/// Stubs start on their own cache line's quarter, as branch targets do.
pub(crate) const ALIGNMENT: usize = 16;

/// An append-only area of code. Never unmapped: addresses in it stay valid for ever.
#[derive(Debug)]
pub(crate) struct CodeMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    used: usize,
    /// Whether other threads can be made to serialise.
    barrier: bool,
}

// SAFETY: the two pointers are to mappings of the whole process, which no thread unmaps;
// writing goes through `&mut self`.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// Maps [`CAPACITY`] bytes, all `INT3` as soon as they are touched by an append.
    ///
    /// # Errors
    /// What the kernel says: no memory, or executable memory objects are forbidden
    /// (`vm.memfd_noexec`).
    pub(crate) fn new() -> Result<Self, Errno> {
        let name = "native-stubs";
        // Kernels before 6.3 do not know MFD_EXEC and need no flag.
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::EXEC)
            .or_else(|_| memfd_create(name, MemfdFlags::CLOEXEC))?;
        ftruncate(&file, CAPACITY as u64)?;
        let map = |protection| {
            // SAFETY: the kernel chooses the place of a new mapping, so nothing is replaced.
            let address = unsafe {
                mmap(
                    ptr::null_mut(),
                    CAPACITY,
                    protection,
                    MapFlags::SHARED,
                    &file,
                    0,
                )
            }?;
            NonNull::new(address.cast::<u8>()).ok_or(Errno::NOMEM)
        };
        Ok(Self {
            writable: map(ProtFlags::READ | ProtFlags::WRITE)?,
            executable: map(ProtFlags::READ | ProtFlags::EXEC)?,
            used: 0,
            barrier: membarrier(MembarrierCommand::RegisterPrivateExpeditedSyncCore).is_ok(),
        })
    }

    /// The addresses at which code runs.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        let start = self.executable.as_ptr() as usize;
        start..start + CAPACITY
    }

    /// Whether nothing was appended yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Appends `code` and returns the address at which it runs, or `None` if there is no room.
    pub(crate) fn append(&mut self, code: &[u8]) -> Option<NonNull<c_void>> {
        let length = code.len().next_multiple_of(ALIGNMENT);
        if length > CAPACITY - self.used {
            return None;
        }
        let start = self.used;
        self.used += length;
        // SAFETY: `start + length` is at most the mapping's size, checked above, and nobody
        // else writes to the mapping.
        unsafe {
            let to = self.writable.as_ptr().add(start);
            ptr::write_bytes(to, 0xcc, length);
            ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
        }
        self.serialise();
        // SAFETY: as above, within the mapping.
        Some(unsafe { self.executable.add(start) }.cast())
    }

    /// Makes every thread of the process see new code (Intel SDM vol. 3A, 8.1.3: code written
    /// through another address needs a serialising instruction before it is executed).
    fn serialise(&self) {
        let done = self.barrier && membarrier(MembarrierCommand::PrivateExpeditedSyncCore).is_ok();
        if !done {
            // The handle reaches other threads through a lock, but only this thread can be
            // serialised from here. No processor is known to have fetched the bytes before,
            // as nothing ever jumped near them.
            std::hint::black_box(core::arch::x86_64::__cpuid(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_is_both_writable_and_executable() {
        let mut memory = CodeMemory::new().expect("memory for code");
        memory.append(&[0xc3]).expect("room");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let ours: Vec<_> = maps
            .lines()
            .filter(|line| line.contains("native-stubs"))
            .collect();
        assert!(ours.len() >= 2);
        assert!(ours.iter().all(|line| !line.contains("rwx")), "{ours:?}");
    }

    #[test]
    fn a_full_memory_refuses() {
        let mut memory = CodeMemory::new().expect("memory for code");
        memory.used = CAPACITY - 16;
        assert!(memory.append(&[0xcc; 17]).is_none());
        assert!(memory.append(&[0xcc; 16]).is_some());
        assert!(memory.append(&[0xcc]).is_none());
    }
}
