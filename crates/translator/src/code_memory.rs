//! Memory for translated code: one memory object, mapped writable and mapped executable, at two
//! addresses. It has no name: what is mapped from a file, a `memfd` too, `perf` takes for a program,
//! and does not look for the map of [`crate::perf_map`].
//!
//! # Seeing new code
//! Only the thread of the vCPU writes to its code memory and executes it, so no other processor
//! needs to be told. But it writes through another linear address than it fetches from. Every
//! current x86 CPU finds that out: stores are compared with the physical addresses of cached and
//! prefetched instructions, which is what QEMU's `split-wx` relies on without further ado. What
//! the manuals promise is less: the check of prefetched instructions may go by linear address,
//! and who writes through an alias has to execute a serializing instruction before the new code
//! (SDM vol. 3A, "Self-Modifying Code", and "Handling Self- and Cross-Modifying Code"; APM vol. 2,
//! "Cross-Modifying Code" and "Self-Modifying Code").
//!
//! So [`CodeMemory::publish`] serializes, if something was written since the last time. User
//! programs have three such instructions: SERIALIZE, on CPUs since 2021; CPUID, which always
//! exits to the hypervisor when the host is a virtual machine (4.5 us were measured on one); and
//! IRET to the next instruction, which never exits (0.1 us on the same host). Linux serializes
//! itself with the first or else the third, for the same reason.
#![expect(unsafe_code, reason = "maps memory and writes code to it")]
// UNSAFETY: owns two mappings of one size, unmapped at drop. Rust code only ever writes to one,
// through `&mut self` and inside of its bounds; the other is for the CPU to execute.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::{fmt, io};

use crate::store::PAGE;
use crate::window::place;
use rustix::mm::{
    MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap_anonymous, mprotect, mremap, munmap,
};
use std::ffi::c_void;

/// The most bytes: a relative jump reaches from any byte to any other.
pub(crate) const CAPACITY_MAX: usize = 1 << 31;

/// The translated code of one vCPU. Memory is committed as it is written to.
pub(crate) struct CodeMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    capacity: usize,
    /// Whether something was written that [`Self::publish`] did not see.
    is_new: bool,
}

// SAFETY: the pointers are to mappings of the whole process that this value owns. Writing goes
// through `&mut self`.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// Maps room for `capacity` bytes of code, which is a multiple of the page size.
    ///
    /// # Errors
    /// `InvalidInput` if `capacity` is 0 or above [`CAPACITY_MAX`]; else what the kernel says: no
    /// memory, or none that is executable.
    pub(crate) fn new(capacity: usize) -> io::Result<Self> {
        Self::create(capacity, false)
    }

    /// As [`CodeMemory::new`], for a jail: where guest programs have nothing.
    ///
    /// # Errors
    /// As there, and if the host has no such place.
    pub(crate) fn in_jail(capacity: usize) -> io::Result<Self> {
        Self::create(capacity, true)
    }

    fn create(capacity: usize, in_jail: bool) -> io::Result<Self> {
        if capacity == 0 || capacity > CAPACITY_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let protection = ProtFlags::READ | ProtFlags::EXEC;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let map = |at: *mut c_void, flags| {
            // SAFETY: a new mapping, which replaces nothing.
            unsafe { mmap_anonymous(at, capacity, protection, flags) }
        };
        let executable = if in_jail {
            let flags = flags | MapFlags::FIXED_NOREPLACE;
            place::map(capacity, |at| map(at as *mut _, flags))?.cast()
        } else {
            NonNull::new(map(ptr::null_mut(), flags)?.cast()).ok_or(io::ErrorKind::OutOfMemory)?
        };
        let writable = map_again(executable, capacity).inspect_err(|_| {
            // SAFETY: mapped above, and known to nobody.
            let unmapped = unsafe { munmap(executable.as_ptr().cast(), capacity) };
            debug_assert!(unmapped.is_ok(), "{unmapped:?}");
        })?;
        Ok(Self {
            writable,
            executable,
            capacity,
            is_new: false,
        })
    }

    /// Makes all of it zero again but the first `kept` bytes, which stay what they are all the
    /// while: code in there may be running, as a jail's stub is in its second thread.
    ///
    /// # Errors
    /// If the host does not empty the memory.
    ///
    /// # Panics
    /// If it does not have so many bytes.
    pub(crate) fn erase_behind(&mut self, kept: usize) -> io::Result<()> {
        let pages = kept.next_multiple_of(PAGE).min(self.capacity);
        self.write_data(kept, &vec![0; pages - kept]);
        let advice = rustix::mm::Advice::LinuxRemove;
        // SAFETY: zeroes the mapping from `pages` on, of which `&mut self` is the only access, and
        // whose code does not run, as the thread that runs it, or lets it run, is here.
        unsafe {
            let from = self.writable.as_ptr().add(pages);
            rustix::mm::madvise(from.cast(), self.capacity - pages, advice)
        }?;
        self.is_new = true;
        Ok(())
    }

    /// Its size in bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The addresses at which the code runs.
    pub(crate) fn range(&self) -> Range<usize> {
        let start = self.executable.as_ptr() as usize;
        start..start + self.capacity
    }

    /// The address at which the code at `offset` runs. One past the end is an address too.
    ///
    /// # Panics
    /// If `offset` is out of bounds.
    pub(crate) fn address(&self, offset: usize) -> usize {
        assert!(offset <= self.capacity, "an offset into the code memory");
        self.executable.as_ptr() as usize + offset
    }

    /// The offset of the code that runs at `address`, if that is here.
    pub(crate) fn offset_of(&self, address: usize) -> Option<usize> {
        let offset = address.wrapping_sub(self.executable.as_ptr() as usize);
        (offset < self.capacity).then_some(offset)
    }

    /// Writes `bytes` at `offset`. To be executed after [`Self::publish`].
    ///
    /// # Panics
    /// If they don't fit.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.write_data(offset, bytes);
        self.is_new = true;
    }

    /// Writes `bytes`, which are not to be executed, at `offset`.
    ///
    /// # Panics
    /// If they don't fit.
    pub(crate) fn write_data(&mut self, offset: usize, bytes: &[u8]) {
        let fits = offset <= self.capacity && bytes.len() <= self.capacity - offset;
        assert!(fits, "code fits the code memory");
        // SAFETY: in bounds, checked above. `&mut self` is the only access: the code does not
        // run, as the thread that runs it is here. `bytes` is no part of the mapping, since
        // references into it borrow `self`.
        unsafe {
            let to = self.writable.as_ptr().add(offset);
            ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// The `len` bytes at `offset`.
    ///
    /// # Panics
    /// If they are out of bounds.
    pub(crate) fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        let fits = offset <= self.capacity && len <= self.capacity - offset;
        assert!(fits, "bytes of the code memory");
        // SAFETY: in bounds, checked above, of a mapping that begins as zeros. It is written to
        // through `&mut self` only.
        unsafe { std::slice::from_raw_parts(self.writable.as_ptr().add(offset), len) }
    }

    /// Reads what was written at `offset`.
    ///
    /// # Panics
    /// If there is less.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        let fits = offset <= self.capacity && to.len() <= self.capacity - offset;
        assert!(fits, "what is read is in the code memory");
        // SAFETY: in bounds, checked above. Only `self` writes there, and `to` is no part of the
        // mapping, since no reference into it is ever made.
        unsafe {
            let from = self.writable.as_ptr().add(offset);
            ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len());
        }
    }

    /// Replaces the four bytes at `offset`, the displacement of a jump say. To be executed after
    /// [`Self::publish`]; nobody executes them meanwhile.
    ///
    /// # Panics
    /// If `offset` is out of bounds.
    pub(crate) fn patch32(&mut self, offset: usize, value: u32) {
        let fits = offset < self.capacity && self.capacity - offset >= 4;
        assert!(fits, "a patch inside of the code memory");
        // SAFETY: in bounds, checked above. Only `self` writes there.
        unsafe {
            self.writable
                .as_ptr()
                .add(offset)
                .cast::<u32>()
                .write_unaligned(value)
        };
        self.is_new = true;
    }

    /// Makes this thread's CPU execute what was written: call it after writing and before going
    /// to translated code. Costs nothing if nothing was written.
    pub(crate) fn publish(&mut self) {
        if std::mem::take(&mut self.is_new) {
            serialize();
        }
    }
}

/// Maps the `len` bytes of shared memory at `old` a second time, to be written.
fn map_again(old: NonNull<u8>, len: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: with an old length of 0, the old mapping stays, and its memory is mapped once more
    // (mremap(2)), where the kernel likes.
    let new = unsafe { mremap(old.as_ptr().cast(), 0, len, MremapFlags::MAYMOVE) }?;
    // SAFETY: it was mapped just now, and nobody knows it.
    let made = unsafe { mprotect(new, len, MprotectFlags::READ | MprotectFlags::WRITE) };
    made.inspect_err(|_| {
        // SAFETY: as above.
        let unmapped = unsafe { munmap(new, len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    })?;
    NonNull::new(new.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        for start in [self.writable, self.executable] {
            // SAFETY: mapped by `new` with this size. No reference to it exists, and its code
            // does not run, as its owner is here.
            let unmapped = unsafe { munmap(start.as_ptr().cast(), self.capacity) };
            debug_assert!(unmapped.is_ok(), "{unmapped:?}");
        }
    }
}

impl fmt::Debug for CodeMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeMemory")
            .field("range", &self.range())
            .finish_non_exhaustive()
    }
}

/// Executes the cheapest serializing instruction of the host (SDM vol. 3A, "Serializing
/// Instructions").
fn serialize() {
    if has_serialize() {
        // SAFETY: `SERIALIZE` (0f 01 e8), which the CPU has, changes no register and no flag.
        unsafe { asm!(".byte 0x0f, 0x01, 0xe8", options(nostack, preserves_flags)) };
    } else {
        return_to_self();
    }
}

/// Whether the CPU has `SERIALIZE` (CPUID.7.0:EDX bit 14).
fn has_serialize() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & 1 << 14 != 0)
}

/// Serializes by an IRET to the next instruction, with everything as it was.
fn return_to_self() {
    // SAFETY: pops what is pushed here: the stack pointer, flags and segments of this very code,
    // so that only the instruction pointer changes, to the next instruction. Pushing is allowed
    // without `nostack`. A return to the same privilege level touches no other segment.
    unsafe {
        asm!(
            "mov {old:r}, rsp",
            "mov {segment:e}, ss",
            "push {segment:r}",
            "push {old:r}",
            "pushfq",
            "mov {segment:e}, cs",
            "push {segment:r}",
            "lea {segment:r}, [rip + 2f]",
            "push {segment:r}",
            "iretq",
            "2:",
            old = out(reg) _,
            segment = out(reg) _,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> CodeMemory {
        CodeMemory::new(4 * PAGE).expect("memory for code")
    }

    /// Calls the code at `offset`, which returns a number.
    fn call(memory: &CodeMemory, offset: usize) -> u32 {
        // SAFETY: the tests wrote a function there that only changes RAX.
        let function =
            unsafe { std::mem::transmute::<usize, extern "C" fn() -> u32>(memory.address(offset)) };
        function()
    }

    /// `mov eax, 0x11223344; ret`, the immediate at an offset of 4 if this starts at 3.
    const FUNCTION: [u8; 6] = [0xb8, 0x44, 0x33, 0x22, 0x11, 0xc3];

    #[test]
    fn no_address_is_both_writable_and_executable() {
        let mut memory = memory();
        memory.write(0, &FUNCTION);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let starts = [memory.writable, memory.executable].map(|p| p.as_ptr() as usize);
        let flags = starts.map(|start| {
            let line = maps
                .lines()
                .find(|line| line.starts_with(&format!("{start:x}-")))
                .expect("a mapping of its own");
            // By this name `perf` knows code that is made at run time.
            assert!(line.contains("/dev/zero"), "{line}");
            line.split(' ').nth(1).expect("flags").to_owned()
        });
        assert_eq!(flags, ["rw-s", "r-xs"]);
        assert!(!maps.contains("rwx"), "{maps}");
    }

    #[test]
    fn code_runs_once_it_is_written_and_again_once_it_is_patched() {
        let mut memory = memory();
        memory.write(2, &FUNCTION);
        memory.publish();
        assert_eq!(call(&memory, 2), 0x1122_3344);
        for value in 0..10_000 {
            memory.patch32(3, value);
            assert!(memory.is_new);
            memory.publish();
            assert!(!memory.is_new);
            assert_eq!(call(&memory, 2), value);
        }
    }

    #[test]
    fn a_return_to_self_changes_nothing() {
        /// All but the arithmetic flags.
        const SYSTEM_FLAGS: u64 = !0x8d5;
        let state = || {
            let (stack, flags): (u64, u64);
            // SAFETY: reads registers.
            unsafe { asm!("mov {}, rsp", "pushfq", "pop {}", out(reg) stack, out(reg) flags) };
            (stack, flags & SYSTEM_FLAGS)
        };
        let before = state();
        return_to_self();
        assert_eq!(state(), before);
    }

    #[test]
    fn addresses_and_offsets_correspond() {
        let memory = memory();
        assert_eq!(memory.capacity(), 4 * PAGE);
        assert_eq!(memory.range(), memory.address(0)..memory.address(4 * PAGE));
        assert_eq!(memory.offset_of(memory.address(77)), Some(77));
        assert_eq!(memory.offset_of(memory.address(0) - 1), None);
        assert_eq!(memory.offset_of(memory.address(4 * PAGE)), None);
    }

    #[test]
    fn the_last_byte_can_be_written() {
        let mut memory = memory();
        memory.write(4 * PAGE - 1, &[0xc3]);
        memory.write(4 * PAGE, &[]);
        memory.patch32(4 * PAGE - 4, 0xcccc_cccc);
    }

    #[test]
    #[should_panic(expected = "code fits")]
    fn code_past_the_end_is_refused() {
        memory().write(4 * PAGE - 1, &[0xc3, 0xc3]);
    }

    #[test]
    #[should_panic(expected = "code fits")]
    fn an_offset_that_would_wrap_is_refused() {
        memory().write(usize::MAX, &[0xc3]);
    }

    #[test]
    #[should_panic(expected = "a patch inside")]
    fn a_patch_past_the_end_is_refused() {
        memory().patch32(4 * PAGE, 0);
    }

    #[test]
    fn sizes_that_jumps_do_not_span_are_refused() {
        for capacity in [0, CAPACITY_MAX + 1] {
            let error = CodeMemory::new(capacity).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn what_is_kept_is_there_all_the_while() {
        use std::sync::atomic::{AtomicBool, Ordering};
        const KEPT: usize = 5000;
        let mut memory = CodeMemory::new(64 * PAGE).expect("memory");
        memory.write(0, &[0x90; KEPT]);
        let code = memory.address(0);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    for at in [0, KEPT - 1] {
                        // SAFETY: the mapping is there until the thread has ended.
                        let byte = unsafe { ((code + at) as *const u8).read_volatile() };
                        assert_eq!(byte, 0x90);
                    }
                }
            });
            for round in 0..2000 {
                memory.write(KEPT, &[0xcc; 40 * PAGE]);
                memory.erase_behind(KEPT).expect("the host empties it");
                let all = memory.bytes(0, memory.capacity());
                assert!(all[KEPT..].iter().all(|b| *b == 0), "round {round}");
            }
            ended.store(true, Ordering::Relaxed);
            reader.join().expect("it was there");
        });
    }
}
