//! What the monitor tells a jail: pages that it writes, and that the jail can only read.
#![expect(unsafe_code, reason = "memory shared with another process")]
// UNSAFETY: two mappings of one memory object, owned, of which the writable one is used through
// `&mut self`.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Orders that are given at once.
pub(super) const ORDERS_MAX: usize = 1024;
/// Most gaps between what a jail keeps of its address space.
pub(super) const GAPS_MAX: usize = 4;
/// [`Order::protection`] of one that unmaps.
const UNMAP: i32 = -1;

/// Something that the mapper does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Order {
    pub(super) address: u64,
    /// Bytes.
    pub(super) len: u64,
    /// Where in guest memory.
    pub(super) offset: u64,
    /// As mmap(2) takes it, or -1 to unmap.
    pub(super) protection: i32,
    unused: u32,
}

impl Order {
    /// Maps `len` bytes of guest memory at `offset`.
    pub(super) fn map(address: u64, len: u64, offset: u64, writable: bool) -> Self {
        let write = if writable { libc::PROT_WRITE } else { 0 };
        Self {
            address,
            len,
            offset,
            protection: libc::PROT_READ | write,
            unused: 0,
        }
    }

    /// Unmaps what is there.
    pub(super) fn unmap(address: u64, len: u64) -> Self {
        Self {
            address,
            len,
            protection: UNMAP,
            ..Self::default()
        }
    }
}

/// A program for seccomp(2), as the kernel takes it.
#[repr(C)]
pub(super) struct Filter {
    pub(super) len: u16,
    pub(super) program: u64,
}

/// As the jail's assembly reads it.
#[repr(C)]
pub(super) struct Orders {
    /// What the jail unmaps first, address and length.
    pub(super) gaps: [[u64; 2]; GAPS_MAX],
    pub(super) gap_count: u32,
    /// Descriptors: of guest memory, and of the event by which the mapper says that it is done.
    pub(super) memory: i32,
    pub(super) event: i32,
    /// The runner's stack, when it begins, and its GS base.
    pub(super) stack: u64,
    pub(super) context: u64,
    /// As sigaltstack(2) takes it: address, flags, size.
    pub(super) signal_stack: [u64; 3],
    pub(super) mapper_filter: Filter,
    pub(super) runner_filter: Filter,
    pub(super) programs: [[u64; 16]; 2],
    /// What the mapper writes to its event.
    pub(super) done: u64,
    pub(super) failed: u64,
    /// Changes with each list of orders.
    pub(super) sequence: AtomicU32,
    pub(super) count: u32,
    pub(super) list: [Order; ORDERS_MAX],
}

/// Offset of a field of [`Orders`].
macro_rules! order {
    ($name:ident) => {
        std::mem::offset_of!($crate::window::orders::Orders, $name)
    };
}
pub(super) use order;

/// The two mappings of [`Orders`].
pub(super) struct Board {
    writable: NonNull<Orders>,
    readable: NonNull<Orders>,
}

// SAFETY: owned mappings; writing goes through `&mut self`.
unsafe impl Send for Board {}

const BYTES: usize = size_of::<Orders>().next_multiple_of(4096);

impl Board {
    /// All zero.
    ///
    /// # Errors
    /// If the host gives no memory.
    pub(super) fn new() -> io::Result<Self> {
        let file = memfd_create("jail-orders", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, BYTES as u64)?;
        let map = |protection| {
            // SAFETY: the kernel chooses the place of a new mapping, so nothing is replaced.
            let address = unsafe {
                mmap(
                    std::ptr::null_mut(),
                    BYTES,
                    protection,
                    MapFlags::SHARED,
                    &file,
                    0,
                )
            }?;
            io::Result::Ok(NonNull::new(address.cast()).expect("not null"))
        };
        let readable = crate::window::place::map(BYTES, |at| {
            // SAFETY: `map` asks for places where nothing is.
            unsafe {
                mmap(
                    at as *mut _,
                    BYTES,
                    ProtFlags::READ,
                    MapFlags::SHARED | MapFlags::FIXED_NOREPLACE,
                    &file,
                    0,
                )
            }
        })?;
        Ok(Self {
            writable: map(ProtFlags::READ | ProtFlags::WRITE)?,
            readable: readable.cast(),
        })
    }

    /// Where the jail reads them.
    pub(super) fn address(&self) -> usize {
        self.readable.as_ptr() as usize
    }

    /// The addresses that belong to it in the jail.
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.address()..self.address() + BYTES
    }

    pub(super) fn orders(&mut self) -> &mut Orders {
        // SAFETY: an owned mapping of the right size, and all values of the fields are valid. The
        // jail only reads, what it was told to by `give`.
        unsafe { self.writable.as_mut() }
    }

    /// Gives orders, of which there are [`ORDERS_MAX`] at most.
    pub(super) fn give(&mut self, list: &[Order]) {
        let orders = self.orders();
        orders.list[..list.len()].copy_from_slice(list);
        orders.count = list.len() as u32;
        orders.sequence.fetch_add(1, Ordering::Release);
        // SAFETY: wakes whoever waits for the word, which is mapped.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                orders.sequence.as_ptr(),
                libc::FUTEX_WAKE,
                i32::MAX,
            )
        };
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        for start in [self.writable, self.readable] {
            // SAFETY: mapped by `new` with this size; nobody refers to it any more.
            let _ = unsafe { munmap(start.as_ptr().cast(), BYTES) };
        }
    }
}
